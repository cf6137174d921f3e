"""The code that a run depends on: which files, their digest, and one archive of them.

All three are functions of names and contents only: no clock, no absolute path, no git state.
"""

import functools
import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SOURCE_SUFFIXES = frozenset({".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h"})
"""Files that can change what a run computes. YAML is not among them: what it says is in the
resolved configuration, and a run writes some, which must not make the same command another run."""

NOT_SOURCE = frozenset({"tests", "docs", "benchmarks"})
"""Folders whose files no run imports: editing a test does not make another run. Those at the top of
a work tree do not travel either, unless a `_target_` names them: a ConfigMap holds 1 MiB."""

TEST = re.compile(r"test_.*\.py|.*_test\.py")
"""Files by pytest's own names, which no run imports: they never travel."""

PACKAGE_FOLDERS = ("datasets", "conf", "eks", "embedded", "launchers", "models")


@dataclass(frozen=True)
class Bundle:
    """The files of a run's code.

    `files` maps the name in the archive to the file here: the work tree that git tracks or does
    not ignore, less tests and docs, the packages that `_target_`s name, and this package.
    `digest` (16 hex characters) is of those that can change what a run computes.
    """

    files: dict[str, Path]
    digest: str

    def archive(self) -> bytes:
        """Return a .tar.gz of the files, the same bytes for the same names and contents."""
        return self._packed

    @functools.cached_property
    def _packed(self) -> bytes:
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=4, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name, path in self.files.items():
                content = path.read_bytes()
                entry = tarfile.TarInfo(name)  # no owner, no time
                entry.size = len(content)
                entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    def sizes(self) -> list[tuple[int, str]]:
        """Return (bytes, name) of the files, the largest first."""
        return sorted(((path.stat().st_size, name) for name, path in self.files.items()))[::-1]


def collect(root: Path, targets: Iterable[str] = (), without: Iterable[Path] = ()) -> Bundle:
    """Find the code of a run that is started in `root`.

    Args:
        root: the folder of the user's work tree; what git does not know there stays out.
        targets: every `_target_` of the configuration.
        without: folders that hold results, not code.
    """
    return _collect(root.resolve(), tuple(targets), tuple(path.resolve() for path in without))


@functools.lru_cache(maxsize=8)  # the jobs of a sweep have the same code
def _collect(root: Path, targets: tuple[str, ...], without: tuple[Path, ...]) -> Bundle:
    files = dict(_package_files())
    own = set(files.values())
    for name, path in (*_tree_files(root, without), *_module_files(targets)):
        if path.resolve() not in own and not TEST.fullmatch(path.name):
            files.setdefault(name, path)
    return Bundle(dict(sorted(files.items())), _digest(files, targets))


def _digest(files: dict[str, Path], targets: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        if _is_source(Path(name)):
            content = hashlib.sha256(files[name].read_bytes()).hexdigest()
            digest.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    for line in _installed_versions(targets):
        digest.update(line.encode())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------- which files


def _package_files() -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of this package's own files, wherever it is installed.

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


def _tree_files(root: Path, without: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the files that git tracks or does not ignore around `root`.

    Nothing where `root` is not in a git work tree or git is not installed.
    """
    try:
        top = _git(root, "rev-parse", "--show-toplevel").rstrip("\n")
        listed = _git(root, "ls-files", "-coz", "--exclude-standard", "--full-name", "--", top)
    except (OSError, subprocess.CalledProcessError):
        return
    for name in sorted(set(listed.split("\0")) - {""}):
        path = Path(top, name)
        if Path(name).parts[0] in NOT_SOURCE:
            continue
        if path.is_file() and not any(path.is_relative_to(folder) for folder in without):
            yield name, path


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape")


def _is_source(name: Path) -> bool:
    """Tell whether a file, named from the top of its tree, can be part of what a run computes."""
    return name.suffix in SOURCE_SUFFIXES and not NOT_SOURCE & {*name.parts[:-1]}


def _module_files(targets: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the top-level packages that `_target_`s name.

    Found without an import: a user's package may import torch. An installed distribution counts by
    its version instead, unless it is installed in editable mode.
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


def _walk(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)
        if not hidden and path.suffix != ".pyc" and path.is_file():
            yield path.resolve()


def _find(package: str) -> Path | None:
    """Return the folder or the file of a package; None where it is not found or has no source."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin and Path(spec.origin).is_file() else None


def _installed_versions(targets: Iterable[str]) -> Iterator[str]:
    """Yield `package==version` of installed packages, by the names of their .dist-info folders.

    importlib.metadata says the same, and takes longer to import than all the rest of this.
    """
    for package in sorted({target.split(".")[0] for target in targets} - {"hydra_trainer"}):
        for entry in sys.path:
            for found in sorted(Path(entry or ".").glob(f"{package}-*.dist-info")):
                yield f"{package}=={found.stem.partition('-')[2]}\n"
