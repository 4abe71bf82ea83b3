"""The card of a run: what it is, how good it is, how to use it, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MOST_NAMES = 100  # class names in the card; run.json has all

# Words of the result row that are fractions from 0 to 1, and what the card calls them.
FRACTIONS = {
    "top1": "accuracy",
    "inductive_top1": "accuracy, image by image",
    "zero_shot_top1": "accuracy of zero-shot CLIP",
    "top5": "top-5 accuracy",
    "mean_class": "mean accuracy over classes",
    "ece": "calibration error (ECE)",
    "ece_t": "calibration error at the temperature",
}

CHOSEN_ON = {
    "fixed": "nothing, its hyper-parameters are as given",
    "val": "few-shot validation images",
    "cv": "its own training images, each judged by a head that had not seen it",
}
FOUND_ON = {
    "val": "validation images",
    "cv": "training images that the head judging them had not seen",
}

# Characters that Markdown or HTML would act on; the texts come from a user's data.
MARKUP = str.maketrans(dict.fromkeys("<>|[]\\", " "))


def card(about: Mapping, row: Mapping) -> str:
    """The README.md of a run folder, from its run.json and its result row."""
    spec = about["spec"]
    n_class = len(about["classnames"])
    chosen_on = CHOSEN_ON[spec["selected_on"]]
    lines = [
        f"# {spec['head']} on {spec['dataset']}, {spec['shots']} images per class",
        "",
        f"A classifier for {n_class} classes: the head `{spec['head']}`, trained by cliad"
        f" on features of the frozen encoder `{about['encoder']}`.",
        "",
        *_figures(row),
        "",
        "Measured on the data set's test split, of which training saw nothing."
        f" The head was chosen on: {chosen_on}.",
        *_transductive(row),
        "",
        "    cliad predict FOLDER IMAGE...",
        "",
        "classifies images with it; the encoder's weights are not in this folder"
        " and are checked by their hash.",
        "",
        *_facts(about, row),
    ]
    return "\n".join(lines) + "\n"


def _transductive(row: Mapping) -> list[str]:
    """What figures of a transductive run are of: not of the head in the folder alone."""
    if not row.get("transductive"):
        return []
    return [
        "",
        "These figures are transductive: all test images were used at once, without labels, as if"
        " the classes came in like number. The head in this folder is the one before that, and sees"
        " one image at a time; `cliad predict --batch-adapt` adapts it to the images of a call.",
    ]


def _figures(row: Mapping) -> list[str]:
    """The table of figures, a line each; those that the run does not have are left out."""
    lines = []
    for name, text in FRACTIONS.items():
        if row.get(name) is not None:
            if row.get("transductive") and name != "inductive_top1":
                text += ", all test images at once"
            lines.append(f"| {text} | {100 * row[name]:.1f} % |")
    temperature = row.get("temperature")
    # Rows made before there was another way have no word for it.
    found_on = FOUND_ON[row.get("temperature_on") or "val"]
    if temperature == 1:
        lines.append(f"| temperature | 1: on {found_on}, no other lowered the loss |")
    elif temperature is not None:
        lines.append(f"| temperature, from {found_on} | {temperature:.3f} |")
    if not lines:
        return ["The training diverged: there are no figures."]
    return ["| figure | value |", "| --- | --- |", *lines]


def _facts(about: Mapping, row: Mapping) -> list[str]:
    """The list at the end: all that decided the numbers."""
    spec = about["spec"]
    command = _plain(about["command"]).replace("`", "")
    return [
        f"- classes: {_class_list(about['classnames'])}",
        f"- templates: {_joined(about['templates'], '; ') or 'none'}",
        f"- hyper-parameters: {_pairs(about['hyper']) or 'none'}",
        f"- protocol {row['protocol']}, seed {spec['seed']}, hash of the draw {row['index_hash']}",
        f"- encoder id {about['encoder_id']},"
        f" fingerprint of the features {about['fingerprint']}, stored as {about['dtype']}",
        f"- made by `{command or 'the Python interface'}` with {_pairs(row['versions'])}",
    ]


def _class_list(names: list[str]) -> str:
    text = _joined(names[:MOST_NAMES], ", ")
    if len(names) <= MOST_NAMES:
        return text
    return f"{text} and {len(names) - MOST_NAMES} more (run.json has all)"


def _joined(texts: Iterable[str], separator: str) -> str:
    return separator.join(_plain(text) for text in texts)


def _pairs(values: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _plain(text: str) -> str:
    """One line, nothing that Markdown or HTML would act on."""
    return " ".join(str(text).translate(MARKUP).split())
