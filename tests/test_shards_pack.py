"""Packing: what comes out is what went in, whole or not there, and never two jobs' at once."""

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hydra_trainer.datasets.cifar10 import CIFAR10
from hydra_trainer.datasets.tokens import Tokens, text_tokens
from hydra_trainer.embedded.sagemaker.faults import Fault
from hydra_trainer.embedded.sagemaker.service import Service
from hydra_trainer.errors import ConfigError, DataError, StorageError
from hydra_trainer.shards import places
from hydra_trainer.shards.commands import pack
from hydra_trainer.shards.format import INDEX, Block, Column, Index
from hydra_trainer.shards.places import Folder, Occupied, Place, place
from hydra_trainer.shards.sources import TEXT, Options, _column, _values, sources
from hydra_trainer.shards.tools import index_of, verify
from hydra_trainer.shards.writing import Writer

from .test_datasets import members
from .test_datasets import pack as archived

Values = npt.NDArray[Any]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with (
        Service(tmp_path_factory.mktemp("service"), limits=False, make_buckets=True) as found,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL_S3", found.endpoint)
        patch.setenv("AWS_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "embedded")
        yield found


@pytest.fixture(params=["folder", "bucket"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place for a data set: of each kind."""
    if request.param == "folder":
        return place(str(tmp_path / "a b" / "set"))
    request.getfixturevalue("service")
    return place(f"s3://packed/{tmp_path.name}")


def everything(where: Place) -> dict[str, Values | list[Values]]:
    """All samples of a data set, by column, after every checksum was compared."""
    index = index_of(where)
    assert list(verify(where, index)) == []
    blocks = [Block(index.columns, shard, where.fetch(shard.file)) for shard in index.shards]
    parts = [block.take(range(block.shard.samples)) for block in blocks]
    found: dict[str, Values | list[Values]] = {}
    for column in index.columns:
        pieces: list[Any] = [part[column.name] for part in parts]
        if column.shape is None:
            found[column.name] = [value for piece in pieces for value in piece]
        else:
            found[column.name] = np.concatenate(pieces)
    return found


def files(where: Place) -> dict[str, bytes]:
    return {name: bytes(where.fetch(name)) for name in where.sizes()}


# --- the writer ---

COLUMNS = (Column("x", "uint16", (3,)), Column("y", "int32", None))
COUNT = 500
X = RNG.integers(0, 2**16, (COUNT, 3), dtype=np.uint16)
OFFSETS = np.cumsum([0, *RNG.integers(0, 40, COUNT)])
Y = RNG.integers(-9, 9, OFFSETS[-1], dtype=np.int32)


def batches(*cuts: int) -> Iterator[dict[str, Any]]:
    edges = [0, *cuts, COUNT]
    for begin, end in pairwise(edges):
        yield {"x": X[begin:end], "y": (OFFSETS[begin : end + 1], Y)}


def write(where: Place, *cuts: int, shard_size: int = 4096, **more: Any) -> Index:
    with Writer(where, COLUMNS, shard_size=shard_size, **more) as writer:
        for batch in batches(*cuts):
            writer.add(batch)
        writer.finish({"a": 1})
        writer.commit()
    return index_of(where)


def test_batches_of_any_size_give_the_same_bytes(where: Place, tmp_path: Path) -> None:
    index = write(where)
    assert len(index.shards) > 10
    assert all(shard.size <= 4096 for shard in index.shards)
    assert all(shard.size > 3500 for shard in index.shards[:-1])
    found = everything(where)
    assert np.array_equal(found["x"], X)
    assert all(np.array_equal(found["y"][i], Y[OFFSETS[i] : OFFSETS[i + 1]]) for i in range(COUNT))
    for number, cuts in enumerate([(1, 2, 3), range(1, COUNT), (250,), (0, 0, 499)]):
        other = place(str(tmp_path / f"{number}"))
        write(other, *cuts)
        assert files(other) == files(where)


def test_a_sample_larger_than_a_shard_has_one_for_itself(where: Place) -> None:
    index = write(where, shard_size=1)
    assert [shard.samples for shard in index.shards] == [1] * COUNT
    assert np.array_equal(everything(where)["x"], X)


def test_nothing_to_pack_is_said(where: Place) -> None:
    with Writer(where, COLUMNS) as writer, pytest.raises(DataError, match="the source is empty"):
        writer.finish({})
    assert where.sizes() == {}


# --- killed ---


def forked(act: Callable[[], object]) -> int:
    """Do something in a child process; return how it ended, as os.waitpid says it."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            act()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1]


def dying(module: Any, name: str, at: int, after: bool) -> None:
    """Make a function kill this process at its n-th call, before or after it did its work."""
    count = iter(range(10_000))
    real = getattr(module, name)

    def once(*words: Any) -> Any:
        last = next(count) == at
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*words)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(module, name, once)


@pytest.mark.parametrize("before", [False, True], ids=["new", "over another"])
def test_a_pack_that_is_killed_anywhere_leaves_no_half_set(before: bool, tmp_path: Path) -> None:
    whole = place(str(tmp_path / "whole"))
    write(whole, shard_size=16384)
    old = place(str(tmp_path / "old"))
    write(old, shard_size=20000)
    ends = []
    for name in ("fsync", "link", "unlink"):
        for at in range(100):
            for after in (False, True):
                where = place(str(tmp_path / f"{name} {at} {after}"))
                if before:
                    write(where, shard_size=20000)

                def killed(name: str = name, at: int = at, after: bool = after) -> None:
                    dying(os, name, at, after)
                    write(where, shard_size=16384, overwrite=before)  # noqa: B023

                status = forked(killed)
                if os.WIFSIGNALED(status):
                    ends.append((name, at))
                    if where.read(INDEX) is None:
                        assert not before
                        write(where, shard_size=16384)
                    else:
                        # One of the two sets, in full, whatever else lies there.
                        everything(where)
                        assert where.read(INDEX) in (whole.read(INDEX), old.read(INDEX))
                        write(where, shard_size=16384, overwrite=True)
                assert files(where) == files(whole)
            if not os.WIFSIGNALED(status):
                break
        else:
            raise AssertionError(f"{name} is called without end")
    assert len(ends) > 8


@pytest.mark.parametrize("name", ["write", "commit"])
@pytest.mark.parametrize("after", [False, True])
def test_a_pack_to_s3_that_is_killed_leaves_no_half_set(
    name: str, after: bool, service: Service, tmp_path: Path
) -> None:
    where = place(f"s3://packed/{tmp_path.name}")

    def killed() -> None:
        dying(places.Bucket, name, 2 if name == "write" else 0, after)
        write(where, shard_size=5000)

    assert os.WIFSIGNALED(forked(killed))
    done = name == "commit" and after
    assert (where.read(INDEX) is not None) == done
    assert len(where.sizes()) >= 2
    write(where, shard_size=6000, overwrite=done)  # with other options: nothing can be used again
    assert {*where.sizes()} == {INDEX, *(shard.file for shard in index_of(where).shards)}
    everything(where)


def test_what_a_killed_pack_has_written_is_used(tmp_path: Path) -> None:
    where = Folder(tmp_path / "set")
    with Writer(where, COLUMNS, shard_size=4096) as writer:
        for batch in batches():
            writer.add(batch)
        writer.finish({})
    assert where.read(INDEX) is None
    times = {name: (where.path / name).stat().st_mtime_ns for name in where.sizes()}
    first, second = sorted(times)[:2]
    (where.path / first).write_bytes(bytes(where.sizes()[first]))  # the disk lost it
    (where.path / f".{second}.{'0' * 32}").write_bytes(b"half")
    (where.path / "notes.txt").write_text("mine")
    write(where, 7)
    again = {name: (where.path / name).stat().st_mtime_ns for name in where.sizes()}
    assert [name for name in times if times[name] != again[name]] == [first]
    assert {*again} - {*times} == {INDEX, "notes.txt"}
    everything(where)


# --- two jobs ---


def test_the_second_of_two_jobs_is_refused_and_takes_its_shards_away(where: Place) -> None:
    one = Writer(where, COLUMNS, shard_size=4096)
    two = Writer(where, COLUMNS, shard_size=5000)
    for writer in (one, two):
        for batch in batches():
            writer.add(batch)
        writer.finish({})
    one.commit()
    kept = files(where)
    with pytest.raises(Occupied, match=r"Another job has packed to .* --overwrite to replace it"):
        two.commit()
    everything(where)
    assert files(where).items() <= kept.items()
    assert {*files(where)} == {INDEX, *(shard.file for shard in one.index.shards)}


def test_a_job_that_was_late_takes_its_shards_away(where: Place) -> None:
    late = Writer(where, COLUMNS, shard_size=5000)
    write(where)
    before = files(where)
    for batch in batches():
        late.add(batch)
    late.finish({})
    assert len(where.sizes()) > len(before)
    with pytest.raises(Occupied, match="Another job has packed to"):
        late.commit()
    assert files(where) == before


def test_an_index_that_appears_at_the_last_moment_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Folder(tmp_path)
    where.commit(b"theirs", None)
    monkeypatch.setattr(Folder, "read", lambda self, name: None)
    with pytest.raises(Occupied, match="Another job has packed to"):
        where.commit(b"ours", None)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"theirs"]


def test_no_index_is_written_for_shards_that_somebody_deleted(where: Place) -> None:
    with Writer(where, COLUMNS, shard_size=4096) as writer:
        for batch in batches():
            writer.add(batch)
        file = writer.finish({}).shards[1].file
        where.remove([file])
        with pytest.raises(Occupied, match=f"{file} was deleted while this job packed"):
            writer.commit()
    assert where.read(INDEX) is None


def test_of_two_jobs_with_the_same_data_the_second_takes_nothing_away(where: Place) -> None:
    one, two = (Writer(where, COLUMNS, shard_size=4096) for _ in range(2))
    for writer in (one, two):
        for batch in batches():
            writer.add(batch)
        writer.finish({})
    one.commit()
    with pytest.raises(Occupied):
        two.commit()
    everything(where)


def test_of_two_jobs_that_replace_a_set_the_second_is_refused(where: Place) -> None:
    write(where)
    jobs = [Writer(where, COLUMNS, shard_size=size, overwrite=True) for size in (5000, 6000)]
    for job in jobs:
        for batch in batches():
            job.add(batch)
        job.finish({})
    jobs[0].commit()
    with pytest.raises(Occupied, match=r"was deleted while this job packed|has packed to"):
        jobs[1].commit()
    assert index_of(where) == jobs[0].index
    everything(where)


def test_a_place_that_is_being_packed_to_is_refused_at_once(tmp_path: Path) -> None:
    where = place(str(tmp_path / "set"))
    with where.alone():
        with pytest.raises(
            Occupied, match=r"Another job is packing to .*set .*Wait for it, or giv"
        ):
            pack(TEXT, where, Options())
        assert where.sizes() == {places.LOCK: 0}
    pack(TEXT, where, Options())
    assert where.sizes() == {}


def test_a_mount_without_locks_or_links_is_packed_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*words: Any) -> None:
        raise OSError(errno.ENOTSUP, "Not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(os, "link", none)
    where = place(str(tmp_path / "set"))
    pack(TEXT, where, Options(split="val"))
    everything(where.below("val"))
    assert where.sizes() == {}


def test_a_data_set_that_is_there_is_replaced_only_on_request(where: Place) -> None:
    write(where)
    before = files(where)
    with pytest.raises(Occupied, match=rf"{INDEX} is there already.*--overwrite to replace"):
        Writer(where, COLUMNS)
    assert files(where) == before
    index = write(where, shard_size=9000, overwrite=True)
    assert {*where.sizes()} == {INDEX, *(shard.file for shard in index.shards)}
    everything(where)


def test_what_has_no_index_that_can_be_read_is_not_replaced(where: Place) -> None:
    where.write(INDEX, b'{"mine": true}')
    with pytest.raises(DataError, match=r"is not the index of a packed .* delete .* yourself"):
        Writer(where, COLUMNS, overwrite=True)
    assert where.read(INDEX) == b'{"mine": true}'


def test_the_splits_of_two_data_sets_are_not_mixed(tmp_path: Path) -> None:
    where = place(str(tmp_path / "set"))
    pack(TEXT, where, Options())
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 2, 3]}), file)
    with pytest.raises(Occupied, match=r"has a split 'val', which .*a\.parquet does not give"):
        pack(str(file), where, Options(), overwrite=True)
    with pytest.raises(Occupied, match=r"train/index.json is there already"):
        pack(str(file), where, Options())
    pack(str(file), where, Options(split="train"), overwrite=True)
    assert [c.name for c in index_of(where.below("train")).columns] == ["x"]
    with pytest.raises(Occupied, match="is a split of a data set itself"):
        pack(str(file), where.below("train"), Options())


def test_a_pack_killed_between_two_splits_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = place(str(tmp_path / "set"))

    def killed() -> None:
        dying(os, "link", 1, True)
        pack(TEXT, where, Options())

    status = forked(killed)
    assert os.WIFSIGNALED(status)
    there = [where.below(name).read(INDEX) is not None for name in ("train", "val", "test")]
    assert there == [True, True, False]
    with pytest.raises(Occupied, match=r"train/index.json is there already"):
        pack(TEXT, where, Options(block_size=64))  # that is another data set
    pack(TEXT, where, Options())
    assert "val: there already, packed from the same source" in capsys.readouterr().out
    whole = place(str(tmp_path / "whole"))
    pack(TEXT, whole, Options())
    for name in ("train", "val", "test"):
        assert files(where.below(name)) == files(whole.below(name))
    with pytest.raises(Occupied, match=r"train/index.json is there already"):
        pack(TEXT, where, Options())


# --- places that cannot be written ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_room(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NFS, a full disk is told at fsync."""
    where = place(str(tmp_path / "set"))
    real, count = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(count) > 3:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"00002-.*the disk is full. Free some .* another place"):
        write(where)
    assert len(where.sizes()) == 2  # no half file takes up what little there is
    monkeypatch.setattr(os, "fsync", real)
    write(where)
    everything(where)


def test_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/set.* cannot be written: Not a directory"):
        pack(TEXT, place(str(tmp_path / "file" / "set")), Options())
    with pytest.raises(DataError, match="gs://b/x is neither a folder nor s3://BUCKET/PREFIX"):
        place("gs://b/x")


def test_a_mount_that_cannot_rename_points_to_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(Path, "replace", no)
    with pytest.raises(DataError, match=r"A mount of a bucket cannot rename: give s3://BUCKET"):
        write(place(str(tmp_path / "set")))
    assert os.listdir(tmp_path / "set") == []  # noqa: PTH208


def test_s3_that_refuses_is_said_and_leaves_no_set(service: Service) -> None:
    where = place("s3://packed/refused")
    service.faults.add(Fault("status", error="AccessDenied", operation="s3:PutObject", skip=2))
    with pytest.raises(StorageError, match=r"s3:PutObject.*s3://packed/refused/00002-"):
        write(where)
    assert where.read(INDEX) is None
    service.faults.clear()
    write(where)
    everything(where)


def test_a_shaky_s3_gets_the_same_set(service: Service, tmp_path: Path) -> None:
    where = place("s3://packed/shaky")
    for kind in ("reset", "lost", "throttle"):
        service.faults.add(Fault(kind, operation="s3:(Put|Get|Head)", share=0.05, times=9, seed=3))
    write(where)
    everything(where)
    service.faults.clear()
    there = place(str(tmp_path / "set"))
    write(there)
    assert files(there) == files(where)


# --- CIFAR-10 ---


def split_of(module: Any, name: str) -> tuple[Values, Values]:
    """The pixels and labels of a split of data=cifar10, unnormalised."""
    dataset = getattr(module, f"{name}_set")
    records = dataset.records[:][dataset.rows]
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar10_is_packed_with_the_split_of_its_data_module(
    version: str, where: Place, tmp_path: Path
) -> None:
    file = archived(tmp_path / "src" / f"cifar-10-{version}.tar.gz", {**members(version)})
    pack(str(file), where, Options(md5="null"), shard_size=100_000)
    module = CIFAR10(str(file), md5=None, cache=str(tmp_path / "cache"))
    module.setup("fit")
    for name in ("train", "val", "test"):
        found, (pixels, labels) = everything(where.below(name)), split_of(module, name)
        assert np.array_equal(found["image"], pixels)
        assert np.array_equal(found["label"], labels)
        facts = index_of(where.below(name)).facts
        assert facts["classes"][3] == "cat"
        assert np.allclose(facts["mean"], (pixels / 255).mean(axis=(0, 2, 3)), atol=1e-5)
        assert np.allclose(facts["std"], (pixels / 255).std(axis=(0, 2, 3)), atol=1e-5)
    pack(str(file.parent), where, Options(md5="null", split="val"), overwrite=True)
    assert len(index_of(where.below("val")).shards) == 1


def test_another_archive_is_refused_in_the_words_of_the_command(tmp_path: Path) -> None:
    file = archived(tmp_path / "cifar-10-python.tar.gz", {**members("python")})
    with pytest.raises(DataError, match=r"has the MD5 .*type --md5 [0-9a-f]{32} \(or --md5 null"):
        sources(str(file), Options())


# --- images ---


def drawn(path: Path, shape: tuple[int, int], value: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (shape[1], shape[0]), value if mode == "L" else (value, 0, 255)).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "my images"
    for number, name in enumerate(("a cat", "dog")):
        for i in range(20):
            suffix = (".png", ".jpg", ".JPEG")[i % 3]
            drawn(root / name / f"{i}{suffix}", (10 + i, 30), 100 * number + i)
    (root / "dog" / "notes.txt").write_text("left out")
    return root


def test_images_are_kept_as_they_are(images: Path, where: Place) -> None:
    pack(str(images), where, Options(val_fraction=0.25))
    assert index_of(where.below("train")).facts["classes"] == ["a cat", "dog"]
    both = [everything(where.below(name)) for name in ("train", "val")]
    assert [len(part["label"]) for part in both] == [30, 10]
    found = {
        (bytes(image), int(label))
        for part in both
        for image, label in zip(part["image"], part["label"], strict=True)
    }
    folders = sorted(folder for folder in images.iterdir())
    assert found == {
        (file.read_bytes(), number)
        for number, folder in enumerate(folders)
        for file in folder.iterdir()
        if file.suffix != ".txt"
    }
    # Mixed: a shard of one class would make batches of one class.
    assert np.count_nonzero(np.diff(np.asarray(both[0]["label"], int))) > 8
    assert index_of(where.below("train")).column("image").encoding == "image"


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_of_one_size_are_decoded(mode: str, images: Path, where: Place) -> None:
    pack(str(images), where, Options(resize=(8, 12), mode=mode))
    found = everything(where.below("train"))
    image, label = np.asarray(found["image"]), np.asarray(found["label"])
    assert image.shape == (40, 3 if mode == "RGB" else 1, 8, 12)
    assert image.dtype == np.uint8
    if mode == "RGB":
        # Each is of one colour: red by its class and number, green none, blue full.
        assert {
            (int(red) >= 95, int(c)) for red, c in zip(image[:, 0, 4, 4], label, strict=True)
        } == {
            (False, 0),
            (True, 1),
        }
        assert image[:, 1].max() <= 4
        assert image[:, 2].min() >= 250
    facts = index_of(where.below("train")).facts
    assert np.allclose(facts["mean"], (image / 255).mean(axis=(0, 2, 3)), atol=1e-5)


def test_an_image_is_cut_to_its_form_around_the_middle(tmp_path: Path) -> None:
    picture = np.zeros((4, 12, 3), np.uint8)
    picture[:, 4:8] = 200
    (tmp_path / "x" / "c").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "x" / "c" / "1.png")
    where = place(str(tmp_path / "set"))
    pack(str(tmp_path / "x"), where, Options(resize=(4, 4)))
    assert np.all(np.asarray(everything(where.below("train"))["image"]) == 200)


def test_folders_of_splits_are_splits_with_the_same_classes(tmp_path: Path) -> None:
    root = tmp_path / "src"
    for split, names in (("train", "abc"), ("val", "c"), ("test", "ab")):
        for name in names:
            drawn(root / split / name / "1.png", (4, 4), 9)
    found = sources(str(root), Options(resize=(4, 4)))
    assert list(found) == ["train", "val", "test"]
    assert all(source.facts["classes"] == ["a", "b", "c"] for source in found.values())
    (batch,) = found["val"].batches()
    assert list(batch["label"]) == [2]
    assert list(sources(str(root), Options(split="val"))) == ["val"]


@pytest.mark.parametrize("size", [None, (4, 4)])
@pytest.mark.parametrize(
    ("damage", "suffix"),
    [(damage, suffix) for damage in ("cut", "text", "empty") for suffix in (".png", ".jpg")]
    + [("flipped", ".png")],  # a JPEG has no checksum
)
def test_a_damaged_image_is_named(
    size: tuple[int, int] | None, damage: str, suffix: str, tmp_path: Path
) -> None:
    file = tmp_path / "src" / "cat" / f"7{suffix}"
    file.parent.mkdir(parents=True)
    noise = Image.fromarray(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    noise.save(file)
    content = file.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    file.write_bytes(
        {"cut": content[:half], "text": b"hello", "empty": b"", "flipped": flipped}[damage]
    )
    where = place(str(tmp_path / "set"))
    with pytest.raises(DataError, match=rf"cat/7\{suffix} is no PNG or JPEG, or damaged"):
        pack(str(tmp_path / "src"), where, Options(resize=size))
    assert where.below("train").read(INDEX) is None


def test_an_image_outside_a_class_folder_is_named(images: Path) -> None:
    drawn(images / "loose.png", (4, 4), 1)
    with pytest.raises(DataError, match=r"loose.png is in no folder of a class"):
        sources(str(images), Options())


# --- parquet ---

ROWS = 300


def table() -> "pa.Table":
    names = [f"text {i} é" * (i % 4) for i in range(ROWS)]
    return pa.table(
        {
            "float": RNG.normal(size=ROWS),
            "half": RNG.normal(size=ROWS).astype(np.float16),
            "whole": pa.array(RNG.integers(-9, 9, ROWS), pa.int8()),
            "flag": RNG.integers(0, 2, ROWS).astype(bool),
            "fixed": pa.FixedSizeListArray.from_arrays(
                pa.FixedSizeListArray.from_arrays(np.arange(ROWS * 6, dtype=np.int16), 2), 3
            ),
            "list": pa.array([list(range(i % 5)) for i in range(ROWS)], pa.list_(pa.uint32())),
            "large": pa.array([[1.5] * (i % 3) for i in range(ROWS)], pa.large_list(pa.float32())),
            "text": names,
            "class": pa.array([f"c{i % 3}" for i in range(ROWS)]).dictionary_encode(),
            "bytes": pa.array([name.encode()[::-1] for name in names], pa.large_binary()),
            "digest": pa.array([bytes([i % 256] * 4) for i in range(ROWS)], pa.binary(4)),
            "image": [
                {"bytes": b"\x89PNG\r\n" + bytes(i % 3), "path": f"{i}"} for i in range(ROWS)
            ],
        }
    )


TABLE = table()


def expected(name: str) -> list[Any]:
    column: Any = TABLE
    for part in name.split("."):
        column = column.column(part) if column is TABLE else column.combine_chunks().field(part)
    return list(column.to_pylist())


@pytest.mark.parametrize("group", [7, 100, 1000])
def test_every_kind_of_parquet_column_comes_back(group: int, where: Place, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=group)
    pack(str(tmp_path / "a.parquet"), where, Options(), shard_size=8192)
    found = everything(where.below("train"))
    index = index_of(where.below("train"))
    assert [*found] == [*TABLE.column_names[:-1], "image.bytes", "image.path"]
    for name in found:
        column, wanted = index.column(name), expected(name)
        if column.encoding == "utf-8":
            assert [bytes(value).decode() for value in found[name]] == wanted, name
        elif name in ("bytes", "digest", "image.bytes"):
            assert [bytes(value) for value in found[name]] == wanted, name
        elif column.shape is None:
            assert [value.tolist() for value in found[name]] == wanted, name
        else:
            assert np.asarray(found[name]).tolist() == wanted, name
    assert index.column("fixed").shape == (3, 2)
    assert index.column("image.bytes").encoding == "image"
    assert index.column("bytes").encoding is None
    assert (index.column("half").dtype, index.column("whole").dtype) == ("float16", "int8")


@pytest.mark.parametrize("name", TABLE.column_names[:-1])
def test_a_piece_of_a_parquet_column_is_read_from_its_beginning(name: str) -> None:
    field = TABLE.schema.field(name)
    column = _column(Path("a.parquet"), field, [name])
    piece = TABLE.column(name).combine_chunks()[50:90]
    found = _values(Path("a.parquet"), column, pa.chunked_array([piece]), 0)
    if column.shape is not None:
        whole = _values(Path("a.parquet"), column, TABLE.column(name), 0)
        assert np.array_equal(found, whole[50:90])
    else:
        offsets, values = found
        rows = [values[i:j] for i, j in pairwise(offsets)]
        plain = [bytes(row) if column.dtype == "uint8" else row.tolist() for row in rows]
        wanted = [v.encode() if isinstance(v, str) else v for v in piece.to_pylist()]
        assert plain == wanted


def test_some_columns_and_several_files_are_packed_in_order(tmp_path: Path, where: Place) -> None:
    for number in (1, 0):
        pq.write_table(TABLE.slice(100 * number, 100), tmp_path / f"part {number}.parquet")
    pack(str(tmp_path), where, Options(fields=["text", "image.path"]))
    found = everything(where.below("train"))
    assert [*found] == ["text", "image.path"]
    assert [bytes(value).decode() for value in found["image.path"]] == [str(i) for i in range(200)]


def test_rows_are_held_out_once_each(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=50)
    where = place(str(tmp_path / "set"))
    options = Options(fields=["image.path", "list"], val_fraction=0.2, test_fraction=0.1)
    pack(str(tmp_path / "a.parquet"), where, options)
    parts = {name: everything(where.below(name)) for name in ("train", "val", "test")}
    numbers = {name: [int(bytes(v)) for v in part["image.path"]] for name, part in parts.items()}
    assert sorted(chain(*numbers.values())) == list(range(ROWS))
    assert 40 <= len(numbers["val"]) <= 80
    assert 15 <= len(numbers["test"]) <= 45
    for name, part in parts.items():
        assert [len(value) for value in part["list"]] == [i % 5 for i in numbers[name]]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("train/a.parquet", "val/a.parquet"),
        ("data/Train/a.parquet", "data/VALID/b.parquet"),
    ],
)
def test_parquet_files_of_splits_are_splits(names: tuple[str, str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [number]}), tmp_path / "src" / name)
    found = sources(str(tmp_path / "src"), Options())
    rows = {name: [int(b["x"][0]) for b in source.batches()] for name, source in found.items()}
    assert rows == {"train": [0], "val": [1]}


def test_what_parquet_holds_and_a_shard_cannot_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"

    def refused(words: str, columns: dict[str, Any], fields: list[str] | None = None) -> None:
        pq.write_table(pa.table(columns), file)
        with pytest.raises(DataError, match=words):
            for source in sources(str(file), Options(fields=fields)).values():
                list(source.batches())

    x = [1, 2, 3]
    refused(
        r"'when' is timestamp.*Leave it out: --fields x",
        {"x": x, "when": pa.array(x, pa.timestamp("s"))},
    )
    refused("'deep' is list<.*list<", {"x": x, "deep": [[[1]], [[2]], [[3]]]})
    refused(
        "--fields labl: .* Did you mean 'label'.* It has: x, label", {"x": x, "label": x}, ["labl"]
    )
    refused("'x' has 1 empty values in the rows from 0 on", {"x": [1, None, 3]})
    refused("'x' has 1 empty values", {"x": [[1], None, [2]]})
    refused("'x' has 1 empty values", {"x": [[1], [None], [2]]})
    refused("'x' has 1 empty values", {"x": ["a", None, "b"]})
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a.parquet is no whole parquet file"):
        sources(str(file), Options())
    pq.write_table(pa.table({"x": x}), file)
    pq.write_table(pa.table({"x": [1.5]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet has other columns than .*a.parquet: x float64"):
        sources(str(tmp_path), Options())


# --- text and tokens ---


def test_text_is_cut_as_its_data_module_cuts_it(where: Place) -> None:
    pack(TEXT, where, Options(block_size=100), shard_size=50_000)
    module = Tokens(block_size=100)
    module.setup("fit")
    for name in ("val", "test"):
        dataset = getattr(module, f"{name}_set")
        inputs, targets = dataset.__getitems__(list(range(len(dataset))))
        found = np.asarray(everything(where.below(name))["tokens"])
        assert np.array_equal(found[:, :-1], inputs)
        assert np.array_equal(found[:, 1:], targets)
    train = np.asarray(everything(where.below("train"))["tokens"])
    assert np.array_equal(train[:, :-1].ravel(), text_tokens()[: train[:, :-1].size])
    facts = index_of(where.below("train")).facts
    assert (facts["vocab_size"], facts["block_size"]) == (128, 100)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_texts_are_read_one_after_the_other(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydra_trainer.shards.sources.READ", 5)  # within characters, too
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    texts = {"b.txt": "zwölf Boxkämpfer 🥊 jagen", "a.txt": "", "more/c.txt": "x" * 50}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    whole = "\n\n".join(["", texts["b.txt"], texts["more/c.txt"]])
    codes = [ord(c) if ord(c) < 128 else 0 for c in whole]
    wanted = codes if encoding == "ascii" else list(whole.encode())
    options = Options(tokens=encoding, block_size=3, split="train")
    (source,) = sources(str(folder), options).values()
    found = np.concatenate([batch["tokens"] for batch in source.batches()])
    assert len(found) == (len(wanted) - 1) // 3 == source.samples
    assert found[:, :-1].ravel().tolist() == wanted[: 3 * len(found)]
    assert found[-1, -1] == wanted[3 * len(found)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_token_files_are_cut_into_windows(dtype: str, tmp_path: Path, where: Place) -> None:
    tokens = RNG.integers(0, 200, 1001).astype(dtype)
    tokens.tofile(tmp_path / "train.bin")
    options = Options(tokens=dtype, block_size=10, val_fraction=0, test_fraction=0.1)
    pack(str(tmp_path / "train.bin"), where, options)
    found = np.asarray(everything(where.below("train"))["tokens"])
    assert found.dtype == dtype
    assert found.shape == (90, 11)
    assert np.array_equal(found[:, :-1].ravel(), tokens[:900])
    assert where.below("val").read(INDEX) is None
    assert np.asarray(everything(where.below("test"))["tokens"]).shape == (9, 11)
    assert index_of(where.below("train")).facts["vocab_size"] == tokens.max() + 1


def test_texts_that_cannot_be_packed_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"good " * 100 + b"\xff" + b"x" * 500)
    with pytest.raises(
        DataError, match=r"a.txt is not text in UTF-8 \(invalid start byte near byt"
    ):
        sources(str(file), Options())
    file.write_text("short")
    with pytest.raises(DataError, match=r"has 5 tokens, of which .* smaller --block-size"):
        sources(str(file), Options(split="train"))
    odd = tmp_path / "a.bin"
    odd.write_bytes(b"123")
    with pytest.raises(DataError, match="has 3 bytes, no whole number of uint16 tokens of 2"):
        sources(str(odd), Options())
    with pytest.raises(ConfigError, match="--tokens uint8: text is read as one of ascii, utf-8"):
        sources(str(file), Options(tokens="uint8"))


# --- what a source is ---


def test_what_cannot_be_packed_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        sources(str(tmp_path / "nowhere"), Options())
    (tmp_path / "x.csv").write_text("a,b")
    for path in (tmp_path, tmp_path / "x.csv"):
        with pytest.raises(DataError, match=r"is nothing that can be packed. Give a CIFAR-10 arch"):
            sources(str(path), Options())
    with pytest.raises(DataError, match="has no images, PNG or JPEG, in folders"):
        sources(str(tmp_path), Options(form="images"))
    with pytest.raises(DataError, match=r"has no .parquet or .pq files"):
        sources(str(tmp_path), Options(form="parquet"))


def test_all_wrong_options_are_said_together() -> None:
    options = Options(
        split="tets", val_fraction=0.7, test_fraction=0.6, block_size=0, resize=(0, 3)
    )
    with pytest.raises(ConfigError) as error:
        sources("s3://bucket/x", options)
    words = ["not a file or folder of this", "Did you mean 'test'", "leave nothing to train on"]
    words += ["--block-size 0", "--resize 0 3"]
    assert len(error.value.problems) == len(words)
    for word, problem in zip(words, error.value.problems, strict=True):
        assert word in problem


def test_a_split_that_is_not_there_is_said(tmp_path: Path) -> None:
    for split in ("train", "test"):
        drawn(tmp_path / split / "a" / "1.png", (4, 4), 9)
    with pytest.raises(DataError, match=r"gives no split 'val', it gives: train, test. Type --sp"):
        sources(str(tmp_path), Options(split="val"))
    # A source without splits becomes the one that is asked for.
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    found = sources(str(tmp_path / "a.parquet"), Options(split="val"))
    assert [(name, source.samples) for name, source in found.items()] == [("val", 1)]
