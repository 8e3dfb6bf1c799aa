-- The arithmetic of orchestrator/core/pacing.py and orchestrator/core/turns.py, in one step for everybody. Times are whole
-- microseconds.
-- KEYS: one hash per budget, then, with a flow, the hash of turns of the first. ARGV: clock ('' for Redis's own), horizon,
-- count, memory in ms, flow ('' for none), its weight, has more (0 1), feels (0 1), then interval and burst per budget (interval 0: no limit).
-- Answer: {count, first_in, every, reason, serial, interval of the first budget, low credit, probe, left of a pause, shared}.
local LOW_CREDIT, BREAKS_AFTER, PROBED_FOR, ASK_AGAIN, PROVIDER_DOWN = 10500000, 5, 35000000, 2000000, 'provider down'
local COLD_AFTER, FEELS_FOR, FEEL_AGAIN = 60000000, 2000000, 100000
local UNIT, GRACE, AFTER, BEFORE, KEPT = 25200, 400000, 20000, 80000, 60000000

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local horizon, asked, memory = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local flow, weight, has_more, feels = ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8] == '1'

local function whole(number)
  return string.format('%.0f', number)
end

local function remember(key, bucket)
  redis.call('HSET', key, 'until', whole(bucket['until']), 'low', whole(bucket.low), 'served', whole(bucket.served),
             'reason', bucket.reason, 'pace', whole(bucket.pace), 'heard', whole(bucket.heard), 'felt_at',
             whole(bucket.felt_at), 'noted', whole(now))
  if bucket.tat then
    redis.call('HSET', key, 'tat', whole(bucket.tat))
  end
end

-- core/pacing.py: after_set_back, at_pace, effective, standing_tat
local buckets = {}
for i = 1, #KEYS - (flow ~= '' and 1 or 0) do
  local stored = redis.call('HMGET', KEYS[i], 'tat', 'until', 'reason', 'served', 'slow', 'low', 'missed', 'pace', 'noted',
                            'heard', 'felt_at')
  local bucket = {tat = tonumber(stored[1]), ['until'] = tonumber(stored[2]) or 0, reason = stored[3] or '',
                  served = tonumber(stored[4]) or 0, slow = tonumber(stored[5]) or 0, low = tonumber(stored[6]) or 0,
                  missed = tonumber(stored[7]) or 0, pace = tonumber(stored[8]) or 0, heard = tonumber(stored[10]) or 0,
                  felt_at = tonumber(stored[11]) or 0}
  local back = (tonumber(stored[9]) or 0) - now
  if back > 0 then
    bucket.tat = bucket.tat and math.max(0, bucket.tat - back)
    bucket['until'], bucket.low = math.max(0, bucket['until'] - back), math.max(0, bucket.low - back)
    bucket.heard, bucket.felt_at = math.min(bucket.heard, now), math.min(bucket.felt_at, now)
    remember(KEYS[i], bucket)
  end
  local own, burst = tonumber(ARGV[7 + 2 * i]), tonumber(ARGV[8 + 2 * i])
  local pace = math.max(own, bucket.slow)
  local from = now + (pace < bucket.pace and horizon or 0)
  if bucket.pace > 0 and pace ~= bucket.pace and bucket.tat and bucket.tat > from then
    bucket.tat = from + math.ceil((bucket.tat - from) * (pace / bucket.pace))
  end
  bucket.pace, bucket.interval, bucket.burst = pace, pace, burst
  if bucket.low > now then
    bucket.interval, bucket.burst = math.max(own, LOW_CREDIT), 1
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

local function answer(granted, first_in, every, reason, probe, pause)
  return {granted, first_in, every, reason, shared.served, shared.interval, shared.low > now and 1 or 0, probe and 1 or 0,
          pause or 0, 0}
end

-- core/pacing.py: reserve
local function reserve(wanted, careful)
  local left, why, first, slowest, probe = 0, '', now, 0, shared.missed >= BREAKS_AFTER
  for _, bucket in ipairs(buckets) do
    if bucket['until'] - now > left then
      left, why = bucket['until'] - now, bucket.reason
    end
    if bucket.interval > 0 then
      first, slowest = math.max(first, bucket.tat - bucket.full), math.max(slowest, bucket.interval)
    end
  end
  if left > 0 then
    return answer(0, probe and left == shared['until'] - now and math.min(left, ASK_AGAIN) or left, 0, why, false, left)
  end
  local feeling = careful and shared.interval > 0 and (shared.heard == 0 or shared.heard + COLD_AFTER <= now)
  if feeling and shared.felt_at > 0 and shared.felt_at + FEELS_FOR > now then
    return answer(0, FEEL_AGAIN, 0, 'limit')
  end
  if probe or feeling then
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
    if granted > 0 or bucket.new then
      bucket.served = bucket.served + granted
      if bucket.interval > 0 and granted > 0 then
        bucket.tat = math.max(math.max(bucket.tat, first) + granted * bucket.interval,
                              first + (granted - 1) * every + bucket.interval)
      end
      if i == 1 and granted > 0 and feeling then
        bucket.felt_at = first
      end
      if i == 1 and granted > 0 and probe then
        bucket['until'] = first + PROBED_FOR
        bucket.reason = string.sub(bucket.reason, 1, #PROVIDER_DOWN) == PROVIDER_DOWN and bucket.reason or PROVIDER_DOWN
      end
      remember(KEYS[i], bucket)
    end
    redis.call('PEXPIRE', KEYS[i], whole(memory + math.ceil(math.max(0, (bucket.tat or 0) - now) / 1000)))
  end
  if granted > 0 then
    return answer(granted, first - now, every, '', probe)
  end
  local gather = math.min(math.floor(horizon / 2), math.max(0, wanted - 1) * slowest)
  local wait = math.max(0, gather - room)
  return answer(0, shared.low > now and math.min(wait, ASK_AGAIN) or wait, 0, 'limit')
end

if flow == '' then
  return reserve(asked)
end

-- core/turns.py: reserve_in_turn
local place, turns = KEYS[#KEYS], {}
local stored = redis.call('HGETALL', place)
for i = 1, #stored, 2 do
  local spent, back, last, heft, seen = string.match(stored[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  local turn = {spent = tonumber(spent), back = tonumber(back), last = tonumber(last), weight = tonumber(heft)}
  if tonumber(seen) <= now and now <= math.max(tonumber(seen), turn.last) + KEPT then
    turns[stored[i]] = turn
  else
    redis.call('HDEL', place, stored[i])
  end
end

local function is_waiting(turn)
  return turn.last > 0 and turn.last + GRACE >= now
end

local function soonest(turn)
  return turn.back > now and turn.back or turn.last
end

local others, next_spent = 0, nil
for key, turn in pairs(turns) do
  if key ~= flow and is_waiting(turn) then
    others, next_spent = others + turn.weight, math.min(next_spent or turn.spent, turn.spent)
  end
end
local ahead = shared.interval > 0 and math.floor(horizon / shared.interval) + 1 or asked
local known = turns[flow] or {spent = next_spent or 0, last = 0, back = 0}
local mine = {spent = known.spent, back = 0, last = 0}
if next_spent and not is_waiting(known) then
  mine.spent = math.min(math.max(known.spent, next_spent), next_spent + math.floor(ahead * UNIT / weight))
end
if known.last > now then
  mine.back, mine.last = soonest(known), known.last
end

local function expected(at)
  mine.back, mine.last = mine.back > 0 and math.min(mine.back, at) or at, math.max(mine.last, at)
end

local function note(given)
  redis.call('HSET', place, flow, table.concat({whole(mine.spent), whole(mine.back), whole(mine.last), whole(weight), whole(now)}, ' '))
  redis.call('PEXPIRE', place, whole(memory + math.ceil(math.max(0, mine.last - now) / 1000)))
  given[10] = others > 0 and 1 or 0
  return given
end

-- who got less than wanted, or has more, is expected; who is held to less than asked by a budget of its own is not
local function remembered(given, wanted)
  local last = given[2] + math.max(0, given[1] - 1) * given[3]
  mine.spent = mine.spent + math.floor(given[1] * UNIT / weight)
  if given[1] < wanted then
    expected(now + last)
  elseif given[1] == asked and asked > 0 and has_more then
    expected(now + math.max(0, last - BEFORE))
  end
  return note(given)
end

local paused = false
for _, bucket in ipairs(buckets) do
  paused = paused or bucket['until'] > now
end

local wanted, late = asked, 0
if not next_spent or shared.interval == 0 or asked < 1 or paused then
  for i = 2, #buckets do -- core/pacing.py: most
    local bucket = buckets[i]
    if bucket['until'] > now then
      wanted = 0
    elseif bucket.interval > 0 then
      local room = now + horizon - (math.max(bucket.tat, now) - bucket.full)
      wanted = math.min(wanted, math.max(0, 1 + math.floor(room / bucket.interval)))
    end
  end
  return remembered(reserve(wanted < 1 and math.min(asked, 1) or asked, feels), wanted)
end

local at = math.max(now, shared.tat - shared.full)
for i = 2, #buckets do -- core/pacing.py: credit
  local bucket = buckets[i]
  if bucket.interval > 0 then
    local few = math.max(0, 1 + math.floor((bucket.full - math.max(0, bucket.tat - at)) / bucket.interval))
    wanted = math.min(wanted, few)
    late = math.max(late, bucket.tat - at - bucket.full)
  end
end

local before
for key, turn in pairs(turns) do
  if key ~= flow and is_waiting(turn) and turn.spent < mine.spent and shared.tat > math.max(now, soonest(turn)) + AFTER then
    if not before or turn.spent < before.spent or (turn.spent == before.spent and soonest(turn) < soonest(before)) then
      before = turn
    end
  end
end
if wanted < 1 or before then
  local given = reserve(0)
  given[2] = wanted < 1 and late or AFTER + math.max(0, soonest(before) - now)
  return remembered(given, wanted)
end
return remembered(reserve(math.min(wanted, math.max(1, math.floor(ahead * weight / (weight + others)))), feels), wanted)
