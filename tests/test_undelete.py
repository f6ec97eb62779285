"""keep = 7d: what was replaced or deleted comes back with `s3mini.py undelete`, as it was."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import itertools
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Serve, Server, flip
from powercut import put
from signing_client import Client, Reply

import s3mini

INI = """\
[SERVER]
durability = none
log = none
workers = 2

[keep-*]
access_key = keep-key
secret_key = keep-secret-0123456789abcdef
keep = 7d

[none-*]
access_key = none-key
secret_key = none-secret-0123456789abcdef
"""
DAY = 24 * 3600
RICH = {
    "content-type": "text/x-old",
    "cache-control": "max-age=7",
    "content-disposition": "attachment",
    "x-amz-meta-name": "old",
    "x-amz-tagging": "a=1&b=2",
    "x-amz-checksum-crc32": "",  # filled in by `store_rich`
}
SHOWN = ("content-type", "cache-control", "content-disposition", "x-amz-meta-name", "etag",
         "last-modified", "x-amz-tagging-count", "x-amz-checksum-crc32")  # fmt: skip


@dataclass
class Kept:
    """A bucket that keeps what goes, its client and its folder."""

    server: Server
    bucket: str
    s3: Client

    @property
    def room(self) -> Path:
        return self.server.data / self.bucket / ".s3mini" / "versions"

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """`undelete` of the bucket, in this process; its exit code, and what it says."""
        command = ["undelete", self.bucket, *arguments]
        command += ["--config", str(self.server.config), "--data", str(self.server.data)]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = s3mini.main(command)
        return code, out.getvalue(), err.getvalue()

    def undelete(self, *arguments: str) -> list[str]:
        """What it says, line by line."""
        code, out, err = self.run(*arguments)
        assert (0, "") == (code, err)
        return out.splitlines()

    def versions(self) -> list[Path]:
        found = self.room.rglob("*")
        return sorted(path for path in found if path.is_file() and path.suffix != ".json")

    def age(self, seconds: int, kept: Callable[[str], bool] = lambda _: True) -> None:
        """Make versions that many seconds older: their names begin with the time they went."""
        for path in self.versions():
            beside = path.with_name(path.name + ".json")
            if not kept(json.loads(beside.read_text())["key"]):
                continue
            went, _, number = path.name.partition("-")
            then = int(went) - seconds * 10**9
            day = self.room / time.strftime("%Y-%m-%d", time.gmtime(then // 10**9))
            day.mkdir(exist_ok=True)
            path.rename(day / f"{then:020}-{number}")
            beside.rename(day / f"{then:020}-{number}.json")


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("keeper"), INI)
    yield server
    server.close()


NUMBERS = itertools.count(1)


@pytest.fixture
def kept(keeper: Server) -> Kept:
    return bucket_of(keeper, "keep")


def bucket_of(server: Server, kind: str) -> Kept:
    name = f"{kind}-{next(NUMBERS):04}"
    s3 = server.client(f"{kind}-key", bucket=name)
    assert s3.put().status == 200
    return Kept(server, name, s3)


@pytest.fixture
def s3(kept: Kept) -> Client:
    return kept.s3


def store_rich(s3: Client, key: str, data: bytes) -> dict[str, str]:
    """An object with everything that an object may have; the headers it is shown with."""
    crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    assert s3.put(key, data, {**RICH, "x-amz-checksum-crc32": crc}).status == 200
    return shown(s3, key)


def shown(s3: Client, key: str) -> dict[str, str]:
    headers = s3.head(key, {"x-amz-checksum-mode": "ENABLED"}).headers
    return {name: headers.get(name, "") for name in SHOWN}


def delete_all(s3: Client, *keys: str) -> Reply:
    rows = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    document = f"<Delete>{rows}</Delete>".encode()
    digest = base64.b64encode(hashlib.md5(document).digest()).decode()
    return s3.post("", document, {"content-md5": digest}, query="delete")


# -- what takes an object away, and how it comes back ----------------------------------------------


def overwrite(s3: Client, key: str) -> Reply:
    return s3.put(key, b"new", {"content-type": "text/x-new"})


def overwrite_in_parts(s3: Client, key: str) -> Reply:
    upload = s3.post(key, uploads="").element("UploadId")
    etag = s3.put(key, b"new", partNumber=1, uploadId=upload).etag
    part = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>"
    return s3.post(key, body.encode(), uploadId=upload)


def overwrite_by_copy(s3: Client, key: str) -> Reply:
    s3.put("source", b"new")
    return s3.put(key, b"", {"x-amz-copy-source": f"/{s3.bucket}/source"})


def overwrite_by_form(s3: Client, key: str) -> Reply:
    conditions = [{"bucket": s3.bucket}, {"key": key}]
    policy = {"expiration": "2099-01-01T00:00:00Z", "conditions": conditions}
    text = base64.b64encode(json.dumps(policy).encode()).decode()
    digest = hmac.new(s3.secret_key.encode(), text.encode(), "sha1").digest()
    fields = {"key": key, "AWSAccessKeyId": s3.access_key, "policy": text,
              "signature": base64.b64encode(digest).decode()}  # fmt: skip
    parts = [f'--x\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'
             for n, v in fields.items()]  # fmt: skip
    body = "".join(parts) + '--x\r\nContent-Disposition: form-data; name="file"; filename="f"'
    body += "\r\n\r\nnew\r\n--x--\r\n"
    form = {"content-type": "multipart/form-data; boundary=x"}
    return s3.anonymous().send("POST", "/" + s3.bucket, form, body.encode())


def rename_over(s3: Client, key: str) -> Reply:
    s3.put("source", b"new")
    return s3.put(key, b"", {"x-amz-rename-source": f"/{s3.bucket}/source"}, renameObject="")


def append(s3: Client, key: str) -> Reply:
    size = s3.head(key).headers["content-length"]
    return s3.put(key, b"new", {"x-amz-write-offset-bytes": size})


ENDS = {
    "overwritten": overwrite,
    "overwritten in parts": overwrite_in_parts,
    "overwritten by a copy": overwrite_by_copy,
    "overwritten by a form": overwrite_by_form,
    "renamed over": rename_over,
    "appended to": append,
    "deleted": lambda s3, key: s3.delete(key),
    "deleted with others": lambda s3, key: delete_all(s3, key, "nothing"),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_went_comes_back_with_its_metadata(kept: Kept, s3: Client, end: str) -> None:
    before = store_rich(s3, "folder/a", b"old content")
    assert ENDS[end](s3, "folder/a").status in (200, 204)
    assert b"old content" != s3.get("folder/a").body

    lines = kept.undelete("--since", "1h")
    assert b"old content" == s3.get("folder/a").body
    assert before == shown(s3, "folder/a")
    assert ["a", "1", "b", "2"] == [
        text
        for pair in zip(
            s3.get("folder/a", tagging="").elements("Key"),
            s3.get("folder/a", tagging="").elements("Value"),
        )
        for text in pair
    ]
    assert "1 brought back" == lines[-1]
    assert any(line.startswith(f"{kept.bucket}/folder/a ") for line in lines)


def test_a_multipart_object_comes_back_with_its_parts(kept: Kept, s3: Client) -> None:
    data = b"x" * (5 * 1024**2)
    upload = s3.post("m", uploads="").element("UploadId")
    etags = [s3.put("m", d, partNumber=n, uploadId=upload).etag for n, d in ((1, data), (2, b"y"))]
    rows = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>" for n, e in enumerate(etags, 1)
    )
    body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
    assert s3.post("m", body, uploadId=upload).status == 200
    etag = s3.head("m").etag
    s3.delete("m")
    kept.undelete()

    assert etag.endswith("-2")
    assert etag == s3.head("m").etag
    assert data + b"y" == s3.get("m").body
    assert b"y" == s3.get("m", partNumber=2).body


@pytest.mark.parametrize("key", ["ä ö/ü", "a//b/", "a&b\nc", ".s3mini/x", "50%", "x" * 700])
def test_any_key_comes_back(kept: Kept, s3: Client, key: str) -> None:
    s3.put(key, b"old")
    s3.delete(key)
    assert s3.get(key).status == 404
    kept.undelete("--since", "1h")

    assert b"old" == s3.get(key).body


def test_a_key_whose_name_is_a_folder_by_now_comes_back(kept: Kept, s3: Client) -> None:
    s3.put("a", b"old")
    s3.delete("a")
    s3.put("a/b", b"below")
    kept.undelete()

    assert (b"old", b"below") == (s3.get("a").body, s3.get("a/b").body)


# -- which, and as of when -------------------------------------------------------------------------


def test_only_keys_with_the_prefix_come_back(kept: Kept, s3: Client) -> None:
    for key in ("photos/a", "photos/b", "other/a"):
        s3.put(key, b"old")
        s3.delete(key)
    kept.undelete("photos/")

    assert ["photos/a", "photos/b"] == s3.get(list_type=2).elements("Key")


def test_it_is_what_was_there_at_that_time(kept: Kept, s3: Client) -> None:
    for data in (b"three days ago", b"two days ago", b"yesterday", b"now"):
        kept.age(DAY)
        s3.put("a", data)
    kept.age(DAY // 2)

    kept.undelete("--since", "61h")
    assert b"three days ago" == s3.get("a").body
    kept.undelete("--since", "37h")
    assert b"two days ago" == s3.get("a").body


def test_what_went_earlier_stays_gone(kept: Kept, s3: Client) -> None:
    for key in ("earlier", "just now"):
        s3.put(key, b"old")
        s3.delete(key)
    kept.age(2 * 3600, lambda key: key == "earlier")

    kept.undelete("--since", "1h")
    assert ["just now"] == s3.get(list_type=2).elements("Key")
    kept.undelete("--since", "3h")
    assert ["earlier", "just now"] == s3.get(list_type=2).elements("Key")


def test_keys_made_since_are_left_alone(kept: Kept, s3: Client) -> None:
    s3.put("old", b"old")
    s3.delete("old")
    s3.put("new", b"new")
    kept.undelete()

    assert (b"old", b"new") == (s3.get("old").body, s3.get("new").body)


def test_an_undo_can_be_undone(kept: Kept, s3: Client) -> None:
    s3.put("a", b"first")
    s3.put("a", b"second", {"x-amz-meta-n": "second"})
    kept.age(7200)
    kept.undelete("--since", "3h")
    assert b"first" == s3.get("a").body

    kept.undelete("--since", "1h")
    got = s3.get("a")
    assert (b"second", "second") == (got.body, got.headers["x-amz-meta-n"])


def test_a_dry_run_says_the_same_and_changes_nothing(kept: Kept, s3: Client) -> None:
    for data in (b"1", b"2", b"3"):
        s3.put("a", data)
    s3.put("b", b"b")
    s3.delete("b")
    there = kept.versions()
    planned = kept.undelete("--dry-run")

    assert (b"3", 404, there) == (s3.get("a").body, s3.get("b").status, kept.versions())
    done = kept.undelete()
    assert planned[:-1] == done[:-1]
    assert ("2 could be brought back", "2 brought back") == (planned[-1], done[-1])
    assert [True, False] == ["for the 1 bytes that are there now" in line for line in done[:-1]]
    assert (b"1", b"b") == (s3.get("a").body, s3.get("b").body)


def test_a_name_moves_no_cursor(kept: Kept, s3: Client) -> None:
    s3.put("x\x1b]0;owned\x07\rä", b"x")
    s3.delete("x\x1b]0;owned\x07\rä")
    said = kept.undelete("--dry-run")

    assert "/x\\x1b]0;owned\\x07\\rä  1 bytes" in said[0]
    assert "1 could be brought back" == said[-1]


def test_a_bucket_that_keeps_nothing_says_so(keeper: Server) -> None:
    none = bucket_of(keeper, "none")
    none.s3.put("a", b"1")
    none.s3.put("a", b"2")
    code, _, err = none.run()

    assert 2 == code
    assert "keep = 7d" in err
    assert [] == none.versions()


@pytest.mark.parametrize("since", ["yesterday", "1", "-1h", "1_0h", "٣h"])
def test_a_time_that_is_none_is_one_sentence(kept: Kept, since: str) -> None:
    code, _, err = kept.run(f"--since={since}")

    assert (2, 1) == (code, len(err.splitlines()))


def test_what_is_in_its_place_already_is_not_brought_back_again(kept: Kept, s3: Client) -> None:
    s3.put("a", b"old")
    s3.put("a", b"new")
    s3.put("a", b"newer")
    assert "1 brought back" == kept.undelete()[-1]
    there = kept.versions()

    assert ["0 could be brought back"] == kept.undelete("--dry-run")
    assert ["0 brought back"] == kept.undelete()
    assert (b"old", there) == (s3.get("a").body, kept.versions())


def test_a_version_comes_back_where_the_quota_has_no_room_for_a_copy(serve: Serve) -> None:
    kept = bucket_of(serve(INI.replace("keep = 7d", "keep = 7d\nquota = 100K")), "keep")
    kept.s3.put("a", b"x" * 60_000)
    kept.s3.delete("a")
    kept.undelete()

    assert b"x" * 60_000 == kept.s3.get("a").body
    kept.age(8 * DAY)
    kept.server.stop()
    kept.server.start()  # the versions are pruned, the object is counted
    s3 = kept.server.client("keep-key", bucket=kept.bucket)
    assert [403, 200] == [s3.put("b", b"x" * size).status for size in (50_000, 40_000)]


def test_the_quota_counts_a_version_that_came_back_once(tmp_path: Path) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), quota=10**6, keep=3600)
    store.create()
    store.count()

    def check() -> None:
        with store.quota.usage() as fd:
            assert store.held() == s3mini.read_number(fd)

    for data in (b"first", b"the second", b"3"):
        put(store, "a", data, "name")
    known = store.versions
    for version in [*known.lost("", 0), *known.since(), *known.lost("", 0)]:
        store.bring_back(version)
        check()
    store.rename("a", "b", s3mini.no_check, s3mini.no_check)
    check()
    store.delete("b", s3mini.no_check)
    check()
    store.versions.prune(time.time() + 10)
    check()
    assert 0 == store.held()


@pytest.mark.parametrize("meanwhile", ["it was too old", "its twin was too old", "another did it"])
def test_a_version_that_went_while_it_came_back_is_counted_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), quota=10**6, keep=3600)
    store.create()
    store.count()
    put(store, "a", b"comes back", "name")
    store.delete("a", s3mini.no_check)
    if meanwhile == "its twin was too old":  # two versions, one file
        store.bring_back(next(store.versions.since()))
        store.delete("a", s3mini.no_check)
    put(store, "b", b"of the same day", "name")
    store.delete("b", s3mini.no_check)
    version, *others = store.versions.since()
    real, begun = s3mini.Version.check_copy, []

    def check_copy(self: s3mini.Version, fd: int) -> None:
        real(self, fd)
        begun.append(fd)
        if len(begun) > 1:
            return
        if meanwhile == "another did it":
            store.bring_back(version)
        else:
            store.versions.drop((version if meanwhile == "it was too old" else others[0]).path)

    monkeypatch.setattr(s3mini.Version, "check_copy", check_copy)
    store.bring_back(version)

    assert b"comes back" == (tmp_path / "b" / "a").read_bytes()
    with store.quota.usage() as fd:
        assert store.held() == s3mini.read_number(fd)
    found = s3mini.Inspector(store, deep=True, repair=False, progress=lambda *_: None).run()
    assert [] == list(found)


class Nfs(s3mini.Disk):
    """Whose file, while it is open, has a name of its own once its last one is gone."""

    def rename(self, path: str, folder: s3mini.Folder, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.link(f"{folder.path}/{name}", f"{folder.path}/.nfs{os.path.basename(path)}")
        super().rename(path, folder, name)


def test_a_version_that_came_back_is_counted_right_on_nfs(tmp_path: Path) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), quota=10**6, keep=3600)
    store.create()
    store.count()
    put(store, "a", b"comes back", "name")
    store.delete("a", s3mini.no_check)
    store = s3mini.Store(store.root, Nfs(False), quota=10**6, keep=3600)
    store.bring_back(next(store.versions.since()))
    (left,) = Path(store.versions.folder).rglob(".nfs*")
    left.unlink()

    with store.quota.usage() as fd:
        assert 10 == store.held() == s3mini.read_number(fd)


@pytest.mark.parametrize("kind", ["whole", "in parts", "cut short"])
def test_a_damaged_version_stays_away_and_the_others_come_back(
    kept: Kept, s3: Client, kind: str
) -> None:
    for key in "abc":
        made = overwrite_in_parts(s3, key) if kind == "in parts" else s3.put(key, b"new")
        assert 200 == made.status
    s3.put("b", b"later")
    s3.delete("a")
    s3.delete("c")
    for path in kept.versions():
        if json.loads(path.with_name(path.name + ".json").read_text())["key"] == "a":
            os.truncate(path, 2) if kind == "cut short" else flip(path, 1)
    for arguments, done in ((["--dry-run"], "could be brought back"), ([], "brought back")):
        code, out, err = kept.run(*arguments)

        assert (1, f"2 {done}") == (code, out.splitlines()[-1])
        why = "The version is damaged on the disk."
        assert f"s3mini: {kept.bucket}/a does not come back: {why}\n" == err
    assert (404, b"new", b"new") == (s3.get("a").status, s3.get("b").body, s3.get("c").body)


# -- how versions are kept -------------------------------------------------------------------------


def test_a_version_is_a_link_and_no_copy(kept: Kept, s3: Client) -> None:
    path = kept.server.data / kept.bucket / "a"
    s3.put("a", b"old")
    inode = path.stat().st_ino
    s3.put("a", b"new")

    assert [inode] == [version.stat().st_ino for version in kept.versions()]
    assert inode != path.stat().st_ino


def test_old_versions_are_pruned(serve: Serve) -> None:
    kept = bucket_of(serve(INI), "keep")
    for key in ("older", "younger"):
        kept.s3.put(key, b"old")
        kept.s3.delete(key)
    kept.age(8 * DAY, lambda key: key == "older")
    kept.age(6 * DAY, lambda key: key == "younger")
    kept.server.stop()
    kept.server.start()

    assert 1 == len(kept.versions()) == len(list(kept.room.iterdir()))
    kept.undelete("--since", "7d")
    s3 = kept.server.client(bucket=kept.bucket)
    assert ["younger"] == s3.get(list_type=2).elements("Key")


def test_versions_outlast_the_section_of_their_bucket(serve: Serve) -> None:
    """Its key is changed, or the line is gone for a day: that is no wish to lose what was kept."""
    kept = bucket_of(serve(INI), "keep")
    kept.s3.put("a", b"old")
    kept.s3.delete("a")
    kept.server.stop()
    kept.server.config.write_text(INI.replace("access_key = keep-key", "access_key = new-key"))
    kept.server.start()
    kept.server.stop()
    kept.server.config.write_text(INI)
    kept.server.start()

    assert ["1 brought back"] == kept.undelete()[1:]


def keeping(tmp_path: Path) -> s3mini.Store:
    """A bucket that keeps versions, with the object k."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), keep=3600)
    store.create()
    put(store, "k", b"x", "n")
    return store


def test_a_day_that_another_process_tidied_away_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = keeping(tmp_path)
    real, gone = s3mini.Files.write, []

    def write(self: s3mini.Store, folder: s3mini.Folder, *arguments: Any, **named: Any) -> None:
        if not gone:
            gone.append(folder.path)
            os.rmdir(folder.path)
        real(self, folder, *arguments, **named)

    monkeypatch.setattr(s3mini.Files, "write", write)
    store.delete("k", s3mini.no_check)

    assert ["k"] == [version.key for version in store.versions.since()]


def test_a_room_without_its_folders_keeps_the_version(tmp_path: Path) -> None:
    """A restore drops empty ones, and a DELETE that keeps nothing is no answer to that."""
    store = keeping(tmp_path)
    os.rmdir(tmp_path / "b/.s3mini/tmp")
    store.delete("k", s3mini.no_check)

    assert ["k"] == [version.key for version in store.versions.since()]


def test_who_tidies_meets_days_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = keeping(tmp_path)
    store.delete("k", s3mini.no_check)
    day = store.versions.days()[0]
    monkeypatch.setattr(s3mini.Versions, "days", lambda *_: ["2001-01-01", day])
    store.versions.prune(time.time() + 1)

    assert [] == list(store.versions.since())


def test_a_stray_file_among_the_versions_does_no_harm(serve: Serve) -> None:
    kept = bucket_of(serve(INI), "keep")
    kept.s3.put("a", b"old")
    kept.s3.delete("a")
    (kept.room / "README").write_text("by hand")
    (next(kept.room.glob("2*")) / "README").write_text("by hand")
    (kept.room / "notes").mkdir()
    kept.server.stop()
    kept.server.start()
    s3 = kept.server.client(bucket=kept.bucket)

    assert 404 == s3.get("a").status
    kept.undelete()
    assert b"old" == s3.get("a").body


@pytest.mark.parametrize("told", ["", "{}", "[]", '{"key": "a", "entry": {}}', "[" * 100_000])
def test_a_version_of_which_nothing_is_known_hides_no_other(kept: Kept, told: str) -> None:
    for key in ("a", "b"):
        kept.s3.put(key, b"old")
        kept.s3.delete(key)
    damaged = kept.versions()[0]
    damaged.with_name(damaged.name + ".json").write_text(told)

    code, out, err = kept.run()
    assert (1, "1 brought back") == (code, out.splitlines()[-1])
    assert f"{damaged}.json cannot be read" in err
    assert (404, b"old") == (kept.s3.get("a").status, kept.s3.get("b").body)


def test_versions_are_no_objects(kept: Kept, s3: Client) -> None:
    s3.put("a", b"old")
    s3.delete("a")
    name = kept.versions()[0].relative_to(kept.server.data / kept.bucket).as_posix()

    assert 404 == s3.get(name).status
    assert [] == s3.get(list_type=2).elements("Key")
    assert 204 == s3.delete(name).status
    assert 1 == len(kept.versions())


@pytest.fixture
def reader(s3: Client) -> Iterator[list[bytes]]:
    """All that a reader gets of "a" while the test goes on; statuses other than 200 too."""
    got: list[bytes] = []
    done = threading.Event()
    s3.put("a", b"0")

    def read() -> None:
        while not done.is_set():
            reply = s3.get("a")
            got.append(reply.body if reply.status == 200 else str(reply.status).encode())

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield got
    done.set()
    for thread in threads:
        thread.join()


def test_there_is_never_a_moment_without_the_object(
    kept: Kept, s3: Client, reader: list[bytes]
) -> None:
    for number in range(1, 100):
        assert s3.put("a", b"%d" % number).status == 200
    kept.undelete()

    assert b"0" == s3.get("a").body
    assert set(reader) <= {b"%d" % number for number in range(100)}
    assert 20 < len(reader)
