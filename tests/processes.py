"""What each of several processes does in the tests that they work together."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from process_trainings import TOKENS, in_parts, lending, trainings

from streamline.calibration import measure
from streamline.distributed.exchange import coming
from streamline.distributed.meeting import joined
from streamline.distributed.sums import reduced
from streamline.distributed.team import LostProcess, Shard, leads, team
from streamline.distributed.work import agreed, scatter, shared
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, dense_path
from streamline.engine.paths import Path as LayerPath
from streamline.errors import NotFiniteError
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.generation.shards import generate_shared
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import score
from streamline.methods.loss import path_losses
from streamline.run.config import RunConfig, build_config
from streamline.run.pipeline import run
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model, tiny_tokenizer
from streamline.training.parts.shares import processes as parts_of

RECOVERY = {"recovery": "lora,kd", "lora": {"preset": "llm-pruner", "n_tokens": 64}}
RECOVERED = "shortgpt,llm-streamline-ffn"
STARTED = "llm-streamline-layer,streamline-v1-layer-shared+init=mean,llm-streamline-ffn+init=linear"
METHODS = "sleb,slicegpt,llm-streamline-ffn,linearpatch+distill_epochs=1"


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


def config(folder: Path, out: Path, methods: str = METHODS, **more: Any) -> RunConfig:
    text = {"texts": str(folder / "text.jsonl"), "length": 16}
    training = {"n_tokens": 64, "batch_tokens": 32, "validation_tokens": 32, "evaluations": 1}
    training |= {"post_train": {"n_tokens": 48}}
    return build_config(
        {
            "models": str(folder / "model"),
            "methods": methods,
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
            **more,
        }
    )


def numbers(records: list[Any]) -> dict[str, Any]:
    """Everything measured but the times and the memory, by its place."""
    kept = ("method", "status", "plan", "parameters", "tasks", "summary")
    return flat([{k: record.to_json()[k] for k in kept} for record in records])


def recovered(folder: Path, size: int) -> dict[str, Any]:
    """What a run trains and recovers: of one process in memory, of several layer by layer."""
    out = folder / str(size) / "recovered"
    return numbers(run(config(folder, out, RECOVERED, **RECOVERY, stream=size > 1)))


def started(folder: Path, size: int) -> dict[str, Any]:
    """What a run trains that starts from layers or states: likewise."""
    return numbers(run(config(folder, folder / str(size) / "started", STARTED, stream=size > 1)))


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """The values in a JSON value, each by its place."""
    if not isinstance(value, dict | list):
        return {place: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, part in items for k, v in flat(part, f"{place}/{name}").items()}


def pruned(decoder: Decoder) -> LayerPath:
    """A path without layer 1."""
    return LayerPath(decoder, (Node(decoder.layers[0], 0), Node(decoder.layers[2], 2)))


def streamed_scores(folder: Path) -> list[Any]:
    """The same of a model whose layers come one at a time."""
    decoder = open_streamed(folder / "model", tiny_model("llama", n_layers=4).config)
    with decoder.source:
        return scores(decoder)


def scores(decoder: Decoder) -> list[Any]:
    """Scores, perplexities, losses and cosines of a dense model and a pruned one."""
    paths = [dense_path(decoder), pruned(decoder)]
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
    prompts = [Prompt((5, 6, i, i + 1), ("zz",), 4) for i in range(150)]
    found: dict[tuple[int, int], list[int]] = {}

    def written(path: int, prompt: int, tokens: list[int]) -> None:
        assert (path, prompt) not in found
        found[path, prompt] = tokens

    paths = [dense_path(decoder), pruned(decoder)]
    generate_shared(paths, prompts, tiny_tokenizer(), written=written)
    return [[*key, *found[key]] for key in sorted(found)]


def work(folder: Path, size: int) -> dict[str, Any]:
    """What each process does."""
    torch.set_num_threads(1)
    own = folder / str(size)
    with joined():
        return {
            "scores": scores(Decoder(tiny_model("llama", n_layers=3))),
            "streamed": streamed_scores(folder),
            "texts": texts(),
            "failures": failures() if size > 1 else None,
            "no room": no_room() if size > 1 else None,
            "parts": in_parts() if size > 1 else None,
            "lent": lending() if size > 1 else None,
            "listening": listening(),
            **trainings(own),
            "records": numbers(run(config(folder, own / "run"))),
            "recovered": recovered(folder, size) if size != 2 else None,
            "started": started(folder, size) if size != 3 else None,
        }


class Odd(Exception):
    """An error that is pickled but not put together again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def _not_read() -> None:
    raise ValueError("not read")


class Unreadable:
    """A value that no other process can put together."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _not_read, ()


def unreadable(shard: Shard, *, progress: None) -> Any:
    return torch.ones(3), None if shard.rank else Unreadable()


def ranks(shard: Shard, *, progress: None) -> int:
    return shard.rank


def failures() -> dict[str, Any]:
    """What this process sees, case by case, and whether they still work together afterwards."""
    last = team().size - 1

    def broken(rank: int) -> None:
        if team().rank == rank:
            raise ValueError(f"broken {rank}")

    def in_its_part(shard: Shard, *, progress: None) -> None:
        if shard.rank == last:
            raise ValueError(f"broken {last}")

    def while_others_wait() -> None:
        broken(last)
        scatter(ranks)

    def before_a_step() -> None:
        broken(last)
        try:
            agreed(lambda: scatter(ranks))
        except Exception as error:  # it is not of this step, and must not be held here
            raise AssertionError("held by the wrong step") from error

    def before_parts() -> None:
        broken(last)
        parts_of("cpu")

    group = dist.new_group(timeout=timedelta(seconds=2))

    def while_others_wait_elsewhere() -> None:
        broken(last)
        with coming():
            dist.all_reduce(torch.ones(1), group=group)

    def all_of_them() -> None:
        broken(team().rank)

    def not_finite() -> None:
        if leads():
            raise NotFiniteError("no number")

    def odd() -> None:
        if leads():
            raise Odd(1, 2)

    cases: dict[str, Callable[[], Any]] = {
        "in its part": lambda: scatter(in_its_part),
        "while others wait for its part": lambda: agreed(while_others_wait),
        "while others wait in an exchange of their own": lambda: agreed(
            while_others_wait_elsewhere
        ),
        "before a step that the others have begun": lambda: agreed(before_a_step),
        "before layers are divided": lambda: agreed(before_parts),
        "the first's": lambda: shared(lambda: broken(0)),
        "all": lambda: agreed(all_of_them),
        "one of ours keeps its kind": lambda: agreed(not_finite),
        "one that cannot be sent": lambda: shared(odd),
        "of what it was sent": lambda: agreed(lambda: scatter(unreadable)),
    }
    found: dict[str, Any] = {}
    for name, case in cases.items():
        try:
            case()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found | {"afterwards": scatter(ranks)}


def no_room() -> dict[str, str]:
    """What this process sees where the last one alone has too little memory for an exchange."""
    last = team().rank == team().size - 1

    def small(*size: Any, empty: Any = torch.empty, **more: Any) -> torch.Tensor:
        if size == (2**20,):
            raise RuntimeError("cannot allocate")
        made: torch.Tensor = empty(*size, **more)
        return made

    def parts() -> None:
        with pytest.MonkeyPatch.context() as patch:
            if last:
                patch.setattr(torch, "empty", small)
            scatter(lambda shard, *, progress: torch.ones(2**18))

    def total() -> None:
        endless = torch.nn.Parameter(torch.zeros(1).expand(2**45))  # has no memory yet
        parameter = endless if last else torch.nn.Parameter(torch.zeros(1))
        parameter.grad = None if last else torch.ones(1)
        reduced([parameter], [1.0])

    found = {}
    for place, case in {"for the parts": parts, "for a sum": total}.items():
        with pytest.raises(Exception) as info:
            agreed(case)
        found[place] = f"{type(info.value).__name__}: {info.value}"
    return found


def listening() -> list[str]:
    """Addresses at which this process listens."""
    found = psutil.Process().net_connections("tcp")
    return sorted({one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN})


def begin(folder: Path, size: int, rank: int, port: int) -> None:
    """One of several processes; what it found is left in a file, and then the last one is gone."""
    launched = {"WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launched.items()})
    found = json.dumps(work(folder, size))
    (folder / f"{size}-{rank}.json").write_text(found)
    if rank < size - 1:
        try:
            with joined():
                agreed(lambda: scatter(ranks))
        except LostProcess as error:
            (folder / f"{size}-{rank}.lost").write_text(str(error))


def main(folder: Path, ports: list[tuple[int, int]]) -> int:
    """Fork teams of some sizes, each at its port, so that everything is imported once."""
    children = []
    for size, port in ports:
        for rank in range(size):
            child = os.fork()
            if not child:
                code = 1
                try:
                    begin(folder, size, rank, port)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
