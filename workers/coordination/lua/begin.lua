-- begin: orchestrator only: note of a study that is there where and when its results were begun.
-- KEYS: study events lead
-- ARGV: leader generation place former
-- RETURNS: OK | UNKNOWN | LEFT
-- `former` names the study as it was in a narrower space; empty for none. Another one than was noted
-- is an event; where none was, Redis lost its data. It asks for no epoch: it is of the Redis that has
-- the study.
if not leads(KEYS[3], ARGV[1]) then return {'LEFT'} end
if redis.call('HEXISTS', KEYS[1], 'spec') == 0 then return {'UNKNOWN'} end
local former = redis.call('HGET', KEYS[1], 'former')
redis.call('HSET', KEYS[1], 'generation', ARGV[2], 'place', ARGV[3], 'former', ARGV[4])
if former and ARGV[4] ~= '' and former ~= ARGV[4] then
  tell_event(KEYS[2], 'widened', 'detail', 'as it was: ' .. ARGV[4])
end
return {'OK'}
