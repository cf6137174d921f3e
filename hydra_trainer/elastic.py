"""torchrun, with an ending that can be read: which rank ended first, and how.

The command line is torchrun's own. When ranks fail for good, torchrun prints a table and exits 1;
this adds failures.json to the notes of the bootstrap (see bootstrap.py).
"""

import os
import sys
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .bootstrap import NOTES, write_json


def main(arguments: list[str]) -> int:
    """Run torchrun with `arguments`. Returns 0 when all ranks returned 0, else 1."""
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        found = [{"rank": rank, "exit_code": failure.exitcode} for rank, failure in failures]
        if NOTES in os.environ:
            write_json(Path(os.environ[NOTES], "failures.json"), {"failures": found})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
