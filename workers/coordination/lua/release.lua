-- release: give a trial back to the queue; not a failure.
-- KEYS: epoch trial leases queued
-- ARGV: epoch number token now_ms
-- RETURNS: OK | LOST
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
requeue(KEYS[2], KEYS[3], KEYS[4], ARGV[2], 0, now_ms(ARGV[4]))
return {'OK'}
