"""nginx with TLS in front of a server, with a certificate made on the spot.

The directives are the README's: what is tested here is what people paste.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Optional

import rooms
from signing_client import Client

LOCATION = """\
location / {
    proxy_pass http://127.0.0.1:9000;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Connection "";
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-For $remote_addr;
    client_max_body_size 0;
    proxy_request_buffering off;
    proxy_buffering off;
}
"""

CONFIG = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    access_log off;
    {temporary}
    server {{
        listen 127.0.0.1:{port} ssl{http2};
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        merge_slashes off;
        ignore_invalid_headers off;
        {location}
    }}
}}
"""

EXTENSIONS = """\
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,DNS:*.localhost,IP:127.0.0.1
"""


class Nginx:
    """A running nginx; `with Nginx(folder, "127.0.0.1:9000") as proxy: proxy.endpoint`."""

    def __init__(self, folder: Path, address: str, http2: bool = False) -> None:
        self.folder, self.http2 = folder, http2
        self.cafile = str(folder / "ca.pem")
        self._location = LOCATION.replace("127.0.0.1:9000", address)
        self._program = rooms.program("nginx")
        make_certificate(folder)

    def __enter__(self) -> Nginx:
        for _ in range(5):  # a free port may be taken by somebody else before nginx has it
            self.port = _free_port()
            if self._starts():
                self.address = f"localhost:{self.port}"
                self.endpoint = f"https://{self.address}"
                return self
        raise AssertionError(f"nginx does not start:\n{self.log}")

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.process.terminate()
        self.process.wait(10)

    def client(self, access_key: str = "", secret_key: str = "", bucket: str = "") -> Client:
        """A signing client that comes through the proxy."""
        return Client(self.address, access_key, secret_key, bucket=bucket, cafile=self.cafile)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _starts(self) -> bool:
        """Start it; whether it serves. It says nothing when it does, so its port is asked."""
        config = self.folder / "nginx.conf"
        config.write_text(self._config())
        with (self.folder / "log").open("w") as log:
            command = [self._program, "-p", str(self.folder), "-c", str(config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        while self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return (self.folder / "pid").exists()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
        return False

    def _config(self) -> str:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        return CONFIG.format(
            # Started by root it would change to a user who may not enter our folder.
            user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
            folder=self.folder,
            temporary=" ".join(f"{kind}_temp_path {self.folder}/{kind};" for kind in kinds),
            port=self.port,
            http2=" http2" if self.http2 else "",
            location=self._location,
        )


def make_certificate(folder: Path) -> None:
    """ca.pem, and server.pem with server.key for localhost, signed by it.

    Two certificates and not a self-signed one: some clients (Rust's) refuse a CA as a server, and
    Python 3.13 refuses a CA without key usage.
    """
    (folder / "extensions").write_text(EXTENSIONS)
    new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    usage = "-addext keyUsage=critical,keyCertSign,cRLSign"
    by = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile extensions -extensions server"
    _openssl(folder, f"req -x509 {new} {usage} -days 9 -subj /CN=ca -keyout ca.key -out ca.pem")
    _openssl(folder, f"req {new} -subj /CN=localhost -keyout server.key -out server.csr")
    _openssl(folder, f"x509 -req {by} -days 9 -in server.csr -out server.pem")


def _openssl(folder: Path, command: str) -> None:
    subprocess.run(
        [rooms.program("openssl"), *command.split()], cwd=folder, check=True, capture_output=True
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
