"""How much of what the machine can do does `cliad extract` reach? Prints rates and their ratios.

    python benchmarks/extract.py PHOTOS [--images 384] [--repeat 5]

PHOTOS is a folder of pictures. Two questions, each answered by the median of some repetitions that
take turns. The number of images is rounded up to whole batches: a split's last batch is filled up,
which a few hundred images would feel and thousands do not.

1. The encoder is the limit: a ViT-B-32 (seeded random weights, which is fine for speed) on ready
   tensors, against extract from the files.
2. Reading is the limit: all cores decode and resize the same files, against extract with a very
   small encoder of the same input size.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from cliad.cache.datasets.folders import image_files
from cliad.cache.datasets.own import read_folder
from cliad.cache.datasets.pictures import open_image
from cliad.cache.encoders import clip
from cliad.cache.extract.batch_size import default_batch
from cliad.cache.extract.choices import EncoderChoice
from cliad.cache.extract.extraction import Extraction
from cliad.cache.extract.filling import Progress
from cliad.cache.extract.workers import default_workers
from cliad.cli import set_up_process
from cliad.pipelines.extract import extract

SMALL = {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32}


def weights(folder: Path, name: str) -> str:
    """A weights file with seeded random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name)
    state = {key: x.contiguous() for key, x in model.state_dict().items()}
    file = folder / f"{name}.safetensors"
    save_file(state, file)
    return str(file)


def register_small_model(folder: Path) -> str:
    """Make a very small architecture known to open_clip; its name."""
    config = {
        "embed_dim": 64,
        "vision_cfg": SMALL,
        "text_cfg": {"width": 32, "heads": 2, "layers": 1},
    }
    file = folder / "small-224.json"
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    return file.stem


def data_set(folder: Path, photos: Path, count: int) -> Path:
    """A test-only folder of `count` copies of the photographs, over and over."""
    names = image_files(photos)
    (folder / "test" / "photo").mkdir(parents=True)
    for i in range(count):
        source = (photos / names[i % len(names)]).resolve()
        shutil.copyfile(source, folder / "test" / "photo" / f"{i:05d}{source.suffix}")
    return folder


def extract_rate(folder: Path, model: str, file: str, device: str) -> float:
    """Images a second of an extraction's filling, as it reports them."""
    states: list[Progress] = []
    with tempfile.TemporaryDirectory() as cache:
        extract(
            f"folder:{folder}",
            encoder=EncoderChoice(model, file, quick_gelu=True),
            cache_folder=Path(cache),
            device=device,
            progress=states.append,
        )
    return states[-1].rate


def bare_rate(encoder: clip.Clip, batch: int, count: int) -> float:
    """Images a second of the encoder alone on ready tensors, as a plain loop would call it."""
    shape = (batch, 3, *encoder.preprocess_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(encoder.device)
    n_batch = max(1, count // batch)
    begin = time.perf_counter()
    for _ in range(n_batch):
        encoder.encode_images(images).cpu()
    return batch * n_batch / (time.perf_counter() - begin)


def read_rate(encoder: clip.Clip, folder: Path) -> float:
    """Images a second that all cores decode and resize."""
    files = [folder / name for name in image_files(folder)]

    def read(file: Path) -> torch.Size:
        return encoder.preprocess(open_image(file)).shape

    begin = time.perf_counter()
    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(read, files))
    return len(files) / (time.perf_counter() - begin)


def compare(
    title: str, reference: Callable[[], float], measured: Callable[[], float], repeat: int
) -> None:
    """Measure both in turns and print the medians and the ratios."""
    reference_rates = []
    measured_rates = []
    ratios = []
    for _ in range(repeat):
        reference_rates.append(reference())
        measured_rates.append(measured())
        ratios.append(measured_rates[-1] / reference_rates[-1])
    print(
        f"{title}: {statistics.median(reference_rates):.1f} images/s, "
        f"cliad extract {statistics.median(measured_rates):.1f} images/s, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def run(root: Path, args: argparse.Namespace) -> None:
    """Both comparisons, with their files below `root`."""
    device = torch.device(args.device)
    small_model = register_small_model(root)
    large_file = weights(root, "ViT-B-32")
    small_file = weights(root, small_model)
    large = clip.load("ViT-B-32", large_file, device=device, quick_gelu=True)
    small = clip.load(small_model, small_file, device=device, quick_gelu=True)
    # The batch size depends on the number of images, which then is rounded up to whole batches.
    listing = read_folder(data_set(root / "first", args.photos, args.images))
    batch = default_batch(Extraction("first", listing, large))
    n_image = math.ceil(args.images / batch) * batch
    few = data_set(root / "few", args.photos, n_image)
    many = data_set(root / "many", args.photos, 4 * n_image)
    bare_rate(large, batch, batch)  # these two warm up
    read_rate(large, few)
    compare(
        f"the bare ViT-B-32 on {args.device}, batches of {batch}",
        lambda: bare_rate(large, batch, n_image),
        lambda: extract_rate(few, "ViT-B-32", large_file, args.device),
        args.repeat,
    )
    compare(
        f"{default_workers()} cores that only decode and resize",
        lambda: read_rate(small, many),
        lambda: extract_rate(many, small_model, small_file, args.device),
        args.repeat,
    )


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    set_up_process()  # both sides run as `cliad extract` does
    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary), args)


if __name__ == "__main__":
    main()
