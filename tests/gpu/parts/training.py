"""Parts of the training loop: its speed beside PyTorch's, whether it waits for the device, and what bf16 does to the loss."""

import json
import pathlib
import statistics
import tempfile

from harness import Missing, at_least, measurement
from .part import part, rate

# Turns of what is compared: each side's speed of so many short runs, one after the other.
TURNS = 2


@part("windows", 1)
def windows(run):
    """What a window costs, forward and backward, in every plan: whether the trainer chooses the fastest on this device."""
    text = run.call(run.program("attention_plans"), *(["1"] if run.small else []))
    assert text.startswith("Cpu") == run.cpu, f"it was measured on another device: {text.splitlines()[0]}"
    return {"text": text}


@part("speed", 6)
def speed(run):
    """Images a second of the training loop, tiles and masks, beside a plain loop in PyTorch; and its share of the card's rate."""
    best = 1.0 if run.cpu else rate(run, "bf16")
    if run.small:
        cases = [("DiT-Tiny/4", windows, 8) for windows in ("global", "3,3")]
    else:
        cases = [(model, windows, 128) for model in ("DiT-XS/1", "DiT-S/1") for windows in ("global", "local", "local*")]
        # Where the card's share is to be the largest, at other batches too.
        cases += [("DiT-S/1", "global", batch) for batch in (64, 256)]
    length = ["--stretch", "2" if run.small else "10", "--stretches", "1" if run.small else "2"]
    ours, theirs, flops = {}, {}, {}
    for _ in range(1 if run.small else TURNS):
        texts = [f"{model},{windows},{plan},{batch}" for model, windows, batch in cases for plan in plans(windows)]
        for line in run.lines(run.program("throughput"), *texts, *length, *run.on()):
            key = (line["model"], line["windows"], line["batch"], line["plan"])
            ours.setdefault(key, []).extend(line["images_per_second"])
            flops[key] = 3 * line["forward_flops"]
        texts = [f"{model},{windows},masks,{batch}" for model, windows, batch in cases]
        for how in ("autocast", "bf16"):
            for line in run.peer("train", *texts, "--how", how, *length):
                key = (line["model"], line["windows"], line["batch"], how)
                theirs.setdefault(key, []).extend(line["images_per_second"])
    found, shares = [], []
    for (model, windows, batch, plan), speeds in ours.items():
        name, mine = f"{model} {windows}, batch {batch}, {plan}", statistics.median(speeds)
        peer = max(statistics.median(theirs[model, windows, batch, how]) for how in ("autocast", "bf16"))
        bar = 1.3 if (windows, plan) == ("local*", "tiles") else 1.0 if plan == "tiles" else None
        found.append(measurement(f"training {name}, over eager PyTorch", mine, "images/s", peer, bar))
        if plan == "tiles" and windows != "global":
            masks = statistics.median(ours[model, windows, batch, "masks"])
            found.append(measurement(f"training {name}, over masks", mine, "images/s", masks, 1.0))
        share = mine * flops[model, windows, batch, plan] / best
        found.append(at_least(f"share of the card's bf16 rate, {name}", share, None))
        shares += [share] if (model, windows) == ("DiT-S/1", "global") else []
    if shares:
        found.append(at_least("share of the card's bf16 rate, DiT-S/1 global at its best batch (aim)", max(shares), 0.4))
    return {"measurements": found, "ours": text_keys(ours), "theirs": text_keys(theirs)}


def plans(windows):
    return ["tiles"] if windows == "global" else ["tiles", "masks"]


def text_keys(table):
    return {" ".join(map(str, key)): value for key, value in table.items()}


@part("breakdown", 2)
def breakdown(run):
    """What takes the time of a training step: its passes and the optimiser by themselves, beside what the card needs at its best."""
    best = 1.0 if run.cpu else rate(run, "bf16")
    cases = ["DiT-Tiny/4,global,tiles,8"] if run.small else ["DiT-S/1,global,tiles,128", "DiT-S/1,local*,tiles,128", "DiT-S/1,local*,masks,128"]
    length = ["--stretch", "2" if run.small else "10", "--stretches", "1"]
    lines = ["| network | step, ms | forward | backward | optimiser | the rest | passes at the card's rate |", "| --- " * 7 + "|"]
    found = []
    for line in run.lines(run.program("throughput"), *cases, *length, "--breakdown", *run.on()):
        step = line["batch"] / statistics.median(line["images_per_second"]) * 1e3
        parts = [line["breakdown"][name] for name in ("forward", "backward", "optimiser")]
        least = 3 * line["forward_flops"] * line["batch"] / best * 1e3
        name = f"{line['model']} {line['windows']}, batch {line['batch']}, {line['plan']}"
        cells = [step, *parts, step - sum(parts), *([] if run.cpu else [least])]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |" + (" - |" if run.cpu else ""))
        found.append(measurement(f"a step of {name}; peer: its passes and the optimiser by themselves", step, "ms", sum(parts)))
    return {"measurements": found, "text": "\n".join(lines)}


@part("waits", 1)
def waits(run):
    """Whether the host waits for the device in the steady loop: calls of CUDA that wait, of a longer run less a shorter one."""
    if run.cpu:
        raise Missing("on a CPU nobody waits for a device")
    case = "DiT-Tiny/4,global,tiles,8" if run.small else "DiT-XS/1,global,tiles,64"
    counts = []
    for stretch in (40, 80):
        told = pathlib.Path(tempfile.mkdtemp(dir=run.work)) / "waits"
        env = {"LD_PRELOAD": run.program("waits.so"), "WAITS": str(told)}
        words = [case, "--stretch", str(stretch), "--stretches", "1", *run.on()]
        # The trainer begins anew with CUDA's part of libtorch, and the counter stays with it.
        run.lines(run.program("throughput"), *words, env=env)
        counts.append({line.split()[0]: int(line.split()[1]) for line in told.read_text().splitlines()})
    assert sum(counts[0].values()) > 0, "nothing was counted, and the log alone waits"
    steps = 2 * (80 - 40)
    more = {name: (counts[1][name] - counts[0][name]) / steps for name in counts[0]}
    found = [measurement(f"{name} a step", count, "calls") for name, count in more.items()]
    assert max(more.values()) < 0.05, f"the host waits for the device: {more}"
    return {"measurements": found}


@part("precision", 5)
def precision(run):
    """Whether bf16 learns as f32 does: loss over 2,000 steps, beside f32 from another seed."""
    steps, every = (20, 5) if run.small else (2000, 100)
    model = "DiT-Tiny/4" if run.small else "DiT-XS/2"
    curves = {}
    for name, seed, kind in (("f32", 1, "f32"), ("bf16", 1, "bf16"), ("f32, seed 2", 2, "f32")):
        changes = {
            "model.name": model,
            "train.seed": seed,
            "train.steps": steps,
            "train.log_every": every,
            "train.checkpoint_every": steps,
            "train.sample_every": 0,
            "optim.warmup": steps // 20,
            "optim.cooldown": steps // 4,
        }
        recipe = run.recipe("toy", changes)
        folder = pathlib.Path(tempfile.mkdtemp(dir=run.work)) / "run"
        run.trainer("train", recipe, "--run", folder, "--precision", kind, *run.on())
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        curves[name] = [line["loss"] for line in log]
    apart = lambda a, b: max(abs(x / y - 1) for x, y in zip(curves[a][1:], curves[b][1:]))
    rounding, noise = apart("bf16", "f32"), apart("f32, seed 2", "f32")
    return {"measurements": [measurement("largest distance of the loss, bf16 from f32; peer: of another seed", rounding, "relative", noise, 1.0, noise / rounding)], "curves": curves}
