"""CLIP models of every kind that open_clip knows, as encoders."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor, nn

from cliad.cache.encoders.base import Box, EncoderError
from cliad.cache.encoders.network import build_network, register_tiny
from cliad.cache.encoders.preprocessing import Preprocessing, config_of
from cliad.cache.encoders.text_tower import CausalTower, take_apart
from cliad.cache.encoders.towers import NormalisedTower, all_parts, swapped
from cliad.cache.encoders.weights import (
    EXTRA,
    full_name,
    hub_as_it_is,
    no_code_asked_for,
    quiet,
    tokenizer_words,
)
from cliad.cache.file.layout import recipe_id
from cliad.errors import printable

TEXT_BATCH = 256
SMALL = 5_000_000  # parameters of an image tower that one thread serves best


class Tokenizer(Protocol):
    """What is used of open_clip's tokenizers."""

    context_length: int

    def __call__(self, texts: list[str]) -> Tensor:
        """Token numbers (n, context_length)."""


class _Network(Protocol):
    """What is used of open_clip's models, which share no class of their own."""

    visual: nn.Module
    logit_scale: Tensor

    def encode_image(self, image: Tensor, normalize: bool) -> Tensor:
        """(b, 3, height, width) -> (b, dim)."""

    def encode_text(self, text: Tensor, normalize: bool) -> Tensor:
        """(n, context_length) -> (n, dim)."""


class Clip:
    """An `Encoder` around an open_clip model.

    Images travel as uint8 and are normalised in batches on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        recipe: Mapping[str, str],
        preprocess: PreprocessCfg,
        device: torch.device,
        half: bool,
        notes: Sequence[str] = (),
    ):
        """Take over a model: it is moved to the device and frozen.

        Args:
            model: any of open_clip's models.
            tokenizer: the one it was trained with.
            name: what people call it.
            recipe: what the ids say of its origin.
            preprocess: how it sees images.
            device: where it computes.
            half: compute in half precision where that is safe.
            notes: what the user should know of how its weights were read.

        Raises:
            EncoderError: a multiplier of the cosines that is zero or infinite.
        """
        self.name = name
        self.tokenizer = tokenizer
        self.device = device
        self._preprocessing = Preprocessing(preprocess, device)
        self._describe(model, recipe)
        self.model = model.eval().requires_grad_(False).to(device)
        self._network = cast(_Network, self.model)
        self.logit_scale = self._network.logit_scale.exp().item()
        if not 0 < self.logit_scale < math.inf:
            raise EncoderError(
                f"the weights of {name} are damaged: logit_scale is"
                f" {self._network.logit_scale.item():g}, the logarithm of a multiplier such as 100"
            )
        self.notes = notes
        # Elsewhere half precision is slow, or gives wrong numbers.
        self._half = half and device.type == "cuda"
        visual = self._network.visual
        if device.type == "cuda" or hasattr(visual, "attnpool"):
            visual.to(memory_format=torch.channels_last)
        # The shapes of a row are those that the tower gives for a black image.
        black = torch.zeros((1, 3, *self.preprocess_size), dtype=torch.uint8)
        self.parts = {part: tuple(x.shape[1:]) for part, x in self._all_parts(black).items()}
        self.dim = self.parts["features"][0]

    def _describe(self, model: nn.Module, recipe: Mapping[str, str]) -> None:
        """Set the recipes and the id, by the weights as they were loaded."""
        activation = _activation(model)
        image_weights, text_weights = _hashes(model.state_dict())
        self.image_recipe = {
            **recipe,
            "weights": image_weights,
            "activation": activation,
            "preprocess": self._preprocessing.recipe,
        }
        self.text_recipe = {
            **recipe,
            "weights": text_weights,
            "activation": activation,
            "context": self.tokenizer.context_length,
        }
        self.encoder_id = recipe_id(
            {"image": image_weights, "text": text_weights, "activation": activation}
        )

    @property
    def threads(self) -> int | None:
        """One for a small model.

        More would mostly wait for each other, and for the threads that read images.
        """
        n_parameter = sum(x.numel() for x in self._network.visual.parameters())
        return 1 if n_parameter < SMALL else None

    @property
    def text_projects(self) -> bool:
        """Whether the text tower ends in a projection."""
        return getattr(self._text_tower, "text_projection", None) is not None

    @property
    def precision(self) -> str:
        """What the numbers are computed in."""
        return "float16 autocast" if self._half else "float32"

    @property
    def preprocess_size(self) -> tuple[int, int]:
        """(height, width) of a preprocessed image."""
        height, width = self._preprocessing.size
        return height, width

    def preprocess(
        self, image: Image.Image, *, box: Box | None = None, mirror: bool = False
    ) -> Tensor:
        """See `Encoder.preprocess`."""
        return self._preprocessing.to_bytes(image, box=box, mirror=mirror)

    @torch.inference_mode()
    def encode_images(self, batch: Tensor) -> Tensor:
        """See `Encoder.encode_images`."""
        with self._autocast():
            # CoCa would give rows of unit length if it were not asked, other models raw ones.
            return self._network.encode_image(self._on_device(batch), normalize=False).float()

    def encode_parts(self, batch: Tensor, parts: Sequence[str]) -> dict[str, Tensor]:
        """See `Encoder.encode_parts`.

        Raises:
            EncoderError: the image tower does not give one of the parts.
        """
        if list(parts) == ["features"]:
            return {"features": self.encode_images(batch)}
        missing = sorted(set(parts) - set(self.parts))
        if missing:
            raise EncoderError(
                f"{self.name} has no {missing[0]} output; it gives {', '.join(self.parts)}"
            )
        computed = self._all_parts(batch)
        return {part: computed[part] for part in parts}

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, pre_projection: bool = False) -> Tensor:
        """See `Encoder.encode_texts`.

        Raises:
            EncoderError: the text tower has no projection.
        """
        if pre_projection and not self.text_projects:
            raise EncoderError(
                f"the text tower of {self.name} has no projection, so no features before it"
            )
        projection: AbstractContextManager[None] = nullcontext()
        if pre_projection:
            projection = swapped(self._text_tower, text_projection=None)
        chunks = []
        with projection, self._autocast():
            for first in range(0, len(texts), TEXT_BATCH):
                lines = list(texts[first : first + TEXT_BATCH])
                tokens = self._tokens(lines).to(self.device)
                chunks.append(self._network.encode_text(tokens, normalize=False).float())
        return torch.cat(chunks)

    def _tokens(self, lines: list[str]) -> Tensor:
        """Token numbers, all of which the text tower has; else a GPU would end the process."""
        tokens = self.tokenizer(lines)
        words = getattr(self._text_tower, "token_embedding", None)
        if words is not None and tokens.numel() and int(tokens.max()) >= words.num_embeddings:
            raise EncoderError(
                f"the tokenizer of {self.name} has a word {int(tokens.max())}, its text tower"
                f" {words.num_embeddings} words; the tokenizer is of another model"
            )
        return tokens

    def image_tower(self) -> nn.Module:
        """The image encoder as one module, for export.

        It maps preprocessed images, uint8 (b, 3, height, width), to raw features (b, dim).
        """
        steps = self._preprocessing
        return NormalisedTower(self._network.visual, steps.scale, steps.shift)

    def text_tower(self) -> CausalTower:
        """The text tower in plain torch, for heads that learn prompts; a copy.

        Raises:
            EncoderError: it is not a causal transformer of CLIP's own kind.
        """
        return take_apart(self._text_tower, self.tokenizer, self.name)

    @property
    def _text_tower(self) -> nn.Module:
        """What holds the text projection; in OpenAI's own models that is the model itself."""
        return getattr(self.model, "text", self.model)

    @torch.inference_mode()
    def _all_parts(self, batch: Tensor) -> dict[str, Tensor]:
        with self._autocast():
            parts = all_parts(self._network.visual, self._on_device(batch))
            return {part: x.float() for part, x in parts.items()}

    def _on_device(self, batch: Tensor) -> Tensor:
        """A batch, normalised; from pinned memory the copy runs beside other work."""
        return self._preprocessing.normalised(batch.to(self.device, non_blocking=True))

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast("cuda", torch.float16) if self._half else nullcontext()


def _hashes(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The hashes of the image tower, and of all that the text side and the logits use."""
    image: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for name, x in state.items():
        tower = image if name.startswith("visual.") else text
        tower[name] = x
    return _hash(image), _hash(text)


def _hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, type, shape and bytes of every tensor, by name."""
    digest = hashlib.sha256()
    for name, x in sorted(state.items()):
        x = x.detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _activation(model: nn.Module) -> str:
    """The kinds of GELU that the model has: "QuickGELU", "GELU", or "" for a model without."""
    kinds = {type(module).__name__ for module in model.modules()}
    return "+".join(sorted(kind for kind in kinds if "GELU" in kind))


def load(
    model: str,
    pretrained: str | None = None,
    *,
    device: torch.device,
    quick_gelu: bool | None = None,
    squeeze: bool = False,
    half: bool = False,
) -> Clip:
    """An encoder by name.

    Args:
        model: `tiny`, a name of open_clip (`ViT-B-32`, `ViT-B/32`, `ViT-B-32/openai`),
            `hf-hub:OWNER/NAME` or `local-dir:DIR`.
        pretrained: a tag (by default `openai`, or the only one there is) or a weights file.
        device: where it computes.
        quick_gelu: the activation of a weights file; a tag knows its own.
        squeeze: resize to the model's square without keeping proportions, as CoOp's code does.
        half: compute in half precision where that is safe (CUDA).

    Raises:
        EncoderError: no such model or tag, no weights, or an activation that must be given.
    """
    model, pretrained = full_name(model, pretrained)
    if model == "tiny":
        register_tiny()
    with hub_as_it_is(model), no_code_asked_for():
        # Before the weights, which may take minutes; a model of the hub comes with its words.
        tokenizer = None if model.startswith("hf-hub:") else _tokenizer(model)
        network = build_network(model, pretrained, quick_gelu)
        tokenizer = tokenizer or _tokenizer(model)
    visual = cast(_Network, network.model).visual
    return Clip(
        network.model,
        tokenizer,
        name=network.name,
        recipe=network.recipe,
        preprocess=config_of(visual, squeeze=squeeze),
        device=device,
        half=half,
        notes=network.notes,
    )


def _tokenizer(model: str) -> Tokenizer:
    shown = printable(model)
    try:
        with quiet():
            tokenizer = open_clip.get_tokenizer(model, **tokenizer_words(model))
            tokenizer(["a photo"])  # some miss a package, or a word of their own, only when used
            return tokenizer
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "nltk":
            raise EncoderError(f"the tokenizer of {shown} needs nltk; pip install nltk") from None
        raise EncoderError(f"the text side of {shown} needs transformers; {EXTRA}") from None
    except Exception as error:  # a tokenizer of transformers may raise anything
        reason = printable(" ".join(str(error).split()))[:120]
        raise EncoderError(
            f"no tokenizer for {shown} ({reason}); it lies on the hub or in the model's folder:"
            " try with a network, or choose another model"
        ) from None
