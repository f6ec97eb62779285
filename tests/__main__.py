"""python3 tests [pytest arguments]: the whole suite, from a clean clone, with nothing installed.

It makes an environment of its own below tests/.cache (once), then runs pytest in parallel.
    python3 tests                           everything
    python3 tests -m "not clients"          without the real clients: a minute instead of several
    python3 tests tests/test_wire.py -n 0   one file, in one process
With S3MINI_REQUIRE_CLIENTS=1 a client that cannot be installed is a failure, not a skip.
"""

from __future__ import annotations

import os
import sys

import rooms


def main(arguments: list[str]) -> int:
    """Become pytest with `arguments`, its exit code and its signals; returns only if it cannot."""
    if sys.version_info < (3, 9):  # noqa: UP036
        return _complain("Python 3.9 or newer is needed, this is " + sys.version.split()[0])
    try:
        folder = rooms.room("tests", show=True)
    except rooms.MissingError as error:
        return _complain(f"{error}. Once installed, no network is needed any more.")
    workers = str(max(2, os.cpu_count() or 2))
    # Stealing work, because one restic test lasts as long as a hundred small ones.
    command = [str(folder / "python"), "-m", "pytest", "-n", workers, "--dist", "worksteal"]
    os.chdir(rooms.HERE.parent)
    sys.stdout.flush()
    return os.execv(command[0], command + arguments)


def _complain(sentence: str) -> int:
    print("tests: " + sentence, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
