"""What the document cannot tell schemathesis: which models there are, what they take, and which pictures are ours.

Half of the requests that are valid by the document are made to fit the server, so that they get through; the other half
stay as they were thought of. What is invalid stays as it is.
"""

import base64
import collections
import hashlib
import json
import threading
import time
import urllib.error
import urllib.request

import schemathesis
from hypothesis import strategies as st

#: The id of requests that are there to be cancelled.
RUNNING = "running"

#: Time for a request to be under way before somebody cancels it, in seconds.
MOMENT = 0.1

CLASSES = ["ground", "curtain", "blob", "ring", "Circle"]
SAMPLERS = ["ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m"]
ELEMENTS = 32 * 32

seeds = st.integers(0, 2**63 - 3)
steps = st.integers(1, 4)
scales = st.floats(0, 8, width=32)


def install(url, key):
    """Registers the hooks. What is returned fills: by operation, by mode, by status, how many answers there were."""
    pictures = [png(url, key, seed) for seed in range(3)]
    jobs = [job(url, key, f"job-{number}", pictures[number % len(pictures)]) for number in range(8)]
    fits = fitting(pictures, jobs)
    told = collections.defaultdict(lambda: collections.defaultdict(collections.Counter))
    fitted, lock = set(), threading.Lock()

    @schemathesis.hook
    def before_load_schema(context, raw_schema):
        # The document describes what is in an event, as OpenAI's does; schemathesis asks for the event around it.
        answer = raw_schema["paths"]["/v1/images/generations"]["post"]["responses"]["200"]["content"]
        told = [answer["text/event-stream"]["schema"], {"$ref": "#/components/schemas/ErrorBody"}]
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": told}}
        properties = {"event": {"type": "string", "pattern": "^(image_generation[.].+|error)$"}, "data": data}
        event = {"type": "object", "properties": properties, "required": ["event", "data"]}
        answer["text/event-stream"]["schema"] = event
        answer = raw_schema["paths"]["/v1/jobs/{id}/events"]["get"]["responses"]["200"]["content"]
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": answer["text/event-stream"]["schema"]}
        properties = {"id": {"type": "string", "pattern": "^[0-9]+$"}, "event": {"type": "string"}, "data": data}
        event = {"type": "object", "properties": properties, "required": ["id", "event", "data"]}
        answer["text/event-stream"]["schema"] = event

    @schemathesis.hook
    def flatmap_case(context, case):
        fit = fits.get(f"{case.method.upper()} {case.operation.path}") or fits.get(case.operation.path)
        if fit is None or case.meta is None or not case.meta.generation.mode.is_positive:
            return st.just(case)

        @st.composite
        def perhaps(draw):
            if draw(st.booleans()):
                draw(fit(case))
                fitted.add(case.id)
            return case

        return perhaps()

    @schemathesis.hook
    def before_call(context, case, kwargs):
        if case.operation.path == "/v1/requests/{id}" and case.path_parameters.get("id") == RUNNING:
            threading.Thread(target=run_for_long, args=(url, key), daemon=True).start()
            time.sleep(MOMENT)
        # A whole spectrum takes the better part of a minute: that is asked for by a test of its own, and not at random.
        if case.operation.path == "/v1/analysis/jacobian" and isinstance(case.body, dict):
            spare = {"method": lambda word: word == "full", "k": is_many, "iterations": is_many}
            case.body = {name: value for name, value in case.body.items() if name not in spare or not spare[name](value)}

    @schemathesis.hook
    def after_call(context, case, response):
        operation = case.operation
        # Methods that the document does not have are tried too; they are no requests of the operation.
        if case.method.upper() == operation.method.upper():
            kind = "fitted" if case.id in fitted else "as generated"
            with lock:
                told[f"{operation.method.upper()} {operation.path}"][kind][str(response.status_code)] += 1

    return told


def fitting(pictures, jobs):
    """By path, what makes a case of it fit: a strategy that changes the case."""

    def named(headers=st.just({}), **choices):
        """Path parameters that exist, and headers."""

        def fit(case):
            def change(drawn):
                values, more = drawn
                case.path_parameters = {**case.path_parameters, **values}
                for name, value in more.items():
                    case.headers[name] = value

            return st.tuples(st.fixed_dictionaries({name: st.sampled_from(of) for name, of in choices.items()}), headers).map(change)

        return fit

    def sent(requests):
        """Bodies as JSON, each with the path parameters that go with it."""

        def fit(case):
            def change(request):
                body, parameters = request
                # The length of a head and a compression were those of the body that was there.
                for name in ("inference-header-content-length", "content-encoding"):
                    case.headers.pop(name, None)
                case.media_type, case.body = "application/json", body
                if parameters:
                    case.path_parameters = {**case.path_parameters, **parameters}

            return requests.map(change)

        return fit

    # Of a job there is little to say but its id, and Hypothesis thinks of nothing twice.
    traced = st.uuids().map(lambda own: {"x-request-id": str(own)})
    seen = st.integers(0, 9).map(lambda last: {"last-event-id": str(last)})
    ranges = st.tuples(st.integers(0, 99), st.integers(0, 9999)).map(
        lambda ends: {"range": f"bytes={ends[0]}-{ends[0] + ends[1]}"}
    )
    models, faces, versions = ["tiny"], ["tiny", "tiny.sampler"], ["1"]
    parameters = st.sampled_from([{}, {"parameters": {"unload_dependents": False}}, {"parameters": None}])
    by_path = {
        "/v1/images/generations": sent(images().map(lambda body: (body, {}))),
        "/v1/analysis/attention": sent(looks(pictures).map(lambda body: (body, {}))),
        "/v1/analysis/jacobian": sent(jacobians(pictures).map(lambda body: (body, {}))),
        "/v1/analysis/psnr-gap": sent(gaps().map(lambda body: (body, {}))),
        "/v1/replay": sent(st.sampled_from(pictures).map(lambda file: ({"image": file}, {}))),
        "POST /v1/jobs": sent(orders(pictures).map(lambda body: (body, {}))),
        "PUT /v1/jobs/{id}": sent(orders(pictures).map(lambda body: (body, {"id": own(body)}))),
        "GET /v1/jobs/{id}": named(traced, id=jobs),
        "DELETE /v1/jobs/{id}": named(traced, id=jobs),
        "/v1/jobs/{id}/events": named(traced | seen, id=jobs),
        "/v1/jobs/{id}/result": named(traced | ranges, id=jobs),
        "/v1/models/{id}": named(id=models),
        "/v1/requests/{id}": named(id=[RUNNING]),
        "/v2/repository/models/{name}/load": sent(st.just(({}, {}))),
        "/v2/repository/models/{name}/unload": sent(parameters.map(lambda body: (body, {}))),
        "/v2/models/{name}/infer": sent(inferences()),
        "/v2/models/{name}/versions/{version}/infer": sent(
            inferences().map(lambda request: (request[0], {**request[1], "version": "1"}))
        ),
    }
    for end in ("", "/config", "/ready", "/stats"):
        by_path["/v2/models/{name}" + end] = named(name=faces)
        by_path["/v2/models/{name}/versions/{version}" + end] = named(name=faces, version=versions)
    return by_path


def images():
    """What models/tiny draws in a moment, in any file, as a stream or not."""
    always = {"model": st.just("tiny"), "class": st.integers(0, 3) | st.sampled_from(CLASSES), "steps": steps}
    either = {
        "prompt": st.sampled_from(["", None]),
        "n": st.integers(1, 2),
        "seed": seeds | seeds.map(str),
        "sampler": st.sampled_from(SAMPLERS),
        "time_grid": st.sampled_from(["uniform", "quadratic", "karras"]),
        "guidance_scale": scales,
        "clip_x0": st.booleans(),
        "background": st.sampled_from(["auto", "opaque"]),
        "moderation": st.sampled_from(["auto", "low"]),
        "quality": st.just("auto"),
        "response_format": st.just("b64_json"),
        "reproducible": st.booleans(),
        "user": st.text(max_size=20),
    }
    sizes = st.sampled_from(["auto", "32x32", "64x64"])
    pictures = st.sampled_from(["png", "webp", "jpeg"])
    return st.one_of(
        st.fixed_dictionaries(always, optional=either | {"size": sizes, "output_format": pictures}),
        st.fixed_dictionaries(
            always | {"stream": st.just(True)},
            optional=either | {"size": sizes, "output_format": pictures, "partial_images": st.integers(0, 3)},
        ),
        st.fixed_dictionaries(
            always | {"output_format": st.sampled_from(["npy", "npz", "safetensors"])},
            optional=either | {"trajectory": st.just(1)},
        ),
        st.fixed_dictionaries(always | {"eta": st.floats(0, 1), "sampler": st.just("ddim")}),
    )


def is_many(number):
    """Whether it is one of those that take long, and not one that is refused."""
    try:
        return 16 < float(number) <= ELEMENTS
    except (TypeError, ValueError):
        return False


def looks(pictures):
    """What models/tiny attends to, in a picture or in a sample, in every form."""
    always = {"model": st.just("tiny"), "timestep": st.floats(0, 999), "tokens": st.lists(st.integers(0, 1023) | st.tuples(
        st.integers(0, 31), st.integers(0, 31)).map(list), min_size=1, max_size=1)}
    either = {
        "layers": st.lists(st.integers(0, 3), min_size=1, unique=True),
        "heads": st.lists(st.integers(0, 1), min_size=1, unique=True),
        "seed": seeds | seeds.map(str),
    }
    numbers = {
        "maps": st.sampled_from(["heads", "mean", "both", "none"]),
        "layout": st.sampled_from(["grid", "compact"]),
        "output_format": st.sampled_from(["json", "npz", "safetensors"]),
    }
    sample = {"class": st.integers(0, 3) | st.sampled_from(CLASSES), "steps": steps}
    how = {"sampler": st.sampled_from(SAMPLERS), "guidance_scale": scales, "clip_x0": st.booleans()}
    picture = {"image": st.sampled_from(pictures)}
    return st.one_of(
        st.fixed_dictionaries(always | sample, optional=either | numbers | how),
        st.fixed_dictionaries(always | picture, optional=either | numbers | {"class": st.integers(0, 3)}),
        st.fixed_dictionaries(always | picture | {"output_format": st.just("png")}, optional=either),
    )


def orders(pictures):
    """A job of a moment."""
    return looks(pictures).map(lambda request: {"kind": "attention", "request": request})


def own(order):
    """The id of an order that is put: the same for the same, since another under the id of one that is there is refused (409)."""
    return f"mine-{hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()[:16]}"


def jobs_of(url, key, path, body=None, method="GET"):
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v1/jobs/{path}", data, headers, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return answer.read()


def job(url, key, name, picture):
    """The id of a job that has ended well."""
    request = {"model": "tiny", "image": picture, "timestep": 100, "tokens": [0]}
    jobs_of(url, key, name, {"kind": "attention", "request": request}, "PUT")
    events = jobs_of(url, key, f"{name}/events")
    if b"event: succeeded" not in events:
        raise RuntimeError(events.decode())
    return name


def jacobians(pictures):
    """The largest direction of models/tiny, at a picture or a sample, in every form; little work, since the client waits for no
    more than two seconds."""
    always = {"model": st.just("tiny"), "timestep": st.floats(0, 999), "k": st.just(1), "iterations": st.integers(1, 2)}
    either = {
        "of": st.sampled_from(["x0", "eps", "v"]),
        "seed": seeds | seeds.map(str),
        "tolerance": st.floats(0.001, 0.5),
        "output_format": st.sampled_from(["json", "npz", "safetensors", "png"]),
    }
    sample = {"class": st.integers(0, 3) | st.sampled_from(CLASSES), "steps": st.just(1)}
    picture = {"image": st.sampled_from(pictures)}
    return st.one_of(
        st.fixed_dictionaries(always | sample, optional=either | {"guided": scales}),
        st.fixed_dictionaries(always | picture, optional=either | {"class": st.integers(0, 3)}),
    )


def gaps():
    """The gap of models/tiny, or one set by itself, in every form; little work."""

    def array(count):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 32, 32), }}\n".encode()
        head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        pixels = st.integers(0, 255).map(lambda pixel: bytes([pixel]) * (count * ELEMENTS))
        return pixels.map(lambda pixels: base64.b64encode(head + pixels).decode())

    always = {"model": st.just("tiny"), "train": array(2), "timesteps": st.integers(1, 2)}
    either = {
        "train_labels": st.lists(st.integers(0, 3) | st.sampled_from(CLASSES), min_size=2, max_size=2),
        "images": st.integers(1, 10_000),
        "seed": seeds | seeds.map(str),
        "resize": st.booleans(),
        "output_format": st.sampled_from(["json", "csv", "svg", "png"]),
    }
    return st.fixed_dictionaries(always, optional=either | {"test": array(1)})


@st.composite
def inferences(draw):
    """Rows for one of the faces of models/tiny, and its name."""
    rows = draw(st.integers(1, 3))

    def tensor(name, datatype, elements, *row):
        values = draw(st.lists(elements, min_size=rows, max_size=rows))
        data = [value for value in values for _ in range(ELEMENTS if row else 1)]
        return {"name": name, "datatype": datatype, "shape": [rows, *row], "data": data}

    if draw(st.booleans()):
        name, outputs = "tiny", ["prediction"]
        inputs = [
            tensor("x", "FP32", st.floats(-3, 3, width=32), 1, 32, 32),
            tensor("t", "FP32", st.floats(0, 999, width=32)),
        ]
        optional = [("y", "INT64", st.integers(0, 4))]
    else:
        name, outputs = "tiny.sampler", ["images", "samples"]
        inputs = [tensor("seed", "INT64", seeds), tensor("class", "INT32", st.integers(0, 3))]
        inputs.append(tensor("steps", "UINT32", steps))
        optional = [("guidance", "FP32", scales), ("sampler", "BYTES", st.sampled_from(SAMPLERS))]
    inputs += [tensor(*one) for one in optional if draw(st.booleans())]
    body = {"inputs": inputs}
    if draw(st.booleans()):
        wanted = draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True))
        body["outputs"] = [{"name": name, "parameters": {"binary_data": draw(st.booleans())}} for name in wanted]
    return body, {"name": name}


def png(url, key, seed):
    """A picture of the server's own, in base64."""
    body = {"model": "tiny", "class": seed, "seed": seed, "steps": 2, "sampler": SAMPLERS[seed]}
    return base64.b64encode(generate(url, key, body, {"accept": "image/png"})).decode()


def run_for_long(url, key):
    """Until it is cancelled, or for some seconds."""
    try:
        generate(url, key, {"model": "tiny", "class": 0, "steps": 1000, "guidance_scale": 1}, {"x-request-id": RUNNING})
    except urllib.error.HTTPError:
        pass


def generate(url, key, body, headers):
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"} | headers
    request = urllib.request.Request(f"{url}/v1/images/generations", json.dumps(body).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return answer.read()
