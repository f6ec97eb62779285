"""Checksums over the wire: what a client promises is verified, kept and given back."""

from __future__ import annotations

import base64
import hashlib
import zlib
from functools import reduce
from typing import Any, Callable

import pytest
from conftest import Server, boto_client
from signing_client import SIGNED_TRAILER, UNSIGNED, UNSIGNED_TRAILER, Client, Reply

PART = 5 << 20
ENABLED = {"x-amz-checksum-mode": "ENABLED"}


def reflected(polynomial: int, width: int) -> Callable[[bytes], bytes]:
    """A reflected CRC by its definition, bit by bit: slow, and with nothing to get wrong."""
    mask = (1 << width) - 1

    def step(value: int, _: int = 0) -> int:
        return value >> 1 ^ (polynomial if value & 1 else 0)

    def crc(data: bytes) -> bytes:
        value = mask
        for byte in data:
            value = reduce(step, range(8), value ^ byte)
        return (value ^ mask).to_bytes(width // 8, "big")

    return crc


DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "CRC32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "CRC32C": reflected(0x82F63B78, 32),
    "CRC64NVME": reflected(0x9A6C9329AC4BC9B5, 64),
    "SHA1": lambda data: hashlib.sha1(data).digest(),
    "SHA256": lambda data: hashlib.sha256(data).digest(),
}
EVERY = pytest.mark.parametrize("algorithm", DIGESTS)
BODY = b"What is stored is what was sent." * 3


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def checksum(algorithm: str, data: bytes) -> str:
    return b64(DIGESTS[algorithm](data))


def header(algorithm: str) -> str:
    return "x-amz-checksum-" + algorithm.lower()


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


def complete(
    s3: Client, key: str, upload: str, parts: list[tuple[str, str]], **headers: str
) -> Reply:
    """Complete an upload of (etag, further elements) parts."""
    rows = [
        f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag>{more}</Part>"
        for n, (etag, more) in enumerate(parts, 1)
    ]
    body = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>"
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return s3.post(key, body.encode(), given, uploadId=upload)


def start(s3: Client, algorithm: str, kind: str = "") -> str:
    headers = {"x-amz-checksum-algorithm": algorithm}
    if kind:
        headers["x-amz-checksum-type"] = kind
    return s3.post("k", b"", headers, query="uploads").element("UploadId")


# -- one body --------------------------------------------------------------------------------------


@EVERY
def test_a_checksum_in_the_head(s3: Client, algorithm: str) -> None:
    value = checksum(algorithm, BODY)
    put = s3.put("k", BODY, {header(algorithm): value, "x-amz-sdk-checksum-algorithm": algorithm})

    assert (200, value) == (put.status, put.headers[header(algorithm)])
    assert "FULL_OBJECT" == put.headers["x-amz-checksum-type"]
    for reply in (s3.get("k", ENABLED), s3.head("k", {"x-amz-checksum-mode": "enabled"})):
        assert value == reply.headers[header(algorithm)]


@EVERY
@pytest.mark.parametrize("payload", [UNSIGNED_TRAILER, SIGNED_TRAILER])
def test_a_checksum_behind_the_body(s3: Client, algorithm: str, payload: str) -> None:
    value = checksum(algorithm, BODY)
    headers = {"x-amz-sdk-checksum-algorithm": algorithm}
    put = s3.put("k", BODY, headers, payload=payload, trailers={header(algorithm): value})

    assert (200, value) == (put.status, put.headers[header(algorithm)])
    assert BODY == s3.get("k").body
    assert value == s3.head("k", ENABLED).headers[header(algorithm)]


@EVERY
@pytest.mark.parametrize("where", ["head", UNSIGNED_TRAILER, SIGNED_TRAILER])
def test_a_wrong_checksum_leaves_the_old_object(s3: Client, algorithm: str, where: str) -> None:
    s3.put("k", b"old", {"x-amz-meta-a": "1"})
    wrong = {header(algorithm): checksum(algorithm, BODY + b"!")}
    if where == "head":
        put = s3.put("k", BODY, wrong)
    else:
        put = s3.put("k", BODY, payload=where, trailers=wrong)
    got = s3.get("k", ENABLED)

    assert (400, "BadDigest") == outcome(put)
    assert (b"old", "1") == (got.body, got.headers["x-amz-meta-a"])
    assert header(algorithm) not in got.headers


@EVERY
@pytest.mark.parametrize("value", ["", "nonsense", "AAAA", "AAAAAA", "AAAAAB=="])
def test_a_checksum_that_cannot_be_read_is_refused(
    s3: Client, algorithm: str, value: str
) -> None:
    assert (400, "InvalidRequest") == outcome(s3.put("k", BODY, {header(algorithm): value}))
    assert 404 == s3.head("k").status


@EVERY
def test_a_checksum_is_not_given_unasked_nor_for_a_piece(s3: Client, algorithm: str) -> None:
    s3.put("k", BODY, {header(algorithm): checksum(algorithm, BODY)})
    for reply in (
        s3.get("k"),
        s3.head("k"),
        s3.get("k", {**ENABLED, "range": "bytes=0-3"}),
        s3.get("k", {**ENABLED, "range": "bytes=0-"}),
        s3.get("k", {**ENABLED, "range": "bytes=-999"}),
        s3.head("k", {**ENABLED, "range": "bytes=1-"}),
    ):
        assert header(algorithm) not in reply.headers


def test_a_listing_names_the_algorithm(s3: Client) -> None:
    s3.put("k", BODY, {header("SHA1"): checksum("SHA1", BODY)})
    page = s3.get(list_type=2)

    assert ("SHA1", "FULL_OBJECT") == (
        page.element("ChecksumAlgorithm"),
        page.element("ChecksumType"),
    )


@pytest.mark.parametrize("name", ["md5", "crc64", "crc16", "xxhash3", "xxhash64", "sha512"])
def test_an_unknown_algorithm_is_refused_by_name(s3: Client, name: str) -> None:
    put = s3.put("k", BODY, {"x-amz-checksum-" + name: "AAAAAA=="})
    trailer = s3.put("k", BODY, payload=UNSIGNED_TRAILER, trailers={"x-amz-checksum-" + name: "A"})

    assert (501, "NotImplemented") == outcome(put)
    assert "x-amz-checksum-" + name in put.body.decode()
    assert (400, "InvalidRequest") == outcome(trailer)
    sdk = s3.put("k", BODY, {"x-amz-sdk-checksum-algorithm": name.upper()})
    assert 200 == sdk.status if name == "md5" else (501, "NotImplemented") == outcome(sdk)
    created = s3.post("u", b"", {"x-amz-checksum-algorithm": name.upper()}, query="uploads")
    assert (501, "NotImplemented") == outcome(created)
    s3.put("source", BODY)
    copy = {"x-amz-copy-source": f"/{s3.bucket}/source", "x-amz-checksum-algorithm": name}
    assert (501, "NotImplemented") == outcome(s3.put("copy", b"", copy))


# -- several at once, and promises of odd kinds ----------------------------------------------------


@EVERY
def test_md5_and_a_checksum_may_come_together(s3: Client, algorithm: str) -> None:
    """Rails' Active Storage sends Content-MD5 and its SDK adds CRC32."""
    md5 = b64(hashlib.md5(BODY).digest())
    right = {"content-md5": md5, header(algorithm): checksum(algorithm, BODY)}
    wrong_md5 = {**right, "content-md5": b64(hashlib.md5(b"").digest())}
    wrong_sum = {**right, header(algorithm): checksum(algorithm, b"")}

    assert [200, 400, 400] == [s3.put("k", BODY, h).status for h in (right, wrong_md5, wrong_sum)]
    trailers = {header(algorithm): checksum(algorithm, BODY)}
    put = s3.put("k", BODY, {"content-md5": md5}, payload=UNSIGNED_TRAILER, trailers=trailers)
    assert 200 == put.status


def test_two_checksums_at_once_are_refused(s3: Client) -> None:
    crc, sha = {header(a): checksum(a, BODY) for a in ("CRC32",)}, {}
    sha = {header("SHA256"): checksum("SHA256", BODY)}
    for reply in (
        s3.put("k", BODY, {**crc, **sha}),
        s3.put("k", BODY, crc, payload=UNSIGNED_TRAILER, trailers=sha),
        s3.put("k", BODY, crc, payload=UNSIGNED_TRAILER, trailers=crc),
        s3.put("k", BODY, payload=UNSIGNED_TRAILER, trailers={**crc, **sha}),
    ):
        assert (400, "InvalidRequest") == outcome(reply)
    assert 404 == s3.head("k").status


@pytest.mark.parametrize("payload", [UNSIGNED_TRAILER, SIGNED_TRAILER])
def test_a_trailer_that_never_comes_stores_nothing(s3: Client, payload: str) -> None:
    s3.put("k", b"old")
    put = s3.put("k", BODY, {"x-amz-trailer": header("CRC32")}, payload=payload)

    assert (400, "MalformedTrailerError") == outcome(put)
    assert b"old" == s3.get("k").body


def test_another_trailer_than_the_announced_one_is_refused(s3: Client) -> None:
    trailers = {header("SHA1"): checksum("SHA1", BODY)}
    announced = {"x-amz-trailer": header("CRC32")}
    put = s3.put("k", BODY, announced, payload=UNSIGNED_TRAILER, trailers=trailers)

    assert (400, "MalformedTrailerError") == outcome(put)
    assert 404 == s3.head("k").status


def test_java_announces_a_trailer_and_sends_a_header(s3: Client) -> None:
    """AWS's SDK for Java names x-amz-trailer beside a body that is not streamed."""
    headers = {
        "x-amz-trailer": header("CRC32"),
        "x-amz-sdk-checksum-algorithm": "CRC32",
        header("CRC32"): checksum("CRC32", BODY),
    }
    for payload in ("", UNSIGNED):
        assert 200 == s3.put("k", BODY, headers, payload=payload).status
    assert headers[header("CRC32")] == s3.head("k", ENABLED).headers[header("CRC32")]
    wrong = {**headers, header("CRC32"): checksum("CRC32", b"")}
    assert (400, "BadDigest") == outcome(s3.put("k", BODY, wrong))


def test_a_trailer_cannot_come_behind_a_plain_body(s3: Client) -> None:
    put = s3.put("k", BODY, {"x-amz-trailer": header("CRC32")})

    assert 400 == put.status
    assert 404 == s3.head("k").status


@EVERY
def test_an_algorithm_without_a_value_is_refused(s3: Client, algorithm: str) -> None:
    other = "SHA1" if algorithm != "SHA1" else "CRC32"
    for more in ({}, {header(other): checksum(other, BODY)}):
        put = s3.put("k", BODY, {"x-amz-sdk-checksum-algorithm": algorithm, **more})
        assert (400, "InvalidRequest") == outcome(put)
    assert 404 == s3.head("k").status


@EVERY
def test_a_document_may_carry_a_checksum(s3: Client, algorithm: str) -> None:
    s3.put("k", b"x")
    body = b"<Delete><Object><Key>k</Key></Object></Delete>"
    wrong = s3.post("", body, {header(algorithm): checksum(algorithm, b"")}, query="delete")
    assert (400, "BadDigest") == outcome(wrong)
    assert 200 == s3.head("k").status
    right = s3.post("", body, {header(algorithm): checksum(algorithm, body)}, query="delete")

    assert ["k"] == right.elements("Key")
    assert 404 == s3.head("k").status


# -- parts -----------------------------------------------------------------------------------------


@EVERY
def test_a_part_has_its_checksum_in_the_head_or_behind_it(s3: Client, algorithm: str) -> None:
    upload, value = start(s3, algorithm), checksum(algorithm, BODY)
    first = s3.put("k", BODY, {header(algorithm): value}, partNumber=1, uploadId=upload)
    trailers = {header(algorithm): value}
    more: dict[str, Any] = {"payload": UNSIGNED_TRAILER, "trailers": trailers}
    second = s3.put("k", BODY, partNumber=2, uploadId=upload, **more)
    wrong = {header(algorithm): checksum(algorithm, b"")}
    third = s3.put("k", BODY, wrong, partNumber=3, uploadId=upload)
    listed = s3.get("k", uploadId=upload)

    assert [value, value] == [reply.headers[header(algorithm)] for reply in (first, second)]
    assert (400, "BadDigest") == outcome(third)
    assert [value, value] == listed.elements("Checksum" + algorithm)
    assert algorithm == listed.element("ChecksumAlgorithm")


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "SHA1", "SHA256"])
def test_a_composite_is_the_checksum_of_checksums(s3: Client, algorithm: str) -> None:
    upload, value = start(s3, algorithm), checksum(algorithm, BODY)
    etag = s3.put("k", BODY, {header(algorithm): value}, partNumber=1, uploadId=upload).etag
    total = checksum(algorithm, DIGESTS[algorithm](BODY))
    named = [(etag, f"<Checksum{algorithm}>{value}</Checksum{algorithm}>")]
    given = {header(algorithm).replace("-", "_"): checksum(algorithm, b"")}
    assert "BadDigest" == complete(s3, "k", upload, named, **given).error
    done = complete(s3, "k", upload, named)
    head = s3.head("k", ENABLED).headers

    assert (total + "-1", "COMPOSITE") == (
        done.element("Checksum" + algorithm),
        done.element("ChecksumType"),
    )
    assert (total + "-1", "COMPOSITE") == (head[header(algorithm)], head["x-amz-checksum-type"])


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
def test_a_full_checksum_is_combined_from_the_parts(s3: Client, algorithm: str) -> None:
    """The first part is zeros, whose CRC is known without the slow definition above."""
    zeros, tail = bytes(PART), b"the end"
    upload = start(s3, algorithm, "FULL_OBJECT")
    first = s3.put("k", zeros, partNumber=1, uploadId=upload)
    second = s3.put("k", tail, partNumber=2, uploadId=upload)
    done = complete(s3, "k", upload, [(first.etag, ""), (second.etag, "")])
    value = done.element("Checksum" + algorithm)
    plain = s3.put("whole", zeros + tail, {header(algorithm): value})

    assert "FULL_OBJECT" == done.element("ChecksumType")
    assert 200 == plain.status, plain.body
    if algorithm == "CRC32":
        assert checksum("CRC32", zeros + tail) == value
    assert value == s3.head("k", ENABLED).headers[header(algorithm)]
    assert header(algorithm) not in s3.get("k", ENABLED, partNumber=2).headers


def test_complete_names_a_wrong_full_checksum(s3: Client) -> None:
    upload = start(s3, "CRC32", "FULL_OBJECT")
    etag = s3.put("k", BODY, partNumber=1, uploadId=upload).etag
    wrong = complete(s3, "k", upload, [(etag, "")], x_amz_checksum_crc32=checksum("CRC32", b""))
    assert (400, "BadDigest") == outcome(wrong)
    assert 404 == s3.head("k").status
    kind = complete(s3, "k", upload, [(etag, "")], x_amz_checksum_type="COMPOSITE")
    assert (400, "InvalidRequest") == outcome(kind)
    right = complete(s3, "k", upload, [(etag, "")], x_amz_checksum_crc32=checksum("CRC32", BODY))

    assert checksum("CRC32", BODY) == right.element("ChecksumCRC32")


# -- copies ----------------------------------------------------------------------------------------


@EVERY
def test_a_copy_keeps_the_checksum(s3: Client, algorithm: str) -> None:
    value = checksum(algorithm, BODY)
    s3.put("k", BODY, {header(algorithm): value})
    copy = s3.put("copy", b"", {"x-amz-copy-source": f"/{s3.bucket}/k"})

    assert value == copy.element("Checksum" + algorithm)
    assert value == s3.head("copy", ENABLED).headers[header(algorithm)]


@EVERY
def test_a_copy_computes_the_checksum_that_is_asked_for(s3: Client, algorithm: str) -> None:
    source = {"x-amz-copy-source": f"/{s3.bucket}/k", "x-amz-checksum-algorithm": algorithm}
    s3.put("k", BODY, {header("SHA1"): checksum("SHA1", BODY)})
    for key in ("copy", "k"):  # the second time onto itself
        assert 200 == s3.put(key, b"", {**source, "x-amz-metadata-directive": "REPLACE"}).status
        head = s3.head(key, ENABLED).headers
        assert checksum(algorithm, BODY) == head[header(algorithm)]
        assert {header(algorithm), "x-amz-checksum-type"} == {
            name for name in head if name.startswith("x-amz-checksum-")
        }


def test_a_copy_of_parts_has_the_checksum_of_the_whole(s3: Client) -> None:
    upload, value = start(s3, "SHA256"), checksum("SHA256", BODY)
    etag = s3.put("k", BODY, {header("SHA256"): value}, partNumber=1, uploadId=upload).etag
    complete(s3, "k", upload, [(etag, f"<ChecksumSHA256>{value}</ChecksumSHA256>")])
    s3.put("copy", b"", {"x-amz-copy-source": f"/{s3.bucket}/k"})
    head = s3.head("copy", ENABLED).headers

    assert (value, "FULL_OBJECT") == (head[header("SHA256")], head["x-amz-checksum-type"])


# -- boto3 -----------------------------------------------------------------------------------------


def boto_algorithms() -> list[str]:
    """CRC32C and CRC64NVME need a library that boto3 does not bring."""
    try:
        import awscrt  # noqa: F401 here only to see whether it is there
    except ImportError:
        return ["CRC32", "SHA1", "SHA256"]
    return list(DIGESTS)


@pytest.mark.parametrize("algorithm", boto_algorithms())
def test_boto3_sends_and_checks_each_algorithm(s3: Client, boto: Any, algorithm: str) -> None:
    where = {"Bucket": s3.bucket, "Key": "k"}
    put = boto.put_object(Body=BODY, ChecksumAlgorithm=algorithm, **where)
    got = boto.get_object(ChecksumMode="ENABLED", **where)

    value = checksum(algorithm, BODY)
    assert value == put["Checksum" + algorithm] == got["Checksum" + algorithm]
    assert BODY == got["Body"].read()
    assert "FULL_OBJECT" == got["ChecksumType"]


@pytest.mark.parametrize("algorithm", boto_algorithms())
def test_boto3_uploads_parts_with_each_algorithm(s3: Client, boto: Any, algorithm: str) -> None:
    from io import BytesIO

    from boto3.s3.transfer import TransferConfig

    data = bytes(PART) + b"the end"
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=2)
    more = {"ChecksumAlgorithm": algorithm}
    boto.upload_fileobj(BytesIO(data), s3.bucket, "k", ExtraArgs=more, Config=config)
    got = boto.get_object(Bucket=s3.bucket, Key="k", ChecksumMode="ENABLED")

    assert data == got["Body"].read()
    assert got["Checksum" + algorithm]


@pytest.mark.parametrize("calculation", ["when_supported", "when_required"])
def test_boto3_works_with_checksums_on_and_off(
    server: Server, s3: Client, calculation: str
) -> None:
    from botocore.config import Config

    config = Config(
        request_checksum_calculation=calculation, response_checksum_validation=calculation
    )
    boto = boto_client(server.endpoint, config=config)
    boto.put_object(Bucket=s3.bucket, Key="k", Body=BODY)
    head = s3.head("k", ENABLED).headers

    assert BODY == boto.get_object(Bucket=s3.bucket, Key="k")["Body"].read()
    assert (calculation == "when_supported") == (header("CRC32") in head)
