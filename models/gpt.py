"""A decoder-only transformer for next-token prediction, with the layout of GPT-2."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier, at_least, fraction  # noqa: TID251

INIT_STD = 0.02
"""Standard deviation of every weight at the start (GPT-2's initializer_range)."""


class GPT(Classifier):
    """Pre-norm transformer, learned positions, token embedding tied to the output layer.

    Sizes and initialisation are those of Radford et al. 2019, "Language Models are Unsupervised
    Multitask Learners". Predicting the next token is a classification over the vocabulary, so the
    loss and metrics are those of Classifier, over all B * T targets.

    Args:
        vocab_size: number of token ids. Not padded: the logits have exactly this many columns.
        block_size: the most tokens that one row may have, the T of [B, T].
        n_layer: number of blocks.
        n_head: attention heads in each block.
        n_embd: width of the residual stream, divisible by n_head.
        dropout: share dropped from embeddings, attention weights and block outputs in training.
        bias: whether linear layers and layer norms have a bias, as in GPT-2.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        at_least("vocab_size", vocab_size, 2)
        super().__init__(vocab_size)
        at_least("block_size", block_size, 1)
        at_least("n_layer", n_layer, 1)
        _check_heads(n_head, n_embd)
        fraction("dropout", dropout)
        self.block_size = block_size
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(n_head, n_embd, dropout, bias) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd, bias=bias)
        self.init_weights()
        # Counted now: FSDP leaves each rank with a part of the parameters.
        self._num_parameters = sum(parameter.numel() for parameter in self.parameters())

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits [B, T, vocab_size] of ids [B, T], or their mean loss for targets [B, T].

        Raises:
            ValueError: T is larger than block_size.
        """
        length = tokens.shape[1]
        if length > self.block_size:
            raise ValueError(
                f"model.block_size is {self.block_size}, but the batch has {length} tokens in a "
                f"row. Type model.block_size={length} for a model that takes them."
            )
        stream = self.dropout(self.tokens(tokens) + self.positions.weight[:length])
        for block in self.blocks:
            stream = block(stream)
        # The tied output layer is the embedding itself, so that it is saved and sharded once.
        logits = F.linear(self.norm(stream), self.tokens.weight)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the batch, a scalar still on the device."""
        # The loss is a part of forward because that is what torch.compile sees: it then need not
        # keep several copies of the logits, by far the largest tensor of a small model.
        tokens, targets = batch
        return self(tokens, targets)

    def init_weights(self) -> None:
        """Draw all parameters anew, with the two standard deviations of GPT-2."""
        # Each block adds two projections to the stream; scaled so, its variance does not grow.
        scaled = INIT_STD / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                projection = name.endswith("project.weight")
                nn.init.normal_(parameter, std=scaled if projection else INIT_STD)

    def num_parameters(self) -> int:
        """Return the number of parameters of the whole model, the tied embedding counted once."""
        return self._num_parameters

    def flops_per_token(self) -> int:
        """Return the floating-point operations of one training step per token, forward and back.

        6N + 12 L d T (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B), where L is
        n_layer, d is n_embd, T is block_size, and N counts all parameters but the position
        embedding, which is looked up and multiplies nothing. The token embedding counts: it is
        the output layer. Recomputation is not counted, and attention as if it were not causal.
        """
        length, width = self.positions.num_embeddings, self.positions.embedding_dim
        matmul_parameters = self._num_parameters - length * width
        return 6 * matmul_parameters + 12 * len(self.blocks) * width * length

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Return token ids [B, T + max_new_tokens], drawn one by one after `tokens` [B, T].

        Call `eval()` first: dropout is on otherwise. Only the last block_size ids are looked at.

        Args:
            tokens: the beginning, at least one id in each row.
            max_new_tokens: how many ids to draw.
            temperature: above 0; logits are divided by it.
            top_k: draw from the k likeliest ids only, 1 for the likeliest; None for all.

        Raises:
            ValueError: temperature or top_k is out of its range.
        """
        _check_sampling(temperature, top_k, self.tokens.num_embeddings)
        for _ in range(max_new_tokens):
            logits = self(tokens[:, -self.block_size :])[:, -1] / temperature
            if top_k is not None:
                least = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < least, -math.inf)
            drawn = torch.multinomial(logits.float().softmax(-1), 1)
            tokens = torch.cat((tokens, drawn), dim=1)
        return tokens


class Block(nn.Module):
    """Attention, then a two-layer perceptron four times as wide, each added to the stream.

    Args:
        n_head: attention heads.
        n_embd: width of the stream [B, T, n_embd].
        dropout: share dropped from the attention weights and from both outputs.
        bias: whether linear layers and layer norms have a bias.
    """

    def __init__(self, n_head: int, n_embd: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(n_embd, bias=bias)
        self.attention = CausalAttention(n_head, n_embd, dropout, bias)
        self.mlp_norm = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = Perceptron(n_embd, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream [B, T, n_embd] after this block."""
        stream = stream + self.dropout(self.attention(self.attention_norm(stream)))
        return stream + self.dropout(self.mlp(self.mlp_norm(stream)))


class CausalAttention(nn.Module):
    """Multi-head attention in which no token sees a later one.

    PyTorch picks the kernel: on a GPU in bf16 or fp16 that is flash attention.
    """

    def __init__(self, n_head: int, n_embd: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.query_key_value = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.project = nn.Linear(n_embd, n_embd, bias=bias)

    def forward(self, stream: Tensor) -> Tensor:
        """Return [B, T, n_embd] of [B, T, n_embd]."""
        # Three of [B, T, n_head, n_embd / n_head]: views, no copy.
        parts = self.query_key_value(stream).unflatten(-1, (3, self.n_head, -1)).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return self.project(mixed.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Linear, GELU, linear; four times as wide in the middle."""

    def __init__(self, n_embd: int, bias: bool) -> None:
        super().__init__()
        self.expand = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.project = nn.Linear(4 * n_embd, n_embd, bias=bias)

    def forward(self, stream: Tensor) -> Tensor:
        """Return [B, T, n_embd] of [B, T, n_embd]."""
        # The tanh form is the one that GPT-2 was trained with.
        return self.project(F.gelu(self.expand(stream), approximate="tanh"))


def _check_heads(n_head: int, n_embd: int) -> None:
    at_least("n_head", n_head, 1)
    at_least("n_embd", n_embd, 1)
    if n_embd % n_head:
        lower = max(n_embd // n_head, 1) * n_head
        raise ValueError(
            f"model.n_embd is {n_embd}, but must be divisible by model.n_head={n_head}. "
            f"Type model.n_embd={lower} or model.n_embd={lower + n_head}."
        )


def _check_sampling(temperature: float, top_k: int | None, vocab_size: int) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature!r}, but must be above 0. Pass top_k=1 for no randomness."
        )
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(
            f"top_k is {top_k!r}, but must be from 1 to {vocab_size}, the vocabulary, or None."
        )
