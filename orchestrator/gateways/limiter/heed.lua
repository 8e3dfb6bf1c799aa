-- The arithmetic of orchestrator/core/heeding.py: what the provider says, or that it says nothing. Times are whole
-- microseconds.
-- KEYS[1]: the hash of one budget. ARGV: clock ('' for Redis's own), verb, memory in ms, horizon, then
--   hear:     interval, burst, serial, answered (0 1), remaining (-1: not said), missed, trouble
--   throttle: interval, burst, serial, duration, reason, low credit (0 1)
--   pause:    duration, reason
--   paused:   nothing
-- Answer: {left of a pause, reason}.
local LOW_CREDIT_FOR, BREAKS_AFTER, COLD_AFTER, FEELS = 1800000000, 5, 60000000, 2
local DOCUMENTED, SLOWEST, DOUBTED, KEPT, SEEN, UNSEEN, THROTTLED_BY = 100000, 20, 4, 1000000, 16, 64, 1.5
local PROVIDER_DOWN, BREAK, LONGEST_BREAK = 'provider down', 5000000, 60000000

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local verb, memory, horizon = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function whole(number)
  return string.format('%.0f', number)
end

local names = {'tat', 'until', 'reason', 'served', 'steered', 'full', 'slow', 'low', 'missed', 'pace', 'noted', 'heard', 'felt_at',
               'felt'}
local stored, bucket = redis.call('HMGET', KEYS[1], unpack(names)), {}
for i, name in ipairs(names) do
  bucket[name] = tonumber(stored[i]) or 0
end
bucket.tat, bucket.reason = tonumber(stored[1]), stored[3] or ''

-- core/pacing.py: after_set_back
local back = bucket.noted - now
if back > 0 then
  bucket.tat, bucket.noted = bucket.tat and math.max(0, bucket.tat - back), now
  bucket['until'], bucket.low = math.max(0, bucket['until'] - back), math.max(0, bucket.low - back)
  bucket.heard, bucket.felt_at = math.min(bucket.heard, now), math.min(bucket.felt_at, now)
end

local function keep()
  local kept = math.max(bucket['until'] - now, (bucket.tat or 0) - now, bucket.low - now, 0)
  for _, name in ipairs(names) do
    if name == 'reason' then
      redis.call('HSET', KEYS[1], name, bucket.reason)
    elseif bucket[name] then
      redis.call('HSET', KEYS[1], name, whole(bucket[name]))
    end
  end
  redis.call('PEXPIRE', KEYS[1], whole(math.ceil(kept / 1000) + memory))
end

local function pause(duration, reason)
  if now + duration > bucket['until'] then
    bucket['until'], bucket.reason, bucket.noted = now + duration, reason, now
  end
end

if verb == 'pause' then
  pause(tonumber(ARGV[5]), ARGV[6])
  keep()
end
if verb == 'pause' or verb == 'paused' then
  return {math.max(0, bucket['until'] - now), bucket.reason}
end

local own, serial = tonumber(ARGV[5]), tonumber(ARGV[7])
local base = own > 0 and own or DOCUMENTED

-- core/pacing.py: at_pace
local function at_pace()
  local pace = math.max(own, bucket.slow)
  local from = now + (pace < bucket.pace and horizon or 0)
  if bucket.pace > 0 and pace ~= bucket.pace and bucket.tat and bucket.tat > from then
    bucket.tat = from + math.ceil((bucket.tat - from) * (pace / bucket.pace))
  end
  bucket.pace = pace
end

local function is_news()
  return bucket.steered < serial and serial <= bucket.served
end

local function slowed(by)
  if by > 1 then
    bucket.slow = math.min(math.floor(math.max(base, bucket.slow) * by), SLOWEST * base)
  end
  bucket.steered = bucket.served
end

local function faster(steps)
  local slow = math.floor(bucket.slow / (1 + bucket.slow / (steps * base)))
  bucket.slow, bucket.steered = slow > base and slow or 0, bucket.served
end

local function steered(remaining)
  local most = math.max(4, math.ceil(KEPT / base))
  local kept = math.min(math.floor(bucket.full * 2 / 3), most)
  if remaining < 0 or kept == 0 then
    return faster(UNSEEN)
  end
  if remaining > kept then
    return faster(SEEN)
  end
  if bucket.slow >= DOUBTED * base then
    bucket.full = math.max(remaining, math.floor(math.min(bucket.full, math.floor(most * 3 / 2)) * 3 / 4))
  end
  local short, interval = kept - remaining, math.max(own, bucket.slow)
  slowed(1 + short / (4 * kept))
  if bucket.tat and interval > 0 then
    bucket.tat = math.max(bucket.tat, now) + short * interval
  end
end

local function breaker(answered, missed, trouble)
  local open, ours = bucket.missed >= BREAKS_AFTER, string.sub(bucket.reason, 1, #PROVIDER_DOWN) == PROVIDER_DOWN
  if answered then
    if open and ours then
      bucket['until'] = math.min(bucket['until'], now)
    end
    bucket.missed, open = 0, false
  end
  if missed == 0 or (open and not is_news()) then
    return
  end
  if bucket.missed + missed < BREAKS_AFTER then
    bucket.missed = bucket.missed + missed
    return
  end
  if open and ours then
    bucket['until'] = 0
  end
  bucket.missed = open and bucket.missed + 1 or BREAKS_AFTER
  bucket.steered = bucket.served
  pause(math.min(LONGEST_BREAK, BREAK * 2 ^ math.min(10, bucket.missed - BREAKS_AFTER)), PROVIDER_DOWN .. ': ' .. trouble)
end

at_pace()
bucket.noted = now
if verb == 'throttle' then
  breaker(true, 0, '')
  bucket.heard, bucket.felt_at, bucket.felt = now, 0, 0
  pause(tonumber(ARGV[8]), ARGV[9])
  if ARGV[10] == '1' then
    bucket.low, bucket.slow, bucket.full, bucket.steered = now + LOW_CREDIT_FOR, 0, 0, bucket.served
  elseif is_news() then
    slowed(THROTTLED_BY)
  end
else
  local answered, remaining = ARGV[8] == '1', tonumber(ARGV[9])
  breaker(answered, tonumber(ARGV[10]), ARGV[11])
  if answered then
    local cold = bucket.heard == 0 or bucket.heard + COLD_AFTER <= now
    if cold and remaining <= 0 and bucket.felt + 1 < FEELS then
      bucket.felt_at, bucket.felt = 0, bucket.felt + 1
    else
      bucket.heard, bucket.felt_at, bucket.felt = now, 0, 0
    end
  end
  if answered and is_news() then
    if remaining >= 0 then
      bucket.full = math.max(bucket.full, remaining)
      bucket.low = remaining == 0 and bucket.low > now and now + LOW_CREDIT_FOR or 0
    end
    if bucket.low > now then
      bucket.steered = bucket.served
    else
      steered(remaining)
    end
  end
end
at_pace()
keep()
return {math.max(0, bucket['until'] - now), bucket.reason}
