-- suggest: ask the orchestrator for a parameter, unless this trial has it already.
-- KEYS: epoch trial inbox
-- ARGV: epoch number token name distribution seal
-- RETURNS: VALUE json seal | OK | LOST
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local value = redis.call('HGET', KEYS[2], 'param:' .. ARGV[4])
local seal = redis.call('HGET', KEYS[2], 'seal:' .. ARGV[4])
if value then return {'VALUE', value, seal or ''} end
local question = ARGV[3] .. ':' .. ARGV[4]
local record = redis.call('HMGET', KEYS[2], 'attempt', 'asked', 'asked_id')
-- asked again, while the orchestrator is away: the first time still waits to be read
if record[2] == question and #redis.call('XRANGE', KEYS[3], record[3], record[3]) > 0 then
  return {'OK'}
end
local id = tell_inbox(KEYS[3], 'suggest', ARGV[2], ARGV[3], record[1], ARGV[4], ARGV[5], ARGV[6])
redis.call('HSET', KEYS[2], 'asked', question, 'asked_id', id)
return {'OK'}
