"""Two processes give the numbers of one, in a script of one's own and in a run."""

from __future__ import annotations

import copy
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from streamline.calibration import measure
from streamline.distributed import WHOLE, Shard, interleaved, joined, scatter, team
from streamline.engine.decoder import Decoder
from streamline.engine.following import _Leader, _Pickler, _Unpickler, with_leader
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Node, dense_path
from streamline.engine.paths import Path as LayerPath
from streamline.errors import StreamlineError
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.generation.shards import generate_shared
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import score
from streamline.methods.loss import path_losses
from streamline.methods.replacement import FFN
from streamline.run.config import RunConfig, build_config
from streamline.run.pipeline import run
from streamline.testing.models import tiny_model, tiny_tokenizer

TOKENS = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(0))
METHODS = "sleb,slicegpt,llm-streamline-ffn"


def test_a_share_is_every_nth_item() -> None:
    parts = [Shard(rank, 3).of(range(8)) for rank in range(3)]
    assert [list(part) for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert interleaved(parts) == list(range(8))
    assert list(WHOLE.of(range(8))) == list(range(8))


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as found:
        assert found.shard == WHOLE
    assert with_leader(lambda: 3) == 3


def test_a_model_travels_once_and_its_layers_by_name() -> None:
    decoder = Decoder(tiny_model("llama", n_layers=3, tied=True))
    ffn = FFN(32, 16)
    fast = FastLinears(decoder.layers, decoder.model)
    leader = _Leader(WHOLE)
    with fast.active():  # as in a search that lays weights out once for many calls
        body, tensors = leader._packed(decoder.model)
    clones = [t if t is None else torch.nn.Parameter(t.detach().clone()) for t in tensors]
    model = _Unpickler(body, clones, {}).load()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    other = Decoder(model)
    named = {id(decoder): ("decoder", 0)}
    named |= {id(m): ("module", 0, name) for name, m in decoder.model.named_modules()}
    stream = io.BytesIO()
    pickler = _Pickler(stream, named)
    pickler.dump([LayerPath(decoder, (Node(decoder.layers[0], 0), Node(ffn, 1)))])
    assert {id(t) for t in pickler.tensors} == {id(t) for t in ffn.parameters()}
    (path,) = _Unpickler(stream.getvalue(), copy.deepcopy(pickler.tensors), {0: other}).load()
    assert path.decoder is other and path.nodes[0].module is other.layers[0]
    wanted = LayerPath(decoder, (Node(decoder.layers[0], 0), Node(ffn, 1)))
    assert path_losses([path], TOKENS) == path_losses([wanted], TOKENS)


def test_two_processes_give_the_numbers_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=os.environ | launched | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        alone, written = figures(), texts()
        records = run(config(tmp_path, tmp_path / "alone"))
        errors = [worker.communicate(timeout=240)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["figures"] == alone
        assert found["texts"] == found["led"] == written and len(written) == 300
        assert found["shares"] == [[0, 2], [1, 2]]
        assert found["fault"] == (
            "ValueError: broken here"
            if rank
            else "StreamlineError: process 1 of 2 failed: ValueError: broken here"
        )
        assert found["records"] == numbers(records)
    assert [record.status for record in records] == ["ok"] * 4


def place(folder: Path) -> None:
    """A tiny model, a text and questions."""
    tiny_model("llama", n_layers=4).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [f"the {i} quick brown foxes jump over {i * 7} lazy dogs" for i in range(200)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    (folder / "data" / "piqa").mkdir(parents=True)
    rows = [
        {"goal": f"keep {i} dry", "sol1": f"put {i} in a box", "sol2": "leave it", "label": i % 2}
        for i in range(8)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "data" / "piqa" / "dev.jsonl").write_text(text)


def config(folder: Path, out: Path) -> RunConfig:
    text = {"texts": str(folder / "text.jsonl"), "length": 16}
    training = {"n_tokens": 64, "batch_tokens": 32, "validation_tokens": 32, "evaluations": 1}
    return build_config(
        {
            "models": str(folder / "model"),
            "methods": METHODS,
            "sparsities": "0.3",
            "tasks": "piqa",
            "out": out,
            "device": "cpu",
            "efficiency": "off",
            "batch_tokens": 64,
            "data_dir": folder / "data",
            "calibration": text | {"n_samples": 4},
            "training": text | training,
            "perplexity": text | {"n_tokens": 64},
        }
    )


def numbers(records: list[Any]) -> list[Any]:
    """Everything measured but the times and the memory, as JSON."""
    kept = ("method", "status", "plan", "parameters", "tasks", "summary")
    return [{k: record.to_json()[k] for k in kept} for record in records]


def figures() -> list[Any]:
    """Scores, perplexities, losses and cosines of a dense model and a pruned one."""
    decoder = Decoder(tiny_model("llama", n_layers=3))
    layers = decoder.layers
    pruned = LayerPath(decoder, (Node(layers[0], 0), Node(layers[2], 2)))
    paths = [dense_path(decoder), pruned]
    requests = [Request("t", i, j, (i, 7, i + j), (j, i)) for i in range(30) for j in range(2)]
    answers = score(paths, requests, batch_tokens=40)
    calibration = measure(decoder, TOKENS, batch_tokens=16)
    return [
        [answer.loglikelihood.tolist() for answer in answers],
        [answer.greedy.tolist() for answer in answers],
        [found.nll for found in perplexity(paths, TOKENS, batch_tokens=16)],
        path_losses(paths, TOKENS),
        calibration.cosine.tolist(),
        calibration.angle.tolist(),
    ]


def texts() -> list[Any]:
    """Tokens that two paths generate behind some prompts, by path and prompt."""
    decoder = Decoder(tiny_model("llama", n_layers=3))
    layers = decoder.layers
    pruned = LayerPath(decoder, (Node(layers[0], 0), Node(layers[2], 2)))
    prompts = [Prompt((5, 6, i, i + 1), ("zz",), 4) for i in range(150)]
    found: dict[tuple[int, int], list[int]] = {}

    def written(path: int, prompt: int, tokens: list[int]) -> None:
        assert (path, prompt) not in found
        found[path, prompt] = tokens

    generate_shared([dense_path(decoder), pruned], prompts, tiny_tokenizer(), written=written)
    return [[*key, *found[key]] for key in sorted(found)]


def told(shard: Shard, *, progress: None) -> list[int]:
    """A shard, for the test of spreading."""
    return [shard.rank, shard.size]


def broken(shard: Shard, *, progress: None) -> None:
    """Fails on the second process only."""
    if shard.rank == 1:
        raise ValueError("broken here")


def work(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    with joined():
        rank = team().shard.rank
        found = {"figures": figures(), "shares": scatter(told), "texts": texts()}
        try:
            scatter(broken)
        except (StreamlineError, ValueError) as error:
            found["fault"] = f"{type(error).__name__}: {error}"
    found["led"] = with_leader(texts)
    found["records"] = numbers(run(config(folder, folder / "together")))
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
