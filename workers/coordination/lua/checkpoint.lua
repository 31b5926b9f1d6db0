-- checkpoint: point the trial at a newer checkpoint; the pointer only moves forward.
-- KEYS: epoch trial
-- ARGV: epoch number token step uri sha256
-- RETURNS: OK | OLD | LOST
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local step = redis.call('HGET', KEYS[2], 'checkpoint_step')
if step and tonumber(ARGV[4]) <= tonumber(step) then return {'OLD'} end
redis.call('HSET', KEYS[2], 'checkpoint', ARGV[5], 'checkpoint_step', ARGV[4],
  'checkpoint_sha256', ARGV[6])
return {'OK'}
