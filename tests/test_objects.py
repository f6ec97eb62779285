"""Objects: what is put comes back as it came; what is refused changes nothing."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

import pytest
from conftest import Serve, Server, flip
from signing_client import UNSIGNED, UNSIGNED_TRAILER, Client, Reply

import s3mini

DIGITS = b"0123456789"
NAMED_KEYS = [
    "a b",
    "a+b",
    "ä",
    "a%20b",
    "100%",
    "a?b",
    "a&b=c",
    "#",
    "日本",
    "a//b",
    "dir/",
    "'()*!~;,:@$",
]


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def base64_md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def kept(reply: Reply) -> dict[str, str]:
    """The headers of an answer without those that differ from one answer to the next."""
    changing = ("date", "x-amz-request-id", "x-amz-id-2")
    return {name: value for name, value in reply.headers.items() if name not in changing}


# -- put, get, head, delete ------------------------------------------------------------------------


def test_an_object_comes_back_as_it_was_put(s3: Client) -> None:
    put = s3.put("photos/cat.jpg", b"meow")
    got = s3.get("photos/cat.jpg")

    assert (200, b"", md5(b"meow")) == (put.status, put.body, put.etag)
    assert (200, b"meow", md5(b"meow")) == (got.status, got.body, got.etag)
    assert "4" == got.headers["content-length"]
    assert "bytes" == got.headers["accept-ranges"]
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", got.headers["last-modified"])


def test_an_empty_object_is_an_object(s3: Client) -> None:
    s3.put("empty")
    got = s3.get("empty")

    assert (200, b"", md5(b"")) == (got.status, got.body, got.etag)


def test_an_object_of_a_megabyte_and_a_byte_comes_back(s3: Client) -> None:
    data = bytes(range(256)) * 4096 + b"!"
    s3.put("large", data)

    assert data == s3.get("large").body


def test_a_second_put_replaces_content_and_all_metadata(s3: Client) -> None:
    s3.put("k", b"old", {"content-type": "text/plain", "x-amz-meta-a": "1"})
    s3.put("k", b"new", {"x-amz-meta-b": "2"})
    got = s3.get("k")

    assert b"new" == got.body
    assert "2" == got.headers["x-amz-meta-b"]
    assert "x-amz-meta-a" not in got.headers
    assert "binary/octet-stream" == got.headers["content-type"]


def test_a_deleted_object_is_gone(s3: Client) -> None:
    s3.put("k", b"x")
    deleted = s3.delete("k")

    assert (204, b"") == (deleted.status, deleted.body)
    assert "NoSuchKey" == s3.get("k").error
    assert 404 == s3.head("k").status


def test_deleting_what_is_not_there_succeeds(s3: Client) -> None:
    assert 204 == s3.delete("never/was").status


def test_a_missing_bucket_has_its_own_error(server: Server) -> None:
    got = server.client("test-key").get("/test-nowhere/k")

    assert (404, "NoSuchBucket", "test-nowhere") == (
        got.status,
        got.error,
        got.element("BucketName"),
    )


def test_a_missing_key_is_named_in_its_error(s3: Client) -> None:
    got = s3.get("a<b>&c")

    assert (404, "NoSuchKey", "a<b>&c") == (got.status, got.error, got.element("Key"))


# -- headers and metadata --------------------------------------------------------------------------


def test_headers_come_back_as_they_came(s3: Client) -> None:
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-encoding": "gzip",
        "content-disposition": "attachment; filename=\"a b.txt\"; filename*=UTF-8''%c3%a4",
        "content-language": "de, en",
        "cache-control": "public, max-age=60",
        "expires": "Thu, 01 Dec 2044 16:00:00 GMT",
    }
    s3.put("k", b"x", headers)
    got = s3.get("k")

    assert headers == {name: got.headers.get(name) for name in headers}


def test_an_expires_that_is_no_date_comes_back_too(s3: Client) -> None:
    s3.put("k", b"x", {"expires": "0"})

    assert "0" == s3.get("k").headers["expires"]


def test_without_a_type_an_object_is_a_stream_of_bytes(s3: Client) -> None:
    s3.put("page.html", b"x")

    assert "binary/octet-stream" == s3.get("page.html").headers["content-type"]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [("aws-chunked", None), ("aws-chunked,gzip", "gzip"), ("gzip, aws-chunked", "gzip")],
)
def test_aws_chunked_is_no_encoding_of_the_object(s3: Client, sent: str, stored: str) -> None:
    crc = base64.b64encode(zlib.crc32(b"x").to_bytes(4, "big")).decode()
    trailers = {"x-amz-checksum-crc32": crc}
    s3.put("k", b"x", {"content-encoding": sent}, payload=UNSIGNED_TRAILER, trailers=trailers)
    got = s3.get("k")

    assert (b"x", stored) == (got.body, got.headers.get("content-encoding"))


@pytest.mark.parametrize("coding", ["br, gzip", "gzip,,br", " gzip , br", "identity", "GZIP"])
def test_an_encoding_comes_back_as_it_came(s3: Client, coding: str) -> None:
    s3.put("k", b"x", {"content-encoding": coding})

    assert coding.strip() == s3.get("k").headers["content-encoding"]


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "two  spaces inside",
        "=?UTF-8?B?w6TDtsO8?=",  # as boto3 and the Java SDK send what is not ASCII
        "=?UTF-8?Q?=C3=A4?=",
        "<&>\"'",
        "a,b;c=d",
        "1" * 1500,
    ],
)
def test_metadata_comes_back_as_it_came(s3: Client, value: str) -> None:
    s3.put("k", b"x", {"x-amz-meta-some-name": value})

    assert value == s3.get("k").headers["x-amz-meta-some-name"]
    assert value == s3.head("k").headers["x-amz-meta-some-name"]


def test_names_of_metadata_are_lower_case(s3: Client) -> None:
    headers = s3.sign("PUT", f"/{s3.bucket}/k", [], {"x-amz-meta-camelcase": "v"}, UNSIGNED)
    sent = {name.title(): value for name, value in headers.items()}
    s3.send("PUT", f"/{s3.bucket}/k", sent, b"x")

    assert "v" == s3.get("k").headers["x-amz-meta-camelcase"]


def test_empty_metadata_is_kept(s3: Client) -> None:
    s3.put("k", b"x", {"x-amz-meta-empty": ""})

    assert "" == s3.get("k").headers["x-amz-meta-empty"]


def test_metadata_may_have_2_kb(s3: Client) -> None:
    headers = {"x-amz-meta-aa": "v" * 1022, "x-amz-meta-bb": "v" * 1022}

    assert 200 == s3.put("k", b"x", headers).status


def test_metadata_over_2_kb_is_refused_and_the_old_object_stays(s3: Client) -> None:
    s3.put("k", b"old")
    put = s3.put("k", b"new", {"x-amz-meta-aa": "v" * 1022, "x-amz-meta-bb": "v" * 1023})

    assert (400, "MetadataTooLarge") == (put.status, put.error)
    assert b"old" == s3.get("k").body


def test_what_else_is_kept_of_a_head_may_have_6_kb(s3: Client) -> None:
    """AWS takes heads of 8 KB in all; ours have 64, and what is kept is read with each listing."""
    headers = {"content-type": "a/b", "content-language": "l" * 3070, "cache-control": "c" * 3071}
    over = {**headers, "content-encoding": "e"}
    s3.put("k", b"old")

    for put in (
        s3.put("k", b"new", over),
        s3.post("k", b"", over, query="uploads"),
        s3.put("k", b"", {**over, "x-amz-copy-source": f"/{s3.bucket}/k"}),
    ):
        assert (400, "MetadataTooLarge") == (put.status, put.error)
    assert b"old" == s3.get("k").body
    assert 200 == s3.put("k", b"new", headers).status
    assert headers.items() <= s3.head("k").headers.items()


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-3", 0, 3),
        ("bytes=4-", 4, 9),
        ("bytes=-3", 7, 9),
        ("bytes=-100", 0, 9),
        ("bytes=8-100", 8, 9),
        ("bytes=0-0", 0, 0),
        ("bytes=9-9", 9, 9),
        ("bytes=0-", 0, 9),
    ],
)
def test_a_range_gives_its_bytes(s3: Client, asked: str, first: int, last: int) -> None:
    s3.put("k", DIGITS)
    got = s3.get("k", {"range": asked})

    assert (206, DIGITS[first : last + 1]) == (got.status, got.body)
    assert f"bytes {first}-{last}/10" == got.headers["content-range"]
    assert str(last - first + 1) == got.headers["content-length"]


@pytest.mark.parametrize(
    "asked", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=999999999999999-"]
)
def test_a_range_past_the_end_is_416_with_the_size(s3: Client, asked: str) -> None:
    s3.put("k", DIGITS)
    got = s3.get("k", {"range": asked})

    assert (416, "InvalidRange", "10") == (got.status, got.error, got.element("ActualObjectSize"))
    assert "bytes */10" == got.headers["content-range"]


def test_an_empty_object_has_no_range(s3: Client) -> None:
    s3.put("k")

    assert 416 == s3.get("k", {"range": "bytes=0-"}).status


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,3-4",
        "bytes=0-0,-1",
        "bytes=5-2",
        "lines=0-3",
        "bytes=a-b",
        "bytes=-",
        "0-3",
        "bytes=1-2-3",
    ],
)
def test_several_ranges_and_nonsense_give_the_whole(s3: Client, asked: str) -> None:
    s3.put("k", DIGITS)
    got = s3.get("k", {"range": asked})

    assert (200, DIGITS) == (got.status, got.body)
    assert "content-range" not in got.headers


def test_a_range_of_a_large_object_is_sent_from_its_middle(s3: Client) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(100_000))
    s3.put("k", data)

    assert data[100_000:300_001] == s3.get("k", {"range": "bytes=100000-300000"}).body


def test_if_range_gives_the_range_only_of_the_same_object(s3: Client) -> None:
    etag = s3.put("k", DIGITS).etag
    date = s3.head("k").headers["last-modified"]
    other = "Sun, 06 Nov 1994 08:49:37 GMT"

    for condition in (f'"{etag}"', date):
        assert 206 == s3.get("k", {"range": "bytes=0-3", "if-range": condition}).status
    for condition in ('"other"', other, "nonsense"):
        assert 200 == s3.get("k", {"range": "bytes=0-3", "if-range": condition}).status


def test_part_1_of_an_object_put_at_once_is_all_of_it(s3: Client) -> None:
    s3.put("k", DIGITS)
    got = s3.get("k", partNumber=1)

    assert (206, DIGITS, "bytes 0-9/10") == (got.status, got.body, got.headers["content-range"])


def test_part_1_of_an_empty_object_is_all_of_it(s3: Client) -> None:
    s3.put("k")
    for got in (s3.get("k", partNumber=1), s3.head("k", partNumber=1)):
        assert (200, b"", "0") == (got.status, got.body, got.headers["content-length"])
        assert "content-range" not in got.headers


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        ("2", 416, "InvalidPartNumber"),
        ("0", 400, "InvalidArgument"),
        ("10001", 400, "InvalidArgument"),
        ("x", 400, "InvalidArgument"),
    ],
)
def test_a_part_that_is_not_there_is_refused(
    s3: Client, number: str, status: int, code: str
) -> None:
    s3.put("k", DIGITS)
    got = s3.get("k", partNumber=number)

    assert (status, code) == (got.status, got.error)


def test_a_part_of_a_range_makes_no_sense(s3: Client) -> None:
    s3.put("k", DIGITS)

    assert "InvalidRequest" == s3.get("k", {"range": "bytes=0-1"}, partNumber=1).error


# -- conditions of a read --------------------------------------------------------------------------

SAME, PAST, FUTURE = "same", "past", "future"


def conditions(given: dict[str, str], etag: str, modified: str) -> dict[str, str]:
    """Headers with the object's own ETag and date filled in."""
    now = time.time()
    dates = {SAME: modified, PAST: formatdate(now - 9999, usegmt=True)}
    dates[FUTURE] = formatdate(now + 9999, usegmt=True)
    return {n: dates.get(v) or v.replace("ETAG", f'"{etag}"') for n, v in given.items()}


READ_CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"if-match": "ETAG"}, 200),
    ({"if-match": '"other"'}, 412),
    ({"if-match": "*"}, 200),
    ({"if-match": '"other", ETAG'}, 200),
    ({"if-none-match": "ETAG"}, 304),
    ({"if-none-match": "W/ETAG"}, 304),
    ({"if-none-match": '"other"'}, 200),
    ({"if-none-match": "*"}, 304),
    ({"if-none-match": '"other",ETAG'}, 304),
    ({"if-modified-since": PAST}, 200),
    ({"if-modified-since": SAME}, 304),
    ({"if-unmodified-since": PAST}, 412),
    ({"if-unmodified-since": SAME}, 200),
    ({"if-unmodified-since": FUTURE}, 200),
    # RFC 9110 §13.2.2: the ETag conditions come first and make the dates unimportant
    ({"if-match": "ETAG", "if-unmodified-since": PAST}, 200),
    ({"if-match": '"other"', "if-unmodified-since": FUTURE}, 412),
    ({"if-none-match": '"other"', "if-modified-since": SAME}, 200),
    ({"if-none-match": "ETAG", "if-modified-since": PAST}, 304),
    ({"if-match": '"other"', "if-none-match": "ETAG"}, 412),
    ({"if-match": "ETAG", "if-none-match": "ETAG"}, 304),
    ({"if-unmodified-since": PAST, "if-modified-since": SAME}, 412),
    ({"if-unmodified-since": PAST, "if-none-match": "ETAG"}, 412),
    # a date that cannot be read is none
    ({"if-modified-since": "yesterday"}, 200),
    ({"if-unmodified-since": "yesterday"}, 200),
    ({"if-modified-since": ""}, 200),
]


def test_the_conditions_of_a_read_and_their_order(s3: Client) -> None:
    s3.put("k", DIGITS)
    head = s3.head("k")
    given = [conditions(c, head.etag, head.headers["last-modified"]) for c, _ in READ_CONDITIONS]

    assert [status for _, status in READ_CONDITIONS] == [s3.get("k", g).status for g in given]
    assert [status for _, status in READ_CONDITIONS] == [s3.head("k", g).status for g in given]


def test_not_modified_has_no_body_and_the_etag(s3: Client) -> None:
    etag = s3.put("k", DIGITS, {"cache-control": "max-age=5"}).etag
    got = s3.get("k", {"if-none-match": f'"{etag}"'})

    assert (304, b"", etag) == (got.status, got.body, got.etag)
    assert "max-age=5" == got.headers["cache-control"]


def test_a_condition_that_failed_is_named(s3: Client) -> None:
    s3.put("k", DIGITS)
    got = s3.get("k", {"if-match": '"other"'})

    assert ("PreconditionFailed", "If-Match") == (got.error, got.element("Condition"))


def test_a_condition_on_a_missing_key_is_404(s3: Client) -> None:
    assert 404 == s3.get("k", {"if-match": '"x"'}).status
    assert 404 == s3.get("k", {"if-none-match": "*"}).status


# -- response-*, unknown names ---------------------------------------------------------------------


def test_a_signed_request_may_override_headers_of_the_answer(s3: Client) -> None:
    wanted = {
        "content-type": "text/plain",
        "content-language": "de",
        "expires": "Thu, 01 Dec 2044 16:00:00 GMT",
        "cache-control": "no-cache",
        "content-disposition": 'attachment; filename="x, y.txt"',
        "content-encoding": "br",
    }
    s3.put("k", b"x", {"content-type": "image/png", "cache-control": "public"})
    query = {f"response-{name}": value for name, value in wanted.items()}

    for got in (s3.get("k", query=query), s3.head("k", query=query)):
        assert wanted == {name: got.headers.get(name) for name in wanted}


def test_an_override_cannot_split_the_answer(s3: Client) -> None:
    s3.put("k", b"x")
    got = s3.get("k", query={"response-content-type": "a/b\r\nx-evil: 1\r\n\r\nevil"})

    assert "x-evil" not in got.headers
    assert b"x" == got.body


@pytest.mark.parametrize(
    "query", ["v=3", "x-id=GetObject", "v", "foo=bar&baz=1", "utm_source=%C3%A4"]
)
def test_reads_ignore_names_that_select_nothing(s3: Client, query: str) -> None:
    s3.put("k", b"x")

    assert (200, b"x") == (s3.get("k", query=query).status, s3.get("k", query=query).body)
    assert 200 == s3.head("k", query=query).status


VERSIONED = [("GET", ""), ("HEAD", ""), ("DELETE", ""), ("GET", "tagging"), ("PUT", "tagging"),
             ("DELETE", "tagging"), ("GET", "acl"), ("GET", "attributes")]  # fmt: skip


@pytest.mark.parametrize(("method", "query"), VERSIONED)
@pytest.mark.parametrize(
    ("version", "status", "code"),
    [
        ("dsf", 400, "InvalidArgument"),
        ("", 400, "InvalidArgument"),
        ("Null", 400, "InvalidArgument"),
        ("a" * 31 + "!", 400, "InvalidArgument"),
        ("v5n1PPUjOCMHLyyfq0ayjoZ5RZLfVQKA", 404, "NoSuchVersion"),
        ("KC0WuaPTHv7At3olS.BPuh.weAJqMkKJ", 404, "NoSuchVersion"),
    ],
)
def test_the_version_null_is_the_only_one(
    s3: Client, method: str, query: str, version: str, status: int, code: str
) -> None:
    s3.put("k", b"x")
    asked = {"x-amz-object-attributes": "ETag"}
    named = f"{query}&versionId={version}".lstrip("&")
    reply = s3(method, "k", TAGS if method == "PUT" else b"", asked, query=named)
    if (method, query, status) == ("DELETE", "", 404):  # as of a key that is not there
        status, code = 204, ""
        assert version == reply.headers["x-amz-version-id"]

    assert (status, code if method != "HEAD" else "") == (reply.status, reply.error)
    assert (b"x", None) == (s3.get("k").body, s3.get("k").headers.get("x-amz-tagging-count"))


@pytest.mark.parametrize(("method", "query"), VERSIONED)
def test_the_version_null_may_be_named(s3: Client, method: str, query: str) -> None:
    """rclone and s3-tests delete what a listing of versions tells them."""
    s3.put("k", b"x")
    asked = {"x-amz-object-attributes": "ETag"}
    named = f"{query}&versionId=null".lstrip("&")
    reply = s3(method, "k", TAGS if method == "PUT" else b"", asked, query=named)

    assert reply.status in (200, 204)
    assert s3.head("k").status == (404 if (method, query) == ("DELETE", "") else 200)


# A POST without a known name is no operation at all, so the method is what is wrong.
REFUSED = {"PUT": (501,), "DELETE": (501,), "POST": (501, 405)}


def without_route(method: str, scope: str) -> list[str]:
    """Every query name we know of and have no operation for, and some that nobody knows."""
    known = [name for name in s3mini.SELECTORS if (method, scope, name) not in s3mini.ROUTES]
    return [
        *sorted(known),
        "foo",
        "ACL",
        "Tagging",
        "versionid",
        "partNumber",
        "v",
        "prefix",
        "acl&foo",
    ]


def test_every_detail_of_an_object_or_bucket_that_botocore_reads_is_known() -> None:
    """Were one missing, its GET would be answered with the object itself."""
    session = pytest.importorskip("botocore.session").get_session()
    model = session.get_service_model("s3")
    uris = {name: model.operation_model(name).http for name in model.operation_names}
    names = {
        detail.partition("=")[0]
        for http in uris.values() if http["method"] in ("GET", "HEAD")
        for detail in http["requestUri"].partition("?")[2].split("&") if detail
    }

    assert {"acl", "tagging", "versions"} <= names
    assert names - {"x-id"} <= s3mini.SELECTORS


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_a_write_with_an_unknown_name_is_refused_before_anything_is_touched(
    s3: Client, method: str
) -> None:
    s3.put("k", b"old", {"x-amz-meta-a": "1"})
    wrong = {}
    for name in without_route(method, "object"):
        for query in (name, f"{name}=1", name.replace("a", "%61", 1)):
            reply = s3(method, "k", b"evil", target=f"/{s3.bucket}/k?{query}")
            got = s3.get("k")
            untouched = (got.body, got.headers.get("x-amz-meta-a")) == (b"old", "1")
            if reply.status not in REFUSED[method] or not untouched:
                wrong[query] = (reply.status, reply.error, got.status, got.body)

    assert {} == wrong


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_an_unknown_name_on_a_bucket_is_refused_before_anything_is_touched(
    s3: Client, method: str
) -> None:
    wrong = {}
    for name in without_route(method, "bucket"):
        reply = s3(method, "", b"<x/>", target=f"/{s3.bucket}?{name}")
        if reply.status not in REFUSED[method] or s3.head().status != 200:
            wrong[name] = (reply.status, reply.error, s3.head().status)

    assert {} == wrong


def test_an_unknown_selector_never_gives_the_object(s3: Client) -> None:
    s3.put("k", b"content of the object")
    names = [n for n in s3mini.SELECTORS if ("GET", "object", n) not in s3mini.ROUTES]
    answers = {name: s3.get("k", query=name) for name in names}

    assert {} == {
        n: a.status for n, a in answers.items() if a.status != 501 or b"content" in a.body
    }


@pytest.mark.parametrize("query", ["acl&tagging", "uploads&uploadId=x", "delete&uploads"])
def test_two_operations_at_once_are_refused(s3: Client, query: str) -> None:
    s3.put("k", b"old")

    assert s3("PUT", target=f"/{s3.bucket}/k?{query}").status in (400, 501)
    assert b"old" == s3.get("k").body


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "BREW"])
def test_other_methods_are_not_allowed(s3: Client, method: str) -> None:
    s3.put("k", b"old")

    assert s3(method, "k").status in (400, 405)
    assert b"old" == s3.get("k").body


@pytest.mark.parametrize(
    "header",
    [
        {"x-amz-server-side-encryption": "aws:kms"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
        {"x-amz-object-lock-mode": "GOVERNANCE"},
        {"x-amz-grant-read": "id=1"},
        {"x-amz-website-redirect-location": "/x"},
    ],
)
def test_what_is_not_done_is_refused_by_name(s3: Client, header: dict[str, str]) -> None:
    s3.put("k", b"old")
    put = s3.put("k", b"new", header)

    assert (501, next(iter(header))) == (put.status, put.element("Header"))
    assert b"old" == s3.get("k").body


TAGS = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
OPERATIONS: dict[str, tuple[str, str, str, bytes]] = {  # method, key, query, body
    "get": ("GET", "k", "", b""),
    "head": ("HEAD", "k", "", b""),
    "put": ("PUT", "k", "", b"new"),
    "delete": ("DELETE", "k", "", b""),
    "attributes": ("GET", "k", "attributes", b""),
    "put tags": ("PUT", "k", "tagging", TAGS),
    "delete tags": ("DELETE", "k", "tagging", b""),
    "get acl": ("GET", "k", "acl", b""),
    "list": ("GET", "", "list-type=2", b""),
    "versions": ("GET", "", "versions", b""),
    "head bucket": ("HEAD", "", "", b""),
    "make bucket": ("PUT", "", "", b""),
    "delete bucket": ("DELETE", "", "", b""),
    "location": ("GET", "", "location", b""),
    "versioning": ("GET", "", "versioning", b""),
    "delete many": ("POST", "", "delete", b"<Delete><Object><Key>k</Key></Object></Delete>"),
    "start": ("POST", "k", "uploads", b""),
    "part": ("PUT", "k", "partNumber=1&uploadId=ID", b"part"),
    "parts": ("GET", "k", "uploadId=ID", b""),
    "complete": (
        "POST",
        "k",
        "uploadId=ID",
        b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"
        b"9dd4e461268c8034f5c8564e155c67a6</ETag></Part></CompleteMultipartUpload>",  # of "x"
    ),
    "abort": ("DELETE", "k", "uploadId=ID", b""),
    "list uploads": ("GET", "", "uploads", b""),
}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"x-amz-expected-bucket-owner": "111122223333"}, 403),
        ({"x-amz-source-expected-bucket-owner": ""}, 403),
        ({"x-amz-server-side-encryption-customer-algorithm": "AES256"}, 501),
        ({"x-amz-copy-source-server-side-encryption-customer-key": "AES256"}, 501),
        ({"x-amz-mfa": "1 2"}, 501),
    ],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_operation_ignores_what_it_does_not_do(
    s3: Client, operation: str, header: dict[str, str], status: int
) -> None:
    method, key, query, body = OPERATIONS[operation]
    s3.put("k", b"x")
    upload = s3.post("k", query="uploads").element("UploadId")
    s3.put("k", b"x", partNumber=1, uploadId=upload)
    md5 = {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()} if body else {}
    reply = s3(method, key, body, {**header, **md5}, query=query.replace("ID", upload))

    assert status == reply.status, reply.body
    if method != "HEAD":
        assert reply.error in {"AccessDenied", "NotImplemented"}
    got = s3.get("k")
    assert (b"x", None) == (got.body, got.headers.get("x-amz-tagging-count"))
    assert ["1"] == s3.get("k", uploadId=upload).elements("PartNumber")


def test_the_owner_that_is_expected_may_be_the_right_one(
    server: Server, s3: Client, boto: Any
) -> None:
    owner = boto.list_buckets()["Owner"]["ID"]
    named = {"Bucket": s3.bucket, "Key": "k", "ExpectedBucketOwner": owner}
    boto.put_object(**named, Body=b"x")
    source = {"CopySource": f"{s3.bucket}/k", "ExpectedSourceBucketOwner": owner}
    boto.copy_object(**{**named, "Key": "copy"}, **source)

    assert b"x" == boto.get_object(**named)["Body"].read()
    url = boto.generate_presigned_url("get_object", {**named, "ExpectedBucketOwner": "other"})
    assert 403 == s3.fetch(url).status
    for name in ("x-amz-expected-bucket-owner", "X-Amz-Expected-Bucket-Owner"):
        moved = s3.presign("GET", "k", query={name: "other"})  # as the SDK of JavaScript does
        assert (403, "AccessDenied") == (s3.fetch(moved).status, s3.fetch(moved).error)


# -- head is get without the body ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "headers", "query"),
    [
        ("k", {}, ""),
        ("k", {"range": "bytes=2-4"}, ""),
        ("k", {"range": "bytes=99-"}, ""),
        ("k", {"if-none-match": "*"}, ""),
        ("k", {"if-match": '"x"'}, ""),
        ("k", {"x-amz-checksum-mode": "ENABLED"}, ""),
        ("k", {}, "partNumber=1"),
        ("k", {}, "response-content-type=text%2Fcss"),
        ("missing", {}, ""),
        ("empty", {}, ""),
    ],
)
def test_head_equals_get_without_the_body(
    s3: Client, key: str, headers: dict[str, str], query: str
) -> None:
    s3.put("empty")
    sent = {"content-type": "text/plain", "x-amz-meta-a": "b", "x-amz-checksum-crc32": "poTHxg=="}
    assert 200 == s3.put("k", DIGITS, sent).status
    got, head = s3.get(key, headers, query=query), s3.head(key, headers, query=query)

    assert (got.status, b"") == (head.status, head.body)
    if got.status < 300:
        assert kept(got) == kept(head)


TOLD = [
    {},
    {"content-type": "text/html", "cache-control": "max-age=3", "x-amz-meta-a": "=?UTF-8?B?w6Q=?="},
    {"content-type": "a, image/svg+xml", "expires": "0", "content-disposition": "attachment"},
    {"x-amz-tagging": "a=b&c=d", "content-encoding": "gzip", "x-amz-checksum-crc32": "poTHxg=="},
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("sent", TOLD)
def test_an_answer_from_memory_says_what_any_other_does(
    s3: Client, method: str, sent: dict[str, str]
) -> None:
    """Its headers are rendered once; where a checksum might be asked for they never are."""
    put = s3.put("k", DIGITS, sent)
    assert (200, "") == (put.status, put.error)
    twin = s3(method, "k", headers={"x-amz-checksum-mode": "no"})
    time.sleep(0.1)  # a content is not kept in the tick of its change
    replies = [s3(method, "k") for _ in range(3)]

    assert [kept(twin)] * 3 == [kept(reply) for reply in replies]
    assert [twin.body] * 3 == [reply.body for reply in replies]
    s3.put("k", DIGITS[:5], {"content-type": "text/css"})
    again = s3(method, "k")
    assert ("text/css", "5") == (again.headers["content-type"], again.headers["content-length"])


# -- digests and checksums -------------------------------------------------------------------------

NINE = b"123456789"
CHECKSUMS = {  # of NINE, from the catalogue of CRCs and from hashlib
    "crc32": base64.b64encode(0xCBF43926.to_bytes(4, "big")).decode(),
    "crc32c": base64.b64encode(0xE3069283.to_bytes(4, "big")).decode(),
    "crc64nvme": base64.b64encode(0xAE8B14860A799888.to_bytes(8, "big")).decode(),
    "sha1": base64.b64encode(hashlib.sha1(NINE).digest()).decode(),
    "sha256": base64.b64encode(hashlib.sha256(NINE).digest()).decode(),
}


@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_a_checksum_is_kept_and_given_back_when_asked_for(s3: Client, algorithm: str) -> None:
    name, value = f"x-amz-checksum-{algorithm}", CHECKSUMS[algorithm]
    put = s3.put("k", NINE, {name: value})
    got = s3.get("k", {"x-amz-checksum-mode": "ENABLED"})

    assert (200, value) == (put.status, put.headers[name])
    assert (value, "FULL_OBJECT") == (got.headers[name], got.headers["x-amz-checksum-type"])
    assert name not in s3.get("k").headers
    assert name not in s3.get("k", {"x-amz-checksum-mode": "ENABLED", "range": "bytes=0-3"}).headers


@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_a_checksum_in_the_trailer_counts_as_much(s3: Client, algorithm: str) -> None:
    name, value = f"x-amz-checksum-{algorithm}", CHECKSUMS[algorithm]
    put = s3.put("k", NINE, payload=UNSIGNED_TRAILER, trailers={name: value})

    assert (200, value) == (put.status, put.headers[name])
    assert NINE == s3.get("k").body
    assert value == s3.head("k", {"x-amz-checksum-mode": "ENABLED"}).headers[name]


SHA1 = {"x-amz-checksum-sha1": CHECKSUMS["sha1"]}


def zeros(checksum: str) -> str:
    """Another checksum of the same length."""
    return base64.b64encode(bytes(len(base64.b64decode(checksum)))).decode()


WRONG_DIGESTS: list[tuple[dict[str, str], str]] = [
    ({"content-md5": base64_md5(b"other")}, "BadDigest"),
    ({"content-md5": "nonsense"}, "InvalidDigest"),
    ({"content-md5": md5(NINE)}, "InvalidDigest"),  # hex where base64 belongs
    *[({f"x-amz-checksum-{a}": zeros(v)}, "BadDigest") for a, v in CHECKSUMS.items()],
    *[({f"x-amz-checksum-{a}": "nonsense"}, "InvalidRequest") for a in CHECKSUMS],
    ({"x-amz-checksum-crc32": CHECKSUMS["crc32c"]}, "BadDigest"),
    ({"x-amz-checksum-crc32": CHECKSUMS["crc32"], **SHA1}, "InvalidRequest"),
    ({"x-amz-sdk-checksum-algorithm": "CRC32"}, "InvalidRequest"),
    ({"x-amz-sdk-checksum-algorithm": "CRC32", **SHA1}, "InvalidRequest"),
    ({"x-amz-content-sha256": "0" * 64}, "XAmzContentSHA256Mismatch"),
]  # fmt: skip


def test_a_digest_that_is_none_is_shown_as_it_came(s3: Client) -> None:
    """The element has AWS's name, with its hyphen."""
    assert "MTIz" == s3.put("k", b"x", {"content-md5": "MTIz"}).element("Content-MD5")


@pytest.mark.parametrize(("headers", "code"), WRONG_DIGESTS)
def test_a_wrong_digest_leaves_the_old_object(
    server: Server, s3: Client, headers: dict[str, str], code: str
) -> None:
    s3.put("k", b"old", {"x-amz-meta-a": "1"})
    # The hash of the payload is signed as the header says, so only the body itself is wrong.
    payload = headers.get("x-amz-content-sha256", "")
    put = s3.put("k", NINE, {**headers, "x-amz-meta-a": "2"}, payload=payload)
    got = s3.get("k")

    assert (400, code) == (put.status, put.error)
    assert (b"old", "1") == (got.body, got.headers["x-amz-meta-a"])
    assert [] == list((server.data / s3.bucket / ".s3mini/tmp").iterdir())


def test_a_body_changed_on_its_way_leaves_nothing_behind(s3: Client) -> None:
    put = s3.put("new/folder/k", NINE, tamper=lambda body: body.replace(b"5", b"6"))

    assert "XAmzContentSHA256Mismatch" == put.error
    assert "0" == s3.get(list_type=2).element("KeyCount")


def test_content_md5_and_a_checksum_may_come_together(s3: Client) -> None:
    headers = {"content-md5": base64_md5(NINE), "x-amz-checksum-crc32": CHECKSUMS["crc32"]}

    assert 200 == s3.put("k", NINE, headers).status  # Rails' Active Storage does


def test_a_checksum_nobody_knows_here_is_not_accepted_unchecked(s3: Client) -> None:
    assert s3.put("k", NINE, {"x-amz-checksum-xxhash128": "AAAA"}).status in (400, 501)
    assert 404 == s3.head("k").status


# -- conditional writes ----------------------------------------------------------------------------


def test_create_only_puts_once(s3: Client) -> None:
    first = s3.put("k", b"1", {"if-none-match": "*"})
    second = s3.put("k", b"2", {"if-none-match": "*"})

    assert (200, 412, "PreconditionFailed") == (first.status, second.status, second.error)
    assert "If-None-Match" == second.element("Condition")
    assert b"1" == s3.get("k").body


def test_what_a_write_must_not_find_is_anything(s3: Client) -> None:
    """AWS knows If-None-Match: * there, and alone: 501 for an ETag."""
    etag = s3.put("k", b"1").headers["etag"]
    s3.put("source", b"2")
    for conditions in ({"if-none-match": etag}, {"if-none-match": '"other"'},
                       {"if-none-match": "*", "if-match": etag}):
        for key in ("k", "new"):
            for reply in (s3.put(key, b"2", conditions), copy(s3, "source", key, conditions)):
                assert (501, "NotImplemented") == (reply.status, reply.error)
                assert "If-None-Match" == reply.element("Header")

    assert b"1" == s3.get("k").body
    assert 404 == s3.head("new").status


def test_if_match_replaces_only_what_the_writer_has_seen(s3: Client) -> None:
    etag = s3.put("k", b"1").etag
    second = s3.put("k", b"2", {"if-match": f'"{etag}"'})
    third = s3.put("k", b"3", {"if-match": f'"{etag}"'})

    assert (200, 412) == (second.status, third.status)
    assert b"2" == s3.get("k").body


def test_if_match_on_a_key_that_is_not_there_is_404(s3: Client) -> None:
    put = s3.put("k", b"1", {"if-match": f'"{md5(b"")}"'})

    assert (404, "NoSuchKey") == (put.status, put.error)
    for key in ("k", "no/folder/k"):
        assert "NoSuchKey" == s3.delete(key, {"if-match": '"other"'}).error


def test_delete_if_match(s3: Client) -> None:
    etag = s3.put("k", b"1").etag
    refused = s3.delete("k", {"if-match": '"other"'})

    assert (412, 200) == (refused.status, s3.head("k").status)
    assert (204, 404) == (s3.delete("k", {"if-match": f'"{etag}"'}).status, s3.head("k").status)


LONG_AGO, TOMORROW = "Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.mark.parametrize("write", ["put", "copy", "complete", "delete"])
def test_a_write_changes_nothing_that_was_modified_since(s3: Client, write: str) -> None:
    s3.put("source", b"new")
    upload = s3.post("k", uploads="").element("UploadId")
    etag = s3.put("k", b"new", partNumber=1, uploadId=upload).etag
    part = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    document = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()
    writes: dict[str, Callable[[dict[str, str]], Reply]] = {
        "put": lambda headers: s3.put("k", b"new", headers),
        "copy": lambda headers: copy(s3, "source", "k", headers),
        "complete": lambda headers: s3.post("k", document, headers, uploadId=upload),
        "delete": lambda headers: s3.delete("k", headers),
    }
    first = s3.put("k", b"old").etag
    refused = writes[write]({"if-unmodified-since": LONG_AGO})

    assert (412, "PreconditionFailed") == (refused.status, refused.error)
    assert "If-Unmodified-Since" == refused.element("Condition")
    assert b"old" == s3.get("k").body
    if write == "complete":
        assert 200 == writes[write]({"if-unmodified-since": TOMORROW}).status
        return  # it can be done once
    # If-Match tells more, and what is no date says nothing. [RFC 9110 §13.1.4]
    for headers in ({"if-unmodified-since": TOMORROW}, {"if-unmodified-since": "soon"},
                    {"if-unmodified-since": LONG_AGO, "if-match": f'"{first}"'}):
        s3.put("k", b"old")
        assert writes[write](headers).status == (204 if write == "delete" else 200), headers
        assert (404 if write == "delete" else 200) == s3.get("k").status


def test_a_delete_obeys_if_none_match(s3: Client) -> None:
    s3.put("k", b"1")

    assert "PreconditionFailed" == s3.delete("k", {"if-none-match": "*"}).error
    assert b"1" == s3.get("k").body
    assert 204 == s3.delete("k", {"if-none-match": '"other"'}).status
    assert 204 == s3.delete("k", {"if-none-match": "*"}).status


def test_a_part_of_an_object_is_not_stored_as_the_whole(s3: Client) -> None:
    """`curl -C 4 -T` sends the rest, and says so in Content-Range."""
    s3.put("k", DIGITS)
    tail = s3.put("k", DIGITS[4:], {"content-range": f"bytes 4-{len(DIGITS) - 1}/{len(DIGITS)}"})
    ranged = copy(s3, "k", "copied", {"x-amz-copy-source-range": "bytes=0-1"})

    assert [(400, "InvalidRequest")] * 2 == [(r.status, r.error) for r in (tail, ranged)]
    assert (DIGITS, 404) == (s3.get("k").body, s3.head("copied").status)


def race(work: Callable[[int], Any], racers: int) -> list[Any]:
    """What each of the racers got; they start at the same moment."""
    start = threading.Barrier(racers)

    def run(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(racers) as pool:
        return list(pool.map(run, range(racers)))


def check_create_only_has_one_winner(client: Client) -> None:
    for key in ("a", "b/c", "d", "e/f/g"):

        def create(number: int, key: str = key) -> int:
            return client.put(key, b"%d" % number, {"if-none-match": "*"}).status

        statuses = race(create, 8)

        assert [200] == [s for s in statuses if s not in (412, 409)]
        assert b"%d" % statuses.index(200) == client.get(key).body


def check_a_counter_loses_nothing(client: Client) -> None:
    client.put("counter", b"0")

    def count(_: int) -> None:
        for _ in range(5):
            done = False
            while not done:
                old = client.get("counter")
                new = b"%d" % (int(old.body) + 1)
                done = client.put("counter", new, {"if-match": f'"{old.etag}"'}).status == 200

    race(count, 6)

    assert b"30" == client.get("counter").body


def test_of_many_who_create_one_wins(s3: Client) -> None:
    check_create_only_has_one_winner(s3)


def test_compare_and_swap_loses_nothing(s3: Client) -> None:
    check_a_counter_loses_nothing(s3)


def test_conditional_writes_hold_between_workers_too(serve: Serve) -> None:
    client = serve(workers=2).client(bucket="media")

    check_create_only_has_one_winner(client)
    check_a_counter_loses_nothing(client)


def test_a_reader_sees_the_old_object_or_the_new_one(s3: Client) -> None:
    versions = [bytes([65 + n]) * (50_000 + n) for n in range(4)]
    s3.put("k", versions[0], {"x-amz-meta-n": "0"})
    stop = threading.Event()

    def write(_: int) -> None:
        for n in range(40):
            s3.put("k", versions[n % 4], {"x-amz-meta-n": str(n % 4)})
        stop.set()

    def read(_: int) -> list[tuple[int, str, bool]]:
        seen = []
        while not stop.is_set():
            got = s3.get("k")
            n = int(got.headers["x-amz-meta-n"])
            seen.append((n, got.etag, got.body == versions[n]))
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, n) for n in range(2)]
        pool.submit(write, 0).result()
        seen = {item for reader in readers for item in reader.result()}

    assert set() == seen - {(n, md5(version), True) for n, version in enumerate(versions)}


# -- CopyObject ------------------------------------------------------------------------------------


def copy(s3: Client, source: str, key: str, headers: dict[str, str] = {}) -> Reply:  # noqa: B006
    """Copy `source`, a key of the same bucket."""
    text = f"/{s3.bucket}/" + quote(source, safe="/")
    return s3.put(key, b"", {"x-amz-copy-source": text, **headers})


def test_a_copy_has_the_content_and_the_metadata(s3: Client) -> None:
    s3.put(
        "a", b"x", {"content-type": "text/css", "cache-control": "no-store", "x-amz-meta-a": "1"}
    )
    copied = copy(s3, "a", "b", {"x-amz-meta-a": "ignored", "content-type": "text/plain"})
    got = s3.get("b")

    assert (200, f'"{md5(b"x")}"') == (copied.status, copied.element("ETag"))
    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}Z", copied.element("LastModified"))
    assert (b"x", "text/css", "no-store", "1") == (
        got.body,
        got.headers["content-type"],
        got.headers["cache-control"],
        got.headers["x-amz-meta-a"],
    )


def test_a_copy_with_replace_has_the_metadata_of_the_request(s3: Client) -> None:
    s3.put(
        "a", b"x", {"content-type": "text/css", "cache-control": "no-store", "x-amz-meta-a": "1"}
    )
    replaced = {
        "x-amz-metadata-directive": "REPLACE",
        "x-amz-meta-b": "2",
        "content-type": "text/plain",
    }
    copy(s3, "a", "b", replaced)
    got = s3.get("b")

    assert (b"x", "text/plain", "2") == (
        got.body,
        got.headers["content-type"],
        got.headers["x-amz-meta-b"],
    )
    assert not {"x-amz-meta-a", "cache-control"} & got.headers.keys()


def test_a_copy_lives_on_its_own(s3: Client) -> None:
    s3.put("a", b"x")
    copy(s3, "a", "b")
    s3.put("a", b"y")
    s3.delete("a")

    assert b"x" == s3.get("b").body


def test_a_copy_onto_itself_must_change_something(s3: Client) -> None:
    s3.put("a", b"x", {"x-amz-meta-a": "1"})
    copied = copy(s3, "a", "a")

    assert (400, "InvalidRequest") == (copied.status, copied.error)
    assert "1" == s3.get("a").headers["x-amz-meta-a"]


def test_a_copy_onto_itself_replaces_the_metadata(s3: Client) -> None:
    s3.put("a", b"x", {"x-amz-meta-a": "1"})
    copied = copy(s3, "a", "a", {"x-amz-metadata-directive": "REPLACE", "x-amz-meta-b": "2"})
    got = s3.get("a")

    assert (200, b"x", "2") == (copied.status, got.body, got.headers["x-amz-meta-b"])
    assert "x-amz-meta-a" not in got.headers


def test_a_folder_marker_is_copied_onto_itself(s3: Client) -> None:
    s3.put("dir/", b"")
    s3.put("dir/file", b"x")
    copied = copy(
        s3, "dir/", "dir/", {"x-amz-metadata-directive": "REPLACE", "x-amz-meta-mode": "493"}
    )

    assert (200, "493") == (copied.status, s3.head("dir/").headers["x-amz-meta-mode"])  # s3fs-fuse


@pytest.mark.parametrize("name", ["x-amz-metadata-directive", "x-amz-tagging-directive"])
def test_a_directive_is_copy_or_replace(s3: Client, name: str) -> None:
    s3.put("a", b"x")

    assert (400, "InvalidArgument") == (
        copy(s3, "a", "b", {name: "MOVE"}).status,
        copy(s3, "a", "b", {name: "MOVE"}).error,
    )


@pytest.mark.parametrize("key", NAMED_KEYS)
def test_a_source_may_have_any_name(s3: Client, key: str) -> None:
    s3.put(key, key.encode())

    assert 200 == copy(s3, key, "copy").status
    assert key.encode() == s3.get("copy").body


def test_a_source_is_read_as_aws_reads_it(s3: Client) -> None:
    s3.put("a b", b"space")
    spellings = [
        f"{s3.bucket}/a+b",
        f"/{s3.bucket}/a%20b",
        f"{s3.bucket}%2Fa%20b",
        f"{s3.bucket}/a%20b?versionId=null",
    ]

    for spelling in spellings:
        assert 200 == s3.put("copy", b"", {"x-amz-copy-source": spelling}).status, spelling
        assert b"space" == s3.get("copy").body


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("BUCKET/missing", 404, "NoSuchKey"),
        ("test-nowhere/k", 404, "NoSuchBucket"),
        ("BUCKET/", 400, "InvalidArgument"),
        ("BUCKET", 400, "InvalidArgument"),
        ("", 400, "InvalidArgument"),
        ("BUCKET/a?versionId=unknown", 400, "InvalidArgument"),
        ("BUCKET/a?versionId=", 400, "InvalidArgument"),
        ("BUCKET/a?version=null", 400, "InvalidArgument"),
        ("BUCKET/a?versionId=v5n1PPUjOCMHLyyfq0ayjoZ5RZLfVQKA", 404, "NoSuchVersion"),
        ("BUCKET/%zz", 400, "InvalidArgument"),
        ("BUCKET/%ff", 400, "InvalidArgument"),
        ("BUCKET/../media/x", 400, "InvalidURI"),
        ("BUCKET/%2e%2e/media/x", 400, "InvalidURI"),
        ("BUCKET/" + "k" * 1025, 400, "KeyTooLongError"),
    ],
)
def test_a_source_that_is_none_is_refused(s3: Client, source: str, status: int, code: str) -> None:
    s3.put("a", b"x")
    s3.put("target", b"old")
    copied = s3.put("target", b"", {"x-amz-copy-source": source.replace("BUCKET", s3.bucket)})

    assert (status, code) == (copied.status, copied.error)
    assert b"old" == s3.get("target").body


COPY_CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"if-match": "ETAG"}, 200),
    ({"if-match": '"other"'}, 412),
    ({"if-none-match": "ETAG"}, 412),
    ({"if-none-match": '"other"'}, 200),
    ({"if-modified-since": PAST}, 200),
    ({"if-modified-since": SAME}, 412),
    ({"if-unmodified-since": PAST}, 412),
    ({"if-unmodified-since": SAME}, 200),
    ({"if-match": "ETAG", "if-unmodified-since": PAST}, 200),  # [AWS: CopyObject]
    ({"if-none-match": "ETAG", "if-modified-since": PAST}, 412),  # [AWS: CopyObject]
]


@pytest.mark.parametrize(("given", "status"), COPY_CONDITIONS)
def test_the_conditions_on_the_source_of_a_copy(
    s3: Client, given: dict[str, str], status: int
) -> None:
    s3.put("a", b"x")
    head = s3.head("a")
    named = conditions(given, head.etag, head.headers["last-modified"])
    copied = copy(s3, "a", "b", {f"x-amz-copy-source-{n}": v for n, v in named.items()})

    assert (status, 200 if status == 200 else 404) == (copied.status, s3.head("b").status)


def test_a_copy_obeys_the_conditions_on_its_target(s3: Client) -> None:
    s3.put("a", b"x")
    s3.put("b", b"old")

    assert 412 == copy(s3, "a", "b", {"if-none-match": "*"}).status
    assert 412 == copy(s3, "a", "b", {"if-match": '"other"'}).status
    assert b"old" == s3.get("b").body
    assert 200 == copy(s3, "a", "c", {"if-none-match": "*"}).status


def test_a_copy_keeps_or_changes_the_checksum(s3: Client) -> None:
    s3.put("a", NINE, {"x-amz-checksum-crc32": CHECKSUMS["crc32"]})
    same = copy(s3, "a", "b")
    other = copy(s3, "a", "c", {"x-amz-checksum-algorithm": "SHA256"})

    assert CHECKSUMS["crc32"] == same.element("ChecksumCRC32")
    assert CHECKSUMS["sha256"] == other.element("ChecksumSHA256")


@pytest.mark.parametrize("damaged", ["an object", "a part"])
def test_what_is_damaged_is_not_copied(server: Server, s3: Client, damaged: str) -> None:
    """The copy would have a fresh MD5, and nobody would see it any more."""
    pieces = [b"x" * (5 * 1024**2), b"and the rest"]
    upload = s3.post("m", uploads="").element("UploadId")
    etags = [s3.put("m", p, partNumber=n, uploadId=upload).etag for n, p in enumerate(pieces, 1)]
    if damaged == "a part":
        rows = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>"
                       for n, e in enumerate(etags, 1))
        document = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
        assert 200 == s3.post("m", document, uploadId=upload).status
    else:
        assert 200 == s3.put("m", b"".join(pieces)).status
    assert 200 == copy(s3, "m", "good").status
    flip(server.data / s3.bucket / "m", 5 * 1024**2 + 3)
    part = s3.post("n", uploads="").element("UploadId")
    source = {"x-amz-copy-source": f"/{s3.bucket}/m"}
    copies = [copy(s3, "m", "bad"), s3.put("n", b"", source, partNumber=1, uploadId=part)]

    assert [(500, "InternalError")] * 2 == [(r.status, r.error) for r in copies]
    assert 404 == s3.head("bad").status


def test_what_is_over_5_gib_is_copied_in_parts_only(server: Server, s3: Client) -> None:
    with (server.data / s3.bucket / "large").open("wb") as file:
        file.truncate(5 * 1024**3 + 1)
    reply = copy(s3, "large", "k")

    assert (400, "InvalidRequest") == (reply.status, reply.error)
    assert 404 == s3.head("k").status


# -- DeleteObjects ---------------------------------------------------------------------------------


def delete_many(s3: Client, keys: list[str], quiet: str = "", **headers: str) -> Reply:
    items = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
    mode = f"<Quiet>{quiet}</Quiet>" if quiet else ""
    return post_delete(s3, f'<Delete xmlns="{s3mini.XMLNS}">{mode}{items}</Delete>', **headers)


def post_delete(s3: Client, text: str, **headers: str) -> Reply:
    body = text.encode()
    named = {n.replace("_", "-"): v for n, v in headers.items()}
    return s3.post("", body, {"content-md5": base64_md5(body), **named}, query="delete")


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def test_many_objects_are_deleted_at_once(s3: Client) -> None:
    keys = ["a", "b/c", "b/d", "ä <&> ö", "e//f", "g/"]
    for key in [*keys, "stays"]:
        s3.put(key, b"x")
    reply = delete_many(s3, [*keys, "never-was"])

    assert (200, [*keys, "never-was"]) == (reply.status, reply.elements("Key"))
    assert 7 == reply.body.count(b"<Deleted>")
    assert ["stays"] == s3.get(list_type=2).elements("Key")


def test_a_quiet_delete_tells_only_of_failures(s3: Client) -> None:
    s3.put("a", b"x")
    reply = delete_many(s3, ["a", "b"], quiet="true")

    assert (200, []) == (reply.status, reply.elements("Key"))
    assert 404 == s3.head("a").status


def test_one_failure_does_not_stop_the_others(s3: Client) -> None:
    for key in ("a", "b", "c"):
        s3.put(key, b"x")
    reply = post_delete(
        s3,
        "<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object>"
        "<Object><Key>b</Key><VersionId>unknown</VersionId></Object>"
        '<Object><Key>c</Key><ETag>"other"</ETag></Object>'
        f"<Object><Key>{'k' * 1025}</Key></Object></Delete>",
    )

    assert (200, ["b", "c", "k" * 1024]) == (reply.status, reply.elements("Key"))
    assert ["NoSuchVersion", "PreconditionFailed", "KeyTooLongError"] == reply.elements("Code")
    assert ["b", "c"] == s3.get(list_type=2).elements("Key")


def test_a_version_of_many_that_is_not_there_is_deleted_as_a_key_is(s3: Client) -> None:
    s3.put("a", b"x")
    version = "KC0WuaPTHv7At3olS.BPuh.weAJqMkKJ"
    reply = post_delete(
        s3,
        f"<Delete><Object><Key>a</Key><VersionId>{version}</VersionId></Object>"
        "<Object><Key>b</Key><VersionId>null</VersionId></Object></Delete>",
    )

    assert ([], [version, "null"]) == (reply.elements("Code"), reply.elements("VersionId"))
    assert b"x" == s3.get("a").body


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%Y-%m-%dT%H:%M:%SZ"])
def test_each_of_many_may_have_its_conditions(s3: Client, form: str) -> None:
    s3.put("k", b"x")
    then = parsedate_to_datetime(s3.head("k").headers["last-modified"])
    date = f"<LastModifiedTime>{then.strftime(form)}</LastModifiedTime>"
    other = (then - timedelta(seconds=1)).strftime(form)
    for wrong in (
        "<Size>2</Size>",
        "<Size>0</Size>",
        f"<ETag>{md5(b'x')}</ETag><Size>2</Size>",
        f"<LastModifiedTime>{other}</LastModifiedTime>",
        "<LastModifiedTime>yesterday</LastModifiedTime>",
        f"<Size>2</Size>{date}",
    ):
        reply = post_delete(s3, f"<Delete><Object><Key>k</Key>{wrong}</Object></Delete>")
        assert (["PreconditionFailed"], 200) == (reply.elements("Code"), s3.head("k").status), wrong
    right = f"<ETag>{md5(b'x')}</ETag><Size>1</Size>{date}"
    reply = post_delete(s3, f"<Delete><Object><Key>k</Key>{right}</Object></Delete>")

    assert ([], 404) == (reply.elements("Code"), s3.head("k").status)


def test_boto3_deletes_many_under_conditions(s3: Client, boto: Any) -> None:
    s3.put("k", b"x")
    then = boto.head_object(Bucket=s3.bucket, Key="k")["LastModified"]
    statuses = []
    for when in (then - timedelta(seconds=1), then):
        named = {"Objects": [{"Key": "k", "Size": 1, "LastModifiedTime": when}]}
        boto.delete_objects(Bucket=s3.bucket, Delete=named)
        statuses.append(s3.head("k").status)

    assert [200, 404] == statuses


@pytest.mark.parametrize(
    "condition", ["<ETag/>", '<ETag>""</ETag>', "<Size></Size>", "<LastModifiedTime/>"])
def test_a_condition_that_says_nothing_is_not_met(s3: Client, condition: str) -> None:
    s3.put("k", b"x")
    reply = post_delete(s3, f"<Delete><Object><Key>k</Key>{condition}</Object></Delete>")

    assert (200, "PreconditionFailed") == (reply.status, reply.element("Code"))
    assert 200 == s3.head("k").status


@pytest.mark.parametrize("value", ["true", "false"])
def test_there_is_no_governance_to_bypass(s3: Client, value: str) -> None:
    s3.put("k", b"x")
    refused = s3.delete("k", {"x-amz-bypass-governance-retention": value})

    assert (400, "InvalidArgument") == (refused.status, refused.error)
    assert "x-amz-bypass-governance-retention" == refused.element("ArgumentName")
    assert 200 == s3.head("k").status


def test_what_cannot_be_a_key_is_not_told_whole(s3: Client) -> None:
    long = '"' * 900_000  # six bytes each in an answer
    item = f"<Object><Key>{long}</Key><VersionId>{long}</VersionId></Object>"
    reply = post_delete(s3, f"<Delete>{item}</Delete>")

    assert (200, "KeyTooLongError") == (reply.status, reply.element("Code"))
    assert ['"' * 1024] == reply.elements("Key") == reply.elements("VersionId")
    assert len(reply.body) < 20_000


def test_a_thousand_keys_are_the_most(s3: Client) -> None:
    keys = [f"k{n}" for n in range(1001)]
    s3.put("k0", b"x")
    over = delete_many(s3, keys)

    assert (400, "MalformedXML") == (over.status, over.error)
    assert 200 == s3.head("k0").status
    assert 1000 == delete_many(s3, keys[:1000]).body.count(b"<Deleted>")
    assert 404 == s3.head("k0").status


def test_a_delete_of_many_needs_a_digest(s3: Client) -> None:
    s3.put("a", b"x")
    body = b"<Delete><Object><Key>a</Key></Object></Delete>"
    crc = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()

    assert "InvalidRequest" == s3.post("", body, query="delete").error
    assert "BadDigest" == s3.post("", body, {"content-md5": base64_md5(b"y")}, query="delete").error
    assert 200 == s3.head("a").status
    assert 200 == s3.post("", body, {"x-amz-checksum-crc32": crc}, query="delete").status
    assert 404 == s3.head("a").status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<Delete>",
        "<Delete/>",
        "<Other><Object><Key>a</Key></Object></Other>",
        "<Delete><Object></Object></Delete>",
        "<Delete><Object><Key></Key></Object></Delete>",
        '<!DOCTYPE d [<!ENTITY e "a">]><Delete><Object><Key>&e;</Key></Object></Delete>',
        "not xml",
        '<?xml version="1.0" encoding="x-none"?><Delete/>',
        '<?xml version="1.0" encoding="utf-7"?><Delete/>',
        "<Delete>" + "<a>" * 100_000,
    ],
)
def test_a_delete_that_is_no_document_deletes_nothing(s3: Client, text: str) -> None:
    s3.put("a", b"x")
    reply = post_delete(s3, text)

    assert (400, "MalformedXML") == (reply.status, reply.error)
    assert 200 == s3.head("a").status


# -- errors and request ids ------------------------------------------------------------------------


def test_an_error_is_a_document(s3: Client) -> None:
    got = s3.get("some/key")

    assert "application/xml" == got.headers["content-type"]
    assert got.body.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n<Error>')
    assert ("NoSuchKey", "The specified key does not exist.") == (got.error, got.element("Message"))
    assert f"/{s3.bucket}/some/key" == got.element("Resource")
    assert got.headers["x-amz-request-id"] == got.element("RequestId")


def test_every_answer_has_its_date_and_server(s3: Client) -> None:
    s3.put("k", DIGITS)
    now = time.time()
    for reply in (s3.get("k"), s3.head("k"), s3.get("missing"), s3("GET", target="/%")):
        date = parsedate_to_datetime(reply.headers["date"])
        assert abs(date.timestamp() - now) < 60
        assert "s3mini" == reply.headers["server"]


def test_every_answer_has_an_id_of_its_own(s3: Client) -> None:
    s3.put("k", DIGITS)
    anonymous = s3.anonymous()
    answers = {
        200: s3.get("k"),
        204: s3.delete("nothing"),
        206: s3.get("k", {"range": "bytes=0-1"}),
        304: s3.get("k", {"if-none-match": "*"}),
        400: s3.get("k", partNumber="x"),
        403: anonymous.get("k"),
        404: s3.head("missing"),
        405: s3("PATCH", "k"),
        412: s3.get("k", {"if-match": '"x"'}),
        416: s3.get("k", {"range": "bytes=99-"}),
        501: s3.put("k", query="acl=&foo="),
    }
    ids = [answer.headers.get("x-amz-request-id", "") for answer in answers.values()]
    broken = s3.send("GET", "/", [("host", "a b")])

    assert list(answers) == [answer.status for answer in answers.values()]
    assert len(answers) == len(set(ids) - {""})
    assert (400, True) == (broken.status, "x-amz-request-id" in broken.headers)


def test_the_server_does_not_tell_its_version(s3: Client) -> None:
    assert "s3mini" == s3.get("k").headers["server"]


def test_boto3_reads_what_it_wrote(boto: Any, bucket: str, tmp_path: Path) -> None:
    metadata = {"name": "a b", "number": "1"}
    boto.put_object(
        Bucket=bucket, Key="ä b/c+d", Body=b"boto", Metadata=metadata, ContentType="text/plain"
    )
    got = boto.get_object(Bucket=bucket, Key="ä b/c+d")

    assert b"boto" == got["Body"].read()
    assert (metadata, "text/plain") == (got["Metadata"], got["ContentType"])
