"""The few-shot draw beside the field's own behaviour, written here anew: nothing of `draw` is used to say what is right."""

import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from cliad.pipelines.fewshot.draw import Draw, DrawError, draw, index_hash
from cliad.pipelines.fewshot.shots import shots as shots_of_file

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
            chosen.extend(
                rng.sample(items_of_label, n) if len(items_of_label) >= n else items_of_label
            )
        return chosen

    return few(train, n_shot), few(val, min(n_shot, 4))


@pytest.mark.skipif(not FILES, reason="CLIAD_SPLITS names no folder with split_zhou_*.json files")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_real_split_files_are_drawn_as_the_field_draws_them(path, seed):
    data = json.loads(path.read_text())
    for n_shot in (1, 2, 4, 8, 16):
        train, val = dassl(
            [tuple(i) for i in data["train"]], [tuple(i) for i in data["val"]], n_shot, seed
        )
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


def test_the_expected_draws_are_those_of_the_published_code():
    for (n_shot, seed), (train, val) in GOLDEN.items():
        items = [list(enumerate(labels)) for labels in (TRAIN, VAL)]
        assert tuple([row for row, _ in part] for part in dassl(*items, n_shot, seed)) == (
            train,
            val,
        )


def test_fewer_validation_images_than_asked_are_all_taken():
    drawn = draw(TRAIN, VAL, shots=4, seed=1)
    assert sorted(drawn.val) == [0, 1, 2, 3, 4, 5] and drawn.val_per_class == {0: 2, 1: 2, 2: 2}


def test_without_a_validation_split_no_image_is_both():
    drawn = draw(TRAIN, None, shots=2, seed=1)
    assert (
        drawn.val_split == "train" and not set(drawn.train) & set(drawn.val) and len(drawn.val) == 6
    )


def test_too_few_training_images_name_the_class():
    with pytest.raises(
        DrawError,
        match="class 'cat' has 4 training images, 5 shots were asked for; at most 4 shots",
    ):
        draw(TRAIN, VAL, shots=5, seed=1, names=["dog", "emu", "cat"])


def test_other_protocols_draw_what_they_say():
    assert draw(TRAIN, VAL, shots=1, seed=1, protocol="tip").val == [0, 4, 1, 5, 2, 3]
    assert (
        draw(TRAIN, VAL, shots=2, seed=1, protocol="lp++").train
        == draw(TRAIN, VAL, shots=2, seed=1).train
    )
    rng = random.Random(1)
    val = [row for rows in ([0, 4], [1, 5], [2, 3]) for row in rng.sample(rows, 1)]
    train = [
        row for rows in ([0, 2, 6, 9], [1, 4, 7, 10], [3, 5, 8, 11]) for row in rng.sample(rows, 1)
    ]
    first = draw(TRAIN, VAL, shots=1, seed=1, protocol="clip-lora")
    assert (first.train, first.val) == (train, val)


def shuffled(counts):
    """A list of labels with counts[label] of each, in an order that any Python makes alike."""
    labels = []
    for label, count in enumerate(counts):
        labels += [label] * count
    random.Random(7).shuffle(labels)
    return labels


# 7 classes of uneven sizes; validation has classes of fewer images than some protocols ask for
SEVEN = shuffled((23, 40, 20, 31, 37, 26, 34))
SEVEN_VAL = shuffled((9, 3, 12, 6, 20, 17, 8))
PROTOCOLS = ("coop", "tip", "lp++", "clip-lora")
SHOTS = (1, 4, 8, 16)


def test_the_synthetic_list_is_the_one_that_the_literals_were_made_for():
    assert SEVEN[:12] == [0, 5, 5, 1, 0, 6, 6, 6, 1, 4, 2, 2]
    assert list(dict.fromkeys(SEVEN)) == [0, 5, 1, 6, 4, 2, 3]
    assert list(dict.fromkeys(SEVEN_VAL)) == [5, 4, 6, 2, 0, 3, 1]


def sampled(rng, labels, taken, count):
    """`count` free rows of each class; all where there are fewer, or where count is None."""
    chosen = []
    for wanted in dict.fromkeys(labels):
        members = []
        for row, label in enumerate(labels):
            if label == wanted and row not in taken:
                members.append(row)
        enough = count is not None and len(members) >= count
        chosen += rng.sample(members, count) if enough else members
    return chosen


def drawn_by_hand(train, val, shots, seed, protocol):
    """Support and validation rows as the papers' code draws them."""
    rng = random.Random(seed)
    few = min(shots, 4)
    count = {"coop": few, "tip": None, "lp++": shots, "clip-lora": few}[protocol]
    if protocol == "clip-lora":
        validation = sampled(rng, val or train, set(), count)
        support = sampled(rng, train, set() if val else set(validation), shots)
        return support, validation
    support = sampled(rng, train, set(), shots)
    validation = sampled(rng, val or train, set() if val else set(support), count)
    return support, validation


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("val", [SEVEN_VAL, None], ids=["val", "no-val"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_draws_what_its_rule_says(protocol, val, shots):
    for seed in (1, 2, 3):
        found = draw(SEVEN, val, shots=shots, seed=seed, protocol=protocol)
        support, validation = drawn_by_hand(SEVEN, val, shots, seed, protocol)
        assert found.train == support
        assert found.val == validation
        assert found.val_split == ("val" if val else "train")
        labels = val or SEVEN
        for label in range(7):
            assert found.val_per_class[label] == sum(labels[row] == label for row in validation)


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_a_validation_split_support_and_validation_never_overlap(protocol, shots):
    for seed in range(20):
        found = draw(SEVEN, None, shots=shots, seed=seed, protocol=protocol)
        assert found.train and found.val
        assert not set(found.train) & set(found.val)
        assert len(set(found.train)) == 7 * shots
        assert len(set(found.val)) == len(found.val)


@pytest.mark.parametrize(
    "protocol, shots, count",
    [
        ("coop", 1, 1),
        ("coop", 4, 4),
        ("coop", 8, 4),
        ("coop", 16, 4),
        ("lp++", 1, 1),
        ("lp++", 4, 4),
        ("lp++", 8, 8),
        ("lp++", 16, 16),
        ("clip-lora", 1, 1),
        ("clip-lora", 4, 4),
        ("clip-lora", 8, 4),
        ("clip-lora", 16, 4),
    ],
)
def test_validation_has_so_many_images_of_each_class_as_the_protocol_says(protocol, shots, count):
    plenty = shuffled((20, 20, 20))
    found = draw(plenty, plenty, shots=shots, seed=1, protocol=protocol)
    assert found.val_per_class == {0: count, 1: count, 2: count}


@pytest.mark.parametrize(
    "protocol, val, support, validation",
    [
        ("coop", SEVEN_VAL, [25, 111, 33, 93, 55, 145, 150], [61, 49, 42, 16, 19, 43, 15]),
        ("coop", None, [25, 111, 33, 93, 55, 145, 150], [175, 105, 153, 82, 53, 149, 12]),
        ("lp++", SEVEN_VAL, [25, 111, 33, 93, 55, 145, 150], [61, 49, 42, 16, 19, 43, 15]),
        ("clip-lora", SEVEN_VAL, [175, 133, 142, 82, 53, 145, 12], [33, 67, 12, 22, 19, 43, 31]),
        ("clip-lora", None, [175, 105, 153, 82, 53, 149, 12], [25, 111, 33, 93, 55, 145, 150]),
    ],
)
def test_one_shot_draws_are_as_written_here(protocol, val, support, validation):
    found = draw(SEVEN, val, shots=1, seed=1, protocol=protocol)
    assert found.train == support
    assert found.val == validation


def test_the_whole_validation_split_is_taken_class_by_class():
    found = draw(SEVEN, SEVEN_VAL, shots=1, seed=1, protocol="tip")
    assert found.train == [25, 111, 33, 93, 55, 145, 150]
    assert found.val[:9] == [0, 10, 11, 17, 33, 36, 39, 45, 46]
    assert sorted(found.val) == list(range(75))


def test_eight_shots_are_as_written_here():
    found = draw(SEVEN, SEVEN_VAL, shots=8, seed=2)
    assert found.train[:8] == [4, 16, 205, 106, 35, 87, 84, 51]
    assert found.val[:8] == [55, 61, 11, 57, 44, 48, 52, 24]
    assert len(found.val) == 27  # four of each class, but three of the class that has no more


def test_an_empty_validation_split_is_none():
    assert draw(SEVEN, [], shots=4, seed=1) == draw(SEVEN, None, shots=4, seed=1)


@pytest.mark.parametrize("protocol, left", [("coop", 2), ("lp++", 2), ("tip", 2)])
def test_validation_takes_what_the_support_left_where_that_is_less_than_asked(protocol, left):
    few = shuffled((18, 30))
    found = draw(few, None, shots=16, seed=1, protocol=protocol)
    assert found.val_per_class[0] == left
    assert not set(found.train) & set(found.val)


def test_a_class_that_the_support_used_up_has_no_validation_images():
    found = draw(shuffled((16, 30)), None, shots=16, seed=1)
    assert found.val_per_class == {0: 0, 1: 4}


def test_validation_first_leaves_too_few_for_the_support():
    few = shuffled((18, 30))
    said = (
        "class 'cat' has 14 training images, 16 shots were asked for; at most 14 shots are possible"
    )
    with pytest.raises(DrawError, match=said):
        draw(few, None, shots=16, seed=1, protocol="clip-lora", names=["cat", "dog"])
    assert len(draw(few, few, shots=16, seed=1, protocol="clip-lora").train) == 32
    assert len(draw(few, None, shots=14, seed=1, protocol="clip-lora").train) == 28


def test_a_class_without_a_name_is_named_by_its_label():
    with pytest.raises(DrawError, match="class 1 has 3 training images, 4 shots were asked for"):
        draw([0, 0, 0, 0, 1, 1, 1], None, shots=4, seed=1, names=["only the first"])


def test_the_smallest_class_limits_the_shots_of_all():
    with pytest.raises(
        DrawError, match=r"class 0 has 4 training images, .*; at most 3 shots are possible"
    ):
        draw([0, 0, 0, 0, 1, 1, 1], None, shots=5, seed=1)


@pytest.mark.parametrize("shots", [0, -1])
def test_fewer_than_one_shot_is_refused(shots):
    with pytest.raises(DrawError, match=f"at least 1; got {shots}"):
        draw(SEVEN, None, shots=shots, seed=1)


def sha256_of_lines(*lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


PATHS = ["a.jpg", "b.jpg", "", "d.jpg"]


def test_the_index_hash_of_validation_from_the_validation_split():
    drawn = Draw(train=[3, 0], val=[0, 1], val_split="val", val_per_class={0: 1, 1: 1})
    found = index_hash(drawn, ([0, 1, 0, 1], PATHS), ([1, 0], ["v.jpg", ""]))
    assert found == "cc9cf76a1ac7f103"
    # sorted, one line an image: role:label:path, or the row number where there is no path
    lines = ("train:0:a.jpg", "train:1:d.jpg", "val:0:1", "val:1:v.jpg")
    assert found == sha256_of_lines(*lines)


def test_the_index_hash_of_validation_from_the_training_split():
    drawn = Draw(train=[3, 0], val=[1, 2], val_split="train", val_per_class={0: 1, 1: 1})
    found = index_hash(drawn, ([0, 1, 0, 1], PATHS), None)
    assert found == "5f95b0ba91612747"
    # the role stands in a line, not the split that the image is of
    lines = ("train:0:a.jpg", "train:1:d.jpg", "val:0:2", "val:1:b.jpg")
    assert found == sha256_of_lines(*lines)


def test_the_index_hash_does_not_depend_on_the_order_drawn():
    of = ([0, 1, 0, 1], PATHS)
    one = Draw([0, 3], [1, 2], "train", {})
    turned = Draw([3, 0], [2, 1], "train", {})
    swapped = Draw([1, 2], [0, 3], "train", {})
    assert index_hash(one, of, None) == index_hash(turned, of, None)
    assert index_hash(one, of, None) != index_hash(swapped, of, None)


@pytest.mark.parametrize("with_val", [True, False])
def test_a_split_file_is_drawn_by_the_same_rule(tmp_path, with_val):
    splits = {"train": [[f"t{row}.jpg", y, f"class {y}"] for row, y in enumerate(SEVEN)]}
    if with_val:
        splits["val"] = [[f"v{row}.jpg", y, f"class {y}"] for row, y in enumerate(SEVEN_VAL)]
    file = tmp_path / "split_zhou_Seven.json"
    file.write_text(json.dumps(splits))
    for protocol in PROTOCOLS:
        found = shots_of_file(file, shots=8, seed=2, protocol=protocol)
        val = SEVEN_VAL if with_val else None
        support, validation = drawn_by_hand(SEVEN, val, 8, 2, protocol)
        letter = "v" if with_val else "t"
        assert [item["path"] for item in found["train"]] == [f"t{row}.jpg" for row in support]
        expected = [f"{letter}{row}.jpg" for row in validation]
        assert [item["path"] for item in found["val"]] == expected
        first = found["train"][0]
        assert first["classname"] == f"class {first['label']}" == f"class {SEVEN[support[0]]}"
