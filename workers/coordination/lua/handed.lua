-- handed: fields of some studies. One command, for a client takes long to write and read a thousand of them.
-- KEYS: study
-- ARGV: fields key...
-- RETURNS: OK values
-- `fields` are names with spaces between; `key...` are those of further studies. Of one that holds something
-- else, the error is in its place.
local fields = {}
for field in ARGV[1]:gmatch('%S+') do fields[#fields + 1] = field end
local found = {'OK', redis.pcall('HMGET', KEYS[1], unpack(fields))}
for i = 2, #ARGV do found[i + 1] = redis.pcall('HMGET', ARGV[i], unpack(fields)) end
return found
