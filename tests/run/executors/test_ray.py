"""A run on a real Ray cluster of two nodes: what dies is done elsewhere, what fails fails alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run.shards.conftest import outcome

from streamline.results.record_file import load
from streamline.run import pipeline
from streamline.run.config import RunConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that works nothing and two nodes with a processor each, and a thread as here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    size = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "include_dashboard": False, **size}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(num_cpus=1, **size)
    yield found
    found.shutdown()


def test_a_killed_node_an_error_and_an_exit_cost_only_their_own_cells(
    config: Callable[..., RunConfig], plugin: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = "shortgpt,llm-streamline-ffn,nearby:Waits"

    def kill() -> None:
        until = time.monotonic() + 120
        while not (plugin / "waiting").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        node = (plugin / "waiting").read_text()
        [lost] = [one for one in cluster.worker_nodes if one.node_id == node]
        cluster.remove_node(lost, allow_graceful=False)

    killing = threading.Thread(target=kill)
    killing.start()
    spread = config(
        plugin / "ray",
        methods=f"{healthy},nearby:Raises,nearby:Exits",
        executor="ray",
        shards=3,
        ray_address=cluster.address,
    )
    records = pipeline.run(spread)
    killing.join()
    assert len(cluster.worker_nodes) == 1
    status = {record.method: record.status for record in records}
    failed = {record.method: record.reason for record in records if record.status == "failed"}
    assert list(failed) == ["nearby:Raises", "nearby:Exits"], failed
    assert set(status.values()) == {"ok", "failed"}
    assert "no layer will do" in failed["nearby:Raises"]
    assert "its process died" in failed["nearby:Exits"]
    here = pipeline.run(config(plugin / "local", methods=healthy))
    done = [record for record in load(plugin / "ray") if record.status == "ok"]
    assert outcome(plugin / "ray", done) == outcome(plugin / "local", here)
