"""Takes in what people order of a study: trials with given parameters, and failed ones again.

Invariant: an order is dropped from Redis when the storage has its trials on disk, each once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.driving.driven import DrivenStudy
from orchestrator.storage.ordered_trials import carried_out
from orchestrator.storage.retriable import withdrawn
from workers.logs import get_logger
from workers.protocol.orders import Order, Retry, read_order
from workers.protocol.plain import describe_error

log = get_logger(__name__)


class OrderBook:
    """The orders of one driven study."""

    def __init__(self, study: DrivenStudy) -> None:
        self._study = study
        #: ids of what was carried out; read from the storage with the first order
        self._done: set[str] | None = None

    def take(self) -> None:
        """Carry out what was ordered since the last time."""
        num_ordered = self._study.num_ordered()  # before they are read: more may come
        texts = self._study.orders()
        orders = [order for text in texts.values() for order in self._read(text)]
        orders.sort(key=lambda order: (order.asked_ms, order.place))
        self._carry_out(orders)
        self._study.drop_orders(texts, num_ordered)

    def put_in_again(self) -> None:
        """Have trials run after all, each once, that were withdrawn before anybody began them."""
        numbers = withdrawn(self._study.study.get_trials(deepcopy=False))
        if numbers:
            self._carry_out([Retry(numbers=numbers)])

    def _carry_out(self, orders: Sequence[Order]) -> None:
        """Have the storage hold the trials of orders, on disk."""
        if self._done is None:
            self._done = carried_out(self._study.study)
        self._study.trials.carry_out(orders, self._done)
        self._study.sync()

    def _read(self, text: str) -> Iterator[Order]:
        try:
            yield read_order(text)
        except ValueError as error:
            reason = describe_error(error, 300)
            log.error("order_unreadable", study=self._study.name, error=reason)  # noqa: TRY400
