"""A checkpoint that only rank 0's machine has."""

import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hydra_trainer import handover
from hydra_trainer.checkpoints.files import SHARDS, STATE
from hydra_trainer.checkpoints.folder import Folder
from hydra_trainer.checkpoints.store import Checkpoint, Store
from hydra_trainer.checkpoints.writing import write_state
from hydra_trainer.errors import CheckpointError

SIZE = 300_000  # bytes: several chunks below


def saved(folder: Path) -> Checkpoint:
    """Return a committed checkpoint."""
    store = Store(folder)
    name = store.name(1, "mid")
    store.clean(name)
    state = {"state_dict": {"weights": torch.arange(SIZE // 8)}}
    written = write_state(state, store.place, name, STATE)
    store.commit(name, {"step": 1, "metrics": {}}, {STATE: written})
    found = Checkpoint.read(store.place, name)
    assert found is not None
    return found


def on_machines(
    folder: Path, has: Callable[[int], bool], work: Callable[[], None], each: int = 1
) -> None:
    """Do something on two machines of `each` ranks, each with a disk of its own."""

    def run(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(2 * each),
            "LOCAL_WORLD_SIZE": str(each),
            "LOCAL_RANK": str(rank % each),
            "GROUP_RANK": str(rank // each),
        }
        handover._has = lambda found: has(rank // each)
        handover.CHUNK = 100_000
        meet = f"file://{folder / 'meet'}"
        dist.init_process_group("gloo", meet, rank=rank, world_size=2 * each)
        work()
        dist.destroy_process_group()

    ranks = [get_context("fork").Process(target=run, args=(rank,)) for rank in range(2 * each)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * len(ranks)


@pytest.mark.parametrize("each", [1, 2])
def test_the_other_machine_gets_a_copy_for_the_time(tmp_path: Path, each: int) -> None:
    found = saved(tmp_path / "run")

    def work() -> None:
        with handover.on_every_machine(found, 60.0) as place:
            assert (place == found) == (os.environ["GROUP_RANK"] == "0")
            assert Path(place.state).read_bytes() == Path(found.state).read_bytes()
            assert place.fault() is None
            dist.barrier()
        dist.barrier()
        assert place == found or not Path(place.state).exists()

    on_machines(tmp_path, lambda machine: machine == 0, work, each)


def test_a_shared_folder_is_read_where_it_is(tmp_path: Path) -> None:
    found = saved(tmp_path / "run")

    def work() -> None:
        with handover.on_every_machine(found, 60.0) as place:
            assert place == found

    on_machines(tmp_path, lambda machine: True, work)


def test_shards_are_not_sent(tmp_path: Path) -> None:
    found = Checkpoint(Folder(tmp_path), "one", {"files": {f"{SHARDS}/__0_0.distcp": {}}})

    def work() -> None:
        with (
            pytest.raises(CheckpointError, match="storage=efs"),
            handover.on_every_machine(found, 60.0),
        ):
            pass

    on_machines(tmp_path, lambda machine: machine == 0, work)


def test_half_a_file_is_not_trusted(tmp_path: Path) -> None:
    found = saved(tmp_path / "run")
    assert handover._has(found)
    path = Path(found.state)
    path.write_bytes(path.read_bytes()[:-100])
    assert not handover._has(found)
    assert not handover._has(replace(found, place=Folder(tmp_path / "nowhere")))
