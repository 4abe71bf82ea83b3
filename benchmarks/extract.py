"""How much of what the machine can do does `cliad extract` reach? Prints rates and their ratios.

    python benchmarks/extract.py PHOTOS [--images 384] [--repeat 5]

PHOTOS is a folder of pictures. Two questions, each answered by the median of some repetitions that take turns. The number of images
is rounded up to whole batches: a split's last batch is filled up, which a few hundred images would feel and thousands do not.

1. The encoder is the limit: a ViT-B-32 (seeded random weights, which is fine for speed) on ready tensors, against extract from the files.
2. Reading is the limit: all cores decode and resize the same files, against extract with a very small encoder of the same input size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from cliad.cache.datasets.base import image_files, open_image
from cliad.cache.encoders import clip
from cliad.cache.extract.batch_size import default_batch
from cliad.cache.extract.choices import EncoderChoice
from cliad.cache.extract.job import Extraction
from cliad.cache.extract.reading import default_workers
from cliad.cli import set_up_process
from cliad.pipelines.extract import extract

SMALL = {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32}


def weights(folder: Path, name: str) -> str:
    """A weights file with seeded random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name)
    save_file(
        {key: x.contiguous() for key, x in model.state_dict().items()},
        folder / f"{name}.safetensors",
    )
    return str(folder / f"{name}.safetensors")


def data_set(folder: Path, photos: Path, count: int) -> Path:
    """A test-only folder of `count` links to the photographs, over and over."""
    names = image_files(photos)
    (folder / "test" / "photo").mkdir(parents=True)
    for i in range(count):
        source = (photos / names[i % len(names)]).resolve()
        (folder / "test" / "photo" / f"{i:05d}{source.suffix}").symlink_to(source)
    return folder


def extract_rate(folder: Path, model: str, file: str, device: str) -> float:
    """Images a second of an extraction's filling, as it reports them."""
    states = []
    with tempfile.TemporaryDirectory() as cache:
        choice = EncoderChoice(model, file, quick_gelu=True)
        extract(
            f"folder:{folder}",
            encoder=choice,
            cache_folder=Path(cache),
            device=device,
            progress=states.append,
        )
    return states[-1].rate


def bare_rate(encoder: clip.Clip, batch: int, count: int) -> float:
    """Images a second of the encoder alone on ready tensors, as a plain loop would call it."""
    size = encoder.image_recipe["preprocess"]["size"]
    images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(
        encoder.device
    )
    begin = time.perf_counter()
    for _ in range(max(1, count // batch)):
        encoder.encode_images(images).cpu()
    return batch * max(1, count // batch) / (time.perf_counter() - begin)


def read_rate(encoder: clip.Clip, folder: Path) -> float:
    """Images a second that all cores decode and resize."""
    files = [folder / name for name in image_files(folder)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(lambda file: encoder.preprocess(open_image(file)).shape, files))
    return len(files) / (time.perf_counter() - begin)


def compare(title: str, reference, measured, repeat: int) -> None:
    pairs = [(reference(), measured()) for _ in range(repeat)]
    one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(two / one for one, two in pairs)
    middle, least, most = statistics.median(ratios), ratios[0], ratios[-1]
    print(
        f"{title}: {one:.1f} images/s, cliad extract {two:.1f} images/s, ratio {middle:.2f} ({least:.2f} to {most:.2f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    set_up_process()  # both sides run as `cliad extract` does
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "small-224.json").write_text(
            json.dumps(
                {
                    "embed_dim": 64,
                    "vision_cfg": SMALL,
                    "text_cfg": {"width": 32, "heads": 2, "layers": 1},
                }
            )
        )
        open_clip.add_model_config(root / "small-224.json")
        large, small = weights(root, "ViT-B-32"), weights(root, "small-224")
        encoder = clip.load("ViT-B-32", large, device=torch.device(args.device), quick_gelu=True)
        batch = default_batch(
            Extraction(
                "asked", _listing(data_set(root / "asked", args.photos, args.images)), encoder
            )
        )
        images = -(-args.images // batch) * batch
        few, many = (
            data_set(root / "few", args.photos, images),
            data_set(root / "many", args.photos, 4 * images),
        )
        bare_rate(encoder, batch, batch), read_rate(encoder, few)  # warm
        compare(
            f"the bare ViT-B-32 on {args.device}, batches of {batch}",
            lambda: bare_rate(encoder, batch, images),
            lambda: extract_rate(few, "ViT-B-32", large, args.device),
            args.repeat,
        )
        tiny = clip.load("small-224", small, device=torch.device(args.device), quick_gelu=True)
        compare(
            f"{default_workers()} cores that only decode and resize",
            lambda: read_rate(tiny, many),
            lambda: extract_rate(many, "small-224", small, args.device),
            args.repeat,
        )


def _listing(folder: Path):
    from cliad.cache.datasets.own import read_folder

    return read_folder(folder)


if __name__ == "__main__":
    main()
