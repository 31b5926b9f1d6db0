-- process_register: write a process's record, or fields of it, for one lease.
-- KEYS: epoch process processes events
-- ARGV: identity ttl_ms keep_ms now_ms fields...
-- RETURNS: OK
-- `fields` are pairs of a name and a value. The record outlives its lease by `keep_ms`: it tells
-- the cleaner what a process that died may have left.
if not is_of_epoch(KEYS[2], KEYS[1]) then redis.call('DEL', KEYS[2]) end
local before = redis.call('HMGET', KEYS[2], 'kind', 'is_draining')
stamp_epoch(KEYS[2], KEYS[1])
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
local record = redis.call('HMGET', KEYS[2], 'kind', 'device', 'parent', 'is_draining')
if not before[1] then
  local device = plain(record[2])
  tell_event(KEYS[4], 'born', 'process', ARGV[1], 'role', plain(record[1]),
    'device', device and string.match(device, '/(.*)') or device, 'parent', plain(record[3]))
end
if record[4] == 'true' and before[2] ~= 'true' then
  tell_event(KEYS[4], 'drained', 'process', ARGV[1])
end
redis.call('PEXPIRE', KEYS[2], tonumber(ARGV[2]) + tonumber(ARGV[3]))
redis.call('ZADD', KEYS[3], integer(now_ms(ARGV[4]) + tonumber(ARGV[2])), ARGV[1])
return {'OK'}
