-- report: hand an intermediate value to the orchestrator; the first one of a step counts there.
-- KEYS: epoch trial inbox events
-- ARGV: epoch number token step value most now_ms seal
-- RETURNS: OK | OLD | FULL | LOST
-- OLD is the same call again; a lower step, or another attempt's, is news where it is not stored.
-- With `most` entries in the inbox, nobody has read it for long: the value is left out.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local record = redis.call('HMGET', KEYS[2], 'reported_step', 'attempt', 'reported')
local told = ARGV[3] .. ':' .. ARGV[4]
if record[3] == told then return {'OLD'} end
if redis.call('XLEN', KEYS[3]) >= tonumber(ARGV[6]) then return {'FULL'} end
redis.call('HSET', KEYS[2], 'reported', told)
if not record[1] or tonumber(ARGV[4]) > tonumber(record[1]) then
  redis.call('HSET', KEYS[2], 'reported_step', ARGV[4], 'reported_value', ARGV[5])
end
tell_inbox(KEYS[3], 'report', ARGV[2], ARGV[3], record[2], ARGV[4], ARGV[5], ARGV[8])
if is_news(KEYS[2], 'told_at', now_ms(ARGV[7])) then
  tell_event(KEYS[4], 'reported', 'trial', ARGV[2], 'attempt', record[2], 'step', ARGV[4],
    'value', ARGV[5])
end
return {'OK'}
