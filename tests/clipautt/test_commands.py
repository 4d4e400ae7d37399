"""Settings in messages: typed into a shell as they stand, they are read as they were meant."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from clipautt.commands import setting, word
from ray_jobs.platform.configuration import compose

NAMES = [
    "plain",
    "a b",
    "1e3",
    "007",
    "true",
    "null",
    "it's",
    'say "x"',
    "$HOME",
    "a,b",
    "[x]",
    "{x}",
    "${x}",
    "a=b",
    "é",
    "x\\",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_passes_the_shell_and_the_grammar(name: str) -> None:
    typed = setting("subject", name)
    got = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, text=True, check=True).stdout
    assert [got] == shlex.split(typed)
    assert compose("predict", [got]).subject == name


def test_a_list_passes_too() -> None:
    typed = shlex.split(setting("dataset.classes", NAMES))
    assert list(compose("manifest", ["dataset=folder", *typed]).dataset.classes) == NAMES


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("a=b", "a=b"),
        ("out='my data'", "\"out='my data'\""),
        ("out='$x'", "'out='\"'\"'$x'\"'\"''"),
        ("caf\udce9.mp4", r"$'caf\xe9.mp4'"),
    ],
)
def test_a_word_of_the_shell(text: str, typed: str) -> None:
    assert word(text) == typed


def test_a_name_that_is_not_utf_8_passes_bash() -> None:
    typed = word("it's caf\udce9\\")
    got = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, check=True).stdout
    assert got == b"it's caf\xe9\\"
