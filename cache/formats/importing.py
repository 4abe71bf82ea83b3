"""`cliad import`: features that exist already become a cache.

Every check is made before the first byte is written. The identity of what is written is its
content: equal features, labels and paths under an equal encoder name are the same cache, and
importing them again does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cliad.cache.classnames import read_classnames
from cliad.cache.documents import open_regular
from cliad.cache.equal_texts import note_equal_texts
from cliad.cache.file.layout import CacheError
from cliad.cache.folder import cache_path
from cliad.cache.formats.base import Classes, ImportedFeatures, storable
from cliad.cache.formats.clip_retrieval import read_clip_retrieval
from cliad.cache.formats.imported_file import make_header, make_text_set, write_import
from cliad.cache.formats.kinds import kind_of
from cliad.cache.formats.labelling import (
    label_classes,
    multiplier,
    note_untrained,
    with_split_file,
    with_text,
)
from cliad.cache.formats.named_arrays import Arrays, Log, classes_of, features_of
from cliad.cache.formats.npz import load_npz
from cliad.cache.formats.safetensors_file import load_safetensors
from cliad.cache.formats.tip_adapter import read_tip_adapter
from cliad.cache.formats.torch_file import load_pt
from cliad.cache.tensor_files import SAFETENSORS, TORCH
from cliad.errors import printable, unknown

LONGEST_NAME = 120  # letters; a file name has at most 255 bytes


def _read_npz(source: Path, log: Log) -> ImportedFeatures:
    return features_of(source, load_npz(source))


def _read_safetensors(source: Path, log: Log) -> ImportedFeatures:
    return features_of(source, load_safetensors(source, log))


def _read_pt(source: Path, log: Log) -> ImportedFeatures:
    return features_of(source, load_pt(source))


def _read_clip_retrieval(source: Path, log: Log) -> ImportedFeatures:
    return read_clip_retrieval(source, log=log)


READERS: dict[str, Callable[[Path, Log], ImportedFeatures]] = {
    "tip-adapter": read_tip_adapter,
    "npz": _read_npz,
    "safetensors": _read_safetensors,
    "pt": _read_pt,
    "clip-retrieval": _read_clip_retrieval,
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
    log: Log = lambda message: None,
) -> Path:
    """Write the cache of features that another tool made, and return its path.

    Args:
        kind: one of READERS; source: the folder or file of that kind.
        dataset, encoder: the names that the cache goes by.
        text: npz, safetensors or pt file with class text features; with `class_index` the cache
            holds these classes only, relabelled 0, 1, 2, ...
        classnames: a file with one name a line; by default the names of `split_file`, else the
            source's own, else "class 0", ..., for labels without gaps.
        split_file: split_zhou_X.json in whose order val and test stand (all splits for npz): paths
            and class names.
        labels: clip-retrieval only: the column with the classes, or "folder".
        logit_scale: the multiplier; by default the source's own, else 100.
        logit_scale_is: "multiplier" or "log", needed for a scale below 10.
        prompts: name of the prompt set; a new name adds one to a cache of the same features.
        force: write anew what is there; its other prompt sets are lost.
        log: gets a line for whatever is left out or chosen, and when another process holds the
            file.

    Raises:
        CacheError, ClassnamesError, SplitFileError: anything that does not fit; nothing was
            written.
    """
    _check_options(dataset, encoder, prompts, dtype)
    # What was left out is of interest where there is a cache without it: an error stands alone.
    notes: list[str] = []
    features = _read(kind, Path(source), labels, notes.append)
    if text is not None:
        features = with_text(features, _text_classes(Path(text), notes.append), str(text))
    names = None
    if split_file is not None:
        # Tip-Adapter's train split is the support, whose rows are views of images not recorded.
        without_paths = ("train",) if kind == "tip-adapter" else ()
        features, names = with_split_file(features, Path(split_file), without_paths)
    if classnames is not None:
        names = storable(str(classnames), read_classnames(Path(classnames)))
    labelled = label_classes(features, names, notes.append)
    note_untrained(labelled, notes.append)
    # All checks come before `write_import`, so that nothing is written where one fails.
    scale = multiplier(features.classes, logit_scale, logit_scale_is)
    header = make_header(kind, labelled, dataset=dataset, encoder=encoder, dtype=dtype)
    text_set = make_text_set(
        kind, labelled, name=prompts, encoder=encoder, logit_scale=scale, dtype=dtype
    )
    for note in notes:
        log(note)
    note_equal_texts(text_set.features, text_set.classnames, encoder, log)
    path = cache_path(Path(cache_folder), dataset, encoder, header.image_id)
    return write_import(path, header, labelled.splits, text_set, force=force, log=log)


def _check_options(dataset: str, encoder: str, prompts: str, dtype: str) -> None:
    _check_name("--dataset", dataset)
    _check_name("--encoder", encoder)
    _check_name("--prompts", prompts)
    # The name of a group of the file, where a slash would make a group inside a group.
    if "/" in prompts or prompts.startswith("."):
        raise CacheError(
            f"--prompts {prompts!r} cannot name a prompt set; give a name without / and leading ."
        )
    if dtype not in ("float16", "float32"):
        raise CacheError(f"dtype '{dtype}' is not one of float16, float32")


def _check_name(option: str, name: str) -> None:
    """CacheError where a name cannot stand in a file's name and attributes."""
    # What is neither letter nor digit becomes "-", so of ".." and "///" nothing would be left.
    if not any(letter.isalnum() for letter in name):
        raise CacheError(f"a cache needs names; found {option} {name[:40]!r}; give {option} NAME")
    if printable(name) != name:
        raise CacheError(
            f"{option} {name[:40]!r} holds control characters or broken text; give {option} NAME"
        )
    if len(name) > LONGEST_NAME:
        raise CacheError(
            f"{option} has {len(name):,} letters; give a name of at most {LONGEST_NAME}"
        )


def _read(kind: str, source: Path, labels: str | None, log: Log) -> ImportedFeatures:
    if kind not in READERS:
        raise CacheError(unknown("format", kind, READERS))
    if labels is None:
        return READERS[kind](source, log)
    if kind != "clip-retrieval":
        raise CacheError(f"--labels is for clip-retrieval; {kind} brings its labels along")
    return read_clip_retrieval(source, labels, log)


def _text_classes(file: Path, log: Log) -> Classes:
    """The classes of --text, a file of any of the formats with named arrays."""
    with open_regular(file, CacheError, "give --text a file with the array text") as stream:
        kind = kind_of(stream)
    arrays: Arrays
    if kind == SAFETENSORS:
        arrays = load_safetensors(file, log)
    elif kind == TORCH:
        arrays = load_pt(file)
    else:
        arrays = load_npz(file)
    return classes_of(file, arrays, need_text=True, log=log)
