"""A client of Windowpane: images of diffusion transformers, and what they look like inside.

    from windowpane import Client

    with Client("http://localhost:8080") as client:
        (boot,) = client.generate("fashion-dit", prompt="ankle boot", seed=7)
        boot.save("boot.png")
        look = client.attention("fashion-dit", image=boot, timestep=300)
        print(look.layers[4].locality.distance)

`AsyncClient` has the same methods, to be awaited.
"""

from ._async_client import AsyncClient, AsyncJob
from ._client import Client, Job
from ._jobs import Event, JobStatus, Progress
from .errors import ApiError, JobFailed, UnexpectedAnswer, WindowpaneError
from .looks import Attention, AttentionLayer, Jacobian, Locality, PsnrCurve, PsnrGap, Whole
from .models import ClassName, Model
from .pictures import Image, Images, Replay

__all__ = [
    "ApiError", "AsyncClient", "AsyncJob", "Attention", "AttentionLayer", "ClassName", "Client", "Event", "Image", "Images",
    "Jacobian", "Job", "JobFailed", "JobStatus", "Locality", "Model", "Progress", "PsnrCurve", "PsnrGap", "Replay",
    "UnexpectedAnswer", "Whole", "WindowpaneError",
]
