"""Python clients, each with the same few verbs, run by test_clients.py inside their own rooms.

    python client_drivers.py CLIENT '[["put", "file", "key"], ["list", "prefix"]]'

prints what each step gave as one JSON list. The environment says where to: S3_ENDPOINT, S3_BUCKET,
S3_CA (a certificate to trust, or empty) and AWS's own names for keys and region. A client is set
up as its documentation tells people to, with nothing special beyond endpoint and keys.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

ENDPOINT = os.environ["S3_ENDPOINT"]
BUCKET = os.environ["S3_BUCKET"]
KEY, SECRET = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
REGION = os.environ["AWS_DEFAULT_REGION"]
PART = 5 * 1024**2  # bytes; small, so that our large file has several parts


class Boto3:
    """boto3 as it comes: the newest, and 1.34, which had no checksums by default."""

    def __init__(self) -> None:
        import boto3

        self.s3 = boto3.client("s3", endpoint_url=ENDPOINT)

    def put(self, file: str, key: str) -> None:
        self.s3.upload_file(file, BUCKET, key)

    def get(self, key: str, file: str) -> None:
        self.s3.download_file(BUCKET, key, file)

    def size(self, key: str) -> int:
        size: int = self.s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"]
        return size

    def list(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=prefix, PaginationConfig={"PageSize": 1}
        )
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def delete(self, key: str) -> None:
        self.s3.delete_object(Bucket=BUCKET, Key=key)

    def copy(self, source: str, key: str) -> None:
        """By parts when it is large: UploadPartCopy."""
        self.s3.copy({"Bucket": BUCKET, "Key": source}, BUCKET, key)

    def delete_all(self, prefix: str) -> int:
        """DeleteObjects; gives how many are gone."""
        import boto3

        bucket = boto3.resource("s3", endpoint_url=ENDPOINT).Bucket(BUCKET)
        return sum(len(done["Deleted"]) for done in bucket.objects.filter(Prefix=prefix).delete())

    def presign(self, key: str) -> str:
        url: str = self.s3.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key})
        return url


class Crt(Boto3):
    """boto3 with awscrt. Its transfers in C send aws-chunked with a trailer, also over plain HTTP.

    boto3's own switch to it goes to AWS whatever the endpoint; so it is set up here as boto3 does.
    """

    def __init__(self) -> None:
        from awscrt.auth import AwsCredentialsProvider
        from botocore.session import Session
        from s3transfer.crt import (
            BotocoreCRTRequestSerializer,
            CRTTransferManager,
            create_s3_crt_client,
        )

        super().__init__()
        settings = {"region_name": REGION, "endpoint_url": ENDPOINT}
        keys = AwsCredentialsProvider.new_static(KEY, SECRET)
        client = create_s3_crt_client(
            REGION, keys, part_size=PART, use_ssl=ENDPOINT.startswith("https:")
        )
        serializer = BotocoreCRTRequestSerializer(Session(), settings)
        self.manager = CRTTransferManager(client, serializer)

    def put(self, file: str, key: str) -> None:
        self.manager.upload(file, BUCKET, key).result()

    def get(self, key: str, file: str) -> None:
        self.manager.download(BUCKET, key, file).result()

    def put_with(self, algorithm: str, file: str, key: str) -> str:
        """Plain boto3 with a checksum that it can only compute with awscrt; gives the checksum."""
        body = Path(file).read_bytes()
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumAlgorithm=algorithm)
        found = self.s3.get_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
        assert found["Body"].read() == body  # reading it also verifies the checksum
        checksum: str = found["Checksum" + algorithm]
        return checksum


class Aioboto3:
    def client(self) -> Any:
        import aioboto3

        return aioboto3.Session().client("s3", endpoint_url=ENDPOINT)

    async def put(self, file: str, key: str) -> None:
        async with self.client() as s3:
            await s3.upload_file(file, BUCKET, key)

    async def get(self, key: str, file: str) -> None:
        async with self.client() as s3:
            await s3.download_file(BUCKET, key, file)

    async def size(self, key: str) -> int:
        async with self.client() as s3:
            size: int = (await s3.head_object(Bucket=BUCKET, Key=key))["ContentLength"]
            return size

    async def list(self, prefix: str) -> list[str]:
        async with self.client() as s3:
            found = await s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
            return [item["Key"] for item in found.get("Contents", [])]

    async def delete(self, key: str) -> None:
        async with self.client() as s3:
            await s3.delete_object(Bucket=BUCKET, Key=key)


class Minio:
    def __init__(self) -> None:
        from minio import Minio as Client

        scheme, _, address = ENDPOINT.partition("://")
        self.s3 = Client(address, access_key=KEY, secret_key=SECRET, secure=scheme == "https")

    def put(self, file: str, key: str) -> None:
        self.s3.fput_object(BUCKET, key, file, part_size=PART)

    def get(self, key: str, file: str) -> None:
        self.s3.fget_object(BUCKET, key, file)

    def size(self, key: str) -> int:
        return self.s3.stat_object(BUCKET, key).size or 0

    def list(self, prefix: str) -> list[str]:
        found = self.s3.list_objects(BUCKET, prefix=prefix, recursive=True)
        return [item.object_name or "" for item in found]

    def delete(self, key: str) -> None:
        self.s3.remove_object(BUCKET, key)

    def compose(self, key: str, *sources: str) -> None:
        """One object of several, without moving their bytes: UploadPartCopy."""
        from minio.commonconfig import ComposeSource

        self.s3.compose_object(BUCKET, key, [ComposeSource(BUCKET, name) for name in sources])

    def tag(self, key: str, name: str, value: str) -> dict[str, str]:
        """Set one tag; gives all that are there then."""
        from minio.commonconfig import Tags

        tags = Tags.new_object_tags()
        tags[name] = value
        self.s3.set_object_tags(BUCKET, key, tags)
        return dict(self.s3.get_object_tags(BUCKET, key) or {})

    def presign(self, key: str) -> str:
        return self.s3.presigned_get_object(BUCKET, key, expires=timedelta(minutes=5))


class S3fs:
    def __init__(self) -> None:
        import s3fs

        self.fs = s3fs.S3FileSystem(endpoint_url=ENDPOINT, use_listings_cache=False)

    def put(self, file: str, key: str) -> None:
        self.fs.put_file(file, f"{BUCKET}/{key}", chunksize=PART)

    def get(self, key: str, file: str) -> None:
        self.fs.get_file(f"{BUCKET}/{key}", file)

    def size(self, key: str) -> int:
        size: int = self.fs.size(f"{BUCKET}/{key}")
        return size

    def list(self, prefix: str) -> list[str]:
        found = self.fs.find(BUCKET, prefix=prefix)
        return [name.partition("/")[2] for name in found]

    def delete(self, key: str) -> None:
        self.fs.rm_file(f"{BUCKET}/{key}")

    def create(self, key: str, text: str) -> bool:
        """Write it only if it is not there yet (If-None-Match: *); whether it was not."""
        try:
            self.fs.pipe_file(f"{BUCKET}/{key}", text.encode(), mode="create")
        except FileExistsError:
            return False
        return True

    def move(self, source: str, key: str) -> None:
        self.fs.mv(f"{BUCKET}/{source}", f"{BUCKET}/{key}")


class SmartOpen(Boto3):
    """smart_open reads and writes streams; the rest of a program uses boto3."""

    def _open(self, key: str, mode: str, **more: Any) -> Any:
        import smart_open

        parameters = {"client": self.s3, **more}
        return smart_open.open(f"s3://{BUCKET}/{key}", mode, transport_params=parameters)

    def put(self, file: str, key: str) -> None:
        with self._open(key, "wb", min_part_size=PART) as out:
            out.write(Path(file).read_bytes())

    def get(self, key: str, file: str) -> None:
        with self._open(key, "rb") as source:
            Path(file).write_bytes(source.read())

    def slice(self, key: str, start: int, size: int) -> str:
        """`size` bytes from `start` on, as hexadecimal digits."""
        with self._open(key, "rb") as source:
            source.seek(start)
            content: bytes = source.read(size)
            return content.hex()


class Pyarrow:
    def __init__(self) -> None:
        from pyarrow import fs

        scheme, _, address = ENDPOINT.partition("://")
        self.fs = fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, region=REGION, scheme=scheme,
            endpoint_override=address,
        )  # fmt: skip

    def put(self, file: str, key: str) -> None:
        with self.fs.open_output_stream(f"{BUCKET}/{key}") as out:
            out.write(Path(file).read_bytes())

    def get(self, key: str, file: str) -> None:
        with self.fs.open_input_stream(f"{BUCKET}/{key}") as source:
            Path(file).write_bytes(source.read())

    def size(self, key: str) -> int:
        size: int = self.fs.get_file_info(f"{BUCKET}/{key}").size
        return size

    def list(self, prefix: str) -> list[str]:
        from pyarrow.fs import FileSelector

        found = self.fs.get_file_info(FileSelector(f"{BUCKET}/{prefix}", recursive=True))
        return [info.path.partition("/")[2] for info in found if info.is_file]

    def delete(self, key: str) -> None:
        self.fs.delete_file(f"{BUCKET}/{key}")

    def table(self, folder: str) -> int:
        """Write a table in several Parquet files, read one column of it back, and sum that."""
        import pyarrow
        import pyarrow.compute
        import pyarrow.dataset

        numbers = list(range(1000))
        table = pyarrow.table({"n": numbers, "group": [n % 3 for n in numbers]})
        where = {"filesystem": self.fs, "format": "parquet", "partitioning": ["group"]}
        pyarrow.dataset.write_dataset(table, f"{BUCKET}/{folder}", **where)
        read = pyarrow.dataset.dataset(f"{BUCKET}/{folder}", **where).to_table(columns=["n"])
        total: int = pyarrow.compute.sum(read["n"]).as_py()
        return total


class Obstore:
    """obstore is the object_store of Rust, which delta-rs, lance and many others build on."""

    def __init__(self) -> None:
        import obstore
        from obstore.store import S3Store

        self.obstore = obstore
        self.store = S3Store(BUCKET, endpoint=ENDPOINT, client_options={"allow_http": True})

    def put(self, file: str, key: str) -> None:
        self.obstore.put(self.store, key, Path(file), chunk_size=PART)

    def get(self, key: str, file: str) -> None:
        Path(file).write_bytes(self.obstore.get(self.store, key).bytes())

    def size(self, key: str) -> int:
        size: int = self.obstore.head(self.store, key)["size"]
        return size

    def list(self, prefix: str) -> list[str]:
        return [item["path"] for item in self.obstore.list(self.store, prefix).collect()]

    def delete(self, key: str) -> None:
        self.obstore.delete(self.store, key)

    def create(self, key: str, text: str) -> bool:
        """Write it only if it is not there yet (If-None-Match: *); whether it was not."""
        from obstore.exceptions import AlreadyExistsError

        try:
            self.obstore.put(self.store, key, text.encode(), mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def count_up(self, key: str, times: int) -> int:
        """Add 1 to the number in an object, `times` times, by If-Match; gives the lost races."""
        from obstore.exceptions import PreconditionError

        lost = 0
        for _ in range(times):
            while True:
                found = self.obstore.get(self.store, key)
                text = str(int(bytes(found.bytes())) + 1).encode()
                mode = {"e_tag": found.meta["e_tag"]}
                try:
                    self.obstore.put(self.store, key, text, mode=mode, use_multipart=False)
                    break
                except PreconditionError:
                    lost += 1
        return lost


class Deltalake:
    """delta-rs: a table whose every version is one conditional PUT."""

    def __init__(self) -> None:
        self.options = {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_ALLOW_HTTP": "true"}
        self.options["conditional_put"] = "etag"

    def append(self, folder: str, first: int, times: int) -> None:
        import pyarrow
        from deltalake import write_deltalake

        for number in range(first, first + times):
            rows = pyarrow.table({"n": pyarrow.array([number], pyarrow.int64())})
            where = f"s3://{BUCKET}/{folder}"
            write_deltalake(where, rows, mode="append", storage_options=self.options)

    def numbers(self, folder: str) -> list[int]:
        from deltalake import DeltaTable

        table = DeltaTable(f"s3://{BUCKET}/{folder}", storage_options=self.options)
        return sorted(table.to_pyarrow_table()["n"].to_pylist())


DRIVERS = {
    "boto3": Boto3,
    "boto3-old": Boto3,
    "crt": Crt,
    "aioboto3": Aioboto3,
    "minio": Minio,
    "s3fs": S3fs,
    "smart_open": SmartOpen,
    "pyarrow": Pyarrow,
    "obstore": Obstore,
    "deltalake": Deltalake,
}


def main(client: str, steps: list[list[Any]]) -> None:
    driver = DRIVERS[client]()
    results = []
    for verb, *arguments in steps:
        result = getattr(driver, verb)(*arguments)
        results.append(asyncio.run(result) if asyncio.iscoroutine(result) else result)
    print(json.dumps(results), flush=True)
    if client == "deltalake":
        # All is done and said, but threads of delta-rs may still run and abort the interpreter's
        # own end: "terminate called without an active exception"      [deltalake 1.6, pyarrow 26]
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
