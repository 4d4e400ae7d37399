"""The `clipautt` command: `clipautt <job> key=value …` runs one job of this package.

`python -m ray_jobs.<job> key=value …` comes here too, so both are the same. A job is a package with a module `job`: its
docstring is the help, whose first line says what the job is for, and it has `main(cfg) -> int`. With
`POSITIONAL = "subject videos…"`, the first word without `=` is the value of one setting, and all further ones are the
list of another. With `READS_WORDS = True`, `main` gets the words of the command line instead of a configuration.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Sequence

from clipautt.commands import is_utf8
from clipautt.commands import word as shell_word
from ray_jobs.platform.actor_pool import PoolError
from ray_jobs.platform.jobs import (
    EXIT_INTERRUPTED,
    EXIT_NO_READER,
    EXIT_USER_ERROR,
    entry_of,
    find_job,
    overrides,
    overview,
)

_USER_ERRORS = (ValueError, OSError, PoolError)
_SHOWN_NAME = 80
"""Letters of a file's name in a message."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after `clipautt`; None takes those of this process.

    Returns:
        The exit code: the job's own, 2 for a user error, 130 when interrupted, 141 when nobody reads the output any
        more, as after `| head -1`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that are not UTF-8
    try:
        code = _main(words)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        _discard_output()
        return EXIT_NO_READER
    return code


def _nobody_reads() -> bool:
    """Whether the reader of this process's output, or of its messages, has gone."""
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):
        for stream in (sys.stdout, sys.stderr):
            poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


def _discard_output() -> None:
    """Send what is still to be written nowhere, so that Python does not complain of it when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        from ray_jobs.platform.runs import code_version

        print(f"clipautt {code_version()}")
        return 0
    try:
        _refuse_names(words)
        return _run(words[0], words[1:])
    except KeyboardInterrupt:
        print(f"\nclipautt {words[0]}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except _USER_ERRORS as error:
        if os.environ.get("CLIPAUTT_DEBUG"):
            raise
        print(f"clipautt {words[0]}: {_message(error)}", file=sys.stderr)
        return EXIT_USER_ERROR


def _refuse_names(words: Sequence[str]) -> None:
    """Refuse names that are not UTF-8 at the door: tables and reports could not hold them.

    Raises:
        ValueError: A word has bytes that are not UTF-8; the message says how to rename the file.
    """
    for word in words:
        name = word.partition("=")[2] or word
        if not is_utf8(name):
            new = "".join(c if is_utf8(c) else "_" for c in name)
            raise ValueError(
                f"{word}: this name is not UTF-8, and cannot be written to tables; rename it, for instance with "
                f"mv {shell_word(name)} {shell_word(new)}"
            )


def run_job(package: str | None) -> int:
    """Run the job of this package with the command line of this process: what `python -m ray_jobs.<job>` does."""
    assert package is not None
    return main([package.rpartition(".")[2].replace("_", "-"), *sys.argv[1:]])


def _run(name: str, words: list[str]) -> int:
    from ray_jobs.platform import configuration, places, usage  # imports Hydra, which takes longer than the overview

    job = find_job(name)
    if "--help" in words or "-h" in words:
        given = [word for word in words if word not in ("--help", "-h")]
        print(usage.help_text(job, overrides(job, given) if not job.reads_words else ()))
        return 0
    if job.reads_words:
        return int(entry_of(job)(words))
    settings = overrides(job, words)
    cfg = configuration.complete(job.module, settings)
    places.refuse_uris(job, settings)
    return int(entry_of(job)(cfg))


def _message(error: BaseException) -> str:
    """The error's message; for one that crossed Ray, that of its cause, without the worker's traceback."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    if isinstance(error, OSError) and error.strerror and error.filename:
        name = str(error.filename)
        return (
            f"{error.strerror}: {name if len(name) <= _SHOWN_NAME else f'{name[:_SHOWN_NAME]}… ({len(name)} letters)'}"
        )
    if "pydantic_core" in sys.modules:  # importing it would make `--help` slow
        from pydantic import ValidationError

        from clipautt.settings import one_line

        if isinstance(error, ValidationError):
            return one_line(error)
    return str(error) or type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
