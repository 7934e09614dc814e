"""Requests and tokens a minute, shared by all processes that use the same Redis.

What this process admitted is counted here as well, so an outage of Redis changes one
thing only: meanwhile each process counts for itself. What is full here is refused
without asking Redis. Shared counts go by Redis's clock alone.
"""

from nestor.backends.redis.connection import RedisConnection
from nestor.errors import Unavailable
from nestor.model.health import Dependency
from nestor.ports.quota import MAX_COST, WINDOW_S
from nestor.resilience.quota import MovingQuota

KEY_PREFIX = "nestor:quota:"

_LOOK = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local this = tonumber(time[1])
local all = redis.call('HGETALL', KEYS[1])
local used, seconds = 0, {}
for i = 1, #all, 2 do
  local second, cost = tonumber(all[i]), tonumber(all[i + 1])
  if second + 1 + WINDOW <= now then
    redis.call('HDEL', KEYS[1], all[i])
  else
    if second > this then
      -- The clock was set back: nobody waits for longer than a window because of it.
      redis.call('HDEL', KEYS[1], all[i])
      redis.call('HINCRBY', KEYS[1], this, cost)
      second = this
    end
    used = used + cost
    seconds[#seconds + 1] = {second, cost}
  end
end
table.sort(seconds, function(a, b) return a[1] < b[1] end)
""".replace("WINDOW", str(WINDOW_S))

_ADMIT = (
    _LOOK
    + """
local limit, cost = tonumber(ARGV[1]), tonumber(ARGV[2])
if used + cost <= limit or used == 0 then
  redis.call('HINCRBY', KEYS[1], this, cost)
  redis.call('EXPIRE', KEYS[1], WINDOW + 2)
  return -1
end
for _, one in ipairs(seconds) do
  used = used - one[2]
  if used + cost <= limit or used == 0 then
    return math.ceil((one[1] + 1 + WINDOW - now) * 1000)
  end
end
return WINDOW * 1000
""".replace("WINDOW", str(WINDOW_S))
)
"""Returns -1, or milliseconds to wait: Redis cuts what is behind the point."""

_CORRECT = (
    _LOOK
    + """
local by = tonumber(ARGV[1])
if by > 0 then
  redis.call('HINCRBY', KEYS[1], this, by)
  redis.call('EXPIRE', KEYS[1], WINDOW + 2)
  return 0
end
for _, one in ipairs(seconds) do
  -- The oldest first: what stays then counts longest, so never too little counts.
  local part = math.min(-by, one[2])
  if part > 0 then
    redis.call('HINCRBY', KEYS[1], one[1], -part)
    by = by + part
  end
end
return 0
""".replace("WINDOW", str(WINDOW_S))
)


class RedisQuota:
    """``ports.quota.Quota`` on Redis, beside the counts of this process."""

    def __init__(self, connection: RedisConnection, *, local: MovingQuota) -> None:
        """``connection`` is closed by ``close``."""
        self._connection = connection
        self._local = local
        self._admit = connection.client.register_script(_ADMIT)
        self._correct = connection.client.register_script(_CORRECT)

    async def admit(self, name: str, *, limit: int, cost: int = 1) -> float | None:
        """See ``Quota.admit``. Waits at most ``WAIT_S`` for Redis."""
        cost = min(cost, MAX_COST)
        wait_s = self._local.wait_s(name, limit=limit, cost=cost)
        if wait_s is not None:
            return wait_s
        try:
            return await self._connection.ask(lambda: self._take(name, limit, cost))
        except Unavailable:
            return await self._local.admit(name, limit=limit, cost=cost)

    async def correct(self, name: str, *, by: int, age_s: float = 0.0) -> None:
        """See ``Quota.correct``. What Redis cannot be told is corrected here alone."""
        await self._local.correct(name, by=by, age_s=age_s)
        if by == 0 or (by < 0 and age_s >= WINDOW_S):
            return
        try:
            await self._connection.ask(
                lambda: self._correct(
                    keys=[KEY_PREFIX + name], args=[max(-MAX_COST, min(by, MAX_COST))]
                )
            )
        except Unavailable:
            return

    async def dependencies(self) -> list[Dependency]:
        """See ``Quota.dependencies``: asks Redis, unless it just failed."""
        return [
            await self._connection.dependency(
                well="requests and tokens a minute are shared",
                away="until it answers, requests and tokens a minute are counted in this"
                " process alone",
            )
        ]

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def _take(self, name: str, limit: int, cost: int) -> float | None:
        # It may have become full while this one waited for its turn.
        wait_s = self._local.wait_s(name, limit=limit, cost=cost)
        if wait_s is not None:
            return wait_s
        said = await self._admit(keys=[KEY_PREFIX + name], args=[limit, cost])
        if said < 0:
            return await self._local.admit(name, limit=limit, cost=cost)
        return float(said) / 1000
