"""Lets schemathesis loose on a windowpane server: generated requests, valid and not, against the server's own document.

    python schemathesis_client.py http://127.0.0.1:8080 KEY

KEY is an administrator's. What is tried and what is excused is in schemathesis.toml. Exits with schemathesis' own code.
"""

import pathlib
import subprocess
import sys

url, key = sys.argv[1:]
here = pathlib.Path(__file__).parent
run = [
    sys.executable, "-I", "-B", "-m", "schemathesis.cli",
    "--config-file", str(here / "schemathesis.toml"),
    "run", f"{url}/openapi.json",
    "--checks", "all",
    "--header", f"authorization: Bearer {key}",
    # An image of a thousand steps proves no more than one of ten.
    "--header", "x-request-timeout-ms: 100",
    "--no-color",
]
sys.exit(subprocess.run(run).returncode)
