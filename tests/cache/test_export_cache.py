"""A cache for other tools: every format is read back and compared."""

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_files import named, npz_file, tip_folder
from safetensors import safe_open
from written import write

from cliad.cache.file.check import verify
from cliad.cache.file.layout import CacheError, part_of
from cliad.cache.file.read import open_cache
from cliad.cache.formats.exporting import export_cache
from cliad.cache.formats.importing import import_features


def rich(tmp_path, **changes):
    """A cache with three splits, text of two templates, paths for test only and an unreadable row."""
    arrays = {
        "test_paths": np.array([f"ü/{i}.jpg" for i in range(9)]),
        "train_status": np.array([1, 1, 2, 1, 1, 1]),
    }
    return import_features(
        "npz",
        npz_file(tmp_path, **(arrays | {"templates": np.array(["a {}.", "the {}."])} | changes)),
        **named(tmp_path),
    )


def same(a, b):
    """Two caches hold the same features, labels, paths, text, names and scale."""
    assert (
        a.split_names == b.split_names
        and a.classnames == b.classnames
        and a.templates == b.templates
    )
    assert a.logit_scale == b.logit_scale and a.dtype == b.dtype and a.unit_rows == b.unit_rows
    assert (a.text is None and b.text is None) or np.array_equal(a.text, b.text)
    for name in a.split_names:
        one, two = a.split(name), b.split(name)
        assert (
            np.array_equal(one.x, two.x)
            and np.array_equal(one.y, two.y)
            and np.array_equal(one.status, two.status)
        )
        assert one.paths() == two.paths()


@pytest.mark.parametrize(
    "drop",
    [(), ("text",), ("val_x", "val_y"), ("train_x", "train_y", "train_status", "val_x", "val_y")],
)
@pytest.mark.parametrize(
    "format, kind",
    [("npz", "npz"), ("safetensors", "safetensors"), ("npy+parquet", "clip-retrieval")],
)
def test_export_and_import_give_the_same_cache(tmp_path, format, kind, drop):
    if format == "npy+parquet":
        pytest.importorskip("pyarrow")
    path = rich(tmp_path, drop=(*drop, "templates") if "text" in drop else drop)
    written = export_cache(path, format=format, out=tmp_path / "out")
    assert all(file.is_file() for file in written)
    again = import_features(kind, tmp_path / "out", **named(tmp_path, dataset="again"))
    same(open_cache(path), open_cache(again))
    assert verify(again) == [] and (
        format != "npz" or open_cache(again).fingerprint == open_cache(path).fingerprint
    )


def test_a_small_multiplier_and_prompts_survive_the_round_trip(tmp_path):
    file = npz_file(tmp_path, drop=("text", "logit_scale"))
    path = import_features(
        "npz", file, **named(tmp_path, logit_scale=5.0, logit_scale_is="multiplier")
    )
    export_cache(path, format="npz", out=tmp_path / "out.npz")
    assert (
        open_cache(
            import_features("npz", tmp_path / "out.npz", **named(tmp_path, dataset="again"))
        ).logit_scale
        == 5.0
    )


def test_a_tip_adapter_folder_goes_through_npz(tmp_path):
    path = import_features("tip-adapter", tip_folder(tmp_path), **named(tmp_path))
    assert export_cache(path, format="npz", out=tmp_path / "new folder" / "out.npz") == [
        tmp_path / "new folder" / "out.npz"
    ]
    same(
        open_cache(path),
        open_cache(
            import_features(
                "npz", tmp_path / "new folder" / "out.npz", **named(tmp_path, dataset="again")
            )
        ),
    )


def test_safetensors_holds_all_arrays_and_the_strings_as_metadata(tmp_path):
    path = write(tmp_path / "a.h5")
    cache = open_cache(path)
    export_cache(path, format="safetensors", out=tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        strings = file.metadata()
        np.testing.assert_array_equal(file.get_tensor("train_x"), cache.split("train").x)
        np.testing.assert_array_equal(
            file.get_tensor("train_views/aug"), cache.column("train", "views/aug")
        )
        np.testing.assert_array_equal(file.get_tensor("train_views/aug_rows"), [1, 4, 5, 9])
        np.testing.assert_array_equal(file.get_tensor("text"), cache.text.astype(np.float16))
        assert file.get_tensor("logit_scale") == 100
    assert (
        json.loads(strings["classnames"]) == ["cat", "dog", "eel"]
        and strings["fingerprint"] == cache.fingerprint
    )
    assert json.loads(strings["train_paths"]) == cache.split("train").paths()


def left_alone(tmp_path, message, path, **options):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CacheError, match=message) as error:
        export_cache(path, **options)
    assert sorted(tmp_path.rglob("*")) == before and "\n" not in str(error.value)


@pytest.mark.parametrize("format", ["npz", "safetensors", "npy+parquet"])
def test_what_exists_is_kept_unless_force_is_given(tmp_path, format):
    if format == "npy+parquet":
        pytest.importorskip("pyarrow")
    path, out = rich(tmp_path), tmp_path / "out"
    written = export_cache(path, format=format, out=out)
    before = [file.read_bytes() for file in written]
    written[0].write_bytes(b"mine")
    left_alone(
        tmp_path, "exists; give another --out PATH, or --force", path, format=format, out=out
    )
    assert written[0].read_bytes() == b"mine"
    export_cache(path, format=format, out=out, force=True)
    assert [len(file.read_bytes()) for file in written] == [len(content) for content in before]


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path):
    pytest.importorskip("pyarrow")
    path, out = rich(tmp_path), tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    left_alone(
        tmp_path,
        r"it holds other files \(thesis.tex\)",
        path,
        format="npy+parquet",
        out=out,
        force=True,
    )
    left_alone(
        tmp_path, "a folder, which npz cannot replace", path, format="npz", out=out, force=True
    )
    left_alone(
        tmp_path,
        "a file, which npy.parquet cannot replace",
        path,
        format="npy+parquet",
        out=out / "thesis.tex",
        force=True,
    )


def test_wrong_requests_are_one_line_and_leave_nothing(tmp_path, monkeypatch):
    path = rich(tmp_path)
    left_alone(
        tmp_path,
        "unknown format 'pickle' for a cache; known are npz, safetensors",
        path,
        format="pickle",
        out=tmp_path / "o",
    )
    left_alone(tmp_path, "is the cache itself", path, format="npz", out=path, force=True)
    left_alone(tmp_path, "cannot write", path, format="npz", out=tmp_path / "in.npz" / "out")
    left_alone(
        tmp_path, "there is no cache file", tmp_path / "none.h5", format="npz", out=tmp_path / "o"
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    left_alone(tmp_path, r"cliad\[interop\]", path, format="npy+parquet", out=tmp_path / "o")


def test_an_unfinished_cache_is_not_exported(tmp_path):
    write(tmp_path / "a.h5", batches=1)
    left_alone(
        tmp_path,
        r"rows still to do in \['train'\]",
        part_of(tmp_path / "a.h5"),
        format="npz",
        out=tmp_path / "o",
    )


def test_arrays_that_an_import_cannot_hold_are_counted(tmp_path):
    path = write(tmp_path / "a.h5")
    export_cache(path, format="safetensors", out=tmp_path / "out.safetensors")
    lines = []
    source = tmp_path / "out.safetensors"
    again = import_features("safetensors", source, **named(tmp_path, log=lines.append))
    assert np.array_equal(open_cache(again).split("train").y, open_cache(path).split("train").y)
    assert any("train_views/aug, train_views/aug_rows" in line for line in lines)


def test_an_exported_file_has_the_mode_of_any_other_file(tmp_path):
    path = rich(tmp_path)
    export_cache(path, format="safetensors", out=tmp_path / "out.safetensors")
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("out.safetensors", "plain")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_an_export_to_no_place_for_a_file_leaves_nothing(tmp_path, format):
    path = rich(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    pipe = tmp_path / "pipe"
    left_alone(tmp_path, "a pipe or a device", path, format=format, out=pipe, force=True)
    left_alone(tmp_path, "no name of a new file", path, format=format, out=Path(""))
    too_long = tmp_path / "new" / ("a" * 300)
    left_alone(tmp_path, "File name too long", path, format=format, out=too_long)


def test_an_export_that_does_not_fit_leaves_nothing(tmp_path):
    path = rich(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for format in ("npz", "safetensors"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(CacheError, match=r"cannot write .*File too large"):
                export_cache(path, format=format, out=tmp_path / "new" / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert sorted(tmp_path.rglob("*")) == before
