"""Parts of ONNX Runtime: what packages answer, how fast beside PyTorch, the server over HTTP, insides, memory."""

import json
import pathlib
import random
import statistics
import tempfile
import time

from harness import at_most, measurement, middle
from .part import part, rate
from .server import Clients, Server, Watch

# Turns of what is compared: each side's best time of so many short runs, one after the other.
TURNS = 2


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


@part("profile", 2)
def profile(run):
    """What takes the time of a call, node by node, with launches that wait for their kernels: what to mend where a bar is missed."""
    run.ort()
    half, rows = "f32" if run.cpu else "f16", 4 if run.small else 64
    found, texts = [], []
    for package in packages(run, ["tiny-global", "tiny-local"] if run.small else ["xs-global", "xs-local"]):
        prefix = pathlib.Path(tempfile.mkdtemp(dir=run.work)) / "profile"
        words = ["--rows", str(rows), "--ways", "bound", "--seconds", "0.02" if run.small else "0.5", "--profile", prefix]
        env = {"CUDA_LAUNCH_BLOCKING": "1"}
        *_, told = run.lines(run.program("device"), package / f"denoiser.{half}.onnx", *words, *run.on(), env=env)
        nodes = node_times(json.loads(pathlib.Path(told["profile"]).read_text()), told["warm_up"])
        whole = sum(time for _, time, _ in nodes.values())
        operations = {}
        for operation, time, _ in nodes.values():
            count, sum_ = operations.get(operation, (0, 0.0))
            operations[operation] = (count + 1, sum_ + time)
        texts += [f"{package.name}, {half}, {rows} rows: {whole:.3f} ms of {len(nodes)} nodes, one after the other.", ""]
        texts += ["| operation | nodes | ms | share |", "| --- | --- | --- | --- |"]
        for operation, (count, time) in sorted(operations.items(), key=lambda item: -item[1][1]):
            texts.append(f"| {operation} | {count} | {time:.3f} | {time / whole:.1%} |")
        texts += ["", "| the longest nodes | operation | ms | share |", "| --- | --- | --- | --- |"]
        for name, (operation, time, _) in sorted(nodes.items(), key=lambda item: -item[1][1])[:12]:
            texts.append(f"| {name} | {operation} | {time:.3f} | {time / whole:.1%} |")
        texts.append("")
        largest = max(operations.items(), key=lambda item: item[1][1])
        found.append(measurement(f"{package.name}: share of {largest[0]}, the operation that takes most", largest[1][1] / whole, ""))
        elsewhere = [name for name, (_, _, provider) in nodes.items() if provider != "CUDAExecutionProvider"]
        if not run.cpu:
            found.append(at_most(f"{package.name}: nodes that are not the GPU's", len(elsewhere), 0))
    return {"measurements": found, "text": "\n".join(texts)}


def node_times(events, warm_up):
    """Of every node its operation, the median milliseconds of its calls after the first ones, and its provider, in an ONNX
    Runtime profile."""
    times, of = {}, {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            times.setdefault(name, []).append(event["dur"] / 1e3)
            of[name] = (event["args"]["op_name"], event["args"]["provider"])
    return {name: (of[name][0], statistics.median(found[warm_up:]), of[name][1]) for name, found in times.items()}


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
    vectors = [2, 4] if run.small else [4, 8, 32, 128]
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
