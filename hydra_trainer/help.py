"""--help: what can be chosen, from the configuration files themselves. Standard library only."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .report import program

EXAMPLES = (
    ("", "train the default model on this machine"),
    ("model=resnet18 data=cifar10", "choose from the groups below"),
    ("optim.lr=3e-4 trainer.max_epochs=5", "change any value"),
    ("experiment=gpt_tiny", "a whole recipe"),
    ("resources.processes_per_node=2", "two ranks"),
    ("launcher=eks launcher.dry_run=true", "the manifests; or launcher=sagemaker, the request"),
    ("launcher=eks launcher.embedded=true", "a rehearsal of a cluster, on this machine"),
    ("debug=default", "one batch of everything, for a debugger"),
    ("-m optim.lr=1e-3,3e-3", "one run for each value"),
    ("--cfg job", "print the whole configuration"),
    ("--info defaults-tree", "how it is put together"),
    ("--config-dir conf experiment=mine", "with your own folder of files"),
    ("--hydra-help", "Hydra's own flags, and shell completion"),
)

AGAIN = """\
The same command finds its run again: unfinished, it goes on; finished, it prints the result;
again=true runs it anew. To ask after a run: hydra-trainer status|logs|why|wait|cancel RUN, and
hydra-trainer list. A sweep (-m) goes on the same way; to ask after it: hydra-trainer sweep
status|table|report|cancel|retry-failed DIR."""


def text(words: Sequence[str]) -> str:
    """Return the help for a command line: its --config-dir is looked into as well."""
    folders = [conf_folder()]
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value))
        elif flag.startswith("--config-dir="):
            folders.append(Path(flag.split("=", 1)[1]))
    parts = ["Train a PyTorch model, here or on a cluster, from one configuration.", ""]
    parts += ["Examples:", *_examples(), "", AGAIN, "", "Groups (GROUP=NAME):"]
    for group in _groups(folders):
        parts += ["", f"{group}/", *_options(folders, group)]
    return "\n".join(parts)


def _examples() -> list[str]:
    commands = [f"{program()} {words}".rstrip() for words, _ in EXAMPLES]
    width = max(map(len, commands)) + 2
    return [
        f"  {line:<{width}}{about}" for line, (_, about) in zip(commands, EXAMPLES, strict=True)
    ]


def conf_folder() -> Path:
    """Return the folder of our own configuration files."""
    spec = find_spec("hydra_trainer.conf")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _groups(folders: Sequence[Path]) -> list[str]:
    order = ["model", "data", "optim", "trainer", "experiment", "debug", "resources", "launcher"]
    found = {
        path.name
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_dir() and any(path.glob("*.yaml"))
    }
    return [name for name in order if name in found] + sorted(found - set(order))


def _options(folders: Sequence[Path], group: str) -> list[str]:
    files = {path.stem: path for folder in folders for path in (folder / group).glob("*.yaml")}
    width = max(len(name) for name in files) + 2
    return [f"  {name:<{width}}{_about(path)}" for name, path in sorted(files.items())]


def _about(path: Path) -> str:
    """Return the first comment of a file that is not a directive of Hydra's."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
    return ""
