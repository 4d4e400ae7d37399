"""Names of subjects, and the files that stand for them: whatever a person is called, the file stays in its folder.

This module imports nothing heavy, since a web server uses it, too.
"""

from __future__ import annotations

from urllib.parse import quote

from clipautt.tables import nfc

SUFFIX = ".safetensors"
"""Of a subject's file."""
_LONGEST_NAME = 240
"""Bytes that the name of a subject's file may have; file systems allow 255, and a temporary name is longer."""


def subject_file(subject_id: str) -> str:
    """File name for a subject's adapted prompts; names differ between ids, and none leads out of the folder."""
    return quote(subject_id, safe="").replace(".", "%2E") + SUFFIX


def checked_subject(subject: str, *, setting: str = "subject") -> str:
    """The name in the spelling of manifests.

    Args:
        subject: the name as it was typed.
        setting: what it is called where it was typed, for the message.

    Raises:
        ValueError: if it is empty, no UTF-8, or too long for the name of a file.
    """
    try:
        usable = bool(subject.strip()) and bool(subject.encode())
    except UnicodeEncodeError:  # a lone surrogate, which stands for bytes that are no UTF-8
        usable = False
    if not usable:
        raise ValueError(f"{setting}={subject!r}; allowed: a name that is not empty, in UTF-8")
    name = nfc(subject)
    if len(subject_file(name)) > _LONGEST_NAME:
        raise ValueError(f"{setting}={subject[:20]!r}… is too long for the name of a file; give a shorter one")
    return name
