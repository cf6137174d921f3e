"""The copy of a sweep's journal in S3: a real client against the embedded service."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_trainer.embedded.sagemaker import Fault
from hydra_trainer.errors import ConfigError
from hydra_trainer.sweep.copy import Copy, kept
from hydra_trainer.sweep.journal import FILE, Journal, read

from .buckets import KEYS, Bucket, bucket, without_aws

KEY = f"runs/sweeps/lr-1/{FILE}"
SWEEP = {"event": "sweep", "words": ["-m"], "cwd": "/", "program": "p", "identity": "i"}
SWEEP |= {"sweeper": "basic", "objectives": []}


def job(number: int) -> dict[str, Any]:
    words = {"name": f"job-{number}", "launcher": "eks", "overrides": [], "params": {}}
    return {"event": "job", "number": number, **words, "output": "runs/x", "basis": None}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with bucket(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def s3(service: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in without_aws():
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    service.service.faults.clear()
    for key in service.names():
        service.service.objects.delete("bucket", key)
    return service


Make = Callable[[str], Copy]


@pytest.fixture
def on(s3: Bucket, tmp_path: Path) -> Make:
    """The sweep as a machine has it."""
    return lambda machine: Copy(tmp_path / machine, s3.objects("s3://bucket/runs/sweeps/lr-1"))


def there(s3: Bucket) -> list[str]:
    lines = bytes(s3.objects("s3://bucket").get(KEY)).decode().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_another_machine_goes_on_with_it(on: Make, s3: Bucket, tmp_path: Path) -> None:
    one = on("one")
    one.fetch()
    with one, Journal(tmp_path / "one") as journal:
        journal.write(SWEEP, job(0))
        (tmp_path / "one/sweep.csv").write_text("job\n")
    assert there(s3) == ["sweep", "job"] and "runs/sweeps/lr-1/sweep.csv" in s3.names()

    two = on("two")
    two.fetch()
    assert list(read(tmp_path / "two").rows) == [0]
    with two, Journal(tmp_path / "two") as journal:
        journal.write(job(1))
    assert there(s3) == ["sweep", "job", "job"]

    again = on("one")  # which knows less than the copy does
    again.fetch()
    assert list(read(tmp_path / "one").rows) == [0, 1]


def test_it_is_sent_while_the_sweep_runs(
    on: Make, s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that a killed process left unfinished is not sent."""
    monkeypatch.setattr("hydra_trainer.sweep.copy.EVERY", 0.01)
    with on("one"), Journal(tmp_path / "one") as journal:
        journal.write(SWEEP)
        with (tmp_path / "one" / FILE).open("a") as file:
            file.write('{"event": "jo')
        while KEY not in s3.names():
            pass
        assert there(s3) == ["sweep"]


@pytest.mark.parametrize("begun", [False, True])
def test_two_machines_at_once_find_out(
    begun: bool, on: Make, s3: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if begun:
        with on("zero"), Journal(tmp_path / "zero") as journal:
            journal.write(SWEEP)
    one, two = on("one"), on("two")
    one.fetch()
    two.fetch()
    with Journal(tmp_path / "two") as journal:
        journal.write(SWEEP, job(0))
        two.send()
    before = there(s3)
    with one, Journal(tmp_path / "one") as journal:
        journal.write(SWEEP, job(1))
    assert "another machine runs this sweep as well" in capsys.readouterr().err
    assert there(s3) == before and list(read(tmp_path / "two").rows) == [0]
    with pytest.raises(ConfigError, match=r"went on here, and on another machine.*hydra\.sweep"):
        on("one").fetch()


def test_a_sweep_goes_on_without_its_copy(
    on: Make, s3: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = on("one")
    with Journal(tmp_path / "one") as journal:
        journal.write(SWEEP)
        s3.service.faults.add(Fault("status", error="AccessDenied", operation="PutObject"))
        copy.send()
        assert "the copy of the journal is late" in capsys.readouterr().err
        assert KEY not in s3.names()
        copy.send()
    assert there(s3) == ["sweep"]


@pytest.mark.parametrize(
    ("output", "dry", "copied"),
    [("s3://bucket/runs", False, True), ("s3://bucket/runs", True, False), ("runs", False, False)],
)
def test_where_the_runs_are(
    output: str, dry: bool, copied: bool, s3: Bucket, tmp_path: Path
) -> None:
    s3_node = {"embedded": False, "endpoint": s3.endpoint, "region": None, "deadline": 5}
    storage = {"output": output, "mounts": {}, "s3": s3_node}
    master = OmegaConf.create({"storage": storage, "launcher": {"dry_run": dry}})
    with kept(tmp_path / "lr-1", master), Journal(tmp_path / "lr-1") as journal:
        journal.write(SWEEP)
    assert (KEY in s3.names()) is copied
