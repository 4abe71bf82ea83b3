"""Class names and templates become prompts; sentences that describe classes are prompts already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IMAGENET7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
from cliad.errors import CliadError, closest

TEMPLATE_SETS = ("single", "imagenet7", "imagenet80")


class PromptError(CliadError):
    """Templates, class names or descriptions that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Prompts:
    """Prompts [n_template][n_class], None where a class has no such sentence; `labels` names each row, `recipe` decides the text id."""

    classnames: Sequence[str]
    labels: Sequence[str]
    texts: Sequence[Sequence[str | None]]
    recipe: Mapping

    def embed(self, encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """Features (n_template, n_class, dim) by an encoder of lines, (n, dim); rows of zeros where there is no sentence."""
        flat = [text for row in self.texts for text in row]
        rows = encode([text for text in flat if text is not None])
        features = np.zeros((len(flat), rows.shape[1]), np.float32)
        features[[text is not None for text in flat]] = rows
        return features.reshape(len(self.texts), len(self.classnames), -1)


def clean(classname: str) -> str:
    """A class name as the field writes it in prompts: underscores are spaces."""
    return " ".join(classname.replace("_", " ").split())


def fill(template: str, classname: str) -> str:
    """The prompt for one class; the name stands at `{}` or `{c}`."""
    return template.replace("{c}", "{}").replace("{}", classname)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, if each has exactly one place for the class name.

    Raises:
        PromptError: there is none, or one of them has no place or several.
    """
    if not templates:
        raise PromptError("there are no templates; give at least one, such as 'a photo of a {}.'")
    for template in templates:
        if fill(template, "\0").count("\0") != 1:
            raise PromptError(
                f"template '{template}' has no single place for the class name; write it once as {{}} or {{c}}"
            )
    return tuple(templates)


def from_templates(templates: Sequence[str], classnames: Sequence[str]) -> Prompts:
    """Every template filled with every class name."""
    templates, names = check_templates(templates), list(classnames)
    texts = [[fill(template, name) for name in names] for template in templates]
    return Prompts(names, templates, texts, {"templates": list(templates), "classnames": names})


def template_set(name: str) -> tuple[str, ...] | None:
    """The templates of a named set, None where the name is none of TEMPLATE_SETS.

    `single` is "a photo of a {}."; `imagenet7` and `imagenet80` are the ensembles of OpenAI's notebook on ImageNet prompts.
    """
    if name == "imagenet80":
        return tuple(
            (Path(__file__).parent / "imagenet_templates.txt")
            .read_text(encoding="utf-8")
            .splitlines()
        )
    return {"single": ("a photo of a {}.",), "imagenet7": IMAGENET7}.get(name)


def read_templates(file: Path) -> tuple[str, ...]:
    """Templates from a text file, one a line."""
    return check_templates(_lines(file, "templates"))


def _lines(file: Path, what: str) -> list[str]:
    try:
        return [
            line.strip()
            for line in Path(file).read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"cannot read {what} from {file}: {getattr(error, 'strerror', None) or error}"
        ) from None


def from_descriptions(file: Path, classnames: Sequence[str]) -> Prompts:
    """Prompts from a JSON file that maps a class name to a list of sentences; classes may have different numbers of them.

    Raises:
        PromptError: not such a file, or a class without a sentence.
    """
    by_name = {
        clean(name).lower(): sentences for name, sentences in _read_descriptions(Path(file)).items()
    }
    found = [by_name.get(name.lower(), ()) for name in classnames]
    if missing := [
        name for name, sentences in zip(classnames, found, strict=True) if not sentences
    ]:
        near = closest(missing[0], by_name)
        hint = f"; is '{near}' meant for it?" if near else ""
        raise PromptError(
            f"{file} has no sentences for {len(missing)} of {len(classnames)} classes, such as '{missing[0]}'{hint}"
        )
    count = max(map(len, found))
    texts = [
        [sentences[i] if i < len(sentences) else None for sentences in found] for i in range(count)
    ]
    labels = [f"description {i + 1}" for i in range(count)]
    return Prompts(
        list(classnames),
        labels,
        texts,
        {"templates": labels, "classnames": list(classnames), "sentences": texts},
    )


def _read_descriptions(file: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"cannot read descriptions from {file}: {str(error)[:80]}") from None
    if not isinstance(content, dict) or not all(
        isinstance(s, list) and all(isinstance(x, str) for x in s) for s in content.values()
    ):
        raise PromptError(
            f"{file} should map each class name to a list of sentences, as {{'cat': ['A cat has whiskers.', ...], ...}}"
        )
    return content
