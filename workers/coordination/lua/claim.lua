-- claim: grant a trial to one holder, if it may run now. The same nonce gets the same grant.
-- KEYS: epoch trial leases queued study events process
-- ARGV: epoch number owner nonce ttl_ms device insists now_ms spec_sha1 assigned
-- RETURNS: OK token attempt deadline_ms is_noted field value... | HELD ms | NOT_YET ms | ELSEWHERE | WITHHELD | PAUSED | RESPEC | DONE state | UNKNOWN | ALTERED
-- A trial that was lost on `device` is refused there, and one of a study that is paused, stopped or
-- cancelled everywhere, unless the caller `insists`: it knows no other device, or has the result.
-- With `spec_sha1`, a trial is granted only if that is still the sum of the study's specification; a
-- grant that was made before stays one. `assigned`, the study's name in JSON, has the record of the
-- holder's process name the trial; `is_noted` says whether it does. A record whose counts are none is
-- ALTERED: nobody gets it before it was written anew.
-- A count has as many digits as `trial_record.py` takes.
local function is_count(text)
  local digits = string.match(text or '', '^%-?(%d+)$')
  return digits and #digits <= 18
end
if not epoch_is(KEYS[1], ARGV[1]) then return {'UNKNOWN'} end
local record = redis.call('HMGET', KEYS[2], 'state', 'token', 'nonce', 'deadline', 'not_before',
  'attempt')
local state, now = record[1], now_ms(ARGV[8])
record[5] = record[5] or '0'
if not state then return {'UNKNOWN'} end
local is_granted = state == 'RUNNING' and record[3] == ARGV[4]
if ARGV[9] ~= '' and not is_granted
    and redis.sha1hex(redis.call('HGET', KEYS[5], 'spec') or '') ~= ARGV[9] then
  return {'RESPEC'}
end
if state == 'RUNNING' and not is_granted then
  return {'HELD', integer(math.max(0, (tonumber(record[4]) or now) - now))}
end
if state == 'PAUSED' then return {'PAUSED'} end
if state ~= 'RUNNING' and state ~= 'QUEUED' then return {'DONE', state} end
if state == 'QUEUED' then
  if ARGV[7] == '' and is_withheld(KEYS[5], record[6]) then return {'WITHHELD'} end
  if not (is_count(record[2]) and is_count(record[5]) and is_count(record[6])) then
    return {'ALTERED'}
  end
  if tonumber(record[5]) > now then
    return {'NOT_YET', integer(tonumber(record[5]) - now)}
  end
  if ARGV[7] == '' and redis.call('HEXISTS', KEYS[2], 'lost_on:' .. ARGV[6]) == 1 then
    return {'ELSEWHERE'}
  end
  -- never behind the clock nor behind the last token: a rollback of Redis repeats neither
  local token = integer(math.max(tonumber(record[2]) + 1, now_us(ARGV[8])))
  local deadline = integer(now + tonumber(ARGV[5]))
  local attempt = redis.call('HINCRBY', KEYS[2], 'attempt', 1)
  local from = redis.call('HGET', KEYS[2], 'checkpoint_step')
  redis.call('HSET', KEYS[2], 'state', 'RUNNING', 'token', token, 'owner', ARGV[3],
    'nonce', ARGV[4], 'deadline', deadline, 'command', 'NONE', 'claimed_at', integer(now),
    'device', ARGV[6], 'step', from or '0')
  redis.call('ZREM', KEYS[4], ARGV[2])
  redis.call('ZADD', KEYS[3], deadline, ARGV[2])
  tell_event(KEYS[6], 'claimed', 'trial', ARGV[2], 'attempt', integer(attempt), 'token', token,
    'process', ARGV[3], 'device', string.match(ARGV[6], '/(.*)') or ARGV[6], 'step', from)
end
local grant = redis.call('HMGET', KEYS[2], 'token', 'attempt', 'deadline')
local is_noted = ARGV[10] ~= '' and assign(KEYS[7], KEYS[1], ARGV[10], ARGV[2], grant[1], grant[2])
local answer = {'OK', grant[1], grant[2], grant[3], is_noted and '1' or ''}
for _, item in ipairs(redis.call('HGETALL', KEYS[2])) do answer[#answer + 1] = item end
return answer
