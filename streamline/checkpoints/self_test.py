"""The proof that a saved folder holds the model that was in memory.

When a model is saved, a few tokens, its logits for them and its greedy continuation are written
beside it. :func:`verify` lets a fresh process, with transformers and without this package, load the
folder and compare.

Example:
    write_self_test(self_test(model), folder / SELF_TEST, attention="sdpa", device=model.device)
    verify(folder)[0]["max_logit_difference"]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from streamline.errors import AssetError

SELF_TEST = "self_test.safetensors"
N_SEQUENCES, N_TOKENS, N_NEW = 2, 12, 8

_CHILD = """
import json, sys
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    with safe_open(folder + "/self_test.safetensors", "pt") as file:
        meta = file.metadata()
        ids, logits, tokens = (file.get_tensor(k) for k in ("input_ids", "logits", "tokens"))
    torch.set_num_threads(int(meta["threads"]))
    device = meta["device"] if torch.cuda.is_available() else "cpu"
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=meta["trust_remote_code"] == "1",
        attn_implementation=meta["attention"], output_loading_info=True,
    )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    model.to(device).eval()
    with torch.no_grad():
        found = model(ids.to(device)).logits[:, -1].float().cpu()
        options = dict(max_new_tokens=tokens.shape[1] - ids.shape[1], do_sample=False,
                       eos_token_id=None, pad_token_id=0)
        again = model.generate(ids[:1].to(device), **options).cpu()
    print(json.dumps({
        "folder": folder, "keys": wrong, "dtype": str(model.dtype).removeprefix("torch."),
        "class": type(model).__name__, "without_package": "streamline" not in sys.modules,
        "max_logit_difference": float((found - logits).abs().max()),
        "largest_logit": float(logits.abs().max()),
        "same_continuation": torch.equal(again, tokens),
    }), flush=True)
"""


@dataclass(frozen=True)
class SelfTest:
    """The answer of a model to a few tokens.

    Attributes:
        ids: The tokens, [N, T], int64.
        logits: Its logits at the last of each row, [N, V], float32.
        tokens: The first row with its greedy continuation, [1, T + new].
    """

    ids: Tensor
    logits: Tensor
    tokens: Tensor


def self_test_ids(config: PretrainedConfig) -> Tensor:
    """The tokens of the self-test of a model, [N, T], int64."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(config.get_text_config().vocab_size)
    return torch.randint(0, vocabulary, (N_SEQUENCES, N_TOKENS), generator=generator)


@torch.no_grad()
def self_test(model: PreTrainedModel) -> SelfTest:
    """The answer of a model in memory, in eval mode."""
    device = next(model.get_input_embeddings().parameters()).device
    ids = self_test_ids(model.config)
    logits = model(ids.to(device)).logits[:, -1].float().cpu()
    options: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    tokens = cast("Any", model).generate(ids[:1].to(device), max_new_tokens=N_NEW, **options).cpu()
    return SelfTest(ids, logits, tokens)


def write_self_test(
    found: SelfTest,
    file: Path,
    *,
    attention: str,
    device: torch.device,
    trust_remote_code: bool = False,
) -> None:
    """Write a self-test beside the weights.

    Args:
        found: The model's answer.
        file: Where to write.
        attention: The attention implementation that it used.
        device: Where it ran.
        trust_remote_code: Whether the folder brings its own model class.
    """
    metadata = {
        "attention": attention,
        "device": str(device),
        "threads": str(torch.get_num_threads()),
        "trust_remote_code": str(int(trust_remote_code)),
    }
    tensors = {
        "input_ids": found.ids,
        "logits": found.logits.contiguous(),
        "tokens": found.tokens.contiguous(),
    }
    save_file(tensors, file, metadata)


def verify(*folders: str | Path) -> list[dict[str, Any]]:
    """Load checkpoints in one fresh process and compare with what was in memory.

    The process imports transformers but not this package; a folder's own model class is used where
    it brings one.

    Args:
        *folders: Folders with a self-test.

    Returns:
        For each folder the class, dtype, largest difference of logits, and whether the greedy
        continuation is the same.

    Raises:
        AssetError: If a folder has no self-test, does not load, has missing or unexpected tensors,
            or its logits or continuation differ.
    """
    return [check_report(report) for report in fresh_reports(*folders)]


def fresh_reports(*folders: str | Path) -> list[dict[str, Any]]:
    """What a fresh process finds in each folder, not yet judged.

    Raises:
        AssetError: If a folder has no self-test or cannot be loaded.
    """
    names = [str(Path(folder).resolve()) for folder in folders]
    for name in names:
        if not (Path(name) / SELF_TEST).is_file():
            raise AssetError(f"{name} has no {SELF_TEST}; only saved checkpoints can be verified")
    child = subprocess.run(
        [sys.executable, "-I", "-c", _CHILD, *names],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AssetError(f"a fresh process cannot load {', '.join(names)}: {last[0]}")
    lines = child.stdout.strip().splitlines()[-len(names) :]
    return [json.loads(line) for line in lines]


def check_report(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report if the folder holds the model that was in memory.

    Raises:
        AssetError: If tensors are missing or unexpected, or logits or continuation differ.
    """
    if report["keys"]:
        raise AssetError(f"{report['folder']} loads with wrong tensors: {report['keys']}")
    relative = 1e-4 if report["dtype"] == "float32" else 3e-2
    allowed = relative * max(1.0, report["largest_logit"])
    if not report["max_logit_difference"] <= allowed:
        raise AssetError(
            f"{report['folder']} loads as another model: logits differ by "
            f"{report['max_logit_difference']:.2g}, more than {allowed:.2g}"
        )
    if not report["same_continuation"]:
        raise AssetError(f"{report['folder']} continues a text differently after loading")
    return report
