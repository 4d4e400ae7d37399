"""What is sent along with a submitted job: the code of the checkout, and the commit it stands at.

In: the checkout that this code runs from. Out: Ray's runtime environment, or a `ValueError` that names what is too
large to be sent.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from ray_jobs.platform import configuration
from ray_jobs.platform.progress import size_text
from ray_jobs.platform.runs import COMMIT_VARIABLE, commit

EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "/runs",
    "/data",
    "/features",
    "/outputs",
    "/dist",
    "/build",
    "*.egg-info",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "*.mp4",
    "*.avi",
    "*.webm",
    "*.mkv",
    "*.mov",
    "*.log",
)
"""Files of a checkout that are not sent, as .gitignore patterns; a leading slash matches at the checkout's top only."""
_NAMED = 3
_SPECIAL = "\\*?[]!# "
"""Characters with a meaning in .gitignore patterns."""


def runtime_env() -> dict[str, Any]:
    """What the cluster needs to run the job: the checkout's code and commit, or nothing where a wheel is installed.

    Raises:
        ValueError: The checkout holds more than Ray takes; the message names the largest files, or folders of many.
    """
    root = configuration.checkout()
    if root is None:
        return {}
    refuse_too_large(root)
    known = {"env_vars": {COMMIT_VARIABLE: commit()}} if commit() else {}
    return {"working_dir": str(root), "excludes": list(EXCLUDES), **known}


def refuse_too_large(root: Path, *, limit: int | None = None) -> None:
    """Refuse a checkout that Ray would refuse after everything was sent.

    Args:
        root: The checkout.
        limit: Number of bytes that are taken; None: what Ray's dashboard takes.

    Raises:
        ValueError: With the sizes of the largest files or folders and how they are left out.
    """
    sizes = sent_files(root)
    limit, total = _limit() if limit is None else limit, sum(sizes.values())
    if total < limit:
        return
    culprits = _largest(sizes, total - limit)
    named = ", ".join(f"{name} ({size_text(size)})" for name, size in culprits)
    patterns = " ".join(shlex.quote(_pattern(name)) for name, _ in culprits)
    raise ValueError(
        f"the checkout {root} is sent along, and its {size_text(total)} are more than the {size_text(limit)} that Ray "
        f"takes: {named}. Move it elsewhere, or leave it out: printf '%s\\n' {patterns} >> "
        f"{shlex.quote(str(root / '.rayignore'))}"
    )


def sent_files(root: Path) -> dict[Path, int]:
    """The files that Ray would send, relative to the checkout, and their sizes in bytes; Ray does not compress them."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    sizes: dict[Path, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root)] = path.stat().st_size

    # Ray's own walk: it alone says what is sent, ignore files in sub-folders included.
    excludes = [*ray_constants.get_runtime_env_default_excludes(), *EXCLUDES]
    with_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    rules, quiet = [packaging._get_excludes(root, excludes)], logging.getLogger(__name__)
    packaging._dir_travel(root, rules, note, include_gitignore=with_gitignore, logger=quiet)
    return sizes


def _limit() -> int:
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    return min(packaging.GCS_STORAGE_MAX_SIZE, ray_constants.DASHBOARD_CLIENT_MAX_SIZE)


def _largest(sizes: dict[Path, int], excess: int) -> list[tuple[str, int]]:
    """The few files without which the rest can be sent; if they are many, the largest folders at the top instead."""
    files = [(path.as_posix(), size) for path, size in Counter(sizes).most_common(_NAMED)]
    for count in range(1, len(files) + 1):
        if sum(size for _, size in files[:count]) > excess:
            return files[:count]
    folders: Counter[str] = Counter()
    for path, size in sizes.items():
        folders[path.parts[0] + ("/" if len(path.parts) > 1 else "")] += size
    return folders.most_common(_NAMED)


def _pattern(name: str) -> str:
    """The .gitignore pattern of exactly this file or folder."""
    return "/" + "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in name)
