"""A key and its file: every legal key has a path of its own, and the path tells the key."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import resource
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from powercut import put

import s3mini

PARTS = [
    "", "", "a", "b", "A", ".", "..", "...", "%", "%-", "a%", "a%-", "%2E", "%2e", "%zz", "a%20b",
    " ",
    "a.", "a ", ".a", "\\", "a\\b", ":", "*", "con", "CON.txt", "lpt1", "nul.", "\0", "\n", "\x7f",
    "é",
    "e\u0301", "日本", "🙂", "~", "-", ".s3mini", ".S3Mini", ".s3mini.json", ".a.s3mini.json",
    ".A.S3MINI.JSON", "a.s3mini.json", "x" * 60, "x" * 241, "x" * 242, "é" * 121, ".", "..",
    "." * 300, "%" * 100, "\n" * 99, "🙂" * 61, "x" * 239 + ".", "x" * 239 + ".." + "y" * 9,
]  # fmt: skip
KNOWN = {  # what lies on disk is a promise                                        [DESIGN §1]
    "a": ["a"],
    "photos/cat.jpg": ["photos", "cat.jpg"],
    "a//b": ["a", "%", "b"],
    "dir/": ["dir", "%"],
    "/": ["%", "%"],
    "/a": ["%", "a"],
    ".": ["%2E"],
    "..": ["%2E."],
    "a/../b": ["a", "%2E.", "b"],
    "...": ["..."],
    ".hidden": [".hidden"],
    "100%": ["100%25"],
    "%41": ["%2541"],
    "a b+c": ["a b+c"],
    "a\\b": ["a\\b"],
    "a\nb": ["a%0Ab"],
    "\x7f": ["%7F"],
    "日本/é": ["日本", "é"],
    ".s3mini": ["%2Es3mini"],
    ".s3mini/bucket.json": ["%2Es3mini", "bucket.json"],
    ".S3MINI": ["%2ES3MINI"],
    ".cat.jpg.s3mini.json": ["%2Ecat.jpg.s3mini.json"],
    ".s3mini.json": ["%2Es3mini.json"],
    "cat.s3mini.json": ["cat.s3mini.json"],
    "x" * 241: ["x" * 241],
    "x" * 242: ["x" * 239 + "%-", "xxx"],
    "x" * 239 + "...": ["x" * 239 + "%-", "%2E.."],
    "é" * 121: ["é" * 119 + "%-", "éé"],
    "x" * 500 + "/y": ["x" * 239 + "%-", "x" * 239 + "%-", "x" * 22, "y"],
}


@pytest.fixture(scope="module")
def windows() -> Iterator[Any]:
    """The module as it would be on Windows, as far as names go."""
    spec = importlib.util.spec_from_file_location("s3mini_on_windows", s3mini.__file__)
    assert spec
    assert spec.loader
    module, name = importlib.util.module_from_spec(spec), os.name
    sys.modules[spec.name] = module
    try:
        os.name = "nt"
        spec.loader.exec_module(module)
    finally:
        os.name = name
    vars(module)["os"] = types.SimpleNamespace(name="nt")
    yield module
    del sys.modules[spec.name]


def random_keys(seed: int, count: int) -> list[str]:
    """Different keys of 1 to 1,024 bytes, many of them nasty."""
    source, keys = random.Random(seed), set()
    while len(keys) < count:
        parts = [source.choice(PARTS) for _ in range(source.randrange(1, 5))]
        if source.random() < 0.4:
            parts[0] += source.choice(PARTS) + chr(source.choice((37, 45, 46, 97, 233, 0x1F642)))
        if source.random() < 0.2:
            parts.append("".join(chr(source.randrange(1, 300)) for _ in range(source.randrange(9))))
        key = "/".join(parts)
        if 1 <= len(key.encode()) <= 1024:
            keys.add(key)
    return sorted(keys)


def test_a_path_is_the_promised_one() -> None:
    assert {key: s3mini.names_of_key(key) for key in KNOWN} == KNOWN


@pytest.mark.parametrize("seed", range(4))
def test_the_names_tell_the_key(seed: int) -> None:
    for key in random_keys(seed, 500):
        names = s3mini.names_of_key(key)

        assert key == s3mini.key_of_names(names), names
        assert key == s3mini.key_of_names([*names[:-1], names[-1] + "%"]), names


def test_different_keys_have_different_paths() -> None:
    keys = sorted({key for seed in range(4) for key in random_keys(seed, 500)})
    paths = set()
    for key in keys:
        *folders, name = s3mini.names_of_key(key)
        paths |= {("/".join([*folders, name])), "/".join([*folders, name + "%"])}

    assert 2 * len(keys) == len(paths)


@pytest.mark.parametrize("seed", range(4))
def test_every_name_is_a_good_file_name(seed: int) -> None:
    for key in random_keys(seed, 500):
        for name in s3mini.names_of_key(key):
            check_name(name, key)


def check_name(name: str, key: str) -> None:
    assert 0 < len(name.encode()) <= 241, key
    assert name not in (".", ".."), key
    assert not any(c in name for c in "/\0"), key
    assert not any(ord(c) < 32 or ord(c) == 127 for c in name), key
    assert name.lower() != ".s3mini", key
    assert not (name.startswith(".") and name.lower().endswith(".s3mini.json")), key
    assert len(f".{name}%.s3mini.json".encode()) <= 255, key


def test_every_path_stays_below_its_bucket() -> None:
    for key in random_keys(9, 500):
        path = os.path.normpath(os.path.join("/data/bucket", *s3mini.names_of_key(key)))

        assert path.startswith("/data/bucket/"), key
        assert len(path.split("/")) == 3 + len(s3mini.names_of_key(key)), key


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_path_from_key_to_names_is_the_slow_one(seed: int) -> None:
    source = random.Random(seed)
    keys = random_keys(seed + 20, 600)
    keys += ["".join(source.choice("ab./%é~-") for _ in range(source.randrange(70))) for _ in keys]
    keys += [f"d/{c * size}/{c}" for c in "aé中😀" for size in (59, 60, 61, 80, 120, 240, 241, 242)]
    fast = 0
    for key in keys:
        slow = [name for segment in key.split("/") for name in s3mini.escape_segment(segment)]
        fast += s3mini.is_plain(key)

        assert slow == s3mini.names_of_key(key)

    assert 50 < fast < len(keys)


DEEP = ["/" * 1023 + "x", "a/" * 511 + "b", "\x01/" * 511 + "c"]


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """As many as `ulimit -n` often gives, less those of a thousand connections."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3 * s3mini.OPEN_LEVELS, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, old)


@pytest.mark.parametrize("key", DEEP, ids=lambda key: repr(key[:2]))
def test_a_key_of_a_thousand_folders_is_as_good_as_any(
    tmp_path: Path, few_descriptors: None, key: str
) -> None:
    """Written, listed, counted, checked and pruned with few descriptors and no recursion."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False), quota=10**9)
    store.create()
    wanted = sorted([key, key[:-1] + "y", key[:600] + "/in the middle", "plain"])
    for each in wanted:
        put(store, each, b"content", "name")
    pages = [s3mini.list_page(store, "", d, s3mini.Cursor(), 100) for d in ("", "/")]
    below = s3mini.list_page(store, key[:900], "", s3mini.Cursor(), 100)

    assert wanted == [k for k, _ in pages[0].objects]
    assert ([key.partition("/")[0] + "/"], ["plain"]) == (
        pages[1].prefixes, [k for k, _ in pages[1].objects])
    assert sorted(k for k in wanted if k.startswith(key[:900])) == [k for k, _ in below.objects]
    assert 4 * len(b"content") == store.held()
    assert [] == list(s3mini.Inspector(store, True, False, lambda *_: None).run())
    for each in wanted:
        store.delete(each, s3mini.no_check)
    assert [".s3mini"] == os.listdir(store.root)


def test_many_names_too_long_for_the_disk_are_listed(tmp_path: Path, few_descriptors: None) -> None:
    """Each goes on in a folder of its own."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(durable=False))
    store.create()
    wanted = [f"{number:03}" + "x" * 300 for number in range(4 * s3mini.OPEN_LEVELS)]
    for key in wanted:
        put(store, key, b"content", "name")
    page = s3mini.list_page(store, "", "", s3mini.Cursor(), 1000)

    assert wanted == [key for key, _ in page.objects]


@pytest.mark.parametrize(
    "folder", [".s3mini", ".S3mini", ".\u017f3mini", ".\u017f3M\u0131ni".lower()]
)
def test_a_name_that_a_disk_may_take_for_our_room_is_escaped(folder: str) -> None:
    """A disk that folds case may take U+017F for an s, as NTFS and APFS do."""
    if folder.casefold() == ".s3mini":
        assert [folder] != s3mini.names_of_key(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["."],
        [".."],
        ["a", ""],
        ["%2e"],
        ["%2E%2E"],
        ["%41"],
        ["%2F"],
        ["%zz"],
        ["a%2"],
        ["%FF"],
        ["a\x01"],
        ["a%-"],
        ["a%-", "b"],
        ["x" * 239 + "%-"],
        [".s3mini"],
        [".s3mini", "tmp", "x"],
        [".a.s3mini.json"],
        ["a%%"],
        ["a%", "b"],
        ["x" * 242],
        ["caf\udce9"],
        [".caf\udce9"],
        ["x" * 300 + "\udce9"],
        ["\udce9", "a"],
        ["%2541\udce9"],
    ],
    ids=lambda v: repr(v)[:24],
)
def test_a_file_that_no_key_maps_to_is_no_object(names: list[str]) -> None:
    assert s3mini.key_of_names(names) is None


@pytest.mark.parametrize("seed", range(3))
def test_any_names_are_those_of_a_key_or_of_none(seed: int) -> None:
    source = random.Random(seed)
    good = [s3mini.names_of_key(key) for key in random_keys(seed, 500)]
    for _ in range(1500):
        names = list(source.choice(good))
        at = source.randrange(len(names))
        cut = source.randrange(len(names[at]) + 1)
        names[at] = (
            names[at][:cut]
            + source.choice(["%", "%-", ".", "a", "\udc80", "%2E"])
            + names[at][cut:]
        )

        key = s3mini.key_of_names(names)

        if key is not None:
            natural = s3mini.names_of_key(key)
            assert names in (natural, [*natural[:-1], natural[-1] + "%"])
            assert key.encode()


# --- Windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_on_windows_the_names_tell_the_key_too(windows: Any, seed: int) -> None:
    for key in random_keys(seed, 500):
        names = windows.names_of_key(key)

        assert key == windows.key_of_names(names), names
        for name in names:
            check_name(name, key)
            assert not any(c in name for c in '<>:"|?*\\'), key


def test_on_windows_no_name_is_a_device_or_loses_its_end(windows: Any) -> None:
    keys = [key for seed in range(3) for key in random_keys(seed, 500)]
    for key in [
        *keys,
        "con",
        "aux.txt",
        "Com1.a.b",
        "a.",
        "a ",
        ". ",
        ".a.",
        ".a ",
        "nul.",
        "prn ",
    ]:
        for name in windows.names_of_key(key):
            assert not name.endswith((".", " ")), key
            assert name.split(".")[0].lower() not in ("con", "prn", "aux", "nul", "com1", "lpt1"), (
                key
            )


def test_on_windows_a_plain_key_is_its_own_path(windows: Any) -> None:
    for key in ("a", "photos/cat.jpg", "日本/é", ".hidden", "console", "a b"):
        assert key.split("/") == windows.names_of_key(key)


# --- Sidecars -------------------------------------------------------------------------------------


def random_entry(source: random.Random) -> s3mini.Entry:
    def text() -> str:
        return "".join(source.choice('ab"\\\n\0é日🙂\x7f/%') for _ in range(source.randrange(9)))

    def mapping() -> dict[str, str]:
        return {text(): text() for _ in range(source.randrange(4))}

    return s3mini.Entry(
        size=source.randrange(2**43),
        etag=text(),
        md5=text(),
        modified=source.randrange(2**33),
        mtime_ns=source.randrange(-(2**62), 2**62),
        ino=source.randrange(2**64),
        headers=mapping(),
        metadata=mapping(),
        tags=mapping(),
        checksums=mapping(),
        checksum_type=text(),
        parts=[f"{source.randrange(2**33)} {source.randbytes(16).hex()}"
               + source.choice(["", " AAAA/+=="]) for _ in range(source.randrange(4))],
        acl=text(),
        upload=text(),
        version_id=text(),
    )


def test_a_sidecar_is_read_as_it_was_written() -> None:
    source = random.Random(1)
    for key in random_keys(1, 500):
        previous = random_entry(source) if source.random() < 0.5 else None
        sidecar = s3mini.Sidecar(key, random_entry(source), previous)

        data = s3mini.render_sidecar(sidecar)

        assert sidecar == s3mini.parse_sidecar(data)
        assert data.endswith(b"\n")
        assert {"v", "key", "current", "previous"} == set(json.loads(data))


def file_of(entry: s3mini.Entry, ino: int) -> os.stat_result:
    """What a data file of that generation looks like."""
    info = os.stat_result((0o100640, ino, 1, 1, 0, 0, entry.size, 0, 0, 0),
                          {"st_mtime_ns": entry.mtime_ns, "st_ctime_ns": 0})
    assert (ino, entry.size, entry.mtime_ns) == (info.st_ino, info.st_size, info.st_mtime_ns)
    return info


def usual_entry(source: random.Random) -> s3mini.Entry:
    """What clients store: an MD5 or an upload's ETag, one checksum at most."""
    md5 = source.randbytes(16).hex()
    checksums = source.choice([{}, {"CRC32": "AAAA"}, {"CRC64NVME": "AAAA"}])
    return random_entry(source)._replace(
        etag=md5 + source.choice(["", "-1", "-10000"]), md5=md5, modified=source.randrange(2**32),
        mtime_ns=source.randrange(2**62), checksums=checksums,
        checksum_type=source.choice(["FULL_OBJECT", "COMPOSITE"]) if checksums else "")


@pytest.mark.parametrize("seed", range(3))
def test_a_listing_says_what_the_sidecar_says_or_leaves_it_to_the_slow_path(seed: int) -> None:
    source, fast = random.Random(seed), 0
    for key in random_keys(seed, 500):
        kind = source.choice([usual_entry, random_entry])
        current = kind(source)
        previous = source.choice([None, random_entry(source), current._replace(ino=7, etag="p")])
        data = s3mini.render_sidecar(s3mini.Sidecar(key, current, previous))
        of_file = source.choice([current, current, previous or current, random_entry(source)])
        info = file_of(of_file, source.choice([of_file.ino, 1]))
        asked = source.choice([key, key, key, key + "x"])

        listed, slow = s3mini.listed_of(data, asked, info), s3mini.parse_sidecar(data)
        wanted = slow.fitting(info)

        if listed:
            assert wanted
            assert asked == slow.key
            assert s3mini.Listed(wanted.size, wanted.etag, wanted.modified,
                                 tuple(wanted.checksums), wanted.checksum_type) == listed
            fast += 1
        elif kind is usual_entry and asked == key and json.dumps(key) == f'"{key}"':
            assert info.st_ino != current.ino or not current.fits(info), "it has to be fast"
    assert fast > 20


def test_what_a_listing_said_is_known_of_the_same_file_only() -> None:
    source, known = random.Random(1), s3mini.ListedCache()
    for key in random_keys(2, 300):
        entry = usual_entry(source)
        info = file_of(entry, entry.ino)
        listed = s3mini.listed_of(s3mini.render_sidecar(s3mini.Sidecar("k", entry)), "k", info)
        assert listed
        assert known.find(info, key) is None

        known.add(info, key, listed)

        assert listed == known.find(info, key)
        assert known.find(info, key + "x") is None
        for other in (file_of(entry._replace(size=entry.size + 1), entry.ino),
                      file_of(entry._replace(mtime_ns=entry.mtime_ns + 1), entry.ino),
                      file_of(entry, entry.ino + s3mini.CACHED_LISTED)):
            assert known.find(other, key) is None


def test_a_listing_remembers_no_checksum_that_it_does_not_know() -> None:
    entry = usual_entry(random.Random(1))
    info, known = file_of(entry, entry.ino), s3mini.ListedCache()

    for strange in (("CRC16",), "FULL_OBJECT"), (("CRC32",), "HALF"):
        known.add(info, "k", s3mini.Listed(1, entry.md5, 1, *strange))
    known.add(info, "k", s3mini.Listed(1, entry.md5, 2**32, (), ""))
    of_seconds = file_of(entry._replace(mtime_ns=10**18), entry.ino)
    known.add(of_seconds, "k", s3mini.Listed(entry.size, entry.md5, 1, (), ""))

    assert known.find(info, "k") is None
    assert known.find(of_seconds, "k") is None  # an inode used again could look the same


def test_a_sidecar_is_indented_text() -> None:
    sidecar = s3mini.Sidecar("é", s3mini.Entry(1, "e", "m", 2))

    assert (
        s3mini.render_sidecar(sidecar)
        .decode()
        .startswith('{\n "v": 1,\n "key": "é",\n "current": {')
    )


def good_sidecar() -> dict[str, Any]:
    entry = s3mini.Entry(1, "e", "m", 2)._asdict()
    return {"v": 1, "key": "k", "current": entry, "previous": None}


def test_a_sidecar_of_a_later_version_is_understood() -> None:
    value = good_sidecar()
    value["later"], value["current"]["later"] = {"a": 1}, [2]
    for name in ("ino", "headers", "upload", "version_id"):  # and one of an earlier version
        del value["current"][name]

    sidecar = s3mini.parse_sidecar(json.dumps(value).encode())

    assert s3mini.Sidecar("k", s3mini.Entry(1, "e", "m", 2)) == sidecar


def wrong_sidecars() -> dict[str, bytes]:
    def changed(**more: Any) -> bytes:
        return json.dumps({**good_sidecar(), **more}).encode()

    def entry(**more: Any) -> bytes:
        return changed(current={**good_sidecar()["current"], **more})

    incomplete = {n: v for n, v in good_sidecar()["current"].items() if n != "size"}
    return {
        "empty": b"",
        "no JSON": b"{",
        "not UTF-8": b'{"key": "\xff"}',
        "zeros": bytes(100),
        "a list": b"[]",
        "a number": b"7",
        "null": b"null",
        "a string": b'"x"',
        "an empty object": b"{}",
        "deep": b"[" * 200_000,
        "deep inside": changed().replace(b'"k"', b"[" * 100_000),
        "a long number": changed().replace(b'"size": 1', b'"size": ' + b"1" * 5000),
        "no key": json.dumps({n: v for n, v in good_sidecar().items() if n != "key"}).encode(),
        "no current": json.dumps(
            {n: v for n, v in good_sidecar().items() if n != "current"}
        ).encode(),
        "current null": changed(current=None),
        "current a list": changed(current=[]),
        "current incomplete": changed(current=incomplete),
        "previous a number": changed(previous=5),
        "previous false": changed(previous=False),
        "key a number": changed(key=5),
        "key null": changed(key=None),
        "size text": entry(size="1"),
        "size a fraction": entry(size=1.5),
        "size not a number": entry(size=float("nan")),
        "size true": entry(size=True),
        "etag null": entry(etag=None),
        "headers a list": entry(headers=[]),
        "headers of numbers": entry(headers={"content-type": 5}),
        "tags of lists": entry(tags={"a": []}),
        "parts of numbers": entry(parts=[5]),
        "a part that rotted": entry(parts=["5x42880 " + "0" * 32]),
        "a part cut short": entry(parts=["5242880"]),
        "a time far away": entry(modified=10**12),
    }


@pytest.mark.parametrize("name", wrong_sidecars())
def test_a_sidecar_that_makes_no_sense_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 whatever it says
        s3mini.parse_sidecar(wrong_sidecars()[name])


@pytest.mark.parametrize("name", wrong_sidecars())
def test_a_listing_believes_no_sidecar_that_makes_no_sense(name: str) -> None:
    data, info = wrong_sidecars()[name] + b"\n", file_of(s3mini.Entry(1, "e", "m", 2), 0)

    assert s3mini.listed_of(data, "k", info) is None


def test_a_listing_believes_no_sidecar_of_ours_with_a_wrong_value() -> None:
    entry = s3mini.Entry(1, "0" * 32, "0" * 32, 2, 3, 4, checksums={"CRC32": "AAAA"})
    good, info = s3mini.render_sidecar(s3mini.Sidecar("k", entry)).decode(), file_of(entry, 4)
    wrong = [('"modified": 2', '"modified": 999999999999'), ('"size": 1', '"size": ' + "1" * 5000),
             ('"v": 1', '"v": 2'), ('"k"', '7'), ('"size": 1', '"size": "1"'),
             ('"modified": 2', '"modified": 2.5'), ('"modified": 2', '"modified": -2'),
             ('"mtime_ns": 3', '"mtime_ns": null'), (entry.etag, "G" * 32), ("AAAA", '"'),
             ('"checksums": {', '"checksums": ['), ('"checksum_type": ""', '"checksum_type": 1'),
             ("null\n}\n", "nul"), ("null\n}\n", ""), ("headers", "heads")]

    assert s3mini.listed_of(good.encode(), "k", info)
    for old, new in wrong:
        assert old in good
        assert s3mini.listed_of(good.replace(old, new).encode(), "k", info) is None, (old, new)
    assert s3mini.listed_of(good.encode()[:-40] + b"\xff\n}\n", "k", info) is None


def test_a_sidecar_with_any_bytes_changed_is_read_or_a_value_error() -> None:
    source = random.Random(1)
    good = s3mini.render_sidecar(s3mini.Sidecar("k", random_entry(source), random_entry(source)))
    read = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(len(data))
            data[at : at + source.randrange(3)] = source.choice(
                [b"", b"{", b"}", b"[", b'"', b"1", b"null", b"\xff", b"\\ud800", b","]
            )
        try:
            sidecar = s3mini.parse_sidecar(bytes(data))
        except ValueError:
            continue
        read += 1
        assert isinstance(sidecar.current.size, int)

    assert 0 < read < 3000
