"""The commands: first run, later runs, serve, dev, config, signals, and the fake for tests."""

from __future__ import annotations

import contextlib
import errno
import http.client
import importlib.util
import json
import os
import queue
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, SimpleNamespace
from typing import Any, Callable, Optional

import pytest
from conftest import INI, PROGRAM, Serve, Server
from signing_client import UNSIGNED, Client

import s3mini

LARGE = b"x" * 3_000_000  # what a thread answers, not the front
PATIENCE = 30.0  # seconds for what takes a moment; a busy machine needs more

# `python3 s3mini.py` alone serves on 127.0.0.1:9000, which two tests at once cannot; this is the
# same but for the port that the first run writes into the file.
ANY_PORT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import s3mini;"
    "s3mini.FIRST_INI = s3mini.FIRST_INI.replace(':9000', ':0'); sys.exit(s3mini.main())"
)


HASTY = (  # the same program, but what happens each hour happens five times a second
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import s3mini;"
    "s3mini.TIDY_SECONDS = 0.2; sys.exit(s3mini.main())"
)


class Program:
    """A command that runs until it is told to end; its output is read while it runs."""

    def __init__(self, folder: Path, *arguments: str, first: bool = False, code: str = ""):
        code = ANY_PORT if first else code
        program = ["-c", code, str(PROGRAM.parent)] if code else [str(PROGRAM)]
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[Optional[str]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                self._queue.put(line)
        self._queue.put(None)

    def read_until(self, text: str) -> str:
        """Everything up to the line with that text."""
        while not any(text in line for line in self.lines):
            line = self._queue.get(timeout=PATIENCE)
            assert line is not None, "".join(self.lines)
            self.lines.append(line)
        return "".join(self.lines)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return code

    @property
    def said(self) -> str:
        return "".join(self.lines)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """start(ARGUMENT ..., first=True) runs s3mini.py in tmp_path."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, first: bool = False, code: str = "") -> Program:
            program = Program(tmp_path, *arguments, first=first, code=code)
            stack.callback(program.process.wait)
            stack.callback(program.process.kill)
            return program

        yield run


Start = Callable[..., Program]


def until(what: Callable[[], object]) -> None:
    """Wait for something that nobody tells us of."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def workers_of(server: Server, count: int) -> list[int]:
    """The server's workers, once there are that many."""
    until(lambda: len(children(server.process.pid)) == count)
    return children(server.process.pid)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody accepts connections there any more."""
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return True
    return False


# -- the first run ---------------------------------------------------------------------------------


def test_the_first_run_in_an_empty_folder_serves_a_bucket(start: Start, tmp_path: Path) -> None:
    program = start(first=True)
    said = program.read_until("aws s3 cp")
    url = re.findall("listening on http://(.+)", said)[0]
    code = re.findall(r"(?s)boto3:\n(.+?)\n\n", said)[0]
    keys = re.findall('aws_access_key_id="(.+?)", aws_secret_access_key="(.+?)"', code)[0]
    put = Client(url, *keys, bucket="media").put("photo.jpg", b"meow")

    assert (200, b"meow") == (put.status, (tmp_path / "s3mini-data/media/photo.jpg").read_bytes())
    assert f"Keys:    {tmp_path}/buckets.ini" in said
    assert f"Objects: {tmp_path}/s3mini-data" in said
    assert 0o600 == stat.S_IMODE((tmp_path / "buckets.ini").stat().st_mode)
    assert 0 == stat.S_IMODE((tmp_path / "s3mini-data").stat().st_mode) & 0o007
    assert ["buckets.ini", "s3mini-data"] == sorted(os.listdir(tmp_path))


def test_the_settings_it_prints_work_as_they_are(start: Start) -> None:
    program = start(first=True)
    said = program.read_until("aws s3 cp")
    import boto3

    names: dict[str, object] = {"boto3": boto3, "STORAGES": {}}
    exec(re.findall(r"(?s)boto3:\n(.+?)\n\n", said)[0].replace("\n    ", "\n").strip(), names)
    exec(re.findall(r"(?s)settings\.py:\n(.+?)\n\n", said)[0].strip(), names)
    names["s3"].put_object(Bucket="media", Key="k", Body=b"x")  # type: ignore[attr-defined]
    options = names["STORAGES"]["default"]["OPTIONS"]  # type: ignore[index]
    url = options["endpoint_url"].partition("//")[2]
    client = Client(
        url, options["access_key"], options["secret_key"], bucket=options["bucket_name"]
    )

    assert b"x" == client.get("k").body
    for name, value in (
        ("AWS_ACCESS_KEY_ID", options["access_key"]),
        ("AWS_SECRET_ACCESS_KEY", options["secret_key"]),
        ("AWS_ENDPOINT_URL", options["endpoint_url"]),
    ):
        assert f"{name}={value}" in said


def test_a_later_run_reads_the_file_and_keeps_its_secrets(start: Start, tmp_path: Path) -> None:
    first = start(first=True)
    first.read_until("aws s3 cp")
    assert 0 == first.end()
    text = (tmp_path / "buckets.ini").read_text()
    secret = re.findall("secret_key = (.+)", text)[0]
    second = start(first=True)
    second.read_until("Objects:")
    second.end()

    assert text == (tmp_path / "buckets.ini").read_text()
    assert secret in first.said
    assert secret not in second.said


def test_what_the_first_file_proposes_is_good_as_it_stands(start: Start, tmp_path: Path) -> None:
    first = start(first=True)
    first.read_until("aws s3 cp")
    first.end()
    text = (tmp_path / "buckets.ini").read_text().replace("#public", "public")
    (tmp_path / "buckets.ini").write_text(text)
    program = start("config")

    assert 0 == program.end(0), program.said
    assert "public = read\n" in text


@pytest.mark.parametrize("command", ["check", "manifest"])
def test_a_data_folder_that_is_not_there_is_one_sentence(
    start: Start, tmp_path: Path, command: str
) -> None:
    (tmp_path / "buckets.ini").write_text(INI)
    (tmp_path / "buckets.ini").chmod(0o600)
    program = start(command, "--data", str(tmp_path / "away"))

    assert 2 == program.end(0)
    assert f"cannot use the data folder {tmp_path}/away" in program.said
    assert "--data" in program.said
    assert 1 == program.said.count("\n")


def test_the_settings_are_shown_again_on_a_terminal_and_in_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start may have failed: another server had the port."""
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(s3mini, "run", lambda _, greeting: said.append(greeting) or 0)
    for is_terminal in (False, True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda shown=is_terminal: shown)
        assert 0 == s3mini.main([])
    secret = re.findall("secret_key = (.+)", (tmp_path / "buckets.ini").read_text())[0]

    assert [True, True, False] == [secret in greeting for greeting in said]


def test_the_configuration_shows_what_is_public_with_its_bucket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "buckets.ini"
    config.write_text("[media]\naccess_key = a\nsecret_key = b\npublic = images/\n"
                      "[media:ci]\naccess_key = c\nsecret_key = d\nmode = read\n")
    config.chmod(0o600)

    assert 0 == s3mini.main(["config", "--config", str(config)])
    assert ["[media] key a (full), public: images/", "[media:ci] key c (read)",
            f"{config} is good; sections: 2"] == capsys.readouterr().out.splitlines()


def test_two_first_runs_have_different_keys(start: Start, tmp_path: Path) -> None:
    secrets = set()
    for _ in range(2):
        program = start(first=True)
        program.read_until("aws s3 cp")
        program.end()
        secrets.update(re.findall("_key = (.+)", (tmp_path / "buckets.ini").read_text()))
        (tmp_path / "buckets.ini").unlink()

    assert 4 == len(secrets)
    assert all(len(secret) >= 20 for secret in secrets)


# -- serve, dev, config ----------------------------------------------------------------------------


def test_serve_takes_listen_and_data_from_the_command_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "my.ini").write_text(
        "[SERVER]\nlisten = 127.0.0.1:9\ndata = unused\n[media]\naccess_key = k\nsecret_key = s\n"
    )
    program = start("serve", "--config", "my.ini", "--listen", "127.0.0.1:0", "--data", "there")
    url = re.findall("listening on http://(.+)", program.read_until("listening on"))[0]
    Client(url, "k", "s", bucket="media").put("k", b"x")

    assert b"x" == (tmp_path / "there/media/k").read_bytes()
    assert not (tmp_path / "unused").exists()


def test_serve_listens_on_several_addresses(start: Start, tmp_path: Path) -> None:
    (tmp_path / "my.ini").write_text("[media]\naccess_key = k\nsecret_key = s\npublic = read\n")
    program = start(
        "serve", "--config", "my.ini", "--listen", f"127.0.0.1:0, unix:{tmp_path}/sock, 127.0.0.1:0"
    )
    program.read_until("listening on unix:")
    while program.said.count("listening on") < 3:
        program.lines.append(program._queue.get(timeout=PATIENCE) or "")

    for url in re.findall("listening on http://(.+)", program.said):
        assert 404 == Client(url).get("/media/k").status
    assert b"404 Not Found" in ask_unix(tmp_path / "sock")
    assert 0 == program.end()


def test_dev_serves_a_throw_away_folder(start: Start) -> None:
    program = start("dev", "photos", "videos", "--listen", "127.0.0.1:0")
    said = program.read_until("aws s3 cp")
    url = re.findall("listening on http://(.+)", said)[0]
    folder = Path(re.findall(r"Objects: (\S+)", said)[0])
    client = Client(url, "s3mini", "s3mini-secret")
    client.put("/photos/k", b"x")

    assert b"x" == (folder / "photos/k").read_bytes()
    assert ["photos", "videos"] == client.get("/").elements("Name")
    assert [200, 204] == [client.put("/another").status, client.delete("/another").status]
    origin = {"origin": "http://localhost:3000"}
    assert "*" == client.get("/photos/k", origin).headers["access-control-allow-origin"]
    preflight = {**origin, "access-control-request-method": "PUT"}
    assert 200 == client.anonymous()("OPTIONS", "/photos/k", b"", preflight).status
    assert (0, False) == (program.end(signal.SIGINT), folder.exists())


def test_dev_keeps_a_folder_that_it_is_given(start: Start, tmp_path: Path) -> None:
    for content in (b"1", b"2"):
        program = start("dev", "--listen", "127.0.0.1:0", "--data", "kept")
        url = re.findall("listening on http://(.+)", program.read_until("listening on"))[0]
        client = Client(url, "s3mini", "s3mini-secret", bucket="media")
        assert 200 == client.put(content.decode(), content).status
        assert 0 == program.end()

    assert b"1" == (tmp_path / "kept/media/1").read_bytes()
    assert b"2" == (tmp_path / "kept/media/2").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dev", "Bad_Name", "--listen", "127.0.0.1:0"], ["Bad_Name", "3 to 63 of a-z"]),
        (["dev", "--data", "/dev/null", "--listen", "127.0.0.1:0"], ["data folder /dev/null"]),
        (["dev", "--listen", "9000"], ["--listen", "9000", "127.0.0.1:9000"]),
        (["dev", "--listen", "203.0.113.1:1"], ["203.0.113.1:1"]),
        (["serve"], ["buckets.ini", "--config"]),
        (["config"], ["buckets.ini", "--config"]),
        (["check", "--config", "nowhere.ini"], ["nowhere.ini", "--config"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    start: Start, arguments: list[str], words: list[str]
) -> None:
    program = start(*arguments)

    assert 2 == program.end(0)
    assert (1, []) == (program.said.count("\n"), [w for w in words if w not in program.said])


def test_serve_tells_what_an_address_looks_like(start: Start, tmp_path: Path) -> None:
    s3mini.write_first_ini(str(tmp_path / "my.ini"))
    program = start("serve", "--config", "my.ini", "--listen", "9000")

    assert (2, 1) == (program.end(0), program.said.count("\n"))
    assert program.said.startswith("s3mini: --listen: ")
    assert "127.0.0.1:9000" in program.said


def test_a_port_in_use_is_one_sentence(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        program = start("dev", "--listen", address)

        assert 2 == program.end(0)
    assert (1, True) == (program.said.count("\n"), address in program.said)
    assert "Traceback" not in program.said


def test_a_folder_that_is_refused_is_one_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = start("dev", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "file" / "data"))

    assert 2 == program.end(0)
    assert (1, True) == (program.said.count("\n"), str(tmp_path / "file") in program.said)


@pytest.mark.parametrize("log", ["text", "json"])
def test_a_line_of_the_log_is_one_write_to_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    """What is longer than 4 KiB two workers mix, and a client writes what begins a line."""
    lines: list[bytes] = []
    monkeypatch.setattr(s3mini, "write_line", lines.append)
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    server = SimpleNamespace(log=s3mini.LOGS[log], app=app, tls=None)
    for text in ('"' * 60_000, "\x80" * 60_000, "/" * 60_000, "/k" * 1000):
        head = s3mini.Head("M" * 60_000, text, "", [], {}, {}, "x", 1, 0)
        answer = s3mini.Answer(s3mini.Response(403), text)
        answer.access_key = text
        s3mini.Connection(None, "192.0.2.1", server).log(head, answer, 0.0, 0.0, 0)

    assert [] == [len(line) for line in lines if len(line) >= 4096]
    assert b"/k" * 1000 in lines[-1]


@pytest.mark.parametrize("error", [errno.EPROTO, errno.EHOSTUNREACH])
def test_a_connection_that_is_lost_before_it_is_accepted_ends_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """accept(2) passes on what happened to it."""
    listener = s3mini.open_listener("127.0.0.1:0")
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    server = s3mini.Server(app, listener)

    def lost() -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(server, "get_request", lost)
    server.accept_now()
    error = errno.EINVAL  # that would come again at once, and for ever
    with pytest.raises(OSError, match="Invalid"):
        server.accept_now()
    server.server_close()


def test_a_client_that_has_reset_before_it_is_accepted_ends_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS says EINVAL to whoever sets an option of such a socket."""
    class Reset(socket.socket):
        def setsockopt(self, *arguments: Any) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    listener = s3mini.open_listener("127.0.0.1:0")
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    server = s3mini.Server(app, listener)
    came = [Reset(), Reset()]

    def get_request() -> tuple[socket.socket, tuple[str, int]]:
        if not came:
            raise BlockingIOError
        return came.pop(), ("192.0.2.1", 1)

    monkeypatch.setattr(server, "get_request", get_request)
    server.accept_now()
    server.server_close()

    assert ([], set()) == (came, server.connections)


def test_the_master_does_not_wait_for_who_tidies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload's lock may be held for long: neither SIGTERM nor a dead worker waits for that."""
    monkeypatch.setattr(s3mini, "tidy", lambda _: time.sleep(PATIENCE))
    master = s3mini.Master(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), [], 2)
    began = time.monotonic()
    master._tidy()
    pid = master._tidier
    master._tidy()
    same = master._tidier
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    for sock in (master._wake_in, master._wake_out, master._life, master._life_worker):
        sock.close()

    assert pid == same
    assert time.monotonic() - began < PATIENCE / 2


def test_who_serves_as_root_or_with_the_examples_keys_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    example = subprocess.run([sys.executable, PROGRAM, "config", "--example"], check=True,
                             capture_output=True, text=True).stdout
    (tmp_path / "buckets.ini").write_text(example)
    config = s3mini.load_config(str(tmp_path / "buckets.ini"))
    s3mini.warn_of_settings(config)
    of_keys = capfd.readouterr().err
    (tmp_path / "s3mini-data").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(s3mini, "check_user", lambda _: raises("sudo -u www-data"))
    s3mini.warn_of_settings(config)

    assert 4 == of_keys.count("\n") == of_keys.count("the example's secret_key")
    assert "change-me" not in of_keys
    assert "s3mini: sudo -u www-data\n" in capfd.readouterr().err


def raises(sentence: str) -> None:
    raise s3mini.ConfigError(sentence)


def test_a_worker_that_cannot_be_forked_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fork() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "fork", fork)
    master = s3mini.Master(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), [], 2)
    master._start(0)
    for sock in (master._wake_in, master._wake_out, master._life, master._life_worker):
        sock.close()

    assert {} == master.workers
    assert "cannot start a process: Cannot allocate memory; trying again" in capfd.readouterr().err


@pytest.mark.parametrize("told", ["x", "-1", ""])
def test_sockets_that_are_not_passed_are_opened(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("LISTEN_FDS", told)
    listeners = s3mini.open_listeners(("127.0.0.1:0",))

    assert 1 == len(listeners)
    listeners[0].close()


PASSES_A_SOCKET = (  # as systemd does: descriptor 3, and whom it is meant for
    "import os, sys; os.dup2(int(sys.argv[2]), 3);"
    "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid() + int(sys.argv[3])));"
    "os.execv(sys.executable, [sys.executable, sys.argv[1] + '/s3mini.py', *sys.argv[4:]])"
)


@pytest.mark.parametrize("other", [0, 1])
def test_a_socket_that_is_passed_is_served_by_whom_it_is_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, other: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        monkeypatch.setattr(subprocess, "Popen", partial(subprocess.Popen, close_fds=False))
        passed.set_inheritable(True)
        code = start(str(passed.fileno()), str(other), "dev", "--listen", "127.0.0.1:0",
                     code=PASSES_A_SOCKET)  # fmt: skip
        place = f"http://127.0.0.1:{passed.getsockname()[1]}\n"
        said = code.read_until("listening on")

    assert (other == 0) == said.endswith(place)


def test_who_connects_during_a_restart_waits_where_the_socket_is_passed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", partial(subprocess.Popen, close_fds=False))
    with socket.create_server(("127.0.0.1", 0)) as passed:
        passed.set_inheritable(True)
        first = start(str(passed.fileno()), "0", "dev", code=PASSES_A_SOCKET)
        first.read_until("listening on")
        assert 0 == first.end()
        with socket.create_connection(passed.getsockname(), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: s3\r\n\r\n")
            start(str(passed.fileno()), "0", "dev", code=PASSES_A_SOCKET)
            answer = client.recv(1000)

    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("mark", ["", "@"])
def test_systemd_is_told_what_it_is_about(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """`mark` stands for the NUL of an abstract address. [sd_notify(3)]"""
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.settimeout(PATIENCE)
        told.bind("\0" + address if mark else address)
        monkeypatch.setenv("NOTIFY_SOCKET", mark + address)
        program = start("dev", "--listen", "127.0.0.1:0")
        ready = told.recv(1000)
        said = program.read_until("listening on")
        assert 0 == program.end()
        stopping = told.recv(1000)

    url = said.split()[-1]
    assert (f"READY=1\nSTATUS=serving {url}".encode(), b"STOPPING=1") == (ready, stopping)


LIMITED = (
    "import resource, s3mini; _, hard = resource.getrlimit(resource.RLIMIT_NOFILE);"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); s3mini.raise_limit();"
    "print(resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, s3mini.OPEN_FILES), hard))"
)


def test_a_server_may_open_more_files_than_a_shell_lets_it() -> None:
    command = [sys.executable, "-c", LIMITED]
    run = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, check=True)

    assert "True\n" == run.stdout


def test_ctrl_c_in_a_command_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(s3mini, "load_config", interrupt)

    assert 130 == s3mini.main(["config"])


def test_version_and_help(start: Start) -> None:
    version, usage, unknown = start("--version"), start("--help"), start("nonsense")

    assert [0, 0, 2] == [program.end(0) for program in (version, usage, unknown)]
    assert f"s3mini {s3mini.__version__}\n" == version.said
    assert all(command in usage.said for command in ("serve", "dev", "config"))
    assert "Traceback" not in unknown.said


def test_a_command_that_is_told_too_much_says_what_it_takes(start: Start) -> None:
    said = [(p.end(0), p.said) for p in (start("serve", "my.ini"), start("check", "b", "--port=1"))]

    assert [2, 2] == [code for code, _ in said]
    expected = [("serve [-h] [--config CONFIG]", "my.ini"), ("check [-h]", "--port=1")]
    assert all(word in said[n][1] for n, words in enumerate(expected) for word in words)


# -- a unix socket ---------------------------------------------------------------------------------


def ask_unix(path: Path) -> bytes:
    """The answer to an anonymous GET."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        sock.sendall(b"GET /media/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_serve_listens_on_a_unix_socket_and_takes_it_over_from_the_dead(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "my.ini").write_text("[media]\naccess_key = k\nsecret_key = s\n")
    command = ("serve", "--config", "my.ini", "--listen", f"unix:{tmp_path}/sock")
    first = start(*command)
    first.read_until(f"listening on unix:{tmp_path}/sock")
    assert b"403 Forbidden" in ask_unix(tmp_path / "sock")
    workers = children(first.process.pid)
    first.process.kill()
    first.process.wait()
    until(lambda: not any(map(is_alive, workers)))
    second = start(*command)
    second.read_until("listening on unix:")
    third = start(*command)

    assert b"403 Forbidden" in ask_unix(tmp_path / "sock")
    assert (2, True) == (third.end(0), f"{tmp_path}/sock" in third.said)
    assert b"403 Forbidden" in ask_unix(tmp_path / "sock")
    assert 0 == second.end()


# -- two addresses ---------------------------------------------------------------------------------

Address = tuple[str, int]


def start_two(start: Start, folder: Path, options: str) -> tuple[Program, list[Address]]:
    (folder / "buckets.ini").write_text(INI.replace("[SERVER]", f"[SERVER]\n{options}"))
    program, addresses = start("serve", "--listen", "127.0.0.1:0 127.0.0.1:0"), []
    for _ in range(2):
        program.lines.clear()
        addresses.append(("127.0.0.1", int(program.read_until("listening").rpartition(":")[2])))
    return program, addresses


def client_at(address: Address) -> Client:
    return Client("{}:{}".format(*address), "media-key", "media-secret-0123456789abcdef")


def begin_put(sock: socket.socket) -> bytes:
    """A PUT of 5 bytes, as far as it goes without them: to b"HTTP/1.1 100 Continue"."""
    client, expect = client_at(sock.getpeername()), {"expect": "100-continue"}
    sent = client.sign("PUT", "/media/k", [], expect, UNSIGNED)
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    sock.sendall(f"PUT /media/k HTTP/1.1\r\ncontent-length: 5\r\n{lines}\r\n".encode())
    return sock.recv(65536)[:12]


def ask(sock: socket.socket) -> bytes:
    """The status of an anonymous GET."""
    sock.sendall(b"GET /media/k HTTP/1.1\r\nHost: x\r\n\r\n")
    return sock.recv(65536)[:12]


def test_the_connections_of_all_addresses_are_bounded_in_one(start: Start, tmp_path: Path) -> None:
    program, (one, two) = start_two(start, tmp_path, "workers = 1\nmax_connections = 2")
    threads = Path(f"/proc/{program.process.pid}/task")
    with contextlib.ExitStack() as stack:

        def connect(address: Address) -> socket.socket:
            return stack.enter_context(socket.create_connection(address, timeout=PATIENCE))

        idle = [connect(one), connect(one)]
        assert [b"HTTP/1.1 403"] * 2 == [ask(sock) for sock in idle]
        until(lambda: len(list(threads.iterdir())) == 3)  # two fronts and who tidies: no others
        busy = [connect(two), connect(two)]  # those make room, though they came to the other
        assert [b"HTTP/1.1 100"] * 2 == [begin_put(sock) for sock in busy]
        assert [b"", b""] == [sock.recv(1) for sock in idle]
        for address in (one, two):
            assert b"HTTP/1.1 503" == connect(address).recv(65536)[:12]
        for sock in busy:
            sock.sendall(b"hello")
            assert b"HTTP/1.1 200" == sock.recv(65536)[:12]
        until(lambda: client_at(one).get("/media/k").body == b"hello")  # once they are idle

    assert 0 == program.end()


def test_no_address_is_taken_once_the_master_was_killed(start: Start, tmp_path: Path) -> None:
    """Its workers finish what they are doing, but the next server must not wait for that."""
    program, addresses = start_two(start, tmp_path, "workers = 2")
    with socket.create_connection(addresses[0], timeout=PATIENCE) as sock:
        assert b"HTTP/1.1 100" == begin_put(sock)
        began = time.monotonic()
        program.process.kill()
        until(lambda: all(map(refuses, addresses)))
        took = time.monotonic() - began
        sock.sendall(b"hello")
        assert b"HTTP/1.1 200" == sock.recv(65536)[:12]

    assert took < s3mini.STOP_SECONDS / 3


# -- signals ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def unheard(folder: Path, redirection: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that can tell nobody anything, not even its port: it listens at folder/sock."""
    (folder / "buckets.ini").write_text(INI.replace("[SERVER]", "[SERVER]\nworkers = 2"))
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, str(PROGRAM), "serve"]
    command += ["--data", "data", "--listen", f"unix:{folder}/sock"]
    process = subprocess.Popen(command, cwd=folder)
    try:
        until(lambda: len(children(process.pid)) == 2 or process.poll() is not None)
        yield process
        process.terminate()
        assert 0 == process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


def test_a_server_that_is_started_without_output_has_one(tmp_path: Path) -> None:
    """The log's number would be that of the next file that is opened: a sidecar. (2026-11)"""
    with unheard(tmp_path, "<&- >&- 2>&-") as process:
        places = [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)
                  for pid in (process.pid, *children(process.pid))]
        answer = ask_unix(tmp_path / "sock")

    assert {"/dev/null"} == set(places)
    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_a_log_that_cannot_be_written_ends_no_server(tmp_path: Path) -> None:
    """It may lie on the disk that is full: there are a greeting, and a worker's end to tell of."""
    with unheard(tmp_path, ">/dev/full 2>&1") as process:
        before = children(process.pid)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: set(children(process.pid)) - set(before) or process.poll() is not None)
        answer = ask_unix(tmp_path / "sock")

    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_finishes_a_request_in_flight(serve: Serve, workers: int) -> None:
    server = serve(workers=workers)
    client = server.client(bucket="media")
    sent = client.sign("PUT", "/media/k", [], {"expect": "100-continue"}, UNSIGNED)
    head = "PUT /media/k HTTP/1.1\r\ncontent-length: 10\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in sent.items()) + "\r\n"
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as sock:
        sock.sendall(head.encode())
        assert b"100 Continue" in sock.recv(1000)
        sock.sendall(b"12345")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: refuses((server.host, server.port)))
        sock.sendall(b"67890")
        answer = sock.recv(65536)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in answer.lower()
    assert 0 == server.process.wait(PATIENCE)
    assert b"1234567890" == (server.data / "media/k").read_bytes()


def test_a_server_that_is_told_to_end_as_soon_as_it_listens_ends_with_0(serve: Serve) -> None:
    server = serve(workers=1)
    codes = [server.stop()]
    for _ in range(3):
        server.start()
        codes.append(server.stop())

    assert [0] * 4 == codes


def test_sigterm_does_not_wait_for_idle_connections(serve: Serve) -> None:
    server = serve(workers=2)
    server.client(bucket="media").head()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(socket.create_connection((server.host, server.port)))
        began = time.monotonic()

        assert 0 == server.stop()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_it_cleanly(serve: Serve, workers: int) -> None:
    server = serve(workers=workers)
    server.client(bucket="media").put("k", b"x")
    pids = workers_of(server, 0 if workers == 1 else workers)
    for pid in (server.process.pid, *pids):  # a terminal sends it to all of them
        with contextlib.suppress(ProcessLookupError):  # the master may have ended it by now
            os.kill(pid, signal.SIGINT)

    assert 0 == server.process.wait(PATIENCE)
    assert "" == server.log
    assert not any(map(is_alive, pids))


def test_a_worker_that_is_killed_is_restarted(serve: Serve) -> None:
    server = serve(workers=2)
    before = workers_of(server, 2)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(children(server.process.pid)) - set(before)) == 2)

    assert 200 == server.client(bucket="media").put("k", b"x").status
    assert all(f"worker {pid} ended" in server.log for pid in before)


def test_the_workers_end_with_a_master_that_is_killed(serve: Serve) -> None:
    server = serve(workers=2)
    workers = workers_of(server, 2)
    server.kill()

    until(lambda: not any(map(is_alive, workers)))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_data_folder_that_is_away_for_a_while_ends_no_server(
    start: Start, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "buckets.ini").write_text(INI.replace("[SERVER]", f"[SERVER]\nworkers = {workers}"))
    server = start("serve", "--data", "data", "--listen", "127.0.0.1:0", code=HASTY)
    address = server.read_until("listening").partition("//")[2].split()[0]
    (tmp_path / "data").rename(tmp_path / "away")
    for _ in range(3):
        server.lines.clear()
        assert "No such file" in server.read_until("cannot look for unfinished uploads")
    (tmp_path / "away").rename(tmp_path / "data")
    client = Client(address, "media-key", "media-secret-0123456789abcdef")

    assert 200 == client.put("/media/k", b"x").status
    assert 0 == server.end()
    assert "Traceback" not in server.said


def test_nothing_is_lost_over_a_restart(serve: Serve) -> None:
    server = serve()
    client = server.client(bucket="media")
    client.put("k", b"x", {"x-amz-meta-a": "1"})
    upload = client.post("m", b"", query="uploads").element("UploadId")
    server.stop()
    server.start()
    client = server.client(bucket="media")
    got = client.get("k")

    assert (b"x", "1") == (got.body, got.headers["x-amz-meta-a"])
    assert [upload] == client.get(query="uploads").elements("UploadId")


def test_temp_files_of_the_dead_are_removed_at_the_start(serve: Serve) -> None:
    server = serve()
    server.kill()
    stray = server.data / "media/.s3mini/tmp/stray"
    stray.write_bytes(b"half of something")
    server.start()

    assert not stray.exists()


def test_a_temp_file_of_the_living_stays(tmp_path: Path) -> None:
    """Another server on the same folder starts while a body is on its way."""
    store, other = (s3mini.Store(str(tmp_path), s3mini.Disk(False)) for _ in range(2))
    store.create()
    with store.files.stage() as staged:
        other.clean()
        assert os.path.exists(staged.path)


def test_the_log_has_a_line_for_each_request_and_no_secret(serve: Serve) -> None:
    server = serve(INI, log="text")
    client = server.client(bucket="media")
    client.put("ä b\n", b"x")
    url = client.presign("GET", "missing")
    client.fetch(url)
    server.stop()
    # Two connections, perhaps of two workers: each writes its line when its answer is out.
    lines = sorted(server.log.splitlines(), key=lambda line: " GET " in line)

    assert 2 == len(lines), server.log
    assert all(word in lines[0] for word in ("PUT", "/media/%C3%A4%20b%0A", "200", "media-key"))
    assert all(word in lines[1] for word in ("GET", "/media/missing", "404", "NoSuchKey"))
    assert url.rpartition("=")[2] not in server.log
    assert client.secret_key not in server.log


def test_the_log_tells_how_much_of_a_download_went_out(serve: Serve) -> None:
    server = serve(INI, log="text")
    client, size = server.client(bucket="media"), 30_000_000
    client.put("k", b"x" * size)
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as sock:
        signed = client.sign("GET", "/media/k", [], {}, UNSIGNED)
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
        sock.sendall(f"GET /media/k HTTP/1.1\r\n{lines}\r\n".encode())
        got = len(sock.recv(1_000_000, socket.MSG_WAITALL))
    until(lambda: " GET " in server.log)
    status, code, sent = server.log.splitlines()[-1].split()[5:8]

    assert ("200", "Disconnected") == (status, code)
    assert got - 1000 < int(sent) < size


@pytest.mark.parametrize("log", ["text", "json"])
def test_what_is_no_request_has_a_line_of_the_same_fields(serve: Serve, log: str) -> None:
    server = serve(INI, log=log)
    server.client(bucket="media").get("k")
    with socket.create_connection((server.host, server.port)) as sock:
        sock.sendall(b"no request\r\n\r\n")
        while sock.recv(1000):
            pass
    server.stop()
    lines = server.log.splitlines()
    fields = [list(json.loads(line)) if log == "json" else line.split() for line in lines]

    assert 2 == len(fields), server.log
    assert len(fields[0]) == len(fields[1])
    assert 2 == len(re.findall(r"\b20[0-9-]{8}T[0-9:]{8}\.[0-9]{3}Z", server.log))
    assert log == "text" or fields[0] == fields[1]
    assert 1 == len([line for line in lines if "BadRequest" in line and "400" in line])


LATE_SIGNAL = """
import signal, sys, threading, time, s3mini
serving, run = threading.Event(), s3mini.Server.run
def run_and_say(server):
    serving.set()
    run(server)
def signal_here():
    serving.wait()
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
s3mini.Server.run = run_and_say
threading.Thread(target=signal_here, daemon=True).start()
sys.exit(s3mini.main(["serve", "--config", sys.argv[1], "--listen", "127.0.0.1:0"]))
"""


def test_a_signal_that_interrupts_no_wait_ends_the_server_all_the_same(tmp_path: Path) -> None:
    """As one just before the wait; here another thread gets it, the first one's wait goes on."""
    config = tmp_path / "buckets.ini"
    config.write_text(INI.replace("[SERVER]\n", "[SERVER]\nworkers = 1\n", 1))
    done = subprocess.run(
        [sys.executable, "-c", LATE_SIGNAL, str(config)],
        cwd=PROGRAM.parent, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr


# -- the fake --------------------------------------------------------------------------------------


def test_the_log_has_milliseconds() -> None:
    assert "1994-11-06T08:49:37.042Z" == s3mini.render_log_time(784111777.0425)
    assert "1994-11-06T08:49:37.999Z" == s3mini.render_log_time(784111777.9999)


def client_of(fake: s3mini.Fake) -> Client:
    return Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")


def test_the_fake_serves_buckets_in_this_process() -> None:
    with s3mini.start("photos", "videos") as fake:
        client = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key)
        client.put("/photos/k", b"x")

        assert b"x" == (Path(fake.data) / "photos/k").read_bytes()
        assert b"x" == client.get("/photos/k").body
        assert ["photos", "videos"] == client.get("/").elements("Name")
    assert not Path(fake.data).exists()


@pytest.mark.parametrize("name", ["trail ", "line\nfeed", "100%", "# no; comment", "'quoted'"])
def test_a_fake_stores_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    with s3mini.start(data=tmp_path / name) as fake:
        client_of(fake).put("k", b"x")

    assert [name] == os.listdir(tmp_path)
    assert b"x" == (tmp_path / name / "media/k").read_bytes()


def test_a_fakes_folder_is_known_from_every_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with s3mini.start(data="fixtures") as fake:
        monkeypatch.chdir("/")
        client_of(fake).put("k", b"x")

        assert b"x" == (Path(fake.data) / "media/k").read_bytes()


CLIENTS_THAT_LEAVE = """
import signal, socket, sys
sys.path[:0] = sys.argv[1:]
from signing_client import Client
import s3mini
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as command lines do, and their tests with them
with s3mini.start() as fake:
    with open(fake.data + "/media/large", "wb") as file:
        file.truncate(2**28)
    s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
    host, port = s3.address.split(":")
    for _ in range(4):
        with socket.create_connection((host, int(port))) as sock:
            target = s3.presign("GET", "large").partition(s3.address)[2]
            sock.sendall(f"GET {target} HTTP/1.1\\r\\nHost: {s3.address}\\r\\n\\r\\n".encode())
            sock.recv(1000)
    print(s3.put("k", b"x").status)
"""


def test_a_client_that_leaves_ends_no_process_that_holds_a_fake() -> None:
    folders = str(PROGRAM.parent), str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", CLIENTS_THAT_LEAVE, *folders],
                          capture_output=True, text=True, check=False)

    assert (0, "200\n", "") == (done.returncode, done.stdout, done.stderr)


def test_a_fakes_connections_send_no_sigpipe_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is the process's, whatever a thread masks."""
    real, told = socket.socket.setsockopt, []

    def setsockopt(sock: socket.socket, level: int, option: int, value: Any) -> None:
        told.append((level, option, value))
        if option != s3mini.SO_NOSIGPIPE:
            real(sock, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    monkeypatch.setattr(sys, "platform", "darwin")
    with s3mini.start() as fake:
        assert 200 == client_of(fake).put("k", b"x").status

    assert (socket.SOL_SOCKET, 0x1022, 1) in told


def test_a_fake_does_not_start_where_names_are_not_utf_8() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import s3mini\ntry: s3mini.start()\n"
         "except s3mini.ConfigError as why: print(why)"],
        cwd=PROGRAM.parent, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "POSIX", "PYTHONUTF8": "0",
             "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip

    assert (0, True) == (done.returncode, "file names must be UTF-8" in done.stdout), done.stderr


def test_a_fake_obeys_the_acl_of_an_object() -> None:
    """The application under test may say public-read, as for a bucket whose owner lets it."""
    with s3mini.start("media") as fake:
        client = client_of(fake)
        client.put("open", b"x", {"x-amz-acl": "public-read"})
        client.put("shut", b"x")
        own = Client(client.address, client.access_key, client.secret_key, "own")
        made = own.put("", b"", {"x-amz-object-ownership": "ObjectWriter"})

        assert [200, 403] == [client.anonymous().get(key).status for key in ("open", "shut")]
        assert 200 == made.status


def test_an_application_finds_a_fake_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the README says it: its own clients, and files that a test puts there."""
    import boto3

    with s3mini.start("media") as fake:
        (Path(fake.data) / "media/seed.txt").write_bytes(b"x")
        for name, value in {
            "AWS_ENDPOINT_URL": fake.endpoint, "AWS_ACCESS_KEY_ID": fake.access_key,
            "AWS_SECRET_ACCESS_KEY": fake.secret_key, "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_SESSION_TOKEN": "",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        client = boto3.session.Session().client("s3")

        assert b"x" == client.get_object(Bucket="media", Key="seed.txt")["Body"].read()
        client.close()


def test_two_fakes_do_not_know_each_other(tmp_path: Path) -> None:
    with s3mini.start() as one, s3mini.start(data=str(tmp_path)) as two:
        for fake, content in ((one, b"1"), (two, b"2")):
            url = fake.endpoint.partition("//")[2]
            Client(url, fake.access_key, fake.secret_key, bucket="media").put("k", content)

        assert one.endpoint != two.endpoint
        assert b"1" == (Path(one.data) / "media/k").read_bytes()
    assert b"2" == (tmp_path / "media/k").read_bytes()


FROZEN = 1_326_542_400  # 2012-01-14 12:00 UTC


@contextlib.contextmanager
def frozen_time(seconds: int) -> Iterator[list[int]]:
    """Time stands still, as freezegun 1.5 has it; the list's number may be changed.

    In all modules that have a function of it by name, and for all callers but those that come from
    some few modules, of which threading is one, within five calls.
    """
    clock = [seconds]

    def frozen(name: str, value: Callable[[int], Any]) -> tuple[Any, Callable[..., Any]]:
        real = getattr(time, name)

        def tell(*arguments: Any) -> Any:
            frame, calls = sys._getframe(1), []
            while frame and len(calls) < 5:
                calls.append(frame.f_globals.get("__name__"))
                frame = frame.f_back  # type: ignore[assignment]
            return real(*arguments) if arguments or "threading" in calls else value(clock[0])

        return real, tell

    fakes = dict([frozen("time", float), frozen("monotonic", float), frozen("perf_counter", float),
                  frozen("time_ns", lambda s: s * 10**9), frozen("gmtime", time.gmtime)])
    with pytest.MonkeyPatch.context() as patch:
        for module in [m for name, m in sys.modules.copy().items() if name not in USES_REAL_TIME]:
            for name, value in vars(module).copy().items():
                if isinstance(value, BuiltinFunctionType) and value in fakes:
                    patch.setattr(module, name, fakes[value])
        yield clock


USES_REAL_TIME = {"threading", "queue"}  # and are not touched


def test_a_fake_has_the_time_that_a_test_freezes() -> None:
    """What waits in it does so by a clock that goes on."""
    with s3mini.start("media") as fake:
        client = client_of(fake)
        assert 200 == client.put("before").status
        with frozen_time(FROZEN) as clock:
            statuses = [client.put("small", b"x").status, client.put("large", LARGE).status]
            replies = [client.head(key) for key in ("small", "large")]
            url = client.presign("GET", "small", expires=60)
            statuses += [client.fetch(url).status]
            clock[0] += 61
            statuses += [client.fetch(url).status, client.put("small", b"y").status]
            replies.append(client.head("small"))
        statuses += [client.get("small").status, client.put("large", LARGE).status]

    assert [200, 200, 200, 403, 200, 200, 200] == statuses
    said = [reply.headers["last-modified"] for reply in replies]
    assert ["Sat, 14 Jan 2012 12:00:00 GMT"] * 2 + ["Sat, 14 Jan 2012 12:01:01 GMT"] == said


def test_a_fake_may_be_imported_while_time_stands_still() -> None:
    spec = importlib.util.spec_from_file_location("s3mini_in_a_freeze", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with frozen_time(FROZEN):
        spec.loader.exec_module(module)
        with module.start("media") as fake:
            assert [200, 200] == [client_of(fake).put(key, LARGE).status for key in "ab"]
    with module.start("media") as fake:
        assert [200, 200] == [client_of(fake).put(key, LARGE).status for key in "ab"]


def test_a_fake_leaves_no_folder_where_its_stop_is_interrupted(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = s3mini.start("media")

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake._front, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fake.stop()
    fake._front.join(20)
    fake._server.server_close()

    assert not os.path.exists(fake.data)


def test_who_stops_a_fake_that_is_being_stopped_waits_too() -> None:
    """Its folder stays until the requests in flight have their answers."""
    fake = s3mini.start("media")
    client = client_of(fake)
    head = client.sign("PUT", "/media/k", [], {"content-length": "1"}, UNSIGNED)
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    with socket.create_connection(("127.0.0.1", int(client.address.partition(":")[2]))) as sock:
        sock.settimeout(20)
        sock.sendall(f"PUT /media/k HTTP/1.1\r\n{lines}\r\n".encode())
        time.sleep(0.1)
        stops = [threading.Thread(target=fake.stop) for _ in range(2)]
        for stop in stops:
            stop.start()
        time.sleep(0.2)
        assert os.path.isdir(fake.data)
        sock.sendall(b"x")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    for stop in stops:
        stop.join()

    assert not os.path.exists(fake.data)


def test_a_frozen_future_makes_no_change_on_the_disk_old(tmp_path: Path) -> None:
    """Names that may change within the same tick of the disk's clock are not kept."""
    for number in range(s3mini.FEW_NAMES):
        (tmp_path / f"{number}").touch()
    cache = s3mini.NamesCache()
    with s3mini.Folder.open(str(tmp_path)) as folder, frozen_time(4_000_000_000):
        (tmp_path / "last").touch()
        cache.find(folder, False, 0)

        assert [(0, 0)] == [known.times for known in cache._known.values()]


FORKED = """
import hashlib, os, signal, sys, s3mini

def store(root, data):
    store = s3mini.Store(os.path.join(sys.argv[1], root), s3mini.Disk(False))
    store.create()
    body = s3mini.Body(Source([data]), s3mini.Promise(length=len(data)))
    describe = lambda: s3mini.Entry(len(data), body.md5, body.md5, 0)
    return store.put("k", body, describe, s3mini.no_check).md5

class Source:
    def __init__(self, pieces):
        self.pieces = pieces
    def read(self, size):
        return self.pieces.pop() if self.pieces else b""

signal.alarm(60)
data = b"x" * s3mini.PIECE
assert store("parent", data) == hashlib.md5(data).hexdigest()
child = os.fork()
if not child:
    signal.alarm(30)
    os._exit(store("child", data) != hashlib.md5(data).hexdigest())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_was_forked_after_an_upload_takes_another(tmp_path: Path) -> None:
    """The threads that hash did not come along."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(tmp_path)],
        cwd=PROGRAM.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ("0\n", "") == (run.stdout, run.stderr)


def test_a_process_that_is_forked_while_a_lock_is_held_does_not_keep_it(tmp_path: Path) -> None:
    """A pool of processes in a test lives for long; the fake's next PUT would wait for its end."""
    command = [sys.executable, "-c", FORKS_UNDER_LOCKS, str(tmp_path)]
    done = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, timeout=60,
                          check=False)

    assert ("4 forks, kept: []\n", "") == (done.stdout, done.stderr)


FORKS_UNDER_LOCKS = """
import fcntl, glob, io, os, s3mini, signal, sys, time
signal.alarm(20)
store = s3mini.Store(sys.argv[1] + "/b", s3mini.Disk(False), quota=10**6)
store.create()
children = []

def forks(owner, name):
    real = getattr(owner, name)
    def fork_first(*args):
        setattr(owner, name, real)
        children.append(os.fork())
        if not children[-1]:
            time.sleep(40)
            os._exit(0)
        return real(*args)
    setattr(owner, name, fork_first)

def body():
    return s3mini.Body(io.BytesIO(b"1234"), s3mini.Promise(length=4))

entry = s3mini.Entry(4, "0" * 32, "0" * 32, 1)
forks(s3mini.Store, "_swap_in")
store.put("a", body(), lambda: entry, s3mini.no_check)
forks(s3mini.Store, "_rename_locked")
store.rename("a", "b", s3mini.no_check, s3mini.no_check)
forks(s3mini, "write_number")
store.put("a", body(), lambda: entry, s3mini.no_check)
upload = s3mini.Upload("0" * 32, "k", 1, entry)
store.uploads.create(upload)
forks(s3mini.Uploads, "_lose")
store.uploads.put_part(upload, 1, body())
kept = []
for kind in ("locks/*", "usage", "uploads/*/lock"):
    for path in glob.glob(store.room + "/" + kind):
        try:
            fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            kept.append(path)
for child in children:
    os.kill(child, 9)
print(len(children), "forks, kept:", kept)
"""


def test_a_body_that_a_test_did_not_read_holds_no_stop_up() -> None:
    before = threading.active_count()
    with s3mini.start("media") as fake:
        client = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        client.put("large", b"x" * 50_000_000)
        connection = http.client.HTTPConnection(client.address, timeout=PATIENCE)
        signed = client.sign("GET", "/media/large", [], {}, UNSIGNED)
        connection.request("GET", "/media/large", headers=signed)
        connection.getresponse().read(100)
        began = time.monotonic()
    took = time.monotonic() - began
    connection.close()

    assert took < 10
    hashing = 2 * (os.cpu_count() or 1)  # those threads stay
    until(lambda: threading.active_count() <= before + hashing)


def test_a_fake_is_stopped_by_its_own_process_only() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS_OF_A_FAKE]
    done = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, timeout=60,
                          check=False)

    assert ("True refused gone\n", "") == (done.stdout, done.stderr)


# One child stops the fake and ends as programs do; another one lives on with what it inherited.
FORKS_OF_A_FAKE = """
import os, socket, sys, time, s3mini
fake = s3mini.start("media")
if not os.fork():
    fake.stop()
    sys.exit()
os.wait()
there = os.path.exists(fake.data + "/media/.s3mini/bucket.json")
host, _, port = fake.endpoint.partition("//")[2].rpartition(":")
kept, ended = [socket.create_connection((host, int(port)), timeout=5) for _ in "12"]
for sock in (kept, ended):
    sock.sendall(b"GET /media/k HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    sock.recv(9999)
living = os.fork()
if not living:
    time.sleep(60)
    os._exit(0)
ended.sendall(b"GET /media/k HTTP/1.0\\r\\n\\r\\n")
while ended.recv(9999):
    pass
fake.stop()
assert not kept.recv(9999)
try:
    socket.create_connection((host, int(port)), timeout=5)
    said = "accepted"
except ConnectionRefusedError:
    said = "refused"
os.kill(living, 9)
print(there, said, "there" if os.path.exists(fake.data) else "gone")
"""


def test_a_fake_that_nobody_holds_ends() -> None:
    threads = threading.active_count()
    fake = s3mini.start()
    data, url = fake.data, fake.endpoint.partition("//")[2]
    del fake

    host, _, port = url.partition(":")
    assert refuses((host, int(port)))
    assert not os.path.exists(data)
    assert threading.active_count() <= threads


def test_a_fake_that_nobody_stops_ends_before_its_folder_goes() -> None:
    """What is stored meanwhile would stay in /tmp."""
    command = [sys.executable, "-c", ENDS_WITHOUT_STOP]
    done = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, timeout=60,
                          check=False)

    assert ("refused\n", "") == (done.stdout, done.stderr)


ENDS_WITHOUT_STOP = """
import socket, s3mini
fake = s3mini.start("media")
host, _, port = fake.endpoint.partition("//")[2].rpartition(":")
def remove_tree(path, remove=s3mini.remove_tree):
    with socket.socket() as sock:
        print("refused" if sock.connect_ex((host, int(port))) else "accepted")
    remove(path)
s3mini.remove_tree = remove_tree
"""


def test_a_fake_that_stopped_is_gone() -> None:
    fake = s3mini.start()
    url = fake.endpoint.partition("//")[2]
    threads = threading.active_count()
    fake.stop()

    host, _, port = url.partition(":")
    assert refuses((host, int(port)))
    assert threading.active_count() < threads
