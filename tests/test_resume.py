"""A run that was stopped, in whatever way, ends as one that never was: bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Job
from .drill import same

STEPS = 27  # three epochs of nine


def long(*values: Any) -> Any:
    """A case of `make soak`."""
    return pytest.param(*values, marks=pytest.mark.soak)


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
    long("end", 8),
    ("train", 8),  # the last step of an epoch
    ("val", 9),  # while it is validated
    ("epoch", 9),  # just before the epoch's end is saved
    ("train", 9),  # the first step of an epoch
    long("end", 18),
    long("train", 22),
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


VARIANTS = {
    "two validations an epoch": ["trainer.val_check_interval=0.5"],
    "accumulation": ["trainer.accumulate_grad_batches=2"],
    "loader workers": ["data.num_workers=2"],
    "in the foreground": ["checkpoint.asynchronous=false"],
    "only at the ends of epochs": ["checkpoint.every_n_steps=null"],
    "max_steps": ["trainer.max_steps=14"],
}

RARE = ("trainer.val_check_interval=0.5", "checkpoint.asynchronous=false", "trainer.max_steps=14")


@pytest.mark.parametrize("step", [4, long(6)])
@pytest.mark.parametrize(
    "variant", [long(name) if VARIANTS[name][0] in RARE else name for name in VARIANTS]
)
def test_kill_variants(
    job: Callable[..., Job],
    hit: Callable[..., dict[str, str]],
    references: dict[tuple[str, ...], Job],
    variant: str,
    step: int,
) -> None:
    words = VARIANTS[variant]
    reference = undisturbed(references, job, *words)
    drill = job("run", *words)
    code, printed = drill.run(**hit("SIGKILL", "train", step))
    assert code == -9, printed
    code, printed = drill.run()
    assert code == 0, printed
    assert_equal(drill, reference)


STOPS = [("train", 8), ("val", 9), ("epoch", 9), ("train", 5), ("val", 18), ("end", 26)]
SIGNALS = [
    *((*stop, "SIGTERM", 143) for stop in STOPS[:3]),
    *(long(*stop, "SIGTERM", 143) for stop in STOPS[3:]),
    ("val", 9, "SIGINT", 130),
    *(long(*stop, "SIGINT", 130) for stop in STOPS[3:]),
]


@pytest.mark.parametrize(("place", "step", "name", "expected"), SIGNALS)
def test_stop(
    job: Callable[..., Job],
    hit: Callable[..., dict[str, str]],
    references: dict[tuple[str, ...], Job],
    place: str,
    step: int,
    name: str,
    expected: int,
) -> None:
    """A stop saves the very step at which it came, and says so with its exit code."""
    words = ["checkpoint.every_n_steps=null"]
    reference = undisturbed(references, job, *words)
    drill = job("run", *words)
    code, printed = drill.run(**hit(name, place, step))
    assert code == expected, printed
    assert drill.result()["exit_code"] == expected
    saved = drill.state()["global_step"]
    # A module's own hooks come after ours: what hits them is heard one step later.
    assert saved == step + (place in ("train", "end", "epoch")), printed
    code, printed = drill.run()
    assert code == 0, printed
    assert f"going on from step {saved}" in printed
    assert_equal(drill, reference)


@pytest.mark.parametrize(
    ("event", "place"), [("SIGKILL", "val"), ("SIGTERM", "val"), ("SIGTERM", "train")]
)
def test_the_last_validation_is_not_lost(
    job: Callable[..., Job],
    hit: Callable[..., dict[str, str]],
    references: dict[tuple[str, ...], Job],
    event: str,
    place: str,
) -> None:
    """A run of max_steps ends in the middle of an epoch, with a validation of its final weights."""
    words = ["trainer.max_steps=14"]
    reference = undisturbed(references, job, *words)
    assert reference.result()["steps"] == 14
    assert reference.result()["objective"]["value"] == reference.result()["metrics"]["val/loss"]
    drill = job("run", *words)
    code, printed = drill.run(**hit(event, place, 14 - (place == "train")))
    assert code in (-9, 143), printed
    code, printed = drill.run()
    assert code == 0, printed
    assert_equal(drill, reference)
