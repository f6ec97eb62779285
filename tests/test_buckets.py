"""Buckets: made, listed, asked by habit and removed; renaming and appending within them."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import time
import zlib
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import INI, Serve, Server, flip
from signing_client import Client, Reply

import s3mini

DENIED = (403, "AccessDenied")


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two keys with the same pattern, one of them append-only."""
    more = "\n[test-*:alt]\naccess_key = alt-key\nsecret_key = alt-secret-0123456789abcdef\n"
    more += "\n[logs]\naccess_key = logs-key\nsecret_key = logs-secret-0123456789abcdef\n"
    started = Server(tmp_path_factory.mktemp("buckets"), INI + more + "mode = append\n")
    yield started
    started.close()


# -- made and removed ------------------------------------------------------------------------------


def test_a_bucket_is_made_used_and_removed(world: Server) -> None:
    s3 = world.client("test-key", bucket="test-made")
    made = s3.put()

    assert (200, "/test-made", b"") == (made.status, made.headers["location"], made.body)
    assert 200 == s3.put().status
    assert 200 == s3.head().status
    assert (200, 0) == (s3.get(list_type=2).status, len(s3.get(list_type=2).elements("Key")))
    s3.put("a/b", b"x")
    assert (409, "BucketNotEmpty") == outcome(s3.delete())
    assert b"x" == s3.get("a/b").body
    s3.delete("a/b")
    assert (204, b"") == (s3.delete().status, b"")
    assert (404, "NoSuchBucket") == outcome(s3.delete())
    assert 404 == s3.head().status
    assert (404, "NoSuchBucket") == outcome(s3.put("k", b"x"))


def configuration(inside: str) -> bytes:
    return f"<CreateBucketConfiguration>{inside}</CreateBucketConfiguration>".encode()


def test_a_bucket_is_made_with_its_tags(world: Server) -> None:
    s3 = world.client("test-key", bucket="test-tagged")
    tag = "<Tag><Key>team</Key><Value>x</Value></Tag>"
    bad = s3.put("", configuration("<Tags><Tag><Key></Key><Value>x</Value></Tag></Tags>"))
    assert ((400, "InvalidTag"), 404) == (outcome(bad), s3.head().status)
    bad = s3.put("", configuration("<Tags><Tag><Key>team</Key></Tag></Tags>"))
    assert ((400, "MalformedXML"), 404) == (outcome(bad), s3.head().status)

    assert 200 == s3.put("", configuration(f"<Tags>{tag}</Tags>")).status
    assert ["team"] == s3.get(query="tagging").elements("Key")
    assert 200 == s3.put("", configuration("<Tags></Tags>")).status  # it is there: as it is
    assert ["team"] == s3.get(query="tagging").elements("Key")
    for again in (tag, tag.replace("team", "other")):  # tags that it would not get
        refused = s3.put("", configuration(f"<Tags>{again}</Tags>"))
        assert (409, "BucketAlreadyOwnedByYou") == outcome(refused)
        assert s3.bucket == refused.element("BucketName")
    assert ["team"] == s3.get(query="tagging").elements("Key")


def test_a_bucket_says_in_which_region_it_was_made(world: Server) -> None:
    """Deployment tools compare it with the one they were told."""
    s3 = world.client("test-key", bucket="test-in-eu")
    region = "<LocationConstraint>eu-west-1</LocationConstraint>"
    assert 200 == s3.put("", configuration(region)).status
    assert 200 == s3.put("").status  # it is there: as it is

    assert b">eu-west-1</LocationConstraint>" in s3.get(query="location").body
    assert "eu-west-1" == s3.head().headers["x-amz-bucket-region"]
    listed = world.client("test-key").get("/", prefix="test-in-eu")
    assert ["eu-west-1"] == listed.elements("BucketRegion")
    assert 200 == s3.put("k", b"x").status  # signed for another


def test_a_bucket_of_the_first_region_is_where_one_without_is(world: Server) -> None:
    s3 = world.client("test-key", bucket="test-in-us")
    s3.put("", configuration("<LocationConstraint>us-east-1</LocationConstraint>"))

    assert b"></LocationConstraint>" in s3.get(query="location").body
    assert "us-east-1" == s3.head().headers["x-amz-bucket-region"]


@pytest.mark.parametrize(("name", "region"), [("ceph", "default:placement"), ("own", "my_own.2")])
def test_a_bucket_says_a_region_that_aws_has_not(world: Server, name: str, region: str) -> None:
    s3 = world.client("test-key", bucket=f"test-of-{name}")
    s3.put("", configuration(f"<LocationConstraint>{region}</LocationConstraint>"))

    assert region == s3.head().headers["x-amz-bucket-region"]


@pytest.mark.parametrize("region", ["eu west", "a&#13;&#10;b: c", "é", "x" * 65])
def test_a_region_that_is_none_makes_no_bucket(world: Server, region: str) -> None:
    s3 = world.client("test-key", bucket="test-nowhere")
    body = configuration(f"<LocationConstraint>{region}</LocationConstraint>")

    assert (400, "InvalidLocationConstraint") == outcome(s3.put("", body))
    assert 404 == s3.head().status


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-amz-object-ownership": "ObjectWriter"}, b""),
        ({"x-amz-object-ownership": "BucketOwnerPreferred"}, b""),
        ({"x-amz-bucket-namespace": "account-regional"}, b""),
        ({}, configuration("<Location><Name>a</Name><Type>AvailabilityZone</Type></Location>")),
        ({}, configuration("<Bucket><Type>Directory</Type></Bucket>")),
    ],
)
def test_a_bucket_that_is_not_as_it_was_asked_for_is_not_made(
    world: Server, headers: dict[str, str], body: bytes
) -> None:
    s3 = world.client("test-key", bucket="test-other-kind")

    assert (501, "NotImplemented") == outcome(s3.put("", body, headers))
    assert 404 == s3.head().status


def test_where_acls_are_obeyed_a_bucket_may_say_so(serve: Serve) -> None:
    server = serve(INI.replace("[test-*]\n", "[test-*]\nacl = yes\n"))
    s3 = server.client("test-key", bucket="test-acl")

    assert 200 == s3.put("", b"", {"x-amz-object-ownership": "ObjectWriter"}).status
    assert 200 == s3.put("k", b"x", {"x-amz-acl": "public-read"}).status
    assert b"x" == s3.anonymous().get("k").body


def test_one_who_made_a_bucket_has_it(world: Server) -> None:
    mine, theirs = (world.client(key, bucket="test-own") for key in ("test-key", "alt-key"))
    mine.put()

    assert (409, "BucketAlreadyExists") == outcome(theirs.put())
    for reply in (theirs.get(), theirs.put("k", b"x"), theirs.delete(), theirs.get(query="cors")):
        assert DENIED == outcome(reply)
    assert 403 == theirs.head().status


@pytest.mark.parametrize("garbage", [
    b"", b"{", b"[]", b'{"created": "x"}', b"[" * 100_000,
    b'{"created": 1, "cors": [{"origins": ["*"]}]}', b'{"created": 1, "tags": {"a": ["b"]}}',
    b'{"created": 1, "region": "\xed\xb5\x9c"}',
])  # fmt: skip
def test_a_damaged_bucket_json_stops_nobody_else(serve: Serve, garbage: bytes) -> None:
    server = serve()
    server.client("test-key", bucket="test-x").put()
    server.stop()
    for name in ("media", "test-x"):
        (server.data / name / ".s3mini" / "bucket.json").write_bytes(garbage)
    server.start()
    mine, made = server.client(bucket="media"), server.client("test-key", bucket="test-x")

    assert 200 == mine.put("k", b"x").status
    assert (b"x", 204) == (mine.get("k").body, mine.delete("k").status)
    assert ["media"] == server.client().get("/").elements("Name")
    for reply in (made.get(), made.put("k", b"x"), made.delete()):
        assert DENIED == outcome(reply)
    for name in ("media", "test-x"):
        assert re.search(f"the bucket '{name}' could not be tidied: .*bucket.json is", server.log)


@pytest.mark.parametrize("changed", [b'{"created": 1, "id": "x"}', b'{"created": 1}', b"{"])
def test_a_declared_bucket_goes_on_when_its_json_is_restored(serve: Serve, changed: bytes) -> None:
    """A backup comes back into the folder while the server runs, or somebody mends the file."""
    server = serve()
    s3, path = server.client(bucket="media"), server.data / "media" / ".s3mini" / "bucket.json"
    first = path.read_bytes()
    for data in (first, changed, first, changed):
        path.with_suffix(".new").write_bytes(data)
        path.with_suffix(".new").rename(path)
        assert 200 == s3.put("k", b"x" * 100_000).status
        upload = s3.post("m", query="uploads").element("UploadId")
        assert 200 == s3.put("m", b"x", query={"partNumber": 1, "uploadId": upload}).status
        (server.data / "media" / "by-hand").write_bytes(b"y")
        assert (b"y", 204) == (s3.get("by-hand").body, s3.delete("by-hand").status)


def test_where_bucket_json_is_gone_objects_are_read_and_nothing_begins(serve: Serve) -> None:
    """Else an upload of 50 GB fails at its end."""
    server = serve()
    s3 = server.client(bucket="media")
    s3.put("k", b"content")
    upload = s3.post("m", query="uploads").element("UploadId")
    (server.data / "media" / ".s3mini" / "bucket.json").unlink()
    part = {"partNumber": 1, "uploadId": upload}

    assert (b"content", 200) == (s3.get("k").body, s3.head("k").status)
    for reply in (s3.post("m", query="uploads"), s3.put("m", b"x", query=part), s3.get("none"),
                  s3.put("k", b"x"), s3.delete("k")):
        assert (503, "ServiceUnavailable") == outcome(reply)


@pytest.mark.parametrize("garbage", [b'{"created": 1e999}', b'{"created": NaN}', b'{"created": 1'])
def test_what_is_damaged_is_not_written_over(tmp_path: Path, garbage: bytes) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    path = Path(store.room, "bucket.json")
    path.write_bytes(garbage)
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    with pytest.raises(s3mini.S3Error, match="damaged"):
        store.change_about(tags={"a": "b"})

    assert garbage == path.read_bytes()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_bucket_that_can_only_be_read_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    store.create()
    monkeypatch.setattr(s3mini, "touch", Failing(number))
    store.create()
    Path(store.room, "locks", "make").unlink(missing_ok=True)
    if s3mini.HAS_FLOCK and number == errno.EIO:
        with pytest.raises(OSError, match="x"):
            store.create()
    else:
        assert not store.create()


class Failing:
    """A call that fails."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *_: object) -> None:
        raise OSError(self.number, "x")


def test_without_flock_who_makes_a_bucket_shares_its_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3mini, "HAS_FLOCK", False)
    with s3mini.start() as fake:
        buckets = fake._server.app.buckets
        section = next(s for s in buckets.config.sections if s.is_pattern)
        first = buckets.store("not-yet", section)

        assert first is buckets.store("not-yet", section)
        assert buckets.create("not-yet", fake.access_key)
        assert first is buckets.open("not-yet")


def test_what_bucket_json_cannot_hold_is_refused(world: Server) -> None:
    """It would be read cut off, and no server would start with it."""
    s3 = world.client("test-key", bucket="test-large")
    s3.put()
    store = s3mini.Store(str(world.data / "test-large"), s3mini.Disk(False))
    with pytest.raises(s3mini.S3Error, match="too big"):
        store.change_about(cors=["\\" * s3mini.MAX_DOCUMENT])

    assert 200 == s3.head().status


def test_the_stores_of_removed_buckets_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that another process removed; what buckets.ini declares is never dropped."""
    monkeypatch.setattr(s3mini, "CACHED_STORES", 3)
    (tmp_path / "buckets.ini").write_text(INI.replace("[SERVER]", f"[SERVER]\ndata = {tmp_path}/d"))
    config = s3mini.load_config(str(tmp_path / "buckets.ini"))
    buckets, others = (s3mini.Buckets(config, s3mini.Disk(False)) for _ in range(2))
    for one in (buckets, others):
        assert [] == one.prepare()
    for number in range(20):
        assert buckets.create(f"test-{number}", "test-key")
        assert others.grants(f"test-{number}", "test-key")
        others.open(f"test-{number}")
        buckets.delete(f"test-{number}")

    assert {} == buckets._stores
    assert 3 == len(others._stores)
    assert 3 == len(others._declared_stores)


def test_the_rest_of_a_removed_bucket_is_cleaned_at_the_start(serve: Serve) -> None:
    """DeleteBucket moves it out of the way, and may be killed there."""
    server = serve()
    server.stop()
    rest = server.data / ".s3mini-0123456789abcdef"
    (rest / "locks").mkdir(parents=True)
    (rest / "locks" / "00").touch()
    (server.data / ".s3mini-of-others").mkdir()
    server.start()

    assert not rest.exists()
    assert (server.data / ".s3mini-of-others").exists()


def test_an_upload_under_way_does_not_keep_a_bucket(world: Server) -> None:
    s3 = world.client("test-key", bucket="test-under-way")
    s3.put()
    upload = s3.post("k", query="uploads").element("UploadId")
    s3.put("k", b"x", partNumber=1, uploadId=upload)
    removed = s3.delete()

    assert removed.status in (204, 409)
    assert (404 if removed.status == 204 else 200) == s3.head().status


def test_a_declared_bucket_stays(world: Server) -> None:
    media = world.client("media-key", bucket="media")

    assert 200 == media.put().status
    assert DENIED == outcome(media.delete())
    assert DENIED == outcome(world.client("logs-key", bucket="logs").delete())
    assert 200 == media.head().status


BAD_NAMES = [
    "te", "Test-a", "test_a", "test-a_b", "-test", "test-", ".test", "test-a..b", "test-a.",
    "192.168.5.4", "x" * 64, "test-%20a", "test-%C3%A4", "test-%2A", "test-a%0A",
]  # fmt: skip


def test_a_folder_that_is_not_ours_is_no_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, of mode 0700, beside the buckets: nobody learns that it is there."""
    read = s3mini.About.read

    def denied(about: s3mini.About) -> object:
        if about.files.root.endswith("/backup"):
            raise PermissionError(13, "Permission denied", about.path)
        return read(about)

    (tmp_path / "backup").mkdir()
    monkeypatch.setattr(s3mini.About, "read", denied)
    with s3mini.start("media", data=str(tmp_path)) as fake:
        for client in (Client(fake.endpoint.partition("//")[2], "s3mini", "s3mini-secret"),
                       Client(fake.endpoint.partition("//")[2])):
            answers = {outcome(client(method, target=f"/{name}/k"))
                       for method in ("GET", "PUT", "DELETE") for name in ("backup", "nothing")}

            assert {(404, "NoSuchBucket")} == answers


@pytest.mark.parametrize("name", ["20240101", "1.2.3", "1.2.3.4.5", "1.2.3.4-a", "a.b-c.d"])
def test_a_name_of_digits_is_no_address(name: str) -> None:
    assert s3mini.is_bucket_name(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused(world: Server, name: str) -> None:
    reply = world.client("test-key")("PUT", target="/" + name)

    assert (400, "InvalidBucketName") == outcome(reply)
    assert not (world.data / name).exists()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),
        (b"<CreateBucketConfiguration/>", 200),
        (b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint>"
         b"</CreateBucketConfiguration>", 200),
        (b"<CreateBucketConfiguration>", 400),
        (b"<Other/>", 400),
    ],
)  # fmt: skip
def test_a_bucket_may_come_with_a_document(world: Server, body: bytes, status: int) -> None:
    s3 = world.client("test-key", bucket="test-document")
    reply = s3.put("", body)

    assert status == reply.status
    assert (200 if status == 200 else 404) == s3.head().status
    s3.delete()


def test_an_ownership_that_there_is_not_is_an_invalid_argument(world: Server) -> None:
    refused = world.client("test-key", bucket="test-strange").put(
        "", b"", {"x-amz-object-ownership": "Foo"})

    assert (400, "InvalidArgument") == (refused.status, refused.error)
    assert "x-amz-object-ownership" == refused.element("ArgumentName")


@pytest.mark.parametrize("which", ["root", "folder"])
def test_a_bucket_that_may_not_be_read_is_not_empty(
    tmp_path: Path, unreadable: Callable[[Path], None], which: str
) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    (tmp_path / "b" / "folder").mkdir()
    (tmp_path / "b" / "folder" / "k").touch()
    unreadable(tmp_path / "b" / ("folder" if which == "folder" else ""))
    with pytest.raises(PermissionError):
        store.destroy()
    if which == "root":
        with pytest.raises(PermissionError):
            s3mini.list_page(store, "", "", s3mini.Cursor(), 10)

    assert (tmp_path / "b/.s3mini/bucket.json").exists()


def test_a_bucket_whose_disk_went_away_is_not_an_empty_one(serve: Serve) -> None:
    """Who mirrors a bucket would delete his copy of it; who is told that it is gone, begin anew."""
    server = serve()
    s3, folder = server.client(bucket="media"), server.data / "media"
    assert 200 == s3.put("k", b"x").status
    folder.rename(server.data / "away")
    folder.mkdir()  # where the disk is mounted
    for reply in (s3.get(), s3.get(list_type=2), s3.get(query="versions"), s3.get("k"),
                  s3.get(query="uploads"), s3.get(query="location"), s3.put("k", b"y"),
                  s3.post("k", query="uploads"), s3.put()):
        assert (503, "ServiceUnavailable") == outcome(reply)
    assert [503, 503] == [s3.head().status, s3.head("k").status]
    folder.rmdir()
    (server.data / "away").rename(folder)

    assert (b"x", ["k"]) == (s3.get("k").body, s3.get().elements("Key"))


def test_nothing_is_made_where_a_buckets_disk_is_mounted(tmp_path: Path) -> None:
    """The hourly look for what is left behind makes folders that somebody removed."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), is_declared=True)
    store.create()
    (tmp_path / "b").rename(tmp_path / "away")
    (tmp_path / "b").mkdir()
    with pytest.raises(s3mini.S3Error, match="disk mounted"):
        store.clean()

    assert [] == list((tmp_path / "b").iterdir())


def test_a_data_folder_whose_disk_went_away_has_not_lost_its_buckets(serve: Serve) -> None:
    """Who mirrors all buckets would delete those that were made through the API."""
    server = serve()
    s3 = server.client("test-key")
    assert 200 == s3.put("/test-x").status
    server.data.rename(server.data.with_name("away"))
    server.data.mkdir()
    assert 500 == s3.get("/").status
    until = time.monotonic() + 20
    while "no bucket is there; was its disk unmounted?" not in server.log:
        assert time.monotonic() < until
        time.sleep(0.01)
    server.data.rmdir()
    server.data.with_name("away").rename(server.data)

    assert ["test-x"] == s3.get("/").elements("Name")


@pytest.mark.parametrize("is_left", [True, False])
def test_no_bucket_is_made_where_a_disk_is_to_be_mounted(serve: Serve, is_left: bool) -> None:
    """Who finds his bucket missing makes it, and what he stores there is hidden afterwards."""
    server = serve()
    s3 = server.client("test-key")
    assert 200 == s3.put("/test-x").status
    server.data.rename(server.data.with_name("away"))
    if is_left:
        server.data.mkdir()
    assert 404 == s3.put("/test-x/a", b"new").status
    assert 503 == s3.put("/test-x").status
    assert is_left == server.data.exists()
    assert not is_left or not list(server.data.iterdir())
    if is_left:
        server.data.rmdir()
    server.data.with_name("away").rename(server.data)

    assert (200, 200) == (s3.put("/test-x").status, s3.put("/test-y").status)


def test_a_bucket_on_a_broken_disk_hides_those_of_other_keys_from_no_list(serve: Serve) -> None:
    server = serve()
    path = server.data / "other" / ".s3mini" / "bucket.json"
    path.unlink()
    path.symlink_to(path)

    assert ["media"] == server.client().get("/").elements("Name")


def test_a_page_during_which_the_disk_goes_away_is_no_last_page(tmp_path: Path) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), is_declared=True)
    store.create()
    (tmp_path / "b" / "a").write_bytes(b"x")
    (tmp_path / "b" / "b").write_bytes(b"y")
    items = store.scan("", s3mini.Cursor())
    assert "a" == next(items).key
    (tmp_path / "b").rename(tmp_path / "away")
    with pytest.raises(s3mini.S3Error, match="bucket"):
        list(items)


def test_what_comes_and_goes_in_its_room_is_no_reason_to_keep_a_bucket(
    tmp_path: Path, unreadable: Callable[[Path], None]
) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    for name in (".s3mini/uploads/gone", "lost+found", "empty"):
        (tmp_path / "b" / name).mkdir()
    for name in (".s3mini/uploads/gone", "lost+found"):
        unreadable(tmp_path / "b" / name)
    store.destroy()

    assert not (tmp_path / "b/.s3mini/bucket.json").exists()


def test_a_bucket_is_removed_by_a_thread(tmp_path: Path) -> None:
    """All its locks, a scan and the removal: in the front everybody would wait."""
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    heads = [f"DELETE {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
             for path in ("/media", "/media/", "/media/k")]
    quick = [app.is_quick(s3mini.parse_head(head), 0) for head in heads]

    assert [False, False, True] == quick


@pytest.mark.parametrize("name", ["x-amz-copy-source", "X-Amz-Copy-Source"])
def test_a_copy_is_made_by_a_thread(tmp_path: Path, name: str) -> None:
    """Also that of a URL which has the header in its query."""
    app = s3mini.App(s3mini.dev_config("127.0.0.1:0", str(tmp_path)), s3mini.Disk(False))
    ways = ((f"?{name}=media%2Fa", ""), ("", f"{name}: media/a\r\n"), ("", ""))
    heads = [f"PUT /media/k{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode()
             for query, header in ways]

    assert [False, False, True] == [app.is_quick(s3mini.parse_head(head), 0) for head in heads]


def test_who_finds_a_bucket_there_has_its_name_on_the_disk(tmp_path: Path) -> None:
    """Who made it may have been killed before that."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    synced: list[str] = []
    store.disk.sync_folder = lambda folder: synced.append(folder.path)  # type: ignore[method-assign]

    assert store.create() is False
    assert [store.room] == synced


def test_object_lock_is_refused_by_name(world: Server) -> None:
    s3 = world.client("test-key", bucket="test-locked")

    asked = {"x-amz-bucket-object-lock-enabled": "true"}
    assert (501, "NotImplemented") == outcome(s3.put("", b"", asked))
    assert 404 == s3.head().status


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("x-amz-acl", "public-read", 400),
        ("x-amz-acl", "public-read-write", 400),
        ("x-amz-acl", "authenticated-read", 400),
        ("x-amz-acl", "nonsense", 400),
        ("x-amz-grant-read", "id=1", 501),
        ("x-amz-acl", "private", 200),
        ("x-amz-acl", "bucket-owner-full-control", 200),
    ],
)
def test_a_bucket_is_not_made_more_open_than_it_will_be(
    world: Server, name: str, value: str, status: int
) -> None:
    s3 = world.client("test-key", bucket="test-acl")

    assert status == s3.put("", b"", {name: value}).status
    assert (200 if status == 200 else 404) == s3.head().status
    s3.delete()


def test_a_bucket_that_will_be_open_may_be_made_so(serve: Serve) -> None:
    server = serve("[pub-*]\naccess_key = k\nsecret_key = s\npublic = read\n", durability="none")
    s3 = server.client("k", bucket="pub-1")

    assert 200 == s3.put("", b"", {"x-amz-acl": "public-read"}).status
    assert 400 == s3.put("", b"", {"x-amz-acl": "public-read-write"}).status


def test_buckets_are_listed_page_by_page(world: Server) -> None:
    s3 = world.client("alt-key")
    names = [f"test-page-{n}" for n in range(5)]
    for name in names:
        s3.put("/" + name)
    pages, token = [], ""
    while True:
        more = {"continuation_token": token} if token else {}
        page = s3.get("/", max_buckets=2, prefix="test-page-", **more)
        pages.append(page.elements("Name"))
        token = page.element("ContinuationToken")
        if not token:
            break

    assert [names[:2], names[2:4], names[4:]] == pages
    assert (400, "InvalidArgument") == outcome(s3.get("/", max_buckets=0))
    assert (400, "InvalidArgument") == outcome(s3.get("/", max_buckets="x"))
    assert (400, "InvalidArgument") == outcome(s3.get("/", max_buckets=10_001))
    assert 200 == s3.get("/", max_buckets=10_000).status
    assert (400, "InvalidArgument") == outcome(s3.get("/", continuation_token="!"))


@pytest.mark.parametrize(("path", "allow"), [
    ("/", "GET"), ("/media", "DELETE, GET, HEAD, POST, PUT"),
    ("/media/k", "DELETE, GET, HEAD, PUT")])
def test_another_method_is_told_which_there_are(world: Server, path: str, allow: str) -> None:
    reply = world.client().send("PATCH", path, {})

    assert (405, "MethodNotAllowed") == outcome(reply)
    assert allow == reply.headers["allow"]


def test_a_missing_bucket_is_404_whatever_is_asked(world: Server) -> None:
    s3 = world.client("test-key", bucket="test-missing")
    queries = ["", "location", "versioning", "uploads", "versions", "acl", "cors", "tagging"]

    for query in queries:
        assert (404, "NoSuchBucket") == outcome(s3.get(query=query)), query
    head = s3.head()
    assert (404, b"") == (head.status, head.body)


def test_versions_are_listed_as_the_only_ones(s3: Client) -> None:
    for key in ("a/1", "a/2", "b", "c"):
        s3.put(key, b"x")
    first = s3.get(query="versions", prefix="", delimiter="/", max_keys=2)
    rest = s3.get(
        query="versions", delimiter="/", key_marker=first.element("NextKeyMarker"),
        version_id_marker=first.element("NextVersionIdMarker"),
    )  # fmt: skip

    assert ["b"] == first.elements("Key")
    assert ["", "a/"] == first.elements("Prefix")[-2:]
    assert "true" == first.element("IsTruncated")
    assert ["c"] == rest.elements("Key")
    assert ["null"] == rest.elements("VersionId")
    assert ["true"] == rest.elements("IsLatest")
    assert [] == rest.elements("NextKeyMarker")


@pytest.mark.parametrize(
    "query", [{"version_id_marker": "null"}, {"key_marker": "a", "version_id_marker": "no id"}]
)
def test_a_version_marker_that_makes_no_sense_is_refused(s3: Client, query: dict[str, str]) -> None:
    reply = s3.get(versions="", **query)

    assert (400, "InvalidArgument") == outcome(reply)
    assert ("version-id-marker", query["version_id_marker"]) == (
        reply.element("ArgumentName"), reply.element("ArgumentValue"))


# -- habits ----------------------------------------------------------------------------------------

HABITS: list[tuple[str, str, str]] = [
    # query, code of the 404 or the document's root, method of boto3
    ("accelerate", "AccelerateConfiguration", "get_bucket_accelerate_configuration"),
    ("encryption", "ServerSideEncryptionConfigurationNotFoundError", "get_bucket_encryption"),
    ("lifecycle", "NoSuchLifecycleConfiguration", "get_bucket_lifecycle_configuration"),
    ("logging", "BucketLoggingStatus", "get_bucket_logging"),
    ("notification", "NotificationConfiguration", "get_bucket_notification_configuration"),
    ("object-lock", "ObjectLockConfigurationNotFoundError", "get_object_lock_configuration"),
    ("ownershipControls", "OwnershipControlsNotFoundError", "get_bucket_ownership_controls"),
    ("policy", "NoSuchBucketPolicy", "get_bucket_policy"),
    ("policyStatus", "NoSuchBucketPolicy", "get_bucket_policy_status"),
    ("publicAccessBlock", "NoSuchPublicAccessBlockConfiguration", "get_public_access_block"),
    ("replication", "ReplicationConfigurationNotFoundError", "get_bucket_replication"),
    ("requestPayment", "RequestPaymentConfiguration", "get_bucket_request_payment"),
    ("versioning", "VersioningConfiguration", "get_bucket_versioning"),
    ("website", "NoSuchWebsiteConfiguration", "get_bucket_website"),
    ("cors", "NoSuchCORSConfiguration", "get_bucket_cors"),
    ("tagging", "NoSuchTagSet", "get_bucket_tagging"),
    ("acl", "AccessControlPolicy", "get_bucket_acl"),
    ("location", "LocationConstraint", "get_bucket_location"),
]


@pytest.mark.parametrize(("query", "answer", "method"), HABITS)
def test_what_is_not_configured_is_said_as_aws_says_it(
    s3: Client, boto: Any, query: str, answer: str, method: str
) -> None:
    from botocore.exceptions import ClientError

    reply = s3.get(query=query)
    if reply.status == 200:
        assert f"<{answer} xmlns=".encode() in reply.body
        assert 200 == getattr(boto, method)(Bucket=s3.bucket)["ResponseMetadata"]["HTTPStatusCode"]
        return
    assert (404, answer) == outcome(reply)
    with pytest.raises(ClientError) as caught:
        getattr(boto, method)(Bucket=s3.bucket)
    assert answer == caught.value.response["Error"]["Code"]


def test_habits_with_something_to_say_say_it(s3: Client, boto: Any) -> None:
    assert "BucketOwner" == boto.get_bucket_request_payment(Bucket=s3.bucket)["Payer"]
    assert "Status" not in boto.get_bucket_versioning(Bucket=s3.bucket)
    assert None is boto.get_bucket_location(Bucket=s3.bucket)["LocationConstraint"]


@pytest.mark.parametrize("query", [query for query, _, _ in HABITS])
def test_a_stranger_learns_nothing_by_habit(server: Server, bucket: str, query: str) -> None:
    for key in ("", "media-key"):
        assert DENIED == outcome(server.client(key, bucket=bucket).get(query=query))


SELECTORS = [
    "accelerate", "acl", "analytics", "annotation", "attributes", "cors", "delete", "encryption",
    "intelligent-tiering", "inventory", "legal-hold", "lifecycle", "list-type=2", "location",
    "logging", "metadataTable", "metrics", "notification", "object-lock", "ownershipControls",
    "policy", "policyStatus", "publicAccessBlock", "renameObject", "replication",
    "requestPayment", "restore", "retention", "select", "session", "tagging", "torrent",
    "uploadId=x", "uploads", "versioning", "versions", "website",
]  # fmt: skip


@pytest.mark.parametrize("query", SELECTORS)
def test_deleting_a_detail_never_deletes_the_bucket(s3: Client, query: str) -> None:
    for more in ("", "=", "&x-id=DeleteBucket"):
        reply = s3.delete(query=query + more)
        assert reply.status in (204, 400, 405, 501), reply.body
    assert 200 == s3.head().status


@pytest.mark.parametrize("query", SELECTORS)
def test_putting_a_detail_never_makes_a_bucket(world: Server, query: str) -> None:
    s3 = world.client("test-key", bucket="test-detail")
    reply = s3.put("", b"<x/>", query=query)

    assert reply.status in (400, 404, 501)
    assert 404 == s3.head().status


@pytest.mark.parametrize(
    "query",
    ["accelerate", "encryption", "lifecycle", "logging", "notification", "object-lock",
     "ownershipControls", "policy", "publicAccessBlock", "replication", "requestPayment",
     "versioning", "website"],
)  # fmt: skip
def test_a_configuration_that_is_not_done_is_refused_by_name(s3: Client, query: str) -> None:
    reply = s3.put("", b"<x/>", query=query)

    assert (501, "NotImplemented") == outcome(reply)
    assert query in reply.element("Message")


# -- renaming --------------------------------------------------------------------------------------


def rename(s3: Client, source: str, key: str, **headers: str) -> Reply:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return s3.put(key, b"", {"x-amz-rename-source": source, **given}, query="renameObject")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a", "b"),
        ("a", "d/e/f"),
        ("d/e/f", "a"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("a b+c", "ä//x"),
        ("dir/", "other/"),
    ],
)
def test_a_rename_moves_everything(s3: Client, old: str, new: str) -> None:
    from urllib.parse import quote

    meta = {"x-amz-meta-a": "1", "content-type": "text/css", "x-amz-tagging": "t=1"}
    s3.put(old, b"content", meta)
    before = s3.head(old).headers
    reply = rename(s3, quote(old), new)
    got = s3.get(new)

    assert 200 == reply.status, reply.body
    assert 404 == s3.head(old).status
    assert [new] == s3.get(list_type=2).elements("Key")
    assert (b"content", "1", "text/css") == (
        got.body,
        got.headers["x-amz-meta-a"],
        got.headers["content-type"],
    )
    assert (before["etag"], "1") == (got.headers["etag"], got.headers["x-amz-tagging-count"])


@pytest.mark.parametrize(("source", "moved"), [
    ("{}/x", "{}/x"), ("/{}/x", "x"), ("%2Flead", "/lead"), ("/lead", "/lead"),
    ("/{}/{}/x", "{}/x")])
def test_a_rename_takes_the_object_that_is_named(s3: Client, source: str, moved: str) -> None:
    for key in ("x", "{}/x", "lead", "/lead"):
        s3.put(key.format(s3.bucket), key.encode())
    assert 200 == rename(s3, source.format(s3.bucket, s3.bucket), "new").status

    assert (moved.encode(), 404) == (s3.get("new").body, s3.get(moved.format(s3.bucket)).status)


def test_a_rename_replaces_what_is_there(s3: Client) -> None:
    s3.put("a", b"new", {"x-amz-meta-a": "new"})
    s3.put("b", b"old one", {"x-amz-meta-b": "old"})

    assert 200 == rename(s3, f"/{s3.bucket}/a", "b").status
    got = s3.get("b")
    assert (b"new", "new") == (got.body, got.headers["x-amz-meta-a"])
    assert "x-amz-meta-b" not in got.headers
    assert ["b"] == s3.get(list_type=2).elements("Key")


def test_the_conditions_of_a_rename(s3: Client) -> None:
    s3.put("a", b"1")
    s3.put("b", b"2")
    a, b = (s3.head(key).headers["etag"] for key in "ab")
    for conditions in (
        {"if_none_match": "*"},
        {"if_match": a},
        {"x_amz_rename_source_if_match": b},
        {"x_amz_rename_source_if_none_match": a},
        {"x_amz_rename_source_if_unmodified_since": "Sat, 01 Jan 2000 00:00:00 GMT"},
        {"if_modified_since": formatdate(time.time() + 1, usegmt=True)},
    ):
        assert (412, "PreconditionFailed") == outcome(rename(s3, "a", "b", **conditions))
        assert [b"1", b"2"] == [s3.get(key).body for key in "ab"]

    good = {"if_match": b, "x_amz_rename_source_if_match": a}
    assert 200 == rename(s3, "a", "b", **good).status
    assert b"1" == s3.get("b").body


def test_a_refused_rename_leaves_no_folder_behind(server: Server, s3: Client) -> None:
    s3.put("a", b"x")

    assert 404 == rename(s3, "missing", "x/y/z").status
    assert 412 == rename(s3, "a", "x/y/z", x_amz_rename_source_if_match='"other"').status
    assert not (server.data / s3.bucket / "x").exists()


def test_a_rename_over_a_file_of_the_same_size_and_time_works(server: Server, s3: Client) -> None:
    """As a human makes them: `cp -p`, or files from one archive."""
    for key in ("a", "b"):
        path = server.data / s3.bucket / key
        path.write_bytes(key.encode())
        os.utime(path, (1_000_000_000, 1_000_000_000))

    assert 200 == rename(s3, "a", "b").status
    assert (404, b"a") == (s3.get("a").status, s3.get("b").body)
    assert hashlib.md5(b"a").hexdigest() == s3.head("b").etag


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("missing", 404, "NoSuchKey"),
        ("k", 400, "InvalidRequest"),
        ("", 400, "InvalidRequest"),
        ("../k", 400, "InvalidURI"),
        ("%ff", 400, "InvalidURI"),
        ("x" * 1025, 400, "KeyTooLongError"),
        ("/media/k", 404, "NoSuchKey"),
    ],
)
def test_a_source_that_is_none_renames_nothing(
    s3: Client, source: str, status: int, code: str
) -> None:
    s3.put("k", b"x")

    assert (status, code) == outcome(rename(s3, source, "k"))
    assert b"x" == s3.get("k").body


def test_an_append_only_key_renames_nothing(world: Server) -> None:
    logs = world.client("logs-key", bucket="logs")
    logs.put("a", b"x")

    assert DENIED == outcome(rename(logs, "a", "b"))
    assert (b"x", 404) == (logs.get("a").body, logs.head("b").status)


# -- appending -------------------------------------------------------------------------------------


def append(s3: Client, key: str, data: bytes, offset: object, **headers: str) -> Reply:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return s3.put(key, data, {"x-amz-write-offset-bytes": str(offset), **given})


def test_an_append_adds_to_the_end(s3: Client) -> None:
    assert 200 == append(s3, "log", b"one\n", 0, x_amz_meta_a="1").status
    second = append(s3, "log", b"two\n", 4, x_amz_meta_a="2")
    got = s3.get("log")

    assert (200, "8") == (second.status, second.headers["x-amz-object-size"])
    assert (b"one\ntwo\n", "1") == (got.body, got.headers["x-amz-meta-a"])
    assert second.etag == got.etag


def test_an_object_begun_by_an_append_keeps_its_checksum(s3: Client) -> None:
    def crc(data: bytes) -> str:
        return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()

    first = append(s3, "log", b"one\n", 0, x_amz_checksum_crc32=crc(b"one\n"))
    append(s3, "log", b"two\n", 4)
    shown = s3.head("log", {"x-amz-checksum-mode": "ENABLED"}).headers

    assert crc(b"one\n") == first.headers["x-amz-checksum-crc32"]
    assert crc(b"one\ntwo\n") == shown["x-amz-checksum-crc32"]
    assert "FULL_OBJECT" == shown["x-amz-checksum-type"]


@pytest.mark.parametrize("offset", ["0", "2", "4", "-1", "x", "3.0", ""])
def test_an_append_elsewhere_than_the_end_is_refused(s3: Client, offset: str) -> None:
    s3.put("log", b"one")

    assert (400, "InvalidWriteOffset") == outcome(append(s3, "log", b"two", offset))
    assert b"one" == s3.get("log").body


def test_an_append_is_verified_and_conditional(s3: Client) -> None:
    s3.put("log", b"one")
    wrong = append(s3, "log", b"two", 3, content_md5="AAAAAAAAAAAAAAAAAAAAAA==")
    unmatched = append(s3, "log", b"two", 3, if_match='"0"')
    only_new = append(s3, "log", b"two", 3, if_none_match="*")

    assert ["BadDigest", "PreconditionFailed", "PreconditionFailed"] == [
        reply.error for reply in (wrong, unmatched, only_new)
    ]
    assert b"one" == s3.get("log").body
    assert 200 == append(s3, "log", b"two", 3, if_match=s3.head("log").headers["etag"]).status
    assert b"onetwo" == s3.get("log").body


def test_an_append_to_a_damaged_object_is_refused(server: Server, s3: Client) -> None:
    """A fresh MD5 over the damage would hide it for ever."""
    s3.put("k", b"0123456789")
    flip(server.data / s3.bucket / "k", 3)
    reply = s3.put("k", b"+", {"x-amz-write-offset-bytes": "10"})

    assert (500, "InternalError") == outcome(reply)
    assert b"0122456789" == s3.get("k").body


def test_nothing_else_is_an_append(s3: Client) -> None:
    s3.put("k", b"old")
    upload = s3.post("m", query="uploads").element("UploadId")
    offset, source = {"x-amz-write-offset-bytes": "3"}, {"x-amz-copy-source": f"{s3.bucket}/k"}
    for reply in (s3.put("k", b"", {**offset, **source}),
                  s3.put("m", b"x", offset, partNumber=1, uploadId=upload),
                  s3.put("m", b"", {**offset, **source}, partNumber=1, uploadId=upload)):
        assert (501, "NotImplemented") == outcome(reply)
    assert b"old" == s3.get("k").body


def test_racing_appends_lose_nothing(s3: Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    s3.put("log", b"")

    def add(number: int) -> None:
        while True:
            size = int(s3.head("log").headers["content-length"])
            reply = append(s3, "log", b"%02d," % number, size)
            if reply.status == 200:
                return
            assert reply.error in ("InvalidWriteOffset", "OperationAborted"), reply.body

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))

    found = s3.get("log").body.decode().strip(",").split(",")
    assert [f"{n:02}" for n in range(12)] == sorted(found)
