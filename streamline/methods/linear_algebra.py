"""Factorisations whose results do not depend on the number of threads.

LAPACK divides its work among the threads it has, and another division rounds differently. What
comes after may amplify that: a basis that turns by a rounding error in the first layer gives other
states in all layers after it. On a CPU these functions run in one thread; an accelerator is not
concerned.

Example::

    vectors = eigenvectors(moment)      # [D, D], columns by falling eigenvalue
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from streamline.engine.transfer import onto

__all__ = ["eigenvectors", "exact_device", "random_rotation", "second_moment", "solve"]

#: Rows of one product of a second moment: a product over few rows is not divided along them.
_ROWS = 512


def exact_device(device: torch.device) -> torch.device:
    """Where float64 can be had: a device itself, or the CPU for one that has none."""
    return torch.device("cpu") if device.type == "mps" else device


def eigenvectors(symmetric: Tensor) -> Tensor:
    """Eigenvectors by falling eigenvalue, the largest entry of each positive.

    Args:
        symmetric: A symmetric matrix, [D, D], float64.

    Returns:
        An orthogonal matrix with the eigenvectors as columns, [D, D], float64.
    """
    with _one_thread():
        vectors = torch.linalg.eigh(symmetric).eigenvectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # [1, D]
    found: Tensor = vectors * largest.sign()
    return found


def random_rotation(size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """A rotation drawn uniformly, [size, size], float64.

    Args:
        size: Rows and columns.
        generator: Source of the noise, on the CPU: every device has the same rotation to rounding.
        device: Where the rotation is made of it.
    """
    noise = torch.randn(size, size, dtype=torch.float64, generator=generator)
    noise = onto(noise, device)
    with _one_thread():
        rotation, triangle = torch.linalg.qr(noise)
    found: Tensor = rotation * triangle.diagonal().sign()
    return found


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution X of ``matrix X = right``, [D, K], for a matrix [D, D]; float64."""
    with _one_thread():
        found: Tensor = torch.linalg.solve(matrix, right)
    return found


def second_moment(states: Tensor) -> Tensor:
    """Sum over rows of ``x^T x``, in order.

    Args:
        states: Vectors, [N, D], float64.

    Returns:
        A symmetric matrix, [D, D], float64.
    """
    moment = states.new_zeros(states.shape[1], states.shape[1])
    for part in torch.split(states, _ROWS):
        moment += part.T @ part
    return moment


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within it the CPU computes in one thread."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
