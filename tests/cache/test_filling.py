"""The loop from images to rows: what the encoder sees, and what becomes of what it gives."""

import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transforms

from cliad.cache.datasets.base import Listing
from cliad.cache.encoders.base import Encoder, EncoderError
from cliad.cache.extract.extraction import Extraction
from cliad.cache.extract.filling import run_extraction
from cliad.cache.extract.reading import PLAIN, Crop
from cliad.cache.file.check import problems
from cliad.cache.file.layout import DONE, TextSet, file_list_hash, recipe_id
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import Writer, create
from cliad.cache.views import ViewSet

SIZE = 4  # images are SIZE x SIZE


class MeanColour:
    """An encoder that gives the mean colour (3,) of an image and remembers the batches it saw."""

    name = "mean"
    encoder_id = "mean-1"
    image_recipe = {"weights": "none"}
    text_recipe = {"weights": "none"}
    dim = 3
    logit_scale = 100.0
    device = torch.device("cpu")
    precision = "float32"
    parts = {"features": (3,), "tokens": (2, 3)}
    preprocess_size = (SIZE, SIZE)
    threads = 1
    text_projects = False

    def __init__(self, factor=1.0, offset=0.0):
        self.factor = factor
        self.offset = offset
        self.plain = []
        self.cropped = []
        self.threads_seen = set()

    def preprocess(self, image, *, box=None, mirror=False):
        if box:
            left, top, width, height = box
            image = image.crop((left, top, left + width, top + height))
        image = image.resize((SIZE, SIZE))
        pixels = transforms.pil_to_tensor(image)
        return pixels.flip(-1) if mirror else pixels

    def encode_images(self, batch):
        self.cropped.append(batch)
        return self._mean(batch)

    def encode_parts(self, batch, parts):
        self.plain.append(batch)
        self.threads_seen.add(torch.get_num_threads())
        mean = self._mean(batch)
        found = {"features": mean, "tokens": torch.stack([mean, 2 * mean], 1)}
        return {part: found[part] for part in parts}

    def encode_texts(self, texts, *, pre_projection=False):
        return torch.ones(len(texts), 3)

    def _mean(self, batch):
        return batch.float().mean((-2, -1)) * self.factor + self.offset


def colour(row):
    """The colour of image `row`: no two alike, none black."""
    return (10 * row + 10, 200 - 10 * row, 7)


def open_image(path):
    if path.startswith("bad"):
        raise OSError("no picture")
    return Image.new("RGB", (8, 6), colour(int(path)))


def listing(train=6, test=3, bad=()):
    names = [f"bad {row}" if row in bad else str(row) for row in range(train)]
    rows = {
        "train": [(name, row % 2) for row, name in enumerate(names)],
        "test": [(str(row), row % 2) for row in range(test)],
    }
    return Listing(rows, ["cat", "dog"], open_image)


def extraction_of(encoder, rows=None, **options):
    return Extraction("toy", rows or listing(), encoder, **{"dtype": "float32"} | options)


def text_set():
    recipe = {"templates": ["{}"], "classnames": ["cat", "dog"]}
    features = np.ones((1, 2, 3))
    return TextSet("default", features, ["{}"], ["cat", "dog"], recipe, "mean-1", 100.0)


def run(path, extraction, batch=4):
    """Make and fill a cache: the statistics, the states of progress, and the open cache."""
    create(path, extraction.header(batch), extraction.splits, [text_set()])
    states = []
    filled = run_extraction(path, extraction, workers=2, progress=states.append)
    return filled, states, open_cache(path)


def test_it_is_an_encoder():
    assert isinstance(MeanColour(), Encoder)


def test_every_batch_that_the_encoder_sees_has_the_same_shape(tmp_path):
    encoder = MeanColour()
    _, _, cache = run(tmp_path / "a.h5", extraction_of(encoder, listing(6, 3)), batch=4)
    assert [tuple(batch.shape) for batch in encoder.plain] == [(4, 3, SIZE, SIZE)] * 3
    assert {batch.dtype for batch in encoder.plain} == {torch.uint8}
    assert not encoder.plain[1][2:].any() and not encoder.plain[2][3:].any()  # the padding is black
    assert cache.split("train").rows().tolist() == [list(colour(row)) for row in range(6)]
    assert cache.split("test").rows().tolist() == [list(colour(row)) for row in range(3)]
    assert cache.split("train").status.tolist() == [1] * 6 and problems(cache) == []


def test_what_was_done_is_counted(tmp_path):
    filled, states, _ = run(tmp_path / "a.h5", extraction_of(MeanColour(), listing(6, 3)), batch=4)
    assert [state.done for state in states] == [4, 6, 9]
    assert {state.total for state in states} == {9}
    assert all(state.rate > 0 and 0 <= state.waiting <= 1 for state in states)
    assert filled.images == 9 and filled.unreadable == [] and 0 <= filled.waited <= filled.seconds


def test_a_resumed_extraction_counts_what_was_there(tmp_path):
    path = tmp_path / "a.h5"
    extraction = extraction_of(MeanColour(), listing(6, 3))
    create(path, extraction.header(4), extraction.splits, [text_set()])
    with Writer(path) as writer:
        rows = np.array([colour(row) for row in range(4)])
        writer.write("train", 0, {"features": rows}, np.full(4, DONE))
    encoder = MeanColour()
    states = []
    filled = run_extraction(
        path, extraction_of(encoder, listing(6, 3)), workers=2, progress=states.append
    )
    assert filled.images == 5 and len(encoder.plain) == 2
    assert [state.done for state in states] == [6, 9]
    assert problems(open_cache(path)) == []


def test_the_encoder_has_its_own_number_of_threads_and_gives_the_others_back(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        encoder = MeanColour()
        run(tmp_path / "a.h5", extraction_of(encoder))
        assert encoder.threads_seen == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_parts_are_stored_beside_the_features(tmp_path):
    _, _, cache = run(tmp_path / "a.h5", extraction_of(MeanColour(), parts=("features", "tokens")))
    tokens = cache.column("train", "tokens")
    assert tokens.shape == (6, 2, 3)
    assert tokens[5].tolist() == [list(colour(5)), [2 * value for value in colour(5)]]


VIEWS = {"crop-0.5-1": ViewSet(3, (0.5, 1.0)), "flip": ViewSet(1, flip=1.0)}


def test_an_unreadable_image_is_zero_in_its_row_and_its_views_and_nowhere_else(tmp_path):
    encoder = MeanColour(offset=9.0)  # a black image would not be zero
    extraction = extraction_of(
        encoder, listing(6, 3, bad=(1, 4)), view_sets=VIEWS, view_rows=[1, 2, 4, 5]
    )
    filled, _, cache = run(tmp_path / "a.h5", extraction, batch=4)
    train = cache.split("train")
    assert train.status.tolist() == [1, 2, 1, 1, 2, 1]
    blank = [0, 0, 0]
    lifted = [[value + 9 for value in colour(row)] for row in range(6)]
    expected = [blank if row in (1, 4) else lifted[row] for row in range(6)]
    assert train.rows().tolist() == expected
    views = cache.column("train", "views/crop-0.5-1")
    one_view = [blank, lifted[2], blank, lifted[5]]
    assert views.tolist() == [one_view] * 3
    assert cache.column("train", "views/flip").tolist() == [one_view]
    assert sorted(filled.unreadable) == [
        ("train bad 1", "OSError: no picture"),
        ("train bad 4", "OSError: no picture"),
    ]
    assert problems(cache) == []


def test_views_are_made_of_the_rows_they_cover_alone(tmp_path):
    encoder = MeanColour()
    extraction = extraction_of(encoder, view_sets=VIEWS, view_rows=[0, 5])
    _, _, cache = run(tmp_path / "a.h5", extraction, batch=2)
    assert [len(batch) for batch in encoder.cropped] == [1] * 8  # 2 rows x (3 crops + 1 mirrored)
    assert cache.column("train", "views/flip_rows").tolist() == [0, 5]
    assert cache.column("test", "views/flip") is None


@pytest.mark.parametrize("at_once, groups", [(2, [1, 1, 1, 1, 1]), (4, [2, 2, 1]), (100, [5])])
def test_jobs_hold_at_most_so_many_images_plain_view_first(monkeypatch, at_once, groups):
    monkeypatch.setattr("cliad.cache.extract.extraction.AT_ONCE", at_once)
    extraction = extraction_of(MeanColour(), view_sets=VIEWS)
    jobs = list(extraction.jobs([("train", 2, 4)]))
    assert [len(part.crops) for part in jobs] == groups
    crops = [crop for part in jobs for crop in part.crops]
    views = [Crop("crop-0.5-1", 0), Crop("crop-0.5-1", 1), Crop("crop-0.5-1", 2), Crop("flip", 0)]
    assert crops == [PLAIN, *views]
    assert [part.last for part in jobs] == [False] * (len(groups) - 1) + [True]
    assert {(part.split, part.start, part.stop) for part in jobs} == {("train", 2, 4)}
    assert all(part.rows == [2, 3] for part in jobs)


def test_features_too_large_for_the_type_are_an_error_that_names_the_rows(tmp_path):
    path = tmp_path / "a.h5"
    extraction = extraction_of(MeanColour(factor=1000.0), listing(6, 3), dtype="float16")
    message = r"features of train rows 0 to 3 are not finite in float16; try --dtype float32"
    with pytest.raises(EncoderError, match=message):
        run(path, extraction, batch=4)
    assert not path.exists()


def test_the_recipe_holds_all_that_decides_the_rows():
    plain = extraction_of(MeanColour()).recipe
    files = file_list_hash(
        {
            "train": ([str(row) for row in range(6)], np.arange(6) % 2),
            "test": ([str(row) for row in range(3)], np.arange(3) % 2),
        }
    )
    basic = {"files": files, "encoder": {"weights": "none"}, "dtype": "float32"}
    basic["parts"] = ["features"]
    assert plain == basic
    some = extraction_of(MeanColour(), view_sets=VIEWS, view_rows=[0, 5]).recipe
    covered = recipe_id({"rows": [0, 5]})
    crop = {"n_view": 3, "flip": 0.5, "seed": 1, "scale_low": 0.5, "scale_high": 1.0}
    crop["rows"] = covered
    flip = {"n_view": 1, "flip": 1.0, "seed": 1, "rows": covered}
    assert some == basic | {"views": {"crop-0.5-1": crop, "flip": flip}}
    every = extraction_of(MeanColour(), view_sets=VIEWS).recipe
    assert every["views"]["flip"]["rows"] == "all"


def test_a_mark_of_the_listing_is_part_of_the_recipe():
    marked = replace(listing(), content_hash="batches of 2009")
    recipe = extraction_of(MeanColour(), marked).recipe
    assert recipe == extraction_of(MeanColour()).recipe | {"mark": "batches of 2009"}


def test_only_training_rows_have_views():
    rows = listing()
    rows.splits["val"] = [("7", 0)]
    splits = extraction_of(MeanColour(), rows, view_sets=VIEWS).splits
    assert {name: list(split.views) for name, split in splits.items()} == {
        "train": ["crop-0.5-1", "flip"],
        "test": [],
        "val": [],
    }


def test_the_header_names_the_file_and_records_what_made_it():
    header = extraction_of(MeanColour()).header(32)
    assert (header.dataset, header.encoder, header.encoder_id) == ("toy", "mean", "mean-1")
    assert (header.batch, header.dtype, header.unit_rows) == (32, "float32", False)
    assert header.versions["torch"] == importlib.metadata.version("torch")
    assert header.versions["device"] == "cpu" and header.versions["precision"] == "float32"


def test_the_size_on_the_disk_counts_rows_parts_and_views():
    plain = extraction_of(MeanColour())
    assert plain.nbytes == 4 * 9 * 3
    rich = extraction_of(
        MeanColour(),
        parts=("features", "tokens"),
        view_sets=VIEWS,
        view_rows=[0, 5],
        dtype="float16",
    )
    assert rich.nbytes == 2 * (9 * (3 + 6) + (3 + 1) * 2 * 3)
