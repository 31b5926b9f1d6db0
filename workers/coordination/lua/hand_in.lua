-- hand_in: write a study as people hand it in, in the place of what the caller has read.
-- KEYS: study over studies events
-- ARGV: name read written seal by_run keeps_pause
-- RETURNS: OK wish | CHANGED
-- `read` is empty where there was none. A study that is paused stays so, if that is to be kept; else it is to run.
-- One that was everybody's does not become `trialfleet run`'s alone. It asks for no epoch: it is of the Redis that
-- it is handed to.
local record = redis.call('HMGET', KEYS[1], 'spec', 'wish', 'by_run')
if (record[1] or '') ~= ARGV[2] then return {'CHANGED'} end
local is_paused = record[2] == 'pause' or record[2] == 'pause_now'
local wish = ARGV[6] == '1' and is_paused and record[2] or 'run'
redis.call('HSET', KEYS[1], 'spec', ARGV[3], 'wish', wish)
redis.call('HSETNX', KEYS[1], 'state', 'running')
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'seal', ARGV[4])
else redis.call('HDEL', KEYS[1], 'seal') end
if ARGV[5] == '1' and (not record[1] or record[3]) then redis.call('HSET', KEYS[1], 'by_run', '1')
else redis.call('HDEL', KEYS[1], 'by_run') end
redis.call('SADD', KEYS[3], ARGV[1])
revive(KEYS[1], KEYS[2], ARGV[1])
tell_event(KEYS[4], 'submitted')
return {'OK', wish}
