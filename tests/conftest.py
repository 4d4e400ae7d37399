"""What all tests share: nothing asks a hub; GPU tests skip where there is no GPU, and say so."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that reads it is imported; a hub client would wait for a network
os.environ["CLIPAUTT_WEIGHTS"] = os.path.join(
    os.devnull, "none"
)  # a registry of the developer would change what is found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
