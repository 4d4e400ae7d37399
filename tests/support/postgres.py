"""A real PostgreSQL server for a test: Debian's programs, a fresh data folder, one port of this machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

_WAIT_SECONDS = 60


@dataclass
class PostgresServer:
    """A server with the superuser `owner`, password `Secret-7`, and the database `sweeps`."""

    programs: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, *, user: str = "owner", password: str | None = "Secret-7", database: str = "sweeps") -> str:
        """URL of a database."""
        secret = "" if password is None else f":{password}"
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def sql(self, *statements: str, database: str = "sweeps") -> None:
        """Run statements as the superuser."""
        import psycopg

        with psycopg.connect(self.url(database=database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        options += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "log_min_messages=fatal"]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(_as_user([str(self.programs / "postgres"), *options]), stdout=log, stderr=log)
        deadline = time.monotonic() + _WAIT_SECONDS
        ready = [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once, as a restart of its machine does; connections break."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=_WAIT_SECONDS)
            self.process = None


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A running server; skips the test where there is none, or no driver for it.

    Its folder is not pytest's: the server's user could not reach it, and paths of sockets have to be short.
    """
    found = _programs()
    if found is None:
        pytest.skip("no PostgreSQL server on this machine: apt-get install postgresql")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'clipautt[postgres]'")
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text("Secret-7")
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                os.chown(path, _other_user().pw_uid, _other_user().pw_gid)
        initdb = [str(found / "initdb"), "-D", str(folder / "data"), "-U", "owner", "--auth=scram-sha-256"]
        initdb += [f"--pwfile={folder / 'password'}", "--no-sync", "--no-locale", "-E", "UTF8"]
        subprocess.run(_as_user(initdb), check=True, capture_output=True, cwd=folder)
        server = PostgresServer(found, folder, _free_port())
        try:
            server.start()
            server.sql("CREATE DATABASE sweeps", database="postgres")
            yield server
        finally:
            server.stop()


def _programs() -> Path | None:
    """Folder of the server's programs."""
    on_path = shutil.which("postgres")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def _as_user(command: Sequence[str]) -> list[str]:
    """The command, run as another user where this one is root, as the server refuses root."""
    if os.geteuid() != 0:
        return list(command)
    user = _other_user()
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *command]


def _other_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("PostgreSQL refuses root, and there is no user postgres or nobody here")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
