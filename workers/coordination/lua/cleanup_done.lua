-- cleanup_done: give the cleaner's lease of a host back.
-- KEYS: epoch cleanup
-- ARGV: token
-- RETURNS: OK | LOST
if not is_of_epoch(KEYS[2], KEYS[1]) then return {'LOST'} end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return {'LOST'} end
redis.call('HSET', KEYS[2], 'deadline', '0', 'owner', '')
return {'OK'}
