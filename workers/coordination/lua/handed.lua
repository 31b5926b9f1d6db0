-- handed: fields of some studies. One command, for a client takes long to write and read a thousand of them.
-- KEYS: studies
-- ARGV: fields key...
-- RETURNS: OK values
-- `fields` are names with spaces between. Of a key that holds something else, the error is in its place.
local fields = {}
for field in ARGV[1]:gmatch('%S+') do fields[#fields + 1] = field end
local found = {'OK'}
for i = 2, #ARGV do found[i] = redis.pcall('HMGET', ARGV[i], unpack(fields)) end
return found
