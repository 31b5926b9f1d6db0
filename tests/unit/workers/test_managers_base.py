from __future__ import annotations

import os
import pickle
import threading

import pytest

from workers.managers.base import BaseManager, BaseProcessManager
from workers.protocol.errors import ForeignProcessError


def test_each_thread_has_state_of_its_own():
    manager = BaseManager()
    manager.local.value = "main"
    seen = []
    thread = threading.Thread(target=lambda: seen.append(hasattr(manager.local, "value")))
    thread.start()
    thread.join()
    assert seen == [False]
    assert manager.local.value == "main"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_a_fork_is_an_error_that_says_what_to_call():
    manager = BaseProcessManager()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            manager.open()
        except ForeignProcessError as error:
            code = 0 if "ensure_process_initialized" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_process_manager_cannot_be_pickled():
    with pytest.raises(ForeignProcessError, match="cannot be sent to another process"):
        pickle.dumps(BaseProcessManager())
