"""Few-shot adaptation of CLIP in two stages: extract features once, train heads in a second.

The functions behind the commands, and every head as a scikit-learn classifier:

    cliad.extract("dtd", data="DIR")       -> Path of the cache file
    cliad.open_cache(path)                 -> FeatureCache: .split("test").rows() (n, dim), .text
    cliad.train(dataset="dtd", shots=4, hyper={"alpha": 0.2})     -> (Result, FeatureCache)
    cliad.save(result, cache, "runs/mine") -> Path of the run folder
    cliad.grid(words={"alpha": "0:1:0.2"}, out="results.jsonl")   -> a whole grid, resumed
    cliad.load("runs/mine").predict(["photo.jpg"])                -> iterator of Prediction
    cliad.ClipAdapterClassifier(alpha=0.2).fit(x, y, text=text)   -> a scikit-learn classifier

Each name is imported when it is first used: `import cliad` brings neither torch nor scikit-learn.
"""

from __future__ import annotations

import importlib

# Checkers know it by its name. To import typing takes long enough for a Ctrl-C to come between.
TYPE_CHECKING = False
# For editors and type checkers: the names of `_HOME`, and the classifiers. One that is not listed
# comes as Any.
if TYPE_CHECKING:
    from typing import Any

    from cliad.cache.file.read import open_cache as open_cache
    from cliad.pipelines.experiments.grid import grid as grid
    from cliad.pipelines.experiments.train import train as train
    from cliad.pipelines.extract import extract as extract
    from cliad.pipelines.runs.predict import load as load
    from cliad.pipelines.runs.predict import predict as predict
    from cliad.pipelines.runs.run_folder import save as save
    from cliad.pipelines.sklearn_api import CLASSIFIERS as CLASSIFIERS
    from cliad.pipelines.sklearn_api import ApeClassifier as ApeClassifier
    from cliad.pipelines.sklearn_api import ClapClassifier as ClapClassifier
    from cliad.pipelines.sklearn_api import ClipAdapterClassifier as ClipAdapterClassifier
    from cliad.pipelines.sklearn_api import (
        CrossModalAdapterClassifier as CrossModalAdapterClassifier,
    )
    from cliad.pipelines.sklearn_api import CrossModalClassifier as CrossModalClassifier
    from cliad.pipelines.sklearn_api import GdaClassifier as GdaClassifier
    from cliad.pipelines.sklearn_api import LinearProbeClassifier as LinearProbeClassifier
    from cliad.pipelines.sklearn_api import LpPlusPlusClassifier as LpPlusPlusClassifier
    from cliad.pipelines.sklearn_api import MetaAdapterClassifier as MetaAdapterClassifier
    from cliad.pipelines.sklearn_api import OffsetLrClassifier as OffsetLrClassifier
    from cliad.pipelines.sklearn_api import PrototypeClassifier as PrototypeClassifier
    from cliad.pipelines.sklearn_api import RegLinearClassifier as RegLinearClassifier
    from cliad.pipelines.sklearn_api import TaskResClassifier as TaskResClassifier
    from cliad.pipelines.sklearn_api import TextRidgeClassifier as TextRidgeClassifier
    from cliad.pipelines.sklearn_api import TipAdapterClassifier as TipAdapterClassifier
    from cliad.pipelines.sklearn_api import TipAdapterFClassifier as TipAdapterFClassifier
    from cliad.pipelines.sklearn_api import WhitenedLrClassifier as WhitenedLrClassifier
    from cliad.pipelines.sklearn_api import ZeroShotClassifier as ZeroShotClassifier
    from cliad.pipelines.sklearn_api import ZsLpClassifier as ZsLpClassifier

__version__ = "0.1.0"

_HOME = {
    "extract": "cliad.pipelines.extract",
    "open_cache": "cliad.cache.file.read",
    "train": "cliad.pipelines.experiments.train",
    "save": "cliad.pipelines.runs.run_folder",
    "grid": "cliad.pipelines.experiments.grid",
    "load": "cliad.pipelines.runs.predict",
    "predict": "cliad.pipelines.runs.predict",
}
_CLASSIFIERS = "cliad.pipelines.sklearn_api"

__all__ = [*_HOME, "CLASSIFIERS"]


def __getattr__(name: str) -> Any:
    """A public name, from its module (PEP 562)."""
    if name not in _HOME and not name.endswith("Classifier") and name != "CLASSIFIERS":
        raise AttributeError(
            f"module 'cliad' has no attribute '{name}';"
            f" it has {', '.join(_HOME)} and a Classifier per head"
        )
    module = importlib.import_module(_HOME.get(name, _CLASSIFIERS))
    try:
        return getattr(module, name)
    except AttributeError:
        raise AttributeError(
            f"module 'cliad' has no attribute '{name}'; it has {', '.join(module.CLASSIFIERS)}"
        ) from None


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
