"""The one tree of errors; a message names the thing, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[object]) -> str:
    """A hint at the name that was probably meant, for the end of a message; or nothing."""
    others = [text for text in map(str, known) if text != name]
    close = difflib.get_close_matches(name, others, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class FleetError(Exception):
    """Something in the fleet went wrong; the message says what to do."""


class InvalidInputError(FleetError):
    """The user's input cannot be used. Nothing was enqueued; the command line exits with 2."""


class UnfitModelError(InvalidInputError):
    """A model that cannot be, or that does not take the texts of its study, on any host."""


class WorkerLacksError(InvalidInputError):
    """A worker lacks what a trial needs, such as a GPU or a package; another one may have it."""

    #: Whether no trial of the study could be trained where it is lacking.
    is_of_study: bool = False


class UnfitStudyError(InvalidInputError):
    """No trial of a study could be trained, whatever its parameters; the study ends."""


class RedisUnavailableError(InvalidInputError):
    """Redis does not answer, or refuses us."""


class StudyAtRestError(RedisUnavailableError):
    """No fleet runs that has the study; its results are here."""


class HomeRefusedError(InvalidInputError):
    """For now it cannot be told that the home is this fleet's, or it is another one's."""


class RightsMissingError(InvalidInputError):
    """The user of Redis may not do all that its role in the fleet does; what, and the way out."""


class UnsealedError(InvalidInputError):
    """Something in Redis was not signed by a secret of this fleet; what, and the way out."""


class PackageError(InvalidInputError):
    """Code that travels and cannot be taken; what is wrong with it."""


class StudyExistsError(InvalidInputError):
    """A study of this name exists with other settings."""


class StudyNotKnownError(InvalidInputError):
    """No study has this name."""


class StudyDeletedError(StudyNotKnownError):
    """The study that had this name was deleted; it does not come back by itself."""


class StorageFullError(FleetError):
    """The storage takes no more; what was to be written is not there, and can be written again."""


class StorageUnreadableError(FleetError):
    """What lies where a study's results are kept cannot be read as such."""


class StudyStalledError(FleetError):
    """Something of one study fails again and again; what is done is kept."""


class StudyTakenOverError(FleetError):
    """Another orchestrator drives the study by now; nothing may be written for it from here."""


class ObjectiveError(FleetError):
    """An objective broke its contract; trying the same trial again would not help."""


class ObjectiveNotLoadedError(ObjectiveError):
    """An objective cannot be had in this process; another one may be able to import it."""


class TransientError(FleetError):
    """What an attempt needs cannot be had for now; the trial is tried again later, uncounted."""

    #: Seconds for which it is known not to be there.
    pause_seconds: float = 0.0


class RemoteUnavailableError(TransientError):
    """A hub or a file server does not answer for now, whatever was tried."""


class UnsuitableValueError(ObjectiveError, TypeError):
    """An objective handed over a value that cannot travel; what, where in it, and what can."""


class NotInitializedError(FleetError):
    """A manager was asked for in a process that has not called `ensure_process_initialized`."""


class ForeignProcessError(NotInitializedError):
    """A manager that belongs to another process was used here, typically after a fork."""


class ContainerError(FleetError):
    """Managers that cannot be wired: a missing, unknown or circular need."""


class UnknownMessageError(FleetError):
    """A message of a version that this release does not read."""


class UnreadableEntryError(FleetError):
    """An entry of an inbox tells nothing that this release understands; it is set aside."""


class TrialInterrupt(BaseException):
    """Ends an objective from outside; not an `Exception`, so that `except Exception` lets it by."""


class DrainRequested(TrialInterrupt):
    """This worker is shutting down, or the study was paused: the trial goes back, uncounted."""


class RungReached(DrainRequested):
    """The trial has reached its rung, and is paused with its checkpoint until it is promoted."""


class TrialTimedOut(TrialInterrupt):
    """The trial has held slots for its study's `trial_timeout`; it ends here as FAILED.

    An objective that catches it may return what it has; for that it has `cancel_grace` (30 s).
    """


class LeaseLost(TrialInterrupt):
    """Another process may own this trial now; nothing may be written for it from here."""


class TrialCancelled(TrialInterrupt):
    """The study was cancelled; the trial ends here for good."""
