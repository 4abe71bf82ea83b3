"""Small cache files, written by the real writer."""

import numpy as np

from cliad.cache.file.layout import (
    DONE,
    Header,
    SplitLayout,
    TextSet,
    Views,
    file_list_hash,
    part_of,
)
from cliad.cache.file.write import Writer, create


def layout(n=10, dim=6):
    paths = [f"a/{i}.jpg" for i in range(n)]
    return SplitLayout(
        paths,
        np.arange(n) % 3,
        {"features": (dim,)},
        {"aug": Views(2, np.array([1, 4, 5, 9]), {"low": 0.5})},
    )


def text_set(name="default", encoder_id="e1", classnames=("cat", "dog", "eel")):
    features = np.random.default_rng(1).normal(size=(2, len(classnames), 6))
    templates = ["a {}.", "the {}."]
    recipe = {"templates": templates, "classnames": list(classnames), "weights": "t"}
    return TextSet(name, features, templates, list(classnames), recipe, encoder_id, 100.0)


def header(split, **changes):
    recipe = {"files": file_list_hash({"train": (split.paths, split.labels)}), "weights": "w"}
    return Header("toy", "enc", "e1", recipe, **({"batch": 4} | changes))


def rows_of(split, start, stop, seed=0):
    """The arrays of one batch; what a row holds depends on its number alone."""
    x = np.random.default_rng(seed).normal(size=(len(split.labels), 6)).astype(np.float16)
    covered = [row for row in split.views["aug"].rows if start <= row < stop]
    return {
        "features": x[start:stop],
        "views/aug": np.stack([x[covered] + view for view in (1, 2)]),
    }


def write(path, batches=None, **changes):
    split = layout()
    if not part_of(path).exists():
        create(path, header(split, **changes), {"train": split}, [text_set()])
    with Writer(path) as writer:
        for name, start, stop in writer.todo()[:batches]:
            writer.write(name, start, rows_of(split, start, stop), np.full(stop - start, DONE))
        return writer.finish() if not writer.todo() or batches is None else None
