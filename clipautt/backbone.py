"""The frozen CLIP: frames to image features, prompts with learnable context to text features.

A `Backbone` wraps an `open_clip` model whose text tower is a plain transformer (`CLIP` or `CustomTextCLIP`). Both
towers are frozen; gradients reach only the context vectors handed to `encode_prompts`. Preprocessing travels with the
model: the frames that go in are already square and of the model's size (see `decoding.fit_frames`), normalisation
happens here.

The embedded backbone is a small CLIP trained on this project's synthetic faces. It knows the words of its own captions
and no others, and it has never seen a real face.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import text_global_pool
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from clipautt.action_units import content_hash

EMBEDDED = "embedded"
_WEIGHTS = "embedded_clip.safetensors"


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the input of the image tower."""

    size: int
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    """Subtracted per RGB channel, on the 0..1 scale."""
    std: tuple[float, float, float]
    """Divided by per RGB channel, on the 0..1 scale."""
    interpolation: str = "bicubic"
    """Resizing filter: `bicubic`, `bilinear` or `area`."""
    crop: str = "centre"
    """How a frame is made square: `centre` crops the longer side; the footage is taken to show a face crop already."""


@dataclass(frozen=True)
class BackboneConfig:
    """Which CLIP encodes frames and prompts."""

    name: str = EMBEDDED
    """`embedded`, or the name of an open_clip model."""
    weights: str | None = None
    """For an open_clip model: a pretrained tag or a local `.pt` or `.safetensors` file."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the image tower; prompts and losses are always fp32."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Tokenised prompts, cut to their real length, with places for M context vectors after the start token."""

    texts: tuple[str, ...]
    """The exact strings, K of them."""
    embeddings: Tensor
    """Token embeddings, float32 [K, n, d_text]."""
    tokens: Tensor
    """Token ids, int64 [K, n]; the text tower reads out at the end-of-text token."""
    num_context: int
    """M: the tokens of the leading phrase, which are replaced by context vectors when some are given."""

    @property
    def context(self) -> Tensor:
        """The source context [K, M, d_text]: the embeddings of the leading phrase, once per prompt."""
        return self.embeddings[:, 1 : 1 + self.num_context].clone()

    @property
    def content_hash(self) -> str:
        """A hash of the strings and their order."""
        return content_hash(self.texts)


class Backbone:
    """A frozen CLIP with its preprocessing and its fingerprint.

    Args:
        model: an open_clip model; it is put into evaluation mode and its weights lose their gradients.
        name: what to call it in result rows.
        preprocessing: see `Preprocessing`.
        known_tokens: token ids that the text tower was trained with; None where every token is known.
        precision: of the image tower, see `BackboneConfig`.
        tokenizer: turns strings into padded ids [K, context length]; an open_clip tokenizer.

    Raises:
        ValueError: for a text tower that cannot take context vectors after its start token.
    """

    def __init__(
        self,
        model: CLIP | CustomTextCLIP,
        *,
        name: str,
        preprocessing: Preprocessing,
        known_tokens: frozenset[int] | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        tokenizer: Any = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.preprocessing = preprocessing
        self.precision = precision
        self._tokenizer = tokenizer or stock_tokenizer()
        self._known_tokens = known_tokens
        self._text: Any = model if isinstance(model, CLIP) else model.text
        self._pool: str = self._text.text_pool_type if isinstance(model, CLIP) else self._text.pool_type
        eos_id = getattr(self._text, "text_eos_id" if isinstance(model, CLIP) else "eos_id", None)
        self._eos_id: int | None = eos_id if self._pool == "eos" else None
        _check_text_tower(self._text, self._pool, name)
        self.fingerprint = _fingerprint(model, preprocessing, precision)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def feature_dim(self) -> int:
        """d: the width of image and text features."""
        projection = self._text.text_projection
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[-1])

    def to(self, device: torch.device | str) -> Backbone:
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    def encode_frames(self, frames: npt.NDArray[np.uint8] | Tensor, *, batch_size: int = 128) -> Tensor:
        """Image features of RGB frames, not normalised.

        Args:
            frames: uint8 [T, size, size, 3].
            batch_size: frames in one pass of the image tower.

        Returns:
            float32 [T, d] on the CPU.

        Raises:
            ValueError: if the frames do not have the model's size.
        """
        size = self.preprocessing.size
        if tuple(frames.shape[1:]) != (size, size, 3):
            raise ValueError(f"frames have shape {tuple(frames.shape)}; {self.name} takes [T, {size}, {size}, 3]")
        with torch.inference_mode():
            parts = [
                self._encode_batch(torch.as_tensor(frames[i : i + batch_size]))
                for i in range(0, len(frames), batch_size)
            ]
        return torch.cat(parts).cpu() if parts else torch.zeros(0, self.feature_dim)

    def _encode_batch(self, frames: Tensor) -> Tensor:
        images = normalise_frames(frames.to(self.device), self.preprocessing)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features: Tensor = self.model.encode_image(images)
        return features.float()

    def tokenize(self, phrases: Sequence[str], *, context: str = "") -> Prompts:
        """Prompts `[SOS] context words… phrase [EOS]`, all with the same leading phrase.

        Args:
            phrases: K phrases with spaces between words.
            context: the leading phrase; its tokens are the M places for context vectors. May be empty.

        Returns:
            `Prompts` on the backbone's device, cut to the longest real length.

        Raises:
            ValueError: for words that the backbone's text tower never learned, or prompts beyond its context length.
        """
        texts = tuple(f"{context} {phrase}".strip() for phrase in phrases)
        room = len(self._text.positional_embedding)
        padded = self._tokenizer(list(texts), context_length=room + 1)  # one more, or a cut prompt would look complete
        ends = self._ends(padded)
        if int(ends.max()) >= room:
            raise ValueError(f"the prompt {texts[int(ends.argmax())]!r} has more than the {room} tokens of {self.name}")
        self._check_tokens(texts, padded, ends)
        length = int(ends.max()) + 1
        tokens = padded[:, :length].to(self.device)
        num_context = int(self._ends(self._tokenizer([context]))[0]) - 1 if context else 0
        return Prompts(texts, self._text.token_embedding(tokens).float(), tokens, num_context)

    def _ends(self, padded: Tensor) -> Tensor:
        return padded.argmax(-1) if self._eos_id is None else (padded == self._eos_id).int().argmax(-1)

    def _check_tokens(self, texts: Sequence[str], padded: Tensor, ends: Tensor) -> None:
        if self._known_tokens is None:
            return
        unknown = [
            text
            for text, ids, end in zip(texts, padded.tolist(), ends.tolist(), strict=True)
            if not self._known_tokens.issuperset(ids[: end + 1])
        ]
        if unknown:
            raise ValueError(
                f"the {self.name} backbone was never trained on some words of {unknown}; "
                "use words of its action-unit phrases, or another backbone"
            )

    def encode_prompts(self, prompts: Prompts, context: Tensor | None = None) -> Tensor:
        """Text features of prompts, not normalised; differentiable in the context.

        Args:
            prompts: K tokenised prompts.
            context: context vectors in place of the leading phrase: [K, M, d_text], or [..., K, M, d_text] for many
                subjects or videos at once. None reads the prompts as they are.

        Returns:
            float32 [..., K, d].

        Raises:
            ValueError: if the context has not one vector for each of the M places of each prompt.
        """
        if context is None:
            return self._encode_embeddings(prompts.embeddings, prompts.tokens)
        lead = context.shape[:-3]
        num = prompts.num_context
        expected = (len(prompts.texts), num, prompts.embeddings.shape[-1])
        if tuple(context.shape[-3:]) != expected:
            raise ValueError(f"context has shape {tuple(context.shape)}; these prompts take [..., {expected}]")
        fixed = prompts.embeddings.expand(*lead, *prompts.embeddings.shape)
        embeddings = torch.cat([fixed[..., :1, :], context, fixed[..., 1 + num :, :]], dim=-2).flatten(0, -3)
        tokens = prompts.tokens.expand(*lead, *prompts.tokens.shape).flatten(0, -2)
        return self._encode_embeddings(embeddings, tokens).reshape(*lead, len(prompts.texts), -1)

    def _encode_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        return read_text_tower(self._text, embeddings, tokens, pool=self._pool, eos_id=self._eos_id)

    @property
    def logit_scale(self) -> float:
        """The temperature of zero-shot logits, as trained."""
        return float(self.model.logit_scale.exp())


def read_text_tower(
    text: Any, embeddings: Tensor, tokens: Tensor, *, pool: str = "argmax", eos_id: int | None = None
) -> Tensor:
    """Run an open_clip text tower from token embeddings, at the length that is given.

    The tower is causal, so what would follow the end-of-text token changes nothing and is not computed.

    Args:
        text: `CLIP`, or the `text` part of `CustomTextCLIP`.
        embeddings: float32 [N, n, d_text].
        tokens: int64 [N, n], to find the read-out position.
        pool: open_clip's name of the read-out.
        eos_id: the end-of-text token, where the read-out needs it.

    Returns:
        float32 [N, d].
    """
    length = tokens.shape[1]
    hidden = embeddings + text.positional_embedding[:length]
    mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
    hidden = text.ln_final(text.transformer(hidden, attn_mask=mask))
    pooled: Tensor = text_global_pool(hidden, tokens, pool, eos_token_id=eos_id)
    projection = text.text_projection
    projected: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return projected


def _check_text_tower(text: Any, pool: str, name: str) -> None:
    """Refuse towers whose prompts do not begin with a start token or cannot be cut at their end."""
    if text.attn_mask is None or pool not in ("argmax", "eos"):
        raise ValueError(f"backbone.name {name!r} has a text tower that takes no context vectors: {pool!r} read-out")
    if getattr(text, "cls_emb", None) is not None or text.text_projection is None:
        raise ValueError(f"backbone.name {name!r} has a text tower that takes no context vectors: it adds a token")


def normalise_frames(frames: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W], channels last in memory, mean and std removed."""
    mean = torch.tensor(preprocessing.mean, device=frames.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=frames.device).view(1, 3, 1, 1) * 255
    images = frames.permute(0, 3, 1, 2).float().sub(mean).div(std)
    return images.contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=1)
def stock_tokenizer() -> Any:
    """open_clip's byte-pair tokenizer with CLIP's vocabulary of 49,408 tokens."""
    return open_clip.get_tokenizer("RN50")


def _fingerprint(model: nn.Module, preprocessing: Preprocessing, precision: str) -> str:
    """SHA-256 over the weights, their names, the activations (no weight tells them), preprocessing and precision."""
    activations = sorted({type(module).__name__ for module in model.modules() if "GELU" in type(module).__name__})
    digest = hashlib.sha256(json.dumps([asdict(preprocessing), precision, activations], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())  # C order, whatever the memory format
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SmallClipShape:
    """The shape of the embedded CLIP: a ModifiedResNet and a three-layer text transformer, both open_clip's own."""

    image_size: int = 96
    """Frame height and width in pixels."""
    layers: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Bottleneck blocks per stage of the image tower."""
    width: int = 16
    """Channels of the first stage; the attention pool has 2 × width × 16 / width = 32 heads."""
    text_width: int = 128
    """d_text."""
    text_heads: int = 4
    """Attention heads of the text tower."""
    text_layers: int = 3
    """Blocks of the text tower."""
    embed_dim: int = 128
    """d."""
    preprocessing: Preprocessing = Preprocessing(96, (0.48, 0.455, 0.41), (0.265, 0.26, 0.275), "area")
    """Statistics of the rendered faces."""

    def __post_init__(self) -> None:
        if self.preprocessing.size != self.image_size:
            raise ValueError(f"shape.image_size={self.image_size}; its preprocessing has {self.preprocessing.size}")


def build_small_clip(shape: SmallClipShape) -> CLIP:
    """An untrained CLIP of this shape with open_clip's stock vocabulary."""
    return CLIP(
        embed_dim=shape.embed_dim,
        vision_cfg={
            "image_size": shape.image_size,
            "layers": list(shape.layers),
            "width": shape.width,
            "head_width": shape.width,
        },
        text_cfg={
            "context_length": 77,
            "vocab_size": 49408,
            "width": shape.text_width,
            "heads": shape.text_heads,
            "layers": shape.text_layers,
        },
    )


def pack_small_clip(model: CLIP, token_ids: Iterable[int]) -> dict[str, Tensor]:
    """The weights to ship: everything, but of the token embedding only the rows that were trained."""
    rows = torch.tensor(sorted(set(token_ids)))
    state = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items() if name != "attn_mask"
    }
    table = state.pop("token_embedding.weight")
    return {**state, "token_embedding.ids": rows, "token_embedding.rows": table[rows].contiguous()}


def load_small_clip(path: Path, *, precision: Literal["fp32", "bf16"] = "fp32", name: str = EMBEDDED) -> Backbone:
    """Read weights that `pack_small_clip` wrote, with the shape in the file's metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the weights do not have the shape that the file states.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights of a small CLIP at {path}")
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["shape"])
    facts = {key: _tuples(value) for key, value in facts.items()}
    preprocessing = Preprocessing(**{key: _tuples(value) for key, value in facts.pop("preprocessing").items()})
    shape = SmallClipShape(**facts, preprocessing=preprocessing)
    state = load_file(path)
    ids, rows = state.pop("token_embedding.ids"), state.pop("token_embedding.rows")
    table = torch.zeros(49408, shape.text_width)
    table[ids] = rows
    model = build_small_clip(shape)
    missing, unexpected = model.load_state_dict({**state, "token_embedding.weight": table}, strict=False)
    if unexpected or set(missing) - {"attn_mask"}:
        raise ValueError(f"{path} is not a small CLIP of this version: missing {missing}, unexpected {unexpected}")
    model = model.to(memory_format=torch.channels_last)
    return Backbone(
        model, name=name, preprocessing=preprocessing, known_tokens=frozenset(ids.tolist()), precision=precision
    )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def embedded_weights() -> Path:
    """The path of the weights that ship with the package."""
    return Path(str(resources.files("clipautt") / "weights" / _WEIGHTS))


def load_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that a configuration names.

    Raises:
        ValueError: for an unknown open_clip model, weights that are not there, or a text tower that cannot take
            context.
    """
    if config.name == EMBEDDED:
        return load_small_clip(
            Path(config.weights) if config.weights else embedded_weights(), precision=config.precision
        )
    return _load_open_clip(config)


def _load_open_clip(config: BackboneConfig) -> Backbone:
    if config.name not in open_clip.list_models():
        raise ValueError(f"backbone.name {config.name!r} is neither {EMBEDDED!r} nor an open_clip model")
    if not config.weights:
        raise ValueError(f"backbone.weights is empty: give {config.name} a local file or a pretrained tag")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            model = open_clip.create_model(config.name, pretrained=config.weights, require_pretrained=True)
    except Exception as error:  # open_clip, torch and safetensors raise many kinds for a file that does not fit
        raise ValueError(
            f"backbone.weights {config.weights!r} could not be loaded into {config.name}: {error}"
        ) from error
    if not isinstance(model, CLIP | CustomTextCLIP) or not hasattr(getattr(model, "text", model), "token_embedding"):
        raise ValueError(f"backbone.name {config.name!r} has a text tower that takes no context vectors")
    facts: dict[str, Any] = model.visual.preprocess_cfg
    size = facts["size"] if isinstance(facts["size"], int) else facts["size"][0]
    preprocessing = Preprocessing(int(size), tuple(facts["mean"]), tuple(facts["std"]), facts["interpolation"])
    return Backbone(
        model,
        name=config.name,
        preprocessing=preprocessing,
        precision=config.precision,
        tokenizer=open_clip.get_tokenizer(config.name),
    )
