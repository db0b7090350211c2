"""The command under torchrun and accelerate launch, as a user gives it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import processes
import psutil
import pytest

from streamline.cli.main import main
from streamline.run.suites import as_suite

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "{n}", "--master-port", "{port}"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    + ["--num_processes", "{n}", "--main_process_port", "{port}", "--mixed_precision", "no"]
    + ["--dynamo_backend", "no"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("world")
    processes.place(folder)
    config = processes.config(folder, folder / "out", "llm-streamline-ffn")
    (folder / "suite.yaml").write_text(as_suite(config.model_dump(mode="json"), None))
    return folder


def launched(launcher: str, arguments: list[str], n: int = 2) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.format(n=n, port=port) for word in LAUNCHERS[launcher]]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words, "-m", "streamline", *arguments], env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def statuses(out: Path) -> list[str]:
    return [one["status"] for one in json.loads((out / "results.json").read_text())["records"]]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launched_run_says_everything_once(launcher: str, world: Path) -> None:
    out = world / launcher
    run = ["--suite", str(world / "suite.yaml"), "--out", str(out)]
    first = launched(launcher, run)
    said, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    assert statuses(out) == ["ok"] * 2
    assert said.count("report: ") == 1 and "waiting for" not in errors, said + errors


def test_a_refused_run_says_why_once(world: Path) -> None:
    run = ["--suite", str(world / "suite.yaml"), "--out", str(world / "refused")]
    refused = launched("torchrun", [*run, "--sparsities", "1.5"])
    said, errors = refused.communicate(timeout=300)
    assert refused.returncode == 1 and said == "", said  # the launcher's own code
    assert "exitcode  : 2" in errors and errors.count("error: ") == 1, errors
    assert errors.count("1.5") == 1, errors


def test_a_killed_process_ends_the_others_and_any_number_goes_on(world: Path) -> None:
    out = world / "killed"
    run = ["--suite", str(world / "suite.yaml"), "--out", str(out)]
    first = launched("torchrun", run)
    until = time.monotonic() + 120
    while not (out / "results.json").exists():  # says what is not finished
        assert time.monotonic() < until and first.poll() is None, "no cell has begun"
        time.sleep(0.01)
    psutil.Process(first.pid).children()[-1].kill()
    killed = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert first.returncode == 1 and "Signal 9 (SIGKILL)" in errors, errors
    with pytest.raises(SystemExit) as end:
        main(run)  # alone
    assert not end.value.code
    assert statuses(out) == ["ok"] * 2
