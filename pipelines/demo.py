"""The whole of cliad on bundled data: two heads, five numbers of shots, three seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cliad.cache.files import check_place, replacing
from cliad.errors import CliadError
from cliad.pipelines.experiments.episode import pick_device
from cliad.pipelines.experiments.find_cache import CacheChoice, find_cache
from cliad.pipelines.experiments.run import run
from cliad.pipelines.experiments.spec import make_head, spec_of
from cliad.pipelines.report.charts import curves

# What the curves compare: the field's baseline, and the method that this tool is named after.
HEADS = ("linear-probe", "clip-adapter")
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)
FILES = ("results.jsonl", "accuracy.svg")


class DemoError(CliadError):
    """The demo cannot write its files; the message says where and what to do."""


@dataclass(frozen=True)
class Demo:
    """What the demo found: accuracies by head and shots (means over seeds), all rows, the files."""

    zero_shot: float  # accuracy without any training, as all below a fraction
    mean: dict[str, dict[int, float]]
    rows: Sequence[dict]
    files: Sequence[Path]


def demo(*, folder: Path, out: Path, log: Callable[[str], None], device: str = "auto") -> Demo:
    """Run it all; results.jsonl and accuracy.svg are written to `out`.

    Raises:
        DemoError: `out` cannot be written.
        EncoderError: there is no such device.
    """
    # Both before the bundled data are encoded.
    torch_device = pick_device(device)
    _check_out(out)
    cache = find_cache(CacheChoice(folder, "digits", "tiny"), log)
    specs = []
    for name in HEADS:
        head = make_head(name, {})
        for shots in SHOTS:
            specs += [spec_of(cache, head, shots=shots, seed=seed) for seed in SEEDS]
    heads = ", ".join(HEADS)
    log(f"training {len(specs)} heads: {heads} at {_listed(SHOTS)} shots, seeds {_listed(SEEDS)}")
    rows = []
    for results in run(cache, specs, torch_device):
        rows += [result.row() for result in results]
    mean = {}
    for name in HEADS:
        mean[name] = {shots: _mean_top1(rows, name, shots) for shots in SHOTS}
    # Every row has it: zero-shot depends on the cache alone.
    zero_shot = rows[0]["zero_shot_top1"]
    picture = curves(
        mean,
        title=f"{cache.dataset} with encoder {cache.encoder}",
        x_title="shots per class",
        level=("zero-shot", zero_shot),
    )
    return Demo(zero_shot, mean, rows, _write(out, rows, picture))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _mean_top1(rows: Sequence[dict], head: str, shots: int) -> float:
    """The mean over seeds."""
    found = [row["top1"] for row in rows if row["head"] == head and row["shots"] == shots]
    return statistics.mean(found)


def _check_out(out: Path) -> None:
    """DemoError where the folder `out` cannot be made or written."""
    try:
        for name in FILES:
            check_place(out / name)
    except OSError as error:
        raise _cannot_write(out, error) from None


def _write(out: Path, rows: Sequence[dict], picture: str) -> list[Path]:
    lines = [json.dumps(row) + "\n" for row in rows]
    files = [out / name for name in FILES]
    try:
        # All of them are written before the first takes its name: there is no half of a demo.
        with ExitStack() as places:
            for path, text in zip(files, ("".join(lines), picture), strict=True):
                new = places.enter_context(replacing(path))
                new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot_write(out, error) from None
    return files


def _cannot_write(out: Path, error: OSError) -> DemoError:
    reason = error.strerror or error
    return DemoError(f"cannot write to {out}: {reason}; give another folder with --out DIR")
