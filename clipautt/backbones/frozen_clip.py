"""The frozen CLIP: frames to image features, prompts with learnable context to text features.

Both towers are frozen; gradients reach only the context vectors passed to `encode_prompts`. Frames come in square and
of the model's size (see `preprocessing`); they are normalized here. `loading` finds a model by its name.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clipautt.action_units import content_hash
from clipautt.backbones.facts import BackboneFacts
from clipautt.backbones.packed_tower import TextPrecision, read_prompts
from clipautt.backbones.text_tower import stock_tokenizer, text_tower, token_layout
from clipautt.video.preprocessing import Preprocessing

Precision = Literal["fp32", "tf32", "bf16"]

_PROBE = ("A human face, with eyes closed.",)
"""Two tokenizers that differ in vocabulary, case or punctuation give it different ids."""
_TF32_LOCK = threading.Lock()
_BATCHES_AHEAD = 2


@dataclass(frozen=True, eq=False)
class Prompts:
    """Tokenized prompts, cut to their real length if that leaves features exact, with places for M context vectors."""

    texts: tuple[str, ...]
    """The exact strings, K of them."""
    embeddings: Tensor
    """Token embeddings, float32 [K, n, d_text]."""
    tokens: Tensor
    """Token ids, int64 [K, n]; some text towers find their read-out position in them."""
    num_context: int
    """M: how many leading word tokens are replaced by context vectors, if any are given."""
    start: int = 1
    """Tokens before the first word, which are never replaced: one for CLIP, none for SigLIP."""

    @property
    def context(self) -> Tensor:
        """The source context [K, M, d_text]: the embeddings of each prompt's M leading word tokens."""
        return self.embeddings[:, self.start : self.start + self.num_context].clone()

    @property
    def content_hash(self) -> str:
        """A hash of the strings and their order."""
        return content_hash(self.texts)


class Backbone:
    """A frozen CLIP with its preprocessing and its fingerprint.

    Args:
        model: an open_clip model or a `SmallClip`; it is put into evaluation mode and float32, and its weights no
            longer require gradients.
        name: what to call it in result rows.
        preprocessing: see `Preprocessing`.
        known_tokens: token ids that the text tower was trained with; None where every token is known.
        precision: of the image tower, see `BackboneConfig`.
        tokenizer: turns strings into padded ids [K, context length]; an open_clip tokenizer.
        facts: what is known of its training.

    Raises:
        ValueError: for a text tower that takes no context vectors, or an unknown precision.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        preprocessing: Preprocessing,
        known_tokens: frozenset[int] | None = None,
        precision: Precision = "fp32",
        tokenizer: Any = None,
        facts: BackboneFacts | None = None,
    ) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"backbone.precision={precision!r}; allowed: {', '.join(get_args(Precision))}")
        self._text = text_tower(model, name=name)
        self.model = model.float().eval().requires_grad_(False)
        self.name = name
        self.facts = facts or BackboneFacts()
        self.preprocessing = preprocessing
        self.precision = precision
        self._layout = token_layout(tokenizer or stock_tokenizer(), self._text.room)
        self._known_tokens = known_tokens
        self._largest_batch = sys.maxsize
        self._readers: WeakKeyDictionary[Prompts, dict[str, Callable[[Tensor], Tensor]]] = WeakKeyDictionary()
        self.fingerprint = _fingerprint(model, preprocessing, precision, self._text_facts())

    def _text_facts(self) -> list[object]:
        """What the weights do not show of the text tower: its read-out, mask and tokenizer; empty for CLIP's own."""
        tower, probe = self._text, list(_PROBE)
        ids = self._layout.tokenizer(probe, context_length=tower.room)
        stock = torch.equal(ids, stock_tokenizer()(probe, context_length=tower.room))
        return [
            *([] if tower.pool == "argmax" else [tower.pool, tower.eos_id]),
            *([] if tower.causal else ["not causal"]),
            *([] if stock else [ids.tolist()]),
        ]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def feature_dim(self) -> int:
        """d: the width of image and text features."""
        return self._text.feature_dim

    def to(self, device: torch.device | str) -> Backbone:
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    def encode_frames(self, frames: npt.NDArray[np.uint8] | Tensor, *, batch_size: int = 128) -> Tensor:
        """Image features of RGB frames, not normalized.

        Args:
            frames: uint8 [T, size, size, 3].
            batch_size: frames in one pass of the image tower; halved, for this call and later ones, until it
                fits the device's memory.

        Returns:
            float32 [T, d] on the CPU.

        Raises:
            ValueError: if the frames do not have the model's size.
            torch.OutOfMemoryError: if not even one frame fits.
        """
        size = self.preprocessing.size
        if tuple(frames.shape[1:]) != (size, size, 3):
            raise ValueError(f"frames have shape {tuple(frames.shape)}; {self.name} takes [T, {size}, {size}, 3]")
        while len(frames):
            batch_size = min(batch_size, self._largest_batch)
            try:
                with torch.inference_mode(), image_arithmetic(self.precision, self.device.type):
                    batches = _on_device(torch.split(torch.as_tensor(frames), batch_size), self.device)
                    return torch.cat([self._encode_batch(batch) for batch in batches]).cpu()
            except torch.OutOfMemoryError:
                if min(batch_size, len(frames)) == 1:
                    raise
                self._largest_batch = min(batch_size, len(frames)) // 2
        return torch.zeros(0, self.feature_dim)

    def _encode_batch(self, frames: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(normalize_frames(frames, self.preprocessing))
        return features.float()

    def tokenize(self, phrases: Sequence[str], *, context: str = "", num_context: int | None = None) -> Prompts:
        """Tokenize the prompts `context phrase`, with the tokens that the tokenizer adds around them.

        Args:
            phrases: K phrases with spaces between words.
            context: the leading phrase, the same for all. May be empty.
            num_context: M, how many leading word tokens of each prompt are places for context vectors; None takes the
                tokens of the leading phrase.

        Returns:
            `Prompts` on the backbone's device, cut to the longest real length where the features stay exact.

        Raises:
            ValueError: for words that the backbone's text tower never learned, prompts beyond its context length, or
                prompts with fewer than `num_context` word tokens.
        """
        texts = tuple(f"{context} {phrase}".strip() for phrase in phrases)
        ids = self._layout.ids(texts, name=self.name)
        self._check_tokens(texts, ids)
        num_context = self._leading_tokens(ids, context) if num_context is None else num_context
        self._check_places(texts, ids, num_context)
        tokens = ids[:, : self._text.length(ids, self._layout.lengths(ids))].to(self.device)
        return Prompts(texts, self._text.embed(tokens), tokens, num_context, self._layout.start)

    def fewest_tokens(self, texts: Sequence[str]) -> int:
        """How many word tokens the shortest of these texts has: the most that can be places for context vectors."""
        return int(self._layout.num_words(self._layout.ids(texts, name=self.name)).min())

    def _leading_tokens(self, ids: Tensor, context: str) -> int:
        """M: how many tokens the leading phrase has; every prompt must begin with exactly these."""
        if not context:
            return 0
        leading = self._layout.ids([context], name=self.name)
        places = slice(self._layout.start, self._layout.start + int(self._layout.num_words(leading)))
        if not (ids[:, places] == leading[:, places]).all():
            raise ValueError(
                f"{self.name} joins the end of the leading phrase {context!r} and the next word in one token"
            )
        return places.stop - places.start

    def _check_places(self, texts: Sequence[str], ids: Tensor, num_context: int) -> None:
        fewest = int(self._layout.num_words(ids).argmin()) if texts else 0
        words = int(self._layout.num_words(ids)[fewest]) if texts else 0
        if not 0 <= num_context <= words:
            raise ValueError(f"num_context={num_context}; allowed: 0 to {words}, the tokens of {texts[fewest]!r}")

    def _check_tokens(self, texts: Sequence[str], ids: Tensor) -> None:
        eos_id = self._text.eos_id
        if eos_id is not None and not (ids == eos_id).any(-1).all():
            raise ValueError(f"{self.name} reads out at token {eos_id}, which its tokenizer does not add")
        if self._known_tokens is None:
            return
        lengths = self._layout.lengths(ids)
        unknown = [
            text
            for text, row, length in zip(texts, ids.tolist(), lengths.tolist(), strict=True)
            if not self._known_tokens.issuperset(row[:length])
        ]
        if unknown:
            raise ValueError(
                f"the {self.name} backbone was never trained on some words of {unknown}; "
                "use words of its action-unit phrases, or another backbone"
            )

    def encode_prompts(self, prompts: Prompts, context: Tensor | None = None) -> Tensor:
        """Text features of prompts, not normalized; differentiable in the context.

        Args:
            prompts: K tokenized prompts.
            context: context vectors in place of the leading tokens: [K, M, d_text], or [..., K, M, d_text] for many
                subjects or videos at once. None reads the prompts as they are.

        Returns:
            float32 [..., K, d].

        Raises:
            ValueError: if the context does not have one vector for each of the M places of every prompt.
        """
        read = self.prompt_reader(prompts)
        if context is None:
            return read(prompts.context[None])[0]
        expected = (len(prompts.texts), prompts.num_context, prompts.embeddings.shape[-1])
        if tuple(context.shape[-3:]) != expected:
            raise ValueError(f"context has shape {tuple(context.shape)}; these prompts take [..., {expected}]")
        lead = context.shape[:-3]
        features = read(context.reshape(lead.numel(), *expected))
        return features.reshape(*lead, *features.shape[1:])

    def prompt_reader(self, prompts: Prompts, *, precision: TextPrecision = "fp32") -> Callable[[Tensor], Tensor]:
        """Prepare a reader of these prompts: context [B, K, M, d_text] → text features, float32 [B, K, d].

        Args:
            prompts: K tokenized prompts.
            precision: of the arithmetic inside the tower.
        """
        readers = self._readers.setdefault(prompts, {})
        if precision not in readers:
            readers[precision] = read_prompts(
                self._text,
                prompts.embeddings,
                prompts.tokens,
                start=prompts.start,
                num_context=prompts.num_context,
                precision=precision,
            )
        return readers[precision]

    @property
    def logit_scale(self) -> float:
        """The temperature of zero-shot logits, as trained."""
        return float(self.model.logit_scale.exp())


def _on_device(batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The batches on the device; copying one to a GPU overlaps the work on the one before."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    work = torch.cuda.current_stream(device)
    done: deque[torch.cuda.Event] = deque()
    for batch in batches:
        if len(done) == _BATCHES_AHEAD:  # else all batches of a long call would be on the device at once
            done.popleft().synchronize()
        with torch.cuda.stream(copies):
            there = batch.pin_memory().to(device, non_blocking=True)
        work.wait_stream(copies)
        there.record_stream(work)
        yield there
        done.append(work.record_event())


def normalize_frames(frames: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W], channels last in memory, normalized by mean and std."""
    mean = torch.tensor(preprocessing.mean, device=frames.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=frames.device).view(1, 3, 1, 1) * 255
    images = frames.permute(0, 3, 1, 2).float().sub(mean).div(std)
    return images.contiguous(memory_format=torch.channels_last)


@contextmanager
def image_arithmetic(precision: Precision, device_type: str) -> Iterator[None]:
    """Set the arithmetic of the image tower within a `with` block.

    PyTorch's TF32 switches are global to the process: they are restored afterwards, and one thread at a time may hold
    them. Both are set for `fp32` too, since convolutions use TF32 unless told otherwise. CPUs have no TF32.

    Args:
        precision: see `BackboneConfig`.
        device_type: `cpu` or `cuda`.
    """
    if precision == "bf16":
        with torch.autocast(device_type, torch.bfloat16):
            yield
    elif device_type != "cuda":
        yield
    else:
        with _TF32_LOCK:
            switches = _tf32_switches()
            before = [getattr(owner, switch) for owner, switch, _ in switches]
            for owner, switch, (off, on) in switches:
                setattr(owner, switch, on if precision == "tf32" else off)
            try:
                yield
            finally:
                for (owner, switch, _), value in zip(switches, before, strict=True):
                    setattr(owner, switch, value)


def _tf32_switches() -> list[tuple[Any, str, tuple[Any, Any]]]:
    """PyTorch's switches for matrix products and convolutions: owner, attribute, and its values for off and on."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    try:
        _ = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:  # the program has used the newer switches, and from then on these cannot be read
        return [(owner, "fp32_precision", ("ieee", "tf32")) for owner in (matmul, cudnn.conv)]
    return [(owner, "allow_tf32", (False, True)) for owner in (matmul, cudnn)]


def _fingerprint(
    model: nn.Module, preprocessing: Preprocessing, precision: str, text_facts: Sequence[object] = ()
) -> str:
    """SHA-256 over weights, their names, and what they do not show: activations, text tower, preprocessing, precision.

    Text facts say how the text tower differs from CLIP's own, whose fingerprint includes none.
    """
    facts: list[object] = [asdict(preprocessing), precision, _activations(model)]
    digest = hashlib.sha256(json.dumps([*facts, *([text_facts] if text_facts else [])], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())  # C order, whatever the memory format
    return digest.hexdigest()[:16]


def _activations(model: nn.Module) -> list[str]:
    """The GELUs of a model: `GELU`, its approximation or `QuickGELU`."""
    gelus = [module for module in model.modules() if "GELU" in type(module).__name__]
    approximate = [getattr(gelu, "approximate", "none") for gelu in gelus]
    return sorted(
        {type(gelu).__name__ + ("" if a == "none" else f" {a}") for gelu, a in zip(gelus, approximate, strict=True)}
    )
