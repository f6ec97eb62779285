"""The payload, decoded and verified while it is read, and every way for it to be wrong."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import io
import random
import threading
import zlib
from collections.abc import Mapping
from typing import Callable, Optional

import pytest

import s3mini

STAMP, SCOPE = "20130524T000000Z", "20130524/us-east-1/s3/aws4_request"
SECRET, SEED = "secret", "5" * 64
UNSIGNED, HEX = "UNSIGNED-PAYLOAD", hashlib.sha256(b"").hexdigest()
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = SIGNED + "-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
MODES = [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER]
DATA = random.Random(7).getrandbits(8 * 40_000).to_bytes(40_000, "big")
CRC32 = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()


class Trickle:
    """A connection that gives what it likes, at most `size` bytes."""

    def __init__(self, data: bytes, seed: Optional[int] = None):
        self._file, self._random = io.BytesIO(data), random.Random(seed)
        self._whole = seed is None

    def read(self, size: int) -> bytes:
        some = size if self._whole else self._random.choice((1, 2, 3, 100, 5000, size))
        return self._file.read(min(size, some))


def sign(text: str) -> str:
    key = b"AWS4" + SECRET.encode()
    for part in SCOPE.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def signed_request(payload: str, seed: str = SEED) -> s3mini.Signed:
    """What the verifier gives for a request whose signature was `seed`."""
    key = s3mini.signing_key(SECRET, SCOPE)
    return s3mini.Signed("key", payload, STAMP, SCOPE, seed, key)


def encode(
    chunks: list[bytes], mode: str, trailers: Optional[Mapping[str, str]] = None
) -> list[bytes]:
    """The frames of a body: one for each chunk, the last one with the trailer."""
    frames, previous = [], SEED
    for data in [*chunks, b""]:
        extension = ""
        if mode != UNSIGNED_TRAILER:
            parts = ("AWS4-HMAC-SHA256-PAYLOAD", STAMP, SCOPE, previous, HEX)
            previous = sign("\n".join([*parts, hashlib.sha256(data).hexdigest()]))
            extension = f";chunk-signature={previous}"
        frames.append(f"{len(data):x}{extension}\r\n".encode() + data + (b"\r\n" if data else b""))
    if mode == SIGNED:
        trailers = {}
    elif trailers is None:
        trailers = {"x-amz-checksum-crc32": crc32(b"".join(chunks))}
    lines = [f"{name}:{value}" for name, value in trailers.items()]
    if mode == SIGNED_TRAILER:
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        parts = ("AWS4-HMAC-SHA256-TRAILER", STAMP, SCOPE, previous, digest)
        lines.append("x-amz-trailer-signature:" + sign("\n".join(parts)))
    frames[-1] += "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
    return frames


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def cut(source: random.Random, data: bytes) -> list[bytes]:
    """The data in chunks of 8 KiB or more, the last of what is left."""
    chunks = []
    while data:
        size = source.choice((8192, 8193, 10_000, 65_536))
        chunks.append(data[:size])
        data = data[size:]
    return chunks


def open_body(
    wire: bytes, payload: str = UNSIGNED, *, seed: Optional[int] = None, streams: bool = True,
    framing: Optional[str] = None, **headers: str,
) -> s3mini.Body:  # fmt: skip
    """The body of a PUT with these headers (_ for -); decoded_length tells another one."""
    sent = {n.replace("_", "-"): v for n, v in headers.items()}
    if payload in MODES:
        sent = {"content-encoding": "aws-chunked", **sent}
        sent.setdefault("x-amz-decoded-content-length", str(len(DATA)))
        if payload != SIGNED:
            sent.setdefault("x-amz-trailer", "x-amz-checksum-crc32")
    lines = ["PUT /b/k HTTP/1.1", "Host: x", *[f"{n}: {v}" for n, v in sent.items() if v != "-"]]
    lines += [framing if framing is not None else f"Content-Length: {len(wire)}"]
    head = s3mini.parse_head(("\r\n".join(filter(None, lines)) + "\r\n\r\n").encode("latin-1"))
    source = s3mini.open_source(head, Trickle(wire, seed), lambda data: None)
    return s3mini.open_body(head, source, signed_request(payload), streams)


def refusal(run: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(s3mini.S3Error) as caught:
        run()
    return caught.value.code, caught.value.status


def read_pieces(body: s3mini.Body, source: random.Random) -> bytes:
    pieces = []
    while data := body.read(source.choice((1, 7, 8192, 100_000))):
        pieces.append(data)
    return b"".join(pieces)


INCOMPLETE, MISMATCH = ("IncompleteBody", 400), ("SignatureDoesNotMatch", 403)
TRAILER_WRONG, BAD_DIGEST = ("MalformedTrailerError", 400), ("BadDigest", 400)
INVALID, NO_LENGTH = ("InvalidRequest", 400), ("MissingContentLength", 411)
NO_HASH = ("InvalidArgument", 400)


# --- aws-chunked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_chunks_are_decoded_whatever_their_sizes_and_the_packets(mode: str, seed: int) -> None:
    source = random.Random(seed)
    data = DATA[: source.choice((0, 1, 8192, 8193, 30_000, 40_000))]
    wire = b"".join(encode(cut(source, data), mode))

    body = open_body(wire, mode, seed=seed, x_amz_decoded_content_length=str(len(data)))

    assert data == read_pieces(body, source)
    assert (len(data), hashlib.md5(data).hexdigest()) == (body.size, body.md5)
    assert body.checksums == ({} if mode == SIGNED else {"CRC32": crc32(data)})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(6))
def test_chunks_within_chunked_transfer_are_decoded(mode: str, seed: int) -> None:
    """aws-chunked without Content-Length: GHSA-v2ch-c8v8-fgr7 was a panic."""
    source = random.Random(seed)
    wire = transfer_chunked(source, b"".join(encode(cut(source, DATA), mode)))

    body = open_body(wire, mode, seed=seed, framing="Transfer-Encoding: chunked")

    assert DATA == read_pieces(body, source)


@pytest.mark.parametrize("mode", MODES)
def test_a_body_cut_anywhere_is_incomplete(mode: str) -> None:
    wire = b"".join(encode([DATA[:8192], DATA[8192:9000]], mode))
    ends = [*range(0, 120, 3), *range(8192, 8500, 7), *range(len(wire) - 200, len(wire))]
    for end in ends:
        short = open_body(wire[:end], mode, x_amz_decoded_content_length="9000")
        assert refusal(short.read_all) == INCOMPLETE, end
        broken = open_body(
            wire[:end],
            mode,
            x_amz_decoded_content_length="9000",
            framing=f"Content-Length: {len(wire)}",
        )
        assert refusal(broken.read_all) == INCOMPLETE, end


def wrong_frames(mode: str) -> dict[str, tuple[list[bytes], tuple[str, int]]]:
    """Ways to be wrong that every mode knows."""
    good = encode([DATA[:10_000], DATA[10_000:30_000], DATA[30_000:]], mode)
    first, second, third, last = good
    head, _, rest = first.partition(b"\r\n")
    swapped = MISMATCH if mode != UNSIGNED_TRAILER else BAD_DIGEST
    flipped = first[:500] + bytes([first[500] ^ 1]) + first[501:]
    return {
        "size not hexadecimal": ([b"g" + first, second, third, last], INCOMPLETE),
        "size empty": ([first[4:], second, third, last], INCOMPLETE),
        "size with 0x": ([b"0x" + first, second, third, last], INCOMPLETE),
        "size with a sign": ([b"+" + first, second, third, last], INCOMPLETE),
        "size with a blank": ([b" " + first, second, third, last], INCOMPLETE),
        "size with an underscore": ([b"2_" + first[1:], second, third, last], INCOMPLETE),
        "size of 17 digits": ([b"0" * 13 + first, second, third, last], INCOMPLETE),
        "size too small": ([b"270f" + first[4:], second, third, last], INCOMPLETE),
        "size too large": ([b"2711" + first[4:], second, third, last], INCOMPLETE),
        "size huge": ([b"ffffffffffffffff" + first[4:], second, third, last], INCOMPLETE),
        "line too long": ([b"0" * 9000 + first, second, third, last], INCOMPLETE),
        "no line end behind a size": ([head + rest, second, third, last], INCOMPLETE),
        "bare line feed": ([head + b"\n" + rest, second, third, last], INCOMPLETE),
        "no line end behind a chunk": ([first[:-2], second, third, last], INCOMPLETE),
        "bytes behind a chunk": ([first[:-2], b"x\r\n", second, third, last], INCOMPLETE),
        "a byte changed": ([flipped, second, third, last], swapped),
        "chunks in another order": ([second, first, third, last], swapped),
        "bytes behind the end": ([first, second, third, last, b"x"], INCOMPLETE),
        "a line behind the end": ([*good, b"\r\n"], INCOMPLETE),
        "the end twice": ([*good, last], INCOMPLETE),
        "no end": ([first, second, third], INCOMPLETE),
        "unknown extension": ([b"2710;x=y\r\n" + rest, second, third, last], INCOMPLETE),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", wrong_frames(SIGNED))
def test_chunks_that_are_wrong_are_refused(mode: str, name: str) -> None:
    frames, expected = wrong_frames(mode)[name]
    for seed in (None, 1):
        code = refusal(open_body(b"".join(frames), mode, seed=seed).read_all)

        # where two things are wrong either may be told
        assert code in (expected, INCOMPLETE if name.startswith("size too") else expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 8192])
def test_bytes_behind_the_end_are_found_in_a_packet_of_their_own(mode: str, size: int) -> None:
    packets = [io.BytesIO(b"".join(encode([DATA], mode))), io.BytesIO(b"x" * size)]

    class Packets:
        def read(self, most: int) -> bytes:
            return packets[0].read(most) or packets[1].read(most)

    signed = signed_request(mode) if mode != UNSIGNED_TRAILER else None
    reader = s3mini.AwsChunkedReader(Packets(), signed, mode != SIGNED)

    def read_all() -> None:
        while reader.read(100_000):
            pass

    assert INCOMPLETE == refusal(read_all)


@pytest.mark.parametrize("mode", [SIGNED, SIGNED_TRAILER])
@pytest.mark.parametrize(
    "name", ["dropped", "repeated", "unsigned", "upper case", "other seed", "last"]
)
def test_a_chain_of_signatures_with_another_link_is_refused(mode: str, name: str) -> None:
    chunks = [DATA[:10_000], DATA[10_000:20_000], DATA[20_000:]]
    frames, expected = encode(chunks, mode), MISMATCH
    if name == "dropped":
        del frames[1]
    elif name == "repeated":
        frames.insert(1, frames[1])
    elif name == "unsigned":
        frames[1], expected = encode(chunks, UNSIGNED_TRAILER)[1], INCOMPLETE
    elif name == "upper case":
        head, _, rest = frames[1].partition(b"=")
        frames[1], expected = head + b"=" + rest[:64].upper() + rest[64:], INCOMPLETE
    elif name == "other seed":
        other, source = signed_request(mode, "6" * 64), Trickle(b"".join(frames))
        reader = s3mini.AwsChunkedReader(source, other, mode == SIGNED_TRAILER)
        assert MISMATCH == refusal(lambda: list(iter(lambda: reader.read(9999), b"")))
        return
    else:
        at = frames[-1].index(b"=") + 5
        frames[-1] = (
            frames[-1][:at] + (b"0" if frames[-1][at] != 48 else b"1") + frames[-1][at + 1 :]
        )

    assert expected == refusal(open_body(b"".join(frames), mode).read_all)


def test_an_unsigned_body_has_no_chunk_signatures() -> None:
    frames = encode([DATA], SIGNED)[:1] + encode([DATA], UNSIGNED_TRAILER)[1:]

    assert INCOMPLETE == refusal(open_body(b"".join(frames), UNSIGNED_TRAILER).read_all)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("sizes", "accepted"),
    [
        ((8192, 8192, 1), True),
        ((8192, 8191), True),
        ((1,), True),
        ((8191, 8192), False),
        ((8192, 100, 8192), False),
        ((1, 1), False),
    ],
    ids=str,
)
def test_only_the_last_chunk_may_be_short(
    mode: str, sizes: tuple[int, ...], accepted: bool
) -> None:
    chunks, at = [], 0
    for size in sizes:
        chunks.append(DATA[at : at + size])
        at += size
    body = open_body(
        b"".join(encode(chunks, mode)), mode, x_amz_decoded_content_length=str(sum(sizes))
    )

    if accepted:
        assert DATA[:at] == body.read_all()
    else:
        assert ("InvalidChunkSizeError", 403) == refusal(body.read_all)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", ["39999", "40001", "0"])
def test_the_decoded_length_must_be_that_of_the_data(mode: str, length: str) -> None:
    wire = b"".join(encode([DATA], mode))
    body = open_body(wire, mode, x_amz_decoded_content_length=length)

    assert INCOMPLETE == refusal(body.read_all)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", ["-", "", "x", "-1", "+1", "1_0", "\xb2", "1" * 19, "4e4"])
def test_the_decoded_length_must_be_told_as_a_number(mode: str, length: str) -> None:
    wire = b"".join(encode([DATA], mode))

    assert NO_LENGTH == refusal(lambda: open_body(wire, mode, x_amz_decoded_content_length=length))


# --- Trailers -------------------------------------------------------------------------------------

NAME, OTHER = "x-amz-checksum-crc32", "x-amz-checksum-sha1"
SHA1 = base64.b64encode(hashlib.sha1(DATA).digest()).decode()

TRAILERS = {  # name: (trailers, the error)
    "missing": ({}, TRAILER_WRONG),
    "another": ({OTHER: SHA1}, TRAILER_WRONG),
    "one more": ({NAME: CRC32, OTHER: SHA1}, TRAILER_WRONG),
    "one of another kind": ({NAME: CRC32, "x-amz-meta-a": "b"}, TRAILER_WRONG),
    "wrong": ({NAME: "AAAAAA=="}, BAD_DIGEST),
    "empty": ({NAME: ""}, INVALID),
    "no base64": ({NAME: "!!!!!!=="}, INVALID),
    "too long": ({NAME: SHA1}, INVALID),
    "not padded": ({NAME: CRC32.rstrip("=")}, INVALID),
    "with a blank in it": ({NAME: CRC32[:3] + " " + CRC32[3:]}, TRAILER_WRONG),
    "without a name": ({"": CRC32}, TRAILER_WRONG),
    "with a blank in its name": ({NAME + " ": CRC32}, TRAILER_WRONG),
    "too many": ({f"x-amz-meta-{i}": "x" for i in range(99)}, TRAILER_WRONG),
    "enormous": ({NAME: "x" * 300}, TRAILER_WRONG),
}


@pytest.mark.parametrize("mode", [SIGNED_TRAILER, UNSIGNED_TRAILER])
@pytest.mark.parametrize("name", TRAILERS)
def test_a_trailer_that_is_not_the_announced_one_is_refused(mode: str, name: str) -> None:
    trailers, expected = TRAILERS[name]
    assert DATA == open_body(b"".join(encode([DATA], mode, {NAME: CRC32})), mode).read_all()

    wire = b"".join(encode([DATA], mode, trailers))

    assert expected == refusal(open_body(wire, mode).read_all)


@pytest.mark.parametrize("mode", [SIGNED_TRAILER, UNSIGNED_TRAILER])
@pytest.mark.parametrize("old", [b"==\r\n", b"x-amz-checksum", b"crc32:"])
def test_a_trailer_that_comes_twice_or_without_a_colon_is_refused(mode: str, old: bytes) -> None:
    line = f"{NAME}:{CRC32}\r\n".encode()
    new = {
        b"==\r\n": b"==\r\n" + line,
        b"x-amz-checksum": line + b"x-amz-checksum",
        b"crc32:": b"crc32 ",
    }[old]
    frames = encode([DATA], mode)
    assert old in frames[-1]
    frames[-1] = frames[-1].replace(old, new, 1)

    assert TRAILER_WRONG == refusal(open_body(b"".join(frames), mode).read_all)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda end: end.replace(b"signature:", b"signature:0"), MISMATCH),
        (lambda end: end[: end.index(b"x-amz-trailer")] + b"\r\n", MISMATCH),
        (lambda end: end.replace(CRC32.encode(), b"AAAAAA=="), MISMATCH),
        (
            lambda end: end.replace(b"x-amz-trailer-signature", b"x-amz-trailer-nothing"),
            TRAILER_WRONG,
        ),
        (
            lambda end: end.replace(
                b"x-amz-trailer-signature", b"x-amz-trailer-signature:0\r\nx-amz-trailer-signature"
            ),
            TRAILER_WRONG,
        ),
        (lambda end: end[:-2] + f"{OTHER}:{SHA1}\r\n\r\n".encode(), TRAILER_WRONG),
    ],
    ids=["changed", "missing", "of another value", "misspelt", "twice", "not the last"],
)
def test_the_signature_of_a_trailer_must_be_right(
    change: Callable[[bytes], bytes], expected: tuple[str, int]
) -> None:
    frames = encode([DATA], SIGNED_TRAILER)
    frames[-1] = change(frames[-1])

    got = refusal(open_body(b"".join(frames), SIGNED_TRAILER).read_all)

    # a trailer that should not be there may be refused before its signature
    assert got in (expected, TRAILER_WRONG if expected == MISMATCH else MISMATCH)


def test_signed_chunks_without_a_trailer_have_none() -> None:
    frames = encode([DATA], SIGNED)
    frames[-1] = frames[-1][:-2] + f"{NAME}:{CRC32}\r\n\r\n".encode()

    assert TRAILER_WRONG == refusal(open_body(b"".join(frames), SIGNED).read_all)


def test_a_trailer_in_capitals_and_with_blanks_is_understood() -> None:
    frames = encode([DATA], UNSIGNED_TRAILER)
    frames[-1] = frames[-1].replace(b"x-amz-checksum-crc32:", b"X-Amz-Checksum-CRC32: ")

    assert DATA == open_body(b"".join(frames), UNSIGNED_TRAILER).read_all()


@pytest.mark.parametrize(
    ("payload", "headers", "expected"),
    [
        (UNSIGNED_TRAILER, {"x_amz_trailer": "x-amz-checksum-md5"}, INVALID),
        (UNSIGNED_TRAILER, {"x_amz_trailer": "x-amz-meta-a"}, INVALID),
        (UNSIGNED_TRAILER, {"x_amz_trailer": "x-amz-checksum-crc32,x-amz-checksum-sha1"}, INVALID),
        (UNSIGNED_TRAILER, {"x_amz_checksum_crc32": CRC32}, INVALID),
        (SIGNED, {"x_amz_trailer": "x-amz-checksum-crc32"}, TRAILER_WRONG),
        (UNSIGNED, {"x_amz_trailer": "x-amz-checksum-crc32"}, TRAILER_WRONG),
        ("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", {}, NO_HASH),
        ("STREAMING-UNSIGNED-PAYLOAD", {}, NO_HASH),
        ("streaming-unsigned-payload-trailer", {}, NO_HASH),
        ("", {}, NO_HASH),
        ("0" * 63, {}, NO_HASH),
        ("g" * 64, {}, NO_HASH),
        (UNSIGNED, {"content_encoding": "gzip, aws-chunked"}, INVALID),
    ],
)
def test_what_a_head_promises_must_make_sense(
    payload: str, headers: dict[str, str], expected: tuple[str, int]
) -> None:
    assert expected == refusal(lambda: open_body(b"x", payload, **headers))


@pytest.mark.parametrize("mode", MODES)
def test_only_objects_are_uploaded_in_chunks(mode: str) -> None:
    assert INVALID == refusal(lambda: open_body(b"x", mode, streams=False))


def test_signed_chunks_need_a_version_4_signature() -> None:
    head = s3mini.parse_head(
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nx-amz-decoded-content-length: 1\r\n\r\n"
    )

    assert INVALID == refusal(
        lambda: s3mini.open_body(head, Trickle(b"x"), s3mini.Signed("key", SIGNED), True)
    )


# --- Transfer-Encoding: chunked -------------------------------------------------------------------


def transfer_chunked(source: random.Random, data: bytes) -> bytes:
    out = b""
    while data:
        size = source.choice((1, 2, 3000, 9000, 70_000))
        out += f"{len(data[:size]):X}\r\n".encode() + data[:size] + b"\r\n"
        data = data[size:]
    return out + b"0\r\n\r\n"


@pytest.mark.parametrize("seed", range(12))
def test_chunked_transfer_gives_back_what_belongs_to_the_next_request(seed: int) -> None:
    source = random.Random(seed)
    data, behind = DATA[: source.randrange(20_000)], b"GET / HTTP/1.1\r\n\r\n"
    stream, given_back = Trickle(transfer_chunked(source, data) + behind, seed), io.BytesIO()
    reader = s3mini.ChunkedReader(stream, lambda left: given_back.write(left) and None)  # type: ignore[func-returns-value]
    pieces = []

    while piece := reader.read(source.choice((1, 100, 100_000))):
        pieces.append(piece)

    assert data == b"".join(pieces)
    assert b"" == reader.read(1)
    rest = b"".join(iter(functools.partial(stream.read, 100), b""))
    assert behind == given_back.getvalue() + rest


BAD_REQUEST = ("BadRequest", 400)
WRONG_TRANSFER = {
    "no hexadecimal": (b"g\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "empty size": (b"\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "with 0x": (b"0x1\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "with a sign": (b"-1\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "with a blank": (b" 1\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "with an underscore": (b"0_1\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "of 17 digits": (b"0" * 16 + b"1\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "with an extension": (b"1;a=b\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "too small": (b"1\r\nxy\r\n0\r\n\r\n", BAD_REQUEST),
    "too large": (b"3\r\nx\r\n0\r\n\r\n", BAD_REQUEST),
    "without a line end": (b"1\r\nx0\r\n\r\n", BAD_REQUEST),
    "with a trailer": (b"1\r\nx\r\n0\r\na: b\r\n\r\n", BAD_REQUEST),
    "bare line feeds": (b"1\nx\n0\n\n", INCOMPLETE),
    "breaking off": (b"5\r\nx", INCOMPLETE),
    "breaking off before the end": (b"1\r\nx\r\n", INCOMPLETE),
    "breaking off in the end": (b"1\r\nx\r\n0\r\n", INCOMPLETE),
    "line too long": (b"0" * 9000 + b"1\r\nx\r\n", INCOMPLETE),
}


@pytest.mark.parametrize("name", WRONG_TRANSFER)
@pytest.mark.parametrize("seed", [None, 1])
def test_chunked_transfer_that_is_wrong_is_refused(name: str, seed: Optional[int]) -> None:
    wire, expected = WRONG_TRANSFER[name]
    body = open_body(wire, seed=seed, framing="Transfer-Encoding: chunked")

    assert expected == refusal(body.read_all)


@pytest.mark.parametrize("name", WRONG_TRANSFER)
def test_chunked_transfer_that_was_wrong_once_has_no_end(name: str) -> None:
    """Else what is left would be drained, and bytes of the body run as the next request."""
    given_back: list[bytes] = []
    reader = s3mini.ChunkedReader(Trickle(WRONG_TRANSFER[name][0]), given_back.append)

    def read_to_the_end() -> None:
        while reader.read(100):
            pass

    for _ in range(3):
        refusal(read_to_the_end)
    assert [] == given_back
    assert not reader.done


# --- Plain bodies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_plain_body_is_its_content_length(seed: int) -> None:
    source = random.Random(seed)
    behind = b"GET / HTTP/1.1\r\n\r\n"
    stream = Trickle(DATA + behind, seed)
    reader = s3mini.LengthReader(stream, len(DATA))
    body = s3mini.Body(reader, s3mini.Promise(length=len(DATA)))

    assert DATA == read_pieces(body, source)
    assert behind == b"".join(iter(functools.partial(stream.read, 100), b""))
    assert (len(DATA), hashlib.md5(DATA).hexdigest()) == (body.size, body.md5)


def test_a_plain_body_that_breaks_off_is_incomplete() -> None:
    body = open_body(DATA, framing=f"Content-Length: {len(DATA) + 1}")

    assert INCOMPLETE == refusal(body.read_all)


def test_an_object_needs_a_length_and_a_document_does_not() -> None:
    assert NO_LENGTH == refusal(lambda: open_body(b"", framing=""))
    assert b"" == open_body(b"", framing="", streams=False).read_all()
    assert b"" == open_body(b"").read_all()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


GOOD_HEADERS = [
    {"content_md5": md5(DATA)},
    {"x_amz_checksum_crc32": CRC32},
    {"x_amz_checksum_sha1": SHA1},
    {"x_amz_checksum_sha256": base64.b64encode(hashlib.sha256(DATA).digest()).decode()},
    {"x_amz_checksum_crc32": CRC32, "x_amz_sdk_checksum_algorithm": "CRC32"},
    {"x_amz_sdk_checksum_algorithm": "MD5"},
    {"x_amz_checksum_mode": "ENABLED", "x_amz_checksum_algorithm": "CRC32"},
    {"content_md5": md5(DATA), "x_amz_checksum_sha1": SHA1},
]


@pytest.mark.parametrize("headers", GOOD_HEADERS, ids=" ".join)
@pytest.mark.parametrize("payload", [UNSIGNED, hashlib.sha256(DATA).hexdigest()])
def test_what_a_head_promises_is_verified(payload: str, headers: dict[str, str]) -> None:
    body = open_body(DATA, payload, **headers)

    assert DATA == body.read_all()
    for name, value in headers.items():
        algorithm = name.rpartition("_")[2].upper()
        if name.startswith("x_amz_checksum_") and algorithm in s3mini.ALGORITHMS:
            assert {algorithm: value} == body.checksums


WRONG_PROMISES = [
    (hashlib.sha256(b"other").hexdigest(), {}, ("XAmzContentSHA256Mismatch", 400)),
    (UNSIGNED, {"content_md5": md5(b"other")}, BAD_DIGEST),
    (UNSIGNED, {"x_amz_checksum_crc32": crc32(b"other")}, BAD_DIGEST),
    (UNSIGNED, {"x_amz_checksum_crc32c": crc32(DATA)}, BAD_DIGEST),
    (UNSIGNED, {"x_amz_checksum_crc64nvme": "AAAAAAAAAAA="}, BAD_DIGEST),
    (UNSIGNED, {"x_amz_checksum_sha1": "A" * 27 + "="}, BAD_DIGEST),
    (UNSIGNED, {"x_amz_checksum_sha256": "A" * 43 + "="}, BAD_DIGEST),
]


@pytest.mark.parametrize(("payload", "headers", "expected"), WRONG_PROMISES)
def test_a_promise_that_is_not_kept_is_found_at_the_end(
    payload: str, headers: dict[str, str], expected: tuple[str, int]
) -> None:
    assert expected == refusal(open_body(DATA, payload, **headers).read_all)
    chunked = open_body(
        transfer_chunked(random.Random(1), DATA),
        payload,
        framing="Transfer-Encoding: chunked",
        **headers,
    )
    assert expected == refusal(chunked.read_all)


@pytest.mark.parametrize(("payload", "headers", "expected"), WRONG_PROMISES)
def test_a_body_that_was_wrong_never_ends_well(
    payload: str, headers: dict[str, str], expected: tuple[str, int]
) -> None:
    """read() gives b"" only when all was verified: whoever reads on must not take it for good."""
    body = open_body(DATA, payload, **headers)
    refusal(body.read_all)

    assert expected[1] == refusal(body.read)[1]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content_md5": "x"}, ("InvalidDigest", 400)),
        ({"content_md5": ""}, ("InvalidDigest", 400)),
        ({"content_md5": hashlib.md5(DATA).hexdigest()}, ("InvalidDigest", 400)),
        ({"content_md5": md5(DATA).rstrip("=")}, ("InvalidDigest", 400)),
        ({"content_md5": "\xe9" * 24}, ("InvalidDigest", 400)),
        ({"x_amz_checksum_crc32": "x"}, INVALID),
        ({"x_amz_checksum_crc32": "AAAAAB=="}, INVALID),  # bits behind the last byte
        ({"x_amz_checksum_crc32": CRC32 + CRC32}, INVALID),
        ({"x_amz_checksum_crc32": CRC32, "x_amz_checksum_sha1": SHA1}, INVALID),
        ({"x_amz_checksum_md5": md5(DATA)}, ("NotImplemented", 501)),
        ({"x_amz_checksum_xxhash64": "AAAAAAAAAAA="}, ("NotImplemented", 501)),
        ({"x_amz_sdk_checksum_algorithm": "XXHASH"}, ("NotImplemented", 501)),
        ({"x_amz_sdk_checksum_algorithm": "CRC32"}, INVALID),
        ({"x_amz_sdk_checksum_algorithm": "CRC32", "x_amz_checksum_sha1": SHA1}, INVALID),
    ],
    ids=str,
)
def test_a_promise_that_cannot_be_read_is_refused_at_once(
    headers: dict[str, str], expected: tuple[str, int]
) -> None:
    assert expected == refusal(lambda: open_body(DATA, **headers))


def test_a_checksum_may_be_wanted_that_nobody_promised() -> None:
    body = open_body(DATA)
    body.want("CRC32")

    body.read_all()

    assert {"CRC32": CRC32} == body.checksums


def test_a_body_has_its_limit() -> None:
    too_large = ("EntityTooLarge", 400)
    limit = len(DATA) - 1
    known, unknown = s3mini.Promise(length=len(DATA)), s3mini.Promise()

    assert too_large == refusal(lambda: s3mini.Body(Trickle(DATA), known, limit))
    assert too_large == refusal(s3mini.Body(Trickle(DATA), unknown, limit).read_all)
    assert DATA == s3mini.Body(Trickle(DATA), known, limit + 1).read_all()
    assert too_large == refusal(lambda: open_body(b"", framing=f"Content-Length: {5 * 2**30 + 1}"))
    assert too_large == refusal(
        lambda: open_body(b"", UNSIGNED_TRAILER, x_amz_decoded_content_length=str(5 * 2**30 + 1))
    )


def test_more_data_than_was_announced_is_refused_before_it_is_all_read() -> None:
    """Else a body of one announced byte could fill the disk up to the limit of an object."""
    wire = b"".join(encode([DATA[:8192]] * 100, UNSIGNED_TRAILER, {NAME: CRC32}))
    body = open_body(wire, UNSIGNED_TRAILER, x_amz_decoded_content_length="1")
    read = 0

    def read_all() -> None:
        nonlocal read
        while data := body.read(8192):
            read += len(data)

    assert INCOMPLETE == refusal(read_all)
    assert read <= 2 * 8192


def test_a_document_has_its_own_limit() -> None:
    body = open_body(DATA)

    assert ("MaxMessageLengthExceeded", 400) == refusal(lambda: body.read_all(limit=1000))


# --- Checksums ------------------------------------------------------------------------------------

PUBLISHED = [  # [RFC 3720 §B.4] [the CRC catalogue's check values] [FIPS 180]
    ("CRC32", b"123456789", "cbf43926"),
    ("CRC32", b"", "00000000"),
    ("CRC32C", b"123456789", "e3069283"),
    ("CRC32C", b"", "00000000"),
    ("CRC32C", bytes(32), "8a9136aa"),
    ("CRC32C", b"\xff" * 32, "62a8ab43"),
    ("CRC32C", bytes(range(32)), "46dd794e"),
    ("CRC32C", bytes(range(31, -1, -1)), "113fdb5c"),
    ("CRC64NVME", b"123456789", "ae8b14860a799888"),
    ("CRC64NVME", b"", "0000000000000000"),
    ("CRC64NVME", bytes(4096), "6482d367eb22b64e"),
    ("CRC64NVME", b"\xff" * 4096, "c0ddba7302eca3ac"),
    ("SHA1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
    ("SHA256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
]


@pytest.mark.parametrize(("algorithm", "data", "digest"), PUBLISHED)
def test_a_checksum_has_its_published_value(algorithm: str, data: bytes, digest: str) -> None:
    checksum = s3mini.ALGORITHMS[algorithm]()
    checksum.update(data)

    assert digest == checksum.digest().hex()


def test_every_algorithm_is_tested_here() -> None:
    assert set(s3mini.ALGORITHMS) == {name for name, _, _ in PUBLISHED}


CRCS = [s3mini.CRC32, s3mini.CRC32C, s3mini.CRC64NVME]


@pytest.mark.parametrize("crc", CRCS, ids=["CRC32", "CRC32C", "CRC64NVME"])
def test_the_fast_checksum_equals_the_plain_one(crc: s3mini.Crc) -> None:
    source = random.Random(3)
    for size in [4095, 4096, 4097, 8191, 16_385] + [
        source.randrange(4096, 20_000) for _ in range(8)
    ]:
        data = source.getrandbits(8 * size).to_bytes(size, "big")

        assert crc.plain(data, crc.mask) ^ crc.mask == crc.of(data)
        assert crc.plain(data, 0) == crc.plain(crc.fold(data), 0)


def test_our_crc32_is_the_librarys() -> None:
    for size in (0, 1, 5000, 40_000):
        assert zlib.crc32(DATA[:size]) == s3mini.CRC32.of(DATA[:size])


@pytest.mark.parametrize("crc", CRCS, ids=["CRC32", "CRC32C", "CRC64NVME"])
def test_a_long_message_in_pieces_has_the_checksum_of_the_whole(crc: s3mini.Crc) -> None:
    source = random.Random(7)
    data = source.getrandbits(8 * 900_000).to_bytes(900_000, "big")
    running, left = s3mini.RunningCrc(crc), data
    while left:
        size = source.choice((1, 4095, 4096, 10_000, 262_144))
        running.update(left[:size])
        left = left[size:]

    value = int.from_bytes(running.digest(), "big")
    assert value == crc.of(data)
    assert crc is not s3mini.CRC32 or value == zlib.crc32(data)


@pytest.mark.parametrize("algorithm", s3mini.ALGORITHMS)
def test_a_checksum_does_not_depend_on_the_pieces(algorithm: str) -> None:
    source = random.Random(5)
    whole = s3mini.ALGORITHMS[algorithm]()
    whole.update(DATA)
    for _ in range(5):
        parts, left = s3mini.ALGORITHMS[algorithm](), DATA
        while left:
            size = source.choice((0, 1, 100, 4095, 4096, 9999))
            parts.update(left[:size])
            left = left[size:]

        assert whole.digest() == parts.digest()


@pytest.mark.parametrize("algorithm", s3mini.COMBINABLE)
def test_the_checksums_of_parts_make_that_of_the_whole(algorithm: str) -> None:
    source = random.Random(5)
    crc = s3mini.COMBINABLE[algorithm]
    for _ in range(10):
        cuts = sorted(source.randrange(len(DATA)) for _ in range(source.randrange(5)))
        parts = [DATA[a:b] for a, b in zip([0, *cuts], [*cuts, len(DATA)])]
        sums = [(base64_of(crc, part), len(part)) for part in parts]

        assert base64_of(crc, DATA) == s3mini.combine_full(algorithm, sums)


def base64_of(crc: s3mini.Crc, data: bytes) -> str:
    return base64.b64encode(crc.of(data).to_bytes(crc.width // 8, "big")).decode()


def test_the_crc_of_zeros_far_apart_is_found_without_reading_them() -> None:
    zeros = s3mini.CRC32C.of(bytes(1 << 20))
    whole = functools.reduce(lambda a, _: s3mini.CRC32C.combine(a, zeros, 1 << 20), range(4), 0)

    assert s3mini.CRC32C.of(bytes(4 << 20)) == whole


def test_a_composite_checksum_is_that_of_the_parts_checksums() -> None:
    parts = [hashlib.sha256(DATA[:100]).digest(), hashlib.sha256(DATA[100:]).digest()]
    expected = base64.b64encode(hashlib.sha256(b"".join(parts)).digest()).decode() + "-2"

    assert expected == s3mini.combine_composite(
        "SHA256", [base64.b64encode(part).decode() for part in parts]
    )


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("AAAAAA==", 4, bytes(4)),
        ("AAAAAA==", 3, None),
        ("AAAAAA", 4, None),
        ("AAAAAA==\n", 4, None),
        (" AAAAAA==", 4, None),
        ("AAAA AA==", 4, None),
        ("AAAAAB==", 4, None),
        ("-_-_AA==", 4, None),
        ("", 0, b""),
        ("é", 1, None),
    ],
)
def test_base64_has_one_spelling(text: str, size: int, expected: Optional[bytes]) -> None:
    assert expected == s3mini.parse_base64(text, size)


@pytest.mark.parametrize("seed", range(4))
def test_the_md5_behind_the_reader_is_the_md5_of_all(seed: int) -> None:
    """More bodies at a time than there are threads, in pieces large and small."""
    source = random.Random(seed)
    bodies = [(s3mini.Md5Behind(), hashlib.md5()) for _ in range(12)]
    for _ in range(150):
        behind, plain = source.choice(bodies)
        piece = source.randbytes(source.choice([1, 100, s3mini.SMALL - 1, s3mini.SMALL, 300_000]))
        behind.update(piece)
        plain.update(piece)

    assert [plain.digest() for _, plain in bodies] == [behind.digest() for behind, _ in bodies]
    assert bodies[0][1].digest() == bodies[0][0].digest()


def test_a_body_that_no_thread_can_hash_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no more threads; once it has, all is well."""
    data = bytes(s3mini.SMALL)

    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    s3mini.hashers.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        with pytest.raises(s3mini.S3Error) as why:
            s3mini.Md5Behind().update(data)
    behind = s3mini.Md5Behind()
    behind.update(data)

    assert "ServiceUnavailable" == why.value.code
    assert hashlib.md5(data).digest() == behind.digest()
