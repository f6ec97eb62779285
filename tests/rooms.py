"""Rooms: where the clients under test are installed, on demand, and kept for the next run.

tests/requirements.txt says what belongs into which Python room, tests/package.json what is taken
from npm. A room's folder is named after the Python version and a hash of what belongs into it, so
it is made once, and made again when its list changes. Nothing outside tests/.cache is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Union

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # Debian's nginx is not on a user's PATH


class MissingError(Exception):
    """A client that cannot be had on this machine; the message says why and what to do."""


def program(name: str) -> str:
    """The path of a program of the system, such as nginx. Raises MissingError."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":" + SYSTEM_FOLDERS)
    if not found:
        raise MissingError(f"{name} is not installed (on Debian, .ci/run installs it)")
    return found


def room(name: str, show: bool = False) -> Path:
    """The bin folder of a Python room, made when it is not there. Raises MissingError.

    `show` lets pip talk to the terminal, for the one room that somebody sits and waits for.
    """
    wanted = requirements()[name]
    version = f"py{sys.version_info[0]}.{sys.version_info[1]}"

    def fill(folder: Path) -> None:
        # The first room brings the pip that fills the others: a pip in each would cost 3 s each.
        first = name == "tests"
        try:
            venv.create(folder, with_pip=first, symlinks=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise MissingError(
                f"python3 -m venv does not work here: {error} (on Debian: apt install python3-venv)"
            ) from None
        inside = folder / "bin" / "python"
        elsewhere = [] if first else ["--python", str(inside)]
        pip = [str(inside) if first else sys.executable, "-m", "pip", *elsewhere]
        plain = ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
        _run([*pip, "install", "--no-compile", *plain, *wanted], folder, show)

    return _made(CACHE / f"{name}-{version}-{_digest(wanted)}", fill) / "bin"


def node_room() -> Path:
    """The folder with package.json and its node_modules. Raises MissingError."""
    package = HERE / "package.json"
    npm = program("npm")

    def fill(folder: Path) -> None:
        shutil.copy(package, folder)
        _run([npm, "install", "--no-audit", "--no-fund", "--no-package-lock"], folder)

    return _made(CACHE / f"npm-{_digest([package.read_text()])}", fill)


def requirements() -> dict[str, list[str]]:
    """Room -> its requirements, in pip's words."""
    rooms: dict[str, list[str]] = {}
    for line in (HERE / "requirements.txt").read_text().splitlines():
        wanted, _, comment = line.partition("#")
        if comment.startswith(" room: "):
            lines = rooms.setdefault(comment.split()[1], [])
        elif wanted.strip():
            lines.append(wanted.strip())
    return rooms


def _made(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled by this call unless an earlier one has; two who want it at once queue."""
    if folder in _failures:  # offline, each further try would cost pip's whole patience again
        raise MissingError(_failures[folder])
    CACHE.mkdir(exist_ok=True)
    ready = folder / ".ready"
    with _locked(folder.with_name(folder.name + ".lock")):
        if ready.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was ended half-way left
        folder.mkdir()
        try:
            fill(folder)
        except MissingError as error:
            _failures[folder] = str(error)
            raise
        ready.touch()
    return folder


_failures: dict[Path, str] = {}  # folder -> why it could not be filled, in this process


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[Union[str, Path]], folder: Path, show: bool = False) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "see above" if show else " / ".join((done.stdout or "").splitlines()[-3:])
        raise MissingError(f"could not install what {folder.name} needs: {last}")


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
