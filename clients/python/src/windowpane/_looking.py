"""Looks inside a model, as requests: numbers, or the server's own picture of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

import httpx

from . import _files
from ._files import Array, ImageSet, Picture
from ._wire import File, Order, body
from .looks import Attention, Jacobian, PsnrGap

T = TypeVar("T")

XT = Union[Array, bytes, str, "os.PathLike[str]"]
"""A noisy image as it is: an array of floats `[c, h, w]`, or the bytes or the path of its `.npy`."""

ATTENTION, JACOBIAN, PSNR_GAP = "v1/analysis/attention", "v1/analysis/jacobian", "v1/analysis/psnr-gap"


def attention(
    model: str | None = None,
    *,
    image: Picture | None = None,
    x_t: XT | None = None,
    prompt: str | None = None,
    class_: int | str | None = None,
    timestep: float | None = None,
    sigma: float | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    tokens: Sequence[int | tuple[int, int]] | None = None,
    maps: Literal["heads", "mean", "both", "none"] | None = None,
    layout: Literal["grid", "compact"] | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    time_grid: str | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    clip_x0: bool | None = None,
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> Order[Attention]:
    """What every layer attends to, at the noise level `timestep` (or `sigma`), and how local that is.

    Looked at is `image`, made noisy with the noise of `seed`; or `x_t` as it is; or without either the sample of
    `prompt` (or `class_`) and `seed`, on its way. `layers`, `heads`, `tokens` and `maps` narrow what is told.
    """
    subject = _subject(model, prompt, class_, timestep, sigma, seed, resize, steps, sampler, time_grid, guidance_scale,
                       eta, clip_x0, timeout_ms)
    return Order(
        "POST", ATTENTION, lambda response: Attention.of(body(response)),
        fields={**subject, "layers": _list(layers), "heads": _list(heads), "tokens": _list(tokens), "maps": maps,
                "layout": layout, "output_format": "npz"},
        files=_files_of(image, x_t), kind="attention", request_id=request_id,
    )


def draw_attention(
    model: str | None = None,
    *,
    image: Picture | None = None,
    x_t: XT | None = None,
    prompt: str | None = None,
    class_: int | str | None = None,
    timestep: float | None = None,
    sigma: float | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    tokens: Sequence[int | tuple[int, int]] | None = None,
    full: float | None = None,
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> Order[bytes]:
    """The server's own picture of it, a PNG: the map of every layer, and below it the rows of `tokens`.

    `full` is the share of the largest value from which on everything is darkest: 0.1 unless given.
    """
    subject = _subject(model, prompt, class_, timestep, sigma, seed, resize, timeout_ms=timeout_ms)
    return Order(
        "POST", ATTENTION, _bytes,
        fields={**subject, "layers": _list(layers), "heads": _list(heads), "tokens": _list(tokens), "full": full,
                "output_format": "png"},
        files=_files_of(image, x_t), accept="image/png", kind="attention", request_id=request_id,
    )


def jacobian(
    model: str | None = None,
    *,
    image: Picture | None = None,
    x_t: XT | None = None,
    prompt: str | None = None,
    class_: int | str | None = None,
    timestep: float | None = None,
    sigma: float | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    of: Literal["x0", "eps", "v"] | None = None,
    guided: float | None = None,
    method: Literal["top-k", "full"] | None = None,
    k: int | None = None,
    tolerance: float | None = None,
    iterations: int | None = None,
    matrix: bool | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    time_grid: str | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    clip_x0: bool | None = None,
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> Order[Jacobian]:
    """What the network makes of small changes of the noisy image: the derivative of `of`, taken apart exactly.

    `method="top-k"` finds the `k` largest singular values with a bound on each; `"full"` all of them, and the eigenvalues
    of the symmetric part. What is looked at is said as for `attention`.
    """
    subject = _subject(model, prompt, class_, timestep, sigma, seed, resize, steps, sampler, time_grid, guidance_scale,
                       eta, clip_x0, timeout_ms)
    return Order(
        "POST", JACOBIAN, lambda response: Jacobian.of(body(response)),
        fields={**subject, "of": of, "guided": guided, "method": method, "k": k, "tolerance": tolerance,
                "iterations": iterations, "matrix": matrix, "output_format": "npz"},
        files=_files_of(image, x_t), kind="jacobian", request_id=request_id,
    )


def draw_jacobian(
    model: str | None = None,
    *,
    image: Picture | None = None,
    x_t: XT | None = None,
    prompt: str | None = None,
    class_: int | str | None = None,
    timestep: float | None = None,
    sigma: float | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    of: Literal["x0", "eps", "v"] | None = None,
    guided: float | None = None,
    method: Literal["top-k", "full"] | None = None,
    k: int | None = None,
    vectors: Literal["right", "left", "eigen"] | None = None,
    show: Sequence[int] | None = None,
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> Order[bytes]:
    """The server's own sheet of the first `k` directions (or of those in `show`), a PNG, colours apart."""
    subject = _subject(model, prompt, class_, timestep, sigma, seed, resize, timeout_ms=timeout_ms)
    return Order(
        "POST", JACOBIAN, _bytes,
        fields={**subject, "of": of, "guided": guided, "method": method, "k": k, "vectors": vectors,
                "show": _list(show), "output_format": "png"},
        files=_files_of(image, x_t), accept="image/png", kind="jacobian", request_id=request_id,
    )


def psnr_gap(
    model: str | None = None,
    *,
    train: ImageSet | None = None,
    test: ImageSet | None = None,
    train_labels: Sequence[int | str] | None = None,
    test_labels: Sequence[int | str] | None = None,
    images: int | None = None,
    timesteps: int | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> Order[PsnrGap]:
    """How much better the model restores images it was trained on than images it never saw.

    Of one set alone its PSNR is told; without both, the package's own reference set is taken. `images` of each are used,
    at `timesteps` noise levels. `train_labels` and `test_labels` are the images' classes, by index or name;
    without, and without folders named after them, the network is told none.
    """
    return Order(
        "POST", PSNR_GAP, lambda response: PsnrGap.of(body(response)),
        fields=_sets(model, train_labels, test_labels, images, timesteps, seed, resize, timeout_ms, "json"),
        files={"train": _files.image_set(train), "test": _files.image_set(test)}, is_form=True, kind="psnr-gap",
        request_id=request_id,
    )


def draw_psnr_gap(
    model: str | None = None,
    *,
    train: ImageSet | None = None,
    test: ImageSet | None = None,
    train_labels: Sequence[int | str] | None = None,
    test_labels: Sequence[int | str] | None = None,
    images: int | None = None,
    timesteps: int | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    output: Literal["png", "svg", "csv"] = "png",
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> Order[bytes]:
    """The server's own plot of it, or its table: the file of `output`.

    The table's `gap_db` is clipped at 0, its `unclipped_gap_db` is not.
    """
    return Order(
        "POST", PSNR_GAP, _bytes,
        fields=_sets(model, train_labels, test_labels, images, timesteps, seed, resize, timeout_ms, output),
        files={"train": _files.image_set(train), "test": _files.image_set(test)}, is_form=True,
        accept={"png": "image/png", "svg": "image/svg+xml", "csv": "text/csv"}[output], kind="psnr-gap",
        request_id=request_id,
    )


def _sets(
    model: str | None, train_labels: Sequence[int | str] | None, test_labels: Sequence[int | str] | None,
    images: int | None, timesteps: int | None, seed: int | None, resize: bool | None, timeout_ms: int | None,
    output_format: str,
) -> dict[str, Any]:
    """The fields that say which images are restored, and how often."""
    return {
        "model": model, "train_labels": _list(train_labels), "test_labels": _list(test_labels),
        "images": images, "timesteps": timesteps, "seed": seed, "resize": resize, "timeout_ms": timeout_ms,
        "output_format": output_format,
    }


def _subject(
    model: str | None, prompt: str | None, class_: int | str | None, timestep: float | None, sigma: float | None,
    seed: int | None, resize: bool | None, steps: int | None = None, sampler: str | None = None,
    time_grid: str | None = None, guidance_scale: float | None = None, eta: float | None = None,
    clip_x0: bool | None = None, timeout_ms: int | None = None,
) -> dict[str, Any]:
    """The fields that say what is looked at."""
    return {
        "model": model, "prompt": prompt, "class": class_, "timestep": timestep, "sigma": sigma, "seed": seed,
        "resize": resize, "steps": steps, "sampler": sampler, "time_grid": time_grid, "guidance_scale": guidance_scale,
        "eta": eta, "clip_x0": clip_x0, "timeout_ms": timeout_ms,
    }


def _files_of(image: Picture | None, x_t: XT | None) -> Mapping[str, File | None]:
    return {"image": _files.picture(image), "x_t": _files.array(x_t)}


def _list(values: Sequence[Any] | None) -> list[Any] | None:
    """Plain numbers, whatever they were, and words."""
    if values is None:
        return None
    return [[int(one) for one in value] if isinstance(value, (tuple, list))
            else value if isinstance(value, str) else int(value) for value in values]


def _bytes(response: httpx.Response) -> bytes:
    return response.content
