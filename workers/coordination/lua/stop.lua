-- stop: orchestrator only: have no further trial of a study begin, unless its end was asked for.
-- KEYS: study over events lead
-- ARGV: leader name
-- RETURNS: OK | UNKNOWN | LEFT
-- What people may have asked since this orchestrator drove the study stands. It asks for no epoch: it
-- is of the Redis that has the study.
local record = redis.call('HMGET', KEYS[1], 'spec', 'wish', 'fact:over')
if not record[1] then return {'UNKNOWN'} end
if not leads(KEYS[4], ARGV[1]) then return {'LEFT'} end
local is_over = record[3] and record[3] ~= 'null'
if is_over or record[2] == 'stop' or record[2] == 'cancel' then return {'OK'} end
redis.call('HSET', KEYS[1], 'wish', 'stop')
revive(KEYS[1], KEYS[2], ARGV[2])
tell_event(KEYS[3], 'wished', 'wish', 'stop')
return {'OK'}
