"""A disk that fails: what was stored stays as it was, and the next attempt works.

First every call of the file layer fails in turn, then the real program meets real trouble: a disk
that is full, of bytes or of files, a limit of file sizes, too few descriptors.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from conftest import INI, Serve, Server
from powercut import (
    TMP,
    Version,
    body_of,
    entry_of,
    fast_folder,
    listed,
    put,
    read_object,
    version_of,
)
from signing_client import Client, Reply

import s3mini

OLD = b"old content of this key"
NEW = b"NEW CONTENT OF THIS KEY"
ERRNOS = [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EDQUOT]
CALLS = ("create", "write", "stamp", "sync", "sync_folder", "rename", "unlink", "mkdir", "rmdir")
UPLOAD = s3mini.Upload("0123456789abcdef" * 2, "x/k", 1_600_000_000, entry_of(b"", "joined"))


class FailingDisk(s3mini.Disk):
    """A file layer where the `number`th call named `call` fails; with `lasting` the later ones too.

    A file whose fsync failed is remembered: a later fsync of it that "succeeds" is a lie. None is
    really made.
    """

    def __init__(self, call: str, number: int, error: int, lasting: bool = False) -> None:
        super().__init__(durable=True)
        self.call, self.number, self.error, self.lasting = call, number, error, lasting
        self.calls, self.failed, self.lied, self.commits = 0, False, False, 0
        self._lost: set[int] = set()  # st_ino of what was not synced

    def _take(self, call: str, ino: int = 0) -> None:
        if call in ("sync", "sync_folder") and ino in self._lost:
            self.lied = True
        if call != self.call:
            return
        self.calls += 1
        if self.calls == self.number or self.lasting and self.calls > self.number:
            self.failed = True
            if ino:
                self._lost.add(ino)
            raise OSError(self.error, os.strerror(self.error))

    def create(self, path: str) -> int:
        self._take("create")
        return super().create(path)

    def write(self, fd: int, data: bytes) -> None:
        if self.call == "write" and self.calls + 1 == self.number:
            super().write(fd, data[: len(data) // 2])  # a full disk takes what still fits
        self._take("write")
        super().write(fd, data)

    def stamp(self, fd: int, path: str, mtime_ns: int) -> None:
        self._take("stamp")
        super().stamp(fd, path, mtime_ns)

    def sync(self, fd: int) -> None:
        self._take("sync", os.fstat(fd).st_ino)

    def sync_folder(self, folder: s3mini.Folder) -> None:
        self._take("sync_folder")

    def link(self, folder: s3mini.Folder, name: str, path: str) -> None:
        self._take("link")
        super().link(folder, name, path)

    def rename(self, path: str, folder: s3mini.Folder, name: str) -> None:
        self._take("rename")
        super().rename(path, folder, name)

    def unlink(self, folder: s3mini.Folder, name: str) -> None:
        self._take("unlink")
        super().unlink(folder, name)

    def mkdir(self, folder: s3mini.Folder, name: str) -> None:
        self._take("mkdir")
        super().mkdir(folder, name)

    def rmdir(self, folder: s3mini.Folder, name: str) -> None:
        self._take("rmdir")
        super().rmdir(folder, name)


# -- operations: each on a bucket with x/k (old) and a (old) -----------------------------------

Things = dict[str, Optional[Version]]  # key -> what it is; None: nothing
OLD_VERSION = version_of(OLD, entry_of(OLD, "old"))
NEW_VERSION = version_of(NEW, entry_of(NEW, "new"))
UPDATED = entry_of(OLD, "old")._replace(headers={"content-type": "text/x-updated"})
JOINED = entry_of(NEW, "joined", etag="0123-1", parts=["2 " + "0" * 32], upload=UPLOAD.id)


def put_new(store: s3mini.Store) -> Things:
    put(store, "n", NEW, "new")
    return {"n": NEW_VERSION}


def put_in_new_folders(store: s3mini.Store) -> Things:
    put(store, "y/z/n", NEW, "new")
    return {"y/z/n": NEW_VERSION}


def put_over(store: s3mini.Store) -> Things:
    put(store, "x/k", NEW, "new")
    return {"x/k": NEW_VERSION}


def put_below(store: s3mini.Store) -> Things:
    """`a` must step aside for `a/b`."""
    put(store, "a/b", NEW, "new")
    return {"a/b": NEW_VERSION}


def delete(store: s3mini.Store) -> Things:
    store.delete("x/k", s3mini.no_check)
    return {"x/k": None}


def delete_many(store: s3mini.Store) -> Things:
    for result in store.delete_many([("x/k", s3mini.no_check), ("a", s3mini.no_check)]):
        if isinstance(result, Exception):
            raise result
    return {"x/k": None, "a": None}


def update(store: s3mini.Store) -> Things:
    change = {"headers": UPDATED.headers}
    store.update("x/k", lambda entry: entry._replace(**change), s3mini.no_check)
    return {"x/k": version_of(OLD, UPDATED)}


def create_upload(store: s3mini.Store) -> Things:
    store.uploads.create(UPLOAD._replace(id="f" * 32))
    return {}


def put_part(store: s3mini.Store) -> Things:
    part = store.uploads.put_part(UPLOAD, 2, body_of(NEW))
    assert part.md5 == hashlib.md5(NEW).hexdigest()
    return {}


def complete(store: s3mini.Store) -> Things:
    store.uploads.complete(
        UPLOAD, lambda parts: parts[:1], lambda _: JOINED, s3mini.no_check
    )
    return {"x/k": version_of(NEW, JOINED)}


Operation = Callable[[s3mini.Store], Things]
OPERATIONS: list[Operation] = [
    put_new, put_in_new_folders, put_over, put_below, delete, delete_many, update, create_upload,
    put_part, complete,
]  # fmt: skip


def lock_files(folder: str, names: list[str]) -> list[str]:
    """They hold nothing, and would cost more than all the rest."""
    return names if folder.endswith("/.s3mini/locks") else []


class Room:
    """Fresh copies of one prepared bucket, and what all of them held."""

    is_ordered = False  # whether the disk is said to keep the order of names

    def __init__(self, folder: Path) -> None:
        self.folder, self.old = folder, {"x/k": OLD_VERSION, "a": OLD_VERSION}
        store = s3mini.Store(str(folder / "first"), s3mini.Disk(durable=False))
        store.create()
        for key in self.old:
            put(store, key, OLD, "old")
        store.uploads.create(UPLOAD)
        store.uploads.put_part(UPLOAD, 1, body_of(NEW))
        self._number = 0

    def fresh(self, disk: s3mini.Disk) -> s3mini.Store:
        self._number += 1
        root = str(self.folder / str(self._number))
        shutil.copytree(self.folder / "first", root, ignore=lock_files)
        store = s3mini.Store(root, disk)
        store.files._is_ordered = self.is_ordered
        return store


@pytest.fixture
def room() -> Iterator[Room]:
    """On a disk of which nothing is known."""
    with tempfile.TemporaryDirectory(prefix="s3mini-faults-", dir=fast_folder()) as folder:
        yield Room(Path(folder))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def attempt(store: s3mini.Store, operation: Operation) -> tuple[Optional[Things], str]:
    """(what it says it did, ""), or (None, why it refused)."""
    try:
        return operation(store), ""
    except (s3mini.S3Error, OSError) as error:
        return None, f"{type(error).__name__}: {error}"


def check_after(store: s3mini.Store, old: Things, new: Things, done: bool) -> None:
    """Old or new, whole, and new when that was acknowledged; no temp files."""
    sane = s3mini.Store(store.root, s3mini.Disk(durable=False))
    found = {key: read_object(sane, key) for key in {**old, **new}}
    for key, version in found.items():
        allowed = [new[key]] if done and key in new else [old.get(key), new.get(key, old.get(key))]
        assert version in allowed, f"{key}: neither old nor new: {version}"
    assert sorted(k for k, v in found.items() if v) == sorted(listed(sane))
    assert [] == s3mini.list_folder(os.path.join(store.root, *TMP))


PUTS = (put_new, put_in_new_folders, put_over, put_below)
ON_DISKS = [(o, False) for o in OPERATIONS] + [(o, True) for o in PUTS]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("operation", "is_ordered"), ON_DISKS)
def test_a_failing_disk_leaves_the_old_version_and_the_next_attempt_works(
    room: Room, operation: Operation, is_ordered: bool, call: str
) -> None:
    room.is_ordered = is_ordered
    new = operation(room.fresh(s3mini.Disk(durable=False)))
    for error in ERRNOS:
        for number in range(1, 100):
            disk = FailingDisk(call, number, error)
            store = room.fresh(disk)
            before = open_descriptors()
            done, why = attempt(store, operation)
            assert before == open_descriptors(), f"descriptors leak at {call} {number}: {why}"
            assert not (done is not None and disk.lied), "an fsync that failed was tried again"
            if not disk.failed:
                break
            check_after(store, room.old, new, done is not None)
            fresh = s3mini.Store(store.root, s3mini.Disk(durable=False))
            if operation is not complete or fresh.uploads.all():
                assert new == operation(fresh), "the next attempt"
            check_after(store, room.old, new, done=True)
        else:
            pytest.fail("it never ended")


@pytest.mark.parametrize("operation", [put_new, put_in_new_folders, put_over, put_below, delete,
                                       update, put_part, complete])  # fmt: skip
@pytest.mark.parametrize("call", ["sync", "sync_folder"])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_while_fsync_fails_nothing_is_acknowledged(
    room: Room, operation: Operation, call: str, is_ordered: bool
) -> None:
    room.is_ordered = is_ordered
    disk = FailingDisk(call, 1, errno.EIO, lasting=True)
    store = room.fresh(disk)
    done, why = attempt(store, operation)

    if operation is delete and call == "sync":
        assert done is not None, "a DELETE has no file to sync"
    else:
        assert done is None
        assert "Input/output error" in why
    new = operation(room.fresh(s3mini.Disk(durable=False)))
    check_after(store, room.old, new, done is not None)


@pytest.mark.parametrize("operation", ["put", "delete"])
@pytest.mark.parametrize(("call", "error"), [("write", errno.ENOSPC), ("sync", errno.EIO)])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_what_was_put_there_by_hand_is_counted_before_it_goes(
    room: Room, operation: str, call: str, error: int, is_ordered: bool
) -> None:
    """Unless the disk is full: a DELETE works there too. Any other error of it is told."""
    room.is_ordered = is_ordered
    is_first = operation == "delete" or room.is_ordered  # else the new body's file comes before
    disk = FailingDisk(call, 1 if is_first else 2, error)
    store = room.fresh(disk)
    store.quota.limit = 10**6
    store.count()
    path = Path(store.root, "by-hand")
    path.write_bytes(OLD)
    if operation == "put":
        _, why = attempt(store, lambda store: {"": put(store, "by-hand", NEW, "new")})
    else:
        _, why = attempt(store, lambda store: {"": store.delete("by-hand", s3mini.no_check)})

    assert disk.failed
    assert bool(why) == (error == errno.EIO)
    assert path.exists() == (operation == "put" or error == errno.EIO)
    if path.exists():
        assert path.read_bytes() == (OLD if why else NEW)


@pytest.mark.parametrize("operation", PUTS)
@pytest.mark.parametrize(("call", "times"), [("create", 2), ("rename", 2), ("rename", 3)])
def test_a_small_put_whose_file_is_gone_is_done_again(
    room: Room, operation: Operation, call: str, times: int
) -> None:
    """A folder was pruned, or a starting server took its files for dead."""
    room.is_ordered = True
    new = operation(room.fresh(s3mini.Disk(durable=False)))
    for number in range(1, times):
        disk = FailingDisk(call, number, errno.ENOENT)
        store, before = room.fresh(disk), open_descriptors()
        done, why = attempt(store, operation)

        assert (new, "", True) == (done, why, disk.failed)
        assert before == open_descriptors()
        check_after(store, room.old, new, done=True)


def test_what_cannot_be_removed_is_closed_once(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, and it would be EBADF, or the file of another thread that got the number."""
    room.is_ordered = True
    store, before = room.fresh(FailingDisk("rename", 1, errno.ENOENT)), open_descriptors()

    def refuse(path: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "unlink", refuse)
    done, why = attempt(store, put_new)

    assert (None, True) == (done, "Read-only" in why)
    assert before == open_descriptors()


@pytest.fixture
def store(tmp_path: Path) -> s3mini.Store:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    store.create()
    return store


@pytest.mark.parametrize("name", ["b", ".b.s3mini.json"])
@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE])
def test_what_the_disk_cannot_read_is_listed_all_the_same(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch, error: int, name: str
) -> None:
    for key in "abc":
        put(store, key, b"x", "name")
    (Path(store.root) / "b").write_bytes(b"put there by hand")
    fresh, real_open = s3mini.Store(store.root, store.disk), os.open

    def fake_open(path: Any, *arguments: Any, **named: Any) -> int:
        if path == name:
            raise OSError(error, os.strerror(error))
        return real_open(path, *arguments, **named)

    monkeypatch.setattr(os, "open", fake_open)
    if error == errno.EMFILE:
        with pytest.raises(OSError, match="Too many open files"):
            s3mini.list_page(fresh, "", "", s3mini.Cursor(), 10)
        return
    page = s3mini.list_page(fresh, "", "", s3mini.Cursor(), 10)

    assert [("a", 1), ("b", 17), ("c", 1)] == [(key, e.size) for key, e in page.objects]


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_where_no_lock_can_be_had_what_is_new_is_read_all_the_same(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    (Path(store.root) / "hand").write_bytes(b"content")
    real_open = os.open

    def fake_open(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(error, os.strerror(error))
        return real_open(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", fake_open)
    found = store.open("hand")
    os.close(found.fd)
    page = s3mini.list_page(store, "", "", s3mini.Cursor(), 10)

    assert hashlib.md5(b"content").hexdigest() == found.entry.etag
    assert ["hand"] == [key for key, _ in page.objects]
    assert not (Path(store.root) / ".hand.s3mini.json").exists()


def test_an_upload_that_cannot_be_looked_at_is_no_dead_one(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.uploads.create(UPLOAD)
    store.uploads.put_part(UPLOAD, 1, body_of(b"part"))
    folder = Path(store.room) / "uploads" / UPLOAD.id
    os.utime(folder, (1_600_000_000, 1_600_000_000))
    real_open = os.open

    def fake_open(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith("upload.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_open(path, *arguments, **named)

    other = s3mini.Upload("f" * 32, "other", 1_600_000_000, s3mini.Entry(0, "", "", 0))
    store.uploads.create(other)
    dead = Path(store.room) / "uploads" / ("e" * 32)
    dead.mkdir()
    os.utime(dead, (1_600_000_000, 1_600_000_000))
    (folder / "upload.json").rename(folder / "aside")
    (folder / "upload.json").symlink_to("upload.json")  # a loop
    os.utime(folder, (1_600_000_000, 1_600_000_000))
    with pytest.raises(OSError, match="Too many levels"):
        store.clean(1, 3600)
    (folder / "upload.json").unlink()
    (folder / "aside").rename(folder / "upload.json")

    assert not dead.exists()
    assert [UPLOAD.id] == [upload.id for upload in store.uploads.all()]
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fake_open)
        with pytest.raises(OSError, match="Input/output error"):
            store.clean(0, 3600)

    assert [4] == [part.size for part in store.uploads.parts(UPLOAD)]


def test_an_upload_that_cannot_be_ended_keeps_no_other(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [digit * 32 for digit in "abc"]
    for number in ids:
        store.uploads.create(s3mini.Upload(number, "k", 1_600_000_000, s3mini.Entry(0, "", "", 0)))
    real = s3mini.Uploads.abort

    def abort(self: s3mini.Store, upload: s3mini.Upload) -> None:
        if upload.id == ids[0]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(self, upload)

    monkeypatch.setattr(s3mini.Uploads, "abort", abort)
    with pytest.raises(PermissionError):
        store.clean(1, 3600)

    assert ids[:1] == [upload.id for upload in store.uploads.all()]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("is_ordered", [False, True])
def test_a_folder_that_was_tidied_up_because_it_was_empty_is_made_again(
    room: Room, operation: Operation, is_ordered: bool
) -> None:
    """By find -type d -empty -delete, by rsync -m, by a restore from git."""
    room.is_ordered = is_ordered
    store = room.fresh(s3mini.Disk(durable=False))
    store.versions.keep = 3600
    if operation is create_upload:
        store.uploads.abort(UPLOAD)
        os.rmdir(store.uploads.folder)
        assert [] == store.uploads.all()
    os.rmdir(store.files.temp)
    new = operation(store)

    check_after(store, room.old, new, done=True)


def test_nothing_is_made_where_the_room_is_gone(room: Room) -> None:
    """It is another disk's folder, say: that of its bucket is not mounted."""
    for operation in (put_new, put_over, create_upload):
        store = room.fresh(s3mini.Disk(durable=False))
        shutil.rmtree(store.room)
        with pytest.raises((s3mini.S3Error, FileNotFoundError)):
            operation(store)
        assert not os.path.exists(store.room)


def test_a_missing_folder_of_ours_is_no_fault_of_the_clients(room: Room) -> None:
    """That of the locks is never empty. Whoever removed it, somebody may hold one of them still."""
    store = room.fresh(s3mini.Disk(durable=False))
    shutil.rmtree(store.locks.folder)
    for operation in (put_new, update, delete):
        with pytest.raises(FileNotFoundError, match="locks"):
            operation(store)
    store.make_room()

    check_after(store, room.old, put_new(store), done=True)


def test_a_missing_folder_of_ours_is_not_a_missing_bucket(serve: Serve) -> None:
    server = serve()
    s3 = server.client(bucket="media")
    shutil.rmtree(server.data / "media/.s3mini/locks")

    assert (500, "InternalError") == (s3.put("k", NEW).status, s3.put("k", NEW).error)


@pytest.mark.parametrize("number", [1, 2, 3, s3mini.OPEN_LEVELS + 4])
def test_a_put_that_cannot_make_a_folder_leaves_none_that_it_made(room: Room, number: int) -> None:
    store = room.fresh(FailingDisk("mkdir", number, errno.ENOSPC))
    with pytest.raises(OSError, match="space"):
        put(store, "y/" * (s3mini.OPEN_LEVELS + 8) + "n", NEW, "new")

    assert {".s3mini", "a", ".a.s3mini.json", "x"} == set(os.listdir(store.root))


def test_where_no_lock_can_be_had_no_temp_file_stays(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    store = room.fresh(s3mini.Disk(durable=False))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="lock"):
        put_over(store)

    assert [] == os.listdir(store.files.temp)


def test_a_sidecar_that_cannot_be_looked_at_costs_no_descriptor(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = room.fresh(s3mini.Disk(durable=False))
    before = open_descriptors()
    monkeypatch.setattr(s3mini, "exists", fail)
    with pytest.raises(OSError, match="Input"), s3mini.Folder.open(store.root) as folder:
        store.judge("a", s3mini.Place(folder, "a", -1), False)

    assert before == open_descriptors()


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename"])
def test_a_put_that_fails_before_its_commit_changes_nothing_at_all(room: Room, call: str) -> None:
    """Nothing but the sidecar, which still describes the old content first of all."""
    for number in range(1, 100):
        disk = FailingDisk(call, number, errno.ENOSPC)
        store = room.fresh(disk)
        if attempt(store, put_over)[0] is not None:
            assert number > 1
            return

        assert OLD_VERSION == read_object(store, "x/k")
        assert Path(store.root, "x", "k").read_bytes() == OLD
    pytest.fail("it never ended")


class FailingOpen:
    """s3mini's `os`, whose open() fails at one call: EMFILE also comes where one reads."""

    def __init__(self, number: int, error: int) -> None:
        self.number, self.error, self.calls = number, error, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, *args: Any, **more: Any) -> int:
        self.calls += 1
        if self.calls == self.number:
            raise OSError(self.error, os.strerror(self.error))
        return os.open(*args, **more)


def get(store: s3mini.Store) -> Things:
    return {"x/k": read_object(store, "x/k")}


def head(store: s3mini.Store) -> Things:
    entry = store.head("x/k")
    assert version_of(OLD, entry) == OLD_VERSION, entry
    return {}


def listing(store: s3mini.Store) -> Things:
    entries = {key: entry and version_of(OLD, entry) for key, entry in listed(store).items()}
    assert entries == {"x/k": OLD_VERSION, "a": OLD_VERSION}
    return {}


def put_if_unchanged(store: s3mini.Store) -> Things:
    """The condition must see the entry that is there, not what the bytes alone would tell."""
    seen: list[Optional[s3mini.Entry]] = []
    store.put("x/k", body_of(NEW), lambda: entry_of(NEW, "new"), seen.append)
    assert [e and version_of(OLD, e) for e in seen[-1:]] == [OLD_VERSION], seen
    return {"x/k": NEW_VERSION}


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.EACCES])
@pytest.mark.parametrize(
    "operation",
    [get, head, listing, put_over, put_if_unchanged, put_below, delete, update, complete],
)
def test_an_open_that_fails_once_costs_nobody_his_metadata(
    room: Room, monkeypatch: pytest.MonkeyPatch, operation: Operation, error: int
) -> None:
    """A sidecar that cannot be opened just now is not a sidecar that is not there."""
    if (operation, error) == (listing, errno.EACCES):
        pytest.skip("a folder that may not be read, such as lost+found, is left out")
    new = operation(room.fresh(s3mini.Disk(durable=False)))
    for number in range(1, 100):
        store = room.fresh(s3mini.Disk(durable=False))
        before = open_descriptors()
        with monkeypatch.context() as patch:
            failing = FailingOpen(number, error)
            patch.setattr(s3mini, "os", failing)
            done, why = attempt(store, operation)
        assert before == open_descriptors(), f"descriptors leak at open {number}: {why}"
        if failing.calls < number:
            return
        assert done in (None, new), f"open {number} failed, and it said"
        check_after(store, room.old, new, done is not None)
    pytest.fail("it never ended")


def test_an_open_that_fails_does_not_make_a_bucket_look_empty(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeleteBucket holds all lock files: it is the first to run out of descriptors."""
    for number in range(1, 100):
        store = room.fresh(s3mini.Disk(durable=False))
        store.delete("a", s3mini.no_check)  # what is left lies in a folder
        with monkeypatch.context() as patch:
            failing = FailingOpen(number, errno.EMFILE)
            patch.setattr(s3mini, "os", failing)
            with pytest.raises((s3mini.S3Error, OSError)):
                store.destroy()
        assert store.about.read() is not None
        assert OLD_VERSION == read_object(store, "x/k")
        if failing.calls < number:
            assert number > len(os.listdir(f"{store.room}/locks")) > 1
            return
    pytest.fail("it never ended")


def test_a_sidecar_that_cannot_be_understood_is_not_written_over_by_a_read(room: Room) -> None:
    """It may be a later version's, or hold what a human can still make out."""
    store = room.fresh(s3mini.Disk(durable=False))
    sidecar = Path(store.root, "x", ".k.s3mini.json")
    value = json.loads(sidecar.read_text())
    value["current"]["tags"] = [["a later version's", "tags"]]
    sidecar.write_text(json.dumps(value))
    kept = sidecar.read_bytes()

    found = read_object(store, "x/k")
    assert found
    assert found.data == OLD
    assert kept == sidecar.read_bytes()


# -- versions, and the quota -------------------------------------------------------------------


def rename(store: s3mini.Store) -> Things:
    store.rename("x/k", "a", s3mini.no_check, s3mini.no_check)
    return {"x/k": None, "a": OLD_VERSION}


def abort(store: s3mini.Store) -> Things:
    store.uploads.abort(UPLOAD)
    return {}


@pytest.mark.parametrize("call", [*CALLS, "link"])
@pytest.mark.parametrize("operation", [put_over, put_below, delete, put_part, rename, abort])
def test_a_failing_disk_leaves_the_count_of_the_quota_right(
    room: Room, operation: Operation, call: str
) -> None:
    """Also where versions are kept: one of what was not replaced would count, and come back."""
    for number in range(1, 100):
        disk = FailingDisk(call, number, errno.EIO)
        store = room.fresh(disk)
        store.quota.limit, store.versions.keep = 10**6, 3600
        store.count()
        done, _ = attempt(store, operation)
        if not disk.failed:
            break
        with store.quota.usage() as fd:
            assert store.held() == s3mini.read_number(fd)
        versions = list(store.versions.since())
        assert {1} >= {os.stat(version.path).st_nlink for version in versions}, "it did not go"
        if read_object(store, "x/k") != OLD_VERSION and operation is not rename:
            assert ["x/k"] == [version.key for version in versions]
        assert done is None or call in ("unlink", "rmdir")
    else:
        pytest.fail("it never ended")


@pytest.mark.parametrize("call", [*CALLS, "link"])
def test_a_version_that_comes_back_by_halves_is_counted(room: Room, call: str) -> None:
    """Once where it is a second name of the object, and twice where it is not."""
    for number in range(1, 100):
        store = room.fresh(s3mini.Disk(durable=False))
        store.quota.limit, store.versions.keep = 10**6, 3600
        store.count()
        put_over(store)
        disk = FailingDisk(call, number, errno.EIO)
        store = s3mini.Store(store.root, disk, quota=10**6, keep=3600)
        with suppress(OSError):
            store.bring_back(next(store.versions.since()))
        with store.quota.usage() as fd:
            assert store.held() == s3mini.read_number(fd)
        if not disk.failed:
            return
    pytest.fail("it never ended")


class FullDisk(s3mini.Disk):
    """No file can be made on it before `frees` others are removed."""

    def __init__(self, frees: int) -> None:
        super().__init__(durable=False)
        self.frees = frees

    def create(self, path: str) -> int:
        if self.frees > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)

    def unlink(self, folder: s3mini.Folder, name: str) -> None:
        self.frees -= 1
        super().unlink(folder, name)


@pytest.mark.parametrize(("frees", "kept"), [(0, ["a", "b", "x/k"]), (1, ["b", "x/k"]), (99, [])])
def test_a_delete_on_a_full_disk_keeps_what_it_can(
    room: Room, frees: int, kept: list[str]
) -> None:
    store = room.fresh(s3mini.Disk(durable=False))
    store.versions.keep, store.quota.limit = 3600, 10**6
    put(store, "b", OLD, "old")
    for key in ("a", "b"):
        store.delete(key, s3mini.no_check)
    store.count()
    store = s3mini.Store(store.root, FullDisk(frees), quota=10**6, keep=3600)
    store.delete("x/k", s3mini.no_check)

    assert None is read_object(store, "x/k")
    assert kept == [version.key for version in store.versions.since()]
    with store.quota.usage() as fd:
        assert store.held() == s3mini.read_number(fd)


def test_a_delete_on_a_disk_that_fails_otherwise_keeps_the_object(room: Room) -> None:
    store = room.fresh(FailingDisk("create", 1, errno.EIO))
    store.versions.keep = 3600

    assert attempt(store, delete)[0] is None
    assert OLD_VERSION == read_object(store, "x/k")


# -- descriptors, and what is on the disk before an answer -------------------------------------


def test_no_operation_leaves_a_descriptor_open(room: Room) -> None:
    store = room.fresh(s3mini.Disk(durable=False))
    store.versions.keep = 3600
    before = open_descriptors()
    put(store, "x/y", OLD, "old")
    store.rename("x/y", "z/y", lambda _: None, s3mini.no_check)
    store.append("z/y", body_of(NEW), len(OLD), entry_of(NEW, "new"), s3mini.no_check)
    Path(store.root, "by hand").write_bytes(NEW)
    store.open("by hand").close()
    store.bring_back(next(store.versions.since()))
    for upload in (UPLOAD, UPLOAD._replace(id="f" * 32)):
        store.uploads.create(upload)
        for number in (1, 2, 1):
            store.uploads.put_part(upload, number, body_of(OLD))
    store.uploads.abort(upload)
    store.uploads.complete(
        UPLOAD, lambda parts: parts, lambda _: entry_of(NEW, "joined"), s3mini.no_check
    )
    store.delete("z/y", s3mini.no_check)
    store.clean()

    assert before == open_descriptors()


def test_what_is_refused_leaves_no_descriptor_open(room: Room) -> None:
    store = room.fresh(s3mini.Disk(durable=False))
    place = Path(store.root, "x/k")
    place.write_bytes(NEW)
    with store.folder(["x"]) as folder, suppress(s3mini.NotQuickError):
        found = s3mini.Place(folder, "k", -1)
        before = open_descriptors()
        assert "changed" == store.judge("x/k", found, repair=False)
        with store.locks.of_key("x/k"):
            s3mini.open_locked(store.locks.path(zlib.crc32(b"x/k") % s3mini.LOCKS), may_wait=False)
    assert before - 1 == open_descriptors()


def test_a_copy_that_is_refused_leaves_no_descriptor_open() -> None:
    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        s3.put("k", bytes(100_000))
        source = {"x-amz-copy-source": "/media/k", "x-amz-copy-source-if-match": '"other"'}
        assert [412] * 3 == [s3.put("copy", b"", source).status for _ in range(3)]
        paths = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        held = [os.readlink(path) for path in paths if os.path.lexists(path)]

    assert f"{fake.data}/media/k" not in held


class Watched(s3mini.Disk):
    """Notes the calls that bring names to the disk, and those that take them away."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def sync_folder(self, folder: s3mini.Folder) -> None:
        self.calls.append(("sync", folder.path))

    def unlink(self, folder: s3mini.Folder, name: str) -> None:
        super().unlink(folder, name)
        self.calls.append(("unlink", f"{folder.path}/{name}"))


def test_a_file_put_there_by_hand_is_deleted_for_good(tmp_path: Path) -> None:
    """It has no sidecar that would have to go."""
    store = s3mini.Store(str(tmp_path), Watched())
    store.create()
    Path(store.root, "x").mkdir()
    Path(store.root, "x/k").write_bytes(OLD)
    store.delete("x/k", s3mini.no_check)

    gone = store.disk.calls.index(("unlink", f"{store.root}/x/k"))
    assert ("sync", f"{store.root}/x") in store.disk.calls[gone:]


def test_a_bucket_is_deleted_for_good(tmp_path: Path) -> None:
    """Or not at all: else the next bucket of the name would have its uploads."""
    store = s3mini.Store(str(tmp_path / "b"), Watched())
    store.create()
    store.destroy()

    assert [("sync", store.root), ("sync", str(tmp_path))] == store.disk.calls[-2:]
    assert [] == [call for call in store.disk.calls if "unlink" == call[0]]


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOSPC, None])
def test_a_bucket_that_cannot_be_deleted_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Optional[int]
) -> None:
    """None: the server is killed there."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create(owner="first")
    store.uploads.create(s3mini.Upload("0" * 32, "k", 1, entry_of(b"", "name")))

    def refuse(*_: Any) -> None:
        raise OSError(error, os.strerror(error)) if error else KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(OSError, KeyboardInterrupt):
        patch.setattr(os, "rename", refuse)
        store.destroy()
        pytest.fail("it was deleted")
    next_one = s3mini.Store(store.root, s3mini.Disk(False))

    assert not next_one.create(owner="second")
    assert "first" == (next_one.about.read() or {})["owner"]
    assert ["k"] == [upload.key for upload in next_one.uploads.all()]


@pytest.mark.parametrize("last", ["bucket.json", ""])
def test_a_bucket_on_a_disk_of_its_own_leaves_nothing_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """Its folder cannot be moved out. Killed before bucket.json went, or right behind it."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), quota=100, keep=60)
    store.create(owner="first")
    put(store, "a", b"x", "name")
    store.delete("a", s3mini.no_check)
    store.uploads.create(s3mini.Upload("0" * 32, "k", 1, entry_of(b"", "name")))
    real = s3mini.Disk.unlink

    def unlink(disk: s3mini.Disk, folder: s3mini.Folder, name: str) -> None:
        if name == last:
            raise KeyboardInterrupt
        real(disk, folder, name)
        if name == "bucket.json":
            raise KeyboardInterrupt

    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        patch.setattr(s3mini.Disk, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            store.destroy()
    next_one = s3mini.Store(store.root, s3mini.Disk(False), quota=100, keep=60)

    assert (not last) == next_one.create(owner="second")
    assert ([], []) == (next_one.uploads.all(), list(next_one.versions.since()))
    with next_one.quota.usage() as fd:
        assert 0 == s3mini.read_number(fd)
    put(next_one, "a", b"y", "name")
    next_one.delete("a", s3mini.no_check)
    next_one.uploads.create(s3mini.Upload("1" * 32, "k", 1, entry_of(b"", "name")))
    next_one.destroy()

    assert [] == os.listdir(tmp_path)


def test_the_names_that_a_killed_maker_of_a_bucket_left_are_on_the_disk(tmp_path: Path) -> None:
    store = s3mini.Store(str(tmp_path / "data/media"), Watched())
    for name in ("tmp", "uploads", "locks"):
        Path(store.room, name).mkdir(parents=True)
    store.create()

    for name in ("data", "data/media", "data/media/.s3mini"):
        assert ("sync", str(tmp_path / name)) in store.disk.calls[:-1]


# -- folders above the buckets -----------------------------------------------------------------


def test_the_names_of_new_folders_above_a_bucket_are_on_the_disk(tmp_path: Path) -> None:
    config = s3mini.dev_config("127.0.0.1:0", str(tmp_path / "srv" / "new" / "data"))
    disk = Watched()
    buckets = s3mini.Buckets(config, disk)
    buckets.prepare()

    assert disk.calls == [("sync", str(tmp_path / name)) for name in ("", "srv", "srv/new")]
    buckets.create("media", "s3mini")
    assert ("sync", str(tmp_path / "srv" / "new" / "data" / "media" / ".s3mini")) in disk.calls


# -- the real program, real trouble ------------------------------------------------------------

FILL = {"content-type": "text/x-fill"}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mounted("size=4m") is a small disk of its own."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("a small disk needs root, and the right to mount")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def store_old(s3: Client, key: str, data: bytes = OLD) -> None:
    """An object that an adopted file would not look like."""
    sent = {"content-type": "text/x-old", "x-amz-meta-name": "old"}
    assert s3.put(key, data, sent).status == 200


def is_old(reply: Reply, data: bytes = OLD) -> bool:
    named = {n: reply.headers.get(n) for n in ("content-type", "x-amz-meta-name")}
    whole = reply.body == data and reply.etag == hashlib.md5(data).hexdigest()
    return whole and named == {"content-type": "text/x-old", "x-amz-meta-name": "old"}


def check_works(server: Server, s3: Client) -> None:
    """All is well again: nothing left behind, writes and reads work."""
    assert server.running
    assert s3.put("again", NEW, FILL).status == 200
    assert NEW == s3.get("again").body
    assert 204 == s3.delete("again").status
    assert [] == list((server.data / "media" / Path(*TMP)).iterdir())


def fill_bytes(disk: Path) -> None:
    """Until nothing fits any more."""
    with suppress(OSError), open(disk / "filling", "wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass


def fill_files(disk: Path) -> None:
    (disk / "filling").mkdir()
    with suppress(OSError):
        for number in range(10_000):
            (disk / "filling" / str(number)).touch()


def make_room(disk: Path) -> None:
    filling = disk / "filling"
    if filling.is_dir():
        shutil.rmtree(filling)
    else:
        filling.unlink()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_refuses_writes_and_keeps_what_it_has(
    serve: Serve, mounted: Callable[[str], Path], workers: int
) -> None:
    disk = mounted("size=4m")
    server = serve(data=disk, min_free=0, workers=workers, durability="disk")
    s3 = server.client(bucket="media")
    store_old(s3, "x/k")
    store_old(s3, "gone")
    fill_bytes(disk)

    for key, size in (("x/k", 100_000), ("new", 100_000), ("y/z", 1), ("x/k", 1)):
        refused = s3.put(key, b"x" * size, FILL)
        assert (507, "InsufficientStorage") == (refused.status, refused.error), refused.body
    assert is_old(s3.get("x/k"))
    assert 404 == s3.head("new").status
    assert 404 == s3.head("y/z").status
    assert ["gone", "x/k"] == s3.get(list_type=2).elements("Key")

    assert 204 == s3.delete("gone").status
    assert 404 == s3.get("gone").status
    make_room(disk)
    check_works(server, s3)


def test_a_full_disk_deletes_where_versions_are_kept(
    serve: Serve, mounted: Callable[[str], Path]
) -> None:
    disk = mounted("size=4m")
    server = serve(INI + "keep = 7d\n", data=disk, min_free=0, workers=1, durability="disk")
    s3 = server.client("test-key", bucket="test-kept")
    assert 200 == s3.put().status
    for key in ("a", "b", "c"):
        store_old(s3, key)
    fill_bytes(disk)

    assert [204] * 3 == [s3.delete(key).status for key in ("a", "b", "c")]
    assert [404] * 3 == [s3.get(key).status for key in ("a", "b", "c")]


def test_a_disk_without_inodes_refuses_writes_and_still_deletes(
    serve: Serve, mounted: Callable[[str], Path]
) -> None:
    disk = mounted("size=16m,nr_inodes=3000")
    server = serve(data=disk, min_free=0, workers=1, durability="disk")
    s3 = server.client(bucket="media")
    keys = [f"k{number}" for number in range(8)]
    for key in keys:
        store_old(s3, key)
    server.stop()
    shutil.rmtree(disk / "media" / ".s3mini" / "locks")  # theirs cannot be made any more
    server.start()
    s3 = server.client(bucket="media")
    fill_files(disk)

    refused = s3.put("k0", NEW)
    assert (507, "InsufficientStorage") == (refused.status, refused.error)
    assert is_old(s3.get("k0"))
    assert [204] * 8 == [s3.delete(key).status for key in keys]
    assert [404] * 8 == [s3.get(key).status for key in keys]
    make_room(disk)
    check_works(server, s3)


def test_min_free_is_kept_free(serve: Serve, mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=8m")
    server = serve(data=disk, min_free="4M", workers=1, durability="disk")
    s3 = server.client(bucket="media")
    store_old(s3, "k")

    refused = s3.put("k", bytes(5_000_000), FILL)
    assert (507, "InsufficientStorage") == (refused.status, refused.error)
    assert is_old(s3.get("k"))
    assert s3.put("small", bytes(100_000), FILL).status == 200
    fill_bytes(disk)
    assert 507 == s3.put("small", b"", FILL).status
    assert [204, 204] == [s3.delete(key).status for key in ("k", "small")]
    make_room(disk)
    check_works(server, s3)


def limited(server: Server, name: int, value: int) -> tuple[int, int]:
    """Change a running server's limit; gives the old one."""
    old = resource.prlimit(server.process.pid, name)
    resource.prlimit(server.process.pid, name, (value, old[1]))
    return old


def test_a_file_over_the_size_limit_is_refused(serve: Serve) -> None:
    """RLIMIT_FSIZE, as `ulimit -f` or systemd's LimitFSIZE= set it."""
    server = serve(workers=1, durability="disk", min_free=0)
    s3 = server.client(bucket="media")
    store_old(s3, "k")
    old = limited(server, resource.RLIMIT_FSIZE, 300_000)

    refused = s3.put("k", bytes(1_000_000), FILL)
    assert (507, "InsufficientStorage") == (refused.status, refused.error)
    assert is_old(s3.get("k"))
    assert s3.put("small", bytes(200_000), FILL).status == 200
    limited(server, resource.RLIMIT_FSIZE, old[0])
    assert s3.put("k", bytes(1_000_000), FILL).status == 200
    check_works(server, s3)


def test_without_descriptors_requests_are_refused_and_nothing_is_lost(serve: Serve) -> None:
    """`ulimit -n`, lower and lower until nothing works, and up again."""
    server = serve(workers=1, durability="disk", min_free=0)
    s3 = server.client(bucket="media")
    store_old(s3, "x/k")
    used = max(int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd"))
    seen: dict[str, set[int]] = {"GET": set(), "PUT": set()}

    old = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    for room_left in range(8, 0, -1):
        limited(server, resource.RLIMIT_NOFILE, used + 1 + room_left)
        reply = s3.get("x/k")
        seen["GET"].add(reply.status)
        assert is_old(reply) or (503, "ServiceUnavailable") == (reply.status, reply.error)
        reply = s3.put("x/k", NEW, FILL)
        seen["PUT"].add(reply.status)
        limited(server, resource.RLIMIT_NOFILE, old[0])
        if reply.status == 200:
            assert NEW == s3.get("x/k").body
            store_old(s3, "x/k")
        else:
            assert (503, "ServiceUnavailable") == (reply.status, reply.error)
        assert is_old(s3.get("x/k"))
    assert 200 in seen["GET"]
    assert {200, 503} == seen["PUT"], "the limits did not try both"
    check_works(server, s3)
    left = max(int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd"))
    assert used + 2 >= left, "descriptors leak"


@pytest.mark.parametrize(
    ("call", "error", "code", "failed"),
    [
        ("unlink", errno.EIO, "InternalError", ["x/a"]),
        ("unlink", errno.ENOSPC, "InsufficientStorage", ["x/a"]),
        ("sync_folder", errno.EIO, "InternalError", ["x/a", "x/b", "x/a"]),
    ],
)
def test_of_many_deletes_each_tells_what_the_disk_did_to_it(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    call: str,
    error: int,
    code: str,
    failed: list[str],
) -> None:
    disk = FailingDisk("", 0, error)
    monkeypatch.setattr(s3mini, "Disk", lambda durable: disk)
    keys = ["x/a", "never/was", "x/b", "y/c", "x/a"]
    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        for key in ("x/a", "x/b", "y/c"):
            s3.put(key, b"x")
        for name in ("a", "b"):  # so the second x/a finds nothing at all
            os.unlink(f"{fake.data}/media/x/.{name}.s3mini.json")
        disk.call, disk.number, disk.calls = call, 1, 0
        body = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
        md5 = hashlib.md5(f"<Delete>{body}</Delete>".encode()).digest()
        headers = {"content-md5": base64.b64encode(md5).decode()}
        reply = s3.post("", f"<Delete>{body}</Delete>".encode(), headers, query="delete")

    told = re.findall(r"<(Error|Deleted)><Key>(.*?)</Key>", reply.body.decode())
    assert (200, keys) == (reply.status, [key for _, key in told])
    assert failed == [key for kind, key in told if kind == "Error"]
    assert {code} == set(reply.elements("Code"))
    assert f"OSError: [Errno {error}]" in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_an_error_and_no_more(room: Room) -> None:
    """EROFS and EACCES are neither the client's fault nor a reason to lose anything."""
    for error in (errno.EROFS, errno.EACCES):
        store = room.fresh(FailingDisk("create", 1, error, lasting=True))
        assert attempt(store, put_over)[0] is None
        check_after(store, room.old, {}, done=False)


def test_errors_of_the_disk_have_their_s3_codes() -> None:
    codes: Mapping[int, str] = {
        errno.ENOSPC: "InsufficientStorage",
        errno.EDQUOT: "InsufficientStorage",
        errno.EFBIG: "InsufficientStorage",
        errno.EMFILE: "ServiceUnavailable",
        errno.ENFILE: "ServiceUnavailable",
        errno.ENOMEM: "ServiceUnavailable",
        errno.ENAMETOOLONG: "KeyTooLongError",
        errno.EIO: "InternalError",
    }

    assert codes == {n: s3mini.error_of_disk(OSError(n, "why")).code for n in codes}


@pytest.mark.parametrize(("error", "advice"), [
    (errno.EXDEV, "a bucket of its own, with path ="),
    (errno.EACCES, "must own what lies below its folder"),
    (errno.EIO, "")])
def test_the_log_says_what_to_do_about_a_disk(error: int, advice: str) -> None:
    said = s3mini.trouble_of(OSError(error, "why"))

    assert said.startswith(("OSError: [Errno ", "PermissionError: [Errno "))
    assert said.endswith(advice or "why")
