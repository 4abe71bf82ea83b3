"""The encoders there are and facts of each, from a table: to import open_clip takes seconds.

The table beside this file holds for one version of open_clip. Where another is installed, open_clip
itself is asked. `python -m cliad.cache.encoders.listed` writes the table for the one that is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TABLE = Path(__file__).with_name("listed.json")


@dataclass(frozen=True)
class Listed:
    """An encoder: the names of its weights, and the one taken by default.

    default is None where --pretrained must say; parameters, image_size (pixels) and dim (length of
    a feature) are None where they are not known (weights.Facts). activations: of each of the
    weights.
    """

    name: str
    pretrained: list[str]
    default: str | None
    parameters: int | None
    image_size: int | list[int] | None
    dim: int | None
    activations: list[str]


def listed() -> list[Listed]:
    """The bundled encoder, then all of open_clip's that have published weights."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if table["open_clip"] != _installed():
        return ask_open_clip()
    return [Listed(**row) for row in table["encoders"]]


def ask_open_clip() -> list[Listed]:
    """The same, as the installed open_clip says; takes seconds."""
    # Imported here, as what it takes to import it is what the table saves.
    from cliad.cache.encoders import weights

    facts = weights.tiny_facts()
    rows = [Listed("tiny", ["bundled"], "bundled", **asdict(facts))]
    for name, tags in weights.published().items():
        facts = weights.facts_of(name, tags)
        rows.append(Listed(name, tags, weights.default_tag(tags), **asdict(facts)))
    return rows


def table() -> dict[str, object]:
    """What stands in the table for the installed open_clip."""
    return {"open_clip": _installed(), "encoders": [asdict(row) for row in ask_open_clip()]}


def _installed() -> str | None:
    """The version of open_clip; None where the package does not say."""
    try:
        return version("open_clip_torch")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
