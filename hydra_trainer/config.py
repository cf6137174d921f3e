"""The configuration: its schema, its checks, and the way from it to a JobSpec.

Imports neither torch nor lightning: everything here runs before anything is submitted.

Nodes with a `_target_` (model, data, optim, launcher, logger) are as open as the class they name
and are checked against its signature, read from its source. The rest is typed below.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from .bundle import Bundle, collect
from .errors import ConfigError, did_you_mean
from .job import JobSpec, Resources
from .storage import STAND_IN, local_output, mounts, remote_output, storage_problems
from .targets import TRUSTED, check_targets, signature_problems

# ------------------------------------------------------------------------------------- schema


@dataclass
class TrainerConf:
    """How to train. The words are those of lightning.Trainer where it has one."""

    max_epochs: int = 15
    max_steps: int = -1  # optimizer steps; -1: no limit
    accelerator: str = "auto"  # auto | cpu | gpu
    precision: str = "32-true"  # 32-true | bf16-mixed | 16-mixed | bf16-true
    strategy: str = "auto"  # auto | ddp | fsdp; auto: ddp when there is more than one process
    process_group_backend: str = "auto"  # auto | nccl | gloo | smddp
    compile: bool = False  # torch.compile
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None  # clips the norm over all parameters
    val_check_interval: float = 1.0  # in epochs: 0.5 validates twice an epoch
    check_val_every_n_epoch: int = 1
    limit_train_batches: int | float | None = None  # 1 is one batch, 1.0 is all, 0.1 a tenth
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    overfit_batches: int = 0  # train and validate on this many batches; 0: off
    log_every_n_steps: int = 50
    detect_anomaly: bool = False
    deterministic: bool = False  # refuse operations that have no deterministic form
    stop_check_every_n_steps: int = 8  # how often ranks agree on whether one of them must stop
    start_timeout: float = 600.0  # seconds that ranks wait for each other while they start
    steady_timeout: float = 600.0  # seconds for one collective once training runs
    progress: str = "auto"  # auto | bar | lines | off; auto: a bar on a terminal


@dataclass
class CheckpointConf:
    """When to save, and what to keep."""

    enabled: bool = True
    every_n_steps: int | None = None  # besides the one at the end of every epoch
    every_n_epochs: int = 1
    keep_last: int = 2  # at least 2, so that a damaged one has a good one before it
    keep_best: int = 1  # by the objective
    asynchronous: bool = True  # write in the background, from a copy
    on_failure: str = "continue"  # continue | stop: what a save that was refused does to the run
    init_from: str | None = None  # a checkpoint or run directory whose weights to start from


@dataclass
class ResourcesConf:
    """What the job needs."""

    nodes: int = 1
    gpus_per_node: int | None = None  # null: take what is there
    processes_per_node: int | None = None  # null: one per GPU, at least one
    min_nodes: int | None = None  # fewer machines will do, down to this many (launcher=eks)
    cpus_per_node: float | None = None  # null: what is there; on a cluster, asked for
    memory_per_node: str | None = None  # as Kubernetes writes it: 64Gi
    instance_type: str | None = None  # p5.48xlarge; SageMaker's ml. in front is understood


@dataclass
class S3Conf:
    """How S3 is reached, and what `storage=s3` is made of."""

    bucket: str = STAND_IN  # of storage=s3
    endpoint: str | None = None  # an address that stands for AWS; null: AWS_ENDPOINT_URL, or AWS
    region: str | None = None  # null: the AWS configuration's
    deadline: float = 60.0  # seconds for one request, with its retries
    embedded: bool = False  # an S3 on this machine, which starts when it is needed


@dataclass
class StorageConf:
    """Where things lie. A mount's name is what `${mount:name}` in the config refers to."""

    output: str = "runs"  # run directories are made below it: a folder, or s3://bucket/prefix
    mounts: dict[str, Any] = field(default_factory=dict)  # name: folder here, or job.Mount's fields
    s3: S3Conf = field(default_factory=S3Conf)


@dataclass
class CodeConf:
    """How the code reaches a job that does not run on this machine."""

    delivery: str = "configmap"  # configmap | s3 | volume | image
    place: str | None = None  # s3: s3://bucket/prefix; volume: a folder in a mount, seen from here
    pip: list[str] = field(default_factory=list)  # requirements to install when the job starts


@dataclass
class ObjectiveConf:
    """Which logged metric decides which checkpoint is best, and is returned to a sweeper."""

    metric: str = "val/loss"
    mode: str = "min"  # min | max
    value: str = "best"  # best | last: which of the values that were logged
    others: list[Any] = field(default_factory=list)  # more, for a sweep: {metric, mode, value}


@dataclass
class DebugConf:
    """What `debug=...` switches on."""

    mode: str = "off"  # off | default | overfit | profile | attach
    port: int = 5678  # attach: where debugpy listens; 0: any free port
    profile_steps: int = 10  # profile: steps recorded after the first 5


@dataclass
class RunConf:
    """Filled in when the job is made: what the worker must know about the run it belongs to."""

    name: str = ""
    dir: str = ""
    identity: str = ""
    code_digest: str = ""
    remote: str | None = None  # where in S3 checkpoints and results go; null: into dir


@dataclass
class Config:
    """The whole job configuration."""

    model: Any = MISSING
    data: Any = MISSING
    optim: Any = MISSING
    launcher: Any = MISSING
    logger: Any = MISSING
    trainer: TrainerConf = field(default_factory=TrainerConf)
    checkpoint: CheckpointConf = field(default_factory=CheckpointConf)
    resources: ResourcesConf = field(default_factory=ResourcesConf)
    storage: StorageConf = field(default_factory=StorageConf)
    code: CodeConf = field(default_factory=CodeConf)
    objective: ObjectiveConf = field(default_factory=ObjectiveConf)
    debug: DebugConf = field(default_factory=DebugConf)
    run: RunConf = field(default_factory=RunConf)
    sweep: Any = None  # with -m: where jobs come from; they themselves know nothing of it
    seed: int = 0
    name: str | None = None  # first part of the run directory's name; null: model-data
    again: bool = False  # run a finished job anew
    trusted_modules: list[str] = field(default_factory=list)  # your packages that _target_ may name


PLUGINS: dict[tuple[str, str], dict[str, Any]] = {
    ("launcher", "hydra_trainer"): {
        "_target_": "hydra_plugins.hydra_trainer.launcher.TrainerLauncher",
        "max_concurrent": None,
    },
    ("sweeper", "hydra_trainer_optuna"): {
        "_target_": "hydra_plugins.hydra_trainer.sweeper.OptunaSweeper",
    },
    ("sweeper", "hydra_trainer_service"): {
        "_target_": "hydra_plugins.hydra_trainer.service_sweeper.ServiceSweeper",
    },
}
"""What `hydra/launcher` and `hydra/sweeper` can be beside Hydra's own. They are known here, and
their classes only in a sweep."""


def register() -> None:
    """Put the schema into Hydra's ConfigStore and register our resolvers. Safe to repeat."""
    store = ConfigStore.instance()
    store.store(name="_schema", node=Config)
    for (group, name), node in PLUGINS.items():
        store.store(group=f"hydra/{group}", name=name, node=node)
    # These two stay open until the worker, which alone knows the answer on its platform.
    for resolver in ("mount", "run"):
        OmegaConf.register_new_resolver(
            resolver, lambda name, r=resolver: f"${{{r}:{name}}}", replace=True
        )
    OmegaConf.register_new_resolver("default_run_dir", _default_run_dir, replace=True)
    OmegaConf.register_new_resolver("default_sweep_dir", _default_sweep_dir, replace=True)
    OmegaConf.register_new_resolver("as_typed", _as_typed, replace=True)


# ------------------------------------------------------------------------------------- checks

NOT_OF_THE_JOB = ("hydra", "sweep")
"""Nodes that are about how jobs come to be, and that none of them has."""

OPEN_NODES = ("model", "data", "optim", "launcher")
"""Nodes whose keys are the keyword arguments of their `_target_`."""

NOT_ARGUMENTS = {"data": ("info",), "optim": ("schedule", "decay")}
"""Keys of open nodes that we read ourselves and the class never sees."""

GIVEN_ARGUMENTS = {"optim": ("params",)}
"""Required arguments that the core passes by itself."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
ONE_OF = {
    "trainer.accelerator": ("auto", "cpu", "gpu"),
    "trainer.precision": PRECISIONS,
    "trainer.strategy": ("auto", "ddp", "fsdp"),
    "trainer.process_group_backend": ("auto", "nccl", "gloo", "smddp"),
    "trainer.progress": ("auto", "bar", "lines", "off"),
    "checkpoint.on_failure": ("continue", "stop"),
    "objective.mode": ("min", "max"),
    "objective.value": ("best", "last"),
    "code.delivery": ("configmap", "s3", "volume", "image"),
    "debug.mode": ("off", "default", "overfit", "profile", "attach"),
    "optim.schedule.name": ("constant", "cosine", "linear"),
}
AT_LEAST: dict[str, float] = {
    "seed": 0,
    "trainer.max_epochs": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.stop_check_every_n_steps": 1,
    "trainer.overfit_batches": 0,
    "checkpoint.every_n_steps": 1,
    "checkpoint.every_n_epochs": 1,
    "checkpoint.keep_last": 2,
    "checkpoint.keep_best": 0,
    "resources.nodes": 1,
    "resources.gpus_per_node": 0,
    "resources.processes_per_node": 1,
    "resources.min_nodes": 1,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "optim.weight_decay": 0,
    "optim.schedule.warmup_steps": 0,
    "debug.port": 0,
    "debug.profile_steps": 1,
    "launcher.max_restarts": 0,
}
ABOVE_ZERO = (
    "trainer.start_timeout",
    "trainer.steady_timeout",
    "trainer.val_check_interval",
    "trainer.gradient_clip_val",
    "trainer.limit_train_batches",
    "optim.lr",
    "resources.cpus_per_node",
    "launcher.grace",
    "storage.s3.deadline",
)
AT_MOST: dict[str, float] = {
    "trainer.val_check_interval": 1,
    "debug.port": 65535,
    "optim.schedule.final": 1,
}


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the job configuration as plain containers, with every interpolation resolved.

    `${mount:...}` and `${run:...}` stay as they are, for the worker.

    Raises:
        ConfigError: a mandatory value is missing, or an interpolation points nowhere.
    """
    try:
        found = {str(key): _resolved(cfg, key) for key in cfg if key not in NOT_OF_THE_JOB}
    except MissingMandatoryValue as error:
        raise ConfigError(_missing(error)) from None
    except (InterpolationKeyError, InterpolationResolutionError) as error:
        raise ConfigError(_dangling(cfg, error)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from None
    if isinstance(needed := found.get("resources"), dict):
        # One machine by two names, EC2's and SageMaker's: the same run.
        needed["instance_type"] = _ec2(needed.get("instance_type"))
    return found


def _resolved(cfg: DictConfig, key: Any) -> Any:
    """Return one section of a configuration, resolved."""
    if OmegaConf.is_missing(cfg, key):
        return "???"
    value = cfg[key]
    if not OmegaConf.is_config(value):
        return value
    return OmegaConf.to_container(value, resolve=True, enum_to_str=True)


Checked = dict[str, list[str]]
"""What is wrong with nodes that were looked at before, by what is in them."""


def validate(cfg: DictConfig, checked: Checked | None = None) -> dict[str, Any]:
    """Check the whole configuration and return it as plain containers.

    Args:
        cfg: the configuration, with Hydra's own node or without.
        checked: for the jobs of a sweep, which have most nodes in common: pass the same dict for
            each, and the source of a class is not read again for the same arguments.

    Raises:
        ConfigError: with every problem found, one sentence each, not just the first.
    """
    plain = resolve(cfg)
    problems: list[str] = []
    for key, path in _missing_values(plain):
        problems.append(f"{key} has no value. Type {path}=... on the command line.")
    problems += _range_problems(plain)
    problems += _target_problems(plain, {} if checked is None else checked)
    problems += _combination_problems(plain)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return plain


def get(plain: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value at a dotted key, or `default` where some part of the way is missing."""
    node: Any = plain
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def _range_problems(plain: dict[str, Any]) -> list[str]:
    problems = []
    for key, allowed in ONE_OF.items():
        value = get(plain, key)
        if value is not None and value not in allowed:
            hint = did_you_mean(str(value), allowed)
            problems.append(f"{key} is {value!r}, but must be one of {', '.join(allowed)}.{hint}")
    for key, low in AT_LEAST.items():
        value = get(plain, key)
        if _number(value) and not value >= low:
            problems.append(f"{key} is {value}, but must be at least {low}. Type {key}={low}.")
    for key in ABOVE_ZERO:
        value = get(plain, key)
        if _number(value) and not (value > 0 and math.isfinite(value)):
            problems.append(f"{key} is {value}, but must be a finite number above 0.")
    for key, high in AT_MOST.items():
        value = get(plain, key)
        if _number(value) and value > high:
            problems.append(f"{key} is {value}, but must be at most {high}.")
    steps = get(plain, "trainer.max_steps")
    if steps != -1 and steps < 1:
        problems.append(
            f"trainer.max_steps is {steps}, but must be at least 1, or -1 for no limit."
        )
    return problems


def _target_problems(plain: dict[str, Any], checked: Checked) -> list[str]:
    problems = []
    for key in (*OPEN_NODES, "logger"):
        known = repr((key, plain[key], plain["trusted_modules"]))
        if known not in checked:
            checked[known] = _node_problems(plain, key)
        problems += checked[known]
    return problems


def _node_problems(plain: dict[str, Any], key: str) -> list[str]:
    node = plain[key]
    if not isinstance(node, dict):
        return [f"{key} is {node!r}, but must be a mapping. Choose one: {key}=NAME."]
    if node.get("_target_") == "???":
        return []  # reported as missing
    if key != "logger" and not isinstance(node.get("_target_"), str):
        return [
            f"{key}._target_ is {node.get('_target_')!r}, but must be the dotted path of a "
            f"class. Type {key}._target_=mypkg.MyClass."
        ]
    refused = check_targets(node, (*TRUSTED, *plain["trusted_modules"]), key)
    if key == "logger" or refused:
        return refused
    return signature_problems(_arguments(plain, key, given=True), key)


def _arguments(plain: dict[str, Any], key: str, *, given: bool = False) -> dict[str, Any]:
    """Return an open node without the keys that its class never sees."""
    hidden = NOT_ARGUMENTS.get(key, ())
    node = {name: value for name, value in plain[key].items() if name not in hidden}
    if given:
        node |= dict.fromkeys(GIVEN_ARGUMENTS.get(key, ()))
    return node


def arguments(plain: dict[str, Any], key: str) -> dict[str, Any]:
    """Return `_target_` and keyword arguments of an open node: model, data, optim or launcher."""
    return _arguments(plain, key)


def _combination_problems(plain: dict[str, Any]) -> list[str]:
    problems = []
    needed = resources(plain)
    batch = get(plain, "data.batch_size")
    sound = needed.world_size >= 1  # else the range has been reported
    if sound and _number(batch) and batch >= 1 and batch % needed.world_size:
        lower = max(batch // needed.world_size, 1) * needed.world_size
        problems.append(
            f"data.batch_size is {batch}, the samples per step over all processes, but must be "
            f"divisible by {needed.nodes} nodes x {needed.processes_per_node} processes = "
            f"{needed.world_size}. Type data.batch_size={lower} or "
            f"data.batch_size={lower + needed.world_size}."
        )
    if needed.gpus_per_node and needed.processes_per_node != needed.gpus_per_node:
        problems.append(
            f"resources.processes_per_node is {needed.processes_per_node} with "
            f"resources.gpus_per_node={needed.gpus_per_node}, but each process drives one GPU. "
            "Leave resources.processes_per_node out."
        )
    backend, accelerator = (
        plain["trainer"]["process_group_backend"],
        plain["trainer"]["accelerator"],
    )
    if accelerator == "cpu" and backend in ("nccl", "smddp"):
        problems.append(
            f"trainer.process_group_backend is {backend!r} with trainer.accelerator=cpu, but "
            f"{backend} moves GPU memory. Type trainer.process_group_backend=gloo."
        )
    if accelerator == "cpu" and needed.gpus_per_node:
        problems.append(
            f"trainer.accelerator is 'cpu' with resources.gpus_per_node={needed.gpus_per_node}. "
            "Leave one of them out."
        )
    if plain["trainer"]["strategy"] == "fsdp" and needed.world_size == 1:
        problems.append(
            "trainer.strategy is 'fsdp' with one process, but there is nothing to shard over. "
            "Type resources.processes_per_node=2 or more, or trainer.strategy=auto."
        )
    code = plain["code"]
    if code["delivery"] in ("s3", "volume") and not code["place"]:
        example = {"s3": "s3://BUCKET/code", "volume": "'${mount:output}/code'"}[code["delivery"]]
        problems.append(
            f"code.place has no value with code.delivery={code['delivery']}. Type "
            f"code.place={example}."
        )
    problems += _objective_problems(plain["objective"]["others"])
    low = needed.min_nodes
    if low is not None and not low <= needed.nodes:
        problems.append(
            f"resources.min_nodes is {low}, but must be at most resources.nodes={needed.nodes}."
        )
    return [*problems, *storage_problems(plain)]


def _objective_problems(others: list[Any]) -> list[str]:
    allowed = {"mode": ("min", "max"), "value": ("best", "last")}
    problems = []
    for index, one in enumerate(others):
        key = f"objective.others.{index}"
        if not (isinstance(one, dict) and isinstance(one.get("metric"), str)):
            problems.append(
                f"{key} is {one!r}, but must be a mapping of metric, mode and value. Type "
                "'objective.others=[{metric: val/acc, mode: max}]'."
            )
            continue
        for word, value in one.items():
            if word in allowed and value not in allowed[word]:
                choices = " or ".join(allowed[word])
                problems.append(f"{key}.{word} is {value!r}, but must be {choices}.")
            elif word not in ("metric", *allowed):
                problems.append(f"{key}.{word} is not known; there are metric, mode and value.")
    return problems


def _missing_values(node: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(node, dict):
        return [
            found
            for name, value in node.items()
            for found in _missing_values(value, f"{key}.{name}" if key else str(name))
        ]
    return [(key, key)] if node == "???" else []


def _missing(error: MissingMandatoryValue) -> str:
    key = getattr(error, "full_key", None) or "a key"
    return f"{key} has no value. Type {key}=... on the command line."


def _dangling(cfg: DictConfig, error: OmegaConfBaseException) -> str:
    """Explain an interpolation that points nowhere, for the common case of model and data."""
    key = str(error.full_key)
    with_source = OmegaConf.select(cfg, key.rsplit(".", 1)[0]) if "." in key else cfg
    raw = OmegaConf.to_container(with_source, resolve=False) if with_source is not None else {}
    wanted = raw.get(key.rsplit(".", 1)[-1], "?") if isinstance(raw, dict) else "?"
    message = f"{key} is {wanted}, which has no value here."
    if "data.info" in str(wanted) and key.startswith("model"):
        has = OmegaConf.select(cfg, "data.info")
        listed = ", ".join(f"data.info.{name}" for name in has) if has else "nothing"
        message += (
            f" These data do not fit this model: they describe {listed}. Choose data that fit "
            "(image models: data=digits, data=cifar10; gpt: data=tokens) or set "
            f"{key} by hand."
        )
    return message


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ------------------------------------------------------------------------------- config -> job

NOT_IDENTITY = ("again", "run", "name", "storage", "launcher", "code")
"""Keys that change neither what is trained nor how: they are left out of the run's identity."""

NOT_TRAINING = (
    *NOT_IDENTITY,
    "resources",
    "logger",
    "debug",
    "checkpoint",
    "trainer.progress",
    "trainer.log_every_n_steps",
    "trainer.start_timeout",
    "trainer.steady_timeout",
    "trainer.stop_check_every_n_steps",
    "trainer.process_group_backend",
    "data.num_workers",
    "trusted_modules",
)
"""Keys that may differ between two sittings of one run: where and how it runs, not what it
trains. The batch is global, so the number of processes is among them."""


def without(plain: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a deep copy of plain containers without some dotted keys."""
    copy: dict[str, Any] = json.loads(json.dumps(plain))
    for key in keys:
        *way, last = key.split(".")
        parent = get(copy, ".".join(way)) if way else copy
        if isinstance(parent, dict):
            parent.pop(last, None)
    return copy


def resources(plain: dict[str, Any]) -> Resources:
    """Return what the job needs, with the processes per node worked out."""
    node = plain["resources"]
    gpus = node["gpus_per_node"]
    processes = node["processes_per_node"] or max(gpus or 0, 1)
    keys = ("min_nodes", "cpus_per_node", "memory_per_node", "instance_type")
    more = {key: node[key] for key in keys}
    return Resources(node["nodes"], processes, gpus, **more)


def _ec2(instance_type: str | None) -> str | None:
    return instance_type.removeprefix("ml.") if instance_type else None


def digest(value: Any) -> str:
    """Return a hex digest (16 characters) of plain containers."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


NOT_IN_A_PATH = re.compile(r"[^A-Za-z0-9._-]+")


def identity(plain: dict[str, Any], code: str) -> str:
    """Return the digest of the resolved configuration and the code: no clock, no randomness."""
    return digest({"config": without(plain, NOT_IDENTITY), "code": code})


def targets(node: Any) -> list[str]:
    """Return every `_target_` at any depth."""
    if isinstance(node, dict):
        own = [node["_target_"]] if isinstance(node.get("_target_"), str) else []
        return own + [found for value in node.values() for found in targets(value)]
    if isinstance(node, list):
        return [found for value in node for found in targets(value)]
    return []


def job_name(plain: dict[str, Any], identity: str) -> str:
    """Return `model-data-1a2b3c4d`, or `NAME-1a2b3c4d` where the config has a name.

    It is the name of a folder here and on other machines: what is special in a path becomes a dash.
    """
    return f"{NOT_IN_A_PATH.sub('-', _prefix(plain)).strip('-.')[:100] or 'run'}-{identity[:8]}"


def _prefix(plain: dict[str, Any]) -> str:
    return plain["name"] or "-".join(_short(plain[key]) for key in ("model", "data"))


def named_after(launcher: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose job has the launcher in its name.

    For a sweep over launchers: jobs that train the same would have one run directory.
    """
    return {**plain, "name": f"{_prefix(plain)}-{launcher}"}


def _short(node: Any) -> str:
    target = node.get("_target_", "none") if isinstance(node, dict) else "none"
    return "".join(c for c in str(target).rsplit(".", 1)[-1].lower() if c.isalnum())


def to_job(
    plain: dict[str, Any], directory: Path | Callable[[str], Path], root: Path | None = None
) -> JobSpec:
    """Return the JobSpec of a validated configuration.

    Args:
        plain: what `validate` returned.
        directory: the run directory, or what returns it for the name of the job.
        root: where the user's code lies; the current directory when left out.
    """
    code = _code(plain, root or Path.cwd())
    digest = identity(plain, code.digest)
    name = job_name(plain, digest)
    output = str(directory(name) if callable(directory) else directory)
    config = json.loads(json.dumps(plain))
    config["run"] = {
        "name": name,
        "dir": output,
        "identity": digest,
        "code_digest": code.digest,
        **({"remote": f"{remote}/{Path(output).name}"} if (remote := remote_output(plain)) else {}),
    }
    return JobSpec(
        name=name,
        identity=digest,
        config=config,
        output=output,
        resources=resources(plain),
        code=code,
        mounts=mounts(plain),
        again=plain["again"],
    )


def _code(plain: dict[str, Any], root: Path) -> Bundle:
    return collect(root, targets(plain), [local_output(plain)])


def _default_run_dir(*, _root_: DictConfig) -> str:
    """Resolver of hydra.run.dir: a name by content, so that the same command finds its run."""
    plain = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(plain, dict)
    job = OmegaConf.create({key: value for key, value in plain.items() if key != "hydra"})
    try:
        values = resolve(job)
        digest = _code(values, Path.cwd()).digest
        return str(local_output(values) / job_name(values, identity(values, digest)))
    except (ConfigError, KeyError, AttributeError, TypeError):
        return ".hydra-trainer-invalid"  # never used: validate() reports the fault and stops


# --------------------------------------------------------------------------------------- sweeps

NOT_SWEEP = re.compile(r"[+~]*(launcher|hydra|again|sweep\.n_trials|storage|name)\b")
"""Words of a sweep's command that may differ between two sittings of it: where its jobs run, and
how many there are to be."""


def sweep_identity(master: DictConfig) -> str:
    """Return the digest of what a sweep is about: the words that Hydra composes its jobs from."""
    params = [_params(master, key) for key in ("hydra.sweeper.params", "sweep.params")]
    return digest({"words": sorted(_sweep_words(master)), "params": params})


def _sweep_words(master: DictConfig) -> list[str]:
    found = OmegaConf.to_container(master.hydra.overrides.task)
    assert isinstance(found, list)
    return [str(word) for word in found if not NOT_SWEEP.match(str(word))]


def _params(master: DictConfig, key: str) -> Any:
    node = OmegaConf.select(master, key)
    return OmegaConf.to_container(node) if isinstance(node, DictConfig) else None


def _default_sweep_dir(*, _root_: DictConfig) -> str:
    """Resolver of hydra.sweep.dir: a name by content, so that the same command goes on."""
    words = [word.partition("=") for word in _sweep_words(_root_)]
    keys = [key.lstrip("+~").rpartition(".")[2] for key, _, value in words if _varies(value)]
    name = NOT_IN_A_PATH.sub("-", "-".join(keys)).strip("-.")[:60] or "sweep"
    plain = {"storage": OmegaConf.to_container(_root_.storage, resolve=True)}
    return str(local_output(plain) / "sweeps" / f"{name}-{sweep_identity(_root_)[:8]}")


def _as_typed(params: Any) -> dict[str, str] | None:
    """Resolver of hydra.sweeper.params: what a file says that varies, as one would type it."""
    if params is None:
        return None
    from .sweep.space import typed

    return dict(typed(params))


def _varies(value: str) -> bool:
    """Tell whether an override looks like several: good enough for a folder's name."""
    return "," in value or bool(re.match(r"(choice|range|interval|glob|tag|shuffle|sort)\(", value))


def resolve_part(cfg: DictConfig, key: str) -> dict[str, Any]:
    """Return one section of a configuration as `{key: section}`, resolved."""
    return {key: OmegaConf.to_container(cfg[key], resolve=True, enum_to_str=True)}
