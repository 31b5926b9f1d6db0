-- unship: have a study name a package of code no more; the last one takes it along.
-- KEYS: code
-- ARGV: study
-- RETURNS: OK
redis.call('HDEL', KEYS[1], 'study:' .. ARGV[1])
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 6) == 'study:' then return {'OK'} end
end
redis.call('DEL', KEYS[1])
return {'OK'}
