"""Storages by URL: real files and a real server; what is wrong is said in one line that holds no password."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest

from ray_jobs.sweep.studies.storage import close_storage, is_on_network, open_storage, shown
from ray_jobs.sweep.studies.study import SweepStudy
from tests.support.postgres import PostgresServer
from tests.support.sweep_driver import opened, run


def named(where: str | None, folder: Path) -> list[str]:
    """Names of the studies in a storage, after adding one."""
    storage = open_storage(where, folder)
    optuna.create_study(storage=storage, study_name="demo", load_if_exists=True)
    names = [study.study_name for study in optuna.get_all_study_summaries(storage)]
    close_storage(storage)
    return names


def refusal(where: str, folder: Path) -> str:
    with pytest.raises((ValueError, ConnectionError)) as error:
        open_storage(where, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_made_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "50% {a} ä b?c#d"
    folder.mkdir()
    for where, file in (
        (None, "study.db"),
        (str(folder / "s.log"), "s.log"),
        (f"journal:{folder}/any name", "any name"),
    ):
        assert named(where, folder) == ["demo"]
        assert (folder / file).stat().st_size > 0
    assert named(f"sqlite:///{tmp_path}/other.db", folder) == ["demo"]
    assert (tmp_path / "other.db").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "other.db"}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("mysql://root:pw@h/db", "storage=mysql://root:***@h/db: mysql is not supported; allowed: a path that ends in"),
        ("postgresql+psycopg2://u:pw@h/db", "storage=postgresql+psycopg2://u:***@h/db: postgresql+psycopg2 is not"),
        ("postgresql://u:pw@h", "storage=postgresql://u:***@h: names no database; write postgresql://user@host/database"),
        ("postgresql://u:pw@h:port/db", "storage='postgresql://u:***@h:port/db': allowed: a path that ends in"),
        ("redis://h", "storage=redis://h: redis is not supported; allowed: a path that ends in .log or .journal"),
        ("s3://bucket/s.log", "storage=s3://bucket/s.log: s3 is not supported"),
        ("study.txt", "storage='study.txt': allowed: a path that ends in .log or .journal, journal:PATH, sqlite:///PATH"),
        ("", "storage='': allowed: a path"),
        ("sqlite://", "storage=sqlite://: names no file; write sqlite:///PATH"),
        ("sqlite:///:memory:", "storage=sqlite:///:memory:: names no file; write sqlite:///PATH"),
        ("journal:", "storage=journal:: expected the path of a file, for instance journal:/shared/s.log"),
        ("journal:s3://b/s.log", "storage=journal:s3://b/s.log: expected the path of a file"),
        ("journal:{tmp}/none/s.log", "the folder {tmp}/none does not exist; create it with mkdir -p {tmp}/none"),
        ("sqlite:///{tmp}/none/s.db", "storage: the folder {tmp}/none does not exist"),
        ("journal:{tmp}", "storage={tmp}: expected a file, and it is a folder or a device"),
        ("{tmp}/text.log", "storage={tmp}/text.log: the file exists and is no journal of Optuna; give another file"),
        ("sqlite:///{tmp}/text.log", "the file is no SQLite database, or is damaged; give another file"),
    ],
)  # fmt: skip
def test_another_storage_is_refused(where: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "text.log").write_text("trial 3 failed\n" * 100)
    message = refusal(where.replace("{tmp}", str(tmp_path)), tmp_path)
    assert said.replace("{tmp}", str(tmp_path)) in message
    assert "pw" not in message
    assert (tmp_path / "text.log").read_text() == "trial 3 failed\n" * 100


def test_a_journal_that_was_cut_off_goes_on_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    where = str(tmp_path / "s.journal")
    with opened(where, tmp_path) as study:
        run(study, 3)
    whole = Path(where).read_bytes()
    Path(where).write_bytes(whole + b'{"op_code":5,"work')
    with opened(where, tmp_path) as study:
        run(study, 5)
        assert study.counts().ok == 5
    assert not (tmp_path / "s.journal.lock").exists()

    Path(where).write_bytes(whole[:200] + b"\x00\x00{\n" + whole[200:])
    message = refusal(where, tmp_path)
    assert f"storage={where}: this journal has a line that cannot be read" in message


def test_nobody_changes_what_another_connection_to_sqlite_has_read(tmp_path: Path) -> None:
    with opened(None, tmp_path) as study, _engine(study).connect() as reading:
        reading.exec_driver_sql("SELECT state FROM trials").all()
        other = sqlite3.connect(tmp_path / "study.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("UPDATE trials SET state='FAIL'")
        reading.rollback()
        other.execute("UPDATE trials SET state='FAIL'")
        other.close()


def test_a_disk_of_another_machine_is_known_by_its_mount() -> None:
    mounts = (
        "/dev/sda / ext4 rw 0 0\nhead:/x /shared nfs4 rw 0 0\ntmpfs /shared/fast tmpfs rw 0 0\nh:/y /a\\040b cifs rw\n"
    )
    found = {name: is_on_network(Path(name), mounts) for name in ("/shared/runs", "/shared/fast/x", "/runs", "/a b/c")}
    assert found == {"/shared/runs": True, "/shared/fast/x": False, "/runs": False, "/a b/c": True}
    assert not is_on_network(Path("/runs"), "")


def _engine(study: SweepStudy) -> Any:
    return study.study._storage._backend.engine  # type: ignore[attr-defined]


def test_passwords_are_not_shown() -> None:
    assert shown(None) is None
    assert shown("postgresql://u:pw@h/db?sslpassword=x") == "postgresql://u:***@h/db?sslpassword=***"
    assert shown("/shared/s.log") == "/shared/s.log"


def test_a_missing_driver_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    message = refusal("postgresql://u:pw@127.0.0.1:1/db", tmp_path)
    assert message == (
        "storage=postgresql://u:***@127.0.0.1:1/db: needs the package psycopg; "
        "install it with pip install 'clipautt[postgres]'"
    )


def test_what_a_server_refuses_is_one_line_without_the_password(server: PostgresServer, tmp_path: Path) -> None:
    server.sql("CREATE ROLE guest LOGIN PASSWORD 'Guest-7'", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    port = f"127.0.0.1:{server.port}"
    said = {
        server.url(password="wrong-Secret"): f"storage postgresql://owner:***@{port}/sweeps: the server refuses the "
        "password of user 'owner'; set it in the URL, in PGPASSWORD, or in ~/.pgpass",
        server.url(password=None): f"storage postgresql://owner@{port}/sweeps: the server refuses the password of user "
        "'owner'; set it in the URL, in PGPASSWORD, or in ~/.pgpass",
        server.url(database="absent"): f"storage postgresql://owner:***@{port}/absent: the server has no database "
        "'absent'; create it with createdb",
        server.url(user="guest", password="Guest-7"): f"storage postgresql://guest:***@{port}/sweeps: user 'guest' has "
        "no rights there; ask for those to connect to the database 'sweeps' and to create tables in it",
        "postgresql://owner:Secret-7@127.0.0.1:1/sweeps": "storage postgresql://owner:***@127.0.0.1:1/sweeps: no "
        "server answers there, or the connection was lost; check that it runs, and its host and port",
        "postgresql://owner:Secret-7@no-such.invalid/sweeps": "storage postgresql://owner:***@no-such.invalid/sweeps: "
        "its host is unknown; check its name",
        f"{server.url()}?sslmode=wrong": f"storage postgresql://owner:***@{port}/sweeps?sslmode=wrong: "
        'connection is bad: invalid sslmode value: "wrong"',
    }  # fmt: skip
    assert {where: refusal(where, tmp_path) for where in said} == said


def test_a_server_keeps_the_study_and_may_be_restarted_meanwhile(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sql("CREATE DATABASE kept", "ALTER ROLE owner PASSWORD 'S{e}7@/%:'")
    monkeypatch.setenv("PGPASSWORD", "S{e}7@/%:")
    try:
        where = server.url(password="S{e}7%40%2F%25%3A", database="kept")
        with opened(where, tmp_path) as study:
            assert "S{e}7" not in study.where and "***" in study.where
            run(study, 3, stop_after=2)
            server.stop()
            server.start()
            run(study, 3)
        with opened(server.url(password=None, database="kept"), tmp_path) as study:
            assert [trial.status for trial in study.trials()] == ["ok"] * 3
    finally:
        import psycopg

        with psycopg.connect(server.url(password=None, database="postgres"), autocommit=True) as connection:
            connection.execute("ALTER ROLE owner PASSWORD 'Secret-7'")
