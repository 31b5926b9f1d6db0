"""Two hosts that share no disk, a store between them, and the first one lost."""

from __future__ import annotations

import shutil
import signal

import pytest
import s3fs
from fault_fleet import signal_all, tree_of
from s3_server import CREDENTIALS, S3Server
from waiting import wait_until

from workers.disk.object_store import ObjectStore


def test_a_trial_of_a_lost_host_goes_on_elsewhere_from_the_store(fleet):
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("fleet")
        url = "s3://fleet/here"
        store = ObjectStore(url)
        first, second = fleet.folder / "first", fleet.folder / "second"
        fleet.order("wait for go", step=8)
        fleet.submit()
        fleet.serve()
        lost = fleet.worker(FLEET_HOME=str(first), FLEET_STORE=url)
        fleet.await_note("wait for go")
        wait_until(lambda: store.keys("checkpoints/")[-1:], "a checkpoint is in the store")
        wait_until(
            lambda: store.keys("checkpoints/")[-1].endswith("step-000000006"), "so is the last one"
        )
        signal_all(tree_of(lost.pid), signal.SIGKILL)
        wait_until(lambda: lost.poll() is not None, "the worker is gone")
        shutil.rmtree(first)  # and its disk
        fleet.worker(FLEET_HOME=str(second), FLEET_STORE=url)
        fleet.await_over(90)
        fleet.assert_sound(attempts={0: 2})
        assert fleet.await_note("starts", attempt=2).step == 6
        wait_until(lambda: store.keys("checkpoints/") == [], "none of an ended trial is left")
    for log in fleet.settings.home.glob("logs/*.log"):
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in log.read_text(errors="replace")
