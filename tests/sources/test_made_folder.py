"""Folders of the cache that came to harm: set aside by name and made again."""

from __future__ import annotations

import errno
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damages import DAMAGES

from streamline.errors import AssetError
from streamline.files import cache_dir
from streamline.sources import made_folder
from streamline.sources.made_folder import atomic_folder
from streamline.sources.wheels import Wheel, extract

PARTS = {"set/rows.arrow": "rows " * 50, "set/state.json": '{"rows": 50}', "other.txt": "text"}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that lies in an empty cache."""
    from streamline.hashing import file_sha256

    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "wheels" / "carried-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in PARTS.items():
            archive.writestr(f"data/{name}", text)
    return Wheel(
        project="carried",
        version="1.0",
        filename=path.name,
        sha256=file_sha256(path),
        licence="none",
    )


def content(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in PARTS}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_file_of_a_wheel_is_extracted_again(wheel, name, damage):
    folder = extract(wheel, "data/")
    assert content(folder) == PARTS
    DAMAGES[damage](folder / name)
    again = extract(wheel, "data/")
    assert (again, content(again)) == (folder, PARTS)
    assert folder.with_name(f"{folder.name}.damaged").is_dir()


def test_a_folder_is_set_aside_as_often_as_it_is_damaged(wheel):
    for damage in DAMAGES.values():
        damage(extract(wheel, "data/") / "other.txt")
    assert content(extract(wheel, "data/")) == PARTS
    folders = sorted(path.name for path in (cache_dir() / "files").glob("*/*"))
    assert folders == ["data", "data.damaged"]


def test_what_killed_processes_left_is_removed(wheel):
    folder = cache_dir() / "files" / f"carried-{wheel.sha256[:12]}"
    left = folder / f".data.{'0' * 32}.tmp"
    others = folder / f".data.more.{'0' * 32}.tmp"
    for path in (left, others):
        path.mkdir(parents=True)
        (path / "half").write_text("a part")
    extract(wheel, "data/")
    assert not left.exists() and others.exists()


def test_files_and_folders_of_the_cache_have_the_ordinary_mode(tmp_path):
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "secret").touch(mode=0o600)
        (folder / "below").mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    made = tmp_path / "made"
    assert modes[made] == modes[made / "below"] == modes[tmp_path / "plain"]
    assert modes[made / "secret"] == modes[tmp_path / "plain" / "file"]


def test_a_cache_that_cannot_be_written_serves_what_is_whole(wheel, monkeypatch):
    folder = extract(wheel, "data/")

    @contextmanager
    def read_only(_: str) -> Iterator[None]:
        raise OSError(errno.EROFS, "Read-only file system")
        yield

    monkeypatch.setattr(made_folder, "cache_lock", read_only)
    assert extract(wheel, "data/") == folder
    DAMAGES["one bit"](folder / "other.txt")
    with pytest.raises(AssetError, match=r"data .*other\.txt is not what was written.*Read-only"):
        extract(wheel, "data/")
