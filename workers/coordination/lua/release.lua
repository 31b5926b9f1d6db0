-- release: give a trial back to the queue; counted nowhere.
-- KEYS: epoch trial leases queued events
-- ARGV: epoch number token backoff_ms pause_ms reason cause first_step_ms now_ms
-- RETURNS: OK | LOST
-- With `backoff_ms`, another attempt waits: longer each time that the trial was given back so, and
-- `pause_ms` at least. `reason` says for what, `cause` why in one word; that and `first_step_ms` are
-- for the event.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local now, not_before = now_ms(ARGV[9]), 0
if tonumber(ARGV[4]) > 0 then
  local pause = pause_after(redis.call('HINCRBY', KEYS[2], 'returns', 1), ARGV[4])
  not_before = now + math.max(pause, tonumber(ARGV[5]))
end
requeue(KEYS[2], KEYS[3], KEYS[4], ARGV[2], not_before, now,
  {events = KEYS[5], cause = ARGV[7], detail = ARGV[6], after_ms = ARGV[8]})
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], 'waits_for', ARGV[6]) end
return {'OK'}
