-- park: the holder's trial has reached its rung: it gives its slot back and waits to be promoted.
-- KEYS: epoch trial leases paused inbox events
-- ARGV: epoch number token rung payload value first_step_ms now_ms seal
-- RETURNS: OK id | DUP | LOST
-- Neither an end nor a failure; the checkpoint stays with the record. `payload` tells what was reached,
-- `value` and `first_step_ms` are for the event.
if not epoch_is(KEYS[1], ARGV[1]) then return {'LOST'} end
if not holds(KEYS[2], ARGV[3]) then
  local record = redis.call('HMGET', KEYS[2], 'state', 'token')
  if record[1] == 'PAUSED' and record[2] == ARGV[3] then return {'DUP'} end
  return {'LOST'}
end
local now = now_ms(ARGV[8])
local held = count_time(KEYS[2], now)
local attempt = redis.call('HGET', KEYS[2], 'attempt')
redis.call('HSET', KEYS[2], 'state', 'PAUSED', 'rung', ARGV[4])
redis.call('HDEL', KEYS[2], 'nonce', 'owner', 'deadline', 'waits_for', 'end_cause', 'end_process',
  'end_detail')
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], integer(now), ARGV[2])
tell_event(KEYS[6], 'paused', 'trial', ARGV[2], 'attempt', attempt, 'state', 'PAUSED',
  'value', ARGV[6], 'held_ms', held, 'step', last_step(KEYS[2]), 'after_ms', ARGV[7],
  'detail', 'at rung ' .. ARGV[4])
return {'OK', tell_inbox(KEYS[5], 'pause', ARGV[2], ARGV[3], attempt, ARGV[4], ARGV[5],
  ARGV[9], unpack(spent(KEYS[2])))}
