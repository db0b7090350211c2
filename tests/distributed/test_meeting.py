"""Processes meet those that were launched with them, and no others."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch.distributed as dist

from streamline.distributed import meeting
from streamline.errors import ConfigError


def test_what_was_left_before_a_restart_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, met = dist.HashStore(), list[int]()  # a launcher's, which outlives its processes
    monkeypatch.setattr(meeting, "_store", lambda *_: kept)
    monkeypatch.setattr(meeting, "_missed", False)
    monkeypatch.setattr(meeting, "_met_at", None)
    monkeypatch.setattr(meeting, "_share_gpus", lambda size: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, rank, **__: met.append(rank))
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    launched |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}

    def arrive(rank: int, attempt: int) -> None:
        more = {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(attempt)}
        for name, value in (launched | more).items():
            monkeypatch.setenv(name, value)
        meeting._meet(timedelta(seconds=0.2))

    with pytest.raises(ConfigError, match="did not meet"):
        arrive(1, attempt=0)
    arrive(0, attempt=0)
    assert met == [0] and meeting.unsaid("gone") and not meeting.unsaid("gone")
    with pytest.raises(ConfigError, match="did not meet"):
        arrive(0, attempt=1)
    arrive(1, attempt=1)
    assert met == [0, 1] and meeting.unsaid("gone")


@pytest.mark.parametrize(
    ("address", "local", "here"),
    [
        ("localhost", None, True),
        ("127.0.0.1", "1", True),
        ("::1", None, True),
        ("node1", "2", True),
        ("node1", "1", False),
        ("node1", None, False),
        ("10.0.0.1", "1", False),
    ],
)
def test_a_machines_own_name_says_nothing_of_the_others(
    address: str, local: str | None, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0)  # as Debian has node1
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert meeting._on_one_machine(address, 2) is here
    if address == "node1":
        listening = meeting._listening(address, 0, here)
        assert (listening is not None) is here
        if listening is not None:
            assert listening.getsockname()[0] == "127.0.1.1"
            listening.close()
