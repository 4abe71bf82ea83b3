"""Cache -> Episode: the few-shot draw, the rows it needs as tensors, the move to a device. The only place that moves tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cliad.adapters.core.episode import Episode
from cliad.cache.encoders.base import choose_device
from cliad.cache.file.layout import DONE, CacheError
from cliad.cache.file.read import FeatureCache
from cliad.pipelines.fewshot.draw import Draw, draw, index_hash


@dataclass(frozen=True, eq=False)
class DrawnEpisode:
    """An episode with what a result row says of its draw."""

    episode: Episode
    index_hash: str
    val_per_class: int  # the smallest over classes
    n_val: int


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU: heads are too small to gain from mps."""
    return choose_device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def draw_of(cache: FeatureCache, *, shots: int, seed: int, protocol: str) -> tuple[Draw, str]:
    """The draw on a cache's splits, and its index hash."""
    train = cache.split("train")
    val = cache.split("val") if "val" in cache.split_names else None
    labels, val_labels = train.y.tolist(), val.y.tolist() if val is not None else None
    drawn = draw(labels, val_labels, shots=shots, seed=seed, protocol=protocol, names=cache.classnames)
    sparse = lambda split, rows: dict(zip(rows, split.paths(rows), strict=True)) if rows else {}
    sources = {"train": train, "val": val}
    val_paths = sparse(sources[drawn.val_split], drawn.val)
    train_paths = sparse(train, drawn.train) | (val_paths if drawn.val_split == "train" else {})
    return drawn, index_hash(drawn, (labels, train_paths), None if val is None else (val_labels, val_paths))


def make_episodes(
    cache: FeatureCache, asked: Sequence[tuple[int, int, str]], device: torch.device, *, needs=frozenset()
) -> list[DrawnEpisode]:
    """Episodes for (shots, seed, protocol) triples over one cache; they share one matrix with just the rows that some draw uses.

    needs: of {"views", "pre_projection"}, the optional arrays to load; where the cache lacks them the episode has None.
    Raises:
        CacheError: a drawn image could not be read when its features were extracted.
        DrawError: see `draw`.
    """
    draws = [draw_of(cache, shots=shots, seed=seed, protocol=protocol) for shots, seed, protocol in asked]
    used = {"train": set(), "val": set()}
    for drawn, _ in draws:
        used["train"].update(drawn.train)
        used[drawn.val_split].update(drawn.val)
    rows = {name: np.array(sorted(members), np.int64) for name, members in used.items()}
    _check_readable(cache, rows)
    parts = [cache.split(name).rows(of_split) for name, of_split in rows.items() if len(of_split)]
    features = torch.from_numpy(np.concatenate(parts)).to(device)
    text = None if cache.text is None else torch.from_numpy(cache.text).to(device)
    extras = {"views": _views(cache, rows["train"], device) if "views" in needs else None}
    extras["pre_projection"] = _column(cache, rows, "pre_projection", device) if "pre_projection" in needs else None
    at = {"train": lambda r: np.searchsorted(rows["train"], r), "val": lambda r: len(rows["train"]) + np.searchsorted(rows["val"], r)}
    tensor = lambda values: torch.as_tensor(np.asarray(values, np.int64), device=device)
    y = {name: cache.split(name).y for name in ("train", "val") if name in cache.split_names}
    episodes = []
    for (drawn, digest), (_, seed, _) in zip(draws, asked, strict=True):
        index, val_index = tensor(at["train"](drawn.train)), tensor(at[drawn.val_split](drawn.val))
        labels, val_labels = tensor(y["train"][drawn.train]), tensor(y[drawn.val_split][drawn.val])
        n_class, scale = len(cache.classnames), cache.logit_scale
        episode = Episode(features, index, labels, val_index, val_labels, text, scale, seed, n_class, **extras)
        episodes.append(DrawnEpisode(episode, digest, min(drawn.val_per_class.values()), len(drawn.val)))
    return episodes


def _check_readable(cache: FeatureCache, rows: dict[str, np.ndarray]) -> None:
    for name, members in rows.items():
        if len(members) and len(bad := members[cache.split(name).status[members] != DONE]):
            path = cache.split(name).paths(bad[:1])[0]
            raise CacheError(
                f"{name} image {path or bad[0]} is drawn but could not be read; mend it and extract with --force, or take another --seed"
            )


def _column(cache: FeatureCache, rows: dict[str, np.ndarray], name: str, device: torch.device) -> Tensor | None:
    parts = [(cache.column(split, name), members) for split, members in rows.items() if len(members)]
    if any(array is None for array, _ in parts):
        return None
    return torch.from_numpy(np.concatenate([np.asarray(array[members], np.float32) for array, members in parts])).to(device)


def _views(cache: FeatureCache, rows: np.ndarray, device: torch.device) -> Tensor | None:
    """(n_view, n_row, dim) views of the training rows in use, from the first view set of the cache."""
    names = [name for name in cache.row_arrays("train") if name.startswith("views/")]
    if not names:
        return None
    covered, array = cache.column("train", names[0] + "_rows"), cache.column("train", names[0])
    at = np.searchsorted(covered, rows)
    if not np.array_equal(covered[np.minimum(at, len(covered) - 1)], rows):
        raise CacheError(
            f"{names[0]} of {cache.path.name} do not cover all drawn images; extract with --views-for for these shots and seeds"
        )
    return torch.from_numpy(np.asarray(array[:, at], np.float32)).to(device)


def score_rows(cache: FeatureCache, split: str, device: torch.device, *, pre_projection: bool = False) -> tuple[Tensor, Tensor]:
    """All readable rows (n, dim) raw and labels (n,) of a split: what a classifier is scored on.

    pre_projection: the features before the projection stand behind the others, (n, dim + dim_pre).
    """
    data = cache.split(split)
    keep = np.flatnonzero(data.readable)
    columns = [torch.from_numpy(data.rows(keep)).to(device)]
    if pre_projection:
        columns.append(_column(cache, {split: keep}, "pre_projection", device))
    return torch.cat(columns, dim=-1), torch.as_tensor(np.asarray(data.y[keep], np.int64), device=device)
