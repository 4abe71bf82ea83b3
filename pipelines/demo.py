"""The whole of cliad on bundled data: extract digits with the bundled encoder, three heads, five shot counts, three seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliad.pipelines.experiments.episode import pick_device
from cliad.pipelines.experiments.find_cache import find_cache
from cliad.pipelines.experiments.run import run
from cliad.pipelines.experiments.spec import make_head, spec_of
from cliad.pipelines.report.charts import curves
from cliad.pipelines.runs.run_folder import BundleError

HEADS = ("linear-probe", "clip-adapter")
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)


@dataclass(frozen=True)
class Demo:
    """What the demo found: zero-shot accuracy, mean accuracy by head and shots, all rows, and the files written."""

    zero_shot: float
    mean: dict[str, dict[int, float]]
    rows: Sequence[dict]
    files: Sequence[Path]


def demo(*, folder: Path, out: Path, tell: Callable[[str], None], device: str = "auto") -> Demo:
    """Run it all; results.jsonl and accuracy.svg are written to `out`."""
    cache = find_cache(folder, "digits", "tiny", None, tell)
    asked = [(head, shots, seed) for head in HEADS for shots in SHOTS for seed in SEEDS]
    heads = {head: make_head(head, {}) for head in HEADS}
    specs = [spec_of(cache, head, heads[head], shots=n, seed=s, protocol="coop", select=None, given=()) for head, n, s in asked]
    tell(f"training {len(specs)} heads: {', '.join(HEADS)} at {', '.join(map(str, SHOTS))} shots, seeds {', '.join(map(str, SEEDS))}")
    rows = [result.row() for results in run(cache, specs, pick_device(device)) for result in results]
    top1 = lambda head, shots: statistics.mean(row["top1"] for row in rows if (row["head"], row["shots"]) == (head, shots))
    mean = {head: {shots: top1(head, shots) for shots in SHOTS} for head in HEADS}
    zero_shot = rows[0]["zero_shot_top1"]
    picture = curves(mean, title=f"{cache.dataset} with encoder {cache.encoder}", x_title="shots per class", level=("zero-shot", zero_shot))
    return Demo(zero_shot, mean, rows, _write(out, rows, picture))


def _write(out: Path, rows: Sequence[dict], picture: str) -> list[Path]:
    files = {out / "results.jsonl": "".join(json.dumps(row) + "\n" for row in rows), out / "accuracy.svg": picture}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BundleError(f"cannot write to {out}: {error.strerror}; give another folder with --out DIR") from None
    return list(files)
