-- lead: become or stay the one orchestrator of a study, for a while.
-- KEYS: lead
-- ARGV: owner ttl_ms only_stay
-- RETURNS: OK | HELD ms | LAPSED
-- With `only_stay`, a lead that ran out is not taken again: another one may have had it meanwhile.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return {'HELD', redis.call('PTTL', KEYS[1])} end
if not owner and ARGV[3] ~= '' then return {'LAPSED'} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'OK'}
