"""What a user chooses of an extraction: the encoder, the prompts, what is stored beside the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cliad.cache import prompts
from cliad.cache.classnames import read_classnames
from cliad.cache.datasets.base import Dataset, Listing
from cliad.cache.encoders import clip, weights
from cliad.cache.encoders.base import Encoder, EncoderError
from cliad.cache.views import FLIPPED, ViewSet

Log = Callable[[str], None]
SILENT: Log = lambda line: None


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder, and how it sees images; the defaults are `tiny` for digits and ViT-B-32 / openai for all else."""

    model: str | None = None
    pretrained: str | None = None
    quick_gelu: bool | None = None  # the activation of a local weights file
    squeeze: bool = False  # resize without keeping proportions, as CoOp's code does

    def load(
        self, dataset: str, device: torch.device, *, half: bool, fetch: bool, log: Log
    ) -> Encoder:
        """The encoder; weights that are not here are fetched, if that is allowed."""
        model, pretrained = weights.full_name(*self._names(dataset))
        if missing := weights.to_fetch(model, pretrained):
            name = weights.shown_name(model, pretrained)
            if not fetch:
                raise EncoderError(
                    f"the weights of {name} are not here; leave out --no-download, or give a local file with --pretrained FILE"
                )
            log(
                f"fetching the weights of {name} from {missing.where}"
                + (f", about {missing.megabytes:,.0f} MB" if missing.megabytes else "")
            )
        return clip.load(
            model,
            pretrained,
            device=device,
            quick_gelu=self.quick_gelu,
            squeeze=self.squeeze,
            half=half,
        )

    def _names(self, dataset: str) -> tuple[str, str | None]:
        if self.model:
            return self.model, self.pretrained
        return (
            ("tiny", None)
            if dataset == "digits" and self.pretrained is None
            else (weights.DEFAULT[0], self.pretrained or weights.DEFAULT[1])
        )


@dataclass(frozen=True)
class PromptChoice:
    """Which prompts: a named set of templates, own templates, or sentences per class; and the name under which the file keeps them."""

    name: str | None = None
    templates: Sequence[str] = ()
    descriptions: Path | None = None
    classnames: Path | None = None

    def texts(self, listing: Listing, dataset: Dataset) -> prompts.Prompts:
        names = (
            read_classnames(self.classnames, len(listing.classnames))
            if self.classnames
            else listing.classnames
        )
        names = [prompts.clean(name) for name in names]
        if self.descriptions:
            return prompts.from_descriptions(self.descriptions, names)
        named = prompts.template_set(self.name) if self.name and not self.templates else None
        return prompts.from_templates(
            self.templates or named or listing.templates or dataset.templates, names
        )

    @property
    def key(self) -> str:
        return self.name or ("descriptions" if self.descriptions else "default")


@dataclass(frozen=True)
class Extras:
    """What is stored beside the plain view: views of the training images, pre-projection features, patch tokens."""

    views: int = 0
    scale: tuple[float, float] = (0.5, 1.0)
    views_seed: int = 1
    flip: bool = False
    views_for: str | None = None  # `coop:16:1,2,3`: only images that these draws use
    pre_projection: bool = False
    tokens: bool = False

    @property
    def view_sets(self) -> dict[str, ViewSet]:
        crops = [] if self.views == 0 else [ViewSet(self.views, self.scale, seed=self.views_seed)]
        sets = [*crops, FLIPPED] if self.flip else crops
        return {views.name: views for views in sets}

    @property
    def parts(self) -> tuple[str, ...]:
        return ("features", *["pre_projection"] * self.pre_projection, *["tokens"] * self.tokens)
