"""Asks a windowpane server, which serves `tiny` with room for ten images, for everything that our own client can.

    python windowpane_client.py http://127.0.0.1:8080 FOLDER

FOLDER is where pip has installed the client. Prints one JSON object: a picture, and numbers to be compared.
"""

import asyncio
import base64
import contextlib
import io
import json
import runpy
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image as Pillow


def main(url, folder):
    sys.path.insert(0, folder)
    import windowpane
    from windowpane import ApiError, AsyncClient, Client, JobFailed

    assert windowpane.__file__.startswith(folder), windowpane.__file__

    with Client(url) as client:
        (listed,) = client.models()
        model = client.model("tiny")
        assert (listed.id, model.id, model.width, model.channels) == ("tiny", "tiny", 32, 1)
        assert model.card.startswith("# tiny") and model.classes[3].name == "ring"

        (image,) = client.generate("tiny", prompt="ring", seed=7, steps=2)
        assert (image.seed, image.provenance["digest"]) == (7, model.digest)
        assert client.replay(image).identical
        (same,) = client.generate("tiny", class_=3, seed=np.int64(7), steps=2, output="arrays", trajectory=1)
        assert same.array.shape == (1, 32, 32) and same.frames.shape == (2, 1, 32, 32)
        assert np.array_equal(same.frames[-1], same.array)
        pixels = np.clip(np.rint((same.array[0] + 1) * 127.5), 0, 255).astype(np.uint8)
        assert np.array_equal(pixels, np.asarray(Pillow.open(io.BytesIO(image.png))))
        (again,) = client.generate("tiny", prompt="ring", init_image=pixels, strength=0.5, seed=7, steps=2)
        (other,) = client.generate("tiny", prompt="ring", x_t=same.frames[0], seed=7, steps=2)
        assert len({one.png for one in [image, again, other]}) == 3

        # The picture in every form that a caller may have it in: one look, always the same.
        looks = [client.attention("tiny", image=one, seed=1, timestep=300, layers=[0, 3], tokens=[(16, 15)])
                 for one in [image, image.png, pixels]]
        assert len({look.layers[1].mean.tobytes() for look in looks}) == 1
        (windowed, everywhere) = looks[0].layers
        assert windowed.heads.shape == (2, 1, 32, 32) and np.allclose(windowed.mean.sum((1, 2)), 1, atol=1e-5)
        assert (windowed.window, everywhere.window) == (3, None) and abs(windowed.locality.within[3] - 1) < 1e-6
        numbers = client.attention("tiny", image=same, seed=1, timestep=300, layers=[0], maps="mean", layout="compact")
        assert numbers.layers[0].heads is None and numbers.layers[0].mean.shape == (1024, 3, 3)
        sample = dict(prompt="ring", seed=7, steps=4, timestep=500)
        attention = client.attention("tiny", maps="none", **sample)

        top = client.jacobian("tiny", k=3, **sample)
        assert top.right.shape == top.left.shape == (3, 1, 32, 32) and top.residuals.shape == (3,)
        whole = client.jacobian("tiny", x_t=top.x_t, timestep=top.about["timestep"], prompt="ring", method="full", k=2,
                                matrix=True)
        matrix = whole.whole.matrix
        assert np.allclose(matrix @ whole.right[0].ravel(), whole.singular_values[0] * whole.left[0].ravel(), atol=1e-4)
        symmetric = (matrix + matrix.T) / 2 @ whole.whole.eigenvectors[0].ravel()
        assert np.allclose(symmetric, whole.whole.eigenvalues[0] * whole.whole.eigenvectors[0].ravel(), atol=1e-4)
        assert np.all(np.abs(top.singular_values - whole.singular_values[:3]) <= top.residuals + 1e-4)

        for drawn in [client.draw_attention("tiny", image=image, seed=1, timestep=300, layers=[0]),
                      client.draw_jacobian("tiny", k=2, vectors="left", timestep=300, prompt="ring", seed=1)]:
            assert Pillow.open(io.BytesIO(drawn)).mode == "RGB"

        seen, unseen = np.stack([pixels] * 2), np.stack([255 - pixels] * 3)
        gap = client.psnr_gap("tiny", train=seen, test=unseen, train_labels=[3, "ring"], timesteps=2, seed=1)
        assert (gap.train.images, gap.test.images, len(gap.curve)) == (2, 3, 2) and gap.interval[0] <= gap.gap, gap
        alone = client.psnr_gap("tiny", train=seen, train_labels=[3, "ring"], timesteps=2, seed=1)
        assert alone.gap is None and alone.psnr.mean == gap.train.mean
        table = client.draw_psnr_gap("tiny", train=seen, timesteps=2, output="csv").decode()
        assert table.startswith("timestep,") and len(table.split()) == 3, table

        def refused(ask, **fields):
            try:
                ask("tiny", **fields)
            except ApiError as error:
                assert error.request_id and error.message
                return error.status, error.code, error.param
            raise AssertionError(f"{fields} must be refused")

        assert refused(client.generate, prompt="ring", steps=0) == (422, "invalid_value", "steps")
        assert refused(client.attention, prompt="ring", timestep=300, layers=[9]) == (422, "invalid_value", "layers")

        # The same looks as jobs, and more images than one request draws.
        states = []
        look = client.submit("attention", id="py/look", model="tiny", maps="none", **sample)
        look.wait(lambda status: states.append(status.state))
        assert states[0] == "queued" and states[-1] == "succeeded", states
        assert look.status.progress.done == look.status.progress.total > 0, look.status
        names = [one.name for one in look.events()]
        assert "running" in names and (names[0], names[-1]) == ("queued", "succeeded"), names
        again = client.submit("attention", id="py/look", model="tiny", maps="none", **sample)
        for found in [look, again, client.job("py/look")]:
            assert found.status.is_over
            assert [layer.locality for layer in found.result().layers] == [layer.locality for layer in attention.layers]
        spectrum = client.submit("jacobian", model="tiny", k=3, **sample).result()
        assert np.array_equal(spectrum.singular_values, top.singular_values)
        assert np.array_equal(spectrum.right, top.right)
        sides = dict(train=seen, test=unseen, train_labels=[3, "ring"], timesteps=2, seed=1)
        assert client.submit("psnr-gap", model="tiny", **sides).result().gap == gap.gap
        many = client.submit("images", model="tiny", prompt="ring", n=3, seed=7, steps=2)
        drawn = many.result()
        assert (drawn.images.shape, drawn.seeds.tolist(), drawn.labels.tolist()) == ((3, 32, 32, 1), [7, 8, 9], [3, 3, 3])
        assert np.array_equal(drawn.images[0, :, :, 0], pixels) and drawn.about["digest"] == model.digest
        archive = client.submit("images", model="tiny", classes="each", n=len(model.classes), steps=1, output="zip")
        with tempfile.TemporaryDirectory() as scratch:
            kept = np.load(many.download(Path(scratch) / "many.npz"))
            assert np.array_equal(kept["arr_0"], drawn.images)
            with zipfile.ZipFile(archive.download(Path(scratch) / "each.zip")) as files:
                assert files.namelist()[3] == "003/000003.png" and len(files.namelist()) == len(model.classes) + 1
                assert Pillow.open(files.open("003/000003.png")).size == (32, 32)
        endless = client.submit("images", model="tiny", prompt="ring", n=10_000, steps=1000)
        assert endless.cancel().state == "cancelled"
        try:
            raise AssertionError(endless.result())
        except JobFailed as error:
            assert error.code == "cancelled"
        assert refused(lambda model, **fields: client.submit("images", model=model, **fields), n=0) == \
            (422, "invalid_value", "request.n")

        # A request that would take for ever is in the way of another, until somebody cancels it.
        ends = []
        fields = dict(prompt="ring", n=10, steps=1000, request_id="py/endless")
        endless = threading.Thread(target=lambda: ends.append(refused(client.generate, **fields)))
        endless.start()
        while not client.model("tiny").raw["queue"]["images"]:
            time.sleep(0.01)
        assert refused(client.generate, prompt="ring", steps=1) == (429, "overloaded", None)
        assert client.cancel("py/endless") == 1
        endless.join()
        assert ends == [(409, "cancelled", None)]

    async def both():
        async with AsyncClient(f"{url}/v1", retries=20) as client:
            job = await client.submit("images", model="tiny", prompt="ring", n=1, seed=7, steps=2)
            assert np.array_equal((await job.result()).images[0, :, :, 0], pixels)
            # There is room for one of them at a time: the others come back when they are told to.
            return await asyncio.gather(
                *[client.generate("tiny", prompt="ring", seed=7, steps=2, n=10) for _ in range(3)]
            )

    assert {images[0].png for images in asyncio.run(both())} == {image.png}

    # The examples: the pictures that they draw themselves, and of one the server's.
    examples = Path(__file__).parents[2] / "clients" / "python" / "examples"
    sys.path.insert(0, str(examples))
    for name, least, says, flags in [
        ("figure1", 400, "tiny: ", []),
        ("figure3", 400, "tiny: 1024 eigenvalues from ", []),
        ("figure4", 400, "tiny: 4 layers of 32×32 tokens", []),
        ("figure4", 1000, "the server's picture of tiny's attention", ["--server"]),
    ]:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / f"{name}.png"
            sys.argv = [name, "--url", url, "--model", "tiny", "--prompt", "ring", "--out", str(out), *flags]
            with contextlib.redirect_stdout(io.StringIO()) as told:
                runpy.run_path(str(examples / f"{name}.py"), run_name="__main__")
            drawn = Pillow.open(out)
            assert drawn.width > least and says in told.getvalue(), (name, drawn.width, told.getvalue())
            assert len(set(drawn.convert("L").tobytes())) > 50, (name, flags, "it is empty")
    with tempfile.TemporaryDirectory() as scratch:
        sets = [str(Path(scratch) / f"{name}.npy") for name in ("train", "test")]
        for path in sets:
            np.save(path, np.random.default_rng(len(path)).integers(0, 256, (4, 32, 32), np.uint8))
        sys.argv = ["memorising", "--url", url, "--model", "tiny", "--looks", "1", "--train", sets[0], "--test", sets[1]]
        with contextlib.redirect_stdout(io.StringIO()) as told:
            runpy.run_path(str(examples / "memorising.py"), run_name="__main__")
        lines = told.getvalue().splitlines()
        assert [line[:2] for line in lines if line[0] != " "] == ["1.", "2.", "3.", "4."], told.getvalue()
        assert "  layer 0, 3×3 " in told.getvalue(), told.getvalue()
        # The interval that can tell whether there is a gap.
        with Client(url) as client:
            gap = client.psnr_gap("tiny", train=np.load(sets[0]), test=np.load(sets[1]), images=4, seed=1)
        low, high = gap.unclipped_interval
        said = next(line for line in lines if line.endswith("; a gap" if low > 0 else "; no gap was seen"))
        assert said.startswith(f"  {gap.unclipped:.2f} dB ({low:.2f} to {high:.2f}): "), told.getvalue()

    print(json.dumps({
        "png": base64.b64encode(image.png).decode(),
        "distances": [layer.locality.distance for layer in attention.layers],
        "singular_values": top.singular_values.tolist(),
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
