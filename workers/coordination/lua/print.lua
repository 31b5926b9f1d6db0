-- print: keep what an attempt printed; of a trial the last bytes stay, the latest attempt's first.
-- KEYS: study output
-- ARGV: attempt at text most keep_ms is_over generation
-- RETURNS: OK | LEFT
-- `attempt` is `<number>-<token>`; `at` is where the text begins in all that it printed, so that
-- what is told twice is kept once. Of a study that is not there (any more) nothing is kept, nor of
-- an earlier one of its name.
if redis.call('EXISTS', KEYS[1]) == 0 then return {'LEFT'} end
if ARGV[7] ~= '' and redis.call('HGET', KEYS[1], 'generation') ~= ARGV[7] then return {'LEFT'} end
local name, at, text, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local function token(attempt) return tonumber(string.match(attempt, '(%d+)$')) end

local kept = redis.call('HMGET', KEYS[2], 'text:' .. name, 'end:' .. name)
local before, stop = kept[1] or '', tonumber(kept[2] or '0')
local final = math.max(stop, at + #text)
if at > stop then before = '' end  -- what lay between is lost
local all = before .. string.sub(text, math.max(0, stop - at) + 1)
redis.call('HSET', KEYS[2], 'end:' .. name, integer(final))
if ARGV[6] == '1' then redis.call('HSET', KEYS[2], 'over:' .. name, '1') end

-- the latest first: each has what those after it leave
local others = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
  local attempt = string.match(field, '^text:(.*)$')
  if attempt and attempt ~= name then others[#others + 1] = attempt end
end
table.sort(others, function(one, other) return token(one) > token(other) end)
local function keep(attempt, printed, room)
  local last = room > 0 and string.sub(printed, -room) or ''
  if #last < #printed then last = string.gsub(last, '^[\128-\191]+', '') end  -- whole characters
  redis.call('HSET', KEYS[2], 'text:' .. attempt, last)
  return room - #last
end
local room = keep(name, all, most)
for _, attempt in ipairs(others) do
  room = keep(attempt, redis.call('HGET', KEYS[2], 'text:' .. attempt), room)
end
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {'OK'}
