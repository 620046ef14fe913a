"""How fast are products with a network's Jacobian? A package's own graphs in ONNX Runtime against `torch.func` over the
same network, in one process, taking turns.

    cargo xtask export-ops --networks DIR
    python server/benches/jacobian.py DIR/global-256 DIR/local-1024 [--out FOLDER] [--turns 5] [--rows 64]

Takes torch 2.11, onnxruntime 1.30, onnx and numpy. Both sides have the same threads and flush subnormals to zero. torch
has dense attention with a mask where a layer is windowed, which is what its users have, and the best of several chunk
sizes: one call of each finds the best, and then the bests take turns. Above `--rows` inputs the full Jacobian is not run
whole: that many rows are timed, and scaled up. The products are compared with each other before anything is timed.
"""

import argparse
import json
import pathlib
import platform
import statistics
import sys
import time
import typing

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper

CHUNKS = (4, 8, 16, 32)
BATCHES = (1, 2, 4, 8, 16)

# How many vectors the server gives a graph at once, where it takes a whole Jacobian: images wait for no longer call. It gives them
# to `jvp`, whose time at this size is compared with that of `vjp`.
SERVED = 4


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("packages", nargs="+", type=pathlib.Path)
    options.add_argument("--out", type=pathlib.Path, help="folder for run.json and report.md")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--rows", type=int, default=64, help="rows of a Jacobian that are timed where it has more")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    results = [measure(package, options) for package in options.packages]
    report = table(results, options)
    print(report)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.md").write_text(report)
        versions = {"torch": torch.__version__, "onnxruntime": ort.__version__, "python": platform.python_version()}
        run = {"versions": versions, "machine": machine(), "threads": options.threads, "results": results}
        (options.out / "run.json").write_text(json.dumps(run, indent=1) + "\n")


def machine():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


# === The network in torch, from the package's own weights ===


class Network:
    """facebookresearch/DiT's forward pass, written with functions; windows are masks over dense attention."""

    def __init__(self, package):
        manifest = json.loads((package / "manifest.json").read_text())
        self.config = config = manifest["config"]
        file = package / "denoiser.f32.onnx"
        # Once its data is loaded an initializer no longer says that it was outside.
        outside = onnx.load(file, load_external_data=False).graph.initializer
        names = {t.name for t in outside if t.data_location == onnx.TensorProto.EXTERNAL}
        parameters = {t.name: t for t in onnx.load(file).graph.initializer if t.name in names}
        self.p = {name: torch.from_numpy(numpy_helper.to_array(t).astype(np.float32)) for name, t in parameters.items()}
        self.grid = (config["height"] // config["patch"], config["width"] // config["patch"])
        self.positions = self.table(self.p["pos_embed"])
        self.masks = [self.mask(window) for window in config["windows"]]

    def table(self, stored):
        """The positions [1, t, d]; of a large table a line a place is stored: channels of the column, then of the row."""
        if stored.dim() == 3:
            return stored
        height, width = self.grid
        both = [stored[None, :width].expand(height, -1, -1), stored[:height, None].expand(-1, width, -1)]
        return torch.cat(both, 2).reshape(1, height * width, -1)

    def mask(self, window):
        if window == "global":
            return None
        height, width = self.grid
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = y.flatten(), x.flatten()
        seen = ((y[:, None] - y[None]).abs() <= window // 2) & ((x[:, None] - x[None]).abs() <= window // 2)
        return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))

    def linear(self, x, name):
        return torch.nn.functional.linear(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def condition(self, t, y):
        frequencies = torch.exp(-np.log(10_000) * torch.arange(128, dtype=torch.float64) / 128).float()
        angles = t[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], 1)
        silu = torch.nn.functional.silu
        t = self.linear(silu(self.linear(features, "t_embedder.mlp.0")), "t_embedder.mlp.2")
        return silu(t + self.p["y_embedder.embedding_table.weight"][y])

    def __call__(self, x, t, y):
        config, p = self.config, self.config["patch"]
        (height, width), d, heads = self.grid, config["hidden"], config["heads"]
        weight, bias = self.p["x_embedder.proj.weight"], self.p["x_embedder.proj.bias"]
        x = torch.nn.functional.conv2d(x, weight, bias, stride=p).flatten(2).transpose(1, 2) + self.positions
        c = self.condition(t, y)
        n, tokens, _ = x.shape
        norm = lambda x: torch.nn.functional.layer_norm(x, (d,), eps=1e-6)
        modulate = lambda x, shift, scale: norm(x) * (1 + scale[:, None]) + shift[:, None]
        for i in range(config["depth"]):
            name = f"blocks.{i}"
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.linear(c, f"{name}.adaLN_modulation.1").chunk(6, 1)
            qkv = self.linear(modulate(x, shift_a, scale_a), f"{name}.attn.qkv")
            q, k, v = qkv.reshape(n, tokens, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            scores = q @ k.transpose(-2, -1) * (d // heads) ** -0.5
            if self.masks[i] is not None:
                scores = scores + self.masks[i]
            out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, d)
            x = x + gate_a[:, None] * self.linear(out, f"{name}.attn.proj")
            hidden = self.linear(modulate(x, shift_m, scale_m), f"{name}.mlp.fc1")
            hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
            x = x + gate_m[:, None] * self.linear(hidden, f"{name}.mlp.fc2")
        shift, scale = self.linear(c, "final_layer.adaLN_modulation.1").chunk(2, 1)
        x = self.linear(modulate(x, shift, scale), "final_layer.linear")
        x = x.reshape(n, height, width, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(n, -1, height * p, width * p)


# === Measuring ===


def session(package, role, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 3
    return ort.InferenceSession(package / f"{role}.f32.onnx", options, providers=["CPUExecutionProvider"])


class Side(typing.NamedTuple):
    """What is timed: one call, of how many rows at once; and as many calls as the whole takes, of how many rows."""

    once: typing.Callable
    at_once: int
    whole: typing.Callable
    rows: int


def say(line):
    """Tells a person who waits where the run is."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)


def seconds(warm, call):
    """Seconds of a call, after one that warms it."""
    warm()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(package, options):
    network = Network(package)
    config = network.config
    image = (config["channels"], config["height"], config["width"])
    elements = int(np.prod(image))
    generator = np.random.default_rng(3)
    normal = lambda n: generator.standard_normal((n, *image)).astype(np.float32)
    x, t, y = normal(1), np.float32([412.0]), np.int64([config["classes"]])
    tx, tt, ty = torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(y)
    forward, jvp, vjp = (session(package, role, options.threads) for role in ("denoiser", "jvp", "vjp"))
    # Forward mode holds several copies of what it is given; so many rows fit a small machine.
    chunks = [chunk for chunk in CHUNKS if chunk <= options.rows]

    f = lambda x: network(x, tt, ty)
    torch_jvp = torch.func.vmap(lambda v: torch.func.jvp(f, (tx,), (v[None],))[1][0])

    def torch_vjp(vectors):
        _, pull = torch.func.vjp(f, tx)
        return torch.func.vmap(lambda v: pull(v[None])[0][0])(vectors)

    feed = lambda vectors: {"x": x, "t": t, "y": y, "vectors": vectors}
    vectors = normal(4)
    errors = {}
    with torch.no_grad():
        prediction = forward.run(None, {"x": x, "t": t, "y": y})[0]
        errors["forward"] = relative(prediction, f(tx).numpy())
    errors["jvp"] = relative(jvp.run(None, feed(vectors))[0], torch_jvp(torch.from_numpy(vectors)).numpy())
    errors["vjp"] = relative(vjp.run(None, feed(vectors))[0], torch_vjp(torch.from_numpy(vectors)).detach().numpy())
    assert max(errors.values()) < 1e-4, errors

    rows = elements if elements <= options.rows * 4 else options.rows
    basis = np.eye(elements, dtype=np.float32)[:rows].reshape(rows, *image)
    tbasis = torch.from_numpy(basis)

    def of_forward(batch):
        given = {"x": normal(batch), "t": np.repeat(t, batch), "y": np.repeat(y, batch)}
        once, times = lambda: forward.run(None, given), rows // batch
        return Side(once, batch, lambda: [once() for _ in range(times)], times * batch)

    def of_rows(product, basis, chunk):
        def whole():
            for at in range(0, rows, chunk):
                product(basis[at : at + chunk])

        return Side(lambda: product(basis[:chunk]), chunk, whole, rows)

    in_ort = lambda graph: lambda vectors: graph.run(None, feed(vectors))
    sides = {f"forward, {n}": of_forward(n) for n in BATCHES}
    for name, product, of in (
        ("jvp", in_ort(jvp), basis),
        ("vjp", in_ort(vjp), basis),
        ("torch jvp", torch_jvp, tbasis),
        ("torch vjp", torch_vjp, tbasis),
    ):
        sides |= {f"{name}, {n}": of_rows(product, of, n) for n in chunks}
    # First one call each, to find every side's best; then turns of the bests. What the others are divided by, the forward pass,
    # takes its turns with every batch, and its best is known at the end.
    first = {}
    for done, (name, side) in enumerate(sides.items()):
        say(f"{package.name}: first calls, {done} of {len(sides)}: {name}")
        first[name] = seconds(side.once, side.once) / side.at_once
    kinds = ("jvp", "vjp", "torch jvp", "torch vjp")
    best = {kind: min((name for name in first if name.startswith(f"{kind},")), key=first.get) for kind in kinds}
    best |= {f"{kind}, served": f"{kind}, {SERVED}" for kind in ("jvp", "vjp")}
    best |= {name: name for name in sides if name.startswith("forward,")}
    turns = {kind: [] for kind in best}
    for turn in range(options.turns):
        order = list(best)
        for kind in order[turn % len(order) :] + order[: turn % len(order)]:
            say(f"{package.name}: turn {turn + 1} of {options.turns}: {best[kind]}")
            side = sides[best[kind]]
            turns[kind].append(seconds(side.once, side.whole) / side.rows)
    forwards = {name: turns.pop(name) for name in list(turns) if name.startswith("forward,")}
    best["forward"] = min(forwards, key=lambda name: statistics.median(forwards[name]))
    turns = {"forward": forwards[best["forward"]], **turns}
    say("")
    return {
        "package": package.name,
        "inputs": elements,
        "rows": rows,
        "tokens": network.grid[0] * network.grid[1],
        "windows": config["windows"],
        "errors": errors,
        "first": first,
        "forwards": forwards,
        "best": best,
        "milliseconds": {kind: [1e3 * seconds for seconds in times] for kind, times in turns.items()},
    }


def relative(got, expected):
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def table(results, options):
    lines = []
    for result in results:
        times = result["milliseconds"]
        ratio = lambda a, b: [x / y for x, y in zip(times[a], times[b])]
        ours = min(("jvp", "vjp"), key=lambda kind: statistics.median(times[kind]))
        theirs = min(("torch jvp", "torch vjp"), key=lambda kind: statistics.median(times[kind]))
        # What is promised is promised of models without windows, and of those with windows at many tokens.
        windowed = any(window != "global" for window in result["windows"])
        bar = "at least 1.5" if not windowed else "at least 2.5" if result["tokens"] >= 1024 else "-"
        show = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        lines += [
            f"## {result['package']}: {result['tokens']} tokens, {result['inputs']} inputs",
            "",
            f"Milliseconds a row, the median of {options.turns} turns (least to greatest); {result['rows']} rows of "
            f"the Jacobian, {options.threads} threads, subnormals flushed on both sides.",
            "",
            "| | rows at once | ms a row |",
            "| --- | --- | --- |",
        ]
        for kind, values in times.items():
            lines.append(f"| {kind} | {result['best'][kind].split(', ')[1]} | {show(values)} |")
        lines += [
            "",
            "| ratio | measured | bar |",
            "| --- | --- | --- |",
            f"| J·v over a forward pass | {show(ratio('jvp', 'forward'))} | at most 1.8 |",
            f"| Jᵀ·u over a forward pass | {show(ratio('vjp', 'forward'))} | at most 1.5 |",
            f"| full Jacobian: {theirs} over {ours} | {show(ratio(theirs, ours))} | {bar} |",
            f"| the same by {SERVED} vectors at once, as the server takes it: {theirs} over jvp | "
            f"{show(ratio(theirs, 'jvp, served'))} | {bar} |",
            f"| Jᵀ·u over J·v by {SERVED} vectors at once: above 1 the server takes the cheaper | "
            f"{show(ratio('vjp, served', 'jvp, served'))} | - |",
            "",
            f"Largest difference between the two, relative: {max(result['errors'].values()):.1e}.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
