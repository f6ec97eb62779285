"""Load and abuse: slow, idle and vanishing clients cost others nothing, and nothing is left."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Serve, Server
from signing_client import UNSIGNED, Client

import s3mini

MIB = 1024**2
PATIENCE = 25.0  # seconds
HASH_THREADS = 32  # a pool that stays, once it was needed
PACE = 2.0  # seconds for a small request, at worst, on a busy machine
INI = """\
[SERVER]
durability = none
log = none
workers = 1
min_free = 0

[media]
access_key = media-key
secret_key = media-secret-0123456789abcdef
"""


class Watched:
    """A server's one process: what it uses."""

    def __init__(self, server: Server):
        self.server = server
        self.proc = Path(f"/proc/{server.process.pid}")
        if not (self.proc / "status").exists():
            pytest.skip("there is no /proc here")

    def number(self, name: str) -> int:
        for line in (self.proc / "status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise KeyError(name)

    @property
    def memory(self) -> int:
        return self.number("VmRSS") * 1024

    @property
    def threads(self) -> int:
        return self.number("Threads")

    @property
    def descriptors(self) -> int:
        return len(list((self.proc / "fd").iterdir()))

    @property
    def temp_files(self) -> list[Path]:
        return list((self.server.data / "media" / ".s3mini" / "tmp").iterdir())


@pytest.fixture
def watched(serve: Serve) -> Watched:
    server = serve(INI)
    watched = Watched(server)
    server.client(bucket="media").put("small", b"content")
    return watched


@pytest.fixture
def s3(watched: Watched) -> Client:
    return watched.server.client(bucket="media")


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Connections that are closed at the end, whatever happened."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=PATIENCE)


def head_of(s3: Client, method: str, key: str, **headers: str) -> bytes:
    path = f"/media/{key}"
    sending = {**s3.sign(method, path, [], {}, UNSIGNED), **headers}
    lines = "".join(f"{n.replace('_', '-')}: {v}\r\n" for n, v in sending.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


def slowest(s3: Client, count: int = 40) -> float:
    """The longest that one of some normal requests takes, all of them right. Seconds."""
    times = []
    for number in range(count):
        began = time.monotonic()
        if number % 4:
            assert b"content" == s3.get("small").body
        else:
            assert 200 == s3.put("written", b"x" * 1000).status
        times.append(time.monotonic() - began)
    return max(times)


def check_all_came_back(watched: Watched, before: tuple[int, int]) -> None:
    """Threads and descriptors are as many as before, and no temp file is left."""
    until(lambda: watched.threads <= before[0] + HASH_THREADS + 1)
    until(lambda: watched.descriptors <= before[1] + 2)
    until(lambda: watched.temp_files == [])


def test_who_was_refused_and_stays_holds_nobody_up(watched: Watched, s3: Client) -> None:
    """A small body came with the head, and nothing behind it: without durability that is quick."""
    refused = (b"PUT /media/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n"
               b"\r\nhello")
    with connect(watched.server) as sock:
        sock.sendall(refused)
        assert b"HTTP/1.1 403 " in sock.recv(65536)
        took = slowest(s3)

        began = time.monotonic()
        watched.server.stop()
        stopped = time.monotonic() - began

    assert took < PACE
    assert stopped < s3mini.DRAIN_SECONDS + PACE


def test_200_slow_heads_and_200_slow_bodies_delay_nobody(
    watched: Watched, s3: Client, sockets: list[socket.socket]
) -> None:
    before, memory = (watched.threads, watched.descriptors), watched.memory
    for number in range(400):
        sock = connect(watched.server)
        sockets.append(sock)
        if number % 2:
            sock.sendall(b"GET /media/small HTTP/1.1\r\nHost: x\r\nA:")
        else:
            sock.sendall(head_of(s3, "PUT", f"slow{number}", content_length="100000") + b"x")
    until(lambda: len(watched.temp_files) == 200)

    assert slowest(s3) < PACE
    for sock in sockets:
        sock.sendall(b"y")
    assert slowest(s3) < PACE
    assert watched.threads < 520
    assert watched.memory - memory < 100 * MIB
    for sock in sockets:
        sock.close()
    check_all_came_back(watched, before)
    assert ["small", "written"] == s3.get(list_type=2).elements("Key")


def test_thousands_of_idle_connections_delay_nobody(
    watched: Watched, s3: Client, sockets: list[socket.socket]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 5000 if hard >= 6000 else 2000 if hard >= 3000 else 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted + 1000)), hard))
    before, memory = (watched.threads, watched.descriptors), watched.memory
    request = head_of(s3, "GET", "small")
    answered = 0
    for number in range(wanted):
        sock = connect(watched.server)
        sockets.append(sock)
        if number % 5 == 0:
            sock.sendall(request)
            answered += sock.recv(65536).startswith(b"HTTP/1.1 200")

    assert wanted // 5 == answered
    assert slowest(s3) < PACE
    assert watched.threads < 60  # those that wait have none
    assert watched.descriptors < 1100
    assert watched.memory - memory < 100 * MIB
    for sock in sockets:
        sock.close()
    check_all_came_back(watched, before)


def test_many_answers_to_one_who_reads_none_delay_nobody(
    watched: Watched, s3: Client, sockets: list[socket.socket]
) -> None:
    """The thread that answers small requests never waits for a client."""
    data = b"x" * 60_000
    s3.put("medium", data)
    assert [data] * 2 == [s3.get("medium").body for _ in range(2)]
    before = watched.threads, watched.descriptors
    request = head_of(s3, "GET", "medium")
    for _ in range(2):
        sock = connect(watched.server)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        sockets.append(sock)
        for _ in range(150):  # one at a time: several at once would be a thread's at once
            sock.sendall(request)
            time.sleep(0.002)

    assert slowest(s3) < PACE
    answers = b""
    while len(answers) < 150 * len(data):  # and who reads at last gets all of it
        answers += sockets[0].recv(MIB)
    assert b"RequestTimeout" not in answers
    for sock in sockets:
        sock.close()
    check_all_came_back(watched, before)


def test_a_reset_before_the_answer_leaks_no_descriptor(watched: Watched, s3: Client) -> None:
    """A GET with a body that never comes: the object is open when the connection breaks."""
    s3.get("small")
    before = watched.threads, watched.descriptors
    for number in range(60):
        sock = connect(watched.server)
        wrong = {"content_length": "5"} if number % 2 else {"expect": "100-continue"}
        sock.sendall(head_of(s3, "GET", "small", **wrong))
        time.sleep(0.01)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    check_all_came_back(watched, before)


def test_a_client_that_stops_reading_costs_no_memory(
    watched: Watched, s3: Client, sockets: list[socket.socket]
) -> None:
    with (watched.server.data / "media" / "large").open("wb") as file:
        file.truncate(200 * MIB)
    s3.head("large")
    before, memory = (watched.threads, watched.descriptors), watched.memory
    for _ in range(20):
        sock = connect(watched.server)
        sockets.append(sock)
        sock.sendall(head_of(s3, "GET", "large"))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")

    assert slowest(s3) < PACE
    assert watched.memory - memory < 40 * MIB
    for sock in sockets:
        sock.close()
    check_all_came_back(watched, before)


@pytest.mark.parametrize("by_reset", [False, True])
def test_clients_that_vanish_leave_nothing(watched: Watched, s3: Client, by_reset: bool) -> None:
    s3.put("large", b"x" * (8 * MIB))
    before = watched.threads, watched.descriptors
    upload = s3.post("m", uploads="").element("UploadId")
    for number in range(60):
        sock = connect(watched.server)
        if number % 3 == 0:
            sock.sendall(head_of(s3, "PUT", "gone", content_length=str(MIB)) + b"x" * 100_000)
        elif number % 3 == 1:
            sock.sendall(head_of(s3, "PUT", "gone", transfer_encoding="chunked") + b"186a0\r\nxx")
        else:
            sock.sendall(head_of(s3, "GET", "large"))
            assert sock.recv(1000)
        if by_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    check_all_came_back(watched, before)
    assert 404 == s3.get("gone").status
    assert [] == s3.get("m", uploadId=upload).elements("PartNumber")
    assert 8 * MIB == len(s3.get("large").body)


def test_32_parallel_uploads_of_20_mib_are_bounded(watched: Watched, s3: Client) -> None:
    before, memory = (watched.threads, watched.descriptors), watched.memory
    statuses: list[int] = []
    peak = [0]
    data = b"x" * (20 * MIB)

    def upload(number: int) -> None:
        statuses.append(s3.put(f"large/{number}", data, payload=UNSIGNED).status)

    client = s3
    client.timeout = 60
    threads = [threading.Thread(target=upload, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(OSError):
            peak[0] = max(peak[0], watched.memory)
        threads[0].join(0.05)
        time.sleep(0.01)

    assert [200] * 32 == statuses
    assert peak[0] - memory < 160 * MIB
    check_all_came_back(watched, before)
    for number in range(32):
        path = watched.server.data / "media" / "large" / str(number)
        assert 20 * MIB == path.stat().st_size
        path.unlink()
