"""Importing a published checkpoint: its logits are those of the published forward pass, and adaptation starts there."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone
from clipautt.backbones.text_tower import stock_tokenizer
from clipautt.features.clip_features import ClipFeatures
from clipautt.footage import Footage
from clipautt.model.checkpoint import load_checkpoint, save_checkpoint
from clipautt.model.published import ImportConfig, import_checkpoint, read_prompts
from clipautt.model.windows import WindowSpec
from clipautt.predictor import Predictor
from clipautt.settings import one_line
from tests.support.configs import adapt_config, changed
from tests.support.fakes import FEATURE_DIM, fake_backbone, fake_clip_model, fake_clips, numbered_frames, write_video

PROMPTS = ("inner_brow_raiser", "Outer brow raiser", "lips part", "jaw_drop", "cheek_raiser", "upper lip raiser.")


class Published(nn.Module):
    """The published model as its paper and its files describe it."""

    def __init__(self, dim: int, prompts: int, classes: int, *, hidden: int = 512) -> None:
        super().__init__()
        self.text_adapter = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.temporal = nn.Conv1d(dim, dim, 3, padding=1)
        self.temporal_classifier = nn.Sequential(nn.Linear(prompts, 256), nn.ReLU(), nn.Linear(256, classes))

    def forward(self, frames: Tensor, text: Tensor) -> Tensor:
        """Logits of windows [B, L, d] with text features [K, d]."""
        words = F.normalize(self.text_adapter(text), dim=-1)
        video = F.normalize(F.gelu(self.temporal(frames.transpose(1, 2))).mean(-1), dim=-1)
        logits: Tensor = self.temporal_classifier(5.0 * video @ words.T)
        return logits

    def save(self, path: Path, **more: Any) -> Path:
        """The file as it was published."""
        parts = ("text_adapter", "temporal", "temporal_classifier")
        torch.save({part: getattr(self, part).state_dict() for part in parts} | more, path)
        return path


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return fake_backbone(seed=5)


@pytest.fixture
def published() -> Published:
    torch.manual_seed(1)
    return Published(FEATURE_DIM, len(PROMPTS), 2).requires_grad_(False)


@pytest.mark.parametrize("length", [1, 2, 6, 16])
def test_logits_are_those_of_the_published_forward_pass(
    tmp_path: Path, backbone: Backbone, published: Published, length: int
) -> None:
    path = published.save(tmp_path / "source.pth", epoch=10)
    checkpoint = import_checkpoint(path, PROMPTS, backbone, config=ImportConfig(window=WindowSpec(length=length)))
    frames = torch.randn(40, FEATURE_DIM) * 3
    clip = ClipFeatures("c", "s", frames, np.arange(40) / 12.5)
    source = Source(checkpoint, backbone)
    views = source.views(clip)
    words = fake_clip_model(seed=5).encode_text(stock_tokenizer()(list(PROMPTS)))
    expected = published(frames.unfold(0, length, 1).transpose(1, 2), words)
    assert len(views.embeddings) == len(expected) == 41 - length
    found = source.logits(views.embeddings, source.au_embeddings)
    assert (found - expected).abs().max() < 1e-4 and expected.std() > 0.01


def test_an_adapter_of_another_width(tmp_path: Path, backbone: Backbone) -> None:
    torch.manual_seed(2)
    narrow = Published(FEATURE_DIM, len(PROMPTS), 2, hidden=24).requires_grad_(False)
    save_checkpoint(import_checkpoint(narrow.save(tmp_path / "source.pth"), PROMPTS, backbone), tmp_path / "kept")
    words, frames = torch.randn(len(PROMPTS), FEATURE_DIM), torch.randn(3, 16, FEATURE_DIM)
    torch.testing.assert_close(load_checkpoint(tmp_path / "kept").model(frames, words), narrow(frames, words))


def test_what_it_was_trained_on_is_given_or_not_known(tmp_path: Path, backbone: Backbone, published: Published) -> None:
    path = published.save(tmp_path / "source.pth")
    known = import_checkpoint(path, PROMPTS, backbone, config=ImportConfig(datasets=("StressID", "BioVid")))
    assert known.spec.footage == Footage("other", ("BioVid", "StressID"))
    assert import_checkpoint(path, PROMPTS, backbone).spec.footage == Footage(None, ())


def test_it_is_kept_and_read_like_any_checkpoint(tmp_path: Path, backbone: Backbone, published: Published) -> None:
    checkpoint = import_checkpoint(published.save(tmp_path / "source.pth"), PROMPTS, backbone)
    save_checkpoint(checkpoint, tmp_path / "kept")
    read = load_checkpoint(tmp_path / "kept")
    assert read.fingerprint == checkpoint.fingerprint and read.spec == checkpoint.spec
    assert read.spec.phrases == PROMPTS and read.spec.context == "" and read.spec.subject_baseline == "none"
    assert Source(read, backbone).prompts.texts == PROMPTS


def test_adaptation_starts_from_it_and_moves(tmp_path: Path, backbone: Backbone, published: Published) -> None:
    """Zero steps are CLIP-AU; steps tune the first tokens of each prompt."""
    checkpoint = import_checkpoint(published.save(tmp_path / "source.pth"), PROMPTS, backbone)
    source = Source(checkpoint, backbone)
    assert source.context.shape[:2] == (len(PROMPTS), checkpoint.spec.context_tokens)
    clips = fake_clips(subjects=1)
    plain = adapt(source, clips, adapt_config())["s0"]
    tuned = adapt_config(objective="infomax", protocol="per_subject", steps=3, learning_rate=0.3)
    still = adapt(source, clips, changed(tuned, steps=0))["s0"]
    moved = adapt(source, clips, tuned)["s0"]
    for one, two, three in zip(plain.predictions, still.predictions, moved.predictions, strict=True):
        assert torch.equal(one.probabilities, two.probabilities)
        assert not torch.equal(one.probabilities, three.probabilities)


def test_the_predictor_takes_it(tmp_path: Path, backbone: Backbone, published: Published) -> None:
    checkpoint = import_checkpoint(published.save(tmp_path / "source.pth"), PROMPTS, backbone)
    save_checkpoint(checkpoint, tmp_path / "kept")
    video = write_video(tmp_path / "v.mp4", numbered_frames(60))
    prediction = Predictor.load(tmp_path / "kept", backbone=backbone).predict(video)
    assert list(prediction.action_units.columns) == list(PROMPTS) and prediction.label in ("neutral", "pain")


def test_fewer_context_tokens_where_a_prompt_is_short(tmp_path: Path, backbone: Backbone, published: Published) -> None:
    path = published.save(tmp_path / "source.pth")
    assert import_checkpoint(path, PROMPTS, backbone).spec.context_tokens == 2  # "lips part"
    assert import_checkpoint(path, PROMPTS, backbone, config=ImportConfig(context_tokens=1)).spec.context_tokens == 1


def test_files_that_do_not_fit_are_explained(tmp_path: Path, backbone: Backbone, published: Published) -> None:
    path = published.save(tmp_path / "source.pth")
    with pytest.raises(ValueError, match=r"was trained with 6 prompts \(prompts has 5\)$"):
        import_checkpoint(path, PROMPTS[:5], backbone)
    with pytest.raises(ValueError, match=r"trained with 2 classes \(classes has 3\)$"):
        import_checkpoint(path, PROMPTS, backbone, config=ImportConfig(classes=("a", "b", "c")))
    other = Published(24, len(PROMPTS), 2).save(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"trained with features of width 24 \(fake has 16\)$"):
        import_checkpoint(other, PROMPTS, backbone)
    torch.save({"temporal": {}, "epoch": 3}, tmp_path / "parts.pth")
    with pytest.raises(ValueError, match=r"lacks text_adapter, temporal_classifier; .* It has: temporal, epoch"):
        import_checkpoint(tmp_path / "parts.pth", PROMPTS, backbone)
    torch.save({part: {} for part in ("text_adapter", "temporal", "temporal_classifier")}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"does not have the layers of CLIP-AU: no '0\.weight'"):
        import_checkpoint(tmp_path / "empty.pth", PROMPTS, backbone)
    whole = path.read_bytes()
    for number, share in enumerate((0.1, 0.5, 0.98)):
        (tmp_path / f"cut{number}.pth").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match="is not a complete file of tensors"):
            import_checkpoint(tmp_path / f"cut{number}.pth", PROMPTS, backbone)
    published.temporal.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"temporal\.bias is not a tensor of finite numbers"):
        import_checkpoint(published.save(tmp_path / "nan.pth"), PROMPTS, backbone)
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(ValueError, match="is not a complete file of tensors"):
        import_checkpoint(tmp_path / "text.pth", PROMPTS, backbone)
    with pytest.raises(FileNotFoundError, match=r"weights=.*gone\.pth: no such file"):
        import_checkpoint(tmp_path / "gone.pth", PROMPTS, backbone)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=1), r"argparse\.Namespace"),
        (np.float64(0.9), r"numpy\..*scalar"),
        (Path("/"), r"pathlib\.PosixPath"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_in_a_file_are_named_and_the_advice_works(
    tmp_path: Path, backbone: Backbone, published: Published, extra: object, named: str, zipped: bool
) -> None:
    path = tmp_path / "it's $HOME.pth"
    parts = torch.load(published.save(tmp_path / "good.pth"), weights_only=True)
    torch.save(parts | {"extra": extra}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"weights=.*\.pth holds {named}.* beside its tensors") as caught:
        import_checkpoint(path, PROMPTS, backbone)
    command = str(caught.value).partition("this writes: ")[2]
    subprocess.run(["bash", "-c", command], check=True)
    cleaned = import_checkpoint(tmp_path / "it's $HOME.tensors.pth", PROMPTS, backbone)
    assert cleaned.fingerprint == import_checkpoint(tmp_path / "good.pth", PROMPTS, backbone).fingerprint


def test_prompts_are_read_verbatim(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("inner_brow_raiser\n\n  Lips part  \nnaïve\n")
    assert read_prompts(tmp_path / "p.txt") == ("inner_brow_raiser", "Lips part", "naïve")
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="'a' is listed twice"):
        read_prompts(tmp_path / "twice.txt")
    latin = tmp_path / "it's latin.txt"
    latin.write_bytes("lips part\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts=.*latin\.txt: line 2 is not UTF-8 \(byte 0xe9\)") as caught:
        read_prompts(latin)
    subprocess.run(["bash", "-c", str(caught.value).partition("convert it: ")[2]], check=True)
    assert read_prompts(f"{latin}.utf8") == ("lips part", "café")
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="no prompts in it"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match=r"prompts=.*gone\.txt: no such file; give a text file with one"):
        read_prompts(tmp_path / "gone.txt")


def test_context_tokens_are_not_negative() -> None:
    with pytest.raises(ValidationError) as caught:
        ImportConfig(context_tokens=-1)
    assert one_line(caught.value) == "context_tokens=-1: should be greater than or equal to 0"
