"""report.html, as text and in a real browser."""

import base64
import functools
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.sweep import importance, report
from hydra_trainer.sweep.figures import figures
from hydra_trainer.sweep.importance import importances
from hydra_trainer.sweep.rows import Sweep
from hydra_trainer.sweep.scales import log_fits, scale

from .browser import FOUND, Browser, browser
from .swept import ACCURACY, LOSS, SIZE, Told, grown, loss

EVIL = "</script><img src=x onerror=alert(1)><!-- \u2028 'a' \"b\" &amp; \ud800"


def failing(count: int = 20) -> Sweep:
    """Return a sweep in which every job fails, for one of two reasons."""
    told = Told()
    for number in told_jobs(told, count):
        told.running(number)
        told.progress(number, 1, 10, 2.3)
        told.at += 5
        if number % 4:
            told.failed(number, "OutOfMemoryError", f"tried to allocate {number} GiB")
        else:
            told.failed(number, "ValueError", f"Traceback\n  <b>{EVIL}</b>\nValueError: no")
    return told.sweep


def told_jobs(told: Told, count: int) -> Iterator[int]:
    for number in range(count):
        yield told.job(number, optim__lr=10.0 ** -(number % 5), model="mlp" if number % 2 else EVIL)


def hostile() -> Sweep:
    """Return a sweep whose texts are markup and whose numbers are none."""
    told = Told([{"metric": f"val/{EVIL}", "mode": "max"}], words=f"-m 'a={EVIL!r}'")
    values = [EVIL, [1, EVIL], {"k": EVIL}, None, True, 1e300, math.nan, math.inf, "日本語" * 30]
    for number in range(18):
        strange = values[number % len(values)]
        params: dict[str, Any] = {f"x.{EVIL}": strange, "y": number, "flag": number % 2 == 0}
        told.job(number, **params)
        told.running(number)
        told.progress(number, 1, 3, math.nan if number % 2 else 1.0)
        told.progress(number, 2, 3, -1e30 if number == 4 else 2.0)
        told.progress(number, 3, 3, math.inf if number % 3 else 3.0)
        told.at += 3
        if number % 6 == 5:
            told.failed(number, EVIL, EVIL)
        else:
            told.succeeded(number, -1e30 if number == 4 else number * 0.1)
    told.sweep.rows[0].metrics = {EVIL: math.nan}
    return told.sweep


def under_way() -> Sweep:
    told = Told(words="-m launcher=local,eks optim.lr=1e-4,1e-3")
    for number in range(20):
        told.job(number, "eks" if number % 2 else "local", optim__lr=10.0 ** -(1 + number % 5))
    for number in range(8):
        told.running(number)
    for epoch in range(1, 6):
        told.at += 5
        for number in range(8):
            told.progress(number, epoch, 10, 2 / epoch + number * 0.01)
    told.succeeded(0, 0.3)
    told.ended(1, "CANCELLED", reason="Stopped")
    told.sent(8)
    return told.sweep


def one_job() -> Sweep:
    told = Told()
    told.running(told.job(0, optim__lr=0.1))
    told.progress(0, 1, 2, 0.5)
    told.progress(0, 2, 2, 0.4)
    told.succeeded(0, 0.4)
    return told.sweep


SWEEPS = {
    "few": lambda: grown(12),
    "200": lambda: grown(200),
    "1000": lambda: grown(1000, 10),
    "failures": failing,
    "one": one_job,
    "two": lambda: grown(90, objectives=(LOSS, ACCURACY)),
    "three": lambda: grown(90, objectives=(LOSS, ACCURACY, SIZE)),
    "hostile": hostile,
    "under way": under_way,
    "planned": lambda: Told().sweep,
    "nothing": Sweep,
}


@functools.cache
def written(name: str) -> str:
    return report.page(SWEEPS[name]())


# ------------------------------------------------------------------------------------- as text


class Elements(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("name", SWEEPS)
def test_a_report_asks_for_nothing(name: str) -> None:
    page = written(name)
    for tag, attributes in Elements(page).tags:
        assert tag not in ("img", "link", "iframe", "object", "base", "form", "i", "u")
        assert not {"src", "href", "action"} & attributes.keys()
        assert not any(key.startswith("on") for key in attributes)
    assert len(page) < 6_000_000
    data_of(page)


@pytest.mark.parametrize("name", ["few", "200", "hostile"])
def test_the_same_sweep_is_the_same_file(name: str) -> None:
    assert written(name) == report.page(SWEEPS[name]())


def test_only_our_script_may_run() -> None:
    page = written("hostile")
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policies = [a["content"] for tag, a in Elements(page).tags if a.get("http-equiv")]
    assert policies == [
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ]
    assert len(scripts) == 1 and page.count("<script") == 2


def test_it_says_what_was_swept_and_what_came_of_it() -> None:
    sweep = grown(200)
    text = " ".join(Elements(written("200")).texts)
    best = sweep.ranked()[0]
    assert "Sweep of lr, model, batch_size, dropout" in text
    assert "200 jobs on eks" in text and "2027-01-15 08:00 UTC" in text
    assert "python train.py -m launcher=eks sweep=optuna 'optim.lr=tag(" in text
    assert f"python train.py launcher=eks optim.lr={best.params['optim.lr']}" in text
    assert "detach" not in text.split('{"objectives"')[0]
    states = [row.state.lower() for row in sweep.shown()]
    for state in ("succeeded", "failed", "pruned"):
        assert re.search(rf"\b{states.count(state)}\s+{state}", text)


def test_failures_are_told_once_for_each_reason() -> None:
    page = written("failures")
    texts = [text.strip() for text in Elements(page).texts]
    assert texts.index("OutOfMemoryError") < texts.index("ValueError")  # 15 of them, and 5
    assert "tried to allocate 1 GiB" in texts and "tried to allocate 2 GiB" not in texts
    assert any("hydra-trainer why eks://prod/team/mlp-digits-0001" in text for text in texts)
    assert page.index("Failures") < page.index('id="charts"')  # nothing else is of interest


def test_a_report_is_written_as_utf_8(tmp_path: Path) -> None:
    report.write(hostile(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "日本語" in text and "\\ud800" in text


def test_numbers_that_are_none_are_left_out() -> None:
    found = figures(hostile())
    job = found["jobs"][0]
    assert list(job["metrics"].values()) == [None]
    assert found["curves"][0] == [[11, 22, 33], [1.0, 2.0, 3.0]]
    assert found["curves"][3] == [[22, 33], [2.0, 3.0]]
    assert found["jobs"][4]["values"] == [-1e30] and found["objectives"][0]["low"] > -1


def test_axes() -> None:
    assert log_fits([1e-4, 3e-4, 1e-3]) and log_fits([16, 32, 64, 128, 128, 128, 128])
    assert not log_fits([0.01, 0.2, 0.3, 0.4, 0.5]) and not log_fits([0, 1e-3, 1])
    assert not log_fits([0.1, 0.9, 0.95, 0.97]) and not log_fits([1, 2, 4])
    values = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 1e9]
    assert scale(values, "high")[1:] == (0.1, 0.17)
    assert scale(values, "low").high == 1e9
    assert scale([5.0])[1:] == (4.5, 5.5) and scale([0.0])[1:] == (-1.0, 1.0)


# ------------------------------------------------------------------------------------ importance


def grid(*, noise: float = 0.0) -> Sweep:
    told, number = Told(), 0
    for lr in (1e-4, 1e-3, 1e-2, 1e-1):
        for model in ("mlp", "convnet"):
            for seed in range(3):
                told.job(number, optim__lr=lr, model=model, seed=seed)
                told.succeeded(number, loss(lr, model, 16, noise))
                number += 1
    return told.sweep


def test_importance_of_a_grid() -> None:
    (found,) = importances(grid())
    assert [name for name, _ in found.shares] == ["optim.lr", "model", "seed"]
    shares = dict(found.shares)
    assert shares["optim.lr"] > 0.6 and shares["model"] > 0.08 and shares["seed"] < 0.05
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert found.told == "fANOVA over 24 jobs, by optuna"


def test_importance_of_many_jobs() -> None:
    (found,) = importances(grown(300))
    assert found.shares[0][0] == "optim.lr" and found.told.startswith("PED-ANOVA")


def test_importance_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "at least 4 jobs" in importances(one_job())[0].told
    told = Told()
    for number in range(6):
        told.job(number, optim__lr=number, model="mlp")
        told.succeeded(number, 0.5)
    assert importances(told.sweep)[0] == ([], "All jobs have come to the same value.")
    told.sweep.rows[0].values = [0.1]
    assert importances(told.sweep)[0] == ([], "Only optim.lr differs between the jobs.")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'hydra-trainer[sweep]'" in importances(grid())[0].told
    assert "pip install" in report.page(grid())


def test_a_choice_that_is_another_for_each_job_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importance, "MOST_OPTIONS", 3)
    sweep = grid()
    for number, row in sweep.rows.items():
        row.params["name"] = f"run {number}"
    assert "name" not in dict(importances(sweep)[0].shares)


# ------------------------------------------------------------------------------ in a real browser

NARROW = [(name, 380, True) for name in ("few", "failures", "two", "hostile")]
needs_browser = pytest.mark.skipif(FOUND is None, reason="no chromium and no google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    found = {name: folder / f"{name}.html" for name in SWEEPS}
    for name, path in found.items():
        path.write_bytes(written(name).encode(errors="backslashreplace"))
    return found


def settle(page: Browser) -> None:
    page.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def count(page: Browser, selector: str) -> int:
    """Return how many things the paths of a chart show."""
    found = page.run(
        f"[...document.querySelectorAll({selector!r})]"
        ".map((path) => path.getAttribute('d').split('M').length - 1).reduce((a, b) => a + b, 0)"
    )
    return int(found)


def rows(page: Browser) -> list[list[str]]:
    """Return the cells of the table of all jobs, as far as it is in the page."""
    found: list[list[str]] = page.run(
        "[...document.querySelectorAll('table.all tbody tr[data-job]')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return found


def click(page: Browser, expression: str) -> None:
    page.run(f"{expression}.click()")
    settle(page)


@needs_browser
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("name, width, dark", [*((name, 1200, False) for name in SWEEPS), *NARROW])
def test_every_sweep_opens(
    page: Browser, files: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    page.open(files[name], width, 800, dark)
    assert page.errors == []
    assert page.requests == [files[name].as_uri()]
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelector('table.all') !== null")
    paths = page.run("[...document.querySelectorAll('path')].map((one) => one.getAttribute('d'))")
    assert not [path for path in paths if "NaN" in path or "Infinity" in path]
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 17, 22)") is dark


@needs_browser
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("name", ["few", "200", "1000"])
def test_the_charts_show_every_job(page: Browser, files: dict[str, Path], name: str) -> None:
    sweep = SWEEPS[name]()
    states = [row.state.lower() for row in sweep.shown()]
    good = states.count("succeeded")
    page.open(files[name])
    assert count(page, "svg.history path.shade") == good
    assert count(page, "svg.history path.pruned") == states.count("pruned")
    assert count(page, "svg.history path.failed") == states.count("failed")
    assert count(page, "svg.parallel path.shade") == good
    assert count(page, "svg.slice path.shade") == 4 * good
    assert count(page, "svg.curves path") == len(sweep.rows)
    assert count(page, "svg.timeline path") == len(sweep.rows)
    told = page.run("document.querySelector('.filters .note').textContent")
    assert told == f"{len(sweep.rows):,} jobs"
    axes = page.run(
        "[...document.querySelectorAll('svg.parallel text.name')].map((one) => one.textContent)"
    )
    assert axes[-1] == "val/loss" and "optim.lr" in axes


@needs_browser
@pytest.mark.xdist_group("browser")
def test_the_table_sorts_filters_and_opens(page: Browser, files: dict[str, Path]) -> None:
    sweep = SWEEPS["200"]()
    page.open(files["200"])
    best = [row.number for row in sweep.ranked()]
    assert [int(cells[0]) for cells in rows(page)[: len(best)]] == best[:150]
    head = "[...document.querySelectorAll('table.all th button')].find((one) => {})".format
    click(page, head("one.textContent === 'lr'"))
    rates = [float(cells[3]) for cells in rows(page)]
    assert rates == sorted(rates)
    click(page, head("one.textContent === 'lr'"))
    assert [float(cells[3]) for cells in rows(page)] != rates
    click(page, "document.querySelector('.toggle.is-succeeded')")
    assert {cells[1] for cells in rows(page)} == {"failed", "pruned"}
    assert count(page, "svg.history path.shade") == 0
    click(page, "document.querySelector('.toggle.is-succeeded')")
    page.run(
        "(() => { const box = document.querySelector('input[type=search]');"
        "box.value = 'RESNET  pruned'; box.dispatchEvent(new Event('input')); })()"
    )
    found = [r for r in sweep.shown() if r.params["model"] == "resnet" and r.state == "PRUNED"]
    assert {int(cells[0]) for cells in rows(page)} == {row.number for row in found}
    click(page, "document.querySelector('.filters .button')")
    click(page, f"document.querySelector('[data-show=\"{best[0]}\"]')")
    opened = page.run("document.querySelector('tr.more pre').textContent")
    assert opened.startswith("python train.py launcher=eks optim.lr=")
    assert page.errors == []


@needs_browser
@pytest.mark.xdist_group("browser")
def test_a_long_table_grows_as_it_is_scrolled(page: Browser, files: dict[str, Path]) -> None:
    page.open(files["1000"])
    assert len(rows(page)) == 150
    for _ in range(8):
        page.run("document.querySelector('.jobs').scrollTop = 1e9")
        settle(page)
    assert len({cells[0] for cells in rows(page)}) == 1000


@needs_browser
@pytest.mark.xdist_group("browser")
def test_a_job_is_found_in_all_charts(page: Browser, files: dict[str, Path]) -> None:
    page.open(files["few"], height=3000)
    box = page.run(
        "(() => { const box = document.querySelector('svg.history').getBoundingClientRect();"
        "const dot = document.querySelector('svg.history path.shade').getAttribute('d')"
        ".match(/M([\\d.]+) ([\\d.]+)/); return [box.x + +dot[1], box.y + +dot[2]] })()"
    )
    page.mouse("mouseMoved", *box)
    settle(page)
    told = page.run("document.querySelector('.tip').innerText")
    number = int(told.split()[1])
    assert "val/loss" in told and "optim.lr" in told
    for chart in ("history", "parallel", "curves", "timeline", "slice"):
        assert page.run(f"document.querySelectorAll('svg.{chart} .halo').length") >= 1, chart
    assert page.run("document.querySelector('tr.hover').dataset.job") == str(number)
    page.mouse("mousePressed", *box)
    page.mouse("mouseReleased", *box)
    page.mouse("mouseMoved", 1, 1)
    settle(page)
    assert f"job {number}" in page.run("document.querySelector('.pin').innerText")
    assert page.run("document.querySelectorAll('svg.history .halo').length") == 1


@needs_browser
@pytest.mark.xdist_group("browser")
def test_a_range_drawn_on_an_axis_chooses_jobs(page: Browser, files: dict[str, Path]) -> None:
    sweep = SWEEPS["200"]()
    page.open(files["200"], height=3000)
    x, top, high = page.run(
        "(() => { const names = [...document.querySelectorAll('svg.parallel text.name')];"
        "const at = names.findIndex((one) => one.textContent === 'model');"
        "const box = document.querySelectorAll('svg.parallel .hit')[at].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + 8, box.height - 16] })()"
    )
    page.mouse("mouseMoved", x, top + high * 0.99)  # convnet is the lowest of three
    page.mouse("mousePressed", x, top + high * 0.99)
    page.mouse("mouseMoved", x, top + high * 0.8)
    page.mouse("mouseReleased", x, top + high * 0.7)
    settle(page)
    chosen = [row for row in sweep.shown() if row.params["model"] == "convnet"]
    told = page.run("document.querySelector('.filters .note').textContent")
    assert told == f"{len(chosen)} of 200 jobs"
    good = [row for row in chosen if row.values]
    assert count(page, "svg.history path.shade") == len(good)
    page.mouse("mousePressed", x, top + high * 0.5)
    page.mouse("mouseReleased", x, top + high * 0.5)
    settle(page)
    assert page.run("document.querySelector('.filters .note').textContent") == "200 jobs"


@needs_browser
@pytest.mark.xdist_group("browser")
def test_several_objectives(page: Browser, files: dict[str, Path]) -> None:
    sweep = SWEEPS["two"]()
    page.open(files["two"])
    front = [job["number"] for job in figures(sweep)["jobs"] if job["front"]]
    assert count(page, "svg.pareto path.front") == len(front) > 1
    marked = page.run(
        "[...document.querySelectorAll('tr.first')].map((row) => Number(row.dataset.job))"
    )
    assert set(marked) == set(front)
    click(page, "document.querySelectorAll('.choice button')[1]")
    assert page.run("document.querySelector('svg.history').textContent").find("val/acc, more") >= 0
    last = page.run("[...document.querySelectorAll('svg.parallel text.name')].at(-1).textContent")
    assert last == "val/acc"
