"""An ImageNet-size cache: how fast is it written, opened and drawn from, and in how much memory?

    python benchmarks/store.py [--rows 1280000] [--dim 512] [--folder DIR]

Needs about 4 GB of disk in DIR (by default the system's temporary folder). Prints figures and
ratios. Reading is measured in a process of its own, whose memory is that of reading alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cliad.cache.file.layout import DONE, Header, SplitLayout, TextSet, file_list_hash
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import Writer, create
from cliad.pipelines.fewshot.draw import draw

N_CLASS = 1000
BATCH = 512
SHOTS = 16
N_OPENING = 5


# ---------------------------------------------------------------------------------------- writing


def make_skeleton(path: Path, rows: int, dim: int) -> None:
    """A cache of ImageNet's shape, with all rows still to do."""
    labels = np.arange(rows, dtype=np.int32) * N_CLASS // rows
    paths = [f"train/n{label:08d}/n{label:08d}_{i}.JPEG" for i, label in enumerate(labels)]
    split = SplitLayout(paths, labels, {"features": (dim,)})
    names = [f"class {i}" for i in range(N_CLASS)]
    text = TextSet(
        name="default",
        features=np.ones((1, N_CLASS, dim), np.float32),
        templates=["{}"],
        classnames=names,
        recipe={"templates": ["{}"], "classnames": names},
        encoder_id="e",
        logit_scale=100.0,
    )
    files = file_list_hash({"train": (paths, labels)})
    header = Header("imagenet", "bench", "e", {"files": files}, BATCH)
    create(path, header, {"train": split}, [text])


def write_cache(path: Path, block: np.ndarray) -> float:
    """Megabytes a second of writing all rows batch by batch, synced at the end."""
    done = np.full(BATCH, DONE, np.uint8)
    begin = time.perf_counter()
    with Writer(path) as writer:
        for name, start, stop in writer.todo():
            writer.write(name, start, {"features": block[: stop - start]}, done[: stop - start])
        size = writer.cache.split("train").x.nbytes
        writer.finish()
    return size / (time.perf_counter() - begin) / 1e6


def write_plain(path: Path, block: np.ndarray, rows: int) -> float:
    """Megabytes a second of writing the same rows to a plain file, synced at the end."""
    size = rows * block.shape[1] * block.itemsize
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # as the cache does
        for start in range(0, rows, BATCH):
            file.write(memoryview(block[: min(BATCH, rows - start)]).cast("B"))
        os.fsync(file.fileno())
    path.unlink()
    return size / (time.perf_counter() - begin) / 1e6


# ---------------------------------------------------------------------------------------- reading


def peak_memory() -> float:
    """The most memory that this process ever held, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("this system does not tell the peak memory of a process")


def measure_reading(path: Path) -> dict[str, float]:
    """Seconds of opening a cache and of drawing shots from it, and the memory of both in MB."""
    memory_before = peak_memory()
    seconds = []
    for _ in range(N_OPENING):
        begin = time.perf_counter()
        cache = open_cache(path)
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    split = cache.split("train")
    drawn = draw(split.y.tolist(), None, shots=SHOTS, seed=1).train
    rows = split.rows(np.sort(drawn))
    return {
        "draw": time.perf_counter() - begin,
        "open": statistics.median(seconds),
        "first": seconds[0],
        "rows": rows.nbytes / 1e6,
        "memory": peak_memory() - memory_before,
    }


def measure_in_a_new_process(path: Path) -> dict[str, float]:
    """`measure_reading` in a process that has done nothing else."""
    command = [sys.executable, __file__, "--measure-reading", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def report(folder: Path, rows: int, dim: int, repeat: int) -> None:
    """Write and read an ImageNet-size cache `repeat` times, and print the medians."""
    path = folder / "imagenet.h5"
    block = np.random.default_rng(0).normal(size=(BATCH, dim)).astype(np.float16)
    plain_speeds = []
    cache_speeds = []
    # In turns, so that a busy machine slows both alike.
    for _ in range(repeat):
        make_skeleton(path, rows, dim)
        plain_speeds.append(write_plain(folder / "plain", block, rows))
        cache_speeds.append(write_cache(path, block))
    plain = statistics.median(plain_speeds)
    cache = statistics.median(cache_speeds)
    print(
        f"writing: a plain file {plain:.0f} MB/s, the cache {cache:.0f} MB/s, "
        f"ratio {cache / plain:.2f}"
    )
    runs = [measure_in_a_new_process(path) for _ in range(repeat)]
    read = {}
    for key in runs[0]:
        read[key] = statistics.median([run[key] for run in runs])
    print(
        f"opening: {1e3 * read['open']:.1f} ms (first time {1e3 * read['first']:.1f} ms), "
        f"{path.stat().st_size / 1e9:.2f} GB"
    )
    print(
        f"a {SHOTS}-shot draw: {read['draw']:.2f} s for {read['rows']:.0f} MB of rows; "
        f"memory rose by {read['memory']:.0f} MB"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    # How this file calls itself in the process that reads.
    parser.add_argument("--measure-reading", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_reading is not None:
        print(json.dumps(measure_reading(args.measure_reading)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report(Path(folder), args.rows, args.dim, args.repeat)


if __name__ == "__main__":
    main()
