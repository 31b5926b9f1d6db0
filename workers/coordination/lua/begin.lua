-- begin: orchestrator only: note of a study that is there where and when its results were begun.
-- KEYS: study lead
-- ARGV: leader generation place
-- RETURNS: OK | UNKNOWN | LEFT
-- It asks for no epoch: it is of the Redis that has the study.
if redis.call('HEXISTS', KEYS[1], 'spec') == 0 then return {'UNKNOWN'} end
if not leads(KEYS[2], ARGV[1]) then return {'LEFT'} end
redis.call('HSET', KEYS[1], 'generation', ARGV[2], 'place', ARGV[3])
return {'OK'}
