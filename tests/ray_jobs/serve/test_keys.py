"""API keys: made, renewed and revoked on the command line, and what a server makes of whatever is sent."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection

from ray_jobs.serve import key_command
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.web import keys as keys_module
from ray_jobs.serve.web.gate import Gate
from ray_jobs.serve.web.keys import (
    LOCAL,
    Keys,
    NoKeys,
    Who,
    add_key,
    is_loopback,
    needs_keys,
    open_keys,
    read_keys,
    renew_key,
    revoke_key,
    scope_refusal,
)

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
UNKNOWN = Refusal("key_unknown", "this API key is not known")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the keys of a server lie."""
    return tmp_path / "clinic" / "keys.json"


def bearer(key: str | bytes) -> list[tuple[bytes, bytes]]:
    """Headers with this key."""
    return [(b"host", b"x"), (b"authorization", b"Bearer " + (key if isinstance(key, bytes) else key.encode()))]


def test_a_key_is_shown_once_and_only_its_hash_is_stored_for_the_owner_alone(path: Path) -> None:
    key, secret = add_key(path, "Ward 7", scope="personalize", days=90)
    assert re.fullmatch(rf"clipautt_{key.id}_[0-9a-f]{{64}}", secret)
    stored = path.read_text()
    assert secret.rpartition("_")[2] not in stored
    assert json.loads(stored)["keys"][0]["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.expires is not None and key.expires - key.created == timedelta(days=90)
    assert read_keys(path) == [key]
    assert Keys(path).who(bearer(secret)) == Who(key.id, "personalize")


def test_keys_that_are_added_and_revoked_at_once_are_all_kept(path: Path) -> None:
    first = [add_key(path, f"early {number}", scope="predict")[0] for number in range(4)]
    work = """
import sys
from pathlib import Path
from ray_jobs.serve.web.keys import add_key, revoke_key
path, number = Path(sys.argv[1]), sys.argv[2]
revoke_key(path, f"early {number}")
for more in range(5):
    add_key(path, f"late {number} {more}", scope="predict")
"""
    command = [sys.executable, "-c", work, str(path)]
    running = [subprocess.Popen([*command, str(number)], env=ENVIRONMENT) for number in range(2)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: revoke_key(path, f"early {n}"), (2, 3)))
        list(threads.map(lambda n: add_key(path, f"thread {n}", scope="admin"), range(8)))
    assert [process.wait(60) for process in running] == [0, 0]
    keys = read_keys(path)
    assert [key.id for key in keys[:4]] == [key.id for key in first]
    assert {key.name for key in keys if key.state == "revoked"} == {f"early {number}" for number in range(4)}
    assert len([key for key in keys if key.state == "usable"]) == 18
    assert len({key.id for key in keys}) == 22


def test_whatever_is_sent_is_compared_and_refused_without_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = add_key(path, "anna", scope="predict")
    other, revoked = add_key(path, "ben", scope="predict")
    revoke_key(path, "ben")
    compared = []
    real = keys_module.hmac.compare_digest
    monkeypatch.setattr(
        keys_module.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b)
    )
    wrong: list[str | bytes] = [
        secret[:-1] + ("0" if secret[-1] != "0" else "1"),
        secret.replace(key.id, other.id),
        revoked,
        f"clipautt_ffffffff_{'0' * 64}",
        f"clipautt_{key.id}_",
        secret.upper(),
        secret + "\n" + secret,
        f"{secret}, {secret}",
        "clipautt_",
        key.id,
        hashlib.sha256(secret.encode()).hexdigest(),
        b"\xff\xfe\x00" * 30,
        "ключ".encode(),
        b"x" * 1_000_000,
        b"None",
        b"null",
    ]
    found = Keys(path)
    for sent in wrong:
        assert found.who(bearer(sent)) == UNKNOWN, sent[:80]
    assert compared == [(64, 64)] * len(wrong)
    assert found.who_has("\udcff" + secret) == UNKNOWN
    assert found.who_has(secret) == Who(key.id, "predict")


def test_how_a_key_may_be_sent(path: Path) -> None:
    key, secret = add_key(path, "anna", scope="predict")
    anna, raw = Who(key.id, "predict"), secret.encode()
    missing = Refusal("key_missing", "this server needs an API key")
    other = Refusal("key_missing", "Authorization has no API key; it is written `Authorization: Bearer KEY`")
    basic = (b"authorization", b"Basic YW5uYTpwYXNz")
    for headers, expected in [
        ([(b"authorization", b"bearer   " + raw + b" ")], anna),
        ([(b"x-api-key", b" " + raw)], anna),
        ([basic, (b"x-api-key", raw)], anna),  # a proxy asks for a password, too
        ([], missing),
        ([(b"cookie", b"key=" + raw)], missing),
        ([(b"authorization", b"Bearer ")], missing),
        ([(b"x-api-key", b"")], missing),
        ([basic], other),
        ([(b"authorization", raw)], other),
        ([(b"authorization", b"")], other),
        ([(b"authorization", b"Bearer " + raw)] * 2, Refusal("malformed", "2 API keys were sent; send one")),
        (
            [(b"authorization", b"Bearer x"), (b"x-api-key", raw)],
            Refusal("malformed", "2 API keys were sent; send one"),
        ),
    ]:
        assert Keys(path).who(headers) == expected, headers


def test_a_running_server_follows_the_file_and_refuses_everybody_while_it_is_damaged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, secret = add_key(path, "anna", scope="predict")
    found, anna = Keys(path), Who(key.id, "predict")
    assert found.who_has(secret) == anna
    renewed = renew_key(path, "anna")[1]
    assert (found.who_has(secret), found.who_has(renewed)) == (UNKNOWN, anna)
    revoke_key(path, key.id)
    assert found.who_has(renewed) == UNKNOWN
    again = renew_key(path, key.id)[1]
    assert found.who_has(again) == anna
    good = path.read_bytes()
    closed = Refusal("failed", "the server cannot read its API keys, so it refuses everybody")
    record = json.loads(good)["keys"][0]
    for damaged in [
        b"",
        good[:-20],
        b"\xff" + good,
        b"[]",
        b'{"version": 2, "keys": []}',
        json.dumps({"version": 1, "keys": [record, record]}).encode(),
        json.dumps({"version": 1, "keys": [record | {"scope": "root"}]}).encode(),
        json.dumps({"version": 1, "keys": [{**record, "sha256": None}]}).encode(),
        json.dumps({"version": 1, "keys": [record | {"sha256": ""}]}).encode(),
        json.dumps({"version": 1, "keys": [record | {"expires": "2030-01-01T00:00:00"}]}).encode(),
    ]:
        caplog.clear()
        path.write_bytes(damaged)
        assert [found.who_has(again), found.who_has(again), found.who_has("x")] == [closed] * 3, damaged
        assert len(caplog.messages) == 1 and str(path) in caplog.messages[0], damaged  # one line, not one per request
        assert caplog.messages[0].startswith("every request is refused, because the API keys cannot be read: ")
        path.write_bytes(good)
        assert found.who_has(again) == anna
    path.rename(path.with_name("away"))
    assert found.who_has(again) == closed
    path.mkdir()
    assert found.who_has(again) == closed
    path.rmdir()
    path.with_name("away").rename(path)
    assert found.who_has(again) == anna


def test_a_gate_counts_what_a_key_may_not_do_and_tells_when_it_is_gone(path: Path) -> None:
    key, secret = add_key(path, "anna", scope="predict")
    gate = Gate(Keys(path), requests_per_minute=2)
    request = HTTPConnection({"type": "http", "headers": bearer(secret), "client": ("10.0.0.5", 1)})
    codes = []
    for _ in range(3):
        with pytest.raises(RefusedError) as caught:
            gate.admit(request, "personalize")
        codes.append(caught.value.refusal.code)
    assert codes == ["key_scope", "key_scope", "rate_limited"]
    assert [gate.lapsed(request, None), gate.lapsed(request, secret), gate.gone(key.id)] == [None] * 3
    renew_key(path, "anna")
    assert [gate.lapsed(request, None), gate.lapsed(request, secret)] == [UNKNOWN] * 2
    assert gate.gone(key.id) is None  # the same owner, whose work goes on
    revoke_key(path, "anna")
    assert gate.gone(key.id) == Refusal("key_unknown", "the API key is revoked")
    assert gate.gone("00000000") == Refusal("key_unknown", "the API key is not there any more")
    path.write_text("")
    assert gate.gone(key.id) == Refusal("failed", "the server cannot read its API keys, so it refuses everybody")


def test_an_expired_key_is_told_so_but_only_to_who_has_it(path: Path) -> None:
    key, secret = add_key(path, "anna", scope="admin", days=1)
    stored = json.loads(path.read_text())
    stored["keys"][0]["expires"] = "2026-01-31T12:00:00Z"
    path.write_text(json.dumps(stored))
    assert Keys(path).who_has(secret) == Refusal("key_unknown", "this API key expired on 2026-01-31")
    assert Keys(path).who_has(f"clipautt_{key.id}_{'0' * 64}") == UNKNOWN
    with pytest.raises(ValueError, match=r"^the key of anna expires \(2026-01-31\); say for how long, as in days=90$"):
        renew_key(path, "anna")
    renewed, secret = renew_key(path, "anna", days=2)
    assert Keys(path).who_has(secret) == Who(key.id, "admin")
    assert renewed.expires is not None and renewed.expires > datetime.now(timezone.utc) + timedelta(days=1)


def test_each_scope_includes_those_before_it() -> None:
    allowed = {mine: [of for of in keys_module.SCOPES if Who("x", mine).allows(of)] for mine in keys_module.SCOPES}
    assert allowed == {
        "predict": ["predict"],
        "personalize": ["predict", "personalize"],
        "admin": ["predict", "personalize", "admin"],
    }
    assert scope_refusal(LOCAL, "admin") is None
    assert scope_refusal(Who("x", "predict"), "personalize") == Refusal(
        "key_scope", "this needs a key of scope personalize, and yours has scope predict"
    )


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "localhost.", "::1", "[::1]")],
        *[(host, True) for host in ("0:0:0:0:0:0:0:1", "::ffff:127.0.0.1")],
        *[(host, False) for host in ("0.0.0.0", "::", "[::]", "", "192.168.1.5", "::ffff:10.0.0.1", "fe80::1%eth0")],
        *[(host, False) for host in ("127.1", "127.0.0.1.evil.example", "localhost.evil.example", "my-host")],
    ],
)
def test_only_an_address_of_this_machine_alone_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    assert needs_keys(host, False) == (not loopback)
    assert needs_keys(host, True) and needs_keys(host, False, behind_proxy=True)


def test_a_server_that_others_reach_does_not_start_without_a_usable_key(path: Path) -> None:
    assert isinstance(open_keys(path, "::1"), NoKeys)
    assert open_keys(path, "localhost").who(bearer("anything")) == LOCAL
    command = "make one first: clipautt serve keys add NAME name=clinic"
    for options, reason in [
        ({"host": "0.0.0.0"}, "host=0.0.0.0 is not loopback"),
        ({"host": "::1", "require_keys": True}, "require_keys=true"),
        ({"host": "127.0.0.1", "behind_proxy": True}, "behind a proxy"),
    ]:
        with pytest.raises(ValueError) as error:
            open_keys(path, options="name=clinic", **options)  # type: ignore[arg-type]
        assert str(error.value) == f"{reason}: an API key is needed, and there is none; {command}"
    key, secret = add_key(path, "anna", scope="predict")
    assert open_keys(path, "0.0.0.0").who(bearer(secret)) == Who(key.id, "predict")
    revoke_key(path, "anna")
    with pytest.raises(
        ValueError, match=r"and none of the 1 in .*keys\.json is usable; make one first: clipautt serve"
    ):
        open_keys(path, "0.0.0.0")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"keys\.json is damaged \(.*\); repair it, or remove it and make new keys$"):
        open_keys(path, "0.0.0.0")


def run(capsys: pytest.CaptureFixture[str], folder: Path, *words: str, **options: object) -> tuple[str, str]:
    """What `clipautt serve keys WORDS` prints."""
    assert key_command.run(words, folder, **options) == 0  # type: ignore[arg-type]
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_commands_show_a_secret_once_and_never_in_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    none = f"no keys in {file}; `clipautt serve keys add NAME name=clinic` makes one\n"
    assert run(capsys, tmp_path, "list", options="name=clinic")[0] == none
    secret, told = run(capsys, tmp_path, "add", "Dr. Zoë O'Hara", scope="admin")
    secret = secret.removesuffix("\n")
    identity = secret.split("_")[1]
    assert told.startswith(f"new key for Dr. Zoë O'Hara: id {identity}, scope admin, without expiry\n")
    assert secret not in told and Keys(file).who_has(secret) == Who(identity, "admin")
    add_key(file, "ben", scope="predict", days=30)
    listed = run(capsys, tmp_path, "list")[0]
    assert [line.split()[-1] for line in listed.splitlines()[2:]] == ["usable", "usable"]
    assert "Dr. Zoë O'Hara" in listed and secret[-64:] not in listed and "never" in listed
    _, told = run(capsys, tmp_path, "renew", "ben", days=60)
    assert told.startswith("new secret for ben: id ") and "scope predict, until 20" in told
    (tmp_path / "subjects" / identity).mkdir(parents=True)
    assert run(capsys, tmp_path, "revoke", identity)[0] == (
        f"the key {identity} of Dr. Zoë O'Hara is revoked; a running server refuses it from now on\n"
        f"what it stored of its subjects stays in {tmp_path}/subjects/{identity}; remove that folder to erase it\n"
    )
    again, _ = run(capsys, tmp_path, "add", "Dr. Zoë O'Hara")
    assert again.split("_")[1] != identity  # subjects of a revoked key are not those of a new one
    states = [line.split()[-2:] for line in run(capsys, tmp_path, "list")[0].splitlines()[2:]]
    assert [state[-1] if state[0] != "revoked" else "revoked" for state in states] == ["revoked", "usable", "usable"]


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ((), {}, "keys: which action? `clipautt serve keys add NAME`, `list`, `renew NAME` or `revoke NAME`"),
        (("revok", "anna"), {}, "keys revok: unknown action; did you mean 'revoke'?"),
        (("x",), {}, "keys x: unknown action; allowed: add, list, renew, revoke"),
        (("add",), {}, "keys add: expected one name, as in `clipautt serve keys add NAME`"),
        (
            ("add", "ward", "7"),
            {},
            "keys add: expected one name, as in `clipautt serve keys add NAME`; put 'ward 7' into quotes if it is one",
        ),
        (("list", "anna"), {}, "keys list anna: no further word is allowed; `clipautt serve keys list` lists all"),
        (("revoke", "ben"), {}, "no key 'ben' in {file}; there are: anna ({id})"),
        (("renew", "ben"), {}, "no key 'ben' in {file}; there are: anna ({id})"),
        (("add", "anna"), {}, "'anna' has a key already ({id}, usable); revoke or renew it, or choose another name"),
        (("add", "{id}"), {}, "'{id}' has a key already ({id}, usable); revoke or renew it, or choose another name"),
        (("add", "ben"), {"scope": "root"}, "scope=root: allowed: predict, personalize, admin"),
        (("add", "ben"), {"days": 0}, "days=0: allowed: 1 to 36500"),
        (("list",), {"days": 5}, "days=5: only for `clipautt serve keys add` and `renew`"),
        (
            ("renew", "anna"),
            {"scope": "admin"},
            "scope=admin: only for `clipautt serve keys add`; a key keeps its scope",
        ),
        *[
            (
                ("add", name),
                {},
                f"{name!r} is no name for a key; allowed: up to 64 letters, digits, spaces and . _ @ + - ', the first "
                "a letter or digit",
            )
            for name in ("", " ", "../ben", "ben\n", "ben\x1b[2J", "-ben", "x" * 65, "<b>", "ben ")
        ],
    ],
)
def test_a_wrong_word_is_told_and_changes_nothing(
    tmp_path: Path, words: tuple[str, ...], options: dict[str, object], message: str
) -> None:
    file = tmp_path / "keys.json"
    anna, _ = add_key(file, "anna", scope="predict")
    before = file.read_bytes()
    with pytest.raises(ValueError) as error:
        key_command.run([word.replace("{id}", anna.id) for word in words], tmp_path, **options)  # type: ignore[arg-type]
    assert str(error.value) == message.replace("{id}", anna.id).replace("{file}", str(file))
    assert file.read_bytes() == before


def test_what_was_revoked_is_void_for_good_under_its_name(path: Path) -> None:
    key, _ = add_key(path, "anna", scope="predict")
    revoke_key(path, "anna")
    assert read_keys(path)[0].sha256 is None
    with pytest.raises(ValueError, match=rf"^'{key.id}' was revoked before, on \d{{4}}-\d\d-\d\d$"):
        revoke_key(path, key.id)
    with pytest.raises(ValueError, match=r"^no key 'anna' in .*; there are: none$"):
        revoke_key(path, "anna")
    with pytest.raises(ValueError, match=f"^'{key.id}' has a key already"):
        add_key(path, key.id, scope="predict")


def test_nothing_of_a_key_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    _, secret = add_key(path, "anna", scope="predict")
    found = Keys(path)
    found.who(bearer(secret)), found.who(bearer(secret[:-1] + "g"))
    assert secret[-64:-1] not in caplog.text
