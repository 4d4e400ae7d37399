"""Where a sweep's study is kept: an SQLite file, Optuna's journal file on a shared disk, or a PostgreSQL server.

In: the setting `storage`. Out: Optuna's storage, or one line that says what is wrong with it, without its password.
Two drivers may use each of them at the same time.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ray_jobs.platform.secrets import HIDDEN, redacted

ALLOWED = (
    "a path that ends in .log or .journal, journal:PATH, sqlite:///PATH, postgresql://user@host/database, or null for "
    "study.db in the run's folder"
)
"""What `storage` may be, for messages."""
_JOURNAL = "journal:"
_JOURNAL_SUFFIXES = (".log", ".journal")
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_LOCKED_SECONDS = 60
_CONNECT_SECONDS = 10
_STALE_LOCK_SECONDS = 30
_ATTEMPTS = 20
_NETWORK = re.compile("nfs|cifs|smb|9p|lustre|gpfs|ceph|gluster|beegfs|fuse|afs|virtiofs|vboxsf")
_RACE = re.compile(
    r"already exists|duplicate key|database is locked|tuple concurrently updated|UNIQUE constraint", re.I
)
"""Errors of two drivers that make the tables at the same time."""

_LOST = re.compile(
    "connection.* (?:closed|refused|failed|lost|timeout|bad)|(?:closed|terminating) (?:the )?connection|SSL SYSCALL|"
    "is locked|starting up|shutting down|recovery mode|timed? ?out",
    re.I,
)
"""Errors after which trying again may help."""
_ADVICE = {
    "invalid (?:connection option|integer value|[a-z_]+ value|URI)|unrecognized": "{text}",
    "password authentication failed|no password supplied": (
        "the server refuses the password of {user}; set it in the URL, in PGPASSWORD, or in ~/.pgpass"
    ),
    'role ".*" does not exist': "the server has no {user}; create it with CREATE ROLE … LOGIN",
    'database ".*" does not exist': "the server has no database{database}; create it with createdb",
    "permission denied|must be owner|not permitted|no pg_hba.conf entry": (
        "{user} has no rights there; ask for those to connect to the database{database} and to create tables in it"
    ),
    "translate host name|resolve host|Name or service not known": "its host is unknown; check its name",
    "file is not a database|malformed": "the file is no SQLite database, or is damaged; give another file",
    "readonly database|unable to open database": "the file cannot be written; give a place that can be written",
    "is full|No space left": "the disk is full",
    "is locked": "another program keeps it locked; end that, and start again",
    "refused|timeout|timed out|No such file|unreachable|connection": (
        "no server answers there, or the connection was lost; check that it runs, and its host and port"
    ),
}
"""Words of the databases → what to do; the first that fits."""


def shown(where: str | None) -> str | None:
    """The setting without its passwords, for logs and for `config.yaml`."""
    return None if where is None else redacted(where)


def open_storage(where: str | None, folder: Path) -> BaseStorage:
    """The storage of a study; made if it does not exist.

    Args:
        where: path of a journal file, `journal:PATH`, `sqlite:///PATH`, `postgresql://user[:password]@host[:port]/db`;
            None for `study.db` in the folder.
        folder: folder of the run.

    Raises:
        ValueError: it is none of these, its folder does not exist, or the file is something else.
        ConnectionError: the server does not answer, or refuses user, password or database.
    """
    if where is None:
        return _sqlite(
            URL.create("sqlite", database=str((folder / "study.db").absolute())), "study.db in the run's folder"
        )
    if where.startswith(_JOURNAL) and not where.startswith("journal://"):
        return _journal(where.removeprefix(_JOURNAL))
    if where.endswith(_JOURNAL_SUFFIXES) and "://" not in where:
        return _journal(where)
    url = _url(where)
    if url.drivername == "sqlite":
        return _sqlite(_absolute(url, where), redacted(where))
    return _postgres(url, redacted(where))


def described(storage: BaseStorage) -> str:
    """What a storage is, without passwords, for messages."""
    if isinstance(storage, RDBStorage):
        return redacted(storage.url)
    return str(getattr(getattr(storage, "_backend", None), "_file_path", type(storage).__name__))


def _url(where: str) -> URL:
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        raise ValueError(f"storage={redacted(where)!r}: allowed: {ALLOWED}") from None
    if url.drivername in _POSTGRES:
        if not url.database:
            raise ValueError(f"storage={redacted(where)}: names no database; write postgresql://user@host/database")
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite":
        raise ValueError(f"storage={redacted(where)}: {url.drivername} is not supported; allowed: {ALLOWED}")
    return url


def _absolute(url: URL, where: str) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError(f"storage={redacted(where)}: names no file; write sqlite:///PATH")
    return url.set(database=str(Path(url.database).expanduser().absolute()))


def _refuse_no_file(path: Path) -> None:
    """Refuse a path where no file can be kept."""
    if not path.parent.is_dir():
        raise ValueError(f"storage: the folder {path.parent} does not exist; create it with mkdir -p {path.parent}")
    if path.exists() and not path.is_file():
        raise ValueError(f"storage={path}: expected a file, and it is a folder or a device")
    if not os.access(path if path.exists() else path.parent, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise ValueError(f"storage={path}: the file or its folder is read-only; give a place that can be written")


class _JournalFile(JournalFileBackend):
    """Optuna's journal file, which also survives a record that was written in part."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._remove_torn_end()
        super().append_logs(logs)

    def _remove_torn_end(self) -> None:
        """Remove a last record without its line end: a killed driver or a full disk left it, and nobody has read it.

        Optuna would append to it, and the joined line could never be read.
        """
        if _ends_a_line(self._file_path):
            return
        self._lock.acquire()
        try:
            if not _ends_a_line(self._file_path):
                os.truncate(self._file_path, Path(self._file_path).read_bytes().rfind(b"\n") + 1)
        finally:
            self._lock.release()


def _ends_a_line(path: str) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _journal(name: str) -> BaseStorage:
    """A journal file; its lock is a file made with O_EXCL, which NFS 3 and later, SMB and Lustre support."""
    if not name.strip() or "://" in name:
        raise ValueError(
            f"storage={_JOURNAL}{redacted(name)}: expected the path of a file, for instance journal:/shared/s.log"
        )
    path = Path(name).expanduser().absolute()
    _refuse_no_file(path)
    _refuse_other_content(path)
    backend = _JournalFile(str(path), JournalFileOpenLock(str(path), grace_period=_STALE_LOCK_SECONDS))
    try:
        return JournalStorage(backend)
    except (ValueError, KeyError, AssertionError, AttributeError, TypeError) as error:
        raise ValueError(
            f"storage={path}: this journal has a line that cannot be read ({type(error).__name__}); "
            "restore a copy of it, or give another file"
        ) from None


def _refuse_other_content(path: Path) -> None:
    """Refuse to append to a file that is no journal."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            begin = file.read(16)
        if not begin.startswith(b'{"op_code":'):
            raise ValueError(f"storage={path}: the file exists and is no journal of Optuna; give another file")


def _sqlite(url: URL, name: str) -> BaseStorage:
    path = Path(str(url.database))
    _refuse_no_file(path)
    with plain_errors(name):
        storage = _opened(url, {"connect_args": {"timeout": _LOCKED_SECONDS}})
    event.listen(storage.engine, "connect", _prepare)
    event.listen(storage.engine, "begin", _begin_exclusively)
    storage.engine.dispose()
    mounts = Path("/proc/self/mounts")
    if not mounts.exists() or not is_on_network(path.parent.resolve(), mounts.read_text(errors="replace")):
        with plain_errors(name):
            _set_journal_mode(storage, "WAL")
    return storage


def close_storage(storage: BaseStorage) -> None:
    """Close a storage's connections; it can be used again. An SQLite file is then complete without files beside it."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
        if storage.engine.dialect.name == "sqlite":
            with contextlib.suppress(SQLAlchemyError, sqlite3.Error):  # Another driver or a dashboard still reads it.
                _set_journal_mode(storage, "DELETE")
            storage.engine.dispose()


def _set_journal_mode(storage: RDBStorage, mode: Literal["WAL", "DELETE"]) -> None:
    """Choose how SQLite keeps a change that is not complete yet.

    With a write-ahead log a change takes 5 ms less than with the usual journal where the disk is slow to flush, and a
    trial is twenty changes. After a power failure the last of them may be missing, which interrupts their trials; a
    killed driver loses none. It needs memory that all drivers share, which a network's disk does not give.
    """
    connection = storage.engine.raw_connection()
    try:
        cursor = connection.cursor()
        if mode == "DELETE":
            cursor.execute("PRAGMA busy_timeout=0")  # Do not wait for other drivers, who go on with the other mode.
        cursor.execute(f"PRAGMA journal_mode={mode}")
    finally:
        connection.close()


def is_on_network(folder: Path, mounts: str) -> bool:
    """Whether a folder is on a disk of another machine, by the system's list of mounts."""
    fields = [line.split() for line in mounts.splitlines()]
    points = [(field[1].replace("\\040", " "), field[2]) for field in fields if len(field) > 2]
    holding = [(len(point), kind) for point, kind in points if folder.is_relative_to(point)]
    return bool(holding) and bool(_NETWORK.match(max(holding, key=lambda found: found[0])[1]))


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's driver would begin a transaction only at its first change.
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin_exclusively(connection: Any) -> None:
    """Take the lock at once: a change that depends on what was read before it is then safe between drivers."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _postgres(url: URL, name: str) -> BaseStorage:
    try:
        import_module("psycopg")
    except ImportError:
        raise ValueError(
            f"storage={name}: needs the package psycopg; install it with pip install 'clipautt[postgres]'"
        ) from None
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
    with plain_errors(name, url):
        return _opened(url, {"pool_pre_ping": True, "connect_args": arguments})


def _opened(url: URL, engine: dict[str, Any]) -> RDBStorage:
    """The storage with its tables, which two drivers may make at the same time."""
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it.
    for attempt in range(_ATTEMPTS):
        try:
            return RDBStorage(text, engine_kwargs=engine)
        except (SQLAlchemyError, OptunaError) as error:
            if attempt == _ATTEMPTS - 1 or not _RACE.search(_details(error)):
                raise
            time.sleep(0.05 * (attempt + 1))
    raise AssertionError("not reached")


@contextlib.contextmanager
def plain_errors(name: str, url: URL | None = None) -> Iterator[None]:
    """Turn errors of the database into one line without secrets.

    Args:
        name: the storage, as it may be shown.
        url: the storage with its password, which is removed from the database's own words.

    Raises:
        ValueError: The tables are of another version of Optuna, or the file is no database.
        ConnectionError: All others.
    """
    try:
        yield
    except (SQLAlchemyError, OptunaError, UnicodeError) as error:
        raise ConnectionError(f"storage {name}: {_advice(_details(error), url)}") from None
    except RuntimeError as error:
        if "upgrade" not in str(error) and "version" not in str(error):
            raise
        raise ValueError(
            f"storage {name}: its tables are of another version of Optuna; give another database or file"
        ) from None


def lost(error: BaseException) -> bool:
    """Whether an error says that the connection was lost, so that trying again may help."""
    return isinstance(error, StorageInternalError | SQLAlchemyError) and bool(_LOST.search(_details(error)))


def _details(error: BaseException) -> str:
    """The words of the database itself, of an error that SQLAlchemy or Optuna wrapped."""
    inner: BaseException | None = error
    while inner is not None:
        original = getattr(inner, "orig", None)
        if original is not None:
            return str(original)
        inner = inner.__cause__
    return str(error)


def _advice(text: str, url: URL | None) -> str:
    """What is wrong and what to do."""
    user = f"user {url.username!r}" if url is not None and url.username else "this user"
    database = "" if url is None else f" {url.database!r}"
    line = _without_secrets((text.strip().splitlines() or ["unknown error"])[0], url)
    for pattern, advice in _ADVICE.items():
        if re.search(pattern, text, re.I):
            return advice.format(user=user, database=database, text=line)
    return line


def _without_secrets(text: str, url: URL | None) -> str:
    password = str(url.password) if url is not None and url.password else ""
    for secret in {password, unquote(password)} - {""}:
        text = text.replace(secret, HIDDEN)
    return redacted(text)
