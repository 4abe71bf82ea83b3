"""`cliad export` of a cache: its features for other tools, in formats that `cliad import` reads back or that have no pickle.

npz          the arrays of `cliad.cache.formats.npz`
safetensors  the same names, further arrays of a split as `<split>_<array>`; strings as JSON lists in the file's metadata
npy+parquet  the folder of `cliad.cache.formats.clip_retrieval`: splits one after the other, the column `split` tells them apart
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import DONE, TO_DO, CacheError
from cliad.cache.file.read import FeatureCache, open_cache
from cliad.cache.files import replacing

EXPORTED_NAMES = ("img_emb", "metadata", "text.npz")  # what a folder of npy+parquet holds
CHUNK = 65536  # rows


def export_cache(
    path: Path, *, format: str, out: Path, prompts: str | None = None, force: bool = False
) -> list[Path]:
    """Write the cache `path` as `format` (one of FORMATS) to `out`, a file or for npy+parquet a folder; return what was written.

    Raises:
        CacheError: unknown format, rows still to do, `out` is there already and not `force`, or cannot be written;
            nothing is left behind. A folder with other things than an export in it is never replaced.
    """
    if format not in FORMATS:
        raise CacheError(f"unknown format '{format}' for a cache; known are {', '.join(FORMATS)}")
    cache, out = open_cache(path, prompts), Path(out)
    if left := [name for name in cache.split_names if (cache.split(name).status == TO_DO).any()]:
        raise CacheError(
            f"{cache.path.name} has rows still to do in {left}; run the same extract again first"
        )
    if out.resolve() == cache.path.resolve():
        raise CacheError(f"{out} is the cache itself; give another --out PATH")
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise CacheError(f"{out} exists; give another --out PATH, or --force to replace it")
    if out.is_dir() is not (format == "npy+parquet") and out.exists():
        raise CacheError(
            f"{out} is {'a folder' if out.is_dir() else 'a file'}, which {format} cannot replace; give another --out PATH"
        )
    _check_replaceable(out)
    try:
        with replacing(out) as new:
            FORMATS[format](cache, new)
    except OSError as error:
        raise CacheError(
            f"cannot write {out}: {error.strerror or error}; give another --out PATH"
        ) from None
    return sorted(file for file in out.rglob("*") if file.is_file()) if out.is_dir() else [out]


def _check_replaceable(out: Path) -> None:
    """CacheError where `out` is a folder that holds anything else than an export."""
    if not out.is_dir():
        return
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in EXPORTED_NAMES)
    if others:
        raise CacheError(
            f"{out} is not replaced: it holds other files ({', '.join(others[:3])}); give another --out PATH"
        )


def _arrays_of_split(cache: FeatureCache, name: str) -> dict[str, np.ndarray]:
    """<split>_x and _y, and _status where an image was unreadable."""
    split = cache.split(name)
    arrays = {f"{name}_x": split.x, f"{name}_y": split.y}
    return arrays | ({} if (split.status == DONE).all() else {f"{name}_status": split.status})


def _paths(cache: FeatureCache, name: str) -> list[str]:
    """The paths of a split; none where an import knew none."""
    paths = cache.split(name).paths()
    return paths if any(paths) else []


def _class_arrays(cache: FeatureCache) -> dict[str, np.ndarray]:
    arrays = {
        "classnames": np.array(cache.classnames, dtype=str),
        "logit_scale": np.array(cache.logit_scale),
    }
    arrays["logit_scale_is"] = np.array("multiplier")
    if cache.text is not None:
        arrays |= {
            "text": cache.read(f"text/{cache.prompts}/features"),
            "templates": np.array(cache.templates, dtype=str),
        }
    if said := cache.text_recipe.get("prompts"):
        arrays["prompts"] = np.array(said, dtype=str)
    return arrays


def _npz(cache: FeatureCache, new: Path) -> None:
    arrays = _class_arrays(cache)
    for name in cache.split_names:
        arrays |= _arrays_of_split(cache, name)
        if paths := _paths(cache, name):
            arrays[f"{name}_paths"] = np.array(paths, dtype=str)
    with open(new, "wb") as stream:  # a name would get .npz appended
        np.savez(stream, **arrays)


def _safetensors(cache: FeatureCache, new: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays, strings = (
        {},
        {"dataset": cache.dataset, "encoder": cache.encoder, "fingerprint": cache.fingerprint},
    )
    for name, values in _class_arrays(cache).items():
        if values.dtype.kind == "U":
            strings[name] = json.dumps(values.tolist(), ensure_ascii=False)
        else:
            arrays[name] = values
    for name in cache.split_names:
        arrays |= _arrays_of_split(cache, name)
        for extra in cache.row_arrays(name):
            arrays |= {f"{name}_{extra}": cache.column(name, extra)} if extra != "features" else {}
            if (rows := cache.column(name, extra + "_rows")) is not None:
                arrays[f"{name}_{extra}_rows"] = rows
        if paths := _paths(cache, name):
            strings[f"{name}_paths"] = json.dumps(paths, ensure_ascii=False)
    try:
        save_file(
            {name: np.ascontiguousarray(values) for name, values in arrays.items()},
            new,
            metadata=strings,
        )
    except SafetensorError as error:
        raise CacheError(
            f"{cache.path.name} cannot be a safetensors file ({error}); use --format npz"
        ) from None


def _npy_parquet(cache: FeatureCache, new: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CacheError(
            "writing parquet needs pyarrow, which is not installed; run: pip install 'cliad[interop]'"
        ) from None
    (new / "img_emb").mkdir(parents=True)
    (new / "metadata").mkdir()
    splits = {name: cache.split(name) for name in cache.split_names}
    with open(
        new / "img_emb" / "img_emb_0.npy", "wb"
    ) as stream:  # no memory map: on a full disk that is a crash
        shape = (sum(map(len, splits.values())), cache.dim)
        np.lib.format.write_array_header_1_0(
            stream, {"descr": np.dtype(cache.dtype).str, "fortran_order": False, "shape": shape}
        )
        for split in splits.values():
            for start in range(0, len(split), CHUNK):
                stream.write(split.x[start : start + CHUNK].tobytes())
    label = np.concatenate([split.y for split in splits.values()])
    columns = {
        "image_path": [path for split in splits.values() for path in split.paths()],
        "label": label.astype(np.int64),
    }
    names = dict(enumerate(cache.classnames))
    columns["caption"] = [names.get(y, "") for y in label.tolist()]
    columns["split"] = [name for name, split in splits.items() for _ in range(len(split))]
    columns["status"] = np.concatenate([split.status for split in splits.values()]).astype(np.int64)
    with open(new / "metadata" / "metadata_0.parquet", "wb") as stream:
        parquet.write_table(pyarrow.table(columns), stream)
    with open(new / "text.npz", "wb") as stream:
        np.savez(stream, **_class_arrays(cache))


FORMATS = {"npz": _npz, "safetensors": _safetensors, "npy+parquet": _npy_parquet}
