-- process_beat: keep a process's record for another lease.
-- KEYS: epoch process processes
-- ARGV: identity ttl_ms keep_ms memory now_ms
-- RETURNS: OK | GONE
-- `memory` is what it uses now, as JSON.
-- GONE also for a record of an earlier epoch: it is to be registered again, as a whole.
if not is_of_epoch(KEYS[2], KEYS[1]) then return {'GONE'} end
redis.call('HSET', KEYS[2], 'memory', ARGV[4])
redis.call('PEXPIRE', KEYS[2], tonumber(ARGV[2]) + tonumber(ARGV[3]))
redis.call('ZADD', KEYS[3], integer(now_ms(ARGV[5]) + tonumber(ARGV[2])), ARGV[1])
return {'OK'}
