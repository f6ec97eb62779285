"""Who may do what: anyone, a bucket's keys by their mode, and the keys of other buckets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Server
from signing_client import UNSIGNED, Client, Reply

INI = """\
[SERVER]
durability = none
log = none
[open]
access_key = open-key
secret_key = open-secret
public = read
[open:writer]
access_key = open-writer-key
secret_key = open-writer-secret
mode = write
[partly]
access_key = partly-key
secret_key = partly-secret
public = images/ css/
[nobodys]
public = read
[media]
access_key = media-key
secret_key = media-secret
[media:ci]
access_key = ci-key
secret_key = ci-secret
mode = read
[media:upload]
access_key = upload-key
secret_key = upload-secret
mode = write
[media:backup]
access_key = backup-key
secret_key = backup-secret
mode = append
[team]
access_key = team-key
secret_key = team-secret
[team:media]
access_key = media-key
secret_key = media-secret
mode = read
[test-*]
access_key = one-key
secret_key = one-secret
[test-*:alt]
access_key = two-key
secret_key = two-secret
[test-*:reader]
access_key = three-key
secret_key = three-secret
mode = read
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    shared = Server(tmp_path_factory.mktemp("world"), INI)
    yield shared
    shared.close()


@pytest.fixture
def owner(world: Server) -> Client:
    """The full key of media."""
    return world.client("media-key", bucket="media")


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


DENIED = (403, "AccessDenied")


def delete_body(*keys: str) -> tuple[bytes, dict[str, str]]:
    items = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    body = f"<Delete>{items}</Delete>".encode()
    return body, {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}


def multipart(client: Client, key: str, data: bytes) -> Reply:
    """The answer to the first step that was refused, or to the last."""
    created = client.post(key, b"", query="uploads")
    if created.status != 200:
        return created
    upload = created.element("UploadId")
    part = client.put(key, data, query={"partNumber": "1", "uploadId": upload})
    body = (
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
        f"<ETag>{part.etag}</ETag></Part></CompleteMultipartUpload>"
    )
    return client.post(key, body.encode(), uploadId=upload) if part.status == 200 else part


def copy(client: Client, source: str, key: str) -> Reply:
    return client.put(key, b"", {"x-amz-copy-source": source})


# -- anyone ----------------------------------------------------------------------------------------


def test_anyone_may_read_a_public_bucket(world: Server) -> None:
    full = world.client("open-key", bucket="open")
    full.put("cat.jpg", b"meow", {"content-type": "image/jpeg"})
    anyone = full.anonymous()
    got, head = anyone.get("cat.jpg"), anyone.head("cat.jpg")

    assert (200, b"meow", "image/jpeg") == (got.status, got.body, got.headers["content-type"])
    assert (200, b"", "4") == (head.status, head.body, head.headers["content-length"])
    assert (206, b"eo") == (
        anyone.get("cat.jpg", {"range": "bytes=1-2"}).status,
        anyone.get("cat.jpg", {"range": "bytes=1-2"}).body,
    )
    assert 304 == anyone.get("cat.jpg", {"if-none-match": f'"{got.etag}"'}).status
    assert 200 == anyone.get("cat.jpg", query="v=3").status


@pytest.mark.parametrize("query", ["tagging", "acl", "attributes"])
def test_what_is_kept_beside_a_public_object_is_not_public(world: Server, query: str) -> None:
    full = world.client("open-key", bucket="open")
    full.put("tagged", b"x", {"x-amz-tagging": "customer=secret"})
    asked = {"x-amz-object-attributes": "ETag,Checksum,ObjectSize"}
    others = [world.client(key, bucket="open") for key in ("", "open-writer-key", "media-key")]

    assert 200 == full.get("tagged", asked, query=query).status
    for other in others:
        assert 200 == other.get("tagged").status
        for key in ("tagged", "missing"):
            assert DENIED == outcome(other.get(key, asked, query=query))


def test_a_copy_does_not_tell_the_tags_of_a_public_object(world: Server, owner: Client) -> None:
    full = world.client("open-key", bucket="open")
    full.put("tagged", b"x", {"x-amz-tagging": "customer=secret"})

    assert DENIED == outcome(copy(owner, "open/tagged", "told"))
    assert 404 == owner.head("told").status
    replaced = {"x-amz-copy-source": "open/tagged", "x-amz-tagging-directive": "REPLACE"}
    assert 200 == owner.put("told", b"", replaced).status
    assert b"x" == owner.get("told").body
    assert [] == owner.get("told", query="tagging").elements("Key")


def test_a_missing_object_of_a_public_bucket_is_missing(world: Server) -> None:
    assert (404, "NoSuchKey") == outcome(world.client("", bucket="open").get("missing"))


def test_anyone_may_do_nothing_else(world: Server) -> None:
    full = world.client("open-key", bucket="open")
    full.put("k", b"old")
    anyone = full.anonymous()
    body, md5 = delete_body("k")
    attempts = {
        "list": anyone.get(),
        "list 2": anyone.get(list_type=2),
        "uploads": anyone.get(query="uploads"),
        "location": anyone.get(query="location"),
        "head bucket": anyone.head(),
        "put": anyone.put("k", b"new"),
        "put new": anyone.put("new", b"new"),
        "delete": anyone.delete("k"),
        "delete many": anyone.post("", body, md5, query="delete"),
        "create upload": anyone.post("k", b"", query="uploads"),
        "copy": copy(anyone, "open/k", "copy"),
        "delete bucket": anyone.delete(),
        "create bucket": anyone.put(),
        "buckets": world.client("").get("/"),
    }

    assert {} == {name: reply.status for name, reply in attempts.items() if reply.status != 403}
    assert (b"old", ["k"]) == (
        full.get("k").body,
        full.get(list_type=2, prefix="k").elements("Key"),
    )


def test_anyone_may_not_override_headers(world: Server) -> None:
    full = world.client("open-key", bucket="open")
    full.put("k", b"x")
    reply = full.anonymous().get("k", query="response-content-type=text/html")

    assert (400, "InvalidRequest") == outcome(reply)


def test_prefixes_open_what_lies_below_them(world: Server) -> None:
    full = world.client("partly-key", bucket="partly")
    for key in ("images/cat.jpg", "css/a.css", "imagesx/a", "secret/a", "images"):
        full.put(key, b"x")
    anyone = full.anonymous()

    assert [200, 200] == [anyone.get(key).status for key in ("images/cat.jpg", "css/a.css")]
    for key in ("imagesx/a", "secret/a", "images", "Images/cat.jpg", "/images/cat.jpg", "missing"):
        assert DENIED == outcome(anyone.get(key)), key
    assert (404, "NoSuchKey") == outcome(anyone.get("images/missing"))
    for path in ("images/../secret/a", "images/%2e%2e/secret/a", "images//../../secret/a"):
        assert anyone.get(target=f"/partly/{path}").status in (400, 404), path


def test_no_key_of_a_private_bucket_is_public(owner: Client) -> None:
    for key in ("\0", "\0secret", "\x01", " ", "a"):
        assert 200 == owner.put(key, b"x").status
        assert DENIED == outcome(owner.anonymous().get(key)), repr(key)


def test_a_bucket_without_a_key_is_for_reading(world: Server) -> None:
    (world.data / "nobodys/page.html").write_bytes(b"<h1>")
    got = world.client("", bucket="nobodys").get("page.html")

    assert (200, b"<h1>", "text/html") == (got.status, got.body, got.headers["content-type"])


def test_a_private_bucket_tells_a_stranger_nothing(world: Server, owner: Client) -> None:
    owner.put("exists", b"x")
    for stranger in (
        owner.anonymous(),
        world.client("team-key", bucket="media"),
        world.client("one-key", bucket="media"),
    ):
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            there, missing = stranger(method, "exists"), stranger(method, "missing")
            assert (403, 403) == (there.status, missing.status)
            assert there.error == missing.error

    assert [b"x", 404] == [owner.get("exists").body, owner.get("missing").status]


def test_an_image_in_a_public_bucket_may_be_cached(world: Server) -> None:
    full = world.client("open-key", bucket="open")
    full.put("a.png", b"x", {"cache-control": "max-age=31536000", "content-type": "image/png"})
    headers = full.anonymous().get("a.png").headers

    assert ("max-age=31536000", "image/png") == (headers["cache-control"], headers["content-type"])
    assert {"etag", "last-modified"} <= headers.keys()


def test_a_bad_signature_is_refused_even_where_anyone_may_read(world: Server) -> None:
    full = world.client("open-key", bucket="open")
    full.put("k", b"x")

    assert (
        "SignatureDoesNotMatch" == world.client("open-key", "wrong", bucket="open").get("k").error
    )
    assert "InvalidAccessKeyId" == world.client("nobody", "x", bucket="open").get("k").error


# -- other buckets' keys ---------------------------------------------------------------------------


def test_another_buckets_key_gets_nothing(world: Server, owner: Client) -> None:
    owner.put("k", b"x")
    tenant = world.client("team-key", bucket="media")
    body, md5 = delete_body("k")
    attempts = [
        tenant.get("k"), tenant.head("k"), tenant.put("k", b"evil"), tenant.delete("k"),
        tenant.get(), tenant.get(list_type=2), tenant.head(), tenant.get(query="uploads"),
        tenant.post("k", b"", query="uploads"), tenant.post("", body, md5, query="delete"),
        tenant.delete(), tenant.get(query="location"),
    ]  # fmt: skip

    assert [403] * len(attempts) == [reply.status for reply in attempts]
    assert b"x" == owner.get("k").body


def test_another_buckets_objects_cannot_be_copied(world: Server, owner: Client) -> None:
    owner.put("k", b"secret")
    tenant = world.client("team-key", bucket="team")
    upload = tenant.post("stolen", b"", query="uploads").element("UploadId")
    parts = {"partNumber": "1", "uploadId": upload}

    assert DENIED == outcome(copy(tenant, "media/k", "stolen"))
    assert DENIED == outcome(copy(tenant, "media/missing", "stolen"))
    for source in ("media/k", "/media/k", "media%2Fk", "team/../media/k", "open/../media/k"):
        refused = tenant.put("stolen", b"", {"x-amz-copy-source": source}, query=parts)
        assert refused.status in (400, 403), source
        assert copy(tenant, source, "stolen").status in (400, 403), source
    assert 404 == tenant.head("stolen").status


def test_a_public_object_may_be_copied_by_every_key(world: Server) -> None:
    world.client("open-key", bucket="open").put("shared", b"x")
    tenant = world.client("team-key", bucket="team")

    assert 200 == copy(tenant, "open/shared", "mine").status
    assert b"x" == tenant.get("mine").body


def test_one_key_may_have_several_buckets(world: Server) -> None:
    world.client("team-key", bucket="team").put("k", b"x")
    guest = world.client("media-key", bucket="team")

    assert b"x" == guest.get("k").body
    assert DENIED == outcome(guest.put("k", b"y"))
    assert ["media", "team"] == guest.get(target="/").elements("Name")
    assert 200 == copy(world.client("media-key", bucket="media"), "team/k", "from-team").status


# -- modes -----------------------------------------------------------------------------------------


def test_a_reader_reads_and_lists(world: Server, owner: Client) -> None:
    owner.put("r/k", b"x")
    reader = world.client("ci-key", bucket="media")

    assert (b"x", ["r/k"]) == (
        reader.get("r/k").body,
        reader.get(list_type=2, prefix="r/").elements("Key"),
    )
    assert (200, 404) == (reader.head().status, reader.get("r/missing").status)
    assert ["media"] == reader.get(target="/").elements("Name")


def test_a_reader_changes_nothing(world: Server, owner: Client) -> None:
    owner.put("r/k", b"x")
    reader = world.client("ci-key", bucket="media")
    upload = owner.post("r/up", b"", query="uploads").element("UploadId")
    body, md5 = delete_body("r/k", "r/locks/x")
    attempts = [
        reader.put("r/k", b"y"), reader.delete("r/k"), multipart(reader, "r/k", b"y"),
        copy(reader, "media/r/k", "r/copy"), reader.delete(), reader.delete("r/locks/x"),
        reader.delete("r/up", uploadId=upload),
        reader.put("r/up", b"y", query={"partNumber": "1", "uploadId": upload}),
    ]  # fmt: skip
    many = reader.post("", body, md5, query="delete")

    assert [DENIED] * len(attempts) == [outcome(reply) for reply in attempts]
    assert (b"x", True) == (
        owner.get("r/k").body,
        many.status == 403 or ["AccessDenied"] * 2 == many.elements("Code"),
    )
    owner.delete("r/up", uploadId=upload)


def test_a_writer_writes_and_replaces(world: Server, owner: Client) -> None:
    writer = world.client("upload-key", bucket="media")

    assert [200, 200] == [writer.put("w/k", b"1").status, writer.put("w/k", b"2").status]
    assert (b"2", 200) == (owner.get("w/k").body, multipart(writer, "w/m", b"3").status)
    assert b"3" == owner.get("w/m").body


def test_a_writer_reads_nothing(world: Server, owner: Client) -> None:
    owner.put("w/secret", b"x")
    writer = world.client("upload-key", bucket="media")
    upload = writer.post("w/up", b"", query="uploads").element("UploadId")
    attempts = [
        writer.get("w/secret"), writer.get("w/missing"), writer.get(), writer.get(list_type=2),
        writer.delete("w/secret"), writer.get(query="uploads"),
        copy(writer, "media/w/secret", "w/copy"),
        writer.put("w/up", b"", {"x-amz-copy-source": "media/w/secret"},
                   query={"partNumber": "1", "uploadId": upload}),
        writer.delete("w/locks/x"),
        *[writer.put("w/secret", b"", {"x-amz-write-offset-bytes": str(n)}) for n in (1, 2)],
    ]  # fmt: skip

    assert [DENIED] * len(attempts) == [outcome(reply) for reply in attempts]
    assert (403, b"x") == (writer.head("w/secret").status, owner.get("w/secret").body)
    writer.delete("w/up", uploadId=upload)


def test_a_writer_of_a_public_bucket_deletes_nothing(world: Server) -> None:
    full = world.client("open-key", bucket="open")
    full.put("locks/x", b"x")
    writer = world.client("open-writer-key", bucket="open")

    assert DENIED == outcome(writer.delete("locks/x"))
    assert b"x" == full.get("locks/x").body


def test_an_appender_creates_and_reads(world: Server) -> None:
    appender = world.client("backup-key", bucket="media")

    assert 200 == appender.put("b/new1", b"1").status
    assert (b"1", 200) == (appender.get("b/new1").body, multipart(appender, "b/new2", b"2").status)
    assert 200 == copy(appender, "media/b/new1", "b/new3").status
    assert ["b/new1", "b/new2", "b/new3"] == appender.get(list_type=2, prefix="b/new").elements(
        "Key"
    )


def test_an_appender_replaces_and_deletes_nothing(world: Server, owner: Client) -> None:
    owner.put("b/old", b"old")
    owner.put("b/other", b"other")
    appender = world.client("backup-key", bucket="media")
    replace = {"x-amz-copy-source": "media/b/old", "x-amz-metadata-directive": "REPLACE"}
    attempts = [
        appender.put("b/old", b"new"), appender.delete("b/old"),
        multipart(appender, "b/old", b"new"),
        copy(appender, "media/b/other", "b/old"), appender.put("b/old", b"", replace),
        appender.delete(),
    ]  # fmt: skip
    body, md5 = delete_body("b/old", "b/other")
    many = appender.post("", body, md5, query="delete")

    assert [DENIED] * len(attempts) == [outcome(reply) for reply in attempts]
    assert ["AccessDenied"] * 2 == many.elements("Code")
    assert (b"old", b"other") == (owner.get("b/old").body, owner.get("b/other").body)


def test_an_appender_has_no_say_in_the_uploads_of_others(world: Server, owner: Client) -> None:
    appender = world.client("backup-key", bucket="media")
    upload = owner.post("b/long", query="uploads").element("UploadId")
    etags = [owner.put("b/long", b"x" * size, partNumber=number, uploadId=upload).etag
             for number, size in ((1, 5 * 1024**2), (2, 1))]
    named = [f"<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>"
             for n, e in enumerate(etags, 1)]
    document = "<CompleteMultipartUpload>{}</CompleteMultipartUpload>".format
    copied = {"x-amz-copy-source": "media/b/other"}
    for reply in (
        appender.put("b/long", b"other", partNumber=2, uploadId=upload),
        appender.put("b/long", b"", copied, partNumber=2, uploadId=upload),
        appender.post("b/long", document(named[0]).encode(), uploadId=upload),
        appender.delete("b/long", uploadId=upload),
    ):
        assert DENIED == outcome(reply)

    assert 200 == owner.post("b/long", document("".join(named)).encode(), uploadId=upload).status


@pytest.mark.parametrize("name", ["upload-key", "backup-key"])
def test_who_may_not_read_learns_nothing_by_a_condition(
    world: Server, owner: Client, name: str
) -> None:
    owner.put("private", b"secret")
    writer, etag = world.client(name, bucket="media"), owner.head("private").etag
    past = "Sat, 01 Jan 2000 00:00:00 GMT"
    expected = 403 if name == "upload-key" else 412
    for conditions in ({"if-unmodified-since": past}, {"if-match": '"x"'}):
        assert expected == writer.put("private", b"x", conditions).status
    for guess in ("x", etag):
        assert 501 == writer.put("private", b"x", {"if-none-match": f'"{guess}"'}).status
    assert 412 == writer.put("private", b"x", {"if-none-match": "*"}).status


def test_an_appender_may_tidy_its_locks(world: Server) -> None:
    appender = world.client("backup-key", bucket="media")
    for key in ("locks/1", "repo/locks/2"):
        assert [200, 200, 204] == [
            appender.put(key, b"1").status,
            appender.put(key, b"2").status,
            appender.delete(key).status,
        ]
        assert 404 == appender.head(key).status
    for key in ("xlocks/1", "locks", "locks/a/b", "Locks/1"):
        appender.put(key, b"1")
        assert DENIED == outcome(appender.delete(key)), key
    body, md5 = delete_body("locks/a", "locks/b")
    assert ["locks/a", "locks/b"] == appender.post("", body, md5, query="delete").elements("Key")


def test_racing_appenders_replace_nothing(world: Server, owner: Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    appender = world.client("backup-key", bucket="media")

    def put(n: int) -> int:
        return appender.put("b/race", b"%d" % n).status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(put, range(8)))
    assert sorted([200] + [403] * 7) == sorted(statuses)
    assert b"%d" % statuses.index(200) == owner.get("b/race").body


# -- buckets of patterns ---------------------------------------------------------------------------


def test_a_bucket_belongs_to_the_key_that_made_it(world: Server) -> None:
    one, two = (world.client(key, bucket="test-mine") for key in ("one-key", "two-key"))

    assert 200 == one.put().status
    assert 200 == one.put().status  # again: rclone asks without looking
    assert (409, "BucketAlreadyExists") == outcome(two.put())
    one.put("k", b"x")
    for attempt in (
        two.get("k"),
        two.put("k", b"y"),
        two.get(),
        two.delete(),
        two.delete("k"),
        two.head(),
    ):
        assert 403 == attempt.status
    assert b"x" == one.get("k").body
    assert "test-mine" not in two.get(target="/").elements("Name")


def test_a_bucket_with_objects_is_not_deleted(world: Server) -> None:
    one = world.client("one-key", bucket="test-full")
    one.put()
    one.put("a/b", b"x")

    assert (409, "BucketNotEmpty") == outcome(one.delete())
    one.delete("a/b")
    assert 204 == one.delete().status
    assert (404, "NoSuchBucket") == outcome(one.get())
    assert not (world.data / "test-full").exists()
    assert 200 == world.client("two-key", bucket="test-full").put().status


@pytest.mark.parametrize("name", ["other", "media2", "testing", "xtest-1"])
def test_a_key_makes_buckets_of_its_pattern_only(world: Server, name: str) -> None:
    assert DENIED == outcome(world.client("one-key", bucket=name).put())
    assert DENIED == outcome(world.client("media-key", bucket=name).put())
    assert not (world.data / name).exists()


def test_a_reading_key_makes_no_bucket(world: Server) -> None:
    assert DENIED == outcome(world.client("three-key", bucket="test-three").put())


def test_a_declared_bucket_is_not_made_again_and_not_deleted(world: Server, owner: Client) -> None:
    assert (409, "BucketAlreadyExists") == outcome(world.client("one-key", bucket="media").put())
    assert 403 == owner.delete().status
    assert 200 == owner.head().status


@pytest.mark.parametrize(
    "name", ["test-", "test-..", "test-A", "test-a_b", "test-" + "x" * 60, "test-a..b", "te"]
)
def test_a_bucket_has_a_good_name(world: Server, name: str) -> None:
    reply = world.client("one-key").put("/" + name)

    assert reply.status in (400, 403), name
    assert not (world.data / name).exists() or name == "test-.."


def test_a_location_constraint_is_read(world: Server) -> None:
    one = world.client("one-key", bucket="test-located")
    place = b"<LocationConstraint>eu-west-1</LocationConstraint>"
    body = b"<CreateBucketConfiguration>" + place + b"</CreateBucketConfiguration>"

    assert 200 == one.put("", body).status
    assert (400, "MalformedXML") == outcome(
        world.client("one-key", bucket="test-bad").put("", b"<x>")
    )
    assert not (world.data / "test-bad").exists()


def test_an_unsigned_payload_needs_a_signature_all_the_same(world: Server, owner: Client) -> None:
    bare: dict[str, Any] = {"x-amz-content-sha256": UNSIGNED}
    for mode in (
        UNSIGNED,
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    ):
        bare["x-amz-content-sha256"] = mode
        reply = owner.fetch(f"http://{world.address}/media/evil", "PUT", b"0\r\n\r\n", bare)
        assert 403 == reply.status

    assert 404 == owner.head("evil").status
