"""Pictures, arrays and sets of images on their way to the server: whatever a caller has at hand, as a file."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from ._wire import File

if TYPE_CHECKING:
    from .pictures import Image

Array = NDArray[Any]

Picture = Union[bytes, str, "os.PathLike[str]", Array, "Image"]
"""A picture: the bytes of a PNG or `.npy`, the path of one, an image that was generated, or an array: uint8 `[h, w]` or
`[h, w, 3]`, or floats `[c, h, w]` in the model's range."""

ImageSet = Union[bytes, str, "os.PathLike[str]", Array]
"""Many pictures: the bytes or the path of a `.npy` or of a `.zip` of PNGs, a folder of PNGs (or of folders of
them, named as their classes), or an array: uint8 `[n, h, w]` or
`[n, h, w, c]`, or floats `[n, c, h, w]` in the model's range."""


def picture(value: Picture | None) -> File | None:
    """The file of a picture."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint8:
            return File("image.png", png(value))
        return array(value)
    if isinstance(value, bytes):
        return File("image", value)
    if isinstance(value, (str, os.PathLike)):
        return File(Path(value).name, Path(value).read_bytes())
    return File(f"image.{value.format}", value.data) if value.array is None else array(value.array)


def array(value: Array | bytes | str | os.PathLike[str] | None) -> File | None:
    """The file of an array of floats."""
    if value is None or isinstance(value, (bytes, str, os.PathLike)):
        return picture(value)
    return File("array.npy", npy(np.asarray(value, np.float32)))


def image_set(value: ImageSet | None) -> File | None:
    """The file of many pictures."""
    if value is None or isinstance(value, bytes):
        return None if value is None else File("images", value)
    if isinstance(value, np.ndarray):
        return File("images.npy", npy(value if value.dtype == np.uint8 else value.astype(np.float32)))
    path = Path(value)
    return File(f"{path.name}.zip", zipped(path)) if path.is_dir() else File(path.name, path.read_bytes())


def zipped(folder: Path) -> bytes:
    """A ZIP of a folder's PNGs, and of those in its folders, in the order of their names: the same bytes every time."""
    names = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png")
    if not names:
        raise ValueError(f"there is no PNG in {folder}")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in names:
            archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
    return out.getvalue()


def npy(value: Array) -> bytes:
    """A `.npy` in C order."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(value), allow_pickle=False)
    return out.getvalue()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of grey `[h, w]` (or `[h, w, 1]`) or coloured `[h, w, 3]` pixels."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3):
        raise ValueError(f"a picture of uint8 has the shape [h, w] or [h, w, 3], not {list(pixels.shape)}")
    height, width = pixels.shape[:2]
    lines = np.ascontiguousarray(pixels).reshape(height, -1)
    # Every line begins with its filter, and 0 is none.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = 2 if pixels.ndim == 3 else 0
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def arrays(data: bytes) -> tuple[dict[str, Array], Any]:
    """The arrays of a `.npz` by name, and what the JSON beside them says, where there is some."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    notes = [found.pop(name) for name in list(found) if name.endswith(".json")]
    return found, json.loads(bytes(notes[0])) if notes else None
