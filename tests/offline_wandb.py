"""Reads W&B's offline files, in a process of its own: importing its protocol warns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

READER = """
import json, struct, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2

BLOCK = 32768  # W&B's file is a LevelDB log behind a header of seven bytes

def payloads(data):
    position, parts = 7, []
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0 or position + 7 + length > len(data):
            return  # its writer was killed
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []

def key(item):
    return item.key or item.nested_key[0]

found = {}
for path in sorted(Path(sys.argv[1]).glob("wandb/offline-run-*/run-*.wandb")):
    records = [wandb_internal_pb2.Record.FromString(each) for each in payloads(path.read_bytes())]
    run = next((record.run for record in records if record.HasField("run")), None)
    if run is None:
        continue  # killed before it began
    updates = [run.config, *(record.config for record in records if record.HasField("config"))]
    config = {key(item): json.loads(item.value_json) for each in updates for item in each.update}
    rows = [
        {key(item): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    exits = [record.exit.exit_code for record in records if record.HasField("exit")]
    before = found.get(run.run_id, {"exits": [], "accuracy": []})
    found[run.run_id] = {
        "group": run.run_group,
        "exits": before["exits"] + exits,
        **{"project": run.project, "entity": run.entity, "tags": list(run.tags)},
        "late": config.get("late", before.get("late")),
        "attempt": config.get("attempt", before.get("attempt")),
        "accuracy": before["accuracy"] + [row["accuracy"] for row in rows if "accuracy" in row],
    }
print(json.dumps(found))
"""


def offline_runs(home: Path) -> dict[str, dict[str, Any]]:
    """All runs under a home: group, exit codes, last attempt, logged accuracies."""
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, str(home)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found: dict[str, dict[str, Any]] = json.loads(finished.stdout)
    return found
