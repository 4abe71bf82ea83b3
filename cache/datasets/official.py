"""The splits that data sets bring themselves.

Each reader takes the data set's folder and its image folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cliad.cache.datasets.base import (
    SPLITS,
    DatasetError,
    Rows,
    RowsAndNames,
    need_file,
    read_lines,
)
from cliad.cache.documents import read_json
from cliad.cache.prompts import clean


def dtd(folder: Path, images: Path) -> RowsAndNames:
    """DTD's first of ten splits: labels/train1.txt, ... with lines `banded/banded_0002.jpg`."""
    lists = {}
    for split in SPLITS:
        lists[split] = read_lines(need_file(images.parent, f"labels/{split}1.txt"))
    return _by_folder(lists)


def food(folder: Path, images: Path) -> RowsAndNames:
    """Food-101's meta/train.txt and test.txt, lines `apple_pie/1005649`; no validation split."""
    lists = {}
    for split in ("train", "test"):
        lines = read_lines(need_file(images.parent, f"meta/{split}.txt"))
        # The lists leave out the ending.
        lists[split] = [line + ".jpg" for line in lines]
    return _by_folder(lists)


def _by_folder(lists: Mapping[str, Sequence[str]]) -> RowsAndNames:
    """Paths `class/file` by split: the classes are the folders, in name order."""
    folders: set[str] = set()
    for paths in lists.values():
        folders |= {_first_folder(path) for path in paths}
    names = sorted(folders)
    label = {name: number for number, name in enumerate(names)}
    rows = {}
    for split, paths in lists.items():
        rows[split] = [(path, label[_first_folder(path)]) for path in paths]
    return RowsAndNames(rows, [clean(name) for name in names])


def _first_folder(path: str) -> str:
    return path.split("/")[0]


def pets(folder: Path, images: Path) -> RowsAndNames:
    """Oxford Pets' annotations/trainval.txt and test.txt.

    Lines are `Abyssinian_100 1 1 1`: the image, its class from 1 on, and two groups of classes.
    """
    rows: dict[str, Rows] = {"train": [], "test": []}
    names: dict[int, str] = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        for line in read_lines(need_file(folder, f"annotations/{file}")):
            if line.startswith("#"):
                continue
            image, number = line.split()[:2]
            label = int(number) - 1
            rows[split].append((f"{image}.jpg", label))
            # An image's name is its class's, with a number at the end.
            names[label] = clean(image.rpartition("_")[0].lower())
    return RowsAndNames(rows, _in_label_order(names, folder))


def _in_label_order(names: Mapping[int, str], folder: Path) -> list[str]:
    if sorted(names) != list(range(len(names))):
        raise DatasetError(
            f"{folder}: its lists use {len(names)} classes numbered"
            f" {min(names)} to {max(names)}; is a list cut?"
        )
    return [names[label] for label in range(len(names))]


def cars(folder: Path, images: Path) -> RowsAndNames:
    """Stanford Cars' devkit: cars_train_annos.mat and cars_test_annos_withlabels.mat.

    Its name `Acura RL Sedan 2012` becomes `2012 Acura RL Sedan`, as in the split file.
    """
    meta = _read_mat(need_file(folder, "devkit/cars_meta.mat"))
    # The labels of the test images were published apart from the devkit.
    test_file = "cars_test_annos_withlabels.mat"
    files = {
        "train": need_file(folder, "devkit/cars_train_annos.mat"),
        "test": need_file(folder, test_file, f"devkit/{test_file}"),
    }
    rows: dict[str, Rows] = {}
    for split, file in files.items():
        rows[split] = []
        for item in _read_mat(file)["annotations"]:
            label = int(item["class"]) - 1  # MATLAB counts from 1
            rows[split].append((f"cars_{split}/{item['fname']}", label))
    return RowsAndNames(rows, [_year_first(str(name)) for name in meta["class_names"]])


def _year_first(name: str) -> str:
    *words, year = name.split()
    return " ".join([year, *words])


def flowers(folder: Path, images: Path) -> RowsAndNames:
    """Oxford Flowers' setid.mat (1020 / 1020 / 6149 images) and imagelabels.mat.

    The names are not part of the data set; cat_to_name.json has them by class number.
    """
    labels = _read_mat(need_file(folder, "imagelabels.mat"))["labels"]
    image_numbers = _read_mat(need_file(folder, "setid.mat"))
    names = read_json(need_file(folder, "cat_to_name.json"), DatasetError)
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    rows: dict[str, Rows] = {}
    for split, key in keys.items():
        rows[split] = []
        for number in image_numbers[key].tolist():
            # Images and classes are numbered from 1.
            label = int(labels[number - 1]) - 1
            rows[split].append((f"image_{number:05d}.jpg", label))
    return RowsAndNames(rows, [clean(names[str(label + 1)]) for label in range(len(names))])


def _read_mat(path: Path) -> dict[str, Any]:
    """A MATLAB file: arrays by name, of whatever type they have."""
    # Imported here: slow, and only two data sets need it.
    from scipy.io import loadmat

    return loadmat(str(path), squeeze_me=True)


def sun(folder: Path, images: Path) -> RowsAndNames:
    """SUN397's first partition: Training_01.txt and Testing_01.txt, lines `/a/abbey/sun_x.jpg`.

    ClassName.txt gives the order of classes. Class `/a/apse/indoor` is called `indoor apse`.
    """
    classes = read_lines(need_file(folder, "ClassName.txt", "SUN397/ClassName.txt"))
    label = {name: number for number, name in enumerate(classes)}
    files = {
        "train": need_file(folder, "Training_01.txt"),
        "test": need_file(folder, "Testing_01.txt"),
    }
    rows: dict[str, Rows] = {}
    for split, file in files.items():
        rows[split] = []
        for line in read_lines(file):
            class_folder = line.rpartition("/")[0]
            rows[split].append((line.lstrip("/"), label[class_folder]))
    return RowsAndNames(rows, [_sun_name(name) for name in classes])


def _sun_name(class_folder: str) -> str:
    """`/a/apse/indoor` -> `indoor apse`; the first folder is a letter of the alphabet."""
    words = class_folder.strip("/").split("/")[1:]
    return clean(" ".join(reversed(words)))


def ucf(folder: Path, images: Path) -> RowsAndNames:
    """UCF101's first list: ucfTrainTestlist/trainlist01.txt, testlist01.txt and classInd.txt.

    A line is `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; the images are the middle frames.
    """
    lists = folder / "ucfTrainTestlist"
    label = {}
    for line in read_lines(need_file(lists, "classInd.txt")):
        number, name = line.split()
        label[name] = int(number) - 1
    rows: dict[str, Rows] = {}
    for split in ("train", "test"):
        rows[split] = []
        # Lines of the training list have the class number as well; the folder says the same.
        for line in read_lines(need_file(lists, f"{split}list01.txt")):
            name, video = line.split()[0].split("/")[:2]
            frame = f"{_spaced(name)}/{video.replace('.avi', '.jpg')}"
            rows[split].append((frame, label[name]))
    names = {number: clean(_spaced(name)) for name, number in label.items()}
    return RowsAndNames(rows, _in_label_order(names, lists))


def _spaced(name: str) -> str:
    """`ApplyEyeMakeup` -> `Apply_Eye_Makeup`, the name of the folder with the middle frames."""
    return "_".join(re.findall("[A-Z][^A-Z]*", name))
