"""An ImageNet-size cache: how fast is it written, opened and drawn from, and with how much memory? Prints figures and ratios.

    python benchmarks/store.py [--rows 1280000] [--dim 512] [--folder DIR]

Needs about 4 GB of disk in DIR (by default the system's temporary folder). Reading is measured in a process of its own.
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
from cliad.cache.file.write import Writer, create

N_CLASS, BATCH, SHOTS = 1000, 512, 16


def skeleton(path: Path, rows: int, dim: int) -> None:
    labels = np.arange(rows, dtype=np.int32) * N_CLASS // rows
    paths = [f"train/n{label:08d}/n{label:08d}_{i}.JPEG" for i, label in enumerate(labels)]
    split = SplitLayout(paths, labels, {"features": (dim,)})
    names = [f"class {i}" for i in range(N_CLASS)]
    recipe = {"templates": ["{}"], "classnames": names}
    text = TextSet(
        "default", np.ones((1, N_CLASS, dim), np.float32), ["{}"], names, recipe, "e", 100.0
    )
    header = Header(
        "imagenet", "bench", "e", {"files": file_list_hash({"train": (paths, labels)})}, BATCH
    )
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
    """Megabytes a second of writing the same rows to a plain file of reserved space, synced at the end."""
    size = rows * block.shape[1] * block.itemsize
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for start in range(0, rows, BATCH):
            file.write(memoryview(block[: min(BATCH, rows - start)]).cast("B"))
        os.fsync(file.fileno())
    path.unlink()
    return size / (time.perf_counter() - begin) / 1e6


READ = """
import json, random, resource, sys, time
from pathlib import Path
import numpy as np
from cliad.cache.file.read import open_cache
from cliad.pipelines.fewshot.draw import draw
memory = lambda: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1e3
path, shots = Path(sys.argv[1]), int(sys.argv[2])
before = memory()
opened = []
for _ in range(5):
    begin = time.perf_counter(); cache = open_cache(path); opened.append(time.perf_counter() - begin)
begin = time.perf_counter()
split = cache.split("train")
drawn = draw(split.y.tolist(), None, shots=shots, seed=1).train
rows = split.rows(np.sort(drawn))
seconds = time.perf_counter() - begin
print(json.dumps({"open": sorted(opened)[2], "draw": seconds, "rows": rows.nbytes / 1e6, "memory": memory() - before, "first": opened[0]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    block = np.random.default_rng(0).normal(size=(BATCH, args.dim)).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        path, pairs = Path(temporary) / "imagenet.h5", []
        for _ in range(args.repeat):
            skeleton(path, args.rows, args.dim)
            pairs.append(
                (write_plain(Path(temporary) / "plain", block, args.rows), write_cache(path, block))
            )
        plain, cache = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"writing: a plain file {plain:.0f} MB/s, the cache {cache:.0f} MB/s, ratio {cache / plain:.2f}"
        )
        out = [
            json.loads(
                subprocess.run(
                    [sys.executable, "-c", READ, path, str(SHOTS)],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for _ in range(args.repeat)
        ]
        read = {key: statistics.median(found[key] for found in out) for key in out[0]}
        print(
            f"opening: {1e3 * read['open']:.1f} ms (first time {1e3 * read['first']:.1f} ms), {path.stat().st_size / 1e9:.2f} GB"
        )
        print(
            f"a {SHOTS}-shot draw: {read['draw']:.2f} s for {read['rows']:.0f} MB of rows; memory rose by {read['memory']:.0f} MB"
        )


if __name__ == "__main__":
    main()
