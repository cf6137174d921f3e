"""Sweeps that a service drives: SageMaker's tuner, and Katib."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

import pytest
import yaml
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_trainer import bootstrap, config, embedded, launcher, progress, quick, values, worker
from hydra_trainer.bundle import Bundle
from hydra_trainer.eks.rules import webhook_problems
from hydra_trainer.embedded import sagemaker
from hydra_trainer.errors import ConfigError, LaunchError
from hydra_trainer.job import JobHandle
from hydra_trainer.launcher import Launcher
from hydra_trainer.sweep import commands, services
from hydra_trainer.sweep.journal import Journal, read
from hydra_trainer.sweep.katib import FILTER, Experiment, Katib, _wrapped
from hydra_trainer.sweep.rows import State
from hydra_trainer.sweep.tuner import Tuner, TuningJob

from .conftest import REPOSITORY, environment

GOLDEN = Path(__file__).with_name("golden")
CODE = Bundle({}, "0123456789abcdef")

PLAIN: dict[str, Any] = {
    "model": {"_target_": "m", "hidden": 64, "dropout": 0.0, "act": "relu", "norm": None},
    "optim": {"lr": 0.001, "betas": [0.9, 0.999], "amsgrad": False},
    "storage": {"output": "runs", "mounts": {}},
    "launcher": {"_target_": "l"},
    "run": {"name": "m-d-1", "dir": "/out/m-d-1", "identity": "1", "code_digest": "c"},
}

# ---------------------------------------------------------------------------- values in the worker


def test_values_become_what_they_replace() -> None:
    texts = {
        "optim.lr": "1e-05",
        "model.hidden": "128.0",
        "model.dropout": "1",
        "model.act": "1e3",
        "model.norm": "batch",
        "optim.betas": "[0.8, 0.9]",
        "optim.amsgrad": "true",
    }
    found = values.applied(PLAIN, texts)
    assert found["optim"] == {"lr": 1e-05, "betas": [0.8, 0.9], "amsgrad": True}
    assert found["model"] == {
        "_target_": "m",
        "hidden": 128,
        "dropout": 1.0,
        "act": "1e3",
        "norm": "batch",
    }
    assert type(found["model"]["hidden"]) is int and type(found["model"]["dropout"]) is float
    assert PLAIN["model"]["hidden"] == 64


@pytest.mark.parametrize("value", ["a", "null", "1e-5", 1e-05, 64, True, None, [1, "b"], {"a": 1}])
def test_a_text_is_read_as_the_value_it_was(value: Any) -> None:
    assert values.read("key", values.text_of(value), value) == value


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("optim.lrr", "0.1", "'lrr' of optim, which has no such key. Did you mean 'lr'?"),
        ("nothing", "1", "'nothing' of the configuration"),
        ("optim.lr.x", "1", "'x' of optim.lr, which has no such key. It has: none."),
        ("model.hidden", "64.5", "model.hidden is '64.5', but must be a whole number"),
        ("optim.lr", "fast", "optim.lr is 'fast', but must be a number, as 0.001 was."),
        ("optim.amsgrad", "1", "must be true or false"),
        ("optim.betas", "0.9", "must be a list"),
    ],
)
def test_a_value_that_does_not_fit_is_told(key: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values.applied(PLAIN, {key: text, "model.nope": "1"})
    assert told in caught.value.problems[0] and "model.nope" in caught.value.problems[1]


def test_a_trial_is_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**PLAIN, "run": {**PLAIN["run"], "dir": f"{tmp_path}/out"}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(given))
    trial = {"name": "tune-7", "values": {"optim.lr": "0.5"}}
    monkeypatch.setenv(bootstrap.TRIAL, json.dumps(trial))
    found = worker.read_config(file)
    assert found["optim"]["lr"] == 0.5
    assert found["run"]["dir"] == f"{tmp_path}/out/tune-7" and found["run"]["name"] == "tune-7"
    typed = {**given, "optim": {**given["optim"], "lr": 0.5}}
    assert found["run"]["identity"] == config.identity(typed, "c")  # as of the job with that value
    monkeypatch.delenv(bootstrap.TRIAL)
    assert worker.read_config(tmp_path / "out" / "tune-7" / "config.yaml") == found
    config.register()  # a worker answers ${mount:...}, and is a process of its own


# ------------------------------------------------------------------------------ SageMaker's tuner

OWN = [
    "launcher=sagemaker",
    "launcher.role=arn:aws:iam::111122223333:role/training",
    "launcher.output=s3://bucket/prefix",
    "launcher.region=eu-central-1",
    "resources.instance_type=ml.g5.12xlarge",
    "model=mlp",
]
LR = "optim.lr=tag(log,interval(1e-5,1e-1))"
WIDTH = "model.hidden=64,128"


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    config.register()
    quick.shorten_start([])
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "collect", lambda *_: CODE)
        with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
            yield


KINDS: dict[str, Any] = {"sagemaker_tuner": Tuner, "katib": Katib}


@functools.cache
def composed(name: str, words: tuple[str, ...]) -> tuple[Any, services.Plan]:
    """Return the section `sweep` of a command line, and what is to be searched."""
    loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", [f"sweep={name}", *words], RunMode.MULTIRUN)
    service = KINDS[name](KINDS[name].options())
    plan = services.planned(words, master, loader, service, Path("runs/sweeps/x"))
    return master.sweep, replace(plan, job=services._named(plan.job, "89abcdef01234567"))


def planned(name: str, *words: str) -> tuple[Any, services.Plan]:
    """Return a service, and what a command line asks it to search."""
    about = [word.removeprefix("sweep.") for word in words if word.startswith("sweep.")]
    others = tuple(word for word in words if not word.startswith("sweep."))
    node, plan = composed(name, others)
    options = services._options(KINDS[name], OmegaConf.merge(node, OmegaConf.from_dotlist(about)))
    return KINDS[name](options), plan


def rendered(name: str, *words: str) -> dict[str, Any]:
    service, plan = planned(name, *words)
    made: dict[str, Any] = service.render(plan)
    return made


def problems(name: str, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        rendered(name, *words)
    return "\n".join(caught.value.problems)


def assert_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), "WRITE_GOLDEN=1 pytest test_sweep_services.py; git diff"


def test_the_request_of_a_tuning_job_is_this() -> None:
    made = rendered("sagemaker_tuner", *OWN, LR, WIDTH, "sweep.early_stopping=Auto")
    assert_golden("sagemaker-tuner.json", launcher.text(made, "json"))
    again = rendered("sagemaker_tuner", *OWN, LR, WIDTH, "sweep.early_stopping=Auto")
    assert launcher.text(made, "json") == launcher.text(again, "json")


def test_botocore_takes_the_request() -> None:
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    words = ("sweep.strategy=Hyperband", "sweep.seed=7", "sweep.max_runtime=3600", "sweep.target=1")
    more = ("sweep.patience=5", "sweep.warm_start=[before]", "model.dropout=range(0,0.5,0.1)")
    made = rendered(
        "sagemaker_tuner", *OWN, LR, WIDTH, "data.num_workers=range(0,9)", *words, *more
    )
    ranges = made["HyperParameterTuningJobConfig"]["ParameterRanges"]
    assert [one["Name"] for one in ranges["CategoricalParameterRanges"]] == [
        "model.hidden",
        "model.dropout",
    ]
    assert ranges["CategoricalParameterRanges"][1]["Values"] == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    assert ranges["IntegerParameterRanges"] == [
        {"Name": "data.num_workers", "MinValue": "0", "MaxValue": "8", "ScalingType": "Linear"}
    ]
    model = ServiceModel(Loader().load_service_model("sagemaker", "service-2"))
    shape = model.operation_model("CreateHyperParameterTuningJob").input_shape
    assert not ParamValidator().validate(made, shape).has_errors()


def test_the_objective_is_read_from_the_lines_that_a_job_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = rendered("sagemaker_tuner", *OWN, LR)
    definitions = made["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"]
    regex = {one["Name"]: one["Regex"] for one in definitions}["val/loss"]
    shown = progress.Lines()
    shown.start(3, 10)
    for epoch, value in enumerate((0.75, 1e-05)):
        shown.metrics({"train/loss": 9.0, "val/loss": value})
        shown.epoch(epoch, epoch)
    result = {"status": "completed", "objective": {"metric": "val/loss", "value": 0.12345678901}}
    bootstrap._print_objective(result)
    printed = capsys.readouterr().out
    assert re.findall(regex, printed) == ["0.75", "1e-05", "0.12345678901"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=mlp,convnet"], "model chooses between files"),
        (["seed=1,2"], "data.seed would not follow seed"),
        (["trainer.max_epochs=3"], "nothing to search over"),
        ([LR, "sweep.n_trials=0"], "sweep.n_trials is 0"),
        ([LR, "sweep.n_trials=2"], "at most sweep.n_trials=2"),
        ([LR, "sweep.strategy=Baysian"], "Did you mean 'Bayesian'?"),
        ([LR, "sweep.strategy=Grid"], "has no end of values"),
        ([LR, "sweep.max_runtime=3"], "MaxRuntimeInSeconds is 3, but must be 120 to 15768000. It"),
        (["model.hidden=range(1,999,2)"], "499 values"),
        ([LR, "sweep.warm_start=[a_b]"], "It comes from sweep.warm_start"),
        ([LR, "launcher.remote_debug=true"], "launcher.remote_debug is set, but a tuning job"),
        ([LR, "objective.others=[{metric: val/acc, mode: max}]"], "knows one only"),
        ([LR, "sweep.strategy=Hyperband", "sweep.early_stopping=Auto"], "by itself"),
        ([LR, "optim.weight_decay=-1,0"], "optim.weight_decay is -1"),
    ],
)
def test_what_a_tuning_job_cannot_do_is_told(words: list[str], told: str) -> None:
    assert told in problems("sagemaker_tuner", *OWN, *words)


def test_a_tuner_wants_its_own_launcher() -> None:
    told = problems("sagemaker_tuner", "launcher=local", LR)
    assert "Type launcher=sagemaker, or sweep=optuna" in told


class Canned:
    """An account whose tuning job goes as it was written down."""

    def __init__(self, *steps: tuple[str, list[dict[str, Any]]]) -> None:
        self.steps = list(steps)
        self.calls: list[str] = []
        self.listed: list[dict[str, Any]] = []

    def call(self, service: str, operation: str, **words: Any) -> dict[str, Any]:
        self.calls.append(operation)
        if operation == "describe_hyper_parameter_tuning_job":
            status, self.listed = self.steps.pop(0)
            states = [one["TrainingJobStatus"] for one in self.listed]
            return {
                "HyperParameterTuningJobStatus": status,
                "HyperParameterTuningJobConfig": {
                    "Strategy": "Bayesian",
                    "TrainingJobEarlyStoppingType": "Auto",
                },
                "TrainingJobStatusCounters": {
                    "Completed": states.count("Completed"),
                    "InProgress": states.count("InProgress"),
                    "NonRetryableError": states.count("Failed"),
                    "Stopped": states.count("Stopped"),
                },
            }
        return {"TrainingJobSummaries": self.listed[::-1]}


def summary(name: str, status: str, lr: str, value: float | None = None) -> dict[str, Any]:
    final = (
        {} if value is None else {"FinalHyperParameterTuningJobObjectiveMetric": {"Value": value}}
    )
    return {
        "TrainingJobName": name,
        "TrainingJobStatus": status,
        "TrainingStartTime": 1,
        "TunedHyperParameters": {"optim.lr": lr},
        **final,
        **({"FailureReason": "AlgorithmError: oh"} if status == "Failed" else {}),
    }


def test_what_a_tuning_job_came_to_is_in_the_journal(tmp_path: Path) -> None:
    _, plan = planned("sagemaker_tuner", *OWN, LR)
    running, good = summary("a", "InProgress", "0.5"), summary("a", "Completed", "0.5", 0.25)
    bad, early = summary("b", "Failed", "1e-05"), summary("c", "Stopped", "0.125", 0.75)
    account = Canned(
        ("InProgress", [running]),
        ("InProgress", [running]),
        ("InProgress", [good, bad]),
        ("Completed", [good, bad, early]),
    )
    search = TuningJob(JobHandle("sagemaker", "here/tune"), account, True)
    search.pause = 0.0
    plan = replace(plan, place=cast(Launcher, Forgetful()))
    with Journal(tmp_path) as journal:
        services._until_ended(search, journal, plan, Silent())
        rows = {row.name: row for row in journal.sweep.shown()}
    assert rows["a"].values == [0.25] and rows["a"].params == {"optim.lr": 0.5}
    assert rows["a"].overrides[-1] == "optim.lr=0.5"
    assert (rows["b"].state, rows["b"].message) == (State.FAILED, "AlgorithmError: oh")
    assert (rows["c"].state, rows["c"].params) == (State.PRUNED, {"optim.lr": 0.125})
    listed = account.calls.count("list_training_jobs_for_hyper_parameter_tuning_job")
    assert listed == 3  # not where nothing had changed


def typed(words: list[str], home: Path) -> tuple[int, str]:
    """Run `python train.py WORDS`; return the exit code, and what it printed."""
    done = subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=REPOSITORY,
        env=environment() | {"HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


class Forgetful:
    """A launcher that knows nothing of the jobs any more."""

    scheme = "sagemaker"

    def status(self, handle: JobHandle) -> Any:
        raise LaunchError("gone")


class Silent:
    def update(self, sweep: Any) -> None: ...


@pytest.mark.soak
def test_a_tuning_job_of_the_embedded_service(tmp_path: Path) -> None:
    """From the command to the table: two real trainings, one after the other."""
    words = ["-m", "launcher=sagemaker", "launcher.embedded=true", "sweep=sagemaker_tuner"]
    words += ["sweep.n_trials=2", "sweep.max_concurrent=1", LR, "model=mlp", "model.hidden=8"]
    words += ["trainer.max_epochs=1", "logger=csv", f"hydra.sweep.dir={tmp_path}/sweep"]
    home = tmp_path / "home" / ".cache" / "hydra-trainer" / "embedded-sagemaker"
    try:
        code, printed = typed(words, tmp_path / "home")
        assert code == 0, printed
        sweep = read(tmp_path / "sweep")
        assert [row.state for row in sweep.shown()] == [State.SUCCEEDED] * 2
        assert len({row.params["optim.lr"] for row in sweep.shown()}) == 2
        assert f"Best: job {sweep.ranked()[0].number}" in printed
        again, told = typed(words, tmp_path / "home")  # finds it, and starts nothing
        assert again == 0 and "is there already" in told
        assert len(read(tmp_path / "sweep").rows) == 2
        with urlopen(f"{sagemaker.start(home)}/embedded/calls") as answer:
            called = {call.partition(":")[2] for call in json.load(answer)["calls"]}
        # What no other sweep calls is in a policy of its own, but for `sweep cancel`.
        policy = json.loads((REPOSITORY / "deploy" / "iam-tuner.json").read_text())
        (statement,) = policy["Statement"]
        allowed = {action.partition(":")[2] for action in statement["Action"]}
        used = {call for call in called if "HyperParameterTuningJob" in call}
        assert used == allowed - {"AddTags", "StopHyperParameterTuningJob"}
    finally:
        sagemaker.stop(home)


def test_cancel_stops_the_service_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    account = Canned()
    with Journal(tmp_path) as journal:
        head: dict[str, Any] = dict.fromkeys(("cwd", "program", "identity", "sweeper"), "")
        journal.write({"event": "sweep", "words": [], "objectives": [], **head})
    handle = JobHandle("sagemaker", "here/tune")
    monkeypatch.setattr(Tuner, "reaching", lambda handle: TuningJob(handle, account, True))
    record = {"service": "hydra_trainer.sweep.tuner.Tuner", "handle": str(handle)}
    bootstrap.write_json(tmp_path / services.RECORD, record)
    assert commands.main(["cancel", str(tmp_path)]) == 0
    assert account.calls == ["stop_hyper_parameter_tuning_job"]
    assert "sagemaker://here/tune was asked to stop" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- Katib

EKS = ["launcher=eks", "launcher.image=registry/train:1", "model=mlp", "storage=efs"]


def test_the_manifests_of_an_experiment_are_these() -> None:
    words = [*EKS, LR, WIDTH, "model.depth=range(1,7,2)", "resources.nodes=2"]
    words += ["objective.others=[{metric: val/acc, mode: max}]", "launcher.together=zone"]
    made = rendered("katib", *words)
    assert_golden("katib.yaml", launcher.text({**made, "items": made["items"][-1:]}))
    assert [one["kind"] for one in made["items"]] == ["ConfigMap", "ConfigMap", "Experiment"]
    assert made == rendered("katib", *words)


def test_all_of_a_trial_is_named_after_it() -> None:
    made = rendered("katib", *EKS, LR)["items"]
    volumes = {"job": made[0]["metadata"]["name"], "code": made[1]["metadata"]["name"]}
    run = made[-1]["spec"]["trialTemplate"]["trialSpec"]
    pod = run["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    assert pod["metadata"]["labels"]["hydra-trainer.dev/job"] == "${trialParameters.trial}"
    mounted = {one["name"]: one.get("configMap", {}).get("name") for one in pod["spec"]["volumes"]}
    assert mounted.items() >= volumes.items()  # what all of them share keeps its name
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    told = env[bootstrap.TRIAL].replace("${trialParameters.trial}", "a-b")
    told = told.replace("${trialParameters.p0}", "0.001")
    assert json.loads(told) == {"name": "a-b", "values": {"optim.lr": "0.001"}}


def test_numbers_are_text_to_every_reader_of_yaml() -> None:
    made = rendered("katib", *EKS, LR, "optim.weight_decay=1e-7,0.1")["items"][-1]
    first, second = (one["feasibleSpace"] for one in made["spec"]["parameters"])
    assert first == {"min": "0.00001", "max": "0.1", "distribution": "logUniform"}
    assert second == {"list": ["0.0000001", "0.1"]}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=mlp,convnet"], "model chooses between files"),
        ([LR, "launcher.api=trainjob"], "Type launcher.api=pytorchjob"),
        ([LR, "sweep.algorithm=tpee"], "Did you mean 'tpe'?"),
        ([LR, "sweep.algorithm=grid"], "has no end of values"),
        ([LR, "sweep.algorithm=cmaes"], "at least two numbers"),
        ([LR, "sweep.algorithm=hyperband"], "needs r_l"),
        ([LR, "sweep.max_concurrent=99"], "sweep.max_concurrent is 99, but must be 1 to"),
        ([LR, "sweep.early_stopping=soon"], "must be medianstop"),
        ([LR, "sweep.manifest_overrides={spec: {parallelTrialCount: 0}}"], "sweep.max_concurrent"),
        ([LR, "sweep.manifest_overrides={spec: {paralel: 1}}"], "spec.paralel: unknown field"),
        (["name='a\"b',c"], "cannot put into"),
    ],
)
def test_what_an_experiment_cannot_be_is_told(words: list[str], told: str) -> None:
    assert told in problems("katib", *EKS, *words)


def test_what_katibs_webhook_denies_is_known() -> None:
    made = rendered("katib", *EKS, LR, WIDTH)["items"][-1]
    assert webhook_problems(made) == []
    spec = made["spec"]
    template = spec["trialTemplate"]
    template["trialSpec"]["metadata"]["name"] = "mine"
    template["trialParameters"][1]["reference"] = "optim.rate"
    del template["trialParameters"][2]
    spec["objective"]["additionalMetricNames"] = ["val/loss"]
    spec["parameters"][1]["feasibleSpace"]["min"] = "1"
    spec["parallelTrialCount"] = 21
    made["metadata"]["name"] = "a" * 41
    spec["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"] = ["loss=(.*)"]
    assert {one.path for one in webhook_problems(made)} == {
        "metadata.name",
        "spec.parallelTrialCount",
        "spec.objective.additionalMetricNames",
        "spec.parameters[1].feasibleSpace",
        "spec.trialTemplate",
        "spec.trialTemplate.trialParameters[1].reference",
        "spec.trialTemplate.trialSpec.metadata.name",
        "spec.metricsCollectorSpec.source.filter.metricsFormat[0]",
    }


def test_katib_reads_the_lines_that_a_job_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = progress.Lines()
    shown.start(3, 10)
    shown.metrics({"train/loss": 1e-05, "val/loss": 0.75})
    shown.epoch(0, 9)
    monkeypatch.setenv(bootstrap.TRIAL, json.dumps({"name": "a", "values": {}}))
    options = bootstrap._arguments([f"--report={tmp_path}/report", "config.yaml"])
    result = {"status": "completed", "objective": {"metric": "val/loss", "value": 0.12345678901}}
    bootstrap._report(options, result)
    found = re.findall(FILTER, capsys.readouterr().out)
    assert [pair for pair in found if "/" in pair[0]] == [
        ("train/loss", "1e-05"),
        ("val/loss", "0.75"),
        ("val/loss", "0.12345678901"),
    ]


@pytest.mark.parametrize(("code", "completed"), [(0, True), (3, False)])
def test_a_wrapped_command_keeps_its_words_and_its_code(
    tmp_path: Path, code: int, completed: bool
) -> None:
    script = f"import sys; print(sys.argv[1]); sys.exit({code})"
    words = [sys.executable, "-c", script, "it's >= $HOME; `x`"]
    done = as_katib_does(words, tmp_path).wait()
    assert done == code
    assert (tmp_path / "log").read_text() == "it's >= $HOME; `x`\n"
    assert (tmp_path / "pid").exists() == completed


def test_a_wrapped_command_hears_of_the_end(tmp_path: Path) -> None:
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "signal.pause(); signal.pause()"
    )
    process = as_katib_does([sys.executable, "-c", script], tmp_path)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait() == 143
    assert (tmp_path / "log").read_text() == "saved\n"


def as_katib_does(words: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Start a command as Katib's webhook has it started in a pod."""
    tail = f"1>{folder}/log 2>&1 && echo completed > {folder}/pid"
    return subprocess.Popen(["sh", "-c", f"{_wrapped(words)} {tail}"])


def test_what_an_experiment_came_to_is_in_the_journal(tmp_path: Path) -> None:
    _, plan = planned("katib", *EKS, LR)
    plan = replace(plan, place=cast(Launcher, Forgetful()))
    running, good = katib_trial("a", "Running"), katib_trial("a", "Succeeded", "0.25")
    bad, early = katib_trial("b", "Failed"), katib_trial("c", "EarlyStopped", "0.75")
    blind = katib_trial("d", "MetricsUnavailable", "unavailable")
    cluster = CannedCluster([running], [good, bad], [good, bad, early, blind])
    search = Experiment(JobHandle("eks", "here/team/tune"), cluster, True)
    search.pause = 0.0
    with Journal(tmp_path) as journal:
        found = services._until_ended(search, journal, plan, Silent())
        rows = {row.name: row for row in journal.sweep.shown()}
    assert found.failure == ""
    assert rows["a"].values == [0.25] and rows["a"].params == {"optim.lr": 0.001}
    assert rows["a"].handle == "eks://here/team/a"
    states = [rows[name].state for name in "abcd"]
    assert states == [State.SUCCEEDED, State.FAILED, State.PRUNED, State.FAILED]
    assert rows["d"].reason == "MetricsUnavailable"


class CannedCluster:
    """A cluster whose Experiment goes as it was written down."""

    def __init__(self, *steps: list[dict[str, Any]]) -> None:
        self.steps = list(steps)

    def get(self, resource: str, name: str) -> dict[str, Any]:
        last = len(self.steps) == 1
        return {"status": {"trials": len(self.steps), "conditions": condition("Succeeded", last)}}

    def list(self, resource: str, labels: str) -> tuple[list[dict[str, Any]], str]:
        assert labels == "katib.kubeflow.org/experiment=tune"
        return self.steps.pop(0), "1"


def condition(kind: str, holds: bool = True) -> list[dict[str, str]]:
    return [{"type": kind, "status": str(holds)}]


def katib_trial(name: str, kind: str, value: str = "") -> dict[str, Any]:
    metric = {"name": "val/loss", "min": value, "max": "9", "latest": "8"}
    status = {"conditions": condition(kind)}
    return {
        "metadata": {"name": name},
        "spec": {
            "objective": {
                "objectiveMetricName": "val/loss",
                "metricStrategies": [{"name": "val/loss", "value": "min"}],
            },
            "parameterAssignments": [{"name": "optim.lr", "value": "0.001"}],
        },
        "status": {**status, **({"observation": {"metrics": [metric]}} if value else {})},
    }


@pytest.mark.soak
def test_an_experiment_on_the_embedded_cluster(tmp_path: Path) -> None:
    """From the command to the table: two real trainings, one after the other."""
    words = ["-m", "launcher=eks", "launcher.embedded=true", "sweep=katib", LR, "model=mlp"]
    words += ["sweep.n_trials=2", "sweep.max_concurrent=1", "model.hidden=8", "logger=csv"]
    words += ["trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    home = tmp_path / "home" / ".cache" / "hydra-trainer" / "embedded"
    try:
        code, printed = typed(words, tmp_path / "home")
        assert code == 0, printed
        sweep = read(tmp_path / "sweep")
        assert [row.state for row in sweep.shown()] == [State.SUCCEEDED] * 2
        assert len({row.params["optim.lr"] for row in sweep.shown()}) == 2
        again, told = typed(words, tmp_path / "home")  # finds it, and starts nothing
        assert again == 0 and "is there already" in told
        assert len(read(tmp_path / "sweep").rows) == 2
    finally:
        embedded.stop(home)
