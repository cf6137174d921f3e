"""S3, as far as jobs and their clients need it: path-style requests, objects, and uploads in parts.

Checksums that Python can compute are checked, and all are given back. Versions, access rights,
encryption and storage classes are not there.
"""

import base64
import binascii
import hashlib
import re
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from hydra_trainer.embedded.wire import Request, Response

from .faults import Fault
from .objects import Objects, Stored
from .protocols import NAMESPACES, Call, wrapped, xml
from .refusals import AwsError
from .wire import Content

PAGE = 1000
PART_LIMIT = 5 << 20  # bytes of the smallest part that is not the last one
CHECKSUM = "x-amz-checksum-"
REGION_HEADER = "x-amz-bucket-region"
XML = "application/xml"

KEPT = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")


def operation(request: Request) -> str:
    """Return the name of what a request asks for."""
    bucket, key = _target(request)
    query, method = request.query, request.method
    if not bucket:
        return "ListBuckets"
    if not key:
        names = {"PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}
        if method == "POST" and "delete" in query:
            return "DeleteObjects"
        if method == "GET":
            return next((of for part, of in BUCKET_PARTS.items() if part in query), "ListObjects")
        return names.get(method, "")
    if "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "GET": "ListParts"}
        if "x-amz-copy-source" in request.headers:
            return "UploadPartCopy"
        return {**names, "DELETE": "AbortMultipartUpload"}.get(method, "")
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else ""
    if method == "PUT":
        return "CopyObject" if "x-amz-copy-source" in request.headers else "PutObject"
    return {"GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, "")


BUCKET_PARTS = {
    "list-type": "ListObjectsV2",
    "location": "GetBucketLocation",
    "uploads": "ListMultipartUploads",
    "versioning": "GetBucketVersioning",
}


OF_BUCKETS = ("CreateBucket", "HeadBucket", "DeleteBucket")
"""What is asked of a bucket itself, which must not be made by that."""


@dataclass
class Upload:
    """One in parts, by their numbers: a file and its ETag."""

    bucket: str
    key: str
    type: str
    headers: dict[str, str]
    parts: dict[int, tuple[Path, str]] = field(default_factory=dict)


class S3:
    """Answers the requests.

    Args:
        objects: all that there are.
        folder: for the parts of uploads.
        make_buckets: whether a bucket is made when an object of it is asked for, or a list.
    """

    def __init__(self, objects: Objects, folder: Path, *, make_buckets: bool = False) -> None:
        self.objects = objects
        self._makes_buckets = make_buckets
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)  # nobody goes on with an upload of another time
        folder.mkdir(parents=True)
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}
        self._operations: dict[str, Callable[[Request, str, str], Response]] = {
            "ListBuckets": self._list_buckets,
            "CreateBucket": self._create_bucket,
            "HeadBucket": self._head_bucket,
            "DeleteBucket": self._delete_bucket,
            "GetBucketLocation": self._location,
            "GetBucketVersioning": lambda *_: Response(
                wrapped("VersioningConfiguration", "", NAMESPACES["s3"]), type=XML
            ),
            "ListObjects": self._list,
            "ListObjectsV2": self._list,
            "PutObject": self._put,
            "GetObject": self._get,
            "HeadObject": self._get,
            "CopyObject": self._copy,
            "DeleteObject": self._delete,
            "DeleteObjects": self._delete_all,
            "CreateMultipartUpload": self._begin,
            "UploadPart": self._part,
            "CompleteMultipartUpload": self._complete,
            "AbortMultipartUpload": self._abort,
        }

    def answer(self, call: Call) -> Response:
        if call.operation not in self._operations:
            text = "A header you provided implies functionality that is not implemented."
            raise AwsError("NotImplemented", text, 501)
        bucket, key = _target(call.request)
        if self._makes_buckets and bucket and call.operation not in OF_BUCKETS:
            self.objects.make(bucket)
        return self._operations[call.operation](call.request, bucket, key)

    def check_region(self, call: Call) -> None:
        """Check that a call was sent to the region of its bucket. Raises AwsError."""
        bucket, _ = _target(call.request)
        region = self.objects.region(bucket) if self.objects.exists(bucket) else ""
        if region and call.region != region:
            text = (
                "The bucket you are attempting to access must be addressed using the specified "
                "endpoint. Please send all future requests to this endpoint."
            )
            raise AwsError("PermanentRedirect", text, 301, {REGION_HEADER: region})

    def spoilt(self, call: Call, fault: Fault, content: Content) -> Content:
        """Return an answer with what is wrong with it; see faults.OF_BODIES."""
        if fault.kind in ("half", "stall", "slow"):
            stalls, drips = fault.kind == "stall", fault.kind == "slow"
            return replace(content, limit=fault.after, stalls=stalls, drips=drips)
        if fault.kind == "etag":
            other = hashlib.md5(content.headers["ETag"].encode()).hexdigest()
            return replace(content, headers={**content.headers, "ETag": f'"{other}"'})
        if fault.kind == "changed":
            bucket, key = _target(call.request)
            self.objects.put(bucket, key, bytes(self.objects.get(bucket, key).size))
        return content

    # ------------------------------------------------------------------------------------ buckets

    def _list_buckets(self, request: Request, bucket: str, key: str) -> Response:
        found = [
            {"Bucket": {"Name": name, "CreationDate": _iso(made)}}
            for name, made in self.objects.buckets()
        ]
        inside = (
            xml({"Owner": {"ID": "embedded"}}) + f"<Buckets>{''.join(map(xml, found))}</Buckets>"
        )
        return _document("ListAllMyBucketsResult", inside)

    def _create_bucket(self, request: Request, bucket: str, key: str) -> Response:
        region = _parsed(request).findtext("{*}LocationConstraint") if request.body else ""
        if not self.objects.make(bucket, region or ""):
            text = (
                "Your previous request to create the named bucket succeeded and you already own it."
            )
            raise AwsError("BucketAlreadyOwnedByYou", text, 409)
        return Response(headers={"Location": f"/{bucket}"}, type=XML)

    def _head_bucket(self, request: Request, bucket: str, key: str) -> Response:
        if not self.objects.exists(bucket):
            raise AwsError("NoSuchBucket", "", 404)
        region = self.objects.region(bucket) or "us-east-1"
        return Response(type=XML, headers={REGION_HEADER: region})

    def _delete_bucket(self, request: Request, bucket: str, key: str) -> Response:
        self.objects.remove(bucket)
        return Response(code=204)

    def _location(self, request: Request, bucket: str, key: str) -> Response:
        return _document("LocationConstraint", escape(self.objects.region(bucket)))

    def _list(self, request: Request, bucket: str, key: str) -> Response:
        """ListObjectsV2, and the one before it."""
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        is_new = query.get("list-type") == "2"
        after = query.get("start-after", "") if is_new else query.get("marker", "")
        if token := query.get("continuation-token"):
            after = _decoded(token)
        most = min(PAGE, _number(query.get("max-keys", str(PAGE)), "max-keys"))
        rows = _rows(self.objects.list(bucket, prefix), prefix, delimiter)
        rows = [row for row in rows if row[0].encode() > after.encode()]
        page, rest = rows[:most], rows[most:]
        quoted: Callable[[str], str] = quote if query.get("encoding-type") == "url" else str
        values: dict[str, Any] = {
            "Name": bucket,
            "Prefix": quoted(prefix),
            "MaxKeys": most,
            **({"Delimiter": quoted(delimiter)} if delimiter else {}),
            **({"EncodingType": "url"} if quoted is quote else {}),
            "IsTruncated": bool(rest and most),
            **({"KeyCount": len(page)} if is_new else {"Marker": quoted(after)}),
        }
        if rest and page:
            last = page[-1][0]
            values |= {"NextContinuationToken": _encoded(last)} if is_new else {"NextMarker": last}
        values["Contents"] = [
            {
                "Key": quoted(name),
                "LastModified": _iso(one.modified),
                "ETag": f'"{one.etag}"',
                "Size": one.size,
                "StorageClass": "STANDARD",
            }
            for name, one in page
            if one
        ]
        values["CommonPrefixes"] = [{"Prefix": quoted(name)} for name, one in page if not one]
        return _document("ListBucketResult", xml(values))

    # ------------------------------------------------------------------------------------ objects

    def _put(self, request: Request, bucket: str, key: str) -> Response:
        body, checksums = _checked(request)
        stored = self.objects.put(
            bucket,
            key,
            body,
            type=request.headers.get("content-type", ""),
            headers=_kept(request) | checksums,
            check=lambda found: _wanted(request, found),
        )
        return Response(type=XML, headers={"ETag": f'"{stored.etag}"', **checksums})

    def _get(self, request: Request, bucket: str, key: str) -> Response:
        stored, file = self.objects.open(bucket, key)
        try:
            _conditions(request, stored)
            start, size = _range(request, stored)
        except AwsError:
            file.close()
            raise
        headers = {
            "ETag": f'"{stored.etag}"',
            "Last-Modified": formatdate(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        with_checksum = request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
        for name, value in stored.headers.items():
            if not name.startswith(CHECKSUM) or (with_checksum and size == stored.size):
                headers[name] = value
        is_part = _ranged(request) is not None  # also of all of it, as S3 does
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{start + size - 1}/{stored.size}"
        if request.method == "HEAD":
            file.close()
            return Content(b"", 206 if is_part else 200, stored.type, headers, size=size)
        file.seek(start)
        code = 206 if is_part else 200
        return Content(b"", code, stored.type, headers, file=file, size=size)

    def _copy(self, request: Request, bucket: str, key: str) -> Response:
        source = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("?")[0]
        found, file = self.objects.open(*_split(source))
        replaces = request.headers.get("x-amz-metadata-directive") == "REPLACE"
        with file:
            stored = self.objects.put(
                bucket,
                key,
                file.read(),
                type=request.headers.get("content-type", "") if replaces else found.type,
                headers=_kept(request) if replaces else found.headers,
                check=lambda found: _wanted(request, found),
            )
        values = {"LastModified": _iso(stored.modified), "ETag": f'"{stored.etag}"'}
        return _document("CopyObjectResult", xml(values))

    def _delete(self, request: Request, bucket: str, key: str) -> Response:
        self.objects.delete(bucket, key)
        return Response(code=204, type=XML)

    def _delete_all(self, request: Request, bucket: str, key: str) -> Response:
        document = _parsed(request)
        keys = [one.findtext("{*}Key") or "" for one in document.findall("{*}Object")]
        for one in keys:
            self.objects.delete(bucket, one)
        is_quiet = document.findtext("{*}Quiet") == "true"
        deleted = [] if is_quiet else [{"Key": one} for one in keys]
        return _document("DeleteResult", xml({"Deleted": deleted}))

    # ------------------------------------------------------------------------------------ in parts

    def _begin(self, request: Request, bucket: str, key: str) -> Response:
        self.objects.find(bucket, key)
        name = uuid.uuid4().hex
        (self._folder / name).mkdir()
        type = request.headers.get("content-type", "")
        with self._lock:
            self._uploads[name] = Upload(bucket, key, type, _kept(request))
        values = {"Bucket": bucket, "Key": key, "UploadId": name}
        return _document("InitiateMultipartUploadResult", xml(values))

    def _part(self, request: Request, bucket: str, key: str) -> Response:
        upload = self._upload(request, bucket, key)
        number = _number(request.query.get("partNumber", ""), "partNumber")
        body, checksums = _checked(request)
        file = self._folder / request.query["uploadId"] / uuid.uuid4().hex
        file.write_bytes(body)
        etag = hashlib.md5(body).hexdigest()
        with self._lock:
            upload.parts[number] = (file, etag)
        return Response(type=XML, headers={"ETag": f'"{etag}"', **checksums})

    def _complete(self, request: Request, bucket: str, key: str) -> Response:
        upload = self._upload(request, bucket, key)
        parts = self._parts(upload, _parsed(request))
        whole = self._folder / request.query["uploadId"] / "whole"
        with whole.open("wb") as target:
            for file, _ in parts:
                with file.open("rb") as source:
                    shutil.copyfileobj(source, target)
        digests = b"".join(bytes.fromhex(etag) for _, etag in parts)
        stored = self.objects.put(
            bucket,
            key,
            whole,
            etag=f"{hashlib.md5(digests).hexdigest()}-{len(parts)}",
            type=upload.type,
            headers=upload.headers,
            check=lambda found: _wanted(request, found),
        )
        self._forget(request)
        values = {"Bucket": bucket, "Key": key, "ETag": f'"{stored.etag}"'}
        return _document("CompleteMultipartUploadResult", xml(values))

    def _parts(self, upload: Upload, document: ElementTree.Element) -> list[tuple[Path, str]]:
        """Return the parts that a client names as those of the whole object."""
        found, numbers = [], []
        for one in document.findall("{*}Part"):
            number = _number(one.findtext("{*}PartNumber") or "", "PartNumber")
            part = upload.parts.get(number)
            if part is None or (one.findtext("{*}ETag") or "").strip('"') != part[1]:
                text = (
                    "One or more of the specified parts could not be found.  The part may not "
                    "have been uploaded, or the specified entity tag may not match the part's "
                    "entity tag."
                )
                raise AwsError("InvalidPart", text)
            found.append(part)
            numbers.append(number)
        if not found or numbers != sorted(set(numbers)):
            text = "The list of parts was not in ascending order. Parts must be ordered by number."
            raise AwsError("InvalidPartOrder" if found else "MalformedXML", text)
        if any(file.stat().st_size < PART_LIMIT for file, _ in found[:-1]):
            text = "Your proposed upload is smaller than the minimum allowed size"
            raise AwsError("EntityTooSmall", text)
        return found

    def _abort(self, request: Request, bucket: str, key: str) -> Response:
        self._upload(request, bucket, key)
        self._forget(request)
        return Response(code=204, type=XML)

    def _upload(self, request: Request, bucket: str, key: str) -> Upload:
        upload = self._uploads.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (bucket, key):
            text = (
                "The specified upload does not exist. The upload ID may be invalid, or the upload "
                "may have been aborted or completed."
            )
            raise AwsError("NoSuchUpload", text, 404)
        return upload

    def _forget(self, request: Request) -> None:
        with self._lock:
            self._uploads.pop(request.query["uploadId"], None)
        shutil.rmtree(self._folder / request.query["uploadId"], ignore_errors=True)


# ------------------------------------------------------------------------------------ what is asked


def _target(request: Request) -> tuple[str, str]:
    return _split(request.path.removeprefix("/"))


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _kept(request: Request) -> dict[str, str]:
    """Return the headers that are given back with an object."""
    found = {key: value for key, value in request.headers.items() if key.startswith("x-amz-meta-")}
    found |= {key: request.headers[key] for key in KEPT if key in request.headers}
    if found.get("content-encoding", "").startswith("aws-chunked"):
        rest = found.pop("content-encoding").removeprefix("aws-chunked").lstrip(",")
        found |= {"content-encoding": rest} if rest else {}
    return found


def _checked(request: Request) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request and its checksums. Raises AwsError when one is wrong."""
    headers, body = dict(request.headers), request.body
    if headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        body, trailers = _unchunked(body)
        headers |= trailers
    checksums = {key: value for key, value in headers.items() if key.startswith(CHECKSUM)}
    checksums = {key: value for key, value in checksums.items() if key not in NO_CHECKSUMS}
    for name, value in {**checksums, "content-md5": headers.get("content-md5", "")}.items():
        compute = DIGESTS.get(name.removeprefix(CHECKSUM))
        if value and compute and base64.b64encode(compute(body)).decode() != value:
            kind = name.removeprefix(CHECKSUM)
            text = f"The {kind} you specified did not match the calculated checksum."
            raise AwsError("BadDigest", text)
    return body, checksums


NO_CHECKSUMS = (f"{CHECKSUM}algorithm", f"{CHECKSUM}mode", f"{CHECKSUM}type")

DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "sha1": lambda body: hashlib.sha1(body).digest(),
    "sha256": lambda body: hashlib.sha256(body).digest(),
    "content-md5": lambda body: hashlib.md5(body).digest(),
}


def _unchunked(body: bytes) -> tuple[bytes, dict[str, str]]:
    """Take an aws-chunked body apart: `SIZE[;chunk-signature=...]`, the bytes, trailing headers."""
    pieces, at = [], 0
    while True:
        end = body.find(b"\r\n", at)
        try:
            size = int(body[at:end].partition(b";")[0], 16)
        except ValueError:
            raise AwsError("IncompleteBody", "The request body is no aws-chunked one") from None
        at = end + 2
        if size == 0:
            break
        pieces.append(body[at : at + size])
        at += size + 2
    lines = body[at:].decode("latin-1").split("\r\n")
    trailers = dict(line.lower().partition(":")[::2] for line in lines if ":" in line)
    # The values are base64, so they have to stay as they were.
    exact = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
    return b"".join(pieces), {name: exact[name] for name in trailers}


def _wanted(request: Request, found: Stored | None) -> None:
    """Check the conditions of a write. Raises AwsError."""
    absent, match = request.headers.get("if-none-match"), request.headers.get("if-match")
    if match and found is None:
        raise AwsError("NoSuchKey", "The specified key does not exist.", 404)
    if (absent == "*" and found) or (match and found and match.strip('"') != found.etag):
        raise _precondition()


def _conditions(request: Request, stored: Stored) -> None:
    """Check the conditions of a read. Raises AwsError."""
    headers = request.headers
    if (match := headers.get("if-match")) and match.strip('"') not in ("*", stored.etag):
        raise _precondition()
    if (other := headers.get("if-none-match")) and other.strip('"') in ("*", stored.etag):
        raise AwsError("NotModified", "", 304)
    since = headers.get("if-unmodified-since")
    if since and int(stored.modified) > parsedate_to_datetime(since).timestamp():
        raise _precondition()


def _precondition() -> AwsError:
    text = "At least one of the pre-conditions you specified did not hold"
    return AwsError("PreconditionFailed", text, 412)


RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def _range(request: Request, stored: Stored) -> tuple[int, int]:
    """Return where what is wanted begins, and its size."""
    match = _ranged(request)
    if match is None:
        return 0, stored.size
    first, last = match.groups()
    if not first:
        size = min(int(last), stored.size)
        return stored.size - size, size
    start, end = int(first), min(int(last), stored.size - 1) if last else stored.size - 1
    if start >= stored.size or start > end:
        raise AwsError("InvalidRange", "The requested range is not satisfiable", 416)
    return start, end - start + 1


def _ranged(request: Request) -> re.Match[str] | None:
    """Return the range that is asked for; None without one, or with one that cannot be read."""
    match = RANGE.fullmatch(request.headers.get("range", ""))
    return match if match and match[0] != "bytes=-" else None


def _rows(found: list[Stored], prefix: str, delimiter: str) -> list[tuple[str, Stored | None]]:
    """Return keys with their objects, and common prefixes without."""
    if not delimiter:
        return [(one.key, one) for one in found]
    rows: dict[str, Stored | None] = {}
    for one in found:
        head, is_below, _ = one.key[len(prefix) :].partition(delimiter)
        if is_below:
            rows[prefix + head + delimiter] = None
        else:
            rows[one.key] = one
    return list(rows.items())


def _number(text: str, name: str) -> int:
    if not text.isdecimal():
        raise AwsError("InvalidArgument", f"Provided {name} not an integer or within integer range")
    return int(text)


def _parsed(request: Request) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(request.body)
    except ElementTree.ParseError:
        raise AwsError("MalformedXML", "The XML you provided was not well-formed") from None


def _encoded(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _decoded(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except (binascii.Error, ValueError):
        text = "The continuation token provided is incorrect"
        raise AwsError("InvalidArgument", text) from None


def _document(name: str, inside: str) -> Response:
    return Response(wrapped(name, inside, NAMESPACES["s3"]), type=XML)


def _iso(seconds: float) -> str:
    whole, rest = divmod(int(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:03}Z"
