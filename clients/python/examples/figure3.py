"""Draws Figure 3 of An et al. (arXiv 2410.21273) for models that are served: the spectrum of the denoiser's Jacobian, and the
directions of its eigenvalues 0 and 112.

    python figure3.py --url http://localhost:8080 --model fashion-dit tiny --out figure3.png

A UNet that has seen ten images has a few huge eigenvalues, whose directions look like those images; one that has seen 10⁵
has a spectrum that falls slowly, and waves. The paper's DiTs have sparse, speckled directions either way. To see the
difference that data makes, serve two packages that were trained on different amounts of it and name both.
"""

from __future__ import annotations

import numpy as np
from common import parser, show_direction, show_picture, subject

from windowpane import Client

MARKED = [0, 112]


def main() -> None:
    flags = parser(__doc__, "figure3.png", 250)
    flags.add_argument("--of", choices=["x0", "eps", "v"], help="what is differentiated (x0, the clean estimate)")
    args = flags.parse_args()
    with Client(args.url, args.api_key, retries=5) as client:
        if args.server:
            model = client.model(args.model[0])
            picture = client.draw_jacobian(**subject(client, model, args), of=args.of, method="full",
                                           k=MARKED[-1] + 1, vectors="eigen", show=MARKED)
            args.out.write_bytes(picture)
            print(f"{args.out}: the server's sheet of eigenvectors {MARKED} of {model.id}")
            return

        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        models = [client.model(name) for name in args.model]
        figure = plt.figure(figsize=(5.2 * len(models), 3.6 + 1.7 * max(model.channels for model in models)),
                            layout="constrained")
        for model, part in zip(models, figure.subfigures(1, len(models), squeeze=False)[0]):
            look = client.jacobian(**subject(client, model, args), of=args.of, method="full", k=MARKED[-1] + 1)
            assert look.whole is not None
            values, vectors = look.whole.eigenvalues, look.whole.eigenvectors
            upper, lower = part.subfigures(2, 1, height_ratios=[2.4, 0.2 + 1.2 * model.channels])
            plot = upper.subplots()
            plot.plot(values, color="tab:blue", linewidth=1.5, label="eigenvalues of $(J+J^T)/2$")
            plot.plot(look.singular_values, color="tab:orange", linewidth=1, linestyle="--", label="singular values")
            for number, above in zip(MARKED, [8, -2]):
                plot.plot(number, values[number], "o", color="tab:blue", markersize=5)
                plot.annotate(f"$\\lambda_{{{number}}}$ = {values[number]:.3f}", (number, values[number]), fontsize=9,
                              xytext=(8, above), textcoords="offset points")
            plot.set(xlabel="k", ylabel="$\\lambda_k$", xlim=(-0.02 * len(values), len(values)),
                     title=f"{model.id}, {model.lineage['images']:,} images")
            plot.legend(fontsize=8, frameon=False)
            plot.spines[["top", "right"]].set_visible(False)
            axes = lower.subplots(model.channels, 1 + len(MARKED), squeeze=False)
            for spare in axes[1:, 0]:
                spare.axis("off")
            show_picture(axes[0, 0], look.x_t, f"noisy image, t = {look.about['timestep']:g}")
            for column, number in enumerate(MARKED, 1):
                for channel in range(model.channels):
                    show_direction(axes[channel, column], vectors[number], channel)
                axes[0, column].set_title(f"eigenvector {number}", fontsize=9)
            energy = np.cumsum(look.singular_values**2) / np.sum(look.singular_values**2)
            print(f"{model.id}: {len(values)} eigenvalues from {values[0]:.3f} to {values[-1]:.3f}; half of |J|² is in the "
                  f"first {int(np.searchsorted(energy, 0.5)) + 1} singular values; asymmetry {look.whole.asymmetry:.3f}")
        figure.savefig(args.out, dpi=150)
        print(args.out)


if __name__ == "__main__":
    main()
