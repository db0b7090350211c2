from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from streamline import files
from streamline.files import (
    sweep,
    sweep_of,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)


def test_writers_make_folders_and_replace(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    write_text_atomic(target, "old\n")
    write_text_atomic(target, "nü\n")
    assert target.read_bytes() == "nü\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b.bin"
    write_bytes_atomic(target, b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_whole_and_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    write_json_atomic(target, {"b": 1, "a": [None, "ü"]})
    assert json.loads(target.read_text(encoding="utf-8")) == {"b": 1, "a": [None, "ü"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(target, {"a": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json_atomic(target, {"a": {1, 2}})
    assert json.loads(target.read_text(encoding="utf-8"))["b"] == 1


def test_a_written_file_has_the_ordinary_mode(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_text("x", encoding="utf-8")
    write_text_atomic(atomic, "x")
    assert stat.S_IMODE(atomic.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    hexadecimal = "0123456789abcdef" * 2
    mine = [tmp_path / f".a.json.{hexadecimal}.tmp", tmp_path / "b" / f".c.{hexadecimal}.tmp"]
    others = [tmp_path / ".a.tmp", tmp_path / f"a.{hexadecimal}.tmp", tmp_path / "b" / "c"]
    for path in (*mine, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_text("a part")
    made = tmp_path / f".d.{hexadecimal}.tmp"
    made.mkdir()
    others += [made, made / f".e.{hexadecimal}.tmp"]
    others[-1].touch()
    sweep_of(tmp_path / "a.json")
    assert [path.exists() for path in mine] == [False, True]
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == sorted([*others, tmp_path / "b"])
