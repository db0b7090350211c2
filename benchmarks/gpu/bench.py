"""What every row is given: the model on its device, the questions, the sizes of the work.

Example::

    bench = Bench.build("tiny", torch.device("cpu"), torch.bfloat16, inputs="made-up")
    bench.race(outcome, 2, ours, theirs, compare)       # seconds and peak memory of the device
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from streamline.benchmarks.gpu.inputs import Inputs, MadeUp, Packaged
from streamline.benchmarks.gpu.model import random_llama
from streamline.benchmarks.speed.common import Outcome, contest
from streamline.engine.decoder import Decoder
from streamline.environment import peak_memory_bytes
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.sources.models import load_tokenizer
from streamline.testing.models import tiny_tokenizer

__all__ = ["SIZES", "Bench", "Sizes"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much each row does.

    Attributes:
        matrices: Rows, inner and columns of the products whose rate is measured.
        questions: Of each task, for the dense model.
        few: Of each task, for many models and for agreement.
        very_few: Of each task, for the CPU.
        batch_sizes: lm-eval's batch sizes; the fastest is the peer.
        sparsities: Of the variants.
        span_tokens: Samples and tokens of the span scores.
        trial_tokens: Sequences and tokens of a trial of SLEB.
        removed: Layers that SLEB removes.
        train_tokens: Sequences and tokens that replacements are trained on.
        texts: Prompts and new tokens.
    """

    matrices: tuple[tuple[int, int, int], ...]
    questions: int
    few: int
    very_few: int
    batch_sizes: tuple[int, ...]
    sparsities: tuple[float, ...]
    span_tokens: tuple[int, int]
    trial_tokens: tuple[int, int]
    removed: int
    train_tokens: tuple[int, int]
    texts: tuple[int, int]


SIZES = {
    "7b": Sizes(
        matrices=((8192, 8192, 8192), (16384, 4096, 11008)),
        questions=150,
        few=30,
        very_few=1,
        batch_sizes=(64, 128, 256),
        sparsities=(0.1, 0.15, 0.25),
        span_tokens=(8, 2048),
        trial_tokens=(10, 128),
        removed=8,
        train_tokens=(24, 2048),
        texts=(16, 48),
    ),
    "tiny": Sizes(
        matrices=((128, 128, 128),),
        questions=3,
        few=2,
        very_few=1,
        batch_sizes=(4,),
        sparsities=(0.15, 0.3),
        span_tokens=(1, 64),
        trial_tokens=(2, 32),
        removed=2,
        train_tokens=(8, 32),
        texts=(2, 6),
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """One model on one device, and what is asked of it.

    Attributes:
        shape: Name of the model's shape.
        sizes: How much each row does.
        model: The model.
        tokenizer: Its tokenizer.
        inputs: Questions, prompts and tokens.
        decoder: The model as the engine sees it.
        budget: Batch sizes of scoring, found once for all rows, as in a run.
    """

    shape: str
    sizes: Sizes
    model: Any
    tokenizer: Any
    inputs: Inputs
    decoder: Decoder
    budget: TokenBudget = field(default_factory=TokenBudget)

    @classmethod
    def build(
        cls,
        shape: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        inputs: str,
        tokenizer: str | None = None,
    ) -> Bench:
        """Draw the model.

        Args:
            shape: A key of `SIZES`.
            device: Where everything runs.
            dtype: Of the weights.
            inputs: ``packaged`` or ``made-up``.
            tokenizer: Folder or name; None for the embedded model's, or with made-up questions
                one of bytes.
        """
        made_up = inputs == "made-up"
        if tokenizer is None and made_up:
            encoder: Any = tiny_tokenizer()
        else:
            encoder = _tokenizer(tokenizer)
        model = random_llama(shape, encoder, device, dtype)
        return cls(
            shape=shape,
            sizes=SIZES[shape],
            model=model,
            tokenizer=encoder,
            inputs=MadeUp(encoder) if made_up else Packaged(encoder, model, SIZES[shape].questions),
            decoder=Decoder(model),
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.decoder.device

    @property
    def exact(self) -> bool:
        """Whether the numbers are float32, in which results are compared tightly."""
        return self.decoder.dtype == torch.float32

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int = 3) -> float:
        """Median time of some work, its end awaited."""
        times = []
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def race(
        self,
        outcome: Outcome,
        repeats: int,
        ours: Callable[[], Any],
        theirs: Callable[[], Any],
        compare: Callable[[Any, Any], dict[str, Any]],
    ) -> Outcome:
        """As :func:`contest`, the end of the device's work awaited and its memory counted.

        Args:
            outcome: The row; its races are filled in.
            repeats: Repetitions.
            ours: Our way.
            theirs: The peer's.
            compare: Given both results; raises `Disagreement` or returns facts.
        """
        peaks: dict[str, list[int | None]] = {"ours": [], "theirs": []}

        def watched(side: str, work: Callable[[], Any]) -> Callable[[int], Any]:
            def run(_: int) -> Any:
                self.synchronize()
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                found = work()
                self.synchronize()
                peaks[side].append(peak_memory_bytes(self.device))
                return found

            return run

        races = contest(repeats, watched("ours", ours), watched("theirs", theirs), compare)
        for index, race in enumerate(races):
            if self.device.type == "cuda":  # all that is held, weights included
                held: dict[str, int | None] = {side: peaks[side][index] for side in peaks}
                race = dataclasses.replace(race, peak_bytes=held)
            outcome.races.append(race)
        return outcome


def _tokenizer(name: str | None) -> Any:
    """A tokenizer of a folder that need not hold a model, or of a model's name."""
    from pathlib import Path

    from transformers import AutoTokenizer

    if name is not None and Path(name).is_dir():
        return AutoTokenizer.from_pretrained(name)
    return load_tokenizer(name or "smollm2-135m-instruct")
