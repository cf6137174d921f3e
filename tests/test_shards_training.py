"""data=shards: what the loaders give, exactly once over any interruption, and what is refused."""

import inspect
import io
import threading
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

from hydra_trainer import config, training
from hydra_trainer.data import BatchSampler, Indices, resumable
from hydra_trainer.datasets.shards import (
    PackedModule,
    ShardColumns,
    Shards,
    ShardTokens,
    decode,
    size_of,
)
from hydra_trainer.errors import ConfigError, DataError
from hydra_trainer.objects import Settings
from hydra_trainer.preemption import NoStopFlag
from hydra_trainer.targets import TRUSTED, instantiate

from .buckets import KEYS, Bucket, bucket, without_aws
from .conftest import REPOSITORY, Job
from .packed import numbered, pack

WORLDS = [1, 2, 3, 4]
WORKERS = [0, 1, 2]
BATCH = 12  # can be divided among any of WORLDS


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with bucket(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def s3(service: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in without_aws():
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return service


def ready(module: PackedModule) -> Any:
    module.prepare_data()
    module.setup("fit")
    return module


def images(count: int, seed: int = 0, size: int = 8) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 10, count).astype(np.uint8)
    return {
        "image": draw.integers(0, 256, (count, 1, size, size)).astype(np.uint8),
        "label": labels,
    }


def columns(root: Path, **keys: Any) -> Any:
    options: dict[str, Any] = {"batch_size": BATCH, "buffer": 4000, "rank_lanes": 2} | keys
    return ready(ShardColumns(str(root), **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed") / "data"
    numbered(root, [40, 25, 60, 35, 50, 44, 1, 30])
    return root


# --- exactly once ---


def run(
    module: Any, world: int, workers: int, state: Any, steps: int | None
) -> tuple[list[int], Any]:
    """Train some steps on `world` processes, one after another; return samples and the state."""
    seen: list[int] = []
    state_after = state
    for rank in range(world):
        module.num_workers = workers
        loader = resumable(
            module.train_dataloader(), seed=5, rank=rank, world_size=world, train=True
        )
        sampler: Any = loader.batch_sampler
        if state is not None:
            sampler.load_state_dict(state)
        epoch, consumed = sampler.epoch, sampler.consumed
        left = len(sampler) - sampler.batches_done
        for number, batch in enumerate(loader, 1):
            seen += batch["id"].tolist()
            sampler.set_position(epoch, consumed + number * BATCH)
            if number == (left if steps is None else steps):
                break
        state_after = sampler.state_dict()
    return seen, state_after


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("world", WORLDS)
def test_stopped_and_resumed_every_sample_comes_exactly_once(
    folder: Path, world: int, workers: int
) -> None:
    module = columns(folder)
    total = len(module.train_set) // BATCH * BATCH
    first, state = run(module, 2, 0, None, 5)
    second, state = run(module, world, workers, state, 7)
    third, state = run(module, 3, 1, state, None)
    assert [len(first), len(second)] == [5 * BATCH, 7 * BATCH]
    seen = first + second + third
    assert len(seen) == len(set(seen)) == total
    assert state["epoch"] == 1
    alone, _ = run(module, 1, 0, None, None)
    assert sorted(alone) == sorted(seen)
    assert set(alone[: 5 * BATCH]) == set(first)


@given(
    legs=st.lists(st.tuples(st.sampled_from(WORLDS), st.integers(1, 9)), min_size=1, max_size=6),
    buffer=st.sampled_from([1, 4000, 10**6]),
)
@hypothesis_settings(deadline=None, max_examples=40)
def test_any_number_of_stops_repeats_and_skips_nothing(
    folder: Path, legs: list[tuple[int, int]], buffer: int
) -> None:
    dataset = columns(folder, buffer=buffer).train_set
    expected = [list(b) for b in BatchSampler(len(dataset), BATCH, 5, order=dataset.epoch_order)]
    done = 0
    for world, steps in legs:
        ranks = []
        for rank in range(world):
            sampler = BatchSampler(len(dataset), BATCH, 5, rank, world, order=dataset.epoch_order)
            sampler.set_position(0, done * BATCH)
            ranks.append(iter(sampler))
        for _ in range(steps):
            if done == len(expected):
                return
            assert list(chain.from_iterable(map(next, ranks))) == expected[done]
            done += 1


def test_the_place_tells_what_comes_next(folder: Path) -> None:
    dataset = columns(folder).train_set
    for rank in range(3):
        sampler = BatchSampler(len(dataset), BATCH, 5, rank, 3, order=dataset.epoch_order)
        batches = [*sampler, *sampler]
        for batch, following in pairwise(batches):
            assert batch.place is not None
            expected = batch.place.after(1)
            if expected is None or expected.low + BATCH > len(dataset):
                expected = batch.place.next_pass()
            assert expected == following.place


def test_evaluation_leaves_no_sample_out_and_is_the_same_in_every_pass(folder: Path) -> None:
    module = columns(folder, buffer=1)
    loader = resumable(module.val_dataloader(), seed=5, rank=0, world_size=1, train=False)
    passes = [torch.cat([batch["id"] for batch in loader]).tolist() for _ in range(2)]
    assert passes[0] == passes[1]
    assert len(set(passes[0])) == len(module.val_set)


# --- from S3 ---


def test_from_s3_the_batches_are_the_same_with_any_workers(
    tmp_path: Path, s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, count in [("train", 100), ("val", 20)]:
        pack(tmp_path / part, [images(count, n) for n in range(4)])
        for file in (tmp_path / part).iterdir():
            s3.objects(f"s3://bucket/set/{part}").put(file.name, file.read_bytes())
    options: dict[str, Any] = {"shape": [1, 8, 8], "batch_size": 16, "buffer": 16_000}
    found = []
    for root, workers in [(str(tmp_path), 0), ("s3://bucket/set", 0), ("s3://bucket/set", 2)]:
        module = Shards(root, num_workers=workers, **options)
        module.s3 = Settings(s3.endpoint)
        ready(module)
        loaders = (
            resumable(module.train_dataloader(), seed=5, rank=0, world_size=1, train=True),
            resumable(module.val_dataloader(), seed=5, rank=0, world_size=1, train=False),
        )
        found.append([batch for loader in loaders for batch in loader])
    for other in found[1:]:
        assert len(other) == len(found[0]) > 20
        for ours, theirs in zip(found[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Failing(torch.utils.data.Dataset[Any]):
    """Numbers, made in a thread; number `bad` cannot be made."""

    pure = ahead = True

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        self.threads.add(threading.current_thread().name)
        if index == self.bad:
            raise DataError("no such number")
        return index


def ahead(dataset: Failing) -> Iterator[list[int]]:
    loader = resumable(DataLoader(dataset, 3), seed=0, rank=0, world_size=1, train=True)
    return (batch.tolist() for batch in loader)


def test_batches_are_made_beside_the_step() -> None:
    dataset = Failing()
    assert [*ahead(dataset)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert dataset.threads == {"batches"}
    assert "batches" not in {thread.name for thread in threading.enumerate()}


def test_an_error_beside_the_step_is_raised_where_its_batch_is_asked_for() -> None:
    batches = ahead(Failing(7))
    assert [next(batches), next(batches)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(DataError, match="no such number"):
        next(batches)


def test_who_stops_in_the_middle_leaves_no_thread() -> None:
    batches = ahead(Failing())
    next(batches)
    del batches
    assert "batches" not in {thread.name for thread in threading.enumerate()}


def test_storage_says_how_the_data_are_reached(tmp_path: Path) -> None:
    config.register()
    words = ["data=shards", "data.root=s3://bucket/set", "storage.s3.deadline=7"]
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        plain = config.validate(compose("config", [*words, "storage.s3.region=eu-west-1"]))
    made: Any = training._Session(config.to_job(plain, tmp_path).config, NoStopFlag(), None)._data()
    assert (made.s3.deadline_s, made.s3.region) == (7.0, "eu-west-1")


# --- what a batch is ---


def test_images_are_normalised_and_augmented_in_training_only(tmp_path: Path) -> None:
    part = images(200)
    pack(tmp_path, [part], {"mean": [0.5], "std": [0.25], "classes": list("abcdefghij")})
    module = ready(Shards(str(tmp_path), [1, 8, 8], padding=1))
    pixels, labels = module.val_set.__getitems__(list(range(20)))
    assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
    back = ((pixels * 0.25 + 0.5) * 255).round().to(torch.uint8).numpy()
    packed = {
        image.tobytes(): label for image, label in zip(part["image"], part["label"], strict=True)
    }
    assert [packed[image.tobytes()] for image in back] == labels.tolist()
    plain = ready(Shards(str(tmp_path), [1, 8, 8], augment=False)).train_set
    moved, indices = module.train_set, Indices([*range(50)], epoch=3)
    assert not torch.equal(plain.__getitems__(indices)[0], moved.__getitems__(indices)[0])
    assert torch.equal(plain.__getitems__(indices)[1], moved.__getitems__(indices)[1])
    again = moved.__getitems__(Indices([7], epoch=3))[0][0]
    assert torch.equal(again, moved.__getitems__(indices)[0][7])
    assert not torch.equal(again, moved.__getitems__(Indices([7], epoch=4))[0][0])
    image, label = module.val_set[3]
    assert torch.equal(image, pixels[3])
    assert label == labels[3]


def encoded(colour: tuple[int, int, int], size: tuple[int, int], form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def test_images_in_files_are_decoded(tmp_path: Path) -> None:
    colours = [(10 * n, 255 - 10 * n, n) for n in range(20)]
    files = [encoded(c, (20 + n, 50 - n)) for n, c in enumerate(colours)]
    pack(tmp_path, [{"image": files, "label": np.arange(20, dtype=np.uint8)}])
    options: dict[str, Any] = {"num_classes": 20, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    module = ready(Shards(str(tmp_path), [3, 8, 12], val_fraction=0.25, **options))
    for part in (module.train_set, module.val_set):
        pixels, labels = part.__getitems__(list(range(len(part))))
        assert pixels.shape[1:] == (3, 8, 12)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            assert np.allclose(image.numpy(), np.array(colours[label])[:, None, None], atol=0.01)


def test_a_decoded_image_is_its_middle() -> None:
    picture = Image.new("L", (60, 20), 0)
    picture.paste(200, (20, 0, 40, 20))
    file = io.BytesIO()
    picture.save(file, "PNG")
    found = decode(file.getvalue(), [1, 5, 5], None)
    assert (found[:, :, 1:-1] == 200).all()
    assert found.min() > 150  # at its edges the filter sees a little of what is beside it
    big = encoded((90, 90, 90), (1600, 1200), "JPEG")
    assert np.allclose(decode(big, [3, 16, 16], None), 90, atol=2)
    words = np.array([2**63, 2**40, 5, 6, 7], np.uint64)
    assert np.allclose(decode(big, [3, 16, 16], words), 90, atol=2)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    files = [encoded((1, 2, 3), (9, 9))] * 9 + [encoded((1, 2, 3), (9, 9))[:40]]
    pack(tmp_path, [{"image": files, "label": np.zeros(10, np.uint8)}])
    module = ready(Shards(str(tmp_path), [3, 8, 8]))
    with pytest.raises(DataError, match=f"{tmp_path}: sample .* cannot be decoded"):
        for part in (module.train_set, module.val_set, module.test_set):
            part.__getitems__(list(range(len(part))))


def test_tokens_are_windows_and_the_next_ones(tmp_path: Path) -> None:
    windows = np.random.default_rng(0).integers(0, 50, (60, 9)).astype(np.uint16)
    pack(tmp_path, [{"tokens": windows}], {"vocab_size": 50, "block_size": 8})
    module = ready(ShardTokens(str(tmp_path), vocab_size=50, block_size=8))
    inputs, targets = module.train_set.__getitems__([0, 1, 2])
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (3, 8)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert {row.tobytes() for row in windows[:, :-1]} >= {
        row.numpy().astype(np.uint16).tobytes() for row in inputs
    }


def test_columns_of_ones_own(tmp_path: Path) -> None:
    part = {
        "x": np.arange(40, dtype=np.float32).reshape(20, 2),
        "raw": [b"ab" * n for n in range(20)],
    }
    pack(tmp_path, [part])
    module = columns(tmp_path, batch_size=4)
    batch = next(iter(module.val_dataloader()))
    assert batch["x"].shape == (2, 2)
    assert [len(raw) for raw in batch["raw"]] == batch["x"][:, 0].int().tolist()
    assert module.val_set[0]["x"].shape == (2,)
    assert list(columns(tmp_path, names=["x"]).train_set[0]) == ["x"]


# --- splits ---


def test_sets_below_root_are_used_and_others_held_out(tmp_path: Path) -> None:
    pack(tmp_path / "train", [images(100)])
    pack(tmp_path / "test", [images(30, 1)])
    module = ready(Shards(str(tmp_path), [1, 8, 8]))
    sizes = [len(part) for part in (module.train_set, module.val_set, module.test_set)]
    assert sizes == [90, 10, 30]
    pack(tmp_path / "val", [images(20, 2)])
    module = ready(Shards(str(tmp_path), [1, 8, 8]))
    sizes = [len(part) for part in (module.train_set, module.val_set, module.test_set)]
    assert sizes == [100, 20, 30]


# --- what is refused ---


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"shape": [1, 9, 9]}, r"data\.shape is \[1, 9, 9\]: type data\.shape=\[1,8,8\]"),
        ({"num_classes": 9}, r"type data\.num_classes=10"),
        ({"image": "imege"}, "no column 'imege', it has image, label. Did you mean 'image'"),
        ({"image": "label"}, "is uint8 .* images are uint8"),
        ({"label": "image"}, "not one whole number for each sample"),
    ],
)
def test_an_index_that_is_not_what_the_keys_say(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    pack(tmp_path, [images(40)], {"classes": list("abcdefghij")})
    with pytest.raises(DataError, match=said) as caught:
        ready(Shards(str(tmp_path), **({"shape": [1, 8, 8]} | keys)))
    assert f"{tmp_path}/index.json" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"block_size": 9}, r"type data\.block_size=8"),
        ({"vocab_size": 49}, r"type data\.vocab_size=50"),
        ({"tokens": "id"}, "no windows of tokens"),
    ],
)
def test_tokens_that_are_not_what_the_keys_say(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    part = {"tokens": np.zeros((40, 9), np.uint8), "id": np.arange(40)}
    pack(tmp_path, [part], {"vocab_size": 50})
    with pytest.raises(DataError, match=said):
        ready(ShardTokens(str(tmp_path), **({"vocab_size": 50, "block_size": 8} | keys)))


def test_labels_and_tokens_that_the_model_has_no_place_for(tmp_path: Path) -> None:
    pack(tmp_path / "a", [images(40)])
    module = ready(Shards(str(tmp_path / "a"), [1, 8, 8], num_classes=3))
    with pytest.raises(DataError, match=r"data\.num_classes=3 allows 0 to 2"):
        module.train_set.__getitems__(list(range(30)))
    pack(tmp_path / "b", [{"tokens": np.full((40, 9), 70, np.uint8)}])
    module = ready(ShardTokens(str(tmp_path / "b"), vocab_size=50, block_size=8))
    with pytest.raises(DataError, match=r"type data\.vocab_size=71"):
        module.train_set.__getitems__([0])


def test_a_place_without_data_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no packed data.*hydra-trainer data pack"):
        ready(Shards(str(tmp_path), [1, 8, 8]))
    pack(tmp_path, [images(3)])
    with pytest.raises(DataError, match=r"has 3 samples, of which a share of 0\.1 is none"):
        ready(Shards(str(tmp_path), [1, 8, 8]))


def test_all_bad_keys_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Shards(
            "", [4, 8], num_classes=1, image="", mean=[1, 2], std=[0], augment="no",  # type: ignore
            padding=-1, cutout=-1, batch_size=0, num_workers=-1, val_fraction=0.5,
            test_fraction=0, buffer="much", rank_lanes=0, batch_lanes=0, cache="",
            cache_size=0, seed=-1, label="",
        )  # fmt: skip
    told = {problem.split()[0] for problem in caught.value.problems}
    assert told == {f"data.{key}" for key in inspect.signature(Shards).parameters}


@pytest.mark.parametrize(
    ("text", "size"), [(7, 7), ("7", 7), ("3KiB", 3072), ("2 GB", 2**31), ("1m", 2**20)]
)
def test_sizes(text: int | str, size: int) -> None:
    assert size_of(text) == size


# --- training ---


@pytest.mark.parametrize("name", ["shards", "shards_tokens"])
def test_a_file_of_conf_has_the_arguments_of_its_class(name: str, tmp_path: Path) -> None:
    config.register()
    node = OmegaConf.load(REPOSITORY / "conf" / "data" / f"{name}.yaml")
    plain: Any = OmegaConf.to_container(OmegaConf.create({"seed": 0, "data": node}), resolve=True)
    module = instantiate(config.arguments(plain, "data"), TRUSTED, "data")
    kind: Any = type(module)
    assert vars(module)["layout"] == vars(kind(**{**NEEDED[name], "root": "x"}))["layout"]


NEEDED: dict[str, dict[str, Any]] = {"shards": {"shape": [3, 32, 32]}, "shards_tokens": {}}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    pack(tmp_path / "data", [images(128, n) for n in range(9)])
    return [
        "data=shards",
        f"data.root={tmp_path / 'data'}",
        "data.shape=[1,8,8]",
        "data.buffer=20000",
        "data.num_workers=0",
        "trainer.max_epochs=2",
    ]


def test_a_run_that_was_stopped_ends_with_the_same_weights(
    job: Callable[..., Job], hit: Callable[..., dict[str, str]], words: list[str]
) -> None:
    alone, stopped = job("alone", *words), job("stopped", *words)
    code, printed = alone.run()
    assert code == 0, printed
    code, printed = stopped.run(**hit("SIGTERM", "train", step=5))
    assert code == 143, printed
    code, printed = stopped.run("data.num_workers=2")
    assert code == 0, printed
    ours, theirs = alone.state()["state_dict"], stopped.state()["state_dict"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_does_not_go_on_with_other_data(
    job: Callable[..., Job],
    hit: Callable[..., dict[str, str]],
    words: list[str],
    tmp_path: Path,
) -> None:
    stopped = job("stopped", *words)
    code, printed = stopped.run(**hit("SIGTERM", "train", step=5))
    assert code == 143, printed
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    pack(tmp_path / "data", [images(128, 100 + n) for n in range(9)])
    code, printed = stopped.run()
    assert code != 0
    assert "The checkpoint was made with other data" in " ".join(printed.split())
