"""The images that a protocol draws, from the field's split files alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cliad.cache.datasets.split_file import SplitRow, read_split_file
from cliad.pipelines.fewshot.draw import DrawError, draw


def shots(
    split_file: Path, *, shots: int, seed: int, protocol: str = "coop"
) -> dict[str, list[dict[str, str | int]]]:
    """Draw support and validation images, which are given in the order drawn.

    Returns:
        {"train": [{"path", "label", "classname"}, ...], "val": [...]}

    Raises:
        SplitFileError: the split file cannot be read.
        DrawError: it has no training images, or too few of a class.
    """
    content = read_split_file(Path(split_file))
    # A split file may lack val; `draw` then takes validation images from train.
    train = content.splits.get("train", ())
    val = content.splits.get("val", ())
    if not train:
        raise DrawError(f"{split_file} has no training images; it has {sorted(content.splits)}")
    drawn = draw(
        [row.label for row in train],
        [row.label for row in val],
        shots=shots,
        seed=seed,
        protocol=protocol,
        names=content.classnames,
    )
    # Without a validation split, validation images are training images outside the support.
    val_source = val if drawn.val_split == "val" else train
    return {"train": _chosen(train, drawn.train), "val": _chosen(val_source, drawn.val)}


def _chosen(rows: Sequence[SplitRow], numbers: Iterable[int]) -> list[dict[str, str | int]]:
    return [rows[number]._asdict() for number in numbers]
