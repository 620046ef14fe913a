"""Models as the server describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from ._wire import Order, body, part


@dataclass(frozen=True)
class ClassName:
    """A class that a model draws."""

    index: int
    name: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A model that is served. `raw` has all that the server says of it."""

    id: str
    description: str
    digest: str
    """The sha256 of its manifest, which pins every file: its identity."""
    width: int
    height: int
    channels: int
    classes: tuple[ClassName, ...]
    """Empty of a model without."""
    defaults: Mapping[str, Any]
    limits: Mapping[str, Any]
    lineage: Mapping[str, Any]
    """Where the weights came from; `metrics` holds what its trainer measured."""
    licence: str
    card: str | None
    """The model card, Markdown; left out in the list."""
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Model:
        """From the server's model object."""
        width, height = (int(side) for side in told["size"].split("x"))
        classes = (ClassName(found["index"], found["name"], tuple(found["aliases"])) for found in told["classes"])
        return cls(
            id=told["id"], description=told["description"], digest=told["digest"], width=width, height=height,
            channels=told["channels"], classes=tuple(classes), defaults=told["defaults"], limits=told["limits"],
            lineage=told["lineage"], licence=told["licence"], card=told.get("card"), raw=told,
        )


def models() -> Order[list[Model]]:
    """The models that are served, in order of name."""
    def read(response: httpx.Response) -> list[Model]:
        return [Model.of(told) for told in body(response)["data"]]

    return Order("GET", "v1/models", read)


def model(name: str) -> Order[Model]:
    """One model, with its card."""
    return Order("GET", f"v1/models/{part(name)}", lambda response: Model.of(body(response)))
