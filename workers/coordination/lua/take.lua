-- take: the holder uses parameters that were drawn before the trial began.
-- KEYS: epoch trial inbox
-- ARGV: epoch number token body seal params...
-- RETURNS: OK | LOST
-- `params` are pairs of a name and a value in JSON; `body` tells them to the orchestrator.
if not epoch_is(KEYS[1], ARGV[1]) or not holds(KEYS[2], ARGV[3]) then return {'LOST'} end
local is_news = false
for i = 6, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[2], 'param:' .. ARGV[i], ARGV[i + 1]) == 1 then is_news = true end
end
if is_news then
  local attempt = redis.call('HGET', KEYS[2], 'attempt')
  tell_inbox(KEYS[3], 'taken', ARGV[2], ARGV[3], attempt, '', ARGV[4], ARGV[5])
end
return {'OK'}
