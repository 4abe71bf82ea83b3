"""Stage one: from data sets, or features made elsewhere, to cache files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cliad.commands import show
from cliad.commands.options import (
    AllowOverlapOption,
    CacheOption,
    CheckedDatasetArgument,
    CheckedSplitOption,
    DataOption,
    DescriptionsOption,
    DeviceOption,
    DownloadedDatasetArgument,
    DtypeOption,
    ExtractBatchOption,
    ExtractClassnamesOption,
    ExtractDatasetOption,
    ExtractForceOption,
    ExtractModelOption,
    ExtractPretrainedOption,
    ExtractPromptsOption,
    ExtractSplitOption,
    FlipOption,
    ImportClassnamesOption,
    ImportDatasetOption,
    ImportEncoderOption,
    ImportForceOption,
    ImportKindArgument,
    ImportLabelsOption,
    ImportPromptsOption,
    ImportSourceArgument,
    ImportSplitFileOption,
    ImportTextOption,
    JsonOption,
    LogitScaleIsOption,
    LogitScaleOption,
    ModelWordArgument,
    NoDownloadOption,
    PreProjectionOption,
    QuickGeluOption,
    QuickOption,
    RootOption,
    SqueezeOption,
    TemplateOption,
    TextTowerOption,
    TokensOption,
    ViewsForOption,
    ViewsOption,
    ViewsScaleOption,
    ViewsSeedOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from cliad.pipelines.data_check import DataCheck

# --------------------------------------------------------------- making caches


def extract(
    dataset: ExtractDatasetOption,
    model: ExtractModelOption = None,
    pretrained: ExtractPretrainedOption = None,
    quick_gelu: QuickGeluOption = None,
    squeeze: SqueezeOption = False,
    data: DataOption = None,
    split: ExtractSplitOption = "field",
    root: RootOption = None,
    allow_overlap: AllowOverlapOption = False,
    prompts: ExtractPromptsOption = None,
    template: TemplateOption = [],
    descriptions: DescriptionsOption = None,
    classnames: ExtractClassnamesOption = None,
    views: ViewsOption = 0,
    views_scale: ViewsScaleOption = "0.5:1",
    views_seed: ViewsSeedOption = 1,
    views_for: ViewsForOption = None,
    flip: FlipOption = False,
    pre_projection: PreProjectionOption = False,
    tokens: TokensOption = False,
    text_tower: TextTowerOption = False,
    dtype: DtypeOption = "float16",
    batch: ExtractBatchOption = None,
    workers: WorkersOption = None,
    no_download: NoDownloadOption = False,
    force: ExtractForceOption = False,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Encode a data set, once: its image and class-text features are written to a cache file.

    Example: cliad extract --dataset dtd --model ViT-B-32 --pretrained openai --data DIR
    """
    from cliad.cache.datasets.own import Allowed
    from cliad.pipelines.found_images import find_images

    with show.download_bar() as fetching:
        found = find_images(
            dataset,
            data=data,
            split=split,
            allowed=Allowed(root, allow_overlap),
            fetch=not no_download,
            log=show.log,
            fetching=fetching,
        )
    # Only now, as these load torch: what is wrong with a list is said at once.
    from cliad.cache.extract.choices import EncoderChoice, Extras, PromptChoice
    from cliad.cache.folder import cache_dir
    from cliad.cache.views import parse_scale
    from cliad.pipelines.extract import extract as run_extract

    encoder = EncoderChoice(
        model=model, pretrained=pretrained, quick_gelu=quick_gelu, squeeze=squeeze
    )
    prompt_set = PromptChoice(
        name=prompts, templates=template, descriptions=descriptions, classnames=classnames
    )
    extras = Extras(
        views=views,
        scale=parse_scale(views_scale),
        views_seed=views_seed,
        flip=flip,
        views_for=views_for,
        pre_projection=pre_projection,
        tokens=tokens,
        text_tower=text_tower,
    )
    with show.image_bar() as progress:
        path = run_extract(
            found,
            cache_folder=cache_dir(cache),
            encoder=encoder,
            prompt_set=prompt_set,
            extras=extras,
            device=device,
            dtype=dtype,
            batch=batch,
            workers=workers,
            force=force,
            fetch=not no_download,
            log=show.log,
            progress=progress,
        )
    show.line(path)


def import_(
    kind: ImportKindArgument,
    source: ImportSourceArgument,
    dataset: ImportDatasetOption,
    encoder: ImportEncoderOption,
    text: ImportTextOption = None,
    classnames: ImportClassnamesOption = None,
    split_file: ImportSplitFileOption = None,
    labels: ImportLabelsOption = None,
    logit_scale: LogitScaleOption = None,
    logit_scale_is: LogitScaleIsOption = None,
    dtype: DtypeOption = "float16",
    prompts: ImportPromptsOption = "default",
    force: ImportForceOption = False,
    cache: CacheOption = None,
) -> None:
    """Make a cache from features that exist already.

    Example: cliad import npz features.npz --dataset mine --encoder ViT-B-32
    """
    from cliad.cache.folder import cache_dir
    from cliad.cache.formats.importing import import_features

    path = import_features(
        kind,
        source,
        dataset=dataset,
        encoder=encoder,
        cache_folder=cache_dir(cache),
        text=text,
        classnames=classnames,
        split_file=split_file,
        labels=labels,
        logit_scale=logit_scale,
        logit_scale_is=logit_scale_is,
        dtype=dtype,
        prompts=prompts,
        force=force,
        log=show.log,
    )
    show.line(path)


# --------------------------------------------------------------- what there is


def datasets(
    cache: CacheOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """List the data sets: what is known, what is on disk, what is cached.

    Example: cliad datasets --data DIR
    """
    from dataclasses import asdict

    from cliad.cache.folder import cache_dir
    from cliad.pipelines.listing import list_datasets

    listed = list_datasets(cache_dir(cache), data)
    if as_json:
        show.print_json([asdict(row) for row in listed])
        return
    table = []
    for row in listed:
        encoders = ", ".join(row.cached)
        # 0 stands for a number that is not known: the data set is the user's own.
        classes = f"{row.n_class:,}" if row.n_class else "-"
        images = f"{row.images:,}" if row.images else "-"
        table.append([row.name, classes, images, row.on_disk or "-", encoders or "-"])
    show.print_table("data sets", ["name", "classes", "images", "on disk", "cached with"], table)
    show.line("your own images: folder:PATH, csv:FILE or wds:PATTERN")


def models(word: ModelWordArgument = "", as_json: JsonOption = False) -> None:
    """List the encoders: the bundled one and all of open_clip's with published weights.

    Example: cliad models ViT-B
    """
    from dataclasses import asdict

    from cliad.pipelines.listing import list_models

    listed = list_models(word)
    if as_json:
        show.print_json([asdict(row) for row in listed])
        return
    # A line for all words that go together after `cliad extract --dataset NAME`, so that a line
    # can be copied, and cut and grep find what they look for.
    show.cells("words", "million parameters", "pixels", "dim", "activation", "default")
    for row in listed:
        millions = f"{row.parameters / 1e6:.1f}" if row.parameters else "-"
        size = row.image_size or "-"
        for tag, activation in zip(row.pretrained, row.activations, strict=True):
            words = f"--model {row.name} --pretrained {tag}"
            if row.name == "tiny":
                words = "--model tiny"
            default = "default" if tag == row.default else ""
            show.cells(words, millions, size, row.dim or "-", activation, default)


# --------------------------------------------------------------- cliad data


def check_data(
    name: CheckedDatasetArgument,
    data: DataOption = None,
    split: CheckedSplitOption = "field",
    root: RootOption = None,
    allow_overlap: AllowOverlapOption = False,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a data set on disk with what it should be; exit code 1 where something is wrong.

    Example: cliad data check dtd --data DIR
    """
    from dataclasses import asdict

    from cliad.cache.datasets.own import Allowed
    from cliad.pipelines.data_check import data_check

    allowed = Allowed(root, allow_overlap)
    checked = data_check(name, data=data, split=split, quick=quick, allowed=allowed)
    if as_json:
        place = None if checked.root is None else str(checked.root)
        show.print_json({**asdict(checked), "root": place})
    else:
        _print_data_check(checked)
    raise typer.Exit(0 if checked.ok else 1)


def _print_data_check(checked: DataCheck) -> None:
    show.line(f"{checked.dataset}: {_place(checked)}; {len(checked.classnames)} classes")
    table = []
    for split in checked.splits:
        expected = "-" if split.expected is None else f"{split.expected:,}"
        counts = [f"{split.listed:,}", expected, f"{split.missing:,}", f"{split.unreadable:,}"]
        table.append([split.name, *counts])
    # A data set that is not on disk has problems and advice, but no splits to count.
    if table:
        columns = ["split", "listed", "expected", "missing", "unreadable"]
        show.print_table("splits", columns, table)
    lines = [*checked.notes, *checked.problems, *checked.advice]
    if checked.ok:
        lines.append("no problem found")
    # Names of files and classes may hold what moves a terminal's cursor.
    for line in lines:
        show.line(line)


def _place(checked: DataCheck) -> str | Path:
    """Where the images are. Those of the bundled digits are in no folder."""
    if checked.root is not None:
        return checked.root
    return "not on disk" if checked.problems else "in the package"


def download_data(name: DownloadedDatasetArgument, data: DataOption = None) -> None:
    """Fetch a data set: images and the field's split file, with checksums; resumed if it was cut.

    Example: cliad data download dtd --data DIR
    """
    from cliad.cache.datasets.download import download

    with show.download_bar() as progress:
        folder = download(name, data=data, log=show.log, progress=progress)
    show.line(folder)
