"""The parts of the list, in its order. Each is a function of a run that gives back what it found: `measurements`, `text` for
the report, and `finished`, false where it is to go on another time. Its first line is what it is for; `minutes` what it takes."""

import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from harness import ROOT, Missing, at_least, at_most, measurement, middle, nvidia_smi

PARTS = {}

# A recipe that is over in a moment.
SHORT = {"train.steps": 20, "train.sample_every": 0, "optim.warmup": 5, "optim.cooldown": 5}

# Turns of what is compared: each side's best speed of so many short runs, one after the other.
TURNS = 2


def part(name, minutes):
    def keep(function):
        function.minutes = minutes
        PARTS[name] = function
        return function

    return keep


# === The card ===


@part("card", 1)
def card(run):
    """What card it is, its clocks as found, and how many matrix products a second it can do at all."""
    fields = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
    rates = {line["dtype"]: line["flops"] for line in run.peer("rates")}
    found = [measurement(f"matrix products in {name}", rate / 1e12, "TFLOP/s") for name, rate in rates.items()]
    return {"measurements": found, "card": nvidia_smi(*fields), "rates": rates}


def rate(run, dtype):
    """Floating-point operations a second, as the card was measured."""
    if not run.file("card").exists():
        raise Missing("the part `card` comes first")
    return json.loads(run.file("card").read_text())["rates"][dtype]


# === The trainer ===


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


# === What is shipped ===


def shipped(name, data):
    def train(run):
        folder = run.work / "runs" / f"{'small-' if run.small else ''}{name}"
        out = run.out / "packages" / name
        images = [] if run.small else ["--data", run.images(data)]
        recipe = run.recipe("toy", SHORT) if run.small else ROOT / "trainer/recipes" / f"{name}.toml"
        minutes = 5 if run.small else max(run.minutes_left() - 3, 1)
        resume = ["--resume"] if (folder / "checkpoints").is_dir() else []
        said = run.trainer("train", recipe, "--run", folder, *images, "--minutes", f"{minutes:.2f}", *run.on(), *resume)
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
        found.append(at_most("package", sum(file.stat().st_size for file in out.iterdir()) / 1e6, 30, "MB"))
        # Beside the package, which holds what its manifest lists and nothing else.
        pieces(out / "weights.bin", out.parent / f"{name}.pieces")
        return {"measurements": found, "finished": done}

    train.__doc__ = f"Trains `{name}` from its recipe for as long as there is time, and exports what it has come to."
    return train


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


# === ONNX Runtime ===


@part("golden", 2)
def golden(run):
    """Whether packages answer on this device as libtorch does, in f32 and f16, and what of their bits can be promised."""
    run.ort()
    found, reports = [], []
    for package in packages(run):
        flags = ["--max-rows", "8" if run.small else "128", *run.on()]
        report = run.lines(run.program("windowpane"), *flags, "check", package, "--json")[0]
        assert report["ok"], report
        reports.append(report)
        engine = report["engine"]
        name = f"{package.name} in {engine['dtype']}"
        found.append(measurement(f"{name}: golden, of {engine['golden']['tolerance']} allowed", engine["golden"]["relative_error"], "relative"))
        found.append(measurement(f"{name}: a row in other company", engine["determinism"]["relative_difference"], "relative"))
    return {"measurements": found, "reports": reports}


def packages(run, of=None):
    folder = run.networks()
    return sorted(package for package in folder.iterdir() if package.is_dir() and (of is None or package.name in of))


def sizes(run):
    return [1, 4] if run.small else [1, 2, 4, 8, 16, 32, 64, 128]


def calls(run, files, ways, rows, seconds=0.3):
    """Median milliseconds of every file, way and size of ours."""
    run.ort()
    seconds = 0.02 if run.small else seconds
    words = ["--rows", ",".join(map(str, rows)), "--ways", ",".join(ways), "--seconds", str(seconds)]
    lines = run.lines(run.program("device"), *files, *words, *run.on())
    # A CUDA graph may be refused, and is a way the less; the others have to work.
    wrong = [line["error"] for line in lines if line.get("error") and line["way"] != "graph"]
    assert not wrong, wrong[0]
    return {(line["file"], line["way"], line["rows"]): middle(line) for line in lines}, lines


def peers(run, package, how, dtype, rows, seconds=0.3):
    words = ["--rows", ",".join(map(str, rows)), "--how", how, "--dtype", dtype, "--seconds", "0.02" if run.small else str(seconds)]
    lines = run.peer("infer", package, *words)
    wrong = [line["error"] for line in lines if line.get("error")]
    if wrong:
        print(f"  {how} in PyTorch: {wrong[0]}", flush=True)
    assert how == "compile" or not wrong, wrong[0]
    return {line["rows"]: middle(line) for line in lines}, lines


@part("networks", 9)
def networks(run):
    """Calls of every size, in three ways, f16 and f32, beside PyTorch, eager and compiled; tiles beside masks."""
    run.ort()
    if not run.cpu:
        rate(run, "f16")
    ways = ["run", "bound"] if run.cpu else ["run", "bound", "graph"]
    half = "f32" if run.cpu else "f16"
    found, raw = [], []
    for package in (package for package in packages(run) if not package.name.endswith("-f32")):
        files = [package / f"denoiser.{half}.onnx"]
        masks = "masks" in package.name
        ours, theirs = [], {"eager": [], "compile": []}
        for turn in range(1 if run.small else TURNS):
            table, lines = calls(run, files, ["bound"] if masks else ways, sizes(run))
            ours.append(table)
            raw += lines
            if not masks:
                # A network is compiled for a size, which takes long: once, at two of them.
                for how, rows in (("eager", sizes(run)), ("compile", [] if run.small or turn else [1, 64])):
                    if rows:
                        table, lines = peers(run, package, how, half, rows)
                        theirs[how].append(table)
                        raw += lines
        best = lambda tables, key: min((table[key] for table in tables if table.get(key)), default=None)
        mine = lambda way, rows: best(ours, (str(files[0]), way, rows))
        name = package.name
        for rows in sizes(run):
            for way in ways if not masks else ["bound"]:
                if mine(way, rows):
                    found.append(measurement(f"{name}, {half}, {way}, {rows} rows", rows / mine(way, rows) * 1e3, "rows/s"))
        if masks:
            continue
        fast = lambda take: max(((rows / take(rows) * 1e3, rows) for rows in sizes(run) if take(rows)), default=(None, None))
        speed, rows = fast(lambda rows: min(filter(None, (mine(way, rows) for way in ways)), default=None))
        peer, peer_rows = fast(lambda rows: best(theirs["eager"], rows))
        bar = 1.3 if "local" in name else 1.0
        found.append(measurement(f"{name}: best size ({rows} rows) over eager PyTorch's ({peer_rows})", speed, "rows/s", peer, bar))
        compiled, _ = fast(lambda rows: best(theirs["compile"], rows))
        if compiled:
            bar = 1.5 if "local" in name else 1.0
            found.append(measurement(f"{name}: best size over torch.compile's (aim)", speed, "rows/s", compiled, bar))
        one = mine("graph", 1) or mine("bound", 1)
        found.append(measurement(f"{name}: one row over eager PyTorch's", one, "ms", best(theirs["eager"], 1), 2.0))
        if mine("run", rows) and mine("bound", rows):
            found.append(measurement(f"{name}: time at the host, of a call of {rows} rows", 1 - mine("bound", rows) / mine("run", rows), ""))
        if not run.cpu:
            full, lines = calls(run, [package / "denoiser.f32.onnx"], ["bound"], [rows])
            raw += lines
            peer = full[str(package / "denoiser.f32.onnx"), "bound", rows]
            found.append(measurement(f"{name}: f16 over f32 without TF32, {rows} rows", mine("bound", rows), "ms", peer, 3.0))
            flops = config_flops(run, package)
            share = speed * flops / rate(run, "f16")
            found.append(measurement(f"{name}: share of the card's f16 rate", share, ""))
    found += tiles_over_masks(found, half, sizes(run))
    return {"measurements": found, "lines": raw}


def tiles_over_masks(found, half, sizes):
    """The tiles of a `-local` package over the masks of its `-masks` twin, size by size."""
    speeds = {line["name"]: line["ours"] for line in found}
    more = []
    for name, speed in speeds.items():
        for rows in sizes:
            if name.endswith(f"-local, {half}, bound, {rows} rows"):
                masks = speeds.get(name.replace("-local", "-masks"))
                if masks:
                    more.append(measurement(f"{name}: tiles over masks", speed, "rows/s", masks, 1.0))
    return more


def config_flops(run, package):
    """Floating-point operations of a forward pass, as the package's card tells them."""
    for line in (package / "CARD.md").read_text().splitlines():
        if "GFLOPs an image" in line:
            return float(line.split("|")[2].split()[0]) * 1e9
    raise ValueError(f"{package}/CARD.md tells no GFLOPs")


@part("http", 3)
def http(run):
    """The server over HTTP, kept full, over calls of the network without it, of as many rows as the server's mean tick."""
    run.ort()
    model = "tiny-local" if run.small else "xs-local"
    package = packages(run, [model])[0]
    file = package / f"denoiser.{'f32' if run.cpu else 'f16'}.onnx"
    clients, seconds, body = (4, 2, {"n": 2, "steps": 5}) if run.small else (32, 10, {"n": 8, "steps": 50})
    ratios, speeds, bares = [], [], []
    flags = ["--max-rows", "8" if run.small else "128"]
    with Server(run, package, flags) as server:
        for _ in range(1 if run.small else 3):
            with Clients(server, clients, {"model": model, "response_format": "b64_json", **body}) as asking:
                server.busy(model, asking)
                before, start = server.ticks(model), time.perf_counter()
                time.sleep(seconds)
                after, elapsed = server.ticks(model), time.perf_counter() - start
            count, rows = after[0] - before[0], after[1] - before[1]
            mean = round(rows / count)
            table, _ = calls(run, [file], ["run"], [mean])
            speeds.append(rows / elapsed)
            bares.append(mean / table[str(file), "run", mean] * 1e3)
            ratios.append(speeds[-1] / bares[-1])
    middle_of = statistics.median
    name = f"{model} over HTTP at {mean} rows a tick, over the same calls alone"
    return {"measurements": [measurement(name, middle_of(speeds), "rows/s", middle_of(bares), 0.95, middle_of(ratios))], "ratios": ratios}


@part("insides", 4)
def insides(run):
    """A whole Jacobian, its products by so many vectors at once, and attention maps, on this device."""
    run.ort()
    found, raw = [], []
    vectors = [2, 4] if run.small else [8, 32, 128]
    for package in packages(run, ["tiny-global", "tiny-local"] if run.small else ["xs-global", "xs-local"]):
        inputs = 192 if run.small else 3072
        for graph in ("jvp", "vjp"):
            file = package / f"{graph}.f32.onnx"
            table, lines = calls(run, [file], ["run", "bound"], vectors)
            raw += lines
            for way in ("run", "bound"):
                for k in vectors:
                    if table.get((str(file), way, k)):
                        whole = table[str(file), way, k] * inputs / k / 1e3
                        found.append(measurement(f"{package.name}: products of a whole Jacobian, {graph}, {way}, {k} vectors", whole, "s"))
        file = package / "attention.f32.onnx"
        table, lines = calls(run, [file], ["run"], [1])
        raw += lines
        if table.get((str(file), "run", 1)):
            found.append(measurement(f"{package.name}: attention maps of an image", table[str(file), "run", 1], "ms"))
    package = packages(run, ["tiny-local"] if run.small else ["xs-local"])[0]
    with Server(run, package) as server:
        for package in [package]:
            start = time.perf_counter()
            body = {"model": package.name, "seed": "1", "steps": 2, "timestep": 300, "method": "top-k", "k": 4}
            server.post("/v1/analysis/jacobian", body)
            found.append(measurement(f"{package.name}: the four largest singular values over HTTP", time.perf_counter() - start, "s"))
            start = time.perf_counter()
            server.post("/v1/analysis/attention", {"model": package.name, "seed": "1", "steps": 2, "timestep": 300, "layers": [0]})
            found.append(measurement(f"{package.name}: what a layer attends to, over HTTP", time.perf_counter() - start, "s"))
    return {"measurements": found, "lines": raw}


@part("memory", 4)
def memory(run):
    """Whether the device's memory stays what it is while batch sizes change, and what comes after there was too little."""
    run.ort()
    package = packages(run, ["tiny-local"] if run.small else ["xs-local"])[0]
    file = package / f"denoiser.{'f32' if run.cpu else 'f16'}.onnx"
    order = random.Random(1)
    largest = 8 if run.small else 128
    rows = [size for _ in range(2 if run.small else 20) for size in order.sample(range(1, largest + 1), largest)]
    words = ["--rows", ",".join(map(str, rows)), "--ways", "run", "--seconds", "0.001"]
    watch = Watch()
    with watch:
        lines = run.lines(run.program("device"), file, *words, *run.on())
    assert len(lines) == len(rows) and all(line.get("milliseconds") for line in lines)
    found = [measurement("calls of changing sizes", sum(len(line["milliseconds"]) for line in lines), "")]
    used = watch.used
    if not run.cpu:
        assert len(used) >= 10, f"nvidia-smi told the memory in use {len(used)} times: {used}"
        fifth = max(len(used) // 5, 1)
        growth = statistics.median(used[-fifth:]) / statistics.median(used[fifth : 2 * fifth]) - 1
        found.append(at_most("growth of the device's memory, last fifth over the second", growth, 0.05))
        # A device of 140 GB is not exhausted by a CPU's sizes, and a CPU's memory is not to be.
        line = run.lines(run.program("device"), file, "--exhaust", *run.on())[0]
        # Any other error than want of memory is a bug.
        assert line["error"] and "memory" in line["error"].lower() and line["the_same_afterwards"], line
        found.append(measurement("rows for which there was no memory; the next call was as before", line["rows"], ""))
    return {"measurements": found, "used_mib": used}


class Watch:
    """The device's memory in use, in MiB, twice a second."""

    def __enter__(self):
        self.used, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def look(self):
        while not self.over.wait(0.5):
            try:
                self.used.append(float(nvidia_smi("memory.used")["memory_used"]))
            except (OSError, KeyError, ValueError):
                return


class Server:
    """The server of a folder of packages on this device."""

    def __init__(self, run, models, flags=()):
        command = [run.program("windowpane"), "--models", str(models), "--port", "0", "--jobs", "off", *flags, *run.on()]
        run.commands.append(" ".join(command))
        self.log = tempfile.NamedTemporaryFile("w")
        self.process = subprocess.Popen(command, cwd=run.work, env=run.env, stdout=self.log, stderr=self.log, text=True)

    def __enter__(self):
        try:
            self.url = self.begun()
            return self
        except BaseException:
            self.process.kill()
            raise

    def begun(self, seconds=240):
        """Where it serves, once it does: it says so when its models are loaded."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            said = pathlib.Path(self.log.name).read_text()
            at = said.find("is serving at http://")
            if at >= 0:
                return said[at:].split()[3]
            assert self.process.poll() is None, said[-2000:]
            time.sleep(0.05)
        raise AssertionError(f"it does not serve after {seconds} s: {said[-2000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def ticks(self, model):
        """Ticks of a model so far, and rows in them."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        number = lambda name: next(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name) and f'model="{model}"' in line
        )
        return number("windowpane_tick_rows_count"), number("windowpane_tick_rows_sum")

    def busy(self, model, asking, seconds=60):
        """Waits until it has warmed up: a hundred ticks."""
        first, over = self.ticks(model)[0], time.monotonic() + seconds
        while self.ticks(model)[0] < first + 100:
            assert not asking.wrong and time.monotonic() < over, asking.wrong or "no hundred ticks in a minute"
            time.sleep(0.02)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code}: {error.read()[:500]}") from None


class Clients:
    """Clients who ask for images again as soon as they have them."""

    def __init__(self, server, count, body):
        self.server, self.body, self.over, self.wrong = server, body, threading.Event(), []
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()
        assert not self.wrong, self.wrong[0]

    def ask(self, number):
        try:
            while not self.over.is_set():
                self.server.post("/v1/images/generations", {**self.body, "seed": number})
        except Exception as error:  # told where they are joined
            self.wrong.append(error)


TRAINER = ["card", "smoke", "windows", "speed", "waits", "precision", "fashion-dit", "faces-dit", "faces-dit-global", "gap", "gap-seed-2"]
ORT = ["card", "golden", "networks", "http", "insides", "memory"]
GROUPS = {"all": list(PARTS), "trainer": TRAINER, "ort": ORT}
