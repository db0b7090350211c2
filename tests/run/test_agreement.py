"""A span that several texts agree on, as a cell of a run: its texts, its key, its cost."""

from __future__ import annotations

from typing import Any

import pytest

from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.methods.spans import ranked_spans
from streamline.run.pipeline import run
from streamline.sources import texts
from streamline.sources.batches import TokenBatches, domain_batches
from streamline.sources.models import load_model
from streamline.sources.packaged import DOMAINS, Passage

AGREED = "llm-streamline-none+criterion=agreement"


@pytest.fixture(autouse=True)
def passages(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Passage(f"{domain} has {i * i} of {i % 9} " * 9, domain, f"{domain} {i}")
        for domain in DOMAINS.values()
        for i in range(30)
    ]
    monkeypatch.setattr(texts, "packaged_passages", lambda: rows)


def test_the_span_is_that_of_all_domains_and_the_record_names_them(
    tmp_path: Any, config: Any, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "one", methods=f"llm-streamline-none,{AGREED}")
    _, plain, found = run(settings)
    assert (found.status, found.reason) == ("ok", None)
    model, tokenizer = load_model(str(place / "model"), device="cpu")
    decoder, batches = Decoder(model), TokenBatches(tokenizer)
    own = batches.tokens(settings.calibration.texts, n_samples=4, length=16, seed=0)
    parts = domain_batches(batches, n_samples=4, length=16, seed=0)
    assert {tuple(part.shape) for part in parts.values()} == {(4, 16)}
    others = {name: measure(decoder, part) for name, part in parts.items()}
    n = len(found.plan.removed_layers)
    ranked = ranked_spans(decoder, measure(decoder, own).beside(others), own, n, "agreement")
    assert found.plan.removed_layers == list(ranked[0].span.layers)
    assert found.notes["spans"][0]["ranks"] == list(ranked[0].ranks)
    named = [text["name"] for text in found.texts if text["use"] == "agreement"]
    assert named == list(DOMAINS)
    assert not [text for text in plain.texts if text["use"] == "agreement"]
    assert found.cost.calibrate_tokens == 7 * plain.cost.calibrate_tokens

    again = run(config(tmp_path / "again", methods=f"llm-streamline-none,{AGREED}"))
    assert [one.key for one in again[1:]] == [plain.key, found.key]
    monkeypatch.setattr("streamline.api.named.DOMAINS", {"packaged:books": "books"})
    other = run(config(tmp_path / "other", methods=f"llm-streamline-none,{AGREED}"))
    assert other[1].key == plain.key and other[2].key != found.key
