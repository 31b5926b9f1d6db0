-- checkpoint: point the trial at a newer checkpoint; the pointer only moves forward.
-- KEYS: epoch trial events
-- ARGV: epoch number token step uri sha256 now_ms
-- RETURNS: OK | OLD | LOST
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local record = redis.call('HMGET', KEYS[2], 'checkpoint_step', 'attempt')
local step = record[1]
if step and tonumber(ARGV[4]) <= tonumber(step) then return {'OLD'} end
redis.call('HSET', KEYS[2], 'checkpoint', ARGV[5], 'checkpoint_step', ARGV[4],
  'checkpoint_sha256', ARGV[6])
if is_news(KEYS[2], 'saved_at', now_ms(ARGV[7])) then
  tell_event(KEYS[3], 'checkpoint', 'trial', ARGV[2], 'attempt', record[2], 'step', ARGV[4])
end
return {'OK'}
