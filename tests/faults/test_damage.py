"""A kept file is damaged: it is made again or named, and never does another number come out.

Each kind of file that a run keeps meets each damage, in the state in which the run would use it:
finished, finished but without its records, in the middle of training, in the middle of answering.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
from faults.harness import Verb, differences

# Where a run is left before each kind of file is damaged.
KINDS = {
    "results.json": "finished",
    "run.json": "finished",
    "commands.json": "finished",
    ".report.json": "finished",
    "samples/*.parquet": "finished",
    "plans/*.json": "finished",
    "losses/*.jsonl": "finished",
    "cache/checksums/*.json": "finished",
    "cache/answers/*/piqa.*.json": "without records",
    "cache/answers/*/piqa.*.parquet": "without records",
    "cache/answers/*/*xsum.????????????????.json": "without records",
    "cache/answers/*/*xsum.*.parquet": "without records",
    "cache/answers/*/text-heldout.*.json": "without records",
    "cache/calibration/*/*.safetensors": "without answers",
    "cache/prunings/*.safetensors": "without answers",
    "cache/training/students/*.safetensors": "without answers",
    "cache/lora/*/students/*.safetensors": "without answers",
    "cache/lora/*/losses/*.jsonl": "without answers",
    "cache/training/state/*.safetensors": "kept step model--llm-streamline-ffn",
    "cache/activations/*/*.states": "kept step model--llm-streamline-ffn",
    "cache/activations/*/*.filled": "kept step model--llm-streamline-ffn",
    "cache/lora/*/state/*.safetensors": "kept step lora",
    "cache/answers/*/*.part.safetensors": "kept batches",
    "cache/answers/*/*.texts.json": "kept text llm-streamline-ffn",
    "cache/*/*.search.json": "rename out/cache/prunings/*.safetensors",
    "cache/kd/*/state/*.safetensors": "kept step kd",
    "cache/kd/*/students/*.safetensors": "search without answers",
    "cache/kd/*/losses/*.jsonl": "search without answers",
}
#: Whose command is another run: a search, and distillation.
SEARCH = (KINDS["cache/*/*.search.json"], "kept step kd", "search without answers")
FIGURE = re.compile(rb'"(?:value|train_loss|text-heldout)": \d+\.\d|"removed_layers": \[\s*\d')
MADE = re.compile(r"(tables|figures)/|report\.(md|html)|\.(run|results|running)\.lock$")
DAMAGES = ("empty", "truncated", "zeroed", "flipped", "garbage", "missing")
FEW = {
    ("results.json", "flipped"), ("run.json", "flipped"),
    ("samples/*.parquet", "missing"), ("plans/*.json", "truncated"),
    ("cache/answers/*/piqa.*.json", "flipped"), ("cache/calibration/*/*.safetensors", "flipped"),
    ("cache/training/state/*.safetensors", "zeroed"), ("cache/activations/*/*.states", "empty"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(kind, how, marks=[] if (kind, how) in FEW else pytest.mark.faults)
        for kind in KINDS
        for how in DAMAGES
    ],
)
def test_a_damaged_file_is_made_again_or_named(
    left: Callable[[str], Verb], undisturbed: Callable[[str], Verb], kind: str, how: str
) -> None:
    run = left(KINDS[kind])
    wanted = undisturbed(run.name)
    file = sorted(run.out.glob(kind))[-1]
    damage(file, how)
    outcome = run.carry_out()
    if outcome.code:
        assert "Traceback" not in outcome.err, outcome.err
        assert file.name in outcome.err, outcome.err
        if run.carry_out().code:  # as the message says
            file.unlink(missing_ok=True)
            again = run.carry_out()
            assert again.code == 0, again.err
    wrong = differences(run, wanted)
    assert wrong == [], "\n".join([*wrong, outcome.err])


def damage(file: Path, how: str) -> None:
    """Damage a file in one of the ways of :data:`DAMAGES`; one bit of a text is one of a figure."""
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
        return
    if how == "flipped":
        digits = [found.end() - 1 for found in FIGURE.finditer(data)]
        data[digits[-1] if digits else len(data) // 2] ^= 1 if digits else 64
    changed = {
        "empty": b"",
        "truncated": bytes(data[: len(data) // 2]),
        "zeroed": bytes(len(data)),
        "flipped": bytes(data),
        "garbage": random.Random(0).randbytes(len(data)),
    }
    file.write_bytes(changed[how])


@pytest.mark.faults
def test_each_kept_file_is_of_a_kind_of_the_matrix(left: Callable[[str], Verb]) -> None:
    for state in dict.fromkeys(KINDS.values()):
        out = left(state).out
        known = {file for kind in KINDS for file in out.glob(kind)}
        files = {file for file in out.rglob("*") if file.is_file()} - known
        names = [str(file.relative_to(out)) for file in files if file.suffix != ".tmp"]
        strangers = [name for name in names if not MADE.search(name)]
        assert strangers == [], "\n".join([state, *strangers])


@pytest.mark.faults
@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_records_of_a_shard_are_named_and_its_cells_done_again(
    undisturbed: Callable[[str], Verb], verb: Callable[[str], Verb], how: str
) -> None:
    whole = verb("run")
    names = ("shard", "other shard", "merge")
    shard, other, merge = (replace(whole, name=name) for name in names)
    for part in (shard, other):
        outcome = part.carry_out()
        assert outcome.code == 0, outcome.err
    file = whole.out / "shards" / "1-of-2" / "results.json"
    damage(file, how)
    outcome = merge.carry_out()
    assert outcome.code == (1 if how == "missing" else 2), outcome.err
    assert "Traceback" not in outcome.err, outcome.err
    assert how == "missing" or str(file.relative_to(whole.out)) in outcome.err, outcome.err
    file.unlink(missing_ok=True)
    for part in (shard, merge):
        outcome = part.carry_out()
        assert outcome.code == 0, outcome.err
    wrong = differences(whole, undisturbed("run"))
    assert wrong == [], "\n".join(wrong)


@pytest.fixture(scope="session")
def states(
    undisturbed: Callable[[str], Verb], world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Verb]:
    """Runs left in each of the states, made once."""
    made: dict[str, Verb] = {}

    def state(name: str) -> Verb:
        if name not in made:
            verb = "search" if name in SEARCH else "run"
            run = made[name] = Verb(verb, world, tmp_path_factory.mktemp("state") / verb)
            if name.startswith(("kept", "rename")):
                matching = [e for e in undisturbed(verb).events() if fnmatch(e, f"{name}*")]
                assert run.carry_out(at=matching[len(matching) // 2]).code == -9
            else:
                shutil.copytree(undisturbed(verb).work, run.work)
                if name != "finished":
                    (run.out / "results.json").unlink()
                    shutil.rmtree(run.out / "samples")
                if name.endswith("without answers"):
                    shutil.rmtree(run.out / "cache" / "answers")
        return made[name]

    return state


@pytest.fixture
def left(states: Callable[[str], Verb], verb: Callable[[str], Verb]) -> Callable[[str], Verb]:
    """A copy of a run left in one of the states."""

    def copied(name: str) -> Verb:
        state = states(name)
        run = verb(state.name)
        shutil.rmtree(run.place, ignore_errors=True)
        shutil.copytree(state.work, run.work)
        return run

    return copied
