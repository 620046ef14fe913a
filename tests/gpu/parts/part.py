"""What a part of the list is: a function of a run that gives back what it found, as `measurements`, `text` for the report, and
`finished`, false where it is to go on another time. Its first line is what it is for; `minutes` what it takes."""

import json

from harness import Missing

PARTS = {}


def part(name, minutes):
    """Puts a function on the list, behind those that are on it."""

    def keep(function):
        function.minutes = minutes
        PARTS[name] = function
        return function

    return keep


def rate(run, dtype):
    """Floating-point operations a second, as the part `card` measured them."""
    if not run.file("card").exists():
        raise Missing("the part `card` comes first")
    return json.loads(run.file("card").read_text())["rates"][dtype]
