"""Prompts: class names filled into templates, or sentences that describe each class."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliad.cache.documents import read_json
from cliad.errors import CliadError, closest

SINGLE = ("a photo of a {}.",)

# The seven templates that OpenAI's notebook on ImageNet prompts found best together.
IMAGENET7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# The 80 templates of the same notebook, one a line.
IMAGENET80_FILE = Path(__file__).parent / "imagenet_templates.txt"


class PromptError(CliadError):
    """Templates, class names or descriptions that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Prompts:
    """Prompts [n_template][n_class], None where a class has no such sentence.

    `labels` (n_template,) names each row of `texts`; `recipe` decides the text id.
    """

    classnames: Sequence[str]
    labels: Sequence[str]
    texts: Sequence[Sequence[str | None]]
    recipe: Mapping

    def embed(self, encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """Features (n_template, n_class, dim), with rows of zeros where there is no sentence.

        `encode` turns lines of text into features (n_line, dim).
        """
        # All prompts go to the encoder in one call, without the gaps.
        flat = list(itertools.chain.from_iterable(self.texts))
        lines = [text for text in flat if text is not None]
        has_text = [text is not None for text in flat]
        rows = encode(lines)
        features = np.zeros((len(flat), rows.shape[1]), np.float32)
        features[has_text] = rows
        return features.reshape(len(self.texts), len(self.classnames), -1)


# -------------------------------------------------------------------------------------- templates


def clean(classname: str) -> str:
    """A class name as the field writes it in prompts: underscores are spaces."""
    return " ".join(classname.replace("_", " ").split())


def fill(template: str, classname: str) -> str:
    """The prompt for one class; the name takes the place of `{}` or `{c}`."""
    return template.replace("{c}", "{}").replace("{}", classname)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, if each has exactly one place for the class name.

    Raises:
        PromptError: there is none, or one of them has no place or several.
    """
    if not templates:
        raise PromptError("there are no templates; give at least one, such as 'a photo of a {}.'")
    for template in templates:
        # No template contains a zero byte of its own.
        if fill(template, "\0").count("\0") != 1:
            raise PromptError(
                f"template '{template}' has no single place for the class name; "
                "write it once as {} or {c}"
            )
    return tuple(templates)


def from_templates(templates: Sequence[str], classnames: Sequence[str]) -> Prompts:
    """Every template filled with every class name.

    Raises:
        PromptError: see `check_templates`.
    """
    labels = check_templates(templates)
    names = list(classnames)
    texts = [_fill_all(template, names) for template in labels]
    return Prompts(names, labels, texts, {"templates": list(labels), "classnames": names})


def _fill_all(template: str, classnames: Sequence[str]) -> list[str]:
    return [fill(template, name) for name in classnames]


# The names of template sets that come with cliad.
TEMPLATE_SETS = ("single", "imagenet7", "imagenet80")


def template_set(name: str) -> tuple[str, ...] | None:
    """The templates of a named set; None where there is no such set.

    `single` is "a photo of a {}."; `imagenet7` and `imagenet80` are the ensembles of OpenAI's
    notebook on ImageNet prompts.
    """
    if name == "imagenet80":
        return tuple(IMAGENET80_FILE.read_text(encoding="utf-8").splitlines())
    return {"single": SINGLE, "imagenet7": IMAGENET7}.get(name)


# ----------------------------------------------------------------------------------- descriptions


def from_descriptions(file: Path, classnames: Sequence[str]) -> Prompts:
    """Prompts from a JSON file that maps each class name to a list of sentences.

    Classes may have different numbers of sentences, and the file more classes than the data set.

    Raises:
        PromptError: not such a file, or a class without a sentence.
    """
    by_name = {}
    for name, sentences in _read_descriptions(Path(file)).items():
        by_name[clean(name).lower()] = sentences
    per_class = [by_name.get(name.lower(), []) for name in classnames]
    missing = [name for name, sentences in zip(classnames, per_class, strict=True) if not sentences]
    if missing:
        near = closest(missing[0], by_name)
        hint = f"; is '{near}' meant for it?" if near else ""
        raise PromptError(
            f"{file} has no sentences for {len(missing)} of {len(classnames)} classes, "
            f"such as '{missing[0]}'{hint}"
        )
    # Sentence number i of every class makes up row i: the place of a template, without being one.
    texts = []
    labels = []
    for number in range(max(map(len, per_class))):
        texts.append([_sentence(sentences, number) for sentences in per_class])
        labels.append(f"description {number + 1}")
    names = list(classnames)
    recipe = {"templates": labels, "classnames": names, "sentences": texts}
    return Prompts(names, labels, texts, recipe)


def _sentence(sentences: Sequence[str], number: int) -> str | None:
    return sentences[number] if number < len(sentences) else None


def _read_descriptions(file: Path) -> dict[str, list[str]]:
    content = read_json(file, PromptError, "give a JSON file of descriptions")
    if not isinstance(content, dict) or not all(map(_is_list_of_texts, content.values())):
        raise PromptError(
            f"{file} should map each class name to a list of sentences, "
            "as {'cat': ['A cat has whiskers.', ...], ...}"
        )
    return content


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
