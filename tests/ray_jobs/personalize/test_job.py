"""`clipautt personalize`: real videos in, the file that `clipautt adapt` would write out; what is refused, and how."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clipautt.adaptation.basis import FEWEST_FRAMES
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.features.clip_features import FeatureSpec
from clipautt.model.checkpoint import checkpoint_folder, save_checkpoint
from clipautt.subjects import subject_file
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from ray_jobs import cli
from tests.support.fakes import fake_checkpoint, numbered_frames, write_video
from tests.support.photograph import photograph


def moving(start: int, count: int) -> np.ndarray:
    return np.stack([photograph(start + 4 * i, 180, 0.9) for i in range(count)])


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's run folder: windows of six of all frames, with a face detector."""
    backbone, folder = load_backbone(BackboneConfig()), tmp_path_factory.mktemp("train")
    features = FeatureSpec.of(backbone, Sampling(None), FaceConfig("cascade"))
    for baseline in ("none", "median"):
        made = fake_checkpoint(backbone=backbone, subject_baseline=baseline)  # type: ignore[arg-type]
        save_checkpoint(replace(made, spec=replace(made.spec, features=features)), checkpoint_folder(folder, baseline))
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of one person, of 10 and 14 frames."""
    folder = tmp_path_factory.mktemp("people")
    (folder / "anna").mkdir()
    write_video(folder / "anna" / "a.mp4", moving(150, 10))
    write_video(folder / "anna" / "b.mp4", moving(170, 14))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begin in an empty folder."""
    monkeypatch.chdir(tmp_path)


def personalize(*words: object) -> int:
    return cli.main(["personalize", *map(str, words)])


def read(path: Path) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return json.loads(file.metadata()["personalization"]), {name: file.get_tensor(name) for name in names}


@pytest.mark.usefixtures("local_ray")
def test_the_file_is_the_one_that_adapt_writes(
    tmp_path: Path, train: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit and for other methods: `tests/clipautt/test_personalizing.py`."""
    words = ["dataset=folder", f"root={people}", f"manifest={tmp_path / 'm.parquet'}", "name=p", "cohorts=[]"]
    assert cli.main(["adapt", *words, f"checkpoint={train}", "compare=[]"]) == 0
    assert personalize("anna", people / "anna", f"checkpoint={train}", "prompts=mine") == 0
    theirs, mine = Path("runs/adapt/p/prompts/anna.safetensors"), Path("mine/anna.safetensors")
    (facts, tensors), (other_facts, other_tensors) = read(mine), read(theirs)
    assert "was trained on rendered faces only" in facts.pop("notes")[0] and other_facts.pop("notes") == []
    assert (
        facts == other_facts
        and facts["clips"]
        and facts["basis"]
        == {
            "num_clips": 2,
            "num_frames": 24,
            "seconds": 0.96,
            "face_share": 1.0,
        }
    )
    # Extraction encodes frames in other batches, which rounds otherwise.
    torch.testing.assert_close(tensors, other_tensors, atol=1e-5, rtol=1e-5)
    answers = []
    for folder in (mine.parent, theirs.parent):
        capsys.readouterr()
        predicting = ["predict", str(people / "anna" / "a.mp4"), "subject=anna", f"checkpoint={train}"]
        assert cli.main([*predicting, f"prompts={folder}"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and "personalized for: anna" in answers[0]
    assert (
        f"warning few_personal_frames: The personalization rests on 24 frames (1.0 s); with fewer than {FEWEST_FRAMES} "
        in answers[0]
    )


@pytest.mark.parametrize("subject", ["Zoe\u0308 & b", "../a/b", "-7"])
def test_what_it_says_and_the_command_that_it_names(
    train: Path, people: Path, capsys: pytest.CaptureFixture[str], subject: str
) -> None:
    words = [f"subject='{subject}'"] if subject.startswith("-") else [subject]
    assert personalize(*words, people / "anna" / "b.mp4", f"checkpoint={train}") == 0
    lines = capsys.readouterr().out.splitlines()
    name = subject.replace("e\u0308", "\u00eb")
    assert lines[0] == (
        f"personalized to {name}: 1 clip, 14 frames that show the face (100 % of all), 0.6 s; CLIP-AU, best window, "
        "median baseline"
    )
    assert lines[1].startswith("warning: The personalization rests on 14 frames (0.6 s); with fewer than ")
    path = f"runs/personalize/prompts/{subject_file(name)}"
    assert lines[-2] == f"prompts: {path}" and Path(path).is_file()
    assert lines[-1].startswith("next: clipautt predict VIDEO ")
    video = people / "anna" / "a.mp4"
    assert cli.main(shlex.split(lines[-1].removeprefix("next: clipautt ").replace("VIDEO", str(video)))) == 0
    assert f"personalized for: {name}" in capsys.readouterr().out
    os.mkdir("runs/prompts")  # newer, and without this person
    words = [word for word in shlex.split(lines[-1]) if word.startswith(("subject=", "checkpoint="))]
    assert cli.main(["predict", str(video), *words]) == 0


def test_what_cannot_be_used_is_left_out_and_the_rest_is_kept(
    tmp_path: Path, train: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, clips = people / "anna" / "a.mp4", tmp_path / "clips"
    clips.mkdir()
    shutil.copy(good, clips / "copy.mp4")
    (clips / "damaged.mp4").write_bytes(b"not a video")
    write_video(clips / "nobody.mp4", numbered_frames(12, height=184, width=240))
    write_video(clips / "short.mp4", np.concatenate([moving(160, 3), np.full((9, 360, 480, 3), 90, np.uint8)]))
    assert personalize("anna", good, good, clips, f"checkpoint={train}") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("a.mp4: 10 of 10 frames show the face") and lines[2].startswith("clips/damaged.mp4: left ")
    start = next(i for i, line in enumerate(lines) if line.startswith("personalized to anna: 1 clip, 10 frames"))
    assert [line.split()[0] for line in lines[start + 3 : start + 6]] == [
        f"anna/{n}" for n in ("damaged", "nobody", "short")
    ]
    assert "no face was found in 12 frames" in lines[start + 4]
    assert lines[start + 5].endswith("shows it in 80 % of them (faces.min_share)")
    assert "warning: a was given 2 times and counts once." in lines
    assert f"warning: {clips / 'copy.mp4'} shows the same frames as 'anna/a', and they count once." in lines
    facts, _ = read(Path("runs/personalize/prompts/anna.safetensors"))
    assert facts["clips"] == ["anna/a", "anna/short"] and set(facts["omitted"]) == {
        "anna/damaged",
        "anna/nobody",
        "anna/short",
    }
    assert personalize("bob", clips / "nobody.mp4", clips / "damaged.mp4", f"checkpoint={train}") == 2
    said = capsys.readouterr().err
    assert "no video can be used to personalize to 'bob':\n  bob/nobody: /" in said and "\n  bob/damaged: " in said
    assert not Path("runs/personalize/prompts/bob.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["anna", "gone.mp4", "{a}", "lost/*.mp4"],
            "gone.mp4: no such file or folder; lost/*.mp4: no file matches this pattern",
        ),
        (["anna", "videos=[]"], "no videos of subject 'anna': give videos, or folders of frames"),
        (["{a}", "{b}"], "is a file; the name of the person comes first: `clipautt personalize NAME …`"),
        (["", "{a}"], "subject=''; allowed: a name that is not empty, in UTF-8"),
        (["x" * 300, "{a}"], "subject='xxxxxxxxxxxxxxxxxxxx'… is too long for the name of a file"),
        (["anna", "{a}", "face=above"], "face='above'; allowed: largest, left, right, center, or a number from 1"),
        (["anna", "{a}", "adapt=zero_shot"], "'zero-shot' adapts nothing to a person; take adapt=default, with a"),
        (["anna", "{a}", "adapt=paper"], "begins every video at the source model (adapt.protocol=per_video), so that"),
        (["anna", "{a}", "adapt.subject_baseline=mean"], "no checkpoint for subject baseline 'mean' in"),
        (["anna", "{a}", "prompts={a}"], "a.mp4 is a file; the person's file needs a folder (prompts=FOLDER)"),
        (["anna"], "videos"),
    ],
)
def test_what_is_refused_before_any_video_is_read(
    train: Path, people: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    given = [word.format(a=people / "anna" / "a.mp4", b=people / "anna" / "b.mp4") for word in words]
    assert personalize(*given, f"checkpoint={train}") == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == "" and not Path("runs").exists()


def test_no_footage_of_an_earlier_file_is_lost_unless_that_is_asked_for(
    train: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = people / "anna" / "a.mp4", people / "anna" / "b.mp4"
    path = Path("runs/personalize/prompts/anna.safetensors")
    assert personalize("anna", a, f"checkpoint={train}") == 0
    assert personalize("anna", a, b, f"checkpoint={train}") == 0
    assert "replaced an earlier file of 1 clip: anna/a\n" in capsys.readouterr().out
    assert personalize("anna", b, f"checkpoint={train}") == 2
    assert f"{path} rests on other clips as well: anna/a; give the videos of these clips too" in capsys.readouterr().err
    assert read(path)[0]["clips"] == ["anna/a", "anna/b"]
    other = ["adapt=infomax_kl", "adapt.method.steps=1", f"checkpoint={train}"]
    assert personalize("anna", a, b, *other) == 2
    assert f"{path} belongs to another checkpoint; " in capsys.readouterr().err
    assert personalize("anna", b, f"checkpoint={train}", "replace=true") == 0
    assert read(path)[0]["clips"] == ["anna/b"]
    path.write_bytes(b"damaged")
    assert personalize("anna", b, f"checkpoint={train}") == 2
    assert "anna.safetensors is damaged" in capsys.readouterr().err
    assert personalize("anna", b, f"checkpoint={train}", "replace=true") == 0
