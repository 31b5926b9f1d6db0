-- suggest: ask the orchestrator for a parameter, unless this trial has it already.
-- KEYS: epoch trial inbox
-- ARGV: epoch number token name distribution
-- RETURNS: VALUE json | OK | LOST
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local value = redis.call('HGET', KEYS[2], 'param:' .. ARGV[4])
if value then return {'VALUE', value} end
local attempt = redis.call('HGET', KEYS[2], 'attempt')
tell_inbox(KEYS[3], 'suggest', ARGV[2], ARGV[3], attempt, ARGV[4], ARGV[5])
return {'OK'}
