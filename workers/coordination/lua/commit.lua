-- commit: end a trial with its result; the first commit wins.
-- KEYS: epoch trial leases queued inbox events process
-- ARGV: epoch number token state payload value cause detail first_step_ms now_ms frees seal
-- RETURNS: OK id | DUP id | LOST
-- `value`, `cause`, `detail` and `first_step_ms` are for the event. With `frees`, the record of the
-- holder's process names no trial any more.
if not epoch_is(KEYS[1], ARGV[1]) then return {'LOST'} end
local record = redis.call('HMGET', KEYS[2], 'result_token', 'result_id')
if record[1] == ARGV[3] then return {'DUP', record[2]} end
if not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local now = now_ms(ARGV[10])
if ARGV[11] ~= '' then assign(KEYS[7], KEYS[1], 'null', 'null', 'null', 'null') end
local told = {events = KEYS[6], value = ARGV[6], cause = ARGV[7], detail = ARGV[8],
  after_ms = ARGV[9]}
return {'OK',
  finish(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[2], ARGV[4], ARGV[5], ARGV[12],
    now, told)}
