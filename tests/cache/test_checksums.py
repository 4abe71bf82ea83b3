"""No bit of a cache file changes unseen: every array and every attribute has a checksum."""

import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
from schema_1 import write_schema_1
from written import layout, rows_of, text_set, write

from cliad.cache.file.check import unchecked, verify
from cliad.cache.file.layout import CacheError, Header, SplitLayout, Views, file_list_hash
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import Writer, add_text, create

FLIPS = 60
MANY_FLIPS = 1500


def rich_cache(path):
    """A cache with every kind of array, an unreadable row, and a prompt set added later."""
    columns = {"features": (6,), "pre_projection": (5,), "tokens": (2, 6)}
    views = {"aug": Views(2, np.array([1, 4, 5, 9]), {"low": 0.5, "seed": 3, "kind": "crop"})}
    paths = [f"a/{row}.jpg" for row in range(10)]
    train = SplitLayout(paths, np.arange(10) % 3, columns, views)
    test = SplitLayout(["x", "longer"], np.array([2, 0]), columns)
    first = replace(text_set(), pre_projection=np.ones((2, 3, 4)))
    splits = {"train": train, "test": test}
    lists = {name: (split.paths, split.labels) for name, split in splits.items()}
    recipe = {"files": file_list_hash(lists), "weights": "w"}
    create(path, Header("toy", "enc", "e1", recipe, 4, versions={"a": "1"}), splits, [first])
    random = np.random.default_rng(3)
    with Writer(path) as writer:
        for split, start, stop in writer.todo():
            batch = {name: random.normal(size=(stop - start, *columns[name])) for name in columns}
            if split == "train":
                batch["views/aug"] = rows_of(layout(), start, stop)["views/aug"]
            marks = np.ones(stop - start)
            marks[-1] = 2
            writer.write(split, start, batch, marks)
        writer.finish()
    add_text(path, text_set("mine", classnames=("cat", "hound", "eel")))
    return path


def places_of(path):
    """Where the bytes of every array and attribute lie, (name, offset, size), found without cliad."""
    places = set()
    content = path.read_bytes()

    def add(name, node):
        if isinstance(node, h5py.Dataset):
            places.add((name, node.id.get_offset(), node.size * node.dtype.itemsize))
        for key, value in node.attrs.items():
            found = attribute_places(content, key, np.asarray(value).tobytes())
            assert found
            places.update(found)

    with h5py.File(path) as file:
        add("", file)
        file.visititems(add)
    return sorted(places)


def attribute_places(content, key, stored):
    """All places of attributes of one name and value: the value follows the name in the file."""
    places = []
    for match in re.finditer(re.escape(key.encode() + b"\0"), content):
        # What belongs to an attribute begins at multiples of 8 bytes.
        for start in range(-(-match.end() // 8) * 8, match.end() + 80, 8):
            if content[start : start + len(stored)] == stored:
                places.append((f"@{key}", start, len(stored)))
                break
    return places


def unseen_flips(path, n_flip):
    """Flips of single bits, the same share in each array and attribute, that `verify` misses."""
    random = np.random.default_rng(11)
    whole = path.read_bytes()
    places = places_of(path)
    unseen = []
    for number in range(n_flip):
        name, offset, size = places[number % len(places)]
        at = offset + int(random.integers(size))
        bit = int(random.integers(8))
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        lines = verify(path)
        assert not any("\n" in line for line in lines)
        if not lines:
            unseen.append((name, at - offset, bit))
    path.write_bytes(whole)
    return unseen


def test_verify_finds_a_flipped_bit_in_every_array_and_attribute(tmp_path):
    path = rich_cache(tmp_path / "a.h5")
    assert verify(path) == []
    assert unseen_flips(path, FLIPS) == []
    assert len(places_of(path)) <= FLIPS


@pytest.mark.slow
def test_verify_finds_each_of_many_flipped_bits(tmp_path):
    path = rich_cache(tmp_path / "a.h5")
    assert unseen_flips(path, MANY_FLIPS) == []


# --------------------------------------------------------------------------------------- schema 1


def test_a_file_of_schema_1_reads_as_one_of_schema_2(tmp_path):
    old = open_cache(write_schema_1(tmp_path / "old.h5"))
    new = open_cache(write(tmp_path / "new.h5"))
    assert (old.schema, new.schema) == (1, 2)
    assert old.fingerprint == new.fingerprint and old.recipe == new.recipe
    assert old.text_recipe == new.text_recipe and old.versions == {"torch": "9"}
    np.testing.assert_array_equal(old.split("train").x, new.split("train").x)
    np.testing.assert_array_equal(old.text, new.text)


def test_verify_checks_the_rows_of_schema_1_and_says_what_it_cannot_check(tmp_path):
    path = write_schema_1(tmp_path / "old.h5")
    assert verify(path) == []
    assert "have no checksum" in unchecked(open_cache(path))
    assert unchecked(open_cache(write(tmp_path / "new.h5"))) is None
    with h5py.File(path, "r+") as file:
        file["splits/train/features"][5, 0] += 1
    assert verify(path) == ["train: rows 4 to 7 are damaged (their checksum differs)"]


def test_prompts_can_be_added_to_a_file_of_schema_1(tmp_path):
    path = write_schema_1(tmp_path / "old.h5")
    add_text(path, text_set("mine", classnames=("cat", "hound", "eel")))
    mine = open_cache(path, "mine")
    assert mine.classnames == ["cat", "hound", "eel"] and mine.schema == 1
    assert verify(path) == []
    long = [f"{number} {'x' * 20}" for number in range(3000)]
    with pytest.raises(CacheError, match="an attribute has at most 60,000"):
        add_text(path, text_set("long", classnames=long))
    assert open_cache(path, "mine").prompt_sets == ["default", "mine"]
    assert [file.name for file in tmp_path.iterdir()] == ["old.h5"]


def test_class_names_of_any_number_fit_into_a_file(tmp_path):
    path = write(tmp_path / "a.h5")
    many = [f"class {number} of very many" for number in range(21_841)]
    add_text(path, text_set("many", classnames=many))
    assert open_cache(path, "many").classnames == many and verify(path) == []


# ------------------------------------------------------------------------------ what names may be


@pytest.mark.parametrize("name", ["..", "a/b", "\x1b[31m", ".hidden", "a" * 256, "a\nb"])
def test_a_name_that_could_be_a_path_or_move_the_cursor_is_refused_unwritten(tmp_path, name):
    path = write(tmp_path / "a.h5")
    before = path.read_bytes()
    with pytest.raises(CacheError, match="choose another name") as error:
        add_text(path, text_set(name))
    assert str(error.value).isprintable() and path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_prompts_with_fewer_names_than_labels_are_not_added(tmp_path):
    path = write(tmp_path / "a.h5")
    with pytest.raises(CacheError, match="label 2 in train, the new prompts have 2 class names"):
        add_text(path, text_set("two", classnames=("cat", "dog")))
