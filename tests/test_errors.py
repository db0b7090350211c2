from __future__ import annotations

import pytest

from streamline import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "StreamlineError"])
def test_every_error_is_one_of_ours_and_shows_its_text(name: str) -> None:
    error = getattr(errors, name)("what was given")
    assert isinstance(error, errors.StreamlineError)
    assert str(error) == "what was given"


def test_errors_can_be_caught_as_the_built_in_kind() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.PlanError, ValueError)
    assert issubclass(errors.UnknownNameError, LookupError)
    assert not issubclass(errors.UnknownNameError, KeyError)
