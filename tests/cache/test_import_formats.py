"""Arrays of any format go through one door: what is clear is taken, all else is one line."""

import io
import json
import os
import random
import resource
import zipfile

import numpy as np
import pytest
import torch
from foreign_files import DIM, NAMES, named, retrieval_folder, tip_folder, unit

from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import open_cache
from cliad.cache.formats.importing import import_features
from cliad.errors import CliadError


def plain(**changes):
    """Arrays of six images of three classes; a change of None leaves one out."""
    arrays = {"train_x": unit(6, 6), "train_y": np.arange(6) % 3} | changes
    return {name: values for name, values in arrays.items() if values is not None}


def save_npz(folder, arrays):
    np.savez(folder / "in.npz", **arrays)
    return folder / "in.npz"


def save_pt(folder, arrays):
    content = {}
    for name, values in arrays.items():
        is_text = np.asarray(values).dtype.kind in "US"
        content[name] = list(map(str, values)) if is_text else torch.tensor(np.asarray(values))
    torch.save(content, folder / "in.pt")
    return folder / "in.pt"


def save_safetensors(folder, arrays):
    from safetensors.numpy import save_file

    numbers = {}
    strings = {}
    for name, values in arrays.items():
        values = np.asarray(values)
        if values.dtype.kind == "U":
            strings[name] = json.dumps(values.tolist())
        else:
            numbers[name] = np.ascontiguousarray(values)
    save_file(numbers, folder / "in.safetensors", metadata=strings)
    return folder / "in.safetensors"


SAVERS = {"npz": save_npz, "pt": save_pt, "safetensors": save_safetensors}
every_format = pytest.mark.parametrize("kind", SAVERS)


def imported(kind, folder, arrays, **changes):
    """The cache of arrays in a file of this format, and what the import said."""
    lines = []
    source = SAVERS[kind](folder, arrays)
    path = import_features(kind, source, **named(folder, log=lines.append, **changes))
    return open_cache(path), lines


def refused(kind, source, tmp_path, message, **changes):
    with pytest.raises(CliadError, match=message) as error:
        import_features(kind, source, **named(tmp_path, **changes))
    assert "\n" not in str(error.value) and not (tmp_path / "cache").exists()


@every_format
@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.0, 1, 2, 0, 1, 2]),
        np.eye(3, dtype=np.float32)[np.arange(6) % 3],
        np.eye(3, dtype=np.int64)[np.arange(6) % 3],
        np.array(["ant", "bee", "cat"] * 2),
    ],
)
def test_labels_of_any_clear_kind_are_the_same_classes(tmp_path, kind, labels):
    cache, lines = imported(kind, tmp_path, plain(train_y=labels, classnames=np.array(NAMES)))
    assert cache.split("train").y.tolist() == [0, 1, 2, 0, 1, 2] and cache.classnames == NAMES
    assert lines == []


@every_format
def test_names_as_labels_follow_the_class_names_else_are_sorted(tmp_path, kind):
    labels = np.array(["cat", "ant", "bee", "cat", "ant", "bee"])
    names = np.array(["bee", "cat", "ant"])
    cache, _ = imported(kind, tmp_path, plain(train_y=labels, classnames=names))
    assert cache.classnames == ["bee", "cat", "ant"]
    assert cache.split("train").y.tolist() == [1, 2, 0, 1, 2, 0]
    cache, _ = imported(kind, tmp_path, plain(train_y=labels), dataset="sorted")
    assert cache.classnames == NAMES and cache.split("train").y.tolist() == [2, 0, 1, 2, 0, 1]


def test_labels_that_are_no_class_name_are_refused_by_name(tmp_path):
    labels = np.array(["cat", "ant", "bee", "cat", "ant", "bee"])
    source = save_npz(tmp_path, plain(train_y=labels, classnames=np.array(["cat", "ant", "dog"])))
    refused("npz", source, tmp_path, "1 of 3 labels are none of the 3 class names: bee")


@every_format
@pytest.mark.parametrize(
    "labels, message",
    [
        (np.array([0.5, 1, 2, 0, 1, 2]), "row 0 has 0.5"),
        (np.array([np.nan, 1, 2, 0, 1, 2]), "row 0 has nan"),
        (np.full((6, 3), 1 / 3), "row 0 is not one-hot"),
        (np.array([1, 2, 3, 4, 5, 5]), "labels go from 1 to 5, but no row has label 0"),
        (np.array([0, 1, 2, 0, 1, -1]), "label -1"),
    ],
)
def test_labels_that_are_not_clear_are_one_line(tmp_path, kind, labels, message):
    refused(kind, SAVERS[kind](tmp_path, plain(train_y=labels)), tmp_path, message)


def test_a_class_without_training_images_is_named(tmp_path):
    names = np.array([*NAMES, "dog"])
    arrays = plain(classnames=names, test_x=unit(2), test_y=np.array([0, 3]))
    cache, lines = imported("npz", tmp_path, arrays)
    assert cache.classnames == [*NAMES, "dog"]
    assert lines == ["1 of 4 classes have no training image and cannot be learnt: dog"]


@every_format
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_x": 1e19 * unit(6)}, "row 0 has length 1e.19 "),
        ({"train_x": 1e-20 * unit(6)}, "row 0 has length 1e-20 "),
        ({"train_x": 0 * unit(6)}, "row 0 is all zeros"),
        ({"text": 1e19 * unit(3)}, "text: template 0, class 0 has length 1e.19 "),
        ({"text": unit(3).T}, "seem to be transposed"),
        ({"train_x": unit(6).T}, "seem to be transposed"),
        ({"text": unit(3, dim=5)}, "two encoders"),
        ({"train_status": np.full(6, 2)}, "all 6 rows are unreadable"),
        ({"train_features": unit(6)}, "has train_x twice"),
    ],
)
def test_features_that_cannot_be_used_are_one_line(tmp_path, kind, changes, message):
    source = SAVERS[kind](tmp_path, plain(**changes))
    refused(kind, source, tmp_path, message, dtype="float32")


def test_features_that_half_precision_would_lose_are_refused(tmp_path):
    small = plain(train_x=2e-6 * unit(6))
    refused("npz", save_npz(tmp_path, small), tmp_path, "give --dtype float32")
    cache, _ = imported("npz", tmp_path, small, dtype="float32")
    np.testing.assert_array_equal(cache.split("train").x, small["train_x"])


@pytest.mark.parametrize("change", [np.asfortranarray, lambda x: x.astype(">f4"), np.longdouble])
def test_numbers_stored_another_way_are_the_same_numbers(tmp_path, change):
    cache, _ = imported("npz", tmp_path, plain(train_x=change(unit(6, 6))), dtype="float32")
    np.testing.assert_array_equal(cache.split("train").x, unit(6, 6))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_x": np.zeros(6, [("a", "f4"), ("b", "i4")])}, "values of type"),
        ({"train_y": np.array(["2020-01-01"] * 6, "M8[D]")}, "values of type"),
        ({"train_x": unit(6).astype(complex)}, "must be floats"),
        ({"train_x": np.array(1.0)}, "must be floats"),
        ({"classnames": np.array([b"\xff", b"a", b"b"])}, "entry 0 is .* not UTF-8"),
        ({"classnames": np.array(["a" * 20_000, "b", "c"])}, "has 20,000 letters"),
    ],
)
def test_types_without_a_clear_meaning_are_one_line(tmp_path, changes, message):
    refused("npz", save_npz(tmp_path, plain(**changes)), tmp_path, message)


def npz_of_members(file, **members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file


def npy(shape, n_byte):
    """A float32 array whose header says `shape`, followed by so many bytes of zeros."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + bytes(n_byte)


def test_sizes_are_compared_before_anything_is_read(tmp_path):
    file = tmp_path / "in.npz"
    npz_of_members(file, train_x=npy((10**15, 512), 64))
    refused("npz", file, tmp_path, "takes 2,048,000,000,000,000,000 bytes, but the file has 64")
    npz_of_members(file, train_x=npy((6, -8), 192))
    refused("npz", file, tmp_path, "in.npz")
    # The directory of the zip may lie, too: it says 600 MB of an array that has less.
    npz_of_members(file, train_x=npy((6, DIM), 6 * DIM * 4))
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 24 : entry + 28] = (600 * 2**20).to_bytes(4, "little")
    file.write_bytes(content)
    refused("npz", file, tmp_path, "its arrays would take 629,145,600")


def test_a_tensor_that_repeats_one_value_is_not_unfolded(tmp_path):
    x = torch.zeros(1).expand(10**9, 512)
    torch.save({"train_x": x, "train_y": torch.zeros(6, dtype=torch.int64)}, tmp_path / "in.pt")
    refused("pt", tmp_path / "in.pt", tmp_path, "would take 2,048,000,000,048")


def test_a_file_given_to_another_reader_is_named(tmp_path):
    files = {kind: save(tmp_path, plain()) for kind, save in SAVERS.items()}
    for kind in SAVERS:
        for other, file in files.items():
            if other != kind:
                refused(kind, file, tmp_path, f"import it with `cliad import {other}`")


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.ones(3, 2), r"a single tensor \(3, 2\)"),
        ([torch.ones(3)], "a list of 1"),
        ({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, "further dicts: state_dict"),
        ({"visual.w": torch.ones(2), "b": torch.ones(1)}, "a dict of b, visual.w"),
        ({"train_x": torch.ones(6, 8).to("meta")}, "without values"),
        ({"train_x": torch.ones(6, 8).to_sparse()}, "save its .to_dense"),
        ({"train_x": {1, 2}}, "a value of type set"),
        (torch.nn.Linear(2, 2), "would run code"),
    ],
)
def test_a_torch_file_of_something_else_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "in.pt")
    refused("pt", tmp_path / "in.pt", tmp_path, message)


def test_bfloat16_is_read_from_both_formats(tmp_path):
    from safetensors.torch import save_file

    tensors = {"train_x": torch.tensor(unit(6, 6)).bfloat16(), "train_y": torch.arange(6) % 3}
    torch.save(tensors, tmp_path / "in.pt")
    save_file(tensors, tmp_path / "in.safetensors")
    for kind in ("pt", "safetensors"):
        source = tmp_path / f"in.{kind}"
        path = import_features(kind, source, **named(tmp_path, dtype="float32"))
        x = open_cache(path).split("train").x
        np.testing.assert_array_equal(x, tensors["train_x"].float().numpy())


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": ""},
        {"prompts": "a/b"},
        {"prompts": ".."},
        {"dataset": ".."},
        {"dataset": "a" * 5000},
        {"encoder": "\x1b[31m"},
        {"encoder": "a\ud800"},
    ],
)
def test_names_that_cannot_be_used_leave_nothing(tmp_path, changes):
    refused("npz", save_npz(tmp_path, plain()), tmp_path, "--", **changes)


def test_an_import_that_does_not_fit_leaves_nothing(tmp_path):
    source = save_npz(tmp_path, plain())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CacheError, match="cannot write"):
            import_features("npz", source, **named(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "cache").exists()


@every_format
def test_a_pipe_is_not_waited_for(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    refused(kind, tmp_path / "pipe", tmp_path, "a pipe or a device")


def test_more_names_than_a_cache_can_hold_are_refused(tmp_path):
    names = np.array([f"a class with a long name {i:05}" for i in range(4000)])
    refused("npz", save_npz(tmp_path, plain(classnames=names)), tmp_path, "more than the 64,000")


def test_what_a_tip_adapter_folder_leaves_out_is_said(tmp_path):
    lines = []
    import_features("tip-adapter", tip_folder(tmp_path), **named(tmp_path, log=lines.append))
    (line,) = lines
    assert "train is keys_2shots.pt; smaller sets are not imported: keys_1shots.pt" in line


def test_keys_that_are_transposed_are_refused(tmp_path):
    x = torch.tensor(unit(6))
    folder = tip_folder(tmp_path, keys_1shots=None, keys_2shots=x, val_f=None, val_l=None)
    for name in ("test_f.pt", "test_l.pt"):
        (folder / name).unlink()
    refused("tip-adapter", folder, tmp_path, "seems to be transposed")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"label": [0, 1, 0, 1, 0, 2**40]}, "label 1099511627776"),
        ({"label": [[0], [1], [0], [1], [0], [1]]}, "is of type list"),
        ({"label": [0, 1] * 3, "status": [300] * 6}, r"'status' must hold 1 \(done\)"),
        ({"label": [0, 1] * 3, "image_path": [1, 2, 3, 4, 5, 6]}, "'image_path' holds 1"),
    ],
)
def test_metadata_of_odd_types_is_one_line(tmp_path, columns, message):
    folder = retrieval_folder(tmp_path / "in", columns)
    refused("clip-retrieval", folder, tmp_path, message)


def test_text_of_a_clip_retrieval_folder_is_matched_by_name(tmp_path):
    folder = retrieval_folder(tmp_path / "in", {"label": list("abcabc")})
    np.savez(folder / "text.npz", text=unit(3, 8), classnames=np.array(["c", "a", "b"]))
    cache = open_cache(import_features("clip-retrieval", folder, **named(tmp_path)))
    assert cache.classnames == ["c", "a", "b"]
    assert cache.split("train").y.tolist() == [1, 2, 0, 1, 2, 0]


@every_format
def test_damaged_files_are_one_line_and_leave_nothing(tmp_path, kind):
    source = SAVERS[kind](tmp_path, plain(text=unit(3, 8), classnames=np.array(NAMES)))
    whole = source.read_bytes()
    rng = random.Random(0)
    n_refused = 0
    for _ in range(60):
        content = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
        source.write_bytes(content)
        try:
            import_features(kind, source, **named(tmp_path, force=True))
        except CliadError as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert n_refused > 20


def test_a_pickle_that_asks_for_memory_is_not_read(tmp_path):
    """The one call that torch's own reader allows, here for 2 GB."""
    (tmp_path / "in.pt").write_bytes(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    refused("pt", tmp_path / "in.pt", tmp_path, "in.pt")
    with zipfile.ZipFile(tmp_path / "in.pt", "w") as archive:
        archive.writestr("in/data.pkl", (b"\x80\x02c__builtin__\nbytearray\nJ\0\0\0\x7f\x85R."))
    refused("pt", tmp_path / "in.pt", tmp_path, "holds what torch.save does not write")
