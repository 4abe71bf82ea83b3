"""The command line: parse, call one pipeline function, render. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import ctypes
import json as json_module
import os
import shlex
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from cliad import __version__
from cliad.errors import CliadError


def set_up_process() -> None:
    """Two settings that make the CPU faster for what cliad does; they belong to a process, so the library leaves them alone.

    Threads that spin for long while they wait for each other make a busy machine ten times slower (read when torch is loaded).
    glibc gives large blocks back to the system when they are freed, and each comes back page by page: a fifth of an encoder's time.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
set_up_process()

app = typer.Typer(
    name="cliad",
    help="Few-shot adaptation of CLIP in two stages: extract features once, then train heads on them in about a second.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Cache folder; default $CLIAD_CACHE or the user's cache folder.",
        metavar="DIR",
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="Data set; default the cache written last, or the bundled digits.", metavar="NAME"
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(help="Encoder of the cache, where a data set has several.", metavar="NAME"),
]
PromptsOption = Annotated[
    str | None, typer.Option(help="Prompt set of the cache, where it has several.", metavar="NAME")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Encoder, where it is not the one that the run names; it is checked.", metavar="NAME"
    ),
]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        help="Its weights: a tag of open_clip such as openai, or a file.", metavar="TAG|FILE"
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 1."""
    try:
        app()
    except CliadError as error:
        print(f"cliad: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _log(message: str) -> None:
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
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
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
def extract(
    dataset: Annotated[
        str,
        typer.Option(
            help="Data set: a name of `cliad datasets`, or folder:PATH, csv:FILE, wds:PATTERN.",
            metavar="NAME",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Encoder: tiny, a model of open_clip such as ViT-B-32, or hf-hub:OWNER/NAME; default tiny for digits, ViT-B-32 for all else."
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights: a tag of open_clip such as openai, or a file.", metavar="TAG|FILE"
        ),
    ] = None,
    quick_gelu: Annotated[
        bool | None,
        typer.Option(
            "--quick-gelu/--no-quick-gelu",
            help="The activation of a weights file that does not say it.",
        ),
    ] = None,
    squeeze: Annotated[
        bool,
        typer.Option(
            "--squeeze", help="Resize to a square without keeping proportions, as CoOp's code does."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the data sets; default $CLIAD_DATA.", metavar="DIR"),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="field: the literature's split files; official: the data set's own splits."
        ),
    ] = "field",
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Name of the prompt set; imagenet7 and imagenet80 are known templates. Default: the data set's own, as default.",
            metavar="NAME",
        ),
    ] = None,
    template: Annotated[
        list[str],
        typer.Option(
            help="A template with {} for the class name; may be repeated.", metavar="TEXT"
        ),
    ] = [],
    descriptions: Annotated[
        Path | None,
        typer.Option(help="JSON file: class name -> list of sentences.", metavar="FILE"),
    ] = None,
    classnames: Annotated[
        Path | None, typer.Option(help="Other class names, one a line.", metavar="FILE")
    ] = None,
    views: Annotated[
        int,
        typer.Option(help="Augmented crops of each training image to store beside the plain view."),
    ] = 0,
    views_scale: Annotated[
        str,
        typer.Option(
            help="Share of the image area that a crop covers: 0.5:1 as Tip-Adapter, 0.08:1 as CoOp.",
            metavar="LOW:HIGH",
        ),
    ] = "0.5:1",
    views_seed: Annotated[int, typer.Option(help="Seed of the crops.")] = 1,
    views_for: Annotated[
        str | None,
        typer.Option(
            help="Only for images that these draws use, such as coop:16:1,2,3.",
            metavar="PROTOCOL:SHOTS:SEEDS",
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Store the mirrored plain view of training images too.")
    ] = False,
    pre_projection: Annotated[
        bool,
        typer.Option("--pre-projection", help="Store features before the last projection too."),
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Store projected patch tokens too.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="How features are stored: float16 or float32.")
    ] = "float16",
    batch: Annotated[
        int | None, typer.Option(help="Images per encoder call; found when not given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read images; default one per core.")
    ] = None,
    no_download: Annotated[
        bool, typer.Option("--no-download", help="Do not fetch what is missing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Extract anew what is there already.")
    ] = False,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run the frozen encoders once over a data set and write image and class-text features to a cache file.

    Example: cliad extract --dataset dtd --model ViT-B-32 --pretrained openai --data DIR
    """
    from cliad.cache.extract.choices import EncoderChoice, Extras, PromptChoice
    from cliad.cache.folder import cache_dir
    from cliad.cache.views import parse_scale
    from cliad.pipelines.extract import extract as run_extract

    choices = {
        "encoder": EncoderChoice(model, pretrained, quick_gelu, squeeze),
        "prompt_set": PromptChoice(prompts, template, descriptions, classnames),
    }
    choices["extras"] = Extras(
        views, parse_scale(views_scale), views_seed, flip, views_for, pre_projection, tokens
    )
    choices |= {
        "data": data,
        "split": split,
        "dtype": dtype,
        "batch": batch,
        "workers": workers,
        "device": device,
        "fetch": not no_download,
    }
    with _bar() as progress, _fetch_bar() as fetching:
        path = run_extract(
            dataset,
            cache_folder=cache_dir(cache),
            force=force,
            log=_log,
            progress=progress,
            fetching=fetching,
            **choices,
        )
    print(path)


@contextmanager
def _bar(what: str = "images", waits: bool = True):
    """A progress bar on stderr: done, rate, time left; for images also the share of the time spent waiting for them."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = [
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.3g} " + f"{what}/s"),
        TimeRemainingColumn(),
    ]
    columns += [TextColumn("waited for data {task.fields[waiting]:.0%}")] if waits else []
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None, rate=0, waiting=0)
        more = lambda state: {"waiting": state.waiting} if waits else {}
        yield lambda state: bar.update(
            task, completed=state.done, total=state.total, rate=state.rate, **more(state)
        )


@contextmanager
def _fetch_bar():
    """A progress bar on stderr for downloads: bytes, rate, time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        tasks = {}

        def show(state):
            if state.file not in tasks:
                tasks[state.file] = bar.add_task(state.file)
            bar.update(tasks[state.file], completed=state.done, total=state.total or None)

        yield show


data_app = typer.Typer(
    help="Look after the data sets on disk: check, download.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
DataOption = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the data sets; default $CLIAD_DATA.", metavar="DIR"),
]


@data_app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(help="A name of `cliad datasets`, or folder:PATH, csv:FILE, wds:PATTERN."),
    ],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="field or official.")] = "field",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only look whether the images are there; do not open them."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare a data set on disk with what it should be; exit code 1 where something is wrong.

    Example: cliad data check dtd --data DIR
    """
    from dataclasses import asdict

    from cliad.pipelines.data_check import data_check

    found = data_check(name, data=data, split=split, quick=quick)
    if json:
        _print_json(asdict(found) | {"root": found.root and str(found.root)})
    else:
        print(
            f"{found.dataset}: {found.root or ('not on disk' if found.problems else 'in the package')}; {len(found.classnames)} classes"
        )
        numbers = lambda s: [
            f"{s.listed:,}",
            "-" if s.expected is None else f"{s.expected:,}",
            f"{s.missing:,}",
            f"{s.unreadable:,}",
        ]
        if found.splits:
            _table(
                "splits",
                ["split", "listed", "expected", "missing", "unreadable"],
                [[s.name, *numbers(s)] for s in found.splits],
            )
        print("\n".join([*found.problems, *found.advice]) or "all is as it should be")
    raise typer.Exit(0 if found.ok else 1)


@data_app.command()
def download(
    name: Annotated[str, typer.Argument(help="A name of `cliad datasets`.")],
    data: DataOption = None,
) -> None:
    """Fetch a data set: images and the field's split file, with checksums, resumed where it was cut.

    Example: cliad data download dtd --data DIR
    """
    from cliad.cache.datasets.download import download as run_download

    with _fetch_bar() as fetching:
        print(run_download(name, data=data, log=_log, progress=fetching))


@app.command()
def datasets(cache: CacheOption = None, data: DataOption = None, json: JsonOption = False) -> None:
    """List the data sets: what is known, what is on disk, what is cached.

    Example: cliad datasets --data DIR
    """
    from dataclasses import asdict

    from cliad.cache.folder import cache_dir
    from cliad.pipelines.listing import list_datasets

    found = list_datasets(cache_dir(cache), data)
    if json:
        return _print_json([asdict(row) for row in found])
    number = lambda n: f"{n:,}" if n else "-"
    rows = [
        [
            row.name,
            number(row.n_class),
            number(row.images),
            row.on_disk or "-",
            ", ".join(row.cached) or "-",
        ]
        for row in found
    ]
    _table("data sets", ["name", "classes", "images", "on disk", "cached with"], rows)
    print("your own images: folder:PATH, csv:FILE or wds:PATTERN")


@app.command()
def models(
    word: Annotated[str, typer.Argument(help="Only models with this in their name or tag.")] = "",
    json: JsonOption = False,
) -> None:
    """List the encoders: the bundled one and all of open_clip's with published weights.

    Example: cliad models ViT-B
    """
    from dataclasses import asdict

    from cliad.pipelines.listing import list_models

    found = list_models(word)
    if json:
        return _print_json([asdict(row) for row in found])
    _table(
        "encoders",
        ["model", "default weights", "all weights"],
        [[r.name, r.default or "-", ", ".join(r.pretrained)] for r in found],
    )


@app.command("import")
def import_(
    kind: Annotated[
        str, typer.Argument(help="tip-adapter, npz or clip-retrieval.", metavar="KIND")
    ],
    source: Annotated[
        Path, typer.Argument(help="The folder or file with the features.", metavar="PATH")
    ],
    dataset: Annotated[str, typer.Option(help="Name of the data set.", metavar="NAME")],
    encoder: Annotated[
        str,
        typer.Option(help="Name of the encoder that made them, such as ViT-B-32.", metavar="NAME"),
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            help="Class text features, an npz file; with class_index only these classes are kept.",
            metavar="FILE",
        ),
    ] = None,
    classnames: Annotated[
        Path | None, typer.Option(help="Class names, one a line.", metavar="FILE")
    ] = None,
    split_file: Annotated[
        Path | None,
        typer.Option(
            help="split_zhou_NAME.json in whose order the rows stand: paths and class names.",
            metavar="FILE",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="clip-retrieval: the column with the classes, or folder.", metavar="COLUMN"
        ),
    ] = None,
    logit_scale: Annotated[
        float | None,
        typer.Option(help="Multiplier of the cosines; default the source's own, else 100."),
    ] = None,
    logit_scale_is: Annotated[
        str | None, typer.Option(help="What a logit scale below 10 is: multiplier or log.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="How features are stored: float16 or float32.")
    ] = "float16",
    prompts: Annotated[
        str,
        typer.Option(
            help="Name of the prompt set; a new name adds one to a cache of the same features.",
            metavar="NAME",
        ),
    ] = "default",
    force: Annotated[
        bool, typer.Option("--force", help="Write anew what is there already.")
    ] = False,
    cache: CacheOption = None,
) -> None:
    """Make a cache from features that exist already.

    Example: cliad import npz features.npz --dataset mine --encoder ViT-B-32
    """
    from cliad.cache.folder import cache_dir
    from cliad.cache.formats.importing import import_features

    choices = {
        "text": text,
        "classnames": classnames,
        "split_file": split_file,
        "labels": labels,
        "logit_scale": logit_scale,
    }
    choices |= {
        "logit_scale_is": logit_scale_is,
        "dtype": dtype,
        "prompts": prompts,
        "force": force,
        "log": _log,
    }
    print(
        import_features(
            kind, source, dataset=dataset, encoder=encoder, cache_folder=cache_dir(cache), **choices
        )
    )


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A cache file.")], json: JsonOption = False
) -> None:
    """Show what a cache file holds.

    Example: cliad info FILE.h5
    """
    from cliad.pipelines.info import info as read_info

    facts = read_info(file)
    if json:
        return _print_json(facts)
    print(
        f"{facts['dataset']} by {facts['encoder']}, fingerprint {facts['fingerprint']}, {facts['bytes'] / 1e6:.1f} MB"
    )
    print(
        f"{facts['dim']} features as {facts['dtype']}, {'unit' if facts['unit_rows'] else 'raw'} rows{'' if facts['complete'] else ', NOT complete'}"
    )
    rows = [
        [
            name,
            *(f"{s[key]:,}" for key in ("n", "n_class", "unreadable", "to_do")),
            ", ".join(a for a in s["arrays"] if a not in FIXED),
        ]
        for name, s in facts["splits"].items()
    ]
    _table("splits", ["split", "rows", "classes", "unreadable", "to do", "arrays"], rows)
    for split in facts["splits"].values():
        print("".join(f"unreadable: {path}\n" for path in split["unreadable_paths"]), end="")
    rows = [
        [
            name,
            p["text_id"],
            str(p["n_class"]),
            f"{p['logit_scale']:g}",
            "; ".join(p["templates"][:3]),
            "yes" if p["has_text"] else "no",
        ]
        for name, p in facts["prompts"].items()
    ]
    _table("prompts", ["name", "text id", "classes", "logit scale", "templates", "text"], rows)
    print(
        f"made with {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}\nrecipe {json_module.dumps(facts['recipe'])}"
    )


FIXED = ("labels", "paths", "status", "checksums")  # arrays that every split has


@app.command()
def verify(file: Annotated[Path, typer.Argument(help="A cache file.")]) -> None:
    """Check that every row of a cache file is there, finite and undamaged; exit code 1 where not.

    Example: cliad verify FILE.h5
    """
    from cliad.cache.file.check import verify as find_problems

    found = find_problems(file)
    print("\n".join(found) or f"{file} is sound")
    raise typer.Exit(1 if found else 0)


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="A cache file, a run folder, or latest: the newest run in runs/.",
            metavar="FILE|RUN",
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            help="Of a cache: npz, safetensors or npy+parquet. Of a run: safetensors, onnx or npz."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="The file, or for npy+parquet the folder, to write.", metavar="PATH"),
    ],
    prompts: PromptsOption = None,
    with_encoder: Annotated[
        bool,
        typer.Option(
            "--with-encoder",
            help="Of a run, as onnx: the image encoder too, so that the file takes pixels.",
        ),
    ] = False,
    model: ModelOption = None,
    pretrained: PretrainedOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a cache, or a trained head, in a form that other programs read.

    Example: cliad export FILE.h5 --format npz --out features.npz

    Example: cliad export latest --format onnx --out head.onnx
    """
    from cliad.cache.formats.exporting import export_cache
    from cliad.pipelines.runs.export import export_run, is_run

    if is_run(source):
        if prompts:
            raise typer.BadParameter("--prompts is for a cache; a run has its own")
        choices = {"with_encoder": with_encoder, "model": model, "pretrained": pretrained}
        written = export_run(source, format=format, out=out, force=force, **choices)
    else:
        if with_encoder or model or pretrained:
            raise typer.BadParameter(
                "--with-encoder, --model and --pretrained are for a run; this is a cache file"
            )
        written = export_cache(source, format=format, out=out, prompts=prompts, force=force)
    print("\n".join(f"wrote {path}" for path in written))


@app.command()
def train(
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    prompts: PromptsOption = None,
    head: Annotated[
        str, typer.Option(help="Head to train; `cliad heads` lists them.")
    ] = "clip-adapter",
    shots: Annotated[int, typer.Option(help="Support images per class.")] = 16,
    seed: Annotated[
        int, typer.Option(help="Seed of the few-shot draw, the start and the minibatches.")
    ] = 1,
    protocol: Annotated[
        str, typer.Option(help="Few-shot protocol: coop, tip, lp++ or clip-lora.")
    ] = "coop",
    select: Annotated[
        str | None,
        typer.Option(
            help="fixed or val: hyper-parameters as given, or chosen on validation images; default the head's published way."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="CLIP-Adapter: weight of the ADAPTED image feature, 0 to 1; 0 is zero-shot. Other heads: `cliad heads`."
        ),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="The same for the text side.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the support images.")] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            help="Bottleneck width: a number, or a share of the feature width such as D/4."
        ),
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            help="Any other hyper-parameter of the head; may be repeated.",
            metavar="NAME=VALUE",
        ),
    ] = [],
    test: Annotated[
        str | None,
        typer.Option(
            help="Score on the test splits of these data sets too: same encoder, same classes by name.",
            metavar="A,B",
        ),
    ] = None,
    base_to_new: Annotated[
        bool,
        typer.Option(
            "--base-to-new",
            help="Train on the first half of the classes, test on both halves; saves no run.",
        ),
    ] = False,
    cache: CacheOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; default runs/ and a name made from the run.", metavar="DIR"),
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train a head on cached features and score it on the test split.

    Example: cliad train --dataset dtd --alpha 0.2 --shots 4
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines.experiments.base_to_new import base_to_new as run_base_to_new
    from cliad.pipelines.experiments.train import train as run_train
    from cliad.pipelines.experiments.transfer import score_elsewhere
    from cliad.pipelines.runs import run_folder

    named = {"alpha": alpha, "beta": beta, "lr": lr, "epochs": epochs, "hidden": hidden}
    given = _hyper(named, set_)
    folder = cache_dir(cache)
    if base_to_new:
        (row,) = run_base_to_new(
            folder=folder,
            dataset=dataset,
            encoder=encoder,
            prompts=prompts,
            head=head,
            hyper=given,
            shots=shots,
            seeds=[seed],
            protocol=protocol,
            select=select,
            device=device,
            log=_log,
        )
        return _print_json(row) if json else _print_halves(row)
    result, features = run_train(
        folder=folder,
        dataset=dataset,
        encoder=encoder,
        prompts=prompts,
        head=head,
        hyper=given,
        shots=shots,
        seed=seed,
        protocol=protocol,
        select=select,
        device=device,
        log=_log,
    )
    names = test.split(",") if test else []
    others = score_elsewhere(result, features, names, folder=folder, device=device, log=_log)
    saved = run_folder.save(
        result,
        features,
        out or run_folder.folder_of(Path("runs"), result),
        command=shlex.join(["cliad", *sys.argv[1:]]),
    )
    row = result.row(str(saved))
    if json:
        return _print_json({**row, "transfer": others} if test else row)
    _print_run(row)
    for other in others:
        print(
            f"on {other['test_dataset']}: {_percent(other['top1'])}, zero-shot {_percent(other['zero_shot_top1'])}"
        )


def _print_halves(row: dict) -> None:
    name = (
        f"{row['dataset']}, {row['encoder']}, {row['shots']} shots, seed {row['seed']}: base to new"
    )
    plain, fitted = (
        [_percent(row[start + end]) for end in ("base_top1", "new_top1", "harmonic")]
        for start in ("zero_shot_", "")
    )
    columns = ["head", f"base ({row['n_base']} classes)", f"new ({row['n_new']})", "harmonic mean"]
    _table(name, columns, [["zero-shot", *plain], [row["head"], *fitted]])


def _print_run(row: dict) -> None:
    name = f"{row['dataset']}, {row['encoder']}, {row['shots']} shots, seed {row['seed']}"
    failed = "diverged" if row["diverged"] else _percent(row["top1"])
    rows = [
        ["zero-shot", _percent(row["zero_shot_top1"]), "", ""],
        [row["head"], failed, f"{row['train_seconds']:.2f} s", row["selected_on"]],
    ]
    _table(name, ["head", "test accuracy", "training", "selected on"], rows)
    found = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row["found"].items()
    )
    print(f"{found}\nrun folder: {row['run']}" if found else f"run folder: {row['run']}")


@app.command()
def predict(
    run: Annotated[
        str,
        typer.Argument(
            help="A run folder of `cliad train`, or latest: the newest in runs/.", metavar="RUN"
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders of images, or quoted glob patterns.", metavar="IMAGE..."
        ),
    ],
    top: Annotated[int, typer.Option(help="Likeliest classes to show per image.")] = 5,
    json: JsonOption = False,
    csv: Annotated[
        bool,
        typer.Option("--csv", help="Print CSV: path, rank, class, probability (0 to 1), error."),
    ] = False,
    model: ModelOption = None,
    pretrained: PretrainedOption = None,
    batch: Annotated[int, typer.Option(help="Images per encoder call.")] = 32,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read images; default one per core.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Classify images with a trained head; an image that cannot be read is named and stops nothing.

    Exit code 0 where at least one image was classified, 1 where none was.

    Example: cliad predict latest photos/ --top 3
    """
    from cliad.pipelines.runs.predict import predict as run_predict

    if json and csv:
        raise typer.BadParameter("--json or --csv, not both")
    choices = {
        "top": top,
        "model": model,
        "pretrained": pretrained,
        "batch": batch,
        "workers": workers,
        "device": device,
    }
    found = run_predict(
        run, images, log=lambda line: None if json or csv else _log(line), **choices
    )
    show = _show_json if json else _show_csv if csv else _show_predictions
    raise typer.Exit(0 if show(found) else 1)


def _show_json(found) -> int:
    """One JSON list, written as the predictions come; how many images were classified."""
    good, before = 0, "["
    for prediction in found:
        print(before + json_module.dumps(prediction.json(), ensure_ascii=False), end="", flush=True)
        good, before = good + (prediction.error is None), ",\n "
    print("]" if before != "[" else "[]")
    return good


def _show_csv(found) -> int:
    import csv

    out, good = csv.writer(sys.stdout, lineterminator="\n"), 0
    out.writerow(["path", "rank", "class", "probability", "error"])
    for prediction in found:
        if prediction.error is not None:
            out.writerow([prediction.path, "", "", "", prediction.error])
        out.writerows(
            [prediction.path, i, name, f"{p:.6f}", ""]
            for i, (name, p) in enumerate(prediction.top, 1)
        )
        sys.stdout.flush()
        good += prediction.error is None
    return good


def _show_predictions(found) -> int:
    good = 0
    for prediction in found:
        if prediction.error is not None:
            _log(f"cliad: {prediction.path}: {prediction.error}")
            continue
        print(
            f"{prediction.path}\n"
            + "\n".join(f"  {_percent(p):>8}  {name}" for name, p in prediction.top),
            flush=True,
        )
        good += 1
    return good


@app.command()
def serve(
    run: Annotated[
        str,
        typer.Argument(
            help="The run folder shown first, or latest: the newest in runs/.", metavar="[RUN]"
        ),
    ] = "latest",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8000,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; the default is reached from this machine only."),
    ] = "127.0.0.1",
    model: ModelOption = None,
    pretrained: PretrainedOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the data sets, to show training images; default $CLIAD_DATA.",
            metavar="DIR",
            envvar="CLIAD_DATA",
            show_envvar=False,
        ),
    ] = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Open a local page: drop images on it, see what a trained head and zero-shot CLIP make of them.

    Example: cliad serve latest --port 8000
    """
    from cliad.pipelines.runs.serve.app import serve as run_server

    choices = {
        "model": model,
        "pretrained": pretrained,
        "device": device,
        "data": data,
        "caches": cache,
    }
    run_server(run, host=host, port=port, log=_log, **choices)


@app.command()
def grid(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Data sets, such as dtd,eurosat; default the cache written last.", metavar="A,B"
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoders, where the data sets have several caches.", metavar="A,B"),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompt sets of the caches.", metavar="A,B")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Heads; default clip-adapter.", metavar="A,B")
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(help="Support images per class; default 1,2,4,8,16.", metavar="LIST"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds of draw, start and minibatches; default 1,2,3.", metavar="LIST"),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Few-shot protocols: coop (default), tip, lp++, clip-lora.", metavar="LIST"
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            help="fixed or val or both: as `cliad train`; default each head's published way.",
            metavar="LIST",
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            help="CLIP-Adapter: weights of the ADAPTED image feature, 0 to 1. A list 0,0.2 or a range 0:1:0.2.",
            metavar="LIST",
        ),
    ] = None,
    beta: Annotated[
        str | None,
        typer.Option(help="The same for the text side; default the head's.", metavar="LIST"),
    ] = None,
    lr: Annotated[
        str | None, typer.Option(help="Learning rates; default the head's.", metavar="LIST")
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Passes over the support images; default the head's.", metavar="LIST"),
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            help="Bottleneck widths, such as D/4,D/8; default the head's.", metavar="LIST"
        ),
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            help="Any other hyper-parameter; may be repeated.",
            metavar="NAME=LIST",
            show_default="none",
        ),
    ] = [],
    test: Annotated[
        str | None,
        typer.Option(
            help="Score each run on the test splits of these data sets too, a row each: same encoder.",
            metavar="A,B",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file with the same words; options win.", metavar="FILE"),
    ] = None,
    cache: CacheOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Results file, added to; default results.jsonl.", metavar="FILE"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (default), cuda, cuda:1, mps or cpu.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train every combination of what is listed, many runs at once; one row each in a results file. Stopped, it goes on where it was.

    A head drops the lists of hyper-parameters that it lacks.

    Example: cliad grid --dataset dtd,eurosat --head clip-adapter,linear-probe --alpha 0:1:0.2 --shots 1,2,4,8,16 --seeds 1,2,3
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines.experiments.grid import grid as run_grid

    words = {
        "dataset": dataset,
        "encoder": encoder,
        "prompts": prompts,
        "head": head,
        "shots": shots,
        "seeds": seeds,
        "protocol": protocol,
    }
    words |= {
        "select": select,
        "alpha": alpha,
        "beta": beta,
        "lr": lr,
        "epochs": epochs,
        "hidden": hidden,
        "set": _hyper({}, set_) or None,
    }
    words |= {"test": test}
    with _bar("rows", waits=False) as progress:
        try:
            done = run_grid(
                folder=cache_dir(cache),
                words=words,
                config=config,
                out=out,
                device=device,
                log=_log,
                progress=progress,
            )
        except KeyboardInterrupt:
            _log(
                "stopped; what is finished is in the results file, the same command goes on from there"
            )
            raise typer.Exit(130) from None
    if json:
        return _print_json(
            {
                "out": str(done.out),
                "asked": done.asked,
                "found": done.found,
                "done": done.done,
                "seconds": done.seconds,
            }
        )
    if done.done:
        print(f"{done.done} rows in {done.seconds:.1f} s, {done.done / done.seconds:.1f} rows/s")
    print(
        f"{done.out}: {done.asked} rows of this grid; `cliad report {done.out} --out report.html` shows them"
    )


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(help="Results files of `cliad grid`.", metavar="RESULTS...")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; default report.html, other formats to stdout.", metavar="FILE"
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="html, or tables as md, latex or csv.")] = "html",
) -> None:
    """Make a page or tables of results: curves, ablations, best methods with intervals, all runs.

    Example: cliad report results.jsonl --out report.html
    """
    from cliad.pipelines.report.report import report as run_report

    out = out or (Path("report.html") if format == "html" else None)
    text = run_report(results, form=format, out=out, log=_log)
    print(out if out else text, end="\n" if out else "")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the results and the picture.", metavar="DIR")
    ] = Path("cliad-demo"),
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

    found = run_demo(folder=cache_dir(cache), out=out, log=_log, device=device)
    if json:
        return _print_json(
            {
                "zero_shot_top1": found.zero_shot,
                "top1": found.mean,
                "files": [str(path) for path in found.files],
            }
        )
    rows = [["zero-shot", *[_percent(found.zero_shot)] * len(SHOTS)]] + [
        [head, *map(_percent, by.values())] for head, by in found.mean.items()
    ]
    _table(
        f"digits with encoder tiny: test accuracy, mean of seeds {', '.join(map(str, SEEDS))}",
        ["shots", *map(str, SHOTS)],
        rows,
    )
    print("\n".join(f"wrote {path}" for path in found.files))


@app.command()
def heads(
    cache: CacheOption = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    json: JsonOption = False,
) -> None:
    """List the heads: what each is, what it needs from a cache, its hyper-parameters.

    Example: cliad heads
    """
    from cliad.cache.folder import cache_dir
    from cliad.pipelines.heads import heads as list_heads

    found = list_heads(cache_dir(cache), dataset, encoder)
    if json:
        return _print_json([head.json() for head in found])
    for head in found:
        count = ""
        if head.parameters is not None:
            count = f"; {head.parameters:,} parameters on {head.on}"
        needs = ", ".join(head.needs) or "image features"
        print(head.head)
        print(f"    {head.what}")
        print(f"    needs: {needs}; selects on: {head.select}{count}")
        for field in head.hyper:
            print(f"    {field.name} = {field.default}: {field.meaning}{field.range}")


@app.command()
def shots(
    split_file: Annotated[
        Path, typer.Option(help="The field's split file, split_zhou_NAME.json.", metavar="FILE")
    ],
    shots: Annotated[int, typer.Option(help="Support images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 1,
    protocol: Annotated[
        str, typer.Option(help="Few-shot protocol: coop, tip, lp++ or clip-lora.")
    ] = "coop",
    json: JsonOption = False,
) -> None:
    """Print the images that a few-shot protocol draws; needs no cache.

    Example: cliad shots --split-file split_zhou_OxfordPets.json --shots 4 --seed 1
    """
    from cliad.pipelines.fewshot.shots import shots as draw_shots

    drawn = draw_shots(split_file, shots=shots, seed=seed, protocol=protocol)
    if json:
        return _print_json(drawn)
    for role, items in drawn.items():
        print(
            "\n".join(
                f"{role}\t{item['label']}\t{item['classname']}\t{item['path']}" for item in items
            )
        )


if __name__ == "__main__":
    main()
