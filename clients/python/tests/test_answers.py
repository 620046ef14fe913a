"""What answers become. They are a real server's where one was recorded."""

import base64
import json

import httpx
import numpy as np
import pytest
from mock import EXAMPLES, Server, npz, recorded

from windowpane import UnexpectedAnswer


def test_models_are_read():
    with Server(recorded("models"), recorded("model")).client() as client:
        (listed,) = client.models()
        model = client.model("tiny")
    assert (model.id, model.width, model.height, model.channels) == ("tiny", 32, 32, 1)
    assert [(one.index, one.name, one.aliases) for one in model.classes][3] == (3, "ring", ("circle",))
    assert model.card.startswith("# tiny") and listed.card is None
    assert model.lineage["metrics"]["psnr_gap_db"] > 0 and model.defaults["sampler"] == "ddim"
    assert model.raw["golden"]["cases"] == 3


def test_images_are_read(tmp_path):
    told = json.loads((EXAMPLES / "image.json").read_text())["response"]["body"]["data"][0]
    with Server(recorded("image")).client() as client:
        (image,) = client.generate("tiny", prompt="ring")
    assert image.png == base64.b64decode(told["b64_json"]) and image.png.startswith(b"\x89PNG")
    assert (image.seed, image.format, image.array) == (int(told["seed"]), "png", None)
    assert image.provenance["model"] == "tiny"
    assert image.save(tmp_path / "ring.png").read_bytes() == image.png


def test_arrays_are_read():
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    frames = np.arange(48, dtype=np.float32).reshape(1, 2, 2, 3, 4)
    files = [npz([{}], images=values, seeds=np.array([7])),
             npz([{}], images=values, frames=frames, frames_x0=-frames, seeds=np.array([8]))]
    data = [{"b64_json": file, "seed": str(7 + i), "provenance": {}} for i, file in enumerate(files)]
    with Server(httpx.Response(200, json={"data": data, "output_format": "npz"})).client() as client:
        first, second = client.generate("tiny", output="arrays", trajectory=1)
    assert np.array_equal(first.array, values[0]) and first.frames is None and first.seed == 7
    assert np.array_equal(second.frames, frames[0]) and np.array_equal(second.frames_x0, -frames[0])
    with pytest.raises(ValueError, match="npz, not a PNG"):
        first.png  # noqa: B018


def locality(distance):
    within = [{"side": 1, "share": 0.5}, {"side": 3, "share": 1.0}]
    return {"distance": distance, "entropy": 0.3, "within": within, "effective_window": 3}


def attention():
    """An answer to a look at attention: layer 0 with both maps, layer 4 with none."""
    arrays = {"x_t": np.zeros((1, 4, 4), np.float32), "prediction": np.ones((1, 4, 4), np.float32),
              "heads": np.arange(2), "layer.0.heads": np.zeros((2, 1, 2, 2), np.float32),
              "layer.0.mean": np.ones((1, 2, 2), np.float32)}
    layers = [{"layer": layer, "window": window, "attention": None, "mean": None, "locality": locality(layer),
               "locality_by_head": [locality(8), locality(9)]} for layer, window in [(0, 3), (4, "global")]]
    return {"about": {"model": "tiny", "timestep": 500.0}, "grid": [2, 2], "heads": [0, 1], "tokens": [3], "layout": "grid",
            "layers": layers, "output_format": "npz", "b64_json": npz({"model": "tiny"}, **arrays)}


def test_attention_is_read():
    with Server(httpx.Response(200, json=attention())).client() as client:
        look = client.attention("tiny", prompt="ring", timestep=500)
    first, second = look.layers
    assert (first.layer, first.window, second.layer, second.window) == (0, 3, 4, None)
    assert first.heads.shape == (2, 1, 2, 2) and first.mean.sum() == 4 and second.heads is second.mean is None
    assert first.locality.within == {1: 0.5, 3: 1.0} and second.locality.distance == 4
    assert [head.distance for head in first.locality_by_head] == [8, 9]
    assert (look.grid, look.heads, look.tokens, look.about["timestep"]) == ((2, 2), (0, 1), (3,), 500.0)
    assert look.x_t.sum() == 0 and look.prediction.sum() == 16


def jacobian(**changes):
    return {"about": {"of": "x0"}, "dimension": 4, "singular_values": [2.0, 1.0], "residuals": [0.1, 0.2], "converged": 1,
            "iterations": 3, "harmonicity": [{"band": 1, "share": 0.9}, {"band": 0, "share": 0.4}], "whole": None,
            "output_format": "npz", **changes}


def test_the_largest_of_a_jacobian_are_read():
    vectors = {"right": np.ones((2, 1, 2, 2), np.float32), "left": np.zeros((2, 1, 2, 2), np.float32),
               "x_t": np.zeros((1, 2, 2), np.float32), "residuals": np.zeros(2, np.float32)}
    with Server(httpx.Response(200, json=jacobian(b64_json=npz({}, **vectors)))).client() as client:
        look = client.jacobian("tiny", prompt="ring", timestep=500, k=2)
    assert look.singular_values.tolist() == [2.0, 1.0] and look.residuals.tolist() == [0.1, 0.2]
    assert look.harmonicity.tolist() == [0.9, 0.4] and look.band.tolist() == [1, 0]
    assert look.right.sum() == 8 and look.left.sum() == 0 and look.whole is None
    assert (look.converged, look.iterations, look.dimension) == (1, 3, 4)


def test_a_whole_jacobian_is_read():
    vectors = {name: np.ones((1, 1, 2, 2), np.float32) for name in ["right", "left", "eigenvectors"]}
    vectors |= {"x_t": np.zeros((1, 2, 2), np.float32), "jacobian": np.eye(4, dtype=np.float32)}
    whole = {"norm": 3.0, "asymmetry": 0.1, "eigenvalues": [2.0, 1.0, 0.0, -1.0],
             "harmonicity": [{"band": 2, "share": 0.7}]}
    told = jacobian(residuals=None, converged=None, iterations=None, whole=whole, b64_json=npz({}, **vectors))
    with Server(httpx.Response(200, json=told)).client() as client:
        look = client.jacobian("tiny", prompt="ring", timestep=500, method="full", matrix=True)
    assert look.residuals is None and look.converged is None
    assert (look.whole.norm, look.whole.asymmetry, look.whole.band.tolist()) == (3.0, 0.1, [2])
    assert look.whole.eigenvalues.tolist() == [2.0, 1.0, 0.0, -1.0] and look.whole.eigenvectors.shape == (1, 1, 2, 2)
    assert np.array_equal(look.whole.matrix, np.eye(4))


def test_a_gap_is_read_and_a_set_alone():
    told = json.loads((EXAMPLES / "psnr_gap.json").read_text())["response"]["body"]["gap"]
    with Server(recorded("psnr_gap"), recorded("psnr_gap_alone")).client() as client:
        both, alone = client.psnr_gap("tiny"), client.psnr_gap("tiny", train=b"PK")
    assert (both.gap, both.unclipped, both.interval) == (told["gap"], told["unclipped"], tuple(told["interval"]))
    assert (both.train.mean, both.test.mean) == (told["train"]["mean"], told["test"]["mean"])
    assert both.timesteps.tolist() == told["timesteps"] and both.curve.tolist() == told["curve"] and both.psnr is None
    assert alone.gap is alone.interval is alone.train is None and alone.psnr.images > 0
    assert alone.psnr.intervals.shape == (len(alone.timesteps), 2) and alone.about["model"] == "tiny"


def test_a_replay_is_read():
    with Server(recorded("replay"), recorded("cancel")).client() as client:
        found = client.replay(b"a png")
        assert client.cancel("req_1") == 1
    assert found.identical and found.differing == found.max_difference == 0
    assert found.pixels == 1024 and found.provenance["model"] == "tiny"


@pytest.mark.parametrize("answer", [
    httpx.Response(200, text="<html>It works!</html>"),
    httpx.Response(200, json=[]),
    httpx.Response(200, json={"data": [{"id": "tiny"}]}),
])
def test_what_is_no_windowpane_is_told_apart(answer):
    with Server(answer).client() as client, pytest.raises(UnexpectedAnswer, match="v1/models"):
        client.models()
