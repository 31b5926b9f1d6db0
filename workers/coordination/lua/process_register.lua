-- process_register: write a process's record, or fields of it, for one lease.
-- KEYS: epoch process processes
-- ARGV: identity ttl_ms keep_ms now_ms fields...
-- RETURNS: OK
-- `fields` are pairs of a name and a value. The record outlives its lease by `keep_ms`: it tells
-- the cleaner what a process that died may have left.
if not is_of_epoch(KEYS[2], KEYS[1]) then redis.call('DEL', KEYS[2]) end
stamp_epoch(KEYS[2], KEYS[1])
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[2], tonumber(ARGV[2]) + tonumber(ARGV[3]))
redis.call('ZADD', KEYS[3], integer(now_ms(ARGV[4]) + tonumber(ARGV[2])), ARGV[1])
return {'OK'}
