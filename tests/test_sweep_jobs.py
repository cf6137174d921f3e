"""Whole sweeps: real jobs here, on the embedded cluster and with the embedded service."""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import yaml

from hydra_trainer import __main__ as verbs
from hydra_trainer import app, embedded
from hydra_trainer.embedded import Embedded, sagemaker
from hydra_trainer.embedded.sagemaker import Service
from hydra_trainer.job import JobHandle
from hydra_trainer.launcher import reaching
from hydra_trainer.launchers import sagemaker as launched
from hydra_trainer.local import nursery
from hydra_trainer.sweep import journal
from hydra_trainer.sweep.rows import State

from .bowl import bowl
from .conftest import REPOSITORY
from .test_local_background import Forked

pytestmark = pytest.mark.xdist_group("background")

BOWL = [
    "model=own",
    "model._target_=tests.bowl.Bowl",
    "+model.rate=0.01",
    "+model.shift=2.0",
    "trusted_modules=[tests]",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "checkpoint.enabled=false",
    "logger=csv",
]

Type = Callable[..., int]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type `python train.py -m ...` in this process."""
    monkeypatch.setattr(nursery, "Nursery", Forked)
    monkeypatch.chdir(REPOSITORY)

    def type_(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words])
        try:
            app.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return type_


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster and a service of this process instead of those in the background."""
    with Embedded(tmp_path / "cluster") as cluster, Service(tmp_path / "service") as service:
        monkeypatch.setattr(embedded, "start", lambda home: cluster.kubeconfig)
        monkeypatch.setattr(sagemaker, "start", lambda home: service.endpoint)
        monkeypatch.setattr(launched, "HOME", service.home)
        yield


def test_each_job_goes_to_its_own_place(typed: Type, three: None, tmp_path: Path) -> None:
    """The same job here, on a cluster and at SageMaker: three places, one objective."""
    directory, output = tmp_path / "sweep", f"storage.output={tmp_path}/runs"
    words = [*BOWL, "launcher.embedded=true", output, f"hydra.sweep.dir={directory}"]
    assert typed(*words, "launcher=local,eks,sagemaker") == 0
    rows = journal.read(directory).shown()
    assert [row.launcher for row in rows] == ["local", "eks", "sagemaker"]
    assert [str(row.handle).partition(":")[0] for row in rows] == ["local", "eks", "sagemaker"]
    assert [row.state for row in rows] == [State.SUCCEEDED] * 3
    assert len({tuple(row.values) for row in rows}) == 1
    # Together they would write into one run directory.
    assert [row.name.split("-")[-2] for row in rows] == ["local", "eks", "sagemaker"]
    assert len({row.output for row in rows}) == 3
    assert rows[0].values == [pytest.approx(bowl(0.01, 2.0))]


def test_one_job_of_ten_fails(
    typed: Type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, mended = tmp_path / "sweep", tmp_path / "mended"
    hole = ["+model.hole=7", f"+model.mended={mended}", f"hydra.sweep.dir={directory}"]
    words = [*BOWL, *hole, "model.shift=range(0,10)"]
    assert typed(*words) == 1
    printed = capsys.readouterr()
    rows = journal.read(directory).shown()
    assert [row.number for row in rows if row.state is State.FAILED] == [7]
    assert [row.values for row in rows if row.number != 7] == [
        [pytest.approx(bowl(0.01, shift))] for shift in range(10) if shift != 7
    ]
    assert rows[7].reason == "ValueError" and "this bowl has a hole" in rows[7].message
    assert "this bowl has a hole" in printed.out and "shift=2" in printed.out
    handle = JobHandle.parse(str(rows[7].handle))
    assert "Traceback" in reaching(handle).why(handle)
    table = list(csv.DictReader((directory / "sweep.csv").open()))
    assert len(table) == 10 and (directory / "report.html").exists()

    # The same command runs nothing again, and still says so; retry-failed runs what failed.
    assert typed(*words) == 1
    assert [row.attempts for row in journal.read(directory).shown()] == [1] * 10
    assert verbs.verb("sweep", ["retry-failed", str(directory), "--reason", "OOMKilled"]) == 1
    assert "Reasons there are: ValueError" in capsys.readouterr().err
    mended.touch()
    monkey = ["retry-failed", str(directory), "--reason", "ValueError"]
    assert verbs.verb("sweep", monkey) == 0
    rows = journal.read(directory).shown()
    assert [row.attempts for row in rows] == [1] * 7 + [2] + [1] * 2
    assert rows[7].values == [pytest.approx(bowl(0.01, 7))]


@pytest.mark.parametrize("trials", [6, pytest.param(30, marks=pytest.mark.soak)])
def test_optuna_through_real_jobs(typed: Type, tmp_path: Path, trials: int) -> None:
    """No worse than Optuna by itself, with the same sampler, seed and number of trials; of few,
    which are random, this says nothing."""
    directory = tmp_path / "sweep"
    space = ["model.rate=tag(log,interval(1e-4,1))", "model.shift=interval(0,4)"]
    search = ["sweep=optuna", f"sweep.n_trials={trials}", f"hydra.sweep.dir={directory}"]
    assert typed(*BOWL, *search, *space) == 0
    sweep = journal.read(directory)
    found = [row.values[0] for row in sweep.shown()]
    assert len(found) == trials
    for row in sweep.shown():  # what was trained is what was proposed
        rate, shift = row.params["model.rate"], row.params["model.shift"]
        assert row.values[0] == pytest.approx(bowl(rate, shift), rel=1e-5)

    if trials < 30:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plain = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    plain.optimize(
        lambda trial: bowl(
            trial.suggest_float("rate", 1e-4, 1, log=True), trial.suggest_float("shift", 0, 4)
        ),
        n_trials=trials,
    )
    assert min(found) <= plain.best_value * 1.05


def test_a_failed_trial_is_run_again_as_a_new_one(typed: Type, tmp_path: Path) -> None:
    directory, mended = tmp_path / "sweep", tmp_path / "mended"
    hole = ["+model.hole=3", f"+model.mended={mended}", f"hydra.sweep.dir={directory}"]
    words = [*BOWL, *hole, "sweep=optuna", "sweep.sampler=grid", "model.shift=range(2,5)"]
    assert typed(*words) == 0  # a failed trial is no failure of the search
    rows = journal.read(directory).shown()
    assert sorted((row.params["model.shift"], row.state) for row in rows) == [
        (2, State.SUCCEEDED),
        (3, State.FAILED),
        (4, State.SUCCEEDED),
    ]
    mended.touch()
    assert verbs.verb("sweep", ["retry-failed", str(directory)]) == 0
    rows = journal.read(directory).shown()
    assert [row.state for row in rows] == [State.SUCCEEDED] * 3
    assert sorted(row.attempts for row in rows) == [1, 1, 2]
    storage = optuna.storages.journal.JournalFileBackend(str(directory / "optuna.log"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(storage))
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 3
    # Once more: nothing is left to run.
    assert typed(*words) == 0
    assert sorted(row.attempts for row in journal.read(directory).shown()) == [1, 1, 2]


def test_a_directory_of_another_sweep(
    typed: Type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = {"words": ["-m", "seed=1,2"], "cwd": "/here", "program": "python train.py"}
    with journal.Journal(tmp_path) as book:
        goals = [{"metric": "val/loss", "mode": "min"}]
        about = {"identity": "another", "sweeper": "basic", "objectives": goals}
        book.write({"event": "sweep", **header, **about})
    before = (tmp_path / journal.FILE).read_bytes()
    assert typed(*BOWL, "model.shift=1,2", f"hydra.sweep.dir={tmp_path}") == 2
    assert "which holds another sweep: -m seed=1,2" in capsys.readouterr().err
    assert (tmp_path / journal.FILE).read_bytes() == before
    with journal.Journal(tmp_path):
        assert typed(*BOWL, "model.shift=1,2", f"hydra.sweep.dir={tmp_path}") == 1
    assert f"is running the sweep in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "many", "{local: 0}"])
def test_how_many_at_once(
    typed: Type, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    limit = f"hydra.launcher.max_concurrent={given}"
    assert typed(*BOWL, "model.shift=1,2", limit, f"hydra.sweep.dir={tmp_path}/sweep") == 2
    assert "must be a whole number of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "sweep" / journal.FILE).exists()


def test_a_mistake_in_one_job_sends_none(
    typed: Type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*BOWL, "trainer.max_epochs=1,0,2", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert typed(*words) == 2
    told = capsys.readouterr().err
    assert "trainer.max_epochs is 0, but must be at least 1" in told
    assert "(in 2 of 6 jobs: trainer.max_epochs=0 seed=1; trainer.max_epochs=0 seed=2)" in told
    assert not (tmp_path / "sweep").exists()


def test_a_dry_run_prints_every_job(
    typed: Type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launcher=eks", "launcher.dry_run=true", "seed=1,2", f"hydra.sweep.dir={tmp_path}/s"]
    assert typed(*words) == 0
    printed = capsys.readouterr()
    documents = list(yaml.safe_load_all(printed.out))
    assert [one["kind"] for one in documents] == ["List", "List"]
    names = [one["items"][-1]["metadata"]["name"] for one in documents]
    assert len(set(names)) == 2
    assert printed.err.count("warning:") == 2  # each once
    assert not (tmp_path / "s").exists()
