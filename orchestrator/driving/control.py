"""Acts on what people want of a driven study: run it, pause it, stop it, cancel it.

Workers learn of it by themselves, with the answers to their claims and beats; here is done what
concerns the trials that nobody holds, and the study's clock.

Invariant: each look does the same again, so that nothing is lost when this process is killed.
"""

from __future__ import annotations

from orchestrator.driving.dispatch import Dispatcher
from orchestrator.driving.driven import DrivenStudy
from workers.logs import get_logger
from workers.protocol.states import Wish

log = get_logger(__name__)


def obey(study: DrivenStudy, dispatcher: Dispatcher, wish: Wish, now_ms: int) -> None:
    """Do for a study what is wanted of it now.

    Args:
        study: Open for writing.
        dispatcher: Its own.
        wish: As Redis has it.
        now_ms: The server's clock.
    """
    before = study.take_wish(wish)
    if wish is not before:
        log.info("wish_taken", study=study.name, wish=wish.value, before=before.value)
    if wish is Wish.CANCEL:
        dispatcher.withdraw("the study was cancelled", has_begun=True)
    elif wish is Wish.STOP:
        dispatcher.withdraw("the study was stopped")
    elif study.is_out_of_time:
        dispatcher.withdraw("the study's time was up")
    if wish.is_pause:
        study.stop_clock()
    elif before.is_pause:
        # what was announced meanwhile was thrown away by those who could not claim it
        dispatcher.reconcile(now_ms, at_start=True)
