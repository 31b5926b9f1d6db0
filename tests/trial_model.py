"""A trial's life as pure functions: what each verb of the protocol must answer and change.

The walks of `integration/test_trial_walks.py` hold the Lua scripts on a real server against this.
Tokens are the one thing not predicted: the server draws them, and the walk checks that they rise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

TERMINAL = {"COMPLETE", "PRUNED", "FAILED", "DEAD", "CANCELLED"}


@dataclass(frozen=True)
class Trial:
    """One trial's record."""

    state: str = "QUEUED"
    token: int = 0
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    returns: int = 0
    not_before: int = 0
    deadline: int | None = None
    nonce: str | None = None
    checkpoint: int | None = None
    checkpoint_token: int | None = None
    """The attempt that saved it."""
    rung: int = 0
    """Where it is paused, or is to be paused next."""
    reported: str | None = None
    """The last report: its attempt's token, and its step."""
    result_token: int | None = None


@dataclass(frozen=True)
class Entry:
    """One entry of the inbox."""

    kind: str
    number: int
    token: int
    subject: str


@dataclass(frozen=True)
class Model:
    """All trials of a study, its inbox, and the server's clock in ms."""

    now: int
    epoch: str
    trials: dict[int, Trial] = field(default_factory=dict)
    inbox: tuple[Entry, ...] = ()

    def put(self, number: int, trial: Trial, *entries: Entry) -> Model:
        return replace(self, trials={**self.trials, number: trial}, inbox=(*self.inbox, *entries))

    def holds(self, number: int, token: int, epoch: str) -> bool:
        trial = self.trials.get(number)
        return (
            epoch == self.epoch
            and trial is not None
            and trial.state == "RUNNING"
            and trial.token == token
        )

    def enqueue(self, number: int, epoch: str) -> tuple[str, Model]:
        if epoch != self.epoch or number in self.trials:
            return "EXISTS", self
        return "OK", self.put(number, Trial())

    def claim(self, number: int, epoch: str, nonce: str, ttl: int, token: int) -> tuple[str, Model]:
        """`token` is what the server drew, should it grant the trial anew."""
        trial = self.trials.get(number)
        if epoch != self.epoch or trial is None:
            return "UNKNOWN", self
        if trial.state in TERMINAL:
            return "DONE", self
        if trial.state == "PAUSED":
            return "PAUSED", self
        if trial.state == "RUNNING":
            return ("OK" if trial.nonce == nonce else "HELD"), self
        if trial.not_before > self.now:
            return "NOT_YET", self
        granted = replace(
            trial,
            state="RUNNING",
            token=token,
            attempt=trial.attempt + 1,
            deadline=self.now + ttl,
            nonce=nonce,
        )
        return "OK", self.put(number, granted)

    def renew(self, number: int, epoch: str, token: int, ttl: int) -> tuple[str, Model]:
        if not self.holds(number, token, epoch):
            return "LOST", self
        return "OK", self.put(number, replace(self.trials[number], deadline=self.now + ttl))

    def report(self, number: int, epoch: str, token: int, step: int) -> tuple[str, Model]:
        if not self.holds(number, token, epoch):
            return "LOST", self
        trial = self.trials[number]
        if trial.reported == f"{token}:{step}":
            return "OLD", self
        entry = Entry("report", number, token, str(step))
        return "OK", self.put(number, replace(trial, reported=f"{token}:{step}"), entry)

    def checkpoint(
        self, number: int, epoch: str, token: int, step: int, replaces: tuple[int, int] | None
    ) -> tuple[str, Model]:
        """`replaces` is the token and the step of one that the holder could not load."""
        if not self.holds(number, token, epoch):
            return "LOST", self
        trial = self.trials[number]
        last = (trial.checkpoint_token, trial.checkpoint)
        is_behind = trial.checkpoint is not None and step <= trial.checkpoint
        if is_behind and (replaces != last or last == (token, step)):
            return "OLD", self
        return "OK", self.put(number, replace(trial, checkpoint=step, checkpoint_token=token))

    def commit(self, number: int, epoch: str, token: int, state: str) -> tuple[str, Model]:
        trial = self.trials.get(number)
        if epoch == self.epoch and trial is not None and trial.result_token == token:
            return "DUP", self
        if not self.holds(number, token, epoch):
            return "LOST", self
        return "OK", self._finish(number, self.trials[number], state)

    def release(self, number: int, epoch: str, token: int, backoff: int) -> tuple[str, Model]:
        if not self.holds(number, token, epoch):
            return "LOST", self
        trial = self.trials[number]
        if not backoff:
            return "OK", self.put(number, _requeued(trial, 0))
        trial = replace(trial, returns=trial.returns + 1)
        return "OK", self.put(number, _requeued(trial, self.now + _pause(trial.returns, backoff)))

    def park(self, number: int, epoch: str, token: int, rung: int) -> tuple[str, Model]:
        trial = self.trials.get(number)
        if not self.holds(number, token, epoch):
            is_parked = trial is not None and (trial.state, trial.token) == ("PAUSED", token)
            return "DUP" if is_parked and epoch == self.epoch else "LOST", self
        parked = replace(self.trials[number], state="PAUSED", rung=rung, deadline=None, nonce=None)
        return "OK", self.put(number, parked, Entry("pause", number, token, str(rung)))

    def unpark(self, number: int, epoch: str, rung: int) -> tuple[str, Model]:
        trial = self.trials.get(number)
        if epoch != self.epoch:
            return "EPOCH", self
        if trial is None:
            return "UNKNOWN", self
        if trial.rung >= rung or trial.state in TERMINAL:
            return "SKIP", self
        sent = replace(trial, rung=rung)
        if trial.state != "PAUSED":
            return "NOTED", self.put(number, sent)
        return "OK", self.put(number, replace(sent, state="QUEUED", not_before=0))

    def fail(
        self, number: int, epoch: str, token: int, charge: str, most: int, backoff: int
    ) -> tuple[str, Model]:
        if not self.holds(number, token, epoch):
            return "LOST", self
        return self._fail_attempt(number, charge, most, backoff)

    def reap(
        self,
        number: int,
        epoch: str,
        dead_token: int | None,
        grace: int,
        charge: str,
        most: int,
        backoff: int,
    ) -> tuple[str, Model]:
        trial = self.trials.get(number)
        if epoch != self.epoch or trial is None or trial.state != "RUNNING":
            return "SKIP", self
        if dead_token is not None and trial.token != dead_token:
            return "SKIP", self
        if dead_token is None and (trial.deadline or 0) + grace > self.now:
            return "LIVE", self
        return self._fail_attempt(number, charge, most, backoff)

    def settle(self, number: int, epoch: str, state: str) -> tuple[str, Model]:
        trial = self.trials.get(number)
        if epoch != self.epoch or trial is None:
            return "SKIP", self
        if trial.state in TERMINAL:
            return "OK", self
        return "OK", self.put(number, replace(trial, state=state, deadline=None, nonce=None))

    def _fail_attempt(self, number: int, charge: str, most: int, backoff: int) -> tuple[str, Model]:
        trial = self.trials[number]
        count = getattr(trial, charge) + 1
        failed = replace(trial, **{charge: count})
        if count >= most:
            return "DEAD", self._finish(number, failed, "DEAD")
        pause = _pause(failed.failures + failed.losses, backoff)
        return "REQUEUED", self.put(number, _requeued(failed, self.now + pause))

    def _finish(self, number: int, trial: Trial, state: str) -> Model:
        ended = replace(trial, state=state, result_token=trial.token, deadline=None, nonce=None)
        return self.put(number, ended, Entry("terminal", number, trial.token, state))


def _pause(count: int, backoff: int) -> int:
    return backoff * min(2 ** (count - 1), 64)


def _requeued(trial: Trial, not_before: int) -> Trial:
    return replace(trial, state="QUEUED", not_before=not_before, deadline=None, nonce=None)
