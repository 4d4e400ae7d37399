"""The `clipautt` command: `clipautt <job> key=value …` runs one job of this package.

`python -m ray_jobs.<job> key=value …` comes here too, so both are the same. A job is a module with a docstring, whose
first line says what it is for, and `main(cfg) -> int`. It may set `POSITIONAL = "video"`, and then a first word without
`=` is the value of that setting. A module with `READS_WORDS = True` is handed the words of the command line instead of
a configuration. What this module does not know: what the jobs do.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence

from ray_jobs import configuration, usage
from ray_jobs.actor_pool import PoolError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_SETTING = re.compile(r"~[\w./@:-]+(=.*)?|[+]{0,2}[A-Za-z_][\w./@:-]*=.*", re.DOTALL)
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
        The exit code: the job's own, 2 for a mistake of the user's, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage.overview())
        return 0
    if words[0] in ("-V", "--version"):
        from ray_jobs.runs import code_version

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


def overrides(job: usage.Job, words: Sequence[str]) -> list[str]:
    """The words of a command line as settings: a first word for the job's positional setting is quoted for Hydra.

    Raises:
        ValueError: A word is not a setting.
    """
    settings = list(words)
    first = settings[0] if settings else None
    if first is not None and job.positional and (not _SETTING.fullmatch(first) or os.path.exists(first)):
        settings[0] = f"{job.positional}={configuration.quoted(first)}"
    for word in settings:
        if word.startswith("-") and not _SETTING.fullmatch(word):
            raise ValueError(f"unknown option {word!r}: settings are written key=value, as in {_as_setting(word)}")
        if not _SETTING.fullmatch(word):
            raise ValueError(f"cannot read {word!r}: settings are written key=value; see `clipautt {job.name} --help`")
    return settings


def _run(name: str, words: list[str]) -> int:
    job = usage.find_job(name)
    if "--help" in words or "-h" in words:
        given = [word for word in words if word not in ("--help", "-h")]
        print(usage.help_text(job, overrides(job, given) if not job.reads_words else ()))
        return 0
    if job.reads_words:
        return int(importlib.import_module(f"ray_jobs.{job.module}").main(words))
    cfg = configuration.complete(job.module, overrides(job, words))
    return int(importlib.import_module(f"ray_jobs.{job.module}").main(cfg))


def _message(error: BaseException) -> str:
    """What the error says; of one that crossed Ray, what its cause says, without the worker's traceback."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__


def _as_setting(word: str) -> str:
    name, _, value = word.lstrip("-").partition("=")
    return f"{name.replace('-', '_')}={value or '…'}"


if __name__ == "__main__":
    raise SystemExit(main())
