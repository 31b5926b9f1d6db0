"""Logs that grow too long are put aside under their writers' hands."""

from __future__ import annotations

from orchestrator.local.log_files import keep_short


def test_a_log_that_grew_too_long_is_put_aside_and_its_writer_goes_on(tmp_path):
    log = tmp_path / "logs" / "worker.log"
    log.parent.mkdir()
    with log.open("ab", buffering=0) as writer:
        for line in (b"first\n", b"second\n", b"third\n"):
            writer.write(line * 10)
            keep_short(tmp_path, most_bytes=50)
        writer.write(b"last\n")
    assert log.read_bytes() == b"last\n"
    assert log.with_name("worker.log.1").read_bytes() == b"third\n" * 10


def test_a_short_log_is_left_and_a_home_without_any_is_no_error(tmp_path):
    keep_short(tmp_path)
    log = tmp_path / "redis" / "server.log"
    log.parent.mkdir()
    log.write_text("x" * 100)
    keep_short(tmp_path, most_bytes=100)
    assert list(log.parent.iterdir()) == [log]
