"""The head of a request: bytes in, one meaning or one error out. And the head of an answer."""

from __future__ import annotations

import email.utils
import random
import socket
from typing import Optional

import pytest

import s3mini

HOST = b"Host: box:9000\r\n"


def code_of(data: bytes) -> tuple[str, int]:
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.parse_head(data)
    return caught.value.code, caught.value.status


def get(*lines: bytes, first: bytes = b"GET /b/k HTTP/1.1") -> bytes:
    """A head of these lines, after a Host."""
    return b"\r\n".join([first, HOST[:-2], *lines, b"", b""])


# --- Heads with one meaning -----------------------------------------------------------------------

ACCEPTED = {  # name: (bytes, what must be so)
    "plain": (get(), {"method": "GET", "path": "/b/k", "query_text": "", "host": "box:9000"}),
    "slashes are kept": (get(first=b"GET //b//k HTTP/1.1"), {"path": "//b//k"}),
    "dots are kept": (get(first=b"GET /b/../k/./ HTTP/1.1"), {"path": "/b/../k/./"}),
    "escapes are kept": (get(first=b"GET /b/%2f%2F%41 HTTP/1.1"), {"path": "/b/%2f%2F%41"}),
    "bytes above ASCII are kept": (
        get(first=b"GET /b/\xc3\xa9 HTTP/1.1"),
        {"path": "/b/\xc3\xa9"},
    ),
    "query": (
        get(first=b"GET /b?a=1&b&c=&a=2&d=x%20y+z HTTP/1.1"),
        {
            "path": "/b",
            "query_text": "a=1&b&c=&a=2&d=x%20y+z",
            "pairs": [("a", "1"), ("b", ""), ("c", ""), ("a", "2"), ("d", "x y z")],
            "query": {"a": "1", "b": "", "c": "", "d": "x y z"},
        },
    ),
    "question marks in the query": (
        get(first=b"GET /b?x=a?b=c HTTP/1.1"),
        {"path": "/b", "pairs": [("x", "a?b=c")]},
    ),
    "empty pieces of a query": (
        get(first=b"GET /b?&&a&&=b HTTP/1.1"),
        {"query": {"a": "", "": "b"}},
    ),
    "absolute form": (
        get(first=b"GET http://box:9000/b/k?x HTTP/1.1"),
        {"path": "/b/k", "query_text": "x", "host": "box:9000"},
    ),
    "absolute form without a path": (get(first=b"GET http://box:9000 HTTP/1.1"), {"path": "/"}),
    "absolute form overrides the Host": (
        get(first=b"GET http://Other/b HTTP/1.1"),
        {"host": "other", "path": "/b"},
    ),
    "asterisk": (get(first=b"OPTIONS * HTTP/1.1"), {"method": "OPTIONS", "path": "/"}),
    "methods are kept": (get(first=b"pUt /b HTTP/1.1"), {"method": "pUt"}),
    "header names are lower case": (
        get(b"X-Amz-Meta-A: B"),
        {"headers": {"host": "box:9000", "x-amz-meta-a": "B"}},
    ),
    "blanks around a value": (
        get(b"A: \t b \t c\t "),
        {"headers": {"host": "box:9000", "a": "b \t c"}},
    ),
    "no blank before a value": (get(b"A:b:c"), {"headers": {"host": "box:9000", "a": "b:c"}}),
    "empty value": (get(b"A:"), {"headers": {"host": "box:9000", "a": ""}}),
    "repeated header": (get(b"A: 1", b"a: 2"), {"headers": {"host": "box:9000", "a": "1,2"}}),
    "bytes in a value": (get(b"A: \xff\xc3"), {"headers": {"host": "box:9000", "a": "\xff\xc3"}}),
    "length": (get(b"Content-Length: 5"), {"length": 5, "has_body": True, "is_chunked": False}),
    "length of nothing": (get(b"Content-Length: 0"), {"length": 0, "has_body": False}),
    "no length": (get(), {"length": None, "has_body": False}),
    "two equal lengths": (get(b"Content-Length: 5", b"Content-Length: 5"), {"length": 5}),
    "chunked": (
        get(b"Transfer-Encoding: Chunked"),
        {"length": None, "is_chunked": True, "has_body": True},
    ),
    "kept open": (get(), {"keeps_alive": True}),
    "closed": (get(b"Connection: close"), {"keeps_alive": False}),
    "closed among other words": (get(b"Connection: x, CLOSE ,y"), {"keeps_alive": False}),
    "HTTP/1.0 closes": (b"GET / HTTP/1.0\r\n\r\n", {"keeps_alive": False, "host": "", "minor": 0}),
    "HTTP/1.0 kept open": (
        b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        {"keeps_alive": True},
    ),
    "host in capitals": (b"GET / HTTP/1.1\r\nHost: BOX\r\n\r\n", {"host": "box"}),
    "host IPv6": (b"GET / HTTP/1.1\r\nHost: [::1]:9000\r\n\r\n", {"host": "[::1]:9000"}),
    "no headers at all": (b"GET / HTTP/1.0\r\n\r\n", {"headers": {}}),
}

REFUSED = {  # name: (bytes, the error)
    "nothing": b"",
    "empty line": b"\r\n\r\n",
    "no empty line": b"GET / HTTP/1.1\r\n" + HOST,
    "bytes behind the empty line": get() + b"x",
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: box\n\n",
    "one bare line feed": b"GET / HTTP/1.1\r\nHost: box\nA: 1\r\n\r\n",
    "bare CR": get(b"A: 1\rContent-Length: 5"),
    "bare CR at the end of a value": get(b"A: 1\r"),
    "folded line": get(b"A: 1", b"\tContent-Length: 5"),
    "folded first line": b"GET / HTTP/1.1\r\n Host: box\r\n\r\n",
    "no colon": get(b"A 1", b"Content-Length: 5"),
    "From line": get(b"From x"),
    "space before the colon": get(b"Content-Length : 5"),
    "space in a name": get(b"A B: 1"),
    "no name": get(b": 1"),
    "byte in a name": get(b"\xc3\xa9: 1"),
    "NUL in a value": get(b"A: 1\x002"),
    "NUL in the target": get(first=b"GET /b\x00k HTTP/1.1"),
    "escape byte in a value": get(b"A: \x1b[31m"),
    "DEL in a value": get(b"A: \x7f"),
    "two spaces": get(first=b"GET  /b HTTP/1.1"),
    "tab for a space": get(first=b"GET\t/b HTTP/1.1"),
    "vertical tab": get(first=b"GET /b\x0bc HTTP/1.1"),
    "space in the target": get(first=b"GET /b c HTTP/1.1"),
    "space behind the version": get(first=b"GET /b HTTP/1.1 "),
    "line end before it": b"\r\n" + get(),
    "version in small letters": get(first=b"GET /b http/1.1"),
    "version of three digits": get(first=b"GET /b HTTP/1.11"),
    "relative target": get(first=b"GET b HTTP/1.1"),
    "authority form": get(first=b"CONNECT box:443 HTTP/1.1"),
    "asterisk for GET": get(first=b"GET * HTTP/1.1"),
    "another scheme": get(first=b"GET ftp://box/b HTTP/1.1"),
    "absolute form with a user": get(first=b"GET http://a@box/b HTTP/1.1"),
    "absolute form without a host": get(first=b"GET http:///b HTTP/1.1"),
    "no Host": b"GET / HTTP/1.1\r\nA: 1\r\n\r\n",
    "two different Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two equal Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",  # [RFC 9112 §3.2]
    "Host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "two words in the Host": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "Host not ASCII": b"GET / HTTP/1.1\r\nHost: b\xc3\xbcx\r\n\r\n",
    "Host with a bad port": b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "two different lengths": get(b"Content-Length: 5", b"Content-Length: 6"),
    "two spellings of a length": get(b"Content-Length: 5", b"Content-Length: 05"),
    "length list": get(b"Content-Length: 5, 5"),
    "length empty": get(b"Content-Length:"),
    "length with a sign": get(b"Content-Length: +5"),
    "length negative": get(b"Content-Length: -5"),
    "length hexadecimal": get(b"Content-Length: 0x5"),
    "length with an underscore": get(b"Content-Length: 1_0"),
    "length above ASCII": get(b"Content-Length: \xb2"),
    "length of 19 digits": get(b"Content-Length: " + b"1" * 19),
    "length and chunked": get(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunked and length": get(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "chunked twice": get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunked in HTTP/1.0": b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two authorizations": get(b"Authorization: a", b"Authorization: a"),
    "two ranges": get(b"Range: bytes=0-1", b"Range: bytes=2-3"),
    "two dates": get(b"x-amz-date: 1", b"X-Amz-Date: 2"),
    "HTTP/1.9": (get(first=b"GET /b HTTP/1.9"), ("HttpVersionNotSupported", 505)),
    "HTTP/2.0": (get(first=b"GET /b HTTP/2.0"), ("HttpVersionNotSupported", 505)),
    "HTTP/0.9 by name": (get(first=b"GET /b HTTP/0.9"), ("HttpVersionNotSupported", 505)),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\n", ("HttpVersionNotSupported", 505)),
    "gzip": (get(b"Transfer-Encoding: gzip, chunked"), ("NotImplemented", 501)),
    "identity": (get(b"Transfer-Encoding: identity"), ("NotImplemented", 501)),
    "chunked with a blank in it": (get(b"Transfer-Encoding: chun ked"), ("NotImplemented", 501)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_good_head_has_one_meaning(name: str) -> None:
    data, expected = ACCEPTED[name]

    head = s3mini.parse_head(data)

    assert expected == {n: getattr(head, n) for n in expected}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_of_two_meanings_or_none_is_refused(name: str) -> None:
    case = REFUSED[name]
    data, expected = case if isinstance(case, tuple) else (case, ("BadRequest", 400))

    assert expected == code_of(data)


@pytest.mark.parametrize(
    "query", [b"a=%", b"a=%4", b"a=%zz", b"%ff=1", b"a=%C3", b"a=\xff", b"a=%u0041"]
)
def test_a_query_that_is_no_escaped_utf8_is_refused(query: bytes) -> None:
    data = get(first=b"GET /b?" + query + b" HTTP/1.1")

    with pytest.raises(s3mini.S3Error) as caught:
        _ = s3mini.parse_head(data).query

    assert ("InvalidURI", 400) == (caught.value.code, caught.value.status)


# --- From a connection ----------------------------------------------------------------------------


class Drip:
    """A socket that gives out at most `size` bytes at a time."""

    def __init__(self, sock: socket.socket, size: int):
        self._sock, self._size = sock, size

    def recv(self, size: int) -> bytes:
        return self._sock.recv(min(size, self._size))

    def setsockopt(self, *values: object) -> None:
        self._sock.setsockopt(*values)  # type: ignore[call-overload]

    def settimeout(self, seconds: float) -> None:
        self._sock.settimeout(seconds)


def received(data: bytes, size: int) -> tuple[bytes, bytes]:
    """The head that a stream finds in data that comes in drops, and what it leaves."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        stream = s3mini.Stream(Drip(ours, size))  # type: ignore[arg-type]
        head, rest = stream.read_head(), b""
        while more := stream.read(4096):
            rest += more
        return head, rest


@pytest.mark.parametrize("size", [1, 7, 65536])
@pytest.mark.parametrize("name", ACCEPTED)
def test_a_head_is_found_whatever_its_packets_and_what_follows_is_left(
    name: str, size: int
) -> None:
    data = ACCEPTED[name][0]
    for trailing in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"\0\xff"):
        assert (data, trailing) == received(data + trailing, size)


@pytest.mark.parametrize("size", [1, 65536])
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_head_does_not_become_good_in_pieces(name: str, size: int) -> None:
    case = REFUSED[name]
    data = case[0] if isinstance(case, tuple) else case
    head, _ = received(data, size)
    if head == data:
        code_of(head)
    elif name not in ("bytes behind the empty line", "line end before it"):
        assert b"" == head


def test_empty_lines_before_a_head_are_skipped() -> None:
    """As old browsers send them behind a body. [RFC 9112 §2.2]"""
    assert (get(), b"x") == received(b"\r\n\r\n" + get() + b"x", 1)


def test_a_head_that_breaks_off_is_none() -> None:
    for end in range(len(get())):
        assert b"" == received(get()[:end], 65536)[0]


@pytest.mark.parametrize("size", [1, 65536])
def test_who_begins_with_tls_is_refused_at_once(size: int) -> None:
    with pytest.raises(s3mini.S3Error, match="plain http"):
        received(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", size)


@pytest.mark.parametrize("size", [1000, 65536])
def test_a_head_has_its_limit(size: int) -> None:
    line = b"A: " + b"x" * (s3mini.MAX_HEAD - len(get()) - 3)
    assert s3mini.MAX_HEAD + 2 >= len(get(line)) > s3mini.MAX_HEAD - 4
    assert get(line) == received(get(line), size)[0]

    for data in (get(line + b"xxxx"), b"x" * (s3mini.MAX_HEAD + 1)):
        with pytest.raises(s3mini.S3Error, match="header section"):
            received(data, size)


def test_heads_that_follow_each_other_are_found_one_by_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(get(b"A: 1") + get(b"A: 2") + b"body" + get(b"A: 3"))
        stream = s3mini.Stream(ours)

        assert get(b"A: 1") == stream.read_head()
        assert get(b"A: 2") == stream.read_head()
        assert b"body" == stream.read(4)
        assert get(b"A: 3") == stream.read_head()


# --- Noise ----------------------------------------------------------------------------------------

PIECES = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"\0", b"\x0b", b"\x85", b"\xa0",
    b"\xff",
    b"%", b"%zz", b"%00", b"?", b"#", b"&", b"=", b"//", b"..", b"http://", b"*", b"HTTP/1.1",
    b"HTTP/1.0", b"Host: x\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b",", b"0x", b"-", b"9" * 20,
]  # fmt: skip


def mutated(source: random.Random, data: bytes) -> bytes:
    for _ in range(source.randrange(1, 4)):
        at, to = sorted((source.randrange(len(data) + 1), source.randrange(len(data) + 1)))
        to = min(to, at + 4)
        piece = bytes([source.randrange(256)]) if source.random() < 0.5 else source.choice(PIECES)
        data = data[:at] + piece + data[source.choice((at, to)) :]
    return data


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_understood_safely_or_refused(seed: int) -> None:
    source = random.Random(seed)
    goods = [data for data, _ in ACCEPTED.values()]
    understood = 0
    for _ in range(4000):
        data = mutated(source, source.choice(goods))
        try:
            head = s3mini.parse_head(data)
        except s3mini.S3Error:
            continue
        understood += 1
        check_meaning(head)
        assert data.endswith(b"\r\n\r\n")

    assert 50 < understood < 3900


def check_meaning(head: s3mini.Head) -> None:
    text = "".join([head.method, head.path, head.query_text, head.host])
    text += "".join([n + v for n, v in head.headers.items()])
    assert not any(ord(c) < 32 and c != "\t" or ord(c) == 127 for c in text)
    assert head.path.startswith("/")
    assert " " not in head.path + head.query_text + head.host
    assert "?" not in head.path
    assert all(n == n.lower() and n.strip() == n and ":" not in n for n in head.headers)
    assert not (head.is_chunked and head.length is not None)
    assert head.length is None or 0 <= head.length < 10**18
    assert head.has_body == (head.is_chunked or bool(head.length))
    try:
        assert set(head.query) == {n for n, _ in head.pairs}
    except s3mini.S3Error as error:
        assert error.code == "InvalidURI"  # noqa: PT017


# --- Ranges and conditions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        ("bytes=0-0", 10, range(1)),
        ("bytes=0-9", 10, range(10)),
        ("bytes=2-5", 10, range(2, 6)),
        ("bytes=5-", 10, range(5, 10)),
        ("bytes=9-", 10, range(9, 10)),
        ("bytes=5-100", 10, range(5, 10)),
        ("bytes=-3", 10, range(7, 10)),
        ("bytes=-10", 10, range(10)),
        ("bytes=-100", 10, range(10)),
        ("bytes=00-05", 10, range(6)),
        ("bytes=0-18446744073709551615", 10, range(10)),
        # Java's SDK 1 writes an open end so: setRange(5)
        ("bytes=5-9223372036854775806", 10, range(5, 10)),
        ("bytes=-9223372036854775807", 10, range(10)),
        ("bytes=5-4", 10, None),
        ("bytes=-", 10, None),
        ("bytes=", 10, None),
        ("bytes", 10, None),
        ("", 10, None),
        ("lines=0-1", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=0x0-0x5", 10, None),
        ("bytes=-1-5", 10, None),
        ("bytes= -1", 10, None),
        ("bytes=0 -1", 10, None),
        ("bytes=+1-5", 10, None),
        ("bytes=1_0-", 10, None),
        ("bytes=\u0663-", 10, None),
        ("bytes=0-1\n", 10, None),
    ],
)
def test_a_range_is_understood_or_ignored(value: str, size: int, expected: Optional[range]) -> None:
    assert expected == s3mini.parse_range(value, size)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=10-20", 10),
        ("bytes=-0", 10),
        ("bytes=0-", 0),
        ("bytes=0-0", 0),
        ("bytes=-5", 0),
        ("bytes=18446744073709551615-", 10),
    ],
)
def test_a_range_of_no_byte_is_answered_with_the_size(value: str, size: int) -> None:
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.parse_range(value, size)

    assert ("InvalidRange", 416) == (caught.value.code, caught.value.status)
    assert {"content-range": f"bytes */{size}"} == caught.value.headers
    assert {"RangeRequested": value, "ActualObjectSize": size} == caught.value.fields


def test_every_range_of_a_small_object_is_what_a_slice_gives() -> None:
    data = bytes(range(6))
    for first in range(8):
        for last in range(first, 8):
            try:
                span = s3mini.parse_range(f"bytes={first}-{last}", len(data))
            except s3mini.S3Error:
                assert data[first : last + 1] == b""
                continue

            assert span is not None
            assert data[first : last + 1] == data[span.start : span.stop] != b""


MODIFIED = 1_000_000_000  # Sun, 09 Sep 2001 01:46:40 GMT
SAME, BEFORE, AFTER = (email.utils.formatdate(MODIFIED + d, usegmt=True) for d in (0, -1, 1))
NOW = MODIFIED + 10.0
FAILED, UNCHANGED = ("PreconditionFailed", 412), ("NotModified", 304)

CONDITIONS = [  # [RFC 9110 §13.2.2] [AWS: GetObject]
    ({}, None),
    ({"if-match": '"e"'}, None),
    ({"if-match": "e"}, None),
    ({"if-match": "*"}, None),
    ({"if-match": '"x", "e"'}, None),
    ({"if-match": '"x"'}, FAILED),
    ({"if-match": ""}, FAILED),
    ({"if-none-match": '"x"'}, None),
    ({"if-none-match": '"e"'}, UNCHANGED),
    ({"if-none-match": 'W/"e"'}, UNCHANGED),
    ({"if-none-match": '"x","e"'}, UNCHANGED),
    ({"if-none-match": "*"}, UNCHANGED),
    ({"if-modified-since": BEFORE}, None),
    ({"if-modified-since": SAME}, UNCHANGED),
    ({"if-modified-since": AFTER}, UNCHANGED),
    ({"if-modified-since": email.utils.formatdate(NOW, usegmt=True)}, UNCHANGED),
    ({"if-modified-since": email.utils.formatdate(NOW + 1, usegmt=True)}, None),
    ({"if-modified-since": "yesterday"}, None),
    ({"if-unmodified-since": AFTER}, None),
    ({"if-unmodified-since": SAME}, None),
    ({"if-unmodified-since": BEFORE}, FAILED),
    ({"if-unmodified-since": "yesterday"}, None),
    # the etag decides where both speak
    ({"if-match": '"e"', "if-unmodified-since": BEFORE}, None),
    ({"if-match": '"x"', "if-unmodified-since": AFTER}, FAILED),
    ({"if-none-match": '"x"', "if-modified-since": AFTER}, None),
    ({"if-none-match": '"e"', "if-modified-since": BEFORE}, UNCHANGED),
    # a precondition that failed comes before "not modified"
    ({"if-match": '"x"', "if-none-match": '"e"'}, FAILED),
    ({"if-match": '"e"', "if-none-match": '"e"'}, UNCHANGED),
    ({"if-unmodified-since": BEFORE, "if-modified-since": AFTER}, FAILED),
    ({"if-unmodified-since": AFTER, "if-none-match": '"e"'}, UNCHANGED),
]


@pytest.mark.parametrize(("headers", "expected"), CONDITIONS, ids=lambda v: str(v)[:60])
def test_conditions_are_tried_in_the_order_of_the_standard(
    headers: dict[str, str], expected: Optional[tuple[str, int]]
) -> None:
    if expected is None:
        s3mini.check_preconditions(headers, "e", MODIFIED, NOW)
        return
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.check_preconditions(headers, "e", MODIFIED, NOW)

    assert expected == (caught.value.code, caught.value.status)


@pytest.mark.parametrize(("headers", "expected"), CONDITIONS, ids=lambda v: str(v)[:60])
def test_a_copy_knows_no_not_modified(
    headers: dict[str, str], expected: Optional[tuple[str, int]]
) -> None:
    prefix = "x-amz-copy-source-"
    copy = {prefix + name: value for name, value in headers.items()}
    s3mini.check_preconditions(copy, "other", 0, NOW)  # those of a copy are not those of a read
    if expected is None:
        s3mini.check_preconditions(copy, "e", MODIFIED, NOW, prefix)
        return
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.check_preconditions(copy, "e", MODIFIED, NOW, prefix)

    assert FAILED == (caught.value.code, caught.value.status)
    assert caught.value.fields["Condition"].lower() in copy


# --- Dates ----------------------------------------------------------------------------------------


def test_a_date_is_written_as_the_library_writes_it() -> None:
    source = random.Random(1)
    for seconds in [0, 951782400, 2**31, 4102444799] + [
        source.randrange(2**33) for _ in range(999)
    ]:
        text = s3mini.render_http_date(seconds)

        assert email.utils.formatdate(seconds, usegmt=True) == text
        assert seconds == s3mini.parse_http_date(text)
        iso = s3mini.render_iso_date(seconds)
        assert seconds == s3mini.parse_iso_date(iso)
        assert seconds == s3mini.parse_iso_date(iso.replace("-", "").replace(":", "")[:15] + "Z")


@pytest.mark.parametrize(
    "value",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 09:49:37 +0100",
        "06 Nov 1994 08:49:37 GMT",
    ],
)
def test_a_date_is_read_in_all_its_old_forms(value: str) -> None:
    assert 784111777 == s3mini.parse_http_date(value)


@pytest.mark.parametrize(
    "value",
    ["", " ", "\xa0", "yesterday", "Jan", "Jan - , GMT", "06 Nov 99999 08:49:37 GMT",
     "06 Nov " + "9" * 5000 + " 08:49:37 GMT", "\u0663 Nov 1994 \u00b2:49:37 GMT"],
    ids=lambda v: repr(v)[:20],
)  # fmt: skip
def test_what_is_no_date_is_none(value: str) -> None:
    assert s3mini.parse_http_date(value) is None


def test_a_date_of_any_words_is_a_time_that_exists_or_none() -> None:
    source = random.Random(1)
    words = (
        "Mon, Mon 01 Jan 2024 00:00:00 GMT +0000 - 1-1-1 :: 00:00 12 ( ) , + -00:00 99999 1e5 \xb2"
    )
    words += " \xa0 +99999999999999999999"
    for _ in range(20000):
        text = " ".join(source.choice(words.split(" ")) for _ in range(source.randrange(8)))

        seconds = s3mini.parse_http_date(text)

        assert seconds is None or -(10**12) < seconds < 10**12, text


@pytest.mark.parametrize(
    "text",
    ["", "20130524", "20130524T000000", "20130524T000000Z\n", "20131324T000000Z",
     "20130532T000000Z",
     "20130524T240000Z", "20130524T006000Z", "20130524T000061Z", "00000524T000000Z",
     "2013052\u0664T000000Z", "20130524t000000z", " 20130524T000000Z"],
)  # fmt: skip
def test_what_is_no_iso_date_is_none(text: str) -> None:
    assert s3mini.parse_iso_date(text) is None


# --- Keys and answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["", "a", "a/b", "a/../b", "a/b/../../c", "..a", "a..", ".../x", "x" * 1024, "é" * 512]
)
def test_a_key_within_its_bucket_is_fine(key: str) -> None:
    s3mini.check_key(key)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("..", "InvalidURI"),
        ("../x", "InvalidURI"),
        ("a/../../b", "InvalidURI"),
        ("a/b/../../../b/a", "InvalidURI"),
        ("x" * 1025, "KeyTooLongError"),
        ("é" * 513, "KeyTooLongError"),
    ],
)
def test_a_key_that_leaves_its_bucket_or_is_too_long_is_refused(key: str, code: str) -> None:
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.check_key(key)

    assert (code, 400) == (caught.value.code, caught.value.status)


def test_an_answer_has_the_headers_it_was_given() -> None:
    response = s3mini.Response(200, {"etag": '"e"', "x-amz-meta-a": "\xc3\xa9 \tb"})

    assert b'HTTP/1.1 200 OK\r\nETag: "e"\r\nx-amz-meta-a: \xc3\xa9 \tb\r\n\r\n' == (
        s3mini.render_head(response)
    )


def test_every_error_has_a_status_line() -> None:
    for status, _ in s3mini.ERRORS.values():
        assert s3mini.render_head(s3mini.Response(status)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "value",
    ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\r\n\r\n<html>", "\0", "\x7f", "\x1b", "\r\n", "\r",
     "\n", "\u010d\u010a", "\ud800", "日本", "a\r\n b"],
    ids=repr,
)  # fmt: skip
def test_no_control_byte_gets_into_an_answers_head(value: str) -> None:
    for headers in (
        {"a": value},
        {"a": value, "b": value},
        {"a" + value: "x"},
        {"a": "x", "b": value},
    ):
        data = s3mini.render_head(s3mini.Response(200, headers))

        assert data.endswith(b"\r\n\r\n")
        assert 2 + len(headers) == data.count(b"\r\n")
        assert not any(b < 32 and b != 9 or b == 127 for b in data.replace(b"\r\n", b""))


def test_random_headers_never_split_an_answer() -> None:
    source = random.Random(1)
    for _ in range(5000):
        values = ["".join(source.choice("ab\r\n:\t\0\xe9日") for _ in range(4)) for _ in range(3)]
        headers = {f"h{i}": value for i, value in enumerate(values)}

        lines = s3mini.render_head(s3mini.Response(200, headers)).split(b"\r\n")

        assert [b"HTTP/1.1 200 OK", b"h0:", b"h1:", b"h2:", b"", b""] == [
            line if i in (0, 4, 5) else line[:3] for i, line in enumerate(lines)
        ]
