"""The names of tasks and groups that lm-eval YAML declares, read as text.

Example::

    names_below(Path("my_tasks"))      # ["my_sums", "my_riddles"]
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from streamline import registry

__all__ = ["lm_eval_tasks", "names_below", "names_elsewhere"]


@lru_cache(maxsize=1)
def names_elsewhere() -> dict[str, str | None]:
    """Every task and group that lm-eval's YAML and installed task folders declare.

    Read as text: building lm-eval's own index is ten times slower.

    Returns:
        Name to the installed folder that declares it, or None for lm-eval's own.
    """
    roots: list[tuple[Path, str | None]] = [(lm_eval_tasks(), None)]
    roots += [(path, str(path)) for path in registry.folders(registry.TASKS).values()]
    return {name: folder for root, folder in roots for name in names_below(root)}


def names_below(root: Path) -> list[str]:
    """The tasks and groups that YAML files anywhere below a folder declare."""
    pattern = re.compile(r"^\"?(?:task|group)\"?\s*:\s*[\"']?([\w.:+-]+)[\"']?\s*$", re.MULTILINE)
    texts = [path.read_text(encoding="utf-8") for path in root.rglob("*.yaml")]
    return [name for text in texts for name in pattern.findall(text)]


def lm_eval_tasks() -> Path:
    """Where lm-eval keeps its tasks, without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"
