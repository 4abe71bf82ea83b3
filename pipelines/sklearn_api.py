"""Heads as scikit-learn classifiers: one class per line of the table of heads, named after the head's own class.

    from cliad import ClipAdapterClassifier
    classifier = ClipAdapterClassifier(alpha=0.6).fit(x, y, text=text, classnames=names)
    classifier.predict(x_new)

x (n, dim) are raw or unit CLIP image features, text (n_class, dim) or (n_template, n_class, dim) the features of the class prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from cliad.adapters import HEADS
from cliad.adapters.core.classifier import Classifier
from cliad.adapters.core.episode import Episode
from cliad.adapters.core.fit import fit
from cliad.adapters.core.head import Head, default_of
from cliad.pipelines.fewshot.draw import rows_by_class

UNFIT = {"views", "pre_projection", "tokens"}  # what a matrix of features does not hold


SHARED = {  # parameter: (type, default)
    "text": ("np.ndarray | None", None),
    "classnames": ("Sequence | None", None),
    "logit_scale": ("float", 100.0),
    "shots": ("int | None", None),
    "seed": ("int", 1),
}


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """What all heads share as scikit-learn classifiers. `head` is the head's class; the parameters are its hyper-parameters and

    text: class-text features in the order of `classnames`; None: each class is the mean of its unit features.
    classnames: the labels that the rows of `text` belong to; None: the sorted labels of y.
    logit_scale: the multiplier of the cosines, 100 for OpenAI's weights.
    shots: train on at most so many rows of each class, drawn as `cliad train` draws them; None: all.
    seed: of that draw, the start and the minibatches.
    """

    head: type[Head]

    def fit(self, X, y, text=None, classnames=None):
        """Train the head.

        Args:
            X: (n, dim) image features, finite; raw ones where the head's formula needs their length (the linear probe).
            y: (n,) labels of any kind that can be sorted.
            text, classnames: as the constructor's, before which they take precedence.
        Returns:
            self, with `classes_` (n_class,), sorted, and `n_features_in_`.
        Raises:
            ValueError: features, labels, text or a hyper-parameter that cannot be; HeadError, one of them, is a hyper-parameter's.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        keep = few(y.tolist(), self.shots, int(self.seed))
        text, names = (
            (self.text if text is None else text),
            (self.classnames if classnames is None else classnames),
        )
        text, self.classes_ = _sorted_text(text, names, y, X.shape[1])
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs at least 2 classes; y has one class: {self.classes_[0]!r}"
            )
        labels = torch.from_numpy(np.searchsorted(self.classes_, y[keep]))
        x = torch.from_numpy(X[keep].astype(np.float32))
        text = (
            class_means(x, labels, len(self.classes_))[None]
            if text is None
            else torch.from_numpy(text)
        )
        none = torch.zeros(0, dtype=torch.long)
        index = torch.arange(len(x))
        episode = Episode(
            x,
            index,
            labels,
            none,
            none,
            text,
            float(self.logit_scale),
            int(self.seed),
            len(self.classes_),
        )
        (fitted,) = fit([(self._made(), episode)])
        exact = lambda tensors: {
            name: value.double() if value.is_floating_point() else value
            for name, value in tensors.items()
        }
        self.classifier_ = Classifier(
            fitted.head, exact(fitted.p), exact(fitted.c), fitted.logit_scale, fitted.diverged
        )
        return self

    def _made(self) -> Head:
        """The head with this classifier's hyper-parameters; numbers may be numpy's, as searches give them."""
        plain = lambda value: value.item() if isinstance(value, np.generic) else value
        return self.head(
            **{spec.name: plain(getattr(self, spec.name)) for spec in fields(self.head)}
        )

    def _logits(self, X) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return self.classifier_.logits(torch.from_numpy(np.array(X))).numpy()

    def decision_function(self, X):
        """Logits (n, n_class) of X (n, dim); for two classes (n,), the second's minus the first's."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X):
        """Probabilities (n, n_class) of X (n, dim), columns in the order of `classes_`."""
        logits = self._logits(X)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def predict(self, X):
        """The likeliest labels (n,) of X (n, dim)."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]


def _sorted_text(text, classnames, y: np.ndarray, dim: int) -> tuple[np.ndarray | None, np.ndarray]:
    """text (n_template, n_class, dim) float32 with its classes sorted, or None; and the classes (n_class,)."""
    found = np.unique(y)
    names = found if classnames is None else np.asarray(classnames)
    if len(np.unique(names)) != len(names) or not np.isin(found, names).all():
        strange = [str(label) for label in found if label not in names][:3]
        raise ValueError(
            f"classnames are to name every label of y once; not named: {strange}, classnames: {[*names][:5]}"
        )
    order = np.argsort(names)
    if text is None:
        return None, found
    text = np.asarray(text, np.float32)
    text = text[None] if text.ndim == 2 else text
    if text.ndim != 3 or text.shape[1:] != (len(names), dim) or not np.isfinite(text).all():
        raise ValueError(
            f"text is to be finite, ({len(names)}, {dim}) or (n_template, {len(names)}, {dim}), a row per class; however: {text.shape=}"
        )
    return np.ascontiguousarray(text[:, order]), names[order]


def few(y: Sequence, shots: int | None, seed: int) -> list[int]:
    """Rows of at most `shots` items of each class, classes in order of first appearance; all rows for None."""
    if shots is None:
        return list(range(len(y)))
    if shots < 1:
        raise ValueError(f"shots is the number of rows per class, at least 1; got {shots}")
    generator, rows = random.Random(seed), rows_by_class(y, set())
    return [
        row
        for members in rows.values()
        for row in generator.sample(members, min(shots, len(members)))
    ]


def class_means(x: torch.Tensor, y: torch.Tensor, n_class: int) -> torch.Tensor:
    """(n_class, dim): the mean of each class's unit rows, in place of text."""
    unit = torch.nn.functional.normalize(x, dim=-1)
    return (
        torch.zeros(n_class, x.shape[1]).index_add_(0, y, unit)
        / torch.bincount(y, minlength=n_class).clamp(min=1)[:, None]
    )


def _made_class(head: type[Head]) -> type[HeadClassifier]:
    """The classifier of a head: its hyper-parameters, then those that all share, as keyword parameters."""
    own: list = [
        (spec.name, spec.type, field(default=default_of(spec), kw_only=True))
        for spec in fields(head)
    ]
    own += [
        (key, kind, field(default=value, kw_only=True)) for key, (kind, value) in SHARED.items()
    ]
    meanings = "\n".join(
        f"    {spec.name}: {spec.metadata['meaning']}; default {default_of(spec)}"
        for spec in fields(head)
    )
    text = f"{head.__doc__}\n\n    As a scikit-learn classifier. Parameters:\n\n{meanings}\n{(HeadClassifier.__doc__ or '').partition('and')[2]}"
    body = {"__doc__": text, "__module__": __name__, "head": head}
    return make_dataclass(
        class_name(head), own, bases=(HeadClassifier,), namespace=body, eq=False, repr=False
    )


def class_name(head: type[Head]) -> str:
    return f"{head.__name__}Classifier"


CLASSIFIERS = {
    class_name(head): _made_class(head) for head in HEADS.values() if not head.needs & UNFIT
}
globals().update(CLASSIFIERS)
__all__ = ["CLASSIFIERS", "HeadClassifier", *CLASSIFIERS]
