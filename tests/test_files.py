"""Files: what lies on disk is a promise, and what others put there is served."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Serve, Server
from powercut import body_of, entry_of, fast_folder, put
from signing_client import Client

import s3mini

OUTSIDE = b"a secret outside of the bucket"


@pytest.fixture
def folder(server: Server, bucket: str) -> Path:
    """The bucket's folder."""
    return server.data / bucket


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside of all buckets, with a file `secret` in it."""
    (tmp_path / "secret").write_bytes(OUTSIDE)
    return tmp_path


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.s3mini.json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar of a data file."""
    value: dict[str, Any] = json.loads(sidecar(path).read_text(encoding="utf-8"))
    return value


def by_hand(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def listed(s3: Client) -> list[str]:
    return s3.get(list_type=2).elements("Key")


def left(folder: Path) -> list[str]:
    """What lies in a bucket's folder besides its own room."""
    return sorted(name for name in os.listdir(folder) if name != ".s3mini")


def replaced(store: s3mini.Store, key: str) -> str:
    """The ETag of what a PUT finds in its place."""
    found: list[Any] = []
    data = b"the last one"
    store.put(key, body_of(data), lambda: entry_of(data, "last"), found.append)
    return str(found[0].etag)


@pytest.mark.parametrize("how", ["another process", "hand", "nobody"])
def test_a_write_sees_what_is_there_not_what_it_remembers(tmp_path: Path, how: str) -> None:
    """What a process wrote it knows without the sidecar: until it is not there any more."""
    store, other = (s3mini.Store(str(tmp_path), s3mini.Disk(durable=False)) for _ in range(2))
    store.create()
    put(store, "k", b"first", "first")
    data = b"first" if how == "nobody" else b"other"
    if how == "another process":
        put(other, "k", data, "other")
    elif how == "hand":
        by_hand(tmp_path / "k", data)

    assert md5(data) == replaced(store, "k")
    assert md5(b"the last one") == replaced(other, "k")


# -- objects are files -----------------------------------------------------------------------------


def held(store: s3mini.Store) -> list[str]:
    """Files of a bucket that somebody in this process has open."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    found = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [path for path in found if path.startswith(store.root + "/")]


LARGE = 10_000  # bytes, for the next two tests


def ordered(root: Path, disk: s3mini.Disk, monkeypatch: pytest.MonkeyPatch) -> s3mini.Store:
    """A bucket on a disk that is known to keep the order of names."""
    monkeypatch.setattr(s3mini, "FREE_BEHIND", LARGE)
    store = s3mini.Store(str(root), disk)
    store.files._is_ordered = True
    store.create()
    return store


@pytest.mark.parametrize("threads", ["there are", "are too many", "there are no more"])
def test_a_large_file_that_is_replaced_is_freed_behind_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    disk = s3mini.Disk(durable=False)
    store = ordered(tmp_path / "b", disk, monkeypatch)
    if threads == "are too many":
        monkeypatch.setattr(disk, "_closers", threading.Semaphore(0))
    put(store, "k", b"1" * LARGE, "1")
    reader = store.open("k")
    if threads == "there are no more":
        monkeypatch.setattr(threading.Thread, "start", no_more)
    for name in "23":
        put(store, "k", name.encode() * LARGE, name)
    monkeypatch.undo()

    assert b"1" * LARGE == os.pread(reader.fd, LARGE + 1, 0)
    reader.close()
    deadline = time.monotonic() + 10
    while held(store) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [] == held(store)
    assert b"3" == (tmp_path / "b/k").read_bytes()[:1]


def no_more(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_large_file_that_could_not_be_replaced_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worn(s3mini.Disk):
        def rename(self, path: str, folder: s3mini.Folder, name: str) -> None:
            if name == "k" and os.path.exists(os.path.join(folder.path, name)):
                raise OSError(errno.EIO, "worn")
            super().rename(path, folder, name)

    store = ordered(tmp_path / "b", Worn(durable=False), monkeypatch)
    put(store, "k", b"1" * LARGE, "1")
    with pytest.raises(OSError, match="worn"):
        put(store, "k", b"2" * LARGE, "2")

    deadline = time.monotonic() + 10
    while held(store) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [] == held(store)
    assert b"1" == (tmp_path / "b/k").read_bytes()[:1]


def test_an_object_is_a_file_at_its_natural_path(s3: Client, folder: Path) -> None:
    s3.put("photos/2024 summer/Ä cat.jpg", b"meow")

    assert b"meow" == (folder / "photos/2024 summer/Ä cat.jpg").read_bytes()


def test_the_sidecar_says_everything_else(s3: Client, folder: Path) -> None:
    headers = {"content-type": "image/jpeg", "cache-control": "no-store", "x-amz-meta-who": "me"}
    s3.put("a/cat.jpg", b"meow", headers)
    info, told = (folder / "a/cat.jpg").stat(), read_sidecar(folder / "a/cat.jpg")
    entry = told["current"]

    assert (1, "a/cat.jpg", None) == (told["v"], told["key"], told["previous"])
    assert (4, info.st_mtime_ns, info.st_ino) == (entry["size"], entry["mtime_ns"], entry["ino"])
    assert (md5(b"meow"), md5(b"meow")) == (entry["etag"], entry["md5"])
    assert {"content-type": "image/jpeg", "cache-control": "no-store"} == entry["headers"]
    assert {"who": "me"} == entry["metadata"]


def test_the_sidecar_keeps_the_generation_before(s3: Client, folder: Path) -> None:
    s3.put("k", b"old")
    old = read_sidecar(folder / "k")["current"]
    s3.put("k", b"newer")
    told = read_sidecar(folder / "k")

    assert old == told["previous"]
    assert told["current"]["mtime_ns"] == (folder / "k").stat().st_mtime_ns > old["mtime_ns"]


def test_files_are_for_the_owner_and_the_group(s3: Client, folder: Path) -> None:
    s3.put("a/k", b"x")

    assert [0] == [(folder / name).stat().st_mode & 0o007 for name in ("a/k",)]
    assert 0 == sidecar(folder / "a/k").stat().st_mode & 0o007


def test_a_deleted_object_leaves_no_folder_behind(s3: Client, folder: Path) -> None:
    s3.put("a/b/c/d", b"x")
    s3.put("a/other", b"x")
    s3.delete("a/b/c/d")

    assert [".other.s3mini.json", "other"] == sorted(os.listdir(folder / "a"))
    s3.delete("a/other")
    assert [] == left(folder)


def test_a_refused_put_leaves_no_folder_behind(s3: Client, folder: Path) -> None:
    s3.put("a/b/k", b"x", {"if-match": '"none"'})
    s3.put("c/d/k", b"x", {"x-amz-checksum-crc32": "AAAAAA=="})

    assert [] == left(folder)


def test_nothing_is_left_in_tmp(s3: Client, folder: Path) -> None:
    for number in range(5):
        s3.put("k", b"x" * number * 100_000)
        s3.put("other/k", b"x", {"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="})

    assert [] == os.listdir(folder / ".s3mini/tmp")


# -- files put there by hand -----------------------------------------------------------------------


def test_a_file_put_there_by_hand_is_an_object(s3: Client, folder: Path) -> None:
    by_hand(folder / "notes/hello.txt", b"hello")
    got = s3.get("notes/hello.txt")

    assert (200, b"hello", md5(b"hello")) == (got.status, got.body, got.etag)
    assert "text/plain" == got.headers["content-type"]
    assert ["notes/hello.txt"] == listed(s3)
    assert [f'"{md5(b"hello")}"'] == s3.get(list_type=2).elements("ETag")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "image/jpeg"),
        ("a.PNG", "image/png"),
        ("a.html", "text/html"),
        ("a.css", "text/css"),
        ("a.js", "text/javascript"),
        ("a.svg", "image/svg+xml"),
        ("a.tar.gz", "application/gzip"),
        ("a.nobody-knows", "binary/octet-stream"),
        ("Makefile", "binary/octet-stream"),
        (".hidden", "binary/octet-stream"),
    ],
)
def test_the_type_of_a_file_is_guessed_from_its_name(
    s3: Client, folder: Path, name: str, kind: str
) -> None:
    by_hand(folder / name, b"x")

    assert kind == s3.head(name).headers["content-type"]


def test_its_last_modified_is_the_files_own(s3: Client, folder: Path) -> None:
    by_hand(folder / "k", b"x")
    os.utime(folder / "k", (784111777, 784111777))

    assert "Sun, 06 Nov 1994 08:49:37 GMT" == s3.head("k").headers["last-modified"]


def test_an_adopted_file_may_be_overwritten_and_deleted(s3: Client, folder: Path) -> None:
    by_hand(folder / "d/k", b"x")
    put = s3.put("d/k", b"y", {"if-match": f'"{md5(b"x")}"'})

    assert (200, b"y") == (put.status, (folder / "d/k").read_bytes())
    by_hand(folder / "d/l", b"x")
    assert (204, 204) == (s3.delete("d/l").status, s3.delete("d/k").status)
    assert [] == left(folder)


def test_create_only_sees_a_file_put_there_by_hand(s3: Client, folder: Path) -> None:
    by_hand(folder / "k", b"x")

    assert 412 == s3.put("k", b"y", {"if-none-match": "*"}).status
    assert b"x" == (folder / "k").read_bytes()


def test_a_file_edited_by_hand_gets_a_fresh_etag(s3: Client, folder: Path) -> None:
    s3.put("k.txt", b"old", {"x-amz-meta-a": "1"})
    (folder / "k.txt").write_bytes(b"edited")
    got = s3.get("k.txt")

    assert (b"edited", md5(b"edited"), "6") == (got.body, got.etag, got.headers["content-length"])
    assert "text/plain" == got.headers["content-type"]
    assert [f'"{md5(b"edited")}"'] == s3.get(list_type=2).elements("ETag")


def test_an_edit_that_keeps_the_size_is_seen_too(s3: Client, folder: Path) -> None:
    s3.put("k", b"one")
    s3.get("k")
    (folder / "k").write_bytes(b"two")

    assert (b"two", md5(b"two")) == (s3.get("k").body, s3.get("k").etag)


def test_a_file_restored_with_another_time_keeps_its_metadata(s3: Client, folder: Path) -> None:
    s3.put("k", b"x", {"x-amz-meta-a": "1", "content-type": "image/png"})
    before = s3.head("k")
    os.utime(folder / "k", (1_000_000_000, 1_000_000_000))
    after = s3.head("k")

    assert ("1", "image/png") == (after.headers["x-amz-meta-a"], after.headers["content-type"])
    assert before.headers["last-modified"] == after.headers["last-modified"]


def test_a_bucket_restored_from_a_backup_is_whole(s3: Client, folder: Path, tmp_path: Path) -> None:
    keys = ["a", "b/c", "b//d", "e/", "ä%"]
    for key in keys:
        s3.put(key, key.encode(), {"x-amz-meta-key": str(keys.index(key))})
    shutil.copytree(folder, tmp_path / "backup", copy_function=shutil.copyfile)
    for key in keys:
        s3.put(key, b"lost later", {"x-amz-meta-key": "-"})
    for name in left(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(tmp_path / "backup", folder, copy_function=shutil.copyfile, dirs_exist_ok=True)

    for number, key in enumerate(keys):
        got = s3.get(key)
        assert (key.encode(), str(number)) == (got.body, got.headers.get("x-amz-meta-key")), key


@pytest.mark.parametrize("how", ["moved", "copied", "copied, with new times"])
def test_a_folder_moved_by_hand_keeps_all_that_its_sidecars_say(
    s3: Client, folder: Path, how: str
) -> None:
    for name in ("get", "put", "delete"):
        s3.put(f"photos/{name}", b"x", {"x-amz-meta-a": "1"})
    if how == "moved":
        (folder / "photos").rename(folder / "new")
    else:
        copy = shutil.copy2 if how == "copied" else shutil.copyfile
        shutil.copytree(folder / "photos", folder / "new", copy_function=copy)

    got = s3.get("new/get")
    assert (200, b"x", "1") == (got.status, got.body, got.headers.get("x-amz-meta-a"))
    assert (200, 204) == (s3.put("new/put", b"y").status, s3.delete("new/delete").status)
    assert b"y" == s3.get("new/put").body
    assert ["new/get", "new/put"] == [key for key in listed(s3) if key.startswith("new/")]


def test_a_folder_whose_name_changes_its_case_is_moved_too(s3: Client, folder: Path) -> None:
    s3.put("photos/a", b"x", {"x-amz-meta-a": "1"})
    (folder / "photos").rename(folder / "Photos")

    assert "1" == s3.get("Photos/a").headers.get("x-amz-meta-a")
    assert 404 == s3.get("photos/a").status


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes names that differ in case for one, as macOS's and Windows's do."""

    def there(folder: s3mini.Folder, name: str) -> str:
        names = {n.casefold(): n for n in os.listdir(folder.path)}
        return names.get(name.casefold(), name)

    child = s3mini.Folder.child
    monkeypatch.setattr(s3mini.Folder, "child", lambda self, name: child(self, there(self, name)))
    monkeypatch.setattr(s3mini.Folder, "at", there)


@pytest.mark.parametrize(("key", "other"), [("Cat", "cat"), ("Photos/cat", "photos/cat")])
def test_on_a_disk_that_folds_case_a_key_is_not_another_key(
    tmp_path: Path, folding: None, key: str, other: str
) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    store.create()
    put(store, key, b"of the first", "first")
    fresh = s3mini.Store(store.root, store.disk)

    with pytest.raises(s3mini.S3Error, match="does not exist"):
        fresh.head(other)
    with pytest.raises(s3mini.S3Error, match="cannot hold it beside"):
        put(fresh, other, b"of another", "another")
    assert "first" == fresh.head(key).metadata["name"]


def test_nothing_steps_aside_onto_what_was_put_there_by_hand(s3: Client, folder: Path) -> None:
    (folder / "100").write_bytes(b"first")
    (folder / "100%").write_bytes(b"second")
    refused = s3.put("100/x", b"x")

    assert (400, "InvalidRequest") == (refused.status, refused.error)
    assert (b"first", b"second") == ((folder / "100").read_bytes(), (folder / "100%").read_bytes())
    assert b"first" == s3.get("100").body


@pytest.mark.parametrize("mode", [0o1777, 0o1750, 0o2750])
def test_an_operators_folder_keeps_its_mode(s3: Client, folder: Path, mode: int) -> None:
    (folder / "his").mkdir()
    (folder / "his").chmod(mode)
    if mode == 0o1750:  # what is not ours
        if os.geteuid():
            pytest.skip("only root gives folders away")
        os.chown(folder / "his", 1, -1)
        (folder / "his").chmod(mode)

    assert 200 == s3.put("his/k", b"x").status
    assert mode == stat.S_IMODE((folder / "his").stat().st_mode)


def test_a_new_folder_is_synced_where_the_disk_says_that_it_is_another_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does with root_squash."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    synced: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(s3mini.Disk, "sync_folder", lambda _, folder: synced.append(folder.path))
    put(store, "new/k", b"x", "n")

    assert str(tmp_path / "b") in synced
    assert 0 == (tmp_path / "b/new").stat().st_mode & stat.S_ISVTX


def test_a_disk_that_takes_no_modes_holds_new_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vfat and CIFS, where all is another user's."""
    def fchmod(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    monkeypatch.setattr(os, "fchmod", fchmod)

    assert 1 == put(store, "new/k", b"x", "n").size


def test_of_two_that_a_file_may_be_the_bytes_tell(tmp_path: Path) -> None:
    """Two of one size within a second, and a restore that keeps whole seconds."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    put(store, "k", b"first", "one")
    entry = put(store, "k", b"other", "two")
    seconds = entry.mtime_ns // 10**9 * 10**9
    (tmp_path / "b/k").write_bytes(b"first")
    os.utime(tmp_path / "b/k", ns=(seconds, seconds))

    assert "one" == s3mini.Store(store.root, store.disk).head("k").metadata["name"]


def test_a_file_of_the_last_time_there_is_can_be_replaced(s3: Client, folder: Path) -> None:
    s3.put("k", b"old")
    os.utime(folder / "k", (2**40, 2**40))  # the disk's own maximum
    first = s3.get("k").body
    tagged = s3.put("k", b"<Tagging><TagSet/></Tagging>", query="tagging")
    os.utime(folder / "k", (2**40, 2**40))
    replaced = s3.put("k", b"new")

    assert (b"old", 200, 200, b"new") == (
        first, tagged.status, replaced.status, s3.get("k").body)


@pytest.mark.parametrize(
    ("mtime", "said"),
    [(2**40, "9999-12-31T23:59:59.000Z"), (-(2**40), "1000-01-01T00:00:00.000Z")],
)
def test_a_time_that_no_date_can_say_is_the_nearest_that_one_can(mtime: int, said: str) -> None:
    """boto3 fails for the whole page of a listing. tmpfs, btrfs and zfs keep such times."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        store = s3mini.Store(name, s3mini.Disk(False))
        store.create()
        by_hand(Path(name, "k"), b"x")
        os.utime(Path(name, "k"), (mtime, mtime))
        kept = int(os.stat(Path(name, "k")).st_mtime) == mtime  # ext4 ends in 2446
        dates = [s3mini.render_iso_date(s3mini.Store(name, store.disk).head("k").modified)
                 for _ in range(2)]

    assert not kept or [said] * 2 == dates


@pytest.mark.parametrize("prefix", ["", "shut", "shut/", "shut/k"])
def test_a_folder_that_the_server_may_not_enter_holds_nothing(
    tmp_path: Path, unreadable: Callable[[Path], None], prefix: str
) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    put(store, "shut/k", b"x", "n")
    put(store, "other", b"x", "n")
    unreadable(tmp_path / "b" / "shut")
    page = s3mini.list_page(store, prefix, "", s3mini.Cursor(), 1000)

    assert ([] if prefix else ["other"]) == [key for key, _ in page.objects]


@pytest.mark.parametrize("name", ["k", ".k.s3mini.json"])
def test_what_the_server_may_not_read_is_403_and_listed(
    unreadable: Callable[[Path], None], name: str
) -> None:
    with s3mini.start("media") as fake:
        folder = Path(fake.data, "media")
        address = fake.endpoint.partition("//")[2]
        s3 = Client(address, fake.access_key, fake.secret_key, bucket="media")
        s3.put("k", b"first", {"x-amz-meta-a": "1"})
        s3.put("other", b"x")
        (folder / "k").write_bytes(b"edited")  # what is remembered of it is worth nothing
        unreadable(folder / name)
        replies = [s3.get("k"), s3.put("k", b"new"), s3.delete("k"), s3.put("k", tagging="")]
        listing = s3.get(list_type=2)

        assert [(403, "AccessDenied")] * 3 == [(r.status, r.error) for r in replies[:3]]
        assert ["k", "other"] == listing.elements("Key")
        assert "6" == listing.elements("Size")[0]
        assert b"edited" == (folder / "k").read_bytes()


def test_a_damaged_sidecar_never_makes_an_object_unreadable(s3: Client, folder: Path) -> None:
    for text in (
        "",
        "{",
        "[]",
        '{"v": 1}',
        "\xff",
        "[" * 100_000,
        '{"key": 1, "current": {"size": "x"}, "previous": 3}',
    ):
        s3.put("k.txt", b"content")
        sidecar(folder / "k.txt").write_text(text, encoding="latin-1")
        os.utime(folder / "k.txt")
        got = s3.get("k.txt")

        assert (200, b"content", md5(b"content")) == (got.status, got.body, got.etag), text
        assert 200 == s3.put("k.txt", b"again").status


@pytest.mark.parametrize("name", ["etag", "md5", "content-type"])
def test_half_a_character_makes_a_damaged_sidecar(s3: Client, folder: Path, name: str) -> None:
    for key in ("a", "k", "z"):
        s3.put(key, b"content", {"content-type": "text/x-k"})
    before, later = (folder / "k").stat().st_mtime_ns, time.time_ns() + 1_000_000_000
    text = sidecar(folder / "k").read_text().replace(str(before), str(later))
    broken = re.sub(f'"{name}": "[^"]+"', rf'"{name}": "\\ud800"', text)
    assert broken != text
    sidecar(folder / "k").write_text(broken)
    os.utime(folder / "k", ns=(later, later))

    assert ["a", "k", "z"] == s3.get(list_type=2).elements("Key")
    assert (b"content", md5(b"content")) == (s3.get("k").body, s3.get("k").etag)
    assert 200 == s3.put("k", b"new").status
    assert b"new" == s3.get("k").body


def test_a_flipped_bit_that_leaves_half_a_character_is_damage_too(s3: Client, folder: Path) -> None:
    s3.put("k", b"content", {"x-amz-tagging": "a=%ED%95%9C"})
    before, later = (folder / "k").stat().st_mtime_ns, time.time_ns() + 1_000_000_000
    data = sidecar(folder / "k").read_bytes().replace(b"%d" % before, b"%d" % later)
    assert b"\xed\x95\x9c" in data
    sidecar(folder / "k").write_bytes(data.replace(b"\xed\x95\x9c", b"\xed\xb5\x9c"))
    os.utime(folder / "k", ns=(later, later))
    tags = s3.get("k", query="tagging")

    assert (200, []) == (tags.status, tags.elements("Value"))
    assert 200 == s3.put("k", b"new").status
    assert b"new" == s3.get("k").body


def test_a_folder_in_a_sidecars_place_is_no_sidecar(s3: Client, folder: Path) -> None:
    s3.put("k", b"x")
    sidecar(folder / "k").unlink()
    sidecar(folder / "k").mkdir()

    assert ["k"] == listed(s3)
    assert 200 == s3.head("k").status
    assert [204, 204] == [s3.delete("k").status for _ in range(2)]
    assert [] == listed(s3)


def test_a_key_is_not_listed_where_nobody_would_find_it(s3: Client, folder: Path) -> None:
    """Moved to a name that is another spelling of its own."""
    keys = ["ab/x", "ab/" + "x" * 61, "ab/" + "x" * 241]
    for key in keys:
        s3.put(key, b"x")
    (folder / "ab").rename(folder / "a%62")

    assert [] == listed(s3)
    assert {404} == {s3.head(key).status for key in keys}


def test_an_orphan_sidecar_is_harmless(s3: Client, folder: Path) -> None:
    s3.put("d/k", b"x", {"x-amz-meta-a": "1"})
    (folder / "d/k").unlink()

    assert (404, []) == (s3.get("d/k").status, listed(s3))
    s3.put("d/k", b"y")
    assert (b"y", None) == (s3.get("d/k").body, s3.get("d/k").headers.get("x-amz-meta-a"))


def test_a_large_file_is_served_at_once_and_its_etag_is_no_md5(s3: Client, folder: Path) -> None:
    with (folder / "disk.img").open("wb") as file:
        file.truncate(65 * 1024**2)
    head = s3.head("disk.img")

    assert (200, str(65 * 1024**2)) == (head.status, head.headers["content-length"])
    assert head.etag.endswith("-1")
    assert head.etag == s3.head("disk.img").etag


def test_names_that_are_not_utf8_do_no_harm(s3: Client, folder: Path) -> None:
    raw = os.fsencode(folder)
    for name in (b"\xff.txt", b"bad\xfe%", b"%zz", b"%C3%28", b"%61", b"x%-"):
        Path(os.fsdecode(raw + b"/" + name)).write_bytes(b"x")
    os.mkdir(raw + b"/\xfd-folder")
    Path(os.fsdecode(raw + b"/\xfd-folder/inside")).write_bytes(b"x")
    s3.put("good", b"x")
    listing = s3.get(list_type=2)

    assert (200, ["good"]) == (listing.status, listing.elements("Key"))
    assert 200 == s3.get(list_type=2, delimiter="/").status
    assert b"x" == s3.get("good").body


def test_a_name_that_is_not_utf8_does_no_harm_beside_plain_ones(s3: Client, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_bytes(b"x")
    s3.put("good", b"x")

    assert ["good"] == listed(s3)


def test_a_folder_is_served_in_place(serve: Serve, tmp_path: Path) -> None:
    own = tmp_path / "srv"
    by_hand(own / "site/index.html", b"<h1>hi</h1>")
    by_hand(own / "readme.txt", b"read me")
    before = (own / "site/index.html").stat()
    client = serve(
        f"[site]\naccess_key = k\nsecret_key = s\npublic = read\npath = {own}\n", durability="none"
    ).client("k", "s", bucket="site")
    got = client.anonymous().get("site/index.html")

    assert (b"<h1>hi</h1>", "text/html") == (got.body, got.headers["content-type"])
    assert ["readme.txt", "site/index.html"] == listed(client)
    assert before.st_mtime_ns == (own / "site/index.html").stat().st_mtime_ns
    client.put("site/new.css", b"a{}")
    assert b"a{}" == (own / "site/new.css").read_bytes()


# -- every legal key -------------------------------------------------------------------------------

ODD_KEYS = [
    "a//b", "/a", "/", "//", "///", "dir/", "dir//", "dir/x", "a/./b", "a/../b", ".", "./", "./a",
    "a/.", "a/..", "...", "..a", "a..", "a/.../b", "%", "%%", "%-", "a%", "a%-", "a%/b", "%2F",
    "a%2Fb", "a%2f", "%41", "A", "a\\b", "a:b", 'a*?"<>|', "con", "nul.txt", "a ", " a", " ", "a.",
    "tab\there", "new\nline", "\r", "\x01", "\x7f", "nul\0byte", "\x85", "\u2028", "ä", "a\u0308",
    "\u00e4\u0308", "\U0001f600", "\uffff", "\ufeff", "é/è",
    ".s3mini", ".s3mini/x", ".s3mini/tmp/x",
    ".S3MINI", "x/.s3mini", "x/.s3mini/y", ".s3mini.json", "..s3mini.json", ".a.s3mini.json",
    ".A.S3MINI.JSON", "x/.y.s3mini.json", ".x.s3mini.json/y", "x.s3mini.json", "-", "--", "~", "#",
    "?", "&", "=", "+", "a+b", "a b", "a=b&c", "'", "(", ")", "!", "*", ";", ",", ":", "@", "$",
    "k" * 1024, "ä" * 512, "a/" * 512, "/" * 1024, "%" * 1024, "\n" * 1024, "\U0001f600" * 256,
    "s" * 300, "s" * 241, "s" * 242, "s" * 254, "s" * 255, "s" * 256, "s" * 300 + "/" + "t" * 300,
    "s" * 300 + "/", "s" * 241 + "/x", "u" * 600 + "/v", "." * 300, "x" * 239 + ".." + "y" * 100,
    "x" * 238 + "ä" * 10, "%" * 300, "." + "z" * 250 + ".s3mini.json", "w" * 300 + "/.s3mini/w",
]  # fmt: skip


def test_every_legal_key_can_be_stored_beside_all_others(s3: Client, folder: Path) -> None:
    keys = [key for key in ODD_KEYS if key != "a/.."]
    for key in keys:
        assert (
            200 == s3.put(key, b"1" + key.encode(), {"x-amz-meta-n": str(keys.index(key))}).status
        ), key
    for key in reversed(keys):
        assert 200 == s3.put(key, key.encode(), {"x-amz-meta-n": str(keys.index(key))}).status, key
    wrong = []
    for number, key in enumerate(keys):
        got = s3.get(key)
        if (got.body, got.headers.get("x-amz-meta-n")) != (key.encode(), str(number)):
            wrong.append((key, got.status, got.body[:50]))

    assert [] == wrong
    assert len(keys) == int(s3.get(list_type=2, encoding_type="url").element("KeyCount"))
    for key in keys:
        assert 204 == s3.delete(key).status
    assert [] == left(folder)


@pytest.mark.parametrize("key", ["a/..", "a/b/../..", "a/../b/..", "a/b/../../c"])
def test_a_key_that_goes_up_but_stays_inside_is_a_key(s3: Client, folder: Path, key: str) -> None:
    assert 200 == s3.put(key, b"x").status
    assert (b"x", [key]) == (s3.get(key).body, listed(s3))
    assert [] == [name for name in left(folder) if name != "a"]


def test_no_two_keys_share_a_file(s3: Client) -> None:
    s3.put("a/b", b"1")

    for alias in ("a//b", "/a/b", "a/b/", "a/./b", "./a/b", "a\\b", "a%2Fb", "A/b", "a/x/../b"):
        assert "NoSuchKey" == s3.get(alias).error, alias


@pytest.mark.parametrize("key", ["k" * 1025, "ä" * 513, "a/" * 513])
def test_a_key_has_1024_bytes_at_most(s3: Client, folder: Path, key: str) -> None:
    for reply in (s3.put(key, b"x"), s3.get(key), s3.delete(key)):
        assert (400, "KeyTooLongError") == (reply.status, reply.error)
    assert [] == left(folder)


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "../media/x",
        "a/../../x",
        "%2e%2e/x",
        "..%2Fx",
        "a/%2E%2E/..%2fx",
        "../../../etc/passwd",
    ],
)
def test_no_key_leaves_the_bucket(server: Server, s3: Client, path: str) -> None:
    before = sorted(os.listdir(server.data.parent)), sorted(os.listdir(server.data))
    target = f"/{s3.bucket}/{path}"
    replies = [s3.put(target=target, body=b"x"), s3.get(target=target), s3.delete(target=target)]
    after = sorted(os.listdir(server.data.parent)), sorted(os.listdir(server.data))

    assert [400, 400, 400] == [reply.status for reply in replies]
    assert before == after


@pytest.mark.parametrize("path", ["%ff", "%c3%28", "a%", "a%4", "a%zz", "%ed%a0%80"])
def test_a_path_that_is_not_utf8_is_refused(s3: Client, folder: Path, path: str) -> None:
    target = f"/{s3.bucket}/{path}"
    replies = [s3.put(target=target, body=b"x"), s3.get(target=target)]

    assert [(400, "InvalidURI")] * 2 == [(reply.status, reply.error) for reply in replies]
    assert [] == left(folder)


def test_our_own_names_are_names_of_objects_too(s3: Client, folder: Path) -> None:
    s3.put("cat.jpg", b"meow", {"x-amz-meta-a": "1"})
    about = (folder / ".s3mini/bucket.json").read_bytes()

    assert 404 == s3.get(".cat.jpg.s3mini.json").status
    assert 404 == s3.get(".s3mini/bucket.json").status
    s3.put(".cat.jpg.s3mini.json", b"evil")
    s3.put(".s3mini/bucket.json", b"evil")
    s3.delete(".s3mini/locks/00")
    assert (b"evil", b"evil") == (
        s3.get(".cat.jpg.s3mini.json").body,
        s3.get(".s3mini/bucket.json").body,
    )
    assert (b"meow", "1") == (s3.get("cat.jpg").body, s3.get("cat.jpg").headers["x-amz-meta-a"])
    assert about == (folder / ".s3mini/bucket.json").read_bytes()


def test_our_own_names_are_not_listed(s3: Client) -> None:
    s3.put("d/k", b"x")

    assert ["d/k"] == listed(s3)
    assert ["d/"] == s3.get(list_type=2, delimiter="/").elements("Prefix")[1:]


# -- a and a/b -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [
        ["a", "a/b"],
        ["a/b", "a"],
        ["a", "a/b", "a/b/c"],
        ["a/b/c", "a/b", "a"],
        ["a/b", "a/b/c", "a"],
        ["a", "a/", "a//", "a/b/c"],
        ["a%", "a", "a/b", "a%/b"],
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_an_object_and_a_folder_may_have_one_name(
    s3: Client, folder: Path, order: list[str], reverse: bool
) -> None:
    for key in order:
        s3.put(key, key.encode(), {"x-amz-meta-key": key})

    assert sorted(order) == listed(s3)
    rest = list(order)
    for key in sorted(order, reverse=reverse):
        for other in rest:
            got = s3.get(other)
            assert (other.encode(), other) == (got.body, got.headers.get("x-amz-meta-key"))
        s3.delete(key)
        rest.remove(key)
        assert ("NoSuchKey", sorted(rest)) == (s3.get(key).error, listed(s3))
    assert [] == left(folder)


def test_an_object_beside_a_folder_is_overwritten_in_its_place(s3: Client, folder: Path) -> None:
    s3.put("a/b", b"x")
    s3.put("a", b"1")
    s3.put("a", b"2")
    s3.delete("a/b")
    s3.put("a", b"3")

    assert (b"3", ["a"]) == (s3.get("a").body, listed(s3))
    s3.delete("a")
    assert ([], []) == (listed(s3), left(folder))


def test_an_adopted_file_steps_aside_too(s3: Client, folder: Path) -> None:
    by_hand(folder / "a", b"by hand")
    s3.put("a/b", b"x")

    assert (b"by hand", b"x") == (s3.get("a").body, s3.get("a/b").body)
    assert md5(b"by hand") == s3.head("a").etag


def test_a_file_that_is_no_object_does_not_step_aside(s3: Client, folder: Path) -> None:
    """It has the name of a folder in which too long a name goes on."""
    in_the_way = folder / s3mini.names_of_key("L" * 300)[0]
    in_the_way.write_bytes(b"by hand")
    reply = s3.put("L" * 300, b"x")

    assert (400, "InvalidRequest") == (reply.status, reply.error)
    assert (b"by hand", []) == (in_the_way.read_bytes(), listed(s3))


def test_a_bucket_restored_without_its_empty_folders_is_written_to(serve: Serve) -> None:
    server = serve()
    s3 = server.client("test-key", bucket="test-restored")
    s3.put()
    s3.put("k", b"old", {"x-amz-meta-a": "1"})
    server.stop()
    for name in ("tmp", "uploads", "locks"):
        shutil.rmtree(server.data / "test-restored/.s3mini" / name)
    server.start()
    s3 = server.client("test-key", bucket="test-restored")

    assert "1" == s3.get("k").headers["x-amz-meta-a"]
    assert [200, 200] == [s3.put("k", b"new").status, s3.post("k", query="uploads").status]
    assert b"new" == s3.get("k").body
    assert "could not be tidied" not in server.log


class WholeSeconds(s3mini.Disk):
    """A disk that rounds times: at once, or only when it writes them."""

    def __init__(self, at_once: bool) -> None:
        super().__init__(durable=True)
        self.at_once = at_once

    def stamp(self, fd: int, path: str, mtime_ns: int) -> None:
        super().stamp(fd, path, mtime_ns // 10**9 * 10**9 if self.at_once else mtime_ns)

    def sync(self, fd: int) -> None:
        mtime_ns = os.fstat(fd).st_mtime_ns // 10**9 * 10**9
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def keeps_order(self, path: str) -> bool:
        return False


@pytest.mark.parametrize("at_once", [True, False])
def test_a_disk_of_whole_seconds_tells_generations_apart(tmp_path: Path, at_once: bool) -> None:
    store = s3mini.Store(str(tmp_path), WholeSeconds(at_once))
    store.create()
    for name in ("first", "second", "third"):
        put(store, "k", b"bytes", name)
        assert name == store.head("k").metadata["name"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_disk_of_whole_seconds_tells_a_change_of_metadata(tmp_path: Path, at_once: bool) -> None:
    store = s3mini.Store(str(tmp_path), WholeSeconds(at_once))
    store.create()
    put(store, "k", b"bytes", "new")
    for name in ("first", "second", "third"):
        before = (tmp_path / "k").stat().st_mtime_ns
        store.update("k", lambda old, name=name: old._replace(tags={"n": name}), s3mini.no_check)
        assert ({"n": name}, "new") == (store.head("k").tags, store.head("k").metadata["name"])
        assert before < (tmp_path / "k").stat().st_mtime_ns


# -- links, pipes ----------------------------------------------------------------------------------


def test_a_link_to_a_file_is_not_followed(s3: Client, folder: Path, outside: Path) -> None:
    os.symlink(outside / "secret", folder / "link")
    replies = s3.get("link"), s3.head("link"), s3.get(list_type=2)

    assert [404, 404, 200] == [reply.status for reply in replies]
    assert [] == replies[2].elements("Key")
    s3.put("link", b"new")
    s3.delete("link")
    assert OUTSIDE == (outside / "secret").read_bytes()


def test_a_link_to_a_folder_is_not_followed(s3: Client, folder: Path, outside: Path) -> None:
    os.symlink(outside, folder / "link", target_is_directory=True)

    assert 404 == s3.get("link/secret").status
    assert [] == listed(s3)
    assert [] == s3.get(list_type=2, delimiter="/").elements("Prefix")[1:]
    assert [] == s3.get(list_type=2, prefix="link/").elements("Key")
    assert s3.put("link/new", b"x").status in (400, 404)
    s3.delete("link/secret")
    assert ["secret"] == os.listdir(outside)


def hot(s3: Client, key: str) -> bytes:
    """What a GET gives of an object that is in the memory of every worker."""
    time.sleep(0.1)  # what changed within a tick of the disk's clock is read from the file
    return [s3.get(key).body for _ in range(8)][-1]


def test_bytes_changed_behind_the_same_size_and_time_are_served(s3: Client, folder: Path) -> None:
    """As rsync --times --inplace leaves them. The ETag stays, as for every such change."""
    s3.put("a/k", b"old")
    assert b"old" == hot(s3, "a/k")
    info = (folder / "a/k").stat()
    with (folder / "a/k").open("r+b") as file:
        file.write(b"new")
    os.utime(folder / "a/k", ns=(info.st_atime_ns, info.st_mtime_ns))

    assert [b"new"] * 8 == [s3.get("a/k").body for _ in range(8)]


def test_only_bytes_that_rest_are_kept_in_memory(tmp_path: Path) -> None:
    contents, path = s3mini.Contents(), tmp_path / "file"
    path.write_bytes(b"bytes")
    contents.add(path.stat(), b"bytes")
    fresh = contents.get(path.stat())
    time.sleep(2 * s3mini.MTIME_TICK)
    contents.add(path.stat(), b"byt")
    short = contents.get(path.stat())
    contents.add(path.stat(), b"bytes")

    assert (None, None, b"bytes") == (fresh, short, contents.get(path.stat()))


def test_the_memory_for_contents_is_bounded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(s3mini, "CACHED_CONTENTS", 10 + 2 * s3mini.CONTENT_COST)
    contents, paths = s3mini.Contents(), [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(b"four")
    time.sleep(2 * s3mini.MTIME_TICK)
    for path in paths:
        contents.add(path.stat(), b"four")
        contents.add(path.stat(), b"four")

    assert [None, None, b"four", b"four"] == [contents.get(path.stat()) for path in paths]


def test_what_is_kept_in_memory_is_bounded_for_all_buckets_together(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(s3mini, "CACHED_ENTRIES", 8)
    monkeypatch.setattr(s3mini, "CACHED_NAMES", 3 * s3mini.NAMES_COST)
    monkeypatch.setattr(s3mini, "FEW_NAMES", 1)
    with s3mini.start("one", "two", "three", "four") as fake:
        keys = [f"k{number}" for number in range(4)]
        clients = [
            Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, bucket=name)
            for name in ("one", "two", "three", "four")]
        for client in clients:
            for key in keys:
                assert 200 == client.put(key, key.encode()).status
        for _ in range(2):
            for client in clients:
                assert [k.encode() for k in keys] == [client.get(key).body for key in keys]
                assert keys == client.get().elements("Key")
        memory = fake._server.app.buckets._memory

    assert 8 == len(memory.entries)
    assert 2 == len(memory.names._known)
    assert memory.names._size == sum(k.names.bytes for k in memory.names._known.values())


def test_entries_in_memory_share_what_is_the_same() -> None:
    texts = ["5e1f", "5e1" + "f"[:1]]
    headers = [{"content-type": "text/" + kind} for kind in ("plain", "plain", "html")]
    entries = [s3mini.Entry(1, texts[0], str(texts[1]), 2, headers=h, tags={}) for h in headers]
    one, two, other = [entry.compact() for entry in entries]

    assert entries == [one, two, other]
    assert one.headers is two.headers is not other.headers
    assert one.md5 is one.etag
    assert one.tags is s3mini.NONE


@pytest.mark.parametrize("key", ["k", "a/k", "a/b/k"])
def test_what_is_in_memory_is_what_the_file_gives(s3: Client, folder: Path, key: str) -> None:
    s3.put(key, b"0123456789", {"x-amz-meta-a": "1", "content-type": "text/plain"})
    ranges = ["bytes=2-4", "bytes=-3", "bytes=8-", "bytes=20-", "nonsense"]
    asked = [{}, *[{"range": value} for value in ranges]]

    def answers() -> list[Any]:
        found = [ask(key, headers) for headers in asked for ask in (s3.get, s3.head)]
        bodies = [reply.body if reply.status < 300 else reply.error for reply in found]
        return [(r.status, body, _lasting(r.headers)) for r, body in zip(found, bodies)]

    cold = answers()
    hot(s3, key)
    assert cold == answers()


def _lasting(headers: dict[str, str]) -> dict[str, str]:
    """The headers without those that every answer has its own of."""
    own = ("date", "x-amz-request-id", "x-amz-id-2", "content-length")
    return {name: value for name, value in headers.items() if name not in own}


def test_a_folder_that_became_a_link_is_not_followed(
    s3: Client, folder: Path, outside: Path
) -> None:
    s3.put("a/b/k", b"x")
    s3.get("a/b/k")
    os.rename(folder / "a", outside / "moved")
    os.symlink(outside / "moved", folder / "a", target_is_directory=True)
    replies = s3.get("a/b/k"), s3.head("a/b/k")
    s3.delete("a/b/k")

    assert [404, 404] == [reply.status for reply in replies]
    assert (outside / "moved/b/k").exists()


def test_a_file_that_became_a_link_is_not_followed(s3: Client, folder: Path, outside: Path) -> None:
    s3.put("k", b"x")
    assert b"x" == hot(s3, "k")
    os.rename(folder / "k", outside / "moved")
    os.symlink(outside / "moved", folder / "k")

    assert [404] * 8 == [ask("k").status for ask in (s3.get, s3.head) * 4]
    s3.delete("k")
    assert (outside / "moved").exists()


def test_a_dangling_link_makes_nothing(s3: Client, folder: Path, outside: Path) -> None:
    os.symlink(outside / "nothing", folder / "link")

    assert (404, []) == (s3.get("link").status, listed(s3))
    s3.put("link", b"x")
    assert ["secret"] == os.listdir(outside)


def test_a_link_to_a_sidecar_is_not_followed(s3: Client, folder: Path, outside: Path) -> None:
    s3.put("k", b"x", {"x-amz-meta-a": "1"})
    told = sidecar(folder / "k").read_text().replace('"1"', '"planted"')
    (outside / "secret").write_text(told)
    sidecar(folder / "k").unlink()
    os.symlink(outside / "secret", sidecar(folder / "k"))
    (folder / "k").write_bytes(b"y")

    assert (b"y", None) == (s3.get("k").body, s3.get("k").headers.get("x-amz-meta-a"))
    s3.put("k", b"z", {"x-amz-meta-a": "2"})
    assert told == (outside / "secret").read_text()


def test_a_link_is_not_the_source_of_a_copy(s3: Client, folder: Path, outside: Path) -> None:
    os.symlink(outside / "secret", folder / "link")

    assert 404 == s3.put("copy", b"", {"x-amz-copy-source": f"{s3.bucket}/link"}).status


def test_a_pipe_does_not_hang_anybody(s3: Client, folder: Path) -> None:
    os.mkfifo(folder / "pipe")

    assert [404, 404] == [s3.get("pipe").status, s3.head("pipe").status]
    assert [] == listed(s3)
    assert s3.put("pipe", b"x").status < 500
    assert s3.delete("pipe").status < 500


def test_a_bucket_that_is_a_folder_of_links_can_be_deleted(
    server: Server, s3: Client, folder: Path, outside: Path
) -> None:
    os.symlink(outside, folder / "link", target_is_directory=True)
    s3.delete()

    assert ["secret"] == os.listdir(outside)
