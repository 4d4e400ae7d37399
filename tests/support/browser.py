"""A headless Chromium, driven over its DevTools protocol with the aiohttp that Ray brings: enough to use a page as a
person would and to see what it asks the network for."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
import numpy.typing as npt

_WAIT_SECONDS = 60.0
_KEYS = {
    **{"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " "), "End": (35, ""), "Home": (36, "")},
    **{"ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, "")},
}
"""Key → Windows' virtual key code and the text that it writes."""


def find_chromium() -> str | None:
    """The path of Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def write_camera(path: Path, frames: npt.NDArray[np.uint8], *, width: int = 320) -> Path:
    """What a fake camera sees, as uncompressed video (.y4m) of 25 frames per second: a face in the middle of a wider
    grey picture, there and back, so that its end meets its beginning.

    Args:
        path: The file.
        frames: RGB, uint8 [T, H, W, 3]; H and the difference of W and `width` have to be even.
        width: Of the picture, W or more.
    """
    side = (width - frames.shape[2]) // 2
    seen = np.pad(frames, ((0, 0), (0, 0), (side, side), (0, 0)), constant_values=96)
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{frames.shape[1]} F25:1 Ip A1:1 C420jpeg\n".encode())
        for pixels in (*seen, *seen[::-1]):
            planes = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p").to_ndarray()
            file.write(b"FRAME\n" + planes.tobytes())
    return path


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.requested: list[str] = []
        """URLs that the page asked for."""
        self.complaints: list[str] = []
        """Uncaught exceptions, console errors and violations of the security policy."""

    async def listen(self) -> None:
        """Take the browser's messages, for as long as it lives."""
        async for received in self._socket:
            message = json.loads(received.data)
            method, told = message.get("method"), message.get("params", {})
            if message.get("id") in self._waiting:
                self._waiting.pop(message["id"]).set_result(message)
            elif method == "Network.requestWillBeSent":
                self.requested.append(told["request"]["url"])
            elif method == "Network.webSocketCreated":
                self.requested.append(told["url"])
            elif method == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["exceptionDetails"]))
            elif method == "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            elif method == "Inspector.targetCrashed":
                for waiting in self._waiting.values():
                    if not waiting.done():
                        waiting.set_exception(RuntimeError("the page crashed"))

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        message = await asyncio.wait_for(self._waiting[number], _WAIT_SECONDS)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    async def wait_for(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
        while not await self.evaluate(script):
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{script}; the page shows: {await self.text('body')}")
            await asyncio.sleep(0.05)

    async def text(self, selector: str) -> str:
        """What an element shows."""
        return str(await self.evaluate(f"document.querySelector({selector!r}).innerText"))

    async def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to a file input."""
        root = (await self.send("DOM.getDocument"))["root"]["nodeId"]
        found = (await self.send("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.send("DOM.setFileInputFiles", files=[str(path.resolve())], nodeId=found)
        await self.settle()

    async def settle(self) -> None:
        """Wait until the page has been drawn anew."""
        await self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    async def press(self, key: str) -> None:
        """Press one key, such as `Tab`, `Enter`, `ArrowRight` or a letter."""
        code, text = _KEYS.get(key, (0, key))
        extra = {"text": text} if text else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **extra)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def click(self, selector: str, *, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Click an element with the mouse, at a share of its width and height."""
        await self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        await self.settle()
        box = await self.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        x, y = box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"]
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    async def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list by its value."""
        chosen = f"const list = document.querySelector({selector!r}); list.value = {value!r};"
        await self.evaluate(f"(() => {{ {chosen} list.dispatchEvent(new Event('change', {{bubbles: true}})); }})()")

    async def look(
        self, *, width: int = 1000, height: int = 800, dark: bool = False, still: bool = False, scale: float = 1
    ) -> None:
        """Size of the window, the colours the person prefers, and whether they prefer that nothing moves."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme, motion])

    async def screenshot(self, path: Path, *, selector: str | None = None) -> None:
        """The whole page, or one element of it, as PNG."""
        if selector is None:
            area = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
        else:
            box = f"document.querySelector({selector!r}).getBoundingClientRect()"
            script = f"(({{x, y, width, height}}) => ({{x: x + scrollX, y: y + scrollY, width, height}}))({box})"
            area = await self.evaluate(script)
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=True, clip={**area, "scale": 1})
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def open_page(chromium: str, folder: Path, url: str, *, camera: Path | None = None) -> AsyncIterator[Page]:
    """A new browser at a URL.

    Args:
        chromium: Path of the browser.
        folder: Where its profile goes.
        url: Of the page.
        camera: What its camera sees, over and over, from `write_camera`; None for no camera.
    """
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}"]
    if camera is not None:
        command += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        command += [f"--use-file-for-fake-video-capture={camera}"]
    command.append("about:blank")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _debugging_port(folder / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tabs = [tab for tab in await response.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Network", "Runtime", "Log", "DOM", "Inspector"):
                    await page.send(f"{domain}.enable")
                await page.send("Page.navigate", url=url)
                await page.wait_for("document.readyState === 'complete'")
                yield page
                listening.cancel()
    finally:
        process.terminate()
        process.wait(20)


async def _debugging_port(file: Path) -> int:
    deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
    while not (file.is_file() and file.read_text().count("\n")):
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError("Chromium does not start")
        await asyncio.sleep(0.1)
    return int(file.read_text().split()[0])
