from __future__ import annotations

import pytest

from orchestrator.storage.opening import StudyStorage, open_reader
from workers.protocol.errors import InvalidInputError


@pytest.mark.parametrize("open_it", [StudyStorage.open, open_reader])
@pytest.mark.parametrize("user", ["me:se@cret", "m@me:secret", "me:secret@"])
def test_an_address_whose_password_has_an_at_sign_is_refused_without_any_of_it(open_it, user):
    """The driver took what follows the first one for the host, and named it."""
    with pytest.raises(InvalidInputError, match="write that as %40") as refused:
        open_it(f"postgresql://{user}@db.example/optuna")
    assert "cret" not in str(refused.value)
