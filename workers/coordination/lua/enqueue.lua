-- enqueue: write the record of a trial that may then be claimed.
-- KEYS: epoch trial leases queued events
-- ARGV: epoch number step uri sha256 generation asked_as drawn now_ms params...
-- RETURNS: OK | EXISTS state | EPOCH
-- `asked_as` is an ask's own: a record that another one left is of a trial that the storage lost.
-- `params` are pairs of a name and a value in JSON; an empty `uri` means no checkpoint. `drawn` are
-- values that the objective may ask for, in JSON, or empty.
if not epoch_is(KEYS[1], ARGV[1]) then return {'EPOCH'} end
local record = redis.call('HMGET', KEYS[2], 'state', 'asked_as')
if record[1] and (ARGV[7] == '' or record[2] == ARGV[7]) then return {'EXISTS', record[1]} end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('HSET', KEYS[2], 'state', 'QUEUED', 'token', '0', 'attempt', '0', 'failures', '0',
  'losses', '0', 'not_before', '0')
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'checkpoint', ARGV[4], 'checkpoint_step', ARGV[3],
    'checkpoint_sha256', ARGV[5])
end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], 'generation', ARGV[6]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[2], 'asked_as', ARGV[7]) end
if ARGV[8] ~= '' then redis.call('HSET', KEYS[2], 'drawn', ARGV[8]) end
for i = 10, #ARGV, 2 do
  redis.call('HSET', KEYS[2], 'param:' .. ARGV[i], ARGV[i + 1])
end
redis.call('ZADD', KEYS[4], integer(now_ms(ARGV[9])), ARGV[2])
tell_event(KEYS[5], 'asked', 'trial', ARGV[2], 'step', ARGV[4] ~= '' and ARGV[3])
return {'OK'}
