"""Which source files a run depends on, and their digest."""

import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

SOURCE_SUFFIXES = frozenset(
    {".py", ".pyi", ".yaml", ".yml", ".toml", ".cfg", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h"}
)
"""Files that can change what a run computes. A README is not among them: editing it must not make
tomorrow's command start anew instead of going on with today's run."""

NOT_SOURCE = frozenset({"tests", "docs"})
"""Folders whose files no run imports: editing a test does not make another run."""

PACKAGE_FOLDERS = ("datasets", "conf", "launchers", "models")


def package_files() -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of this package's own source files, wherever it is installed.

    Names are those of the imports (hydra_trainer/models/...), so that a checkout, an editable
    install and a wheel of the same code have the same digest.
    """
    roots = {}
    for name in ("hydra_trainer", *(f"hydra_trainer.{folder}" for folder in PACKAGE_FOLDERS)):
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        roots[name.replace(".", "/")] = Path(spec.origin).parent
    seen: set[Path] = set()
    for name in sorted(roots, key=len, reverse=True):
        for path in _walk(roots[name]):
            if path not in seen:
                seen.add(path)
                yield f"{name}/{path.relative_to(roots[name]).as_posix()}", path


def tree_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the source files that git tracks or does not ignore below `root`.

    Nothing where `root` is not in a git work tree or git is not installed.
    """
    command = ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard", "--full-name"]
    try:
        top = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--show-toplevel"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.rstrip("\n")
        listed = subprocess.run([*command, "--", top], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return
    for name in sorted(set(listed.decode(errors="surrogateescape").split("\0")) - {""}):
        path = Path(top, name)
        source = path.suffix in SOURCE_SUFFIXES and not NOT_SOURCE.intersection(path.parts[:-1])
        if source and path.is_file():
            yield name, path


def module_files(targets: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the sources of the top-level packages that `_target_`s name.

    Found by path on sys.path, without an import: a user's package may import torch. An installed
    distribution counts by its version instead (see `code_digest`).
    """
    for package in sorted({target.split(".")[0] for target in targets} - {"hydra_trainer"}):
        place = _find(package)
        if place is None or "site-packages" in place.parts:
            continue
        if place.is_file():
            yield place.name, place
        else:
            for path in _walk(place):
                yield f"{package}/{path.relative_to(place).as_posix()}", path


def code_digest(root: Path, targets: Iterable[str] = ()) -> str:
    """Return a hex digest (16 characters) of all the code that a run below `root` depends on.

    It is a function of names and contents only: no clock, no absolute path, no git state.
    """
    targets = list(targets)
    files = dict(package_files())
    own = set(files.values())
    for name, path in (*tree_files(root), *module_files(targets)):
        if path not in own and path.resolve() not in own:
            files.setdefault(name, path)
    digest = hashlib.sha256()
    for name in sorted(files):
        content = hashlib.sha256(files[name].read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    for line in _installed_versions(targets):
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _walk(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)
        if path.suffix in SOURCE_SUFFIXES and not hidden and path.is_file():
            yield path.resolve()


def _find(package: str) -> Path | None:
    for entry in sys.path:
        base = Path(entry or ".").resolve()
        if (base / package).is_dir():
            return base / package
        if (base / f"{package}.py").is_file():
            return base / f"{package}.py"
    return None


def _installed_versions(targets: list[str]) -> Iterator[str]:
    for package in sorted({target.split(".")[0] for target in targets} - {"hydra_trainer"}):
        try:
            yield f"{package}=={importlib.metadata.version(package)}\n"
        except importlib.metadata.PackageNotFoundError:
            continue
