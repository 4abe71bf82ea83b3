"""FGVC-Aircraft (Maji et al., 2013): the field uses the lists that the data set brings itself."""

from __future__ import annotations

from pathlib import Path

from cliad.cache.datasets.base import (
    SPLITS,
    Dataset,
    Listing,
    Remote,
    RowsAndNames,
    find_folder,
    need_file,
    opener,
    read_lines,
)
from cliad.cache.datasets.official import checked, parsed
from cliad.cache.prompts import clean

FOLDERS = ("fgvc_aircraft", "fgvc-aircraft-2013b", "fgvc", "aircraft")
IMAGE_FOLDERS = ("images", "data/images", "fgvc-aircraft-2013b/data/images")


def _read(data: Path | None, split: str) -> Listing:
    """variants.txt has the classes, images_variant_train.txt, ... lines `1025794 707-320`."""
    images = find_folder(data, FOLDERS, IMAGE_FOLDERS).images
    # The lists lie beside the image folder.
    lists = images.parent
    names = read_lines(need_file(lists, "variants.txt"))
    label = {name: number for number, name in enumerate(names)}

    def row(line: str) -> tuple[str, int]:
        # A variant's name may hold spaces: only the first one separates.
        image, name = line.split(" ", 1)
        return f"{image}.jpg", label[name]

    rows = {}
    for part in SPLITS:
        rows[part] = parsed(need_file(lists, f"images_variant_{part}.txt"), row)
    content = checked(lists, RowsAndNames(rows, [clean(name) for name in names]))
    return Listing(content.rows, content.classnames, opener(images), images)


FGVC_AIRCRAFT = Dataset(
    name="fgvc_aircraft",
    read=_read,
    templates=("a photo of a {}, a type of aircraft.",),
    about="100 classes",
    counts={"train": 3334, "val": 3333, "test": 3333},
    n_class=100,
    folder=FOLDERS[0],
    folder_aliases=FOLDERS[1:],
    remotes=(
        Remote(
            url="https://www.robots.ox.ac.uk/~vgg/data/"
            "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            file="fgvc-aircraft-2013b.tar.gz",
            megabytes=2754,
            unpack=True,
        ),
    ),
)
