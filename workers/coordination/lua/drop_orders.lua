-- drop_orders: orchestrator only: forget orders that the storage has, and how often some had been left.
-- KEYS: study orders lead
-- ARGV: leader ordered ids...
-- RETURNS: OK | UNKNOWN | LEFT
-- `ordered` is how often some had been left before they were read; empty for never. It asks for no
-- epoch: it is of the Redis that has the study.
if redis.call('HEXISTS', KEYS[1], 'spec') == 0 then return {'UNKNOWN'} end
if not leads(KEYS[3], ARGV[1]) then return {'LEFT'} end
for i = 3, #ARGV do redis.call('HDEL', KEYS[2], ARGV[i]) end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'taken', ARGV[2]) end
return {'OK'}
