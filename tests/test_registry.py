from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from streamline import registry
from streamline.errors import ConfigError, UnknownNameError
from streamline.registry import METHODS, SUITES, TASKS


class _Point(SimpleNamespace):
    def load(self) -> object:
        return EntryPoint(self.name, self.value, METHODS).load()


def _announce(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, str, str]) -> None:
    points = [
        _Point(name=name, value=value, dist=SimpleNamespace(name=owner, version="1"))
        for name, value, owner in rows
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def test_this_package_announces_methods_tasks_and_suites() -> None:
    assert {"dense", "shortgpt", "llm-streamline-layer"} <= set(registry.available(METHODS))
    assert list(registry.available(METHODS)) == sorted(registry.available(METHODS))
    assert (registry.folders(TASKS)["streamline"] / "__init__.py").is_file()
    assert (registry.folders(SUITES)["streamline"] / "__init__.py").is_file()


def test_the_groups_are_those_that_plugins_name() -> None:
    assert (METHODS, TASKS, SUITES) == (
        "streamline.methods",
        "streamline.tasks",
        "streamline.suites",
    )


def test_listing_names_imports_no_method() -> None:
    code = (
        "import sys; from streamline.registry import METHODS, available, method_names;"
        "available(METHODS); method_names(['all']);"
        "print([m for m in sys.modules if m in ('torch', 'streamline.method')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_answers_with_near_names_and_all() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown method 'shortgtp'.*mean: shortgpt"
    ) as info:
        registry.load(METHODS, "shortgtp")
    assert "Available: " in str(info.value)
    assert "random-layers" in str(info.value)


def test_a_name_like_none_gets_no_guess() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'zzzzzz'\. Available"):
        registry.method_names(["zzzzzz"])


def test_a_name_claimed_twice_is_refused_with_both_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, ("mine", "a.b:C", "first-dist"), ("mine", "d.e:F", "second-dist"))
    with pytest.raises(ConfigError, match=r"'mine'.*first-dist \(a.b:C\).*second-dist \(d.e:F\)"):
        registry.available(METHODS)


def test_the_same_distribution_seen_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, ("mine", "a.b:C", "dist"), ("mine", "a.b:C", "dist"))
    assert list(registry.available(METHODS)) == ["mine"]


def test_what_is_installed_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.available("streamline.later") == {}
    metadata = tmp_path / "later-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[streamline.later]\nmine = later.mine:Mine\n")
    assert list(registry.available("streamline.later")) == ["mine"]


def test_a_class_path_needs_no_entry_point() -> None:
    found = registry.load_method("streamline.baselines.shortgpt:ShortGPT")
    assert found is registry.load_method("shortgpt")


@pytest.mark.parametrize("name", sorted(registry.available(METHODS)))
def test_every_method_is_registered_under_its_own_name(name: str) -> None:
    assert registry.load_method(name).name == name


def test_a_class_path_may_lie_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_module_of_the_folder.py").write_text("VALUE = 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert registry.load(METHODS, "a_module_of_the_folder:VALUE") == 3


def test_a_broken_plugin_is_named_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, ("mine", "no_such_package.x:C", "some-dist"))
    with pytest.raises(ConfigError, match=r"no_such_package.x:C.*some-dist.*ModuleNotFoundError"):
        registry.load(METHODS, "mine")


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a class derived from"):
        registry.load_method("streamline.plan:Plan")


def test_all_means_every_method_and_is_given_alone() -> None:
    every = set(registry.available(METHODS))
    left_out = {"given-layers", "quantized"}  # one needs its list, the other prunes nothing
    assert set(registry.method_names(["all"])) == every - left_out
    with pytest.raises(ConfigError, match="'all' already means every method"):
        registry.method_names(["all", "dense"])
    with pytest.raises(ConfigError, match="leave all out"):
        registry.method_names(["all", "all"])
    with pytest.raises(UnknownNameError, match="sheb"):
        registry.method_names(["all", "sheb+n_samples=2"])
    specs = ["all", "sleb+n_samples=2", "sleb+n_samples=4", "given-layers+remove=1"]
    names = registry.method_names(specs)
    assert set(names) == (every - left_out - {"sleb"}) | set(specs[1:])
    assert [registry.base_name(name) for name in names] == sorted(map(registry.base_name, names))


def test_fields_set_in_a_spec_do_not_hide_the_name() -> None:
    assert registry.method_names(["shortgpt+x=1"]) == ("shortgpt+x=1",)
    with pytest.raises(UnknownNameError, match="shortgptt"):
        registry.method_names(["shortgptt+x=1"])


def test_a_data_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, ("mine", "no_such_package.tasks", "some-dist"))
    with pytest.raises(ConfigError, match=r"no_such_package.tasks.*some-dist.*not an installed"):
        registry.folders(TASKS)
