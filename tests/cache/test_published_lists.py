"""The lists that known data sets bring: damaged or hostile ones are one line, and run nothing."""

import os
import pickle
import random
import subprocess
import sys

import layouts
import numpy as np
import pytest
from scipy.io import savemat

from cliad.cache.datasets import find_dataset
from cliad.cache.datasets.base import DatasetError
from cliad.cache.datasets.matlab import read_mat
from cliad.errors import CliadError

# A pickle of an array of two objects whose type says that they are plain numbers: NumPy takes the
# 16 bytes for two addresses.
ADDRESSES = (
    b"\x80\x02}X\x04\x00\x00\x00datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    b"K\x00\x85C\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R"
    b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x10"
    b"AAAAAAAABBBBBBBBtbs."
)
# A list that is kept under number 2,000,000,000: room for all numbers below would take 32 GB.
MEMO = b"\x80\x02]r\x00\x94\x35\x77."

LISTS = {
    "oxford_pets": ["annotations/trainval.txt", "annotations/test.txt"],
    "dtd": ["labels/train1.txt", "labels/val1.txt"],
    "food101": ["meta/train.txt", "meta/test.txt"],
    "sun397": ["Training_01.txt", "Testing_01.txt"],
    "ucf101": ["ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/classInd.txt"],
    "fgvc_aircraft": ["images_variant_train.txt"],
    "stanford_cars": ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat"],
    "oxford_flowers": ["setid.mat", "imagelabels.mat", "cat_to_name.json"],
}
CASES = [(name, file) for name, files in LISTS.items() for file in files]
WRONG = {
    "empty": b"",
    "a word": b"word\n",
    "outside": b"../../../etc/passwd 1 1 1\n",
    "absolute": b"/etc/passwd 1 1 1\n",
    "a long number": b"Abyssinian_1 " + b"9" * 5000 + b" 1 1\n",
    "nested": b"[" * 100_000,
    "another form": b'{"1": 5, "2": null}',
}


def list_of(data, name, file):
    """Where the data set's own list lies, whatever the name of its folder."""
    getattr(layouts, name)(data)
    return next(path for path in data.rglob(file.rpartition("/")[2]) if str(path).endswith(file))


@pytest.mark.parametrize(("name", "file"), CASES)
def test_a_damaged_list_is_one_line_that_names_its_place(tmp_path, name, file):
    damaged = list_of(tmp_path, name, file)
    assert find_dataset(name).read(tmp_path, "official").splits["train"]
    for kind, content in WRONG.items():
        damaged.write_bytes(content)
        with pytest.raises(CliadError) as error:
            find_dataset(name).read(tmp_path, "official")
        message = str(error.value)
        assert str(tmp_path) in message and "\n" not in message, kind
        assert len(message) < 500, kind


@pytest.mark.parametrize("name", ["oxford_pets", "oxford_flowers", "stanford_cars"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_place_of_a_list_is_refused_unread(tmp_path, name):
    place = list_of(tmp_path, name, LISTS[name][0])
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(DatasetError):
        find_dataset(name).read(tmp_path, "official")


def test_a_path_in_a_list_that_leads_outside_is_refused_by_name(tmp_path):
    file = list_of(tmp_path, "oxford_pets", "annotations/test.txt")
    file.write_text(file.read_text() + "\n../../secret_1 1 1 1\n")
    with pytest.raises(DatasetError, match=r"test names \.\./\.\./secret_1\.jpg, which is outside"):
        find_dataset("oxford_pets").read(tmp_path, "official")


def test_an_image_number_that_the_labels_lack_is_one_line(tmp_path):
    file = list_of(tmp_path, "oxford_flowers", "setid.mat")
    numbers = {key: np.array([[1, 201]]) for key in ("trnid", "valid", "tstid")}
    savemat(file, numbers)
    with pytest.raises(DatasetError, match=r"image number 201, imagelabels\.mat has 200 images"):
        find_dataset("oxford_flowers").read(tmp_path, "official")


# ------------------------------------------------------------------------------- MATLAB files


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_files_are_read_as_scipy_writes_them(tmp_path, packed):
    kinds = [("fname", object), ("class", int)]
    variables = {
        "labels": np.arange(1, 300, dtype=np.uint16)[None],
        "shares": np.array([[1.5, -2.0]]),
        "names": np.array([["Acura RL", "Citroën"]], dtype=object),
        "annotations": np.array([("1.jpg", 3), ("ü.jpg", 4)], dtype=kinds),
    }
    savemat(tmp_path / "a.mat", variables, do_compression=packed)
    assert read_mat(tmp_path / "a.mat") == {
        "labels": list(range(1, 300)),
        "shares": [1.5, -2.0],
        "names": ["Acura RL", "Citroën"],
        "annotations": [{"fname": "1.jpg", "class": [3]}, {"fname": "ü.jpg", "class": [4]}],
    }


def test_changed_bytes_of_a_matlab_file_are_one_line_or_other_values(tmp_path):
    kinds = [("fname", object), ("class", int)]
    file = tmp_path / "a.mat"
    savemat(file, {"annotations": np.array([("1.jpg", 3), ("2.jpg", 4)], dtype=kinds)})
    sound = file.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(500):
        changed = bytearray(sound)
        for _ in range(4):
            changed[generator.randrange(len(sound))] = generator.choice([0, 1, 127, 128, 255])
        file.write_bytes(changed[: generator.randrange(1, 2 * len(sound))])
        try:
            read_mat(file)
        except DatasetError:
            refused += 1
    assert refused > 250


# ------------------------------------------------------------------------------ CIFAR's pickles


def test_bytes_of_a_cifar_file_are_never_taken_for_addresses(tmp_path):
    layouts.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(ADDRESSES)
    # In a process of its own: where this fails, it ends with a segmentation fault.
    program = (
        "import sys; from pathlib import Path; from cliad.cache.datasets import find_dataset\n"
        "try:\n    listing = find_dataset('cifar10').read(Path(sys.argv[1]), 'field')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "it holds an array of O8" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MEMO, "asks for more memory"),
        (pickle.dumps([1]), "it holds a list"),
        (pickle.dumps({"data": 1}), "no list of numbers 'labels'"),
        (pickle.dumps({"labels": [True]}), "no list of numbers 'labels'"),
        (pickle.dumps({"labels": [10]}), "labels other than 0 to 1"),
        (pickle.dumps({"labels": [0], "data": 1}), "no bytes of pixels"),
        (pickle.dumps({"labels": [0], "data": np.zeros((1, 3072))}), "it holds an array of f8"),
        (
            pickle.dumps({"labels": [0], "data": np.zeros((2, 3072), np.uint8)}, 2),
            "3,072 bytes for each of its 1 labels",
        ),
    ],
)
def test_a_cifar_batch_of_another_form_is_one_line(tmp_path, content, message):
    layouts.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        find_dataset("cifar10").read(tmp_path, "field")
