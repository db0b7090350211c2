"""Taylor importance of coupled groups, from the gradients of one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, submodule
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
            targets = tokens[:, 1:].to(logits.device)
            # [N * (T - 1), V] and [N * (T - 1)]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, (requires_grad, grad) in zip(everything, before, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def absolute_sum(values: Tensor) -> float:
    """Sum of absolute values: rows in the values' own type, their sums in float64 on the CPU."""
    table = values.abs().reshape(-1, values.shape[-1])  # [rows, columns]
    return float(table.sum(1).cpu().double().sum())


def taylor_scores(decoder: Decoder, tokens: Tensor, importance: str) -> dict[str, Tensor]:
    """Taylor importance of every head and channel of every layer.

    Args:
        decoder: The dense model; left as it was.
        tokens: Token ids, [N, T]; one batch.
        importance: ``"param_first"``, ``"param_mix"`` or ``"vectorize"``; see
            :class:`streamline.baselines.llm_pruner.LLMPruner`.

    Returns:
        ``"attention"`` [L, heads] and ``"mlp"`` [L, channels], float64, on the CPU.
    """
    couplings = [layer_groups(decoder, i) for i in range(decoder.n_layers)]
    owners: dict[int, tuple[int, str, str, nn.Module]] = {}
    parameters = []
    for index, layer in enumerate(decoder.layers):
        for member in (m for coupling in couplings[index] for m in coupling.members):
            linear = submodule(layer, member.path)
            for parameter in linear.parameters(recurse=False):
                if parameter.dim() > 1 or member.side == "out":
                    owners[id(parameter)] = index, member.path, member.side, linear
                    parameters.append(parameter)
    fisher: dict[int, Tensor] = {}
    if importance == "param_mix":

        def square(parameter: nn.Parameter, gradient: Tensor) -> None:
            squared = gradient.float().square() / len(tokens)
            fisher[id(parameter)] = (
                fisher[id(parameter)] + squared if id(parameter) in fisher else squared
            )

        for n, sequence in enumerate(torch.split(tokens, 1)):
            with part(n, len(tokens) + 1):
                each_gradient(decoder, sequence, parameters, square)
    sums: list[dict[tuple[str, str], Tensor]] = [{} for _ in couplings]

    def add(parameter: nn.Parameter, gradient: Tensor) -> None:
        index, path, side, linear = owners[id(parameter)]
        weight = parameter.detach().float()
        change = weight * gradient.float()
        if importance == "param_mix":
            change = change - 0.5 * weight * fisher[id(parameter)] * weight
        if change.dim() > 1:
            table = rows(linear, change)
            table = table if side == "out" else table.T  # [owned, others]
            change = table.sum(1) if importance == "vectorize" else table.abs().sum(1)
        values = change.abs().cpu().double()
        sums[index][path, side] = sums[index].get((path, side), 0.0) + values

    n_done = len(tokens) if fisher else 0
    with part(n_done, n_done + 1):
        each_gradient(decoder, tokens, parameters, add)
    return {
        kind: torch.stack([group_sums(pair[position], sums[i]) for i, pair in enumerate(couplings)])
        for position, kind in enumerate(("attention", "mlp"))
    }
