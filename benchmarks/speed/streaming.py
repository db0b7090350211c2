"""Row: a model larger than an imposed memory limit, calibrated, pruned, evaluated and saved.

Random weights are written to a temporary folder. One process streams them with its data segment
limited by the system to less than the weights; another one holds them whole, without a limit, and
its answers must be the same; a third tries to hold them within the limit, to show that the limit
holds.

Example::

    python -m streamline.benchmarks.speed streaming --quick
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from streamline.benchmarks.speed.common import (
    Options,
    Outcome,
    Race,
    require_close,
    require_equal,
)
from streamline.benchmarks.speed.peak import largest_resident
from streamline.checkpoints.checkpoint import save
from streamline.checkpoints.streamed import write_shards
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import StreamlineError
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import Request, score
from streamline.evaluation.streamed import evaluate_streamed
from streamline.method import Pruned
from streamline.registry import build_method
from streamline.sources.models import cache_dir
from streamline.streaming.decoder import StreamedDecoder
from streamline.streaming.opening import empty_model, open_streamed

__all__ = ["SIZES", "make_model", "race", "run", "work"]

SIZES: dict[str, dict[str, int]] = {
    "quick": {"hidden": 1024, "layers": 32, "vocabulary": 16000, "limit_mib": 1100},
    "default": {"hidden": 2048, "layers": 13, "vocabulary": 32000, "limit_mib": 2048},
    "full": {"hidden": 4096, "layers": 48, "vocabulary": 32000, "limit_mib": 6144},
}
"""The model of each size, in float32, and the limit of the data segment."""
TOKENS = {"calibration": 64, "text": 32, "questions": 3}
SPARSITY = 0.25
TOLERANCE = 1e-3
_STATE_BYTES = 64 << 20
_POOL = 4_000_037  # random numbers that all weights are made of; no multiple of a row


def make_model(folder: Path, hidden: int, layers: int, vocabulary: int) -> int:
    """Write a Llama with uniform random weights, one tensor in memory at a time.

    Args:
        folder: An empty folder.
        hidden: Hidden size; a multiple of 64.
        layers: Number of layers.
        vocabulary: Rows of the embeddings.

    Returns:
        Bytes of the weights.
    """
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=11 * hidden // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, vocab_size=vocabulary,
        max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    model = empty_model(config, torch.float32)
    generator = torch.Generator().manual_seed(0)
    pool = torch.empty(_POOL).uniform_(-math.sqrt(3.0), math.sqrt(3.0), generator=generator)

    def draw(like: Tensor) -> Tensor:
        """Norms of one; else the pool from some place on, over and over: quicker than drawing."""
        if like.dim() == 1:
            return torch.ones(like.shape)
        place = int(torch.randint(0, _POOL, (), generator=generator))
        values = pool.roll(place).repeat(-(-like.numel() // _POOL))[: like.numel()]
        return values.view(like.shape) / math.sqrt(like.shape[-1])

    model.save_pretrained(folder, state_dict={})
    write_shards(folder, model.named_parameters(), draw, shard_bytes=1 << 30)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def work(folder: Path, *, streamed: bool) -> dict[str, Any]:
    """Calibrate, prune, evaluate and, if streamed, save; one JSON object of results and costs."""
    config = LlamaConfig.from_pretrained(folder)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    decoder: Decoder
    if streamed:
        decoder = open_streamed(
            folder, config, state_bytes=_STATE_BYTES, scratch=folder.parent / "scratch"
        )
    else:
        decoder = Decoder(AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval())
    seconds["open"] = time.perf_counter() - start
    batches, windows, requests = _inputs(int(config.vocab_size))
    start = time.perf_counter()
    method = build_method("shortgpt")
    calibration = method.calibrate(decoder, batches)
    pruned = method.prune(decoder, calibration, SPARSITY, batches, 0)
    seconds["calibrate and prune"] = time.perf_counter() - start
    start = time.perf_counter()
    paths = [dense_path(decoder), pruned.path(decoder, "shortgpt")]
    if streamed:
        answers, (nlls,) = evaluate_streamed(paths, requests, [windows])
        nll = nlls.tolist()
    else:
        answers = score(paths, requests)
        nll = [found.nll for found in perplexity(paths, windows)]
    seconds["evaluate"] = time.perf_counter() - start
    found = {
        "cosine": calibration.cosine.flatten().tolist(),
        "removed": pruned.plan.removed_layers,
        "loglikelihood": [answer.loglikelihood.tolist() for answer in answers],
        "nll": nll,
        "seconds": seconds,
        "peak_bytes": largest_resident(),
    }
    if isinstance(decoder, StreamedDecoder):
        found |= _saved(decoder, pruned, folder.parent / "pruned", seconds)
    return found


def _saved(
    decoder: StreamedDecoder, pruned: Pruned, folder: Path, seconds: dict[str, float]
) -> dict[str, Any]:
    """Save the pruned model; what it cost, and how often weights were read before."""
    reads = dict(decoder.source.reads)
    read = decoder.source.bytes_read
    start = time.perf_counter()
    save(pruned, decoder, None, folder, {})
    seconds["save"] = time.perf_counter() - start
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    shutil.rmtree(folder)
    return {
        "bytes_read": read,
        "most_reads_of_a_layer": max(n for name, n in reads.items() if ".layers." in name),
        "state_bytes": decoder.peak_state_bytes,
        "state_file_bytes": decoder.state_file_bytes,
        "saved_bytes": sum(sizes),
        "peak_bytes": largest_resident(),
    }


def run(options: Options) -> Outcome:
    """Make the model, let the three processes work, compare, and remove it."""
    size = dict(SIZES[options.size])
    limit = size.pop("limit_mib") << 20
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="speed-", dir=cache_dir()) as place:
        folder = Path(place) / "model"
        folder.mkdir()
        n_bytes = make_model(folder, **size)
        if limit >= n_bytes:
            raise StreamlineError(f"the limit of {limit} bytes holds the model of {n_bytes}")
        return race(folder, n_bytes, limit)


def race(folder: Path, n_bytes: int, limit: int) -> Outcome:
    """Let the three processes work on a model, and compare.

    Args:
        folder: The model; the folder above it is used for what is written.
        n_bytes: Bytes of its weights.
        limit: Bytes of the data segment that the streamed one, and the one that must fail, may use.

    Raises:
        StreamlineError: If a process fails that must not, or the other way round.
        Disagreement: If the results differ.
    """
    ours = _process(folder, "streamed", limit)
    theirs = _process(folder, "whole", None)
    refused = _fails(folder, limit)
    outcome = Outcome(
        name="streaming",
        work=f"calibrate, prune by ShortGPT to {SPARSITY:.0%} and evaluate a random Llama of "
        f"{_mib(n_bytes)} within {_mib(limit)}, layers streamed",
        against="the same with the model whole in memory, without a limit",
        target=None,
    )
    facts = _compare(ours, theirs)
    both = ("open", "calibrate and prune", "evaluate")
    wall = {
        name: sum(found["seconds"][stage] for stage in both)
        for name, found in (("ours", ours), ("theirs", theirs))
    }
    outcome.races = [Race(wall, wall, facts)]
    outcome.facts = {
        "weights_bytes": n_bytes,
        "limit_bytes": limit,
        "whole_model_within_the_limit": refused,
        "streamed": {key: value for key, value in ours.items() if key not in _RESULTS},
        "whole": {key: value for key, value in theirs.items() if key not in _RESULTS},
    }
    outcome.notes = _notes(outcome.facts)
    return outcome


_RESULTS = ("cosine", "loglikelihood", "nll")


def _inputs(vocabulary: int) -> tuple[Tensor, Tensor, list[Request]]:
    """Random calibration tokens, a random text and random questions with four options."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, vocabulary, shape, generator=generator)

    requests = []
    for question in range(TOKENS["questions"]):
        context = tuple(draw(16).tolist())
        requests += [
            Request("random", question, option, context, tuple(draw(3).tolist()))
            for option in range(4)
        ]
    return draw(1, TOKENS["calibration"]), draw(1, TOKENS["text"]), requests


def _compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Refuse results that differ; the largest difference of a summed log-probability."""
    require_equal("removed layers", ours["removed"], theirs["removed"])
    require_close("cosines", ours["cosine"], theirs["cosine"], 1e-6)
    worst = 0.0
    for mine, other in zip(ours["loglikelihood"], theirs["loglikelihood"], strict=True):
        worst = max(worst, require_close("log-probabilities", mine, other, TOLERANCE))
    require_close("losses of the text", ours["nll"], theirs["nll"], 1e-5, relative=True)
    return {"max_difference": worst}


def _command(folder: Path, kind: str, limit: int | None) -> list[str]:
    return [sys.executable, "-m", __name__, str(folder), kind, str(limit or 0)]


def _process(folder: Path, kind: str, limit: int | None) -> dict[str, Any]:
    """Let a process of its own work, and take its results."""
    done = subprocess.run(_command(folder, kind, limit), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StreamlineError(f"the {kind} model was not worked: {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _fails(folder: Path, limit: int) -> str:
    """What becomes of holding the model within the limit.

    Raises:
        StreamlineError: If it can be held, so that the limit proves nothing.
    """
    done = subprocess.run(_command(folder, "whole", limit), capture_output=True, text=True)
    if done.returncode == 0:
        raise StreamlineError(f"the whole model was held within {_mib(limit)}: it is no limit")
    last = done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"]
    return last[-1].replace(f"{folder}/", "")[:200]


def _notes(facts: dict[str, Any]) -> list[str]:
    ours, whole = facts["streamed"], facts["whole"]
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in ours["seconds"].items())
    return [
        f"Weights {_mib(facts['weights_bytes'])}, limit of the data segment "
        f"{_mib(facts['limit_bytes'])}; peak resident set {_mib(ours['peak_bytes'])} streamed "
        f"(saving included), {_mib(whole['peak_bytes'])} whole.",
        f"Two passes, one to calibrate and one to evaluate: no layer was read more than "
        f"{ours['most_reads_of_a_layer']} times, {_mib(ours['bytes_read'])} in all. Hidden states: "
        f"{_mib(ours['state_bytes'])} in memory, {_mib(ours['state_file_bytes'])} on disk.",
        f"The pruned checkpoint ({_mib(ours['saved_bytes'])}) was written within the same limit.",
        f"Streamed: {stages}.",
        f"The same process with the whole model within the limit: "
        f"{facts['whole_model_within_the_limit']}",
    ]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _main(folder: str, kind: str, limit: str) -> None:
    """One of the processes."""
    if int(limit):
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    torch.set_num_threads(1)
    found = work(Path(folder), streamed=kind == "streamed")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:4])
