"""ResNet-18 for small images, after He et al. 2015, "Deep Residual Learning" (arXiv:1512.03385)."""

from typing import ClassVar

from torch import Tensor, nn

from .classifier import Classifier, at_least, image_shape  # noqa: TID251

SMALLEST = 8
"""Pixels: three halvings leave 1x1."""

BLOCKS = (2, 2, 2, 2)
"""Blocks at each resolution: with two convolutions each, the stem and the classifier, 18 layers."""


class ResNet18(Classifier):
    """ResNet-18 with the stem of the paper's CIFAR variant: a 3x3 convolution, no max-pooling.

    11.2 million parameters at width 64.

    Args:
        input_shape: [channels, height, width] of one image, height and width at least 8.
        num_classes: how many classes there are.
        width: channels at full resolution; doubled at each of the three halvings.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    channels_last: ClassVar[bool] = True

    def __init__(self, input_shape: list[int], num_classes: int, width: int = 64) -> None:
        super().__init__(num_classes)
        channels, _, _ = image_shape(input_shape, SMALLEST)
        at_least("width", width, 1)
        self.stem = nn.Sequential(*_convolution(channels, width), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*_blocks(width))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(width * 2 ** (len(BLOCKS) - 1), num_classes)
        self._init_weights()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, num_classes] of images [B, C, H, W]."""
        return self.classify(self.pool(self.blocks(self.stem(images))))

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock):
                module.start_as_identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is 1x1 where the shape changes.

    Args:
        channels: channels of the input [B, channels, H, W].
        out: channels of the output [B, out, H / stride, W / stride], rounded up.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(channels, out, stride), nn.ReLU(inplace=True), *_convolution(out, out)
        )
        changes = channels != out or stride != 1
        self.shortcut = nn.Sequential(*_projection(channels, out, stride) if changes else ())
        self.activation = nn.ReLU(inplace=True)

    def start_as_identity(self) -> None:
        """Silence the branch: its last scale is 0 (Goyal et al. 2017, arXiv:1706.02677, 5.1)."""
        scale = self.branch[-1].weight
        assert isinstance(scale, Tensor)
        nn.init.zeros_(scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, out, H / stride, W / stride] of features [B, channels, H, W]."""
        return self.activation(self.branch(features) + self.shortcut(features))


def _blocks(width: int) -> list[BasicBlock]:
    blocks, channels = [], width
    for stage, count in enumerate(BLOCKS):
        for place in range(count):
            stride = 2 if stage > 0 and place == 0 else 1
            blocks.append(BasicBlock(channels, width * 2**stage, stride))
            channels = width * 2**stage
    return blocks


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out)]


def _projection(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)]
