"""Row: how long it takes from a model's folder to its first work: its key, and its weights."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from unittest import mock

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Outcome
from streamline.engine.decoder import Decoder
from streamline.engine.memory import free_memory
from streamline.engine.paths import dense_path
from streamline.evaluation.scoring.score import score
from streamline.sources.models import load_model, model_fingerprint

__all__ = ["run"]


def run(bench: Bench) -> Outcome:
    """Measure the row."""
    asked = bench.inputs.questions(bench.sizes.very_few).requests
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        bench.model.save_pretrained(place)
        bench.tokenizer.save_pretrained(place)
        size = sum(path.stat().st_size for path in place.glob("*.safetensors"))
        files = len(list(place.glob("*.safetensors")))
        os.sync()
        # An empty cache: nothing is remembered of these files.
        with mock.patch.dict(os.environ, {"STREAMLINE_CACHE": str(Path(folder) / "cache")}):
            started = time.perf_counter()
            model_fingerprint(str(place))
            found["key"] = time.perf_counter() - started
            before = time.perf_counter()
            model, _ = load_model(str(place), device=bench.device, dtype=bench.decoder.dtype)
            bench.synchronize()
            found["weights"] = time.perf_counter() - before
        before = time.perf_counter()
        score([dense_path(Decoder(model))], asked)
        found["first_answers"] = time.perf_counter() - before
        found["all"] = time.perf_counter() - started
        del model
    free_memory()
    return Outcome(
        name="start",
        work=f"{size / 1e9:.2f} GB of weights in {files} files, as they were just written",
        against="-",
        facts={"seconds": found, "aim_seconds": 8.0},
        notes=["Files that were just written lie in the system's memory: no disk is measured."],
    )
