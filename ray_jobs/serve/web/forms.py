"""The fields of the forms: how the OpenAPI describes them, and what is read from them.

In: the fields of a form, as `uploads.read_form` gives them. Out: an `Ask`, or a `RefusedError` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, get_args

from starlette.requests import Request

from clipautt.subjects import checked_subject
from ray_jobs.serve.refusals import RefusedError, unless_refused
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.keys import Who, scope_refusal
from ray_jobs.serve.web.schemas import Adapt
from ray_jobs.serve.web.spool import Spool
from ray_jobs.serve.web.uploads import Form, most_body_bytes, read_form

_LONGEST_ID = 200
_VIDEO = {
    "type": "string",
    "format": "binary",
    "description": "The video: MP4, WebM, MOV, MKV, AVI …; without a face detector, one face must fill the frame",
}
_SUBJECT = {"type": "string", "maxLength": _LONGEST_ID, "description": "Use what is stored of this subject"}
_MODEL = {"type": "string", "description": "Name of a model, see GET /v1/models; without it, the first one"}
_FITTING_MODEL = {
    "type": "string",
    "description": "Name of a model, see GET /v1/models; without it, the first one whose classes the labels name",
}
_ADAPT = {
    "type": "string",
    "enum": list(get_args(Adapt)),
    "default": "none",
    "description": "none: the model, or what is stored of the subject, as it is; per_video: tuned to this video; "
    "online: the subject's personalization goes on with this video, and is stored, for keys of scope personalize",
}
_KEEP = {
    "type": "boolean",
    "default": False,
    "description": "Keep the videos, so that later ones add to them; else only what was computed from them stays",
}
_LABELS = {
    "type": "string",
    "description": "JSON list of the class names to answer in, in any order, in capitals or not. Each class of the "
    "model needs its name; a name that only another task knows, such as Stress for a model of pain, scores 0",
    "examples": ['["Pain", "No Pain"]'],
}
_SEVERAL = {"type": "array", "minItems": 1}
FORMS: dict[str, dict[str, Any]] = {
    "predict": {"video": _VIDEO, "model": _SEVERAL | {"items": _MODEL}, "subject_id": _SUBJECT, "adapt": _ADAPT},
    "batch": {
        "video": _SEVERAL | {"items": _VIDEO},
        "model": _SEVERAL | {"items": _MODEL},
        "subject_id": _SUBJECT,
        "adapt": _ADAPT,
    },
    "personalize": {"video": _SEVERAL | {"items": _VIDEO}, "model": _SEVERAL | {"items": _MODEL}, "keep": _KEEP},
    "interface": {"video": _VIDEO, "model": _FITTING_MODEL, "labels": _LABELS},
}
"""Form → its fields, as JSON schemas."""
_REQUIRED = {"interface": ["video", "labels"]}
_NO_UTF8 = "\ufffd"
"""Stands in an address for bytes that are no UTF-8."""


@dataclass(frozen=True)
class Forms:
    """Reads the forms of requests."""

    spool: Spool
    """Where uploads lie until they are answered."""
    max_bytes: int
    """Most bytes of a video."""
    max_videos: int
    """Most videos of a request that takes several."""

    def read(self, request: Request, form: str) -> AbstractAsyncContextManager[Form]:
        """The form of a request, as `read_form`; `form` is a key of `FORMS`."""
        fields = FORMS[form]
        several = fields["video"].get("type") == "array"
        return read_form(
            request,
            self.spool,
            max_bytes=self.max_bytes,
            max_files=self.max_videos if several else 1,
            fields=[name for name in fields if name != "video"],
        )

    def max_body_bytes(self) -> int:
        """Most bytes of any body."""
        return most_body_bytes(self.max_videos, self.max_bytes)


def described(form: str) -> dict[str, Any]:
    """The request body of a route with this form, for FastAPI's `openapi_extra`."""
    schema = {"type": "object", "properties": FORMS[form], "required": _REQUIRED.get(form, ["video"])}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def ask_of(fields: Mapping[str, Sequence[str]], who: Who) -> Ask:
    """How the videos of a form are to be predicted.

    Raises:
        RefusedError: for a value that is not allowed; it names the field. `key_scope` for `online`, which stores
            something of the subject, where the key may not ask for it and erase it.
    """
    adapt = one(fields, "adapt") or "none"
    if adapt not in get_args(Adapt):
        raise RefusedError("wrong_field", f"adapt={adapt[:40]!r}; allowed: {', '.join(get_args(Adapt))}")
    subject = one(fields, "subject_id") or None
    if subject is not None:
        check_subject(subject)
    if adapt == "online" and subject is None:
        raise RefusedError("wrong_field", "adapt=online goes on with a person's prompts, so it needs subject_id")
    if adapt == "online":
        unless_refused(scope_refusal(who, "personalize"))
    if adapt == "per_video" and subject is not None:
        raise RefusedError(
            "wrong_field",
            "adapt=per_video tunes to this video alone, so it takes no subject_id; take adapt=online for a person",
        )
    return Ask(who, models_of(fields), subject, adapt)  # type: ignore[arg-type]


def models_of(fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names of the models that a form asks for; an empty field names none."""
    return tuple(name for name in fields.get("model", ()) if name)


def keep_of(fields: Mapping[str, Sequence[str]]) -> bool:
    """Whether uploaded videos are kept.

    Raises:
        RefusedError: for anything but true or false.
    """
    keep = (one(fields, "keep") or "false").lower()
    if keep not in ("true", "false"):
        raise RefusedError("wrong_field", f"keep={keep[:40]!r}; allowed: true, false")
    return keep == "true"


def one(fields: Mapping[str, Sequence[str]], name: str) -> str:
    """The value of a field that is given once; empty if it is not given.

    Raises:
        RefusedError: if it is given several times.
    """
    values = fields.get(name, ())
    if len(values) > 1:
        raise RefusedError("malformed", f"the field {name!r} is given {len(values)} times; give it once")
    return values[0] if values else ""


def check_subject(subject_id: str) -> None:
    """Refuse what cannot be the name of a person.

    Raises:
        RefusedError: for one that `checked_subject` refuses, and so whatever would store it; for an overlong or an
            unprintable one; for `.` and `..`, which a browser takes out of addresses; and for bytes that were no UTF-8,
            of which different ones would be the same person.
    """
    if subject_id in (".", "..") or _NO_UTF8 in subject_id:
        raise RefusedError("wrong_field", "subject_id: allowed is any name in UTF-8 but `.` and `..`")
    if len(subject_id) > _LONGEST_ID or not subject_id.isprintable():
        raise RefusedError(
            "wrong_field", f"subject_id has {len(subject_id)} characters; allowed: 1 to {_LONGEST_ID}, all printable"
        )
    try:
        checked_subject(subject_id, setting="subject_id")
    except ValueError as error:
        raise RefusedError("wrong_field", str(error)) from error
