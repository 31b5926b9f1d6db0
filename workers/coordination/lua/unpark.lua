-- unpark: orchestrator only: send a paused trial on to a rung, from its checkpoint, on any worker.
-- KEYS: epoch trial queued paused events lead
-- ARGV: epoch number rung now_ms leader
-- RETURNS: OK | NOTED | SKIP | UNKNOWN | EPOCH | LEFT
-- Of one that is not paused, after a rollback of Redis, the rung alone is noted; one that was sent
-- before, or has ended, is left.
if not epoch_is(KEYS[1], ARGV[1]) then return {'EPOCH'} end
if not leads(KEYS[6], ARGV[5]) then return {'LEFT'} end
local record = redis.call('HMGET', KEYS[2], 'state', 'rung')
if not record[1] then return {'UNKNOWN'} end
if tonumber(record[2] or 0) >= tonumber(ARGV[3]) then return {'SKIP'} end
if record[1] ~= 'PAUSED' and record[1] ~= 'QUEUED' and record[1] ~= 'RUNNING' then return {'SKIP'} end
redis.call('HSET', KEYS[2], 'rung', ARGV[3])
if record[1] ~= 'PAUSED' then return {'NOTED'} end
redis.call('HSET', KEYS[2], 'state', 'QUEUED', 'not_before', '0')
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('ZADD', KEYS[3], integer(now_ms(ARGV[4])), ARGV[2])
tell_event(KEYS[5], 'promoted', 'trial', ARGV[2], 'attempt', redis.call('HGET', KEYS[2], 'attempt'),
  'detail', 'to rung ' .. ARGV[3])
return {'OK'}
