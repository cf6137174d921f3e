"""`hydra-trainer data pack|verify|info|bench`."""

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from hydra_trainer.errors import ConfigError, DataError
from hydra_trainer.job import DONE, USER_ERROR

from . import tools
from .format import INDEX, Index, checksum
from .places import Occupied, Place, place
from .sources import FORMS, SPLITS, TEXT, TEXTS, TOKENS, Options, Source, sources
from .tools import counted, in_bytes
from .writing import SHARD_SIZE, Writer, litter

VERBS = {
    "pack": "make packed shards of CIFAR-10, images, parquet, text or token files",
    "verify": "read every shard of a packed data set and compare it with its checksum",
    "info": "say what a packed data set holds",
    "bench": "measure how fast a folder, a mount or a bucket is, from where this is typed",
}

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6}
UNITS["GB"] = 10**9
LINE_EVERY = 5.0  # seconds between two lines of progress in a log


def main(words: list[str]) -> int:
    """Run one verb; return the exit code. Raises HydraTrainerError."""
    options = _parser().parse_args(words)
    code: int = globals()[f"_{options.verb}"](options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hydra-trainer data")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    found = {name: verbs.add_parser(name, help=w, description=w) for name, w in VERBS.items()}
    _pack_options(found["pack"])
    for name in ("verify", "info"):
        found[name].add_argument("uri", help="what pack wrote to, or one split: a folder or s3://")
    bench = found["bench"]
    bench.add_argument("uri", help="a folder, or s3://BUCKET/PREFIX; it is cleaned up afterwards")
    size = "bytes to write and read at most, such as 256MiB"
    bench.add_argument("--size", type=_size, default=256 << 20, help=size)
    bench.add_argument("--seconds", type=float, default=30, help="that it may take, about")
    for verb in found.values():
        endpoint = "of S3, where it is not that of AWS; AWS_ENDPOINT_URL says it too"
        verb.add_argument("--endpoint", help=endpoint)
        verb.add_argument("--region", help="of the bucket; AWS_REGION says it too")
    return parser


def _pack_options(pack: argparse.ArgumentParser) -> None:
    add = pack.add_argument
    add("source", help=f"a file or a folder, or {TEXT}, a text that is always there")
    add("dest", help="a folder or s3://BUCKET/PREFIX; each split goes to DEST/train, DEST/val, ...")
    add("--form", choices=FORMS, help="what the source is; without it, found out")
    add("--split", choices=SPLITS, help="only this one")
    add("--shard-size", type=_size, default=SHARD_SIZE, help="at most, such as 64MiB (as it is)")
    add("--overwrite", action="store_true", help="replace the packed data that are there")
    share = "of the samples, held out where the source has no such split"
    add("--val-fraction", type=float, help=share)
    add("--test-fraction", type=float, help=share)
    add(
        *("--resize", "-r"),
        type=int,
        nargs="+",
        metavar=("N", "WIDTH"),
        help="images: decode, and make all N x N, or N high and WIDTH wide; without it they are "
        "kept as PNG and JPEG",
    )
    add("--mode", choices=("RGB", "L"), default="RGB", help="images: colours, or L for grey")
    add("--fields", nargs="+", metavar="NAME", help="parquet: the columns to pack; else all")
    tokens = "text: ascii (as it is) or utf-8, its bytes; .bin: uint8, uint16 (as it is), uint32"
    add("--tokens", choices=(*TEXTS, *TOKENS), help=tokens)
    add("--block-size", type=int, default=128, help="text: tokens that the model sees at once; 128")
    md5 = "CIFAR-10: the sum of the archive: published (as it is), another one, or null"
    add("--md5", default="published", help=md5)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size. Type one like 64MiB or 1GiB.")
    return int(float(found[1]) * UNITS[found[2]])


def _place(uri: str, options: argparse.Namespace) -> Place:
    if not uri.startswith("s3://"):
        return place(uri)
    from hydra_trainer.objects import Settings  # obstore comes with an extra

    return place(uri, Settings(endpoint=options.endpoint, region=options.region))


# --------------------------------------------------------------------------------------------- pack


def _pack(options: argparse.Namespace) -> int:
    resize = options.resize
    if resize is not None and len(resize) > 2:
        raise ConfigError(f"--resize {' '.join(map(str, resize))}: give one number or two.")
    chosen = Options(
        form=options.form,
        split=options.split,
        resize=None if resize is None else (resize[0], resize[-1]),
        mode=options.mode,
        fields=options.fields,
        tokens=options.tokens,
        block_size=options.block_size,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        md5=options.md5,
    )
    dest = _place(options.dest, options)
    pack(options.source, dest, chosen, options.shard_size, options.overwrite)
    return DONE


def pack(
    path: str,
    dest: Place,
    options: Options,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
) -> None:
    """Pack each split of a source into a data set of its own below `dest`, and say so.

    Splits that an earlier, killed pack of the same source has finished are left as they are.

    Raises:
        ConfigError: an option is wrong.
        Occupied: there is another data set, or another job packs to this place.
        DataError: the source cannot be read, or the place cannot be written.
    """
    if not overwrite:
        _refuse_whole(dest, options)
    with dest.alone():
        found = sources(path, options)
        marks = {split: _mark(found[split], options, shard_size) for split in found}
        kept = set() if overwrite else _kept(dest, marks)
        if not options.split:
            _refuse_rest(dest, path, set(found))
        with ExitStack() as stack:
            writers = {}
            for split, source in found.items():
                if split in kept:
                    where = dest.below(split)
                    where.remove(litter(where.sizes(), tools.index_of(where)))
                    print(f"{split}: there already, packed from the same source; left as it is")
                    continue
                writers[split] = stack.enter_context(
                    Writer(
                        dest.below(split),
                        source.columns,
                        shard_size=shard_size,
                        moments=source.moments,
                        overwrite=overwrite,
                    )
                )
                _fill(writers[split], split, source, marks[split])
            # Back to back at the end: before, there is nothing of the new data to see.
            for writer in writers.values():
                writer.commit()
        first = dest.below(next(iter(found)))
        print(_next(dest, tools.index_of(first)))


def _next(dest: Place, index: Index) -> str:
    """Return what to type to train on a data set."""
    columns = {column.name: column for column in index.columns}
    if "tokens" in columns and "block_size" in index.facts:
        words = ["data=shards_tokens", "model=gpt", f"data.root={dest.uri}"]
        words += [f"data.{key}={index.facts[key]}" for key in ("vocab_size", "block_size")]
    elif {"image", "label"} <= {*columns}:
        # Images that were kept as files get their size when they are read.
        shape = columns["image"].shape or (3, 224, 224)
        words = ["data=shards", f"data.root={dest.uri}"]
        words.append(f"data.shape=[{','.join(map(str, shape))}]")
        words.append(f"data.num_classes={len(index.facts.get('classes', ()))}")
    else:
        return f"To look at it: hydra-trainer data info {shlex.quote(dest.uri)}"
    return f"To train on it: python train.py {shlex.join(words)}"


def _refuse_whole(dest: Place, options: Options) -> None:
    """Refuse before the source is read where it is plain that nothing is left to do."""
    splits = [options.split] if options.split else list(SPLITS)
    if dest.read(INDEX) is not None:
        raise Occupied(f"{dest.uri}/{INDEX} is there: {dest.uri} is a split of a data set itself.")
    if all(dest.below(split).read(INDEX) is not None for split in splits):
        raise _there(dest, splits[0])


def _there(dest: Place, split: str) -> Occupied:
    return Occupied(
        f"{dest.uri}/{split}/{INDEX} is there already: a packed data set. Give another place, or "
        "type --overwrite to replace it."
    )


def _mark(source: Source, options: Options, shard_size: int) -> str:
    """Return what tells this pack from one of another source, or with other options."""
    chosen = {k: v for k, v in asdict(options).items() if k not in ("split", "form", "md5")}
    columns = [asdict(column) for column in source.columns]
    facts = [source.identity, columns, dict(source.facts), chosen, shard_size]
    return checksum(json.dumps(facts, sort_keys=True).encode())


def _kept(dest: Place, marks: dict[str, str]) -> set[str]:
    """Return the splits that are there from a pack like this one that did not come to its end."""
    kept = set()
    for split, mark in marks.items():
        content = dest.below(split).read(INDEX)
        if content is None:
            continue
        index = Index.parse(content, f"{dest.uri}/{split}/{INDEX}")
        if index.facts.get("pack") != mark:
            raise _there(dest, split)
        kept.add(split)
    if kept and len(kept) == len(marks):
        raise _there(dest, next(iter(marks)))
    return kept


def _refuse_rest(dest: Place, path: str, splits: set[str]) -> None:
    """Refuse to leave the splits of two data sets side by side."""
    for split in SPLITS:
        if split not in splits and dest.below(split).read(INDEX) is not None:
            raise Occupied(
                f"{dest.uri} has a split {split!r}, which {path} does not give: the two would be "
                f"mixed. Delete {dest.below(split).uri}, give another place, or pack one split at "
                "a time: --split NAME."
            )


def _fill(writer: Writer, split: str, source: Source, mark: str) -> None:
    began = time.monotonic()
    first = source.columns[0].name
    with _progress(split, source.samples) as shown:
        writer.wrote = shown.wrote
        for batch in source.batches():
            writer.add(batch)
            part = batch[first]
            shown.read(len(part[0]) - 1 if isinstance(part, tuple) else len(part))
        index = writer.finish({**source.facts, "split": split, "pack": mark})
    seconds = max(time.monotonic() - began, 1e-9)
    print(
        f"{split}: {counted(index.samples, 'sample')} in {counted(len(index.shards), 'shard')}, "
        f"{in_bytes(index.size)}, {seconds:.1f} s ({in_bytes(index.size / seconds)}/s): "
        f"{writer.place.uri}"
    )


class _Lines:
    """Progress for a log: a line now and then."""

    def __init__(self, split: str, samples: int | None) -> None:
        self.split, self.samples = split, samples
        self.done = self.size = 0
        self._last = time.monotonic()

    def read(self, samples: int) -> None:
        self.done += samples
        now = time.monotonic()
        if now - self._last > LINE_EVERY:
            self._last = now
            total = "" if self.samples is None else f" of {self.samples:,}"
            print(
                f"{self.split}: {self.done:,}{total} samples read, {in_bytes(self.size)} written",
                flush=True,
            )

    def wrote(self, size: int) -> None:
        self.size += size


class _Bar(_Lines):
    """Progress for a terminal: a bar."""

    def __init__(self, split: str, samples: int | None, bar: Any) -> None:
        super().__init__(split, samples)
        self._bar = bar
        self._task = bar.add_task(split, total=samples, size="")

    def read(self, samples: int) -> None:
        self._bar.update(self._task, advance=samples)

    def wrote(self, size: int) -> None:
        self.size += size
        self._bar.update(self._task, size=f"{in_bytes(self.size)} written")


@contextmanager
def _progress(split: str, samples: int | None) -> Iterator[_Lines]:
    if not sys.stdout.isatty():
        yield _Lines(split, samples)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("{task.fields[size]}"), Remaining(), transient=True) as bar:
        yield _Bar(split, samples, bar)


# ------------------------------------------------------------------------------ verify, info, bench


def _verify(options: argparse.Namespace) -> int:
    bad = 0
    for where in tools.sets(_place(options.uri, options)):
        index = tools.index_of(where)
        faults = list(tools.verify(where, index))
        for fault in faults:
            print(f"{where.uri}: {fault}")
        if not faults:
            shards = f"{counted(len(index.shards), 'shard')}, {in_bytes(index.size)}"
            samples = counted(index.samples, "sample")
            print(f"{where.uri}: {samples} in {shards}: all as they were packed")
        bad += len(faults)
    if not bad:
        return DONE
    print(
        f"{counted(bad, 'shard')} missing or bad. Put good copies back, or pack the data again: "
        "hydra-trainer data pack SOURCE DEST --overwrite",
        file=sys.stderr,
    )
    return USER_ERROR


def _info(options: argparse.Namespace) -> int:
    found = tools.sets(_place(options.uri, options))
    for number, where in enumerate(found):
        if number:
            print()
        print(tools.described(where, tools.index_of(where)))
    return DONE


def _bench(options: argparse.Namespace) -> int:
    if options.seconds <= 0:
        raise DataError(f"--seconds {options.seconds:g} must be more than 0.")
    from .bench import measure

    print(measure(_place(options.uri, options), options.size, options.seconds))
    return DONE
