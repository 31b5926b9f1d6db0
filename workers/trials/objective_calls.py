"""Calls objectives in this process, one attempt after the other.

Invariant: every way out of an objective is exactly one end of the attempt.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import optuna

from workers.containers import Container
from workers.logs import get_logger
from workers.managers import CUDAManager, HubManager
from workers.managers.surroundings import Surroundings
from workers.protocol.errors import DrainRequested, LeaseLost, TrialCancelled, TrialTimedOut
from workers.protocol.plain import describe_error
from workers.protocol.states import TrialState
from workers.settings import Settings
from workers.trials.ending import AttemptEnd
from workers.trials.handle import FleetTrial
from workers.trials.objective_modules import ObjectiveModules, StaleExtensionError
from workers.trials.objectives import call_objective, load_objective
from workers.trials.raised import ErrorJudge
from workers.trials.returned import read_values

log = get_logger(__name__)


class ObjectiveCalls:
    """Imports objectives and calls them.

    Args:
        settings: This worker's.
        container: The managers of this process.
        judge: Ends an attempt whose objective raised something.
        on_error: Told of what that is, before.
    """

    def __init__(
        self,
        settings: Settings,
        container: Container,
        judge: ErrorJudge,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._allowed = settings.objectives
        self._container = container
        self._judge = judge
        self._on_error = on_error
        self._cuda = container.get(CUDAManager)
        self._modules = ObjectiveModules()
        #: studies whose objective this process has imported
        self._loaded: set[str] = set()

    def call(self, end: AttemptEnd, surroundings: Surroundings, root: Path | None) -> None:
        """Call the objective, and say how that ended.

        Args:
            end: The end of the attempt.
            surroundings: Where what the objective leaves in this process is noted.
            root: Where the code lies that came with the study, if it ships any.
        """
        trial = end.trial
        try:
            with surroundings.watched():
                end.held.check_time()  # attempts before this one may have used it up
                trial.next_rung.check()  # or may have died when they had reached the rung
                returned = self._returned(trial, root)
            values = read_values(returned, trial.spec)
        except StaleExtensionError as error:
            surroundings.spoil(str(error))
            end.hand_over()
        except TrialCancelled:
            end.cancel()
        except TrialTimedOut:
            end.time_out()
        except DrainRequested:
            end.release()
        except LeaseLost as error:
            end.fall_silent(error)
        except BaseException as error:  # noqa: BLE001 - MemoryError would end the worker
            self._on_error(error)
            was_loaded = trial.study_name in self._loaded
            self._judge.judge(error, end, was_loaded=was_loaded)
        else:
            end.commit(TrialState.COMPLETE, values)

    def _returned(self, trial: FleetTrial, root: Path | None) -> object:
        """Import the objective and call it; what it returned, once its last checkpoint is safe."""
        self._seed_module(trial)
        objective = load_objective(trial.spec.objective, self._allowed, self._modules, root)
        self._loaded.add(trial.study_name)
        self._seed_trial(trial)
        try:
            with self._container.get(HubManager).watched(trial.preparing):
                returned = call_objective(objective, trial, self._container)
        except BaseException as error:
            is_verdict = isinstance(error, optuna.TrialPruned)
            _await_checkpoint(trial, is_needed=not is_verdict or trial.next_rung.is_reached)
            raise
        else:
            _await_checkpoint(trial, is_needed=False)
        finally:
            self._modules.note()  # what it imported in its body, however it ended
        return returned

    def _seed_module(self, trial: FleetTrial) -> None:
        """Have what a module draws at its top be the same in each process of a seeded study."""
        seed = trial.spec.sampler.seed
        if seed is not None:
            self._cuda.seed(seed % 2**32)

    def _seed_trial(self, trial: FleetTrial) -> None:
        """Have each trial draw its own numbers: of a seeded study, the same in each attempt.

        Left as they are put back after each, the generators would give every trial the same.
        """
        is_seeded = trial.spec.sampler.seed is not None
        seed = trial.seed if is_seeded else secrets.randbits(32)
        self._cuda.seed(seed)


def _await_checkpoint(trial: FleetTrial, *, is_needed: bool) -> None:
    """Wait until what the objective saved last is on disk.

    Args:
        trial: What the objective was given.
        is_needed: Whether another attempt may go on from it; where not, the trial has its result,
            whatever went wrong with the checkpoint.

    Raises:
        LeaseLost: Somebody else may run the trial now.
        Exception: What else went wrong with one that is needed.
    """
    try:
        trial.await_checkpoint()
    except LeaseLost:
        raise
    except Exception as error:
        if is_needed:
            raise
        log.warning("checkpoint_not_saved", error=describe_error(error, 500))
