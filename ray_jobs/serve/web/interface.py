"""`POST /api/predict`, the contract of the public CLIP-AUTT web interface: answers in the page's own class names, and a
video with the answer drawn around it.

In: a form with `video`, `labels` and perhaps `model`. Out: an `InterfaceAnswer` as plain values, see `answer`. The
annotated videos are kept by `annotated_videos`.

The page exists in two versions. The older one sends no `model` and the labels Pain, Stress and Neutral, whichever model
answers: https://github.com/osamazeeshan/CLIP-AUTT_Interface. So without `model` the labels choose it, see
`fitting_model`, and a label that names what only another task tells apart scores 0, see `match_labels`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from clipautt.action_units import NONE_ROSE, TASKS
from ray_jobs.serve.refusals import Refusal, RefusedError, unless_refused
from ray_jobs.serve.web.annotated_videos import AnnotatedVideos
from ray_jobs.serve.web.asked import Ask, Pipeline
from ray_jobs.serve.web.forms import one
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.uploads import Form

LONGEST_LABELS = 4096
"""Characters of the field `labels`."""
_SHOWN = 60
"""Characters of a label in a message."""
_IGNORED = re.compile(r"[\s_\-\u2010-\u2015]+")
_NEGATIVE = ("neutral", "baseline")
_NOT = ("no", "non", "not", "without")
"""Before the name of the other class, where there are two: another name of the neutral one."""
_UNSEEN = ("unseen_footage", "rendered_only")
_TOO_LARGE = Refusal("over_limit", "it is larger than the server keeps")


async def answer(form: Form, pipeline: Pipeline, videos: AnnotatedVideos, base_url: str, who: Who) -> dict[str, Any]:
    """Predict the form's video, in the page's words.

    Args:
        form: has one video, the field `labels`, and perhaps `model`.
        pipeline: predicts and draws.
        videos: keeps the annotated video for a while.
        base_url: of this server as the page reaches it; the page may be of another site, so addresses are absolute.
        who: asks.

    Returns:
        Fields of `InterfaceAnswer`. `annotatedVideoUrl` is empty where the video could not be drawn, and the message
        says why.

    Raises:
        RefusedError: for a missing or wrong field, and whatever `pipeline.predict` refuses.
    """
    labels = read_labels(one(form.fields, "labels"))
    served = unless_refused(await pipeline.models())
    classes = {each["name"]: each["classes"] for each in served}
    name = one(form.fields, "model")
    model = choose_model(name, list(classes)) if name.strip() else fitting_model(labels, classes)
    named, foreign = match_labels(labels, classes[model], foreign_to(model, classes))
    found = unless_refused(await pipeline.predict(form.videos[0], Ask(who, (model,))))
    target = videos.begin()
    try:
        failure = await pipeline.annotate(form.videos[0], found, target)
        token = "" if failure else videos.keep(target)
        failure = failure or (None if token else _TOO_LARGE)
    finally:
        videos.discard(target)
    probabilities = {label: found["probabilities"][of] for of, label in named.items()}
    return {
        "label": named[found["label"]],
        "scores": {label: probabilities.get(label, 0.0) for label in labels},
        "message": message_of(found, failure, foreign),
        "annotatedVideoUrl": f"{base_url.rstrip('/')}/api/videos/{token}.mp4" if token else "",
    }


def read_labels(text: str) -> list[str]:
    """The labels of a form.

    Args:
        text: a JSON list of strings.

    Raises:
        RefusedError: `wrong_field`, if it is anything else.
    """
    needed = 'a JSON list of class names is needed, such as ["Pain", "Neutral"]'
    if len(text) > LONGEST_LABELS:
        raise RefusedError("wrong_field", f"labels has {len(text)} characters; allowed: {LONGEST_LABELS}")
    if not text.strip():
        raise RefusedError("wrong_field", f"labels is missing or empty; {needed}")
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("wrong_field", f"labels is no JSON; {needed}") from error
    if not isinstance(labels, list) or not labels or not all(isinstance(one, str) for one in labels):
        raise RefusedError("wrong_field", f"labels is no list of names; {needed}")
    return labels


def choose_model(name: str, served: Sequence[str]) -> str:
    """The served model of this name, in any spelling of capitals.

    Raises:
        RefusedError: `unknown_model` for the name of no served model.
    """
    listed = ", ".join(served)
    found = [one for one in served if _key(one) == _key(name)]
    exact = [one for one in found if one == name.strip()]
    if len(exact or found) != 1:
        raise RefusedError("unknown_model", f"no model {_short(name)}; served are: {listed}")
    return (exact or found)[0]


def fitting_model(labels: Sequence[str], served: Mapping[str, Sequence[str]]) -> str:
    """The served model that these labels ask for: of those whose every class has a label, the one with the fewest
    foreign labels, and of several such the first.

    Args:
        labels: as they were sent.
        served: model → its classes.

    Raises:
        RefusedError: `unknown_labels`, if the labels fit no model.
    """
    fitting: dict[str, int] = {}
    for name, classes in served.items():
        try:
            fitting[name] = len(match_labels(labels, classes, foreign_to(name, served))[1])
        except RefusedError:
            if len(served) == 1:
                raise
    if not fitting:
        listed = "; ".join(f"{name}: {', '.join(classes)}" for name, classes in served.items())
        raise RefusedError("unknown_labels", f"the labels fit no served model; models and their classes: {listed}")
    return min(fitting, key=lambda name: fitting[name])


def foreign_to(model: str, served: Mapping[str, Sequence[str]]) -> list[str]:
    """The classes that other served models and the built-in tasks tell from a neutral face."""
    others = [classes for name, classes in served.items() if name != model]
    return [name for classes in (*others, *(task.classes for task in TASKS.values())) for name in classes[1:]]


def match_labels(
    labels: Sequence[str], classes: Sequence[str], foreign: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Which label stands for which class, and which stand for none of this model.

    Capitals, blanks, hyphens, underscores and the composition of accents do not count. The first class, the neutral
    one, is also `neutral` or `baseline`, and of two classes `no`, `non`, `not` or `without` before the other's name.

    Every class needs its label: what is said of fewer would have to leave out the most probable class, or to share its
    probability among classes that it does not belong to. A label may also name what this model does not look for, but
    another task does, such as Stress for a model of pain.

    Args:
        labels: as they were sent.
        classes: of the model, the neutral one first.
        foreign: classes of other tasks, see `foreign_to`.

    Returns:
        Class → label, in the order of the labels; and the labels of other tasks.

    Raises:
        RefusedError: `unknown_labels`, if a label names no class at all, two name the same one, or a class of the model
            has none.
    """
    listed = ", ".join(classes)
    others = {_key(name): name for name in foreign}
    named: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    for label in labels:
        found = _class_of(label, classes)
        known = elsewhere if found is None else named
        found = others.get(_key(label)) if found is None else found
        if found is None:
            raise RefusedError("unknown_labels", f"{_short(label)} names no class of the model; its classes: {listed}")
        if found in known:
            both = f"{_short(known[found])} and {_short(label)}"
            raise RefusedError(
                "unknown_labels", f"{both} both name the class {found!r}; classes of the model: {listed}"
            )
        known[found] = label
    lacking = [one for one in classes if one not in named]
    if lacking:
        raise RefusedError(
            "unknown_labels", f"no label names {', '.join(map(repr, lacking))}; name every class of the model: {listed}"
        )
    return named, list(elsewhere.values())


def _class_of(label: str, classes: Sequence[str]) -> str | None:
    if label in classes:
        return label
    found = [one for one in classes if _key(one) == _key(label)]
    if found:
        return found[0] if len(found) == 1 else None
    others = [prefix + _key(classes[-1]) for prefix in _NOT] if len(classes) == 2 else []
    return classes[0] if _key(label) in (*_NEGATIVE, *others) else None


def _key(name: str) -> str:
    """What counts of a name."""
    return _IGNORED.sub("", unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()))


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def message_of(found: Mapping[str, Any], failure: Refusal | None = None, foreign: Sequence[str] = ()) -> str:
    """What is said of an answer: that the model has never seen such faces, which labels it does not look for, what
    rose, and what else speaks against it.

    Args:
        found: an `Answer` as plain values.
        failure: why it could not be drawn.
        foreign: labels that name no class of the model.
    """
    warnings = list(zip(found["warning_codes"], found["warnings"], strict=True))
    said = [sentence for code, sentence in warnings if code in _UNSEEN]
    if foreign:
        names = " or ".join(label.strip() for label in foreign)
        said.append(f"The model {found['model']} does not look for {names}; a score of 0 there says nothing.")
    window = f"{found['window_start_seconds']:.1f} to {found['window_end_seconds']:.1f} s"
    units = [f"{unit['name']} ({unit['code']})" for unit in found["top_action_units"]]
    rose = f"what rose most: {', '.join(units)}" if units else NONE_ROSE
    said.append(f"The face is most expressive from {window}; {rose}.")
    said += [sentence for code, sentence in warnings if code not in _UNSEEN]
    if failure is not None:
        said.append(f"The annotated video could not be made: {failure.detail.rstrip('.')}.")
    return " ".join(said)
