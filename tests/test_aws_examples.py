"""AWS's documented requests find their operation, and answers have the documented elements.

Methods, targets, headers and element names are those of the request and response syntax on the
pages of the S3 API reference; `Key+` and the like are filled in.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from conftest import Server
from signing_client import Client, Reply

import s3mini

COPY = "x-amz-copy-source: /b/k"
REQUESTS = """\
GET / | | list_buckets
GET /?max-buckets=2&continuation-token=t&prefix=p&bucket-region=r | | list_buckets
PUT /b | | create_bucket
HEAD /b | | head_bucket
DELETE /b | | delete_bucket
GET /b?location | | get_bucket_location
GET /b | | list_objects
GET /b?delimiter=/&encoding-type=url&marker=m&max-keys=3&prefix=N | | list_objects
GET /b?list-type=2 | | list_objects_v2
GET /b?list-type=2&prefix=E&start-after=ExampleGuide.pdf&max-keys=3 | | list_objects_v2
GET /b?list-type=2&continuation-token=1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM= \
| | list_objects_v2
GET /b?versions&key-marker=key3 | | list_object_versions
GET /b?uploads&delimiter=/&prefix=photos/2006/ | | list_multipart_uploads
POST /b?delete | | delete_objects
POST /b | | post_object
GET /b?acl | | get_bucket_acl
PUT /b?acl | | put_bucket_acl
GET /b?cors | | get_bucket_cors
PUT /b?cors | | put_bucket_cors
DELETE /b?cors | | delete_bucket_cors
GET /b?tagging | | get_bucket_tagging
PUT /b?tagging | | put_bucket_tagging
DELETE /b?tagging | | delete_bucket_tagging
GET /b?versioning | | get_bucket_versioning
GET /b?accelerate | | get_bucket_accelerate_configuration
GET /b?encryption | | get_bucket_encryption
GET /b?lifecycle | | get_bucket_lifecycle_configuration
GET /b?logging | | get_bucket_logging
GET /b?notification | | get_bucket_notification_configuration
GET /b?object-lock | | get_object_lock_configuration
GET /b?ownershipControls | | get_bucket_ownership_controls
GET /b?policy | | get_bucket_policy
GET /b?policyStatus | | get_bucket_policy_status
GET /b?publicAccessBlock | | get_public_access_block
GET /b?replication | | get_bucket_replication
GET /b?requestPayment | | get_bucket_request_payment
GET /b?website | | get_bucket_website
DELETE /b?encryption | | delete_bucket_encryption
DELETE /b?lifecycle | | delete_bucket_lifecycle
DELETE /b?ownershipControls | | delete_bucket_ownership_controls
DELETE /b?policy | | delete_bucket_policy
DELETE /b?publicAccessBlock | | delete_public_access_block
DELETE /b?replication | | delete_bucket_replication
DELETE /b?website | | delete_bucket_website
GET /b/my-image.jpg | | get_object
GET /b/k?partNumber=1&versionId=null | Range: bytes=0-9 | get_object
GET /b/k?response-content-type=text/plain&response-expires=x | | get_object
HEAD /b/my-image.jpg | | get_object
PUT /b/my-image.jpg | | put_object
PUT /b/k?x-id=PutObject | | put_object
PUT /b/my-second-image.jpg | x-amz-copy-source: /b/my-image.jpg | copy_object
PUT /b/k?renameObject | x-amz-rename-source: /b/old | rename_object
DELETE /b/my-second-image.jpg | | delete_object
DELETE /b/k?versionId=null | | delete_object
GET /b/k?attributes | x-amz-object-attributes: ETag | get_object_attributes
GET /b/k?attributes&versionId=null | x-amz-object-attributes: ETag | get_object_attributes
GET /b/k?tagging | | get_object_tagging
PUT /b/k?tagging&versionId=null | | put_object_tagging
DELETE /b/k?tagging | | delete_object_tagging
GET /b/k?acl | | get_object_acl
PUT /b/k?acl | | put_object_acl
POST /b/example-object?uploads | | create_multipart_upload
PUT /b/my-movie.m2ts?partNumber=1&uploadId=VCVsb2FkIElEIGZvciBlbZZpbmcncyBteS1tb3ZpZS5tMnRz \
| | upload_part
PUT /b/newobject?partNumber=2&uploadId=VCVsb2Fk | x-amz-copy-source: /b/k | upload_part_copy
GET /b/k?uploadId=XXBsb2Fk&max-parts=2&part-number-marker=1 | | list_parts
POST /b/example-object?uploadId=AAAsb2Fk | | complete_multipart_upload
DELETE /b/example-object?uploadId=VXBsb2Fk | | abort_multipart_upload
GET /b?analytics&id=1 | | NotImplemented
GET /b?inventory | | NotImplemented
GET /b?metrics | | NotImplemented
GET /b?intelligent-tiering | | NotImplemented
GET /b?session | | NotImplemented
GET /b?metadataTable | | NotImplemented
PUT /b?versioning | | NotImplemented
PUT /b?policy | | NotImplemented
PUT /b?lifecycle | | NotImplemented
PUT /b?encryption | | NotImplemented
PUT /b?logging | | NotImplemented
PUT /b?notification | | NotImplemented
PUT /b?object-lock | | NotImplemented
PUT /b?ownershipControls | | NotImplemented
PUT /b?publicAccessBlock | | NotImplemented
PUT /b?replication | | NotImplemented
PUT /b?requestPayment | | NotImplemented
PUT /b?website | | NotImplemented
PUT /b?accelerate | | NotImplemented
DELETE /b?analytics&id=1 | | NotImplemented
GET /b/k?torrent | | NotImplemented
GET /b/k?legal-hold | | NotImplemented
GET /b/k?retention | | NotImplemented
PUT /b/k?legal-hold | | NotImplemented
PUT /b/k?retention | | NotImplemented
POST /b/k?restore | | NotImplemented
POST /b/k?select&select-type=2 | | NotImplemented
PUT /b/k?frobnicate | | NotImplemented
POST /b/k | | MethodNotAllowed
PATCH /b/k | | MethodNotAllowed
PUT / | | MethodNotAllowed
PUT /b/k?acl&tagging | | InvalidArgument
"""
ROWS = [
    tuple(part.strip() for part in line.split("|"))
    for line in REQUESTS.replace("\\\n", "").splitlines()
]


@pytest.mark.parametrize(("request_line", "header", "expected"), ROWS)
def test_a_documented_request_finds_its_operation(
    request_line: str, header: str, expected: str
) -> None:
    more = header + "\r\n" if header else ""
    text = f"{request_line} HTTP/1.1\r\nHost: s3.amazonaws.com\r\n{more}\r\n"
    head = s3mini.parse_head(text.encode())
    _, bucket, *key = head.path.split("/", 2)
    scope = s3mini.OBJECT if key else s3mini.BUCKET if bucket else s3mini.SERVICE
    try:
        found = s3mini.resolve(head, scope)[0].__name__
    except s3mini.S3Error as why:
        found = why.code

    assert expected == found


def test_every_route_has_its_documented_request() -> None:
    known = {expected for _, _, expected in ROWS}

    assert {operation.__name__ for operation, _ in s3mini.ROUTES.values()} <= known


# -- documents -------------------------------------------------------------------------------------

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def shape(reply: Reply) -> str:
    """The names of all elements, nested: "A(B C(D))"."""

    def name(node: ET.Element) -> str:
        assert node.tag.startswith(NAMESPACE), node.tag
        inner = " ".join(name(child) for child in node)
        return node.tag[len(NAMESPACE) :] + (f"({inner})" if inner else "")

    assert reply.status < 300, reply.body
    assert "application/xml" == reply.headers["content-type"]
    assert reply.body.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n')
    return name(ET.fromstring(reply.body))


@pytest.fixture
def filled(s3: Client) -> Client:
    for key in ("a", "p/1", "p/2", "z"):
        s3.put(key, b"x")
    return s3


def test_the_elements_of_list_objects_v2(filled: Client) -> None:
    contents = "Contents(Key LastModified ETag Size StorageClass)"

    assert f"ListBucketResult(Name Prefix KeyCount MaxKeys IsTruncated {contents} {contents})" == (
        shape(filled.get(list_type=2, prefix="p/"))
    )
    folded = filled.get(list_type=2, delimiter="/", max_keys=2)
    assert {
        "Name", "Prefix", "NextContinuationToken", "KeyCount", "MaxKeys", "Delimiter",
        "IsTruncated", "Contents", "CommonPrefixes",
    } == children(folded)  # fmt: skip
    token = folded.element("NextContinuationToken")
    rest = filled.get(list_type=2, continuation_token=token, fetch_owner="true", start_after="a")
    assert {"ContinuationToken", "StartAfter"} <= children(rest)
    assert "Owner(ID DisplayName)" in shape(rest)


def children(reply: Reply) -> set[str]:
    return {node.tag[len(NAMESPACE) :] for node in ET.fromstring(reply.body)}


def test_the_elements_of_list_objects(filled: Client) -> None:
    owner = "Owner(ID DisplayName)"
    contents = f"Contents(Key LastModified ETag Size {owner} StorageClass)"

    assert f"ListBucketResult(Name Prefix Marker MaxKeys IsTruncated {contents})" == (
        shape(filled.get(prefix="z"))
    )
    assert {"NextMarker", "Delimiter", "CommonPrefixes"} <= children(
        filled.get(delimiter="/", max_keys=2)
    )


def test_the_elements_of_list_buckets(server: Server, bucket: str) -> None:
    reply = server.client("test-key").get("/", prefix=bucket)

    assert (
        "ListAllMyBucketsResult(Owner(ID DisplayName) "
        "Buckets(Bucket(Name CreationDate BucketRegion)) Prefix)" == shape(reply)
    )
    assert "BucketRegion" not in shape(server.client("test-key").get("/"))


def test_the_elements_of_a_multipart_upload(s3: Client) -> None:
    created = s3.post("k", query="uploads")
    upload = created.element("UploadId")
    etag = s3.put("k", b"x", partNumber=1, uploadId=upload).etag
    people = "Initiator(ID DisplayName) Owner(ID DisplayName)"

    assert "InitiateMultipartUploadResult(Bucket Key UploadId)" == shape(created)
    assert (
        f"ListPartsResult(Bucket Key UploadId {people} StorageClass PartNumberMarker "
        "NextPartNumberMarker MaxParts IsTruncated Part(PartNumber LastModified ETag Size))"
    ) == shape(s3.get("k", uploadId=upload))
    uploads = shape(s3.get(query="uploads"))
    assert f"Upload(Key UploadId {people} StorageClass Initiated)" in uploads
    assert uploads.startswith("ListMultipartUploadsResult(Bucket KeyMarker UploadIdMarker ")
    copied = {"x-amz-copy-source": f"/{s3.bucket}/s"}
    s3.put("s", b"x")
    copy = s3.put("k", b"", copied, partNumber=2, uploadId=upload)
    assert "CopyPartResult(LastModified ETag)" == shape(copy)
    named = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>"
    done = s3.post("k", body.encode(), uploadId=upload)
    assert "CompleteMultipartUploadResult(Location Bucket Key ETag)" == shape(done)


def test_the_elements_of_other_answers(filled: Client) -> None:
    copy = filled.put("c", b"", {"x-amz-copy-source": f"/{filled.bucket}/a"})
    body = b"<Delete><Object><Key>a</Key></Object><Object><Key>../x</Key></Object></Delete>"
    md5 = {"content-md5": b64_md5(body)}
    filled.put("z", b"x", {"x-amz-tagging": "a=1"})
    versions = shape(filled.get(query="versions", prefix="c"))

    assert "CopyObjectResult(LastModified ETag)" == shape(copy)
    assert "DeleteResult(Deleted(Key) Error(Key Code Message))" == shape(
        filled.post("", body, md5, query="delete")
    )
    assert "Tagging(TagSet(Tag(Key Value)))" == shape(filled.get("z", query="tagging"))
    assert "Grant(Grantee(ID DisplayName) Permission)" in shape(filled.get("z", query="acl"))
    assert "LocationConstraint" == shape(filled.get(query="location"))
    for name in ("Key", "VersionId", "IsLatest", "LastModified", "ETag", "Size", "StorageClass"):
        assert name in versions.partition("Version(")[2]


def b64_md5(data: bytes) -> str:
    import base64
    import hashlib

    return base64.b64encode(hashlib.md5(data).digest()).decode()


def test_the_elements_of_an_error(s3: Client) -> None:
    """Of all documents only this one has no namespace."""
    reply = s3.get("missing")
    root = ET.fromstring(reply.body)

    assert ("Error", 404) == (root.tag, reply.status)
    assert ["Code", "Message", "Key", "Resource", "RequestId", "HostId"] == [n.tag for n in root]
    assert f"/{s3.bucket}/missing" == reply.element("Resource")
    assert reply.headers["x-amz-request-id"] == reply.element("RequestId")


def test_dates_and_etags_are_written_as_aws_writes_them(filled: Client) -> None:
    page = filled.get(list_type=2)

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", page.element("LastModified")
    )
    assert re.fullmatch('"[0-9a-f]{32}"', page.element("ETag"))
    assert re.fullmatch(
        r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT",
        filled.head("a").headers["last-modified"],
    )
