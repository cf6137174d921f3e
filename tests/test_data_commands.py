"""`hydra-trainer data`: what is typed, what is printed, and how it ends."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hydra_trainer.__main__ import VERBS, verb
from hydra_trainer.embedded.sagemaker.service import Service
from hydra_trainer.shards import bench, commands
from hydra_trainer.shards.format import INDEX, Index
from hydra_trainer.shards.places import Bucket, Place, place
from hydra_trainer.shards.tools import in_bytes, index_of

from .test_shards_pack import service, where

__all__ = ["service", "where"]  # fixtures

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Type `hydra-trainer data ...`; return its exit code, what it printed, and its errors."""

    def run(*words: Any) -> tuple[int, str, str]:
        try:
            code = verb("data", [str(word) for word in words])
        except SystemExit as end:  # argparse
            code = int(str(end.code))
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(6):
            file = tmp_path / "pictures" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file)
    return tmp_path / "pictures"


PACKED = ("--resize", "8", "--shard-size", "1KiB", "--val-fraction", "0.25")


def test_pack_verify_and_info(typed: Typed, images: Path, where: Place) -> None:
    code, out, err = typed("pack", images, where.uri, *PACKED)
    assert (code, err) == (0, "")
    assert "train: 9 samples in 3 shards, 1.7 KiB, " in out
    assert "val: 3 samples in 1 shard, 579 bytes, " in out
    root = shlex.quote(f"data.root={where.uri}")
    words = f"data=shards {root} 'data.shape=[3,8,8]' data.num_classes=2"
    assert out.endswith(f"\nTo train on it: python train.py {words}\n")

    assert typed("verify", where.uri) == (
        0,
        f"{where.uri}/train: 9 samples in 3 shards, 1.7 KiB: all as they were packed\n"
        f"{where.uri}/val: 3 samples in 1 shard, 579 bytes: all as they were packed\n",
        "",
    )
    code, out, _ = typed("info", f"{where.uri}/val")
    assert code == 0
    head, *lines = out.splitlines()
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines)
    label = rows.pop("sample 0, label")
    assert label in ("0 (cat)", "1 (dog)")
    assert re.fullmatch(r"\d+ to \d+, \d+\.\d on average", rows.pop("sample 0, image"))
    assert [len(rows.pop(name).split(", ")) for name in ("mean", "std")] == [3, 3]
    assert head == f"{where.uri}/val"
    assert rows == {
        "samples": "3",
        "shards": "1 of up to 579 bytes, together 579 bytes",
        "column image": "uint8 [3 x 8 x 8], 192 bytes a sample",
        "column label": "uint8, 1 byte a sample",
        "source": "pictures",
        "classes": "cat, dog",
        "split": "val",
        "checksum": index_of(where.below("val")).seal,
    }

    code, out, err = typed("pack", images, where.uri, *PACKED)
    assert (code, out) == (1, "")
    assert "train/index.json is there already: a packed data set" in err
    assert typed("pack", images, where.uri, *PACKED, "--overwrite")[0] == 0


def test_pack_says_what_to_type_next(typed: Typed, images: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    last = [typed("pack", "builtin:text", root / "text", "--block-size", "64")[1].splitlines()[-1]]
    last.append(typed("pack", images, root / "files")[1].splitlines()[-1])
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    last.append(typed("pack", tmp_path / "a.parquet", root / "rows")[1].splitlines()[-1])
    train = "To train on it: python train.py"
    assert last == [
        f"{train} data=shards_tokens model=gpt data.root={root}/text data.vocab_size=128 "
        "data.block_size=64",
        f"{train} data=shards data.root={root}/files 'data.shape=[3,224,224]' data.num_classes=2",
        f"To look at it: hydra-trainer data info {root}/rows",
    ]


def damaged(where: Place, how: str) -> str:
    """Damage one shard of three; return what is to be said about it."""
    train = where.below("train")
    file = index_of(train).shards[1].file
    content = bytearray(train.fetch(file))
    if how == "missing":
        train.remove([file])
        return f"{file} is missing"
    if how == "cut short":
        train.write(file, content[:-1])
        return f"{file} has {len(content) - 1} bytes instead of {len(content)}"
    content[5] ^= 4
    train.write(file, content)
    return f"{file} was altered: its checksum is "


@pytest.mark.parametrize("how", ["missing", "cut short", "altered"])
def test_verify_names_a_bad_shard(how: str, typed: Typed, images: Path, where: Place) -> None:
    typed("pack", images, where.uri, *PACKED)
    words = damaged(where, how)
    code, out, err = typed("verify", where.uri)
    assert code == 1
    assert out.startswith(f"{where.uri}/train: {words}")
    assert out.count("\n") == 2
    assert "val: 3 samples in 1 shard, 579 bytes: all as they were packed" in out
    assert err.startswith("1 shard missing or bad. Put good copies back, or pack the data again")


def test_verify_names_all_shards_under_the_index_of_another_set(
    typed: Typed, images: Path, where: Place
) -> None:
    typed("pack", images, where.uri, *PACKED)
    (images / "dog" / "0.png").unlink()
    typed("pack", images, f"{where.uri}/other", *PACKED)
    other = where.below("other").below("train").read(INDEX)
    assert other is not None
    where.below("train").write(INDEX, other)
    code, out, err = typed("verify", f"{where.uri}/train")
    assert code == 1
    files = [shard.file for shard in Index.parse(other, "").shards]
    assert [line.split()[-3:] for line in out.splitlines()] == [[f, "is", "missing"] for f in files]
    assert err.startswith(f"{len(files)} shards missing or bad")


def test_verify_goes_on_after_a_shard_that_cannot_be_read(
    typed: Typed, images: Path, tmp_path: Path
) -> None:
    where = place(str(tmp_path / "set"))
    typed("pack", images, where.uri, *PACKED)
    file = index_of(where.below("train")).shards[0].file
    path = tmp_path / "set" / "train" / file
    path.unlink()
    path.mkdir()
    code, out, _ = typed("verify", where.uri)
    bad, good = out.splitlines()
    assert code == 1
    assert bad == (f"{where.uri}/train: {path} cannot be read: Is a directory.")
    assert good.startswith(f"{where.uri}/val: 3 samples")


def test_what_is_no_packed_set_is_said(typed: Typed, tmp_path: Path, where: Place) -> None:
    for name in ("verify", "info"):
        code, _, err = typed(name, where.uri)
        assert code == 1
        assert f"error: {where.uri} holds no packed data: there is no index.json" in err
    where.write(INDEX, b'{"kind": "hydra-trainer shards"')
    code, _, err = typed("info", where.uri)
    assert code == 1
    assert err.startswith(f"error: {where.uri}/index.json is no whole index")


def test_a_bucket_that_is_not_there_is_said(typed: Typed, images: Path, tmp_path: Path) -> None:
    with (
        Service(tmp_path / "service", limits=False) as strict,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "embedded")
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        to = ("--endpoint", strict.endpoint, "--region", "us-east-1")
        for words in (("pack", images, "s3://nowhere/x"), ("verify", "s3://nowhere/x")):
            code, _, err = typed(*words, *to)
            assert code == 1
            assert err.startswith("error: s3:GetObject of s3://nowhere/x")
            assert "bucket nowhere" in err


@pytest.mark.parametrize("size", ["0", "64", "1.5KiB", "2GiB", "3 MB"])
def test_sizes_are_read(size: str) -> None:
    wanted = {"1.5KiB": 1536, "2GiB": 2 << 30, "3 MB": 3_000_000, "64": 64}
    if size in wanted:
        assert commands._size(size) == wanted[size]
    else:
        with pytest.raises(Exception, match=r"is no size. Type one like 64MiB"):
            commands._size(size)


def test_sizes_are_shown() -> None:
    shown = [in_bytes(size) for size in (0, 1, 1023, 1024, 1 << 20, 1 << 50)]
    assert shown == ["0 bytes", "1 byte", "1,023 bytes", "1.0 KiB", "1.0 MiB", "1,024.0 TiB"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pack", "x"), "the following arguments are required: dest"),
        (("pack", "x", "y", "--shard-size", "big"), "'big' is no size. Type one like 64MiB or 1G"),
        (("pack", "x", "y", "--split", "dev"), "invalid choice: 'dev'"),
        (("unpack",), "invalid choice: 'unpack'"),
        ((), "required: pack|verify|info|bench"),
    ],
)
def test_words_that_are_wrong_are_said(words: tuple[str, ...], said: str, typed: Typed) -> None:
    code, _, err = typed(*words)
    assert code == 2
    assert said in err


def test_options_that_are_wrong_are_said(typed: Typed, images: Path, tmp_path: Path) -> None:
    code, _, err = typed("pack", images, tmp_path / "set", "--resize", "1", "2", "3")
    assert (code, "--resize 1 2 3: give one number or two" in err) == (1, True)
    code, _, err = typed("pack", images, tmp_path / "set", "--val-fraction", "2")
    assert (code, "--val-fraction 2 must be 0 or more and below 1" in err) == (1, True)
    code, _, err = typed("pack", images, "ftp://x/y")
    assert (code, "ftp://x/y is neither a folder nor s3://" in err) == (1, True)
    code, _, err = typed("bench", tmp_path, "--seconds", "0")
    assert (code, "--seconds 0 must be more than 0" in err) == (1, True)


def test_progress_is_lines_in_a_log_and_a_bar_on_a_terminal(
    typed: Typed, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "LINE_EVERY", -1.0)
    _, out, _ = typed("pack", images, tmp_path / "one")
    assert out.startswith("train: 12 of 12 samples read, ")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    code, out, _ = typed("pack", images, tmp_path / "two")
    assert code == 0
    assert "12/12" in out
    assert "train: 12 samples in 1 shard" in out


# --- bench ---


def test_bench_measures_and_leaves_nothing(typed: Typed, where: Place) -> None:
    code, out, err = typed("bench", where.uri, "--size", "2MiB", "--seconds", "1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == where.uri
    assert lines[1].split() == ["measured", "what", "it", "means"]
    firsts = (
        ("put 8 objects of 256.0 KiB", "get objects", "get one byte", "random reads", "put 4 KiB")
        if isinstance(where, Bucket)
        else ("write 2.0 MiB and fsync", "read 2.0 MiB", "random reads", "create, fsync", "open")
    )
    for first in firsts:
        assert any(line.startswith(first) for line in lines[2:-1]), (first, out)
    assert where.sizes() == {}
    if isinstance(where, Bucket):
        assert list(where.objects.list()) == []
    else:
        assert not Path(where.uri).exists()


def test_bench_keeps_to_its_bytes_and_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = [0], os.fsync

    def count(descriptor: int) -> None:
        written[0] += os.fstat(descriptor).st_size
        real(descriptor)

    monkeypatch.setattr(os, "fsync", count)
    (tmp_path / "mine").write_text("kept")
    bench.measure(place(str(tmp_path)), 1 << 20, 0.2)
    most = (1 << 20) + bench.FILES * (bench.RECORD + 65536)  # and the folder's own blocks
    assert 1 << 20 <= written[0] <= most
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    over = bench.Clock(1.0)
    over.end -= 2.0
    assert over.over
    assert over.share(0.5).over  # what is left, not what was planned


def test_bench_of_a_place_that_cannot_be_written_is_said(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = typed("bench", tmp_path / "file")
    assert code == 1
    assert "cannot be measured: Not a directory" in err


def test_bench_cleans_up_when_it_fails(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench, "_random_reads", full)
    code, _, err = typed("bench", tmp_path, "--size", "1MiB", "--seconds", "1")
    assert code == 1
    assert "No space left on device. Give a folder that can be written and has the space" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [(5e-6, "5 us"), (0.0015, "1.5 ms"), (1.5, "1,500.0 ms"), (90, "90.0 s"), (7200, "2.0 h")],
)
def test_times_are_shown(value: float, words: str) -> None:
    assert bench._seconds(value) == words


def test_the_verb_is_known_to_the_program(tmp_path: Path) -> None:
    assert "data" in VERBS
    program = shutil.which("hydra-trainer", path=str(Path(sys.executable).parent))
    begin = [program] if program else [sys.executable, "-m", "hydra_trainer"]
    typed = [*begin, "data", "--help"]
    found = subprocess.run(typed, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0
    words = " ".join(found.stdout.split())
    assert "make packed shards of CIFAR-10, images, parquet, text or token files" in words
