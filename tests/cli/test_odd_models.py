"""Models of an odd kind that work: with code of their own, with one layer, with old tokenizers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Shown, base_suite
from tiny_inputs import write_sentencepiece
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from streamline.results.record_file import load
from streamline.testing.models import tiny_model

_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
_RUN = "run --suite s.yaml --models {} --methods dense,shortgpt --out OUT/run"


@pytest.fixture
def odd(inputs: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Writes a tiny model's folder, changed by its fields."""

    def write(family: str = "llama", n_layers: int = 3, **changes: Any) -> Path:
        folder = tmp_path / "odd"
        tiny_model(family, n_layers=n_layers, **changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize(
    "line",
    [
        f"{_RUN} --dry-run",
        _RUN,
        pytest.param(f"{_RUN} --stream", marks=pytest.mark.slow),
        "evaluate {} --tasks piqa --data-dir data --limit 2 --out OUT/e.json",
        pytest.param(
            "prune {} --suite s.yaml --method shortgpt --sparsity 0.3 --out OUT/p",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_with_code_of_its_own_runs_by_the_flag_alone(
    line: str, odd: Any, bench: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = odd()
    path = folder / "config.json"
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads(path.read_text()) | {"auto_map": code}
    path.write_text(json.dumps(config))
    (folder / "own.py").write_text(_CODE)
    monkeypatch.setattr(sys, "stdin", None)  # nothing may be asked
    found = bench(f"{line.format(folder)} --trust-remote-code")
    assert found.code == 0, found.err


def test_a_model_of_one_layer(odd: Any, bench: Callable[..., Shown], tmp_path: Path) -> None:
    found = bench(_RUN.format(odd(n_layers=1)))
    assert found.code == 0, found.err
    dense, pruned = load(tmp_path / "out" / "run")
    assert dense.status == "ok" and pruned.status in ("ok", "skipped")
    assert pruned.status == "ok" or "layer" in str(pruned.reason)


def test_a_tokenizer_of_sentencepiece_alone(
    odd: Any, bench: Callable[..., Shown], tmp_path: Path
) -> None:
    from streamline.sources.models import load_tokenizer

    folder = odd()
    known = write_sentencepiece(folder)
    ids = load_tokenizer(str(folder))("keep it dry", add_special_tokens=False).input_ids
    assert ids == known.encode("keep it dry")
    found = bench(_RUN.format(folder))
    assert found.code == 0, found.err


_LONG = ("calibration", "training")


@pytest.mark.parametrize("use", _LONG)
def test_texts_beyond_learned_positions_are_refused_at_once(
    use: str, odd: Any, bench: Callable[..., Shown], suite: Callable[..., str]
) -> None:
    path = suite(**{use: base_suite()[use] | {"length": 48}})
    folder = odd("opt", max_position_embeddings=32)
    message = f"a {use} sequence of 48 tokens is longer than the 32 positions of {folder}, which"
    ffn = "llm-streamline-ffn"
    lines = [
        f"run --suite {path} --models {folder} --methods {ffn} --out OUT/run",
        f"run --suite {path} --models {folder} --methods {ffn} --out OUT/run --dry-run",
        f"prune {folder} --suite {path} --method {ffn} --sparsity 0.3 --out OUT/p",
    ]
    for line in lines:
        bench(line).refuses(message)


@pytest.mark.parametrize("use", _LONG)
def test_texts_beyond_computed_positions_are_said(
    use: str, odd: Any, bench: Callable[..., Shown], suite: Callable[..., str]
) -> None:
    path = suite(**{use: base_suite()[use] | {"length": 48}})
    folder, ffn = odd(max_position_embeddings=32), "llm-streamline-ffn"
    for more in ("--dry-run", ""):
        line = f"run --suite {path} --models {folder} --methods {ffn} --out OUT/run {more}"
        found = bench(line)
        assert found.code == 0, found.err
        said = found.words + found.out
        assert f"a {use} sequence of 48 tokens is longer than the 32 positions" in said


def test_a_model_that_memory_does_not_hold(
    odd: Any, bench: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", full)
    found = bench(f"evaluate {odd()} --tasks piqa --data-dir data --limit 2 --out OUT/e.json")
    found.refuses("does not fit into memory. Read it layer by layer with --stream")
