"""EvoPress, for depth: an evolutionary search over which attentions and MLPs to leave out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, layers_to_remove, statistics_flops, trials_flops
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, PathTrie, dense_path
from streamline.errors import ConfigError
from streamline.fields import Count
from streamline.method import Method, Pruned, Size
from streamline.methods.divergence import Divergences
from streamline.methods.loss import path_losses
from streamline.methods.sublayers import SUBLAYERS, Sublayers, Unit
from streamline.methods.unfinished import keep_unfinished, unfinished
from streamline.plan import Plan
from streamline.progress import part

Removed = tuple[tuple[int, ...], tuple[int, ...]]
"""Attentions and MLPs that are left out, in rising order."""


@dataclass(frozen=True, kw_only=True)
class EvoPress(Method):
    """Search attentions and MLPs to leave out.

    Equally many of each, found by mutation and selection, one parent at a time. Each generation
    draws ``offspring`` mutations of it: the smaller of two draws from 1 to ``mutations`` swaps,
    each of one that is left out with one of its kind that is not. They are selected in stages on
    more and more tokens, drawn anew for each stage; the parent joins the last stage and is replaced
    by what is fitter there.

    Attributes:
        unit: ``"sublayer"``, or ``"layer"`` for whole layers.
        fitness: ``"kl"`` of the dense model's next-token distributions and the candidate's, or
            ``"loss"``, the candidate's own.
        generations: Generations; None for ``k (L - k) / 1.5`` rounded down, with ``k`` of ``L``
            layers' worth removed.
        initial: Random candidates that the first parent is chosen from.
        offspring: Candidates of a generation.
        survivors: How many candidates each stage of selection but the last leaves; the last
            leaves one.
        tokens: Tokens of each stage, the last one's last; the first parent is chosen on the first
            number. Where there are fewer calibration tokens, all.
        mutations: Most swaps of a mutation.

    Reference:
        EvoPress, arXiv:2410.14649, sections 3.2 and 4.1, algorithm 1.

    Differs from the released code:
        All candidates of a stage run as one trie with the dense model, whose logits are made again
        for each chunk instead of being kept. With whole layers every mutation swaps layers: there,
        mutations of MLPs are drawn and overwritten. A model of which hardly any candidates exist
        gets fewer offspring; there, the search does not end. Sequences come from the run's
        calibration texts instead of FineWeb-Edu.
    """

    name: ClassVar[str] = "evopress"
    paper: ClassVar[str] = "arXiv:2410.14649"

    unit: Literal["sublayer", "layer"] = "sublayer"
    fitness: Literal["kl", "loss"] = "kl"
    generations: Count | None = None
    initial: Count = 64
    offspring: Count = 32
    survivors: tuple[Count, ...] = (2,)
    tokens: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (2048, 32768)
    mutations: Count = 3

    def __post_init__(self) -> None:
        """Hold the fields against their annotations, and the stages against each other.

        Raises:
            ConfigError: If a value does not fit.
        """
        super().__post_init__()
        if len(self.survivors) + 1 != len(self.tokens):
            raise ConfigError(
                f"evopress selects in len(tokens) stages, all but the last with a number of "
                f"survivors: got tokens={list(self.tokens)} and survivors={list(self.survivors)}"
            )

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Search, going on where a killed run stopped."""
        n_remove = layers_to_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        search = Search(self, decoder, batches, n_remove, seed)
        search.run()
        if self.unit == "layer":
            return Pruned(Plan.drop(decoder.n_layers, search.parent[0]), notes=search.notes())
        return search.sublayers.pruned(units_of(search.parent), search.notes())

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The first candidates, and all generations as one that is drawn for it."""
        tokens = math.prod(shape)
        n_remove = layers_to_remove(decoder, sparsity)
        calibrated = statistics_flops(decoder, tokens)
        if n_remove == 0:
            return Effort(calibrated)
        search, draw = Search(self, decoder, torch.empty(shape), n_remove, 0), random.Random(0)
        first = _distinct(lambda: search.drawn(draw), self.initial)
        search.parent = first[0]
        candidates = _distinct(lambda: search.mutated(draw), self.offspring, search.parent)
        counts = [len(candidates), *(1 + n for n in self.survivors)]

        def stage(removed: Sequence[Removed], n_tokens: int) -> float:
            paths = [dense_path(decoder), *map(search.path, removed)]
            return trials_flops(paths, min(n_tokens, tokens))

        each = [stage(candidates[:n], t) for n, t in zip(counts, self.tokens, strict=True)]
        searched = stage(first, self.tokens[0]) + search.n_generations * sum(each)
        return Effort(calibrated, searched, passes=1 + search.n_generations * len(each))

    def size(self, decoder: Decoder, sparsity: float) -> Size | None:
        """The count of as many layers; None where sublayers leave a norm that both read."""
        n_remove = layers_to_remove(decoder, sparsity)
        if self.unit == "layer" or n_remove == 0:
            return Size.without(decoder, n_remove)
        sublayers = Sublayers(decoder)
        halves = sum(sublayers.n_removed([(0, kind)]) for kind in SUBLAYERS)
        if halves != decoder.layer_parameters(0):
            return None
        size = Size.without(decoder, n_remove)
        return Size(size.dense, size.pruned)


@dataclass
class Search:
    """One search.

    Attributes:
        method: Its settings.
        decoder: The dense model.
        batches: Calibration tokens, [N, T].
        n_remove: Attentions and MLPs to leave out, of each as many.
        seed: Seed of everything random.
        parent: What is left out by the fittest candidate so far.
        history: The parent's fitness after the first draw and each generation, on the tokens that
            it was selected by.
        n_tried: Candidates evaluated, counted once for each stage.
        layer_runs: Layer evaluations, one for each sequence that a layer ran on.
        naive_layer_runs: The same without sharing.
    """

    method: EvoPress
    decoder: Decoder
    batches: Tensor
    n_remove: int
    seed: int
    parent: Removed = ((), ())
    history: list[float] = field(default_factory=list)
    n_tried: int = 0
    layer_runs: int = 0
    naive_layer_runs: int = 0

    def __post_init__(self) -> None:
        """Make what all rounds share."""
        self.sublayers = Sublayers(self.decoder)
        units = [] if self.method.unit == "layer" else self.sublayers.units
        self._divergences = Divergences(self.decoder, map(self.sublayers.layer_without, units))

    @property
    def n_generations(self) -> int:
        """How many generations there are."""
        n_swaps = self.n_remove * (self.decoder.n_layers - self.n_remove)
        return self.method.generations or max(1, int(n_swaps / 1.5))

    def run(self) -> None:
        """All generations that are still to do."""
        self._resume(unfinished())
        total = self.n_generations
        if not self.history:
            with part(0, total + 1):
                self._first()
        for generation in range(len(self.history) - 1, total):
            with part(generation + 1, total + 1):
                self._generation(random.Random(f"{self.seed}/{generation}"))
            keep_unfinished(self._state())

    def notes(self) -> dict[str, Any]:
        """The search as it is written in the record."""
        return {
            "attention": list(self.parent[0]),
            "mlp": list(self.parent[1]),
            "generations": len(self.history) - 1,
            "fitness": self.history,
            "candidates_tried": self.n_tried,
            "layer_runs": self.layer_runs,
            "naive_layer_runs": self.naive_layer_runs,
        }

    def _first(self) -> None:
        """The fittest of random candidates."""
        draw = random.Random(f"{self.seed}/first")
        candidates = _distinct(lambda: self.drawn(draw), self.method.initial)
        [(fitness, self.parent)] = self._select(candidates, 1, self.method.tokens[0], draw)
        self.history.append(fitness)

    def _generation(self, draw: random.Random) -> None:
        """Mutate the parent and keep what is fittest."""
        candidates = _distinct(lambda: self.mutated(draw), self.method.offspring, self.parent)
        for n_left, n_tokens in zip(self.method.survivors, self.method.tokens, strict=False):
            candidates = [one for _, one in self._select(candidates, n_left, n_tokens, draw)]
        candidates.append(self.parent)
        [(fitness, self.parent)] = self._select(candidates, 1, self.method.tokens[-1], draw)
        self.history.append(fitness)

    def drawn(self, draw: random.Random) -> Removed:
        """Any candidate."""
        layers = range(self.decoder.n_layers)
        attention, mlp = (tuple(sorted(draw.sample(layers, self.n_remove))) for _ in range(2))
        return attention, attention if self.method.unit == "layer" else mlp

    def mutated(self, draw: random.Random) -> Removed:
        """The parent with some swaps."""
        most = self.method.mutations
        masks = [set(kind) for kind in self.parent]
        for _ in range(min(draw.randint(1, most), draw.randint(1, most))):
            mask = masks[0 if self.method.unit == "layer" else draw.randint(0, 1)]
            inside = sorted(mask)
            outside = [i for i in range(self.decoder.n_layers) if i not in mask]
            if outside:
                mask.add(draw.choice(outside))
                mask.discard(draw.choice(inside))
        attention, mlp = (tuple(sorted(mask)) for mask in masks)
        return attention, attention if self.method.unit == "layer" else mlp

    def _select(
        self, candidates: Sequence[Removed], n_left: int, n_tokens: int, draw: random.Random
    ) -> list[tuple[float, Removed]]:
        """The fittest candidates on newly drawn tokens, best first; of equals the earliest."""
        pieces = self._sample(n_tokens, draw)
        paths = [self.path(candidate) for candidate in candidates]
        if self.method.fitness == "kl":
            values = self._divergences(paths, pieces)
        else:
            weights = [piece.numel() - len(piece) for piece in pieces]
            losses = [path_losses(paths, piece) for piece in pieces]
            values = [
                sum(w * loss for w, loss in zip(weights, each, strict=True)) / sum(weights)
                for each in zip(*losses, strict=True)
            ]
        teacher = [dense_path(self.decoder)] if self.method.fitness == "kl" else []
        trie = PathTrie([*teacher, *paths])
        n_sequences = sum(map(len, pieces))
        self.n_tried += len(candidates)
        self.layer_runs += n_sequences * trie.n_runs
        self.naive_layer_runs += n_sequences * trie.n_naive_runs
        order = sorted(range(len(candidates)), key=values.__getitem__)
        return [(values[i], candidates[i]) for i in order[:n_left]]

    def _sample(self, n_tokens: int, draw: random.Random) -> list[Tensor]:
        """Sequences drawn without replacement, the last one cut, of so many tokens in all."""
        n_rows, length = self.batches.shape
        n_tokens = min(n_tokens, n_rows * length)
        whole, rest = divmod(n_tokens, length)
        rows = draw.sample(range(n_rows), whole + (rest >= 2))
        pieces = [self.batches[rows[:whole]]] if whole else []
        return pieces + ([self.batches[rows[whole:], :rest]] if rest >= 2 else [])

    def path(self, removed: Removed) -> Path:
        """A candidate as a path."""
        return self.sublayers.path(units_of(removed))

    def _state(self) -> dict[str, Any]:
        counts = [self.n_tried, self.layer_runs, self.naive_layer_runs]
        return {"parent": self.parent, "history": self.history, "counts": counts}

    def _resume(self, state: Any | None) -> None:
        if state is not None:
            attention, mlp = state["parent"]
            self.parent, self.history = (tuple(attention), tuple(mlp)), state["history"]
            self.n_tried, self.layer_runs, self.naive_layer_runs = state["counts"]


def _distinct(make: Callable[[], Removed], n: int, known: Removed | None = None) -> list[Removed]:
    """So many candidates that differ from each other and from a known one, or as many as come."""
    found: list[Removed] = []
    for _ in range(20 * n):
        candidate = make()
        if candidate not in found and candidate != known:
            found.append(candidate)
        if len(found) == n:
            break
    return found


def units_of(removed: Removed) -> list[Unit]:
    """Candidates as the units of :class:`streamline.methods.sublayers.Sublayers`."""
    return [(i, kind) for kind, mask in zip(SUBLAYERS, removed, strict=True) for i in mask]
