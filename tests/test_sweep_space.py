"""Search spaces: what is read from an override, and values that come back as they were."""

import math
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra_trainer import config
from hydra_trainer.errors import ConfigError
from hydra_trainer.sweep.space import Choice, Distribution, Float, Int, parse, text_of

READ: dict[str, Distribution] = {
    "a,b": Choice(("a", "b")),
    "a,a,b": Choice(("a", "b")),
    "choice(1,1.0,true,'1',x)": Choice(("1", "1.0", "true", "'1'", "x")),
    "'a, b','it\\'s'": Choice(("'a, b'", "'it\\'s'")),
    "[1,2],{a:1}": Choice(("[1,2]", "{a:1}")),
    "null,1": Choice(("null", "1")),
    "sort(3,1,2)": Choice(("1", "2", "3")),
    "interval(1e-5,1e-1)": Float(1e-5, 1e-1),
    "interval(1,5)": Float(1.0, 5.0),
    "tag(log,interval(1e-5,1e-1))": Float(1e-5, 1e-1, log=True),
    "tag(int,interval(1,5))": Int(1, 5),
    "int(interval(1,5))": Int(1, 5),
    "tag(int,log,interval(16,4096))": Int(16, 4096, log=True),
    "range(1,10)": Int(1, 9),
    "range(3)": Int(0, 2),
    "range(16,257,16)": Int(16, 256, step=16),
    "range(16,250,16)": Int(16, 240, step=16),
    "range(10,0,-3)": Int(1, 10, step=3),
    "range(0,1,0.1)": Float(0.0, 0.9, step=0.1),
    "range(0.5,3)": Float(0.5, 2.5, step=1.0),
    "float(range(1,4))": Float(1.0, 3.0, step=1.0),
    "tag(log,range(1,10))": Int(1, 9, log=True),
    "shuffle(range(1,4))": Int(1, 3),
}


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    space = parse([f"x={text}"])
    assert space.params == {"x": READ[text]}
    assert space.fixed == ()


WRONG = {
    "x=interval(5,1)": "x=interval(5,1) begins at 5.0 and ends at 1.0, but must end above",
    "x=interval(1,1)": "begins at 1.0 and ends at 1.0",
    "x=interval(nan,1)": "has a bound that is not a finite number",
    "x=tag(log,interval(0,1))": "begins at 0.0, but a logarithmic scale begins above 0",
    "x=tag(lg,interval(1,2))": "has the tag 'lg', which means nothing here. Did you mean 'log'?",
    "x=tag(int,interval(0.5,3))": "goes from 0.5 to 3.0, but int needs whole bounds",
    "x=tag(log,range(1,10,2))": "Type tag(log,interval(1.0,9.0))",
    "x=tag(int,range(0,1,0.5))": "has steps that are not whole, but int",
    "x=range(5,1)": "holds no number: like Python's range",
    "x=range(1,5,0)": "in steps other than 0",
    "x=tag(log,choice(1,2))": "has a tag, but tags are for intervals and ranges",
}


@pytest.mark.parametrize("word", WRONG)
def test_what_is_wrong(word: str) -> None:
    with pytest.raises(ConfigError, match=r"^x=") as caught:
        parse([word])
    assert WRONG[word] in str(caught.value)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(list(WRONG), {"optim.lr": "interval(1,", "optim.beta": "intervl(1,2)"})
    told = caught.value.problems
    assert len([text for text in told if text.startswith("sweep.params: Hydra cannot read")]) == 2
    assert len(told) == 3  # the words are of one key: the last one counts
    assert told[-1].startswith("x=tag(log,choice(1,2))")


def test_what_does_not_vary_goes_through_as_it_was_typed() -> None:
    words = ["model=mlp", "x='a, b'", "+y={a: [1, 2]}", "~z", "sweep=optuna", "sweep.n_trials=3"]
    space = parse([*words, "optim.lr=1,2"])
    assert space.fixed == tuple(words[:4])
    job = space.job(7, {"optim.lr": "1"})
    assert (job.number, job.overrides) == (7, [*words[:4], "optim.lr=1"])
    assert job.params == {"optim.lr": 1}


def test_what_a_file_says_and_the_command_line_overrides() -> None:
    params = {"optim.lr": "interval(0, 1)", "model": ["mlp", "a b"], "seed": 3, "x": "1,2"}
    space = parse(["optim.lr=0.1", "seed=1,2"], params)
    assert space.params == {
        "model": Choice(("mlp", "'a b'")),
        "x": Choice(("1", "2")),
        "seed": Choice(("1", "2")),
    }
    assert space.fixed == ("optim.lr=0.1",)


def test_added_keys_keep_their_sign_and_are_shown_without() -> None:
    space = parse(["+model.depth=range(1,4)", "++x=1,2", "db@there=a,b"])
    job = space.job(0, {"+model.depth": 2, "++x": "1", "db@there": "a"})
    assert job.overrides == ["+model.depth=2", "++x=1", "db@there=a"]
    assert job.params == {"model.depth": 2, "x": 1, "db@there": "a"}


def test_a_group_of_files(composer: Any) -> None:
    space = parse(["model=glob([mlp*,conv*])", "optim=glob(*,exclude=s*)"], loader=composer)
    assert space.params == {"model": Choice(("convnet", "mlp")), "optim": Choice(("adamw",))}
    with pytest.raises(ConfigError, match=r"finds nothing. model can be: convnet, gpt, "):
        parse(["model=glob(x*)"], loader=composer)
    with pytest.raises(ConfigError, match="nothing: it is no group"):
        parse(["modle=glob(*)"], loader=composer)


@pytest.fixture
def composer() -> Any:
    config.register()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


# --------------------------------------------------------------------------------- there and back

HARD = "ab ,'\"\\=:[]{}()$%~+-/.\t\n#0"
KEYS = st.text(alphabet="ab ,=:(){}[]\\-/.%+0", max_size=4).map(lambda text: f"k{text}k")
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.text(alphabet=HARD, max_size=8),
    st.sampled_from(["null", "True", "nan", "inf", "1e3", "1_000", "${x}", "", " "]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(value=VALUES)
def test_a_value_is_read_as_it_was_written(value: Any) -> None:
    read = OverridesParser.create().parse_override(f"x={text_of(value)}").value()
    assert repr(read) == repr(value)  # 1 is not 1.0, nor True


@settings(max_examples=50, deadline=None)
@given(first=LEAVES, second=LEAVES)
def test_a_choice_is_read_as_it_was_written(first: Any, second: Any) -> None:
    space = parse([], {"x": [first, second, "other"]})
    read = [space.job(0, {"x": text}).params["x"] for text in space.params["x"].all()]
    assert list(dict.fromkeys(map(repr, [first, second, "other"]))) == list(map(repr, read))


NUMBERS = st.floats(min_value=1e-12, max_value=1e12)


@st.composite
def distributions(draw: Any) -> Distribution:
    kind = draw(st.sampled_from(["choice", "float", "steps", "int", "int steps"]))
    log = draw(st.booleans())
    if kind == "choice":
        texts = draw(st.lists(LEAVES.map(text_of), min_size=2, max_size=4, unique=True))
        return Choice(tuple(texts))
    low, high = sorted(draw(st.lists(NUMBERS, min_size=2, max_size=2, unique=True)))
    if kind == "float":
        return Float(low, high, log)
    whole, count = draw(st.integers(1, 999)), draw(st.integers(1, 50))
    if kind == "int":
        return Int(whole, whole + count, log)
    if kind == "int steps":
        step = draw(st.integers(2, 40))
        return Int(whole, whole + count * step, step=step)
    digits = draw(st.integers(0, 4))
    step, low = round(whole / 10**digits, digits), round(draw(st.floats(-9, 9)), digits)
    return Float(low, round(low + count * step, digits), step=step)


@settings(max_examples=100, deadline=None)
@given(one=distributions())
def test_a_space_is_read_as_it_is_shown(one: Distribution) -> None:
    assert parse([f"x={one.typed}"]).params == {"x": one}


@settings(max_examples=100, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_keeps_all_its_digits(value: float) -> None:
    low, high = (-1e308, 1e308)
    text = Float(low, high).text(value)
    assert OverridesParser.create().parse_override(f"x={text}").value() == value
    assert math.copysign(1, float(text)) == math.copysign(1, value)


def test_steps_have_the_digits_that_were_typed() -> None:
    one = parse(["x=range(0,1,0.1)"]).params["x"]
    assert isinstance(one, Float)
    assert [one.text(value) for value in one.all()] == [f"0.{k}" for k in range(10)]
    assert one.text(0.1 + 0.2) == "0.3"
    assert one.read(0.1 + 0.2) == 0.3


def test_a_value_reaches_the_configuration(composer: Any) -> None:
    for name in ("a, b", 'it\'s "so"', "x=1", " lead", "\\", "true"):
        space = parse(["model=mlp,convnet", "optim.lr=interval(0,1)"], {"name": [name]})
        (text,) = space.params["name"].all()
        job = space.job(0, {"model": "mlp", "optim.lr": 1 / 3, "name": text})
        cfg = compose("config", list(job.overrides))
        assert (cfg.name, cfg.optim.lr) == (name, 1 / 3)
        assert cfg.model._target_.endswith("MLP")


# ---------------------------------------------------------------------------------------- samples


def test_samples_hold_each_choice_and_both_bounds() -> None:
    space = parse(["a=x,y,z", "b=1,2", "c=interval(1,2)", "d=range(0,10,3)", "e=only,"[:-1]])
    jobs = space.samples()
    assert [job.number for job in jobs] == [0, 1, 2]
    seen = {key: {job.params[key] for job in jobs} for key in "abcd"}
    assert seen == {"a": {"x", "y", "z"}, "b": {1, 2}, "c": {1.0, 2.0}, "d": {0, 9}}
    assert all("e=only" in job.overrides for job in jobs)


def test_how_many_combinations_there_are() -> None:
    assert parse(["a=x,y,z", "b=range(0,1,0.1)", "c=int(interval(1,5))"]).combinations() == 150
    assert parse(["a=x,y", "b=interval(0,1)"]).combinations() is None
    assert parse(["a=int(interval(1,1000000000000))"]).combinations() == 10**12
