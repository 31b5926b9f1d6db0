from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_server_with_tls_is_linked_or_its_lack_told_in_one_line_and_never_an_error(tmp_path):
    programs, environment = tmp_path / "programs", tmp_path / "environment"
    for folder in (programs, environment / "bin"):
        folder.mkdir(parents=True)
    for name in ("id", "ln", "timeout"):  # and neither apt-get nor a server
        (programs / name).symlink_to(str(shutil.which(name)))
    finished = subprocess.run(
        [
            str(shutil.which("bash")),
            "-euo",
            "pipefail",
            "-c",
            f"source ops/environment; add_tls_server {environment}",
        ],
        env={"PATH": str(programs)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    if Path("/usr/bin/redis-check-rdb").exists():
        server = environment / "bin" / "redis-server"
        shown = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
        assert shown.stdout.startswith("Redis server v=")
    else:
        assert finished.stderr.count("\n") == 1
        assert "the tests of TLS are skipped" in finished.stderr
