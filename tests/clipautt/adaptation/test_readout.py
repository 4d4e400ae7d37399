"""How a clip is predicted from its windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.readout import chosen_window, most_certain_windows, read_clip, read_samples
from clipautt.model.windows import WindowSpec, entropy
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clip, fake_source


def test_readouts_literal() -> None:
    source, clip = fake_source(), fake_clip("c1")
    logits = source.logits(source.views(clip).embeddings)
    best, peak = int(entropy(logits).argmin()), int(F.softmax(logits, dim=-1)[:, 0].argmin())
    assert best != peak
    expected = {
        "best_window": logits[best],
        "mean_windows": logits.mean(0),
        "peak_window": logits[peak],
        "whole_clip": source.logits(source.whole_clip(clip).embeddings)[0],
    }
    for readout, used in expected.items():
        config = adapt_config(readout=readout)  # type: ignore[arg-type]
        prediction = adapt(source, [clip], config)["s0"].predictions[0]
        assert torch.equal(prediction.probabilities, F.softmax(used, dim=-1)), readout
        start = {"whole_clip": 0, "peak_window": peak}.get(readout, best) / 12.5
        assert prediction.window_start_seconds == pytest.approx(start)
    similarities = source.model.similarities(source.views(clip).embeddings, source.au_embeddings)[best]
    best_window = adapt(source, [clip], adapt_config())["s0"].predictions[0]
    torch.testing.assert_close(best_window.similarities, similarities)


def test_chosen_window_literal() -> None:
    three = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.5, -9.0]])  # neutral has 16% of the first and 18% of the second
    assert chosen_window(three, "peak_window") == 0
    for readout in ("best_window", "mean_windows", "whole_clip"):
        assert chosen_window(three, readout) == 1, "the one of lowest entropy"  # type: ignore[arg-type]


def test_most_certain_windows_come_first() -> None:
    logits = torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    assert most_certain_windows(logits, 1) == [1], "the earlier one of two"
    assert most_certain_windows(logits, 3) == [1, 3, 0]
    assert most_certain_windows(logits, 100) == [1, 3, 0, 2]


def test_a_window_that_was_chosen_before_stays_except_for_the_peak() -> None:
    logits = torch.tensor([[0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    for readout, expected in (("best_window", 0), ("whole_clip", 0), ("mean_windows", 0), ("peak_window", 0)):
        used, chosen = read_clip(logits, readout)  # type: ignore[arg-type]
        assert chosen == expected
        assert torch.equal(used, logits.mean(0) if readout == "mean_windows" else logits[expected])
        used, chosen = read_clip(logits, readout, chosen=2)  # type: ignore[arg-type]
        assert chosen == (0 if readout == "peak_window" else 2)
        assert torch.equal(used, logits.mean(0) if readout == "mean_windows" else logits[chosen])


def test_samples_are_read_literally() -> None:
    logits = torch.tensor([[[2.0, 0.0], [1.0, 3.0], [0.0, 1.0], [-1.0, 0.5], [9.0, 9.0]]])
    index = torch.tensor([[[0, 1, 0], [2, 3, 4], [0, 0, 0]]])
    inside = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 0, 0]]]).bool()  # the third sample is of another problem's size
    mean = torch.tensor([[1.5, 1.5], [-0.5, 0.75]])
    assert torch.equal(read_samples(logits, index, inside, "mean_windows")[0, :2], mean)
    assert torch.equal(read_samples(logits, index, inside, "best_window")[0, :2], mean)
    assert torch.equal(read_samples(logits, index, inside, "peak_window")[0, :2], logits[0, [1, 3]])


def test_another_window_than_the_checkpoint_s_can_be_asked_for() -> None:
    source, clip = fake_source(), fake_clip()
    longer = adapt(source, [clip], adapt_config(window=WindowSpec(length=10)))["s0"].predictions[0]
    views = fake_source(window=WindowSpec(length=10)).views(clip)
    best = int(entropy(source.logits(views.embeddings)).argmin())
    assert longer.window_start_seconds == pytest.approx(best / 12.5)
    assert longer.window_end_seconds == pytest.approx((best + 10) / 12.5)
    assert source.window.length == 6 and float(longer.probabilities.sum()) == pytest.approx(1)
