-- cleanup_renew: keep the cleaner's lease of a host.
-- KEYS: cleanup
-- ARGV: token ttl_ms now_ms
-- RETURNS: OK | LOST
local held = redis.call('HMGET', KEYS[1], 'token', 'deadline')
if held[1] ~= ARGV[1] or tonumber(held[2]) <= now_ms(ARGV[3]) then return {'LOST'} end
redis.call('HSET', KEYS[1], 'deadline', integer(now_ms(ARGV[3]) + tonumber(ARGV[2])))
return {'OK'}
