"""trainer.strategy=fsdp on two CPU ranks: sharded training, sharded checkpoints, exact resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hydra_trainer import checkpoint, sharding

from .conftest import Job
from .drill import Drill

pytestmark = pytest.mark.xdist_group("ranks")

WORDS = ["resources.processes_per_node=2", "trainer.strategy=fsdp"]
Hit = Callable[..., dict[str, str]]


def weights(directory: Path) -> dict[str, Any]:
    """Return the last weights of a run, put together from their shards in this process."""
    last = checkpoint.Store(directory / "checkpoints").latest()
    assert last is not None
    model = Drill([1, 8, 8], 10, hidden=16)
    sharding.load_weights(model, last.state)
    return model.state_dict()


def test_sharded_training_resumes_exactly(job: Callable[..., Job], hit: Hit) -> None:
    reference, drill = job("reference", *WORDS), job("run", *WORDS)
    code, printed = reference.run()
    assert code == 0, printed
    code, printed = drill.run(**hit("SIGKILL", "train", 13, "1"))
    assert code == 0, printed
    assert "going on from step 12" in printed
    for key in ("objective", "metrics", "steps", "epochs"):
        assert drill.result()[key] == reference.result()[key], key
    ours, theirs = weights(drill.directory), weights(reference.directory)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    # The same numbers as without sharding, to rounding: it is the same training.
    plain = job("plain", "resources.processes_per_node=2")
    code, printed = plain.run()
    assert code == 0, printed
    last = checkpoint.Store(plain.directory / "checkpoints").latest()
    assert last is not None
    unsharded = checkpoint.load(last.state)["state_dict"]
    for name, value in ours.items():
        torch.testing.assert_close(value, unsharded[name], rtol=1e-3, atol=1e-4)

    # A sharded run does not go on unsharded: the difference is shown.
    code, printed = Job(drill.directory, drill.words[:-1]).run()
    assert code == 2, printed
    assert '-trainer.strategy: "fsdp"\n+trainer.strategy: "auto"' in printed
