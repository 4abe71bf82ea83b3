"""Heads as scikit-learn classifiers, and the names that `import cliad` gives."""

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import check_estimator

import cliad
from cliad.adapters import HEADS
from cliad.pipelines import sklearn_api
from cliad.pipelines.experiments.train import train
from cliad.pipelines.sklearn_api import CLASSIFIERS

# max_iter is a bound; our L-BFGS, many runs at once, counts no run's steps.
MAY_FAIL = {
    "check_non_transformer_estimators_n_iter",
    # It wants seven digits of rows in another order; heads train in single precision. See below.
    "check_sample_weight_equivalence_on_dense_data",
}

CHECKED = (
    "ZeroShotClassifier",
    "LinearProbeClassifier",
    "ClipAdapterClassifier",
    "TipAdapterClassifier",
    "GdaClassifier",
)


@pytest.mark.parametrize("name", [name for name in CHECKED if name in CLASSIFIERS])
def test_scikit_learns_own_checks_pass(name):
    found = check_estimator(CLASSIFIERS[name](), on_fail=None, on_skip=None)
    failed = {
        check["check_name"]: check["exception"] for check in found if check["status"] == "failed"
    }
    assert set(failed) <= MAY_FAIL, failed
    assert len(found) > 40


def world(n_class=4, dim=24, n=20, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_class, dim))
    y = np.arange(n * n_class) % n_class
    names = np.array(["delta", "alpha", "charlie", "bravo"])[:n_class]
    return centres[y] + 0.5 * rng.normal(size=(len(y), dim)), names[y], centres, names


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_head_is_a_classifier(name):
    x, y, text, names = world()
    classifier = CLASSIFIERS[name](text=text, classnames=names).fit(x, y)
    assert classifier.score(x, y) > 0.9 and list(classifier.classes_) == sorted(names)
    p = classifier.predict_proba(x)
    assert (
        p.shape == (80, 4)
        and np.allclose(p.sum(axis=1), 1)
        and (classifier.classes_[p.argmax(axis=1)] == classifier.predict(x)).all()
    )
    assert classifier.decision_function(x).shape == (80, 4)
    again = pickle.loads(pickle.dumps(classifier))
    assert (again.predict_proba(x) == p).all() and (
        clone(classifier).fit(x, y).predict_proba(x) == p
    ).all()
    assert name in cliad.CLASSIFIERS and getattr(cliad, name) is CLASSIFIERS[name]


def test_parameters_are_the_hyper_parameters_of_the_head():
    signature = inspect.signature(cliad.ClipAdapterClassifier)
    assert (
        signature.parameters["alpha"].default == HEADS["clip-adapter"]().alpha
        and "text" in signature.parameters
    )
    assert "weight of the adapted image feature" in cliad.ClipAdapterClassifier.__doc__
    assert repr(cliad.ClipAdapterClassifier(alpha=0.6)) == "ClipAdapterClassifier(alpha=0.6)"


def test_it_is_the_head_that_train_trains(toy):
    result, cache = train(folder=toy, shots=4, hyper={"alpha": 0.6})
    x, y = cache.split("train").rows(), np.array(cache.split("train").y)
    classifier = cliad.ClipAdapterClassifier(
        alpha=0.6, shots=4, text=cache.text, logit_scale=cache.logit_scale
    ).fit(x, y)
    test = cache.split("test")
    assert classifier.score(test.rows(), test.y) == pytest.approx(result.row()["top1"])


def test_text_is_given_to_the_constructor_or_to_fit_or_is_the_class_means():
    x, y, text, names = world()
    given = cliad.ZeroShotClassifier(text=text, classnames=names).fit(x, y).predict_proba(x)
    assert (
        cliad.ZeroShotClassifier().fit(x, y, text=text, classnames=names).predict_proba(x) == given
    ).all()
    in_order = np.argsort(names)
    assert (cliad.ZeroShotClassifier(text=text[in_order]).fit(x, y).predict_proba(x) == given).all()
    assert cliad.ZeroShotClassifier().fit(x, y).score(x, y) > 0.9  # class means


def test_classes_without_examples_are_classes_where_text_names_them():
    x, y, text, names = world()
    some = y != "bravo"
    classifier = cliad.ZeroShotClassifier(text=text, classnames=names).fit(x[some], y[some])
    assert classifier.score(x, y) > 0.9 and len(classifier.classes_) == 4


def test_it_works_in_a_search_and_a_pipeline():
    x, y, text, names = world()
    search = GridSearchCV(
        cliad.ClipAdapterClassifier(text=text, classnames=names, epochs=5),
        {"alpha": np.array([0.0, 0.6])},
        cv=3,
    ).fit(x, y)
    assert search.best_score_ > 0.9
    assert (
        cross_val_score(
            make_pipeline(Normalizer(), cliad.ClipAdapterClassifier(epochs=5, shots=4)), x, y, cv=3
        ).min()
        > 0.8
    )


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"alpha": 1.5}, "alpha .* is from 0 to 1; got 1.5"),
        ({"shots": 0}, "at least 1"),
        ({"text": np.zeros((4, 3))}, "expected finite text"),
        ({"text": np.full((4, 24), np.nan)}, "expected finite text"),
        ({"text": np.ones((3, 24))}, r"\(4, 24\)"),
        ({"classnames": ["alpha", "bravo"]}, "not named"),
    ],
)
def test_wrong_parameters_are_one_line(parameters, message):
    x, y, *_ = world()
    with pytest.raises(ValueError, match=message) as error:
        cliad.ClipAdapterClassifier(**parameters).fit(x, y)
    assert "\n" not in str(error.value)


def test_the_classifiers_that_editors_know_are_there():
    """A head that is not listed there still works; editors and type checkers do not know its name."""
    source = ast.parse(Path(cliad.__file__).read_text())
    names = set()
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and node.module == "cliad.pipelines.sklearn_api":
            names |= {alias.asname for alias in node.names}
    names.remove("CLASSIFIERS")
    assert len(names) >= 14 and names <= set(CLASSIFIERS)


def test_a_name_that_is_no_classifier_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchClassifier'"):
        sklearn_api.__getattr__("NoSuchClassifier")


def test_importing_cliad_is_light_and_names_are_found():
    code = "import cliad, sys; dir(cliad); assert not {'torch', 'sklearn', 'numpy'} & {*sys.modules}; cliad.load; assert 'open_clip' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in cliad.__all__:
        assert getattr(cliad, name).__doc__ if name != "CLASSIFIERS" else cliad.CLASSIFIERS
    for name in ("trian", "NoSuchClassifier"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; it has"):
            getattr(cliad, name)


def meta_estimators(classifier):
    """What scikit-learn wraps around a classifier; each passes labels on as numbers."""
    return {
        "voting": VotingClassifier([("a", classifier), ("b", clone(classifier))], voting="soft"),
        "calibrated": CalibratedClassifierCV(classifier, method="temperature", cv=3),
        "bagging": BaggingClassifier(classifier, n_estimators=3, random_state=0),
        "stacking": StackingClassifier([("a", classifier)], cv=3),
    }


@pytest.mark.parametrize("kind", ["voting", "calibrated", "bagging", "stacking"])
def test_meta_estimators_take_string_labels_beside_texts_in_another_order(kind):
    x, y, text, names = world()
    classifier = cliad.GdaClassifier(text=text, classnames=names)
    fitted = meta_estimators(classifier)[kind].fit(x, y)
    assert (fitted.predict(x) == classifier.fit(x, y).predict(x)).all()
    assert fitted.score(x, y) > 0.9


def test_probabilities_out_of_fold_stand_under_the_right_names():
    x, y, text, names = world()
    classifier = cliad.ZeroShotClassifier(text=text, classnames=names)
    found = cross_val_predict(classifier, x, y, method="predict_proba", cv=3)
    # zero-shot learns nothing from a fold
    np.testing.assert_allclose(found, classifier.fit(x, y).predict_proba(x), rtol=1e-12)


def test_numbers_that_do_not_stand_for_all_names_are_refused():
    """Of three numbers beside four names nobody knows which class is missing."""
    x, y, text, names = world()
    number = np.searchsorted(np.sort(names), y)
    few = number < 3
    with pytest.raises(ValueError, match="not named"):
        cliad.GdaClassifier(text=text, classnames=names).fit(x[few], number[few])


@pytest.mark.parametrize(
    "name", ["GdaClassifier", "ClipAdapterClassifier", "LinearProbeClassifier"]
)
def test_a_whole_weight_is_the_row_so_many_times(name):
    x, y, text, names = world()
    weight = np.random.default_rng(1).integers(0, 4, len(y))
    parameters = {"text": text, "classnames": names}
    if name != "LinearProbeClassifier":
        parameters["logit_scale"] = 3  # so that no item is beyond doubt
    kind = CLASSIFIERS[name]
    ours = kind(**parameters).fit(x, y, sample_weight=weight).decision_function(x)
    again = kind(**parameters).fit(np.repeat(x, weight, 0), np.repeat(y, weight))
    np.testing.assert_allclose(ours, again.decision_function(x), rtol=1e-3, atol=1e-3)
    plain = kind(**parameters).fit(x, y).decision_function(x)
    assert np.abs(ours - plain).max() > 0.01


def test_other_weights_share_rows_by_largest_remainders():
    # 8 times 3 rows by 0.5 : 0.25 : 0.25; then 24 rows by 1 : 2 : 4, of which 24/7 = 3.43, 6.86
    # and 13.71 leave two rows for the two largest remainders
    assert sklearn_api.repeated([0, 1, 2], np.array([0.5, 0.25, 0.25])).count(0) == 12
    found = sklearn_api.repeated([0, 1, 2], np.array([0.1, 0.2, 0.4]))
    assert [found.count(row) for row in range(3)] == [3, 7, 14]
    with pytest.raises(ValueError, match="above 0 for at least one row"):
        sklearn_api.repeated([0, 1], np.zeros(2))


def test_boosting_gives_weights():
    x, y, text, names = world()
    classifier = cliad.GdaClassifier(text=text, classnames=names)
    assert AdaBoostClassifier(classifier, n_estimators=3).fit(x, y).score(x, y) > 0.9
