"""`cliad import`: features that exist already become a cache.

Every check is made before the first byte is written. The identity of what is written is its
content: equal features, labels and paths under an equal encoder name are the same cache, and
importing them again does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cliad.cache.classnames import read_classnames
from cliad.cache.file.layout import CacheError
from cliad.cache.folder import cache_path
from cliad.cache.formats.base import ImportedFeatures, storable
from cliad.cache.formats.clip_retrieval import read_clip_retrieval
from cliad.cache.formats.imported_file import make_header, make_text_set, write_import
from cliad.cache.formats.labelling import label_classes, multiplier, with_split_file, with_text
from cliad.cache.formats.npz import read_classes, read_npz
from cliad.cache.formats.tip_adapter import read_tip_adapter

READERS: dict[str, Callable[[Path], ImportedFeatures]] = {
    "tip-adapter": read_tip_adapter,
    "npz": read_npz,
    "clip-retrieval": read_clip_retrieval,
}


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
        text: npz with class text features; with `class_index` the cache holds these classes only,
            relabelled 0, 1, 2, ...
        classnames: a file with one name a line; by default the names of `split_file`, else the
            source's own, else "class 0", ...
        split_file: split_zhou_X.json in whose order val and test stand (all splits for npz): paths
            and class names.
        labels: clip-retrieval only: the column with the classes, or "folder".
        logit_scale: the multiplier; by default the source's own, else 100.
        logit_scale_is: "multiplier" or "log", needed for a scale below 10.
        prompts: name of the prompt set; a new name adds one to a cache of the same features.
        force: write anew what is there; its other prompt sets are lost.
        log: gets a message when another process holds the file.

    Raises:
        CacheError, ClassnamesError, SplitFileError: anything that does not fit; nothing was
            written.
    """
    _check_options(dataset, encoder, dtype)
    features = _read(kind, Path(source), labels)
    if text is not None:
        features = with_text(features, read_classes(Path(text)))
    names = None
    if split_file is not None:
        # Tip-Adapter's train split is the support, whose rows are views of images not recorded.
        without_paths = ("train",) if kind == "tip-adapter" else ()
        features, names = with_split_file(features, Path(split_file), without_paths)
    if classnames is not None:
        names = storable(str(classnames), read_classnames(Path(classnames)))
    labelled = label_classes(features, names)
    # All checks come before `write_import`, so that nothing is written where one fails.
    scale = multiplier(features.classes, logit_scale, logit_scale_is)
    header = make_header(kind, labelled, dataset=dataset, encoder=encoder, dtype=dtype)
    text_set = make_text_set(
        kind, labelled, name=prompts, encoder=encoder, logit_scale=scale, dtype=dtype
    )
    path = cache_path(Path(cache_folder), dataset, encoder, header.image_id)
    return write_import(path, header, labelled.splits, text_set, force=force, log=log)


def _check_options(dataset: str, encoder: str, dtype: str) -> None:
    if not dataset.strip() or not encoder.strip():
        raise CacheError(
            f"a cache needs names; found dataset {dataset!r}, encoder {encoder!r};"
            " give --dataset NAME and --encoder NAME"
        )
    if dtype not in ("float16", "float32"):
        raise CacheError(f"dtype '{dtype}' is not one of float16, float32")


def _read(kind: str, source: Path, labels: str | None) -> ImportedFeatures:
    if kind not in READERS:
        raise CacheError(f"unknown format '{kind}'; known are {', '.join(READERS)}")
    if labels is None:
        return READERS[kind](source)
    if kind != "clip-retrieval":
        raise CacheError(f"--labels is for clip-retrieval; {kind} brings its labels along")
    return read_clip_retrieval(source, labels)
