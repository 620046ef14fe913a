"""Asks a windowpane server for images with the `openai` package, as one of its users would.

    python openai_client.py http://127.0.0.1:8080

Prints one JSON object: the picture, the models, and what became of requests that must fail.
"""

import base64
import io
import json
import sys

import openai
from PIL import Image


def refused(ask):
    """The error class, code, field and message of a request that must fail."""
    try:
        ask()
    except openai.APIStatusError as error:
        return {"class": type(error).__name__, "code": error.code, "param": error.param, "message": error.message}
    raise AssertionError("a request that must fail did not")


def main(url):
    # No retries: an overload is to be seen, not waited out.
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)

    fields = {"seed": 7, "steps": 2}
    answer = client.images.generate(model="tiny", prompt="Ring", n=1, size="auto", extra_body=fields)
    (image,) = answer.data
    picture = Image.open(io.BytesIO(base64.b64decode(image.b64_json)))
    picture.load()
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (32, 32)), picture
    assert answer.created > 1_600_000_000, answer.created
    # Our fields come through as extras of the response.
    assert image.seed == "7", image
    assert answer.steps == 2 and answer.size == "32x32", answer

    # Their own words for the same: what a caller writes who does not know that this is another server.
    large = client.images.generate(
        model="tiny", prompt="ring", size="64x64", response_format="b64_json", output_format="webp", quality="auto",
        background="opaque", moderation="low", user="me", extra_body=fields,
    )
    enlarged = Image.open(io.BytesIO(base64.b64decode(large.data[0].b64_json)))
    assert (enlarged.format, enlarged.size) == ("WEBP", (64, 64)), enlarged

    # The stream, as their documentation reads it.
    events, streamed = [], None
    stream = client.images.generate(
        model="tiny", prompt="ring", size="64x64", stream=True, partial_images=2,
        extra_body={"seed": 7, "steps": 6},
    )
    for event in stream:
        index = f" {event.partial_image_index}" if event.type == "image_generation.partial_image" else ""
        events.append(f"{type(event).__name__} {event.type}{index}")
        shown = Image.open(io.BytesIO(base64.b64decode(event.b64_json)))
        assert (shown.format, shown.size, event.size) == ("PNG", (64, 64), "64x64"), event
        assert (event.quality, event.background, event.output_format) == ("auto", "opaque", "png"), event
        if event.type == "image_generation.completed":
            streamed = event.b64_json
            assert event.usage.total_tokens == event.usage.input_tokens_details.text_tokens == 0, event
            assert event.seed == "7" and event.provenance["steps"] == 6, event
        assert event.request_id == stream.response.headers["x-request-id"], event

    def ask(**changes):
        return lambda: client.images.generate(**{"model": "tiny", "prompt": "ring", **changes})

    # Somebody has the only place there is.
    held = client.images.generate(model="tiny", prompt="ring", stream=True, extra_body={"seed": 7, "steps": 1000})
    overloaded = refused(ask(n=2))
    held.close()

    print(json.dumps({
        "b64_json": image.b64_json,
        "events": events,
        "streamed": streamed,
        "models": [model.id for model in client.models.list()],
        "retrieved": client.models.retrieve("tiny").id,
        "unknown_prompt": refused(ask(prompt="a photo of a cat")),
        "unknown_model": refused(ask(model="dall-e-3")),
        "overloaded": overloaded,
    }))


if __name__ == "__main__":
    main(sys.argv[1])
