"""Objects in S3, against the embedded service: what is read, written and listed, and how much."""

import gc
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hydra_trainer.errors import Changed, ConfigError, Exists, Gone, StorageError
from hydra_trainer.objects import Facts, Objects, Settings, store
from hydra_trainer.objects.store import _parts

from .buckets import KEYS, Bucket, bucket, in_a_fork, without_aws

MB = 1 << 20
DATA = random.Random(0).randbytes(10_000)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with bucket(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(autouse=True)
def s3(service: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in without_aws():
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    service.service.faults.clear()
    service.service.calls.clear()
    for key in service.names():
        service.service.objects.delete("bucket", key)
    return service


@pytest.fixture
def objects(s3: Bucket) -> Objects:
    return s3.objects()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 1000 bytes, so that DATA has ten, and gaps of 10."""
    monkeypatch.setattr(store, "PART", 1000)
    monkeypatch.setattr(store, "GAP", 10)


# ------------------------------------------------------------------------------------- one request


def test_what_is_put_is_got(objects: Objects, s3: Bucket) -> None:
    etag = objects.put("a/b", DATA)
    assert bytes(objects.get("a/b")) == DATA
    assert bytes(objects.get("a/b", 9_000)) == DATA[9_000:]
    assert bytes(objects.get("a/b", 17, 5, etag)) == DATA[17:22]
    assert bytes(objects.get("a/b", 17, 0)) == b""
    assert objects.head("a/b") == Facts("a/b", 10_000, etag)
    assert s3.names() == ["run/a/b"]


@pytest.mark.parametrize(
    "data", [b"", bytearray(b"abc"), memoryview(DATA)[::1], pickle.PickleBuffer(b"xyz")]
)
def test_all_that_has_a_buffer_of_bytes(objects: Objects, data: bytes) -> None:
    objects.put("a", data)
    assert objects.get("a") == bytes(memoryview(data))


@pytest.mark.parametrize(
    "key", ["step=10/state.bin", "a b", "ä€😀", "50%", "a+b", "%41", "a&b?c#d", "x~'()*!"]
)
def test_keys_of_all_kinds(objects: Objects, s3: Bucket, key: str) -> None:
    objects.put(key, DATA)
    assert bytes(objects.get(key, 5, 5)) == DATA[5:10]
    assert s3.names() == [f"run/{key}"]
    assert [one.key for one in objects.list()] == [key]
    objects.delete(key)
    assert s3.names() == []


def test_what_is_not_there(objects: Objects) -> None:
    assert objects.head("a") is None
    with pytest.raises(Gone, match="GetObject of s3://bucket/run/a: there is no such object"):
        objects.get("a")
    with pytest.raises(Gone):
        objects.get_ranges("a", [1], [2])
    objects.delete("a")  # nothing to do


def test_more_than_an_object_has(objects: Objects) -> None:
    objects.put("a", DATA)
    with pytest.raises(StorageError, match="it has 10000 bytes, and 2 from 9999 were asked for"):
        objects.get("a", 9_999, 2)
    with pytest.raises(StorageError, match="ends before byte 10000"):
        objects.get("a", 10_000, 2)
    with pytest.raises(StorageError, match="ends before byte 10001"):
        objects.get("a", 10_001)


def test_one_request_is_enough_for_a_small_object(objects: Objects, s3: Bucket) -> None:
    objects.put("a", DATA)
    objects.get("a")
    assert s3.count("GetObject") == 1 and s3.count("HeadObject") == 0


def test_a_uri_that_is_none() -> None:
    for uri in ("/tmp/x", "s3:/bucket", "gs://bucket", "s3://", "s3://bucket/a//b", "s3://b/../c"):
        with pytest.raises(ConfigError, match=r"s3://|prefix"):
            Objects(uri)
    assert Objects("s3://bucket/a/").below("b/").uri == "s3://bucket/a/b"
    assert Objects("s3://bucket").below("b").uri == "s3://bucket/b"


def test_settings_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = {"endpoint": "http://here:1/", "region": "eu-west-1", "deadline": 5}
    settings = Settings.of({"storage": {"s3": s3}})
    assert settings == Settings("http://here:1/", "eu-west-1", 5.0)
    assert settings.address == "http://here:1" and settings.place == "eu-west-1"
    assert Settings.of({"storage": {"s3": {"endpoint": None}}}) == Settings.of({}) == Settings()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:1")
    assert Settings().address == "http://all:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:1")
    assert Settings().address == "http://s3:1" and settings.address == "http://here:1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "a")
    assert Settings().place == "a"
    monkeypatch.setenv("AWS_REGION", "b")
    assert Settings().place == "b"


def test_what_the_configuration_says_comes_before_the_environment(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    s3.objects().put("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    assert bytes(Objects("s3://bucket/run").get("a")) == b"1"


def test_a_silent_server_is_given_up_several_times_within_the_deadline(s3: Bucket) -> None:
    client = s3.objects(deadline_s=8).client()
    for one in (client.once, client.patient):
        options = one.client_options
        assert (options["read_timeout"], options["timeout"]) == ("2s", "8s")
        assert options["connect_timeout"] == "2s"


def test_the_library_comes_with_the_first_request(s3: Bucket) -> None:
    code = (
        "import sys; from hydra_trainer.objects import Objects; Objects('s3://bucket/a');"
        "assert not {'obstore', 'botocore', 'numpy', 'torch'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'hydra-trainer\[s3\]'"):
        s3.objects().get("a")


# ------------------------------------------------------------------------------------- in parts


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (0, 10_000), (1, None), (500, 9_000), (0, 1000), (0, 1001), (9_999, 1), (3, 2_000)],
)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_large_object_is_read_in_parts(
    objects: Objects, s3: Bucket, start: int, length: int | None, pinned: bool
) -> None:
    etag = objects.put("a", DATA)
    end = 10_000 if length is None else start + length
    assert bytes(objects.get("a", start, length, etag if pinned else None)) == DATA[start:end]
    assert s3.count("GetObject") == -(-(end - start) // 1000)
    target = bytearray(end - start)
    assert objects.get_into("a", target, start, etag if pinned else None) == etag
    assert target == DATA[start:end]


@pytest.mark.usefixtures("small")
def test_an_object_that_ends_before_its_parts_do(objects: Objects) -> None:
    objects.put("a", DATA)
    with pytest.raises(StorageError, match="it has 10000 bytes"):
        objects.get("a", 100, 9_901)
    with pytest.raises(StorageError, match=r"ends before byte|it has 10000 bytes"):
        objects.get_into("a", bytearray(20_000))
    assert objects.get_into("a", bytearray()) == ""


@pytest.mark.usefixtures("small")
def test_pieces_of_an_object(objects: Objects, s3: Bucket) -> None:
    etag = objects.put("a", DATA)
    draw = random.Random(1)
    for _ in range(20):
        starts = [draw.randrange(9_000) for _ in range(draw.randrange(12))]
        lengths = [draw.choice((0, 1, 5, 300, 1000)) for _ in starts]
        found = objects.get_ranges("a", starts, lengths, draw.choice((None, etag)))
        assert found == [DATA[a : a + n] for a, n in zip(starts, lengths, strict=True)]
    assert objects.get_ranges("a", [5, 0], [4_000, 3]) == [DATA[5:4_005], DATA[:3]]


@pytest.mark.usefixtures("small")
def test_pieces_near_each_other_are_one_request(objects: Objects, s3: Bucket) -> None:
    objects.put("a", DATA)
    objects.get_ranges("a", [0, 109, 219, 600], [100, 100, 100, 300])
    assert s3.count("GetObject") == 2  # the last one is further away than GAP


# ------------------------------------------------------------------------------------- conditions


def test_only_if_there_is_none(objects: Objects) -> None:
    etag = objects.put("a", b"1", if_absent=True)
    with pytest.raises(Exists, match="PutObject of s3://bucket/run/a: there is such an object"):
        objects.put("a", b"1", if_absent=True)
    assert bytes(objects.get("a", etag=etag)) == b"1"


def test_only_if_it_is_that_one(objects: Objects) -> None:
    etag = objects.put("a", b"1")
    second = objects.put("a", b"2", if_match=etag)
    with pytest.raises(Changed, match=r"PutObject of s3://bucket/run/a: .* is another one"):
        objects.put("a", b"3", if_match=etag)
    with pytest.raises(Changed, match="GetObject"):
        objects.get("a", etag=etag)
    assert bytes(objects.get("a", etag=second)) == b"2"
    with pytest.raises(Gone):
        objects.put("b", b"3", if_match=etag)


def test_one_of_many_writers_is_the_first(objects: Objects) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def write(number: int) -> bool:
        try:
            objects.put("a", b"%d" % number, if_absent=True)
        except Exists:
            return False
        return objects.get("a") == b"%d" % number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(write, range(8))) == [False] * 7 + [True]


# ------------------------------------------------------------------------------------- a writer


@pytest.mark.parametrize("size", [0, 1, 3 * MB, 12 * MB + 1])
def test_a_writer_writes_an_object(objects: Objects, s3: Bucket, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with objects.writer("a", size=size) as writer:
        for at in range(0, size, 5_000_000):
            writer.write(memoryview(data)[at : at + 5_000_000])
            assert s3.names() == []
    assert writer.written == size
    head = objects.head("a")
    assert head is not None and head.etag == writer.etag
    assert objects.get("a", etag=writer.etag) == data
    assert s3.unfinished == []


def test_a_buffer_may_be_used_again_as_soon_as_it_is_written(objects: Objects) -> None:
    buffer, data = bytearray(MB), random.Random(1).randbytes(12 * MB)
    with objects.writer("a") as writer:
        for at in range(0, len(data), MB):
            buffer[:] = data[at : at + MB]
            writer.write(buffer)
            buffer[:] = bytes(MB)
    assert objects.get("a") == data


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_writer_that_does_not_end_well_leaves_nothing(
    objects: Objects, s3: Bucket, kind: type[BaseException]
) -> None:
    for size in (10, 12 * MB):
        with pytest.raises(kind), objects.writer("a", size=size) as writer:
            writer.write(bytes(size))
            raise kind
        assert not s3.names() and not s3.unfinished
    assert s3.count("AbortMultipartUpload") == 1


def test_a_large_put_is_in_parts(
    objects: Objects, s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SINGLE", 5 * MB)
    data = random.Random(0).randbytes(12 * MB)
    assert objects.get("a", etag=objects.put("a", data)) == data
    assert s3.count("CompleteMultipartUpload") == 1 and s3.count("PutObject") == 0
    objects.put("b", data, if_absent=True)
    assert s3.count("PutObject") == 1  # a condition is for one request


def test_what_is_on_its_way_is_bounded() -> None:
    for size in (None, 0, 100 * MB, 500 * MB, 3_000 * MB, 10_000 * MB, 5_000_000 * MB):
        part, together = _parts(size)
        assert part >= 5 * MB, "S3 takes no smaller one"
        if size is not None:
            assert part * 9_999 >= size, "S3 takes no more than 10,000"
            assert (together + 1) * part <= max(0.04 * size, 20 * MB)


# ------------------------------------------------------------------------------------- lists


def test_lists(objects: Objects, s3: Bucket) -> None:
    keys = ["a/1", "a/2/3", "ab/4", "b", "c/5"]
    for key in keys:
        objects.put(key, key.encode())
    s3.objects("s3://bucket").put("running/x", b"")
    assert [one.key for one in objects.list()] == keys
    assert [(one.key, one.size) for one in objects.list("a")] == [("a/1", 3), ("a/2/3", 5)]
    assert next(objects.list("b/"), None) is None
    assert objects.folders() == ["a", "ab", "c"]
    assert objects.folders("a/") == ["a/2"]
    assert objects.folders("x") == []
    assert s3.objects("s3://bucket").folders() == ["run", "running"]
    objects.delete("a/1", "b", "none")
    assert [one.key for one in objects.list()] == ["a/2/3", "ab/4", "c/5"]
    objects.delete()


def test_a_list_of_many_pages(objects: Objects, s3: Bucket) -> None:
    for number in range(2_000):
        s3.service.objects.put("bucket", f"run/many/{number:04}", b"")
    assert [one.key for one in objects.list("many")] == [f"many/{n:04}" for n in range(2_000)]
    objects.delete(*(one.key for one in objects.list("many")))
    assert s3.names() == []


# ------------------------------------------------------------------------------------- processes


def test_a_child_of_fork_has_a_client_of_its_own(objects: Objects) -> None:
    objects.put("a", DATA)

    def grandchild() -> bool:
        return objects.get("a") == DATA

    def child() -> bool:
        objects.put("b", b"of the child")
        with objects.writer("c") as writer:
            writer.write(DATA)
        # A grandchild is born with two libraries that it cannot use.
        return objects.get("a") == DATA and [*objects.list()] != [] and in_a_fork(grandchild)

    assert in_a_fork(child)
    assert bytes(objects.get("b")) == b"of the child", "the parent goes on with what it has"
    assert bytes(objects.get("c")) == DATA


def test_a_child_that_throws_away_what_its_parent_used(objects: Objects) -> None:
    objects.put("a", DATA)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_used_and_thrown_away, (objects.uri, objects.settings))


def _used_and_thrown_away(uri: str, settings: Settings) -> bool:
    """Leave nobody who knows of any Objects, nor of the library of the parent."""
    found = [one for one in gc.get_objects() if type(one) is Objects]  # a proxy may be dead
    for one in found:
        one._client = None
    del found
    gc.collect()
    return bytes(Objects(uri, settings).get("a")) == DATA


def test_a_child_that_is_born_before_the_first_request(s3: Bucket) -> None:
    s3.objects().put("a", DATA)
    code = (
        "import os; from hydra_trainer.objects import Objects, Settings;"
        "objects = Objects('s3://bucket/run'); child = os.fork();"
        "assert len(objects.get('a')) == 10_000;"
        "child and os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    env = {**os.environ, "AWS_ENDPOINT_URL_S3": s3.endpoint}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)


def test_a_spawned_process_gets_them_by_pickle(objects: Objects) -> None:
    objects.put("a", DATA)
    copy = pickle.loads(pickle.dumps(objects))
    assert (copy.uri, copy.settings) == (objects.uri, objects.settings)
    assert copy.get("a") == DATA
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (objects,)) == DATA


def _read(objects: Objects) -> bytes:
    return bytes(objects.get("a"))


def test_reading_takes_the_memory_of_what_is_read(
    objects: Objects, tmp_path: Path, s3: Bucket
) -> None:
    size = 200 * MB
    with objects.writer("large", size=size) as writer:
        for _ in range(20):
            writer.write(bytes(10 * MB))
    code = f"""
import resource, sys, numpy
from hydra_trainer.objects import Objects
objects = Objects("s3://bucket/run")
objects.get("large", 0, 1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
assert len(objects.get("large")) == {size}
print((peak() - before) / {size})
"""
    env = {**os.environ, "AWS_ENDPOINT_URL_S3": s3.endpoint}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True
    )
    # Besides it, four parts of 16 MiB are on their way, some of them twice as they grow.
    assert float(done.stdout) < 1.7
