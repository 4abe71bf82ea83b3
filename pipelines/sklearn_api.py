"""Heads as scikit-learn classifiers: one class per head, named after the head's own class.

    from cliad import ClipAdapterClassifier
    classifier = ClipAdapterClassifier(alpha=0.6).fit(x, y, text=text, classnames=names)
    classifier.predict(x_new)

x (n, dim) are raw or unit CLIP image features, text (n_class, dim) or (n_template, n_class, dim)
the features of the class prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from cliad.adapters import HEADS
from cliad.adapters.core.classifier import Classifier
from cliad.adapters.core.episode import Episode, Tensors
from cliad.adapters.core.fit import Run, fit
from cliad.adapters.core.head import Head, default_of
from cliad.adapters.core.ops import unit
from cliad.pipelines.fewshot.draw import rows_by_class

# What a matrix of features does not hold: heads that need any of these are not classifiers here.
NOT_IN_A_MATRIX = {"views", "pre_projection", "tower"}
# How many times as many rows are trained on at most, where rows have weights.
FINENESS = 8


# Equality and repr are scikit-learn's. Parameters are keywords, so that those of a head can follow.
@dataclass(kw_only=True, eq=False, repr=False)
class HeadClassifier(ClassifierMixin, BaseEstimator):
    """What all heads share as scikit-learn classifiers.

    The parameters are those below, and in each subclass the hyper-parameters of its `head`. After
    `fit` there are `classes_` (n_class,), sorted, `n_features_in_` and `classifier_`.
    """

    head: ClassVar[type[Head]]

    text: np.ndarray | None = field(
        default=None,
        metadata={
            "meaning": "class-text features in the order of `classnames`;"
            " None: each class is the mean of its unit features"
        },
    )
    classnames: Sequence | None = field(
        default=None,
        metadata={
            "meaning": "the labels that the rows of `text` belong to; None: the sorted labels of y"
        },
    )
    logit_scale: float = field(
        default=100.0,
        metadata={"meaning": "the multiplier of the cosines, 100 for OpenAI's weights"},
    )
    shots: int | None = field(
        default=None,
        metadata={
            "meaning": "train on at most so many rows of each class, drawn as `cliad train`"
            " draws them; None: all"
        },
    )
    seed: int = field(
        default=1,
        metadata={"meaning": "of that draw, the start and the minibatches"},
    )

    if TYPE_CHECKING:
        # Of the subclasses, which take their head's hyper-parameters too.
        def __init__(self, **parameters: Any) -> None: ...

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        text: ArrayLike | None = None,
        classnames: Sequence | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> HeadClassifier:
        """Train the head.

        Args:
            X: (n, dim) image features, finite; raw ones where the head's formula needs their
                length (the linear probe).
            y: (n,) labels of any kind that can be sorted. Where `classnames` are texts they may
                also be all of 0 to n_class - 1: the places in the sorted names, as which
                scikit-learn's meta-estimators pass labels on.
            text, classnames: as the constructor's, over which they take precedence.
            sample_weight: (n,) how often each row counts, see `repeated`.

        Returns:
            self, with `classes_` (n_class,), sorted, and `n_features_in_`.

        Raises:
            ValueError: invalid features, labels or text; HeadError, which is a ValueError, for an
                invalid hyper-parameter.
        """
        # float64, so that scikit-learn checks what the user gave; heads train in float32.
        features, targets = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(targets)
        rows = draw_rows(targets.tolist(), self.shots, int(self.seed))
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, features, ensure_non_negative=True)
            rows = repeated(rows, weight)
        names = _class_names(targets, self.classnames if classnames is None else classnames)
        given_text = self.text if text is None else text
        class_text = None
        # Without text there is no class but those of y.
        self.classes_ = np.unique(targets)
        if given_text is not None:
            # Text may name classes that y has no example of.
            order = np.argsort(names)
            self.classes_ = names[order]
            class_text = torch.from_numpy(_sorted_text(given_text, order, features.shape[1]))
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs at least 2 classes; y has one class: {self.classes_[0]!r}"
            )
        x = torch.from_numpy(features[rows].astype(np.float32))
        labels = torch.from_numpy(np.searchsorted(self.classes_, targets[rows]))
        episode = self._episode(x, labels, class_text)
        (fitted,) = fit([Run(self._make_head(), episode)])
        self.classifier_ = _in_double(fitted)
        return self

    def _episode(self, x: Tensor, y: Tensor, text: Tensor | None) -> Episode:
        """All rows x (n, dim) with labels y (n,) as support, without validation."""
        n_class = len(self.classes_)
        if text is None:
            text = mean_unit_rows(x, y, n_class)[None]  # (n_template 1, n_class, dim)
        none = torch.zeros(0, dtype=torch.long)
        return Episode(
            features=x,
            index=torch.arange(len(x)),
            y=y,
            val_index=none,
            val_y=none,
            text=text,
            logit_scale=float(self.logit_scale),
            seed=int(self.seed),
            n_class=n_class,
        )

    def _make_head(self) -> Head:
        """The head with this classifier's hyper-parameters."""
        values = {}
        for spec in fields(self.head):
            value = getattr(self, spec.name)
            # A search of scikit-learn may set numbers of numpy, whose range a head would not check.
            values[spec.name] = value.item() if isinstance(value, np.generic) else value
        return self.head(**values)

    def _logits(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        # A copy: torch warns of arrays that may not be written.
        return self.classifier_.logits(torch.from_numpy(np.array(x))).numpy()

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Logits (n, n_class) of X (n, dim).

        For two classes (n,), the second's minus the first's, as scikit-learn has it.
        """
        logits = self._logits(X)
        if len(self.classes_) == 2:
            return logits[:, 1] - logits[:, 0]
        return logits

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities (n, n_class) of X (n, dim), columns in the order of `classes_`."""
        logits = self._logits(X)
        # Less the largest logit, so that exp does not overflow.
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The likeliest labels (n,) of X (n, dim)."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]


def _class_names(y: np.ndarray, classnames: Sequence | None) -> np.ndarray:
    """The classes (n_class,) in the order of the rows of text; sorted labels where none are given.

    Raises:
        ValueError: a label of y is not among them, or one is named twice.
    """
    labels = np.unique(y)
    names = labels if classnames is None else np.asarray(classnames)
    are_places = labels.dtype.kind in "iu" and np.array_equal(labels, np.arange(len(names)))
    if are_places and names.dtype.kind in "UO" and not np.isin(labels, names).any():
        # The name that is number i of the sorted ones is class i.
        return np.argsort(np.argsort(names))
    if len(np.unique(names)) != len(names) or not np.isin(labels, names).all():
        strange = [str(label) for label in labels if label not in names][:3]
        raise ValueError(
            "expected classnames to name every label of y once;"
            f" not named: {strange}, classnames: {[*names][:5]}"
        )
    return names


def _sorted_text(text: ArrayLike, order: np.ndarray, dim: int) -> np.ndarray:
    """text (n_template, n_class, dim) float32, its classes in `order` (n_class,).

    Raises:
        ValueError: another shape, or numbers that are not finite.
    """
    n_class = len(order)
    array = np.asarray(text, np.float32)
    if array.ndim == 2:
        array = array[None]  # one template
    if array.ndim != 3 or array.shape[1:] != (n_class, dim) or not np.isfinite(array).all():
        raise ValueError(
            f"expected finite text ({n_class}, {dim}) or (n_template, {n_class}, {dim}),"
            f" a row per class; got shape {array.shape}"
        )
    return np.ascontiguousarray(array[:, order])


def repeated(rows: Sequence[int], weight: np.ndarray) -> list[int]:
    """Rows, each as often as its weight says: a head is trained on items, which have no weights.

    Whole numbers are taken as they are, so that weight 2 is the row twice and weight 0 is without
    it. Other weights share FINENESS times as many rows, by the method of largest remainders.

    Args:
        rows: those that are trained on.
        weight: (n,) not negative, of all rows.

    Raises:
        ValueError: all weights are 0.
    """
    own = weight[rows]
    total = own.sum()
    if not total > 0:
        raise ValueError("expected a sample_weight above 0 for at least one row; got none")
    counts = own
    n_most = FINENESS * len(rows)
    if total > n_most or not np.array_equal(own, np.round(own)):
        shares = own / total * n_most
        counts = np.floor(shares)
        # Of equal remainders the first rows' come first.
        order = np.argsort(counts - shares, kind="stable")
        counts[order[: n_most - int(counts.sum())]] += 1
    return np.repeat(np.asarray(rows), counts.astype(int)).tolist()


def draw_rows(y: Sequence, shots: int | None, seed: int) -> list[int]:
    """Rows of at most `shots` items of each class; all rows for None.

    Classes come in order of first appearance, drawn as `cliad train` draws its support.
    """
    if shots is None:
        return list(range(len(y)))
    if shots < 1:
        raise ValueError(f"shots is the number of rows per class, at least 1; got {shots}")
    # Python's generator, as the protocols of the field use it, see fewshot/draw.py.
    generator = random.Random(seed)
    chosen = []
    for rows in rows_by_class(y, set()).values():
        chosen += generator.sample(rows, min(shots, len(rows)))
    return chosen


def mean_unit_rows(x: Tensor, y: Tensor, n_class: int) -> Tensor:
    """(n_class, dim): the mean of each class's unit rows, in place of text.

    A class without rows has zeros.
    """
    sums = torch.zeros(n_class, x.shape[1]).index_add_(0, y, unit(x))
    counts = torch.bincount(y, minlength=n_class).clamp(min=1)  # (n_class,)
    return sums / counts[:, None]


def _in_double(fitted: Classifier) -> Classifier:
    """The classifier in double precision: scikit-learn's checks compare predictions of subsets."""
    return replace(fitted, p=_doubled(fitted.p), c=_doubled(fitted.c))


def _doubled(tensors: Tensors) -> Tensors:
    doubled = {}
    for name, value in tensors.items():
        doubled[name] = value.double() if value.is_floating_point() else value
    return doubled


# ------------------------------------------------------------------- the classes, one per head


def class_name(head: type[Head]) -> str:
    return f"{head.__name__}Classifier"


def _make_class(head: type[Head]) -> type[HeadClassifier]:
    """The classifier of a head: its hyper-parameters become keyword parameters.

    A dataclass, since scikit-learn reads the names of parameters from the signature of `__init__`.
    """
    own = [
        (spec.name, spec.type, field(default=default_of(spec), metadata=spec.metadata))
        for spec in fields(head)
    ]
    classifier = make_dataclass(
        class_name(head),
        own,
        bases=(HeadClassifier,),
        namespace={"head": head, "__module__": __name__},
        kw_only=True,
        eq=False,
        repr=False,
    )
    classifier.__doc__ = _docstring(head, classifier)
    return classifier


def _docstring(head: type[Head], classifier: type[HeadClassifier]) -> str:
    lines = [head.__doc__ or "", "", "    As a scikit-learn classifier. Parameters:", ""]
    lines += [
        f"    {spec.name}: {spec.metadata['meaning']}; default {default_of(spec)}"
        for spec in fields(classifier)
    ]
    return "\n".join(lines) + "\n"


CLASSIFIERS: dict[str, type[HeadClassifier]] = {
    class_name(head): _make_class(head)
    for head in HEADS.values()
    if not head.needs & NOT_IN_A_MATRIX
}


def __getattr__(name: str) -> type[HeadClassifier]:
    """A classifier by its name (PEP 562), for `import` and for pickle, which looks it up here."""
    if name in CLASSIFIERS:
        return CLASSIFIERS[name]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = ["CLASSIFIERS", "HeadClassifier", *CLASSIFIERS]
