"""What the routes answer, as the OpenAPI shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Adapt = Literal["none", "per_video", "online"]
JobStatus = Literal["waiting", "running", "done", "failed"]


class Problem(BaseModel):
    """Why a request failed."""

    code: str = Field(description="Stable name of the reason, for programs", examples=["too_large"])
    detail: str = Field(description="What is wrong, in a sentence")
    help: str = Field(description="What to do")


class TopActionUnit(BaseModel):
    """An action unit that rose in the chosen window."""

    code: str = Field(description="FACS code", examples=["AU4"])
    name: str = Field(description="FACS name", examples=["Brow lowerer"])
    phrase: str = Field(description="What is seen, in words", examples=["eyebrows lowered and pulled together"])
    rise: float = Field(
        description="Mean similarity in the window minus the median over the clip, above 0; similarities are cosines"
    )


class ActionUnitCurves(BaseModel):
    """Similarity of the face to each action unit over time, as the frozen backbone sees it."""

    time_seconds: list[float] = Field(description="Middle of each window, seconds from the first frame")
    codes: dict[str, list[float]] = Field(description="FACS code → similarity in each window, a cosine")
    names: dict[str, str] = Field(description="FACS code → code and name", examples=[{"AU4": "AU4 Brow lowerer"}])
    not_learned: list[str] = Field(
        description="Codes that the backbone never learned, whose curves mean nothing; empty if that is not known"
    )


class FaceBoxes(BaseModel):
    """Where the face is in each sampled frame; lists of the same length, null where no face is shown."""

    time_seconds: list[float] = Field(description="Seconds from the first frame")
    x: list[float | None] = Field(
        description="Left edge of the square box before tilting, pixels of the video as shown"
    )
    y: list[float | None] = Field(description="Upper edge, pixels")
    side: list[float | None] = Field(description="Side of the box, pixels")
    tilt: list[float | None] = Field(description="Degrees by which the face is turned clockwise as seen")
    score: list[float | None] = Field(description="Score of the detector; null where the box is inferred from others")
    found: list[bool] = Field(description="Whether the face was found in the frame")


class Before(BaseModel):
    """The prediction without personalization."""

    label: str | None = Field(description="The most probable class")
    probabilities: dict[str, float] = Field(description="Class → probability")
    window_start_seconds: float
    window_end_seconds: float
    top_action_units: list[TopActionUnit]


class Timings(BaseModel):
    """Where the time of a request went, seconds."""

    receive: float = Field(0.0, description="From the request's headers to the last byte of its body")
    wait: float = Field(0.0, description="Waiting for a decoder and for the encoder, and the ways between them")
    decode: float = Field(0.0, description="Decoding, finding and cropping the face")
    encode: float = Field(0.0, description="The image tower; of the whole batch that the video was in")
    predict: float = Field(0.0, description="Windows, classes and action units")
    adapt: float = Field(0.0, description="Tuning for this video or subject")
    batch_videos: int = Field(1, description="Videos that were encoded together")


class Answer(BaseModel):
    """The prediction of one model for one video."""

    model: str = Field(description="Name of the model")
    label: str = Field(description="The most probable class")
    probabilities: dict[str, float] = Field(description="Class → probability; they sum to 1")
    window_start_seconds: float = Field(description="Start of the most expressive window, on which the label rests")
    window_end_seconds: float = Field(description="End of that window")
    top_action_units: list[TopActionUnit] = Field(
        description="What rose most in that window, highest first, of what the backbone has learned; may be empty"
    )
    action_units: ActionUnitCurves
    class_probabilities: dict[str, list[float]] = Field({}, description="Class → probability in each window")
    entropy: list[float] = Field(
        description="Entropy of each window's class probabilities, nats; low where the model is sure"
    )
    face_boxes: FaceBoxes | None = Field(description="Where the face is; null without a face detector")
    personalized_for: str | None = Field(description="Subject whose personalization was used; null for nobody's")
    adapt: Adapt = Field(description="How the model was adapted for this answer, as asked")
    before: Before | None = Field(description="The same without personalization; null where nothing was personalized")
    warnings: list[str] = Field(
        description="Sentences on why the answer may be worth little, such as footage that the model has never seen"
    )
    warning_codes: list[str] = Field(description="The code of each warning", examples=[["unseen_footage"]])
    decoder: str = Field(description="Which decoder read the video", examples=["pyav"])
    checkpoint: str = Field(description="Fingerprint of the checkpoint")
    duration_seconds: float = Field(description="Length of the video, seconds")
    seconds: float = Field(description="Time from the last byte of the video to the answer, seconds")
    timings: Timings
    others: list[Answer] = Field([], description="The answers of further models, where several were asked")


class BatchItem(BaseModel):
    """What became of one video of a batch."""

    video: int = Field(description="Place of the video in the request, from 0")
    answer: Answer | None = None
    error: Problem | None = None


class BatchAnswer(BaseModel):
    """One item per video, in the order of the request."""

    answers: list[BatchItem]


class ServedModel(BaseModel):
    """A served model."""

    name: str
    classes: list[str] = Field(description="What can be predicted, the neutral class first")
    checkpoint: str = Field(description="Fingerprint of the checkpoint")
    backbone: str = Field(description="Name of the CLIP")
    trained_on: dict[str, str] = Field(
        description="Part of the model → the footage that it was trained on",
        examples=[{"the checkpoint": "BioVid (not rendered)"}],
    )
    rendered_only: bool = Field(description="Whether a part of it has seen rendered faces only")
    detector: str = Field(description="Face detector; `none`: the face must fill the picture")
    frames_per_second: float | None = Field(description="Frames that are looked at per second; null: all")
    window_frames: int = Field(description="Frames of a window")
    action_units: dict[str, str] = Field(description="FACS code → code and name")
    not_learned: list[str] = Field(description="Codes that the backbone never learned; empty if that is not known")


class Models(BaseModel):
    """What is served."""

    models: list[ServedModel] = Field(description="The first one answers where none is named")
    limits: dict[str, float] = Field(
        description="Limits of an upload: max_bytes, max_seconds, max_pixels, max_frames, max_videos"
    )
    adapt: str = Field(description="How stored subjects are personalized, by PUT and by adapt=online")
    per_video: str = Field(description="How adapt=per_video tunes")
    keys_needed: bool = Field(description="Whether requests need an API key")


class Subjects(BaseModel):
    """The subjects of this key of whom something is stored."""

    subjects: list[str]


class StoredModel(BaseModel):
    """What is stored of a subject for one model."""

    since: str = Field(description="When it was made, ISO 8601, UTC")
    method: str = Field(description="How it was made", examples=["clip_autt"])
    clips: int
    frames: int | None = Field(description="Frames of the face that it rests on; null if unknown")
    seconds: float | None = Field(description="Time that these frames stand for")
    warnings: list[str] = Field(description="Why it may be worth little")


class Subject(BaseModel):
    """What is stored of a subject."""

    subject_id: str
    models: dict[str, StoredModel]
    kept_clips: int = Field(description="Uploaded videos that are kept, because that was asked")
    made_by: Literal["server", "adapt"] = Field(description="This server, or the job `clipautt adapt`")


class Job(BaseModel):
    """Personalization in the background."""

    job: str = Field(description="Id of the job; follow it at GET /v1/jobs/ID")
    subject_id: str
    status: JobStatus
    done: int = Field(description="Videos that were read")
    total: int
    error: Problem | None = Field(None, description="Why it failed")
    subject: Subject | None = Field(None, description="What is stored, once it is done")


class Erased(BaseModel):
    """What was erased of a subject."""

    subject_id: str
    erased: list[str] = Field(
        description="In words", examples=[["prompts and resting face of model pain", "2 kept clips"]]
    )


class InterfaceAnswer(BaseModel):
    """The answer of POST /api/predict, the contract of the public CLIP-AUTT web interface."""

    label: str = Field(description="The label of the most probable class, as it was sent")
    scores: dict[str, float] = Field(
        description="Label as it was sent → probability; 0 for one that only another task knows, as the message says"
    )
    message: str = Field(description="Sentences on what was seen, with the warnings")
    annotatedVideoUrl: str = Field(
        description="Address of the video with the answer drawn around it; it expires. Empty if it could not be drawn"
    )


class Alive(BaseModel):
    """The server is alive."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether predictions work."""

    ready: bool
    reason: str = Field(description="Why not; empty if it is")
    replicas: dict[str, str] = Field(description="Deployment → its replicas that are ready, of those wanted")
