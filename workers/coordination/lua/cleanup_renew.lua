-- cleanup_renew: keep the cleaner's lease of a host.
-- KEYS: epoch cleanup
-- ARGV: token ttl_ms now_ms
-- RETURNS: OK | LOST
if not is_of_epoch(KEYS[2], KEYS[1]) then return {'LOST'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'deadline')
if held[1] ~= ARGV[1] or tonumber(held[2]) <= now_ms(ARGV[3]) then return {'LOST'} end
redis.call('HSET', KEYS[2], 'deadline', integer(now_ms(ARGV[3]) + tonumber(ARGV[2])))
return {'OK'}
