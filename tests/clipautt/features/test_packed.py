"""Packed clips come out as they went in, as views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipautt.features.packed import PackedClips
from tests.support.fakes import fake_clip


def test_clips_come_out_as_they_went_in() -> None:
    plain = fake_clip("a", num_frames=7)
    seen = replace(fake_clip("b", "s1", num_frames=5), face_found=np.array([1, 0, 1, 1, 0], bool), min_share=0.5)
    packed = PackedClips.of([plain, seen])
    packed.features.setflags(write=False)  # as an object store maps it
    found = packed.clips()
    assert list(found) == ["a", "b"] and repr(packed) == "PackedClips(2 clips, features=(12, 16))"
    for before in (plain, seen):
        after = found[before.clip_id]
        assert (after.subject_id, after.min_share) == (before.subject_id, before.min_share)
        assert torch.equal(after.features, before.features) and (after.times == before.times).all()
        assert after.features.data_ptr() >= packed.features.ctypes.data
    assert found["a"].face_found is None and found["b"].face_found is not None
    np.testing.assert_array_equal(found["b"].face_found, seen.face_found)
    with pytest.raises(ValueError, match=r"^no clips to pack$"):
        PackedClips.of([])
