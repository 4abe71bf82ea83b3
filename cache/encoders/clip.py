"""CLIP models of every kind that open_clip knows, as encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, ToTensor
from torchvision.transforms import functional as image_functions

from cliad.cache.encoders.base import Encoder, EncoderError
from cliad.cache.encoders.towers import all_parts, swapped
from cliad.cache.encoders.weights import _build, full_name
from cliad.cache.file.layout import recipe_id

TEXT_BATCH = 256
SMALL = 5_000_000  # parameters of an image tower that one thread serves best


class Clip:
    """An `Encoder` around an open_clip model. Images travel as uint8 and are normalised in batches on the device."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        *,
        name: str,
        recipe: Mapping,
        preprocess: PreprocessCfg,
        device: torch.device,
        half: bool,
    ):
        weights = _split_towers(model.state_dict())
        activation = _activation(model)
        self.name, self.tokenizer, self.device = name, tokenizer, device
        self.image_recipe = {
            **recipe,
            "weights": _hash(weights["image"]),
            "activation": activation,
            "preprocess": _json_ready(preprocess),
        }
        self.text_recipe = {
            **recipe,
            "weights": _hash(weights["text"]),
            "activation": activation,
            "context": tokenizer.context_length,
        }
        self.encoder_id = recipe_id(
            {
                "image": self.image_recipe["weights"],
                "text": self.text_recipe["weights"],
                "activation": activation,
            }
        )
        self.model = model.eval().requires_grad_(False).to(device)
        self.logit_scale = model.logit_scale.exp().item()
        self._half = half and device.type == "cuda"  # elsewhere half precision is slow, or wrong
        if device.type == "cuda" or hasattr(model.visual, "attnpool"):
            self.model.visual.to(memory_format=torch.channels_last)
        self._resize = _picture_half(preprocess)
        self._scale, self._shift = (
            torch.tensor(x).view(3, 1, 1).to(device) for x in _on_bytes(preprocess)
        )
        self._size, self._interpolation = (
            self.image_recipe["preprocess"]["size"],
            InterpolationMode(_interpolation(preprocess)),
        )
        blank = self.preprocess(Image.new("RGB", (64, 64)))
        self.parts = {part: tuple(x.shape[1:]) for part, x in self._all_parts(blank[None]).items()}
        self.dim = self.parts["features"][0]

    @property
    def threads(self) -> int | None:
        """One for a small model: more would mostly wait for each other, and for the threads that read images."""
        return 1 if sum(x.numel() for x in self.model.visual.parameters()) < SMALL else None

    @property
    def text_projects(self) -> bool:
        return getattr(getattr(self.model, "text", self.model), "text_projection", None) is not None

    @property
    def precision(self) -> str:
        return "float16 autocast" if self._half else "float32"

    def preprocess(
        self,
        image: Image.Image,
        *,
        box: tuple[int, int, int, int] | None = None,
        mirror: bool = False,
    ) -> Tensor:
        if box:
            left, top, width, height = box
            image = image_functions.resized_crop(
                image, top, left, height, width, self._size, self._interpolation
            )
        else:
            image = self._resize(image)
        image = image_functions.hflip(image) if mirror else image
        return image_functions.pil_to_tensor(image.convert("RGB"))

    @torch.inference_mode()
    def encode_images(self, batch: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode_image(self._ready(batch)).float()

    def encode_parts(self, batch: Tensor, parts: Sequence[str]) -> dict[str, Tensor]:
        if list(parts) == ["features"]:
            return {"features": self.encode_images(batch)}
        if missing := set(parts) - set(self.parts):
            raise EncoderError(
                f"{self.name} gives no {sorted(missing)[0]}; it gives {', '.join(self.parts)}"
            )
        found = self._all_parts(batch)
        return {part: found[part] for part in parts}

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, pre_projection: bool = False) -> Tensor:
        holder = getattr(self.model, "text", self.model)
        if pre_projection and not self.text_projects:
            raise EncoderError(
                f"the text tower of {self.name} ends in no projection, so there is nothing before it to keep"
            )
        with (
            swapped(holder, text_projection=None) if pre_projection else nullcontext(),
            self._autocast(),
        ):
            chunks = (texts[i : i + TEXT_BATCH] for i in range(0, len(texts), TEXT_BATCH))
            return torch.cat(
                [
                    self.model.encode_text(self.tokenizer(list(chunk)).to(self.device)).float()
                    for chunk in chunks
                ]
            )

    @property
    def preprocess_size(self) -> tuple[int, int]:
        """(height, width) of a preprocessed image."""
        height, width = self.image_recipe["preprocess"]["size"]
        return height, width

    def image_tower(self) -> nn.Module:
        """The image encoder as one module, for export: preprocessed images (b, 3, height, width) uint8 -> raw features (b, dim)."""
        return _Tower(self.model.visual, self._scale, self._shift)

    @torch.inference_mode()
    def _all_parts(self, batch: Tensor) -> dict[str, Tensor]:
        with self._autocast():
            return {
                part: x.float()
                for part, x in all_parts(self.model.visual, self._ready(batch)).items()
            }

    def _ready(self, batch: Tensor) -> Tensor:
        batch = batch.to(self.device, non_blocking=True)
        return (
            batch.float().mul_(self._scale).add_(self._shift)
            if batch.dtype == torch.uint8
            else batch
        )

    def _autocast(self):
        return torch.autocast("cuda", torch.float16) if self._half else nullcontext()


if TYPE_CHECKING:

    def _is_an_encoder(clip: Clip) -> Encoder:
        """The type checker compares every member here."""
        return clip


class _Tower(nn.Module):
    """The normalisation and the image tower of a CLIP."""

    def __init__(self, visual: nn.Module, scale: Tensor, shift: Tensor):
        super().__init__()
        self.visual = visual
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels.float() * self.scale + self.shift)


def _split_towers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state dict in two: the image tower, and all that the text side and the logits use."""
    image = {name: x for name, x in state.items() if name.startswith("visual.")}
    return {"image": image, "text": {name: x for name, x in state.items() if name not in image}}


def _hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, type, shape and bytes of every tensor, by name."""
    digest = hashlib.sha256()
    for name, x in sorted(state.items()):
        x = x.detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _activation(model: nn.Module) -> str:
    """The kinds of GELU that the model is built of: "QuickGELU", "GELU", or "" for a model without."""
    return "+".join(
        sorted({type(m).__name__ for m in model.modules() if "GELU" in type(m).__name__})
    )


def _json_ready(preprocess: PreprocessCfg) -> dict:
    recipe = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(preprocess).items()
    }
    size = recipe["size"]
    return recipe | {
        "size": size if isinstance(size, list) else [size, size],
        "decoder": "pillow upright rgb",
    }


def _interpolation(preprocess: PreprocessCfg) -> str:
    """As open_clip reads it: whatever is not bilinear is bicubic."""
    return "bilinear" if preprocess.interpolation == "bilinear" else "bicubic"


def _picture_half(preprocess: PreprocessCfg) -> Compose:
    """The part of open_clip's own transform that works on the picture; what follows is to_tensor and the normalisation."""
    steps = image_transform_v2(preprocess, is_train=False).transforms
    return Compose([step for step in steps if not isinstance(step, ToTensor | Normalize)])


def _on_bytes(preprocess: PreprocessCfg) -> tuple[list[float], list[float]]:
    """Factor and shift per channel that normalise values of 0 to 255: (x / 255 - mean) / std in two steps."""
    mean, std = (
        x if isinstance(x, list | tuple) else [x] * 3 for x in (preprocess.mean, preprocess.std)
    )
    return [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


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
        model: `tiny`, a name of open_clip (`ViT-B-32`, `ViT-B/32`, `ViT-B-32/openai`), `hf-hub:OWNER/NAME` or `local-dir:DIR`.
        pretrained: a tag (by default `openai`, or the only one there is) or a weights file.
        quick_gelu: the activation of a weights file; a tag knows its own.
        squeeze: resize to the model's square without keeping proportions, as CoOp's code does.
        half: compute in half precision where that is safe (CUDA).
    Raises:
        EncoderError: no such model or tag, no weights, or an activation that must be told.
    """
    model, pretrained = full_name(model, pretrained)
    network, recipe, shown = _build(model, pretrained, quick_gelu)
    preprocess = PreprocessCfg(
        **getattr(network.visual, "preprocess_cfg", {"size": network.visual.image_size})
    )
    if squeeze:
        preprocess.resize_mode = "squash"
    return Clip(
        network,
        _tokenizer(model),
        name=shown,
        recipe=recipe,
        preprocess=preprocess,
        device=device,
        half=half,
    )


def _tokenizer(model: str):
    try:
        return open_clip.get_tokenizer(model)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise EncoderError(
            f"no tokenizer for {model} ({reason}); `pip install transformers` if that is missing, or choose another model"
        ) from None
