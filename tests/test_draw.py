"""The few-shot draw beside the field's own behaviour, written here anew: nothing of `draw` is used to say what is right."""

import json
import os
import random
from pathlib import Path

import pytest

from cliad.pipelines.draw import DrawError, draw
from cliad.pipelines.shots import shots as shots_of_file

SPLITS = os.environ.get("CLIAD_SPLITS", "")
FILES = sorted(Path(SPLITS).glob("split_zhou_*.json")) if SPLITS else []


def dassl(train, val, n_shot, seed):
    """What the field's trainer does: group items by label in a dict, sample each group, the training list first.

    The module's own generator, seeded as its scripts do, stands here as a private one of the same kind.
    """
    rng = random.Random(seed)

    def few(items, n):
        by_label = {}
        for item in items:
            if item[1] not in by_label:
                by_label[item[1]] = []
            by_label[item[1]].append(item)
        chosen = []
        for items_of_label in by_label.values():
            chosen.extend(rng.sample(items_of_label, n) if len(items_of_label) >= n else items_of_label)
        return chosen

    return few(train, n_shot), few(val, min(n_shot, 4))


@pytest.mark.skipif(not FILES, reason="CLIAD_SPLITS names no folder with split_zhou_*.json files")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_real_split_files_are_drawn_as_the_field_draws_them(path, seed):
    data = json.loads(path.read_text())
    for n_shot in (1, 2, 4, 8, 16):
        train, val = dassl([tuple(i) for i in data["train"]], [tuple(i) for i in data["val"]], n_shot, seed)
        got = shots_of_file(path, shots=n_shot, seed=seed)
        assert [(i["path"], i["label"], i["classname"]) for i in got["train"]] == train
        assert [(i["path"], i["label"], i["classname"]) for i in got["val"]] == val


# 12 training items of classes 2, 0, 1 in order of first appearance, 6 validation items of classes 1, 2, 0
TRAIN, VAL = [2, 0, 2, 1, 0, 1, 2, 0, 1, 2, 0, 1], [1, 2, 0, 0, 1, 2]
GOLDEN = {
    (1, 1): ([2, 1, 8], [0, 5, 3]),
    (2, 1): ([2, 6, 1, 4, 3, 5], [4, 0, 5, 1, 2, 3]),
    (2, 3): ([2, 6, 4, 10, 11, 8], [0, 4, 5, 1, 2, 3]),
}


@pytest.mark.parametrize("asked", GOLDEN)
def test_small_lists_are_drawn_as_written_here(asked):
    n_shot, seed = asked
    drawn = draw(TRAIN, VAL, shots=n_shot, seed=seed)
    assert (drawn.train, drawn.val) == GOLDEN[asked] and drawn.val_split == "val"


def test_the_literals_are_the_fields_own():
    for (n_shot, seed), (train, val) in GOLDEN.items():
        items = [list(enumerate(labels)) for labels in (TRAIN, VAL)]
        assert tuple([row for row, _ in part] for part in dassl(*items, n_shot, seed)) == (train, val)


def test_fewer_validation_images_than_asked_are_all_taken():
    drawn = draw(TRAIN, VAL, shots=4, seed=1)
    assert sorted(drawn.val) == [0, 1, 2, 3, 4, 5] and drawn.val_per_class == {0: 2, 1: 2, 2: 2}


def test_without_a_validation_split_no_image_is_both():
    drawn = draw(TRAIN, None, shots=2, seed=1)
    assert drawn.val_split == "train" and not set(drawn.train) & set(drawn.val) and len(drawn.val) == 6


def test_too_few_training_images_name_the_class():
    with pytest.raises(DrawError, match="class 'cat' has 4 training images, 5 shots are asked; 4 shots"):
        draw(TRAIN, VAL, shots=5, seed=1, names=["dog", "emu", "cat"])


def test_other_protocols_draw_what_they_say():
    assert draw(TRAIN, VAL, shots=1, seed=1, protocol="tip").val == [0, 4, 1, 5, 2, 3]
    assert draw(TRAIN, VAL, shots=2, seed=1, protocol="lp++").train == draw(TRAIN, VAL, shots=2, seed=1).train
    rng = random.Random(1)
    val = [row for rows in ([0, 4], [1, 5], [2, 3]) for row in rng.sample(rows, 1)]
    train = [row for rows in ([0, 2, 6, 9], [1, 4, 7, 10], [3, 5, 8, 11]) for row in rng.sample(rows, 1)]
    first = draw(TRAIN, VAL, shots=1, seed=1, protocol="clip-lora")
    assert (first.train, first.val) == (train, val)
