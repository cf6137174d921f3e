"""The wheel, and a user's own code and configuration in a folder of their own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import REPOSITORY

OWN_MODEL = """
import torch.nn.functional as F
from torch import nn
from lightning import LightningModule

class Linear(LightningModule):
    def __init__(self, input_shape: list[int], num_classes: int, scale: float = 1.0):
        super().__init__()
        pixels = input_shape[0] * input_shape[1] * input_shape[2]
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, num_classes))
        self.scale = scale

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.layers(images) * self.scale, labels)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx), sync_dist=True)
"""
OWN_DATA = """
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Stripes(LightningDataModule):
    def __init__(self, size: int = 256, batch_size: int = 32):
        super().__init__()
        labels = torch.arange(size) % 4
        images = torch.zeros(size, 1, 4, 4)
        images[torch.arange(size), :, labels] = 1
        self.set, self.batch_size = TensorDataset(images, labels), batch_size

    def train_dataloader(self):
        return DataLoader(self.set, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.set, self.batch_size)
"""
OWN_RECIPE = """
# @package _global_
# linear model, striped images
defaults:
  - override /model: own
  - override /data: own
name: stripes
trusted_modules: [mypkg]
model:
  _target_: mypkg.models.Linear
  input_shape: ${data.info.shape}
  num_classes: ${data.info.num_classes}
  scale: 2.0
data:
  _target_: mypkg.data.Stripes
  batch_size: 64
  info: {shape: [1, 4, 4], num_classes: 4}
trainer:
  max_epochs: 2
"""
OWN_CONFIG = """
defaults: [config, _self_]
trainer:
  max_epochs: 3
optim:
  lr: 0.01
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a package, and a conf folder."""
    root = tmp_path_factory.mktemp("project")
    (root / "mypkg").mkdir()
    (root / "mypkg" / "__init__.py").touch()
    (root / "mypkg" / "models.py").write_text(OWN_MODEL)
    (root / "mypkg" / "data.py").write_text(OWN_DATA)
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "conf" / "experiment" / "stripes.yaml").write_text(OWN_RECIPE)
    (root / "conf" / "mine.yaml").write_text(OWN_CONFIG)
    return root


def run(folder: Path, *words: str, **env: str) -> str:
    """Run a command in a folder outside the repository; return what it printed."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=clean | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COMMAND = str(Path(sys.executable).with_name("hydra-trainer"))


def test_own_model_and_own_data(project: Path) -> None:
    printed = run(
        project,
        COMMAND,
        "model=own",
        "model._target_=mypkg.models.Linear",
        "+model.input_shape=[1,8,8]",
        "+model.num_classes=10",
        "trusted_modules=[mypkg]",
        "trainer.max_epochs=1",
    )
    assert "val/loss" in printed
    assert list(project.glob("runs/linear-digits-*/result.json"))


@pytest.mark.soak
def test_own_recipe_in_a_conf_folder_with_two_ranks(project: Path) -> None:
    words = ["--config-dir", "conf", "experiment=stripes"]
    printed = run(project, COMMAND, *words, "resources.processes_per_node=2")
    assert "Linear: 68 parameters; 2 processes" in printed
    assert "hydra-trainer --config-dir conf experiment=stripes" in printed
    assert list(project.glob("runs/stripes-*/result.json"))


def test_own_primary_config(project: Path) -> None:
    words = ["--config-dir", "conf", "--config-name", "mine", "--cfg", "job"]
    printed = run(project, sys.executable, "-m", "hydra_trainer", *words)
    assert "max_epochs: 3" in printed
    assert "lr: 0.01" in printed
    assert "hydra_trainer.models.convnet.ConvNet" in printed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files that git knows."""
    root = tmp_path_factory.mktemp("wheel")
    listed = run(REPOSITORY, "git", "ls-files", "-co", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (root / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, root / "copy" / name)
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(root)]
    run(root / "copy", sys.executable, *words)
    (built,) = root.glob("*.whl")
    return built


def test_the_wheel_holds_everything_in_one_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"hydra_trainer/{path.relative_to(REPOSITORY).as_posix().removeprefix('hydra_trainer/')}"
        for folder in ("hydra_trainer", "conf", "launchers", "models")
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    assert expected <= names
    # Hydra finds its plugins in a namespace that all packages share: ours is a folder in it.
    plugins = {name for name in names if name.startswith("hydra_plugins/")}
    assert plugins and all(name.startswith("hydra_plugins/hydra_trainer/") for name in plugins)
    tops = {name.split("/")[0] for name in names - plugins}
    assert tops == {"hydra_trainer", f"hydra_trainer-{wheel.name.split('-')[1]}.dist-info"}
    info = {Path(name).name for name in names if ".dist-info/" in name}
    assert {"LICENSE", "entry_points.txt", "METADATA"} <= info
    assert not [name for name in names if "test" in name]


def test_the_wheel_trains_in_another_directory(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    where = {"PYTHONPATH": str(site)}
    show = "from hydra_trainer import app, models; print(app.__file__, models.__file__)"
    for file in run(tmp_path, sys.executable, "-c", show, **where).split():
        assert Path(file).is_relative_to(site)
    printed = run(
        tmp_path, sys.executable, "-m", "hydra_trainer", "model=mlp", "debug=default", **where
    )
    assert "test accuracy" in printed
    assert list(tmp_path.glob("runs/mlp-digits-*/result.json"))
    # The same code: the same name for the same run, wherever it is installed.
    digest = "import hydra_trainer.bundle as b, pathlib; print(b.collect(pathlib.Path()).digest)"
    here = run(tmp_path, sys.executable, "-c", digest)
    assert here == run(tmp_path, sys.executable, "-c", digest, **where)
