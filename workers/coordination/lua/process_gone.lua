-- process_gone: drop the record of a process that ended; its trial's token is reaped before this.
-- KEYS: process processes events
-- ARGV: identity kind
-- RETURNS: OK | GONE
-- `kind` is its event's: it left by itself, or died.
-- It asks for no epoch: an identity that has ended has ended in all of them.
redis.call('ZREM', KEYS[2], ARGV[1])
local record = redis.pcall('HMGET', KEYS[1], 'study', 'trial')  -- it may be no record at all
if redis.call('DEL', KEYS[1]) == 0 then return {'GONE'} end
tell_event(KEYS[3], ARGV[2], 'process', ARGV[1], 'study', plain(record[1]), 'trial', plain(record[2]))
return {'OK'}
