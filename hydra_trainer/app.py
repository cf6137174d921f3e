"""The command: from what the user typed to a job, and from its result to a summary.

Imports hydra and yaml, and nothing heavier: torch comes in when training starts here, and never
when the job runs elsewhere.
"""

import contextlib
import gc
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, HydraTrainerError, JobFailed, did_you_mean
from .job import CONFIG_ERROR, DONE, USER_ERROR, JobState


def main() -> None:
    """Run what the command line says, and exit with the job's code (see job.py)."""
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        from .help import text

        print(text(words))
        return
    gc.disable()  # a tenth of the time to the start: nothing is thrown away until a job runs
    # Threads of an operation on the CPU that wait for each other give up the core meanwhile: on a
    # machine that others use too, spinning makes training ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Hydra would print its own version of every error and exit with 1.
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _hydra_main()
    except SystemExit:
        raise
    except BaseException as error:
        if before == "1" or sys.gettrace() is not None:
            raise
        sys.exit(_explain(error, words))
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _hydra_main() -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from . import config, quick

    quick.shorten_start(sys.argv[1:])
    failed: list[Exception] = []

    def task(cfg: Any) -> float | None:
        try:
            return run(cfg)
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            failed.append(error)  # Hydra would print a line of its own before it raised this again
            return None

    config.register()
    if {"-m", "--multirun"}.intersection(sys.argv[1:]):
        from hydra_plugins.hydra_trainer import launcher, service_sweeper, sweeper

        launcher.register()
        sweeper.register()
        service_sweeper.register()
    hydra.main(version_base="1.3", config_path="pkg://hydra_trainer.conf", config_name="config")(
        task
    )()
    if failed:
        raise failed[0]


def run(cfg: Any) -> float | None:
    """Hydra's task function: one job, from its configuration to its objective."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from . import config, launcher, report
    from .preemption import Stopped
    from .targets import TRUSTED, instantiate

    directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        if HydraConfig.get().mode is RunMode.RUN:
            _refuse_sweep(HydraConfig.get().overrides.task)
        plain = config.validate(cfg)
        job = config.to_job(plain, directory)
        trusted = (*TRUSTED, *plain["trusted_modules"])
        place = instantiate(config.arguments(plain, "launcher"), trusted, "launcher")
        if place.dry_run:
            if HydraConfig.get().mode is RunMode.MULTIRUN and place.language == "yaml":
                print("---")  # between the documents of a sweep
            print(launcher.text(place.render(job), place.language), end="")
            return None
        if place.check:
            sys.exit(DONE if place.preflight(job) else CONFIG_ERROR)
        if not gc.get_freeze_count():  # in the first job of a sweep: what is there by now stays,
            gc.freeze()  # and need not be looked through, a fifth of the time of a submit
        gc.enable()
        handle, status = launcher.run(place, job)
    except Stopped as error:
        report.stopped(Path(job.output), error.unsaved)
        sys.exit(error.exit_code)
    finally:
        with contextlib.suppress(OSError):
            directory.rmdir()  # Hydra made it; where nothing was started, nothing stays
    if not status.state.ended:
        print(handle)
        return None
    result = status.result or {}
    if status.state is JobState.SUCCEEDED:
        report.summary(result, job, sys.argv[1:], handle if place.elsewhere else None)
        value = (result.get("objective") or {}).get("value")
        return None if value is None else float(value)
    if status.state is JobState.CANCELLED:
        if not place.elsewhere:
            report.stopped(Path(job.output), result.get("unsaved"))
        else:
            launcher.say(f"{status.message} The same command sends it again, to go on from there.")
        sys.exit(status.exit_code or 143)
    text = report.failed(result) if result.get("error") else f"error: {status.message}"
    if place.elsewhere:
        text += f"\nTo see what happened and what to change: hydra-trainer why {handle}"
    raise JobFailed(text, status.exit_code or USER_ERROR)


def _refuse_sweep(words: Sequence[str]) -> None:
    """Raise ConfigError where somebody types how to sweep, and not -m."""
    if typed := [word for word in words if word.startswith(("sweep=", "sweep."))]:
        raise ConfigError(
            f"{typed[0]} is about many jobs, but this command runs one. {_with_m(words)}"
        )


def _with_m(words: Sequence[str]) -> str:
    from .report import program

    return f"Type -m as well: {program()} -m {shlex.join(words)}"


def _explain(error: BaseException, words: Sequence[str]) -> int:
    """Print an error as a user needs it, and return the exit code that it stands for."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, JobFailed):
        print(error, file=sys.stderr)
        return error.exit_code
    if isinstance(error, ConfigError):
        _print_problems(error.problems)
        return CONFIG_ERROR
    if isinstance(error, HydraTrainerError):
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    if isinstance(error, HydraException | OmegaConfBaseException):
        _print_problems([_hydra_problem(error, words)])
        return CONFIG_ERROR
    if isinstance(error, KeyboardInterrupt):
        return 130
    traceback.print_exception(error)
    return USER_ERROR


def _print_problems(problems: Sequence[str]) -> None:
    many = f"{len(problems)} problems in the configuration:" if len(problems) > 1 else "error:"
    lines = [f"  - {text}" for text in problems] if len(problems) > 1 else list(problems)
    print(many, *lines, sep="\n" if len(problems) > 1 else " ", file=sys.stderr)


def _hydra_problem(error: BaseException, words: Sequence[str]) -> str:
    """Return what Hydra found wrong, with the names that exist."""
    text = str(error).strip()
    if found := re.match(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], words)
    if found := re.search(r"Could not find '(\S+)/([^'/]+)'", text):
        group, name = found.groups()
        options = [line.strip() for line in text.split("\n") if line.startswith("\t")]
        options = [option for option in options if "=" not in option]  # the search path
        return (
            f"{group}={name}: there is no such file.{did_you_mean(name, options)} "
            f"{group} can be: {', '.join(options)}."
        )
    if found := re.match(r"Sweep parameters '(.*)' requires --multirun", text):
        sweep = "sweep=optuna " if "interval(" in found[1] and "sweep=" not in str(words) else ""
        return (
            f"{found[1]} is several values, but this command runs one job. "
            f"{_with_m([*sweep.split(), *words])}"
        )
    if "does not support sweep type" in text:
        spaces = [word for word in words if "interval(" in word]
        return (
            f"{shlex.join(spaces)} has no end of values, but sweep=grid runs every combination. "
            "Type sweep=optuna as well, or some of the values: optim.lr=1e-4,1e-3."
        )
    cause = str(error.__cause__ or "").strip().split("\n")[0]
    return f"{text}\n{cause}" if cause and cause not in text else text


def _unknown_key(name: str, words: Sequence[str]) -> str:
    """Say which part of a dotted key does not exist, and what there is instead."""
    choices = [f"sweep={file}" for file in _sweeps_with(name)]
    if choices and not set(choices).intersection(words):
        which = " or ".join(choices)
        return f"{name} is not in the configuration. It belongs to {which}: type that, too."
    node: Any = _composed(words)
    known = ""
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            break
        node, known = node[part], f"{known}{part}."
    siblings = [key for key in node if key != "run"] if isinstance(node, dict) else []
    hint = did_you_mean(name[len(known) :].split(".")[0], siblings).replace("'", f"'{known}", 1)
    return (
        f"{name} is not in the configuration.{hint} {known.rstrip('.') or 'It'} has: "
        f"{', '.join(siblings) or 'nothing'}. To add a key on purpose, type +{name}=..."
    )


def _sweeps_with(name: str) -> list[str]:
    """Return the files of the group `sweep` that have a key: `sweep.n_trials`."""
    import yaml

    from .help import conf_folder

    group, _, key = name.partition(".")
    files = sorted((conf_folder() / "sweep").glob("*.yaml")) if group == "sweep" else []
    return [file.stem for file in files if key in yaml.safe_load(file.read_text())]


def _composed(words: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of the group choices that are valid."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    choices = [word for word in words if re.match(r"[\w/]+=[^,(]*$", word)]
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        for overrides in (choices, []):
            with contextlib.suppress(Exception):
                cfg = compose("config", overrides)
                return dict(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
    return {}
