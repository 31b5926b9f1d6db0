-- reply: orchestrator only: answer a holder's report or suggestion, if it still holds the trial.
-- KEYS: epoch trial reply lead
-- ARGV: epoch number token message ttl_ms command param value leader seal
-- RETURNS: OK | LOST | LEFT
-- An empty `command` leaves the command as it is; an empty `param` names none. The `seal` is the
-- parameter's, or empty.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
if not leads(KEYS[4], ARGV[9]) then return {'LEFT'} end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], 'command', ARGV[6]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[2], 'param:' .. ARGV[7], ARGV[8]) end
if ARGV[10] ~= '' then redis.call('HSET', KEYS[2], 'seal:' .. ARGV[7], ARGV[10]) end
redis.call('RPUSH', KEYS[3], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
return {'OK'}
