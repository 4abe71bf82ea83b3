"""A file of class names, one a line."""

from __future__ import annotations

from pathlib import Path

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
    # What editors leave at the end of a file is not an empty name.
    names = [line.strip() for line in _read_text(file).rstrip().splitlines()]
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


def _read_text(file: Path) -> str:
    hint = "give a UTF-8 text file with one class name a line"
    try:
        # utf-8-sig: some editors begin a file with a byte order mark, which is not part of a name.
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ClassnamesError(f"there is no file {file}; {hint}") from None
    except OSError as error:
        raise ClassnamesError(f"cannot read {file}: {error.strerror or error}; {hint}") from None
    except UnicodeDecodeError as error:
        raise ClassnamesError(f"{file} is not UTF-8 text ({error.reason}); {hint}") from None
