"""Features from elsewhere become a cache, or one clear line and nothing on disk."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import DIM, NAMES, named, npz_file, retrieval_folder, tip_folder, unit

from cliad.cache.classnames import ClassnamesError
from cliad.cache.datasets.split_file import SplitFileError
from cliad.cache.file.check import problems
from cliad.cache.file.layout import CacheError, part_of, recipe_id
from cliad.cache.file.read import open_cache
from cliad.cache.formats.base import checked_split
from cliad.cache.formats.importing import import_features


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def files_of(tmp_path):
    return sorted(
        path.name
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def refused(kind, source, tmp_path, message, *, error=CacheError, **changes):
    """The import is refused in one line that matches `message`, and nothing is written."""
    with pytest.raises(error, match=message) as error:
        import_features(kind, source, **named(tmp_path, **changes))
    assert "\n" not in str(error.value) and files_of(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------- tip-adapter


def split_file(tmp_path, names=NAMES, **changes):
    labels = {"train": [0, 1, 2], "val": [0, 1, 2, 2], "test": [0, 0, 1, 1, 2, 2]} | changes
    content = {
        split: [[f"{split}/{i}.jpg", y, names[y]] for i, y in enumerate(ys)]
        for split, ys in labels.items()
    }
    (tmp_path / "split.json").write_text(json.dumps(content))
    return tmp_path / "split.json"


def text_file(tmp_path, n_class=3, name="text.npz", **arrays):
    np.savez(tmp_path / name, **({"text_features": unit(n_class, 7).astype(np.float16)} | arrays))
    return tmp_path / name


def test_the_largest_keys_are_train_and_the_split_file_names_val_and_test(tmp_path):
    folder = tip_folder(tmp_path)
    cache = open_cache(
        import_features("tip-adapter", folder, **named(tmp_path, split_file=split_file(tmp_path)))
    )
    train, val = cache.split("train"), cache.split("val")
    np.testing.assert_array_equal(
        train.x, torch.load(folder / "keys_2shots.pt", weights_only=True).T.numpy()
    )
    assert (
        train.y.tolist() == [0, 0, 1, 1, 2, 2]
        and train.paths([0]) == [""]
        and val.paths([3]) == ["val/3.jpg"]
    )
    assert cache.classnames == NAMES and cache.text is None and cache.logit_scale == 100
    assert cache.unit_rows and problems(cache) == [] and cache.path.parent.name == "toy"


def test_classes_without_names_are_numbered(tmp_path):
    cache = open_cache(
        import_features(
            "tip-adapter", tip_folder(tmp_path, val_f=None, val_l=None), **named(tmp_path)
        )
    )
    assert cache.classnames == ["class 0", "class 1", "class 2"] and cache.split_names == [
        "train",
        "test",
    ]


def test_text_for_some_classes_keeps_those_in_its_order(tmp_path):
    text = text_file(
        tmp_path, 2, class_index=np.array([2, 0]), prompts=np.array(["a cat", "an ant"])
    )
    cache = open_cache(
        import_features(
            "tip-adapter",
            tip_folder(tmp_path),
            **named(tmp_path, text=text, split_file=split_file(tmp_path)),
        )
    )
    assert (
        cache.classnames == ["cat", "ant"]
        and cache.text.shape == (1, 2, DIM)
        and cache.templates == ["imported 0"]
    )
    assert cache.split("test").y.tolist() == [1, 1, 0, 0] and cache.split("test").paths([2]) == [
        "test/4.jpg"
    ]
    assert cache.text_recipe["prompts"] == ["a cat", "an ant"] and problems(cache) == []


def nan_in(row):
    x = torch.tensor(unit(4)).half()
    x[row, 0] = float("nan")
    return x


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"keys_1shots": torch.ones(16, 3)}, r"widths differ: 8 in .*16 in keys_1shots\.pt"),
        ({"val_f": nan_in(2)}, "val: row 2 holds NaN"),
        ({"val_l": None}, "no file .*val_l"),
        ({"test_f": None}, "test_l.pt but no test_f.pt"),
        ({"val_l": torch.tensor([0.5, 1, 2, 2])}, "labels must be integers; row 0 has 0.5"),
        ({"val_l": torch.tensor([0, 1, 2, -1])}, "label -1"),
        ({"val_l": torch.tensor([0, 1, 2])}, "4 rows of features but 3 labels"),
        ({"values_2shots": torch.ones(6, 3)}, "row 0 is not one-hot"),
        ({"values_2shots": 0.5 * torch.eye(3).repeat_interleave(2, 0)}, "row 0 is not one-hot"),
        ({"values_2shots": torch.eye(3)}, "6 rows of features but 3 labels"),
        ({"keys_2shots": torch.ones(8, 6, dtype=torch.int64)}, "must be floats"),
        ({"keys_2shots": torch.ones(8)}, "expected a matrix"),
        ({"keys_1shots": None, "keys_2shots": None}, "no keys_<k>shots.pt"),
        (
            {"test_f": torch.full((6, 8), 70000.0)},
            "70000, too large for float16; give --dtype float32",
        ),
        ({"test_f": {"a": torch.ones(2)}}, "holds a dict, not a tensor"),
        ({"test_f": torch.ones(6, 8).to_sparse()}, "is a sparse_coo tensor; save its .to_dense"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_one_line(tmp_path, changes, message):
    refused("tip-adapter", tip_folder(tmp_path, **changes), tmp_path, message)


def test_bfloat16_and_legacy_files_are_read(tmp_path):
    folder = tip_folder(tmp_path, test_f=torch.tensor(unit(6)).bfloat16())
    torch.save(
        torch.tensor([0, 1, 2, 2]), folder / "val_l.pt", _use_new_zipfile_serialization=False
    )
    assert (
        len(open_cache(import_features("tip-adapter", folder, **named(tmp_path))).split("val")) == 4
    )


def test_code_in_a_tensor_file_is_refused_and_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for write in (
        lambda path: path.write_bytes(pickle.dumps(Code())),
        lambda path: torch.save(Code(), path),
    ):
        folder = tip_folder(tmp_path)
        write(folder / "val_f.pt")
        refused("tip-adapter", folder, tmp_path, "cannot be read as a file of tensors without code")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_tensor_file_is_one_line_at_any_length(tmp_path):
    folder = tip_folder(tmp_path)
    whole = (folder / "test_f.pt").read_bytes()
    for size in range(0, len(whole), len(whole) // 25):
        (folder / "test_f.pt").write_bytes(whole[:size])
        refused("tip-adapter", folder, tmp_path, "cannot be read")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"val": [0, 1, 2]}, "lists 3 val images, the features have 4"),
        (
            {"test": [0, 0, 1, 2, 1, 2]},
            r"test row 3 has label 2, the features say 1 \(2 such rows\)",
        ),
        ({"train": [0, 1, 4], "names": [*NAMES, "dog", "eel"]}, "without gaps"),
    ],
)
def test_a_split_file_of_other_images_is_one_line(tmp_path, changes, message):
    error = SplitFileError if "names" in changes else CacheError
    refused(
        "tip-adapter",
        tip_folder(tmp_path),
        tmp_path,
        message,
        split_file=split_file(tmp_path, **changes),
        error=error,
    )


def test_a_broken_split_file_is_one_line(tmp_path):
    folder, file = tip_folder(tmp_path), tmp_path / "split.json"
    for content in (
        "",
        "[]",
        "{",
        '{"train": 3}',
        '{"val": [["a.jpg", 0]]}',
        '{"val": [["a.jpg", "x", "ant"]]}',
    ):
        file.write_text(content)
        refused(
            "tip-adapter",
            folder,
            tmp_path,
            "is not a split file|is not valid JSON",
            split_file=file,
            error=SplitFileError,
        )
    file.write_text('{"val": [["a.jpg", 0, "ant"], ["b.jpg", 0, "bee"]]}')
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "label 0 has two names, 'ant' and 'bee'",
        split_file=file,
        error=SplitFileError,
    )


def test_class_names_must_cover_the_labels_and_stand_in_their_order(tmp_path):
    names, folder = tmp_path / "names.txt", tip_folder(tmp_path)
    names.write_text("ant\nbee\n")
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "2 class names but labels go up to 2",
        classnames=names,
    )
    names.write_text("ant\n\ncat\n")
    refused(
        "tip-adapter", folder, tmp_path, "line 2 is empty", classnames=names, error=ClassnamesError
    )
    names.write_text("ant\ncat\nbee\n")
    text = text_file(tmp_path, class_names=np.array(NAMES))
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "class 1 is 'bee'.*'cat'.*order differs",
        classnames=names,
        text=text,
    )
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "2 classes but there are 3 class names",
        classnames=names,
        text=text_file(tmp_path, 2),
    )
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "there is no file",
        classnames=tmp_path / "none.txt",
        error=ClassnamesError,
    )


def test_a_logit_scale_that_may_be_a_logarithm_is_asked_about(tmp_path):
    folder, text = tip_folder(tmp_path), text_file(tmp_path, logit_scale=np.float32(4.6052))
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        r"4.6052 looks like a logarithm \(exp of it is 100\)",
        text=text,
    )
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "expected one between 0 and 10000",
        logit_scale=100.0,
        logit_scale_is="log",
    )
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "expected one between 0 and 10000",
        logit_scale=float("nan"),
    )
    refused(
        "tip-adapter",
        folder,
        tmp_path,
        "not one of multiplier, log",
        logit_scale=5.0,
        logit_scale_is="ln",
    )
    path = import_features(
        "tip-adapter", folder, **named(tmp_path, logit_scale=4.6052, logit_scale_is="log")
    )
    assert open_cache(path).logit_scale == pytest.approx(100, abs=0.01)
    assert (
        open_cache(
            import_features(
                "tip-adapter",
                folder,
                **named(tmp_path, dataset="b", logit_scale=5, logit_scale_is="multiplier"),
            )
        ).logit_scale
        == 5
    )


def test_importing_again_does_nothing_and_other_text_needs_a_name(tmp_path):
    folder = tip_folder(tmp_path)
    path = import_features("tip-adapter", folder, **named(tmp_path))
    before = path.stat()
    assert (
        import_features("tip-adapter", folder, **named(tmp_path)) == path and path.stat() == before
    )
    text = text_file(tmp_path)
    with pytest.raises(CacheError, match="--prompts NAME to add a set"):
        import_features("tip-adapter", folder, **named(tmp_path, text=text))
    assert path.stat() == before
    assert (
        import_features("tip-adapter", folder, **named(tmp_path, text=text, prompts="mine")) == path
    )
    assert open_cache(path).text is None and open_cache(path, "mine").text.shape == (1, 3, DIM)
    import_features("tip-adapter", folder, **named(tmp_path, text=text, force=True))
    assert open_cache(path).prompt_sets == ["default"] and open_cache(path).text is not None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="--cache DIR"):
        import_features("tip-adapter", tip_folder(tmp_path), **named(tmp_path))


# ------------------------------------------------------------------------------------------------------------------ npz


def test_npz_arrays_become_a_cache(tmp_path):
    file = npz_file(
        tmp_path,
        templates=np.array(["a {}.", "the {}."]),
        test_paths=np.array([f"ü/{i}.jpg" for i in range(9)]),
    )
    cache = open_cache(import_features("npz", file, **named(tmp_path, dtype="float32")))
    np.testing.assert_array_equal(cache.split("train").x, 3 * unit(6, 6))
    np.testing.assert_array_equal(cache.text, np.stack([unit(3, 8), unit(3, 9)]))
    assert (
        not cache.unit_rows
        and cache.logit_scale == 50
        and cache.classnames == NAMES
        and cache.templates == ["a {}.", "the {}."]
    )
    assert cache.split("test").paths([8]) == ["ü/8.jpg"] and problems(cache) == []


def test_unreadable_rows_keep_their_place(tmp_path):
    x = unit(6, 6)
    x[4] = np.nan
    file = npz_file(tmp_path, train_x=x, train_status=np.array([1, 1, 1, 1, 2, 1]))
    cache = open_cache(import_features("npz", file, **named(tmp_path)))
    assert (
        cache.split("train").readable.tolist() == [True] * 4 + [False, True]
        and problems(cache) == []
    )


@pytest.mark.parametrize("n_unreadable", [4, 4096])
def test_a_batch_without_a_readable_row_is_imported(tmp_path, n_unreadable):
    """4 rows are the whole split; 4096 are the first of two batches."""
    status = np.full(n_unreadable, 2)
    if n_unreadable == 4096:
        status = np.append(status, [1, 1])
    x = unit(len(status))
    file = npz_file(
        tmp_path, val_x=x, val_y=np.arange(len(status)) % 3, val_status=status, drop=("text",)
    )
    cache = open_cache(import_features("npz", file, **named(tmp_path, dtype="float32")))
    val = cache.split("val")
    assert val.status.tolist() == status.tolist() and problems(cache) == []
    np.testing.assert_array_equal(val.x, np.where(status[:, None] == 1, x, 0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"drop": ("train_y",)}, "no train_y"),
        ({"drop": ("test_x",)}, "no test_x"),
        ({"drop": [f"{s}_{p}" for s in ("train", "val", "test") for p in "xy"]}, "has no features"),
        ({"trian_x": unit(2)}, "mean nothing here: trian_x"),
        ({"train_x": unit(6, dim=4)}, "widths differ"),
        ({"train_x": unit(6)[None]}, "found float32 "),
        ({"train_x": np.ones((6, DIM), int)}, "must be floats"),
        ({"train_x": np.ones((6, DIM), complex)}, "must be floats"),
        ({"train_x": np.ones((0, DIM)), "train_y": np.zeros(0, int)}, "neither of them 0"),
        ({"train_y": np.full(6, 0.5)}, "must be integers; row 0 has 0.5"),
        ({"train_y": np.zeros((6, 1), int)}, "must be integers"),
        ({"train_y": np.array([-1, 0, 0, 0, 0, 0])}, "label -1"),
        ({"train_y": np.array([10**12, 0, 0, 0, 0, 0])}, "label 1000000000000"),
        ({"train_y": np.array([3, 0, 0, 0, 0, 0])}, "3 class names but labels go up to 3"),
        ({"train_paths": np.array(["a"])}, "6 labels but 1 paths"),
        ({"train_status": np.zeros(6, int)}, "must hold 1"),
        (
            {"train_y": np.array([0, "b", None, 1, 1, 1], dtype=object)},
            "train_y holds Python objects",
        ),
        ({"classnames": np.array(["a", None, "c"], dtype=object)}, "np.array.names, dtype=str"),
        ({"classnames": np.arange(3)}, "must be strings"),
        ({"classnames": np.array(["a", "b\0c", "d"])}, "zero bytes"),
        ({"classnames": np.array(NAMES[:2])}, "classnames has 2 entries; expected 3"),
        ({"templates": np.array(["a"])}, "templates has 1 entries; expected 2"),
        ({"text": unit(3, dim=5), "drop": ()}, "5 columns, the image features 8"),
        ({"text": np.full((3, DIM), np.inf)}, "text: template 0 holds NaN or infinity"),
        ({"text": np.ones(DIM)}, "text must be floats"),
        ({"class_index": np.array([0, 0, 1])}, "different labels"),
        ({"class_index": np.array([0, 1, 10**11])}, "different labels"),
        ({"class_index": np.array([7, 8, 9])}, "no train row is of a class"),
        ({"logit_scale": np.array([1.0, 2.0])}, "must be one number"),
        ({"logit_scale": np.array("100")}, "must be one number"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path, changes, message):
    refused("npz", npz_file(tmp_path, **changes), tmp_path, message)


def test_files_that_are_no_npz_are_one_line(tmp_path):
    file = tmp_path / "x.npz"
    whole = npz_file(tmp_path).read_bytes()
    for content in (
        b"",
        b"PK",
        pickle.dumps({"train_x": 1}),
        b"\x93NUMPY",
        *(whole[: i * len(whole) // 9] for i in range(9)),
    ):
        file.write_bytes(content)
        refused("npz", file, tmp_path, "x.npz")
    np.savez(file)
    refused("npz", file, tmp_path, "has no features")
    with open(file, "wb") as stream:
        np.save(stream, unit(3))
    refused("npz", file, tmp_path, "a single array")
    refused("npz", tmp_path / "none.npz", tmp_path, "there is no file")


def test_names_that_are_missing_or_options_that_are_wrong_are_one_line(tmp_path):
    file = npz_file(tmp_path)
    refused("npz", file, tmp_path, "--encoder NAME", encoder=" ")
    refused("npz", file, tmp_path, "not one of float16, float32", dtype="int8")
    refused("npz", file, tmp_path, "--labels is for clip-retrieval", labels="folder")


@pytest.mark.parametrize("seconds", [0, 0.02])
def test_a_killed_import_run_again_gives_the_same_bytes(tmp_path, seconds):
    n = 60_000
    x = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float16)
    file = npz_file(
        tmp_path,
        drop=("text",),
        train_x=x,
        train_y=np.arange(n) % 3,
        val_x=x[:9],
        val_y=np.arange(9) % 3,
        test_x=x[:3],
        test_y=np.arange(3),
    )
    whole = import_features("npz", file, **named(tmp_path, cache_folder=tmp_path / "whole"))
    code = f"from cliad.cache.formats.importing import import_features; import_features('npz', {str(file)!r}, dataset='toy', encoder='ViT-B/32', cache_folder={str(tmp_path / 'cache')!r})"
    path = tmp_path / "cache" / "toy" / whole.name
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    while process.poll() is None and not part_of(path).exists():
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert import_features("npz", file, **named(tmp_path)).read_bytes() == whole.read_bytes()
    assert files_of(tmp_path) == [path.name]


# ------------------------------------------------------------------------------------------------------- clip-retrieval


PATHS = [
    f"/data/{name}/{i}.jpg" for i, name in enumerate(["bee", "ant", "bee", "ant", "cat", "cat"])
]


def test_the_folders_of_images_are_classes_and_shards_are_joined_in_order(tmp_path):
    folder = retrieval_folder(tmp_path / "in", {"image_path": PATHS}, shards=(1,) * 6)
    cache = open_cache(import_features("clip-retrieval", folder, **named(tmp_path)))
    assert (
        cache.classnames == NAMES
        and cache.split("train").y.tolist() == [1, 0, 1, 0, 2, 2]
        and cache.split_names == ["train"]
    )
    np.testing.assert_array_equal(cache.split("train").x, unit(6, 1).astype(np.float16))
    assert cache.split("train").paths() == PATHS and problems(cache) == []


def test_a_split_column_and_subfolders_make_splits(tmp_path):
    columns = {
        "label": [0, 1, 2, 0, 1, 2],
        "split": ["test", "train", "validation", "train", "train", "test"],
    }
    cache = open_cache(
        import_features(
            "clip-retrieval", retrieval_folder(tmp_path / "in", columns), **named(tmp_path)
        )
    )
    assert {name: cache.split(name).y.tolist() for name in cache.split_names} == {
        "train": [1, 0, 1],
        "val": [2],
        "test": [0, 2],
    }
    np.testing.assert_array_equal(cache.split("test").x, unit(6, 1).astype(np.float16)[[0, 5]])
    for split in ("train", "test"):
        retrieval_folder(
            tmp_path / "parts" / split, {"caption": ["bee", "ant", "bee", "ant", "ant", "bee"]}
        )
    cache = open_cache(
        import_features("clip-retrieval", tmp_path / "parts", **named(tmp_path, dataset="b"))
    )
    assert (
        cache.split_names == ["train", "test"]
        and cache.classnames == ["ant", "bee"]
        and cache.split("test").y[:2].tolist() == [1, 0]
    )


@pytest.mark.parametrize(
    "columns, options, message",
    [
        ({"caption": list("abcdef")}, {}, "free captions"),
        ({"caption": list("aabbcc")}, {"labels": "label"}, r"no column 'label'.*\['caption'\]"),
        ({"url": list("aabbcc")}, {}, "no column 'image_path'"),
        ({"label": [0, 1, None, 0, 1, 1]}, {}, "not all integers"),
        ({"label": [0, 1, -2, 0, 1, 1]}, {}, "label -2"),
        ({"label": [0, 1, 1, 0, 1, 1], "split": ["holdout"] * 6}, {}, "'holdout'; known"),
    ],
)
def test_metadata_that_gives_no_classes_is_one_line(tmp_path, columns, options, message):
    refused(
        "clip-retrieval",
        retrieval_folder(tmp_path / "in", columns),
        tmp_path,
        message,
        **options,
    )


def test_broken_clip_retrieval_folders_are_one_line(tmp_path):
    folder = retrieval_folder(tmp_path / "in", {"label": [0, 1, 1, 0, 1, 1]}, shards=(4, 2))
    for name, content in (
        ("metadata/metadata_1.parquet", b"PAR1"),
        ("img_emb/img_emb_1.npy", b"\x93NUMPY"),
    ):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        refused("clip-retrieval", folder, tmp_path, "cannot be read")
        (folder / name).unlink()
        if "metadata" in name:
            refused("clip-retrieval", folder, tmp_path, "there is no file")
        (folder / name).write_bytes(before)
    np.save(folder / "img_emb" / "img_emb_1.npy", unit(3))
    refused("clip-retrieval", folder, tmp_path, "its metadata has 2 rows")
    np.save(folder / "img_emb" / "img_emb_1.npy", unit(2, dim=5))
    refused("clip-retrieval", folder, tmp_path, "widths differ")
    refused("clip-retrieval", tmp_path, tmp_path, "no img_emb")


def test_without_pyarrow_the_way_to_get_it_is_said(tmp_path, monkeypatch):
    folder = retrieval_folder(tmp_path / "in", {"label": [0, 1, 1, 0, 1, 1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused("clip-retrieval", folder, tmp_path, r"cliad\[interop\]")


# --------------------------------------------------------- which rows, classes and ids, in numbers


def test_the_largest_keys_file_is_the_one_with_most_rows(tmp_path):
    more = {"keys_16shots": torch.tensor(unit(12, 16)).half().T}
    more["values_16shots"] = torch.eye(3).half().repeat_interleave(4, 0)
    folder = tip_folder(tmp_path, **more)  # by name keys_16shots stands before keys_2shots
    cache = open_cache(import_features("tip-adapter", folder, **named(tmp_path)))
    assert cache.split("train").y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(cache.split("train").x, unit(12, 16).astype(np.float16))


def test_labels_beyond_the_support_add_classes(tmp_path):
    folder = tip_folder(tmp_path, test_l=torch.tensor([0, 0, 1, 1, 2, 3]))
    cache = open_cache(import_features("tip-adapter", folder, **named(tmp_path)))
    assert cache.classnames == [f"class {i}" for i in range(4)]


def test_an_import_is_named_by_its_content(tmp_path):
    x = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    file = tmp_path / "in.npz"
    np.savez(file, train_x=x, train_y=np.array([0, 1]))
    cache = open_cache(import_features("npz", file, **named(tmp_path, dtype="float32")))
    content = hashlib.sha256(x.tobytes() + bytes([1, 1])).hexdigest()
    files = hashlib.sha256(b"train\t0\t\ntrain\t1\t\n").hexdigest()
    recipe = {"import": "npz", "encoder": "ViT-B/32", "content": content, "files": files}
    recipe["dtype"] = "float32"
    assert cache.recipe == recipe
    assert cache.image_id == recipe_id(recipe) == "5bc49cce"
    assert cache.path.name == f"vit-b-32-{cache.image_id}.h5"
    assert cache.attrs["encoder_id"] == recipe_id({"import": "vit-b-32"})
    assert cache.logit_scale == 100 and not cache.unit_rows and cache.batch == 4096


@pytest.mark.parametrize("length, unit_rows", [(1.0, True), (1.001, True), (1.003, False)])
def test_rows_count_as_unit_within_half_precision(tmp_path, length, unit_rows):
    file = tmp_path / "in.npz"
    np.savez(file, train_x=length * unit(4), train_y=np.arange(4) % 2)
    path = import_features("npz", file, **named(tmp_path, dtype="float32"))
    assert open_cache(path).unit_rows == unit_rows


def test_an_unreadable_row_has_no_part_in_what_the_rows_are(tmp_path):
    x = unit(4)
    x[2] = 9
    file = tmp_path / "in.npz"
    np.savez(file, train_x=x, train_y=np.arange(4) % 2, train_status=np.array([1, 1, 2, 1]))
    cache = open_cache(import_features("npz", file, **named(tmp_path)))
    train = cache.split("train")
    assert cache.unit_rows
    assert not train.x[2].any() and train.status.tolist() == [1, 1, 2, 1]


def test_the_names_that_other_tools_write_are_known(tmp_path):
    file = npz_file(tmp_path, drop=("text", "classnames"), text_features=unit(3, 8))
    with np.load(file) as arrays:
        given = dict(arrays)
    np.savez(file, **given, class_names=np.array(NAMES).astype("S3"))
    cache = open_cache(import_features("npz", file, **named(tmp_path, dtype="float32")))
    assert cache.classnames == NAMES and cache.templates == ["imported 0"]
    np.testing.assert_array_equal(cache.text, unit(3, 8)[None])


@pytest.mark.parametrize("label, fits", [(999_999, True), (1_000_000, False)])
def test_a_label_is_a_class_number_below_a_million(label, fits):
    labels = np.array([0, label])
    if fits:
        assert checked_split("here", unit(2), labels).y[1] == label
    else:
        with pytest.raises(CacheError, match=f"here: label {label} found"):
            checked_split("here", unit(2), labels)


def test_rows_without_paths_and_status_are_read_and_nameless():
    rows = checked_split("here", unit(2), np.array([0, 1]))
    assert rows.status.tolist() == [1, 1] and list(rows.paths) == ["", ""]


def test_a_file_may_say_that_its_small_scale_is_a_multiplier_or_a_logarithm(tmp_path):
    for said, expected in (("multiplier", 5.0), ("log", 148.41316)):
        scale = {"logit_scale": np.array(5.0), "logit_scale_is": np.array(said)}
        path = import_features("npz", npz_file(tmp_path, **scale), **named(tmp_path, dataset=said))
        assert open_cache(path).logit_scale == pytest.approx(expected)


def test_class_names_may_begin_with_a_byte_order_mark(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n", encoding="utf-8-sig")
    path = import_features("tip-adapter", tip_folder(tmp_path), **named(tmp_path, classnames=names))
    cache = open_cache(path)
    assert cache.classnames == NAMES


def test_shards_are_joined_by_number_not_by_name(tmp_path):
    columns = {"label": [row % 2 for row in range(12)]}
    folder = retrieval_folder(tmp_path / "in", columns, shards=(1,) * 12)
    cache = open_cache(import_features("clip-retrieval", folder, **named(tmp_path)))
    np.testing.assert_array_equal(cache.split("train").x, unit(12, 1).astype(np.float16))
    assert cache.split("train").y.tolist() == [0, 1] * 6


def test_the_first_known_column_gives_the_classes(tmp_path):
    columns = {
        "caption": list("xyxyxy"),
        "classname": list("pqpqpq"),
        "class": list("mnmnmn"),
        "label": list("abbaba"),
    }
    expected = [("label", ["a", "b"]), ("class", ["m", "n"]), ("classname", ["p", "q"])]
    for i, (column, names) in enumerate([*expected, ("caption", ["x", "y"])]):
        folder = retrieval_folder(tmp_path / f"in {i}", columns)
        cache = open_cache(
            import_features("clip-retrieval", folder, **named(tmp_path, dataset=f"toy {i}"))
        )
        assert cache.classnames == names
        del columns[column]


def test_free_captions_are_told_from_classes_by_their_number(tmp_path):
    folder = retrieval_folder(tmp_path / "in", {"caption": list("aabbcc")})
    path = import_features("clip-retrieval", folder, **named(tmp_path))
    assert open_cache(path).classnames == ["a", "b", "c"]
    refused(
        "clip-retrieval",
        retrieval_folder(tmp_path / "more", {"caption": list("aabbcd")}),
        tmp_path / "none",
        "4 different labels for 6 images, as free captions have",
    )


def test_all_names_of_a_split_are_known(tmp_path):
    columns = {"label": [0, 1, 0, 1, 0, 1]}
    columns["split"] = ["training", "val", "valid", "validation", "testing", "dev"]
    folder = retrieval_folder(tmp_path / "in", columns)
    cache = open_cache(import_features("clip-retrieval", folder, **named(tmp_path)))
    counts = {name: len(cache.split(name)) for name in cache.split_names}
    assert counts == {"train": 1, "val": 4, "test": 1}


def test_unreadable_rows_of_a_folder_stay_so(tmp_path):
    columns = {"label": [0, 1, 0, 1, 0, 1], "status": [1, 1, 2, 1, 1, 1]}
    folder = retrieval_folder(tmp_path / "in", columns)
    train = open_cache(import_features("clip-retrieval", folder, **named(tmp_path))).split("train")
    assert train.status.tolist() == [1, 1, 2, 1, 1, 1] and not train.x[2].any()


def test_a_status_in_words_is_not_ours(tmp_path):
    columns = {"label": [0, 1, 0, 1, 0, 1], "status": ["success"] * 6}
    folder = retrieval_folder(tmp_path / "in", columns)
    train = open_cache(import_features("clip-retrieval", folder, **named(tmp_path))).split("train")
    assert train.status.tolist() == [1] * 6 and train.x.any(axis=1).all()


@pytest.mark.parametrize("wrong", [0, 3, None, 1.0])
def test_another_status_is_refused(tmp_path, wrong):
    columns = {"label": [0, 1, 0, 1, 0, 1], "status": [wrong] * 6}
    folder = retrieval_folder(tmp_path / "in", columns)
    refused("clip-retrieval", folder, tmp_path / "none", r"'status' must hold 1 \(done\)")


def test_folders_may_be_written_as_windows_does(tmp_path):
    paths = [rf"C:\data\{name}\{i}.jpg" for i, name in enumerate(["bee", "ant", "bee", "ant"])]
    folder = retrieval_folder(tmp_path / "in", {"image_path": paths}, shards=(4,))
    cache = open_cache(import_features("clip-retrieval", folder, **named(tmp_path)))
    assert cache.classnames == ["ant", "bee"] and cache.split("train").y.tolist() == [1, 0, 1, 0]


# ----------------------------------------------------------------------------------------------------- features of old


@pytest.mark.skipif(
    "CLIAD_SHARED" not in os.environ, reason="CLIAD_SHARED names no folder of real features"
)
def test_real_features(tmp_path):
    shared = Path(os.environ["CLIAD_SHARED"])
    folders, text = (
        shared / "features" / "tip-adapter-caches",
        shared / "features" / "caltech101_text_vitb32.npz",
    )
    cache = open_cache(
        import_features("tip-adapter", folders / "caltech101", **named(tmp_path, text=text))
    )
    test, w = (
        cache.split("test"),
        cache.text[0] / np.linalg.norm(cache.text[0], axis=1, keepdims=True),
    )
    assert len(cache.classnames) == 65 and len(test) == 1866 and cache.unit_rows
    assert round(float(((test.rows(unit=True) @ w.T).argmax(1) == test.y).mean()), 3) == 0.951
    refused("tip-adapter", folders / "dtd", tmp_path / "dtd", "widths differ")
    pets = import_features(
        "tip-adapter",
        folders / "oxford_pets",
        **named(tmp_path, split_file=shared / "splits" / "split_zhou_OxfordPets.json"),
    )
    assert len(open_cache(pets).classnames) == 37 and open_cache(pets).split("test").paths([0]) == [
        "Abyssinian_201.jpg"
    ]
