-- renew: move a holder's deadline on, note its step, and tell it what is asked of it.
-- KEYS: epoch trial leases study events
-- ARGV: epoch number token ttl_ms step first_step_ms pace now_ms
-- RETURNS: OK deadline_ms command | LOST
-- `first_step_ms` is how long after the claim training made its first step, once it has; `pace`
-- tells how fast it is, once that is known.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local now = now_ms(ARGV[8])
local deadline = integer(now + tonumber(ARGV[4]))
redis.call('HSET', KEYS[2], 'deadline', deadline, 'step', ARGV[5], 'step_at', integer(now))
if ARGV[7] ~= '' then redis.call('HSET', KEYS[2], 'pace', ARGV[7]) end
redis.call('ZADD', KEYS[3], deadline, ARGV[2])
if ARGV[6] ~= '' then
  local record = redis.call('HMGET', KEYS[2], 'attempt', 'began')
  if record[2] ~= ARGV[3] then
    redis.call('HSET', KEYS[2], 'began', ARGV[3])
    tell_event(KEYS[5], 'first_step', 'trial', ARGV[2], 'attempt', record[1], 'after_ms', ARGV[6])
  end
end
return {'OK', deadline, command_of(KEYS[2], KEYS[4])}
