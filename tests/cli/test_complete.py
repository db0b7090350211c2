from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamline import registry
from streamline.cli import complete
from streamline.cli.main import main
from streamline.errors import ConfigError


def _environment(line: str) -> dict[str, str]:
    """What bash sets when TAB is pressed at the end of a line."""
    place = len(line.split()) - (not line.endswith(" "))
    return {
        "COMP_WORDS": line,
        "COMP_CWORD": str(place),
        "_STREAMLINE_BENCH_COMPLETE": "complete_bash",
    }


def _completed(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    for name, value in _environment(line).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="0"):
        main([])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("streamline-bench val", ["validate"]),
        ("streamline-bench cache cl", ["clear"]),
        ("streamline-bench --methods sho", 4),
        ("streamline-bench --methods shortgpt,sl", ["shortgpt,sleb", "shortgpt,slicegpt"]),
        ("streamline-bench --methods sleb,sle", []),
        ("streamline-bench run --models llama2", ["llama2-7b", "llama2-13b", "llama2-70b"]),
        ("streamline-bench --tasks piqa,common", ["piqa,commonsense", "piqa,commonsense_qa"]),
        ("streamline-bench --suite smo", ["smoke"]),
        ("streamline-bench --sparsit", ["--sparsities"]),
        ("streamline-bench prune opt-1", ["opt-125m", "opt-1.3b", "opt-13b"]),
        ("streamline-bench prune opt-1.3b --method uid", ["uidl"]),
        ("streamline-bench evaluate out --tasks pi", ["piqa"]),
        ("streamline-bench validate lac", ["laco", "laco-release"]),
        ("streamline-bench report out --suite emb", ["embedded"]),
        ("streamline-bench no-such-verb x", []),
    ],
)
def test_names_verbs_and_flags_are_completed(
    line: str,
    expected: list[str] | int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = _completed(line, monkeypatch, capsys)
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_completion_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from streamline.cli.main import main\n"
        "try:\n"
        "    main([])\n"
        "finally:\n"
        "    print(*{'torch', 'transformers', 'lm_eval', 'pandas'} & set(sys.modules))\n"
    )
    line = "streamline-bench --models opt-1.3b --methods shortgpt --tasks pi"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **_environment(line)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["piqa", ""]


def test_a_broken_plugin_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(group: str) -> None:
        raise ConfigError("the name 'a' is claimed twice")

    monkeypatch.setattr(registry, "available", fail)
    assert complete.methods("sho") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_to_install_is_shown(shell: str, tmp_path: Path) -> None:
    program = f"from streamline.cli.main import main; main(['--show-completion', '{shell}'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert "_STREAMLINE_BENCH_COMPLETE=complete_" + shell in done.stdout
