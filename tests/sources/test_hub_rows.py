"""Every reader of a data set on the hub tries again what may pass, and says what will not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import pytest

from streamline.errors import AssetError
from streamline.evaluation.tasks.running_text import read_text
from streamline.evaluation.tasks.sources import QuestionSource
from streamline.sources.hub import failures
from streamline.sources.instructions import load_examples
from streamline.sources.texts import load_texts
from streamline.testing.models import tiny_tokenizer


def _running(name: str) -> Any:
    found = QuestionSource(
        task=name,
        questions=name,
        subject=None,
        kind="hub",
        location="hub",
        split="test",
        revision="main",
    )
    return read_text(found).pieces


READERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "text": ("Salesforce/wikitext", lambda: load_texts("wikitext2", seed=None)),
    "instructions": (
        "yahma/alpaca-cleaned",
        lambda: load_examples("alpaca", [1], tokenizer=tiny_tokenizer(), seed=0),
    ),
    "wikitext2": ("Salesforce/wikitext", lambda: _running("wikitext2")),
    "c4": ("allenai/c4", lambda: _running("c4")),
}


class _Hub:
    """In place of ``datasets.load_dataset``: fails with each of the errors, then gives rows."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, repository: str, config: str | None = None, **options: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        row = {"text": "words", "instruction": "Add 2 and 3.", "output": "5"}
        return datasets.Dataset.from_list([row])


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "WAITS", (0.0, 0.0))


@pytest.mark.parametrize("reader", READERS)
def test_a_lost_connection_is_tried_again(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(ConnectionError("reset"), TimeoutError("late"))
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert READERS[reader][1]()
    assert hub.errors == []


@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_be_read_is_one_message(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(RuntimeError("no such script\nand more"), ConnectionError("never asked"))
    monkeypatch.setattr(datasets, "load_dataset", hub)
    name, read = READERS[reader]
    with pytest.raises(AssetError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"Data set {name}")
    assert "could not be read from the hub: no such script. Try" in message
    assert "\n" not in message
    assert len(hub.errors) == 1
