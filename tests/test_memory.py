"""What is answered from memory is what the long way answers, for everybody and everything."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from signing_client import Client, Reply

import s3mini

INI = """\
[SERVER]
durability = none
log = none
data = {data}
domain = s3.test
[media]
access_key = media-key
secret_key = media-secret
public = images/
[media:upload]
access_key = upload-key
secret_key = upload-secret
mode = write
[pages]
access_key = pages-key
secret_key = pages-secret
public = read
html = yes
[asked]
access_key = asked-key
secret_key = asked-secret
cors = https://a.test
[test-*]
access_key = test-key
secret_key = test-secret
"""
NAMES = ("media", "upload", "pages", "asked", "test")
SECRETS = {f"{name}-key": f"{name}-secret" for name in NAMES}
CRC = {"x-amz-checksum-crc32": "poTHxg=="}  # of DIGITS
DIGITS = b"0123456789"
Headers = Mapping[str, str]


class Shop:
    """A server in this process, and how many of its answers came from memory."""

    def __init__(self, folder: Path) -> None:
        ini = folder / "buckets.ini"
        ini.write_text(INI.format(data=folder / "data"))
        ini.chmod(0o600)
        self.app = s3mini.App(s3mini.load_config(str(ini)), s3mini.Disk(False))
        self.app.buckets.prepare()
        listener = s3mini.open_listener("127.0.0.1:0")
        self.address = s3mini.url_of(listener, False).partition("//")[2]
        self.server, self.hits = s3mini.Server(self.app, listener), 0
        self.answer = self.app.answer_from_memory
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def client(self, access_key: str, bucket: str = "media", **more: Any) -> Client:
        secret_key = SECRETS.get(access_key, "wrong" if access_key else "")
        return Client(self.address, access_key, secret_key, bucket, **more)

    def count(self, *call: Any) -> Any:
        found = self.answer(*call)
        self.hits += found is not None
        return found

    def close(self) -> None:
        self.server.stop()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(tmp_path)
    monkeypatch.setattr(made.app, "answer_from_memory", made.count)
    for bucket in ("media", "pages", "asked"):
        owner = made.client(f"{bucket}-key", bucket)
        for key in ("k", "images/a b/ä", "dir/"):
            assert 200 == owner.put(key, DIGITS, CRC).status
        html = {"content-type": "text/html", "x-amz-meta-a": "b", "x-amz-tagging": "a=b"}
        assert 200 == owner.put("page", b"<p>", {**html, "cache-control": "max-age=3"}).status
        assert 200 == owner.put("large", b"x" * 100_000).status
        assert 200 == owner.put("long", b"x", {"x-amz-meta-long": "x" * 2000}).status
        assert 200 == owner.put("empty").status
    time.sleep(0.1)  # a content is not kept within the tick of its change
    yield made
    made.close()


def told(reply: Reply) -> tuple[int, str, dict[str, str], bytes]:
    """What does not differ from one answer to the next."""
    changing = ("date", "x-amz-request-id", "x-amz-id-2")
    headers = {n: v for n, v in reply.headers.items() if n not in changing}
    return reply.status, reply.error, headers, b"" if reply.error else reply.body


NONE: Headers = {}
SUMS = {"x-amz-checksum-mode": "ENABLED"}
BROWSER = {"accept": "*/*", "referer": "http://a.test/", "cookie": "a=b", "sec-fetch-mode": "cors"}
CLOUDFLARE = {
    "cdn-loop": "cloudflare; loops=1", "cf-connecting-ip": "192.0.2.1", "cf-ipcountry": "DE",
    "cf-ray": "8c0f-FRA", "cf-visitor": '{"scheme":"https"}', "x-forwarded-for": "192.0.2.1",
}  # fmt: skip
PROXY = {
    "x-forwarded-server": "a.test", "x-request-id": "1", "x-varnish": "2",
    "x-envoy-expected-rq-timeout-ms": "15000",
}  # fmt: skip
YES = ("GET HEAD", True)
NO = ("GET HEAD", False)


@pytest.mark.parametrize(
    ("who", "bucket", "key", "headers", "expected"),
    [
        ("media-key", "media", "k", NONE, YES),
        ("media-key", "media", "k", SUMS, YES),
        ("media-key", "media", "k", {"x-amz-checksum-mode": "no"}, YES),
        ("media-key", "media", "images/a b/ä", BROWSER, YES),
        ("", "media", "images/a b/ä", {**BROWSER, **CLOUDFLARE}, YES),
        ("media-key", "media", "empty", PROXY, YES),
        ("media-key", "media", "dir/", NONE, YES),
        ("media-key", "media", "page", SUMS, YES),
        ("media-key", "media", "empty", NONE, YES),
        ("media-key", "media", "large", NONE, ("HEAD", True)),  # its content is sent by the kernel
        ("media-key", "media", "large", NONE, ("GET", False)),
        ("media-key", "media", "missing", NONE, NO),
        ("media-key", "media", "", NONE, NO),
        ("media-key", "pages", "k", NONE, YES),  # who may not, but anybody may
        ("pages-key", "pages", "page", NONE, YES),
        ("", "pages", "page", BROWSER, NO),  # it has tags: how many is not for strangers
        ("", "media", "images/a b/ä", BROWSER, YES),
        ("", "media", "k", BROWSER, NO),
        ("upload-key", "media", "k", NONE, NO),
        ("upload-key", "media", "images/a b/ä", NONE, YES),
        ("pages-key", "media", "k", NONE, NO),
        ("nobody", "media", "k", NONE, NO),
        ("nobody", "media", "images/a b/ä", NONE, NO),
        ("asked-key", "asked", "k", {"origin": "https://a.test"}, NO),
        ("asked-key", "asked", "k", NONE, NO),
        ("media-key", "media", "k", {"range": "bytes=2-4"}, NO),
        ("media-key", "media", "k", {"if-none-match": "*"}, NO),
        ("media-key", "media", "k", {"if-match": '"x"'}, NO),
        ("media-key", "media", "k", {"connection": "close"}, NO),
        ("media-key", "media", "k", {"connection": "keep-alive"}, YES),
        ("media-key", "media", "long", SUMS, YES),  # how it starts is not kept
        ("media-key", "media", "k", {"expect": "100-continue"}, NO),
        ("media-key", "media", "k", {"content-length": "0"}, NO),
        ("media-key", "media", "k", {"x-amz-expected-bucket-owner": "other"}, NO),
        ("media-key", "media", "k", {"x-amz-object-lock-mode": "GOVERNANCE"}, NO),
        ("media-key", "media", "k", {"x-amz-security-token": "x"}, NO),
        ("media-key", "nothing", "k", NONE, NO),
    ],
)
def test_it_is_what_the_long_way_answers(
    shop: Shop, who: str, bucket: str, key: str, headers: Headers, expected: tuple[str, bool]
) -> None:
    methods, is_hit = expected
    client = shop.client(who, bucket)
    for method in methods.split():
        replies = [told(client(method, key, headers=headers)) for _ in range(3)]
        assert is_hit == (shop.hits > 0), f"{shop.hits} of 3 from memory"
        shop.app.answer_from_memory = lambda *_: None  # type: ignore[method-assign]
        long_way = told(client(method, key, headers=headers))
        shop.app.answer_from_memory = shop.count  # type: ignore[method-assign]
        assert [long_way] * 3 == replies
        shop.hits = 0


def test_header_names_are_written_alike(shop: Shop) -> None:
    """Some clients look for them as AWS writes them."""
    host, _, port = shop.address.rpartition(":")
    names = []
    for more in ("", "x-strange: 1\r\n"):
        for _ in range(2):
            with socket.create_connection((host, int(port)), timeout=20) as sock:
                sock.sendall(f"GET /pages/k HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
                head = sock.recv(65536).partition(b"\r\n\r\n")[0]
        names.append([line.partition(b":")[0] for line in head.split(b"\r\n")[1:]])

    assert 1 == shop.hits
    assert sorted(names[0]) == sorted(names[1])


def test_a_start_is_kept_once_and_not_when_it_is_long(shop: Shop) -> None:
    client = shop.client("media-key")
    for key in ("k", "page", "long", "images/a b/ä"):
        for headers in (NONE, SUMS, NONE, SUMS):
            assert 200 == client.get(key, headers).status
    store = shop.app.buckets.open("media")
    starts = {k: known.starts for (root, k), known in store._entries.items() if root == store.root}

    plain, summed = (False, False), (True, False)
    assert {plain, summed} == starts["k"].keys()
    assert starts["k"][plain] != starts["k"][summed], "one with the checksum"
    assert starts["page"][plain] is starts["page"][summed]
    assert {} == starts["long"] == starts["large"]


def test_a_start_is_the_sections_own() -> None:
    """A bucket may change hands, and its pages are a stranger's then."""
    entry = s3mini.Entry(1, "e", "e", 1, headers={"content-type": "text/html"})
    known = s3mini.Known("p", (), 1, 1, entry, {})
    for html in (True, False, True):
        for sums in (False, True):
            section: Any = SimpleNamespace(html=html)
            start = s3mini.start_of(known, section, sums)
            assert ("sandbox" in start) == (not html)


def test_a_bucket_whose_disk_hangs_holds_up_nobody_else(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front does not look at the disk for what is not in memory."""
    client, slow = shop.client("media-key"), shop.client("", "pages")
    for _ in range(3):
        assert 200 == client.get("k").status
    goes_on, real = threading.Event(), s3mini.About.read

    def hang(about: s3mini.About) -> Any:
        assert not about.files.root.endswith("/pages") or goes_on.wait(20)
        return real(about)

    monkeypatch.setattr(s3mini.About, "read", hang)
    asks = threading.Thread(target=slow.get, args=("never-seen",))
    asks.start()
    began = time.monotonic()
    replies = [client.get("k").status for _ in range(3)]
    took = time.monotonic() - began
    goes_on.set()
    asks.join()

    assert [200] * 3 == replies
    assert took < 10


def rot_of_the_bucket(shop: Shop, data: Path) -> None:
    (data / "media" / ".s3mini" / "bucket.json").write_text("{garbage")


def rot_of_the_entry(shop: Shop, data: Path) -> None:
    store = shop.app.buckets.open("media")
    known = store._entries[store.root, "k"]
    entry = known.entry._replace(modified=10**30)
    store._entries[store.root, "k"] = known._replace(entry=entry, starts={})


@pytest.mark.parametrize("act", [rot_of_the_bucket, rot_of_the_entry])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_nobody_thought_of_is_an_answer_too(
    shop: Shop, act: Callable[[Shop, Path], None], method: str
) -> None:
    client = shop.client("media-key")
    for _ in range(3):
        assert 200 == client(method, "k").status
    act(shop, Path(shop.app.config.data))
    status = 500 if act is rot_of_the_entry else 200

    assert [status, status] == [client(method, "k").status for _ in range(2)]


def test_a_server_that_stops_says_so(shop: Shop) -> None:
    client = shop.client("media-key")
    for _ in range(3):
        assert 200 == client.get("images/a b/ä").status
    head = s3mini.parse_head(b"GET /media/images/a%20b/%C3%A4 HTTP/1.1\r\nhost: a\r\n\r\n")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = s3mini.Connection(ours, "127.0.0.1", shop.server)
        answers = []
        for shop.server.stopping in (False, True):
            answers.append(connection.answer_at_once(head))
        shop.server.stopping = False

    assert [True, False] == answers


def test_http_1_0_is_told_what_becomes_of_the_connection(shop: Shop) -> None:
    client = shop.client("", "pages")
    for _ in range(3):
        assert 200 == client.get("k").status
    shop.hits = 0
    host, _, port = shop.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(b"GET /pages/k HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
        assert b"Connection: keep-alive" in sock.recv(65536)
    assert 0 == shop.hits


def test_a_client_that_is_gone_is_in_the_log(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    client = shop.client("media-key")
    for _ in range(3):
        assert 200 == client.get("k").status
    shop.server.log = lambda fields: lines.append(dict(fields))

    def lose(*_: Any) -> None:
        raise s3mini.Disconnected("gone")

    monkeypatch.setattr(s3mini.Stream, "send", lose)
    with pytest.raises(http.client.HTTPException):
        client.get("k")
    # The line of the GET before may come late: it is written when its answer is on its way.
    assert (200, 0) == [(line["status"], line["bytes"]) for line in lines][-1]


def old(client: Client) -> Client:
    client.now = "20130524T000000Z"
    return client


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda shop: old(shop.client("media-key")), "RequestTimeTooSkewed"),
        (lambda shop: shop.client("media-key", region="mars"), ""),
        (lambda shop: shop.client("media-key", host="media.s3.test", virtual=True), ""),
        (lambda shop: shop.client("media-key", host="asked.s3.test", virtual=True), "AccessDenied"),
        (lambda shop: Client(shop.address, "media-key", "x", "media"), "SignatureDoesNotMatch"),
    ],
)
def test_so_it_is_for_other_signatures(
    shop: Shop, change: Callable[[Shop], Client], code: str
) -> None:
    client = change(shop)
    replies = [told(client.get("k")) for _ in range(3)]
    assert (code == "") == (shop.hits > 0)
    assert [(200 if not code else 403, code)] * 3 == [reply[:2] for reply in replies]


def test_a_header_that_is_not_signed_is_refused(shop: Shop) -> None:
    client = shop.client("media-key")
    assert 200 == client.get("k").status == client.get("k").status
    sent = dict(client.sent)
    assert 200 == client.send("GET", "/media/k", sent).status
    assert 1 < shop.hits
    refused = client.send("GET", "/media/k", {**sent, "x-amz-checksum-mode": "ENABLED"})
    other = client.send("GET", "/media/page", sent)
    method = client.send("HEAD", "/media/k", sent)

    assert ("AccessDenied", "SignatureDoesNotMatch") == (refused.error, other.error)
    assert 403 == method.status


def replaced(shop: Shop, data: Path) -> None:
    """By another process: this one is not told."""
    store = s3mini.Store(str(data / "media"), s3mini.Disk(False))
    body = s3mini.open_body(
        s3mini.parse_head(b"PUT /media/k HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n"),
        Bytes(b"new"), None, True)
    entry = s3mini.Entry(3, "", "", 1, headers={"content-type": "text/new"})
    store.put("k", body, lambda: s3mini.with_body(entry, body), s3mini.no_check)


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, size: int) -> bytes:
        data, self.data = self.data[:size], self.data[size:]
        return data


def by_hand(shop: Shop, data: Path) -> None:
    (data / "media" / "k").write_bytes(b"changed by hand")


def deleted(shop: Shop, data: Path) -> None:
    s3mini.Store(str(data / "media"), s3mini.Disk(False)).delete("k", s3mini.no_check)


def linked(shop: Shop, data: Path) -> None:
    (data / "media" / "k").unlink()
    (data / "media" / "k").symlink_to(data / "media" / "page")


def bucket_gone(shop: Shop, data: Path) -> None:
    (data / "media" / ".s3mini" / "bucket.json").unlink()


def cors_set(shop: Shop, data: Path) -> None:
    rule = {"origins": ["*"], "methods": ["GET"], "headers": [], "expose": [], "max_age": None}
    s3mini.Store(str(data / "media"), s3mini.Disk(False)).change_about(cors=[rule])


@pytest.mark.parametrize(
    ("act", "status", "body"),
    [
        (replaced, 200, b"new"), (by_hand, 200, b"changed by hand"), (deleted, 404, b""),
        (linked, 404, b""), (bucket_gone, 200, DIGITS), (cors_set, 200, DIGITS),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_another_process_does_is_seen_at_once(
    shop: Shop, act: Callable[[Shop, Path], None], status: int, body: bytes, method: str
) -> None:
    client = shop.client("media-key")
    for _ in range(3):
        assert 200 == client(method, "k").status
    assert 0 < shop.hits
    shop.hits = 0
    act(shop, Path(shop.app.config.data))
    reply = client(method, "k")

    assert 0 == shop.hits
    assert status == reply.status
    if status == 200 and method == "GET":
        assert body == reply.body
    if status == 200:
        assert str(len(body)) == reply.headers["content-length"]
    if act is cors_set:
        assert "Origin" in reply.headers["vary"]


def test_bad_signatures_count_and_hold_up_who_sends_them(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those from outside; here everybody is near."""
    monkeypatch.setattr(s3mini, "is_near", lambda peer: False)
    good, bad = shop.client("media-key"), shop.client("nobody")
    assert [200, 200] == [good.get("k").status for _ in range(2)]
    statuses = [bad.get("k").status for _ in range(200)]

    assert {403, 503} == set(statuses), "each is counted once"
    assert 503 == good.get("k").status


def test_the_log_has_the_same_of_both(shop: Shop) -> None:
    lines: list[dict[str, Any]] = []
    shop.server.log = lambda fields: lines.append(dict(fields))
    client = shop.client("media-key")
    for method in ("GET", "HEAD"):
        for _ in range(3):
            client(method, "k")
        shop.app.answer_from_memory = lambda *_: None  # type: ignore[method-assign]
        client(method, "k")
        shop.app.answer_from_memory = shop.count  # type: ignore[method-assign]

    assert 3 < shop.hits
    deadline = time.monotonic() + 10
    while len(lines) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)  # a line is written when the answer is out
    lines.sort(key=lambda line: str(line["id"]))
    for number in (0, 4):
        same = [{n: v for n, v in line.items() if n not in ("time", "ms", "id")} for line in lines]
        assert [same[number]] * 4 == same[number : number + 4]
    assert len(lines) == len({line["id"] for line in lines}) == 8


def test_requests_behind_it_and_a_client_that_reads_late(shop: Shop) -> None:
    """Several heads in one packet, more than the socket takes."""
    client = shop.client("media-key")
    assert [200, 200] == [client.get("k").status for _ in range(2)]
    head = "".join(f"{name}: {value}\r\n" for name, value in client.sent)
    request = f"GET /media/k HTTP/1.1\r\n{head}\r\n".encode()
    host, _, port = shop.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        threading.Thread(target=sock.sendall, args=(request * 5_000,), daemon=True).start()
        time.sleep(0.5)
        got = b""
        while got.count(DIGITS) < 5_000:
            data = sock.recv(65536)
            assert data, "it ended early"
            got += data
    assert 5_000 == got.count(b"HTTP/1.1 200 OK\r\n")
    assert 2 < shop.hits


def test_nothing_is_kept_of_a_clock_that_counts_whole_seconds(shop: Shop) -> None:
    data = Path(shop.app.config.data, "media", "k")
    os.utime(data, ns=(1_000_000_000_000_000_000, 1_000_000_000_000_000_000))
    client = shop.client("media-key")
    assert [200] * 3 == [client.get("k").status for _ in range(3)]
    assert 0 == shop.hits
