"""The application: which address answers what.

Invariant: what blocks runs in threads; every answer is a document, an asset, or one clear line.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.dashboard.actions import act
from orchestrator.dashboard.answers import HANDLERS, answer, encode, refusal
from orchestrator.dashboard.assets import asset_route, page
from orchestrator.dashboard.door import Door, Guard
from orchestrator.dashboard.feeds import Feeds
from orchestrator.dashboard.live import Look, stream
from orchestrator.dashboard.optuna_pages import OptunaPages
from orchestrator.dashboard.trial_document import trial_document
from workers.passwords import learn_environment
from workers.protocol.errors import InvalidInputError, StudyNotKnownError
from workers.settings import Settings

#: Bytes of a request's body: parameters of one trial.
MAX_BODY: Final = 64 * 1024

#: Pages that are kept up to date at once, and requests that are read at once.
MAX_STREAMS: Final = 64
_NUM_READING: Final = 8

_MAX_NUMBER: Final = 2**53

T = TypeVar("T")


def make_app(
    settings: Settings, door: Door, *, is_closing: Callable[[], bool] = lambda: False
) -> Starlette:
    """The page of a fleet.

    Args:
        settings: Where the fleet is.
        door: Who may come in.
        is_closing: Whether the server ends, and what is kept open is to end with it.
    """
    learn_environment(os.environ)  # what objectives put into names, choices and attributes
    feeds = Feeds(settings)
    desk = _Desk(feeds, door, is_closing)
    routes = [
        *(
            Route(path, page)
            for path in ("/", "/studies/{name}", "/studies/{name}/trials/{number}")
        ),
        asset_route(),
        Route("/api/fleet", desk.fleet),
        Route("/api/live", desk.live),
        Route("/api/token", desk.token, methods=["POST"]),
        Route("/api/studies/{name}", desk.study),
        Route("/api/studies/{name}/trials", desk.trials),
        Route("/api/studies/{name}/trials/{number}", desk.trial),
        Route("/api/studies/{name}/curves", desk.curves),
        Route("/api/studies/{name}/importances", desk.importances),
        Route("/api/studies/{name}/timeline", desk.timeline),
        Route("/api/studies/{name}/{verb}", desk.act, methods=["POST"]),
        *OptunaPages(feeds).routes(desk.read),
    ]
    middleware = [
        Middleware(Guard, door=door),
        Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5),
        Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY),
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=dict(HANDLERS))


class _Desk:
    """Answers the addresses below `/api`."""

    def __init__(self, feeds: Feeds, door: Door, is_closing: Callable[[], bool]) -> None:
        self._feeds, self._door, self._is_closing = feeds, door, is_closing
        self._reading = anyio.CapacityLimiter(_NUM_READING)
        self._num_streams = 0
        #: revisions count from the start of this process: those of another one mean nothing
        self._run = secrets.token_hex(4)

    async def fleet(self, _request: Request) -> Response:
        """Hosts, processes and studies."""
        return answer(await self.read(self._feeds.fleet))

    async def token(self, _request: Request) -> Response:
        """Whether a token is the right one: whoever gets here has it, and reads from now on."""
        right = answer({"token": "right"})
        self._door.let_read(right)
        return right

    async def study(self, request: Request) -> Response:
        """A study without its trials."""
        return answer(await self._of_study(request, lambda feed: feed.status()))

    async def trials(self, request: Request) -> Response:
        """All trials of a study, as columns."""
        name = _name(request)

        def look() -> dict[str, Any]:
            return {**self._feeds.looked_at(name).since(-1), "run": self._run}

        return answer(await self.read(look))

    async def trial(self, request: Request) -> Response:
        """One trial."""
        number = _number(request.path_params["number"], "trial")
        return answer(await self._of_study(request, lambda feed: trial_document(feed, number)))

    async def curves(self, request: Request) -> Response:
        """The curves of some trials."""
        return answer(await self._of_study(request, lambda feed: feed.curves()))

    async def importances(self, request: Request) -> Response:
        """How much each parameter matters."""
        return answer(await self._of_study(request, lambda feed: feed.importances()))

    async def timeline(self, request: Request) -> Response:
        """Which attempts held which slots."""
        since = _number(request.query_params.get("since", "0"), "since")
        return answer(await self._of_study(request, lambda feed: feed.timeline(since)))

    async def act(self, request: Request) -> Response:
        """Do something to a study; the door has seen the token."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return refusal(415, "an action is JSON: content-type: application/json")
        body, verb = await request.body(), request.path_params["verb"]

        def do(feed: Any) -> dict[str, Any]:
            done = act(feed.handle, verb, body)
            return {"study": feed.name, "action": verb, "done": done, "status": feed.status()}

        return answer(await self._of_study(request, do))

    async def live(self, request: Request) -> Response:
        """What changes of the fleet, or of a study since a revision."""
        if self._num_streams >= MAX_STREAMS:
            return refusal(503, f"{MAX_STREAMS} pages are open by now; close one")
        look = self._look_at(request)
        response = stream(look, is_closing=self._is_closing)
        study = request.query_params.get("study")
        response.body_iterator = self._counted(response.body_iterator, study)
        return response

    def _look_at(self, request: Request) -> Look:
        name = request.query_params.get("study")
        if name is None:
            return lambda: encode(self._feeds.fleet())
        self._feeds.study(name)  # refuses what is no name
        if (trial := request.query_params.get("trial")) is not None:
            return self._look_at_trial(name, _number(trial, "trial"))
        seen = _number(request.query_params.get("since", "0"), "since")
        if request.query_params.get("run", self._run) != self._run:
            seen = -1

        def look() -> bytes | None:
            nonlocal seen
            feed = self._feeds.looked_at(name)
            if feed.revision == seen:
                return None
            found = feed.since(seen)
            document = encode({**found, "run": self._run})
            seen = found["revision"]
            return document

        return look

    def _look_at_trial(self, name: str, number: int) -> Look:
        """Tells that a trial is to be read again, and nothing of the others."""
        seen: object = None

        def look() -> bytes | None:
            nonlocal seen
            sign = self._feeds.looked_at(name).sign_of(number)
            if sign == seen:
                return None
            seen = sign
            return encode({"trial": number})

        return look

    async def _counted(self, chunks: Any, study: str | None) -> Any:
        self._num_streams += 1
        try:
            with nullcontext() if study is None else self._feeds.following(study):
                async for chunk in chunks:
                    yield chunk
        finally:
            self._num_streams -= 1

    async def _of_study(self, request: Request, read: Callable[[Any], T]) -> T:
        name = _name(request)
        try:
            return await self.read(lambda: read(self._feeds.study(name)))
        except StudyNotKnownError:
            self._feeds.drop(name)
            raise

    async def read(self, read: Callable[[], T]) -> T:
        """Run what blocks in a thread, some at once."""
        reading: Awaitable[T] = anyio.to_thread.run_sync(read, limiter=self._reading)
        return await reading


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _number(text: str, what: str) -> int:
    """A whole number of an address.

    Raises:
        HTTPException: It is none.
        InvalidInputError: It is none that counts anything.
    """
    if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 20):
        if what == "trial":
            raise HTTPException(404, f"trial {text[:20]!r}: trials are numbered from 0")
        raise InvalidInputError(f"{what}: write a whole number")
    return min(int(text), _MAX_NUMBER)
