-- enqueue: write the record of a trial that may then be claimed.
-- KEYS: epoch trial queued
-- ARGV: epoch number step uri sha256 generation now_ms params...
-- RETURNS: OK | EXISTS state | EPOCH
-- `params` are pairs of a name and a value in JSON; an empty `uri` means no checkpoint.
if not epoch_is(KEYS[1], ARGV[1]) then return {'EPOCH'} end
local state = redis.call('HGET', KEYS[2], 'state')
if state then return {'EXISTS', state} end
redis.call('HSET', KEYS[2], 'state', 'QUEUED', 'token', '0', 'attempt', '0', 'failures', '0',
  'losses', '0', 'not_before', '0')
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'checkpoint', ARGV[4], 'checkpoint_step', ARGV[3],
    'checkpoint_sha256', ARGV[5])
end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], 'generation', ARGV[6]) end
for i = 8, #ARGV, 2 do
  redis.call('HSET', KEYS[2], 'param:' .. ARGV[i], ARGV[i + 1])
end
redis.call('ZADD', KEYS[3], integer(now_ms(ARGV[7])), ARGV[2])
return {'OK'}
