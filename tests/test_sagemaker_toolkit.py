"""The container side where AWS's sagemaker-training toolkit has laid out the folders.

Skipped where the toolkit is not installed. SAGEMAKER_BASE_DIR moves all of /opt/ml, for it and us.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import REPOSITORY, SHORT, environment

PROGRAM = """
import os
import sys
from hydra_trainer import bootstrap

base = os.environ["SAGEMAKER_BASE_DIR"]
sys.exit(bootstrap.main([f"--sagemaker={base}", f"--run-dir={base}/checkpoints", *sys.argv[1:2],
                         f"{base}/input/data/config/config.yaml"]))
"""


def test_under_the_toolkit(tmp_path: Path) -> None:
    pytest.importorskip("sagemaker_training")
    base, code = tmp_path / "ml", tmp_path / "program"
    config = base / "input" / "data" / "config"
    for folder in (config, base / "input" / "config", base / "output", base / "model", code):
        folder.mkdir(parents=True)
    printed = subprocess.run(
        [sys.executable, "train.py", *SHORT, "trainer.max_epochs=1", "--cfg", "job", "--resolve"],
        cwd=REPOSITORY,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    plain = yaml.safe_load(printed.stdout)
    plain["run"] = {"name": "x", "dir": str(base / "checkpoints"), "identity": "0" * 16}
    plain["run"]["code_digest"] = "0" * 16
    (config / "config.yaml").write_text(yaml.safe_dump(plain))
    (code / "program.py").write_text(PROGRAM)
    files = {
        "hyperparameters.json": {
            "sagemaker_program": json.dumps("program.py"),
            "sagemaker_submit_directory": json.dumps(str(code)),
        },
        "resourceconfig.json": {
            "current_host": "localhost",  # the toolkit waits until its name leads somewhere
            "hosts": ["localhost"],
            "network_interface_name": "lo",
        },
        "inputdataconfig.json": {"config": {"TrainingInputMode": "File"}},
    }
    for name, content in files.items():
        (base / "input" / "config" / name).write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-c", "from sagemaker_training.cli.train import main; main()"],
        cwd=REPOSITORY,
        env=environment() | {"SAGEMAKER_BASE_DIR": str(base)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    result = json.loads((base / "output" / "data" / "result.json").read_text())
    assert result["status"] == "completed"
    assert f"hydra-trainer result: val/loss={result['objective']['value']!r}" in done.stdout
    assert (base / "output" / "success").exists()  # the toolkit's own word
