"""Rule 9: a checkpoint is committed or it does not exist, whatever happens to disk and process."""

import errno
import io
import json
import os
import pickle
import random
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import checkpoint as dcp

from hydra_trainer.checkpoints import reading
from hydra_trainer.checkpoints.files import MANIFEST, SHARDS, STATE, Hashing, digest_of
from hydra_trainer.checkpoints.folder import Folder
from hydra_trainer.checkpoints.store import Checkpoint, Store, find
from hydra_trainer.checkpoints.writing import CommittedCheckpointIO, Writer
from hydra_trainer.errors import CheckpointError

from .faults import At, PowerCut, Training, die, in_a_fork, refuse, watch_disk

# ----------------------------------------------------------------------------- kills, power cuts


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """$TMPDIR on another file system than the run directory, empty before and after."""
    place = Path(f"/dev/shm/hydra-trainer-test-{os.getpid()}")
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    yield place
    assert list(place.iterdir()) == []
    place.rmdir()


def at(store: Store, step: int, position: str = "mid") -> Path:
    """Return the folder of a checkpoint."""
    return Path(store.uri, store.name(step, position))


def final(directory: Path) -> Checkpoint:
    latest = Store(directory / "checkpoints").latest()
    assert latest is not None
    return latest


def kill_often(directory: Path, kills: int, seed: int, size: int) -> None:
    """Train, killed at a random call of a save again and again, and look after each kill."""
    draw = random.Random(seed)
    note = directory.parent / "surely-saved"
    note.write_text("0")
    for _ in range(kills):
        number = draw.randint(1, 60)

        def train(number: int = number) -> None:
            with watch_disk(At(number, die)):
                Training(directory, size=size).run(10**6, lambda step: atomic(note, str(step)))

        assert in_a_fork(train) == -9
        latest = Store(directory / "checkpoints").latest()
        assert (latest.step if latest else 0) >= int(note.read_text())


def atomic(note: Path, text: str) -> None:
    note.with_suffix(".new").write_text(text)
    note.with_suffix(".new").replace(note)


def assert_ends_as_undisturbed(directory: Path, tmp_path: Path, size: int) -> None:
    steps = final(directory).step + 3
    Training(directory, size=size).run(steps)
    Training(tmp_path / "undisturbed", size=size).run(steps)
    ours, theirs = (final(place) for place in (directory, tmp_path / "undisturbed"))
    assert ours.step == theirs.step == steps
    assert Path(ours.state).read_bytes() == Path(theirs.state).read_bytes()


def test_kill_at_20_random_moments_of_saves(tmp_path: Path, elsewhere: Path) -> None:
    kill_often(tmp_path / "run", kills=20, seed=1, size=10_000)
    assert_ends_as_undisturbed(tmp_path / "run", tmp_path, size=10_000)
    # What the killed saves left behind went with the checkpoints that were no longer needed.
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 3


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_kill_at_many_moments(tmp_path: Path, elsewhere: Path, seed: int) -> None:
    kill_often(tmp_path / "run", kills=100, seed=seed, size=200_000)
    assert_ends_as_undisturbed(tmp_path / "run", tmp_path, size=200_000)


@pytest.mark.parametrize(("names", "late"), [(False, ""), (False, MANIFEST), (True, "")])
def test_a_power_cut_at_any_moment(tmp_path: Path, names: bool, late: str) -> None:
    """Only what was fsynced is there again; the order of the fsyncs is what this is about.

    A checkpoint is then committed, or there is none: nothing looks like a damaged one.
    """
    directory = tmp_path / "run"
    directory.mkdir()
    disk = PowerCut(directory, late)
    saved, cuts = 0, 0

    def cut(call: str, path: Path) -> None:
        nonlocal cuts
        cuts += 1
        place = tmp_path / "after"
        place.mkdir()
        store = Store(disk.rebuild(place, names) / "checkpoints")
        latest = store.latest()
        assert (latest.step if latest else 0) >= saved, (call, path)
        assert [c for c in store.all() if c.fault()] == [], (call, path)
        shutil.rmtree(place)

    def before(call: str, path: Path) -> None:
        if directory in path.parents:
            disk.before(call, path)

    def after(call: str, path: Path) -> None:
        if directory == path or directory in path.parents:
            disk.after(call, path)
            cut(call, path)

    def remember(step: int) -> None:
        nonlocal saved
        saved = step

    with watch_disk(before, after):
        Training(directory, asynchronous=False, size=10).run(6, remember)
    assert cuts > 50


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_at_any_call(tmp_path: Path, number: int) -> None:
    """A save succeeds or leaves nothing, and the next one is as good as ever."""
    training = Training(tmp_path, asynchronous=False)
    training.run(3)
    step, failed = 3, 0
    for call in range(1, 200):
        step += 1
        watcher = At(call, refuse(number))
        with watch_disk(watcher):
            training.save(step, torch.ones(training.size))
        if watcher.count < call:
            break
        error, latest = training.writer.error, final(tmp_path)
        assert latest.step == (step if error is None else step - 1)
        if error is not None:
            failed += 1
            assert error.errno == number
            assert not (at(training.store, step) / MANIFEST).exists()
            training.save(step, torch.ones(training.size))
        assert training.writer.error is None
        assert len(training.store.whole()) >= 2
    assert failed > 20
    assert len(training.store.names()) <= 3


def test_a_file_system_that_cannot_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    Training(tmp_path, asynchronous=False).run(2)
    assert final(tmp_path).step == 2


def test_a_file_takes_what_is_written_in_small_parts(tmp_path: Path) -> None:
    """As Linux does beyond 2 GiB: torch does not look at how much a write wrote."""

    class Slow:
        def __init__(self) -> None:
            self.content = b""

        def write(self, data: memoryview) -> int:
            self.content += bytes(data[:7])
            return min(len(data), 7)

    slow = Slow()
    hashing = Hashing(slow)
    assert hashing.write(bytes(range(40))) == hashing.size == 40
    assert slow.content == bytes(range(40))
    assert hashing.digest.hexdigest() == digest_of(io.BytesIO(slow.content))


# -------------------------------------------------------------------------------------- damage


def cut_to(part: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * part))


def flip(part: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int((len(content) - 1) * part)] ^= 1
        path.write_bytes(content)

    return damage


def put(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


def change_a_number(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["metrics"]["loss"] += 1
    path.write_text(json.dumps(manifest))


def remove_and_make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "state empty": (STATE, cut_to(0), "has 0 bytes instead of"),
    "state torn early": (STATE, cut_to(1 / 64), "bytes instead of"),
    "state torn in the middle": (STATE, cut_to(0.5), "bytes instead of"),
    "state torn late": (STATE, cut_to(63 / 64), "bytes instead of"),
    "state flipped at the start": (STATE, flip(0), "has another checksum"),
    "state flipped in a tensor": (STATE, flip(0.5), "has another checksum"),
    "state flipped at the end": (STATE, flip(1), "has another checksum"),
    "state missing": (STATE, Path.unlink, "is missing"),
    "state unreadable": (STATE, remove_and_make_a_folder, "state.pt"),
    "manifest empty": (MANIFEST, cut_to(0), "not a whole manifest"),
    "manifest torn": (MANIFEST, cut_to(0.5), "not a whole manifest"),
    "manifest a list": (MANIFEST, put(b"[1]"), "not a whole manifest"),
    "manifest a number": (MANIFEST, put(b"3"), "not a whole manifest"),
    "manifest of something else": (MANIFEST, put(b'{"step": 4}'), "not a whole manifest"),
    "manifest not text": (MANIFEST, put(b"\xff\xfe{"), "not a whole manifest"),
    "manifest with another number": (MANIFEST, change_a_number, "has another checksum"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    name, damage, reason = DAMAGE[kind]
    training = Training(tmp_path, asynchronous=False)
    training.run(4)
    newest = at(training.store, 4)
    damage(newest / name)

    store = Store(tmp_path / "checkpoints")
    latest = store.latest()
    assert latest is not None and latest.step == 3
    assert str(newest) in caplog.text
    assert name in caplog.text and reason in caplog.text

    # The step is done again, and its checkpoint takes the place of the damaged one.
    Training(tmp_path, asynchronous=False).run(5)
    assert [c.step for c in Store(store.place).whole()][-2:] == [4, 5]


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    Training(tmp_path, asynchronous=False).run(1)
    folder = at(Store(tmp_path / "checkpoints"), 1)
    content = (folder / MANIFEST).read_bytes()
    right = Checkpoint.read(Folder(folder.parent), folder.name)
    assert right is not None and right.flaw is None
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / MANIFEST).write_bytes(flipped)
        found = Checkpoint.read(Folder(folder.parent), folder.name)
        assert found is not None
        assert found.flaw or found.manifest == right.manifest, bytes(flipped)


def test_without_any_whole_checkpoint_a_run_does_not_start_from_zero(tmp_path: Path) -> None:
    training = Training(tmp_path, asynchronous=False)
    assert training.store.to_resume() is None  # nothing was ever saved
    training.store.clean(training.store.name(1, "mid"))
    assert training.store.to_resume() is None  # nor was it when the first save was killed
    training.run(3)
    root = tmp_path / "checkpoints"
    for path in root.rglob(STATE):
        os.truncate(path, 0)
    before = sorted(root.rglob("*"))
    with pytest.raises(CheckpointError, match=r"(?s)step=00000003: state.pt has 0.*again=true"):
        Store(root).to_resume()
    with pytest.raises(CheckpointError, match=r"(?s)step=00000003: state.pt has 0.*again=true"):
        reading.restore(Store(root))
    assert sorted(root.rglob("*")) == before

    shutil.rmtree(root)
    root.write_text("no folder")
    with pytest.raises(CheckpointError, match=r"cannot be listed: Not a directory.*again=true"):
        Store(root).to_resume()


# -------------------------------------------------------------------------------- what is kept


def quick_save(store: Store, step: int, metrics: dict[str, float], position: str = "mid") -> Path:
    name = store.name(step, position)
    store.clean(name)
    with store.place.writing(name, STATE) as out:
        out.write(b"state")
    store.commit(name, {"step": step, "metrics": metrics}, {STATE: out.facts()})
    return at(store, step, position)


@pytest.fixture(scope="module")
def lazy_disk() -> Any:
    """No fsync, for the tests that save thousands of times and cut no power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


Metric = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, float("nan"), float("inf")]))


@settings(max_examples=60, deadline=None)
@given(
    metrics=st.lists(Metric, min_size=1, max_size=12),
    keep_last=st.integers(2, 4),
    keep_best=st.integers(0, 3),
    mode=st.sampled_from(["min", "max"]),
)
def test_the_newest_and_the_best_are_kept(
    lazy_disk: None,
    tmp_path_factory: pytest.TempPathFactory,
    metrics: list[float | None],
    keep_last: int,
    keep_best: int,
    mode: str,
) -> None:
    store = Store(tmp_path_factory.mktemp("run") / "checkpoints")
    saved: list[tuple[int, float]] = []
    for step, value in enumerate(metrics):
        quick_save(store, step, {} if value is None else {"loss": value})
        store.prune(keep_last, keep_best, "loss", mode)
        if value is not None and value == value:
            saved.append((step, -value if mode == "max" else value))
        best = [s for s, _ in sorted(saved, key=lambda item: item[1])][:keep_best]
        newest = range(max(0, step + 1 - keep_last), step + 1)
        assert [c.step for c in store.all()] == sorted({*newest, *best})


@settings(max_examples=60, deadline=None)
@given(damaged=st.lists(st.sets(st.integers(0, 12), max_size=3), min_size=1, max_size=12))
def test_the_newest_two_whole_ones_stay_whatever_is_damaged(
    lazy_disk: None, tmp_path_factory: pytest.TempPathFactory, damaged: list[set[int]]
) -> None:
    """Damage comes between saves; a run is resumed after each, from what it then finds."""
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    for step, steps in enumerate(damaged):
        store = Store(root)
        store.latest()
        quick_save(store, step, {"loss": 1.0})
        whole = [c.name for c in store.whole()]
        store.prune(2, 1, "loss", "min")
        assert {c.name for c in Store(root).whole()} >= set(whole[-2:])
        for hit in steps:
            if (file := at(store, hit) / STATE).exists():
                (os.truncate if hit % 2 else flip_at)(file, 1)


def flip_at(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_steps_are_ordered_as_numbers_and_positions_as_they_come(tmp_path: Path) -> None:
    store = Store(tmp_path / "checkpoints")
    order = [(9, "mid"), (9, "validated"), (9, "epoch end"), (10, "pending"), (10**8, "mid")]
    for step, position in reversed(order):
        quick_save(store, step, {}, position)
    quick_save(store, 10**8 - 1, {})
    root = tmp_path / "checkpoints"
    (root / "step=00000009 (copy)").mkdir()  # somebody's own: not looked at, not deleted
    names = [c.name for c in store.all()]
    assert names == [
        "step=00000009",
        "step=00000009-val",
        "step=00000009-end",
        "step=00000010",
        "step=99999999",
        "step=100000000",
    ]
    store.prune(2, 0, "loss", "min")
    assert sorted(path.name for path in root.iterdir()) == [
        "step=00000009 (copy)",
        "step=100000000",
        "step=99999999",
    ]


def test_nothing_newer_than_the_newest_whole_one_is_touched(tmp_path: Path) -> None:
    """It is damaged, or being written now."""
    store = Store(tmp_path / "checkpoints")
    for step in (1, 2, 3, 6):
        quick_save(store, step, {})
    (at(store, 6) / STATE).unlink()
    store.clean(store.name(7, "mid"))
    store.latest()
    store.prune(2, 0, "loss", "min")
    names = sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["2", "3", "6", "7"]


def test_what_cannot_be_deleted_is_left_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS, a file that is deleted while somebody reads it keeps its folder from going."""
    store = Store(tmp_path / "checkpoints")
    folder = quick_save(store, 1, {})
    true = shutil.rmtree
    (folder / ".nfs000000000001").touch()

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        for file in path.iterdir():
            if not file.name.startswith(".nfs"):
                file.unlink()
        assert ignore_errors

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for step in (2, 3):
        quick_save(store, step, {})
    store.prune(2, 0, "loss", "min")
    assert folder.exists()
    assert [c.step for c in store.all()] == [2, 3]
    quick_save(store, 1, {})  # nor is it in the way of a new one
    assert [c.step for c in store.all()] == [1, 2, 3]
    monkeypatch.setattr(shutil, "rmtree", true)
    store.prune(2, 0, "loss", "min")
    assert not folder.exists()


# ------------------------------------------------------------------------------------ the writer


def test_a_save_is_a_snapshot_and_the_next_one_waits(tmp_path: Path) -> None:
    writer, weight = Writer(), torch.zeros(3)
    order: list[Any] = []
    state: dict[str, Any] = {"w": weight, "list": [weight], "set": {1}, "bytes": bytearray(b"a")}
    release, asked = threading.Event(), threading.Event()
    finish = writer.finish

    def first(saved: dict[str, Any]) -> None:
        assert release.wait(60)
        order.append(("first", saved["w"].tolist(), len(saved["set"]), bytes(saved["bytes"])))

    def second(saved: dict[str, Any]) -> None:
        order.append(("second", saved["list"][0].tolist()))

    def ask() -> None:
        asked.set()
        finish()

    writer.save(state, first)
    weight += 1
    state["set"].add(2)
    state["bytes"] += b"b"
    writer.finish = ask  # type: ignore[method-assign]
    other = threading.Thread(target=writer.save, args=(state, second))
    other.start()
    assert asked.wait(60)
    assert order == []
    release.set()
    other.join()
    finish()
    assert order == [("first", [0.0] * 3, 1, b"a"), ("second", [1.0] * 3)]


def test_buffers_are_used_again_and_ties_stay(tmp_path: Path) -> None:
    weight = torch.randn(1000)
    state = {"state_dict": OrderedDict(a=weight, b=weight, part=weight[:10], sparse=None)}
    state["state_dict"]["sparse"] = torch.eye(3).to_sparse()
    state["state_dict"]._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    places = []

    def work(saved: dict[str, Any]) -> None:
        places.append([saved["state_dict"][name].data_ptr() for name in ("a", "b", "part")])
        torch.save(saved, tmp_path / STATE)

    writer = Writer()
    for _ in range(2):
        writer.save(state, work)
    writer.finish()
    assert places[0] == places[1]
    assert weight.data_ptr() not in places[0]
    loaded = reading.load(find(str(tmp_path / STATE))[0])["state_dict"]
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr() != loaded["part"].data_ptr()
    assert torch.equal(loaded["a"], weight) and torch.equal(loaded["part"], weight[:10])
    assert torch.equal(loaded["sparse"].to_dense(), torch.eye(3))
    assert loaded._metadata == {"": {"version": 2}}
    assert (tmp_path / STATE).stat().st_size < 1.5 * 4000 + 4000


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_a_failed_save_leaves_with_the_writer(
    caplog: pytest.LogCaptureFixture, asynchronous: bool
) -> None:
    def fail(state: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = Writer(asynchronous)
    for _ in range(2):  # the same is said once
        writer.save({}, fail)
        writer.finish()
        assert writer.error is not None and writer.error.errno == errno.ENOSPC
    loud = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(loud) == 1 and "No space left on device" in loud[0].getMessage()
    writer.save({}, lambda state: None)
    writer.finish()
    assert writer.error is None
    assert "can be saved again" in caplog.text


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_that_stops_the_run(asynchronous: bool) -> None:
    """checkpoint.on_failure=stop: at the next step, but a run that ends anyway ends as it does."""

    def fail(state: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = Writer(asynchronous, stops=True)
    with pytest.raises(
        CheckpointError, match=r"on_failure is stop: \[Errno 28\] No space.*=continue"
    ):
        writer.save({}, fail)
        writer.finish()
        writer.check()
    writer.check(is_ending=True)
    with pytest.raises(CheckpointError, match="on_failure is stop"):
        writer.save({}, lambda state: None)


def test_layouts_of_memory_are_kept_in_a_copy() -> None:
    state = {
        "transposed": torch.arange(20.0).reshape(4, 5).t(),
        "channels": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "strided": torch.arange(10)[::2],
        "expanded": torch.ones(1).expand(3),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "none": torch.empty(0, 3),
        "large": torch.randn(3_000_000),
    }
    staged: dict[str, Any] = {}
    writer = Writer()
    writer.save(state, staged.update)
    writer.finish()
    for name, value in state.items():
        assert torch.equal(staged[name], value), name
        assert staged[name].data_ptr() != value.data_ptr() or not value.numel()
    assert staged["channels"].stride() == state["channels"].stride()


def test_what_no_later_save_makes_good_is_raised() -> None:
    def fail(state: dict[str, Any]) -> None:
        raise KeyError("a mistake of ours")

    writer = Writer()
    writer.save({}, fail)
    writer.finish()
    with pytest.raises(KeyError):
        writer.check()
    with pytest.raises(KeyError):
        writer.save({}, lambda state: None)


# ---------------------------------------------------------------------------------- safe loading


def saved_with(directory: Path, thing: Any, asynchronous: bool = False) -> Checkpoint:
    store, writer = Store(directory / "checkpoints"), Writer(asynchronous)
    door = CommittedCheckpointIO(store, writer, lambda name: None)
    name = store.name(1, "mid")
    state = {"state_dict": {}, "thing": thing}
    door.save_checkpoint(state, f"{store.uri}/{name}/{STATE}", {"step": 1})
    writer.finish()
    writer.check()
    found = Checkpoint.read(store.place, name)
    assert found is not None
    return found


Plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(max_size=20),
        st.complex_numbers(allow_nan=False),
        st.frozensets(st.integers(), max_size=3),
        st.sets(st.text(max_size=3), max_size=3),
        st.sampled_from([torch.float32, torch.Size([2]), torch.device("cpu"), range(3)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=4),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(thing=Plain)
def test_what_is_saved_can_be_loaded(
    lazy_disk: None, tmp_path_factory: pytest.TempPathFactory, thing: Any
) -> None:
    """Or it is refused while it is saved: a checkpoint that cannot be loaded is none."""
    directory = tmp_path_factory.mktemp("run")
    try:
        found = saved_with(directory, thing)
    except CheckpointError as error:
        assert "cannot be loaded safely" in str(error)
        assert list((directory / "checkpoints").iterdir()) == []
    else:
        assert reading.load(found)["thing"] == thing


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        (Path("/tmp"), "objects of pathlib.PosixPath, which cannot be loaded safely"),
        (lambda: None, "cannot be saved"),
        (threading.Lock(), "cannot be saved: cannot pickle '_thread.lock' object"),
    ],
)
def test_what_cannot_be_loaded_safely_is_refused_by_name(
    tmp_path: Path, thing: Any, reason: str, asynchronous: bool
) -> None:
    with pytest.raises(CheckpointError, match=r"save_hyperparameters\(\)") as caught:
        saved_with(tmp_path, thing, asynchronous)
    assert reason in str(caught.value)
    assert list(tmp_path.rglob(STATE)) == []


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def bare_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, legacy, bare_pickle])
def test_a_pickle_in_the_place_of_a_state_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Any, Path], None]
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "executed"
    store = Store(tmp_path / "checkpoints")
    name, folder = store.name(1, "mid"), at(store, 1)
    store.clean(name)
    write({"state_dict": {}, "evil": Evil(marker)}, folder / STATE)
    content = (folder / STATE).read_bytes()
    digest = digest_of(io.BytesIO(content))
    store.commit(name, {"step": 1}, {STATE: {"size": len(content), "xxh3": digest}})
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        reading.restore(store)
    assert not marker.exists()


def shards_of(folder: Path, **more: Any) -> Checkpoint:
    state = {"state_dict": torch.nn.Linear(3, 4).state_dict(), "lr": 0.1, **more}
    dcp.save(state, checkpoint_id=str(folder / SHARDS))
    return Checkpoint(Folder(folder.parent), folder.name, {})


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_are_inspected_before_torch_unpickles_them(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "good")
    weights = reading.inspect_shards(shards)["state_dict"]
    assert {name: tuple(w.shape) for name, w in weights.items()} == {"weight": (4, 3), "bias": (4,)}

    marker = tmp_path / "executed"
    shards = shards_of(tmp_path / "value", thing=Evil(marker))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        reading.inspect_shards(shards)
    assert not marker.exists()

    (tmp_path / "value" / SHARDS / ".metadata").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(CheckpointError, match=r"asks for pathlib.*which no index needs"):
        reading.inspect_shards(shards)
    assert not marker.exists()


# -------------------------------------------------------------------------------- finding one


def test_every_name_of_a_checkpoint_finds_it(tmp_path: Path) -> None:
    Training(tmp_path / "run", asynchronous=False).run(2)
    folder = tmp_path / "run" / "checkpoints" / "step=00000002"
    for place in (tmp_path / "run", folder.parent, folder, folder / STATE):
        assert find(str(place))[0].state == str(folder / STATE)
    copy = shutil.copy(folder / STATE, tmp_path / "copy.pt")
    assert [one.state for one in find(str(copy))] == [str(copy)]

    os.truncate(folder / STATE, 9)
    for place in (folder, folder / STATE):  # it was meant: nothing else is taken for it
        with pytest.raises(CheckpointError, match=r"is damaged: state.pt has 9 bytes"):
            find(str(place))
    assert find(str(tmp_path / "run"))[0].name == "step=00000001"


@pytest.mark.parametrize(
    ("place", "there"),
    [
        ("nowhere", r"does not exist; .* holds file, folder"),
        ("folder", r"folder is empty"),
        ("folder/deeper", r"does not exist; .*folder is empty"),
        ("file/deeper", r"does not exist; .*file is a file"),
    ],
)
def test_a_wrong_place_says_what_is_there(tmp_path: Path, place: str, there: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=rf"init_from is '.*{there}.*Give a run directory"):
        find(str(tmp_path / place))


def test_a_sharded_checkpoint_is_its_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "checkpoints")
    name = store.name(1, "mid")
    store.clean(name)
    with store.place.writing(name, f"{SHARDS}/__0_0") as out:
        out.write(b"x")
    store.commit(name, {"step": 1}, {f"{SHARDS}/__0_0": out.facts()})
    assert find(str(tmp_path))[0].state == str(at(store, 1) / SHARDS)
    (at(store, 1) / SHARDS / "__0_0").unlink()
    assert store.latest() is None
