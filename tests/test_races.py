"""Two requests that meet in the middle: each sees the world before the other, or after it.

Nothing is left to chance: the second request runs inside the first, at the one place where it used
to hurt. Where the first holds the thread that answers what is quick, the second is no request over
the wire, but what that comes to.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from powercut import body_of, entry_of
from powercut import put as put_object
from signing_client import Client, Reply

import s3mini


@pytest.fixture
def fake() -> Iterator[s3mini.Fake]:
    with s3mini.start("media") as started:
        yield started


@pytest.fixture
def s3(fake: s3mini.Fake) -> Client:
    return client_of(fake, "media")


def client_of(fake: s3mini.Fake, bucket: str = "") -> Client:
    address = fake.endpoint.partition("//")[2]
    return Client(address, fake.access_key, fake.secret_key, bucket=bucket)


Meet = Callable[..., list[Any]]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Meet:
    """meet(owner, name, act): act() happens just before the first call of owner.name.

    Gives the list of what act() gave: before as many calls as `times` says.
    """

    def arrange(owner: Any, name: str, act: Callable[[], Any], times: int = 1) -> list[Any]:
        real, got = getattr(owner, name), []
        begun: list[int] = []

        def between(*args: Any, **more: Any) -> Any:
            if len(begun) < times:
                begun.append(1)
                got.append(act())
            return real(*args, **more)

        monkeypatch.setattr(owner, name, between)
        return got

    return arrange


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


# -- a copy onto itself, and a PUT -----------------------------------------------------------------


def put(s3: Client, name: str, key: str = "k") -> Reply:
    """All of it tells its name."""
    reply = s3.put(key, name.encode(), {"content-type": f"x/{name}", "x-amz-meta-n": name})
    assert 200 == reply.status
    return reply


def seen(s3: Client, key: str = "k") -> tuple[bytes, str, str]:
    got = s3.get(key)
    return got.body, got.headers["content-type"], got.headers["x-amz-meta-n"]


def copy_onto_itself(s3: Client, **headers: str) -> Reply:
    sent = {"x-amz-copy-source": f"/{s3.bucket}/k"}
    return s3.put("k", b"", {**sent, **{n.replace("_", "-"): v for n, v in headers.items()}})


@pytest.mark.parametrize("way", ["tags", "checksum"])
def test_a_put_during_a_copy_onto_itself_keeps_its_own_metadata(
    s3: Client, meet: Meet, way: str
) -> None:
    put(s3, "old")
    meet(s3mini.Store, "update" if way == "tags" else "commit", lambda: put(s3, "new"))
    tags = {"x_amz_tagging_directive": "REPLACE", "x_amz_tagging": "a=1"}
    checksum = {"x_amz_checksum_algorithm": "SHA1"}
    copied = copy_onto_itself(s3, **(tags if way == "tags" else checksum))

    assert 200 == copied.status
    assert (b"new", "x/new", "new") == seen(s3)
    assert "1" == s3.head("k").headers.get("x-amz-tagging-count", "1")


def test_the_condition_of_a_copy_onto_itself_holds_for_what_it_changes(
    s3: Client, meet: Meet
) -> None:
    etag = put(s3, "old").etag
    meet(s3mini.Store, "update", lambda: put(s3, "new"))
    copied = copy_onto_itself(s3, x_amz_metadata_directive="REPLACE", content_type="x/of-old",
                              x_amz_copy_source_if_match=etag)  # fmt: skip

    assert (412, "PreconditionFailed") == outcome(copied)
    assert (b"new", "x/new", "new") == seen(s3)


def test_a_copy_onto_itself_that_always_comes_too_late_gives_up(s3: Client, meet: Meet) -> None:
    put(s3, "old")
    puts = meet(s3mini.Store, "update", lambda: put(s3, "new"), times=100)
    copied = copy_onto_itself(s3, x_amz_metadata_directive="REPLACE", content_type="x/late")

    assert (409, "OperationAborted") == outcome(copied)
    assert (b"new", "x/new", "new") == seen(s3)
    assert s3mini.ROUNDS == len(puts)


# -- one bucket, made by two or removed meanwhile --------------------------------------------------

TWO = """\
[SERVER]
durability = none
data = {data}

[test-*]
access_key = one
secret_key = secret-of-one-0123456789

[test-*:alt]
access_key = two
secret_key = secret-of-two-0123456789
"""


@pytest.fixture
def buckets(tmp_path: Path) -> s3mini.Buckets:
    """Nobody's buckets yet; two keys may make them."""
    config = tmp_path / "buckets.ini"
    config.write_text(TWO.format(data=tmp_path / "data"))
    made = s3mini.Buckets(s3mini.load_config(str(config)), s3mini.Disk(durable=False))
    assert [] == made.prepare()
    return made


def test_of_two_keys_that_make_one_bucket_one_is_refused(
    buckets: s3mini.Buckets, meet: Meet
) -> None:
    made = meet(s3mini.Store, "make_room", lambda: buckets.create("test-x", "two"))
    with pytest.raises(s3mini.S3Error) as refused:
        buckets.create("test-x", "one")

    assert [True] == made
    assert "BucketAlreadyExists" == refused.value.code
    assert buckets.grants("test-x", "two")
    assert not buckets.grants("test-x", "one")


def test_who_makes_a_bucket_writes_its_name_under_a_lock(
    buckets: s3mini.Buckets, meet: Meet
) -> None:
    path = f"{buckets.config.data}/test-x/.s3mini/locks/00"
    locked = meet(s3mini.About, "write", lambda: is_locked(path))
    buckets.create("test-x", "one")

    assert [True] == locked


def is_locked(path: str) -> bool:
    import fcntl

    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def lock_of(store: s3mini.Store, key: str) -> str:
    return f"{store.room}/locks/{zlib.crc32(key.encode()) % s3mini.LOCKS:02x}"


def test_an_object_steps_aside_under_its_own_lock(tmp_path: Path, meet: Meet) -> None:
    store = s3mini.Store(str(tmp_path), s3mini.Disk(False))
    store.create()
    put_object(store, "a", b"x", "x")
    locked = meet(s3mini.Disk, "rename", lambda: is_locked(lock_of(store, "a")))
    put_object(store, "a/b", b"y", "y")

    assert [True] == locked


def test_a_lock_whose_file_was_replaced_is_taken_anew(tmp_path: Path, meet: Meet) -> None:
    """By a restore, say: others have the lock of the new file by then."""
    path = tmp_path / "lock"

    def replace() -> None:
        path.unlink()
        path.touch()

    meet(s3mini.Turns, "wait_for", replace)
    fd = s3mini.open_locked(str(path))
    assert s3mini.is_at(fd, str(path))
    assert is_locked(str(path))
    os.close(fd)


CHANGES: dict[str, Callable[[s3mini.Store], object]] = {  # what they call under the lock
    "rename": lambda store: put_object(store, "k", b"y", "y"),
    "stamp": lambda store: store.update("k", lambda old: old, s3mini.no_check),
    "unlink": lambda store: store.delete("k", s3mini.no_check),
}


@pytest.mark.parametrize("call", CHANGES)
def test_a_change_is_made_under_its_objects_lock(tmp_path: Path, meet: Meet, call: str) -> None:
    store = s3mini.Store(str(tmp_path), s3mini.Disk(False))
    store.create()
    put_object(store, "k", b"x", "x")
    locked = meet(s3mini.Disk, call, lambda: is_locked(lock_of(store, "k")))
    CHANGES[call](store)

    assert [True] == locked


def test_an_orphan_goes_under_its_objects_lock(tmp_path: Path, meet: Meet) -> None:
    """A PUT has its sidecar in place before its data."""
    store = s3mini.Store(str(tmp_path), s3mini.Disk())
    store.create()
    put_object(store, "k", b"x", "x")
    os.unlink(tmp_path / "k")
    locked = meet(s3mini.Disk, "unlink", lambda: is_locked(lock_of(store, "k")))
    with store.folder([]) as folder:
        store.drop_orphan("k", s3mini.Place(folder, "k", -1))

    assert [True] == locked
    assert not (tmp_path / ".k.s3mini.json").exists()


@pytest.mark.parametrize("pruned", ["x/y", "x"])
def test_a_delete_whose_folder_was_pruned_is_on_the_disk(
    tmp_path: Path, meet: Meet, pruned: str
) -> None:
    """What took the folder away may not be there yet; nor, without it, what was in the folder."""
    synced: list[str] = []

    class Watched(s3mini.Disk):
        def sync_folder(self, folder: s3mini.Folder) -> None:
            synced.append(folder.path)

    store = s3mini.Store(str(tmp_path), Watched())
    store.create()
    put_object(store, "x/y/k", b"x", "x")
    meet(s3mini.Store, "_finish_delete", lambda: shutil.rmtree(tmp_path / pruned))
    synced.clear()
    store.delete("x/y/k", s3mini.no_check)

    assert [str((tmp_path / pruned).parent)] == synced


def test_a_bucket_that_is_removed_while_it_is_made_is_made(tmp_path: Path, meet: Meet) -> None:
    """Another has just made it, and removes it with the lock that we are about to take."""
    store, other = (s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False)) for _ in range(2))

    def make_and_remove() -> None:
        assert other.create(owner="other")
        other.destroy()

    meet(s3mini.Locks, "number", make_and_remove)

    assert store.create(owner="me")
    assert "me" == (store.about.read() or {})["owner"]


class Aside:
    """Work in a thread of its own, and what came of it: a value, or what was raised."""

    def __init__(self, work: Callable[[], Any]):
        self.got: list[Any] = []
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.got.append(self._work())
        except (s3mini.S3Error, OSError) as why:
            self.got.append(why)

    def waits(self) -> bool:
        self._thread.join(0.3)
        return self._thread.is_alive()

    def end(self) -> Any:
        self._thread.join(60)
        return self.got[0]


def test_who_needs_a_lock_that_was_never_made_waits_for_who_removes_the_bucket(
    tmp_path: Path, meet: Meet
) -> None:
    store, other = (s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False)) for _ in range(2))
    store.create()
    put_object(store, "a", b"x", "new")
    store.delete("a", s3mini.no_check)
    writers: list[Aside] = []

    def write() -> bool:
        """While the bucket is looked through: to a key with a lock that is there, and another."""
        writers.extend(
            Aside(lambda key=key: put_object(other, key, b"x", "new"))  # type: ignore[misc]
            for key in ("a", "b"))
        return all(writer.waits() for writer in writers)

    waited = meet(s3mini.Store, "scan", write)
    store.destroy()

    assert [True] == waited
    for writer in writers:
        assert isinstance(writer.end(), (s3mini.S3Error, FileNotFoundError))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("size", [1, 2 * s3mini.SMALL])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_a_body_does_not_come_into_another_bucket_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, is_ordered: bool
) -> None:
    """It belongs to another key by now, and who sends the body may not write there."""
    mine, theirs = (s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False)) for _ in range(2))
    monkeypatch.setattr(s3mini.Files, "keeps_order", lambda store: is_ordered)
    mine.create(owner="me")

    class Slow(io.BytesIO):
        def read(self, size: Optional[int] = -1) -> bytes:
            if not self.tell():
                mine.destroy()
                assert theirs.create(owner="they")
            return super().read(size)

    body = s3mini.Body(Slow(b"x" * size), s3mini.Promise(length=size))
    with pytest.raises((s3mini.S3Error, FileNotFoundError)):
        mine.put("k", body, lambda: entry_of(b"x" * size, "mine"), s3mini.no_check)

    assert not (tmp_path / "b" / "k").exists()
    assert [] == os.listdir(f"{theirs.room}/tmp")
    put_object(theirs, "k", b"x", "theirs")


def test_tags_do_not_come_into_another_bucket_of_the_same_name(tmp_path: Path) -> None:
    mine, theirs = (s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False)) for _ in range(2))
    mine.create(owner="me")
    other = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    other.destroy()
    assert theirs.create(owner="they")
    with pytest.raises(s3mini.S3Error, match="bucket does not exist"):
        mine.change_about(cors=[{"origins": ["https://evil"]}])

    assert "cors" not in (theirs.about.read() or {})


def test_a_bucket_that_another_process_made_anew_is_used(buckets: s3mini.Buckets) -> None:
    other = s3mini.Buckets(buckets.config, s3mini.Disk(False))
    for number in range(3):
        assert (buckets if number % 2 else other).create("test-x", "one")
        for one in (buckets, other):
            put_object(one.open("test-x"), "k", b"x", "new")
            one.open("test-x").delete("k", s3mini.no_check)
        (other if number % 2 else buckets).delete("test-x")


def test_a_rename_that_waits_to_make_a_lock_holds_none(tmp_path: Path, meet: Meet) -> None:
    """Who removes the bucket holds that, and waits for all locks that are there."""
    fcntl = pytest.importorskip("fcntl")
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    for key in ("a", "b"):
        put_object(store, key, b"x", "new")
    store.delete("b", s3mini.no_check)
    folder = Path(store.room, "locks")
    paths = [folder / f"{zlib.crc32(key) % s3mini.LOCKS:02x}" for key in (b"a", b"b")]
    with (folder / "make").open("rb") as maker:
        fcntl.flock(maker, fcntl.LOCK_EX)
        meet(s3mini, "open_locked", max(paths).unlink)
        rename = Aside(lambda: store.rename("a", "b", lambda _: None, s3mini.no_check))
        assert rename.waits()
        assert not is_locked(str(min(paths)))
    rename.end()

    assert store.open("b").entry.metadata == {"name": "new"}


def test_where_no_lock_can_be_made_writers_exclude_each_other_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, and becomes free while the first still writes."""
    pytest.importorskip("fcntl")
    store, other = (s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False)) for _ in range(2))
    store.create()
    with monkeypatch.context() as full:
        full.setattr(s3mini, "touch", no_space)
        first = store.locks.of_key("k")
        first.__enter__()
        second = Aside(lambda: put_object(other, "k", b"x", "new"))
        assert second.waits()
    third = Aside(lambda: put_object(other, "k", b"y", "new"))
    assert third.waits()
    first.__exit__(None, None, None)

    assert {"new"} == {entry.end().metadata["name"] for entry in (second, third)}


def no_space(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def test_a_rename_on_a_full_disk_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    put_object(store, "a", b"x", "new")
    with monkeypatch.context() as full:
        full.setattr(s3mini, "touch", no_space)
        rename = Aside(lambda: store.rename("a", "b", lambda _: None, s3mini.no_check))
        assert errno.ENOSPC == rename.end().errno
    store.rename("a", "b", lambda _: None, s3mini.no_check)

    assert store.open("b").entry.metadata == {"name": "new"}


def test_of_two_who_remove_a_bucket_one_comes_too_late(fake: s3mini.Fake, meet: Meet) -> None:
    """Also when somebody is just about to make it anew, and has its folders already."""
    buckets = fake._server.app.buckets
    again = buckets.open("media")

    def remove_and_begin_to_make() -> bool:
        buckets.delete("media")
        again.make_room()
        return True

    removed = meet(s3mini.Store, "destroy", remove_and_begin_to_make)
    reply = client_of(fake).delete("/media")

    assert [True] == removed
    assert (404, "NoSuchBucket") == outcome(reply)


def test_nothing_is_put_into_a_bucket_whose_folders_somebody_tidied_up(tmp_path: Path) -> None:
    """It was deleted while the body came, and a tidying process made its folders again."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    store.destroy()
    store.make_room()

    with pytest.raises(s3mini.S3Error, match="bucket does not exist"):
        put_object(store, "k", b"x", "new")
    assert not (tmp_path / "b" / "k").exists()


def test_a_bucket_on_another_disk_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its room cannot be moved aside to the data folder then."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    monkeypatch.setattr(os, "rename", refuse)
    store.destroy()

    assert [] == list(tmp_path.iterdir())


def upload(s3: Client) -> Reply:
    return s3.post("a/b", uploads="")


DOCUMENT = b"<Tagging><TagSet/></Tagging>"
GONE: dict[str, tuple[Any, str, Callable[[Client], Reply]]] = {
    "put": (s3mini.Staged, "fill", lambda s3: s3.put("k", b"x")),
    "put in folders": (s3mini.Staged, "fill", lambda s3: s3.put("a/b", b"x")),
    "put, its folders made": (s3mini.Locks, "of_key", lambda s3: s3.put("a/b", b"x")),
    "put, about to begin": (s3mini.Files, "stage", lambda s3: s3.put("k", b"x")),
    "small put": (s3mini.Late, "fill", lambda s3: s3.put("a/b", b"x")),
    "delete": (s3mini.Store, "_delete_data", lambda s3: s3.delete("k")),
    "create an upload": (s3mini.Uploads, "create", upload),
    "uploads": (s3mini.Uploads, "all", lambda s3: s3.get(uploads="")),
    "tag the bucket": (s3mini.Store, "change_about", lambda s3: s3.put("", DOCUMENT, tagging="")),
    "free space": (s3mini.Quota, "check_free", lambda s3: s3.put("k", b"x")),
}


@pytest.mark.parametrize("what", GONE)
def test_a_bucket_that_is_removed_meanwhile_is_404(
    fake: s3mini.Fake, s3: Client, meet: Meet, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    owner, name, request = GONE[what]
    buckets = fake._server.app.buckets
    monkeypatch.setattr(buckets.open("media").quota, "min_free", 1)
    monkeypatch.setattr(buckets.open("media").files, "_is_ordered", owner is s3mini.Late)
    removed = meet(owner, name, lambda: buckets.delete("media"))
    reply = request(s3)

    assert [None] == removed
    assert (404, "NoSuchBucket") == outcome(reply)
    assert [] == [path for path in Path(fake.data).rglob("*") if path.is_file()]


def test_a_small_put_whose_files_a_starting_server_takes_for_dead_is_done_again(
    fake: s3mini.Fake, s3: Client, meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no lock of their own, for as long as they are there."""
    store = fake._server.app.buckets.open("media")
    monkeypatch.setattr(store.files, "_is_ordered", True)
    cleaned = meet(s3mini.Disk, "rename", store.clean)
    put(s3, "new", "a/b")

    assert [None] == cleaned
    assert (b"new", "x/new", "new") == seen(s3, "a/b")
    assert [] == os.listdir(store.files.temp)


# -- many commits at once --------------------------------------------------------------------------


def test_commits_beyond_a_few_work_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3mini, "AT_ONCE", 0)
    working: list[int] = []
    crowds: list[list[int]] = []

    class Watched(s3mini.Disk):
        def rename(self, path: str, folder: s3mini.Folder, name: str) -> None:
            working.append(threading.get_ident())
            time.sleep(0.001)
            crowds.append(list(working))
            super().rename(path, folder, name)
            working.remove(threading.get_ident())

    store = s3mini.Store(str(tmp_path / "b"), Watched(), quota=10_000)
    store.create()
    crowds.clear()

    def work(name: str) -> None:
        for number in range(5):
            put_object(store, f"own/{name}", f"{name} {number}".encode(), name)
            put_object(store, f"shared {number}", name.encode(), name)

    run_all(work, list("abcdefgh"))

    assert 2 * 5 * 2 * 8 == len(crowds)
    assert {1} == set(map(len, crowds))
    assert [f"{name} 4".encode() for name in "abcdefgh"] == [
        (tmp_path / "b" / "own" / name).read_bytes() for name in "abcdefgh"]
    assert [] == os.listdir(store.files.temp)


def test_a_commit_that_has_to_hash_what_is_there_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose time a restore changed is told by its bytes, however many they are."""
    monkeypatch.setattr(s3mini, "AT_ONCE", 0)
    hashes, goes_on, real = threading.Event(), threading.Event(), s3mini.hash_file

    def slow(fd: int, start: int, size: int) -> str:
        hashes.set()
        assert goes_on.wait(60)
        return real(fd, start, size)

    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk())
    store.create()
    put_object(store, "k", b"old", "old")
    os.utime(tmp_path / "b" / "k", (1, 1))
    monkeypatch.setattr(s3mini, "hash_file", slow)
    first = threading.Thread(target=lambda: put_object(store, "k", b"new", "new"), daemon=True)
    first.start()
    assert hashes.wait(60)
    run_all(lambda name: put_object(store, f"of {name}", name.encode(), name) and None, ["a", "b"])
    assert first.is_alive()
    goes_on.set()
    first.join(60)

    assert b"new" == (tmp_path / "b" / "k").read_bytes()


def run_all(work: Callable[[str], None], names: list[str]) -> None:
    """In a thread each; none may fail or take for ever."""
    done: list[str] = []
    threads = [threading.Thread(target=lambda n=name: done.append(work(n) or n), daemon=True)
               for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(names) == sorted(done)


@pytest.mark.parametrize(("module", "name"), [("os", "fsync"), ("fcntl", "flock")])
def test_who_waits_for_the_disk_or_for_a_lock_lets_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.setattr(s3mini, "AT_ONCE", 0)
    owner = getattr(s3mini, module)
    call, waits, goes_on = getattr(owner, name), threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        if threading.current_thread().name == "slow" and s3mini.TURNS.lock and not waits.is_set():
            waits.set()
            assert goes_on.wait(60)
        call(*args)

    monkeypatch.setattr(owner, name, slow)
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(), quota=10_000)
    store.create()
    first = threading.Thread(
        target=lambda: put_object(store, "k", b"slow", "slow"), name="slow", daemon=True)
    first.start()
    assert waits.wait(60)
    run_all(lambda name: put_object(store, f"of {name}", name.encode(), name) and None, ["a", "b"])
    assert first.is_alive()
    goes_on.set()
    first.join(60)

    assert b"slow" == (tmp_path / "b" / "k").read_bytes()
    assert not store._turn._inside


# -- what the front must not wait for --------------------------------------------------------------


@pytest.fixture
def beside(fake: s3mini.Fake) -> Iterator[Callable[[Callable[[], Reply]], list[Reply]]]:
    """Start a request that will take its time; other buckets are answered meanwhile."""
    other = client_of(fake, "other")
    assert 200 == other("PUT", "").status
    assert 200 == other.put("k", b"x").status
    threads: list[threading.Thread] = []

    def start(request: Callable[[], Reply]) -> list[Reply]:
        replies: list[Reply] = []
        threads.append(threading.Thread(target=lambda: replies.append(request()), daemon=True))
        threads[-1].start()
        time.sleep(0.2)
        for _ in range(5):
            began = time.monotonic()
            assert b"x" == other.get("k").body
            assert time.monotonic() - began < 5
        assert [] == replies
        return replies

    yield start
    for thread in threads:
        thread.join(60)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_the_front_waits_for_nobodys_lock(
    fake: s3mini.Fake, s3: Client, beside: Callable[..., list[Reply]], method: str
) -> None:
    fcntl = pytest.importorskip("fcntl")
    put(s3, "old")
    store = fake._server.app.buckets.open("media")
    path = f"{store.room}/locks/{zlib.crc32(b'k') % s3mini.LOCKS:02x}"
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        replies = beside(lambda: s3(method, "k", b"new" if method == "PUT" else b""))
        fcntl.flock(file, fcntl.LOCK_UN)
        until(lambda: replies)

    assert (200 if method == "PUT" else 204) == replies[0].status
    assert (b"new" if method == "PUT" else 404) == (
        s3.get("k").body if method == "PUT" else s3.get("k").status)


def test_a_delete_that_is_done_is_not_done_again(
    fake: s3mini.Fake, s3: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its commit the front waited for the lock once more, and a thread began anew: another
    one's PUT, in between, was gone.
    """
    put(s3, "k")
    real, taken = s3mini.Locks.number, []

    def lock(store: s3mini.Store, number: int) -> Any:
        taken.append(number)
        if s3mini.TURNS.in_front and len(taken) > 1:
            raise s3mini.NotQuickError
        return real(store, number)

    monkeypatch.setattr(s3mini.Locks, "number", lock)
    etag = s3.head("k").etag
    taken.clear()
    reply = s3.delete("k", {"if-match": f'"{etag}"'})

    assert (204, 1) == (reply.status, len(taken))
    assert [] == [p.name for p in Path(fake.data, "media").iterdir() if p.name != ".s3mini"]


def test_settings_that_others_change_are_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk's clock ticks: two changes within a tick look like none."""
    one, other = (s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False)) for _ in range(2))
    one.create()
    one.change_about(tags={"n": "1"})
    same, real = (tmp_path / "b/.s3mini/bucket.json").stat(), os.stat

    def stat(path: Any, **named: Any) -> os.stat_result:
        return same if str(path).endswith("bucket.json") else real(path, **named)

    monkeypatch.setattr(os, "stat", stat)
    before = (other.about.read() or {})["tags"]
    one.change_about(tags={"n": "2"})

    assert ({"n": "1"}, {"n": "2"}) == (before, (other.about.read() or {})["tags"])


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD"])
def test_the_front_hashes_no_large_file(
    fake: s3mini.Fake, s3: Client, beside: Callable[..., list[Reply]],
    monkeypatch: pytest.MonkeyPatch, method: str,
) -> None:
    s3.put("k", b"x" * s3mini.MIB)
    s3.get("k")
    os.utime(f"{fake.data}/media/k", (1, 1))
    goes_on, real = threading.Event(), s3mini.read_at

    def read_at(fd: int, size: int, offset: int) -> bytes:
        assert s3mini.TURNS.in_front or size < s3mini.PIECE or goes_on.wait(60)
        assert not s3mini.TURNS.in_front or size < s3mini.PIECE
        return real(fd, size, offset)

    monkeypatch.setattr(s3mini, "read_at", read_at)
    replies = beside(lambda: s3(method, "k", b"new" if method == "PUT" else b""))
    goes_on.set()
    until(lambda: replies)

    assert (204 if method == "DELETE" else 200) == replies[0].status


def until(what: Callable[[], object]) -> None:
    """Wait for something that nobody tells us of."""
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- one upload, ended by two ----------------------------------------------------------------------


def begin(s3: Client, key: str = "m") -> tuple[str, bytes]:
    """An upload of one part, and the document that completes it."""
    number = s3.post(key, uploads="").element("UploadId")
    etag = s3.put(key, b"part", partNumber=1, uploadId=number).etag
    part = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    return number, f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()


def test_a_complete_sent_again_while_the_first_runs_is_answered(s3: Client, meet: Meet) -> None:
    number, document = begin(s3)
    first = meet(s3mini.Uploads, "complete", lambda: s3.post("m", document, uploadId=number))
    second = s3.post("m", document, uploadId=number)

    assert [200, 200] == [first[0].status, second.status]
    assert first[0].etag == second.etag


def test_a_complete_after_an_abort_is_none(s3: Client, meet: Meet) -> None:
    number, document = begin(s3)
    meet(s3mini.Uploads, "complete", lambda: s3.delete("m", uploadId=number))

    assert (404, "NoSuchUpload") == outcome(s3.post("m", document, uploadId=number))


def test_a_part_that_comes_too_late_leaves_no_lock_behind(tmp_path: Path) -> None:
    """Who waits for the lock of an upload makes it anew, behind the one who removed it."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    store.create()
    gone = s3mini.Upload("0" * 32, "m", 1_600_000_000, s3mini.Entry(0, "", "", 0))
    folder = tmp_path / "b" / ".s3mini" / "uploads" / gone.id
    folder.mkdir()
    (folder / "lock").touch()
    with pytest.raises(s3mini.S3Error, match="upload does not exist"):
        store.uploads.abort(gone)

    assert not folder.exists()


def test_without_flock_an_upload_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows the locks are this process's own: an upload's was sometimes its key's too."""
    monkeypatch.setattr(s3mini, "HAS_FLOCK", False)
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    store.create()
    number = zlib.crc32(store.uploads.path("0" * 32).encode()) % s3mini.LOCKS
    key = next(k for k in map(str, itertools.count()) if zlib.crc32(k.encode()) % 256 == number)
    made = s3mini.Upload("0" * 32, key, 1_600_000_000, s3mini.Entry(0, "", "", 0))
    store.uploads.create(made)
    store.uploads.put_part(made, 1, body_of(b"part"))
    entry = entry_of(b"part", "joined")
    arguments = (made, lambda parts: parts, lambda _: entry, s3mini.no_check)
    thread = threading.Thread(target=store.uploads.complete, args=arguments, daemon=True)
    thread.start()
    thread.join(20)

    assert not thread.is_alive()
    assert entry.etag == store.head(key).etag

def test_without_flock_threads_that_meet_the_uploads_first_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Python 3.12 two of them may make a cached_property at the same time."""
    monkeypatch.setattr(s3mini, "HAS_FLOCK", False)
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    store.create()
    made = s3mini.Upload("0" * 32, "k", 1_600_000_000, s3mini.Entry(0, "", "", 0))
    store.uploads.create(made)
    store.uploads.put_part(made, 1, body_of(b"part"))
    waited = []

    def abort() -> None:
        with contextlib.suppress(s3mini.S3Error):  # it is completed by then
            s3mini.Uploads(store).abort(made)

    def choose(parts: list[s3mini.Part]) -> list[s3mini.Part]:
        thread.start()
        thread.join(0.2)
        waited.append(thread.is_alive())
        return parts

    thread = threading.Thread(target=abort, daemon=True)
    store.uploads.complete(made, choose, lambda _: entry_of(b"part", "joined"), s3mini.no_check)
    thread.join(20)

    assert waited == [True]



# -- a listing, and objects that come and go -------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> s3mini.Store:
    """A folder of so many names that they are kept between pages."""
    made = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    made.create()
    for number in range(s3mini.FEW_NAMES + 6):
        fill(made, f"a{number:03}")
    return made


def fill(store: s3mini.Store, key: str) -> None:
    put_object(store, key, key.encode(), "name")


def page(store: s3mini.Store, after: str, since: float, limit: int = 60) -> list[str]:
    found = s3mini.list_page(store, "", "", s3mini.Cursor(after, since), limit)
    return [key for key, _ in found.objects]


def settle(store: s3mini.Store) -> None:
    """The folder's last change is a while ago."""
    os.utime(store.root, (1_600_000_000, 1_600_000_000.5))


def test_an_object_that_steps_aside_between_two_pages_is_listed(store: s3mini.Store) -> None:
    settle(store)
    began = time.time()
    first = page(store, "", 0, 10)
    fill(store, "a050/x")  # a050 makes way for a folder
    store.delete("a050/x", s3mini.no_check)  # and the folder goes

    assert "a050" in page(store, first[-1], began)


def test_a_listing_begun_after_a_put_has_it_on_its_later_pages(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another listing was just about to note when it had looked at the folder."""
    settle(store)
    page(store, "", 0)
    real, began = time.time, []

    def interrupted() -> float:
        if not began:
            began.append(0.0)
            fill(store, "z-new")
            began[0] = real()
            page(store, "", 0)
        return real()

    with monkeypatch.context() as patch:
        patch.setattr(s3mini.time, "time", interrupted)
        page(store, "", 0)

    assert "z-new" in page(store, "a059", began[0])


@pytest.mark.skipif(not s3mini.HAS_DIR_FD, reason="folders are read by descriptor: not on Windows")
@pytest.mark.parametrize("is_coarse", [False, True], ids=["", "clock of 4 ms"])
@pytest.mark.parametrize("delimiter", ["", "/"])
def test_an_object_that_is_replaced_while_its_folder_is_read_is_listed(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch, delimiter: str, is_coarse: bool
) -> None:
    """btrfs gives a name that is renamed over a place behind all that it was about to tell.

    Before Linux 6.13 two changes within 4 ms leave a folder with one time.
    """
    fill(store, "folder/hot")
    real, moved = os.scandir, []

    def scandir(folder: int) -> Any:
        items = list(real(folder))
        if "hot" in [item.name for item in items] and not moved:
            moved.append(True)
            fill(store, "folder/hot")
            items = [item for item in items if item.name != "hot"]
        return contextlib.nullcontext(iter(items))

    with monkeypatch.context() as patch:
        patch.setattr(s3mini.os, "scandir", scandir)
        if is_coarse:
            patch.setattr(s3mini, "times_of", lambda info: (0, 0))
        found = s3mini.list_page(store, "folder", delimiter, s3mini.Cursor(), 10)

    assert moved
    assert ["folder/" if delimiter else "folder/hot"] == [
        *[key for key, _ in found.objects], *found.prefixes]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all of it may be told again")
def test_of_a_folder_that_changes_only_the_end_is_read_again(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = os.scandir, []

    @contextlib.contextmanager
    def scandir(folder: int) -> Iterator[Any]:
        with real(folder) as items:
            told.append(0)
            yield (told.__setitem__(-1, told[-1] + 1) or item for item in items)
        if len(told) == 1:
            fill(store, "new")

    with monkeypatch.context() as patch:
        patch.setattr(s3mini.os, "scandir", scandir)
        keys = page(store, "", 0, 1000)

    assert keys == sorted(set(keys))
    assert [True, False] == [count > s3mini.FEW_NAMES for count in told]
