"""Draws Figure 1 of An et al. (arXiv 2410.21273) for models that are served: directions of the denoiser's Jacobian.

    python figure1.py --url http://localhost:8080 --model fashion-dit tiny --out figure1.png

The denoisers of Kadkhodaie et al. (arXiv 2310.02557), which are UNets, have harmonic bases: directions that are waves along an
image's contours and within its even regions. The paper finds none in a DiT. A row of pictures is a model's directions 0,
112 and 224, as the paper's, and some before them, with the channels apart; below it is how harmonic each of its directions
is: the share of a direction's energy in its leading ring of frequencies. Of noise that is the grey line, of a wave 1.
"""

from __future__ import annotations

import numpy as np
from common import parser, show_direction, show_picture, subject

from windowpane import Client

SHOWN = [0, 1, 2, 4, 8, 28, 56, 112, 224]


def share(direction: np.ndarray) -> float:
    """The share of the energy in the leading ring of frequencies, as the server's `harmonicity` has it."""
    channels, height, width = direction.shape
    energy = (np.abs(np.fft.fft2(direction)) ** 2).sum(0)
    longer = max(height, width)
    down, across = np.fft.fftfreq(height) * longer, np.fft.fftfreq(width) * longer
    ring = np.rint(np.hypot(down[:, None], across[None, :])).astype(int)
    return float(np.bincount(ring.ravel(), energy.ravel()).max() / energy.sum())


def main() -> None:
    flags = parser(__doc__, "figure1.png", 250)
    flags.add_argument("--of", choices=["x0", "eps", "v"], help="what is differentiated (x0, the clean estimate)")
    flags.add_argument("--vectors", choices=["eigen", "right"], default="eigen",
                       help="eigenvectors of the symmetric part, or right singular vectors (%(default)s)")
    args = flags.parse_args()
    with Client(args.url, args.api_key, retries=5) as client:
        if args.server:
            model = client.model(args.model[0])
            picture = client.draw_jacobian(**subject(client, model, args), of=args.of, method="full", k=SHOWN[-1] + 1,
                                           vectors=args.vectors, show=SHOWN)
            args.out.write_bytes(picture)
            print(f"{args.out}: the server's sheet of directions {SHOWN} of {model.id}")
            return

        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        models = [client.model(name) for name in args.model]
        heights = [ratio for model in models for ratio in (model.channels, 1.1)]
        figure = plt.figure(figsize=(13, 1.6 * sum(heights) + 0.4 * len(models)), layout="constrained")
        parts = figure.subfigures(2 * len(models), 1, squeeze=False, height_ratios=heights)[:, 0]
        for model, pictures, below in zip(models, parts[::2], parts[1::2]):
            about = subject(client, model, args)
            look = client.jacobian(**about, of=args.of, method="full", k=SHOWN[-1] + 1)
            assert look.whole is not None
            if args.vectors == "eigen":
                values, vectors, harmonic = look.whole.eigenvalues, look.whole.eigenvectors, look.whole.harmonicity
            else:
                values, vectors, harmonic = look.singular_values, look.right, look.harmonicity
            letter = "lambda" if args.vectors == "eigen" else "sigma"
            axes = pictures.subplots(model.channels, len(SHOWN) + 1, squeeze=False)
            for spare in axes[1:, 0]:
                spare.axis("off")
            show_picture(axes[0, 0], look.x_t, f"noisy image\nt = {look.about['timestep']:g}")
            for column, number in enumerate(SHOWN, 1):
                for channel in range(model.channels):
                    show_direction(axes[channel, column], vectors[number], channel)
                axes[0, column].set_title(f"$\\{letter}_{{{number}}}$ = {values[number]:.3f}", fontsize=9)
            what = "eigenvectors" if args.vectors == "eigen" else "right singular vectors"
            pictures.suptitle(f"{model.id}: {what} of the Jacobian of {look.about['of']}", fontsize=11)
            noise = np.mean([share(np.random.default_rng(i).normal(size=vectors[0].shape)) for i in range(100)])
            plot = below.subplots()
            plot.plot(harmonic, ".", markersize=3, color="tab:blue")
            plot.axhline(noise, color="0.6", linewidth=1)
            plot.annotate("noise", (len(harmonic) + 1, noise), fontsize=8, color="0.4", va="bottom")
            plot.annotate("a wave has 1", (1, 1), xycoords="axes fraction", xytext=(-4, -4), fontsize=8, color="0.4",
                          textcoords="offset points", va="top", ha="right")
            plot.set(ylim=(0, max(0.5, 1.1 * harmonic.max())), xlim=(-2, len(harmonic) + 8), xlabel="direction",
                     ylabel="harmonicity")
            plot.spines[["top", "right"]].set_visible(False)
            print(f"{model.id}: {what} {SHOWN}, values {np.round(values[SHOWN], 3).tolist()}; harmonicity "
                  f"{np.median(harmonic):.3f} in the median, of noise {noise:.3f}")
        figure.savefig(args.out, dpi=150)
        print(args.out)


if __name__ == "__main__":
    main()
