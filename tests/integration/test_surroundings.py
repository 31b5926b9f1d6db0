"""What an objective changed in its process, and what becomes of it after the trial."""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import psutil
import pytest
import torch

from workers.managers.surroundings import Surroundings


def state_of_this_process() -> tuple[Any, ...]:
    """What an objective may change, as far as it can be compared."""
    return (
        Path.cwd(), dict(os.environ), list(sys.argv), list(sys.path), sys.stdout, sys.stderr,
        signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM), torch.get_num_threads(),
        torch.get_default_dtype(), torch.is_grad_enabled(), sys.getrecursionlimit(),
        list(logging.getLogger().handlers), logging.getLogger().level, list(warnings.filters),
        random.getstate(), torch.initial_seed(), torch.get_float32_matmul_precision(),
    )  # fmt: skip


def test_the_next_trial_finds_the_process_as_it_was(tmp_path):  # noqa: PLR0915 - a list
    before = state_of_this_process()
    numpy, errors = np.random.get_state()[1].tolist(), np.geterr()
    temporary, start_method = tempfile.tempdir, multiprocessing.get_start_method(allow_none=True)
    surroundings = Surroundings()
    os.chdir(tmp_path)
    os.environ["CHANGED"] = "1"
    os.environ.pop("PATH")
    sys.argv[:] = ["train.py", "--lr", "1"]
    sys.path.insert(0, str(tmp_path))
    sys.stdout = sys.stderr
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(60)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    sys.setrecursionlimit(5000)
    logging.basicConfig(level=logging.DEBUG, force=True)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    os.umask(0o777)
    np.seterr(all="raise")
    tempfile.tempdir = "/nowhere"
    socket.setdefaulttimeout(3.0)
    multiprocessing.set_start_method("spawn", force=True)
    named = logging.getLogger("of the objective")
    named.addHandler(logging.NullHandler())
    named.setLevel(logging.DEBUG)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert surroundings.restore() == []
    loop.close()
    assert not psutil.pid_exists(child.pid)
    child.wait()
    assert state_of_this_process() == before
    assert np.random.get_state()[1].tolist() == numpy
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert logging.root.manager.disable == 0
    assert (named.handlers, named.level) == ([], logging.NOTSET)
    assert tempfile.tempdir == temporary
    assert socket.getdefaulttimeout() is None
    assert multiprocessing.get_start_method(allow_none=True) == start_method
    os.umask(mask := os.umask(0))
    assert mask != 0o777
    assert np.geterr() == errors


#: what an objective does, and how its effect is read
CHANGES = {
    "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})": "os.sched_getaffinity(0)",
    "limit = resource.RLIMIT_NOFILE; "
    "resource.setrlimit(limit, (512, resource.getrlimit(limit)[1]))":
        "resource.getrlimit(resource.RLIMIT_NOFILE)",
    "os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()": "time.localtime(0).tm_hour",
    "locale.setlocale(locale.LC_ALL, 'C')": "locale.setlocale(locale.LC_ALL)",
    "sys.set_int_max_str_digits(9999)": "sys.get_int_max_str_digits()",
    "decimal.getcontext().prec = trial": "decimal.getcontext().prec",
    "decimal.getcontext().traps[decimal.Inexact] = True":
        "decimal.getcontext().traps[decimal.Inexact]",
    "gc.set_threshold(trial, 5, 5)": "gc.get_threshold()",
    "os.umask(trial)": "(os.umask(mask := os.umask(0)), mask)[1]",
    "os.environ['CHANGED'] = str(trial)": "os.environ.get('CHANGED')",
    "sys.argv.append(trial)": "list(sys.argv)",
    "sys.path.append(str(trial))": "list(sys.path)",
    "warnings.simplefilter('error', category=[UserWarning, BytesWarning][trial % 2])":
        "list(warnings.filters)",
    "logging.getLogger().addHandler(logging.NullHandler())": "list(logging.getLogger().handlers)",
    "logging.getLogger('optuna').setLevel(trial)": "logging.getLogger('optuna').level",
    "numpy.seterr(over='raise')": "numpy.geterr()",
    "numpy.random.random(trial)": "numpy.random.get_state()[1:3][1]",
    "random.random()": "random.getstate()",
    "torch.rand(trial)": "torch.get_rng_state().tolist()",
    "signal.signal(signal.SIGUSR1, lambda *_: trial)": "signal.getsignal(signal.SIGUSR1)",
    "gc.disable()": "gc.isenabled()",
    "sys.setprofile(lambda *_: None)": "sys.getprofile()",
    "numpy.set_printoptions(precision=2)": "numpy.get_printoptions()['precision']",
    "torch.multiprocessing.set_sharing_strategy('file_system')":
        "torch.multiprocessing.get_sharing_strategy()",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "torch.get_float32_matmul_precision()",
    "torch.backends.cudnn.deterministic = True": "torch.backends.cudnn.deterministic",
    # a training may have been here before
    "conv = torch.backends.cudnn.conv; "
    "conv.fp32_precision = 'ieee' if conv.fp32_precision == 'tf32' else 'tf32'":
        "torch.backends.cudnn.conv.fp32_precision",
    "torch.backends.mkldnn.rnn.fp32_precision = 'tf32'":
        "torch.backends.mkldnn.rnn.fp32_precision",
    "torch.backends.cuda.matmul.allow_fp16_accumulation = True":
        "torch.backends.cuda.matmul.allow_fp16_accumulation",
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False":
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "torch.backends.cuda.enable_flash_sdp(False)": "torch.backends.cuda.flash_sdp_enabled()",
    "torch.set_flush_denormal(True)":
        "bool(torch.tensor(1e-310, dtype=torch.float64) * 1 == 0)",
    "torch.set_default_device('meta')": "torch.empty(1).device",
    "torch.autograd.set_detect_anomaly(True)": "torch.is_anomaly_enabled()",
    "torch.distributed.init_process_group("
    "'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)":
        "torch.distributed.is_initialized()",
    "optuna.logging.set_verbosity(optuna.logging.ERROR)": "optuna.logging.get_verbosity()",
}  # fmt: skip


def test_what_libraries_and_the_kernel_keep_for_a_process_is_put_back_after_each_trial():
    names = (
        "decimal gc locale logging numpy optuna os random resource signal sys time torch warnings"
    )
    known = {name: importlib.import_module(name) for name in names.split()}
    before = {change: eval(read, known) for change, read in CHANGES.items()}
    surroundings = Surroundings()
    for trial in range(1, 4):
        for change, read in CHANGES.items():
            exec(change, known | {"trial": trial})
            if "matmul" not in change:  # torch refuses to read it now
                assert eval(read, known) != before[change], f"{change} has an effect"
        assert surroundings.restore() == []
        found = {change: eval(read, known) for change, read in CHANGES.items()}
        assert found == before, f"after trial {trial}"


def test_the_next_trial_may_set_accelerate_up_otherwise():
    surroundings = Surroundings()
    accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    assert surroundings.restore() == []
    second = accelerate.Accelerator(cpu=True, mixed_precision="no")
    assert second.mixed_precision == "no"
    assert second.gradient_accumulation_steps == 1
    assert Surroundings().restore() == []


SPOILS = """
import os, resource, sys, torch
from torch import set_num_interop_threads as set_it
from workers.managers.surroundings import Surroundings
surroundings = Surroundings()
with surroundings.watched():
    {}
print(*surroundings.restore(), sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        (
            ["torch.set_num_interop_threads(torch.get_num_interop_threads())"],
            ["torch.set_num_interop_threads was called"],
        ),
        (
            [
                "set_it(torch.get_num_interop_threads() + 1)",
                "sys.stdout.close()",
                "os.nice(1)",
                "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))",
                "os.setuid(65534)",
            ],
            [
                "torch's inter-op threads could not be put back (RuntimeError",
                "standard output could not be put back (ValueError: <stdout> is closed)",
                "the priority could not be put back (PermissionError",
                "limits of resources could not be put back",
            ],
        ),
    ],
)
def test_what_cannot_be_put_back_is_named(changes, reasons):
    if "os.setuid(65534)" in changes and os.getuid() != 0:
        pytest.skip("root alone can become somebody else")
    source = SPOILS.format("\n    ".join(changes))
    finished = subprocess.run(
        [sys.executable, "-c", source], stderr=subprocess.PIPE, text=True, check=False
    )
    found = finished.stderr.splitlines()
    assert len(found) == len(reasons), found
    for reason in reasons:
        assert any(line.startswith(reason) for line in found), found


def test_what_was_not_changed_costs_nothing_to_put_back():
    source = """
import sys
from workers.managers.surroundings import Surroundings
assert Surroundings().restore() == []
sys.exit("torch._inductor" in sys.modules)  # a compiler, which takes seconds to import
"""
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


def test_each_trial_leaves_the_process_as_the_first_one_found_it(tmp_path):
    before = state_of_this_process()
    surroundings = Surroundings()
    for _ in range(3):
        with surroundings.watched():
            os.chdir(tmp_path)
            torch.set_default_dtype(torch.float64)
            logging.getLogger().setLevel(logging.DEBUG)
            logging.disable(logging.CRITICAL)
            random.seed(0)
            torch.manual_seed(0)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        os.environ["CHANGED_BETWEEN"] = "1"
        assert surroundings.restore() == []
        assert state_of_this_process() == before
        assert not psutil.pid_exists(child.pid)
        child.wait()
    assert surroundings.restore() == [], "nor does a second look change anything"


def test_a_thread_of_one_trial_is_not_the_next_ones():
    surroundings, ended = Surroundings(), threading.Event()
    with surroundings.watched():
        lasting = threading.Thread(target=ended.wait, args=[30], name="lasts", daemon=True)
        lasting.start()
    assert surroundings.restore() == ["thread 'lasts' goes on"]
    with surroundings.watched():
        pass
    assert surroundings.restore() == []
    ended.set()
    lasting.join()


def test_a_thread_that_ends_is_waited_for_and_one_that_goes_on_ends_the_process():
    surroundings, ended = Surroundings(), threading.Event()
    with surroundings.watched():
        threading.Thread(target=ended.wait, name="endless", args=[30]).start()
        threading.Thread(target=ended.wait, name="short", args=[0.1]).start()
    try:
        assert surroundings.restore() == ["thread 'endless' goes on"]
    finally:
        ended.set()


def test_a_daemon_that_an_objective_started_is_its_own_whatever_it_runs():
    surroundings, ended = Surroundings(), threading.Event()
    with surroundings.watched():
        threading.Thread(target=ended.wait, args=[30], name="waits", daemon=True).start()
        timer = threading.Timer(30, print)
        timer.daemon, timer.name = True, "timer"
        timer.start()
    try:
        goes_on = ["thread 'timer' goes on", "thread 'waits' goes on"]
        assert sorted(surroundings.restore()) == goes_on
    finally:
        ended.set()
        timer.cancel()


def test_threads_of_libraries_and_of_other_threads_are_no_objectives(tmp_path):
    from tqdm import tqdm

    surroundings, ended = Surroundings(), threading.Event()
    with surroundings.watched():
        with (tmp_path / "bar").open("w") as bar:
            list(tqdm(range(3), file=bar))
        stranger = threading.Thread(target=ended.wait, args=[30])
        starter = threading.Thread(target=stranger.start)
    starter.start()
    starter.join()
    try:
        assert surroundings.restore() == []
    finally:
        ended.set()
        stranger.join()
