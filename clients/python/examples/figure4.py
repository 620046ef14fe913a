"""Draws Figure 4 of An et al. (arXiv 2410.21273) for a model that is served: what each of its layers attends to.

    python figure4.py --url http://localhost:8080 --model fashion-dit --out figure4.png

Above, the map of each layer: row q is what token q attends to, the mean over the heads, normalised to [0, 1]; the colours
cover [0, 0.1], as the paper's of 1,024 tokens; where there are few tokens, each has more, and the colours cover [0, 0.5]. The inset is its centre. Below, one token's row as the token grid, with the
layer's window (of a global layer the 3 × 3 tokens around it) in a box. With more training data attention becomes more local,
says the paper: the bands around the diagonal narrow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import parser, subject

from windowpane import AttentionLayer, Client


MANY = 256
"""Tokens from which on the paper's colours show something."""


def normalised(values: np.ndarray) -> np.ndarray:
    """From 0 to 1."""
    low, high = values.min(), values.max()
    return np.asarray((values - low) / ((high - low) or 1.0))


def draw_map(axes: Any, values: np.ndarray, full: float) -> Any:
    """A map over all tokens, its centre enlarged in the corner."""
    from matplotlib.patches import Rectangle

    count = len(values)
    shown = min(max(count // 8, 6), count)
    first = (count - shown) // 2
    drawn = axes.imshow(values, cmap="PuBu", vmin=0, vmax=full, interpolation="antialiased")
    axes.add_patch(Rectangle((first - 0.5, first - 0.5), shown, shown, fill=False, edgecolor="0.2", linewidth=0.8))
    inset = axes.inset_axes([0.6, 0.6, 0.39, 0.39])
    inset.imshow(values[first:first + shown, first:first + shown], cmap="PuBu", vmin=0, vmax=full,
                 interpolation="nearest")
    for one in [axes, inset]:
        one.set_xticks([])
        one.set_yticks([])
    return drawn


def draw_row(axes: Any, layer: AttentionLayer, row: np.ndarray, token: int, full: float) -> None:
    """A token's row as the token grid, its neighbourhood in a box."""
    from matplotlib.patches import Rectangle

    height, width = row.shape
    down, across = divmod(token, width)
    reach = (layer.window or 3) // 2
    top, left = max(down - reach, 0), max(across - reach, 0)
    size = (min(across + reach + 1, width) - left, min(down + reach + 1, height) - top)
    axes.imshow(row, cmap="PuBu", vmin=0, vmax=full, interpolation="nearest")
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor="tab:orange", linewidth=1.5))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"distance {layer.locality.distance:.2f}", fontsize=8)


def main() -> None:
    flags = parser(__doc__, "figure4.png", 500)
    flags.add_argument("--layers", type=int, nargs="+", help="the layers, from 0; all unless given")
    flags.add_argument("--token", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="the token below; the middle one")
    flags.add_argument("--full", type=float, help=f"where the colours end (0.1, and 0.5 of less than {MANY} tokens)")
    args = flags.parse_args()
    with Client(args.url, args.api_key, retries=5) as client:
        if args.server:
            model = client.model(args.model[0])
            tokens = [tuple(args.token)] if args.token else None
            picture = client.draw_attention(**subject(client, model, args), layers=args.layers, tokens=tokens,
                                            full=args.full)
            args.out.write_bytes(picture)
            print(f"{args.out}: the server's picture of {model.id}'s attention")
            return

        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        looks = [client.attention(**subject(client, client.model(name), args), layers=args.layers, maps="mean")
                 for name in args.model]
        columns = max(len(look.layers) for look in looks)
        figure = plt.figure(figsize=(1.95 * columns + 0.6, 4.6 * len(looks)), layout="constrained")
        for look, part in zip(looks, figure.subfigures(len(looks), 1, squeeze=False)[:, 0]):
            height, width = look.grid
            full = args.full or (0.1 if height * width >= MANY else 0.5)
            down, across = args.token or (height // 2, width // 2)
            token = look.tokens.index(down * width + across)
            axes = part.subplots(2, columns, squeeze=False)
            for spare in axes[:, len(look.layers):].ravel():
                spare.axis("off")
            drawn = None
            for layer, (above, below) in zip(look.layers, axes.T):
                assert layer.mean is not None
                values = normalised(layer.mean.reshape(len(look.tokens), -1))
                drawn = draw_map(above, values, full)
                draw_row(below, layer, values[token].reshape(height, width), look.tokens[token], full)
                window = "global" if layer.window is None else f"{layer.window}×{layer.window}"
                above.set_title(f"layer {layer.layer}, {window}", fontsize=9)
            part.colorbar(drawn, ax=axes, shrink=0.6, label="normalised attention", pad=0.01)
            part.suptitle(f"{look.about['model']}: attention at t = {look.about['timestep']:g}, and that of token "
                          f"({down}, {across})", fontsize=11)
            distances = ", ".join(f"{layer.locality.distance:.2f}" for layer in look.layers)
            print(f"{look.about['model']}: {len(look.layers)} layers of {height}×{width} tokens; mean distance {distances}")
        figure.savefig(args.out, dpi=150)
        print(args.out)


if __name__ == "__main__":
    main()
