"""The attack surface: what must not get in, beside a twin that must. Raw sockets, real server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Optional
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pytest
from conftest import Serve, Server
from signing_client import (
    EMPTY,
    SIGNED_CHUNKS,
    UNSIGNED,
    UNSIGNED_TRAILER,
    Client,
    Reply,
)

import s3mini

PATIENCE = 20.0  # seconds
SECRET = "attack-secret-0123456789abcdef"
INI = f"""\
[SERVER]
durability = none
workers = 1
log = LOG

[media]
access_key = attack-key
secret_key = {SECRET}

[public]
access_key = attack-key
secret_key = {SECRET}
public = read

[html]
access_key = attack-key
secret_key = {SECRET}
public = read
html = yes

[other]
access_key = other-key
secret_key = other-secret-0123456789abcdef
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("attack"), INI.replace("LOG", "text"))
    yield server
    server.close()


@pytest.fixture
def s3(world: Server) -> Iterator[Client]:
    """The client, and beside it a canary that no attack may touch."""
    client = world.client(bucket="media")
    client.put("canary", b"alive", {"x-amz-meta-n": "canary"})
    yield client
    got = client.get("canary")
    assert (200, b"alive", "canary") == (got.status, got.body, got.headers["x-amz-meta-n"])


def exchange(server: Server, data: bytes) -> list[tuple[int, bytes]]:
    """(status, the rest) of every answer to these bytes, up to the connection's end."""
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while more := sock.recv(65536):
                got += more
        except ConnectionResetError:
            pass
    pieces = re.split(rb"(?m)^HTTP/1\.1 (?=[0-9]{3} )", got)[1:]
    return [(int(piece[:3]), piece) for piece in pieces]


def statuses(server: Server, data: bytes) -> list[int]:
    return [status for status, _ in exchange(server, data)]


def lines(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def signed_head(
    s3: Client, method: str, key: str, headers: Optional[dict[str, str]] = None
) -> bytes:
    """The head of a signed request, without the empty line."""
    path = f"/{s3.bucket}/{key}"
    sending = s3.sign(method, path, [], headers or {}, UNSIGNED)
    return f"{method} {path} HTTP/1.1\r\n".encode() + lines(sending)


# -- request smuggling -----------------------------------------------------------------------------

# What follows a head for a PUT of 5 bytes: more header lines, and the body. A server that reads
# another body than a proxy in front of it takes SMUGGLED for a request of its own.
SMUGGLED = b"GET /smuggled/x HTTP/1.1\r\nHost: x\r\n\r\n"
FRAMINGS = {
    "length and chunked": (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0\r\n\r\n" + SMUGGLED,
    ),
    "chunked and length": (
        b"Transfer-Encoding: chunked\r\nContent-Length: 43\r\n\r\n",
        b"0\r\n\r\n" + SMUGGLED,
    ),
    "two lengths": (b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n", b"hello" + SMUGGLED),
    "a list of lengths": (b"Content-Length: 5, 0\r\n\r\n", b"hello" + SMUGGLED),
    "a signed length": (b"Content-Length: +5\r\n\r\n", b"hello" + SMUGGLED),
    "a negative length": (b"Content-Length: -5\r\n\r\n", b"hello" + SMUGGLED),
    "a length in hex": (b"Content-Length: 0x5\r\n\r\n", b"hello" + SMUGGLED),
    "a length with an underscore": (b"Content-Length: 1_0\r\n\r\n", b"hellohello" + SMUGGLED),
    "a length of 5,000 digits": (
        b"Content-Length: " + b"0" * 4999 + b"5\r\n\r\n",
        b"hello" + SMUGGLED,
    ),
    "a length in Arabic digits": (
        b"Content-Length: \xd9\xa5\r\n\r\n",
        b"hello" + SMUGGLED,
    ),
    "a blank before the colon": (b"Content-Length : 5\r\n\r\n", b"hello" + SMUGGLED),
    "chunked after identity": (
        b"Transfer-Encoding: identity, chunked\r\n\r\n",
        b"0\r\n\r\n" + SMUGGLED,
    ),
    "chunked twice": (
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0\r\n\r\n" + SMUGGLED,
    ),
    "an unknown coding": (b"Transfer-Encoding: xchunked\r\n\r\n", b"0\r\n\r\n" + SMUGGLED),
    "chunked with a tab": (
        b"Transfer-Encoding:\x0bchunked\r\n\r\n",
        b"0\r\n\r\n" + SMUGGLED,
    ),
    "a bare line feed": (b"A: b\nContent-Length: 5\r\n\r\n", b"hello" + SMUGGLED),
    "only line feeds": (b"Content-Length: 5\n\n", b"hello" + SMUGGLED),
    "a bare carriage return": (b"A: b\rContent-Length: 5\r\n\r\n", b"hello" + SMUGGLED),
    "a folded line": (b"A: b\r\n Content-Length: 5\r\n\r\n", b"hello" + SMUGGLED),
    "a NUL in a value": (b"A: b\x00\r\nContent-Length: 5\r\n\r\n", b"hello" + SMUGGLED),
    "a line without a colon": (b"nonsense\r\nContent-Length: 5\r\n\r\n", b"hello" + SMUGGLED),
    "a second host": (b"Host: evil\r\nContent-Length: 5\r\n\r\n", b"hello" + SMUGGLED),
    "a chunk that is longer than it says": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"3\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "a chunk's end of one line feed": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"5\nhello\n0\n\n" + SMUGGLED,
    ),
    "a chunk's size with a sign": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "a chunk's size in hex notation": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "a chunk's size of many digits": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"0" * 5000 + b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "a chunk extension": (  # refused: S3's clients send none, and proxies differ in them
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "a trailer": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n" + SMUGGLED,
    ),
    "a chunk extension with a line feed": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "a trailer without an end": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: " + b"x" * 70000 + b"\r\n\r\n" + SMUGGLED,
    ),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_a_body_of_two_readings_ends_the_connection(world: Server, s3: Client, name: str) -> None:
    framing, rest = FRAMINGS[name]
    answers = exchange(world, signed_head(s3, "PUT", "smuggling") + framing + rest)

    assert 1 == len(answers)
    assert 400 <= answers[0][0] < 502
    assert answers[0][0] != 500
    assert 404 == s3.get("smuggling").status


@pytest.mark.parametrize("name", FRAMINGS)
def test_nor_is_the_body_of_a_refused_request_another_request(
    world: Server, s3: Client, name: str
) -> None:
    framing, rest = FRAMINGS[name]
    head = b"PUT /media/refused HTTP/1.1\r\nHost: " + s3.address.encode() + b"\r\n"

    assert 1 == len(exchange(world, head + framing + rest))


TWINS = {
    "a length": (b"Content-Length: 5\r\n\r\n", b"hello"),
    "the same length twice": (b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", b"hello"),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    "capitals": (b"TRANSFER-ENCODING: Chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_body_of_one_reading_is_stored_and_the_next_request_served(
    world: Server, s3: Client, name: str
) -> None:
    framing, rest = TWINS[name]
    following = b"GET /public/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    data = signed_head(s3, "PUT", "framed") + framing + rest + following

    assert [200, 404] == statuses(world, data)
    assert b"hello" == s3.get("framed").body


# -- names -----------------------------------------------------------------------------------------

UP = ("..", "%2e%2e", "%2E.", ".%2e")
SLASH = ("/", "%2f", "%2F")
TRAVERSALS = [
    f"{slash.join([up] * 4)}{slash}etc{slash}passwd" for up in UP for slash in SLASH
] + [
    "x/../../other/secret", "x/%2e%2e/%2e%2e/other/secret", "..%2fother/secret", "../other/secret",
    "a/b/../../../other/secret",
]  # fmt: skip
NOT_UTF8 = ("%ff", "%c0%ae%c0%ae/other", "%c0%af", "%e0%80%af", "%ed%a0%80", "%f8%88%80%80%80",
            "%zz", "%", "%4", "a%ffb")  # fmt: skip


def signed(s3: Client, method: str, target: str, **more: Any) -> Reply:
    """A request for a raw target, signed as the server will understand it."""
    body = more.get("body", b"")
    meant = quote(unquote_to_bytes(target), safe="/-_.~")
    sending = s3.sign(method, meant, [], {}, hashlib.sha256(body).hexdigest())
    return s3.send(method, target, sending, body)


@pytest.mark.parametrize("path", [*TRAVERSALS, *NOT_UTF8])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_no_path_leads_out_of_the_bucket(world: Server, s3: Client, method: str, path: str) -> None:
    other = world.client("other-key", bucket="other")
    other.put("secret", b"other's")
    reply = signed(s3, method, f"/media/{path}", body=b"evil" if method == "PUT" else b"")

    assert 400 <= reply.status < 500
    assert b"other's" not in reply.body
    assert b"other's" == other.get("secret").body
    assert [] == evil_files(world.data)


def evil_files(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.is_file() and p.read_bytes() == b"evil"]


@pytest.mark.parametrize("path", [*TRAVERSALS, *NOT_UTF8])
def test_no_copy_source_leads_out_of_the_bucket(world: Server, s3: Client, path: str) -> None:
    world.client("other-key", bucket="other").put("secret", b"other's")
    reply = s3.put("copied", b"", {"x-amz-copy-source": f"/media/{path}"})

    assert 400 <= reply.status < 500
    assert 404 == s3.get("copied").status


@pytest.mark.parametrize(
    "source", ["/../other/secret", "/.s3mini/x", "/./media/canary", "/media/", "media", "", "/"]
)
def test_a_copy_source_names_a_bucket_and_a_key(s3: Client, source: str) -> None:
    assert 400 <= s3.put("copied", b"", {"x-amz-copy-source": source}).status < 500


def test_a_copy_source_that_is_one_is_copied(s3: Client) -> None:
    for source in ("/media/canary", "media/canary", "/media/%63anary"):
        assert 200 == s3.put("copied", b"", {"x-amz-copy-source": source}).status
        assert b"alive" == s3.get("copied").body
        s3.delete("copied")


def form(s3: Client, key: str, data: bytes = b"evil") -> Reply:
    """A POST form with that key, its policy signed."""
    import hmac

    conditions: list[Any] = [{"bucket": "media"}, ["starts-with", "$key", ""]]
    policy = {"expiration": "2099-01-01T00:00:00Z", "conditions": conditions}
    text = base64.b64encode(json.dumps(policy).encode()).decode()
    digest = hmac.new(s3.secret_key.encode(), text.encode(), "sha1").digest()
    fields = {"key": key, "AWSAccessKeyId": s3.access_key, "policy": text,
              "signature": base64.b64encode(digest).decode()}  # fmt: skip
    body = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'
        for n, v in fields.items()
    ).encode("utf-8", "surrogateescape")
    body += b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body += data + b"\r\n--x--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    return s3.anonymous().send("POST", "/media", kind, body)


@pytest.mark.parametrize(
    "key", ["../other/x", "a/../../other/x", "..", "../..", "\udcff", "a\udcc0\udcae"]
)
def test_no_form_leads_out_of_the_bucket(world: Server, s3: Client, key: str) -> None:
    assert 400 <= form(s3, key).status < 500
    assert [] == evil_files(world.data)


def test_a_form_with_a_good_key_is_stored(s3: Client) -> None:
    assert 204 == form(s3, "a form", b"good").status
    assert b"good" == s3.get("a form").body


def delete_document(*keys: str) -> bytes:
    rows = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    return f"<Delete>{rows}</Delete>".encode()


def document(s3: Client, data: bytes, **query: str) -> Reply:
    """A DeleteObjects with these bytes."""
    digest = base64.b64encode(hashlib.md5(data).digest()).decode()
    return s3.post("", data, {"content-md5": digest}, **(query or {"delete": ""}))


def test_no_delete_leads_out_of_the_bucket(world: Server, s3: Client) -> None:
    other = world.client("other-key", bucket="other")
    other.put("secret", b"other's")
    before = room_of(world)
    keys = ["../other/secret", "a/../../other/secret", ".s3mini/bucket.json", "%2e%2e/other/secret",
            ".canary.s3mini.json", "/../other/secret", "canary/../../other/secret"]  # fmt: skip
    reply = document(s3, delete_document(*keys))

    assert reply.status in (200, 400)
    assert b"other's" == other.get("secret").body
    assert before == room_of(world)
    s3.put("good", b"x")
    assert ["good"] == document(s3, delete_document("good")).elements("Key")
    assert 404 == s3.get("good").status


# -- the room and the sidecars ---------------------------------------------------------------------


def room_of(world: Server, bucket: str = "media") -> dict[str, bytes]:
    """Every file of the bucket's room that stands still, and the canary's sidecar."""
    folder = world.data / bucket
    paths = [folder / ".s3mini" / "bucket.json", folder / ".canary.s3mini.json"]
    return {str(path): path.read_bytes() for path in paths}


RESERVED = [
    ".s3mini/bucket.json", ".s3mini/locks/00", ".s3mini/tmp/x", ".s3mini", ".canary.s3mini.json",
    ".S3MINI/bucket.json", ".s3mini/../.s3mini/bucket.json", "./.s3mini/bucket.json",
    "x/../.s3mini/bucket.json", "./canary", ".//.s3mini/bucket.json", "%2es3mini/bucket.json",
    ".s3mini%2fbucket.json", ".%733mini/bucket.json", "/.s3mini/bucket.json", ".\u017f3mini/x",
]  # fmt: skip


@pytest.mark.parametrize("key", RESERVED)
def test_our_own_files_are_out_of_reach_by_any_name(world: Server, s3: Client, key: str) -> None:
    before = room_of(world)
    target = "/media/" + key.replace("\u017f", "%c5%bf")
    got = signed(s3, "GET", target)
    assert not any(got.body and got.body in data for data in before.values())
    put = signed(s3, "PUT", target, body=b"evil")
    if put.status == 200:  # a key like any other: it lies under an escaped name
        assert b"evil" == signed(s3, "GET", target).body
        assert 200 == s3.put("copied", b"", {"x-amz-copy-source": target}).status
    signed(s3, "DELETE", target)

    assert before == room_of(world)
    assert signed(s3, "GET", target).status in (400, 404)
    s3.delete("copied")


@pytest.mark.parametrize("path", ["a%00b", "%00", "a/%00/b", "canary%00.png"])
def test_a_nul_is_a_byte_of_a_key_and_ends_no_name(s3: Client, path: str) -> None:
    target = f"/media/{path}"
    assert signed(s3, "GET", target).status in (400, 404)
    put = signed(s3, "PUT", target, body=b"nul")

    assert put.status in (200, 400)
    assert signed(s3, "GET", target).body == b"nul" or put.status == 400
    signed(s3, "DELETE", target)


# -- links -----------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"outside")
    return folder


def test_links_that_were_planted_lead_nowhere(world: Server, s3: Client, outside: Path) -> None:
    folder = world.data / "media"
    planted = [folder / name for name in ("file", "folder", ".s3.s3mini.json", ".x.s3mini.json")]
    planted[0].symlink_to(outside / "secret")
    planted[1].symlink_to(outside)
    planted[2].symlink_to(outside / "secret")
    planted[3].symlink_to(outside / "new")
    try:
        assert 404 == s3.get("file").status
        assert 404 == s3.get("folder/secret").status
        assert 200 == s3.put("x", b"evil").status  # its sidecar's name is a link to nowhere yet
        assert 200 == s3.put("s3", b"evil").status
        s3.put("file", b"evil")
        s3.put("folder/new", b"evil")
        s3.delete("folder/secret")
        s3.put("copied", b"", {"x-amz-copy-source": "/media/folder/secret"})
        assert "folder/secret" not in s3.get(list_type=2).elements("Key")
        assert b"evil" == s3.get("x").body

        assert ["secret"] == os.listdir(outside)
        assert b"outside" == (outside / "secret").read_bytes()
        assert 404 == s3.get("copied").status
    finally:
        for path in planted:
            if path.is_symlink():
                path.unlink()
        for key in ("x", "s3", "file"):
            s3.delete(key)


def test_a_link_in_tmp_is_not_written_through(world: Server, s3: Client, outside: Path) -> None:
    link = world.data / "media" / ".s3mini" / "tmp" / "link"
    link.symlink_to(outside / "secret")
    s3.put("a", b"evil")
    world.stop()
    world.start()
    s3.address = world.address

    assert b"outside" == (outside / "secret").read_bytes()
    link.unlink(missing_ok=True)


# -- headers ---------------------------------------------------------------------------------------

SPLITTING = ("a\r\nEvil: yes", "a\nEvil: yes", "a\rEvil: yes", "a\x00b", "a\x0b\x0cEvil: yes",
             "a\x85Evil: yes", "a\u2028Evil: yes", "a\u560d\u560aEvil: yes")  # fmt: skip
OVERRIDES = ("response-content-type", "response-content-disposition", "response-cache-control",
             "response-content-language", "response-expires",
             "response-content-encoding")  # fmt: skip


@pytest.mark.parametrize("value", SPLITTING)
@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_adds_no_header(world: Server, s3: Client, name: str, value: str) -> None:
    url = s3.presign("GET", "canary", query=[(name, value)])
    target = url.partition(s3.address)[2]
    host = s3.address.encode()
    head = b"GET " + target.encode() + b" HTTP/1.1\r\nHost: " + host
    answers = exchange(world, head + b"\r\nConnection: close\r\n\r\n")

    assert 1 == len(answers)
    head = answers[0][1].partition(b"\r\n\r\n")[0]
    assert not re.search(rb"(?im)[\r\n]evil:", head)
    assert b"\x00" not in head
    assert answers[0][0] in (200, 400)


@pytest.mark.parametrize("value", SPLITTING)
def test_metadata_adds_no_header(world: Server, s3: Client, value: str) -> None:
    sent = value.encode().decode("latin-1")
    sending = s3.sign("PUT", "/media/meta", [], {"x-amz-meta-n": sent}, UNSIGNED)
    head = b"PUT /media/meta HTTP/1.1\r\n" + lines(sending)
    exchange(world, head + b"Content-Length: 1\r\n\r\nx")
    got = exchange(world, signed_head(s3, "GET", "meta") + b"Connection: close\r\n\r\n")

    assert not re.search(rb"(?im)[\r\n]evil:", got[0][1])
    s3.delete("meta")


def test_a_form_field_adds_no_header(s3: Client) -> None:
    reply = form(s3, "meta", b"x\r\nEvil: yes")

    assert 204 == reply.status
    assert "evil" not in s3.get("meta").headers
    s3.delete("meta")


def test_what_is_no_attack_comes_back_as_it_was_sent(s3: Client) -> None:
    s3.put("meta", b"x", {"x-amz-meta-n": 'a; b="c", d'})

    assert 'a; b="c", d' == s3.get("meta").headers["x-amz-meta-n"]
    got = s3.get("meta", response_content_disposition='attachment; filename="ä"')
    assert (
        'attachment; filename="ä"' == got.headers["content-disposition"].encode("latin-1").decode()
    )
    s3.delete("meta")


# -- documents -------------------------------------------------------------------------------------

BOMB = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    b'<!ENTITY %c "%b">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
)
CHAIN = b'<!DOCTYPE d [<!ENTITY e0 "x">' + b"".join(
    b'<!ENTITY e%d "&e%d;">' % (n, n - 1) for n in range(1, 30_000)
)
DOCUMENTS = {
    "billion laughs": BOMB + b"]><Delete><Object><Key>&j;</Key></Object></Delete>",
    "a chain of entities": CHAIN + b"]><Delete><Object><Key>&e29999;</Key></Object></Delete>",
    "a file of ours": b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    b"<Delete><Object><Key>&x;</Key></Object></Delete>",
    "a document type": b"<!DOCTYPE Delete><Delete><Object><Key>canary</Key></Object></Delete>",
    "a parameter entity": b'<!DOCTYPE d [<!ENTITY % x SYSTEM "http://127.0.0.1/">%x;]>'
    b"<Delete><Object><Key>canary</Key></Object></Delete>",
    "an unknown entity": b"<Delete><Object><Key>&x;</Key></Object></Delete>",
    "an unknown encoding": b'<?xml version="1.0" encoding="ebcdic-xx"?><Delete/>',
    "UTF-7": b'<?xml version="1.0" encoding="UTF-7"?><Delete/>',
    "a codec that is none of text": b'<?xml version="1.0" encoding="zlib"?><Delete/>',
    "UTF-16 that is none": b"\xff\xfe<Delete/>",
    "bytes that are no UTF-8": b"<Delete><Object><Key>\xff</Key></Object></Delete>",
    "a NUL": b"<Delete><Object><Key>a\x00</Key></Object></Delete>",
    "10,000 deep": b"<Delete>" + b"<a>" * 10_000 + b"</a>" * 10_000 + b"</Delete>",
    "10,000 keys": delete_document(*(f"k{n}" for n in range(10_000))),
    "1,001 keys": delete_document(*(f"k{n}" for n in range(1001))),
    "no key": b"<Delete></Delete>",
    "an empty key": b"<Delete><Object><Key></Key></Object></Delete>",
    "nothing": b"",
    "no XML": b"{}",
    "another document": b"<CompleteMultipartUpload/>",
    "two documents": b"<Delete/><Delete/>",
    "a document cut short": b"<Delete><Object><Key>canary</Key></Object>",
    "3 MiB": b"<Delete>" + b" " * 3 * 1024**2 + b"</Delete>",
    "a million attributes": b"<Delete " + b" ".join(b'a%d=""' % n for n in range(1000)) + b">",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_is_none_is_refused(s3: Client, name: str) -> None:
    began = time.monotonic()
    reply = document(s3, DOCUMENTS[name])

    assert 400 == reply.status
    assert reply.error in ("MalformedXML", "MaxMessageLengthExceeded")
    assert b"root:" not in reply.body
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", ["billion laughs", "a chain of entities", "10,000 deep"])
@pytest.mark.parametrize(
    ("method", "key", "query"),
    [
        ("PUT", "canary", {"tagging": ""}),
        ("PUT", "", {"cors": ""}),
        ("PUT", "", {"tagging": ""}),
        ("PUT", "canary", {"acl": ""}),
        ("POST", "canary", {"uploadId": "0" * 32}),
    ],
)
def test_no_other_document_is_a_bomb(
    s3: Client, method: str, key: str, query: dict[str, str], name: str
) -> None:
    assert 400 <= s3(method, key, DOCUMENTS[name], query=query).status < 500


def test_a_document_of_a_thousand_keys_in_any_known_encoding_is_read(s3: Client) -> None:
    text = '<?xml version="1.0" encoding="UTF-16"?>' + delete_document("ä").decode()
    s3.put("ä", b"x")

    assert 1000 == len(
        document(s3, delete_document(*(f"k{n}" for n in range(1000)))).elements("Key")
    )
    assert 200 == document(s3, text.encode("utf-16")).status
    assert 404 == s3.get("ä").status


# -- numbers ---------------------------------------------------------------------------------------

NUMBERS = ("9" * 5000, "٣", "1_0", "+1", "-1", " 1", "1 ", "1.0", "1e3", "0x1", "²", "１")


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("where", ["max-keys", "partNumber", "X-Amz-Expires", "part"])
def test_a_number_is_made_of_digits(s3: Client, where: str, value: str) -> None:
    if where == "max-keys":
        replies = [s3.get(query=[("list-type", "2"), (where, value)])]
    elif where == "partNumber":
        replies = [s3.get("canary", query=[(where, value)])]
        replies += [s3.put("canary", b"x", query=[(where, value), ("uploadId", "0" * 32)])]
    elif where == "part":
        upload = s3.post("m", uploads="").element("UploadId")
        part = f"<Part><PartNumber>{value}</PartNumber><ETag>x</ETag></Part>"
        body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()
        replies = [s3.post("m", body, uploadId=upload)]
        s3.delete("m", uploadId=upload)
    else:
        url = s3.presign("GET", "canary").replace("X-Amz-Expires=900", f"{where}={value.strip()}x")
        replies = [s3.fetch(url.encode("ascii", "ignore").decode())]

    assert all(400 <= reply.status < 500 for reply in replies)


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    "name", ["range", "x-amz-decoded-content-length", "x-amz-write-offset-bytes", "x-amz-date",
             "x-amz-copy-source-range"]
)  # fmt: skip
def test_a_header_with_a_strange_number_is_no_bug(s3: Client, name: str, value: str) -> None:
    sent = value.encode().decode("latin-1")
    sent = {"range": f"bytes={sent}-", "x-amz-copy-source-range": f"bytes={sent}-{sent}"}.get(
        name, sent
    )
    reply = s3.get("canary", {name: sent}) if name == "range" else s3.put("n", b"x", {name: sent})

    assert reply.status < 500
    s3.delete("n")


def test_numbers_are_read(s3: Client) -> None:
    assert "1" == s3.get(list_type=2, max_keys=1).element("MaxKeys")
    assert 206 == s3.get("canary", {"range": "bytes=0-1"}).status


# -- other people's things -------------------------------------------------------------------------


def test_ids_and_sources_of_another_bucket_are_not_there(world: Server, s3: Client) -> None:
    other = world.client("other-key", bucket="other")
    other.put("secret", b"other's")
    upload = other.post("m", uploads="").element("UploadId")
    other.put("m", b"part", partNumber=1, uploadId=upload)
    complete = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part>"
    source = {"x-amz-copy-source": "/other/secret"}
    mine = s3.post("n", uploads="").element("UploadId")
    answers = {
        "part": s3.put("m", b"x", partNumber=1, uploadId=upload),
        "parts": s3.get("m", uploadId=upload),
        "complete": s3.post("m", complete + b"</CompleteMultipartUpload>", uploadId=upload),
        "abort": s3.delete("m", uploadId=upload),
        "another key of mine": s3.put("m", b"x", partNumber=1, uploadId=mine),
        "copy": s3.put("copied", b"", source),
        "part copy": s3.put("n", b"", source, partNumber=1, uploadId=mine),
        "rename": s3.put("moved", b"", {"x-amz-rename-source": "/other/secret"}, renameObject=""),
        "an id that is a path": s3.put("m", b"x", partNumber=1, uploadId="../../other/x"),
    }

    assert all(400 <= reply.status < 500 for reply in answers.values()), answers
    assert b"other's" == other.get("secret").body
    assert ["1"] == other.get("m", uploadId=upload).elements("PartNumber")
    assert 200 == s3.put("n", b"x", partNumber=1, uploadId=mine).status
    s3.delete("n", uploadId=mine)


# -- signatures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x-amz-copy-source", "x-amz-acl", "x-amz-meta-evil", "x-amz-tagging"]
)
def test_a_header_added_to_a_signed_request_is_refused(s3: Client, name: str) -> None:
    value = {"x-amz-copy-source": "/media/canary", "x-amz-acl": "public-read"}.get(name, "a=b")
    sending = s3.sign("PUT", "/media/added", [], {}, UNSIGNED)
    url = s3.presign("PUT", "added")

    assert 403 == s3.send("PUT", "/media/added", {**sending, name: value}, b"x").status
    assert 403 == s3.fetch(url, "PUT", b"x", {name: value}).status
    assert 404 == s3.get("added").status
    assert 200 == s3.send("PUT", "/media/added", {**sending, "x-other": "v"}, b"x").status
    assert 200 == s3.fetch(url, "PUT", b"x").status
    s3.delete("added")


def test_two_signatures_at_once_are_refused(s3: Client) -> None:
    url = s3.presign("GET", "canary")
    sending = s3.sign("GET", "/media/canary", [], {}, EMPTY)

    assert 400 == s3.fetch(url, headers={"authorization": sending["authorization"]}).status
    assert 400 == s3.fetch(url + "&AWSAccessKeyId=attack-key&Signature=x&Expires=9999999999").status
    assert 400 == s3.send("GET", "/media/canary", [*sending.items(), ("authorization", "x")]).status
    assert 200 == s3.fetch(url).status


@pytest.mark.parametrize(
    "mode",
    ["STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER",
     "STREAMING-UNSIGNED-PAYLOAD", "STREAMING-", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-X",
     "streaming-unsigned-payload-trailer", "UNSIGNED", "unsigned-payload", "x" * 64],
)  # fmt: skip
def test_an_unknown_payload_mode_is_refused(s3: Client, mode: str) -> None:
    sending = s3.sign("PUT", "/media/mode", [], {"x-amz-decoded-content-length": "1"}, mode)

    reply = s3.send("PUT", "/media/mode", sending, b"1\r\nx\r\n0\r\n\r\n")
    assert reply.status in (400, 501)
    assert 404 == s3.get("mode").status


@pytest.mark.parametrize("mode", [SIGNED_CHUNKS, UNSIGNED_TRAILER, UNSIGNED])
def test_no_mode_replaces_the_signature(s3: Client, mode: str) -> None:
    """CVE-2025-31489 and CVE-2026-41145 of MinIO, SeaweedFS #7912."""
    crc = {"x-amz-checksum-crc32": base64.b64encode(b"\0\0\0\0").decode()}
    body = s3.aws_chunked(b"", mode, {}, trailers=crc) if mode != UNSIGNED else b"x"
    sending = s3.sign("PUT", "/media/mode", [], {"x-amz-decoded-content-length": "0"}, mode)
    wrong = sending["authorization"][:-1] + ("0" if sending["authorization"][-1] != "0" else "1")
    without = {name: value for name, value in sending.items() if name != "authorization"}
    claim = "?X-Amz-Credential=attack-key%2F20260101%2Fus-east-1%2Fs3%2Faws4_request"

    assert 403 == s3.send("PUT", "/media/mode", {**sending, "authorization": wrong}, body).status
    assert 403 == s3.send("PUT", "/media/mode", without, body).status
    assert 400 <= s3.send("PUT", "/media/mode" + claim, without, body).status < 500
    assert 404 == s3.get("mode").status


def test_a_request_cannot_be_replayed_after_its_time(s3: Client) -> None:
    def at(minutes: int) -> Reply:
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + 60 * minutes))
        then = Client(s3.address, s3.access_key, s3.secret_key, bucket="media", now=now)
        return then.get("canary")

    got = [at(minutes) for minutes in (-16, -14, 14, 16)]
    assert [403, 200, 200, 403] == [reply.status for reply in got]
    assert "RequestTimeTooSkewed" == got[0].error


def test_chunks_in_another_order_are_refused(s3: Client) -> None:
    body = b"".join(bytes([letter]) * 8192 for letter in b"abc")

    def swap(data: bytes) -> bytes:
        heads = [m.start() for m in re.finditer(rb"2000;chunk-signature=", data)]
        first, second, third = heads
        return data[:first] + data[second:third] + data[first:second] + data[third:]

    reply = s3.put("order", body, payload=SIGNED_CHUNKS, chunk=8192, tamper=swap)
    assert (403, "SignatureDoesNotMatch") == (reply.status, reply.error)
    assert 404 == s3.get("order").status
    assert 200 == s3.put("order", body, payload=SIGNED_CHUNKS, chunk=8192).status
    assert body == s3.get("order").body
    s3.delete("order")


# -- active content --------------------------------------------------------------------------------

ACTIVE = ("text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xhtml+xml",
          "application/xml", "text/xml", "multipart/x-mixed-replace", " text/html",
          "text/html,image/png", "image/svg+xml;x", "application/mathml+xml",
          "image/png, text/html", "image/png;x=y,\tText/HTML", "a/b,c/d,image/svg+xml",
          "image/png, application/xml;x")  # fmt: skip


@pytest.mark.parametrize("kind", ACTIVE)
def test_active_content_is_sandboxed(world: Server, kind: str) -> None:
    owner = world.client(bucket="public")
    owner.put("page", b"<script>alert(1)</script>", {"content-type": kind})
    owner.put("image", b"<script>alert(1)</script>", {"content-type": "image/png"})
    got = owner.anonymous().get("page")
    overridden = owner.get("image", query=[("response-content-type", kind)])
    ranged = owner.anonymous().get("page", {"range": "bytes=0-3"})
    headed = owner.anonymous().head("page")

    for reply in (got, overridden, ranged, headed):
        assert reply.status in (200, 206)
        assert "sandbox" == reply.headers["content-security-policy"]
        assert "nosniff" == reply.headers["x-content-type-options"]


@pytest.mark.parametrize("kind", ["\x01text/html", "\ntext/html", "image/png,\r\ntext/html"])
def test_active_content_behind_what_is_sent_as_a_blank_is_sandboxed(
    world: Server, kind: str
) -> None:
    owner = world.client(bucket="public")
    owner.put("image", b"<script>alert(1)</script>", {"content-type": "image/png"})
    headers = owner.get("image", query=[("response-content-type", kind)]).headers

    assert headers["content-type"].endswith("text/html")
    assert "sandbox" == headers["content-security-policy"]


def test_a_long_type_takes_no_time(world: Server) -> None:
    owner = world.client(bucket="public")
    owner.put("image", b"x", {"content-type": "image/png"})
    began = time.monotonic()
    for piece in (" ", ",", ", ", "x", "xml-"):
        text = "a/b," + piece * (40_000 // len(quote(piece)))
        assert 200 == owner.get("image", query=[("response-content-type", text)]).status

    assert time.monotonic() - began < 5


def test_what_is_not_active_is_not_sandboxed_and_never_sniffed(world: Server) -> None:
    for bucket, kind in (("public", "image/png"), ("public", "text/plain"), ("html", "text/html"),
                         ("public", "image/png, text/plain;text/html")):  # fmt: skip
        owner = world.client(bucket=bucket)
        owner.put("x", b"<script>alert(1)</script>", {"content-type": kind})
        headers = owner.anonymous().get("x").headers
        assert "content-security-policy" not in headers
        assert ("nosniff", kind) == (headers["x-content-type-options"], headers["content-type"])


def test_errors_are_no_pages(world: Server) -> None:
    target = "/public/<script>alert(1)</script>"
    got = exchange(world, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    assert 404 == got[0][0]
    assert b"<script>" not in got[0][1]
    assert b"content-type: application/xml" in got[0][1].lower()


# -- the log ---------------------------------------------------------------------------------------


def entries(server: Server, wanted: str) -> list[str]:
    """The lines of the log with that text, when there is one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [line for line in server.log.split("\n") if wanted in line]
        if found:
            return found
        assert time.monotonic() < deadline, server.log
        time.sleep(0.01)


@pytest.fixture(params=["text", "json"])
def logged(request: pytest.FixtureRequest, serve: Serve) -> Server:
    server = serve(INI.replace("LOG", request.param), trust_proxy="yes")
    server.kind = request.param  # type: ignore[attr-defined]
    return server


def test_no_secret_and_no_signature_is_logged(logged: Server) -> None:
    s3 = logged.client(bucket="media")
    s3.put("a", b"x")
    signatures = [signature_in(s3)]
    for version in (2, 4):
        url = s3.presign("GET", "a", version=version)
        for disguise in ("Signature", "Signatur%65", "%53ignature"):
            reply = s3.fetch(url.replace("Signature=", disguise + "="))
            assert reply.status == 200
        signatures.append(url.rpartition("Signature=")[2].partition("&")[0])
    upload = form(s3, "b", b"x")
    assert upload.status == 204
    wrong = Client(s3.address, "attack-key", "wrong", bucket="media")
    wrong.get("a")
    signatures.append(signature_in(wrong))
    entries(logged, "SignatureDoesNotMatch")

    for text in (SECRET, *signatures):
        assert text not in logged.log


MANGLED = {  # a URL on its way from a page or a log to who opens it
    "copied out of HTML": lambda target: target.replace("&", "&amp;"),
    "an escaped question mark": lambda target: target.replace("?", "%3F"),
    "escaped as a whole": lambda target: quote(target, safe="/"),
    "escaped twice": lambda target: quote(quote(target, safe="/"), safe="/"),
    "escaped three times": lambda target: quote(quote(quote(target)), safe="/"),
    "a blank": lambda target: target.replace("Signature=", "Signature+="),
    "semicolons": lambda target: target.replace("&", ";"),
    "in a value": lambda target: target.replace("&X-Amz-Signature", "%26X-Amz-Signature"),
    "copied out of JSON": lambda target: target.replace("&", r"\u0026").replace("=", r"\u003d"),
    "JSON, escaped": lambda target: target.replace("&", "%5Cu0026").replace("=", "%5Cu003D"),
    "in two places": lambda target: target + "&a=%26" + target.rpartition("&")[2],
}


@pytest.mark.parametrize("name", MANGLED)
def test_nor_is_one_of_a_url_that_was_mangled(logged: Server, name: str) -> None:
    """It did not open it, and is live all the same."""
    s3 = logged.client(bucket="media")
    url = urlsplit(s3.presign("GET", "a"))
    target = MANGLED[name](f"{url.path}?{url.query}")

    status = s3.send("GET", target, {"host": url.netloc}).status

    assert status in (400, 403)
    (line,) = entries(logged, "/media/a")
    assert url.query.rpartition("=")[2] not in line


@pytest.mark.parametrize("target", [
    "/media/year=2024/a%3Db.txt", "/media?list-type=2&prefix=signatures%2Fa%3D1&delimiter=%2F",
    "/media/signature-a.png?versionId=1", "/media/100%25?=", "/media/a?Signature=...&Expires=1",
    "/media/signature%2Fa", "/media/a?x=%26Signature=...",
])  # fmt: skip
def test_what_is_no_secret_stands_in_the_log(target: str) -> None:
    assert target == s3mini.hide_secrets(target)


def signature_in(client: Client) -> str:
    return dict(client.sent)["authorization"].rpartition("Signature=")[2]


def test_a_wrong_signature_is_logged_with_its_key_and_the_reason(logged: Server) -> None:
    Client(logged.address, "attack-key", "wrong", bucket="media").get("a")
    Client(logged.address, "nobody-key", "wrong", bucket="media").get("a")

    assert "attack-key" in entries(logged, "SignatureDoesNotMatch")[0]
    assert "nobody-key" in entries(logged, "InvalidAccessKeyId")[0]


@pytest.mark.parametrize("how", ["header", "V4 URL", "V2 URL"])
def test_a_secret_that_is_given_for_the_key_is_not_logged(logged: Server, how: str) -> None:
    """The two are easily confused."""
    swapped = Client(logged.address, SECRET, "attack-key", bucket="media")
    if how == "header":
        reply = swapped.get("swapped")
    else:
        reply = swapped.fetch(swapped.presign("GET", "swapped", version=4 if "4" in how else 2))

    assert "InvalidAccessKeyId" == reply.error
    assert entries(logged, "swapped")
    assert SECRET not in logged.log + reply.body.decode()


INJECTIONS: dict[str, Callable[[str], bytes]] = {
    "in the path": lambda text: (
        b"GET /media/" + text.encode() + b"%0d%0aforged HTTP/1.1\r\nHost: x\r\n"
    ),
    "in the query": lambda text: (
        b"GET /media/a?x=%0aforged" + text.encode() + b" HTTP/1.1\r\nHost: x\r\n"
    ),
    "in the address": lambda text: (
        b"GET /media/" + text.encode() + b" HTTP/1.1\r\nHost: x\r\n"
        b"X-Forwarded-For: 1.2.3.4 admin GET /forged 200 -\r\n"
    ),
    "in bytes": lambda text: (
        b"GET /media/" + text.encode() + b"\xe2\x80\xa8\x9b31mforged HTTP/1.1\r\nHost: x\r\n"
    ),
    "in the key": lambda text: (
        b"GET /media/" + text.encode() + b" HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: AWS4-HMAC-SHA256 Credential=evil\xe2\x80\xa8\x1b\xa0forged/"
        b"20260101/us-east-1/"
    b"s3/"
        b"aws4_request, SignedHeaders=host, Signature=00\r\nx-amz-date: 20260101T000000Z\r\n"
    ),
    "in the key of a URL of version 2": lambda text: (
        b"GET /media/" + text.encode() + b"?AWSAccessKeyId=x%0aforged%20attack-key%20DELETE%07"
        b"&Signature=a&Expires=1 HTTP/1.1\r\nHost: x\r\n"
    ),
    "in the key of a URL": lambda text: (
        b"GET /media/" + text.encode() + b"?X-Amz-Signature=1&X-Amz-Algorithm=AWS4-HMAC-SHA256"
        b"&X-Amz-Credential=a%1b[31mRED%07%7f/20260101/u/s3/aws4_request&X-Amz-Expires=5"
        b"&X-Amz-Date=20260101T000000Z&X-Amz-SignedHeaders=host HTTP/1.1\r\nHost: x\r\n"
    ),
}


@pytest.mark.parametrize("name", INJECTIONS)
def test_nothing_is_forged_in_the_log(logged: Server, name: str) -> None:
    marker = "marker" + str(len(name))
    got = exchange(logged, INJECTIONS[name](marker) + b"Connection: close\r\n\r\n")
    assert 400 <= got[0][0] < 500
    logged.client(bucket="media").get("after")
    entries(logged, "after")
    log = logged.log

    assert log.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log)
    found = [line for line in log.splitlines() if marker in line]
    for line in found:
        if logged.kind == "json":  # type: ignore[attr-defined]
            assert {"peer", "status", "code"} <= json.loads(line).keys()
        else:
            assert 10 == len(line.split(" "))
    assert not any(line.startswith("forged") for line in log.splitlines())


def test_nothing_is_forged_in_the_log_by_a_form(logged: Server) -> None:
    s3 = logged.client("nobody\nforged line\x1b", "wrong", bucket="media")
    assert 403 == form(s3, "x").status

    line = entries(logged, "InvalidAccessKeyId")[0]
    assert "nobody" in line
    assert "forged" in line
    assert "\x1b" not in line
    if logged.kind == "text":  # type: ignore[attr-defined]
        assert r"nobody\x0aforged\x20line\x1b" == line.split(" ")[2]


# -- who guesses -----------------------------------------------------------------------------------


def guess(server: Server, address: str, count: int, key: str = "attack-key") -> list[int]:
    wrong = Client(server.address, key, "wrong", bucket="media")
    headers = {"x-forwarded-for": address} if address else {}
    return [wrong.get("a", headers).status for _ in range(count)]


@pytest.mark.parametrize("key", ["attack-key", "nobody-key"])
def test_who_signs_wrongly_again_and_again_is_slowed_down(logged: Server, key: str) -> None:
    first = guess(logged, "192.0.2.1", 40, key)
    right = logged.client(bucket="media")
    here = right.get("", {"x-forwarded-for": "192.0.2.1"}, list_type=2)
    chain = right.get("", {"x-forwarded-for": "198.51.100.9, 192.0.2.1"}, list_type=2)
    elsewhere = right.get("", {"x-forwarded-for": "192.0.2.1, 192.0.2.2"}, list_type=2)

    signs_nothing = right.anonymous().get("a", {"x-forwarded-for": "192.0.2.1"})

    assert [403] * 25 == first[:25]
    assert 503 == first[-1]
    assert (403, "AccessDenied") == (signs_nothing.status, signs_nothing.error)
    assert (503, "SlowDown") == (here.status, here.error)
    assert int(here.headers["retry-after"]) > 0
    assert 503 == chain.status
    assert 200 == elsewhere.status
    assert 200 == right.get(list_type=2).status


@pytest.mark.parametrize("address", ["198.51.100.7:{}", "[2001:db8:7::1]:{}"])
def test_a_port_behind_the_address_makes_no_other_guesser(logged: Server, address: str) -> None:
    """As some proxies send it."""
    statuses = [guess(logged, address.format(port), 1)[0] for port in range(40_000, 40_040)]

    assert (403, 503) == (statuses[0], statuses[-1])
    assert 503 == guess(logged, address.partition("]")[0].lstrip("[").partition(":{")[0], 1)[0]


def test_who_signs_rightly_is_never_slowed_down(logged: Server) -> None:
    s3 = logged.client(bucket="media")
    headers = {"x-forwarded-for": "192.0.2.1"}

    assert {404} == {s3.get("none", headers).status for _ in range(60)}


def test_a_proxy_that_is_not_trusted_is_not_slowed_down(world: Server) -> None:
    assert {403} == set(guess(world, "", 50))
    assert {403} == set(guess(world, "192.0.2.1", 50))


NEAR = ("unix", "127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "10.0.0.1", "172.16.0.1",
        "172.17.0.1", "172.31.255.255", "192.168.1.1", "::ffff:192.168.1.1", "169.254.1.1",
        "100.64.0.1", "fe80::1", "fe80::1%eth0", "fd00::1", "fc00:1::2")  # fmt: skip
FAR = ("128.0.0.1", "11.0.0.1", "172.15.0.1", "172.32.0.1", "192.169.1.1", "169.253.1.1",
       "100.63.0.1", "100.128.0.1", "::ffff:8.8.8.8", "2001:db8::1", "fec0::1", "::2", "f::1",
       "100.6.4.1")  # fmt: skip


@pytest.mark.parametrize("peer", [*NEAR, *FAR])
def test_a_peer_that_may_be_a_proxy_is_not_counted_unless_it_is_trusted(peer: str) -> None:
    """Docker's gateway or nginx on another machine: one guesser would lock out all its clients."""
    head = s3mini.parse_head(b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")

    def counted(trust_proxy: bool) -> str:
        config = SimpleNamespace(trust_proxy=trust_proxy)
        server = SimpleNamespace(app=SimpleNamespace(config=config))
        connection = SimpleNamespace(peer=peer, server=server)
        return s3mini.Connection.address_of(connection, head)  # type: ignore[arg-type]

    assert (peer if peer in FAR else "") == counted(False)
    assert "192.0.2.1" == counted(True)


def test_a_whole_64_of_ipv6_is_one_guesser(logged: Server) -> None:
    got = [guess(logged, f"2001:db8::{number:x}", 1)[0] for number in range(40)]
    got += guess(logged, "2001:db8:0:0:ffff::1%1", 1)
    right = logged.client(bucket="media")

    assert 503 == got[-2]
    assert 503 == got[-1]
    assert 503 == right.get("", {"x-forwarded-for": "2001:db8::1"}, list_type=2).status
    assert 200 == right.get("", {"x-forwarded-for": "2001:db8:0:1::1"}, list_type=2).status


def test_an_ipv4_address_in_ipv6_is_that_address() -> None:
    failures = s3mini.Failures()
    for number in range(40):
        failures.add(f"::ffff:192.0.2.{number}", 0.0)
    failures.check("::ffff:192.0.2.1", 0.0)
    for _ in range(40):
        failures.add("::ffff:192.0.2.1", 0.0)

    with pytest.raises(s3mini.S3Error):
        failures.check("192.0.2.1", 0.0)
    failures.check("::ffff:192.0.2.2", 0.0)


def test_a_clock_that_is_set_back_locks_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = 600.0  # seconds
    real_time = time.time
    monkeypatch.setattr(s3mini, "is_near", lambda peer: False)
    monkeypatch.setattr(time, "time", lambda: real_time() + ahead)
    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.rpartition("/")[2], fake.access_key, fake.secret_key, "media")
        wrong = replace(s3, secret_key="wrong").get("none")
        ahead = 0.0

        assert (403, 404) == (wrong.status, s3.get("none").status)


def test_who_goes_on_failing_is_not_forgotten_for_others() -> None:
    failures = s3mini.Failures()
    for number in range(s3mini.MAX_ADDRESSES + 100):
        failures.add(f"192.0.{number // 256}.{number % 256}", 0.0)
        if number % 100 == 0:
            failures.add("203.0.113.1", 0.0)

    with pytest.raises(s3mini.S3Error):
        failures.check("203.0.113.1", 0.0)
    failures.check("192.0.0.1", 0.0)


def test_who_signs_nothing_is_not_slowed_down(logged: Server) -> None:
    """An office's one guesser does not take the pictures from its other pages."""
    there = {"x-forwarded-for": "192.0.2.1"}
    public = logged.client(bucket="public")
    public.put("image", b"x")
    guess(logged, "192.0.2.1", 40)

    assert 503 == public.get("image", there).status
    assert b"x" == public.anonymous().get("image", there).body
    assert 200 == public.anonymous().get("image", there, query="v=3").status
    assert 503 == public.fetch(public.presign("GET", "image"), headers=there).status
    assert 503 == public.fetch(public.presign("GET", "image", version=2), headers=there).status
    assert 503 == public.anonymous().post("", b"", there).status  # a form may carry a signature


def test_guesses_in_parallel_are_counted_too(logged: Server) -> None:
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda: got.extend(guess(logged, "192.0.2.3", 10)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert got.count(403) < 50
    assert got.count(503) > 25
