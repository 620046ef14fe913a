"""What is sent: as the document has it, and nothing that was not said."""

import base64
import io
import zipfile

import httpx
import numpy as np
import pytest
from mock import Server, recorded

from windowpane import Image


def test_what_is_left_out_is_not_sent():
    server = Server(recorded("image"))
    with server.client(api_key="secret") as client:
        client.generate("tiny", class_="ring", seed=np.int64(7), request_id="mine/1")
    (request,) = server.asked
    assert server.lines() == ["POST /v1/images/generations"]
    assert server.bodies() == [{"model": "tiny", "class": "ring", "seed": 7, "output_format": "png"}]
    assert request.headers["authorization"] == "Bearer secret"
    assert (request.headers["accept"], request.headers["x-request-id"]) == ("application/json", "mine/1")


def test_the_v1_of_other_clients_may_be_there():
    from windowpane import Client

    for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"]:
        server = Server(recorded("models"))
        Client(url, transport=httpx.MockTransport(server)).models()
        assert str(server.asked[0].url) == "http://h:1/v1/models"


def test_names_are_parts_of_a_path():
    server = Server(recorded("model"), recorded("cancel"))
    with server.client() as client:
        client.model("a/b c")
        client.cancel("req/1")
    assert server.lines() == ["GET /v1/models/a%2Fb%20c", "DELETE /v1/requests/req%2F1"]


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (5, 7, 3)])
def test_pixels_go_as_a_png(shape):
    from PIL import Image as Pillow

    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    server = Server(httpx.Response(200, content=b"picture"))
    with server.client() as client:
        assert client.draw_attention("tiny", image=pixels, timestep=500, tokens=[np.int64(3), (1, 2)]) == b"picture"
    (body,) = server.bodies()
    read = Pillow.open(io.BytesIO(base64.b64decode(body["image"])))
    assert read.mode == ("RGB" if shape[-1] == 3 else "L")
    assert np.array_equal(np.asarray(read), pixels.squeeze())
    assert body["tokens"] == [3, [1, 2]]
    assert server.asked[0].headers["accept"] == "image/png"


def test_numbers_go_as_npy_and_paths_and_images_as_they_are(tmp_path):
    values = np.linspace(-1, 1, 12).reshape(1, 3, 4)
    (tmp_path / "a.png").write_bytes(b"a png")
    drawn = Image(b"its png", "png", 7, {})
    unrounded = Image(b"npz", "npz", 7, {}, array=values)
    server = Server(*[httpx.Response(200, content=b"")] * 4)
    with server.client() as client:
        for image in [values, tmp_path / "a.png", drawn, unrounded]:
            client.draw_jacobian("tiny", image=image, timestep=500)
    first, path, image, arrays = (base64.b64decode(body["image"]) for body in server.bodies())
    assert first == arrays and (path, image) == (b"a png", b"its png")
    read = np.load(io.BytesIO(first))
    assert read.dtype == np.float32 and np.array_equal(read, values.astype(np.float32))


def test_sets_of_images_go_in_a_form(tmp_path):
    names = [f"{letter}.png" for letter in "qwertyuiop"]
    (tmp_path / "z bag").mkdir()
    names.append("z bag/a.png")
    for name in [*names, "notes.txt"]:
        (tmp_path / name).write_text(name)
    server = Server(httpx.Response(200, content=b"a,b"))
    with server.client() as client:
        pixels = np.zeros((2, 4, 4), np.uint8)
        client.draw_psnr_gap("tiny", train=tmp_path, test=pixels, train_labels=[np.int64(0), "bag"], resize=True, output="csv")
    (request,) = server.asked
    kind = request.headers["content-type"]
    assert kind.startswith("multipart/form-data; boundary=") and request.headers["accept"] == "text/csv"
    import email

    whole = email.message_from_bytes(b"content-type: " + kind.encode() + b"\r\n\r\n" + request.content)
    parts = {part.get_param("name", header="content-disposition"): part for part in whole.get_payload()}
    text = {name: part.get_payload() for name, part in parts.items() if name not in ("train", "test")}
    assert text == {"model": "tiny", "train_labels": '[0, "bag"]', "resize": "true", "output_format": "csv"}
    archive = zipfile.ZipFile(io.BytesIO(parts["train"].get_payload(decode=True)))
    assert [(name, archive.read(name)) for name in archive.namelist()] == \
        [(name, name.encode()) for name in sorted(names)]
    read = np.load(io.BytesIO(parts["test"].get_payload(decode=True)))
    assert read.dtype == np.uint8 and read.shape == (2, 4, 4)


def test_a_reference_set_needs_no_form():
    server = Server(httpx.Response(200, content=b""))
    with server.client() as client:
        client.draw_psnr_gap("tiny", images=300)
    assert server.bodies() == [{"model": "tiny", "images": 300, "output_format": "png"}]


def test_what_is_no_picture_is_said_here(tmp_path):
    with Server().client() as client:
        with pytest.raises(ValueError, match=r"\[h, w\] or \[h, w, 3\], not \[2, 2, 2\]"):
            client.attention("tiny", image=np.zeros((2, 2, 2), np.uint8), timestep=1)
        with pytest.raises(ValueError, match="there is no PNG in"):
            client.psnr_gap("tiny", train=tmp_path)
        with pytest.raises(TypeError, match="colour"):
            client.generate("tiny", colour="red")
        with pytest.raises(TypeError, match="colour"):
            client.submit("images", colour="red")
        with pytest.raises(ValueError, match="`kind` is 'dance', expected one of attention, jacobian"):
            client.submit("dance")
