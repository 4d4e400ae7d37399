"""An answer as HTML, which notebooks show by themselves: a table and the figure, without scripts.

In: an answer, see `shown.Answer`. Out: HTML of one block; every text of the video or the model is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

from markupsafe import Markup
from PIL import Image

from clipautt.action_units import title_of
from clipautt.prediction.figure import rendered
from clipautt.prediction.shown import Answer, by_probability, describe, faces_seen, percent, why_no_units

_COLOURS = 256
"""Colours of the embedded PNG, which keep it small."""
_BAR = 120
"""Width in pixels of the bar of probability 1."""
_CELL = "white-space:normal;text-align:left;vertical-align:top;padding:2px 12px 2px 0;background:none"
_ROW = Markup(
    '<tr style="background:none"><th style="{style};min-width:125px">{name}</th><td style="{style}">{value}</td></tr>'
)
_BLOCK = Markup(
    '<div style="max-width:960px;font-family:sans-serif;font-size:13px;line-height:1.5;color:#222222;'
    'background:#ffffff;padding:8px"><table style="border-collapse:collapse;border:none;color:#222222">{rows}</table>'
    '<img alt="{alt}" style="max-width:100%;height:auto;margin-top:6px" src="data:image/png;base64,{png}"></div>'
)
_SHARE = Markup(
    '<div><span style="display:inline-block;width:{full}px;background:#e6e6e6;margin-right:8px"><span '
    'style="display:inline-block;width:{width}px;height:10px;background:{colour}"></span></span>{name} {share}</div>'
)
_WARNING = Markup('<div style="background:#fff3c4;padding:1px 6px;margin-bottom:2px"><b>{code}</b>: {sentence}</div>')


def html_of(answer: Answer) -> str:
    """A table with label, probabilities, window, action units and validity, and the figure as an embedded PNG."""
    rows = Markup("").join(_ROW.format(style=_CELL, name=name, value=value) for name, value in _rows(answer))
    alt = f"Face, class probabilities and action units over time; {'; '.join(describe(answer))}"
    return str(_BLOCK.format(rows=rows, alt=alt, png=base64.b64encode(png_of(answer)).decode()))


def png_of(answer: Answer) -> bytes:
    """The figure as a small PNG: the charts without the text above, which the table says."""
    made = rendered(answer)
    picture = Image.fromarray(made.pixels[made.header :]).quantize(
        _COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _rows(answer: Answer) -> Iterator[tuple[str, str | Markup]]:
    yield "video", answer.video
    yield "prediction", Markup("<b>{}</b>").format(answer.label) if answer.label is not None else "no label"
    if answer.label is None:
        yield "reason", answer.reason
    else:
        yield "probabilities", Markup("").join(_share(answer, name) for name in by_probability(answer))
        window = f"{answer.window_start_seconds:.2f} to {answer.window_end_seconds:.2f} s"
        yield "window", f"{window} of {answer.duration_seconds:.2f} s, the most expressive one"
        yield "action units", _units(answer)
    yield "status", "ok" if answer.label is not None else "no_prediction"
    yield "face", faces_seen(answer)
    yield "other faces", str(answer.other_faces)
    if answer.personalized_for:
        yield "personalized for", answer.personalized_for
    warnings = (_WARNING.format(code=code, sentence=sentence) for code, sentence in answer.cautions.items())
    yield "warnings", Markup("").join(warnings) or "none"


def _share(answer: Answer, name: str) -> Markup:
    share, colour = answer.probabilities[name], "#222222" if name == answer.label else "#7A828E"
    return _SHARE.format(full=_BAR, width=round(_BAR * share), colour=colour, name=name, share=percent(share))


def _units(answer: Answer) -> Markup:
    if why_no_units(answer):
        return Markup("{}").format(why_no_units(answer))
    named = [f"{title_of(str(code))} {rise:+.3f}" for code, rise in answer.top_action_units["rise"].items()]
    left_out = len(answer.not_learned)
    note = f"; {left_out} that the backbone never learned are left out" if left_out else ""
    text = f"{', '.join(named)} (rise of the cosine of face and phrase above its median{note})"
    return Markup("{}").format(text)
