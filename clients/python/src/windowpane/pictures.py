"""Images: drawn, drawn again, and given up."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from . import _files
from ._wire import Order, body, part


@dataclass(frozen=True)
class Image:
    """An image, and how it came about."""

    data: bytes = field(repr=False)
    """The file."""
    format: str
    """What kind of file: `png`, `webp`, `jpeg`, or `npz` where arrays were asked for."""
    seed: int
    """With it and `n=1` this image comes again."""
    provenance: Mapping[str, Any] = field(repr=False)
    """Model, digest, class, sampler, steps: all that it was made with."""
    array: _files.Array | None = field(default=None, repr=False)
    """`[channels, height, width]`: the model's own values, where arrays were asked for."""
    frames: _files.Array | None = field(default=None, repr=False)
    """`[frames, channels, height, width]`: the noisy image on its way, with `trajectory`."""
    frames_x0: _files.Array | None = field(default=None, repr=False)
    """The same shape: what the model took the clean image to be."""

    @property
    def png(self) -> bytes:
        """The PNG, if that is what it is."""
        if self.format != "png":
            raise ValueError(f"this image is {self.format}, not a PNG")
        return self.data

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file."""
        path = Path(path)
        path.write_bytes(self.data)
        return path

    @classmethod
    def of(cls, told: Mapping[str, Any], format: str) -> Image:
        """From the server's image object."""
        data = base64.b64decode(told["b64_json"])
        one: dict[str, _files.Array | None] = {}
        if format == "npz":
            found, _ = _files.arrays(data)
            one = {ours: found[theirs][0] if theirs in found else None
                   for ours, theirs in [("array", "images"), ("frames", "frames"), ("frames_x0", "frames_x0")]}
        return cls(data, format, int(told["seed"]), told["provenance"], **one)


@dataclass(frozen=True)
class Images:
    """Very many images: pixels, as the usual tools for statistics read them."""

    images: _files.Array = field(repr=False)
    """uint8 `[n, height, width, channels]`."""
    seeds: _files.Array = field(repr=False)
    """`[n]`."""
    labels: _files.Array | None = field(repr=False)
    """`[n]`: the class of each; none where the model has none."""
    about: Mapping[str, Any]
    """Model, digest, classes, sampler, steps: what they were made with."""

    @classmethod
    def of(cls, response: httpx.Response) -> Images:
        """From the result of a job."""
        if response.headers["content-type"] == "application/zip":
            raise ValueError("it is an archive of PNGs, to be downloaded")
        found, about = _files.arrays(response.content)
        return cls(found["arr_0"], found["seeds"], found.get("labels"), about)


@dataclass(frozen=True)
class Replay:
    """An image that was made again, and compared."""

    identical: bool
    pixels: int
    differing: int
    """Pixels that differ in any channel."""
    max_difference: int
    """The largest difference of a channel, 0 to 255."""
    provenance: Mapping[str, Any] = field(repr=False)
    """What the picture says of itself."""


def generate(
    model: str | None = None,
    *,
    prompt: str | None = None,
    class_: int | str | None = None,
    n: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    time_grid: str | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    clip_x0: bool | None = None,
    size: str | None = None,
    x_t: _files.Array | bytes | str | os.PathLike[str] | None = None,
    init_image: _files.Picture | None = None,
    strength: float | None = None,
    trajectory: int | None = None,
    output: Literal["png", "webp", "jpeg", "arrays"] = "png",
    reproducible: bool | None = None,
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> Order[list[Image]]:
    """Draws images: of a class (`prompt` or `class_`), with the seeds `seed`, `seed + 1`, …

    What is left out is the model's own default. `output="arrays"` brings the model's own values, unrounded, in
    `Image.array`, and with `trajectory=k` every k-th step in `Image.frames`. `request_id` names the request for `cancel`.
    """
    def read(response: httpx.Response) -> list[Image]:
        told = body(response)
        return [Image.of(one, told["output_format"]) for one in told["data"]]

    return Order(
        "POST", "v1/images/generations", read,
        fields={
            "model": model, "prompt": prompt, "class": class_, "n": n, "seed": seed, "steps": steps, "sampler": sampler,
            "time_grid": time_grid, "guidance_scale": guidance_scale, "eta": eta, "clip_x0": clip_x0, "size": size,
            "strength": strength, "trajectory": trajectory, "output_format": "npz" if output == "arrays" else output,
            "reproducible": reproducible, "timeout_ms": timeout_ms,
        },
        files={"x_t": _files.array(x_t), "init_image": _files.picture(init_image)},
        request_id=request_id,
    )


def images(
    model: str | None = None,
    *,
    n: int | None = None,
    prompt: str | None = None,
    class_: int | str | None = None,
    classes: Literal["each"] | None = None,
    seed: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    time_grid: str | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    clip_x0: bool | None = None,
    output: Literal["npz", "zip"] = "npz",
    request_id: str | None = None,
) -> Order[Images]:
    """Draws very many images, as a job: image i is the one that `generate` draws with `seed + i`.

    `classes="each"` has it be of class i modulo their number. An archive of PNGs (`output="zip"`) is for downloading.
    """
    return Order(
        "POST", "v1/jobs", Images.of,
        fields={
            "model": model, "n": n, "prompt": prompt, "class": class_, "classes": classes, "seed": seed, "steps": steps,
            "sampler": sampler, "time_grid": time_grid, "guidance_scale": guidance_scale, "eta": eta, "clip_x0": clip_x0,
            "output_format": output,
        },
        kind="images", request_id=request_id,
    )


def replay(image: Image | bytes | str | os.PathLike[str], *, request_id: str | None = None) -> Order[Replay]:
    """Makes a PNG of this server again by what it says of itself, and compares the pixels."""
    def read(response: httpx.Response) -> Replay:
        told = body(response)
        return Replay(told["identical"], told["pixels"], told["differing"], told["max_difference"], told["provenance"])

    return Order("POST", "v1/replay", read, fields={}, files={"image": _files.picture(image)}, request_id=request_id)


def cancel(request_id: str) -> Order[int]:
    """Cancels the requests under way that have this id, and says how many those were."""
    return Order("DELETE", f"v1/requests/{part(request_id)}", lambda response: int(body(response)["cancelled"]))
