"""Paths of a list, held inside the folder that they may lie in."""

from __future__ import annotations

import os
from pathlib import Path

from cliad.cache.datasets.folders import DatasetError
from cliad.errors import printable


class Fence:
    """A folder that no path of a list may leave, by `..`, as an absolute path or through a link."""

    def __init__(self, base: Path, root: Path):
        """Paths are relative to `base`, and must lie in `root`."""
        self._base = base
        self._root = os.path.realpath(root)
        self._inside: dict[str, bool] = {}  # by folder, of which there are few

    def check(self, path: str, place: str) -> None:
        """Refuse a path that leads outside; `place` says where it stands.

        Raises:
            DatasetError: it does.
        """
        full = os.path.join(self._base, path)
        folder = os.path.dirname(full)
        if folder not in self._inside:
            self._inside[folder] = self._holds(folder)
        # The last part may be `..`, or a link of its own.
        is_plain = os.path.basename(full) not in ("", ".", "..") and not os.path.islink(full)
        if not (self._inside[folder] if is_plain else self._holds(full)):
            raise DatasetError(
                f"{place}: {printable(path)} is outside of {self._root}; if it is meant, give the"
                " folder that holds all images with --root DIR"
            )

    def _holds(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._root or real.startswith(os.path.join(self._root, ""))
