-- renew: move a holder's deadline on, note its step, and tell it what is asked of it.
-- KEYS: epoch trial leases study
-- ARGV: epoch number token ttl_ms step now_ms
-- RETURNS: OK deadline_ms command | LOST
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local deadline = integer(now_ms(ARGV[6]) + tonumber(ARGV[4]))
redis.call('HSET', KEYS[2], 'deadline', deadline, 'step', ARGV[5])
redis.call('ZADD', KEYS[3], deadline, ARGV[2])
return {'OK', deadline, command_of(KEYS[2], KEYS[4])}
