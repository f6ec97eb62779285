"""`s3mini.py check` finds what does not fit and mends it without harm; `manifest` lists digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Union

import pytest
from conftest import PROGRAM, Server, flip
from powercut import put
from signing_client import Client

import s3mini

MIB = 1024**2


@pytest.fixture
def folder(server: Server, bucket: str) -> Path:
    return server.data / bucket


@dataclass
class Ran:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


def run(server: Union[Server, SimpleNamespace], *arguments: str) -> Ran:
    """A command of s3mini, in this process: starting another takes a second each time."""
    command = [*arguments, "--config", str(server.config), "--data", str(server.data)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = s3mini.main(command)
        except SystemExit as ended:  # of argparse
            code = int(str(ended.code))
    return Ran(code, out.getvalue(), err.getvalue())


@dataclass
class Checker:
    """`check` of the test's bucket."""

    server: Server
    bucket: str

    def __call__(self, *flags: str) -> tuple[int, list[dict[str, Any]]]:
        """The exit code, and the findings."""
        done = run(self.server, "check", self.bucket, "--json", *flags)
        assert "" == done.err
        lines = [json.loads(line) for line in done.out.splitlines()]
        summary = lines.pop()
        left = [line for line in lines if not line["mended"]]
        assert (len(lines), len(left)) == (summary["found"], summary["left"])
        assert done.code == (1 if left else 0)
        return done.code, lines


@pytest.fixture
def check(server: Server, bucket: str) -> Checker:
    return Checker(server, bucket)


def found(lines: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    return [(line["kind"], line["name"], line["mended"]) for line in lines]


def sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.s3mini.json")


def multipart(s3: Client, key: str, *parts: bytes) -> None:
    upload = s3.post(key, uploads="").element("UploadId")
    etags = [s3.put(key, d, partNumber=n, uploadId=upload).etag for n, d in enumerate(parts, 1)]
    rows = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>" for n, e in enumerate(etags, 1)
    )
    body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
    assert s3.post(key, body, uploadId=upload).status == 200


# -- each kind of finding: made, found, and mended or left -----------------------------------------


def make_damaged(s3: Client, folder: Path) -> str:
    s3.put("folder/a", b"x" * 1000)
    flip(folder / "folder" / "a", 500)
    return "folder/a"


def make_damaged_parts(s3: Client, folder: Path) -> str:
    multipart(s3, "m", b"x" * (5 * MIB), b"y" * 100)
    flip(folder / "m", 5 * MIB + 50)
    return "m"


def make_changed(s3: Client, folder: Path) -> str:
    s3.put("a", b"as it was stored")
    (folder / "a").write_bytes(b"edited by hand")
    return "a"


def make_unreadable_sidecar(s3: Client, folder: Path) -> str:
    s3.put("a", b"content")
    sidecar(folder / "a").write_bytes(b'{"v": 1, "key": "a", "curr')
    return "a"


def make_unhashed(s3: Client, folder: Path) -> str:
    with (folder / "large").open("wb") as file:
        file.truncate(s3mini.ADOPT_BYTES + 1)
    assert s3.head("large").etag.endswith("-1")  # adopted, but not read
    return "large"


def make_orphan(s3: Client, folder: Path) -> str:
    s3.put("folder/a", b"content")
    s3.put("folder/b", b"content")
    (folder / "folder" / "a").unlink()
    return "folder/.a.s3mini.json"


def make_damaged_upload(s3: Client, folder: Path) -> str:
    upload = s3.post("m", uploads="").element("UploadId")
    path = folder / ".s3mini" / "uploads" / upload / "upload.json"
    path.write_bytes(path.read_bytes()[:20])
    return f".s3mini/uploads/{upload}/upload.json"


def make_temp(_: Client, folder: Path) -> str:
    path = folder / ".s3mini" / "tmp" / ("0" * 24)
    path.write_bytes(b"of a dead writer")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return f".s3mini/tmp/{path.name}"


def make_no_key(_: Client, folder: Path) -> str:
    (folder / "50%zz").write_bytes(b"put there by hand")
    return "50%zz"


def make_long(_: Client, folder: Path) -> str:
    name = "/".join(["n" * 200] * 6)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"a key of 1,205 bytes")
    return name


def make_damaged_and_restored(s3: Client, folder: Path) -> str:
    """As tar restores it: its time has no fraction of a second any more."""
    s3.put("r", b"x" * 1000)
    flip(folder / "r", 500)
    cut_time(folder / "r")
    return "r"


def cut_time(path: Path) -> None:
    seconds = path.stat().st_mtime_ns // 10**9 * 10**9
    os.utime(path, ns=(seconds, seconds))


def make_shadowed(s3: Client, folder: Path) -> str:
    s3.put("folder/a", b"content")
    (folder / "folder" / "a%").write_bytes(b"put there by hand")
    return "folder/a%"


def make_orphan_beside_a_folder(s3: Client, folder: Path) -> str:
    """A PUT that was killed before its commit, and then another client's key below it."""
    s3.put("a", b"content")
    text = sidecar(folder / "a").read_bytes()
    s3.delete("a")
    s3.put("a/b", b"content")
    sidecar(folder / "a").write_bytes(text)
    return ".a.s3mini.json"


MAKERS = {  # a name: (how it is made, its kind, the flags that find it, whether it is mended)
    "a flipped bit": (make_damaged, "damaged", ("--deep",), False),
    "a flipped bit in a part": (make_damaged_parts, "damaged", ("--deep",), False),
    "a flipped bit that tar restored": (make_damaged_and_restored, "damaged", ("--deep",), False),
    "a file edited by hand": (make_changed, "changed", (), True),
    "a sidecar cut short": (make_unreadable_sidecar, "unreadable-sidecar", (), True),
    "an upload's note cut short": (make_damaged_upload, "note", (), False),
    "a large file by hand": (make_unhashed, "unhashed", (), True),
    "a sidecar alone": (make_orphan, "orphan", (), True),
    "a temp file": (make_temp, "temp", (), True),
    "a sidecar beside a folder": (make_orphan_beside_a_folder, "orphan", (), True),
    "a name of no key": (make_no_key, "no-key", (), False),
    "a name too long for a key": (make_long, "no-key", (), False),
    "a name behind another": (make_shadowed, "shadowed", (), False),
}


def test_every_kind_of_finding_is_made_here() -> None:
    made = {kind for _, kind, _, _ in MAKERS.values()}
    others = {"unreadable", "locked-out", "broken", "foreign", "mounted"}  # of another user or disk
    assert set(s3mini.FINDINGS) == {*made, *others}


def contents(s3: Client) -> dict[str, tuple[int, bytes]]:
    keys = s3.get(list_type=2).elements("Key")
    replies = {key: s3.get(key) for key in keys}
    return {k: (r.status, hashlib.md5(r.body).digest()) for k, r in replies.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_found_and_mended_or_left(
    check: Checker, s3: Client, folder: Path, name: str
) -> None:
    make, kind, flags, is_mended = MAKERS[name]
    s3.put("bystander", b"content", {"x-amz-meta-n": "v"})
    assert (0, []) == check(*flags)
    what = make(s3, folder)

    assert (1, [(kind, what, False)]) == (1, found(check(*flags)[1]))
    assert (1, [(kind, what, False)]) == (1, found(check(*flags)[1]))  # it only looked
    before = contents(s3) if kind != "changed" else None
    repaired = check("--repair", *flags)
    assert (0 if is_mended else 1, [(kind, what, is_mended)]) == (repaired[0], found(repaired[1]))
    again = check(*flags)
    assert ([] if is_mended else [(kind, what, False)]) == found(again[1])
    assert before is None or before == contents(s3)
    assert "v" == s3.head("bystander").headers["x-amz-meta-n"]


def test_a_damaged_object_stays_readable(check: Checker, s3: Client, folder: Path) -> None:
    s3.put("a", b"x" * 100, {"x-amz-meta-n": "v"})
    flip(folder / "a", 0)
    check("--deep", "--repair")

    got = s3.get("a")
    assert (200, b"y" + b"x" * 99, "v") == (got.status, got.body, got.headers["x-amz-meta-n"])


def test_without_deep_no_byte_is_read(check: Checker, s3: Client, folder: Path) -> None:
    make_damaged(s3, folder)

    assert (0, []) == check()


def test_a_wrong_checksum_is_found_where_the_md5_is_right(
    check: Checker, s3: Client, folder: Path
) -> None:
    s3.put("a", b"content", {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-crc32": crc32()})
    text = sidecar(folder / "a").read_text()
    assert crc32() in text
    sidecar(folder / "a").write_text(text.replace(crc32(), "AAAAAA=="))

    assert [("damaged", "a", False)] == found(check("--deep")[1])


def crc32() -> str:
    import base64
    import zlib

    return base64.b64encode(zlib.crc32(b"content").to_bytes(4, "big")).decode()


def test_a_damaged_sidecar_is_put_aside_for_a_human(
    check: Checker, s3: Client, folder: Path
) -> None:
    make_unreadable_sidecar(s3, folder)
    broken = sidecar(folder / "a").read_bytes()
    check("--repair")

    aside = list((folder / ".s3mini" / "damaged").glob("*/.a.s3mini.json"))
    assert [broken] == [path.read_bytes() for path in aside]
    assert "a" == json.loads(sidecar(folder / "a").read_text())["key"]
    assert b"content" == s3.get("a").body


def test_a_sidecar_whose_object_is_gone_is_kept_for_who_restores_it(
    check: Checker, s3: Client, folder: Path
) -> None:
    """A restore may bring the sidecars first; or the file was removed by mistake."""
    s3.put("a", b"content", {"x-amz-meta-n": "v"})
    (folder / "a").rename(folder / "b")
    detail, = [line["detail"] for line in check("--repair")[1]]
    aside = folder / detail.removeprefix("now ")
    assert (sidecar(folder / "a").name, folder / ".s3mini" / "damaged") == (
        aside.name, aside.parent.parent)
    aside.rename(sidecar(folder / "a"))
    (folder / "b").rename(folder / "a")

    assert "v" == s3.head("a").headers["x-amz-meta-n"]


def test_an_unhashed_file_gets_the_etag_of_its_content(
    check: Checker, s3: Client, folder: Path
) -> None:
    make_unhashed(s3, folder)
    check("--repair")

    digest = hashlib.md5(bytes(s3mini.ADOPT_BYTES + 1)).hexdigest()
    assert digest == s3.head("large").etag


def test_a_file_put_there_by_hand_is_no_finding(check: Checker, folder: Path) -> None:
    (folder / "by hand").write_bytes(b"content")

    assert (0, []) == check("--deep")


def test_a_healthy_bucket_of_every_shape_has_no_findings(
    check: Checker, s3: Client, folder: Path
) -> None:
    for key in ("a", "a/b", "a//c", "dir/", "50%", "x" * 700, ".s3mini/x", "ä", "q?", "n\nl"):
        assert s3.put(key, key.encode()).status == 200
    s3.put("a", b"again")
    s3.put("b", b"", {"x-amz-copy-source": f"/{s3.bucket}/a"})
    s3.put("c", b"", {"x-amz-rename-source": f"/{s3.bucket}/b"}, renameObject="")
    s3.delete("q?")
    multipart(s3, "m", b"x" * (5 * MIB), b"y")
    s3.put("m", b"part", partNumber=1, uploadId=s3.post("m", uploads="").element("UploadId"))
    (folder / ".s3mini" / "bucket.json").touch()

    assert (0, []) == check("--deep")
    assert (0, []) == check("--deep", "--repair")


@pytest.mark.parametrize("coding", ["cp1252", "ascii", "utf-8"])
def test_a_name_that_a_terminal_cannot_show_is_escaped(
    monkeypatch: pytest.MonkeyPatch, coding: str
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=coding))
    shown = s3mini.on_terminal("日本\x1b\udcff.jpg")

    assert shown.encode(coding)
    assert shown == ("日本" if coding == "utf-8" else "\\u65e5\\u672c") + "\\x1b\\udcff.jpg"


def test_a_bucket_restored_without_its_empty_folders_is_checked(
    check: Checker, s3: Client, folder: Path
) -> None:
    s3.put("a", b"content")
    for name in ("tmp", "uploads", "locks"):
        shutil.rmtree(folder / ".s3mini" / name)

    assert (0, []) == check("--deep")


def test_links_are_not_followed(check: Checker, s3: Client, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "50%zz").write_bytes(b"not ours")
    (folder / "link").symlink_to(outside)
    (folder / "file").symlink_to(outside / "50%zz")
    s3.put("a", b"content")
    (folder / ".s3mini" / "tmp" / "link").symlink_to(outside / "50%zz")

    lines = check("--deep", "--repair")[1]
    assert "no-key" not in {line["kind"] for line in lines}
    assert b"not ours" == (outside / "50%zz").read_bytes()


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> s3mini.Store:
    made = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    made.create()
    return made


def inspect(store: s3mini.Store, deep: bool = False) -> list[tuple[str, str]]:
    findings = s3mini.Inspector(store, deep, False, lambda *_: None).run()
    return [(finding.kind, finding.name) for finding in findings]


@pytest.mark.parametrize("what", ["folder", "folder/a", "folder/.a.s3mini.json"])
def test_what_may_not_be_read_is_reported_and_the_rest_is_checked(
    store: s3mini.Store, unreadable: Callable[[Path], None], what: str
) -> None:
    for key in ("folder/a", "folder/b", "z"):
        put(store, key, b"content", "name")
    Path(store.root, "folder", "50%zz").touch()
    Path(store.root, "z%").touch()
    unreadable(Path(store.root, what))

    below = [] if what == "folder" else [("no-key", "folder/50%zz")]
    name = "folder" if what == "folder" else "folder/a"
    assert sorted([("unreadable", name), ("shadowed", "z%"), *below]) == sorted(inspect(store))


def test_what_the_disk_cannot_read_is_reported_and_the_rest_is_checked(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.versions.keep = 3600
    for key in ("a", "b", "b", "c"):
        put(store, key, f"of {key}".encode(), "name")
    kept, = (Path(version.path) for version in store.versions.since())
    flip(Path(store.root, "c"), 1)
    bad = {path.stat().st_ino for path in (Path(store.root, "a"), kept)}
    real_pread = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)

    version = os.path.relpath(kept, store.root)
    assert [("broken", "a"), ("damaged", "c"), ("broken", version)] == inspect(store, deep=True)


def test_who_has_read_enough_of_a_manifest_may_go(server: Server, bucket: str, s3: Client) -> None:
    for number in range(50):
        s3.put("k" * 200 + str(number), b"x")
    for number in range(s3mini.CACHED_ENTRIES // 10):
        (Path(server.data, bucket) / ("n" * 200 + str(number))).touch()  # more than a pipe holds
    command = f"manifest {bucket} --config {server.config} --data {server.data} | head -c 1"
    done = subprocess.run(f"{sys.executable} {PROGRAM} {command}", shell=True,
                          capture_output=True, check=False)

    assert (b"", 1) == (done.stderr, len(done.stdout))


def test_what_is_not_the_files_fault_is_no_finding_of_it(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that may not be taken, or a full disk: to restore from a backup is no advice."""
    put(store, "k", b"content", "name")
    Path(store.root, "k").write_bytes(b"by hand")
    real = s3mini.Locks.of_key
    for error in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        def lock(self: s3mini.Store, key: str, error: int = error) -> Any:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(s3mini.Locks, "of_key", lock)
        if error == errno.ENOSPC:
            with pytest.raises(OSError, match="No space"):
                inspect(store)
        else:
            assert [("changed", "k")] == inspect(store)
    monkeypatch.setattr(s3mini.Locks, "of_key", real)


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_what_cannot_be_mended_is_left_and_the_rest_is_looked_at(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(s3mini, "ADOPT_BYTES", 10)
    for key in ("changed", "cut", "orphan", "unhashed"):
        put(store, key, b"content", "name")
    Path(store.root, "changed").write_bytes(b"by hand")
    sidecar(Path(store.root, "cut")).write_bytes(b"{")
    Path(store.root, "orphan").unlink()
    Path(store.root, "unhashed").write_bytes(b"more than ten")
    store.head("unhashed")
    make_temp(Client(""), Path(store.root))

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    for name in ("create", "link", "mkdir", "rename", "unlink"):
        monkeypatch.setattr(s3mini.Disk, name, refuse)
    findings = list(s3mini.Inspector(store, False, True, lambda *_: None).run())

    kinds = ["changed", "unreadable-sidecar", "unhashed", "temp", "orphan"]
    assert [(kind, False) for kind in kinds] == [(f.kind, f.mended) for f in findings]
    assert all("repair failed" in finding.detail for finding in findings)
    assert os.strerror(error) in findings[-1].detail


def test_repair_needs_no_folder_that_a_restore_drops(store: s3mini.Store) -> None:
    put(store, "k", b"content", "name")
    Path(store.root, "k").write_bytes(b"by hand")
    for name in ("tmp", "uploads", "locks"):
        shutil.rmtree(Path(store.room, name))
    finding, = s3mini.Inspector(store, False, True, lambda *_: None).run()

    assert ("changed", True, []) == (finding.kind, finding.mended, inspect(store))


def test_a_room_without_its_locks_hides_no_finding(store: s3mini.Store) -> None:
    """A restore drops empty folders."""
    for key in "abc":
        put(store, key, b"content", "name")
    Path(store.root, "b").write_bytes(b"by hand")
    sidecar(Path(store.root, "c")).write_bytes(b"{")
    shutil.rmtree(Path(store.room, "locks"))

    assert [("changed", "b"), ("unreadable-sidecar", "c")] == inspect(
        s3mini.Store(store.root, store.disk))


def test_a_large_file_by_hand_that_tar_restored_is_not_damaged(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows its bytes."""
    monkeypatch.setattr(s3mini, "ADOPT_BYTES", 10)
    Path(store.root, "k").write_bytes(b"more than ten")
    etag = store.head("k").etag
    cut_time(Path(store.root, "k"))

    assert [] == inspect(store)
    assert etag == s3mini.Store(store.root, store.disk).head("k").etag


@pytest.mark.parametrize("command", ["check", "manifest", "undelete"])
def test_what_only_the_server_needs_stops_no_command(tmp_path: Path, command: str) -> None:
    """In the hour of need: a secret that systemd sets, another bucket's disk."""
    data, config = tmp_path / "data", tmp_path / "buckets.ini"
    config.write_text("[media]\naccess_key = k\nsecret_key = env:S3MINI_NOT_SET\nkeep = 7d\n"
                      "[other]\naccess_key = k\nsecret_key = file:nowhere\npath = away\n")
    s3mini.Store(str(data / "media"), s3mini.Disk(False)).create()
    ran = run(SimpleNamespace(config=config, data=data), command, "media")
    lost = run(SimpleNamespace(config=config, data=data), "check")

    assert (0, "") == (ran.code, ran.err)
    assert (2, True) == (lost.code, f"{tmp_path}/away/.s3mini/bucket.json is not" in lost.err)
    with pytest.raises(s3mini.ConfigError, match="S3MINI_NOT_SET"):
        s3mini.load_config(str(config))


@pytest.mark.parametrize("command", ["check", "manifest", "undelete"])
def test_it_says_where_it_looked_for_a_bucket(tmp_path: Path, command: str) -> None:
    config = tmp_path / "buckets.ini"
    config.write_text("[test-*]\naccess_key = k\nsecret_key = s\n")
    ran = run(SimpleNamespace(config=config, data=tmp_path), command, "test-1")

    assert (2, True) == (ran.code, f"'test-1' in buckets.ini or {tmp_path};" in ran.err)


def test_it_says_where_it_found_no_bucket(tmp_path: Path) -> None:
    config = tmp_path / "buckets.ini"
    config.write_text("[*]\naccess_key = k\nsecret_key = s\n")
    ran = run(SimpleNamespace(config=config, data=tmp_path), "check")

    assert (0, "0 files, 0 findings\n") == (ran.code, ran.out)
    assert f"no bucket is in {tmp_path}" in ran.err


@pytest.mark.parametrize("command", ["check", "manifest", "undelete"])
def test_where_file_names_are_not_utf8_no_command_runs(
    server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """What undelete brought back had another name on the disk, and no key."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso-8859-1")
    ran = run(server, command, bucket)

    assert (2, "") == (ran.code, ran.out)
    assert "PYTHONUTF8=1" in ran.err


def test_a_bucket_that_is_not_there_hides_no_other(server: Server, bucket: str, s3: Client) -> None:
    make_changed(s3, Path(server.data, bucket))
    text = server.config.read_text()
    server.config.write_text(text + "\n[zz-not-there]\naccess_key = zz\nsecret_key = zz-secret\n")
    try:
        done = run(server, "check", "--json")
        alone = run(server, "check", "zz-not-there")
    finally:
        server.config.write_text(text)

    assert (2, True) == (done.code, "zz-not-there" in done.err)
    assert "left" in json.loads(done.out.splitlines()[-1])
    assert (2, "0 files, 0 findings\n") == (alone.code, alone.out)


def test_the_lost_and_found_of_a_disk_is_no_finding(
    store: s3mini.Store, unreadable: Callable[[Path], None]
) -> None:
    Path(store.root, "lost+found").mkdir()
    unreadable(Path(store.root, "lost+found"))
    store.quota.limit = 1
    store.count()

    assert [] == inspect(store)


def test_folders_that_are_pruned_meanwhile_do_not_stop_it(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a/b", "c/d", "e"):
        put(store, key, b"content", "name")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/c"):
            store.delete("c/d", s3mini.no_check)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    assert 2 * len(b"content") == store.held()
    assert [] == inspect(store)


def test_the_sidecar_of_an_object_on_its_way_is_no_orphan(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was one, and a PUT has put its own in its place: its data comes next."""
    put(store, "k", b"content", "name")
    Path(store.root, "k").unlink()
    orphan = sidecar(Path(store.root, "k"))

    def replace(_: float) -> None:
        shutil.copy(orphan, store.files.temp + "/new")
        os.replace(store.files.temp + "/new", orphan)

    monkeypatch.setattr(s3mini.time, "sleep", replace)
    assert [] == inspect(store)
    monkeypatch.setattr(s3mini.time, "sleep", lambda _: None)
    assert [("orphan", orphan.name)] == inspect(store)


def test_a_version_that_is_kept_is_checked_too(store: s3mini.Store) -> None:
    store.versions.keep = 3600
    for key in ("a", "b"):
        put(store, key, b"content of " + key.encode(), "name")
        store.delete(key, s3mini.no_check)
    versions = {version.key: Path(version.path) for version in store.versions.since()}
    flip(versions["a"], 3)

    name = versions["a"].relative_to(store.root).as_posix()
    assert [("damaged", name)] == inspect(store, deep=True)


@pytest.fixture
def kept(store: s3mini.Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of three versions, below the bucket's folder."""
    monkeypatch.setattr(s3mini, "SECOND_LOOK_SECONDS", 0)
    store.versions.keep = 3600
    for key in "abc":
        put(store, key, b"content", "name")
        store.delete(key, s3mini.no_check)
    return [os.path.relpath(version.path, store.root) for version in store.versions.since()]


def test_a_version_that_undelete_cannot_bring_back_is_found(
    store: s3mini.Store, kept: list[str]
) -> None:
    first, second, third = kept
    assert [] == inspect(store)
    Path(store.root, first + ".json").write_bytes(b"{")
    Path(store.root, second + ".json").unlink()
    Path(store.root, third).unlink()
    known = Path(store.root, third + ".json").read_bytes()

    by_name = [("note", second + ".json"), ("orphan", third + ".json")]
    assert by_name == inspect(store)
    assert [("note", first + ".json"), *by_name] == inspect(store, deep=True)
    findings = list(s3mini.Inspector(store, False, True, lambda *_: None).run())
    assert [False, True] == [finding.mended for finding in findings]
    aside = Path(store.root, findings[1].detail.removeprefix("now "))
    assert (known, os.path.basename(third) + ".json") == (aside.read_bytes(), aside.name)


def test_what_tells_of_nothing_is_put_aside_where_no_key_can_be_made_out(
    store: s3mini.Store, kept: list[str]
) -> None:
    Path(store.root, kept[0]).unlink()
    Path(store.root, kept[0] + ".json").write_bytes(b"{")
    Path(store.root, ".%zz.s3mini.json").write_bytes(b"{")
    findings = list(s3mini.Inspector(store, False, True, lambda *_: None).run())

    assert [("orphan", True)] * 2 == [(finding.kind, finding.mended) for finding in findings]
    assert [] == inspect(store)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none")
@pytest.mark.parametrize("make", ["mkfifo", "mkdir"])
def test_what_is_no_file_in_place_of_a_note_ends_nothing(
    store: s3mini.Store, kept: list[str], make: str
) -> None:
    upload = Path(store.room, "uploads", "0" * 32)
    upload.mkdir()
    for path in (Path(store.root, kept[0] + ".json"), Path(store.room, "bucket.json")):
        path.unlink()
        getattr(os, make)(path)
    getattr(os, make)(upload / "upload.json")
    Path(store.root, "50%zz").touch()

    names = [".s3mini/bucket.json", f".s3mini/uploads/{upload.name}/upload.json",
             kept[0] + ".json"]
    found = {*[("note", name) for name in names], ("no-key", "50%zz")}
    assert found == set(inspect(store, deep=True))


@pytest.mark.parametrize("what", ["kept", "dropped"])
def test_a_version_that_is_just_being_kept_or_dropped_is_no_finding(
    store: s3mini.Store, kept: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = Path(store.root, kept[0])
    aside = path.rename(store.root + "-aside")
    end = {"kept": lambda: aside.rename(path), "dropped": Path(f"{path}.json").unlink}[what]
    monkeypatch.setattr("time.sleep", lambda _: end())

    assert [] == inspect(store)


def test_a_damaged_bucket_json_is_found(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3mini, "SECOND_LOOK_SECONDS", 0)
    Path(store.room, "bucket.json").write_bytes(b'{"v": 1, "cre')

    assert [("note", ".s3mini/bucket.json")] == inspect(store)


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """deny(path, os.W_OK): this user may not do that with it. Root always may."""
    denied: dict[int, int] = {}

    def access(path: str, mode: int, **_: object) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return not mode & denied.get(os.stat(path).st_ino, 0)
        return False

    monkeypatch.setattr(os, "access", access)
    return lambda path, mode: denied.update({path.stat().st_ino: mode})


NEEDED = [
    (".", os.W_OK), ("folder", os.W_OK), (".s3mini", os.W_OK), (".s3mini/tmp", os.W_OK),
    (".s3mini/locks/make", os.W_OK), (".s3mini/versions", os.R_OK),
    (".s3mini/bucket.json", os.R_OK),
]  # fmt: skip


def inspect_read(store: s3mini.Store) -> list[tuple[str, str]]:
    """`check --deep` of a bucket that no key may write to."""
    findings = s3mini.Inspector(store, True, False, lambda *_: None, is_written=False).run()
    return [(finding.kind, finding.name) for finding in findings]


@pytest.mark.parametrize(("name", "mode"), NEEDED)
def test_what_the_server_needs_and_may_not_use_is_found(
    store: s3mini.Store, kept: list[str], deny: Callable[[Path, int], None],
    monkeypatch: pytest.MonkeyPatch, name: str, mode: int,
) -> None:
    """After a restore as root every PUT is a 500. Where nobody writes that is no matter."""
    put(store, "folder/a", b"content", "name")
    deny(Path(store.root, name), mode)
    told = [("locked-out", name)]
    hinders_readers = told if mode != os.W_OK else []

    assert (told, hinders_readers) == (inspect(store, deep=True), inspect_read(store))
    monkeypatch.setattr(s3mini, "is_read_only", lambda _: True)
    assert hinders_readers == inspect(store, deep=True)


def test_only_a_bucket_that_a_key_may_write_to_is_written() -> None:
    config = s3mini.IniReader(
        "[read]\naccess_key = a\nsecret_key = s\nmode = read\n[open]\npublic = read\n"
        "[two]\naccess_key = a\nsecret_key = s\nmode = read\n[two:ci]\naccess_key = b\n"
        "secret_key = s\nmode = append\n[test-*]\naccess_key = a\nsecret_key = s\n", "", "/"
    ).read()

    written = [name for name in ("read", "open", "two", "test-1") if config.is_written(name)]
    assert ["two", "test-1"] == written


@pytest.mark.parametrize("room", [0o700, 0o750, 0o755])
@pytest.mark.parametrize("root", [0o750, 0o755])
def test_a_bucket_that_was_restored_as_root_is_one_finding(
    store: s3mini.Store, kept: list[str], deny: Callable[[Path, int], None], root: int, room: int
) -> None:
    put(store, "folder/a", b"content", "name")
    for path in Path(store.root).rglob("*"):
        deny(path, os.W_OK)
    deny(Path(store.root), 7 & ~root)
    deny(Path(store.room), 7 & ~room)
    for path in Path(store.room).iterdir():
        deny(path, 7 if room & 1 == 0 else os.W_OK)

    assert [("locked-out", ".")] == inspect(store)


def test_temp_files_that_may_not_be_listed_end_nothing(
    store: s3mini.Store, kept: list[str], deny: Callable[[Path, int], None],
    unreadable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = s3mini.list_folder

    def list_folder(path: str) -> list[str]:
        if path == store.files.temp:
            raise PermissionError(errno.EACCES, "not for you", path)
        return real(path)

    monkeypatch.setattr(s3mini, "list_folder", list_folder)
    deny(Path(store.files.temp), 7)
    Path(store.root, ".a.s3mini.json").write_bytes(b"{")

    assert [("locked-out", ".s3mini/tmp"), ("orphan", ".a.s3mini.json")] == inspect(store)


def test_below_what_the_server_may_not_use_not_each_file_is_named(
    store: s3mini.Store, kept: list[str], deny: Callable[[Path, int], None]
) -> None:
    """All of it is root's, after a restore as root."""
    put(store, "folder/a/b", b"content", "name")
    for name in ("folder", "folder/a", ".s3mini/versions", os.path.dirname(kept[0]), *kept):
        deny(Path(store.root, name), os.R_OK | os.W_OK | os.X_OK)

    names = [".s3mini/versions", "folder"]
    assert [("locked-out", name) for name in names] == inspect(store)


def test_a_disk_that_is_mounted_within_a_bucket_is_found_once(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a", "disk/b", "disk/folder/c", "other/d"):
        put(store, key, b"content", "name")
    Path(store.root, "disk", "folder", "50%zz").touch()
    real = s3mini.Folder.stat

    def stat(folder: s3mini.Folder, name: str) -> Any:
        info = real(folder, name)
        if name == "." and folder.path.startswith(f"{store.root}/disk"):
            return os.stat_result((*info[:2], info.st_dev + 1, *info[3:10]))
        return info

    monkeypatch.setattr(s3mini.Folder, "stat", stat)

    assert [("mounted", "disk"), ("no-key", "disk/folder/50%zz")] == inspect(store)


def test_what_is_mounted_within_a_bucket_is_found(
    store: s3mini.Store, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the same disk, or in its room: over none of them a rename reaches."""
    root = os.path.realpath(store.root)
    Path(root, "a b").mkdir()
    places = [root, f"{root}/a\\040b", f"{root}/.s3mini/versions", f"{root}-other", "/"]
    lines = "".join(f"36 35 98:0 /mnt1 {place} rw - ext4 /dev/root rw\n" for place in places)
    real = open

    def fake(path: Any, *mode: str) -> Any:
        is_asked = path == "/proc/self/mountinfo"
        return io.BytesIO(lines.encode()) if is_asked else real(path, *mode)

    monkeypatch.setattr(s3mini, "open", fake, raising=False)

    assert [("mounted", ".s3mini/versions"), ("mounted", "a b")] == inspect(store)
    assert [] == inspect_read(store)


def test_a_bucket_in_a_folder_that_the_server_may_not_enter_is_found(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "not for you")

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for name in ("scandir", "stat", "statvfs"):
        monkeypatch.setattr(os, name, refuse)
    found = inspect(store)
    monkeypatch.undo()

    assert [("locked-out", ".")] == found


def test_files_of_another_user_are_one_finding(
    store: s3mini.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only who owns a file sets its times, and so its tags. A site in place has a million."""
    for key in ("folder/a", "folder/b"):
        put(store, key, b"content", "name")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1, raising=False)
    finding, = s3mini.Inspector(store, False, False, lambda *_: None).run()

    assert ("foreign", "folder/a", "one of 2") == finding[:3]
    assert [] == inspect_read(store)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    assert [] == inspect(store)


@pytest.mark.parametrize("command", ["check", "manifest"])
def test_a_bucket_whose_disk_fails_or_that_is_deleted_meanwhile_hides_no_other(
    server: Server, bucket: str, s3: Client, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    make_changed(s3, Path(server.data, bucket))
    gone = s3mini.Store(str(Path(server.data, "test-00-gone")), s3mini.Disk(False))
    bad = s3mini.Store(str(Path(server.data, "test-00-bad")), s3mini.Disk(False))
    late = s3mini.Store(str(Path(server.data, "test-00-late-gone")), s3mini.Disk(False))
    for made in (gone, bad, late):
        made.create(owner=s3.access_key)
    real_names, real_read = s3mini.Buckets.names, s3mini.About.read
    real_scan = s3mini.Folder.scan

    def fail_at(path: str, root: str) -> None:
        if path == root:
            raise OSError(errno.ENOTCONN, "not connected", path)

    def names(buckets: s3mini.Buckets) -> list[str]:
        found = real_names(buckets)
        shutil.rmtree(gone.root)
        return found

    def read(about: s3mini.About) -> Any:
        fail_at(about.files.root, str(Path(server.data, "media")))
        return real_read(about)

    def scan(folder: s3mini.Folder) -> Any:
        if folder.path == late.root:
            shutil.rmtree(late.root)
            raise s3mini.S3Error("NoSuchBucket")
        fail_at(folder.path, bad.root)
        return real_scan(folder)

    monkeypatch.setattr(s3mini.Buckets, "names", names)
    monkeypatch.setattr(s3mini.About, "read", read)
    monkeypatch.setattr(s3mini.Folder, "scan", scan)
    done = run(server, command, *(["--json"] if command == "check" else []))
    shutil.rmtree(bad.root)

    assert (2, 2) == (done.code, done.err.count("\n"))
    for name in ("media", "test-00-bad"):
        assert f"s3mini: the bucket '{name}' cannot be looked at: [Errno " in done.err
    assert bucket in done.out
    assert command == "manifest" or "left" in json.loads(done.out.splitlines()[-1])


def test_a_bucket_that_may_not_be_looked_into_hides_no_other(
    server: Server, bucket: str, s3: Client, folder: Path, monkeypatch: pytest.MonkeyPatch,
    deny: Callable[[Path, int], None],
) -> None:
    make_changed(s3, folder)
    real = s3mini.About.read

    def read(about: s3mini.About) -> Any:
        if about.files.root.endswith("/media"):
            raise PermissionError(errno.EACCES, "not for you", about.path)
        return real(about)

    monkeypatch.setattr(s3mini.About, "read", read)
    deny(Path(server.data, "media", ".s3mini", "bucket.json"), os.R_OK)
    done = run(server, "check", "--json")
    listed = run(server, "manifest")

    lines = [json.loads(line) for line in done.out.splitlines()[:-1]]
    assert {("media", "locked-out"), (bucket, "changed")} <= {
        (line["bucket"], line["kind"]) for line in lines}
    assert (2, 1) == (listed.code, listed.err.count("\n"))
    assert f"{bucket}/a" in listed.out


def test_its_exit_codes_are_for_scripts(
    server: Server, bucket: str, s3: Client, folder: Path
) -> None:
    command = [sys.executable, str(PROGRAM), "check", bucket, "--config", str(server.config)]
    command += ["--data", str(server.data)]
    s3.put("a", b"content")
    assert 0 == subprocess.run(command, check=False, capture_output=True).returncode
    make_no_key(s3, folder)
    assert 1 == subprocess.run(command, check=False, capture_output=True).returncode
    assert 2 == run(server, "check", "nowhere").code
    assert 2 == run(server, "check", "--wrong").code


def test_it_says_what_it_found_and_what_it_means(
    server: Server, bucket: str, s3: Client, folder: Path
) -> None:
    make_changed(s3, folder)
    make_temp(s3, folder)
    plain = run(server, "check", bucket).out.splitlines()
    mended = run(server, "check", bucket, "--repair").out.splitlines()

    assert "1 files, 2 findings" == plain[-1]
    assert any(re.match(rf"changed: {bucket}/a: .*changed by hand", line) for line in plain)
    assert any(re.match(rf"temp: {bucket}/\.s3mini/tmp/0+: .*mended", line) for line in mended)


def test_names_do_not_reach_the_terminal_raw(server: Server, bucket: str, folder: Path) -> None:
    (folder / "50%zz\x1b[31m\n").write_bytes(b"by hand")
    done = run(server, "check", bucket)

    assert "\x1b" not in done.out
    assert 2 == len(done.out.splitlines())


def test_a_terminal_is_shown_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meter = s3mini.Meter(4 * s3mini.MIB)
    meter.add(3, s3mini.MIB)
    assert "" == capsys.readouterr().err

    meter.on_terminal, meter._shown = True, -1000.0
    monkeypatch.setattr(s3mini, "monotonic", lambda: meter.began + 30)
    meter.add(1, s3mini.MIB)
    meter.add(1, s3mini.MIB)  # not again within half a second
    meter.close()
    line = "[##########          ]  50%  4 files  0 MiB/s  0:30 left"
    assert f"\r{line}\033[K\r\033[K" == capsys.readouterr().err


def test_all_buckets_are_checked_when_none_is_named(
    server: Server, bucket: str, s3: Client, folder: Path
) -> None:
    make_changed(s3, folder)
    done = run(server, "check", "--json")

    assert 1 == done.code
    lines = [json.loads(line) for line in done.out.splitlines()[:-1]]
    assert [(bucket, "changed", "a")] == [
        (line["bucket"], line["kind"], line["name"]) for line in lines if line["bucket"] == bucket
    ]


def test_writers_at_work_cause_no_false_findings(check: Checker, s3: Client, folder: Path) -> None:
    done = threading.Event()
    failures: list[str] = []

    def write(name: str) -> None:
        number = 0
        while not done.is_set():
            key = f"{name}/{number % 3}"
            reply = s3.put(key, f"{name}{number}".encode(), {"x-amz-meta-n": f"{name}{number}"})
            got = s3.get(key)
            if reply.status != 200 or got.headers.get("x-amz-meta-n") != f"{name}{number}":
                failures.append(f"{key}: {reply.status} {reply.error} {got.headers}")
            if number % 3 == 1:
                s3.put(key, b"", {"x-amz-rename-source": f"/{s3.bucket}/{key}"}, renameObject="")
                s3.put(key, b"<Tagging><TagSet/></Tagging>", tagging="")
            if number % 4 == 0:
                s3.delete(key)
            number += 1

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    lines: list[dict[str, Any]] = []
    for _ in range(4):
        lines += check()[1] + check("--deep", "--repair")[1]
    done.set()
    for thread in threads:
        thread.join()

    assert [] == found(lines)
    assert [] == failures
    assert not (folder / ".s3mini" / "damaged").exists()


@pytest.mark.parametrize("flags", [(), ("--repair",), ("--deep",)])
def test_what_was_restored_whole_is_no_finding(
    check: Checker, s3: Client, folder: Path, flags: tuple[str, ...]
) -> None:
    multipart(s3, "m", b"x" * (5 * MIB), b"y")
    s3.put("a", b"1")
    s3.put("a", b"2")
    etag = s3.head("m").etag
    for name in "am":
        cut_time(folder / name)

    assert [] == check(*flags)[1]
    assert (etag, b"2") == (s3.head("m").etag, s3.get("a").body)


def test_what_rotted_on_its_way_back_keeps_what_is_known_of_it(
    check: Checker, s3: Client, folder: Path
) -> None:
    """Else the MD5 that tells would be gone, with the first GET."""
    make_damaged_and_restored(s3, folder)
    sidecar_before = json.loads(sidecar(folder / "r").read_bytes())["current"]
    first = check("--deep", "--repair")[1]
    body = s3.get("r").body
    second = check("--deep", "--repair")[1]

    assert [("damaged", "r", False)] == found(first) == found(second)
    assert hashlib.md5(body).hexdigest() != sidecar_before["md5"] == json.loads(
        sidecar(folder / "r").read_bytes())["current"]["md5"]


def test_a_manifest_without_a_folder_says_so(
    server: Server, bucket: str, s3: Client, folder: Path, unreadable: Callable[[Path], None]
) -> None:
    s3.put("a", b"x")
    s3.put("shut/b", b"x")
    (folder / "lost+found").mkdir()
    for name in ("shut", "lost+found"):
        unreadable(folder / name)
    done = run(server, "manifest", bucket)

    assert (1, 1, 1) == (done.code, done.out.count("\n"), done.err.count("\n"))
    assert f"{folder}/shut" in done.err


# -- manifest --------------------------------------------------------------------------------------

ODD = ("plain", "with space", "ä/ö", "back\\slash", "new\nline", "50%", "-dash", "*star", "q?",
       "a//b", "trailing ", "x" * 700)  # fmt: skip


@pytest.mark.parametrize(("program", "flags"), [("md5sum", ()), ("sha256sum", ("--sha256",))])
def test_a_manifest_is_what_coreutils_check(
    server: Server,
    bucket: str,
    s3: Client,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    flags: tuple[str, ...],
) -> None:
    if not shutil.which(program):
        pytest.skip(f"there is no {program} here")
    for key in ODD:
        s3.put(key, b"content of " + key.encode())
    multipart(s3, "m", b"x" * (5 * MIB), b"y")
    with (folder / "large").open("wb") as file:
        file.truncate(s3mini.ADOPT_BYTES + 1)  # its MD5 is not known
    manifest = run(server, "manifest", bucket, *flags)
    assert (0, "") == (manifest.code, manifest.err)
    monkeypatch.chdir(server.data)  # or a copy of it; the command runs anywhere

    def coreutils() -> subprocess.CompletedProcess[bytes]:
        command = [program, "--check", "--strict"]
        sent = manifest.out.encode()
        return subprocess.run(command, input=sent, capture_output=True, check=False)

    good = coreutils()
    assert 0 == good.returncode, good.stderr
    assert len(ODD) + 2 == len(good.stdout.splitlines())
    flip(folder / "plain", 0)
    assert 1 == coreutils().returncode


def test_a_manifest_has_the_names_of_the_disk_whatever_a_terminal_takes(
    server: Server, bucket: str, s3: Client
) -> None:
    s3.put("ö/日", b"x")
    command = [sys.executable, str(PROGRAM), "manifest", bucket, "--config", str(server.config),
               "--data", str(server.data)]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "latin-1"},
                          capture_output=True, check=False)

    assert (0, b"") == (done.returncode, done.stderr)
    assert f"{hashlib.md5(b'x').hexdigest()}  {bucket}/ö/日\n" == done.stdout.decode()


def test_a_manifest_has_no_names_outside_of_the_data_folder(tmp_path: Path) -> None:
    """In a backup that lacks such a bucket they would be those of the original."""
    config, data, away = tmp_path / "buckets.ini", tmp_path / "data", tmp_path / "mnt" / "disk"
    folders = {"aaa": data / "aaa", "away": away, "below": data / "sites" / "one"}
    keys = "access_key = k\nsecret_key = s\n"
    config.write_text(f"[aaa]\n{keys}[away]\n{keys}path = {away}\n"
                      f"[below]\n{keys}path = {folders['below']}\n")
    for path in folders.values():
        path.mkdir(parents=True)
        store = s3mini.Store(str(path), s3mini.Disk(False))
        store.create()
        put(store, "a/b", b"content", "name")
    done = run(SimpleNamespace(config=config, data=data), "manifest")

    names = [line.split("  ")[1] for line in done.out.splitlines()]
    assert ["aaa/a/b", "away/a/b", "sites/one/a/b"] == names


@pytest.mark.parametrize("error", [
    PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file or directory")])
def test_a_manifest_goes_on_behind_a_file_that_may_not_be_read_or_went_meanwhile(
    server: Server, bucket: str, s3: Client, folder: Path, monkeypatch: pytest.MonkeyPatch,
    error: OSError,
) -> None:
    for key in ("a", "b"):
        s3.put(key, b"content")
    real = s3mini.hash_path

    def hash_path(path: str, algorithm: Any) -> str:
        if path.endswith("/a"):
            raise type(error)(*error.args, path)
        return real(path, algorithm)

    monkeypatch.setattr(s3mini, "hash_path", hash_path)
    manifest = run(server, "manifest", bucket, "--sha256")
    is_there = isinstance(error, PermissionError)

    assert is_there == manifest.code
    assert [hashlib.sha256(b"content").hexdigest()] == [
        line.split()[0] for line in manifest.out.splitlines()
    ]
    said = f"s3mini: [Errno 13] Permission denied: '{folder}/a'\n" if is_there else ""
    assert said == manifest.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write what is another's")
@pytest.mark.parametrize("command", ["check", "manifest", "undelete"])
def test_root_writes_nothing_where_the_server_is_another(
    server: Server, bucket: str, s3: Client, folder: Path, command: str
) -> None:
    (folder / "by hand").write_bytes(b"x")
    os.chown(folder / ".s3mini", 65534, -1)
    try:
        ran = run(server, command, bucket)
    finally:
        os.chown(folder / ".s3mini", 0, -1)

    assert 2 == ran.code
    assert "by hand" not in ran.out
    assert "with `sudo -u nobody` before it" in ran.err
    assert not (folder / ".by hand.s3mini.json").exists()
