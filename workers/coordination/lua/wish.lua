-- wish: note what people want of a study, where what they wanted before allows it.
-- KEYS: study events
-- ARGV: wish follows
-- RETURNS: OK before | REFUSED before | OVER before | UNKNOWN
-- `follows` names the wishes that it may follow upon. A study that is over by itself is left so; one
-- that was stopped or cancelled may go on. It asks for no epoch: it is of the Redis that has the study.
local record = redis.call('HMGET', KEYS[1], 'spec', 'wish', 'fact:over')
if not record[1] then return {'UNKNOWN'} end
local before = record[2] or 'run'
local is_over = record[3] and record[3] ~= 'null'
if is_over and (ARGV[1] ~= 'run' or before == 'run') then return {'OVER', before} end
if not string.find(' ' .. ARGV[2] .. ' ', ' ' .. before .. ' ', 1, true) then
  return {'REFUSED', before}
end
redis.call('HSET', KEYS[1], 'wish', ARGV[1])
if before ~= ARGV[1] then tell_event(KEYS[2], 'wished', 'wish', ARGV[1]) end
if is_over then redis.call('HDEL', KEYS[1], 'fact:over') end
return {'OK', before}
