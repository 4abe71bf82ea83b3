"""The command line: parse, call one pipeline function, render. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cliad import __version__

app = typer.Typer(
    name="cliad",
    help="Few-shot adaptation of CLIP in two stages: extract features once, then train heads on them in about a second.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Cache folder; default $CLIAD_CACHE or the user's cache folder.", metavar="DIR")
]
DatasetOption = Annotated[str | None, typer.Option(help="Data set; default the cache written last, or the bundled digits.", metavar="NAME")]
EncoderOption = Annotated[str | None, typer.Option(help="Encoder of the cache, where a data set has several.", metavar="NAME")]
PromptsOption = Annotated[str | None, typer.Option(help="Prompt set of the cache, where it has several.", metavar="NAME")]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 1."""
    try:
        app()
    except ValueError as error:
        if not type(error).__module__.startswith("cliad."):
            raise
        print(f"cliad: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _print_json(value) -> None:
    print(json_module.dumps(value, indent=1, ensure_ascii=False))


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _version(asked: bool) -> None:
    if asked:
        print(f"cliad {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


def _hyper(named: dict, settings: list[str]) -> dict:
    """Hyper-parameters from the options given and from --set name=value."""
    given = {name: value for name, value in named.items() if value is not None}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes name=value; got {setting}")
        given[name.strip()] = value.strip()
    return given


@app.command()
def train(
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    prompts: PromptsOption = None,
    head: Annotated[str, typer.Option(help="Head to train; `cliad heads` lists them.")] = "clip-adapter",
    shots: Annotated[int, typer.Option(help="Support images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the few-shot draw, the start and the minibatches.")] = 1,
    protocol: Annotated[str, typer.Option(help="Few-shot protocol: coop, tip, lp++ or clip-lora.")] = "coop",
    select: Annotated[
        str | None,
        typer.Option(help="fixed or val: hyper-parameters as given, or chosen on validation images; default the head's published way."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="CLIP-Adapter: weight of the ADAPTED image feature, 0 to 1; 0 is zero-shot. Other heads: `cliad heads`."),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="The same for the text side.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the support images.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Bottleneck width: a number, or a share of the feature width such as D/4.")] = None,
    set_: Annotated[
        list[str], typer.Option("--set", help="Any other hyper-parameter of the head; may be repeated.", metavar="NAME=VALUE")
    ] = [],
    cache: CacheOption = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/ and a name made from the run.", metavar="DIR")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train a head on cached features and score it on the test split.

    Example: cliad train --dataset dtd --alpha 0.2 --shots 4
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines import bundle
    from cliad.pipelines.train import train as run_train

    given = _hyper({"alpha": alpha, "beta": beta, "lr": lr, "epochs": epochs, "hidden": hidden}, set_)
    choices = {"head": head, "shots": shots, "seed": seed, "protocol": protocol, "select": select, "hyper": given, "device": device}
    result, features = run_train(folder=cache_dir(cache), dataset=dataset, encoder=encoder, prompts=prompts, tell=_tell, **choices)
    folder = bundle.save(result, features, out or bundle.run_folder(Path("runs"), result), command=shlex.join(["cliad", *sys.argv[1:]]))
    row = result.row(str(folder))
    _print_json(row) if json else _print_run(row)


def _print_run(row: dict) -> None:
    name = f"{row['dataset']}, {row['encoder']}, {row['shots']} shots, seed {row['seed']}"
    failed = "diverged" if row["diverged"] else _percent(row["top1"])
    rows = [
        ["zero-shot", _percent(row["zero_shot_top1"]), "", ""],
        [row["head"], failed, f"{row['train_seconds']:.2f} s", row["selected_on"]],
    ]
    _table(name, ["head", "test accuracy", "training", "selected on"], rows)
    found = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in row["found"].items())
    print(f"{found}\nrun folder: {row['run']}" if found else f"run folder: {row['run']}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results and the picture.", metavar="DIR")] = Path("cliad-demo"),
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """See it all work, offline: extract the bundled data, train heads at five shot counts, draw the curves.

    Example: cliad demo --out demo
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines.demo import SEEDS, SHOTS
    from cliad.pipelines.demo import demo as run_demo

    found = run_demo(folder=cache_dir(cache), out=out, tell=_tell, device=device)
    if json:
        return _print_json({"zero_shot_top1": found.zero_shot, "top1": found.mean, "files": [str(path) for path in found.files]})
    rows = [["zero-shot", *[_percent(found.zero_shot)] * len(SHOTS)]] + [
        [head, *map(_percent, by.values())] for head, by in found.mean.items()
    ]
    _table(f"digits with encoder tiny: test accuracy, mean of seeds {', '.join(map(str, SEEDS))}", ["shots", *map(str, SHOTS)], rows)
    print("\n".join(f"wrote {path}" for path in found.files))


@app.command()
def heads(cache: CacheOption = None, dataset: DatasetOption = None, encoder: EncoderOption = None, json: JsonOption = False) -> None:
    """List the heads: what each is, what it needs from a cache, its hyper-parameters.

    Example: cliad heads
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines.heads import heads as list_heads

    found = list_heads(cache_dir(cache), dataset, encoder)
    if json:
        return _print_json(found)
    for head in found:
        count = "" if head["parameters"] is None else f"; {head['parameters']:,} parameters on {head['on']}"
        print(
            f"{head['head']}\n    {head['what']}\n    needs: {', '.join(head['needs']) or 'image features'}; selects on: {head['select']}{count}"
        )
        for field in head["hyper"]:
            print(f"    {field['name']} = {field['default']}: {field['meaning']}{field['range']}")


@app.command()
def shots(
    split_file: Annotated[Path, typer.Option(help="The field's split file, split_zhou_NAME.json.", metavar="FILE")],
    shots: Annotated[int, typer.Option(help="Support images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 1,
    protocol: Annotated[str, typer.Option(help="Few-shot protocol: coop, tip, lp++ or clip-lora.")] = "coop",
    json: JsonOption = False,
) -> None:
    """Print the images that a few-shot protocol draws; needs no cache.

    Example: cliad shots --split-file split_zhou_OxfordPets.json --shots 4 --seed 1
    """
    from cliad.pipelines.shots import shots as draw_shots

    drawn = draw_shots(split_file, shots=shots, seed=seed, protocol=protocol)
    if json:
        return _print_json(drawn)
    for role, items in drawn.items():
        print("\n".join(f"{role}\t{item['label']}\t{item['classname']}\t{item['path']}" for item in items))


if __name__ == "__main__":
    main()
