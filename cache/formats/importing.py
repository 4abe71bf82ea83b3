"""`cliad import`: features that exist already become a cache.

Every check is made before the first byte is written. The identity of what is written is its content: equal features, labels
and paths under an equal encoder name are the same cache, and importing them again does nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cliad import __version__
from cliad.cache.file.layout import (
    DONE,
    CacheError,
    Header,
    SplitLayout,
    TextSet,
    file_list_hash,
    recipe_id,
)
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import Writer, add_text, create, lock_cache
from cliad.cache.folder import cache_path, slug
from cliad.cache.formats.base import (
    ImportedFeatures,
    Rows,
    read_classnames,
    read_split_file,
    split_file_names,
)
from cliad.cache.formats.clip_retrieval import read_clip_retrieval
from cliad.cache.formats.npz import read_classes, read_npz
from cliad.cache.formats.tip_adapter import read_tip_adapter

READERS = {"tip-adapter": read_tip_adapter, "npz": read_npz, "clip-retrieval": read_clip_retrieval}
BATCH = 4096
UNIT_TOLERANCE = 2e-3  # half precision moves the length of a unit row by up to 5e-4


def import_features(
    kind: str,
    source: Path,
    *,
    dataset: str,
    encoder: str,
    cache_folder: Path,
    text: Path | None = None,
    classnames: Path | None = None,
    split_file: Path | None = None,
    labels: str | None = None,
    logit_scale: float | None = None,
    logit_scale_is: str | None = None,
    dtype: str = "float16",
    prompts: str = "default",
    force: bool = False,
    log: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write the cache of features that another tool made, and return its path.

    Args:
        kind: one of READERS; source: the folder or file of that kind.
        dataset, encoder: the names that the cache goes by.
        text: npz with class text features; with `class_index` the cache holds these classes only, relabelled 0, 1, 2, ...
        classnames: a file with one name a line; else `split_file`'s names, else the source's own, else "class 0", ...
        split_file: split_zhou_X.json in whose order val and test stand (all splits for npz): paths and class names.
        labels: clip-retrieval only: the column with the classes, or "folder".
        logit_scale: the multiplier (default: the source's own, else 100); below 10, `logit_scale_is` says "multiplier" or "log".
        prompts: name of the prompt set; a new name adds one to a cache of the same features.
        force: write anew what is there, its other prompt sets are lost.
        log: gets a message when another process holds the file.
    Raises:
        CacheError: anything that does not fit; nothing was written.
    """
    if not dataset.strip() or not encoder.strip():
        raise CacheError(
            f"a cache needs names; found dataset {dataset!r}, encoder {encoder!r}; give --dataset NAME and --encoder NAME"
        )
    if dtype not in ("float16", "float32"):
        raise CacheError(f"dtype '{dtype}' is not one of float16, float32")
    foreign = _read(kind, Path(source), labels)
    foreign = (
        foreign
        if text is None
        else replace(foreign, classes=_over(foreign, read_classes(Path(text))))
    )
    names = None if classnames is None else read_classnames(Path(classnames))
    if split_file is not None:
        foreign, of_split_file = _with_split_file(foreign, Path(split_file), kind)
        names = of_split_file if names is None else names
    foreign = _chosen_classes(_named(foreign, names))
    scale = _multiplier(foreign, logit_scale, logit_scale_is)
    header = _header(kind, foreign, dataset, encoder, dtype)
    text_set = _text_set(kind, foreign, encoder, scale, dtype, prompts)
    return _write(
        cache_path(Path(cache_folder), dataset, encoder, header.image_id),
        header,
        foreign.splits,
        text_set,
        force,
        log,
    )


import_tip_adapter = partial(import_features, "tip-adapter")
import_npz = partial(import_features, "npz")
import_clip_retrieval = partial(import_features, "clip-retrieval")


def _read(kind: str, source: Path, labels: str | None) -> ImportedFeatures:
    if kind not in READERS:
        raise CacheError(f"unknown format '{kind}'; known are {', '.join(READERS)}")
    if labels is not None and kind != "clip-retrieval":
        raise CacheError(f"--labels is for clip-retrieval; {kind} brings its labels along")
    return READERS[kind](source, **({} if labels is None else {"labels": labels}))


# ------------------------------------------------------------------------------------------------- classes and names


def _over(foreign: ImportedFeatures, given):
    """The classes of --text, and the source's own names and scale where the file is silent and means the same classes."""
    own = foreign.classes
    same = given.index is None and own.index is None
    names = given.classnames or (own.classnames if same else None)
    return replace(
        given,
        classnames=names,
        logit_scale=own.logit_scale if given.logit_scale is None else given.logit_scale,
    )


def _with_split_file(
    foreign: ImportedFeatures, file: Path, kind: str
) -> tuple[ImportedFeatures, list[str]]:
    """Paths from a split file whose counts and labels agree with the features, and its class names in label order."""
    content = read_split_file(file)
    names, splits = split_file_names(file, content), dict(foreign.splits)
    for split in splits.keys() - ({"train"} if kind == "tip-adapter" else set()):
        listed, y = content.get(split, []), splits[split].y
        if len(listed) != len(y):
            raise CacheError(
                f"{file} lists {len(listed)} {split} images, the features have {len(y)} rows; is it the split they were made with?"
            )
        if len(wrong := np.flatnonzero(y != np.array([label for _, label, _ in listed]))):
            row = wrong[0]
            raise CacheError(
                f"{file}: {split} row {row} has label {listed[row][1]}, the features say {y[row]} ({len(wrong)} such rows)"
            )
        splits[split] = replace(splits[split], paths=[path for path, _, _ in listed])
    return replace(foreign, splits=splits), names


def _named(foreign: ImportedFeatures, names: Sequence[str] | None) -> ImportedFeatures:
    """Give each class of the features its name: `names` in label order, else the source's own, else "class i"."""
    classes, index = foreign.classes, foreign.classes.index
    own = classes.classnames
    if own is not None and names is not None:
        _check_order(own, names, index)
    if names is not None and index is not None:
        if (highest := int(index.max())) >= len(names):
            raise CacheError(
                f"class_index goes up to {highest} but there are {len(names)} class names; give a name for every label"
            )
        names = [names[i] for i in index]
    if names is None:
        numbers = (
            range(foreign.n_class)
            if classes.text is None
            else range(classes.text.shape[1])
            if index is None
            else index
        )
        names = own or [f"class {i}" for i in numbers]
    if index is None and len(names) < foreign.n_class:
        raise CacheError(
            f"{len(names)} class names but labels go up to {foreign.n_class - 1}; give a name for each class with --classnames FILE"
        )
    return replace(foreign, classes=replace(classes, classnames=list(names)))


def _check_order(own: Sequence[str], names: Sequence[str], index: np.ndarray | None) -> None:
    """Other spellings are fine; a class that stands at another place means that the two lists number the classes differently."""
    for i, name in zip(range(len(own)) if index is None else index, own, strict=True):
        if i < len(names) and name != names[i] and name in names:
            raise CacheError(
                f"class {i} is '{name}' in the features' own list but '{names[i]}' in the names given; their order differs"
            )


def _chosen_classes(foreign: ImportedFeatures) -> ImportedFeatures:
    """Where text covers some classes only (`class_index`), keep their rows and number them in its order."""
    classes = foreign.classes
    if classes.text is not None and classes.text.shape[1] != len(classes.classnames):
        what = f"text has {classes.text.shape[1]} classes but there are {len(classes.classnames)} class names"
        raise CacheError(
            f"{what}; text for some classes only needs an array class_index with their labels"
        )
    if classes.index is None:
        return foreign
    number = np.full(max(foreign.n_class, int(classes.index.max()) + 1), -1)
    number[classes.index] = np.arange(len(classes.index))
    return replace(
        foreign,
        splits={
            split: _kept(split, rows, number[rows.y]) for split, rows in foreign.splits.items()
        },
    )


def _kept(split: str, rows: Rows, y: np.ndarray) -> Rows:
    """The rows whose new label `y` (n,) is not -1."""
    if not len(keep := np.flatnonzero(y >= 0)):
        raise CacheError(
            f"no {split} row is of a class in class_index; it must hold the labels that the features use"
        )
    return Rows(rows.x[keep], y[keep], [rows.paths[i] for i in keep], rows.status[keep])


def _multiplier(foreign: ImportedFeatures, scale: float | None, scale_is: str | None) -> float:
    """The logit scale as a multiplier; CacheError where it cannot be one, or may be a logarithm and nobody says."""
    if scale is None:
        scale = 100.0 if foreign.classes.logit_scale is None else foreign.classes.logit_scale
        scale_is = scale_is or foreign.classes.logit_scale_is
    if scale_is not in (None, "multiplier", "log"):
        raise CacheError(f"logit_scale_is '{scale_is}' is not one of multiplier, log")
    if scale_is is None and 0 < scale < 10:
        raise CacheError(
            f"logit scale {scale:g} looks like a logarithm (exp of it is {math.exp(scale):.4g}); give --logit-scale-is log or multiplier"
        )
    value = math.exp(min(scale, 99)) if scale_is == "log" else scale
    if not 0 < value < 1e4:
        raise CacheError(
            f"logit scale {scale:g} gives a multiplier of {value:.4g}; between 0 and 10000 is asked, CLIP's is 100"
        )
    return value


# ------------------------------------------------------------------------------------------------------ what is written


def _header(kind: str, foreign: ImportedFeatures, dataset: str, encoder: str, dtype: str) -> Header:
    digest, unit = hashlib.sha256(), True
    for split in sorted(foreign.splits):
        unit &= _take_in(split, foreign.splits[split], dtype, digest)
    files = file_list_hash({split: (rows.paths, rows.y) for split, rows in foreign.splits.items()})
    recipe = {
        "import": kind,
        "encoder": encoder,
        "content": digest.hexdigest(),
        "files": files,
        "dtype": dtype,
    }
    versions = {"cliad": __version__, "numpy": np.__version__}
    return Header(dataset, encoder, _encoder_id(encoder), recipe, BATCH, dtype, unit, versions)


def _take_in(split: str, rows: Rows, dtype: str, digest) -> bool:
    """Check a split's features and add them to the digest as they will be stored; True where all rows have length one."""
    unit = True
    for start in range(0, len(rows.y), BATCH):
        x = _batch(rows, start, dtype)
        done = rows.status[start : start + BATCH] == DONE
        _check_values(
            f"{split}: row",
            np.asarray(rows.x[start : start + BATCH])[done],
            x[done],
            start + np.flatnonzero(done),
            dtype,
        )
        unit &= bool(
            np.all(abs(np.linalg.norm(x[done].astype(np.float32), axis=1) - 1) < UNIT_TOLERANCE)
        )
        digest.update(x.tobytes() + rows.status[start : start + BATCH].tobytes())
    return unit


def _batch(rows: Rows, start: int, dtype: str) -> np.ndarray:
    """A batch of features as the file holds it; unreadable rows are zero."""
    x = _stored(rows.x[start : start + BATCH], dtype)
    readable = rows.status[start : start + BATCH] == DONE
    return x if readable.all() else np.where(readable[:, None], x, x.dtype.type(0))


def _stored(x: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(x, dtype)


def _check_values(
    what: str, given: np.ndarray, x: np.ndarray, numbers: np.ndarray, dtype: str
) -> None:
    """CacheError where rows x (n, ...), stored from `given`, are not finite; numbers (n,) are what the rows are called."""
    wrong = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if not len(wrong):
        return
    row, values = numbers[wrong[0]], given[wrong[0]]
    if not np.isfinite(values).all():
        raise CacheError(
            f"{what} {row} holds NaN or infinity ({len(wrong)} such rows here); make those features again"
        )
    way_out = "give --dtype float32" if dtype == "float16" else "scale the features down"
    raise CacheError(
        f"{what} {row} holds {abs(values).max():.6g}, too large for {dtype}; {way_out}"
    )


def _text_set(
    kind: str, foreign: ImportedFeatures, encoder: str, scale: float, dtype: str, name: str
) -> TextSet:
    classes, dim = foreign.classes, next(iter(foreign.splits.values())).x.shape[1]
    recipe = {
        "import": kind,
        "encoder": encoder,
        "classnames": classes.classnames,
        "templates": [],
        "logit_scale": scale,
    }
    if (text := classes.text) is not None:
        if text.shape[2] != dim:
            raise CacheError(
                f"text features have {text.shape[2]} columns, the image features {dim}; they come from two encoders"
            )
        x = _stored(text, dtype)
        _check_values("text: template", text, x, np.arange(len(x)), dtype)
        recipe["templates"] = list(classes.templates or [f"imported {i}" for i in range(len(x))])
        recipe |= {"content": hashlib.sha256(x.tobytes()).hexdigest()} | (
            {"prompts": classes.prompts} if classes.prompts else {}
        )
        text = x
    return TextSet(
        name, text, recipe["templates"], classes.classnames, recipe, _encoder_id(encoder), scale
    )


def _encoder_id(encoder: str) -> str:
    """An import knows its encoder by name only; `ViT-B/32` and `vit-b-32` are one."""
    return recipe_id({"import": slug(encoder)})


def _write(
    path: Path, header: Header, splits: dict[str, Rows], text: TextSet, force: bool, log
) -> Path:
    layouts = {
        split: SplitLayout(rows.paths, rows.y, {"features": rows.x.shape[1:]})
        for split, rows in splits.items()
    }
    with lock_cache(path, log):
        if path.exists() and not force:
            return _with_text(path, text)
        create(
            path, header, layouts, [text]
        )  # a killed import starts anew: reading took longer than writing will
        with Writer(path) as writer:
            for split, start, stop in writer.todo():
                rows = splits[split]
                writer.write(
                    split,
                    start,
                    {"features": _batch(rows, start, header.dtype)},
                    rows.status[start:stop],
                )
            return writer.finish()


def _with_text(path: Path, text: TextSet) -> Path:
    """A cache of these features is there: make sure that it holds this prompt set too."""
    if text.name not in open_cache(path).prompt_sets:
        add_text(path, text)
    elif open_cache(path, text.name).text_id != text.text_id:
        what = f"{path} holds these features with other text, class names or logit scale as prompts '{text.name}'"
        raise CacheError(f"{what}; give --prompts NAME to add a set, or --force to write it anew")
    return path
