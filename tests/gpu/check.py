"""Everything that is said of GPUs, measured on one. A list of parts, each of which fits into ten minutes; what is done is not
done again, so that the list goes on where it stopped.

    cargo xtask gpu-check --data DIR           # builds, and runs this on what was built
    python3 tests/gpu/check.py --binaries DIR  # the same where there is no cargo

Takes a Python with torch 2.11 and onnx, the programs that `cargo xtask gpu-check --pack DIR` collects, for ONNX Runtime its
library for CUDA (ORT_DYLIB_PATH), and for faces and fashion Parquet folders `fairface32` and `fashion_mnist` under --data.
Results lie in the run folder: `run.json`, `report.md`, and every part's own `parts/PART.json`. With `--small --device cpu` the
whole list runs on a CPU within minutes; its numbers mean nothing.
"""

import argparse
import pathlib
import sys

from harness import ROOT, Run
from parts import GROUPS, PARTS


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binaries", type=pathlib.Path, default=ROOT / "target/gpu", help="folder of the programs")
    options.add_argument("--out", type=pathlib.Path, help="run folder; what is in it is done already")
    options.add_argument("--work", type=pathlib.Path, default=ROOT / "target/gpu-work", help="folder of runs and packages")
    options.add_argument("--data", type=pathlib.Path, help="folder with fairface32/ and fashion_mnist/")
    options.add_argument("--from", dest="before", type=pathlib.Path, metavar="DIR", help="packages/ of an earlier run: what is trained begins with them")
    options.add_argument("--parts", default="all", help=f"of {', '.join([*GROUPS, *PARTS])}")
    options.add_argument("--minutes", type=float, default=9.5, help="begin no part that would not end within so many")
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options.add_argument("--small", action="store_true", help="toy sizes, to see that it works")
    options.add_argument("--again", action="store_true", help="also do again what is done")
    options.add_argument("--list", action="store_true", help="say what the parts are, and what is done")
    return Run(options.parse_args(), PARTS, GROUPS).go()


if __name__ == "__main__":
    sys.exit(main())
