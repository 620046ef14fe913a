"""Every call of a client, under its name, and what both clients share of making one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from . import _looking, pictures
from ._wire import Order

F = TypeVar("F", bound=Callable[..., Any])

KINDS: dict[str, Callable[..., Order[Any]]] = {
    "attention": _looking.attention,
    "jacobian": _looking.jacobian,
    "psnr-gap": _looking.psnr_gap,
    "images": pictures.images,
}
"""The calls that may be jobs."""

USER_AGENT = "windowpane-python"

CONNECT = 10.0
"""Seconds that a connection may take to come about: a server that is there is there at once."""


def of_kind(kind: str, fields: dict[str, Any]) -> Order[Any]:
    """The order of a job; its fields are those of the call of that name."""
    if kind not in KINDS:
        raise ValueError(f"`kind` is {kind!r}, expected one of {', '.join(KINDS)}")
    return KINDS[kind](**fields)


def settings(base_url: str, api_key: str | None, timeout: float | httpx.Timeout | None) -> dict[str, Any]:
    """What httpx is told of a server. The `/v1` that OpenAI's clients want at the end may be there."""
    headers = {"user-agent": USER_AGENT}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    if isinstance(timeout, (int, float)):
        timeout = httpx.Timeout(timeout, connect=min(timeout, CONNECT))
    base = base_url.rstrip("/").removesuffix("/v1")
    return {"base_url": f"{base}/", "headers": headers, "timeout": timeout}


def named(method: F, order: Callable[..., Order[Any]]) -> F:
    """Gives a method name, signature and words of the order that it carries out, for `help` and for editors."""
    signature = inspect.signature(order)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__name__ = method.__qualname__ = order.__name__
    method.__doc__ = order.__doc__
    # What an order brings is what its method returns: `Order[Image]` is `Image` there.
    returns = str(signature.return_annotation).removeprefix("Order[").removesuffix("]")
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own, *signature.parameters.values()], return_annotation=returns
    )
    return method
