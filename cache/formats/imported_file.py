"""The cache file of imported features: its identity, the check of all values, its writing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cliad import __version__
from cliad.cache.file.layout import (
    DONE,
    CacheError,
    Header,
    SplitLayout,
    TextSet,
    canonical_json,
    file_list_hash,
    part_of,
    recipe_id,
)
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import Writer, add_text, create, lock_cache
from cliad.cache.folder import slug
from cliad.cache.formats.base import ImportedSplit, check_text_width
from cliad.cache.formats.labelling import LabelledFeatures

BATCH = 4096  # rows
# How far from 1 the lengths of unit rows may be: half precision moves them by up to 5e-4. The check
# of a cache file allows more (`file.check.UNIT_TOLERANCE`), so that no import is found wrong.
IMPORTED_UNIT_TOLERANCE = 2e-3
# Lengths of rows that single precision can square, add up and divide by.
SHORTEST = 1e-6
LONGEST = 1e12
# How far rounding to the file's type may move a row, as a part of its length.
ROUNDING = 0.02
LARGEST_RECIPE = 64_000  # bytes; HDF5 has no longer attributes


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def make_header(
    kind: str, features: LabelledFeatures, *, dataset: str, encoder: str, dtype: str
) -> Header:
    """The header of the cache, whose id depends on the content; every value is checked for it.

    Raises:
        CacheError: a feature is not finite, or too large for `dtype`.
    """
    digest = hashlib.sha256()
    unit_rows = True
    # Sorted: the order in which a reader found the splits is not part of the identity.
    for name in sorted(features.splits):
        if not _digest_split(name, features.splits[name], dtype, digest):
            unit_rows = False
    lists = {name: (rows.paths, rows.y) for name, rows in features.splits.items()}
    recipe = {
        "import": kind,
        "encoder": encoder,
        "content": digest.hexdigest(),
        "files": file_list_hash(lists),
        "dtype": dtype,
    }
    return Header(
        dataset=dataset,
        encoder=encoder,
        encoder_id=_encoder_id(encoder),
        recipe=recipe,
        batch=BATCH,
        dtype=dtype,
        unit_rows=unit_rows,
        versions={"cliad": __version__, "numpy": np.__version__},
    )


def make_text_set(
    kind: str,
    features: LabelledFeatures,
    *,
    name: str,
    encoder: str,
    logit_scale: float,
    dtype: str,
) -> TextSet:
    """The prompt set `name` of the cache: class names, and text features where there are any.

    Raises:
        CacheError: text features of another width than the images', not finite or too large, or
            more class names than an attribute of the file can hold.
    """
    recipe: dict[str, Any] = {
        "import": kind,
        "encoder": encoder,
        "classnames": features.classnames,
        "templates": [],
        "logit_scale": logit_scale,
    }
    text = features.text
    if text is not None:
        check_text_width("text", text, next(iter(features.splits.values())).x.shape[1])
        given = text
        text = _stored(given, dtype)
        _check_values("text: template", given, text, np.arange(len(text)), dtype)
        _check_text_lengths(given, text, dtype)
        default_templates = [f"imported {number}" for number in range(len(text))]
        # An import cannot tell which templates made the text, unless it is said.
        recipe["templates"] = list(features.templates or default_templates)
        recipe["content"] = hashlib.sha256(text.tobytes()).hexdigest()
        if features.prompts:
            recipe["prompts"] = features.prompts
    n_byte = len(canonical_json(recipe).encode())
    if n_byte > LARGEST_RECIPE:
        raise CacheError(
            f"{len(features.classnames):,} class names, templates and prompts take {n_byte:,} bytes"
            f" together, more than the {LARGEST_RECIPE:,} that a cache holds; shorten the names"
        )
    return TextSet(
        name=name,
        features=text,
        templates=recipe["templates"],
        classnames=features.classnames,
        recipe=recipe,
        encoder_id=_encoder_id(encoder),
        logit_scale=logit_scale,
    )


def _encoder_id(encoder: str) -> str:
    """An import knows its encoder by name only; `ViT-B/32` and `vit-b-32` are one."""
    return recipe_id({"import": slug(encoder)})


def _digest_split(split: str, rows: ImportedSplit, dtype: str, digest: _Digest) -> bool:
    """Check a split's features and add them to the digest as they will be stored.

    Returns:
        Whether all rows have length one.
    """
    unit_rows = True
    for start in range(0, len(rows.y), BATCH):
        stop = start + BATCH
        x = stored_batch(rows, start, dtype)
        status = rows.status[start:stop]
        done = status == DONE
        # Unreadable rows may hold anything.
        given = np.asarray(rows.x[start:stop])[done]
        numbers = start + np.flatnonzero(done)
        _check_values(f"{split}: row", given, x[done], numbers, dtype)
        # (n_done,), in single precision: a sum of squares may be too large for half
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(x[done].astype(np.float32), axis=1)
        _check_lengths(f"{split}: row", given, x[done], numbers, dtype)
        if not (abs(lengths - 1) < IMPORTED_UNIT_TOLERANCE).all():
            unit_rows = False
        # The digest is over what the file will hold, so the same features in another precision are
        # the same cache if they round to the same values.
        digest.update(x.tobytes() + status.tobytes())
    return unit_rows


def stored_batch(rows: ImportedSplit, start: int, dtype: str) -> np.ndarray:
    """A batch of features (n, dim) as the file holds it; unreadable rows are zero."""
    # Only here are rows of a mapped file read.
    x = _stored(rows.x[start : start + BATCH], dtype)
    readable = rows.status[start : start + BATCH] == DONE
    if readable.all():
        return x
    return np.where(readable[:, None], x, x.dtype.type(0))


def _stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """x in the file's type; what is too large for it becomes infinity: see `_check_values`."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(x, dtype)


def _check_values(
    what: str, given: np.ndarray, x: np.ndarray, numbers: np.ndarray, dtype: str
) -> None:
    """CacheError where rows x (n, ...), stored from `given`, are not finite.

    numbers (n,) are what messages call the rows. n may be 0: a batch without a readable row.
    """
    # (n,): a row may have further axes, as text has (n_template, n_class, dim)
    finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    wrong = np.flatnonzero(~finite)
    if not len(wrong):
        return
    row = numbers[wrong[0]]
    values = given[wrong[0]]
    # NaN in the source, or too large for the file's type: two causes, two ways out.
    if not np.isfinite(values).all():
        raise CacheError(
            f"{what} {row} holds NaN or infinity ({len(wrong)} such rows here);"
            " make those features again"
        )
    way_out = "give --dtype float32" if dtype == "float16" else "scale the features down"
    raise CacheError(
        f"{what} {row} holds {abs(values).max():.6g}, too large for {dtype}; {way_out}"
    )


def _check_lengths(
    what: str, given: np.ndarray, stored: np.ndarray, numbers: np.ndarray, dtype: str
) -> None:
    """CacheError where rows are too short or too long to compute with, or were lost by rounding.

    Args:
        given, stored: rows (n, dim) as the source has them and as the file will.
        numbers: (n,) what messages call the rows.
    """
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(stored.astype(np.float32), axis=1)
    wrong = np.flatnonzero(~((lengths >= SHORTEST) & (lengths <= LONGEST)))
    if not len(wrong):
        # Half precision loses digits below 6e-5; other rows need no second look.
        short = np.flatnonzero(lengths < 1e-2) if dtype == "float16" else wrong
        exact = given[short].astype(np.float64)
        moved = np.linalg.norm(stored[short] - exact, axis=1)
        wrong = short[moved > ROUNDING * np.linalg.norm(exact, axis=1)]
    if not len(wrong):
        return
    row = given[wrong[0]].astype(np.float64)
    length = float(np.linalg.norm(row))
    where = f"{what} {numbers[wrong[0]]}"
    if not row.any():
        raise CacheError(
            f"{where} is all zeros ({len(wrong)} such rows here); leave such rows out, or give"
            " unreadable images the status 2"
        )
    way_out = "scale the features so that rows have lengths near 1"
    if dtype == "float16" and SHORTEST <= length < 1:
        way_out = "give --dtype float32, or scale the features up"
    raise CacheError(
        f"{where} has length {length:.3g} ({len(wrong)} such rows here), with which {dtype} cannot"
        f" compute; {way_out}"
    )


def _check_text_lengths(given: np.ndarray, text: np.ndarray, dtype: str) -> None:
    """The same of text (n_template, n_class, dim); zeros say that a class lacks a sentence."""
    present = np.asarray(given.any(axis=2))  # (n_template, n_class)
    without = np.flatnonzero(~present.any(axis=0))
    if len(without):
        raise CacheError(
            f"text: class {without[0]} is all zeros in every template ({len(without)} such"
            " classes); make its text features again"
        )
    for number, chosen in enumerate(present):
        rows = np.flatnonzero(chosen)
        what = f"text: template {number}, class"
        _check_lengths(what, given[number][rows], text[number][rows], rows, dtype)


def write_import(
    path: Path,
    header: Header,
    splits: Mapping[str, ImportedSplit],
    text: TextSet,
    *,
    force: bool,
    log: Callable[[str], None],
) -> Path:
    """Write the cache `path`, or add `text` to the cache of the same features that is there.

    Raises:
        CacheError: the cache has other text under that name, or cannot be written.
    """
    layouts = {}
    for name, rows in splits.items():
        layouts[name] = SplitLayout(rows.paths, rows.y, {"features": rows.x.shape[1:]})
    with lock_cache(path, log):
        if path.exists() and not force:
            return _with_text(path, text)
        try:
            # A killed import starts anew: reading took longer than writing will.
            create(path, header, layouts, [text])
            with Writer(path) as writer:
                for name, start, stop in writer.todo():
                    batch = {"features": stored_batch(splits[name], start, header.dtype)}
                    writer.write(name, start, batch, splits[name].status[start:stop])
                return writer.finish()
        except BaseException:
            part_of(path).unlink(missing_ok=True)
            raise


def _with_text(path: Path, text: TextSet) -> Path:
    """Make sure that a cache of these features holds this prompt set too."""
    if text.name not in open_cache(path).prompt_sets:
        add_text(path, text)
    elif open_cache(path, text.name).text_id != text.text_id:
        raise CacheError(
            f"{path} holds these features with other text, class names or logit scale"
            f" as prompts '{text.name}';"
            " give --prompts NAME to add a set, or --force to write it anew"
        )
    return path
