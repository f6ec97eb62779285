"""Limits: what is too much, too slow or too strange is refused, and the next request is served."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import signal
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from conftest import INI, Serve, Server
from nginx import make_certificate
from signing_client import SIGNED_CHUNKS, UNSIGNED, UNSIGNED_TRAILER, Client, Reply

import s3mini

GIB = 1024**3
PATIENCE = 20.0  # seconds


class Raw:
    """A connection that sends bytes as they are and reads one answer after the other."""

    def __init__(self, server: Server):
        self.sock = socket.create_connection((server.host, server.port), timeout=PATIENCE)
        self.buffer = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def reply(self, method: str = "GET") -> Optional[Reply]:
        """The next answer, None at the end of the connection."""
        while b"\r\n\r\n" not in self.buffer:
            if not self._more():
                assert self.buffer == b"", self.buffer
                return None
        assert self.buffer.startswith(b"HTTP/1.1 "), self.buffer[:100]
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        status = int(first.split()[1])
        without = method == "HEAD" or status in (100, 204, 304)
        size = 0 if without else int(headers["content-length"])
        while len(self.buffer) < size and self._more():
            pass
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return Reply(status, headers, body)

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self._more():
            pass
        return self.buffer


def request(
    client: Client,
    method: str,
    key: str,
    body: bytes = b"",
    headers: Optional[dict[str, str]] = None,
    version: str = "1.1",
    signed: bool = True,
) -> bytes:
    """The bytes of a request; the body's length is only told where it is not empty."""
    path = f"/{client.bucket}/{key}"
    sending = {"host": client.address}
    if signed:
        sending = client.sign(method, path, [], {}, UNSIGNED)
    if body:
        sending["content-length"] = str(len(body))
    sending.update(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in sending.items())
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode() + body


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    with Raw(server) as connection:
        yield connection


def must(reply: Optional[Reply]) -> Reply:
    assert reply is not None, "the connection ended"
    return reply


def until(what: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- answers without a body ------------------------------------------------------------------------


def test_no_body_follows_what_has_none(raw: Raw, s3: Client) -> None:
    """Else it would be taken for the beginning of the next answer."""
    etag = s3.put("k", b"x").etag
    s3.put("large", b"x" * 100_000)
    unchanged = {"if-none-match": f'"{etag}"'}
    for method, key, headers, status in (
        ("HEAD", "k", {}, 200), ("HEAD", "large", {"if-match": "*"}, 200),
        ("HEAD", "missing", {}, 404),
        ("GET", "k", unchanged, 304), ("HEAD", "k", unchanged, 304), ("DELETE", "no", {}, 204),
    ):  # fmt: skip
        raw.send(request(s3, method, key, headers=headers))
        assert status == must(raw.reply("HEAD")).status
        raw.send(request(s3, "GET", "k"))
        assert b"x" == must(raw.reply()).body


# -- lengths ---------------------------------------------------------------------------------------


def test_a_put_without_a_length_is_411(raw: Raw, s3: Client) -> None:
    raw.send(request(s3, "PUT", "k"))
    reply = must(raw.reply())

    assert (411, "MissingContentLength") == (reply.status, reply.error)
    assert 404 == s3.head("k").status


@pytest.mark.parametrize("query", ["", "?partNumber=1&uploadId="])
def test_over_5_gib_is_refused_before_a_byte_is_read(raw: Raw, s3: Client, query: str) -> None:
    if query:
        query += s3.post("k", b"", query="uploads").element("UploadId")
    path = f"/{s3.bucket}/k"
    pairs = [(n, v) for n, _, v in (p.partition("=") for p in query[1:].split("&") if p)]
    signed = s3.sign("PUT", path, pairs, {}, UNSIGNED)
    signed |= {"content-length": str(5 * GIB + 1), "expect": "100-continue"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    raw.send(f"PUT {path}{query} HTTP/1.1\r\n{lines}\r\n".encode())
    reply = must(raw.reply())

    assert (400, "EntityTooLarge") == (reply.status, reply.error)


def test_the_decoded_length_counts_for_a_body_in_chunks(s3: Client) -> None:
    headers = {"x-amz-decoded-content-length": str(5 * GIB + 1)}
    reply = s3.put("k", b"x", headers, payload=SIGNED_CHUNKS)

    assert (400, "EntityTooLarge") == (reply.status, reply.error)


def test_a_short_body_is_not_stored(server: Server, s3: Client) -> None:
    with Raw(server) as raw:
        raw.send(request(s3, "PUT", "k", b"12345", {"content-length": "10"}))
        raw.sock.shutdown(socket.SHUT_WR)
        reply = must(raw.reply())

    assert (400, "IncompleteBody") == (reply.status, reply.error)
    assert 404 == s3.head("k").status
    assert [] == os.listdir(server.data / s3.bucket / ".s3mini/tmp")


def test_a_client_that_is_gone_leaves_nothing(server: Server, s3: Client) -> None:
    s3.put("k", b"old")
    with Raw(server) as raw:
        raw.send(request(s3, "PUT", "k", b"x" * 300_000, {"content-length": "1000000"}))
    until(lambda: not os.listdir(server.data / s3.bucket / ".s3mini/tmp"))

    assert b"old" == s3.get("k").body


@pytest.mark.parametrize(
    "length", ["-1", "+5", "0x5", "1_0", "5 5", "", "9" * 30, "5, 6", "\u0665"]
)
def test_a_length_is_a_number(raw: Raw, s3: Client, length: str) -> None:
    raw.send(request(s3, "PUT", "k", b"12345", {"content-length": length}))

    assert 400 == must(raw.reply()).status
    assert b"" == raw.rest()
    assert 404 == s3.head("k").status


def test_a_body_of_unknown_length_is_stored(s3: Client) -> None:
    pieces = [b"a" * 100_000, b"b", b"c" * 9000]

    assert 200 == s3.put("k", iter(pieces)).status
    assert b"".join(pieces) == s3.get("k").body


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\n123456\r\n0\r\n\r\n",
        b"x\r\n12345\r\n0\r\n\r\n",
        b"-5\r\n12345\r\n0\r\n\r\n",
        b"0x5\r\n12345\r\n0\r\n\r\n",
        b"5\n12345\n0\n\n",
        b"\r\n",
        b"f" * 17 + b"\r\n",
        b"5;" + b"x" * 100_000,
    ],
)
def test_bad_chunks_are_refused(raw: Raw, s3: Client, body: bytes) -> None:
    head = request(s3, "PUT", "k", b"", {"transfer-encoding": "chunked"})
    with contextlib.suppress(ConnectionError):
        raw.send(head + body)
        raw.sock.shutdown(socket.SHUT_WR)

    assert 400 == must(raw.reply()).status
    assert b"" == raw.rest()
    assert 404 == s3.head("k").status


def test_a_document_has_2_mib_at_most(s3: Client) -> None:
    upload = s3.post("k", b"", query="uploads").element("UploadId")
    body = b"<CompleteMultipartUpload>" + b" " * 2 * 1024**2 + b"</CompleteMultipartUpload>"
    reply = s3.post("k", body, uploadId=upload)

    assert (400, "MaxMessageLengthExceeded") == (reply.status, reply.error)


def test_a_document_has_120_000_elements_at_most(s3: Client) -> None:
    upload = s3.post("k", b"", query="uploads").element("UploadId")
    many = b"<CompleteMultipartUpload>" + b"<a/>" * 120_000 + b"</CompleteMultipartUpload>"
    reply = s3.post("k", many, uploadId=upload)

    assert (400, "MalformedXML") == (reply.status, reply.error)
    assert "more than 120000 elements" in reply.element("Message")


@pytest.mark.parametrize("data", [
    b'<Delete xmlns="' + b"u" * 1_590_000 + b'">' + b"<a/>" * 100_000 + b"</Delete>",
    b'<Delete xmlns:x="' + b"u" * 700_000 + b'">' + b'<a x:b=""/>' * 100_000 + b"</Delete>",
], ids=["of elements", "of attributes"])
def test_the_name_of_a_namespace_is_not_copied_to_all_that_is_in_it(data: bytes) -> None:
    """Either had taken a minute and a half."""
    began = time.process_time()
    assert 100_000 == len(s3mini.parse_xml(data, "Delete").children)

    assert time.process_time() - began < 5


def test_a_document_with_prefixes_is_understood() -> None:
    data = b'<s:Delete xmlns:s="x"><s:Object><s:Key>k</s:Key></s:Object></s:Delete>'

    assert ["k"] == [item.key for item in s3mini.parse_delete(data)[0]]


def test_a_document_that_comes_byte_by_byte_takes_no_more_memory() -> None:
    class Bytes:
        def read(self, size: int) -> bytes:
            return b"x"

    body = s3mini.Body(Bytes(), s3mini.Promise(length=None))
    tracemalloc.start()
    try:
        with pytest.raises(s3mini.S3Error):
            body.read_all(50_000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert most < 500_000


def test_10_000_parts_with_checksums_are_a_document() -> None:
    etag, checksum = "e" * 32, "c" * 43 + "="
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>"
        f"<ChecksumSHA256>{checksum}</ChecksumSHA256></Part>\n"
        for number in range(1, 10_001)
    )
    found = s3mini.parse_complete(
        f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
    )

    assert 10_000 == len(found)
    assert (10_000, etag, {"SHA256": checksum}) == found[-1]


def test_text_between_elements_is_joined_once() -> None:
    """It was copied at each element: a 2 MiB document took minutes of the processor."""
    wide, piece, count = "\U0001f600", "x" * 12, 100_000
    began = time.process_time()
    found = s3mini.parse_xml(f"<a>{wide}{(piece + '<b/>') * count}</a>".encode(), "a")

    assert time.process_time() - began < 2
    assert wide + piece * count == found.text
    assert count == len(found.all("b"))


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["header", "target", "headers"])
def test_a_head_that_is_too_large_is_refused(raw: Raw, s3: Client, where: str) -> None:
    long = "x" * 70_000
    head = {
        "header": f"GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n",
        "target": f"GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n",
        "headers": "GET / HTTP/1.1\r\nHost: a\r\n" + "x-a: 1\r\n" * 10_000 + "\r\n",
    }[where]
    with contextlib.suppress(ConnectionError):
        raw.send(head.encode())
    reply = must(raw.reply())

    assert (400, "RequestHeaderSectionTooLarge") == (reply.status, reply.error)
    assert b"" == raw.rest()


def test_a_query_has_1000_parameters_at_most(raw: Raw, s3: Client) -> None:
    """60 KiB of them had taken 4 MiB for as long as a body may take to arrive."""
    pairs = "&".join(["x"] * 1000)

    assert 200 == s3("GET", target=f"/{s3.bucket}?{pairs}").status
    raw.send(f"GET /{s3.bucket}?{pairs}&x HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    reply = must(raw.reply())
    assert (400, "InvalidURI") == (reply.status, reply.error)
    assert "more than 1000 parameters" in reply.element("Message")


BAD_HEADS = [
    b"GET / HTTP/1.1\r\n\r\n",  # no Host
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n12345",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: nul\0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\rX: bare\r\n\r\n",
    b"PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",  # TLS at a plain port
    b"GET /\r\n\r\n",
]


@pytest.mark.parametrize("data", BAD_HEADS)
def test_a_bad_head_is_400_and_the_end(raw: Raw, data: bytes) -> None:
    raw.send(data + b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n")
    reply = must(raw.reply())

    assert 400 == reply.status
    assert "close" == reply.headers["connection"]
    assert b"" == raw.rest()


@pytest.mark.parametrize("version", ["2.0", "0.9", "1.9", "3.0"])
def test_other_versions_of_http_are_refused(raw: Raw, version: str) -> None:
    raw.send(f"GET / HTTP/{version}\r\nHost: a\r\n\r\n".encode())

    assert 505 == must(raw.reply()).status


def test_a_head_may_come_byte_by_byte(raw: Raw, s3: Client) -> None:
    s3.put("k", b"x")
    data = request(s3, "GET", "k")
    for start in range(0, len(data), 7):
        raw.send(data[start : start + 7])

    assert b"x" == must(raw.reply()).body


# -- one request after the other -------------------------------------------------------------------


def test_a_connection_is_kept(raw: Raw, s3: Client) -> None:
    for number in range(3):
        raw.send(request(s3, "PUT", "k", b"%d" % number))
        assert 200 == must(raw.reply()).status
        raw.send(request(s3, "GET", "k"))
        assert b"%d" % number == must(raw.reply()).body


def test_requests_in_a_pipeline_are_answered_in_order(raw: Raw, s3: Client) -> None:
    requests = [request(s3, "PUT", f"k{n}", b"%d" % n * 1000) for n in range(5)]
    requests += [request(s3, "GET", f"k{n}") for n in range(5)]
    requests += [request(s3, "HEAD", "k0"), request(s3, "HEAD", "none"), request(s3, "GET", "k1")]
    raw.send(b"".join(requests))
    puts = [must(raw.reply()).status for _ in range(5)]
    gets = [must(raw.reply()).body for _ in range(5)]
    heads = [must(raw.reply("HEAD")) for _ in range(2)]

    assert [200] * 5 == puts
    assert [b"%d" % n * 1000 for n in range(5)] == gets
    assert [(200, "1000"), (404, "application/xml")] == [
        (heads[0].status, heads[0].headers["content-length"]),
        (heads[1].status, heads[1].headers["content-type"]),
    ]
    assert b"1" * 1000 == must(raw.reply()).body


@pytest.mark.parametrize("size", [10, 50_000, 3_000_000])
@pytest.mark.parametrize(
    "what", ["unsigned", "not there", "not done", "wrong length", "get", "head"]
)
def test_an_unread_body_is_never_the_next_request(
    server: Server, s3: Client, size: int, what: str
) -> None:
    evil = b"DELETE /%s/k HTTP/1.1\r\nHost: a\r\n\r\n" % s3.bucket.encode()
    body = (evil * (size // len(evil) + 1))[:size]
    s3.put("k", b"old")
    first = {
        "unsigned": request(s3, "PUT", "k", body, signed=False),
        "not there": request(s3, "PATCH", "k", body),
        "not done": request(s3, "PUT", "k", body, {"x-amz-acl": "nonsense"}),
        "wrong length": request(s3, "PUT", "k", body, {"content-md5": "x"}),
        "get": request(s3, "GET", "k", body),
        "head": request(s3, "HEAD", "k", body),
    }[what]
    with Raw(server) as raw:
        with contextlib.suppress(ConnectionError):
            raw.send(first)
            raw.send(request(s3, "GET", "k"))
        reply = must(raw.reply("HEAD" if what == "head" else "PUT"))
        rest = raw.reply()

    assert reply.status in ((200,) if what in ("get", "head") else (400, 403, 405, 501))
    assert rest is None or (rest.status, rest.body) == (200, b"old")
    assert "close" == reply.headers.get("connection") or rest is not None
    assert b"old" == s3.get("k").body


def test_the_answer_to_an_unread_body_arrives(server: Server, s3: Client) -> None:
    reply = s3.anonymous().put("k", b"x" * 10_000_000)

    assert (403, "AccessDenied") == (reply.status, reply.error)


# -- HTTP/1.0, HEAD, Expect ------------------------------------------------------------------------


def test_http_1_0_ends_with_the_answer(server: Server) -> None:
    server.client("public-key", bucket="public").put("k", b"hello")
    with Raw(server) as raw:
        raw.send(b"GET /public/k HTTP/1.0\r\n\r\n")
        answer = raw.rest()

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nhello")


def test_http_1_0_may_keep_the_connection(raw: Raw, server: Server) -> None:
    server.client("public-key", bucket="public").put("k", b"hello")
    for _ in range(2):
        raw.send(b"GET /public/k HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        reply = must(raw.reply())
        assert (b"hello", "keep-alive") == (reply.body, reply.headers["connection"])


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close", "close, x"])
def test_connection_close_is_obeyed(raw: Raw, s3: Client, value: str) -> None:
    raw.send(request(s3, "GET", "k", headers={"connection": value}))

    assert 404 == must(raw.reply()).status
    assert b"" == raw.rest()


def test_what_follows_the_last_request_costs_no_answer_before_it(serve: Serve) -> None:
    """Closing with something unread is a reset, which takes away what is on its way."""
    server = serve(INI, log="text")
    client = server.client("public-key", bucket="public")
    client.put("k", b"x" * 300_000)
    with Raw(server) as raw:
        get = request(client, "GET", "k", signed=False)
        end = request(client, "GET", "none", b"", {"connection": "close"}, signed=False)
        raw.send(get + end + get * (100_000 // len(get)))
        until(lambda: server.log.count(" GET ") == 2)
        first, last = must(raw.reply()), must(raw.reply())

    assert (200, 300_000) == (first.status, len(first.body))
    assert 404 == last.status


def test_an_absolute_target_is_understood(raw: Raw, server: Server) -> None:
    server.client("public-key", bucket="public").put("k", b"hello")
    raw.send(
        f"GET http://{server.address}/public/k HTTP/1.1\r\nHost: {server.address}\r\n\r\n".encode()
    )

    assert b"hello" == must(raw.reply()).body


def test_a_head_of_everything_has_no_body(raw: Raw, s3: Client) -> None:
    s3.put("k", b"hello")
    for key in ("k", "missing", "k?acl", "k?uploadId=x"):
        raw.send(request(s3, "HEAD", key))
        must(raw.reply("HEAD"))
    raw.send(request(s3, "GET", "k"))

    assert b"hello" == must(raw.reply()).body


def test_100_continue_comes_once_the_head_is_authorised(raw: Raw, s3: Client) -> None:
    raw.send(request(s3, "PUT", "k", b"", {"content-length": "5", "expect": "100-continue"}))
    first = must(raw.reply())
    raw.send(b"hello")
    second = must(raw.reply())

    assert ([100, 200], b"hello") == ([first.status, second.status], s3.get("k").body)


@pytest.mark.parametrize("length", ["0", None])
def test_100_continue_comes_before_the_answer_where_no_body_does(
    raw: Raw, s3: Client, length: Optional[str]
) -> None:
    """[botocore up to 1.43] misreads the next answer on the connection otherwise."""
    expect = {"expect": "100-continue"}
    put = request(s3, "PUT", "k", b"", {**expect, "content-length": length or "0"})
    get = request(s3, "GET", "missing", b"", expect)
    raw.send(put if length else get)
    statuses = [must(raw.reply()).status for _ in range(2)]
    raw.send(request(s3, "GET", "missing"))

    assert ([100, 200 if length else 404], 404) == (statuses, must(raw.reply()).status)


@pytest.mark.parametrize("what", ["unsigned", "condition", "acl", "bucket"])
def test_nobody_is_invited_to_send_what_will_be_refused(
    raw: Raw, server: Server, s3: Client, what: str
) -> None:
    expect = {"content-length": "5", "expect": "100-continue"}
    data = {
        "unsigned": request(s3, "PUT", "k", b"", expect, signed=False),
        "condition": request(s3, "PUT", "k", b"", {**expect, "content-md5": "nonsense"}),
        "acl": request(s3, "PUT", "k", b"", {**expect, "x-amz-grant-read": "x"}),
        "bucket": request(server.client("media-key", bucket=s3.bucket), "PUT", "k", b"", expect),
    }[what]
    raw.send(data)
    reply = must(raw.reply())

    assert 400 <= reply.status < 600
    assert b"" == raw.rest()


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_file_that_becomes_shorter_on_its_way_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], size: int
) -> None:
    """Else the client would wait for the rest, or take the next answer for it."""
    logged: list[Mapping[str, object]] = []
    read_at, sendfile = s3mini.read_at, os.sendfile

    def read(fd: int, size: int, offset: int) -> bytes:
        return read_at(fd, size // 2, offset)

    def send(out: int, fd: int, offset: int, size: int) -> int:
        os.truncate(f"/proc/self/fd/{fd}", 100_000)
        return sendfile(out, fd, offset, size)

    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        s3.put("k", b"x" * size)
        monkeypatch.setattr(s3mini, "read_at", read)
        monkeypatch.setattr(os, "sendfile", send)
        fake._server.log = logged.append
        with pytest.raises(http.client.IncompleteRead):
            s3.get("k")

    got = [line["code"] for line in logged if line["method"] == "GET"]
    assert ["InternalError"] == got  # it is not the client's fault
    assert "the file became shorter" in capfd.readouterr().err


def test_a_disk_that_cannot_read_is_no_client_that_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    logged: list[Mapping[str, object]] = []

    def send(*_: object) -> int:
        raise OSError(errno.EIO, "a bad sector")

    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        s3.put("k", b"x" * 100_000)
        monkeypatch.setattr(os, "sendfile", send)
        fake._server.log = logged.append
        with pytest.raises(http.client.IncompleteRead):
            s3.get("k")

    got = [(line["code"], line["bytes"]) for line in logged if line["method"] == "GET"]
    assert [("InternalError", 0)] == got
    assert "a bad sector" in capfd.readouterr().err


def test_a_refused_head_is_in_the_log_with_what_it_was_told(serve: Serve) -> None:
    server = serve(INI, log="text")
    with Raw(server) as raw:
        raw.send(b"GET / HTTP/1.1\r\n bad\r\n\r\n")
        body = must(raw.reply()).body
    until(lambda: " 400 BadRequest " in server.log)

    assert f" 400 BadRequest {len(body)} " in server.log


def test_a_request_that_was_read_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front of another address may make room just then."""
    with s3mini.start("media") as fake:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = s3mini.Connection(ours, "127.0.0.1", fake._server)
            connection.stream.waits, connection.is_idle = False, True
            assert connection.stream.is_settled
            theirs.sendall(b"PUT / HTTP/1.1\r\n")
            assert not connection.end_idle()
            assert s3mini.GOES_ON == connection.receive()
            assert not connection.end_idle()


# -- how many, how much ----------------------------------------------------------------------------


def test_connections_are_bounded(serve: Serve) -> None:
    server = serve(INI, workers=1, max_connections=2)
    client = server.client(bucket="media")
    head = {"content-length": "5", "expect": "100-continue"}
    with Raw(server) as one, Raw(server) as two:
        for number, raw in enumerate((one, two)):
            raw.send(request(client, "PUT", f"k{number}", b"", head))
            assert 100 == must(raw.reply()).status
        with Raw(server) as three:
            refused = must(three.reply())
            assert (503, "1") == (refused.status, refused.headers["retry-after"])
        for raw in (one, two):
            raw.send(b"hello")
            assert 200 == must(raw.reply()).status

        until(lambda: client.get("k0").status == 200)  # an idle connection makes room
    until(lambda: "connections are refused: max_connections = 2\n" in server.log)


def connections_of(pid: int, port: int) -> int:
    """How many established connections to the port a process holds."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{w[9]}]" for w in lines if w[1].endswith(f":{port:04X}") and w[3] == "01"}
    count = 0
    for name in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed just now
            count += os.readlink(name) in ours
    return count


def test_connections_that_come_at_once_are_shared_by_the_workers(serve: Serve) -> None:
    server = serve(INI, workers=2)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    until(lambda: len(children.read_text().split()) == 2)
    workers = [int(pid) for pid in children.read_text().split()]
    best = 0
    for _ in range(5):  # a worker that has just been started, or waits for a core, gets fewer
        with contextlib.ExitStack() as stack:
            raws = [stack.enter_context(Raw(server)) for _ in range(16)]
            for raw in raws:
                raw.send(b"GET /media/k HTTP/1.1\r\nHost: x\r\n\r\n")
                assert 403 == must(raw.reply()).status
            counts = [connections_of(pid, server.port) for pid in workers]
        until(lambda: not any(connections_of(pid, server.port) for pid in workers))
        assert 16 == sum(counts)
        best = max(best, min(counts))

    assert 7 <= best


@pytest.mark.parametrize(("others", "accepted"), [(None, 16), (0, 1), (8, 11)])
def test_a_burst_is_accepted_at_once_as_far_as_it_is_ours(
    tmp_path: Path, others: Optional[int], accepted: int
) -> None:
    """One in each turn would make the last of 128 wait for as many turns of the others."""
    listener = s3mini.open_listener("127.0.0.1:0")
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    server = s3mini.Server(app, listener)
    if others is not None:
        server.loads = s3mini.Loads(2)
        server.loads._counts[1] = others
    with contextlib.ExitStack() as stack, contextlib.closing(listener):
        for _ in range(20):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        server.accept_now()

        assert accepted == len(server.connections)
        for connection in list(server.connections):
            server.close(connection)
    server.server_close()


def test_who_was_just_accepted_is_not_closed_for_want_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept() says EMFILE although nobody waits any more: it makes a descriptor first. [Linux]"""
    listener = s3mini.open_listener("127.0.0.1:0")
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    server = s3mini.Server(app, listener)
    get_request = server.get_request

    def get_one() -> Any:
        if server.connections:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return get_request()

    monkeypatch.setattr(server, "get_request", get_one)
    with contextlib.closing(listener), socket.create_connection(listener.getsockname()):
        server.accept_now()
        assert 1 == len(server.connections)
        server.accept_now()  # somebody waits now, as far as it knows
        assert 0 == len(server.connections)
    server.server_close()


def test_where_no_thread_is_to_be_had_the_log_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under systemd's TasksMax or Docker's pids_limit: who is refused so has no line of his own."""
    listener = s3mini.open_listener("127.0.0.1:0")
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    server = s3mini.Server(app, listener)

    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server, "process_request", refuse)
    with contextlib.closing(listener):
        for _ in range(2):
            with socket.create_connection(listener.getsockname()) as client:
                server.accept_now()
                server.after_turn(*server.connections, s3mini.BUSY)
                assert b"HTTP/1.1 503" == client.recv(12)
    server.server_close()

    assert "s3mini: connections are refused: can't start new thread\n" == capfd.readouterr().err


def test_free_space_is_kept(serve: Serve) -> None:
    server = serve(INI)
    client = server.client(bucket="media")
    client.put("k", b"old")
    upload = client.post("k", b"", query="uploads").element("UploadId")
    server.stop()
    server.config.write_text(server.ini.replace("[SERVER]\n", "[SERVER]\nmin_free = 900000G\n"))
    server.start()
    client = server.client(bucket="media")
    put = client.put("k", b"new")
    part = client.put("k", b"x", query={"partNumber": "1", "uploadId": upload})
    begun = client.post("k", b"", query="uploads")

    assert [(507, "InsufficientStorage")] * 3 == [(r.status, r.error) for r in (put, part, begun)]
    assert b"old" == client.get("k").body
    assert 204 == client.delete("k").status


def resident(pid: int) -> tuple[int, int]:
    """Resident memory now and at most, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    now, most = (re.findall(rf"{name}:\s+([0-9]+) kB", text)[0] for name in ("VmRSS", "VmHWM"))
    return int(now) * 1024, int(most) * 1024


@pytest.mark.parametrize("mode", [UNSIGNED, UNSIGNED_TRAILER])
def test_300_mb_move_memory_by_a_few_mib_only(serve: Serve, mode: str) -> None:
    server = serve(INI, workers=1)
    client = server.client(bucket="media")
    client.put("warm", b"x" * 5_000_000)
    client.get("warm")
    piece, count = b"0123456789abcdef" * 62_500, 300
    size = len(piece) * count
    before = resident(server.process.pid)[1]
    sending = {"content-length": str(size)}
    body: Iterator[bytes] = iter([piece] * count)
    if mode == UNSIGNED_TRAILER:
        framed = b"%x\r\n%b\r\n" % (len(piece), piece)
        end = b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
        body = iter([framed] * count + [end])
        sending = {
            "content-length": str(len(framed) * count + len(end)),
            "content-encoding": "aws-chunked",
        }
        sending |= {
            "x-amz-decoded-content-length": str(size),
            "x-amz-trailer": "x-amz-checksum-crc32",
        }
    signed = client.sign("PUT", "/media/big", [], sending, mode)
    put = client.send("PUT", "/media/big", signed, body)
    assert ("BadDigest" if mode == UNSIGNED_TRAILER else "") == put.error
    if mode == UNSIGNED:
        assert size == read_slowly(client, "big")

    assert resident(server.process.pid)[1] - before < 8 * 1024**2


def read_slowly(client: Client, key: str) -> int:
    """How many bytes a GET gives."""
    path = f"/{client.bucket}/{key}"
    connection = http.client.HTTPConnection(client.address, timeout=PATIENCE)
    connection.request("GET", path, headers=client.sign("GET", path, [], {}, UNSIGNED))
    with connection.getresponse() as reply:
        total = sum(len(data) for data in iter(lambda: reply.read(1_000_000), b""))
    connection.close()
    return total


def test_what_had_come_is_answered_before_the_end(serve: Serve) -> None:
    server = serve(INI, workers=1)
    client = server.client(bucket="media")
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(server)) for _ in range(20)]
        for number, raw in enumerate(raws):  # each has been served once, and is kept
            raw.send(request(client, "PUT", f"first{number}", b"x"))
            assert 200 == must(raw.reply()).status
        for number, raw in enumerate(raws):
            raw.send(request(client, "PUT", f"k{number}", b"x"))
        server.process.send_signal(signal.SIGTERM)
        replies = [raw.reply() for raw in raws]

    assert [200] * 20 == [reply.status if reply else 0 for reply in replies]
    assert 0 == server.process.wait(PATIENCE)


def test_a_head_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the whole head does not."""
    monkeypatch.setattr(s3mini, "HEAD_SECONDS", 0.3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream, ended = s3mini.Stream(ours), threading.Event()

        def trickle() -> None:
            for _ in range(200):
                if ended.wait(0.02):
                    return
                theirs.sendall(b"G")
            theirs.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(s3mini.S3Error) as refused:
                stream.read_head()
        finally:
            ended.set()
            thread.join()

    assert refused.value.code == "RequestTimeout"


def trickling(monkeypatch: pytest.MonkeyPatch, rate: int) -> s3mini.S3Error:
    """What becomes of a body of which a byte comes each hundredth of a second."""
    monkeypatch.setattr(s3mini, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(s3mini, "MIN_RATE", rate)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream, ended = s3mini.Stream(ours), threading.Event()
        stream.pace = s3mini.Pace()

        def trickle() -> None:
            for _ in range(100):
                if ended.wait(0.01):
                    return
                theirs.sendall(b"G")
            theirs.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=trickle)
        thread.start()
        source = s3mini.LengthReader(stream, 1000)
        try:
            with pytest.raises(s3mini.S3Error) as refused:
                all(iter(lambda: source.read(10), b""))
        finally:
            ended.set()
            thread.join()
    return refused.value


@pytest.mark.parametrize(("rate", "code"), [(100_000, "RequestTimeout"), (1, "IncompleteBody")])
def test_a_body_that_trickles_in_is_given_up(
    monkeypatch: pytest.MonkeyPatch, rate: int, code: str
) -> None:
    """Each byte comes in time, all of them take for ever; slow is not too slow."""
    assert code == trickling(monkeypatch, rate).code


def test_a_reader_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3mini, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(s3mini, "MIN_RATE", 10_000_000)
    with s3mini.start("media") as fake:
        client = Client(fake.endpoint.partition("//")[2], "s3mini", "s3mini-secret", "media")
        client.put("large", b"x" * 50_000_000)
        path = "/media/large"
        connection = http.client.HTTPConnection(client.address, timeout=PATIENCE)
        connection.request("GET", path, headers=client.sign("GET", path, [], {}, UNSIGNED))
        total = 0
        with connection.getresponse() as reply, contextlib.suppress(OSError):
            while data := reply.read(100_000):
                total += len(data)
                time.sleep(0.02)
        connection.close()

    assert 0 < total < 50_000_000


@pytest.mark.parametrize("requests", [0, 1, 3])
def test_an_idle_connection_is_ended_in_time(
    monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    monkeypatch.setattr(s3mini, "IDLE_SECONDS", 0.5)
    with s3mini.start("media") as fake:
        host, _, port = fake.endpoint.partition("//")[2].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
            for _ in range(requests):
                sock.sendall(b"GET /media/k HTTP/1.1\r\nHost: x\r\n\r\n")
                assert sock.recv(9999).startswith(b"HTTP/1.1 403")
            began = time.monotonic()

            assert b"" == sock.recv(1)
            assert 0.2 < time.monotonic() - began


# -- TLS of our own --------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The folder of a certificate for 127.0.0.1: ca.pem, server.pem, server.key."""
    make_certificate(tmp_path)
    return tmp_path


def test_ending_a_direction_takes_no_encryption_off(certificate: Path) -> None:
    """ssl's own shutdown does: what was sent after it went out in the clear. (2026-11)"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "server.pem", certificate / "server.key")
    client = ssl.create_default_context(cafile=str(certificate / "ca.pem"))
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool, ours, theirs:
        wrapped = pool.submit(context.wrap_socket, ours, server_side=True)
        with client.wrap_socket(theirs, server_hostname="127.0.0.1") as reader:
            with wrapped.result() as sock:
                stream = s3mini.Stream(sock)
                stream.shutdown(socket.SHUT_RD)
                stream.send(b"secret")
                assert b"secret" == reader.recv(100)


def test_connections_that_never_shake_hands_make_room(serve: Serve, certificate: Path) -> None:
    tls = {"tls_cert": certificate / "server.pem", "tls_key": certificate / "server.key"}
    server = serve(INI, workers=1, max_connections=4, **tls)
    assert server.endpoint.startswith("https://127.0.0.1:")
    client = replace(server.client(bucket="public"), cafile=str(certificate / "ca.pem"))
    context = ssl.create_default_context(cafile=str(certificate / "ca.pem"))
    with contextlib.ExitStack() as stack:
        for number in range(8):
            raw = stack.enter_context(Raw(server))
            if number % 2:  # and one that sends blank lines behind its request
                raw.sock = context.wrap_socket(raw.sock, server_hostname="localhost")
                raw.send(b"GET /public/k HTTP/1.1\r\nHost: x\r\n\r\n\r\n\r\n")
                assert 404 == must(raw.reply()).status
        assert 404 == client.get("k").status
        assert 4 >= connections_of(server.process.pid, server.port)
        began = time.monotonic()
        server.stop()

    assert time.monotonic() - began < 5


@pytest.mark.parametrize("is_refused", [True, False])
def test_who_has_his_answer_makes_room(serve: Serve, is_refused: bool) -> None:
    """Refused before all of it came, and lingering: the answer must not be lost to a reset."""
    server = serve(INI, workers=1, max_connections=2)
    client = server.client(bucket="media")
    head = b"PUT /media/x HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\nhello"
    with Raw(server) as one, Raw(server) as two:
        for raw in (one, two):
            raw.send(head if is_refused else b"GET /media/x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert 403 == must(raw.reply()).status

        until(lambda: client.get("k").status == 404)  # once they linger


def test_so_does_who_sends_no_body_that_nobody_asked_for(serve: Serve) -> None:
    """Anybody held a connection for three seconds with a GET that announced five bytes."""
    server = serve(INI, workers=1, max_connections=2)
    client = server.client(bucket="media")
    with Raw(server) as one, Raw(server) as two:
        for raw in (one, two):
            raw.send(b"GET /media/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        began = time.monotonic()
        until(lambda: client.get("k").status == 404)

        assert time.monotonic() - began < s3mini.DRAIN_SECONDS / 2
        assert 403 == must(one.reply()).status


def test_with_tls_his_answer_is_not_lost_to_that(serve: Serve, certificate: Path) -> None:
    """It was: where OpenSSL's reading was ended, it sends nothing more. (2026-11)"""
    tls = {"tls_cert": certificate / "server.pem", "tls_key": certificate / "server.key"}
    server = serve(INI, workers=1, max_connections=2, **tls)
    context = ssl.create_default_context(cafile=str(certificate / "ca.pem"))
    with Raw(server) as one, Raw(server) as two:
        for raw in (one, two):
            raw.sock = context.wrap_socket(raw.sock, server_hostname="localhost")
            raw.send(b"GET /media/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        time.sleep(0.2)  # until they wait for it
        with Raw(server):
            assert [403, 403] == [must(raw.reply()).status for raw in (one, two)]


def test_answers_are_encrypted_and_right(serve: Serve, certificate: Path) -> None:
    tls = {"tls_cert": certificate / "server.pem", "tls_key": certificate / "server.key"}
    server = serve(INI, workers=1, **tls)
    client = server.client(bucket="media")
    path, headers = "/media/k", {"host": server.address}
    context = ssl.create_default_context(cafile=str(certificate / "ca.pem"))
    connection = http.client.HTTPSConnection(server.address, timeout=PATIENCE, context=context)
    for method, body in (("PUT", b"x" * 100_000), ("GET", b""), ("GET", b""), ("HEAD", b"")):
        signed = client.sign(method, path, [], headers, UNSIGNED)
        connection.request(method, path, body or None, signed)
        with connection.getresponse() as reply:
            assert 200 == reply.status
            assert reply.read() == (b"x" * 100_000 if method == "GET" else b"")
    connection.close()
