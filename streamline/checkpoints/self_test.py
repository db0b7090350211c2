"""The proof that a saved folder holds the model that was measured.

When a model is saved, a few tokens are written beside it, with what its layers make of them, its
logits and its greedy continuation, and what its layers were built with. :func:`verify` lets a fresh
process read the folder layer by layer on the CPU and compare.

Example:
    write_self_test(self_test(model, layers_path, device), folder / SELF_TEST, attention="sdpa")
    verify(folder)[0]["max_logit_difference"]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from streamline.checkpoints import fresh
from streamline.engine.decoder import submodule
from streamline.errors import AssetError
from streamline.modeling import modeling_state

SELF_TEST = "self_test.safetensors"
N_SEQUENCES, N_TOKENS, N_NEW = 2, 12, 8


@dataclass(frozen=True)
class SelfTest:
    """The answer of a model to a few tokens.

    Attributes:
        ids: The tokens, [N, T], int64.
        logits: Its logits at the last of each row, [N, V], float32.
        tokens: The first row with a continuation, [1, T + new]: its greedy one, where that costs
            no further passes over the weights.
        choices: What it prefers at each token of the continuation, given those before, [new].
        log_probabilities: Of these, [new], float32.
        layers: Outputs of its layers at the last of each row, [N, D] float32, by how many layers
            were run; D may differ.
        layers_path: Path to its list of layers.
        states: What its layers were built with, one for each.
    """

    ids: Tensor
    logits: Tensor
    tokens: Tensor
    choices: Tensor
    log_probabilities: Tensor
    layers: dict[int, Tensor]
    layers_path: str
    states: list[modeling_state.State]


def self_test_ids(config: PretrainedConfig, n_tokens: int = N_TOKENS) -> Tensor:
    """The tokens of the self-test of a model, [N, T], int64; not 0, which pads a generation."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(config.get_text_config().vocab_size)
    return torch.randint(1, vocabulary, (N_SEQUENCES, n_tokens), generator=generator)


@torch.no_grad()
def self_test(model: PreTrainedModel, layers_path: str, device: torch.device) -> SelfTest:
    """The answer of a model in memory, in eval mode.

    Args:
        model: The model.
        layers_path: Path to its list of layers.
        device: Where its token ids go.
    """
    ids = self_test_ids(model.config)
    layers = list(submodule(model, layers_path).children())
    found: dict[int, Tensor] = {}
    fresh.outputs_at(layers, found)
    logits = model(ids.to(device)).logits[:, -1].float().cpu()
    again = cast("Any", model).generate(
        ids[:1].to(device),
        max_new_tokens=N_NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = again.sequences.cpu()
    choices = tokens[0, ids.shape[1] :]
    likely = torch.cat(again.logits).float().log_softmax(-1).cpu()
    return SelfTest(
        ids,
        logits,
        tokens,
        choices,
        fresh.at(likely, choices),
        {depth: output.cpu() for depth, output in found.items()},
        layers_path,
        states_of(layers),
    )


def states_of(layers: Sequence[nn.Module]) -> list[modeling_state.State]:
    """What layers were built with."""
    return [modeling_state.state_of(layer) for layer in layers]


def write_self_test(found: SelfTest, file: Path, *, attention: str) -> None:
    """Write a self-test beside the weights.

    Args:
        found: The model's answer.
        file: Where to write.
        attention: The attention implementation that it used.
    """
    kinds = [json.loads(kind) for kind in dict.fromkeys(map(json.dumps, found.states))]
    states = {"kinds": kinds, "of": [kinds.index(state) for state in found.states]}
    metadata = {
        "attention": attention,
        "threads": str(torch.get_num_threads()),
        "transformers": transformers.__version__,
        "layers_path": found.layers_path,
        "states": json.dumps(states),
    }
    tensors = {
        "input_ids": found.ids,
        "logits": found.logits,
        "tokens": found.tokens,
        "choices": found.choices,
        "log_probabilities": found.log_probabilities,
        **{f"layers.{depth}": output for depth, output in found.layers.items()},
    }
    own = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(own, file, metadata)


def verify(*folders: str | Path, trust_remote_code: bool = False) -> list[dict[str, Any]]:
    """Read checkpoints layer by layer in one fresh process and compare with what was measured.

    The process imports transformers but not this package, and needs no more memory than a layer.

    Args:
        *folders: Folders with a self-test.
        trust_remote_code: Whether the code that lies in a folder may run; otherwise this package's
            own is used.

    Returns:
        For each folder the class, dtype, largest differences, and whether the greedy continuation
        is the same.

    Raises:
        AssetError: If a folder has no self-test, does not load, has missing or unexpected tensors,
            or its layers, logits or continuation differ.
    """
    reports = fresh_reports(*folders, trust_remote_code=trust_remote_code)
    return [check_report(report) for report in reports]


def fresh_reports(*folders: str | Path, trust_remote_code: bool = False) -> list[dict[str, Any]]:
    """What a fresh process finds in each folder, not yet judged.

    Raises:
        AssetError: If a folder has no self-test, or the process ends early.
    """
    names = [str(Path(folder).resolve()) for folder in folders]
    for name in names:
        if not (Path(name) / SELF_TEST).is_file():
            raise AssetError(f"{name} has no {SELF_TEST}; only saved checkpoints can be verified")
    own = str(Path(modeling_state.__file__).parent)
    with tempfile.TemporaryDirectory() as modules:
        child = subprocess.run(
            [sys.executable, "-P", fresh.__file__, own, str(int(trust_remote_code)), *names],
            capture_output=True,
            text=True,
            env=_environment(modules),
        )
    lines = child.stdout.strip().splitlines()[-len(names) :]
    if child.returncode or len(lines) < len(names):
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AssetError(f"a fresh process cannot load {', '.join(names)}: {last[0]}")
    return [json.loads(line) for line in lines]


def _holds_code(path: str) -> bool:
    """Whether a place on the path is one where transformers puts the code of folders."""
    return (Path(path) / "transformers_modules").is_dir()


def _environment(modules: str) -> dict[str, str]:
    """A process's environment: offline, on the CPU, alone, with the packages of this process.

    Args:
        modules: Where the code of folders is put.
    """
    launched = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_")
    ranks = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(launched) and name not in ranks
    }
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": modules,
        # Without where this process keeps the code of folders: it would come first.
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p and not _holds_code(p)),
    }


def check_report(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report if the folder holds the model that was measured.

    Half precision rounds otherwise on another device, so differences are allowed in proportion.

    Raises:
        AssetError: If the folder does not load, tensors are missing or unexpected, or what its
            layers are, make or lead to differs; the message says what.
    """
    reason = reason_against(report)
    if reason is not None:
        raise AssetError(f"{report['folder']} {reason}")
    return report


def reason_against(report: dict[str, Any]) -> str | None:
    """Why a folder is not the model that was measured; None if it is."""
    if "error" in report:
        return f"cannot be loaded by a fresh process: {report['error']}"
    if report["keys"]:
        return f"loads with wrong tensors: {report['keys']}"
    if not report["finite"]:
        return (
            "holds a model whose outputs are not finite, so there is nothing to compare; "
            "float16 overflows in some models: take bfloat16"
        )
    if report.get("states"):
        return f"loads as another model: {'; '.join(report['states'][:3])}"
    exact = report["dtype"] == "float32"
    for depth, difference in report.get("layers", ()):
        if not difference <= (1e-3 if exact else 5e-2):
            return (
                f"loads as another model: the output of layer {depth - 1} differs by "
                f"{difference:.2g} of its length"
            )
    allowed = (1e-4 if exact else 3e-2) * max(1.0, report["largest_logit"])
    for what in ("logit", "log_probability"):
        difference = report[f"max_{what}_difference"]
        if not difference <= allowed * (1 if what == "logit" else 2):
            words = "logits" if what == "logit" else "log-probabilities"
            return (
                f"loads as another model: {words} differ by {difference:.2g}, "
                f"more than {allowed:.2g}"
            )
    if not report["continuation_gap"] <= 2 * allowed:
        return "continues a text differently after loading"
    return None
