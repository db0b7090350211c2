"""Each text and mixture keeps what it promises: domains by tokens, no document too much."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from streamline.sources import texts
from streamline.sources.batches import TokenBatches
from streamline.sources.mixing import MIXTURES
from streamline.sources.packaged import DOMAINS, Passage
from streamline.testing.models import tiny_tokenizer

N, LENGTH = 50, 200  # a tenth of the released code's 50 x 2,048

#: Domain -> its letter here, its fraction of the rows, tokens of a document: a tenth of real ones.
PAJAMA = {
    "RedPajamaC4": ("C", 0.27, 62),
    "RedPajamaCommonCrawl": ("D", 0.32, 186),
    "RedPajamaGithub": ("G", 0.13, 62),
    "RedPajamaStackExchange": ("S", 0.15, 62),
    "RedPajamaWikipedia": ("W", 0.11, 62),
    "RedPajamaArXiv": ("A", 0.012, 1_240),
    "RedPajamaBook": ("B", 0.008, 12_400),
}
PACKAGED = {
    "books": ("B", 0.61, 14),
    "wikipedia": ("W", 0.15, 28),
    "arxiv": ("A", 0.07, 560),
    "sports-history": ("S", 0.14, 42),
    "news": ("N", 0.02, 56),
    "stories": ("T", 0.01, 42),
}


def written(number: int, letter: str, size: int) -> str:
    """A text of about so many characters, which are tokens here; every piece of it says whose."""
    return f"{number:06d}{letter}" * max(1, round(size / 7))


def rows(domains: dict[str, Any], n: int) -> Iterator[tuple[str, str]]:
    """Domains and texts; a document has from a half to twice its domain's length."""
    draw = random.Random(0)
    names, fractions = list(domains), [fraction for _, fraction, _ in domains.values()]
    for number, name in enumerate(draw.choices(names, fractions, k=n)):
        letter, _, size = domains[name]
        yield name, written(number, letter, size * draw.choice((0.5, 0.75, 1.75)))


class Stream(list[dict[str, Any]]):
    """What a streamed data set is to this package: rows that can be shuffled."""

    def shuffle(self, *, seed: int, buffer_size: int) -> Stream:
        return Stream(random.Random(seed).sample(self, len(self)))


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every source, with as many documents as a test reads."""
    pajama = [{"text": t, "meta": {"redpajama_set_name": d}} for d, t in rows(PAJAMA, 9_000)]
    articles = list(rows({"wikitext2": ("X", 1.0, 380)}, 600))
    lines = [line for _, t in articles for line in ("", f" = {t[:7]} = \n", "", f" {t} \n")]
    pages = [{"text": t} for _, t in rows({"c4": ("C", 1.0, 50)}, 2_000)]
    tables = {
        "DKYoon/SlimPajama-6B": pajama,
        "Salesforce/wikitext": [{"text": line} for line in lines],
        "allenai/c4": pages,
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *_, **__: Stream(tables[name]))
    passages = [Passage(t, d, t) for d, t in rows(PACKAGED, 8_000)]
    monkeypatch.setattr(texts, "packaged_passages", lambda: passages)
    mine = rows({"mine": ("M", 0.99, 100), "tome": ("L", 0.01, 4_000)}, 1_500)
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"text": t, "domain": d}) for d, t in mine))
    monkeypatch.chdir(tmp_path)


def expected(spec: str) -> dict[str, float]:
    """Letter -> the fraction of all tokens that a text promises."""
    if spec in MIXTURES:
        fractions, by = MIXTURES[spec]
        domains = PACKAGED if spec == "packaged" else PAJAMA
        size = {d: fractions[d] * (1 if by == "tokens" else domains[d][2]) for d in fractions}
        return {domains[d][0]: size[d] / sum(size.values()) for d in size}
    if spec in DOMAINS:
        return {PACKAGED[DOMAINS[spec]][0]: 1.0}
    return {"wikitext2": {"X": 1.0}, "c4": {"C": 1.0}}.get(spec) or {"M": 0.71, "L": 0.29}


SHORT = ("packaged:news", "packaged:stories")  # fewer tokens here than are drawn


@pytest.mark.parametrize("spec", [*(t for t in texts.TEXTS if t not in SHORT), "mine.jsonl"])
def test_a_draw_is_as_the_whole_text_is(spec: str):
    tokenizer = tiny_tokenizer()
    letters: Counter[str] = Counter()
    for seed in range(3):
        batches = TokenBatches(tokenizer)
        drawn = batches.tokens(spec, n_samples=N, length=LENGTH, seed=seed)
        seen = re.findall(r"(\d{6})([A-Z])", "|".join(tokenizer.batch_decode(drawn)))
        letters += Counter(letter for _, letter in seen)
        numbers = Counter(number for number, _ in seen)
        largest = max(numbers.values()) / len(seen)
        assert largest <= 0.15 and len(numbers) >= N / 2
        (facts,) = batches.texts()
        assert facts["tokens"] == drawn.numel() == N * LENGTH
        assert facts["documents"] == pytest.approx(len(numbers), rel=0.1)
        assert facts["largest"] == pytest.approx(largest, rel=0.1)
        assert facts["pool"] >= facts["documents"]
        assert sum(facts["domains"].values()) == pytest.approx(1.0)
    promised = expected(spec)
    found = {letter: count / letters.total() for letter, count in letters.items()}
    for letter, fraction in promised.items():
        assert found.get(letter, 0.0) == pytest.approx(fraction, abs=0.09), (found, promised)
