"""Runs the tests of a folder with pytest, and leaves nothing in it.

    python pytest_client.py ../../clients/python
"""

import os
import sys

import pytest

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider"]))
