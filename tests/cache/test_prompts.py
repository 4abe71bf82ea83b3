"""Class names and templates become prompts."""

import hashlib
import json

import numpy as np
import open_clip
import pytest

from cliad.cache import prompts
from cliad.cache.classnames import ClassnamesError, read_classnames


@pytest.mark.parametrize("template", ["a photo of a {}.", "a photo of a {c}."])
def test_both_ways_of_writing_a_template(template):
    assert prompts.from_templates([template], ["sea lake", "7"]).texts == [
        ["a photo of a sea lake.", "a photo of a 7."]
    ]


@pytest.mark.parametrize(
    "templates, message",
    [(["a photo."], "no single place"), (["{} {}"], "no single place"), ([], "no templates")],
)
def test_wrong_templates_are_one_line(templates, message):
    with pytest.raises(prompts.PromptError, match=message):
        prompts.check_templates(templates)


def test_class_names_are_cleaned_as_the_field_does():
    assert prompts.clean("Apply_Eye_Makeup ") == "Apply Eye Makeup"


def test_the_seven_templates_of_the_field():
    assert prompts.template_set("imagenet7") == (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )
    assert prompts.template_set("single") == ("a photo of a {}.",)
    assert prompts.template_set("mine") is None


def test_the_eighty_templates_of_the_field():
    eighty = prompts.template_set("imagenet80")
    assert len(eighty) == 80
    assert eighty[0] == "a bad photo of a {}." and eighty[-1] == "a tattoo of the {}."
    digest = hashlib.sha256("\n".join(eighty).encode()).hexdigest()
    assert digest == "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("imagenet7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        ("imagenet80", open_clip.OPENAI_IMAGENET_TEMPLATES),
    ],
)
def test_the_ensembles_say_what_open_clips_own_say(name, theirs):
    ours = [prompts.fill(template, "cat") for template in prompts.template_set(name)]
    assert sorted(ours) == sorted(template("cat") for template in theirs)


def test_every_named_set_is_one():
    names = ("single", "imagenet7", "imagenet80")
    assert all(prompts.check_templates(prompts.template_set(name)) for name in names)


def test_the_recipe_of_templates_is_what_was_filled_in():
    made = prompts.from_templates(["a {c}.", "the {}."], ["cat", "dog"])
    assert made.texts == [["a cat.", "a dog."], ["the cat.", "the dog."]]
    assert list(made.labels) == ["a {c}.", "the {}."] and list(made.classnames) == ["cat", "dog"]
    assert made.recipe == {"templates": ["a {c}.", "the {}."], "classnames": ["cat", "dog"]}


def test_sentences_are_found_whatever_the_case_of_the_class_name(tmp_path):
    file = tmp_path / "said.json"
    file.write_text(json.dumps({"cat": ["It purrs."], "SEA_Lake": ["It is wet."]}))
    said = prompts.from_descriptions(file, ["Cat", "Sea Lake"])
    assert said.texts == [["It purrs.", "It is wet."]]
    assert list(said.classnames) == ["Cat", "Sea Lake"] and list(said.labels) == ["description 1"]
    assert said.recipe == {
        "templates": ["description 1"],
        "classnames": ["Cat", "Sea Lake"],
        "sentences": [["It purrs.", "It is wet."]],
    }


def test_missing_sentences_are_counted_with_an_example(tmp_path):
    file = tmp_path / "said.json"
    file.write_text(json.dumps({"cat": ["It purrs."], "eel": []}))
    with pytest.raises(prompts.PromptError, match=r"for 2 of 3 .* 'eel'; is 'eel' meant"):
        prompts.from_descriptions(file, ["cat", "eel", "owl"])


def test_descriptions_may_differ_in_number(tmp_path):
    file = tmp_path / "said.json"
    file.write_text(json.dumps({"Sea_Lake": ["It is wet.", "It is blue."], "river": ["It flows."]}))
    said = prompts.from_descriptions(file, ["river", "sea lake"])
    assert said.texts == [["It flows.", "It is wet."], [None, "It is blue."]]
    features = said.embed(lambda lines: np.array([[len(line), 1] for line in lines], float))
    assert (
        features.shape == (2, 2, 2)
        and features[1, 0].tolist() == [0, 0]
        and features[1, 1].tolist() == [11, 1]
    )


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "should map each class name"),
        ('{"a": "b"}', "should map each class name"),
        ("{", "is not valid JSON"),
        ('{"rivers": ["x"]}', "is 'rivers' meant"),
    ],
)
def test_wrong_descriptions_are_one_line(tmp_path, content, message):
    (tmp_path / "said.json").write_text(content)
    with pytest.raises(prompts.PromptError, match=message):
        prompts.from_descriptions(tmp_path / "said.json", ["river"])


def test_class_names_from_a_file_must_be_as_many_as_classes(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("one\ntwo\n")
    assert read_classnames(file, 2) == read_classnames(file) == ["one", "two"]
    with pytest.raises(ClassnamesError, match="has 2 class names"):
        read_classnames(file, 3)


def test_an_empty_line_among_class_names_is_an_error_and_at_the_end_is_not(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("one\ntwo\n\n \n")
    assert read_classnames(file, 2) == ["one", "two"]
    for content, line in (("one\n\ntwo\n", 2), ("\none\n", 1)):
        file.write_text(content)
        with pytest.raises(ClassnamesError, match=f"names.txt: line {line} is empty"):
            read_classnames(file, 2)


def test_class_names_that_cannot_be_read_are_one_line(tmp_path):
    file = tmp_path / "names.txt"
    with pytest.raises(ClassnamesError, match=r"there is no file .*names.txt"):
        read_classnames(file)
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(ClassnamesError, match="is not UTF-8 text"):
        read_classnames(file)
