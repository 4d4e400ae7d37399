"""A straightforward CLIP-AUTT: the reference for clipautt's numbers and speed.

In: frame features of one video at a time. Out: a `NaiveResult`. Every window goes through the temporal module, the
similarities and the classifier by itself, in a Python loop; then AdamW takes its steps on the entropy of the chosen
window, each with all K prompts at CLIP's full 77 tokens through open_clip's text transformer; then the window is
predicted. It is written with care: frozen weights get no gradients, nothing is computed twice unless the method as
published asks for it, and the AU embeddings of the source prompts are computed once for all videos.

Source: sections 2 and 3 of the method (CLIP-AUTT, arXiv 2603.27999). It shares only the weights and the prompts'
strings with clipautt, not its windows, text towers or tuner.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

_TEMPERATURE = 5.0
"""τ of the AU similarities."""


@dataclass(frozen=True, eq=False)
class NaiveResult:
    """Result of the loop for one video, and how long its parts took."""

    probabilities: Tensor
    """Class probabilities after tuning, float32 [C]."""
    window: int
    """First frame of the window of lowest entropy."""
    context: Tensor
    """Tuned context vectors, float32 [K, M, d_text]."""
    selection_seconds: float
    """Time for the entropies of all windows."""
    step_seconds: tuple[float, ...]
    """Time of each step: text tower, loss, backward pass, AdamW."""
    prediction_seconds: float
    """Time for the text tower once more, and the prediction."""

    def seconds(self, steps: int) -> float:
        """Time per video with this many steps of the mean duration."""
        mean = sum(self.step_seconds) / max(1, len(self.step_seconds))
        return self.selection_seconds + steps * mean + self.prediction_seconds


class NaiveCLIPAUTT:
    """The loop for one model.

    Args:
        clip: an open_clip `CLIP`, frozen.
        model: CLIP-AU's trained part: `adapter`, `temporal`, `classifier`, frozen.
        texts: the K prompts, context words included.
        num_context: M, the number of leading tokens that become context vectors.
        window_length: L; a window begins at every frame.
    """

    def __init__(self, clip: Any, model: Any, texts: Sequence[str], *, num_context: int, window_length: int) -> None:
        self._clip, self._model = clip, model
        self._num_context, self._window_length = num_context, window_length
        self._tokens = open_clip.tokenize(list(texts), context_length=clip.context_length).to(
            clip.ln_final.weight.device
        )
        with torch.no_grad():
            self._embeddings = clip.token_embedding(self._tokens)
            self.source_context: Tensor = self._embeddings[:, 1 : 1 + num_context].clone()
            self.source_au_embeddings = self.au_embeddings(self.source_context)

    def au_embeddings(self, context: Tensor) -> Tensor:
        """AU embeddings a of the prompts under context vectors: [K, M, d_text] → [K, d]."""
        clip = self._clip
        x = torch.cat([self._embeddings[:, :1], context, self._embeddings[:, 1 + self._num_context :]], dim=1)
        x = clip.transformer(x + clip.positional_embedding, attn_mask=clip.attn_mask)
        x = clip.ln_final(x)
        text_features = x[torch.arange(len(x)), self._tokens.argmax(-1)] @ clip.text_projection
        return F.normalize(self._model.adapter(text_features), dim=-1)

    def adapt(self, frames: Tensor, *, steps: int, learning_rate: float) -> NaiveResult:
        """Adapt to one video from the source prompts: choose the window, tune, predict.

        Args:
            frames: image features in order, not normalized, [T, d].
            steps: number of AdamW steps.
            learning_rate: step size of AdamW.
        """
        began = self._now()
        entropies = naive_window_entropies(self._model, frames, self.source_au_embeddings, length=self._window_length)
        best = int(entropies.argmin())
        window = frames[best : best + self._window_length]
        moments = [self._now()]
        context = self.source_context.clone().requires_grad_(True)
        optimizer = torch.optim.AdamW([context], lr=learning_rate, weight_decay=0.0)
        for _ in range(steps):
            loss = _entropy(naive_logits(self._model, window, self.au_embeddings(context)))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            moments.append(self._now())
        with torch.no_grad():
            probabilities = F.softmax(naive_logits(self._model, window, self.au_embeddings(context)), dim=-1)
        ended = self._now()
        taken = tuple(after - before for before, after in pairwise(moments))
        return NaiveResult(probabilities, best, context.detach(), moments[0] - began, taken, ended - moments[-1])

    def _now(self) -> float:
        if self.source_context.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _entropy(logits: Tensor) -> Tensor:
    log_probabilities = F.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def naive_logits(model: Any, window: Tensor, au_embeddings: Tensor) -> Tensor:
    """Class logits [C] of one window [L, d] under AU embeddings [K, d]."""
    hidden = F.gelu(model.temporal(window.t()[None]))
    embedding = F.normalize(hidden.mean(-1), dim=-1)[0]
    scores: Tensor = model.classifier(_TEMPERATURE * au_embeddings @ embedding)
    return scores


def naive_window_entropies(model: Any, frames: Tensor, au_embeddings: Tensor, *, length: int) -> Tensor:
    """Entropy of the prediction of every window, one window after the other.

    Args:
        model: CLIP-AU's trained part.
        frames: frame features of one video, [T, d].
        au_embeddings: AU embeddings a, [K, d].
        length: L; a shorter video is one window.

    Returns:
        Entropies, nats, [max(1, T − L + 1)].
    """
    entropies = []
    with torch.no_grad():
        for start in range(max(1, len(frames) - length + 1)):
            entropies.append(_entropy(naive_logits(model, frames[start : start + length], au_embeddings)))
    return torch.stack(entropies)
