"""Parts that train from recipes of the repository: the models that are shipped, and PSNR gaps of few faces."""

import json
import statistics
import tomllib

from harness import at_most, measurement
from .part import part

# A recipe that is over in a moment.
SHORT = {"train.steps": 20, "train.sample_every": 0, "optim.warmup": 5, "optim.cooldown": 5}


def shipped(name, data):
    def train(run):
        folder = run.work / "runs" / f"{'small-' if run.small else ''}{name}"
        out = run.out / "packages" / name
        images = [] if run.small else ["--data", run.images(data)]
        seed, begin = beginning(run, folder, name)
        recipe = run.recipe("toy", {**SHORT, **seed}) if run.small else run.recipe(name, seed)
        minutes = 5 if run.small else max(run.minutes_left() - 3, 1)
        said = run.trainer("train", recipe, "--run", folder, *images, "--minutes", f"{minutes:.2f}", *run.on(), *begin)
        done = "finished" in said
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        found = [
            measurement("steps", log[-1]["step"], ""),
            measurement("loss", log[-1]["loss"], ""),
            measurement("speed", statistics.median(line["images_per_second"] for line in log[1:] or log), "images/s"),
        ]
        if not done:
            print(f"  step {log[-1]['step']}; the same command goes on", flush=True)
        # Whether it is done or not: where the next run cannot go on from the checkpoints, this is what there is.
        if not run.small:
            more, _ = gaps_of(run, folder, images, name)
            found += more
        run.trainer("export", folder, "--out", out, "--force")
        run.trainer("sample", folder, "--out", out.parent / f"{name}.png", *run.on())
        lineage = json.loads((out / "manifest.json").read_text())["lineage"]
        found.append(measurement("steps behind the weights it began with", lineage["metrics"].get("steps_before", 0), ""))
        found.append(at_most("package", sum(file.stat().st_size for file in out.iterdir()) / 1e6, 30, "MB"))
        # Beside the package, which holds what its manifest lists and nothing else.
        pieces(out / "weights.bin", out.parent / f"{name}.pieces")
        return {"measurements": found, "finished": done}

    train.__doc__ = f"Trains `{name}` from its recipe for as long as there is time, and exports what it has come to."
    return train


def beginning(run, folder, name):
    """How a run begins: its seed, where that is not the recipe's, and flags. It goes on as it began; and weights of an earlier one
    are not shown its images in the same order, with the same noise, once more."""
    if (folder / "checkpoints").is_dir():
        seed = tomllib.loads((folder / "recipe.toml").read_text())["train"]["seed"]
        return {"train.seed": seed}, ["--resume"]
    package = run.before(name)
    if not package:
        return {}, []
    return {"train.seed": json.loads((package / "manifest.json").read_text())["lineage"]["seed"] + 1}, ["--from", package]


def pieces(path, folder, size=15 << 20):
    """A large file also in pieces, which `cat` makes whole."""
    data = path.read_bytes()
    folder.mkdir(exist_ok=True)
    for number in range(0, len(data), size) if len(data) > size else ():
        (folder / f"{path.name}.{number // size:02}").write_bytes(data[number : number + size])


part("fashion-dit", 4)(shipped("fashion-dit-2", "fashion_mnist"))
part("faces-dit", 9)(shipped("faces-dit", "fairface32"))
part("faces-dit-global", 9)(shipped("faces-dit-global", "fairface32"))


def gap_of(seed):
    def gap(run):
        images = [] if run.small else ["--data", run.images("fairface32")]
        found, whole, done = [], {}, True
        each = 5 if run.small else max((run.minutes_left() - 3.5) / 3, 0.5)
        for windows in ("global", "local", "local*"):
            if run.small:
                changes = {**SHORT, "train.seed": seed, "model.windows": "global" if windows == "global" else "3,3"}
                recipe = run.recipe("toy", changes)
            else:
                recipe = run.recipe("faces-gap", {"model.windows": windows, "train.seed": seed})
            folder = run.work / "runs" / f"{'small-' if run.small else ''}gap-{seed}-{windows.replace('*', '-star')}"
            resume = ["--resume"] if (folder / "checkpoints").is_dir() else []
            said = run.trainer("train", recipe, "--run", folder, *images, "--minutes", f"{each:.2f}", *run.on(), *resume)
            done = done and "finished" in said
            count = ["--images", "20", "--timesteps", "5"] if run.small else []
            more, gaps = gaps_of(run, folder, [*images, *count], f"{windows}, seed {seed}")
            found += more
            whole.update(gaps)
        return {"measurements": found, "gaps": whole, "finished": done}

    gap.__doc__ = (
        f"The paper's first claim, small, seed {seed}: PSNR gaps of 1,000 faces, global, `local` and `local*` with the same images "
        "and steps. Where intervals overlap, nothing is resolved."
    )
    return gap


def gaps_of(run, folder, flags, name):
    """PSNR gaps of a run's raw and averaged weights, those last: a package's card tells of them."""
    found, whole = [], {}
    for raw in (["--raw"], []):
        run.trainer("eval", folder, *flags, *raw, *run.on())
        told = json.loads((folder / "eval.json").read_text())
        which = f"{name}, {'raw' if raw else 'averaged'} weights, step {told['step']}"
        whole[which] = told["psnr_gap"]
        low, high = told["psnr_gap"]["unclipped_interval"]
        text = f"PSNR gap of {which}; unclipped {told['psnr_gap']['unclipped']:.3f}, interval {low:.3f} to {high:.3f}"
        found.append(measurement(text, told["psnr_gap"]["gap"], "dB"))
    return found, whole


part("gap", 9)(gap_of(1))
part("gap-seed-2", 9)(gap_of(2))
