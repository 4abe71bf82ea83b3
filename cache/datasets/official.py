"""The splits that data sets bring themselves.

Each reader takes the data set's folder and its image folder. What a list holds is checked line by
line, and whole by `checked`, before it is used.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cliad.cache.datasets.base import (
    SPLITS,
    DatasetError,
    Rows,
    RowsAndNames,
    need_file,
    read_lines,
)
from cliad.cache.datasets.matlab import Value, read_mat
from cliad.cache.documents import read_json
from cliad.cache.prompts import clean
from cliad.errors import printable

Line = TypeVar("Line")


def parsed(file: Path, parse: Callable[[str], Line]) -> list[Line]:
    """What `parse` makes of each line of a list.

    Raises:
        DatasetError: the file cannot be read, or `parse` raises ValueError, KeyError or IndexError
            at a line.
    """
    return [_parsed_line(file, line, parse) for line in read_lines(file)]


def _parsed_line(file: Path, line: str, parse: Callable[[str], Line]) -> Line:
    try:
        return parse(line)
    except (ValueError, KeyError, IndexError):
        raise DatasetError(
            f"{file} has the line '{printable(line[:80])}', which is not one of this list;"
            " fetch it again"
        ) from None


def checked(folder: Path, content: RowsAndNames) -> RowsAndNames:
    """The same rows, if they can be used.

    Raises:
        DatasetError: a split is empty, a path leads out of the image folder, or a label has no
            name.
    """
    for split, rows in content.rows.items():
        if not rows:
            raise DatasetError(f"{folder}: the list of {split} is empty; fetch it again")
        for path, label in rows:
            normal = posixpath.normpath(path)
            if normal.startswith("/") or normal.split("/")[0] == ".." or "\0" in path:
                raise DatasetError(
                    f"{folder}: the list of {split} names {printable(path[:80])}, which is outside"
                    " of the image folder; fetch it again"
                )
            if not 0 <= label < len(content.classnames):
                raise DatasetError(
                    f"{folder}: the list of {split} has class number {label + 1:.6g}, and there"
                    f" are {len(content.classnames)} classes; is a list cut?"
                )
    return content


def dtd(folder: Path, images: Path) -> RowsAndNames:
    """DTD's first of ten splits: labels/train1.txt, ... with lines `banded/banded_0002.jpg`."""
    lists = {}
    for split in SPLITS:
        lists[split] = parsed(need_file(images.parent, f"labels/{split}1.txt"), _in_a_folder)
    return checked(images.parent, _by_folder(lists))


def food(folder: Path, images: Path) -> RowsAndNames:
    """Food-101's meta/train.txt and test.txt, lines `apple_pie/1005649`; no validation split."""
    lists = {}
    for split in ("train", "test"):
        lines = parsed(need_file(images.parent, f"meta/{split}.txt"), _in_a_folder)
        # The lists leave out the ending.
        lists[split] = [line + ".jpg" for line in lines]
    return checked(images.parent, _by_folder(lists))


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


def _in_a_folder(path: str) -> str:
    folder, file = path.split("/")
    if not folder or not file:
        raise ValueError
    return path


def _first_folder(path: str) -> str:
    return path.split("/")[0]


def pets(folder: Path, images: Path) -> RowsAndNames:
    """Oxford Pets' annotations/trainval.txt and test.txt.

    Lines are `Abyssinian_100 1 1 1`: the image, its class from 1 on, and two groups of classes.
    """
    rows: dict[str, Rows] = {}
    names: dict[int, str] = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        rows[split] = []
        for image, label in parsed(need_file(folder, f"annotations/{file}"), _pet):
            # The lists begin with lines of comment.
            if image.startswith("#"):
                continue
            rows[split].append((f"{image}.jpg", label))
            # An image's name is its class's, with a number at the end.
            names[label] = clean(image.rpartition("_")[0].lower())
    return checked(folder, RowsAndNames(rows, _in_label_order(names, folder)))


def _pet(line: str) -> tuple[str, int]:
    if line.startswith("#"):
        return "#", 0
    image, number = line.split()[:2]
    return image, int(number) - 1


def _in_label_order(names: Mapping[int, str], folder: Path) -> list[str]:
    if sorted(names) != list(range(len(names))):
        raise DatasetError(
            f"{folder}: its lists use {len(names)} classes numbered"
            f" {min(names):.6g} to {max(names):.6g}; is a list cut?"
        )
    return [names[label] for label in range(len(names))]


def cars(folder: Path, images: Path) -> RowsAndNames:
    """Stanford Cars' devkit: cars_train_annos.mat and cars_test_annos_withlabels.mat.

    Its name `Acura RL Sedan 2012` becomes `2012 Acura RL Sedan`, as in the split file.
    """
    meta_file = need_file(folder, "devkit/cars_meta.mat")
    # The labels of the test images were published apart from the devkit.
    test_file = "cars_test_annos_withlabels.mat"
    files = {
        "train": need_file(folder, "devkit/cars_train_annos.mat"),
        "test": need_file(folder, test_file, f"devkit/{test_file}"),
    }
    rows: dict[str, Rows] = {}
    for split, file in files.items():
        rows[split] = []
        for item in _values(read_mat(file), "annotations", file):
            if not isinstance(item, dict):
                raise _other_content(file, "annotations")
            name = item.get("fname")
            number = item.get("class")
            if not isinstance(name, str) or not isinstance(number, list) or len(number) != 1:
                raise _other_content(file, "annotations")
            label = _whole(number, "class", file)[0] - 1  # MATLAB counts from 1
            rows[split].append((f"cars_{split}/{name}", label))
    names = []
    for name in _values(read_mat(meta_file), "class_names", meta_file):
        if not isinstance(name, str) or not name.strip():
            raise _other_content(meta_file, "class_names")
        names.append(_year_first(name))
    return checked(folder, RowsAndNames(rows, names))


def _values(content: Mapping[str, Value], name: str, file: Path) -> list[object]:
    """A variable of a MATLAB file that is an array."""
    values = content.get(name)
    if not isinstance(values, list):
        raise _other_content(file, name)
    return values


def _whole(values: Sequence[object], name: str, file: Path) -> list[int]:
    """Numbers that count something."""
    numbers = []
    for value in values:
        if not isinstance(value, int | float) or value != value // 1:
            raise _other_content(file, name)
        numbers.append(int(value))
    return numbers


def _other_content(file: Path, name: str) -> DatasetError:
    return DatasetError(f"{file} does not hold '{name}' as the data set's own file does")


def _year_first(name: str) -> str:
    *words, year = name.split()
    return " ".join([year, *words])


def flowers(folder: Path, images: Path) -> RowsAndNames:
    """Oxford Flowers' setid.mat (1020 / 1020 / 6149 images) and imagelabels.mat.

    The names are not part of the data set; cat_to_name.json has them by class number.
    """
    labels_file = need_file(folder, "imagelabels.mat")
    labels = _whole(_values(read_mat(labels_file), "labels", labels_file), "labels", labels_file)
    splits_file = need_file(folder, "setid.mat")
    image_numbers = read_mat(splits_file)
    names_file = need_file(folder, "cat_to_name.json")
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    rows: dict[str, Rows] = {}
    for split, key in keys.items():
        rows[split] = []
        for number in _whole(_values(image_numbers, key, splits_file), key, splits_file):
            # Images and classes are numbered from 1.
            if not 1 <= number <= len(labels):
                raise DatasetError(
                    f"{splits_file} has image number {number:.6g}, {labels_file.name} has"
                    f" {len(labels):,} images; fetch both again"
                )
            rows[split].append((f"image_{number:05d}.jpg", labels[number - 1] - 1))
    return checked(folder, RowsAndNames(rows, _flower_names(names_file)))


def _flower_names(file: Path) -> list[str]:
    """The names in a JSON object, by class number from 1 on."""
    names = read_json(file, DatasetError)
    form = f"{file} should map the numbers 1, 2, ... to names; fetch it again"
    if not isinstance(names, dict):
        raise DatasetError(form)
    in_order = []
    for number in range(1, len(names) + 1):
        name = names.get(str(number))
        if not isinstance(name, str) or not name.strip():
            raise DatasetError(form)
        in_order.append(clean(name))
    return in_order


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
        rows[split] = parsed(file, lambda line: (line.lstrip("/"), label[line.rpartition("/")[0]]))
    return checked(folder, RowsAndNames(rows, [_sun_name(name) for name in classes]))


def _sun_name(class_folder: str) -> str:
    """`/a/apse/indoor` -> `indoor apse`; the first folder is a letter of the alphabet."""
    words = class_folder.strip("/").split("/")[1:]
    return clean(" ".join(reversed(words)))


def ucf(folder: Path, images: Path) -> RowsAndNames:
    """UCF101's first list: ucfTrainTestlist/trainlist01.txt, testlist01.txt and classInd.txt.

    A line is `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; the images are the middle frames.
    """
    lists = folder / "ucfTrainTestlist"
    label = dict(parsed(need_file(lists, "classInd.txt"), _action))

    def frame(line: str) -> tuple[str, int]:
        # Lines of the training list have the class number as well; the folder says the same.
        name, video = line.split()[0].split("/")
        return f"{_spaced(name)}/{video.replace('.avi', '.jpg')}", label[name]

    rows = {}
    for split in ("train", "test"):
        rows[split] = parsed(need_file(lists, f"{split}list01.txt"), frame)
    names = {number: clean(_spaced(name)) for name, number in label.items()}
    return checked(folder, RowsAndNames(rows, _in_label_order(names, lists)))


def _action(line: str) -> tuple[str, int]:
    number, name = line.split()
    return name, int(number) - 1


def _spaced(name: str) -> str:
    """`ApplyEyeMakeup` -> `Apply_Eye_Makeup`, the name of the folder with the middle frames."""
    return "_".join(re.findall("[A-Z][^A-Z]*", name))
