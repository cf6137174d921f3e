"""The benchmarks run, at a size that says nothing about speed, and their clocks are fair."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks import checkpoints, gpu, steps, timed
from benchmarks.table import Row, compared, show

SLOW = (
    *("ranks", "restart", "memory", "dry_run", "creates", "waiting", "sagemaker_dry_run", "sweep"),
    *("submit", "sweep_jobs", "sitting", "slots", "checkpoint", "streaming", "loader_wait"),
)
"""They start processes that import torch, up to a dozen: `make soak` and `make bench` run them."""

NAMES = [
    pytest.param(name, marks=pytest.mark.soak) if name in SLOW else name
    for name in bench.ALL
    if name != "gpu"
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (steps, gpu):
        monkeypatch.setattr(module, "WARM_UP", 2)
    monkeypatch.setattr(steps, "ROUND", 2)


def ratios(rows: Iterator[Row]) -> list[float]:
    return [row.ratio for row in rows if row.ratio is not None]


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_runs(name: str) -> None:
    found = ratios(bench.ALL[name](True))
    assert found
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in found)


@pytest.mark.parametrize(
    "rows",
    [
        partial(gpu.gpt, "gpt", 2, 16, 2, 1, ["data.vocab_size=64", "model.n_layer=1", *gpu.FAST]),
        partial(gpu.resnet18, 2, 1, 1, ["model.width=8", *steps.CORE]),
    ],
    ids=["gpt", "resnet18"],
)
def test_what_a_gpu_would_run_runs_on_a_cpu(rows: Callable[[], Iterator[Row]]) -> None:
    found = list(rows())
    assert math.isfinite(found[0].ratio or math.nan)
    assert found[1].ours.endswith(("tokens/s", "images/s"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_rows_say_so() -> None:
    assert {row.verdict for row in gpu.rows(False)} == {"no GPU here: not measured"}


def test_flops_per_token_are_6n_and_12ldt() -> None:
    width, layers, length, vocabulary = 768, 12, 1024, 50304
    block = 12 * width**2 + 13 * width  # GPT-2: 4 + 8 matrices, their biases, two layer norms
    parameters = vocabulary * width + layers * block + 2 * width
    found = gpu.flops_per_token(["model=gpt_124m", "data=synthetic_tokens"])
    assert found == 6 * parameters + 12 * layers * width * length


def loop(turns: timed.Turns, side: str, order: list[str], until: int) -> None:
    for step in range(until):
        turns(step)
        order.append(side)


def test_sides_take_turns_after_their_warm_up() -> None:
    order: list[str] = []
    with timed.ring(2) as folder, ThreadPoolExecutor(2) as pool:
        sides = [timed.Turns(str(folder), n, 2, warm_up=3, every=2, turns=4) for n in range(2)]
        loops = [pool.submit(loop, sides[n], "ab"[n], order, 12) for n in range(2)]
        assert not [error for done in loops if (error := done.exception())]
    assert sorted(order[:6]) == list("aaabbb")  # in any order: nothing is measured yet
    assert "".join(order[6:22]) == 4 * "aabb"
    assert [len(turns.spent) for turns in sides] == [4, 4]


def test_a_side_that_fails_ends_the_other() -> None:
    with timed.ring(2) as folder, ThreadPoolExecutor(1) as pool:
        sides = [timed.Turns(str(folder), n, 2, warm_up=0, every=1, turns=9) for n in range(2)]
        waiting = pool.submit(loop, sides[0], "a", [], 12)
        sides[1].give_up()
        assert "ended before its time" in str(waiting.exception())


def test_marks_are_written_by_rank_and_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    marks = timed.Marks([1, 2], str(tmp_path / "times"))
    for step in range(4):
        marks(step)
    assert [path.name for path in tmp_path.iterdir()] == ["times-3-1"]
    assert len(marks.seen) == 2


def test_the_first_save_is_left_out_on_both_sides() -> None:
    watch = checkpoints._run(1000, checkpoints.training.train)
    assert len(watch.blocked) == len(watch.durable) == checkpoints.SAVES - 1


def test_the_ratio_is_the_median_of_the_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    row = compared("a step", [1.0, 9.0, 3.0], [1.0, 3.0, 2.0], "ms", target=1.5)
    show([row, compared("another", [4.0], [2.0], "s", target=1.5)])
    printed = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in printed[2].split("|")[1:-1]] == [
        "a step",
        "3 ms",
        "2 ms",
        "1.50",
        "1.00-3.00",
        "<= 1.5",
        "met",
    ]
    assert "MISSED" in printed[3]


def test_an_unknown_name_is_refused_with_those_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        bench.main(["stepps"])
    assert "unknown: stepps; known: steps, ranks" in capsys.readouterr().err
