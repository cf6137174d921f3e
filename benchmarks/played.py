"""A SageMaker whose jobs nobody runs: each ends as soon as it is there, with a result in S3.

What is real: the client, the server and its S3, the submitter. What is not: instances, training.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hydra_trainer.embedded.sagemaker import Service, jobs


class Played:
    """Use it as a context. `ran` counts how often each job was run. There are no rate limits.

    The objective of a job is its number, in the order of creation.
    """

    def __init__(self, home: Path) -> None:
        self.service = Service(home, limits=False)
        self.ran: Counter[str] = Counter()

    def __enter__(self) -> "Played":
        self.service.__enter__()
        self.service.objects.make("bench")
        self.service.runs.start = self._run  # type: ignore[method-assign]
        return self

    def __exit__(self, *exc: Any) -> None:
        self.service.__exit__(*exc)

    @property
    def env(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        region = {"AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.service.endpoint, **keys, **region}

    def calls(self) -> int:
        return self.service.calls.total()

    def _run(self, job: jobs.Job) -> None:
        objective = {"metric": "val/loss", "mode": "min", "value": float(len(self.ran))}
        result = {"status": "completed", "exit_code": 0, "seconds": 1.5, "objective": objective}
        self.ran[job.name] += 1
        place = job.request["CheckpointConfig"]["S3Uri"].removeprefix("s3://").rstrip("/")
        bucket, _, key = place.partition("/")
        self.service.objects.put(bucket, f"{key}/result.json", json.dumps(result).encode())
        with self.service.jobs.change(job):
            job.enter(jobs.COMPLETED, "Completed", "Training job completed")
