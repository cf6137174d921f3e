"""A multilayer perceptron: the smallest thing that learns, for any image size."""

import math

from torch import Tensor, nn

from .classifier import Classifier, at_least, fraction, image_shape  # noqa: TID251


class MLP(Classifier):
    """`depth` hidden layers of `hidden` units, with ReLU and dropout.

    Args:
        input_shape: [channels, height, width] of one image.
        num_classes: how many classes there are.
        hidden: units in each hidden layer.
        depth: number of hidden layers.
        dropout: share of hidden units dropped in training.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        input_shape: list[int],
        num_classes: int,
        hidden: int = 256,
        depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        at_least("hidden", hidden, 1)
        at_least("depth", depth, 1)
        fraction("dropout", dropout)
        self.input_shape = image_shape(input_shape)
        sizes = [math.prod(self.input_shape)] + [hidden] * depth
        hidden_layers = [
            layer
            for size in sizes[:-1]
            for layer in (nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout))
        ]
        self.layers = nn.Sequential(nn.Flatten(), *hidden_layers, nn.Linear(hidden, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, num_classes] of images [B, C, H, W].

        Raises:
            ValueError: the images are not of `input_shape`.
        """
        if images.shape[1:] != self.input_shape:
            given = str(list(images.shape[1:])).replace(" ", "")
            raise ValueError(
                f"model.input_shape is {list(self.input_shape)}, but the batch has images of "
                f"shape {given}. Type 'model.input_shape={given}'."
            )
        return self.layers(images)
