"""The trials that people order of a study, until its orchestrator has them in its storage.

Invariant: an order that waits is one, however often it is left: equal ones share an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.scripts import Value, call
from workers.coordination.study_lead import call_led
from workers.coordination.study_names import StudyNames
from workers.coordination.submitted import ending, speaking_of
from workers.protocol.errors import InvalidInputError
from workers.protocol.orders import Order
from workers.protocol.states import Wish

#: How many orders of one study may wait for its orchestrator.
MAX_ORDERS: Final = 10_000


@dataclass(frozen=True)
class StudyOrders:
    """The orders that wait, of each study."""

    client: redis.Redis
    #: Who drives the studies, of an orchestrator: one that does not drops none.
    leader: str = ""

    def leave(self, name: str, orders: Sequence[Order]) -> int:
        """Leave orders for the orchestrator; how many of them were not waiting already.

        Raises:
            InvalidInputError: There is no such study, its end was asked for, or too many wait.
        """
        now = server_time_ms(self.client)
        placed = [
            order.model_copy(update={"asked_ms": now, "place": place})
            for place, order in enumerate(orders)
        ]
        pairs = [text for order in placed for text in (order.id, order.model_dump_json())]
        names = {**speaking_of(name), "orders": keys.orders(name)}
        arguments: dict[str, Value] = {"name": name, "most": MAX_ORDERS}
        status, *rest = call(self.client, "order", names, arguments, pairs)
        if status == "UNKNOWN":
            raise StudyNames(self.client).unknown(name)
        if status == "ENDING":
            raise ending(name, Wish(rest[0]))
        if status == "FULL":
            raise InvalidInputError(
                f"study {name!r}: {len(orders)} orders are too many at once: with those that wait,"
                f" {MAX_ORDERS} are the most; start its orchestrator, or give fewer"
            )
        return int(rest[0])

    def waiting(self, name: str) -> dict[str, str]:
        """The orders that wait for the orchestrator, by their ids."""
        found: dict[str, str] = self.client.hgetall(keys.orders(name))
        return found

    def num_left(self, name: str) -> str | None:
        """How often orders were left; None if never."""
        count: str | None = self.client.hget(keys.study(name), "ordered")
        return count

    def are_left(self, name: str) -> bool:
        """Whether orders were left that no orchestrator has taken."""
        ordered, taken = self.client.hmget(keys.study(name), "ordered", "taken")
        return bool(ordered != taken)

    def drop(self, name: str, ids: Iterable[str], num_ordered: str | None) -> None:
        """Forget orders that the storage has; orchestrator only.

        Args:
            name: The study.
            ids: The orders'.
            num_ordered: How often some had been left before they were read.
        """
        call_led(
            self.client,
            self.leader,
            "drop_orders",
            name,
            {"study": keys.study(name), "orders": keys.orders(name)},
            {"ordered": num_ordered or ""},
            list(ids),
        )
