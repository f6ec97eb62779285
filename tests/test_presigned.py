"""Presigned URLs: they do what was signed, for as long as was signed, and nothing else."""

from __future__ import annotations

import hashlib
import re
import time
import urllib.request
from dataclasses import replace
from typing import Any, Callable

import pytest
from conftest import Serve, Server, boto_client
from signing_client import SIGNED_CHUNKS, UNSIGNED, UNSIGNED_TRAILER, Client, Reply

BOTH = pytest.mark.parametrize("version", [4, 2])
KEYS = ["a b", "a+b", "ä", "a%20b", "100%", "a?b&c=d", "a//b", "dir/", "~'()*!", "日本/x"]


def stamp(seconds: float) -> str:
    """An x-amz-date that lies so far from now."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + seconds))


# -- what they do ----------------------------------------------------------------------------------


@BOTH
def test_a_url_puts_gets_heads_and_deletes(s3: Client, version: int) -> None:
    put = s3.fetch(s3.presign("PUT", "d/k", version=version), "PUT", b"hello")
    got = s3.fetch(s3.presign("GET", "d/k", version=version))
    head = s3.fetch(s3.presign("HEAD", "d/k", version=version), "HEAD")
    gone = s3.fetch(s3.presign("DELETE", "d/k", version=version), "DELETE")

    assert [200, 200, 200, 204] == [put.status, got.status, head.status, gone.status]
    assert (b"hello", b"", "5") == (got.body, head.body, head.headers["content-length"])
    assert 404 == s3.head("d/k").status


@BOTH
@pytest.mark.parametrize("key", KEYS)
def test_a_url_may_name_any_key(s3: Client, version: int, key: str) -> None:
    s3.put(key, key.encode())

    assert key.encode() == s3.fetch(s3.presign("GET", key, version=version)).body


@BOTH
def test_a_url_uploads_parts(s3: Client, version: int) -> None:
    created = s3.fetch(s3.presign("POST", "k", version=version, query="uploads"), "POST")
    upload = created.element("UploadId")
    part = s3.presign("PUT", "k", version=version, partNumber=1, uploadId=upload)
    etag = s3.fetch(part, "PUT", b"x").headers["etag"]
    named = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>"
    done = s3.fetch(
        s3.presign("POST", "k", version=version, uploadId=upload), "POST", body.encode()
    )

    assert (200, b"x") == (done.status, s3.get("k").body)
    other = part.replace("partNumber=1", "partNumber=2")
    assert 403 == s3.fetch(other, "PUT", b"x").status


@BOTH
def test_a_url_lists_and_ranges(s3: Client, version: int) -> None:
    s3.put("k", b"0123456789")
    url = s3.presign("GET", "", version=version, list_type=2, prefix="k")

    assert ["k"] == s3.fetch(url).elements("Key")
    got = s3.fetch(s3.presign("GET", "k", version=version), headers={"range": "bytes=2-4"})
    assert (206, b"234") == (got.status, got.body)


@BOTH
def test_a_url_may_override_headers_of_the_answer(s3: Client, version: int) -> None:
    s3.put("k", b"x")
    query = {
        "response-content-type": "text/plain; charset=utf-8",
        "response-content-disposition": 'attachment; filename="a b.txt"',
    }
    url = s3.presign("GET", "k", version=version, query=query)
    got = s3.fetch(url)

    assert (200, *query.values()) == (
        got.status,
        got.headers["content-type"],
        got.headers["content-disposition"],
    )
    assert 403 == s3.fetch(url.replace("a%20b.txt", "evil.exe")).status
    assert (
        403
        == s3.fetch(s3.presign("GET", "k", version=version) + "&response-content-type=a/b").status
    )


@BOTH
def test_a_url_creates_only_once_if_it_says_so(s3: Client, version: int) -> None:
    url = s3.presign("PUT", "k", {"if-none-match": "*"} if version == 4 else {}, version=version)
    statuses = [s3.fetch(url, "PUT", b"x", {"if-none-match": "*"}).status for _ in range(2)]

    assert [200, 412] == statuses


@pytest.mark.parametrize("signature", ["default", "s3v4", "s3"])
def test_the_urls_of_boto3_work(server: Server, s3: Client, signature: str) -> None:
    from botocore.config import Config

    more = {} if signature == "default" else {"config": Config(signature_version=signature)}
    boto = boto_client(server.endpoint, **more)
    for key in KEYS:
        named: dict[str, Any] = {"Bucket": s3.bucket, "Key": key}
        put = boto.generate_presigned_url("put_object", {**named, "ContentType": "text/css"})
        with urllib.request.urlopen(
            urllib.request.Request(put, key.encode(), {"content-type": "text/css"}, method="PUT")
        ) as reply:
            assert 200 == reply.status
        get = boto.generate_presigned_url(
            "get_object", {**named, "ResponseContentDisposition": "attachment; filename=x"}
        )
        with urllib.request.urlopen(get) as reply:
            assert (key.encode(), "text/css", "attachment; filename=x") == (
                reply.read(),
                reply.headers["content-type"],
                reply.headers["content-disposition"],
            )


# boto3's name of an operation of a bucket: the answer that its URL has.
OF_A_BUCKET = {
    "list_objects": 200,
    "list_objects_v2": 200,
    "list_multipart_uploads": 200,
    "head_bucket": 200,
    "get_bucket_location": 200,
    "get_bucket_accelerate_configuration": 200,
    "get_bucket_replication": 404,
    "get_object_lock_configuration": 404,
}


@pytest.mark.parametrize("signature", ["default", "s3v4", "s3"])
@pytest.mark.parametrize("operation", OF_A_BUCKET)
def test_the_urls_of_boto3_for_a_bucket_work(
    server: Server, s3: Client, operation: str, signature: str
) -> None:
    from botocore.config import Config

    more = {} if signature == "default" else {"config": Config(signature_version=signature)}
    boto = boto_client(server.endpoint, **more)
    url = boto.generate_presigned_url(operation, {"Bucket": s3.bucket})
    method = "HEAD" if operation == "head_bucket" else "GET"
    reply = s3.fetch(url, method)

    assert OF_A_BUCKET[operation] == reply.status, reply.body


def test_the_slash_behind_a_bucket_opens_nothing_else(s3: Client) -> None:
    s3.put("k", b"x")
    listing = s3.presign("GET", "", version=2)

    assert 403 == s3.fetch(listing.replace(f"/{s3.bucket}", f"/{s3.bucket}/k")).status
    assert 403 == s3.fetch(listing.replace(f"/{s3.bucket}", "/media")).status


# -- for how long ----------------------------------------------------------------------------------


@BOTH
def test_a_url_expires(s3: Client, version: int) -> None:
    s3.put("k", b"x")
    client = replace(s3, now=stamp(-61)) if version == 4 else s3
    got = s3.fetch(client.presign("GET", "k", version=version, expires=60 if version == 4 else -1))

    assert (403, "AccessDenied", "Request has expired") == (
        got.status,
        got.error,
        got.element("Message"),
    )
    assert got.element("Expires") < got.element("ServerTime")
    assert ([] if version == 2 else ["60"]) == got.elements("X-Amz-Expires")


def test_a_url_of_the_past_works_until_it_expires(s3: Client) -> None:
    s3.put("k", b"x")
    client = replace(s3, now=stamp(-3600))

    assert 200 == s3.fetch(client.presign("GET", "k", expires=7200)).status
    assert (
        200
        == s3.fetch(replace(s3, now=stamp(-6 * 86400)).presign("GET", "k", expires=604800)).status
    )


def test_a_url_of_the_future_does_not_work_yet(s3: Client) -> None:
    s3.put("k", b"x")
    got = s3.fetch(replace(s3, now=stamp(3600)).presign("GET", "k"))

    assert (403, "AccessDenied") == (got.status, got.error)


@pytest.mark.parametrize("expires", ["604801", "-1", "x", "", "1.5", "9" * 30])
def test_a_url_lives_a_week_at_most(s3: Client, expires: str) -> None:
    url = s3.presign("GET", "k", expires=expires)  # type: ignore[arg-type]
    got = s3.fetch(url)

    assert (400, "AuthorizationQueryParametersError") == (got.status, got.error)


def test_a_url_of_version_2_needs_a_date(s3: Client) -> None:
    url = s3.presign("GET", "k", version=2)

    assert 403 == s3.fetch(re.sub("Expires=[0-9]+", "Expires=x", url)).status
    assert 403 == s3.fetch(re.sub("&Expires=[0-9]+", "", url)).status
    assert 403 == s3.fetch(re.sub("Expires=", "Expires=9", url)).status


# -- and nothing else ------------------------------------------------------------------------------

Change = Callable[[str], str]

CHANGES: list[tuple[int, Change]] = [
    (4, lambda url: url.replace("/k?", "/other?")),
    (4, lambda url: url.replace("/k?", "//k?")),
    (4, lambda url: url.replace("/k?", "/%6B?x&")),
    (4, lambda url: url + "&x=1"),
    (4, lambda url: url + "&versionId=null"),
    (4, lambda url: url.replace("Expires=900", "Expires=901")),
    (4, lambda url: re.sub("X-Amz-Date=([0-9]{8})T", "X-Amz-Date=20200101T", url)),
    (4, lambda url: re.sub("%2F[0-9]{8}%2F", "%2F20200101%2F", url)),
    (4, lambda url: url.replace("us-east-1", "eu-west-1")),
    (4, lambda url: url.replace("%2Fs3%2F", "%2Fsqs%2F")),
    (4, lambda url: url.replace("aws4_request", "aws4")),
    (4, lambda url: url.replace("SignedHeaders=host", "SignedHeaders=")),
    (4, lambda url: url.replace("SignedHeaders=host", "SignedHeaders=host%3Brange")),
    (4, lambda url: url.replace("SignedHeaders=host", "SignedHeaders=date")),
    (4, lambda url: url.replace("test-key", "media-key")),
    (4, lambda url: url.replace("test-key", "nobody")),
    (4, lambda url: url.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1")),
    (4, lambda url: url[:-1] + ("0" if url[-1] != "0" else "1")),
    (4, lambda url: url[:-1]),
    (4, lambda url: url + "%C3%A4"),
    (4, lambda url: re.sub("Signature=.*", "Signature=", url)),
    (4, lambda url: re.sub("&X-Amz-Signature=.*", "", url)),
    (2, lambda url: url.replace("/k?", "/other?")),
    (2, lambda url: url + "&versionId=null"),
    (2, lambda url: url + "&acl"),
    (2, lambda url: re.sub("Expires=([0-9]+)", lambda m: f"Expires={int(m[1]) + 1}", url)),
    (2, lambda url: url.replace("test-key", "media-key")),
    (2, lambda url: url.replace("test-key", "nobody")),
    (2, lambda url: re.sub("Signature=..", "Signature=AA", url)),
    (2, lambda url: re.sub("&Signature=[^&]+", "", url)),
    (2, lambda url: re.sub("Signature=[^&]+", "Signature=%C3%A4", url)),
    (2, lambda url: re.sub("AWSAccessKeyId=[^&]+&", "", url)),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_a_changed_url_is_refused(s3: Client, number: int) -> None:
    version, change = CHANGES[number]
    s3.put("k", b"x")
    s3.put("other", b"x")
    url = s3.presign("GET", "k", version=version)
    changed = change(url)
    got = s3.fetch(changed)

    assert url != changed
    assert got.status in (400, 403), got.body
    assert b"x" != got.body


@BOTH
@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "POST"])
def test_a_url_works_with_its_own_method_only(s3: Client, version: int, method: str) -> None:
    s3.put("k", b"old")

    assert 403 == s3.fetch(s3.presign("GET", "k", version=version), method, b"").status
    assert b"old" == s3.get("k").body


def test_a_url_works_at_its_own_host_only(s3: Client) -> None:
    s3.put("k", b"x")
    url = s3.presign("GET", "k")

    assert 403 == s3.fetch(url, headers={"host": "media.example.com"}).status


def test_hosts_are_names_of_ours_too(serve: Serve) -> None:
    client = serve(hosts="media.example.com, box:9000").client(bucket="media")
    client.put("k", b"x")
    inside = replace(client, host="box:9000").presign("GET", "k")
    strange = replace(client, host="evil.example.com").presign("GET", "k")

    assert 200 == client.fetch(inside, headers={"host": "media.example.com"}).status
    assert 200 == client.fetch(inside, headers={"host": client.address}).status
    refused = client.fetch(strange, headers={"host": client.address})
    assert (403, True) == (refused.status, "hosts = " in refused.element("Message"))


def test_a_signed_header_must_be_sent_as_it_was_signed(s3: Client) -> None:
    headers = {"content-type": "image/png", "x-amz-meta-a": "1"}
    url = s3.presign("PUT", "k", headers)
    wrong = [
        {},
        {**headers, "content-type": "text/html"},
        {"content-type": "image/png"},
        {**headers, "x-amz-meta-a": "2"},
    ]

    assert [403] * 4 == [s3.fetch(url, "PUT", b"x", sent).status for sent in wrong]
    assert 404 == s3.head("k").status
    assert 200 == s3.fetch(url, "PUT", b"x", headers).status
    assert "1" == s3.head("k").headers["x-amz-meta-a"]


def test_a_signed_length_bounds_an_upload(s3: Client) -> None:
    url = s3.presign("PUT", "k", {"content-length": "5"})

    assert 403 == s3.fetch(url, "PUT", b"much more").status
    assert 200 == s3.fetch(url, "PUT", b"12345").status


def test_version_2_covers_the_content_type_and_md5(s3: Client) -> None:
    url = s3.presign("PUT", "k", {"content-type": "image/png"}, version=2)

    assert 403 == s3.fetch(url, "PUT", b"x", {"content-type": "text/html"}).status
    assert 403 == s3.fetch(url, "PUT", b"x").status
    assert 200 == s3.fetch(url, "PUT", b"x", {"content-type": "image/png"}).status


def test_no_parameter_that_version_2_signs_hides_in_another_ones_value(s3: Client) -> None:
    """It signs a=1&b=2 for both: a download would be a page without its disposition."""
    s3.put("k", b"<script>", {"content-type": "text/html"})
    url = s3.presign("GET", "k", version=2, response_cache_control="no-store",
                     response_content_disposition="attachment")  # fmt: skip
    text = "no-store&response-content-disposition="
    hidden = url.replace(text, text.replace("&", "%26").replace("=", "%3D"))
    name = 'attachment; filename="Q&A=1&more"'
    other = s3.presign("GET", "k", version=2, response_content_disposition=name)

    assert "attachment" == s3.fetch(url).headers["content-disposition"]
    assert url != hidden
    assert (403, "AccessDenied") == (s3.fetch(hidden).status, s3.fetch(hidden).error)
    assert name == s3.fetch(other).headers["content-disposition"]


def test_a_hash_of_the_content_that_version_2_signs_is_obeyed(s3: Client) -> None:
    def put(body: bytes, payload: str, **more: str) -> Reply:
        headers = {"x-amz-content-sha256": payload, **more}
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return s3.fetch(s3.presign("PUT", "k", headers, version=2), "PUT", body, headers)

    good = hashlib.sha256(b"hello").hexdigest()
    chunks = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    signed_chunks = b"5;chunk-signature=" + b"0" * 64 + b"\r\nhello\r\n"

    assert 200 == put(b"hello", UNSIGNED).status
    assert 200 == put(b"hello", good).status
    assert "XAmzContentSHA256Mismatch" == put(b"other", good).error
    assert 400 == put(b"other", "nonsense").status
    assert 400 <= put(signed_chunks, SIGNED_CHUNKS, x_amz_decoded_content_length="5").status < 500
    assert b"hello" == s3.get("k").body
    s3.delete("k")
    unsigned = {"x_amz_decoded_content_length": "5", "x_amz_trailer": "x-amz-checksum-crc32"}
    assert 200 == put(chunks, UNSIGNED_TRAILER, **unsigned).status
    assert b"hello" == s3.get("k").body
    assert 400 == put(chunks.replace(b"NhCm", b"AAAA"), UNSIGNED_TRAILER, **unsigned).status
    assert b"hello" == s3.get("k").body


@BOTH
@pytest.mark.parametrize(
    "header",
    [
        {"x-amz-copy-source": "BUCKET/secret"},
        {"x-amz-meta-a": "1"},
        {"x-amz-acl": "public-read"},
        {"x-amz-tagging": "a=b"},
        {"x-amz-checksum-crc32": "AAAAAA=="},
        {"x-amz-anything": "1"},
    ],
)
def test_an_x_amz_header_that_was_not_signed_is_refused(
    s3: Client, version: int, header: dict[str, str]
) -> None:
    s3.put("secret", b"secret")
    s3.put("k", b"old")
    sent = {name: value.replace("BUCKET", s3.bucket) for name, value in header.items()}
    put = s3.fetch(s3.presign("PUT", "k", version=version), "PUT", b"new", sent)

    assert (403, b"old") == (put.status, s3.get("k").body)
    if version == 4:
        assert next(iter(header)) == put.element("HeadersNotSigned")


def test_the_hash_of_the_content_is_signed_without_being_named(s3: Client) -> None:
    """Some clients send x-amz-content-sha256 to any URL of S3's. [AWS's own answers]"""
    url, other = s3.presign("PUT", "k"), hashlib.sha256(b"x").hexdigest()

    assert 403 == s3.fetch(url, "PUT", b"x", {"x-amz-content-sha256": other}).status
    assert 403 == s3.fetch(url, "PUT", b"x", {"x-amz-content-sha256": UNSIGNED_TRAILER}).status
    assert 404 == s3.head("k").status
    assert 200 == s3.fetch(url, "PUT", b"x", {"x-amz-content-sha256": UNSIGNED}).status
    assert b"x" == s3.get("k").body


@BOTH
@pytest.mark.parametrize(
    "name", ["x-amz-copy-source", "x-amz-meta-a", "x-amz-acl", "acl", "tagging"]
)
def test_nothing_is_added_to_the_query(s3: Client, version: int, name: str) -> None:
    s3.put("k", b"old")
    put = s3.fetch(s3.presign("PUT", "k", version=version) + f"&{name}=x", "PUT", b"new")

    assert put.status in (403, 501)
    assert b"old" == s3.get("k").body


def test_headers_that_an_sdk_moved_into_the_query_count(s3: Client) -> None:
    query = {
        "x-amz-meta-a": "ä b",
        "x-amz-checksum-crc32": "AAAAAA==",
        "x-amz-sdk-checksum-algorithm": "CRC32",
    }
    put = s3.fetch(s3.presign("PUT", "k", query=query), "PUT", b"x")

    assert 200 == put.status  # the JavaScript SDK v3: the checksum is of a body not yet known
    assert "ä b" == s3.get("k").headers["x-amz-meta-a"].encode("latin-1").decode()


@BOTH
def test_a_signed_header_may_stand_in_the_url_alone(s3: Client, version: int) -> None:
    """Of SigV2 so does boto3, of both versions the JavaScript SDK v2. [AWS's own answers]"""
    headers = {"x-amz-meta-a": "1 b", "x-amz-meta-b": "ä 日本", "x-amz-tagging": "t=u"}
    url = s3.presign("PUT", "k", headers, version=version, query=headers)
    changed = url.replace("x-amz-meta-a=1", "x-amz-meta-a=2")

    assert url != changed
    assert 403 == s3.fetch(changed, "PUT", b"x").status
    assert 403 == s3.fetch(url, "PUT", b"x", {"x-amz-meta-a": "2 b"}).status
    assert 403 == s3.fetch(url, "PUT", b"x", {"x-amz-meta-c": "1"}).status
    assert 404 == s3.head("k").status
    assert 200 == s3.fetch(url, "PUT", b"x").status
    kept = s3.head("k").headers
    assert ("1 b", "1") == (kept["x-amz-meta-a"], kept["x-amz-tagging-count"])
    assert "ä 日本" == kept["x-amz-meta-b"].encode("latin-1").decode()
    headers["x-amz-meta-b"] = headers["x-amz-meta-b"].encode().decode("latin-1")
    assert 200 == s3.fetch(url, "PUT", b"x", headers).status


def test_a_name_without_a_value_may_be_signed_without_its_equals_sign(s3: Client) -> None:
    """The JavaScript SDK v2 signs ?uploads in version 2, and writes ?uploads=."""
    url = s3.presign("POST", "k", version=2, query="uploads")
    longer = url.replace("?uploads&", "?uploads=&")

    assert url != longer
    assert [200, 200] == [s3.fetch(each, "POST").status for each in (url, longer)]
    assert 403 == s3.fetch(url.replace("?uploads&", "?uploads=1&"), "POST").status


@BOTH
def test_what_is_signed_is_the_bytes_of_a_header(s3: Client, version: int) -> None:
    headers = {"content-type": 'text/plain; name="ä"', "x-amz-meta-a": "ä"}
    url = s3.presign("PUT", "k", headers, version=version)
    sent = {name: value.encode().decode("latin-1") for name, value in headers.items()}

    for name, value in headers.items():
        assert 403 == s3.fetch(url, "PUT", b"x", {**sent, name: value}).status
    assert 200 == s3.fetch(url, "PUT", b"x", sent).status


@pytest.mark.parametrize("signature", ["s3v4", "s3"])
def test_metadata_in_the_urls_of_boto3_are_kept(
    server: Server, s3: Client, signature: str
) -> None:
    from botocore.config import Config

    boto = boto_client(server.endpoint, config=Config(signature_version=signature))
    named = {"Bucket": s3.bucket, "Key": "k", "Metadata": {"a": "1"}, "ACL": "private"}
    url = boto.generate_presigned_url("put_object", named)
    sent = {"x-amz-meta-a": "1", "x-amz-acl": "private"} if signature == "s3v4" else {}

    assert 200 == s3.fetch(url, "PUT", b"x", sent).status
    assert "1" == s3.head("k").headers["x-amz-meta-a"]


def test_a_line_end_in_the_query_makes_no_header(s3: Client) -> None:
    """What version 2 signs would read the same."""
    digest = hashlib.sha256(b"wanted").hexdigest()
    headers = {"x-amz-checksum-algorithm": "SHA256", "x-amz-content-sha256": digest}
    joined = {"x-amz-checksum-algorithm": f"SHA256\nx-amz-content-sha256:{digest}"}
    url = s3.presign("PUT", "k", headers, version=2, query=joined)

    assert 403 == s3.fetch(url, "PUT", b"other").status


@pytest.mark.parametrize("name", ["x-amz-copy-source", "x-amz-meta-a"])
def test_a_colon_in_the_query_makes_no_other_header(s3: Client, name: str) -> None:
    """What version 2 signs would read the same: who has the URL of a copy could store anything."""
    s3.put("a:b", b"source")
    headers = {name: f"{s3.bucket}/a:b"}
    url = s3.presign("PUT", "k", headers, version=2, query=headers)
    shifted = url.replace(f"{name}={s3.bucket}%2Fa%3Ab", f"{name}:{s3.bucket}/a=b")

    assert url != shifted
    assert 403 == s3.fetch(shifted, "PUT", b"other").status
    assert 404 == s3.head("k").status
    assert 200 == s3.fetch(url, "PUT").status


@BOTH
def test_a_url_may_repeat_the_headers_of_its_body(s3: Client, version: int) -> None:
    """As the JavaScript SDK v2 does. What the body comes with counts."""
    query = {"Content-Type": "text/plain", "Cache-Control": "no-cache"}
    url = s3.presign("PUT", "k", {"content-type": "text/plain"}, version=version, query=query)

    assert 403 == s3.fetch(url, "PUT", b"x").status
    assert 200 == s3.fetch(url, "PUT", b"x", {"content-type": "text/plain"}).status
    kept = s3.head("k").headers
    assert ("text/plain", False) == (kept["content-type"], "cache-control" in kept)


@BOTH
def test_what_a_url_asks_of_the_answer_to_a_get_is_nothing_to_a_write(
    s3: Client, version: int
) -> None:
    """Bun's presign({method: "PUT", type: "image/png"}) asks for response-content-type."""
    query = {"response-content-type": "image/png", "response-expires": "0"}

    put = s3.fetch(s3.presign("PUT", "k", version=version, query=query), "PUT", b"x")
    assert (200, b"") == (put.status, put.body)
    assert "binary/octet-stream" == s3.head("k").headers["content-type"]

    gone = s3.fetch(s3.presign("DELETE", "k", version=version, query=query), "DELETE")
    assert (204, 404) == (gone.status, s3.head("k").status)


@BOTH
def test_two_kinds_of_signature_at_once_are_refused(s3: Client, version: int) -> None:
    s3.put("k", b"x")
    url = s3.presign("GET", "k", version=version)
    signed = s3.sign("GET", f"/{s3.bucket}/k", [], {}, "UNSIGNED-PAYLOAD")

    assert (
        "InvalidArgument" == s3.fetch(url, headers={"authorization": signed["authorization"]}).error
    )
    both = url + "&" + s3.presign("GET", "k", version=6 - version).partition("?")[2]
    assert "InvalidArgument" == s3.fetch(both).error


@BOTH
def test_a_url_of_another_buckets_key_is_refused(server: Server, s3: Client, version: int) -> None:
    s3.put("k", b"x")
    other = server.client("media-key", bucket=s3.bucket)
    got = s3.fetch(other.presign("GET", "k", version=version))

    assert (403, "AccessDenied") == (got.status, got.error)


@BOTH
def test_an_unknown_key_id_is_told_so_and_nothing_more(s3: Client, version: int) -> None:
    stranger = replace(s3, access_key="nobody", secret_key="x")
    got = s3.fetch(stranger.presign("GET", "k", version=version))

    assert (403, "InvalidAccessKeyId") == (got.status, got.error)


@BOTH
def test_a_wrong_secret_never_shows_the_right_signature(s3: Client, version: int) -> None:
    wrong = replace(s3, secret_key="wrong")
    right = s3.presign("GET", "k", version=version, expires=900)
    got = s3.fetch(wrong.presign("GET", "k", version=version, expires=900))
    signature = re.findall("Signature=([^&]+)", right)[0]

    assert (403, "SignatureDoesNotMatch") == (got.status, got.error)
    assert signature.encode() not in got.body
    assert s3.secret_key.encode() not in got.body


@pytest.mark.parametrize(
    ("version", "name"), [(4, "X-Amz-Security-Token"), (2, "x-amz-security-token")])
def test_a_session_token_is_refused_with_a_hint(s3: Client, version: int, name: str) -> None:
    got = s3.fetch(s3.presign("GET", "k", version=version, query={name: "token"}))

    assert (400, True) == (got.status, "AWS_SESSION_TOKEN" in got.element("Message"))
