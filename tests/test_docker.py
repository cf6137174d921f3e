"""The Dockerfiles, without a docker engine: a linter, and what they name of the repository."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hydra_trainer.eks.options import Options

from .conftest import REPOSITORY

DOCKERFILES = sorted((REPOSITORY / "docker").glob("Dockerfile*"))
HADOLINT = Path(sys.executable).with_name("hadolint")
PINS = dict(
    line.split("==")
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)

each = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions, each with the rest of its lines."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.partition(" ") for line in joined.splitlines() if line]
    return [(name, rest.strip()) for name, _, rest in found]


def all_of(dockerfile: Path, name: str) -> list[str]:
    return [rest for found, rest in instructions(dockerfile) if found == name]


def copied(dockerfile: Path) -> list[tuple[list[str], str]]:
    """Return the sources and the destination of each COPY."""
    words = [shlex.split(rest) for rest in all_of(dockerfile, "COPY")]
    return [(sources, place) for *sources, place in words]


@each
def test_the_linter_has_nothing_to_say(dockerfile: Path) -> None:
    words = [str(HADOLINT), "--no-color", "--failure-threshold=style", str(dockerfile)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@each
def test_the_base_has_a_version_and_the_torch_that_was_tested(dockerfile: Path) -> None:
    (base,) = all_of(dockerfile, "FROM")
    for default in all_of(dockerfile, "ARG"):
        name, _, value = default.partition("=")
        base = base.replace(f"${{{name}}}", value)
    image, _, tag = base.partition(":")
    version = re.match(r"\d+\.\d+", tag)
    assert version, f"{base} moves on by itself"
    if image.endswith("/pytorch"):
        assert PINS["torch"].startswith(f"{version[0]}.")


@each
def test_who_runs_is_the_user_of_the_pods(dockerfile: Path) -> None:
    """A number: the kubelet cannot tell that a name is not root's (runAsNonRoot)."""
    user = all_of(dockerfile, "USER")[-1]
    assert user == str(Options().run_as_user)
    assert f"useradd --uid {user} " in " ".join(all_of(dockerfile, "RUN"))


@each
def test_what_is_looked_up_in_the_constraints_is_there(dockerfile: Path) -> None:
    runs = " ".join(all_of(dockerfile, "RUN"))
    patterns = re.findall(r"grep (?:-v )?'([^']+)' constraints.txt", runs)
    assert patterns
    for pattern in patterns:
        found = [name for name, version in PINS.items() if re.match(pattern, f"{name}=={version}")]
        assert len(found) == 1, pattern


@each
def test_what_is_copied_is_there_and_enough_for_the_wheel(dockerfile: Path, tmp_path: Path) -> None:
    """Laid out as the image has it, and built as `pip install .` does."""
    work = tmp_path / "work"
    for sources, place in copied(dockerfile):
        for source in sources:
            is_folder = (REPOSITORY / source).is_dir()  # then what is in it is copied
            copy(source, work / place / ("" if is_folder else source))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"hydra_trainer/__main__.py", "hydra_trainer/conf/config.yaml"} <= {*names}
    assert any(name.endswith("/LICENSE") for name in names)


def copy(source: str, place: Path) -> None:
    """Copy what git knows of a source: a clone has no more."""
    words = ["git", "ls-files", "-co", "--exclude-standard", "--", source]
    listed = subprocess.check_output(words, cwd=REPOSITORY, text=True).splitlines()
    found = [name for name in listed if (REPOSITORY / name).is_file()]
    assert found, f"COPY {source}: there is no such file"
    for name in found:
        target = place / Path(name).relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target)
