"""Few-shot adaptation of CLIP in two stages: extract features once, train heads in a second.

The functions behind the commands, and every head as a scikit-learn classifier:

    cliad.extract("dtd", data="DIR")               -> Path of the cache file
    cliad.open_cache(path)                         -> FeatureCache: .split("test").rows() (n, dim), .text, .classnames, .fingerprint
    cliad.train(dataset="dtd", shots=4, hyper={"alpha": 0.2})      -> (Result, FeatureCache)
    cliad.save(result, cache, "runs/mine")         -> Path of the run folder
    cliad.grid(words={"alpha": "0:1:0.2"}, out="results.jsonl")    -> the rows of a whole grid, resumed
    cliad.load("runs/mine").predict(["photo.jpg"]) -> iterator of Prediction
    cliad.ClipAdapterClassifier(alpha=0.2).fit(x, y, text=text)    -> a scikit-learn classifier

What is asked for is imported then: `import cliad` alone brings neither torch nor scikit-learn.
"""

import importlib
from typing import TYPE_CHECKING, Any

if (
    TYPE_CHECKING
):  # for editors and type checkers; the names of `_HOME`, and the classifiers come as Any
    from cliad.cache.file.read import open_cache as open_cache
    from cliad.pipelines.experiments.grid import grid as grid
    from cliad.pipelines.experiments.train import train as train
    from cliad.pipelines.extract import extract as extract
    from cliad.pipelines.runs.predict import load as load
    from cliad.pipelines.runs.predict import predict as predict
    from cliad.pipelines.runs.run_folder import save as save
    from cliad.pipelines.sklearn_api import CLASSIFIERS as CLASSIFIERS

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
            f"module 'cliad' has no attribute '{name}'; it has {', '.join(_HOME)} and a Classifier per head"
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
