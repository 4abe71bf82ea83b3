"""Every option and argument of the command line, each declared once.

A command's signature names them, a line each, and holds the defaults:

    def info(file: CacheFileArgument, as_json: JsonOption = False) -> None:

typer reads the type and the help text. A user types the parameter's name (`views_seed` as
`--views-seed`), or what is written here, where that name would hide a module or a builtin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

# --------------------------------------------------------------- what several commands share

CacheOption = Annotated[
    Path | None,
    Option(
        "--cache",
        metavar="DIR",
        help="Cache folder; default $CLIAD_CACHE or the user's cache folder.",
    ),
]
DataOption = Annotated[
    Path | None, Option(metavar="DIR", help="Folder that holds the data sets; default $CLIAD_DATA.")
]
DatasetOption = Annotated[
    str | None,
    Option(metavar="NAME", help="Data set; default the cache written last, or the bundled digits."),
]
EncoderOption = Annotated[
    str | None, Option(metavar="NAME", help="Encoder of the cache, where a data set has several.")
]
PromptsOption = Annotated[
    str | None, Option(metavar="NAME", help="Prompt set of the cache, where it has several.")
]
# A run names its encoder; these are for weights that lie elsewhere here. Their hashes are compared.
RunModelOption = Annotated[
    str | None,
    Option(
        "--model",
        metavar="NAME",
        help="Encoder, where it is not the one that the run names; it is checked.",
    ),
]
RunPretrainedOption = Annotated[
    str | None,
    Option(
        "--pretrained",
        metavar="TAG|FILE",
        help="Its weights: a tag of open_clip such as openai, or a file.",
    ),
]
# float16 halves the file; float32 also makes the encoder compute in full precision.
DtypeOption = Annotated[str, Option(help="How features are stored: float16 or float32.")]
WorkersOption = Annotated[
    int | None, Option(help="Threads that read images; default one per core.")
]
# `auto` takes mps for encoders only, because heads are too small to gain from it.
DeviceOption = Annotated[str, Option(help="auto, cuda, cuda:1, mps or cpu.")]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]
CacheFileArgument = Annotated[
    Path | None, Argument(help="A cache file; by default the one that was written last.")
]
ShotsOption = Annotated[int, Option(help="Support images per class.")]
ProtocolOption = Annotated[str, Option(help="Few-shot protocol: coop, tip, lp++ or clip-lora.")]

# --------------------------------------------------------------- extract

ExtractDatasetOption = Annotated[
    str,
    Option(
        metavar="NAME",
        help="Data set: a name of `cliad datasets`, or folder:PATH, csv:FILE, wds:PATTERN.",
    ),
]
RootOption = Annotated[
    Path | None,
    Option(
        "--root",
        metavar="DIR",
        help="Folder that the images of csv:FILE or folder:PATH may lie in, where it is not the"
        " list's or the data set's own; a list's paths may begin there.",
    ),
]
AllowOverlapOption = Annotated[
    bool,
    Option("--allow-overlap", help="Let an image be in several splits of csv:FILE or folder:PATH."),
]
ExtractModelOption = Annotated[
    str | None,
    Option(
        help="Encoder: tiny, a model of open_clip such as ViT-B-32, or hf-hub:OWNER/NAME; "
        "default tiny for digits, ViT-B-32 for all else."
    ),
]
ExtractPretrainedOption = Annotated[
    str | None,
    Option(metavar="TAG|FILE", help="Weights: a tag of open_clip such as openai, or a file."),
]
# Three states: when it is not typed, the published settings of the weights decide. A file of
# weights looks the same with either activation.
QuickGeluOption = Annotated[
    bool | None,
    Option(
        "--quick-gelu/--no-quick-gelu",
        help="The activation of a weights file that does not say it.",
    ),
]
# Changes every feature, so it is part of the encoder's identity.
SqueezeOption = Annotated[
    bool,
    Option(
        "--squeeze", help="Resize to a square without keeping proportions, as CoOp's code does."
    ),
]
ExtractSplitOption = Annotated[
    str, Option(help="field: the literature's split files; official: the data set's own splits.")
]
ExtractPromptsOption = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Name of the prompt set; imagenet7 and imagenet80 are known templates. "
        "Default: the data set's own, as default.",
    ),
]
TemplateOption = Annotated[
    list[str],
    Option(metavar="TEXT", help="A template with {} for the class name; may be repeated."),
]
DescriptionsOption = Annotated[
    Path | None, Option(metavar="FILE", help="JSON file: class name -> list of sentences.")
]
ExtractClassnamesOption = Annotated[
    Path | None, Option(metavar="FILE", help="Other class names, one a line.")
]
ViewsOption = Annotated[
    int, Option(help="Augmented crops of each training image to store beside the plain view.")
]
ViewsScaleOption = Annotated[
    str,
    Option(
        metavar="LOW:HIGH",
        help="Share of the image area that a crop covers: 0.5:1 as Tip-Adapter, 0.08:1 as CoOp.",
    ),
]
ViewsSeedOption = Annotated[int, Option(help="Seed of the crops.")]
# 16 shots of ImageNet are 1.2 % of its training images: crops of all take 80 times the room.
ViewsForOption = Annotated[
    str | None,
    Option(
        metavar="PROTOCOL:SHOTS:SEEDS",
        help="Only for images that these draws use, such as coop:16:1,2,3.",
    ),
]
FlipOption = Annotated[
    bool, Option("--flip", help="Store the mirrored plain view of training images too.")
]
# What ProLIP needs.
PreProjectionOption = Annotated[
    bool, Option("--pre-projection", help="Store features before the last projection too.")
]
TokensOption = Annotated[bool, Option("--tokens", help="Store projected patch tokens too.")]
TextTowerOption = Annotated[
    bool,
    Option("--text-tower", help="Keep the text tower beside the caches: for learned prompts."),
]
ExtractBatchOption = Annotated[
    int | None, Option(help="Images per encoder call; found when not given.")
]
NoDownloadOption = Annotated[bool, Option("--no-download", help="Do not fetch what is missing.")]
ExtractForceOption = Annotated[bool, Option("--force", help="Extract anew what is there already.")]

# --------------------------------------------------------------- import

ImportKindArgument = Annotated[
    str, Argument(metavar="KIND", help="npz, safetensors, pt, tip-adapter or clip-retrieval.")
]
ImportSourceArgument = Annotated[
    Path, Argument(metavar="PATH", help="The folder or file with the features.")
]
ImportDatasetOption = Annotated[str, Option(metavar="NAME", help="Name of the data set.")]
# Nothing in a file of features proves it: the name is all that later commands go by.
ImportEncoderOption = Annotated[
    str, Option(metavar="NAME", help="Name of the encoder that made them, such as ViT-B-32.")
]
ImportTextOption = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="Class text features: npz, safetensors or .pt; class_index keeps these classes only.",
    ),
]
ImportClassnamesOption = Annotated[
    Path | None, Option(metavar="FILE", help="Class names, one a line.")
]
ImportSplitFileOption = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="split_zhou_NAME.json in whose order the rows stand: paths and class names.",
    ),
]
ImportLabelsOption = Annotated[
    str | None,
    Option(metavar="COLUMN", help="clip-retrieval: the column with the classes, or folder."),
]
# CLIP multiplies cosines by 100 and stores the logarithm, 4.6: a number below 10 may be either.
LogitScaleOption = Annotated[
    float | None, Option(help="Multiplier of the cosines; default the source's own, else 100.")
]
LogitScaleIsOption = Annotated[
    str | None, Option(help="What a logit scale below 10 is: multiplier or log.")
]
ImportPromptsOption = Annotated[
    str,
    Option(
        metavar="NAME",
        help="Name of the prompt set; a new name adds one to a cache of the same features.",
    ),
]
ImportForceOption = Annotated[bool, Option("--force", help="Write anew what is there already.")]

# --------------------------------------------------------------- data check, data download, models

CheckedDatasetArgument = Annotated[
    str, Argument(help="A name of `cliad datasets`, or folder:PATH, csv:FILE, wds:PATTERN.")
]
CheckedSplitOption = Annotated[str, Option(help="field or official.")]
QuickOption = Annotated[
    bool, Option("--quick", help="Only look whether the images are there; do not open them.")
]
DownloadedDatasetArgument = Annotated[str, Argument(help="A name of `cliad datasets`.")]
ModelWordArgument = Annotated[str, Argument(help="Only models with this in their name or tag.")]

# --------------------------------------------------------------- export

ExportSourceArgument = Annotated[
    Path | None,
    Argument(
        metavar="FILE|RUN",
        help="A cache file, a run folder, or latest: the newest run in runs/. By default the cache"
        " that was written last.",
    ),
]
ExportFormatOption = Annotated[
    str,
    Option(
        "--format",
        help="Of a cache: npz, safetensors or npy+parquet. Of a run: safetensors, onnx or npz.",
    ),
]
ExportOutOption = Annotated[
    Path, Option(metavar="PATH", help="The file, or for npy+parquet the folder, to write.")
]
WithEncoderOption = Annotated[
    bool,
    Option(
        "--with-encoder",
        help="Of a run, as onnx: the image encoder too, so that the file takes pixels.",
    ),
]
ExportForceOption = Annotated[bool, Option("--force", help="Replace an earlier export.")]

# --------------------------------------------------------------- train: one value each

HeadOption = Annotated[str, Option(help="Head to train; `cliad heads` lists them.")]
TrainSeedOption = Annotated[
    int, Option(help="Seed of the few-shot draw, the start and the minibatches.")
]
SelectOption = Annotated[
    str | None,
    Option(
        help="fixed, val or cv: hyper-parameters as given, chosen on validation images, or by "
        "folds of the training images themselves; default the head's published way."
    ),
]
AlphaOption = Annotated[
    float | None,
    Option(
        help="CLIP-Adapter: weight of the ADAPTED image feature, 0 to 1; 0 is zero-shot. "
        "Other heads: `cliad heads`."
    ),
]
BetaOption = Annotated[float | None, Option(help="The same for the text side.")]
LrOption = Annotated[float | None, Option(help="Learning rate.")]
EpochsOption = Annotated[int | None, Option(help="Passes over the support images.")]
# Text, because a share of the width, D/4, is not a number yet.
HiddenOption = Annotated[
    str | None,
    Option(help="Bottleneck width: a number, or a share of the feature width such as D/4."),
]
# The heads have many hyper-parameters: the common ones are options, the others are set here.
SetOption = Annotated[
    list[str],
    Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other hyper-parameter of the head; may be repeated.",
    ),
]
TrainTestOption = Annotated[
    str | None,
    Option(
        metavar="A,B",
        help="Score on the test splits of these data sets too: same encoder, same classes by name.",
    ),
]
BaseToNewOption = Annotated[
    bool,
    Option(
        "--base-to-new",
        help="Train on the first half of the classes, test on both halves; saves no run.",
    ),
]
TrainOutOption = Annotated[
    Path | None,
    Option(metavar="DIR", help="Run folder; default runs/ and a name made from the run."),
]

TransductiveOption = Annotated[
    bool,
    Option(
        "--transductive",
        help="Score with all test images at once, unlabelled: a protocol of its own in rows and"
        " reports. The head that is trained is the same.",
    ),
]

# --------------------------------------------------------------- grid: lists of values

# These are text, because `pipelines.experiments.axes` reads lists and ranges, for a configuration
# file too. None has a default here: what is not typed may stand in that file.

DatasetListOption = Annotated[
    str | None,
    Option(metavar="A,B", help="Data sets, such as dtd,eurosat; default the cache written last."),
]
EncoderListOption = Annotated[
    str | None, Option(metavar="A,B", help="Encoders, where the data sets have several caches.")
]
PromptsListOption = Annotated[str | None, Option(metavar="A,B", help="Prompt sets of the caches.")]
HeadListOption = Annotated[str | None, Option(metavar="A,B", help="Heads; default clip-adapter.")]
ShotsListOption = Annotated[
    str | None, Option(metavar="LIST", help="Support images per class; default 1,2,4,8,16.")
]
SeedListOption = Annotated[
    str | None, Option(metavar="LIST", help="Seeds of draw, start and minibatches; default 1,2,3.")
]
ProtocolListOption = Annotated[
    str | None,
    Option(metavar="LIST", help="Few-shot protocols: coop (default), tip, lp++, clip-lora."),
]
SelectListOption = Annotated[
    str | None,
    Option(
        metavar="LIST",
        help="fixed, val, cv: as `cliad train`; default each head's published way.",
    ),
]
AlphaListOption = Annotated[
    str | None,
    Option(
        metavar="LIST",
        help="CLIP-Adapter: weights of the ADAPTED image feature, 0 to 1. "
        "A list 0,0.2 or a range 0:1:0.2. Heads that mean something else: --set HEAD.alpha=LIST.",
    ),
]
BetaListOption = Annotated[
    str | None, Option(metavar="LIST", help="The same for the text side; default the head's.")
]
LrListOption = Annotated[
    str | None, Option(metavar="LIST", help="Learning rates; default the head's.")
]
EpochsListOption = Annotated[
    str | None, Option(metavar="LIST", help="Passes over the support images; default the head's.")
]
HiddenListOption = Annotated[
    str | None,
    Option(metavar="LIST", help="Bottleneck widths, such as D/4,D/8; default the head's."),
]
SetListOption = Annotated[
    list[str],
    Option(
        "--set",
        metavar="NAME=LIST",
        show_default="none",
        help="Any other hyper-parameter, or HEAD.NAME=LIST for one head alone; may be repeated.",
    ),
]
GridTestOption = Annotated[
    str | None,
    Option(
        metavar="A,B",
        help="Score each run on the test splits of these data sets too, a row each: same encoder.",
    ),
]
ConfigOption = Annotated[
    Path | None, Option(metavar="FILE", help="A TOML file with the same words; options win.")
]
ResultsOutOption = Annotated[
    Path | None, Option(metavar="FILE", help="Results file, added to; default results.jsonl.")
]
GridDeviceOption = Annotated[str | None, Option(help="auto (default), cuda, cuda:1, mps or cpu.")]

# --------------------------------------------------------------- report, shots, demo

ResultsArgument = Annotated[
    list[Path], Argument(metavar="RESULTS...", help="Results files of `cliad grid`.")
]
ReportOutOption = Annotated[
    Path | None,
    Option(metavar="FILE", help="File to write; default report.html, other formats to stdout."),
]
ReportFormatOption = Annotated[str, Option("--format", help="html, or tables as md, latex or csv.")]
SplitFileOption = Annotated[
    Path, Option(metavar="FILE", help="The field's split file, split_zhou_NAME.json.")
]
DrawSeedOption = Annotated[int, Option(help="Seed of the draw.")]
DemoOutOption = Annotated[
    Path, Option(metavar="DIR", help="Folder for the results and the picture.")
]

# --------------------------------------------------------------- predict, serve

RunArgument = Annotated[
    str,
    Argument(metavar="RUN", help="A run folder of `cliad train`, or latest: the newest in runs/."),
]
ImagesArgument = Annotated[
    list[str],
    Argument(metavar="IMAGE...", help="Image files, folders of images, or quoted glob patterns."),
]
TopOption = Annotated[int, Option(help="Likeliest classes to show per image.")]
CsvOption = Annotated[
    bool, Option("--csv", help="Print CSV: path, rank, class, probability (0 to 1), error.")
]
BatchAdaptOption = Annotated[
    bool,
    Option(
        "--batch-adapt",
        help="Adapt the head to all images of the call, as one unlabelled batch: every class has to"
        " be there, in like number. Needs the cache that the run was trained on.",
    ),
]
SetsOption = Annotated[
    float | None,
    Option(
        metavar="SHARE",
        help="Instead of the likeliest classes a set of them, as large as 0.9 (or 0.50 to 0.99) of"
        " the run's own images needed. For runs of --select cv or --head auto.",
    ),
]
PredictBatchOption = Annotated[int, Option(help="Images per encoder call.")]
FirstRunArgument = Annotated[
    str,
    Argument(metavar="[RUN]", help="The run folder shown first, or latest: the newest in runs/."),
]
PortOption = Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
HostOption = Annotated[
    str, Option(help="Address to listen on; the default is reached from this machine only.")
]
ServeDataOption = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        help="Folder that holds the data sets, to show training images; default $CLIAD_DATA.",
    ),
]
