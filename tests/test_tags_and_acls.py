"""Tags, ACLs, attributes and storage classes: what else there is to say of an object."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import INI, Serve, Server
from signing_client import Client, Reply

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
ACL_INI = (
    INI.replace("[media]\n", "[media]\nacl = yes\n")
    .replace("[other]\n", "[other]\nmode = append\n")
    + "\n[other:reader]\naccess_key = reader-key\n"
    "secret_key = reader-secret-0123456789abcdef\nmode = read\n"
    "\n[media:writer]\naccess_key = writer-key\n"
    "secret_key = writer-secret-0123456789abcdef\nmode = write\n"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server where media obeys ACLs, other is append-only and public is open."""
    started = Server(tmp_path_factory.mktemp("acls"), ACL_INI)
    yield started
    started.close()


@pytest.fixture
def media(world: Server) -> Client:
    return world.client("media-key", bucket="media")


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


def tagging(*pairs: tuple[str, str]) -> bytes:
    tags = "".join(f"<Tag><Key>{n}</Key><Value>{v}</Value></Tag>" for n, v in pairs)
    return f"<Tagging><TagSet>{tags}</TagSet></Tagging>".encode()


def tags_of(s3: Client, key: str = "") -> dict[str, str]:
    reply = s3.get(key, query="tagging")
    assert reply.status == 200, reply.body
    return dict(zip(reply.elements("Key"), reply.elements("Value")))


# -- tags of objects -------------------------------------------------------------------------------


def test_tags_come_with_a_header(s3: Client) -> None:
    put = s3.put("k", b"x", {"x-amz-tagging": "a=1&b%20c=%C3%A4+d&empty=&bare"})

    assert 200 == put.status
    assert {"a": "1", "b c": "ä d", "empty": "", "bare": ""} == tags_of(s3, "k")
    assert "4" == s3.head("k").headers["x-amz-tagging-count"]


def test_an_empty_header_is_no_tags(s3: Client) -> None:
    """Velero sends x-amz-tagging without a value with each of its uploads."""
    assert 200 == s3.put("k", b"x", {"x-amz-tagging": ""}).status
    assert {} == tags_of(s3, "k")
    assert "x-amz-tagging-count" not in s3.head("k").headers


def test_tags_are_put_read_and_deleted_apart_from_the_object(s3: Client) -> None:
    s3.put("k", b"x", {"x-amz-meta-a": "1", "x-amz-tagging": "old=1"})
    before = s3.head("k").headers
    assert 200 == s3.put("k", tagging(("new", "2")), query="tagging").status
    assert {"new": "2"} == tags_of(s3, "k")
    assert 204 == s3.delete("k", query="tagging").status
    assert {} == tags_of(s3, "k")
    got = s3.get("k")

    assert (b"x", "1") == (got.body, got.headers["x-amz-meta-a"])
    assert [before[n] for n in ("etag", "last-modified")] == [
        got.headers[n] for n in ("etag", "last-modified")
    ]


def test_a_put_without_tags_takes_them_away(s3: Client) -> None:
    s3.put("k", b"x", {"x-amz-tagging": "a=1"})
    s3.put("k", b"y")

    assert {} == tags_of(s3, "k")


def test_a_change_of_tags_or_acl_obeys_conditions(s3: Client) -> None:
    etag = s3.put("k", b"x", {"x-amz-tagging": "a=1"}).headers["etag"]
    stale = {"if-match": '"stale"'}
    for reply in (s3.put("k", tagging(("b", "2")), stale, query="tagging"),
                  s3.delete("k", stale, query="tagging"),
                  s3.put("k", b"", {**stale, "x-amz-acl": "private"}, query="acl")):
        assert (412, "PreconditionFailed") == outcome(reply)
    assert {"a": "1"} == tags_of(s3, "k")
    assert 200 == s3.put("k", tagging(("b", "2")), {"if-match": etag}, query="tagging").status
    assert {"b": "2"} == tags_of(s3, "k")


@pytest.mark.parametrize("key", ["k", "large"])
def test_strangers_are_not_told_how_many_tags_there_are(world: Server, key: str) -> None:
    owner = world.client("public-key", bucket="public")
    owner.put(key, b"x" * (100_000 if key == "large" else 1), {"x-amz-tagging": "a=1"})
    for _ in range(3):  # the answer comes from memory by and by
        for client, count in ((owner, "1"), (owner.anonymous(), None)):
            for reply in (client.get(key), client.head(key)):
                assert (200, count) == (reply.status, reply.headers.get("x-amz-tagging-count"))


def test_tags_of_what_is_not_there_are_404(s3: Client) -> None:
    for reply in (
        s3.get("k", query="tagging"),
        s3.put("k", tagging(("a", "1")), query="tagging"),
        s3.delete("k", query="tagging"),
    ):
        assert (404, "NoSuchKey") == outcome(reply)
    assert [] == s3.get(list_type=2).elements("Key")


LETTERS = "azAZ09 +-=._:/@äß日本"
TAGS = [
    ((), ""),
    (((LETTERS, LETTERS),), ""),
    ((("x" * 128, "y" * 256),), ""),
    ((("ä" * 128, "ä" * 256),), ""),
    (tuple((f"t{n}", "") for n in range(10)), ""),
    (tuple((f"t{n}", "") for n in range(11)), "BadRequest"),
    ((("x" * 129, ""),), "InvalidTag"),
    ((("x", "y" * 257),), "InvalidTag"),
    ((("", "y"),), "InvalidTag"),
    ((("a", "1"), ("a", "2")), "InvalidTag"),
    ((("a", "1"), ("a", "1")), "InvalidTag"),
    ((("a", "{}"),), "InvalidTag"),
    ((("a!", "1"),), "InvalidTag"),
    ((("a", "1;2"),), "InvalidTag"),
    ((("aws:x", "1"),), "InvalidTag"),
]


@pytest.mark.parametrize(("pairs", "code"), TAGS, ids=range(len(TAGS)))
def test_tags_have_limits(s3: Client, pairs: tuple[tuple[str, str], ...], code: str) -> None:
    s3.put("k", b"x", {"x-amz-tagging": "old=1"})
    reply = s3.put("k", tagging(*pairs), query="tagging")

    assert (code, 400 if code else 200) == (reply.error, reply.status)
    assert ({"old": "1"} if code else dict(pairs)) == tags_of(s3, "k")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a=%zz", "InvalidArgument"),
        ("a=%ff", "InvalidArgument"),
        ("=1", "InvalidTag"),
        ("a=1&a=2", "InvalidArgument"),
        ("a=b;c", "InvalidArgument"),  # of the header's form; in a document it is the tag's
        ("key1=val1,key2=val2", "InvalidArgument"),
        ("aws:a=1", "InvalidTag"),
        ("&".join(f"t{n}=1" for n in range(11)), "BadRequest"),
    ],
)
def test_a_header_that_makes_no_sense_stores_nothing(s3: Client, text: str, code: str) -> None:
    assert (400, code) == outcome(s3.put("k", b"x", {"x-amz-tagging": text}))
    assert 404 == s3.head("k").status


@pytest.mark.parametrize(
    "body",
    [b"", b"<Tagging><TagSet>", b"<Other/>", b"a=1",
     b"<Tagging><Tag><Key>a</Key><Value>1</Value></Tag></Tagging>",
     b"<Tagging><TagSet/><TagSet/></Tagging>",
     b"<Tagging><TagSet><Tag><Value>1</Value></Tag></TagSet></Tagging>",
     b"<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>",
     b"<!DOCTYPE x [<!ENTITY a 'b'>]><Tagging><TagSet/></Tagging>"],
)  # fmt: skip
def test_a_document_that_makes_no_sense_changes_nothing(s3: Client, body: bytes) -> None:
    s3.put("k", b"x", {"x-amz-tagging": "old=1"})

    assert (400, "MalformedXML") == outcome(s3.put("k", body, query="tagging"))
    assert {"old": "1"} == tags_of(s3, "k")


def test_a_document_without_a_tag_set_is_no_tags(s3: Client) -> None:
    s3.put("k", b"x", {"x-amz-tagging": "old=1"})
    s3.put("", tagging(("old", "1")), query="tagging")

    assert 200 == s3.put("k", b"<Tagging/>", query="tagging").status
    assert {} == tags_of(s3, "k")
    assert 204 == s3.put("", b"<Tagging/>", query="tagging").status
    assert (404, "NoSuchTagSet") == outcome(s3.get(query="tagging"))


@pytest.mark.parametrize(
    "pairs", [(("a", "1"), ("a", "2")), (("aws:a", "1"),), (("a,", "1"),), (("a", "1,2"),)]
)
def test_a_refused_tag_is_named(s3: Client, pairs: tuple[tuple[str, str], ...]) -> None:
    s3.put("k", b"x")

    for key in ("k", ""):
        reply = s3.put(key, tagging(*pairs), query="tagging")
        assert ("InvalidTag", pairs[-1][0]) == (reply.error, reply.element("TagKey"))


def test_an_upload_in_parts_has_the_tags_of_its_start(s3: Client) -> None:
    created = s3.post("k", b"", {"x-amz-tagging": "a=1"}, query="uploads")
    upload = created.element("UploadId")
    etag = s3.put("k", b"x", partNumber=1, uploadId=upload).etag
    named = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>"
    s3.post("k", body.encode(), uploadId=upload)

    assert {"a": "1"} == tags_of(s3, "k")


@pytest.mark.parametrize(
    ("directive", "tags"), [("", {"a": "1"}), ("COPY", {"a": "1"}), ("REPLACE", {"b": "2"})]
)
def test_a_copy_keeps_or_replaces_tags(s3: Client, directive: str, tags: dict[str, str]) -> None:
    s3.put("k", b"x", {"x-amz-tagging": "a=1"})
    headers = {"x-amz-copy-source": f"/{s3.bucket}/k", "x-amz-tagging": "b=2"}
    if directive:
        headers["x-amz-tagging-directive"] = directive
    assert 200 == s3.put("copy", b"", headers).status

    assert tags == tags_of(s3, "copy")


def test_an_append_only_key_changes_no_tags(world: Server) -> None:
    other = world.client("other-key", bucket="other")
    other.put("tagged", b"x", {"x-amz-tagging": "a=1"})

    assert (403, "AccessDenied") == outcome(
        other.put("tagged", tagging(("b", "2")), query="tagging")
    )
    assert (403, "AccessDenied") == outcome(other.delete("tagged", query="tagging"))
    reader = world.client("reader-key", bucket="other")
    assert 403 == reader.put("tagged", tagging(("b", "2")), query="tagging").status
    assert {"a": "1"} == tags_of(reader, "tagged")


def test_tags_pass_through_boto3(s3: Client, boto: Any) -> None:
    where = {"Bucket": s3.bucket, "Key": "k"}
    boto.put_object(Body=b"x", Tagging="a=1&b=%C3%A4", **where)
    first = boto.get_object_tagging(**where)["TagSet"]
    wanted = [{"Key": "é", "Value": "x y"}]
    boto.put_object_tagging(Tagging={"TagSet": wanted}, **where)

    assert [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "ä"}] == first
    assert wanted == boto.get_object_tagging(**where)["TagSet"]
    boto.delete_object_tagging(**where)
    assert [] == boto.get_object_tagging(**where)["TagSet"]


# -- tags of buckets -------------------------------------------------------------------------------


def test_a_bucket_has_tags_of_its_own(s3: Client) -> None:
    pairs = [(f"t{n}", "ä") for n in range(50)]
    assert (404, "NoSuchTagSet") == outcome(s3.get(query="tagging"))
    assert 204 == s3.put("", tagging(*pairs), query="tagging").status
    assert dict(pairs) == tags_of(s3)
    assert 400 == s3.put("", tagging(*pairs, ("more", "")), query="tagging").status
    assert dict(pairs) == tags_of(s3)
    assert 204 == s3.delete(query="tagging").status

    assert (404, "NoSuchTagSet") == outcome(s3.get(query="tagging"))
    assert 200 == s3.head().status


# -- ACLs ------------------------------------------------------------------------------------------


def is_open(s3: Client, key: str) -> bool:
    stranger = s3.anonymous()
    statuses = {stranger.get(key).status, stranger.head(key).status}
    assert len(statuses) == 1
    return statuses == {200}


def test_public_read_opens_one_object(media: Client) -> None:
    media.put("open", b"x", {"x-amz-acl": "public-read"})
    media.put("closed", b"y", {"x-amz-acl": "private"})
    media.put("plain", b"z")

    assert [True, False, False] == [is_open(media, key) for key in ("open", "closed", "plain")]
    stranger = media.anonymous()
    for refused in (
        stranger.get(),
        stranger.put("open", b"y"),
        stranger.delete("open"),
        stranger.get("missing"),
        stranger.put("open", b"", {"x-amz-acl": "private"}, query="acl"),
    ):
        assert (403, "AccessDenied") == outcome(refused)
    assert b"x" == stranger.get("open").body


def test_an_overwrite_closes_what_was_open(media: Client) -> None:
    media.put("again", b"x", {"x-amz-acl": "public-read"})
    media.put("again", b"y")

    assert not is_open(media, "again")


def test_a_copy_is_private_whatever_its_source(media: Client) -> None:
    media.put("source", b"x", {"x-amz-acl": "public-read"})
    media.put("copied", b"", {"x-amz-copy-source": "/media/source"})
    opened = {"x-amz-copy-source": "/media/source", "x-amz-acl": "public-read"}
    media.put("opened", b"", opened)

    assert [False, True] == [is_open(media, key) for key in ("copied", "opened")]


def test_an_upload_in_parts_may_be_opened(media: Client) -> None:
    created = media.post("parts", b"", {"x-amz-acl": "public-read"}, query="uploads")
    upload = created.element("UploadId")
    etag = media.put("parts", b"x", partNumber=1, uploadId=upload).etag
    named = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>"
    media.post("parts", body.encode(), uploadId=upload)

    assert is_open(media, "parts")


def test_an_acl_is_changed_apart_from_the_object(media: Client) -> None:
    media.put("k", b"x", {"x-amz-meta-a": "1"})
    for acl, opened in (("public-read", True), ("private", False)):
        assert 200 == media.put("k", b"", {"x-amz-acl": acl}, query="acl").status
        assert opened == is_open(media, "k")
        assert opened == (ALL_USERS in media.get("k", query="acl").elements("URI"))
    got = media.get("k")

    assert (b"x", "1") == (got.body, got.headers["x-amz-meta-a"])


def policy(*grants: str) -> bytes:
    return (
        '<AccessControlPolicy xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        "<Owner><ID>s3mini</ID><DisplayName>s3mini</DisplayName></Owner>"
        f"<AccessControlList>{''.join(grants)}</AccessControlList></AccessControlPolicy>"
    ).encode()


XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
MINE = (
    f'<Grant><Grantee {XSI} xsi:type="CanonicalUser"><ID>s3mini</ID>'
    "<DisplayName>s3mini</DisplayName></Grantee><Permission>FULL_CONTROL</Permission></Grant>"
)
EVERYBODYS = (
    f'<Grant><Grantee {XSI} xsi:type="Group"><URI>{ALL_USERS}</URI></Grantee>'
    "<Permission>READ</Permission></Grant>"
)


def test_s3cmd_sends_the_list_back_with_one_grant_more(media: Client) -> None:
    """s3cmd setacl --acl-public reads the document, adds a grant and puts it back."""
    media.put("k", b"x")
    given = media.get("k", query="acl").body
    more = given.replace(b"</AccessControlList>", EVERYBODYS.encode() + b"</AccessControlList>")

    assert 200 == media.put("k", more, query="acl").status
    assert is_open(media, "k")
    assert 200 == media.put("k", given, query="acl").status
    assert not is_open(media, "k")
    assert 200 == media.put("k", policy(MINE, EVERYBODYS), query="acl").status
    assert is_open(media, "k")


def test_an_acl_is_told_as_aws_tells_it(media: Client, boto: Any, s3: Client) -> None:
    s3.put("k", b"x")
    grants = boto.get_object_acl(Bucket=s3.bucket, Key="k")
    of_bucket = boto.get_bucket_acl(Bucket=s3.bucket)

    assert [("CanonicalUser", "FULL_CONTROL")] == [
        (grant["Grantee"]["Type"], grant["Permission"]) for grant in grants["Grants"]
    ]
    assert grants["Owner"] == of_bucket["Owner"] == {"DisplayName": "s3mini", "ID": "s3mini"}
    assert grants["Grants"] == of_bucket["Grants"]


@pytest.mark.parametrize("acl", ["private", "bucket-owner-full-control", "bucket-owner-read"])
def test_an_acl_that_changes_nothing_is_accepted(s3: Client, acl: str) -> None:
    for reply in (
        s3.put("k", b"x", {"x-amz-acl": acl}),
        s3.put("k", b"", {"x-amz-acl": acl}, query="acl"),
        s3.put("copy", b"", {"x-amz-acl": acl, "x-amz-copy-source": f"/{s3.bucket}/k"}),
        s3.post("parts", b"", {"x-amz-acl": acl}, query="uploads"),
        s3.put("", b"", {"x-amz-acl": "private"}, query="acl"),
        s3.put("k", policy(MINE), query="acl"),
    ):
        assert 200 == reply.status, reply.body
    assert not is_open(s3, "k")


@pytest.mark.parametrize(
    "acl", ["public-read", "public-read-write", "authenticated-read", "log-delivery-write"]
)
def test_an_acl_that_would_change_something_is_refused(s3: Client, acl: str) -> None:
    s3.put("k", b"old")
    for reply in (
        s3.put("k", b"new", {"x-amz-acl": acl}),
        s3.put("k", b"", {"x-amz-acl": acl}, query="acl"),
        s3.put("copy", b"", {"x-amz-acl": acl, "x-amz-copy-source": f"/{s3.bucket}/k"}),
        s3.post("parts", b"", {"x-amz-acl": acl}, query="uploads"),
        s3.put("", b"", {"x-amz-acl": acl}, query="acl"),
        s3.put("k", policy(MINE, EVERYBODYS), query="acl"),
    ):
        assert (400, "AccessControlListNotSupported") == outcome(reply)
    assert ["k"] == s3.get(list_type=2).elements("Key")
    assert b"old" == s3.get("k").body


def test_who_asks_for_public_read_is_told_what_would_open_it(s3: Client) -> None:
    assert "acl = yes" in s3.put("k", b"x", {"x-amz-acl": "public-read"}).element("Message")


@pytest.mark.parametrize("acl", ["public-read-write", "authenticated-read", "aws-exec-read"])
def test_acl_yes_opens_for_reading_only(media: Client, acl: str) -> None:
    reply = media.put("wide", b"x", {"x-amz-acl": acl})

    assert (400, "AccessControlListNotSupported") == outcome(reply)


def test_public_read_changes_nothing_where_all_is_public(world: Server) -> None:
    public = world.client("public-key", bucket="public")

    assert 200 == public.put("k", b"x", {"x-amz-acl": "public-read"}).status
    assert 200 == public.put("", b"", {"x-amz-acl": "public-read"}, query="acl").status
    assert ALL_USERS in public.get("k", query="acl").elements("URI")


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({}, b"", 400, "MissingSecurityHeader"),
        ({"x-amz-acl": "private"}, policy(EVERYBODYS), 400, "UnexpectedContent"),
        ({"x-amz-acl": "nonsense"}, b"", 400, "InvalidArgument"),
        ({"x-amz-acl": ""}, b"", 400, "InvalidArgument"),
        ({"x-amz-grant-read": f'uri="{ALL_USERS}"'}, b"", 501, "NotImplemented"),
        ({}, b"<AccessControlPolicy>", 400, "MalformedXML"),
        ({}, b"<Other/>", 400, "MalformedXML"),
        ({}, b"<AccessControlPolicy/>", 400, "MalformedACLError"),
        ({}, policy().replace(b"<ID>s3mini</ID>", b""), 400, "MalformedACLError"),
        ({}, policy("<Grant><Permission>READ</Permission></Grant>"), 400, "MalformedACLError"),
        ({}, policy(MINE.replace("FULL_CONTROL", "")), 400, "MalformedACLError"),
        ({}, policy(EVERYBODYS.replace("READ", "REED")), 400, "MalformedACLError"),
        ({}, policy().replace(b"<ID>s3mini</ID>", b"<ID>other</ID>"), 400, "InvalidArgument"),
        ({}, policy(EVERYBODYS.replace("READ", "WRITE")), 400, "AccessControlListNotSupported"),
        ({}, policy(EVERYBODYS.replace("AllUsers", "Some")), 400, "AccessControlListNotSupported"),
        ({}, policy(EVERYBODYS), 400, "AccessControlListNotSupported"),
    ],
)
def test_an_acl_that_makes_no_sense_is_refused(
    media: Client, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    media.put("k", b"x")

    assert (status, code) == outcome(media.put("k", body, headers, query="acl"))
    assert not is_open(media, "k")


@pytest.mark.parametrize("key", ["", "k"])
def test_an_acl_does_not_take_the_owners_own_rights(media: Client, key: str) -> None:
    media.put("k", b"x")

    assert (400, "AccessControlListNotSupported") == outcome(media.put(key, policy(), query="acl"))
    assert 200 == media.put(key, policy(MINE), query="acl").status


def test_who_may_neither_read_nor_list_learns_nothing(world: Server, media: Client) -> None:
    writer = world.client("writer-key", bucket="media")
    etag = media.put("there", b"x").etag
    for key in ("there", "missing"):
        replies = [
            writer.put(key, b"y", {"if-match": f'"{etag}"'}),
            writer.put(key, b"y", {"if-match": '"other"'}),
            writer.get(key),
            writer.head(key),
        ]
        assert [403] * 4 == [reply.status for reply in replies]
    assert [(403, "AccessDenied")] * 2 == [
        outcome(writer.put("missing", tagging(), query="tagging")),
        outcome(writer.put("missing", b"", {"x-amz-acl": "private"}, query="acl"))]
    assert b"x" == media.get("there").body


def test_what_a_copy_misses_is_its_source(world: Server) -> None:
    writer = world.client("writer-key", bucket="media")
    missing = writer.put("k", b"", {"x-amz-copy-source": "/public/missing"})

    assert (404, "NoSuchKey") == outcome(missing)


def test_who_may_not_delete_ends_only_his_own_upload(world: Server) -> None:
    other = world.client("other-key", bucket="other")
    writer, media = (world.client(f"{n}-key", bucket="media") for n in ("writer", "media"))
    for client in (other, writer, media):
        upload = client.post("k", b"", query="uploads").element("UploadId")
        query = {"uploadId": upload}
        if client is media:
            assert (403, "AccessDenied") == outcome(writer.delete("k", query=query))
        assert 204 == client.delete("k", query=query).status


def test_who_may_not_read_opens_only_bytes_of_its_own(world: Server, media: Client) -> None:
    writer = world.client("writer-key", bucket="media")
    media.put("secret", b"x")
    opened = {"x-amz-acl": "public-read"}
    refused = (
        writer.put("secret", b"", opened, query="acl"),
        writer.put("secret", policy(MINE, EVERYBODYS), query="acl"),
        writer.put("missing", b"", opened, query="acl"),
        writer.put("copied", b"", {**opened, "x-amz-copy-source": "/media/secret"}),
    )

    assert {(403, "AccessDenied")} == {outcome(reply) for reply in refused}
    assert not is_open(media, "secret")
    assert 200 == writer.put("own", b"y", opened).status
    assert is_open(media, "own")
    assert 200 == writer.put("own", b"", {"x-amz-acl": "private"}, query="acl").status
    assert not is_open(media, "own")


def test_an_acl_counts_no_longer_when_buckets_ini_says_no(serve: Serve) -> None:
    server = serve(ACL_INI)
    owner, other = server.client("media-key", bucket="media"), server.client("other-key")
    owner.put("open", b"x", {"x-amz-acl": "public-read"})
    source = {"x-amz-copy-source": "/media/open"}
    upload = other.post("/other/parts", b"", uploads="").element("UploadId")
    with_acl = other.put("/other/copied", b"", source)
    server.stop()
    server.config.write_text(ACL_INI.replace("acl = yes\n", ""))
    server.start()
    owner, other = server.client("media-key", bucket="media"), server.client("other-key")

    assert 200 == with_acl.status
    for refused in (
        other.get("/media/open"),
        other.get("/media/open", query="acl"),
        other.put("/other/again", b"", source),
        other.put("/other/parts", b"", source, partNumber=1, uploadId=upload),
        owner.anonymous().get("open"),
    ):
        assert (403, "AccessDenied") == outcome(refused)
    assert b"x" == owner.get("open").body
    assert ALL_USERS not in owner.get("open", query="acl").elements("URI")


def test_an_acl_of_what_is_not_there_is_404(media: Client) -> None:
    assert (404, "NoSuchKey") == outcome(media.get("missing", query="acl"))
    put = media.put("missing", b"", {"x-amz-acl": "private"}, query="acl")
    assert (404, "NoSuchKey") == outcome(put)


def test_a_listing_does_not_show_what_is_open(media: Client) -> None:
    media.put("open", b"x", {"x-amz-acl": "public-read"})

    assert (403, "AccessDenied") == outcome(media.anonymous().get("", list_type=2))
    assert ALL_USERS not in media.get(query="acl").elements("URI")


# -- attributes ------------------------------------------------------------------------------------

PART = 5 << 20


def base64_sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def test_attributes_are_those_that_were_asked_for(s3: Client) -> None:
    checksum = base64_sha256(b"content")
    s3.put("k", b"content", {"x-amz-checksum-sha256": checksum})
    whole = {"x-amz-object-attributes": "ETag,Checksum,ObjectParts,StorageClass,ObjectSize"}
    reply, head = s3.get("k", whole, query="attributes"), s3.head("k")

    names = re.findall(r"<(\w+)", reply.body.decode())
    assert "GetObjectAttributesResponse" == names[0]
    assert head.etag == reply.element("ETag")
    assert ("7", "STANDARD") == (reply.element("ObjectSize"), reply.element("StorageClass"))
    assert checksum == reply.element("ChecksumSHA256")
    assert "FULL_OBJECT" == reply.element("ChecksumType")
    assert "ObjectParts" not in names
    assert head.headers["last-modified"] == reply.headers["last-modified"]
    few = s3.get("k", {"x-amz-object-attributes": "ObjectSize, ETag"}, query="attributes")
    assert ["GetObjectAttributesResponse", "ETag", "ObjectSize"] == re.findall(
        r"<(\w+)", few.body.decode()
    )


@pytest.mark.parametrize("names", ["Size", "ETag,Owner", "etag"])
def test_an_unknown_attribute_is_refused(s3: Client, names: str) -> None:
    s3.put("k", b"x")
    headers = {"x-amz-object-attributes": names}

    assert (400, "InvalidArgument") == outcome(s3.get("k", headers, query="attributes"))


@pytest.mark.parametrize("headers", [{}, {"x-amz-object-attributes": ""}])
def test_who_asks_for_no_attribute_is_told(s3: Client, headers: dict[str, str]) -> None:
    s3.put("k", b"x")

    assert (400, "InvalidRequest") == outcome(s3.get("k", headers, query="attributes"))


def test_attributes_of_what_is_not_there_are_404(s3: Client) -> None:
    reply = s3.get("k", {"x-amz-object-attributes": "ETag"}, query="attributes")

    assert (404, "NoSuchKey") == outcome(reply)


def put_parts(boto: Any, bucket: str, **checksum: str) -> list[str]:
    """An object "k" of three parts; gives the parts' checksums."""
    where = {"Bucket": bucket, "Key": "k"}
    upload = {**where, "UploadId": boto.create_multipart_upload(**where, **checksum)["UploadId"]}
    datas = [b"a" * PART, b"b" * PART, b"c"]
    parts = []
    for number, data in enumerate(datas, 1):
        done = boto.upload_part(**upload, PartNumber=number, Body=data, **checksum)
        kept = {n: v for n, v in done.items() if n == "ETag" or n.startswith("ChecksumS")}
        parts.append({"PartNumber": number, **kept})
    boto.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    return [base64_sha256(data) for data in datas]


def test_parts_are_told_page_by_page(s3: Client, boto: Any) -> None:
    sums = put_parts(boto, s3.bucket, ChecksumAlgorithm="SHA256")
    ask = {"Bucket": s3.bucket, "Key": "k", "ObjectAttributes": ["ObjectParts", "Checksum"]}
    whole = boto.get_object_attributes(**ask)
    first = boto.get_object_attributes(**ask, MaxParts=2)["ObjectParts"]
    rest = boto.get_object_attributes(**ask, PartNumberMarker=first["NextPartNumberMarker"])

    total = base64_sha256(b"".join(map(base64.b64decode, sums)))
    assert "COMPOSITE" == whole["Checksum"]["ChecksumType"]
    assert total == whole["Checksum"]["ChecksumSHA256"]  # without the "-3" that other answers have
    rows = whole["ObjectParts"]["Parts"]
    assert sums == [row["ChecksumSHA256"] for row in rows]
    assert [(1, PART), (2, PART), (3, 1)] == [(row["PartNumber"], row["Size"]) for row in rows]
    assert (3, False) == (
        whole["ObjectParts"]["TotalPartsCount"],
        whole["ObjectParts"]["IsTruncated"],
    )
    assert (2, 3, True) == (first["MaxParts"], first["TotalPartsCount"], first["IsTruncated"])
    assert rows == first["Parts"] + rest["ObjectParts"]["Parts"]
    none = boto.get_object_attributes(**ask, PartNumberMarker=10)["ObjectParts"]
    assert (10, 0) == (none["PartNumberMarker"], none["NextPartNumberMarker"])
    assert not rest["ObjectParts"]["IsTruncated"]


def test_of_parts_without_checksums_the_number_is_told(s3: Client, boto: Any) -> None:
    """As AWS does: pages of them would hold nothing."""
    upload = s3.post("k", query="uploads").element("UploadId")
    etag = s3.put("k", b"x", partNumber=1, uploadId=upload).etag
    named = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>"
    s3.post("k", body.encode(), uploadId=upload)
    told = boto.get_object_attributes(
        Bucket=s3.bucket, Key="k", ObjectAttributes=["ObjectParts"], MaxParts=3)

    assert {"TotalPartsCount": 1} == told["ObjectParts"]


@pytest.mark.parametrize("name", ["x-amz-max-parts", "x-amz-part-number-marker"])
@pytest.mark.parametrize("value", ["x", "-1", "1.5"])
def test_the_numbers_of_a_page_are_numbers(s3: Client, name: str, value: str) -> None:
    upload = s3.post("k", query="uploads").element("UploadId")
    etag = s3.put("k", b"x", partNumber=1, uploadId=upload).etag
    named = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>"
    s3.post("k", body.encode(), uploadId=upload)
    headers = {"x-amz-object-attributes": "ObjectParts", name: value}

    assert (400, "InvalidArgument") == outcome(s3.get("k", headers, query="attributes"))


@pytest.mark.parametrize(("limit", "parts"), [("0", 0), ("1", 1), ("5000", 2)])
def test_a_page_of_parts_ends(s3: Client, limit: str, parts: int) -> None:
    upload = s3.post("k", query="uploads", headers={"x-amz-checksum-algorithm": "SHA256"})
    number = upload.element("UploadId")
    named = ""
    for at, data in enumerate((bytes(PART), b"x"), 1):
        digest = base64_sha256(data)
        etag = s3.put("k", data, {"x-amz-checksum-sha256": digest}, partNumber=at,
                      uploadId=number).etag
        named += (f"<Part><PartNumber>{at}</PartNumber><ETag>{etag}</ETag>"
                  f"<ChecksumSHA256>{digest}</ChecksumSHA256></Part>")
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>"
    assert 200 == s3.post("k", body.encode(), uploadId=number).status
    asked = {"x-amz-object-attributes": "ObjectParts", "x-amz-max-parts": limit}
    reply = s3.get("k", asked, query="attributes")

    assert parts == len(reply.elements("PartNumber"))
    assert str(min(int(limit), 1000)) == reply.element("MaxParts")
    assert ("true" if limit == "1" else "false") == reply.element("IsTruncated")


# -- storage classes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BOGUS", "standard", "", "STANDARD IA", "OUTPOSTS"])
def test_a_storage_class_that_is_none_is_refused(s3: Client, name: str) -> None:
    s3.put("k", b"old")
    asked = {"x-amz-storage-class": name}

    assert (400, "InvalidStorageClass") == outcome(s3.put("k", b"new", asked))
    assert (400, "InvalidStorageClass") == outcome(s3.post("k", b"", asked, query="uploads"))
    copied = {**asked, "x-amz-copy-source": f"/{s3.bucket}/k"}
    assert (400, "InvalidStorageClass") == outcome(s3.put("k", b"", copied))
    assert b"old" == s3.get("k").body


@pytest.mark.parametrize("name", ["STANDARD", "STANDARD_IA", "REDUCED_REDUNDANCY", "GLACIER"])
def test_every_storage_class_is_standard(s3: Client, name: str) -> None:
    assert 200 == s3.put("k", b"x", {"x-amz-storage-class": name}).status
    assert "STANDARD" == s3.get(list_type=2).element("StorageClass")
    assert s3.head("k").headers.get("x-amz-storage-class", "STANDARD") == "STANDARD"
    asked = {"x-amz-object-attributes": "StorageClass"}
    assert "STANDARD" == s3.get("k", asked, query="attributes").element("StorageClass")
    copied = {"x-amz-storage-class": name, "x-amz-copy-source": f"/{s3.bucket}/k"}
    assert 200 == s3.put("k", b"", copied).status  # onto itself: a change of class is enough
    assert b"x" == s3.get("k").body
