"""The `clipautt` command: `clipautt <job> key=value …` runs one job of this package.

`python -m ray_jobs.<job> key=value …` comes here too, so both are the same. A job is a package with a module `job`: its
docstring is the help, whose first line says what the job is for, and it has `main(cfg) -> int`. With
`POSITIONAL = "video"`, a first word without `=` is the value of that setting. With `READS_WORDS = True`, `main` gets
the words of the command line instead of a configuration.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ray_jobs.platform.actor_pool import PoolError
from ray_jobs.platform.jobs import EXIT_INTERRUPTED, EXIT_USER_ERROR, entry_of, find_job, overrides, overview

_USER_ERRORS = (
    ValueError,
    ConnectionError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    PoolError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after `clipautt`; None takes those of this process.

    Returns:
        The exit code: the job's own, 2 for a user error, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        from ray_jobs.platform.runs import code_version

        print(f"clipautt {code_version()}")
        return 0
    try:
        return _run(words[0], words[1:])
    except KeyboardInterrupt:
        print(f"\nclipautt {words[0]}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _USER_ERRORS as error:
        if os.environ.get("CLIPAUTT_DEBUG"):
            raise
        print(f"clipautt {words[0]}: {_message(error)}", file=sys.stderr)
        return EXIT_USER_ERROR


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
        return f"{error.strerror}: {error.filename}"
    if "pydantic_core" in sys.modules:  # importing it would make `--help` slow
        from pydantic import ValidationError

        from clipautt.settings import one_line

        if isinstance(error, ValidationError):
            return one_line(error)
    return str(error) or type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
