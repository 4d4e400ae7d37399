"""Run a job on a Ray cluster from here: sends the code, follows the log, ends with the job's exit code.

    clipautt submit <job> key=value … [--address URL]

The cluster is the one at `--address` (the dashboard's URL, `http://host:8265`), else at RAY_API_SERVER_ADDRESS or
RAY_ADDRESS, else at http://127.0.0.1:8265. From a source checkout the code is sent along, without data, runs and
caches, and the run records its commit; an installed wheel sends nothing, so the cluster needs the same wheel. Ctrl-C
stops the job.

Paths are read on the cluster: all of them, those left at their defaults included, have to be absolute, on storage that
its machines share. A relative path is refused, since it would lie in a temporary folder that Ray removes. So is a URL
with a password, since the dashboard shows the command: write storage='${oc.env:SWEEP_STORAGE}' and set that variable
where the job runs.

Example:
    clipautt submit extract dataset=biovid root=/shared/biovid manifest=/shared/biovid.parquet store=/shared/features \\
        runs=/shared/runs --address http://head:8265
    clipautt submit adapt manifest=/shared/biovid.parquet store=/shared/features checkpoint=/shared/runs/train/ward7 \\
        runs=/shared/runs name=ward7 --address http://head:8265
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ray_jobs.platform import configuration
from ray_jobs.platform.jobs import EXIT_INTERRUPTED, find_job, overrides
from ray_jobs.platform.places import refuse_relative, refuse_uris
from ray_jobs.platform.secrets import holds_secret, redacted
from ray_jobs.platform.tokens import token_advice, use_token
from ray_jobs.submit.package import runtime_env

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

READS_WORDS = True
"""`main` takes the words of the command line: they are the other job's."""

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
_STOP_SECONDS = 30.0
_LOST_AFTER_FAILURES = 10


def main(words: Sequence[str]) -> int:
    """Submit a job, follow it and return its exit code.

    Args:
        words: `<job> key=value … [--address URL]`.

    Raises:
        ValueError: A word is wrong; this is checked before anything is sent.
        ConnectionError: No cluster answers, or it stopped answering.
    """
    address, rest = _take_address(list(words))
    if not rest:
        raise ValueError("which job? Write `clipautt submit <job> key=value …`")
    entrypoint, environment = entrypoint_of(rest[0], rest[1:]), runtime_env()
    client = _client(address)
    try:
        job_id = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    except RuntimeError as error:  # Ray's client raises it for every failed request.
        raise ConnectionError(f"the cluster refused the job: {_last_line(str(error))}") from error
    return follow(client, job_id)


def entrypoint_of(name: str, words: Sequence[str]) -> str:
    """The shell command that runs a job on the cluster, its settings checked.

    Raises:
        ValueError: The job or one of its settings does not exist, a path is a URI or not absolute, or a word has a
            password.
    """
    job = find_job(name)
    refuse_secrets(words)
    if job.reads_words:
        raise ValueError(f"{name!r} runs on this machine and cannot be submitted")
    settings = overrides(job, words)
    if job.module in configuration.configured_jobs():
        configuration.complete(job.module, settings)
        refuse_uris(job, settings)
        refuse_relative(job, settings)
        settings = configuration.inlined(settings)
    return f"{_python()} {shlex.join(['-m', f'ray_jobs.{job.module}', *settings])}"


def refuse_secrets(words: Sequence[str]) -> None:
    """Refuse a URL with a password: the cluster's dashboard shows the command of every job.

    Raises:
        ValueError: naming the setting, with the ways to give the password where the job runs.
    """
    for word in words:
        if holds_secret(word):
            key = word.partition("=")[0].lstrip("+~")
            variable = f"SWEEP_{key.rpartition('.')[2].upper()}" if key.isidentifier() else "SECRET_URL"
            instead = shlex.quote(f"{key}=${{oc.env:{variable}}}")
            raise ValueError(
                f"{redacted(word)}: the cluster's dashboard would show this password to everybody; write {instead} and "
                f"set {variable} on the machine where the job runs, or omit the password and put it into PGPASSWORD or "
                "~/.pgpass there"
            )


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print a job's log until it ends.

    Args:
        client: Client of the cluster.
        job_id: As `submit_job` returned it.

    Returns:
        The job's own exit code; 1 if it failed without one, 130 if Ctrl-C stopped it.

    Raises:
        ConnectionError: The cluster stopped answering. The job may still run.
    """
    print(f"submitted {job_id}; Ctrl-C stops it", file=sys.stderr, flush=True)
    shown: list[str] = []
    try:
        asyncio.run(_print_log(client, job_id, shown))
        _wait(client, job_id, None)
        print(client.get_job_logs(job_id)[len("".join(shown)) :], end="", flush=True)  # Nothing, unless it was cut off.
        return _exit_code(client, job_id)
    except KeyboardInterrupt:
        print(f"\nstopping {job_id} …", file=sys.stderr, flush=True)
        client.stop_job(job_id)
        _wait(client, job_id, _STOP_SECONDS)
        return EXIT_INTERRUPTED
    except RuntimeError as error:  # Ray's client raises it for every failed request.
        raise ConnectionError(f"lost the cluster; {job_id} may still run there ({_last_line(str(error))})") from error


async def _print_log(client: JobSubmissionClient, job_id: str, shown: list[str]) -> None:
    import aiohttp

    try:
        async for lines in client.tail_job_logs(job_id):
            shown.append(lines)
            print(lines, end="", flush=True)
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        print(f"clipautt submit: the log was interrupted, the rest follows at the end ({error})", file=sys.stderr)


def _exit_code(client: JobSubmissionClient, job_id: str) -> int:
    info = client.get_job_info(job_id)
    if info.status == "SUCCEEDED":
        return 0
    print(f"clipautt submit: {job_id} {info.status.lower()}: {_last_line(info.message)}", file=sys.stderr)
    return info.driver_exit_code or 1


def _wait(client: JobSubmissionClient, job_id: str, seconds: float | None) -> None:
    """Wait until the job has ended or `seconds` have passed; a few failed requests in a row are tolerated."""
    deadline = None if seconds is None else time.monotonic() + seconds
    failures = 0
    while deadline is None or time.monotonic() < deadline:
        try:
            if client.get_job_status(job_id).is_terminal():
                return
            failures = 0
        except (ConnectionError, OSError, RuntimeError) as error:
            failures += 1
            if failures >= _LOST_AFTER_FAILURES:
                raise ConnectionError(f"lost the cluster; {job_id} may still run there ({error})") from error
        time.sleep(_POLL_SECONDS)


def _python() -> str:
    """Shell words for the interpreter: this virtual environment's if the cluster can see it, else `python`."""
    if sys.prefix == sys.base_prefix:
        return "python"
    return f'"$(command -v {shlex.quote(sys.executable)} || echo python)"'


def _take_address(words: list[str]) -> tuple[str | None, list[str]]:
    for index, word in enumerate(words):
        if word == "--address":
            if index + 1 == len(words):
                raise ValueError("--address needs a URL, for instance --address http://head:8265")
            return words[index + 1], words[:index] + words[index + 2 :]
        if word.startswith("--address="):
            return word.partition("=")[2], words[:index] + words[index + 1 :]
    return None, words


def _client(address: str | None) -> JobSubmissionClient:
    given = [os.environ[name] for name in _ADDRESS_VARIABLES if os.environ.get(name)]
    target = address or (given or [DEFAULT_ADDRESS])[0]
    with _without_addresses():
        try:
            _await_answer(target)
            return _connected(target)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            if " token" in str(error):
                raise
            raise ConnectionError(
                f"no Ray cluster accepts jobs at {target}: start one with `ray start --head` on this machine, or give "
                f"the URL of a cluster's dashboard with --address ({_last_line(str(error))})"
            ) from error


def _connected(target: str) -> JobSubmissionClient:
    """The client, with a token if the cluster asks for one."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    with contextlib.suppress(AuthenticationError):
        return JobSubmissionClient(target)
    use_token()
    try:
        return JobSubmissionClient(target)
    except AuthenticationError as error:
        raise ConnectionError(token_advice(target)) from error


def _await_answer(url: str) -> None:
    """Check that something answers: a machine that drops packets would keep Ray's client waiting forever.

    Raises:
        TimeoutError: Nothing answers within the deadline.
    """
    if not url.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(url, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise error.reason from error


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Hide the address variables of the environment, which Ray prefers to an explicit address."""
    kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _last_line(text: str | None) -> str:
    return ((text or "").strip().splitlines() or ["no reason given"])[-1]
