"""The configurations of a sweep's jobs are those that Hydra would compose, one by one."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, UnionNode, open_dict

from hydra_plugins.hydra_trainer import launcher
from hydra_trainer import config, quick
from hydra_trainer.bundle import Bundle
from hydra_trainer.errors import ConfigError
from hydra_trainer.sweep.composing import Composer, planned


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Inner:
    rate: float = 0.1
    depth: int | None = None


@dataclass
class Typed:
    """Every kind of node that OmegaConf has."""

    count: int = 1
    color: Color = Color.RED
    size: int | str = 3
    names: list[str] = field(default_factory=list)
    table: dict[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    maybe: str | None = None


SCHEMA = "_composing"
FILES = {
    "config.yaml": """
        defaults:
          - _composing
          - model: mlp
          - data/source: disk
          - opt@first: sgd
          - opt@last: sgd
          - _self_
          - extra: null
        text: hi
        number: 1
        truth: true
        nothing: null
        needed: ???
        list: [1, {a: 2}, "${number}"]
        map: {a: 1, b: {c: "${number}", d: [x]}, e: "${.a}"}
        home: ${oc.env:HOME}
        when: ${now:%H-%M-%S-%f}
        """,
    "model/mlp.yaml": "name: mlp\nsize: 4\nrate: ${first.lr}\n",
    "model/convnet.yaml": "name: convnet\nsize: 8\n",
    "data/source/disk.yaml": "path: /data\n",
    "data/source/web.yaml": "# @package data.far.away\nurl: http://x\n",
    "opt/sgd.yaml": "lr: 0.1\n",
    "opt/adam.yaml": "lr: 0.001\nbetas: [0.9, 0.99]\n",
    "extra/one.yaml": "# @package _global_\nnumber: 11\nmap: {a: 12}\n",
    "extra/other.yaml": (
        "# @package _global_\ndefaults: [override /model: convnet]\nmap: {b: {c: 1}}\n"
    ),
}


class Counted:
    """Hydra's loader, counting how often it composes a job."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.composed = loader, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.composed += 1
        found: DictConfig = self.loader.load_sweep_config(master, overrides)
        return found


class Sweep:
    """A sweep's own configuration, and its jobs in both ways."""

    def __init__(self, words: Sequence[str] = (), folder: Path = Path()) -> None:
        self.folder = folder
        self.loader = Counted(GlobalHydra.instance().config_loader())
        self.master = self.loader.load_configuration("config", list(words), RunMode.MULTIRUN)
        self.composer = Composer(cast(ConfigLoader, self.loader), self.master)

    def slowly(self, words: Sequence[str], number: int = 0) -> DictConfig:
        cfg: DictConfig = self.loader.loader.load_sweep_config(self.master, list(words))
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        return cfg

    def assert_same(self, *words: str) -> DictConfig:
        found = self.composer.compose(words, 7)
        assert_same(found, self.slowly(words, 7))
        return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep over configuration files with all that can be in them."""
    quick.shorten_start([])  # libyaml: the tests take half the time
    ConfigStore.instance().store(name=SCHEMA, node={"typed": Typed})
    folder = tmp_path_factory.mktemp("conf")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        mine = ["hydra.job.name=tried", "hydra.job.config.override_dirname.item_sep=_"]
        sweep = Sweep(mine, folder)
    sweep.assert_same()  # the kind that has nothing but values
    return sweep


@pytest.fixture(scope="module")
def ours() -> Sweep:
    """A sweep of ours."""
    config.register()
    launcher.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        return Sweep()


def assert_same(one: Any, other: Any, key: str = "") -> None:
    """Compare two nodes in all that OmegaConf knows of them."""
    assert type(one) is type(other), key
    if not OmegaConf.is_config(one) and not isinstance(one, UnionNode):
        assert repr(one._value()) == repr(other._value()), key  # NaN is not NaN
        assert one._metadata == other._metadata, key
        return
    assert one._metadata == other._metadata, key
    inside, outside = one._content, other._content
    if isinstance(inside, dict):
        assert list(inside) == list(outside), key
        pairs = [(inside[name], outside[name], f"{key}.{name}") for name in inside]
    elif isinstance(inside, list):
        assert len(inside) == len(outside), key
        pairs = [(*both, f"{key}[]") for both in zip(inside, outside, strict=True)]
    elif isinstance(one, UnionNode):
        pairs = [(inside, outside, f"{key}|")]
    else:
        assert inside == outside, key  # nothing, ??? or an interpolation
        return
    for mine, theirs, name in pairs:
        assert mine._get_parent() is one, name
        assert_same(mine, theirs, name)


VALUES = [
    ["number=0.5", "truth=false", "nothing=3", "needed=x"],
    ["number=-inf", "list=[nan]", "nothing=1e-5", "text=1_000", "needed=null"],
    ["typed.color=BLUE", "typed.size=big", "typed.maybe=there", "typed.inner.depth=3"],
    ["typed.size=4", "typed.names=[a,b]", "typed.inner={rate: 2}", "typed.count=12"],
    ["text='two words'", 'needed="it\'s"', "map.a='a=b, c'"],
    ["text=''", "needed=a\\,b\\ c", "map.a=a:b/c@d.e?f"],
    ["list=[3,{k: [v, 'w x']}]", "map={a: 5}", "map.b={c: {d: 5}}", "map.b.d=[]"],
    ["~map.a", "~list=null", "~number=1", "+number=2"],
    ["+new=1", "+map.more.and.more=[1]", "+list=[2]"],
    ["++number=4", "++map.b.new={x: y}", "++typed.table.z=3"],
    ["number=1", "number=2", "number=3"],
    ["number=${map.a}", "text=${oc.env:HOME}", "needed='${now:%Y}'", "map.e=${..number}"],
    ["number='${number2}'", "+number2=1", "text=str(3)", "nothing=int(2.0)"],
    ["model={size: 9}", "model.size=10", "+model.depth=2", "~model.rate"],
]


@pytest.mark.parametrize("words", VALUES, ids=str)
def test_values_are_put_into_what_hydra_composed_once(small: Sweep, words: list[str]) -> None:
    before = small.loader.composed
    small.assert_same(*words)
    assert small.loader.composed == before


GROUPS = [
    ["model=convnet", "model.size=1"],
    ["number=3", "model=convnet", "map.a=2", "opt@first=adam", "first.betas=[1,2]"],
    ["opt@last=adam", "opt@first=adam"],
    ["data/source=web", "data.far.away.url=ftp://y"],
    ["model=mlp", "model=convnet", "model={size: 0}", "model.name=c"],
    ["extra=one", "number=12"],
    ["extra=other", "map.a=1"],
    ["~model", "number=4"],
    ["~opt@first=sgd", "model.rate=2"],
    ["+model@also.here=convnet", "also.here.size=3"],
    ["+data/source@_global_=disk", "path=/else"],
    ["model=[convnet]"],
]


@pytest.mark.parametrize("words", GROUPS, ids=str)
def test_files_are_composed_once_for_each_kind(small: Sweep, words: list[str]) -> None:
    small.composer.compose(words, 0)
    before = small.loader.composed
    small.assert_same("text=first", *words, "truth=false")
    assert small.loader.composed == before


HYDRAS = [
    ["hydra.job.name=me", "number=2"],
    ["number=2", "hydra.job.config.override_dirname.exclude_keys=[number]"],
    ["hydra.job.env_copy=[HOME]"],
    ["hydra/job_logging=none"],
    ["+hydra.job.env_set.A=b", "+hydra={verbose: true}"],
]


@pytest.mark.parametrize("words", HYDRAS, ids=str)
def test_what_is_about_hydra_goes_through_hydra(small: Sweep, words: list[str]) -> None:
    small.assert_same(*words)


WRONG = [
    ["nope=1"],
    ["model=nope"],
    ["model.nope=1"],
    ["number=[1", "model=nope"],
    ["typed.count=x"],
    ["typed.color=PURPLE", "number=1"],
    ["typed.inner.nope=1"],
    ["~nope"],
    ["~number=7"],
    ["+number=7"],
    ["number=1,2"],
    ["++model=mlp"],
    ["nope@there=mlp"],
    ["model=3"],
    ["~model=convnet"],
    ["number"],
]


@pytest.mark.parametrize("words", WRONG, ids=str)
def test_errors_are_those_of_hydra(small: Sweep, words: list[str]) -> None:
    errors = []
    for way in (small.composer.compose, small.slowly):
        with pytest.raises(Exception) as caught:
            way(words, 0)
        errors.append(caught.value)
    found, hydras = errors
    assert type(found) is type(hydras) and str(found) == str(hydras)
    assert repr(found.__cause__) == repr(hydras.__cause__)


PLAIN = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=12).map(lambda text: QuotedString(text, Quote.single)),
    st.text(max_size=12).map(lambda text: QuotedString(text, Quote.double)),
)
NODES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c1"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = ("number", "map.a", "map", "model", "model.size", "typed.count", "+new.x", "++text")
WORDS = st.tuples(st.sampled_from(KEYS), NODES)


def word(pair: tuple[str, Any]) -> str:
    from hydra.core.override_parser.types import Override

    key, value = pair
    return f"{key}={Override._get_value_element_as_str(value)}"


CHOICES = [word for words in GROUPS for word in words]
JOBS = st.lists(WORDS.map(word) | st.sampled_from(CHOICES), max_size=4)


def assert_as_hydra_makes_it(small: Sweep, words: list[str]) -> None:
    try:
        expected = small.slowly(words)
    except Exception as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            small.composer.compose(words, 0)
    else:
        assert_same(small.composer.compose(words, 0), expected)


@settings(max_examples=8, deadline=None)
@given(JOBS)
def test_any_job_is_what_hydra_makes_of_it(small: Sweep, words: list[str]) -> None:
    assert_as_hydra_makes_it(small, words)


@pytest.mark.soak
@settings(max_examples=300, deadline=None)
@given(JOBS)
def test_any_of_many_jobs_is_what_hydra_makes_of_it(small: Sweep, words: list[str]) -> None:
    assert_as_hydra_makes_it(small, words)


def test_a_job_leaves_nothing_in_the_next_one(small: Sweep) -> None:
    first = small.composer.compose(["number=2", "+list=[4]"], 1)
    first.map.b.c = "changed"
    with open_dict(first):
        first.hydra.job.env_set["A"] = "b"
    small.assert_same("text=2")


def test_times_are_those_of_the_sweep(small: Sweep) -> None:
    when = small.master.when
    jobs = [small.composer.compose([f"number={n}"], n) for n in range(2)]
    assert {job.when for job in jobs} == {when}
    assert [job.hydra.job.num for job in jobs] == [0, 1]


def test_a_configuration_that_cannot_be_pickled_is_composed_each_time(small: Sweep) -> None:
    @dataclass
    class Local:
        x: int = 1

    ConfigStore.instance().store(group="model", name="local", node=Local)
    small.assert_same("model=local", "model.x=2")


# ----------------------------------------------------------------------------------- what is sent


def sent_alone(cfg: DictConfig, directory: Path) -> dict[str, Any]:
    """Return the configuration of a job as app.run makes it: Hydra's own node is gone by then."""
    HydraConfig.instance().set_config(cfg)
    alone = copy.deepcopy(cfg)
    with open_dict(alone):
        del alone["hydra"]
    plain = config.validate(alone)
    name = config.to_job(plain, directory).name
    return config.to_job(plain, directory / name).config


@pytest.mark.parametrize("place", ["local", "eks", "sagemaker"])
def test_a_job_is_the_one_that_its_command_alone_would_send(ours: Sweep, place: str) -> None:
    words = [f"launcher={place}", "model=mlp", "optim.lr=0.5", "name=j${optim.lr}"]
    cfg = ours.composer.compose(words, 3)
    plain, job, made = planned(cfg, Path("runs/sweeps/s"), ours.composer.checked)
    assert job.config == sent_alone(cfg, Path("runs/sweeps/s"))
    assert job.output == job.config["run"]["dir"] == f"runs/sweeps/s/{job.name}"
    assert job.name.startswith("j0.5-") and job.name.endswith(job.identity[:8])
    assert made.scheme == place and plain["optim"]["lr"] == 0.5


def test_each_job_knows_what_hydra_says_of_it(ours: Sweep) -> None:
    before = HydraConfig.instance().cfg
    words = ["name='${hydra:job.num}${hydra:overrides.task}'"]
    for number, seed in ((3, "seed=4"), (4, "seed=5")):
        cfg = ours.composer.compose([*words, seed], number)
        plain, _, _ = planned(cfg, Path("runs"), ours.composer.checked)
        assert plain["name"].startswith(f"{number}[") and seed in plain["name"]
    with pytest.raises(ConfigError):
        planned(ours.composer.compose([*words, "seed=-1"], 5), Path("runs"))
    assert HydraConfig.instance().cfg is before


def test_what_hydra_needs_for_itself_is_not_resolved(ours: Sweep) -> None:
    cfg = ours.composer.compose(["seed=1"], 0)
    cfg.hydra.run.dir = cfg.hydra.sweep.dir = "${nowhere.at.all}"
    assert "hydra" not in planned(cfg, Path("runs"))[0]


def problems(sweep: Sweep, *words: str) -> list[str]:
    try:
        planned(sweep.composer.compose(words, 0), Path("runs"), sweep.composer.checked)
    except ConfigError as error:
        return error.problems
    return []


def test_what_was_checked_is_checked_again_when_it_differs(ours: Sweep) -> None:
    assert problems(ours) == []
    for _ in range(2):  # the second time from memory
        assert len(problems(ours, "model.width=x", "model.dropout=y", "seed=-1")) == 3
        assert len(problems(ours, "model.width=x")) == 1
        assert problems(ours, "model.width=1") == []
        assert len(problems(ours, "model.width='1'", "+launcher.nope=1")) == 2
    own = ("optim._target_=mine.Adam", "trusted_modules=[mine]")
    assert "trusted_modules" in problems(ours, own[0])[0]
    assert "no module mine" in problems(ours, *own)[0]
    assert "trusted_modules" in problems(ours, own[0])[0]


# ----------------------------------------------------------------------- jobs that are known again


def with_code(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    made = SimpleNamespace(code=Bundle({}, digest))
    monkeypatch.setattr(config, "to_job", lambda *_: made)


def test_jobs_of_one_kind_have_one_basis(small: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with_code(monkeypatch, "code")
    basis = small.composer.basis
    assert basis(["number=1"]) == basis(["text='two words'", "map={a: 1}", "+new=[2]"]) is not None
    assert basis(["model=convnet"]) == basis(["number=2", "model=convnet"]) != basis([])
    assert basis(["model={size: 1}"]) == basis([]) != basis(["opt@first=adam"])
    assert basis(["home=${map.a}"]) == basis(["home='${mount:data}'"]) == basis([])


@pytest.mark.parametrize(
    "word",
    [
        "hydra.job.name=x",
        "text=${oc.env:HOME}",
        "needed=a${now:%Y}",
        "model._target_=m.X",
        "nope=[",
        "+again=yes",
        "++launcher.again=true",
    ],
)
def test_what_its_words_alone_do_not_tell_has_no_basis(
    small: Sweep, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_code(monkeypatch, "code")
    assert small.composer.basis(["number=1"]) is not None
    assert small.composer.basis(["number=1", word]) is None


@pytest.mark.parametrize("more", ["again: true", "launcher: {again: true}"])
def test_what_a_file_says_is_to_run_anew_has_no_basis(
    small: Sweep, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_code(monkeypatch, "code")
    file = small.folder / "model/mlp.yaml"
    file.write_text(f"# @package _global_\n{more}\n")
    composer = Composer(cast(ConfigLoader, small.loader), small.master)
    assert composer.basis(["number=1"]) is None
    file.write_text(FILES["model/mlp.yaml"])
    assert Composer(cast(ConfigLoader, small.loader), small.master).basis(["number=1"])


def test_the_basis_follows_files_environment_and_code(
    small: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small.master.when  # the time is that of the sweep from now on
    found = []
    for code, home, model in ("abc", "abc", "xbc", "xyc", "xyz"):
        with_code(monkeypatch, code)
        monkeypatch.setenv("HOME", home)
        (small.folder / "model/mlp.yaml").write_text(f"{FILES['model/mlp.yaml']}also: {model}")
        composer = Composer(cast(ConfigLoader, small.loader), small.master)
        found.append(composer.basis(["number=1"]))
    (small.folder / "model/mlp.yaml").write_text(FILES["model/mlp.yaml"])
    assert found[0] == found[1] and len(set(found)) == 4 and None not in found
