"""`optuna-dashboard` beside the page, where it is installed: to look, and nothing else.

Its pages know no prefix: their document, scripts and downloads lie at the root, as in its own
server, and what they ask for is sent by `assets/optuna.js` to addresses below `/optuna`.

Invariant: it is asked by GET, and for a few addresses, and its storage refuses whatever writes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final
from wsgiref.util import setup_testing_defaults

from optuna.storages import BaseStorage
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from orchestrator.dashboard.answers import refusal
from orchestrator.dashboard.assets import page
from orchestrator.dashboard.feeds import MAX_FEEDS, Feeds
from workers.coordination.studies import Studies
from workers.passwords import hide
from workers.protocol.errors import FleetError, StudyNotKnownError

#: What its pages ask for: of one study, with its number, or of none.
_OF_A_STUDY: Final = re.compile(
    r"/(?:api/studies|csv)/(?P<number>\d{1,15})(?P<rest>/param_importances|/plot/\w{1,40})?"
)
_OF_NONE: Final = re.compile(r"/api/(?:meta|studies)|/static/[\w.-]{1,80}|/dashboard(?:/[^?#]*)?")

#: What an address may ask for besides.
_SOUND: Final = re.compile(r"after=[0-9]{1,15}|trial_ids=[0-9,]{0,1500}")

#: Its charts are drawn by functions that are made of text, and its elements have styles.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_SCRIPT: Final = '<script src="/assets/optuna.js"></script>'

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def is_installed() -> bool:
    """Whether there is an `optuna-dashboard`."""
    return find_spec("optuna_dashboard") is not None


class OptunaPages:
    """Answers for it; its methods block, and are called by threads.

    Args:
        feeds: What reads studies.
    """

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._made: dict[int, tuple[object, Application]] = {}

    def routes(self, read: Callable[[Callable[[], Response]], Any]) -> list[Route]:
        """Its addresses.

        Args:
            read: Runs what blocks.
        """

        async def lead(request: Request) -> Response:
            return RedirectResponse("/dashboard") if is_installed() else await page(request)

        async def ask(request: Request) -> Response:
            path = request.scope["path"].removeprefix("/optuna")
            gzip = "gzip" in request.headers.get("accept-encoding", "")
            asked = _Asked(path, request.url.query, "gzip" if gzip else "identity")
            found: Response = await read(lambda: self._answer(asked))
            return found

        async def icon(_request: Request) -> Response:
            return RedirectResponse("/assets/icon.svg")

        return [
            Route("/favicon.ico", icon),
            Route("/optuna", lead),
            Route("/optuna/", lead),
            *(
                Route(each, ask)
                for each in (
                    "/optuna/api/{rest:path}",
                    "/dashboard",
                    "/dashboard/{rest:path}",
                    "/static/{name}",
                    "/csv/{number}",
                )
            ),
        ]

    def _answer(self, asked: _Asked) -> Response:
        if not is_installed():
            raise HTTPException(
                404, "optuna-dashboard is not installed: pip install 'trialfleet[dashboard]'"
            )
        found = _OF_A_STUDY.fullmatch(asked.path)
        if found is not None:
            if not asked.has_a_sound_query:
                return refusal(400, "after and trial_ids are whole numbers")
            if asked.is_plot and find_spec("plotly") is None:
                return refusal(404, "optuna-dashboard draws this by plotly: pip install plotly")
            answer = asked.of(self._of_study(int(found["number"])))
        elif _OF_NONE.fullmatch(asked.path):
            answer = asked.of(self._of_none(asked.path))
        else:
            raise HTTPException(404, "there is no such page of optuna-dashboard")
        if answer.status_code >= 500:
            return refusal(502, "optuna-dashboard cannot make this of the study's trials")
        return answer

    def _of_none(self, path: str) -> Application:
        """What answers for no study, or lists them all."""
        from orchestrator.dashboard.optuna_storage import StudyList, number_of

        if path != "/api/studies":
            return _application(StudyList({}))
        document = self._feeds.fleet()
        if document["trouble"] is not None:
            raise FleetError(document["trouble"])
        directions = {each["study"]: each.get("directions") for each in document["studies"]}
        generations = self._generations()
        return _application(
            StudyList(
                {
                    number_of(name, generation): (name, directions[name])
                    for name, generation in generations.items()
                    if directions.get(name)
                }
            )
        )

    def _of_study(self, number: int) -> Application:
        """What answers for one study; made anew where it was opened anew."""
        from orchestrator.dashboard.optuna_storage import OneStudy, number_of

        named = {number_of(*each): each[0] for each in self._generations().items()}
        name = named.get(number)
        feed = None if name is None else self._feeds.study(name)
        results = None if feed is None else feed.results()
        if feed is None or results is None:
            raise StudyNotKnownError(
                f"study {name or number!r}: there is none, or its results are on another machine"
            )
        # an application keeps what it saw: another one for a study that was opened anew
        made = self._made.pop(number, None)
        if made is None or made[0] is not results[0]:
            made = (results[0], _application(OneStudy(number, feed)))
        kept = list(self._made.items())[1 - MAX_FEEDS :]
        self._made = {**dict(kept), number: made}
        return made[1]

    def _generations(self) -> dict[str, str]:
        with self._feeds.connection.use() as client:
            studies = Studies(client)
            return studies.generations(studies.names())


def _application(storage: BaseStorage) -> Application:
    from optuna_dashboard import wsgi  # here alone: it is an extra

    application: Application = wsgi(storage)
    return application


@dataclass(frozen=True)
class _Asked:
    """One request, in the terms of WSGI."""

    path: str
    query: str
    encoding: str
    _told: dict[str, Any] = field(default_factory=dict)

    @property
    def has_a_sound_query(self) -> bool:
        return all(map(_SOUND.fullmatch, self.query.split("&"))) if self.query else True

    @property
    def is_plot(self) -> bool:
        """Whether a chart is to be drawn here, and not by the page."""
        return "/plot/" in self.path

    def of(self, application: Application) -> Response:
        """What an application answers."""
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": self.path.encode("utf-8", "replace").decode("latin-1"),
            "QUERY_STRING": self.query,
            "HTTP_ACCEPT_ENCODING": self.encoding,
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
        }
        setup_testing_defaults(environ)
        content = application(environ, self._begin)
        try:
            body = b"".join(content)
        finally:
            getattr(content, "close", lambda: None)()
        return self._response(int(self._told["status"].split()[0]), self._told["headers"], body)

    def _begin(self, status: str, headers: list[tuple[str, str]], _error: Any = None) -> None:
        self._told.update(status=status, headers={name.lower(): told for name, told in headers})

    def _response(self, status: int, headers: dict[str, str], body: bytes) -> Response:
        kept: dict[str, str] = {
            name: headers[name]
            for name in ("content-type", "content-encoding", "content-disposition")
            if name in headers
        }
        kept["content-security-policy"] = _POLICY
        kept["cache-control"] = "no-cache" if self.path.startswith("/static/") else "no-store"
        if "content-encoding" not in kept and "javascript" not in kept.get("content-type", ""):
            text = body.decode("utf-8", "replace")
            if self.path.startswith("/dashboard"):
                text = text.replace("<head>", f"<head>{_SCRIPT}", 1)
            body = hide(text).encode()
        return Response(body, status, kept)
