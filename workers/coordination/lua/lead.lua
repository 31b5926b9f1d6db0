-- lead: become or stay the one orchestrator of a study, for a while.
-- KEYS: lead
-- ARGV: owner ttl_ms
-- RETURNS: OK | HELD ms
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return {'HELD', redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'OK'}
