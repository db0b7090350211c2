from __future__ import annotations

from pathlib import Path

import pytest

from streamline.errors import ConfigError, UnknownNameError
from streamline.run import suites
from streamline.run.config import RunConfig, build_config
from streamline.run.suites import load_suite, suite_files


@pytest.mark.parametrize("name", sorted(suite_files()))
def test_every_installed_suite_is_a_run(name: str) -> None:
    suite = load_suite(name)
    assert suite.title != suite.name, "a suite needs a title"
    assert set(suite.settings) <= set(RunConfig.model_fields)
    assert build_config({}, suite=name).suite == name


def test_describing_keys_are_kept_out_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: T\ndescription: D\nreport: {published: [t1]}\nlimit: 3\n", encoding="utf-8"
    )
    suite = load_suite(str(path))
    assert (suite.name, suite.title, suite.description) == ("mine", "T", "D")
    assert suite.report == {"published": ["t1"]}
    assert suite.settings == {"limit": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("limit: [\n", "is not YAML"),
        ("dry_run: true\n", "cannot set 'dry_run'"),
        ("report: 3\n", "report must be a mapping, got 3"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_suite(str(path))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown suite file 'no/such.yaml'"):
        load_suite("no/such.yaml")


def test_a_suite_that_two_packages_bring_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in ("a", "b"):
        (tmp_path / owner).mkdir()
        (tmp_path / owner / "same.yaml").write_text("title: x\n", encoding="utf-8")
    monkeypatch.setattr(suites, "folders", lambda _: {"a": tmp_path / "a", "b": tmp_path / "b"})
    with pytest.raises(ConfigError, match="'same' exists twice"):
        suite_files()
