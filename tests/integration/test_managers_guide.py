"""The managers' guide, typed from top to bottom in one session, and its files run."""

from __future__ import annotations

import os
import subprocess
import sys

from guide import ROOT, blocks_of

from workers import managers

PAGE = ROOT / "ops" / "guides" / "managers.md"


def test_the_managers_guide_runs_as_it_stands_and_leaves_no_manager_out(tmp_path):
    blocks = [block for block in blocks_of(PAGE) if block.language == "python"]
    session = "\n".join(block.text for block in blocks if block.file is None)
    getters = [name for name in managers.__all__ if name.startswith("get_")]
    assert [name for name in getters if f"{name}()" not in session] == []
    (tmp_path / "session.py").write_text(session)
    files = [block for block in blocks if block.file is not None]
    for block in files:
        (tmp_path / block.file).write_text(block.text)
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    for name in ("session.py", *(block.file for block in files)):
        ended = subprocess.run(
            [sys.executable, name],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert ended.returncode == 0, f"{name}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
    assert ended.stdout.count("cpu") + ended.stdout.count("cuda") == 2
