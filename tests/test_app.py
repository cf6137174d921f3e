"""The command: what it says to wrong input, what it leaves behind, and how light it is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from hydra_trainer import config
from hydra_trainer.errors import ConfigError

from .conftest import REPOSITORY, Job, environment, forked

HEAVY = ("torch", "lightning", "numpy", "kubernetes", "boto3", "botocore", "sagemaker")


def typed(tmp_path: Path, *words: str) -> tuple[int, str]:
    """Type a command; return its exit code and what it printed."""
    return forked([*words, f"hydra.run.dir={tmp_path / 'run'}"], tmp_path, {})


BAD = {
    "optm.lr=3": ["optm.lr is not in the configuration. Did you mean 'optim'?"],
    "optim.lrr=3": ["Did you mean 'optim.lr'?", "optim has: _target_, lr, weight_decay"],
    "modle=mlp": ["Did you mean 'model'?"],
    "model=covnet": ["model=covnet: there is no such file. Did you mean 'convnet'? model can be:"],
    "model=mlp model.hiden=3": ["model.hiden is not in the", "Did you mean 'model.hidden'?"],
    "trainer.max_epochs=abc": ["trainer.max_epochs=abc", "could not be converted to Integer"],
    "trainer.max_epochs=0": ["trainer.max_epochs is 0, but must be at least 1. Type trainer."],
    "model.width=wide": ["model.width is 'wide' (str)", "takes int. Type model.width=32"],
    "data.batch_size=-2": ["data.batch_size is -2, but must be at least 1"],
    "+optim.foo=1": ["optim.foo is not an argument of torch.optim.AdamW", "Type ~optim.foo"],
    "trainer.precision=bf16": ["must be one of 32-true, bf16-mixed", "Did you mean 'bf16-"],
    "optim.lr=1,2": ["To sweep over it, add --multirun"],
    "model._target_=builtins.open": ["the standard library is never built from a config"],
    "model=gpt": ["model.vocab_size is ${data.info.vocab_size}", "Choose data that fit", "=tokens"],
    "data=own data._target_=torch.nn.Linear model=mlp": ["model.input_shape is ${data.info.shape}"],
    "model=own": ["model._target_ has no value. Type model._target_=..."],
    "resources.processes_per_node=5": ["Type data.batch_size=60 or data.batch_size=65"],
    "resources.gpus_per_node=64 data.batch_size=64": ["gpus_per_node is 64, but this machine has"],
    "resources.nodes=2": ["resources.nodes is 2 with launcher=local", "Type resources.nodes=1"],
    "trainer.strategy=fsdp": ["there is nothing to shard over", "resources.processes_per_node=2"],
    "trainer.process_group_backend=smddp": ["exists only inside some Amazon SageMaker images"],
    "trainer.accelerator=cpu trainer.process_group_backend=nccl": ["process_group_backend=gloo"],
    "trainer.val_check_interval=1.5": ["trainer.val_check_interval is 1.5, but must be at most 1"],
    "+data.root=${mount:dta} data=digits": [
        "no 'dta' (it has: cache, data)",
        "+storage.mounts.dta=",
    ],
    "data.batch_size=4096": ["larger than the training set of 1197", "type data.batch_size=1197"],
}


@pytest.mark.parametrize("words", BAD)
def test_wrong_input(tmp_path: Path, words: str) -> None:
    code, printed = typed(tmp_path, *words.split())
    assert code == 2, printed
    for text in BAD[words]:
        assert text in printed
    assert "Traceback" not in printed
    assert "Error executing job" not in printed
    assert printed.startswith(("error: ", "ConvNet: ", "2 problems in the configuration:\n"))


def test_all_problems_at_once_and_nothing_stays(tmp_path: Path) -> None:
    words = ["trainer.max_epochs=0", "data.batch_size=-2", "optim.lr=0", "model.width=x", "seed=-1"]
    code, printed = typed(tmp_path, *words)
    assert code == 2
    assert printed.startswith("5 problems in the configuration:\n")
    keys = ("trainer.max_epochs is 0", "data.batch_size is -2", "optim.lr is 0", "seed is -1")
    assert all(f"  - {text}" in printed for text in keys), printed
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_file_of_the_user_names_it(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ntrainer:\n  max_epoch: 3\n"
    )
    code, printed = typed(tmp_path, "--config-dir", str(tmp_path / "conf"), "experiment=mine")
    assert code == 2
    assert "experiment/mine" in printed
    assert "max_epoch" in printed


RANGES = [
    *((key, low, -1) for key, low in config.AT_LEAST.items()),
    *((key, 0, -1) for key in config.ABOVE_ZERO),
    *((key, high, 1) for key, high in config.AT_MOST.items()),
]


@pytest.fixture(scope="module")
def composed() -> str:
    """The default configuration, as YAML."""
    config.register()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        return OmegaConf.to_yaml(compose("config"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bad=st.lists(st.tuples(st.sampled_from(RANGES), st.integers(1, 1000)), min_size=1))
def test_every_number_out_of_its_range_is_reported(
    composed: str, bad: list[tuple[tuple[str, float, int], int]]
) -> None:
    cfg = OmegaConf.create(composed)
    assert isinstance(cfg, DictConfig)
    values = {key: limit + side * beyond for (key, limit, side), beyond in bad}
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(ConfigError) as caught:
        config.validate(cfg)
    for key, value in values.items():
        found = [text for text in caught.value.problems if text.startswith(f"{key} is {value}")]
        assert found, (key, value, caught.value.problems)
        assert "but must be" in found[0]


def test_nothing_heavy_is_imported_before_training(tmp_path: Path) -> None:
    """Neither for --cfg, --help, an error, nor for a run that is finished already."""
    run = tmp_path / "run"
    code, printed = typed(tmp_path, "model=mlp", "trainer.max_epochs=1")
    assert code == 0, printed
    program = (
        "import sys\nfrom hydra_trainer import app\n"
        "try: app.main()\nexcept SystemExit: pass\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    for words in (
        ["--cfg", "job"],
        ["--help"],
        ["optim.lr=0"],
        ["launcher=eks", "launcher.dry_run=true"],
        ["launcher=sagemaker", "launcher.dry_run=true"],
        ["model=mlp", "trainer.max_epochs=1", f"hydra.run.dir={run}"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            env=environment(),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.stderr.splitlines()[-1] == "[]", (words, done.stderr)
    assert "finished already" in done.stdout


def test_help_says_what_can_be_chosen(tmp_path: Path) -> None:
    code, printed = forked(["--help"], tmp_path, {})
    assert code == 0
    for text in ("model/", "convnet", "a small convolutional network", "debug=default", "-m optim"):
        assert text in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_shell_completion(tmp_path: Path) -> None:
    query = ["--shell-completion", "query=bash"]
    asked = {"COMP_LINE": "train.py model=c", "COMP_POINT": "16"}
    code, printed = forked(query, tmp_path, asked)
    assert code == 0, printed
    assert printed.split() == ["model=convnet"]


def test_the_run_directory_is_named_by_content() -> None:
    def name(*words: str) -> str:
        config.register()
        with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
            return config._default_run_dir(_root_=compose("config", list(words)))

    default = name()
    assert default == name() == name("again=true")
    assert default.startswith("runs/convnet-digits-")
    assert name("name=mine") == default.replace("convnet-digits", "mine")
    assert name("storage.output=/elsewhere") == default.replace("runs", "/elsewhere")
    others = {name("optim.lr=1e-3"), name("model=mlp"), name("seed=1"), name("data.batch_size=32")}
    assert len(others - {default}) == 4


def test_a_finished_run_is_shown_and_run_anew_on_request(job: Callable[..., Job]) -> None:
    drill = job("run", "trainer.max_epochs=1")
    assert drill.run()[0] == 0
    first = drill.result()
    code, printed = drill.run()
    assert (code, "This run is finished already" in printed) == (0, True)
    assert "again=true" in printed
    code, printed = drill.run("again=true")
    assert (code, "epoch 1/1" in printed) == (0, True)
    assert drill.result()["objective"] == first["objective"]
    aside = drill.directory / "previous" / "1"
    assert json.loads((aside / "result.json").read_text()) == first
    assert (aside / "checkpoints").is_dir()


def test_a_directory_of_another_run_is_refused(job: Callable[..., Job]) -> None:
    drill = job("run", "trainer.max_epochs=1")
    assert drill.run()[0] == 0
    before = sorted(drill.directory.rglob("*"))
    code, printed = drill.run("model.hidden=8", "debug=default")
    assert code == 2
    assert "-model.hidden: 16\n+model.hidden: 8" in printed
    assert "again=true" in printed
    assert sorted(drill.directory.rglob("*")) == before
    # How it runs may differ, where what it trains is the same.
    code, printed = drill.run("checkpoint.keep_last=3")
    assert code == 0, printed


def test_a_directory_that_is_no_run_is_left_alone(job: Callable[..., Job]) -> None:
    drill = job("run")
    drill.directory.mkdir()
    (drill.directory / "thesis.tex").write_text("years of work")
    for more in ([], ["again=true"], ["debug=default"]):
        code, printed = drill.run(*more)
        assert (code, "which holds thesis.tex but no run" in printed) == (2, True), printed
    assert (drill.directory / "thesis.tex").read_text() == "years of work"


def test_multirun(tmp_path: Path) -> None:
    words = ["-m", "model=mlp", "debug=default", "optim.lr=1e-3,1e-2"]
    code, printed = forked([*words, f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path, {})
    assert code == 0, printed
    # With a debugger in mind: one after the other, in this process, in folders named by the jobs.
    results = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/result.json")]
    assert len({result["identity"] for result in results}) == 2
    code, printed = forked(
        [*words, "trainer.precision=64", f"hydra.sweep.dir={tmp_path / 'bad'}"], tmp_path, {}
    )
    assert (code, "must be one of 32-true" in printed) == (2, True), printed
