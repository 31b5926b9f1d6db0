-- cleanup_acquire: become the one cleaner of a host, for a while; its own lease is renewed so too.
-- KEYS: epoch cleanup
-- ARGV: owner ttl_ms now_ms
-- RETURNS: OK token | HELD ms
-- A lease of an earlier epoch is held by nobody; its token still counts, so that tokens rise.
local held = redis.call('HMGET', KEYS[2], 'owner', 'token', 'deadline')
local now = now_ms(ARGV[3])
local owner = is_of_epoch(KEYS[2], KEYS[1]) and held[1] or ''
if owner ~= '' and owner ~= ARGV[1] and tonumber(held[3]) > now then
  return {'HELD', integer(tonumber(held[3]) - now)}
end
local token = held[2]
if owner ~= ARGV[1] then
  token = integer(math.max(tonumber(held[2] or '0') + 1, now_us(ARGV[3])))
end
stamp_epoch(KEYS[2], KEYS[1])
redis.call('HSET', KEYS[2], 'owner', ARGV[1], 'token', token,
  'deadline', integer(now + tonumber(ARGV[2])))
-- the token outlives the lease, so that it keeps rising
redis.call('PEXPIRE', KEYS[2], 86400000)
return {'OK', token}
