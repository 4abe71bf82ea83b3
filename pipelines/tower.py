"""The text tower of a cache's encoder, for heads that learn prompts.

It is loaded for these heads alone, and must give the texts that the cache holds. It comes from the
file that `cliad extract --text-tower` keeps beside the caches, else out of the encoder itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cliad.cache.encoders.kept_tower import keep_tower, open_tower
from cliad.cache.encoders.names import FROM_FILE, MODEL_NAME, TAG
from cliad.cache.encoders.text_tower import CausalTower
from cliad.cache.file.read import FeatureCache
from cliad.cache.folder import slug
from cliad.cache.prompts import fill
from cliad.pipelines.experiments.spec_error import SpecError

CHECKED_PROMPTS = 32  # prompts of a cache that its tower encodes again
# Least cosine between a prompt as the cache has it and as the tower gives it. Half precision costs
# about 1e-6. Other weights cost far more than this allows; the other GELU need not (3e-5 for the
# bundled encoder), but is a part of the encoder's id.
LEAST_COSINE = 0.999
TOWERS = "towers"  # the folder of kept towers in a cache folder
# First words of prompts that a kept tower always knows.
FIRST_WORDS = ("a photo of a", "a photo of the", "a photo of")
REMEDY = "keep its text tower with `cliad extract --text-tower`"


def tower_of(cache: FeatureCache, device: torch.device) -> CausalTower:
    """The text tower that made a cache's texts, on a device.

    Raises:
        SpecError: the tower is not known, cannot be had here, or is not that of the cache's texts.
        EncoderError: its prompts cannot be learnt, see `take_apart`.
    """
    tower = load_tower(cache).to(device)
    check_tower(tower, cache)
    return tower


def load_tower(cache: FeatureCache) -> CausalTower:
    """The same on the CPU, and not yet held to the cache's texts.

    Raises:
        SpecError, EncoderError: see `tower_of`.
    """
    kept = kept_path(cache_folder_of(cache), cache.encoder, cache.encoder_id)
    if kept.is_file():
        return _opened(kept, kept.stat().st_mtime_ns, cache.encoder_id)
    model, tag = _named(cache)
    return _loaded(model, tag, cache.encoder_id)


def cache_folder_of(cache: FeatureCache) -> Path:
    """The cache folder that a cache lies in, see `cliad.cache.folder.cache_path`."""
    return cache.path.parent.parent


def kept_path(folder: Path, encoder: str, encoder_id: str) -> Path:
    """Where the text tower of an encoder is kept in a cache folder."""
    return folder / TOWERS / f"{slug(encoder)}-{slug(encoder_id)}.safetensors"


def keep(cache: FeatureCache, tower: CausalTower) -> Path:
    """Keep the tower of a cache's encoder in its folder, for the cache's classes and prompts.

    Returns:
        The file; one that was there keeps its lines.

    Raises:
        SpecError: it is not the tower of the cache's texts.
        EncoderError: the file cannot be written.
    """
    check_tower(tower, cache)
    path = kept_path(cache_folder_of(cache), cache.encoder, cache.encoder_id)
    keep_tower(path, tower, cache.encoder_id, _lines_of(cache))
    return path


def _lines_of(cache: FeatureCache) -> list[str]:
    """What learned prompts are made of, whose tokens a kept tower has to know."""
    lines = list(FIRST_WORDS)
    for template in cache.templates:
        before, place, _ = template.replace("{c}", "{}").partition("{}")
        if place and before.strip():
            lines.append(before.strip())
    for name in cache.classnames:
        lines += [name, f"{name}."]
    return [*lines, *some_prompts(cache).values()]


def _named(cache: FeatureCache) -> tuple[str, str]:
    """Model and weights of a cache's encoder, if they are names that can be looked up."""
    recipe = cache.recipe.get("encoder")
    if not isinstance(recipe, Mapping) or "weights" not in recipe:
        raise SpecError(
            f"the features of {cache.path.name} were imported, so the text tower of {cache.encoder}"
            " is not known; heads that learn prompts need a cache of `cliad extract`"
        )
    model = recipe.get("model")
    tag = recipe.get("pretrained")
    is_name = isinstance(model, str) and MODEL_NAME.fullmatch(model)
    is_tag = isinstance(tag, str) and TAG.fullmatch(tag)
    # A cache may come from anywhere: it never names a file to load.
    if not is_name or not is_tag or tag == FROM_FILE:
        raise SpecError(
            f"the encoder of {cache.path.name} was a file, which is not looked for; {REMEDY}"
        )
    return str(model), str(tag)


# The time of the file is a part of the question: a file that was written anew is read anew.
@functools.lru_cache(maxsize=1)
def _opened(path: Path, changed: int, encoder_id: str) -> CausalTower:
    return open_tower(path, encoder_id)


# One: a grid asks again for each of its calls, and a large tower takes a quarter of a gigabyte.
@functools.lru_cache(maxsize=1)
def _loaded(model: str, tag: str, encoder_id: str) -> CausalTower:
    """The tower on the CPU, taken out of the whole encoder."""
    try:
        # Imported here, as nothing else of stage two needs open_clip.
        from cliad.cache.encoders import clip, weights
    except ModuleNotFoundError as error:
        raise SpecError(
            f"to load the text tower of {model} takes {error.name}, which is not installed here;"
            f" {REMEDY} where it is"
        ) from None
    name, tag = weights.full_name(model, tag or None)
    if weights.to_fetch(name, tag):
        raise SpecError(
            f"the weights of {weights.shown_name(name, tag)} are not on this machine, and stage two"
            f" fetches none; {REMEDY}"
        )
    encoder = clip.load(name, tag, device=torch.device("cpu"))
    if encoder.encoder_id != encoder_id:
        raise SpecError(
            f"{encoder.name} here is not the encoder of the cache (its id is {encoder.encoder_id},"
            f" the cache's {encoder_id}); {REMEDY} of the right one"
        )
    return encoder.text_tower()


@torch.no_grad()
def check_tower(tower: CausalTower, cache: FeatureCache) -> None:
    """Check that a tower gives the texts of a cache, by some of its prompts.

    Raises:
        SpecError: it gives others, so that what is learnt with it would not fit the images.
    """
    text = cache.text
    prompts = some_prompts(cache)
    if text is None or not prompts:
        return
    expected = torch.stack([torch.from_numpy(text[place]) for place in prompts])
    got = encoded(tower, list(prompts.values()))
    cosine = F.cosine_similarity(got.cpu(), expected, dim=-1)  # (n,)
    # not a number is no fit either
    if not bool((cosine > LEAST_COSINE).all()):
        worst = int(cosine.argmin())
        raise SpecError(
            f"the text tower is not that of {cache.path.name}: its feature of"
            f" '{list(prompts.values())[worst][:60]}' has cosine {cosine[worst]:.3f} to the cached"
            f" one; {REMEDY} again, or extract the cache again with --force"
        )


def some_prompts(cache: FeatureCache) -> dict[tuple[int, int], str]:
    """Up to CHECKED_PROMPTS prompts of a cache, by (template, class), spread over all of them."""
    recipe = cache.text_recipe
    names = cache.classnames
    found: dict[tuple[int, int], str] = {}
    for row, template in enumerate(cache.templates):
        sentences = recipe["sentences"][row] if "sentences" in recipe else None
        for column, name in enumerate(names):
            line = fill(template, name) if sentences is None else sentences[column]
            if line is not None:
                found[row, column] = line
    places = list(found)
    step = max(1, len(places) / CHECKED_PROMPTS)
    chosen = [places[int(number * step)] for number in range(min(len(places), CHECKED_PROMPTS))]
    return {place: found[place] for place in chosen}


def encoded(tower: CausalTower, prompts: list[str]) -> Tensor:
    """Features (n, dim) of whole prompts; one that is too long is cut as tokenizers cut it."""
    words, counts = tower.words(prompts)
    most = tower.length - 2  # beside start and end
    last = torch.tensor(counts, device=words.device).clamp(max=most)
    none = words.new_zeros(len(prompts), 1, tower.width)
    suffix = torch.cat([words[:, :most], none], dim=1)
    suffix[torch.arange(len(prompts), device=last.device), last] = tower.end
    return tower(tower.start[None], suffix[None], last)[0]
