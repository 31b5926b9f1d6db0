from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers.containers import Container, plan
from workers.protocol.errors import ContainerError, ForeignProcessError, NotInitializedError


class Base:
    log: list[str]

    def __enter__(self):
        self.log.append(f"open {type(self).__name__}")
        return self

    def __exit__(self, *_):
        self.log.append(f"close {type(self).__name__}")


class First(Base):
    def __init__(self, log: list) -> None:
        self.log = log


class Second(Base):
    def __init__(self, log: list, first: First) -> None:
        self.log = log
        self.first = first


class Third(Base):
    def __init__(self, log: list, second: Second, first: First) -> None:
        self.log = log
        self.second = second


class Needy:
    def __init__(self, third: Third) -> None: ...


class Egg:
    def __init__(self, hen: Hen) -> None: ...


class Hen:
    def __init__(self, egg: Egg) -> None: ...


def test_managers_open_after_what_they_need_and_close_in_reverse():
    log: list[str] = []
    with Container([Third, Second, First], [log]) as container:
        assert container.get(Third).second is container.get(Second)
        assert container.get(Second).first is container.get(First)
    assert log == [
        "open First",
        "open Second",
        "open Third",
        "close Third",
        "close Second",
        "close First",
    ]


def test_a_need_that_nobody_provides_is_found_before_anything_is_built():
    with pytest.raises(ContainerError, match=r"Needy\(third: Third\): nothing provides Third"):
        Container([Needy])


def test_a_circle_of_needs_is_named():
    with pytest.raises(ContainerError, match="circle: .*Egg.*Hen|circle: .*Hen.*Egg"):
        plan([Egg, Hen])


def test_when_one_fails_to_open_those_before_it_are_closed():
    log: list[str] = []

    class Broken:
        def __init__(self, second: Second) -> None:
            raise RuntimeError("no disk")

    container = Container([First, Second, Broken], [log])
    with pytest.raises(RuntimeError, match="no disk"):
        container.open()
    assert log[-2:] == ["close Second", "close First"]
    with pytest.raises(NotInitializedError, match="ensure_process_initialized"):
        container.get(First)


def test_when_one_fails_to_close_the_others_are_closed_all_the_same():
    log: list[str] = []

    class Stuck(Base):
        def __init__(self, log: list, second: Second) -> None:
            self.log = log

        def __exit__(self, *_):
            raise RuntimeError("stuck")

    container = Container([First, Second, Stuck], [log]).open()
    with pytest.raises(RuntimeError, match="stuck"):
        container.close()
    assert log[-2:] == ["close Second", "close First"]
    container.close()


def test_opened_as_asked_each_opens_when_it_is_asked_for_after_what_it_needs_and_once():
    log: list[str] = []
    container = Container([Third, Second, First], [log]).open_as_asked()
    assert log == []
    assert container.provides(Third)
    assert container.named("Second") is container.get(Second)
    assert log == ["open First", "open Second"]
    container.open_all()
    assert log[2:] == ["open Third"]
    container.close()
    assert log[3:] == ["close Third", "close Second", "close First"]
    with pytest.raises(NotInitializedError):
        container.get(First)


def test_one_that_fails_when_it_is_asked_for_is_tried_again():
    log: list[str] = []
    troubles = ["no disk"]

    class Broken(Base):
        def __init__(self, log: list, first: First) -> None:
            self.log = log
            if troubles:
                raise RuntimeError(troubles.pop())

    with Container([Broken, First], [log]).open_as_asked() as container:
        with pytest.raises(RuntimeError, match="no disk"):
            container.get(Broken)
        assert container.get(Broken) is container.get(Broken)
    assert log == ["open First", "open Broken", "close Broken", "close First"]


def test_threads_that_ask_at_once_get_the_same_one():
    log: list[str] = []
    meeting = threading.Barrier(8)

    def ask(_):
        meeting.wait()
        return container.get(Third)

    container = Container([Third, Second, First], [log]).open_as_asked()
    with ThreadPoolExecutor(8) as pool:
        found = set(map(id, pool.map(ask, range(8))))
    assert len(found) == 1
    assert log == ["open First", "open Second", "open Third"]
    container.close()


def test_what_it_does_not_hold_is_an_error_that_lists_what_it_holds():
    with (
        Container([First], [[]]) as container,
        pytest.raises(ContainerError, match="no Second in this container; it has First"),
    ):
        container.get(Second)


def test_it_opens_once():
    container = Container([First], [[]]).open()
    with pytest.raises(ContainerError, match="opened before"):
        container.open()
    container.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_neither_use_it_nor_run_the_parents_teardown():
    log: list[str] = []
    with Container([First], [log]) as container:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                container.get(First)
            except ForeignProcessError as error:
                container.close()
                is_named = "ensure_process_initialized" in str(error)
                code = 0 if is_named and log == ["open First"] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert container.get(First).log == ["open First"]
