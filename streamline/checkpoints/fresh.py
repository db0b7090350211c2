"""Read saved folders layer by layer in a process of its own, and compare with their self-tests.

A script, run by :mod:`streamline.checkpoints.self_test` with the path of the package's `modeling`
folder, ``1`` where a folder's own code may run, and the folders. It imports transformers but not
this package, uses no more memory than a layer needs, and prints one JSON object for each folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def modeling(folder: str, name: str) -> Any:
    """A module of the package's folder `modeling`, without the package."""
    if "streamline_modeling" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "streamline_modeling",
            Path(folder) / "__init__.py",
            submodule_search_locations=[folder],
        )
        assert spec is not None
        sys.modules["streamline_modeling"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"streamline_modeling.{name}")


def recorded(folder: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The self-test of a folder: its metadata and tensors."""
    with safe_open(Path(folder) / "self_test.safetensors", "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def outputs_at(layers: list[nn.Module], found: dict[int, Tensor]) -> None:
    """Let each layer keep its next outputs at the last token, [N, D] float32, by depth."""

    def keep(depth: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found[depth] = hidden[:, -1].float()
            handle.remove()

        handle = layers[depth - 1].register_forward_hook(hook)

    for depth in range(1, len(layers) + 1):
        keep(depth)


def relative(found: Tensor | None, wanted: Tensor) -> float:
    """Largest distance of two rows of [N, D], as a fraction of the second's length; NaN if none."""
    if found is None or found.shape != wanted.shape:
        return math.nan
    length = wanted.norm(dim=-1).clamp(min=1e-6)
    return float(((found - wanted).norm(dim=-1) / length).max())


@torch.no_grad()
def compare(folder: str, trust: bool, own: str, scratch: str) -> dict[str, Any]:
    """What one folder's model does, beside what its self-test says.

    Args:
        folder: The saved model.
        trust: Whether the folder's own code may run.
        own: The package's folder `modeling`.
        scratch: Where what does not lie in the folder in its final form is put.
    """
    meta, tensors = recorded(folder)
    ids, logits, tokens = (tensors[name] for name in ("input_ids", "logits", "tokens"))
    torch.set_num_threads(max(1, min(int(meta["threads"]), os.cpu_count() or 1)))
    loader: Any = AutoModelForCausalLM
    model, info = loader.from_pretrained(
        folder,
        dtype="auto",
        trust_remote_code=trust,
        attn_implementation="eager" if meta["attention"] == "eager" else "sdpa",
        device_map={"": "disk"},
        offload_folder=scratch,
        output_loading_info=True,
    )
    model.eval()
    report = {
        "keys": {key: sorted(map(str, names)) for key, names in info.items() if names},
        "dtype": str(model.dtype).removeprefix("torch."),
        "class": type(model).__name__,
        "without_package": "streamline" not in sys.modules,
        "bytes_in_memory": sum(p.nbytes for p in model.parameters() if not p.is_meta),
        "finite": all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()),
    }
    outputs: dict[int, Tensor] = {}
    if "states" in meta:
        layers = list(model.get_submodule(meta["layers_path"]).children())
        same_version = meta["transformers"] == transformers.__version__
        state_of = modeling(own, "modeling_state").state_of
        report["states"] = same_version and differing(layers, json.loads(meta["states"]), state_of)
        outputs_at(layers, outputs)
    answer = model(ids, use_cache=True)
    found = answer.logits[:, -1].float()
    wanted = {
        int(name.removeprefix("layers.")): output
        for name, output in tensors.items()
        if name.startswith("layers.")
    }
    report["layers"] = [
        [depth, relative(outputs.get(depth), wanted[depth])] for depth in sorted(wanted)
    ]
    steps = continuation(model, answer, ids, tokens)
    choices = tensors.get("choices", tokens[0, ids.shape[1] :])
    differences = [(found.log_softmax(-1) - logits.log_softmax(-1)).flatten()]
    if "log_probabilities" in tensors:
        differences.append(at(steps.log_softmax(-1), choices) - tensors["log_probabilities"])
    report["max_logit_difference"] = float((found - logits).abs().max())
    report["max_log_probability_difference"] = float(torch.cat(differences).abs().max())
    report["largest_logit"] = float(logits.abs().max())
    report["continuation_gap"] = float((steps.amax(-1) - at(steps, choices)).max())
    report["same_continuation"] = report["continuation_gap"] == 0.0
    return report


def differing(layers: list[nn.Module], states: dict[str, Any], state_of: Any) -> list[str]:
    """What layers hold otherwise than those that were measured, in words.

    Args:
        layers: The layers.
        states: ``kinds`` of states and, for each layer, which of them it is (``of``).
        state_of: Reads one layer's.
    """
    wanted = [states["kinds"][kind] for kind in states["of"]]
    if len(wanted) != len(layers):
        return [f"there are {len(layers)} layers instead of {len(wanted)}"]
    return [
        f"layer {index} has {path}.{name} = {there.get(path, {}).get(name)!r} instead of {value!r}"
        for index, (layer, state) in enumerate(zip(layers, wanted, strict=True))
        if (there := state_of(layer)) != state
        for path, values in state.items()
        for name, value in values.items()
        if there.get(path, {}).get(name) != value
    ]


def continuation(model: Any, answer: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    """Logits before each token of a continuation, [new, V] float32, with the weights read once.

    All of its tokens are given at once, with what the cache holds of those before.

    Args:
        model: The model.
        answer: What it made of ``ids``.
        ids: The tokens before, [N, T].
        tokens: The first row of them with its continuation, [1, T + new].
    """
    start, rest = ids.shape[1], tokens[:, ids.shape[1] : -1]
    cache = answer.get("past_key_values")
    if cache is None:  # a model whose own code keeps none
        logits: Tensor = model(tokens[:, :-1]).logits[0, start - 1 :]
    else:  # the cache is that of all rows
        more = model(rest.expand(len(ids), -1), past_key_values=cache, use_cache=True)
        logits = torch.cat([answer.logits[0, -1:], more.logits[0]])
    return logits.float()


def at(rows: Tensor, chosen: Tensor) -> Tensor:
    """The entry of each row of [n, V] that was chosen, [n]."""
    return rows.gather(-1, chosen[:, None])[:, 0]


def main(own: str, trust: str, *folders: str) -> None:
    """Print a report for each folder."""
    if trust != "1":
        modeling(own, "modeling_streamline").register()
    for folder in folders:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                report = compare(folder, trust == "1", own, scratch)
            except Exception as error:  # whatever a damaged folder brings about, by its name
                report = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps({"folder": folder, **report}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
