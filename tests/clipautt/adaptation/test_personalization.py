"""What adaptation leaves behind: written and read again, it predicts the same and goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clipautt.adaptation.driver import (
    History,
    SubjectResult,
    SubjectState,
    Unit,
    adapt,
    adapt_units,
    visiting_order,
)
from clipautt.adaptation.method import AdaptConfig, SavedState, Session
from clipautt.adaptation.methods.clip_autt.method import PromptState
from clipautt.adaptation.personalization import (
    FORMAT,
    Personalization,
    clips_of_personalization,
    load_beside,
    load_personalization,
    read_personalization,
    save_personalization,
)
from clipautt.adaptation.source import Source
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import WindowSpec
from clipautt.subjects import subject_file
from tests.support.configs import ZERO_SHOT, adapt_config, changed
from tests.support.fakes import fake_clips, fake_source

TUNED = adapt_config(objective="infomax_kl", steps=2, learning_rate=0.3, windows_per_clip=2)
ONLINE = changed(TUNED, protocol="online", memory=5)
MODES: list[dict[str, Any]] = [
    {},
    {"tune": "feature"},
    {"precision": "bf16"},
    {"prior": 0.2},
    {"readout": "mean_windows"},
    {"objective": "none"},
]


def tuned_personalization(source: Source, **options: Any) -> tuple[SubjectResult, Personalization, AdaptConfig]:
    config = changed(TUNED, subject_baseline=source.checkpoint.spec.subject_baseline, **options)
    result = adapt(source, fake_clips(subjects=1), config)["s0"]
    return result, Personalization.of(result, config), config


def test_saved_personalization_predicts_as_the_adapted_state(tmp_path: Path) -> None:
    source = fake_source(subject_baseline="median")
    result, personalization, config = tuned_personalization(source, window=WindowSpec(5, 2, 3))
    path = tmp_path / "prompts" / subject_file("s0")
    save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint)
    loaded = load_personalization(path, source)
    assert (loaded.subject_id, loaded.config, loaded.clips) == ("s0", config, ("s0c0", "s0c1", "s0c2", "s0c3"))
    state = loaded.after(loaded.session(source)).state
    assert state.context is not None and torch.equal(state.context, result.state.context)
    assert torch.equal(loaded.centre, result.centre)
    assert torch.equal(state.au_embeddings, result.state.au_embeddings)
    assert [p.name for p in path.parent.iterdir()] == ["s0.safetensors"]
    assert repr(loaded).startswith(
        "Personalization('s0', CLIP-AUTT infomax+KL, per subject, median baseline, windows of 5"
    )


def test_personalization_without_tuning_is_the_centre_and_the_source_prompts(tmp_path: Path) -> None:
    source = fake_source(subject_baseline="median")
    _, personalization, _ = tuned_personalization(source, steps=0)
    save_personalization(personalization, tmp_path / "p.safetensors", checkpoint=source.checkpoint.fingerprint)
    loaded = load_personalization(tmp_path / "p.safetensors", source)
    assert not loaded.saved.tensors and loaded.centre.abs().sum() > 0
    state = loaded.after(loaded.session(source)).state
    assert state.context is None and torch.equal(state.au_embeddings, source.au_embeddings)


def test_personalization_of_another_checkpoint_is_refused_naming_both(tmp_path: Path) -> None:
    source, other = fake_source(), fake_source(seed=1)
    _, personalization, _ = tuned_personalization(source)
    mine, theirs = source.checkpoint.fingerprint, other.checkpoint.fingerprint
    save_personalization(personalization, tmp_path / "p.safetensors", checkpoint=mine)
    with pytest.raises(ValueError, match=rf"was adapted from checkpoint {mine}, not from {theirs}"):
        load_personalization(tmp_path / "p.safetensors", other)
    with pytest.raises(FileNotFoundError, match=r"no adapted prompts at .*gone\.safetensors"):
        load_personalization(tmp_path / "gone.safetensors", source)


@pytest.mark.parametrize("subject", ["s0", "a b", "../../etc/passwd", "a/b", "..", ".", "ä", "a%2Fb"])
def test_every_subject_has_a_file_name_of_its_own_inside_the_folder(tmp_path: Path, subject: str) -> None:
    path = tmp_path / subject_file(subject)
    assert path.resolve().parent == tmp_path.resolve() and path.suffix == ".safetensors"
    others = {"s0", "a b", "../../etc/passwd", "a/b", "..", ".", "ä", "a%2Fb"} - {subject}
    assert subject_file(subject) not in {subject_file(other) for other in others}


def assert_same_run(found: SubjectResult, expected: SubjectResult) -> None:
    """Same decisions, numbers to 1e-5, and the same place to go on from."""
    for p, q in zip(found.predictions, expected.predictions, strict=True):
        assert (p.clip_id, p.label_index, p.status) == (q.clip_id, q.label_index, q.status)
        torch.testing.assert_close(p.probabilities, q.probabilities, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.centre, expected.centre, atol=1e-5, rtol=0)
    assert (found.after.decisions, found.after.fallback) == (expected.after.decisions, expected.after.fallback)
    assert (found.after.prior is None) == (expected.after.prior is None)
    one, other = found.state, expected.state
    assert len(one.memory) == len(other.memory)
    for name in ("context", "offset", "prior", "au_embeddings"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    for mine, theirs in zip(one.memory, other.memory, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def run(source: Source, clips: list[ClipFeatures], config: AdaptConfig, history: Any = None) -> SubjectResult:
    (result,) = adapt_units(Session.open(source, config), [Unit("s0", tuple(clips), history)])
    return result


def through_a_file(source: Source, result: SubjectResult, config: AdaptConfig, path: Path) -> SubjectState:
    save_personalization(Personalization.of(result, config), path, checkpoint=source.checkpoint.fingerprint)
    loaded = load_personalization(path, source)
    return loaded.after(loaded.session(source))


@pytest.mark.parametrize("options", MODES, ids=lambda options: " ".join(map(str, options.values())) or "exact")
@pytest.mark.parametrize("baseline", ["none", "median"])
@pytest.mark.parametrize("saved", [False, True])
def test_online_goes_on_as_if_it_had_not_stopped(
    options: dict[str, Any], baseline: Any, saved: bool, tmp_path: Path
) -> None:
    source = fake_source(subject_baseline=baseline)
    config = changed(ONLINE, subject_baseline=baseline, **options)
    order = visiting_order(fake_clips(subjects=1, per_subject=7), config)
    whole = run(source, order, config)
    first = run(source, order[:3], config)
    after = through_a_file(source, first, config, tmp_path / "p.safetensors") if saved else first.after
    second = run(source, order[3:], config, History(after, tuple(order[:3])))
    assert [p.clip_id for p in (*first.predictions, *second.predictions)] == [c.clip_id for c in order]
    assert_same_run(replace(second, predictions=(*first.predictions, *second.predictions)), whole)


@pytest.mark.parametrize("at", [4, 7, 8, 9])
def test_a_collapse_is_noticed_across_a_stop_and_holds_behind_it(at: int, tmp_path: Path) -> None:
    """Eight clips in one class are needed; the stop is before, at, and behind the eighth."""
    source = fake_source(seed=2)
    config = adapt_config(objective="entropy", protocol="online", learning_rate=0.1)
    order = visiting_order(fake_clips(subjects=1, per_subject=12), config)
    whole = run(source, order, config)
    assert [p.status == "ok" for p in whole.predictions] == [True] * 7 + [False] * 5
    first = run(source, order[:at], config)
    after = through_a_file(source, first, config, tmp_path / "p.safetensors")
    assert (after.fallback is None) == (at < 8) and len(after.decisions) == min(at, 8)
    second = run(source, order[at:], config, History(after, tuple(order[:at])))
    assert_same_run(replace(second, predictions=(*first.predictions, *second.predictions)), whole)


@pytest.mark.parametrize("options", MODES, ids=lambda options: " ".join(map(str, options.values())) or "exact")
def test_loaded_prompts_are_the_tuned_ones_to_the_last_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """Also where the text tower would say something else: in bf16."""
    source = fake_source()
    config = changed(TUNED, **options)
    result = run(source, fake_clips(subjects=1), config)
    after = through_a_file(source, result, config, tmp_path / "p.safetensors")
    state = after.state
    assert after.prior is result.after.prior is None or torch.equal(after.prior, result.after.prior)
    assert torch.equal(state.au_embeddings, result.state.au_embeddings)
    for name in ("context", "offset", "prior"):
        mine, theirs = getattr(state, name), getattr(result.state, name)
        assert mine is theirs is None or torch.equal(mine, theirs)


def test_another_version_of_the_file_and_a_damaged_one_are_refused_naming_it(tmp_path: Path) -> None:
    """Such as those of a file that holds no AU embeddings, of before they were kept."""
    source, path = fake_source(), tmp_path / "p.safetensors"
    _, personalization, _ = tuned_personalization(source)
    save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["personalization"])
    for other in (facts | {"format": FORMAT - 1}, {name: facts[name] for name in facts if name != "format"}):
        save_file(load_file(path), path, metadata={"personalization": json.dumps(other)})
        with pytest.raises(ValueError, match=r"p\.safetensors was written by another version of clipautt; remove its"):
            load_personalization(path, source)
        with pytest.raises(ValueError, match=r"p\.safetensors was written by another version"):
            clips_of_personalization(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"p\.safetensors is damaged"):
        load_personalization(path, source)
    with pytest.raises(ValueError, match=r"p\.safetensors is damaged"):
        clips_of_personalization(path)


def test_what_stands_beside_it_is_not_read_to_predict(tmp_path: Path) -> None:
    source, path = fake_source(), tmp_path / "p.safetensors"
    _, personalization, _ = tuned_personalization(source)
    save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint)
    assert (load_beside(path).tensors, load_beside(path).facts) == ({}, {})
    beside = SavedState({"centre": torch.arange(3.0), "method.context": torch.ones(2)}, {"since": "today"})
    save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint, beside=beside)
    found = load_personalization(path, source)
    assert found.saved.tensors.keys() == personalization.saved.tensors.keys()
    assert torch.equal(found.centre, personalization.centre)
    assert read_personalization(path)[0] == source.checkpoint.fingerprint
    again = load_beside(path)
    assert again.facts == {"since": "today"} and again.tensors["centre"].tolist() == [0, 1, 2]
    assert load_beside(path, tensors=False).tensors == {} and load_beside(path, tensors=False).facts == again.facts
    for metadata in (None, {"personalization": "{"}):
        save_file(load_file(path), path, metadata=metadata)
        with pytest.raises(ValueError, match=r"p\.safetensors (is damaged|was written by another version)"):
            load_personalization(path, source)


def test_everything_of_where_a_subject_stands_is_written(tmp_path: Path) -> None:
    source, path = fake_source(), tmp_path / "p.safetensors"
    memory = tuple(torch.randn(rows, 16) for rows in (1, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 12))
    prior = torch.tensor([0.75, 0.25])
    state = PromptState(source.au_embeddings + 1, source.context + 1, prior=prior, memory=memory)
    after = SubjectState(state, prior, ((0, 1), (1, 1)), "not adapted: why")
    result = SubjectResult("a/b", (), after, torch.ones(16), 0.0)
    made = Personalization.of(result, changed(ONLINE, window=WindowSpec(5, 2, 3)), earlier=("c1", "c2"))
    save_personalization(made, path, checkpoint=source.checkpoint.fingerprint)
    found = load_personalization(path, source)
    assert (found.subject_id, found.config, found.clips) == ("a/b", made.config, ("c1", "c2"))
    again = found.after(found.session(source))
    assert (again.decisions, again.fallback) == (after.decisions, after.fallback)
    assert all(torch.equal(a, b) for a, b in zip(again.state.memory, memory, strict=True))
    assert torch.equal(again.state.context, state.context) and again.state.offset is None
    assert torch.equal(again.state.au_embeddings, state.au_embeddings)
    assert torch.equal(again.prior, prior) and torch.equal(again.state.prior, prior)
    assert repr(again) == "SubjectState(PromptState((6, 4, 32)), fallback='not adapted: why')"
    assert clips_of_personalization(path) == ("c1", "c2")
    assert clips_of_personalization(tmp_path / "gone.safetensors") is None


def test_a_method_without_a_state_leaves_the_centre_and_the_clips(tmp_path: Path) -> None:
    source, path, clips = fake_source(subject_baseline="median"), tmp_path / "p.safetensors", fake_clips(subjects=1)
    config = changed(ZERO_SHOT, subject_baseline="median", prior=0.2)
    result = run(source, clips, config)
    after = through_a_file(source, result, config, path)
    assert after.state is None and after.prior is not None and after.prior.tolist() == pytest.approx([0.8, 0.2])
    found = load_personalization(path, source)
    assert found.config == config and torch.equal(found.centre, result.centre)
