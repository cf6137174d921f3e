"""train(): from a resolved configuration to a result. The only place that builds a Trainer."""

import contextlib
import json
import logging
import math
import platform
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from . import __version__, distributed, handover, metrics, optim, overhead
from .callbacks import Core, committed, finished_epochs
from .checkpoints import reading
from .checkpoints.folder import Folder
from .checkpoints.store import Checkpoint, Store, find, place, stored
from .checkpoints.writing import CommittedCheckpointIO, Writer, closing
from .config import arguments, get
from .data import BatchSampler, resumable
from .errors import ConfigError, DataError
from .goals import Goal
from .objects import Settings
from .preemption import NoStopFlag, StopFlag
from .progress import choose
from .report import shown
from .targets import TRUSTED, instantiate

if TYPE_CHECKING:
    from .mirror import Mirror

log = logging.getLogger(__name__)

PACKAGES = ("torch", "lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")


def train(
    config: dict[str, Any], flag: StopFlag | None = None, mirror: "Mirror | None" = None
) -> dict[str, Any]:
    """Train, or go on training, and return the result.

    Args:
        config: a validated configuration with its `run` section filled in, and no open
            interpolations left.
        flag: whether this process was asked to stop; one that never is, when left out.
        mirror: on rank 0 of a run whose results are in S3, who brings them there.

    Returns:
        The result: status, objective, metrics, checkpoints, steps, seconds and so on; plain
        values, the same on every rank.

    Raises:
        Stopped: a signal asked for it; `unsaved` says why the state is not saved, where it is not.
        ConfigError, DataError, CheckpointError, NaNLossError: as their names say.
    """
    return _Session(config, flag or NoStopFlag(), mirror).run()


class _Session:
    """One sitting: everything between the start of this process and its result."""

    def __init__(self, config: dict[str, Any], flag: StopFlag, mirror: "Mirror | None") -> None:
        self.config = config
        self.conf: dict[str, Any] = config["trainer"]
        self.directory = Path(config["run"]["dir"])
        self.trusted = (*TRUSTED, *config["trusted_modules"])
        self.debug: str = config["debug"]["mode"]
        self.first = distributed.rank() == 0
        self.gpu = distributed.use_gpu(self.conf["accelerator"])
        self.settings = Settings.of(config)
        self.store = self._store() if config["checkpoint"]["enabled"] else None
        self.writer = Writer(
            config["checkpoint"]["asynchronous"], config["checkpoint"]["on_failure"] == "stop"
        )
        self.core = Core(
            flag,
            choose(self.conf["progress"], self.first),
            config,
            self.store,
            self.writer,
            {
                "identity": config["run"]["identity"],
                "model": config["model"]["_target_"],
                "seed": config["seed"],
            },
            mirror,
        )
        self.door = CommittedCheckpointIO(
            self.store or Store(self.directory / "checkpoints"), self.writer, self.core.committed
        )

    def _store(self) -> Store:
        remote = self.config["run"].get("remote")
        if not remote:
            return Store(Folder(self.directory / "checkpoints"))
        return Store(place(stored(remote, self.settings), self.settings))

    def run(self) -> dict[str, Any]:
        self._quieten()
        self._start_process()
        data = self._data()
        model = self._model()
        resume, state = self._agreed(
            reading.restore(self.store) if self.store and self.first else None
        )
        self._wire_optimizer(model)
        trainer = self._trainer(resume.step if resume else 0, resumed=resume is not None)
        overhead.trim(trainer, model, data)
        self._greet(model, resume)
        self._log_config(trainer)
        began, samples = time.monotonic(), self.core.samples
        try:
            with closing(self.writer), contextlib.ExitStack() as copies:
                path = None
                if resume is not None:
                    resume = copies.enter_context(self._on_every_machine(resume))
                    path = self._hand_over(model, resume, state)
                    del state  # Lightning has it, and lets go of it when it was restored
                trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
            return self._end(trainer, model, data, began, samples)
        finally:
            self._finish_loggers(trainer)

    def _hand_over(
        self, model: LightningModule, resume: Checkpoint, state: reading.State | None
    ) -> str:
        """Give Lightning the state of a checkpoint; return what it takes for its path."""
        state = state or self._state(resume)
        reading.check_weights(state, model, resume.state)
        if not resume.is_sharded:
            self.door.give(state)
        return resume.state

    def _end(
        self,
        trainer: Trainer,
        model: LightningModule,
        data: LightningDataModule,
        began: float,
        samples: int,
    ) -> dict[str, Any]:
        fit_seconds = time.monotonic() - began
        rate = (self.core.samples - samples) / max(fit_seconds, 1e-9)
        self.core.seconds_before, self.core.fit_started = self.core.seconds(), time.monotonic()
        tested = self._test(trainer, model, data)
        return self._result(trainer, tested, rate)

    # ------------------------------------------------------------------------------ preparation

    def _quieten(self) -> None:
        """Silence what Lightning says about choices that this package makes on purpose."""
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for text in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",
            ".*your dataloader is not resumable.*",
            ".*isinstance.treespec, LeafSpec.*",
            ".*batch_progress.*",
        ):
            warnings.filterwarnings("ignore", text)

    def _start_process(self) -> None:
        conf = self.conf
        if distributed.world_size() > 1:
            if self.gpu:
                torch.cuda.set_device(distributed.local_rank())
            backend = distributed.backend_for(conf["process_group_backend"], self.gpu)
            distributed.start(backend, conf["start_timeout"])
        elif conf["process_group_backend"] == "smddp":
            distributed.backend_for("smddp", self.gpu)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = self.gpu and not conf["deterministic"]
        # The same on every rank: models are built alike; the ranks part in _model.
        seed_everything(self.config["seed"], verbose=False)

    def _data(self) -> LightningDataModule:
        data = instantiate(arguments(self.config, "data"), self.trusted, "data")
        if not isinstance(data, LightningDataModule):
            raise ConfigError(
                f"data._target_ is {self.config['data']['_target_']!r}, which makes a "
                f"{type(data).__name__}, but must be a LightningDataModule."
            )
        module: Any = data
        if isinstance(getattr(module, "s3", None), Settings):  # one that reads S3
            module.s3 = self.settings
        for stage in ("train", "val", "test"):
            name = f"{stage}_dataloader"
            if is_overridden(name, data):
                setattr(data, name, self._loaders(getattr(data, name), train=stage == "train"))
        return data

    def _loaders(self, make: Any, train: bool) -> Any:
        """Wrap a dataloader method: what it returns can be resumed and is shared by the ranks."""

        def rebuilt() -> Any:
            loaders = make()
            if isinstance(loaders, list | tuple) and not train:
                return [self._loader(loader, train) for loader in loaders]
            return self._loader(loaders, train)

        return rebuilt

    def _loader(self, loader: Any, train: bool) -> DataLoader[Any]:
        if not isinstance(loader, DataLoader):
            raise DataError(
                f"{self.config['data']['_target_']} returned a {type(loader).__name__} for "
                f"{'training' if train else 'evaluation'}, but must return one DataLoader."
            )
        made = resumable(
            loader,
            seed=self.config["seed"],
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            train=train,
        )
        if train:
            sampler = made.batch_sampler
            assert isinstance(sampler, BatchSampler)
            if self.conf["overfit_batches"]:
                sampler.shuffle = False  # the same few batches in every epoch
            epoch, batches = self.core.position()
            sampler.set_position(epoch, batches * sampler.batch_size)
            self.core.sampler = sampler
        return made

    def _model(self) -> LightningModule:
        model = instantiate(arguments(self.config, "model"), self.trusted, "model")
        if not isinstance(model, LightningModule):
            raise ConfigError(
                f"model._target_ is {self.config['model']['_target_']!r}, which makes a "
                f"{type(model).__name__}, but must be a LightningModule."
            )
        if where := self.config["checkpoint"]["init_from"]:
            found, state = reading.opened(find(where, self.settings))
            reading.check_weights(state, model, found.state)
            self._load_weights(model, found, state)
        if self.gpu and getattr(model, "channels_last", False):
            model.to(memory_format=torch.channels_last)
        if self.conf["compile"]:
            model.compile()
        # Dropout must differ between ranks; the weights, built above, must not.
        seed_everything(_mix(self.config["seed"], distributed.rank()), verbose=False)
        return model

    def _wire_optimizer(self, model: LightningModule) -> None:
        if is_overridden("configure_optimizers", model):
            log.info("%s has its own configure_optimizers: optim is not used", type(model).__name__)
            return
        # A GradScaler's unscaling inside a fused step leaves nothing for clipping to clip.
        clips = self.conf["gradient_clip_val"] is not None
        fused = not (self.conf["precision"].startswith("16") and clips)

        def configure_optimizers() -> dict[str, Any]:
            steps = model.trainer.estimated_stepping_batches
            return optim.build(model, self.config["optim"], self.trusted, steps, fused)

        model.configure_optimizers = configure_optimizers  # type: ignore[method-assign,assignment]

    def _agreed(
        self, found: tuple[Checkpoint, reading.State] | None
    ) -> tuple[Checkpoint | None, reading.State | None]:
        """Return rank 0's checkpoint on every rank, and there its state as well."""
        told = self._broadcast((found[0].name, found[0].manifest) if found else None)
        if told is None:
            return None, None
        assert self.store is not None
        return found or (Checkpoint(self.store.place, *told), None)

    def _state(self, found: Checkpoint) -> reading.State:
        """Return the state of a checkpoint that rank 0, or this machine's first rank, has checked.

        What comes from S3 is checked by each rank that reads it.
        """
        if found.is_sharded:
            return reading.inspect_shards(found)
        return reading.load(found, verify=found.place.is_remote)

    def _broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank: all must take the same checkpoint."""
        if distributed.world_size() == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    # ---------------------------------------------------------------------------------- trainer

    def _trainer(self, step: int, resumed: bool) -> Trainer:
        conf = self.conf
        trainer = Trainer(
            accelerator="gpu" if self.gpu else "cpu",
            devices=distributed.local_world_size() if distributed.world_size() > 1 else 1,
            num_nodes=distributed.world_size() // distributed.local_world_size(),
            strategy=self._strategy(),
            plugins=[self.door],
            precision=conf["precision"],
            max_epochs=conf["max_epochs"],
            max_steps=conf["max_steps"],
            accumulate_grad_batches=conf["accumulate_grad_batches"],
            gradient_clip_val=conf["gradient_clip_val"],
            val_check_interval=conf["val_check_interval"],
            check_val_every_n_epoch=conf["check_val_every_n_epoch"],
            limit_train_batches=conf["limit_train_batches"],
            limit_val_batches=conf["limit_val_batches"],
            limit_test_batches=conf["limit_test_batches"],
            overfit_batches=conf["overfit_batches"],
            log_every_n_steps=conf["log_every_n_steps"],
            detect_anomaly=conf["detect_anomaly"],
            deterministic=conf["deterministic"],
            logger=self._loggers(step, resumed),
            callbacks=[self.core, *self._debug_callbacks()],
            default_root_dir=str(self.directory),
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        # Lightning's own answers to SIGTERM: a handler that makes a collective call wherever the
        # process happens to be, and a broadcast with a device sync in every step. Ours are in
        # callbacks.py.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._validate_at_max_steps(trainer)
        # Everything is logged at the number of optimizer steps that were done; Lightning stamps a
        # validation with one less, which a resumed run would take for older than its checkpoint.
        log_metrics = trainer._logger_connector.log_metrics

        def log_at_step(metrics: dict[str, Any], step: int | None = None) -> None:
            own = None if "step" in metrics else trainer.global_step
            log_metrics(metrics, step or own)

        trainer._logger_connector.log_metrics = log_at_step  # type: ignore[method-assign]
        return trainer

    def _validate_at_max_steps(self, trainer: Trainer) -> None:
        """Validate after the last of `trainer.max_steps`, wherever in an epoch that is.

        Lightning ends without: the run would have no objective for its final weights.
        """
        loop, last = trainer.fit_loop.epoch_loop, self.conf["max_steps"]
        due = loop._should_check_val_fx

        def due_or_last(data_fetcher: Any) -> bool:
            at_end = 0 < last <= loop.global_step and trainer.enable_validation
            return at_end or due(data_fetcher)

        loop._should_check_val_fx = due_or_last  # type: ignore[method-assign]

    def _strategy(self) -> Strategy | str:
        if distributed.world_size() == 1:
            device = torch.device("cuda", 0) if self.gpu else torch.device("cpu")
            return SingleDeviceStrategy(device=device)
        if self.conf["strategy"] == "fsdp":
            from .sharding import ShardedStrategy

            return ShardedStrategy(self.core)
        return DDPStrategy(gradient_as_bucket_view=True, static_graph=False)

    def _loggers(self, step: int, resumed: bool) -> list[Logger]:
        loggers: list[Logger] = [metrics.CSVLog(str(self.directory), step if resumed else 0)]
        for name, node in self.config["logger"].items():
            logger = instantiate(node, self.trusted, f"logger.{name}")
            if not isinstance(logger, Logger):
                raise ConfigError(
                    f"logger.{name}._target_ is {node.get('_target_')!r}, which makes a "
                    f"{type(logger).__name__}, but must be a Lightning Logger."
                )
            if isinstance(logger, TensorBoardLogger):
                # Steps after the checkpoint, or all of a run that was killed before its first one,
                # are trained again: hide what was logged for them.
                logger._kwargs["purge_step"] = step + 1 if resumed else 0
            loggers.append(logger)
        return loggers

    def _debug_callbacks(self) -> list[Any]:
        if self.debug == "profile":
            from .profiling import Profile

            return [Profile(self.directory, self.config["debug"]["profile_steps"], self.gpu)]
        return []

    def _greet(self, model: LightningModule, resume: Checkpoint | None) -> None:
        count = sum(p.numel() for p in model.parameters())
        device = "GPU" if self.gpu else "CPU"
        processes = distributed.world_size()
        where = f"{processes} processes, {device}" if processes > 1 else device
        say = self.core.progress.say
        say(f"{type(model).__name__}: {count:,} parameters; {where}; {self.conf['precision']}")
        if resume is not None:
            where = resume.uri if resume.place.is_remote else shown(Path(resume.uri))
            say(f"going on from step {resume.step}: {where}")

    def _log_config(self, trainer: Trainer) -> None:
        """Give every logger what this run trains, as flat keys: model.width, optim.lr and so on."""
        facts = {key: self.config[key] for key in ("model", "data", "optim", "trainer", "seed")}
        for logger in trainer.loggers:
            logger.log_hyperparams(flat(facts))

    def _finish_loggers(self, trainer: Trainer) -> None:
        """End what Lightning leaves to the interpreter's exit, which a rank may never reach."""
        for logger in trainer.loggers if self.first else []:
            experiment = getattr(logger, "experiment", None)
            finish = getattr(experiment, "finish", None)  # Weights & Biases
            if callable(finish):
                finish()

    # -------------------------------------------------------------------------------- afterwards

    def _test(
        self, trainer: Trainer, model: LightningModule, data: LightningDataModule
    ) -> dict[str, float]:
        """Test the best weights, or the last where nothing was saved."""
        if not (is_overridden("test_step", model) and is_overridden("test_dataloader", data)):
            return {}
        goal = self.config["objective"]
        best = self.store.ranked(goal["metric"], goal["mode"]) if self.store and self.first else []
        chosen, state = self._agreed(reading.first_whole(best, lambda *passed_over: None))
        if chosen is not None:
            with self._on_every_machine(chosen) as found:
                self._load_weights(model, found, state or self._state(found))
        del state
        values = trainer.test(model, datamodule=data, verbose=False)
        return {name: value for result in values for name, value in result.items()}

    def _on_every_machine(self, found: Checkpoint) -> contextlib.AbstractContextManager[Checkpoint]:
        return handover.on_every_machine(found, self.conf["start_timeout"])

    def _load_weights(
        self, model: LightningModule, found: Checkpoint, state: reading.State
    ) -> None:
        if found.is_sharded:
            from .checkpoints.shards import load_weights

            load_weights(model, found)
        else:
            model.load_state_dict(state["state_dict"])

    def _result(self, trainer: Trainer, tested: dict[str, float], rate: float) -> dict[str, Any]:
        goal = self.config["objective"]
        best, last = committed(self.store, goal["metric"], goal["mode"])
        values = {**self.core.metrics, **tested}
        told = [self._told(one, values, trainer.global_step) for one in self.core.goals]
        return {
            "status": "completed",
            "exit_code": 0,
            "name": self.config["run"]["name"],
            "objective": told[0],
            **({"others": told[1:]} if told[1:] else {}),
            "metrics": {name: _finite(value) for name, value in values.items()},
            "checkpoints": {
                "best": _place_of(best),
                "last": _place_of(last),
            },
            "steps": trainer.global_step,
            "epochs": finished_epochs(trainer),
            "seconds": round(self.core.seconds_before, 3),
            "samples_per_second": round(rate, 1),
            "world_size": distributed.world_size(),
            "identity": self.config["run"]["identity"],
            "code_digest": self.config["run"]["code_digest"],
            "versions": versions(),
        }

    def _told(self, goal: Goal, values: dict[str, float], step: int) -> dict[str, Any]:
        """Return what became of an objective: its value and the step at which it was logged."""
        chosen = goal.best if goal.value == "best" else None
        if chosen is None and goal.metric in values:
            chosen = {"value": values[goal.metric], "step": step}
        if chosen is None:
            log.warning(
                "objective.metric is %r, but nothing logged it; logged were: %s",
                goal.metric,
                ", ".join(sorted(values)) or "nothing",
            )
        found = chosen or {"value": None, "step": None}
        return {"metric": goal.metric, "mode": goal.mode, **found}


def _place_of(found: Checkpoint | None) -> str | None:
    """Return where a checkpoint is: in S3, or below the run directory."""
    if found is None:
        return None
    return found.uri if found.place.is_remote else f"checkpoints/{found.name}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version(), "hydra-trainer": __version__}
    return found | {name: metadata.version(name) for name in PACKAGES}


def write_environment(directory: Path, config: dict[str, Any]) -> None:
    """Write environment.json: which code and which packages this run was trained with."""
    known = {
        "code_digest": get(config, "run.code_digest"),
        "identity": get(config, "run.identity"),
        "versions": versions(),
        "platform": platform.platform(),
    }
    (directory / "environment.json").write_text(json.dumps(known, indent=1) + "\n")


def flat(node: dict[str, Any], key: str = "") -> dict[str, Any]:
    """Return nested dicts as one, with dotted keys."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        path = f"{key}.{name}" if key else name
        found |= flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _mix(seed: int, rank: int) -> int:
    """Return a seed for one rank, far from those of other ranks and other seeds (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + rank * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) % 2**32
