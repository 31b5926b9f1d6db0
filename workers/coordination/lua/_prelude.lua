-- Put before every script. Numbers over 2^53 do not occur: tokens are microseconds since 1970.
local function integer(number) return string.format('%.0f', number) end

-- The server's time in microseconds, or the test's.
local function now_us(given_ms)
  if given_ms ~= '' then return tonumber(given_ms) * 1000 end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function now_ms(given_ms) return math.floor(now_us(given_ms) / 1000) end

local function epoch_is(key, epoch) return redis.call('GET', key) == epoch end

-- Whether a record of a process or a host was written under the epoch of now.
local function is_of_epoch(record, key)
  return redis.call('HGET', record, 'epoch') == cjson.encode(redis.call('GET', key) or '')
end

local function stamp_epoch(record, key)
  redis.call('HSET', record, 'epoch', cjson.encode(redis.call('GET', key) or ''))
end

local function holds(trial, token)
  local record = redis.call('HMGET', trial, 'state', 'token')
  return record[1] == 'RUNNING' and record[2] == token
end

local function tell_inbox(inbox, kind, number, token, attempt, subject, body)
  return redis.call('XADD', inbox, '*', 'kind', kind, 'number', number, 'token', token,
    'attempt', attempt, 'subject', subject, 'body', body)
end

-- Ends a trial for good; the caller has checked that it may.
local function finish(trial, leases, queued, inbox, number, state, payload, now)
  local record = redis.call('HMGET', trial, 'token', 'attempt')
  local id = tell_inbox(inbox, 'terminal', number, record[1], record[2], state, payload)
  redis.call('HSET', trial, 'state', state, 'result_token', record[1], 'result_id', id,
    'ended_at', integer(now))
  redis.call('HDEL', trial, 'nonce', 'deadline')
  redis.call('ZREM', leases, number)
  redis.call('ZREM', queued, number)
  return id
end

local function requeue(trial, leases, queued, number, not_before, now)
  redis.call('HSET', trial, 'state', 'QUEUED', 'not_before', integer(not_before))
  redis.call('HDEL', trial, 'nonce', 'owner', 'deadline')
  redis.call('ZREM', leases, number)
  redis.call('ZADD', queued, integer(now), number)
end

-- The longest pause after a failure, in times of the first one.
local LONGEST_BACKOFF = 64

-- Counts a failure of the attempt that held the trial: back to the queue, or DEAD.
-- `error` stays with the record; `payload` tells all that the attempt came to, if it was the last.
local function fail_attempt(trial, leases, queued, inbox, number, max_failures, backoff, error,
    payload, now)
  local failures = redis.call('HINCRBY', trial, 'failures', 1)
  redis.call('HSET', trial, 'error', error)
  if failures >= tonumber(max_failures) then
    return {'DEAD', finish(trial, leases, queued, inbox, number, 'DEAD', payload, now)}
  end
  local pause = tonumber(backoff) * math.min(2 ^ (failures - 1), LONGEST_BACKOFF)
  requeue(trial, leases, queued, number, now + pause, now)
  return {'REQUEUED', integer(failures)}
end
