"""Decoded frames as players show them: turned and mirrored as the file says, with square pixels, in standard range.

In: a frame of PyAV and its stream. Out: RGB pixels, and notes on what could not be shown as it should be. HDR is
converted to the standard range of BT.709, which is what image towers have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from clipautt.video.containers import check_pixels
from clipautt.video.preprocessing import Frames

Matrix = tuple[float, float, float, float]
"""(a, b, c, d): a pixel at (x, y), x to the right and y down, is shown at (a·x + c·y, b·x + d·y), up to a shift."""
Floats = npt.NDArray[np.float32]
_AS_STORED: Matrix = (1.0, 0.0, 0.0, 1.0)
_SQUARE = 0.01
"""Pixels that differ from squares by less than this share are left as they are."""
_MOST_STRETCHED = 8
_PEAK, _WHITE, _SYSTEM_GAMMA = 1000.0, 203.0, 1.2
"""cd/m²: peak and reference white of HLG, and its gamma; ITU-R BT.2100-2 and BT.2408-7."""
_KNEE = 0.9
_SDR_GAMMA = 2.4
_BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
"""Linear RGB; ITU-R BT.2087-0."""
_BT2020_MATRIX = 9  # FFmpeg's number of the matrix of BT.2020 with non-constant luminance
_BAND = 256
_HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
_STRANGE = {
    ColorTrc.LINEAR: "linear light",
    ColorTrc.LOG: "a logarithmic scale",
    ColorTrc.LOG_SQRT: "a logarithmic scale",
    ColorTrc.SMPTE428: "the scale of digital cinema",
}


@dataclass(frozen=True)
class Display:
    """How the pixels of a frame are shown."""

    matrix: Matrix = _AS_STORED
    """How they are turned and mirrored, rows of length 1."""
    pixel_aspect: Fraction = Fraction(1)
    """Width of a pixel divided by its height."""
    hdr: str = ""
    """`HLG` or `PQ` for pictures that are converted to standard range."""
    notes: tuple[str, ...] = ()
    """What is not shown as it should be."""

    @property
    def is_plain(self) -> bool:
        """Whether the stored pixels are shown as they are."""
        return self == Display()


def display_of(frame: Any, stream: Any, size: tuple[int, int]) -> Display:
    """What a file says about showing a frame.

    Args:
        frame: the frame of PyAV that was decoded last.
        stream: its stream.
        size: width and height of the stream's frames when the file was opened.
    """
    matrix, aspect = _matrix(frame), _pixel_aspect(frame, stream, size)
    notes = []
    if not _is_quarter_turn(matrix):
        turned = math.degrees(math.atan2(matrix[1], matrix[0]))
        notes.append(f"the file says to turn its pictures by {turned:.0f} degrees; the corners are black")
    if not 1 / _MOST_STRETCHED <= aspect <= _MOST_STRETCHED:
        notes.append(f"the file says that its pixels are {aspect} as wide as they are high, which is not believed")
        aspect = Fraction(1)
    if abs(aspect - 1) < _SQUARE:
        aspect = Fraction(1)
    if frame.interlaced_frame:
        notes.append("its pictures are marked as interlaced: moving edges may look like combs")
    hdr, strange = _range(frame)
    return Display(matrix, aspect, hdr, (*notes, *strange))


def _matrix(frame: Any) -> Matrix:
    """The display matrix, without its scale, which FFmpeg counts among the shape of pixels."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _AS_STORED
    a, b, _, c, d, _, *_ = (np.frombuffer(bytes(data), np.int32) / (1 << 16)).tolist()
    across, down = math.hypot(a, b), math.hypot(c, d)
    if min(across, down) == 0 or abs(a * d - b * c) < 0.01 * across * down:
        return _AS_STORED  # it shows nothing at all; players ignore it
    return a / across, b / across, c / down, d / down


def _is_quarter_turn(matrix: Matrix) -> bool:
    return all(min(abs(value), abs(abs(value) - 1)) < 1e-3 for value in matrix)


def _pixel_aspect(frame: Any, stream: Any, size: tuple[int, int]) -> Fraction:
    # The container's word counts for the size it was given for; after a change only the codec's is known.
    same = (frame.width, frame.height) == size
    told = (stream if same else stream.codec_context).sample_aspect_ratio
    return Fraction(told) if told else Fraction(1)


def _range(frame: Any) -> tuple[str, tuple[str, ...]]:
    """HLG or PQ if the conversion is well defined, and notes if it is not."""
    name = _HDR.get(frame.color_trc, "")
    if name:
        usual = frame.color_primaries in (ColorPrimaries.BT2020, ColorPrimaries.UNSPECIFIED)
        if usual and frame.colorspace in (_BT2020_MATRIX, 2):
            return name, ()
        return "", (f"its pictures are HDR ({name}) with other primaries than BT.2020; colours and contrast are wrong",)
    if frame.color_trc in _STRANGE:
        return "", (f"its pictures are in {_STRANGE[frame.color_trc]}; colours and contrast are wrong",)
    if any(frame.side_data.get(kind) is not None for kind in ("DOVI_METADATA", "DOVI_RPU_BUFFER")):
        return "", ("its pictures are Dolby Vision, which is not converted; colours and contrast are wrong",)
    if frame.color_primaries == ColorPrimaries.BT2020:
        return "", ("its colours are those of BT.2020, which are not converted; they look pale",)
    return "", ()


def show(frame: Any, display: Display, *, max_pixels: int | None = None) -> Frames:
    """The pixels of a frame as players show them, RGB uint8 [H, W, 3].

    Args:
        frame: the decoded frame, of PyAV.
        display: of this frame.
        max_pixels: width × height of the largest picture, once its pixels are square.

    Raises:
        DecodeError: for larger pictures.
    """
    if display.hdr:
        wide = frame.to_ndarray(format="rgb48le", src_colorspace=Colorspace.BT2020, threads=1)
        stored = standard_range(wide, display.hdr)
    else:
        stored = frame.to_ndarray(format="rgb24", threads=1)
    return np.ascontiguousarray(_turned(_squared(stored, display.pixel_aspect, max_pixels), display.matrix))


def _squared(pixels: Frames, aspect: Fraction, max_pixels: int | None) -> Frames:
    """With square pixels: the side that is squeezed is drawn out, so that nothing is lost."""
    if aspect == 1:
        return pixels
    height, width = pixels.shape[:2]
    wide, high = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    check_pixels(wide, high, max_pixels)
    return np.asarray(cv2.resize(pixels, (wide, high), interpolation=cv2.INTER_LINEAR), np.uint8)


def _turned(pixels: Frames, matrix: Matrix) -> Frames:
    a, b, c, d = matrix
    if not _is_quarter_turn(matrix):
        return _warped(pixels, matrix)
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    pixels = pixels[:, ::-1] if a < 0 else pixels
    return pixels[::-1] if d < 0 else pixels


def _warped(pixels: Frames, matrix: Matrix) -> Frames:
    """Turned by any angle, in the smallest upright rectangle that holds all of it."""
    height, width = pixels.shape[:2]
    turn = np.array(matrix, np.float64).reshape(2, 2).T
    corners = turn @ np.array([[0, width, 0, width], [0, 0, height, height]], np.float64)
    low, high = corners.min(axis=1), corners.max(axis=1)
    # A pixel's middle lies half a pixel from its corner, before and after.
    shift = turn @ [0.5, 0.5] - low - 0.5
    size = (max(1, round(high[0] - low[0])), max(1, round(high[1] - low[1])))
    return np.asarray(cv2.warpAffine(pixels, np.column_stack([turn, shift]), size, flags=cv2.INTER_LINEAR), np.uint8)


def standard_range(pixels: npt.NDArray[np.uint16], transfer: str) -> Frames:
    """HDR pictures of BT.2100 in the standard range of BT.709.

    The reference white of HDR, 203 cd/m² or 75 % of HLG, becomes the white of standard range. Up to 90 % of it nothing
    is compressed; what is brighter approaches white, all three channels by the same factor, so that hues stay. HLG is
    converted by the light of the scene, so that colours are those that a camera of standard range would have recorded
    (each channel has the gamma of 1.2); PQ by the light of the display.

    Args:
        pixels: R'G'B', full range, uint16 [H, W, 3].
        transfer: `HLG` or `PQ`.

    Returns:
        R'G'B', uint8 [H, W, 3].

    Source: transfer functions, ITU-R BT.2100-2, tables 4 and 5; white and conversion, ITU-R BT.2408-7; primaries,
    ITU-R BT.2087-0; display of standard range, ITU-R BT.1886.
    """
    result = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _BAND):  # in bands, since a large frame in floating point takes much memory
        light = np.take(_light_of(transfer), pixels[top : top + _BAND])
        light = np.maximum(light @ _BT2020_TO_BT709.T, 0)
        brightest = light.max(axis=-1, keepdims=True)
        room = 1 - _KNEE
        above = brightest > _KNEE
        rolled = np.where(above, 1 - room * np.exp((_KNEE - brightest) / room), brightest)
        light *= np.divide(rolled, brightest, out=np.ones_like(brightest), where=above)
        result[top : top + _BAND] = np.take(_encoded(), (np.sqrt(light) * (len(_encoded()) - 1)).astype(np.int32))
    return result


@lru_cache(maxsize=2)
def _light_of(transfer: str) -> Floats:
    """Linear light of each 16-bit value, 1 at reference white."""
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == "HLG":
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * math.log(4 * a)
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        return (_PEAK / _WHITE * scene**_SYSTEM_GAMMA).astype(np.float32)
    root = signal ** (32 / 2523)
    light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
    return (10000 / _WHITE * light).astype(np.float32)


@lru_cache(maxsize=1)
def _encoded() -> Frames:
    """8-bit values of standard range, by the square root of linear light, which is finer in the dark."""
    light = np.linspace(0, 1, 1 << 14) ** 2
    return np.round(255 * light ** (1 / _SDR_GAMMA)).astype(np.uint8)
