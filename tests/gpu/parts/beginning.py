"""What comes first: the card by itself, and the way of a model on it, once and quickly."""

import json
import pathlib
import tempfile

from harness import measurement, nvidia_smi
from .part import part


@part("card", 1)
def card(run):
    """What card it is, its clocks as found, and how many matrix products a second it can do at all."""
    fields = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
    rates = {line["dtype"]: line["flops"] for line in run.peer("rates")}
    found = [measurement(f"matrix products in {name}", rate / 1e12, "TFLOP/s") for name, rate in rates.items()]
    return {"measurements": found, "card": nvidia_smi(*fields), "rates": rates}


@part("smoke", 1)
def smoke(run):
    """The way of a model on this device: some steps, more from the checkpoint, samples, a package."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=run.work))
    changes = {"train.log_every": 10, "train.checkpoint_every": 20, "optim.warmup": 10, "optim.cooldown": 10}
    recipe = run.recipe("toy", changes)
    words = ["train", recipe, "--run", folder / "run", *run.on()]
    # A run goes on as it began, and has as many steps before it as at the end: the first is stopped by the clock.
    steps = "40" if run.cpu else "400"
    reached = []
    for how in (["--minutes", "0.01"], ["--resume"]):
        run.trainer(*words, "--steps", steps, *how)
        log = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
        reached.append(log[-1]["step"])
    assert 0 < reached[0] < reached[1] == int(steps), f"steps {reached}: it was to stop on the way, and to go on"
    run.trainer("sample", folder / "run", "--out", folder / "samples.png", "--per-class", "2", *run.on())
    run.trainer("export", folder / "run", "--out", folder / "toy")
    found = [measurement(f"loss after {steps} steps", log[-1]["loss"], "")]
    if run.env.get("ORT_DYLIB_PATH"):
        checked = run.lines(run.program("windowpane"), *run.on(), "check", folder / "toy", "--json")[0]
        assert checked["ok"], checked
        found.append(measurement("golden of the package", checked["engine"]["golden"]["relative_error"], "relative"))
    return {"measurements": found, "log": log}
