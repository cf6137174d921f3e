"""What a `_target_` may name, how arguments are checked unseen, what building it refuses."""

import functools
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hydra_trainer import source, targets
from hydra_trainer.errors import ConfigError, DataError
from hydra_trainer.targets import TRUSTED, check_targets, instantiate, signature_problems

MINE = (*TRUSTED, "mine")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a file of the package `mine`, in a folder on sys.path whose name is hard to read."""
    root = tmp_path / "it's a [folder]"

    def write_file(text: str = "", name: str = "net.py") -> Path:
        path = root / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    write_file(name="__init__.py")
    monkeypatch.syspath_prepend(str(root))
    yield write_file
    for module in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[module]


def node(target: Any, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


def refused(target: Any, trusted: tuple[str, ...] = MINE) -> str:
    """Return the one problem with a `_target_`; instantiate must refuse it with the same words."""
    (problem,) = check_targets(node(target), trusted, "model")
    with pytest.raises(ConfigError) as caught:
        instantiate(node(target), trusted, "model")
    assert caught.value.problems == [problem]
    return problem


def refused_when_built(target: str, trusted: tuple[str, ...] = MINE) -> str:
    """The same for a name that looks good until it is imported."""
    assert check_targets(node(target), trusted, "model") == []
    with pytest.raises(ConfigError, match=r"^model\._target_ is") as caught:
        instantiate(node(target), trusted, "model")
    return str(caught.value)


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "target",
    [
        "builtins.open",
        "builtins.eval",
        "builtins.exec",
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "urllib.request.urlopen",
        "multiprocessing.Process",
        "importlib.import_module",
        "pickle.loads",
        "ctypes.CDLL",
        "_io.open",
    ],
)
def test_the_standard_library_is_never_built(target: str) -> None:
    problem = refused(target)
    assert problem.startswith(f"model._target_ is {target!r}, but the standard library")
    assert "model._target_=mypkg.MyClass 'trusted_modules=[mypkg]'" in problem
    root = target.split(".")[0]
    trust, same = check_targets(node(target), (*TRUSTED, root), "model")
    assert f"trusted_modules has {root!r}, but the standard library is never trusted" in trust
    assert same == problem


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.jit.load",
        "torch.serialization.load",
        "torch.utils.cpp_extension.load",
        "torch.utils.collect_env.run",
        "torch.multiprocessing.spawn",
        "torch.multiprocessing.Process",
        "torch.classes.load_library",
        "torch.ops.load_library",
        "torch.package.PackageImporter",
        "torch.utils.data._utils.worker.torch",
        "torch._inductor.codecache.subprocess.Popen",
        "torch.jit.ScriptModule",
        "torch.fx.GraphModule",
        "torch.distributed.nn.api.remote_module.RemoteModule",
        "lightning.pytorch.utilities.os.system",
        "lightning.pytorch.cli.LightningCLI",
        "lightning.pytorch.Trainer",
        "torchmetrics.text.BERTScore",
        "torchmetrics.image.fid.FrechetInceptionDistance",
    ],
)
def test_of_others_packages_only_a_few_places_are_open(target: str) -> None:
    problem = refused(target)
    root = target.split(".")[0]
    assert f"of {root}, a config may build only what is in {root}." in problem
    assert "trusted_modules=[mypkg]" in problem
    assert refused(target, (*MINE, root)) == problem  # trusting all of torch opens none of it


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("torch.nn.functional.os.system", "'os' is a module of the standard library that torch.nn"),
        ("torch.nn.modules.module.warnings.X", "'warnings' is a module of the standard library"),
        ("lightning.pytorch.loggers.wandb.os.system", "'os' is a module of the standard library"),
        ("hydra_trainer.bundle.subprocess.Popen", "'subprocess' is a module of the standard lib"),
        ("hydra_trainer.sys.modules", "'sys' is a module of the standard library"),
        ("mine.net.shutil.rmtree", "'shutil' is a module of the standard library that mine.net"),
        ("torch.nn.functional.torch.load", "'load' is not the name of a class"),
        ("torch.nn.functional.relu", "'relu' is not the name of a class"),
        ("hydra_trainer.bundle.code_digest", "'code_digest' is not the name of a class"),
        ("torch.nn.Module.__init__", "'__init__' is private"),
        ("torch.optim._functional.Adam", "'_functional' is private"),
        ("mine.net.Net.__init__.__globals__", "'__init__' is private"),
        ("mine.__builtins__.Net", "'__builtins__' is private"),
    ],
)
def test_names_that_walk_out_of_a_trusted_package(target: str, why: str, write: Write) -> None:
    write("import shutil\nclass Net: ...")
    assert f"model._target_ is {target!r}, but {why}" in refused(target)


@pytest.mark.parametrize(
    "target",
    [
        *(None, 3, True, "", ".", "Net", "torch", "torch.", ".torch", "torch..nn"),
        *("torch.nn.Linear()", "torch.nn.Linear ", "torch.nn/Linear", "${oc.env:HOME}", "???"),
        ["torch.nn.Linear"],
    ],
)
def test_what_is_no_dotted_path(target: Any) -> None:
    problem = refused(target)
    assert problem == (
        f"model._target_ is {target!r}, but must be the dotted path of a class. "
        "Type model._target_=mypkg.MyClass."
    )


@pytest.mark.parametrize("target", ["torchevil.nn.Linear", "torch_nn.Linear", "minevil.Net"])
def test_a_prefix_ends_where_a_name_ends(target: str) -> None:
    assert "only code of" in refused(target)
    assert refused(target, (*TRUSTED, "mine."))


def test_an_untrusted_class_says_what_to_type() -> None:
    problem = refused("theirs.models.Net", (*TRUSTED, "mine", "other.part"))
    assert problem == (
        "model._target_ is 'theirs.models.Net', but only code of hydra_trainer, torch, lightning, "
        "torchmetrics, mine, other.part is trusted. If you trust theirs, type "
        "'trusted_modules=[mine,other.part,theirs]'."
    )
    assert "'trusted_modules=[theirs]'" in refused("theirs.models.Net", TRUSTED)
    assert "Did you mean 'lightning'?" in refused("lightening.pytorch.loggers.CSVLogger")
    assert "Did you mean 'hydra_trainer.models.mlp.MLP'?" in refused("models.mlp.MLP")


@pytest.mark.parametrize("entry", ["", ".", "*", "mine.*", "mine/net", "a b", "..", 3])
def test_a_trusted_module_that_is_no_name_trusts_nothing(entry: Any) -> None:
    trust, problem = check_targets(node("mine.net.Net"), (*TRUSTED, entry), "model")
    assert trust.startswith(f"trusted_modules has {entry!r}, but takes dotted names of packages.")
    assert "trusted_modules=[mypkg]" in trust
    assert problem.startswith("model._target_ is 'mine.net.Net', but only code of hydra_trainer,")


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.adamw.AdamW",
        "torch.optim.Muon",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.callbacks.EarlyStopping",
        "torchmetrics.Accuracy",
        "torchmetrics.classification.MulticlassAccuracy",
        "hydra_trainer.job.Resources",
        "mine.Net",
        "mine.random.Net",
        "mine._private.Net",
    ],
)
def test_names_that_are_welcome(target: str, write: Write) -> None:
    write("class Net: ...", "random.py")  # a user's module may share a name with the library
    assert check_targets(node(target), MINE, "model") == []


def test_the_user_opens_one_more_place() -> None:
    target = "torchmetrics.image.PeakSignalNoiseRatio"
    assert "torchmetrics.classification" in refused(target)
    metric = node(target, data_range=1.0)
    assert instantiate(metric, (*TRUSTED, "torchmetrics.image"), "metric") is not None
    more = (*TRUSTED, "torch.utils", "torch.jit")
    assert "'load' is not the name of a class" in refused("torch.jit.load", more)
    problem = refused_when_built("torch.utils.data.DataLoader", more)
    assert "it is none of the kinds that may be built (Module, Optimizer" in problem


def test_every_depth_is_searched_and_every_problem_is_told() -> None:
    config = {
        "model": node(
            "mine.Net",
            encoder=node("os.system", command="true"),
            layers=[node("torch.nn.ReLU"), {"deep": [[node("builtins.eval", _partial_=True)]]}],
            tuple=(node("subprocess.Popen"),),
            _args_=[node("torch.hub.load")],
        )
    }
    wrong = {
        "model.encoder._target_": "os.system",
        "model.layers[1].deep[0][0]._target_": "builtins.eval",
        "model.tuple[0]._target_": "subprocess.Popen",
        "model._args_[0]._target_": "torch.hub.load",
    }
    for given_as in (config, OmegaConf.create(config), {"model": OmegaConf.create(config).model}):
        problems = check_targets(given_as, MINE)
        assert [p.split(", but")[0] for p in problems] == [
            f"{k} is {v!r}" for k, v in wrong.items()
        ]


def test_hydras_other_words_are_checked() -> None:
    bad = node("mine.Net", _partial_="yes", _recursive_=1, _args_="abc", _convert_="none")
    partial, recursive, args, convert = check_targets(bad, MINE, "model")
    assert "model._partial_ is 'yes', but must be true or false. Type model._partial_=" in partial
    assert "model._recursive_ is 1, but must be true or false." in recursive
    assert "model._args_ is 'abc', but must be a list." in args
    assert "model._convert_ is 'none'" in convert
    assert "Type ~model._convert_" in convert


def test_an_interpolation_cannot_hide_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", "os.system")
    cfg = OmegaConf.create({"model": node("${oc.env:EVIL}")})
    assert "model._target_ is 'os.system'" in check_targets(cfg, MINE)[0]
    cfg = OmegaConf.create({"model": {"a": "${oc.decode:'{_target_: os.system}'}"}})
    assert "model.a._target_ is 'os.system'" in check_targets(cfg, MINE)[0]
    with pytest.raises(ConfigError, match=r"model cannot be resolved: .*nowhere"):
        check_targets(OmegaConf.create({"_target_": "${nowhere}"}), MINE, "model")


def test_an_escaped_interpolation_stays_text(write: Write) -> None:
    write("class Net:\n    def __init__(self, a): self.a = a")
    escaped = node("mine.net.Net", a=r"\${oc.decode:'{_target_: mine.net.Net, a: 1}'}")
    for given_as in (OmegaConf.create(escaped), node("mine.net.Net", a=escaped["a"][1:])):
        built = instantiate(given_as, MINE, "model")
        assert built.a == escaped["a"][1:]


names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)


@given(st.lists(names, min_size=1, max_size=4), st.sampled_from(["", *TRUSTED]))
def test_no_name_outside_the_trusted_packages_passes(parts: list[str], start: str) -> None:
    """Also names that begin with the letters of a trusted one, and names it is a part of."""
    parts = [start + parts[0], *parts[1:]]
    for target in (".".join(parts), ".".join([*parts, *TRUSTED])):
        if target.split(".")[0] not in TRUSTED:
            assert check_targets(node(target), TRUSTED, "model")


@given(
    st.sampled_from(["torch.nn", "torch.optim.adamw", "torchmetrics", "hydra_trainer.bundle"]),
    st.sampled_from(sorted(sys.stdlib_module_names)),
    names,
)
def test_no_module_of_the_standard_library_is_reached(start: str, module: str, name: str) -> None:
    problem = check_targets(node(f"{start}.{module}.{name}"), TRUSTED, "model")
    assert problem or source.find_module(f"{start}.{module}")


# ---------------------------------------------------------------------------- identity


def test_what_a_trusted_name_really_is(write: Write) -> None:
    write(
        """
        import os, shutil, subprocess, torch as th, torch.nn as nn
        from os import system
        from subprocess import Popen as Net
        from builtins import eval as evaluate
        from torch.hub import load
        from torch.utils.data import DataLoader
        from torch.fx import GraphModule
        from yaml import Loader
        run = lambda command: os.system(command)
        Meta = type("Meta", (type,), {})
        value = Net.__init__
        class Own:
            inner = subprocess.Popen
            @classmethod
            def make(cls): ...
        """
    )
    shell, library = "and only classes are built", "the standard library is never built"
    for name in ("system", "evaluate", "load", "run", "value", "Own.make", "Meta", "nn", "th"):
        assert shell in refused_when_built(f"mine.net.{name}"), name
    assert "another name of subprocess.Popen, and " + library in refused_when_built("mine.net.Net")
    assert library in refused_when_built("mine.net.Own.inner")
    assert "of torch, a config may build only" in refused_when_built("mine.net.DataLoader")
    assert "of torch, a config may build only" in refused_when_built("mine.net.GraphModule")
    problem = refused_when_built("mine.net.Loader")
    assert "another name of yaml.loader.Loader, and only code of" in problem
    assert "'trusted_modules=[mine,yaml]'" in problem


def test_modules_are_walked_under_their_own_name(write: Write) -> None:
    write("import torch.nn as nn\nimport yaml as notation")
    problem = refused_when_built("mine.net.nn.Linear")
    assert "mine.net.nn is another name of the module torch.nn" in problem
    assert "Type model._target_=torch.nn.Linear" in problem
    assert "another name of the module yaml" in refused_when_built("mine.net.notation.Loader")
    aliased = refused_when_built("torch.nn.modules.module.torch.Generator")
    assert "another name of the module torch" in aliased


@pytest.mark.parametrize("target", ["torch.nn.Parameter", "torch.nn.modules.module.Any"])
def test_kinds_of_classes_that_are_not_built(target: str) -> None:
    assert re.search("none of the kinds|standard library|only classes", refused_when_built(target))


def test_the_environment_opens_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hydra 1.3.8 lets this variable lift its block list; ours does not read it."""
    victim = tmp_path / "victim"
    victim.write_text("")
    monkeypatch.setenv("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", "os.remove:posix.remove:os.unlink")
    import hydra.utils

    hydra.utils.instantiate({"_target_": "os.remove", "_args_": [str(victim)]})
    assert not victim.exists()  # or this test would prove nothing
    victim.write_text("")
    for target in ("os.remove", "os.unlink", "torch.os.remove"):
        with pytest.raises(ConfigError):
            instantiate(node(target, _args_=[str(victim)]), TRUSTED, "model")
    assert victim.exists()


# ---------------------------------------------------------------------------- building


def test_ours_and_torchs_are_built() -> None:
    layer = instantiate(OmegaConf.create(node("torch.nn.Linear", in_features=3, out_features=2)),
                        TRUSTED, "model")  # fmt: skip
    assert isinstance(layer, torch.nn.Linear)
    weights = list(layer.parameters())
    groups = [{"params": weights, "weight_decay": 0.1}]
    optimizer = instantiate(
        node("torch.optim.AdamW", lr=0.5, betas=[0.1, 0.2]), TRUSTED, "optim", params=groups, lr=0.2
    )
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["params"][0] is weights[0]  # Hydra would have copied it
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert instantiate(node("torchmetrics.Accuracy", task="binary"), TRUSTED, "m") is not None
    assert instantiate(node("hydra_trainer.job.Resources", nodes=2), TRUSTED, "r").nodes == 2


def test_inner_nodes_come_first_and_containers_are_plain(write: Write) -> None:
    write(
        """
        class Net:
            def __init__(self, *args, **kwargs): self.args, self.kwargs = args, kwargs
        """
    )
    cfg = OmegaConf.create({
        "width": 4,
        "model": node(
            "mine.net.Net",
            sizes=["${width}", {"a": [1]}],
            layers=[node("torch.nn.ReLU"), {"x": node("torch.nn.Linear", _args_=[2, "${width}"])}],
            partial=node("torch.nn.Linear", in_features=2, out_features="???", _partial_=True),
            raw=node("mine.net.Net", _recursive_=False, inner=node("torch.nn.ReLU")),
            _args_=[node("torch.nn.Tanh"), None],
        ),
    })  # fmt: skip
    built = instantiate(cfg.model, MINE, "model", more=(marker := object()))
    assert isinstance(built.args[0], torch.nn.Tanh)
    assert built.args[1] is None
    assert type(built.kwargs["sizes"]) is list
    assert type(built.kwargs["sizes"][1]) is dict
    assert built.kwargs["sizes"] == [4, {"a": [1]}]
    assert isinstance(built.kwargs["layers"][0], torch.nn.ReLU)
    assert built.kwargs["layers"][1]["x"].out_features == 4
    assert type(built.kwargs["partial"]) is functools.partial
    assert built.kwargs["partial"](out_features=3).out_features == 3
    assert built.kwargs["raw"].kwargs == {"inner": {"_target_": "torch.nn.ReLU"}}
    assert built.kwargs["more"] is marker


def test_nodes_without_a_target_give_containers() -> None:
    loggers = {"a": node("torch.nn.ReLU"), "b": 3}
    assert isinstance(instantiate(loggers, TRUSTED, "logger")["a"], torch.nn.ReLU)
    assert instantiate({}, TRUSTED, "logger") == {}
    assert instantiate([1, "x"], TRUSTED, "logger") == [1, "x"]
    assert instantiate(None, TRUSTED, "logger") is None


def fails(target: str, key: str = "model", **arguments: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        instantiate(node(target, **arguments), MINE, key)
    return caught.value


def test_what_cannot_be_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("class Net: ...\nclass Deep: ...")
    write("import nowhere_at_all", "lacking.py")
    write("from .net import Gone", "stale.py")
    write("1 / 0", "broken.py")
    text = str(fails("mine.nett.Net"))
    assert "model._target_ is 'mine.nett.Net', but there is no module mine.nett." in text
    assert "Did you mean 'net'?" in text
    assert "PYTHONPATH=" in text
    assert "pip install -e" in text
    assert sys.path[0] in text
    text = str(fails("mine.net.Nett"))
    assert "but mine.net has no Nett. Did you mean 'Net'? It has Deep, Net." in text
    lacking = fails("mine.lacking.Net")
    assert "mine.lacking imports nowhere_at_all, which is not installed" in str(lacking)
    assert "pip install nowhere_at_all" in str(lacking)
    assert isinstance(lacking.__cause__, ImportError)
    assert "mine.stale fails to import: cannot import name 'Gone'" in str(fails("mine.stale.Net"))
    with pytest.raises(ZeroDivisionError) as caught:
        instantiate(node("mine.broken.Net"), MINE, "model")
    assert "model._target_=mine.broken.Net" in caught.value.__notes__[0]


NET = """
class Net:
    def __init__(self, width: int, depth: int = 2, *, name="a name"):
        if width < 0:
            raise ValueError(f"model.width is {width}")
        if depth < 0:
            raise ValueError("too shallow for a model.")
        if name == "type":
            len(3)
        if name == "passed on":
            Net(wide=3)
        if name == "import":
            import nowhere_at_all
        if name == "run":
            raise RuntimeError("on fire")
        if name == "decode":
            b"\\xff".decode()
        if name == "data":
            from hydra_trainer.errors import DataError
            raise DataError("torn")
"""


def test_arguments_that_do_not_fit_when_built(write: Write) -> None:
    write(NET)
    text = str(fails("mine.net.Net", width=3, dept=3))
    assert "model.dept is not an argument of mine.net.Net. Did you mean 'depth'?" in text
    assert "It takes width, depth=2, name='a name'." in text
    assert "model=own starts without the defaults of model=convnet" in text
    assert "Type ~model.dept to leave it out." in text
    assert "data=own starts without" in str(fails("mine.net.Net", "data", width=3, x=1))
    assert "=own" not in str(fails("torch.nn.Linear", in_features=1, out_features=1, x=1))
    assert "model.width has no value, but mine.net.Net needs one" in str(fails("mine.net.Net"))
    assert "model.width has no value." in str(fails("mine.net.Net", width="???"))
    assert len(fails("mine.net.Net", a=1, b=2).problems) == 3
    assert "too many positional arguments" in str(fails("mine.net.Net", _args_=[1, 2, 3]))
    text = str(fails("mine.net.Net", _args_=[1], width=2))
    assert "multiple values for argument 'width'" in text


def test_what_a_constructor_raises(write: Write) -> None:
    write(NET)
    named = fails("mine.net.Net", width=-1)
    assert str(named) == "model.width is -1"
    assert type(named.__cause__) is ValueError
    text = str(fails("mine.net.Net", width=1, depth=-1))
    assert text == "model (mine.net.Net): too shallow for a model."
    assert "model (mine.net.Net) needs a package that is not installed" in str(
        fails("mine.net.Net", width=1, name="import")
    )
    assert "unexpected keyword argument 'wide'" in str(
        fails("mine.net.Net", width=1, name="passed on")
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [("type", TypeError), ("run", RuntimeError), ("decode", UnicodeError), ("data", DataError)],
)
def test_other_errors_come_through(name: str, kind: type[Exception], write: Write) -> None:
    file = write(NET)
    with pytest.raises(kind) as caught:
        instantiate(node("mine.net.Net", width=1, name=name), MINE, "model")
    assert any(str(entry.path) == str(file) for entry in caught.traceback)
    if kind is not DataError:
        assert "while model, a mine.net.Net, was built" in caught.value.__notes__


# ---------------------------------------------------------------------------- signatures


def problems(target: str = "mine.net.Net", key: str = "model", **arguments: Any) -> list[str]:
    return signature_problems(node(target, **arguments), key)


def one(target: str = "mine.net.Net", **arguments: Any) -> str:
    (problem,) = problems(target, **arguments)
    return problem


def test_the_source_tells_what_a_class_takes(write: Write) -> None:
    write(NET)
    assert problems(width=3, depth=1, info={}) == []
    text = one(width=3, dept=3)
    assert "model.dept is not an argument of mine.net.Net. Did you mean 'depth'?" in text
    assert "It takes width, depth=2, name='a name'. Type ~model.dept to leave it out." in text
    assert "model=own starts without the defaults of model=convnet" in text
    assert one() == (
        "model.width has no value, but mine.net.Net needs one (int). "
        "Type +model.width=... on the command line."
    )
    assert one(width="???") == "model.width has no value. Type model.width=... on the command line."
    assert one(width=True) == (
        "model.width is True (bool), but mine.net.Net takes int. Type model.width=1."
    )
    assert "Type model.depth=2." in one(width=1, depth="deep")
    assert problems(_partial_=True) == []
    assert problems(_args_=[3]) == []
    assert len(problems(a=1, b=2, depth=1.5)) == 4
    assert signature_problems(node("mine.net.Net", own=1), "optim", ("own", "width")) == []
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1, -3], [True, 1.0, "1", None, [1]]),
        ("float", [1, 1.5], [True, "1.5", None]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("str", ["", "a"], [1, True, None, ["a"]]),
        ("None", [None], [0, ""]),
        ("int | None", [1, None], [True, "1", 1.5]),
        ("int | float | None", [1, 1.5, None], [True, "x"]),
        ("Optional[int]", [1, None], [True, "1"]),
        ("typing.Union[int, str]", [1, "a"], [True, 1.5]),
        ("list[int]", [[], [1, 2]], [1, "12", [True], [1, "2"], None]),
        ("List[float]", [[1, 2.5]], [[False], 1.0]),
        ("Sequence[str]", [["a"]], ["a", [1]]),
        ("list[list[int]]", [[[1]]], [[1]]),
        ("tuple[int, ...]", [[], [1, 2]], [["a"], 1]),
        ("tuple[float, float]", [[0.9, 1]], [[0.9], [1, 2, 3], 0.9]),
        ("tuple[float | Tensor, Tensor]", [[0.9, "?"]], [[0.9], 0.9]),
        ("Literal['a', 1]", ["a", 1], ["b", True, None]),
        ("'int'", [1], [True, "a"]),
        ("Path", ["a", 1, None], []),
        ("str | Path", ["a", 1], []),
        ("dict[str, int]", [{"a": "b"}, 3], []),
        ("Annotated[int, 3]", [1, "a"], []),
    ],
)
def test_annotations(annotation: str, good: list[Any], bad: list[Any], write: Write) -> None:
    write(f"class Net:\n    def __init__(self, a: {annotation}, b: int = None): ...")
    for value in good:
        assert problems(a=value) == [], value
    for value in bad:
        assert f"({type(value).__name__}), but mine.net.Net takes " in one(a=value)
    assert problems(a=good[0], b=None) == []


def test_a_nested_node_stands_for_anything_and_is_checked_itself(write: Write) -> None:
    write("class Net:\n    def __init__(self, a: int, b: list = []): ...")
    inner = node("mine.net.Net", a="x")
    assert one(a=inner).startswith("model.a.a is 'x' (str)")
    assert one(a=1, b=[node("mine.net.Net")]) == (
        "model.b[0].a has no value, but mine.net.Net needs one (int). Give it one in the file."
    )


FORMS = {
    "inherited": "class Base:\n    def __init__(self, a: int): ...\nclass Net(Base): ...",
    "elsewhere": "from .base import Base as B\nclass Net(B): ...",
    "star": "from .base import *\nclass Net(Base): ...",
    "imported": "from .base import Base as Net",
    "absolute": "from mine.base import Base as Net",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass Net:\n    a: int",
    "fields": """
        import dataclasses
        from typing import ClassVar
        @dataclasses.dataclass(frozen=True)
        class Base:
            a: int
        @dataclasses.dataclass
        class Net(Base):
            c: ClassVar[int] = 1
            d: list[int] = dataclasses.field(default_factory=list)
            e: int = dataclasses.field(init=False)
        """,
    "overloads": """
        from typing import overload
        class Net:
            @overload
            def __init__(self, b: int): ...
            def __init__(self, a: int): ...
        """,
    "positional": "class Net:\n    def __init__(self, /, a: int, *, b=1): ...",
    "guarded": "try:\n    import x\nexcept ImportError:\n    x = None\nif x:\n"
    "    y = 1\nelse:\n    class Net:\n        def __init__(self, a: int): ...",
    "with bases": "from abc import ABC\nfrom typing import Generic, TypeVar\nT = TypeVar('T')\n"
    "class Net(ABC, Generic[T]):\n    def __init__(self, a: int): ...",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_forms_of_classes_that_are_read(form: str, write: Write) -> None:
    write("class Base:\n    def __init__(self, a: int) -> None: ...", "base.py")
    write(form)
    assert problems(a=1) == []
    assert "model.a has no value, but mine.net.Net needs one (int)." in one()
    assert "takes int" in one(a="x")
    assert "model.zz is not an argument" in one(a=1, zz=1)


UNSURE = {
    "open": "class Net:\n    def __init__(self, a=1, **more): ...",
    "decorated": "@register\nclass Net:\n    def __init__(self): ...",
    "wrapped": "class Net:\n    @wrap\n    def __init__(self): ...",
    "metaclass": "class Net(metaclass=Meta):\n    def __init__(self): ...",
    "new": "class Net:\n    def __new__(cls, *args, **kwargs): ...",
    "two bases": "class A: ...\nclass B: ...\nclass Net(A, B): ...",
    "far base": "import far\nclass Net(far.Away): ...",
    "no base": "from .nowhere import Base\nclass Net(Base): ...",
    "itself": "class Net(Net): ...",
    "circle": "from .net import Net",
    "twice": "if x:\n    class Net: ...\nelse:\n    class Net: ...",
    "made": "Net = make()",
    "function": "def Net(): ...",
    "lazy": "def __getattr__(name): ...",
    "unknown star": "from far.away import *",
}


@pytest.mark.parametrize("form", UNSURE.values(), ids=UNSURE.keys())
def test_nothing_is_said_where_the_source_does_not_tell(form: str, write: Write) -> None:
    write(form)
    assert problems(zz=1) == []


def test_what_is_not_there_is_told_without_an_import(write: Write) -> None:
    write("class Net: ...\nclass Deep: ...\nx = 1")
    write("class Net(:", "broken.py")
    text = one("mine.net.Nett")
    assert "model._target_ is 'mine.net.Nett', but mine.net has no Nett." in text
    assert "Did you mean 'Net'? It has Deep, Net. Type model._target_=mine.net.NAME." in text
    assert "there is no module mine.nett. Did you mean 'net'?" in one("mine.nett.Net")
    assert "there is no module theirs. It must be importable: type PYTHONPATH=" in one("theirs.Net")
    assert f"Python looks first in {sys.path[0]}" in one("theirs.Net")
    assert "that is a module, and only classes are built. Its classes: Net, Deep." in one(
        "mine.net"
    )
    assert "mine has no Net." in one("mine.Net")
    assert "line 1 of" in one("mine.broken.Net")
    assert "PYTHONPATH" not in one("hydra_trainer.nowhere.Net")
    assert "mine" not in sys.modules


def test_a_changed_file_is_read_again(write: Write) -> None:
    file = write("class Net:\n    def __init__(self, a=1): ...")
    assert problems(b=1)
    write("class Net:\n    def __init__(self, b=1): ...")
    os.utime(file, ns=(1, 1))  # the clock of a file system may be too coarse to see the change
    assert problems(b=1) == []


def test_folders_without_init_and_modules_already_imported(write: Write) -> None:
    write("class Net:\n    def __init__(self, a=1): ...", "deep/er/net.py")
    assert "It takes a=1." in one("mine.deep.er.net.Net", b=1)
    import hydra_trainer.models  # noqa: F401

    assert problems("hydra_trainer.models.classifier.Classifier", num_classes=10) == []
    text = one("hydra_trainer.models.classifier.Classifier", num_classes="ten")
    assert "model.num_classes is 'ten' (str)" in text


def torch_classes() -> Iterator[str]:
    for package in (torch.nn, torch.optim, torch.optim.lr_scheduler):
        for name, found in vars(package).items():
            if isinstance(found, type) and issubclass(
                found,
                torch.nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler,
            ):
                yield f"{package.__name__}.{name}"


def test_the_source_and_the_class_agree() -> None:
    """On every class of torch that a config may build: names, and which are required."""
    read = 0
    for target in torch_classes():
        module, names = targets._split(target, "model")
        try:
            found = targets._class(target, module, names, "model")
            signature = source.class_signature(module, found)
        except source.Unsure:
            continue
        real = inspect.signature(targets._load(target, TRUSTED, "model")).parameters.values()
        named = {p.name: p.default is p.empty for p in real if p.kind not in (2, 4)}
        assert {p.name: p.default is None for p in signature.parameters} == named, target
        assert signature.open == any(p.kind is p.VAR_KEYWORD for p in real), target
        read += 1
    assert read > 130


def test_checking_imports_nothing_heavy(tmp_path: Path) -> None:
    """The submit path: names and signatures are checked in a process that never sees torch."""
    (tmp_path / "mine.py").write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    program = """
    import sys
    from hydra_trainer.targets import TRUSTED, check_targets, signature_problems
    for name in ("torch.nn.Linear", "mine.Net", "lightning.pytorch.loggers.CSVLogger",
                 "hydra_trainer.models.classifier.Classifier", "torch.os.system"):
        node = {"_target_": name, "zz": 1}
        print(len(check_targets(node, (*TRUSTED, "mine"))), len(signature_problems(node, "model")))
    heavy = {"torch", "lightning", "torchmetrics", "numpy", "mine"}
    print(sorted(heavy.intersection(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    *counts, heavy = done.stdout.splitlines()
    assert counts == ["0 3", "0 0", "0 2", "0 2", "1 0"]
    assert heavy == "[]"


settings.register_profile("targets", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("targets")
