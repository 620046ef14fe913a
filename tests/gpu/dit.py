"""The network in PyTorch, as somebody writes it who has PyTorch: facebookresearch/DiT's forward pass with torch's fused
attention, and windows as a mask over it. What a GPU's figures are compared with."""

import json
import math
import pathlib

import torch
from torch import nn
from torch.nn import functional

SIZES = {"DiT-S": (12, 384, 6), "DiT-XS": (12, 252, 4), "DiT-Tiny": (4, 48, 2)}
WINDOWS = {"global": [], "local": [3, 5, 7, 9, 11, 13], "local*": [3, 3, 3, 5, 5, 5, 7, 7, 7]}


def config_of(model, windows, side=32, channels=3):
    """The configuration of a named model whose first layers have the windows; a manifest's `config` is the same."""
    name, patch = model.split("/")
    depth, hidden, heads = SIZES[name]
    sides = WINDOWS[windows] if windows in WINDOWS else [int(side) for side in windows.split(",")]
    return {
        "channels": channels,
        "height": side,
        "width": side,
        "patch": int(patch),
        "hidden": hidden,
        "depth": depth,
        "heads": heads,
        "classes": 0,
        "windows": sides + ["global"] * (depth - len(sides)),
    }


class Block(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)
        self.ada = nn.Linear(hidden, 6 * hidden)

    def forward(self, x, c, mask):
        n, tokens, hidden = x.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.ada(functional.silu(c))[:, None].chunk(6, 2)
        qkv = self.qkv(self.norm(x) * (1 + scale_a) + shift_a)
        q, k, v = qkv.reshape(n, tokens, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + gate_a * self.proj(out.transpose(1, 2).reshape(n, tokens, hidden))
        inner = functional.gelu(self.fc1(self.norm(x) * (1 + scale_m) + shift_m), approximate="tanh")
        return x + gate_m * self.fc2(inner)


class DiT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        hidden, patch = config["hidden"], config["patch"]
        self.grid = (config["height"] // patch, config["width"] // patch)
        self.x_embedder = nn.Conv2d(config["channels"], hidden, patch, stride=patch)
        self.t_embedder = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.y_embedder = nn.Embedding(config["classes"] + 1, hidden)
        self.blocks = nn.ModuleList(Block(hidden, config["heads"]) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.ada = nn.Linear(hidden, 2 * hidden)
        self.linear = nn.Linear(hidden, patch * patch * config["channels"])
        self.register_buffer("positions", torch.randn(1, self.grid[0] * self.grid[1], hidden) * 0.02)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * torch.arange(128) / 128))
        # Layers of one window share its mask.
        self.masks = {side: self.mask(side) for side in set(config["windows"]) if side != "global"}

    def mask(self, side):
        """What adds minus infinity to every score outside a window of `side` tokens."""
        height, width = self.grid
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = y.flatten(), x.flatten()
        seen = ((y[:, None] - y).abs() <= side // 2) & ((x[:, None] - x).abs() <= side // 2)
        return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))

    def _apply(self, move):
        super()._apply(move)
        self.masks = {side: move(mask) for side, mask in self.masks.items()}
        return self

    def forward(self, x, t, y):
        (height, width), patch = self.grid, self.config["patch"]
        kind = self.y_embedder.weight.dtype
        x = self.x_embedder(x.to(kind)).flatten(2).transpose(1, 2) + self.positions
        angles = t.float()[:, None] * self.frequencies.float()
        features = torch.cat([angles.cos(), angles.sin()], 1).to(kind)
        c = self.t_embedder(features) + self.y_embedder(y)
        # Under autocast the residual stream is f32, and the scores are not.
        kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else kind
        for block, side in zip(self.blocks, self.config["windows"]):
            mask = self.masks.get(side)
            x = block(x, c, None if mask is None else mask.to(kind))
        shift, scale = self.ada(functional.silu(c))[:, None].chunk(2, 2)
        x = self.linear(self.norm(x) * (1 + scale) + shift)
        x = x.reshape(x.shape[0], height, width, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(x.shape[0], -1, height * patch, width * patch).float()


def from_package(package):
    """A package's network, from its own weights."""
    import numpy
    import onnx
    from onnx import numpy_helper

    package = pathlib.Path(package)
    config = json.loads((package / "manifest.json").read_text())["config"]
    tensors = {}
    for tensor in onnx.load(package / "denoiser.f32.onnx").graph.initializer:
        tensors[tensor.name] = torch.from_numpy(numpy_helper.to_array(tensor).astype(numpy.float32))
    names = {
        "x_embedder.proj": "x_embedder",
        "t_embedder.mlp": "t_embedder",
        "y_embedder.embedding_table": "y_embedder",
        "attn.qkv": "qkv",
        "attn.proj": "proj",
        "mlp.fc": "fc",
        "adaLN_modulation.1": "ada",
        "final_layer.linear": "linear",
        "final_layer.ada": "ada",
    }
    state = {}
    for name, tensor in tensors.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = tensor
    net = DiT(config)
    known = {name: state[name] for name, _ in net.named_parameters()}
    net.load_state_dict({**known, "positions": positions(state["pos_embed"], net.grid), "frequencies": net.frequencies})
    return net


def positions(stored, grid):
    """The table [1, tokens, hidden]; of a large one a line a place is stored: channels of the column, then of the row."""
    if stored.dim() == 3:
        return stored
    height, width = grid
    both = [stored[None, :width].expand(height, -1, -1), stored[:height, None].expand(-1, width, -1)]
    return torch.cat(both, 2).reshape(1, height * width, -1)
