"""The list in its order, which is that of the imports: they put their parts on it. And groups of its parts by name."""

from . import beginning  # noqa: F401
from . import training  # noqa: F401
from . import shipping  # noqa: F401
from . import serving  # noqa: F401
from .part import PARTS

TRAINER = ["card", "smoke", "windows", "speed", "breakdown", "waits", "precision", "fashion-dit", "faces-dit", "faces-dit-global", "gap", "gap-seed-2"]
ORT = ["card", "golden", "networks", "profile", "http", "insides", "memory"]
GROUPS = {"all": list(PARTS), "trainer": TRAINER, "ort": ORT}
