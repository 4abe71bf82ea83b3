"""The card of a run: what it is, how good, how to use it, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = 100  # class names in the card


def card(about: Mapping, row: Mapping) -> str:
    """The README.md of a run folder, from its run.json and its result row."""
    spec, names = about["spec"], about["classnames"]
    more = f" and {len(names) - SHOWN} more (run.json has all)" if len(names) > SHOWN else ""
    lines = [
        f"# {spec['head']} on {spec['dataset']}, {spec['shots']} images per class",
        "",
        f"A classifier for {len(names)} classes: a `{spec['head']}` head trained by cliad on features of the frozen encoder `{about['encoder']}`.",
        "",
        *_figures(row),
        "",
        "Measured on the data set's test split, of which training saw nothing. The head was chosen on: "
        f"{'few-shot validation images' if spec['selected_on'] == 'val' else 'nothing, its hyper-parameters are as given'}.",
        "",
        "    cliad predict FOLDER IMAGE...",
        "",
        "classifies images with it; the encoder's weights are not in this folder and are checked by their hash.",
        "",
        f"- classes: {', '.join(_plain(name) for name in names[:SHOWN])}{more}",
        f"- templates: {'; '.join(_plain(text) for text in about['templates']) or 'none'}",
        f"- hyper-parameters: {', '.join(f'{name} {value}' for name, value in about['hyper'].items()) or 'none'}",
        f"- protocol {spec['protocol']}, seed {spec['seed']}, hash of the draw {row['index_hash']}",
        f"- encoder id {about['encoder_id']}, fingerprint of the features {about['fingerprint']}, stored as {about['dtype']}",
        f"- made by `{_plain(about['command']).replace('`', '') or 'the Python interface'}`"
        f" with {', '.join(f'{name} {version}' for name, version in row['versions'].items())}",
    ]
    return "\n".join(lines) + "\n"


def _figures(row: Mapping) -> list[str]:
    shown = {
        "top1": "accuracy",
        "zero_shot_top1": "accuracy of zero-shot CLIP",
        "top5": "top-5 accuracy",
    }
    shown |= {
        "mean_class": "mean accuracy over classes",
        "ece": "calibration error (ECE)",
        "ece_t": "calibration error at the temperature",
    }
    lines = [
        f"| {text} | {100 * row[name]:.1f} % |"
        for name, text in shown.items()
        if row.get(name) is not None
    ]
    if row.get("temperature") is not None:
        lines.append(f"| temperature | {row['temperature']:.3f} |")
    return (
        ["| figure | value |", "| --- | --- |", *lines]
        if lines
        else ["The training diverged: there are no figures."]
    )


def _plain(text: str) -> str:
    """One line, nothing that Markdown or HTML would act on."""
    return " ".join(str(text).translate({ord(mark): " " for mark in "<>|[]\\"}).split())
