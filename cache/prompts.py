"""Class names and templates become prompts."""

from __future__ import annotations

from collections.abc import Sequence


class PromptError(ValueError):
    """Templates, class names or descriptions that cannot be used; the message says what to do."""


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
            raise PromptError(f"template '{template}' has no single place for the class name; write it once as {{}} or {{c}}")
    return tuple(templates)


def prompts(templates: Sequence[str], classnames: Sequence[str]) -> list[list[str]]:
    """All prompts, [n_template][n_class]."""
    return [[fill(template, name) for name in classnames] for template in check_templates(templates)]
