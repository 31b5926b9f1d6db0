-- fail: the holder's attempt failed, or was lost: back to the queue after a pause, or DEAD.
-- KEYS: epoch trial leases queued inbox events
-- ARGV: epoch number token error payload charge most backoff_ms lost_on cause detail first_step_ms now_ms seal
-- RETURNS: REQUEUED count | DEAD id | LOST
-- `lost_on` names the device that broke under the attempt, if one did; `cause`, `detail` and
-- `first_step_ms` are for the event. The record keeps the processes in which it failed.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
if ARGV[9] ~= '' then redis.call('HSET', KEYS[2], 'lost_on:' .. ARGV[9], '1') end
if ARGV[6] == 'failures' then
  redis.call('HSET', KEYS[2], 'failed_in:' .. (redis.call('HGET', KEYS[2], 'owner') or ''), '1')
end
return fail_attempt(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[2], ARGV[6], ARGV[7], ARGV[8],
  ARGV[4], ARGV[5], ARGV[14], now_ms(ARGV[13]),
  {events = KEYS[6], cause = ARGV[10], detail = ARGV[11], after_ms = ARGV[12]})
