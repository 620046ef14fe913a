"""What looks inside a model tell: what its layers attend to, its Jacobian, and how much it remembers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import _files
from ._files import Array


@dataclass(frozen=True)
class Locality:
    """How local attention is; each number is a mean over query tokens."""

    distance: float
    """Mean distance of what is attended to, in tokens."""
    entropy: float
    """In nats: 0 where all of it is at one place."""
    within: Mapping[int, float]
    """The share that lies within the square of each odd side around a token, by side."""
    effective_window: int
    """The least odd side of a square that holds 95 % of it."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Locality:
        """From the server's object."""
        within = {int(entry["side"]): float(entry["share"]) for entry in told["within"]}
        return cls(told["distance"], told["entropy"], within, told["effective_window"])


@dataclass(frozen=True)
class AttentionLayer:
    """What a layer attends to."""

    layer: int
    window: int | None
    """The side of its window in tokens; none where it is global."""
    heads: Array | None = field(repr=False)
    """`[heads, tokens, height, width]`, where it was asked for."""
    mean: Array | None = field(repr=False)
    """`[tokens, height, width]`: the mean over the heads, where it was asked for."""
    locality: Locality = field(repr=False)
    locality_by_head: tuple[Locality, ...] = field(repr=False)


@dataclass(frozen=True)
class Attention:
    """What a model's layers attend to in an image."""

    about: Mapping[str, Any]
    """What was looked at: model, digest, class, seed, noise level."""
    grid: tuple[int, int]
    """Rows and columns of the token grid."""
    heads: tuple[int, ...]
    tokens: tuple[int, ...] = field(repr=False)
    """The query tokens, in the order of the maps."""
    layers: tuple[AttentionLayer, ...]
    x_t: Array = field(repr=False)
    """The noisy image."""
    prediction: Array = field(repr=False)
    """What the network makes of it."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Attention:
        """From the server's answer, with its `.npz` inside."""
        found, _ = _files.arrays(base64.b64decode(told["b64_json"]))
        layers = (
            AttentionLayer(
                layer=layer["layer"], window=None if layer["window"] == "global" else int(layer["window"]),
                heads=found.get(f"layer.{layer['layer']}.heads"), mean=found.get(f"layer.{layer['layer']}.mean"),
                locality=Locality.of(layer["locality"]),
                locality_by_head=tuple(map(Locality.of, layer["locality_by_head"])),
            )
            for layer in told["layers"]
        )
        height, width = told["grid"]
        return cls(told["about"], (height, width), tuple(told["heads"]), tuple(told["tokens"]), tuple(layers),
                   found["x_t"], found["prediction"])


@dataclass(frozen=True)
class Whole:
    """What only the whole matrix tells."""

    norm: float
    """The Frobenius norm."""
    asymmetry: float
    """`|J - Jᵀ| / |J|`: 0 of a symmetric matrix, as that of an ideal denoiser is."""
    eigenvalues: Array = field(repr=False)
    """Of the symmetric part, the largest first."""
    eigenvectors: Array = field(repr=False)
    """`[k, channels, height, width]`: the first `k`."""
    harmonicity: Array = field(repr=False)
    """How harmonic each of those is."""
    band: Array = field(repr=False)
    matrix: Array | None = field(repr=False)
    """The Jacobian itself, where it was asked for: a row is what one value of the estimate makes of every value of the image."""


@dataclass(frozen=True)
class Jacobian:
    """What a network makes of small changes of a noisy image."""

    about: Mapping[str, Any]
    """What was looked at, and what was differentiated."""
    dimension: int
    singular_values: Array = field(repr=False)
    """The largest first: all of them, or `k`, of which the first `converged` are the largest."""
    right: Array = field(repr=False)
    """`[k, channels, height, width]`: directions of the image."""
    left: Array = field(repr=False)
    """The same of the estimate."""
    harmonicity: Array = field(repr=False)
    """`[k]`: the share of a direction's energy that is in its leading ring of frequencies. 1 of a wave, little of noise."""
    band: Array = field(repr=False)
    """`[k]`: that ring, in cycles along the image."""
    residuals: Array | None = field(repr=False)
    """Of `top-k`: within what distance of each there is a singular value of the matrix, which beyond the first `converged` need
    not be the one of that rank."""
    converged: int | None
    """Of `top-k`: the first so many are as exact as was asked."""
    iterations: int | None
    whole: Whole | None
    """Of `full`."""
    x_t: Array = field(repr=False)
    """The noisy image."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Jacobian:
        """From the server's answer, with its `.npz` inside."""
        found, _ = _files.arrays(base64.b64decode(told["b64_json"]))
        whole = told["whole"]
        return cls(
            about=told["about"], dimension=told["dimension"], singular_values=np.array(told["singular_values"]),
            right=found["right"], left=found["left"], harmonicity=_shares(told), band=_bands(told),
            residuals=None if told["residuals"] is None else np.array(told["residuals"]),
            converged=told["converged"], iterations=told["iterations"], x_t=found["x_t"],
            whole=None if whole is None else Whole(
                whole["norm"], whole["asymmetry"], np.array(whole["eigenvalues"]), found["eigenvectors"],
                _shares(whole), _bands(whole), found.get("jacobian"),
            ),
        )


@dataclass(frozen=True)
class PsnrCurve:
    """How well one set of images is restored, in dB."""

    images: int
    mean: float
    interval: tuple[float, float]
    """Where the mean lies, with 95 % confidence over the images."""
    curve: Array = field(repr=False)
    """Per timestep."""
    intervals: Array = field(repr=False)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> PsnrCurve:
        """From the server's object."""
        return cls(told["images"], told["mean"], _pair(told["interval"]), np.array(told["curve"]),
                   np.array(told["intervals"]))


@dataclass(frozen=True)
class PsnrGap:
    """How much better a model restores what it was trained on: the more, the more it remembers.

    Of one set alone there is `psnr`, and no gap.
    """

    about: Mapping[str, Any]
    timesteps: Array = field(repr=False)
    gap: float | None
    """In dB, as in the paper: at each timestep clipped at 0, and the mean of that."""
    interval: tuple[float, float] | None
    """Its own, which cannot tell whether there is a gap at all: it is never below 0."""
    unclipped: float | None
    """The same without clipping."""
    unclipped_interval: tuple[float, float] | None
    """Where it reaches down to 0 no gap was seen."""
    curve: Array | None = field(repr=False)
    """Per timestep."""
    train: PsnrCurve | None = field(repr=False)
    test: PsnrCurve | None = field(repr=False)
    psnr: PsnrCurve | None = field(repr=False)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> PsnrGap:
        """From the server's answer."""
        gap = told["gap"]
        if gap is None:
            alone = told["psnr"]
            return cls(told["about"], np.array(alone["timesteps"]), None, None, None, None, None, None, None,
                       PsnrCurve.of(alone))
        return cls(
            told["about"], np.array(gap["timesteps"]), gap["gap"], _pair(gap["interval"]), gap["unclipped"],
            _pair(gap["unclipped_interval"]), np.array(gap["curve"]), PsnrCurve.of(gap["train"]),
            PsnrCurve.of(gap["test"]), None,
        )


def _pair(told: Sequence[float]) -> tuple[float, float]:
    low, high = told
    return low, high


def _shares(told: Mapping[str, Any]) -> Array:
    return np.array([one["share"] for one in told["harmonicity"]])


def _bands(told: Mapping[str, Any]) -> Array:
    return np.array([one["band"] for one in told["harmonicity"]])
