"""Nobody waits in these tests: pauses are noted instead."""

import asyncio
import time

import pytest


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    noted = []

    async def sleep(seconds):
        noted.append(seconds)

    monkeypatch.setattr(time, "sleep", noted.append)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return noted
