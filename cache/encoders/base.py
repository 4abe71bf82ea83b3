"""What stage one needs of an encoder, and the choice of the device that it runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from cliad.errors import CliadError

# A part of an image, in pixels: left, top, width, height. `cache.views.Box` is such a tuple.
Box = tuple[int, int, int, int]


class EncoderError(CliadError):
    """An encoder that cannot be found, loaded or run; the message says what to do."""


@runtime_checkable
class Encoder(Protocol):
    """A frozen image and text encoder with one common space.

    The recipes are JSON objects, weights in them as a hash. Nothing is set from outside.
    """

    @property
    def name(self) -> str:
        """What the encoder is called for people."""

    @property
    def encoder_id(self) -> str:
        """Equal for encoders whose features lie in one space."""

    @property
    def image_recipe(self) -> Mapping:
        """All that decides the numbers of an image."""

    @property
    def text_recipe(self) -> Mapping:
        """All that decides the numbers of a text."""

    @property
    def dim(self) -> int:
        """The length of a feature."""

    @property
    def logit_scale(self) -> float:
        """The multiplier of the cosines, not its logarithm."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def precision(self) -> str:
        """What the numbers are computed in: recorded, but not part of an id."""

    @property
    def parts(self) -> Mapping[str, tuple[int, ...]]:
        """What `encode_parts` gives, with the shape of one row."""

    @property
    def preprocess_size(self) -> tuple[int, int]:
        """(height, width) of a preprocessed image."""

    @property
    def threads(self) -> int | None:
        """CPU threads to compute with; None: as many as torch takes."""

    @property
    def text_projects(self) -> bool:
        """Whether the text tower ends in a projection, so that there are features before it."""

    def preprocess(
        self, image: Image.Image, *, box: Box | None = None, mirror: bool = False
    ) -> Tensor:
        """The plain view of an RGB image, uint8 (3, height, width), not yet normalised.

        The plain view is the image resized and cropped. With a box it is that
        part of the image, resized; `mirror` swaps left and right.
        """

    def encode_images(self, batch: Tensor) -> Tensor:
        """Raw features (b, dim), float32, of preprocessed images (b, 3, height, width)."""

    def encode_parts(self, batch: Tensor, parts: Sequence[str]) -> dict[str, Tensor]:
        """Several outputs of one pass, float32.

        These are "features" (b, dim), "pre_projection" (b, dim_pre) and "tokens" (b, n_token, dim).
        """

    def encode_texts(self, texts: Sequence[str], *, pre_projection: bool = False) -> Tensor:
        """Raw features (n, dim), float32, of texts.

        With `pre_projection` these are what enters the text projection, (n, dim_text).
        """


def choose_device(name: str = "auto") -> torch.device:
    """The device by its name; "auto" takes CUDA, then Apple's, then the CPU.

    Raises:
        EncoderError: there is no such device.
    """
    available = _available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name == "cuda" and "cuda:0" in available:
        return torch.device(name)
    if name not in available:
        raise EncoderError(
            f"there is no device '{name}' here; torch sees {', '.join(available)}; "
            "give one of these or auto with --device"
        )
    return torch.device(name)


def _available_devices() -> list[str]:
    """The names of the devices that torch sees, the one to prefer first."""
    names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    names.append("cpu")
    return names


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Not every device has an error of its own: MPS and the CPU say it in these words.
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in message for phrase in phrases)
