"""What can be done with a cache file: info, verify, export (which takes a trained head, too)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from cliad.commands import show
from cliad.commands.options import (
    CacheFileArgument,
    ExportForceOption,
    ExportFormatOption,
    ExportOutOption,
    ExportSourceArgument,
    JsonOption,
    PromptsOption,
    RunModelOption,
    RunPretrainedOption,
    WithEncoderOption,
)

# Arrays that every split has; `cliad info` shows the others only.
ALWAYS_STORED = ("labels", "paths", "status", "checksums")


def info(file: CacheFileArgument = None, as_json: JsonOption = False) -> None:
    """Show what a cache file holds.

    Example: cliad info FILE.h5
    """
    from cliad.pipelines.info import info as read_info

    facts = read_info(file or _newest_cache())
    if as_json:
        show.print_json(facts)
        return
    megabytes = facts["bytes"] / 1e6
    rows = "unit rows" if facts["unit_rows"] else "raw rows"
    # A `.part` file can be looked at, too, while an extraction runs or after it was killed.
    state = "" if facts["complete"] else ", NOT complete"
    show.line(
        f"{facts['dataset']} by {facts['encoder']}, fingerprint {facts['fingerprint']}, "
        f"{megabytes:.1f} MB"
    )
    show.line(f"{facts['dim']} features as {facts['dtype']}, {rows}{state}")
    if facts["unchecked"]:
        show.line(facts["unchecked"])
    _print_splits(facts["splits"])
    _print_prompt_sets(facts["prompts"])
    versions = [f"{package} {version}" for package, version in facts["versions"].items()]
    computed = facts["computed"]
    if computed["precision"]:
        show.line(f"computed in {computed['precision']} on {computed['device']}")
    show.line(f"made with {', '.join(versions)}")
    show.line(f"recipe {json.dumps(facts['recipe'])}")


def _print_splits(splits: dict[str, dict[str, Any]]) -> None:
    """The splits of a cache file, and the images that could not be read."""
    table = []
    for name, split in splits.items():
        counts = [f"{split[word]:,}" for word in ("n", "n_class", "unreadable", "to_do")]
        arrays = [array for array in split["arrays"] if array not in ALWAYS_STORED]
        table.append([name, *counts, ", ".join(arrays)])
    columns = ["split", "rows", "classes", "unreadable", "to do", "arrays"]
    show.print_table("splits", columns, table)
    for split in splits.values():
        for path in split["unreadable_paths"]:
            show.line(f"unreadable: {path}")


def _print_prompt_sets(prompt_sets: dict[str, dict[str, Any]]) -> None:
    table = []
    for name, prompts in prompt_sets.items():
        logit_scale = f"{prompts['logit_scale']:g}"
        templates = "; ".join(prompts["templates"][:3])  # there may be eighty
        has_text = "yes" if prompts["has_text"] else "no"
        n_class = str(prompts["n_class"])
        table.append([name, prompts["text_id"], n_class, logit_scale, templates, has_text])
    columns = ["name", "text id", "classes", "logit scale", "templates", "text"]
    show.print_table("prompts", columns, table)


def verify(file: CacheFileArgument = None) -> None:
    """Check that every row of a cache file is there, finite and undamaged; exit code 1 where not.

    Example: cliad verify FILE.h5
    """
    from cliad.cache.file.check import unchecked
    from cliad.cache.file.check import verify as find_problems
    from cliad.cache.file.read import open_cache

    file = file or _newest_cache()
    problems = find_problems(file)
    for problem in problems or [f"{file} is complete and undamaged"]:
        show.line(problem)
    not_seen = None if problems else unchecked(open_cache(file, any_prompts=True))
    if not_seen:
        show.log(not_seen)
    raise typer.Exit(1 if problems else 0)


def export(
    *,
    source: ExportSourceArgument = None,
    form: ExportFormatOption,
    out: ExportOutOption,
    prompts: PromptsOption = None,
    with_encoder: WithEncoderOption = False,
    model: RunModelOption = None,
    pretrained: RunPretrainedOption = None,
    force: ExportForceOption = False,
) -> None:
    """Write a cache, or a trained head, in a form that other programs read.

    Example: cliad export FILE.h5 --format npz --out features.npz

    Example: cliad export latest --format onnx --out head.onnx
    """
    from cliad.cache.formats.exporting import export_cache
    from cliad.pipelines.runs.export import export_run, is_run

    source = source or _newest_cache()
    # A cache is a file and a run is a folder, so the source alone says which is meant.
    if is_run(source):
        if prompts:
            raise typer.BadParameter("--prompts is for a cache; a run has its own")
        written = export_run(
            source,
            format=form,
            out=out,
            with_encoder=with_encoder,
            model=model,
            pretrained=pretrained,
            force=force,
        )
    else:
        if with_encoder or model or pretrained:
            raise typer.BadParameter(
                "--with-encoder, --model and --pretrained are for a run; this is a cache file"
            )
        written = export_cache(source, format=form, out=out, prompts=prompts, force=force)
    for path in written:
        show.line(f"wrote {path}")


def _newest_cache() -> Path:
    """The cache that was written last, as `train` takes it."""
    from cliad.cache.folder import newest

    path = newest()
    show.log(f"the newest cache: {path}")
    return path
