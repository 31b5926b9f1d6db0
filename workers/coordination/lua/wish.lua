-- wish: note what people want of a study, where what they wanted before allows it.
-- KEYS: study over events
-- ARGV: name wish follows
-- RETURNS: OK before | REFUSED before | OVER before | UNKNOWN
-- `follows` names the wishes that it may follow upon. A study that is over by itself is left so; one
-- that was stopped or cancelled may go on. It asks for no epoch: it is of the Redis that has the study.
local record = redis.call('HMGET', KEYS[1], 'spec', 'wish', 'fact:over')
if not record[1] then return {'UNKNOWN'} end
local before = record[2] or 'run'
local is_over = record[3] and record[3] ~= 'null'
if is_over and (ARGV[2] ~= 'run' or before == 'run') then return {'OVER', before} end
if not string.find(' ' .. ARGV[3] .. ' ', ' ' .. before .. ' ', 1, true) then
  return {'REFUSED', before}
end
redis.call('HSET', KEYS[1], 'wish', ARGV[2])
revive(KEYS[1], KEYS[2], ARGV[1])
if before ~= ARGV[2] then tell_event(KEYS[3], 'wished', 'wish', ARGV[2]) end
return {'OK', before}
