"""One thing that is being trained: parameters, optimiser, best weights, losses, place on disk.

A state depends on nothing that is trained beside it. Of several processes each has it and the first
alone reads and writes its files. It can be stopped at any step and resumes
from its file to the same bits; when it is done, its weights are only loaded.

On disk, under the run's folder: ``state/<label>.safetensors`` while training,
``losses/<label>.jsonl``, and at the end ``students/<label>.safetensors``. A file that is damaged is
set aside, and what it held is trained again.

Example::

    state = TrainingState(label="ffn-8-12", key=key, parameters=dict(module.named_parameters()),
                      schedule=schedule, directory=out)
    state.resume()
    loss.backward()
    state.update(train_loss, n_tokens)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.errors import ConfigError
from streamline.files import write_text_atomic
from streamline.kept import kept_tensors, write_tensors
from streamline.training.losses import MOST_SKIPPED, Losses, finite
from streamline.training.parts.shares import Shares
from streamline.training.schedule import Schedule

__all__ = ["TrainingState", "nothing_trained"]

log = logging.getLogger(__name__)
_LOADED_ONLY: ContextVar[bool] = ContextVar("loaded_only", default=False)


@contextmanager
def nothing_trained() -> Iterator[None]:
    """Within it, what was trained is loaded, and what is not there any more is an error."""
    token = _LOADED_ONLY.set(True)
    try:
        yield
    finally:
        _LOADED_ONLY.reset(token)


class TrainingState:
    """Parameters with an optimiser of their own.

    Args:
        label: Name of its files.
        key: Content key of everything that decides the outcome; files with another are ignored.
        parameters: What is trained, by name; float32, on their final device.
        schedule: Learning rate per step.
        weight_decay: AdamW's weight decay.
        betas: AdamW's betas.
        clip: Largest gradient norm.
        directory: Where its files go; None keeps everything in memory.
        losses: Folder of the losses, if not ``directory/losses``.
        shares: Of parameters of which each process has a part; its files hold them whole.
    """

    def __init__(
        self,
        *,
        label: str,
        key: str,
        parameters: Mapping[str, nn.Parameter],
        schedule: Schedule,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float = math.inf,
        directory: Path | None = None,
        losses: Path | None = None,
        shares: Shares | None = None,
    ) -> None:
        self.label, self.key, self.schedule, self.clip = label, key, schedule, clip
        self.parameters = dict(parameters)
        self.shares = shares
        self.directory = directory
        self.losses_dir = directory / "losses" if losses is None and directory else losses
        devices = {p.device.type for p in self.parameters.values()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=schedule.at(1), betas=betas, weight_decay=weight_decay,
            fused=devices <= {"cpu", "cuda"},
        )  # fmt: skip
        self.step = 0
        self.n_tokens = 0
        self.seconds = 0.0
        self.skipped_steps = 0
        self.dropping: float | None = None
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_step = math.inf, 0
        self.failed_step: int | None = None
        self.finished = False  # whether its weights lie on disk

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        sizes = {name: p.numel() for name, p in self.parameters.items()}
        return sum((sizes | (self.shares.sizes if self.shares else {})).values())

    @property
    def alike(self) -> list[nn.Parameter]:
        """Parameters that every process has whole, whose gradients are to be summed."""
        divided = self.shares.sizes if self.shares else ()
        return [p for name, p in self.parameters.items() if name not in divided]

    @property
    def done(self) -> bool:
        """Whether the last step has been made."""
        return self.step >= self.schedule.n_steps

    @property
    def not_finite(self) -> str | None:
        """What of the training so far is not finite, so that it came to nothing; else None."""
        if self.failed_step is not None:
            return f"the validation loss at step {self.failed_step}"
        if self.skipped_steps <= MOST_SKIPPED * self.step:
            return None
        n, steps = self.skipped_steps, self.step
        return f"the gradient of {'every step' if n == steps else f'{n} of {steps} steps'}"

    def update(self, train_loss: float, n_tokens: int) -> None:
        """Make one optimiser step with the gradients that are there, and clear them.

        A step whose gradient is not finite is left out and counted.

        Args:
            train_loss: Mean loss of the optimiser batch, before the step.
            n_tokens: Tokens of the batch.
        """
        self.step += 1
        self.n_tokens += n_tokens
        rate = self.schedule.at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if math.isfinite(self._clip()):
            self.optimiser.step()
        else:
            self.skipped_steps += 1
        self.optimiser.zero_grad(set_to_none=True)
        self._row(train_loss, rate)

    def _clip(self) -> float:
        """Bound the gradients' norm; as it was before."""
        if self.shares is not None:
            return self.shares.clip(self.parameters, self.clip)
        return float(nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip))

    def validated(self, loss: float) -> None:
        """Note the validation loss at the present step and keep the weights if it is the best.

        One that is not finite is noted as the step that failed; the caller says what goes on.
        """
        if not math.isfinite(loss) and self.failed_step is None:
            self.failed_step = self.step
        if not self.rows:
            self._row(None, None)
        self.rows[-1]["validation_loss"] = finite(loss)
        if not self.best or loss < self.best_loss or math.isnan(self.best_loss):
            self.best_loss, self.best_step = loss, self.step
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}

    def spent(self, seconds: float) -> None:
        """Add to the time of the present step."""
        self.seconds += seconds
        self.rows[-1]["seconds"] = round(self.seconds, 3)

    def _row(self, train_loss: float | None, rate: float | None) -> None:
        self.rows.append(
            {
                "step": self.step,
                "tokens": self.n_tokens,
                "train_loss": finite(train_loss),
                "validation_loss": None,
                "lr": rate,
                "seconds": round(self.seconds, 3),
            }
        )

    # Files ---------------------------------------------------------------------------------------

    def _file(self, folder: str) -> Path:
        assert self.directory is not None
        return self.directory / folder / f"{self.label}.safetensors"

    def save(self) -> None:
        """Write the state that :meth:`resume` reads; nothing without a folder.

        Of parameters in parts all processes have to, at the same step.
        """
        if self.directory is None or not (leads() or self.shares):
            return
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            parts = {f"weights/{name}": parameter.detach()}
            if name in self.best:
                parts[f"best/{name}"] = self.best[name]
            for part, value in self.optimiser.state[parameter].items():
                parts[f"adam.{part}/{name}"] = value
            tensors |= self.shares.gathered(name, parts) if self.shares else parts
        if leads():
            self.write_rows()
            write_tensors(self._file("state"), tensors, self._facts())

    def resume(self) -> None:
        """Take up what an earlier run left: its state, or all of it when that run finished.

        Raises:
            ConfigError: Within :func:`nothing_trained`, if it was not finished, or is not there.
        """
        if self.directory is None:
            return
        for folder in ("students", "state"):
            read: dict[str, Tensor] = {}
            facts = shared(partial(self._kept, folder, read))
            if facts is not None:
                self._take(*facts, read)
                self.finished = folder == "students"
                break
        if _LOADED_ONLY.get() and not self.finished:
            raise ConfigError(
                f"the trained network {self._file('students')} is not there as this machine would "
                "make it: it was removed, or made on another kind of device; give --device as the "
                "run had it, or the run's command again with `--redo` and the cell"
            )

    def _kept(self, folder: str, read: dict[str, Tensor]) -> tuple[list[str], Any] | None:
        """Read what an earlier run of the same key left in a folder: its tensors' names, facts."""
        found = kept_tensors(self._file(folder))
        if found is None or found[1]["key"] != self.key:
            return None
        read |= found[0]
        return sorted(read), json.loads(found[1]["facts"])

    def _take(self, names: list[str], facts: Mapping[str, Any], read: dict[str, Tensor]) -> None:
        """Become what was written; the first process has read it."""

        def had(kind: str, name: str) -> Tensor:
            value = shared(lambda: read.pop(f"{kind}/{name}"))
            return self.shares.part(name, value) if self.shares else value

        for name, parameter in self.parameters.items():
            parameter.data.copy_(had("weights", name))
            if f"best/{name}" in names:
                self.best[name] = had("best", name).to(parameter.device)
            moments = [n.removesuffix(f"/{name}") for n in names if n.endswith(f"/{name}")]
            state = {kind[5:]: had(kind, name) for kind in moments if kind.startswith("adam.")}
            if state:
                fused = self.optimiser.defaults["fused"]  # it counts steps on the device
                self.optimiser.state[parameter] = {
                    part: value.to(parameter.device) if fused or part != "step" else value
                    for part, value in state.items()
                }
        self.step, self.n_tokens = facts["step"], facts["n_tokens"]
        self.seconds, self.skipped_steps = facts["seconds"], facts["skipped_steps"]
        self.dropping = facts["dropping"]
        self.best_loss, self.best_step = facts["best_loss"], facts["best_step"]
        self.rows = facts["rows"]

    def finish(self) -> None:
        """Put the best weights back, leave them on disk, and let go of all that trained them."""
        for name, value in self.best.items():
            self.parameters[name].data.copy_(value)
        self.best = {}
        self.optimiser.state.clear()
        self.write_rows()
        if self.skipped_steps and leads():
            why = "%s: %d of %d steps were left out, their gradients not finite"
            log.warning(why, self.label, self.skipped_steps, self.step)
        if self.directory is None or self.finished or not (leads() or self.shares):
            return
        weights: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            part = {f"weights/{name}": parameter.detach()}
            weights |= self.shares.gathered(name, part) if self.shares else part
        self.finished = True
        if leads():
            write_tensors(self._file("students"), weights, self._facts())
            self._file("state").unlink(missing_ok=True)

    def _facts(self) -> dict[str, str]:
        """What is written beside the tensors."""
        facts = {
            "step": self.step,
            "n_tokens": self.n_tokens,
            "seconds": self.seconds,
            "skipped_steps": self.skipped_steps,
            "dropping": self.dropping,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "rows": self.rows,
        }
        return {"key": self.key, "facts": json.dumps(facts)}

    def write_rows(self) -> None:
        """Write the losses as JSON lines, if a folder was given."""
        if self.losses_dir is not None and leads():
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_text_atomic(self.losses_dir / f"{self.label}.jsonl", text)

    def adopt(self, other: TrainingState) -> None:
        """Take over what a state of the same key has become."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(other.parameters[name])
        self.best = {name: p.detach().clone() for name, p in other.best.items()}
        self.step, self.n_tokens, self.seconds = other.step, other.n_tokens, 0.0
        self.skipped_steps, self.dropping = other.skipped_steps, other.dropping
        self.best_loss, self.best_step = other.best_loss, other.best_step
        self.rows, self.failed_step = [dict(row) for row in other.rows], other.failed_step

    def losses(self, objective: str, spans: list[list[int]]) -> Losses:
        """The summary of a finished training."""
        return Losses(
            label=self.label,
            objective=objective,
            spans=spans,
            n_parameters=self.n_parameters,
            tokens=self.n_tokens,
            before=_number(self.rows[0]["validation_loss"]),
            after=_number(self.rows[-1]["validation_loss"]),
            best=self.best_loss,
            best_step=self.best_step,
            dropping=self.dropping,
            seconds=self.seconds,
            skipped_steps=self.skipped_steps,
            rows=self.rows,
            not_finite=self.not_finite,
        )


def _number(value: float | None) -> float:
    """The float that :func:`streamline.training.losses.finite` hid."""
    return math.nan if value is None else value
