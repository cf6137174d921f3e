"""Objects in S3, below a prefix: what the training side reads and writes them through.

    objects = Objects("s3://bucket/runs/one", Settings(region="eu-west-1"))
    objects.put("manifest.json", b"{}", if_absent=True)
    with objects.writer("state.bin") as writer:
        writer.write(weights)
    view = objects.get("state.bin", start=64, length=1024)

Requests are tried again within a deadline, and what comes back is what was asked for, whole and of
one object, or a StorageError that says what to do. The library behind it (obstore, the extra [s3])
is imported when the first request is made.
"""

from .settings import Settings
from .store import Facts, Objects, Writer

__all__ = ["Facts", "Objects", "Settings", "Writer"]
