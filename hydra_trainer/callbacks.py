"""What happens around the steps: stopping, saving, logging, showing. One Lightning callback.

One, because each callback costs every step a call per hook, and the order of these four matters:
a loss is looked at before a state is saved, and a state is saved before the process stops.

Positions. A checkpoint stands between two things that training does, and says so in terms of
Lightning's own loop counters, so that the stock Trainer continues with the next one:

    mid          after a batch, with more to come in this epoch
    pending      after a batch after which validation is due, which has not run
    validated    after a validation in the middle of an epoch
    epoch end    everything of an epoch is done, its validation included
"""

import logging
import math
import random
import time
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from . import distributed
from .checkpoints.files import STATE
from .checkpoints.store import Checkpoint, Store
from .checkpoints.writing import Writer
from .distributed import Agreement
from .errors import CheckpointError, NaNLossError
from .goals import goals
from .pieces import together
from .preemption import StopFlag, Stopped
from .progress import Progress

if TYPE_CHECKING:
    from .data import BatchSampler
    from .mirror import Mirror

log = logging.getLogger(__name__)

KEY = "hydra_trainer"
"""Our section of a checkpoint."""

PIECE = 1 << 20  # weights that a thread looks at at once


def random_state() -> dict[str, Any]:
    """Return this process's random states, as tensors and plain values."""
    version, keys, gauss = random.getstate()
    name, numbers, *rest = np.random.get_state()
    state = {
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(numbers).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set this process's random states again."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = state["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Core(Callback):
    """Stops, saves, logs and shows; restores what Lightning does not.

    Args:
        flag: whether this process was asked to stop.
        progress: who shows how it goes.
        config: the resolved job configuration.
        store: where checkpoints go; None switches saving off.
        writer: who writes them.
        facts: entries for every manifest: identity, model.
        mirror: who brings what is beside the checkpoints to S3, on rank 0.
    """

    def __init__(
        self,
        flag: StopFlag,
        progress: Progress,
        config: dict[str, Any],
        store: Store | None,
        writer: Writer,
        facts: dict[str, Any],
        mirror: "Mirror | None" = None,
    ) -> None:
        self.flag = flag
        self.mirror = mirror
        self.progress = progress
        self.store = store
        self.writer = writer
        self.facts = facts
        self.trainer_conf: dict[str, Any] = config["trainer"]
        self.checkpoint_conf: dict[str, Any] = config["checkpoint"]
        self.goals = goals(config["objective"])
        self.sampler: BatchSampler | None = None
        self.metrics: dict[str, float] = {}
        self.samples = 0
        self.seconds_before = 0.0
        self.fit_started = time.monotonic()
        self.resume: dict[str, Any] | None = None
        self._restore: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._validated_batches = 0
        self._iterate_anew = False
        self._position = "mid"
        self._world = distributed.world_size()
        self._agreement = Agreement(flag, 1, None)
        self._log_every = int(self.trainer_conf["log_every_n_steps"])
        self._save_every = self.checkpoint_conf["every_n_steps"] if store else None
        self._loss_sum: Tensor | None = None
        self._loss_count = 0
        self._logged_step = -1
        self._saved: str | None = None
        self._finite_step = 0

    # ------------------------------------------------------------------------------ start, end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._world > 1 and self._agreement._group is None:
            conf = self.trainer_conf
            side = distributed.side_group(conf["start_timeout"])
            self._agreement = Agreement(self.flag, conf["stop_check_every_n_steps"], side)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flag.install()
        distributed.set_timeout(self.trainer_conf["steady_timeout"])
        self.progress.start(*_length(trainer))
        self.fit_started = time.monotonic()
        self._logged_step = trainer.global_step
        if self._iterate_anew:
            assert trainer.fit_loop._data_fetcher is not None
            iter(trainer.fit_loop._data_fetcher)
        if self.resume is not None:
            if self.resume["position"] == "epoch end":
                # The restored counters stand at the start of an epoch that no loop has begun:
                # nothing is restarting, and Lightning must not look for what to skip.
                trainer.fit_loop.restarting = False
            trainer.should_stop = bool(self.resume["should_stop"])
            if self.store is not None:
                # It must not be written over: killed in between, the run would lose its place.
                self._saved = self.store.name(trainer.global_step, self.resume["position"])
        self._stop_if_agreed(trainer, save=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agreement.settle()
        self.writer.finish()
        self.writer.check()
        if self.store is None or not self._on_any_rank(self.writer.error is not None):
            return
        # Once more, in the foreground: the last weights are the ones that matter most.
        self.writer.asynchronous = False
        self._saved, self._position = None, "epoch end"
        self._save(trainer)
        if self.writer.error is not None:
            raise CheckpointError(
                f"The final weights could not be saved: {self.writer.error}. Make room in "
                f"{self.store.uri} and run the same command again: it goes on from the last "
                "checkpoint."
            )

    def _on_any_rank(self, here: bool) -> bool:
        if self._world == 1:
            return here
        value = torch.tensor(int(here))
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._agreement._group)
        return bool(value)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.writer.finish()
        self.progress.stop()

    # ------------------------------------------------------------------------------------ steps

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_random()
        if self.sampler is not None:
            self.sampler.set_position(trainer.current_epoch, 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._restore is not None:
            self._restore_random()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        step = loop.global_step
        if outputs is not None:
            self._look_at(outputs, step)
        samples = self.sampler.batch_size if self.sampler is not None else 0
        self.samples += samples
        self.progress.step(trainer.current_epoch, batch_idx + 1, samples)
        self.writer.check()
        if step % self._log_every == 0 and step != self._logged_step:
            self._log_train(trainer, outputs, step)
        signum = self._agreement.check()
        due = self._save_every is not None and step % self._save_every == 0
        if not (due or signum) or loop._should_accumulate():
            # In the middle of an accumulation: remember, and stop at the optimizer's next step.
            self.flag.signum = self.flag.signum or signum
            return
        self._position = "pending" if self._validation_follows(trainer) else "mid"
        if signum or self._position == "mid":
            self._save(trainer)
        if signum:
            self._stop(signum)

    def _look_at(self, outputs: Any, step: int) -> None:
        """Add the loss to the running sum; on the CPU, where it costs nothing, check it too."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._loss_sum = loss.detach() if self._loss_sum is None else self._loss_sum + loss.detach()
        self._loss_count += 1
        if loss.device.type == "cpu":
            if not math.isfinite(loss.item()):
                self._refuse_loss(step, step)
            self._finite_step = step

    def _log_train(self, trainer: Trainer, outputs: Any, step: int) -> None:
        """Log the mean loss since the last time, over all ranks: the only look at a GPU's value."""
        self._logged_step = step
        if self._loss_sum is None:
            return
        mean = self._loss_sum / self._loss_count
        if self._world > 1:
            dist.all_reduce(mean, dist.ReduceOp.SUM)
            mean /= self._world
        values = {"train/loss": mean.item()}
        if isinstance(outputs, dict):
            for name, value in outputs.items():
                if name != "loss" and isinstance(value, Tensor) and value.numel() == 1:
                    values[name if "/" in name else f"train/{name}"] = value.item()
        self._loss_sum, self._loss_count = None, 0
        if not math.isfinite(values["train/loss"]):
            self._refuse_loss(self._finite_step + 1, step)
        self._finite_step = step
        values["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        self.progress.metrics({"train/loss": values["train/loss"]})

    def _refuse_loss(self, first: int, last: int) -> None:
        at = f"at step {last}" if first == last else f"between steps {first} and {last}"
        self._refuse(f"The loss became NaN or infinite {at}")

    def _refuse(self, what: str) -> NoReturn:
        self.writer.finish()
        good = self.store.latest() if self.store else None
        where = f"the last good checkpoint is {good.uri}" if good else "there is no checkpoint"
        raise NaNLossError(
            f"{what}; {where}. Common causes: a learning rate that is too high (optim.lr), no "
            "gradient clipping (trainer.gradient_clip_val=1.0), bad samples. debug=default or "
            "trainer.detect_anomaly=true names the operation."
        )

    def _validation_follows(self, trainer: Trainer) -> bool:
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        follows = loop._should_check_val_fx(fetcher) and trainer.enable_validation
        return bool(follows) or loop.batch_progress.is_last_batch

    # ------------------------------------------------------------------------------- validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._restore_random()
        self._before_validation = random_state()
        self._position = "pending"
        total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        trainer.fit_loop.epoch_loop.max_steps = int(self.trainer_conf["max_steps"])
        # A resumed run counts the batch in which it was interrupted a second time.
        self._validated_batches = total.ready = total.started = _processed_of(total)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_agreed(trainer, save=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._before_validation = None
        self._take_metrics(trainer)
        self._position = "validated"
        loop = trainer.fit_loop.epoch_loop
        if self.store and not loop.batch_progress.is_last_batch and not loop._should_accumulate():
            self._save(trainer)

    def _take_metrics(self, trainer: Trainer) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.metrics |= values
        self.progress.metrics(values)
        for goal in self.goals:
            goal.take(values, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.epoch(trainer.current_epoch, trainer.global_step)
        self._finite_loss(trainer.global_step)
        last = finished_epochs(trainer)
        ends = last >= (trainer.max_epochs or 0) > 0 or trainer.should_stop
        ends = ends or 0 < trainer.max_steps <= trainer.global_step
        self._position = "epoch end"
        if ends or last % self.checkpoint_conf["every_n_epochs"] == 0:
            self._save(trainer)
        if not ends:
            self._stop_if_agreed(trainer, save=True)

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._stop_if_agreed(trainer, save=False)

    # ------------------------------------------------------------------------------ stop, save

    def _stop_if_agreed(self, trainer: Trainer, save: bool) -> None:
        signum = self._agreement.check()
        if signum:
            if save:
                self._save(trainer)
            self._stop(signum)

    def _stop(self, signum: int) -> None:
        self._agreement.settle()
        self.writer.finish()
        self.writer.check(is_ending=True)
        raise Stopped(signum, str(self.writer.error) if self.writer.error else None)

    def _finite_loss(self, step: int) -> None:
        if self._loss_sum is not None and not math.isfinite(self._loss_sum.item()):
            self._refuse_loss(self._finite_step + 1, step)

    def _finite_weights(self, trainer: Trainer, step: int) -> None:
        """Refuse what a NaN gradient made of the weights: the loss before it was finite."""
        if not weights_are_finite(trainer.lightning_module):
            self._refuse(f"The weights became NaN or infinite by step {step}")

    def _save(self, trainer: Trainer) -> None:
        """Save a checkpoint of the current position. All ranks call it together."""
        if self.store is None:
            return
        step = trainer.global_step
        done = self._position in ("validated", "epoch end")
        name = self.store.name(step, self._position)
        if name == self._saved:
            return
        # Never save weights that a NaN has reached.
        self._finite_loss(step)
        self._finite_weights(trainer, step)
        meta = {
            **self.facts,
            "step": step,
            "epoch": trainer.current_epoch,
            "position": self._position,
            "world_size": self._world,
            # A copy: the manifest is written later, when there may be newer ones.
            "metrics": dict(self.metrics) if done else {},
        }
        self._saved = name
        path = f"{self.store.uri}/{name}/{STATE}"
        trainer.save_checkpoint(path, weights_only=False, storage_options=meta)

    def committed(self, name: str) -> None:
        """Delete what the policy does not keep, and mirror the rest of the run; after a commit."""
        if self.store is None:
            return
        conf, goal = self.checkpoint_conf, self.goals[0]
        try:
            self.store.prune(conf["keep_last"], conf["keep_best"], goal.metric, goal.mode)
        except OSError as error:  # the checkpoint is there all the same
            log.warning("Old checkpoints are left for the next time: %s", error)
        if self.mirror is not None:
            self.mirror.push(name)

    def seconds(self) -> float:
        """Return how long this run has trained, over all its sittings."""
        return self.seconds_before + time.monotonic() - self.fit_started

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        pending = self._position == "pending" and self._before_validation is not None
        state = {
            "random": self._before_validation if pending else random_state(),
            "loss": [self._loss_sum, self._loss_count],
        }
        states: list[Any] = [state]
        if self._world > 1:
            states = [None] * self._world
            dist.all_gather_object(states, state, group=self._agreement._group)
        checkpoint[KEY] = {
            "position": self._position,
            "ranks": states,
            "epoch": finished_epochs(trainer),
            "batch": _processed(trainer.fit_loop.epoch_loop.batch_progress),
            "should_stop": trainer.should_stop,
            "best": [goal.best for goal in self.goals],
            "metrics": self.metrics,
            "seconds": self.seconds(),
        }
        loop = checkpoint["loops"]["fit_loop"]
        if not pending:
            total = loop["epoch_loop.val_loop.batch_progress"]["total"]
            self._validated_batches = total["processed"]
        _set_position(loop, self._position, self._validated_batches)

    # ----------------------------------------------------------------------------------- resume

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if KEY not in checkpoint:
            raise CheckpointError(
                "This checkpoint was not written by hydra-trainer, so it cannot be resumed. To "
                "start from its weights, type checkpoint.init_from=PATH."
            )
        state = checkpoint[KEY]
        self.resume = state
        self.metrics = dict(state["metrics"])
        for goal, best in zip(self.goals, state["best"], strict=False):  # there may be more by now
            goal.best = best
        self.seconds_before = float(state["seconds"])
        if state["position"] == "pending" and trainer.max_steps == checkpoint["global_step"]:
            # Only the last validation is left, and Lightning would see nothing left to do.
            trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps + 1
        states = state["ranks"]
        if self.sampler is not None:
            # A strategy that restores after its set-up has made the loader already.
            epoch, batches = self.position()
            self.sampler.set_position(epoch, batches * self.sampler.batch_size)
            self._iterate_anew = True
        # A rank that did not exist then has no state to continue; it starts one of its own.
        mine = states[distributed.rank()] if distributed.rank() < len(states) else {}
        self._restore = mine.get("random")
        self._loss_sum, self._loss_count = mine.get("loss", (None, 0))

    def position(self) -> tuple[int, int]:
        """Return (epoch, batches of it that are done), as the restored checkpoint says."""
        if self.resume is None:
            return 0, 0
        if self.resume["position"] == "epoch end":
            return int(self.resume["epoch"]), 0
        return int(self.resume["epoch"]), int(self.resume["batch"])

    def _restore_random(self) -> None:
        """Set the random states again, as late as possible: setting up draws from them."""
        if self._restore is not None:
            set_random_state(self._restore)
            self._restore = None


def _length(trainer: Trainer) -> tuple[int, int]:
    """Return how many epochs this run has at most, and the batches of each."""
    batches = int(trainer.num_training_batches)
    epochs = trainer.max_epochs or 1
    if trainer.max_steps > 0:
        wanted = math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / max(batches, 1))
        epochs = min(epochs, wanted) if epochs > 0 else wanted
    return epochs, batches


def weights_are_finite(model: torch.nn.Module) -> bool:
    """Tell whether no weight is NaN or infinite: each such one makes a sum that is neither."""
    parts = [p.detach() for p in model.parameters() if p.is_floating_point()]
    here = [part.to_local() if hasattr(part, "to_local") else part for part in parts]
    # numpy's sums take one thread each: see pieces.py.
    is_plain = [p.is_cpu and p.dtype == torch.float32 and p.is_contiguous() for p in here]
    pieces = [
        flat[at : at + PIECE]
        for part, plain in zip(here, is_plain, strict=True)
        if plain
        for flat in [part.numpy().reshape(-1)]
        for at in range(0, len(flat), PIECE)
    ]
    found: list[float] = []

    def add(piece: Any) -> None:
        with np.errstate(all="ignore"):  # what it warns of is what is looked for
            found.append(float(piece.sum()))

    together(add, pieces)
    sums = [
        part.sum(dtype=torch.float32)
        for part, plain in zip(here, is_plain, strict=True)
        if not plain
    ]
    if sums:
        found.append(torch.stack(sums).sum().item())
    return all(map(math.isfinite, found))


def finished_epochs(trainer: Trainer) -> int:
    """Return how many epochs are done, counting one whose end is being handled."""
    return _processed(trainer.fit_loop.epoch_progress)


def _processed(progress: Any) -> int:
    return _processed_of(progress.current)


def _processed_of(counts: Any) -> int:
    # Lightning's annotation is that of a base class that lacks the counter.
    return int(counts.processed)


def _set_position(loop: dict[str, Any], position: str, validated: int) -> None:
    """Rewrite Lightning's loop counters so that they say exactly where we are.

    Lightning infers from small differences between its counters in which hook a checkpoint was
    saved, and its inference has gaps: saved in the last batch of an epoch, the epoch's validation
    is skipped on resume; saved at an epoch's end, the epoch's end runs twice. `validated` is how
    many batches all validations before this one had.
    """
    batches = loop["epoch_loop.batch_progress"]
    epochs = loop["epoch_progress"]
    validation = loop["epoch_loop.val_loop.batch_progress"]
    if position == "epoch end":
        for counts in (epochs["total"], epochs["current"]):
            done = counts["processed"]
            counts.update(ready=done, started=done, processed=done, completed=done)
        batches["total"]["completed"] = batches["total"]["processed"]
        batches["current"].update(ready=0, started=0, processed=0, completed=0)
        batches["is_last_batch"] = False
    elif position == "pending":
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]
        # "Stopped while validating its first batch" is what makes Lightning validate first.
        begun = validated + 1
        validation["total"].update(
            ready=begun, started=begun, processed=validated, completed=validated
        )
        validation["current"].update(ready=1, started=1, processed=0, completed=0)
        validation["is_last_batch"] = False


def committed(store: Store | None, metric: str, mode: str) -> tuple[Checkpoint | None, ...]:
    """Return the best and the last whole checkpoint."""
    if store is None:
        return None, None
    best = next((c for c in store.ranked(metric, mode) if c.fault() is None), None)
    return best, store.latest()
