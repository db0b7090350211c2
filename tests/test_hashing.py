from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamline import hashing
from streamline.hashing import content_key, file_hashes, file_sha256, folder_key


def test_keys_ignore_order_and_tell_near_numbers_apart() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key(0.12) != content_key(0.125)
    assert content_key([1, 2]) != content_key([2, 1])
    assert len(content_key(None)) == 64


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
def test_keys_survive_a_trip_through_json(value: dict[str, float]) -> None:
    assert content_key(json.loads(json.dumps(value))) == content_key(value)


def test_other_content_of_the_same_size_and_times_has_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(hashing, "_SETTLED", -(10**9))
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(b"a" * 100)
    other.write_bytes(b"b" * 100)
    before, now = file_sha256(path), path.stat()
    os.utime(other, ns=(now.st_atime_ns, now.st_mtime_ns))
    shutil.copy2(other, path)  # the same inode, size and time of change
    assert path.stat().st_mtime_ns == now.st_mtime_ns
    assert file_sha256(path) != before
    assert file_sha256(path) == file_sha256(other)


@pytest.mark.parametrize("memo", [b"", b"{", b"[]", b'{"sha256": "no hash"}', b"\xff", None])
def test_a_damaged_memory_of_hashes_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memo: bytes | None
) -> None:
    monkeypatch.setattr(hashing, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(hashing, "_SETTLED", -(10**9))
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"a")
    right = file_sha256(path)
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    other = json.dumps(json.loads(kept.read_bytes()) | {"sha256": "0" * 64})
    kept.write_bytes(other.encode() if memo is None else memo)
    monkeypatch.setattr(hashing, "_known", {})
    assert file_sha256(path) == right


def test_a_cache_that_cannot_be_written_costs_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(hashing, "_SETTLED", -(10**9))
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"a")
    assert len(file_sha256(path)) == 64


def test_a_blob_of_the_hub_is_known_by_its_name(tmp_path: Path) -> None:
    name = "5" * 64
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"large")
    link = tmp_path / "model.safetensors"
    link.symlink_to(tmp_path / "blobs" / name)
    assert file_sha256(link) == name


def test_files_are_hashed_side_by_side_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}" for i in range(20)]
    for path in paths:
        path.write_text(path.name, encoding="utf-8")
    found = file_hashes(paths)
    assert list(found) == paths
    assert len(set(found.values())) == len(paths)


def test_a_large_file_is_hashed_in_pieces_and_remembered_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(hashing, "_SETTLED", -(10**9))
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "_LARGE", 100)
    monkeypatch.setattr(hashing, "_PIECE", 48)
    monkeypatch.setattr(hashing, "_BLOCK", 20)
    small, large, data = tmp_path / "small", tmp_path / "large", bytes(range(121))
    small.write_bytes(data[:100])
    large.write_bytes(data)
    pieces = [hashlib.sha256(data[i : i + 48]).digest() for i in (0, 48, 96)]
    wanted = {
        small: hashlib.sha256(data[:100]).hexdigest(),
        large: hashlib.sha256(b"".join(pieces)).hexdigest(),
    }
    assert file_hashes([small, large]) == wanted
    assert file_sha256(large) == hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(hashing, "_known", {})
    assert file_hashes([large]) == {large: wanted[large]}
    assert len(list((tmp_path / "cache" / "hashes").iterdir())) == 3


def test_a_folder_is_known_by_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    before = folder_key(tmp_path)
    (tmp_path / ".hidden").write_text("1", encoding="utf-8")
    assert folder_key(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_key(tmp_path) != before


def test_a_file_that_was_changed_just_now_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of the clock it could change again and keep its size and times."""
    monkeypatch.setattr(hashing, "_known", {})
    path = tmp_path / "weights"
    path.write_bytes(b"a")
    assert file_sha256(path) == hashlib.sha256(b"a").hexdigest()
    assert hashing._known == {}
    monkeypatch.setattr(hashing, "_SETTLED", -(10**9))
    file_sha256(path)
    assert len(hashing._known) == 1


def test_a_folder_may_be_known_by_some_of_its_files_alone(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("1", encoding="utf-8")
    before = folder_key(tmp_path, (".yaml", ".py"))
    for name in ("results.json", ".venv/lib/a.py", "out/run.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("2", encoding="utf-8")
    assert folder_key(tmp_path, (".yaml", ".py")) == before
    (tmp_path / "deep.py").write_text("2", encoding="utf-8")
    assert folder_key(tmp_path, (".yaml", ".py")) != before
