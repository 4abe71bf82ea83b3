"""Data sets: the bundled one, prompts, odd images."""

import pytest

from cliad.cache import prompts
from cliad.cache.datasets import DATASETS, find_dataset
from cliad.cache.datasets.base import DatasetError


def test_digits_is_what_its_card_says():
    dataset = find_dataset("digits")
    listing = dataset.read(None, "field")
    assert {name: len(rows) for name, rows in listing.splits.items()} == dataset.counts
    paths = [path for rows in listing.splits.values() for path, _ in rows]
    assert len(set(paths)) == len(paths) == 1797 and len(listing.classnames) == dataset.n_class
    image = listing.open(paths[0])
    assert image.mode == "RGB" and image.size == (8, 8) and image.getextrema()[0][1] > 200


def test_a_digit_class_is_cut_in_writing_order():
    splits = find_dataset("digits").read(None, "field").splits
    threes = {name: [int(path) for path, label in rows if label == 3] for name, rows in splits.items()}
    assert max(threes["train"]) < min(threes["val"]) and max(threes["val"]) < min(threes["test"])


def test_an_unknown_data_set_is_one_line_with_the_nearest():
    with pytest.raises(DatasetError, match=r"did you mean 'digits'.*folder:PATH"):
        find_dataset("Digit")


def test_every_data_set_has_templates_with_a_place_for_the_name():
    assert all(prompts.check_templates(dataset.templates) for dataset in DATASETS.values())


@pytest.mark.parametrize("template", ["a photo of a {}.", "a photo of a {c}."])
def test_both_ways_of_writing_a_template(template):
    assert prompts.prompts([template], ["sea lake", "7"]) == [["a photo of a sea lake.", "a photo of a 7."]]


@pytest.mark.parametrize("templates, message", [(["a photo."], "no single place"), (["{} {}"], "no single place"), ([], "no templates")])
def test_wrong_templates_are_one_line(templates, message):
    with pytest.raises(prompts.PromptError, match=message):
        prompts.check_templates(templates)


def test_class_names_are_cleaned_as_the_field_does():
    assert prompts.clean("Apply_Eye_Makeup ") == "Apply Eye Makeup"
