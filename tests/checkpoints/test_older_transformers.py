"""Transformers 4.57, the last of its series, reads the same models out of checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import EVERY
from test_families import mixed
from transformers import AutoTokenizer

from streamline.baselines._slicing import principal, slice_model
from streamline.baselines.llm_pruner import LLMPruner
from streamline.checkpoints.checkpoint import save
from streamline.engine.decoder import Decoder
from streamline.files import cache_dir
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.testing.models import tiny_model, tiny_tokenizer

VERSION = "4.57.6"
REQUIRED = (f"transformers=={VERSION}", "huggingface-hub>=0.34,<1", "tokenizers>=0.22,<=0.23")
TOKENS = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(1))

CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[2:]:
    with safe_open(folder + "/self_test.safetensors", "pt") as file:
        ids, tokens = file.get_tensor("input_ids"), file.get_tensor("tokens")
        logits = file.get_tensor("logits")
    row = {"folder": folder, "version": transformers.__version__}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, attn_implementation="eager", output_loading_info=True
        )
        with torch.no_grad():
            found = model.eval()(ids).logits[:, -1]
        row["difference"] = float((found - logits).abs().max())
        again = model.generate(
            ids[:1], max_new_tokens=tokens.shape[1] - ids.shape[1], do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )
        row["same"] = torch.equal(again, tokens)
        row["keys"] = sum(map(len, info.values()))
        row["ids"] = AutoTokenizer.from_pretrained(folder)("a text").input_ids
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(row), flush=True)
"""

LLAMA3 = {
    "rope_theta": 5e4, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_theta": 2e4, "rope_type": "longrope", "partial_rotary_factor": 1.0,
    "short_factor": [1.5] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 256,
}  # fmt: skip
PARTIAL = {"rope_theta": 2e4, "rope_type": "default", "partial_rotary_factor": 0.5}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}
#: Settings that the two versions name differently.
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256},
    "gpt_neox": {"rope_parameters": PARTIAL},
    "mistral": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    "falcon": {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4},
    "qwen2": WINDOWS,
    "qwen3": WINDOWS,
}


@pytest.fixture(scope="module")
def older() -> Path:
    """A folder with that version and what it needs otherwise than this one."""
    folder = cache_dir() / "tests" / f"transformers-{VERSION}"
    if not (folder / "done").is_file():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
        place = ["--target", str(folder)]
        found = subprocess.run([*pip, *place, *REQUIRED], capture_output=True, text=True)
        if found.returncode:
            last = found.stderr.strip().splitlines()[-1:] or ["no message"]
            pytest.skip(f"transformers {VERSION} cannot be installed: {last[0]}")
        (folder / "done").touch()
    return folder


def found_by(older: Path, folders: list[Path], modules: Path) -> dict[str, dict[str, Any]]:
    """What a process of that version finds in folders, by their names."""
    child = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, str(older), *map(str, folders)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules)},
    )
    assert child.returncode == 0, child.stderr
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    assert {row["version"] for row in rows} == {VERSION}
    return {Path(row["folder"]).name: row for row in rows}


def dropped(decoder: Decoder) -> Pruned:
    return Pruned(Plan.drop(decoder.n_layers, [1, 3]))


def sliced(decoder: Decoder) -> Pruned:
    model = slice_model(decoder, 24, TOKENS, principal)
    return Pruned(Plan.dense(decoder.n_layers), model=model)


def resized(decoder: Decoder) -> Pruned:
    pruner = LLMPruner(start=0, stop=decoder.n_layers)
    return pruner.prune(decoder, pruner.calibrate(decoder, TOKENS), 0.2, TOKENS, 0)


#: Of these that version reads whole layers alone: it asks an attention for its window, or keeps
#: experts one by one.
LATER = {"gemma3_text", "mixtral", "olmoe", "qwen3_moe"}
KINDS: dict[str, Callable[[Decoder], Pruned]] = {"dropped": dropped, "mixed": mixed}
NARROW: dict[str, Callable[[Decoder], Pruned]] = {"sliced": sliced, "resized": resized}


@pytest.mark.slow
def test_an_older_version_computes_the_same(older: Path, tmp_path: Path) -> None:
    folders = []
    for family in EVERY:
        source = tmp_path / f"{family}-source"
        tiny_tokenizer().save_pretrained(source)
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
        (source / "tokenizer_config.json").write_text(json.dumps(named))
        for tied in (False, True):
            model = tiny_model(family, n_layers=7, tied=tied, **CHANGES.get(family, {}))
            model.config.save_pretrained(source)
            tokenizer = AutoTokenizer.from_pretrained(source)
            kinds = KINDS if family not in LATER else {"dropped": dropped}
            kinds = kinds | (NARROW if family == "llama" and not tied else {})
            for kind, prune in kinds.items():
                decoder, folder = Decoder(model), tmp_path / f"{family}-{tied}-{kind}"
                folders.append(save(prune(decoder), decoder, tokenizer, folder, {}, verify=False))
    found = found_by(older, folders, tmp_path / "modules")
    assert {name: row["error"] for name, row in found.items() if "error" in row} == {}
    assert len(found) == len(folders) == 4 * len(EVERY) - 2 * len(LATER) + 2
    for name, row in found.items():
        assert row["difference"] < 1e-5 and row["same"] and row["keys"] == 0, name
        assert row["ids"] == tiny_tokenizer()("a text").input_ids, name


@pytest.mark.slow
def test_what_an_older_version_computes_otherwise_it_refuses(older: Path, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("gpt2", n_layers=7, scale_attn_by_inverse_layer_idx=True))
    folder = save(dropped(decoder), decoder, None, tmp_path / "c", {}, verify=False)
    error = found_by(older, [folder], tmp_path / "modules")["c"]["error"]
    assert f"transformers {VERSION} keeps no 'scaling' in GPT2Attention" in error
