"""Importance of coupled groups: of gradients, one parameter's at a time, or of weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, submodule
from streamline.engine.transfer import onto
from streamline.progress import part, tell

from ._groups import group_sums, layer_groups, rows


def each_gradient(
    decoder: Decoder,
    tokens: Tensor,
    parameters: Sequence[nn.Parameter],
    use: Callable[[nn.Parameter, Tensor], None],
) -> None:
    """Run one backward pass of the mean next-token loss and pass on each gradient.

    A gradient is freed as soon as it was used, so memory never holds a second copy of the model.
    Requires-grad states, gradients and hooks are restored afterwards.

    Args:
        decoder: The dense model.
        tokens: Token ids, [N, T]; one batch.
        parameters: Those whose gradients are wanted.
        use: Called once per wanted parameter with it and its gradient.
    """
    everything = list(decoder.model.parameters())
    before = [(p.requires_grad, p.grad) for p in everything]
    hooks = []
    done = 0

    def pass_on(parameter: Tensor) -> None:
        nonlocal done
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        use(parameter, parameter.grad)
        parameter.grad = None
        done += 1
        tell(done, len(parameters))

    try:
        for parameter in everything:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in parameters:
            parameter.requires_grad_(True)
            register: Any = parameter.register_post_accumulate_grad_hook
            hooks.append(register(pass_on))
        with torch.enable_grad():
            logits = decoder.logits(tokens)[:, :-1].float()
            targets = onto(tokens[:, 1:], logits.device)
            # [N * (T - 1), V] and [N * (T - 1)]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, (requires_grad, grad) in zip(everything, before, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def absolute_rows(values: Tensor) -> Tensor:
    """Sums of the absolute values of each row, [rows], in the values' own type.

    They stay where they are: a backward pass does not wait for them. :func:`added` reads them.
    """
    return values.abs().reshape(-1, values.shape[-1]).sum(1)


def added(parts: Iterable[Tensor]) -> float:
    """The sum of some sums, each added up in float64 on the CPU."""
    return sum((float(part.cpu().double().sum()) for part in parts), 0.0)


def taylor_scores(decoder: Decoder, tokens: Tensor, importance: str) -> dict[str, Tensor]:
    """Taylor importance of every head and channel of every layer.

    Args:
        decoder: The dense model; left as it was.
        tokens: Token ids, [N, T]; one batch.
        importance: ``"param_first"``, ``"param_second"``, ``"param_mix"`` or ``"vectorize"``; see
            :class:`streamline.baselines.llm_pruner.LLMPruner`.

    Returns:
        ``"attention"`` [L, heads] and ``"mlp"`` [L, channels], float64, on the CPU.
    """
    scores = _Scores(decoder)
    parameters = scores.parameters
    fisher: dict[int, Tensor] = {}
    if importance in ("param_second", "param_mix"):

        def square(parameter: nn.Parameter, gradient: Tensor) -> None:
            squared = gradient.float().square() / len(tokens)
            fisher[id(parameter)] = (
                fisher[id(parameter)] + squared if id(parameter) in fisher else squared
            )

        for n, sequence in enumerate(torch.split(tokens, 1)):
            with part(n, len(tokens) + (importance == "param_mix")):
                each_gradient(decoder, sequence, parameters, square)
    if importance == "param_second":
        for parameter in parameters:
            weight = parameter.detach().float()
            scores.add(parameter, weight * fisher[id(parameter)] * weight)
        return scores.of_groups()

    def add(parameter: nn.Parameter, gradient: Tensor) -> None:
        weight = parameter.detach().float()
        change = weight * gradient.float()
        if importance == "param_mix":
            change = change - 0.5 * weight * fisher[id(parameter)] * weight
        scores.add(parameter, change, vectorize=importance == "vectorize")

    n_done = len(tokens) if fisher else 0
    with part(n_done, n_done + 1):
        each_gradient(decoder, tokens, parameters, add)
    return scores.of_groups()


def magnitude_scores(decoder: Decoder, power: int) -> dict[str, Tensor]:
    """The sum of ``|w|^power`` over what each head and channel of every layer owns.

    Args:
        decoder: The dense model.
        power: 1 or 2.

    Returns:
        As :func:`taylor_scores`.
    """
    scores = _Scores(decoder)
    for parameter in scores.parameters:
        scores.add(parameter, parameter.detach().float().abs() ** power)
    return scores.of_groups()


class _Scores:
    """Scores of weights, added up for the groups that own them.

    Attributes:
        parameters: Every parameter that a head or a channel owns a part of.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.parameters: list[nn.Parameter] = []
        self._couplings = [layer_groups(decoder, i) for i in range(decoder.n_layers)]
        self._owners: dict[int, tuple[int, str, str, nn.Module]] = {}
        # They are read when all are there, so that no pass waits for one.
        self._parts: list[dict[tuple[str, str], list[Tensor]]] = [{} for _ in self._couplings]
        for index, layer in enumerate(decoder.layers):
            for member in (m for coupling in self._couplings[index] for m in coupling.members):
                linear = submodule(layer, member.path)
                for parameter in linear.parameters(recurse=False):
                    if parameter.dim() > 1 or member.side == "out":
                        self._owners[id(parameter)] = index, member.path, member.side, linear
                        self.parameters.append(parameter)

    def add(self, parameter: nn.Parameter, change: Tensor, *, vectorize: bool = False) -> None:
        """Add the scores of one parameter's weights, of its own shape.

        Args:
            parameter: One of :attr:`parameters`.
            change: The scores; their absolute values count.
            vectorize: Whether each row or column is summed before the absolute value is taken.
        """
        index, path, side, linear = self._owners[id(parameter)]
        if change.dim() > 1:
            table = rows(linear, change)
            table = table if side == "out" else table.T  # [owned, others]
            change = table.sum(1) if vectorize else table.abs().sum(1)
        self._parts[index].setdefault((path, side), []).append(change.abs())

    def of_groups(self) -> dict[str, Tensor]:
        """``"attention"`` [L, heads] and ``"mlp"`` [L, channels], float64, on the CPU."""
        sums = [
            {owner: reduce(torch.add, map(_exact, parts)) for owner, parts in layer.items()}
            for layer in self._parts
        ]
        return {
            kind: torch.stack(
                [group_sums(pair[k], of) for pair, of in zip(self._couplings, sums, strict=True)]
            )
            for k, kind in enumerate(("attention", "mlp"))
        }


def _exact(values: Tensor) -> Tensor:
    return values.cpu().double()
