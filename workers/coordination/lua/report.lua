-- report: hand an intermediate value to the orchestrator; each step once.
-- KEYS: epoch trial inbox
-- ARGV: epoch number token step value most
-- RETURNS: OK | OLD | FULL | LOST
-- With `most` entries in the inbox, nobody has read it for long: the value is left out.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local record = redis.call('HMGET', KEYS[2], 'reported_step', 'attempt')
if record[1] and tonumber(ARGV[4]) <= tonumber(record[1]) then return {'OLD'} end
if redis.call('XLEN', KEYS[3]) >= tonumber(ARGV[6]) then return {'FULL'} end
redis.call('HSET', KEYS[2], 'reported_step', ARGV[4], 'reported_value', ARGV[5])
tell_inbox(KEYS[3], 'report', ARGV[2], ARGV[3], record[2], ARGV[4], ARGV[5])
return {'OK'}
