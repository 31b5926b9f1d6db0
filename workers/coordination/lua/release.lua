-- release: give a trial back to the queue; counted nowhere.
-- KEYS: epoch trial leases queued
-- ARGV: epoch number token backoff_ms now_ms
-- RETURNS: OK | LOST
-- With `backoff_ms`, another attempt waits: longer each time that the trial was given back so.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local now, not_before = now_ms(ARGV[5]), 0
if tonumber(ARGV[4]) > 0 then
  not_before = now + pause_after(redis.call('HINCRBY', KEYS[2], 'returns', 1), ARGV[4])
end
requeue(KEYS[2], KEYS[3], KEYS[4], ARGV[2], not_before, now)
return {'OK'}
