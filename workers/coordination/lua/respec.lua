-- respec: put another specification of a study in the place of the one that the caller has read.
-- KEYS: study over events
-- ARGV: name read written seal is_asked
-- RETURNS: OK | CHANGED | ENDING wish | UNKNOWN
-- Where people ask for it (is_asked = 1), one whose end was asked for is left: it would end again at once;
-- else nothing but the specification and its seal change. It asks for no epoch: what was read is of the Redis that
-- has the study.
local record = redis.call('HMGET', KEYS[1], 'spec', 'wish')
if not record[1] then return {'UNKNOWN'} end
local is_asked = ARGV[5] == '1'
if is_asked and (record[2] == 'stop' or record[2] == 'cancel') then return {'ENDING', record[2]} end
if record[1] ~= ARGV[2] then return {'CHANGED'} end
redis.call('HSET', KEYS[1], 'spec', ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'seal', ARGV[4])
else redis.call('HDEL', KEYS[1], 'seal') end
if is_asked then
  revive(KEYS[1], KEYS[2], ARGV[1])
  tell_event(KEYS[3], 'extended')
end
return {'OK'}
