-- The arithmetic of orchestrator/core/pacing.py, in one step for everybody. Times are whole microseconds.
-- KEYS: one hash per budget (tat, until, reason). ARGV: clock ('' for Redis's own), verb, then
--   reserve: horizon, count, memory in ms, then interval and burst per key (interval 0: no limit)
--   pause:   duration, reason, memory in ms
--   paused:  nothing
-- Answer: {count, first_in, every, reason}; pause and paused answer {0, left, 0, reason}.
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local verb = ARGV[2]

local function whole(number)
  return string.format('%.0f', number)
end

local buckets, left, why = {}, 0, ''
for i, key in ipairs(KEYS) do
  local stored = redis.call('HMGET', key, 'tat', 'until', 'reason')
  local bucket = {tat = tonumber(stored[1]), ['until'] = tonumber(stored[2]) or 0, reason = stored[3] or ''}
  buckets[i] = bucket
  if bucket['until'] - now > left then
    left, why = bucket['until'] - now, bucket.reason
  end
end

if verb == 'pause' then
  local duration = tonumber(ARGV[3])
  if duration > left then
    left, why = duration, ARGV[4]
    redis.call('HSET', KEYS[1], 'until', whole(now + duration), 'reason', why)
    redis.call('PEXPIRE', KEYS[1], whole(math.ceil(duration / 1000) + tonumber(ARGV[5])))
  end
  return {0, left, 0, why}
end
if verb == 'paused' or left > 0 then
  return {0, left, 0, why}
end

local horizon, wanted, memory = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local first, slowest = now, 0
for i, bucket in ipairs(buckets) do
  bucket.interval, bucket.burst = tonumber(ARGV[4 + 2 * i]), tonumber(ARGV[5 + 2 * i])
  if bucket.interval > 0 then
    slowest = math.max(slowest, bucket.interval)
    local full = (bucket.burst - 1) * bucket.interval
    local emptiest = now + horizon + bucket.burst * bucket.interval
    if bucket.tat then
      bucket.tat = math.min(math.max(bucket.tat, bucket['until'] + full), emptiest)
    else
      bucket.tat, bucket.new = emptiest, true
    end
    first = math.max(first, bucket.tat - full)
  end
end

local room = now + horizon - first
local granted, every = 0, 0
if room >= 0 and wanted >= 1 then
  granted = wanted
  for _, bucket in ipairs(buckets) do
    if bucket.interval > 0 then
      bucket.slack = first - (math.max(bucket.tat, first) - (bucket.burst - 1) * bucket.interval)
      granted = math.min(granted, 1 + math.floor((room + bucket.slack) / bucket.interval))
    end
  end
  if granted > 1 then
    for _, bucket in ipairs(buckets) do
      if bucket.interval > 0 then
        every = math.max(every, math.ceil(bucket.interval - bucket.slack / (granted - 1)))
      end
    end
    if every > 0 then
      granted = math.min(granted, 1 + math.floor(room / every))
    end
  end
end

for i, bucket in ipairs(buckets) do
  if bucket.interval > 0 and (granted > 0 or bucket.new) then
    local tat = bucket.tat
    if granted > 0 then
      tat = math.max(math.max(tat, first) + granted * bucket.interval, first + (granted - 1) * every + bucket.interval)
    end
    redis.call('HSET', KEYS[i], 'tat', whole(tat))
    redis.call('PEXPIRE', KEYS[i], whole(math.ceil(math.max(0, tat - now) / 1000) + memory))
  end
end
if granted > 0 then
  return {granted, first - now, every, ''}
end
local gather = math.min(math.floor(horizon / 2), math.max(0, wanted - 1) * slowest)
return {0, math.max(0, gather - room), 0, 'limit'}
