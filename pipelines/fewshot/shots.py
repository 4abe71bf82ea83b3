"""The images that a protocol draws, from the field's split files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cliad.pipelines.fewshot.draw import DrawError, draw


def shots(
    split_file: Path, *, shots: int, seed: int, protocol: str = "coop"
) -> dict[str, list[dict]]:
    """{"train": [{"path", "label", "classname"}], "val": [...]}: support and validation in the order drawn."""
    splits = read_split_file(split_file)
    labels = {name: [label for _, label, _ in items] for name, items in splits.items()}
    names = {label: name for _, label, name in splits["train"]}
    by_label = [names.get(label, str(label)) for label in range(max(names) + 1)]
    drawn = draw(
        labels["train"],
        labels.get("val"),
        shots=shots,
        seed=seed,
        protocol=protocol,
        names=by_label,
    )
    item = lambda split, row: dict(
        zip(("path", "label", "classname"), splits[split][row], strict=True)
    )
    return {
        "train": [item("train", row) for row in drawn.train],
        "val": [item(drawn.val_split, row) for row in drawn.val],
    }


def read_split_file(path: Path) -> dict[str, Sequence[tuple[str, int, str]]]:
    """{"train": [(path, label, class name)], ...} of a split_zhou_*.json.

    Raises:
        DrawError: not there, not JSON, or of another form.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        splits = {
            name: [(str(p), int(label), str(classname)) for p, label, classname in data[name]]
            for name in data
        }
    except OSError as error:
        raise DrawError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        form = '{"train": [[path, label, classname], ...], "val": ..., "test": ...}'
        raise DrawError(f"{path} is no split file of the form {form} ({str(error)[:60]})") from None
    if not splits.get("train"):
        raise DrawError(f"{path} has no training images; it has {sorted(splits)}")
    return splits
