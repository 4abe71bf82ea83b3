"""Cache -> Episode: the few-shot draw, the rows it needs as tensors, and the move to a device.

This is the only module of experiments that moves tensors to a device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliad.adapters.core.episode import Episode
from cliad.adapters.core.tower import TextTower
from cliad.cache.encoders.base import choose_device
from cliad.cache.file.layout import DONE, CacheError, covered_rows_array, is_view_array
from cliad.cache.file.read import FeatureCache
from cliad.cache.file.rows import Split
from cliad.pipelines.fewshot.draw import Draw, DrawRequest, draw, index_hash
from cliad.pipelines.tower import tower_of


@dataclass(frozen=True, eq=False)
class DrawnEpisode:
    """An episode with what a result row says of its draw."""

    episode: Episode
    index_hash: str  # 16 hex digits that name the drawn images
    val_per_class: int  # validation images of the class that has fewest


class LabelledRows(NamedTuple):
    """Raw features x (n, dim) and labels y (n,): what a classifier is scored on."""

    x: Tensor
    y: Tensor


def pick_device(name: str = "auto") -> torch.device:
    """The device by its name; `auto` is CUDA where there is one, else the CPU.

    Heads are too small to gain from mps, so `auto` never takes it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return choose_device(name)


def draw_of(cache: FeatureCache, request: DrawRequest) -> tuple[Draw, str]:
    """The draw on a cache's splits, and its index hash.

    Raises:
        DrawError: see `draw`.
    """
    train = cache.split("train")
    val = cache.split("val") if "val" in cache.split_names else None
    train_labels = train.y.tolist()
    val_labels = None if val is None else val.y.tolist()
    drawn = draw(
        train_labels,
        val_labels,
        shots=request.shots,
        seed=request.seed,
        protocol=request.protocol,
        names=cache.classnames,
    )
    # Paths are read from the file, so only those of drawn rows are.
    if val is None or drawn.val_split == "train":
        train_paths = _paths_by_row(train, [*drawn.train, *drawn.val])
        val_paths = {}
    else:
        train_paths = _paths_by_row(train, drawn.train)
        val_paths = _paths_by_row(val, drawn.val)
    val_source = None if val_labels is None else (val_labels, val_paths)
    return drawn, index_hash(drawn, (train_labels, train_paths), val_source)


def _paths_by_row(split: Split, rows: Sequence[int]) -> dict[int, str]:
    if not rows:
        return {}
    return dict(zip(rows, split.paths(rows), strict=True))


class SharedRows:
    """The rows that some draw uses, as one matrix: training rows first, then validation rows.

    Rows of each split stand in ascending order, each once.
    """

    def __init__(self, draws: Sequence[Draw]):
        train: set[int] = set()
        val: set[int] = set()
        for drawn in draws:
            train.update(drawn.train)
            if drawn.val_split == "train":
                train.update(drawn.val)
            else:
                val.update(drawn.val)
        # Sorted, so that a row is found by bisection and read from the file in order.
        self.train = np.array(sorted(train), np.int64)
        self.val = np.array(sorted(val), np.int64)

    @property
    def by_split(self) -> dict[str, np.ndarray]:
        """The rows in use of each split that has any, in the matrix's order."""
        rows = {"train": self.train, "val": self.val}
        return {name: members for name, members in rows.items() if len(members)}

    def positions(self, split: str, rows: Sequence[int]) -> np.ndarray:
        """Where rows of a split stand in the matrix."""
        if split == "train":
            return np.searchsorted(self.train, rows)
        # Validation rows stand behind all training rows.
        return len(self.train) + np.searchsorted(self.val, rows)


def make_episodes(
    cache: FeatureCache,
    requests: Sequence[DrawRequest],
    device: torch.device,
    *,
    needs: Collection[str] = (),
) -> list[DrawnEpisode]:
    """Episodes over one cache; they share one matrix with just the rows that some draw uses.

    Args:
        cache: the cache.
        requests: what is drawn, an episode each.
        device: where the tensors go.
        needs: of {"views", "pre_projection"}, the optional arrays to load; where the cache lacks
            them the episode has None. "tower": load the text tower. Other words are ignored.

    Raises:
        SpecError, EncoderError: there is no such tower, see `tower_of`.
        CacheError: a drawn image could not be read when its features were extracted.
        DrawError: see `draw`.
    """
    drawn = [draw_of(cache, request) for request in requests]
    rows = SharedRows([one for one, _ in drawn])
    shared = _SharedTensors.load(cache, rows, device, needs)
    episodes = []
    for (one, digest), request in zip(drawn, requests, strict=True):
        least = min(one.val_per_class.values())
        episodes.append(DrawnEpisode(shared.episode(one, request.seed), digest, least))
    return episodes


@dataclass(frozen=True, eq=False)
class _SharedTensors:
    """What all episodes over one cache share; tensors are on the device, labels are not."""

    rows: SharedRows  # what n_row counts
    labels: Mapping[str, np.ndarray]  # of all images of a split, by its name
    features: Tensor  # (n_row, dim)
    views: Tensor | None  # (n_view, n_row, dim)
    pre_projection: Tensor | None  # (n_row, dim_pre)
    text: Tensor | None  # (n_template, n_class, dim)
    logit_scale: float
    n_class: int
    names: tuple[str, ...]
    tower: TextTower | None

    @classmethod
    def load(
        cls, cache: FeatureCache, rows: SharedRows, device: torch.device, needs: Collection[str]
    ) -> _SharedTensors:
        """The rows from the cache's file, those of each split in one reading.

        Raises:
            CacheError: see `make_episodes`.
        """
        for name, members in rows.by_split.items():
            _check_readable(cache, name, members)
        parts = [_finite_rows(cache, name, members) for name, members in rows.by_split.items()]
        views = _views(cache, rows.train, device) if "views" in needs else None
        pre_projection = None
        if "pre_projection" in needs:
            pre_projection = _column(cache, rows.by_split, "pre_projection", device)
        # Without texts there is nothing to check a tower by: `require` then asks for texts.
        with_tower = "tower" in needs and cache.text is not None
        names = [name for name in ("train", "val") if name in cache.split_names]
        return cls(
            rows=rows,
            labels={name: cache.split(name).y for name in names},
            # One matrix for all episodes: a grid of many draws holds each row once.
            features=torch.from_numpy(np.concatenate(parts)).to(device),
            views=views,
            pre_projection=pre_projection,
            text=class_texts(cache, device),
            logit_scale=cache.logit_scale,
            n_class=len(cache.classnames),
            names=tuple(cache.classnames),
            tower=tower_of(cache, device) if with_tower else None,
        )

    def episode(self, drawn: Draw, seed: int) -> Episode:
        """The episode of one draw."""
        val_split = drawn.val_split
        return Episode(
            features=self.features,
            index=_on_host(self.rows.positions("train", drawn.train)),
            y=_on_host(self.labels["train"][drawn.train]),
            val_index=_on_host(self.rows.positions(val_split, drawn.val)),
            val_y=_on_host(self.labels[val_split][drawn.val]),
            text=self.text,
            logit_scale=self.logit_scale,
            seed=seed,
            n_class=self.n_class,
            views=self.views,
            pre_projection=self.pre_projection,
            names=self.names,
            tower=self.tower,
        )


def _on_host(numbers: np.ndarray) -> Tensor:
    """Row numbers or labels as an episode has them: int64, what torch takes as an index."""
    return torch.from_numpy(np.asarray(numbers, np.int64))


def class_texts(cache: FeatureCache, device: torch.device) -> Tensor | None:
    """Raw class texts (n_template, n_class, dim) of a cache; None where it has none."""
    return None if cache.text is None else torch.from_numpy(cache.text).to(device)


def _check_readable(cache: FeatureCache, split: str, rows: np.ndarray) -> None:
    """CacheError where the image of one of the rows could not be read."""
    bad = rows[cache.split(split).status[rows] != DONE]
    if not len(bad):
        return
    # The first one is enough: the message is one line. An import may know no paths.
    path = cache.split(split).paths(bad[:1])[0]
    raise CacheError(
        f"{split} image {path or bad[0]} was selected for this run but could not be read;"
        " repair it and extract with --force, or take another --seed"
    )


def _finite_rows(cache: FeatureCache, split: str, rows: np.ndarray) -> np.ndarray:
    """Raw features (n, dim) of rows of a split.

    Raises:
        CacheError: one of them is not a number: the file was damaged after it was written.
    """
    x = cache.split(split).rows(rows)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise CacheError(
            f"{cache.path}: the features of row {rows[bad[0]]} of {split} are not finite"
            f" ({len(bad)} such rows); `cliad verify` finds what is damaged,"
            " extract it again with --force"
        )
    return x


def _column(
    cache: FeatureCache, rows: Mapping[str, np.ndarray], name: str, device: torch.device
) -> Tensor | None:
    """An optional array (n_row, ...) at rows of each split, in order; None where it is missing."""
    parts = []
    for split, members in rows.items():
        column = cache.column(split, name)
        if column is None:
            return None
        parts.append(np.asarray(column[members], np.float32))
    return torch.from_numpy(np.concatenate(parts)).to(device)


def _views(cache: FeatureCache, rows: np.ndarray, device: torch.device) -> Tensor | None:
    """(n_view, n_row, dim) views of training rows, from the first view set of the cache.

    Raises:
        CacheError: the views do not cover all of the rows.
    """
    names = [name for name in cache.row_arrays("train") if is_view_array(name)]
    if not names:
        return None
    full_name = f"splits/train/{names[0]}"
    covered = cache.read(covered_rows_array(full_name))
    array = cache.read(full_name)
    # `covered` (n_row,) ascends. A row beyond its end would get an index out of range, hence the
    # minimum below; such a row then differs from what is found there.
    places = np.searchsorted(covered, rows)
    last = len(covered) - 1
    if last < 0 or not np.array_equal(covered[np.minimum(places, last)], rows):
        raise CacheError(
            f"{names[0]} of {cache.path.name} do not cover all drawn images; extract with"
            " --views-for for these shots and seeds"
        )
    return torch.from_numpy(np.asarray(array[:, places], np.float32)).to(device)


def score_rows(
    cache: FeatureCache, split: str, device: torch.device, *, pre_projection: bool = False
) -> LabelledRows:
    """All readable rows (n, dim) raw and labels (n,) of a split: what a classifier is scored on.

    With `pre_projection` the features before the projection stand behind the others,
    (n, dim + dim_pre).

    Raises:
        CacheError: no image of the split could be read, or its features are not finite.
    """
    data = cache.split(split)
    # An image that could not be read has a row of zeros, which is no image's feature.
    readable = np.flatnonzero(data.readable)
    if not len(readable):
        raise CacheError(
            f"{cache.path.name} has no {split} image that could be read ({len(data)} are listed),"
            " so there is nothing to score on; repair the images and extract with --force"
        )
    x = torch.from_numpy(_finite_rows(cache, split, readable)).to(device)
    if pre_projection:
        before = _column(cache, {split: readable}, "pre_projection", device)
        if before is None:
            raise CacheError(
                f"{cache.path.name} has no pre-projection features of its {split} split;"
                " extract with --pre-projection"
            )
        x = torch.cat([x, before], dim=-1)
    y = torch.as_tensor(np.asarray(data.y[readable], np.int64), device=device)
    return LabelledRows(x, y)
