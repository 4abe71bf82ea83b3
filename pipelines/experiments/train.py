"""`cliad train`: one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cliad.adapters.core.progress import Steps, silent, steps_go_to
from cliad.cache.equal_texts import note_equal_texts
from cliad.cache.file.read import FeatureCache
from cliad.cache.folder import cache_dir
from cliad.pipelines.experiments.episode import pick_device
from cliad.pipelines.experiments.find_cache import CacheChoice, find_cache
from cliad.pipelines.experiments.memory import check_size
from cliad.pipelines.experiments.run import run
from cliad.pipelines.experiments.score import Result
from cliad.pipelines.experiments.spec import CAUTION, make_head, spec_of
from cliad.pipelines.fewshot.draw import check_request


def train(
    *,
    folder: Path | None = None,
    dataset: str | None = None,
    encoder: str | None = None,
    prompts: str | None = None,
    head: str = "clip-adapter",
    hyper: Mapping[str, object] = {},
    shots: int = 16,
    seed: int = 1,
    protocol: str = "coop",
    select: str | None = None,
    transductive: bool = False,
    device: str = "auto",
    log: Callable[[str], None] = lambda message: None,
    steps: Steps = silent,
) -> tuple[Result, FeatureCache]:
    """One run: the verb `cliad train`.

    Args:
        folder: the cache folder; None: $CLIAD_CACHE or the user's cache folder.
        dataset, encoder, prompts: which cache; by default the one written last, or the bundled
            digits.
        head: a name of `cliad heads`.
        hyper: its hyper-parameters by name, such as {"alpha": 0.2}.
        shots, seed, protocol: the few-shot draw; shots are images per class.
        select: "fixed" hyper-parameters, chosen on "val", or by folds of the support itself ("cv",
            which reads no validation image); None: the head's published way.
        transductive: score with all test images at once, see `adapt_to_batch`; the head itself is
            that of the same run without it.
        device: auto, cpu, cuda, cuda:1, mps.
        log: takes messages for the user.
        steps: takes how many steps of training are done, and how many there are.

    Returns:
        The result (`.row()`: accuracies as fractions, seconds; `.classifier`) and the cache that it
        is of.

    Raises:
        SpecError, HeadError, DrawError, CacheError: what is wrong and what to do, in one line.
    """
    untrained = make_head(head, hyper)
    check_request(shots, protocol, seed)
    cache = find_cache(CacheChoice(cache_dir(folder), dataset, encoder, prompts), log)
    note_equal_texts(cache.text, cache.classnames, cache.encoder, log)
    spec = spec_of(
        cache,
        untrained,
        given=hyper,
        shots=shots,
        seed=seed,
        protocol=protocol,
        select=select,
        transductive=transductive,
    )
    if transductive:
        log(CAUTION)
    torch_device = pick_device(device)
    check_size(untrained, cache, shots)
    with steps_go_to(steps):
        (results,) = run(cache, [spec], torch_device)
    (result,) = results
    return result, cache
