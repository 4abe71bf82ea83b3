"""Small cache files, written by the real writer."""

import numpy as np

from cliad.cache import store


def layout(n=10, dim=6):
    paths = [f"a/{i}.jpg" for i in range(n)]
    return store.SplitLayout(paths, np.arange(n) % 3, {"features": (dim,)}, {"aug": store.Views(2, np.array([1, 4, 5, 9]), {"low": 0.5})})


def text_set(name="default", encoder_id="e1", classnames=("cat", "dog", "eel")):
    features = np.random.default_rng(1).normal(size=(2, len(classnames), 6))
    templates = ["a {}.", "the {}."]
    recipe = {"templates": templates, "classnames": list(classnames), "weights": "t"}
    return store.TextSet(name, features, templates, list(classnames), recipe, encoder_id, 100.0)


def header(split, **changes):
    recipe = {"files": store.file_list_hash({"train": (split.paths, split.labels)}), "weights": "w"}
    return store.Header("toy", "enc", "e1", recipe, **({"batch": 4} | changes))


def rows_of(split, start, stop, seed=0):
    """The arrays of one batch; what a row holds depends on its number alone."""
    x = np.random.default_rng(seed).normal(size=(len(split.labels), 6)).astype(np.float16)
    covered = [row for row in split.views["aug"].rows if start <= row < stop]
    return {"features": x[start:stop], "views/aug": np.stack([x[covered] + view for view in (1, 2)])}


def write(path, batches=None, **changes):
    split = layout()
    if not store.part_of(path).exists():
        store.create(path, header(split, **changes), {"train": split}, [text_set()])
    with store.Writer(path) as writer:
        for name, start, stop in writer.todo()[:batches]:
            writer.write(name, start, rows_of(split, start, stop), np.full(stop - start, store.DONE))
        return writer.finish() if not writer.todo() or batches is None else None
