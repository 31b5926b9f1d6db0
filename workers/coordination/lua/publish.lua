-- publish: show facts of a study that is there; that it is over, only if nothing was asked of it since.
-- KEYS: study over events lead
-- ARGV: name over revision stalled leader now_ms facts...
-- RETURNS: OK | CHANGED | UNKNOWN | LEFT
-- `over` is JSON: null, or what identifies the specification that is done; empty leaves it. `revision`
-- is the one at which it was found to be over. `stalled` is why it does not get on, if that is news.
-- When this was is shown, too, by the one clock that all have. It asks for no epoch: it is of the Redis
-- that has it.
if not leads(KEYS[4], ARGV[5]) then return {'LEFT'} end
local record = redis.call('HMGET', KEYS[1], 'spec', 'revision')
if not record[1] then return {'UNKNOWN'} end
if ARGV[4] ~= '' then tell_event(KEYS[3], 'stalled', 'detail', ARGV[4]) end
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'fact:shown_ms', integer(now_ms(ARGV[6])))
if ARGV[2] == '' then return {'OK'} end
local is_changed = (record[2] or '') ~= ARGV[3]
if ARGV[2] == 'null' or is_changed then
  redis.call('HSET', KEYS[1], 'fact:over', 'null')
  redis.call('SREM', KEYS[2], ARGV[1])
  if ARGV[2] ~= 'null' then return {'CHANGED'} end
else
  redis.call('HSET', KEYS[1], 'fact:over', ARGV[2])
  redis.call('SADD', KEYS[2], ARGV[1])
end
return {'OK'}
