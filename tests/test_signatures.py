"""Who signed a request: AWS's published examples, botocore's signers, and every way to be wrong."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Optional
from urllib.parse import parse_qsl, quote, unquote

import pytest
from signing_client import EMPTY, SIGNED_CHUNKS, SIGNED_TRAILER, UNSIGNED, Client

import s3mini

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW = 1369353600.0  # 20130524T000000Z, the moment of AWS's examples
STAMP = "20130524T000000Z"
SCOPE = "20130524/us-east-1/s3/aws4_request"
AWS = Client("examplebucket.s3.amazonaws.com", ACCESS_KEY, SECRET, now=STAMP)
BOX = Client("box:9000", ACCESS_KEY, SECRET, now=STAMP)

Headers = Mapping[str, str]


def head_of(method: str, target: str, headers: Headers) -> s3mini.Head:
    lines = [f"{method} {target} HTTP/1.1", *[f"{n}: {v}" for n, v in headers.items()], "", ""]
    return s3mini.parse_head("\r\n".join(lines).encode("latin-1"))


def verify(
    head: s3mini.Head, *, hosts: Iterable[str] = (), bucket: str = "", now: float = NOW
) -> Optional[s3mini.Signed]:
    keyring = s3mini.Keyring({ACCESS_KEY: SECRET}, tuple(hosts))
    return s3mini.verify(head, keyring, bucket, now)


def is_accepted(head: s3mini.Head, **more: Any) -> bool:
    signed = verify(head, **more)
    return signed is not None and signed.access_key == ACCESS_KEY


def refusal(head: s3mini.Head, **more: Any) -> s3mini.S3Error:
    with pytest.raises(s3mini.S3Error) as caught:
        verify(head, **more)
    return caught.value


def text_of(error: s3mini.S3Error) -> str:
    """All that a client gets to see of an error."""
    return f"{error} {error.headers} {error.fields}"


def split_url(url: str) -> str:
    """The request target of a URL."""
    return "/" + url.split("/", 3)[3]


# --- AWS's published examples ---------------------------------------------------------------------


def published(names: str, signature: str) -> str:
    return (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{SCOPE},"
        f"SignedHeaders={names},Signature={signature}"
    )


PUBLISHED = [  # [AWS: sig-v4-header-based-auth, sigv4-streaming, sigv4-streaming-trailers]
    pytest.param(
        "GET",
        "/test.txt",
        "examplebucket.s3.amazonaws.com",
        {"Range": "bytes=0-9", "x-amz-content-sha256": EMPTY},
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        id="GET Object",
    ),
    pytest.param(
        "PUT",
        "/test$file.text",
        "examplebucket.s3.amazonaws.com",
        {
            "Date": "Fri, 24 May 2013 00:00:00 GMT",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
            "x-amz-content-sha256": hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
        },
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        id="PUT Object",
    ),
    pytest.param(
        "GET",
        "/?lifecycle",
        "examplebucket.s3.amazonaws.com",
        {"x-amz-content-sha256": EMPTY},
        "host;x-amz-content-sha256;x-amz-date",
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        id="GET Bucket Lifecycle",
    ),
    pytest.param(
        "GET",
        "/?max-keys=2&prefix=J",
        "examplebucket.s3.amazonaws.com",
        {"x-amz-content-sha256": EMPTY},
        "host;x-amz-content-sha256;x-amz-date",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        id="GET Bucket (List Objects)",
    ),
    pytest.param(
        "PUT",
        "/examplebucket/chunkObject.txt",
        "s3.amazonaws.com",
        {
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
            "x-amz-content-sha256": SIGNED_CHUNKS,
            "Content-Encoding": "aws-chunked",
            "x-amz-decoded-content-length": "66560",
            "Content-Length": "66824",
        },
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;"
        "x-amz-decoded-content-length;x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        id="chunked seed",
    ),
    pytest.param(
        "PUT",
        "/examplebucket/chunkObject.txt",
        "s3.amazonaws.com",
        {
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
            "x-amz-content-sha256": SIGNED_TRAILER,
            "Content-Encoding": "aws-chunked",
            "x-amz-decoded-content-length": "66560",
            "x-amz-trailer": "x-amz-checksum-crc32c",
        },
        "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;"
        "x-amz-storage-class;x-amz-trailer",
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        id="chunked seed with trailer",
    ),
]


def published_head(
    method: str, target: str, host: str, headers: Headers, names: str, signature: str
) -> s3mini.Head:
    sent = {"Host": host, **headers, "x-amz-date": STAMP}
    return head_of(method, target, {"Authorization": published(names, signature), **sent})


@pytest.mark.parametrize(("method", "target", "host", "headers", "names", "signature"), PUBLISHED)
def test_a_published_signature_is_accepted(
    method: str, target: str, host: str, headers: Headers, names: str, signature: str
) -> None:
    signed = verify(published_head(method, target, host, headers, names, signature))

    assert signed is not None
    assert ACCESS_KEY == signed.access_key
    assert headers["x-amz-content-sha256"] == signed.payload
    assert (STAMP, SCOPE, signature) == (signed.date, signed.scope, signed.signature)


@pytest.mark.parametrize(("method", "target", "host", "headers", "names", "signature"), PUBLISHED)
def test_a_published_signature_is_refused_with_one_digit_changed(
    method: str, target: str, host: str, headers: Headers, names: str, signature: str
) -> None:
    for at in (0, 31, 63):
        digit = "0" if signature[at] != "0" else "1"
        wrong = signature[:at] + digit + signature[at + 1 :]

        error = refusal(published_head(method, target, host, headers, names, wrong))

        assert ("SignatureDoesNotMatch", 403) == (error.code, error.status)


PUBLISHED_URL = (  # [AWS: sigv4-query-string-auth]
    "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)
PUBLISHED_HOST = {"Host": "examplebucket.s3.amazonaws.com"}


def test_the_published_presigned_url_is_accepted() -> None:
    signed = verify(head_of("GET", PUBLISHED_URL, PUBLISHED_HOST))

    assert signed is not None
    assert (ACCESS_KEY, UNSIGNED) == (signed.access_key, signed.payload)


PUBLISHED_V2 = (  # [AWS: RESTAuthentication, query string request authentication]
    "/photos/puppy.jpg?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE"
    "&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620"
)
V2_HOST = {"Host": "johnsmith.s3.amazonaws.com"}


def test_the_published_version_2_url_is_accepted() -> None:
    head = head_of("GET", PUBLISHED_V2, V2_HOST)

    signed = verify(head, bucket="johnsmith", now=1175139620)

    assert signed == s3mini.Signed(ACCESS_KEY, UNSIGNED)


def test_the_published_version_2_url_is_accepted_for_the_same_object_in_path_style() -> None:
    head = head_of("GET", "/johnsmith" + PUBLISHED_V2, {"Host": "s3.amazonaws.com"})

    assert is_accepted(head, now=1175139620)


def test_the_published_version_2_url_opens_no_other_object() -> None:
    other = head_of("GET", PUBLISHED_V2.replace("puppy", "kitty"), V2_HOST)
    head = head_of("GET", PUBLISHED_V2, V2_HOST)

    assert "SignatureDoesNotMatch" == refusal(other, bucket="johnsmith", now=1175139620).code
    assert "SignatureDoesNotMatch" == refusal(head, bucket="other", now=1175139620).code


CHUNK_SIGNATURES = [  # 65,536, 1,024 and 0 bytes                        [AWS: sigv4-streaming]
    "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
    "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
    "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
]
TRAILER_CHUNK_SIGNATURES = [  # the same                        [AWS: sigv4-streaming-trailers]
    "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
    "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
    "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
]
TRAILER = (
    b"x-amz-checksum-crc32c:sOO8/Q==\r\n"
    b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n"
)
CHUNKED = [
    pytest.param(4, CHUNK_SIGNATURES, b"", {}, id="signed chunks"),
    pytest.param(5, TRAILER_CHUNK_SIGNATURES, TRAILER, {"CRC32C": "sOO8/Q=="}, id="with trailer"),
]


def published_body(signatures: list[str], trailer: bytes) -> bytes:
    out = b""
    for size, signature in zip((65536, 1024, 0), signatures):
        out += f"{size:x};chunk-signature={signature}\r\n".encode() + b"a" * size
        out += b"\r\n" if size else b""
    return out + trailer + b"\r\n"


def open_published(number: int, wire: bytes) -> s3mini.Body:
    head = published_head(*PUBLISHED[number].values)  # type: ignore[arg-type]
    source = s3mini.LengthReader(io.BytesIO(wire), len(wire))
    return s3mini.open_body(head, source, verify(head), True)


@pytest.mark.parametrize(("number", "signatures", "trailer", "checksums"), CHUNKED)
def test_the_published_chunks_are_accepted(
    number: int, signatures: list[str], trailer: bytes, checksums: dict[str, str]
) -> None:
    body = open_published(number, published_body(signatures, trailer))

    assert b"a" * 66560 == body.read_all()
    assert checksums == body.checksums


@pytest.mark.parametrize(("number", "signatures", "trailer", "checksums"), CHUNKED)
def test_the_published_chunks_are_refused_with_one_byte_changed_anywhere(
    number: int, signatures: list[str], trailer: bytes, checksums: dict[str, str]
) -> None:
    wire = published_body(signatures, trailer)
    places = [100, 65625, 65711, 66735, 66800, len(wire) - 10]
    for at in places:
        changed = bytearray(wire)
        changed[at] ^= 1

        with pytest.raises(s3mini.S3Error):
            open_published(number, bytes(changed)).read_all()


def test_the_published_trailer_may_end_with_a_newline_of_its_own() -> None:
    """AWS's page prints the trailer as "sOO8/Q==\\n\\r\\n"; some clients send just that."""
    trailer = TRAILER.replace(b"==\r\n", b"==\n\r\n")

    body = open_published(5, published_body(TRAILER_CHUNK_SIGNATURES, trailer))

    assert 66560 == len(body.read_all())


# --- botocore's signers ---------------------------------------------------------------------------

LETTERS = "abcXYZ019-._~!$&'()*+,;=:@ /%?#[]\"<>\\^`{|}äß€日🙂\t\n\x7f"


def random_text(source: random.Random, longest: int) -> str:
    return "".join(source.choice(LETTERS) for _ in range(source.randrange(longest)))


def random_escapes(source: random.Random, encoded: str) -> str:
    """The same path or value in other escapes: lower-case hex, bare where it may be, and %41."""
    out, at = "", 0
    while at < len(encoded):
        step = 3 if encoded[at] == "%" else 1
        unit, at = encoded[at : at + step], at + step
        if source.random() < 0.3:
            bare = unquote(unit, "latin-1")
            if step == 3:
                unit = bare if bare in "!$'()*,;:@" else unit.lower()
            elif bare.isalnum():
                unit = f"%{ord(bare):02x}"
        out += unit
    return out


def random_request(source: random.Random) -> tuple[str, str, list[tuple[str, str]], dict[str, str]]:
    """(method, path, query pairs still encoded, headers)."""
    path = "/bucket/" + quote(random_text(source, 30), safe="/~")
    names = source.sample(["prefix", "marker", "list-type", "uploads", "delimiter", "ä ö"], 3)
    pairs = [(quote(n, safe="-._~"), quote(random_text(source, 9), safe="-._~")) for n in names]
    headers = {f"x-amz-meta-{n}": random_value(source) for n in source.sample("abcdef", 3)}
    if source.random() < 0.5:
        headers["Content-Type"] = "text/plain;  charset=utf-8"
    return source.choice(["GET", "PUT", "HEAD", "DELETE"]), path, pairs, headers


def random_value(source: random.Random) -> str:
    return "".join(source.choice("abc,;:=\"'   ") for _ in range(source.randrange(12))).strip()


def question(pairs: list[tuple[str, str]]) -> str:
    return "?" + "&".join(f"{n}={v}" for n, v in pairs)


def botocore_request(signer: Callable[..., Any], seed: int, **more: Any) -> tuple[Any, str]:
    """A random request, signed, and the path that goes on the wire instead of the signed one."""
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    source = random.Random(seed)
    method, path, pairs, headers = random_request(source)
    url = f"http://127.0.0.1:9000{path}{question(pairs[: source.randrange(4)])}".rstrip("?")
    request = AWSRequest(method=method, url=url, headers=headers)
    signer(Credentials(ACCESS_KEY, SECRET), **more).add_auth(request)
    return request, random_escapes(source, path)


def wire_head(request: Any, path: str) -> s3mini.Head:
    target = path + "".join(split_url(request.url).partition("?")[1:])
    headers = {n: v for n, v in request.headers.items() if n != "Date"}
    return head_of(request.method, target, {"Host": "127.0.0.1:9000", **headers})


@pytest.mark.parametrize("seed", range(0, 300, 50))
def test_headers_signed_by_botocore_are_accepted(seed: int) -> None:
    auth = pytest.importorskip("botocore.auth")
    for number in range(seed, seed + 50):
        request, path = botocore_request(
            auth.S3SigV4Auth, number, service_name="s3", region_name="eu-west-3"
        )

        head = wire_head(request, path)

        assert is_accepted(head, now=time.time()), head
        refused = wire_head(request, path + "x")
        assert "SignatureDoesNotMatch" == refusal(refused, now=time.time()).code


@pytest.mark.parametrize("seed", range(0, 300, 50))
def test_urls_presigned_by_botocore_are_accepted(seed: int) -> None:
    auth = pytest.importorskip("botocore.auth")
    for number in range(seed, seed + 50):
        request, path = botocore_request(
            auth.S3SigV4QueryAuth, number, service_name="s3", region_name="us-east-1", expires=60
        )

        head = wire_head(request, path)

        assert is_accepted(head, now=time.time()), head
        refused = wire_head(request, path + "x")
        assert "SignatureDoesNotMatch" == refusal(refused, now=time.time()).code


@pytest.mark.parametrize("seed", range(0, 300, 50))
def test_version_2_urls_by_botocore_are_accepted(seed: int) -> None:
    auth = pytest.importorskip("botocore.auth")
    for number in range(seed, seed + 50):
        request, _ = botocore_request(auth.HmacV1QueryAuth, number, expires=60)
        path = split_url(request.url).partition("?")[0]

        head = wire_head(request, path)

        assert is_accepted(head, now=time.time()), head
        refused = wire_head(request, path + "x")
        assert "SignatureDoesNotMatch" == refusal(refused, now=time.time()).code


@pytest.mark.parametrize(
    "query",
    [
        "acl",
        "versionId=a%20b",
        "uploadId=x%2By&partNumber=7",
        "uploads",
        "uploads=",
        "response-content-type=text%2Fplain%3B%20charset%3Dutf-8&response-expires=now",
        "prefix=a&list-type=2",
        "tagging&prefix=x",
    ],
)
def test_version_2_signs_the_names_that_botocore_signs(query: str) -> None:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method="GET", url=f"http://127.0.0.1:9000/media/a%20b?{query}", headers={})
    auth.HmacV1QueryAuth(Credentials(ACCESS_KEY, SECRET)).add_auth(request)

    head = wire_head(request, "/media/a%20b")

    assert is_accepted(head, now=time.time())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "image/png"},
        {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="},
        {"Content-Type": "image/png", "x-amz-acl": "private", "x-amz-meta-a": "b"},
    ],
    ids=lambda headers: " ".join(headers) or "none",
)
def test_a_version_2_url_for_an_upload_leads_to_the_upload(headers: dict[str, str]) -> None:
    """botocore repeats the signed headers in the query. [boto3: generate_presigned_url, default]"""
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method="PUT", url="http://127.0.0.1:9000/media/k", headers=dict(headers))
    auth.HmacV1QueryAuth(Credentials(ACCESS_KEY, SECRET)).add_auth(request)
    head = wire_head(request, "/media/k")

    assert is_accepted(head, now=time.time())
    assert s3mini.put_object is s3mini.resolve(s3mini.hoist(head), s3mini.OBJECT)[0]


@pytest.mark.parametrize(("method", "target", "operation"), [
    ("PUT", "x-amz-copy-source=a&x-amz-metadata-directive=REPLACE", "copy_object"),
    ("PUT", "x-amz-copy-source=a&x-amz-tagging-directive=COPY", "copy_object"),
    ("PUT", "x-amz-request-payer=requester", "put_object"),
    ("PUT", "x-amz-copy-source=a&x-amz-checksum-algorithm=SHA256", "copy_object"),
    ("POST", "uploads=&x-amz-checksum-algorithm=SHA256&x-amz-checksum-type=COMPOSITE",
     "create_multipart_upload"),
    ("POST", "uploadId=1&x-amz-mp-object-size=1", "complete_multipart_upload"),
    ("PUT", "x-amz-write-offset-bytes=1", "put_object"),
    ("GET", "x-amz-checksum-mode=ENABLED", "get_object"),
    ("PUT", "renameObject=&x-amz-rename-source=a", "rename_object"),
    ("DELETE", "x-amz-if-match-size=1", "delete_object"),
    ("GET", "attributes=&x-amz-object-attributes=ETag", "get_object_attributes"),
])  # fmt: skip
def test_headers_that_an_sdk_moves_into_a_url_mean_the_same(
    method: str, target: str, operation: str
) -> None:
    """Of getSignedUrl in the JavaScript SDK, version 3."""
    head = s3mini.hoist(head_of(method, f"/b/k?{target}&X-Amz-Signature=0", {"Host": "x"}))
    moved = [pair.partition("=")[0] for pair in target.split("&") if pair.startswith("x-amz-")]

    assert getattr(s3mini, operation) is s3mini.resolve(head, s3mini.OBJECT)[0]
    assert set(moved) <= head.headers.keys()
    assert set(moved).isdisjoint(head.query)


def test_a_tab_is_a_blank_to_a_signature() -> None:
    """As botocore and the SDKs for Java and JavaScript have it [aws-sdk-net #1222]."""
    claim = s3mini.Claim("k", "d", "s", ("x-amz-meta-a",), "0", "hash")
    texts = [s3mini.canonical_request(head_of("GET", "/b", {"Host": "x", "x-amz-meta-a": value}),
                                      claim, "") for value in ("x y", "x\ty", "x \t  y", "x  y")]

    assert 1 == len(set(texts))


def test_what_a_stranger_sends_as_a_date_is_not_kept() -> None:
    before = s3mini.parse_short_date.cache_info().currsize
    for number in range(10):
        assert s3mini.parse_iso_date(str(number) * 60_000) is None

    assert before == s3mini.parse_short_date.cache_info().currsize


def test_two_hashes_of_one_body_are_refused() -> None:
    query = ("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K/20240501/r/s3/aws4_request"
             "&X-Amz-Date=20240501T000000Z&X-Amz-Expires=9&X-Amz-SignedHeaders=host"
             "&X-Amz-Signature=0&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD")
    same, other = (head_of("PUT", f"/b/k?{query}", {"Host": "x", "x-amz-content-sha256": payload})
                   for payload in ("UNSIGNED-PAYLOAD", "0" * 64))

    alone = head_of("PUT", f"/b/k?{query.replace('UNSIGNED-PAYLOAD', '1' * 64)}", {"Host": "x"})

    assert "UNSIGNED-PAYLOAD" == s3mini.parse_presigned(same)[0].payload
    assert "1" * 64 == s3mini.parse_presigned(alone)[0].payload
    with pytest.raises(s3mini.S3Error, match="two"):
        s3mini.parse_presigned(other)


# --- The header, and every way to be wrong --------------------------------------------------------


def signed_headers(**more: str) -> dict[str, str]:
    """The headers of a good GET /media/cat.jpg at box:9000."""
    extra = {n.replace("_", "-"): v for n, v in more.items()}
    return BOX.sign("GET", "/media/cat.jpg", [], extra, EMPTY)


def get(headers: Headers, target: str = "/media/cat.jpg") -> s3mini.Head:
    return head_of("GET", target, headers)


def changed(name: str, old: str, new: str) -> Callable[[dict[str, str]], None]:
    def change(headers: dict[str, str]) -> None:
        assert old in headers[name]
        headers[name] = headers[name].replace(old, new)

    return change


def replaced(name: str, value: str) -> Callable[[dict[str, str]], None]:
    return lambda headers: headers.update({name: value})


def without(name: str) -> Callable[[dict[str, str]], None]:
    return lambda headers: headers.pop(name) and None  # type: ignore[func-returns-value]


def authorization(old: str, new: str) -> Callable[[dict[str, str]], None]:
    return changed("authorization", old, new)


MALFORMED = ("AuthorizationHeaderMalformed", 400)
MISMATCH = ("SignatureDoesNotMatch", 403)
DENIED = ("AccessDenied", 403)
INVALID = ("InvalidArgument", 400)

WRONG_HEADERS = {
    "empty": (replaced("authorization", ""), INVALID),
    "one word": (replaced("authorization", "nonsense"), INVALID),
    "unknown scheme": (replaced("authorization", "Basic dXNlcjpwYXNz"), INVALID),
    "SigV4A": (authorization("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), INVALID),
    "version 2": (replaced("authorization", "AWS key:c2lnbmF0dXJl"), ("InvalidRequest", 400)),
    "no credential": (authorization(f"Credential={ACCESS_KEY}/{SCOPE},", ""), MALFORMED),
    "no signed headers": (
        authorization("SignedHeaders=host;x-amz-content-sha256;x-amz-date,", ""),
        MALFORMED,
    ),
    "a header signed twice": (authorization(";x-amz-date", ";x-amz-date;host"), MALFORMED),
    "no signature": (authorization(",Signature=", ",Nothing="), MALFORMED),
    "no equals sign": (authorization("Credential=", "Credential:"), MALFORMED),
    "credential of four parts": (authorization("/us-east-1/", "/"), MALFORMED),
    "credential of six parts": (authorization("/s3/", "/s3/s3/"), MALFORMED),
    "credential without a key": (authorization(f"={ACCESS_KEY}/", "=/"), MALFORMED),
    "credential with a huge key": (authorization(ACCESS_KEY, "A" * 300), MALFORMED),
    "scope's date too short": (authorization("/20130524/", "/2013524/"), MALFORMED),
    "scope's date no date": (authorization("/20130524/", "/2013May4/"), MALFORMED),
    "scope's date another": (authorization("/20130524/", "/20130525/"), MALFORMED),
    "other service": (authorization("/s3/", "/ec2/"), MALFORMED),
    "other terminal": (authorization("aws4_request", "aws_request"), MALFORMED),
    "unknown key": (authorization(ACCESS_KEY, "AKIAOTHER"), ("InvalidAccessKeyId", 403)),
    "no date": (without("x-amz-date"), DENIED),
    "unreadable date": (replaced("x-amz-date", "Friday"), DENIED),
    "impossible date": (replaced("x-amz-date", "20131324T000000Z"), DENIED),
    "no content hash": (without("x-amz-content-sha256"), ("InvalidRequest", 400)),
    "too late": (
        lambda h: h.update(BOX_AT("20130523T234459Z")),
        ("RequestTimeTooSkewed", 403),
    ),
    "too early": (
        lambda h: h.update(BOX_AT("20130524T001501Z")),
        ("RequestTimeTooSkewed", 403),
    ),
    "signature changed": (
        lambda h: h.update(authorization=h["authorization"][:-1] + "g"),
        MISMATCH,
    ),
    "signature upper case": (
        lambda h: h.update(
            authorization=h["authorization"][:-64] + h["authorization"][-64:].upper()
        ),
        MISMATCH,
    ),
    "signature empty": (lambda h: h.update(authorization=h["authorization"][:-64]), MISMATCH),
    "signature short": (lambda h: h.update(authorization=h["authorization"][:-1]), MISMATCH),
    "signature not ASCII": (
        lambda h: h.update(authorization=h["authorization"][:-4] + "\xe9\xff\xe0\xdf"),
        MISMATCH,
    ),
    "other region": (authorization("us-east-1", "us-east-2"), MISMATCH),
    "region not ASCII": (authorization("us-east-1", "\xe9"), MISMATCH),
    "hash changed": (replaced("x-amz-content-sha256", UNSIGNED), MISMATCH),
    "host changed": (replaced("host", "other:9000"), MISMATCH),
    "time changed": (replaced("x-amz-date", "20130524T000001Z"), MISMATCH),
    "host unsigned": (authorization("SignedHeaders=host;", "SignedHeaders="), DENIED),
    "x-amz header added": (replaced("x-amz-acl", "public-read"), DENIED),
    "copy source added": (replaced("x-amz-copy-source", "/other/secret"), DENIED),
    "token": (
        lambda h: h.update(signed_headers(x_amz_security_token="x")),
        ("InvalidToken", 400),
    ),
}


def BOX_AT(stamp: str) -> dict[str, str]:  # noqa: N802 a Client with another clock
    client = Client("box:9000", ACCESS_KEY, SECRET, now=stamp)
    return client.sign("GET", "/media/cat.jpg", [], {}, EMPTY)


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_a_wrong_authorization_header_is_refused(name: str) -> None:
    change, expected = WRONG_HEADERS[name]
    headers = signed_headers()
    assert is_accepted(get(headers))

    change(headers)
    error = refusal(get(headers))

    assert expected == (error.code, error.status)


@pytest.mark.parametrize("stamp", ["20130523T234500Z", "20130524T001500Z"])
def test_a_clock_that_is_a_quarter_of_an_hour_off_is_tolerated(stamp: str) -> None:
    assert is_accepted(get(BOX_AT(stamp)))


def test_a_skewed_clock_is_told_both_times() -> None:
    error = refusal(get(BOX_AT("20130524T120000Z")))

    assert "20130524T120000Z" == error.fields["RequestTime"]
    assert "2013-05-24T00:00:00.000Z" == error.fields["ServerTime"]


def test_the_headers_that_were_not_signed_are_named() -> None:
    headers = {**signed_headers(), "x-amz-acl": "private", "x-amz-meta-a": "b"}

    error = refusal(get(headers))

    assert "x-amz-acl, x-amz-meta-a" == error.fields["HeadersNotSigned"]


def test_headers_that_mean_nothing_to_s3_may_stay_unsigned() -> None:
    headers = {**signed_headers(), "content-type": "image/png", "user-agent": "x", "te": "trailers"}

    assert is_accepted(get(headers))


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "auto", "garage", ""])
def test_any_region_is_accepted_as_it_was_signed(region: str) -> None:
    client = Client("box:9000", ACCESS_KEY, SECRET, now=STAMP, region=region)

    assert is_accepted(get(client.sign("GET", "/media/cat.jpg", [], {}, EMPTY)))


@pytest.mark.parametrize("comma", [",", ", ", " , ", ",\t"])
def test_blanks_around_the_commas_of_the_authorization_do_not_matter(comma: str) -> None:
    headers = signed_headers()
    headers["authorization"] = headers["authorization"].replace(",", comma)

    assert is_accepted(get(headers))


@pytest.mark.parametrize("form", ["Fri, 24 May 2013 00:00:00 GMT", STAMP])
def test_the_date_header_stands_in_for_x_amz_date(form: str) -> None:
    """In x-amz-date's form too: so does simples3, which listmonk is built on."""
    date = {"host": "box:9000", "date": form}
    signer = Client("box:9000", ACCESS_KEY, SECRET, now=STAMP)
    names = "date;host;x-amz-content-sha256"
    lines = [f"date:{date['date']}", "host:box:9000", f"x-amz-content-sha256:{EMPTY}"]
    canonical = "\n".join(["GET", "/media/cat.jpg", "", *lines, "", names, EMPTY])
    signature = signer._v4(STAMP, canonical)

    headers = {
        **date, "x-amz-content-sha256": EMPTY, "authorization": published(names, signature)
    }  # fmt: skip

    assert is_accepted(get(headers))


@pytest.mark.parametrize(
    "date",
    [
        "yesterday",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999",
        "Mon, 01 Jan 2024 00:00:00 -99999999999999999999999999",
        "Mon, 01 Jan 99999 00:00:00 GMT",
        "Jan - , GMT",
    ],
)
def test_a_date_header_that_is_no_date_is_refused(date: str) -> None:
    headers = {**signed_headers(), "date": date}
    del headers["x-amz-date"]

    error = refusal(get(headers))

    assert DENIED == (error.code, error.status)


@pytest.mark.parametrize(
    ("value", "signed_as"),
    [
        ("a   b", "a b"),
        ("  a  b  ", "a b"),
        ("voil\xc3\xa0   x", "voil\xc3\xa0 x"),  # "voilà" in UTF-8: its last byte is no blank
        ("\xc3\x85  \xc2\x85", "\xc3\x85 \xc2\x85"),
    ],
    ids=["inside", "around", "A0 is no blank", "85 is no blank"],
)
def test_runs_of_spaces_in_a_header_count_as_one(value: str, signed_as: str) -> None:
    """Of a header's bytes only the space is trimmed. [AWS: SigV4, Trimall]"""
    names = "host;x-amz-content-sha256;x-amz-date;x-amz-meta-a"
    lines = ["host:box:9000", f"x-amz-content-sha256:{EMPTY}", f"x-amz-date:{STAMP}"]
    lines += [f"x-amz-meta-a:{signed_as}", "", names, EMPTY]
    canonical = "\n".join(["GET", "/media/cat.jpg", "", *lines])
    digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
    signature = BOX._hmac(STAMP, f"AWS4-HMAC-SHA256\n{STAMP}\n{SCOPE}\n{digest}")

    headers = {
        "host": "box:9000", "x-amz-content-sha256": EMPTY, "x-amz-date": STAMP,
        "x-amz-meta-a": value, "authorization": published(names, signature),
    }  # fmt: skip

    assert is_accepted(get(headers))


# --- Presigned URLs, and every way to be wrong ----------------------------------------------------


def presigned(expires: int = 900, method: str = "GET", stamp: str = STAMP, **query: str) -> str:
    client = Client("box:9000", ACCESS_KEY, SECRET, now=stamp)
    return split_url(client.presign(method, "/media/cat.jpg", expires=expires, query=query))


def open_url(target: str, headers: Optional[Headers] = None, method: str = "GET") -> s3mini.Head:
    return head_of(method, target, {"Host": "box:9000", **(headers or {})})


def url_change(old: str, new: str) -> Callable[[str], str]:
    def change(target: str) -> str:
        assert old in target
        return target.replace(old, new)

    return change


QUERY = ("AuthorizationQueryParametersError", 400)
NAMES = ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")

WRONG_URLS = {
    **{f"no {n}": (url_change(f"X-Amz-{n}=", f"X-Amz-No-{n}="), QUERY) for n in NAMES},
    "other algorithm": (url_change("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"), QUERY),
    "credential of four parts": (url_change("%2Fus-east-1", ""), QUERY),
    "credential's date no date": (url_change("%2F20130524%2F", "%2Ftoday%2F"), QUERY),
    "credential's date another": (url_change("%2F20130524%2F", "%2F20130523%2F"), QUERY),
    "other service": (url_change("%2Fs3%2F", "%2Fec2%2F"), QUERY),
    "other terminal": (url_change("aws4_request", "aws5_request"), QUERY),
    "unreadable date": (url_change("Date=20130524T000000Z", "Date=yesterday"), QUERY),
    "date with dashes": (url_change("Date=20130524T000000Z", "Date=2013-05-24T00:00:00Z"), QUERY),
    "expires never": (url_change("Expires=900", "Expires="), QUERY),
    "expires negative": (url_change("Expires=900", "Expires=-1"), QUERY),
    "expires in words": (url_change("Expires=900", "Expires=soon"), QUERY),
    "expires with a point": (url_change("Expires=900", "Expires=9.5"), QUERY),
    "expires in Arabic digits": (url_change("Expires=900", "Expires=%D9%A3"), QUERY),
    "expires after more than a week": (url_change("Expires=900", "Expires=604801"), QUERY),
    "expires changed": (url_change("Expires=900", "Expires=901"), MISMATCH),
    "unknown key": (url_change(ACCESS_KEY, "AKIAOTHER"), ("InvalidAccessKeyId", 403)),
    "host unsigned": (url_change("SignedHeaders=host", "SignedHeaders=range"), DENIED),
    "a header signed twice": (url_change("SignedHeaders=host", "SignedHeaders=host%3BHost"), QUERY),
    "another header signed": (url_change("SignedHeaders=host", "SignedHeaders=host%3Bx"), MISMATCH),
    "other key": (url_change("/media/cat.jpg", "/media/dog.jpg"), MISMATCH),
    "other region": (url_change("us-east-1", "us-east-2"), MISMATCH),
    "name added": (lambda target: target + "&versionId=1", MISMATCH),
    "signature changed": (lambda target: target[:-1] + "g", MISMATCH),
    "signature not ASCII": (lambda target: target[:-4] + "%E6%97%A5", MISMATCH),
    "token": (lambda target: target + "&X-Amz-Security-Token=x", ("InvalidToken", 400)),
}


@pytest.mark.parametrize("name", WRONG_URLS)
def test_a_wrong_presigned_url_is_refused(name: str) -> None:
    change, expected = WRONG_URLS[name]
    assert is_accepted(open_url(presigned()))

    error = refusal(open_url(change(presigned())))

    assert expected == (error.code, error.status)


@pytest.mark.parametrize(
    "change",
    [
        url_change("SignedHeaders=host", "SignedHeaders=host%3B%E6%97%A5"),
        url_change("us-east-1", "%E6%97%A5"),
        url_change("X-Amz-Date", "X-Amz-Content-Sha256=%E6%97%A5&X-Amz-Date"),
        url_change(ACCESS_KEY, "%E6%97%A5"),
        url_change("/media/cat.jpg", "/media/%E6%97%A5"),
        url_change("/media/cat.jpg?", "/media/cat.jpg?%E6%97%A5=%F0%9F%99%82&"),
    ],
    ids=["signed headers", "region", "payload", "access key", "path", "query"],
)
def test_text_that_is_not_latin_is_an_error_of_the_client_everywhere(
    change: Callable[[str], str],
) -> None:
    assert refusal(open_url(change(presigned()))).status in (400, 403)


@pytest.mark.parametrize(
    ("seconds", "accepted"),
    [(-901, False), (-900, True), (0, True), (60, True), (61, False), (86400, False)],
)
def test_a_presigned_url_has_its_time(seconds: int, accepted: bool) -> None:
    head = open_url(presigned(expires=60))

    if accepted:
        assert is_accepted(head, now=NOW + seconds)
    else:
        error = refusal(head, now=NOW + seconds)
        assert DENIED == (error.code, error.status)


@pytest.mark.parametrize("expires", [0, 1, 604800])
def test_a_presigned_url_lasts_up_to_a_week(expires: int) -> None:
    assert is_accepted(open_url(presigned(expires=expires)), now=NOW + expires)


def test_a_presigned_url_with_an_x_amz_header_that_it_does_not_sign_is_refused() -> None:
    target = presigned(method="PUT")
    assert is_accepted(open_url(target, {"content-type": "text/plain"}, "PUT"))

    error = refusal(open_url(target, {"x-amz-copy-source": "/other/secret"}, "PUT"))

    assert DENIED == (error.code, error.status)
    assert "x-amz-copy-source" == error.fields["HeadersNotSigned"]


def test_a_presigned_url_is_for_one_method() -> None:
    assert MISMATCH == status_of(refusal(open_url(presigned(method="GET"), {}, "DELETE")))


def status_of(error: s3mini.S3Error) -> tuple[str, int]:
    return error.code, error.status


def test_a_presigned_url_signs_the_headers_it_names() -> None:
    headers = {"content-type": "image/png", "x-amz-acl": "private"}
    target = split_url(BOX.presign("PUT", "/media/cat.jpg", headers))

    assert is_accepted(open_url(target, headers, "PUT"))
    assert MISMATCH == status_of(
        refusal(open_url(target, {**headers, "content-type": "text/html"}, "PUT"))
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_presigned_url_with_any_character_changed_opens_nothing_else(seed: int) -> None:
    source, target = random.Random(seed), presigned(prefix="a b", delimiter="/")
    original = meaning(target)
    for _ in range(500):
        at = source.randrange(len(target))
        wrong = target[:at] + chr(source.randrange(33, 256)) + target[at + 1 :]
        try:
            signed = verify(open_url(wrong))
        except s3mini.S3Error:
            continue

        assert signed is None or meaning(wrong) == original, wrong


def meaning(target: str) -> tuple[str, list[tuple[str, str]]]:
    path, _, query = target.partition("?")
    return unquote(path), sorted(parse_qsl(query, keep_blank_values=True))


# --- Version 2 ------------------------------------------------------------------------------------


def presigned_v2(expires: str = "1369353660", headers: str = "", query: str = "") -> str:
    text = f"GET\n\n\n{expires}\n{headers}/media/cat.jpg{query and '?' + query}"
    digest = hmac.new(SECRET.encode(), text.encode(), "sha1").digest()
    signature = quote(base64.b64encode(digest).decode(), safe="")
    return (
        f"/media/cat.jpg?{query}{query and '&'}AWSAccessKeyId={ACCESS_KEY}"
        f"&Expires={expires}&Signature={signature}"
    )


WRONG_V2_URLS = {
    "no signature": (url_change("Signature=", "NoSignature="), DENIED),
    "no expires": (url_change("Expires=", "NoExpires="), DENIED),
    "no key": (url_change("AWSAccessKeyId=", "NoAccessKeyId="), DENIED),
    "unknown key": (url_change(ACCESS_KEY, "AKIAOTHER"), ("InvalidAccessKeyId", 403)),
    "expires in words": (url_change("Expires=1369353660", "Expires=never"), DENIED),
    "expires in Arabic digits": (url_change("Expires=1369353660", "Expires=%D9%A3"), DENIED),
    "expired": (lambda _: presigned_v2("1369353599"), DENIED),
    "expires changed": (url_change("Expires=1369353660", "Expires=1369353661"), MISMATCH),
    "other object": (url_change("/cat.jpg", "/dog.jpg"), MISMATCH),
    "a subresource added": (lambda target: target + "&acl", MISMATCH),
    "an override added": (lambda t: t + "&response-content-type=text%2Fhtml", MISMATCH),
    "signature not ASCII": (lambda target: target + "%E6%97%A5", MISMATCH),
    "token": (lambda t: t + "&X-Amz-Security-Token=x", ("InvalidToken", 400)),
}


@pytest.mark.parametrize("name", WRONG_V2_URLS)
def test_a_wrong_version_2_url_is_refused(name: str) -> None:
    change, expected = WRONG_V2_URLS[name]
    assert is_accepted(open_url(presigned_v2()))

    error = refusal(open_url(change(presigned_v2())))

    assert expected == (error.code, error.status)


@pytest.mark.parametrize("name", ["x-amz-copy-source", "x-amz-meta-a", "content-type"])
def test_a_version_2_url_covers_the_headers_that_matter(name: str) -> None:
    error = refusal(open_url(presigned_v2(), {name: "/other/secret"}))

    assert MISMATCH == (error.code, error.status)


def test_a_version_2_url_may_sign_headers() -> None:
    target = presigned_v2(headers="x-amz-meta-a:1\nx-amz-meta-b:2\n")

    assert is_accepted(open_url(target, {"x-amz-meta-b": "2", "x-amz-meta-a": "1"}))


# --- More than one, or none -----------------------------------------------------------------------


def test_nobody_is_who_signs_nothing() -> None:
    assert verify(open_url("/media/cat.jpg")) is None
    assert verify(open_url("/media/cat.jpg?v=3&Expires=5")) is None


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (presigned(), signed_headers()),
        (presigned_v2(), signed_headers()),
        (presigned() + "&" + presigned_v2().partition("?")[2], {}),
        (presigned(), {"authorization": "Basic dXNlcjpwYXNz"}),
        ("/media/cat.jpg?X-Amz-Signature=x", signed_headers()),
        ("/media/cat.jpg?X-Amz-Credential=x", signed_headers()),
        ("/media/cat.jpg?AWSAccessKeyId=x", signed_headers()),
    ],
    ids=["header and URL", "header and V2", "V4 and V2", "Basic", "a bit", "another", "a third"],
)
def test_two_signatures_are_one_too_many(target: str, headers: Headers) -> None:
    error = refusal(head_of("GET", target, {"host": "box:9000", **headers}))

    assert INVALID == (error.code, error.status)
    assert "Only one auth mechanism allowed" in str(error)


@pytest.mark.parametrize(
    "query",
    ["X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Credential=x", "X-Amz-Signature=x", "Signature=x",
     "AWSAccessKeyId=" + ACCESS_KEY],
)  # fmt: skip
def test_half_a_signature_is_never_anonymous(query: str) -> None:
    assert refusal(open_url("/media/cat.jpg?" + query)).status in (400, 403)


def test_an_unsigned_streaming_body_needs_a_signature_all_the_same() -> None:
    """CVE-2025-31489 and CVE-2026-41145: the payload mode had skipped the check."""
    payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    headers = BOX.sign("PUT", "/media/cat.jpg", [], {"x-amz-content-sha256": payload}, payload)
    assert is_accepted(head_of("PUT", "/media/cat.jpg", headers))

    headers["authorization"] = headers["authorization"][:-64] + "0" * 64

    assert MISMATCH == status_of(refusal(head_of("PUT", "/media/cat.jpg", headers)))


# --- What proxies change --------------------------------------------------------------------------


def sign_for(host: str, **more: str) -> dict[str, str]:
    client = Client(host, ACCESS_KEY, SECRET, now=STAMP)
    extra = {n.replace("_", "-"): v for n, v in more.items()}
    return client.sign("GET", "/media/cat.jpg", [], extra, EMPTY)


def test_a_signature_for_another_of_our_hosts_is_accepted() -> None:
    headers = {**sign_for("inside:9000"), "host": "media.example.com"}

    assert is_accepted(get(headers), hosts=["other", "inside:9000"])
    assert MISMATCH == status_of(refusal(get(headers), hosts=["other"]))


def test_a_url_signed_for_another_of_our_hosts_is_accepted() -> None:
    url = Client("inside:9000", ACCESS_KEY, SECRET, now=STAMP).presign("GET", "/media/cat.jpg")
    head = head_of("GET", split_url(url), {"Host": "media.example.com"})

    assert is_accepted(head, hosts=["inside:9000"])
    assert MISMATCH == status_of(refusal(head))


def test_a_signature_for_the_host_without_its_port_is_accepted() -> None:
    assert is_accepted(get({**sign_for("box"), "host": "box:9000"}))
    assert MISMATCH == status_of(refusal(get({**sign_for("box:80"), "host": "box:9000"})))


def test_a_path_signed_for_one_of_our_hosts_is_not_a_key_of_a_bucket_in_the_host() -> None:
    """GET /media/cat.jpg at our plain name is not GET media/cat.jpg of the bucket `secrets`."""
    headers = {**sign_for("s3.example.com"), "host": "secrets.s3.example.com"}

    error = refusal(get(headers), hosts=["s3.example.com"], bucket="secrets")

    assert MISMATCH == status_of(error)


def test_the_host_of_an_absolute_target_is_the_signed_one() -> None:
    """Else the bucket would come from a name that nobody signed. [RFC 9112 §3.2.2]"""
    headers = sign_for("a.s3.example.com")
    assert is_accepted(get(headers, "http://a.s3.example.com/media/cat.jpg"))

    head = get(headers, "http://b.s3.example.com/media/cat.jpg")

    assert MISMATCH == status_of(refusal(head))


@pytest.mark.parametrize("signed_as", ["identity", "gzip", "gzip, deflate", "gzip, deflate, br"])
def test_an_accept_encoding_that_a_proxy_rewrote_is_tolerated(signed_as: str) -> None:
    headers = sign_for("box:9000", accept_encoding=signed_as)

    assert is_accepted(get({**headers, "accept-encoding": "br, gzip"}))
    assert is_accepted(get({n: v for n, v in headers.items() if n != "accept-encoding"}))
    assert is_accepted(get({**headers, "accept-encoding": "br", "host": "x"}), hosts=["box:9000"])


@pytest.mark.parametrize("changed", [{}, {"host": "x"}, {"accept-encoding": "br"}])
def test_an_expect_that_a_proxy_answered_is_tolerated(changed: dict[str, str]) -> None:
    headers = sign_for("box:9000", accept_encoding="gzip", expect="100-Continue")

    assert is_accepted(get(headers))
    without_it = {n: v for n, v in headers.items() if n != "expect"}
    assert is_accepted(get({**without_it, **changed}), hosts=["box:9000"])
    assert MISMATCH == status_of(refusal(get({**headers, "expect": "x"})))


def test_an_accept_encoding_that_no_client_signs_is_not_guessed() -> None:
    headers = sign_for("box:9000", accept_encoding="zstd")

    assert is_accepted(get(headers))
    assert MISMATCH == status_of(refusal(get({**headers, "accept-encoding": "gzip"})))


# --- The explainer --------------------------------------------------------------------------------


def arrived(
    signed_path: str, path: str, *, method: str = "GET", signed_method: str = "GET",
    query: str = "", signed_query: str = "", change: Optional[Headers] = None,
    secret: str = SECRET, **headers: str,
) -> s3mini.Head:  # fmt: skip
    """A request that was signed in one form and came in another."""
    client = Client("box:9000", ACCESS_KEY, secret, now=STAMP)
    extra = {n.replace("_", "-"): v for n, v in headers.items()}
    pairs = [
        (unquote(n), unquote(v))
        for n, _, v in [p.partition("=") for p in signed_query.split("&") if p]
    ]
    signed = {**client.sign(signed_method, signed_path, pairs, extra, EMPTY), **(change or {})}
    return head_of(method, path + query, signed)


EXPLAINED = {
    "forwarded host": (
        arrived("/m/k", "/m/k", change={"host": "inside", "x-forwarded-host": "box:9000"}),
        "proxy_set_header Host $http_host;",
    ),
    "method": (arrived("/m/k", "/m/k", method="HEAD"), "signed for GET, not HEAD"),
    "escaped twice": (arrived("/m/a%2520b", "/m/a%20b"), "escapes twice"),
    "unescaped": (arrived("/m/a b", "/m/a%20b"), "unescaped"),
    "plus in the path": (arrived("/m/a+b", "/m/a%20b"), "+ for a space"),
    "slashes merged": (arrived("/m/a/b", "/m//a///b"), "with // merged."),
    "slashes merged by nginx": (arrived("/m/a//b", "/m/a/b"), "merge_slashes off"),
    "a slash merged at the end": (arrived("/m/a//", "/m/a/"), "merge_slashes off"),
    "trailing slash": (arrived("/m", "/m/"), "trailing slash"),
    "plus in the query": (
        arrived("/m", "/m", query="?prefix=a%20b", signed_query="prefix=a%2Bb"),
        "+ for a space in the query",
    ),
    "query unsigned": (arrived("/m", "/m", query="?prefix=a"), "did not sign the query"),
    "newline in the secret": (arrived("/m/k", "/m/k", secret=SECRET + "\n"), "stray space"),
    "space before the secret": (arrived("/m/k", "/m/k", secret=" " + SECRET), "stray space"),
    "content type": (
        arrived("/m/k", "/m/k", content_type="", change={"content-type": "text/html"}),
        "Content-Type",
    ),
}


def test_the_error_says_which_signed_header_did_not_arrive() -> None:
    headers = sign_for("box:9000", x_amz_meta_a="1", x_amz_meta_b="2")
    del headers["x-amz-meta-a"]

    error = refusal(get(headers))
    assert MISMATCH == (error.code, error.status)
    assert "signed x-amz-meta-a, which did not arrive" in str(error)
    assert "nginx" not in str(error)


def test_the_error_says_what_nginx_and_caddy_drop() -> None:
    headers = sign_for("box:9000", **{"x-amz-meta-a.b": "1"})
    del headers["x-amz-meta-a.b"]

    told = str(refusal(get(headers)))
    assert "ignore_invalid_headers off;" in told
    assert "expected_underscore_headers" in told


@pytest.mark.parametrize("sent", [None, "text/css"])
def test_who_opens_a_url_is_told_which_headers_it_is_for(s3: Client, sent: Optional[str]) -> None:
    url = s3.presign("PUT", "k", headers={"content-type": "text/html"})
    reply = s3.fetch(url, "PUT", b"x", {"content-type": sent} if sent else {})

    message = reply.element("Message")

    assert "SignatureDoesNotMatch" == reply.error
    assert "content-type" in message
    assert "nginx" not in message


@pytest.mark.parametrize("name", EXPLAINED)
def test_the_error_says_what_the_client_signed_instead(name: str) -> None:
    head, words = EXPLAINED[name]

    error = refusal(head)

    assert MISMATCH == (error.code, error.status)
    assert words in str(error)


def test_a_wrong_signature_costs_no_more_for_a_long_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of forty candidates had sorted and escaped the query anew: 12 s for 60 KiB."""
    calls, plain = [], s3mini.canonical_query
    monkeypatch.setattr(s3mini, "canonical_query", lambda *a: calls.append(a) or plain(*a))

    assert MISMATCH == status_of(refusal(open_url(presigned() + "&a=1")))
    assert 1 == len(calls)


def cost_of(work: Callable[[], object]) -> float:
    """Seconds of the processor, the least of five."""
    found = []
    for _ in range(5):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def test_nor_does_it_for_a_long_path() -> None:
    """Each candidate had escaped it anew: 0.2 s for 60 KiB of a bucket's name."""
    target = presigned().replace("/media/", f"/{'%20' * 19000}/", 1)
    head, path = open_url(target), target.partition("?")[0]
    once = cost_of(lambda: s3mini.canonical_path(path))

    assert cost_of(lambda: refusal(head)) < 15 * once


def test_nor_does_it_for_many_blanks() -> None:
    """In what is signed two count as one: each candidate had looked for them anew."""
    value = "  a" * 19000
    names = "host;x-amz-content-sha256;x-amz-date;accept-encoding;x-amz-meta-a"
    head = get({"host": "box:9000", "x-amz-content-sha256": EMPTY, "x-amz-date": STAMP,
                "accept-encoding": "x", "x-amz-meta-a": value,
                "authorization": published(names, "0" * 64)})  # fmt: skip
    once = cost_of(lambda: s3mini.one_blank(value))

    assert MISMATCH == status_of(refusal(head))
    assert cost_of(lambda: refusal(head)) < 15 * once


def test_nor_does_it_for_many_signed_names() -> None:
    """A URL's were not limited: each of the candidates looked up all of 12000. (30 ms)"""
    names = "host;accept-encoding;" + ";".join(f"{n:x}" for n in range(12000))
    head = open_url(presigned().replace("SignedHeaders=host", f"SignedHeaders={names}"))

    assert QUERY == status_of(refusal(head))


@pytest.mark.parametrize("name", ["query", "path", "method", "host-x"])
def test_a_signed_header_of_any_name_is_a_header(name: str) -> None:
    headers = BOX.sign("GET", "/media", [("prefix", "a")], {name: "x"}, EMPTY)

    assert is_accepted(head_of("GET", "/media?prefix=a", headers))
    assert MISMATCH == status_of(
        refusal(head_of("GET", "/media?prefix=a", {**headers, name: "prefix=a"}))
    )


def test_a_mistake_that_nobody_knows_is_answered_as_aws_does() -> None:
    error = refusal(arrived("/m/other", "/m/k"))

    assert s3mini.ERRORS["SignatureDoesNotMatch"][1] == str(error)
    assert error.fields["CanonicalRequest"].startswith("GET\n/m/k\n\nhost:box:9000\n")  # type: ignore[attr-defined]
    assert f"AWS4-HMAC-SHA256\n{STAMP}\n{SCOPE}\n" in str(error.fields["StringToSign"])
    assert ACCESS_KEY == error.fields["AWSAccessKeyId"]


def test_an_unknown_key_is_explained_nothing() -> None:
    client = Client("box:9000", "AKIAOTHER", SECRET, now=STAMP)
    head = get(client.sign("HEAD", "/media/cat.jpg", [], {}, EMPTY))

    error = refusal(head)

    assert s3mini.ERRORS["InvalidAccessKeyId"][1] == str(error)
    assert {"AWSAccessKeyId": "AKIAOTHER"} == error.fields


@pytest.mark.parametrize("name", [*EXPLAINED, *WRONG_HEADERS, *WRONG_URLS, *WRONG_V2_URLS])
def test_an_error_tells_neither_the_secret_nor_a_signature_that_would_open(name: str) -> None:
    headers = signed_headers()
    targets, right = ["/media/cat.jpg"], headers["authorization"][-64:]
    if name in EXPLAINED:
        head = EXPLAINED[name][0]
        pairs = [(n, v) for n, v in head.pairs]
        sent = {n: v for n, v in head.headers.items() if n in ("host", "content-type")}
        path = head.path
        right = BOX.sign(head.method, path, pairs, sent, EMPTY)["authorization"][-64:]
    elif name in WRONG_HEADERS:
        WRONG_HEADERS[name][0](headers)
        head = get(headers)
        if name.startswith("signature "):
            right = right.upper() if name.endswith("upper case") else right
            right = right if right not in headers["authorization"] else "\0"
    elif name in WRONG_URLS:
        targets = [WRONG_URLS[name][0](presigned())]
        head, right = open_url(targets[0]), presigned()[-64:]
        if right in targets[0]:  # the client's own is echoed
            right = "\0"
    else:
        head = open_url(WRONG_V2_URLS[name][0](presigned_v2()))
        right = unquote(presigned_v2().rpartition("=")[2])
        if right in head.query.get("Signature", ""):
            right = "\0"

    text = text_of(refusal(head))

    assert SECRET not in text
    assert right not in text or right in head.headers.get("authorization", "")


def test_what_was_verified_does_not_show_its_secrets_when_printed() -> None:
    signed = verify(get(signed_headers()))

    assert signed is not None
    assert signed.signature not in repr(signed)
    assert repr(signed.key) not in repr(signed)
