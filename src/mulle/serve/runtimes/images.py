"""Pictures of a request into one block of pixels, ready for `OnnxRuntime.run_pixels`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.image_read import DEFAULT_LIMITS, ImageLimits, preprocess
from mulle.formats.image_spec import ImageInput


class ImageReader:
    """Decodes pictures for one model. May be used from several threads at once; decoding lets go of the interpreter.

    Args:
        spec: From the bundle's manifest.
        limits: What to refuse.
        draft: Decode JPEG smaller where that is still large enough; None: as the bundle says. Golden requests keep to the bundle.
    """

    def __init__(self, spec: ImageInput, *, limits: ImageLimits = DEFAULT_LIMITS, draft: bool | None = None) -> None:
        self.spec = spec
        self.limits = limits
        self.draft = draft
        self._dtype = np.dtype(np.float32 if spec.dtype == "float32" else np.uint8)

    def read(self, pictures: Sequence[bytes]) -> NDArray[Any]:
        """Return the pixels, shape (n, *spec.shape), C-contiguous.

        Raises:
            SpecError: a picture is refused (see `formats/image_read.py`); `where` says which: `picture 0`.
        """
        pixels = np.empty((len(pictures), *self.spec.shape), self._dtype)
        for i, data in enumerate(pictures):
            try:
                preprocess(self.spec, data, out=pixels[i], limits=self.limits, draft=self.draft)
            except SpecError as error:
                error.where = error.where or f"picture {i}"
                raise
        return pixels
