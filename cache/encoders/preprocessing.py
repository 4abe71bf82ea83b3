"""From a picture to the numbers that an image tower takes, as open_clip's own transform does it.

The work is cut in two. Threads resize and crop the picture and leave it in bytes; the device
normalises whole batches. So a quarter of the data travels, and the CPU does less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Protocol, cast

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, ToTensor
from torchvision.transforms import functional as image_functions

from cliad.cache.encoders.base import Box


class _ImageTower(Protocol):
    """What open_clip's image towers say of the images that they want."""

    image_size: int | tuple[int, int]
    preprocess_cfg: Mapping  # not every tower has one


class Preprocessing:
    """One model's way from an image to a tensor; `recipe` is all that decides it, as JSON."""

    def __init__(self, config: PreprocessCfg, device: torch.device):
        self.recipe = _recipe(config)
        self.size: list[int] = self.recipe["size"]  # [height, width]
        self._resize = _picture_steps(config)
        # As open_clip reads it: whatever is not bilinear is bicubic.
        is_bilinear = config.interpolation == "bilinear"
        self._interpolation = InterpolationMode("bilinear" if is_bilinear else "bicubic")
        scale, shift = _normalisation_of_bytes(config)
        self.scale = torch.tensor(scale).view(3, 1, 1).to(device)
        self.shift = torch.tensor(shift).view(3, 1, 1).to(device)

    def to_bytes(self, image: Image.Image, *, box: Box | None, mirror: bool) -> Tensor:
        """The image, or a part of it, as uint8 (3, height, width)."""
        if box:
            left, top, width, height = box
            image = image_functions.resized_crop(
                image, top, left, height, width, self.size, self._interpolation
            )
        else:
            image = self._resize(image)
        if mirror:
            image = image_functions.hflip(image)
        return image_functions.pil_to_tensor(image.convert("RGB"))

    def normalised(self, batch: Tensor) -> Tensor:
        """A batch (b, 3, height, width) on its device as the tower takes it.

        Floats are taken to be normalised already.
        """
        if batch.dtype != torch.uint8:
            return batch
        return batch.float().mul_(self.scale).add_(self.shift)


def config_of(visual: nn.Module, *, squeeze: bool) -> PreprocessCfg:
    """The preprocessing that a tower was trained with; with `squeeze` proportions are not kept."""
    tower = cast(_ImageTower, visual)
    if hasattr(visual, "preprocess_cfg"):
        config = PreprocessCfg(**tower.preprocess_cfg)
    else:
        config = PreprocessCfg(size=tower.image_size)
    if squeeze:
        config.resize_mode = "squash"
    return config


def unlike_published(model: str) -> list[str]:
    """A line where weights from a file are shown images in another way than published ones.

    A file does not say how its images were prepared: open_clip then takes OpenAI's way, also for
    architectures whose published weights were all trained in another.
    """
    ways = []
    for tag in open_clip.list_pretrained_tags_by_model(model):
        published = open_clip.get_pretrained_cfg(model, tag)
        ways.append(_way(PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), published))))
    here = _way(PreprocessCfg())
    if not ways or here in ways:
        return []
    return [
        f"images are prepared as for OpenAI's models ({here}), since a file does not say how;"
        f" published weights of {model} were trained with {ways[0]}: for these give --model"
        " local-dir:DIR with their open_clip_config.json"
    ]


def _way(config: PreprocessCfg) -> str:
    """How images are resized and normalised, in words."""
    mean = ", ".join(f"{value:.3g}" for value in _per_channel(config.mean))
    std = ", ".join(f"{value:.3g}" for value in _per_channel(config.std))
    kept = {"squash": "squeezed", "longest": "whole"}.get(config.resize_mode, "cropped")
    return f"{config.interpolation}, {kept}, mean {mean}, std {std}"


def _recipe(config: PreprocessCfg) -> dict:
    """The configuration as JSON gives it back: lists for tuples, both sides of the size."""
    recipe = {}
    for key, value in asdict(config).items():
        recipe[key] = list(value) if isinstance(value, tuple) else value
    if not isinstance(recipe["size"], list):
        recipe["size"] = [recipe["size"], recipe["size"]]
    recipe["decoder"] = "pillow upright rgb"
    return recipe


def _picture_steps(config: PreprocessCfg) -> Compose:
    """The steps of open_clip's transform that work on the picture, before it becomes a tensor."""
    steps = image_transform_v2(config, is_train=False).transforms
    return Compose([step for step in steps if not isinstance(step, ToTensor | Normalize)])


def _normalisation_of_bytes(config: PreprocessCfg) -> tuple[list[float], list[float]]:
    """Scale and shift of each channel that normalise values of 0 to 255.

    (x / 255 - mean) / std  =  x * (1 / (255 * std))  +  (-mean / std)
    """
    mean = _per_channel(config.mean)
    std = _per_channel(config.std)
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return scale, shift


def _per_channel(value: float | list[float] | tuple[float, ...]) -> list[float]:
    """A value for each of the three channels."""
    return list(value) if isinstance(value, list | tuple) else [value] * 3
