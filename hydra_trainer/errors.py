"""Everything this package raises on purpose.

HydraTrainerError
├── ConfigError        the configuration is wrong; nothing was started (exit code 2)
├── DataError          the data are missing, empty or damaged
├── CheckpointError    a checkpoint cannot be written, read, or belongs to something else
├── StorageError       S3 did not do what was asked; an OSError, too
│   ├── Gone           there is no such object
│   ├── Exists         there is one already, and there was to be none
│   └── Changed        the object is not the one that was meant
├── LaunchError        a job cannot be started, found or stopped
│   └── Full           the place takes no more jobs now
├── JobFailed          a job ended, and not well; it holds the job's exit code
└── NaNLossError       the loss stopped being a number
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class HydraTrainerError(Exception):
    """The base class: catch it to catch everything that this package raises on purpose."""


class ConfigError(HydraTrainerError, ValueError):
    """One or more faults in the configuration, reported together.

    `problems` holds one sentence for each: the key, its value, what is allowed, what to type.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(HydraTrainerError):
    """The data are missing, empty or damaged; the message names the file."""


class CheckpointError(HydraTrainerError):
    """A checkpoint cannot be written, cannot be read, or is another model's."""


class StorageError(HydraTrainerError, OSError):
    """S3 did not do what was asked. The message names action and object, and says what to do."""


class Gone(StorageError):
    """There is no such object."""


class Exists(StorageError):
    """There is such an object already, and it was to be written only if there is none."""


class Changed(StorageError):
    """The object is not the one that was meant: its ETag is another one."""


class LaunchError(HydraTrainerError):
    """A job cannot be started, found, followed or stopped."""


class Full(LaunchError):
    """The place takes no more jobs now; it may when one of those that it has has ended."""


class JobFailed(HydraTrainerError):
    """A job ended, and not well. `exit_code` is the job's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NaNLossError(HydraTrainerError):
    """The loss is NaN or infinite."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' with the closest known name, or nothing when none is close.

    Close is what differs by little, or what the word is the beginning of.
    """
    names = list(known)
    begun = [name for name in names if len(word) > 2 and name.startswith(word)]
    close = get_close_matches(word, names, n=1, cutoff=0.6) or begun[:1]
    return f" Did you mean {close[0]!r}?" if close else ""
