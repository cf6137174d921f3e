"""A small convolutional network for images of 8x8 to about 64x64 pixels."""

from typing import ClassVar

from torch import Tensor, nn

from .classifier import Classifier, at_least, fraction, image_shape  # noqa: TID251

SMALLEST = 8
"""Pixels: two halvings leave 2x2, the least that a 3x3 convolution can use."""


class ConvNet(Classifier):
    """Five 3x3 convolutions with batch normalisation, at full, half and quarter resolution.

    0.24 million parameters at width 32. It halves with strides, because the gradient of
    max-pooling has no deterministic form on a GPU.

    Args:
        input_shape: [channels, height, width] of one image, height and width at least 8.
        num_classes: how many classes there are.
        width: channels at full resolution; twice and four times as many further down.
        dropout: share of pooled features dropped in training.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    channels_last: ClassVar[bool] = True

    def __init__(
        self, input_shape: list[int], num_classes: int, width: int = 32, dropout: float = 0.1
    ) -> None:
        super().__init__(num_classes)
        channels, _, _ = image_shape(input_shape, SMALLEST)
        at_least("width", width, 1)
        fraction("dropout", dropout)
        self.features = nn.Sequential(
            _convolution(channels, width),
            _convolution(width, 2 * width, stride=2),
            _convolution(2 * width, 4 * width, stride=2),
            Residual(_convolution(4 * width, 4 * width)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, num_classes] of images [B, C, H, W]."""
        return self.classify(self.features(images))


class Residual(nn.Module):
    """Adds a branch to its own input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return features + self.branch(features)


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )
