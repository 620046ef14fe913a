"""Writes a small diffusion transformer, its inputs and its outputs, computed by the Python package diffusers.

`DiTTransformer2DModel` is another implementation of the network in trainer/src/model.rs; its parameters are stored
here under the names of facebookresearch/DiT `models.py`, so the test also proves that a state dict under those names
loads unchanged. Two things are set on the foreign model: the timestep features divide by half the width (as the
original does; diffusers divides by one less), and every block shares one timestep and label embedder (diffusers
keeps a copy in each).

    pip install -r tests/reference/requirements.txt
    python tests/reference/dit.py trainer/tests/reference
"""

import pathlib
import sys

import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file

HIDDEN, DEPTH, HEADS, PATCH, SIDE, CHANNELS, CLASSES = 16, 2, 2, 2, 8, 3, 5


def network():
    torch.manual_seed(1)
    net = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HIDDEN // HEADS,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        sample_size=SIDE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    ).eval()
    # The zero-initialised layers would hide everything before them.
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    first = net.transformer_blocks[0].norm1.emb
    for block in net.transformer_blocks:
        block.norm1.emb = first
    first.time_proj.downscale_freq_shift = 0
    return net


def state_dict(net):
    emb = net.transformer_blocks[0].norm1.emb
    table = emb.class_embedder.embedding_table.weight
    assert table.shape == (CLASSES + 1, HIDDEN)
    out = {
        "x_embedder.proj.weight": net.pos_embed.proj.weight,
        "x_embedder.proj.bias": net.pos_embed.proj.bias,
        "t_embedder.mlp.0.weight": emb.timestep_embedder.linear_1.weight,
        "t_embedder.mlp.0.bias": emb.timestep_embedder.linear_1.bias,
        "t_embedder.mlp.2.weight": emb.timestep_embedder.linear_2.weight,
        "t_embedder.mlp.2.bias": emb.timestep_embedder.linear_2.bias,
        "y_embedder.embedding_table.weight": table,
        "pos_embed": net.pos_embed.pos_embed,
        "final_layer.linear.weight": net.proj_out_2.weight,
        "final_layer.linear.bias": net.proj_out_2.bias,
        "final_layer.adaLN_modulation.1.weight": net.proj_out_1.weight,
        "final_layer.adaLN_modulation.1.bias": net.proj_out_1.bias,
    }
    for i, block in enumerate(net.transformer_blocks):
        attn = block.attn1
        for part in ("weight", "bias"):
            qkv = [getattr(layer, part) for layer in (attn.to_q, attn.to_k, attn.to_v)]
            out[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(qkv)
            out[f"blocks.{i}.attn.proj.{part}"] = getattr(attn.to_out[0], part)
            out[f"blocks.{i}.mlp.fc1.{part}"] = getattr(block.ff.net[0].proj, part)
            out[f"blocks.{i}.mlp.fc2.{part}"] = getattr(block.ff.net[2], part)
            out[f"blocks.{i}.adaLN_modulation.1.{part}"] = getattr(block.norm1.linear, part)
    return {name: tensor.detach().contiguous().clone() for name, tensor in out.items()}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    net = network()
    x = torch.randn(4, CHANNELS, SIDE, SIDE)
    t = torch.tensor([0.0, 3.5, 250.0, 999.0])  # fractional too
    y = torch.tensor([0, 4, CLASSES, 2])  # the null class too
    with torch.no_grad():
        output = net(x, timestep=t, class_labels=y).sample
    save_file(state_dict(net), folder / "dit-weights.safetensors")
    save_file({"x": x, "t": t, "y": y, "output": output}, folder / "dit-io.safetensors")


if __name__ == "__main__":
    main()
