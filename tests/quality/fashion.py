"""Are the pictures of fashion-dit what they are asked to be?

An RBF support vector classifier is trained on the real images (it never sees ours; it names 0.89 of the real test
images right), then names ten samples of every class. Asks a running server with the package's own defaults, or reads
a folder `CLASS/SEED.png` as `cargo xtask sample --each` writes it. Also compares how much the samples of a class
differ: their mean pairwise distance against that of real images.

    pip install numpy scikit-learn pyarrow pillow
    python tests/quality/fashion.py --data DIR_OF_PARQUET --server http://localhost:8080
"""

import argparse
import io
import itertools
import json
import pathlib
import sys
import urllib.request

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from sklearn.svm import SVC

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def pixels(png):
    image = Image.open(io.BytesIO(png))
    assert image.mode == "L" and image.size == (28, 28), (image.mode, image.size)
    return np.asarray(image, dtype=np.float64).ravel() / 255


def real(folder, side):
    table = pq.read_table(next(pathlib.Path(folder).glob(f"{side}-*.parquet"))).to_pydict()
    return np.stack([pixels(row["bytes"]) for row in table["image"]]), np.array(table["label"])


def from_server(url, model, name, seed):
    body = json.dumps({"model": model, "prompt": name, "seed": seed}).encode()
    headers = {"content-type": "application/json", "accept": "image/png"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/images/generations", body, headers)) as answer:
        return answer.read()


def mean_distance(images):
    return np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(images, 2)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train-*.parquet and test-*.parquet")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--server", help="a running server, e.g. http://localhost:8080")
    source.add_argument("--images", help="a folder CLASS/SEED.png")
    parser.add_argument("--model", default="fashion-dit")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="with --server")
    parser.add_argument("--at-least", type=float, default=0.78, help="share of right names to pass")
    args = parser.parse_args()

    x, y = real(args.data, "train")
    classifier = SVC(C=10, gamma="scale").fit(x, y)
    held_x, held_y = real(args.data, "test")
    print(f"classifier: {classifier.score(held_x, held_y):.3f} of {len(held_y)} real test images named right")

    right, ratios = 0, []
    for label, name in enumerate(NAMES):
        if args.server:
            seeds = range(args.first_seed, args.first_seed + args.per_class)
            pngs = [from_server(args.server, args.model, name, seed) for seed in seeds]
        else:
            files = sorted(pathlib.Path(args.images, name).glob("*.png"), key=lambda p: int(p.stem))
            pngs = [file.read_bytes() for file in files[: args.per_class]]
        images = np.stack([pixels(png) for png in pngs])
        named = classifier.predict(images)
        right += int((named == label).sum())
        ratios.append(mean_distance(images) / mean_distance(x[y == label][:100]))
        print(f"{name:12} {int((named == label).sum()):3}/{len(named)}  spread {ratios[-1]:.2f}  "
              f"{' '.join(NAMES[n] for n in named if n != label)}")
    share = right / (len(NAMES) * args.per_class)
    print(f"{right} of {len(NAMES) * args.per_class} named right; least spread {min(ratios):.2f} of real images'")
    return 0 if share >= args.at_least and min(ratios) >= 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
