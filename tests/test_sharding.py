"""trainer.strategy=fsdp on two CPU ranks: sharded training, sharded checkpoints, exact resume."""

import os
import re
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from hydra_trainer.callbacks import Core
from hydra_trainer.checkpoints import reading, shards
from hydra_trainer.checkpoints.bucket import Bucket
from hydra_trainer.checkpoints.files import STATE, Place
from hydra_trainer.checkpoints.folder import Folder
from hydra_trainer.checkpoints.store import Checkpoint, Store
from hydra_trainer.checkpoints.writing import Writer
from hydra_trainer.errors import CheckpointError
from hydra_trainer.preemption import NoStopFlag
from hydra_trainer.progress import choose
from hydra_trainer.sharding import ShardedStrategy

from .buckets import KEYS, bucket
from .conftest import Job
from .drill import Drill, same
from .faults import _limit_files as limit_files

pytestmark = pytest.mark.xdist_group("ranks")

WORDS = ["model.hidden=64", "resources.processes_per_node=2", "trainer.strategy=fsdp"]
FAULTY = "model._target_=tests.faults.Faulty"
CONF: dict[str, Any] = {
    "trainer": {"log_every_n_steps": 1},
    "checkpoint": {"every_n_steps": 1, "keep_last": 2, "keep_best": 0},
    "objective": {"metric": "val/loss", "mode": "min"},
}
Hit = Callable[..., dict[str, str]]


def weights(directory: Path) -> dict[str, Any]:
    """Return the last weights of a run, put together from their shards in this process."""
    last = Store(directory / "checkpoints").latest()
    assert last is not None
    model = Drill([1, 8, 8], 10, hidden=64)
    shards.load_weights(model, last)
    return model.state_dict()


def test_sharded_training_resumes_exactly(job: Callable[..., Job], hit: Hit) -> None:
    """Killed, too, while one rank's disk is full: it goes on with the checkpoint before."""
    reference, drill = job("reference", *WORDS), job("run", FAULTY, *WORDS)
    code, printed = reference.run()
    assert code == 0, printed
    code, printed = drill.run(**hit("SIGKILL", "train", 13, "1"), FAULT="full:7:20:1")
    assert code == 0, printed
    refused = "could not be saved: [Errno 27] File too large. Training goes on"
    assert printed.count(refused) == 2  # once in each sitting
    assert printed.count("Checkpoints can be saved again.") == 1
    # The one of step 6 may be in the writing when the disk is full, one step later.
    assert re.search("going on from step [46]:", printed)
    for key in ("objective", "metrics", "steps", "epochs"):
        assert drill.result()[key] == reference.result()[key], key
    assert same(weights(drill.directory), weights(reference.directory))

    # A sharded run does not go on unsharded: the difference is shown.
    code, printed = Job(drill.directory, drill.words[:-1]).run()
    assert code == 2, printed
    assert '-trainer.strategy: "fsdp"\n+trainer.strategy: "auto"' in printed


@pytest.mark.soak
def test_sharded_training_is_the_same_training(job: Callable[..., Job]) -> None:
    """To rounding: sums are made in another order."""
    sharded, plain = job("sharded", *WORDS), job("plain", *WORDS[:-1])
    for run in (sharded, plain):
        code, printed = run.run()
        assert code == 0, printed
    last = Store(plain.directory / "checkpoints").latest()
    assert last is not None
    unsharded = reading.load(last)["state_dict"]
    for name, value in weights(sharded.directory).items():
        torch.testing.assert_close(value, unsharded[name], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------ saves of two ranks, no job


def on_two_ranks(
    folder: Path,
    work: Callable[[ShardedStrategy, Store, Writer], None],
    place: Place | None = None,
) -> None:
    """Run `work` in two forks of this process that form a group."""

    def run(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        dist.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
        store, writer = Store(place or folder / "checkpoints"), Writer()
        strategy = ShardedStrategy(
            Core(NoStopFlag(), choose("off", False), CONF, store, writer, {})
        )
        strategy.cluster_environment = TorchElasticEnvironment()
        work(strategy, store, writer)

    ranks = [get_context("fork").Process(target=run, args=(rank,)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]


def save(strategy: ShardedStrategy, store: Store, step: int, size: int = 10, **more: Any) -> None:
    """Save `size` numbers for each rank, and what is not sharded."""
    mesh = init_device_mesh("cpu", (2,))
    weights = distribute_tensor(torch.full((2 * size,), float(step)), mesh, [Shard(0)])
    state = {"state_dict": {"weights": weights}, "optimizer_states": [{"sum": weights}], **more}
    meta = {"step": step, "metrics": {}}
    strategy.save_checkpoint(state, f"{store.uri}/{store.name(step, 'mid')}/{STATE}", meta)


@pytest.mark.parametrize("size", [2000, 200_000])  # torch meets the error when it closes, or sooner
@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_that_is_full_on_one_rank(tmp_path: Path, full: int, size: int) -> None:
    def work(strategy: ShardedStrategy, store: Store, writer: Writer) -> None:
        save(strategy, store, 1, size)
        writer.finish()
        if strategy.global_rank == full:
            limit_files(4 << 10)
        save(strategy, store, 2, size)
        writer.finish()
        assert str(writer.error) == "[Errno 27] File too large"  # on both, to act alike
        dist.barrier()
        assert [c.step for c in store.all()] == [1]
        assert store.names() == ["step=00000001"]
        limit_files(None)
        save(strategy, store, 3, size)
        writer.finish()
        assert writer.error is None

    on_two_ranks(tmp_path, work)
    assert [(c.step, c.fault()) for c in Store(tmp_path / "checkpoints").all()] == [
        (1, None),
        (3, None),
    ]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Rank 0 alone meets it."""

    def work(strategy: ShardedStrategy, store: Store, writer: Writer) -> None:
        save(strategy, store, 1)
        writer.finish()
        assert isinstance(writer.error, NotADirectoryError)

    (tmp_path / "checkpoints").touch()
    on_two_ranks(tmp_path, work)


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    on_two_ranks(tmp_path, lambda strategy, store, writer: save(strategy, store, 7))
    found = Checkpoint.read(Folder(tmp_path / "checkpoints"), "step=00000007")
    assert found is not None
    folder = Path(found.state)
    model = torch.nn.Module()
    model.weights = torch.nn.Parameter(torch.zeros(20))
    shards.load_weights(model, found)
    assert model.weights.tolist() == [7.0] * 20
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"shards cannot be loaded: .*No such file"):
        shards.load_weights(model, found)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"strange": Path("/tmp")}, "objects of pathlib.PosixPath, which cannot be loaded safely"),
        ({"strange": lambda: None}, "something that cannot be saved"),
        ({"optimizer_states": [{"sum": lambda: None}]}, "something that cannot be saved"),
    ],
)
def test_what_could_not_be_loaded_again(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    """It is refused, on every rank, at the first save; and again by each later one."""

    def work(strategy: ShardedStrategy, store: Store, writer: Writer) -> None:
        for state in (more, {}):
            with pytest.raises(CheckpointError, match=reason):
                save(strategy, store, 1, **state)
                writer.finish()
                writer.check()
        dist.barrier()
        assert store.names() == []

    on_two_ranks(tmp_path, work)


def test_shards_in_s3_behind_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is what was there, though training went on at once; any world loads it."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with bucket(tmp_path / "service") as given:
        place = Bucket(given.objects("s3://bucket/run/checkpoints"))

        def work(strategy: ShardedStrategy, store: Store, writer: Writer) -> None:
            weights = distribute_tensor(
                torch.full((20,), 7.0), init_device_mesh("cpu", (2,)), [Shard(0)]
            )
            state = {"state_dict": {"weights": weights}, "optimizer_states": [{"sum": weights}]}
            path = f"{store.uri}/{store.name(7, 'mid')}/{STATE}"
            strategy.save_checkpoint(state, path, {"step": 7, "metrics": {}})
            weights.to_local().fill_(8.0)
            save(strategy, store, 9)
            writer.finish()
            writer.check()
            assert writer.error is None

        on_two_ranks(tmp_path, work, place)
        store = Store(place)
        assert [(c.step, c.is_sharded, c.fault()) for c in store.all()] == [
            (7, True, None),
            (9, True, None),
        ]
        first, _ = store.all()
        assert shards.weights(first)["weights"].tolist() == [7.0] * 20
        assert sorted(first.files) == [
            f"shards/{name}" for name in (".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt")
        ]
        found = reading.restore(store)
        assert found is not None and found[0].step == 9
        assert found[1]["state_dict"]["weights"].shape == (20,)
