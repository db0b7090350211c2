"""Checkpoints and results on the hub: a repository is made where there is none, a folder uploaded.

Example::

    require_repository("me/short", "model")           # before hours of work
    push_folder(Path("out/short"), "me/short")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HfHubHTTPError

from streamline.checkpoints.card import CARD, is_repository
from streamline.checkpoints.info import PLAN
from streamline.errors import AssetError, ConfigError
from streamline.report.artifacts import report_files
from streamline.results.record_file import load
from streamline.sources.hub.failures import first_line, hub_errors

__all__ = ["push_folder", "push_results", "require_repository"]

Kind = Literal["model", "dataset"]
#: What of a run's folder is uploaded beside the files that its report is made of.
_MADE = ("report.html", "report.md", "plans/*.json", "tables/*", "figures/*")


def require_repository(repository: str, kind: Kind, *, private: bool = False) -> None:
    """Make a repository if there is none.

    Args:
        repository: ``OWNER/NAME``.
        kind: Of a checkpoint, or of results.
        private: Whether a new one is private.

    Raises:
        ConfigError: If it cannot be a repository's name.
        AssetError: If it cannot be made or written to, with what to do.
    """
    if not is_repository(repository):
        raise ConfigError(
            f"{repository!r} cannot name a repository of the hub; give OWNER/NAME, such as me/short"
        )
    with _explained(repository):
        HfApi().create_repo(repository, repo_type=kind, private=private, exist_ok=True)


def push_folder(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a checkpoint as one commit; what the repository has beside it stays.

    Args:
        folder: What is uploaded.
        repository: ``OWNER/NAME``; made if there is none.
        private: Whether a new one is private.

    Returns:
        The repository's address.

    Raises:
        ConfigError: If it cannot be a repository's name, or the folder is no checkpoint.
        AssetError: If it cannot be written to, with what to do.
    """
    if not (folder / PLAN).is_file():
        raise ConfigError(f"{folder} is no checkpoint; `streamline-bench prune` and `export` make")
    require_repository(repository, "model", private=private)
    with _explained(repository):
        HfApi().upload_folder(
            folder_path=folder,
            repo_id=repository,
            commit_message=f"Upload {folder.resolve().name} from streamline-bench",
        )
    return f"{HfApi().endpoint}/{repository}"


def push_results(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload what a run's report is made of, the report and plans as a data set, in one commit.

    Args:
        folder: The run's; what it keeps to go on from stays here.
        repository: ``OWNER/NAME``; made if there is none.
        private: Whether a new one is private.

    Returns:
        The repository's address.

    Raises:
        ConfigError: As for :func:`push_folder`, or if there are no records.
        AssetError: Likewise.
    """
    records = load(folder)
    report = folder / "report.md"
    metadata = DatasetCardData(
        tags=["streamline-bench", "layer-pruning"],
        pretty_name=f"Layer pruning: {len(records)} cells",
    )
    text = report.read_text(encoding="utf-8") if report.is_file() else f"{len(records)} records"
    card = DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")
    made = [file for pattern in _MADE for file in sorted(folder.glob(pattern)) if file.is_file()]
    files: dict[str, Path | bytes] = {CARD: str(card).encode()}
    files |= report_files(folder) | {file.relative_to(folder).as_posix(): file for file in made}
    require_repository(repository, "dataset", private=private)
    with _explained(repository):
        HfApi().create_commit(
            repository,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            repo_type="dataset",
            commit_message=f"Upload {folder.resolve().name} from streamline-bench",
        )
    return f"{HfApi().endpoint}/datasets/{repository}"


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into one message with what to do."""
    try:
        yield
    except hub_errors() as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        why = f"{repository} on the hub cannot be written: {first_line(error).rstrip('.')}. "
        if status in (401, 403):
            why += (
                "Run `hf auth login` (or set HF_TOKEN) with a token that may write there, and give "
                "a repository of your own or of an organisation that lets you."
            )
        else:
            why += "What is on this machine stays: `streamline-bench push` tries again."
        raise AssetError(why) from error
