"""Train the embedded CLIP on rendered faces, and measure what it can see.

Frames of many identities are drawn with random action units, sent through mp4 as real clips are, and captioned with
phrases of the active units; no caption names a class that is to be recognized. The loss is CLIP's contrastive loss on
the captions, plus a sigmoid loss per AU prompt whose target grows with the intensity, so that similarities rank it,
plus that of a linear probe of the image features, discarded afterwards: it predicts how the intensities of a frame
differ from the person's other frames, which points the image tower at expressions rather than at people from the first
steps on.

The result has never seen a real face; it is the default backbone for demonstrations and tests.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from clipautt.action_units import RENDERED, RESTING_PHRASES, TASKS, VOCABULARY, phrases, title_of, unit
from clipautt.backbones.embedded import SmallClipShape, pack_small_clip
from clipautt.backbones.frozen_clip import normalize_frames
from clipautt.backbones.loading import Backbone
from clipautt.backbones.text_tower import read_text_tower, stock_tokenizer
from clipautt.datasets.synthetic.identity import draw_identity, total_intensities
from clipautt.datasets.synthetic.renderer import render
from clipautt.datasets.synthetic.video import reencode
from clipautt.files import write_tensors, write_text
from clipautt.metrics import roc_auc
from clipautt.settings import settings

LEADING_PHRASE = "a human face with"
"""Four tokens; also the source context of the AU prompts, so training and test time see the same prompt."""
TEMPLATES = ("{}", "a human face with {}", "a human face with {}", "a photo of a face with {}", "a person showing {}")
OPPOSITES = (("AU51", "AU52"), ("AU53", "AU54"), ("AU55", "AU56"), ("AU61", "AU62"), ("AU63", "AU64"), ("AU43", "AU5"))
VISIBLE, ABSENT = 0.4, 0.12
"""Intensities above the first count as shown and below the second as not shown when an AUC is computed."""
TRAINING_STREAM, VALIDATION_STREAM = 1, 2

Frames = npt.NDArray[np.uint8]
Intensities = npt.NDArray[np.float32]


@settings
class PretrainConfig:
    """The recipe of the embedded CLIP."""

    seed: NonNegativeInt = 0
    """Seed of identities, intensities, captions, initial weights and batches."""
    identities: PositiveInt = 3600
    """Rendered people to train on."""
    validation_identities: PositiveInt = 200
    """Further people, used for measurements only."""
    frames_per_identity: PositiveInt = 12
    """Frames per person, one small mp4."""
    steps: PositiveInt = 4600
    """Optimizer steps."""
    identities_per_batch: PositiveInt = 10
    """People in a batch."""
    frames_per_batch_identity: PositiveInt = 6
    """Frames of each person in a batch: captions must tell expressions of one person apart."""
    learning_rate: PositiveFloat = 1.5e-3
    """Peak of the cosine schedule, AdamW."""
    au_loss_weight: NonNegativeFloat = 1.0
    """Weight of the per-AU sigmoid loss and of the probe's loss beside the contrastive loss."""
    shape: SmallClipShape = SmallClipShape()
    """Layers and widths of the model."""


def draw_intensities(bias: npt.NDArray[np.floating], rng: np.random.Generator) -> Intensities:
    """Total intensities [28] of one frame: up to five active units over a faint background and the resting face."""
    values = (rng.random(len(RENDERED)) < 0.2) * rng.uniform(0, 0.12, len(RENDERED))
    active = rng.choice(len(RENDERED), rng.integers(0, 6), replace=False)
    values[active] = rng.uniform(0.12, 1.0, len(active))
    for first, second in OPPOSITES:
        a, b = RENDERED.index(first), RENDERED.index(second)
        values[a if values[a] < values[b] else b] = 0.0
    return np.clip(values + bias, 0, 1).astype(np.float32)


def caption(intensities: Intensities, rng: np.random.Generator) -> str:
    """A sentence of one or two active units in random wordings, or of a face at rest."""
    order = rng.permutation(len(RENDERED))
    active = [i for i in order if intensities[i] > 0.3][: rng.integers(1, 3)]
    if not active:
        strongest = int(intensities.argmax())
        active = [strongest] if intensities[strongest] > 0.15 else []
    words = [_wording(RENDERED[i], rng) for i in active] or [str(rng.choice(RESTING_PHRASES))]
    return _in_template(" and ".join(words), rng)


def _in_template(words: str, rng: np.random.Generator) -> str:
    return str(rng.choice(TEMPLATES)).format(words)


def _wording(code: str, rng: np.random.Generator) -> str:
    au = unit(code)
    return str(rng.choice((au.phrase, *au.wordings)))


def draw_person(index: int, *, config: PretrainConfig, stream: int) -> tuple[Frames, Intensities]:
    """Frames of one person after mp4, uint8 [n, size, size, 3], and their intensities [n, 28]."""
    rng = np.random.default_rng([config.seed, stream, index])
    identity = draw_identity(int(rng.integers(2**31)), resting_bias=float(rng.uniform(0.3, 1.6)))
    bias = total_intensities(identity, np.zeros(len(RENDERED)))
    totals = np.stack([draw_intensities(bias, rng) for _ in range(config.frames_per_identity)])
    pose, shift = rng.normal(0, 0.05, (len(totals), 3)), rng.normal(0, 0.04, (len(totals), 2))
    frames = [
        render(identity, t, pose=p, translation=s, size=config.shape.image_size, rng=rng)
        for t, p, s in zip(totals, pose, shift, strict=True)
    ]
    return reencode(np.stack(frames)), totals


def draw_people(
    config: PretrainConfig, *, stream: int, count: int, workers: int = 1, progress: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """All frames of `count` people: uint8 [count, n, size, size, 3] and float32 [count, n, 28]."""
    frames, intensities = [], []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        drawn = pool.map(partial(draw_person, config=config, stream=stream), range(count), chunksize=16)
        for number, (person, totals) in enumerate(drawn, 1):
            frames.append(torch.from_numpy(person))
            intensities.append(torch.from_numpy(totals))
            if progress:
                progress(number)
    return torch.stack(frames), torch.stack(intensities)


def au_targets(intensities: Tensor) -> Tensor:
    """Soft targets of the sigmoid loss: 0 up to an intensity of 0.1, rising to 1 at 0.5."""
    return ((intensities - 0.1) / 0.4).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """One optimizer step's data."""

    images: Tensor
    """float32 [B, 3, size, size], normalized and augmented."""
    intensities: Tensor
    """float32 [B, 28]."""
    tokens: Tensor
    """int64 [B + 28, n]: captions, then one prompt per AU."""


def batches(config: PretrainConfig, frames: Tensor, intensities: Tensor, *, device: torch.device) -> Iterator[Batch]:
    """`config.steps` batches, each drawn from its own seed."""
    for step in range(config.steps):
        rng = np.random.default_rng([config.seed, 3, step])
        people = rng.choice(len(frames), config.identities_per_batch, replace=False).repeat(
            config.frames_per_batch_identity
        )
        picks = [
            rng.permutation(frames.shape[1])[: config.frames_per_batch_identity]
            for _ in range(config.identities_per_batch)
        ]
        index = torch.from_numpy(people), torch.from_numpy(np.concatenate(picks))
        totals = intensities[index]
        captions = [caption(row.numpy(), rng) for row in totals]
        prompts = [_in_template(_wording(code, rng), rng) for code in RENDERED]
        tokens = token_ids(captions + prompts)
        images = _augment(frames[index].to(device), config, rng)
        yield Batch(images, totals.to(device), tokens.to(device))


def token_ids(texts: Sequence[str]) -> Tensor:
    """The stock tokenizer's ids [N, n], padded with zeros to the longest text.

    Byte-pair encoding works word by word, so words are encoded once and looked up: a batch costs a millisecond.
    """
    tokenizer = stock_tokenizer()
    rows = [
        torch.tensor(
            [tokenizer.sot_token_id, *(i for word in text.split() for i in _word_ids(word)), tokenizer.eot_token_id]
        )
        for text in texts
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@lru_cache(maxsize=4096)
def _word_ids(word: str) -> tuple[int, ...]:
    return tuple(stock_tokenizer().encode(word))


def _augment(frames: Tensor, config: PretrainConfig, rng: np.random.Generator) -> Tensor:
    """Small shifts, gain and colour offsets; no mirroring, since left and right are told apart."""
    shift = tuple(int(v) for v in rng.integers(-4, 5, 2))
    images = normalize_frames(torch.roll(frames, shift, (1, 2)), config.shape.preprocessing)
    gain = torch.from_numpy(rng.normal(1, 0.15, (len(images), 1, 1, 1))).float().to(images.device)
    offset = torch.from_numpy(rng.normal(0, 0.15, (len(images), 3, 1, 1))).float().to(images.device)
    return images * gain + offset


def build_small_clip(shape: SmallClipShape) -> CLIP:
    """An untrained CLIP of this shape with open_clip's stock vocabulary and first weights."""
    return CLIP(
        embed_dim=shape.embed_dim,
        vision_cfg={
            "image_size": shape.image_size,
            "layers": list(shape.layers),
            "width": shape.width,
            "head_width": shape.width,
        },
        text_cfg={"width": shape.text_width, "heads": shape.text_heads, "layers": shape.text_layers},
    )


class Trainee(nn.Module):
    """The CLIP in training, with the parts that are discarded afterwards.

    Args:
        config: shape and loss weights.

    Only the token embeddings that are shipped are trained; the other rows of the stock vocabulary never occur.
    """

    kept: Tensor
    """Ids of the shipped tokens, ascending, int64."""
    lookup: Tensor
    """Row of `rows` for each id of the stock vocabulary, int64."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = build_small_clip(config.shape)
        table = self.clip.token_embedding.weight.requires_grad_(False)
        kept = torch.tensor(sorted(shipped_tokens()))
        self.rows = nn.Parameter(table[kept].clone())
        self.register_buffer("kept", kept)
        lookup = torch.zeros(len(table), dtype=torch.long)
        lookup[kept] = torch.arange(len(kept))
        self.register_buffer("lookup", lookup)
        self.au_scale = nn.Parameter(torch.tensor([math.log(20.0), -4.0]))
        self.probe = nn.Linear(config.shape.embed_dim, len(RENDERED))

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch: contrastive (Radford et al., 2021), per AU prompt, and of the probe."""
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=batch.images.is_cuda):
            image = self.clip.visual(batch.images)
            text = read_text_tower(self.clip, F.embedding(self.lookup[batch.tokens], self.rows), batch.tokens)
        probed = self.probe(image.float())
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        captions, prompts = text[: len(image)], text[len(image) :]
        logits = self.clip.logit_scale.exp().clamp(max=100) * image @ captions.T
        same = torch.arange(len(image), device=image.device)
        contrastive = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        scores = self.au_scale[0].exp() * (image @ prompts.T) + self.au_scale[1]
        targets = au_targets(batch.intensities)
        per_au = F.binary_cross_entropy_with_logits(scores, targets, reduction="none").sum(1).mean() / 5
        differences = self._within_person(probed) - self._within_person(batch.intensities)
        return contrastive + self.config.au_loss_weight * (per_au + differences.square().sum(-1).mean())

    def _within_person(self, values: Tensor) -> Tensor:
        """[B, 28] minus the mean over the frames of the same person, which are adjacent in the batch."""
        people = values.reshape(-1, self.config.frames_per_batch_identity, values.shape[-1])
        return people - people.mean(1, keepdim=True)

    def finished(self) -> CLIP:
        """The CLIP with its trained token embeddings, in evaluation mode."""
        with torch.no_grad():
            self.clip.token_embedding.weight[self.kept] = self.rows
        return self.clip.eval()


def train_small_clip(
    config: PretrainConfig,
    frames: Tensor,
    intensities: Tensor,
    *,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> CLIP:
    """Fit a small CLIP to drawn people (`draw_people`); bf16 arithmetic on a GPU, fp32 on a CPU.

    Raises:
        FloatingPointError: if the loss is not finite, naming the step.
    """
    torch.manual_seed(config.seed)
    target = torch.device(device)
    trainee = Trainee(config).to(target).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(_parameter_groups(trainee), lr=config.learning_rate, betas=(0.9, 0.98))
    peak = [group["lr"] for group in optimizer.param_groups]
    for step, batch in enumerate(batches(config, frames, intensities, device=target)):
        factor = min(1.0, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        for group, rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * factor
        value = trainee(batch)
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss of step {step} is {value.item()}")
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        if on_step:
            on_step(step + 1, value.item())
    return trainee.finished()


def _parameter_groups(trainee: Trainee) -> list[dict[str, object]]:
    scales = [trainee.au_scale, trainee.clip.logit_scale]
    rest = [p for p in trainee.parameters() if p.requires_grad and all(p is not s for s in scales)]
    plain = [p for p in rest if p.ndim <= 1 or p is trainee.rows]
    decayed = [p for p in rest if all(p is not other for other in plain)]
    return [
        {"params": decayed, "weight_decay": 0.05},
        {"params": plain, "weight_decay": 0.0},
        {"params": scales, "weight_decay": 0.0, "lr": 10 * trainee.config.learning_rate},
    ]


def shipped_tokens() -> set[int]:
    """The token ids that captions, prompts, held-out wordings and class descriptions use."""
    units = [unit(code) for code in RENDERED]
    texts = [*phrases(), *RESTING_PHRASES, *TEMPLATES, LEADING_PHRASE, "and"]
    texts += [w for u in units for w in (*u.wordings, u.held_out)]
    texts += [d for task in TASKS.values() for group in task.descriptions for d in group]
    tokens: torch.Tensor = stock_tokenizer()([t.replace("{}", "") for t in texts])
    return set(tokens.flatten().tolist())


def prompt_sets() -> dict[str, list[str]]:
    """Ways to ask for the rendered units: the shipped prompts, without the leading phrase, and in unseen wordings."""
    units = [unit(code) for code in RENDERED]
    return {
        "prompt": [f"{LEADING_PHRASE} {u.phrase}" for u in units],
        "phrase_alone": [u.phrase for u in units],
        "held_out_wording": [f"{LEADING_PHRASE} {u.held_out}" for u in units],
    }


def au_auc(similarities: npt.NDArray[np.floating], intensities: npt.NDArray[np.floating]) -> dict[str, float]:
    """Area under the ROC curve per rendered unit: frames that show it against frames that do not.

    Args:
        similarities: [N, 28], one column per rendered unit.
        intensities: true intensities [N, 28]; frames between `ABSENT` and `VISIBLE` are omitted from a unit's AUC.

    Returns:
        code → AUC in 0..1; NaN where a unit is never or always shown.
    """
    result = {}
    for column, code in enumerate(RENDERED):
        clear = (intensities[:, column] > VISIBLE) | (intensities[:, column] < ABSENT)
        shown = intensities[clear, column] > VISIBLE
        result[code] = roc_auc(similarities[clear, column], shown)
    return result


def evaluate(backbone: Backbone, frames: Tensor, intensities: Tensor) -> dict[str, dict[str, float]]:
    """Zero-shot AUC per unit and prompt set on people the backbone has not seen."""
    image = F.normalize(backbone.encode_frames(frames.flatten(0, 1)), dim=-1)
    totals = intensities.flatten(0, 1).numpy()
    result = {}
    for name, texts in prompt_sets().items():
        with torch.inference_mode():
            text = F.normalize(backbone.encode_prompts(backbone.tokenize(texts)), dim=-1).cpu()
        result[name] = au_auc((image @ text.T).numpy(), totals)
    return result


def save_small_clip(
    model: CLIP, path: Path, *, config: PretrainConfig, auc: dict[str, dict[str, float]], command: str
) -> None:
    """Write the weights with shape, recipe and figures in the file's metadata, and the model card beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"shape": asdict(config.shape), "recipe": asdict(config), "auc": auc, "command": command}
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    write_tensors(path, pack_small_clip(model, shipped_tokens()), metadata)
    card = model_card(config, auc, command=command, num_bytes=path.stat().st_size)
    write_text(path.with_name("MODEL_CARD.md"), card)


def mean_auc(auc: dict[str, float]) -> float:
    """Mean over the units that have a value."""
    return float(np.nanmean(list(auc.values())))


def model_card(config: PretrainConfig, auc: dict[str, dict[str, float]], *, command: str, num_bytes: int) -> str:
    """The card in Markdown."""
    rows = "\n".join(
        f"| {code} | {unit(code).name} | " + " | ".join(f"{auc[name][code]:.3f}" for name in auc) + " |"
        for code in RENDERED
    )
    means = " | ".join(f"**{mean_auc(auc[name]):.3f}**" for name in auc)
    never = ", ".join(title_of(one.code) for one in VOCABULARY if one.code not in RENDERED)
    taught = (
        f"Taught were {len(RENDERED)} of the {len(VOCABULARY)} action units. Never learned, so that predictions, "
        f"explanations and reports leave them out: {never}."
    )
    shape, batch = config.shape, config.identities_per_batch * config.frames_per_batch_identity
    return f"""# Embedded CLIP

A small CLIP trained on this project's **synthetic** faces only. It exists so that demonstrations and tests need no
download. It has never seen a photograph: do not use it on real people.

- Image tower: open_clip ModifiedResNet {list(shape.layers)}, width {shape.width}, {shape.image_size} px.
- Text tower: {shape.text_layers} layers, width {shape.text_width}, stock tokenizer; only the {len(shipped_tokens())}
  token embeddings that its captions and the AU prompts use are kept, other words are refused.
- Data: {config.identities} rendered identities × {config.frames_per_identity} frames, after mp4 compression; captions
  of active action units in several wordings; no caption names a class to be recognized.
- Made by `{command}` (seed {config.seed}, {config.steps} steps of {batch} frames); {num_bytes / 1e6:.1f} MB.

## What it sees

{textwrap.fill(taught, 110)}

Zero-shot ROC-AUC per action unit on {config.validation_identities} identities it was not trained on: intensity above
{VISIBLE} against below {ABSENT}, frames after mp4. `prompt` is the shipped prompt ("{LEADING_PHRASE} …"),
`phrase_alone` omits the leading phrase, `held_out_wording` uses words in an order no caption had.

| code | name | {" | ".join(auc)} |
|---|---|{"---|" * len(auc)}
{rows}
| mean | | {means} |
"""
