-- process_beat: keep a process's record for another lease.
-- KEYS: process processes
-- ARGV: identity ttl_ms keep_ms now_ms
-- RETURNS: OK | GONE
if redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[2]) + tonumber(ARGV[3])) == 0 then
  return {'GONE'}
end
redis.call('ZADD', KEYS[2], integer(now_ms(ARGV[4]) + tonumber(ARGV[2])), ARGV[1])
return {'OK'}
