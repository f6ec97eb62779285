"""Multipart uploads: parts in any order become one object, or nothing."""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import http.client
import io
import json
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable
from xml.etree import ElementTree

import pytest
from conftest import Server
from powercut import body_of, entry_of
from signing_client import UNSIGNED, Client, Reply

import s3mini

MIB = 1024**2
PART = 5 * MIB  # bytes, the least that a part may have which is not the last


@functools.lru_cache(8)
def content(seed: int, size: int = PART) -> bytes:
    return random.Random(seed).randbytes(size)


def create(s3: Client, key: str, **headers: str) -> str:
    """The id of a new upload."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = s3.post(key, b"", named, query="uploads")
    assert reply.status == 200, reply.body
    assert (s3.bucket, key) == (reply.element("Bucket"), reply.element("Key"))
    return reply.element("UploadId")


def send(s3: Client, key: str, upload: str, number: Any, data: bytes, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    query = {"partNumber": number, "uploadId": upload}
    return s3.put(key, data, named, payload=UNSIGNED, query=query)


def complete(
    s3: Client,
    key: str,
    upload: str,
    parts: Iterable[tuple[int, str]],
    extra: str = "",
    **headers: str,
) -> Reply:
    """`parts` are (number, etag); `extra` goes into each <Part>."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return s3.post(key, complete_document(parts, extra), named, uploadId=upload)


def complete_document(parts: Iterable[tuple[int, str]], extra: str = "") -> bytes:
    items = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{etag}&quot;</ETag>{extra}</Part>"
        for n, etag in parts
    )
    return f"<CompleteMultipartUpload>{items}</CompleteMultipartUpload>".encode()


def complete_with_sums(
    s3: Client, key: str, upload: str, algorithm: str, parts: Iterable[tuple[str, str]]
) -> Reply:
    """`parts` are (etag, checksum)."""
    items = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag>"
        f"<Checksum{algorithm}>{value}</Checksum{algorithm}></Part>"
        for n, (etag, value) in enumerate(parts, 1)
    )
    body = f"<CompleteMultipartUpload>{items}</CompleteMultipartUpload>".encode()
    return s3.post(key, body, uploadId=upload)


def store(s3: Client, key: str, pieces: list[bytes], **headers: str) -> Reply:
    """The whole life of an upload with these parts."""
    upload = create(s3, key, **headers)
    etags = [send(s3, key, upload, n, piece).etag for n, piece in enumerate(pieces, 1)]
    reply = complete(s3, key, upload, enumerate(etags, 1))
    assert reply.status == 200, reply.body
    return reply


def etag_of(pieces: list[bytes]) -> str:
    digests = b"".join(hashlib.md5(piece).digest() for piece in pieces)
    return f"{hashlib.md5(digests).hexdigest()}-{len(pieces)}"


def uploads_on_disk(server: Server, s3: Client) -> list[str]:
    return os.listdir(server.data / s3.bucket / ".s3mini/uploads")


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


# -- the whole life --------------------------------------------------------------------------------


def test_parts_become_one_object(server: Server, s3: Client) -> None:
    pieces = [content(1), content(2, PART + 12345), b"the end"]
    reply = store(s3, "d/k", pieces)
    got = s3.get("d/k")

    assert f'"{etag_of(pieces)}"' == reply.element("ETag")
    assert f"http://{server.address}/{s3.bucket}/d/k" == reply.element("Location")
    assert (b"".join(pieces), etag_of(pieces)) == (got.body, got.etag)
    assert b"".join(pieces) == (server.data / s3.bucket / "d/k").read_bytes()
    assert [] == uploads_on_disk(server, s3)
    assert [f'"{etag_of(pieces)}"'] == s3.get(list_type=2).elements("ETag")


def test_a_single_small_part_is_enough(s3: Client) -> None:
    store(s3, "k", [b"x"])

    assert (b"x", etag_of([b"x"])) == (s3.get("k").body, s3.get("k").etag)


def test_parts_may_come_in_any_order_in_parallel_and_with_gaps(s3: Client) -> None:
    pieces = {10_000: b"last", 7: content(1), 2: content(2), 500: content(3)}
    upload = create(s3, "k")
    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda n: (n, send(s3, "k", upload, n, pieces[n]).etag), pieces))
    reply = complete(s3, "k", upload, sorted(sent))

    ordered = [pieces[n] for n in sorted(pieces)]
    assert f'"{etag_of(ordered)}"' == reply.element("ETag")
    assert b"".join(ordered) == s3.get("k").body


def test_a_part_sent_again_takes_the_place_of_the_first(s3: Client) -> None:
    upload = create(s3, "k")
    first = send(s3, "k", upload, 1, b"first").etag
    second = send(s3, "k", upload, 1, b"second").etag

    assert "InvalidPart" == complete(s3, "k", upload, [(1, first)]).error
    assert 200 == complete(s3, "k", upload, [(1, second)]).status
    assert b"second" == s3.get("k").body


def test_who_names_a_part_or_an_upload_that_is_gone_is_told_what_may_have_become_of_it(
    s3: Client,
) -> None:
    """In AWS's words: some look for them."""
    upload = create(s3, "k")
    part = complete(s3, "k", upload, [(1, "0" * 32)])
    s3.delete("k", uploadId=upload)

    assert "The part might not have been uploaded" in part.element("Message")
    assert "may have been aborted or completed" in s3.get("k", uploadId=upload).element("Message")


def test_parts_that_are_not_named_are_left_out(server: Server, s3: Client) -> None:
    upload = create(s3, "k")
    etags = [send(s3, "k", upload, n, data).etag for n, data in ((1, b"a"), (2, b"b"), (3, b"c"))]
    complete(s3, "k", upload, [(2, etags[1])])

    assert (b"b", []) == (s3.get("k").body, uploads_on_disk(server, s3))


def test_nothing_is_seen_before_the_end(s3: Client) -> None:
    s3.put("k", b"old")
    upload = create(s3, "k")
    send(s3, "k", upload, 1, b"new")
    create(s3, "other")

    assert (b"old", ["k"]) == (s3.get("k").body, s3.get(list_type=2).elements("Key"))


def test_the_object_has_the_metadata_of_create(s3: Client) -> None:
    given = {"content_type": "video/mp4", "cache_control": "no-store", "x_amz_meta_a": "1"}
    store(s3, "k", [b"x"], **given)
    headers = s3.head("k").headers

    assert ("video/mp4", "no-store", "1") == (
        headers["content-type"],
        headers["cache-control"],
        headers["x-amz-meta-a"],
    )


def test_metadata_over_2_kb_is_refused_at_create(s3: Client) -> None:
    reply = s3.post("k", b"", {"x-amz-meta-a": "v" * 2048}, query="uploads")

    assert (400, "MetadataTooLarge") == (reply.status, reply.error)


def test_the_sidecar_keeps_the_md5_of_every_part(server: Server, s3: Client) -> None:
    pieces = [content(1), b"x"]
    store(s3, "k", pieces)
    told = json.loads((server.data / s3.bucket / ".k.s3mini.json").read_text())["current"]

    assert [f"{len(p)} {hashlib.md5(p).hexdigest()}" for p in pieces] == told["parts"]


def test_a_repeated_complete_is_answered_again(s3: Client) -> None:
    upload = create(s3, "k")
    etag = send(s3, "k", upload, 1, b"x").etag
    first, second = (complete(s3, "k", upload, [(1, etag)]) for _ in range(2))

    assert (200, first.element("ETag")) == (second.status, second.element("ETag"))
    for parts in ([(1, "0" * 32)], [(2, etag)], [(1, etag), (2, etag)]):
        expected = 200 if parts == [(2, etag)] else 404  # of the numbers nothing is kept
        assert expected == complete(s3, "k", upload, parts).status
    s3.put("k", b"newer")
    assert "NoSuchUpload" == complete(s3, "k", upload, [(1, etag)]).error
    assert b"newer" == s3.get("k").body


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_complete_that_was_killed_behind_its_commit_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    """Its own object is no reason to refuse it, and the quota gets each byte back once."""
    data = b"joined"
    for end in ("complete", "abort"):
        store = s3mini.Store(str(tmp_path / end), s3mini.Disk(durable=False), quota=10**6)
        store.create()
        store.count()
        upload = s3mini.Upload("0" * 32, "m", 1_600_000_000, entry_of(b"", "joined"))
        entry = entry_of(data, "joined", upload=upload.id)
        store.uploads.create(upload)
        store.uploads.put_part(upload, 1, body_of(data))

        def only_once(old: Any) -> None:
            if old:
                raise s3mini.S3Error("PreconditionFailed")

        arguments = (upload, lambda parts: parts, lambda _, e=entry: e, only_once)
        with monkeypatch.context() as patch:
            patch.setattr(store.uploads, "_remove", killed)
            with pytest.raises(InterruptedError):
                store.uploads.complete(*arguments)
        if is_restarted:
            store.count()
        if end == "complete":
            assert entry.etag == store.uploads.complete(*arguments).etag
        else:
            store.uploads.abort(upload)

        assert [] == store.uploads.all()
        with store.quota.usage() as fd:
            assert len(data) == store.held() == s3mini.read_number(fd)


def killed(*_: Any) -> None:
    raise InterruptedError


@pytest.mark.parametrize("expire", [0, 10**9])
def test_what_a_killed_complete_left_does_not_outlast_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expire: int
) -> None:
    """Its parts are the object's bytes: they would stay on the disk, and be given back twice."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False), quota=10**6)
    store.create()
    for number in "01":
        upload = s3mini.Upload(number * 32, number, 1_600_000_000, entry_of(b"", "joined"))
        store.uploads.create(upload)
        store.uploads.put_part(upload, 1, body_of(b"joined"))
    entry = entry_of(b"joined", "joined", upload=upload.id)
    with monkeypatch.context() as patch:
        patch.setattr(store.uploads, "_remove", killed)
        with pytest.raises(InterruptedError):
            store.uploads.complete(upload, lambda parts: parts, lambda _: entry, s3mini.no_check)
    store = s3mini.Store(store.root, s3mini.Disk(durable=False), quota=10**6)
    store.clean(expire)
    store.count()

    assert ["0"] == [left.key for left in store.uploads.all()]
    assert 1 == os.stat(tmp_path / "b" / "1").st_nlink
    store.delete("1", s3mini.no_check)
    store.clean(1)
    with store.quota.usage() as fd:
        assert 0 == store.held() == s3mini.read_number(fd)


def test_a_complete_that_is_sent_again_syncs_what_the_first_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was killed between its commit and the folder's fsync. Then the parts go."""
    store = s3mini.Store(str(tmp_path / "bucket"), s3mini.Disk(durable=False))
    store.create()
    upload = s3mini.Upload("0" * 32, "d/m", 1_600_000_000, entry_of(b"", "joined"))
    entry = entry_of(b"joined", "joined", upload=upload.id)
    store.uploads.create(upload)
    store.uploads.put_part(upload, 1, body_of(b"joined"))
    complete = functools.partial(store.uploads.complete, upload, lambda parts: parts,
                                 lambda _: entry, s3mini.no_check)
    calls: list[str] = []
    rename, sync_folder, unlink = (
        getattr(store.disk, name) for name in ("rename", "sync_folder", "unlink"))

    def kill_behind(path: str, folder: s3mini.Folder, name: str) -> None:
        rename(path, folder, name)
        if name == "m":
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(store.disk, "rename", kill_behind)
        with pytest.raises(InterruptedError):
            complete()
    monkeypatch.setattr(store.disk, "sync_folder", lambda folder: (
        calls.append(os.path.basename(folder.path)), sync_folder(folder)))
    monkeypatch.setattr(store.disk, "unlink", lambda folder, name: (
        calls.append(name), unlink(folder, name)))

    assert entry.etag == complete().etag
    assert ["d", "upload.json"] == calls[:2]


@pytest.mark.parametrize(
    ("why", "code", "told"),
    [
        (OSError(errno.ENOSPC, "full"), "InsufficientStorage", "full"),
        (s3mini.S3Error("PreconditionFailed"), "PreconditionFailed", ""),
        (RuntimeError("a bug"), "InternalError", "Traceback"),
        (None, "", ""),
    ],
)
@pytest.mark.parametrize("operation", ["complete", "copy", "copy of a part"])
def test_what_takes_long_is_a_200_and_then_what_came_of_it(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, operation: str, why: Any, code: str, told: str
) -> None:
    """White space until then: no client or proxy gives up meanwhile."""
    monkeypatch.setattr(s3mini, "PATIENCE_SECONDS", 0.05)
    logged: list[Any] = []
    with s3mini.start("media") as fake:
        fake._server.log = logged.append
        s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        s3.put("source", b"x")
        upload = create(s3, "k")
        etag = send(s3, "k", upload, 1, b"x").etag

        owner, name = {
            "complete": (s3mini.Uploads, "complete"), "copy": (s3mini.Store, "put"),
            "copy of a part": (s3mini.Uploads, "put_part"),
        }[operation]
        plain = getattr(owner, name)

        has_begun, send_pieces = threading.Event(), s3mini.Connection.send_pieces

        def slow(*arguments: Any) -> Any:
            assert has_begun.wait(20)
            time.sleep(0.1)
            if why:
                raise why
            return plain(*arguments)

        def begin(*arguments: Any) -> None:
            has_begun.set()
            send_pieces(*arguments)

        monkeypatch.setattr(s3mini.Connection, "send_pieces", begin)

        monkeypatch.setattr(owner, name, slow)
        source = {"x-amz-copy-source": "media/source"}
        reply = {
            "complete": lambda: complete(s3, "k", upload, [(1, etag)]),
            "copy": lambda: s3.put("copy", b"", source),
            "copy of a part": lambda: s3.put("k", b"", source, partNumber=2, uploadId=upload),
        }[operation]()

    assert (200, code) == (reply.status, reply.error)
    assert b"?>\n " in reply.body
    assert code or reply.element("ETag")
    assert (code or "-") == logged[-1]["code"]
    assert told in capfd.readouterr().err


def test_a_copy_is_made_where_no_more_threads_are_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        s3.put("source", b"x")
        start, is_ours = threading.Thread.start, "answer_in_time"

        def refuse(thread: threading.Thread) -> None:
            if is_ours in repr(thread._target):  # type: ignore[attr-defined]
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        reply = s3.put("copy", b"", {"x-amz-copy-source": "media/source"})

        assert (200, b"x") == (reply.status, s3.get("copy").body)


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_who_leaves_a_copy_keeps_his_place_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, expect: str
) -> None:
    """Else nothing would bound the copies under way, and no log would tell what came of them."""
    monkeypatch.setattr(s3mini, "PATIENCE_SECONDS", 0.05)
    logged: list[Any] = []
    with s3mini.start("media") as fake:
        fake._server.log = logged.append
        address = fake.endpoint.partition("//")[2]
        s3 = Client(address, fake.access_key, fake.secret_key, "media")
        s3.put("source", b"x")
        go_on = threading.Event()

        def slow(*_: Any) -> Any:
            go_on.wait(20)
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(s3mini.Store, "put", slow)
        head = s3.sign("PUT", "/media/k", [], {"x-amz-copy-source": "media/source"}, UNSIGNED)
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(f"PUT /media/k HTTP/1.1\r\n{lines}{expect}\r\n".encode())
            if expect:  # it leaves at once, and with a reset
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                assert sock.recv(100).startswith(b"HTTP/1.1 200")
        time.sleep(0.3)
        assert 1 == len(fake._server.connections) - len(fake._server._parked)
        go_on.set()

    assert [("InsufficientStorage", 200)] == [
        (line["code"], line["status"]) for line in logged if line["target"] == "/media/k"]
    assert "full" in capfd.readouterr().err


def test_an_upload_is_aborted_if_it_is_the_one_that_was_meant(s3: Client) -> None:
    upload = s3.post("k", query="uploads").element("UploadId")
    begun = s3.get(query="uploads").element("Initiated")
    moment = datetime.strptime(begun, "%Y-%m-%dT%H:%M:%S.000%z")
    name = "x-amz-if-match-initiated-time"
    other = {name: "Wed, 01 Jan 2020 00:00:00 GMT"}
    same = {name: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")}

    refused = s3.delete("k", other, uploadId=upload)
    assert (412, "PreconditionFailed") == (refused.status, refused.error)
    assert [upload] == s3.get(query="uploads").elements("UploadId")
    assert 204 == s3.delete("k", same, uploadId=upload).status
    assert [] == s3.get(query="uploads").elements("UploadId")


def test_an_aborted_upload_leaves_nothing(server: Server, s3: Client) -> None:
    upload = create(s3, "d/k")
    etag = send(s3, "d/k", upload, 1, content(1)).etag
    aborted = s3.delete("d/k", uploadId=upload)

    assert (204, []) == (aborted.status, uploads_on_disk(server, s3))
    assert [".s3mini"] == os.listdir(server.data / s3.bucket)
    assert [] == os.listdir(server.data / s3.bucket / ".s3mini/tmp")
    for reply in (
        s3.delete("d/k", uploadId=upload),
        send(s3, "d/k", upload, 2, b"late"),
        complete(s3, "d/k", upload, [(1, etag)]),
        s3.get("d/k", uploadId=upload),
    ):
        assert (404, "NoSuchUpload") == (reply.status, reply.error)


def test_two_uploads_of_one_key_do_not_mix(s3: Client) -> None:
    one, two = create(s3, "k"), create(s3, "k")
    etag_one, etag_two = send(s3, "k", one, 1, b"one").etag, send(s3, "k", two, 1, b"two").etag

    refused = complete(s3, "k", one, [(1, etag_two)])
    assert ("InvalidPart", one) == (refused.error, refused.element("UploadId"))
    assert 200 == complete(s3, "k", two, [(1, etag_two)]).status
    assert 200 == complete(s3, "k", one, [(1, etag_one)]).status
    assert b"one" == s3.get("k").body


def test_an_upload_may_end_below_another_object(s3: Client) -> None:
    s3.put("a", b"1")
    store(s3, "a/b", [b"2"])
    store(s3, "c/d", [b"3"])
    store(s3, "c", [b"4"])

    assert [b"1", b"2", b"3", b"4"] == [s3.get(key).body for key in ("a", "a/b", "c/d", "c")]


# -- what is refused -------------------------------------------------------------------------------


def test_every_part_but_the_last_has_5_mib(s3: Client) -> None:
    upload = create(s3, "k")
    sent = [
        (n, send(s3, "k", upload, n, data).etag) for n, data in ((1, content(1)[:-1]), (2, b"x"))
    ]
    reply = complete(s3, "k", upload, sent)

    assert (400, "EntityTooSmall", "1") == (reply.status, reply.error, reply.element("PartNumber"))
    assert str(PART) == reply.element("MinSizeAllowed")
    send(s3, "k", upload, 1, content(1))
    assert 404 == s3.head("k").status


@pytest.mark.parametrize("number", ["0", "10001", "-1", "x", "", "1.0", "99999999999"])
def test_part_numbers_go_from_1_to_10000(s3: Client, number: str) -> None:
    reply = send(s3, "k", create(s3, "k"), number, b"x")

    assert (400, "InvalidArgument") == (reply.status, reply.error)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([2, 1], "InvalidPartOrder"),
        ([1, 1], "InvalidPartOrder"),
        ([0, 1], "InvalidArgument"),
        ([1, 2, 3], "InvalidPart"),
        ([7], "InvalidPart"),
        ([], "MalformedXML"),
    ],
)
def test_a_wrong_list_of_parts_is_refused_and_may_be_sent_again(
    s3: Client, numbers: list[int], code: str
) -> None:
    upload = create(s3, "k")
    etags = {n: send(s3, "k", upload, n, data).etag for n, data in ((1, content(1)), (2, b"x"))}
    refused = complete(s3, "k", upload, [(n, etags.get(n, "0" * 32)) for n in numbers])

    assert (400, code, 404) == (refused.status, refused.error, s3.head("k").status)
    assert 200 == complete(s3, "k", upload, sorted(etags.items())).status


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"<CompleteMultipartUpload>",
        b"<Other/>",
        b"<CompleteMultipartUpload><Part><ETag>x</ETag></Part></CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Part><PartNumber>x</PartNumber></Part></CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><CompleteMultipartUpload/>",
    ],
)
def test_a_list_of_parts_that_is_no_document_is_refused(s3: Client, body: bytes) -> None:
    upload = create(s3, "k")
    send(s3, "k", upload, 1, b"x")
    reply = s3.post("k", body, uploadId=upload)

    assert (400, "MalformedXML") == (reply.status, reply.error)


def test_a_complete_of_nothing_names_no_part(s3: Client) -> None:
    """boto3 sends an empty body where it is given no parts."""
    upload = create(s3, "k")
    send(s3, "k", upload, 1, b"x")
    reply, unknown = s3.post("k", uploadId=upload), s3.post("k", uploadId="x")

    assert (400, "InvalidRequest") == (reply.status, reply.error)
    assert (404, "NoSuchUpload", "x") == (
        unknown.status, unknown.error, unknown.element("UploadId"))


def test_a_plain_object_was_completed_by_nobody(s3: Client) -> None:
    """Not by the upload without an id and without parts: the answer would tell its ETag."""
    s3.put("k", b"x")
    reply = s3.post("k", query="uploadId=")

    assert (404, "NoSuchUpload", "") == (reply.status, reply.error, reply.etag)


def test_a_wrong_order_tells_of_which_upload(s3: Client) -> None:
    upload = create(s3, "k")
    refused = complete(s3, "k", upload, [(2, "0" * 32), (1, "0" * 32)])

    assert ("InvalidPartOrder", upload) == (refused.error, refused.element("UploadId"))


@pytest.mark.parametrize(
    "upload", ["x", "0" * 32, "../../..", "..", "a/b", "\0", "ä", "A" * 32, "0" * 3000, "%", " "]
)
def test_an_id_that_is_none_is_no_such_upload(s3: Client, upload: str) -> None:
    replies = [
        send(s3, "k", upload, 1, b"x"),
        complete(s3, "k", upload, [(1, "0" * 32)]),
        s3.delete("k", uploadId=upload),
        s3.get("k", uploadId=upload),
    ]

    assert [(404, "NoSuchUpload")] * 4 == [(reply.status, reply.error) for reply in replies]


def test_an_id_belongs_to_its_key_and_its_bucket(
    server: Server, s3: Client, bucket_names: Any
) -> None:
    upload = create(s3, "k")
    etag = send(s3, "k", upload, 1, b"x").etag
    another = server.client("test-key", bucket=next(bucket_names))
    another.put()
    for client, key in ((s3, "other"), (s3, "k/"), (another, "k")):
        replies = [
            send(client, key, upload, 1, b"evil"),
            complete(client, key, upload, [(1, etag)]),
            client.delete(key, uploadId=upload),
            client.get(key, uploadId=upload),
        ]
        assert ["NoSuchUpload"] * 4 == [reply.error for reply in replies]

    assert 200 == complete(s3, "k", upload, [(1, etag)]).status


def test_an_upload_needs_a_bucket(server: Server) -> None:
    assert (
        "NoSuchBucket" == server.client("test-key").post("/test-nowhere/k", query="uploads").error
    )


def test_a_part_with_a_wrong_digest_is_not_kept(s3: Client) -> None:
    upload = create(s3, "k")
    for headers, code in (
        ({"content_md5": base64.b64encode(bytes(16)).decode()}, "BadDigest"),
        ({"x_amz_checksum_crc32": crc32(b"y")}, "BadDigest"),
    ):
        assert code == send(s3, "k", upload, 1, b"x", **headers).error

    assert [] == s3.get("k", uploadId=upload).elements("PartNumber")


# -- conditions ------------------------------------------------------------------------------------


def test_complete_obeys_conditions_and_may_be_tried_again(s3: Client) -> None:
    old = s3.put("k", b"old").etag
    upload = create(s3, "k")
    parts = [(1, send(s3, "k", upload, 1, b"new").etag)]
    create_only = complete(s3, "k", upload, parts, if_none_match="*")
    unseen = complete(s3, "k", upload, parts, if_match='"other"')

    assert [(412, "PreconditionFailed")] * 2 == [(r.status, r.error) for r in (create_only, unseen)]
    assert b"old" == s3.get("k").body
    assert 200 == complete(s3, "k", upload, parts, if_match=f'"{old}"').status
    assert b"new" == s3.get("k").body


def test_complete_if_match_on_a_missing_key_is_404(s3: Client) -> None:
    upload = create(s3, "k")
    reply = complete(s3, "k", upload, [(1, send(s3, "k", upload, 1, b"x").etag)], if_match='"x"')

    assert (404, "NoSuchKey") == (reply.status, reply.error)


def test_of_many_uploads_with_create_only_one_wins(s3: Client) -> None:
    uploads = [create(s3, "k") for _ in range(6)]
    etags = [send(s3, "k", upload, 1, b"%d" % n).etag for n, upload in enumerate(uploads)]

    def finish(n: int) -> int:
        return complete(s3, "k", uploads[n], [(1, etags[n])], if_none_match="*").status

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(finish, range(6)))
    assert [200] == [status for status in statuses if status not in (412, 409)]
    assert b"%d" % statuses.index(200) == s3.get("k").body


def test_complete_compares_the_size_it_is_told(s3: Client) -> None:
    upload = create(s3, "k")
    parts = [(1, send(s3, "k", upload, 1, b"12345").etag)]

    for size in ("4", "-5", "five", ""):
        wrong = complete(s3, "k", upload, parts, x_amz_mp_object_size=size)
        assert (400, "InvalidRequest") == (wrong.status, wrong.error)
    assert 200 == complete(s3, "k", upload, parts, x_amz_mp_object_size="5").status


def test_an_object_of_parts_has_its_largest_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3mini, "MAX_OBJECT", PART + 1)
    upload = s3mini.Upload("0" * 32, "k", 0, entry_of(b"", "n"))
    parts = [s3mini.Part(n, 0, "", "", size, "") for n, size in ((1, PART), (2, 1), (3, 2))]
    items = [s3mini.PartItem(part.number, "", {}) for part in parts]

    assert parts[:2] == s3mini.choose_parts(upload, items[:2], parts)
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.choose_parts(upload, items[::2], parts)
    assert "EntityTooLarge" == caught.value.code


# -- what is under way -----------------------------------------------------------------------------


def test_parts_are_listed_page_by_page(s3: Client) -> None:
    upload = create(s3, "d/k")
    etags = {n: send(s3, "d/k", upload, n, b"x" * n).etag for n in (9, 2, 5, 3)}
    whole = s3.get("d/k", uploadId=upload)
    first = s3.get("d/k", uploadId=upload, max_parts=3)
    marker = first.element("NextPartNumberMarker")
    rest = s3.get("d/k", uploadId=upload, max_parts=3, part_number_marker=marker)

    assert ["2", "3", "5", "9"] == whole.elements("PartNumber")
    assert ["2", "3", "5", "9"] == whole.elements("Size")
    assert [f'"{etags[n]}"' for n in (2, 3, 5, 9)] == whole.elements("ETag")
    assert ("d/k", upload, "false") == tuple(
        whole.element(n) for n in ("Key", "UploadId", "IsTruncated")
    )
    assert (["2", "3", "5"], "true", "5") == (
        first.elements("PartNumber"),
        first.element("IsTruncated"),
        marker,
    )
    assert (["9"], "false") == (rest.elements("PartNumber"), rest.element("IsTruncated"))


@pytest.mark.parametrize("name", ["max-parts", "part-number-marker"])
def test_the_numbers_of_a_list_of_parts_are_numbers(s3: Client, name: str) -> None:
    upload = create(s3, "k")

    assert "InvalidArgument" == s3.get("k", query={"uploadId": upload, name: "x"}).error
    assert "InvalidArgument" == s3.get("k", query={"uploadId": upload, name: "-1"}).error


def test_uploads_are_listed_with_prefix_and_delimiter(s3: Client) -> None:
    ids = {key: create(s3, key) for key in ("a/1", "a/2", "b", "ä <&>")}
    whole = s3.get(query="uploads")

    assert list(ids) == whole.elements("Key")
    assert list(ids.values()) == whole.elements("UploadId")
    assert 4 == len(whole.elements("Initiated"))
    assert ["a/1", "a/2"] == s3.get(query={"uploads": "", "prefix": "a/"}).elements("Key")
    folded = s3.get(query={"uploads": "", "delimiter": "/"})
    assert (["b", "ä <&>"], ["a/"]) == (folded.elements("Key"), folded.elements("Prefix")[1:])


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_uploads_are_listed_page_by_page(s3: Client, size: int) -> None:
    wanted = sorted((key, create(s3, key)) for key in ("a", "b", "b", "b", "c/d", "c/e"))
    found: list[tuple[str, str]] = []
    query = {"uploads": "", "max-uploads": str(size)}
    for _ in range(10):
        page = s3.get(query=query)
        found += zip(page.elements("Key"), page.elements("UploadId"))
        if page.element("IsTruncated") == "false":
            break
        query["key-marker"] = page.element("NextKeyMarker")
        query["upload-id-marker"] = page.element("NextUploadIdMarker")

    assert wanted == sorted(found)
    assert [key for key, _ in wanted] == [key for key, _ in found]


def test_the_last_page_of_uploads_tells_its_end_too(s3: Client) -> None:
    """As AWS does; where there is none, both are empty."""
    assert ([""], [""]) == ends_of(s3.get(query="uploads"))
    create(s3, "a")
    upload = create(s3, "b")
    page = s3.get(query="uploads")

    assert ("false", (["b"], [upload])) == (page.element("IsTruncated"), ends_of(page))


def ends_of(page: Reply) -> tuple[list[str], list[str]]:
    return page.elements("NextKeyMarker"), page.elements("NextUploadIdMarker")


def test_a_page_of_uploads_begins_behind_an_upload_that_is_gone(s3: Client) -> None:
    for key in ("a", "b", "b", "b", "c"):
        create(s3, key)
    query = {"uploads": "", "max-uploads": "2"}
    page = s3.get(query=query)
    marker, id_marker = page.element("NextKeyMarker"), page.element("NextUploadIdMarker")
    rest = {"uploads": "", "key-marker": marker, "upload-id-marker": id_marker}
    before = s3.get(query=rest).elements("UploadId")
    assert 204 == s3.delete(marker, query={"uploadId": id_marker}).status

    assert (3, before) == (len(before), s3.get(query=rest).elements("UploadId"))
    assert ["c"] == s3.get(query={"uploads": "", "key-marker": "b"}).elements("Key")
    alone = {"uploads": "", "upload-id-marker": id_marker}  # means nothing without a key
    assert ["a", "b", "b", "c"] == s3.get(query=alone).elements("Key")


def test_the_uploads_of_a_key_are_listed_by_age() -> None:
    ids = [s3mini.new_upload_id(now) for now in (1.0, 1.5, 1_700_000_000.0, 1_800_000_000.5)]

    assert sorted(ids) == ids
    assert {32} == {len(upload) for upload in ids}
    assert len(set(ids)) == len({s3mini.new_upload_id(1.0) for _ in ids})


# -- parts from other objects ----------------------------------------------------------------------


def send_copy(s3: Client, key: str, upload: str, number: int, source: str, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    copied = {"x-amz-copy-source": f"/{s3.bucket}/{source}", **named}
    return s3.put(key, b"", copied, query={"partNumber": number, "uploadId": upload})


def test_parts_may_be_copied_from_ranges_of_objects(s3: Client) -> None:
    data = content(4, PART + 1000)
    s3.put("source", data, payload=UNSIGNED)
    upload = create(s3, "k")
    replies = [
        send_copy(s3, "k", upload, 1, "source", x_amz_copy_source_range=f"bytes=500-{PART + 499}"),
        send_copy(s3, "k", upload, 2, "source"),
        send_copy(s3, "k", upload, 3, "source", x_amz_copy_source_range="bytes=0-0"),
    ]
    etags = [reply.element("ETag").strip('"') for reply in replies]
    reply = complete(s3, "k", upload, enumerate(etags, 1))

    pieces = [data[500 : PART + 500], data, data[:1]]
    assert [hashlib.md5(piece).hexdigest() for piece in pieces] == etags
    assert all(reply.body.count(b"<CopyPartResult") == 1 for reply in replies)
    assert f'"{etag_of(pieces)}"' == reply.element("ETag")
    assert b"".join(pieces) == s3.get("k").body


def test_a_copied_part_gets_the_checksum_that_was_announced(s3: Client) -> None:
    s3.put("source", b"0123456789")
    upload = create(s3, "k", x_amz_checksum_algorithm="CRC32", x_amz_checksum_type="FULL_OBJECT")
    part = send_copy(s3, "k", upload, 1, "source", x_amz_copy_source_range="bytes=1-3")
    reply = complete(s3, "k", upload, [(1, part.element("ETag").strip('"'))])

    assert crc32(b"123") == part.element("ChecksumCRC32")
    assert crc32(b"123") == reply.element("ChecksumCRC32")


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-10",
        "bytes=10-",
        "bytes=-5",
        "bytes=5-4",
        "bytes=0-1,3-4",
        "0-5",
        "bytes=a-b",
    ],
)
def test_a_range_of_a_source_must_lie_within_it(s3: Client, asked: str) -> None:
    s3.put("source", b"0123456789")
    upload = create(s3, "k")
    reply = send_copy(s3, "k", upload, 1, "source", x_amz_copy_source_range=asked)

    assert (400, "InvalidArgument") == (reply.status, reply.error)
    assert [] == s3.get("k", uploadId=upload).elements("PartNumber")


@pytest.mark.parametrize("asked", ["bytes=10-10", "bytes=100-200"])
def test_a_range_behind_its_source_is_an_invalid_request(s3: Client, asked: str) -> None:
    s3.put("source", b"0123456789")
    reply = send_copy(s3, "k", create(s3, "k"), 1, "source", x_amz_copy_source_range=asked)

    assert (400, "InvalidRequest") == (reply.status, reply.error)


def test_a_copied_part_obeys_the_conditions_on_its_source(s3: Client) -> None:
    etag = s3.put("source", b"0123456789").etag
    upload = create(s3, "k")

    assert 412 == send_copy(s3, "k", upload, 1, "source", x_amz_copy_source_if_match='"x"').status
    good = send_copy(s3, "k", upload, 1, "source", x_amz_copy_source_if_match=f'"{etag}"')
    assert 200 == good.status
    assert "NoSuchKey" == send_copy(s3, "k", upload, 1, "missing").error


# -- parts in place --------------------------------------------------------------------------------

P = 4  # bytes of a part here; MIN_PART is as small


class Counting(s3mini.Disk):
    """Counts the bytes that are copied from file to file."""

    copied = 0

    def copy(self, source: int, offset: int, length: int, fd: int) -> None:
        super().copy(source, offset, length, fd)
        self.copied += length


class Halting:
    """A body that stops in the middle until it is told to go on."""

    def __init__(self, data: bytes) -> None:
        self.pieces = [data[:1], data[1:]]
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def read(self, _: int) -> bytes:
        if len(self.pieces) == 1:
            self.has_begun.set()
            assert self.may_end.wait(10)
        return self.pieces.pop(0) if self.pieces else b""


class Joined:
    """A bucket with a quota and an upload; its parts are named by their letters."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3mini, "MIN_PART", P)
        self.disk = Counting(durable=False)
        self.store = s3mini.Store(str(root), self.disk, quota=10**6)
        self.store.create()
        self.store.count()
        self.upload = s3mini.Upload("0" * 32, "m", 1_600_000_000, entry_of(b"", "joined"))
        self.store.uploads.create(self.upload)
        self.folder = root / ".s3mini/uploads" / self.upload.id

    def put(self, number: int, data: bytes) -> None:
        self.store.uploads.put_part(self.upload, number, body_of(data))

    def complete(self, *numbers: int) -> bytes:
        """The object; its bytes are those of the newest parts, whatever the entry says."""
        def describe(parts: list[s3mini.Part]) -> s3mini.Entry:
            return entry_of(b"", "joined")._replace(size=sum(p.size for p in parts), md5="")

        self.store.uploads.complete(
            self.upload, lambda parts: [p for p in parts if p.number in numbers], describe,
            s3mini.no_check)
        path = Path(self.store.root, "m")
        assert 1 == path.stat().st_nlink
        assert [] == os.listdir(Path(self.store.root, ".s3mini/uploads"))
        assert [] == os.listdir(Path(self.store.root, ".s3mini/tmp"))
        with self.store.quota.usage() as fd:
            assert path.stat().st_size == self.store.held() == s3mini.read_number(fd)
        return path.read_bytes()


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Joined:
    return Joined(tmp_path / "bucket", monkeypatch)


@pytest.mark.parametrize(
    ("sent", "numbers", "copied"),
    [
        pytest.param("1aaaa 2bbbb 3cc", "123", 0, id="in order"),
        pytest.param("2bbbb 3cc 1aaaa", "123", 0, id="in any order"),
        pytest.param("1a", "1", 0, id="a small one alone"),
        pytest.param("3cc 1aaaa 2bbbb", "123", 2, id="the last, short, came first"),
        pytest.param("1xxxx 2bbbb 3cccc 1aaaa", "123", 4, id="one came again"),
        pytest.param("1xxxx 2bbbb 1yyyy 1aaaa", "12", 4, id="one came three times"),
        pytest.param("1aaaa 2bbbbbb", "12", 6, id="the last is too large"),
        pytest.param("1aaaa 2bb 3cccc", "123", 10, id="a short one in the middle"),
        pytest.param("2xxxxxx 1aaaa 2bbbb", "12", 4, id="the first to come was another size"),
        pytest.param("1aaaa 2bbbb 3cccc", "12", 8, id="the last is left out"),
        pytest.param("1aaaa 2bbbb 3cccc", "23", 8, id="the first is left out"),
        pytest.param("1aaaa 3cccc", "13", 8, id="a gap"),
    ],
)  # fmt: skip
def test_only_parts_that_are_not_in_place_are_copied(
    joined: Joined, sent: str, numbers: str, copied: int
) -> None:
    letters = {}
    for word in sent.split():
        joined.put(int(word[0]), word[1:].encode())
        letters[word[0]] = word[1:]

    assert joined.complete(*map(int, numbers)) == "".join(letters[n] for n in numbers).encode()
    assert copied == joined.disk.copied


def test_nothing_is_copied_where_our_empty_folder_was_tidied_away(joined: Joined) -> None:
    """On a full disk there would be no room for that."""
    joined.put(1, b"aaaa")
    joined.put(2, b"bb")
    os.rmdir(joined.store.files.temp)

    assert b"aaaabb" == joined.complete(1, 2)
    assert 0 == joined.disk.copied


def test_the_folder_of_uploads_may_be_a_link(tmp_path: Path) -> None:
    """To another place on the same disk: the operator chose it."""
    store = s3mini.Store(str(tmp_path / "bucket"), s3mini.Disk(durable=False))
    store.create()
    Path(store.uploads.folder).rename(tmp_path / "elsewhere")
    Path(store.uploads.folder).symlink_to(tmp_path / "elsewhere")
    upload = s3mini.Upload("0" * 32, "m", 1_600_000_000, entry_of(b"", "joined"))
    store.uploads.create(upload)

    assert [upload.id] == [u.id for u in store.uploads.all()] == os.listdir(tmp_path / "elsewhere")


def test_a_part_that_comes_while_the_object_is_made_does_not_get_into_it(joined: Joined) -> None:
    """It had its place already. Then nothing else may be done with that file."""
    joined.put(1, b"aaaa")
    joined.put(2, b"bbbb")
    late = Halting(b"xxxx")
    with ThreadPoolExecutor(1) as pool:
        body = s3mini.Body(late, s3mini.Promise(length=4))
        answer = pool.submit(joined.store.uploads.put_part, joined.upload, 3, body)
        assert late.has_begun.wait(10)
        made = joined.complete(1, 2)
        late.may_end.set()

        assert "NoSuchUpload" == getattr(answer.exception(), "code", "")
    assert b"aaaabbbb" == made == Path(joined.store.root, "m").read_bytes()
    assert 8 == joined.disk.copied


def test_what_has_a_second_name_is_not_written_to(joined: Joined, tmp_path: Path) -> None:
    """A backup of links, as rsnapshot makes them."""
    joined.put(1, b"aaaa")
    os.link(joined.folder / s3mini.WHOLE, tmp_path / "backup")
    joined.put(2, b"bbbb")

    assert [0, -1] == [part.offset for part in joined.store.uploads.parts(joined.upload)]
    assert b"aaaa" == (tmp_path / "backup").read_bytes()
    os.unlink(tmp_path / "backup")
    assert b"aaaabbbb" == joined.complete(1, 2)


@pytest.mark.parametrize("quota", [0, 10**6])
def test_a_part_that_broke_off_leaves_its_place_to_the_next(joined: Joined, quota: int) -> None:
    """Not where its bytes are counted."""
    joined.put(1, b"aaaa")
    joined.store.quota.limit = quota
    for number in (2, 7):
        body = s3mini.Body(io.BytesIO(b"xxx"), s3mini.Promise(length=4))
        with pytest.raises(s3mini.S3Error, match="length"):
            joined.store.uploads.put_part(joined.upload, number, body)
    assert 6 * P < (joined.folder / s3mini.WHOLE).stat().st_size
    assert [1] == [part.number for part in joined.store.uploads.parts(joined.upload)]
    joined.store.quota.limit = 10**6
    joined.put(2, b"bbbb")

    assert b"aaaabbbb" == joined.complete(1, 2)
    assert (4 if quota else 0) == joined.disk.copied


def test_a_count_that_fails_hides_no_error(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined.put(1, b"aaaa")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(s3mini, "write_number", fail)
        body = s3mini.Body(io.BytesIO(b"xxx"), s3mini.Promise(length=4))
        with pytest.raises(s3mini.S3Error, match="length"):
            joined.store.uploads.put_part(joined.upload, 2, body)
    joined.put(2, b"bbbb")

    assert b"aaaabbbb" == joined.complete(1, 2)


def test_a_count_that_fails_takes_nothing_out(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        joined.put(number, b"aaaa")
    joined.put(1, b"bbbb")
    real, calls = joined.store.uploads._lose, []

    def fail_once(folder: s3mini.Folder, size: int) -> None:
        calls.append(size)
        if len(calls) == 1:
            raise OSError(errno.EMFILE, "no more files")
        real(folder, size)

    with monkeypatch.context() as patch:
        patch.setattr(joined.store.uploads, "_lose", fail_once)
        with pytest.raises(OSError, match="no more"):
            joined.put(2, b"cccc")
    joined.put(2, b"cccc")
    joined.store.uploads.abort(joined.upload)

    with joined.store.quota.usage() as fd:
        assert 0 == s3mini.read_number(fd)


def test_a_place_that_a_dead_writer_had_is_not_given_again(joined: Joined) -> None:
    joined.put(1, b"aaaa")
    (joined.folder / "slot-00002").touch()
    joined.put(2, b"bbbb")

    assert b"aaaabbbb" == joined.complete(1, 2)
    assert 4 == joined.disk.copied


def test_two_servers_do_not_write_to_one_file(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be two machines, each with an idea of its own of what is in it."""
    joined.put(1, b"aaaa")
    monkeypatch.setattr(s3mini, "SERVE", "another one")
    joined.put(2, b"bbbb")

    assert b"aaaabbbb" == joined.complete(1, 2)
    assert 8 == joined.disk.copied


@pytest.mark.parametrize("why", ["an older upload", "no second names", "no such large files"])
def test_where_there_are_no_places_parts_have_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    def refuse_places(fd: int, data: bytes) -> None:
        if os.lseek(fd, 0, os.SEEK_CUR):
            raise OSError(errno.EFBIG, "File too large")
        s3mini.Disk.write(joined.disk, fd, data)

    joined = Joined(tmp_path / "bucket", monkeypatch)
    if why == "an older upload":
        (joined.folder / s3mini.WHOLE).unlink()
    if why == "no second names":
        monkeypatch.setattr(joined.disk, "link", refuse)
    if why == "no such large files":
        monkeypatch.setattr(joined.disk, "write", refuse_places)
    joined.put(2, b"bbbb")
    joined.put(1, b"aaaa")

    assert b"aaaabbbb" == joined.complete(1, 2)
    assert 8 == joined.disk.copied


def test_an_object_that_was_read_is_not_written_to(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete is killed behind its commit; then its object is deleted while somebody reads it."""
    joined.put(1, b"aaaa")
    joined.put(2, b"bbbb")
    with monkeypatch.context() as patch:
        patch.setattr(joined.store.uploads, "_remove", killed)
        with pytest.raises(InterruptedError):
            joined.complete(1, 2)
    with contextlib.closing(joined.store.open("m")) as found:
        joined.store.delete("m", s3mini.no_check)
        joined.put(2, b"cccc")
        joined.store.uploads.complete(
            joined.upload, lambda parts: parts, lambda _: entry_of(b"aaaacccc", "joined"),
            s3mini.no_check)
        assert b"aaaacccc" == Path(joined.store.root, "m").read_bytes()
        assert b"aaaabbbb" == os.pread(found.fd, 8, 0)


def test_small_parts_do_not_write_zeros_to_others(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As glibc's posix_fallocate does where the disk has none."""

    def fallocate(fd: int, offset: int, size: int) -> None:
        os.pwrite(fd, bytes(size), offset)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    joined.put(1, b"aaaa")
    joined.put(2, b"bb")

    assert b"aaaabb" == joined.complete(1, 2)
    assert 0 == joined.disk.copied


def test_a_place_far_behind_counts_for_what_is_in_it(joined: Joined) -> None:
    joined.put(1000, b"aaaa")

    assert 999 * P < (joined.folder / s3mini.WHOLE).stat().st_size
    assert P == joined.store.held()
    joined.store.uploads.abort(joined.upload)
    assert 0 == joined.store.held()


def test_no_place_ends_behind_the_disk(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that first sends its last part, with a number it made up, makes no huge file."""
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_blocks=1, f_frsize=4096))
    joined.put(10_000, b"zzzz")
    joined.put(4096 // P, b"yyyy")
    joined.put(1, b"aaaa")

    assert (joined.folder / s3mini.WHOLE).stat().st_size == 4096
    assert b"aaaayyyyzzzz" == joined.complete(1, 4096 // P, 10_000)
    assert 12 == joined.disk.copied


def test_a_disk_that_tells_no_size_gives_places(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_blocks=0, f_frsize=4096))
    joined.put(1, b"aaaa")
    joined.put(2, b"bbbb")

    assert b"aaaabbbb" == joined.complete(1, 2)
    assert 0 == joined.disk.copied


# -- an answer that takes long ---------------------------------------------------------------------


Slow = Callable[[list[tuple[int, str]]], tuple[int, bytes]]


@pytest.fixture(params=[10, 11])
def slow(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Client, Slow]]:
    """A client, and slow(parts): the status and body of a Complete that outlasts our patience."""
    goes_on, complete_upload = threading.Event(), s3mini.Uploads.complete

    def wait(*call: Any) -> Any:
        assert goes_on.wait(20)
        return complete_upload(*call)

    monkeypatch.setattr(s3mini, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(s3mini.Uploads, "complete", wait)
    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
        upload = create(s3, "k")
        send(s3, "k", upload, 1, b"content")

        def ask(parts: list[tuple[int, str]]) -> tuple[int, bytes]:
            body = complete_document(parts)
            digest = hashlib.sha256(body).hexdigest()
            signed = s3.sign("POST", "/media/k", [("uploadId", upload)], {}, digest)
            connection = http.client.HTTPConnection(s3.address, timeout=20)
            with contextlib.closing(connection):
                connection._http_vsn = request.param  # type: ignore[attr-defined]
                connection._http_vsn_str = f"HTTP/1.{request.param - 10}"  # type: ignore[attr-defined]
                connection.request("POST", f"/media/k?uploadId={upload}", body, signed)
                got = connection.getresponse()
                begun = got.read(len(s3mini.XML_HEAD) + 3)
                goes_on.set()
                return got.status, begun + got.read()

        yield s3, ask
        goes_on.set()


def test_a_complete_that_takes_long_sends_white_space_ahead(slow: tuple[Client, Slow]) -> None:
    s3, ask = slow
    status, body = ask([(1, hashlib.md5(b"content").hexdigest())])

    assert (200, True) == (status, body.startswith(s3mini.XML_HEAD.encode() + b"   "))
    assert f'"{etag_of([b"content"])}"' == Reply(status, {}, body).element("ETag")
    assert ElementTree.fromstring(body).tag.endswith("CompleteMultipartUploadResult")
    assert b"content" == s3.get("k").body


def test_what_goes_wrong_with_it_is_told_by_the_document(slow: tuple[Client, Slow]) -> None:
    s3, ask = slow
    status, body = ask([(1, "0" * 32)])

    assert (200, "InvalidPart") == (status, Reply(status, {}, body).error)
    assert "Error" == ElementTree.fromstring(body).tag
    assert 404 == s3.get("k").status


# -- checksums -------------------------------------------------------------------------------------


def test_a_composite_checksum_is_made_of_the_parts(s3: Client) -> None:
    for algorithm, digest in (
        ("SHA256", lambda data: hashlib.sha256(data).digest()),
        ("CRC32", lambda data: zlib.crc32(data).to_bytes(4, "big")),
    ):
        pieces = [content(1), b"the end"]
        name = f"x-amz-checksum-{algorithm.lower()}"
        upload = create(s3, "k", x_amz_checksum_algorithm=algorithm)
        sums = [base64.b64encode(digest(piece)).decode() for piece in pieces]
        etags = [
            send(s3, "k", upload, n, piece, **{name: sums[n - 1]}).etag
            for n, piece in enumerate(pieces, 1)
        ]
        reply = complete_with_sums(s3, "k", upload, algorithm, zip(etags, sums))
        total = base64.b64encode(digest(b"".join(map(base64.b64decode, sums)))).decode() + "-2"
        head = s3.head("k", {"x-amz-checksum-mode": "ENABLED"})

        assert total == reply.element(f"Checksum{algorithm}")
        assert (total, "COMPOSITE") == (head.headers[name], head.headers["x-amz-checksum-type"])
        for n, value in enumerate(sums, 1):
            for ask in (s3.get, s3.head):
                part = ask("k", {"x-amz-checksum-mode": "ENABLED"}, partNumber=n)
                assert value == part.headers[name]
                assert "COMPOSITE" == part.headers["x-amz-checksum-type"]
        unasked = s3.head("k", partNumber=1).headers
        assert not [n for n in unasked if n.startswith("x-amz-checksum")]


def test_a_full_object_checksum_is_that_of_the_whole(s3: Client) -> None:
    pieces = [content(1), content(2, PART + 1), b"the end"]
    upload = create(s3, "k", x_amz_checksum_algorithm="CRC32", x_amz_checksum_type="FULL_OBJECT")
    etags = [
        send(s3, "k", upload, n, piece, x_amz_checksum_crc32=crc32(piece)).etag
        for n, piece in enumerate(pieces, 1)
    ]
    whole = crc32(b"".join(pieces))
    wrong = complete(s3, "k", upload, enumerate(etags, 1), x_amz_checksum_crc32=crc32(b""))
    reply = complete(s3, "k", upload, enumerate(etags, 1), x_amz_checksum_crc32=whole)

    part = s3.head("k", {"x-amz-checksum-mode": "ENABLED"}, partNumber=1)
    assert not [name for name in part.headers if name.startswith("x-amz-checksum")]
    assert ("BadDigest", 200) == (wrong.error, reply.status)
    assert (whole, "FULL_OBJECT") == (reply.element("ChecksumCRC32"), reply.element("ChecksumType"))


def test_crc64nvme_is_always_of_the_whole(s3: Client) -> None:
    value = base64.b64encode(0xAE8B14860A799888.to_bytes(8, "big")).decode()
    upload = create(s3, "k", x_amz_checksum_algorithm="CRC64NVME")
    etag = send(s3, "k", upload, 1, b"123456789", x_amz_checksum_crc64nvme=value).etag
    reply = complete(s3, "k", upload, [(1, etag)])
    part = s3.get("k", {"x-amz-checksum-mode": "ENABLED"}, partNumber=1).headers  # the only one

    assert (value, "FULL_OBJECT") == (
        reply.element("ChecksumCRC64NVME"),
        reply.element("ChecksumType"),
    )
    assert (value, "FULL_OBJECT") == (
        part["x-amz-checksum-crc64nvme"],
        part["x-amz-checksum-type"],
    )


def test_a_part_must_bring_the_checksum_that_was_announced(s3: Client) -> None:
    upload = create(s3, "k", x_amz_checksum_algorithm="SHA256")
    sha1 = base64.b64encode(hashlib.sha1(b"x").digest()).decode()

    assert "InvalidRequest" == send(s3, "k", upload, 1, b"x", x_amz_checksum_sha1=sha1).error


def test_complete_compares_the_checksums_of_the_parts(s3: Client) -> None:
    upload = create(s3, "k", x_amz_checksum_algorithm="CRC32")
    etag = send(s3, "k", upload, 1, b"x", x_amz_checksum_crc32=crc32(b"x")).etag
    wrong = f"<ChecksumCRC32>{crc32(b'y')}</ChecksumCRC32>"
    right = f"<ChecksumCRC32>{crc32(b'x')}</ChecksumCRC32>"

    assert "InvalidPart" == complete(s3, "k", upload, [(1, etag)], wrong).error
    assert 200 == complete(s3, "k", upload, [(1, etag)], right).status


def test_a_composite_needs_the_checksum_of_each_part(s3: Client) -> None:
    digest = base64.b64encode(hashlib.sha256(b"x").digest()).decode()
    upload = create(s3, "k", x_amz_checksum_algorithm="SHA256")
    etag = send(s3, "k", upload, 1, b"x", x_amz_checksum_sha256=digest).etag
    for extra in ("", "<ChecksumSHA256/>", "<ChecksumSHA256> </ChecksumSHA256>"):
        reply = complete(s3, "k", upload, [(1, etag)], extra)

        assert (400, "InvalidRequest") == (reply.status, reply.error)
        assert "created using a sha256 checksum" in reply.element("Message")
        assert "It was missing for part 1 in the request." in reply.element("Message")
    assert 404 == s3.head("k").status
    assert 200 == complete_with_sums(s3, "k", upload, "SHA256", [(etag, digest)]).status


@pytest.mark.parametrize("kind", ["", "COMPOSITE", "FULL_OBJECT"])
def test_a_checksum_of_another_algorithm_is_not_believed(s3: Client, kind: str) -> None:
    """`kind` is the upload's; "": it has no algorithm."""
    started = {"x_amz_checksum_algorithm": "CRC32", "x_amz_checksum_type": kind} if kind else {}
    sent = {"x_amz_checksum_crc32": crc32(b"x")} if kind else {}
    right = f"<ChecksumCRC32>{crc32(b'x')}</ChecksumCRC32>" if kind else ""
    sha1 = base64.b64encode(hashlib.sha1(b"x").digest()).decode()
    upload = create(s3, "k", **started)
    etag = send(s3, "k", upload, 1, b"x", **sent).etag
    for extra in (
        f"<ChecksumSHA1>{sha1}</ChecksumSHA1>",
        f"<ChecksumCRC32C>{crc32(b'x')}</ChecksumCRC32C>",
        f"<ChecksumXXHASH64>AAAAAAAAAAA=</ChecksumXXHASH64>{right}",
        f"<ChecksumCRC32>{crc32(b'y')}</ChecksumCRC32>",
    ):
        assert "InvalidPart" == complete(s3, "k", upload, [(1, etag)], extra).error, extra
    for value in (sha1, sha1 + "-1", "nonsense"):
        whole = complete(s3, "k", upload, [(1, etag)], right, x_amz_checksum_sha1=value)
        assert (400, "InvalidRequest") == (whole.status, whole.error)
    assert 404 == s3.head("k").status
    assert 200 == complete(s3, "k", upload, [(1, etag)], right).status


@pytest.mark.parametrize("suffix", ["", "-1"])
def test_complete_may_name_a_composite_with_or_without_its_number(s3: Client, suffix: str) -> None:
    upload = create(s3, "k", x_amz_checksum_algorithm="CRC32")
    etag = send(s3, "k", upload, 1, b"x", x_amz_checksum_crc32=crc32(b"x")).etag
    right = f"<ChecksumCRC32>{crc32(b'x')}</ChecksumCRC32>"
    total = crc32(base64.b64decode(crc32(b"x"))) + suffix
    wrong = complete(s3, "k", upload, [(1, etag)], right, x_amz_checksum_crc32=crc32(b"") + suffix)
    reply = complete(s3, "k", upload, [(1, etag)], right, x_amz_checksum_crc32=total)
    again = complete(s3, "k", upload, [(1, etag)], right, x_amz_checksum_crc32=total)
    lie = complete(s3, "k", upload, [(1, etag)], right, x_amz_checksum_crc32=crc32(b"") + suffix)

    assert ("BadDigest", 200, 200) == (wrong.error, reply.status, again.status)
    assert "NoSuchUpload" == lie.error


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
def test_parts_may_bring_checksums_that_the_upload_did_not_announce(
    server: Server, s3: Client, boto: Any, algorithm: str
) -> None:
    """What an SDK does by default: the upload names no algorithm, each part comes with CRC32."""
    where = {"Bucket": s3.bucket, "Key": "k"}
    where["UploadId"] = create(s3, "k")
    sent = boto.upload_part(**where, PartNumber=1, Body=b"x", ChecksumAlgorithm=algorithm)
    value = sent[f"Checksum{algorithm}"]
    plain = send(s3, "k", where["UploadId"], 2, b"y").etag
    parts = boto.list_parts(**where)["Parts"]
    bad = "<ChecksumCRC32C>AAAAAA==</ChecksumCRC32C>"

    assert [value, None] == [part.get(f"Checksum{algorithm}") for part in parts]
    assert "InvalidPart" == complete(s3, "k", where["UploadId"], [(2, plain)], bad).error
    named = {"ETag": sent["ETag"], "PartNumber": 1}
    for wrong in ({"ChecksumSHA1": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, {f"Checksum{algorithm}": "A"}):
        with pytest.raises(boto.exceptions.ClientError, match="InvalidPart"):
            boto.complete_multipart_upload(**where, MultipartUpload={"Parts": [{**named, **wrong}]})
    right = {f"Checksum{algorithm}": value}
    boto.complete_multipart_upload(**where, MultipartUpload={"Parts": [{**named, **right}]})
    assert b"x" == s3.get("k").body
    assert "x-amz-checksum-type" not in s3.head("k", {"x-amz-checksum-mode": "ENABLED"}).headers


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("SHA256", "FULL_OBJECT"),
        ("SHA1", "FULL_OBJECT"),
        ("CRC64NVME", "COMPOSITE"),
        ("", "COMPOSITE"),
    ],
)
def test_some_kinds_of_checksums_do_not_exist(s3: Client, algorithm: str, kind: str) -> None:
    headers = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind}
    given = {name: value for name, value in headers.items() if value}

    assert "InvalidRequest" == s3.post("k", b"", given, query="uploads").error


# -- reading parts, real clients -------------------------------------------------------------------


def test_a_part_of_an_object_can_be_read(s3: Client) -> None:
    pieces = [content(1), content(2, PART + 7), b"the end"]
    store(s3, "k", pieces)
    start = 0
    for number, piece in enumerate(pieces, 1):
        got, head = s3.get("k", partNumber=number), s3.head("k", partNumber=number)
        span = f"bytes {start}-{start + len(piece) - 1}/{sum(map(len, pieces))}"
        start += len(piece)

        assert (206, piece, span) == (got.status, got.body, got.headers["content-range"])
        assert ("3", etag_of(pieces)) == (got.headers["x-amz-mp-parts-count"], got.etag)
        assert (206, str(len(piece)), span) == (
            head.status,
            head.headers["content-length"],
            head.headers["content-range"],
        )
    assert (416, "InvalidPartNumber") == (
        s3.get("k", partNumber=4).status,
        s3.get("k", partNumber=4).error,
    )


def test_a_copy_of_a_multipart_object_is_put_at_once(s3: Client) -> None:
    pieces = [content(1), b"x"]
    store(s3, "k", pieces, x_amz_meta_a="1")
    s3.put("copy", b"", {"x-amz-copy-source": f"{s3.bucket}/k"})
    got = s3.get("copy")

    assert (b"".join(pieces), "1") == (got.body, got.headers["x-amz-meta-a"])
    assert hashlib.md5(b"".join(pieces)).hexdigest() == got.etag


def test_boto3_checks_a_part_of_a_composite(s3: Client, boto: Any) -> None:
    where = {"Bucket": s3.bucket, "Key": "k"}
    upload = boto.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
    sent = boto.upload_part(
        **where, UploadId=upload, PartNumber=1, Body=b"x", ChecksumAlgorithm="SHA256"
    )
    part = {"PartNumber": 1, "ETag": sent["ETag"], "ChecksumSHA256": sent["ChecksumSHA256"]}
    boto.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": [part]})
    got = boto.get_object(**where, PartNumber=1, ChecksumMode="ENABLED")

    assert (b"x", sent["ChecksumSHA256"]) == (got["Body"].read(), got["ChecksumSHA256"])


def test_boto3_uploads_and_downloads_a_file_in_parts(
    boto: Any, bucket: str, tmp_path: Path
) -> None:
    data = content(5, 20 * MIB)
    (tmp_path / "up").write_bytes(data)
    boto.upload_file(str(tmp_path / "up"), bucket, "d/k", ExtraArgs={"ContentType": "video/mp4"})
    got = io.BytesIO()
    boto.download_fileobj(bucket, "d/k", got)
    head = boto.head_object(Bucket=bucket, Key="d/k")

    assert data == got.getvalue()
    assert (len(data), "video/mp4") == (head["ContentLength"], head["ContentType"])
    assert head["ETag"].endswith('-3"')
    assert [] == boto.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
