"""What a dense model answers itself, for others to learn from: written once, kept as it comes.

A sequence of text is continued from its beginning, an instruction is answered. The texts lie under
a key of all that decides them (the model, the prompts, the temperature, the seeds), so that every
cell of a run finds them and a killed one goes on.

Example::

    settings = DistillationSettings(own_answers=128)        # of sequences of 512: after 384 tokens
    found = own_answers(decoder, fingerprint, tokens, tokenizer, settings, seed=0, folder=cache)
    fine_tune(model, found.sequences, distillation=...)     # the loss is of the answers alone
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.distributed.team import leads
from streamline.distributed.work import led, shared
from streamline.engine.decoder import Decoder, eval_mode
from streamline.engine.finite import not_finite
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.evaluation.generation.alone import unsupported_attention
from streamline.evaluation.generation.engine import Begun
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.generation.shards import generate_shared
from streamline.hashing import content_key, program
from streamline.kept import kept_tensors, write_tensors
from streamline.sharing.once import turn
from streamline.sources.instructions import prompt_text
from streamline.training.digest import digest
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.flops import writing_flops
from streamline.training.sequences import Examples, Sequences, padded

__all__ = ["OwnAnswers", "own_answers", "own_prompts"]

SAVE_EVERY_S = 20.0  # seconds of work that a killed run may lose
_TIMES = 10  # it is written again when work went on for so many times as long as that took


@dataclass(frozen=True)
class OwnAnswers:
    """Prompts with the answers of a model.

    Attributes:
        sequences: Both, of which the answers count.
        temperature: At which they were drawn; 0 for the likeliest tokens.
        seed: Of the draws.
        seconds: That writing them took, by whichever run.
        flops: Operations that it took.
    """

    sequences: Sequences
    temperature: float
    seed: int
    seconds: float
    flops: float

    def summary(self) -> dict[str, Any]:
        """What they are, as a JSON object, with a hash of all tokens."""
        own = self.sequences
        return {
            "answers": len(own.ids),
            "tokens": int((own.lengths - own.first).sum()),
            "prompt_tokens": int(own.first.sum()),
            "temperature": self.temperature,
            "seed": self.seed,
            "seconds": self.seconds,
            "sha256": digest([own.ids, own.lengths, own.first]),
        }


def own_answers(
    decoder: Decoder,
    fingerprint: str,
    data: Tensor | Examples,
    tokenizer: Any,
    settings: DistillationSettings,
    *,
    length: int = 512,
    seed: int,
    folder: Path,
    progress: Callable[[float, int], None] | None = None,
) -> OwnAnswers:
    """Let a model answer, unless its answers are there.

    Args:
        decoder: The model; its end-of-text tokens end an answer, all else that its generation
            settings say is of no account.
        fingerprint: Content key of its weights.
        data: Token batches, [N, T], int64, of which the last ``settings.own_answers`` tokens give
            way to the model's; or examples, whose outputs do.
        tokenizer: Of the model.
        settings: How many tokens, and how they are drawn.
        length: Most tokens of an example with its answer; one whose instruction leaves no room for
            any is left out.
        seed: Of the draws.
        folder: Where they are kept.
        progress: Called with the answers that are there and all; one that is begun counts as its
            share of the most tokens that it may have.

    Raises:
        ConfigError: If no prompt is left to be continued.
        UnsupportedModelError: If the model cannot write here.
        NotFiniteError: If its logits are not finite.
    """
    prompts = own_prompts(data, tokenizer, settings, length=length, seed=seed)
    longest = max(len(prompt.tokens) + prompt.max_new_tokens for prompt in prompts)
    reason = unsupported_attention(decoder, longest)
    if reason is not None:
        raise UnsupportedModelError(
            f"{decoder.name} cannot write answers of its own: {reason}; leave out kd.own_answers"
        )
    ends = getattr(decoder.model.generation_config, "eos_token_id", None)
    decides = [fingerprint, str(decoder.dtype), ends, [astuple(prompt) for prompt in prompts]]
    key = content_key([*program(), *decides])
    file = folder / "own-answers" / f"{key[:32]}.safetensors"

    def report(begun: float = 0.0) -> None:
        if progress is not None:
            progress(len(kept.answers) + begun, len(prompts))

    with led(turn(f"own-answers-{key[:16]}")):
        kept = _Kept(file)
        report()
        with eval_mode(decoder.model):
            _write(decoder, prompts, tokenizer, kept, report)
    answers = [kept.answers[index] for index in range(len(prompts))]
    rows = [([*p.tokens, *new], len(p.tokens)) for p, new in zip(prompts, answers, strict=True)]
    n_prompt, n_new = (sum(map(len, own)) for own in ((p.tokens for p in prompts), answers))
    return OwnAnswers(
        padded(rows, width=data.shape[1] if isinstance(data, Tensor) else None),
        settings.own_temperature,
        seed,
        kept.seconds,
        writing_flops(decoder, n_prompt, n_new),
    )


def own_prompts(
    data: Tensor | Examples,
    tokenizer: Any,
    settings: DistillationSettings,
    *,
    length: int,
    seed: int,
) -> list[Prompt]:
    """What is to be continued, and by how many tokens; the arguments of :func:`own_answers`.

    Raises:
        ConfigError: If that is nothing.
    """
    most = settings.own_answers or 0
    if isinstance(data, Tensor):
        given = data.shape[1] - most
        if given < 1:
            raise ConfigError(
                f"kd.own_answers is {most}, and a sequence has {data.shape[1]} tokens, of which "
                f"one at least is there to begin with: take at most {data.shape[1] - 1}, or longer "
                "sequences (training.length)"
            )
        rows = [(ids, most) for ids in data[:, :given].tolist()]
    else:
        found = [list(tokenizer(prompt_text(example)).input_ids) for example in data]
        rows = [(ids, min(most, length - len(ids))) for ids in found if 0 < len(ids) < length]
    if not rows:
        raise ConfigError(
            f"none of {len(data)} instructions leaves room for an answer within {length} tokens; "
            "take a LoRA preset of longer examples"
        )
    return [
        Prompt(tuple(ids), (), new, settings.own_temperature, _seed(seed, index))
        for index, (ids, new) in enumerate(rows)
    ]


def _seed(seed: int, index: int) -> int:
    """The seed of one prompt's draws."""
    return int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=8).digest(), "big")


def _write(
    decoder: Decoder,
    prompts: list[Prompt],
    tokenizer: Any,
    kept: _Kept,
    report: Begun,
) -> None:
    """Write the answers that are missing."""
    missing = [index for index in range(len(prompts)) if index not in kept.answers]
    broken: list[tuple[int, list[int]]] = []

    def written(_: int, place: int, tokens: list[int]) -> None:
        if tokens[-1] < 0:
            broken.append((missing[place], tokens[:-1]))
            return
        kept.add(missing[place], tokens)

    if not missing:
        return
    path = dense_path(decoder)
    some = [prompts[i] for i in missing]
    generate_shared([path], some, tokenizer, written=written, begun=report)
    if broken:
        index, tokens = min(broken)
        read = torch.tensor([[*prompts[index].tokens, *tokens]])
        raise not_finite("own answers: the logits of a new token", path, [read])
    kept.write()


class _Kept:
    """The answers that are done, on disk.

    Args:
        file: Where they lie.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.answers, self.seconds = shared(lambda: _read(file))
        self._since, self._took = time.monotonic(), 0.0

    def add(self, index: int, tokens: list[int]) -> None:
        """Keep an answer, on disk if the last writing is a while ago."""
        self.answers[index] = tokens
        if time.monotonic() - self._since > max(SAVE_EVERY_S, _TIMES * self._took):
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        now = time.monotonic()
        self.seconds += now - self._since
        if leads():
            order = sorted(self.answers)
            own = [self.answers[index] for index in order]
            tensors = {
                "index": torch.tensor(order),
                "lengths": torch.tensor([len(tokens) for tokens in own]),
                "ids": torch.tensor([token for tokens in own for token in tokens]),
            }
            write_tensors(self._file, tensors, {"seconds": repr(self.seconds)})
        self._since = time.monotonic()
        self._took = self._since - now


def _read(file: Path) -> tuple[dict[int, list[int]], float]:
    """Answers that were kept, by the number of their prompt, and the seconds that they took."""
    found = kept_tensors(file)
    if found is None:
        return {}, 0.0
    tensors, facts = found
    answers = torch.split(tensors["ids"], tensors["lengths"].tolist())
    texts = {i: ids.tolist() for i, ids in zip(tensors["index"].tolist(), answers, strict=True)}
    return texts, float(facts["seconds"])
