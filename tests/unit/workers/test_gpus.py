"""Which GPUs a process may hand out, on hosts that a scripted NVML tells."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from workers.processes import gpus
from workers.processes.gpus import visible_gpus
from workers.protocol.errors import InvalidInputError

A = "GPU-8f6d4a2e-1111-2222-3333-444455556666"
B = "GPU-8f6d0000-1111-2222-3333-444455556666"
C = "GPU-c0ffee00-1111-2222-3333-444455556666"
M0 = "MIG-aaaa1111-0000-0000-0000-000000000000"
M1 = "MIG-bbbb2222-0000-0000-0000-000000000000"


@pytest.fixture
def host(monkeypatch):
    """Makes this a host with some GPUs; each its UUID, and its MIG instances if it can have any."""
    path = Path(__file__).parents[2] / "fake_nvml" / "pynvml.py"
    spec = importlib.util.spec_from_file_location("fake_pynvml", path)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    monkeypatch.setattr(gpus, "pynvml", fake)

    def make(*boards):
        monkeypatch.setenv("FAKE_NVML", json.dumps(boards))

    return make


def seen(given):
    environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    return [(gpu.entry, gpu.uuid) for gpu in visible_gpus(environment)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [("0", A), ("1", B), ("2", C)]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("2", [("2", C)]),
        (" 2 , 0 ", [("2", C), ("0", A)]),
        ("1,-1,0", [("1", B)]),
        ("1,1", [("1", B)]),
        (f"1,{B}", [("1", B)]),
        (B, [(B, B)]),
        (C.upper().replace("GPU", "GPU"), [(C, C)]),
        ("GPU-c", [(C, C)]),
        ("GPU-8f6d4", [(A, A)]),
        ("GPU-c0ffee,0", [(C, C), ("0", A)]),
        ("0,", [("0", A)]),
        ("NoDevFiles", []),
    ],
)
def test_what_the_variable_was_set_to_is_what_there_is_to_hand_out(host, given, expected):
    host([A, None], [B, []], [C, None])
    assert seen(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [("0", A), (M0, M0), (M1, M1)]),
        ("1", [(M0, M0), (M1, M1)]),
        (B, [(M0, M0), (M1, M1)]),
        (M1, [(M1, M1)]),
        ("MIG-bbbb", [(M1, M1)]),
        (f"{M1},0,{M1}", [(M1, M1), ("0", A)]),
        (f"MIG-{B}/1/0", [(f"MIG-{B}/1/0", f"MIG-{B}/1/0")]),
    ],
)
def test_a_partitioned_gpu_is_its_instances(host, given, expected):
    host([A, None], [B, [M0, M1]])
    assert seen(given) == expected


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("3", "'3': no such index"),
        ("0,GPU-8f6d", "'GPU-8f6d': it stands for several"),
        ("GPU-dead", "'GPU-dead': no such UUID"),
        ("MIG-dead", "no such UUID"),
        ("cuda:0", "'cuda:0': no such UUID"),
        ("G", "stands for several"),
        ("0;1", "no such UUID"),
    ],
)
def test_what_this_host_does_not_have_is_named_with_what_it_has(host, given, why):
    host([A, None], [B, None], [C, None])
    with pytest.raises(InvalidInputError, match=f"{why}.*0 = {A}.*unset it for all"):
        seen(given)


def test_without_nvml_the_variable_is_taken_at_its_word(host):
    host()
    assert seen(None) == []
    assert seen("0,GPU-1") == [("0", "0"), ("GPU-1", "GPU-1")]


def test_a_gpu_that_fell_off_its_bus_is_left_out_and_the_others_are_named_by_uuid(host):
    host([A, None], 15, [C, None])
    assert seen(None) == [(A, A), (C, C)], "indices may have moved on"
    assert seen("1,2") == [(C, C)]
    assert seen(C) == [(C, C)]
    assert seen("-1,1") == seen("") == []
    with pytest.raises(InvalidInputError, match="names GPUs alone that do not answer"):
        seen("1")
    with pytest.raises(InvalidInputError, match="no such index"):
        seen("3")


@pytest.mark.parametrize("given", [None, "0"])
def test_gpus_that_do_not_answer_are_no_host_without_gpus(host, monkeypatch, given):
    host(15, 999)
    with pytest.raises(InvalidInputError, match="no GPU of this host answers: GPU 0"):
        seen(given)
    monkeypatch.setenv("FAKE_NVML", "18")  # as after an update of the driver
    with pytest.raises(InvalidInputError, match="driver does not work here.*empty to run on the"):
        seen(given)
    assert seen("") == []
    monkeypatch.setenv("FAKE_NVML", "9")
    assert seen(None) == [], "there is a library, and no driver that is loaded"
