"""A small S3 client for tests: it can send what an SDK never would.

It shares no code with the server under test: a mistake must not be able to cancel itself out.
Written from the signature documents of AWS; `python3 tests/signing_client.py` checks it against
the examples published there.

    s3 = Client("127.0.0.1:9000", "key", "secret", bucket="media")
    s3.put("a b.txt", b"hello", {"content-type": "text/plain"})     the key is encoded here
    s3.get(list_type=2, prefix="a")                                 ?list-type=2&prefix=a
    s3.get(query=[("prefix", "a"), ("prefix", "b")])                repeated; or raw: "a=1&b"
    s3("GET", target="/media/a%20b.txt?versions")                   raw, signed as AWS reads it
    s3.put("k", body, payload=SIGNED_CHUNKS, chunk=8192)            see `aws_chunked`
    s3.fetch(s3.presign("GET", "k", expires=60))                    a URL opened unsigned
    Client("127.0.0.1:9000", "key", "secret").put("/new-bucket")    without a bucket of its own
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional, Union
from urllib.parse import quote, unquote, urlsplit

EMPTY = hashlib.sha256(b"").hexdigest()
UNSIGNED = "UNSIGNED-PAYLOAD"
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
V2_SUBRESOURCES = {  # the query names a version 2 signature covers, besides response-*
    "acl", "cors", "delete", "lifecycle", "location", "logging", "notification", "partNumber",
    "policy", "requestPayment", "tagging", "torrent", "uploadId", "uploads", "versionId",
    "versioning", "versions", "website",
}  # fmt: skip

Pairs = list[tuple[str, str]]
Query = Union[str, Mapping[str, Any], Pairs, None]
Body = Union[bytes, Iterable[bytes]]


@dataclass(frozen=True)
class Reply:
    """One answer; header names are lower case, repeated ones joined with a comma."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def error(self) -> str:
        """The S3 error code in the body, or ''."""
        return self.element("Code") if b"<Error>" in self.body else ""

    @property
    def etag(self) -> str:
        """The ETag without its quotes, or ''."""
        return self.headers.get("etag", "").strip('"')

    def element(self, name: str) -> str:
        """The text of the first such element of an XML body, or ''."""
        return next(iter(self.elements(name)), "")

    def elements(self, name: str) -> list[str]:
        """The texts of all such elements; they must not hold elements of their own."""
        parts = self.body.decode().split(f"<{name}>")[1:]
        texts = [part.partition(f"</{name}>")[0] for part in parts]
        for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
            texts = [text.replace(entity, char) for text in texts]
        return texts


@dataclass
class Client:
    """Signs and sends. Every call is a connection of its own: tests cannot disturb each other."""

    address: str  # where to connect: "127.0.0.1:9000"
    access_key: str = ""  # "": nothing is signed
    secret_key: str = field(default="", repr=False)
    bucket: str = ""  # keys are below it; "": the first segment of a path is the bucket
    region: str = "us-east-1"
    host: str = ""  # the Host header, if it is not the address
    virtual: bool = False  # the bucket is in the host already, not in the path
    cafile: str = ""  # speak TLS, and trust this certificate
    now: str = ""  # "20130524T000000Z" stops the clock
    timeout: float = 20.0  # seconds
    sent: Pairs = field(default_factory=list, repr=False)  # the headers of the last request

    def __call__(
        self,
        method: str,
        key: str = "",
        body: Body = b"",
        headers: Optional[Mapping[str, str]] = None,
        *,
        payload: str = "",
        query: Query = None,
        target: str = "",
        chunk: int = 65536,
        trailers: Optional[Mapping[str, str]] = None,
        tamper: Optional[Callable[[bytes], bytes]] = None,
        **names: Any,
    ) -> Reply:
        """Send one signed request.

        `payload` is x-amz-content-sha256: by default the body's own hash. A STREAMING-... one
        makes the body aws-chunked, `chunk` bytes each, with `trailers`. A body that is not bytes
        goes out with Transfer-Encoding: chunked. `tamper` changes the body after all was signed.
        Further keyword arguments are query names, `_` standing for `-`.
        """
        path, pairs = self._target(key, query, names, target)
        sending = {name.lower(): value for name, value in (headers or {}).items()}
        whole = body if isinstance(body, bytes) else b""
        if not payload:
            streamed = not isinstance(body, bytes)
            payload = UNSIGNED if streamed else hashlib.sha256(whole).hexdigest()
        if payload.startswith("STREAMING-"):
            sending.setdefault("content-encoding", "aws-chunked")
            sending.setdefault("x-amz-decoded-content-length", str(len(whole)))
            if trailers:
                sending.setdefault("x-amz-trailer", ",".join(trailers))
        if self.access_key:
            sending = self.sign(method, path, pairs, sending, payload)
        if payload.startswith("STREAMING-"):
            body = self.aws_chunked(whole, payload, sending, chunk, trailers or {})
        if tamper and isinstance(body, bytes):
            body = tamper(body)
        return self.send(method, target or path + _question(pairs), sending, body)

    def get(self, key: str = "", headers: Optional[Mapping[str, str]] = None, **more: Any) -> Reply:
        return self("GET", key, b"", headers, **more)

    def head(
        self, key: str = "", headers: Optional[Mapping[str, str]] = None, **more: Any
    ) -> Reply:
        return self("HEAD", key, b"", headers, **more)

    def delete(
        self, key: str = "", headers: Optional[Mapping[str, str]] = None, **more: Any
    ) -> Reply:
        return self("DELETE", key, b"", headers, **more)

    def put(
        self,
        key: str = "",
        body: Body = b"",
        headers: Optional[Mapping[str, str]] = None,
        **more: Any,
    ) -> Reply:
        return self("PUT", key, body, headers, **more)

    def post(
        self,
        key: str = "",
        body: Body = b"",
        headers: Optional[Mapping[str, str]] = None,
        **more: Any,
    ) -> Reply:
        return self("POST", key, body, headers, **more)

    def anonymous(self) -> Client:
        """The same client without keys."""
        return replace(self, access_key="", secret_key="", sent=[])

    def presign(
        self,
        method: str,
        key: str = "",
        headers: Optional[Mapping[str, str]] = None,
        *,
        expires: int = 900,
        version: int = 4,
        query: Query = None,
        **names: Any,
    ) -> str:
        """A URL that does this for `expires` seconds; `headers` must then be sent with it."""
        path, pairs = self._target(key, query, names, "")
        sending = {name.lower(): value for name, value in (headers or {}).items()}
        signed = self._presign_v2 if version == 2 else self._presign_v4
        pairs = signed(method, path, pairs, sending, expires)
        scheme = "https" if self.cafile else "http"
        return f"{scheme}://{self.host or self.address}{path}{_question(pairs)}"

    def fetch(
        self,
        url: str,
        method: str = "GET",
        body: Body = b"",
        headers: Optional[Mapping[str, str]] = None,
    ) -> Reply:
        """Open a URL of this server without signing: presigned, public, or wrong."""
        parts = urlsplit(url)
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        sending = {name.lower(): value for name, value in (headers or {}).items()}
        return self.send(method, target, {"host": parts.netloc, **sending}, body)

    def send(
        self,
        method: str,
        target: str,
        headers: Union[Mapping[str, str], Pairs],
        body: Body = b"",
    ) -> Reply:
        """Send exactly this; only Host and the body's framing are added where they are missing."""
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        names = {name.lower() for name, _ in pairs}
        if "host" not in names:
            pairs.insert(0, ("host", self.host or self.address))
        streamed = not isinstance(body, bytes)
        if streamed and "content-length" not in names:
            pairs.append(("transfer-encoding", "chunked"))
        elif not names & {"content-length", "transfer-encoding"} and (body or method in _SIZED):
            pairs.append(("content-length", str(len(body))))  # type: ignore[arg-type]
        self.sent = pairs
        connection = self._connect()
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in pairs:
                connection.putheader(name, value)
            chunked = streamed and "content-length" not in names
            connection.endheaders(body or None, encode_chunked=chunked)
            got = connection.getresponse()
            return Reply(got.status, _joined(got.getheaders()), got.read())
        finally:
            connection.close()

    def sign(
        self, method: str, path: str, pairs: Pairs, headers: Mapping[str, str], payload: str
    ) -> dict[str, str]:
        """`headers` plus Host, x-amz-date, x-amz-content-sha256 and Authorization."""
        stamp = self._stamp()
        signed = {"host": self.host or self.address, "x-amz-date": stamp, **headers}
        signed.setdefault("x-amz-content-sha256", payload)
        names = ";".join(sorted(signed))
        signature = self._v4(stamp, _canonical(method, path, pairs, signed, payload))
        return {
            **signed,
            "authorization": f"AWS4-HMAC-SHA256 Credential={self.access_key}/{self._scope(stamp)},"
            f"SignedHeaders={names},Signature={signature}",
        }

    def aws_chunked(
        self,
        body: bytes,
        payload: str,
        headers: Mapping[str, str],
        chunk: int = 65536,
        trailers: Optional[Mapping[str, str]] = None,
    ) -> bytes:
        """`body` in AWS's own chunks; signed ones continue the signature in `headers`."""
        signed = "-HMAC-" in payload
        previous = headers.get("authorization", "").rpartition("Signature=")[2]
        stamp, out = headers.get("x-amz-date", ""), []
        for start in [*range(0, len(body), chunk), len(body)]:
            data = body[start : start + chunk]
            extension = ""
            if signed:
                digest, scope = hashlib.sha256(data).hexdigest(), self._scope(stamp)
                text = f"AWS4-HMAC-SHA256-PAYLOAD\n{stamp}\n{scope}\n{previous}\n{EMPTY}\n{digest}"
                previous = self._hmac(stamp, text)
                extension = f";chunk-signature={previous}"
            end = b"\r\n" if data else b""
            out.append(f"{len(data):x}{extension}\r\n".encode() + data + end)
        lines = [f"{name}:{value}" for name, value in (trailers or {}).items()]
        if payload.endswith("-TRAILER") and signed:
            content = "".join(line + "\n" for line in sorted(lines)).encode()
            digest = hashlib.sha256(content).hexdigest()
            scope = self._scope(stamp)
            text = f"AWS4-HMAC-SHA256-TRAILER\n{stamp}\n{scope}\n{previous}\n{digest}"
            lines.append("x-amz-trailer-signature:" + self._hmac(stamp, text))
        return b"".join(out) + "".join(line + "\r\n" for line in lines).encode() + b"\r\n"

    def _target(
        self, key: str, query: Query, names: Mapping[str, Any], target: str
    ) -> tuple[str, Pairs]:
        """The encoded path and the decoded query of a request."""
        if target:
            path, _, query = target.partition("?")
        elif self.bucket and not self.virtual:
            path = "/" + self.bucket + ("/" + quote(key, safe="/-_.~") if key else "")
        else:
            path = "/" + quote(key[key.startswith("/") :], safe="/-_.~")
        pairs = _decoded(query) if isinstance(query, str) else _listed(query)
        return path, pairs + [(name.replace("_", "-"), str(value)) for name, value in names.items()]

    def _presign_v4(
        self, method: str, path: str, pairs: Pairs, headers: Mapping[str, str], expires: int
    ) -> Pairs:
        stamp = self._stamp()
        signed = {"host": self.host or self.address, **headers}
        pairs = [
            *pairs,
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", f"{self.access_key}/{self._scope(stamp)}"),
            ("X-Amz-Date", stamp),
            ("X-Amz-Expires", str(expires)),
            ("X-Amz-SignedHeaders", ";".join(sorted(signed))),
        ]
        canonical = _canonical(method, path, pairs, signed, UNSIGNED)
        return [*pairs, ("X-Amz-Signature", self._v4(stamp, canonical))]

    def _presign_v2(
        self, method: str, path: str, pairs: Pairs, headers: Mapping[str, str], expires: int
    ) -> Pairs:
        until = str(int(time.time()) + expires)
        covered = [
            unquote(name) + (f"={value}" if value else "")
            for name, value in sorted(pairs)
            if name in V2_SUBRESOURCES or name.startswith("response-")
        ]
        resource = ("/" + self.bucket if self.virtual else "") + path
        amz = [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-amz-")]
        first = [method, headers.get("content-md5", ""), headers.get("content-type", ""), until]
        text = "\n".join([*first, *amz, resource + ("?" + "&".join(covered) if covered else "")])
        digest = hmac.new(self.secret_key.encode(), text.encode(), "sha1").digest()
        signature = base64.b64encode(digest).decode()
        mine = [("AWSAccessKeyId", self.access_key), ("Signature", signature), ("Expires", until)]
        return pairs + mine

    def _stamp(self) -> str:
        return self.now or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())

    def _scope(self, stamp: str) -> str:
        return f"{stamp[:8]}/{self.region}/s3/aws4_request"

    def _v4(self, stamp: str, canonical: str) -> str:
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return self._hmac(stamp, f"AWS4-HMAC-SHA256\n{stamp}\n{self._scope(stamp)}\n{digest}")

    def _hmac(self, stamp: str, text: str) -> str:
        key = b"AWS4" + self.secret_key.encode()
        for part in self._scope(stamp).split("/"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        return hmac.new(key, text.encode(), "sha256").hexdigest()

    def _connect(self) -> http.client.HTTPConnection:
        if not self.cafile:
            return http.client.HTTPConnection(self.address, timeout=self.timeout)
        context = ssl.create_default_context(cafile=self.cafile)
        return http.client.HTTPSConnection(self.address, timeout=self.timeout, context=context)


_SIZED = ("PUT", "POST")  # they carry Content-Length: 0 when they have no body


def _canonical(
    method: str, path: str, pairs: Pairs, headers: Mapping[str, str], payload: str
) -> str:
    """What a version 4 signature covers. `path` is encoded already, `pairs` are not."""
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)]
    names = ";".join(sorted(headers))
    return "\n".join([method, path, _encoded(sorted(pairs)), *lines, "", names, payload])


def _encoded(pairs: Pairs) -> str:
    quoted = [(quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs]
    return "&".join(f"{name}={value}" for name, value in sorted(quoted))


def _question(pairs: Pairs) -> str:
    """The query as it is sent: in the order given."""
    quoted = [(quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs]
    return ("?" if pairs else "") + "&".join(f"{n}={v}" if v else n for n, v in quoted)


def _decoded(query: str) -> Pairs:
    split = [item.partition("=") for item in query.split("&") if item]
    return [(unquote(name), unquote(value)) for name, _, value in split]


def _listed(query: Union[Mapping[str, Any], Pairs, None]) -> Pairs:
    items: Iterator[tuple[str, Any]]
    items = iter(query.items()) if isinstance(query, Mapping) else iter(query or [])
    return [(name, str(value)) for name, value in items]


def _joined(headers: Pairs) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        out[lower] = f"{out[lower]}, {value}" if lower in out else value
    return out


def check_published_examples() -> None:
    """The examples of AWS's signature documents: GET Object, a list, and a chunked upload."""
    aws = Client(
        "examplebucket.s3.amazonaws.com",
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        now="20130524T000000Z",
    )
    signed = aws.sign("GET", "/test.txt", [], {"range": "bytes=0-9"}, EMPTY)["authorization"]
    wanted = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    assert signed.endswith(wanted), signed

    listing = [("max-keys", "2"), ("prefix", "J")]
    signed = aws.sign("GET", "/", listing, {}, EMPTY)["authorization"]
    wanted = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    assert signed.endswith(wanted), signed

    url = aws.presign("GET", "test.txt", expires=86400)
    wanted = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    assert url.endswith(wanted), url

    elsewhere = replace(aws, address="s3.amazonaws.com", bucket="examplebucket")
    sending = {
        "content-encoding": "aws-chunked",
        "content-length": "66824",
        "x-amz-decoded-content-length": "66560",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
    }
    path = "/examplebucket/chunkObject.txt"
    headers = elsewhere.sign("PUT", path, [], sending, SIGNED_CHUNKS)
    body = elsewhere.aws_chunked(b"a" * 66560, SIGNED_CHUNKS, headers)
    wanted = "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"
    assert len(body) == 66824
    assert body.endswith(b"0;chunk-signature=" + wanted.encode() + b"\r\n\r\n"), body[-100:]


if __name__ == "__main__":
    check_published_examples()
    print("signing client: agrees with the published examples")
