"""Listings: every key once, in the order of its UTF-8 bytes, whatever the page."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import pytest
from conftest import Server
from powercut import put
from signing_client import Client, Reply

import s3mini

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass
class Listing:
    """One page, its names decoded."""

    names: list[str]  # keys and common prefixes, in order of their bytes
    keys: list[str]
    prefixes: list[str]
    more: bool
    fields: dict[str, Optional[str]]  # the other elements


def parse(reply: Reply) -> Listing:
    assert reply.status == 200, reply.body
    root = ElementTree.fromstring(reply.body)
    fields = {e.tag[len(NAMESPACE) :]: e.text for e in root if not len(e)}

    def name(text: Optional[str]) -> str:
        return unquote_plus(text or "") if "EncodingType" in fields else text or ""

    keys = [name(e.findtext(NAMESPACE + "Key")) for e in root.iter(NAMESPACE + "Contents")]
    folded = root.findall(f"{NAMESPACE}CommonPrefixes/{NAMESPACE}Prefix")
    prefixes = [name(e.text) for e in folded]
    more = fields["IsTruncated"] == "true"
    return Listing(sorted(keys + prefixes, key=str.encode), keys, prefixes, more, fields)


def fill(s3: Client, keys: list[str]) -> None:
    for key in keys:
        assert s3.put(key, b"x").status == 200, key


def keys_of(s3: Client, **query: Any) -> list[str]:
    return parse(s3.get(list_type=2, **query)).keys


# -- a model, and pages held against it ------------------------------------------------------------


def model(keys: list[str], prefix: str, delimiter: str, after: str, skips: bool) -> list[str]:
    """What all pages together must name, in order.

    `skips`: a marker within a common prefix stands for all that it folds (version 1).
    """
    found: list[str] = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix) or key.encode() <= after.encode():
            continue
        head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        common = prefix + head + cut if cut else ""
        if skips and common and after.startswith(common):
            continue
        if (common or key) not in found:
            found.append(common or key)
    return found


def pages_v2(s3: Client, size: int, query: dict[str, str], after: str) -> list[Listing]:
    pages: list[Listing] = []
    more = {"start-after": after} if after else {}
    while not pages or pages[-1].more:
        asked = {**query, **more, "list-type": "2", "encoding-type": "url", "max-keys": str(size)}
        pages.append(parse(s3.get(query=asked)))
        more = {"continuation-token": pages[-1].fields.get("NextContinuationToken") or ""}
        assert str(len(pages[-1].names)) == pages[-1].fields["KeyCount"]
        assert len(pages) < 500
    return pages


def pages_v1(s3: Client, size: int, query: dict[str, str], after: str) -> list[Listing]:
    pages: list[Listing] = []
    while not pages or pages[-1].more:
        asked = {**query, "encoding-type": "url", "max-keys": str(size), "marker": after}
        pages.append(parse(s3.get(query=asked)))
        told = pages[-1].fields.get("NextMarker")
        after = unquote_plus(told) if told else (pages[-1].names or [""])[-1]
        assert len(pages) < 500
    return pages


PIECES = [
    "a", "b", "ab", "a.b", "A", "é", "\U0001f600", "\uffff", "%", "a%", "/", "/", "/", "//", "-",
    ".", "!", "~", "\x01", " ", "+", "&", "<", "::", "0", "s" * 250, ".s3mini", "\x7f", "a-", "a0",
]  # fmt: skip
DELIMITERS = ["", "/", "/", "/", "::", "a", "b/", "\U0001f600", "%", "//", "."]


def random_key(rng: random.Random) -> str:
    while True:
        key = "".join(rng.choices(PIECES, k=rng.randint(1, 6)))
        if len(key.encode()) <= 1024 and ".." not in key:
            return key


@pytest.mark.parametrize("seed", range(8))
def test_all_pages_agree_with_a_model(s3: Client, seed: int) -> None:
    rng = random.Random(seed)
    keys = list({random_key(rng) for _ in range(40)})
    fill(s3, keys)

    for _ in range(25):
        query = {"delimiter": rng.choice(DELIMITERS)}
        some = rng.choice(keys)
        query["prefix"] = rng.choice(
            ["", "", some[: rng.randint(0, len(some))], rng.choice(PIECES)]
        )
        near = rng.choice(keys)
        after = rng.choice(["", "", near, near[: rng.randint(0, len(near))], random_key(rng)])
        size = rng.choice([1, 2, 3, 7, 1000])
        for pages, skips in (
            (pages_v2(s3, size, query, after), False),
            (pages_v1(s3, size, query, after), True),
        ):
            wanted = model(keys, query["prefix"], query["delimiter"], after, skips)
            found = [name for page in pages for name in page.names]

            assert wanted == found, (query, after, size, skips)
            assert [size] * (len(pages) - 1) == [len(page.names) for page in pages[:-1]]


# -- versions 1 and 2, one feature at a time -------------------------------------------------------


def test_an_empty_bucket_has_an_empty_listing(s3: Client) -> None:
    page = parse(s3.get(list_type=2))

    assert ([], False) == (page.names, page.more)
    assert ("0", "1000", None) == tuple(page.fields[n] for n in ("KeyCount", "MaxKeys", "Prefix"))


def test_keys_come_in_the_order_of_their_bytes(s3: Client) -> None:
    keys = ["\U0001f600", "\ufffd", "é", "z", "a/b", "a-b", "a", "a0", "Z", "a//", "~", "a.b"]
    fill(s3, keys)

    assert sorted(keys, key=str.encode) == keys_of(s3)
    assert sorted(keys, key=str.encode) == parse(s3.get()).keys


def test_an_object_is_described(s3: Client) -> None:
    etag = s3.put("a", b"hello").etag
    for query in ("list-type=2", ""):
        reply = s3.get(query=query)

        assert ["a"] == reply.elements("Key")
        assert [f'"{etag}"'] == reply.elements("ETag")
        assert (["5"], ["STANDARD"]) == (reply.elements("Size"), reply.elements("StorageClass"))
        assert s3.bucket == reply.element("Name")
        assert reply.element("LastModified").endswith(".000Z")


def test_the_owner_comes_in_version_2_when_it_is_asked_for(s3: Client) -> None:
    s3.put("a", b"x")

    assert b"<Owner>" not in s3.get(list_type=2).body
    assert b"<Owner>" not in s3.get(list_type=2, fetch_owner="false").body
    assert b"<Owner><ID>" in s3.get(list_type=2, fetch_owner="true").body
    assert b"<Owner><ID>" in s3.get().body


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("", ["a/b/1", "a/b/2", "a/bc", "ab"]),
        ("a", ["a/b/1", "a/b/2", "a/bc", "ab"]),
        ("a/", ["a/b/1", "a/b/2", "a/bc"]),
        ("a/b", ["a/b/1", "a/b/2", "a/bc"]),
        ("a/b/", ["a/b/1", "a/b/2"]),
        ("a/b/1", ["a/b/1"]),
        ("a/b/1/", []),
        ("/a", []),
        ("../", []),
        ("x" * 1024, []),
    ],
)
def test_a_prefix_chooses_keys(s3: Client, prefix: str, found: list[str]) -> None:
    fill(s3, ["a/b/1", "a/b/2", "a/bc", "ab"])

    assert found == keys_of(s3, prefix=prefix)
    assert found == parse(s3.get(prefix=prefix)).keys


@pytest.mark.parametrize(
    ("delimiter", "prefix", "keys", "prefixes"),
    [
        ("/", "", ["top"], ["a/", "b/"]),
        ("/", "a/", ["a/1"], ["a/b/"]),
        ("/", "a", [], ["a/"]),
        ("/", "a/b/", ["a/b/2", "a/b/3"], []),
        ("b", "", ["a/1", "top"], ["a/b", "b"]),
        ("/b", "", ["a/1", "b/::/4", "top"], ["a/b"]),
        ("::", "", ["a/1", "a/b/2", "a/b/3", "top"], ["b/::"]),
        ("/::/", "b", [], ["b/::/"]),
        ("nowhere", "a/b", ["a/b/2", "a/b/3"], []),
    ],
)
def test_a_delimiter_folds_keys(
    s3: Client, delimiter: str, prefix: str, keys: list[str], prefixes: list[str]
) -> None:
    fill(s3, ["a/1", "a/b/2", "a/b/3", "b/::/4", "top"])

    for reply in (
        s3.get(list_type=2, delimiter=delimiter, prefix=prefix),
        s3.get(delimiter=delimiter, prefix=prefix),
    ):
        page = parse(reply)
        assert (keys, prefixes) == (page.keys, page.prefixes)
        assert (delimiter, prefix or None) == (page.fields["Delimiter"], page.fields["Prefix"])


def test_a_common_prefix_comes_once_over_all_pages(s3: Client) -> None:
    fill(s3, [f"{folder}/{n}" for folder in "abc" for n in range(5)] + ["b", "d"])
    pages = pages_v2(s3, 1, {"delimiter": "/"}, "")

    assert [["a/"], ["b"], ["b/"], ["c/"], ["d"]] == [page.names for page in pages]


def test_start_after_need_not_exist(s3: Client) -> None:
    fill(s3, ["a", "b", "c"])

    assert ["b", "c"] == keys_of(s3, start_after="a")
    assert ["b", "c"] == keys_of(s3, start_after="aa")
    assert [] == keys_of(s3, start_after="c")
    assert ["b", "c"] == parse(s3.get(marker="a")).keys


def test_a_token_counts_more_than_start_after(s3: Client) -> None:
    fill(s3, ["a", "b", "c"])
    token = parse(s3.get(list_type=2, max_keys=1)).fields["NextContinuationToken"]

    assert ["b", "c"] == keys_of(s3, continuation_token=token, start_after="b")


def test_a_token_outlives_its_key(s3: Client) -> None:
    fill(s3, ["a", "b", "c"])
    page = parse(s3.get(list_type=2, max_keys=2))
    s3.delete("b")
    s3.put("bb", b"x")

    assert ["bb", "c"] == keys_of(s3, continuation_token=page.fields["NextContinuationToken"])


@pytest.mark.parametrize("token", ["nonsense!", "ä", "////", "_w=="])
def test_a_token_that_we_did_not_make_is_refused(s3: Client, token: str) -> None:
    reply = s3.get(list_type=2, continuation_token=token)

    assert (400, "InvalidArgument") == (reply.status, reply.error)


def test_no_keys_may_be_asked_for(s3: Client) -> None:
    fill(s3, ["a", "b/c"])
    for query in ("list-type=2&max-keys=0", "max-keys=0", "list-type=2&max-keys=0&delimiter=/"):
        page = parse(s3.get(query=query))

        assert ([], False, "0") == (page.names, page.more, page.fields["MaxKeys"])


def test_a_page_has_a_thousand_names_at_most(server: Server, s3: Client) -> None:
    for number in range(1003):
        (server.data / s3.bucket / f"{number:04}").write_bytes(b"")
    page = parse(s3.get(list_type=2, max_keys=5000))
    rest = parse(s3.get(list_type=2, continuation_token=page.fields["NextContinuationToken"]))

    assert (1000, True, "1000") == (len(page.keys), page.more, page.fields["MaxKeys"])
    assert (["1000", "1001", "1002"], False) == (rest.keys, rest.more)
    assert 1000 == len(parse(s3.get()).keys)
    assert 1000 == len(keys_of(s3, max_keys=1000))


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "1_0", "+1", "99999999999999", " 1"])
def test_max_keys_is_a_number(s3: Client, text: str) -> None:
    for reply in (s3.get(list_type=2, max_keys=text), s3.get(max_keys=text)):
        assert (400, "InvalidArgument") == (reply.status, reply.error)


def test_names_are_encoded_when_asked_for(s3: Client) -> None:
    fill(s3, ["ä b+c/\x01&<", "z"])
    query = {"prefix": "ä ", "delimiter": "+", "start-after": "a b", "encoding-type": "url"}
    page = parse(s3.get(query={"list-type": "2", **query}))
    fields = {n: unquote_plus(page.fields[n] or "") for n in ("Prefix", "Delimiter", "StartAfter")}

    assert ["ä b+"] == page.prefixes
    assert {"Prefix": "ä ", "Delimiter": "+", "StartAfter": "a b"} == fields
    assert "url" == page.fields["EncodingType"]
    assert ["z", "ä b+c/\x01&<"] == keys_of(s3, encoding_type="url")


def test_a_slash_is_left_as_it_is_in_encoded_names(s3: Client) -> None:
    s3.put("a/b c", b"x")

    assert s3.get(list_type=2, encoding_type="url").element("Key") in ("a/b%20c", "a/b+c")


def test_names_are_escaped_when_they_are_not_encoded(s3: Client) -> None:
    keys = ["a&b", "a<b>", 'a"b', "a'b", "]]>"]
    fill(s3, keys)

    assert sorted(keys) == keys_of(s3)


@pytest.mark.parametrize("listing", ["prefix", "list-type=2", "versions", "uploads"])
def test_another_encoding_is_refused(s3: Client, listing: str) -> None:
    for value in ("base64", "URL", ""):
        reply = s3.get(query=f"{listing}&encoding-type={value}")
        assert (400, "InvalidArgument") == (reply.status, reply.error)
        assert ("encoding-type", value) == (
            reply.element("ArgumentName"), reply.element("ArgumentValue"))
    assert 200 == s3.get(query=f"{listing}&encoding-type=url").status


@pytest.mark.parametrize("value", ["1", "3", "", "two"])
def test_another_list_type_is_version_1(s3: Client, value: str) -> None:
    s3.put("k", b"x")
    reply = s3.get(query={"list-type": value})

    assert (200, ["k"], []) == (reply.status, reply.elements("Key"), reply.elements("KeyCount"))


def test_a_marker_within_what_is_folded_is_behind_all_of_it(s3: Client) -> None:
    """As AWS answers it [LocalStack's recordings], for objects, versions and uploads."""
    keys = ["f/sub/1", "f/sub/2", "f/x", "f/y"]
    fill(s3, keys)
    for key in keys:
        s3.post(key, b"", query="uploads")
    asked = {"prefix": "f/", "delimiter": "/"}
    objects = s3.get(**asked, marker="f/sub/1")
    versions = s3.get(query={**asked, "versions": "", "key-marker": "f/sub/1", "max-keys": "1"})
    folded = s3.get(query={**asked, "versions": "", "max-keys": "1"})
    uploads = s3.get(query={**asked, "uploads": "", "key-marker": "f/sub/1"})

    assert [["f/x", "f/y"], ["f/x"], ["f/x", "f/y"]] == [
        r.elements("Key") for r in (objects, versions, uploads)]
    assert ["null"] == versions.elements("NextVersionIdMarker")
    assert (["f/sub/"], []) == (folded.elements("NextKeyMarker"),
                                folded.elements("NextVersionIdMarker"))


def test_next_marker_comes_with_a_delimiter_only(s3: Client) -> None:
    fill(s3, ["a/1", "b", "c"])

    assert "NextMarker" not in parse(s3.get(max_keys=1)).fields
    assert "a/" == parse(s3.get(max_keys=1, delimiter="/")).fields["NextMarker"]
    assert ["b", "c"] == parse(s3.get(marker="a/", delimiter="/")).names
    assert "b" == parse(s3.get(marker="b")).fields["Marker"]


def test_a_deleted_key_is_not_listed_and_its_folder_neither(s3: Client) -> None:
    fill(s3, ["a/b", "c"])
    s3.delete("a/b")

    assert ["c"] == parse(s3.get(list_type=2, delimiter="/")).names


def test_a_missing_bucket_has_no_listing(server: Server) -> None:
    assert "NoSuchBucket" == server.client("test-key").get("/test-nowhere", list_type=2).error


def test_reads_of_a_bucket_ignore_names_they_do_not_know(s3: Client) -> None:
    s3.put("a", b"x")

    assert ["a"] == s3.get(query="Version=2006-03-01").elements("Key")  # libcloud sends it


def test_boto3_pages_through_odd_keys(s3: Client, boto: Any) -> None:
    keys = sorted(
        ["a b", "a+b", "ä", "a%20b", "a/b", "a//b", "x&y", "\U0001f600", "1\x01"], key=str.encode
    )
    fill(s3, keys)

    for operation in ("list_objects_v2", "list_objects"):
        pages = boto.get_paginator(operation).paginate(
            Bucket=s3.bucket, PaginationConfig={"PageSize": 2}
        )
        assert keys == [item["Key"] for page in pages for item in page["Contents"]]


def test_a_listing_made_again_says_what_one_made_for_the_first_time_says(tmp_path: Path) -> None:
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    for number in range(200):
        put(store, f"k{number:03}", b"x", "n")

    def listed(store: s3mini.Store) -> list[tuple[str, tuple[Any, ...]]]:
        store._entries.clear()
        page = s3mini.list_page(store, "", "", s3mini.Cursor(), 1000)
        return [(k, (e.size, e.etag, e.modified, tuple(e.checksums))) for k, e in page.objects]

    before = listed(store)
    put(store, "k001", b"y", "n")
    store.delete("k002", s3mini.no_check)
    store.update("k003", lambda old: old._replace(modified=7), s3mini.no_check)
    (tmp_path / "b/k004").write_bytes(b"by hand")
    (tmp_path / "b/k005").rename(tmp_path / "b/renamed")
    store.rename("k006", "k007", lambda old: None, s3mini.no_check)
    again = listed(store)

    assert listed(s3mini.Store(store.root, store.disk)) == again
    assert again == listed(store)
    assert {"k001", "k002", "k003", "k004", "k005", "k006", "renamed"} == {
        key for key, _ in set(before) ^ set(again)}


def test_a_listing_sees_what_a_restore_put_over_what_was_there(tmp_path: Path) -> None:
    """One of another day, of the same size and, as tar keeps it, of the same second."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    path, sidecar = tmp_path / "b/k", tmp_path / "b/.k.s3mini.json"
    backups = []
    for data in (b"first", b"other"):
        entry = put(store, "k", data, "n")._replace(mtime_ns=10**18)
        backups.append((data, s3mini.render_sidecar(s3mini.Sidecar("k", entry))))
    found = []
    for data, text in backups:
        path.write_bytes(data)
        sidecar.write_bytes(text)
        os.utime(path, ns=(10**18, 10**18))
        store._entries.clear()
        for _ in range(2):
            page = s3mini.list_page(store, "", "", s3mini.Cursor(), 10)
            found.append(page.objects[0][1].etag)

    first, other = (hashlib.md5(data).hexdigest() for data, _ in backups)
    assert [first, first, other, other] == found


def test_a_listing_after_a_restore_shows_what_came_since_the_backup(tmp_path: Path) -> None:
    """The folder's own time is set back as well, by cp -a, rsync -a and tar."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    for number in range(s3mini.FEW_NAMES):
        put(store, f"p/k{number:03}", b"x", "n")
    time.sleep(2 * s3mini.MTIME_TICK)

    def listed() -> list[str]:
        page = s3mini.list_page(store, "p/", "", s3mini.Cursor(), 1000)
        return [key for key, _ in page.objects]

    before = listed()
    backup = (tmp_path / "b/p").stat()
    put(store, "p/new", b"x", "n")
    os.utime(tmp_path / "b/p", ns=(backup.st_atime_ns, backup.st_mtime_ns))

    assert [*before, "p/new"] == listed()


@pytest.mark.parametrize("starts", [True, False])
def test_of_a_slow_disk_several_files_are_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: bool
) -> None:
    """And the page is the same: with folders, names that are escaped, and a file that goes."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    keys = [f"{folder}k{number:03}" for folder in ("", "a/", "b/%/") for number in range(100)]
    for key in keys:
        put(store, key, b"x", "n")
    fresh = s3mini.Store(store.root, store.disk)
    plain = s3mini.list_page(fresh, "", "", s3mini.Cursor(), 1000)
    store._entries.clear()
    real, lock, at_once, most = s3mini.sidecar_data, threading.Lock(), [0], [0]

    def read(folder: s3mini.Folder, name: str) -> bytes:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.001)
        if name.startswith(".k050") and threading.current_thread() is not threading.main_thread():
            raise s3mini.S3Error("AccessDenied")
        with lock:
            at_once[0] -= 1
        return real(folder, name)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(s3mini, "sidecar_data", read)
    monkeypatch.setattr(s3mini, "disk_reads", itertools.count().__next__)
    if not starts:
        monkeypatch.setattr(threading.Thread, "start", start)
    page = s3mini.list_page(store, "", "", s3mini.Cursor(), 1000)

    assert sorted(keys) == [key for key, _ in page.objects]
    assert plain.objects == page.objects
    assert most[0] >= 3 if starts else most[0] == 1


@pytest.mark.parametrize(
    ("query", "limit", "most"),
    [(("", ""), 1000, 300), (("", ""), 9, 10), (("k00", ""), 1000, 10), (("", "0"), 1000, 0),
     (("one/", ""), 1000, 0), (("", "/"), 1000, 100)],
)
def test_no_more_is_fetched_than_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: tuple[str, str], limit: int, most: int
) -> None:
    """Each file once, none behind the page's end or without its prefix, and not for a few."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    for key in [f"{folder}k{number:03}" for folder in ("", "a/", "b/") for number in range(100)]:
        put(store, key, b"x", "n")
    for number in range(50):
        put(store, f"one/{number}/k", b"x", "n")
    fetched: list[str] = []
    monkeypatch.setattr(s3mini.Store, "_fetch", lambda _, folder, name, key: fetched.append(key))
    monkeypatch.setattr(s3mini, "disk_reads", itertools.count().__next__)
    s3mini.list_page(store, *query, s3mini.Cursor(), limit)

    assert len(fetched) == len(set(fetched)) <= most
    assert all(key.startswith(query[0]) for key in fetched)
    assert most < 100 or len(fetched) > most // 2
    fetched.clear()
    monkeypatch.setattr(s3mini, "disk_reads", lambda: 7)
    s3mini.list_page(store, *query, s3mini.Cursor(), limit)
    assert [] == fetched


def test_a_later_page_shows_what_came_meanwhile_soon(s3: Client) -> None:
    """A folder is not read for each page while somebody writes; nor is it read only once."""
    keys = [f"k{number:03}" for number in range(100)]
    fill(s3, keys)
    first = parse(s3.get(list_type=2, max_keys=10))
    token, shown = first.fields["NextContinuationToken"], []
    for number in range(50):
        assert 200 == s3.put(f"k099-{number:02}", b"x").status
        again = s3.get(query={"list-type": "2", "continuation-token": token})
        shown = again.elements("Key")
        assert keys[10:] == [key for key in shown if key in keys]
        if f"k099-{number:02}" in shown:
            break
        time.sleep(0.05)

    assert [key for key in shown if key not in keys]


def test_the_second_page_has_the_names_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little time passes from a request's arrival to the look into the folder."""
    read: list[bool] = []
    real = s3mini.scan_names
    monkeypatch.setattr(s3mini, "scan_names", lambda *args: read.append(True) or real(*args))
    monkeypatch.setattr(s3mini, "AGAIN_AFTER", 10**6)
    with s3mini.start("media") as fake:
        s3 = Client(fake.endpoint.rpartition("/")[2], fake.access_key, fake.secret_key, "media")
        fill(s3, [f"k{number:03}" for number in range(s3mini.FEW_NAMES)])
        for number in range(10):
            read.clear()
            s3.put("new", b"x")
            first = parse(s3.get(list_type=2, max_keys=10))
            s3.put("newer", b"x")
            token = first.fields["NextContinuationToken"]
            s3.get(query={"list-type": "2", "continuation-token": token or ""})
            assert 1 == len(read), f"listing {number}"


# -- buckets ---------------------------------------------------------------------------------------


def test_a_key_lists_its_own_buckets_only(server: Server, bucket: str) -> None:
    mine = server.client("test-key").get("/").elements("Name")

    assert bucket in mine
    assert sorted(mine) == mine
    assert not {"media", "public", "other"} & set(mine)
    assert ["media"] == server.client("media-key").get("/").elements("Name")


def test_buckets_come_in_pages_and_with_a_prefix(
    server: Server, bucket: str, bucket_names: Any
) -> None:
    client = server.client("test-key")
    another = next(bucket_names)
    client.put("/" + another)
    first = client.get("/", max_buckets=1, prefix="test-")
    rest = client.get("/", prefix="test-", continuation_token=first.element("ContinuationToken"))

    assert 1 == len(first.elements("Name"))
    assert {bucket, another} <= set(first.elements("Name") + rest.elements("Name"))
    assert [bucket] == client.get("/", prefix=bucket).elements("Name")


def test_nobody_lists_buckets_without_a_key(server: Server) -> None:
    reply = server.client("").get("/")

    assert (403, "AccessDenied") == (reply.status, reply.error)


def test_a_bucket_says_where_it_is(s3: Client) -> None:
    location, head = s3.get(query="location"), s3.head()

    assert (200, b"") == (location.status, location.element("LocationConstraint").encode())
    assert (200, "us-east-1") == (head.status, head.headers["x-amz-bucket-region"])
