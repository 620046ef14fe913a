"""What the examples share: their flags, the image they look at, and colours that people know from the paper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from windowpane import Client, Model

FRAMES = {1: ["0.5"], 3: ["tab:red", "tab:green", "tab:blue"]}
"""The frame of each channel's picture."""


def parser(text: str | None, out: str, timestep: float) -> argparse.ArgumentParser:
    """The flags of every example."""
    flags = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--url", default="http://localhost:8080", help="where the server is (%(default)s)")
    flags.add_argument("--api-key", help="a key of the role `analyse`, where there are keys")
    flags.add_argument("--model", nargs="+", default=["fashion-dit"], help="models, beside each other (%(default)s)")
    flags.add_argument("--out", type=Path, default=Path(out), help="the picture to write (%(default)s)")
    flags.add_argument("--image", type=Path, help="a picture to look at; unless given, one that the model draws")
    flags.add_argument("--prompt", help="the class of the picture; the model's first unless given")
    flags.add_argument("--seed", type=int, default=7, help="of the picture and of its noise (%(default)s)")
    flags.add_argument("--timestep", type=float, default=timestep, help="how noisy it is made (%(default)s)")
    flags.add_argument("--server", action="store_true", help="take the server's own picture; needs no matplotlib")
    return flags


def subject(client: Client, model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """What is looked at, as the client's methods take it: a clean picture, which the server makes noisy."""
    prompt = args.prompt or (model.classes[0].name if model.classes else None)
    image = args.image or client.generate(model.id, prompt=prompt, seed=args.seed)[0]
    resize = True if args.image else None
    return {"model": model.id, "image": image, "resize": resize, "prompt": prompt, "seed": args.seed,
            "timestep": args.timestep}


def show_direction(axes: Any, vector: np.ndarray, channel: int) -> None:
    """One channel of a direction: blue is less, red more, white nothing; the colours are those of all its channels."""
    most = float(np.abs(vector).max()) or 1.0
    axes.imshow(vector[channel], cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(FRAMES.get(len(vector), ["0.5"] * len(vector))[channel])
        side.set_linewidth(1.5 if len(vector) > 1 else 0.8)


def show_picture(axes: Any, values: np.ndarray, title: str) -> None:
    """An image in the model's values, grey or in colour."""
    low, high = float(values.min()), float(values.max())
    shown = (np.moveaxis(values, 0, -1) - low) / ((high - low) or 1.0)
    axes.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
