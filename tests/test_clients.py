"""Real clients, as people install and run them. What they say is not believed: the bytes are
compared with the file on disk, which is an ordinary file at the key's own path.

CLIENTS is the table: first every client does what all of them can (put, multipart, get, size, list,
delete); then comes what only some do. Python and JavaScript libraries are driven by
client_drivers.py and client_drivers.mjs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Union
from urllib.parse import quote

import pytest
import rooms
from conftest import Server
from nginx import Nginx
from signing_client import Client

pytestmark = pytest.mark.clients

HERE = Path(__file__).resolve().parent
AWS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret-0123456789abcdef"}
MIB = 1024**2
SMALL = b"a small file\n"
LARGE = random.Random(1).randbytes(12 * MIB + 7)  # more than any client here puts into one PUT
KEY = "photos/caf\u00e9 no. 1+2 (new).txt"  # with what has to be escaped in a URL
LARGE_KEY = "photos/large.bin"
TIMEOUT = 120  # seconds for one run of one client

RCLONE = (
    "[s3]\ntype = s3\nprovider = Other\naccess_key_id = {key_id}\nsecret_access_key = {secret}\n"
    "endpoint = {endpoint}\nupload_cutoff = 5Mi\nchunk_size = 5Mi\n"
)
S3CMD = (
    "[default]\naccess_key = {key_id}\nsecret_key = {secret}\nhost_base = {address}\n"
    "host_bucket = {address}\nuse_https = False\nmultipart_chunk_size_mb = 5\n"
)


class Shell(NamedTuple):
    """A client with a command line: a command for each verb."""

    room: str  # a Python room; "": the system's
    put: str
    get: str
    size: str
    list: str
    delete: str


class Driver(NamedTuple):
    """A client that is a library: the name that a driver script knows it by."""

    room: str  # a Python room, or "npm"
    name: str


ARGUMENTS = {  # verb -> what it takes; the drivers have these as methods
    "put": ("file", "key"),
    "get": ("key", "file"),
    "size": ("key",),
    "list": ("prefix",),
    "delete": ("key",),
}
S3API = "aws s3api --output text"
# curl before 8.0 leaves out the header that S3 wants besides the signature.
CURL = (
    "curl -sSf --aws-sigv4 aws:amz:us-east-1:s3 -u {key_id}:{secret}"
    " -H x-amz-content-sha256:UNSIGNED-PAYLOAD"
)
CLIENTS: dict[str, Union[Shell, Driver]] = {
    "boto3": Driver("tests", "boto3"),
    "boto3-1.34": Driver("boto3-old", "boto3-old"),
    "boto3-crt": Driver("crt", "crt"),
    "aioboto3": Driver("aio", "aioboto3"),
    "minio-py": Driver("tools", "minio"),
    "s3fs": Driver("fsspec", "s3fs"),
    "smart_open": Driver("tools", "smart_open"),
    "pyarrow": Driver("arrow", "pyarrow"),
    "obstore": Driver("arrow", "obstore"),
    "javascript-v3": Driver("npm", "sdk"),
    "s3mini-npm": Driver("npm", "mini"),
    "awscli": Shell(
        room="awscli",
        put="aws s3 cp --no-progress {file} s3://{bucket}/{key}",
        get="aws s3 cp --no-progress s3://{bucket}/{key} {file}",
        size=S3API + " head-object --bucket {bucket} --key {key} --query ContentLength",
        list=S3API + " list-objects-v2 --bucket {bucket} --prefix {prefix} --query Contents[].Key",
        delete="aws s3 rm s3://{bucket}/{key}",
    ),
    "rclone": Shell(
        room="tools",
        put="rclone copyto {file} s3:{bucket}/{key}",
        get="rclone copyto s3:{bucket}/{key} {file}",
        size="rclone lsf --format s s3:{bucket}/{key}",
        list="rclone lsf -R --files-only s3:{bucket} --include {prefix}**",
        delete="rclone deletefile s3:{bucket}/{key}",
    ),
    "s3cmd": Shell(
        room="tools",
        put="s3cmd --no-progress put {file} s3://{bucket}/{key}",
        get="s3cmd --no-progress get s3://{bucket}/{key} {file}",
        size="s3cmd info s3://{bucket}/{key}",
        list="s3cmd ls -r s3://{bucket}/{prefix}",
        delete="s3cmd del s3://{bucket}/{key}",
    ),
    "curl": Shell(
        room="",
        put=CURL + " -T {file} {endpoint}/{bucket}/{url_key}",
        get=CURL + " -o {file} {endpoint}/{bucket}/{url_key}",
        size=CURL + " -I {endpoint}/{bucket}/{url_key}",
        list=CURL + " {endpoint}/{bucket}?list-type=2&prefix={prefix}",
        delete=CURL + " -X DELETE {endpoint}/{bucket}/{url_key}",
    ),
}
SINGLE_PUT = {"curl"}  # those that never send parts
BEHIND_TLS = ("boto3", "boto3-1.34", "awscli", "rclone", "javascript-v3")


@dataclasses.dataclass
class Bench:
    """One bucket as a client reaches it, over plain HTTP or through nginx, and as it is on disk."""

    server: Server
    bucket: str
    endpoint: str
    cafile: str  # "": plain HTTP
    folder: Path  # where the clients run

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.home.mkdir(exist_ok=True)
        key, secret = AWS.values()
        names = {"key_id": key, "secret": secret, "endpoint": self.endpoint, "bucket": self.bucket}
        self.names = {**names, "address": self.endpoint.partition("//")[2]}
        (self.home / "rclone.conf").write_text(RCLONE.format(**self.names))
        (self.home / "s3cfg").write_text(S3CMD.format(**self.names))

    def do(self, client: str, *steps: tuple[Any, ...]) -> list[Any]:
        """Run the steps, each a verb and its arguments; gives what each of them said."""
        how = CLIENTS[client]
        if isinstance(how, Driver):
            return self.drive(how, *steps)
        said = []
        for verb, *arguments in steps:
            names = {name: str(value) for name, value in zip(ARGUMENTS[verb], arguments)}
            names["url_key"] = quote(names.get("key", ""))
            said.append(self.shell(how.room, getattr(how, verb), **names))
        return said

    def drive(self, how: Driver, *steps: tuple[Any, ...]) -> list[Any]:
        """Run the steps of a library, all in one process."""
        if how.room == "npm":
            command = [rooms.program("node"), self._node_script()]
        else:
            command = [str(rooms.room(how.room) / "python"), str(HERE / "client_drivers.py")]
        said = self.run([*command, how.name, json.dumps(steps, default=str)])
        results: list[Any] = json.loads(said.splitlines()[-1])
        return results

    def shell(self, room: str, command: str, **names: str) -> str:
        """Run one command, whose {names} are filled in after it was split at the spaces."""
        words = [word.format(**self.names, **names) for word in command.split()]
        program = str(rooms.room(room) / words[0]) if room else rooms.program(words[0])
        return self.run([program, *words[1:]])

    def run(self, command: list[str]) -> str:
        """Run a program to its good end; gives its standard output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(command[0]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        told = f"$ {' '.join(command)}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{told}\nserver's log:\n{self.server.log[-5000:]}"
        return done.stdout

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def on_disk(self, key: str) -> Path:
        return self.server.data / self.bucket / key

    @property
    def keys(self) -> list[str]:
        """What lies in the bucket's folder, without our own files."""
        top = self.server.data / self.bucket
        found = (path.relative_to(top) for path in top.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if ".s3mini" not in str(path))

    @property
    def client(self) -> Client:
        return self.server.client("test-key", bucket=self.bucket)

    def _node_script(self) -> str:
        """A copy of our script beside the modules: an import looks no further."""
        script = self.home / "client_drivers.mjs"
        if not script.exists():
            (self.home / "node_modules").symlink_to(rooms.node_room() / "node_modules")
            shutil.copy(HERE / script.name, script)
        return str(script)

    def _environment(self, program: str) -> dict[str, str]:
        """Nothing of ours but the PATH: this machine's own settings must not help or hinder."""
        path = f"{Path(program).parent}:{os.environ.get('PATH', os.defpath)}"
        given = {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", **AWS}
        given |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}
        given |= {"AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
        given |= {"AWS_MAX_ATTEMPTS": "1"}  # a second attempt would hide what went wrong
        given |= {"S3_ENDPOINT": self.endpoint, "S3_BUCKET": self.bucket}
        given |= {"RCLONE_CONFIG": f"{self.home}/rclone.conf", "S3CMD_CONFIG": f"{self.home}/s3cfg"}
        given |= {"RESTIC_PASSWORD": "restic"}
        if self.cafile:
            names = ("AWS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "RCLONE_CA_CERT")
            given |= dict.fromkeys(names, self.cafile)
        return given


@pytest.fixture
def bench(server: Server, bucket: str, tmp_path: Path) -> Bench:
    return Bench(server, bucket, server.endpoint, "", tmp_path)


@pytest.fixture
def tls_bench(bench: Bench, tls: Nginx) -> Bench:
    """The same bucket through nginx, as most servers are reached."""
    return dataclasses.replace(bench, endpoint=tls.endpoint, cafile=tls.cafile)


# ----------------------------------------------------------------- what all of them can do


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_stores_lists_fetches_and_deletes(client: str, bench: Bench) -> None:
    check_the_verbs(client, bench)


@pytest.mark.parametrize("client", BEHIND_TLS)
def test_a_client_does_the_same_through_nginx(client: str, tls_bench: Bench) -> None:
    check_the_verbs(client, tls_bench)


def check_the_verbs(client: str, bench: Bench) -> None:
    small, large = bench.file("small", SMALL), bench.file("large", LARGE)
    back, large_back = bench.folder / "small back", bench.folder / "large back"

    bench.do(client, ("put", small, KEY), ("put", large, LARGE_KEY))
    assert bench.on_disk(KEY).read_bytes() == SMALL
    assert bench.on_disk(LARGE_KEY).read_bytes() == LARGE
    assert ("-" in bench.client.head(LARGE_KEY).etag) == (client not in SINGLE_PUT)

    size, listed, *_ = bench.do(
        client,
        ("size", LARGE_KEY),
        ("list", "photos"),
        ("get", KEY, back),
        ("get", LARGE_KEY, large_back),
    )
    assert str(len(LARGE)) in str(size)
    assert KEY in listed
    assert LARGE_KEY in listed
    assert back.read_bytes() == SMALL
    assert large_back.read_bytes() == LARGE

    bench.do(client, ("delete", KEY), ("delete", LARGE_KEY))
    assert not bench.on_disk(KEY).exists()
    assert not bench.on_disk(LARGE_KEY).exists()


# ------------------------------------------------------------------------- boto3 and its kin


@pytest.mark.parametrize("client", ["boto3", "boto3-1.34"])
def test_boto3_copies_by_parts_and_deletes_many(client: str, bench: Bench) -> None:
    bench.do(client, ("put", bench.file("large", LARGE), "large"), ("copy", "large", "copies/1"))
    assert bench.on_disk("copies/1").read_bytes() == LARGE

    deleted = bench.do(client, ("delete_all", "copies/"))
    assert [1] == deleted
    assert ["large"] == bench.keys


@pytest.mark.parametrize("client", ["boto3", "boto3-1.34"])
def test_after_an_empty_file_boto3_reads_the_next_answer(client: str, bench: Bench) -> None:
    """botocore up to 1.43, and awscli by it, wait a minute for the answer to the second PUT.

    Once an Expect: 100-continue was answered by the final response, without a 100, it misreads the
    next one on that connection. [botocore 1.43: AWSConnection.request] (2026-11)
    """
    empty, small = bench.file("empty", b""), bench.file("small", SMALL)
    bench.do(client, ("put", empty, "a"), ("put", small, "b"), ("put", empty, "c"))

    assert ["a", "b", "c"] == bench.keys


def test_a_url_presigned_by_boto3_as_it_comes_opens(bench: Bench) -> None:
    """Without a setting boto3 still signs URLs with version 2."""
    (_, url) = bench.do("boto3", ("put", bench.file("small", SMALL), KEY), ("presign", KEY))

    assert "Signature=" in url
    assert bench.client.fetch(url).body == SMALL


@pytest.mark.parametrize("algorithm", ["CRC32C", "CRC64NVME"])
def test_boto3_with_awscrt_has_the_checksums_of_its_c_library(
    algorithm: str, bench: Bench
) -> None:
    step = ("put_with", algorithm, bench.file("large", LARGE), "k")
    (checksum,) = bench.do("boto3-crt", step)

    reply = bench.client.head("k", {"x-amz-checksum-mode": "ENABLED"})
    assert reply.headers[f"x-amz-checksum-{algorithm.lower()}"] == checksum
    assert bench.on_disk("k").read_bytes() == LARGE


# ---------------------------------------------------------------------------- command lines


def tree(bench: Bench) -> dict[str, bytes]:
    """Some files in the folder "tree"; one is empty, one is large."""
    files = {"a.txt": b"a", "empty": b"", "sub/b c.txt": b"b c", "sub/deep/large": LARGE}
    for name, content in files.items():
        bench.file(f"tree/{name}", content)
    return files


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".s3mini" not in str(path)
    }


def test_awscli_syncs_both_ways(bench: Bench) -> None:
    files = tree(bench)
    for name in files:  # LastModified has whole seconds: a file made in the same one is sent twice
        os.utime(bench.folder / "tree" / name, (0, 1_700_000_000))
    bench.shell("awscli", "aws s3 sync --no-progress tree s3://{bucket}/site")
    assert files_in(bench.on_disk("site")) == files

    (bench.folder / "tree/a.txt").unlink()
    said = bench.shell("awscli", "aws s3 sync --no-progress --delete tree s3://{bucket}/site")
    assert f"delete: s3://{bench.bucket}/site/a.txt" in said
    assert len(said.splitlines()) == 1  # nothing was sent twice
    assert not bench.on_disk("site/a.txt").exists()

    bench.shell("awscli", "aws s3 sync --no-progress s3://{bucket}/site back")
    assert files_in(bench.folder / "back") == files_in(bench.folder / "tree")


def test_awscli_moves_and_removes(bench: Bench) -> None:
    bench.file("large", LARGE)
    bench.shell("awscli", "aws s3 mv --no-progress large s3://{bucket}/one")
    assert not (bench.folder / "large").exists()

    bench.shell("awscli", "aws s3 mv --no-progress s3://{bucket}/one s3://{bucket}/d/two")
    assert ["d/two"] == bench.keys
    assert bench.on_disk("d/two").read_bytes() == LARGE

    bench.shell("awscli", "aws s3 rm --recursive s3://{bucket}/d")
    assert [] == bench.keys


def test_metadata_of_any_name_come_through_nginx(tls: Nginx, bucket: str) -> None:
    """nginx calls names with _ and . invalid, and left to itself drops them."""
    s3 = tls.client(AWS["AWS_ACCESS_KEY_ID"], AWS["AWS_SECRET_ACCESS_KEY"], bucket)
    metadata = {"x-amz-meta-user_id": "7", "x-amz-meta-a.b": "8"}

    assert 200 == s3.put("k", b"x", metadata).status
    assert metadata.items() <= s3.head("k").headers.items()


def test_awscli_presigns(tls_bench: Bench) -> None:
    tls_bench.client.put(KEY, SMALL)
    url = tls_bench.shell("awscli", "aws s3 presign s3://{bucket}/{key}", key=KEY).strip()

    assert tls_bench.shell("", "curl -sSf --cacert {ca} {url}", ca=tls_bench.cafile, url=url) == (
        SMALL.decode()
    )


def test_awscli_s3api_keeps_metadata(bench: Bench) -> None:
    bench.file("small", SMALL)
    words = "put-object --bucket {bucket} --key k --body small --content-type text/x-mine"
    bench.shell("awscli", f"{S3API} {words} --metadata colour=blue --cache-control max-age=60")

    said = bench.shell("awscli", "aws s3api head-object --bucket {bucket} --key k")
    head = json.loads(said)
    assert head["ContentType"] == "text/x-mine"
    assert head["CacheControl"] == "max-age=60"
    assert head["Metadata"] == {"colour": "blue"}
    assert head["ContentLength"] == len(SMALL)


def test_awscli_lists_the_buckets_of_its_key(bench: Bench) -> None:
    said = bench.shell("awscli", "aws s3 ls")

    assert bench.bucket in said
    assert "media" not in said


def test_rclone_copies_syncs_checks_and_purges(bench: Bench) -> None:
    files = tree(bench)
    bench.shell("tools", "rclone copy tree s3:{bucket}/site")
    assert files_in(bench.on_disk("site")) == files
    bench.shell("tools", "rclone check --download tree s3:{bucket}/site")
    bench.shell("tools", "rclone check tree s3:{bucket}/site")

    (bench.folder / "tree/a.txt").unlink()
    bench.file("tree/empty", b"no longer")
    bench.shell("tools", "rclone sync tree s3:{bucket}/site")
    assert files_in(bench.on_disk("site")) == files_in(bench.folder / "tree")

    bench.shell("tools", "rclone copyto s3:{bucket}/site/sub s3:{bucket}/copy")  # CopyObject
    assert files_in(bench.on_disk("copy")) == files_in(bench.folder / "tree/sub")

    bench.shell("tools", "rclone purge s3:{bucket}/site")
    assert ["copy/b c.txt", "copy/deep/large"] == bench.keys
    bench.shell("tools", "rclone purge s3:{bucket}")
    assert bench.client.head().status == 404


def test_s3cmd_syncs_signs_and_copies(bench: Bench) -> None:
    files = tree(bench)
    bench.shell("tools", "s3cmd --no-progress sync tree/ s3://{bucket}/site/")
    assert files_in(bench.on_disk("site")) == files
    bench.shell("tools", "s3cmd cp s3://{bucket}/site/a.txt s3://{bucket}/copy.txt")
    assert bench.on_disk("copy.txt").read_bytes() == b"a"

    url = bench.shell("tools", "s3cmd signurl s3://{bucket}/copy.txt +60").strip()
    assert bench.client.fetch(url).body == b"a"

    bench.shell("tools", "s3cmd del --recursive s3://{bucket}/site/")
    assert ["copy.txt"] == bench.keys


def test_restic_backs_up_checks_restores_and_prunes(bench: Bench) -> None:
    files = tree(bench)
    restic = "restic --no-cache -r s3:{endpoint}/{bucket}/backups "
    bench.shell("", restic + "init")
    bench.shell("", restic + "backup tree")
    bench.file("tree/a.txt", b"changed")
    bench.shell("", restic + "backup tree")
    bench.shell("", restic + "check --read-data")

    bench.shell("", restic + "restore latest --target back")
    assert files_in(bench.folder / "back/tree") == {**files, "a.txt": b"changed"}

    bench.shell("", restic + "forget --keep-last 1 --prune")
    bench.shell("", restic + "check")
    snapshots = json.loads(bench.shell("", restic + "snapshots --json"))
    assert len(snapshots) == 1
    assert not any("locks/" in key for key in bench.keys)


# -------------------------------------------------------------------------- Python libraries


def test_minio_py_composes_tags_and_presigns(bench: Bench) -> None:
    _, _, tags, url = bench.do(
        "minio-py",
        ("put", bench.file("large", LARGE), "large"),
        ("compose", "twice", "large", "large"),
        ("tag", "twice", "colour", "deep blue"),
        ("presign", "twice"),
    )

    assert bench.on_disk("twice").read_bytes() == LARGE * 2
    assert tags == {"colour": "deep blue"}
    assert bench.client.fetch(url).body == LARGE * 2


def test_s3fs_creates_once_and_moves(bench: Bench) -> None:
    first, second, _ = bench.do(
        "s3fs", ("create", "a", "first"), ("create", "a", "second"), ("move", "a", "d/b")
    )

    assert (first, second) == (True, False)
    assert ["d/b"] == bench.keys
    assert bench.on_disk("d/b").read_bytes() == b"first"


def test_smart_open_seeks(bench: Bench) -> None:
    large = bench.file("large", LARGE)
    _, piece = bench.do("smart_open", ("put", large, "large"), ("slice", "large", 7 * MIB, 20))

    assert bytes.fromhex(piece) == LARGE[7 * MIB : 7 * MIB + 20]


def test_pyarrow_writes_and_reads_a_table(bench: Bench) -> None:
    (total,) = bench.do("pyarrow", ("table", "tables/numbers"))

    assert total == sum(range(1000))
    assert 3 == sum(key.endswith(".parquet") for key in bench.keys)


def test_two_obstore_writers_lose_no_update(bench: Bench) -> None:
    created = bench.do("obstore", ("create", "counter", "0"), ("create", "counter", "7"))
    assert [True, False] == created

    at_once(lambda _: bench.do("obstore", ("count_up", "counter", 50)))
    assert bench.on_disk("counter").read_bytes() == b"100"


def test_two_delta_writers_lose_no_row(bench: Bench) -> None:
    delta = Driver("arrow", "deltalake")
    bench.drive(delta, ("append", "table", 0, 1))

    at_once(lambda number: bench.drive(delta, ("append", "table", 100 * number, 10)))
    (numbers,) = bench.drive(delta, ("numbers", "table"))
    assert numbers == [0, *range(100, 110), *range(200, 210)]


def at_once(work: Any) -> None:
    """Call work(1) and work(2) at the same time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (1, 2)))


# ------------------------------------------------------------------------------- JavaScript


@pytest.mark.parametrize("bench_name", ["bench", "tls_bench"])
def test_javascript_v3_streams_copies_and_presigns(
    bench_name: str, request: pytest.FixtureRequest
) -> None:
    bench: Bench = request.getfixturevalue(bench_name)
    said = bench.do(
        "javascript-v3",
        ("stream", bench.file("large", LARGE), "streamed"),
        ("putPresigned", KEY, "presigned"),
        ("getPresigned", KEY),
        ("copy", KEY, "copy"),
    )

    assert [None, 200, "presigned", None] == said
    assert bench.on_disk("streamed").read_bytes() == LARGE
    assert bench.on_disk(KEY).read_bytes() == b"presigned"
    assert bench.on_disk("copy").read_bytes() == b"presigned"


def test_the_npm_client_of_our_name_moves_and_deletes(bench: Bench) -> None:
    small = bench.file("small", SMALL)
    etag = bench.client.put("a", SMALL).etag
    said = bench.do(
        "s3mini-npm",
        ("moveIfChanged", "a", "unmoved", etag),
        ("moveIfChanged", "a", "moved", "0" * 32),
        ("put", small, KEY),
        ("deleteAll", ["moved", KEY]),
    )

    assert said[-1] == 2
    assert [] == bench.keys
