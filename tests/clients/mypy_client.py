"""Checks the types of our Python client and its examples with mypy, as its pyproject.toml says, and leaves nothing there.

    python mypy_client.py ../../clients/python
"""

import os
import sys

from mypy import api

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    found, problem, code = api.run(["--cache-dir", os.devnull, "src", "examples"])
    sys.stdout.write(found)
    sys.stderr.write(problem)
    sys.exit(code)
