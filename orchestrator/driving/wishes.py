"""Does what people want of a driven study: run it, pause it, stop it, cancel it, and their orders.

Workers learn of a wish by themselves, with the answers to their claims and beats; here is done what
concerns the trials that nobody holds, and the study's clock.

Invariant: each look does the same again, so that nothing is lost when this process is killed.
"""

from __future__ import annotations

from orchestrator.driving.dispatch import Dispatcher
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.order_book import OrderBook
from workers.coordination.submitted import Submitted
from workers.logs import get_logger
from workers.protocol.states import Wish

log = get_logger(__name__)


class Control:
    """What people want of one study, done.

    Args:
        study: Open for writing.
        dispatcher: Its own.
    """

    def __init__(self, study: DrivenStudy, dispatcher: Dispatcher) -> None:
        self._study = study
        self._dispatcher = dispatcher
        self._orders = OrderBook(study)
        #: whether nothing more was to be started when it was looked at last, by whomever
        self._was_ending = True

    def obey(self, submitted: Submitted, now_ms: int) -> None:
        """Carry out what was ordered, and do what is wanted now.

        Args:
            submitted: The study, as Redis has it.
            now_ms: The server's clock.
        """
        wish = submitted.wish
        if submitted.has_orders:
            self._orders.take()
        before = self._study.take_wish(wish)
        if wish is not before:
            log.info("wish_taken", study=self._study.name, wish=wish.value, before=before.value)
        reason = self._study.limits.look(self._study.leases, now_ms)
        is_ending = wish.is_end or reason is not None
        if wish is Wish.CANCEL:
            self._dispatcher.withdraw("the study was cancelled", has_begun=True)
        elif wish is Wish.STOP:
            self._dispatcher.withdraw(reason or "the study was stopped")
        elif reason is not None:
            self._dispatcher.withdraw(reason, spares_given=self._study.limits.spares_given)
        elif self._was_ending:
            self._orders.put_in_again()
        self._was_ending = is_ending
        if wish.is_pause:
            self._study.clock.stop()
        elif before.is_pause:
            # what was announced meanwhile was thrown away by those who could not claim it
            self._dispatcher.reconcile(now_ms, at_start=True)
