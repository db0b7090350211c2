"""Scores, perplexities and losses through a streamed model against those of the model in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from families import THREE
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.engine.forward import Depths, run
from streamline.engine.paths import Node, dense_path
from streamline.engine.paths import Path as LayerPath
from streamline.errors import PlanError, UnsupportedModelError
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import score
from streamline.evaluation.scoring.together import answer_all
from streamline.methods.loss import score_paths
from streamline.methods.sublayers import Sublayers
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model


class Shift(nn.Module):
    """A replacement in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 32), requires_grad=False)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Scale each feature."""
        return hidden_states * self.weight


def paths(decoder: Decoder) -> list[LayerPath]:
    """Dropped, replaced at the start, within and at the end, halved, cut off, and empty."""
    nodes, shift = dense_path(decoder).nodes, Shift()
    return [
        dense_path(decoder),
        LayerPath(decoder, nodes[:1] + nodes[2:], "drop one"),
        LayerPath(decoder, nodes[:1] + nodes[3:], "drop two"),
        LayerPath(decoder, (*nodes[:1], Node(shift, 1), *nodes[3:]), "replace"),
        LayerPath(decoder, (Node(shift, 0), *nodes[1:]), "replace the first"),
        LayerPath(decoder, (*nodes[:3], Node(shift, 3)), "replace the last"),
        Sublayers(decoder).path([(1, "attention"), (2, "mlp")]),
        LayerPath(decoder, nodes[:2], "cut off"),
        LayerPath(decoder, (), "empty"),
    ]


def requests(n: int = 8, longest: int = 20) -> list[Request]:
    generator = torch.Generator().manual_seed(n)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (length,), generator=generator).tolist())

    out = []
    for doc in range(n):
        context = draw(longest - doc)
        out += [Request(f"t{doc % 2}", doc, i, context, draw(1 + i)) for i in range(3)]
    return out


def ids(n: int = 5, length: int = 24) -> Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", THREE)
def test_everything_is_as_in_memory(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, n_layers=4, tied=family in ("opt", "qwen3"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    decoder = open_streamed(tmp_path, model.config, state_bytes=50_000, scratch=tmp_path)
    decoder.model.set_attn_implementation(model.config._attn_implementation)
    whole = paths(Decoder(model))
    with decoder.source as source:
        streamed = paths(decoder)
        source.reads.clear()
        wanted = score(whole, requests(), batch_tokens=60)
        found = score(streamed, requests(), batch_tokens=60)
        assert set(source.reads.values()) == {1}
        for a, b in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(a.loglikelihood, b.loglikelihood)
            np.testing.assert_array_equal(a.greedy, b.greedy)
            np.testing.assert_array_equal(a.n_tokens, b.n_tokens)
        assert perplexity(whole, ids()) == perplexity(streamed, ids())
        assert score_paths(whole, ids()) == score_paths(streamed, ids())


def test_a_long_row_is_attended_in_blocks(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=2)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(tmp_path)
    decoder = open_streamed(tmp_path, model.config)
    asked = requests(6, longest=200)
    with decoder.source:
        (wanted,) = score([dense_path(Decoder(model))], asked, batch_tokens=4096)
        (found,) = score([dense_path(decoder)], asked, batch_tokens=4096)
    np.testing.assert_array_equal(wanted.loglikelihood, found.loglikelihood)


def test_questions_and_texts_share_one_pass(tmp_path: Path) -> None:
    model = tiny_model("qwen2", n_layers=3)
    model.save_pretrained(tmp_path)
    decoder = open_streamed(tmp_path, model.config)
    seen: list[tuple[int, int]] = []
    with decoder.source as source:
        streamed = paths(decoder)[:3]
        source.reads.clear()
        found = dict(
            answer_all(
                streamed, [requests()], [ids(), ids(3, 9)], progress=lambda *p: seen.append(p)
            )
        )
        assert set(source.reads.values()) == {1}
        decoder.model.set_attn_implementation(model.config._attn_implementation)
    assert {number: len(results) for number, results in found.items()} == {0: 3, 1: 3, 2: 3}
    assert seen == [(i, 5) for i in range(1, 6)]
    wanted = perplexity(paths(Decoder(model))[:3], ids(3, 9))
    assert [p.nll for p in found[2]] == pytest.approx([p.nll for p in wanted], rel=1e-5)


def test_layers_that_no_path_runs_are_not_read(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=4)
    model.save_pretrained(tmp_path)
    decoder = open_streamed(tmp_path, model.config)
    nodes = dense_path(decoder).nodes
    with decoder.source as source:
        score([LayerPath(decoder, (*nodes[:1], *nodes[3:]))], requests())
        read = {name.split(".")[2] for name in source.reads if ".layers." in name}
    assert read == {"0", "3"}


def test_a_path_that_goes_back_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=3)
    model.save_pretrained(tmp_path)
    decoder = open_streamed(tmp_path, model.config)
    nodes = dense_path(decoder).nodes
    both = nn.ModuleList(decoder.layers[:2])
    with decoder.source:
        with pytest.raises(PlanError, match="runs layer 0 after layer 1"):
            list(run([LayerPath(decoder, (nodes[1], nodes[0]))], []))
        with pytest.raises(PlanError, match=r"weights of layers \[0, 1\]"):
            list(run([LayerPath(decoder, (Node(both, 0),))], []))


def test_another_model_among_the_paths_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=2)
    model.save_pretrained(tmp_path)
    decoder = open_streamed(tmp_path, model.config)
    other = dense_path(Decoder(model), "healed")
    with (
        decoder.source,
        pytest.raises(UnsupportedModelError, match="'healed' is a model of its own"),
    ):
        score([dense_path(decoder), other], requests())


def test_a_layer_twice_in_a_row_comes_once(tmp_path: Path) -> None:
    """Two nodes of one layer run in its one turn."""
    model = tiny_model("llama", n_layers=3)
    model.save_pretrained(tmp_path)
    decoder = open_streamed(tmp_path, model.config)
    decoder.model.set_attn_implementation(model.config._attn_implementation)

    def repeated(of: Decoder) -> LayerPath:
        nodes = dense_path(of).nodes
        return LayerPath(of, (nodes[0], nodes[1], nodes[1], nodes[2]))

    with decoder.source as source:
        source.reads.clear()
        (found,) = score([repeated(decoder)], requests())
        assert set(source.reads.values()) == {1}
    (wanted,) = score([repeated(Decoder(model))], requests())
    np.testing.assert_array_equal(wanted.loglikelihood, found.loglikelihood)


@dataclass(frozen=True)
class Watching(Depths):
    """Notes whether kernels are replaced and whether no gradient may use the states."""

    seen: list[tuple[bool, bool]] = field(default_factory=list)

    @contextmanager
    def around(self, decoder: Decoder, modules: Iterable[nn.Module]) -> Iterator[None]:
        """The modules that run now."""
        replaced = any("forward" in vars(part) for one in modules for part in one.modules())
        self.seen.append((replaced, torch.is_inference_mode_enabled()))
        yield


@pytest.mark.parametrize("for_training", [False, True])
def test_states_for_training_are_made_as_in_memory(tmp_path: Path, for_training: bool) -> None:
    model = tiny_model("llama", n_layers=2)
    model.save_pretrained(tmp_path)
    streamed = open_streamed(tmp_path, model.config, scratch=tmp_path)
    with streamed.source:
        for decoder in (Decoder(model), streamed):
            job = Watching(torch.arange(6)[None], for_training=for_training)
            ((_, (states,)),) = run([dense_path(decoder)], [job])
            assert job.seen[-1] == (not for_training, not for_training)
            assert states.is_inference() == (not for_training)
