"""Transductive discriminant analysis: unlabelled images, all at once, adapt any head's logits.

Each class is a Gaussian, all of one covariance, as in Wang et al. (2024, Section 3.2), fitted to
its support and to the share that the head gives it of each image of the batch. Logits of the
Gaussians are added to the head's own, and the batch is divided anew. It is near TransCLIP (Zanella
et al., NeurIPS 2024), with a full covariance and without links between images.

All classes are taken to be equally likely in the batch. Where few of them are there, images may go
over to others (StatA, Zanella et al., CVPR 2025, measure it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cliad.adapters.core.ops import cholesky_solve, where_all_works

# Chosen on images of training splits; docs/transductive.md shows what others give.
ROUNDS = 5
WEIGHT = 0.1  # of the Gaussian logits
RIDGE = 3.0  # in units of tr(S) / n
SMALLEST = 1e-12  # counts and variances below it are none
ROWS_AT_ONCE = 4096  # of the batch in one product: more would only take more memory


@dataclass(frozen=True, eq=False)
class _Shares:
    """Sums over images that belong to classes by shares, in double precision.

    count (n_class,): the shares; total (n_class, dim): the features, each times its share.
    """

    count: Tensor
    total: Tensor


@dataclass(frozen=True, eq=False)
class _Linear:
    """What is added to logits of q (n, dim): q w^T + b, with w (n_class, dim) and b (n_class,)."""

    w: Tensor
    b: Tensor

    def added_to(self, logits: Tensor, q: Tensor) -> Tensor:
        """The logits (n, n_class) and these."""
        return torch.addmm(self.b, q, self.w.mT).add_(logits)


def adapt_to_batch(logits: Tensor, q: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Logits (n, n_class) of a batch of unlabelled images, from any head's and all images at once.

    Beside its arguments it holds the result and a few blocks of ROWS_AT_ONCE rows.

    Args:
        logits (n, n_class): the head's own.
        q (n, dim): the images as unit rows.
        x (n_support, dim), y (n_support,): the support as unit rows, and its labels; a class may
            have none.

    Raises:
        ValueError: logits or features that are not finite, or shapes that do not fit each other.
    """
    _check(logits, q, x, y)
    n_class = logits.shape[1]
    # No place is special to Gaussians, so it may be the mean of the support: near it, less is lost
    # to rounding where second moments are subtracted.
    origin = x.mean(dim=0)  # (dim,)
    support = _support_shares(x - origin, y, n_class)
    moment = _second_moment(x, origin) + _second_moment(q, origin)
    added = _Linear(q.new_zeros(n_class, q.shape[1]), q.new_zeros(n_class))
    for _ in range(ROUNDS):
        batch = _batch_shares(logits, q, origin, added)
        added = _gaussians(support, batch, moment, origin)
    adapted = torch.empty_like(logits)
    for rows in _blocks(len(q)):
        adapted[rows] = added.added_to(logits[rows], q[rows])
    return adapted


def _check(logits: Tensor, q: Tensor, x: Tensor, y: Tensor) -> None:
    if len(q) != len(logits) or x.shape[1] != q.shape[1] or len(x) != len(y) or not len(x):
        raise ValueError(
            "expected logits (n, n_class), q (n, dim), x (n_support, dim), y (n_support,), got"
            f" {tuple(logits.shape)}, {tuple(q.shape)}, {tuple(x.shape)}, {tuple(y.shape)}"
        )
    if not (_is_finite(logits) and _is_finite(q) and _is_finite(x)):
        raise ValueError("expected finite logits and features, got others")


def _is_finite(values: Tensor) -> bool:
    return all(bool(torch.isfinite(values[rows]).all()) for rows in _blocks(len(values)))


def _blocks(n: int) -> Iterator[slice]:
    """Slices of at most ROWS_AT_ONCE that cover n rows."""
    for start in range(0, n, ROWS_AT_ONCE):
        yield slice(start, start + ROWS_AT_ONCE)


def _double(values: Tensor) -> Tensor:
    """In double precision, on the CPU where the device has none."""
    return where_all_works(values).double()


def _support_shares(x: Tensor, y: Tensor, n_class: int) -> _Shares:
    """Of the support: each image is its class's whole."""
    x = _double(x)
    y = y.to(x.device)
    count = x.new_zeros(n_class).index_add_(0, y, torch.ones_like(x[:, 0]))
    return _Shares(count, x.new_zeros(n_class, x.shape[1]).index_add_(0, y, x))


def _batch_shares(logits: Tensor, q: Tensor, origin: Tensor, added: _Linear) -> _Shares:
    """Of the batch: an image's share in a class is the class's probability."""
    count = _double(added.b).mul(0)
    total = _double(added.w).mul(0)
    for rows in _blocks(len(q)):
        p = added.added_to(logits[rows], q[rows]).softmax(dim=1)
        count += _double(p).sum(dim=0)
        total += _double(p.mT @ (q[rows] - origin))
    return _Shares(count, total)


def _second_moment(x: Tensor, origin: Tensor) -> Tensor:
    """The sum (dim, dim) of (x - origin)(x - origin)^T over rows."""
    moment = _double(origin.new_zeros(len(origin), len(origin)))
    for rows in _blocks(len(x)):
        part = x[rows] - origin
        moment += _double(part.mT @ part)
    return moment


def _gaussians(support: _Shares, batch: _Shares, moment: Tensor, origin: Tensor) -> _Linear:
    """The weighted logits of Gaussians of one covariance, as a linear map of features."""
    # mu_k = sum_i p_ik x_i / c_k, with c_k = sum_i p_ik, over support and batch; a class of which
    # nothing is there has the mean of all, which is nobody's guess.
    count = support.count + batch.count  # c (n_class,)
    total = support.total + batch.total
    n = count.sum()
    mean = torch.where(
        count[:, None] > SMALLEST, total / count[:, None].clamp(min=SMALLEST), total.sum(dim=0) / n
    )

    # The scatter within classes. As shares of an image sum to 1,
    #   sum_ik p_ik (x_i - mu_k)(x_i - mu_k)^T = sum_i x_i x_i^T - sum_k c_k mu_k mu_k^T.
    within = moment - (mean.mT * count) @ mean
    covariance = within / (n - len(count)).clamp(min=1)  # S (dim, dim)

    # The empirical Bayes ridge of Kubokawa and Srivastava (2008): tr(S) / n in each direction. It
    # is less, the more images there are for the dim (dim + 1) / 2 numbers of S.
    ridge = RIDGE * covariance.trace() / n
    identity = torch.eye(len(origin), dtype=mean.dtype, device=mean.device)
    ridged = covariance + ridge.clamp(min=SMALLEST) * identity

    # w_k = S^-1 mu_k, b_k = -mu_k^T S^-1 mu_k / 2. Logits matter up to what all classes share.
    w = WEIGHT * cholesky_solve(ridged, mean.mT).mT
    b = -(w * mean).sum(dim=1) / 2
    w = w - w.mean(dim=0)
    b = b - b.mean() - w @ _double(origin)
    return _Linear(w.to(origin), b.to(origin))
