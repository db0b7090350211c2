from __future__ import annotations

import pytest

from streamline import errors


@pytest.mark.parametrize(
    "name", sorted({*errors.__all__} - {"StreamlineError", "reason", "unknown_name"})
)
def test_every_error_is_one_of_ours_and_shows_its_text(name: str) -> None:
    error = getattr(errors, name)("what was given")
    assert isinstance(error, errors.StreamlineError)
    assert str(error) == "what was given"


def test_errors_can_be_caught_as_the_built_in_kind() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.PlanError, ValueError)
    assert issubclass(errors.UnknownNameError, LookupError)
    assert not issubclass(errors.UnknownNameError, KeyError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.ConfigError("what was given"), "what was given"),
        (RuntimeError("no kernel"), "RuntimeError: no kernel"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (OSError(28, "No space left on device", "out/x.bin"), "No space left on device: out/x.bin"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_any_error_has_a_reason_in_words(error: Exception, words: str) -> None:
    assert errors.reason(error) == words
