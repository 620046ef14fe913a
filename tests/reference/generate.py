#!/usr/bin/env python3
"""Writes the reference numbers that `diffusion/tests/reference.rs` compares with.

The numbers come from the Python package diffusers (and, for noise, from the Python below). Nothing in the build
or the tests runs this; run it by hand when a case is added:

    python -m venv /tmp/reference && /tmp/reference/bin/pip install -r tests/reference/requirements.txt
    /tmp/reference/bin/python tests/reference/generate.py

Starting points, noise and the "network" are closed forms, written once here and once in Rust, so that the files
hold answers only. A network sees what the scheduler calls its scaled input, which is our x (variance-preserving).
"""

import ast
import json
import math
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

OUT = Path(__file__).resolve().parents[2] / "diffusion" / "tests" / "reference"
ELEMENTS = 4
THEIR_NAME = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


# --- closed forms, the same in reference.rs ---


def start():
    return [1.3 * math.sin(1.0 + 2.0 * i) for i in range(ELEMENTS)]


def noise(evaluation):
    return [math.sqrt(2.0) * math.sin(0.3 + 1.7 * evaluation + 0.9 * i) for i in range(ELEMENTS)]


def network(x, t):
    phase = torch.arange(ELEMENTS, dtype=torch.float64)
    return 0.9 * x.double() + 0.3 * torch.sin(3.0 * x.double() + 0.002 * t + phase)


def learned(x, t):
    """The second half of the output where the variance is learned: in [-1, 1]."""
    return torch.sin(5.0 * x.double() - 0.003 * t)


# --- schedules and grids ---


def schedule_betas(kind, timesteps):
    """Their betas, from their own constructor. Linear ends are scaled by 1000/T, as in improved-diffusion."""
    if kind == "cosine":
        return DDPMScheduler(timesteps, beta_schedule="squaredcos_cap_v2").betas
    scale = 1000.0 / timesteps
    return DDPMScheduler(timesteps, beta_start=1e-4 * scale, beta_end=0.02 * scale).betas


def exact_alpha_bar(kind, timesteps):
    """The same table in f64. Their schedulers keep theirs in f32, where 1 - alpha_bar of the first timesteps has
    three digits left; trajectories are compared from the exact table, put into their schedulers."""
    if kind == "linear":
        scale = 1000.0 / timesteps
        betas = np.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=np.float64)
    else:
        bar = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.array([min(1 - bar((t + 1) / timesteps) / bar(t / timesteps), 0.999) for t in range(timesteps)])
    return np.cumprod(1.0 - betas)


def uniform_timesteps(timesteps, steps):
    """Their `linspace` spacing keeps first and last, as improved-diffusion's respacing does."""
    scheduler = DDIMScheduler(timesteps, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def quadratic_timesteps(timesteps, steps):
    """Ours: they have no quadratic grid. Descending."""
    parabola = [math.floor((timesteps - 1) * (i / (steps - 1)) ** 2 + 0.5) for i in range(steps)]
    return [max(i, t) for i, t in enumerate(parabola)][::-1]


# --- trajectories: one dictionary a case, its keys the fields of SolverConfig ---


def run(scheduler, case, evaluations, call, to_vp=lambda x, i: x, from_vp=lambda x: x):
    """`evaluations` is a list of (index for the scheduler, timestep told to the network). Those of the steps before
    the case's `first` are left out, as their image-to-image pipelines do."""
    begin = case.get("first", 0) * scheduler.order
    evaluations = evaluations[begin:]
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x = from_vp(torch.tensor(start(), dtype=torch.float64).reshape(1, ELEMENTS, 1, 1))
    seen = []
    for i, (index, t) in enumerate(evaluations):
        x_vp = to_vp(x, index)
        seen.append(x_vp.flatten().tolist())
        prediction = network(x_vp.flatten(), t)
        if case["variance"] == "learned_range":
            prediction = torch.cat([prediction, learned(x_vp.flatten(), t)])
        x = call(scheduler, prediction.reshape(1, -1, 1, 1), index, x, i)
    seen.append(x.flatten().tolist())
    return {**case, "t": [t for _, t in evaluations], "x": seen}


def inject(scheduler, i):
    """Their random numbers become ours."""
    fixed = torch.tensor(noise(i), dtype=torch.float64).reshape(1, ELEMENTS, 1, 1)
    sys.modules[type(scheduler).__module__].randn_tensor = lambda *args, **kwargs: fixed


def step(scheduler, prediction, index, x, i, **kwargs):
    inject(scheduler, i)
    return scheduler.step(prediction, index, x, **kwargs).prev_sample


def table(case):
    return exact_alpha_bar(case["schedule"], case["timesteps"])


def grid(case):
    make = {"uniform": uniform_timesteps, "quadratic": quadratic_timesteps}[case["grid"]]
    return make(case["timesteps"], case["steps"])


def ddpm(case):
    scheduler = DDPMScheduler(
        case["timesteps"],
        variance_type=case["variance"],
        prediction_type=THEIR_NAME[case["prediction"]],
        clip_sample=case["clip_x0"],
    )
    scheduler.alphas_cumprod = torch.from_numpy(table(case))
    scheduler.set_timesteps(timesteps=grid(case))
    return run(scheduler, case, [(t, t) for t in scheduler.timesteps.tolist()], step)


def ddim(case):
    """Their DDIM steps by a constant stride, so it gets a table of the chosen timesteps only, stride 1.
    `use_clipped_model_output`: eps is derived again from the clipped x0, as in improved-diffusion and here."""
    timesteps, steps = grid(case), case["steps"]
    scheduler = DDIMScheduler(
        steps, prediction_type=THEIR_NAME[case["prediction"]], clip_sample=case["clip_x0"]
    )
    scheduler.alphas_cumprod = torch.from_numpy(table(case)[timesteps[::-1]].copy())
    scheduler.set_timesteps(steps)
    evaluations = list(zip(scheduler.timesteps.tolist(), timesteps))
    call = lambda *args: step(*args, eta=case["eta"], use_clipped_model_output=True)
    return run(scheduler, case, evaluations, call)


def ve(scheduler, case, evaluations):
    """Their Euler family works on x / alpha, in f32."""
    first = float(scheduler.sigmas[case.get("first", 0) * scheduler.order])
    scheduler.set_begin_index(0)
    return run(
        scheduler,
        case,
        evaluations,
        step,
        to_vp=scheduler.scale_model_input,
        from_vp=lambda x: x * math.sqrt(first**2 + 1),
    )


def euler(case, cls=EulerDiscreteScheduler):
    karras = case["grid"] == "karras"
    extra = {"clip_sample": case["clip_x0"]} if cls is HeunDiscreteScheduler else {}
    scheduler = cls(
        case["timesteps"],
        prediction_type=THEIR_NAME[case["prediction"]],
        use_karras_sigmas=karras,
        **extra,
    )
    scheduler.alphas_cumprod = torch.from_numpy(table(case))
    if karras:
        scheduler.set_timesteps(case["steps"])
    else:
        scheduler.set_timesteps(timesteps=grid(case))
    return ve(scheduler, case, [(t, t.item()) for t in scheduler.timesteps])


def heun(case):
    return euler(case, HeunDiscreteScheduler)


def euler_a(case):
    """Takes no list of timesteps: it gets a table of the chosen ones only, as DDIM does."""
    timesteps, steps = grid(case), case["steps"]
    scheduler = EulerAncestralDiscreteScheduler(steps, prediction_type=THEIR_NAME[case["prediction"]])
    scheduler.alphas_cumprod = torch.from_numpy(table(case)[timesteps[::-1]].copy())
    scheduler.set_timesteps(steps)
    return ve(scheduler, case, list(zip(scheduler.timesteps, map(float, timesteps))))


def dpmpp_2m(case):
    """Clipping: their thresholding, with its bound held at 1. Karras timesteps are theirs before they are
    rounded: we tell the network the fractional ones."""
    scheduler = DPMSolverMultistepScheduler(
        case["timesteps"],
        prediction_type=THEIR_NAME[case["prediction"]],
        solver_order=2,
        solver_type="midpoint",
        thresholding=case["clip_x0"],
        sample_max_value=1.0,
        use_karras_sigmas=case["grid"] == "karras",
    )
    scheduler.alphas_cumprod = torch.from_numpy(table(case))
    if case["grid"] == "karras":
        scheduler.set_timesteps(case["steps"])
        bar = scheduler.alphas_cumprod.numpy()
        logs = np.log(np.sqrt((1 - bar) / bar))
        told = [float(scheduler._sigma_to_t(s, logs)) for s in scheduler.sigmas[:-1].double().numpy()]
    else:
        scheduler.set_timesteps(timesteps=grid(case))
        told = scheduler.timesteps.tolist()
    scheduler.set_begin_index(0)
    return run(scheduler, case, list(zip(scheduler.timesteps, told)), step)


def cases():
    base = {
        "schedule": "linear", "timesteps": 1000, "sampler": "ddim", "grid": "uniform", "steps": 8, "eta": 0.0,
        "clip_x0": False, "prediction": "eps", "variance": "fixed_small",
    }  # fmt: skip
    for prediction in ["eps", "x0", "v"]:
        for clip in [False, True]:
            both = {**base, "prediction": prediction, "clip_x0": clip}
            for variance in ["fixed_small", "fixed_large", "learned_range"]:
                yield ddpm({**both, "sampler": "ddpm", "variance": variance})
            for eta in [0.0, 0.5, 1.0]:
                yield ddim({**both, "eta": eta})
            yield heun({**both, "sampler": "heun"})
            yield dpmpp_2m({**both, "sampler": "dpmpp_2m"})
            yield dpmpp_2m({**both, "sampler": "dpmpp_2m", "grid": "karras", "steps": 9})
        unclipped = {**base, "prediction": prediction}
        yield euler({**unclipped, "sampler": "euler"})
        yield euler({**unclipped, "sampler": "euler", "grid": "karras", "steps": 9})
        yield heun({**unclipped, "sampler": "heun", "grid": "karras", "steps": 5})
        if prediction != "x0":  # they have not implemented it
            yield euler_a({**unclipped, "sampler": "euler_a"})
    cosine = {**base, "schedule": "cosine", "clip_x0": True, "prediction": "v", "steps": 17}
    yield ddpm({**cosine, "sampler": "ddpm", "timesteps": 50})
    yield ddim({**cosine, "grid": "quadratic", "eta": 0.5})
    yield dpmpp_2m({**cosine, "sampler": "dpmpp_2m"})
    yield dpmpp_2m({**cosine, "sampler": "dpmpp_2m", "grid": "karras"})
    # Not on cosine: there sigma / alpha is 20,371 at first, and their f32 has no digits left for the image.
    yield heun({**cosine, "schedule": "linear", "sampler": "heun", "grid": "quadratic"})
    yield ddpm({**base, "sampler": "ddpm", "timesteps": 25, "steps": 25})
    yield ddim({**base, "steps": 2})
    for first in [1, 5, 7]:
        late = {**base, "first": first}
        yield ddpm({**late, "sampler": "ddpm", "clip_x0": True})
        yield ddim({**late, "eta": 0.5})
        yield euler({**late, "sampler": "euler", "grid": "karras", "steps": 9})
        yield euler_a({**late, "sampler": "euler_a"})
        yield heun({**late, "sampler": "heun"})
        yield dpmpp_2m({**late, "sampler": "dpmpp_2m"})


# --- tables ---


def schedules():
    for kind, sizes in [("linear", [50, 250, 1000, 4000]), ("cosine", [4, 50, 250, 1000, 4000])]:
        for timesteps in sizes:
            betas = schedule_betas(kind, timesteps)
            bar = torch.cumprod(1.0 - betas.double(), dim=0)
            at = sorted({round(i * (timesteps - 1) / 9) for i in range(10)})
            yield {
                "kind": kind,
                "steps": timesteps,
                "t": at,
                "beta": [betas[t].item() for t in at],
                "alpha_bar": [bar[t].item() for t in at],
            }


def respacings():
    for timesteps, steps in [(1000, 50), (1000, 10), (1000, 3), (50, 50), (50, 7), (4000, 31), (10, 4), (2, 2)]:
        yield {"timesteps": timesteps, "steps": steps, "kept": uniform_timesteps(timesteps, steps)[::-1]}


def img2img_get_timesteps():
    """A method of their pipeline, taken out of its file: the pipeline itself wants packages that we do not."""
    path = Path(diffusers.__file__).parent / "pipelines/stable_diffusion/pipeline_stable_diffusion_img2img.py"
    tree = ast.parse(path.read_text())
    (method,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "get_timesteps"]
    scope = {}
    exec(compile(ast.Module([method], []), str(path), "exec"), scope)
    return scope["get_timesteps"]


def strengths():
    """The step that image-to-image begins at: their pipelines', which count timesteps from `t_start`."""
    get_timesteps = img2img_get_timesteps()
    for steps in [1, 2, 3, 7, 10, 25, 50, 100, 999]:
        for strength in [0.01, 0.1, 0.29, 0.3, 0.5, 0.57, 0.7, 0.75, 0.9, 0.999, 1.0]:
            scheduler = DDIMScheduler(1000)
            scheduler.set_timesteps(steps)
            pipeline = SimpleNamespace(scheduler=scheduler)
            _, left = get_timesteps(pipeline, steps, strength, "cpu")
            yield {"steps": steps, "strength": strength, "first": steps - left}


# --- noise: Philox4x32-10 (Salmon et al. 2011) and Box-Muller, a second time ---


def philox(counter, key):
    c, k = list(counter), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def normals(domain, seed, step, count):
    values = []
    for block in range(-(-count // 4)):
        bits = philox([block & 0xFFFFFFFF, block >> 32, step, domain], seed)
        for a, b in [bits[:2], bits[2:]]:
            radius, angle = math.sqrt(-2 * math.log((a + 1) / 2**32)), 2 * math.pi * b / 2**32
            values += [radius * math.cos(angle), radius * math.sin(angle)]
    return [struct.unpack("<I", struct.pack("<f", v))[0] for v in values[:count]]


def noises():
    for domain, seed, step in [(0, 0, 0), (0, 7, 0xFFFFFFFF), (0, 7, 3), (0, 2**63 - 1, 49), (1, 42, 0), (8, 1, 2)]:
        yield {"domain": domain, "seed": seed, "step": step, "bits": normals(domain, seed, step, 10)}


# --- writing ---


def rounded(value):
    """Nine significant digits: more than f32 holds."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return value


def write(name, items):
    lines = ",\n".join(json.dumps(rounded(item), separators=(",", ":"), allow_nan=False) for item in items)
    (OUT / name).write_text(f"[\n{lines}\n]\n")
    print(OUT / name)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    write("trajectories.json", list(cases()))
    write("schedules.json", list(schedules()))
    write("respacings.json", list(respacings()))
    write("strengths.json", list(strengths()))
    write("noise.json", list(noises()))
