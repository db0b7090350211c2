"""What a run depends on: device, memory, versions. Facts for provenance, found in one place."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch

from streamline.distributed.team import own_gpu
from streamline.errors import ConfigError

_PACKAGES = (
    "streamline-bench",
    "torch",
    "transformers",
    "lm-eval",
    "datasets",
    "tokenizers",
    "numpy",
    "peft",
)


def pick_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: ``auto`` (an accelerator, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; of
            several processes each has a GPU of its own.

    Raises:
        ConfigError: If there is no such device, it is not on this machine, or another process's.
    """
    own = own_gpu(torch.cuda.device_count()) if torch.cuda.is_available() else None
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda") if own is None else torch.device("cuda", own)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"{name!r} is no device; use auto, cpu, mps, cuda, or cuda:N for the N-th"
        ) from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ConfigError(
            f"device {name!r} is not on this machine; use --device cpu, or auto for the best"
        )
    if device.type != "cuda" or own is None:
        return device
    if device.index not in (None, own):
        raise ConfigError(
            f"device {name!r} was given to each of several processes, which have one GPU each; "
            "give --device cuda, or run one process"
        )
    return torch.device("cuda", own)


def restart_peak_memory() -> None:
    """Count the accelerators' peak memory from here on."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory that all CUDA devices held since the last restart.

    None elsewhere: what a process has held on a CPU before cannot be told from it.
    """
    if device.type != "cuda":
        return None
    return sum(
        int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count())
    )


def hush() -> None:
    """Keep the progress bars of the libraries below from writing between our own."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


@lru_cache(maxsize=4)
def versions(device: str = "auto") -> dict[str, str | None]:
    """Versions of what the numbers depend on, and the machine.

    Args:
        device: Where the numbers are computed, as for :func:`pick_device`.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    place = pick_device(device)
    cuda = place.type == "cuda"
    found["device"] = torch.cuda.get_device_name(place) if cuda else _processor()
    return found


def _processor() -> str:
    """A name for the processor, as the system gives it."""
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - a kernel file, not a path of ours
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return f"{names[0] if names else platform.machine()} x {torch.get_num_threads()} threads"
