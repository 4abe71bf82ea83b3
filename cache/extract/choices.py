"""What a user chooses for an extraction: the encoder, the prompts, and what else is stored."""

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
from cliad.cache.views import FLIPPED, ViewError, ViewSet
from cliad.errors import printable, unknown

Log = Callable[[str], None]

DEFAULT_PROMPTS = "default"  # the name of a data set's own prompts
LONGEST_NAME = 100  # of a prompt set


def silent(line: str) -> None:
    """A `Log` that drops its lines."""


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder, and how it sees images.

    Without a model it is `tiny` for the digits and ViT-B-32 / openai for all other data sets.
    """

    model: str | None = None
    pretrained: str | None = None
    quick_gelu: bool | None = None  # the activation of a local weights file
    squeeze: bool = False  # resize without keeping proportions, as CoOp's code does

    def load(
        self, dataset: str, device: torch.device, *, half: bool, fetch: bool, log: Log
    ) -> Encoder:
        """The encoder; weights that are not on this machine are fetched, if that is allowed.

        Args:
            dataset: the name of the data set, which decides the default encoder.
            device: where it computes.
            half: compute in half precision where that is safe.
            fetch: whether weights may be fetched.
            log: takes a line before a download.

        Raises:
            EncoderError: there is no such encoder, or its weights are missing.
        """
        model, pretrained = weights.full_name(*self._names(dataset))
        missing = weights.to_fetch(model, pretrained)
        if missing:
            name = weights.shown_name(model, pretrained)
            if not fetch:
                raise EncoderError(
                    f"the weights of {name} are not here; leave out --no-download, "
                    "or give a local file with --pretrained FILE"
                )
            size = f", about {missing.megabytes:,.0f} MB" if missing.megabytes else ""
            log(f"fetching the weights of {name} from {missing.where}{size}")
        encoder = clip.load(
            model,
            pretrained,
            device=device,
            quick_gelu=self.quick_gelu,
            squeeze=self.squeeze,
            half=half,
        )
        for note in encoder.notes:
            log(note)
        return encoder

    def _names(self, dataset: str) -> tuple[str, str | None]:
        """Model and weights as the user wrote them, or the defaults."""
        if self.model:
            return self.model, self.pretrained
        if dataset == "digits" and self.pretrained is None:
            return "tiny", None
        model, pretrained = weights.DEFAULT
        return model, self.pretrained or pretrained


@dataclass(frozen=True)
class PromptChoice:
    """Which prompts: a named set of templates, own templates, or sentences for each class.

    `name` is also the name under which the file keeps them.
    """

    name: str | None = None
    templates: Sequence[str] = ()
    descriptions: Path | None = None
    classnames: Path | None = None

    def texts(self, listing: Listing, dataset: Dataset) -> prompts.Prompts:
        """The prompts for the classes of a data set.

        Raises:
            PromptError, ClassnamesError: templates, descriptions or class names that cannot be
                used.
        """
        names = self._classnames(listing)
        if self.descriptions:
            return prompts.from_descriptions(self.descriptions, names)
        return prompts.from_templates(self._templates(listing, dataset), names)

    def _classnames(self, listing: Listing) -> list[str]:
        names = listing.classnames
        if self.classnames:
            names = read_classnames(self.classnames, len(listing.classnames))
        return [prompts.clean(name) for name in names]

    def _templates(self, listing: Listing, dataset: Dataset) -> Sequence[str]:
        """Own templates win over a named set, that over those that come with the data."""
        if self.templates:
            return self.templates
        own = listing.templates or dataset.templates
        if self.name is None or self.name == DEFAULT_PROMPTS:
            return own
        named = prompts.template_set(self.name)
        if named is None and self.classnames is not None:
            return own  # a set of other class names
        if named is None:
            # A misspelt name would store the data set's own templates under another name.
            raise prompts.PromptError(
                unknown("prompt set", self.name, prompts.TEMPLATE_SETS)
                + "; templates of your own come with --template 'a photo of a {}.'"
            )
        return named

    @property
    def key(self) -> str:
        """The name under which the file keeps the prompts."""
        if self.name is not None:
            return self.name
        return "descriptions" if self.descriptions else DEFAULT_PROMPTS

    def check(self) -> None:
        """Refuse a name that no cache file can hold, and choices that exclude each other.

        Raises:
            PromptError: it is empty, too long, or holds a slash or what no terminal shows; it is
                that of known templates, and others are given; or prompts are given twice.
        """
        name = self.key
        is_fine = 0 < len(name) <= LONGEST_NAME and "/" not in name and not name.startswith(".")
        if not is_fine or printable(name) != name:
            raise prompts.PromptError(
                f"--prompts {printable(name)[:40]!r} cannot name a prompt set; give a name of at"
                f" most {LONGEST_NAME} letters without / and leading ."
            )
        if self.templates and self.descriptions is not None:
            raise prompts.PromptError(
                "--template and --descriptions are two ways to make prompts; give one of them"
            )
        has_own = bool(self.templates) or self.descriptions is not None
        if has_own and name in prompts.TEMPLATE_SETS:
            raise prompts.PromptError(
                f"'{name}' names templates that come with cliad; give prompts of your own another"
                " name with --prompts NAME"
            )


@dataclass(frozen=True)
class Extras:
    """What is stored beside the features of each image.

    That is views of the training images, features before the last projection, and patch tokens.
    """

    views: int = 0
    scale: tuple[float, float] = (0.5, 1.0)
    views_seed: int = 1
    flip: bool = False
    views_for: str | None = None  # `coop:16:1,2,3`: only images that these draws use
    pre_projection: bool = False
    tokens: bool = False
    text_tower: bool = False  # kept in a file of its own, beside the caches

    def check(self) -> None:
        """Refuse choices about views where there are none.

        Raises:
            ViewError: there are such choices, or the views cannot be made.
        """
        # Numbers out of range are refused there.
        if self.views_for is not None and not self.view_sets:
            raise ViewError("--views-for chooses images for views; give --views N or --flip, too")
        plain = Extras()
        if self.views == 0 and (self.scale, self.views_seed) != (plain.scale, plain.views_seed):
            raise ViewError("--views-scale and --views-seed need --views N")

    @property
    def view_sets(self) -> dict[str, ViewSet]:
        """The view sets by their names in the file."""
        sets = []
        if self.views != 0:  # a negative number reaches ViewSet, which refuses it
            sets.append(ViewSet(self.views, self.scale, seed=self.views_seed))
        if self.flip:
            sets.append(FLIPPED)
        return {views.name: views for views in sets}

    @property
    def parts(self) -> tuple[str, ...]:
        """The outputs of the image tower that are stored, by their names in the file."""
        parts = ["features"]
        if self.pre_projection:
            parts.append("pre_projection")
        if self.tokens:
            parts.append("tokens")
        return tuple(parts)
