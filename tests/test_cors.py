"""CORS: which web pages may use a bucket, and what browsers and caches are told of it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from typing import Any, Optional

import pytest
from conftest import INI, Server, boto_client
from signing_client import Client, Reply

import s3mini

APP = "https://app.example.com"
CORS_INI = (
    INI.replace("[media]\n", "[media]\ncors = https://app.example.com http://*.dev.example.com\n")
    .replace("[public]\n", "[public]\ncors = *\n")
    .replace("[other]\n", "[other]\nmode = append\n")
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with origins in its INI: some for media, all for public, none for the others."""
    started = Server(tmp_path_factory.mktemp("cors"), CORS_INI)
    yield started
    started.close()


@pytest.fixture(scope="module")
def media(world: Server) -> Client:
    return world.client("media-key", bucket="media")


def preflight(
    server: Server, path: str, origin: str = APP, method: str = "PUT", headers: str = ""
) -> Reply:
    sending = {"origin": origin, "access-control-request-method": method}
    if headers:
        sending["access-control-request-headers"] = headers
    return Client(server.address).send("OPTIONS", path, sending)


def cors_of(reply: Reply) -> dict[str, str]:
    start = "access-control-"
    return {n[len(start) :]: v for n, v in reply.headers.items() if n.startswith(start)}


def vary(reply: Reply) -> set[str]:
    return {name.strip().lower() for name in reply.headers.get("vary", "").split(",")} - {""}


VARYING = {"origin", "access-control-request-headers", "access-control-request-method"}


def rule(**texts: Any) -> str:
    """A CORSRule; a list makes an element of each text."""
    items = [(n, v if isinstance(v, list) else [v]) for n, v in texts.items()]
    inner = "".join(f"<{n}>{text}</{n}>" for n, values in items for text in values)
    return f"<CORSRule>{inner}</CORSRule>"


def put_rules(s3: Client, *rules: str) -> Reply:
    body = f"<CORSConfiguration>{''.join(rules)}</CORSConfiguration>"
    return s3.put("", body.encode(), query="cors")


# -- the rules of buckets.ini ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
def test_a_preflight_needs_no_signature(world: Server, method: str) -> None:
    asked = "content-type, x-amz-meta-a,Authorization"
    reply = preflight(world, "/media/any/key", method=method, headers=asked)
    told = cors_of(reply)

    assert (200, b"") == (reply.status, reply.body)
    assert APP == told["allow-origin"]
    assert method in told["allow-methods"].split(", ")
    allowed = {name.strip().lower() for name in told["allow-headers"].split(",")}
    assert {"content-type", "x-amz-meta-a", "authorization"} <= allowed
    assert int(told["max-age"]) > 0
    assert vary(reply) >= VARYING


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (APP, 200),
        ("http://a.dev.example.com", 200),
        ("http://a.b.dev.example.com", 200),
        ("http://app.example.com", 403),
        ("https://app.example.com:8443", 403),
        ("https://app.example.com.evil.org", 403),
        ("https://evil.org/https://app.example.com", 403),
        ("https://xapp.example.com", 403),
        ("https://appxexample.com", 403),
        ("http://dev.example.com", 403),
        ("https://APP.example.com", 403),
        ("null", 403),
    ],
)
def test_an_origin_is_compared_whole(world: Server, origin: str, status: int) -> None:
    reply = preflight(world, "/media/k", origin)

    assert status == reply.status
    assert (origin if status == 200 else None) == cors_of(reply).get("allow-origin")


def test_a_star_is_every_origin_and_no_credentials(world: Server) -> None:
    for origin in (APP, "null", "http://localhost:3000"):
        told = cors_of(preflight(world, "/public/k", origin, "GET"))
        assert "*" == told["allow-origin"]
        assert "allow-credentials" not in told


def test_an_origin_by_name_may_send_credentials(world: Server) -> None:
    assert "true" == cors_of(preflight(world, "/media/k", APP))["allow-credentials"]


@pytest.mark.parametrize("path", ["/media/k", "/media", "/media/", "/media/k?uploads", "/media?x"])
def test_a_preflight_may_ask_for_any_place_of_the_bucket(world: Server, path: str) -> None:
    assert 200 == preflight(world, path, method="POST").status


def test_a_preflight_of_a_method_nobody_knows_is_refused(world: Server) -> None:
    for method in ("PATCH", "put", "*", ""):
        reply = preflight(world, "/media/k", method=method)
        assert 403 == reply.status, method
        assert {} == cors_of(reply)


def test_a_refused_preflight_says_why(world: Server) -> None:
    reply = preflight(world, "/media/k", "https://evil.org")

    assert (403, "AccessForbidden") == (reply.status, reply.error)
    assert vary(reply) >= VARYING
    assert {} == cors_of(reply)


@pytest.mark.parametrize(
    ("path", "kind"), [("/media/k", "OBJECT"), ("/media", "BUCKET"), ("/other/k", "BUCKET")]
)
def test_a_refused_preflight_says_of_what(world: Server, path: str, kind: str) -> None:
    """Where there are no rules AWS speaks of the bucket, also when an object was asked for."""
    reply = preflight(world, path, "https://evil.org", "DELETE")

    assert (403, "DELETE", kind) == (
        reply.status, reply.element("Method"), reply.element("ResourceType"))


@pytest.mark.parametrize("missing", ["origin", "access-control-request-method"])
def test_options_that_is_no_preflight_is_400(world: Server, missing: str) -> None:
    headers = {"origin": APP, "access-control-request-method": "GET"}
    del headers[missing]
    reply = Client(world.address).send("OPTIONS", "/media/k", headers)

    assert (400, "BadRequest") == (reply.status, reply.error)


def test_a_preflight_of_a_missing_bucket_is_refused(world: Server) -> None:
    for path in ("/test-missing/k", "/", "/UPPER/k"):
        reply = preflight(world, path)
        assert reply.status in (400, 403, 404)
        assert {} == cors_of(reply)


def test_a_page_sees_the_etag(world: Server, media: Client) -> None:
    put = media.put("k", b"x", {"origin": APP})
    exposed = {name.strip().lower() for name in cors_of(put)["expose-headers"].split(",")}

    assert "etag" in exposed
    assert (200, APP) == (put.status, cors_of(put)["allow-origin"])


def test_every_answer_to_a_page_has_the_headers(world: Server, media: Client) -> None:
    media.put("k", b"0123456789")
    etag = media.head("k").headers["etag"]
    origin = {"origin": APP}
    answers = {
        "get": (200, media.get("k", origin)),
        "head": (200, media.head("k", origin)),
        "range": (206, media.get("k", {**origin, "range": "bytes=1-2"})),
        "not modified": (304, media.get("k", {**origin, "if-none-match": etag})),
        "list": (200, media.get("", origin, list_type=2)),
        "delete": (204, media.delete("gone", origin)),
        "missing": (404, media.get("missing", origin)),
        "bad range": (416, media.get("k", {**origin, "range": "bytes=99-"})),
        "precondition": (412, media.put("k", b"y", {**origin, "if-none-match": "*"})),
        "unknown name": (501, media.put("k", b"y", origin, query="frobnicate=1")),
        "stranger": (403, Client(world.address).send("GET", "/media/k", origin)),
        "form": (412, Client(world.address).send("POST", "/media", origin, b"x")),
    }
    for name, (status, reply) in answers.items():
        assert (name, status, APP) == (name, reply.status, cors_of(reply).get("allow-origin"))
        assert vary(reply) >= {"origin"}, name


def test_an_answer_to_a_page_says_what_its_preflight_says(world: Server, media: Client) -> None:
    """AWS sends all of it, and whoever looks with `curl -H Origin:` looks for it."""
    put, asked = media.put("k", b"x", {"origin": APP}), cors_of(preflight(world, "/media/k"))

    assert asked == cors_of(put) == cors_of(media.get("k", {"origin": APP}))
    assert {"allow-origin", "allow-methods", "allow-credentials", "max-age"} <= set(asked)


def test_a_page_can_read_why_its_signature_is_refused(world: Server, media: Client) -> None:
    """An expired URL is what a page meets most; without the headers it sees a network error."""
    wrong = Client(world.address, "media-key", "not-the-secret", bucket="media")
    unknown = Client(world.address, "nobody", "x", bucket="media")
    expired = media.presign("GET", "k", expires=1).replace("X-Amz-Expires=1", "X-Amz-Expires=x")
    old = Client(world.address, "media-key", media.secret_key, "media", now="20200101T000000Z")
    replies = [
        wrong.get("k", {"origin": APP}),
        unknown.get("k", {"origin": APP}),
        media.fetch(expired, headers={"origin": APP}),
        media.fetch(old.presign("GET", "k", expires=60), headers={"origin": APP}),
    ]

    assert [403, 403, 400, 403] == [reply.status for reply in replies]
    assert [APP] * 4 == [cors_of(reply).get("allow-origin") for reply in replies]


def test_caches_are_told_that_the_origin_counts(world: Server, media: Client) -> None:
    """A picture cached without Origin must not be given to a page that sends one."""
    media.put("k", b"x")

    for reply in (media.get("k"), media.head("k"), media.get("missing"), media.put("k", b"x")):
        assert vary(reply) >= VARYING
        assert {} == cors_of(reply)
    assert vary(media.get("k", {"origin": "https://evil.org"})) >= VARYING
    assert {} == cors_of(media.get("k", {"origin": "https://evil.org"}))


def test_a_bucket_without_rules_says_nothing(world: Server) -> None:
    client = world.client("test-key", bucket="test-bare")
    client.put()
    client.put("k", b"x")
    got = client.get("k", {"origin": APP})

    assert (403, "AccessForbidden") == (
        preflight(world, "/test-bare/k").status,
        preflight(world, "/test-bare/k").error,
    )
    assert {} == cors_of(got)
    assert set() == vary(got)


def test_many_headers_are_looked_up_in_many_rules_at_once() -> None:
    rule = s3mini.CorsRule(("*",), headers=(*[f"X-{n}" for n in range(1950)], "y-*"))
    asked = [f"x-{n}" for n in range(98)] + ["y-1"]
    began = time.process_time()

    assert all(rule.fits("a", "GET", asked) for _ in range(20))
    assert not rule.fits("a", "GET", [*asked, "z"])
    assert time.process_time() - began < 0.5


# -- rules made through the API --------------------------------------------------------------------


def test_rules_come_back_as_they_were_put(server: Server, s3: Client, boto: Any) -> None:
    rules = [
        {
            "ID": "app",
            "AllowedOrigins": [APP, "http://*.dev.example.com"],
            "AllowedMethods": ["GET", "PUT"],
            "AllowedHeaders": ["x-amz-*", "Content-Type"],
            "ExposeHeaders": ["ETag", "x-amz-request-id"],
            "MaxAgeSeconds": 1_234_567_890,
        },
        {"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]},
    ]
    boto.put_bucket_cors(Bucket=s3.bucket, CORSConfiguration={"CORSRules": rules})

    assert rules == boto.get_bucket_cors(Bucket=s3.bucket)["CORSRules"]


def test_rules_are_gone_when_they_are_deleted(server: Server, s3: Client) -> None:
    assert (404, "NoSuchCORSConfiguration") == outcome(s3.get(query="cors"))
    put_rules(s3, rule(AllowedOrigin=APP, AllowedMethod="GET"))
    assert 200 == preflight(server, f"/{s3.bucket}/k", method="GET").status
    assert 204 == s3.delete(query="cors").status
    assert 204 == s3.delete(query="cors").status

    assert (404, "NoSuchCORSConfiguration") == outcome(s3.get(query="cors"))
    assert 403 == preflight(server, f"/{s3.bucket}/k", method="GET").status
    assert 200 == s3.head().status


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


@pytest.mark.parametrize(
    ("origin", "method", "headers", "status"),
    [
        (APP, "PUT", "", 200),
        (APP, "DELETE", "", 403),
        (APP, "PUT", "x-amz-meta-a", 200),
        (APP, "PUT", "X-AMZ-META-A, content-md5", 200),
        (APP, "PUT", "authorization", 403),
        (APP, "PUT", "x-amz-date, x-other", 403),
        ("https://b.example.org", "GET", "", 200),
        ("https://b.example.org", "GET", "x-amz-date", 403),
        ("https://b.example.org", "PUT", "", 403),
        ("https://example.org", "GET", "", 403),
    ],
)
def test_origin_method_and_headers_must_fit_one_rule(
    server: Server, s3: Client, origin: str, method: str, headers: str, status: int
) -> None:
    app = rule(
        AllowedOrigin=APP, AllowedMethod=["PUT", "POST"], AllowedHeader=["x-amz-*", "Content-MD5"]
    )
    put_rules(s3, app, rule(AllowedOrigin="https://*.example.org", AllowedMethod="GET"))

    assert status == preflight(server, f"/{s3.bucket}/k", origin, method, headers).status


def test_the_first_rule_that_fits_counts(server: Server, s3: Client) -> None:
    put_rules(
        s3,
        rule(AllowedOrigin=APP, AllowedMethod="GET", ExposeHeader="x-first", MaxAgeSeconds="7"),
        rule(AllowedOrigin="*", AllowedMethod="GET", ExposeHeader="x-second", MaxAgeSeconds="8"),
    )
    first = cors_of(preflight(server, f"/{s3.bucket}/k", APP, "GET"))
    second = cors_of(preflight(server, f"/{s3.bucket}/k", "https://else.example.com", "GET"))

    assert (APP, "x-first", "7") == tuple(first[n] for n in WANTED)
    assert ("*", "x-second", "8") == tuple(second[n] for n in WANTED)


WANTED = ("allow-origin", "expose-headers", "max-age")


def test_what_a_rule_does_not_say_is_not_told(server: Server, s3: Client) -> None:
    put_rules(s3, rule(AllowedOrigin=APP, AllowedMethod="GET"))
    told = cors_of(preflight(server, f"/{s3.bucket}/k", APP, "GET"))

    assert not {"max-age", "expose-headers", "allow-headers"} & set(told)


def test_caches_are_told_of_rules_of_the_api_too(s3: Client) -> None:
    put_rules(s3, rule(AllowedOrigin=APP, AllowedMethod="GET"))
    s3.put("k", b"x")

    assert vary(s3.get("k")) >= VARYING
    assert {} == cors_of(s3.get("k"))
    assert vary(s3.get("missing", {"origin": APP})) >= VARYING
    assert APP == cors_of(s3.get("missing", {"origin": APP}))["allow-origin"]


def test_a_simple_request_needs_a_rule_for_its_method(s3: Client) -> None:
    put_rules(s3, rule(AllowedOrigin=APP, AllowedMethod="GET"))

    assert APP == cors_of(s3.get("k", {"origin": APP})).get("allow-origin")
    assert {} == cors_of(s3.put("k", b"x", {"origin": APP}))  # done, but no page may see it
    assert b"x" == s3.get("k").body


def test_rules_of_the_ini_stay(world: Server, media: Client) -> None:
    put_rules(media, rule(AllowedOrigin="https://new.example.com", AllowedMethod="GET"))
    for origin in (APP, "https://new.example.com"):
        assert 200 == preflight(world, "/media/k", origin, "GET").status
    media.delete(query="cors")

    assert 200 == preflight(world, "/media/k", APP, "GET").status
    assert 403 == preflight(world, "/media/k", "https://new.example.com", "GET").status
    assert APP == media.get(query="cors").element("AllowedOrigin")


def test_rules_outlive_the_server(serve: Any) -> None:
    server = serve(INI)
    media = server.client(bucket="media")
    put_rules(media, rule(AllowedOrigin=APP, AllowedMethod="GET"))
    server.stop()
    server.start()

    assert 200 == preflight(server, "/media/k", APP, "GET").status


def test_a_configuration_has_64_kib(s3: Client) -> None:
    many = put_rules(s3, rule(AllowedOrigin=["https://a"] * 1700, AllowedMethod="GET"))

    assert (400, "MaxMessageLengthExceeded") == outcome(many)
    assert (404, "NoSuchCORSConfiguration") == outcome(s3.get(query="cors"))


def test_a_page_asks_for_a_hundred_headers_at_most(server: Server, s3: Client) -> None:
    put_rules(s3, rule(AllowedOrigin="*", AllowedMethod="GET", AllowedHeader="*"))
    names = [f"x-{number}" for number in range(101)]

    for asked, status in ((names[:100] * 2, 200), (names, 403)):
        reply = preflight(server, f"/{s3.bucket}/k", APP, "GET", ",".join(asked))
        assert status == reply.status


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "a*", "*a", "a*a", "ab*ba", "a.c", "aba", "a*b*a", "**", "*ab*", "*a*a*", "ab*ab*"],
)
def test_a_star_stands_for_any_text(pattern: str) -> None:
    wanted = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    for text in map("".join, itertools.chain.from_iterable(
            itertools.product("ab", repeat=size) for size in range(6))):
        assert (wanted.fullmatch(text) is not None) == s3mini.wildcard_fits(pattern, text), text


def test_what_is_exposed_is_named(s3: Client) -> None:
    every = put_rules(s3, rule(AllowedOrigin="*", AllowedMethod="GET", ExposeHeader="*"))

    assert (400, "InvalidRequest") == outcome(every)


@pytest.mark.parametrize("name", ["AllowedHeader", "ExposeHeader"])
@pytest.mark.parametrize("text", ["x a", "x-a, x-b", "x:a", "x/a", "x(a)", "x=a", "x&quot;"])
def test_what_can_be_no_header_is_no_rule(s3: Client, name: str, text: str) -> None:
    put = put_rules(s3, rule(AllowedOrigin="*", AllowedMethod="GET", **{name: text}))

    assert (400, "InvalidRequest") == outcome(put)
    assert (404, "NoSuchCORSConfiguration") == outcome(s3.get(query="cors"))


@pytest.mark.parametrize("char", ["&#10;", "&#13;", "&#13;&#10;Set-Cookie: a=b", "&#127;", "&#9;x"])
@pytest.mark.parametrize("name", ["ExposeHeader", "AllowedOrigin", "AllowedHeader"])
def test_a_rule_cannot_split_an_answer(
    server: Server, s3: Client, name: str, char: str
) -> None:
    """CVE-2020-10753: a line end in ExposeHeader became one in the answer."""
    texts = {"AllowedOrigin": "*", "AllowedMethod": "GET", name: f"x{char}y"}
    put = put_rules(s3, rule(**texts))
    reply = s3.get("k", {"origin": "https://x"})

    if char != "&#9;x":
        assert (400, "InvalidRequest") == outcome(put)
        assert (404, "NoSuchCORSConfiguration") == outcome(s3.get(query="cors"))
    assert "set-cookie" not in reply.headers


def test_a_request_cannot_split_the_answer(world: Server) -> None:
    reply = preflight(world, "/media/k", headers="x-a,\tx-b ,, content-type,")

    assert 200 == reply.status
    assert {"x-a", "x-b", "content-type"} == set(cors_of(reply)["allow-headers"].split(", "))


ORIGIN, METHOD = "<AllowedOrigin>*</AllowedOrigin>", "<AllowedMethod>GET</AllowedMethod>"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "MalformedXML"),
        ("<CORSConfiguration/>", "MalformedXML"),
        ("<Other/>", "MalformedXML"),
        (f"<CORSRule>{METHOD}</CORSRule>", "MalformedXML"),
        (f"<CORSRule>{ORIGIN}</CORSRule>", "MalformedXML"),
        (f"<CORSRule>{ORIGIN}{METHOD}<MaxAgeSeconds>x</MaxAgeSeconds></CORSRule>", "MalformedXML"),
        (f"<CORSRule>{ORIGIN}{METHOD}<MaxAgeSeconds>-1</MaxAgeSeconds></CORSRule>", "MalformedXML"),
        (f"<CORSRule>{ORIGIN}{METHOD}</CORSRule>" * 101, "MalformedXML"),
        (f"<CORSRule>{ORIGIN}{METHOD.replace('GET', 'PATCH')}</CORSRule>", "InvalidRequest"),
        (f"<CORSRule>{ORIGIN}{METHOD.replace('GET', 'get')}</CORSRule>", "InvalidRequest"),
        (f"<CORSRule>{ORIGIN.replace('*', '*x*')}{METHOD}</CORSRule>", "InvalidRequest"),
        (
            f"<CORSRule>{ORIGIN}{METHOD}<AllowedHeader>*x*</AllowedHeader></CORSRule>",
            "InvalidRequest",
        ),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(s3: Client, body: str, code: str) -> None:
    put_rules(s3, rule(AllowedOrigin=APP, AllowedMethod="GET"))
    is_rule = body.startswith("<CORSRule>")
    whole = f"<CORSConfiguration>{body}</CORSConfiguration>" if is_rule else body

    assert (400, code) == outcome(s3.put("", whole.encode(), query="cors"))
    assert APP == s3.get(query="cors").element("AllowedOrigin")


def test_only_who_may_configure_makes_rules(world: Server) -> None:
    body = f"<CORSConfiguration><CORSRule>{ORIGIN}{METHOD}</CORSRule></CORSConfiguration>"
    for who in ("other-key", "media-key", ""):
        client = world.client(who, bucket="other")
        assert (403, "AccessDenied") == outcome(client.put("", body.encode(), query="cors"))
        assert (403, "AccessDenied") == outcome(client.delete(query="cors"))

    assert 403 == preflight(world, "/other/k", APP, "GET").status


@pytest.mark.parametrize("origin", [APP, None])
def test_a_page_may_use_boto_urls(world: Server, media: Client, origin: Optional[str]) -> None:
    media.put("k", b"x")
    boto = boto_client(world.endpoint, "media-key", media.secret_key)
    url = boto.generate_presigned_url("get_object", Params={"Bucket": "media", "Key": "k"})
    reply = media.fetch(url, headers={"origin": origin} if origin else {})

    assert (200, b"x") == (reply.status, reply.body)
    assert origin == cors_of(reply).get("allow-origin")
