"""Takes in what people order of a study: trials with given parameters, and failed ones again.

Invariant: an order is dropped from Redis when the storage has its trials on disk, each once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.driving.driven import DrivenStudy
from orchestrator.storage.attributes import ORDER_ATTR, RETRIES_ATTR
from orchestrator.storage.retriable import retriable
from workers.logs import get_logger
from workers.protocol.orders import Given, Order, Retry, read_order
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
        for order in sorted(orders, key=lambda order: (order.asked_ms, order.place)):
            if isinstance(order, Given):
                self._enqueue(order.id, order.params)
            else:
                self._retry(order)
        self._study.sync()
        self._study.drop_orders(texts, num_ordered)

    def _read(self, text: str) -> Iterator[Order]:
        try:
            yield read_order(text)
        except ValueError as error:
            reason = describe_error(error, 300)
            log.error("order_unreadable", study=self._study.name, error=reason)  # noqa: TRY400

    def _retry(self, order: Retry) -> None:
        for trial in retriable(self._study.trials(), order.numbers):
            attrs = {RETRIES_ATTR: trial.number}
            self._enqueue(f"retry:{trial.number}", trial.params, attrs)

    def _enqueue(
        self, order_id: str, params: Mapping[str, Any], attrs: Mapping[str, Any] | None = None
    ) -> None:
        done = self._carried_out()
        if order_id not in done:
            done.add(order_id)
            self._study.enqueue(params, {ORDER_ATTR: order_id, **(attrs or {})})
            log.info("ordered", study=self._study.name, order=order_id, params=params)

    def _carried_out(self) -> set[str]:
        if self._done is None:
            attrs = (trial.user_attrs.get(ORDER_ATTR) for trial in self._study.trials())
            self._done = {str(each) for each in attrs if each is not None}
        return self._done
