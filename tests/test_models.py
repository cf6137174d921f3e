"""The models: what they compute, count, refuse and log; and their files in conf/model."""

import inspect
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from hydra.utils import get_class
from lightning import Trainer
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hydra_trainer.conf
from hydra_trainer.models.classifier import Classifier
from hydra_trainer.models.convnet import ConvNet
from hydra_trainer.models.gpt import GPT
from hydra_trainer.models.mlp import MLP
from hydra_trainer.models.resnet18 import ResNet18

IMAGE_MODELS = (MLP, ConvNet, ResNet18)
SMALL_GPT = {"vocab_size": 17, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
CONFIGS = sorted(Path(hydra_trainer.conf.__file__).parent.glob("model/*.yaml"))
INFO = {"shape": [1, 8, 8], "num_classes": 10, "vocab_size": 50257, "block_size": 1024}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(count: int, shape: list[int]) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *shape), torch.arange(count) % 10


def tokens(rows: int, length: int = 12) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(0, 17, (rows, length + 1))
    return drawn[:, :-1], drawn[:, 1:]


def small(kind: type[Classifier]) -> tuple[Any, Callable[[int], tuple[Tensor, Tensor]]]:
    """Return a small model and a function that makes a batch for it."""
    if kind is GPT:
        return GPT(**SMALL_GPT), tokens
    width = {"hidden": 16} if kind is MLP else {"width": 4}
    return kind(input_shape=[1, 8, 8], num_classes=10, **width), lambda n: images(n, [1, 8, 8])


# ------------------------------------------------------------------------------------- all models


@pytest.mark.parametrize("kind", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [[1, 8, 8], [1, 28, 28], [3, 32, 32], [3, 17, 40]])
def test_image_models_take_any_shape(kind: type[Classifier], shape: list[int]) -> None:
    model = kind(input_shape=shape, num_classes=7)
    assert model(images(3, shape)[0]).shape == (3, 7)


@pytest.mark.parametrize("kind", [*IMAGE_MODELS, GPT])
@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_steps_never_wait_for_the_device(kind: type[Classifier], step: str) -> None:
    # Tensors on the meta device have no values: whatever looks at one raises.
    model, make = small(kind)
    model.to("meta")
    batch = tuple(part.to("meta") for part in make(4))
    getattr(model, step)(batch, 0)


@pytest.mark.parametrize("kind", [*IMAGE_MODELS, GPT])
def test_learns_one_batch_by_heart(kind: type[Classifier]) -> None:
    model, make = small(kind)
    batch = make(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model.training_step(batch, 0)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * first
    # DDP waits for a gradient of every parameter.
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", [*IMAGE_MODELS, GPT])
def test_training_loss_is_the_mean_cross_entropy(kind: type[Classifier]) -> None:
    model, make = small(kind)
    model.eval()
    inputs, targets = make(5)
    chosen = model(inputs).softmax(-1).gather(-1, targets.unsqueeze(-1))
    torch.testing.assert_close(model.training_step((inputs, targets), 0), -chosen.log().mean())


@pytest.mark.parametrize("kind", [ConvNet, GPT])
def test_compiles_as_one_graph(kind: type[Classifier]) -> None:
    model, make = small(kind)
    model.eval()
    batch = make(4)
    before = model.training_step(batch, 0)
    model.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model.training_step(batch, 0), before)


@pytest.mark.parametrize("kind", [*IMAGE_MODELS, GPT])
def test_metrics_are_not_saved_with_the_weights(kind: type[Classifier]) -> None:
    model, _ = small(kind)
    saved = {name.split(".")[0] for name in model.state_dict()}
    assert not saved & {"val_loss", "val_accuracy", "test_loss", "test_accuracy"}


@pytest.mark.parametrize(("kind", "last"), [(MLP, False), (ConvNet, True), (ResNet18, True)])
def test_channels_last_changes_the_layout_only(kind: type[Classifier], last: bool) -> None:
    model, make = small(kind)
    assert model.channels_last is last
    model.eval()
    inputs, _ = make(4)
    before = model(inputs)
    after = model.to(memory_format=torch.channels_last)(
        inputs.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(after, before)


def test_convnet_reads_digits() -> None:
    digits = load_digits()
    inputs = torch.tensor(digits.images / 16 - 0.3, dtype=torch.float32).unsqueeze(1)
    targets = torch.tensor(digits.target)
    split = 1437
    model = ConvNet([1, 8, 8], 10, width=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(3):
        order = torch.randperm(split, generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(64):
            optimizer.zero_grad()
            model.training_step((inputs[chosen], targets[chosen]), 0).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(inputs[split:]).argmax(-1) == targets[split:]
    # The last fifth is in other people's handwriting, and harder than a random fifth.
    assert right.float().mean() > 0.93


def test_resnet18_has_the_known_number_of_parameters() -> None:
    # 11,173,962: the count of the many public CIFAR-10 versions of this network.
    with torch.device("meta"):
        model = ResNet18([3, 32, 32], 10)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def test_resnet18_blocks_start_as_the_identity() -> None:
    model = ResNet18([1, 8, 8], 10, width=4)
    features = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(model.blocks[0](features), features)


# ---------------------------------------------------------------------------------------- metrics


class Fixed(Classifier):
    """Logits that are the inputs."""

    def __init__(self) -> None:
        super().__init__(3)
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def logits_and_targets(count: int) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(count, 3), torch.randint(0, 3, (count,))


def expected(stage: str, logits: Tensor, targets: Tensor) -> dict[str, float]:
    return {
        f"{stage}/loss": F.cross_entropy(logits, targets).item(),
        f"{stage}/acc": (logits.argmax(-1) == targets).float().mean().item(),
    }


def evaluate(model: Classifier, logits: Tensor, targets: Tensor, stage: str) -> dict[str, float]:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(logits, targets), batch_size=5)
    run = trainer.validate if stage == "val" else trainer.test
    return dict(run(model, loader, verbose=False)[0])


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_exact_with_an_uneven_last_batch(stage: str) -> None:
    model = Fixed()
    for _ in range(2):  # the second time shows that the first was reset
        logits, targets = logits_and_targets(13)
        logged = evaluate(model, logits, targets, stage)
        assert logged == pytest.approx(expected(stage, logits, targets), rel=1e-6)


def test_token_metrics_count_every_token() -> None:
    model, (inputs, targets) = GPT(**SMALL_GPT), tokens(7)
    with torch.no_grad():
        logits = model.eval()(inputs).flatten(0, 1)
    logged = evaluate(model, inputs, targets, "val")
    assert logged == pytest.approx(expected("val", logits, targets.flatten()), rel=1e-5)


def test_a_nan_loss_is_not_left_out_of_the_mean() -> None:
    logits, targets = logits_and_targets(8)
    logits[3] = math.nan
    assert math.isnan(evaluate(Fixed(), logits, targets, "val")["val/loss"])


def rank(number: int, meeting: str, answers: Any) -> None:
    """Validate one of two uneven shares and report what this rank logs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    torch.manual_seed(0)
    logits, targets = logits_and_targets(13)
    model, logged = Fixed(), dict[str, float]()
    model.log = lambda name, value, **_: logged.update({name: value.item()})
    for part in ([slice(0, 5), slice(5, 7)], [slice(7, 13)])[number]:
        model.validation_step((logits[part], targets[part]), 0)
    model.on_validation_epoch_end()
    answers.put(logged)
    dist.destroy_process_group()


def test_metrics_are_those_of_all_ranks(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")  # a new interpreter would import torch again
    answers = fork.Queue()
    ranks = [
        fork.Process(target=rank, args=(n, str(tmp_path / "meeting"), answers), daemon=True)
        for n in range(2)
    ]
    for process in ranks:
        process.start()
    logged = [answers.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
    logits, targets = logits_and_targets(13)
    for one in logged:
        assert one == pytest.approx(expected("val", logits, targets), rel=1e-6)


# -------------------------------------------------------------------------------------------- gpt


def test_no_token_sees_a_later_one() -> None:
    model = GPT(**SMALL_GPT).eval()
    before, _ = tokens(2)
    after = before.clone()
    after[:, 7] = (after[:, 7] + 1) % 17
    changed = (model(before) != model(after)).any(-1).any(0)
    assert changed.tolist() == [False] * 7 + [True] * 5


def test_positions_matter() -> None:
    model = GPT(**SMALL_GPT).eval()
    same = torch.full((1, 4), 3)
    logits = model(same)[0]
    assert not torch.allclose(logits[0], logits[3])


def test_the_output_layer_is_the_token_embedding() -> None:
    model = GPT(**SMALL_GPT)
    inputs = torch.zeros(1, 4, dtype=torch.int64)
    model.training_step((inputs, inputs), 0).backward()
    # Token 5 is not in the input: its gradient comes through the output.
    assert model.tokens.weight.grad[5].abs().sum() > 0
    shaped = [name for name, value in model.state_dict().items() if value.shape == (17, 16)]
    assert shaped == ["tokens.weight"]


def test_weights_start_as_in_gpt2() -> None:
    model = GPT(vocab_size=300, block_size=64, n_layer=8, n_head=4, n_embd=128)
    projections = 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.dim() == 1:
            assert (parameter == 1).all()
        else:
            scaled = name.endswith(".project.weight")
            projections += scaled
            std = 0.02 / math.sqrt(2 * 8) if scaled else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.1 * std, name
    assert projections == 2 * 8


def test_without_bias_there_is_none() -> None:
    model = GPT(**SMALL_GPT, bias=False)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_dropout_is_off_in_evaluation() -> None:
    model, (inputs, _) = GPT(**SMALL_GPT, dropout=0.5), tokens(2)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize(
    ("name", "published", "digits"),
    [
        # Exact for GPT-2, with its vocabulary and context; rounded for GPT-3 (Brown et al. 2020,
        # table 2.1), whose context is 2048.
        ("gpt_124m", 124_439_808, 0),
        ("gpt_350m", 354_823_168, 0),
        ("gpt_760m", 760_000_000, 7),
        ("gpt_1.3b", 1_300_000_000, 8),
    ],
)
def test_gpt_sizes_are_the_published_ones(name: str, published: int, digits: int) -> None:
    context = 2048 if digits else 1024
    with torch.device("meta"):
        model = build(name, block_size=context)
    count = model.num_parameters()
    assert count == sum(p.numel() for p in model.parameters())
    assert round(count, -digits) == published


def test_flops_per_token_of_gpt2() -> None:
    with torch.device("meta"):
        model = build("gpt_124m")
    # 6 (124,439,808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert model.flops_per_token() == 741_920_256 + 113_246_208


def test_gpt_has_its_layers_in_a_module_list_for_sharding() -> None:
    blocks = GPT(**SMALL_GPT).blocks
    assert isinstance(blocks, nn.ModuleList)
    assert len(blocks) == SMALL_GPT["n_layer"]


def test_generates_what_is_likeliest() -> None:
    model = GPT(**SMALL_GPT).eval()
    start, _ = tokens(2, length=9)
    drawn = model.generate(start, 6, top_k=1)  # past the block size of 12
    assert drawn.shape == (2, 15)
    assert torch.equal(drawn[:, :9], start)
    for place in range(9, 15):
        likeliest = model(drawn[:, max(0, place - 12) : place])[:, -1].argmax(-1)
        assert torch.equal(drawn[:, place], likeliest)


def test_generates_from_the_k_likeliest_only() -> None:
    model = GPT(**SMALL_GPT).eval()
    start = torch.zeros(200, 1, dtype=torch.int64)
    drawn = model.generate(start, 1, temperature=100.0, top_k=3)[:, 1]
    assert set(drawn.tolist()) == set(model(start[:1])[0, -1].topk(3).indices.tolist())


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("top_k", 0), ("top_k", 18)])
def test_generate_refuses(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{key} is {value}, but must be"):
        GPT(**SMALL_GPT).generate(torch.zeros(1, 1, dtype=torch.int64), 1, **{key: value})


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((kind, "num_classes", 1) for kind in IMAGE_MODELS),
        *((kind, "input_shape", value) for kind in IMAGE_MODELS for value in ([28, 28], [0, 8, 8])),
        (MLP, "input_shape", [1, 0, 8]),
        (MLP, "hidden", 0),
        (MLP, "depth", -1),
        (MLP, "dropout", 1.0),
        (ConvNet, "input_shape", [3, 7, 32]),
        (ConvNet, "input_shape", [3, 32, 32.5]),
        (ConvNet, "input_shape", 32),
        (ConvNet, "width", 0),
        (ConvNet, "width", True),
        (ConvNet, "dropout", -0.1),
        (ResNet18, "input_shape", [3, 32, 7]),
        (ResNet18, "width", 0.5),
        (GPT, "vocab_size", 1),
        (GPT, "block_size", 0),
        (GPT, "n_layer", 0),
        (GPT, "n_head", 0),
        (GPT, "n_embd", 0),
        (GPT, "dropout", math.nan),
    ],
)
def test_bad_arguments_are_named(kind: type[Classifier], key: str, value: Any) -> None:
    good = SMALL_GPT if kind is GPT else {"input_shape": [3, 32, 32], "num_classes": 10}
    with pytest.raises(ValueError) as caught:
        kind(**(good | {key: value}))
    message = str(caught.value)
    assert message.startswith(f"model.{key} is {value!r}, but must be ")
    assert f"model.{key}=" in message  # what to type


def test_width_must_be_divisible_by_heads() -> None:
    with pytest.raises(ValueError, match=r"model\.n_embd is 16.*Type model\.n_embd=15 or .*=18"):
        GPT(**(SMALL_GPT | {"n_head": 3}))


def test_more_tokens_than_the_block_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.block_size is 12.*13 tokens.*block_size=13"):
        GPT(**SMALL_GPT)(tokens(1, length=13)[0])


def test_mlp_refuses_images_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"'model\.input_shape=\[1,8,8\]'"):
        MLP([3, 32, 32], 10)(images(2, [1, 8, 8])[0])


# ----------------------------------------------------------------------------------------- config


def node(name: str, **info: Any) -> dict[str, Any]:
    """Return conf/model/NAME.yaml as Hydra composes it, beside data with these facts."""
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        composed = compose(overrides=[f"+model={name}"])
    whole = OmegaConf.merge({"data": {"info": INFO | info}}, composed)
    plain = OmegaConf.to_container(whole, resolve=True)
    assert isinstance(plain, dict)
    return dict(plain["model"])


def build(name: str, **info: Any) -> Any:
    arguments = node(name, **info)
    return get_class(arguments.pop("_target_"))(**arguments)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_gives_every_argument_of_its_class(path: Path) -> None:
    assert path.read_text().startswith("# ")
    if path.stem == "own":
        assert list(OmegaConf.load(path)) == ["_target_"]
        return
    arguments = node(path.stem)
    kind = get_class(arguments.pop("_target_"))
    assert list(arguments) == list(inspect.signature(kind).parameters)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert {name: arguments[name] for name in defaults} == defaults


def test_all_configs_are_there() -> None:
    sizes = ["gpt_1.3b", "gpt_124m", "gpt_350m", "gpt_760m"]
    assert [path.stem for path in CONFIGS] == sorted(
        ["convnet", "gpt", "mlp", "own", "resnet18", *sizes]
    )


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet18"])
def test_image_configs_follow_the_data(name: str) -> None:
    model = build(name, shape=[3, 12, 10], num_classes=4)
    assert model(images(2, [3, 12, 10])[0]).shape == (2, 4)
