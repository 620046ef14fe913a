"""Asks a windowpane server for attention as JSON, as NumPy's archive and as safetensors, and compares the numbers.

    python attention_client.py http://127.0.0.1:8080

Prints one JSON object: what the archive holds, and how many arrays were compared.
"""

import io
import json
import sys
import urllib.request

import numpy as np


def main(url):
    fields = {
        "model": "tiny", "prompt": "ring", "seed": 7, "steps": 4, "timestep": 500,
        "layers": [0, 3], "heads": [1], "tokens": [0, [15, 16], 1023],
    }

    def ask(accept):
        headers = {"content-type": "application/json", "accept": accept}
        request = urllib.request.Request(f"{url}/v1/analysis/attention", json.dumps(fields).encode(), headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            assert answer.headers["content-type"] == accept, answer.headers
            return answer.read()

    told = json.loads(ask("application/json"))
    archive = np.load(io.BytesIO(ask("application/x-npz")), allow_pickle=False)
    assert archive.zip.testzip() is None, "every checksum is right"
    tensors = ask("application/vnd.safetensors")
    length = int.from_bytes(tensors[:8], "little")
    head, data = json.loads(tensors[8 : 8 + length]), tensors[8 + length :]

    def tensor(name):
        kind = {"F32": np.float32, "I64": np.int64}[head[name]["dtype"]]
        first, end = head[name]["data_offsets"]
        return np.frombuffer(data[first:end], kind).reshape(head[name]["shape"])

    for name in archive.files:
        if not name.endswith(".json"):
            assert np.array_equal(archive[name], tensor(name)), name
    assert head["__metadata__"]["about"].encode() == archive["about.json"]
    assert archive["tokens"].tolist() == told["tokens"] == [0, 15 * 32 + 16, 1023]
    compared = 0
    for layer in told["layers"]:
        for ours, theirs in [("attention", "heads"), ("mean", "mean")]:
            array = np.array(layer[ours]["data"], np.float32).reshape(layer[ours]["shape"])
            assert np.array_equal(array, archive[f"layer.{layer['layer']}.{theirs}"]), (layer["layer"], ours)
            compared += 1
        number = layer["layer"]
        within = [[entry["share"] for entry in of["within"]] for of in [layer["locality"], *layer["locality_by_head"]]]
        assert np.array_equal(np.array(within[0], np.float32), archive[f"layer.{number}.within"])
        assert np.array_equal(np.array(within[1:], np.float32), archive[f"layer.{number}.heads.within"])
        local = [
            [of["distance"], of["entropy"], of["effective_window"]]
            for of in [layer["locality"], *layer["locality_by_head"]]
        ]
        assert np.array_equal(np.array(local, np.float32), archive[f"layer.{number}.locality"])
    print(json.dumps({
        "names": sorted(archive.files), "about": json.loads(archive["about.json"]), "compared": compared,
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
