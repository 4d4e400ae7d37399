"""A prediction imports what it needs: most of its time went into libraries that it never called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from clipautt.clips import Clip
from clipautt.video import reader_process
from clipautt.video.reader_process import work_on_clip
from tests.support.fakes import write_video
from tests.support.modules import loaded_while_decoding

UNUSED = {
    "decord",
    "ftfy",
    "matplotlib",
    "open_clip",
    "ray",
    "scipy",
    "sklearn",
    "sympy",
    "timm",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torchvision",
    "transformers",
}
PREDICT = """
import sys
import ray_jobs.predict.job
from clipautt.action_units import phrases
from clipautt.backbones.loading import BackboneConfig, load_backbone
import torch
backbone = load_backbone(BackboneConfig())
backbone.encode_prompts(backbone.tokenize(phrases(), context="a human face with"))
backbone.encode_frames(torch.zeros(2, 96, 96, 3, dtype=torch.uint8))
print(*sys.modules)
"""


def test_the_embedded_backbone_and_the_predict_job_import_no_library_of_models() -> None:
    done = subprocess.run([sys.executable, "-c", PREDICT], capture_output=True, text=True, check=True)
    assert UNUSED & set(done.stdout.split()) == set()


def test_the_decoding_process_imports_what_decodes(tmp_path: Path) -> None:
    video = write_video(tmp_path / "face.mp4", np.zeros((5, 64, 64, 3), np.uint8))
    reader_process._pool.close()  # an idle child may have imported what an earlier test asked for
    names = set(work_on_clip(loaded_while_decoding, Clip("c", "s", str(video), "target"), {}))
    assert {"av", "cv2", "numpy"} <= names
    assert names & {"torch", "open_clip", "pandas", "pyarrow", "scipy", "hydra", "omegaconf", "ray"} == set()
