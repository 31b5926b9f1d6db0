-- settle: orchestrator only: the storage says how the trial ended; make Redis agree, for a while.
-- KEYS: epoch trial leases queued paused events lead
-- ARGV: epoch number state keep_ms only_queued detail leader
-- RETURNS: OK | SKIP | EPOCH | LEFT
-- With `only_queued`, a trial that somebody runs is left alone. `detail` is for the event.
if not epoch_is(KEYS[1], ARGV[1]) then return {'EPOCH'} end
if not leads(KEYS[7], ARGV[7]) then return {'LEFT'} end
local state = redis.call('HGET', KEYS[2], 'state')
if not state or (ARGV[5] ~= '' and state ~= 'QUEUED') then return {'SKIP'} end
if state == 'QUEUED' or state == 'RUNNING' or state == 'PAUSED' then
  redis.call('HSET', KEYS[2], 'state', ARGV[3])
  redis.call('HDEL', KEYS[2], 'nonce', 'deadline')
  local is_withdrawn = ARGV[5] ~= '' or state == 'PAUSED'
  tell_event(KEYS[6], 'ended', 'trial', ARGV[2], 'attempt', redis.call('HGET', KEYS[2], 'attempt'),
    'state', ARGV[3], 'cause', is_withdrawn and 'withdrawn' or 'settled', 'detail', ARGV[6])
end
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('ZREM', KEYS[5], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {'OK'}
