"""A checkpoint's folder is its own: nobody else's is removed, replaced or written to."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from streamline.checkpoints.checkpoint import save
from streamline.checkpoints.folder import CLAIM, appearing, target_folder
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.testing.models import tiny_model

NUMBER = "0123456789abcdef" * 2


def foreign(folder: Path) -> Path:
    """A folder with somebody's file."""
    folder.mkdir()
    (folder / "mine").write_text("kept")
    return folder


@pytest.mark.parametrize(
    ("target", "other"),
    [
        ("m", ".m.v2.cafe.tmp"),
        ("m", ".m.0123.tmp"),
        ("m", f".m.{NUMBER}.tmp"),
        ("m", f".m.v2.{NUMBER}.tmp"),
        ("*", f".m.{NUMBER}.tmp"),
    ],
)
def test_saving_removes_no_folder_of_others(target: str, other: str, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=3))
    kept = foreign(tmp_path / other)
    save(Pruned(Plan.drop(3, [1])), decoder, None, tmp_path / target, {}, verify=False)
    assert (kept / "mine").read_text() == "kept"


def test_what_a_killed_save_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    left, written = (foreign(tmp_path / f".m.{end}{NUMBER[1:]}.tmp") for end in "ab")
    (left / CLAIM).touch()
    with FileLock(written / CLAIM), appearing(tmp_path / "m") as folder:
        (folder / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"m", written.name}
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["file"]


def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="exists and is not empty"),
        appearing(tmp_path / "m") as folder,
    ):
        (folder / "file").touch()
        foreign(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "mine").read_text() == "kept"


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to("there")
    with appearing(tmp_path / "here") as folder:
        (folder / "file").touch()
    assert (tmp_path / "here").is_symlink() and (tmp_path / "there" / "file").is_file()


@pytest.mark.parametrize("given", ["", "  ", "/", "//", "/..", Path("/")])
def test_names_that_are_no_folder_are_refused(given: str | Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written to .*; name a folder that is to be"):
        target_folder(given)


def test_the_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert target_folder("~/out/m") == tmp_path / "out" / "m"
    with pytest.raises(ConfigError, match="'~nobody-of-that-name/m' cannot be a checkpoint's"):
        target_folder("~nobody-of-that-name/m")


def test_files_of_a_checkpoint_have_the_ordinary_mode(tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=3))
    save(Pruned(Plan.drop(3, [1])), decoder, None, tmp_path / "m", {}, verify=False)
    (tmp_path / "plain").touch()
    files = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}
