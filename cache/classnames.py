"""A file of class names, one a line."""

from __future__ import annotations

from pathlib import Path

from cliad.cache.documents import read_text
from cliad.errors import CliadError


class ClassnamesError(CliadError):
    """A file of class names that cannot be used; the message names the file and the line."""


def read_classnames(file: Path, n_class: int | None = None) -> list[str]:
    """Class names in label order: line i (from 0) names label i.

    An empty line would shift the names of all labels below it, so it is an error, except at the
    end of the file.

    Args:
        file: UTF-8 text, with or without a byte order mark.
        n_class: how many names there must be; None: any number.

    Raises:
        ClassnamesError: the file cannot be read, has an empty line or another number of names.
    """
    text = read_text(file, ClassnamesError, "give a UTF-8 text file with one class name a line")
    # What editors leave at the end of a file is not an empty name.
    # Not splitlines, which also ends a line at signs that a name may hold.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, 1):
        if not name:
            raise ClassnamesError(
                f"{file}: line {number} is empty; give one class name a line, in label order"
            )
    if n_class is not None and len(names) != n_class:
        raise ClassnamesError(
            f"{file} has {len(names)} class names, the data set has {n_class} classes;"
            " give one name a line in label order"
        )
    return names
