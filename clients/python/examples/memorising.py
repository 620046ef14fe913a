"""Is a model that is served memorising? Four looks, from an image to an answer; docs/memorising.md reads them with you.

    python memorising.py --model fashion-dit --train train.npy --test test.npy

`train.npy` holds images that the model was trained on, `test.npy` images of the same kind that it never saw: uint8
`[n, height, width]` or `[n, height, width, 3]`, in a random order. `--train-labels` and `--test-labels` are `.npy` of their
classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from windowpane import ApiError, Client, Model


def values(pixels: np.ndarray) -> np.ndarray:
    """Pixels from -1 to 1, an image a row."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance of each image from the nearest of the others: root mean square over its values."""
    squares = (images**2).sum(1)[:, None] + (others**2).sum(1)[None, :] - 2 * images @ others.T
    return np.asarray(np.sqrt(np.maximum(squares.min(1), 0) / images.shape[1]))


def told(name: str, numbers: np.ndarray) -> str:
    return f"  {name:34} {np.median(numbers):.3f} in the median, {numbers.min():.3f} the least"


def nearest_images(client: Client, model: Model, train: np.ndarray, test: np.ndarray, count: int) -> None:
    """Looks at what it draws, and why that does not tell much."""
    drawn = []
    for one in model.classes or [None]:
        images = client.generate(model.id, class_=one.index if one else None, n=2, seed=1, output="arrays")
        drawn += [image.array.ravel() for image in images if image.array is not None]
    everything, held_out, sample = values(train), values(test[:count]), values(train[:count])
    moved = values(np.roll(train[:count], 1, axis=2))
    print(f"1. The nearest of {len(train):,} training images")
    print(told(f"{len(drawn)} images drawn", nearest(np.array(drawn), everything)))
    print(told(f"{len(held_out)} images held out", nearest(held_out, everything)))
    print(told(f"{len(sample)} training images, themselves", nearest(sample, everything)))
    print(told("the same, one pixel to the right", nearest(moved, everything)))


def gap(client: Client, model: Model, train: np.ndarray, test: np.ndarray, labels: list[list[int] | None]) -> None:
    """Restores images it knows and images it does not."""
    print("2. The PSNR gap")
    try:
        found = client.psnr_gap(model.id, train=train, test=test, train_labels=labels[0], test_labels=labels[1],
                                images=len(train), seed=1)
    except ApiError as error:
        if error.code != "not_found":
            raise
        metrics = model.lineage["metrics"]
        if not {"psnr_gap_db", "psnr_train_db", "psnr_test_db"} <= metrics.keys():
            print("  measured neither by this server nor by the model's trainer")
            return
        seen, unseen = metrics["psnr_train_db"], metrics["psnr_test_db"]
        print(f"  {seen - unseen:.2f} dB, says its trainer, and not how sure that is (this server does not measure it): "
              f"{seen:.2f} of training images, {unseen:.2f} of others")
        print(f"  {metrics['psnr_gap_db']:.2f} dB as the paper has it, clipped at 0 at each timestep")
        return
    assert found.train is not None and found.test is not None
    assert found.interval is not None and found.unclipped_interval is not None
    (low, high), (least, most) = found.unclipped_interval, found.interval
    print(f"  {found.unclipped:.2f} dB ({low:.2f} to {high:.2f}): {found.train.mean:.2f} of training images, "
          f"{found.test.mean:.2f} of others; {'a gap' if low > 0 else 'no gap was seen'}")
    print(f"  {found.gap:.2f} dB ({least:.2f} to {most:.2f}) as the paper has it, clipped at 0 at each timestep")


def spectra(client: Client, model: Model, sets: dict[str, tuple[np.ndarray, list[int] | None]], timestep: float) -> None:
    """Takes the derivative apart at images it knows and images it does not."""
    print(f"3. The Jacobian at t = {timestep:g}")
    for name, (images, labels) in sets.items():
        looks = [client.jacobian(model.id, image=image, class_=labels[i] if labels else None, seed=i, timestep=timestep,
                                 method="full", k=64) for i, image in enumerate(images)]
        largest = np.mean([look.singular_values[0] for look in looks])
        directions = np.mean([np.sum(look.singular_values > look.singular_values[0] / 10) for look in looks])
        harmonic = np.mean([np.median(look.harmonicity) for look in looks])
        asymmetry = np.mean([look.whole.asymmetry for look in looks if look.whole is not None])
        print(f"  {len(looks)} {name:16} largest {largest:.3f}, {directions:.0f} of {looks[0].dimension} above a tenth of "
              f"it, harmonicity {harmonic:.2f}, asymmetry {asymmetry:.2f}")


def locality(client: Client, model: Model, images: np.ndarray, labels: list[int] | None, timestep: float) -> None:
    """Measures how far its layers look."""
    looks = [client.attention(model.id, image=image, class_=labels[i] if labels else None, seed=i, timestep=timestep,
                              maps="none") for i, image in enumerate(images)]
    height, width = looks[0].grid
    rows, columns = (axis.ravel() for axis in np.mgrid[:height, :width])
    even = np.mean(np.hypot(rows[:, None] - rows, columns[:, None] - columns))
    print(f"4. Attention at t = {timestep:g}; {even:.2f} tokens away if it were the same everywhere")
    for layer in range(len(looks[0].layers)):
        these = [look.layers[layer] for look in looks]
        window = "global" if these[0].window is None else f"{these[0].window}×{these[0].window}"
        distance = np.mean([one.locality.distance for one in these])
        near = np.mean([one.locality.within.get(3, 1.0) for one in these])
        print(f"  layer {layer}, {window:7} {distance:.2f} tokens away, {near:.0%} within 3×3")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--url", default="http://localhost:8080")
    flags.add_argument("--api-key")
    flags.add_argument("--model", default="fashion-dit")
    flags.add_argument("--train", type=Path, required=True)
    flags.add_argument("--test", type=Path, required=True)
    flags.add_argument("--train-labels", type=Path)
    flags.add_argument("--test-labels", type=Path)
    flags.add_argument("--first", type=int, help="the model was trained on the first so many of TRAIN (all of them)")
    flags.add_argument("--images", type=int, default=300, help="of each set, for the PSNR gap (%(default)s)")
    flags.add_argument("--looks", type=int, default=4, help="of each set, for the others (%(default)s)")
    args = flags.parse_args()
    train, test = np.load(args.train)[:args.first], np.load(args.test)
    paths = [args.train_labels, args.test_labels]
    labels = [None if path is None else np.load(path).tolist() for path in paths]
    few, many = args.looks, min(args.images, len(train), len(test))
    with Client(args.url, args.api_key, retries=5) as client:
        model = client.model(args.model)
        nearest_images(client, model, train, test, many)
        gap(client, model, train[:many], test[:many], [one[:many] if one else None for one in labels])
        spectra(client, model, {"training images": (train[:few], labels[0]), "images held out": (test[:few], labels[1])},
                250)
        locality(client, model, test[:few], labels[1], 500)


if __name__ == "__main__":
    main()
