"""hydra-trainer checkpoint list, verify, export: of a run here, and of one in S3."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hydra_trainer.__main__ import verb
from hydra_trainer.checkpoints import reading
from hydra_trainer.checkpoints.bucket import Bucket
from hydra_trainer.checkpoints.commands import LOADING
from hydra_trainer.checkpoints.files import STATE
from hydra_trainer.checkpoints.store import find, place

from .buckets import KEYS, bucket
from .conftest import REPOSITORY
from .faults import Training

CONFIG = {"objective": {"metric": "loss", "mode": "min"}, "model": {"width": 3}}


@pytest.fixture(params=["folder", "s3"])
def run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A run with three checkpoints, of which the best is not the last, and one that is not whole.

    What is printed about it is the same wherever it is.
    """
    text = yaml.safe_dump(CONFIG).encode()
    if request.param == "folder":
        training = Training(tmp_path / "run", asynchronous=False)
        training.run(5)
        (tmp_path / "run" / "config.yaml").write_bytes(text)
        training.store.clean("step=00000006")
        yield str(tmp_path / "run")
        return
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with bucket(tmp_path / "service") as given:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", given.endpoint)
        objects = given.objects("s3://bucket/run")
        Training(Bucket(objects.below("checkpoints")), asynchronous=False).run(5)
        objects.put("config.yaml", text)
        objects.put(f"checkpoints/step=00000006/{STATE}", b"half")
        yield "s3://bucket/run"


def damage(run: str, name: str) -> None:
    """Flip a bit of a state."""
    there = place(f"{run}/checkpoints")
    content = bytearray(there.read(name, STATE))
    content[len(content) // 2] ^= 1
    with there.writing(name, STATE) as out:
        out.write(bytes(content))


def test_list(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("checkpoint", ["list", run]) == 0
    first, head, *rows = capsys.readouterr().out.splitlines()
    assert first == f"{run}/checkpoints"
    assert head.split() == ["checkpoint", "step", "loss", "size"]
    assert [row.split()[0] for row in rows] == [
        "step=00000001",
        "step=00000004",
        "step=00000005",
        "step=00000006",
    ]
    assert rows[0].split()[1:3] == ["1", "0.1344"] and rows[0].endswith("whole")
    assert rows[-1].endswith("not finished: the next save takes it away")


def test_verify(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("checkpoint", ["verify", run]) == 0
    assert capsys.readouterr().out.count("ok  ") == 3
    damage(run, "step=00000004")
    assert verb("checkpoint", ["verify", run]) == 1
    printed = capsys.readouterr().out
    assert f"DAMAGED  {run}/checkpoints/step=00000004: state.pt has another checksum" in printed
    assert "1 of 4 damaged: a run goes on with the newest whole one." in printed
    assert verb("checkpoint", ["verify", f"{run}/checkpoints/step=00000005"]) == 0


def test_export(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best, unless it is damaged; the last on request; one by its name."""
    states = {one.step: reading.load(one)["state_dict"] for one in find(run)}
    for words, step in (
        ([run], 1),
        ([run, "--last"], 5),
        ([f"{run}/checkpoints/step=00000004"], 4),
    ):
        folder = tmp_path / f"weights-{step}"
        assert verb("checkpoint", ["export", words[0], str(folder), *words[1:]]) == 0
        found = load_file(folder / "model.safetensors")
        assert found.keys() == states[step].keys()
        assert all(torch.equal(found[name], states[step][name]) for name in found)
        assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
        printed = capsys.readouterr().out
        assert LOADING.format(path=folder / "model.safetensors") in printed
    damage(run, "step=00000001")
    assert verb("checkpoint", ["export", run, str(tmp_path / "next")]) == 0
    assert "step=00000001" not in capsys.readouterr().out


def test_the_printed_lines_load_it(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without this package: nothing of it is imported."""
    assert verb("checkpoint", ["export", run, str(tmp_path / "weights")]) == 0
    lines = capsys.readouterr().out.partition("this package:\n")[2]
    program = (
        "import sys, torch\n"
        "model = torch.nn.Module()\n"
        "for name in ('weights', 'tied'):\n"
        "    model.register_buffer(name, torch.zeros(1000))\n"
        f"{lines}\n"
        "assert float(model.weights.abs().sum()) > 0\n"
        "assert not [name for name in sys.modules if name.startswith('hydra_trainer')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=os.environ)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["list", "nowhere"], "There are no checkpoints in nowhere. Give a run directory"),
        (["verify", "."], "There are no checkpoints in ."),
    ],
)
def test_what_is_no_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verb("checkpoint", words) == 1
    assert reason in capsys.readouterr().err


def test_a_folder_that_is_not_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Training(tmp_path / "run", asynchronous=False).run(1)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine").touch()
    words = ["export", str(tmp_path / "run"), str(tmp_path / "weights")]
    assert verb("checkpoint", words) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["mine"]


def test_list_needs_no_torch(tmp_path: Path) -> None:
    Training(tmp_path / "run", asynchronous=False).run(1)
    program = (
        "import sys; from hydra_trainer.__main__ import verb; "
        f"assert verb('checkpoint', ['list', {str(tmp_path / 'run')!r}]) == 0; "
        "assert 'torch' not in sys.modules and 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
