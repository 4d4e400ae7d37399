"""A text tower that reads prompts without padding and computes nothing twice.

In: prompts as token embeddings, and contexts [B, K, M, d_text]. Out: text features [B, K, d].

Prompts of one length are grouped, so that no sequence is padded and the linear layers see real tokens only. The tokens
before the first word see no word, so their keys and values are computed once per layer; the last layer computes the
read-out tokens only. All this is exact for a causal tower of plain residual attention blocks, up to the order of
floating-point sums; every other tower is read as it is (`text_tower`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipautt.backbones.frozen_linear import frozen_linear
from clipautt.backbones.small_clip import TextBlock
from clipautt.backbones.text_tower import TextTower, class_names

TextPrecision = Literal["fp32", "bf16"]
_GAIN = 1.702
"""Factor inside QuickGELU's sigmoid, in open_clip and in OpenAI's models."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Prompts of one length."""

    members: Tensor
    """Their positions among the K prompts, int64 [k]."""
    embeddings: Tensor
    """Token embeddings after the shared start, the read-out token last, float32 [k, n, d_text]."""
    mask: Tensor
    """Which keys (shared start, then the prompt's tokens) each token of a prompt sees, bool [n, start + n]."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """The weights of one block, and the keys and values of the shared start."""

    block: Any
    """The block itself, for its norms, activation and scales, which stay in float32."""
    qkv: tuple[Tensor, Tensor]
    """Weight and bias of the projection to queries, keys and values."""
    out: tuple[Tensor, Tensor]
    """Output projection of the attention."""
    up: tuple[Tensor, Tensor]
    """First linear layer of the MLP."""
    down: tuple[Tensor, Tensor]
    """Second linear layer of the MLP."""
    gain: float
    """Factor on the second norm and on the first bias of the MLP; 1 except for QuickGELU, see `_finish`."""
    start_keys: Tensor
    """Keys of the shared start, [heads, start, width / heads]."""
    start_values: Tensor
    """Values of the shared start, [heads, start, width / heads]."""


def can_pack(tower: TextTower) -> bool:
    """Whether a tower can be read this way and gives the same features."""
    transformer = tower.module.transformer
    blocks = getattr(transformer, "resblocks", [None])
    return tower.cuttable and all(
        (type(block) is TextBlock or class_names(block)[0] == "open_clip.transformer.ResidualAttentionBlock")
        and isinstance(block.attn, nn.MultiheadAttention)
        and block.attn.in_proj_weight is not None
        and block.attn.in_proj_bias is not None
        and isinstance(block.ln_1, nn.LayerNorm)
        for block in blocks
    )


def read_prompts(
    tower: TextTower,
    embeddings: Tensor,
    tokens: Tensor,
    *,
    start: int,
    num_context: int,
    precision: TextPrecision = "fp32",
) -> Callable[[Tensor], Tensor]:
    """A function from contexts [B, K, M, d_text] to text features, float32 [B, K, d]; arguments as in `PackedTower`.

    A tower that cannot be packed is read with all its padding.
    """
    if can_pack(tower):
        packed = PackedTower(tower, embeddings, tokens, start=start, num_context=num_context, precision=precision)
        return packed.read

    def read(context: Tensor) -> Tensor:
        fixed = embeddings.expand(len(context), *embeddings.shape)
        before, behind = fixed[..., :start, :], fixed[..., start + num_context :, :]
        filled = torch.cat([before, context, behind], dim=-2).flatten(0, 1)
        with torch.autocast(context.device.type, torch.bfloat16, enabled=precision == "bf16"):
            features = tower.read(filled, tokens.repeat(len(context), 1))
        return features.float().view(len(context), len(tokens), -1)

    return read


class PackedTower:
    """K tokenized prompts and the tower that reads them, ready for many contexts at once.

    Args:
        tower: of a backbone; see `can_pack`.
        embeddings: token embeddings of the prompts, float32 [K, n, d_text].
        tokens: their ids, int64 [K, n].
        start: number of tokens before the first word, the same in all prompts.
        num_context: M, the number of tokens after them that context vectors replace.
        precision: of the linear layers and of attention; the residual stream stays in float32.
    """

    def __init__(
        self,
        tower: TextTower,
        embeddings: Tensor,
        tokens: Tensor,
        *,
        start: int,
        num_context: int,
        precision: TextPrecision = "fp32",
    ) -> None:
        self._text = tower.module
        self._start, self._num_context = start, num_context
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._heads: int = tower.module.transformer.resblocks[0].attn.num_heads
        ends = tokens.argmax(-1) if tower.eos_id is None else (tokens == tower.eos_id).int().argmax(-1)
        lengths = (ends + 1 - start).tolist()
        self.buckets = [self._bucket(embeddings, lengths, length) for length in sorted(set(lengths))]
        self._order = torch.cat([bucket.members for bucket in self.buckets]).argsort()
        with torch.no_grad():
            self._layers = self._prepare(embeddings[:1, :start])

    @property
    def num_tokens(self) -> int:
        """Tokens computed per context, over all prompts, without padding and without the shared start."""
        return sum(bucket.embeddings.shape[0] * bucket.embeddings.shape[1] for bucket in self.buckets)

    def _bucket(self, embeddings: Tensor, lengths: Sequence[int], length: int) -> Bucket:
        device = embeddings.device
        members = torch.tensor([k for k, tokens in enumerate(lengths) if tokens == length], device=device)
        mask = torch.ones(length, self._start + length, dtype=torch.bool, device=device).tril(self._start)
        return Bucket(members, embeddings[members, self._start : self._start + length], mask)

    def _prepare(self, start: Tensor) -> list[_Layer]:
        """Cast the weights once, and send the shared start [1, start, d_text] through the tower once."""
        hidden = (start + self._text.positional_embedding[: self._start])[0]
        mask = torch.ones(self._start, self._start, dtype=torch.bool, device=start.device).tril()
        layers = []
        for block in self._text.transformer.resblocks:
            qkv, out, up, down = (
                (weight.to(self._dtype), bias.to(self._dtype))
                for weight, bias in (
                    (block.attn.in_proj_weight, block.attn.in_proj_bias),
                    (block.attn.out_proj.weight, block.attn.out_proj.bias),
                    (block.mlp.c_fc.weight, block.mlp.c_fc.bias),
                    (block.mlp.c_proj.weight, block.mlp.c_proj.bias),
                )
            )
            plain = type(block.ls_2) is nn.Identity and block.ln_2.weight is not None and block.ln_2.bias is not None
            quick = class_names(block.mlp.gelu)[0] == "open_clip.transformer.QuickGELU"
            gain = _GAIN if quick and plain else 1.0
            up = (up[0], up[1] * gain)
            nothing = hidden.new_zeros(self._heads, 0, hidden.shape[-1] // self._heads, dtype=self._dtype)
            layer = _Layer(block, qkv, out, up, down, gain, nothing, nothing)
            if not self._start:
                layers.append(layer)
                continue
            queries, keys, values = self._project(layer, block.ln_1(hidden)).view(self._start, 3, -1).unbind(1)
            queries, keys, values = (self._split_heads(x[None])[0] for x in (queries, keys, values))
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            hidden = self._finish(layer, hidden, attended.transpose(0, 1).flatten(1))
            layers.append(_Layer(block, qkv, out, up, down, gain, keys, values))
        return layers

    def read(self, context: Tensor) -> Tensor:
        """Text features, not normalized; differentiable in the context.

        Args:
            context: float32 [B, K, M, d_text].

        Returns:
            float32 [B, K, d].
        """
        batch = len(context)
        hidden = torch.cat([self._embed(bucket, context).flatten(0, 2) for bucket in self.buckets])
        for layer in self._layers[:-1]:
            attended = torch.cat(self._attend(layer, hidden, batch))
            hidden = self._finish(layer, hidden, attended)
        last = torch.cat(self._attend(self._layers[-1], hidden, batch, last_only=True))
        hidden = self._finish(self._layers[-1], torch.cat(self._last_tokens(hidden, batch)), last)
        features = self._project_out(self._text.ln_final(hidden))
        sizes = [batch * len(bucket.members) for bucket in self.buckets]
        parts = [part.view(batch, -1, part.shape[-1]) for part in torch.split(features, sizes)]
        return torch.cat(parts, 1)[:, self._order]

    def _embed(self, bucket: Bucket, context: Tensor) -> Tensor:
        """[B, k, n, d_text] with the context in its places and positions added."""
        fixed = bucket.embeddings[:, self._num_context :].expand(len(context), -1, -1, -1)
        positions = self._text.positional_embedding[self._start : self._start + bucket.embeddings.shape[1]]
        embedded: Tensor = torch.cat([context[:, bucket.members], fixed], dim=2) + positions
        return embedded

    def _attend(self, layer: _Layer, hidden: Tensor, batch: int, *, last_only: bool = False) -> list[Tensor]:
        """Output of attention per bucket, [B · k · n, width]; with `last_only` for the read-out tokens only."""
        outputs = []
        projected = self._project(layer, layer.block.ln_1(hidden))
        for bucket, part in zip(self.buckets, torch.split(projected, self._sizes(batch)), strict=True):
            rows, length = batch * len(bucket.members), bucket.embeddings.shape[1]
            queries, keys, values = (
                self._split_heads(x) for x in part.view(rows, length, 3, -1).unbind(2)
            )  # [rows, heads, n, width / heads]
            keys = torch.cat([layer.start_keys.expand(rows, -1, -1, -1), keys], dim=2)
            values = torch.cat([layer.start_values.expand(rows, -1, -1, -1), values], dim=2)
            used = slice(-1, None) if last_only else slice(None)
            attended = F.scaled_dot_product_attention(queries[:, :, used], keys, values, attn_mask=bucket.mask[used])
            outputs.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return outputs

    def _last_tokens(self, hidden: Tensor, batch: int) -> list[Tensor]:
        parts = torch.split(hidden, self._sizes(batch))
        return [
            part.view(-1, bucket.embeddings.shape[1], part.shape[-1])[:, -1]
            for bucket, part in zip(self.buckets, parts, strict=True)
        ]

    def _sizes(self, batch: int) -> list[int]:
        return [batch * bucket.embeddings.shape[0] * bucket.embeddings.shape[1] for bucket in self.buckets]

    def _split_heads(self, part: Tensor) -> Tensor:
        """[rows, n, width] → [rows, heads, n, width / heads]."""
        return part.reshape(*part.shape[:-1], self._heads, -1).transpose(1, 2)

    def _project(self, layer: _Layer, normed: Tensor) -> Tensor:
        return frozen_linear(normed.to(self._dtype), *layer.qkv)

    def _finish(self, layer: _Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        """The rest of a block after attention; the residual stream is float32."""
        block = layer.block
        hidden = hidden + block.ls_1(frozen_linear(attended, *layer.out).float())
        if layer.gain == 1.0:
            inner = block.mlp.gelu(frozen_linear(block.ln_2(hidden).to(self._dtype), *layer.up))
            finished: Tensor = hidden + block.ls_2(frozen_linear(inner, *layer.down).float())
            return finished
        # QuickGELU is x · sigmoid(g x) = silu(g x) / g: one kernel instead of four, with g in the norm before it
        # and the division in the sum after it.
        norm, (weight, bias) = block.ln_2, layer.down
        normed = F.layer_norm(hidden, norm.normalized_shape, norm.weight * layer.gain, norm.bias * layer.gain, norm.eps)
        inner = F.silu(frozen_linear(normed.to(self._dtype), *layer.up))
        return torch.add(hidden + bias.float(), frozen_linear(inner, weight).float(), alpha=1 / layer.gain)

    def _project_out(self, pooled: Tensor) -> Tensor:
        projection = self._text.text_projection
        if projection is None:
            return pooled
        projected: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return projected
