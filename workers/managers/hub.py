"""HubManager: asks hubs and file servers for what models, tokenizers and data sets are made of.

Invariant: a server that is away for a while gives no trial a bad name: it is asked again, and then
the trial is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.protocol.errors import WorkerLacksError
from workers.remote.hub import is_on_hub, is_switched_off, model_folder, model_on_disk
from workers.remote.patience import Patience, Watch, unwatched
from workers.settings import Settings

log = get_logger(__name__)

T = TypeVar("T")


class HubManager(BaseProcessManager):
    """The one way out to servers that are not the fleet's."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._patience = Patience(settings.time_scale)
        self._fetched: dict[tuple[str, bool], _Fetched] = {}
        self._watch: Watch = unwatched

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Have what is waited for within told, such as to `trial.preparing`, so that it may end.

        Args:
            watch: Told what is asked again for, which try it is, of how many.
        """
        before, self._watch = self._watch, watch
        try:
            yield
        finally:
            self._watch = before

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """What a call returns that reads from a hub or from a file share.

        Args:
            what: What is read, for people, such as `model.id = 'bert-base-cased'`.
            call: May be made several times.

        Raises:
            RemoteUnavailableError: The server did not answer, whatever was tried.
        """
        return self._patience.ask(what, call, self._watch)

    def model_files(self, what: str, name: str, *, with_weights: bool) -> str:
        """A path from which `from_pretrained` reads a model or a tokenizer.

        Args:
            what: As for `ask`.
            name: A path, which is returned as it is, or a hub id, whose files are fetched:
                `owner/name`, perhaps with `@` and a branch, a tag or a commit.
            with_weights: Whether a tokenizer alone is not enough.

        Raises:
            OSError: As the hub says, of what will not pass: no such model, no right to read it.
            WorkerLacksError: It is a path that is not here, or it was not fetched before the
                network was switched off; other hosts may have it.
            RemoteUnavailableError: The server did not answer, whatever was tried, or nothing of
                the files arrives any more.
        """
        if not self.ask(what, lambda: is_on_hub(name)):
            if not Path(name).exists():
                raise WorkerLacksError(f"{what} does not load (there is no such path); mend it")
            return name
        key = (name, with_weights)
        known = self._fetched.get(key)
        if known is None or not known.is_whole():
            known = self._fetched[key] = self._fetch(what, name, with_weights=with_weights)
        return str(known.folder)

    def _fetch(self, what: str, name: str, *, with_weights: bool) -> _Fetched:
        try:
            # the library asks again by itself, for half a minute
            folder = self._patience.ask_aside(
                what,
                lambda: model_folder(name, with_weights=with_weights),
                lambda: model_on_disk(name),
                self._watch,
            )
            return _Fetched(folder, tuple(path.name for path in folder.iterdir()))
        except OSError as error:
            if not is_switched_off():
                raise
            first = str(error).strip().partition("\n")[0]
            raise WorkerLacksError(
                f"{what} is not among what was fetched here, and HF_HUB_OFFLINE keeps it so"
                f" ({first}); fetch it once, or name a path"
            ) from error


@dataclass(frozen=True, slots=True)
class _Fetched:
    """Files of a hub that lie on this host, until somebody cleans the hub's cache."""

    folder: Path
    names: tuple[str, ...]

    def is_whole(self) -> bool:
        """Whether they are all still there; they are links to what may be removed by itself."""
        return all((self.folder / name).exists() for name in self.names)
