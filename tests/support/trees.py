"""Small copies of the data sets' layouts: real label files, and videos or frames that are empty unless asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2

from tests.support.fakes import numbered_frames, write_video

SAMPLES_HEADER = "subject_id\tsubject_name\tclass_id\tclass_name\tsample_id\tsample_name"
SEGMENTS_HEADER = "video,segment_id,label,num_frames,start_frame,end_frame"
BIOVID_SUBJECTS = ("071309_w_21", "081014_w_27", "083013_w_47", "100214_m_50")
"""The first two are targets of the paper."""
STRESSID_SUBJECTS = ("2ea4", "3def", "kycf", "uymz")
"""The last two are targets of the paper."""
BAH_SUBJECTS = ("82553", "82557", "82711", "82714")
"""The last two are targets of the paper."""


def write(path: Path, *lines: str) -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def video(path: Path, *, frames: int = 0) -> Path:
    """An H.264 video of `frames` numbered frames at 25 per second; an empty file where there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if frames:
        return write_video(path, numbered_frames(frames))
    path.touch()
    return path


def pictures(folder: Path, names: Iterable[str], *, decodable: bool = False) -> Path:
    """A folder of pictures, numbered in the order of `names`; empty files unless they are to be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(names)
    content = numbered_frames(len(names)) if decodable else None
    for number, name in enumerate(names):
        if content is None:
            (folder / name).touch()
        else:
            assert cv2.imwrite(str(folder / name), content[number])
    return folder


def biovid_samples(subjects: Sequence[str] = BIOVID_SUBJECTS) -> list[str]:
    """Rows of `samples.csv`: one sample of BL1, PA3 and PA4 for each subject."""
    levels = {"BL1": 0, "PA3": 3, "PA4": 4}
    return [
        f"{number}\t{subject}\t{code}\t{level}\t{code + 80}\t{subject}-{level}-0{code + 80}"
        for number, subject in enumerate(subjects, 1)
        for level, code in levels.items()
    ]


def biovid_videos(root: Path, subjects: Sequence[str] = BIOVID_SUBJECTS, *, frames: int = 0) -> Path:
    """The official layout, with a video for every sample."""
    rows = biovid_samples(subjects)
    write(root / "starting_point" / "samples.csv", SAMPLES_HEADER, *rows)
    for row in rows:
        subject, sample = row.split("\t")[1], row.split("\t")[5]
        video(root / "video" / subject / f"{sample}.mp4", frames=frames)
    return root


def biovid_frames(root: Path, subjects: Sequence[str] = BIOVID_SUBJECTS, *, decodable: bool = False) -> Path:
    """Face crops of three moments of a sample of BL1 and one of PA4 for each subject, and their list."""
    rows = []
    names = ["image2000.jpg", "image2040.jpg", "image10000.jpg"]
    for subject in subjects:
        for sample, label in ((f"{subject}-BL1-080", 0), (f"{subject}-PA4-084", 1)):
            pictures(root / "crops" / subject / sample, names, decodable=decodable)
            rows += [f"{subject}/{sample}/{name} {label}" for name in names]
    write(root / "labels.txt", *rows)
    return root


def stressid_rows(subjects: Sequence[str] = STRESSID_SUBJECTS) -> list[str]:
    """Rows of `labels.csv`: no stress in Relax, stress in Math."""
    return [f"{subject}_{task}" for subject in subjects for task in ("Relax,0.0,0.0", "Math,1.0,2.0")]


def stressid_videos(root: Path, subjects: Sequence[str] = STRESSID_SUBJECTS, *, frames: int = 0) -> Path:
    """The official layout."""
    rows = stressid_rows(subjects)
    write(root / "labels.csv", "subject/task,binary-stress,affect3-class", *rows)
    for row in rows:
        name = row.partition(",")[0]
        video(root / "Videos" / name.partition("_")[0] / f"{name}.mp4", frames=frames)
    return root


def stressid_frames(root: Path, subjects: Sequence[str] = STRESSID_SUBJECTS, *, decodable: bool = False) -> Path:
    """Folders of frames and their list."""
    rows = []
    for row in stressid_rows(subjects):
        name, label, _ = row.split(",")
        place = f"sub_images/{name.partition('_')[0]}/{name}"
        pictures(root / place, ["image_2.jpg", "image_10.jpg"], decodable=decodable)
        rows += [f"{place}/image_2.jpg {label[0]}", f"{place}/image_10.jpg {label[0]}"]
    write(root / "all_sub_labels.txt", *rows)
    return root


def bah_path(subject: str, question: int) -> str:
    """Path of a video as the label files give it."""
    return f"Videos/{subject}/Visite_1/{subject}_Question_{question}_2024-11-19_15-12-23_Video.mp4"


def _bah_splits(root: Path, subjects: Sequence[str]) -> list[str]:
    """Split files with question 1 without, question 2 with ambivalence; returns the paths of the videos."""
    labels = {bah_path(subject, question): question - 1 for subject in subjects for question in (1, 2)}
    rows = [f"{path},{label},well, I mean, yes" for path, label in labels.items()]
    for number, name in enumerate(("train.txt", "val.txt", "test.txt")):
        write(root / "split" / name, *rows[number::3])
    return list(labels)


def bah_videos(root: Path, subjects: Sequence[str] = BAH_SUBJECTS, *, frames: int = 0) -> Path:
    """Videos with split files."""
    for path in _bah_splits(root, subjects):
        video(root / path, frames=frames)
    return root


def bah_segments(root: Path, rows: Sequence[str] | None = None, *, frames: int = 0) -> Path:
    """The videos of `bah_videos` with a table of segments: by default frames 5 to 14 of every video."""
    bah_videos(root, frames=frames)
    if rows is None:
        videos = [(bah_path(subject, question), question - 1) for subject in BAH_SUBJECTS for question in (1, 2)]
        rows = [f"{path},1,{label},10,5,14" for path, label in videos]
    write(root / "segments.csv", SEGMENTS_HEADER, *rows)
    return root


def bah_crops(root: Path, subjects: Sequence[str] = BAH_SUBJECTS, *, folder: str = "cropped_aligned") -> Path:
    """Split files as in `bah_videos`, and crops in folders named like the videos instead of these."""
    for path in _bah_splits(root, subjects):
        pictures(root / folder / path, [f"frame-{number}.jpg" for number in range(20)])
    return root


def own_videos(root: Path, subjects: Sequence[str] = ("ann", "bob", "cem", "dan"), *, frames: int = 0) -> Path:
    """A folder data set with one neutral and one painful video for each subject; `dan` is the target."""
    rows = []
    for subject in subjects:
        split = "target" if subject == "dan" else "source"
        for clip, label in (("rest", "neutral"), ("lift", "pain")):
            video(root / subject / f"{clip}.mp4", frames=frames)
            rows.append(f"{subject},{clip},{label},{split}")
    write(root / "labels.csv", "subject,clip,label,split", *rows)
    return root
