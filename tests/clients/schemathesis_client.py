"""Lets schemathesis loose on a windowpane server: generated requests, valid and not, against the server's own document.

    python schemathesis_client.py http://127.0.0.1:8080 KEY

KEY is an administrator's; the server serves models/tiny, and the same package once more as `other`. What is tried and
what is excused is in schemathesis.toml; what no document can tell, such as the names of the models, in
schemathesis_hooks.py. The last line is a JSON object: of each operation, how many requests were sent and what became of
them. Exits with schemathesis' own code.
"""

import json
import pathlib
import runpy
import sys

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here))

import schemathesis_hooks  # noqa: E402, its folder is not on an isolated interpreter's path

url, key = sys.argv[1:]
told = schemathesis_hooks.install(url, key)
sys.argv = [
    "schemathesis",
    "--config-file", str(here / "schemathesis.toml"),
    "run", f"{url}/openapi.json",
    # Spelt as it spells it: by this name it takes the key away and tries without, whatever the case of HTTP's names.
    "--header", f"Authorization: Bearer {key}",
    # An image of a thousand steps proves no more than one of ten.
    "--header", "x-request-timeout-ms: 2000",
    "--no-color",
]
try:
    runpy.run_module("schemathesis.cli", run_name="__main__")
finally:
    print(json.dumps(told, sort_keys=True))
