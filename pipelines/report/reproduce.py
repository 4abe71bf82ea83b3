"""The section "How to reproduce": the commands that make the rows of a report."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from cliad.pipelines.experiments.spec import TRANSDUCTIVE
from cliad.pipelines.report.clean_rows import BASE_TO_NEW
from cliad.pipelines.report.elements import html_table, section
from cliad.pipelines.report.methods import show, size_of
from cliad.pipelines.report.study import Block, Study, block_of, values_of

# Options of `cliad grid` and the words of a row that they stand for, beside the data sets.
OPTIONS = {"encoder": "encoder", "prompts": "prompts", "shots": "shots", "seeds": "seed"}
# Hyper-parameters that have an option of their own; the others go through --set.
OWN_OPTION = ("alpha", "beta", "lr", "epochs", "hidden")


def reproduce(study: Study) -> str:
    """The commands that make the rows, and the ids of what they were made from."""
    commands: list[str] = []
    for block in study.blocks:
        commands += _commands(study, block)
    # Blocks that differ in their caches alone have commands in common.
    once = "\n".join(dict.fromkeys(commands))
    return section(
        "reproduce",
        "How to reproduce",
        f'<pre tabindex="0">{escape(once)}</pre>',
        _caches(study),
        _versions(study),
    )


def _caches(study: Study) -> str:
    caches = set()
    for row in study.rows:
        fingerprint = str(row["fingerprint"])
        caches.add((row["dataset"], row["encoder"], row["prompts"], fingerprint))
    lines = [list(map(escape, cache)) for cache in sorted(caches)]
    heads = ["data set", "encoder", "prompts", "fingerprint"]
    return html_table(heads, lines, n_name=4, caption="Caches")


def _versions(study: Study) -> str:
    """The versions of the libraries that the rows were made with."""
    versions = set()
    for row in study.rows:
        if row.get("versions"):
            parts = [f"{library} {version}" for library, version in row["versions"].items()]
            versions.add(", ".join(parts))
    if not versions:
        return ""
    return f"<p>Made with {escape('; '.join(sorted(versions)))}.</p>"


def _commands(study: Study, block: Block) -> Iterator[str]:
    """`cliad grid` lines that cover the rows of a block.

    There is one for each head, way of selecting, and set of hyper-parameters that were given.
    """
    groups: dict[tuple[str, str, tuple[str, ...]], list[dict]] = defaultdict(list)
    for key, rows in study.cells.items():
        for row in rows:
            # `cliad grid` gives every head the same options, so each set of names is a command.
            given = tuple(sorted(row["hyper"]))
            if key.block == block:
                groups[row["head"], row["selected_on"], given].append(row)
    for (_, _, given), rows in groups.items():
        if rows[0].get("task") == BASE_TO_NEW:
            yield from (shlex.join(_halves_command(row)) for row in rows)
        else:
            yield shlex.join(_command(rows, given))


def _halves_command(row: dict) -> list[str]:
    """The words of the command that makes a row of base-to-new; no grid does."""
    parts = ["cliad", "train", "--base-to-new", "--head", row["head"]]
    parts += ["--protocol", row["trained_by"], "--select", row["selected_on"]]
    for option in ("dataset", "encoder", "prompts", "shots", "seed"):
        parts += [f"--{option}", str(row["trained_on" if option == "dataset" else option])]
    for name, value in sorted(row["hyper"].items()):
        parts += ["--set", f"{name}={show(value)}"]
    return parts


def _command(rows: Sequence[dict], given: Iterable[str]) -> list[str]:
    """The words of a command that makes rows of one head."""
    first = rows[0]
    protocol = first["protocol"].removesuffix(TRANSDUCTIVE)
    parts = ["cliad", "grid", "--head", first["head"], "--protocol", protocol]
    parts += ["--select", first["selected_on"]]
    if protocol != first["protocol"]:
        parts.append("--transductive")
    parts += ["--dataset", _listed(rows, "trained_on")]
    if block_of(first).source:
        parts += ["--test", _listed(rows, "test_dataset")]
    for option, word in OPTIONS.items():
        parts += [f"--{option}", _listed(rows, word)]
    for name in given:
        values = sorted({row["hyper"][name] for row in rows}, key=size_of)
        text = ",".join(map(show, values))
        if name in OWN_OPTION:
            parts += [f"--{name}", text]
        else:
            parts += ["--set", f"{name}={text}"]
    return parts


def _listed(rows: Iterable[dict], word: str) -> str:
    """All values of a word."""
    return ",".join(map(str, values_of(rows, word)))
