"""Class names and templates become prompts."""

import json

import numpy as np
import pytest

from cliad.cache import prompts


@pytest.mark.parametrize("template", ["a photo of a {}.", "a photo of a {c}."])
def test_both_ways_of_writing_a_template(template):
    assert prompts.from_templates([template], ["sea lake", "7"]).texts == [["a photo of a sea lake.", "a photo of a 7."]]


@pytest.mark.parametrize("templates, message", [(["a photo."], "no single place"), (["{} {}"], "no single place"), ([], "no templates")])
def test_wrong_templates_are_one_line(templates, message):
    with pytest.raises(prompts.PromptError, match=message):
        prompts.check_templates(templates)


def test_class_names_are_cleaned_as_the_field_does():
    assert prompts.clean("Apply_Eye_Makeup ") == "Apply Eye Makeup"


def test_the_ensembles_of_the_field():
    seven, eighty = (prompts.check_templates(prompts.template_set(name)) for name in ("imagenet7", "imagenet80"))
    assert len(seven) == 7 and len(set(eighty)) == 80 and set(seven) <= set(eighty)
    assert prompts.template_set("mine") is None


def test_descriptions_may_differ_in_number(tmp_path):
    file = tmp_path / "said.json"
    file.write_text(json.dumps({"Sea_Lake": ["It is wet.", "It is blue."], "river": ["It flows."]}))
    said = prompts.from_descriptions(file, ["river", "sea lake"])
    assert said.texts == [["It flows.", "It is wet."], [None, "It is blue."]]
    features = said.embed(lambda lines: np.array([[len(line), 1] for line in lines], float))
    assert features.shape == (2, 2, 2) and features[1, 0].tolist() == [0, 0] and features[1, 1].tolist() == [11, 1]


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "should map each class name"),
        ('{"a": "b"}', "should map each class name"),
        ("{", "cannot read"),
        ('{"rivers": ["x"]}', "is 'rivers' meant"),
    ],
)
def test_wrong_descriptions_are_one_line(tmp_path, content, message):
    (tmp_path / "said.json").write_text(content)
    with pytest.raises(prompts.PromptError, match=message):
        prompts.from_descriptions(tmp_path / "said.json", ["river"])


def test_class_names_from_a_file_must_be_as_many_as_classes(tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert prompts.read_classnames(tmp_path / "names.txt", 2) == ["one", "two"]
    with pytest.raises(prompts.PromptError, match="has 2 class names"):
        prompts.read_classnames(tmp_path / "names.txt", 3)
    with pytest.raises(prompts.PromptError, match="cannot read"):
        prompts.read_templates(tmp_path / "gone.txt")
