"""Uploads from a web page of another origin, in a real browser: what CORS is for."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Chromium
from conftest import INI, Serve, Server, boto_client

pytestmark = pytest.mark.clients

CORS_INI = """
[web]
access_key = web-key
secret_key = web-secret-0123456789abcdef
cors = *
"""
SIZE = 20 * 1024**2  # bytes of a file, and at this rate, bytes a second, it takes long enough
RATE = 40 * 1024**2  # for several progress events: Chromium sends one in 50 ms

# In the page: send a Blob of `size` bytes by XHR as people do, counting the progress events.
# The content is 0, 1, 2 ... 250, 0, 1, ... so that a shifted byte shows.
UPLOAD = """
const [method, url, fields, size, headers] = arguments;
const content = new Uint8Array(size).map((_, index) => index % 251);
const file = new File([content], "holiday photo.png", { type: "image/png" });
let body = file;
if (fields) {
    body = new FormData();
    for (const [name, value] of Object.entries(fields)) body.append(name, value);
    body.append("file", file);
}
const xhr = new XMLHttpRequest();
const progress = [];
xhr.upload.onprogress = (event) => progress.push([event.loaded, event.total]);
xhr.open(method, url);
for (const [name, value] of Object.entries(headers ?? {})) xhr.setRequestHeader(name, value);
await new Promise((resolve, reject) => {
    xhr.onload = resolve;
    xhr.onerror = () => reject("blocked");
    xhr.send(body);
});
const etag = xhr.getResponseHeader("ETag");
return { status: xhr.status, etag, text: xhr.responseText, progress };
"""


def content(size: int) -> bytes:
    """What the page sends."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser that shows an empty page of an origin that is not the server's."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as website:
        threading.Thread(target=website.serve_forever, daemon=True).start()
        with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
            browser.open(f"http://127.0.0.1:{website.server_port}/")
            browser.limit_upload(RATE)
            yield browser
        website.shutdown()


class EmptyPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page of another origin</title>")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(serve: Serve) -> Server:
    """A server with a bucket that web pages may use, `web`, and others that they may not."""
    return serve(INI + CORS_INI)


def signer(web: Server, version: str) -> Any:
    """boto3 as the page's own backend uses it; "s3" is its name for version 2, its default."""
    from botocore.config import Config

    config = Config(signature_version=version)
    return boto_client(web.endpoint, "web-key", "web-secret-0123456789abcdef", config=config)


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_page_uploads_by_presigned_put(version: str, web: Server, page: Chromium) -> None:
    wanted = {"Bucket": "web", "Key": "put/photo.png", "ContentType": "image/png"}
    url = signer(web, version).generate_presigned_url("put_object", wanted)
    got = page.run(UPLOAD, "PUT", url, None, SIZE, {"Content-Type": "image/png"})

    assert 200 == got["status"]
    assert f'"{hashlib.md5(content(SIZE)).hexdigest()}"' == got["etag"]
    assert len(got["progress"]) > 1
    assert [SIZE, SIZE] == got["progress"][-1]
    assert content(SIZE) == (web.data / "web/put/photo.png").read_bytes()


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_page_uploads_by_post_form(version: str, web: Server, page: Chromium) -> None:
    form = signer(web, version).generate_presigned_post(
        "web",
        "form/${filename}",
        Fields={"Content-Type": "image/png", "success_action_status": "201"},
        Conditions=[
            {"Content-Type": "image/png"},
            {"success_action_status": "201"},
            ["content-length-range", 1, SIZE],
        ],
    )
    got = page.run(UPLOAD, "POST", form["url"], form["fields"], SIZE)

    assert 201 == got["status"]
    assert "<Key>form/holiday photo.png</Key>" in got["text"]
    assert f'"{hashlib.md5(content(SIZE)).hexdigest()}"' == got["etag"]
    assert len(got["progress"]) > 1
    assert content(SIZE) == (web.data / "web/form/holiday photo.png").read_bytes()


def test_a_page_can_read_why_its_form_was_refused(web: Server, page: Chromium) -> None:
    limit = ["content-length-range", 1, 1000]
    form = signer(web, "s3v4").generate_presigned_post("web", "form/large", Conditions=[limit])
    got = page.run(UPLOAD, "POST", form["url"], form["fields"], 1001)

    assert 400 == got["status"]
    assert "<Code>EntityTooLarge</Code>" in got["text"]
    assert not (web.data / "web/form").exists()


def test_a_page_reads_a_range_and_the_headers_it_may_see(web: Server, page: Chromium) -> None:
    client = web.client("web-key", bucket="web")
    client.put("k", b"0123456789", {"content-type": "text/plain"})
    url = signer(web, "s3v4").generate_presigned_url("get_object", {"Bucket": "web", "Key": "k"})
    got = page.run(
        """
        const reply = await fetch(arguments[0], { headers: { Range: "bytes=2-4" } });
        return [reply.status, await reply.text(), reply.headers.get("ETag")];
        """,
        url,
    )

    assert [206, "234", f'"{hashlib.md5(b"0123456789").hexdigest()}"'] == got


def test_a_bucket_without_cors_is_closed_to_pages(web: Server, page: Chromium) -> None:
    """The browser asks first (the preflight), is not allowed, and never sends the upload."""
    url = web.client("media-key", bucket="media").presign("PUT", "k")
    with pytest.raises(AssertionError, match="blocked"):
        page.run(UPLOAD, "PUT", url, None, 1000)

    assert not (web.data / "media/k").exists()
