"""Source models of a sweep: trained once, whoever asks, and by somebody else where the first one ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

from clipautt.model.checkpoint import load_checkpoint
from ray_jobs.sweep.models import checkpoint_of, files_of
from ray_jobs.sweep.shelf import ModelShelf
from tests.support.fakes import fake_checkpoint


def test_a_model_is_trained_once_and_kept_in_the_run_folder(tmp_path: Path) -> None:
    made = fake_checkpoint()

    async def two_ask() -> None:
        shelf = ModelShelf(str(tmp_path / "models"))
        assert await shelf.take("key", "first") is None
        second, other = asyncio.create_task(shelf.take("key", "second")), await shelf.take("other", "second")
        await asyncio.sleep(0.01)
        assert other is None and not second.done(), "the second one waits for the first one's model only"
        await shelf.put("key", files_of(made))
        found = await second
        assert found is not None and checkpoint_of(found).fingerprint == made.fingerprint

    asyncio.run(two_ask())
    assert load_checkpoint(tmp_path / "models" / "key").fingerprint == made.fingerprint
    again = asyncio.run(ModelShelf(str(tmp_path / "models")).take("key", "later"))
    assert again is not None and checkpoint_of(again).fingerprint == made.fingerprint


def test_what_a_process_trained_that_ended_is_trained_by_the_next(tmp_path: Path) -> None:
    async def one_dies() -> None:
        shelf = ModelShelf(str(tmp_path))
        assert await shelf.take("key", "dies") is None
        waiting = asyncio.create_task(shelf.take("key", "next"))
        await shelf.release("somebody else")
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await shelf.release("dies")
        assert await waiting is None and shelf.claims == {"key": "next"}
        again = await asyncio.wait_for(shelf.take("key", "next"), timeout=5)
        assert again is None, "Ray repeats the task of a process that died while it trained"

    asyncio.run(one_dies())


def test_one_that_died_while_it_waited_is_given_nothing_to_train(tmp_path: Path) -> None:
    async def two_die() -> None:
        shelf = ModelShelf(str(tmp_path))
        assert await shelf.take("key", "trains") is None
        waiting = asyncio.create_task(shelf.take("key", "waits"))
        await asyncio.sleep(0.01)
        await asyncio.gather(shelf.release("trains"), shelf.release("waits"))
        await waiting
        assert shelf.claims == {} and await asyncio.wait_for(shelf.take("key", "next"), 1) is None
        # Ray repeats a task whose process died, under the same name.
        assert await asyncio.wait_for(shelf.take("key", "next"), 1) is None and shelf.claims == {"key": "next"}

    asyncio.run(two_die())
