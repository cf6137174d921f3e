"""The line of an epoch, and reading it back."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra_trainer.job import Report
from hydra_trainer.progress import Lines, parse

NAMES = st.from_regex(r"[a-z_]+(/[a-z_@0-9.-]+( [a-z]+)?)?", fullmatch=True)


def printed(epoch: int, epochs: int, step: int, values: dict[str, float]) -> str:
    said: list[str] = []
    lines = Lines()
    lines.say = said.append  # type: ignore[method-assign, assignment]
    lines.start(epochs, 9)
    lines.metrics(values)
    lines.epoch(epoch, step)
    return said[0]


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(-1, 10**6),
    st.integers(0, 10**12),
    st.dictionaries(NAMES, st.floats(), max_size=5),
)
def test_a_line_comes_back(epoch: int, epochs: int, step: int, values: dict[str, float]) -> None:
    line = printed(epoch, epochs, step, values)
    found = parse(f"{line}\n")
    assert found is not None, line
    assert (found.epoch, found.epochs, found.step) == (epoch + 1, epochs, step)
    assert found.values.keys() == values.keys()
    for name, value in values.items():
        told = found.values[name]
        close = math.isclose(told, value, rel_tol=1e-5) or float(f"{value:.6g}") == told
        assert close or (math.isnan(told) and math.isnan(value)), line


def test_what_it_looks_like() -> None:
    """People read it, and SageMaker's metric definitions find `val/loss 0.0468112` in it."""
    line = printed(2, 15, 33, {"val/loss": 0.046811234, "train/loss": 1e-7})
    assert line.startswith("epoch 3/15  step 33  train/loss 1e-07  val/loss 0.0468112  ")
    assert parse(line) == Report(3, 15, 33, {"train/loss": 1e-7, "val/loss": 0.0468112})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "epoch 3/15  batch 5/11  train/loss 0.1234  1,234 samples/s",
        "epoch 3/15  step 33  train/loss 0.1234",
        "epoch 3/15 step 33 train/loss 0.1234 1,234 samples/s",
        "epoch 3/15  step 33  train/loss high  1,234 samples/s",
        "epoch 3/15  step 33  train/loss 1_0  1,234 samples/s",
        "epoch 3/15  step 33  train/loss 0.1234  fast samples/s",
        "now epoch 3/15  step 33  train/loss 0.1234  1,234 samples/s",
        "epoch 3/15  step 33  train/loss 0.1234  1,234 samples/s, which is slow",
        "epoch x/15  step 33  train/loss 0.1234  1,234 samples/s",
    ],
)
def test_another_line(line: str) -> None:
    assert parse(line) is None
