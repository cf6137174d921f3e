"""`hydra-trainer` and `python -m hydra_trainer`: train, or ask after a job by its handle."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import HydraTrainerError
from .job import CONFIG_ERROR, DONE, USER_ERROR, JobHandle, JobState

VERBS = ("status", "logs", "wait", "cancel", "list")


def main() -> None:
    """Take a verb, or else train with the words as Hydra overrides."""
    # As with `python -m`: your own package lies where you type.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    words = sys.argv[1:]
    if words[:1] and words[0] in VERBS:
        sys.exit(verb(words[0], words[1:]))
    from .app import main as train

    train()


def verb(name: str, words: Sequence[str]) -> int:
    """Run one verb on a handle and return the exit code."""
    from .launchers.local import LocalLauncher

    launcher = LocalLauncher()
    try:
        if name == "list":
            for handle, status in launcher.list():
                print(f"{status.state:<10} {handle}  {status.message}".rstrip())
            return DONE
        if not words:
            more = " [-f] [--rank N]" if name == "logs" else ""
            print(f"usage: hydra-trainer {name} HANDLE{more}", file=sys.stderr)
            return CONFIG_ERROR
        handle = JobHandle.parse(words[0])
        if name == "logs":
            rank = int(words[words.index("--rank") + 1]) if "--rank" in words else 0
            for line in launcher.logs(handle, rank=rank, follow="-f" in words):
                print(line, flush=True)
            return DONE
        if name == "cancel":
            launcher.cancel(handle)
            return DONE
        status = launcher.wait(handle) if name == "wait" else launcher.status(handle)
    except HydraTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    objective = (status.result or {}).get("objective") or {}
    found = f"{objective['metric']}={objective['value']}" if objective else ""
    print(" ".join(part for part in (status.state, status.reason, status.message, found) if part))
    if name == "status":
        return DONE
    return DONE if status.state is JobState.SUCCEEDED else status.exit_code or USER_ERROR


if __name__ == "__main__":
    main()
