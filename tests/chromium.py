"""Headless Chromium through its own driver, with nothing but the standard library.

    with Chromium(folder) as browser:
        browser.open(url)
        result = browser.run("return await fetch(arguments[0]).then(r => r.status)", url)
"""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

import rooms

FLAGS = (
    "--headless",
    "--no-sandbox",  # it does not start as root with one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # What it does on the network by itself is nothing we want to wait for.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT = 60  # seconds for a script or a page


class Chromium:
    """A browser with an empty profile. [W3C: WebDriver]"""

    def __init__(self, folder: Path) -> None:
        self._profile = folder / "profile"
        self._log = folder / "chromedriver.log"
        self._driver = rooms.program("chromedriver")
        self._browser = rooms.program("chromium")

    def __enter__(self) -> Chromium:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [self._driver, "--port=0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._port = self._told_port()
        options = {
            "binary": self._browser,
            "args": [*FLAGS, f"--user-data-dir={self._profile}"],
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        timeouts = {"script": TIMEOUT * 1000, "pageLoad": TIMEOUT * 1000}
        asked = {"capabilities": {"alwaysMatch": {**wanted, "timeouts": timeouts}}}
        self._session = ""
        self._session = "/session/" + self._call("POST", "/session", asked)["sessionId"]
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            if self._session:
                self._call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait(10)
            self._reader.join(10)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def limit_upload(self, rate: int) -> None:
        """Let pages send no more than `rate` bytes a second from now on. [chromedriver]"""
        limits = {"offline": False, "latency": 0, "upload_throughput": rate}
        limits["download_throughput"] = -1  # without a limit
        self._call("POST", "/chromium/network_conditions", {"network_conditions": limits})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, as the body of an async function; gives what it returns."""
        body = f"""
            const done = arguments[arguments.length - 1];
            (async function () {{ {script} }}).apply(null, arguments)
                .then((value) => done({{ value }}), (error) => done({{ error: String(error) }}));
        """
        got = self._call("POST", "/execute/async", {"script": body, "args": arguments})
        if "error" in got:
            raise AssertionError("in the page: " + got["error"])
        return got.get("value")

    def _read_on(self) -> None:
        """Read what the driver says: a full pipe would stop it some day."""
        assert self.process.stdout
        with self.process.stdout as output:
            output.read()

    def _told_port(self) -> int:
        """The port that the driver says it has chosen."""
        assert self.process.stdout
        for line in self.process.stdout:
            if "on port " in line and "started successfully" in line:
                self._reader = threading.Thread(target=self._read_on, daemon=True)
                self._reader.start()
                return int(line.rpartition("on port ")[2].strip(" .\n"))
        raise AssertionError("chromedriver ended: " + self._log.read_text())

    def _call(self, method: str, path: str, body: Optional[dict[str, Any]] = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT + 10)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, self._session_of(path), sent)
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "stacktrace" in value:
            raise AssertionError(f"chromedriver: {value['error']}: {value['message']}")
        return value

    def _session_of(self, path: str) -> str:
        return path if path == "/session" else self._session + path
