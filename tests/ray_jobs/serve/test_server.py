"""The listener, attacked over sockets: slow, silent, greedy and vanishing clients cost nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from ray_jobs.serve.web.asgi import Message, Receive, Send
from ray_jobs.serve.web.connections import ConnectionConfig, client_of
from ray_jobs.serve.web.door import Door, allowed_hosts
from ray_jobs.serve.web.server import Listener, tls_context
from tests.support.listening import Client, client, listening, wait_until

HOST = "Host: 127.0.0.1\r\n"
SHORT: dict[str, Any] = {"header_seconds": 0.3, "idle_seconds": 0.3, "answer_seconds": 0.6, "linger_seconds": 0.4}
ECHOING: list[Receive] = []
"""One for each WebSocket's handler that has not ended."""


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """Answers with who asks and the size of the body, `/large` with many bytes; a WebSocket gets its own words back."""
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    if scope["type"] != "http":
        return
    size = 0
    while scope["method"] == "POST" and scope["path"] != "/unread":
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    content = json.dumps({"client": scope["client"][0], "scheme": scope["scheme"], "size": size}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    if scope["path"] == "/large":
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
    await send({"type": "http.response.body", "body": content})


async def echo(receive: Receive, send: Send) -> None:
    ECHOING.append(receive)
    try:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("text") == "bug":
                raise RuntimeError("bug")
            for _ in range(50 if message.get("text") == "flood" else 1):
                text = "x" * 500_000 if message.get("text") == "flood" else message.get("text") or "bytes"
                await send({"type": "websocket.send", "text": text})
    finally:
        ECHOING.remove(receive)


def door() -> Door:
    return Door(application, hosts=allowed_hosts("127.0.0.1"), max_body_bytes=1_000_000)


@pytest.fixture(scope="module")
def short() -> Iterator[Listener]:
    with listening(door(), **SHORT, websocket_seconds=0.3, max_header_bytes=4096) as listener:
        yield listener


def is_answered(listener: Listener) -> bool:
    with client(listener) as other:
        status, _, body = other.send(f"GET / HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n").answer()
    return status == 200 and b'"size": 0' in body


NO_REQUESTS = [
    ("", 0, ""),
    ("GET / HTTP/1.1\r\nHost", 408, "too_slow"),
    ("\r\n\r\n", 0, ""),
    (f"GET / HTTP/1.1\r\n{HOST}X: {'a' * 5000}", 400, "malformed"),
    (f"GET / HTTP/1.1\r\n{HOST}" + "X: a\r\n" * 1000, 400, "malformed"),
    (f"GET /{'a' * 5000} HTTP/1.1\r\n{HOST}\r\n", 400, "malformed"),
    ("nonsense\r\n\r\n", 400, "malformed"),
    ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed"),
    ("CONNECT evil.example:443 HTTP/1.1\r\n\r\n", 400, "malformed"),
    ("GET http://evil.example HTTP/1.1\r\n\r\n", 400, "malformed"),
    ("GET / HTTP/1.1\r\n\r\n", 400, "unknown_host"),
    (f"GET / HTTP/1.1\r\n{HOST}{HOST}\r\n", 400, "unknown_host"),
    (f"POST / HTTP/1.1\r\n{HOST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed"),
    (f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1000001\r\n\r\nabc", 413, "too_large"),
]
"""What is sent, then status and code of the answer; 0: none."""


def test_what_is_no_request_is_refused_and_cut(short: Listener) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(short)).send(sent.encode("latin-1")) for sent, _, _ in NO_REQUESTS]
        answers = [(sent, *one.problem()[:2]) for one, (sent, _, _) in zip(clients, NO_REQUESTS, strict=True)]
    assert answers == NO_REQUESTS


def test_a_header_that_drips_is_cut_while_others_are_answered(short: Listener) -> None:
    def drip(one: Client) -> None:
        for byte in b"GET / HTTP/1.1\r\n":
            one.send(bytes([byte]))
            threading.Event().wait(0.03)

    with client(short) as one:
        dripping = threading.Thread(target=drip, args=(one,))
        dripping.start()
        answered: list[bool] = []
        other = threading.Thread(target=lambda: answered.append(is_answered(short)))
        other.start()
        assert one.problem() == (408, "too_slow", "the request's headers did not arrive in time")
        other.join()
        dripping.join()
        assert answered == [True]


def test_headers_are_bounded_in_however_many_pieces_they_come(short: Listener) -> None:
    with client(short) as one:
        one.send(f"GET / HTTP/1.1\r\n{HOST}\r\nGET / HTTP/1.1\r\n{HOST}")
        answered = b""
        while not answered.endswith(b"0\r\n\r\n"):  # a refusal before that could not be told from this answer
            answered += one.socket.recv(65536)
        for _ in range(50):
            one.send("X: " + "a" * 97)
            threading.Event().wait(0.002)
        received = one.rest()
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"the request's headers are too large; at most 4 KiB are allowed" in received


def test_a_client_that_asks_before_it_sends_is_told_first(short: Listener) -> None:
    ask = f"POST / HTTP/1.1\r\n{HOST}Expect: 100-continue\r\nConnection: close\r\n"
    with client(short) as one:
        assert one.send(f"{ask}Content-Length: 2000000\r\n\r\n").problem()[:2] == (413, "too_large")
    with client(short) as one:
        one.send(f"{ask}Content-Length: 4\r\n\r\n")
        assert one.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert one.send("body").answer()[0] == 200
    with client(short) as one:
        one.send(f"GET / HTTP/1.1\r\n{HOST}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n")
        assert one.answer()[0] == 200


def test_refusals_carry_the_headers_of_every_answer(short: Listener) -> None:
    with client(short) as one:
        _, headers, _ = one.send("nonsense\r\n\r\n").answer()
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert (headers["connection"], "server" in headers) == ("close", False)


def test_whoever_goes_on_sending_after_the_answer_is_cut(short: Listener) -> None:
    """After a refusal, after an answer that leaves the body unread, and where no door stands before the application."""
    with listening(application, **SHORT) as bare, contextlib.ExitStack() as stack:
        sent: dict[socket.socket, int] = {}
        for listener, path, length in ((short, "/", 10**9), (short, "/unread", 900_000), (bare, "/unread", 900_000)):
            one = stack.enter_context(client(listener))
            one.send(f"POST {path} HTTP/1.1\r\n{HOST}Content-Length: {length}\r\n\r\n")
            sent[one.socket] = 0
        sending = set(sent)
        while sending:  # at most `linger_seconds`
            for connection in list(sending):
                try:
                    sent[connection] += connection.send(bytes(100))
                except ConnectionError:
                    sending.remove(connection)
            threading.Event().wait(0.01)
        assert max(sent.values()) < 100_000


def test_a_chunked_body_is_counted_and_its_framing_is_bounded(short: Listener) -> None:
    post = f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"186a0\r\n" + bytes(100_000) + b"\r\n"
    with client(short) as one:
        assert one.send(post, *[chunk] * 11).problem() == (
            413,
            "too_large",
            "the request is too large; at most 1 MB are allowed",
        )
    with client(short) as one:
        status, _, body = one.send(post, *[chunk] * 9, "0\r\n\r\n", "GET / HTTP/1.0\r\n", HOST, "\r\n").answer()
        assert status == 200 and b'"size": 900000' in body
    for endless in ("1;" + "x" * 300_000, "0\r\nX: " + "x" * 300_000, "1\r\na\r\n" * 50_000):
        with client(short) as one:
            assert one.send(post, endless).answer()[0] == 0


def test_requests_in_one_go_are_answered_in_order_and_an_idle_connection_ends(short: Listener) -> None:
    with client(short) as one:
        posts = "".join(f"POST / HTTP/1.1\r\n{HOST}Content-Length: {n}\r\n\r\n{'a' * n}" for n in range(5))
        answers = one.send(posts).rest()
        assert [answers.count(b'"size": %d' % n) for n in range(5)] == [1] * 5
        assert answers.index(b'"size": 3') < answers.index(b'"size": 4')
    with client(short) as one:
        one.send(f"GET / HTTP/1.1\r\n{HOST}\r\n", "\r\n" * 3)
        assert one.rest().count(b"HTTP/1.1 200") == 1
    with client(short) as one:
        many = f"GET / HTTP/1.1\r\n{HOST}\r\n" * 500
        assert one.send(many).rest().count(b"HTTP/1.1 200") == 500


def test_a_client_that_does_not_read_its_answer_is_cut(short: Listener) -> None:
    with client(short) as one:
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.send(f"GET /large HTTP/1.1\r\n{HOST}\r\n").socket.recv(1)
        wait_until(lambda: not open_lines(short))
        assert len(one.rest()) < 40_000_000
    with client(short) as one:  # reads slowly, but reads
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        one.send(f"GET /large HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n")
        slowly = 0
        for _ in range(8):
            slowly += len(one.socket.recv(200_000))
            threading.Event().wait(0.1)
        assert slowly + len(one.rest()) > 40_000_000


def open_lines(listener: Listener) -> int:
    return len(listener._server._lines.protocols)


def test_half_open_and_vanished_clients_leave_nothing(short: Listener, caplog: pytest.LogCaptureFixture) -> None:
    for sent in ("", "GET", f"POST / HTTP/1.1\r\n{HOST}Content-Length: 9\r\n\r\na"):
        with client(short) as one:
            one.send(sent)
            one.socket.shutdown(socket.SHUT_WR)
            assert one.answer()[0] == 0
        with client(short) as one:
            one.send(sent)
            one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # closes by a reset
    for _ in range(20):
        with client(short) as one:  # is refused, and gone when the answer is sent
            one.send(f"POST / HTTP/1.1\r\n{HOST}Content-Length: 9999999\r\n\r\na")
            one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_until(lambda: not open_lines(short) and not short._server._lines._clients.total())
    assert caplog.text == ""


def test_no_more_connections_than_allowed_and_no_client_takes_all() -> None:
    refused: list[str] = []
    limits = {"max_connections": 6, "max_connections_per_client": 4, "header_seconds": 0.4}
    with listening(door(), on_refusal=lambda refusal: refused.append(refusal.code), **limits) as listener:
        silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(4)]
        wait_until(lambda: open_lines(listener) == 4)
        with client(listener) as one:
            assert one.rest() == b""
        assert refused == ["busy"]
        source = ("127.0.0.2", 0)
        with socket.create_connection(("127.0.0.1", listener.port), source_address=source) as other:
            answer = Client(other).send(f"GET / HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n").answer()
        assert answer[0] == 200
        wait_until(lambda: is_answered(listener))  # once the silent ones are cut
        for one_socket in silent:
            one_socket.close()


def test_websockets_have_deadlines_and_limits(short: Listener) -> None:
    url = f"ws://127.0.0.1:{short.port}/"
    with connect(url) as one:
        one.send("hello")
        assert one.recv() == "hello"
        one.send(bytes(1024 * 1024))
        assert one.recv() == "bytes"
        one.send(bytes(1024 * 1024 + 1))
        with pytest.raises(ConnectionClosedError, match="1009"):
            one.recv()
    with connect(url) as one, pytest.raises(ConnectionClosedError, match="1011"):
        one.send("bug")
        one.recv()
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    empty_fragments = b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 2000
    upgrade = f"GET / HTTP/1.1\r\n{HOST}Upgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n"
    with client(short) as one:
        assert one.send(upgrade).socket.recv(12) == b"HTTP/1.1 101"
        assert b"\x03\xf1too many fragments" in one.send(empty_fragments).rest()
    with contextlib.ExitStack() as stack:
        for does in (b"", b"\x81\x85\0\0\0\0flood", b"\x89\x80\0\0\0\0" * 3):  # no pong; reads nothing; pings
            silent = stack.enter_context(client(short))
            silent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.send(upgrade)
            assert silent.socket.recv(12) == b"HTTP/1.1 101"
            silent.send(does)
        wait_until(lambda: not ECHOING and not open_lines(short))


def test_a_socket_of_another_site_is_refused(short: Listener) -> None:
    with pytest.raises(Exception, match="HTTP 403"):
        connect(f"ws://127.0.0.1:{short.port}/", origin="https://evil.example")  # type: ignore[arg-type]


def test_only_trusted_proxies_are_believed() -> None:
    forwarded = "X-Forwarded-For: 8.8.8.8, 9.9.9.9\r\nX-Forwarded-Proto: https\r\n"
    ask = f"GET / HTTP/1.1\r\n{HOST}{forwarded}Connection: close\r\n\r\n"
    for proxies, seen in (((), ("127.0.0.1", "http")), (("127.0.0.0/24",), ("9.9.9.9", "https"))):
        with listening(door(), trusted_proxies=proxies) as listener, client(listener) as one:
            body = json.loads(one.send(ask).answer()[2].split(b"\r\n")[1])
            assert (body["client"], body["scheme"]) == seen
    with pytest.raises(ValueError, match=r"trusted_proxies='\*': should be an address or a network, such as"):
        ConnectionConfig(trusted_proxies=("*",))


def certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*make, "-keyout", key, "-out", cert, *names], check=True, capture_output=True)
    return cert, key


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(cert))
    with listening(door(), **SHORT, tls_certificate=cert, tls_key=key) as listener:
        assert listener.url == f"https://127.0.0.1:{listener.port}"
        with client(listener) as silent:  # never begins its handshake
            with client(listener, trusting) as one:
                status, headers, body = one.send(f"GET / HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n").answer()
            assert (status, b'"scheme": "https"' in body) == (200, True)
            assert headers["strict-transport-security"] == "max-age=31536000"
            assert silent.rest() == b""
        with client(listener) as one:  # forgets that it is TLS
            assert one.send(f"GET / HTTP/1.1\r\n{HOST}\r\n").answer()[0] == 0
        with client(listener, trusting) as one:
            assert one.send("GET / HTTP/1.1\r\nHost").problem()[:2] == (408, "too_slow")
        old = ssl.create_default_context(cafile=str(cert))
        old.set_ciphers("DEFAULT@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError), client(listener, old):
            pass
        wait_until(lambda: not open_lines(listener))
        for path, renewed in zip((cert, key), certificate(tmp_path, "renewed.example"), strict=True):
            path.write_bytes(renewed.read_bytes())
        listener._server._renew()
        found = ssl.get_server_certificate(("127.0.0.1", listener.port), timeout=20)
        assert found.split() == cert.read_text().split()
        key.write_text("half written")
        listener._server._renew()
        assert ssl.get_server_certificate(("127.0.0.1", listener.port), timeout=20).split() == found.split()


def test_certificates_that_cannot_be_used_are_refused_before_anything_starts(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    _, other = certificate(tmp_path, "other")
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-out", locked, "-aes256", "-passout", "pass:x"], check=True, capture_output=True
    )
    for pair, message in [
        ((cert, None), "tls_key=null: TLS needs both tls_certificate and tls_key"),
        ((None, key), "tls_certificate=null: TLS needs both"),
        ((tmp_path / "missing", key), "missing: cannot be read (No such file or directory)"),
        ((cert, other), "the key does not belong to the certificate"),
        ((broken, key), "should be PEM files with a certificate and its key"),
        ((cert, broken), "should be PEM files with a certificate and its key"),
        ((cert, locked), "the key has a password; `openssl pkey -in KEY -out NEW_KEY` writes one without"),
    ]:
        with pytest.raises(ValueError) as raised:
            tls_context(*pair)
        assert message in str(raised.value)


def test_a_port_in_use_is_refused_and_a_stopped_one_is_free_again() -> None:
    with listening(door()) as listener:
        assert listener.alive
        with pytest.raises(
            ConnectionError, match=f"port {listener.port} of 127.0.0.1 is in use; choose another with port="
        ):
            Listener(door(), host="127.0.0.1", port=listener.port).start()
        with client(listener) as one:
            one.send(f"GET / HTTP/1.1\r\n{HOST}\r\n")
            one.socket.recv(1)
            listener.stop()
    assert not listener.alive
    again = Listener(door(), host="127.0.0.1", port=listener.port)
    again.start()
    again.stop()
    with pytest.raises(ConnectionError, match=r"host=192\.0\.2\.1 is no address of this machine"):
        Listener(door(), host="192.0.2.1", port=0).start()
    with pytest.raises(ConnectionError, match=r"host=no\.such\.invalid: no address is known for it"):
        Listener(door(), host="no.such.invalid", port=0).start()


def test_an_answer_on_its_way_is_finished_when_the_server_stops() -> None:
    asked = threading.Event()

    async def slow(scope: Message, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.sleep(0.3)
        await application(scope, receive, send)

    with listening(slow) as listener, client(listener) as one:
        one.send(f"GET / HTTP/1.1\r\n{HOST}\r\n")
        asked.wait()
        listener.stop()
        assert one.answer()[0] == 200


def test_addresses_of_one_network_are_one_client() -> None:
    assert client_of("192.0.2.7") == client_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert client_of("fe80::1%eth0") == "fe80::/64"
