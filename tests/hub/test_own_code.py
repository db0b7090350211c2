"""Code of a model that lies in another repository: read at one commit, which is in the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.testing.models import tiny_model, tiny_tokenizer

_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "llama"
    version = {version}


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
_CLASSES = {
    "AutoConfig": "some/code--own.OwnConfig",
    "AutoModelForCausalLM": "some/code--own.OwnModel",
}
_READS = """
import json, sys
from pathlib import Path
from streamline.errors import AssetError
from streamline.sources.hub.commits import pinned
from streamline.sources.hub.own_code import model_commits
from streamline.sources.models import load_model, load_config, model_fingerprint, planned_model
from streamline.sources.names import resolve_model
from streamline.streaming.opening import load_streamed

folder, name, kept, moves, trust = json.loads(sys.argv[1])
with pinned(kept):
    if not trust:
        print(json.dumps({"key": model_fingerprint(name)}))
        raise SystemExit
    keys = [model_fingerprint(name, trust_remote_code=True)]
    commits = model_commits(resolve_model(name), trust_remote_code=True)
    if moves:
        (Path(folder) / "main").rename(Path(folder) / "before")
        (Path(folder) / "next").rename(Path(folder) / "main")
    streamed, _ = load_streamed(name, trust_remote_code=True)
    model, _ = load_model(name, trust_remote_code=True)
    planned = planned_model(name, trust_remote_code=True)
    config = load_config(name, trust_remote_code=True)
    keys.append(model_fingerprint(name, trust_remote_code=True))
print(json.dumps({
    "key": keys[0], "same": keys[0] == keys[1], "commits": commits,
    "versions": [streamed.config.version, model.config.version, planned.config.version,
                 config.version],
    "classes": [type(streamed.model).__name__, type(model).__name__, type(planned).__name__],
}))
"""


@pytest.fixture
def code(hub: LoopbackHub) -> Path:
    """The repository of the code, which has two versions."""
    folder = hub.root / "models" / "some" / "code"
    for version, name in enumerate(("main", "next"), 1):
        (folder / name).mkdir(parents=True)
        (folder / name / "own.py").write_text(_CODE.format(version=version), encoding="utf-8")
    return folder


def _publish(folder: Path, classes: dict[str, str]) -> None:
    tiny_model("llama", n_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"auto_map": classes}
    file.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_code_of_another_repository_is_read_at_one_commit(
    where: str, hub: LoopbackHub, child: Child, code: Path, tmp_path: Path
) -> None:
    folder = hub.root / "models/some/model/main" if where == "hub" else tmp_path / "model"
    name = "some/model" if where == "hub" else str(folder)
    _publish(folder, _CLASSES)

    def read(kept: dict[str, str], *, moves: bool = False, trust: bool = True) -> dict[str, object]:
        done = child(_READS, hub, [str(code), name, kept, moves, trust])
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    first = read({}, moves=True)  # the branch moves on while the model is read
    assert first["versions"] == [1] * 4 and first["same"]
    assert first["classes"] == ["OwnModel"] * 3
    commits = first["commits"]
    assert isinstance(commits, dict)
    assert set(commits) == ({"some/code", "some/model"} if where == "hub" else {"some/code"})
    again = read(commits)  # a run that goes on
    assert again["versions"] == [1] * 4 and again["key"] == first["key"]
    new = read({})
    assert new["versions"] == [2] * 4 and new["key"] != first["key"]
    assert read({}, trust=False)["key"] not in (first["key"], new["key"])


_MIXED = """
import json, sys
from streamline.errors import AssetError
from streamline.sources.models import load_config
try:
    load_config(json.loads(sys.argv[1]), trust_remote_code=True)
except AssetError as error:
    print(error)
"""


@pytest.mark.slow
def test_code_in_two_repositories_is_refused(
    hub: LoopbackHub, child: Child, code: Path, tmp_path: Path
) -> None:
    other = hub.root / "models" / "some" / "other" / "main"
    other.mkdir(parents=True)
    (other / "own.py").write_text(_CODE.format(version=3), encoding="utf-8")
    _publish(tmp_path / "model", _CLASSES | {"AutoModelForCausalLM": "some/other--own.OwnModel"})
    done = child(_MIXED, hub, str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    assert "lies in some/code and some/other" in done.stdout
    assert "in auto_map without a repository" in done.stdout
