"""The loop of recovery: batches of text or answers in, optimiser steps of a state out.

Example::

    loop = LoraLoop(decoder, sequences, None, batches, dropouts, recipe, seed=0, autocast=None)
    loop.train(state, evaluations=4, progress=None, save_seconds=30.0)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn

from streamline.distributed.exchange import coming
from streamline.distributed.sums import reduced
from streamline.distributed.team import Shard, team
from streamline.distributed.work import agreed, broadcast
from streamline.engine.decoder import Decoder
from streamline.engine.head import summed_loss
from streamline.engine.transfer import summed
from streamline.errors import ConfigError, NotFiniteError
from streamline.training.distillation.teacher import Teacher
from streamline.training.lora_recipe import LoraRecipe
from streamline.training.objectives import mixed
from streamline.training.schedule import data_order
from streamline.training.sequences import Sequences
from streamline.training.state import TrainingState

__all__ = ["LoraLoop", "Noise", "SequenceDropout", "plan_batches"]

_TIMES = 10  # a state is kept again when training went on for so many times as long as that took


def plan_batches(
    sequences: Sequences, recipe: LoraRecipe, budget: int | None, seed: int
) -> list[Tensor]:
    """Indices of every optimiser step, by epochs and steps or up to a budget of tokens.

    Raises:
        ConfigError: If the budget is not positive.
    """
    if budget is not None and budget < 1:
        raise ConfigError(f"the token budget of recovery must be at least 1, got {budget}")
    size = recipe.batch
    if sequences.packed:
        size = max(1, round(recipe.batch * recipe.length / sequences.ids.shape[1]))
    batches: list[Tensor] = []
    seen = 0
    for epoch in itertools.count():
        if budget is None and epoch == recipe.epochs:
            return batches
        for indices in torch.split(data_order(len(sequences.ids), seed, epoch), size):
            if budget is None and len(batches) == recipe.max_steps:
                return batches
            so_far = seen + sequences.lengths[indices].cumsum(0)
            if budget is not None and int(so_far[-1]) >= budget:
                last = int((so_far >= budget).nonzero()[0])
                return [*batches, indices[: last + 1]]
            batches.append(indices)
            seen = int(so_far[-1])
    raise AssertionError("unreachable")


class Noise:
    """What is random in a step of recovery: for each sequence of the batch, by its place in it.

    So neither the sequences that run together nor the number of processes changes what one sees.

    Args:
        seed: Of the whole recovery.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._step, self._width = seed, 0, 0
        self._places: list[int] = []
        self._calls = 0

    def begin(self, step: int, width: int) -> None:
        """A step begins; its longest sequence has ``width`` tokens."""
        self._step, self._width = step, width

    def enter(self, places: Sequence[int]) -> None:
        """The sequences at some places of the batch run next, once through the model."""
        self._places, self._calls = list(places), 0

    def again(self) -> AbstractContextManager[None]:
        """What lets a layer that runs next see the same when it runs once more."""
        return self._from(self._calls)

    @contextmanager
    def _from(self, calls: int) -> Iterator[None]:
        before, self._calls = self._calls, calls
        try:
            yield
        finally:
            self._calls = before

    def kept(self, like: Tensor, probability: float) -> Tensor:
        """What of some inputs is kept: ones and zeros of the shape of ``like``.

        Args:
            like: Inputs of the sequences, [B, T, D], or as some layers lay them out, [B * T, D].
            probability: With which each is kept.
        """
        self._calls += 1
        generator = torch.Generator(like.device)
        shape = (self._width, like.shape[-1])
        length = like.numel() // like.shape[-1] // len(self._places)
        rows = []
        for place in self._places:
            about = f"{self._seed} {self._step} {place} {self._calls}".encode()
            generator.manual_seed(int.from_bytes(blake2b(about, digest_size=7).digest()))
            row = torch.empty(shape, dtype=like.dtype, device=like.device)
            rows.append(row.bernoulli_(probability, generator=generator)[:length])
        return torch.cat(rows).reshape(like.shape)


class SequenceDropout(nn.Module):
    """Dropout whose noise belongs to the sequence.

    Args:
        p: The fraction of the inputs that is dropped.
        noise: Shared by all of a model.
    """

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self.noise = p, noise

    def forward(self, hidden: Tensor) -> Tensor:
        """Some inputs, as they are outside training."""
        if not self.training:
            return hidden
        return hidden * self.noise.kept(hidden, 1.0 - self.p) / (1.0 - self.p)


@dataclass(frozen=True)
class LoraLoop:
    """The loop over a recovery's batches.

    ``layers`` run in the place of the model's, where each of several processes has a part of them.
    """

    decoder: Decoder
    sequences: Sequences
    held_out: Sequences | None
    batches: list[Tensor]
    dropouts: list[nn.Module]
    noise: Noise
    recipe: LoraRecipe
    autocast: torch.dtype | None
    micro_batch: int = 4096
    teacher: Teacher | None = None
    layers: Sequence[nn.Module] | None = None

    def train(
        self,
        state: TrainingState,
        evaluations: int,
        progress: Callable[[int, int, str], None] | None,
        save_seconds: float,
    ) -> None:
        """Make the steps that are left, until the last one or the recipe's patience ends.

        Raises:
            NotFiniteError: If a validation loss is not finite, or the gradient of more than half of
                all steps.
        """
        saved, pause = time.monotonic(), save_seconds
        total = sum(int(self.sequences.lengths[indices].sum()) for indices in self.batches)
        n_steps = len(self.batches)
        started = time.monotonic()
        if self.held_out is not None and not state.rows:
            state.validated(self._loss(self.held_out))
            state.spent(time.monotonic() - started)
        self._require_finite(state)
        for step in range(state.step + 1, n_steps + 1):
            if self._settled(state):
                break
            started = time.monotonic()
            indices = self.batches[step - 1]
            with coming():
                loss = self._gradients(state, indices, step)
            state.update(loss, int(self.sequences.lengths[indices].sum()))
            if self.held_out is not None and self._due(step, n_steps, evaluations):
                state.validated(self._loss(self.held_out))
            state.spent(time.monotonic() - started)
            self._require_finite(state)
            if progress is not None:
                text = f"step {step}/{n_steps}, loss {loss:.4f}"
                progress(state.n_tokens, total, text)
            due = step < n_steps and time.monotonic() - saved >= pause
            if due if self.layers is None else broadcast(due):
                began = time.monotonic()
                self._save(state)
                saved = time.monotonic()
                pause = max(save_seconds, _TIMES * (saved - began)) if save_seconds else 0.0

    def _save(self, state: TrainingState) -> None:
        """Keep a state; where layers are in parts all processes wait until it is written."""
        if self.layers is None:
            state.save()
        else:
            agreed(state.save)

    def _due(self, step: int, n_steps: int, evaluations: int) -> bool:
        """Whether the validation loss is to be measured after a step."""
        if self.recipe.evaluation_steps is not None:
            due = step % self.recipe.evaluation_steps == 0
        else:
            due = step * evaluations // n_steps > (step - 1) * evaluations // n_steps
        return due or step == n_steps

    def _settled(self, state: TrainingState) -> bool:
        """Whether the validation loss has not fallen for as long as the recipe waits."""
        since = [r for r in state.rows if r["step"] > state.best_step]
        measured = sum(row["validation_loss"] is not None for row in since)
        return self.recipe.patience is not None and measured >= self.recipe.patience

    def _require_finite(self, state: TrainingState) -> None:
        """Refuse to go on where there is nothing to learn from."""
        ended = state.done or self._settled(state)
        if state.not_finite is None or (state.failed_step is None and not ended):
            return
        what = "LoRA fine-tuning" if self.teacher is None else "distillation"
        raise NotFiniteError(
            f"{what}: {state.not_finite} is not finite: the model's states or the "
            "training overflow; take bfloat16 for a float16 model, or a lower learning rate"
        )

    def _gradients(self, state: TrainingState, indices: Tensor, step: int) -> float:
        """Add the gradients of one optimiser batch; its mean loss per scored token."""
        count = max(1, int((self.sequences.lengths - self.sequences.first)[indices].sum()))
        losses = list[Tensor]()
        self._dropout(True)
        self.noise.begin(step, int(self.sequences.lengths[indices].max()))
        for places, weight in self._micro(self.sequences, indices):
            self.noise.enter(places.tolist())
            loss = self._sum(self.sequences, indices[places]) / count * weight
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self._dropout(False)
        if state.shares is not None:
            state.shares.collect()
        return reduced(state.alike, [summed(losses)])[0]

    def _dropout(self, on: bool) -> None:
        """Switch the adapters' dropout, and no other."""
        for module in self.dropouts:
            module.train(on)

    @torch.no_grad()
    def _loss(self, sequences: Sequences) -> float:
        """Mean loss per scored token."""
        parts = self._micro(sequences, torch.arange(len(sequences.ids)))
        with coming():
            total = summed([weight * self._sum(sequences, part) for part, weight in parts])
        return reduced((), [total])[0] / int((sequences.lengths - sequences.first).sum())

    def _micro(self, sequences: Sequences, indices: Tensor) -> list[tuple[Tensor, float]]:
        """This process's places among some indices, in parts that fit one forward pass.

        Where weights are in parts all processes run the model equally often: one that has less to
        do runs the first place again, which counts nothing. With each part its weight.
        """
        width = int(sequences.lengths[indices].max())
        size = max(1, self.micro_batch // width)
        places = torch.arange(len(indices))
        mine = team().rows(places)
        found = [(part, 1.0) for part in torch.split(mine, size) if len(part)]
        if self.layers is not None:
            most = -(-len(Shard(0, team().size).rows(places)) // size)
            found += [(places[:1], 0.0)] * (most - len(found))
        return found

    def _sum(self, sequences: Sequences, indices: Tensor) -> Tensor:
        """Summed loss of some sequences: of their tokens, or of what the teacher expects there."""
        ids, scored = sequences.part(indices)
        if self.teacher is not None:
            return self.teacher.divergence(ids, scored)
        decoder = self.decoder
        with mixed(decoder.device, self.autocast):
            entry = decoder.enter(ids)
            hidden = entry.hidden
            layers = decoder.layers if self.layers is None else self.layers
            for index, layer in enumerate(layers):
                hidden = decoder.run(layer, hidden, entry, index)
            return summed_loss(decoder, hidden, ids, scored)
