"""Why a request gets no answer: a stable code for programs, a sentence for people, and what to do.

In: a code and a sentence. Out: a `Refusal`, whose HTTP status and advice follow from its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KINDS: dict[str, tuple[int, str, str]] = {
    "malformed": (400, "The request is not what this address takes", "see /docs for its fields"),
    "unknown_host": (
        400,
        "Sent to a host name that is not this server's",
        "use the address that `clipautt serve` printed; its setting `hosts` allows further names",
    ),
    "key_missing": (
        401,
        "No API key",
        "send it as `Authorization: Bearer KEY`; `clipautt serve keys add NAME` makes one",
    ),
    "key_unknown": (
        401,
        "The API key is not known, has expired or was revoked",
        "ask whoever runs the server for a new one",
    ),
    "key_scope": (403, "The API key does not allow this", "ask whoever runs the server for a key with a wider scope"),
    "other_site": (403, "Sent by a page of another site", "add that site to the server's setting `origins`"),
    "not_found": (404, "There is nothing at this address", "see /docs for the addresses"),
    "unknown_model": (404, "No such model is served", "GET /v1/models lists them"),
    "unknown_subject": (404, "Nothing is stored for this subject", "GET /v1/subjects lists the subjects"),
    "unknown_job": (404, "No such job; it may have been forgotten", "ask for the subject instead: GET /v1/subjects/ID"),
    "unknown_video": (404, "No such video, or its time is over", "send the video again"),
    "method_not_allowed": (405, "This address does not take this method", "see /docs for its methods"),
    "too_slow": (408, "The request arrived too slowly", "send it again over a faster connection"),
    "other_checkpoint": (
        409,
        "What is stored for the subject belongs to another checkpoint",
        "personalize again: PUT /v1/subjects/ID",
    ),
    "subject_busy": (409, "The subject is being personalized", "wait until that is done, then send it again"),
    "too_large": (413, "More bytes than allowed", "send less: a shorter video, one with fewer pixels, or fewer files"),
    "not_a_video": (415, "Not a video that can be decoded", "send MP4 or WebM"),
    "not_a_picture": (415, "Not a JPEG that can be decoded", "send each frame as a JPEG file"),
    "over_limit": (
        422,
        "Longer, larger or with more frames than allowed",
        "cut the video, or make its frames smaller; GET /v1/models lists the limits",
    ),
    "wrong_field": (422, "A field has a value that is not allowed", "correct that field, and send it again"),
    "unknown_labels": (
        422,
        "The labels do not fit the classes of the model",
        "send a label for each class; GET /v1/models lists them",
    ),
    "no_face": (
        422,
        "No face was found in the video",
        "send a video in which the face is larger, brighter or turned to the camera",
    ),
    "no_label": (422, "The video has no window that can be predicted", "send a longer video that shows the face"),
    "not_finite": (422, "The model's numbers are not finite", "send another video"),
    "cannot_adapt": (
        422,
        "Personalization is not possible here",
        "send adapt=none, or ask whoever runs the server for another setting `adapt`",
    ),
    "rate_limited": (429, "More requests than this key may send", "wait as long as Retry-After says"),
    "session_over": (429, "The live session has lasted as long as allowed", "start another one"),
    "failed": (
        500,
        "The server failed on this request",
        "tell whoever runs the server; faults.log in its folder says why",
    ),
    "busy": (503, "Too many requests at once", "wait as long as Retry-After says, then send it again"),
    "worker_lost": (503, "The worker stopped during this request; it restarts by itself", "send it again"),
    "timeout": (504, "No answer in time", "send a shorter video, or try again later"),
}
"""Code → HTTP status, what it means, and what to do."""


@dataclass(frozen=True)
class Refusal:
    """Why a request gets no answer."""

    code: str
    """Key of `KINDS`."""
    detail: str
    """One sentence for the person who asked; it names no path of this machine."""
    retry_seconds: int | None = None
    """When to ask again, the header Retry-After; None where waiting does not help."""

    @property
    def status(self) -> int:
        """HTTP status code."""
        return KINDS[self.code][0]

    @property
    def body(self) -> dict[str, Any]:
        """What is answered as JSON."""
        return {"code": self.code, "detail": self.detail, "help": KINDS[self.code][2]}


class RefusedError(ValueError):
    """Carries a `Refusal` to the code that answers the request."""

    def __init__(self, code: str, detail: str, *, retry_seconds: int | None = None) -> None:
        super().__init__(code, detail, retry_seconds)
        self.refusal = Refusal(code, detail, retry_seconds)

    def __str__(self) -> str:
        return self.refusal.detail

    @classmethod
    def of(cls, refusal: Refusal) -> RefusedError:
        """The error that carries a refusal."""
        return cls(refusal.code, refusal.detail, retry_seconds=refusal.retry_seconds)

    def __reduce__(self) -> Any:
        return RefusedError.of, (self.refusal,)


def unless_refused(answer: Any) -> Any:
    """What was answered.

    Raises:
        RefusedError: it is a `Refusal`.
    """
    if isinstance(answer, Refusal):
        raise RefusedError.of(answer)
    return answer
