-- cleanup_done: give the cleaner's lease of a host back.
-- KEYS: cleanup
-- ARGV: token
-- RETURNS: OK | LOST
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'LOST'} end
redis.call('HSET', KEYS[1], 'deadline', '0', 'owner', '')
return {'OK'}
