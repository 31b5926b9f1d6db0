-- checkpoint: point the trial at a newer checkpoint; the pointer only moves forward.
-- KEYS: epoch trial events
-- ARGV: epoch number token step uri sha256 replaces now_ms
-- RETURNS: OK | OLD | LOST
-- Nor does it move back but from what its holder could not load, and went on from one before it:
-- `replaces` is that checkpoint's uri, and it is replaced as long as the pointer is still there.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local record = redis.call('HMGET', KEYS[2], 'checkpoint_step', 'attempt', 'checkpoint')
local step = record[1]
if step and tonumber(ARGV[4]) <= tonumber(step) then
  if record[3] ~= ARGV[7] or ARGV[5] == ARGV[7] then return {'OLD'} end
end
redis.call('HSET', KEYS[2], 'checkpoint', ARGV[5], 'checkpoint_step', ARGV[4],
  'checkpoint_sha256', ARGV[6])
if is_news(KEYS[2], 'saved_at', now_ms(ARGV[8])) then
  tell_event(KEYS[3], 'checkpoint', 'trial', ARGV[2], 'attempt', record[2], 'step', ARGV[4])
end
return {'OK'}
