-- Put before every script. Numbers over 2^53 do not occur: tokens are microseconds since 1970.
local function integer(number) return string.format('%.0f', number) end

-- The server's time in microseconds, or the test's.
local function now_us(given_ms)
  if given_ms ~= '' then return tonumber(given_ms) * 1000 end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function now_ms(given_ms) return math.floor(now_us(given_ms) / 1000) end

-- Whether an orchestrator may write of a study: it leads it, so that nobody has deleted it meanwhile.
-- An empty `leader` is one that drives none.
local function leads(lead, leader) return leader == '' or redis.call('GET', lead) == leader end

local function epoch_is(key, epoch) return redis.call('GET', key) == epoch end

-- Whether a record of a process or a host was written under the epoch of now.
local function is_of_epoch(record, key)
  return redis.call('HGET', record, 'epoch') == cjson.encode(redis.call('GET', key) or '')
end

local function stamp_epoch(record, key)
  redis.call('HSET', record, 'epoch', cjson.encode(redis.call('GET', key) or ''))
end

-- Notes in a process's record what trial it is at; its fields are JSON. False where there is none.
local function assign(process, epoch, study, number, token, attempt)
  if not is_of_epoch(process, epoch) then return false end
  redis.call('HSET', process, 'study', study, 'trial', number, 'token', token, 'attempt', attempt,
    'activity', 'null')
  return true
end

local function holds(trial, token)
  local record = redis.call('HMGET', trial, 'state', 'token')
  return record[1] == 'RUNNING' and record[2] == token
end

-- What is asked of a holder: what is wanted of its study, else what is asked of its trial alone.
local function command_of(trial, study)
  local wish = redis.call('HGET', study, 'wish')
  if wish == 'pause' or wish == 'pause_now' or wish == 'cancel' then return string.upper(wish) end
  return redis.call('HGET', trial, 'command')
end

-- Whether what is wanted of a study lets no holder have one of its trials.
local function is_withheld(study, attempt)
  local wish = redis.call('HGET', study, 'wish') or 'run'
  return wish ~= 'run' and (wish ~= 'stop' or attempt == '0')
end

-- Something was asked of a study: it is not over any more, nor is it found to be by one who has not
-- heard of that.
local function revive(study, over, name)
  redis.call('HINCRBY', study, 'revision', 1)
  redis.call('HDEL', study, 'fact:over')
  redis.call('SREM', over, name)
end

-- An empty `seal` is that of a fleet without a secret.
local function tell_inbox(inbox, kind, number, token, attempt, subject, body, seal, ...)
  return redis.call('XADD', inbox, '*', 'kind', kind, 'number', number, 'token', token,
    'attempt', attempt, 'subject', subject, 'body', body, 'seal', seal, ...)
end

-- How many events a stream keeps while they are news.
local NEWS = 10000

-- The fields of an event that are numbers; all others are text.
local NUMBERS = {trial = 1, attempt = 1, token = 1, step = 1, value = 1, after_ms = 1, held_ms = 1,
  wait_ms = 1, count = 1, parent = 1}

-- Tells an event (workers/protocol/events.py): `...` are pairs of a field and a value; those without
-- a value are left out. A stream that takes none holds nothing up.
local function tell_event(events, kind, ...)
  local given, parts = {...}, {'{"kind":"' .. kind .. '"'}
  for i = 1, select('#', ...), 2 do
    local name, value = given[i], given[i + 1]
    if value and value ~= '' then
      local is_number = NUMBERS[name] and string.find(value, '^%-?%d')
      parts[#parts + 1] = ',"' .. name .. '":' .. (is_number and value or cjson.encode(value))
    end
  end
  redis.pcall('XADD', events, 'MAXLEN', '~', NEWS, '*', 'event', table.concat(parts) .. '}')
end

-- A field of a process's record, which is JSON, as an event tells it: text, a number, or nothing.
local function plain(field)
  local is_read, value = pcall(cjson.decode, field or '')
  if not is_read then return nil end
  if type(value) == 'number' then return integer(value) end
  return type(value) == 'string' and value
end

-- Of what a trial tells again and again, an event tells the first of each second: whether this is
-- one. `at` is the field of its record that says when there was one last.
local function is_news(trial, at, now)
  local told = redis.call('HGET', trial, at)
  if told and tonumber(told) + 1000 > now and tonumber(told) <= now then return false end
  redis.call('HSET', trial, at, integer(now))
  return true
end

-- Adds how long the attempt that holds a trial held its slot to the trial's own clock: to now, or to
-- the end of its lease if that came before; how long that was.
local function count_time(trial, now)
  local record = redis.call('HMGET', trial, 'claimed_at', 'deadline', 'device')
  local until_ms = math.min(now, tonumber(record[2] or now))
  local held = integer(math.max(0, until_ms - tonumber(record[1] or until_ms)))
  redis.call('HINCRBY', trial, 'held_ms', held)
  if (record[3] or '') ~= '' and not string.find(record[3], '/cpu%-%d+$') then
    redis.call('HINCRBY', trial, 'gpu_ms', held)
  end
  return held
end

-- The last step that is known of the attempt that holds a trial, by its beats or its reports.
local function last_step(trial)
  local record = redis.call('HMGET', trial, 'token', 'step', 'reported')
  local reported = record[3] and string.match(record[3], '^' .. record[1] .. ':(%d+)$')
  local step = math.max(tonumber(record[2] or 0), tonumber(reported or 0))
  return (reported or step > 0) and integer(step)
end

-- What all attempts at a trial have cost, as fields of an entry that tells of it.
local function spent(trial)
  local record = redis.call('HMGET', trial, 'losses', 'held_ms', 'gpu_ms', 'requeued', 'anew')
  return {'losses', record[1] or '0', 'held_ms', record[2] or '0', 'gpu_ms', record[3] or '0',
    'requeued', record[4] or '', 'anew', record[5] or '0'}
end

-- Keeps with a trial why its attempt ended, for as long as another one is to come, and how many have
-- ended so. `owner` is its process.
local function note_end(trial, owner, told)
  redis.call('HSET', trial, 'end_cause', told.cause, 'end_process', owner or '', 'end_detail',
    told.detail or '')
  local is_read, counts = pcall(cjson.decode, redis.call('HGET', trial, 'requeued') or '{}')
  if not is_read or type(counts) ~= 'table' then counts = {} end
  counts[told.cause] = (tonumber(counts[told.cause]) or 0) + 1
  redis.call('HSET', trial, 'requeued', cjson.encode(counts))
end

-- Ends a trial for good; the caller has checked that it may. `told` is for its event: the stream, and
-- cause, value, detail, the process that is gone, how long after the claim the first step was.
local function finish(trial, leases, queued, inbox, number, state, payload, seal, now, told)
  local held = count_time(trial, now)
  local record = redis.call('HMGET', trial, 'token', 'attempt')
  local id = tell_inbox(inbox, 'terminal', number, record[1], record[2], state, payload,
    seal, unpack(spent(trial)))
  redis.call('HSET', trial, 'state', state, 'result_token', record[1], 'result_id', id,
    'ended_at', integer(now))
  redis.call('HDEL', trial, 'nonce', 'deadline')
  redis.call('ZREM', leases, number)
  redis.call('ZREM', queued, number)
  tell_event(told.events, 'ended', 'trial', number, 'attempt', record[2], 'state', state,
    'value', told.value, 'cause', told.cause, 'process', told.process, 'count', told.count,
    'held_ms', held, 'step', last_step(trial), 'after_ms', told.after_ms, 'detail', told.detail)
  return id
end

-- Gives a trial back to the queue; `told` as above.
local function requeue(trial, leases, queued, number, not_before, now, told)
  local held = count_time(trial, now)
  note_end(trial, redis.call('HGET', trial, 'owner'), told)
  redis.call('HSET', trial, 'state', 'QUEUED', 'not_before', integer(not_before))
  redis.call('HDEL', trial, 'nonce', 'owner', 'deadline', 'waits_for')
  redis.call('ZREM', leases, number)
  redis.call('ZADD', queued, integer(now), number)
  local wait = math.max(0, not_before - now)
  local attempt = redis.call('HGET', trial, 'attempt')
  tell_event(told.events, 'requeued', 'trial', number, 'attempt', attempt, 'cause', told.cause,
    'process', told.process, 'count', told.count, 'held_ms', held, 'step', last_step(trial),
    'after_ms', told.after_ms, 'wait_ms', wait > 0 and integer(wait), 'detail', told.detail)
end

-- The longest pause before another attempt, in times of the first one.
local LONGEST_BACKOFF = 64

local function pause_after(count, backoff)
  return tonumber(backoff) * math.min(2 ^ (count - 1), LONGEST_BACKOFF)
end

-- Counts the attempt that held the trial as one of its `charge`, which is the name of a field:
-- back to the queue, or DEAD after `most` of them.
-- `error` stays with the record; `payload` tells all that the attempt came to, if it was the last.
local function fail_attempt(trial, leases, queued, inbox, number, charge, most, backoff, error,
    payload, seal, now, told)
  local count = redis.call('HINCRBY', trial, charge, 1)
  told.count = integer(count)
  redis.call('HSET', trial, 'error', error)
  if count >= tonumber(most) then
    return {'DEAD', finish(trial, leases, queued, inbox, number, 'DEAD', payload, seal, now,
      told)}
  end
  local counts = redis.call('HMGET', trial, 'failures', 'losses')
  local attempts = tonumber(counts[1]) + tonumber(counts[2] or 0)
  requeue(trial, leases, queued, number, now + pause_after(attempts, backoff), now, told)
  return {'REQUEUED', integer(count)}
end
