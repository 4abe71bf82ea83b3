"""A batch of the cache, as it comes back from the encoder job by job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from cliad.cache.encoders.base import EncoderError
from cliad.cache.extract.extraction import Extraction, rows_within
from cliad.cache.extract.reading import Job
from cliad.cache.file.layout import DONE, UNREADABLE, Views, view_array


@dataclass(frozen=True)
class EncodedJob:
    """What the encoder gives for a job, still on its device.

    `parts` has the rows (n, ...) of the plain view by part, where the job holds that view;
    `views` has the rows (k, dim) of each view, by view set, for the k rows that it covers.
    """

    job: Job
    problems: Mapping[int, str]  # row -> why it could not be read
    parts: Mapping[str, Tensor]
    views: Mapping[str, list[Tensor]]


@dataclass
class Batch:
    """Rows start..stop of a split: what the jobs of this batch have given so far, on the host."""

    split: str
    start: int
    stop: int
    view_layouts: Mapping[str, Views]  # the views that the file holds of this split
    problems: dict[int, str] = field(default_factory=dict)
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, extraction: Extraction) -> Batch:
        """The empty batch that a job belongs to."""
        return cls(job.split, job.start, job.stop, extraction.splits[job.split].views)

    def add(self, encoded: EncodedJob) -> None:
        """Fetch the rows of a job from the device; waits until they are there."""
        self.problems |= encoded.problems
        for part, rows in encoded.parts.items():
            self.parts[part] = rows.cpu().numpy()
        for view_set, views in encoded.views.items():
            fetched = [rows.cpu().numpy() for rows in views]
            self.views.setdefault(view_set, []).extend(fetched)

    def status(self) -> np.ndarray:
        """The status of each row, uint8 (n,)."""
        status = np.full(self.stop - self.start, DONE, np.uint8)
        status[self._unreadable() - self.start] = UNREADABLE
        return status

    def stacked(self) -> dict[str, np.ndarray]:
        """The arrays by their names in the file, float32; rows of unreadable images are zero."""
        unreadable = self._unreadable()
        arrays = {}
        for view_set, layout in self.view_layouts.items():
            covered = rows_within(layout.rows, self.start, self.stop)
            x = self._stacked_views(view_set, layout.n_view)  # (n_view, k, dim)
            x[:, np.isin(covered, unreadable)] = 0
            arrays[view_array(view_set)] = x
        for part, rows in self.parts.items():
            x = np.array(rows, np.float32)  # a copy: the tensor may share its memory
            x[unreadable - self.start] = 0
            arrays[part] = x
        return arrays

    def as_stored(self, dtype: str) -> dict[str, np.ndarray]:
        """`stacked` in the type of the file.

        Raises:
            EncoderError: features that are not finite in that type.
        """
        arrays = {}
        for name, x in self.stacked().items():
            with np.errstate(over="ignore"):  # what overflows is refused below
                arrays[name] = x.astype(dtype)
            if not np.isfinite(arrays[name]).all():
                where = f"{self.split} rows {self.start} to {self.stop - 1}"
                raise EncoderError(
                    f"{name} of {where} are not finite in {dtype}; "
                    "try --dtype float32, and check the weights"
                )
        return arrays

    def _unreadable(self) -> np.ndarray:
        return np.array(sorted(self.problems), np.int64)

    def _stacked_views(self, view_set: str, n_view: int) -> np.ndarray:
        if view_set in self.views:
            return np.stack(self.views[view_set]).astype(np.float32, copy=False)
        # No row of this batch is covered. The width is that of the features.
        return np.zeros((n_view, 0, self.parts["features"].shape[1]), np.float32)
