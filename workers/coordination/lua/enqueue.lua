-- enqueue: write the record of a trial that may then be claimed.
-- KEYS: epoch trial leases queued paused events lead
-- ARGV: epoch number step uri sha256 rung state generation asked_as drawn now_ms leader seal history params...
-- RETURNS: OK | EXISTS state | EPOCH | LEFT
-- `asked_as` is an ask's own: a record that another one left is of a trial that the storage lost.
-- `params` are pairs of a name and a value in JSON; `history` are fields, in JSON, that an attempt
-- before left, or empty; an empty `uri` means no checkpoint. `drawn` are
-- values that the objective may ask for, in JSON, or empty. The `state` is QUEUED, or PAUSED at its
-- `rung`.
if not epoch_is(KEYS[1], ARGV[1]) then return {'EPOCH'} end
if not leads(KEYS[7], ARGV[12]) then return {'LEFT'} end
local record = redis.call('HMGET', KEYS[2], 'state', 'asked_as')
if record[1] and (ARGV[9] == '' or record[2] == ARGV[9]) then return {'EXISTS', record[1]} end
redis.call('DEL', KEYS[2])
for _, waiting in ipairs({KEYS[3], KEYS[4], KEYS[5]}) do redis.call('ZREM', waiting, ARGV[2]) end
redis.call('HSET', KEYS[2], 'state', ARGV[7], 'token', '0', 'attempt', '0', 'failures', '0',
  'losses', '0', 'not_before', '0', 'rung', ARGV[6])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'checkpoint', ARGV[4], 'checkpoint_step', ARGV[3],
    'checkpoint_sha256', ARGV[5])
end
if ARGV[8] ~= '' then redis.call('HSET', KEYS[2], 'generation', ARGV[8]) end
if ARGV[9] ~= '' then redis.call('HSET', KEYS[2], 'asked_as', ARGV[9]) end
if ARGV[10] ~= '' then redis.call('HSET', KEYS[2], 'drawn', ARGV[10]) end
if ARGV[13] ~= '' then redis.call('HSET', KEYS[2], 'seal', ARGV[13]) end
if ARGV[14] ~= '' then
  for name, value in pairs(cjson.decode(ARGV[14])) do redis.call('HSET', KEYS[2], name, value) end
end
for i = 15, #ARGV, 2 do
  redis.call('HSET', KEYS[2], 'param:' .. ARGV[i], ARGV[i + 1])
end
redis.call('ZADD', ARGV[7] == 'PAUSED' and KEYS[5] or KEYS[4], integer(now_ms(ARGV[11])), ARGV[2])
tell_event(KEYS[6], 'asked', 'trial', ARGV[2], 'step', ARGV[4] ~= '' and ARGV[3],
  'state', ARGV[7] == 'PAUSED' and ARGV[7])
return {'OK'}
