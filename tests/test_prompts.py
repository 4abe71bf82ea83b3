"""Class names and templates become prompts."""

import pytest

from cliad.cache import prompts


@pytest.mark.parametrize("template", ["a photo of a {}.", "a photo of a {c}."])
def test_both_ways_of_writing_a_template(template):
    assert prompts.prompts([template], ["sea lake", "7"]) == [["a photo of a sea lake.", "a photo of a 7."]]


@pytest.mark.parametrize("templates, message", [(["a photo."], "no single place"), (["{} {}"], "no single place"), ([], "no templates")])
def test_wrong_templates_are_one_line(templates, message):
    with pytest.raises(prompts.PromptError, match=message):
        prompts.check_templates(templates)


def test_class_names_are_cleaned_as_the_field_does():
    assert prompts.clean("Apply_Eye_Makeup ") == "Apply Eye Makeup"
