-- commit: end a trial with its result; the first commit wins.
-- KEYS: epoch trial leases queued inbox
-- ARGV: epoch number token state payload now_ms
-- RETURNS: OK id | DUP id | LOST
if not epoch_is(KEYS[1], ARGV[1]) then return {'LOST'} end
local record = redis.call('HMGET', KEYS[2], 'result_token', 'result_id')
if record[1] == ARGV[3] then return {'DUP', record[2]} end
if not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local now = now_ms(ARGV[6])
return {'OK', finish(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[2], ARGV[4], ARGV[5], now)}
