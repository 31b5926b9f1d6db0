-- reseal: orchestrator only: sign a trial's record anew, with what the storage has of the trial.
-- KEYS: epoch trial lead
-- ARGV: epoch number drawn leader seal generation params...
-- RETURNS: OK | UNKNOWN | LEFT
-- `params` and `drawn` are as those of `enqueue`; of other parameters and their seals none is left.
if not epoch_is(KEYS[1], ARGV[1]) or redis.call('EXISTS', KEYS[2]) == 0 then return {'UNKNOWN'} end
if not leads(KEYS[3], ARGV[4]) then return {'LEFT'} end
for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
  if string.find(name, '^param:') or string.find(name, '^seal:') then
    redis.call('HDEL', KEYS[2], name)
  end
end
redis.call('HSET', KEYS[2], 'drawn', ARGV[3], 'seal', ARGV[5], 'generation', ARGV[6])
if ARGV[3] == '' then redis.call('HDEL', KEYS[2], 'drawn') end
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[2], 'param:' .. ARGV[i], ARGV[i + 1]) end
return {'OK'}
