"""How the processes that were launched together find each other."""

from __future__ import annotations

import atexit
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Timer

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from streamline.distributed import exchange
from streamline.distributed.team import UNSET, WHOLE, Shard, own_gpu, team, within, world_size
from streamline.errors import ConfigError

__all__ = ["joined"]

_PATIENCE = timedelta(days=30)  # the others wait while the first writes or measures
_GATHERING = timedelta(minutes=10)  # until all processes are there
_REDUCING = timedelta(minutes=1)  # for a sum of gradients, once all have said that they are there
_HINT_S = 10.0  # of waiting for them in silence

log = logging.getLogger(__name__)


@contextmanager
def joined() -> Iterator[Shard]:
    """Join the processes that were launched together; alone, nothing changes.

    Yields:
        This process's part of what is done together.

    Raises:
        ConfigError: If the environment names no place to meet, or not all processes come there.
        LostProcess: Within it, if another process is gone.
    """
    shard = WHOLE
    if world_size() > 1:
        if not dist.is_initialized():
            _meet()
            atexit.register(dist.destroy_process_group)
        shard = Shard(dist.get_rank(), dist.get_world_size())
    with within(shard):
        yield team()


def _meet() -> None:
    """Wait for all processes, not for ever and not in silence, and join them."""
    size, place = world_size(), [os.environ.get(f"MASTER_{part}") for part in ("ADDR", "PORT")]
    expected = f"WORLD_SIZE is {size} in the environment, so {size} processes are expected"
    if None in place:
        raise ConfigError(f"{expected}, but MASTER_ADDR and MASTER_PORT name no place; {UNSET}")
    expected += f" at {':'.join(map(str, place))}"
    hint = Timer(_HINT_S, log.warning, (f"{expected}: waiting for them",))
    hint.daemon = True
    hint.start()
    try:
        store, rank, size = next(rendezvous("env://", timeout=_GATHERING))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{expected}, and they did not meet ({reason}); {UNSET}") from error
    finally:
        hint.cancel()
    store.set_timeout(_PATIENCE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    _share_gpus(size)


def _share_gpus(size: int) -> None:
    """Let gradients go from GPU to GPU, where each process has one of its own."""
    gpu = own_gpu(torch.cuda.device_count()) if torch.cuda.is_available() else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    there = None if gpu is None or not dist.is_nccl_available() else (socket.gethostname(), gpu)
    found: list[tuple[str, int] | None] = [None] * size
    dist.all_gather_object(found, there)
    if None not in found and len(set(found)) == size:
        exchange.gpus = dist.new_group(backend="nccl", timeout=_REDUCING)
