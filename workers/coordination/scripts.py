"""The Lua scripts as a typed table: each file's head says what it takes, and calls are held to it.

Invariant: a call names exactly the keys and arguments of the head, so neither can drift.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import redis

Verb: TypeAlias = Literal[
    "enqueue", "claim", "renew", "report", "suggest", "take", "reply", "checkpoint", "commit",
    "release", "fail", "reap", "settle", "park", "unpark",
    "process_register", "process_beat", "process_gone",
    "cleanup_acquire", "cleanup_renew", "cleanup_done", "lead", "unlead", "wish", "respec", "order",
    "publish", "begin", "drop_orders", "reseal", "ship", "unship", "begin_anew", "print",
    "hand_in", "stop", "handed",
]  # fmt: skip

Value: TypeAlias = str | int | float

#: The argument that, by default, is left to the server's own clock.
NOW: Final = "now_ms"

_HEAD = re.compile(r"^-- (KEYS|ARGV|RETURNS): (.*)$", re.MULTILINE)

_CALL = re.compile(r"redis\.p?call\('(\w+)'")

#: A function of the prelude: its name, and all of it.
_FUNCTION = re.compile(r"^local function (\w+)\((?:[^\n]* end$|.*?^end$)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Script:
    """One verb: its source, the names of its keys and arguments, and what it may answer."""

    verb: str
    source: str
    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    answers: frozenset[str]

    @classmethod
    def load(cls, verb: str) -> Script:
        """Read the verb's file and its head."""
        folder = files("workers.coordination") / "lua"
        body = (folder / f"{verb}.lua").read_text()
        head = dict(_HEAD.findall(body))
        return cls(
            verb=verb,
            source=(folder / "_prelude.lua").read_text() + body,
            keys=tuple(head["KEYS"].split()),
            arguments=tuple(head["ARGV"].split()),
            answers=frozenset(answer.split()[0] for answer in head["RETURNS"].split("|")),
        )

    @property
    def sha(self) -> str:
        """By which a server knows the source."""
        return _sha(self.source)

    @property
    def commands(self) -> frozenset[str]:
        """The commands of Redis that it calls, by itself and by the prelude, in lower case."""
        unused = {found[1]: found[0] for found in _FUNCTION.finditer(self.source)}
        left, called = [_FUNCTION.sub("", self.source)], set[str]()
        while left:
            text = left.pop()
            called.update(name.lower() for name in _CALL.findall(text))
            left += [unused.pop(name) for name in list(unused) if f"{name}(" in text]
        return frozenset(called)

    @property
    def takes_rest(self) -> bool:
        """Whether a list of pairs follows the named arguments."""
        return self.arguments[-1].endswith("...")

    def order(
        self, keys: Mapping[str, str], arguments: Mapping[str, Value], rest: Sequence[Value]
    ) -> tuple[list[str], list[Value]]:
        """Put keys and arguments in the order of the head.

        Raises:
            TypeError: A name is missing or too many.
        """
        named = self.arguments[:-1] if self.takes_rest else self.arguments
        given = {NOW: "", **arguments} if NOW in named else dict(arguments)
        if (
            set(keys) != set(self.keys)
            or set(given) != set(named)
            or (rest and not self.takes_rest)
        ):
            raise TypeError(
                f"{self.verb}.lua takes keys {self.keys} and arguments {self.arguments},"
                f" not {tuple(keys)} and {tuple(given)}"
            )
        return [keys[name] for name in self.keys], [*(given[name] for name in named), *rest]


@functools.cache
def _sha(source: str) -> str:
    return hashlib.sha1(source.encode()).hexdigest()  # noqa: S324 - as Redis does


@functools.cache
def script(verb: Verb) -> Script:
    """The script of a verb, read once."""
    return Script.load(verb)


def call(
    client: redis.Redis,
    verb: Verb,
    keys: Mapping[str, str],
    arguments: Mapping[str, Value],
    rest: Sequence[Value] = (),
) -> list[str]:
    """Run one script and return its answer, the status word first."""
    definition = script(verb)
    ordered_keys, ordered_arguments = definition.order(keys, arguments, rest)
    words = len(ordered_keys), *ordered_keys, *ordered_arguments
    answer: list[str]
    try:
        answer = client.evalsha(definition.sha, *words)
    except redis.exceptions.NoScriptError:  # a server that is new to it
        client.script_load(definition.source)
        answer = client.evalsha(definition.sha, *words)
    return answer


class Call(NamedTuple):
    """One call of a script."""

    keys: Mapping[str, str]
    arguments: Mapping[str, Value]
    rest: Sequence[Value] = ()


def call_all(client: redis.Redis, verb: Verb, calls: Sequence[Call]) -> list[list[str]]:
    """Run a script several times in one round trip; the answers, in the order of the calls."""
    definition = script(verb)
    pipeline = client.pipeline(transaction=False)
    for each in calls:
        ordered_keys, ordered_arguments = definition.order(*each)
        pipeline.evalsha(definition.sha, len(ordered_keys), *ordered_keys, *ordered_arguments)
    answers: list[Any] = pipeline.execute(raise_on_error=False)
    for index, answer in enumerate(answers):
        if isinstance(answer, redis.exceptions.NoScriptError):  # a server that is new to it
            answers[index] = call(client, verb, *calls[index])
        elif isinstance(answer, Exception):
            raise answer
    return answers
