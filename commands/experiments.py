"""Stage two: draw shots, train heads on cached features, compare many runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cliad.commands import show
from cliad.commands.options import (
    AlphaListOption,
    AlphaOption,
    BaseToNewOption,
    BetaListOption,
    BetaOption,
    CacheOption,
    ConfigOption,
    DatasetListOption,
    DatasetOption,
    DemoOutOption,
    DeviceOption,
    DrawSeedOption,
    EncoderListOption,
    EncoderOption,
    EpochsListOption,
    EpochsOption,
    GridDeviceOption,
    GridTestOption,
    HeadListOption,
    HeadOption,
    HiddenListOption,
    HiddenOption,
    JsonOption,
    LrListOption,
    LrOption,
    PromptsListOption,
    PromptsOption,
    ProtocolListOption,
    ProtocolOption,
    ReportFormatOption,
    ReportOutOption,
    ResultsArgument,
    ResultsOutOption,
    SeedListOption,
    SelectListOption,
    SelectOption,
    SetListOption,
    SetOption,
    ShotsListOption,
    ShotsOption,
    SplitFileOption,
    TrainOutOption,
    TrainSeedOption,
    TrainTestOption,
    TransductiveOption,
)
from cliad.imports import quick_imports

if TYPE_CHECKING:
    from cliad.cache.file.read import FeatureCache
    from cliad.pipelines.experiments.grid import Grid
    from cliad.pipelines.experiments.score import Result

INTERRUPTED = 130  # the exit code of a program that Ctrl-C stopped, as shells have it

# --------------------------------------------------------------- one run


def train(
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    prompts: PromptsOption = None,
    head: HeadOption = "clip-adapter",
    shots: ShotsOption = 16,
    seed: TrainSeedOption = 1,
    protocol: ProtocolOption = "coop",
    select: SelectOption = None,
    alpha: AlphaOption = None,
    beta: BetaOption = None,
    lr: LrOption = None,
    epochs: EpochsOption = None,
    hidden: HiddenOption = None,
    set_: SetOption = [],
    test: TrainTestOption = None,
    base_to_new: BaseToNewOption = False,
    transductive: TransductiveOption = False,
    cache: CacheOption = None,
    out: TrainOutOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a head on cached features and score it on the test split.

    Example: cliad train --dataset dtd --alpha 0.2 --shots 4
    """
    with quick_imports():
        from cliad.cache.folder import cache_dir
        from cliad.pipelines.experiments.base_to_new import base_to_new as run_base_to_new
        from cliad.pipelines.experiments.train import train as run_train
        from cliad.pipelines.runs.run_folder import check_out

    if transductive and (base_to_new or test):
        other = "--base-to-new" if base_to_new else "--test"
        raise typer.BadParameter(f"--transductive or {other}, not both")
    named = {"alpha": alpha, "beta": beta, "lr": lr, "epochs": epochs, "hidden": hidden}
    hyper = _hyper(named, set_)
    folder = cache_dir(cache)
    show.check_stdout()
    if base_to_new:
        # Its head knows half of the classes, so it is scored and not saved.
        (row,) = run_base_to_new(
            folder=folder,
            dataset=dataset,
            encoder=encoder,
            prompts=prompts,
            head=head,
            hyper=hyper,
            shots=shots,
            seeds=[seed],
            protocol=protocol,
            select=select,
            device=device,
            log=show.log,
            steps=show.step_lines(),
        )
        print_row = show.print_halves
    else:
        # Nothing is trained for a place that cannot be written. The name that a run is given where
        # the user gives none is known later, so that a name which nobody has stands for it.
        check_out(Path("runs", ".run-to-come") if out is None else out)
        result, features = run_train(
            folder=folder,
            dataset=dataset,
            encoder=encoder,
            prompts=prompts,
            head=head,
            hyper=hyper,
            shots=shots,
            seed=seed,
            protocol=protocol,
            select=select,
            transductive=transductive,
            device=device,
            log=show.log,
            steps=show.step_lines(),
        )
        row = _scored_and_saved(result, features, test=test, out=out, folder=folder, device=device)
        print_row = show.print_run
    if as_json:
        show.print_json(row)
    else:
        print_row(row)


def _scored_and_saved(
    result: Result,
    features: FeatureCache,
    *,
    test: str | None,
    out: Path | None,
    folder: Path,
    device: str,
) -> dict[str, Any]:
    """Save a run and return its row; with `test`, "transfer" holds its rows on other data sets."""
    from cliad.pipelines.experiments.below_zero_shot import caution, largest_class
    from cliad.pipelines.experiments.transfer import score_elsewhere
    from cliad.pipelines.runs import run_folder

    # Before the run is saved: a data set that it cannot be scored on leaves no run behind.
    transfer = None
    if test:
        names = test.split(",")
        transfer = score_elsewhere(
            result, features, names, folder=folder, device=device, log=show.log
        )
    if out is None:
        out = run_folder.folder_of(Path("runs"), result)
    # run.json holds the command as it was typed, so that it can be pasted again.
    command = shlex.join(["cliad", *sys.argv[1:]])
    if run_folder.can_save(result.classifier):
        saved = run_folder.save(result, features, out, command=command)
        row = result.row(str(saved))
    else:
        show.log(f"{result.spec.head_name} asks the text tower for each image: no run is saved")
        row = result.row()
    line = caution(row, largest_class(features))
    if line:
        show.log(line)
    return row if transfer is None else {**row, "transfer": transfer}


def _hyper(named: Mapping[str, object], settings: Sequence[str]) -> dict[str, object]:
    """Hyper-parameters by name: from the options that were typed, and from `--set`, which wins.

    What was not typed is left out: a value that is given is not searched on validation.
    """
    given = {name: value for name, value in named.items() if value is not None}
    return {**given, **_settings(settings)}


def _settings(typed: Sequence[str]) -> dict[str, str]:
    """What `--set NAME=VALUE` gave, by name."""
    settings = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes name=value; got {text}")
        # The first one would be lost without a word.
        if name.strip() in settings:
            raise typer.BadParameter(f"--set gives {name.strip()} twice; give it once")
        settings[name.strip()] = value.strip()
    return settings


# --------------------------------------------------------------- many runs


def grid(
    dataset: DatasetListOption = None,
    encoder: EncoderListOption = None,
    prompts: PromptsListOption = None,
    head: HeadListOption = None,
    shots: ShotsListOption = None,
    seeds: SeedListOption = None,
    protocol: ProtocolListOption = None,
    select: SelectListOption = None,
    alpha: AlphaListOption = None,
    beta: BetaListOption = None,
    lr: LrListOption = None,
    epochs: EpochsListOption = None,
    hidden: HiddenListOption = None,
    set_: SetListOption = [],
    test: GridTestOption = None,
    transductive: TransductiveOption = False,
    config: ConfigOption = None,
    cache: CacheOption = None,
    out: ResultsOutOption = None,
    device: GridDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train every combination of what is listed, many runs at once; a row each in a results file.

    The same command goes on where it was stopped. A head drops the lists of hyper-parameters that
    it lacks, or means something else by; the first line says so. --set HEAD.NAME=LIST is for one.

    Example: cliad grid --dataset dtd,eurosat --alpha 0:1:0.2 --shots 1,4,16 --seeds 1,2,3
    """
    from dataclasses import asdict

    from cliad.cache.folder import cache_dir

    with quick_imports():
        from cliad.pipelines.experiments.grid import grid as run_grid

    # None is a word that was not typed: it is the configuration file's, or has its default.
    words = {
        "dataset": dataset,
        "encoder": encoder,
        "prompts": prompts,
        "head": head,
        "shots": shots,
        "seeds": seeds,
        "protocol": protocol,
        "select": select,
        "alpha": alpha,
        "beta": beta,
        "lr": lr,
        "epochs": epochs,
        "hidden": hidden,
        "transductive": True if transductive else None,
        "set": _settings(set_) or None,
        "test": test,
    }
    show.check_stdout()
    with show.row_bar() as progress:
        try:
            done = run_grid(
                folder=cache_dir(cache),
                words=words,
                config=config,
                out=out,
                device=device,
                log=show.log,
                progress=progress,
                steps=show.step_lines(),
            )
        except KeyboardInterrupt:
            # Rows are written as they come, so there is nothing to save here.
            show.log(
                "stopped; finished rows are in the results file, run the same command to go on"
            )
            raise typer.Exit(INTERRUPTED) from None
    if done.caution:
        show.log(done.caution)
    if as_json:
        counts = asdict(done)
        # Said above, on stderr; scripts see it in the rows.
        del counts["caution"]
        show.print_json({**counts, "out": str(done.out)})
    else:
        _print_grid(done)


def _print_grid(done: Grid) -> None:
    """How many rows were added, how quickly, and how to see them."""
    if done.done:
        rate = done.done / done.seconds
        show.line(f"{done.done} rows in {done.seconds:.1f} s, {rate:.1f} rows/s")
    hint = f"`cliad report {done.out} --out report.html` shows them"
    show.line(f"{done.out}: {done.asked} rows of this grid; {hint}")


def report(
    results: ResultsArgument,
    out: ReportOutOption = None,
    form: ReportFormatOption = "html",
) -> None:
    """Make a page or tables of results: curves, ablations, best methods with intervals, all runs.

    Example: cliad report results.jsonl --out report.html
    """
    from cliad.pipelines.report.report import report as run_report

    show.check_stdout()
    # A page is for a browser, so it is a file; tables are for pasting, so they go to stdout.
    if out is None and form == "html":
        out = Path("report.html")
    text = run_report(results, form=form, out=out, log=show.log)
    if out is None:
        print(text, end="")
    else:
        show.line(out)


def demo(
    out: DemoOutOption = Path("cliad-demo"),
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """See it all work, offline: extract bundled data, train heads at five shot counts, draw curves.

    Example: cliad demo --out demo
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines.demo import SEEDS, SHOTS
    from cliad.pipelines.demo import demo as run_demo

    show.check_stdout()
    done = run_demo(folder=cache_dir(cache), out=out, log=show.log, device=device)
    if as_json:
        files = [str(path) for path in done.files]
        show.print_json({"zero_shot_top1": done.zero_shot, "top1": done.mean, "files": files})
        return
    zero_shot = show.percent(done.zero_shot)
    # Zero-shot sees no training image: it is the same number in every column.
    table = [["zero-shot", *[zero_shot for _ in SHOTS]]]
    for head, by_shots in done.mean.items():
        table.append([head, *[show.percent(by_shots[shots]) for shots in SHOTS]])
    seeds = ", ".join(str(seed) for seed in SEEDS)
    show.print_table(
        f"digits with encoder tiny: test accuracy, mean of seeds {seeds}",
        ["shots", *[str(shots) for shots in SHOTS]],
        table,
    )
    for path in done.files:
        show.line(f"wrote {path}")


# --------------------------------------------------------------- what there is to train on and with


def heads(
    cache: CacheOption = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the heads: what each is, what it needs from a cache, its hyper-parameters.

    Example: cliad heads
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines.heads import heads as list_heads

    found = list_heads(cache_dir(cache), dataset, encoder)
    if as_json:
        show.print_json([head.json() for head in found])
        return
    for head in found:
        needs = ", ".join(head.needs) or "image features"
        line = f"    needs: {needs}; selects on: {head.select}"
        if head.parameters is not None:
            line += f"; {head.parameters:,} parameters on {head.cache}"
        show.line(head.head)
        show.line(f"    {head.what}")
        show.line(line)
        for field in head.hyper:
            show.line(f"    {field.name} = {field.default}: {field.meaning}{field.range}")


def shots(
    split_file: SplitFileOption,
    shots: ShotsOption = 16,
    seed: DrawSeedOption = 1,
    protocol: ProtocolOption = "coop",
    as_json: JsonOption = False,
) -> None:
    """Print the images that a few-shot protocol draws; needs no cache.

    Example: cliad shots --split-file split_zhou_OxfordPets.json --shots 4 --seed 1
    """
    from cliad.pipelines.fewshot.shots import shots as draw_shots

    drawn = draw_shots(split_file, shots=shots, seed=seed, protocol=protocol)
    if as_json:
        show.print_json(drawn)
        return
    for role, items in drawn.items():
        for item in items:
            show.cells(role, item["label"], item["classname"], item["path"])
