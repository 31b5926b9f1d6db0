from __future__ import annotations

from collections.abc import Iterator

import pytest

from workers.containers import Container
from workers.managers import MANAGERS
from workers.processes.registry import ProcessRecord
from workers.settings import Settings


@pytest.fixture
def container(tmp_path, monkeypatch) -> Iterator[Container]:
    """All managers, with a home of their own."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache")
    with Container(MANAGERS, [settings, ProcessRecord()]) as opened:
        yield opened
