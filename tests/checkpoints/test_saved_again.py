"""A checkpoint that other tools load and save again still loads without this package."""

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
from transformers import Trainer, TrainingArguments

from streamline.baselines._slicing import principal, slice_model
from streamline.baselines.llm_pruner import LLMPruner
from streamline.checkpoints.checkpoint import read_model, save
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.methods.replacement import INITS, make, split_kind
from streamline.methods.sublayers import remove_sublayer
from streamline.modeling.modeling_streamline import FILES, StreamlineConfig
from streamline.plan import Plan, Span, Step
from streamline.testing.models import tiny_model

IDS = torch.arange(1, 13)[None]
BATCHES = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(1))


def replaced(kind: str) -> Callable[[Decoder], Pruned]:
    """Layers 1 and 2 replaced."""

    def prune(decoder: Decoder) -> Pruned:
        span, init = Span(1, 3), INITS[split_kind(kind)[1]][0]
        module = make(kind, decoder, span, init=init)
        return Pruned(Plan.replace(decoder.n_layers, span, kind), {1: module})

    return prune


def mixed(decoder: Decoder) -> Pruned:
    """Layers 0 and 1 an FFN, 2 without attention, 3 without MLP."""
    plan = Plan(4, (Step(0, "ffn"), Step(2, "no-attention"), Step(3, "no-mlp")))
    modules: dict[int, Any] = {
        0: make("ffn", decoder, Span(0, 2)),
        1: remove_sublayer(decoder, 2, "attention"),
        2: remove_sublayer(decoder, 3, "mlp"),
    }
    return Pruned(plan, modules)


def sliced(decoder: Decoder) -> Pruned:
    return Pruned(Plan.dense(4), model=slice_model(decoder, 24, BATCHES, principal))


def resized(decoder: Decoder) -> Pruned:
    pruner = LLMPruner(start=0, stop=4)
    return pruner.prune(decoder, pruner.calibrate(decoder, BATCHES), 0.2, BATCHES, 0)


def dropped(decoder: Decoder) -> Pruned:
    return Pruned(Plan.drop(4, [0, 2]))


KINDS: dict[str, tuple[str, Callable[[Decoder], Pruned]]] = {
    "dropped": ("llama", dropped),
    "ffn": ("llama", replaced("ffn")),
    "multiple-swiglu": ("opt", replaced("multiple-swiglu")),
    "linear": ("llama", replaced("linear")),
    "layer": ("llama", replaced("layer")),
    "shared-layer": ("llama", replaced("shared-layer")),
    "shared-ffn": ("falcon", replaced("shared-ffn")),
    "mixed": ("llama", mixed),
    "sliced": ("llama", sliced),
    "resized": ("llama", resized),
    "state": ("gpt2", dropped),
}
OPTIONS: dict[str, dict[str, Any]] = {"gpt2": {"scale_attn_by_inverse_layer_idx": True}}

CHILD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids = torch.arange(1, 13)[None]
for folder in sys.argv[1:]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            answer = model(ids).logits[0, -1].tolist()
        model.save_pretrained(folder + "-again")
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps([folder, answer, "streamline" in sys.modules]), flush=True)
"""


def found_by_others(folders: list[Path], tmp_path: Path) -> dict[str, Any]:
    """The last logits, or the error, that a process without this package gets from folders.

    It saves each of them again as FOLDER-again.
    """
    alone = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    child = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **alone},
    )
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    assert not any(package for _, _, package in rows)
    return {Path(folder).name: answer for folder, answer, _ in rows}


def by_trainer(model: Any, folder: Path) -> None:
    arguments = TrainingArguments(str(folder.parent / "trainer"), report_to=[], use_cpu=True)
    Trainer(model=model, args=arguments).save_model(str(folder))


def by_merging(model: Any, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    transposed = model.config.model_type == "gpt2"
    adapter = LoraConfig(target_modules="all-linear", r=2, fan_in_fan_out=transposed)
    adapted = get_peft_model(model, adapter)
    adapted.merge_and_unload().save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # by peft
def test_what_others_save_again_loads_without_this_package(tmp_path: Path) -> None:
    wanted, folders = {}, []
    for kind, (family, prune) in KINDS.items():
        decoder = Decoder(tiny_model(family, n_layers=4, **OPTIONS.get(family, {})))
        folder = save(prune(decoder), decoder, None, tmp_path / "first" / kind, {}, verify=False)
        model = read_model(folder).eval()
        with torch.no_grad():
            wanted[kind] = model(IDS).logits[0, -1]
        model.save_pretrained(tmp_path / f"{kind}-saved")
        by_trainer(model, tmp_path / f"{kind}-trained")
        by_merging(model, tmp_path / f"{kind}-merged")
        folders += [tmp_path / f"{kind}-{how}" for how in ("saved", "trained", "merged")]
    found = found_by_others(folders, tmp_path)
    again = found_by_others([Path(f"{folder}-again") for folder in folders], tmp_path)
    errors = {name: answer for name, answer in (found | again).items() if isinstance(answer, str)}
    assert not errors
    for name, answer in (found | again).items():
        kind = next(kind for kind in KINDS if name.startswith(f"{kind}-"))
        torch.testing.assert_close(torch.tensor(answer), wanted[kind], rtol=1e-5, atol=1e-5)


def test_files_of_the_layers_go_along(tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    folder = save(mixed(decoder), decoder, None, tmp_path / "a", {}, verify=False)
    read_model(folder).save_pretrained(tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


def test_a_config_that_came_from_the_hub_names_the_files_beside_it() -> None:
    config = StreamlineConfig.from_dict(
        {
            "base_model_type": "llama",
            "streamline": {"layers": [], "layers_path": "model.layers", "tuple_output": False},
            "auto_map": {"AutoConfig": "a/b--modeling_streamline.StreamlineConfig"},
        }
    )
    assert config.to_dict()["auto_map"] == {
        "AutoConfig": "modeling_streamline.StreamlineConfig",
        "AutoModel": "modeling_streamline.StreamlineModel",
        "AutoModelForCausalLM": "modeling_streamline.StreamlineForCausalLM",
    }
