"""Objects in S3 on bad days: each fault ends in the right bytes, or in an error that helps."""

import contextlib
import http.server
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.embedded.sagemaker import Fault
from hydra_trainer.errors import Changed, Exists, Gone, StorageError
from hydra_trainer.objects import Objects, Settings, store

from .buckets import KEYS, Bucket, Clock, Script, answer, bucket, error, without_aws

MB = 1 << 20
DATA = bytes(range(256)) * 40  # 10,240 bytes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with bucket(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine says who one is at AWS."""
    for name in without_aws():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def s3(service: Bucket, clean: None, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    service.clock = Clock()
    service.service.faults.clear()
    for key in service.names():
        service.service.objects.delete("bucket", key)
    service.objects().put("a", DATA)
    service.service.calls.clear()
    return service


@pytest.fixture
def fault(s3: Bucket) -> Callable[..., Fault]:
    def add(kind: str, operation: str = "GetObject", **more: object) -> Fault:
        found = Fault(kind, operation=f"s3:{operation}$", **more)  # type: ignore[arg-type]
        s3.service.faults.add(found)
        return found

    return add


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 1024 bytes, so that DATA has ten."""
    monkeypatch.setattr(store, "PART", 1024)
    monkeypatch.setattr(store, "GAP", 0)


PASSING: list[dict[str, Any]] = [
    {"kind": "status", "error": "SlowDown"},
    {"kind": "status", "error": "InternalError"},
    {"kind": "throttle"},
    {"kind": "reset"},
    {"kind": "lost"},
    {"kind": "late", "error": "InternalError"},
    {"kind": "half", "after": 0},
    {"kind": "half", "after": 700},
]
PASSING_IDS = [" ".join(map(str, one.values())) for one in PASSING]


# ------------------------------------------------------------------------------------- that pass


@pytest.mark.parametrize("more", PASSING, ids=PASSING_IDS)
def test_a_read_is_tried_again(
    s3: Bucket, fault: Callable[..., Fault], more: dict[str, object]
) -> None:
    came = fault(times=3, **more)
    assert bytes(s3.objects().get("a")) == DATA
    assert came.came == 3 and len(s3.clock.pauses) == 3


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("more", PASSING, ids=PASSING_IDS)
def test_parts_are_tried_again_one_by_one(
    s3: Bucket, fault: Callable[..., Fault], more: dict[str, object]
) -> None:
    came = fault(times=None, share=0.4, seed=3, **more)
    objects = s3.objects(deadline_s=1000)
    assert bytes(objects.get("a")) == DATA
    assert bytes(objects.get("a", 100, 9_000)) == DATA[100:9_100]
    found = objects.get_ranges("a", [9_000, 0, 2_000], [1_000, 3_000, 5])
    assert list(map(bytes, found)) == [DATA[9_000:10_000], DATA[:3_000], DATA[2_000:2_005]]
    assert came.came > 3


@pytest.mark.parametrize("more", [one for one in PASSING if one["kind"] != "half"])
@pytest.mark.parametrize("operation", ["PutObject", "HeadObject", "ListObjectsV2", "DeleteObjects"])
def test_everything_else_is_tried_again(
    s3: Bucket, fault: Callable[..., Fault], operation: str, more: dict[str, object]
) -> None:
    came = fault(operation=operation, times=2, **more)
    objects = s3.objects()
    objects.put("b", b"1")
    head = objects.head("a")
    assert head is not None and head.size == len(DATA)
    assert [one.key for one in objects.list()] == ["a", "b"]
    assert objects.folders() == []
    objects.delete("a", "b")
    assert s3.names() == [] and came.came == 2


def test_a_server_that_stops_in_the_middle_is_given_up(
    s3: Bucket, fault: Callable[..., Fault]
) -> None:
    came = fault("stall", after=100, times=2)
    assert bytes(s3.objects(deadline_s=1.2).get("a")) == DATA
    assert came.came == 2


def test_a_server_that_is_too_slow_is_given_up(s3: Bucket, fault: Callable[..., Fault]) -> None:
    came = fault("slow", after=100, times=None)  # 10,140 bytes more would take minutes
    with pytest.raises(StorageError, match="did not answer in time"):
        s3.objects(deadline_s=0.5).get("a")
    assert came.came >= 1
    came.times = 0
    fault("slow", after=len(DATA) - 3)
    assert bytes(s3.objects(deadline_s=5.0).get("a")) == DATA


def test_the_pauses_grow_and_are_told(
    s3: Bucket, fault: Callable[..., Fault], caplog: pytest.LogCaptureFixture
) -> None:
    fault("throttle", times=7)
    s3.objects().get("a")
    assert s3.clock.pauses == [0.25, 0.5, 1, 2, 4, 5, 5]
    with caplog.at_level(logging.WARNING):
        said = [one.getMessage() for one in caplog.records]
    assert said[0].startswith("s3:GetObject of s3://bucket/run/a: HTTP 503 SlowDown. Please reduce")
    assert len(said) == 5, "pauses below a second are not told"


def test_the_pauses_are_by_chance() -> None:
    import random

    assert store.PAUSES.spread == random.uniform


# ------------------------------------------------------------------------------------- that do not


@pytest.mark.parametrize("more", PASSING, ids=PASSING_IDS)
def test_the_deadline_ends_it(
    s3: Bucket, fault: Callable[..., Fault], more: dict[str, object]
) -> None:
    fault(times=None, **more)
    with pytest.raises(StorageError) as caught:
        s3.objects(deadline_s=30).get("a")
    text = str(caught.value)
    assert "s3:GetObject of s3://bucket/run/a was tried " in text
    assert s3.endpoint in text and "storage.s3.deadline=60" in text
    assert 10 < s3.clock.now <= 30


def test_nobody_listens(s3: Bucket) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        objects = Objects("s3://bucket/run", Settings(endpoint), retry=s3.clock.retry())
        with pytest.raises(StorageError, match=f"Connection refused.*{endpoint} can be reached"):
            objects.get("a")


def test_a_name_that_is_none(s3: Bucket) -> None:
    objects = Objects("s3://b", Settings("http://s3.invalid"), retry=s3.clock.retry())
    with pytest.raises(StorageError, match=r"tried \d+ times.*http://s3.invalid can be reached"):
        objects.put("a", b"")


def test_somebody_listens_and_says_nothing(s3: Bucket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        objects = Objects("s3://bucket", Settings(endpoint, deadline_s=0.4))
        with pytest.raises(StorageError, match="did not answer in time"):
            objects.get("a")


def test_no_bucket(s3: Bucket) -> None:
    objects = s3.objects("s3://no-bucket/run")
    for request in (
        lambda: objects.get("a"),
        lambda: objects.head("a"),
        lambda: objects.put("a", b""),
        lambda: objects.put("a", b"", if_absent=True),
        lambda: objects.put("a", b"", if_match='"1"'),
        lambda: next(objects.list()),
        lambda: objects.folders(),
        lambda: objects.delete("a"),
        lambda: _written(objects, b""),
        lambda: _written(objects, bytes(6 * MB)),
    ):
        with pytest.raises(StorageError, match="there is no bucket no-bucket") as caught:
            request()
        assert not isinstance(caught.value, Gone), "a missing bucket is no missing object"
    assert s3.clock.pauses == []


def _written(objects: Objects, data: bytes) -> str:
    with objects.writer("a", size=len(data)) as writer:
        writer.write(data)
    return writer.etag


ARN = r"arn:aws:s3:::bucket"


@pytest.mark.parametrize(
    ("operation", "request_", "words"),
    [
        ("GetObject", lambda o: o.get("a"), f"need s3:GetObject on {ARN}/run/a: .*s3:ListBucket"),
        ("(Head|Get)Object", lambda o: o.head("a"), f"need s3:GetObject on {ARN}/run/a"),
        ("PutObject", lambda o: o.put("a", b""), f"need s3:PutObject on {ARN}/run/a"),
        ("ListObjectsV2", lambda o: o.folders("x"), f"need s3:ListBucket on {ARN}: allow"),
        ("ListObjectsV2", lambda o: [*o.list()], f"need s3:ListBucket on {ARN}: allow"),
        ("DeleteObjects", lambda o: o.delete("a"), f"need s3:DeleteObject on {ARN}/run/a"),
        ("PutObject", lambda o: _written(o, b"1"), f"need s3:PutObject on {ARN}/run/a"),
        (
            "CreateMultipartUpload",
            lambda o: _written(o, bytes(6 * MB)),
            f"need s3:PutObject on {ARN}/run/a",
        ),
    ],
)
def test_access_denied_names_action_and_resource(
    s3: Bucket,
    fault: Callable[..., Fault],
    operation: str,
    request_: Callable[[Objects], object],
    words: str,
) -> None:
    fault("status", operation, error="AccessDenied", times=None)
    with pytest.raises(StorageError, match=f"access denied.*AWS_ACCESS_KEY_ID.*{words}"):
        request_(s3.objects())
    assert s3.clock.pauses == []


def test_keys_that_s3_does_not_know(s3: Bucket, fault: Callable[..., Fault]) -> None:
    fault("status", error="InvalidClientTokenId", times=None)
    fault("status", "PutObject", error="SignatureDoesNotMatch", times=None)
    with pytest.raises(StorageError, match=r"does not know the AWS credentials.*AWS_SECRET_ACCESS"):
        s3.objects().put("a", b"")


# ------------------------------------------------------------------------------------- one object


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["changed", "etag"])
def test_parts_are_of_one_object(s3: Bucket, fault: Callable[..., Fault], kind: str) -> None:
    for skip in range(5):
        s3.objects().put("a", DATA)
        came = fault(kind, skip=skip)
        try:
            found = s3.objects().get("a")
        except Changed as error:
            assert "GetObject of s3://bucket/run/a: the object is another" in str(error)
        else:  # all parts may be under way when it changes; they are of the old one then
            assert kind == "changed" and skip and found == DATA
        assert came.came == 1


@pytest.mark.usefixtures("small")
def test_pieces_are_of_one_object(s3: Bucket, fault: Callable[..., Fault]) -> None:
    for starts, lengths in (([0, 5_000], [10, 10]), ([0, 5_000], [3_000, 10])):
        s3.objects().put("a", DATA)
        fault("changed")
        with pytest.raises(Changed):
            s3.objects().get_ranges("a", starts, lengths)


def test_an_etag_that_is_asked_for_is_looked_at(s3: Bucket, fault: Callable[..., Fault]) -> None:
    head = s3.objects().head("a")
    assert head is not None
    fault("etag")  # as from a cache on the way that does not know conditions
    with pytest.raises(Changed, match="Its ETag was"):
        s3.objects().get("a", etag=head.etag)


def test_an_object_is_gone_between_its_parts(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART", 1024)
    objects = s3.objects()
    first = objects._range

    def once(*args: object, **more: object) -> object:
        found = first(*args, **more)  # type: ignore[arg-type]
        s3.service.objects.delete("bucket", "run/a")
        return found

    monkeypatch.setattr(objects, "_range", once)
    with pytest.raises(Gone):
        objects.get("a")


# ------------------------------------------------------------------------------------- writes


@pytest.mark.parametrize("kind", ["lost", "late"])
def test_a_write_whose_answer_was_lost_is_no_other_one(
    s3: Bucket, fault: Callable[..., Fault], kind: str
) -> None:
    objects = s3.objects()
    fault(kind, "PutObject", error="InternalError", times=2)
    etag = objects.put("b", b"mine", if_absent=True)
    assert bytes(objects.get("b", etag=etag)) == b"mine"
    fault(kind, "PutObject", error="InternalError")
    second = objects.put("b", b"second", if_match=etag)
    assert bytes(objects.get("b", etag=second)) == b"second"
    fault(kind, "PutObject", error="InternalError")
    with pytest.raises(Exists):
        objects.put("b", b"second", if_absent=True)
    with pytest.raises(Changed):
        objects.put("b", b"second", if_match=etag)
    assert bytes(objects.get("b")) == b"second"


def test_a_write_that_another_one_got_between_the_tries_of(
    s3: Bucket, fault: Callable[..., Fault]
) -> None:
    fault("reset", "PutObject")
    objects = s3.objects()
    s3.clock.sleep = lambda _: s3.objects().put("b", b"other", if_absent=True)  # type: ignore
    objects = s3.objects()
    with pytest.raises(Exists):
        objects.put("b", b"mine", if_absent=True)
    assert bytes(objects.get("b")) == b"other"


@pytest.mark.parametrize(
    "more",
    [
        {"kind": "status", "error": "SlowDown"},
        {"kind": "reset"},
        {"kind": "lost"},
        {"kind": "late", "error": "InternalError"},
    ],
)
@pytest.mark.parametrize(
    "operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipart.*"]
)
def test_a_writer_goes_on(
    s3: Bucket, fault: Callable[..., Fault], operation: str, more: dict[str, object]
) -> None:
    came = fault(operation=operation, **more)
    data = DATA * 1_200  # three parts
    etag = _written(s3.objects(), data)
    assert came.came == 1
    assert bytes(s3.objects().get("a", etag=etag)) == data


@pytest.mark.parametrize(
    "operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipart.*"]
)
def test_a_writer_that_is_refused_leaves_what_was_there(
    s3: Bucket, fault: Callable[..., Fault], operation: str
) -> None:
    before = s3.unfinished
    fault("status", operation, error="AccessDenied", times=None)
    with pytest.raises(StorageError, match="need s3:PutObject on arn:aws:s3:::bucket/run/a"):
        _written(s3.objects(), bytes(12 * MB))
    assert s3.unfinished == before
    assert bytes(s3.objects().get("a")) == DATA


def test_a_writer_that_cannot_even_abort(s3: Bucket, fault: Callable[..., Fault]) -> None:
    fault("status", "(AbortMultipartUpload|UploadPart)", error="AccessDenied", times=None)
    with pytest.raises(ZeroDivisionError), s3.objects().writer("a", size=12 * MB) as writer:
        writer.write(bytes(12 * MB))
        raise ZeroDivisionError
    assert bytes(s3.objects().get("a")) == DATA


def test_a_writer_and_its_deadline(s3: Bucket, fault: Callable[..., Fault]) -> None:
    before = s3.unfinished
    fault("throttle", "UploadPart", times=None)
    with pytest.raises(StorageError, match=r"within 1 s for one of its parts.*SlowDown"):
        _written(s3.objects(deadline_s=1.0), bytes(12 * MB))
    assert s3.unfinished == before


def test_another_one_writes_the_same_object(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = s3.objects()
    head = objects.head
    monkeypatch.setattr(objects, "head", lambda key: s3.objects().put(key, b"2") and head(key))
    with pytest.raises(Changed, match="10240 bytes were written, and then it has 1"):
        _written(objects, DATA)


# ------------------------------------------------------------------------------------- regions


def test_a_bucket_of_another_region(s3: Bucket) -> None:
    s3.service.objects.make("far-away", "eu-west-3")
    for request in (
        lambda: s3.objects("s3://far-away").get("a"),
        lambda: s3.objects("s3://far-away").head("a"),
        lambda: s3.objects("s3://far-away").put("a", b""),
        lambda: next(s3.objects("s3://far-away").list()),
        lambda: _written(s3.objects("s3://far-away"), bytes(6 * MB)),
    ):
        with pytest.raises(StorageError, match=r"not in the region us-east-1.*eu-west-3") as caught:
            request()
        assert "Type storage.s3.region=eu-west-3" in str(caught.value)
    there = s3.objects("s3://far-away", region="eu-west-3")
    there.put("a", DATA)
    assert bytes(there.get("a")) == DATA


def test_the_region_of_the_environment_and_of_a_profile(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.service.objects.make("far-off", "eu-west-3")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert s3.objects("s3://far-off").head("a") is None
    monkeypatch.delenv("AWS_REGION")
    for name in KEYS:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("[profile far]\nregion = eu-west-3\n")
    (tmp_path / "credentials").write_text(
        "[far]\naws_access_key_id = far\naws_secret_access_key = 1\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "far")
    assert s3.objects("s3://far-off").head("a") is None


MALFORMED = error(
    "400 Bad Request",
    "AuthorizationHeaderMalformed",
    "<Region>eu-north-1</Region>",
    message="The authorization header is malformed; the region 'us-east-1' is wrong; expecting "
    "'eu-north-1'",
)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (MALFORMED, "not in the region us-east-1. It is in eu-north-1"),
        (error("301 Moved", "PermanentRedirect"), "Type storage.s3.region=REGION"),
        (error("400 Bad Request", "RequestTimeTooSkewed"), "clock is wrong|failed: HTTP 400"),
        (error("501 Not Implemented", "NotImplemented"), "tried .*HTTP 501 NotImplemented"),
        (
            error("400 Bad Request", "Odd", message="Odd it is."),
            r"failed: HTTP 400 Odd. Odd it is.",
        ),
        (answer("400 Bad Request"), "failed: HTTP 400"),
    ],
)
def test_what_other_servers_say(s3: Bucket, said: bytes, words: str) -> None:
    with contextlib.closing(Script(*[said] * 40)) as server:
        objects = Objects("s3://bucket", Settings(server.endpoint), retry=s3.clock.retry())
        with pytest.raises(StorageError, match=words):
            objects.get("a")


@pytest.mark.parametrize("code", ["RequestTimeout", "ConditionalRequestConflict"])
def test_refusals_that_are_to_be_tried_again(s3: Bucket, code: str) -> None:
    status = "409 Conflict" if code.startswith("C") else "400 Bad Request"
    done = answer("200 OK", "", 'ETag: "1"')
    with contextlib.closing(Script(error(status, code), error(status, code), done)) as server:
        objects = Objects("s3://bucket", Settings(server.endpoint), retry=s3.clock.retry())
        assert objects.put("a", b"", if_absent=True) == '"1"'
        assert len(server.asked) == 3


def test_one_of_many_that_cannot_be_deleted(s3: Bucket) -> None:
    def said(code: str) -> bytes:
        error = f"<Error><Key>a</Key><Code>{code}</Code><Message>No.</Message></Error>"
        return answer("200 OK", f"<DeleteResult>{error}</DeleteResult>")

    done = answer("200 OK", "<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>")
    with contextlib.closing(Script(said("InternalError"), done, said("AccessDenied"))) as server:
        objects = Objects("s3://bucket", Settings(server.endpoint), retry=s3.clock.retry())
        objects.delete("a")
        assert len(server.asked) == 2
        with pytest.raises(StorageError, match="need s3:DeleteObject on arn:aws:s3:::bucket/a"):
            objects.delete("a")


def test_a_body_that_says_it_is_longer(s3: Bucket) -> None:
    head = (
        'ETag: "1"',
        "Content-Range: bytes 0-9/10",
        "Last-Modified: Wed, 25 Nov 2026 00:00:00 GMT",
    )
    whole = answer("206 Partial Content", "0123456789", *head)
    with contextlib.closing(Script(whole[:-4], whole[:-10], whole[:-1], whole)) as server:
        objects = Objects("s3://bucket", Settings(server.endpoint), retry=s3.clock.retry())
        assert bytes(objects.get("a")) == b"0123456789"


# ------------------------------------------------------------------------------------- credentials


def keys(file: Path, key: str) -> None:
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = 1\n")


@pytest.fixture
def keyless(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in KEYS:
        monkeypatch.delenv(name)
    return s3


def expire(key: str) -> Fault:
    return Fault("status", error="ExpiredToken", key=key, times=None)


def test_expired_credentials_are_looked_for_anew(keyless: Bucket, tmp_path: Path) -> None:
    keys(tmp_path / "credentials", "old")
    objects = keyless.objects()
    assert bytes(objects.get("a")) == DATA
    old = keyless.service.faults.add(expire("old"))
    keys(tmp_path / "credentials", "new")
    assert bytes(objects.get("a")) == DATA
    assert old.came == 1 and keyless.clock.pauses == []
    assert objects.head("a") and [*objects.list()] and objects.put("b", b"")
    assert old.came == 1


def test_credentials_that_stay_expired(keyless: Bucket, tmp_path: Path) -> None:
    keys(tmp_path / "credentials", "old")
    old = keyless.service.faults.add(expire("old"))
    objects = keyless.objects()
    with pytest.raises(
        StorageError, match=r"shared-credentials-file\) have expired.*aws sso login"
    ):
        objects.get("a")
    assert old.came == 2
    with pytest.raises(StorageError, match="have expired"):
        objects.head("a")
    with pytest.raises(StorageError, match="have expired"):
        _written(objects, bytes(6 * MB))
    keys(tmp_path / "credentials", "new")
    assert _written(objects, DATA), "a writer cannot go on, but the next one can"


def test_no_credentials_at_all(keyless: Bucket) -> None:
    with pytest.raises(StorageError, match=r"no AWS credentials.*aws configure.*AWS_PROFILE"):
        keyless.objects().get("a")


def test_a_profile_that_is_none(keyless: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match=r"nobody.*Look at AWS_PROFILE"):
        keyless.objects().get("a")


def test_what_is_no_address_is_not_tried_again(
    keyless: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_botocore(monkeypatch)
    (tmp_path / "token").write_text("token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/training")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")  # it wants https here
    with pytest.raises(StorageError, match="builder error"):
        keyless.objects().get("a")
    assert keyless.clock.pauses == []


class Container(http.server.BaseHTTPRequestHandler):
    """What a pod or a task asks for the credentials of its role."""

    def do_GET(self) -> None:
        found = {"AccessKeyId": "of-the-pod", "SecretAccessKey": "1", "Token": "2"}
        right = self.headers["Authorization"] == "let me in"
        body = json.dumps({**found, "Expiration": "2100-01-01T00:00:00Z"}).encode()
        self.send_response(200 if right else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def container() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Container) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/credentials"
        server.shutdown()


@pytest.mark.parametrize("is_there", [True, False], ids=["botocore", "without botocore"])
def test_credentials_of_a_pod(
    keyless: Bucket,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_there: bool,
) -> None:
    if not is_there:
        hide_botocore(monkeypatch)
    (tmp_path / "token").write_text("let me in")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", container)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    assert_signed_by(keyless, "of-the-pod")


ROLE_ANSWER = """
<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>of-the-role</AccessKeyId>
<SecretAccessKey>1</SecretAccessKey><SessionToken>2</SessionToken>
<Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


def test_credentials_of_a_service_account(
    keyless: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of-the-account")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/training")
    with contextlib.closing(Script(*[answer("200 OK", ROLE_ANSWER)] * 4)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        assert_signed_by(keyless, "of-the-role")
        assert b"of-the-account" in b"".join(sts.asked)


def hide_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore", None)
    monkeypatch.setitem(sys.modules, "botocore.session", None)


def assert_signed_by(s3: Bucket, key: str) -> None:
    assert bytes(s3.objects().get("a")) == DATA
    s3.service.faults.add(Fault("status", error="AccessDenied", key=key, times=None))
    with pytest.raises(StorageError, match="access denied"):
        s3.objects().get("a")


def test_a_machine_without_a_role(keyless: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_botocore(monkeypatch)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"no AWS credentials, and this machine has no role"):
        keyless.objects().get("a")
    assert len(keyless.clock.pauses) == store.KEY_TRIES - 1
