"""A tiny ONNX file with YuNet's inputs and outputs: it "finds" a face wherever a cell of 8 × 8 pixels is pure red.

Written byte by byte in the format of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, so that no package is
needed. The numbers in comments are that file's field numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

BOX_PIXELS = (32.0, 40.0)
"""Width and height of every face, in pixels of the picture the detector sees; its middle is that of the red cell."""
EYES = ((-6.0, -4.0), (10.0, 4.0))
"""The subject's right and left eye from the upper left corner of the red cell, in the same pixels."""


def write_fake_yunet(path: Path) -> Path:
    """Write the file."""
    nodes: list[bytes] = []
    initializers: list[bytes] = []
    outputs: list[bytes] = []
    for stride in (8, 16, 32):
        nodes.append(_node("AveragePool", ["input"], f"pool_{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2))
        for name, weights, bias in _heads(stride):
            full = f"{name}_{stride}"
            rows = len(bias)
            initializers += [
                _tensor(f"{full}_w", [rows, 3, 1, 1], struct.pack(f"<{3 * rows}f", *weights), kind=1),
                _tensor(f"{full}_b", [rows], struct.pack(f"<{rows}f", *bias), kind=1),
                _tensor(f"{full}_s", [3], struct.pack("<3q", 1, -1, rows), kind=7),
            ]
            nodes += [
                _node("Conv", [f"pool_{stride}", f"{full}_w", f"{full}_b"], f"{full}_conv", kernel_shape=[1, 1]),
                _node("Transpose", [f"{full}_conv"], f"{full}_last", perm=[0, 2, 3, 1]),
                _node("Reshape", [f"{full}_last", f"{full}_s"], full),
            ]
            outputs.append(_value(full, [1, (32 // stride) ** 2, rows]))
    graph = b"".join(
        [_field(1, node) for node in nodes]  # node
        + [_field(2, b"fake")]  # name
        + [_field(5, initializer) for initializer in initializers]  # initializer
        + [_field(11, _value("input", [1, 3, 32, 32]))]  # input
        + [_field(12, output) for output in outputs]  # output
    )
    opset = _number(2, 11)  # version
    path.write_bytes(_number(1, 7) + _field(7, graph) + _field(8, opset))  # ir_version, graph, opset_import
    return path


def _heads(stride: int) -> list[tuple[str, list[float], list[float]]]:
    """Name, weights [rows × BGR] and bias [rows] of the four outputs; only the finest stride sees anything."""
    red = [0.0, 0.0, 1 / 255 if stride == 8 else 0.0]
    box = [0.5, 0.5, math.log(BOX_PIXELS[0] / 8), math.log(BOX_PIXELS[1] / 8)]
    points = [value / 8 for eye in EYES for value in eye] + [0.0] * 6
    return [("cls", red, [0.0]), ("obj", red, [0.0]), ("bbox", [0.0] * 12, box), ("kps", [0.0] * 30, points)]


def _varint(value: int) -> bytes:
    value %= 1 << 64
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Sequence[int]) -> bytes:
    named = [_field(1, name.encode()) for name in inputs] + [_field(2, output.encode()), _field(4, kind.encode())]
    for name, values in attributes.items():
        integers = b"".join(_number(8, value) for value in values)
        named.append(_field(5, _field(1, name.encode()) + integers + _number(20, 7)))  # type INTS
    return b"".join(named)


def _tensor(name: str, shape: Sequence[int], content: bytes, *, kind: int) -> bytes:
    return (
        b"".join(_number(1, size) for size in shape) + _number(2, kind) + _field(8, name.encode()) + _field(9, content)
    )


def _value(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_field(1, _number(1, size)) for size in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1) + _field(2, dims)))
