"""The small CLIP's network: a residual image tower with attention pooling, and a causal text transformer.

This is the architecture of open_clip's `CLIP` with a ModifiedResNet, for inference: same weight names, same features.
Training (`pretraining`) uses open_clip's own class, which draws CLIP's initial weights. This copy exists because
open_clip imports torchvision and timm, which takes longer than a prediction.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EXPANSION = 4
"""Channels of a block's output per channel inside it."""
_TOTAL_STRIDE = 32
"""Pixels of a frame per position of the last feature map, in each direction."""


class SmallClip(nn.Module):
    """An untrained CLIP.

    Args:
        image_size: frame height and width in pixels.
        layers: blocks of each of the four stages of the image tower.
        width: channels of the first stage; the attention pool has 32 heads of as many channels each.
        embed_dim: d.
        context_length: tokens of the longest text.
        vocabulary: number of tokens in the vocabulary.
        text_width: d_text.
        text_heads: attention heads of a text block.
        text_layers: text blocks.
    """

    attn_mask: Tensor

    def __init__(
        self,
        *,
        image_size: int,
        layers: Sequence[int],
        width: int,
        embed_dim: int,
        context_length: int,
        vocabulary: int,
        text_width: int,
        text_heads: int,
        text_layers: int,
    ) -> None:
        super().__init__()
        self.visual = _ImageTower(image_size, layers, width, embed_dim)
        self.transformer = _TextBlocks(text_width, text_heads, text_layers)
        self.context_length = context_length
        # Given, not drawn: drawing normal numbers on the meta device makes PyTorch import its compiler, which takes
        # seconds.
        self.token_embedding = nn.Embedding(vocabulary, text_width, _weight=torch.zeros(vocabulary, text_width))
        self.positional_embedding = nn.Parameter(torch.zeros(context_length, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.zeros(text_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.text_pool_type, self.text_eos_id = "argmax", None
        # On a named device, since no file of weights holds it: a network built on the meta device needs it too.
        hidden = torch.full((context_length, context_length), -math.inf, device="cpu").triu(1)
        self.register_buffer("attn_mask", hidden, persistent=False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features [N, d] of normalized frames [N, 3, H, W]."""
        features: Tensor = self.visual(images)
        return features


class _ImageTower(nn.Module):
    """Three convolutions, four stages of blocks that halve the map from the second one on, and attention pooling."""

    def __init__(self, image_size: int, layers: Sequence[int], width: int, embed_dim: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(3, width // 2, 3, stride=2), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = _convolution(width // 2, width // 2, 3), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = _convolution(width // 2, width, 3), nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, layers[3], stride=2)
        self.attnpool = _AttentionPool((image_size // _TOTAL_STRIDE) ** 2, 32 * width, 32, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        hidden = F.avg_pool2d(F.relu(self.bn3(self.conv3(hidden))), 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        pooled: Tensor = self.attnpool(hidden)
        return pooled


class _Block(nn.Module):
    """A bottleneck of three convolutions beside a shortcut; it shrinks maps by average pooling, never by a stride."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * channels
        self.conv1, self.bn1 = _convolution(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _convolution(channels, channels, 3), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _convolution(channels, outputs, 1), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = None if same else nn.Sequential(_convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        self._stride = stride

    def forward(self, given: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(given)))
        hidden = self._shrunk(F.relu(self.bn2(self.conv2(hidden))))
        hidden = self.bn3(self.conv3(hidden))
        shortcut = given if self.downsample is None else self.downsample(self._shrunk(given))
        return F.relu(hidden + shortcut)

    def _shrunk(self, images: Tensor) -> Tensor:
        return images if self._stride == 1 else F.avg_pool2d(images, self._stride)


class _AttentionPool(nn.Module):
    """Attention whose one query is the mean of all positions, over all positions and that mean; then a projection."""

    def __init__(self, positions: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(positions + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed_dim)
        self._heads = heads

    def forward(self, feature_map: Tensor) -> Tensor:
        places = feature_map.flatten(2).transpose(1, 2)  # [N, positions, width]
        places = torch.cat([places.mean(1, keepdim=True), places], dim=1)
        places = places + self.positional_embedding.to(places.dtype)
        queries, keys, values = self.q_proj(places[:, :1]), self.k_proj(places), self.v_proj(places)
        split = (x.unflatten(-1, (self._heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        answer = F.scaled_dot_product_attention(*split)  # [N, heads, 1, width / heads]
        feature: Tensor = self.c_proj(answer.flatten(1))
        return feature


class _TextBlocks(nn.Module):
    """The text tower between token embeddings and the last norm."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([TextBlock(width, heads) for _ in range(layers)])

    def forward(self, hidden: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            hidden = block(hidden, attn_mask)
        return hidden


class TextBlock(nn.Module):
    """Attention and a two-layer MLP, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        inner = 4 * width
        parts = {"c_fc": nn.Linear(width, inner), "gelu": nn.GELU(), "c_proj": nn.Linear(inner, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.ls_1, self.ls_2 = nn.Identity(), nn.Identity()

    def forward(self, hidden: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(hidden)
        hidden = hidden + self.attn(normed, normed, normed, need_weights=False, attn_mask=attn_mask)[0]
        finished: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return finished


def _stage(inputs: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = _Block(inputs, channels, stride)
    return nn.Sequential(first, *(_Block(_EXPANSION * channels, channels, 1) for _ in range(1, blocks)))


def _convolution(inputs: int, outputs: int, size: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
