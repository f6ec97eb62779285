"""The fake runs where Linux's calls are missing: what Windows and macOS lack is taken away here.

It is no Windows: names, sharing and links differ there. It shows that no call is made unguarded.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import s3mini

ROOT = Path(__file__).resolve().parent.parent

LACKING = {
    "macOS": ["sendfile", "copy_file_range", "sched_getaffinity"],
    "Windows": [
        "fork", "sendfile", "copy_file_range", "pread", "statvfs", "fchmod", "sched_getaffinity",
        "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC",
    ],
}  # fmt: skip

PROGRAM = """
import os, signal, sys
names, system = sys.argv[1].split(","), sys.argv[2]
for name in names:
    if hasattr(os, name):
        delattr(os, name)
if system == "Windows":
    sys.modules["fcntl"] = None
    os.supports_dir_fd.clear()
    os.supports_fd.clear()
    del signal.SIGCHLD, signal.pthread_sigmask
import boto3, s3mini
with s3mini.start("media") as s3:
    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1",
                          aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key)
    for key in ("a", "a/b", "x//y"):
        client.put_object(Bucket="media", Key=key, Body=key.encode() * 30_000)
        client.put_object(Bucket="media", Key=key, Body=key.encode() * 50_000)
        assert client.get_object(Bucket="media", Key=key)["Body"].read() == key.encode() * 50_000
    client.copy_object(Bucket="media", Key="c", CopySource="media/a")
    listed = [o["Key"] for o in client.list_objects_v2(Bucket="media")["Contents"]]
    assert listed == ["a", "a/b", "c", "x//y"], listed
    upload = client.create_multipart_upload(Bucket="media", Key="m")["UploadId"]
    part = client.upload_part(Bucket="media", Key="m", UploadId=upload, PartNumber=1, Body=b"1")
    client.complete_multipart_upload(Bucket="media", Key="m", UploadId=upload, MultipartUpload={
        "Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    client.delete_objects(Bucket="media", Delete={"Objects": [{"Key": k} for k in [*listed, "m"]]})
    assert "Contents" not in client.list_objects_v2(Bucket="media")
import tempfile
with tempfile.TemporaryDirectory() as folder:
    store = s3mini.Store(folder + "/b", s3mini.Disk(False), quota=100)
    store.create()
    store.count()
    store.quota.charge(60)
    try:
        store.quota.charge(60)
    except s3mini.S3Error as why:
        print(why.code)
print("done")
"""


@pytest.mark.parametrize("system", LACKING)
def test_the_fake_runs_without_what_the_system_lacks(system: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(LACKING[system]), system],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (0, "QuotaExceeded\ndone\n") == (done.returncode, done.stdout), done.stderr


def test_a_folder_in_a_sidecars_place_stops_no_delete_where_unlinking_it_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and Windows call it that, Linux that it is a folder."""
    store = s3mini.Store(str(tmp_path / "b"), s3mini.Disk(False))
    store.create()
    (tmp_path / "b" / ".k.s3mini.json").mkdir()
    (tmp_path / "b" / "k").touch()
    real = os.unlink

    def unlink(path: str, **options: Any) -> None:
        try:
            real(path, **options)
        except IsADirectoryError as why:
            raise PermissionError(errno.EPERM, "Operation not permitted") from why

    monkeypatch.setattr(s3mini.os, "unlink", unlink)
    store.delete("k", lambda old: None)

    assert not (tmp_path / "b" / "k").exists()


@pytest.fixture
def short_longs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A C long of 32 bits, as on 32-bit systems whose kernel has times of 64 all the same."""

    def pack(form: str, *values: Any) -> bytes:
        return struct.pack(form.replace("l", "i"), *values)

    monkeypatch.setattr(s3mini, "struct", SimpleNamespace(pack=pack))
    s3mini.timeval.cache_clear()
    yield
    s3mini.timeval.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's timeouts are Linux's")
def test_a_wait_ends_in_time_where_a_long_is_shorter_than_the_kernels_times(
    short_longs: None,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = s3mini.Stream(ours)
        stream.timeout(0.01)
        with pytest.raises(s3mini.S3Error) as why:
            stream.read(1)
    assert "RequestTimeout" == why.value.code


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets in the file system")
def test_a_wait_ends_in_time_where_there_are_only_sockets_in_the_file_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """systemd: RestrictAddressFamilies=AF_UNIX."""

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    ours, theirs = socket.socketpair()
    with ours, theirs, monkeypatch.context() as patch:
        patch.setattr(s3mini.socket, "socket", refuse)
        stream = s3mini.Stream(ours)
        stream.timeout(0.01)
        with pytest.raises(s3mini.S3Error) as why:
            stream.read(1)
    assert "RequestTimeout" == why.value.code


IN_FIPS_MODE = """
import hashlib, sys
real = hashlib.md5
def md5(data=b"", *, usedforsecurity=True):
    if usedforsecurity:
        raise ValueError("[digital envelope routines] unsupported")
    return real(data, usedforsecurity=False)
hashlib.md5 = md5
sys.path[:0] = sys.argv[1:]
from signing_client import Client
import s3mini
with s3mini.start() as fake:
    s3 = Client(fake.endpoint.partition("//")[2], fake.access_key, fake.secret_key, "media")
    with open(fake.data + "/media/by-hand", "wb") as file:
        file.write(b"x")
    upload = s3.post("m", uploads="").element("UploadId")
    part = s3.put("m", b"1", partNumber=1, uploadId=upload).etag
    done = (f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{part}</ETag></Part>"
            "</CompleteMultipartUpload>")
    print(s3.put("k", b"x").etag == real(b"x", usedforsecurity=False).hexdigest(),
          *[reply.status for reply in (
              s3.get("by-hand"), s3.post("m", done.encode(), uploadId=upload),
              s3.put("copy", headers={"x-amz-copy-source": "/media/m"}), s3.get(list_type=2))])
"""


def test_md5_is_to_be_had_where_only_what_is_no_security_may_use_it() -> None:
    """As on machines in FIPS mode."""
    command = [sys.executable, "-c", IN_FIPS_MODE, str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ("True 200 200 200 200\n", "") == (done.stdout, done.stderr)
