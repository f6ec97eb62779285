#!/usr/bin/env python3
"""s3mini: S3 in one Python file. Python 3.9 or newer, standard library only.

    python3 s3mini.py                           first run: writes buckets.ini, then serves it
    python3 s3mini.py serve --config FILE       what a service runs
    python3 s3mini.py dev [BUCKET ...]          a throw-away server with well-known keys

An object is an ordinary file below the data folder with a JSON sidecar beside it. A write is seen
only when both are whole on disk: a crash at any moment leaves the old object or the new one.

Contents. A section uses only the sections above it; tests/test_layout.py holds us to that.
To learn the program start at 11, the map. To follow one request read 12, 11, 10, 9.

     1. Limits          the numbers the server obeys: unit and source
     2. Errors          S3Error and the table of S3 error codes
     3. Configuration   buckets.ini -> Config, one OPTIONS table
     4. Wire            bytes -> Head, Response -> bytes            pure
     5. Documents       XML in, XML out                             pure
     6. Checksums       CRC32C, CRC64NVME and the rest              pure
     7. Signatures      who signed this request, and is it so       pure
     8. Bodies          the payload, verified while it is read
     9. Storage         keys -> files
    10. Operations      one function per S3 operation
    11. Routes          (method, scope, selector) -> operation and what it needs
    12. Server          sockets, threads, workers, log
    13. Commands        the command line
    14. Fake            s3mini.start() for tests

Words. key: an object's name, str. path: a place on our disk. target: the request line's path and
query, still percent-encoded. etag: without quotes, except on the wire. An entry is what a sidecar
says of one generation of a data file. Sizes are bytes, times are seconds since 1970 UTC, header
names are lower case inside. Sources in comments: [AWS: page] its API reference, [RFC n §s],
[boto3 1.34] a client we watched, [ran] we tried it, [measured], [ours] our own decision.

SPDX-License-Identifier: MIT
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import functools
import hashlib
import heapq
import hmac
import http.server
import itertools
import json
import mimetypes
import os
import re
import secrets
import select
import selectors
import signal
import socket
import stat
import struct
import sys
import threading
import time
import weakref
import zlib
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Callable, NamedTuple, NoReturn, Optional, Protocol, TypeVar, Union
from urllib.parse import quote, unquote, unquote_to_bytes

try:
    import fcntl
except ImportError:  # Windows: the fake and dev run there, in one process
    HAS_FLOCK = False
else:
    HAS_FLOCK = True

# A test that freezes time does so in each module that has the functions by name [freezegun]. What
# we say and check has its time; we wait by one that goes on, and judge a disk's times by their own.
if sys.platform == "win32":
    monotonic, disk_time = functools.partial(time.monotonic), functools.partial(time.time)
else:  # not frozen either where we are imported while time.monotonic is
    monotonic = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    disk_time = functools.partial(time.clock_gettime, time.CLOCK_REALTIME)

__version__ = "0.1"

# ==================================================================================================
# 1. Limits
# ==================================================================================================

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

MAX_HEAD = 64 * KIB  # bytes, request line and all headers                     [ours; AWS: 8 KB]
MAX_PAIRS = 1000  # names in a query                                           [ours; S3: a dozen]
MAX_KEY = 1024  # bytes of UTF-8                                               [AWS: object keys]
MAX_KEPT = 6 * KIB  # bytes of content-type, cache-control and the like        [AWS: 8 KB a head]
MAX_METADATA = 2 * KIB  # bytes, names and values of x-amz-meta-*              [AWS: PutObject]
MAX_PUT = 5 * GIB  # bytes, one PutObject or one part                          [AWS: quotas]
MAX_OBJECT = 5 * TIB  # bytes, a multipart object                              [AWS: quotas]
MAX_PARTS = 10_000  # part numbers are 1..10,000                               [AWS: quotas]
MIN_PART = 5 * MIB  # bytes, every part but the last                           [AWS: quotas]
MAX_DOCUMENT = 2 * MIB  # bytes, an XML request body: 10,000 parts, 1,000 keys [ours]
MAX_ELEMENTS = 120_000  # of such a document: 10,000 parts of up to 10 each    [ours]
MAX_DEPTH = 16  # nested XML elements                                          [ours]
MAX_CORS = 64 * KIB  # bytes, a CORS configuration                             [AWS: PutBucketCors]
MAX_CORS_HEADERS = 100  # that a page asks for                                 [ours]
MAX_KEYS = 1000  # names on one page of a listing, keys in one DeleteObjects   [AWS]
MAX_SIDECAR = 8 * MIB  # bytes, a sidecar: two entries of 10,000 parts         [ours]
MAX_FORM = 20 * KIB  # bytes, fields of a POST form before the file            [AWS: POST]
MAX_TAGS = 10  # tags of an object                                             [AWS: tagging]
MAX_BUCKET_TAGS = 50  # tags of a bucket                                       [AWS: tagging]

PIECE = 256 * KIB  # bytes, one read of a body or a file                       [measured]
HASH_AHEAD = 2  # pieces of a body that wait for the slowest hash              [measured]
FREE_BEHIND = 4 * MIB  # bytes of a file that is replaced, then it is freed later [measured]
CLOSES_BEHIND = 8  # such files at a time; the next one's answer waits         [ours]
WRITE_AHEAD = 2 * MIB  # bytes of a body, then the disk begins to write them   [measured]
SMALL = 64 * KIB  # bytes, a body sent in one write with its head              [measured]
MIN_CHUNK = 8 * KIB  # bytes, every aws-chunked chunk but the last            [AWS: sigv4-streaming]
DATES = range(-30_610_224_000, 253_402_300_800)  # the years 1000 to 9999      [RFC 3339]
MAX_DATE = 40  # characters of an ISO date                                     [ours]
MAX_LOGGED = 450  # characters of what a client chose, if each is to be escaped [ours]
MAX_LINE = 4 * KIB  # bytes, a chunk's head or a trailer line                  [ours]
MAX_SHOWN = 20  # characters of a mistake in buckets.ini: longer ones may be a secret [ours]

CLOCK_SKEW = 15 * 60  # seconds between the client's clock and ours            [AWS: SigV4]
MAX_EXPIRES = 7 * 24 * 3600  # seconds, a presigned URL                        [AWS: SigV4 query]

HEAD_SECONDS = 15  # for a whole head, once its first byte is here             [ours]
IDLE_SECONDS = 75  # for the next request on a kept connection                 [nginx's default]
LINGER_SECONDS = 0.5  # a thread waits for it, before it gives the connection back [ours]
AHEAD_SECONDS = 0.001  # a worker with more connections leaves a new one to others [ours]
ACCEPTS_IN_ROW = 16  # connections, before others have their turn              [ours]
ABREAST = 16  # connections in one round of receiving, answering, sending      [measured]
QUICK_IN_ROW = 8  # quick requests a thread answers before it does             [ours]
BODY_SECONDS = 30  # for the next bytes of a body, in or out                   [ours]
MIN_RATE = KIB  # bytes a second, in all, of a body that takes longer          [ours]
DRAIN_BYTES = 16 * MIB  # of an unread body read before closing                [ours]
DRAIN_SECONDS = 3  # in all, for the same                                      [ours]
DRAIN_READS = 2000  # of an unread body in chunks                              [ours]
FAKE_SECONDS = 1  # for requests in flight when a fake stops                   [ours]
STOP_SECONDS = 30  # for requests in flight after SIGTERM                      [ours]
PATIENCE_SECONDS = 5  # a slow answer starts with white space after this       [ours; AWS: Complete]
TIDY_SECONDS = 3600  # between looks for uploads that nobody finished          [ours]
OPEN_FILES = 65536  # descriptors of a process, where the system lets it       [ours]
BACKLOG = 1024  # connections the kernel may hold for us                       [ours]

FREE_SECONDS = 0.5  # a reading of the disk's free space is good for this      [ours]
MIN_INODES = 64  # are kept free on a disk that counts them                    [ours]
FAILURE_BURST = 30  # wrong signatures from one address, then                  [ours]
FAILURE_SECONDS = 2  # one more try after this                                 [ours]
MAX_ADDRESSES = 10_000  # whose failures are remembered                        [ours]
ADOPT_BYTES = 64 * MIB  # a file put there by hand is hashed up to this        [ours]
MAX_NAME = 241  # bytes of a file name: 255 less ".", "%" and ".s3mini.json"   [Linux: NAME_MAX]
REFUSAL_SECONDS = 10  # for these the log does not say again why connections are refused [ours]
SECOND_LOOK_SECONDS = 1  # `check` looks again at what a writer may be at      [ours]
FOREVER = 100 * 365 * 24 * 3600  # seconds: versions of a bucket without a section [ours]
AT_ONCE = 8  # commits of a bucket in one process; of more, one at a time works [measured]
LOCKS = 256  # locks of a bucket                                               [ours]
OPEN_LEVELS = 32  # folders, one in the other, that are held open at once      [ours]
ROUNDS = 8  # attempts of a reader or writer that meets changing folders       [ours]
MTIME_TICK = 0.05  # seconds within which a folder's mtime may miss a change   [Linux: 4 ms]
AGAIN_AFTER = 10  # times as long as it takes, a changing folder is listed anew [ours]
AT_A_GLANCE = 8  # names of a listing between looks whether the disk is read for them [ours]
FETCHED = 256  # sidecars that are fetched ahead where it is                   [ours]
FETCHERS = 4  # threads that fetch them                                        [measured]
ITEMS_AT_ONCE = 64  # of a folder, between looks how far it is read            [ours]
FEW_NAMES = 64  # a folder with fewer is read anew for each page               [ours]
CACHED_NAMES = 64 * MIB  # of the names in folders that were listed            [ours]
NAMES_COST = 600  # bytes that each of them takes besides its names            [measured]
CACHED_LISTED = 131_071  # objects, 55 bytes each; a prime: every other number is a file's [ours]
CACHED_STORES = 1024  # buckets made through the API, of which one knows       [ours]
CACHED_ENTRIES = 4096  # sidecars kept in memory                               [ours]
CACHED_CONTENTS = 2 * MIB  # of small objects kept in memory                   [ours]
CONTENT_COST = 320  # bytes that each of them takes besides its own            [measured]

# ==================================================================================================
# 2. Errors
# ==================================================================================================

ERRORS: dict[str, tuple[int, str]] = {
    # code: (status, the message a client sees)                               [AWS: error responses]
    "NotModified": (304, "Not Modified"),
    "AuthorizationHeaderMalformed": (400, "The authorization header you provided is invalid."),
    "AuthorizationQueryParametersError": (400, "A query parameter of the signature is not valid."),
    "BadDigest": (400, "The checksum you specified did not match what we received."),
    "BadRequest": (400, "An error occurred when parsing the HTTP request."),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size."),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size."),
    "IncompleteBody": (400, "The request body does not have the number of bytes it announced."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidDigest": (400, "The Content-MD5 you specified is not valid."),
    "InvalidLocationConstraint": (400, "The specified location-constraint is not valid"),
    "InvalidPart":
        (400, "One or more of the specified parts could not be found. The part might not have been "
              "uploaded, or the specified entity tag may not match the part's entity tag."),
    "InvalidPartOrder": (400, "The list of parts was not in ascending order."),
    "InvalidPolicyDocument": (400, "The content of the form does not meet the policy's form."),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidToken": (400, "There are no session tokens here: unset AWS_SESSION_TOKEN."),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "InvalidWriteOffset": (400, "The write offset does not match the current object size."),
    "KeyTooLongError": (400, "Your key is too long."),
    "MalformedACLError": (400, "The ACL you provided was not well-formed."),
    "MalformedPOSTRequest": (400, "The body of your POST request is not multipart/form-data."),
    "MalformedTrailerError": (400, "The trailer is missing, not announced or not well-formed."),
    "MalformedXML": (400, "The XML you provided was not well-formed or did not validate."),
    "MaxMessageLengthExceeded": (400, "Your request was too big."),
    "MaxPostPreDataLengthExceeded":
        (400, "Your POST request's fields before the file are too large."),
    "MetadataTooLarge": (400, "Your metadata headers exceed the maximum allowed metadata size."),
    "RequestHeaderSectionTooLarge": (400, "Your request header section exceeds the maximum size."),
    "MissingSecurityHeader": (400, "Your request was missing a required header"),
    "RequestTimeout": (400, "Your socket connection was not read from or written to in time."),
    "UnexpectedContent": (400, "This request does not support content"),
    "XAmzContentSHA256Mismatch": (400, "x-amz-content-sha256 does not match what was received."),
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs that change access."),
    "AccessDenied": (403, "Access Denied"),
    "AccessForbidden": (403, "CORSResponse: This CORS request is not allowed."),
    "InvalidAccessKeyId": (403, "The access key Id you provided does not exist in our records."),
    "InvalidChunkSizeError": (403, "Only the last chunk may have less than 8192 bytes."),
    "RequestTimeTooSkewed": (403, "The request's time and the server's time differ too much."),
    "SignatureDoesNotMatch":
        (403, "The request signature we calculated does not match the signature you provided. "
              "Check your key and signing method."),
    "QuotaExceeded": (403, "The bucket's quota does not allow that many bytes."),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchPublicAccessBlockConfiguration":
        (404, "The public access block configuration was not found"),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchWebsiteConfiguration": (404, "The bucket does not have a website configuration"),
    "ObjectLockConfigurationNotFoundError":
        (404, "Object Lock configuration does not exist for this bucket"),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "ReplicationConfigurationNotFoundError": (404, "The replication configuration was not found"),
    "ServerSideEncryptionConfigurationNotFoundError":
        (404, "The server side encryption configuration was not found"),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchUpload":
        (404, "The specified upload does not exist. The upload ID may be invalid, or the upload "
              "may have been aborted or completed."),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "BucketAlreadyExists": (409, "The requested bucket name is not available."),
    "BucketAlreadyOwnedByYou": (409, "You have this bucket already; its tags stay as they are."),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "OperationAborted": (409, "A conflicting operation is in progress. Please try again."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "NotImplemented": (501, "A header or parameter asks for something that is not done here."),
    "SlowDown": (503, "Please reduce your request rate."),
    "ServiceUnavailable": (503, "The server has no room for another request. Please try again."),
    "HttpVersionNotSupported": (505, "The HTTP version specified is not supported."),
    "InsufficientStorage": (507, "There is not enough free space on the server's disk."),
}


class S3Error(Exception):
    """An answer that is an S3 error. `code` must be in ERRORS: a typo is a KeyError at once.

    `fields` become elements of the error document; `headers` go into the answer's head.
    """

    def __init__(self, code: str, message: str = "", headers: Optional[Mapping[str, str]] = None,
                 **fields: object):
        self.status, default = ERRORS[code]
        self.code, self.headers, self.fields = code, dict(headers or {}), fields
        super().__init__(message or default)


FULL = (errno.ENOSPC, errno.EDQUOT)  # what a full disk says, or a full quota of its own
BAD_DISK = (errno.EIO, getattr(errno, "EUCLEAN", errno.EIO), getattr(errno, "EBADMSG", errno.EIO))
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # nothing is wrong with the file


def error_of_disk(why: OSError) -> S3Error:
    """What a client is told of an OSError; the log has the rest."""
    if why.errno in (*FULL, errno.EFBIG):
        return S3Error("InsufficientStorage")
    if why.errno in EXHAUSTED:
        return S3Error("ServiceUnavailable")
    if why.errno == errno.ENAMETOOLONG:
        return S3Error("KeyTooLongError", "The key makes a path too long for the server's disk.")
    return S3Error("InternalError")


def trouble_of(why: OSError) -> str:
    """What the log says of it, and what to do."""
    advice = ""
    if isinstance(why, PermissionError):
        advice = "; the server's user must own what lies below its folder"
    elif why.errno == errno.EXDEV:
        advice = ("; a bucket is one file system: what is mounted in it needs a bucket of its own, "
                  "with path =")
    return f"{type(why).__name__}: {why}{advice}"


class ConfigError(Exception):
    """A mistake of the operator: one sentence with the place and what to do."""


# ==================================================================================================
# 3. Configuration
# ==================================================================================================

MODES = {  # what a key may do with its bucket; READ, WRITE, ... are the `needs` of section 11
    "full": frozenset(("read", "list", "write", "overwrite", "delete", "configure")),
    "read": frozenset(("read", "list")),
    "write": frozenset(("write", "overwrite")),
    "append": frozenset(("read", "list", "write", "tidy")),  # tidy: delete restic's locks
}


def parse_yes(text: str) -> bool:
    if text.lower() in ("yes", "true", "on", "1"):
        return True
    if text.lower() in ("no", "false", "off", "0"):
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def parse_count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise ValueError(f"{text!r} is not a whole number from 1 to 9999999")
    return int(text)


def parse_workers(text: str) -> int:
    if text != "auto" and not re.fullmatch("[1-9][0-9]?", text):
        raise ValueError(f"{text!r} is neither auto nor a whole number from 1 to 99")
    return 0 if text == "auto" else int(text)


def parse_folder(text: str) -> str:
    if not text:
        raise ValueError("a folder has a name; leave the line out for s3mini-data")
    return text


def parse_size(text: str) -> int:
    """ "5G" -> 5 * 1024**3; 0 is 0. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,15}) ?([KMGT]?)i?B?", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size like 500M, 5G or 0")
    return int(int(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def parse_duration(text: str) -> int:
    """ "7d" -> seconds; "0" is 0. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,6}) ?([smhd])|0", text)
    if not match:
        raise ValueError(f"{text!r} is not a time like 7d, 12h, 30m, 15s or 0")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match[1] else 0


def parse_list(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\s,]+", text))


def parse_choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def parse_hosts(text: str) -> tuple[str, ...]:
    for name in parse_list(text):
        if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", name):
            raise ValueError(f"{name!r} is not a host name like media.example.com or box:9000")
    return tuple(name.lower() for name in parse_list(text))


def parse_domains(text: str) -> tuple[str, ...]:
    for name in parse_hosts(text):
        if ":" in name:
            raise ValueError(f"{name!r} has a port; a domain counts at every one: leave it out")
        if name.startswith("."):  # it would match nothing
            raise ValueError(f"{name!r} begins with a dot; write "
                             f"{name.lstrip('.') or 's3.example.com'}")
    return tuple(sorted(parse_hosts(text), key=len, reverse=True))  # the nearest one counts


def parse_listen(text: str) -> tuple[str, ...]:
    """Addresses to listen on: HOST:PORT, [IPV6]:PORT or unix:/PATH. Raises ValueError."""
    for address in parse_list(text):
        if re.fullmatch(r"\*?:[0-9]{1,5}", address):
            raise ValueError(f"{address!r} has no host; write 0.0.0.0{address.lstrip('*')}")
        match = re.fullmatch(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", address)
        if not (address.startswith("unix:/") or match and int(match[1]) < 65536):
            raise ValueError(f"{address!r} is not an address like 127.0.0.1:9000 or unix:/PATH")
    if not parse_list(text):
        raise ValueError("no address to listen on")
    return parse_list(text)


def parse_public(text: str) -> tuple[str, ...]:
    """The prefixes that anyone may read: "read" opens all (""), "no" none. Raises ValueError."""
    if text.lower() in ("no", "off", "false", ""):
        return ()
    if text.lower() in ("read", "yes", "on", "true"):
        return ("",)
    for prefix in parse_list(text):
        if "/" not in prefix.lstrip("/"):
            raise ValueError(f"{prefix!r} is neither no, read nor a list of prefixes like images/")
        if prefix.startswith("/"):  # it would open nothing
            raise ValueError(f"{prefix!r} begins with a slash, and keys do not; write "
                             f"{prefix.lstrip('/')}")
        if "*" in prefix:  # so would a pattern, which this is not
            raise ValueError(f"{prefix!r} has a *, and a prefix is no pattern: it opens all that "
                             "begins with it; write it without, like images/")
    return parse_list(text)


def parse_origins(text: str) -> tuple[str, ...]:
    """Origins whose pages may use the bucket: "*" or https://app.example.com. Raises ValueError.

    Browsers send them in small letters. [WHATWG: URL, host parsing]
    """
    for origin in parse_list(text):
        if re.fullmatch("[^:/]+://[^/]+/+", origin):
            raise ValueError(f"{origin!r} has a slash behind it, and origins do not; write "
                             f"{origin.rstrip('/')}")
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[a-z0-9.:*\[\]-]+", origin,
                                              re.IGNORECASE):
            raise ValueError(f"{origin!r} is neither * nor an origin like https://app.example.com")
    return parse_list(text.lower())


# Their values may go on in further lines.
LISTS = (parse_hosts, parse_domains, parse_listen, parse_public, parse_origins)


class Option(NamedTuple):
    """One option of buckets.ini."""

    name: str
    scope: str  # "server" or "bucket"
    parse: Callable[[str], Any]  # raises ValueError with the rest of a sentence
    default: str  # as it would be written in the file
    help: str  # one line for buckets.ini.example


OPTIONS = (
    Option("listen", "server", parse_listen, "127.0.0.1:9000",
           "addresses: HOST:PORT, [::]:PORT or unix:/run/s3mini/sock; systemd's socket wins"),
    Option("data", "server", parse_folder, "s3mini-data",
           "the data folder; a relative one starts at this file's folder"),
    Option("hosts", "server", parse_hosts, "",
           "more names that clients sign for, where a proxy changes Host: media.example.com"),
    Option("domain", "server", parse_domains, "",
           "BUCKET.DOMAIN reaches the bucket too: s3.example.com"),
    Option("workers", "server", parse_workers, "auto",
           "processes that serve; auto: one for each core"),
    Option("durability", "server", parse_choice("disk", "none"), "disk",
           "disk: a 200 means fsynced; none: faster, a power cut may lose the last writes"),
    Option("min_free", "server", parse_size, "100M",
           "refuse writes that would leave less free space than this; 0: no check"),
    Option("max_connections", "server", parse_count, "512",
           "connections of one worker"),
    Option("expire_uploads", "server", parse_duration, "7d",
           "multipart uploads that nobody finished are removed after this; 0: never"),
    Option("trust_proxy", "server", parse_yes, "no",
           "yes: X-Forwarded-For tells a client's address; only behind a proxy that sets it"),
    Option("log", "server", parse_choice("text", "json", "none"), "text",
           "a line for each request on standard error: text, json or none"),
    Option("tls_cert", "server", str, "",
           "serve https with this certificate chain (PEM)"),
    Option("tls_key", "server", str, "",
           "the certificate's private key (PEM); empty: it is in tls_cert"),
    Option("access_key", "bucket", str, "",
           "the key's public half"),
    Option("secret_key", "bucket", str, "",
           "its secret half; env:NAME or file:/PATH fetch it from there"),
    Option("mode", "bucket", parse_choice(*MODES), "full",
           "what the key may do: full, read, write (no read), append (create only)"),
    Option("public", "bucket", parse_public, "no",
           "what anyone may GET and HEAD: no, read (all), or prefixes: images/ css/"),
    Option("cors", "bucket", parse_origins, "",
           "origins whose web pages may use the bucket: * or https://app.example.com"),
    Option("acl", "bucket", parse_yes, "no",
           "yes: the ACL public-read opens one object to anyone"),
    Option("html", "bucket", parse_yes, "no",
           "yes: HTML, SVG and XML objects may run scripts in browsers; no: they are sandboxed"),
    Option("quota", "bucket", parse_size, "0",
           "bytes the bucket may hold, kept versions and unfinished uploads counted; 0: no limit"),
    Option("keep", "bucket", parse_duration, "0",
           "keep replaced and deleted objects for `undelete` this long: 7d; 0: not at all"),
    Option("path", "bucket", str, "",
           "the bucket's folder, if it is not DATA/BUCKET: served in place; must exist"),
)


class Section(NamedTuple):
    """One bucket section of the INI: [media], [media:ci], [test-*] or [test-*:alt]."""

    name: str  # as it is written
    pattern: str  # the name before the colon
    access_key: str
    secret_key: str
    mode: str
    public: tuple[str, ...]  # prefixes; "" is everything
    cors: tuple[str, ...]  # origins
    acl: bool  # whether the ACL public-read is obeyed
    html: bool  # whether active content may run in browsers
    quota: int  # bytes; 0: no limit
    keep: int  # seconds; 0: replaced and deleted objects are gone
    path: str  # absolute, or ""

    def __repr__(self) -> str:
        return f"<Section {self.name}>"  # without its secret

    @property
    def is_pattern(self) -> bool:
        return "*" in self.pattern

    def matches(self, bucket: str) -> bool:
        pieces = map(re.escape, self.pattern.split("*"))
        return re.fullmatch("[a-z0-9.-]*".join(pieces), bucket) is not None


class Config(NamedTuple):
    """buckets.ini, read and checked."""

    listen: tuple[str, ...]
    data: str  # absolute path
    hosts: tuple[str, ...]
    domain: tuple[str, ...]
    workers: int  # 0: one for each core
    durability: str
    min_free: int
    max_connections: int
    expire_uploads: int
    trust_proxy: bool
    log: str
    tls_cert: str
    tls_key: str
    sections: tuple[Section, ...] = ()
    secrets: Mapping[str, str] = {}  # access key -> secret
    places: Mapping[str, str] = {}  # "path in [media]" -> "FILE line 7"
    unused: str = ""  # the data folder that the file names, where --data is another

    def __repr__(self) -> str:
        return f"<Config {self.sections}>"  # without its secrets

    def mistake(self, option: str, section: str, sentence: str) -> ConfigError:
        """What is said of an option that turns out to be wrong only when it is used."""
        named = f"{option} in [{section}]"
        return ConfigError(f"{self.places.get(named, 'buckets.ini')}: {named}: {sentence}")

    def tls_mistake(self, why: Exception) -> ConfigError:
        """Which of the two files of the certificate cannot be used, and what to do."""
        for option, path in (("tls_key", self.tls_key), ("tls_cert", self.tls_cert)):
            try:
                if path:
                    os.close(os.open(path, os.O_RDONLY))
            except OSError as trouble:
                return self.mistake(option, "SERVER", f"cannot read {path}: {trouble.strerror}; "
                                    "name a PEM file that this user may read")
        return self.mistake("tls_cert", "SERVER", f"cannot use {self.tls_cert}: {why}; it must be "
                            "a certificate chain in PEM, and tls_key (or it) the private key")

    def sections_of(self, bucket: str) -> tuple[Section, ...]:
        """The sections that declare the bucket by its own name; the first one's options count."""
        found = (s for s in self.sections if s.pattern == bucket)
        return tuple(sorted(found, key=lambda s: s.name != bucket))

    def is_written(self, bucket: str) -> bool:
        """Whether a key may write to it; one that is not declared is the key's that made it."""
        sections = self.sections_of(bucket)
        return not sections or any(s.access_key and "write" in MODES[s.mode] for s in sections)

    def patterns_of(self, access_key: str, bucket: str) -> tuple[Section, ...]:
        """The pattern sections under which this key may own the bucket."""
        return tuple(s for s in self.sections if s.is_pattern and s.access_key == access_key
                     and s.matches(bucket))


BUCKET_NAME = re.compile(r"(?=.{3,63}\Z)[a-z0-9](?:[a-z0-9-]|\.(?!\.))*[a-z0-9]")


def is_bucket_name(name: str) -> bool:
    """3 to 63 of a-z 0-9 . - and no IPv4 address. [AWS: bucket naming rules]"""
    return bool(BUCKET_NAME.fullmatch(name)) and not re.fullmatch(r"[0-9]+(\.[0-9]+){3}", name)


LONG_VALUE = re.compile(rf"""(?s)^(['"]).{{{MAX_SHOWN + 1},}}\1 """)


class IniReader:
    """buckets.ini as text -> Config. Every mistake is a ConfigError that names its line.

    configparser reads the file; it keeps no line numbers, so they are looked up in the text when
    a sentence needs one.
    """

    def __init__(self, text: str, source: str, folder: str, data: str = "", to_serve: bool = True):
        self.text, self.source, self.folder = text, source, folder
        self.data = data  # the data folder, whatever the file says
        self.to_serve = to_serve  # else no secret is looked up, and a disk may be away
        self.tables: dict[str, dict[str, str]] = {}  # section -> its own options, as written
        self.private = [os.path.join(folder, os.path.basename(source))]  # nobody is to fetch them

    def read(self) -> Config:
        """Raises ConfigError."""
        import configparser

        parser = configparser.RawConfigParser(default_section="\0", empty_lines_in_values=False,
                                              strict=True)
        try:
            parser.read_string(self.text, self.source)
        except configparser.DuplicateSectionError as why:
            self.fail_at(why.lineno, f"[{why.section}] is there twice; make one of the two")
        except configparser.DuplicateOptionError as why:
            self.fail_at(why.lineno, f"{why.option} is twice in [{why.section}]; remove one")
        except configparser.MissingSectionHeaderError as why:
            self.fail_at(why.lineno,
                         "an option before any section; begin with [SERVER] or a [bucket]")
        except configparser.ParsingError as why:  # the line is not shown: it may hold a secret
            self.fail_at(why.errors[0][0], self.without_value(why.errors[0][0]))
        self.tables = {name: dict(parser.items(name)) for name in parser.sections()}
        tables = dict(self.tables)
        server = self.values("SERVER", "server", tables.pop("SERVER", {}))
        defaults = tables.pop("DEFAULT", {})
        self.values("DEFAULT", "bucket", defaults)
        if "path" in defaults:
            self.fail("DEFAULT", "path", "path in [DEFAULT]: a bucket needs a folder of its own; "
                      "move it into a bucket's section")
        sections = tuple(self.section(name, {**defaults, **table}, table)
                         for name, table in tables.items())
        own = os.path.expanduser(server["data"])  # a relative one counts where no other is told
        is_other = (self.data and os.path.isabs(own)  # else our folder counts, which may be gone
                    and os.path.realpath(self.data) != os.path.realpath(own))
        unused = own if is_other else ""
        server["data"] = self.data or self.absolute(server["data"])
        for name in ("tls_cert", "tls_key"):
            server[name] = server[name] and self.absolute(server[name])
        if server["tls_key"] and not server["tls_cert"]:
            self.fail("SERVER", "tls_key", "tls_key in [SERVER] without tls_cert: nothing would be "
                      "encrypted; add tls_cert, the certificate's file")
        self.private += filter(None, [server["tls_key"] or server["tls_cert"]])
        self.check_sections(sections)
        self.check_folders(sections, server["data"])
        known = {s.access_key: s.secret_key for s in sections if s.access_key}
        places = {f"{option} in [{name}]": f"{self.source} line {self.line_of(name, option)}"
                  for name, table in self.tables.items() for option in table}
        return Config(**server, sections=sections, secrets=known, places=places, unused=unused)

    def values(self, section: str, scope: str, table: Mapping[str, str]) -> dict[str, Any]:
        """The section's options, parsed, with defaults. Raises ConfigError."""
        known = {o.name: o for o in OPTIONS if o.scope == scope}
        for name in table:
            if name not in known:
                self.fail(section, name, self.unknown(section, name, known))
        found = {}
        for option in known.values():
            text = table.get(option.name, option.default)
            quoted = """.*["'].*""" if option.parse in LISTS else r"""(["']).*\1"""
            is_looked_at = self.to_serve or option.name != "secret_key"
            if is_looked_at and re.fullmatch(f"(?s){quoted}", text):
                self.fail(section, option.name, f"{option.name} in [{section}]: quotes would be a "
                          "part of the value; take them away")
            if is_looked_at and re.search(r"\s[#;]", text):
                other = (", or put a secret that has this in it into a file: secret_key = file:PATH"
                         if option.name == "secret_key" else "")
                self.fail(section, option.name, f"{option.name} in [{section}]: a comment has a "
                          f"line of its own; move what stands behind the value{other}")
            if "\n" in text and option.parse not in LISTS:
                self.fail(section, option.name, f"{option.name} in [{section}]: the line below is "
                          "further in and goes on with it; begin both at the left")
            try:
                found[option.name] = option.parse(text)
            except ValueError as why:  # its sentence begins with the value
                sentence = LONG_VALUE.sub("the value ", str(why))
                self.fail(section, option.name, f"{option.name} in [{section}]: {sentence}")
        return found

    def unknown(self, section: str, name: str, known: Mapping[str, Option]) -> str:
        if name not in {o.name for o in OPTIONS}:
            shown = f"unknown option '{name}'" if len(name) <= MAX_SHOWN else "unknown option"
            return f"{shown} in [{section}]" + near(name, known)
        home = "a bucket's section, like [media]" if section == "SERVER" else "[SERVER]"
        return f"'{name}' in [{section}] belongs in {home}; move it there"

    def section(self, name: str, table: Mapping[str, str], own: Mapping[str, str]) -> Section:
        pattern, colon, extra = name.partition(":")
        if colon and not re.fullmatch(r"[^:\s]+", extra):
            self.fail(name, "", f"[{name}]: one more key for [{pattern}] is written "
                      f"[{pattern}:NAME]")
        if not is_bucket_name(pattern.replace("*", "aaa")):
            hint = near(name, {"SERVER": None, "DEFAULT": None})
            self.fail(name, "", f"[{name}] is not a bucket name: 3 to 63 of a-z 0-9 . -{hint}")
        unknown = set(own) - {o.name for o in OPTIONS if o.scope == "bucket"}
        if unknown and name.upper() in ("SERVER", "DEFAULT"):
            self.fail(name, "", f"[{name}] is a bucket; did you mean [{name.upper()}]?")
        found = self.values(name, "bucket", table)
        found["secret_key"] = self.secret(name, found["secret_key"])
        if bool(found["access_key"]) != bool(found["secret_key"]):
            missing = "secret_key" if found["access_key"] else "access_key"
            self.fail(name, "", f"[{name}] has no {missing}; add one")
        if not re.fullmatch("(?:[!-~](?<![/,]))*", found["access_key"]):
            self.fail(name, "access_key", f"access_key in [{self.home(name, 'access_key')}]: it is "
                      "ASCII without spaces, '/' or ','; choose another")
        found["path"] = found["path"] and self.absolute(found["path"])
        if found["path"] and ("*" in pattern or "path" not in own):
            self.fail(name, "path",
                      f"path in [{name}]: a folder of its own needs a bucket of its own")
        # Never made here: where its disk is not mounted the objects would go to another one. [ours]
        if self.to_serve and found["path"] and not os.path.isdir(found["path"]):
            self.fail(name, "path", f"path in [{name}]: {no_folder(found['path'])}")
        return Section(name=name, pattern=pattern, **found)

    def secret(self, section: str, text: str) -> str:
        """The secret itself, "env:NAME" and "file:PATH" looked up. Raises ConfigError."""
        if not self.to_serve:
            return text and "not looked up"
        where = f"secret_key in [{self.home(section, 'secret_key')}]: "
        kind, _, place = text.partition(":")
        if place and kind not in ("env", "file") and kind.lower() in ("env", "file"):
            self.fail(section, "secret_key", f"{where}write {kind.lower()}: in small letters")
        found = text
        if kind == "env":
            found = os.environ.get(place, "").strip()
            trouble = f"the environment variable {place!r} is not set; set it"
        elif kind == "file":
            self.private.append(self.absolute(place))
            try:
                with open(self.absolute(place), encoding="utf-8") as file:
                    found = file.read().strip()
                trouble = f"{self.absolute(place)} is empty; write the secret into it"
            except (OSError, UnicodeDecodeError) as why:
                found, reason = "", getattr(why, "strerror", "it is no UTF-8 text")
                advice = ("let the server's user read it" if isinstance(why, PermissionError)
                          else "let it hold the secret")
                trouble = f"cannot read {self.absolute(place)}: {reason}; {advice}"
        if text and not found:
            self.fail(section, "secret_key", f"{where}{trouble}")
        return found

    def check_sections(self, sections: tuple[Section, ...]) -> None:
        known: dict[str, str] = {}
        for s in sections:
            if known.setdefault(s.access_key, s.secret_key) != s.secret_key:
                shown = f" {s.access_key!r}" if len(s.access_key) <= MAX_SHOWN else ""
                self.fail(s.name, "secret_key",
                          f"access_key{shown} in [{s.name}] has another secret_key in an "
                          "earlier section; one key has one secret: give both the same")
            if not s.access_key and (":" in s.name or s.is_pattern or not s.public):
                self.fail(s.name, "", f"[{s.name}] has no access_key: nobody could use it; add one")
            self.check_options(s, sections)

    def check_folders(self, sections: tuple[Section, ...], data: str) -> None:
        """Each bucket has a folder that no other one has. Raises ConfigError."""
        if not sections:
            self.fail_at(1, "there is no bucket; add a section like [media] with access_key and "
                         "secret_key")
        known: dict[str, Section] = {}  # true path -> its bucket
        for s in sections:
            if s.is_pattern or ":" in s.name:
                continue
            path = os.path.realpath(s.path or os.path.join(data, s.pattern))
            first = known.setdefault(path, s)
            if first is not s:
                guilty = s if s.path else first
                other = first if s.path else s
                self.fail(guilty.name, "path", f"path in [{guilty.name}]: {path} is the folder of "
                          f"[{other.name}] too; give each bucket one of its own")
        within = {os.path.realpath(place): "is to be kept private" for place in self.private}
        within[os.path.join(os.path.realpath(data), "")] = "is the data folder"
        within.update({path: f"is the folder of [{s.name}]" for path, s in known.items()})
        for path, s in known.items():
            for place, what in within.items():
                if place.startswith(os.path.join(path, "")):
                    self.fail(s.name, "path", f"[{s.name}] would hold {place}, which {what}: give "
                              "it another path")

    def check_options(self, s: Section, sections: tuple[Section, ...]) -> None:
        """A section for one more key has no option that nothing would come of. Raises ConfigError.

        Those of [test-*:alt] hold for the buckets that its own key makes.
        """
        if s.is_pattern:
            owner = (s.pattern, s.access_key)
            first = next(x for x in sections if (x.pattern, x.access_key) == owner)
        else:
            names = {x.name: x for x in sections if ":" not in x.name}
            if s.pattern not in names:
                self.fail(s.name, "", f"[{s.name}] is one more key for [{s.pattern}], which is not "
                          f"declared; add [{s.pattern}]" + near(s.pattern, names))
            first = names[s.pattern]
        for option in self.tables[s.name]:
            if first is not s and option not in ("access_key", "secret_key", "mode"):
                self.fail(s.name, option, f"{option} in [{s.name}] has no effect: one more key has "
                          f"access_key, secret_key and mode; move {option} into [{first.name}]")

    def without_value(self, line: int) -> str:
        """What is wrong with a line that is no option = value; shown only if it is no secret."""
        *above, text = self.text.split("\n")[:line]
        word = text.strip().partition(" ")[0]
        if word.lower() in {option.name for option in OPTIONS}:
            return f"{word} has no value; write {word} = and the value"
        gap = list(itertools.takewhile(lambda s: s.strip()[:1] in ("", "#", ";"), reversed(above)))
        if text[:1].isspace() and gap and above[-len(gap) - 1 :][0][:1] != "[":
            return "an empty line or a comment ends the value above it; take it away"
        return "neither [section] nor option = value; write one of them"

    def absolute(self, path: str) -> str:
        return os.path.abspath(os.path.join(self.folder, os.path.expanduser(path)))

    def home(self, section: str, option: str) -> str:
        """The section where the option stands: DEFAULT when it is inherited."""
        is_own = section == "SERVER" or option in self.tables.get(section, {})
        return section if is_own or option not in self.tables.get("DEFAULT", {}) else "DEFAULT"

    def line_of(self, section: str, option: str) -> int:
        """The line of the option in the section, or of the section's head.

        As configparser reads it: sections and options may be indented, and a line further in than
        the option right above goes on with its value. [Python: configparser]
        """
        section = self.home(section, option)
        here, found, indent, in_value = "", 1, 0, False
        for number, line in enumerate(self.text.split("\n"), 1):
            text = line.strip()
            if not text or text[0] in "#;":
                in_value = False
                continue
            if in_value and len(line) - len(line.lstrip()) > indent:
                continue
            indent, head = len(line) - len(line.lstrip()), re.match(r"\[(.+)\]", text)
            in_value = not head
            if head:
                here, found = head[1], number if head[1] == section else found
            elif here == section and re.split("[=:]", text)[0].strip().lower() == option:
                return number
        return found

    def fail(self, section: str, option: str, sentence: str) -> NoReturn:
        self.fail_at(self.line_of(section, option), sentence)

    def fail_at(self, line: Optional[int], sentence: str) -> NoReturn:
        raise ConfigError(f"{self.source} line {line or 1}: {sentence}")


def near(word: str, known: Mapping[str, object]) -> str:
    """ "; did you mean ...?", or "" when nothing is near."""
    import difflib

    found = difflib.get_close_matches(word.lower(), [k.lower() for k in known], 1, 0.6)
    return f"; did you mean {next(k for k in known if k.lower() == found[0])}?" if found else ""


def no_folder(path: str) -> str:
    """Why there is none for this user, and what to do."""
    try:
        os.stat(path)
    except PermissionError as why:  # the unit's ProtectHome= locks /home, whoever owns it
        return (f"cannot reach {path}: {why.strerror}; let this user into each folder above it; "
                "under systemd: ProtectHome=no")
    except (OSError, ValueError):  # of a name with a NUL
        pass
    return f"there is no folder {path}; make it, or mount its disk"


def user_name(number: int) -> str:
    """As sudo wants it."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"'#{number}'"


NOBODY = 65534  # each user that a user namespace does not know, as under PrivateUsers= [systemd]


def whose(path: str) -> str:
    """What to do about a file that this user may not read: it may be the server's, or root's."""
    seen = path = os.path.abspath(path)
    while seen != os.path.dirname(seen) and not os.path.exists(seen):
        seen = os.path.dirname(seen)
    owner = os.stat(seen).st_uid
    if not hasattr(os, "geteuid") or owner in (0, os.geteuid(), NOBODY):
        return ("let the server's user own it" if seen == path else
                "run this as the server's user, and name buckets.ini with --config")
    return f"run this as its owner, with `sudo -u {user_name(owner)}` before it"


def load_config(path: str, data: str = "", to_serve: bool = True) -> Config:
    """The configuration a file declares, maybe with another data folder. Raises ConfigError.

    What is not `to_serve` has no secrets, and the folders of its buckets need not be there.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a UTF-8 text file; save it as UTF-8") from None
    except OSError as why:
        advice = (whose(path) if isinstance(why, PermissionError) else
                  "give another with --config; `python3 s3mini.py` alone writes a first one")
        raise ConfigError(f"cannot read {path}: {why.strerror}; {advice}") from None
    folder = os.path.dirname(os.path.abspath(path))
    return IniReader(text, path, folder, data and os.path.abspath(data), to_serve).read()


# ==================================================================================================
# 4. Wire
# ==================================================================================================

# Facts about HTTP heads that this parser holds against the library's [ran: http.server 3.8-3.13]:
# one line without a colon makes the library drop every header after it; it takes a bare CR as a
# line end, keeps folded lines, answers the first of two Content-Lengths and rewrites a target that
# begins with "//". It also takes 48 us a head where this one takes 10 [measured, 3.11].

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rf"({TOKEN}) ([!-~\x80-\xff]+) HTTP/([0-9])\.([0-9])\r\n")
HEADER_LINES = re.compile(rf"(?:{TOKEN}:[\t -~\x80-\xff]*\r\n)*\r\n")
HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
UNRESERVED_PATH = re.compile(r"[A-Za-z0-9/._~-]*")
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
SINGLE = frozenset(("host", "content-length", "transfer-encoding", "authorization", "range",
                    "content-type", "x-amz-date", "x-amz-content-sha256"))


class Head(NamedTuple):
    """A request's head. Header values are latin-1 text: encode them to get the bytes back."""

    method: str  # upper case as it came
    path: str  # raw, percent-encoded: what the client signed
    query_text: str  # raw, without the "?"
    pairs: list[tuple[str, str]]  # the query's names and values, decoded, in order
    query: dict[str, str]  # the same; of a repeated name the first
    headers: dict[str, str]  # lower-case names; repeated fields joined by ","
    host: str  # lower case, with the port if there is one; "" in HTTP/1.0, or as it came
    minor: int  # HTTP/1.minor
    length: Optional[int]  # Content-Length; None when the body is chunked or there is none

    @property
    def is_chunked(self) -> bool:
        return "transfer-encoding" in self.headers

    @property
    def has_body(self) -> bool:
        return bool(self.length) or self.is_chunked

    @property
    def keeps_alive(self) -> bool:
        if "connection" not in self.headers:
            return self.minor > 0
        words = [w.strip() for w in self.headers["connection"].lower().split(",")]
        return "close" not in words and (self.minor > 0 or "keep-alive" in words)


def parse_head(data: bytes) -> Head:
    """A head from its bytes, the empty line included. Stricter than the library, on purpose.

    Raises BadRequest, HttpVersionNotSupported, NotImplemented, InvalidURI. [RFC 9112 §2-6]
    """
    text = data.decode("latin-1")
    line = REQUEST_LINE.match(text)
    if not line or not HEADER_LINES.fullmatch(text, line.end()):
        raise S3Error("BadRequest")
    if line[3] != "1" or line[4] not in "01":
        raise S3Error("HttpVersionNotSupported")
    headers: dict[str, str] = {}
    for field_line in text[line.end() : -4].split("\r\n") if text[line.end() : -4] else ():
        name, _, value = field_line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = join_fields(name, headers[name], value) if name in headers else value
    target, minor = line[2], int(line[4])
    length = parse_framing(headers, minor)
    host = headers.get("host")
    if host is None and minor or host and not HOST.fullmatch(host):
        raise S3Error("BadRequest", "There must be one valid Host header.")
    if not target.startswith("/"):
        target, host = absolute_target(line[1], target, host or "")
        headers["host"] = host  # what a signature covers is what counts [RFC 9112 §3.2.2]
    path, _, query = target.partition("?")
    pairs = parse_query(query) if query else []
    return Head(line[1], path, query, pairs, dict(reversed(pairs)), headers, (host or "").lower(),
                minor, length)


def parse_query(text: str) -> list[tuple[str, str]]:
    """Raises InvalidURI."""
    if text.count("&") >= MAX_PAIRS:
        raise S3Error("InvalidURI", f"The query has more than {MAX_PAIRS} parameters.")
    pieces = [p.partition("=") for p in text.split("&") if p]
    return [(decode_escapes(n, True), decode_escapes(v, True)) for n, _, v in pieces]


def join_fields(name: str, first: str, second: str) -> str:
    """One value for a header that came twice. Raises BadRequest."""
    if name not in SINGLE:
        return f"{first},{second}"
    if first != second or name in ("host", "transfer-encoding", "authorization"):
        raise S3Error("BadRequest", f"There are two {name} headers.")
    return first


def parse_framing(headers: Mapping[str, str], minor: int) -> Optional[int]:
    """The Content-Length. Where the body ends must have one reading only.

    Raises BadRequest, NotImplemented.
    """
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and not re.fullmatch("[0-9]{1,18}", length):
        raise S3Error("BadRequest", "Content-Length is not a number.")
    if coding is not None:
        if length is not None or minor == 0:
            raise S3Error("BadRequest",
                          "Transfer-Encoding stands beside Content-Length or HTTP/1.0.")
        if coding.lower() != "chunked":
            raise S3Error("NotImplemented", "Of transfer encodings only chunked is understood.")
    return None if length is None else int(length)


def absolute_target(method: str, target: str, host: str) -> tuple[str, str]:
    """The path and host of "http://host/path"; "*" only for OPTIONS. [RFC 9112 §3.2]"""
    match = re.fullmatch(r"https?://([^/?#]+)(/[^#]*|)", target, re.IGNORECASE)
    if match and HOST.fullmatch(match[1]):
        return match[2] or "/", match[1]
    if target == "*" and method == "OPTIONS":
        return "/", host
    raise S3Error("BadRequest", "The request target is not a path.")


def bucket_of_host(host: str, domains: tuple[str, ...]) -> str:
    """The bucket that a Host below one of our domains names, or "". Lower case."""
    name = host.rpartition(":")[0] if ":" in host and host[-1] != "]" else host
    name = name.rstrip(".")  # as a name is that stands for itself everywhere
    for domain in domains:
        if name.endswith("." + domain) and is_bucket_name(name[: -len(domain) - 1]):
            return name[: -len(domain) - 1]
    return ""


def decode_escapes(text: str, plus: bool = False) -> str:
    """Percent-decoded text, strictly UTF-8; with `plus` a "+" is a space. Raises InvalidURI."""
    if plus and "+" in text:
        text = text.replace("+", " ")
    if "%" not in text and text.isascii():
        return text
    if BAD_ESCAPE.search(text):
        raise S3Error("InvalidURI")
    try:
        return unquote_to_bytes(text.encode("latin-1")).decode("utf-8")
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "The request's path or query is not UTF-8.") from None


def check_key(key: str) -> None:
    """Raises KeyTooLongError, and InvalidURI where ".." would leave the bucket. [AWS: keys]"""
    size = len(key.encode())
    if size > MAX_KEY:
        raise S3Error("KeyTooLongError", Size=size, MaxSizeAllowed=MAX_KEY)
    if ".." in key:
        depth = 0
        for segment in key.split("/"):
            depth += -1 if segment == ".." else 1
            if depth < 0:
                raise S3Error("InvalidURI", "The key's relative path leaves the bucket.")


def parse_range(value: str, size: int) -> Optional[range]:
    """The bytes a Range header asks for, or None when it is to be ignored. [RFC 9110 §14.2]

    Raises InvalidRange when the syntax is right and no byte of it exists.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,20})-([0-9]{0,20})", value)
    if not match or match[1] == match[2] == "":
        return None  # several ranges: S3 answers 200 with the whole object [AWS: GetObject]
    first, last = match[1], match[2]
    if first == "":
        found = range(max(0, size - int(last)), size)
    elif last != "" and int(last) < int(first):
        return None
    else:
        found = range(int(first), min(int(last or size), size - 1) + 1)
    if not found:
        raise S3Error("InvalidRange", headers={"content-range": f"bytes */{size}"},
                      RangeRequested=value, ActualObjectSize=size)
    return found


DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def parse_http_date(value: str) -> Optional[float]:
    """Seconds since 1970 of "Sun, 06 Nov 1994 08:49:37 GMT" and its old forms, or None."""
    try:
        fields = parsedate_tz(value)
        seconds = mktime_tz(fields) if fields else None
    except (ValueError, OverflowError, IndexError, TypeError):  # the last two: 3.9's parser
        return None
    return seconds if seconds is not None and abs(seconds) < 1 << 38 else None


@functools.lru_cache(1024)
def render_http_date(seconds: int) -> str:
    """ "Sun, 06 Nov 1994 08:49:37 GMT"."""
    t = time.gmtime(seconds)
    return (f"{DAYS[t.tm_wday]}, {t.tm_mday:02} {MONTHS[t.tm_mon - 1]} {t.tm_year:04} "
            f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT")


@functools.lru_cache(1024)
def render_iso_date(seconds: int) -> str:
    """ "1994-11-06T08:49:37.000Z"."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def parse_iso_date(text: str) -> Optional[float]:
    """Seconds since 1970 of "1994-11-06T08:49:37.000Z" or "19941106T084937Z", or None."""
    return parse_short_date(text) if len(text) <= MAX_DATE else None


@functools.lru_cache(256)
def parse_short_date(text: str) -> Optional[float]:
    match = re.fullmatch(
        r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})T([0-9]{2}):?([0-9]{2}):?([0-9]{2})(?:\.[0-9]{1,9})?Z",
        text,
    )
    if not match:
        return None
    import calendar

    y, mo, d, h, mi, s = map(int, match.groups())
    if not (y >= 1970 and 1 <= mo <= 12 and 1 <= d <= 31 and h < 24 and mi < 60 and s < 61):
        return None
    return calendar.timegm((y, mo, d, h, mi, s))


def etag_matches(value: str, etag: str) -> bool:
    """Whether an If-Match or If-None-Match value names the etag; quotes may be missing."""
    names = [v.strip() for v in value.split(",")]
    return "*" in names or any(n[n.startswith("W/") and 2 :].strip('"') == etag for n in names)


def check_preconditions(
    headers: Mapping[str, str], etag: str, modified: int, now: float, prefix: str = ""
) -> None:
    """Return when a read may go on. Raises NotModified, PreconditionFailed. [RFC 9110 §13.2.2]

    `prefix` is "x-amz-copy-source-" for a copy, where NotModified is PreconditionFailed too.
    """

    def date(name: str) -> Optional[float]:  # a date that cannot be read is ignored
        return parse_http_date(headers[prefix + name]) if prefix + name in headers else None

    if prefix + "if-match" in headers:
        name, holds = "If-Match", etag_matches(headers[prefix + "if-match"], etag)
    else:
        limit = date("if-unmodified-since")
        name, holds = "If-Unmodified-Since", limit is None or modified <= limit
    if not holds:
        raise S3Error("PreconditionFailed", Condition=prefix + name)
    if prefix + "if-none-match" in headers:
        name, is_same = "If-None-Match", etag_matches(headers[prefix + "if-none-match"], etag)
    else:
        limit = date("if-modified-since")  # AWS ignores one in the future [versitygw]
        name, is_same = "If-Modified-Since", limit is not None and modified <= limit <= now
    if is_same and prefix:
        raise S3Error("PreconditionFailed", Condition=prefix + name)
    if is_same:
        raise S3Error("NotModified")


class FileSpan:
    """Bytes of an open file, to be sent as a body; the descriptor is closed when it is done."""

    def __init__(self, fd: int, offset: int, length: int):
        self.fd, self.offset, self.length = fd, offset, length

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


Content = Union[bytes, FileSpan, Generator[bytes, None, None]]  # what is generated is sent chunked


class Response:
    def __init__(self, status: int, headers: Optional[dict[str, str]] = None, body: Content = b""):
        self.status, self.body = status, body
        self.headers = {} if headers is None else headers
        self.code = ""  # of the S3 error that a body tells of whose 200 was sent already


REASONS = {
    200: "OK", 201: "Created", 204: "No Content", 206: "Partial Content",
    303: "See Other", 304: "Not Modified", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 409: "Conflict", 411: "Length Required", 412: "Precondition Failed",
    416: "Range Not Satisfiable", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 505: "HTTP Version Not Supported", 507: "Insufficient Storage",
}
UNSAFE = re.compile(r"[^\t -~\x80-\xff]")
CAPITALS = {name.lower(): name for name in (  # as AWS writes them: htslib finds no etag
    "Accept-Ranges", "Cache-Control", "Connection", "Content-Disposition", "Content-Encoding",
    "Content-Language", "Content-Length", "Content-Range", "Content-Type", "Date", "ETag",
    "Expires", "Last-Modified", "Location", "Server", "Transfer-Encoding", "Vary",
)}


def render_start(status: int, headers: Mapping[str, str]) -> str:
    """The status line and headers, as lines. What others may have a hand in is put in here alone:
    no control byte passes.
    """
    lines = [f"HTTP/1.1 {status} {REASONS[status]}"]
    lines += [f"{CAPITALS.get(name, name)}: {value}" for name, value in headers.items()]
    if not "".join(lines).isprintable():  # the common case is told in 1 us
        lines = [UNSAFE.sub(" ", line) for line in lines]
    return "\r\n".join([*lines, ""])


def render_head(response: Response) -> bytes:
    """All that comes before the body."""
    return f"{render_start(response.status, response.headers)}\r\n".encode("latin-1", "replace")


# ==================================================================================================
# 5. Documents
# ==================================================================================================

XML_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
Children = list[tuple[str, Any]]


def escape_text(text: str) -> str:
    """Text for XML; a control character becomes a reference, as S3 writes it."""
    if UNQUOTED.search(text):
        return UNQUOTED.sub(lambda m: ENTITIES.get(m[0]) or f"&#x{ord(m[0]):x};", text)
    return text


UNQUOTED = re.compile('[<>&"\x00-\x1f\x7f\ufffe\uffff]')
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;"}


class Markup(str):
    """XML, not text that is still to be escaped."""

    __slots__ = ()


def element(tag: str, value: object) -> str:
    """`value`: text, Markup, a number, a bool, None (left out), or a list of (tag, value) pairs."""
    if value is None:
        return ""
    if isinstance(value, list):
        inner = "".join([element(t, v) for t, v in value])
    elif isinstance(value, bool):
        inner = "true" if value else "false"
    else:
        inner = value if isinstance(value, Markup) else escape_text(str(value))
    return f"<{tag}>{inner}</{tag.partition(' ')[0]}>"


def xml_response(root: str, content: Union[Children, str], status: int = 200) -> Response:
    document = XML_HEAD + element(f'{root} xmlns="{XMLNS}"', content)
    return document_response(status, document.encode())


def document_response(status: int, body: bytes) -> Response:
    headers = {"content-type": "application/xml", "content-length": str(len(body))}
    return Response(status, headers, body)


def render_error(error: S3Error, resource: str, request_id: str) -> bytes:
    """The <Error> document; the only one without a namespace. [AWS: error responses]"""
    fields = [("Code", error.code), ("Message", str(error)), *error.fields.items()]
    fields += [("Resource", resource), ("RequestId", request_id), ("HostId", request_id)]
    return (XML_HEAD + element("Error", fields)).encode()


def error_response(error: S3Error, resource: str, request_id: str) -> Response:
    """What the client sees: no body for 304, an <Error> document for everything else."""
    if error.status == 304:
        return Response(304, dict(error.headers))
    response = document_response(error.status, render_error(error, resource, request_id))
    response.headers.update(error.headers)
    return response


class Node:
    """An XML element: its name without namespace, its text, its children."""

    __slots__ = ("children", "tag", "text")

    def __init__(self, tag: str):
        self.tag, self.text = tag, ""
        self.children: list[Node] = []

    def all(self, tag: str) -> list[Node]:
        return [child for child in self.children if child.tag == tag]

    def find(self, tag: str) -> Optional[str]:
        """The text of the first child of that name, stripped; None where there is none."""
        return next((child.text.strip() for child in self.children if child.tag == tag), None)

    def get(self, tag: str) -> str:
        """The same as it stands there; "" where there is none."""
        return next((child.text for child in self.children if child.tag == tag), "")


def parse_xml(data: bytes, root: str) -> Node:
    """A small document as a tree. Raises MalformedXML, also for any document type. [ours]

    A chain of 30,000 entities kills the process inside expat (3.8-3.13) [ran]: refusing the
    DOCTYPE before its first entity is what stops it. Namespaces are not looked at: expat copies the
    name of one, a megabyte perhaps, to each of 120,000 elements in it, which takes 90 s.
    """
    from xml.parsers import expat

    stack: list[tuple[Node, list[str]]] = [(Node(""), [])]  # with the pieces of its text
    left = MAX_ELEMENTS

    def start(tag: str, _: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise S3Error("MalformedXML", f"The document has more than {MAX_ELEMENTS} elements.")
        if len(stack) > MAX_DEPTH:
            raise S3Error("MalformedXML", "The document is nested too deeply.")
        node = Node(tag.rpartition(":")[2])
        stack[-1][0].children.append(node)
        stack.append((node, []))

    def text(data: str) -> None:
        stack[-1][1].append(data)

    def end(_: str) -> None:
        node, pieces = stack.pop()
        node.text = "".join(pieces)

    def refuse(*_: object) -> None:
        raise S3Error("MalformedXML", "A document type is not allowed.")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler, parser.StartDoctypeDeclHandler = end, refuse
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as why:
        raise S3Error("MalformedXML", f"The XML is not well-formed: {why}") from None
    found = stack[0][0].children[0]
    if found.tag != root:
        raise S3Error("MalformedXML", f"The document should be a {root}.")
    return found


class DeleteItem(NamedTuple):
    """One <Object> of a DeleteObjects body."""

    key: str
    version_id: str  # "" when none is named
    etag: Optional[str] = None  # the conditions; None where there is none
    size: Optional[str] = None
    modified: Optional[str] = None  # an HTTP date or an ISO one


def parse_delete(data: bytes) -> tuple[list[DeleteItem], bool]:
    """The objects of a DeleteObjects body and whether it is quiet. Raises MalformedXML."""
    root = parse_xml(data, "Delete")
    items = [
        DeleteItem(n.get("Key"), n.get("VersionId"), n.find("ETag"), n.find("Size"),
                   n.find("LastModifiedTime"))
        for n in root.all("Object")
    ]
    if not 1 <= len(items) <= MAX_KEYS or not all(item.key for item in items):
        raise S3Error("MalformedXML", "A Delete names 1 to 1000 objects, each with its Key.")
    return items, root.get("Quiet").strip().lower() == "true"


class PartItem(NamedTuple):
    """One <Part> of a CompleteMultipartUpload body."""

    number: int
    etag: str
    checksums: dict[str, str]  # algorithm -> base64; an empty element says nothing


def parse_complete(data: bytes) -> list[PartItem]:
    """The parts to join, in the order they are named. Raises MalformedXML, InvalidArgument."""
    parts = []
    for node in parse_xml(data, "CompleteMultipartUpload").all("Part"):
        number = node.get("PartNumber").strip()
        if not re.fullmatch("[0-9]{1,9}", number) or not node.get("ETag").strip():
            raise S3Error("MalformedXML", "A Part needs its PartNumber and ETag.")
        sums = {n.tag[8:]: n.text.strip() for n in node.children
                if n.tag.startswith("Checksum") and n.text.strip()}
        parts.append(PartItem(int(number), node.get("ETag").strip().strip('"'), sums))
    if not 1 <= len(parts) <= MAX_PARTS:
        raise S3Error("MalformedXML", f"A multipart upload has 1 to {MAX_PARTS} parts.")
    if parts[0].number < 1:
        raise S3Error("InvalidArgument", "PartNumber must be >= 1")
    return parts


# ==================================================================================================
# 6. Checksums
# ==================================================================================================


class Checksum(Protocol):
    """What hashlib's objects are, too."""

    def update(self, data: bytes) -> None: ...
    def digest(self) -> bytes: ...


class Crc:
    """A reflected CRC with all bits set before and after: its arithmetic, and its speed.

    Polynomials are integers without the leading term. `fold` is the fast path, tested against
    `plain`: 100 to 290 MiB/s where the table loop has 7 [measured, 1 MiB, 3.9-3.13].
    """

    def __init__(self, polynomial: int, width: int):
        self.width, self.mask = width, (1 << width) - 1
        self.reflected = int(format(polynomial, f"0{width}b")[::-1], 2)
        self.offsets = [width - e for e in range(width) if polynomial >> e & 1]
        self._power = functools.lru_cache(8)(self._power_of)  # parts are of one size

    @functools.cached_property
    def table(self) -> list[int]:
        return [functools.reduce(self._halve, range(8), value) for value in range(256)]

    def _halve(self, value: int, _: int = 0) -> int:
        return value >> 1 ^ (self.reflected if value & 1 else 0)

    def plain(self, data: bytes, state: int) -> int:
        for byte in data:
            state = self.table[(state ^ byte) & 255] ^ state >> 8
        return state

    def fold(self, data: bytes) -> bytes:
        """A short message with the same remainder.

        Cut the message into digits of w bytes, w a power of two: squaring is linear over GF(2), so
        x^(8w*width) reduces by the polynomial with every exponent multiplied by 8w. A digit is
        removed by XORing it into the later digits that the terms name: one XOR of two long
        integers handles 8w bits. Halve w and go on.
        """
        width, size = self.width, 1
        while size * 4 * width <= len(data):
            size *= 2
        while size >= 4:
            data = bytes(-len(data) % size) + data  # zeros in front change nothing
            digits = self.fold_digits(split_digits(data, size))
            data = join_digits(digits, size)
            size //= 2
        return data

    def fold_digits(self, digits: list[int]) -> list[int]:
        """The last `width` of them, with those before folded in."""
        done = max(0, len(digits) - self.width)
        for i in range(done):
            for offset in self.offsets:
                digits[i + offset] ^= digits[i]
        return digits[done:]

    def of(self, data: bytes) -> int:
        """The CRC of a message."""
        if len(data) < 4096:
            return self.plain(data, self.mask) ^ self.mask
        return self.plain(self.fold(self.begin(data)), 0) ^ self.mask

    def begin(self, data: bytes) -> bytes:
        """The message that has with no bits set before it the remainder that data has with all."""
        head = self.width // 8
        return bytes(byte ^ 0xFF for byte in data[:head]) + data[head:]

    def combine(self, first: int, second: int, length: int) -> int:
        """The CRC of two pieces joined; `length` is the second's. [zlib: crc32_combine]"""
        return self._multiply(self._power(8 * length), first) ^ second

    def _multiply(self, a: int, b: int) -> int:
        """a * b modulo the polynomial; the highest bit is x^0."""
        product = 0
        while a:
            if a >> self.width - 1 & 1:
                product ^= b
            a = a << 1 & self.mask
            b = self._halve(b)
        return product

    def _power_of(self, exponent: int) -> int:
        """x ^ exponent modulo the polynomial."""
        result, square = 1 << self.width - 1, 1 << self.width - 2
        while exponent:
            if exponent & 1:
                result = self._multiply(result, square)
            square = self._multiply(square, square)
            exponent >>= 1
        return result


CRC32 = Crc(0x04C11DB7, 32)
CRC32C = Crc(0x1EDC6F41, 32)
CRC64NVME = Crc(0xAD93D23594C93659, 64)


def split_digits(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def join_digits(digits: list[int], size: int) -> bytes:
    return b"".join([digit.to_bytes(size, "little") for digit in digits])


class RunningCrc32:
    """zlib's, as an object like hashlib's."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class RunningCrc:
    """A CRC as an object like hashlib's, for a message that comes in pieces.

    It stays folded to `width` digits of 4 KiB until its end: a piece is folded once, not down to
    the last bytes. 256 KiB pieces: CRC32C 200 -> 560 MiB/s, CRC64NVME 110 -> 330 [measured, 3.11].
    """

    DIGIT = 4 * KIB

    def __init__(self, crc: Crc):
        self._crc, self._digits, self._rest = crc, list[int](), b""
        self._has_begun = False

    def update(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % self.DIGIT
        if whole:
            ready = data[:whole] if self._has_begun else self._crc.begin(data[:whole])
            self._has_begun = True
            self._digits += split_digits(ready, self.DIGIT)
            self._digits = self._crc.fold_digits(self._digits)
        self._rest = data[whole:]

    def digest(self) -> bytes:
        crc = self._crc
        if self._has_begun:
            message = join_digits(self._digits, self.DIGIT) + self._rest
            value = crc.plain(crc.fold(message), 0) ^ crc.mask
        else:
            value = crc.of(self._rest)
        return value.to_bytes(crc.width // 8, "big")


# An ETag is no security: where OpenSSL is in FIPS mode, MD5 is to be had only by who says that.
new_md5 = functools.partial(hashlib.md5, usedforsecurity=False)
ALGORITHMS: dict[str, Callable[[], Checksum]] = {  # in the order of S3's documents
    "CRC32": RunningCrc32,
    "CRC32C": lambda: RunningCrc(CRC32C),
    "CRC64NVME": lambda: RunningCrc(CRC64NVME),
    "SHA1": hashlib.sha1,
    "SHA256": hashlib.sha256,
}
COMBINABLE = {"CRC32": CRC32, "CRC32C": CRC32C, "CRC64NVME": CRC64NVME}


def checksum_header(algorithm: str) -> str:
    return "x-amz-checksum-" + algorithm.lower()


def parse_base64(text: str, size: int) -> Optional[bytes]:
    """`size` bytes from canonical base64, or None."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == size and base64.b64encode(data).decode() == text else None


def combine_full(algorithm: str, parts: list[tuple[str, int]]) -> str:
    """The base64 CRC of a whole object from its parts' (base64 CRC, size)."""
    crc, whole = COMBINABLE[algorithm], 0
    for text, size in parts:
        whole = crc.combine(whole, int.from_bytes(base64.b64decode(text), "big"), size)
    return base64.b64encode(whole.to_bytes(crc.width // 8, "big")).decode()


def combine_composite(algorithm: str, parts: list[str]) -> str:
    """The checksum of the parts' checksums, in base64, with "-" and their number."""
    total = ALGORITHMS[algorithm]()
    total.update(b"".join([base64.b64decode(text) for text in parts]))
    return f"{base64.b64encode(total.digest()).decode()}-{len(parts)}"


# ==================================================================================================
# 7. Signatures
# ==================================================================================================

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
UNSIGNED = "UNSIGNED-PAYLOAD"
CREDENTIAL = re.compile(
    r"([^/,\s]{1,256})/([0-9]{8})/([^/,\s]{0,64})/([^/,\s]{0,64})/([^/,\s]{0,64})"
)
AUTHORIZATION = re.compile(
    ALGORITHM + r"[ \t]+Credential=([^,\s]*)[ \t]*,[ \t]*"
    r"SignedHeaders=([^,\s]{0,4096})[ \t]*,[ \t]*Signature="
)


class SigningKey:
    """An HMAC-SHA256 key with its two blocks hashed already: 7.7 -> 3.2 us a signature, 3.11."""

    def __init__(self, key: bytes):
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes([b ^ 0x36 for b in block]))
        self._outer = hashlib.sha256(bytes([b ^ 0x5C for b in block]))

    def sign(self, text: str) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text.encode("latin-1", "replace"))
        outer.update(inner.digest())
        return outer.hexdigest()


class Signed(NamedTuple):
    """What a verified signature says. Nothing else tells who a client is."""

    access_key: str
    payload: str  # hex SHA-256 of the body, UNSIGNED-PAYLOAD or STREAMING-...
    date: str = ""  # 20240501T120000Z
    scope: str = ""  # 20240501/us-east-1/s3/aws4_request
    signature: str = ""  # the first chunk's is chained to it
    key: Optional[SigningKey] = None  # of one day and region

    def __repr__(self) -> str:
        return f"<Signed by {self.access_key}>"  # without what others must not see


class Claim(NamedTuple):
    """A signature as the client presents it, not yet believed."""

    access_key: str
    date: str  # 20240501T120000Z
    scope: str
    names: tuple[str, ...]  # signed headers
    signature: str
    payload: str = UNSIGNED

    def __repr__(self) -> str:
        return f"<Claim of {self.access_key}>"  # without its signature


class Keyring(NamedTuple):
    """What a verifier knows."""

    secrets: Mapping[str, str]  # access key -> secret
    hosts: tuple[str, ...] = ()  # our other names; a signature may be made for any of them
    domain: tuple[str, ...] = ()  # below these a name is a bucket's


@functools.lru_cache(256)
def signing_key(secret: str, scope: str) -> SigningKey:
    """The key of a day and region; it takes longer than all else, hence the cache. [AWS: SigV4]"""
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return SigningKey(key)


def same(a: str, b: str) -> bool:
    """Equal, in constant time. str would raise on what is not ASCII, so bytes are compared."""
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))


def canonical_path(path: str) -> str:
    """The path as it is signed: every byte but A-Za-z0-9-._~/ escaped once. [AWS: SigV4]"""
    if UNRESERVED_PATH.fullmatch(path):
        return path
    return quote(unquote_to_bytes(path.encode("latin-1")), safe="/-._~")


def canonical_query(pairs: list[tuple[str, str]], without: str = "") -> str:
    coded = [(quote(n, safe="-._~"), quote(v, safe="-._~")) for n, v in pairs if n != without]
    return "&".join([f"{n}={v}" for n, v in sorted(coded)])


def one_blank(text: str) -> str:
    """With one blank for many. AWS takes a tab for one too. [aws-sdk-net #1222]"""
    return re.sub("[ \t]{2,}|\t", " ", text)


def canonical_request(head: Head, claim: Claim, query: str, /, **changed: str) -> str:
    """The text that was hashed and signed; `changed` gives a header or part another value.

    `query` and the head's path are canonical ones: the many candidates of a wrong signature share
    them.
    """
    headers, method, path = head.headers, head.method, head.path
    if changed:
        headers, method = {**headers, **changed}, changed.get("method", method)
        query, path = changed.get("query", query), changed.get("path", path)
    lines = "\n".join([f"{name}:{headers.get(name, '')}" for name in claim.names])
    if "  " in lines or "\t" in lines:
        lines = one_blank(lines)
    return "\n".join([method, path, query, lines, "", ";".join(claim.names), claim.payload])


def string_to_sign(claim: Claim, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode("latin-1", "replace")).hexdigest()
    return f"{ALGORITHM}\n{claim.date}\n{claim.scope}\n{digest}"


def parse_credential(text: str, code: str) -> tuple[str, str]:
    """(access key, scope). Raises `code`. Any region is accepted as it is signed. [ours]"""
    match = CREDENTIAL.fullmatch(text)
    if not match:
        raise S3Error(code, "The Credential is malformed; expecting "
                      '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".')
    if match[4] != "s3":
        raise S3Error(code, f'incorrect service "{match[4]}". This endpoint belongs to "s3".')
    if match[5] != "aws4_request":
        raise S3Error(code, f'incorrect terminal "{match[5]}". It should be "aws4_request".')
    return match[1], text[len(match[1]) + 1 :]


@functools.lru_cache(64)
def parse_claimed(text: str) -> tuple[str, str, tuple[str, ...]]:
    """(access key, scope, signed headers) of an Authorization header without its signature.

    Fast path: they stay the same for a day, and are limited in length, for nobody believes them
    yet. Raises InvalidArgument, InvalidRequest, AuthorizationHeaderMalformed: these are not kept.
    """
    match = AUTHORIZATION.fullmatch(text)
    if not match:
        kind = text.split(" ", 1)[0]
        if kind == "AWS":
            raise S3Error("InvalidRequest", "The authorization mechanism you have provided is not "
                          "supported. Please use AWS4-HMAC-SHA256.")
        if kind != ALGORITHM:
            raise S3Error("InvalidArgument", "Unsupported Authorization Type",
                          ArgumentName="Authorization", ArgumentValue=kind)
        raise S3Error("AuthorizationHeaderMalformed")
    access_key, scope = parse_credential(match[1], "AuthorizationHeaderMalformed")
    return access_key, scope, parse_signed_headers(match[2], "AuthorizationHeaderMalformed")


def parse_signed_headers(text: str, code: str) -> tuple[str, ...]:
    """Each once: the text hashed for a stranger's claim does not grow by it. Raises `code`."""
    if len(text) > MAX_LINE:
        raise S3Error(code, "SignedHeaders is too long.")
    names = tuple(text.split(";"))
    if len(set(names)) < len(names):
        raise S3Error(code, "SignedHeaders names each header once.")
    return names


def parse_authorization(head: Head) -> Claim:
    """The claim of an Authorization header. [AWS: SigV4 header]

    Raises AccessDenied, InvalidRequest and what parse_claimed raises.
    """
    text, headers = head.headers["authorization"], head.headers
    start, mark, signature = text.rpartition("Signature=")
    claimed = start + mark or text
    parse = parse_claimed if len(claimed) <= MAX_LINE else parse_claimed.__wrapped__
    access_key, scope, names = parse(claimed)
    if not signature.isalnum() and not re.fullmatch(r"[^,\s]*", signature):
        raise S3Error("AuthorizationHeaderMalformed")
    date = headers.get("x-amz-date", "")
    if not date and "date" in headers:
        date = headers["date"]  # in x-amz-date's form, too [simples3]
        if parse_iso_date(date) is None:
            seconds = parse_http_date(date)
            date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds)) if seconds else ""
    if parse_iso_date(date) is None:
        raise S3Error("AccessDenied",
                      "AWS authentication requires a valid Date or x-amz-date header")
    if scope[:8] != date[:8]:
        raise S3Error("AuthorizationHeaderMalformed", "The Credential's date is not x-amz-date's.")
    if "x-amz-content-sha256" not in headers:
        raise S3Error("InvalidRequest", "Missing required header for this request: "
                      "x-amz-content-sha256")
    return Claim(access_key, date, scope, names, signature, headers["x-amz-content-sha256"])


def parse_presigned(head: Head) -> tuple[Claim, int]:
    """The claim of a presigned URL, and for how many seconds. [AWS: SigV4 query]

    Raises AuthorizationQueryParametersError.
    """
    code, query = "AuthorizationQueryParametersError", head.query
    missing = [f"X-Amz-{n}" for n in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders",
                                      "Signature") if f"X-Amz-{n}" not in query]
    if missing:
        raise S3Error(code, f"Query-string authentication requires {', '.join(missing)} too.")
    if query["X-Amz-Algorithm"] != ALGORITHM:
        raise S3Error(code, f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    access_key, scope = parse_credential(query["X-Amz-Credential"], code)
    date, expires = query["X-Amz-Date"], query["X-Amz-Expires"]
    if "-" in date or parse_iso_date(date) is None or scope[:8] != date[:8]:
        raise S3Error(code, "X-Amz-Date must be like 20240501T120000Z, on the Credential's day.")
    if not re.fullmatch("[0-9]{1,9}", expires) or int(expires) > MAX_EXPIRES:
        raise S3Error(code, f"X-Amz-Expires must be a number from 0 to {MAX_EXPIRES} seconds")
    names = parse_signed_headers(query["X-Amz-SignedHeaders"].lower(), code)
    told = {query.get("X-Amz-Content-Sha256"), head.headers.get("x-amz-content-sha256")}
    told -= {None, ""}
    if len(told) > 1:
        raise S3Error("InvalidRequest", "The URL and the header tell two X-Amz-Content-Sha256.")
    payload = next(iter(told), None) or UNSIGNED
    claim = Claim(access_key, date, scope, names, query["X-Amz-Signature"], payload)
    return claim, int(expires)


def secret_of(keyring: Keyring, access_key: str) -> str:
    """Raises InvalidAccessKeyId."""
    if access_key not in keyring.secrets or not access_key:
        is_secret = True in [same(access_key, secret) for secret in keyring.secrets.values()]
        shown = "" if is_secret else access_key  # the two were swapped: it is not to be logged
        raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=shown)
    return keyring.secrets[access_key]


# Headers that an SDK may move into a presigned URL's query, where they mean the same.  [JS SDK v3]
HOISTED = re.compile(
    "x-amz-(?:meta-.+|acl|tagging|storage-class|copy-source.*|server-side-.*|request-payer"
    "|(?:source-)?expected-bucket-owner|(?:metadata|tagging)-directive|rename-source.*"
    "|object-attributes|max-parts|part-number-marker|if-match-.*|write-offset-bytes"
    "|checksum-(?:algorithm|mode|type)|mp-object-size)")
AMZ_NAME = re.compile(f"(?i:x-amz-){TOKEN}")


def hoist(head: Head) -> Head:
    """The head with the headers that were moved into a presigned URL's query back in place.

    In SigV2 each x-amz-*, in V4 those of HOISTED and those that SignedHeaders names: AWS takes them
    from the URL, and who opens it need not send them. [boto3's default, JavaScript SDK v2] What
    can be no header stays where it is: in SigV2 a colon or line end would read as two of them.
    """
    query, is_v2 = head.query, "Signature" in head.query
    if not is_v2 and "X-Amz-Signature" not in query:
        return head
    signed = frozenset(query.get("X-Amz-SignedHeaders", "").lower().split(";"))
    moved = {n.lower(): v.strip(" \t").encode().decode("latin-1") for n, v in query.items()
             if (is_v2 or n.lower() in signed or HOISTED.fullmatch(n.lower()))
             and AMZ_NAME.fullmatch(n)}
    moved = {n: v for n, v in moved.items() if not UNSAFE.search(v)}
    if not moved:
        return head
    pairs = [(n, v) for n, v in head.pairs if n.lower() not in moved]
    query = dict(reversed(pairs))
    return head._replace(headers={**moved, **head.headers}, pairs=pairs, query=query)


def check_no_token(head: Head) -> None:
    name = "x-amz-security-token"
    if name in head.headers or name in map(str.lower, head.query):
        raise S3Error("InvalidToken")


def check_signed_headers(head: Head, claim: Claim) -> None:
    """Host and every x-amz-* header must be signed: one added to a URL would change it.

    x-amz-content-sha256 is signed in any case, as the claim's payload: AWS does not miss its name.
    """
    unsigned = [n for n in head.headers if n.startswith("x-amz-") and n not in claim.names
                and n != "x-amz-content-sha256"]
    if "host" not in claim.names:
        unsigned.append("host")
    if unsigned:
        raise S3Error("AccessDenied", "There were headers present in the request which were not "
                      "signed", HeadersNotSigned=", ".join(sorted(unsigned)))


# Any of these in the query is a signature, or half of one.
V4_NAMES = frozenset(("X-Amz-Signature", "X-Amz-Algorithm", "X-Amz-Credential"))
V2_NAMES = frozenset(("Signature", "AWSAccessKeyId"))
CLAIM_NAMES = V4_NAMES | V2_NAMES


def has_claim(head: Head) -> bool:
    """Whether somebody claims to have signed this request. A POST may carry it in its form."""
    return ("authorization" in head.headers or head.method == "POST"
            or not CLAIM_NAMES.isdisjoint(head.query))


def verify(
    head: Head, keyring: Keyring, bucket: str, now: float, explains: bool = True
) -> Optional[Signed]:
    """Who signed this request, verified; None when nobody claims to. The only way in.

    `bucket` is the one in the Host, or "". Raises the errors of every check below; a signature that
    does not match is looked into only where the client is to be told: that takes 0.2 ms.
    """
    has_header, is_v4, is_v2 = "authorization" in head.headers, False, False
    if head.query_text:
        names = head.query.keys()
        is_v4, is_v2 = not V4_NAMES.isdisjoint(names), not V2_NAMES.isdisjoint(names)
    if has_header + is_v4 + is_v2 > 1:
        raise S3Error("InvalidArgument", "Only one auth mechanism allowed; only the "
                      "X-Amz-Algorithm query parameter, Signature query string parameter or the "
                      "Authorization header should be specified", ArgumentName="Authorization")
    if is_v2:
        return verify_v2(head, keyring, bucket, now)
    if has_header:
        claim = parse_authorization(head)
        sent = parse_iso_date(claim.date) or 0.0
        secret = secret_of(keyring, claim.access_key)
        if abs(sent - now) > CLOCK_SKEW:
            raise S3Error("RequestTimeTooSkewed", RequestTime=claim.date,
                          ServerTime=render_iso_date(int(now)),
                          MaxAllowedSkewMilliseconds=CLOCK_SKEW * 1000)
    elif is_v4:
        claim, expires = parse_presigned(head)
        sent = parse_iso_date(claim.date) or 0.0
        secret = secret_of(keyring, claim.access_key)
        check_window(sent - CLOCK_SKEW, sent + expires, now, **{"X-Amz-Expires": expires})
    else:
        return None
    check_no_token(head)
    check_signed_headers(head, claim)
    query = canonical_query(head.pairs, "X-Amz-Signature") if head.query_text else ""
    head, path = hoist(head) if is_v4 else head, canonical_path(head.path)
    head = head if path == head.path else head._replace(path=path)
    key = signing_key(secret, claim.scope)
    if not has_signed(key, head, claim, query):
        head = head._replace(headers={n: one_blank(v) for n, v in head.headers.items()})
        if not any(has_signed(key, head, claim, query, **changed)
                   for changed in proxy_candidates(head, claim, keyring, bucket)):
            raise (mismatch(head, claim, secret, query) if explains
                   else S3Error("SignatureDoesNotMatch"))
    return Signed(claim.access_key, claim.payload, claim.date, claim.scope, claim.signature, key)


def check_window(first: float, last: float, now: float, **told: object) -> None:
    """Raises AccessDenied outside a presigned URL's time; `told` is in its document."""
    if now < first:
        raise S3Error("AccessDenied", "Request is not valid yet",
                      ServerTime=render_iso_date(int(now)))
    if now > last:
        raise S3Error("AccessDenied", "Request has expired", None, **told,
                      Expires=render_iso_date(int(last)), ServerTime=render_iso_date(int(now)))


def has_signed(key: SigningKey, head: Head, claim: Claim, query: str, /, **changed: str) -> bool:
    """Whether the signature is the key's, for the request with what `changed` says."""
    text = string_to_sign(claim, canonical_request(head, claim, query, **changed))
    return same(key.sign(text), claim.signature)


def mismatch(head: Head, claim: Claim, secret: str, query: str) -> S3Error:
    """What a client is told whose signature is not its key's."""
    canonical = canonical_request(head, claim, query)
    return S3Error("SignatureDoesNotMatch", explain(head, claim, secret, query),
                   AWSAccessKeyId=claim.access_key, StringToSign=string_to_sign(claim, canonical),
                   SignatureProvided=claim.signature, CanonicalRequest=canonical)


# Values of Accept-Encoding that SDKs sign and proxies rewrite.    [Go SDK v2, boto3, JavaScript v3]
SIGNED_ENCODINGS = ("identity", "gzip", "", "gzip, deflate", "gzip,deflate", "gzip, deflate, br")


def proxy_candidates(
    head: Head, claim: Claim, keyring: Keyring, bucket: str
) -> Iterator[dict[str, str]]:
    """What a proxy may have changed on the way, each tried with a full compare. [ours]

    Our other names, the Host without its port (git-annex signs it so), Accept-Encoding, and the
    Expect that nginx answers itself (boto 2 signs it, and gsutil with it).
    """
    host = head.headers.get("host", "")
    names = [host, host.rpartition(":")[0] if ":" in host else host]
    names += [f"{bucket}.{name}" if bucket else name for name in keyring.hosts]
    names = [name for name in names if means_bucket(name, bucket, keyring)]
    encodings: tuple[Optional[str], ...] = (None,)
    if "accept-encoding" in claim.names:
        encodings += SIGNED_ENCODINGS
    lost = {}
    if "expect" in claim.names and "expect" not in head.headers:
        lost = {"expect": "100-Continue"}
    for name in dict.fromkeys(names):
        for encoding in encodings:
            if encoding is not None:
                yield {"host": name, "accept-encoding": encoding, **lost}
            elif name != host or lost:
                yield {"host": name, **lost}


def means_bucket(host: str, bucket: str, keyring: Keyring) -> bool:
    """Whether a client that signed this Host meant the same bucket. `bucket` is the Host's, or "".

    Else a URL made for the key b/k of one bucket would open the key k of the bucket b.
    """
    named = bucket_of_host(host.lower(), keyring.domain)
    return named == bucket or not named and host not in keyring.hosts


def explain(head: Head, claim: Claim, secret: str, query: str) -> str:
    """Why a known key's signature does not match, as far as usual mistakes tell.

    Tries what people and proxies get wrong, and names the one that would have matched. Never
    the signature that was expected.
    """
    default, key = ERRORS["SignatureDoesNotMatch"][1], signing_key(secret, claim.scope)
    for sentence, changed in mistakes(head, query):
        if has_signed(key, head, claim, query, **changed):
            return f"{default} {sentence}"
    lost = [name for name in claim.names if name not in head.headers]
    if lost:
        text = f"{default} The client signed {', '.join(lost[:10])}, which did not arrive."
        if "X-Amz-Signature" in head.query:
            text += " Who opens the URL sends these too, as they were when it was made."
        if re.search("[_.]", "".join(lost)):
            text += (" nginx drops names with _ or . in them, but not with: "
                     "ignore_invalid_headers off; Caddy drops them too, but those with _ not with: "
                     "servers { expected_underscore_headers NAME }")
        return text
    for stray in (secret + " ", secret + "\n", secret + "\r\n", " " + secret, secret.strip()):
        key = signing_key(stray, claim.scope)
        if stray != secret and has_signed(key, head, claim, query):
            return f"{default} The client's secret key has a stray space or newline around it."
    if "X-Amz-Signature" in head.query:
        more = ", ".join([name for name in claim.names if name != "host"][:10])
        if more:
            default += f" The URL is for one value of {more}: was it sent as it was signed?"
        return (f"{default} Was the URL made for another host than {head.host}? Then name that in "
                "buckets.ini: hosts = ...")
    return default


def mistakes(head: Head, query: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Usual mistakes: (what to do, what the client then signed)."""
    forwarded = head.headers.get("x-forwarded-host", "").split(",")[0].strip()
    if forwarded:
        yield (f"The client signed Host: {forwarded}, the proxy sent another. In nginx: "
               "proxy_set_header Host $http_host; or set hosts = in buckets.ini.",
               {"host": forwarded})
    for method in ("GET", "PUT", "HEAD", "POST", "DELETE"):
        if method != head.method:
            yield f"It was signed for {method}, not {head.method}.", {"method": method}
    path = head.path
    cause = "The client signed another spelling of the path: "
    yield (cause + "it escapes twice; S3's paths are escaped once.",
           {"path": quote(path, safe="/-._~")})
    yield cause + "unescaped.", {"path": unquote_to_bytes(path).decode("latin-1")}
    yield cause + "with + for a space.", {"path": path.replace("%20", "+")}
    yield cause + "with // merged.", {"path": re.sub("/+", "/", path)}
    for slash in itertools.islice(re.finditer("/", path), 10):
        yield ("The client signed a path with //, and a proxy merged them. In nginx: proxy_pass "
               "without a path, not even /; merge_slashes off;",
               {"path": f"{path[:slash.start()]}/{path[slash.start():]}"})
    yield cause + "without its trailing slash.", {"path": path.rstrip("/") or "/"}
    if head.query_text:
        for plus in ("%2B", "+"):
            yield ("The client signed + for a space in the query.",
                   {"query": query.replace("%20", plus)})
        yield "The client did not sign the query.", {"query": ""}
    if "content-type" in head.headers:
        yield "The Content-Type that came is not the signed one.", {"content-type": ""}


# SigV2 signs these query names, and no others.     [AWS: REST authentication (V2); botocore: auth]
V2_RESOURCES = frozenset((
    "accelerate", "acl", "analytics", "cors", "defaultObjectAcl", "delete", "inventory",
    "lifecycle", "location", "logging", "metrics", "notification", "object-lock", "partNumber",
    "policy", "replication", "requestPayment", "restore", "select", "select-type", "storageClass",
    "tagging", "torrent", "uploadId", "uploads", "versionId", "versioning", "versions", "website",
    "response-cache-control", "response-content-disposition", "response-content-encoding",
    "response-content-language", "response-content-type", "response-expires",
))


HIDDEN_V2 = re.compile(f"&(?:{'|'.join(sorted(V2_RESOURCES))})=")


def check_nothing_is_hidden(head: Head) -> None:
    """SigV2 signs values as they are: a=1&b=2 is two parameters, or an a of "1&b=2". Who has a URL
    of two could open it without the second, which may be what makes a download of a page.

    Raises AccessDenied.
    """
    for name, value in head.pairs:
        if name in V2_RESOURCES and HIDDEN_V2.search(value):
            raise S3Error("AccessDenied", f"The value of {name} holds another parameter. SigV2 "
                          "cannot tell them apart: sign it with SigV4.")


def canonical_v2(head: Head, bucket: str, expires: str) -> str:
    """The bytes that SigV2 signs in a presigned URL, as latin-1 text; the path as it came."""
    amz = sorted((n, v) for n, v in head.headers.items() if n.startswith("x-amz-"))
    named = sorted((n, v) for n, v in head.pairs if n in V2_RESOURCES)
    path = (f"/{bucket}" if bucket else "") + head.path
    if named:
        flags = {p for p in head.query_text.split("&") if "=" not in p}
        text = "&".join([n if n in flags else f"{n}={v}" for n, v in named])
        path += "?" + text.encode().decode("latin-1")
    return "\n".join([head.method, head.headers.get("content-md5", ""),
                      head.headers.get("content-type", ""), expires,
                      *[f"{n}:{v}" for n, v in amz], path])


def sign_v2(secret: str, data: bytes) -> str:
    return base64.b64encode(hmac.digest(secret.encode(), data, "sha1")).decode()


def verify_v2(head: Head, keyring: Keyring, bucket: str, now: float) -> Signed:
    """A presigned URL in SigV2, which is still what boto3 makes by default. [boto3 1.44]

    Raises AccessDenied, InvalidAccessKeyId, SignatureDoesNotMatch.
    """
    query = head.query
    if not {"AWSAccessKeyId", "Signature", "Expires"} <= query.keys():
        raise S3Error("AccessDenied", "Query-string authentication requires the Signature, Expires "
                      "and AWSAccessKeyId parameters")
    secret = secret_of(keyring, query["AWSAccessKeyId"])
    if not re.fullmatch("[0-9]{1,12}", query["Expires"]):
        raise S3Error("AccessDenied", "Invalid date (should be seconds since epoch): Expires")
    check_window(0, int(query["Expires"]), now)
    check_no_token(head)
    check_nothing_is_hidden(head)
    head = hoist(head)
    # As it came, or in canonical escapes: clients differ in what they leave bare.
    heads = [head, head._replace(path=canonical_path(head.path))]
    if not bucket and re.fullmatch("/[^/]+", head.path):  # /BUCKET is signed as /BUCKET/
        heads.append(head._replace(path=head.path + "/"))  # [botocore 1.44: handlers]
    bare = re.sub("=(?=&|$)", "", head.query_text)
    if bare != head.query_text:  # ?acl= is signed as ?acl  [JavaScript SDK v2]
        heads += [h._replace(query_text=bare) for h in heads]
    text, *others = dict.fromkeys(canonical_v2(h, bucket, query["Expires"]) for h in heads)
    for candidate in (text, *others):
        if same(sign_v2(secret, candidate.encode("latin-1")), query["Signature"]):
            payload = head.headers.get("x-amz-content-sha256", UNSIGNED)  # signed, if it is there
            return Signed(query["AWSAccessKeyId"], payload)
    raise S3Error("SignatureDoesNotMatch", AWSAccessKeyId=query["AWSAccessKeyId"],
                  StringToSign=text, SignatureProvided=query["Signature"])


POLICY_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


def unescape_policy(match: re.Match[bytes]) -> bytes:
    r"""The escapes \$ and \v are a policy's, not JSON's. [AWS: POST policy]"""
    return {b"$": b"$", b"v": b"\\u000b"}.get(match[1], match[0])


def parse_policy(text: str) -> tuple[float, list[object]]:
    """(expiration, conditions) of a POST policy. Raises InvalidPolicyDocument. [AWS: POST]"""
    try:
        document = base64.b64decode(text, validate=True)
        value = json.loads(POLICY_ESCAPE.sub(unescape_policy, document))
        expiration = parse_iso_date(value["expiration"])
        conditions = value["conditions"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise S3Error("InvalidPolicyDocument") from None
    if expiration is None or not isinstance(conditions, list):
        raise S3Error("InvalidPolicyDocument",
                      "Invalid Policy: it needs expiration and conditions.")
    return expiration, conditions


# The fields of a form's signature, and how AWS writes them.
V4_FIELDS = {"x-amz-algorithm": "X-Amz-Algorithm", "x-amz-credential": "X-Amz-Credential",
             "x-amz-date": "X-Amz-Date", "x-amz-signature": "X-Amz-Signature"}
V2_FIELDS = {"awsaccesskeyid": "AWSAccessKeyId", "signature": "Signature"}


def verify_form(fields: Mapping[str, str], keyring: Keyring) -> Signed:
    """Who signed a POST form, in V4 or V2. The policy's conditions are another matter.

    Raises AccessDenied, InvalidArgument, InvalidAccessKeyId, SignatureDoesNotMatch.
    """
    if fields.keys().isdisjoint((*V4_FIELDS, *V2_FIELDS)):
        raise S3Error("AccessDenied", "A POST form needs a policy and its signature.")
    is_v4 = "x-amz-signature" in fields or fields.keys().isdisjoint(V2_FIELDS)
    policy = fields.get("policy", "")
    for name, shown in {"policy": "policy", **(V4_FIELDS if is_v4 else V2_FIELDS)}.items():
        if name not in fields:
            raise S3Error("InvalidArgument", f"Bucket POST must contain a field named '{shown}'. "
                          "If it is specified, please check the order of the fields.",
                          ArgumentName=shown, ArgumentValue="")
    if "x-amz-security-token" in fields:
        raise S3Error("InvalidToken")
    if not is_v4:
        access_key = fields["awsaccesskeyid"]
        expected = sign_v2(secret_of(keyring, access_key), policy.encode())
        given = fields["signature"]
    else:
        if fields["x-amz-algorithm"] != ALGORITHM:
            raise S3Error("InvalidArgument", f"X-Amz-Algorithm only supports {ALGORITHM}",
                          ArgumentName="x-amz-algorithm")
        access_key, scope = parse_credential(fields["x-amz-credential"], "InvalidArgument")
        if parse_iso_date(fields["x-amz-date"]) is None or fields["x-amz-date"][:8] != scope[:8]:
            raise S3Error("InvalidArgument", "x-amz-date must be on the credential's day.",
                          ArgumentName="x-amz-date")
        key = signing_key(secret_of(keyring, access_key), scope)
        expected, given = key.sign(policy), fields["x-amz-signature"]
    if not same(expected, given):
        raise S3Error("SignatureDoesNotMatch", AWSAccessKeyId=access_key, StringToSign=policy)
    return Signed(access_key, UNSIGNED)


# Fields of a form that need no condition.                                       [AWS: POST policy]
UNCONDITIONED = frozenset(("x-amz-signature", "file", "policy", "signature", "awsaccesskeyid"))


def check_policy(fields: Mapping[str, str], bucket: str, now: float) -> range:
    """The sizes that the policy allows, when every condition of it holds and every field has one.

    `bucket` is the URL's, never the form's [CVE-2023-43040]. Raises AccessDenied,
    InvalidPolicyDocument.
    """
    expiration, conditions = parse_policy(fields["policy"])
    if now > expiration:
        raise S3Error("AccessDenied", "Invalid according to Policy: Policy expired.")
    values = {**fields, "bucket": bucket}
    sizes, named = range(MAX_PUT + 1), set[str]()
    for condition in conditions:
        kind, name, wanted = parse_condition(condition)
        if kind == "content-length-range":
            sizes = range(max(sizes.start, int(name)), min(sizes.stop, int(wanted) + 1))
            continue
        named.add(name)
        if not condition_holds(kind, name, wanted, values.get(name)):
            shown = json.dumps(condition)  # escaped: it may have a lone surrogate
            raise S3Error("AccessDenied",
                          f"Invalid according to Policy: Policy Condition failed: {shown}")
    extra = [n for n in fields if n not in named | UNCONDITIONED and not n.startswith("x-ignore-")]
    if extra or "bucket" not in named:
        raise S3Error("AccessDenied", "Invalid according to Policy: Extra input fields: "
                      + ", ".join(extra or ["bucket"]))
    return sizes


def parse_condition(condition: object) -> tuple[str, str, str]:
    """(kind, field or lowest size, value or highest size). Raises InvalidPolicyDocument."""
    bad = S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid condition.")
    if isinstance(condition, dict):
        if len(condition) != 1:
            raise bad
        condition = ["eq", *(x for n, v in condition.items() for x in ("$" + n, v))]
    if not isinstance(condition, list) or len(condition) != 3 or not isinstance(condition[0], str):
        raise bad
    kind, name, wanted = condition[0].lower(), condition[1], condition[2]
    if kind == "content-length-range":
        sizes = [str(x) for x in (name, wanted)]
        if not all(re.fullmatch("[0-9]{1,19}", x) for x in sizes):  # some say 2**63 - 1
            raise bad
        return kind, sizes[0], sizes[1]
    if not isinstance(name, str) or not isinstance(wanted, str):
        raise bad
    if kind not in ("eq", "starts-with") or not name.startswith("$"):
        raise bad
    return kind, name[1:].lower(), wanted


def condition_holds(kind: str, name: str, wanted: str, value: Optional[str]) -> bool:
    if value is None:
        return False
    if kind == "eq":
        return value == wanted
    if name == "content-type":  # every type of a list must start so              [AWS: POST policy]
        return all(v.strip().startswith(wanted) for v in value.split(","))
    return value.startswith(wanted)


# ==================================================================================================
# 8. Bodies
# ==================================================================================================


class Source(Protocol):
    """Bytes on their way in. read gives at most `size` bytes, b"" at the end."""

    def read(self, size: int) -> bytes: ...


class LengthReader:
    """Content-Length bytes of a connection."""

    def __init__(self, stream: Source, length: int):
        self._read = getattr(stream, "read_all", stream.read)  # these bytes will come: wait for all
        self.left = length

    def read(self, size: int) -> bytes:
        """Raises IncompleteBody when the connection ends early."""
        if not self.left:
            return b""
        data = self._read(min(size, self.left))
        if not data:
            raise S3Error("IncompleteBody")
        self.left -= len(data)
        return data


class LineReader:
    """A source with lines: what both kinds of chunks are made of."""

    def __init__(self, stream: Source):
        self._stream, self._buffer = stream, b""

    def read(self, size: int) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer[:size], self._buffer[size:]
            return data
        return self._stream.read(size)

    def line(self) -> bytes:
        """Up to CRLF, without it. Raises IncompleteBody when there is none within MAX_LINE."""
        while b"\r\n" not in self._buffer:
            more = self._stream.read(MAX_LINE) if len(self._buffer) < MAX_LINE else b""
            if not more:
                raise S3Error("IncompleteBody", "The body ends, or a line is too long.")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def rest(self) -> bytes:
        """What was read from the stream and not used."""
        return self._buffer


CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")


class ChunkedReader:
    """Transfer-Encoding: chunked. Extensions and trailers are refused: S3's clients send none."""

    def __init__(self, stream: Source, give_back: Callable[[bytes], None]):
        self._lines, self._give_back = LineReader(stream), give_back
        self._left, self.done, self._failed = 0, False, False

    def read(self, size: int) -> bytes:
        """Raises IncompleteBody, BadRequest; for ever after the first time."""
        if self._failed:
            raise S3Error("BadRequest", "The chunks before were wrong.")
        self._failed = True  # until this read is through
        data = self._read(size)
        self._failed = False
        return data

    def _read(self, size: int) -> bytes:
        if self.done:
            return b""
        if not self._left and not self._next_chunk():
            return b""
        data = self._lines.read(min(size, self._left))
        if not data:
            raise S3Error("IncompleteBody")
        self._left -= len(data)
        if not self._left and self._lines.line():
            raise S3Error("BadRequest", "A chunk is not followed by a line end.")
        return data

    def _next_chunk(self) -> int:
        line = self._lines.line()
        if not CHUNK_SIZE.fullmatch(line):
            raise S3Error("BadRequest", "A chunk's size is not a hexadecimal number.")
        self._left = int(line, 16)
        if not self._left:
            if self._lines.line():
                raise S3Error("BadRequest", "Trailers of chunked transfer are not accepted.")
            self.done = True
            self._give_back(self._lines.rest())
        return self._left


class AwsChunkedReader:
    """Content-Encoding: aws-chunked: chunks with signatures and trailers. [AWS: sigv4-streaming]

    `signed` is None for STREAMING-UNSIGNED-PAYLOAD-TRAILER. After the end `trailers` holds what
    came, lower case. Data is given out before its chunk's signature has been seen: nothing may be
    committed before read() has returned b"".
    """

    def __init__(self, source: Source, signed: Optional[Signed], has_trailer: bool):
        self._source, self._lines = source, LineReader(source)
        self._signed, self._has_trailer = signed, has_trailer
        self._previous = signed.signature if signed else ""
        self._left, self._expected, self._hash = 0, "", hashlib.sha256()
        self._short, self.done = False, False
        self.trailers: dict[str, str] = {}

    def read(self, size: int) -> bytes:
        """Raises IncompleteBody, InvalidChunkSizeError, SignatureDoesNotMatch, Malformed..."""
        if self.done or not self._left and not self._next_chunk():
            return b""
        data = self._lines.read(min(size, self._left))
        if not data:
            raise S3Error("IncompleteBody")
        self._left -= len(data)
        if self._signed:
            self._hash.update(data)
        if not self._left:
            if self._lines.line():
                raise S3Error("IncompleteBody", "A chunk is longer than its size.")
            self._check_chunk()
        return data

    def _next_chunk(self) -> int:
        size, _, extension = self._lines.line().partition(b";")
        if not CHUNK_SIZE.fullmatch(size):
            raise S3Error("IncompleteBody", "A chunk's size is not a hexadecimal number.")
        self._left = int(size, 16)
        if self._short and self._left:
            raise S3Error("InvalidChunkSizeError")
        self._short = self._left < MIN_CHUNK
        self._check_extension(extension)
        if not self._left:
            self._check_chunk()
            self._read_trailers()
            if self._lines.rest() or self._source.read(1):
                raise S3Error("IncompleteBody", "There are bytes after the last chunk.")
            self.done = True
        return self._left

    def _check_extension(self, extension: bytes) -> None:
        match = re.fullmatch(b"[ ]?chunk-signature=([0-9a-f]{64})", extension)
        if self._signed and not match or not self._signed and extension:
            raise S3Error("IncompleteBody", "A chunk's signature is missing or misplaced.")
        self._expected = match[1].decode() if match else ""

    def _check_chunk(self) -> None:
        if not self._signed:
            return
        digest, self._hash = self._hash.hexdigest(), hashlib.sha256()
        self._check(f"-PAYLOAD\n{{}}\n{EMPTY_SHA256}\n{digest}", self._expected)

    def _check(self, form: str, expected: str) -> None:
        """Raises SignatureDoesNotMatch; each signature is chained to the one before."""
        assert self._signed
        assert self._signed.key
        place = f"{self._signed.date}\n{self._signed.scope}\n{self._previous}"
        if not same(self._signed.key.sign(ALGORITHM + form.format(place)), expected):
            raise S3Error("SignatureDoesNotMatch", "The signature of a chunk does not match.")
        self._previous = expected

    def _read_trailers(self) -> None:
        """Raises MalformedTrailerError, SignatureDoesNotMatch."""
        text, signature = "", None
        while True:
            line = self._lines.line().rstrip(b"\n")
            if not line:
                break
            match = re.fullmatch(rb"([A-Za-z0-9-]{1,64}):[ \t]*([!-~]{0,256})[ \t]*", line)
            if not match or not self._has_trailer or len(self.trailers) > 4:
                raise S3Error("MalformedTrailerError")
            name, value = match[1].decode().lower(), match[2].decode()
            if name == "x-amz-trailer-signature" and signature is None:
                signature = value
            elif name in self.trailers or signature is not None:
                raise S3Error("MalformedTrailerError")
            else:
                self.trailers[name] = value
                text += f"{name}:{value}\n"
        if self._signed and self._has_trailer:
            digest = hashlib.sha256(text.encode()).hexdigest()
            self._check(f"-TRAILER\n{{}}\n{digest}", signature or "")


STREAMING = {  # x-amz-content-sha256: (chunks are signed, there is a trailer)
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": (True, False),
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": (True, True),
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER": (False, True),
}
NOT_CHECKSUMS = frozenset(("algorithm", "mode", "type"))  # x-amz-checksum-* that carry no value


class Promise(NamedTuple):
    """What a head says of its body: everything to be verified."""

    sha256: str = ""  # hex; "": unsigned
    md5: Optional[bytes] = None
    checksums: Mapping[str, str] = {}  # algorithm -> base64 in the head
    trailer: str = ""  # the algorithm whose value comes behind the body
    algorithm: str = ""  # one to compute in any case: the header's or trailer's
    length: Optional[int] = None  # of the decoded body, when it is told


def parse_promise(headers: Mapping[str, str], payload: str) -> Promise:
    """Raises InvalidDigest, InvalidArgument, InvalidRequest, NotImplemented, Malformed..."""
    sha256, md5 = "", None
    if payload not in STREAMING and payload != UNSIGNED:
        if not re.fullmatch("[0-9a-f]{64}", payload):
            raise S3Error("InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, one "
                          f"of {', '.join(STREAMING)}, or a valid sha256 value.",
                          ArgumentName="x-amz-content-sha256", ArgumentValue=payload)
        sha256 = payload
    if "content-md5" in headers:
        md5 = parse_base64(headers["content-md5"], 16)
        if md5 is None:
            raise S3Error("InvalidDigest", "", None, **{"Content-MD5": headers["content-md5"]})
    checksums = parse_checksums(headers)
    trailer = parse_trailer(headers, payload, bool(checksums))
    if trailer and checksums:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header or trailer.")
    algorithm = trailer or next(iter(checksums), "")
    asked = headers.get("x-amz-sdk-checksum-algorithm", "").upper()
    if asked and asked not in ALGORITHMS and asked != "MD5":
        raise S3Error("NotImplemented", f"The checksum algorithm {asked} is not done here.")
    if asked in ALGORITHMS and asked != algorithm:
        raise S3Error("InvalidRequest", "x-amz-sdk-checksum-algorithm specified, but no "
                      "corresponding x-amz-checksum-* or x-amz-trailer headers were found.")
    return Promise(sha256, md5, checksums, trailer, algorithm)


def told_checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """The x-amz-checksum-* of a head: algorithm -> base64, in a Complete maybe with -N behind."""
    return {n[15:].upper(): v for n, v in headers.items()
            if n.startswith("x-amz-checksum-") and n[15:] not in NOT_CHECKSUMS}


def parse_checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """The same of a body, at most one. Raises InvalidRequest, NotImplemented."""
    found = told_checksums(headers)
    for algorithm, value in found.items():
        name = checksum_header(algorithm)
        if algorithm not in ALGORITHMS:
            raise S3Error("NotImplemented", f"{name} is not done here.", Header=name)
        if parse_base64(value, len(ALGORITHMS[algorithm]().digest())) is None:
            raise S3Error("InvalidRequest", f"Value for {name} header is invalid.")
    if len(found) > 1:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple "
                      "checksum Types are not allowed.")
    return found


def parse_trailer(headers: Mapping[str, str], payload: str, has_header: bool) -> str:
    """The algorithm of the announced trailer, or "". Raises InvalidRequest, MalformedTrailer..."""
    names = parse_list(headers.get("x-amz-trailer", "").lower())
    if not names:
        return ""
    algorithm = names[0][15:].upper() if names[0].startswith("x-amz-checksum-") else ""
    if len(names) > 1 or algorithm not in ALGORITHMS:
        raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not "
                      "supported")
    if not STREAMING.get(payload, (False, False))[1]:
        if not has_header:
            raise S3Error("MalformedTrailerError", "A trailer is announced and the body has none.")
        return ""  # Java's SDK announces one and sends a header instead        [silo #107, #143]
    return algorithm


@functools.lru_cache(1)
def hashers() -> Any:
    """A queue; what is put there is called by one of as many threads as there are cores.

    hashlib works without Python's lock, while others receive and write. Raises ServiceUnavailable.
    """
    import queue

    tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            tasks.get()()

    for number in range(os.cpu_count() or 1):
        try:
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError:  # there are no more threads to be had: one will do
            if not number:
                raise S3Error("ServiceUnavailable") from None
    return tasks


if hasattr(os, "register_at_fork"):  # threads do not outlive a fork: a child has its own
    os.register_at_fork(after_in_child=hashers.cache_clear)


class Md5Behind:
    """MD5, the slowest of the hashes, up to HASH_AHEAD pieces behind the reader in other threads.

    One of its pieces at a time waits for a thread, so that all bodies have their turns. Small ones
    are hashed at once: handing one over takes 15 us, hashing 64 KiB takes 90.
    """

    def __init__(self) -> None:
        self._md5 = new_md5()
        self._pieces: deque[bytes] = deque()  # the first is being hashed
        self._changed: Optional[threading.Condition] = None

    def update(self, data: bytes) -> None:
        """Raises ServiceUnavailable where no thread can be had."""
        if not self._pieces and len(data) < SMALL:
            self._md5.update(data)
            return
        tasks = hashers()
        self._changed = self._changed or threading.Condition()
        with self._changed:
            while len(self._pieces) >= HASH_AHEAD:
                self._changed.wait()
            self._pieces.append(data)
            is_first = len(self._pieces) == 1
        if is_first:
            tasks.put(functools.partial(self._hash_one, self._changed))

    def _hash_one(self, changed: threading.Condition) -> None:
        self._md5.update(self._pieces[0])
        with changed:
            self._pieces.popleft()
            has_more = bool(self._pieces)
            changed.notify()
        if has_more:
            hashers().put(functools.partial(self._hash_one, changed))

    def digest(self) -> bytes:
        """Once all is hashed."""
        if self._changed:
            with self._changed:
                while self._pieces:
                    self._changed.wait()
        return self._md5.digest()


class Body:
    """The payload, decoded and verified while it is read.

    read() returns b"" only when everything promised has held; then `size`, `md5` (hex) and
    `checksums` (algorithm -> base64) tell what came.
    """

    def __init__(self, source: Source, promise: Promise, limit: int = MAX_PUT):
        self._source, self._promise, self._limit = source, promise, limit
        self.length, self.size, self.md5, self._done = promise.length, 0, "", False
        self.algorithm = promise.algorithm
        self.checksums: dict[str, str] = {}
        self._md5 = Md5Behind()
        self._sha256 = hashlib.sha256() if promise.sha256 else None
        self._sums = {a: ALGORITHMS[a]() for a in {promise.algorithm} - {""}}
        if promise.length is not None and promise.length > limit:
            raise S3Error("EntityTooLarge", ProposedSize=promise.length, MaxSizeAllowed=limit)

    def want(self, algorithm: str) -> None:
        """Compute this checksum too. To be called before the first read."""
        self._sums.setdefault(algorithm, ALGORITHMS[algorithm]())

    def read(self, size: int = PIECE) -> bytes:
        """Raises BadDigest, XAmzContentSHA256Mismatch, IncompleteBody, EntityTooLarge, ..."""
        data = b"" if self._done else self._source.read(size)
        if not data:
            if not self._done:
                self._finish()
            return b""
        self.size += len(data)
        if self.size > self._limit:
            raise S3Error("EntityTooLarge", ProposedSize=self.size, MaxSizeAllowed=self._limit)
        if self.length is not None and self.size > self.length:
            raise S3Error("IncompleteBody", "The body does not have its decoded length.")
        self._md5.update(data)
        if self._sha256:
            self._sha256.update(data)
        for checksum in self._sums.values():
            checksum.update(data)
        return data

    def read_all(self, limit: int = MAX_DOCUMENT) -> bytes:
        """A document whole. Raises MaxMessageLengthExceeded and what read raises."""
        found = bytearray()  # not a list: a client may send it byte by byte
        while data := self.read():
            found += data
            if len(found) > limit:
                raise S3Error("MaxMessageLengthExceeded", MaxMessageLengthBytes=limit)
        return bytes(found)

    def _finish(self) -> None:
        promise = self._promise
        if promise.length is not None and promise.length != self.size:
            raise S3Error("IncompleteBody", "The body does not have its decoded length.")
        digest = self._md5.digest()
        self.md5 = digest.hex()
        if promise.md5 is not None and promise.md5 != digest:
            raise S3Error("BadDigest", "The Content-MD5 you specified did not match what we "
                          "received.", CalculatedDigest=self.md5)
        if self._sha256 and self._sha256.hexdigest() != promise.sha256:
            raise S3Error("XAmzContentSHA256Mismatch",
                          ClientComputedContentSHA256=promise.sha256,
                          S3ComputedContentSHA256=self._sha256.hexdigest())
        self.checksums = {a: base64.b64encode(c.digest()).decode() for a, c in self._sums.items()}
        for algorithm, value in {**promise.checksums, **self._trailer()}.items():
            if self.checksums[algorithm] != value:
                raise S3Error("BadDigest", f"The {algorithm} you specified did not match the "
                              "calculated checksum.")
        self._done = True

    def _trailer(self) -> dict[str, str]:
        """Raises MalformedTrailerError, InvalidRequest."""
        trailers = getattr(self._source, "trailers", {})
        algorithm = self._promise.trailer
        if set(trailers) != ({checksum_header(algorithm)} if algorithm else set()):
            raise S3Error("MalformedTrailerError")
        if not algorithm:
            return {}
        name = checksum_header(algorithm)
        if parse_base64(trailers[name], len(ALGORITHMS[algorithm]().digest())) is None:
            raise S3Error("InvalidRequest", f"Value for {name} trailing header is invalid.")
        return {algorithm: trailers[name]}


class FormReader:
    """A multipart/form-data body: its fields, then its file as a source. [RFC 7578, AWS: POST]

    What comes behind the file is ignored. Fields are small, the file is streamed.
    """

    def __init__(self, content_type: str, source: Source):
        """Raises PreconditionFailed, MalformedPOSTRequest."""
        match = re.search(r'(?i);\s*boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', content_type)
        if not content_type.lower().startswith("multipart/form-data"):
            condition = "Bucket POST must be of the enclosure-type multipart/form-data"
            raise S3Error("PreconditionFailed", condition, Condition=condition)
        if not match:
            raise S3Error("MalformedPOSTRequest", "The form has no boundary.")
        self._source = source
        self._end = b"\r\n--" + (match[1] or match[2]).encode("latin-1")
        self._buffer, self._done = b"\r\n", False
        self._heads = 0  # bytes of the parts' heads
        self.fields: dict[str, str] = {}

    def read_fields(self) -> Optional[str]:
        """Fill `fields` up to the file, lower-case names; gives the file's name, if it has one.

        Raises MalformedPOSTRequest, MaxPostPreDataLengthExceeded, InvalidArgument.
        """
        self._until(self._end, MAX_LINE)  # what stands before the first part counts for nothing
        size = 0  # bytes of names and values
        while True:
            rest = self._line().strip(b" \t")
            if rest == b"--":
                raise S3Error("InvalidArgument", "POST requires exactly one file upload per "
                              "request.", ArgumentName="file", ArgumentValue="0")
            if rest:
                raise S3Error("MalformedPOSTRequest", "A part has the form's boundary in it.")
            name, filename = self._part_head()
            if name == "file":
                return filename
            value = self._until(self._end, MAX_FORM)
            size += len(name) + len(value)
            if size > MAX_FORM:
                raise S3Error("MaxPostPreDataLengthExceeded")
            try:
                self.fields[name] = value.decode("utf-8")
            except UnicodeDecodeError:
                raise S3Error("MalformedPOSTRequest", "The form's fields are not UTF-8.") from None

    def _part_head(self) -> tuple[str, Optional[str]]:
        """(name, file name) of a part."""
        found: tuple[str, Optional[str]] = ("", None)
        while line := self._line():
            self._heads += len(line)
            if self._heads > MAX_FORM:
                raise S3Error("MaxPostPreDataLengthExceeded")
            kind, _, value = line.decode("utf-8", "replace").partition(":")
            if kind.strip().lower() == "content-disposition":
                name = re.search(r'\bname="([^"]*)"', value) or re.search(
                    r"\bname=([^;\s]+)", value
                )
                file = re.search(r'\bfilename="((?:[^"\\]|\\.)*)"', value) or re.search(
                    r'\bfilename=([^;\s"]+)', value  # as .NET writes it
                )
                found = (name[1].lower() if name else "", file[1] if file else None)
        if not found[0]:
            raise S3Error("MalformedPOSTRequest", "A part of the form has no name.")
        return found

    def _line(self) -> bytes:
        return self._until(b"\r\n", MAX_LINE)

    def _until(self, end: bytes, limit: int) -> bytes:
        """What stands before `end`, which is passed. Raises MalformedPOSTRequest, MaxPost..."""
        while end not in self._buffer:
            if len(self._buffer) > limit + len(end) + SMALL:
                raise S3Error("MaxPostPreDataLengthExceeded")
            self._more()
        data, _, self._buffer = self._buffer.partition(end)
        if len(data) > limit:
            raise S3Error("MaxPostPreDataLengthExceeded")
        return data

    def _more(self, size: int = SMALL) -> None:
        pieces, left = [], KIB  # of chunks of a byte each would be one search of the buffer
        while left > 0 and (data := self._source.read(size)):
            pieces.append(data)
            left -= len(data)
        if not pieces:
            raise S3Error("MalformedPOSTRequest", "The form ends within a part.")
        self._buffer += b"".join(pieces)

    def _check_end(self, at: int) -> None:
        """What is behind the boundary tells whether it is one. Raises MalformedPOSTRequest."""
        while len(self._buffer) < at + 2:
            self._more()
        behind = self._buffer[at : at + 2]
        if behind not in (b"--", b"\r\n") and behind[:1] not in (b" ", b"\t"):
            raise S3Error("MalformedPOSTRequest", "The file has the form's boundary in it.")

    def read(self, size: int) -> bytes:
        """The file's bytes. Raises MalformedPOSTRequest when its end never comes."""
        if self._done:
            return b""
        while len(self._buffer) <= len(self._end) and self._end not in self._buffer:
            self._more(size)
        at = self._buffer.find(self._end)
        if at >= 0:
            self._check_end(at + len(self._end))
        cut = at if at >= 0 else len(self._buffer) - len(self._end)
        self._done = 0 <= at <= size
        data, self._buffer = self._buffer[: min(cut, size)], self._buffer[min(cut, size) :]
        return data


def open_source(head: Head, stream: Source, give_back: Callable[[bytes], None]) -> Source:
    """The body's bytes as they are on the wire, whatever their framing."""
    if head.is_chunked:
        return ChunkedReader(stream, give_back)
    return LengthReader(stream, head.length or 0)


def open_body(head: Head, source: Source, signed: Optional[Signed], streams: bool) -> Body:
    """The payload of a request. `streams`: the operation takes aws-chunked bodies.

    Raises MissingContentLength, InvalidRequest, NotImplemented and what parse_promise raises.
    """
    headers, payload = head.headers, signed.payload if signed else UNSIGNED
    if payload not in STREAMING:
        if "aws-chunked" in headers.get("content-encoding", "").lower() and head.has_body:
            raise S3Error("InvalidRequest", "An aws-chunked body needs x-amz-content-sha256 to say "
                          "STREAMING-...")
        promise = parse_promise(headers, payload)
        if streams and head.length is None and not head.is_chunked:
            raise S3Error("MissingContentLength")
        length = None if head.is_chunked else head.length or 0
        return Body(source, promise._replace(length=length))
    if not streams:
        raise S3Error("InvalidRequest", f"{payload} is only for PutObject and UploadPart.")
    promise = parse_promise(headers, payload)
    decoded = headers.get("x-amz-decoded-content-length")
    if decoded is not None and re.fullmatch("[0-9]{1,18}", decoded):
        promise = promise._replace(length=int(decoded))
    elif decoded is not None or not head.is_chunked:  # AWS asks for it always; a Node stream of
        raise S3Error("MissingContentLength")  # unknown length cannot tell it      [aws-sdk-js-v3]
    is_signed, has_trailer = STREAMING[payload]
    if is_signed and signed and not signed.key:
        raise S3Error("InvalidRequest", "Signed chunks need a SigV4 signature.")
    return Body(AwsChunkedReader(source, signed if is_signed else None, has_trailer), promise)


# ==================================================================================================
# 9. Storage
# ==================================================================================================

# In this order: Entry and Sidecar are what is known of an object; Folder and Disk the system calls;
# Staged a file on its way; Level, with Scan and Names, a listing's walk; Memory what all buckets
# keep there. A bucket is a Store with Files, Locks, Quota, Versions, About and Uploads. Inspector
# is for `check`.

# Keys and names. A key that can be its own path is. Where it cannot, bytes are written %XX per
# segment, and three forms that no escaped name can have stand for what is not a byte:
#     %        an empty segment: "a//b" is a/%/b, "dir/" is dir/%
#     NAME%    the object, where a folder has its name: "a" beside "a/b"
#     NAME%-   a segment too long for the disk goes on in this folder

SIDECAR = ".s3mini.json"  # the sidecar of NAME is .NAME.s3mini.json
ROOM = ".s3mini"  # a bucket's own folder
LOST_AND_FOUND = "lost+found"  # every ext4 disk has that one, and it is root's [mke2fs]
ASIDE = r"\.s3mini-[0-9a-f]{16}"  # a bucket's own folder that is being removed
UNSAFE_NAME = r'[%/\x00-\x1f\x7f<>:"|?*\\]' if os.name == "nt" else r"[%/\x00-\x1f\x7f]"
PLAIN_START, PLAIN = r'[^.%/\x00-\x1f\x7f<>:"|?*\\]', r'[^%/\x00-\x1f\x7f<>:"|?*\\]'
PLAIN_NAMES = [f"{PLAIN_START}{PLAIN}{{0,{most - 1}}}" for most in (MAX_NAME // 4, MAX_NAME)]
PLAIN_KEYS = [re.compile(f"{name}(?:/{name})*") for name in PLAIN_NAMES]
WINDOWS_NAMES = re.compile(r"(?is)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?|.*[. ]")


def is_reserved(name: str) -> bool:
    """Whether a name is the file system's or ours, and so must not be an object's as it is."""
    lower = name.casefold()  # NTFS and APFS take U+017F for an s
    if os.name == "nt" and WINDOWS_NAMES.fullmatch(name):
        return True
    return name in (".", "..") or lower == ROOM or is_sidecar(lower)


def sidecar_of(name: str) -> str:
    return f".{name}{SIDECAR}"


def is_sidecar(name: str) -> bool:
    return name.startswith(".") and name.endswith(SIDECAR)


def escape_segment(segment: str) -> list[str]:
    """The file names, one inside the other, for one segment of a key; nearly always itself."""
    if not segment:
        return ["%"]
    units = [f"%{ord(c):02X}" if re.match(UNSAFE_NAME, c) else c for c in segment]
    if is_reserved(segment):
        ends = (0, -1) if os.name == "nt" and segment.endswith((".", " ")) else (0,)
        for at in ends:
            units[at] = "".join(f"%{b:02X}" for b in segment[at].encode())
    if len("".join(units).encode()) <= MAX_NAME:
        return ["".join(units)]
    names = [""]
    for unit in units:
        if len((names[-1] + unit).encode()) > MAX_NAME - 2:
            names[-1] += "%-"
            names.append("%2E" if unit == "." else unit)
        else:
            names[-1] += unit
    return names


def is_plain(key: str) -> bool:
    """Whether the key is surely its own path; most are. A character has up to four bytes."""
    return os.name != "nt" and PLAIN_KEYS[key.isascii()].fullmatch(key) is not None


def names_of_key(key: str) -> list[str]:
    """The folders and the file name of a key, below its bucket's folder."""
    if is_plain(key):
        return key.split("/")  # fast path: 1.2 us where the other takes 25; both are compared
    return [name for segment in key.split("/") for name in escape_segment(segment)]


def key_of_names(names: list[str]) -> Optional[str]:
    """The inverse, for a natural or an escaped file name; None where no key maps to the names."""
    last = names[-1]
    natural = [*names[:-1], last[:-1] if last.endswith("%") and last != "%" else last]
    segments = [""]
    for number, name in enumerate(natural):
        goes_on = name.endswith("%-")
        text = unescape(name[:-2] if goes_on else "" if name == "%" else name)
        if text is None or goes_on and number == len(natural) - 1:
            return None
        segments[-1] += text
        if not goes_on and number < len(natural) - 1:
            segments.append("")
    key = "/".join(segments)
    return key if names_of_key(key) == natural else None


def unescape(name: str) -> Optional[str]:
    try:
        return unquote_to_bytes(name.encode("utf-8")).decode("utf-8")
    except UnicodeError:  # not UTF-8, or put there by hand in another encoding
        return None


def folded(key: str) -> str:
    """The same for all keys that a disk may take for one: APFS, NTFS, ext4 with casefold."""
    import unicodedata

    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


def read_at(fd: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)  # Windows; every reader has a descriptor of its own
    return os.read(fd, size)


def read_up_to(fd: int, most: int) -> bytes:
    """A small file from its start, or its first `most` bytes."""
    data = os.read(fd, 64 * KIB)
    if len(data) < 64 * KIB:  # nearly all of ours: one call does
        return data
    while len(data) < most and (more := os.read(fd, min(MIB, most - len(data)))):
        data += more
    return data


def disk_size(fd: int) -> int:
    """Bytes of the disk that the file is on; MAX_OBJECT where it does not say."""
    with contextlib.suppress(OSError):
        info = os.fstatvfs(fd)
        return info.f_blocks * info.f_frsize or MAX_OBJECT
    return MAX_OBJECT


def hash_file(fd: int, start: int, size: int) -> str:
    """The MD5 of `size` bytes of a file, in hex. Raises NotQuickError."""
    if TURNS.in_front and size > SMALL:
        raise NotQuickError
    total, offset = new_md5(), start
    while offset < start + size:
        data = read_at(fd, min(PIECE, start + size - offset), offset)
        if not data:
            break
        total.update(data)
        offset += len(data)
    return total.hexdigest()


Way = tuple[tuple[str, int, int], ...]  # (path, device, inode) of folders, one in the other
NONE: Mapping[str, str] = {}
NO_PARTS: Sequence[str] = []


@functools.lru_cache(256)
def shared(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """One mapping for all that are the same."""
    return dict(items)


def drop_oldest(known: dict[Any, Any], most: int) -> None:
    """Of a cache that threads share: another one may drop the same, or add meanwhile."""
    while len(known) > most:
        with contextlib.suppress(KeyError, StopIteration, RuntimeError):
            del known[next(iter(known))]


@functools.lru_cache(1024)
def one(way: Way) -> Way:
    """The same object for all folders' ways that are equal: 0.3 KiB a folder less in each entry."""
    return way


class Entry(NamedTuple):
    """What a sidecar says of one generation of a data file."""

    size: int
    etag: str  # md5 in hex, or md5-of-md5s "-" number of parts
    md5: str  # hex, of the whole; "" where parts made it, and for large files put there by hand
    modified: int  # seconds since 1970: what clients see
    mtime_ns: int = 0  # with size it is the generation: the data file's own st_mtime_ns
    ino: int = 0  # breaks a tie, never required
    headers: Mapping[str, str] = NONE  # content-type, cache-control, ...
    metadata: Mapping[str, str] = NONE  # x-amz-meta-NAME, without the prefix
    tags: Mapping[str, str] = NONE
    checksums: Mapping[str, str] = NONE  # algorithm -> base64
    checksum_type: str = ""  # FULL_OBJECT or COMPOSITE, where there are checksums
    parts: Sequence[str] = NO_PARTS  # "SIZE MD5" or "SIZE MD5 CHECKSUM", in order
    acl: str = ""  # "public-read" or ""
    upload: str = ""  # the multipart upload that made it: a repeated Complete is answered again
    version_id: str = "null"

    def compact(self) -> Entry:
        """The same, sharing with others what is often the same: 0.7 KiB instead of 1.3."""
        return self._replace(
            md5=self.etag if self.md5 == self.etag else self.md5,
            headers=shared(tuple(self.headers.items())), metadata=self.metadata or NONE,
            tags=self.tags or NONE, checksums=self.checksums or NONE, parts=self.parts or NO_PARTS)

    def fits(self, info: os.stat_result) -> bool:
        return (self.size, self.mtime_ns) == (info.st_size, info.st_mtime_ns)

    def fits_cut(self, info: os.stat_result) -> bool:
        """Whether it would fit, had the time whole seconds only: tar and cpio restore it so."""
        cut = self.mtime_ns // 1_000_000_000 * 1_000_000_000
        return (self.size, cut) == (info.st_size, info.st_mtime_ns)

    def spans(self) -> Iterator[tuple[int, int, str]]:
        """(start, size, MD5) of what is known of the content: the whole, or each part."""
        if self.md5:
            yield 0, self.size, self.md5
            return
        start = 0
        for part in self.parts:
            size, md5 = part.split()[:2]
            yield start, int(size), md5
            start += int(size)

    def describes(self, fd: int) -> bool:
        """Whether the file's bytes are the ones that were stored. False where nothing is known."""
        spans = list(self.spans())
        return bool(spans) and all(hash_file(fd, start, size) == md5 for start, size, md5 in spans)


class Sidecar(NamedTuple):
    key: str
    current: Entry
    previous: Optional[Entry] = None

    def fitting(self, info: os.stat_result) -> Optional[Entry]:
        """The entry that describes the data file as it is now."""
        found = [e for e in (self.current, self.previous) if e and e.fits(info)]
        return next((e for e in found if e.ino == info.st_ino), found[0] if found else None)

    def of_size(self, info: os.stat_result) -> list[Entry]:
        """Those that the data file may be, should its time have changed on the way here."""
        return [e for e in (self.current, self.previous) if e and e.size == info.st_size]


ENTRY_TYPES = {name: type(value) for name, value in Entry(0, "", "", 0)._asdict().items()}
IN_ORDER = tuple(ENTRY_TYPES.values())
PART_LINE = re.compile(r"[0-9]{1,13} [0-9a-f]{32}(?: [!-~]+)?")


def parse_entry(value: object) -> Entry:
    """Unknown names are a later version's and are left out. Raises ValueError."""
    if not isinstance(value, dict) or not {"size", "etag", "md5", "modified"} <= value.keys():
        raise ValueError("not an entry")
    if not value.keys() <= ENTRY_TYPES.keys():
        value = {name: found for name, found in value.items() if name in ENTRY_TYPES}
    entry = Entry(**value)
    if tuple(map(type, entry)) != IN_ORDER:
        raise ValueError("a value of another type")
    inside = (*entry.headers.values(), *entry.metadata.values(), *entry.tags.values(),
              *entry.checksums.values(), *entry.parts)
    if not {str}.issuperset(map(type, inside)):
        raise ValueError("a value inside of another type")
    if not all(map(PART_LINE.fullmatch, entry.parts)):
        raise ValueError("a part that is none")
    if entry.modified not in DATES:
        raise ValueError("a time that is none")
    return entry


def parse_json(data: bytes) -> Any:
    """What a file of ours says. Raises ValueError, RecursionError.

    Half a character can be read, and nowhere be written: one flipped bit of Korean makes it.
    """
    if b"\xed" in data:  # what the bytes of a half start with; json would take them
        data.decode()
    value = json.loads(data)
    if b"\\u" in data:
        render_json(value).encode()
    return value


def parse_sidecar(data: bytes) -> Sidecar:
    """Raises ValueError (RecursionError is one too, here)."""
    try:
        value = parse_json(data)
        previous = value["previous"]
        if not isinstance(value["key"], str):
            raise ValueError("the key is no text")  # noqa: TRY004 one kind of error for all garbage
        entry = parse_entry(previous) if previous is not None else None
        return Sidecar(value["key"], parse_entry(value["current"]), entry)
    except (KeyError, TypeError, RecursionError) as why:
        raise ValueError(f"not a sidecar: {why}") from None


class Listed(NamedTuple):
    """Of an entry what a listing says."""

    size: int
    etag: str
    modified: int
    checksums: tuple[str, ...]  # their names
    checksum_type: str


# The start of a sidecar as render_sidecar writes it, and what stands behind "checksums".
OWN_START = re.compile(r'''{
 "v": 1,
 "key": "([^"\\]*)",
 "current": {"size": ([0-9]{1,19}),
  "etag": "([0-9a-f]{32}(?:-[1-9][0-9]{0,5})?)",
  "md5": "[^"\\]*",
  "modified": ([0-9]{1,11}),
  "mtime_ns": ([0-9]{1,19}),
  "ino": ([0-9]{1,20}),
  "headers": {''')
OWN_SUMS = re.compile(r'''(?:"([^"\\]*)": "[^"\\]*")?},
  "checksum_type": "([^"\\]*)",
''')
SUMS_HEAD, NO_PREVIOUS = '\n  "checksums": {', ' "previous": null\n}\n'


def listed_of(data: bytes, key: str, info: os.stat_result) -> Optional[Listed]:
    """What a sidecar says of the data file, where it is one of ours and plain to see; else None.

    Whether all else in it makes sense is not looked at.

    Fast path, 1.9 us where parse_sidecar takes 7 and more to keep what it gives [measured, 3.11].
    """
    try:
        text = data.decode()
    except ValueError:
        return None
    start = OWN_START.match(text)
    sums = start and OWN_SUMS.match(text, text.find(SUMS_HEAD, start.end()) + len(SUMS_HEAD))
    if not start or not sums or not text.endswith("\n}\n"):
        return None
    found, size, etag, modified, mtime_ns, ino = start.groups()
    fits = found == key and (int(size), int(mtime_ns)) == (info.st_size, info.st_mtime_ns)
    if not fits or int(ino) != info.st_ino and not text.endswith(NO_PREVIOUS):
        return None
    checksums = (sums[1],) if sums[1] else ()
    return Listed(info.st_size, etag, int(modified), checksums, sums[2])


# Lines, but no indent: with one json leaves its C encoder, and takes 130 us where this takes 15.
render_json = json.JSONEncoder(ensure_ascii=False, separators=(",\n  ", ": ")).encode


def render_sidecar(sidecar: Sidecar) -> bytes:
    current = render_json(sidecar.current._asdict())
    previous = render_json(sidecar.previous and sidecar.previous._asdict())
    text = (f'{{\n "v": 1,\n "key": {render_json(sidecar.key)},\n "current": {current},\n'
            f' "previous": {previous}\n}}\n')
    return text.encode("utf-8", "surrogateescape")


def render_note(value: Mapping[str, object]) -> bytes:
    """What else is kept as JSON: bucket.json, upload.json, what is known of a version."""
    return (render_json(value) + "\n").encode("utf-8", "surrogateescape")


O_BINARY = getattr(os, "O_BINARY", 0)
O_NOFOLLOW, O_NONBLOCK = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
O_DIRECTORY, O_CLOEXEC = getattr(os, "O_DIRECTORY", 0), getattr(os, "O_CLOEXEC", 0)
HAS_DIR_FD = os.open in os.supports_dir_fd and O_DIRECTORY != 0
READ_FLAGS = os.O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_BINARY
CHANGE_FLAGS = os.O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_BINARY
GONE = (FileNotFoundError, NotADirectoryError)  # a folder that was pruned, or is a link by now
FOLDERS_MOVED = (*GONE, IsADirectoryError)  # under a writer, who tries again
LINK_ERRORS = (errno.ELOOP, errno.EMLINK)  # what O_NOFOLLOW answers on Linux, on BSD


def times_of(info: os.stat_result) -> tuple[int, int]:
    """Of a folder's last change: a restore sets back the first one only."""
    return info.st_mtime_ns, info.st_ctime_ns


class Folder:
    """An open directory. What is reached through it is reached without following a link."""

    def __init__(self, path: str, fd: Optional[int]):
        self.path, self.fd = path, fd

    @classmethod
    def open(cls, path: str) -> Folder:
        """The folder itself may be a link: the operator chose it. Raises OSError."""
        if not HAS_DIR_FD:  # Windows: the fake's folder, nobody plants links in it
            if not os.path.isdir(path):
                raise FileNotFoundError(errno.ENOENT, "no such folder", path)
            return cls(path, None)
        return cls(path, os.open(path, os.O_RDONLY | O_DIRECTORY | O_CLOEXEC))

    def child(self, name: str) -> Folder:
        """Raises FileNotFoundError, NotADirectoryError (also for a link)."""
        path = os.path.join(self.path, name)
        if self.fd is None:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
            return Folder(path, None)
        flags = os.O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
        try:
            return Folder(path, os.open(name, flags, dir_fd=self.fd))
        except OSError as why:
            if why.errno in LINK_ERRORS:
                raise NotADirectoryError(errno.ENOTDIR, "a link", path) from None
            raise

    def below(self, names: tuple[str, ...]) -> Folder:
        """The folder of these names, one in the other. Raises as child does."""
        folder = self.child(names[0])
        for name in names[1:]:
            with folder:
                folder = folder.child(name)
        return folder

    def at(self, name: str) -> str:
        return name if self.fd is not None else os.path.join(self.path, name)

    def open_file(self, name: str) -> int:
        """Raises OSError. A FIFO does not block; a link raises ELOOP."""
        return os.open(self.at(name), READ_FLAGS, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result:
        return os.stat(self.at(name), dir_fd=self.fd, follow_symlinks=False)

    def scan(self) -> Iterator[Any]:
        """What os.scandir gives, some of it twice."""
        return itertools.chain.from_iterable(
            self._read_once() if self.fd is None else self._read(self.fd))

    def _read_once(self) -> Iterator[Any]:
        with os.scandir(self.path) as found:
            yield found

    def _read(self, fd: int) -> Iterator[list[Any]]:
        """btrfs moves a name that is renamed over to the end, and does not tell what came there
        since the folder was opened: an object that is replaced meanwhile would be missing. So what
        lies behind the last ones is read again until nothing changed.          [ran, Linux 6.18]

        Once more where it changed just before: a second change may have the time of the first.
        """
        end = 0  # of what was read
        for number in range(ROUNDS):
            info = os.fstat(fd)
            is_settled = number or info.st_ctime_ns < (disk_time() - tick_of(info)) * 1e9
            end = yield from self._read_from(fd, end)
            if is_settled and times_of(os.fstat(fd)) == times_of(info):
                return

    def _read_from(self, fd: int, end: int) -> Generator[list[Any], None, int]:
        """To where the folder ends; gives what was read for sure."""
        os.lseek(fd, end, os.SEEK_SET)  # from here on btrfs tells what came until now
        with os.scandir(fd) as found:
            while items := list(itertools.islice(found, ITEMS_AT_ONCE)):
                yield items
                if len(items) == ITEMS_AT_ONCE:  # else it was rewound
                    end = os.lseek(fd, 0, os.SEEK_CUR)
        return end

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


FRESH = stat.S_ISVTX if HAS_DIR_FD else 0  # marks a folder whose name may not be on disk yet


def is_fresh(info: os.stat_result) -> bool:
    """Whether a folder has our mark: the sticky bit of other people's folders is theirs."""
    others = stat.S_IMODE(info.st_mode) & ~(0o750 | stat.S_ISGID)
    return others == FRESH and info.st_uid == os.geteuid()


class NotQuickError(Exception):
    """What is to be done would hold the front up: a thread is to do it, from its beginning."""


class Turns(threading.local):
    """The turn that this thread has, if any; and whether it is the front."""

    lock: Optional[threading.Lock] = None
    in_front = False

    def wait_for(self, call: Callable[..., object], *args: object) -> None:
        """A call that takes its time, while others have their turn."""
        lock = self.lock
        if not lock:
            call(*args)
            return
        lock.release()
        try:
            call(*args)
        finally:
            lock.acquire()


class Turn:
    """Where there are more than AT_ONCE in it, one at a time works, the others wait for the disk.

    Fast path: all threads that the disk wakes at once would fight for Python's lock at each system
    call. With 64 connections a PUT of 1 KiB takes 0.8 of the time, with 128 it takes 0.75, and the
    slowest of a hundred half. What is forbidden elsewhere stays so: this excludes nobody.
    """

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._inside.add(threading.get_ident())
        if len(self._inside) > AT_ONCE:
            self._lock.acquire()
            TURNS.lock = self._lock

    def __exit__(self, *_: object) -> None:
        self._inside.discard(threading.get_ident())
        lock, TURNS.lock = TURNS.lock, None
        if lock:
            lock.release()


TURNS = Turns()


class Disk:
    """The calls whose order, or failure, decides what a crash leaves, one method each.

    Tests record them and make them fail.
    """

    def __init__(self, durable: bool = True):
        self.durable = durable
        self._run, self._spares = secrets.token_hex(8), itertools.count(1)
        self._closers = threading.Semaphore(CLOSES_BEHIND)

    def spare_name(self) -> str:
        """A name that no other process or thread is given: one random number for all of ours."""
        return f"{self._run}-{next(self._spares):x}"

    def create(self, path: str) -> int:
        return os.open(path, CHANGE_FLAGS | os.O_CREAT | os.O_EXCL, 0o640)

    def create_temp(self, folder: str) -> tuple[int, str]:
        """A new file in our folder for them, and its path."""
        path = f"{folder}/{self.spare_name()}"
        try:
            return self.create(path), path
        except FileNotFoundError:
            self.make_temp(folder)
            return self.create(path), path

    def make_temp(self, folder: str) -> None:
        """Make our folder for temp files where it is missing.

        It is empty nearly always: who tidies such up, or restores without them, takes it away. What
        it lies in is not made: without that the bucket is gone.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o750)

    def reserve(self, fd: int, size: int) -> None:
        """Room for a new, small file of our own: where the disk cannot, glibc writes zeros to it.

        ext4 writes a file out when it is renamed over another, unless it has its blocks by then: a
        PUT of 1 KiB takes 340 us instead of 390, and the disk is left alone. One of a new name is
        better off without: 0.88 of the time.
        """
        if not self.durable and 0 < size < SMALL and hasattr(os, "posix_fallocate"):
            with contextlib.suppress(OSError):
                os.posix_fallocate(fd, 0, size)

    def close_behind(self, fd: int) -> None:
        """Close it in a thread, unless there are too many: a close may have much to free."""
        if self._closers.acquire(blocking=False):
            try:
                threading.Thread(target=self._close, args=(fd,), daemon=True).start()
                return
            except RuntimeError:  # no more threads are to be had, or the program ends
                self._closers.release()
        os.close(fd)

    def _close(self, fd: int) -> None:
        try:
            os.close(fd)
        finally:
            self._closers.release()

    def write(self, fd: int, data: bytes) -> None:
        done = os.write(fd, data)
        while done < len(data):
            done += os.write(fd, memoryview(data)[done:])

    def begin_write(self, fd: int, offset: int, length: int) -> None:
        """Start the way of these bytes to the disk, without waiting for it; sync does that.

        POSIX_FADV_DONTNEED does it on Linux: it drops only pages that are clean. [mm/fadvise.c]
        A PUT of 16 MiB takes 0.8 of the time: the disk is at work while the rest arrives.
        """
        if self.durable and sys.platform == "linux":
            with contextlib.suppress(OSError):  # it is only advice
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def copy(self, source: int, offset: int, length: int, fd: int) -> None:
        """Write bytes of another file, by the kernel where it can. Raises OSError."""
        while length:
            done = copy_range(source, offset, min(length, GIB), fd)
            if not done:
                raise OSError(errno.EIO, "the source is shorter than it was")
            offset, length = offset + done, length - done

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def stamp(self, fd: int, path: str, mtime_ns: int) -> None:
        target = fd if os.utime in os.supports_fd else path
        os.utime(target, ns=(mtime_ns, mtime_ns))

    def sync(self, fd: int) -> None:
        """The file, with its mtime, is on disk when this returns. A failure is final."""
        if self.durable:
            TURNS.wait_for(os.fsync, fd)
            if sys.platform == "darwin":  # fsync stops at the drive's cache there
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

    def keeps_order(self, path: str) -> bool:
        return keeps_order(path)

    def sync_folder(self, folder: Folder) -> None:
        if self.durable and folder.fd is not None:
            TURNS.wait_for(os.fsync, folder.fd)

    def rename(self, path: str, folder: Folder, name: str) -> None:
        os.replace(path, folder.at(name), dst_dir_fd=folder.fd)

    def link(self, folder: Folder, name: str, path: str) -> None:
        """A second name for a file; without following it, should it be a link."""
        os.link(folder.at(name), path, src_dir_fd=folder.fd, follow_symlinks=os.name == "nt")

    def unlink(self, folder: Folder, name: str) -> None:
        os.unlink(folder.at(name), dir_fd=folder.fd)

    def mkdir(self, folder: Folder, name: str) -> None:
        os.mkdir(folder.at(name), 0o750 | FRESH, dir_fd=folder.fd)

    def make_folders(self, path: str) -> None:
        """A folder of our own and those above it; when this returns their names are on disk."""
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            self.make_folders(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o750)
        with contextlib.suppress(PermissionError), Folder.open(parent) as folder:
            self.sync_folder(folder)  # a parent that we may not read is not of our making

    def unmark(self, folder: Folder) -> None:
        """Take the mark of a fresh folder away: its name is on disk."""
        if folder.fd is not None:
            os.fchmod(folder.fd, stat.S_IMODE(os.fstat(folder.fd).st_mode) & ~FRESH)

    def rmdir(self, folder: Folder, name: str) -> None:
        os.rmdir(folder.at(name), dir_fd=folder.fd)


def keeps_order(path: str) -> bool:
    """Whether the file system of a folder writes changes of names in the order they are made.

    xfs does, and ext4 with a journal: both write one log. Of tmpfs nothing outlives the kernel. Of
    all others nothing is assumed.
    """
    with contextlib.suppress(OSError, AttributeError, IndexError):
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            kinds = {line.partition(" - ")[2].split()[0] for line in file
                     if line.split()[2] == number}
        if kinds == {"ext4"}:
            name = os.path.basename(os.path.realpath(f"/sys/dev/block/{number}"))
            with open(f"/sys/fs/ext4/{name}/journal_task", encoding="ascii") as file:
                return file.read().strip().isdigit()  # "<none>" without a journal
        return kinds in ({"xfs"}, {"tmpfs"})
    return False


def copy_range(source: int, offset: int, length: int, fd: int) -> int:
    """Bytes copied to where fd is; copy_file_range lets the file system share the blocks."""
    if hasattr(os, "copy_file_range"):
        try:
            return int(os.copy_file_range(source, fd, length, offset))
        except OSError as why:
            if why.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
    os.lseek(source, offset, os.SEEK_SET)
    return os.write(fd, os.read(source, min(length, MIB)))


# ns from a stamp to one that the disk keeps apart from it; the last where there is no later one
STEPS = (1_000, 1_000_000, 1_000_000_000, 2_000_000_000, -2_000_000_000)


class Staged:
    """A temp file on its way to its name. A flock tells the living from the left behind.

    A sidecar's, and a small body's, is so short-lived that it has none: should a starting server
    take it for a dead one, the rename fails, and the commit is tried again.
    """

    info: Optional[os.stat_result] = None  # once it is stamped
    start = 0  # where its bytes begin in the file
    suffix = ""  # of the name that a part gets
    is_late = False  # synced with its sidecar, not before

    def __init__(self, disk: Disk, folder: str, locked: bool = True):
        self.disk = disk
        while True:
            self.fd, self.path = disk.create_temp(folder)
            if not locked or not HAS_FLOCK:
                break
            with on_error(os.unlink, self.path), on_error(os.close, self.fd):
                fcntl.flock(self.fd, fcntl.LOCK_EX)
            if os.fstat(self.fd).st_nlink:  # a starting server may have taken it for a dead one
                break
            os.close(self.fd)

    def fill(self, body: Body, check_size: Callable[[int], None]) -> None:
        """`check_size` is asked now and then by a body that did not say how long it is."""
        begun = 0  # bytes that are on their way to the disk
        while data := body.read():
            self.disk.write(self.fd, data)
            if body.size - begun >= WRITE_AHEAD:
                if body.length is None:
                    check_size(body.size)
                self.disk.begin_write(self.fd, self.start + begun, body.size - begun)
                begun = body.size

    def seal(self, entry: Entry, mtime_ns: int) -> Entry:
        """The file stamped, and on disk unless late; the entry with what the disk made of it."""
        self.disk.stamp(self.fd, self.path, mtime_ns)
        if not self.is_late:
            self.disk.sync(self.fd)
        self.info = info = os.fstat(self.fd)
        return entry._replace(size=info.st_size, mtime_ns=info.st_mtime_ns, ino=info.st_ino)

    def outlast(self, entry: Entry, old: Optional[Entry]) -> Entry:
        """The entry, with a generation of its own: later than the old one's on this disk."""
        for step in STEPS:
            if not old or entry.mtime_ns > old.mtime_ns:
                break
            entry = self.seal(entry, old.mtime_ns + step)
        if old and (entry.size, entry.mtime_ns) == (old.size, old.mtime_ns):
            raise OSError(errno.EIO, "the disk does not keep modification times apart")
        return entry

    def rename(self, folder: Folder, name: str) -> None:
        self.disk.rename(self.path, folder, name)
        self.path = ""

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        """Once, however it ends: by then another thread may have a file of that number."""
        fd, path, self.fd, self.path = self.fd, self.path, -1, ""
        if fd >= 0:
            os.close(fd)
        if path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class Late(Staged):
    """A small body in memory. It has its file only under the key's lock, from outlast() on, for as
    short a time as its sidecar's: without a flock, and made again when the commit is tried again.

    Fast path: it is synced where its sidecar is, and both share one turn of the disk's journal. A
    PUT of 1 KiB takes 0.9 of the time, with 1 connection and with 16.
    """

    is_late = True

    def __init__(self, disk: Disk, folder: str):
        self.disk, self._folder, self._data = disk, folder, b""
        self.fd, self.path = -1, ""

    def fill(self, body: Body, check_size: Callable[[int], None]) -> None:
        self._data = body.read_all(SMALL)

    def seal(self, entry: Entry, mtime_ns: int) -> Entry:
        return entry if self.fd < 0 else super().seal(entry, mtime_ns)

    def outlast(self, entry: Entry, old: Optional[Entry]) -> Entry:
        self.__exit__()
        self.fd, self.path = self.disk.create_temp(self._folder)
        if old:
            self.disk.reserve(self.fd, len(self._data))
        self.disk.write(self.fd, self._data)
        return super().outlast(self.seal(entry, time.time_ns()), old)


# In an upload's folder: its parts in place; how large a place is; bytes there that are no part's.
WHOLE, SLOTS, LOST = "whole", "slots", "lost"

NO_PLACE = (  # what says so: gone, claimed, in use; and disks that take no such file, or no locks
    errno.ENOENT, errno.EEXIST, errno.EAGAIN, errno.EFBIG, errno.EINVAL, errno.EACCES, errno.EPERM,
    errno.ENOLCK, errno.EOPNOTSUPP)
SERVE = secrets.token_hex(16)  # this process and those it forks: they see one file alike


class Slot(Staged):
    """A part's place in the whole that its upload is to become, claimed by a file of its own."""

    def __init__(self, disk: Disk, fd: int, claim: str, offset: int, size: int):
        """Raises OSError where the disk takes no file so large, or no writes beside locks."""
        self.disk, self.fd, self.path = disk, fd, claim
        self.start, self.suffix = offset, f"@{offset}-{size}"
        os.lseek(fd, offset + size - 1, os.SEEK_SET)
        disk.write(fd, b"\0")
        os.lseek(fd, offset, os.SEEK_SET)

    def rename(self, folder: Folder, name: str) -> None:
        """An empty file says the part is there. The claim stays: nobody else gets the place."""
        os.close(self.disk.create(f"{folder.path}/{name}"))
        self.path = ""


class Whole(Staged):
    """The file in which the parts of an upload lie, by a second name: the first stays for them."""

    def __init__(self, disk: Disk, fd: int, path: str):
        self.disk, self.fd, self.path = disk, fd, path


class Found(NamedTuple):
    """An object and its data file, open: the descriptor pins this version."""

    entry: Entry
    fd: int  # -1 where only the entry was asked for, or the content is in memory
    content: Optional[bytes] = None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Part(NamedTuple):
    """One part of a multipart upload, as its file's name tells it."""

    number: int
    stamp: int  # ns since 1970: of two files of one number the later counts
    md5: str
    checksum: str  # base64; "" where there is none
    size: int
    name: str
    algorithm: str = ""  # of the checksum, where the upload itself has none
    offset: int = -1  # in the whole; -1 for a file of its own


PART_NAME = re.compile(  # number, stamp, MD5, checksum, its algorithm, @offset-size in the whole
    r"([0-9]{5})-([0-9]{20})-([0-9a-f]{32})-([0-9a-f]*)(?:-([0-9a-z]+))?(?:@([0-9]+)-([0-9]+))?")
UPLOAD_ID = re.compile("[0-9a-f]{32}")


class Upload(NamedTuple):
    """A multipart upload that is under way."""

    id: str
    key: str
    initiated: int
    entry: Entry  # what the object will say of itself
    algorithm: str = ""  # of its checksums
    kind: str = ""  # FULL_OBJECT or COMPOSITE
    owner: str = ""  # access key


Check = Callable[[Optional[Entry]], None]
Deleted = Union[Entry, S3Error, OSError, None]  # what a key was, or why it may still be there


def no_check(_: Optional[Entry]) -> None:
    return None


def if_unchanged(seen: Optional[Entry], check: Check) -> Check:
    """The check, for a write that rests on what was seen before the lock was taken.

    It raises OperationAborted when another object is there by now, and what `check` raises.
    """

    def check_both(now: Optional[Entry]) -> None:
        check(now)
        if (now and (now.size, now.mtime_ns)) != (seen and (seen.size, seen.mtime_ns)):
            raise S3Error("OperationAborted")

    return check_both


class FileReader:
    """A span of an open file as a body's source; the descriptor stays the caller's."""

    def __init__(self, fd: int, offset: int, length: int):
        self._fd, self._offset, self._left = fd, offset, length

    def read(self, size: int) -> bytes:
        data = read_at(self._fd, min(size, self._left), self._offset) if self._left else b""
        if self._left and not data:
            raise S3Error("InternalError", "The source became shorter while it was read.")
        self._offset, self._left = self._offset + len(data), self._left - len(data)
        return data


class CheckedReader(FileReader):
    """A span of an object, held against those of its MD5s that lie wholly in it."""

    def __init__(self, found: Found, offset: int, length: int):
        super().__init__(found.fd, offset, length)
        spans = [(start, start + size, md5) for start, size, md5 in found.entry.spans() if size]
        self._spans = [s for s in reversed(spans) if offset <= s[0] and s[1] <= offset + length]
        self._md5 = new_md5()

    def read(self, size: int) -> bytes:
        """Raises InternalError when what was read is not what was stored."""
        if not self._spans:
            return super().read(size)
        start, end, md5 = self._spans[-1]
        edge = start if self._offset < start else end
        data = super().read(min(size, edge - self._offset))
        if edge == end:
            self._md5.update(data)
        if self._offset == end:
            if self._md5.hexdigest() != md5:
                raise S3Error("InternalError", "The source is damaged on the disk.")
            self._spans.pop()
            self._md5 = new_md5()
        return data


class JoinedReader:
    """What is there and what comes behind it, as one source; the second verifies itself."""

    def __init__(self, first: Optional[FileReader], second: Body):
        self._first, self._second = first, second

    def read(self, size: int) -> bytes:
        data = self._first.read(size) if self._first else b""
        return data or self._second.read(size)


def with_body(entry: Entry, body: Body) -> Entry:
    """The entry with what reading the whole body told."""
    kind = "FULL_OBJECT" if body.checksums else ""
    return entry._replace(size=body.size, etag=body.md5, md5=body.md5, checksums=body.checksums,
                          checksum_type=kind)


class Place(NamedTuple):
    """A data file's place: its folder, its name, and its descriptor where it is open."""

    folder: Folder
    name: str
    fd: int = -1

    @property
    def sidecar(self) -> str:
        return sidecar_of(self.name)


def access_denied(why: OSError) -> Exception:
    """The same, or AccessDenied where it is the server's user who may not read one file."""
    if isinstance(why, PermissionError):
        return S3Error("AccessDenied", "The server may not read this file.")
    return why


def open_regular(folder: Folder, name: str) -> Optional[Place]:
    """The file open for reading, or None when there is no regular file of that name.

    Raises AccessDenied, OSError.
    """
    try:
        fd = folder.open_file(name)
    except FileNotFoundError:
        return None
    except OSError as why:
        if why.errno in (*LINK_ERRORS, errno.ENXIO) or os.name == "nt" and is_folder(folder, name):
            return None
        raise access_denied(why) from None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return Place(folder, name, fd)
    os.close(fd)
    return None


def sidecar_data(folder: Folder, name: str) -> bytes:
    """b"" where there is none, or a far too large one. Raises AccessDenied, OSError."""
    try:
        fd = folder.open_file(name)
        try:
            data = read_up_to(fd, MAX_SIDECAR + 1)
        finally:
            os.close(fd)
        return data if len(data) <= MAX_SIDECAR else b""
    except FileNotFoundError:
        return b""
    except OSError as why:
        if why.errno in (*LINK_ERRORS, errno.ENXIO, errno.EISDIR):
            return b""
        raise access_denied(why) from None


def read_sidecar(place: Place) -> Optional[Sidecar]:
    """None when there is none, or none that makes sense: the object is adopted then.

    Raises AccessDenied, OSError: one that cannot be opened is not one that is not there.
    """
    with contextlib.suppress(ValueError):  # bit rot in a sidecar: `check` reports it
        data = sidecar_data(place.folder, place.sidecar)
        return parse_sidecar(data) if data else None
    return None


# What Debian's and others' mime.types differ in, or lack: the same answer on every machine. [ours]
TYPES = {
    ".avif": "image/avif", ".css": "text/css", ".csv": "text/csv", ".gz": "application/gzip",
    ".html": "text/html", ".ico": "image/x-icon", ".jpeg": "image/jpeg", ".jpg": "image/jpeg",
    ".js": "text/javascript", ".json": "application/json", ".md": "text/markdown",
    ".mjs": "text/javascript", ".mp4": "video/mp4", ".pdf": "application/pdf", ".png": "image/png",
    ".svg": "image/svg+xml", ".txt": "text/plain", ".wasm": "application/wasm",
    ".webm": "video/webm", ".webp": "image/webp", ".woff2": "font/woff2", ".xml": "application/xml",
    ".zip": "application/zip",
}


def unread(info: os.stat_result, key: str) -> Entry:
    """What is told of a file put there by hand without reading it; its ETag is a stand-in."""
    stand_in = new_md5(f"{info.st_size} {info.st_mtime_ns} {info.st_ino}".encode())
    modified = max(DATES[0], min(int(info.st_mtime), DATES[-1]))
    return Entry(info.st_size, stand_in.hexdigest() + "-1", "", modified,
                 info.st_mtime_ns, info.st_ino, {"content-type": guess_type(key)})


def guess_type(key: str) -> str:
    """The Content-Type of a file put there by hand."""
    suffix = os.path.splitext(key)[1].lower()
    return TYPES.get(suffix) or mimetypes.guess_type("x" + suffix)[0] or "binary/octet-stream"


def identify(fd: int, info: os.stat_result, key: str, sidecar: Optional[Sidecar]) -> Entry:
    """What a file is that no entry describes: a version from a backup, or a new one."""
    known = sidecar.of_size(info) if sidecar else []
    found = [e for e in known if e.describes(fd)] or [e for e in known if e.fits_cut(info)]
    if found:  # if it rotted, `check` is to tell
        return found[0]._replace(mtime_ns=info.st_mtime_ns, ino=info.st_ino)
    entry = unread(info, key)
    if info.st_size <= ADOPT_BYTES:
        md5 = hash_file(fd, 0, info.st_size)
        entry = entry._replace(etag=md5, md5=md5)
    return entry


def folders_unless_file(folder: Folder) -> Optional[list[str]]:
    """The names of the folders in it; None when there is a file that is no sidecar."""
    folders = set()
    for item in folder.scan():
        if item.is_dir(follow_symlinks=False):
            folders.add(item.name)
        elif item.is_file(follow_symlinks=False) and not is_sidecar(item.name):
            return None
    return list(folders)


def has_objects(folder: Folder, name: str) -> bool:
    """Whether anything lies below a folder; looks no further than the first.

    One folder is open at a time: they may lie a thousand deep.
    """
    todo: list[tuple[str, ...]] = [(name,)]
    here: Optional[Folder] = None  # the folder that was looked into last
    at: tuple[str, ...] = ()
    try:
        while todo:
            names = todo.pop()
            try:
                is_next = here and names[:-1] == at
                child = here.child(names[-1]) if here and is_next else folder.below(names)
                if here:
                    here.close()
                here, at = child, names
                folders = folders_unless_file(here)
            except (*GONE, PermissionError):
                continue
            if folders is None:
                return True
            todo += [(*names, n) for n in folders]
    finally:
        if here:
            here.close()
    return False


def mode_of(folder: Folder, name: str) -> int:
    """st_mode, 0 where nothing has the name."""
    try:
        return folder.stat(name).st_mode
    except FileNotFoundError:
        return 0


def exists(folder: Folder, name: str) -> bool:
    return mode_of(folder, name) != 0


def is_gone(folder: Folder, name: str) -> bool:
    """Whether it surely is not there; what cannot be looked at may be."""
    with contextlib.suppress(OSError):
        return not exists(folder, name)
    return False


def is_folder(folder: Folder, name: str) -> bool:
    return stat.S_ISDIR(mode_of(folder, name))


def is_old(folder: Folder, name: str, age: float) -> bool:
    """Whether nothing was done to it for that many seconds."""
    try:
        return folder.stat(name).st_mtime <= disk_time() - age
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def unlocked(folder: Folder, name: str) -> Iterator[bool]:
    """Whether no living writer holds the temp file; nobody can begin to, meanwhile."""
    if not HAS_FLOCK or folder.fd is None:
        yield True
        return
    try:
        fd = folder.open_file(name)
    except OSError:
        yield False  # gone, or not ours to judge
        return
    with closing_fd(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def on_error(undo: Callable[..., object], *args: Any) -> Iterator[None]:
    """What was begun is undone, unless all goes well."""
    try:
        yield
    except BaseException:
        undo(*args)
        raise


@contextlib.contextmanager
def unless(*numbers: int) -> Iterator[None]:
    """For what may stay undone where the disk answers one of these errno. Raises other OSErrors."""
    try:
        yield
    except OSError as why:
        if why.errno not in numbers:
            raise


def list_folder(path: str) -> list[str]:
    """The names in it, in order; none where there is no such folder, any more."""
    with contextlib.suppress(FileNotFoundError):  # a restore drops empty ones
        return sorted(os.listdir(path))
    return []


def read_note(path: str, most: int) -> bytes:
    """A small file of the room; b"" of what is no file, a FIFO does not block. Raises OSError."""
    with closing_fd(os.open(path, READ_FLAGS & ~O_NOFOLLOW)) as fd:
        return read_up_to(fd, most) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def is_at(fd: int, path: str) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def open_locked(path: str, may_wait: bool = True, may_make: bool = True) -> int:
    """A file with an flock: it excludes threads, processes and, on a network disk, machines.

    close_locked gives it back. Raises NotQuickError where it would have to wait and may not,
    FileNotFoundError where it is not there and may not be made.
    """
    while True:
        fd = os.open(path, CHANGE_FLAGS | (os.O_CREAT if may_make else 0), 0o640)
        try:
            if may_wait:
                TURNS.wait_for(fcntl.flock, fd, fcntl.LOCK_EX)
            else:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(fd, path):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise NotQuickError from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed while we waited: others hold another file of that name


def close_locked(fd: int) -> None:
    """Give the lock back, then close its file: a process that was forked meanwhile has it open too,
    and would keep the lock for as long as it lives.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: str) -> Iterator[int]:
    """The file, open and with its flock, as open_locked gives it."""
    fd = open_locked(path)
    try:
        yield fd
    finally:
        close_locked(fd)


def touch(path: str) -> None:
    os.close(os.open(path, CHANGE_FLAGS | os.O_CREAT, 0o640))


LAST = "\U0010ffff" * (MAX_KEY // 4 + 1)  # behind every key that starts with what it is added to


class Cursor:
    """Where a listing stands: only keys greater than `after` are wanted."""

    def __init__(self, after: str = "", since: float = 0):
        self.after = after
        self.since = since  # when the listing's first page was made, where a later page tells it
        self.to_fetch = 0  # files that are still wanted, where they come from the disk

    def skip(self, prefix: str) -> None:
        """Go behind every key with the prefix."""
        self.after = prefix + LAST


class Item(NamedTuple):
    """Something found by a scan: an object's file, or a folder of keys."""

    key: str  # an object's key, or what all keys of the folder begin with
    folder: Folder  # that holds it
    name: str
    is_folder: bool


class Row(NamedTuple):
    """A name in a folder, in the order of keys: str compares as UTF-8's bytes do."""

    piece: str  # of the key; a folder's ends with "/"
    name: str
    is_folder: bool
    number: int  # which of the level's folders holds it


class Names:
    """The rows of one folder, packed: a million names take 30 MB instead of 250 [measured]."""

    def __init__(self, pieces: list[str]):
        """`pieces` in order, folders with "/"; none of them escaped."""
        coded = [piece.encode() for piece in pieces]
        self._offsets = array("Q", itertools.accumulate(map(len, coded), initial=0))
        self._text = b"".join(coded)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, at: int) -> Row:
        piece = self._text[self._offsets[at] : self._offsets[at + 1]].decode()
        is_folder = piece.endswith("/")
        return Row(piece, piece[:-1] if is_folder else piece, is_folder, 0)

    @property
    def bytes(self) -> int:
        return len(self._text) + 8 * len(self._offsets) + NAMES_COST


def scan_names(folder: Folder, is_root: bool) -> Optional[Names]:
    """The names of a folder; None when one of them is escaped, and needs more care."""
    pieces = []
    for item in folder.scan():
        name = item.name
        if name[0] == "." and (is_sidecar(name) or is_root and name == ROOM):
            continue
        if "%" in name:
            return None
        if not name.isascii() and unescape(name) is None:
            continue
        if item.is_dir(follow_symlinks=False):
            pieces.append(name + "/")
        elif item.is_file(follow_symlinks=False):
            pieces.append(name)
    pieces.sort()
    return Names(list(dict.fromkeys(pieces)))


def tick_of(info: os.stat_result) -> float:
    """Seconds within which another change may have the same time."""
    return 2.0 if info.st_mtime_ns % 1_000_000_000 == 0 else MTIME_TICK


class NamesOf(NamedTuple):
    """What a folder held at one time."""

    ino: int
    times: tuple[int, int]  # of a change, see find; (0, 0) where one might not have shown in them
    at: float  # seconds since 1970: all that was acknowledged by then is in it
    took: float  # seconds to read them
    names: Names


class NamesCache:
    """The names of folders that were listed. Shared by threads; an old one is only dropped.

    A folder's times tell a change, but not two within one tick of the disk's clock: names read
    so soon after a change are used again only by later pages of the same listing, and so are those
    that changed since: a page of a million would take a second and a half while somebody writes.
    They are read anew after AGAIN_AFTER times as long as that takes.
    """

    def __init__(self) -> None:
        self._known: dict[str, NamesOf] = {}
        self._size, self._lock = 0, threading.Lock()

    def find(self, folder: Folder, is_root: bool, since: float) -> Optional[Names]:
        """The names now, or at `since` if it is told. None as scan_names has it. Raises OSError."""
        now, began = time.time(), disk_time()  # before the look: it sees what was acknowledged
        info = os.stat(folder.fd if folder.fd is not None else folder.path)
        times = times_of(info)
        known = self._known.get(folder.path)
        if known and known.ino == info.st_ino:
            if known.times == times:
                self._add(folder.path, known._replace(at=now))
                return known.names
            if since and known.at >= since and now - known.at < AGAIN_AFTER * known.took:
                return known.names
        names = scan_names(folder, is_root)
        took = time.time() - now
        if names and len(names) >= FEW_NAMES:
            settled = max(times) < (began - tick_of(info)) * 1e9
            kept = NamesOf(info.st_ino, times if settled else (0, 0), now, took, names)
            self._add(folder.path, kept)
        return names

    def _add(self, path: str, found: NamesOf) -> None:
        with self._lock:
            self._drop(path)
            while self._known and self._size + found.names.bytes > CACHED_NAMES:
                self._drop(next(iter(self._known)))
            if found.names.bytes <= CACHED_NAMES:
                self._known[path] = found
                self._size += found.names.bytes

    def _drop(self, path: str) -> None:
        old = self._known.pop(path, None)
        self._size -= old.names.bytes if old else 0


class Scan(NamedTuple):
    """What all levels of a scan share."""

    prefix: str
    open: Callable[[tuple[str, ...]], Folder]  # by the names below the bucket's folder
    find: Callable[[Folder, bool], Optional[Names]]  # the names in a folder, see NamesCache
    fetch: Callable[[Folder, str, str], None]  # have the disk read what a listing says of a file


class Level:
    """One folder of a scan, with the folders in which its too long names go on.

    It holds one descriptor at most: a folder may have a thousand long names.
    """

    def __init__(self, scan: Scan, folder: Folder, names: tuple[str, ...], base: str):
        self.base, self._scan, self._jumped = base, scan, ""
        self._places = [(names, "")]  # of its folders: the names, and what begins their pieces
        self._folder: Optional[Folder] = folder  # the one that is open
        self._number = 0  # which of them that is
        self._rest = scan.prefix[len(base) :] if scan.prefix.startswith(base) else ""
        with on_error(self.close):
            packed = scan.find(folder, not names)
            self._rows: Union[Names, list[Row]] = (
                sorted(self._read()) if packed is None else packed)
        self._at, self._count = bisect_left(self._rows, (self._rest, "")), len(self._rows)
        self._fetched = 0  # rows

    def _read(self) -> Iterator[Row]:
        """The slow twin of scan_names, for folders with escaped names."""
        for number, (names, lead) in enumerate(self._places):  # which grows meanwhile
            folder = self._open(number)
            if not folder:
                continue
            found = {item.name: item for item in folder.scan()}
            rows = [self._row(item, names, lead, number) for item in found.values()]
            yield from (row for row in rows if row)

    def _row(self, item: Any, names: tuple[str, ...], lead: str, number: int) -> Optional[Row]:
        """None for what has no key, and for a folder in which a name goes on: that is noted."""
        name, is_folder = item.name, item.is_dir(follow_symlinks=False)
        if name[0] == "." and (is_sidecar(name) or name == ROOM and not names):
            return None
        if is_folder and name.endswith("%-"):
            text = unescape(name[:-2])
            if text is not None:
                self._places.append(((*names, name), lead + text))
        elif is_folder or item.is_file(follow_symlinks=False):
            piece = piece_of(name, is_folder)
            if piece is not None:
                return Row(lead + piece + "/" * is_folder, name, is_folder, number)
        return None

    def _open(self, number: int) -> Optional[Folder]:
        """One of its folders; None when it is gone."""
        if self._folder and number == self._number:
            return self._folder
        self.close()
        with contextlib.suppress(*GONE, PermissionError):
            self._folder, self._number = self._scan.open(self._places[number][0]), number
        return self._folder

    def next(self, cursor: Cursor) -> Optional[Item]:
        """The next file or folder that may hold wanted keys; None at the end."""
        if self._jumped is not cursor.after:
            self._jump(cursor.after)
        if cursor.to_fetch and self._at >= self._fetched:
            self._fetch(cursor.to_fetch)
        while self._at < self._count:
            piece, name, is_folder, number = self._rows[self._at]
            if not piece.startswith(self._rest):
                return None
            self._at += 1
            key = self.base + piece
            if is_folder and cursor.after >= key + LAST:
                continue
            if is_folder or is_canonical(key, (*self._places[number][0], name)):
                folder = self._open(number)
                if folder:
                    return Item(key, folder, name, is_folder)
        return None

    def _fetch(self, wanted: int) -> None:
        """Have the disk look for the next files, FETCHERS at once.

        Fast path: a page of 1,000 that nobody has read yet takes half as long on an SSD.
        """
        last = bisect_left(self._rows, (self._rest + LAST, ""))
        self._fetched = min(self._at + min(wanted, FETCHED), last)
        rows = [self._rows[at] for at in range(self._at, self._fetched)]
        folder = self._open(rows[0].number) if len(rows) >= 2 * FETCHERS else None
        if not folder:
            return
        found = [(row.name, self.base + row.piece) for row in rows
                 if not row.is_folder and row.number == self._number]

        def fetch(found: list[tuple[str, str]]) -> None:
            for name, key in found:
                self._scan.fetch(folder, name, key)

        threads = [threading.Thread(target=fetch, args=(found[number::FETCHERS],), daemon=True)
                   for number in range(FETCHERS)]
        started = []
        with contextlib.suppress(RuntimeError):  # so many threads are there: then without
            for thread in threads:
                thread.start()
                started.append(thread)
        for thread in started:
            thread.join()

    def _jump(self, after: str) -> None:
        """Go to the first row that holds a key greater than `after`."""
        self._jumped = after
        if after.startswith(self.base):
            head, slash, _ = after[len(self.base) :].partition("/")
            wanted = (head + slash, "") if slash else (head, LAST)
            self._at = max(self._at, bisect_left(self._rows, wanted))
        elif after > self.base:
            self._at = self._count

    def enter(self, item: Item) -> Optional[Level]:
        """The level below a folder, just found, or None when it is gone."""
        try:
            folder = item.folder.child(item.name)
        except (*GONE, PermissionError):
            return None
        names, _ = self._places[self._number]
        return Level(self._scan, folder, (*names, item.name), item.key)

    def close(self) -> None:
        """Give the descriptor back; it is opened again where it is needed."""
        if self._folder:
            self._folder.close()
        self._folder = None


def piece_of(name: str, is_folder: bool) -> Optional[str]:
    """The part of a key that an escaped name stands for; None for what no key maps to."""
    if not is_folder and name != "%" and name.endswith("%"):
        name = name[:-1]
    return "" if name == "%" else unescape(name)


def is_canonical(key: str, names: tuple[str, ...]) -> bool:
    """Whether the file is where its key would be looked for."""
    if "/".join(names) == key and len(key) <= MAX_KEY // 4 and is_plain(key):
        return True
    return key_of_names(list(names)) == key and 0 < len(key.encode()) <= MAX_KEY


class Known(NamedTuple):
    """An entry in memory, with the generation and the way to the file that it describes.

    What is found by this path is the file that was reached folder by folder before, when it has the
    same generation and the folders on the way are the same, none of them a link.
    """

    path: str
    folders: Way  # those below the bucket's
    dev: int
    ino: int  # the entry's own may be another: a restore changes it
    entry: Entry
    starts: dict[tuple[bool, bool], str]  # how answers with it start, once there was one: start_of

    def fits(self, info: os.stat_result) -> bool:
        return (self.ino == info.st_ino and self.entry.mtime_ns == info.st_mtime_ns
                and self.entry.size == info.st_size and self.dev == info.st_dev)

    def find(self) -> Optional[os.stat_result]:
        """The file as it is now, when it is the one known and still at its place."""
        try:
            for path, dev, ino in self.folders:
                info = os.stat(path, follow_symlinks=False)
                if info.st_ino != ino or info.st_dev != dev:
                    return None
            info = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return None
        return info if self.fits(info) else None


Generation = tuple[int, int, int, int, int]


def generation_of(info: os.stat_result) -> Generation:
    """What changes when a file's bytes do, however they are changed."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


class Contents:
    """The bytes of small files that were read lately, of all buckets together.

    Not of one that was changed within the last tick of the disk's clock: the next change might not
    show in its times. Shared by threads: what one adds another may drop.
    """

    def __init__(self) -> None:
        self._known: dict[Generation, bytes] = {}
        self._size, self._lock = 0, threading.Lock()

    def get(self, info: os.stat_result) -> Optional[bytes]:
        return self._known.get(generation_of(info))

    def add(self, info: os.stat_result, data: bytes) -> None:
        if info.st_ctime_ns > (disk_time() - tick_of(info)) * 1e9 or len(data) != info.st_size:
            return
        with self._lock:
            self._size += len(data) - len(self._known.pop(generation_of(info), b""))
            self._known[generation_of(info)] = data
            while self._size + len(self._known) * CONTENT_COST > CACHED_CONTENTS:
                self._size -= len(self._known.pop(next(iter(self._known))))


LISTED_PLACE = struct.Struct("<QqqqI16sHB")  # inode, mtime_ns, size, a hash; what is told
LISTED_SUMS = [((), ""), *(((name,), kind) for name in ALGORITHMS
                           for kind in ("FULL_OBJECT", "COMPOSITE"))]
NUMBER_OF_SUMS = {sums: number for number, sums in enumerate(LISTED_SUMS)}


class ListedCache:
    """What listings said of objects, each in 55 bytes, at the place that its file's number gives.

    It counts for a file of which nothing has changed, under the same key. Threads share it: a place
    is read, and written, by one call each. Fast path: a page that is listed again takes half of
    the time.
    """

    def __init__(self) -> None:
        self._places: Any = b""  # memory of which the kernel gives us what is written to

    def find(self, info: os.stat_result, key: str) -> Optional[Listed]:
        if not self._places:
            return None
        packed = LISTED_PLACE.unpack_from(self._places, self._at(info))
        if packed[:4] != (info.st_ino, info.st_mtime_ns, info.st_size,
                          hash((info.st_dev, info.st_ctime_ns, key))):
            return None
        modified, digest, parts, sums = packed[4:]
        etag = f"{digest.hex()}-{parts}" if parts else digest.hex()
        return Listed(info.st_size, etag, modified, *LISTED_SUMS[sums])

    def add(self, info: os.stat_result, key: str, listed: Listed) -> None:
        """`listed` as listed_of gives it; one of a checksum that we do not know is left out.

        Not where the disk counts whole seconds: there an inode used again could look the same.
        """
        if info.st_mtime_ns % 1_000_000_000 == info.st_ctime_ns % 1_000_000_000 == 0:
            return
        digest, _, parts = listed.etag.partition("-")
        with contextlib.suppress(KeyError, struct.error):
            sums = NUMBER_OF_SUMS[listed.checksums, listed.checksum_type]
            packed = LISTED_PLACE.pack(
                info.st_ino, info.st_mtime_ns, listed.size,
                hash((info.st_dev, info.st_ctime_ns, key)), listed.modified,
                bytes.fromhex(digest), int(parts or 0), sums)
            if not self._places:
                import mmap

                self._places = mmap.mmap(-1, CACHED_LISTED * LISTED_PLACE.size)
            at = self._at(info)
            self._places[at : at + len(packed)] = packed

    def _at(self, info: os.stat_result) -> int:
        return info.st_ino % CACHED_LISTED * LISTED_PLACE.size


class Memory:
    """What all buckets together keep of the objects that were read and the folders listed."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Known] = {}  # by the bucket's folder and the key
        self.contents = Contents()
        self.names = NamesCache()
        self.listed = ListedCache()


class Files:
    """How a bucket writes what is small. What was written or added is on disk then; a link, or that
    a name was dropped, may not be.
    """

    def __init__(self, root: str, disk: Disk):
        self.root, self.disk = root, disk
        self.room = os.path.join(root, ROOM)
        self.temp = f"{self.room}/tmp"
        self._is_ordered: Optional[bool] = None  # once it is known

    def stage(self) -> Staged:
        return Staged(self.disk, self.temp)

    def keeps_order(self) -> bool:
        """Whether this disk has no later change of names without the earlier ones.

        Fast path: one fsync of four less where it cannot have the second rename alone.
        """
        if self._is_ordered is None:
            self._is_ordered = self.disk.keeps_order(self.root)
        return self._is_ordered

    def write(
        self, folder: Folder, name: str, data: bytes, is_sure: bool = True, beside: int = -1,
        *, replaces: bool = True,
    ) -> None:
        """A small file, whole or not at all: written aside, synced, renamed, the folder synced.

        Not the folder unless it `is_sure`: then the name is on disk before the next change of it.
        The file `beside` is synced before it; this one is on its way by then, so that it is in the
        same turn of the journal, and its own sync finds little to do.
        """
        with Staged(self.disk, self.temp, locked=False) as staged:
            if replaces:
                self.disk.reserve(staged.fd, len(data))
            self.disk.write(staged.fd, data)
            if beside >= 0:
                self.disk.begin_write(staged.fd, 0, len(data))
                self.disk.sync(beside)
            self.disk.sync(staged.fd)
            staged.rename(folder, name)
        if is_sure:
            self.disk.sync_folder(folder)

    def add_folder(self, folder: Folder, name: str) -> Folder:
        is_new = False
        with contextlib.suppress(FileExistsError):
            self.disk.mkdir(folder, name)
            is_new = True  # also where the disk says that it is another user's
        return self.synced(folder, folder.child(name), is_new)

    def synced(self, parent: Folder, folder: Folder, is_new: bool = False) -> Folder:
        """The folder, its name on disk: who made it may have been killed, or be just about to."""
        try:
            if FRESH and folder.fd is not None and (is_new or is_fresh(os.fstat(folder.fd))):
                self.disk.sync_folder(parent)
                with unless(errno.EPERM):  # the disk says that it is another user's
                    self.disk.unmark(folder)
        except BaseException:
            folder.close()
            raise
        return folder

    def open_or_add(self, folder: Folder, name: str) -> Folder:
        try:
            return folder.child(name)
        except FileNotFoundError:
            return self.add_folder(folder, name)

    def link(self, folder: Folder, name: str) -> str:
        """Give a file a second name, among the temp files; gives its path."""
        path = f"{self.temp}/{self.disk.spare_name()}"
        self.disk.link(folder, name, path)
        return path

    def drop(self, folder: Folder, name: str) -> None:
        """Remove a file, if it is there; but no folder: none is ours."""
        try:
            self.disk.unlink(folder, name)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):  # the second on macOS and Windows
            if not is_folder(folder, name):
                raise

    def put_aside(self, folder: Folder, note: str) -> str:
        """Move a note to where a human may look at it; gives its path below the bucket's folder."""
        own = f"{time.time_ns():020}-{secrets.token_hex(4)}"  # it keeps its name, which may be long
        with Folder.open(self.room) as room, self.open_or_add(room, "damaged") as damaged:
            with self.add_folder(damaged, own) as aside:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    self.disk.rename(os.path.join(folder.path, note), aside, note)
        return f"{ROOM}/damaged/{own}/{note}"


LOCK_NAMES = [f"{number:02x}" for number in range(LOCKS)]


def number_of(name: str) -> int:
    """Which lock it has."""
    return zlib.crc32(name.encode()) % LOCKS


class Locks:
    """What excludes writers from each other, in any thread, process or machine.

    Each key has one of LOCKS; number 0 is bucket.json's too. `check` is called once those of keys,
    or all, are held: About.check_here, which raises when the bucket is not there any more.
    """

    def __init__(self, room: str, check: Callable[[], None]):
        self.folder, self._check = f"{room}/locks", check
        self._maker = f"{self.folder}/make"  # the lock to make one
        count = 0 if HAS_FLOCK else LOCKS
        self._own = [threading.Lock() for _ in range(count)]
        self._uploads = [threading.Lock() for _ in range(count)]

    def make_maker(self) -> None:
        """Now: a full disk may have no inode for it later."""
        if HAS_FLOCK and not os.path.exists(self._maker):
            try:
                touch(self._maker)
            except OSError as why:  # a disk that is full, or only to be read, is served too
                if why.errno not in (*FULL, errno.EROFS, errno.EACCES, errno.EPERM):
                    raise

    @contextlib.contextmanager
    def of_key(self, key: str) -> Iterator[None]:
        with self.number(number_of(key)):
            self._check()
            yield

    @contextlib.contextmanager
    def to_look(self, key: str) -> Iterator[None]:
        """The same for who writes nothing; without a lock where none can be had: nobody writes."""
        with contextlib.ExitStack() as lock:
            with unless(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
                lock.enter_context(self.of_key(key))
            self._check()
            yield

    @contextlib.contextmanager
    def number(self, number: int) -> Iterator[None]:
        if not HAS_FLOCK:
            with self._own[number]:
                yield
            return
        fd = self._open(self.path(number))
        try:
            yield
        finally:
            close_locked(fd)

    def path(self, number: int) -> str:
        return f"{self.folder}/{LOCK_NAMES[number]}"

    def _open(self, path: str) -> int:
        """A lock's file, locked; it is made when it is first needed.

        Where the disk is too full for that, to make one is the lock: nobody else can meanwhile.
        """
        may_wait = not TURNS.in_front
        while True:
            with contextlib.suppress(FileNotFoundError):
                return open_locked(path, may_wait, may_make=False)
            maker = open_locked(self._maker, may_wait)
            try:
                touch(path)
            except OSError as why:
                if why.errno in FULL:
                    return maker
                close_locked(maker)
                raise
            close_locked(maker)

    @contextlib.contextmanager
    def of_keys(self, *keys: str) -> Iterator[None]:
        """Those of some keys, the lower number first: so does who takes all of them.

        Each is made before one is held: who has one must not wait to make another. Raises
        FileNotFoundError where the bucket is made anew meanwhile.
        """
        numbers = sorted({number_of(key) for key in keys})
        paths = [self.path(number) for number in numbers] if HAS_FLOCK else []
        for path in paths:
            if not os.path.exists(path):
                with locked(self._maker):
                    touch(path)
        with contextlib.ExitStack() as locks:
            for path in paths:
                locks.callback(close_locked, open_locked(path, may_make=False))
            for number in numbers if not HAS_FLOCK else ():
                locks.enter_context(self._own[number])
            self._check()
            yield

    def of_upload(self, path: str) -> contextlib.AbstractContextManager[Any]:
        """That of an upload's folder, which is not one of the keys': Complete takes the key's while
        it holds this.
        """
        if HAS_FLOCK:
            return locked(os.path.join(path, "lock"))
        return self._uploads[number_of(path)]

    @contextlib.contextmanager
    def all(self) -> Iterator[None]:
        """All of keys that are there, and no other is made meanwhile."""
        with contextlib.ExitStack() as locks:
            if HAS_FLOCK:
                may_wait = not TURNS.in_front
                locks.callback(close_locked, open_locked(self._maker, may_wait))
                for name in sorted(set(LOCK_NAMES).intersection(os.listdir(self.folder))):
                    fd = open_locked(f"{self.folder}/{name}", may_wait, may_make=False)
                    locks.callback(close_locked, fd)
            for lock in self._own:
                locks.enter_context(lock)
            self._check()
            yield


def read_number(fd: int, line: int = 0) -> int:
    """A number of a file that has one in each line."""
    os.lseek(fd, line * 21, os.SEEK_SET)
    text = os.read(fd, 20)
    return int(text) if re.fullmatch(b"[0-9]{20}", text) else 0


def write_number(fd: int, number: int, line: int = 0) -> None:
    os.lseek(fd, line * 21, os.SEEK_SET)
    os.write(fd, b"%020d\n" % number)


class Quota:
    """How many bytes a bucket may hold, 0 for any number, and how many its disk is to have left."""

    def __init__(self, root: str, limit: int, min_free: int):
        self.root, self.limit, self.min_free = root, limit, min_free
        self.path = os.path.join(root, ROOM, "usage")
        self._lock = threading.Lock()  # where there is no flock
        self._free, self._free_until = 0, 0.0  # bytes above min_free, and how long that counts

    @contextlib.contextmanager
    def usage(self) -> Iterator[int]:
        """The file with the number of bytes held and the time of counting, open and locked."""
        if HAS_FLOCK:
            with locked(self.path) as fd:
                yield fd
            return
        with self._lock, closing_fd(os.open(self.path, CHANGE_FLAGS | os.O_CREAT, 0o640)) as fd:
            yield fd

    def charge(self, size: int, is_there: bool = False) -> None:
        """Count bytes that come, or go. Raises QuotaExceeded, but not for what is there already."""
        if not self.limit or not size:
            return
        with self.usage() as fd:
            total = read_number(fd) + size
            if size > 0 and total > self.limit and not is_there:
                raise S3Error("QuotaExceeded", Quota=self.limit)
            write_number(fd, max(0, total))

    def restart(self, total: int, began: int) -> None:
        """What is held, as it was counted from `began` on, in ns."""
        with self.usage() as fd:
            write_number(fd, total)
            write_number(fd, began, line=1)

    def count_in(self, info: os.stat_result, known: int) -> None:
        """Count a file that was put there by hand since the start, `known` of its bytes before."""
        if self.limit:
            with self.usage() as fd:
                if info.st_ctime_ns > read_number(fd, line=1):
                    write_number(fd, max(0, read_number(fd) + info.st_size - known))

    def check(self, length: int, there: int = 0, freed: Callable[[], int] = int) -> None:
        """Whether `length` more bytes are allowed, of which the disk has `there` already.

        Where they are too many, `freed` is asked how many the quota gets back for them, by default
        none. Raises InsufficientStorage, QuotaExceeded.
        """
        if self.limit and length:
            with self.usage() as fd:
                over = read_number(fd) + length - self.limit
            if over > 0 and over > freed():
                raise S3Error("QuotaExceeded", Quota=self.limit)
        self.check_free(length - there)

    def check_free(self, length: int) -> None:
        """Whether `length` more bytes leave min_free. Raises InsufficientStorage."""
        if not self.min_free or not hasattr(os, "statvfs"):
            return
        now = monotonic()
        if length + GIB < self._free and now < self._free_until:
            return  # plenty a moment ago: statvfs is not asked for each of many small writes
        info = os.statvfs(self.root)
        self._free = info.f_bavail * info.f_frsize - self.min_free
        self._free_until = now + FREE_SECONDS
        if length > self._free or info.f_files > 0 and info.f_favail < MIN_INODES:
            raise S3Error("InsufficientStorage")


DAY_NAME = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")  # a folder of versions
VERSION_NAME = re.compile("([0-9]{20})-[0-9a-f]{8}")  # ns since 1970 when it went, and chance


class Version(NamedTuple):
    """An object that was replaced or deleted, kept for a while."""

    path: str
    key: str
    gone: float  # seconds since 1970
    entry: Entry

    def check(self) -> None:
        """Raises InternalError when it is damaged, OSError."""
        with closing_fd(os.open(self.path, READ_FLAGS)) as fd:
            self.check_copy(fd)

    def check_copy(self, fd: int) -> None:
        """Raises InternalError when these are not its bytes."""
        is_whole = os.fstat(fd).st_size == self.entry.size
        if not is_whole or any(self.entry.spans()) and not self.entry.describes(fd):
            raise S3Error("InternalError", "The version is damaged on the disk.")


class Versions:
    """What was replaced or deleted, for `keep` seconds: a second link, and a note of its entry."""

    def __init__(self, files: Files, quota: Quota, keep: int):
        self.files, self.disk, self.quota, self.keep = files, files.disk, quota, keep
        self.folder = f"{files.room}/versions"

    @contextlib.contextmanager
    def kept(
        self, place: Place, key: str, old: Optional[Entry], if_space: bool = False
    ) -> Iterator[str]:
        """Keep a version of what is there, if that is wanted; gives its path.

        Not when the commit inside fails: the version would be one of what is there still.
        """
        keep = self._keep_if_space if if_space else self._keep
        path = keep(place, key, old) if old and self.keep else ""
        try:
            yield path
        except BaseException:
            with contextlib.suppress(OSError):
                if path and os.stat(path).st_nlink > 1:  # the object is still in its place
                    self.drop(path)
            raise

    def _keep(self, place: Place, key: str, old: Entry) -> str:
        """A second link to what is about to be replaced or deleted; gives its path.

        Never a moment without the object: nothing is moved. What says of it goes first.
        """
        now = time.time_ns()
        day = time.strftime("%Y-%m-%d", time.gmtime(now // 1_000_000_000))
        name = f"{now:020}-{secrets.token_hex(4)}"
        files = self.files
        with Folder.open(files.room) as room, files.open_or_add(room, "versions") as versions:
            with files.open_or_add(versions, day) as folder:
                about, path = {"v": 1, "key": key, "entry": old._asdict()}, f"{folder.path}/{name}"
                files.write(folder, name + ".json", render_note(about))
                with on_error(self.drop, path):
                    self.disk.link(place.folder, place.name, path)
                    self.disk.sync_folder(folder)
                return path

    def _keep_if_space(self, place: Place, key: str, old: Entry) -> str:
        """As _keep for a DELETE, which works on a full disk too: "" if it cannot be kept.

        The oldest versions go first.
        """
        for number in range(ROUNDS):
            try:
                return self._keep(place, key, old)
            except FileNotFoundError:  # the day's folder was empty, and tidied away
                if number == ROUNDS - 1:
                    raise
            except OSError as why:
                if why.errno not in FULL:
                    raise
                oldest = next(self.since(), None)
                if not oldest:
                    break
                self.drop(oldest.path)
        return ""

    def since(self, since: float = 0) -> Iterator[Version]:
        """What was kept and went at or after `since`, the oldest first."""
        return filter(None, map(self.read, self._paths(since)))

    def _paths(self, since: float) -> Iterator[str]:
        for day in self.days(since):
            for name in list_folder(f"{self.folder}/{day}"):
                match = VERSION_NAME.fullmatch(name)
                if match and int(match[1]) / 1e9 >= since:
                    yield f"{self.folder}/{day}/{name}"

    def days(self, since: float = 0) -> list[str]:
        """The folders of what went since, the oldest first; what else lies there is not ours."""
        first = time.strftime("%Y-%m-%d", time.gmtime(max(0.0, since)))
        return [d for d in list_folder(self.folder) if d >= first and DAY_NAME.fullmatch(d)]

    def read(self, path: str) -> Optional[Version]:
        """None where nothing, or nothing that makes sense, is said of the file."""
        match = VERSION_NAME.fullmatch(os.path.basename(path))
        if not match:
            return None
        try:
            about = parse_json(read_note(path + ".json", MAX_SIDECAR))
            return Version(path, str(about["key"]), int(match[1]) / 1e9,
                           parse_entry(about["entry"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def unknown(self, since: float) -> Iterator[str]:
        """The paths of those that went since, and of which nothing can be read."""
        for path in self._paths(since):
            if not self.read(path) and os.path.exists(path):
                yield path

    def lost(self, prefix: str, since: float) -> list[Version]:
        """Of each key that was replaced or deleted since, what it was then."""
        first: dict[str, Version] = {}
        for version in self.since(since):
            if version.key.startswith(prefix):
                first.setdefault(version.key, version)
        return list(first.values())

    def prune(self, before: float) -> None:
        """Remove what went before that time, and folders of days that are empty."""
        root = self.folder
        for day in self.days():
            with contextlib.suppress(*GONE), Folder.open(os.path.join(root, day)) as folder:
                for name in sorted(os.listdir(folder.path)):
                    went = re.match("[0-9]{20}-", name)
                    if went and int(went[0][:-1]) < before * 1e9:
                        self._drop_kept(folder, name)
            with contextlib.suppress(OSError):  # not empty yet
                os.rmdir(os.path.join(root, day))

    def drop(self, path: str) -> None:
        """The file of a version and what is said of it."""
        with Folder.open(os.path.dirname(path)) as folder:
            for name in (os.path.basename(path), os.path.basename(path) + ".json"):
                self._drop_kept(folder, name)

    def _drop_kept(self, folder: Folder, name: str) -> None:
        """The quota gets the bytes back, if no object or other version is the same file."""
        with contextlib.suppress(FileNotFoundError):
            info = folder.stat(name)
            self.disk.unlink(folder, name)
            if not name.endswith(".json") and info.st_nlink <= 1:
                self.quota.charge(-info.st_size)


def parse_about(data: bytes) -> dict[str, Any]:
    """What bucket.json says; {} for garbage."""
    with contextlib.suppress(ValueError, RecursionError):
        value = parse_json(data)
        if (isinstance(value, dict) and isinstance(value.get("created"), int)
                and 0 <= value["created"] < 2**40
                and isinstance(value.get("tags", {}), dict)
                and {str}.issuperset(map(type, value.get("tags", {}).values()))
                and isinstance(value.get("region", ""), str)
                and isinstance(value.get("cors", []), list)
                and all(map(is_cors_rule, value.get("cors", [])))):
            return value
    return {}


def is_cors_rule(value: object) -> bool:
    """Whether it is one as parse_cors makes them."""
    if not isinstance(value, dict):
        return False
    texts = [value.get("id", "")]
    for name in ("origins", "methods", "headers", "expose"):
        if not isinstance(value.get(name), list):
            return False
        texts += value[name]
    age = value.get("max_age", "")
    return {str}.issuperset(map(type, texts)) and (age is None or isinstance(age, int))


def id_of(about: Mapping[str, Any]) -> str:
    """What tells a bucket from the next one of its name; "" of those from before there was one."""
    return str(about.get("id", ""))


class About:
    """A bucket's bucket.json: what it says of itself, by which it is told from others of its name.

    One that buckets.ini declares stays what it is, whatever is restored or repaired.
    """

    def __init__(self, files: Files, is_declared: bool):
        self.files, self.is_declared = files, is_declared
        self.path = f"{files.room}/bucket.json"
        self._known: tuple[tuple[int, ...], dict[str, Any]] = ((), {})
        self._id: Optional[str] = None  # once it is known: a name may get another bucket

    def read(self) -> Optional[dict[str, Any]]:
        """created, id, owner, region, cors, tags; None when there is no such bucket.

        {} where it is damaged: then nobody's but buckets.ini's keys open it.
        """
        try:
            info = os.stat(self.path)
            generation = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
            if self._known[0] != generation:
                now = disk_time()  # before it is read
                is_settled = info.st_ctime_ns < (now - tick_of(info)) * 1e9
                about = parse_about(read_note(self.path, MAX_DOCUMENT))
                self._known = (generation if is_settled else (), about)
        except GONE:
            return None
        if self._id is None:
            self._id = id_of(self._known[1])
        return self._known[1]

    @property
    def is_same(self) -> bool:
        """Whether the bucket is there, and is the one that it was when we first saw it."""
        about = self.read()
        return about is not None and (self.is_declared or id_of(about) == self._id)

    @property
    def is_current(self) -> bool:
        """Whether it is the right one for the bucket that there is, or for making it.

        Without flock its locks are the only ones: who makes a bucket needs those of all others.
        """
        return self.is_declared or self.is_same or not HAS_FLOCK and self.read() is None

    def check_here(self) -> None:
        """Raises NoSuchBucket when it was deleted while we waited for a lock, or for a body;
        ServiceUnavailable when it went away.
        """
        if not self.is_same:
            raise self.missing()

    def missing(self, **told: object) -> S3Error:
        """What to say of a bucket that is not there. One that buckets.ini declares is but away, and
        its objects are not gone: who hears a 404 makes a new repository, or ends a recovery.
        """
        if self.is_declared:
            return S3Error("ServiceUnavailable", "The bucket's folder is away, or has no "
                           ".s3mini/bucket.json any more. Is its disk mounted?")
        return S3Error("NoSuchBucket", "", None, **told)

    def write(self, about: Mapping[str, object]) -> None:
        """Raises MaxMessageLengthExceeded, OSError."""
        data = render_note(about)
        if len(data) > MAX_DOCUMENT:
            raise S3Error("MaxMessageLengthExceeded")
        with Folder.open(self.files.room) as room:
            self.files.write(room, "bucket.json", data)

    def make(self, about: Mapping[str, object]) -> None:
        """Write it for a bucket that was not there."""
        self._id = secrets.token_hex(8)
        self.write({"v": 1, "created": int(time.time()), "id": self._id, **about})

    def sync(self) -> None:
        """Its name is on disk: who made it may have been killed before that.

        What holds it was synced before.
        """
        with Folder.open(self.files.room) as room:
            self.files.disk.sync_folder(room)


def raise_unless_gone(why: OSError) -> None:
    if not isinstance(why, GONE):
        raise why


def remove_tree(path: str) -> None:
    """All of a folder that nobody uses any more, as far as we may."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


class Store:
    """One bucket's objects. What a PUT does, in this order, so that a crash at any moment leaves
    the old object or the new one, each with its own metadata:

    1. The body goes to tmp/ (a part to its place), is verified, stamped with its mtime and synced.
       A small one is only verified, where the disk is known: it is written and synced in step 4.
    2. The key's lock.
    3. The old entry is the one that fits the data file now; the conditions are judged by it.
    4. The sidecar, with both entries, goes to tmp/ and is synced. (Folders that were missing are
       there by now, and synced.)
    5. It is renamed into place, and its folder synced unless the disk keeps the order of names.
    6. The data file is renamed into place. This is the commit: from now on the new entry fits.
    7. The folder is synced; the lock is given back.

    Readers take no lock. What an object needs besides is in `files`, `locks`, `quota`, `versions`,
    `about`; `uploads` become objects by `commit`.
    """

    def __init__(self, root: str, disk: Disk, min_free: int = 0, quota: int = 0, keep: int = 0, *,
                 memory: Optional[Memory] = None, is_declared: bool = False):
        self.root, self.disk = root, disk
        self.files = Files(root, disk)
        self.room = self.files.room
        self.about = About(self.files, is_declared)
        self.locks = Locks(self.room, self.about.check_here)
        self.quota = Quota(root, quota, min_free)
        self.versions = Versions(self.files, self.quota, keep)
        memory = memory or Memory()
        self._entries, self._contents = memory.entries, memory.contents
        self._names, self._listed = memory.names, memory.listed
        self._turn = Turn()

    @functools.cached_property
    def uploads(self) -> Uploads:
        """Made when it is asked for: it knows the store, so that only the collector frees both.

        Since Python 3.12 two threads may make two, which are as good as one.
        """
        return Uploads(self)

    # -- the bucket ------------------------------------------------------------------------------

    def create(self, **about: object) -> bool:
        """Make the bucket; False when it is there already. Raises OperationAborted, OSError."""
        for _ in range(ROUNDS):
            with contextlib.suppress(FileNotFoundError):  # it is deleted at the same time
                return self._create_once(about)
        raise S3Error("OperationAborted")

    def _create_once(self, about: Mapping[str, object]) -> bool:
        self.make_room()
        if self.about.read() is None:
            for path in (self.room, self.root, os.path.dirname(self.root)):
                with Folder.open(path) as folder:
                    self.disk.sync_folder(folder)
            with self.locks.number(0):
                if self.about.read() is None:
                    self.about.make(about)
                    return True
        self.about.sync()
        return False

    def make_room(self) -> None:
        """The bucket's own folders: when it is made, at the start, once an hour, by check --repair.

        No operation makes that of the locks again, which is never empty: should somebody remove
        it, who is inside has a lock that nobody else would find.
        """
        for path in (os.path.join(self.room, name) for name in ("tmp", "uploads", "locks")):
            if not os.path.isdir(path):
                self.disk.make_folders(path)
        self.locks.make_maker()

    def change_about(self, **changes: object) -> None:
        """Change bucket.json; None takes a name out.

        Raises InternalError, and what check_here and write of About raise.
        """
        with self.locks.number(0):
            self.about.check_here()
            about = self.about.read()
            if not about:  # what can still be made out in it is not written over
                raise S3Error("InternalError", "The bucket's bucket.json is damaged.")
            kept = {n: v for n, v in {**about, **changes}.items() if v is not None}
            self.about.write(kept)

    def destroy(self) -> None:
        """Remove the bucket, if it holds no object. Raises BucketNotEmpty, NoSuchBucket.

        With every lock held nobody commits; who waits for one finds no bucket.json then.
        """
        with self.locks.all():
            if next(self.scan("", Cursor()), None):
                raise S3Error("BucketNotEmpty", BucketName=os.path.basename(self.root))
            for path, folders, _ in os.walk(self.root, onerror=raise_unless_gone):
                if path == self.root:  # what may not be read is not empty
                    folders[:] = [f for f in folders if f not in (ROOM, LOST_AND_FOUND)]
            # Out of the way while nobody can make the bucket anew, or we would remove the new one;
            # and all at once, or the next bucket of the name would have our uploads and versions.
            above = os.path.dirname(self.root)
            aside = os.path.join(above, f"{ROOM}-{secrets.token_hex(8)}")
            try:
                os.rename(self.room, aside)
            except OSError as why:  # its folder is another disk's, or a link to one
                if why.errno != errno.EXDEV:
                    raise
                self._remove_room()
            for path in (self.root, above):
                with Folder.open(path) as folder:
                    self.disk.sync_folder(folder)
        remove_tree(aside)
        with contextlib.suppress(OSError):  # something that is no object stays
            os.rmdir(self.root)

    def _remove_room(self) -> None:
        """Where it lies. All locks are held; bucket.json goes once nothing is left that the next
        bucket of the name would have, and before the locks: without it there is no bucket.
        """
        for name in ("uploads", "versions", "damaged"):
            remove_tree(f"{self.room}/{name}")
        with Folder.open(self.room) as room:
            self.files.drop(room, "usage")
            self.disk.sync_folder(room)
            self.disk.unlink(room, "bucket.json")
            self.disk.sync_folder(room)
        remove_tree(self.room)

    def clean(self, expire_uploads: int = 0, age: float = 0) -> None:
        """Remove temp files of writers that are gone, versions that are too old, and uploads that
        nobody finished. Raises what check_here raises, InternalError, OSError.

        `age` spares what is younger: a sidecar on its way has no lock. At start it may be 0, a
        writer of another process that loses its file so tries again or answers an error.
        """
        self.about.check_here()  # else folders would be made where its disk is mounted
        if self.about.read() == {}:
            raise S3Error("InternalError", f"{self.about.path} is damaged")
        self.make_room()
        self._clean_temp(age)
        self.versions.prune(time.time() - self.versions.keep)
        self.uploads.clean(expire_uploads, age)

    def _clean_temp(self, age: float) -> None:
        with Folder.open(self.files.temp) as folder:
            for name in [n for n in os.listdir(folder.path) if is_old(folder, n, age)]:
                with unlocked(folder, name) as is_dead:
                    if is_dead:
                        self.files.drop(folder, name)

    def count(self) -> None:
        """Count what the bucket holds, when it has a quota: at start, when nobody writes."""
        if self.quota.limit:
            began = time.time_ns()
            self.quota.restart(self.held(), began)

    def held(self) -> int:
        """The bytes of everything the bucket holds, read off the disk, as far as we may read it.

        A file of two names counts once: a version may be in its place again.
        """
        todo, seen, total = [self.root], set(), 0
        while todo:
            path = todo.pop()
            with contextlib.suppress(*GONE, PermissionError):
                if os.path.dirname(path) == self.uploads.folder:
                    total += self.uploads.held_by(path)
                    continue
                for info in self._each_file(path, todo):
                    if info.st_nlink <= 1 or info.st_ino not in seen:
                        total += info.st_size
                    if info.st_nlink > 1:
                        seen.add(info.st_ino)
        return total

    def _each_file(self, path: str, todo: list[str]) -> Iterator[os.stat_result]:
        """Every data file and kept version in a folder; its folders go to `todo`."""
        with os.scandir(path) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    if path != self.room or item.name in ("uploads", "versions"):
                        todo.append(item.path)
                elif path != self.room and not self._is_note(path, item.name):
                    with contextlib.suppress(FileNotFoundError):
                        yield item.stat(follow_symlinks=False)

    def _is_note(self, folder: str, name: str) -> bool:
        """Whether a file is a sidecar, or in the room a note beside what is kept there."""
        if folder.startswith(self.room + os.sep):
            return name.endswith(".json")
        return is_sidecar(name)

    # -- reading ---------------------------------------------------------------------------------

    def open(self, key: str) -> Found:
        """The object, open; close its fd. Raises NoSuchKey, AccessDenied."""
        known = self._entries.get((self.root, key))
        if known and known.find():  # fast path: half the system calls of the walk
            with contextlib.suppress(OSError):
                fd = os.open(known.path, READ_FLAGS)
                if known.fits(os.fstat(fd)):
                    return Found(known.entry, fd)
                os.close(fd)
        return self._open_slowly(key)

    def recall(self, key: str) -> Optional[Found]:
        """A small object of which memory has at least the entry; None where it is another by now.

        Fast path: one system call and one for each folder, where opening and reading takes six.
        """
        known = self._entries.get((self.root, key))
        if not known or known.entry.size > SMALL:
            return None
        info = known.find()
        data = self._contents.get(info) if info else None
        return Found(known.entry, -1, data) if data is not None else self._learn(known)

    def in_memory(self, key: str, needs_content: bool) -> Optional[tuple[Known, bytes]]:
        """As recall, of what was read before; without `needs_content` an object of any size."""
        known = self._entries.get((self.root, key))
        info = known.find() if known else None
        if not known or not info:
            return None
        data = self._contents.get(info) if needs_content else b""
        return None if data is None else (known, data)

    def _learn(self, known: Known) -> Optional[Found]:
        """The same from the file, and into memory."""
        try:
            fd = os.open(known.path, READ_FLAGS)
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if not known.fits(info) or not known.find():
                return None
            data = read_at(fd, known.entry.size, 0)
            self._contents.add(info, data)
            return Found(known.entry, -1, data) if len(data) == known.entry.size else None
        finally:
            os.close(fd)

    def _open_slowly(self, key: str) -> Found:
        """Folder by folder, and again while writers are at it."""
        names, seen = names_of_key(key), 0
        for _ in range(ROUNDS):
            place = self._open_data(names, key)
            with place.folder, on_error(os.close, place.fd):
                info = os.fstat(place.fd)
                entry = self._entry_of(place, info, key)
                if entry:
                    return Found(entry, place.fd)
            os.close(place.fd)
            if seen == info.st_ino:
                break
            seen = info.st_ino
        return self._settle(names, key)

    def head(self, key: str) -> Entry:
        """What is known of the object. Raises NoSuchKey, AccessDenied."""
        known = self._entries.get((self.root, key))
        if known and known.find():
            return known.entry
        found = self._open_slowly(key)
        found.close()
        return found.entry

    def _open_data(self, names: list[str], key: str) -> Place:
        """The data file at its natural or its escaped name. Raises NoSuchKey, AccessDenied."""
        try:
            folder = self.folder(names[:-1])
            with on_error(folder.close):
                place = open_regular(folder, names[-1]) or open_regular(folder, names[-1] + "%")
            if place:
                return place
            folder.close()
        except GONE:
            pass
        except OSError as why:
            if why.errno not in LINK_ERRORS:
                raise access_denied(why) from None
        self.about.check_here()  # its disk went away: who mirrors it would delete what is not there
        raise S3Error("NoSuchKey", Key=key)

    def folder(self, names: Union[list[str], tuple[str, ...]]) -> Folder:
        """The open folder of these names. Raises FileNotFoundError, NotADirectoryError."""
        folder = Folder.open(self.root)
        for name in names:
            with folder:
                folder = folder.child(name)
        return folder

    def _entry_of(self, place: Place, info: os.stat_result, key: str) -> Optional[Entry]:
        """The entry that describes this data file, or None. Raises NoSuchKey on folding disks."""
        known = self._entries.get((self.root, key))
        if known and known.fits(info):
            return known.entry
        sidecar = read_sidecar(place)
        entry = sidecar.fitting(info) if sidecar else None
        if sidecar and self._is_of_another(sidecar, key):
            raise S3Error("NoSuchKey", Key=key)
        return self._remember(key, place, info, entry) if entry else None

    def _is_of_another(self, sidecar: Sidecar, key: str) -> bool:
        """Whether a disk that takes two names for one has given us another key's file.

        A sidecar names another key also where somebody moved or copied its folder: that is as
        good as one of our own.
        """
        if sidecar.key == key or folded(sidecar.key) != folded(key):
            return False
        return not self._has_names(names_of_key(key))

    def _has_names(self, names: list[str]) -> bool:
        """Whether just these names are on the disk, the last one maybe escaped."""
        with contextlib.suppress(*GONE):
            for depth, name in enumerate(names):
                with self.folder(names[:depth]) as folder:
                    found = {item.name for item in folder.scan()}
                if name not in found and (depth < len(names) - 1 or name + "%" not in found):
                    return False
            return True
        return False

    def _remember(self, key: str, place: Place, info: os.stat_result, entry: Entry) -> Entry:
        """Keep an entry in memory; gives the compact one.

        Not where the disk counts whole seconds: there an inode used again could look the same.
        """
        folders, entry = self._folders_to(place.folder.path), entry.compact()
        if info.st_mtime_ns % 1_000_000_000 == 0 or len(entry.parts) > 100 or folders is None:
            return entry
        path = f"{place.folder.path}/{place.name}"
        known = Known(path, folders, info.st_dev, info.st_ino, entry, {})
        drop_oldest(self._entries, CACHED_ENTRIES - 1)
        self._entries[self.root, key] = known
        return entry

    def _folders_to(self, path: str) -> Optional[Way]:
        """What Known keeps of the folders down to this one; None when one is gone, or a link."""
        found: list[tuple[str, int, int]] = []
        with contextlib.suppress(OSError):
            while len(path) > len(self.root):
                info = os.stat(path, follow_symlinks=False)
                if not stat.S_ISDIR(info.st_mode):
                    return None
                found.append((path, info.st_dev, info.st_ino))
                path = os.path.dirname(path)
            return one(tuple(found))
        return None

    def _settle(self, names: list[str], key: str) -> Found:
        """The object whose data file no entry fits: look under the lock, then adopt it."""
        with self.locks.to_look(key):
            place = self._open_data(names, key)  # what is there now: no writer is at it
            with on_error(place.folder.close), on_error(os.close, place.fd):
                info = os.fstat(place.fd)
                entry, sidecar = self._entry_of(place, info, key), read_sidecar(place)
        with place.folder, on_error(os.close, place.fd):
            if not entry:
                entry = identify(place.fd, info, key, sidecar)
                self._adopt(place, info, Sidecar(key, entry))
            return Found(entry, place.fd)

    def _adopt(self, place: Place, info: os.stat_result, found: Sidecar) -> None:
        """Write down what was found out, if the file is still the same. No read fails for it."""
        with contextlib.suppress(OSError), self.locks.of_key(found.key):
            now = place.folder.stat(place.name)
            same = (now.st_ino, now.st_size, now.st_mtime_ns) == (
                info.st_ino, info.st_size, info.st_mtime_ns)
            sidecar = read_sidecar(place)  # another worker may have been here
            if same and not (sidecar and sidecar.fitting(info)):
                self._take_in(place, info, found, sidecar)

    def _take_in(
        self, place: Place, info: os.stat_result, found: Sidecar, sidecar: Optional[Sidecar]
    ) -> None:
        """Write down what a file is, and let the quota count it. Locked.

        A sidecar that makes no sense stays: it is a later version's, or a human can mend it.
        """
        if sidecar or not exists(place.folder, place.sidecar):
            self._write_sidecar(place, found)
            self.quota.count_in(info, sidecar.current.size if sidecar else 0)

    # -- folders ---------------------------------------------------------------------------------

    def _make_folder(self, names: list[str]) -> Folder:
        """The folder, made where it is missing; each new one is synced into its parent.

        An object that stands in the way steps aside. Raises FileNotFoundError when a DELETE
        prunes the folder at the same time: try again.
        """
        folder = Folder.open(self.root)
        for depth, name in enumerate(names):
            with folder:
                try:
                    child = self.files.synced(folder, folder.child(name))
                except FileNotFoundError:
                    child = self.files.add_folder(folder, name)
                except NotADirectoryError:
                    self._step_aside(names[: depth + 1])
                    child = self.files.synced(folder, folder.child(name))
            folder = child
        return folder

    def _step_aside(self, names: list[str]) -> None:
        """Move the object that has a needed folder's name to its escaped name, NAME%.

        Sidecar first, then the data file: a reader that finds neither starts over.
        """
        key = key_of_names(names)
        if key is None:
            raise S3Error("InvalidRequest", "A file that is no object has the name of a folder.")
        with self.locks.of_key(key), self.folder(names[:-1]) as folder:
            place = open_regular(folder, names[-1])
            if place:
                os.close(place.fd)
                sidecar = read_sidecar(place)
                if exists(folder, place.name + "%"):  # by hand: of the two S3 sees the first
                    raise S3Error("InvalidRequest", f"{key}% is in the way of a folder.")
                if sidecar:
                    self._write_sidecar(Place(folder, place.name + "%"), sidecar)
                self.disk.rename(os.path.join(folder.path, place.name), folder, place.name + "%")
                self.disk.sync_folder(folder)
                self.files.drop(folder, place.sidecar)
            elif stat.S_ISLNK(mode_of(folder, names[-1])):
                raise S3Error("InvalidRequest", "A link has the name of a folder that is needed.")
            self.files.add_folder(folder, names[-1]).close()

    def _prune(self, names: list[str]) -> None:
        """Remove the folder and its parents as far as they are empty."""
        with contextlib.suppress(OSError):  # not empty: fine
            while names:
                with contextlib.suppress(*GONE):
                    self._prune_few(names[:-OPEN_LEVELS], names[-OPEN_LEVELS:])
                names = names[:-OPEN_LEVELS]

    def _prune_few(self, above: list[str], names: list[str]) -> None:
        """As many folders as are held open at once. Raises OSError at one that is not empty."""
        folders = [self.folder(above)]
        try:
            with contextlib.suppress(FileNotFoundError):  # who was to make it failed
                for name in names[:-1]:
                    folders.append(folders[-1].child(name))
            for folder, name in zip(reversed(folders), reversed(names[: len(folders)])):
                with contextlib.suppress(FileNotFoundError):
                    self.disk.rmdir(folder, name)
        finally:
            for folder in folders:
                folder.close()

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: str, body: Body, describe: Callable[[], Entry], check: Check) -> Entry:
        """Store a body whole or not at all; when it returns it is on disk.

        `describe` is called when the body is verified, `check` with the old entry (or None)
        under the key's lock. Raises what they and the body raise, InsufficientStorage, OSError.
        """

        def freed() -> int:
            with contextlib.suppress(S3Error):
                return 0 if self.versions.keep else self.head(key).size
            return 0

        self.quota.check(body.length or 0, freed=freed)
        with self._stage_small(body) or self.files.stage() as staged:
            staged.fill(body, lambda size: self.quota.check(size, size, freed))
            return self.commit(key, staged, describe(), check)

    def _stage_small(self, body: Body) -> Optional[Staged]:
        """Only on disks that are known: of others a stamp may say something else once synced."""
        is_small = body.length is not None and body.length <= SMALL
        return Late(self.disk, self.files.temp) if is_small and self.files.keeps_order() else None

    def commit(
        self, key: str, staged: Staged, entry: Entry, check: Check, charged: int = 0
    ) -> Entry:
        """From the stamp of step 1 on, for a file that is written. Raises as put does.

        `charged` of its bytes the quota has counted already.
        """
        entry = staged.seal(entry, time.time_ns())
        self.quota.check_free(entry.size if staged.is_late else 0)
        names = names_of_key(key)
        with on_error(self._prune, names[:-1]):  # the folders that were made for nothing
            for _ in range(ROUNDS):
                with contextlib.suppress(*FOLDERS_MOVED):
                    with self._make_folder(names[:-1]) as folder, self.locks.of_key(key):
                        place, old = self._look(folder, names[-1], key)
                        check(old)
                        return self._commit_locked(place, staged, Sidecar(key, entry, old), charged)
            raise self._gave_up()

    def _gave_up(self) -> S3Error:
        """After ROUNDS. Raises as About.check_here, or FileNotFoundError, where that is why."""
        self.about.check_here()
        os.stat(self.locks.folder)  # else what is missing is a folder of ours
        return S3Error("OperationAborted", "Folders come and go under this key. Try again.")

    def _commit_locked(self, place: Place, staged: Staged, sidecar: Sidecar, charged: int) -> Entry:
        """Keep the old version and count the bytes, where that is wanted; then replace."""
        old = sidecar.previous
        with self._turn:  # not before: the look may have had a large file to hash
            sidecar = sidecar._replace(current=staged.outlast(sidecar.current, old))
            change = sidecar.current.size - charged - self._freed_by(old)
            self.quota.charge(change)  # first: what is refused must not leave a version
            try:
                with self.versions.kept(place, sidecar.key, old):
                    return self._swap_in(place, staged, sidecar)
            except BaseException:
                if staged.path:  # it was not committed
                    self.quota.charge(-change)
                raise

    def _freed_by(self, old: Optional[Entry]) -> int:
        """The bytes that the quota gets back when an object is replaced: none where it is kept."""
        return old.size if old and not self.versions.keep else 0

    def _swap_in(self, place: Place, staged: Staged, sidecar: Sidecar) -> Entry:
        """The sidecar of step 4, to step 7. Before the data file's rename `previous` fits it, after
        it `current`.
        """
        beside = staged.fd if staged.is_late else -1
        self._write_sidecar(place, sidecar, is_sure=not self.files.keeps_order(), beside=beside)
        try:
            with self._freed_behind(place, sidecar.previous):
                staged.rename(place.folder, place.name)
        except IsADirectoryError:  # a folder took the name: the sidecar is nobody's
            self.files.drop(place.folder, place.sidecar)
            raise
        self.disk.sync_folder(place.folder)
        if staged.info:
            self._remember(sidecar.key, place, staged.info, sidecar.current)
        return sidecar.current

    @contextlib.contextmanager
    def _freed_behind(self, place: Place, old: Optional[Entry]) -> Iterator[None]:
        """The disk frees a large file that is replaced inside while the answer is on its way.

        Held open, it is freed when it is closed: 16 MiB over 16 MiB take 28 ms instead of 32. Only
        on disks that are known: NFS would give what is open a name that is then listed.
        """
        fd = -1
        if old and old.size >= FREE_BEHIND and self.files.keeps_order():
            with contextlib.suppress(OSError):
                fd = place.folder.open_file(place.name)
        try:
            yield
        finally:
            if fd >= 0:
                self.disk.close_behind(fd)

    def _look(self, folder: Folder, name: str, key: str) -> tuple[Place, Optional[Entry]]:
        """Where the key is to be written, and the entry that fits what is there now. Locked.

        Raises InvalidRequest where a folding disk would overwrite another key's object.
        """
        known = self._entries.get((self.root, key))
        if known:  # fast path: 60 us less of a PUT that replaces what this process knows
            with contextlib.suppress(FileNotFoundError):
                if known.fits(folder.stat(name)):
                    return Place(folder, name), known.entry
        for candidate in (name, name + "%"):
            place = open_regular(folder, candidate)
            if place:
                break
        else:
            free = name + "%" if is_folder(folder, name) else name
            return Place(folder, free), None
        try:
            info = os.fstat(place.fd)
            sidecar = read_sidecar(place)
            entry = sidecar.fitting(info) if sidecar else None
            if sidecar and self._is_of_another(sidecar, key):
                raise S3Error("InvalidRequest", f"This disk cannot hold it beside {sidecar.key}.")
            if not entry:
                entry = identify(place.fd, info, key, sidecar)
                with unless(*FULL):  # DELETE works; else the quota gives back what it never had
                    if self.quota.limit:
                        self._take_in(place, info, Sidecar(key, entry), sidecar)
            return place._replace(fd=-1), entry
        finally:
            os.close(place.fd)

    def _write_sidecar(
        self, place: Place, sidecar: Sidecar, is_sure: bool = True, beside: int = -1
    ) -> None:
        self.files.write(place.folder, place.sidecar, render_sidecar(sidecar), is_sure, beside,
                         replaces=sidecar.previous is not None)

    def append(self, key: str, body: Body, offset: int, given: Entry, check: Check) -> Entry:
        """The object with the body behind it, as one commit; `given` where there is no object.

        Raises InvalidWriteOffset, OperationAborted when it changed meanwhile, and as put does.
        """
        old: Optional[Found] = None
        with contextlib.suppress(S3Error):
            old = self.open(key)
        try:
            if offset != (old.entry.size if old else 0):
                raise S3Error("InvalidWriteOffset")
            source = JoinedReader(CheckedReader(old, 0, offset) if old else None, body)
            length = None if body.length is None else offset + body.length
            whole = Body(source, Promise(length=length))
            kept = old.entry.checksums if old else [body.algorithm] if body.algorithm else []
            for algorithm in kept if not old or not old.entry.parts else ():
                whole.want(algorithm)

            def describe() -> Entry:
                entry = with_body(old.entry if old else given, whole)
                return entry._replace(modified=given.modified, parts=[], upload="")

            return self.put(key, whole, describe, if_unchanged(old and old.entry, check))
        finally:
            if old:
                os.close(old.fd)

    def rename(
        self, source: str, key: str, check_source: Callable[[Entry], None], check: Check
    ) -> None:
        """Give an object another key, without a copy. Raises NoSuchKey, OperationAborted."""
        names, old_names = names_of_key(key), names_of_key(source)
        with on_error(self._prune, names[:-1]):  # the folders that were made for nothing
            for _ in range(ROUNDS):
                with contextlib.suppress(*FOLDERS_MOVED):
                    with self._make_folder(names[:-1]) as folder, self.locks.of_keys(source, key):
                        done = self._rename_locked(source, folder, key, check_source, check)
                    if done:
                        self._prune(old_names[:-1])
                        return
                    self.update(source, lambda old: old, no_check)  # a later stamp
            raise self._gave_up()

    def _rename_locked(
        self, source: str, folder: Folder, key: str, check_source: Callable[[Entry], None],
        check: Check,
    ) -> bool:
        """As a PUT with a second link to the source's data; then the source goes as by a DELETE.

        A rename from folder to folder is two changes, and a power cut may keep only the first.
        False when both have one size and stamp, so that no sidecar could tell them apart.
        """
        found = self._open_data(names_of_key(source), source)
        with found.folder:
            os.close(found.fd)
            origin, entry = self._look(found.folder, names_of_key(source)[-1], source)
            if not entry:
                raise S3Error("NoSuchKey", Key=source)
            check_source(entry)
            place, old = self._look(folder, names_of_key(key)[-1], key)
            check(old)
            if not old or (old.size, old.mtime_ns) != (entry.size, entry.mtime_ns):
                with self.versions.kept(place, key, old):
                    self._link_to(origin, place, Sidecar(key, entry, old))
                self.quota.charge(-self._freed_by(old))
            elif folder.stat(place.name).st_ino != origin.folder.stat(origin.name).st_ino:
                return False
            self.disk.sync_folder(folder)  # of the same inode: an earlier rename went half way
            self.disk.unlink(origin.folder, origin.name)
            self.disk.sync_folder(origin.folder)
            self.files.drop(origin.folder, origin.sidecar)
            return True

    def _link_to(self, origin: Place, place: Place, sidecar: Sidecar) -> None:
        """Give a data file a second name, in the place of what is there."""
        self._write_sidecar(place, sidecar)
        spare = self.files.link(origin.folder, origin.name)
        with on_error(os.unlink, spare):
            self.disk.rename(spare, place.folder, place.name)

    def update(self, key: str, change: Callable[[Entry], Entry], check: Check) -> Entry:
        """Change what is known of an object, not its bytes: the new stamp is the commit.

        Raises NoSuchKey, what `check` raises, OSError.
        """
        names = names_of_key(key)
        with self.locks.of_key(key):
            place = self._open_data(names, key)
            with closing_fd(place.fd), place.folder:
                _, old = self._look(place.folder, names[-1], key)
                assert old
                check(old)
                stamp = self._later(old.mtime_ns)
                entry = change(old)._replace(mtime_ns=stamp, size=old.size, ino=old.ino)
                self._write_sidecar(place, Sidecar(key, entry, old))
                self.disk.stamp(place.fd, os.path.join(place.folder.path, place.name), stamp)
                self.disk.sync(place.fd)
            return entry

    def _later(self, mtime_ns: int) -> int:
        """A stamp that this disk keeps apart from an older one, as the disk will record it."""
        with self.files.stage() as probe:
            for step in STEPS:
                now = time.time_ns() if step > 0 else 0
                self.disk.stamp(probe.fd, probe.path, max(now, mtime_ns + step))
                if not self.files.keeps_order():  # such a disk may round it when it is written
                    self.disk.sync(probe.fd)
                found = os.fstat(probe.fd).st_mtime_ns
                if found > mtime_ns or step < 0 and found < mtime_ns:
                    return found
        raise OSError(errno.EIO, "the disk does not keep modification times apart")

    def delete(self, key: str, check: Check) -> Optional[Entry]:
        """Remove the object; what it was, or None when there was none."""
        found = self.delete_many([(key, check)])[0]
        if isinstance(found, Exception):
            raise found
        return found

    def delete_many(self, wanted: list[tuple[str, Check]]) -> list[Deleted]:
        """Remove objects: the data of all, one sync for each folder, then the sidecars.

        An orphan sidecar is harmless, a data file without one would be adopted. An error is that
        key's own; a folder that cannot be synced is an error for every key deleted in it.
        """
        results: list[Deleted] = []
        gone: dict[tuple[str, ...], list[tuple[str, str]]] = {}  # folder -> [(key, name)]
        for key, check in wanted:
            try:
                names = names_of_key(key)
                name, entry = self._delete_data(key, names, check)
                results.append(entry)
                if name is not None:
                    deleted = gone.setdefault(tuple(names[:-1]), [])
                    deleted += [(key, name)] if name else []
            except (S3Error, OSError) as why:
                results.append(why)
        for names_key, deleted in gone.items():
            try:
                self._finish_delete(list(names_key), deleted)
            except OSError as why:
                failed = {key for key, _ in deleted}
                results = [why if key in failed and not isinstance(result, Exception) else result
                           for (key, _), result in zip(wanted, results)]
        return results

    def _delete_data(
        self, key: str, names: list[str], check: Check
    ) -> tuple[Optional[str], Optional[Entry]]:
        """The commit of a DELETE: (None, None) when there is nothing.

        Else the name whose sidecar goes once the folder is synced; "" where it needs no sync, and
        is gone: the front, that can wait for no lock, has done all that is to be done.
        """
        with self.locks.of_key(key):
            try:
                folder = self.folder(names[:-1])
            except GONE:
                check(None)
                return None, None
            with folder:
                place, old = self._look(folder, names[-1], key)
                check(old)
                if old:
                    with self.versions.kept(place, key, old, if_space=True) as kept:
                        self.disk.unlink(folder, place.name)
                    self.quota.charge(0 if kept else -old.size)
                # An orphan sidecar: a DELETE that was killed, or is not yet on disk. Finish it.
                is_gone = old is not None or exists(folder, place.sidecar)
                if is_gone and not self.disk.durable:
                    self.files.drop(folder, place.sidecar)
                    return "", old
                return place.name if is_gone else None, old

    def _finish_delete(self, names: list[str], deleted: list[tuple[str, str]]) -> None:
        """Sync the folder, then remove the sidecars whose object did not come back meanwhile."""
        try:
            with self.folder(names) as folder:
                self.disk.sync_folder(folder)
                for key, name in deleted:
                    self.drop_orphan(key, Place(folder, name))
        except GONE:
            self._sync_nearest(names)  # somebody pruned the folder: that must be on disk
        self._prune(names)

    def drop_orphan(self, key: str, place: Place) -> None:
        with self.locks.of_key(key):
            if not exists(place.folder, place.name) or is_folder(place.folder, place.name):
                self.files.drop(place.folder, place.sidecar)

    def _sync_nearest(self, names: list[str]) -> None:
        """Sync the nearest folder that there is, of a path that is gone."""
        while names:
            names = names[:-1]
            with contextlib.suppress(*GONE):
                with self.folder(names) as folder:
                    self.disk.sync_folder(folder)
                return

    # -- for check and undelete ------------------------------------------------------------------

    def judge(self, key: str, place: Place, repair: bool) -> str:
        """Why no entry fits the file: "changed", "unreadable-sidecar", or "" when one does.

        Under the lock, where no writer is between the sidecar and the file. With `repair` a
        sidecar that cannot be read is moved out of the way, for a human to look at.
        """
        with self.locks.to_look(key):
            again = open_regular(place.folder, place.name)
            if not again:
                return ""
            with closing_fd(again.fd):
                if not exists(place.folder, place.sidecar):
                    return ""
                sidecar = read_sidecar(again)
                if sidecar and sidecar.fitting(os.fstat(again.fd)):
                    return ""
                if not sidecar and repair:
                    self.files.put_aside(again.folder, again.sidecar)
                return "changed" if sidecar else "unreadable-sidecar"

    def put_orphan_aside(self, key: str, folder: Folder, name: str, note: str) -> str:
        """Move what is said of a file that is gone: who brings the file back needs it.

        Gives where it is now. Without a key nobody writes there.
        """
        with self.locks.of_key(key) if key else contextlib.nullcontext():
            is_there = exists(folder, name) and not is_folder(folder, name)
            return "" if is_there else self.files.put_aside(folder, note)

    def is_in_place(self, version: Version) -> bool:
        """Whether the version has been brought back, and nobody changed it since."""
        try:
            found = self.open(version.key)
        except S3Error:
            return False
        with contextlib.closing(found):
            known = found.entry._replace(mtime_ns=version.entry.mtime_ns, ino=version.entry.ino)
            return known == version.entry and is_at(found.fd, version.path)

    def bring_back(self, version: Version) -> None:
        """Put a version in its place again. What is there now is kept as a version itself.

        The version stays, as a second name of the object: so the quota counts it once. Raises
        InternalError when it is damaged, QuotaExceeded, InsufficientStorage, OSError.
        """
        with closing_fd(os.open(version.path, READ_FLAGS)) as fd, self.files.stage() as staged:
            entry, info = version.entry, os.fstat(fd)
            self.quota.check_free(info.st_size)
            self.disk.copy(fd, 0, info.st_size, staged.fd)
            version.check_copy(staged.fd)
            with self._second_name(staged) as second:
                charged = entry.size if info.st_nlink <= 1 else 0
                with on_error(self._count_apart, staged, charged):
                    self.commit(version.key, staged, entry, no_check, charged)
                    self.quota.charge(charged - self._share(version, fd, second), is_there=True)

    @contextlib.contextmanager
    def _second_name(self, staged: Staged) -> Iterator[str]:
        with Folder.open(self.files.temp) as temp:
            path = self.files.link(temp, os.path.basename(staged.path))
            try:
                yield path
            finally:
                self.files.drop(temp, os.path.basename(path))

    def _count_apart(self, staged: Staged, charged: int) -> None:
        """What came back counts besides its version, if it was committed: they are two files."""
        if not staged.path:
            self.quota.charge(charged, is_there=True)

    def _share(self, version: Version, fd: int, path: str) -> int:
        """The second name of what came back takes the version's place: they are one file.

        Gives the bytes that this frees: none where the version, which is open, has another name; or
        where it was too old by now, or brought back twice at once, and is not there any more.
        """
        with contextlib.suppress(FileNotFoundError):
            if is_at(fd, version.path):
                freed = version.entry.size if os.fstat(fd).st_nlink <= 1 else 0  # NFS: not later
                with Folder.open(os.path.dirname(version.path)) as folder:
                    self.disk.rename(path, folder, os.path.basename(version.path))
                return freed
        return 0

    # -- listing ---------------------------------------------------------------------------------

    def scan(self, prefix: str, cursor: Cursor, delimiter: str = "") -> Iterator[Item]:
        """Keys with the prefix after cursor.after, in order; move the cursor to skip more.

        With delimiter "/" a folder that holds anything is one Item, not walked.
        """
        base = prefix[: prefix.rfind("/") + 1]
        names = tuple(names_of_key(base)[:-1])

        def find(folder: Folder, is_root: bool) -> Optional[Names]:
            return self._names.find(folder, is_root, cursor.since)

        scan = Scan(prefix, self.folder, find, self._fetch)
        try:
            levels = [Level(scan, self.folder(names), names, base)]
        except (*GONE, PermissionError) as why:  # as in Level.enter; but of the bucket's own folder
            if not names and isinstance(why, PermissionError):  # nobody can say that it is empty
                raise
            levels = []
        last = None
        try:
            while levels:
                item = levels[-1].next(cursor)
                if item is None:
                    levels.pop().close()
                elif not item.is_folder:
                    if item.key != last:  # "a" and "a%" both there: the natural name counts
                        yield item
                    last = item.key
                elif delimiter == "/" and not cursor.after.startswith(item.key):
                    if has_objects(item.folder, item.name):
                        yield item
                else:
                    child = levels[-1].enter(item)
                    if child and len(levels) >= OPEN_LEVELS:
                        levels[-1].close()
                    levels += [child] if child else []
        finally:
            for level in levels:
                level.close()
        self.about.check_here()  # as in _open_data

    def glance(self, item: Item) -> Union[Entry, Listed, None]:
        """What a listing says of an object, or None when it is gone by now.

        Fast path of peek: nothing is kept, so a walk over the bucket leaves in memory what is read.
        """
        try:
            info = item.folder.stat(item.name)
            known = self._entries.get((self.root, item.key))
            if known and known.fits(info):
                return known.entry
            found = self._listed.find(info, item.key)
            if found:
                return found
            data = sidecar_data(item.folder, sidecar_of(item.name))
            found = listed_of(data, item.key, info)
            if found:
                self._listed.add(info, item.key, found)
            return found or self.peek(item)
        except (OSError, S3Error):  # which peek will tell, or know better
            return self.peek(item)

    def _fetch(self, folder: Folder, name: str, key: str) -> None:
        """What glance reads, read by another thread before it."""
        with contextlib.suppress(OSError, S3Error):  # the glance that comes will tell
            known, info = self._entries.get((self.root, key)), folder.stat(name)
            if not (known and known.fits(info) or self._listed.find(info, key)):
                sidecar_data(folder, sidecar_of(name))

    def peek(self, item: Item) -> Optional[Entry]:
        """The entry of a listed object, or None when it is gone by now.

        One that the server may not read, or the disk cannot, is listed all the same: who mirrors a
        bucket would delete his copy of what is left out.
        """
        for _ in range(2):  # what fails once may pass
            try:
                return self._peek(item)
            except OSError as why:
                if why.errno in EXHAUSTED:
                    raise
        return self._unread(item)

    def _peek(self, item: Item) -> Optional[Entry]:
        """Raises OSError."""
        entry = None
        try:
            with contextlib.suppress(FileNotFoundError):  # it stepped aside, or its folder is new
                info = item.folder.stat(item.name)
                entry = self._entry_of(Place(item.folder, item.name), info, item.key)
            return entry or self.head(item.key)
        except S3Error as why:
            return self._unread(item) if why.code == "AccessDenied" else None

    def _unread(self, item: Item) -> Optional[Entry]:
        with contextlib.suppress(FileNotFoundError):
            return unread(item.folder.stat(item.name), item.key)
        return None


class Uploads:
    """A bucket's multipart uploads: each has a folder, with its parts or places for them."""

    def __init__(self, store: Store):
        self.store, self.quota, self.files = store, store.quota, store.files
        self.disk, self.folder = store.disk, f"{store.room}/uploads"

    def _open(self) -> Folder:
        """Made again where somebody tidied it away; it may be a link."""
        try:
            return Folder.open(self.folder)
        except FileNotFoundError:
            with Folder.open(self.files.room) as room:
                return self.files.add_folder(room, "uploads")

    def create(self, upload: Upload) -> None:
        """Raises InsufficientStorage, OSError."""
        self.quota.check_free(0)
        self.store.about.check_here()
        with self._open() as uploads:
            with self.files.add_folder(uploads, upload.id) as folder:
                if HAS_FLOCK:
                    with contextlib.suppress(FileExistsError):
                        os.close(self.disk.create(f"{folder.path}/{WHOLE}"))
                value = {**upload._asdict(), "v": 1, "entry": upload.entry._asdict()}
                self.files.write(folder, "upload.json", render_note(value))

    def find(self, upload_id: str, key: str) -> Upload:
        """Raises NoSuchUpload, also when the upload is for another key."""
        found = self.read(upload_id) if UPLOAD_ID.fullmatch(upload_id) else None
        if not found or found.key != key:
            raise S3Error("NoSuchUpload", UploadId=upload_id)
        return found

    def read(self, upload_id: str) -> Optional[Upload]:
        """None where there is none, or it is damaged. Raises OSError."""
        try:
            path = os.path.join(self.path(upload_id), "upload.json")
            value = parse_json(read_note(path, MAX_DOCUMENT))
            value["entry"] = parse_entry(value["entry"])
            return Upload(**{n: v for n, v in value.items() if n in Upload._fields})
        except (*GONE, ValueError, TypeError, KeyError, RecursionError):
            return None  # none, or damaged: then its parts cannot become an object any more

    def path(self, upload_id: str) -> str:
        return f"{self.folder}/{upload_id}"

    def all(self) -> list[Upload]:
        """All uploads under way, by key, then by id, which begins with the time.

        Raises as About.check_here does.
        """
        found = []
        for name in list_folder(self.folder):
            with unless(*BAD_DISK, errno.EACCES, *LINK_ERRORS):  # one hides no other
                found.append(self.read(name))
        self.store.about.check_here()  # where the folder is missing, the bucket may be
        return sorted((u for u in found if u), key=lambda u: (u.key, u.id))

    @contextlib.contextmanager
    def _lock(self, upload: Upload) -> Iterator[Folder]:
        """Its folder, with nobody else adding parts to it or ending it. Raises NoSuchUpload."""
        path = self.path(upload.id)
        try:
            with self.store.locks.of_upload(path), Folder.open(path) as folder:
                if not exists(folder, "upload.json"):
                    self._empty(path)  # our lock, made anew behind who removed it
                    raise S3Error("NoSuchUpload", UploadId=upload.id)
                yield folder
        except GONE:
            if os.path.exists(os.path.join(path, "upload.json")):
                raise
            raise S3Error("NoSuchUpload", UploadId=upload.id) from None

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        """Store a part; one sent again takes the place of the first. Raises as put does."""
        self.quota.check(body.length or 0)
        with (
            self._slot(upload, number, body.length or 0) or self.files.stage() as staged,
            on_error(self._lose_place, upload, staged, body),
        ):
            staged.fill(body, lambda size: self.quota.check(size, size))
            self.disk.sync(staged.fd)
            with self._lock(upload) as folder:
                old = [p for p in self._parts(folder) if p.number == number]
                stamp = max([time.time_ns(), *(p.stamp + 1 for p in old)])
                own = "" if upload.algorithm else body.algorithm
                checksum = body.checksums.get(own or upload.algorithm, "")
                coded = base64.b64decode(checksum).hex() + (own and f"-{own.lower()}")
                name = f"{number:05}-{stamp:020}-{body.md5}-{coded}{staged.suffix}"
                lost = sum(p.size for p in old if p.offset >= 0)  # it stays in its place
                change = body.size + lost - sum(p.size for p in old)
                self.quota.check_free(0)
                self.quota.charge(change)
                with on_error(self.quota.charge, -change):
                    self._lose(folder, lost)
                    with on_error(self._lose, folder, -lost):
                        staged.rename(folder, name)
                self.disk.sync_folder(folder)
                for part in old:
                    self.files.drop(folder, part.name)
        return Part(number, stamp, body.md5, checksum, body.size, name, own)

    def _slot(self, upload: Upload, number: int, length: int) -> Optional[Slot]:
        """A part's place in the whole, so that Complete copies nothing; None where it gets none.

        Places are as large as the first part that came: nearly all clients' parts are, but for the
        last. None ends behind the disk's own end: a backup that does not know holes would read
        them. Each is given once, and only to writers of one `serve`: a network disk may lose what
        two machines write to one file. A shared lock on the whole keeps Complete from taking it.
        """
        if not length or not HAS_FLOCK:
            return None
        path = self.path(upload.id)
        claim = f"{path}/slot-{number:05}"
        with unless(*NO_PLACE):
            fd = self._open_whole(path, exclusive=False)
            with on_error(os.close, fd):  # nobody takes it from here on, or forbids new places
                size = self._slot_size(path, length if number == 1 or length >= MIN_PART else 0)
                if length <= size and number * size <= disk_size(fd):
                    os.close(self.disk.create(claim))
                    with on_error(os.unlink, claim):
                        return Slot(self.disk, fd, claim, (number - 1) * size, length)
            os.close(fd)
        return None

    def _slot_size(self, path: str, wanted: int = 0) -> int:
        """The size of a place in the whole, `wanted` if nobody has said it; 0 for no places here.

        Raises FileExistsError, FileNotFoundError.
        """
        try:
            with open(f"{path}/{SLOTS}", encoding="ascii") as file:
                size, _, whose = file.read(100).partition(" ")
                return int(size) if whose == SERVE else 0
        except FileNotFoundError:
            if not wanted:
                return 0
        with closing_fd(self.disk.create(f"{path}/{SLOTS}")) as fd:
            self.disk.write(fd, f"{wanted} {SERVE}".encode())
        return wanted

    def _forbid_places(self, folder: Folder) -> None:
        """From now on, whatever comes, nobody writes to the whole: it may have readers.

        Raises FileNotFoundError where there are no places, or only another `serve`'s.
        """
        if not self._slot_size(folder.path):
            raise FileNotFoundError(errno.ENOENT, "no places here", folder.path)
        with closing_fd(os.open(f"{folder.path}/{SLOTS}", CHANGE_FLAGS)) as fd:
            self.disk.truncate(fd, 0)

    def _open_whole(self, path: str, exclusive: bool) -> int:
        """Raises BlockingIOError while it is in use, FileNotFoundError once it is an object."""
        whole = f"{path}/{WHOLE}"
        fd = os.open(whole, CHANGE_FLAGS)
        with on_error(os.close, fd):
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink != 1 or not is_at(fd, whole):
                raise FileNotFoundError(errno.ENOENT, "it is an object by now", whole)
        return fd

    def _lose_place(self, upload: Upload, staged: Staged, body: Body) -> None:
        """What fails in its place leaves its bytes there until the upload ends: the quota counts
        them, and nobody else gets the place.
        """
        if self.quota.limit and isinstance(staged, Slot) and staged.path and body.size:
            with contextlib.suppress(S3Error, OSError), self._lock(upload) as folder:
                self._lose(folder, body.size)
                staged.path = ""
                self.quota.charge(body.size, is_there=True)

    def _lose(self, folder: Folder, size: int) -> None:
        """Note bytes in the whole that are no part's. The upload's lock is held."""
        if self.quota.limit and size:
            path = f"{folder.path}/{LOST}"
            with closing_fd(os.open(path, CHANGE_FLAGS | os.O_CREAT, 0o640)) as fd:
                write_number(fd, max(0, read_number(fd) + size))

    def _parts(self, folder: Folder) -> list[Part]:
        """The newest of each number, in order."""
        found = {}
        names = {item.name for item in folder.scan()}
        for match in filter(None, map(PART_NAME.fullmatch, sorted(names))):
            with contextlib.suppress(FileNotFoundError):  # its successor has just come
                part = self._part(folder, match)
                if part.offset < 0 or WHOLE in names:
                    found[part.number] = part
        return list(found.values())

    def _part(self, folder: Folder, match: re.Match[str]) -> Part:
        size = int(match[7]) if match[7] else folder.stat(match[0]).st_size
        checksum = base64.b64encode(bytes.fromhex(match[4])).decode()
        return Part(int(match[1]), int(match[2]), match[3], checksum, size, match[0],
                    (match[5] or "").upper(), int(match[6] or -1))

    def parts(self, upload: Upload) -> list[Part]:
        """Raises NoSuchUpload."""
        try:
            with Folder.open(self.path(upload.id)) as folder:
                return self._parts(folder)
        except FileNotFoundError:
            raise S3Error("NoSuchUpload", UploadId=upload.id) from None

    def complete(
        self,
        upload: Upload,
        choose: Callable[[list[Part]], list[Part]],
        describe: Callable[[list[Part]], Entry],
        check: Check,
    ) -> Entry:
        """Join parts to an object. `choose` picks and checks them; as put otherwise."""
        with self._lock(upload) as folder:
            entry = self._joined(upload)
            if not entry:
                parts = self._parts(folder)
                chosen = choose(parts)
                with self._whole(folder, parts, chosen) or self.files.stage() as staged:
                    self._join(folder, chosen, staged)
                    charged = self._size(folder, parts)
                    entry = self.store.commit(upload.key, staged, describe(chosen), check, charged)
            self._remove(folder)
        return entry

    def _joined(self, upload: Upload) -> Optional[Entry]:
        """The object that the upload has become, where a kill left the upload behind it.

        The quota has got back its parts. Its name may not have reached the disk: now it does.
        """
        with contextlib.suppress(S3Error, *GONE):
            entry = self.store.head(upload.key)
            if entry.upload == upload.id:
                with self.store.folder(names_of_key(upload.key)[:-1]) as folder:
                    self.disk.sync_folder(folder)
                return entry
        return None

    def _whole(self, folder: Folder, parts: list[Part], chosen: list[Part]) -> Optional[Whole]:
        """The file in which the chosen parts lie as the object wants them, but for single ones.

        None where they do not, where it has other parts too, or while somebody writes to it. It is
        linked, not moved: a rename between folders may be there by halves after a power cut.
        """
        end, placed = 0, {p.number for p in parts if p.offset >= 0}
        for part in chosen:
            if part.offset not in (-1, end):
                return None
            placed.discard(part.number)
            end += part.size
        if placed or all(p.offset < 0 for p in chosen):
            return None
        with contextlib.suppress(OSError):  # in use, or no second names here: then all is copied
            fd = self._open_whole(folder.path, exclusive=True)
            with on_error(os.close, fd):
                self.disk.make_temp(self.files.temp)  # without it all would be copied
                self._forbid_places(folder)
                return Whole(self.disk, fd, self.files.link(folder, WHOLE))
        return None

    def _join(self, folder: Folder, parts: list[Part], staged: Staged) -> None:
        """Copy the parts that are not in place, by the kernel: their MD5s were checked before."""
        lie_there = isinstance(staged, Whole)
        self.quota.check_free(sum(p.size for p in parts if not lie_there or p.offset < 0))
        end = 0
        for part in parts:
            if not lie_there or part.offset < 0:
                name = WHOLE if part.offset >= 0 else part.name
                with closing_fd(folder.open_file(name)) as fd:
                    os.lseek(staged.fd, end, os.SEEK_SET)
                    self.disk.copy(fd, max(0, part.offset), part.size, staged.fd)
            end += part.size
        if os.fstat(staged.fd).st_size > end:  # of a part that was begun and never came
            self.disk.truncate(staged.fd, end)

    def abort(self, upload: Upload) -> None:
        """Raises NoSuchUpload."""
        with self._lock(upload) as folder:
            is_done = self._joined(upload) is not None
            size = 0 if is_done else self._size(folder, self._parts(folder))
            self.files.drop(folder, "upload.json")  # from here on nobody else counts what it held
            self.quota.charge(-size)
            self._remove(folder)

    def _remove(self, folder: Folder) -> None:
        """upload.json goes first: without it there is no upload, only files to be cleaned."""
        self.files.drop(folder, "upload.json")
        self.disk.sync_folder(folder)
        self._empty(folder.path)

    def _empty(self, path: str) -> None:
        with contextlib.suppress(*GONE), Folder.open(path) as folder:
            for name in os.listdir(path):
                self.files.drop(folder, name)
        with Folder.open(self.folder) as uploads:
            with contextlib.suppress(OSError):  # a part that is just arriving made it again
                self.disk.rmdir(uploads, os.path.basename(path))

    def _size(self, folder: Folder, parts: list[Part]) -> int:
        """What the quota counts: its parts, and what lies in places that are no part's any more."""
        size = sum(p.size for p in parts)
        with contextlib.suppress(FileNotFoundError):
            with closing_fd(os.open(f"{folder.path}/{LOST}", READ_FLAGS)) as fd:
                size += read_number(fd)
        return size

    def held_by(self, path: str) -> int:
        """What the quota counts of a folder of these: nothing of one that a kill left behind its
        object, or without upload.json, since who removes its parts gives nothing back.
        """
        upload = self.read(os.path.basename(path))
        if not upload or self._joined(upload):
            return 0
        with Folder.open(path) as folder:
            return self._size(folder, self._parts(folder))

    def clean(self, expire: int, age: float) -> None:
        """End what began more than `expire` seconds ago, unless that is 0, and what a kill left: an
        upload that is an object already, whose bytes would stay when that is replaced; folders
        without upload.json, begun or ended.

        Raises the OSError of one once the others are done.
        """
        troubles = self._clean_folders(age)
        for upload in self.all():
            try:
                if expire and upload.initiated + expire < time.time() or self._joined(upload):
                    self.abort(upload)
            except S3Error:
                pass  # it was ended just now
            except OSError as why:
                troubles.append(why)
        if troubles:
            raise troubles[-1]

    def _clean_folders(self, age: float) -> list[OSError]:
        """Gives why some cannot be looked at."""
        troubles = []
        with Folder.open(self.folder) as uploads:
            for name in os.listdir(uploads.path):
                path = os.path.join(uploads.path, name)
                try:
                    os.close(os.open(os.path.join(path, "upload.json"), READ_FLAGS))
                except GONE:
                    if is_old(uploads, name, max(age, 3600)):
                        self._empty(path)
                except OSError as why:  # which may pass
                    troubles.append(why)
        return troubles


class Finding(NamedTuple):
    """Something that `check` found in a bucket."""

    kind: str  # one of FINDINGS
    name: str  # the key, or the path below the bucket's folder where there is no key
    detail: str = ""
    mended: bool = False


FINDINGS = {  # kind: what it means, and what --repair does
    "damaged": "the bytes are not those that were stored; restore the file from a backup",
    "changed": "no entry describes the file: it was changed by hand; repair adopts it as it is",
    "unreadable-sidecar": "the sidecar is damaged; repair moves it to .s3mini/damaged/ and writes "
    "one anew from the file",
    "unhashed": "a file put there by hand, without its MD5; repair computes it",
    "orphan": "it tells of a file that is gone; repair moves it to .s3mini/damaged/",
    "temp": "a temp file of a writer that is gone; repair removes it",
    "no-key": "a file whose name no key maps to: S3 does not see it; rename it",
    "shadowed": "NAME% beside NAME, which S3 sees alone; move one of them",
    "note": "what the server wrote down is damaged or gone; restore it from a backup",
    "unreadable": "the server's user may not read it; change its owner or mode",
    "locked-out": "this user may not read, write or enter it, as the server must; chown it and all "
    "below to the server's user, or run this as that user",
    "foreign": "another user owns it: its tags and ACL cannot be changed, and with keep it can "
    "perhaps not be replaced or deleted; chown all such to the server's user",
    "mounted": "something is mounted within the bucket, which cannot store there; unmount it, or "
    "give it a bucket of its own, with path =",
    "broken": "the disk cannot read it; restore it from a backup",
}


USE_FILE = os.R_OK | os.W_OK  # what the server does with its own
USE_FOLDER = USE_FILE | os.X_OK
NOT_BACK = "undelete cannot bring it back"


def may(path: str, need: int) -> bool:
    """Whether this user may do that with it: of an administrator's program, the effective one."""
    return os.access(path, need, effective_ids=os.access in os.supports_effective_ids)


def is_read_only(path: str) -> bool:
    """Whether its disk is mounted so, for all that we may know."""
    with contextlib.suppress(OSError):
        return hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY != 0
    return False


def mounts_below(path: str) -> set[str]:
    """What is mounted below a folder, by its path from there on: no rename reaches over that.

    Its own disk may be mounted there once more: no st_dev tells it. [man 5 proc_pid_mountinfo]
    """
    above, found = os.path.join(os.path.realpath(path), ""), set()
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            octal = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split()[4])
            if (place := os.fsdecode(octal)).startswith(above):
                found.add(place[len(above) :])
    return found


def broken(name: str, why: OSError) -> Finding:
    """Raises the same where it is not the file's fault."""
    kind = "unreadable" if isinstance(why, PermissionError) else "broken"
    if kind == "broken" and why.errno not in BAD_DISK:
        raise why
    return Finding(kind, name, str(why.strerror))


class Inspector:
    """Looks through a bucket's files for what does not fit. Reading is all it does unasked."""

    def __init__(self, store: Store, deep: bool, repair: bool,
                 progress: Callable[[int, int], None], is_written: bool = True):
        self.store, self.deep, self.repair, self.progress = store, deep, repair, progress
        self._orphans: list[tuple[tuple[str, ...], str, os.stat_result]] = []
        self._is_written = is_written and not is_read_only(store.root)  # else reading is enough
        self._mounts = mounts_below(store.root) if self._is_written else set()
        has_users = self._is_written and hasattr(os, "geteuid")
        self._user = os.geteuid() if has_users else 0  # 0: all is its own
        self._foreign, self._first_foreign = 0, ""

    def run(self) -> Iterator[Finding]:
        """Everything that is found; `progress` is told (files, bytes) as it goes.

        What a writer at work may have just left is looked at again a while after.
        """
        if self.repair:
            with contextlib.suppress(OSError):
                self.store.make_room()  # to mend takes locks, and a restore drops empty folders
        yield from self._room()
        if not self._may(f"{self.store.room}/bucket.json", os.R_OK):
            return  # of a bucket that is locked nothing more can be told
        temp, notes = set(self._list("tmp")), set(self._notes())
        yield from self._tree()
        if self._foreign:  # not each: a site that is served in place has a million
            yield Finding("foreign", self._first_foreign, f"one of {self._foreign}")
        yield from self._versions() if self.deep else ()
        if temp or notes or self._orphans:
            time.sleep(SECOND_LOOK_SECONDS)
        yield from self._temp_files(temp)
        for finding in sorted(notes.intersection(self._notes())) if notes else ():
            yield self._put_aside(finding) if finding.kind == "orphan" else finding
        for names, name, info in self._orphans:
            with contextlib.suppress(*GONE, PermissionError):
                with self.store.folder(names) as folder:
                    yield from self._orphan(folder, names, name, info)

    def _may(self, path: str, need: int) -> bool:
        """Whether the server may do that with it, or what it does of that where nobody writes."""
        return may(path, need if self._is_written else need & ~os.W_OK)

    def _locked_out(self, path: str, need: int) -> Iterator[Finding]:
        """Not below a folder of which the same is told: a restore as root has a million files."""
        if self._may(path, need) or not os.path.exists(path):  # it went meanwhile
            return
        if self._may(os.path.dirname(path), USE_FOLDER):
            yield Finding("locked-out", os.path.relpath(path, self.store.root))

    def _room(self) -> Iterator[Finding]:
        """What the server may not use of what is its own, and what it cannot rename to."""
        room = self.store.room
        for name in sorted(self._mounts):
            yield Finding("mounted", name)
        if not self._may(self.store.root, USE_FOLDER):  # it may lie in what is locked too
            yield Finding("locked-out", ".")
        yield from self._locked_out(room, USE_FOLDER)
        for path, folders, files in os.walk(room):
            for name in folders:
                yield from self._locked_out(f"{path}/{name}", USE_FOLDER)
            for name in files:
                is_written = path == f"{room}/locks" or name in ("lock", "usage", WHOLE, LOST)
                yield from self._locked_out(f"{path}/{name}", USE_FILE if is_written else os.R_OK)

    def _list(self, *names: str) -> list[str]:
        """The names in a folder of the room; none where we are locked out, which is told."""
        path = os.path.join(self.store.room, *names)
        return list_folder(path) if self._may(path, os.R_OK | os.X_OK) else []

    def _each_version(self) -> Iterator[tuple[str, bool, bool]]:
        """The path of each version, whether it is there, and whether what is said of it is."""
        for day in filter(DAY_NAME.fullmatch, self._list("versions")):
            found = set(self._list("versions", day))
            for name in sorted({name.removesuffix(".json") for name in found}):
                if VERSION_NAME.fullmatch(name):
                    path = f"{self.store.room}/versions/{day}/{name}"
                    yield path, name in found, f"{name}.json" in found

    def _notes(self) -> Iterator[Finding]:
        """What is damaged of the notes that are no sidecars, or lacks the file that it is of."""
        if self.store.about.read() == {}:
            detail = "the bucket's owner, tags and CORS are not known"
            yield Finding("note", f"{ROOM}/bucket.json", detail)
        for upload in filter(UPLOAD_ID.fullmatch, self._list("uploads")):
            known, name = None, f"uploads/{upload}/upload.json"
            with contextlib.suppress(OSError):
                known = self.store.uploads.read(upload)
            if not known and self._may(f"{self.store.room}/{name}", os.R_OK):
                detail = "the upload ends or expires only if its folder is removed"
                yield Finding("note", f"{ROOM}/{name}", detail)
        for path, is_there, is_noted in self._each_version():
            if not is_there:
                yield Finding("orphan", self._note_of(path))
            elif not is_noted:
                yield Finding("note", self._note_of(path), NOT_BACK)

    def _note_of(self, path: str) -> str:
        return os.path.relpath(f"{path}.json", self.store.root)

    def _put_aside(self, orphan: Finding) -> Finding:
        """What is said of a version that is gone."""
        path = os.path.join(self.store.root, orphan.name[: -len(".json")])
        version, name = self.store.versions.read(path), os.path.basename(path)

        def put_aside() -> str:
            with Folder.open(os.path.dirname(path)) as folder:
                key = version.key if version else ""
                return self.store.put_orphan_aside(key, folder, name, f"{name}.json")

        return self._mended(orphan, put_aside)

    def _mended(self, finding: Finding, mend: Callable[[], Optional[str]]) -> Finding:
        """The finding as it is after --repair: the disk may be full, or only to be read.

        `mend` gives where it put aside what was found.
        """
        if not self.repair:
            return finding
        try:
            place = mend()
        except OSError as why:
            return finding._replace(detail=f"repair failed: {why.strerror}")
        return finding._replace(mended=True, detail=f"now {place}" if place else finding.detail)

    def _tree(self) -> Iterator[Finding]:
        todo: list[tuple[tuple[str, ...], int]] = [((), 0)]
        while todo:
            names, disk_above = todo.pop()
            with contextlib.ExitStack() as opened:
                try:
                    folder = opened.enter_context(self.store.folder(names))
                    files, sidecars, below = self._names_in(folder)
                    disk = folder.stat(".").st_dev
                except GONE:
                    continue
                except PermissionError:
                    if names and names != (LOST_AND_FOUND,):  # the bucket's own was told of
                        yield Finding("unreadable", "/".join(names))
                    continue
                if names:
                    yield from self._locked_out(folder.path, USE_FOLDER)
                    path = "/".join(names)
                    if self._is_written and disk != disk_above and path not in self._mounts:
                        yield Finding("mounted", path)  # a subvolume of btrfs
                todo += [((*names, name), disk) for name in below if names or name != ROOM]
                yield from self._folder(folder, names, files, sidecars)

    def _names_in(self, folder: Folder) -> tuple[set[str], set[str], set[str]]:
        """Its files, sidecars and folders."""
        files, sidecars, below = set(), set(), set()
        for item in folder.scan():
            if item.is_dir(follow_symlinks=False):
                below.add(item.name)
            elif is_sidecar(item.name):
                sidecars.add(item.name)
            elif item.is_file(follow_symlinks=False):
                files.add(item.name)
        return files, sidecars, below

    def _versions(self) -> Iterator[Finding]:
        for path, is_there, is_noted in self._each_version():
            version = self.store.versions.read(path)
            if not version:
                if is_there and is_noted and self._may(f"{path}.json", os.R_OK):  # not gone by now
                    yield Finding("note", self._note_of(path), NOT_BACK)
                continue
            name, of = os.path.relpath(path, self.store.root), f"a version of {version.key}"
            self.progress(0, version.entry.size)
            try:
                version.check()
            except (FileNotFoundError, PermissionError):
                pass  # it was too old by now, or is told of
            except S3Error:
                yield Finding("damaged", name, of)
            except OSError as why:
                yield broken(name, why)

    def _temp_files(self, before: set[str]) -> Iterator[Finding]:
        """Those that are there still and that nobody holds: a sidecar on its way has no lock."""
        for name in sorted(before.intersection(self._list("tmp"))):
            with Folder.open(self.store.files.temp) as folder:
                with unlocked(folder, name) as is_dead:
                    if is_dead:
                        unlink = functools.partial(self.store.disk.unlink, folder, name)
                        yield self._mended(Finding("temp", f"{ROOM}/tmp/{name}"), unlink)

    def _folder(
        self, folder: Folder, names: tuple[str, ...], files: set[str], sidecars: set[str]
    ) -> Iterator[Finding]:
        for name in sorted(files):
            path = "/".join((*names, name))
            try:
                yield from self._file(folder, (*names, name))
            except S3Error as why:
                if why.code != "AccessDenied":
                    raise
                yield Finding("unreadable", path)
            except OSError as why:
                if not is_gone(folder, name):
                    yield broken(path, why)
            if name != "%" and name.endswith("%") and name[:-1] in files:
                yield Finding("shadowed", path)
        for name in sorted(sidecars - set(map(sidecar_of, files))):
            try:
                self._orphans.append((names, name, folder.stat(name)))
            except FileNotFoundError:
                pass  # deleted meanwhile
            except OSError as why:
                yield broken("/".join((*names, name)), why)

    def _orphan(
        self, folder: Folder, names: tuple[str, ...], name: str, before: os.stat_result
    ) -> Iterator[Finding]:
        data = name[1 : -len(SIDECAR)]
        key = key_of_names([*names, data])
        is_there = exists(folder, data) and not is_folder(folder, data)
        if is_there or folder.stat(name).st_ino != before.st_ino:
            return  # a PUT has just been there
        put_aside = functools.partial(self.store.put_orphan_aside, key or "", folder, data, name)
        yield self._mended(Finding("orphan", "/".join((*names, name))), put_aside)

    def _file(self, folder: Folder, names: tuple[str, ...]) -> Iterator[Finding]:
        key = key_of_names(list(names))
        place = open_regular(folder, names[-1])
        if not place:
            return  # deleted meanwhile
        with closing_fd(place.fd):
            info = os.fstat(place.fd)
            self.progress(1, info.st_size)
            if self._user and info.st_uid != self._user:
                self._foreign += 1
                self._first_foreign = self._first_foreign or "/".join(names)
            if key is None or len(key.encode()) > MAX_KEY:
                yield Finding("no-key", "/".join(names))
                return
            sidecar = read_sidecar(place)
            entry = sidecar.fitting(info) if sidecar else None
            if not entry:
                yield from self._unknown(place, key)
            elif self.deep or not any(entry.spans()):
                yield from self._deep(place, key, entry)

    def _unknown(self, place: Place, key: str) -> Iterator[Finding]:
        """A file without an entry. What is new, or back from a backup, is no finding."""
        kind = self.store.judge(key, place, repair=False)
        if not kind:
            return
        sidecar, info = read_sidecar(place), os.fstat(place.fd)
        entries = sidecar.of_size(info) if kind == "changed" and sidecar else []
        if any(entry.describes(place.fd) for entry in entries):
            kind = ""  # from a backup
        elif any(entry.fits_cut(info) for entry in entries):
            kind = "damaged" if any(any(entry.spans()) for entry in entries) else ""
        finding = Finding(kind, key)
        if kind != "damaged":
            finding = self._mended(finding, lambda: self._adopt(place, key))
        if kind:
            yield finding

    def _adopt(self, place: Place, key: str) -> None:
        """Raises OSError where what the file is cannot be written down: no read fails for that."""
        self.store.judge(key, place, repair=True)
        with contextlib.suppress(S3Error):  # it was deleted just now
            self.store.head(key)
        if self.store.judge(key, place, repair=False):
            raise OSError(errno.EIO, "its sidecar could not be written, or it changes all the time")

    def _deep(self, place: Place, key: str, entry: Entry) -> Iterator[Finding]:
        """Every byte against the MD5s that are known, and a checksum of the whole."""
        if not any(entry.spans()):
            yield self._hash(place, key, entry)
            return
        wrong = [f"{size} bytes from {start}" for start, size, md5 in entry.spans()
                 if hash_file(place.fd, start, size) != md5]
        if not wrong and entry.checksum_type == "FULL_OBJECT":
            body = Body(FileReader(place.fd, 0, entry.size), Promise(), MAX_OBJECT)
            for algorithm in entry.checksums:
                body.want(algorithm)
            while body.read():
                pass
            wrong = [a for a, v in body.checksums.items() if v != entry.checksums[a]]
        if wrong and entry.fits(os.stat(place.fd)):  # and it was not replaced in place meanwhile
            yield Finding("damaged", key, ", ".join(wrong))

    def _hash(self, place: Place, key: str, entry: Entry) -> Finding:
        """Give a large file that was put there by hand the MD5 and ETag of its content."""
        if not self.repair:
            return Finding("unhashed", key, f"{entry.size} bytes")
        md5, check = hash_file(place.fd, 0, entry.size), if_unchanged(entry, no_check)

        def note() -> None:
            with contextlib.suppress(S3Error):  # replaced or deleted meanwhile: nothing to hash
                self.store.update(key, lambda old: old._replace(md5=md5, etag=md5), check)

        return self._mended(Finding("unhashed", key, f"MD5 is {md5}"), note)


# ==================================================================================================
# 10. Operations
# ==================================================================================================

OWNER = [("ID", "s3mini"), ("DisplayName", "s3mini")]
NO_GRANTS: frozenset[str] = frozenset()


Operation = Callable[["Request"], Response]


class Noted:
    """What the log says of a request, besides the answer's status."""

    def __init__(self) -> None:
        self.access_key = ""  # of a form known only once it is read
        self.troubles: list[str] = []  # what went wrong on our side


class Request(NamedTuple):
    """One request, its signature verified and its grants known."""

    head: Head
    bucket: str  # "" for the service itself
    key: str  # "" for a bucket
    buckets: Buckets
    store: Store  # the bucket's; meaningless for the service
    section: Optional[Section]  # the bucket's settings
    signed: Optional[Signed]  # None: anonymous
    grants: frozenset[str]  # what it may do with the bucket
    source: Source  # the body's bytes, framing removed
    now: float  # when the request came
    id: str  # x-amz-request-id
    noted: Noted

    @property
    def headers(self) -> dict[str, str]:
        return self.head.headers

    @property
    def query(self) -> dict[str, str]:
        return self.head.query

    @property
    def access_key(self) -> str:
        return self.signed.access_key if self.signed else ""

    def open_body(self) -> Body:
        """The payload of an operation that stores it. Raises what open_body raises."""
        if "content-range" in self.headers:  # [RFC 9110 §14.5; curl -C]
            raise S3Error("InvalidRequest", "A body is stored whole: Content-Range is for answers.")
        return open_body(self.head, self.source, self.signed, streams=True)

    def document(self, has_own_checksums: bool = True, limit: int = MAX_DOCUMENT) -> bytes:
        """An XML body, verified. CompleteMultipartUpload's checksums are the object's, not its.

        Raises MaxMessageLengthExceeded.
        """
        head = self.head
        if not has_own_checksums:
            kept = {n: v for n, v in head.headers.items() if not n.startswith("x-amz-checksum-")}
            head = head._replace(headers=kept)
        return open_body(head, self.source, self.signed, streams=False).read_all(limit)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """The query parameter, cut at `high`. Raises InvalidArgument."""
        text = self.query.get(name, "")
        if not text:
            return default
        if not re.fullmatch("[0-9]{1,10}", text) or int(text) < low:
            raise S3Error("InvalidArgument", f"Provided {name} not an integer or within integer "
                          "range", ArgumentName=name, ArgumentValue=text)
        return min(int(text), high)

    def part_number(self) -> int:
        """Raises InvalidArgument."""
        text = self.query.get("partNumber", "")
        if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= MAX_PARTS:
            raise S3Error("InvalidArgument", "Part number must be an integer between 1 and 10000, "
                          "inclusive", ArgumentName="partNumber", ArgumentValue=text)
        return int(text)

    @contextlib.contextmanager
    def hiding_what_is_there(self) -> Iterator[None]:
        """Who may neither read nor list does not learn what keys there are. Raises AccessDenied."""
        try:
            yield
        except S3Error as why:
            if why.code == "NoSuchKey" and not {"read", "list"} & self.grants:
                raise S3Error("AccessDenied") from None
            raise

    def check_overwrite(self, old: Optional[Entry]) -> None:
        """An append-only key creates, and replaces only restic's locks. Raises AccessDenied."""
        tidies = "tidy" in self.grants and is_lock(self.key)
        if old and "overwrite" not in self.grants and not tidies:
            raise S3Error("AccessDenied", "This key may create objects, not replace them.")

    def check_write(self, old: Optional[Entry]) -> None:
        """The conditions of a write; the store calls it under the key's lock. [AWS: PutObject]

        Raises NotImplemented, AccessDenied, PreconditionFailed, NoSuchKey.
        """
        unwanted = self.headers.get("if-none-match")
        if unwanted is not None and (unwanted.strip() != "*" or "if-match" in self.headers):
            raise S3Error("NotImplemented", "If-None-Match of a write is *, without If-Match.",
                          Header="If-None-Match")
        if "read" not in self.grants and (  # the answer tells the ETag, or how old it is
                "if-match" in self.headers or "if-unmodified-since" in self.headers):
            raise S3Error("AccessDenied")
        check_write_conditions(self.headers, old, self.key)
        self.check_overwrite(old)


def check_write_conditions(headers: Mapping[str, str], old: Optional[Entry], key: str) -> None:
    wanted, unwanted = headers.get("if-match"), headers.get("if-none-match")
    if unwanted is not None and old and etag_matches(unwanted, old.etag):
        raise S3Error("PreconditionFailed", Condition="If-None-Match")
    if wanted is not None and not old:
        raise S3Error("NoSuchKey", Key=key)
    if wanted is not None and old and not etag_matches(wanted, old.etag):
        raise S3Error("PreconditionFailed", Condition="If-Match")
    if wanted is None and old and "if-unmodified-since" in headers:  # AWS is silent  [RFC 9110]
        limit = parse_http_date(headers["if-unmodified-since"])
        if limit is not None and old.modified > limit:
            raise S3Error("PreconditionFailed", Condition="If-Unmodified-Since")


def is_lock(key: str) -> bool:
    """Whether the key lies in a folder called locks, which append-only keys may tidy. [restic]"""
    return re.fullmatch(r"(?:.*/)?locks/[^/]+", key, re.DOTALL) is not None


def union_of_modes(sections: tuple[Section, ...], access_key: str) -> frozenset[str]:
    return frozenset().union(*(MODES[s.mode] for s in sections if s.access_key == access_key))


def advice_on(why: Exception) -> str:
    """What to do about a folder in which nothing can be made, or ""."""
    if isinstance(why, OSError) and why.errno == errno.EROFS:
        return "; mount it for writing; under systemd: ReadWritePaths="
    return "; this user must own it" if isinstance(why, PermissionError) else ""


class Buckets:
    """Every bucket by name, and who may use it."""

    def __init__(self, config: Config, disk: Disk):
        self.config, self.disk = config, disk
        self.keyring = Keyring(config.secrets, config.hosts, config.domain)
        self._declared_stores: dict[tuple[str, str], Store] = {}
        self._stores: dict[tuple[str, str], Store] = {}  # of the others, not all of them
        self._memory = Memory()
        declared = {s.pattern: config.sections_of(s.pattern) for s in config.sections
                    if not s.is_pattern}
        self._declared = {  # name -> (its section, access key -> what it may do)
            name: (sections[0], {s.access_key: union_of_modes(sections, s.access_key)
                                 for s in sections if s.access_key})
            for name, sections in declared.items()
        }

    def prepare(self) -> list[str]:
        """Make the declared buckets, and tidy what a crash left. Raises OSError, ConfigError.

        Gives what went wrong with a single bucket, in sentences: the others are served.
        """
        for path in (self.config.data, *map(self._root, self._declared)):
            try:
                os.stat(path)
            except FileNotFoundError:
                if os.path.islink(path):
                    raise ConfigError(f"{path} is a link to {os.readlink(path)}, which is not "
                                      "there; mount its disk") from None
            except OSError:
                pass  # who uses it says what is wrong
        self.disk.make_folders(self.config.data)
        for name, (section, _) in self._declared.items():
            try:
                self.open(name).create()
            except OSError as why:
                if not section.path:
                    raise
                raise self.config.mistake("path", section.name, f"cannot use {section.path}: "
                                          f"{why.strerror}{advice_on(why)}") from None
        return [*self.clean(), *self._each(Store.count)]

    def clean(self, age: float = 0) -> list[str]:
        """Remove what crashes left, and old uploads; see Store.clean. Troubles as prepare does."""
        for name in os.listdir(self.config.data):
            if re.fullmatch(ASIDE, name):  # DeleteBucket was killed
                remove_tree(os.path.join(self.config.data, name))
        return self._each(lambda store: store.clean(self.config.expire_uploads, age))

    def _each(self, act: Callable[[Store], None]) -> list[str]:
        troubles = []
        for name in self.names():
            try:
                act(self.open(name))
            except (OSError, S3Error) as why:
                troubles.append(f"the bucket {name!r} could not be tidied: {why}")
        return troubles

    def store(self, name: str, section: Optional[Section] = None) -> Store:
        """The bucket's store, under the settings of its section.

        Kept only where there is a bucket: anybody can ask for names.
        """
        stores = self._declared_stores if name in self._declared else self._stores
        key = (name, section.name if section else "")
        known = stores.get(key)
        if known and (not section or known.about.is_current):  # without one nobody writes
            return known
        stores.pop(key, None)
        root = self._root(name)
        if section:
            store = Store(root, self.disk, self.config.min_free, section.quota, section.keep,
                          memory=self._memory, is_declared=name in self._declared)
        else:
            store = Store(root, self.disk, keep=FOREVER,  # its section may come back
                          memory=self._memory)
            about = None
            with contextlib.suppress(PermissionError):  # a folder that is not ours
                about = store.about.read() if is_bucket_name(name) else None
            if about is None:
                return store
        store = stores.setdefault(key, store)
        if HAS_FLOCK:
            drop_oldest(self._stores, CACHED_STORES)
        return store

    def knows(self, name: str, key: str, limit: int) -> bool:
        """Whether an object is in memory, and no larger; no promise that it is still there."""
        known = self._memory.entries.get((self._root(name), key))
        return known is not None and known.entry.size <= limit

    def _root(self, name: str) -> str:
        """The bucket's folder, whether or not it is there."""
        path = self._declared[name][0].path if name in self._declared else ""
        return path or f"{self.config.data}{os.sep}{name}"

    def open(self, name: str) -> Store:
        """The store of a bucket that there is. Raises NoSuchBucket."""
        return self.store(name, self.find(name))

    def names(self) -> list[str]:
        """All buckets that there are."""
        found = set(self._declared)
        with os.scandir(self.config.data) as items:
            made = [i.name for i in items if is_bucket_name(i.name) and i.is_dir()]
        found.update(n for n in made if n not in found and self._owner(n) is not None)
        return sorted(found)

    def _owner(self, name: str) -> Optional[str]:
        """The key that made the bucket; None when there is no such bucket."""
        about = None
        with contextlib.suppress(PermissionError):  # a folder that is not ours
            about = self.store(name).about.read()
        return None if about is None else str(about.get("owner", ""))

    def find(self, name: str) -> Optional[Section]:
        """The bucket's settings. Raises NoSuchBucket; None: its key is no longer in the INI."""
        if name in self._declared:
            return self._declared[name][0]
        owner = self._owner(name) if is_bucket_name(name) else None
        if owner is None:
            raise S3Error("NoSuchBucket", BucketName=name)
        return next(iter(self.config.patterns_of(owner, name)), None)

    def grants(self, name: str, access_key: str) -> frozenset[str]:
        """What a key may do with the bucket: the union of the sections that name it."""
        if name in self._declared:
            return self._declared[name][1].get(access_key, NO_GRANTS)
        if not access_key or self._owner(name) != access_key:
            return NO_GRANTS
        return union_of_modes(self.config.patterns_of(access_key, name), access_key)

    @property
    def is_away(self) -> bool:
        """Whether none of those is there that buckets.ini declares in the data folder: then its
        disk is not.
        """
        ours = [self.open(n).room for n, (section, _) in self._declared.items() if not section.path]
        return bool(ours) and not any(os.path.lexists(f"{room}/bucket.json") for room in ours)

    def visible(self, access_key: str) -> list[tuple[str, Mapping[str, Any]]]:
        """(name, what bucket.json says) of the buckets that a key may use.

        Raises OSError where the disk went away: who mirrors all would delete what was made through
        the API.
        """
        if self.is_away:
            raise OSError(errno.ENOENT, "no bucket is there; was its disk unmounted?",
                          self.config.data)
        found: list[tuple[str, Mapping[str, Any]]] = []
        for name in self.names():
            with contextlib.suppress(S3Error):  # deleted just now
                if self.grants(name, access_key):  # first: another's may be on a broken disk
                    found.append((name, self.open(name).about.read() or {}))
        return found

    def create(self, name: str, access_key: str, about: Mapping[str, object] = NONE) -> bool:
        """Make a bucket of the key's own; False when it has it already, as it is.

        Raises InvalidBucketName, BucketAlreadyExists, AccessDenied, ServiceUnavailable.
        """
        if not is_bucket_name(name):
            raise S3Error("InvalidBucketName", BucketName=name)
        if name in self._declared or self._owner(name) is not None:
            if not self.grants(name, access_key):
                raise S3Error("BucketAlreadyExists", BucketName=name)
            known = self.open(name).about
            if known.read() is None:
                raise known.missing(BucketName=name)
            return False
        patterns = self.config.patterns_of(access_key, name)
        if not any("configure" in MODES[s.mode] for s in patterns):
            raise S3Error("AccessDenied",
                          "No section of buckets.ini lets this key make the bucket.")
        if self.is_away:  # it would be made where that is to be mounted, and hidden then
            raise S3Error("ServiceUnavailable", "None of buckets.ini's buckets is in the data "
                          "folder. Is its disk mounted?")
        if self.store(name, patterns[0]).create(owner=access_key, **about):
            return True
        if not self.grants(name, access_key):  # another key made it just now
            raise S3Error("BucketAlreadyExists", BucketName=name)
        return False

    def delete(self, name: str) -> None:
        """Raises AccessDenied for a declared bucket, BucketNotEmpty."""
        if name in self._declared:
            raise S3Error("AccessDenied", "The bucket is declared in buckets.ini: remove it there.")
        self.open(name).destroy()
        for known in [known for known in list(self._stores) if known[0] == name]:
            self._stores.pop(known, None)


# -- objects -------------------------------------------------------------------------------------

SOURCES = {  # whose bytes a write takes, besides its body's: a word for its route
    "x-amz-copy-source": "copy", "x-amz-write-offset-bytes": "append"}
KEPT_HEADERS = (
    "content-type", "content-disposition", "content-language", "cache-control", "expires")
REFUSED_HEADERS = ("x-amz-server-side-encryption", "x-amz-object-lock-", "x-amz-grant-",
                   "x-amz-website-redirect-location", "x-amz-mfa", "x-amz-copy-source-server-side-")
STORAGE_CLASSES = frozenset((  # all come to STANDARD here                       [AWS: PutObject]
    "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER",
    "DEEP_ARCHIVE", "GLACIER_IR", "SNOW", "EXPRESS_ONEZONE", "FSX_OPENZFS", "FSX_ONTAP",
))
OWNER_HEADERS = ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner")


def check_refused_headers(headers: Mapping[str, str]) -> None:
    """What is not done is refused by name, never accepted and forgotten; for every operation.

    Raises NotImplemented, InvalidArgument, InvalidStorageClass, and AccessDenied where another
    owner is expected.
    """
    for name, value in headers.items():
        if not name.startswith("x-amz-"):
            continue
        if name.startswith(REFUSED_HEADERS):
            raise S3Error("NotImplemented", f"{name} is not done here.", Header=name)
        if name == "x-amz-bypass-governance-retention":
            raise S3Error("InvalidArgument", f"{name} is only applicable to Object Lock enabled "
                          "buckets.", ArgumentName=name)
        if name in OWNER_HEADERS and value != OWNER[0][1]:
            raise S3Error("AccessDenied", f"{name}: every bucket here belongs to {OWNER[0][1]}.")
        if name == "x-amz-storage-class" and value not in STORAGE_CLASSES:
            raise S3Error("InvalidStorageClass", StorageClassRequested=value)
        if name == "x-amz-acl" and value not in CANNED_ACLS:
            raise S3Error("InvalidArgument", ArgumentName=name, ArgumentValue=value)


CANNED_ACLS = {  # canned ACL: what it comes to here
    "private": "", "bucket-owner-full-control": "", "bucket-owner-read": "",
    "public-read": "public-read", "public-read-write": None, "authenticated-read": None,
    "aws-exec-read": None, "log-delivery-write": None,
}


def is_public(section: Optional[Section], key: str) -> bool:
    """Whether buckets.ini opens the key to everybody."""
    return section is not None and key.startswith(section.public)


def parse_acl(req: Request, canned: str) -> str:
    """A canned ACL as an entry keeps it. Raises AccessControlListNotSupported.

    Accepted where it changes nothing: private, and public-read of what is public already.
    """
    acl = CANNED_ACLS[canned]
    is_open = is_public(req.section, req.key)
    if acl is None:
        raise S3Error("AccessControlListNotSupported")
    if acl and not is_open and not (req.section and req.section.acl):
        raise S3Error("AccessControlListNotSupported", "The bucket does not allow ACLs that change "
                      "access; in buckets.ini public = opens prefixes, acl = yes lets ACLs do it.")
    return "" if is_open else acl


def parse_kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that come back with the object as they came. [AWS: PutObject]

    Raises MetadataTooLarge where AWS would refuse the head. [ours]
    """
    kept = {n: headers[n] for n in KEPT_HEADERS if headers.get(n)}
    kept.setdefault("content-type", "binary/octet-stream")
    coding = headers.get("content-encoding", "")
    if "aws-chunked" in coding.lower():  # it was the body's, on its way, and not the object's
        codings = [c.strip() for c in coding.split(",")]
        coding = ",".join(c for c in codings if c and c.lower() != "aws-chunked")
    if coding:
        kept["content-encoding"] = coding
    size = sum(map(len, kept.values()))
    if size > MAX_KEPT:
        raise S3Error("MetadataTooLarge", Size=size, MaxSizeAllowed=MAX_KEPT)
    return kept


def parse_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """x-amz-meta-* without the prefix, as it came. Raises MetadataTooLarge, InvalidArgument."""
    found = {n[11:]: v for n, v in headers.items() if n.startswith("x-amz-meta-")}
    if found and not re.fullmatch(f"(?:{TOKEN})?", "".join(found)):  # of a form, or of a URL
        raise S3Error("InvalidArgument", "A name of metadata cannot be a header's.")
    size = sum(len(n) + len(v) for n, v in found.items())
    if size > MAX_METADATA:
        raise S3Error("MetadataTooLarge", Size=size, MaxSizeAllowed=MAX_METADATA)
    return found


NOT_IN_TAGS = re.compile(r"[^\w\s+\-=.:/@]")  # neither in a key nor in a value


def check_tags(pairs: list[tuple[str, str]], limit: int = MAX_TAGS) -> dict[str, str]:
    """Raises InvalidTag, BadRequest. [AWS: object tagging]"""
    if len(pairs) > limit:
        raise S3Error("BadRequest", f"Tags cannot be greater than {limit}")
    found: dict[str, str] = {}
    for name, value in pairs:
        if name.lower().startswith("aws:"):
            raise S3Error("InvalidTag", "System tags cannot be added/updated by requester",
                          TagKey=name)
        if not 1 <= len(name) <= 128 or NOT_IN_TAGS.search(name):
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid", TagKey=name)
        if len(value) > 256 or NOT_IN_TAGS.search(value):
            raise S3Error("InvalidTag", "The TagValue you have provided is invalid", TagKey=name,
                          TagValue=value)
        if name in found:
            raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key",
                          TagKey=name)
        found[name] = value
    return found


def parse_tags(nodes: list[Node], limit: int = MAX_TAGS) -> dict[str, str]:
    """The Tag elements of a document. Raises MalformedXML, InvalidTag, BadRequest."""
    if any(node.find("Key") is None or node.find("Value") is None for node in nodes):
        raise S3Error("MalformedXML", "A Tag has a Key and a Value.")
    return check_tags([(node.get("Key"), node.get("Value")) for node in nodes], limit)


def parse_tagging_header(text: str) -> dict[str, str]:
    """ "a=1&b=2", also empty [Velero]. Raises InvalidTag, InvalidArgument."""
    pieces = [piece.partition("=") for piece in text.split("&") if piece]
    try:
        pairs = [(decode_escapes(n, plus=True), decode_escapes(v, plus=True)) for n, _, v in pieces]
    except S3Error:
        pairs = []
    if len({name for name, _ in pairs}) < len(pieces) or any(
            NOT_IN_TAGS.search(text) for pair in pairs for text in pair):
        raise S3Error("InvalidArgument", "The header 'x-amz-tagging' shall be encoded as UTF-8 "
                      "then URLEncoded URL query parameters without tag name duplicates.",
                      ArgumentName="x-amz-tagging", ArgumentValue=text)
    return check_tags(pairs)


def describe_object(req: Request) -> Entry:
    """An entry with everything that the head tells; the body's facts are to be filled in.

    Raises MetadataTooLarge, InvalidTag, AccessControlListNotSupported.
    """
    return Entry(0, "", "", int(req.now), headers=parse_kept_headers(req.headers),
                 metadata=parse_metadata(req.headers),
                 tags=parse_tagging_header(req.headers.get("x-amz-tagging", "")),
                 acl=parse_acl(req, req.headers.get("x-amz-acl", "private")))


def object_headers(entry: Entry) -> dict[str, str]:
    """What GetObject and HeadObject say of an object, without its length and checksums."""
    headers = {"last-modified": render_http_date(entry.modified), "etag": f'"{entry.etag}"',
               "accept-ranges": "bytes", **entry.headers}
    headers.update((f"x-amz-meta-{n}", v) for n, v in entry.metadata.items())
    if entry.tags:
        headers["x-amz-tagging-count"] = str(len(entry.tags))
    return headers


def checksum_headers(entry: Entry) -> dict[str, str]:
    found = {checksum_header(a): v for a, v in entry.checksums.items()}
    return {**found, "x-amz-checksum-type": entry.checksum_type} if found else {}


OVERRIDES = (*KEPT_HEADERS, "content-encoding")


def parse_overrides(req: Request) -> dict[str, str]:
    """response-*: for signed requests only. Raises InvalidRequest. [AWS: GetObject]"""
    found = {n: req.query["response-" + n] for n in OVERRIDES if "response-" + n in req.query}
    if found and not req.signed:
        raise S3Error("InvalidRequest", "Request specific response headers cannot be used for "
                      "anonymous GET requests.")
    return {n: v.encode("utf-8").decode("latin-1") for n, v in found.items()}


VERSION_ID = re.compile(r"[A-Za-z0-9._+/=-]{32,1024}")  # what ids of AWS look like      [AWS: docs]


def check_version(req: Request) -> None:
    """Raises NoSuchVersion, InvalidArgument."""
    check_version_id(req.query.get("versionId", "null"), req.key)


def check_version_id(version_id: str, key: str) -> None:
    """There is one version, called null. Of other ids AWS refuses what it could not have made.

    Raises NoSuchVersion, InvalidArgument. [AWS's answers in versitygw #1638, noobaa-core #7970]
    """
    if version_id == "null":
        return
    if not VERSION_ID.fullmatch(version_id):
        empty_id = "Version id cannot be the empty string"
        raise S3Error("InvalidArgument", "Invalid version id specified" if version_id else empty_id,
                      ArgumentName="versionId", ArgumentValue=version_id)
    raise S3Error("NoSuchVersion", Key=key, VersionId=version_id)


def is_opened(req: Request, entry: Entry) -> bool:
    """Whether the object's own ACL opens it to everybody: only where buckets.ini says acl = yes."""
    return entry.acl == "public-read" and req.section is not None and req.section.acl


def open_object(req: Request, from_memory: bool = False) -> Found:
    """The object, open, if this request may see it. Raises NoSuchKey, AccessDenied.

    `from_memory`: its content will do, where it is there.
    """
    with req.hiding_what_is_there():
        if req.head.method == "HEAD":
            found = Found(req.store.head(req.key), -1)
        else:
            found = from_memory and req.store.recall(req.key) or req.store.open(req.key)
    if "read" not in req.grants and not is_opened(req, found.entry):
        found.close()
        raise S3Error("AccessDenied")
    return found


def get_object(req: Request) -> Response:
    """GetObject and HeadObject: the object, a range or a part of it, or only its headers.

    Raises NoSuchKey, InvalidRange, NotModified, PreconditionFailed, ... [AWS: GetObject]
    """
    check_version(req)
    overrides = parse_overrides(req) if req.query else {}
    found = open_object(req, from_memory=True)
    try:
        entry = found.entry
        check_unchanged(req, entry)
        wanted = chosen_range(req, entry)
        span = wanted if wanted is not None else range(entry.size)
        headers = object_headers(entry)
        if entry.tags and "read" not in req.buckets.grants(req.bucket, req.access_key):
            del headers["x-amz-tagging-count"]  # what is public is the object
        if req.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" and entry.checksums:
            headers.update(checksum_headers(entry) if wanted is None else part_checksum(req, entry))
        headers.update(overrides)
        headers["content-length"] = str(len(span))
        if wanted is not None and span:
            headers["content-range"] = f"bytes {span.start}-{span.stop - 1}/{entry.size}"
        if "partNumber" in req.query and entry.parts:
            headers["x-amz-mp-parts-count"] = str(len(entry.parts))
    except BaseException:
        found.close()
        raise
    headers.update(no_scripts(req.section, headers.get("content-type", "")))
    return Response(206 if wanted else 200, headers, body_of(found, span))  # an empty part: 200


def body_of(found: Found, span: range) -> Union[bytes, FileSpan]:
    """The bytes of the span, in memory or in the file; b"" for HEAD, which has neither."""
    if found.fd >= 0:
        return FileSpan(found.fd, span.start, len(span))
    return found.content[span.start : span.stop] if found.content else b""


# What a browser runs scripts of, on our origin, were it not told otherwise. Of a list it takes
# the last type it knows; what render_head makes a blank may stand before it.     [Chromium, ours]
ACTIVE_TYPES = re.compile(
    r"(?is)(?:.*,)?(?:[^!-~]*(?:text/html|image/svg|multipart/|text/xsl)|[^;,]*\bxml\b)"
)


@functools.lru_cache(64)
def is_active(content_type: str) -> bool:
    return ACTIVE_TYPES.match(content_type) is not None


def no_scripts(section: Optional[Section], content_type: str) -> dict[str, str]:
    """What keeps a browser from taking an object for a page of ours."""
    headers = {"x-content-type-options": "nosniff"}
    if is_active(content_type) and not (section and section.html):
        headers["content-security-policy"] = "sandbox"
    return headers


CONDITIONS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"))


def check_unchanged(req: Request, entry: Entry) -> None:
    """Raises NotModified with the headers a cache wants, PreconditionFailed. [RFC 9110 §15.4.5]"""
    if CONDITIONS.isdisjoint(req.headers):
        return
    try:
        check_preconditions(req.headers, entry.etag, entry.modified, req.now)
    except S3Error as why:
        if why.status == 304:
            why.headers = {n: v for n, v in object_headers(entry).items()
                           if n in ("etag", "last-modified", "cache-control", "expires")}
        raise


def chosen_range(req: Request, entry: Entry) -> Optional[range]:
    """The bytes that Range or partNumber ask for; None for all. Raises InvalidRange, ..."""
    value = req.headers.get("range")
    if "partNumber" in req.query:
        if value:
            raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query "
                          "parameter")
        return part_range(entry, req.part_number())
    condition = req.headers.get("if-range", "").strip()
    if condition.startswith('"') and condition.strip('"') != entry.etag:
        return None
    if condition and not condition.startswith('"') and parse_http_date(condition) != entry.modified:
        return None
    return parse_range(value, entry.size) if value else None


def part_range(entry: Entry, number: int) -> range:
    """Raises InvalidPartNumber."""
    sizes = [int(p.split()[0]) for p in entry.parts] or [entry.size]
    if number > len(sizes):
        raise S3Error("InvalidPartNumber", PartNumberRequested=number, ActualPartCount=len(sizes))
    start = sum(sizes[: number - 1])
    return range(start, start + sizes[number - 1])


def part_checksum(req: Request, entry: Entry) -> dict[str, str]:
    """The checksum of exactly the bytes that partNumber asks for; {} where none is known."""
    if "partNumber" not in req.query:
        return {}
    if entry.checksum_type == "FULL_OBJECT":
        return checksum_headers(entry) if len(entry.parts) <= 1 else {}
    part = entry.parts[req.part_number() - 1] if entry.parts else ""
    return checksum_headers(entry._replace(checksums=dict(zip(entry.checksums, part.split()[2:]))))


def put_object(req: Request) -> Response:
    """PutObject: store the body, whole or not at all; a 200 means it is on disk. [AWS: PutObject]

    Raises PreconditionFailed, and whatever describing the object or reading the body raises.
    """
    entry, body = describe_object(req), req.open_body()
    offset = req.headers.get("x-amz-write-offset-bytes")
    if offset is not None:
        return append_object(req, entry, body, offset)
    entry = req.store.put(req.key, body, lambda: with_body(entry, body), req.check_write)
    return Response(200,
                    {"etag": f'"{entry.etag}"', "content-length": "0", **checksum_headers(entry)})


def append_object(req: Request, given: Entry, body: Body, offset: str) -> Response:
    """PutObject with x-amz-write-offset-bytes: add to the end of what is there. [AWS: S3 Express]

    Its metadata stay. Raises InvalidWriteOffset, PreconditionFailed, AccessDenied.
    """
    if not re.fullmatch("[0-9]{1,15}", offset):
        raise S3Error("InvalidWriteOffset")
    if int(offset) and "read" not in req.grants:  # the answer tells the MD5 of what is there
        raise S3Error("AccessDenied")
    entry = req.store.append(req.key, body, int(offset), given, req.check_write)
    return Response(200, {"etag": f'"{entry.etag}"', "content-length": "0",
                          "x-amz-object-size": str(entry.size), **checksum_headers(entry)})


def delete_object(req: Request) -> Response:
    """DeleteObject: a success also where there is no such object, or version of it. [AWS]

    Raises PreconditionFailed, AccessDenied, InvalidArgument.
    """
    version_id = req.query.get("versionId", "null")
    if VERSION_ID.fullmatch(version_id):  # [AWS's answers in versitygw #1758, minio #18117]
        return Response(204, {"x-amz-version-id": version_id})
    check_version(req)
    req.store.delete(req.key, functools.partial(check_delete, req.headers, req.key))
    return Response(204)


def check_delete_grant(req: Request, key: str) -> None:
    if "delete" not in req.grants and not ("tidy" in req.grants and is_lock(key)):
        raise S3Error("AccessDenied")


def check_delete(headers: Mapping[str, str], key: str, old: Optional[Entry]) -> None:
    """Raises PreconditionFailed, NoSuchKey. [AWS: DeleteObject]"""
    check_write_conditions(headers, old, key)
    size = headers.get("x-amz-if-match-size")
    date = headers.get("x-amz-if-match-last-modified-time")
    if old and size is not None and size != str(old.size):
        raise S3Error("PreconditionFailed", Condition="x-amz-if-match-size")
    dates = (parse_http_date(date), parse_iso_date(date)) if date is not None else ()
    if old and dates and old.modified not in dates:
        raise S3Error("PreconditionFailed", Condition="x-amz-if-match-last-modified-time")


def delete_objects(req: Request) -> Response:
    """DeleteObjects: up to 1,000 keys; one key's failure does not stop the others. [AWS]

    Raises MalformedXML, InvalidRequest.
    """
    if "content-md5" not in req.headers and not parse_checksums(req.headers):
        raise S3Error("InvalidRequest", "Missing required header for this request: Content-MD5 OR "
                      "x-amz-checksum-*")
    items, quiet = parse_delete(req.document())
    settled = {i: why for i, item in enumerate(items)
               if (why := refuse_delete(req, item)) or VERSION_ID.fullmatch(item.version_id)}
    wanted: list[tuple[str, Check]] = [
        (item.key, functools.partial(check_delete, delete_conditions(item), item.key))
        for i, item in enumerate(items) if i not in settled]
    done = iter(req.store.delete_many(wanted))
    results: Children = []
    for i, item in enumerate(items):
        found = settled[i] if i in settled else next(done)
        if isinstance(found, OSError):
            req.noted.troubles.append(trouble_of(found))
            found = error_of_disk(found)
        named = [("Key", item.key[:MAX_KEY])]  # all of a key that there can be
        named += [("VersionId", item.version_id[:MAX_KEY])] if item.version_id else []
        if isinstance(found, S3Error):
            results.append(("Error", [*named, ("Code", found.code), ("Message", str(found))]))
        elif not quiet:
            results.append(("Deleted", named))
    return xml_response("DeleteResult", results)


def delete_conditions(item: DeleteItem) -> dict[str, str]:
    """As the headers of a DeleteObject. [AWS: ObjectIdentifier]"""
    found = {"if-match": item.etag, "x-amz-if-match-size": item.size,
             "x-amz-if-match-last-modified-time": item.modified}
    return {name: value for name, value in found.items() if value is not None}


def refuse_delete(req: Request, item: DeleteItem) -> Optional[S3Error]:
    """Why one key of many cannot be deleted, before anything is touched."""
    try:
        check_key(item.key)
        check_delete_grant(req, item.key)
        if item.version_id not in ("", "null") and not VERSION_ID.fullmatch(item.version_id):
            raise S3Error("NoSuchVersion")  # of what no version is called [versitygw #2119]
    except S3Error as why:
        return why
    return None


# -- copies --------------------------------------------------------------------------------------


def parse_copy_source(text: str) -> tuple[str, str]:
    """(bucket, key) of x-amz-copy-source, through the same parser as a path.

    Raises InvalidArgument, NoSuchVersion and what check_key raises. [AWS: CopyObject]
    """
    path, _, query = text.partition("?")
    name, _, version_id = query.partition("=")
    if query and name != "versionId":
        raise S3Error("InvalidArgument", "Invalid copy source: ?versionId= is all that may follow.")
    try:
        decoded = decode_escapes(path, plus=True)
    except S3Error:
        raise S3Error("InvalidArgument", "Invalid copy source encoding",
                      ArgumentName="x-amz-copy-source", ArgumentValue=text) from None
    bucket, _, key = decoded.lstrip("/").partition("/")
    if not bucket or not key:
        raise S3Error("InvalidArgument", "Copy Source must mention the source bucket and key: "
                      "sourcebucket/sourcekey", ArgumentName="x-amz-copy-source",
                      ArgumentValue=text)
    check_key(key)
    check_version_id(version_id if query else "null", key)
    return bucket, key


def open_copy_source(req: Request, bucket: str, key: str) -> Found:
    """The source of a copy: the caller must be allowed to read it. Raises AccessDenied, ..."""
    section = req.buckets.find(bucket)
    grants = req.buckets.grants(bucket, req.access_key)
    if is_public(section, key):
        grants |= {"read"}
    store = req.buckets.store(bucket, section)
    source = req._replace(bucket=bucket, key=key, store=store, section=section, grants=grants)
    found = open_object(source)
    with on_error(found.close):
        check_preconditions(req.headers, found.entry.etag, found.entry.modified, req.now,
                            "x-amz-copy-source-")
    return found


def check_reader(req: Request, bucket: str) -> None:
    """Whether the key itself may read the bucket, public or not. Raises AccessDenied."""
    if "read" not in req.buckets.grants(bucket, req.access_key):
        raise S3Error("AccessDenied")


def directive(req: Request, name: str) -> bool:
    """Whether a COPY/REPLACE header says REPLACE. Raises InvalidArgument."""
    value = req.headers.get(name, "COPY")
    if value not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", "Unknown directive.", ArgumentName=name,
                      ArgumentValue=value)
    return value == "REPLACE"


def copy_object(req: Request) -> Response:
    """CopyObject: bytes and metadata of another object, or of this one. [AWS: CopyObject]

    Onto itself it starts over, with its conditions, when the object is replaced meanwhile. Raises
    AccessDenied, NoSuchKey, PreconditionFailed, InvalidRequest, OperationAborted.
    """
    if "x-amz-copy-source-range" in req.headers:
        raise S3Error("InvalidRequest", "x-amz-copy-source-range is for parts: UploadPartCopy.")

    def work() -> Response:
        for left in reversed(range(ROUNDS)):
            try:
                entry = copy_once(req)
                break
            except S3Error as why:
                if why.code != "OperationAborted" or not left:
                    raise
        return xml_response("CopyObjectResult", [
            ("LastModified", render_iso_date(entry.modified)), ("ETag", f'"{entry.etag}"'),
            *checksum_elements(entry)])

    return answer_in_time(req, work)


def copy_once(req: Request) -> Entry:
    given = describe_object(req)
    new_metadata = directive(req, "x-amz-metadata-directive")
    new_tags = directive(req, "x-amz-tagging-directive")
    asked = parse_algorithm(req.headers.get("x-amz-checksum-algorithm", ""))
    bucket, key = parse_copy_source(req.headers["x-amz-copy-source"])
    with contextlib.closing(open_copy_source(req, bucket, key)) as found:
        entry = found.entry
        if entry.tags and not new_tags:  # they are not public where the object is
            check_reader(req, bucket)
        given = given._replace(headers=given.headers if new_metadata else entry.headers,
                               metadata=given.metadata if new_metadata else entry.metadata,
                               tags=given.tags if new_tags else entry.tags)
        if (bucket, key) == (req.bucket, req.key):
            changes = new_metadata or new_tags or "x-amz-storage-class" in req.headers
            return copy_onto_itself(req, found, given, asked, bool(changes))
        return copy_bytes(req, found, given, asked, req.check_write)


def copy_onto_itself(req: Request, found: Found, given: Entry, asked: str, changes: bool) -> Entry:
    """New metadata for an object whose bytes stay where they are.

    Raises InvalidRequest; OperationAborted when these are no longer the bytes that were found.
    """
    if not changes and not asked:
        raise S3Error("InvalidRequest", "This copy request is illegal because it is trying to copy "
                      "an object to itself without changing the object's metadata, storage class, "
                      "website redirect location or encryption attributes.")
    check = if_unchanged(found.entry, req.check_write)
    if asked and asked not in found.entry.checksums:
        return copy_bytes(req, found, given, asked, check)

    def change(old: Entry) -> Entry:
        return old._replace(headers=given.headers, metadata=given.metadata, tags=given.tags,
                            acl=given.acl, modified=given.modified)

    return req.store.update(req.key, change, check)


def copy_bytes(req: Request, found: Found, given: Entry, asked: str, check: Check) -> Entry:
    """Store the source's bytes under the request's key, hashed on the way.

    Raises InvalidRequest over 5 GiB, InternalError when the source is damaged on the disk.
    """
    old = found.entry
    if old.size > MAX_PUT:
        raise S3Error("InvalidRequest", "The specified copy source is larger than the maximum "
                      f"allowable size for a copy source: {MAX_PUT}")
    reader = FileReader(found.fd, 0, old.size) if old.md5 else CheckedReader(found, 0, old.size)
    body = Body(reader, Promise(length=old.size))
    for algorithm in [asked] if asked else old.checksums:
        body.want(algorithm)

    def describe() -> Entry:
        if old.md5 and old.md5 != body.md5:
            raise S3Error("InternalError", "The source is damaged on the disk.")
        return with_body(given, body)

    return req.store.put(req.key, body, describe, check)


def rename_object(req: Request) -> Response:
    """RenameObject, without a copy: the source goes when the target is there. [AWS]

    x-amz-rename-source is a key of the same bucket, with or without /BUCKET/ before it. Raises
    NoSuchKey, PreconditionFailed, AccessDenied.
    """
    text = req.headers.get("x-amz-rename-source", "")
    source = decode_escapes(text.removeprefix(f"/{req.bucket}/"))
    check_key(source)
    if not source or source == req.key:
        raise S3Error("InvalidRequest", "x-amz-rename-source must name another object.")
    check_delete_grant(req, source)

    def check_source(old: Entry) -> None:
        check_preconditions(req.headers, old.etag, old.modified, req.now, "x-amz-rename-source-")

    def check(old: Optional[Entry]) -> None:
        since = parse_http_date(req.headers.get("if-modified-since", ""))
        if since is not None and (not old or old.modified <= since):
            raise S3Error("PreconditionFailed", Condition="If-Modified-Since")
        req.check_write(old)

    req.store.rename(source, req.key, check_source, check)
    return Response(200, {"content-length": "0"})


def parse_algorithm(text: str) -> str:
    """The name of a checksum algorithm, or "". Raises NotImplemented."""
    if text and text.upper() not in ALGORITHMS:
        raise S3Error("NotImplemented", f"The checksum algorithm {text} is not done here.")
    return text.upper()


def checksum_elements(entry: Entry) -> Children:
    found: Children = [(f"Checksum{a}", v) for a, v in entry.checksums.items()]
    return [*found, ("ChecksumType", entry.checksum_type)] if found else []


# -- listings ------------------------------------------------------------------------------------


class Page:
    """A page of a listing: objects, common prefixes, and where the next one starts."""

    def __init__(self) -> None:
        self.objects: list[tuple[str, Union[Entry, Listed]]] = []
        self.prefixes: list[str] = []
        self.last = ""  # the last name, when there is more
        self.is_truncated = False


def disk_reads() -> int:
    """How often this thread has waited for a disk to read; 0 where nobody counts that."""
    count = 0
    if sys.platform == "linux":
        import resource

        count = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
    return count


def list_page(store: Store, prefix: str, delimiter: str, cursor: Cursor, limit: int) -> Page:
    """Keys in byte order, those with the delimiter behind the prefix folded, each prefix once."""
    page, last = Page(), ""
    if limit == 0:
        return page
    read = disk_reads()
    for number, item in enumerate(store.scan(prefix, cursor, delimiter), 1):
        if number % AT_A_GLANCE == 0 and delimiter in ("", "/"):  # others skip most of the files
            before, read = read, disk_reads()
            wanted = limit + 1 - len(page.objects) - len(page.prefixes)
            cursor.to_fetch = wanted if read > before else 0
        common = common_prefix(item.key, prefix, delimiter) if delimiter else ""
        entry = None if common else store.glance(item)
        if not common and not entry:
            continue
        if len(page.objects) + len(page.prefixes) == limit:
            page.last, page.is_truncated = last, True
            break
        if entry:
            page.objects.append((item.key, entry))
        else:
            page.prefixes.append(common)
            cursor.skip(common)
        last = common or item.key
    return page


def common_prefix(key: str, prefix: str, delimiter: str) -> str:
    """ "photos/" for photos/a.jpg at delimiter "/"; "" where nothing is to be folded."""
    if not delimiter:
        return ""
    head, cut, _ = key[len(prefix) :].partition(delimiter)
    return prefix + head + cut if cut else ""


class Asked(NamedTuple):
    """What a listing is asked for."""

    prefix: str
    delimiter: str
    limit: int  # names on a page
    encoding: str  # "url", or ""
    name: Callable[[str], str]  # how one is written: XML cannot carry every character of a key

    def page(self, store: Store, cursor: Cursor) -> Page:
        return list_page(store, self.prefix, self.delimiter, cursor, self.limit)

    def behind(self, marker: str, since: float = 0) -> Cursor:
        """Where the next page starts: of what is folded, behind all of it. [LocalStack, of AWS]"""
        cursor, is_below = Cursor(marker, since), marker.startswith(self.prefix)
        common = common_prefix(marker, self.prefix, self.delimiter) if is_below else ""
        if common:
            cursor.skip(common)
        return cursor

    def elements(self, is_truncated: bool) -> Children:
        return [("Delimiter", self.name(self.delimiter) or None),
                ("EncodingType", self.encoding or None), ("IsTruncated", is_truncated)]


def parse_asked(req: Request, limit: str = "max-keys", low: int = 0) -> Asked:
    """`limit` is the name of the parameter. Raises InvalidArgument."""
    encoding = req.query.get("encoding-type", "")
    if encoding != "url" and "encoding-type" in req.query:
        raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request",
                      ArgumentName="encoding-type", ArgumentValue=encoding)
    return Asked(req.query.get("prefix", ""), req.query.get("delimiter", ""),
                 req.integer(limit, MAX_KEYS, low, MAX_KEYS), encoding,
                 (lambda s: quote(s, safe="/-._~")) if encoding else str)


def object_elements(
    page: Page, name: Callable[[str], str], with_owner: bool, tag: str = "Contents",
    more: Sequence[tuple[str, Any]] = (),
) -> Children:
    """What a page holds, each object with `more` behind what is known of it."""
    owner = [("Owner", OWNER)] if with_owner else []
    rest = [*owner, ("StorageClass", "STANDARD"), *more]
    tail = "".join([element(*pair) for pair in rest])
    found: Children = [(tag, object_markup(name(key), e, tail)) for key, e in page.objects]
    return found + [("CommonPrefixes", [("Prefix", name(p))]) for p in page.prefixes]


def object_markup(name: str, entry: Union[Entry, Listed], tail: str) -> Markup:
    """Fast path: 1.3 us an object where a list of elements takes 3.8 [measured, 3.11]."""
    sums = "".join([element("ChecksumAlgorithm", name) for name in entry.checksums])
    return Markup(
        f"<Key>{escape_text(name)}</Key>"
        f"<LastModified>{render_iso_date(entry.modified)}</LastModified>"
        f"<ETag>&quot;{escape_text(entry.etag)}&quot;</ETag>"
        f"{sums}{element('ChecksumType', entry.checksum_type or None)}"
        f"<Size>{entry.size}</Size>{tail}")


def list_objects_v2(req: Request) -> Response:
    """ListObjectsV2: one page of keys in byte order, folded at the delimiter. [AWS: ListObjectsV2]

    The token is the last name returned and when the first page was made: what a folder held since
    then will do for the pages behind it. Raises InvalidArgument.
    """
    query = req.query
    if query["list-type"] != "2":
        return list_objects(req)  # so does AWS
    asked = parse_asked(req)
    token, start = query.get("continuation-token"), query.get("start-after", "")
    after, since = (start, req.now) if token is None else decode_page(token)
    page = asked.page(req.store, Cursor(start) if token is None else asked.behind(after, since))
    return xml_response("ListBucketResult", [
        ("Name", req.bucket), ("Prefix", asked.name(asked.prefix)),
        ("KeyCount", len(page.objects) + len(page.prefixes)), ("MaxKeys", asked.limit),
        *asked.elements(page.is_truncated), ("ContinuationToken", token),
        ("NextContinuationToken", encode_page(page.last, since) if page.is_truncated else None),
        ("StartAfter", asked.name(start) or None),
        *object_elements(page, asked.name, query.get("fetch-owner") == "true")])


def list_objects(req: Request) -> Response:
    """ListObjects, version 1: the page after a marker. Raises InvalidArgument. [AWS]"""
    asked, marker = parse_asked(req), req.query.get("marker", "")
    page = asked.page(req.store, asked.behind(marker))
    more = page.is_truncated and asked.delimiter
    return xml_response("ListBucketResult", [
        ("Name", req.bucket), ("Prefix", asked.name(asked.prefix)), ("Marker", asked.name(marker)),
        ("NextMarker", asked.name(page.last) if more else None), ("MaxKeys", asked.limit),
        *asked.elements(page.is_truncated), *object_elements(page, asked.name, True)])


def check_version_marker(version_id: str, key: str) -> None:
    """Raises InvalidArgument. [AWS's answers in versitygw #2174, #1811]"""
    if version_id and not key:
        raise S3Error("InvalidArgument",
                      "A version-id marker cannot be specified without a key marker.",
                      ArgumentName="version-id-marker", ArgumentValue=version_id)
    if version_id not in ("", "null") and not VERSION_ID.fullmatch(version_id):
        raise S3Error("InvalidArgument", "Invalid version id specified",
                      ArgumentName="version-id-marker", ArgumentValue=version_id)


def list_object_versions(req: Request) -> Response:
    """ListObjectVersions: an object is its only version, null. Raises InvalidArgument. [AWS]"""
    asked = parse_asked(req)
    marker, id_marker = req.query.get("key-marker", ""), req.query.get("version-id-marker", "")
    check_version_marker(id_marker, marker)
    page = asked.page(req.store, asked.behind(marker))
    has_id = page.is_truncated and page.last not in page.prefixes[-1:]
    only = [("VersionId", "null"), ("IsLatest", True)]
    return xml_response("ListVersionsResult", [
        ("Name", req.bucket), ("Prefix", asked.name(asked.prefix)),
        ("KeyMarker", asked.name(marker)), ("VersionIdMarker", id_marker),
        ("MaxKeys", asked.limit),
        ("NextKeyMarker", asked.name(page.last) if page.is_truncated else None),
        ("NextVersionIdMarker", "null" if has_id else None),
        *asked.elements(page.is_truncated),
        *object_elements(page, asked.name, True, "Version", only)])


def encode_page(name: str, since: float) -> str:
    return encode_token(f"{int(since * 1e6)}:{name}")


def decode_page(token: str) -> tuple[str, float]:
    """(name, when, not too early). Raises InvalidArgument."""
    when, _, name = decode_token(token, "(?s)[0-9]{1,18}(?::.*)?").partition(":")
    return name, (int(when) + 1) / 1e6


def encode_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def decode_token(token: str, form: str = "(?s).*") -> str:
    """Raises InvalidArgument."""
    with contextlib.suppress(ValueError):
        text = base64.b64decode(token.encode("ascii"), b"-_", validate=True).decode()
        if re.fullmatch(form, text):
            return text
    raise S3Error("InvalidArgument", "The continuation token provided is incorrect",
                  ArgumentName="continuation-token")


# -- multipart uploads ---------------------------------------------------------------------------


def parse_checksum_kind(headers: Mapping[str, str]) -> tuple[str, str]:
    """(algorithm, type) of an upload's checksums. Raises InvalidRequest, NotImplemented. [AWS]"""
    algorithm = parse_algorithm(headers.get("x-amz-checksum-algorithm", ""))
    kind = headers.get("x-amz-checksum-type", "").upper()
    if not algorithm:
        if kind:
            raise S3Error("InvalidRequest", "The x-amz-checksum-type header can only be used with "
                          "the x-amz-checksum-algorithm header.")
        return "", ""
    kind = kind or ("FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE")
    allowed = {"CRC64NVME": ("FULL_OBJECT",), "SHA1": ("COMPOSITE",), "SHA256": ("COMPOSITE",)}
    if kind not in allowed.get(algorithm, ("FULL_OBJECT", "COMPOSITE")):
        raise S3Error("InvalidRequest", f"The {kind} checksum type cannot be used with the "
                      f"{algorithm.lower()} checksum algorithm.")
    return algorithm, kind


def new_upload_id(now: float) -> str:
    """32 hex digits that nobody can guess; those of one key sort by age, as AWS lists them."""
    return f"{int(now * 1000):012x}{secrets.token_hex(10)}"


def create_multipart_upload(req: Request) -> Response:
    """CreateMultipartUpload: an id for parts to come. [AWS] Raises as PutObject does."""
    algorithm, kind = parse_checksum_kind(req.headers)
    upload = Upload(new_upload_id(req.now), req.key, int(req.now), describe_object(req), algorithm,
                    kind, req.access_key)
    req.store.uploads.create(upload)
    reply = xml_response("InitiateMultipartUploadResult", [
        ("Bucket", req.bucket), ("Key", req.key), ("UploadId", upload.id)])
    if algorithm:
        reply.headers["x-amz-checksum-algorithm"] = algorithm
        reply.headers["x-amz-checksum-type"] = kind
    return reply


def upload_of(req: Request) -> Upload:
    """The upload that a request writes to or ends. A key that may not delete has only its own.

    Raises NoSuchUpload, AccessDenied.
    """
    upload = req.store.uploads.find(req.query["uploadId"], req.key)
    if "delete" not in req.grants and upload.owner != req.access_key:
        raise S3Error("AccessDenied")
    return upload


def upload_part(req: Request) -> Response:
    """UploadPart: parts in any order, of any size, sent again at will. [AWS: UploadPart]

    Raises NoSuchUpload, InvalidArgument, InvalidRequest and whatever reading the body raises.
    """
    number = req.part_number()
    upload = upload_of(req)
    body = req.open_body()
    sent = body.algorithm
    if upload.algorithm and sent != upload.algorithm and (sent or upload.kind == "COMPOSITE"):
        raise wrong_algorithm(upload, sent)
    if upload.algorithm:
        body.want(upload.algorithm)
    part = req.store.uploads.put_part(upload, number, body)
    headers = {checksum_header(a): v for a, v in body.checksums.items()}
    return Response(200, {"etag": f'"{part.md5}"', "content-length": "0", **headers})


def wrong_algorithm(upload: Upload, sent: str) -> S3Error:
    wanted = upload.algorithm.lower() or "null"
    return S3Error("InvalidRequest", "Checksum Type mismatch occurred, expected checksum Type: "
                   f"{wanted}, actual checksum Type: {sent.lower() or 'null'}")


def upload_part_copy(req: Request) -> Response:
    """UploadPartCopy: a part from another object, or from a range of it. [AWS]

    Raises AccessDenied, NoSuchKey, NoSuchUpload, InvalidArgument, PreconditionFailed.
    """
    number = req.part_number()
    upload = upload_of(req)
    return answer_in_time(req, lambda: copy_part(req, upload, number))


def copy_part(req: Request, upload: Upload, number: int) -> Response:
    """Raises as upload_part_copy does."""
    bucket, key = parse_copy_source(req.headers["x-amz-copy-source"])
    with contextlib.closing(open_copy_source(req, bucket, key)) as found:
        span = parse_copy_range(req.headers.get("x-amz-copy-source-range"), found.entry.size)
        body = Body(CheckedReader(found, span.start, len(span)), Promise(length=len(span)))
        if upload.algorithm:
            body.want(upload.algorithm)
        part = req.store.uploads.put_part(upload, number, body)
    return xml_response("CopyPartResult", [
        ("LastModified", render_iso_date(int(req.now))), ("ETag", f'"{part.md5}"'),
        *[(f"Checksum{a}", v) for a, v in body.checksums.items()]])


def parse_copy_range(value: Optional[str], size: int) -> range:
    """bytes=first-last, both within the source. Raises InvalidArgument, InvalidRequest. [AWS]"""
    if value is None:
        return range(size)
    match = re.fullmatch("bytes=([0-9]{1,18})-([0-9]{1,18})", value)
    if not match or int(match[1]) > int(match[2]):
        raise S3Error("InvalidArgument", "The x-amz-copy-source-range value must be of the form "
                      "bytes=first-last where first and last are the zero-based offsets of the "
                      "first and last bytes to copy", ArgumentName="x-amz-copy-source-range",
                      ArgumentValue=value)
    first, last = int(match[1]), int(match[2])
    if first >= size:
        raise S3Error("InvalidRequest", "The specified copy range is invalid for the source object "
                      "size")
    if last >= size:
        raise S3Error("InvalidArgument", f"Range specified is not valid for source object of size: "
                      f"{size}", ArgumentName="x-amz-copy-source-range", ArgumentValue=value)
    return range(first, last + 1)


def complete_multipart_upload(req: Request) -> Response:
    """CompleteMultipartUpload: join the parts; a 200 that was sent ahead may hold an error. [AWS]

    Raises MalformedXML, InvalidPart, InvalidPartOrder, EntityTooSmall, NoSuchUpload, ...
    """
    data = req.document(has_own_checksums=False)
    items = parse_complete(data) if data else []
    try:
        upload = upload_of(req)
    except S3Error as why:
        if why.code != "NoSuchUpload" or not items:  # of a plain object nothing is told
            raise
        return completed_before(req, items)
    check_order(upload, items)
    check_whole_headers(req, upload)

    def work() -> Response:
        choose = functools.partial(choose_parts, upload, items)
        describe = functools.partial(describe_joined, req, upload)
        try:
            entry = req.store.uploads.complete(upload, choose, describe, req.check_write)
        except S3Error as why:
            if why.code != "NoSuchUpload":
                raise
            return completed_before(req, items)  # it was sent twice, and the other was faster
        return complete_reply(req, entry)

    return answer_in_time(req, work)


def origin_of(req: Request) -> str:
    """http:// or https:// and the Host, for a Location; a proxy may tell what the client used."""
    is_https = req.buckets.config.tls_cert or req.headers.get("x-forwarded-proto") == "https"
    return f"{'https' if is_https else 'http'}://{req.head.host}"


def complete_reply(req: Request, entry: Entry) -> Response:
    location = origin_of(req) + canonical_path(req.head.path)
    return xml_response("CompleteMultipartUploadResult", [
        ("Location", location), ("Bucket", req.bucket), ("Key", req.key),
        ("ETag", f'"{entry.etag}"'), *checksum_elements(entry)])


def completed_before(req: Request, items: list[PartItem]) -> Response:
    """A Complete sent again after its answer was lost is answered again. Raises NoSuchUpload."""
    with contextlib.suppress(S3Error):
        entry = req.store.head(req.key)
        etags = [part.split()[1] for part in entry.parts]
        if entry.upload == req.query["uploadId"] and etags == [item.etag for item in items]:
            check_whole_checksums(req.headers, entry.checksums)
            return complete_reply(req, entry)
    raise S3Error("NoSuchUpload", UploadId=req.query["uploadId"])


def check_whole_checksums(headers: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Raises BadDigest."""
    for algorithm, told in told_checksums(headers).items():
        value = known.get(algorithm, "")
        if told not in (value, value.partition("-")[0]):
            raise S3Error("BadDigest", f"The {algorithm.lower()} you specified did not match the "
                          "calculated checksum.")


def check_whole_headers(req: Request, upload: Upload) -> None:
    """Raises InvalidRequest."""
    for algorithm in told_checksums(req.headers):
        if algorithm != upload.algorithm:
            raise wrong_algorithm(upload, algorithm)
    kind = req.headers.get("x-amz-checksum-type", "").upper()
    if kind and kind != upload.kind:
        raise S3Error("InvalidRequest", "The upload was created with another checksum type: "
                      f"{upload.kind or 'null'}")
    size = req.headers.get("x-amz-mp-object-size")
    if size is not None and not re.fullmatch("[0-9]{1,15}", size):
        raise S3Error("InvalidRequest", "Value for x-amz-mp-object-size header is invalid.")


def check_order(upload: Upload, items: list[PartItem]) -> None:
    """Raises InvalidRequest, InvalidPartOrder."""
    if not items:
        raise S3Error("InvalidRequest", "You must specify at least one part")
    if any(a.number >= b.number for a, b in zip(items, items[1:])):
        raise S3Error("InvalidPartOrder", UploadId=upload.id)


def choose_parts(upload: Upload, items: list[PartItem], parts: list[Part]) -> list[Part]:
    """The uploaded parts that a Complete names. Raises InvalidPart, EntityTooSmall, EntityToo..."""
    known, chosen = {p.number: p for p in parts}, []
    for item in items:
        part = known.get(item.number)
        if not part or part.md5 != item.etag:
            raise S3Error("InvalidPart", UploadId=upload.id, PartNumber=item.number, ETag=item.etag)
        check_part_checksums(upload, item, part)
        chosen.append(part)
    for part in chosen[:-1]:
        if part.size < MIN_PART:
            raise S3Error("EntityTooSmall", ProposedSize=part.size, MinSizeAllowed=MIN_PART,
                          PartNumber=part.number, ETag=part.md5)
    size = sum(p.size for p in chosen)
    if size > MAX_OBJECT:
        raise S3Error("EntityTooLarge", ProposedSize=size, MaxSizeAllowed=MAX_OBJECT)
    return chosen


def check_part_checksums(upload: Upload, item: PartItem, part: Part) -> None:
    """What a Complete says of a part must be what it was sent with. [AWS: Complete]

    Raises InvalidPart, also for an algorithm it was not sent with; InvalidRequest.
    """
    known = {part.algorithm or upload.algorithm: part.checksum}
    if any(known.get(algorithm) != told for algorithm, told in item.checksums.items()):
        raise S3Error("InvalidPart", UploadId=upload.id, PartNumber=item.number, ETag=item.etag)
    if upload.kind == "COMPOSITE" and not item.checksums:
        raise S3Error("InvalidRequest", f"The upload was created using a {upload.algorithm.lower()}"
                      " checksum. The complete request must include the checksum for each part. It "
                      f"was missing for part {item.number} in the request.")


def describe_joined(req: Request, upload: Upload, parts: list[Part]) -> Entry:
    """The entry of the joined object, its checksum held against what the client says of it.

    Raises BadDigest, InvalidRequest.
    """
    size = sum(p.size for p in parts)
    told = req.headers.get("x-amz-mp-object-size")
    if told is not None and int(told) != size:
        raise S3Error("InvalidRequest", f"The provided 'x-amz-mp-object-size' header value {told} "
                      f"does not match what was computed: {size}")
    checksums = joined_checksums(upload, parts)
    check_whole_checksums(req.headers, checksums)
    etags = b"".join([bytes.fromhex(p.md5) for p in parts])
    lines = [f"{p.size} {p.md5} {p.checksum if checksums else ''}".strip() for p in parts]
    return upload.entry._replace(
        size=size, etag=f"{new_md5(etags).hexdigest()}-{len(parts)}",
        modified=int(time.time()), checksums=checksums, parts=lines, upload=upload.id,
        checksum_type=upload.kind if checksums else "")


def joined_checksums(upload: Upload, parts: list[Part]) -> dict[str, str]:
    if not upload.algorithm:
        return {}
    if upload.kind == "FULL_OBJECT":
        value = combine_full(upload.algorithm, [(p.checksum, p.size) for p in parts])
    else:
        value = combine_composite(upload.algorithm, [p.checksum for p in parts])
    return {upload.algorithm: value}


def answer_in_time(req: Request, work: Callable[[], Response]) -> Response:
    """The work's answer; while it takes long, white space keeps the client waiting. [AWS: Complete]

    Raises what the work raises in its first seconds; later it becomes the document.
    """
    response = Response(200, {"content-type": "application/xml"})
    done: list[Union[Response, Exception]] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as why:  # noqa: BLE001 the thread that waits raises it
            done.append(why)

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError:  # no thread to be had: without white space, then
        return work()
    thread.join(PATIENCE_SECONDS)

    def wait() -> Generator[bytes, None, None]:
        try:
            yield b""  # begun: from here on close() comes to the end below
            yield XML_HEAD.encode()
            while thread.is_alive():
                yield b" "
                thread.join(PATIENCE_SECONDS)
        finally:  # who leaves has his place until the work is done, and the log what came of it
            thread.join()
            found, document = done[0], b""
            if isinstance(found, Exception):
                error = found if isinstance(found, S3Error) else late_error(found, req.noted)
                response.code, document = error.code, render_error(error, req.head.path, req.id)
            elif isinstance(found.body, bytes):
                document = found.body
        yield document[len(XML_HEAD) :]

    if thread.is_alive():
        response.body = pieces = wait()
        next(pieces)
        return response
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def late_error(why: Exception, noted: Noted) -> S3Error:
    """What a client is told of what went wrong behind a 200; the log has the rest."""
    if isinstance(why, OSError):
        noted.troubles.append(trouble_of(why))
        return error_of_disk(why)
    import traceback

    noted.troubles.append("".join(traceback.format_exception(type(why), why, why.__traceback__)))
    return S3Error("InternalError")


def abort_multipart_upload(req: Request) -> Response:
    """AbortMultipartUpload: the parts are gone when this returns. [AWS]

    A key that may not delete ends only what it began. Raises NoSuchUpload, PreconditionFailed,
    AccessDenied.
    """
    upload = upload_of(req)
    begun = req.headers.get("x-amz-if-match-initiated-time")
    if begun is not None and parse_http_date(begun) != upload.initiated:
        raise S3Error("PreconditionFailed", Condition="x-amz-if-match-initiated-time")
    req.store.uploads.abort(upload)
    return Response(204)


def list_parts(req: Request) -> Response:
    """ListParts: a page of an upload's parts. Raises NoSuchUpload, InvalidArgument. [AWS]"""
    upload = req.store.uploads.find(req.query["uploadId"], req.key)
    limit = req.integer("max-parts", MAX_KEYS, 0, MAX_KEYS)
    marker = req.integer("part-number-marker", 0, 0, 2**31)
    found = [p for p in req.store.uploads.parts(upload) if p.number > marker]
    page = found[:limit]
    return xml_response("ListPartsResult", [
        ("Bucket", req.bucket), ("Key", req.key), ("UploadId", upload.id),
        ("Initiator", OWNER), ("Owner", OWNER), ("StorageClass", "STANDARD"),
        ("PartNumberMarker", marker), ("NextPartNumberMarker", page[-1].number if page else 0),
        ("MaxParts", limit), ("IsTruncated", len(found) > len(page) > 0),
        ("ChecksumAlgorithm", upload.algorithm or None), ("ChecksumType", upload.kind or None),
        *[("Part", [
            ("PartNumber", p.number), ("LastModified", render_iso_date(p.stamp // 1_000_000_000)),
            ("ETag", f'"{p.md5}"'), ("Size", p.size),
            *([(f"Checksum{p.algorithm or upload.algorithm}", p.checksum)] if p.checksum else [])])
          for p in page]])


def list_multipart_uploads(req: Request) -> Response:
    """ListMultipartUploads: those under way, by key, then by id. [AWS] Raises InvalidArgument.

    The page after a marker begins behind its place, whether or not that upload is still there.
    """
    asked = parse_asked(req, "max-uploads", 1)
    marker, id_marker = req.query.get("key-marker", ""), req.query.get("upload-id-marker", "")
    after = (marker, id_marker or "~") if marker else ("", "")  # "~" is behind every id
    rows: dict[str, tuple[str, Children]] = {}  # common prefix or key + id, in order
    last, more = ("", ""), False
    for u in req.store.uploads.all():
        if not u.key.startswith(asked.prefix) or (u.key, u.id) <= after:
            continue
        common = common_prefix(u.key, asked.prefix, asked.delimiter)
        if common and (common in rows or marker.startswith(common)):
            continue
        if len(rows) == asked.limit:
            more = True
            break
        if common:
            rows[common] = ("CommonPrefixes", [("Prefix", asked.name(common))])
        else:
            rows[u.key + "\0" + u.id] = ("Upload", upload_elements(u, asked.name(u.key)))
        last = (common, "") if common else (u.key, u.id)
    return xml_response("ListMultipartUploadsResult", [
        ("Bucket", req.bucket), ("KeyMarker", asked.name(marker)),
        ("UploadIdMarker", id_marker if marker else ""),
        ("NextKeyMarker", asked.name(last[0])), ("NextUploadIdMarker", last[1]),
        ("Prefix", asked.name(asked.prefix)), ("Delimiter", asked.name(asked.delimiter) or None),
        ("MaxUploads", asked.limit), ("EncodingType", asked.encoding or None),
        ("IsTruncated", more), *rows.values()])


def upload_elements(upload: Upload, name: str) -> Children:
    return [
        ("Key", name), ("UploadId", upload.id), ("Initiator", OWNER), ("Owner", OWNER),
        ("StorageClass", "STANDARD"), ("Initiated", render_iso_date(upload.initiated)),
        ("ChecksumAlgorithm", upload.algorithm or None), ("ChecksumType", upload.kind or None)]


# -- buckets -------------------------------------------------------------------------------------


REGION = "us-east-1"  # of a bucket that was made in no other; in a signature any is accepted


def region_of(about: Optional[Mapping[str, Any]]) -> str:
    """Where a bucket was made, as bucket.json says it."""
    return str((about or {}).get("region") or REGION)


def list_buckets(req: Request) -> Response:
    """ListBuckets: the key's own, by prefix, paged, of any region. Raises InvalidArgument. [AWS]"""
    prefix, token = req.query.get("prefix", ""), req.query.get("continuation-token")
    limit = req.integer("max-buckets", 10_000, 1, 10_001)
    if limit > 10_000:  # of other lists AWS takes any number, and cuts the page
        raise S3Error("InvalidArgument", "Argument max-buckets must be an integer between 1 and "
                      "10000.", ArgumentName="max-buckets", ArgumentValue=req.query["max-buckets"])
    after = decode_token(token) if token else ""
    found = [b for b in req.buckets.visible(req.access_key)
             if b[0].startswith(prefix) and b[0] > after]
    page = found[:limit]
    rows = [("Bucket", [("Name", n), ("CreationDate", render_iso_date(about.get("created", 0))),
                        ("BucketRegion", region_of(about) if req.query else None)])
            for n, about in page]
    return xml_response("ListAllMyBucketsResult", [
        ("Owner", OWNER), ("Buckets", rows),
        ("ContinuationToken", encode_token(page[-1][0]) if len(found) > limit else None),
        ("Prefix", prefix or None)])


def head_bucket(req: Request) -> Response:
    """HeadBucket: whether the bucket is there and the key may use it. [AWS: HeadBucket]"""
    region = region_of(req.store.about.read())
    return Response(200, {"x-amz-bucket-region": region, "content-length": "0"})


def get_bucket_location(req: Request) -> Response:
    """GetBucketLocation: where it was made; empty means us-east-1. [AWS]"""
    region = region_of(req.store.about.read())
    return xml_response("LocationConstraint", region if region != REGION else "")


def create_bucket(req: Request) -> Response:
    """CreateBucket, for keys of pattern sections; one's own existing bucket is a success. [AWS]

    But not with tags, which it would not get. Raises InvalidBucketName, BucketAlreadyExists,
    BucketAlreadyOwnedByYou, AccessDenied, MalformedXML, NotImplemented, InvalidTag,
    InvalidLocationConstraint, AccessControlListNotSupported.
    """
    data = req.document() if req.head.has_body else b""
    about = parse_bucket_configuration(data) if data.strip() else {}
    if req.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
        raise S3Error("NotImplemented", "Object lock is not done here.")
    if req.headers.get("x-amz-bucket-namespace", "global") != "global":
        raise S3Error("NotImplemented", "There is one namespace here, the global one.")
    if not is_bucket_name(req.bucket):  # before it is held against patterns
        raise S3Error("InvalidBucketName", BucketName=req.bucket)
    config = req.buckets.config
    sections = config.sections_of(req.bucket) + config.patterns_of(req.access_key, req.bucket)
    section = next(iter(sections), None)
    check_bucket_acl(req.headers.get("x-amz-acl", "private"), section)
    ownership = req.headers.get("x-amz-object-ownership", "BucketOwnerEnforced")
    if ownership not in ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"):
        raise S3Error("InvalidArgument", f"Invalid x-amz-object-ownership header: {ownership}",
                      ArgumentName="x-amz-object-ownership")
    if ownership != "BucketOwnerEnforced" and not (section and section.acl):
        raise S3Error("NotImplemented", "ACLs are allowed in buckets.ini: acl = yes.")
    if not req.buckets.create(req.bucket, req.access_key, about) and "tags" in about:
        raise S3Error("BucketAlreadyOwnedByYou", BucketName=req.bucket)
    return Response(200, {"location": f"/{req.bucket}", "content-length": "0"})


def parse_bucket_configuration(data: bytes) -> dict[str, object]:
    """What bucket.json keeps of it: the tags, and the region, which may be any. [ours]

    Raises MalformedXML, NotImplemented, InvalidTag, BadRequest, InvalidLocationConstraint.
    """
    root = parse_xml(data, "CreateBucketConfiguration")
    if root.all("Location") or root.all("Bucket"):
        raise S3Error("NotImplemented", "Directory buckets are not done here.")
    region = root.get("LocationConstraint").strip()
    if not re.fullmatch(r"[A-Za-z0-9_:.-]{0,64}", region):
        raise S3Error("InvalidLocationConstraint", LocationConstraint=region[:64])
    tags = parse_tags([node for group in root.all("Tags") for node in group.all("Tag")],
                      MAX_BUCKET_TAGS)
    return {name: kept for name, kept in (("tags", tags), ("region", region)) if kept}


def check_bucket_acl(acl: str, section: Optional[Section]) -> None:
    """A canned ACL that changes nothing is accepted. Raises AccessControlListNotSupported."""
    is_open = section is not None and section.public == ("",)
    if CANNED_ACLS[acl] != "" and not (acl == "public-read" and is_open):
        raise S3Error("AccessControlListNotSupported", "Who may read is said in buckets.ini.")


def delete_bucket(req: Request) -> Response:
    """DeleteBucket: an empty one that was made through the API. [AWS]

    Raises BucketNotEmpty, AccessDenied.
    """
    req.buckets.delete(req.bucket)
    return Response(204)


# -- what else there is to say of an object ------------------------------------------------------


def known_object(req: Request) -> Entry:
    """The object's entry, if this request may see it. Raises NoSuchKey, AccessDenied."""
    check_version(req)
    found = open_object(req)
    found.close()
    return found.entry


def get_object_attributes(req: Request) -> Response:
    """GetObjectAttributes: those that x-amz-object-attributes names. [AWS]

    Raises InvalidRequest, InvalidArgument, NoSuchKey.
    """
    names = parse_list(req.headers.get("x-amz-object-attributes", ""))
    known = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")
    if not names:
        raise S3Error("InvalidRequest", "The x-amz-object-attributes header is missing or empty.")
    if set(names) - set(known):
        raise S3Error("InvalidArgument", "Invalid attribute name specified.",
                      ArgumentName="x-amz-object-attributes")
    entry = known_object(req)
    found: dict[str, object] = {
        "ETag": entry.etag,
        "Checksum": [(n, v.partition("-")[0]) for n, v in checksum_elements(entry)] or None,
        "ObjectParts": part_elements(req, entry) if entry.parts else None,
        "StorageClass": "STANDARD", "ObjectSize": entry.size,
    }
    reply = xml_response("GetObjectAttributesResponse",
                         [(n, found[n]) for n in known if n in names])
    reply.headers["last-modified"] = render_http_date(entry.modified)
    return reply


def part_elements(req: Request, entry: Entry) -> Children:
    """A page of the parts of a multipart object. Raises InvalidArgument."""
    limit = req.headers.get("x-amz-max-parts", "1000")
    marker = req.headers.get("x-amz-part-number-marker", "0")
    if not re.fullmatch("[0-9]{1,9}", limit) or not re.fullmatch("[0-9]{1,9}", marker):
        raise S3Error("InvalidArgument",
                      "x-amz-max-parts and x-amz-part-number-marker are numbers.")
    first, algorithm = int(marker), next(iter(entry.checksums), "")
    if not algorithm:  # AWS tells nothing more of parts without checksums
        return [("PartsCount", len(entry.parts))]
    page = list(enumerate(entry.parts, 1))[first : first + min(int(limit), MAX_KEYS)]
    more = bool(page) and first + len(page) < len(entry.parts)
    rows = [[("PartNumber", n), ("Size", int(p.split()[0])),
             *[(f"Checksum{algorithm}", c) for c in p.split()[2:]]] for n, p in page]
    return [("PartsCount", len(entry.parts)), ("PartNumberMarker", first),
            ("NextPartNumberMarker", page[-1][0] if page else 0),
            ("MaxParts", min(int(limit), MAX_KEYS)), ("IsTruncated", more),
            *[("Part", row) for row in rows]]


def get_object_tagging(req: Request) -> Response:
    """GetObjectTagging. Raises NoSuchKey. [AWS]"""
    return tagging_response(known_object(req).tags)


def tagging_response(tags: Mapping[str, str]) -> Response:
    rows: Children = [("Tag", [("Key", n), ("Value", v)]) for n, v in tags.items()]
    return xml_response("Tagging", [("TagSet", rows)])


def parse_tagging(data: bytes, limit: int = MAX_TAGS) -> dict[str, str]:
    """A Tagging document; an empty one is no tags. Raises MalformedXML, InvalidTag, BadRequest."""
    root = parse_xml(data, "Tagging")
    groups = root.all("TagSet")
    if root.children and len(groups) != 1:
        raise S3Error("MalformedXML", "A Tagging has one TagSet.")
    return parse_tags([node for group in groups for node in group.all("Tag")], limit)


def put_object_tagging(req: Request) -> Response:
    """PutObjectTagging: replaces the object's tags, not its bytes. [AWS]

    Raises NoSuchKey, MalformedXML, InvalidTag, AccessDenied for append-only keys.
    """
    return set_tags(req, parse_tagging(req.document()), 200)


def delete_object_tagging(req: Request) -> Response:
    """DeleteObjectTagging. Raises NoSuchKey, AccessDenied for append-only keys. [AWS]"""
    return set_tags(req, {}, 204)


def set_tags(req: Request, tags: dict[str, str], status: int) -> Response:
    check_version(req)
    with req.hiding_what_is_there():
        req.store.update(req.key, lambda old: old._replace(tags=tags), req.check_write)
    return Response(status, {} if status == 204 else {"content-length": "0"})


ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def acl_response(is_open: bool) -> Response:
    """An AccessControlPolicy: the owner's full control, and everybody's reading where it is so."""
    grants: Children = [("Grant", [(f'Grantee {XSI} xsi:type="CanonicalUser"', OWNER),
                                   ("Permission", "FULL_CONTROL")])]
    if is_open:
        grants.append(("Grant", [(f'Grantee {XSI} xsi:type="Group"', [("URI", ALL_USERS)]),
                                 ("Permission", "READ")]))
    return xml_response("AccessControlPolicy", [("Owner", OWNER), ("AccessControlList", grants)])


def get_object_acl(req: Request) -> Response:
    """GetObjectAcl: what buckets.ini and the object's own ACL come to. Raises NoSuchKey. [AWS]"""
    return acl_response(is_opened(req, known_object(req)) or is_public(req.section, req.key))


def put_object_acl(req: Request) -> Response:
    """PutObjectAcl: private or public-read, where the section has acl = yes. [AWS]

    A key that may not read cannot open to everybody what others stored. Raises NoSuchKey,
    AccessControlListNotSupported, MalformedACLError, AccessDenied.
    """
    check_version(req)
    acl = parse_acl(req, requested_acl(req))
    if acl and "read" not in req.grants:
        raise S3Error("AccessDenied")
    with req.hiding_what_is_there():
        req.store.update(req.key, lambda old: old._replace(acl=acl), req.check_write)
    return Response(200, {"content-length": "0"})


PERMISSIONS = ("FULL_CONTROL", "READ", "WRITE", "READ_ACP", "WRITE_ACP")


def requested_acl(req: Request) -> str:
    """The canned ACL that a PUT ?acl asks for, by header or by document.

    Raises MalformedACLError, InvalidArgument, UnexpectedContent, MissingSecurityHeader, Access...
    """
    data = req.document() if req.head.has_body else b""
    if "x-amz-acl" in req.headers:
        if data.strip():
            raise S3Error("UnexpectedContent")
        return req.headers["x-amz-acl"]
    if not data.strip():
        raise S3Error("MissingSecurityHeader", MissingHeaderName="x-amz-acl")
    root = parse_xml(data, "AccessControlPolicy")
    owners, lists = root.all("Owner"), root.all("AccessControlList")
    if len(owners) != 1 or not owners[0].get("ID") or len(lists) != 1:
        raise S3Error("MalformedACLError", "An ACL has one Owner and one AccessControlList.")
    if owners[0].get("ID") != OWNER[0][1]:
        raise S3Error("InvalidArgument", f"The owner of all is {OWNER[0][1]}.",
                      ArgumentName="CanonicalUser/ID", ArgumentValue=owners[0].get("ID"))
    found = set()
    for grant in lists[0].all("Grant"):
        who, permission = grant.all("Grantee"), grant.get("Permission")
        name = who[0].get("URI") or who[0].get("ID") if len(who) == 1 else ""
        if not name or permission not in PERMISSIONS:
            raise S3Error("MalformedACLError", "A Grant has one Grantee and one Permission.")
        found.add((name, permission))
    mine, everybodys = (OWNER[0][1], "FULL_CONTROL"), (ALL_USERS, "READ")
    if mine not in found or found - {mine, everybodys}:  # the owner's rights are not taken away
        raise S3Error("AccessControlListNotSupported")
    return "public-read" if everybodys in found else "private"


def get_bucket_acl(req: Request) -> Response:
    """GetBucketAcl: buckets never list for everybody. [AWS]"""
    return acl_response(False)


def put_bucket_acl(req: Request) -> Response:
    """PutBucketAcl: accepted where it changes nothing. Raises AccessControlListNotSupported."""
    check_bucket_acl(requested_acl(req), req.section)
    return Response(200, {"content-length": "0"})


# -- POST forms ----------------------------------------------------------------------------------


def post_object(req: Request) -> Response:
    """POST Object: a browser's form, allowed by a policy that a key signed. [AWS: POST]

    Raises AccessDenied, EntityTooLarge, EntityTooSmall, MalformedPOSTRequest, ...
    """
    form = FormReader(req.headers.get("content-type", ""), req.source)
    filename, fields = form.read_fields(), form.fields
    if "key" not in fields:
        raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'key'.",
                      ArgumentName="key")
    origin = origin_of(req)
    signed = verify_form(fields, req.buckets.keyring)
    req.noted.access_key = signed.access_key
    if filename is not None:
        fields = with_filename(fields, re.split(r"[/\\]", filename)[-1])
    sizes = check_policy(fields, req.bucket, req.now)
    grants = req.buckets.grants(req.bucket, signed.access_key)
    req = req._replace(key=form_key(fields["key"]), signed=signed, grants=grants,
                       head=req.head._replace(headers=form_headers(fields)))
    if "write" not in grants:
        raise S3Error("AccessDenied")
    check_refused_headers(req.headers)
    if not SOURCES.keys().isdisjoint(req.headers):
        raise S3Error("NotImplemented", "A form stores its file, whole.")
    entry = describe_object(req)
    if "tagging" in fields:
        entry = entry._replace(tags=parse_tagging(fields["tagging"].encode()))
    body = Body(form, parse_promise(req.headers, UNSIGNED), sizes.stop - 1)

    def describe() -> Entry:
        if body.size < sizes.start:
            raise S3Error("EntityTooSmall", ProposedSize=body.size, MinSizeAllowed=sizes.start)
        return with_body(entry, body)

    return form_reply(req, origin, fields, req.store.put(req.key, body, describe, req.check_write))


def with_filename(fields: Mapping[str, str], filename: str) -> dict[str, str]:
    """The fields with the file's name for ${filename}, as the policy means them. [AWS: POST]

    Together no larger than they may be without. Raises MaxPostPreDataLengthExceeded.
    """
    count = sum(value.count("${filename}") for value in fields.values())
    if count * len(filename.encode()) > MAX_FORM:
        raise S3Error("MaxPostPreDataLengthExceeded")
    return {n: v.replace("${filename}", filename) if n != "policy" else v
            for n, v in fields.items()}


def form_key(key: str) -> str:
    """Raises InvalidArgument, InvalidURI, KeyTooLongError."""
    check_key(key)
    if not key:
        raise S3Error("InvalidArgument", "User key must have a length greater than 0.",
                      ArgumentName="key")
    return key


def form_headers(fields: Mapping[str, str]) -> dict[str, str]:
    """A form's fields as the headers they stand for."""
    named = {n: v for n, v in fields.items() if n.startswith("x-amz-") or n in KEPT_HEADERS
             or n in ("content-encoding", "content-md5", "if-match", "if-none-match")}
    if "acl" in fields:
        named["x-amz-acl"] = fields["acl"]
    return {n: v.encode("utf-8", "surrogateescape").decode("latin-1") for n, v in named.items()}


def form_reply(req: Request, origin: str, fields: Mapping[str, str], entry: Entry) -> Response:
    """204, or what success_action_status and success_action_redirect ask for. [AWS: POST]"""
    etag, place = f'"{entry.etag}"', canonical_path(req.head.path).rstrip("/")
    location = f"{origin}{place}/{quote(req.key, safe='/-._~')}"
    headers = {"etag": etag, "location": location, "content-length": "0"}
    target = fields.get("success_action_redirect") or fields.get("redirect", "")
    if re.fullmatch(r"https?://[!-~]+", target):
        joined = "&" if "?" in target else "?"
        pairs = f"bucket={req.bucket}&key={quote(req.key, safe='-._~')}&etag={quote(etag)}"
        return Response(303, {**headers, "location": f"{target}{joined}{pairs}"})
    if fields.get("success_action_status") == "201":
        reply = xml_response("PostResponse", [("Location", location), ("Bucket", req.bucket),
                                              ("Key", req.key), ("ETag", etag)], 201)
        reply.headers.update({"etag": etag, "location": location})
        return reply
    if fields.get("success_action_status") == "200":
        return Response(200, headers)
    del headers["content-length"]  # [RFC 9110 §8.6]
    return Response(204, headers)


# -- what a bucket is asked by habit -------------------------------------------------------------


def not_configured(name: str, code: str) -> Operation:
    """An operation that asks for what is not there: AWS's own 404 for it."""

    def answer(req: Request) -> Response:
        raise S3Error(code, BucketName=req.bucket)

    return called(answer, name)


def empty(name: str, root: str, *children: tuple[str, str]) -> Operation:
    """An operation whose truthful answer is a document that says nothing is set."""
    return called(lambda req: xml_response(root, list(children)), name)


def nothing_to_delete(name: str) -> Operation:
    """The removal of what is never there: a success, as AWS has it."""
    return called(lambda req: Response(204), name)


def called(operation: Operation, name: str) -> Operation:
    operation.__name__ = name
    return operation


# -- what is set on a bucket ---------------------------------------------------------------------


def get_bucket_tagging(req: Request) -> Response:
    """GetBucketTagging. Raises NoSuchTagSet. [AWS]"""
    tags = (req.store.about.read() or {}).get("tags")
    if not tags:
        raise S3Error("NoSuchTagSet", BucketName=req.bucket)
    return tagging_response(tags)


def put_bucket_tagging(req: Request) -> Response:
    """PutBucketTagging: up to 50. Raises MalformedXML, InvalidTag. [AWS]"""
    req.store.change_about(tags=parse_tagging(req.document(), MAX_BUCKET_TAGS))
    return Response(204)


def delete_bucket_tagging(req: Request) -> Response:
    """DeleteBucketTagging. [AWS]"""
    req.store.change_about(tags=None)
    return Response(204)


def parse_cors(data: bytes) -> list[dict[str, Any]]:
    """The rules of a CORSConfiguration for bucket.json. Raises MalformedXML, InvalidRequest."""
    rules = []
    for node in parse_xml(data, "CORSConfiguration").all("CORSRule"):
        texts = {tag: [n.text.strip() for n in node.all(tag)] for tag in (
            "AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader")}
        age = node.get("MaxAgeSeconds").strip()
        is_whole = texts["AllowedOrigin"] and texts["AllowedMethod"]
        if not is_whole or not re.fullmatch("[0-9]*", age):
            raise S3Error("MalformedXML", "A CORSRule needs AllowedOrigin and AllowedMethod.")
        for method in texts["AllowedMethod"]:
            if method not in ("GET", "HEAD", "PUT", "POST", "DELETE"):
                raise S3Error("InvalidRequest", "Found unsupported HTTP method in CORS config. "
                              f"Unsupported method is {method}")
        if any("*" in text for text in texts["ExposeHeader"]):
            raise S3Error("InvalidRequest", "ExposeHeader contains wildcard.")
        if any(text.count("*") > 1 for texts_of in texts.values() for text in texts_of):
            raise S3Error("InvalidRequest",
                          "AllowedOrigin and AllowedHeader can have one wildcard.")
        if any(UNSAFE.search(text) for text in texts["AllowedOrigin"]):
            raise S3Error("InvalidRequest", "A CORS rule has no control characters.")
        for name in texts["AllowedHeader"] + texts["ExposeHeader"]:  # AWS names the first for both
            if not re.fullmatch(f"(?:{TOKEN})?", name):
                raise S3Error("InvalidRequest", f'AllowedHeader "{name}" contains invalid '
                              "character.")
        rules.append({"origins": texts["AllowedOrigin"], "methods": texts["AllowedMethod"],
                      "headers": texts["AllowedHeader"], "expose": texts["ExposeHeader"],
                      "max_age": min(int(age[:18]), 2**31 - 1) if age else None,
                      "id": node.get("ID")[:255]})
    if not 1 <= len(rules) <= 100:
        raise S3Error("MalformedXML", "A CORS configuration has 1 to 100 rules.")
    return rules


class CorsRule(NamedTuple):
    """Whose pages may do what with a bucket. [AWS: CORS]"""

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    headers: tuple[str, ...] = ("*",)
    expose: tuple[str, ...] = ("ETag", "Location", "Content-Range", "x-amz-request-id",
                               "x-amz-checksum-crc32", "x-amz-version-id")
    max_age: Optional[int] = 3600  # seconds; None: the browser's own default
    id: str = ""  # the rule's name

    def allows(self, headers: list[str]) -> bool:
        """Whether all headers are; the plain ones are looked up, 100 of them in 1,950 at once."""
        patterns = [pattern.lower() for pattern in self.headers]
        plain, others = set(patterns), [pattern for pattern in patterns if "*" in pattern]
        return all(h in plain or any(wildcard_fits(p, h) for p in others) for h in headers)

    def fits(self, origin: str, method: str, headers: list[str]) -> bool:
        return (any(wildcard_fits(o, origin) for o in self.origins) and method in self.methods
                and self.allows(headers))


def wildcard_fits(pattern: str, text: str) -> bool:
    """Whether the text is the pattern's, in which each * stands for any text."""
    first, *pieces = pattern.split("*")
    if not pieces or not text.startswith(first):
        return text == pattern
    at, last = len(first), pieces.pop()
    for piece in pieces:
        at = text.find(piece, at) + len(piece)
        if at < len(piece):
            return False
    return len(text) - at >= len(last) and text.endswith(last)


def cors_rules(section: Optional[Section], about: Optional[Mapping[str, Any]]) -> list[CorsRule]:
    """A bucket's rules: those made through the API, then the INI's."""
    kept = (about or {}).get("cors") or []
    found = [CorsRule(tuple(r["origins"]), tuple(r["methods"]), tuple(r["headers"]),
                      tuple(r["expose"]), r["max_age"], r.get("id", "")) for r in kept]
    return found + ([CorsRule(section.cors)] if section and section.cors else [])


def get_bucket_cors(req: Request) -> Response:
    """GetBucketCors: also the rule that buckets.ini makes. Raises NoSuchCORSConfiguration. [AWS]"""
    rules = cors_rules(req.section, req.store.about.read())
    if not rules:
        raise S3Error("NoSuchCORSConfiguration", BucketName=req.bucket)
    return xml_response("CORSConfiguration", [
        ("CORSRule", [("ID", r.id or None), *[("AllowedOrigin", o) for o in r.origins],
                      *[("AllowedMethod", m) for m in r.methods],
                      *[("AllowedHeader", h) for h in r.headers],
                      *[("ExposeHeader", e) for e in r.expose], ("MaxAgeSeconds", r.max_age)])
        for r in rules])


def put_bucket_cors(req: Request) -> Response:
    """PutBucketCors: kept in bucket.json, before the rule of buckets.ini. [AWS]

    Raises MalformedXML, InvalidRequest.
    """
    req.store.change_about(cors=parse_cors(req.document(limit=MAX_CORS)))
    return Response(200, {"content-length": "0"})


def delete_bucket_cors(req: Request) -> Response:
    """DeleteBucketCors: the rules made through the API; those of buckets.ini stay. [AWS]"""
    req.store.change_about(cors=None)
    return Response(204)


# ==================================================================================================
# 11. Routes
# ==================================================================================================

SERVICE, BUCKET, OBJECT = "service", "bucket", "object"

# What a request needs. READ is open to all where the bucket is public, READ_MORE only to keys that
# may read; KNOWN is any grant on the bucket; KEY is any key at all; NOTHING is for what carries its
# own proof, or tells nothing.
READ, LIST, WRITE, DELETE, CONFIGURE = "read", "list", "write", "delete", "configure"
READ_MORE, KNOWN, KEY, NOTHING = "read more", "known", "key", "nothing"

# What tools ask a bucket by habit, and AWS's answer where nothing is configured.
HABITS: dict[tuple[str, str, str], tuple[Operation, str]] = {
    ("GET", BUCKET, selector): (operation, KNOWN)
    for selector, operation in {
        "accelerate": empty("get_bucket_accelerate_configuration", "AccelerateConfiguration"),
        "encryption": not_configured("get_bucket_encryption",
                                     "ServerSideEncryptionConfigurationNotFoundError"),
        "lifecycle": not_configured("get_bucket_lifecycle_configuration",
                                    "NoSuchLifecycleConfiguration"),
        "logging": empty("get_bucket_logging", "BucketLoggingStatus"),
        "notification": empty("get_bucket_notification_configuration",
                              "NotificationConfiguration"),
        "object-lock": not_configured("get_object_lock_configuration",
                                      "ObjectLockConfigurationNotFoundError"),
        "ownershipControls": not_configured("get_bucket_ownership_controls",
                                            "OwnershipControlsNotFoundError"),
        "policy": not_configured("get_bucket_policy", "NoSuchBucketPolicy"),
        "policyStatus": not_configured("get_bucket_policy_status", "NoSuchBucketPolicy"),
        "publicAccessBlock": not_configured("get_public_access_block",
                                            "NoSuchPublicAccessBlockConfiguration"),
        "replication": not_configured("get_bucket_replication",
                                      "ReplicationConfigurationNotFoundError"),
        "requestPayment": empty("get_bucket_request_payment", "RequestPaymentConfiguration",
                                ("Payer", "BucketOwner")),
        "versioning": empty("get_bucket_versioning", "VersioningConfiguration"),
        "website": not_configured("get_bucket_website", "NoSuchWebsiteConfiguration"),
    }.items()
}
HABITS.update({
    ("DELETE", BUCKET, selector): (nothing_to_delete(name), CONFIGURE)
    for selector, name in {
        "encryption": "delete_bucket_encryption", "lifecycle": "delete_bucket_lifecycle",
        "ownershipControls": "delete_bucket_ownership_controls", "policy": "delete_bucket_policy",
        "publicAccessBlock": "delete_public_access_block",
        "replication": "delete_bucket_replication", "website": "delete_bucket_website",
    }.items()
})

# "copy" is no query name: it stands for the header x-amz-copy-source.
ROUTES: dict[tuple[str, str, str], tuple[Operation, str]] = {
    # method   scope    selector       operation                     needs
    ("GET",    SERVICE, ""):          (list_buckets,                 KEY),
    ("HEAD",   BUCKET,  ""):          (head_bucket,                  KNOWN),
    ("GET",    BUCKET,  ""):          (list_objects,                 LIST),
    ("GET",    BUCKET,  "list-type"): (list_objects_v2,              LIST),
    ("GET",    BUCKET,  "versions"):  (list_object_versions,         LIST),
    ("GET",    BUCKET,  "location"):  (get_bucket_location,          KNOWN),
    ("GET",    BUCKET,  "uploads"):   (list_multipart_uploads,       LIST),
    ("PUT",    BUCKET,  ""):          (create_bucket,                KEY),
    ("DELETE", BUCKET,  ""):          (delete_bucket,                CONFIGURE),
    ("POST",   BUCKET,  "delete"):    (delete_objects,               KNOWN),
    ("POST",   BUCKET,  ""):          (post_object,                  NOTHING),
    ("GET",    BUCKET,  "cors"):      (get_bucket_cors,              KNOWN),
    ("PUT",    BUCKET,  "cors"):      (put_bucket_cors,              CONFIGURE),
    ("DELETE", BUCKET,  "cors"):      (delete_bucket_cors,           CONFIGURE),
    ("GET",    BUCKET,  "tagging"):   (get_bucket_tagging,           KNOWN),
    ("PUT",    BUCKET,  "tagging"):   (put_bucket_tagging,           CONFIGURE),
    ("DELETE", BUCKET,  "tagging"):   (delete_bucket_tagging,        CONFIGURE),
    ("GET",    BUCKET,  "acl"):       (get_bucket_acl,               KNOWN),
    ("PUT",    BUCKET,  "acl"):       (put_bucket_acl,               CONFIGURE),
    **HABITS,
    ("GET",    OBJECT,  ""):          (get_object,                   READ),
    ("HEAD",   OBJECT,  ""):          (get_object,                   READ),
    ("PUT",    OBJECT,  ""):          (put_object,                   WRITE),
    ("PUT",    OBJECT,  "copy"):      (copy_object,                  WRITE),
    ("PUT",    OBJECT,  "append"):    (put_object,                   WRITE),
    ("PUT",    OBJECT,  "renameObject"): (rename_object,             WRITE),
    ("DELETE", OBJECT,  ""):          (delete_object,                DELETE),
    ("GET",    OBJECT,  "attributes"): (get_object_attributes,       READ_MORE),
    ("GET",    OBJECT,  "tagging"):   (get_object_tagging,           READ_MORE),
    ("PUT",    OBJECT,  "tagging"):   (put_object_tagging,           WRITE),
    ("DELETE", OBJECT,  "tagging"):   (delete_object_tagging,        WRITE),
    ("GET",    OBJECT,  "acl"):       (get_object_acl,               READ_MORE),
    ("PUT",    OBJECT,  "acl"):       (put_object_acl,               WRITE),
    ("POST",   OBJECT,  "uploads"):   (create_multipart_upload,      WRITE),
    ("PUT",    OBJECT,  "uploadId"):  (upload_part,                  WRITE),
    ("PUT",    OBJECT,  "uploadId copy"): (upload_part_copy,         WRITE),
    ("GET",    OBJECT,  "uploadId"):  (list_parts,                   WRITE),
    ("POST",   OBJECT,  "uploadId"):  (complete_multipart_upload,    WRITE),
    ("DELETE", OBJECT,  "uploadId"):  (abort_multipart_upload,       WRITE),
}

# Every query name that turns a request into another operation, supported or not: one that is here
# and has no route is NotImplemented. Were acl missing, GET /b/k?acl would give the object.
SELECTORS = frozenset((
    "abac", "accelerate", "acl", "analytics", "annotation", "attributes", "cors", "delete",
    "encryption", "intelligent-tiering", "inventory", "legal-hold", "lifecycle", "list-type",
    "location", "logging", "metadataConfiguration", "metadataTable", "metrics", "notification",
    "object-lock", "ownershipControls", "policy", "policyStatus", "publicAccessBlock",
    "renameObject", "replication", "requestPayment", "restore", "retention", "select", "session",
    "tagging", "torrent", "uploadId", "uploads", "versioning", "versions", "website",
))

# On a write every other name is refused before anything is touched, but for these.
AUTH_NAMES = frozenset((
    "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders",
    "X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Content-Sha256", "AWSAccessKeyId",
    "Signature", "Expires", "x-id",
))
ALLOWED_NAMES = {
    ("PUT", "tagging"): {"versionId"},
    ("DELETE", "tagging"): {"versionId"},
    ("PUT", "acl"): {"versionId"},
    ("PUT", "uploadId"): {"partNumber"},
    ("PUT", "uploadId copy"): {"partNumber"},
    ("DELETE", ""): {"versionId"},
}

# The checksum of a body that was not known when the URL was made: AWS ignores it. [JS SDK v3]
# Headers of the body that a URL repeats: what counts is what comes with the body. [JS v2, boto3]
# Headers of a GET's answer, which a write does not have. [Bun's presign with a type: a PUT too]
IGNORED = re.compile(
    "x-amz-(?:checksum-.*|sdk-checksum-algorithm|user-agent)"
    "|(?:response-)?(?:content-(?:type|md5|disposition|encoding|language)|cache-control)"
    "|response-expires")


def resolve(head: Head, scope: str) -> tuple[Operation, str]:
    """The operation for a request and what it needs.

    Raises NotImplemented for S3 we know of and for unknown names on a write, MethodNotAllowed,
    InvalidArgument for two operations at once.
    """
    chosen = [name for name in head.query if name in SELECTORS] if head.query_text else []
    if len(chosen) > 1:
        raise S3Error("InvalidArgument",
                      "Conflicting query string parameters: " + ", ".join(chosen))
    selector = chosen[0] if chosen else ""
    for name, what in SOURCES.items():
        if name in head.headers:
            selector = f"{selector} {what}".lstrip()
    row = ROUTES.get((head.method, scope, selector))
    if not row and selector:
        raise S3Error("NotImplemented", f"{head.method} with {selector!r} is not done here.")
    if not row:
        allow = ", ".join(sorted(m for m, *place in ROUTES if place == [scope, ""]))
        raise S3Error("MethodNotAllowed", headers={"allow": allow}, Method=head.method)
    if head.query_text and head.method not in ("GET", "HEAD"):
        allowed = ALLOWED_NAMES.get((head.method, selector), set())
        for name in head.query:
            if name not in AUTH_NAMES | SELECTORS | allowed and not IGNORED.fullmatch(name.lower()):
                raise S3Error("NotImplemented", f"The parameter {name!r} is not known here.")
    return row


def authorize(req: Request, needs: str) -> None:
    """Whether this request may do that. The default is no. Raises AccessDenied."""
    if needs == KEY:
        allowed = req.signed is not None
    elif needs == NOTHING:
        return
    elif needs == KNOWN:
        allowed = bool(req.grants)
    elif needs == DELETE:
        check_delete_grant(req, req.key)
        return
    elif needs == READ_MORE:  # what is public is the object, not what is kept beside it
        check_reader(req, req.bucket)
        return
    elif needs == READ and "read" not in req.grants:
        allowed = bool(req.section and req.section.acl)  # get_object looks at the object's ACL
    else:
        allowed = needs in req.grants
    if not allowed:
        raise S3Error("AccessDenied")


def cors_headers(rules: list[CorsRule], head: Head) -> dict[str, str]:
    """The headers for an answer to a page on another origin; {} when no rule fits."""
    origin = head.headers.get("origin", "")
    method = head.headers.get("access-control-request-method", head.method)
    asked = head.headers.get("access-control-request-headers", "").lower()
    names = list(dict.fromkeys(n.strip() for n in asked.split(",") if n.strip()))
    can_fit = origin and len(names) <= MAX_CORS_HEADERS
    rule = next((r for r in rules if can_fit and r.fits(origin, method, names)), None)
    if not rule:
        return {}
    is_open = "*" in rule.origins
    found = {"access-control-allow-origin": "*" if is_open else origin,
             "access-control-allow-methods": ", ".join(rule.methods)}
    if not is_open:
        found["access-control-allow-credentials"] = "true"
    if rule.max_age is not None:
        found["access-control-max-age"] = str(rule.max_age)
    if names:
        found["access-control-allow-headers"] = ", ".join(names)
    if rule.expose:
        found["access-control-expose-headers"] = ", ".join(rule.expose)
    return found


VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


def party_of(address: str) -> str:
    """Whose failures are counted together: an IPv6 address stands for its /64, one customer's."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    is_v4 = packed.startswith(bytes(10) + b"\xff\xff")
    return socket.inet_ntoa(packed[12:]) if is_v4 else packed[:8].hex()


class Failures:
    """How often addresses signed wrongly: each has a burst, and then one try in a while.

    By monotonic(): a clock that is set back would lock out who failed once, until it caught up.
    """

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}  # party -> (failures, when)

    def add(self, address: str, now: float) -> None:
        party = party_of(address)
        level = self._level(party, now)
        self._counts.pop(party, None)  # it goes to the end: the first is who was quiet longest
        drop_oldest(self._counts, MAX_ADDRESSES - 1)
        self._counts[party] = (level + 1, now)

    def check(self, address: str, now: float) -> None:
        """Raises SlowDown."""
        if self._counts and address and self._level(party_of(address), now) >= FAILURE_BURST:
            raise S3Error("SlowDown", "Too many wrong signatures came from your address.",
                          {"retry-after": str(FAILURE_SECONDS)})

    def _level(self, party: str, now: float) -> float:
        count, then = self._counts.get(party, (0.0, now))
        return max(0.0, count - (now - then) / FAILURE_SECONDS)


class Call(NamedTuple):
    """A request as it came, before anybody knows who asks."""

    head: Head
    source: Source  # its body's bytes, framing removed
    now: float  # when the request came
    id: str  # x-amz-request-id
    address: str = ""  # the client's, where bad signatures are counted by it


class Remembered(NamedTuple):
    """An answer of 200 that lacks its id, date and end."""

    start: str  # the status line and headers
    content: bytes
    access_key: str


WITH_CONTENT = {"GET": True, "HEAD": False}
PLAIN_HEADERS = frozenset((  # ask for nothing, or for what answer_from_memory does
    "host", "connection", "authorization", "x-amz-date", "date", "x-amz-content-sha256",
    "x-amz-checksum-mode", "x-amz-user-agent", "amz-sdk-invocation-id", "amz-sdk-request",
    "user-agent", "accept", "accept-encoding", "accept-language", "cache-control", "pragma",
    "cookie", "referer", "dnt", "priority", "upgrade-insecure-requests", "sec-fetch-dest",
    "sec-fetch-mode", "sec-fetch-site", "sec-fetch-user", "sec-ch-ua", "sec-ch-ua-mobile",
    "sec-ch-ua-platform", "sec-gpc", "via", "x-real-ip", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-proto", "x-forwarded-port", "x-forwarded-server", "x-request-id", "x-varnish",
    "x-envoy-expected-rq-timeout-ms",
    "cdn-loop", "cf-connecting-ip", "cf-ipcountry", "cf-ray", "cf-visitor"))  # Cloudflare's


def start_of(known: Known, section: Section, with_checksums: bool) -> str:
    """How the answer with a whole object starts; rendered once, for as long as it is in memory.

    Long ones are not kept: 4,096 entries would take 30 MiB of them.
    """
    entry, kind = known.entry, (with_checksums, section.html)
    other = known.starts.get((not with_checksums, section.html))
    if other and not entry.checksums:
        return known.starts.setdefault(kind, other)
    headers = object_headers(entry)
    if with_checksums:
        headers.update(checksum_headers(entry))
    headers["content-length"] = str(entry.size)
    headers.update(no_scripts(section, headers.get("content-type", "")))
    start = render_start(200, headers)
    return known.starts.setdefault(kind, start) if len(start) <= KIB else start


# What is said of a bucket that is a key, or of none at all.
ASTRAY = ("NoSuchBucket", "NotImplemented", "MethodNotAllowed", "MalformedXML")


class App:
    """A request's head and body in, its answer out. Shared by all threads."""

    def __init__(self, config: Config, disk: Disk):
        self.config, self.buckets = config, Buckets(config, disk)
        self.failures = Failures()

    def split_target(self, head: Head) -> tuple[str, str, str]:
        """(bucket, key, the bucket in the Host or ""). Raises InvalidURI, KeyTooLongError."""
        in_host = bucket_of_host(head.host, self.config.domain) if self.config.domain else ""
        if in_host:
            bucket, key = in_host, decode_escapes(head.path[1:])
        else:
            bucket, _, key = decode_escapes(head.path[1:]).partition("/")
        check_key(key)
        return bucket, key, in_host

    def is_quick(self, head: Head, size: int) -> bool:
        """Whether this answer comes from memory, or from a file that was just used, in one piece.

        `size` is the body's. Without durability no disk is waited for: small writes are quick too.
        """
        if head.query_text and not SELECTORS.isdisjoint(head.query):
            return False
        is_write = head.method not in ("GET", "HEAD")
        if is_write and self.buckets.disk.durable:
            return False
        try:
            bucket, key, _ = self.split_target(head)
        except S3Error:
            return False
        if is_write:
            return (head.method in ("PUT", "DELETE") and key != "" and size <= SMALL
                    and not any(name in head.headers for name in SOURCES)
                    and not any(name.lower() in SOURCES for name in head.query))
        limit = MAX_OBJECT if head.method == "HEAD" else SMALL
        return size == 0 and self.buckets.knows(bucket, key, limit)

    def answer_from_memory(self, head: Head, now: float, address: str) -> Optional[Remembered]:
        """A whole object for somebody who may read it, where all of that is known; else None.

        Fast path: a GET of 1 KiB takes 30 us instead of 53, and 16 connections get 1.4 x as many.
        The checks are those of operate(), which answers whatever this does not: mistakes, and what
        goes wrong. A test compares them.
        """
        if (head.method not in WITH_CONTENT or head.query_text or not head.minor
                or not PLAIN_HEADERS.issuperset(head.headers) or not head.keeps_alive):
            return None
        try:
            return self.find_in_memory(head, now, address)
        except Exception:  # noqa: BLE001 the long way says what it is
            return None

    def find_in_memory(self, head: Head, now: float, address: str) -> Optional[Remembered]:
        """Raises S3Error, OSError, and whatever a damaged file makes the long way raise."""
        needs_content = WITH_CONTENT[head.method]
        bucket, key, in_host = self.split_target(head)
        if not self.buckets.knows(bucket, key, SMALL if needs_content else MAX_OBJECT):
            return None  # first: of other buckets the disk may be slow, and this is the front
        section = self.buckets.find(bucket)
        store = self.buckets.store(bucket, section)
        about = store.about.read()
        if not section or section.cors or not about or about.get("cors"):
            return None
        if address and has_claim(head):
            self.failures.check(address, monotonic())
        signed = verify(head, self.buckets.keyring, in_host, now, explains=False)
        access_key = signed.access_key if signed else ""
        is_reader = "read" in self.buckets.grants(bucket, access_key)
        is_allowed = is_reader or is_public(section, key)
        found = store.in_memory(key, needs_content) if is_allowed else None
        if not found or found[0].entry.tags and not is_reader:
            return None
        known, content = found
        with_checksums = head.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
        start = known.starts.get((with_checksums, section.html))
        start = start or start_of(known, section, with_checksums)
        return Remembered(start, content, access_key)

    def answer(self, call: Call) -> Answer:
        """Raises what is a bug, Disconnected, NotQuickError: an error is an answer too."""
        answer = Answer(Response(500), call.head.path)
        try:
            answer.bucket, key, in_host = self.split_target(call.head)
            answer.response = self.operate(call, answer, key, in_host)
        except S3Error as why:
            answer.code = why.code
            if why.code in ASTRAY:
                hint = self.hint_of_host(call.head.host, answer)
                why.args = (f"{str(why).rstrip('.')}. {hint}" if hint else str(why),)
            answer.access_key = answer.access_key or str(why.fields.get("AWSAccessKeyId", ""))
            if why.code in ("SignatureDoesNotMatch", "InvalidAccessKeyId") and call.address:
                self.failures.add(call.address, monotonic())
            answer.response = error_response(why, answer.resource, call.id)
        except OSError as why:
            error = error_of_disk(why)
            answer.code, answer.troubles = error.code, [trouble_of(why)]
            answer.response = error_response(error, answer.resource, call.id)
        headers = answer.response.headers
        headers["x-amz-request-id"] = headers["x-amz-id-2"] = call.id
        if answer.rules:
            headers.update(cors_headers(answer.rules, call.head))
            headers["vary"] = VARY
        return answer

    def hint_of_host(self, host: str, answer: Answer) -> str:
        """For a client that names its bucket in the Host, where that is below no domain of ours:
        we took the key's first segment for the bucket, and what we say is of something else.
        """
        name, _, domain = host.partition(".")
        grants = self.buckets.grants
        with contextlib.suppress(OSError):
            if (answer.access_key and domain and is_bucket_name(name)
                    and grants(name, answer.access_key)
                    and not (is_bucket_name(answer.bucket)  # no way out of the data folder
                             and grants(answer.bucket, answer.access_key))):
                return (f"Does the client name its bucket {name} in the host? Let it use path "
                        f"style, or set domain = {domain.partition(':')[0]} in buckets.ini.")
        return ""

    def operate(self, call: Call, answer: Answer, key: str, in_host: str) -> Response:
        """Who, what, whether they may, and then the operation. Raises S3Error, OSError."""
        head, bucket = call.head, answer.bucket
        if head.method == "OPTIONS":
            return self.preflight(answer, head, key)
        section, missing = None, None
        try:
            section = self.buckets.find(bucket)
        except S3Error as why:
            missing = why
        store = self.buckets.store(bucket, section)
        if not missing:  # before all checks: a page is to see why it is refused
            about = store.about.read()
            answer.rules = cors_rules(section, about)
            if about is None and not (key and head.method in ("GET", "HEAD")):  # what is there is
                missing = store.about.missing(BucketName=bucket)
        if call.address and has_claim(head):
            self.failures.check(call.address, monotonic())
        signed = verify(head, self.buckets.keyring, in_host, call.now)
        answer.access_key = signed.access_key if signed else ""
        head = hoist(head) if signed and head.query_text else head
        operation, needs = resolve(head, OBJECT if key else BUCKET if bucket else SERVICE)
        grants = NO_GRANTS
        if bucket and operation is not create_bucket:
            if missing:
                raise missing
            grants = self.buckets.grants(bucket, answer.access_key)
            if key and is_public(section, key):
                grants |= {"read"}
        req = Request(head, bucket, key, self.buckets, store, section, signed, grants,
                      call.source, call.now, call.id, answer)
        authorize(req, needs)
        check_refused_headers(head.headers)
        try:
            return operation(req)
        except FileNotFoundError:
            if bucket and store.about.read() is None:  # deleted while we were at it
                raise store.about.missing(BucketName=bucket) from None
            raise

    def preflight(self, answer: Answer, head: Head, key: str) -> Response:
        """A browser's question before a request to another origin; it carries no signature.

        Raises BadRequest, AccessForbidden.
        """
        if "origin" not in head.headers or "access-control-request-method" not in head.headers:
            raise S3Error("BadRequest", "Insufficient information. Origin and "
                          "Access-Control-Request-Method request headers needed.")
        section = self.buckets.find(answer.bucket)
        store = self.buckets.store(answer.bucket, section)
        answer.rules = cors_rules(section, store.about.read())
        if not cors_headers(answer.rules, head):
            raise S3Error("AccessForbidden", "CORSResponse: This CORS request is not allowed. Set "
                          "cors = in buckets.ini for it.",
                          Method=head.headers["access-control-request-method"],
                          ResourceType="OBJECT" if key and answer.rules else "BUCKET")
        return Response(200, {"content-length": "0"})


class Answer(Noted):
    """A response, and what the log is to say of it."""

    def __init__(self, response: Response, resource: str, code: str = "", trouble: str = ""):
        super().__init__()
        self.response, self.resource = response, resource
        self.bucket = ""
        self.code = code  # of the S3 error, if it is one
        self.troubles += [trouble] if trouble else []
        self.rules: list[CorsRule] = []


# ==================================================================================================
# 12. Server
# ==================================================================================================


class Disconnected(Exception):  # noqa: N818 it is no error: clients leave
    """The client is gone, or too slow; there is nobody to answer."""


class QuietError(Exception):
    """Nothing came for a while on a connection that is kept."""


class Pace:
    """Whether a body keeps moving: in all at MIN_RATE, after BODY_SECONDS."""

    def __init__(self) -> None:
        self._began, self._bytes = monotonic(), 0

    def keeps_up(self, size: int) -> bool:
        """With `size` more bytes."""
        self._bytes += size
        seconds = monotonic() - self._began - BODY_SECONDS
        return seconds < 0 or self._bytes >= seconds * MIN_RATE


DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)  # 0: no front; each connection keeps its thread


TLS_HELLO = b"\x16"  # the first byte of who was told https:// [RFC 8446 §5.1]


class Stream:
    """A connection's bytes, with what was read ahead and what could not be sent yet.

    In a thread reads and writes wait, as long as the connection's timeouts allow. In the front
    they never do: what cannot be sent is kept for a thread. `ahead` is what was read ahead.
    """

    def __init__(self, sock: socket.socket):
        self.sock, self.ahead, self._unsent = sock, b"", b""
        self._is_tls = hasattr(sock, "pending")
        self._has_own_timeouts = self._is_tls or os.name == "nt"  # Python's, not the kernel's
        self._seconds, self._applied = float(IDLE_SECONDS), 0.0  # of a read; as the kernel has it
        self.waits = True
        self.pace: Optional[Pace] = None  # of the body that is read
        self.continue_due = False  # 100 Continue is sent on the first read of a body

    def wait_from_now(self) -> None:
        """A thread has the connection: send what was kept. Raises Disconnected."""
        self.waits = True
        if not self._has_own_timeouts:
            set_timeout(self.sock, socket.SO_SNDTIMEO, BODY_SECONDS)
        unsent, self._unsent = self._unsent, b""
        if unsent:
            self.send(unsent)

    def timeout(self, seconds: float) -> None:
        """How long the next reads may wait; a write always has BODY_SECONDS."""
        self._seconds = max(seconds, 0.001)

    def _apply_timeout(self) -> None:
        """The kernel's own timeout: Python's would add a poll() to each recv and send [measured].

        Only where it changes, and not for what was read ahead: three calls less for a small PUT.
        """
        if self._has_own_timeouts:
            self.sock.settimeout(self._seconds)
        elif self._seconds != self._applied:
            set_timeout(self.sock, socket.SO_RCVTIMEO, self._seconds)
            self._applied = self._seconds

    @property
    def has_head(self) -> bool:
        """Whether a whole head is read ahead."""
        return b"\r\n\r\n" in self.ahead.lstrip(b"\r\n")

    @property
    def is_settled(self) -> bool:
        """Whether nothing is read ahead and nothing is left to send."""
        return not self.ahead and not self._unsent

    @property
    def owes(self) -> bool:
        """Whether an answer is half sent."""
        return bool(self._unsent)

    def holds(self, size: int) -> bool:
        """Whether that many bytes are read ahead."""
        return len(self.ahead) >= size

    def arrived(self) -> bool:
        """Take what is here without waiting; False at the connection's end.

        Raises BlockingIOError when nothing is, Disconnected.
        """
        try:
            data = self.sock.recv(SMALL, DONTWAIT)
        except BlockingIOError:
            raise
        except OSError as why:
            raise Disconnected(str(why)) from None
        self.ahead += data
        return bool(data)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, b"" at the end. Raises RequestTimeout, Disconnected."""
        if self.continue_due:
            self.send_continue()
        if self.ahead:
            data, self.ahead = self.ahead[:size], self.ahead[size:]
            return data
        return self._receive(size)

    def send_continue(self) -> None:
        self.continue_due = False
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def read_all(self, size: int) -> bytes:
        """As read, but fewer bytes only where no more came in time: fewer and larger pieces."""
        if self.continue_due or self.ahead or self._is_tls or size < KIB:
            return self.read(size)
        return self._receive(size, socket.MSG_WAITALL)

    def _receive(self, size: int, *flags: int) -> bytes:
        try:
            self._apply_timeout()
            data = self.sock.recv(size, *flags)
        except (BlockingIOError, socket.timeout):
            raise S3Error("RequestTimeout") from None
        except OSError as why:
            raise Disconnected(str(why)) from None
        if self.pace and not self.pace.keeps_up(len(data)):
            raise S3Error("RequestTimeout")
        return data

    def give_back(self, data: bytes) -> None:
        """Bytes that belong to the next request."""
        self.ahead = data + self.ahead

    def send(self, data: bytes) -> None:
        """Raises Disconnected."""
        try:
            if self.waits:
                if self._has_own_timeouts:
                    self.sock.settimeout(BODY_SECONDS)
                self.sock.sendall(data)
            else:
                self._send_some(data)
        except OSError as why:
            raise Disconnected(str(why)) from None

    def _send_some(self, data: bytes) -> None:
        sent = 0
        if not self._unsent:
            with contextlib.suppress(BlockingIOError):
                sent = self.sock.send(data, DONTWAIT)
        if sent < len(data):
            self._unsent += data[sent:]

    def shutdown(self, how: int) -> None:
        """End one direction. Under TLS the encryption stays: SSLSocket's own would take it off, and
        an answer on its way would go out in the clear. [ran: Python 3.9-3.13]
        """
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, how)

    def next_head(self) -> bytes:
        """The next request's head with its empty line, if all of it is read ahead; else b"".

        Raises RequestHeaderSectionTooLarge, BadRequest.
        """
        if self.ahead[:1] in (b"\r", b"\n"):
            self.ahead = self.ahead.lstrip(b"\r\n")
        end = self.ahead.find(b"\r\n\r\n")
        if end < 0 and self.ahead[:1] == TLS_HELLO:  # else it would wait for more until we time out
            raise S3Error("BadRequest", "The client speaks TLS, and this is plain http.")
        if end > MAX_HEAD or end < 0 and len(self.ahead) > MAX_HEAD:
            raise S3Error("RequestHeaderSectionTooLarge", MaxSizeAllowed=MAX_HEAD)
        size = end + 4 if end >= 0 else 0
        head, self.ahead = self.ahead[:size], self.ahead[size:]
        return head

    def read_head(self) -> bytes:
        """The next request's head with its empty line, b"" at the connection's end.

        Raises QuietError, RequestHeaderSectionTooLarge, BadRequest, RequestTimeout, Disconnected.
        """
        deadline = 0.0
        while True:
            head = self.next_head()
            if head:
                return head
            if self.ahead:
                deadline = deadline or monotonic() + HEAD_SECONDS
                self.timeout(deadline - monotonic())
                if monotonic() > deadline:
                    raise S3Error("RequestTimeout")
            try:
                data = self._receive(SMALL)
            except S3Error:
                if self.ahead:
                    raise
                raise QuietError from None
            if not data:
                return b""
            self.ahead += data


@functools.lru_cache(64)
def timeval(seconds: float, form: str = "ll") -> bytes:
    """A C struct timeval."""
    return struct.pack(form, int(seconds), int(seconds % 1 * 1_000_000))


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """The kernel's own timeout. Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))
    except OSError:  # EINVAL: a C long has 32 bits, the times have 64  [Debian 13's armhf, OpenWrt]
        sock.setsockopt(socket.SOL_SOCKET, option, timeval(seconds, "qq"))


# Addresses that may be a proxy's: of this machine, of private networks (Docker's too), link-local.
NEAR_PEER = re.compile(  # [RFC 1918, 3927, 4193, 4291, 6598]
    r"unix|::1|f[cd]..:.*|fe[89ab].:.*|(?:::ffff:)?(?:127|10|192\.168|169\.254"
    r"|172\.(?:1[6-9]|2[0-9]|3[01])|100\.(?:6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7]))\..*"
)
# What else a client sends is kept from the log. Some proxies add the port, which is nobody's name.
ADDRESS = re.compile(r"(?:([0-9.]{7,15})|\[([0-9A-Fa-f.:%]{2,64})\])(?::[0-9]{1,5})?"
                     r"|([0-9A-Fa-f.:%]{2,64})")


@functools.lru_cache(1024)
def is_near(peer: str) -> bool:
    return NEAR_PEER.fullmatch(peer) is not None


# What becomes of a connection after its turn: it waits, or a thread has it, or it is closed.
GOES_ON, PARKED, BUSY, ENDED = "goes on", "parked", "busy", "ended"


class Connection:
    """One connection: heads in, answers out, until one side has enough.

    It is parked in the front while nothing comes, has its turns there while answers are quick, and
    a thread while they are not.
    """

    def __init__(self, sock: socket.socket, peer: str, server: Server):
        self.sock, self.peer, self.server = sock, peer, server
        self.stream = Stream(sock)
        self.can_park = DONTWAIT != 0 and server.tls is None
        self.since = 0.0  # parked, monotonic
        self.is_idle, self.was_ended = False, False  # whether it waits for a head, in vain
        self._pending: Optional[Callable[[], bool]] = None  # what a thread is to do first
        self._quick = 0  # quick requests in a row
        self._reply: Optional[Callable[[], None]] = None  # what was found in memory, not sent yet
        self._goes_on = True  # whether there may be another request after this turn
        self._sent = 0  # bytes of the last answer's body that went out

    def encrypt(self, tls: Any) -> None:
        """Raises OSError when there is no agreement on how."""
        self.sock.settimeout(HEAD_SECONDS)
        sock = tls.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock, self.stream = sock, Stream(sock)
        self.is_idle = True  # who says nothing makes room for others, and no stop waits for it
        sock.do_handshake()

    def has_news(self) -> bool:
        """Whether something came on a parked connection that it had no turn for yet."""
        try:
            return bool(self.sock.recv(1, DONTWAIT | socket.MSG_PEEK))
        except OSError:
            return False

    def end_idle(self) -> bool:
        """Wake an idle connection's thread, or front, to its end; whether it was idle."""
        stream = self.stream
        if self.is_idle and (stream.waits or stream.is_settled and not self.has_news()):
            self.was_ended = True
            stream.shutdown(socket.SHUT_RD)
        return self.was_ended

    # A turn in the front has three steps. Each gives GOES_ON or what becomes of the connection.

    def receive(self) -> str:
        """Take what came."""
        try:
            return GOES_ON if self.stream.holds(1) or self.stream.arrived() else ENDED
        except BlockingIOError:
            return PARKED
        except Disconnected:
            return ENDED

    def answer_quickly(self) -> str:
        """Answer one request, if it is all here and its answer is quick."""
        stream, data, head = self.stream, b"", None
        try:
            data = stream.next_head()
            head = parse_head(data) if data else None
        except S3Error:  # a thread refuses it, and lingers
            pass
        if head and self.answer_at_once(head):
            self._goes_on = True
            return GOES_ON
        if head and self.is_quick(head):
            ahead = stream.ahead
            try:
                self._goes_on = self.serve(head)
                return GOES_ON
            except NotQuickError:
                stream.ahead = ahead  # with the body
            except (Disconnected, OSError):
                return ENDED
        stream.give_back(data)
        return BUSY

    def end_turn(self) -> str:
        """Send what was found in memory; a thread goes on where that would take waiting."""
        try:
            self.send_reply()
        except (Disconnected, OSError):
            return ENDED
        if self._pending or not self.stream.is_settled:
            goes_on = self._goes_on
            self._pending = self._pending or (lambda: goes_on)
            return BUSY
        return PARKED if self._goes_on else ENDED

    def answer_at_once(self, head: Head) -> bool:
        """Answer it from memory, if all of it is there. Raises Disconnected, in a thread."""
        server, now, began = self.server, time.time(), time.perf_counter()
        found = server.app.answer_from_memory(head, now, self.address_of(head))
        if not found or server.stopping:
            return False
        self._reply = functools.partial(self.reply, head, found, now, began)
        if self.stream.waits:
            self.send_reply()
        return True

    def send_reply(self) -> None:
        """What was found in memory, if anything was. Raises Disconnected."""
        reply, self._reply = self._reply, None
        if reply:
            reply()

    def reply(self, head: Head, found: Remembered, now: float, began: float) -> None:
        server, request_id = self.server, self.server.next_id()
        sent, code = 0, "Disconnected"
        text = (f"{found.start}x-amz-request-id: {request_id}\r\nx-amz-id-2: {request_id}\r\n"
                f"Date: {render_http_date(int(now))}\r\nServer: s3mini\r\n\r\n")
        try:
            self.stream.send(text.encode("latin-1", "replace") + found.content)
            sent, code = len(found.content), ""
        finally:
            if server.log:
                answer = Answer(Response(200, {"x-amz-request-id": request_id}), head.path, code)
                answer.access_key = found.access_key
                self.log(head, answer, now, began, sent)

    def is_quick(self, head: Head) -> bool:
        """Whether the answer takes neither patience nor, as far as we know, the disk's."""
        size = (head.length or 0) if not head.is_chunked else SMALL + 1
        return self.stream.holds(size) and self.server.app.is_quick(head, size)

    def run(self) -> bool:
        """In a thread: serve while something comes. Whether the front is to have it back.

        Never raises for anything a client does.
        """
        try:
            self.stream.wait_from_now()
            pending, self._pending = self._pending, None
            return pending() and self.serve_on() if pending else self.serve_on()
        except (Disconnected, OSError):
            return False

    def serve_on(self) -> bool:
        self._quick = 0
        try:
            while not self.server.stopping or self.stream.has_head:  # what has come is answered
                self.is_idle = not self.stream.has_head
                self.stream.timeout(LINGER_SECONDS if self.can_park else IDLE_SECONDS)
                if not self.serve_one():
                    return False
        except QuietError:
            return self.can_park
        return False

    def serve_one(self) -> bool:
        """Whether there may be another request. Raises QuietError, Disconnected."""
        stream = self.stream
        try:
            data = stream.read_head()
            self.is_idle = False
            if not data:
                return False
            head = parse_head(data)
            if self.was_ended and head.has_body:  # what comes behind the head cannot be read
                raise S3Error("ServiceUnavailable", "The connection ends here. Please try again.")
        except S3Error as why:
            return self.refuse(why, self.server.next_id())
        self._quick = self._quick + 1 if self.is_quick(head) else 0
        if self._quick > QUICK_IN_ROW and self.can_park and not (
                self.was_ended or self.server.stopping):
            stream.give_back(data)  # the front is better at these
            raise QuietError
        return self.answer_at_once(head) or self.serve(head)

    def serve(self, head: Head) -> bool:
        """Answer a request. Whether there may be another. Raises Disconnected, NotQuickError."""
        stream, request_id = self.stream, self.server.next_id()
        now, began = time.time(), time.perf_counter()
        expected = head.headers.get("expect", "").lower()
        stream.continue_due = "100-continue" in expected and head.minor > 0
        source = open_source(head, stream, stream.give_back)
        has_body = head.has_body
        if has_body and stream.waits:
            stream.timeout(BODY_SECONDS)
            stream.pace = Pace()
        try:
            call = Call(head, source, now, request_id, self.address_of(head))
            answer = self.server.app.answer(call)
        except Disconnected:
            self.log(head, Answer(Response(400), head.path, code="Disconnected"), now, began, 0)
            raise
        except NotQuickError:
            raise
        except Exception:  # noqa: BLE001 a bug: a 500 for the client, the traceback for the log
            import traceback

            answer = Answer(error_response(S3Error("InternalError"), head.path, request_id),
                            head.path, "InternalError", traceback.format_exc())
        body = source if has_body else None
        if stream.waits or is_small(answer.response) and (not has_body or head.keeps_alive):
            return self.finish(head, body, answer, now, began)
        self._pending = functools.partial(self.finish, head, body, answer, now, began)
        return True

    def address_of(self, head: Head) -> str:
        """The client's address for counting failures; "" behind a proxy that is not trusted."""
        if self.server.app.config.trust_proxy:
            forwarded = head.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
            match = ADDRESS.fullmatch(forwarded)
            return match[match.lastindex or 0] if match else self.peer
        return "" if is_near(self.peer) else self.peer

    def finish(
        self, head: Head, source: Optional[Source], answer: Answer, now: float, began: float
    ) -> bool:
        """Send the answer and leave the connection where the next request begins.

        Whether there may be one. The answer's file is closed, whatever happens.
        """
        keep = head.keeps_alive and not self.server.stopping
        keep = keep and (head.minor > 0 or not isinstance(answer.response.body, Iterator))
        self.stream.pace, self._sent = None, 0
        try:
            if source and keep:
                # It may say nothing: others have its place. TLS cannot send where it cannot read.
                self.is_idle = not self.server.stopping and not self.server.tls
                keep = self.drain(source, SMALL) and not self.was_ended
                self.is_idle = False
            if keep and self.stream.continue_due:
                # No body was to come. HTTP lets us leave the 100 out, but botocore then takes the
                # next answer on this connection for its own, waiting a minute    [botocore < 1.44]
                self.stream.send_continue()
            self.send(head, answer.response, keep)
        except Disconnected:
            answer.code = answer.code or "Disconnected"
            raise
        except OSError as why:
            answer.code = error_of_disk(why).code
            answer.troubles.append(trouble_of(why))
            raise
        finally:
            if not isinstance(answer.response.body, bytes):
                answer.response.body.close()
            self.log(head, answer, now, began, self._sent)
        if not keep and (source or self.stream.holds(1)):  # more comes, or has come
            if self.stream.waits:
                return self.linger()
            self._pending = self.linger  # a thread's: the front waits for nobody
        return keep

    def refuse(self, why: S3Error, request_id: str) -> bool:
        """Answer a head that cannot be understood, and close: what follows means nothing."""
        response = error_response(why, "/", request_id)
        response.headers.update({"x-amz-request-id": request_id, "connection": "close"})
        assert isinstance(response.body, bytes)
        sent = 0
        try:
            self.stream.send(self.head_of(response) + response.body)
            sent = len(response.body)
            self.linger()
        finally:
            if self.server.log:
                self.server.log({"time": render_log_time(time.time()), "peer": self.peer,
                                 "key": "-", "method": "-", "target": "-",
                                 "status": response.status, "code": why.code, "bytes": sent,
                                 "ms": 0.0, "id": request_id})
        return False

    def head_of(self, response: Response) -> bytes:
        response.headers["date"] = render_http_date(int(time.time()))
        response.headers["server"] = "s3mini"
        return render_head(response)

    def send(self, head: Head, response: Response, keep: bool) -> None:
        """Raises Disconnected; `_sent` tells then too what went out."""
        body, headers = response.body, response.headers
        if not keep:
            headers["connection"] = "close"
        elif head.minor == 0:
            headers["connection"] = "keep-alive"
        if isinstance(body, bytes):
            if head.method == "HEAD":
                body = b""
            self.stream.send(self.head_of(response) + body)
            self._sent = len(body)
        elif isinstance(body, FileSpan):
            self.send_file(self.head_of(response), body)
        else:
            self.send_pieces(head, response, body)

    def send_file(self, head: bytes, span: FileSpan) -> None:
        """A small file in one write with its head, a large one by the kernel's sendfile."""
        if span.length <= SMALL:
            data = read_at(span.fd, span.length, span.offset) if span.length else b""
            self.stream.send(head + data)
            self._sent = len(data)
            if len(data) < span.length:
                raise OSError(errno.EIO, "the file became shorter")
            return
        self.stream.send(head)
        pace = Pace()
        while (left := span.length - self._sent) > 0:
            done = self.send_span(span.fd, span.offset + self._sent, min(left, 8 * MIB))
            if not done:
                raise OSError(errno.EIO, "the file became shorter")
            self._sent += done
            if not pace.keeps_up(done):
                raise Disconnected("too slow")

    def send_span(self, fd: int, offset: int, size: int) -> int:
        """Raises Disconnected, OSError where the disk cannot read it."""
        if hasattr(os, "sendfile") and not hasattr(self.sock, "pending"):
            try:
                return os.sendfile(self.sock.fileno(), fd, offset, size)
            except OSError as why:
                if why.errno in BAD_DISK:
                    raise
                raise Disconnected(str(why)) from None
        data = read_at(fd, min(size, PIECE), offset)
        self.stream.send(data)
        return len(data)

    def send_pieces(self, head: Head, response: Response, pieces: Iterator[bytes]) -> None:
        """An answer of unknown length: chunked, or up to the connection's end for HTTP/1.0."""
        chunked = head.minor > 0
        if chunked:
            response.headers["transfer-encoding"] = "chunked"
        front = self.head_of(response)
        for piece in pieces:
            self.stream.send(front + (b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece))
            self._sent, front = self._sent + len(piece), b""
        if chunked:
            self.stream.send(b"0\r\n\r\n")

    def drain(self, source: Source, limit: int) -> bool:
        """Read what is left of a body, if that is little. Whether its end was reached."""
        if self.stream.continue_due:
            return False  # the client waits for a word before it sends, and may not send at all
        deadline, left = monotonic() + DRAIN_SECONDS, getattr(source, "left", limit)
        if left > limit:
            return False
        try:
            for _ in range(limit if source is self.stream else DRAIN_READS):  # a chunk is a byte
                remaining = deadline - monotonic()
                if limit <= 0 or remaining <= 0:
                    break
                if self.stream.waits:
                    self.stream.timeout(remaining)
                data = source.read(min(limit, PIECE))
                if not data:
                    return True
                limit -= len(data)
        except S3Error:
            pass
        return False

    def linger(self) -> bool:
        """Read on a while before closing: a reset would eat the answers on their way."""
        self.stream.continue_due = False
        self.is_idle = not self.server.stopping  # it has its answer: others may have its place
        with contextlib.suppress(OSError, Disconnected):
            self.stream.shutdown(socket.SHUT_WR)
            self.drain(self.stream, DRAIN_BYTES)
        return False

    def log(self, head: Head, answer: Answer, now: float, began: float, sent: int) -> None:
        """A line for the operator; README.md tells what stands in it."""
        if answer.troubles:
            warn("; ".join(dict.fromkeys(answer.troubles)))
        if not self.server.log:
            return
        target = f"{head.path}?{head.query_text}" if head.query_text else head.path
        self.server.log({
            "time": render_log_time(now), "peer": self.address_of(head) or self.peer,
            "key": answer.access_key.encode("ascii", "replace").decode()[:128] or "-",
            "method": head.method[:20], "target": cut(hide_secrets(target)),
            "status": answer.response.status,
            "code": answer.response.code or answer.code or "-", "bytes": sent,
            "ms": round((time.perf_counter() - began) * 1000, 1),
            "id": answer.response.headers.get("x-amz-request-id", "-")})


def is_small(response: Response) -> bool:
    """Whether the answer goes out in one piece."""
    body = response.body
    return isinstance(body, bytes) or isinstance(body, FileSpan) and body.length <= SMALL


# As URLs have them, and however else: escaped, more than once too, or as JSON writes = [Gson].
SIGNED_PAIR = re.compile("([?&](?:X-Amz-(?:Signature|Credential)|Signature|AWSAccessKeyId)=)[^&]*")
EQUAL_SIGN = re.compile(r"(?i)=|%(?:25)*3d|(?:\\|%(?:25)*5c)u003d")
SECRETS = re.compile(r"(?:signature|x-amz-security-token|x-amz-credential|awsaccesskeyid)[\W_]*?"
                     rf"(?:{EQUAL_SIGN.pattern[4:]})(?!\.\.\.(?:&|$))")


def cut(text: str) -> str:
    """What stands in the log of a long text: a pipe takes 4 KiB at once, not lines beyond that."""
    is_short = len(text) <= MAX_LOGGED or len(json.dumps(text)) <= 6 * MAX_LOGGED
    return text if is_short else text[:MAX_LOGGED] + "..."


def render_log_time(seconds: float) -> str:
    """ "1994-11-06T08:49:37.042Z": S3's own times have no milliseconds, a log needs them."""
    return f"{render_iso_date(int(seconds))[:-4]}{int(seconds % 1 * 1000):03}Z"


def hide_secrets(target: str) -> str:
    """The target without signatures, however their names are written: %53ignature is one too.

    Where a URL was escaped twice, or copied with its &amp;, what did not open it may be live yet.
    """
    if "?" in target:  # fast path: most have no other
        target = SIGNED_PAIR.sub(r"\1...", target)
    return re.sub("[^?&]+", hide_secret, target) if has_secret(target) else target


def has_secret(text: str) -> bool:
    return ("=" in text or "%" in text or "\\" in text) and bool(
        SECRETS.search(unquote(text).lower()))


def hide_secret(match: re.Match[str]) -> str:
    if not has_secret(match[0]):
        return match[0]
    name, *values = EQUAL_SIGN.split(match[0], 1)
    return f"{name if values else ''}=..."


def text_log(fields: Mapping[str, object]) -> None:
    texts = [str(value) for value in fields.values()]
    line = " ".join(texts)
    if not line.isprintable() or line.count(" ") >= len(texts):  # else 3 us a line are saved
        line = " ".join([NOT_LOGGED.sub(lambda m: f"\\x{ord(m[0]):02x}", t) for t in texts])
    write_line(line.encode("ascii", "backslashreplace"))


# A client chooses much of what is logged: no value of it is two fields, two lines or a colour.
NOT_LOGGED = re.compile(r"[\x00- \x7f]")


def json_log(fields: Mapping[str, object]) -> None:
    write_line(json.dumps(fields).encode())


def write_line(line: bytes, fd: int = 2) -> None:
    """One write for a line: the lines of several workers do not mix.

    Never raises: where the log's disk is full, or its reader gone, the server goes on.
    """
    with contextlib.suppress(OSError):
        os.write(fd, line + b"\n")


def say(text: str, fd: int = 2) -> None:
    """A word to the operator, of one line or more. All that a running server says comes this way:
    Python's own files raise, and keep what they could not write for the next time.
    """
    write_line(text.rstrip("\n").encode("utf-8", "backslashreplace"), fd)


def warn(why: object) -> None:
    """The same of what a running server does not like; commands write to standard error."""
    say(f"s3mini: {why}")


LOGS: dict[str, Optional[Callable[[Mapping[str, object]], None]]] = {
    "text": text_log, "json": json_log, "none": None,
}


class Loads:
    """How many connections each worker has, in memory that all of them see.

    Who has more than another, by a quarter, leaves new ones to it for AHEAD_SECONDS. Without that
    one worker now and then took all 16 that came at once: 9,000 GETs a second instead of 14,700.
    """

    def __init__(self, count: int):
        import mmap

        self._counts = memoryview(mmap.mmap(-1, 8 * count)).cast("q")
        self.slot = 0  # this worker's

    def update(self, count: int) -> None:
        self._counts[self.slot] = count

    @property
    def is_ahead(self) -> bool:
        least = min(self._counts)
        return self._counts[self.slot] > least + least // 4


SO_NOSIGPIPE = 0x1022  # of macOS, which Python has no name for           [sys/socket.h]


class Server(http.server.ThreadingHTTPServer):
    """Connections of one process that came to one address, and not more than there may be at all.

    One thread, the front, accepts them and waits for all that are idle. What is answered from
    memory in one piece it answers itself, everything else has a thread for as long as it lasts.
    Were there a thread for each connection, they would fight for Python's lock at every system
    call: a GET of 1 KiB took 100 us of the processor with one connection, 200 with 16.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, app: App, listener: socket.socket):
        super().__init__(("", 0), http.server.BaseHTTPRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.app = listener, app
        self.log = LOGS[app.config.log]
        self.tls = tls_context(app.config)
        self.stopping, self.stop_seconds = False, float(STOP_SECONDS)
        self.is_alone = False  # no other process is to accept from the listener
        self._run, self._requests = secrets.token_hex(4).upper(), itertools.count(1)
        self.life: Optional[socket.socket] = None  # readable when the master is gone
        self.loads: Optional[Loads] = None  # where there are several workers
        self.siblings: list[Server] = [self]  # of the process: one for each address
        self._says_at = 0.0  # monotonic; from then on why connections are refused
        self._accepts_at = 0.0  # monotonic; later than now while others are to have new connections
        self.connections: set[Connection] = set()
        self._parked: dict[Connection, None] = {}  # the front's; the longest idle first
        self._returned: deque[Connection] = deque()  # threads give them back to the front
        self._ended = threading.Condition()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        # A signal writes to it: its Python handler runs only once the selector has returned, which
        # a signal just before the system call would not make it do.
        self.wake_fd = self._wake_in.fileno()
        self._is_woken = False
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)

    def run(self) -> None:
        """The front: until stop() is called; then let the requests in flight finish."""
        TURNS.in_front = True
        register = functools.partial(self._selector.register, events=selectors.EVENT_READ)
        register(self.socket, data=self.accept_some)
        register(self._wake_out, data=self.take_back)
        if self.life:
            register(self.life, data=self.stop)
        while not self.stopping:
            came: list[Connection] = []
            for key, _ in self._selector.select(self.seconds_to_wait()):
                if isinstance(key.data, Connection):
                    came.append(key.data)
                else:
                    key.data()
            self.give_turns(came)
            self.end_old()
            if self._accepts_at and monotonic() >= self._accepts_at:
                register(self.socket, data=self.accept_anyway)
                self._accepts_at = 0.0
        if not self._accepts_at:
            self._selector.unregister(self.socket)
        if self.is_alone:
            with contextlib.suppress(OSError):  # a process forked from ours may hold it
                self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()  # new clients are refused at once, not reset at the end
        self.finish()

    def next_id(self) -> str:
        """A request id: this process, and a number. It is no secret."""
        return f"{self._run}{next(self._requests):08X}"

    # -- the front -------------------------------------------------------------------------------

    def accept_some(self) -> None:
        """Somebody wants to connect: whoever has the fewest connections is to have more."""
        if self.is_ahead:
            self._selector.unregister(self.socket)
            self._accepts_at = monotonic() + AHEAD_SECONDS
        else:
            self.accept_now()

    def accept_anyway(self) -> None:
        """Others had their time."""
        self._selector.modify(self.socket, selectors.EVENT_READ, self.accept_some)
        self.accept_now()

    def accept_now(self) -> None:
        """Accept one, and more while this worker is not ahead: the rest is for the others.

        Were it one in each round, the last of 128 would wait a quarter of a second.
        """
        for number in range(ACCEPTS_IN_ROW):
            try:
                self.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return  # another worker was faster, or there are no more
            except OSError as why:
                if why.errno in (errno.EBADF, errno.ENOTSOCK, errno.EINVAL):
                    raise  # there is nothing to accept from
                if why.errno not in (*EXHAUSTED, errno.ENOBUFS):  # the network's, or a firewall's
                    warn(f"a connection was lost: {why}")
                    time.sleep(0.01)  # should it come again at once
                    return
                # No descriptor is left. Linux says so also where nobody waits: only for the first
                # of a turn somebody surely does, and an idle connection has to make room.
                if not number and not self.close_idle():
                    time.sleep(0.05)  # those in use come back
                return
            if self.is_ahead or self.load >= self.app.config.max_connections:
                return  # the next may cost an idle one its place: not one of this turn

    @property
    def is_ahead(self) -> bool:
        return self.loads is not None and self.loads.is_ahead

    @property
    def load(self) -> int:
        """How many connections the process has."""
        return sum(len(server.connections) for server in self.siblings)

    def accept(self) -> None:
        """Raises OSError when none waits, or no descriptor is left."""
        sock, address = self.get_request()
        try:
            sock.setblocking(True)
            if sock.family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.is_alone and sys.platform == "darwin":  # see serve_alone
                sock.setsockopt(socket.SOL_SOCKET, SO_NOSIGPIPE, 1)
        except OSError:  # the client has reset it already [macOS]
            sock.close()
            return
        if self.load >= self.app.config.max_connections and not self.close_idle():
            self.say_refused(f"max_connections = {self.app.config.max_connections}")
            self.turn_away(sock)
            return
        peer = address[0] if isinstance(address, tuple) and address else "unix"
        connection = Connection(sock, peer, self)
        self.connections.add(connection)
        if self.loads:
            self.loads.update(self.load)
        if connection.can_park:
            self.park(connection)
        else:
            self.start_thread(connection)

    def park(self, connection: Connection) -> None:
        connection.stream.waits, connection.is_idle = False, True
        connection.since = monotonic()
        try:
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        except OSError:  # the kernel watches no more of them
            self.close(connection)
            return
        self._parked[connection] = None

    def give_turns(self, connections: list[Connection]) -> None:
        """Something came, or has come, on parked connections.

        Fast path: several are received from, then all answered, then all sent to. While it does
        one of these the processor has the code for it at hand: 16 connections get 1.2 x as much.
        """
        for first in range(0, len(connections), ABREAST):
            abreast = connections[first : first + ABREAST]
            for step in (Connection.receive, Connection.answer_quickly, Connection.end_turn):
                abreast = self.take_step(abreast, step)

    def take_step(
        self, connections: list[Connection], step: Callable[[Connection], str]
    ) -> list[Connection]:
        """Gives those that go on with their turns."""
        going = []
        for connection in connections:
            if connection not in self._parked:
                continue  # closed by what was done just before
            try:
                state = step(connection)
            except Exception:  # noqa: BLE001 a bug: it ends this connection, not the front
                import traceback

                warn(traceback.format_exc())
                state = ENDED
            if state == GOES_ON:
                going.append(connection)
            else:
                self.after_turn(connection, state)
        return going

    def after_turn(self, connection: Connection, state: str) -> None:
        del self._parked[connection]
        if state == PARKED:
            connection.since = monotonic()
            self._parked[connection] = None  # at the end: it was idle for the shortest time
            return
        self._selector.unregister(connection.sock)
        if state == BUSY:
            self.start_thread(connection)
        else:
            self.close(connection)

    def take_back(self) -> None:
        """Park what threads are done with; a request may be there already."""
        self._wake_out.recv(KIB)
        self._is_woken = False  # before the queue is looked at: who comes now wakes us again
        back = []
        while self._returned:
            back.append(self._returned.popleft())
            self.park(back[-1])
        self.give_turns(back)

    def seconds_to_wait(self) -> Optional[float]:
        """Until the connection that is idle for the longest time has to end; None: for ever."""
        first = next(iter(self._parked), None)
        until = first.since + IDLE_SECONDS if first else 0.0
        until = self._accepts_at or until  # the sooner of the two
        return max(0.0, until - monotonic()) if until else None

    def end_old(self) -> None:
        limit = monotonic() - IDLE_SECONDS
        while (first := next(iter(self._parked), None)) and first.since < limit:
            self.close_parked(first)

    def close_parked(self, connection: Connection) -> None:
        del self._parked[connection]
        self._selector.unregister(connection.sock)
        self.close(connection)

    def close_idle(self) -> bool:
        """End the connection that was idle for the longest time; whether there was one."""
        parked = [list(server._parked) for server in self.siblings]  # each in this order already
        in_threads = (c for server in self.siblings for c in list(server.connections)
                      if c.stream.waits)
        by_age = heapq.merge(*parked, key=lambda connection: connection.since)
        for connection in itertools.chain(by_age, in_threads):
            if not connection.was_ended and connection.end_idle():
                if connection in self._parked:  # else it is another thread's, which is told
                    self.close_parked(connection)
                return True
        return False

    def say_refused(self, why: object) -> None:
        """A connection that is refused has no line in the log: the reason has one, now and then."""
        if monotonic() >= self._says_at:
            self._says_at = monotonic() + REFUSAL_SECONDS
            warn(f"connections are refused: {why}")

    def turn_away(self, sock: socket.socket) -> None:
        if self.tls:  # who is to encrypt it would take threads that there are not
            sock.close()
            return
        response = error_response(S3Error("ServiceUnavailable"), "/", "-")
        response.headers.update({"connection": "close", "retry-after": "1"})
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            assert isinstance(response.body, bytes)
            sock.send(render_head(response) + response.body)
        sock.close()

    # -- threads ---------------------------------------------------------------------------------

    def start_thread(self, connection: Connection) -> None:
        connection.is_idle = False  # until its thread says so
        try:
            self.process_request(connection.sock, connection)
        except RuntimeError as why:  # no thread to be had
            self.say_refused(why)
            if not connection.stream.owes:  # else it would be taken for the rest of that answer
                self.turn_away(connection.sock)
            self.close(connection)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A connection, in a thread of its own, until it ends or is idle.

        `client_address` is the Connection: what ThreadingMixIn hands on of process_request's.
        """
        connection: Connection = client_address
        goes_on = False
        try:
            if self.tls:
                connection.encrypt(self.tls)
            goes_on = connection.run()
        except OSError:  # a TLS handshake that failed
            pass
        finally:
            if goes_on and not self.stopping:
                self._returned.append(connection)
                self.wake()
            else:
                self.close(connection)

    def close(self, connection: Connection) -> None:
        if self.is_alone:  # a process forked from ours may hold it, and its end would not be seen
            connection.stream.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # what is reset by the other side
            connection.sock.close()
        with self._ended:
            self.connections.discard(connection)
            self._ended.notify_all()
        if self.loads:
            self.loads.update(self.load)

    def wake(self) -> None:
        """Make the front look at what was given back."""
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(OSError):
                self._wake_in.send(b"x")

    # -- the end ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make run() return. Safe in a signal handler and in another thread."""
        self.stopping = True
        with contextlib.suppress(OSError):
            self._wake_in.send(b"x")

    def finish(self) -> None:
        """Close what is idle, wait for what is not; STOP_SECONDS in all."""
        self.stopping = True
        deadline = monotonic() + self.stop_seconds
        while self._returned:
            self.park(self._returned.popleft())
        self.give_turns(list(self._parked))  # the last: what has come is answered
        for connection in list(self._parked):
            self.close_parked(connection)
        while self.connections and monotonic() < deadline:
            while self._returned:
                self.close(self._returned.popleft())
            for connection in list(self.connections):
                connection.end_idle()
            with self._ended:
                self._ended.wait(0.1)
        for connection in list(self.connections):  # who is too slow
            connection.stream.shutdown(socket.SHUT_RDWR)
        deadline = monotonic() + 1
        while self.connections and monotonic() < deadline:
            with self._ended:
                self._ended.wait(0.1)

    def server_close(self) -> None:
        """Give everything back. Not before the last signal: it writes to what wakes the front."""
        super().server_close()
        self._selector.close()
        for sock in (self._wake_in, self._wake_out):
            sock.close()


def tls_context(config: Config) -> Any:
    """Raises ConfigError."""
    if not config.tls_cert:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None)
    except (OSError, ssl.SSLError) as why:
        raise config.tls_mistake(why) from None
    return context


def open_listeners(addresses: tuple[str, ...]) -> list[socket.socket]:
    """Listening sockets; systemd's, when it passes some. Raises ConfigError."""
    told = os.environ.get("LISTEN_FDS", "")
    passed = int(told) if re.fullmatch("[0-9]{1,3}", told) else 0
    if passed and os.environ.get("LISTEN_PID", str(os.getpid())) == str(os.getpid()):
        return [socket.socket(fileno=3 + n) for n in range(passed)]
    return [open_listener(address) for address in addresses]


def open_listener(address: str) -> socket.socket:
    """Raises ConfigError."""
    try:
        if address.startswith("unix:"):
            return listen_unix(address[5:])
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(BACKLOG)
        return sock
    except OSError as why:
        causes = {errno.EADDRINUSE: " (another server's? [::] takes IPv4 too)",
                  errno.EACCES: " (this user may not)"}
        raise ConfigError(f"cannot listen on {address}: {why.strerror or why}"
                          f"{causes.get(why.errno or 0, '')}; give another: listen in buckets.ini, "
                          "or --listen") from None


def listen_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        sock.connect(path)
        raise OSError(errno.EADDRINUSE, "somebody answers there")
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    sock.close()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o660)
    sock.listen(BACKLOG)
    return sock


def url_of(sock: socket.socket, tls: bool) -> str:
    address = sock.getsockname()
    if not isinstance(address, tuple):
        return f"unix:{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http{'s' if tls else ''}://{host}:{address[1]}"


ENDS = (signal.SIGTERM, signal.SIGINT)


def run_servers(
    config: Config, listeners: list[socket.socket], life: Optional[socket.socket] = None,
    loads: Optional[Loads] = None,
) -> None:
    """Serve in this process until SIGTERM, SIGINT, or the end of the master behind `life`."""
    app = App(config, Disk(config.durability == "disk"))
    servers = [Server(app, listener) for listener in listeners]
    for server in servers:
        server.siblings, server.life, server.loads = servers, life, loads
    if loads:
        loads.update(0)  # the slot's last worker may have died with some

    def stop(*_: object) -> None:
        for server in servers:
            server.stop()

    for number in ENDS:
        signal.signal(number, stop)
    signal.set_wakeup_fd(servers[0].wake_fd, warn_on_full_buffer=False)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
    threads = [threading.Thread(target=server.run) for server in servers[1:]]
    for thread in threads:
        thread.start()
    servers[0].run()
    stop()
    for thread in threads:
        thread.join()


def notify_systemd(state: str) -> None:
    """Tell systemd, where it runs us, what we are about. [sd_notify(3)]"""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(state.encode())


def tidy(config: Config) -> None:
    """What no request does: old uploads and dead temp files of every bucket.

    Never raises an OSError: a data folder that is away for a while ends no server.
    """
    try:
        troubles = Buckets(config, Disk(config.durability == "disk")).clean(TIDY_SECONDS)
    except OSError as why:
        troubles = [f"cannot look for unfinished uploads: {why}"]
    for trouble in troubles:
        warn(trouble)


class Master:
    """The process that owns the sockets: starts workers, restarts one that dies, ends them.

    Workers share nothing but the disk, the listening sockets and a number each: how many
    connections they have. Each holds one end of `life`: when the master is killed they read its end
    there, finish and leave.
    """

    def __init__(self, config: Config, listeners: list[socket.socket], count: int):
        self.config, self.listeners = config, listeners
        self.count, self.loads = count, Loads(count)
        self.workers: dict[int, tuple[int, float]] = {}  # pid -> (slot, when it was started)
        self.stopping = False
        self._tidier = 0  # the pid of the process that tidies, if one does
        self._wake_out, self._wake_in = socket.socketpair()
        self._life_worker, self._life = socket.socketpair()

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for sock in (self._wake_out, self._wake_in):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._wake_in.fileno())
        for number in ENDS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        next_tidy = monotonic() + TIDY_SECONDS
        while not self.stopping:
            for slot in set(range(self.count)) - {slot for slot, _ in self.workers.values()}:
                self._start(slot)
            self._wait(TIDY_SECONDS if len(self.workers) == self.count else 1)
            if monotonic() > next_tidy:
                self._tidy()
                next_tidy = monotonic() + TIDY_SECONDS
        self._finish()

    def _tidy(self) -> None:
        """In a child, one at a time: it may take long, and no signal or worker waits for it."""
        self._tidier = self._tidier or self._fork(self._tidy_here)

    def _tidy_here(self) -> None:
        for sock in self.listeners:
            sock.close()
        for number in ENDS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        tidy(self.config)

    def _finish(self) -> None:
        for sock in self.listeners:
            sock.close()
        deadline = monotonic() + STOP_SECONDS + 5
        self._signal(signal.SIGTERM)
        if self._tidier:
            os.kill(self._tidier, signal.SIGTERM)  # it is ours until it is waited for
        while self.workers and monotonic() < deadline:
            self._wait(1)
        self._signal(signal.SIGKILL)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _signal(self, number: int) -> None:
        for pid in list(self.workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _start(self, slot: int) -> None:
        pid = self._fork(functools.partial(self._work, slot))
        if pid:
            self.workers[pid] = slot, monotonic()

    def _work(self, slot: int) -> None:
        self.loads.slot = slot
        run_servers(self.config, self.listeners, self._life_worker, self.loads)

    def _fork(self, work: Callable[[], None]) -> int:
        """The pid of a child that does it, 0 where none can be had. Signals wait until it has its
        own handlers.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        try:
            pid = os.fork()
        except OSError as why:  # no memory or no processes: there may be a moment later
            warn(f"cannot start a process: {why.strerror}; trying again")
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
            return 0
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
            return pid
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._life.close()
            work()
            status = 0
        except BaseException:  # noqa: BLE001 a forked child must never return from here
            import traceback

            warn(traceback.format_exc())
        finally:
            os._exit(status)

    def _wait(self, seconds: float) -> None:
        """Until a signal comes, or that long; then collect the workers that ended."""
        select.select([self._wake_out], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(64):
                pass
        if self._tidier and os.waitpid(self._tidier, os.WNOHANG)[0]:
            self._tidier = 0
        for pid in list(self.workers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                _, began = self.workers.pop(pid)
                if not self.stopping:
                    warn(f"worker {pid} ended; starting another")
                    time.sleep(1 if monotonic() - began < 1 else 0)


# ==================================================================================================
# 13. Commands
# ==================================================================================================

FIRST_INI = """\
# s3mini's buckets: one section each. `python3 s3mini.py config --example` shows every option.
[SERVER]
listen = 127.0.0.1:9000
data = s3mini-data

[media]
access_key = {access_key}
secret_key = {secret_key}
# Anyone may GET and HEAD, and nobody list or write, with this:
#public = read
"""

SETTINGS = """
Django (django-storages[s3]), in settings.py:
    STORAGES = {{
        "default": {{"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": {{
            "endpoint_url": "{url}", "bucket_name": "{bucket}",
            "access_key": "{access_key}", "secret_key": "{secret_key}"}}}},
        "staticfiles": {{"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}},
    }}

boto3:
    s3 = boto3.client("s3", endpoint_url="{url}",
        aws_access_key_id="{access_key}", aws_secret_access_key="{secret_key}",
        region_name="us-east-1")

awscli:
    export AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY={secret_key}
    export AWS_ENDPOINT_URL={url} AWS_DEFAULT_REGION=us-east-1
    aws s3 cp photo.jpg s3://{bucket}/
"""

DEV_KEYS = {"access_key": "s3mini", "secret_key": "s3mini-secret"}
DEV_INI = """\
[SERVER]
listen = {listen}
durability = none
workers = 1
min_free = 0
[DEFAULT]
access_key = {access_key}
secret_key = {secret_key}
cors = *
acl = yes
[*]
"""


def write_first_ini(path: str) -> None:
    """A private buckets.ini with fresh keys. Raises ConfigError."""
    text = FIRST_INI.format(access_key=secrets.token_hex(10).upper(),
                            secret_key=secrets.token_hex(20))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as why:
        raise ConfigError(
            f"cannot write {path}: {why.strerror}; run me in a folder of yours"
        ) from None
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)


def settings(access_key: str, secret_key: str, bucket: str) -> str:
    """What to paste into a client's configuration; {url} is still to be filled in."""
    return SETTINGS.format(url="{url}", bucket=bucket, access_key=access_key, secret_key=secret_key)


def warn_of_readers(path: str) -> None:
    """Say so when others can read the secrets; and not so that the server is locked out."""
    with contextlib.suppress(OSError):
        info = os.stat(path)
        if os.name != "nt" and stat.S_ISREG(info.st_mode) and info.st_mode & 0o004:
            is_own = 0 != os.geteuid() == info.st_uid
            first = "" if is_own else "let the server's user own it, then "
            warn(f"everybody can read {path}, and its keys; {first}chmod 640 {path}")


def warn_of_settings(config: Config) -> None:
    """Say what an operator would not want, and may not see."""
    for section in config.sections:
        if section.secret_key.startswith("change-me"):
            warn(f"[{section.name}] has the example's secret_key; write one of your own")
    if config.unused:
        warn(f"data in [SERVER] is {config.unused}, and not used: --data {config.data} counts")
    try:
        check_user(config.data)
    except ConfigError as why:
        warn(why)
    except OSError:
        pass  # there is no such folder yet


def raise_limit() -> None:
    """Let each connection have its socket and a file or two open: a shell allows 1024 in all."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (OPEN_FILES, 10240):  # macOS takes no more than the second
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def check_file_names() -> None:
    """Raises ConfigError where Python would write a key's name in another coding."""
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8":
        raise ConfigError("file names must be UTF-8 here; set PYTHONUTF8=1 or LANG=C.UTF-8")


def run(config: Config, greeting: str = "") -> int:
    """Serve until told to end. Raises ConfigError."""
    warn_of_settings(config)
    raise_limit()
    check_file_names()
    tls = tls_context(config) is not None
    listeners = open_listeners(config.listen)
    if hasattr(signal, "pthread_sigmask"):  # until the handlers are there, signals wait
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        troubles = Buckets(config, Disk(config.durability == "disk")).prepare()
    except (OSError, S3Error) as why:
        raise ConfigError(f"cannot use the data folder {config.data}: {why}{advice_on(why)}"
                          ) from None
    for trouble in troubles:
        warn(trouble)
    for sock in listeners:
        say(f"s3mini: listening on {url_of(sock, tls)}", 1)
    if greeting:
        say(greeting.replace("{url}", url_of(listeners[0], tls)), 1)
    notify_systemd(f"READY=1\nSTATUS=serving {', '.join(url_of(s, tls) for s in listeners)}")
    count = worker_count(config)
    if count > 1:
        Master(config, listeners, count).run()
    else:
        threading.Thread(target=tidy_for_ever, args=(config,), daemon=True).start()
        run_servers(config, listeners)
    notify_systemd("STOPPING=1")
    return 0


def worker_count(config: Config) -> int:
    """Processes that serve; one where there is no fork and flock, as on Windows."""
    if not HAS_FLOCK or not hasattr(os, "fork"):
        return 1
    cores = getattr(os, "sched_getaffinity", None)  # not macOS
    return config.workers or (len(cores(0)) if cores else os.cpu_count() or 1)


def tidy_for_ever(config: Config) -> None:
    while True:
        time.sleep(TIDY_SECONDS)
        tidy(config)


def chosen_config(options: Any) -> Config:
    """What the file says, with --listen and --data over it. Raises ConfigError."""
    config = load_config(options.config, options.data)
    return config._replace(listen=told_listen(options.listen)) if options.listen else config


def told_listen(text: str) -> tuple[str, ...]:
    """What the command line says. Raises ConfigError."""
    try:
        return parse_listen(text)
    except ValueError as why:
        raise ConfigError(f"--listen: {why}") from None


def command_serve(options: Any) -> int:
    """Serve the buckets of a configuration file."""
    warn_of_readers(options.config)
    return run(chosen_config(options))


def command_first(options: Any) -> int:
    """Without a command: write buckets.ini if there is none, then serve it and say how."""
    fresh = not os.path.exists(options.config)
    if fresh:
        write_first_ini(options.config)
    warn_of_readers(options.config)
    config = load_config(options.config)
    section = next((s for s in config.sections if s.access_key), None)
    greeting = f"Keys:    {os.path.abspath(options.config)}{' (new)' if fresh else ''}\n"
    greeting += f"Objects: {config.data}\n"
    has_url = not config.listen[0].startswith("unix:")
    if section and has_url and (fresh or sys.stdout.isatty()):
        greeting += settings(section.access_key, section.secret_key, section.pattern)
    return run(config, greeting)


def command_dev(options: Any) -> int:
    """Serve a throw-away folder with well-known keys, open CORS and ACLs that are obeyed."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="s3mini-") as folder:
        config = dev_config(options.listen or "127.0.0.1:9000", options.data or folder)
        make_dev_buckets(config, options.buckets or ["media"])
        greeting = f"Objects: {config.data}{'' if options.data else ' (removed at the end)'}\n"
        greeting += settings(bucket=(options.buckets or ["media"])[0], **DEV_KEYS)
        return run(config, greeting)


def dev_config(listen: str, data: str) -> Config:
    """Raises ConfigError."""
    told_listen(listen)
    text = DEV_INI.format(listen=listen, **DEV_KEYS)
    return IniReader(text, "the command line", data, os.path.abspath(data)).read()


def make_dev_buckets(config: Config, names: list[str]) -> None:
    """Raises ConfigError."""
    buckets = Buckets(config, Disk(False))
    try:
        os.makedirs(config.data, exist_ok=True)
    except OSError as why:
        raise ConfigError(f"cannot use the data folder {config.data}: {why.strerror}") from None
    for name in names:
        if not is_bucket_name(name):
            raise ConfigError(f"{name!r} is not a bucket name: 3 to 63 of a-z 0-9 . -")
        try:
            buckets.create(name, DEV_KEYS["access_key"])
        except S3Error as why:
            raise ConfigError(f"{name!r}: {why}") from None


def chosen_buckets(config: Config, bucket: str, troubles: list[str]) -> Iterator[tuple[str, Store]]:
    """The buckets that a command is about: the one named, or all. Raises ConfigError.

    `troubles` gets a sentence of each that cannot be looked at: the others have their turn.
    """
    check_file_names()
    buckets = Buckets(config, Disk(config.durability == "disk"))
    try:
        names = [bucket] if bucket else buckets.names()
    except OSError as why:
        advice = (whose(config.data) if isinstance(why, PermissionError) else
                  "--data names another")
        raise ConfigError(f"cannot use the data folder {config.data}: {why.strerror}; {advice}"
                          ) from None
    if not names:
        sys.stderr.write(f"s3mini: no bucket is in {config.data}; --data names another folder\n")
    for name in names:
        try:
            store = buckets.open(name)
            is_there = store.about.read() is not None
        except S3Error:
            if not bucket:
                continue  # it was deleted just now
            raise ConfigError(f"there is no bucket {name!r} in buckets.ini or {config.data}; "
                              "--config or --data names another") from None
        except PermissionError:
            is_there = True  # whoever uses it says so
        except OSError as why:
            troubles.append(f"the bucket {name!r} cannot be looked at: {why}")
            continue
        if is_there:
            try:
                check_user(store.room)
            except (ConfigError, OSError) as why:
                troubles.append(str(why))
            else:
                yield name, store
        elif store.about.is_declared:
            troubles.append(f"the bucket {name!r} is not there: {store.room}/bucket.json is not; "
                            "mount its disk, name the data folder with --data, or restart the "
                            "server, which makes it")


T = TypeVar("T")


def until_it_fails(name: str, store: Store, items: Iterable[T], troubles: list[str]) -> Iterator[T]:
    """What a bucket gives, until its disk fails, or it is deleted: the others have their turn."""
    try:
        yield from items
    except (OSError, S3Error) as why:
        if store.about.is_declared or os.path.lexists(store.room):
            troubles.append(f"the bucket {name!r} cannot be looked at: {why}")


def told(troubles: list[str]) -> bool:
    """Whether there were any; they are on standard error then."""
    sys.stderr.writelines(f"s3mini: {trouble}\n" for trouble in troubles)
    return bool(troubles)


def check_user(path: str) -> None:
    """Raises ConfigError for root, where the server is another: it could not read root's files."""
    if not hasattr(os, "geteuid") or os.geteuid() or not os.stat(path).st_uid:
        return
    name = user_name(os.stat(path).st_uid)
    raise ConfigError(f"{path} is {name}'s: a server of that user could not read what root writes "
                      f"there; run this as that user, with `sudo -u {name}` before it")


class Meter:
    """What has been looked at, and a line of it on a terminal twice a second."""

    def __init__(self, total: int):
        self.files = self.bytes = 0
        self.total, self.began, self._shown = total, monotonic(), 0.0
        self.on_terminal = sys.stderr.isatty()

    def add(self, files: int, size: int) -> None:
        self.files, self.bytes = self.files + files, self.bytes + size
        now = monotonic()
        if self.on_terminal and now - self._shown > 0.5:
            self._shown = now
            sys.stderr.write(f"\r{self.line(now)}\033[K")

    def line(self, now: float) -> str:
        share = min(1.0, self.bytes / self.total) if self.total else 1.0
        rate = self.bytes / max(now - self.began, 0.001)
        left = (self.total - self.bytes) / rate if rate and share < 1 else 0
        bar = "#" * round(share * 20)
        return (f"[{bar:20}] {share:4.0%}  {self.files} files  {rate / MIB:.0f} MiB/s  "
                f"{int(left) // 60}:{int(left) % 60:02} left")

    def close(self) -> None:
        if self.on_terminal:
            sys.stderr.write("\r\033[K")


def command_check(options: Any) -> int:
    """Look for what does not fit on the disk.

    Exit code 1: something is left; 2: a mistake, or a bucket that cannot be looked at.
    """
    found, left, files = 0, 0, 0
    troubles: list[str] = []
    config = load_config(options.config, options.data, to_serve=False)
    for name, store in chosen_buckets(config, options.bucket, troubles):
        meter = Meter(0)
        findings = findings_in(store, options, meter, config.is_written(name))
        for finding in until_it_fails(name, store, findings, troubles):
            found, left = found + 1, left + (not finding.mended)
            meter.close()
            print_finding(name, finding, options.json)
        meter.close()
        files += meter.files
    if options.json:
        print(json.dumps({"files": files, "found": found, "left": left, "failed": len(troubles)}))
    else:
        print(f"{files} files, {found} findings" + (f", {left} left" if found != left else ""))
    return 2 if told(troubles) else 1 if left else 0


def findings_in(store: Store, options: Any, meter: Meter, is_written: bool) -> Iterator[Finding]:
    """Raises OSError, S3Error."""
    meter.total = store.held() if options.deep else 0
    yield from Inspector(store, options.deep, options.repair, meter.add, is_written).run()


def print_finding(bucket: str, finding: Finding, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"bucket": bucket, **finding._asdict()}))
        return
    name, detail = on_terminal(finding.name), on_terminal(finding.detail)
    state = "mended" if finding.mended else FINDINGS[finding.kind]
    print(f"{finding.kind}: {bucket}/{name}: {detail}{'; ' if detail else ''}{state}")


def on_terminal(text: str) -> str:
    """A name a client chose: nothing in it moves the cursor, sets a title or cannot be shown."""
    text = "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])
    coding = sys.stdout.encoding or "utf-8"
    return text.encode(coding, "backslashreplace").decode(coding)


def command_manifest(options: Any) -> int:
    """Print a file for md5sum -c or sha256sum -c, to be run in the data folder or its copy."""
    code = 0
    if hasattr(sys.stdout, "reconfigure"):  # names as the disk has them, whatever a terminal takes
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")

    def tell(why: OSError) -> None:
        nonlocal code
        if os.path.basename(str(why.filename)) != LOST_AND_FOUND:
            code = 1
            sys.stderr.write(f"s3mini: {why}\n")

    troubles: list[str] = []
    config = load_config(options.config, options.data, to_serve=False)
    for name, store in chosen_buckets(config, options.bucket, troubles):
        deque(os.walk(store.root, onerror=tell), 0)  # a listing leaves those out
        is_elsewhere = not store.root.startswith(os.path.join(config.data, ""))
        above, front = (store.root, name) if is_elsewhere else (config.data, "")
        found = digests(store, options.sha256, tell)
        for digest, path in until_it_fails(name, store, found, troubles):
            print(manifest_line(digest, os.path.join(front, os.path.relpath(path, above))))
    return 2 if told(troubles) else code


def digests(
    store: Store, sha256: bool, tell: Callable[[OSError], None]
) -> Iterator[tuple[str, str]]:
    """(digest, path) of a bucket's objects; `tell` gets what hides one of them. Raises OSError."""
    for item in store.scan("", Cursor()):
        entry = store.peek(item)
        if entry:
            path = os.path.join(item.folder.path, item.name)
            known, algorithm = ("", hashlib.sha256) if sha256 else (entry.md5, new_md5)
            try:
                yield known or hash_path(path, algorithm), path
            except FileNotFoundError:
                pass  # it was deleted meanwhile
            except OSError as why:
                tell(why)


def hash_path(path: str, algorithm: Callable[[], Any]) -> str:
    with open(path, "rb") as file:
        total = algorithm()
        while data := file.read(MIB):
            total.update(data)
        return str(total.hexdigest())


def manifest_line(digest: str, path: str) -> str:
    """As GNU's md5sum writes it: a line break or backslash in a name is escaped, and marked."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{digest}  {escaped}"


def command_undelete(options: Any) -> int:
    """Bring back what was replaced or deleted (keep = 7d); exit code 1 if something stays away."""
    try:
        since = time.time() - parse_duration(options.since)
    except ValueError as why:
        raise ConfigError(f"--since: {why}") from None
    count = failed = 0
    troubles: list[str] = []
    config = load_config(options.config, options.data, to_serve=False)
    for name, store in chosen_buckets(config, options.bucket, troubles):
        if not store.versions.keep:
            raise ConfigError(f"[{name}] keeps nothing; keep = 7d in buckets.ini would")
        for path in store.versions.unknown(since):
            failed += 1
            sys.stderr.write(f"s3mini: {path}.json cannot be read: its key does not come back, or "
                             "not as it was first\n")
        for version in store.versions.lost(options.prefix, since):
            shown, beside = f"{name}/{on_terminal(version.key)}", ""
            try:
                if store.is_in_place(version):
                    continue
                with contextlib.suppress(S3Error):
                    beside = f", for the {store.head(version.key).size} bytes that are there now"
                if options.dry_run:
                    version.check()
                else:
                    store.bring_back(version)
            except (OSError, S3Error) as why:
                failed += 1
                sys.stderr.write(f"s3mini: {shown} does not come back: {why}\n")
                continue
            count += 1
            went = render_iso_date(int(version.gone))
            print(f"{shown}  {version.entry.size} bytes, went {went}{beside}")
    print(f"{count} {'could be brought back' if options.dry_run else 'brought back'}")
    return 2 if told(troubles) else 1 if failed else 0


def render_example() -> str:
    """buckets.ini.example: every option with its default and what it is for."""
    lines = ["# buckets.ini for s3mini. Every option is here with its default, commented out where",
             "# the default is good. Times: 15s 30m 12h 7d. Sizes: 500M 5G. Lists: blanks between.",
             "# A comment has a line of its own.",
             "# `python3 s3mini.py config` checks a file; a mistake is one sentence with its line."]
    for scope, title, why in EXAMPLE_SECTIONS:
        lines += ["", f"[{title}]"] + [f"# {line}" for line in why.splitlines()]
        for option in OPTIONS if scope else ():
            if option.scope == scope and option.name != "path":
                lines += [f"# {option.help}", f"#{option.name} = {option.default}".rstrip()]
        lines += EXAMPLE_VALUES.get(title, "").splitlines()
    return "\n".join(lines) + "\n"


EXAMPLE_SECTIONS = (
    ("server", "SERVER", "The server itself. Upper case, so it can never be a bucket."),
    ("bucket", "DEFAULT", "Defaults for all buckets: every option of theirs but path."),
    ("", "media", "A bucket, its key, and its public images."),
    ("", "media:ci", "One more key for that bucket: it has these three options and no other."),
    ("", "test-*", "Buckets of these names may be made and deleted through the API with this key;"
     "\neach belongs to the key that made it. [*] matches every name."),
    ("", "test-*:alt", "A second key for the pattern; it sees only the buckets it made itself."),
)
EXAMPLE_VALUES = {
    "media": "access_key = MEDIAKEY\nsecret_key = change-me-1\npublic = images/ css/\n"
             "# a folder of its own, if it is not DATA/media: served in place; must exist\n"
             "#path = /srv/media",
    "media:ci": "access_key = CIKEY\nsecret_key = change-me-2\nmode = read",
    "test-*": "access_key = TESTKEY\nsecret_key = change-me-3",
    "test-*:alt": "access_key = ALTKEY\nsecret_key = change-me-4",
}


def command_config(options: Any) -> int:
    """Check the configuration file and say what it declares; --example prints one."""
    if options.example:
        sys.stdout.write(render_example())
        return 0
    warn_of_readers(options.config)
    config = load_config(options.config)
    tls_context(config)
    for s in config.sections:
        shown = "all" if s.public == ("",) else " ".join(s.public) or "nothing"
        shown = "" if ":" in s.name else f", public: {shown}"  # that is its bucket's
        print(f"[{s.name}] key {s.access_key or '-'} ({s.mode}){shown}")
    print(f"{on_terminal(options.config)} is good; sections: {len(config.sections)}")
    return 0


def parse_arguments(argv: list[str]) -> Any:
    import argparse

    parser = argparse.ArgumentParser(prog="s3mini.py", description="S3 in one Python file.")
    parser.add_argument("--version", action="version", version=f"s3mini {__version__}")
    parser.set_defaults(run=command_first, usage=parser, config="buckets.ini", listen="", data="")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(run=function, usage=command)
        if name != "dev":
            command.add_argument("--config", default="buckets.ini", help="default: buckets.ini")
        if name in ("serve", "dev"):
            command.add_argument("--listen", default="", help="HOST:PORT, [::]:PORT or unix:/PATH")
        if name != "config":
            command.add_argument("--data", default="", help="the data folder")
        if name in ("check", "manifest", "undelete"):
            needed, which = (None, "its name") if name == "undelete" else ("?", "default: all")
            command.add_argument("bucket", nargs=needed, metavar="BUCKET", help=which)
        for flag, help_text in FLAGS.get(name, {}).items():
            command.add_argument(flag, action="store_true", help=help_text)
        if name == "undelete":
            command.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="of keys")
            command.add_argument("--since", default="1h", help="30m, 2d; default: 1h")
        if name == "config":
            command.add_argument("--example", action="store_true", help="print buckets.ini.example")
        if name == "dev":
            command.add_argument("buckets", nargs="*", metavar="BUCKET", help="default: media")
    options, unknown = parser.parse_known_args(argv)
    if unknown:  # argparse would show what the program takes, not what the command does
        options.usage.error(f"not known here: {' '.join(unknown)}")
    return options


FLAGS = {
    "check": {"--deep": "compare every byte with its MD5 and checksums",
              "--repair": "mend what can be mended without losing anything",
              "--json": "a line of JSON for each finding, and one at the end"},
    "manifest": {"--sha256": "SHA-256, computed now, instead of the MD5 that is known"},
    "undelete": {"--dry-run": "only say what would be done"},
}
COMMANDS: dict[str, Callable[[Any], int]] = {
    "serve": command_serve, "dev": command_dev, "config": command_config,
    "check": command_check, "manifest": command_manifest, "undelete": command_undelete,
}


def open_standard() -> None:
    """Open what was closed by who started us (2>&-): else the number 2 is that of a socket or a
    sidecar of ours, and the log is written into it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def main(argv: Optional[list[str]] = None) -> int:
    """The command line: 0 when all went well, 2 for a mistake of the operator's."""
    open_standard()
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read it has enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing at the exit either
        return 141
    except ConfigError as why:
        sys.stderr.write(f"s3mini: {why}\n")
        return 2
    except OSError as why:
        is_refused = isinstance(why, PermissionError) and isinstance(why.filename, str)
        sys.stderr.write(f"s3mini: {why}{'; ' + whose(why.filename) if is_refused else ''}\n")
        return 2
    except KeyboardInterrupt:
        return 130


# ==================================================================================================
# 14. Fake
# ==================================================================================================


def serve_alone(server: Server) -> None:
    """Until it is stopped. A program under test may have SIGPIPE end it, as command lines do: not
    where a client of ours leaves. The threads of requests are this one's, and have its mask; on
    macOS the signal is the whole process's, and each socket is told to send none.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGPIPE,))
    server.run()


def end_own(server: Server, front: threading.Thread, folder: str, pid: int) -> None:
    """The end of a fake, but not at that of a process that was forked from its own."""
    if os.getpid() != pid:
        return
    if front is threading.current_thread():  # the garbage collector runs in any
        threading.Thread(target=end_own, args=(server, front, folder, pid)).start()
        return
    try:
        server.stop()
        front.join(FAKE_SECONDS + 2)  # this thread may hold a lock for which the front waits
        if not front.is_alive():
            server.server_close()
    finally:  # also at Ctrl-C: this runs once
        if folder:
            remove_tree(folder)


class Fake:
    """A server in this process for tests: `with s3mini.start("media") as s3: s3.endpoint`.

    It ends with stop(), where nobody holds it any more, and with the process.
    """

    def __init__(self, buckets: tuple[str, ...], data: str):
        """Raises ConfigError, OSError."""
        import tempfile

        check_file_names()
        # Where a test goes to another folder afterwards, this is still ours.
        self.data = os.path.abspath(data) if data else tempfile.mkdtemp(prefix="s3mini-")
        folder = "" if data else self.data
        with on_error(remove_tree, folder):
            config = dev_config("127.0.0.1:0", self.data)
            make_dev_buckets(config, list(buckets))
            listener = open_listener(config.listen[0])
            self.endpoint = url_of(listener, False)
            self.access_key, self.secret_key = DEV_KEYS["access_key"], DEV_KEYS["secret_key"]
            self._server = Server(App(config._replace(log="none"), Disk(False)), listener)
            self._server.stop_seconds = FAKE_SECONDS  # a test may not have read all of a body
            self._server.is_alone = True
            self._front = threading.Thread(target=serve_alone, args=(self._server,), daemon=True)
            self._front.start()
        # Also where nobody stops it.
        self._end = weakref.finalize(self, end_own, self._server, self._front, folder, os.getpid())

    def stop(self) -> None:
        """In a process that was forked from its own: nothing."""
        self._end()
        if self._front is not threading.current_thread():  # the garbage collector runs in any
            self._front.join(FAKE_SECONDS + 2)  # where another thread stops it

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(*buckets: str, data: Union[str, os.PathLike[str]] = "") -> Fake:
    """Start a fake with these buckets; its objects lie in `data`, or in a folder of its own.

    Raises ConfigError, OSError.
    """
    return Fake(buckets or ("media",), os.fspath(data))


if __name__ == "__main__":
    sys.exit(main())
