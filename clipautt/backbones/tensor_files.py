"""Reads PyTorch's files of tensors without running code in them, and says what else is in a file that holds more.

In: a path. Out: what was saved, tensors and plain containers only.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

_NAMED_OBJECTS = 4


class OtherObjectsError(ValueError):
    """A file holds objects beside its tensors; the message names their types, and how to keep only the tensors."""


def read_tensors(path: Path, *, keep: str) -> Any:
    """The content of a file that `torch.save` wrote.

    Args:
        path: the file.
        keep: a Python expression for what is needed of the content `c`; part of the advice in the error.

    Raises:
        OtherObjectsError: if anything but tensors and plain containers is in it.
        Exception: of many types, as torch raises them, if the file is broken.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        objects = _objects(path, error)
        if not objects:
            raise
        target = path.with_name(f"{path.stem}.tensors{path.suffix}")
        code = (
            f'import torch; c = torch.load({json.dumps(str(path))}, map_location="cpu", weights_only=False); '
            f"torch.save({keep}, {json.dumps(str(target))})"
        )
        more = [f"{len(objects) - _NAMED_OBJECTS} more"] if len(objects) > _NAMED_OBJECTS else []
        raise OtherObjectsError(
            f"holds {', '.join([*objects[:_NAMED_OBJECTS], *more])} beside its tensors, and objects are not unpickled, "
            "since that can run code. If you trust whoever made the file, keep only its tensors and give the file that "
            f"this writes: {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
        ) from error


def _objects(path: Path, error: UnpicklingError) -> list[str]:
    """Types of the objects in a file that are not tensors; the first one only in files of before PyTorch 1.6."""
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # it cannot look into older or broken files
        objects = re.findall(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
    return sorted(set(objects))
