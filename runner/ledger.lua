-- The ledger's scripts. Each runs whole or not at all, on the server's clock. One file, one dispatcher: ARGV[1] names the step.
-- KEYS: 1 batch, 2 chunks, 3 free, 4 outcomes, 5 events, 6 active, 7 expiry, 8 workers
local batch, chunks, free, outcomes, events = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local active, expiry, workers = KEYS[6], KEYS[7], KEYS[8]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)  -- milliseconds

local function number(field) return tonumber(redis.call('HGET', batch, field) or '0') end
local function state() return redis.call('HGET', batch, 'state') end
local function chunk(start)
  local text = redis.call('HGET', chunks, start)
  return text and cjson.decode(text)
end
local function keep(start, entry) redis.call('HSET', chunks, start, cjson.encode(entry)) end
local function give_back(start, stop, suspect)
  if stop > start then redis.call('LPUSH', free, cjson.encode({start = start, stop = stop, suspect = suspect})) end
end
local function say(...) redis.call('XADD', events, '*', ...) end
local function count(what, by) redis.call('HINCRBY', 'runner:health', what, by or 1) end
-- What a worker has counted since it last said so.  counted: json of name → number
local function tally(worker, counted)
  for what, by in pairs(cjson.decode(counted)) do
    count(what, by)
    redis.call('HINCRBY', 'runner:health:' .. worker, what, by)
  end
end
local function start_running(id, fields, token)
  local key = 'runner:batch:' .. id
  redis.call('HSET', key, 'state', 'running', 'started_ms', now, 'next', 0, 'done', 0, 'failed', 0, 'cost_us', 0)
  for name, value in pairs(fields) do redis.call('HSET', key, name, value) end
  redis.call('HSET', key, 'activated_by', token)
  redis.call('ZREM', expiry, id)
  redis.call('SADD', active, id)
end

-- How many runs the next chunk takes: target_us long by the cost measured so far, shorter towards the end so that
-- all slots finish together (guided self-scheduling), never shorter than floor_us.
local function size(remaining, slots)
  local cost = number('cost_us')
  if cost <= 0 then return number('first_runs') end
  local even = math.ceil(remaining / (2 * slots))
  local runs = math.min(math.floor(number('target_us') / cost), math.max(even, math.floor(number('floor_us') / cost)))
  return math.max(1, runs)
end

local function claim(slots)
  if state() ~= 'running' then return nil end
  local total, next = number('total'), number('next')
  local text = redis.call('LPOP', free)
  local start, stop, suspect
  if text then
    local range = cjson.decode(text)
    start, stop, suspect = range.start, range.stop, range.suspect
    local last = start + size(total - number('done'), slots)
    if last < stop then give_back(last, stop, suspect); stop = last end
  else
    if next >= total then return nil end
    start, stop, suspect = next, math.min(total, next + size(total - next, slots)), false
    redis.call('HSET', batch, 'next', stop)
  end
  keep(start, {stop = stop, state = 'queued', at = now, deaths = 0, losses = 0, suspect = suspect})
  return start
end

local function finish(how)
  redis.call('HSET', batch, 'state', how, 'finished_ms', now)
  redis.call('SREM', active, ARGV[2])
  -- A fetch that feeds a sweep goes when the sweep goes.
  if not redis.call('HGET', batch, 'feeds') then redis.call('ZADD', expiry, now + number('retention_ms'), ARGV[2]) end
  redis.call('DEL', chunks, free)
  say('state', how)
end

local function wants_food(target)
  local how = redis.call('HGET', 'runner:batch:' .. target, 'state')
  return how == 'running' or how == 'paused'
end

-- Prices that a fetch has brought open the runs on them.  refs: json of each item's reference or error, in order
local function feed(start, refs)
  local target, points = redis.call('HGET', batch, 'feeds'), number('points')
  if not target or not wants_food(target) then return end
  for i, ref in ipairs(refs) do
    local item = start + i - 1
    -- The first word on an item is the last: its runs may have begun.
    if redis.call('HSETNX', 'runner:batch:' .. target .. ':landed', item, ref) == 1 then
      local range = {start = item * points, stop = (item + 1) * points, suspect = false}
      redis.call('RPUSH', 'runner:batch:' .. target .. ':free', cjson.encode(range))
    end
  end
end

local step = {}

-- Take the name, before anything is uploaded under it.  ARGV: batch, grace_ms, token
-- A token tells a call that is made again, its answer lost, from another's.
function step.reserve()
  if redis.call('EXISTS', batch) == 1 then return redis.call('HGET', batch, 'reserved_by') == ARGV[4] and 1 or 0 end
  redis.call('HSET', batch, 'state', 'submitting', 'created_ms', now, 'reserved_by', ARGV[4])
  redis.call('ZADD', expiry, now + tonumber(ARGV[3]), ARGV[2])
  return 1
end

-- From here on the batch runs, whatever becomes of the client, and with it the one that feeds it, if there is one.
-- ARGV: batch, json of fields, feeding batch or '', json of its fields, token
function step.activate()
  if state() ~= 'submitting' then return redis.call('HGET', batch, 'activated_by') == ARGV[6] and 1 or 0 end
  start_running(ARGV[2], cjson.decode(ARGV[3]), ARGV[6])
  if ARGV[4] ~= '' then start_running(ARGV[4], cjson.decode(ARGV[5]), ARGV[6]) end
  return 1
end

-- Fill the window of queued and running chunks.  ARGV: batch, slots, window.  Returns starts to publish.
function step.top_up()
  local starts = {}
  local room = tonumber(ARGV[4]) - redis.call('HLEN', chunks)
  while room > 0 do
    local start = claim(tonumber(ARGV[3]))
    if not start then break end
    starts[#starts + 1] = start
    room = room - 1
  end
  return starts
end

-- A child takes a chunk.  ARGV: batch, start, me, dead (an owner who is known to be)
-- Returns {what, stop, owner, priority, life}: what = run | poison | drop | owned
function step.begin()
  local start, me = ARGV[3], ARGV[4]
  local entry, how, target = chunk(start), state(), redis.call('HGET', batch, 'feeds')
  if how == 'running' and target and not wants_food(target) then finish('cancelled'); how = 'cancelled' end
  if not entry or how == 'cancelled' or how == 'done' then return {'drop', 0, '', '', ''} end
  if how == 'paused' then
    redis.call('HDEL', chunks, start)
    give_back(tonumber(start), entry.stop, entry.suspect)
    return {'drop', 0, '', '', ''}
  end
  if entry.state == 'running' and entry.owner ~= me then
    if ARGV[5] ~= entry.owner then return {'owned', entry.stop, entry.owner, '', ''} end
    entry.deaths = entry.deaths + 1
    count('tasks_lost')
  end
  local runs = entry.stop - tonumber(start)
  -- Two deaths make a chunk suspect; each further one halves it, until one run stands alone. Alone it may die twice.
  if runs > 1 and (entry.deaths >= 2 or (entry.suspect and entry.deaths >= 1)) then
    local middle = tonumber(start) + math.floor(runs / 2)
    give_back(middle, entry.stop, true)
    entry.stop, entry.suspect, entry.deaths = middle, true, 0
  end
  local poison = runs == 1 and entry.deaths >= 2
  entry.state, entry.owner, entry.at = 'running', me, now
  keep(start, entry)
  return {poison and 'poison' or 'run', entry.stop, '', redis.call('HGET', batch, 'priority'),
    redis.call('HGET', batch, 'activated_by')}
end

-- First commit wins.
-- ARGV: batch, start, stop, done_stop, failed, us, worker, slots, blob, json of references or '', json of counters
-- Returns the first run of the next chunk, or -1.
function step.commit()
  tally(ARGV[8], ARGV[12])
  local start, stop, done_stop = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local entry, how = chunk(ARGV[3]), state()
  if not entry or entry.stop ~= stop or how == 'cancelled' or how == 'done' then return -1 end
  local runs, us = done_stop - start, tonumber(ARGV[7])
  redis.call('HDEL', chunks, start)
  redis.call('HSET', outcomes, start, ARGV[10])
  if ARGV[11] ~= '' then feed(start, cjson.decode(ARGV[11])) end
  give_back(done_stop, stop, entry.suspect)
  local cost, measured = number('cost_us'), us / runs
  -- Half old, half new: joblib's smoothing (0.8/0.2) is for tasks that differ; neighbours in a grid seldom do.
  redis.call('HSET', batch, 'cost_us', tostring(cost > 0 and (cost + measured) / 2 or measured))
  redis.call('HINCRBY', batch, 'failed', ARGV[6])
  local done = redis.call('HINCRBY', batch, 'done', runs)
  say('start', start, 'stop', done_stop, 'failed', ARGV[6], 'us', us, 'worker', ARGV[8])
  if done >= number('total') then finish('done'); return -1 end
  return claim(tonumber(ARGV[9])) or -1
end

-- A child that could not run its chunk hands it back.  ARGV: batch, start, me, json of counters
function step.release()
  tally(string.match(ARGV[4], '^(.*)/'), ARGV[5])
  local entry = chunk(ARGV[3])
  if not entry or entry.owner ~= ARGV[4] then return 0 end
  redis.call('HDEL', chunks, ARGV[3])
  give_back(tonumber(ARGV[3]), entry.stop, entry.suspect)
  return 1
end

-- The first half of removing a batch: from here on nothing can be stored for it.  ARGV: batch, 'now' or 'expired'
function step.retire()
  local until_ms = redis.call('ZSCORE', expiry, ARGV[2])
  if ARGV[3] == 'expired' and (not until_ms or tonumber(until_ms) > now) then return 0 end
  redis.call('ZADD', expiry, now, ARGV[2])  -- should the second half not come: the janitor begins again
  redis.call('SREM', active, ARGV[2])
  redis.call('DEL', batch)
  return 1
end

-- ARGV: batch, state to go to.  Returns the state it is in now.
function step.turn()
  local how, wanted = state(), ARGV[3]
  if how ~= 'running' and how ~= 'paused' then return how end
  if wanted == 'cancelled' then finish('cancelled') else
    redis.call('HSET', batch, 'state', wanted)
    say('state', wanted)
  end
  return wanted
end

-- Chunks whose owner is gone, or whose message is.  ARGV: batch, dead_ms, grace_ms, json of queued starts or ''
-- Returns starts to publish; without the queue's content, a last one 'look' when some chunk has waited for longer.
function step.recover()
  local starts, looked, look = {}, ARGV[5] ~= '', false
  local queued = looked and cjson.decode(ARGV[5]) or {}
  local living = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', workers, now - tonumber(ARGV[3]), '+inf')) do living[name] = true end
  local all = redis.call('HGETALL', chunks)
  for i = 1, #all, 2 do
    local start, entry = all[i], cjson.decode(all[i + 1])
    local gone = entry.state == 'running' and not living[string.match(entry.owner, '^(.*)/')]
    local hung = entry.state == 'running' and now - entry.at > number('limit_ms')  -- a living child, but it let go
    if gone or hung then
      entry.state, entry.at, entry.losses = 'queued', now, entry.losses + 1
      count('tasks_lost')
      if entry.losses >= 3 then entry.deaths = entry.deaths + 1 end  -- whole workers die of it too
      keep(start, entry)
      starts[#starts + 1] = start
    elseif entry.state == 'queued' and now - entry.at > tonumber(ARGV[4]) and not queued[start] then
      if looked then
        entry.at = now
        keep(start, entry)
        starts[#starts + 1] = start
      else
        look = true
      end
    end
  end
  if look then starts[#starts + 1] = 'look' end
  return starts
end

return step[ARGV[1]]()
