"""Checkpoints and results in S3: the same promises as on a disk, against the embedded service."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hydra_trainer.checkpoints import bucket as buckets
from hydra_trainer.checkpoints import reading
from hydra_trainer.checkpoints.bucket import Bucket
from hydra_trainer.checkpoints.files import MANIFEST, STATE
from hydra_trainer.checkpoints.store import Checkpoint, Store, find, place, stored
from hydra_trainer.embedded.sagemaker import Fault
from hydra_trainer.errors import CheckpointError, StorageError
from hydra_trainer.objects import Objects, Settings

from .buckets import KEYS, bucket
from .buckets import Bucket as Given
from .conftest import Job
from .faults import Training, in_a_fork
from .test_checkpoint import atomic
from .test_resume import assert_equal

URI = "s3://bucket/run/checkpoints"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        with bucket(tmp_path_factory.mktemp("service")) as found:
            patch.setenv("AWS_ENDPOINT_URL_S3", found.endpoint)
            yield found


@pytest.fixture
def s3(service: Given) -> Iterator[Given]:
    """An empty bucket of a service without faults."""
    yield service
    service.service.faults.clear()
    for name in service.names():
        service.service.objects.delete("bucket", name)


def training(given: Given, asynchronous: bool = False, size: int = 1000) -> Training:
    return Training(Bucket(given.objects(URI)), asynchronous, size)


def put(given: Given, key: str, content: bytes) -> None:
    given.service.objects.put("bucket", f"run/checkpoints/{key}", content)


def content(given: Given, key: str) -> bytes:
    _, file = given.service.objects.open("bucket", f"run/checkpoints/{key}")
    with file:
        return file.read()


# ------------------------------------------------------------------------------------- the store


def test_a_state_goes_to_s3_and_comes_back(s3: Given) -> None:
    run = training(s3)
    run.run(4)
    assert [c.step for c in run.store.all()] == [1, 3, 4]  # the best, and the last two
    found = reading.restore(Store(Bucket(s3.objects(URI))))
    assert found is not None and found[0].step == 4
    assert found[0].uri == f"{URI}/step=00000004"
    local = Training(Path(s3.service.home) / "local", asynchronous=False)
    local.run(4)
    theirs = reading.restore(local.store)
    assert theirs is not None
    assert torch.equal(found[1]["state_dict"]["weights"], theirs[1]["state_dict"]["weights"])
    weights, tied = (found[1]["state_dict"][name] for name in ("weights", "tied"))
    assert weights.data_ptr() == tied.data_ptr()


def test_a_large_state_is_read_once_and_in_order(
    s3: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "CHUNK", 1 << 20)
    monkeypatch.setattr(buckets, "TAIL", 4 << 10)
    run = training(s3, size=2_500_000)  # 10 MB: parts of 5 MiB
    run.save(1, torch.arange(2_500_000.0))
    run.save(2, torch.arange(2_500_000.0))
    before = s3.count("GetObject")
    found = reading.restore(Store(Bucket(s3.objects(URI))))
    assert found is not None
    assert torch.equal(found[1]["state_dict"]["weights"], torch.arange(2_500_000.0))
    manifests, pieces, tail = 2, 10, 1
    assert s3.count("GetObject") - before <= manifests + pieces + tail


def test_a_flipped_bit_is_found_on_the_way(s3: Given, caplog: pytest.LogCaptureFixture) -> None:
    training(s3).run(3)
    state = bytearray(content(s3, f"step=00000003/{STATE}"))
    state[len(state) // 2] ^= 1
    put(s3, f"step=00000003/{STATE}", bytes(state))
    found = reading.restore(Store(Bucket(s3.objects(URI))))
    assert found is not None and found[0].step < 3
    assert f"{URI}/step=00000003 is damaged (state.pt has another checksum" in caplog.text


@pytest.mark.parametrize("file", [STATE, MANIFEST])
def test_what_is_gone_or_torn_is_passed_over(s3: Given, file: str) -> None:
    training(s3).run(3)
    put(s3, f"step=00000003/{file}", content(s3, f"step=00000003/{file}")[:-7])
    found = reading.restore(Store(Bucket(s3.objects(URI))))
    assert found is not None and found[0].step < 3
    s3.service.objects.delete("bucket", f"run/checkpoints/step=00000003/{file}")
    found = reading.restore(Store(Bucket(s3.objects(URI))))
    assert found is not None and found[0].step < 3
    training(s3).run(4)  # the step is done again, and takes the place of what is damaged
    assert [c.step for c in Store(Bucket(s3.objects(URI))).whole()][-2:] == [3, 4]


def test_s3_that_does_not_answer_is_no_damage(s3: Given) -> None:
    """Else a run would go back, or begin anew, for a connection that was down."""
    training(s3).run(2)
    s3.service.faults.add(Fault("status", error="AccessDenied", operation="s3:GetObject"))
    with pytest.raises(StorageError, match="s3:GetObject"):
        reading.restore(Store(Bucket(s3.objects(URI))))


def test_a_commit_that_another_job_made(s3: Given) -> None:
    run = training(s3)
    clean = run.store.place.clean
    run.store.place.clean = lambda name: None  # type: ignore[method-assign]
    other = training(s3)
    other.save(1, torch.ones(1000))
    with pytest.raises(CheckpointError, match=r"committed by somebody else.*Stop one of them"):
        run.save(1, torch.zeros(1000))
    run.store.place.clean = clean  # type: ignore[method-assign]


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CompleteMultipartUpload"])
def test_a_save_that_s3_refuses(s3: Given, operation: str) -> None:
    """It leaves nothing, the run goes on, and the next one is as good as ever."""
    size = 3_000_000 if "Part" in operation or "Multipart" in operation else 1000
    run = training(s3, size=size)
    run.save(1, torch.ones(size))
    fault = Fault("status", error="AccessDenied", operation=f"s3:{operation}$", times=None)
    s3.service.faults.add(fault)
    run.save(2, torch.ones(size))
    assert isinstance(run.writer.error, StorageError)
    assert [c.step for c in Store(Bucket(s3.objects(URI))).all()] == [1]
    s3.service.faults.clear()
    run.save(3, torch.ones(size))
    assert run.writer.error is None
    assert [c.step for c in Store(Bucket(s3.objects(URI))).all()] == [1, 3]
    assert s3.unfinished == []


def test_what_is_known_to_be_whole_is_not_read_again(s3: Given) -> None:
    run = training(s3)
    run.run(2)
    before = s3.count("GetObject")
    latest = run.store.latest()
    assert latest is not None and latest.step == 2
    assert s3.count("GetObject") - before <= len(run.store.names())  # the manifests
    put(s3, f"step=00000002/{STATE}", b"x" * latest.size)  # of the same size
    latest = run.store.latest()
    assert latest is not None and latest.step == 1


def test_every_name_in_s3_finds_it(s3: Given) -> None:
    training(s3).run(2)
    folder = f"{URI}/step=00000002"
    settings = Settings(s3.endpoint)
    for where in ("s3://bucket/run", URI, folder, f"{folder}/{STATE}"):
        assert find(where, settings)[0].uri == folder
    put(s3, "copy.pt", content(s3, f"step=00000002/{STATE}"))
    assert reading.opened(find(f"{URI}/copy.pt", settings))[1]["step"] == 2
    with pytest.raises(CheckpointError, match="no whole checkpoint there: nothing begins with"):
        find("s3://bucket/nowhere", settings)


# ------------------------------------------------------------------------------------------ kills


def kill_often(given: Given, note: Path, kills: int, seed: int, size: int) -> None:
    """Train, killed at a random request of a save again and again, and look after each kill."""
    draw = random.Random(seed)
    note.write_text("0")
    for _ in range(kills):
        number = draw.randint(1, 30)

        def train(number: int = number) -> None:
            count = 0
            ask = Objects._ask

            def asked(self: Objects, *args: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return ask(self, *args, **options)

            Objects._ask = asked  # type: ignore[method-assign]
            run = training(given, asynchronous=True, size=size)
            run.run(10**6, lambda step: atomic(note, str(step)))

        assert in_a_fork(train) == -9
        store = Store(Bucket(given.objects(URI)))
        latest = store.latest()
        assert (latest.step if latest else 0) >= int(note.read_text())
        assert [c for c in store.all() if c.fault()] == []  # none is half a one


def ends_as_undisturbed(given: Given, tmp_path: Path, size: int) -> None:
    found = reading.restore(Store(Bucket(given.objects(URI))))
    steps = (found[0].step if found else 0) + 3
    training(given, size=size).run(steps)
    undisturbed = Training(tmp_path / "undisturbed", asynchronous=False, size=size)
    undisturbed.run(steps)
    ours, theirs = (
        reading.restore(s) for s in (Store(Bucket(given.objects(URI))), undisturbed.store)
    )
    assert ours is not None and theirs is not None
    assert torch.equal(ours[1]["state_dict"]["weights"], theirs[1]["state_dict"]["weights"])
    # What the killed saves left behind went with the checkpoints that were no longer needed.
    assert len(Store(Bucket(given.objects(URI))).names()) <= 3


def test_kill_at_8_random_requests_of_saves(s3: Given, tmp_path: Path) -> None:
    kill_often(s3, tmp_path / "surely-saved", kills=8, seed=1, size=10_000)
    ends_as_undisturbed(s3, tmp_path, size=10_000)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_kill_at_50_requests(s3: Given, tmp_path: Path, seed: int) -> None:
    """States that take several parts."""
    kill_often(s3, tmp_path / "surely-saved", kills=50, seed=seed, size=3_000_000)
    ends_as_undisturbed(s3, tmp_path, size=3_000_000)


# ------------------------------------------------------------------------------------- whole jobs


class Kept(Job):
    """A job whose results are in S3."""

    def on(self, directory: Path) -> "Kept":
        """Return the same job on another machine: with another, empty run directory."""
        return Kept(directory, self.words)


@pytest.fixture
def kept(tmp_path: Path, job: Callable[..., Job], s3: Given) -> Callable[..., Kept]:
    """Make jobs that write to s3://bucket/runs; those of one name are one run."""

    def make(machine: str, *words: str) -> Kept:
        plain = job("unused", *words)
        words_too = ["storage.output=s3://bucket/runs", f"storage.s3.endpoint={s3.endpoint}"]
        return Kept(tmp_path / machine / "run", [*plain.words, *words_too])

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    return make


def test_a_run_goes_on_on_another_machine(
    kept: Callable[..., Kept],
    job: Callable[..., Job],
    hit: Callable[..., dict[str, str]],
    s3: Given,
) -> None:
    """Killed on one, it goes on with the very next sample on a machine that has nothing of it."""
    reference = job("reference")
    code, printed = reference.run()
    assert code == 0, printed
    first, second = kept("one"), kept("two")
    code, printed = first.run(**hit("SIGKILL", "train", 13))
    assert code == -9, printed
    assert not (first.directory / "checkpoints").exists()
    code, printed = second.run()
    assert code == 0, printed
    # The save of step 12 may have been under way.
    place = "s3://bucket/runs/run/checkpoints/step=000000"
    assert any(f"going on from step {n}: {place}{n}" in printed for n in (10, 12)), printed
    assert_equal(second, reference)
    names = s3.names()
    for name in ("config.yaml", "result.json", "metrics.csv", "checkpoints.json"):
        assert f"runs/run/{name}" in names
    result = second.result()
    assert result["checkpoints"]["last"] == "s3://bucket/runs/run/checkpoints/step=00000027-end"
    assert s3.unfinished == [] or len(s3.unfinished) <= 1  # of the killed save

    # It is finished, also for the machine that saw half of it; and for one that saw nothing.
    code, printed = first.run()
    assert code == 0 and "finished already" in printed, printed
    assert first.result() == result


def test_a_stop_saves_to_s3(
    kept: Callable[..., Kept], hit: Callable[..., dict[str, str]], s3: Given
) -> None:
    drill = kept("one", "checkpoint.every_n_steps=null")
    code, printed = drill.run(**hit("SIGTERM", "train", 5))
    assert code == 143, printed
    assert "stopped, and saved" in printed
    found = Checkpoint.read(place("s3://bucket/runs/run/checkpoints"), "step=00000006")
    assert found is not None and found.fault() is None
    _, file = s3.service.objects.open("bucket", "runs/run/result.json")
    with file:
        assert json.load(file)["status"] == "stopped"


def test_another_run_in_s3_is_refused_and_again_sets_it_aside(
    kept: Callable[..., Kept], s3: Given
) -> None:
    first = kept("one", "trainer.max_epochs=1")
    code, printed = first.run()
    assert code == 0, printed
    other = kept("two", "trainer.max_epochs=1", "model.hidden=8")
    code, printed = other.run()
    assert code == 2, printed
    assert "-model.hidden: 16\n+model.hidden: 8" in printed
    code, printed = other.run("again=true")
    assert code == 0, printed
    assert stored("s3://bucket/runs/run") == "s3://bucket/runs/run/checkpoints-2"
    assert stored("s3://bucket/runs/run/previous/1") == "s3://bucket/runs/run/checkpoints"
    for where in ("s3://bucket/runs/run", "s3://bucket/runs/run/previous/1"):
        assert find(where)[0].fault() is None
    code, printed = first.run()
    assert code == 2, printed


def test_a_refused_save_stops_the_run_where_it_is_to(kept: Callable[..., Kept], s3: Given) -> None:
    # Its config.yaml goes through, and nothing after it.
    s3.service.faults.add(
        Fault("status", error="AccessDenied", operation="s3:PutObject", skip=1, times=None)
    )
    drill = kept("one", "checkpoint.on_failure=stop", "trainer.max_epochs=1")
    code, printed = drill.run()
    assert code == 1, printed
    assert "checkpoint.on_failure is stop" in printed and "s3:PutObject" in printed
