"""Slice one model with this package and with the released SliceGPT, and compare.

Both get the same weights, calibration tokens and width, without the random rotation. Printed are
the perplexities on the same held-out tokens and, for every place where a basis is found, the share
of the kept directions that both have in common (1 for the same subspace). Exit code 1 if a
subspace agrees less than asked or a perplexity differs by more.

The released package pins versions that exclude this package's, so it runs in an environment of its
own: make one, ``pip install -r benchmarks/slicegpt-peer.txt`` there, and name its Python.

It takes the mean out of every embedding, which changes models with RMSNorm; for these the means are
put back unless ``--as-released`` is given.

Example::

    python -m streamline.benchmarks.compare_slicegpt smollm2-135m-instruct --width 432 \
        --peer-python /envs/slicegpt/bin/python --out out/slicegpt
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.baselines._slicing import principal, slice_model
from streamline.benchmarks import slicegpt_peer
from streamline.benchmarks.slicegpt_peer import perplexity
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, StreamlineError, UnsupportedModelError
from streamline.files import write_json_atomic
from streamline.sources.batches import Part, TokenBatches
from streamline.sources.models import load_model

_FAMILIES = ("llama", "opt")


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison.

    Args:
        arguments: Command line; None takes the process's.

    Returns:
        0 if both agree, 1 if not, 2 if the comparison cannot be made.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name, hub id or folder of a Llama or OPT model")
    parser.add_argument("--width", type=int, required=True, help="directions kept")
    parser.add_argument("--peer-python", default=sys.executable, help="where slicegpt is installed")
    parser.add_argument("--texts", default="packaged", help="calibration and held-out text")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences")
    parser.add_argument("--heldout", type=int, default=16, help="held-out sequences")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--as-released", action="store_true", help="leave embeddings centred")
    parser.add_argument("--overlap", type=float, default=0.99, help="least agreement of a subspace")
    parser.add_argument("--gap", type=float, default=0.01, help="largest relative gap, perplexity")
    parser.add_argument("--out", type=Path, help="write the figures as JSON into this folder")
    options = parser.parse_args(arguments)
    try:
        facts = compare(options)
    except StreamlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _show(facts)
    if options.out is not None:
        write_json_atomic(options.out / "slicegpt.json", facts)
    agree = min(facts["overlap"]) >= options.overlap and abs(facts["gap"]) <= options.gap
    return 0 if agree else 1


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides and how they agree.

    Raises:
        UnsupportedModelError: If the released package has no adapter for the model.
        ConfigError: If the released package is not installed or fails.
    """
    model, tokenizer = load_model(options.model)
    decoder = Decoder(model)
    if decoder.family.name not in _FAMILIES:
        raise UnsupportedModelError(
            f"the released SliceGPT is compared on {' and '.join(_FAMILIES)}, not on "
            f"{decoder.family.name}"
        )
    counts = {"calibration": options.samples, "heldout": options.heldout}
    tokens = {
        name: _tokens(options, tokenizer, n, "train" if name == "calibration" else "heldout")
        for name, n in counts.items()
    }
    keep_means = decoder.family.norm_kind == "rms" and not options.as_released
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = max(1, 4096 // options.length)
        _hand_over(decoder, tokens, folder, options.width, rows, keep_means)
        run_peer(options.peer_python, folder)
        peer = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
        from safetensors.torch import load_file

        theirs = load_file(str(folder / "peer.safetensors"))
    found: list[Tensor] = []

    def remembered(moment: Tensor) -> Tensor:
        q = principal(moment)
        found.append(q[:, : options.width].cpu())
        return q

    dense = perplexity(model, tokens["heldout"])
    sliced = slice_model(decoder, options.width, tokens["calibration"], remembered)
    ours = {
        "dense": dense,
        "sliced": perplexity(sliced, tokens["heldout"]),
        "parameters": sum(p.numel() for p in sliced.parameters()),
    }
    if len(found) != len(theirs):
        raise ConfigError(f"this package found {len(found)} bases, the released {len(theirs)}")
    return {
        "model": options.model,
        "width": options.width,
        "calibration_tokens": tokens["calibration"].numel(),
        "means_put_back": keep_means,
        "ours": ours,
        "released": peer,
        "gap": ours["sliced"] / peer["sliced"] - 1.0,
        "overlap": [overlap(q, theirs[str(i)]) for i, q in enumerate(found)],
    }


def overlap(one: Tensor, other: Tensor) -> float:
    """Share of a subspace that lies in another of the same dimension: 1 for equal ones.

    Args:
        one: Orthonormal columns, [D, d].
        other: Orthonormal columns, [D, d].
    """
    return float((one.double().T @ other.double()).square().sum()) / one.shape[1]


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config as transformers 4 reads it.

    Raises:
        UnsupportedModelError: If it has position scaling that is written otherwise there.
    """
    older = dict(config)
    rope = older.pop("rope_parameters", None)
    if rope is not None:
        if rope.get("rope_type", "default") != "default":
            raise UnsupportedModelError(
                f"the released SliceGPT's transformers does not know positions of type "
                f"{rope['rope_type']!r}"
            )
        older["rope_theta"] = rope["rope_theta"]
    older.pop("dtype", None)
    return older


def _tokens(options: argparse.Namespace, tokenizer: Any, n: int, part: Part) -> Tensor:
    batches = TokenBatches(tokenizer)
    return batches.tokens(options.texts, n_samples=n, length=options.length, seed=0, part=part)


def _hand_over(
    decoder: Decoder,
    tokens: dict[str, Tensor],
    folder: Path,
    width: int,
    rows: int,
    keep_means: bool,
) -> None:
    """Write what the other side reads."""
    from safetensors.torch import save_file

    decoder.model.save_pretrained(folder / "model")
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json_atomic(path, older_config(config))
    save_file(
        {name: ids.contiguous() for name, ids in tokens.items()}, folder / "tokens.safetensors"
    )
    task = {
        "family": decoder.family.name,
        "width": width,
        "rows": rows,
        "keep_means": keep_means,
        "threads": torch.get_num_threads(),
    }
    write_json_atomic(folder / "task.json", task)


def run_peer(python: str, folder: Path) -> None:
    """Run the released package in its own environment.

    Raises:
        ConfigError: If it is not installed there, or fails.
    """
    source = Path(slicegpt_peer.__file__)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1"} | _extra_path()
    try:
        done = subprocess.run(
            [python, str(source), str(folder)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"--peer-python {python!r} cannot be run: {error}") from error
    if done.returncode == slicegpt_peer.MISSING:
        raise ConfigError(
            f"{done.stdout.strip()}. It is not on the package index and pins versions that exclude "
            "this package's: make an environment of its own, `pip install -r "
            "benchmarks/slicegpt-peer.txt` there, and give its Python with --peer-python"
        )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(
            f"the released SliceGPT failed in {python}: {lines[-1] if lines else 'no output'}"
        )


def _extra_path() -> dict[str, str]:
    """A source checkout of the released package, for environments where it is not installed."""
    source = os.environ.get("SLICEGPT_SOURCE")
    return {"PYTHONPATH": source} if source else {}


def _show(facts: dict[str, Any]) -> None:
    ours, peer = facts["ours"], facts["released"]
    print(f"{facts['model']}: {facts['width']} directions, {facts['calibration_tokens']:,} tokens")
    print(f"{'':10} {'this package':>14} {'released':>14}")
    for name in ("dense", "sliced"):
        print(f"{name:10} {ours[name]:14.4f} {peer[name]:14.4f}")
    print(f"{'parameters':10} {ours['parameters']:14,} {peer['parameters']:14,}")
    print(f"released, fused and not sliced: {peer['fused']:.4f}")
    least = min(range(len(facts["overlap"])), key=lambda i: facts["overlap"][i])
    print(
        f"kept directions in common: {sum(facts['overlap']) / len(facts['overlap']):.6f} on "
        f"average, {facts['overlap'][least]:.6f} at least (basis {least})"
    )
    print(f"perplexity apart by {facts['gap']:+.4%}")


if __name__ == "__main__":
    sys.exit(main())
