"""The disk guard: a quota and min_free are kept, whoever writes and however the server ended."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Serve, Server
from signing_client import UNSIGNED, Client, Reply

import s3mini

KIB, MIB = 1024, 1024**2
QUOTA = 100 * KIB

KEYS = """\
[SERVER]
durability = none
log = none
workers = 1

[media]
access_key = media-key
secret_key = media-secret-0123456789abcdef
"""


def limited(**options: object) -> str:
    """The INI with these options for the bucket."""
    lines = {"quota": "100K", **options}
    return KEYS + "".join(f"{name} = {value}\n" for name, value in lines.items())


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(limited())


@pytest.fixture
def s3(server: Server) -> Client:
    return server.client(bucket="media")


def pieces(size: int) -> list[bytes]:
    """A body whose length nobody announces."""
    return [b"x" * min(KIB, size - start) for start in range(0, size, KIB)]


def is_over(reply: Reply) -> bool:
    return (reply.status, reply.error) == (403, "QuotaExceeded")


def room_left(s3: Client) -> int:
    """How many bytes fit by now, found by trying, to the KiB; nothing is left behind."""
    low, high = 0, 2 * QUOTA // KIB
    while low < high:
        middle = (low + high + 1) // 2
        fits = s3.put("probe", pieces(middle * KIB)).status == 200
        if fits:
            assert s3.delete("probe").status == 204
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * KIB


def begin(s3: Client, key: str) -> str:
    return s3.post(key, uploads="").element("UploadId")


def add_part(s3: Client, key: str, upload: str, number: int, data: bytes) -> Reply:
    return s3.put(key, data, partNumber=number, uploadId=upload)


def complete(s3: Client, key: str, upload: str, *etags: str) -> Reply:
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
    return s3.post(key, body, uploadId=upload)


def delete_all(s3: Client, document: bytes) -> Reply:
    digest = base64.b64encode(hashlib.md5(document).digest()).decode()
    return s3.post("", document, {"content-md5": digest}, query="delete")


def bytes_held(server: Server) -> int:
    """What `du` would say of the objects, the kept versions and the parts."""
    root = server.data / "media"
    files = [path for path in root.rglob("*") if path.is_file()]
    room = [".s3mini"]
    return sum(
        path.stat().st_size
        for path in files
        if not path.name.endswith(".s3mini.json")
        and path.suffix != ".json"
        and (
            path.relative_to(root).parts[:1] != (room[0],)
            or path.relative_to(root).parts[1] in ("uploads", "versions")
        )
    )


# -- the quota -------------------------------------------------------------------------------------


def test_what_fits_exactly_is_stored_and_one_byte_more_is_not(s3: Client) -> None:
    assert 200 == s3.put("full", b"x" * QUOTA).status
    assert is_over(s3.put("more", b"x"))
    assert 404 == s3.get("more").status
    assert 200 == s3.put("empty", b"").status


@pytest.mark.parametrize("way", ["put", "append", "part"])
def test_an_announced_length_is_refused_before_the_body_is_read(
    server: Server, s3: Client, way: str
) -> None:
    s3.put("large", b"x" * KIB)
    path, length = "/media/large", str(QUOTA + 1)
    more = {"x-amz-write-offset-bytes": str(KIB)} if way == "append" else {}
    upload = s3.post("large", query="uploads").element("UploadId")
    query = [("partNumber", "1"), ("uploadId", upload)] if way == "part" else []
    sending = s3.sign("PUT", path, query, {"expect": "100-continue", **more}, UNSIGNED)
    connection = http.client.HTTPConnection(server.address, timeout=20)
    path += "?" + "&".join(f"{name}={value}" for name, value in query)
    connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
    for name, value in {**sending, "content-length": length}.items():
        connection.putheader(name, value)
    connection.endheaders()  # and not a byte of the body
    got = connection.getresponse()
    body = got.read()
    connection.close()

    assert 403 == got.status
    assert b"<Code>QuotaExceeded</Code>" in body


def test_a_length_that_was_not_announced_is_refused_at_the_end(s3: Client) -> None:
    assert is_over(s3.put("large", pieces(QUOTA + KIB)))
    assert 404 == s3.get("large").status
    assert 200 == s3.put("small", pieces(QUOTA)).status


def test_a_refused_write_leaves_the_old_object(s3: Client) -> None:
    s3.put("a", b"old", {"x-amz-meta-n": "old"})

    assert is_over(s3.put("a", pieces(QUOTA + KIB), {"x-amz-meta-n": "new"}))
    got = s3.get("a")
    assert (b"old", "old") == (got.body, got.headers["x-amz-meta-n"])


def test_a_delete_gives_back(s3: Client) -> None:
    s3.put("a", b"x" * QUOTA)
    assert is_over(s3.put("b", b"x"))

    s3.delete("a")
    assert 200 == s3.put("b", b"x" * QUOTA).status


def test_a_delete_of_many_gives_back(s3: Client) -> None:
    for name in "abcd":
        assert 200 == s3.put(name, b"x" * (QUOTA // 4)).status
    rows = "".join(f"<Object><Key>{name}</Key></Object>" for name in "abcd")
    assert 200 == delete_all(s3, f"<Delete>{rows}</Delete>".encode()).status

    assert QUOTA == room_left(s3)


def test_an_overwrite_gives_back(s3: Client) -> None:
    s3.put("a", b"x" * (80 * KIB))
    s3.put("a", b"x" * (10 * KIB))

    assert 90 * KIB == room_left(s3)


@pytest.mark.parametrize("announced", [True, False])
def test_a_full_bucket_may_be_overwritten_with_as_much(s3: Client, announced: bool) -> None:
    s3.put("a", b"x" * QUOTA)

    body = b"y" * QUOTA if announced else pieces(QUOTA)
    assert 200 == s3.put("a", body).status
    assert is_over(s3.put("a", pieces(QUOTA + KIB)))


def test_an_append_counts_what_is_added(s3: Client) -> None:
    s3.put("a", b"x" * (40 * KIB))

    offset = {"x-amz-write-offset-bytes": str(40 * KIB)}
    assert 200 == s3.put("a", b"y" * (40 * KIB), offset).status
    assert 20 * KIB == room_left(s3)


def test_a_copy_counts(s3: Client) -> None:
    s3.put("a", b"x" * (60 * KIB))

    assert is_over(s3.put("b", b"", {"x-amz-copy-source": "/media/a"}))
    assert 404 == s3.get("b").status
    s3.put("a", b"x" * (30 * KIB))
    assert 200 == s3.put("b", b"", {"x-amz-copy-source": "/media/a"}).status
    assert 40 * KIB == room_left(s3)


def test_a_rename_counts_nothing_and_gives_back_what_it_replaces(s3: Client) -> None:
    s3.put("a", b"x" * (40 * KIB))
    s3.put("b", b"y" * (50 * KIB))

    renamed = s3.put("b", b"", {"x-amz-rename-source": "/media/a"}, renameObject="")
    assert 200 == renamed.status
    assert 60 * KIB == room_left(s3)


def test_parts_count(s3: Client) -> None:
    upload = begin(s3, "m")
    assert 200 == add_part(s3, "m", upload, 1, b"x" * (60 * KIB)).status

    assert is_over(add_part(s3, "m", upload, 2, b"x" * (60 * KIB)))
    assert 40 * KIB == room_left(s3)


def test_a_part_sent_again_counts_for_what_lies_there(s3: Client) -> None:
    """The first stays in its place in the object to be, those behind it replace one another."""
    upload = begin(s3, "m")
    for _ in range(4):
        etag = add_part(s3, "m", upload, 1, b"x" * (30 * KIB)).etag

    assert 40 * KIB == room_left(s3)
    assert 200 == complete(s3, "m", upload, etag).status
    assert 70 * KIB == room_left(s3)


@pytest.mark.parametrize("ends", ["abort", "complete"])
def test_what_a_refused_part_leaves_behind_is_counted(s3: Client, ends: str) -> None:
    """Ten times 6 MiB came to lie in a bucket of 20, and nobody knew."""
    upload = begin(s3, "m")
    wrong = {"content-md5": base64.b64encode(bytes(16)).decode()}
    for number in (1, 2, 3, 4):
        body = b"x" * (20 * KIB)
        refused = s3.put("m", body, wrong, query={"partNumber": number, "uploadId": upload})
        assert "BadDigest" == refused.error
    assert is_over(add_part(s3, "m", upload, 1, b"x" * (50 * KIB)))
    etag = add_part(s3, "m", upload, 1, b"x").etag

    assert 19 * KIB == room_left(s3)
    if ends == "abort":
        assert 204 == s3.delete("m", uploadId=upload).status
        assert QUOTA == room_left(s3)
    else:
        assert 200 == complete(s3, "m", upload, etag).status
        assert QUOTA - KIB == room_left(s3)


def test_what_parts_left_behind_is_counted_at_the_start_too(serve: Serve) -> None:
    server = serve(limited())
    s3 = server.client(bucket="media")
    upload = begin(s3, "m")
    for data in (b"x" * (60 * KIB), b"y"):
        assert 200 == add_part(s3, "m", upload, 1, data).status
    server.stop()
    server.start()

    assert 39 * KIB == room_left(server.client(bucket="media"))


def test_an_abort_gives_back(s3: Client) -> None:
    upload = begin(s3, "m")
    add_part(s3, "m", upload, 1, b"x" * (60 * KIB))
    s3.delete("m", uploadId=upload)

    assert QUOTA == room_left(s3)


def test_completing_counts_what_the_parts_have_counted_already(s3: Client) -> None:
    upload = begin(s3, "m")
    etag = add_part(s3, "m", upload, 1, b"x" * (60 * KIB)).etag

    assert 200 == complete(s3, "m", upload, etag).status
    assert 40 * KIB == room_left(s3)


def test_kept_versions_count(serve: Serve) -> None:
    s3 = serve(limited(keep="7d")).client(bucket="media")
    s3.put("a", b"x" * (40 * KIB))
    s3.put("a", b"y" * (40 * KIB))
    s3.delete("a")

    assert is_over(s3.put("b", b"z" * (40 * KIB)))
    assert 200 == s3.put("b", b"z" * (20 * KIB)).status


def test_a_refused_overwrite_keeps_no_version(serve: Serve) -> None:
    server = serve(limited(keep="7d"))
    s3 = server.client(bucket="media")
    s3.put("a", b"x" * (60 * KIB))

    for _ in range(3):
        assert is_over(s3.put("a", pieces(60 * KIB)))
    assert 60 * KIB == bytes_held(server)
    assert 200 == s3.put("b", b"y" * (40 * KIB)).status


def test_every_name_is_counted_after_a_restart(server: Server, s3: Client) -> None:
    for key in ("data.json", "folder/.hidden", "folder/a//b", "x.s3mini.json", "50%"):
        assert 200 == s3.put(key, b"x" * (20 * KIB)).status
    server.stop()
    server.start()
    s3 = server.client(bucket="media")

    assert is_over(s3.put("more", b"x"))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_count_is_right_after_a_restart(serve: Serve, end: str) -> None:
    server = serve(limited(keep="7d"))
    s3 = server.client(bucket="media")
    s3.put("a", b"x" * (20 * KIB))
    s3.put("a", b"x" * (10 * KIB))
    add_part(s3, "m", begin(s3, "m"), 1, b"x" * (15 * KIB))
    (server.data / "media" / "by-hand").write_bytes(b"x" * (5 * KIB))
    getattr(server, end)()
    server.start()
    s3 = server.client(bucket="media")

    assert is_over(s3.put("b", pieces(51 * KIB)))
    assert 200 == s3.put("b", pieces(50 * KIB)).status


def test_a_kill_while_many_write_leaves_the_right_count(serve: Serve) -> None:
    server = serve(limited(), workers=2)
    s3 = server.client(bucket="media")
    enough = threading.Semaphore(0)

    def write(name: str) -> None:
        number = 0
        try:
            while True:
                s3.put(f"{name}{number % 5}", b"x" * (3 * KIB + number))
                enough.release()
                number += 1
        except OSError:
            return  # it was killed

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for _ in range(60):
        enough.acquire()
    server.kill()
    for thread in threads:
        thread.join()
    server.start()
    s3 = server.client(bucket="media")
    held = bytes_held(server)

    assert QUOTA - held - KIB < room_left(s3) <= QUOTA - held


@pytest.mark.parametrize("announced", [True, False])
def test_racing_workers_never_exceed_it(serve: Serve, announced: bool) -> None:
    server = serve(limited(), workers=3)
    s3 = server.client(bucket="media")
    stored: list[int] = []
    start = threading.Barrier(8)

    def write(name: str) -> None:
        start.wait()
        for number in range(6):
            body = b"x" * (5 * KIB) if announced else pieces(5 * KIB)
            reply = s3.put(f"{name}/{number}", body)
            assert reply.status == 200 or is_over(reply)
            if reply.status == 200:
                stored.append(5 * KIB)

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert QUOTA == sum(stored) == bytes_held(server)


def test_racing_overwrites_and_deletes_do_not_lose_count(serve: Serve) -> None:
    server = serve(limited(), workers=3)
    s3 = server.client(bucket="media")

    def write(seed: int) -> None:
        for number in range(15):
            s3.put(f"k{(seed + number) % 3}", b"x" * (KIB * (1 + (seed * 7 + number) % 9)))
            if number % 4 == seed % 4:
                s3.delete(f"k{number % 3}")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert QUOTA - bytes_held(server) == room_left(s3)


def test_a_put_over_the_quota_reads_nothing_of_an_object_that_would_be_kept(tmp_path: Path) -> None:
    """The quota gets nothing back for it: an answer need not wait for a file put there by hand."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), quota=1, keep=60)
    store.create()
    (tmp_path / "b/k").write_bytes(b"by hand")
    body = s3mini.Body(io.BytesIO(b"more"), s3mini.Promise(length=4))
    with pytest.raises(s3mini.S3Error, match="quota"):
        store.put("k", body, lambda: s3mini.Entry(0, "", "", 0), s3mini.no_check)

    assert [".s3mini", "k"] == sorted(os.listdir(store.root))


def test_a_bucket_without_a_quota_has_no_limit(serve: Serve) -> None:
    s3 = serve(limited(quota="0")).client(bucket="media")

    assert 200 == s3.put("large", b"x" * (3 * QUOTA)).status


@pytest.mark.parametrize("first", ["get", "put", "delete", "refused", "rename"])
def test_a_file_put_there_by_hand_gives_back_what_was_counted(
    server: Server, s3: Client, first: str
) -> None:
    s3.put("a", b"x" * (40 * KIB))
    (server.data / "media" / "by-hand").write_bytes(b"x" * (50 * KIB))
    if first == "get":
        s3.get("by-hand")
        assert 10 * KIB == room_left(s3)
    elif first == "refused":
        s3.put("by-hand", b"x", {"if-none-match": "*"})
        s3.put("by-hand", b"x", {"if-none-match": "*"})
        assert 10 * KIB == room_left(s3)
    elif first == "put":
        assert 200 == s3.put("by-hand", b"x" * (50 * KIB)).status
        assert 10 * KIB == room_left(s3)
    elif first == "rename":
        s3.put("by-hand", b"", {"x-amz-rename-source": "/media/a"}, renameObject="")
        assert 60 * KIB == room_left(s3)
        return
    s3.delete("by-hand")

    assert 60 * KIB == room_left(s3)


def test_a_file_that_was_counted_at_the_start_is_not_counted_again(
    server: Server, s3: Client
) -> None:
    (server.data / "media" / "by-hand").write_bytes(b"x" * (50 * KIB))
    server.stop()
    server.start()
    s3 = server.client(bucket="media")
    s3.get("by-hand")

    assert 50 * KIB == room_left(s3)
    (server.data / "media" / "by-hand").write_bytes(b"x" * (20 * KIB))
    s3.get("by-hand")
    assert 80 * KIB == room_left(s3)


def test_a_bucket_that_cannot_be_tidied_does_not_keep_the_others_from_being_served(
    serve: Serve,
) -> None:
    other = "\n[other]\naccess_key = other-key\nsecret_key = other-secret-0123456789abcdef\n"
    server = serve(limited() + other)
    server.stop()
    uploads = server.data / "media" / ".s3mini" / "uploads"
    uploads.rmdir()
    uploads.touch()
    server.start()

    assert 200 == server.client("other-key", bucket="other").put("a", b"x").status
    assert "s3mini: the bucket 'media' could not be tidied" in server.log


@pytest.mark.parametrize("part", [False, True])
def test_a_body_of_unknown_length_is_refused_when_it_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bool
) -> None:
    """Not when all of it has come: others would meet a full disk meanwhile."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False), quota=8 * MIB)
    store.create()
    upload = s3mini.Upload("0" * 32, "k", 1_600_000_000, s3mini.Entry(0, "", "", 0))
    store.uploads.create(upload)

    def send(body: s3mini.Body) -> None:
        if part:
            store.uploads.put_part(upload, 1, body)
        else:
            store.put("k", body, lambda: s3mini.Entry(0, "", "", 0), s3mini.no_check)

    def attempt() -> int:
        """How much was read of 100 MiB."""
        source = io.BytesIO(bytes(100 * MIB))
        body = s3mini.Body(source, s3mini.Promise())
        with pytest.raises(s3mini.S3Error) as refused:
            send(body)
        assert refused.value.code in ("QuotaExceeded", "InsufficientStorage")
        return source.tell()

    assert 8 * MIB <= attempt() < 12 * MIB
    store.quota.limit, store.quota.min_free = 0, MIB

    def statvfs(_: str) -> Any:
        """A disk of 17 MiB, on which nobody else writes."""
        held = sum(p.stat().st_size for p in Path(store.room).rglob("*") if p.is_file())
        return SimpleNamespace(f_frsize=1, f_bavail=17 * MIB - held, f_files=0, f_favail=0)

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(s3mini, "FREE_SECONDS", 0)
    assert 16 * MIB <= attempt() < 22 * MIB
    assert [] == os.listdir(f"{store.room}/tmp")


# -- free space ------------------------------------------------------------------------------------


@pytest.fixture
def full(serve: Serve) -> Server:
    """A server whose disk has less free space than it must keep; some objects are there."""
    server = serve(limited(quota="0"), min_free=0)
    s3 = server.client(bucket="media")
    for key in ("a", "b", "c"):
        s3.put(key, b"old")
    upload = begin(s3, "m")
    add_part(s3, "m", upload, 1, b"part")
    server.stop()
    text = server.config.read_text().replace("min_free = 0", "min_free = 900000T")
    server.config.write_text(text)
    server.start()
    return server


def test_a_disk_that_is_nearly_full_refuses_writes(full: Server) -> None:
    s3 = full.client(bucket="media")
    answers = {
        "put": s3.put("new", b"x"),
        "overwrite": s3.put("a", b"x"),
        "chunked": s3.put("new", pieces(2 * KIB)),
        "copy": s3.put("new", b"", {"x-amz-copy-source": "/media/a"}),
    }

    wanted = (507, "InsufficientStorage")
    assert {n: (r.status, r.error) for n, r in answers.items()} == dict.fromkeys(answers, wanted)
    assert b"old" == s3.get("a").body
    assert [] == os.listdir(full.data / "media" / ".s3mini" / "tmp")


def test_a_part_of_unknown_length_keeps_the_free_space_too(tmp_path: Path) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    store.create()
    upload = s3mini.Upload("0" * 32, "m", 1_600_000_000, s3mini.Entry(0, "", "", 0))
    store.uploads.create(upload)

    class Source:
        """The disk fills up while it arrives."""

        def read(self, _: int) -> bytes:
            store.quota.min_free, left = 2**62, store.quota.min_free
            return b"" if left else b"part"

    with pytest.raises(s3mini.S3Error, match="free space"):
        store.uploads.put_part(upload, 1, s3mini.Body(Source(), s3mini.Promise()))
    assert [] == store.uploads.parts(upload)


def test_a_full_disk_refuses_before_the_body_is_read(full: Server) -> None:
    s3 = full.client(bucket="media")
    sending = s3.sign("PUT", "/media/new", [], {"expect": "100-continue"}, UNSIGNED)
    connection = http.client.HTTPConnection(full.address, timeout=20)
    connection.putrequest("PUT", "/media/new", skip_host=True, skip_accept_encoding=True)
    for name, value in {**sending, "content-length": str(10 * MIB)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    got = connection.getresponse()  # a 100 would be skipped here, and then nothing would come
    body = got.read()
    connection.close()

    assert 507 == got.status
    assert b"<Code>InsufficientStorage</Code>" in body


def test_a_full_disk_still_deletes(full: Server) -> None:
    s3 = full.client(bucket="media")
    many = b"<Delete><Object><Key>b</Key></Object><Object><Key>c</Key></Object></Delete>"
    upload = s3.get(uploads="").element("UploadId")

    assert 204 == s3.delete("a").status
    assert 200 == delete_all(s3, many).status
    assert 204 == s3.delete("m", uploadId=upload).status
    assert [] == s3.get(list_type=2).elements("Key")


def test_a_delete_works_over_the_quota_too(serve: Serve) -> None:
    server = serve(limited(quota="0", keep="7d"))
    s3 = server.client(bucket="media")
    s3.put("a", b"x" * QUOTA)
    s3.put("b", b"x" * QUOTA)
    server.stop()
    server.config.write_text(server.config.read_text().replace("quota = 0", "quota = 100K"))
    server.start()
    s3 = server.client(bucket="media")

    assert is_over(s3.put("c", b"x"))
    assert 204 == s3.delete("a").status
    assert 204 == s3.delete("b").status
    assert 2 == len(list(kept_files(server.data / "media")))


def kept_files(bucket: Path) -> list[Path]:
    found = (bucket / ".s3mini" / "versions").rglob("*")
    return [path for path in found if path.suffix == "" and path.is_file()]
