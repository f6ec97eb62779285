"""POST forms: a browser uploads what a signed policy allows, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Optional, Union

import pytest
from conftest import INI, Server, boto_client
from signing_client import Client, Reply

import s3mini

BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
SECRETS = dict(re.findall(r"access_key = (\S+)\nsecret_key = (\S+)", INI))
BOTH = pytest.mark.parametrize("version", [4, 2])


@dataclass(frozen=True)
class Form:
    """A form that fits its own policy; tests change one thing about it."""

    bucket: str
    fields: dict[str, str] = field(default_factory=dict)  # besides those of the signature
    conditions: tuple[object, ...] = ()  # besides those for the bucket and the signature's fields
    file: bytes = b"content"
    filename: str = "cat.jpg"
    version: int = 4
    access_key: str = "test-key"
    expires: float = 600  # seconds from now
    policy: Optional[bytes] = None  # the document itself, when it is to be another one
    after: bytes = b""  # parts behind the file

    def policy_document(self, named: dict[str, str]) -> bytes:
        until = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() + self.expires))
        conditions = [{"bucket": self.bucket}, *self.conditions]
        conditions += [{name: value} for name, value in named.items()]
        return json.dumps({"expiration": until, "conditions": conditions}).encode()

    def signed(self) -> dict[str, str]:
        """All fields but the file, in the order a browser sends them."""
        secret = SECRETS.get(self.access_key, "no-such-secret")
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{now[:8]}/eu-west-1/s3/aws4_request"
        named = {
            "x-amz-algorithm": "AWS4-HMAC-SHA256",
            "x-amz-credential": f"{self.access_key}/{scope}",
            "x-amz-date": now,
        }
        named = named if self.version == 4 else {}
        document = self.policy_document(named) if self.policy is None else self.policy
        policy = base64.b64encode(document).decode()
        if self.version == 2:
            digest = hmac.new(secret.encode(), policy.encode(), "sha1").digest()
            proof = {"AWSAccessKeyId": self.access_key}
            proof["signature"] = base64.b64encode(digest).decode()
        else:
            proof = {**named, "x-amz-signature": sign_v4(secret, scope, policy)}
        return {**self.fields, "policy": policy, **proof}


def sign_v4(secret: str, scope: str, policy: str) -> str:
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return hmac.new(key, policy.encode(), "sha256").hexdigest()


def part(name: str, value: bytes, filename: str = "") -> bytes:
    named = f'; filename="{filename}"\r\nContent-Type: image/jpeg' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def encode(fields: dict[str, str], file: Optional[bytes], filename: str = "cat.jpg") -> bytes:
    parts = [part(name, value.encode("utf-8", "surrogateescape")) for name, value in fields.items()]
    parts += [] if file is None else [part("file", file, filename)]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def send(server: Server, bucket: str, body: Union[bytes, Iterator[bytes]], **more: str) -> Reply:
    kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    headers = {**kind, **{name.replace("_", "-"): value for name, value in more.items()}}
    return Client(server.address).send("POST", "/" + bucket, headers, body)


def submit(server: Server, form: Form, **more: str) -> Reply:
    body = encode(form.signed(), form.file, form.filename)
    if form.after:
        end = f"--{BOUNDARY}--\r\n".encode()
        body = body[: -len(end)] + form.after + end
    return send(server, form.bucket, body, **more)


def refused(server: Server, form: Form, status: int, code: str) -> Reply:
    """The form is refused, and nothing came of it."""
    owner = server.client("test-key", bucket=form.bucket)
    before = owner.get(list_type=2).elements("Key")
    reply = submit(server, form)

    assert (status, code) == (reply.status, reply.error), reply.body
    assert before == owner.get(list_type=2).elements("Key")
    assert [] == list((server.data / form.bucket / ".s3mini/tmp").iterdir())
    return reply


@pytest.fixture
def form(bucket: str) -> Form:
    return Form(bucket, {"key": "k"}, ({"key": "k"},))


# -- what a form may do ----------------------------------------------------------------------------


@BOTH
def test_a_form_stores_its_file(server: Server, s3: Client, form: Form, version: int) -> None:
    reply = submit(server, replace(form, version=version))

    assert (204, b"") == (reply.status, reply.body)
    assert hashlib.md5(b"content").hexdigest() == reply.etag
    assert f"{server.endpoint}/{form.bucket}/k" == reply.headers["location"]
    assert b"content" == s3.get("k").body


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_the_forms_of_boto3_work(server: Server, s3: Client, version: str) -> None:
    from botocore.config import Config

    boto = boto_client(server.endpoint, config=Config(signature_version=version))
    given = boto.generate_presigned_post(
        s3.bucket,
        "up/${filename}",
        Fields={"acl": "private", "x-amz-meta-who": "me", "Content-Type": "image/png"},
        Conditions=[
            {"acl": "private"},
            ["eq", "$x-amz-meta-who", "me"],
            ["starts-with", "$Content-Type", "image/"],
            ["content-length-range", 1, 100],
        ],
    )
    reply = send(server, s3.bucket, encode(given["fields"], b"x" * 100))
    got = s3.get("up/cat.jpg")

    assert (204, f"{server.endpoint}/{s3.bucket}") == (reply.status, given["url"])
    assert (b"x" * 100, "image/png") == (got.body, got.headers["content-type"])
    assert "me" == got.headers["x-amz-meta-who"]
    too_large = send(server, s3.bucket, encode(given["fields"], b"y" * 101))
    assert (400, "EntityTooLarge") == (too_large.status, too_large.error)
    assert b"x" * 100 == s3.get("up/cat.jpg").body


@pytest.mark.parametrize(
    ("condition", "good", "bad"),
    [
        ({"x-amz-meta-a": "one"}, "one", "one "),
        (["eq", "$x-amz-meta-a", "one"], "one", "One"),
        (["EQ", "$x-amz-meta-a", "one"], "one", "two"),
        (["eq", "$X-Amz-Meta-A", "one"], "one", ""),
        (["starts-with", "$x-amz-meta-a", "on"], "one", "none"),
        (["starts-with", "$x-amz-meta-a", "on"], "on", "o"),
        (["eq", "$x-amz-meta-a", "ä"], "ä", "a"),
    ],
)
def test_a_condition_lets_through_what_it_says(
    server: Server, s3: Client, form: Form, condition: object, good: str, bad: str
) -> None:
    def having(value: str) -> Form:
        fields = {"key": "k", "x-amz-meta-a": value}
        return replace(form, fields=fields, conditions=({"key": "k"}, condition))

    reply = refused(server, having(bad), 403, "AccessDenied")

    assert "Policy Condition failed" in reply.element("Message")
    assert 204 == submit(server, having(good)).status
    assert good == s3.head("k").headers["x-amz-meta-a"].encode("latin-1").decode()


@pytest.mark.parametrize("value", ["", "anything", "ä"])
def test_an_empty_start_lets_everything_through(server: Server, form: Form, value: str) -> None:
    fields = {"key": "k", "x-amz-meta-a": value}
    conditions = ({"key": "k"}, ["starts-with", "$x-amz-meta-a", ""])

    assert 204 == submit(server, replace(form, fields=fields, conditions=conditions)).status


@pytest.mark.parametrize(
    ("types", "status"),
    [("image/png", 204), ("image/png,image/gif", 204), ("image/png, image/gif", 204),
     ("image/png,text/html", 403), ("text/html", 403), ("image/png,", 403)],
)  # fmt: skip
def test_every_type_of_a_list_must_start_so(
    server: Server, form: Form, types: str, status: int
) -> None:
    fields = {"key": "k", "Content-Type": types}
    conditions = ({"key": "k"}, ["starts-with", "$Content-Type", "image/"])

    assert status == submit(server, replace(form, fields=fields, conditions=conditions)).status


@pytest.mark.parametrize(
    ("size", "outcome"),
    [(9, "EntityTooSmall"), (10, ""), (20, ""), (21, "EntityTooLarge"), (0, "EntityTooSmall")],
)
def test_the_size_has_its_range(
    server: Server, s3: Client, form: Form, size: int, outcome: str
) -> None:
    conditions = (*form.conditions, ["content-length-range", 10, "20"])
    sized = replace(form, conditions=conditions, file=b"x" * size)
    if outcome:
        refused(server, sized, 400, outcome)
    else:
        assert 204 == submit(server, sized).status
        assert b"x" * size == s3.get("k").body


@pytest.mark.parametrize("most", [10**15, 2**63 - 1, 10**19 - 1])
def test_a_range_of_sizes_may_end_behind_every_object(
    server: Server, form: Form, most: int
) -> None:
    wide = replace(form, conditions=(*form.conditions, ["content-length-range", 0, most]))
    huge = replace(form, conditions=(*form.conditions, ["content-length-range", most, most]))

    assert 204 == submit(server, wide).status
    refused(server, huge, 400, "EntityTooSmall")


def test_of_two_ranges_of_sizes_both_count(server: Server, form: Form) -> None:
    ranges = (["content-length-range", 0, 10], ["content-length-range", 5, 100])
    both = replace(form, conditions=(*form.conditions, *ranges))

    refused(server, replace(both, file=b"x" * 4), 400, "EntityTooSmall")
    refused(server, replace(both, file=b"x" * 11), 400, "EntityTooLarge")
    assert 204 == submit(server, replace(both, file=b"x" * 10)).status


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("cat.jpg", "cat.jpg"),
        ("ä b+c%20.jpg", "ä b+c%20.jpg"),
        ("C:\\pictures\\cat.jpg", "cat.jpg"),
        ("../../cat.jpg", "cat.jpg"),
    ],
)
def test_filename_stands_for_the_name_of_the_file(
    server: Server, s3: Client, form: Form, filename: str, name: str
) -> None:
    fields = {"key": "up/${filename}"}
    conditions = (["starts-with", "$key", "up/"],)
    named = replace(form, fields=fields, conditions=conditions, filename=filename)

    assert 204 == submit(server, named).status
    assert b"content" == s3.get("up/" + name).body
    assert ["up/" + name] == s3.get(list_type=2).elements("Key")


def test_names_may_stand_without_quotes(server: Server, s3: Client, form: Form) -> None:
    """As .NET's MultipartFormDataContent writes them."""
    fields, conditions = {"key": "up/${filename}"}, (["starts-with", "$key", "up/"],)
    named = replace(form, fields=fields, conditions=conditions)
    quoted = b'name="file"; filename="cat.jpg"'
    body = encode(named.signed(), b"content").replace(
        quoted, b"name=file; filename=cat.jpg; filename*=utf-8''cat.jpg")

    assert quoted not in body
    assert 204 == send(server, form.bucket, body).status
    assert ["up/cat.jpg"] == s3.get(list_type=2).elements("Key")


def test_filename_stands_for_itself_where_the_file_has_no_name(
    server: Server, s3: Client, form: Form
) -> None:
    """So AWS stores it; a script's upload from a string has no name."""
    fields, conditions = {"key": "up/${filename}"}, (["starts-with", "$key", "up/"],)
    named = replace(form, fields=fields, conditions=conditions, filename="")

    assert 204 == submit(server, named).status
    assert ["up/${filename}"] == s3.get(list_type=2).elements("Key")


def test_filename_stands_for_it_in_every_field(server: Server, s3: Client, form: Form) -> None:
    """So AWS documents it, and that conditions are held against what it became."""
    fields = {"key": "up/k", "x-amz-meta-name": "${filename}, ${filename}"}
    conditions = ({"key": "up/k"}, {"x-amz-meta-name": "cat.jpg, cat.jpg"})
    named = replace(form, fields=fields, conditions=conditions)
    unexpanded = ({"key": "up/k"}, {"x-amz-meta-name": fields["x-amz-meta-name"]})

    refused(server, replace(named, conditions=unexpanded), 403, "AccessDenied")
    assert 204 == submit(server, named).status
    assert "cat.jpg, cat.jpg" == s3.head("up/k").headers["x-amz-meta-name"]


def test_filename_is_put_in_only_once_the_signature_is_right(server: Server, form: Form) -> None:
    """A stranger's form of 20 KB had become 28 MB."""
    conditions = (["starts-with", "$key", ""],)
    fields = {"key": "${filename}" * 1700}
    many = replace(form, fields=fields, conditions=conditions, filename="n" * 3900)
    wrong = {**many.signed(), "x-amz-signature": "0" * 64}
    reply = send(server, form.bucket, encode(wrong, b"content", many.filename))

    assert (403, "SignatureDoesNotMatch") == (reply.status, reply.error)
    refused(server, many, 400, "MaxPostPreDataLengthExceeded")


@pytest.mark.parametrize(
    ("asked", "status"), [("200", 200), ("201", 201), ("204", 204), ("404", 204), ("", 204)]
)
def test_success_has_the_status_that_was_asked_for(
    server: Server, form: Form, asked: str, status: int
) -> None:
    fields = {"key": "k", "success_action_status": asked}
    conditions = ({"key": "k"}, ["starts-with", "$success_action_status", ""])
    reply = submit(server, replace(form, fields=fields, conditions=conditions))

    assert status == reply.status
    assert (status == 204) == ("content-length" not in reply.headers)
    if status != 201:
        assert b"" == reply.body


def test_201_comes_with_a_document(server: Server, bucket: str) -> None:
    fields = {"key": "a b/&<ä>.txt", "success_action_status": "201"}
    conditions = ({"key": fields["key"]}, {"success_action_status": "201"})
    reply = submit(server, Form(bucket, fields, conditions))
    etag = hashlib.md5(b"content").hexdigest()

    assert (201, "application/xml") == (reply.status, reply.headers["content-type"])
    assert ["Location", "Bucket", "Key", "ETag"] == re.findall(
        r"<(\w+)>", reply.body.decode().partition("<PostResponse")[2].partition(">")[2]
    )
    assert (bucket, fields["key"]) == (reply.element("Bucket"), reply.element("Key"))
    assert f'"{etag}"' == reply.element("ETag") == reply.headers["etag"]
    place = f"{server.endpoint}/{bucket}/a%20b/%26%3C%C3%A4%3E.txt"
    assert place == reply.element("Location") == reply.headers["location"]


@pytest.mark.parametrize("name", ["success_action_redirect", "redirect"])
def test_success_may_lead_elsewhere(server: Server, form: Form, name: str) -> None:
    target = "https://app.example.com/done?x=1"
    fields = {"key": "a/b&c", name: target, "success_action_status": "200"}
    conditions = ({"key": "a/b&c"}, {name: target}, {"success_action_status": "200"})
    reply = submit(server, replace(form, fields=fields, conditions=conditions))
    etag = hashlib.md5(b"content").hexdigest()

    query = f"&bucket={form.bucket}&key=a%2Fb%26c&etag=%22{etag}%22"
    assert (303, target + query) == (reply.status, reply.headers["location"])


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "data:text/html,x", "//evil.example.com", "/local", "ftp://x/",
     "https://x/\r\nSet-Cookie: a=b", "https://x/ y", "HTTPS", "https://", "http:/x"],
)  # fmt: skip
def test_a_redirect_goes_to_http_only(server: Server, form: Form, target: str) -> None:
    fields = {"key": "k", "success_action_redirect": target}
    conditions = ({"key": "k"}, ["starts-with", "$success_action_redirect", ""])
    reply = submit(server, replace(form, fields=fields, conditions=conditions))

    assert 204 == reply.status
    assert f"{server.endpoint}/{form.bucket}/k" == reply.headers["location"]
    assert "set-cookie" not in reply.headers


def test_fields_become_headers_of_the_object(server: Server, s3: Client) -> None:
    given = {
        "Content-Type": "text/plain",
        "Content-Encoding": "gzip",
        "Content-Disposition": 'attachment; filename="x"',
        "Cache-Control": "no-cache",
        "Expires": "Thu, 01 Dec 2044 16:00:00 GMT",
        "x-amz-meta-Name": "ä",
        "x-amz-storage-class": "STANDARD",
        "acl": "bucket-owner-full-control",
    }
    conditions = [{"key": "k"}, *({name: value} for name, value in given.items())]
    reply = submit(server, Form(s3.bucket, {"key": "k", **given}, tuple(conditions)))
    head = s3.head("k").headers

    assert 204 == reply.status
    for name in list(given)[:5]:
        assert given[name] == head[name.lower()]
    assert "ä" == head["x-amz-meta-name"].encode("latin-1").decode()


def test_a_field_may_hold_tags(server: Server, s3: Client, form: Form) -> None:
    tags = "<Tag><Key>a</Key><Value>1 2</Value></Tag>"
    fields = {"key": "k", "tagging": f"<Tagging><TagSet>{tags}</TagSet></Tagging>"}
    conditions = ({"key": "k"}, ["starts-with", "$tagging", "<Tagging>"])
    tagged = replace(form, fields=fields, conditions=conditions)

    assert 204 == submit(server, tagged).status
    assert ["a", "1 2"] == [s3.get("k", query="tagging").element(n) for n in ("Key", "Value")]
    bad = {"key": "new", "tagging": "<Tagging>"}
    refused(
        server,
        replace(form, fields=bad, conditions=({"key": "new"}, tagged.conditions[1])),
        400,
        "MalformedXML",
    )


def test_a_field_may_hold_a_checksum(server: Server, s3: Client, form: Form) -> None:
    right, name = base64.b64encode(hashlib.sha256(b"content").digest()), "x-amz-checksum-sha256"
    for value, status in ((base64.b64encode(bytes(32)), 400), (right, 204)):
        fields = {"key": "k", name: value.decode()}
        conditions = ({"key": "k"}, ["starts-with", "$" + name, ""])
        assert status == submit(server, replace(form, fields=fields, conditions=conditions)).status

    assert right.decode() == s3.head("k", {"x-amz-checksum-mode": "ENABLED"}).headers[name]


def test_ignored_fields_need_no_condition(server: Server, form: Form) -> None:
    assert 204 == submit(server, replace(form, fields={"key": "k", "x-ignore-me": "x"})).status


def test_names_of_fields_have_no_case(server: Server, form: Form) -> None:
    fields = {"Key": "k", "X-Amz-Meta-A": "1"}
    conditions = (["eq", "$KEY", "k"], {"x-amz-META-a": "1"})

    assert 204 == submit(server, replace(form, fields=fields, conditions=conditions)).status


def test_what_comes_behind_the_file_is_ignored(server: Server, s3: Client, form: Form) -> None:
    after = part("key", b"other") + part("x-amz-meta-a", b"1") + part("submit", b"Upload")

    assert 204 == submit(server, replace(form, after=after)).status
    assert ["k"] == s3.get(list_type=2).elements("Key")
    assert "x-amz-meta-a" not in s3.head("k").headers


def test_a_dollar_may_be_escaped_in_a_policy(server: Server, s3: Client, form: Form) -> None:
    document = form.policy_document({}).replace(b'"k"', rb'"\$k"')  # as the page on policies has it
    escaped = replace(form, fields={"key": "$k"}, version=2, policy=document)

    assert 204 == submit(server, escaped).status
    assert b"content" == s3.get("$k").body


# -- the file's own bytes --------------------------------------------------------------------------

MARK = b"\r\n--" + BOUNDARY.encode()
TRICKY = [
    b"",
    b"\r\n",
    b"--",
    b"\r\n--",
    MARK[:-1],
    MARK[:-1] + b"\r\n" + MARK[:-2] + b"W" + b"\r\n",
    MARK[2:] + b"x",
    MARK[2:] + b"--\r\n",
    b"--" + BOUNDARY.encode()[:-1] + b"--\r\n",
    b"\r" + MARK[1:] + b"x",
    b"\r\n" * 5000,
    (b"\r\n-" + b"-" * 50) * 3000,
]


@pytest.mark.parametrize("data", [t for t in TRICKY if MARK not in t])
def test_bytes_like_a_boundary_belong_to_the_file(
    server: Server, s3: Client, form: Form, data: bytes
) -> None:
    assert 204 == submit(server, replace(form, file=data)).status
    assert data == s3.get("k").body


class Cut:
    """A source that gives its bytes in pieces of odd sizes."""

    def __init__(self, data: bytes, sizes: Callable[[], int]):
        self.data, self.sizes = data, sizes

    def read(self, size: int) -> bytes:
        count = max(1, min(size, self.sizes()))
        piece, self.data = self.data[:count], self.data[count:]
        return piece


def random_file(rng: random.Random) -> bytes:
    words = [b"\r", b"\n", b"-", b"\r\n--", MARK[:9], MARK[:-1], MARK[2:-1], b"x", bytes(99)]
    return b"".join(rng.choices(words, k=rng.randint(0, 60)))


def test_a_form_is_read_the_same_however_it_is_cut() -> None:
    rng = random.Random(7)
    kind = f'multipart/form-data; charset=utf-8; boundary="{BOUNDARY}"'
    for _ in range(400):
        file, fields = random_file(rng), {"key": "a/ä", "b": "-" * rng.randint(0, 9), "c": "\r\n"}
        body = encode(fields, file, "x.jpg") + random_file(rng)
        reader = s3mini.FormReader(kind, Cut(body, lambda: rng.choice([1, 2, 3, 7, 64, 99999])))
        name, size = reader.read_fields(), rng.choice([1, 5, 1000, 1 << 18])
        pieces = list(iter(lambda: reader.read(size), b""))  # noqa: B023 called at once

        assert ("x.jpg", fields) == (name, reader.fields)
        assert file == b"".join(pieces)
        assert all(len(piece) <= size for piece in pieces)
        assert b"" == reader.read(size)


def read_whole(reader: s3mini.FormReader) -> bytes:
    reader.read_fields()
    return b"".join(iter(lambda: reader.read(10), b""))


def test_a_form_cut_short_anywhere_is_malformed() -> None:
    body = encode({"key": "k"}, b"content")
    for end in range(len(body) - len(b"--\r\n")):
        reader = s3mini.FormReader(
            f"multipart/form-data; boundary={BOUNDARY}", Cut(body[:end], lambda: 50)
        )
        with pytest.raises(s3mini.S3Error) as caught:
            read_whole(reader)
        assert caught.value.code == "MalformedPOSTRequest", end


def test_a_large_file_is_streamed(server: Server, s3: Client, form: Form) -> None:
    piece, count = random.Random(1).randbytes(1 << 20), 50
    whole = encode(form.signed(), b"@@")
    head, _, tail = whole.partition(b"@@")
    size = {"content_length": str(len(whole) - 2 + count * len(piece))}
    pids = children(server.process.pid)
    submit(server, replace(form, file=piece))  # warms the server up
    before = sum(map(most_memory, pids))
    reply = send(server, form.bucket, iter([head, *[piece] * count, tail]), **size)

    assert 204 == reply.status
    assert hashlib.md5(piece * count).hexdigest() == reply.etag == s3.head("k").etag
    assert sum(map(most_memory, pids)) - before < 12 << 20


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *map(int, found.read_text().split())] if found.exists() else [pid]


def most_memory(pid: int) -> int:
    """Bytes, the most that were resident at once."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def test_a_form_of_unknown_length_is_read(server: Server, s3: Client, form: Form) -> None:
    body = encode(form.signed(), b"x" * 100_000)
    reply = send(server, form.bucket, iter([body[:77], body[77:]]))

    assert (204, b"x" * 100_000) == (reply.status, s3.get("k").body)


# -- what is refused -------------------------------------------------------------------------------


@BOTH
def test_an_expired_policy_is_refused(server: Server, form: Form, version: int) -> None:
    reply = refused(server, replace(form, expires=-1, version=version), 403, "AccessDenied")

    assert "expired" in reply.element("Message")


def test_an_extra_field_is_refused_and_named(server: Server, form: Form) -> None:
    extra = replace(form, fields={"key": "k", "x-amz-meta-a": "1"})

    assert "x-amz-meta-a" in refused(server, extra, 403, "AccessDenied").element("Message")


def test_a_condition_without_its_field_fails(server: Server, form: Form) -> None:
    missing = replace(form, conditions=({"key": "k"}, {"x-amz-meta-a": "1"}))

    refused(server, missing, 403, "AccessDenied")


def test_a_key_must_be_the_policys(server: Server, form: Form) -> None:
    for key in ("kk", "K", "up/k", "", "/k"):
        reply = submit(server, replace(form, fields={"key": key}))
        assert reply.status in (400, 403), key


def test_a_policy_for_another_bucket_is_refused(server: Server, form: Form) -> None:
    signed = replace(form, bucket="test-elsewhere").signed()
    reply = send(server, form.bucket, encode(signed, b"content"))

    assert (403, "AccessDenied") == (reply.status, reply.error)


def test_a_policy_that_names_no_bucket_is_refused(server: Server, form: Form) -> None:
    document = json.loads(form.policy_document({}))
    document["conditions"] = document["conditions"][1:]
    anywhere = replace(form, version=2, policy=json.dumps(document).encode())

    refused(server, anywhere, 403, "AccessDenied")


def test_a_field_cannot_say_which_bucket_is_meant(server: Server, form: Form) -> None:
    """CVE-2023-43040: the form's field took the place of the URL's bucket in the check."""
    signed = replace(form, bucket="test-elsewhere").signed()
    reply = send(server, form.bucket, encode({"bucket": "test-elsewhere", **signed}, b"content"))

    assert (403, "AccessDenied") == (reply.status, reply.error)
    assert 404 == server.client("test-key", bucket=form.bucket).head("k").status
    assert 204 == submit(server, replace(form, fields={"key": "k", "bucket": form.bucket})).status


def test_another_buckets_key_signs_nothing_here(server: Server, form: Form) -> None:
    refused(server, replace(form, access_key="media-key"), 403, "AccessDenied")


@BOTH
def test_an_unknown_key_id_is_refused(server: Server, form: Form, version: int) -> None:
    refused(server, replace(form, access_key="nobody", version=version), 403, "InvalidAccessKeyId")


@BOTH
def test_a_wrong_signature_is_refused(server: Server, form: Form, version: int) -> None:
    signed = replace(form, version=version).signed()
    name = "x-amz-signature" if version == 4 else "signature"
    wrong = {**signed, name: ("a" if signed[name][0] != "a" else "b") + signed[name][1:]}
    other = json.dumps({"expiration": "2099-01-01T00:00:00Z", "conditions": []}).encode()
    changed = {**signed, "policy": base64.b64encode(other).decode()}
    for fields in (wrong, changed):
        reply = send(server, form.bucket, encode(fields, b"content"))
        assert (403, "SignatureDoesNotMatch") == (reply.status, reply.error)
        assert signed[name] not in reply.body.decode()

    assert 404 == server.client("test-key", bucket=form.bucket).head("k").status


AS_AWS_WRITES_IT = {
    "x-amz-signature": "X-Amz-Signature",
    "x-amz-credential": "X-Amz-Credential",
    "x-amz-algorithm": "X-Amz-Algorithm",
    "x-amz-date": "X-Amz-Date",
    "signature": "Signature",
}


@pytest.mark.parametrize(
    ("version", "name", "outcome"),
    [
        (4, "key", (400, "InvalidArgument")),
        (4, "policy", (400, "InvalidArgument")),
        (2, "policy", (400, "InvalidArgument")),
        (4, "x-amz-signature", (400, "InvalidArgument")),
        (2, "signature", (400, "InvalidArgument")),
        (2, "AWSAccessKeyId", (400, "InvalidArgument")),
        (4, "x-amz-credential", (400, "InvalidArgument")),
        (4, "x-amz-algorithm", (400, "InvalidArgument")),
        (4, "x-amz-date", (400, "InvalidArgument")),
    ],
)
def test_a_missing_field_is_named(
    server: Server, form: Form, version: int, name: str, outcome: tuple[int, str]
) -> None:
    fields = replace(form, version=version).signed()
    del fields[name]
    reply = send(server, form.bucket, encode(fields, b"content"))

    assert outcome == (reply.status, reply.error)
    assert AS_AWS_WRITES_IT.get(name, name) == reply.element("ArgumentName")
    assert f"'{reply.element('ArgumentName')}'" in reply.element("Message")
    assert 404 == server.client("test-key", bucket=form.bucket).head("k").status


def test_a_form_that_nobody_signed_is_a_strangers(server: Server, form: Form) -> None:
    for bucket in (form.bucket, "public"):
        for more in ({}, {"policy": form.signed()["policy"]}):
            reply = send(server, bucket, encode({"key": "k", **more}, b"content"))
            assert (403, "AccessDenied") == (reply.status, reply.error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-amz-algorithm", "AWS4-HMAC-SHA1"),
        ("x-amz-credential", "test-key"),
        ("x-amz-credential", "test-key/20240101/us-east-1/ec2/aws4_request"),
        ("x-amz-date", "yesterday"),
        ("x-amz-date", "20240101T000000Z"),
    ],
)
def test_a_field_of_the_signature_must_make_sense(
    server: Server, form: Form, name: str, value: str
) -> None:
    reply = send(server, form.bucket, encode({**form.signed(), name: value}, b"content"))

    assert (400, "InvalidArgument") == (reply.status, reply.error)


@pytest.mark.parametrize("name", ["key", "policy", "AWSAccessKeyId", "signature", "acl", "tagging"])
@pytest.mark.parametrize("value", ["\udcff", "\x00", "\ud7ff\udcc3("])
def test_bytes_that_are_no_text_are_refused(
    server: Server, form: Form, name: str, value: str
) -> None:
    conditions = (["starts-with", "$key", ""], ["starts-with", "$acl", ""])
    conditions = (*conditions, ["starts-with", "$tagging", ""])
    base = {"key": "k", "acl": "private", "tagging": "<Tagging><TagSet/></Tagging>"}
    signed = replace(form, fields=base, conditions=conditions, version=2).signed()
    reply = send(server, form.bucket, encode({**signed, name: value}, b"content"))

    assert reply.status in (400, 403) or (name, value, reply.status) == ("key", "\x00", 204)
    if value != "\x00":
        assert (400, "MalformedPOSTRequest") == (reply.status, reply.error)


BAD_POLICIES = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"nonsense",
    b"\xff\xfe",
    b'{"expiration": "2099-01-01T00:00:00Z"}',
    b'{"conditions": []}',
    b'{"expiration": "2099-01-01T00:00:00Z", "conditions": {}}',
    b'{"expiration": "2099-01-01", "conditions": []}',
    b'{"expiration": "tomorrow", "conditions": []}',
    b'{"expiration": 4000000000, "conditions": []}',
    b'{"expiration": {}, "conditions": []}',
    b'{"expiration": "2099-13-01T00:00:00Z", "conditions": []}',
    b'{"Expiration": "2099-01-01T00:00:00Z", "CONDITIONS": []}',
    b"[" * 10_000,
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b"9" * 6000,
]
BAD_CONDITIONS: list[Any] = [
    {}, {"a": "1", "b": "2"}, [], ["eq"], ["eq", "$key"], ["eq", "$key", "k", "k"],
    ["eq", "key", "k"], ["is", "$key", "k"], ["ends-with", "$key", "k"], "eq", 7, None, True,
    {"key": 7}, {"key": None}, ["eq", 7, "k"], [7, "$key", "k"], [["eq"], "$key", "k"],
    ["content-length-range", 1], ["content-length-range", "a", "b"],
    ["content-length-range", -1, 2],
    ["content-length-range", 0, 1.5], ["content-length-range", 0, None],
    ["content-length-range", 0, 10**30], ["content-length-range", 0, "١"],
]  # fmt: skip


@pytest.mark.parametrize("document", BAD_POLICIES, ids=range(len(BAD_POLICIES)))
def test_a_policy_that_makes_no_sense_is_refused(
    server: Server, form: Form, document: bytes
) -> None:
    reply = submit(server, replace(form, version=2, policy=document))

    outcomes = [(400, "InvalidPolicyDocument")] if document else [(400, "InvalidArgument")]
    assert (reply.status, reply.error) in [*outcomes, (400, "InvalidPolicyDocument")]
    assert 404 == server.client("test-key", bucket=form.bucket).head("k").status


@pytest.mark.parametrize("condition", BAD_CONDITIONS, ids=range(len(BAD_CONDITIONS)))
def test_a_condition_that_makes_no_sense_is_refused(
    server: Server, form: Form, condition: object
) -> None:
    bad = replace(form, conditions=(*form.conditions, condition))

    refused(server, bad, 400, "InvalidPolicyDocument")


@pytest.mark.parametrize("policy", ["!!!!", "e30", "e30=e30=", "e 30=", "ä"])
def test_a_policy_is_strict_base64(policy: str) -> None:
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.parse_policy(policy)
    assert caught.value.code == "InvalidPolicyDocument"


@pytest.mark.parametrize("value", ["\ud800", "ä", "\u20ac"])
def test_a_condition_of_any_text_may_fail(server: Server, form: Form, value: str) -> None:
    policy = {"expiration": "2099-01-01T00:00:00Z", "conditions": [["eq", "$key", value]]}
    odd = replace(form, policy=json.dumps(policy).encode())

    message = refused(server, odd, 403, "AccessDenied").element("Message")
    assert json.dumps(value) in message


@pytest.mark.parametrize("name", ["a b", "a: b", "a\nb", "ä"])
def test_metadata_whose_name_is_no_headers_is_refused(
    server: Server, form: Form, name: str
) -> None:
    """Clients would read no header behind it, and not where the body ends."""
    named = {f"x-amz-meta-{name}": "v"}
    odd = replace(form, fields={**form.fields, **named}, conditions=(*form.conditions, named))

    refused(server, odd, 400, "InvalidArgument")


def test_deep_json_is_no_crash() -> None:
    for text in (b"[" * 200_000, b'{"conditions":' * 100_000):
        with pytest.raises(s3mini.S3Error) as caught:
            s3mini.parse_policy(base64.b64encode(text).decode())
        assert caught.value.code == "InvalidPolicyDocument"


@pytest.mark.parametrize(
    "kind", ["", "application/x-www-form-urlencoded", "text/plain", "multipart/mixed; boundary=x"]
)
def test_another_kind_of_body_is_412(server: Server, form: Form, kind: str) -> None:
    reply = send(server, form.bucket, encode(form.signed(), b"content"), content_type=kind)

    assert (412, "PreconditionFailed") == (reply.status, reply.error)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "MalformedPOSTRequest"),
        (b"nonsense", "MalformedPOSTRequest"),
        (b"--other\r\n\r\n", "MalformedPOSTRequest"),
        (f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nx\r\n".encode(), "MalformedPOSTRequest"),
        (f"--{BOUNDARY}--\r\n".encode(), "InvalidArgument"),
        (part("key", b"k") + f"--{BOUNDARY}--\r\n".encode(), "InvalidArgument"),
        (part("key", b"k"), "MalformedPOSTRequest"),
    ],
)
def test_a_form_that_is_broken_is_refused(
    server: Server, bucket: str, body: bytes, code: str
) -> None:
    reply = send(server, bucket, body)

    assert (400, code) == (reply.status, reply.error)


def test_a_field_that_has_the_boundary_in_it_is_refused(server: Server, form: Form) -> None:
    fields = {"key": "k", "x-amz-meta-a": f"1\r\n--{BOUNDARY}2"}
    reply = submit(server, replace(form, fields=fields))

    assert (400, "MalformedPOSTRequest") == (reply.status, reply.error)


def test_a_form_may_not_name_no_key(server: Server, form: Form) -> None:
    refused(server, replace(form, fields={"key": ""}, conditions=({"key": ""},)), 400,
            "InvalidArgument")  # fmt: skip


def test_a_form_without_a_boundary_is_refused(server: Server, form: Form) -> None:
    reply = send(server, form.bucket, b"x", content_type="multipart/form-data")

    assert (400, "MalformedPOSTRequest") == (reply.status, reply.error)


def test_a_form_without_a_file_is_refused(server: Server, form: Form) -> None:
    reply = send(server, form.bucket, encode(form.signed(), None))

    assert (400, "InvalidArgument") == (reply.status, reply.error)


@pytest.mark.parametrize("preamble", [b"\r\n", b"preamble\r\n", b"--\r\n\r\n"])
def test_what_stands_before_a_form_counts_for_nothing(
    server: Server, form: Form, s3: Client, preamble: bytes
) -> None:
    """[RFC 2046 5.1.1]; .NET's hand-written forms begin with a line break."""
    reply = send(server, form.bucket, preamble + encode(form.signed(), b"content"))

    assert (204, b"content") == (reply.status, s3.get(form.fields["key"]).body)


@pytest.mark.parametrize("behind", [b"X\r\n", b"0\r\n", b"-\r\n", b"\n\r\n"])
def test_a_boundary_that_is_none_does_not_cut_the_file(
    server: Server, form: Form, s3: Client, behind: bytes
) -> None:
    content = b"first\r\n--" + BOUNDARY.encode() + behind + b"second"
    reply = send(server, form.bucket, encode(form.signed(), content))

    assert (400, "MalformedPOSTRequest") == (reply.status, reply.error)
    assert 404 == s3.get(form.fields["key"]).status


@pytest.mark.parametrize("many", [b"a\r\n", b"a: b\r\n"])
def test_the_heads_of_parts_have_20_kb_in_all(many: bytes) -> None:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    given = [0]

    def size() -> int:
        given[0] += 1 << 16
        return 1 << 16

    endless = f"--{BOUNDARY}\r\n".encode() + many * 1_000_000
    with pytest.raises(s3mini.S3Error) as caught:
        s3mini.FormReader(kind, Cut(endless, size)).read_fields()

    assert "MaxPostPreDataLengthExceeded" == caught.value.code
    assert given[0] < 4 * s3mini.SMALL


def test_fields_have_20_kb_in_all(server: Server, form: Form) -> None:
    one = {**form.signed(), "x-ignore-a": "x" * 21_000}
    many = {**form.signed(), **{f"x-ignore-{n}": "x" * 1000 for n in range(21)}}
    names = {**form.signed(), **{f"x-ignore-{n}-" + "x" * 1000: "" for n in range(21)}}
    for fields in (one, many, names):
        reply = send(server, form.bucket, encode(fields, b"content"))
        assert (400, "MaxPostPreDataLengthExceeded") == (reply.status, reply.error)

    fits = {**form.signed(), "x-ignore-a": "x" * 15_000}
    assert 204 == send(server, form.bucket, encode(fits, b"content")).status


def test_a_form_of_chunks_of_one_byte_costs_a_stranger_more_than_us() -> None:
    kind, body = f"multipart/form-data; boundary={BOUNDARY}", encode({}, None) * 1000
    reader = s3mini.FormReader(kind, Cut(b"x" * len(body), lambda: 1))
    began = time.process_time()
    with pytest.raises(s3mini.S3Error):
        reader.read_fields()

    assert time.process_time() - began < 0.5


def test_fields_without_end_take_no_memory() -> None:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    endless = b"".join(part(f"x-ignore-{n}", b"") for n in range(20_000))
    reader = s3mini.FormReader(kind, Cut(endless, lambda: 1 << 16))
    with pytest.raises(s3mini.S3Error) as caught:
        reader.read_fields()

    assert "MaxPostPreDataLengthExceeded" == caught.value.code
    assert len(reader.fields) < 3000


@pytest.mark.parametrize(
    ("key", "status"), [("x" * 1025, 400), ("../k", 400), ("a/../../k", 400), ("x" * 1024, 204)]
)
def test_a_forms_key_is_a_key_like_any_other(
    server: Server, form: Form, key: str, status: int
) -> None:
    keyed = replace(form, fields={"key": key}, conditions=(["starts-with", "$key", ""],))

    assert status == submit(server, keyed).status


@pytest.mark.parametrize(
    ("name", "value", "status", "code"),
    [
        ("x-amz-server-side-encryption", "AES256", 501, "NotImplemented"),
        ("x-amz-website-redirect-location", "/x", 501, "NotImplemented"),
        ("acl", "public-read", 400, "AccessControlListNotSupported"),
        ("acl", "nonsense", 400, "InvalidArgument"),
        ("x-amz-meta-big", "x" * 2100, 400, "MetadataTooLarge"),
        ("x-amz-security-token", "token", 400, "InvalidToken"),
        ("x-amz-checksum-xxhash64", "AAAA", 501, "NotImplemented"),
        ("x-amz-copy-source", "media/a", 501, "NotImplemented"),
        ("x-amz-write-offset-bytes", "3", 501, "NotImplemented"),
    ],
)
def test_what_is_not_done_is_refused_by_name(
    server: Server, form: Form, name: str, value: str, status: int, code: str
) -> None:
    conditions = ({"key": "k"}, {name: value})
    asking = replace(form, fields={"key": "k", name: value}, conditions=conditions)

    refused(server, asking, status, code)


def test_a_refused_form_leaves_the_old_object(server: Server, s3: Client, form: Form) -> None:
    s3.put("k", b"old", {"x-amz-meta-a": "1"})
    small = replace(form, conditions=(*form.conditions, ["content-length-range", 0, 3]))
    refused(server, small, 400, "EntityTooLarge")
    refused(server, replace(form, expires=-1), 403, "AccessDenied")
    got = s3.get("k")

    assert (b"old", "1") == (got.body, got.headers["x-amz-meta-a"])


def test_a_form_obeys_the_conditions_of_its_policy(server: Server, s3: Client, form: Form) -> None:
    once = {"if-none-match": "*"}
    new = replace(form, fields={"key": "k", **once}, conditions=(*form.conditions, once))

    assert 204 == submit(server, new).status
    refused(server, replace(new, file=b"other"), 412, "PreconditionFailed")
    assert b"content" == s3.get("k").body


def test_a_missing_bucket_takes_no_form(server: Server, form: Form) -> None:
    reply = submit(server, replace(form, bucket="test-missing"))

    assert (404, "NoSuchBucket") == (reply.status, reply.error)


MODES_INI = """\
[SERVER]
durability = none
log = none

[media]
access_key = media-key
secret_key = media-secret-0123456789abcdef

[media:reader]
access_key = public-key
secret_key = public-secret-0123456789abcdef
mode = read

[media:appender]
access_key = other-key
secret_key = other-secret-0123456789abcdef
mode = append
"""


def test_a_form_may_do_what_its_key_may(serve: Callable[..., Server]) -> None:
    server = serve(MODES_INI)
    base = Form("media", {"key": "k"}, ({"key": "k"},))
    outcomes = [
        (submit(server, replace(base, access_key=name, file=file)), name)
        for name, file in (
            ("public-key", b"0"), ("other-key", b"1"), ("other-key", b"2"), ("media-key", b"3"),
        )
    ]  # fmt: skip

    assert [403, 204, 403, 204] == [reply.status for reply, _ in outcomes]
    assert ["AccessDenied", "", "AccessDenied", ""] == [reply.error for reply, _ in outcomes]
    assert b"3" == server.client("media-key", bucket="media").get("k").body


def test_the_log_names_the_key_that_signed_a_form(serve: Callable[..., Server]) -> None:
    server = serve(MODES_INI.replace("log = none", "log = text"))
    good = Form("media", {"key": "k"}, ({"key": "k"},), access_key="media-key")
    forms = (good, replace(good, access_key="public-key"), replace(good, fields={"key": "other"}))
    statuses = [submit(server, each).status for each in forms]
    deadline = time.monotonic() + 10
    while server.log.count(" POST ") < len(forms) and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = [line for line in server.log.split("\n") if " POST " in line]

    assert [204, 403, 403] == statuses
    assert ["media-key", "media-key", "public-key"] == sorted(line.split()[2] for line in lines)


def test_a_form_at_a_virtual_host_names_the_place_there(serve: Callable[..., Server]) -> None:
    server = serve(MODES_INI, domain="s3.example.com")
    fields = {"key": "a b", "success_action_status": "201"}
    conditions = ({"key": "a b"}, {"success_action_status": "201"})
    signed = Form("media", fields, conditions, access_key="media-key").signed()
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    headers["host"] = "media.s3.example.com"
    reply = Client(server.address).send("POST", "/", headers, encode(signed, b"content"))

    assert (201, "http://media.s3.example.com/a%20b") == (reply.status, reply.element("Location"))
    assert b"content" == server.client(bucket="media").get("a b").body


@pytest.mark.parametrize(
    ("told", "scheme"), [("https", "https"), ("http", "http"), ("javascript", "http"), ("", "http")]
)
def test_a_proxy_tells_what_the_place_begins_with(server: Server, told: str, scheme: str) -> None:
    s3 = server.client("media-key", bucket="media")
    fields = {"key": "a", "success_action_status": "201"}
    conditions = ({"key": "a"}, {"success_action_status": "201"})
    form = Form("media", fields, conditions, access_key="media-key")
    reply = submit(server, form, x_forwarded_proto=told)
    upload = s3.post("b", query="uploads").element("UploadId")
    etag = s3.put("b", b"x", partNumber=1, uploadId=upload).etag
    named = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>".encode()
    joined = s3.post("b", body, {"x-forwarded-proto": told}, uploadId=upload)

    assert f"{scheme}://{server.address}/media/a" == reply.element("Location")
    assert reply.element("Location") == reply.headers["location"]
    assert f"{scheme}://{server.address}/media/b" == joined.element("Location")


def test_with_a_certificate_of_its_own_the_place_is_https() -> None:
    config = s3mini.dev_config("127.0.0.1:0", "/nowhere")
    for cert, scheme in (("", "http"), ("/x.pem", "https")):
        buckets = SimpleNamespace(config=config._replace(tls_cert=cert))
        head = SimpleNamespace(host="box:9000")
        asked: Any = SimpleNamespace(buckets=buckets, head=head, headers={})

        assert f"{scheme}://box:9000" == s3mini.origin_of(asked)


# -- the published example -------------------------------------------------------------------------

EXAMPLE_POLICY = "\r\n".join([
    '{ "expiration": "2015-12-30T12:00:00.000Z",',
    '  "conditions": [',
    '    {"bucket": "sigv4examplebucket"},',
    '    ["starts-with", "$key", "user/user1/"],',
    '    {"acl": "public-read"},',
    '    {"success_action_redirect": '
    '"http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html"},',
    '    ["starts-with", "$Content-Type", "image/"],',
    '    {"x-amz-meta-uuid": "14365123651274"},',
    '    {"x-amz-server-side-encryption": "AES256"},',
    '    ["starts-with", "$x-amz-meta-tag", ""],',
    "",
    '    {"x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"},',
    '    {"x-amz-algorithm": "AWS4-HMAC-SHA256"},',
    '    {"x-amz-date": "20151229T000000Z" }',
    "  ]",
    "}",
])  # fmt: skip
EXAMPLE = {
    "key": "user/user1/cat.jpg",
    "acl": "public-read",
    "success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html",
    "content-type": "image/jpeg",
    "x-amz-meta-uuid": "14365123651274",
    "x-amz-server-side-encryption": "AES256",
    "x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request",
    "x-amz-algorithm": "AWS4-HMAC-SHA256",
    "x-amz-date": "20151229T000000Z",
    "x-amz-meta-tag": "",
    "policy": base64.b64encode(EXAMPLE_POLICY.encode()).decode(),
    "x-amz-signature": "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e",
}
EXAMPLE_KEYRING = s3mini.Keyring(
    {"AKIAIOSFODNN7EXAMPLE": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
)
IN_2015 = 1451390400.0  # 2015-12-29T12:00:00Z


def test_the_published_example_is_signed_right_and_holds() -> None:
    signed = s3mini.verify_form(EXAMPLE, EXAMPLE_KEYRING)
    sizes = s3mini.check_policy(EXAMPLE, "sigv4examplebucket", IN_2015)

    assert ("AKIAIOSFODNN7EXAMPLE", 0) == (signed.access_key, sizes.start)
    with pytest.raises(s3mini.S3Error, match="expired"):
        s3mini.check_policy(EXAMPLE, "sigv4examplebucket", IN_2015 + 86401)
    with pytest.raises(s3mini.S3Error, match="bucket"):
        s3mini.check_policy(EXAMPLE, "another", IN_2015)
