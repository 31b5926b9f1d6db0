-- begin_anew: the holder goes on from no checkpoint, though the trial has one.
-- KEYS: epoch trial events
-- ARGV: epoch number token detail
-- RETURNS: OK | DUP | LOST
-- Counted once an attempt, and told with the step of that checkpoint; `detail` says why.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local record = redis.call('HMGET', KEYS[2], 'anew_token', 'attempt', 'checkpoint_step')
if record[1] == ARGV[3] then return {'DUP'} end
redis.call('HSET', KEYS[2], 'anew_token', ARGV[3])
redis.call('HINCRBY', KEYS[2], 'anew', 1)
tell_event(KEYS[3], 'began_anew', 'trial', ARGV[2], 'attempt', record[2], 'step', record[3],
  'detail', ARGV[4])
return {'OK'}
