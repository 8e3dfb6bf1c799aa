-- The arithmetic of orchestrator/core/heeding.py: what the provider says, or that it says nothing. Times are whole
-- microseconds.
-- KEYS[1]: the hash of one budget. ARGV: clock ('' for Redis's own), verb, memory in ms, then
--   hear:     interval, burst, serial, answered (0 1), remaining (-1: not said), missed, trouble
--   throttle: interval, burst, serial, duration, reason, low credit (0 1)
--   pause:    duration, reason
--   paused:   nothing
-- Answer: {left of a pause, reason}.
local LOW_CREDIT, LOW_CREDIT_FOR, BREAKS_AFTER = 10000000, 1800000000, 5
local DOCUMENTED, SLOWEST, KEPT, SEEN, UNSEEN, THROTTLED_BY = 100000, 20, 1000000, 16, 64, 1.5
local PROVIDER_DOWN, BREAK, LONGEST_BREAK = 'provider down', 5000000, 60000000

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local verb, memory = ARGV[2], tonumber(ARGV[3])

local function whole(number)
  return string.format('%.0f', number)
end

local names = {'tat', 'until', 'reason', 'served', 'steered', 'full', 'slow', 'low', 'missed'}
local stored, bucket = redis.call('HMGET', KEYS[1], unpack(names)), {}
for i, name in ipairs(names) do
  bucket[name] = tonumber(stored[i]) or 0
end
bucket.tat, bucket.reason = tonumber(stored[1]), stored[3] or ''

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
    bucket['until'], bucket.reason = now + duration, reason
  end
end

if verb == 'pause' then
  pause(tonumber(ARGV[4]), ARGV[5])
  keep()
end
if verb == 'pause' or verb == 'paused' then
  return {math.max(0, bucket['until'] - now), bucket.reason}
end

local own, burst, serial = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local base = own > 0 and own or DOCUMENTED

local function interval()
  return bucket.low > now and math.max(own, LOW_CREDIT) or math.max(own, bucket.slow)
end

local function paced(slow)
  local before = interval()
  bucket.slow, bucket.steered = slow, bucket.served
  local after = interval()
  if bucket.tat and bucket.tat > now and before > 0 and after > 0 then
    bucket.tat = now + math.ceil((bucket.tat - now) * (after / before))
  end
end

local function slowed(by)
  paced(by > 1 and math.min(math.floor(math.max(base, bucket.slow) * by), SLOWEST * base) or bucket.slow)
end

local function faster(steps)
  local slow = math.floor(bucket.slow / (1 + bucket.slow / (steps * base)))
  paced(slow > base and slow or 0)
end

local function steered(remaining)
  local kept = math.min(math.floor(bucket.full * 2 / 3), math.max(4, math.ceil(KEPT / base)))
  if remaining < 0 or kept == 0 then
    return faster(UNSEEN)
  end
  if remaining > kept then
    return faster(SEEN)
  end
  local short = kept - remaining
  slowed(1 + short / (4 * kept))
  if bucket.tat then
    bucket.tat = math.max(bucket.tat, now) + short * interval()
  end
end

local function breaker(answered, missed, trouble)
  local open = bucket.missed >= BREAKS_AFTER
  if answered then
    if open then
      bucket['until'] = math.min(bucket['until'], now)
    end
    bucket.missed, open = 0, false
  end
  if missed == 0 or (open and serial <= bucket.steered) then
    return
  end
  if bucket.missed + missed < BREAKS_AFTER then
    bucket.missed = bucket.missed + missed
    return
  end
  bucket.missed = open and bucket.missed + 1 or BREAKS_AFTER
  bucket.steered = bucket.served
  bucket['until'] = now + math.min(LONGEST_BREAK, BREAK * 2 ^ math.min(10, bucket.missed - BREAKS_AFTER))
  bucket.reason = PROVIDER_DOWN .. ': ' .. trouble
end

if verb == 'throttle' then
  breaker(true, 0, '')
  pause(tonumber(ARGV[7]), ARGV[8])
  if ARGV[9] == '1' then
    bucket.low, bucket.slow, bucket.full, bucket.steered = now + LOW_CREDIT_FOR, 0, 0, bucket.served
  elseif serial > bucket.steered then
    slowed(THROTTLED_BY)
  end
else
  local answered, remaining = ARGV[7] == '1', tonumber(ARGV[8])
  breaker(answered, tonumber(ARGV[9]), ARGV[10])
  if answered then
    if remaining >= 0 then
      bucket.full = math.max(bucket.full, remaining)
      bucket.low = remaining == 0 and bucket.low > now and now + LOW_CREDIT_FOR or 0
    end
    if serial > bucket.steered then
      steered(remaining)
    end
  end
end
keep()
return {math.max(0, bucket['until'] - now), bucket.reason}
