-- order: leave orders for the orchestrator of a study; one that waits there already is left.
-- KEYS: study orders over events
-- ARGV: name most orders...
-- RETURNS: OK new | ENDING wish | FULL | UNKNOWN
-- `orders` are pairs of an id and an order. It asks for no epoch: it is of the Redis that has the study.
local record = redis.call('HMGET', KEYS[1], 'spec', 'wish')
if not record[1] then return {'UNKNOWN'} end
if record[2] == 'stop' or record[2] == 'cancel' then return {'ENDING', record[2]} end
if redis.call('HLEN', KEYS[2]) + (#ARGV - 2) / 2 > tonumber(ARGV[2]) then return {'FULL'} end
local new = 0
for i = 3, #ARGV, 2 do new = new + redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('HINCRBY', KEYS[1], 'ordered', 1)
revive(KEYS[1], KEYS[3], ARGV[1])
if new > 0 then tell_event(KEYS[4], 'ordered', 'count', integer(new)) end
return {'OK', integer(new)}
