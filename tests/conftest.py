"""Fixtures: the real program in a process of its own, and clients for it.

`server` is one server that every test of a worker shares; its buckets do not disturb each other.
`serve` starts further ones, with another INI, for tests that restart, kill or configure them.
"""

from __future__ import annotations

import configparser
import errno
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from nginx import Nginx
from rooms import MissingError
from signing_client import Client

PROGRAM = Path(__file__).resolve().parent.parent / "s3mini.py"
START_TIME = 30.0  # seconds until a server must listen; a busy machine needs a few
STOP_TIME = 10.0  # seconds until a server that was asked to stop must be gone

INI = """\
[SERVER]
durability = none
log = none

[media]
access_key = media-key
secret_key = media-secret-0123456789abcdef

[public]
access_key = public-key
secret_key = public-secret-0123456789abcdef
public = read

[other]
access_key = other-key
secret_key = other-secret-0123456789abcdef

[test-*]
access_key = test-key
secret_key = test-secret-0123456789abcdef
"""


class Server:
    """A running `s3mini.py serve`. Its data, configuration and log are files in `folder`."""

    def __init__(self, folder: Path, ini: str, data: Optional[Path] = None, **options: Any) -> None:
        self.ini = _with_options(ini, options)
        self.data = data or folder / "data"
        self.config = folder / "buckets.ini"
        self.output: list[str] = []  # the lines it wrote to its standard output
        self._log = folder / "log"
        self.config.write_text(self.ini)
        self.config.chmod(0o600)
        self.start()

    def start(self, *, environ: Optional[dict[str, str]] = None) -> None:
        """Start it, again after stop() or kill() too, with the configuration as it is by now."""
        command = [sys.executable, str(PROGRAM), "serve", "--config", str(self.config)]
        command += ["--data", str(self.data), "--listen", "127.0.0.1:0"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(environ or {})},
                text=True,
            )
        self.endpoint = self._wait_until_it_listens()
        self.address = self.endpoint.partition("//")[2]  # "127.0.0.1:40123"
        self.host, _, port = self.address.rpartition(":")
        self.port = int(port)

    def _wait_until_it_listens(self) -> str:
        lines: queue.Queue[Optional[str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read_output, args=(lines,), daemon=True)
        self._reader.start()
        try:
            while True:
                line = lines.get(timeout=START_TIME)
                if line is None:
                    pytest.fail(f"s3mini ended before it listened:\n{self.log}", pytrace=False)
                if line.startswith("s3mini: listening on http"):
                    return line.split()[3]
        except queue.Empty:
            self.kill()
            pytest.fail(f"s3mini does not listen after {START_TIME} s:\n{self.log}", pytrace=False)

    def _read_output(self, lines: queue.Queue[Optional[str]]) -> None:
        """Pass on each line, for as long as it runs: a full pipe would stop the server."""
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                self.output.append(line)
                lines.put(line)
        lines.put(None)

    @property
    def log(self) -> str:
        """All it wrote to its standard error so far."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """End it as systemd does; gives the exit code, 0 if all is well."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_TIME)
            self._reader.join(STOP_TIME)  # it closes the pipe
            return code
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"s3mini still runs {STOP_TIME} s after SIGTERM:\n{self.log}")

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()
        self._reader.join(STOP_TIME)

    def close(self) -> None:
        """What must be true of every server at the end of a test that did not stop it itself."""
        if self.running:
            assert self.stop() == 0, self.log
        assert "Traceback" not in self.log, self.log

    def client(
        self, access_key: Optional[str] = None, secret_key: Optional[str] = None, **more: Any
    ) -> Client:
        """A signing client: with the first bucket's key, a key of the INI, or any key. "": none."""
        keys = _keys(self.ini)
        if access_key is None:
            access_key = next(iter(keys), "")
        if secret_key is None:
            secret_key = keys.get(access_key, "")
        return Client(self.address, access_key, secret_key, **more)


def flip(path: Path, offset: int) -> None:
    """One bit turns, and nothing else: what a disk does."""
    info = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """unreadable(path): the server's user may not read it from now on. Root always may."""
    real_open, real_scandir, denied = os.open, os.scandir, set[int]()

    def check(path: Any, folder: Optional[int] = None) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.stat(path, dir_fd=folder, follow_symlinks=False).st_ino in denied:
                raise PermissionError(errno.EACCES, "not for you", path)

    def fake_open(path: Any, flags: int, mode: int = 0o777, dir_fd: Optional[int] = None) -> int:
        check(path, dir_fd)
        return real_open(path, flags, mode, dir_fd=dir_fd)

    def fake_scandir(path: Any) -> Any:
        if not isinstance(path, int):
            check(path)
        return real_scandir(path)

    monkeypatch.setattr(os, "open", fake_open)
    monkeypatch.setattr(os, "scandir", fake_scandir)
    return lambda path: denied.add(path.stat().st_ino)


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """serve(ini, OPTION=VALUE ...) starts a server; the options go into the INI's [SERVER].

    `data=` is a folder to serve instead of a new one.
    """
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(ini: Optional[str] = None, **options: Any) -> Server:
            folder = tmp_path / f"server{next(numbers)}"
            folder.mkdir()
            started = Server(folder, INI if ini is None else ini, **options)
            stack.callback(started.close)
            return started

        yield start


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that the tests of this worker share, with the INI above."""
    shared = Server(tmp_path_factory.mktemp("server"), INI)
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def bucket_names() -> Iterator[str]:
    return (f"test-{number:04}" for number in itertools.count(1))


@pytest.fixture
def bucket(server: Server, bucket_names: Iterator[str]) -> str:
    """The name of a new, empty bucket of the shared server; test-key may do everything with it."""
    name = next(bucket_names)
    reply = server.client("test-key").put("/" + name)
    assert reply.status == 200, reply.body
    return name


@pytest.fixture
def s3(server: Server, bucket: str) -> Client:
    """The signing client for `bucket`: s3.put("key", b"content")."""
    return server.client("test-key", bucket=bucket)


@pytest.fixture
def boto(server: Server) -> Any:
    """A boto3 client for the shared server, as its users make it; test-key's."""
    return boto_client(server.endpoint)


def boto_client(
    endpoint: str, access_key: str = "test-key", secret_key: str = "", **more: Any
) -> Any:
    """A boto3 client with nothing set but what a user must set."""
    import boto3  # not at the top: it takes a second, and most tests do without

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key or _keys(INI)[access_key],
        region_name="us-east-1",
        **more,
    )


@pytest.fixture(scope="session")
def tls(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx with TLS in front of the shared server, set up as the README says."""
    with Nginx(tmp_path_factory.mktemp("nginx"), server.address) as proxy:
        yield proxy


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """A client that cannot be had skips its test, or fails it where all must be there."""
    yield from _missing_client_skips()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    yield from _missing_client_skips()


def _missing_client_skips() -> Iterator[None]:
    try:
        yield
    except MissingError as error:
        if os.environ.get("S3MINI_REQUIRE_CLIENTS") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


def _with_options(ini: str, options: dict[str, Any]) -> str:
    """The INI with more lines at the end of its [SERVER], which replace those of the same name."""
    if not options:
        return ini
    _, header, rest = ini.rpartition("[SERVER]\n")
    kept, section, buckets = rest.partition("[")
    lines = [line for line in kept.splitlines() if line.partition("=")[0].strip() not in options]
    lines += [f"{name} = {value}" for name, value in options.items()]
    return (header or "[SERVER]\n") + "\n".join(lines) + "\n\n" + section + buckets


def _keys(ini: str) -> dict[str, str]:
    """Access key -> secret key, in the order of the INI."""
    parser = configparser.RawConfigParser(default_section="\0", strict=False)
    parser.read_string(ini)
    sections = [parser[name] for name in parser.sections() if "access_key" in parser[name]]
    return {section["access_key"]: section.get("secret_key", "") for section in sections}
