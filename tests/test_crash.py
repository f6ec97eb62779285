"""kill -9 under load: what was acknowledged is there afterwards, whole, and nothing is left behind.

Eight writers overwrite a few keys in every way there is. The order of two writes that ran at the
same time is nobody's to say; so an object may be any write that no later acknowledged one followed:
later means begun after the first had been answered, or after the server that ran it was dead.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import os
import random
import select
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

import pytest
from conftest import Serve, Server
from signing_client import Client, Reply

WRITERS = 8
KEYS = ["k", "a", "a/b", "x/y/k"]  # `a` steps aside for `a/b`; folders come and go
ROUNDS = 5
ROUND_SECONDS = 20.0  # a round that takes longer has hung
SEED = 4

INI = """\
[SERVER]
log = none
durability = disk
min_free = 0

[media]
access_key = media-key
secret_key = media-secret-0123456789abcdef
"""


@dataclass
class Write:
    """One attempt to change one key."""

    id: str
    key: str
    kind: str  # put, multipart, copy, metadata, delete
    began: float
    ended: float = float("inf")  # when it was answered, or its server was dead
    acknowledged: bool = False

    @property
    def body(self) -> bytes:
        return body_of(self.id)

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": f"text/x-{self.id}", "x-amz-meta-id": self.id}


def body_of(write_id: str) -> bytes:
    """A write's own bytes, from 0 to 300 KB; its id is at both ends."""
    digest = hashlib.md5(write_id.encode()).digest()
    middle = digest * (int.from_bytes(digest[:2], "big") % 20_000 if digest[2] % 4 == 0 else 8)
    return write_id.encode() + b"\n" + middle + b"\n" + write_id.encode()


@dataclass
class History:
    """All writes of all rounds. Shared by the writers."""

    writes: list[Write] = field(default_factory=list)
    acknowledged: int = 0
    _lock: threading.Condition = field(default_factory=threading.Condition)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def begin(self, key: str, kind: str) -> Write:
        with self._lock:
            write = Write(f"w{next(self._numbers):05}", key, kind, time.monotonic())
            self.writes.append(write)
            return write

    def end(self, writes: list[Write], acknowledged: bool) -> None:
        """A definite answer: done, or certainly not done."""
        with self._lock:
            for write in writes:
                write.ended, write.acknowledged = time.monotonic(), acknowledged
                if not acknowledged:
                    self.writes.remove(write)
            self.acknowledged += acknowledged
            self._lock.notify_all()

    def wait_for(self, acknowledged: int) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: self.acknowledged >= acknowledged, ROUND_SECONDS)

    def server_died(self) -> None:
        """What it had not answered it will not do any more."""
        with self._lock:
            for write in self.writes:
                write.ended = min(write.ended, time.monotonic())

    def allowed(self, key: str) -> dict[str, Write]:
        """The writes that the key may show now, by id."""
        mine = [w for w in self.writes if w.key == key]
        latest = max((w.began for w in mine if w.acknowledged), default=float("-inf"))
        return {w.id: w for w in mine if w.ended >= latest}


class Writer(threading.Thread):
    """Writes until the server is gone. All but success and a copy's 404 is an error."""

    def __init__(self, client: Client, history: History, seed: int) -> None:
        super().__init__()
        self.client, self.history, self.random = client, history, random.Random(seed)
        self.kinds: set[str] = set()
        self.trouble = ""

    def run(self) -> None:
        ways = [self.put, self.put, self.put, self.multipart, self.copy, self.metadata,
                self.delete, self.batch]  # fmt: skip
        try:
            while True:
                self.random.choice(ways)()
        except (OSError, http.client.HTTPException):
            return  # killed: what became of the last write nobody knows
        except AssertionError as error:
            self.trouble = str(error) or "an assertion"

    def key(self) -> str:
        return self.random.choice(KEYS)

    def check_running(self, reply: Reply) -> None:
        """Workers that outlive the master say 503 while they leave: as good as gone."""
        if reply.error == "ServiceUnavailable":
            raise ConnectionError("the server stops")

    def finish(self, reply: Reply, *writes: Write, missing: bool = False) -> None:
        self.check_running(reply)
        if missing and reply.status == 404:
            self.history.end(list(writes), acknowledged=False)
            return
        done = reply.status in (200, 204) and not reply.error
        assert done, f"{writes[0].kind} {writes[0].key}: {reply.status} {reply.body!r}"
        self.kinds.add(writes[0].kind)
        self.history.end(list(writes), acknowledged=True)

    def put(self) -> None:
        write = self.history.begin(self.key(), "put")
        self.finish(self.client.put(write.key, write.body, write.headers), write)

    def multipart(self) -> None:
        write = self.history.begin(self.key(), "multipart")
        reply = self.client.post(write.key, headers=write.headers, query="uploads")
        self.check_running(reply)
        assert reply.status == 200, reply.body
        upload = reply.element("UploadId")
        part = self.client.put(write.key, write.body, partNumber=1, uploadId=upload)
        self.check_running(part)
        assert part.status == 200, part.body
        document = (
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
            f"<ETag>{part.headers['etag']}</ETag></Part></CompleteMultipartUpload>"
        )
        self.finish(self.client.post(write.key, document.encode(), uploadId=upload), write)

    def copy(self) -> None:
        source, key = self.random.sample(KEYS, 2)
        self._copy(self.history.begin(key, "copy"), source)

    def metadata(self) -> None:
        """A copy onto itself: other metadata for the same bytes."""
        key = self.key()
        self._copy(self.history.begin(key, "metadata"), key)

    def _copy(self, write: Write, source: str) -> None:
        more = {"x-amz-copy-source": f"/media/{source}", "x-amz-metadata-directive": "REPLACE"}
        reply = self.client.put(write.key, b"", {**write.headers, **more})
        self.finish(reply, write, missing=True)

    def delete(self) -> None:
        write = self.history.begin(self.key(), "delete")
        self.finish(self.client.delete(write.key), write)

    def batch(self) -> None:
        writes = [self.history.begin(key, "delete") for key in self.random.sample(KEYS, 2)]
        names = "".join(f"<Object><Key>{write.key}</Key></Object>" for write in writes)
        document = f"<Delete>{names}</Delete>".encode()
        digest = base64.b64encode(hashlib.md5(document).digest()).decode()
        reply = self.client.post("", document, {"content-md5": digest}, query="delete")
        self.check_running(reply)
        assert not reply.elements("Code"), reply.body
        self.finish(reply, *writes)


def kill_all(server: Server) -> None:
    """kill -9 to the master and its workers; all are dead when this returns."""
    workers = children(server.process.pid)
    ends = [os.pidfd_open(pid) for pid in workers]
    server.kill()
    for end in ends:
        with open(end, "rb", buffering=0):  # closes it
            signal_pidfd(end)
            assert select.select([end], [], [], 10)[0], "a killed worker lives on"


def signal_pidfd(end: int) -> None:
    with suppress(ProcessLookupError):  # it left when its master was gone
        signal.pidfd_send_signal(end, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_one_worker(server: Server) -> None:
    """The master goes on, and starts another."""
    worker = children(server.process.pid)[0]
    os.kill(worker, signal.SIGKILL)


def check_object(key: str, reply: Reply, history: History) -> Optional[Write]:
    """The write that the answer shows; AssertionError when it is none, or a mix."""
    allowed = history.allowed(key)
    if reply.status == 404:
        deleted = [w for w in allowed.values() if w.kind == "delete"]
        acknowledged = any(w.acknowledged for w in history.writes if w.key == key)
        assert deleted or not acknowledged, f"{key} is gone; allowed: {sorted(allowed)}"
        return deleted[0] if deleted else None
    assert reply.status == 200, f"{key}: {reply.status} {reply.body!r}"
    shown = reply.headers.get("x-amz-meta-id", "nobody's")
    assert shown in allowed, f"{key} is {shown}; allowed: {sorted(allowed)}"
    write = allowed[shown]
    assert reply.headers["content-type"] == f"text/x-{shown}", f"{key}: {reply.headers}"
    first, last = reply.body[:6].decode(), reply.body[-6:].decode()
    assert first == last, f"{key}: torn: begins with {first}, ends with {last}"
    assert reply.body == body_of(first), f"{key}: torn"
    assert write.kind in ("copy", "metadata") or first == shown, f"{key}: the bytes are {first}'s"
    check_etag(key, reply, write)
    return write


def check_etag(key: str, reply: Reply, write: Write) -> None:
    md5 = hashlib.md5(reply.body)
    joined = hashlib.md5(md5.digest()).hexdigest() + "-1"
    kept = write.kind in ("multipart", "metadata")  # metadata alone leaves the ETag as it was
    plain = write.kind != "multipart"
    allowed = [md5.hexdigest()] * plain + [joined] * kept
    assert reply.etag in allowed, f"{key}: the ETag is another version's"


def check_all(server: Server, history: History) -> None:
    s3 = server.client()
    s3.bucket = "media"
    names = s3.get(list_type=2)
    replies = {key: s3.get(key) for key in KEYS}
    for key, reply in replies.items():
        check_object(key, reply, history)
        assert about(reply) == about(s3.head(key)), f"{key}: HEAD and GET differ"
    there = sorted(key for key, reply in replies.items() if reply.status == 200)
    assert there == names.elements("Key"), "a listing and GET differ"
    check_files(server.data / "media")


def about(reply: Reply) -> dict[str, str]:
    """What the headers say of an object."""
    names = ("content-type", "content-length", "etag", "last-modified", "x-amz-meta-id")
    found = {name: reply.headers.get(name, "") for name in names}
    return found if reply.status == 200 else {"status": str(reply.status)}


def check_files(bucket: Path) -> None:
    """No temp files, and nothing but objects, their sidecars and our own folder."""
    assert [] == [path.name for path in (bucket / ".s3mini" / "tmp").iterdir()]
    plain = ["k", "a", "a%", "a/b", "x/y/k"]
    known = {str(Path(p).with_name(f".{Path(p).name}.s3mini.json")) for p in plain} | {*plain}
    found = {str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file()}
    assert set() == {name for name in found if not name.startswith(".s3mini/")} - known


def write_until(
    server: Server, history: History, seed: int, enough: int, strike: Callable[[], None]
) -> set[str]:
    """Eight writers at work; when `enough` more writes are acknowledged, `strike`."""
    clients = [server.client(bucket="media", timeout=ROUND_SECONDS) for _ in range(WRITERS)]
    writers = [Writer(client, history, seed + n) for n, client in enumerate(clients)]
    wanted = history.acknowledged + enough
    for writer in writers:
        writer.start()
    reached = history.wait_for(wanted)
    strike()
    for writer in writers:
        writer.join(ROUND_SECONDS)
    assert [""] * WRITERS == [writer.trouble for writer in writers]
    assert reached, "the writers hang"
    return set[str]().union(*(writer.kinds for writer in writers))


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kills by pidfd: Linux")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_server_has_lost_nothing_that_it_acknowledged(serve: Serve, workers: int) -> None:
    server = serve(INI, workers=workers)
    history, rng = History(), random.Random(SEED)
    kinds: set[str] = set()

    for number in range(ROUNDS):

        def strike() -> None:
            threading.Event().wait(rng.uniform(0, 0.005))  # any moment of the next writes
            kill_all(server)
            history.server_died()

        kinds |= write_until(server, history, number * 100, rng.randint(15, 60), strike)
        server.start()
        check_all(server, history)
        check_all(server, history)  # looking has changed nothing

    assert {"put", "multipart", "copy", "metadata", "delete"} == kinds
    unanswered = [w for w in history.writes if not w.acknowledged]
    assert len(unanswered) > ROUNDS, "the kills met nobody at work"


def test_a_killed_worker_costs_only_its_own_requests(serve: Serve) -> None:
    """The master starts another, on the same files, beside one that goes on writing."""
    server = serve(INI, workers=2)
    history, rng = History(), random.Random(SEED)
    for number in range(2):
        write_until(
            server, history, number * 100, rng.randint(20, 60), lambda: kill_and_stop(server)
        )
        history.server_died()
        server.start()
        check_all(server, history)


def kill_and_stop(server: Server) -> None:
    kill_one_worker(server)
    server.stop()
