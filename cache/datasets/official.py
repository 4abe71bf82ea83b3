"""The splits that data sets bring themselves. Each reader takes (folder, image folder) and gives rows per split, and class names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cliad.cache.datasets.base import DatasetError, Rows, need_file, read_lines
from cliad.cache.prompts import clean

Split = tuple[dict[str, Rows], list[str]]


def dtd(folder: Path, images: Path) -> Split:
    """DTD's first of ten splits: labels/train1.txt, val1.txt, test1.txt with lines `banded/banded_0002.jpg`."""
    lists = {
        part: read_lines(need_file(images.parent, f"labels/{part}1.txt"))
        for part in ("train", "val", "test")
    }
    return _by_folder(lists)


def food(folder: Path, images: Path) -> Split:
    """Food-101's meta/train.txt and test.txt with lines `apple_pie/1005649`; it has no validation split."""
    lists = {
        part: [line + ".jpg" for line in read_lines(need_file(images.parent, f"meta/{part}.txt"))]
        for part in ("train", "test")
    }
    return _by_folder(lists)


def _by_folder(lists: dict[str, list[str]]) -> Split:
    names = sorted({path.split("/")[0] for paths in lists.values() for path in paths})
    label = {name: i for i, name in enumerate(names)}
    return {
        part: [(path, label[path.split("/")[0]]) for path in paths] for part, paths in lists.items()
    }, [clean(name) for name in names]


def pets(folder: Path, images: Path) -> Split:
    """Oxford Pets' annotations/trainval.txt and test.txt with lines `Abyssinian_100 1 1 1` (image, class from 1, ...)."""
    rows, names = {}, {}
    for part, file in (("train", "trainval.txt"), ("test", "test.txt")):
        items = [
            line.split()[:2]
            for line in read_lines(need_file(folder, f"annotations/{file}"))
            if not line.startswith("#")
        ]
        rows[part] = [(f"{image}.jpg", int(label) - 1) for image, label in items]
        names |= {int(label) - 1: clean(image.rpartition("_")[0].lower()) for image, label in items}
    return rows, _in_order(names, folder)


def _in_order(names: dict[int, str], folder: Path) -> list[str]:
    if sorted(names) != list(range(len(names))):
        raise DatasetError(
            f"{folder}: its lists use {len(names)} classes numbered {min(names)} to {max(names)}; is a list cut?"
        )
    return [names[label] for label in range(len(names))]


def cars(folder: Path, images: Path) -> Split:
    """Stanford Cars' devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat; the year comes first in a name."""
    names = [str(name) for name in _mat(need_file(folder, "devkit/cars_meta.mat"))["class_names"]]
    files = {
        "train": need_file(folder, "devkit/cars_train_annos.mat"),
        "test": need_file(
            folder, "cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"
        ),
    }
    rows = {
        part: [
            (f"cars_{part}/{item['fname']}", int(item["class"]) - 1)
            for item in _mat(file)["annotations"]
        ]
        for part, file in files.items()
    }
    return rows, [" ".join([*name.split()[-1:], *name.split()[:-1]]) for name in names]


def flowers(folder: Path, images: Path) -> Split:
    """Oxford Flowers' setid.mat (1020 / 1020 / 6149 images) and imagelabels.mat; names from cat_to_name.json."""
    labels, parts = (
        _mat(need_file(folder, "imagelabels.mat"))["labels"],
        _mat(need_file(folder, "setid.mat")),
    )
    by_number = json.loads(need_file(folder, "cat_to_name.json").read_text(encoding="utf-8"))
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    rows = {
        part: [(f"image_{int(i):05d}.jpg", int(labels[int(i) - 1]) - 1) for i in parts[key]]
        for part, key in keys.items()
    }
    return rows, [clean(by_number[str(i + 1)]) for i in range(len(by_number))]


def _mat(path: Path) -> dict:
    from scipy.io import loadmat

    return loadmat(str(path), squeeze_me=True)


def sun(folder: Path, images: Path) -> Split:
    """SUN397's first partition: Training_01.txt and Testing_01.txt with lines `/a/abbey/sun_x.jpg`; ClassName.txt gives the order.

    Class `/a/apse/indoor` is called `indoor apse`.
    """
    classes = read_lines(need_file(folder, "ClassName.txt", "SUN397/ClassName.txt"))
    label = {name: i for i, name in enumerate(classes)}
    lists = {
        "train": need_file(folder, "Training_01.txt"),
        "test": need_file(folder, "Testing_01.txt"),
    }
    rows = {
        part: [(line.lstrip("/"), label[line.rpartition("/")[0]]) for line in read_lines(file)]
        for part, file in lists.items()
    }
    return rows, [clean(" ".join(reversed(name.strip("/").split("/")[1:]))) for name in classes]


def ucf(folder: Path, images: Path) -> Split:
    """UCF101's first list: ucfTrainTestlist/trainlist01.txt with lines `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`."""
    lists = folder / "ucfTrainTestlist"
    numbered = [line.split() for line in read_lines(need_file(lists, "classInd.txt"))]
    label = {name: int(number) - 1 for number, name in numbered}
    rows = {}
    for part in ("train", "test"):
        videos = [line.split()[0] for line in read_lines(need_file(lists, f"{part}list01.txt"))]
        rows[part] = [
            (
                f"{_spaced(video.split('/')[0])}/{video.split('/')[1].replace('.avi', '.jpg')}",
                label[video.split("/")[0]],
            )
            for video in videos
        ]
    return rows, _in_order({i: clean(_spaced(name)) for name, i in label.items()}, lists)


def _spaced(name: str) -> str:
    """`ApplyEyeMakeup` as the middle frames' folders are called: `Apply_Eye_Makeup`."""
    return "_".join(re.findall("[A-Z][^A-Z]*", name))
