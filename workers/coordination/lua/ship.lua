-- ship: have a package of code be there for a study.
-- KEYS: code
-- ARGV: study seal content
-- RETURNS: OK
-- What lies under a digest is the same for all. It asks for no epoch: it is not a trial's, and is written
-- before the study that names it.
redis.call('HSET', KEYS[1], 'study:' .. ARGV[1], ARGV[2], 'content', ARGV[3])
return {'OK'}
