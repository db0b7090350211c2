"""How the processes that were launched together find each other, and how they part."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from threading import Timer
from typing import Any

import torch
import torch.distributed as dist

from streamline.distributed import sums
from streamline.distributed.exchange import Told, meet
from streamline.distributed.team import (
    UNSET,
    WHOLE,
    LostProcess,
    Shard,
    own_gpu,
    own_rank,
    team,
    within,
    world_size,
)
from streamline.errors import ConfigError

__all__ = ["joined", "parted", "unsaid"]

_PATIENCE = timedelta(days=30)  # the others wait while the first writes or measures
_GATHERING = timedelta(minutes=10)  # until all processes are there
_PARTING = timedelta(minutes=1)  # likewise, where one of them has failed already
_ASKING = timedelta(seconds=5)  # of whether a text was said
_HINT_S = 10.0  # of waiting for them in silence

log = logging.getLogger(__name__)
_missed = False  # whether the others were waited for in vain
_met_at: Any = None  # the store that they met by


@contextmanager
def joined(gathering: timedelta | None = None) -> Iterator[Shard]:
    """Join the processes that were launched together; alone, nothing changes.

    Args:
        gathering: How long they are waited for; None for ten minutes.

    Yields:
        This process's part of what is done together.

    Raises:
        ConfigError: If the environment names no place to meet, or not all processes come there.
        LostProcess: Within it, if another process is gone.
    """
    shard = WHOLE
    if world_size() > 1:
        if not dist.is_initialized():
            _meet(gathering or _GATHERING)
            atexit.register(dist.destroy_process_group)
        shard = Shard(dist.get_rank(), dist.get_world_size())
    with within(shard):
        yield team()


def parted(failure: Exception | None = None) -> bool:
    """End together: a launcher ends all processes when the first has ended with an error.

    The first process calls it when it has said what there is to say. One that fails calls it too,
    wherever the others are: they fail with it.

    Args:
        failure: What ends this process, if it is an error.

    Returns:
        Whether all know of it; false where the others are gone or never came.
    """
    if _missed:
        return False
    try:
        with joined(_PARTING):
            meet("the end", None if failure is None else (1, failure))
    except Told:
        return True
    except (LostProcess, ConfigError):
        return False
    return True


def unsaid(text: str) -> bool:
    """Whether no other process has said a text, as far as can be told when one of them is gone."""
    if _met_at is None:
        return True
    try:
        _met_at.set_timeout(_ASKING)
        return bool(_met_at.add(f"streamline/said/{zlib.crc32(text.encode())}", 1) == 1)
    except RuntimeError:  # it went with the process that had opened it
        return True


def _meet(gathering: timedelta) -> None:
    """Wait for all processes, not for ever and not in silence, and join them."""
    global _missed, _met_at
    rank, size = own_rank(), world_size()
    address, port = (os.environ.get(f"MASTER_{part}") for part in ("ADDR", "PORT"))
    expected = f"WORLD_SIZE is {size} in the environment, so {size} processes are expected"
    if address is None or port is None:
        raise ConfigError(f"{expected}, but MASTER_ADDR and MASTER_PORT name no place; {UNSET}")
    expected += f" at {address}:{port}"
    hint = Timer(_HINT_S, log.warning, (f"{expected}: waiting for them",))
    hint.daemon = True
    hint.start()
    try:
        here = _on_one_machine(address, size)
        if here:
            _keep_to_loopback()
        # A launcher's store outlives its processes: what those before a restart left is not read.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        whole = _store(address, int(port), rank, gathering, here)
        store = dist.PrefixStore(attempt, whole)  # type: ignore[attr-defined]
        store.set(f"streamline/{rank}", "here")
        store.wait([f"streamline/{one}" for one in range(size)], gathering)
        store.set_timeout(_PATIENCE)
        _met_at = store
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        _missed = True
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{expected}, and they did not meet ({reason}); {UNSET}") from error
    finally:
        hint.cancel()
    _share_gpus(size)


def _store(address: str, port: int, rank: int, timeout: timedelta, here: bool) -> Any:
    """Where the processes tell each other how they are reached.

    A launcher has one already; else the first process opens it, at that address alone if it can.

    Args:
        address: Where it is.
        port: Likewise.
        rank: This process's number.
        timeout: How long it is waited for.
        here: Whether all processes are on this machine.
    """
    opens = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listening = _listening(address, port, here) if opens else None
    return dist.TCPStore(  # type: ignore[attr-defined]
        address,
        port,
        is_master=opens,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=None if listening is None else listening.detach(),
    )


def _listening(address: str, port: int, here: bool) -> socket.socket | None:
    """A socket that listens at an address; None for PyTorch's choice, where it leads only here."""
    family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    if not here and place[0] != address:  # other machines may take the name for another address
        return None
    with socket.socket(family) as trial:
        try:
            trial.bind((place[0], 0))
        except OSError:  # of a service that stands for this machine
            return None
    return socket.create_server((str(place[0]), port), family=family)


def _on_one_machine(address: str, size: int) -> bool:
    """Whether all processes are on this machine.

    A name tells only if it is no machine's own: many a machine takes its own for loopback, and the
    others do not.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size) or address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:  # a name
        return False


def _keep_to_loopback() -> None:
    """Listen on this machine alone, unless the user says where."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if names else ():
        os.environ.setdefault(variable, names[0])


def _share_gpus(size: int) -> None:
    """Let gradients go from GPU to GPU, where each process has one of its own.

    Raises:
        LostProcess: If the GPUs do not reach each other.
    """
    gpu = own_gpu(torch.cuda.device_count()) if torch.cuda.is_available() else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    found: list[tuple[str, str] | None] = [None] * size
    dist.all_gather_object(found, None if gpu is None else _identity(gpu))
    if gpu is None or None in found or len(set(found)) < size:
        log.info("no GPU for each of %d processes with NCCL: they exchange by memory", size)
        return
    # Its own end of patience comes later: it would end the process without a message.
    sums.gpus = dist.new_group(backend="nccl", timeout=timedelta(seconds=2 * sums.SECONDS))
    try:  # NCCL takes its memory now, while there is some
        dist.all_reduce(torch.ones(1, device=torch.device("cuda", gpu)), group=sums.gpus)
        sums.ended(torch.cuda.current_stream(gpu).record_event())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostProcess(
            f"GPU {gpu} and those of the other processes do not reach each other over NCCL "
            f"({reason}); NCCL_DEBUG=INFO says more"
        ) from error


def _identity(gpu: int) -> tuple[str, str] | None:
    """What tells a GPU from all others; None for one that NCCL cannot use.

    Its number does not: a process may see no other one.
    """
    about = torch.cuda.get_device_properties(gpu)
    if not dist.is_nccl_available() or "MIG" in about.name:  # a part of a GPU
        return None
    return socket.gethostname(), str(about.uuid)
