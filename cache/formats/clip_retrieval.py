"""The folder that `clip-retrieval inference` writes: one, or one below each of train/, val/, test/.

    img_emb/img_emb_<i>.npy (n, dim)   any number of shards, taken in the order of their numbers
    metadata/metadata_<i>.parquet      a row for each embedding: image_path, caption, and others
    text.npz                           optional, ours: class text, names and logit scale (see `npz`)

Labels are a column's values (`labels`), or with "folder" the folder that an image lies in. By
default the first of the columns `label`, `class`, `classname`, `caption` is taken, else the folder.
Integers are class numbers; strings become classes in sorted order. The splits are the folders, else
the column `split`, else all is train. The columns `split` and `status` are ours; a `status` in
words is that of img2dataset ("success") and is not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from cliad.cache.datasets.base import SPLIT_NAMES, SPLITS
from cliad.cache.documents import open_regular
from cliad.cache.file.layout import DONE, UNREADABLE, CacheError
from cliad.cache.file.read import FeatureCache, Split
from cliad.cache.formats.base import (
    MAX_CLASS,
    Classes,
    ImportedFeatures,
    ImportedSplit,
    check_text_width,
    check_widths,
    checked_split,
    reading,
    storable,
)
from cliad.cache.formats.labels import read_labels, sorted_names
from cliad.cache.formats.named_arrays import Log, class_arrays, classes_of, listing
from cliad.cache.formats.npy import read_header
from cliad.cache.formats.npz import load_npz, save_arrays

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

# In this order; caption comes last, as it is often free text.
LABEL_COLUMNS = ("label", "class", "classname", "caption")
NO_PYARROW = "{} parquet needs pyarrow, which is not installed; run: pip install 'cliad[interop]'"
CHUNK = 65536  # rows that are written at once
# Text that stands in many rows takes more memory than disk: so many times as much, or so many
# bytes a row, are nothing unusual, and of so many bytes in all nobody minds.
LARGEST_FACTOR = 50
LARGEST_ROW = 1000
LEAST_COLUMN = 2**24

# ------------------------------------------------------------------------------------ reading


@dataclass
class _Metadata:
    """What metadata says about each row, as lists (n,); labels are numbers or names."""

    labels: list[object] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    status: list[int] = field(default_factory=list)

    def extend(self, other: _Metadata) -> None:
        """Append the rows of the next shard."""
        self.labels += other.labels
        self.splits += other.splits
        self.paths += other.paths
        self.status += other.status


@dataclass(frozen=True)
class _Part:
    """One folder of shards: features x (n, dim) and its rows' metadata."""

    x: np.ndarray
    metadata: _Metadata


def read_clip_retrieval(
    folder: Path, labels: str | None = None, log: Log = lambda message: None
) -> ImportedFeatures:
    """Read such a folder.

    Args:
        labels: the column with the classes, or "folder"; None: the first that is known.
        log: gets a line about the column that the labels are from, and what is not read.

    Raises:
        CacheError: missing or unequal shards, labels that are not classes, no pyarrow.
    """
    parts = _read_parts(folder, labels, log)
    all_labels: list[object] = []
    for part in parts:
        all_labels += part.metadata.labels
    numbers = _class_numbers(folder, all_labels, labels)
    splits: dict[str, ImportedSplit] = {}
    start = 0
    for part in parts:
        stop = start + len(part.metadata.labels)
        splits |= _split_rows(folder, part, numbers.y[start:stop])
        start = stop
    n_class = max(1 + int(numbers.y.max()), len(numbers.names or ()))
    text_file = folder / "text.npz"
    # Also where it is a pipe, which is then refused.
    if os.path.lexists(text_file):
        classes = classes_of(text_file, load_npz(text_file), need_text=False, log=log)
        if classes.text is not None:
            check_text_width(str(text_file), classes.text, parts[0].x.shape[1])
    else:
        classes = Classes()
    return ImportedFeatures(splits, n_class, classes, numbers.names or ())


def _read_parts(folder: Path, labels: str | None, log: Log) -> list[_Part]:
    """The folders below train/, val/ and test/, or the folder itself where there are none."""
    parts = []
    for split in SPLITS:
        if (folder / split / "img_emb").is_dir():
            part = _read_part(folder / split, labels, log)
            part.metadata.splits = [split] * len(part.metadata.splits)
            parts.append(part)
    if not parts:
        return [_read_part(folder, labels, log)]
    if (folder / "img_emb").is_dir():
        log(f"{folder}/img_emb is not read; the folders {', '.join(SPLITS)} are")
    widths = {part.metadata.splits[0]: part.x.shape[1] for part in parts}
    check_widths(str(folder), widths, "all splits must come from one encoder")
    return parts


def _read_part(folder: Path, labels: str | None, log: Log) -> _Part:
    """All shards of a folder, joined."""
    shards = []
    widths = {}
    metadata = _Metadata()
    for path in _shard_files(folder):
        x = _mapped(path)
        name = path.name.replace("img_emb", "metadata").replace(".npy", ".parquet")
        rows = _read_metadata(folder / "metadata" / name, labels, x, log)
        shards.append(x)
        widths[path.name] = x.shape[1]
        metadata.extend(rows)
    check_widths(str(folder), widths, "all shards must come from one encoder")
    # A single shard stays mapped: its rows are read when they are written to the cache.
    x = shards[0] if len(shards) == 1 else np.concatenate(shards)
    return _Part(x, metadata)


def _shard_files(folder: Path) -> list[Path]:
    """The shards in the order of their numbers (by name, 10 would come before 2)."""
    by_number = []
    for path in (folder / "img_emb").glob("img_emb_*.npy"):
        match = re.fullmatch(r"img_emb_(\d+)\.npy", path.name)
        if match:
            by_number.append((int(match[1]), path))
    if not by_number:
        raise CacheError(
            f"{folder} has no img_emb/img_emb_<i>.npy;"
            " give the output folder of `clip-retrieval inference`"
        )
    return [path for _, path in sorted(by_number)]


def _mapped(path: Path) -> np.ndarray:
    """A shard (n, dim) of floats, of which no row is read yet."""
    hint = "write it again"
    with open_regular(path, CacheError, hint) as stream, reading(path, "an npy file", hint):
        header = read_header(stream, str(path), os.fstat(stream.fileno()).st_size)
        if len(header.shape) != 2 or header.dtype.kind != "f" or not header.n_byte:
            raise CacheError(
                f"{path}: features must be floats of shape (n, dim), neither of them 0;"
                f" found {header.dtype} {header.shape}"
            )
        order: Literal["F", "C"] = "F" if header.fortran_order else "C"
        return np.memmap(stream, header.dtype, "r", header.start, header.shape, order)


def _read_metadata(path: Path, labels: str | None, x: np.ndarray, log: Log) -> _Metadata:
    """The metadata of the shard x (n, dim), whose number of rows it must have."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise CacheError(NO_PYARROW.format("reading")) from None
    hint = "each img_emb_<i>.npy needs its metadata/metadata_<i>.parquet"
    with open_regular(path, CacheError, hint) as stream, reading(path, "a parquet file", hint):
        file = parquet.ParquetFile(stream)
        columns = file.schema_arrow.names
        n_row = file.metadata.num_rows
        if len(x) != n_row:
            raise CacheError(
                f"the shard of {path} is {x.shape} but its metadata has {n_row:,} rows;"
                " expected one row for each embedding"
            )
        label_column = labels or _first_label_column(columns)
        source = "image_path" if label_column == "folder" else label_column
        if source not in columns:
            raise CacheError(
                f"{path} has no column '{source}' to take labels from; it has {columns};"
                " choose one with --labels COLUMN"
            )
        # Other columns, such as urls and exif, can be large and are not read.
        wanted = {source, "image_path", "split", "status"} & set(columns)
        table = _columns_of(path, file, sorted(wanted))
    candidates = {"image_path", *LABEL_COLUMNS} & set(columns)
    # Where there is a choice; once is enough.
    if labels is None and len(candidates) > 1 and path.stem.endswith("_0"):
        log(f"{path}: labels are from {_source_words(label_column)} (--labels chooses another)")
    # A value may be null in parquet.
    paths = [value or "" for value in table.get("image_path", [""] * n_row)]
    odd = [value for value in paths if not isinstance(value, str)]
    if odd:
        raise CacheError(f"{path}: column 'image_path' holds {odd[0]!r}, which is no path")
    if label_column == "folder":
        label_values: list[object] = [_folder_of(image) for image in paths]
    else:
        label_values = table[label_column]
    return _Metadata(
        labels=label_values,
        splits=[_split_name(path, value) for value in table.get("split", ["train"] * n_row)],
        paths=storable(f"{path}: image_path", paths),
        status=_status(path, table.get("status", []), n_row, log),
    )


def _source_words(label_column: str) -> str:
    return "the folders of the images" if label_column == "folder" else f"column '{label_column}'"


def _columns_of(path: Path, file: ParquetFile, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a parquet file as lists, if they are of text or numbers and of credible sizes."""
    import pyarrow

    schema = file.schema_arrow
    strings = []
    for name in names:
        if schema.names.count(name) > 1:
            raise CacheError(f"{path} has two columns '{name}'; rename one of them")
        kind = schema.field(name).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
            strings.append(name)
        elif not (pyarrow.types.is_primitive(kind) or pyarrow.types.is_null(kind)):
            raise CacheError(
                f"{path}: column '{name}' is of type {str(kind)[:60]};"
                " expected integers or text, choose the classes with --labels COLUMN"
            )
    _check_column_sizes(path, file)
    # As dictionaries: a text that stands in a million rows is read once.
    with open(path, "rb") as stream:
        table = type(file)(stream, read_dictionary=strings).read(columns=list(names))
    columns = {}
    for name in names:
        columns[name] = _values(table.column(name))
    return columns


def _check_column_sizes(path: Path, file: ParquetFile) -> None:
    """CacheError where the columns would take far more memory than the file."""
    on_disk = path.stat().st_size
    allowed = max(LEAST_COLUMN, LARGEST_FACTOR * on_disk, LARGEST_ROW * file.metadata.num_rows)
    total = 0
    for group in range(file.metadata.num_row_groups):
        # Not of each column: PyArrow ends the whole process where a column's facts are damaged.
        total += file.metadata.row_group(group).total_byte_size
    if not 0 <= total <= allowed:
        raise CacheError(
            f"{path} has {on_disk:,} bytes, but its columns would take {total:,}; write it again"
        )


def _values(column: Any) -> list[Any]:
    """The values of a column as Python has them; equal texts are one object."""
    import pyarrow

    values: list[Any] = []
    for chunk in column.chunks:
        if pyarrow.types.is_dictionary(chunk.type):
            texts = chunk.dictionary.to_pylist()
            values += [None if i is None else texts[i] for i in chunk.indices.to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def _first_label_column(columns: Iterable[str]) -> str:
    for name in LABEL_COLUMNS:
        if name in columns:
            return name
    return "folder"


def _folder_of(path: str) -> str:
    """The name of the folder that an image lies in, whatever system wrote the path."""
    return PurePosixPath(path.replace("\\", "/")).parent.name


def _split_name(path: Path, value: object) -> str:
    split = SPLIT_NAMES.get(value) if isinstance(value, str) else None
    if split is None:
        raise CacheError(f"{path}: column 'split' holds {value!r}; known are {sorted(SPLIT_NAMES)}")
    return split


def _status(path: Path, values: Sequence[object], n_row: int, log: Log) -> list[int]:
    """The status of each row, as in the cache file; all are done where the column is not ours."""
    if all(isinstance(value, str) for value in values):
        if values:
            words = {str(value) for value in values}
            log(f"{path}: column 'status' holds words and is not read: {listing(words)}")
        return [DONE] * n_row
    # Exact types: isinstance would take True for 1.
    status = [value for value in values if type(value) is int]
    if len(status) < n_row or not set(status) <= {DONE, UNREADABLE}:
        raise CacheError(
            f"{path}: column 'status' must hold {DONE} (done) or {UNREADABLE} (unreadable)"
            " for each row; rename the column if it means something else"
        )
    return status


class _ClassNumbers(NamedTuple):
    """Class numbers y (n,), and the class names where labels are strings."""

    y: np.ndarray
    names: list[str] | None


def _class_numbers(folder: Path, values: Sequence[object], labels: str | None) -> _ClassNumbers:
    # Exact types: isinstance would take True for a class number.
    kinds = {type(value) for value in values}
    if kinds == {int}:
        # Here, as an integer may be too large for an array of them.
        wrong = [value for value in values if not 0 <= int(str(value)) < MAX_CLASS]
        if wrong:
            raise CacheError(
                f"{folder}: label {wrong[0]} found; labels must be class numbers from 0 on"
            )
        return _ClassNumbers(np.array(values), None)
    if kinds == {float}:
        return _ClassNumbers(
            read_labels(f"{folder}: labels", np.array(values), len(values)).y, None
        )
    if kinds != {str} or "" in values:
        raise CacheError(
            f"{folder}: labels are not all integers or all non-empty strings;"
            f" found {sorted(kind.__name__ for kind in kinds)}"
        )
    texts = [str(value) for value in values]
    names = sorted_names(set(texts))
    # Classes have several images each; captions are as many as images.
    if labels is None and 2 * len(names) > len(texts):
        raise CacheError(
            f"{folder}: {len(names)} different labels for {len(texts)} images,"
            " as free captions have;"
            " choose the classes with --labels COLUMN or --labels folder"
        )
    # A table, as list.index would search all names for each of the rows.
    number = {name: i for i, name in enumerate(names)}
    y = np.array([number[text] for text in texts])
    return _ClassNumbers(y, storable(f"{folder}: labels", names))


def _split_rows(folder: Path, part: _Part, y: np.ndarray) -> dict[str, ImportedSplit]:
    """The rows of a folder by split, in the order in which the splits appear."""
    metadata = part.metadata
    split_of_row = np.array(metadata.splits)
    all_done = all(status == DONE for status in metadata.status)
    splits = {}
    for split in dict.fromkeys(metadata.splits):
        rows = np.flatnonzero(split_of_row == split)
        splits[split] = checked_split(
            f"{folder}: {split}",
            _take(part.x, rows),
            y[rows],
            [metadata.paths[row] for row in rows],
            None if all_done else np.array(metadata.status, np.uint8)[rows],
        )
    return splits


def _take(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """x[rows]; for rows side by side a slice, so that nothing of a mapped file is read yet."""
    first = rows[0]
    last = rows[-1]
    if last - first == len(rows) - 1:
        return x[first : last + 1]
    return x[rows]


# ------------------------------------------------------------------------------------ writing


def write_clip_retrieval(cache: FeatureCache, new: Path) -> None:
    """Write a cache as such a folder: one shard, with the splits one after the other.

    Raises:
        CacheError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CacheError(NO_PYARROW.format("writing")) from None
    (new / "img_emb").mkdir(parents=True)
    (new / "metadata").mkdir()
    splits = {name: cache.split(name) for name in cache.split_names}
    _write_embeddings(new / "img_emb" / "img_emb_0.npy", cache, list(splits.values()))
    columns = _columns(splits, dict(enumerate(cache.classnames)))
    with open(new / "metadata" / "metadata_0.parquet", "wb") as stream:
        parquet.write_table(pyarrow.table(columns), stream)
    save_arrays(new / "text.npz", class_arrays(cache))


def _write_embeddings(file: Path, cache: FeatureCache, splits: Sequence[Split]) -> None:
    n_row = sum(len(split) for split in splits)
    header = {
        "descr": np.dtype(cache.dtype).str,
        "fortran_order": False,
        "shape": (n_row, cache.dim),
    }
    # Not through a memory map: on a full disk that is a crash instead of an OSError.
    with open(file, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for split in splits:
            for start in range(0, len(split), CHUNK):
                stream.write(split.x[start : start + CHUNK].tobytes())


def _columns(
    splits: Mapping[str, Split], name_of_label: Mapping[int, str]
) -> dict[str, list[str] | np.ndarray]:
    """The metadata, a value for each row."""
    paths: list[str] = []
    captions: list[str] = []
    split_names: list[str] = []
    for name, split in splits.items():
        paths += split.paths()
        captions += [name_of_label.get(label, "") for label in split.y.tolist()]
        split_names += [name] * len(split)
    return {
        "image_path": paths,
        "label": np.concatenate([split.y for split in splits.values()]).astype(np.int64),
        "caption": captions,
        "split": split_names,
        "status": np.concatenate([split.status for split in splits.values()]).astype(np.int64),
    }
