"""A picture of the server's page with an answer, for the README of the serve package: .github/serve_page.png.

    python -m tests.benchmarks.serve_picture           # after `make demo`; or give another run of the demo

The real server answers a clip of the demo's first target subject, personalized by what the demo adapted to them. Left:
the answer; right: its heat map, and the live tab with the same clip as its camera.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_jobs.serve.job import serving
from ray_jobs.serve.settings import ServeConfig
from tests.support.browser import Page, find_chromium, open_page, write_camera
from tests.support.server_process import free_port

RUN = Path("runs/demo/pain-hard-seed0")
SUBJECT = "target-000"
PICTURE = Path(__file__).resolve().parents[2] / ".github" / "serve_page.png"
WIDTH, GAP = 1000, 24


def camera_frames(video: Path, *, side: int = 240) -> npt.NDArray[np.uint8]:
    """A video of a face as large as a camera sees it, [T, side, side, 3]."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_CUBIC) for frame in frames])


async def look(url: str, video: Path, folder: Path) -> None:
    """Write `answer.png`, `heat.png` and `live.png`."""
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("serve_picture: no Chromium on this machine; install the package `chromium`")
    camera = write_camera(folder / "camera.y4m", camera_frames(video))
    async with open_page(chromium, folder / "profile", url, camera=camera) as page:
        await page.look(width=WIDTH, height=900)
        await page.wait_for("document.querySelectorAll('#who option').length > 2")
        await page.choose("#who", SUBJECT)
        await page.wait_for("document.getElementById('person-state').innerText.length > 5")
        await page.choose_file("#video", video)
        await page.click("#predict")
        await page.wait_for("!document.getElementById('result').hidden")
        await page.wait_for("document.getElementById('player').readyState >= 2")
        await page.evaluate("document.getElementById('replay').focus()")
        await page.click("#strip", at=(0.25, 0.5))
        await page.wait_for("!document.getElementById('player').seeking")
        await asyncio.sleep(2)  # until the browser takes away its sign of waiting
        await picture_of(page, folder / "page.png", folder)
        await page.click("#tab-live")
        await page.evaluate("document.getElementById('live-first').checked = true")
        await page.click("#live-start")
        await page.wait_for("document.getElementById('live-status').innerText.startsWith('Resting face taken')")
        await asyncio.sleep(12)
        await page.screenshot(folder / "live.png", selector="#live-card")


async def picture_of(page: Page, path: Path, folder: Path) -> None:
    """The page cut in two: `answer.png` down to the chart, and `heat.png`, the heat map."""
    await page.screenshot(path)
    top = "document.getElementById('heat-title').getBoundingClientRect().top + scrollY"
    end = "document.getElementById('numbers').getBoundingClientRect().top + scrollY"
    cut, floor = round(await page.evaluate(top)) - 8, round(await page.evaluate(end))
    with Image.open(path) as whole:
        whole.crop((0, 0, whole.width, cut)).save(folder / "answer.png")
        whole.crop((0, cut, whole.width, floor)).save(folder / "heat.png")


def joined(folder: Path) -> Image.Image:
    """The three pictures as one."""
    answer, heat, live = (Image.open(folder / f"{name}.png").convert("RGB") for name in ("answer", "heat", "live"))
    ground = answer.getpixel((2, 2))
    size = (answer.width + GAP + heat.width, max(answer.height, heat.height + GAP + live.height))
    whole = Image.new("RGB", size, ground)
    whole.paste(answer, (0, 0))
    whole.paste(heat, (answer.width + GAP, 0))
    whole.paste(live, (answer.width + GAP + (heat.width - live.width) // 2, heat.height + GAP))
    return whole


def main(run: Path) -> None:
    """Make the picture."""
    video = run / "data" / "videos" / SUBJECT / f"{SUBJECT}_c001.mp4"
    if not video.is_file():
        raise SystemExit(f"serve_picture: {video}: no such video; `make demo` makes it")
    with tempfile.TemporaryDirectory() as folder:
        config = ServeConfig(
            checkpoint=run / "train" / "demo" / "checkpoints" / "median",
            prompts=run / "adapt" / "demo" / "prompts",
            runs=folder,
            port=free_port(),
        )
        with serving(config) as url:
            asyncio.run(look(f"{url}/", video, Path(folder)))
        joined(Path(folder)).quantize(256, Image.Quantize.MAXCOVERAGE).save(PICTURE, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RUN)
