"""BentoML with its adaptive batching: one service, one worker."""

from typing import Annotated

import bentoml
import numpy as np
import work
from bentoml.validators import DType, Shape
from PIL.Image import Image

OPTIONS = {"batchable": True, "max_batch_size": work.MAX_BATCH * 32, "max_latency_ms": 1000}
Rows = Annotated[np.ndarray, Shape((-1, 30)), DType("float32")]


@bentoml.service(workers=1, traffic={"timeout": 60})
class Bench:
    """One graph."""

    def __init__(self) -> None:
        self.session = work.make_session()

    @bentoml.api(**OPTIONS)
    def predict(self, features: Rows) -> np.ndarray:
        """Return the probabilities of rows."""
        return work.infer(self.session, features)

    @bentoml.api(**OPTIONS)
    def image(self, file: list[Image]) -> np.ndarray:
        """Return the probabilities of photographs."""
        return work.infer(self.session, np.stack([work.to_tensor(one) for one in file]))
