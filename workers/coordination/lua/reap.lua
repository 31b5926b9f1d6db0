-- reap: end the attempt of a holder that is gone: its lease ended, or its process is known dead.
-- KEYS: epoch trial leases queued inbox events
-- ARGV: epoch number dead_token grace_ms error charge most backoff_ms detail now_ms seal
-- RETURNS: REQUEUED count | DEAD id | LIVE ms | SKIP
-- With `dead_token`, that token is reaped at once and no other; without, the deadline decides.
-- `detail` is for the event of a death; that of a lease that ran out names the process. A process
-- whose end counts as its objective's failure had stood still.
if not epoch_is(KEYS[1], ARGV[1]) then return {'SKIP'} end
local record = redis.call('HMGET', KEYS[2], 'state', 'token', 'deadline', 'owner')
if record[1] ~= 'RUNNING' then return {'SKIP'} end
local now = now_ms(ARGV[10])
if ARGV[3] ~= '' then
  if record[2] ~= ARGV[3] then return {'SKIP'} end
else
  local left = tonumber(record[3]) + tonumber(ARGV[4]) - now
  if left > 0 then return {'LIVE', integer(left)} end
end
return fail_attempt(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[2], ARGV[6], ARGV[7], ARGV[8],
  ARGV[5], ARGV[5], ARGV[11], now,
  ARGV[3] ~= '' and {events = KEYS[6], detail = ARGV[9],
      cause = ARGV[6] == 'failures' and 'no_progress' or 'died'}
    or {events = KEYS[6], cause = 'lease_lost', process = record[4]})
