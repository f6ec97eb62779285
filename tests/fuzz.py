"""A seeded fuzzer: requests that are nearly right, thrown at a real server.

    python3 tests/fuzz.py [--seed N] [--requests N]

Each request begins as a valid one of some operation; a few mutations of its bytes, head, query,
framing or document follow, for a part of them before it is signed, so that they get past the
signature. No answer may be a 500, nothing may hang, the log may not have a traceback, the server
must live, and the canary must be what it was. What fails is printed with its seed and its bytes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable
from urllib.parse import quote

from signing_client import SIGNED_CHUNKS, SIGNED_TRAILER, UNSIGNED, UNSIGNED_TRAILER, Client

PROGRAM = Path(__file__).resolve().parent.parent / "s3mini.py"
PATIENCE = 15.0  # seconds until a request that is not answered hangs
KEY, SECRET = "fuzz-key", "fuzz-secret-0123456789abcdef"
INI = f"""\
[SERVER]
durability = none
log = json
workers = 1
max_connections = 64

[fuzz]
access_key = {KEY}
secret_key = {SECRET}
public = open/
cors = *
acl = yes

[safe]
access_key = safe-key
secret_key = safe-secret-0123456789abcdef

[fuzz-*]
access_key = {KEY}
secret_key = {SECRET}
"""
DELETE = b"<Delete><Object><Key>a</Key></Object><Object><Key>b/c</Key></Object></Delete>"
PARTS = (b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part>"
         b"</CompleteMultipartUpload>")  # fmt: skip
TAGS = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
CORS = (b"<CORSConfiguration><CORSRule><AllowedMethod>GET</AllowedMethod>"
        b"<AllowedOrigin>*</AllowedOrigin></CORSRule></CORSConfiguration>")  # fmt: skip
ACL = (b"<AccessControlPolicy><Owner><ID>s3mini</ID></Owner><AccessControlList>"
       b"</AccessControlList></AccessControlPolicy>")  # fmt: skip
LOCATION = (b"<CreateBucketConfiguration><LocationConstraint>eu</LocationConstraint>"
            b"</CreateBucketConfiguration>")  # fmt: skip
ID = "0123456789abcdef" * 2

# (method, key, query, headers, body): a valid request of each operation. {ID} is a live upload.
Template = tuple[str, str, str, dict[str, str], bytes]
TEMPLATES: list[Template] = [
    ("GET", "a", "", {"range": "bytes=0-3"}, b""),
    ("GET", "a", "partNumber=1", {"if-none-match": '"x"'}, b""),
    ("GET", "a", "response-content-type=text/html&versionId=null", {}, b""),
    ("GET", "open/a", "", {"if-modified-since": "Tue, 24 Nov 2026 00:00:00 GMT"}, b""),
    ("HEAD", "a", "", {"x-amz-checksum-mode": "ENABLED"}, b""),
    ("PUT", "a", "", {"x-amz-meta-n": "v", "content-type": "text/plain"}, b"content"),
    ("PUT", "a", "", {"x-amz-tagging": "a=b&c=d", "x-amz-acl": "private"}, b"content"),
    ("PUT", "a", "", {"x-amz-write-offset-bytes": "0", "if-none-match": "*"}, b"content"),
    ("PUT", "a", "", {"x-amz-checksum-crc32": "AAAAAA==", "content-md5": "x"}, b"content"),
    ("PUT", "b", "", {"x-amz-copy-source": "/fuzz/a?versionId=null"}, b""),
    ("PUT", "a", "", {"x-amz-copy-source": "fuzz/a", "x-amz-metadata-directive": "REPLACE"}, b""),
    ("PUT", "b", "renameObject", {"x-amz-rename-source": "/fuzz/a"}, b""),
    ("DELETE", "a", "", {"if-match": '"x"'}, b""),
    ("GET", "a", "attributes", {"x-amz-object-attributes": "ETag,ObjectParts,Checksum"}, b""),
    ("GET", "a", "tagging", {}, b""),
    ("PUT", "a", "tagging", {}, TAGS),
    ("DELETE", "a", "tagging", {}, b""),
    ("GET", "a", "acl", {}, b""),
    ("PUT", "a", "acl", {}, ACL),
    ("POST", "m", "uploads", {"x-amz-checksum-algorithm": "CRC32"}, b""),
    ("PUT", "m", "partNumber=1&uploadId={ID}", {}, b"part"),
    ("PUT", "m", "partNumber=2&uploadId={ID}", {"x-amz-copy-source": "/fuzz/a"}, b""),
    ("GET", "m", "uploadId={ID}&max-parts=1&part-number-marker=0", {}, b""),
    ("POST", "m", "uploadId={ID}", {"x-amz-mp-object-size": "4"}, PARTS),
    ("DELETE", "m", f"uploadId={ID}", {}, b""),
    ("GET", "", "list-type=2&prefix=a&delimiter=/&max-keys=2&encoding-type=url", {}, b""),
    ("GET", "", "list-type=2&continuation-token=YQ==&start-after=a&fetch-owner=true", {}, b""),
    ("GET", "", "prefix=b/&marker=b/b&max-keys=1", {}, b""),
    ("GET", "", "versions&key-marker=a&version-id-marker=null", {}, b""),
    ("GET", "", "uploads&prefix=m&key-marker=a&upload-id-marker=x", {}, b""),
    ("GET", "", "location", {"origin": "http://x"}, b""),
    ("POST", "", "delete", {"content-md5": "{MD5}"}, DELETE),
    ("PUT", "", "cors", {}, CORS),
    ("GET", "", "cors", {}, b""),
    ("PUT", "", "tagging", {}, TAGS),
    ("PUT", "", "acl", {"x-amz-acl": "private"}, b""),
    ("GET", "", "versioning", {}, b""),
    ("OPTIONS", "a", "", {"origin": "http://x", "access-control-request-method": "PUT"}, b""),
    ("POST", "", "", {"content-type": "multipart/form-data; boundary=x"}, b"{FORM}"),
    ("SERVICE", "", "", {}, b""),
    ("BUCKET", "", "", {}, LOCATION),
]
MODES = (UNSIGNED, "", SIGNED_CHUNKS, SIGNED_TRAILER, UNSIGNED_TRAILER)

# Pieces that parsers stumble over.
BAD = [b"\x00", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\xff", b"\xc0\xaf", b"\xe2\x80\xa8", b"%00",
       b"%2e%2e/", b"../", b"/", b"//", b"%", b"%zz", b"%ff", b"\x80", b"\xed\xa0\x80", b"&", b"=",
       b"?", b";", b",", b":", b'"', b"'", b"<", b">", b"]]>", b"&#0;", b"&#x1f600;",
       b"<!DOCTYPE x>",
       b"<![CDATA[", b"0", b"-1", b"1_0", b"9" * 25, b"9" * 5000, b"+5", b"0x5", b"1e9",
       b"\xd9\xa3",
       b" ", b"\t", b"\x0b", b"bytes=0-0,2-3", b"bytes=-0", b"W/", b"*", b"null", b".s3mini/",
       b".a.s3mini.json", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n",
       b"Expect: 100-continue\r\n", b"A" * 300, b"e\xcc\x81", b"\xc3\xa9", b"${filename}",
       b"{}", b"[" * 2000, b"NaN", b"safe/canary",
       b"x-amz-copy-source: /safe/canary\r\n"]  # fmt: skip


def mutate(data: bytes, rng: random.Random, times: int) -> bytes:
    """The data with some bytes changed, cut, doubled, or strange ones put in."""
    out = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 1, 2, 4, 16, 200)))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:end]
        elif kind == 2:
            out[at:at] = out[at:end] * rng.choice((1, 1, 3))
        elif kind == 3 and out:
            source = rng.randrange(len(out))
            out[at:end] = out[source : source + end - at]
        else:
            out[at : end if rng.random() < 0.3 else at] = rng.choice(BAD)
    return bytes(out)


def mutate_text(text: str, rng: random.Random, allowed: str) -> str:
    """As mutate, without the characters that would end a header."""
    changed = mutate(text.encode("latin-1", "replace"), rng, rng.choice((1, 1, 2))).decode(
        "latin-1"
    )
    return re.sub(allowed, "", changed)


class Fuzzer:
    """Requests from a seed, and what the server makes of them."""

    def __init__(self, address: str, seed: int):
        self.client = Client(address, KEY, SECRET, bucket="fuzz")
        self.safe = Client(address, "safe-key", "safe-secret-0123456789abcdef", bucket="safe")
        self.seed, self.upload = seed, ID
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.counts: dict[int, int] = {}  # status -> how many; 0: no answer

    def prepare(self) -> None:
        """What the templates speak of, and the canary."""
        for key in ("a", "b/c", "open/a"):
            self.client.put(key, b"content of " + key.encode(), {"x-amz-meta-n": "v"})
        self.safe.put("canary", b"alive", {"x-amz-meta-n": "canary"})
        self.upload = self.client.post("m", uploads="").element("UploadId")

    def request(self, number: int) -> bytes:
        """The bytes of one request: the same for the same seed, but for clock and upload id."""
        rng = random.Random(f"{self.seed}/{number}")
        method, key, query, headers, body = rng.choice(TEMPLATES)
        query = query.replace("{ID}", self.upload)
        headers = dict(headers)
        if body == b"{FORM}":
            body = self.form(rng)
        depth = rng.random()
        if depth < 0.7:  # mutations that are signed
            body = mutate(body, rng, rng.choice((0, 0, 1, 3))) if body else body
            if rng.random() < 0.4:
                key = mutate_text(key or "a", rng, r"[\x00-\x20\x7f-\xff?#%]")
            if rng.random() < 0.5 and query:
                query = mutate_text(query, rng, r"[\x00-\x20\x7f-\xff?#]")
            for name in list(headers):
                if rng.random() < 0.4 and not name.startswith("content-md5"):
                    headers[name] = mutate_text(headers[name], rng, r"[\x00-\x08\n-\x1f\x7f]")
        if headers.get("content-md5") == "{MD5}":
            headers["content-md5"] = base64.b64encode(hashlib.md5(body).digest()).decode()
        data = self.signed(rng, method, key, query, headers, body)
        if depth > 0.5:  # mutations that are not
            data = mutate(data, rng, rng.choice((1, 1, 2, 5)))
        return data

    def signed(
        self,
        rng: random.Random,
        method: str,
        key: str,
        query: str,
        headers: dict[str, str],
        body: bytes,
    ) -> bytes:
        """The request as bytes, signed by header or query, or not at all; in some framing."""
        path = "/fuzz" + ("/" + quote(key, safe="/-_.~") if key else "")
        if method in ("SERVICE", "BUCKET"):
            path = "/" if method == "SERVICE" else f"/fuzz-{rng.randrange(9)}"
            method = "GET" if method == "SERVICE" else rng.choice(("PUT", "DELETE", "HEAD"))
        pairs = [
            (name, value.replace("+", " ")) for name, _, value in
            (piece.partition("=") for piece in query.split("&") if piece)
        ]  # fmt: skip
        payload = (
            rng.choice(MODES) if method == "PUT" and key and not query else rng.choice(MODES[:2])
        )
        payload = payload or hashlib.sha256(body).hexdigest()
        if payload.startswith("STREAMING-"):
            headers = {**headers, "x-amz-decoded-content-length": str(len(body))}
        how = rng.random()
        if how < 0.8:
            sending = self.client.sign(method, path, pairs, headers, payload)
        elif how < 0.9:
            sending = {"host": self.client.address, **headers, "x-amz-content-sha256": payload}
        else:
            url = self.client.presign(method, key, headers, query=pairs)
            path, _, query = url.partition(self.client.address)[2].partition("?")
            pairs, sending = [], {"host": self.client.address, **headers}
        if payload.startswith("STREAMING-"):
            chunk = rng.choice((1, 3, 8192))
            trailers = {"x-amz-checksum-crc32": "AAAAAA=="} if rng.random() < 0.3 else {}
            body = self.client.aws_chunked(body, payload, sending, chunk, trailers)
            if rng.random() < 0.3:
                body = mutate(body, rng, 1)
        target = path + ("?" + "&".join(f"{quote(n, safe='')}={quote(v, safe='')}"
                                        for n, v in pairs)
                         if pairs else "?" + query if how >= 0.9 else "")  # fmt: skip
        framing = {"content-length": str(len(body))} if body or method in ("PUT", "POST") else {}
        if body and rng.random() < 0.2:
            size = rng.choice((1, 5, 4096))
            parts = [body[n : n + size] for n in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
            framing = {"transfer-encoding": "chunked"}
        lines = [f"{name}: {value}" for name, value in {**sending, **framing}.items()]
        head = "\r\n".join([f"{method} {target} HTTP/1.1", *lines]).encode("latin-1", "replace")
        return head + b"\r\n\r\n" + body

    def form(self, rng: random.Random) -> bytes:
        """The body of a POST form; its policy is signed, and may be mutated before."""
        import hmac

        policy = (b'{"expiration": "2099-01-01T00:00:00Z", "conditions": [{"bucket": "fuzz"}, '
                  b'["starts-with", "$key", ""], ["content-length-range", 0, 1000]]}')  # fmt: skip
        if rng.random() < 0.4:
            policy = mutate(policy, rng, rng.choice((1, 2)))
        text = base64.b64encode(policy)
        digest = hmac.new(SECRET.encode(), text, "sha1").digest()
        key = mutate(b"form/${filename}", rng, rng.choice((0, 1)))
        fields = {b"key": key, b"AWSAccessKeyId": KEY.encode(), b"policy": text,
                  b"signature": base64.b64encode(digest),
                  b'file"; filename="f': b"content"}  # fmt: skip
        parts = [b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % item
                 for item in fields.items()]  # fmt: skip
        return b"".join(parts) + b"--x--\r\n"

    def throw(self, number: int) -> str:
        """Send one request; a sentence when the answer is none that may be."""
        data = self.request(number)
        got, began = b"", time.monotonic()
        try:
            with socket.create_connection((self.host, self.port), timeout=PATIENCE) as sock:
                try:
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    while more := sock.recv(65536):
                        got += more
                except (ConnectionResetError, BrokenPipeError):
                    pass
        except socket.timeout:
            return self.blame(number, data, f"no end after {time.monotonic() - began:.0f} s")
        except OSError as why:
            return self.blame(number, data, f"no connection: {why}")
        statuses = [int(s) for s in re.findall(rb"(?m)^HTTP/1\.1 ([0-9]{3}) ", got)]
        for status in statuses or [0]:
            self.counts[status] = self.counts.get(status, 0) + 1
        if 500 in statuses or got and not got.startswith(b"HTTP/1.1 "):
            return self.blame(number, data, repr(got[:300]))
        return ""

    def blame(self, number: int, data: bytes, why: str) -> str:
        return f"seed {self.seed}, request {number}: {why}\n  sent {data[:3000]!r}"

    def check_canary(self) -> str:
        got = self.safe.get("canary")
        seen = (got.status, got.body, got.headers.get("x-amz-meta-n"))
        listed = self.safe.get(list_type=2).elements("Key")
        if (seen, listed) == ((200, b"alive", "canary"), ["canary"]):
            return ""
        return f"seed {self.seed}: the canary is {seen}, beside it {listed}"


@contextmanager
def running() -> Iterator[tuple[str, Callable[[], str]]]:
    """A server of its own: its address, and what it said on standard error so far."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "buckets.ini").write_text(INI)
        command = [sys.executable, str(PROGRAM), "serve", "--config", str(folder / "buckets.ini")]
        command += ["--data", str(folder / "data"), "--listen", "127.0.0.1:0"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout
        try:
            address = process.stdout.readline().strip().partition("//")[2]
            yield address, lambda: (folder / "log").read_text(errors="replace")
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
        finally:
            process.terminate()
            process.wait(PATIENCE + 30)
            process.stdout.close()


def fuzz(seed: int, requests: int, seconds: float = 1e9) -> tuple[list[str], dict[int, int]]:
    """What went wrong, and how often each status came. Ends after `seconds` at the latest."""
    problems: list[str] = []
    with running() as (address, log):
        fuzzer = Fuzzer(address, seed)
        fuzzer.prepare()
        deadline = time.monotonic() + seconds
        for number in range(requests):
            problem = fuzzer.throw(number)
            if number % 200 == 199:
                problem = problem or fuzzer.check_canary()
                fuzzer.prepare()
            problems += [problem] if problem else []
            if len(problems) > 9 or time.monotonic() > deadline:
                break
        last = fuzzer.check_canary()
        problems += [last] if last else []
        said = log()
        at = said.find("Traceback")
        problems += [f"seed {seed}: {said[at : at + 3000]}"] if at >= 0 else []
        problems += [f"seed {seed}: the secret is in the log"] if SECRET in said else []
    return problems, fuzzer.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    problems, counts = fuzz(options.seed, options.requests)
    print("\n".join(problems))
    print(f"seed {options.seed}: {len(problems)} problems;",
          ", ".join(f"{status or 'none'}: {n}"
                    for status, n in sorted(counts.items())))  # fmt: skip
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
