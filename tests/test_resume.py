"""A run that was stopped, in whatever way, ends as one that never was: bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Job
from .drill import same

STEPS = 27  # three epochs of nine


def assert_equal(job: Job, reference: Job) -> None:
    a, b = job.state(), reference.state()
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "hydra_trainer"):
        assert same(a[key], b[key]), f"{key} differs:\n{a[key]}\n{b[key]}"
    one, two = job.result(), reference.result()
    for key in ("objective", "metrics", "steps", "epochs", "status"):
        assert one[key] == two[key], key
    assert (job.directory / "metrics.csv").read_text() == (
        reference.directory / "metrics.csv"
    ).read_text()


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Job]:
    return {}


def undisturbed(
    references: dict[tuple[str, ...], Job], make: Callable[..., Job], *words: str
) -> Job:
    if words not in references:
        reference = make("reference", *words)
        code, printed = reference.run()
        assert code == 0, printed
        references[words] = reference
    return references[words]


KILLS = [
    ("train", 1),  # before anything was saved: starts anew
    ("train", 5),
    ("end", 8),
    ("train", 8),  # the last step of an epoch
    ("val", 9),  # while it is validated
    ("epoch", 9),  # just before the epoch's end is saved
    ("train", 9),  # the first step of an epoch
    ("end", 18),
    ("train", 22),
    ("test", 27),
]


@pytest.mark.parametrize(("place", "step"), KILLS)
def test_kill(
    job: Callable[..., Job],
    hit: Callable[..., dict[str, str]],
    references: dict[tuple[str, ...], Job],
    place: str,
    step: int,
) -> None:
    reference = undisturbed(references, job)
    drill = job()
    code, printed = drill.run(**hit("SIGKILL", place, step))
    assert code == -9, printed
    code, printed = drill.run()
    assert code == 0, printed
    assert_equal(drill, reference)
