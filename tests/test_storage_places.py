"""The same run, whatever its data come through: a disk, a claim, a channel, or S3. Bit for bit."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hydra_trainer import __main__ as verbs
from hydra_trainer import embedded, storage
from hydra_trainer.checkpoints.store import POINTER
from hydra_trainer.embedded import Embedded, sagemaker
from hydra_trainer.embedded.sagemaker import Service
from hydra_trainer.embedded.sagemaker.objects import files, split
from hydra_trainer.job import JobHandle, JobState
from hydra_trainer.launchers import sagemaker as launched

from .conftest import REPOSITORY, Job
from .packed import pack
from .sent import Sent
from .test_resume import assert_equal

TRAINED = [
    *(
        "data=shards",
        "data.root='${mount:data}/digits'",
        "data.shape=[1,8,8]",
        "data.augment=false",
    ),
    *("data.num_workers=0", "data.buffer=60000", "trainer.max_epochs=1"),
]
"""Fewer bytes than the set has are mixed at a time: the order is not just a permutation of all."""

IN_S3 = "kind: s3, uri: 's3://bucket/sets'"
PLACES = {
    "S3": ["launcher=local", f"storage.mounts.data={{{IN_S3}}}"],
    "S3, and kept on the disk": [
        *("launcher=local", f"storage.mounts.data={{{IN_S3}}}", "data.cache='${mount:cache}'"),
        "storage.mounts.cache.local=CACHE",
    ],
    "a claim": ["launcher=eks", "storage.mounts.data={kind: pvc, claim: data-claim}"],
    "S3, from a pod": ["launcher=eks", f"storage.mounts.data={{{IN_S3}}}"],
    "a channel": ["launcher=sagemaker", f"storage.mounts.data={{{IN_S3}, access: file}}"],
    "a channel that is read when used": [
        *("launcher=sagemaker", f"storage.mounts.data={{{IN_S3}, access: fastfile}}"),
    ],
    "S3, from an instance": ["launcher=sagemaker", f"storage.mounts.data={{{IN_S3}}}"],
}
SOAK = ("S3, from a pod", "a channel that is read when used", "S3, from an instance")

Find = Callable[[Sent], Job]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, in five shards."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    parts = [
        {"image": image.astype(np.uint8).reshape(-1, 1, 8, 8), "label": label.astype(np.int64)}
        for image, label in zip(np.array_split(images, 5), np.array_split(labels, 5), strict=True)
    ]
    folder = tmp_path_factory.mktemp("packed")
    pack(folder / "digits", parts)
    return folder


@pytest.fixture(scope="module")
def on_disk(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The run that all others are to equal."""
    folder = tmp_path_factory.mktemp("on-disk")
    words = Sent(folder, None).words(*TRAINED, f"storage.mounts.data={packed}")  # type: ignore[arg-type]
    job = Job(folder / "run", [word for word in words if "launcher.env" not in word])
    code, printed = job.run()
    assert code == 0, printed
    return job


@pytest.fixture(scope="module")
def service(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service")) as found:
        found.objects.make("bucket")
        for file in files(packed):
            found.objects.put("bucket", f"sets/{file.relative_to(packed)}", file)
        yield found


@pytest.fixture(scope="module")
def cluster(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("cluster")) as found:
        shutil.copytree(packed, found.home / "volumes" / "data-claim")
        yield found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    """The service of this process, and none in the background."""
    monkeypatch.setenv(storage.EMBEDDED, str(service.home))
    monkeypatch.setattr(sagemaker, "start", lambda home: service.endpoint)
    monkeypatch.setattr(launched, "HOME", service.home)
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize(
    "place", [pytest.param(one, marks=[pytest.mark.soak] * (one in SOAK)) for one in PLACES]
)
def test_the_weights_are_the_same(
    place: str,
    on_disk: Job,
    service: Service,
    here: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = [word.replace("CACHE", str(tmp_path / "cache")) for word in PLACES[place]]
    sent = Sent(tmp_path, capsys, *where, "launcher.embedded=true")
    if where[0] == "launcher=eks":
        cluster = request.getfixturevalue("cluster")
        monkeypatch.setattr(embedded, "start", lambda home: cluster.kubeconfig)
    if where[0] == "launcher=local":
        words = [word for word in sent.words(*TRAINED) if "launcher.env" not in word]
        job = Job(tmp_path / "run", words)
        code, printed = job.run()
        assert code == 0, printed
    else:
        sent.send(*TRAINED)
        status = sent.place.wait(sent.handle)
        assert status.state is JobState.SUCCEEDED, sent.place.why(sent.handle)
        job = fetched(sent, service) if "sagemaker" in where[0] else Job(sent.directory, [])
    assert_equal(job, on_disk)


ALL_IN_S3 = ["storage=s3", "storage.s3.bucket=bucket", "storage.mounts.data.uri=s3://bucket/sets"]
ACTIONS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "DeleteObjects": "s3:DeleteObject",
}
"""What IAM calls an operation, where it is another word."""


def test_a_run_in_s3_needs_these_rights_and_no_others(
    on_disk: Job, service: Service, here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """deploy/iam-storage.json, but for the right to clear up after a save that failed."""
    before = Counter(service.calls)
    job = Job(tmp_path / tmp_path.name, ["launcher.embedded=true", *in_s3(tmp_path, capsys)])
    code, printed = job.run()
    assert code == 0, printed
    calls = Counter(service.calls) - before
    asked = {ACTIONS.get(name, f"s3:{name}") for kind, name in calls if kind == "s3"}
    policy = json.loads((REPOSITORY / "deploy" / "iam-storage.json").read_text())
    listed = [statement["Action"] for statement in policy["Statement"]]
    allowed = {one for found in listed for one in ([found] if isinstance(found, str) else found)}
    assert asked == allowed - {"s3:AbortMultipartUpload"}
    assert_equal(kept(tmp_path, service), on_disk)


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["eks", "sagemaker"])
def test_a_job_that_is_kept_in_s3_answers_like_any_other(
    launcher: str,
    on_disk: Job,
    service: Service,
    cluster: Embedded,
    here: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "start", lambda home: cluster.kubeconfig)
    sent = Sent(tmp_path, capsys, f"launcher={launcher}", "launcher.embedded=true")
    words = [*in_s3(tmp_path, capsys), f"hydra.run.dir={tmp_path}/runs/{tmp_path.name}"]
    threads = "+launcher.env={OMP_NUM_THREADS: '1'}"
    assert sent.type(*sent.where, *words, threads, "launcher.detach=true") == 0
    sent.handle = JobHandle.parse(capsys.readouterr().out.strip())
    assert sent.place.wait(sent.handle).state is JobState.SUCCEEDED, sent.place.why(sent.handle)
    assert_equal(kept(tmp_path, service), on_disk)
    for verb, said in (("status", "SUCCEEDED  Completed"), ("why", "SUCCEEDED"), ("logs", "epoch")):
        assert verbs.verb(verb, [str(sent.handle)]) == 0
        assert said in capsys.readouterr().out, verb


def in_s3(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the words of a run of which nothing is on a disk."""
    words = [word for word in Sent(folder, capsys).words() if not word.startswith("storage.output")]
    return [*(word for word in words if "launcher.env" not in word), *TRAINED, *ALL_IN_S3]


def kept(folder: Path, service: Service) -> Job:
    """Return a run that is in S3, by the name of its run directory, as a folder of this machine."""
    prefix = f"runs/{folder.name}/"
    found = service.objects.list("bucket", prefix)
    service.objects.download("bucket", found, prefix, folder / "kept")
    (folder / "kept" / POINTER).unlink()  # the checkpoints are here now
    return Job(folder / "kept", [])


def fetched(sent: Sent, service: Service) -> Job:
    """Return the run directory that SageMaker keeps in S3, as a folder of this machine."""
    bucket, prefix = split(service.describe(sent.name)["CheckpointConfig"]["S3Uri"])
    folder = sent.folder / "fetched"
    service.objects.download(bucket, service.objects.list(bucket, prefix), prefix, folder)
    return Job(folder, [])
