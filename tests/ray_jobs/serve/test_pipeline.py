"""What the web side asks of the deployments, and in which order; the deployments are played here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.serve.model.messages import Decoded
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.pipeline import Capacity, ServePipeline
from ray_jobs.serve.web.schemas import Adapt
from ray_jobs.serve.web.uploads import Upload

STAGES = ("decode", "encode", "predict", "adapt")
ANNA = Who("anna-key", "personalize")


class Handle:
    """A handle whose methods answer what they are told to, and are noted."""

    def __init__(self, asked: list[tuple[Any, ...]], **answers: Any) -> None:
        for name, answer in answers.items():
            setattr(self, name, Method(asked, name, answer))


class Method:
    def __init__(self, asked: list[tuple[Any, ...]], name: str, answer: Any) -> None:
        self.asked, self.name, self.answer = asked, name, answer

    async def remote(self, *arguments: Any) -> Any:
        self.asked.append((self.name, *arguments))
        return self.answer


def predicted(adapt: Adapt, ticket: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    asked: list[tuple[Any, ...]] = []
    decoded = Decoded({}, 1.0, 0.0)
    pipeline = ServePipeline(
        Handle(asked, decode=decoded),
        Handle(asked, predict={"label": "pain", "timings": dict.fromkeys(STAGES, 0.0), "others": []}, ticket=ticket),
        names=("pain", "stress"),
        capacity=Capacity(at_once=1, waiting=0, answer_seconds=5.0),
    )
    answer = asyncio.run(pipeline.predict(Upload(Path("video"), 5), Ask(ANNA, (), "p", adapt)))
    return answer, asked


@pytest.mark.parametrize(("adapt", "ticket"), [("online", 7), ("none", None)])
def test_online_work_takes_its_ticket_before_the_video_is_decoded(adapt: Adapt, ticket: int | None) -> None:
    """Else a person who was erased while it is decoded would be stored again."""
    answer, asked = predicted(adapt, (7, []))
    assert answer["label"] == "pain"
    assert [name for name, *_ in asked] == ["ticket"] * (adapt == "online") + ["decode", "predict"]
    assert asked[0][1:] == ((ANNA, "p", ()) if adapt == "online" else ("video", ("pain",), None))
    assert asked[-1][2] == Ask(ANNA, ("pain",), "p", adapt, ticket)


def test_without_a_ticket_nothing_is_decoded() -> None:
    busy = Refusal("subject_busy", "subject 'p' is being changed by other requests", 5)
    answer, asked = predicted("online", busy)
    assert (answer, len(asked)) == (busy, 1)
