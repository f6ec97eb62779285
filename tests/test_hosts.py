"""Hosts and keys: whatever name reaches us and whatever a key is made of, it is the same object."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import pytest
from conftest import INI, Serve, Server, boto_client
from signing_client import Client, Reply

DOMAIN = "s3.example.com"
OUTSIDE = "media.example.org"
BOTH_INI = "[SERVER]\ndurability = none\nlog = none\n\n" + "".join(
    f"[{name}]\naccess_key = media-key\nsecret_key = media-secret-0123456789abcdef\n\n"
    for name in ("media", "vault", "other")
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(
        tmp_path_factory.mktemp("hosts"), INI, domain=DOMAIN, hosts=f"{OUTSIDE} box:9000"
    )
    yield started
    started.close()


@pytest.fixture(scope="module")
def path_style(world: Server) -> Client:
    return world.client("media-key", bucket="media")


@pytest.fixture(scope="module")
def virtual(path_style: Client) -> Client:
    """The same bucket as a part of the host name."""
    return replace(path_style, host=f"media.{DOMAIN}", virtual=True, sent=[])


def raw(server: Server, text: str) -> tuple[int, bytes]:
    """The status and body of an answer to these very bytes."""
    with socket.create_connection((server.host, server.port), timeout=20) as sock:
        sock.sendall(text.encode("latin-1"))
        reply = http.client.HTTPResponse(sock)
        reply.begin()
        return reply.status, reply.read()


# -- names of the server ---------------------------------------------------------------------------


def test_both_styles_reach_the_same_object(path_style: Client, virtual: Client) -> None:
    virtual.put("a/b c", b"x")

    assert b"x" == path_style.get("a/b c").body
    assert "a/b c" in virtual.get("", list_type=2).elements("Key")
    assert 204 == virtual.delete("a/b c").status
    assert 404 == path_style.head("a/b c").status


@pytest.mark.parametrize("host", [f"MEDIA.{DOMAIN}", f"media.{DOMAIN}:9000", f"Media.{DOMAIN}:80"])
def test_a_virtual_host_has_any_case_and_port(virtual: Client, host: str) -> None:
    virtual.put("k", b"x")

    assert b"x" == replace(virtual, host=host).get("k").body
    assert b"x" == virtual.fetch(replace(virtual, host=host).presign("GET", "k")).body


@pytest.mark.parametrize("version", [4, 2])
def test_urls_of_a_virtual_host_work(virtual: Client, version: int) -> None:
    virtual.fetch(virtual.presign("PUT", "d/ä b", version=version), "PUT", b"x")

    assert b"x" == virtual.fetch(virtual.presign("GET", "d/ä b", version=version)).body


@pytest.mark.parametrize(
    "host", [DOMAIN, "s3.example.org", f"x{DOMAIN}", "127.0.0.1", "localhost:1", "a.b.example.com"]
)
def test_other_hosts_are_path_style(path_style: Client, host: str) -> None:
    path_style.put("k", b"x")

    assert b"x" == replace(path_style, host=host).get("k").body


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/?list-type=2"), ("GET", "/a/b"), ("PUT", "/a/b"), ("PUT", "/a.txt"), ("PUT", "/"),
     ("GET", "/%00/b")],
)
def test_a_bucket_below_no_domain_of_ours_is_told_of(
    virtual: Client, method: str, target: str
) -> None:
    stray = replace(virtual, host="media.localhost:9000")
    reply = stray(method, target=target, body=b"x" * (method == "PUT"))

    assert 400 <= reply.status
    assert ". Does the client name its bucket media in the host?" in reply.element("Message")
    assert reply.element("Message").endswith("or set domain = localhost in buckets.ini.")
    unsigned = stray.anonymous()(method, target=target, body=b"")
    assert "domain" not in unsigned.element("Message")


def test_a_bucket_that_is_not_there_is_no_matter_of_the_host(path_style: Client) -> None:
    for client in (path_style, replace(path_style, host="other.localhost")):
        assert "domain" not in client.get("/nothing/k").element("Message")


def test_a_name_may_end_with_a_dot(virtual: Client) -> None:
    virtual.put("k", b"x")

    assert b"x" == replace(virtual, host=f"{virtual.bucket}.{DOMAIN}.").get("k").body


def test_a_virtual_host_is_authorised_by_its_own_bucket(world: Server, virtual: Client) -> None:
    other = world.client("other-key", bucket="other")
    other.put("k", b"secret")
    virtual.put("k", b"mine")
    elsewhere = replace(virtual, host=f"other.{DOMAIN}")

    assert 403 == elsewhere.get("k").status
    assert b"mine" == virtual.get("k").body
    assert 404 == virtual.get("/other/k").status  # a key that begins as the other bucket does
    assert 404 == replace(virtual, host=f"test-missing.{DOMAIN}").get("k").status


def test_a_bucket_with_dots_is_a_virtual_host(world: Server) -> None:
    dotted = replace(
        world.client("test-key"), bucket="test-a.b", host=f"test-a.b.{DOMAIN}", virtual=True
    )

    assert 200 == dotted.put("/").status
    assert 200 == dotted.put("k", b"x").status
    assert b"x" == world.client("test-key", bucket="test-a.b").get("k").body


def test_a_port_may_be_empty(virtual: Client) -> None:
    virtual.put("k", b"x")

    assert b"x" == replace(virtual, host=f"{virtual.host}:").get("k").body


@pytest.mark.parametrize("domains", ["example.com {}", "{} example.com"])
def test_the_nearest_domain_counts(serve: Serve, domains: str) -> None:
    server = serve(domain=domains.format(DOMAIN))
    nested = replace(server.client(bucket="media"), host=f"media.{DOMAIN}", virtual=True)

    assert 200 == nested.put("k", b"x").status
    assert b"x" == server.client(bucket="media").get("k").body


def test_boto3_speaks_both_styles(world: Server, path_style: Client) -> None:
    from botocore.config import Config

    for style in ("path", "virtual"):
        config = Config(s3={"addressing_style": style}, proxies={"http": world.endpoint})
        secret = path_style.secret_key
        boto = boto_client(f"http://{DOMAIN}", "media-key", secret, config=config)
        boto.put_object(Bucket="media", Key="s/ä b", Body=style.encode())
        assert style.encode() == path_style.get("s/ä b").body
        assert style.encode() == boto.get_object(Bucket="media", Key="s/ä b")["Body"].read()


@pytest.mark.parametrize("version", [4, 2])
def test_a_url_of_one_name_works_under_the_others(path_style: Client, version: int) -> None:
    path_style.put("k", b"x")
    inside = path_style.presign("GET", "k", version=version)
    outside = replace(path_style, host=OUTSIDE).presign("GET", "k", version=version)
    there = inside.replace(path_style.address, OUTSIDE)
    here = outside.replace(OUTSIDE, path_style.address)

    assert [b"x"] * 3 == [path_style.fetch(url).body for url in (inside, outside, here)]
    # Signed for 127.0.0.1, which hosts = does not name, and opened elsewhere: only V2 ignores it.
    assert (200 if version == 2 else 403) == path_style.fetch(there).status


def test_hosts_count_for_headers_too(path_style: Client) -> None:
    signed = path_style.sign("GET", "/media/k", [], {"host": "box:9000"}, "UNSIGNED-PAYLOAD")
    path_style.put("k", b"x")

    for host, status in ((OUTSIDE, 200), ("box:9000", 200), (path_style.address, 200)):
        assert status == path_style.send("GET", "/media/k", {**signed, "host": host}).status
    unknown = path_style.sign("GET", "/media/k", [], {"host": "unknown"}, "UNSIGNED-PAYLOAD")
    reply = path_style.send("GET", "/media/k", {**unknown, "host": OUTSIDE})
    assert (403, "SignatureDoesNotMatch") == (reply.status, reply.error)


@pytest.mark.parametrize("host", ["anything", f"other.{DOMAIN}", f"{DOMAIN}:9000"])
def test_a_url_for_one_bucket_opens_no_other(serve: Serve, host: str) -> None:
    """hosts = may name a bucket's own host: what is signed for it is a key of that bucket."""
    server = serve(BOTH_INI, domain=DOMAIN, hosts=f"media.{DOMAIN} {OUTSIDE}")
    media = server.client("media-key", bucket="media", host=f"media.{DOMAIN}", virtual=True)
    server.client("media-key", bucket="vault").put("k", b"vault's")
    server.client("media-key", bucket="other").put("vault/k", b"other's")
    media.put("vault/k", b"media's")
    signed = media.sign("GET", "/vault/k", [], {}, "UNSIGNED-PAYLOAD")

    assert b"media's" == media.fetch(media.presign("GET", "vault/k")).body
    for reply in (
        media.fetch(media.presign("GET", "vault/k"), headers={"host": host}),
        media.send("GET", "/vault/k", {**signed, "host": host}),
    ):
        assert (403, "SignatureDoesNotMatch") == (reply.status, reply.error)


def test_a_url_for_a_path_is_no_url_for_a_virtual_host(serve: Serve) -> None:
    """media.example.org in hosts = is a name of the server, and not the bucket media."""
    server = serve(BOTH_INI, domain=DOMAIN, hosts="media.example.org example.org")
    path_style = server.client("media-key", bucket="vault", host="media.example.org")
    server.client("media-key", bucket="media").put("vault/k", b"media's")
    path_style.put("k", b"vault's")
    url = path_style.presign("GET", "k")

    assert b"vault's" == path_style.fetch(url).body
    assert 403 == path_style.fetch(url, headers={"host": f"media.{DOMAIN}"}).status


def test_a_virtual_host_below_another_of_our_names_is_the_same_bucket(serve: Serve) -> None:
    server = serve(domain=DOMAIN, hosts=OUTSIDE)
    outside = server.client("media-key", bucket="media", host=f"media.{OUTSIDE}", virtual=True)
    server.client("media-key", bucket="media").put("k", b"x")
    url = outside.presign("GET", "k")

    assert b"x" == outside.fetch(url, headers={"host": f"media.{DOMAIN}"}).body


def test_an_absolute_target_names_the_host(world: Server, path_style: Client) -> None:
    world.client("public-key", bucket="public").put("k", b"x")

    for target, host in (
        ("http://whatever/public/k", "other"),
        (f"http://public.{DOMAIN}/k", "other"),
        (f"HTTP://public.{DOMAIN}:80/k", f"media.{DOMAIN}"),
        ("/k", f"public.{DOMAIN}"),
    ):
        text = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert (200, b"x") == raw(world, text), target


@pytest.mark.parametrize("host", ["[::1]", "[::1]:9000", "[2001:db8::1]:80", "[::ffff:127.0.0.1]"])
def test_an_ipv6_host_is_path_style(world: Server, path_style: Client, host: str) -> None:
    path_style.put("k", b"x")

    assert b"x" == replace(path_style, host=host).get("k").body


@pytest.mark.parametrize("host", ["::1", "a b", "a/b", "a@b", "a:b", "[::1", "a:1:2", "a\tb"])
def test_a_bad_host_is_400(world: Server, host: str) -> None:
    assert 400 == raw(world, f"GET /public/k HTTP/1.1\r\nHost: {host}\r\n\r\n")[0]


def test_http_1_0_needs_no_host(world: Server) -> None:
    world.client("public-key", bucket="public").put("k", b"x")

    assert (200, b"x") == raw(world, "GET /public/k HTTP/1.0\r\n\r\n")
    assert (200, b"x") == raw(world, f"GET /k HTTP/1.0\r\nHost: public.{DOMAIN}\r\n\r\n")
    assert 400 == raw(world, "GET /public/k HTTP/1.1\r\n\r\n")[0]


def test_options_of_the_server_itself_is_answered(world: Server) -> None:
    text = "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    assert 400 == raw(world, text)[0]  # no preflight: nothing to tell


# -- keys ------------------------------------------------------------------------------------------

CHARS = [chr(code) for code in range(0x20, 0x7F)] + ["ä", "é", "日", "😀", "\u0301", "\u2028"]
CONTROLS = ["\x01", "\x7f", "\t", "\n", "\r", "\x1f", "\x85"]
POSITIONS = ["{0}", "{0}x", "x{0}", "x{0}y", "d/{0}", "{0}/d", "d/{0}/e", "{0}{0}", "d{0}/"]


def keys_of(char: str) -> list[str]:
    """The character in every position; what leaves the bucket is not legal."""
    keys = [position.format(char) for position in POSITIONS]
    return sorted({key for key in keys if ".." not in key.split("/")})


@pytest.mark.parametrize("chars", [CHARS[n::8] for n in range(8)], ids=range(8))
def test_every_character_in_every_position(
    server: Server, s3: Client, chars: list[str]
) -> None:
    keys = sorted({key for char in chars for key in keys_of(char)}, key=str.encode)
    for key in keys:
        assert 200 == s3.put(key, key.encode()).status, key
    for key in keys:
        got = s3.get(key)
        assert key.encode() == got.body, key
    assert keys == listed(s3)
    assert len(keys) == len(set(keys))


def listed(s3: Client, **more: str) -> list[str]:
    """All keys of the bucket, through the encoding that carries every one of them."""
    from urllib.parse import unquote

    page = s3.get(list_type=2, encoding_type="url", **more)
    return [unquote(key) for key in page.elements("Key")]


ODD = [
    *(char for char in "!\"#$%&'()*+,:;<=>?@[\\]^`{|}~ "),
    "a//b", "/a", "a/", "//", "a%2Fb", "a+b c", "ä/日 本", "a&b=c?d#e", ".", "a/./b", "%", "%zz",
    ".s3mini", ".s3mini/tmp/x", ".x.s3mini.json", "a\\b", "COM1", "x" * 300, "y/" * 500, "-", "'",
]  # fmt: skip


@pytest.mark.parametrize("key", [*ODD, *(f"a{char}b" for char in CONTROLS)])
def test_a_key_is_the_same_everywhere(world: Server, virtual: Client, key: str) -> None:
    """Path, virtual host, copy source, presigned URL, listing with prefix, and deletion."""
    name = "test-keys"
    s3 = world.client("test-key", bucket=name)
    hosted = replace(s3, host=f"{name}.{DOMAIN}", virtual=True)
    s3.put()
    target = "/" + quote(key, safe="/-_.~")
    assert 200 == hosted("PUT", target=target, body=b"content").status
    assert b"content" == s3.get(key).body == hosted("GET", target=target).body
    assert b"content" == s3.fetch(s3.presign("GET", key)).body
    copied = s3.put("copy", b"", {"x-amz-copy-source": f"{name}/{quote(key, safe='')}"})
    assert (200, b"content") == (copied.status, s3.get("copy").body)
    back = s3.put(key, b"", {"x-amz-copy-source": f"/{name}/copy", "x-amz-meta-a": "1"})
    assert 200 == back.status
    assert [key] == listed(s3, prefix=key)
    assert [] == listed(s3, prefix=key, start_after=key)
    body = f"<Delete><Object><Key>{xml(key)}</Key></Object></Delete>".encode()
    if not re.search("[\x00-\x08\x0b-\x1f]", key):  # those cannot stand in XML at all
        deleted = delete(s3, body)
        assert (200, 404) == (deleted.status, s3.head(key).status), deleted.body
    assert 204 == hosted("DELETE", target=target).status
    assert 404 == s3.head(key).status
    s3.delete("copy")


def delete(s3: Client, body: bytes) -> Reply:
    import base64
    import hashlib

    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    return s3.post("", body, {"content-md5": md5}, query="delete")


def xml(key: str) -> str:
    text = key.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"&#{ord(c)};" if c in "\r\n\t" else c for c in text)


@pytest.mark.parametrize("target", ["a+b", "a%2Bb", "a%20b", "%61", "a%2fb", "a%2Fb", "~a", "%7Ea"])
def test_a_path_is_decoded_once(s3: Client, target: str) -> None:
    from urllib.parse import unquote

    canonical = f"/{s3.bucket}/" + quote(unquote(target), safe="/-_.~")  # what is signed
    signed = s3.sign("PUT", canonical, [], {}, "UNSIGNED-PAYLOAD")
    assert 200 == s3.send("PUT", f"/{s3.bucket}/{target}", signed, b"x").status

    assert [unquote(target)] == s3.get(list_type=2).elements("Key")


@pytest.mark.parametrize("path", ["%ff", "%zz", "a%", "%C3", "a/../../b", "../media/k", "%2e%2e/k"])
def test_a_path_that_is_no_key_is_refused(s3: Client, path: str) -> None:
    reply = s3("PUT", target=f"/{s3.bucket}/{path}", body=b"x")

    assert (400, "InvalidURI") == (reply.status, reply.error)
    assert [] == s3.get(list_type=2).elements("Key")


def test_an_object_and_a_folder_may_have_one_name(s3: Client) -> None:
    for keys in (["a", "a/b", "a/b/c"], ["x/y/z", "x/y", "x"]):
        for key in keys:
            s3.put(key, key.encode())
        assert [key.encode() for key in keys] == [s3.get(key).body for key in keys]
    assert ["a", "a/b", "a/b/c", "x", "x/y", "x/y/z"] == listed(s3)
    s3.delete("a/b")
    assert [b"a", b"a/b/c"] == [s3.get(key).body for key in ("a", "a/b/c")]


@pytest.mark.parametrize("key", ["k" * 1024, "ä" * 512, "d/" * 512, "x" * 300 + "/" + "y" * 300])
def test_a_key_has_1024_bytes(s3: Client, key: str) -> None:
    assert 200 == s3.put(key, b"x").status
    assert (b"x", [key]) == (s3.get(key).body, listed(s3))
    for too_long in (key + "z" * (1025 - len(key.encode())), "ä" * 513):
        reply = s3.put(too_long, b"x")
        assert (400, "KeyTooLongError") == (reply.status, reply.error)
