from __future__ import annotations

import re
from pathlib import Path

import redis

from workers.coordination.rights import Role, rights_of

ROOT = Path(__file__).parents[3]

#: Methods of a client that send no command of their name.
OTHERS = {"close", "execute", "pipeline", "register_script"}

#: Those that have the name of no command.
NAMES = {"delete": "del", "scan_iter": "scan"}


def test_whatever_a_client_is_asked_for_in_the_code_is_among_the_stated_commands():
    stated = {name for role in Role for name in rights_of(role).commands}
    stated |= {name.replace("|", "_") for name in stated}
    files = [
        path for folder in ("workers", "orchestrator") for path in (ROOT / folder).rglob("*.py")
    ]
    called = {
        name
        for path in files
        for name in re.findall(r"\b_?(?:client|pipeline)\.([a-z_]+)\(", path.read_text())
        if hasattr(redis.Redis, name) and name not in OTHERS
    }
    assert len(called) > 30
    assert {NAMES.get(name, name) for name in called} <= stated
