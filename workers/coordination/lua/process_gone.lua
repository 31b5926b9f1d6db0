-- process_gone: drop the record of a process that ended; its trial's token is reaped before this.
-- KEYS: process processes
-- ARGV: identity
-- RETURNS: OK | GONE
-- It asks for no epoch: an identity that has ended has ended in all of them.
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('DEL', KEYS[1]) == 0 then return {'GONE'} end
return {'OK'}
