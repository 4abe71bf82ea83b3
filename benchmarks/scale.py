"""A thousand classes: what every head costs, on random features, as the number of classes grows.

    python benchmarks/scale.py [--classes 100,1000] [--heads NAME,NAME] [--shots 16] [--dim 512]
        [--templates 1] [--seconds 600] [--threads 1] [--folder DIR]

A cache is written for each number of classes into DIR (by default the system's temporary folder):
4 validation and 10 test images a class. Each head is fitted as `cliad train` fits it by default, in
a process of its own that ends after --seconds. Printed are

- the seconds of fitting (searches included) and of scoring on test, for one run;
- the most memory beyond the loaded rows, while both are done;
- the share of this machine's float32 matrix-product rate: operations of the matrix products that
  fitting does, counted in a second fit, over its seconds. What is no product (exponentials of a
  softmax or of keys, an optimiser's step) has a part in the seconds only.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cliad.adapters import HEADS
from cliad.adapters.core.fit import Run
from cliad.cache.file.layout import DONE, Header, SplitLayout, TextSet, file_list_hash
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import Writer, create
from cliad.cli import set_up_process
from cliad.pipelines.experiments.episode import make_episodes, score_rows
from cliad.pipelines.experiments.run import fit_timed, request_of
from cliad.pipelines.experiments.score import score_runs
from cliad.pipelines.experiments.spec import spec_of

BATCH = 4096  # rows written at once
DIM_PRE = 768  # of the features before the projection, as ViT-B has
PER_CLASS = {"val": 4, "test": 10}
# Of a feature, beside noise: its class's text and a direction that only images of the class share.
TEXT_SHARE = 0.15
IMAGE_SHARE = 0.2
CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------- the cache


def write_cache(path: Path, n_class: int, options: argparse.Namespace) -> None:
    """Random features around the texts of their classes; lengths are those of CLIP's."""
    generator = np.random.default_rng(0)
    length = 10 / math.sqrt(options.dim)  # of a normal number, so that rows have about length 10
    shape = (options.templates, n_class, options.dim)
    text = length * generator.normal(size=shape).astype(np.float32)
    names = [f"class {number}" for number in range(n_class)]
    templates = [f"{number} {{}}" for number in range(options.templates)]
    text_set = TextSet(
        name="default",
        features=text,
        templates=templates,
        classnames=names,
        recipe={"templates": templates, "classnames": names},
        encoder_id="e",
        logit_scale=100.0,
    )
    widths = {"features": (options.dim,), "pre_projection": (DIM_PRE,)}
    splits = {}
    for split, per_class in {"train": options.shots, **PER_CLASS}.items():
        y = np.repeat(np.arange(n_class, dtype=np.int32), per_class)
        paths = [f"{split}/{number}.jpg" for number in range(len(y))]
        splits[split] = SplitLayout(paths, y, widths)
    listed = {name: (split.paths, split.labels) for name, split in splits.items()}
    header = Header("scale", "bench", "e", {"files": file_list_hash(listed)}, BATCH)
    create(path, header, splits, [text_set])
    image_means = length * generator.normal(size=(n_class, options.dim))
    means = TEXT_SHARE * text.mean(axis=0) + IMAGE_SHARE * image_means
    with Writer(path) as writer:
        for split, start, stop in writer.todo():
            y = splits[split].labels[start:stop]
            noise = length * generator.normal(size=(len(y), options.dim))
            rows = {
                "features": means[y] + noise,
                "pre_projection": generator.normal(size=(len(y), DIM_PRE)),
            }
            rows = {name: values.astype(np.float16) for name, values in rows.items()}
            writer.write(split, start, rows, np.full(len(y), DONE, np.uint8))
        writer.finish()


# ---------------------------------------------------------------------------------------- one head


class ProductCounter(TorchDispatchMode):
    """Counts the operations of all matrix products while it is active; a multiply-add is two."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        return result


def matmul_rate() -> float:
    """Float32 operations per second of a large matrix product."""
    a, b = torch.randn(2, 2048, 2048)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        product(a, b)
        seconds.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(seconds)


def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def memory(word: str) -> int:
    """Bytes of this process: VmRSS, what it holds now; VmHWM, the most that it ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(word):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the memory of a process")


def measure(path: Path, name: str, shots: int) -> dict[str, float]:
    """What one run of a head costs on a cache; see the top of this file."""
    cache = open_cache(path)
    spec = spec_of(cache, HEADS[name](), shots=shots, seed=1)
    needs = spec.head.needs | spec.head.optional_inputs
    (drawn,) = make_episodes(cache, [request_of(spec)], CPU, needs=needs)
    test = score_rows(cache, "test", CPU, columns=spec.head.columns())
    rate = matmul_rate()
    before = memory("VmRSS")
    runs = [Run(spec.head, drawn.episode)]
    fitted, timing = fit_timed(runs, spec, CPU, largest=1)
    begin = time.perf_counter()
    (scored,) = score_runs(fitted, [drawn.episode], test)
    scoring = time.perf_counter() - begin
    peak = memory("VmHWM") - before
    with ProductCounter() as counter:
        fit_timed(runs, spec, CPU, largest=1)
    return {
        "fit": timing.train_seconds,
        "score": scoring,
        "peak": peak / 1e9,
        "share": counter.operations / timing.train_seconds / rate,
        "arithmetic": counter.operations / rate,
        "top1": 100 * (scored.scores.top1 or 0.0),
    }


# ---------------------------------------------------------------------------------------- the table


def measure_in_a_new_process(path: Path, name: str, options: argparse.Namespace) -> str:
    """The line of a head: its figures, or why there are none."""
    command = [sys.executable, __file__, "--measure", str(path), "--heads", name]
    command += ["--shots", str(options.shots), "--threads", str(options.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds)
    except subprocess.TimeoutExpired:
        return f"over {options.seconds} s"
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1:]}"
    row = json.loads(done.stdout)
    return (
        f"{row['fit']:8.2f} s {row['score']:7.2f} s {row['peak']:7.2f} GB {row['share']:7.0%} "
        f"{row['arithmetic']:8.2f} s {row['top1']:7.1f} %"
    )


def report(folder: Path, options: argparse.Namespace) -> None:
    """Print the table."""
    for n_class in [int(number) for number in options.classes.split(",")]:
        path = folder / f"{n_class}.h5"
        write_cache(path, n_class, options)
        print(
            f"{n_class} classes x {options.shots} shots x {options.dim}, "
            f"{options.templates} templates, {options.threads} threads"
        )
        print(f"{'head':20} {'fit':>10} {'score':>9} {'memory':>10} {'share':>7} {'products':>10}")
        for name in options.heads.split(","):
            line = measure_in_a_new_process(path, name, options)
            print(f"{name:20} {line}", flush=True)
        path.unlink()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", default="100,1000")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--templates", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    # How this file calls itself in the process that measures.
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        set_up_process()  # as `cliad train` runs
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.measure, options.heads, options.shots)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report(Path(folder), options)


if __name__ == "__main__":
    main()
