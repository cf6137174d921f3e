"""Reading packed data, from a disk and from S3: the right samples, ahead of time, or an error."""

import errno
import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hydra_trainer.data import BatchSampler, Indices
from hydra_trainer.embedded.sagemaker import Fault
from hydra_trainer.errors import DataError, StorageError
from hydra_trainer.objects import Settings
from hydra_trainer.shards import cache as caches
from hydra_trainer.shards.cache import Cache
from hydra_trainer.shards.format import Index, Taken
from hydra_trainer.shards.order import Layout
from hydra_trainer.shards.places import Bucket as InBucket
from hydra_trainer.shards.places import Place, place
from hydra_trainer.shards.reading import Reader, Selection, read_index

from .buckets import KEYS, Bucket, bucket, without_aws
from .faults import in_a_fork
from .packed import numbered, pack

SIZES = [30, 20, 1, 49, 100, 37, 63, 50]
TOTAL = sum(SIZES)
SMALL = Layout(10, 2 * 2000, 2, 2)  # about two shards


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
    gc.collect()  # readers of the test before, which errors hold on to, still fetch ahead
    service.service.faults.clear()
    service.service.calls.clear()
    for key in service.names():
        service.service.objects.delete("bucket", key)
    return service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    numbered(tmp_path / "data", SIZES)
    return tmp_path / "data"


@pytest.fixture
def upload(s3: Bucket, folder: Path) -> Callable[[], Place]:
    """Put the folder into the bucket, without the file names in `but`."""

    def put() -> Place:
        objects = s3.objects("s3://bucket/data")
        for file in folder.iterdir():
            objects.put(file.name, file.read_bytes())
        return InBucket("s3://bucket/data", Settings(s3.endpoint, deadline_s=60))

    return put


def reader(where: Place, layout: Layout = SMALL, **options: Any) -> Reader:
    index = read_index(where)
    assert index is not None
    return Reader(where, index, layout, **options)


def epoch(found: Reader, rank: int = 0, world_size: int = 1) -> list[Indices]:
    size = found.layout.batch_size
    return list(BatchSampler(len(found), size, 3, rank, world_size, order=found.order))


def values(taken: Taken, name: str) -> npt.NDArray[Any]:
    found = taken[name]
    assert isinstance(found, np.ndarray)
    return found


def is_right(taken: Taken, samples: list[int]) -> bool:
    numbers = np.asarray(samples)
    rows = np.array_equal(values(taken, "data"), np.repeat(numbers[:, None], 8, 1))
    return rows and np.array_equal(values(taken, "id"), numbers)


def whole(found: Reader) -> None:
    for batch in epoch(found):
        assert is_right(found.take(batch, batch.place), batch)


# --- the right samples ---


@pytest.mark.parametrize("layout", [SMALL, Layout(10, 10**6), Layout(64, 1), Layout(350, 4000)])
def test_samples_are_those_that_were_packed(folder: Path, layout: Layout) -> None:
    found = reader(place(str(folder)), layout)
    whole(found)
    whole(found)
    assert is_right(found.take([349, 0, 50, 50, 51]), [349, 0, 50, 50, 51])
    assert values(found.take([]), "data").shape == (0, 8)
    for wrong in ([350], [-1], [0, 9999]):
        with pytest.raises(IndexError):
            found.take(wrong)


def test_batches_that_nobody_foretold_are_right(folder: Path) -> None:
    found = reader(place(str(folder)))
    batches = epoch(found)
    for number in (3, 4, 20, 1, 2, 3, 30, 31, 0):
        batch = batches[number]
        assert is_right(found.take(batch, batch.place), batch)
        assert is_right(found.take([5, 340, 77]), [5, 340, 77])


def test_a_column_without_a_shape(tmp_path: Path) -> None:
    files = [bytes([n]) * n for n in range(40)]
    pack(tmp_path, [{"x": files[:13]}, {"x": files[13:14]}, {"x": files[14:]}])
    found = reader(place(str(tmp_path)))
    samples = [39, 0, 13, 12, 14, 20, 1]
    assert [x.tobytes() for x in found.take(samples)["x"]] == [files[n] for n in samples]


def test_values_of_every_width_and_form(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    part: dict[str, npt.NDArray[Any]] = {
        "a": draw.integers(0, 99, (9, 3, 5)).astype(np.int16),
        "b": draw.random((9,)).astype(np.float32),
        "c": draw.random((9, 1, 7)),
        "d": draw.integers(0, 2, (9, 5)).astype(bool),
        "e": draw.integers(0, 9, (9, 3)).astype(np.uint8),
    }
    pack(tmp_path, [part, part])
    taken = reader(place(str(tmp_path))).take([0, 17, 4])
    for name, packed in part.items():
        assert values(taken, name).dtype == packed.dtype
        assert np.array_equal(values(taken, name), packed[[0, 8, 4]])
    only = reader(place(str(tmp_path)), names=["b"])
    assert list(only.take([1])) == ["b"]
    with pytest.raises(DataError, match="no column 'z'"):
        reader(place(str(tmp_path)), names=["z"])


def test_parts_of_a_set_share_no_sample_and_leave_none_out(folder: Path) -> None:
    where = place(str(folder))
    index = read_index(where)
    assert index is not None
    parts = [(0.0, 0.1), (0.1, 0.25), (0.25, 1.0)]
    seen = []
    for low, high in parts:
        found = Reader(where, index, SMALL, Selection(index, low, high))
        assert abs(len(found) - TOTAL * (high - low)) <= 1
        seen.append(values(found.take(np.arange(len(found))), "id"))
        rows = [values(found.take(batch, batch.place), "id") for batch in epoch(found)]
        assert set(np.concatenate(rows).tolist()) <= set(seen[-1].tolist())
    assert sorted(np.concatenate(seen).tolist()) == list(range(TOTAL))
    assert seen[0].tolist() != sorted(seen[0].tolist())  # of each shard a mix, not its head


def test_a_reader_goes_to_a_worker_without_what_it_holds(folder: Path) -> None:
    found = reader(place(str(folder)))
    whole(found)
    copy = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 10_000
    whole(copy)

    def child() -> None:
        whole(found)

    assert in_a_fork(child) == 0
    whole(found)


def test_threads_and_memory_end_with_the_reader(folder: Path) -> None:
    before = threading.active_count()
    found = reader(place(str(folder)))
    batch = epoch(found)[0]
    found.take(batch, batch.place)
    assert threading.active_count() > before
    del found
    assert threading.active_count() == before


# --- from S3 ---


def test_from_s3_they_are_the_same_and_each_shard_is_read_once(
    folder: Path, upload: Callable[[], Place], s3: Bucket
) -> None:
    local, found = reader(place(str(folder))), reader(upload(), Layout(10, 10**6))
    whole(found)
    assert s3.count("GetObject") == len(SIZES) + 1  # and the index
    whole(found)
    assert s3.count("GetObject") == len(SIZES) + 1
    streamed = reader(upload())
    assert [list(b) for b in epoch(local)] == [list(b) for b in epoch(streamed)]
    for batch in epoch(streamed):
        taken, other = streamed.take(batch, batch.place), local.take(batch, batch.place)
        assert all(np.array_equal(taken[name], other[name]) for name in taken)


def test_ranks_together_read_little_more_than_the_data(
    tmp_path: Path, s3: Bucket, folder: Path, upload: Callable[[], Place]
) -> None:
    for file in folder.iterdir():
        file.unlink()
    index = numbered(folder, [20] * 32)
    largest = max(shard.size for shard in index.shards)
    where, layout = upload(), Layout(8, 4 * largest, 4, 1)
    ranks = [reader(where, layout) for _ in range(4)]
    s3.service.calls.clear()
    for rank, found in enumerate(ranks):
        for batch in epoch(found, rank, 4):
            assert is_right(found.take(batch, batch.place), batch)
    # Each of three borders between lanes may lie in a shard; and the next epoch has been begun.
    assert s3.count("GetObject") <= 32 + 3 + 4 * 2


def test_memory_is_bounded(folder: Path) -> None:
    found = reader(place(str(folder)), Layout(10, 2 * 5000, 2, 1))
    whole(found)
    largest = max(shard.size for shard in found.index.shards)
    assert found._here is not None
    assert len(found._here.memory) <= 4 * (largest + 64)


def test_what_comes_next_is_fetched_before_it_is_asked_for(
    upload: Callable[[], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = reader(upload(), Layout(10, 10**6, 2, 2))
    read, all_read = [], threading.Event()
    source = found.opener.source
    original = source.read

    def noted(shard: Any, target: Any) -> None:
        original(shard, target)
        read.append(shard.file)
        if len(read) == len(SIZES):
            all_read.set()

    monkeypatch.setattr(source, "read", noted)
    batch = epoch(found)[0]
    found.take(batch, batch.place)
    assert all_read.wait(30)


# --- what goes wrong ---


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


BROKEN = [
    (Path.unlink, "is missing"),
    (damage, "damaged or was changed: .* has the checksum"),
    (truncate, r"cut short or was changed: it has \d+ bytes"),
]


@pytest.mark.parametrize(("breaks", "said"), [*BROKEN, (lengthen, "was changed")])
def test_a_broken_shard_is_named_and_never_read(folder: Path, breaks: Any, said: str) -> None:
    found = reader(place(str(folder)))
    file = folder / found.index.shards[4].file
    content = file.read_bytes()
    breaks(file)
    assert is_right(found.take([0, 349]), [0, 349])
    for _ in range(2):
        with pytest.raises(DataError, match=rf"(?s){file}.*{said}.*data pack"):
            found.take([0, 120])
    file.write_bytes(content)  # put back, as the message says
    assert is_right(found.take([0, 120]), [0, 120])


@pytest.mark.parametrize(("breaks", "said"), BROKEN)
def test_a_broken_object_is_named_and_never_read(
    folder: Path, upload: Callable[[], Place], s3: Bucket, breaks: Any, said: str
) -> None:
    found = reader(upload())
    name = found.index.shards[4].file
    breaks(folder / name)
    s3.service.objects.delete("bucket", f"data/{name}")
    upload()
    assert is_right(found.take([0, 349]), [0, 349])
    with pytest.raises(DataError, match=rf"(?s)s3://bucket/data/{name}.*{said}.*data pack"):
        found.take([0, 120])


@pytest.mark.parametrize(
    "fault",
    [
        Fault("half", operation="s3:GetObject", after=700, times=2),
        Fault("status", error="SlowDown", operation="s3:GetObject", times=3),
        Fault("status", error="InternalError", operation="s3:GetObject", times=2),
        Fault("lost", operation="s3:GetObject", times=2),
    ],
)
def test_a_bad_day_of_s3_changes_nothing(
    upload: Callable[[], Place], s3: Bucket, fault: Fault
) -> None:
    found = reader(upload())
    s3.service.faults.add(fault)
    whole(found)


def test_when_s3_gives_nothing_the_error_says_what_and_the_reader_recovers(
    upload: Callable[[], Place], s3: Bucket
) -> None:
    found = reader(upload())
    s3.service.faults.add(
        Fault("status", error="AccessDenied", operation="s3:GetObject", times=None)
    )
    with pytest.raises(StorageError, match=r"s3:GetObject.*bucket/data/0000"):
        whole(found)
    s3.service.faults.clear()
    whole(found)


# --- the cache ---


def test_the_cache_is_filled_once_and_shared(
    tmp_path: Path, upload: Callable[[], Place], s3: Bucket
) -> None:
    where = upload()
    for _ in range(2):
        whole(reader(where, cache=Cache(tmp_path / "cache", 10**9)))
    assert s3.count("GetObject") == len(SIZES) + 2  # two indexes
    assert len(list((tmp_path / "cache").glob("*.bin"))) == len(SIZES)


def test_processes_that_need_a_shard_at_once_fetch_it_once(
    tmp_path: Path, upload: Callable[[], Place], s3: Bucket
) -> None:
    where, begin = upload(), threading.Barrier(4)
    index = read_index(where)
    assert index is not None
    errors: list[BaseException] = []

    def read() -> None:
        try:
            found = Reader(where, index, SMALL, cache=Cache(tmp_path / "cache", 10**9))
            begin.wait()
            whole(found)
        except BaseException as error:
            errors.append(error)

    s3.service.calls.clear()
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert s3.count("GetObject") == len(SIZES)


def test_the_cache_stays_within_its_size(tmp_path: Path, upload: Callable[[], Place]) -> None:
    found = reader(upload(), cache=Cache(tmp_path / "cache", 10_000))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".0123.part").write_bytes(b"left by a kill")
    whole(found)
    files = list((tmp_path / "cache").glob("*.bin"))
    assert 0 < sum(file.stat().st_size for file in files) <= 10_000
    assert list((tmp_path / "cache").glob(".*.part")) == []


def test_what_is_damaged_in_the_cache_is_fetched_again(
    tmp_path: Path, upload: Callable[[], Place], s3: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    where = upload()
    whole(reader(where, cache=Cache(tmp_path / "cache", 10**9)))
    first, second, *_ = sorted((tmp_path / "cache").glob("*.bin"))
    damage(first)
    truncate(second)
    s3.service.calls.clear()
    whole(reader(where, cache=Cache(tmp_path / "cache", 10**9)))
    assert s3.count("GetObject") == 2 + 1
    assert caplog.text.count("fetched again") >= 2
    s3.service.calls.clear()
    whole(reader(where, cache=Cache(tmp_path / "cache", 10**9)))
    assert s3.count("GetObject") == 1


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot be written")]
)
def test_a_cache_that_cannot_be_written_is_said_once_and_done_without(
    number: int,
    said: str,
    tmp_path: Path,
    upload: Callable[[], Place],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        is_written = path.parent == tmp_path / "cache" and "r" not in mode
        if is_written and (number == errno.EROFS or path.suffix == ".part"):
            raise OSError(number, os.strerror(number))
        return opened(path, mode, *args, **options)

    monkeypatch.setattr(caches.Path, "open", refuse)
    whole(reader(upload(), cache=Cache(tmp_path / "cache", 10**9)))
    told = [record.getMessage() for record in caplog.records if "data.cache" in record.getMessage()]
    assert len(told) == 1
    assert said in told[0]
    assert "data.cache=null" in told[0]
    assert list((tmp_path / "cache").glob("*.bin")) == []


def test_a_cache_of_a_folder_that_is_a_file(
    tmp_path: Path, upload: Callable[[], Place], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()
    whole(reader(upload(), cache=Cache(tmp_path / "cache", 10**9)))
    assert "data.cache" in caplog.text


def test_an_index_is_read_or_named(tmp_path: Path, s3: Bucket) -> None:
    assert read_index(place(str(tmp_path))) is None
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DataError, match=str(tmp_path / "index.json")):
        read_index(place(str(tmp_path)))
    index: Index | None = read_index(InBucket("s3://bucket/none", Settings(s3.endpoint)))
    assert index is None
