"""PyTorch's side of a GPU's figures: what a card can do at all, a training loop, and calls of a network.

    python tests/gpu/peer.py rates
    python tests/gpu/peer.py train 'DiT-XS/1,local*,masks,128' --how eager
    python tests/gpu/peer.py infer PACKAGE --rows 1,8,64 --how eager

One line of JSON a case, like `throughput` and `device`, its counterparts in Rust.
"""

import argparse
import json
import sys
import time

import torch
from dit import DiT, config_of, from_package


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    commands = options.add_subparsers(dest="command", required=True)
    commands.add_parser("rates", help="matrix products a second of every precision")
    train = commands.add_parser("train", help="a plain training loop: AdamW, a moving average, clipping")
    train.add_argument("cases", nargs="+", help="model,windows,plan,batch; windows are masks, whatever the plan says")
    train.add_argument("--how", default="autocast", choices=["autocast", "bf16", "f32"])
    train.add_argument("--stretch", type=int, default=10, help="steps that are timed as a whole")
    train.add_argument("--stretches", type=int, default=3)
    infer = commands.add_parser("infer", help="calls of a package's network")
    infer.add_argument("package")
    infer.add_argument("--rows", default="1,2,4,8,16,32,64,128")
    infer.add_argument("--how", default="eager", choices=["eager", "compile"])
    infer.add_argument("--dtype", default="f16", choices=["f16", "f32"])
    infer.add_argument("--seconds", type=float, default=0.5)
    options = options.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if options.device == "cpu":
        torch.set_flush_denormal(True)
    {"rates": rates, "train": train_all, "infer": infer_all}[options.command](options)


def say(**line):
    print(json.dumps(line), flush=True)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def rates(options):
    """Floating-point operations a second of a product of square matrices, the best of several sizes."""
    sizes = (4096, 8192, 16384) if options.device == "cuda" else (512,)
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    for name, kind in kinds.items():
        best = 0.0
        for size in sizes if kind != torch.float32 else sizes[:2]:
            a, b = (torch.randn(size, size, device=options.device, dtype=kind) for _ in range(2))
            for _ in range(3):
                a @ b
            wait(options.device)
            start, calls = time.perf_counter(), 10
            for _ in range(calls):
                a @ b
            wait(options.device)
            best = max(best, 2 * size**3 * calls / (time.perf_counter() - start))
        say(what="matrix rate", dtype=name, flops=best)


def train_all(options):
    for text in options.cases:
        model, *windows, plan, batch = text.split(",")
        say(**train_one(options, model, ",".join(windows), int(batch)))


def train_one(options, model, windows, batch):
    device = options.device
    net = DiT(config_of(model, windows)).to(device)
    # adaLN-Zero begins with a last layer of zeros, and so with no gradient but there. Speed does not depend on it.
    if options.how == "bf16":
        net = net.to(torch.bfloat16)
    average = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8)
    betas = torch.linspace(1e-4, 0.02, 1000)
    alpha_bar = torch.cumprod(1 - betas, 0).to(device)
    autocast = options.how == "autocast"

    def step():
        x = images[torch.randint(0, len(images), (batch,))].to(device, non_blocking=True).float() / 127.5 - 1
        t = torch.randint(0, 1000, (batch,), device=device)
        eps = torch.randn_like(x)
        level = alpha_bar[t][:, None, None, None]
        noisy = level.sqrt() * x + (1 - level).sqrt() * eps
        y = torch.zeros(batch, dtype=torch.long, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            predicted = net(noisy, t, y)
        loss = torch.nn.functional.mse_loss(predicted.float(), eps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net.parameters()), 1e-3)
        return loss

    speeds = []
    for stretch in range(options.stretches + 1):
        start = time.perf_counter()
        for _ in range(options.stretch):
            loss = step()
        loss.item()
        if stretch > 0:
            speeds.append(options.stretch * batch / (time.perf_counter() - start))
    case = {"model": model, "windows": windows, "plan": "masks", "batch": batch, "precision": options.how}
    return {**case, "images_per_second": speeds}


def infer_all(options):
    device = options.device
    net = from_package(options.package).to(device).eval()
    if options.dtype == "f16":
        net = net.half()
    config = net.config
    run = torch.compile(net, dynamic=False) if options.how == "compile" else net
    for rows in map(int, options.rows.split(",")):
        x = torch.randn(rows, config["channels"], config["height"], config["width"], device=device)
        t = torch.full((rows,), 412.0, device=device)
        y = torch.zeros(rows, dtype=torch.long, device=device)
        times = []
        try:
            with torch.inference_mode():
                for _ in range(3):
                    run(x, t, y)
                wait(device)
                began = time.perf_counter()
                while len(times) < 3 or time.perf_counter() - began < options.seconds:
                    start = time.perf_counter()
                    run(x, t, y)
                    wait(device)
                    times.append((time.perf_counter() - start) * 1e3)
        except Exception as error:  # a size that one way cannot do is told, and the others go on
            say(package=options.package, how=options.how, dtype=options.dtype, rows=rows, error=str(error)[:300])
            continue
        say(package=options.package, how=options.how, dtype=options.dtype, rows=rows, milliseconds=times)


if __name__ == "__main__":
    sys.exit(main())
