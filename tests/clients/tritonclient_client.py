"""Asks a windowpane server for inference with the `tritonclient` package, as one of its users would.

    python tritonclient_client.py http://127.0.0.1:8080
    python tritonclient_client.py http://127.0.0.1:8080 KEY

The server serves models/tiny. Prints one JSON object: what it said of itself, images, and what became of requests that
must fail. With an administrator's key, models/tiny is unloaded and loaded again instead.
"""

import base64
import json
import sys

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def refused(ask):
    """The status and message of a request that must fail."""
    try:
        ask()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    raise AssertionError("a request that must fail did not")


def tensor(name, array, binary=True):
    one = http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return one.set_data_from_numpy(array, binary_data=binary)


def words(*names):
    return np.array([name.encode() for name in names], dtype=np.object_)


def rows(binary=True, **arrays):
    return [tensor(name, array, binary) for name, array in arrays.items()]


def told(client):
    """What the server says of itself and of its models."""
    assert client.is_server_live() and client.is_server_ready()
    for model, version in [("tiny", ""), ("tiny", "1"), ("tiny.sampler", "1")]:
        assert client.is_model_ready(model, version), (model, version)
    assert not client.is_model_ready("tiny", "2") and not client.is_model_ready("none")
    extensions = client.get_server_metadata()["extensions"]
    assert "binary_tensor_data" in extensions, extensions
    assert client.get_model_metadata("tiny") == client.get_model_metadata("tiny", "1")
    index = client.get_model_repository_index()
    assert all(set(entry) == {"name", "version", "state", "reason"} for entry in index), index
    return {
        "server": client.get_server_metadata(),
        "denoiser": client.get_model_metadata("tiny"),
        "sampler": client.get_model_metadata("tiny.sampler"),
        "config": client.get_model_config("tiny.sampler"),
        "index": [[entry["name"], entry["state"]] for entry in index],
    }


def denoise(client):
    """The network itself: every way of asking for the same gives the same, and a row depends on nothing but itself."""
    random = np.random.default_rng(7)
    x = random.standard_normal((3, 1, 32, 32)).astype(np.float32)
    arrays = {"x": x, "t": np.array([0, 500.5, 999], np.float32), "y": np.array([0, 3, 4], np.int64)}
    # Nothing but the inputs: the client asks for bytes then.
    whole = client.infer("tiny", rows(**arrays), request_id="mine")
    response = whole.get_response()
    assert response["id"] == "mine" and response["model_name"] == "tiny" and response["model_version"] == "1", response
    assert response["outputs"][0]["parameters"]["binary_data_size"] == 4 * x.size, response
    prediction = whole.as_numpy("prediction")
    assert prediction.dtype == np.float32 and prediction.shape == x.shape and np.isfinite(prediction).all()
    assert np.abs(prediction).max() > 0
    as_json = http.InferRequestedOutput("prediction", binary_data=False)
    as_bytes = http.InferRequestedOutput("prediction", binary_data=True)
    for other in [
        client.infer("tiny", rows(binary=False, **arrays), outputs=[as_json], model_version="1"),
        client.infer("tiny", rows(binary=False, **arrays), outputs=[as_bytes]),
        client.infer("tiny", rows(**arrays), outputs=[as_json]),
        client.infer("tiny", [tensor("x", x), *rows(False, t=arrays["t"].astype(np.float64), y=arrays["y"])]),
        client.infer("tiny", rows(**arrays), request_compression_algorithm="gzip", response_compression_algorithm="gzip"),
        client.infer("tiny", rows(**arrays), request_compression_algorithm="deflate", response_compression_algorithm="deflate"),
        client.infer("tiny", rows(**arrays), timeout=60_000_000, parameters={"reproducible": True}),
        client.async_infer("tiny", rows(**arrays)).get_result(),
    ]:
        assert np.array_equal(other.as_numpy("prediction"), prediction)
    for i in range(3):
        alone = client.infer("tiny", rows(**{name: array[i : i + 1] for name, array in arrays.items()}))
        assert np.array_equal(alone.as_numpy("prediction")[0], prediction[i]), i
    # Without labels: no class, which is the label after the last class.
    free = client.infer("tiny", rows(x=x[2:], t=arrays["t"][2:]))
    assert np.array_equal(free.as_numpy("prediction")[0], prediction[2])


def sample(client):
    """Many different images of one call."""
    arrays = {
        "seed": np.array([7, 7, 2**63 - 1], np.int64),
        "class": words("ring", "Blob", "horizon"),
        "steps": np.array([2, 3, 4], np.int32),
        "guidance": np.array([1.5, 1.0, 3.5], np.float32),
        "eta": np.array([0.0, 0.5, 0.0], np.float32),
        "sampler": words("ddim", "ddim", "heun"),
    }
    result = client.infer("tiny.sampler", rows(**arrays))
    images, samples = result.as_numpy("images"), result.as_numpy("samples")
    assert images.dtype == np.uint8 and images.shape == (3, 32, 32, 1), images.shape
    assert samples.dtype == np.float32 and samples.shape == (3, 1, 32, 32), samples.shape
    # The picture is the sample, from -1…1 to 0…255.
    assert np.abs(images[:, :, :, 0] - (samples[:, 0].clip(-1, 1) + 1) * 127.5).max() <= 0.51
    # As JSON, classes by number, and only what is wanted: the same images.
    numbers = arrays | {"class": np.array([3, 2, 0], np.int64)}
    wanted = [http.InferRequestedOutput("images", binary_data=False)]
    again = client.infer("tiny.sampler", rows(binary=False, **numbers), outputs=wanted)
    assert np.array_equal(again.as_numpy("images"), images) and again.as_numpy("samples") is None
    # Other integers, other order.
    other = {"class": np.array([3], np.uint32), "steps": np.array([2], np.uint64), "seed": np.array([7], np.int32)}
    assert np.array_equal(client.infer("tiny.sampler", rows(**other)).as_numpy("images")[0], images[0])
    return [base64.b64encode(image.tobytes()).decode() for image in images]


def insides(client):
    """The graphs of the network's insides: they agree with the network, and with each other."""
    random = np.random.default_rng(11)
    x = random.standard_normal((2, 1, 32, 32)).astype(np.float32)
    arrays = {"x": x, "t": np.array([250, 700.5], np.float32), "y": np.array([1, 4], np.int64)}
    metadata = client.get_model_metadata("tiny.attention")
    names = [output["name"] for output in metadata["outputs"]]
    assert names == ["prediction"] + [f"attention.{i}" for i in range(4)], names
    whole = client.infer("tiny.attention", rows(**arrays))
    prediction = client.infer("tiny", rows(**arrays)).as_numpy("prediction")
    assert np.abs(whole.as_numpy("prediction") - prediction).max() < 1e-4 * np.abs(prediction).max()
    for output in metadata["outputs"][1:]:
        maps = whole.as_numpy(output["name"])
        assert list(maps.shape) == [2, *output["shape"][1:]], (maps.shape, output)
        assert np.abs(maps.sum(-1) - 1).max() < 1e-5 and maps.min() >= 0
    wanted = [http.InferRequestedOutput("attention.1", binary_data=False)]
    alone = client.infer("tiny.attention", rows(**{n: a[1:] for n, a in arrays.items()}), outputs=wanted)
    assert np.array_equal(alone.as_numpy("attention.1")[0], whole.as_numpy("attention.1")[1])

    # Seven vectors are several calls.
    one = {name: array[:1] for name, array in arrays.items()}
    v, u = (random.standard_normal((7, 1, 32, 32)).astype(np.float32) for _ in range(2))
    forward = client.infer("tiny.jvp", rows(**one, vectors=v)).as_numpy("products")
    back = client.infer("tiny.vjp", rows(**one, vectors=u)).as_numpy("products")
    assert forward.shape == back.shape == v.shape and forward.dtype == np.float32
    # <u, J v> = <J' u, v> for every pair.
    one_way = np.einsum("achw,bchw->ab", u.astype(np.float64), forward.astype(np.float64))
    other = np.einsum("achw,bchw->ab", back.astype(np.float64), v.astype(np.float64))
    adjoint = float(np.abs(one_way - other).max() / np.abs(one_way).max())
    # And J v is what the prediction does a small step away.
    step = np.float32(1e-2)
    moved = {"x": np.concatenate([one["x"] + step * v[:1], one["x"] - step * v[:1]]), "t": one["t"].repeat(2), "y": one["y"].repeat(2)}
    ahead, behind = client.infer("tiny", rows(**moved)).as_numpy("prediction").astype(np.float64)
    difference = (ahead - behind) / (2 * step)
    slope = float(np.abs(difference - forward[0]).max() / np.abs(forward[0]).max())
    config = client.get_model_config("tiny.jvp")
    return {
        "adjoint": adjoint,
        "slope": slope,
        "jvp": client.get_model_metadata("tiny.jvp")["inputs"],
        "max_batch_size": config["max_batch_size"],
        "two_images": refused(lambda: client.infer("tiny.jvp", rows(**arrays, vectors=v))),
        "no_vectors": refused(lambda: client.infer("tiny.vjp", rows(**one))),
        "not_finite": refused(lambda: client.infer("tiny.vjp", rows(**one, vectors=v * np.inf))),
        "too_many": refused(lambda: client.infer("tiny.vjp", rows(**one, vectors=np.zeros((65, 1, 32, 32), np.float32)))),
        "too_large": refused(lambda: client.infer(
            "tiny.attention", rows(x=x.repeat(16, 0), t=arrays["t"].repeat(16)), outputs=[http.InferRequestedOutput("attention.3")])),
    }


def failures(client):
    x, t = np.zeros((1, 1, 32, 32), np.float32), np.zeros(1, np.float32)
    seed, ring = np.array([7], np.int64), words("ring")
    shared = http.InferInput("x", [1, 1, 32, 32], "FP32")
    shared.set_shared_memory("region", 4096)

    def infer(model, inputs, **more):
        return refused(lambda: client.infer(model, inputs, **more))

    return {
        "unknown_model": infer("none", rows(x=x, t=t)),
        "unknown_version": infer("tiny", rows(x=x, t=t), model_version="2"),
        "missing": infer("tiny", rows(x=x)),
        "unknown_input": infer("tiny", rows(x=x, t=t, z=t)),
        "shape": infer("tiny", rows(x=x[:, :, :16], t=t)),
        "datatype": infer("tiny", rows(x=x.astype(np.float16), t=t)),
        "not_finite": infer("tiny", rows(x=x * np.inf, t=t)),
        "timestep": infer("tiny", rows(x=x, t=t + 1000)),
        "label": infer("tiny", rows(x=x, t=t, y=np.array([5], np.int64))),
        "rows": infer("tiny", rows(x=x, t=np.zeros(2, np.float32))),
        "too_many": infer("tiny", rows(x=np.zeros((65, 1, 32, 32), np.float32), t=np.zeros(65, np.float32))),
        "output": infer("tiny", rows(x=x, t=t), outputs=[http.InferRequestedOutput("eps")]),
        "classification": infer("tiny", rows(x=x, t=t), outputs=[http.InferRequestedOutput("prediction", class_count=3)]),
        "shared_memory": infer("tiny", [shared, *rows(t=t)]),
        "parameter": infer("tiny", rows(x=x, t=t), parameters={"colour": "red"}),
        "sequence": infer("tiny", rows(x=x, t=t), sequence_id=3),
        "no_class": infer("tiny.sampler", rows(seed=seed)),
        "unknown_class": infer("tiny.sampler", rows(**{"seed": seed, "class": words("cat")})),
        "negative_seed": infer("tiny.sampler", rows(**{"seed": -seed, "class": ring})),
        "steps": infer("tiny.sampler", rows(**{"seed": seed, "class": ring, "steps": np.array([0], np.int32)})),
        "guidance": infer("tiny.sampler", rows(**{"seed": seed, "class": ring, "guidance": np.array([-1], np.float32)})),
        "region": refused(lambda: client.get_system_shared_memory_status()),
    }


def statistics(client):
    return {entry["name"]: entry for entry in client.get_inference_statistics()["model_stats"]}


def reload(client, key):
    """Away and back, for whoever may; the same image before and after."""
    me = {"Authorization": f"Bearer {key}"}
    arrays = {"seed": np.array([7], np.int64), "class": words("ring"), "steps": np.array([1], np.int32)}

    def image():
        return client.infer("tiny.sampler", rows(**arrays), headers=dict(me)).as_numpy("images")

    def states():
        return [[entry["name"], entry["state"]] for entry in client.get_model_repository_index(headers=me)]

    first, told = image(), [states()]
    refusals = {
        "nobody": refused(lambda: client.unload_model("tiny")),
        "unknown": refused(lambda: client.load_model("..tiny", headers=me)),
        "config": refused(lambda: client.load_model("tiny", headers=me, config="{}")),
    }
    client.unload_model("tiny", headers=me)
    told.append(states())
    refusals["unloaded"] = refused(image)
    assert not client.is_model_ready("tiny.sampler")
    client.load_model("tiny.sampler", headers=me)
    told.append(states())
    # Loaded while it serves, it is replaced.
    client.load_model("tiny", headers=me)
    assert np.array_equal(image(), first)
    print(json.dumps({"states": told, "refused": refusals}))


def main(url, key=None):
    client = http.InferenceServerClient(url.removeprefix("http://"), concurrency=2, network_timeout=120)
    if key is not None:
        return reload(client, key)
    said = told(client)
    denoise(client)
    images = sample(client)
    before = statistics(client)
    inside = insides(client)
    failed = failures(client)
    one = client.get_inference_statistics("tiny.sampler")["model_stats"]
    assert [entry["name"] for entry in one] == ["tiny.sampler"], one
    print(json.dumps(said | {
        "images": images, "insides": inside, "failed": failed, "before": before, "after": statistics(client),
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
