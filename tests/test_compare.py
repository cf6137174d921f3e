"""hydra-trainer diff."""

import pytest

from hydra_trainer import __main__ as verbs
from hydra_trainer.compare import diff

P4D = "launcher=sagemaker resources.nodes=2 resources.instance_type=ml.p4d.24xlarge"


def parts(report: str) -> tuple[list[list[str]], list[list[str]], str]:
    """Return the rows that matter, the rows that do not, and the rest."""
    first, second, rest = report.split("\n\n")
    return [[line.split() for line in part.splitlines()[1:]] for part in (first, second)] + [rest]  # type: ignore[return-value]


def test_the_same_training_in_two_places() -> None:
    matters, rest, told = parts(diff("launcher=eks", P4D))
    found = {row[0]: row[1:] for row in matters}
    assert " ".join(found["processes"]) == "1 x 1 = 1 2 x 8 = 16"
    assert found["device"] == ["CPU", "GPU"] and found["machine"] == ["any", "node", "p4d.24xlarge"]
    assert [row[0] for row in rest] == ["launcher._target_"]  # nothing that is as usual
    assert "same training" in told and "cut into other parts" in told


def test_another_training() -> None:
    matters, _, told = parts(diff("optim.lr=1e-3 'name=my run'", "optim.lr=1e-4 'name=my run'"))
    assert [row[0] for row in matters] == ["optim.lr"]
    assert "neither goes on" in told and "cut into other parts" not in told


def test_what_does_not_change_the_training() -> None:
    matters, rest, told = parts(diff("launcher=eks", "launcher=eks launcher.queue=q storage=efs"))
    assert matters == [] and ["launcher.queue", "-", "q"] in rest
    assert "Both are the run convnet-digits-" in told
    _, rest, _ = parts(diff("", "data.num_workers=2"))
    assert [row[0] for row in rest] == ["data.num_workers"]


def test_a_variable_of_the_environment_may_matter() -> None:
    matters, _, _ = parts(diff("launcher=eks", "launcher=eks '+launcher.env={TF32: 1}'"))
    assert matters == [["env.TF32", "-", "1"]]


def test_a_command_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.verb("diff", ["launcher=eks", "optim.lr=-1"]) == 1
    assert "'optim.lr=-1': optim.lr is -1" in capsys.readouterr().err
    assert verbs.verb("diff", ["launcher=eks", "modle=mlp"]) == 1
    assert "'modle=mlp'" in capsys.readouterr().err
