-- The arithmetic of orchestrator/core/pacing.py and orchestrator/core/turns.py, in one step for everybody. Times are whole
-- microseconds.
-- KEYS: one hash per budget, then, with a flow, the hash of turns of the first. ARGV: clock ('' for Redis's own), horizon,
-- count, memory in ms, flow ('' for none), its weight, then interval and burst per budget (interval 0: no limit).
-- Answer: {count, first_in, every, reason, serial, interval of the first budget, low credit, probe}.
local LOW_CREDIT, BREAKS_AFTER, PROBED_FOR = 10000000, 5, 35000000
local UNIT, GRACE, AFTER = 25200, 400000, 20000

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local horizon, asked, memory = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local flow, weight = ARGV[5], tonumber(ARGV[6])

local function whole(number)
  return string.format('%.0f', number)
end

local buckets = {}
for i = 1, #KEYS - (flow ~= '' and 1 or 0) do
  local stored = redis.call('HMGET', KEYS[i], 'tat', 'until', 'reason', 'served', 'slow', 'low', 'missed')
  local bucket = {tat = tonumber(stored[1]), ['until'] = tonumber(stored[2]) or 0, reason = stored[3] or '',
                  served = tonumber(stored[4]) or 0, slow = tonumber(stored[5]) or 0, low = tonumber(stored[6]) or 0,
                  missed = tonumber(stored[7]) or 0}
  bucket.interval, bucket.burst = tonumber(ARGV[5 + 2 * i]), tonumber(ARGV[6 + 2 * i])
  if bucket.low > now then
    bucket.interval, bucket.burst = math.max(bucket.interval, LOW_CREDIT), 1
  else
    bucket.interval = math.max(bucket.interval, bucket.slow)
  end
  if bucket.interval > 0 then
    bucket.full = (bucket.burst - 1) * bucket.interval
    local emptiest = now + horizon + bucket.burst * bucket.interval
    if bucket.tat then
      bucket.tat = math.min(math.max(bucket.tat, bucket['until'] + bucket.full), emptiest)
    else
      bucket.tat, bucket.new = emptiest, true
    end
  end
  buckets[i] = bucket
end
local shared = buckets[1]

local function answer(granted, first_in, every, reason, probe)
  return {granted, first_in, every, reason, shared.served, shared.interval, shared.low > now and 1 or 0, probe and 1 or 0}
end

-- core/pacing.py: reserve
local function reserve(wanted)
  local left, why, first, slowest = 0, '', now, 0
  for _, bucket in ipairs(buckets) do
    if bucket['until'] - now > left then
      left, why = bucket['until'] - now, bucket.reason
    end
    if bucket.interval > 0 then
      first, slowest = math.max(first, bucket.tat - bucket.full), math.max(slowest, bucket.interval)
    end
  end
  if left > 0 then
    return answer(0, left, 0, why)
  end
  local probe = shared.missed >= BREAKS_AFTER
  if probe then
    wanted = math.min(wanted, 1)
  end
  local room, granted, every = now + horizon - first, 0, 0
  if room >= 0 and wanted >= 1 then
    granted = wanted
    for _, bucket in ipairs(buckets) do
      if bucket.interval > 0 then
        bucket.slack = first - (math.max(bucket.tat, first) - bucket.full)
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
    if granted > 0 then
      bucket.served = bucket.served + granted
      redis.call('HSET', KEYS[i], 'served', whole(bucket.served))
    end
    local kept = memory
    if bucket.interval > 0 and (granted > 0 or bucket.new) then
      local tat = bucket.tat
      if granted > 0 then
        tat = math.max(math.max(tat, first) + granted * bucket.interval, first + (granted - 1) * every + bucket.interval)
      end
      redis.call('HSET', KEYS[i], 'tat', whole(tat))
      kept = kept + math.ceil(math.max(0, tat - now) / 1000)
    end
    redis.call('PEXPIRE', KEYS[i], whole(kept))
  end
  if granted > 0 then
    if probe then
      redis.call('HSET', KEYS[1], 'until', whole(first + PROBED_FOR))
    end
    return answer(granted, first - now, every, '', probe)
  end
  local gather = math.min(math.floor(horizon / 2), math.max(0, wanted - 1) * slowest)
  return answer(0, math.max(0, gather - room), 0, 'limit')
end

if flow == '' then
  return reserve(asked)
end

-- core/turns.py: reserve_in_turn
local place, turns = KEYS[#KEYS], {}
local stored = redis.call('HGETALL', place)
for i = 1, #stored, 2 do
  local spent, back, heft = string.match(stored[i + 1], '^(%d+) (%d+) (%d+)$')
  turns[stored[i]] = {spent = tonumber(spent), back = tonumber(back), weight = tonumber(heft)}
end

local function is_waiting(turn)
  return turn.back > 0 and turn.back + GRACE >= now
end

local function note(spent, back)
  redis.call('HSET', place, flow, whole(spent) .. ' ' .. whole(back) .. ' ' .. whole(weight))
  redis.call('PEXPIRE', place, whole(memory))
end

-- core/pacing.py: most
local wanted = asked
for i = 2, #buckets do
  local bucket = buckets[i]
  if bucket['until'] > now then
    wanted = 0
  elseif bucket.interval > 0 then
    local room = now + horizon - (math.max(bucket.tat, now) - bucket.full)
    wanted = math.min(wanted, math.max(0, 1 + math.floor(room / bucket.interval)))
  end
end

local mine = turns[flow]
local function after(spent, given)
  local last = given[2] + math.max(0, given[1] - 1) * given[3]
  note(spent + math.floor(given[1] * UNIT / weight), given[1] < wanted and now + last or 0)
  return given
end

local others, next_spent = 0, nil
for key, turn in pairs(turns) do
  if key ~= flow and is_waiting(turn) then
    others, next_spent = others + turn.weight, math.min(next_spent or turn.spent, turn.spent)
  end
end
if others == 0 or shared.interval == 0 or wanted < 1 or shared['until'] > now then
  return after(mine and mine.spent or 0, reserve(asked))
end

local ahead, spent = math.floor(horizon / shared.interval) + 1, next_spent
if mine and is_waiting(mine) then
  spent = mine.spent
elseif mine then
  spent = math.min(math.max(mine.spent, next_spent), next_spent + math.floor(ahead * UNIT / weight))
end
if spent > next_spent then
  local back
  for key, turn in pairs(turns) do
    if key ~= flow and is_waiting(turn) and turn.spent == next_spent then
      back = math.min(back or turn.back, turn.back)
    end
  end
  local wait = math.max(0, back - now) + AFTER
  note(spent, now + wait)
  return answer(0, wait, 0, 'limit')
end
return after(spent, reserve(math.min(asked, math.max(1, math.floor(ahead * weight / (weight + others))))))
