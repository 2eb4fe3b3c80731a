"""Frame in a file, as an observation has it: uint8 of height, width and channels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

#: The head of a binary PPM or PGM of 8 bits: sizes between white space and comments, and one white space after them.
_NETPBM = re.compile(rb"P(?P<kind>[56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+255\s")
#: Modes of Pillow that become frames without loss, and their number of channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageUnreadable(ValueError):
    """The file holds no frame that can be sent; the text names it and the remedy."""


def read_image(file: Path, *, channels: int = 3, colour_order: str | None = None) -> Any:
    """Return the frame in `file`: uint8[height, width, channels] (1, 3 or 4), or the array of a .npy as it is.

    PPM and PGM need no library; other formats need Pillow. The channels are red, green, blue unless `colour_order` of the
    model is bgr or bgra. Raises ImageUnreadable.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ImageUnreadable(f"{file} cannot be read: {error.strerror}") from error
    if content.startswith(b"\x93NUMPY"):
        return _of_npy(file)
    netpbm = _NETPBM.match(content)
    if netpbm is not None and channels == {b"5": 1, b"6": 3}[netpbm["kind"]]:
        frame = _of_netpbm(file, netpbm, content)
    else:
        frame = _by_pillow(file, _MODES[channels])
    if colour_order in ("bgr", "bgra"):
        frame = frame[..., [2, 1, 0, *range(3, channels)]]
    return np.ascontiguousarray(frame)


def _of_npy(file: Path) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageUnreadable(f"{file} cannot be read: {error}; write it with numpy.save(file, frame)") from error


def _of_netpbm(file: Path, head: re.Match[bytes], content: bytes) -> Any:
    width, height, channels = int(head[2]), int(head[3]), 3 if head["kind"] == b"6" else 1
    if len(content) - head.end() < width * height * channels:
        raise ImageUnreadable(f"{file} is cut off: {width} x {height} pixels need more bytes than it has")
    pixels = np.frombuffer(content, np.uint8, width * height * channels, head.end())
    return pixels.reshape(height, width, channels)


def _by_pillow(file: Path, mode: str) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImageUnreadable(
            f"{file} needs Pillow to be decoded: pip install pillow; or give a .npy or a binary .ppm"
        ) from None
    try:
        with Image.open(file) as image:
            frame = np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageUnreadable(f"{file} is not an image that Pillow decodes: {error}") from error
    return frame if frame.ndim == 3 else frame[..., None]
