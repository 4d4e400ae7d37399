"""CLIP-AU itself, and the checkpoint that carries it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.source import Source
from clipautt.footage import Footage
from clipautt.model.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    find_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from clipautt.model.network import ClipAU, initial_model
from clipautt.model.windows import WindowSpec
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Preprocessing
from tests.support.configs import adapt_config
from tests.support.fakes import (
    FEATURE_DIM,
    PHRASES,
    fake_backbone,
    fake_checkpoint,
    fake_clip,
    fake_clips,
    fake_model,
    shared_backbone,
)


def count_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_number_of_parameters_of_the_paper() -> None:
    model = ClipAU(512, 46, 2)
    assert count_parameters(model.adapter) == 525_312
    assert count_parameters(model.temporal) == 786_944
    assert count_parameters(model.classifier) == 12_546
    assert count_parameters(model) == 1_324_802
    assert count_parameters(model.requires_grad_(False)) == 0


def test_forward_is_section_two_step_by_step() -> None:
    model = fake_model(num_prompts=3)
    generator = torch.Generator().manual_seed(0)
    windows, text = (
        torch.randn(2, 5, FEATURE_DIM, generator=generator),
        torch.randn(3, FEATURE_DIM, generator=generator),
    )
    a = F.linear(F.relu(F.linear(text, model.adapter[0].weight, model.adapter[0].bias)), *model.adapter[2].parameters())
    a = a / a.norm(dim=1, keepdim=True)
    logits = []
    for window in windows:
        padded = torch.cat([torch.zeros(1, FEATURE_DIM), window, torch.zeros(1, FEATURE_DIM)])
        hidden = [
            sum(model.temporal.weight[:, :, tap] @ padded[t + tap] for tap in range(3)) + model.temporal.bias
            for t in range(5)
        ]
        v = F.gelu(torch.stack(hidden)).mean(0)
        s = 5 * (v / v.norm()) @ a.T
        logits.append(
            F.linear(F.relu(F.linear(s, *model.classifier[0].parameters())), *model.classifier[2].parameters())
        )
    torch.testing.assert_close(model(windows, text), torch.stack(logits), atol=1e-5, rtol=1e-5)


def test_similarities_are_five_times_the_cosine() -> None:
    model = fake_model(num_prompts=2)
    v, a = F.normalize(torch.randn(4, FEATURE_DIM), dim=-1), F.normalize(torch.randn(2, FEATURE_DIM), dim=-1)
    s = model.similarities(v, a)
    torch.testing.assert_close(s, 5 * F.cosine_similarity(v[:, None], a[None], dim=-1))
    assert s.abs().max() <= 5.0001
    assert model.similarities(v.expand(3, 4, -1), a.expand(3, 2, -1)).shape == (3, 4, 2)


def test_stride_skips_frames_before_the_windows() -> None:
    model, frames = fake_model(), fake_clip(num_frames=21).features
    strided, starts = model.window_embeddings(frames, WindowSpec(length=4, stride=3))
    assert starts == [0, 1, 2, 3]
    assert torch.equal(strided, model.window_embeddings(frames[::3], WindowSpec(length=4))[0])


def test_initial_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, same, other = (initial_model(8, 2, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.temporal.weight, other.temporal.weight)


def test_saved_checkpoint_gives_the_same_logits(tmp_path: Path) -> None:
    saved = fake_checkpoint(window=WindowSpec(7, 2, 3), subject_baseline="median")
    save_checkpoint(saved, tmp_path / "new" / "folder")
    loaded = load_checkpoint(tmp_path / "new" / "folder")
    windows, text = torch.randn(3, 7, FEATURE_DIM), torch.randn(len(PHRASES), FEATURE_DIM)
    assert torch.equal(loaded.model(windows, text), saved.model(windows, text))
    assert loaded.spec == saved.spec and loaded.fingerprint == saved.fingerprint
    assert not loaded.model.training and count_parameters(loaded.model) == 0
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [file.name for file in files] == ["checkpoint.json", "weights.safetensors"]
    assert files[0].stat().st_mode == files[1].stat().st_mode  # readable by whom the folder is shared with


def test_an_adapter_of_another_width_is_saved_and_adapted(tmp_path: Path) -> None:
    """The weights say the width; zero steps of CLIP-AUTT are still CLIP-AU."""
    narrow = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0, adapter_width=24).eval().requires_grad_(False)
    save_checkpoint(replace(fake_checkpoint(), model=narrow), tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.model.adapter[0].weight.shape == (24, FEATURE_DIM)
    windows, text = torch.randn(3, 6, FEATURE_DIM), torch.randn(len(PHRASES), FEATURE_DIM)
    assert torch.equal(loaded.model(windows, text), narrow(windows, text))
    plain, still = (
        adapt(Source(loaded, shared_backbone()), fake_clips(subjects=1), config)["s0"].predictions
        for config in (adapt_config(), adapt_config(objective="infomax", steps=0))
    )
    assert all(torch.equal(a.probabilities, b.probabilities) for a, b in zip(plain, still, strict=True))


def test_checkpoint_says_everything_in_plain_json(tmp_path: Path) -> None:
    save_checkpoint(fake_checkpoint(), tmp_path)
    facts = json.loads((tmp_path / "checkpoint.json").read_text())
    assert facts["phrases"] == list(PHRASES) and facts["classes"] == ["neutral", "pain"]
    assert facts["context"] == "a human face with" and facts["window"] == {"length": 6, "stride": 1, "hop": 1}
    assert facts["features"]["backbone_fingerprint"] == shared_backbone().fingerprint
    assert facts["features"]["frames"]["preprocessing"]["crop"] == "centre" and facts["subject_baseline"] == "none"


def test_weights_of_another_checkpoint_are_noticed(tmp_path: Path) -> None:
    save_checkpoint(fake_checkpoint(seed=1), tmp_path / "other")
    save_checkpoint(fake_checkpoint(), tmp_path / "mine")
    (tmp_path / "other" / "weights.safetensors").replace(tmp_path / "mine" / "weights.safetensors")
    with pytest.raises(ValueError, match=r"mine: the weights have fingerprint \w+, checkpoint\.json says \w+"):
        load_checkpoint(tmp_path / "mine")


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(fake_checkpoint(), tmp_path)
    content = bytearray((tmp_path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="the weights have fingerprint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("phrases", [*PHRASES[:5], "lips parted"]), ("context", "a face with"), ("subject_baseline", "median")],
)
def test_changed_facts_are_noticed(tmp_path: Path, key: str, value: object) -> None:
    save_checkpoint(fake_checkpoint(), tmp_path)
    facts = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(facts | {key: value}))
    with pytest.raises(ValueError, match=r"checkpoint\.json says"):
        load_checkpoint(tmp_path)


def test_weights_that_do_not_fit_the_facts_are_named(tmp_path: Path) -> None:
    save_checkpoint(fake_checkpoint(), tmp_path)
    facts = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(facts | {"phrases": list(PHRASES[:3])}))
    with pytest.raises(
        ValueError, match=r"weights\.safetensors does not fit checkpoint\.json (?s:.*)classifier\.0\.weight"
    ):
        load_checkpoint(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit checkpoint\.json"):
        load_checkpoint(tmp_path)


def test_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* \(checkpoint\.json is missing\)"):
        load_checkpoint(tmp_path)


def test_fingerprint_is_of_what_changes_a_prediction() -> None:
    original = fake_checkpoint()
    same = Checkpoint(original.model, replace(original.spec, metrics={"uar": 0.9}, training={"seed": 7}))
    assert same.fingerprint == original.fingerprint == fake_checkpoint().fingerprint
    for change in ({"context": "a face with"}, {"window": WindowSpec(8)}, {"subject_baseline": "mean"}):
        assert Checkpoint(original.model, replace(original.spec, **change)).fingerprint != original.fingerprint
    assert fake_checkpoint(seed=1).fingerprint != original.fingerprint


def test_class_shares_are_equal_where_they_are_not_known_and_one_per_class() -> None:
    spec = fake_checkpoint().spec
    assert spec.class_shares == (0.5, 0.5)
    with pytest.raises(ValueError, match=r"class_shares=\(1\.0,\): expected one for each of "):
        replace(spec, class_shares=(1.0,))


def test_a_checkpoint_with_class_shares_among_the_training_settings_loads_with_the_same_fingerprint(
    tmp_path: Path,
) -> None:
    known = fake_checkpoint()
    known = Checkpoint(known.model, replace(known.spec, class_shares=(0.75, 0.25)))
    save_checkpoint(known, tmp_path)
    facts = json.loads((tmp_path / "checkpoint.json").read_text())
    facts["training"]["class_shares"] = facts.pop("class_shares")
    (tmp_path / "checkpoint.json").write_text(json.dumps(facts))
    loaded = load_checkpoint(tmp_path)
    assert loaded.spec == known.spec and loaded.fingerprint == facts["fingerprint"]


def test_features_of_another_backbone_or_sampling_are_refused_naming_both() -> None:
    checkpoint = fake_checkpoint()
    mine = checkpoint.spec.features
    checkpoint.check_features(mine)
    other = fake_backbone(seed=1).fingerprint
    with pytest.raises(
        ValueError, match=rf"backbone_fingerprint: checkpoint {mine.backbone_fingerprint}, given {other}"
    ):
        checkpoint.check_features(replace(mine, backbone_fingerprint=other))
    with pytest.raises(ValueError, match=r"frames\.sampling\.frames_per_second: checkpoint 12\.5, given 25\.0"):
        checkpoint.check_features(replace(mine, frames=replace(mine.frames, sampling=Sampling(25.0))))
    with pytest.raises(ValueError, match=r"frames\.preprocessing\.size: checkpoint 32, given 64"):
        shape = Preprocessing(64, (0.5,) * 3, (0.25,) * 3, "area")
        checkpoint.check_features(replace(mine, frames=replace(mine.frames, preprocessing=shape)))
    with pytest.raises(ValueError, match=r"frames\.faces\.detector: checkpoint none, given cascade"):
        checkpoint.check_features(replace(mine, frames=replace(mine.frames, faces=FaceConfig("cascade"))))


def test_a_checkpoint_is_found_in_a_run_or_is_the_folder_itself(tmp_path: Path) -> None:
    for baseline in ("mean", "none"):
        save_checkpoint(fake_checkpoint(subject_baseline=baseline), checkpoint_folder(tmp_path, baseline))  # type: ignore[arg-type]
    assert find_checkpoint(tmp_path, "mean") == find_checkpoint(tmp_path / "checkpoints" / "mean", "none")
    assert find_checkpoint(tmp_path).name == "none", "before mean, where there is no median"
    with pytest.raises(FileNotFoundError, match=r"baseline 'median' in .*there are: mean, none; train it with baselin"):
        find_checkpoint(tmp_path, "median")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*gone; `clipautt train` makes one"):
        find_checkpoint(tmp_path / "gone")


def test_the_newest_checkpoint_is_no_model_of_a_sweep_and_nothing_unfinished(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "gone") is None
    places = ["train/a/checkpoints/none", "train/b/checkpoints/median", "train/c/checkpoints/none", "sweep/d/models/1"]
    places += ["train/c/checkpoints/.median.0123.tmp", "sweep/d/.1.4567.tmp"]
    for seconds, place in enumerate(places):
        save_checkpoint(fake_checkpoint(), tmp_path / place)
        os.utime(tmp_path / place / "checkpoint.json", (seconds, seconds))
        if seconds == 0:
            assert newest_checkpoint(tmp_path) == tmp_path / place, "of another baseline, where there is no other"
    assert newest_checkpoint(tmp_path) == tmp_path / "train/b/checkpoints/median"


def test_the_footage_it_was_trained_on_is_a_fact_in_it(tmp_path: Path) -> None:
    plain = fake_checkpoint()
    footage = Footage("rendered", ("synthetic-pain-hard-seed0",))
    trained = Checkpoint(plain.model, replace(plain.spec, footage=footage))
    save_checkpoint(trained, tmp_path)
    assert load_checkpoint(tmp_path).spec.footage == footage
    stored = json.loads((tmp_path / "checkpoint.json").read_text())
    assert stored["footage"] == {"faces": "rendered", "datasets": ["synthetic-pain-hard-seed0"]}
    assert trained.fingerprint == plain.fingerprint, "prompts adapted earlier must still belong to it"


def test_an_earlier_checkpoint_does_not_say_what_it_was_trained_on(tmp_path: Path) -> None:
    save_checkpoint(fake_checkpoint(), tmp_path)
    file = tmp_path / "checkpoint.json"
    facts = json.loads(file.read_text())
    del facts["footage"]
    file.write_text(json.dumps(facts))
    assert load_checkpoint(tmp_path).spec.footage == Footage(None, ())
