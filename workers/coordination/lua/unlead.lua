-- unlead: let another orchestrator lead a study at once.
-- KEYS: lead
-- ARGV: owner
-- RETURNS: OK | HELD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'HELD'} end
redis.call('DEL', KEYS[1])
return {'OK'}
