"""Stage one from end to end, on digits with a small random encoder."""

from pathlib import Path

import layouts
import numpy as np
import open_clip
import pytest
import torch
import toy_clip
from PIL import Image, ImageOps
from torchvision.transforms import functional as transforms

from cliad.cache.datasets import find_dataset
from cliad.cache.datasets.base import DatasetError
from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.clip import Clip
from cliad.cache.extract.batch_size import CPU_BATCH
from cliad.cache.extract.choices import EncoderChoice, Extras, PromptChoice
from cliad.cache.file.check import problems
from cliad.cache.file.layout import CacheError
from cliad.cache.file.read import open_cache
from cliad.cache.views import ViewSet
from cliad.pipelines.extract import extract
from cliad.pipelines.fewshot.draw import draw


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """(name, weights file) of a small random CLIP."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("toy")
    return toy_clip.register(folder), str(toy_clip.weights(folder))


@pytest.fixture(scope="session")
def digits_cache(toy, tmp_path_factory):
    return extract(
        "digits",
        model=toy[0],
        pretrained=toy[1],
        cache_folder=tmp_path_factory.mktemp("cache"),
        dtype="float32",
    )


def plain_loop(toy, images):
    """Features of a plain open_clip loop: its own transform, one image at a time."""
    model, _, transform = open_clip.create_model_and_transforms(toy[0], pretrained=toy[1])
    model.eval()
    with torch.no_grad():
        return torch.cat(
            [model.encode_image(transform(image)[None]) for image in images]
        ).numpy(), model


def error(x, expected):
    return np.max(np.linalg.norm(x - expected, axis=-1) / np.linalg.norm(expected, axis=-1))


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("float32", 1e-5)])
def test_features_equal_a_plain_open_clip_loop(toy, tmp_path, dtype, tolerance):
    cache = open_cache(
        extract("digits", model=toy[0], pretrained=toy[1], cache_folder=tmp_path, dtype=dtype)
    )
    listing = find_dataset("digits").read(None, "field")
    paths = [path for path, _ in listing.splits["val"]]
    expected, model = plain_loop(toy, [listing.open(path) for path in paths])
    split = cache.split("val")
    assert error(split.rows(), expected) < tolerance
    assert split.paths() == paths and split.y.tolist() == [y for _, y in listing.splits["val"]]
    assert cache.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_text_features_are_those_of_open_clip_per_template(toy, digits_cache):
    cache = open_cache(digits_cache)
    _, model = plain_loop(toy, [Image.new("RGB", (8, 8))])
    texts = [cache.templates[1].replace("{}", name) for name in cache.classnames]
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(toy[0])(texts)).numpy()
    assert cache.text.shape == (5, 10, 24) and error(cache.text[1], expected) < 1e-5


def test_the_cache_is_sound_and_a_second_run_does_nothing(toy, digits_cache):
    cache, before = open_cache(digits_cache), digits_cache.stat().st_mtime_ns
    assert problems(cache) == [] and cache.split_names == ["train", "val", "test"]
    assert [len(cache.split(name)) for name in cache.split_names] == [898, 360, 539]
    lines = []
    again = extract(
        "digits",
        model=toy[0],
        pretrained=toy[1],
        cache_folder=digits_cache.parents[1],
        dtype="float32",
        log=lines.append,
    )
    assert (
        again == digits_cache
        and digits_cache.stat().st_mtime_ns == before
        and "nothing to do" in lines[-1]
    )


def test_an_interrupted_extraction_resumes_to_the_same_bytes(toy, digits_cache, tmp_path):
    states = []

    def stop_after_three(state):
        states.append(state)
        if len(states) == 3:
            raise KeyboardInterrupt

    options = {"model": toy[0], "pretrained": toy[1], "cache_folder": tmp_path, "dtype": "float32"}
    with pytest.raises(KeyboardInterrupt):
        extract("digits", progress=stop_after_three, **options)
    assert not list(tmp_path.glob("*/*.h5")) and len(list(tmp_path.glob("*/*.part"))) == 1
    path = extract("digits", progress=states.append, **options)
    assert path.read_bytes() == digits_cache.read_bytes()
    assert (
        states[3].done == 4 * CPU_BATCH
        and states[-1].done == states[-1].total == 1797
        and 0 <= states[-1].waiting <= 1
    )


# --------------------------------------------------------------------------------------- what else a cache can hold


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of DTD in miniature."""
    data = tmp_path_factory.mktemp("data")
    layouts.dtd(data)
    return data


def run(toy, folder, data, dataset="dtd", **options):
    return extract(
        dataset,
        encoder=EncoderChoice(*toy),
        cache_folder=folder,
        data=data,
        **{"dtype": "float32", "workers": 2} | options,
    )


def test_views_cover_the_training_rows_and_are_what_they_say(toy, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cliad.cache.extract.extraction.AT_ONCE", 20
    )  # so that the views of a batch are made in several jobs
    extras = Extras(views=20, scale=(0.08, 1.0), flip=True)
    path = run(toy, tmp_path, photos, extras=extras, batch=3)
    cache = open_cache(path)
    crops, flipped = (cache.column("train", f"views/{name}") for name in ("crop-0.08-1", "flip"))
    assert (
        crops.shape == (20, 8, 24)
        and flipped.shape == (1, 8, 24)
        and cache.column("val", "views/flip") is None
    )
    images = [
        Image.open(photos / "dtd" / "images" / name).convert("RGB")
        for name in cache.split("train").paths()
    ]
    mirrored, _ = plain_loop(toy, [ImageOps.mirror(image) for image in images])
    assert error(flipped[0], mirrored) < 1e-5
    box, flip = ViewSet(20, (0.08, 1.0)).show(images[5].size, cache.split("train").paths()[5], 17)
    crop = transforms.resized_crop(
        images[5], box[1], box[0], box[3], box[2], [32, 32], transforms.InterpolationMode.BICUBIC
    )
    expected, _ = plain_loop(toy, [ImageOps.mirror(crop) if flip else crop])
    assert error(crops[17, 5], expected[0]) < 1e-5 and problems(cache) == []


def test_views_for_some_draws_cover_just_their_images(toy, photos, tmp_path):
    path = run(toy, tmp_path, photos, extras=Extras(views=2, views_for="coop:1:1,2"), batch=3)
    cache, train = open_cache(path), open_cache(path).split("train").y.tolist()
    val = cache.split("val").y.tolist()
    drawn = sorted({row for seed in (1, 2) for row in draw(train, val, shots=1, seed=seed).train})
    assert cache.column("train", "views/crop-0.5-1_rows").tolist() == drawn and len(drawn) < len(
        train
    )
    whole = open_cache(run(toy, tmp_path, photos, extras=Extras(views=2), batch=3))
    assert (
        error(
            cache.column("train", "views/crop-0.5-1"),
            whole.column("train", "views/crop-0.5-1")[:, drawn],
        )
        < 1e-6
    )
    assert cache.image_id != whole.image_id and problems(cache) == []


def test_pre_projection_and_tokens(toy, photos, tmp_path):
    cache = open_cache(run(toy, tmp_path, photos, extras=Extras(pre_projection=True, tokens=True)))
    _, model = plain_loop(toy, [Image.new("RGB", (8, 8))])
    before = cache.column("test", "pre_projection")
    assert before.shape == (6, 64) and cache.column("test", "tokens").shape == (6, 16, 24)
    assert error(before @ model.visual.proj.detach().numpy(), cache.split("test").rows()) < 1e-5
    text = np.asarray(cache.read("text/default/pre_projection"))
    assert (
        text.shape == (1, 2, 32)
        and error(text @ model.text_projection.detach().numpy(), cache.text) < 1e-5
    )


def test_bad_images_keep_their_row_and_are_listed(toy, tmp_path):
    for name in ("cat", "dog"):
        bad = layouts.awkward(tmp_path / "pets" / name)
        (tmp_path / "pets" / name / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    lines = []
    path = run(toy, tmp_path, tmp_path, "folder:pets", extras=Extras(views=1), log=lines.append)
    cache = open_cache(path)
    for name in cache.split_names:
        split = cache.split(name)
        unread = {
            Path(p).name for p, ok in zip(split.paths(), split.readable, strict=True) if not ok
        }
        assert (
            unread <= bad | {"gone.jpg"}
            and not split.x[~split.readable].any()
            and split.x[split.readable].any(axis=1).all()
        )
    assert (
        sum(len(cache.split(name)) - cache.split(name).readable.sum() for name in cache.split_names)
        == 8
    )
    assert sum(line.startswith("unreadable: ") for line in lines) == 8 and any(
        "gone.jpg (there is no such file)" in line for line in lines
    )
    assert problems(cache) == []


def test_a_split_of_which_no_image_can_be_read_is_said(toy, tmp_path):
    for name in ("cat", "dog"):
        layouts.save(tmp_path / "pets" / "train" / name / "a.png")
        layouts.lines(tmp_path / "pets" / "test" / name / "b.png", "no image")
    lines = []
    run(toy, tmp_path, tmp_path, "folder:pets", log=lines.append)
    said = [line for line in lines if line.startswith("no image of ")]
    assert said == ["no image of test could be read: nothing can be done with that split"]


def test_prompts_are_added_to_a_whole_file(toy, photos, tmp_path):
    path = run(toy, tmp_path, photos)
    (tmp_path / "said.json").write_text(
        '{"banded": ["It has bands.", "Band after band."], "dotted": ["It has dots."]}'
    )
    more = [
        PromptChoice("imagenet7"),
        PromptChoice("mine", templates=["{c} cloth"]),
        PromptChoice(descriptions=tmp_path / "said.json"),
    ]
    assert all(run(toy, tmp_path, photos, prompt_set=choice) == path for choice in more)
    cache = open_cache(path)
    assert cache.prompt_sets == [
        "default",
        "descriptions",
        "imagenet7",
        "mine",
    ] and cache.templates == ["{} texture."]
    assert open_cache(path, "imagenet7").text.shape == (7, 2, 24)
    said = open_cache(path, "descriptions")
    assert said.text.shape == (2, 2, 24) and not said.text[1, 1].any() and said.text[1, 0].any()
    before = path.read_bytes()
    assert run(toy, tmp_path, photos, prompt_set=more[1]) == path and path.read_bytes() == before
    with pytest.raises(CacheError, match="give --prompts NAME"):
        run(toy, tmp_path, photos, prompt_set=PromptChoice("mine", templates=["{c} rug"]))
    assert path.read_bytes() == before


def test_class_names_may_be_given(toy, photos, tmp_path):
    (tmp_path / "names.txt").write_text("striped\nspotted\n")
    path = run(toy, tmp_path, photos, prompt_set=PromptChoice(classnames=tmp_path / "names.txt"))
    assert open_cache(path).classnames == ["striped", "spotted"]


def image_id(toy, folder, data, **options):
    return open_cache(run(toy, folder, data, **options)).image_id


def test_every_change_that_matters_changes_the_image_id_and_no_other(toy, photos, tmp_path):
    base = image_id(toy, tmp_path, photos)
    other = tmp_path / "other"
    layouts.dtd(other)
    file = other / "dtd" / "split_zhou_DescribableTextures.json"
    file.write_text(file.read_text().replace("banded_0003", "banded_0009", 1))
    (tmp_path / "weights").mkdir()
    weights = (toy[0], str(toy_clip.weights(tmp_path / "weights", seed=5)))
    changed = [
        image_id(toy, tmp_path, photos, dtype="float16"),
        image_id(toy, tmp_path, other),
        image_id(weights, tmp_path, photos),
        image_id((*toy, True), tmp_path, photos),
        image_id((*toy, None, True), tmp_path, photos),
        image_id(toy, tmp_path, photos, extras=Extras(views=1)),
        image_id(toy, tmp_path, photos, extras=Extras(tokens=True)),
    ]
    assert len({base, *changed}) == 8
    same = [{"batch": 5}, {"workers": 1}, {"device": "cpu"}, {"prompt_set": PromptChoice("single")}]
    assert {
        image_id(toy, tmp_path / str(i), photos, **options) for i, options in enumerate(same)
    } == {base}


def test_the_text_id_follows_templates_and_class_names(toy, photos, tmp_path):
    (tmp_path / "names.txt").write_text("striped\nspotted\n")
    choices = [
        PromptChoice(),
        PromptChoice("a", templates=["a {}"]),
        PromptChoice("b", classnames=tmp_path / "names.txt"),
    ]
    for choice in choices:
        path = run(toy, tmp_path, photos, prompt_set=choice)
    ids = [open_cache(path, choice.key).text_id for choice in choices]
    assert len(set(ids)) == 3


def test_newer_library_versions_change_no_id(toy, photos, tmp_path, monkeypatch):
    base = image_id(toy, tmp_path, photos)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    path = run(toy, tmp_path / "later", photos)
    assert open_cache(path).image_id == base and "99.0" in open_cache(path).attrs["versions"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dataset": "dtt"}, "did you mean 'dtd'"),
        ({"dtype": "float8"}, "float16 or float32"),
        ({"split": "mine"}, "field .* or official"),
        ({"device": "tpu"}, "there is no device 'tpu'"),
        ({"extras": Extras(views=2, views_for="coop:9:1")}, "at most 4 shots"),
        ({"extras": Extras(views=2, views_for="coup:1:1")}, "no protocol 'coup'"),
        ({"extras": Extras(views=-2)}, "from 1 to 10,000; got -2"),
        ({"prompt_set": PromptChoice(templates=["no place"])}, "no single place"),
        ({"data": Path("/nowhere")}, "there is no data folder"),
        ({"batch": 0}, "--batch is a number from 1"),
        ({"batch": -1}, "--batch is a number from 1"),
        ({"workers": -1}, "--workers is a number from 1"),
        ({"workers": 10**9}, "--workers is a number from 1"),
        ({"extras": Extras(views=10**9)}, "--views is a number from 1"),
        ({"extras": Extras(views=1, views_seed=-1)}, "--views-seed is a number from 0"),
        ({"extras": Extras(views=1, views_seed=2**63)}, "--views-seed is a number from 0"),
        ({"prompt_set": PromptChoice("imagenet8")}, "did you mean imagenet80"),
        ({"prompt_set": PromptChoice("")}, "cannot name a prompt set"),
        ({"prompt_set": PromptChoice("a/b", templates=["a {}"])}, "cannot name a prompt set"),
        ({"prompt_set": PromptChoice("a" * 5000, templates=["a {}"])}, "cannot name a prompt set"),
        ({"prompt_set": PromptChoice("imagenet7", templates=["a {}"])}, "another name"),
        (
            {"prompt_set": PromptChoice(templates=["a {}"], descriptions=Path("a.json"))},
            "give one of them",
        ),
        ({"extras": Extras(views_for="coop:1:1")}, "give --views N or --flip"),
        ({"extras": Extras(scale=(0.1, 1.0))}, "need --views N"),
        ({"extras": Extras(views_seed=2)}, "need --views N"),
        ({"dataset": "digits"}, "digits comes with cliad; leave out --data"),
        ({"dataset": "digits", "data": None, "split": "official"}, "one way to be split"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(toy, photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        run(toy, tmp_path / "cache", **{"data": photos, "fetch": False} | options)
    assert type(error.value).__module__.startswith("cliad.") and "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_an_encoder_given_twice_is_refused(toy, photos, tmp_path):
    with pytest.raises(ValueError, match="either encoder or its names"):
        run(toy, tmp_path / "cache", photos, model="RN50", fetch=False)
    assert not (tmp_path / "cache").exists()


def test_a_wrong_folder_is_told_from_bad_images(toy, tmp_path):
    layouts.dtd(tmp_path)
    for image in (tmp_path / "dtd" / "images").rglob("*.jpg"):
        image.unlink()
    with pytest.raises(ValueError, match=r"most images of dtd are not there.*data check dtd"):
        run(toy, tmp_path / "cache", tmp_path)


def test_an_unwritable_cache_folder_is_one_line(toy, photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="--cache DIR"):
        run(toy, tmp_path / "file", photos)


def test_memory_that_does_not_hold_a_batch_starts_anew_with_half(
    toy, photos, tmp_path, monkeypatch
):
    encode = Clip.encode_images

    def narrow(self, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return encode(self, batch)

    monkeypatch.setattr(Clip, "encode_images", narrow)
    lines = []
    path = run(toy, tmp_path, photos, log=lines.append)
    assert open_cache(path).batch == 2 and "starting anew with 2 images at a time" in " ".join(
        lines
    )
    with pytest.raises(ValueError, match="give --batch 4 --force"):
        run(toy, tmp_path / "told", photos, batch=8)
    monkeypatch.undo()
    assert (
        open_cache(run(toy, tmp_path / "told", photos)).batch == 8
    )  # what was begun is finished with its own batch size


def test_a_whole_cache_needs_no_right_to_write(toy, photos, tmp_path, monkeypatch):
    path = run(toy, tmp_path, photos)
    monkeypatch.setattr("cliad.cache.extract.run.lock_cache", None)
    assert run(toy, tmp_path, photos) == path


# -------------------------------------------------- what is chosen when nothing is said


def test_the_default_batch_is_32_or_about_the_longest_split(toy, photos, digits_cache, tmp_path):
    assert open_cache(digits_cache).batch == 32
    assert open_cache(run(toy, tmp_path, photos)).batch == 8  # 8 training images


OFFLINE = {"device": torch.device("cpu"), "half": False, "fetch": False, "log": print}


def test_the_default_encoder_is_openais_vit_b_32(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="the weights of ViT-B-32/openai are not here"):
        EncoderChoice().load("dtd", **OFFLINE)


def test_the_default_encoder_of_digits_is_the_bundled_one():
    assert EncoderChoice().load("digits", **OFFLINE).name == "tiny"


@pytest.mark.parametrize("gone, is_wrong_folder", [(10, False), (11, True)])
def test_more_than_half_of_the_images_gone_is_a_wrong_folder(toy, tmp_path, gone, is_wrong_folder):
    lines = tmp_path / "images.csv"
    for i in range(20 - gone):
        layouts.save(tmp_path / f"here {i}.png", i)
    rows = [f"here {i}.png,class {i % 2}\n" for i in range(20 - gone)]
    rows += [f"gone {i}.png,class {i % 2}\n" for i in range(gone)]
    lines.write_text("path,label\n" + "".join(rows))
    if is_wrong_folder:
        with pytest.raises(ValueError, match=r"most images of .* are not there"):
            run(toy, tmp_path / "cache", tmp_path, f"csv:{lines}")
    else:
        cache = open_cache(run(toy, tmp_path / "cache", tmp_path, f"csv:{lines}"))
        found = sum((cache.split(name).status == 2).sum() for name in cache.split_names)
        assert found == gone


def test_the_first_ten_unreadable_images_are_named(toy, tmp_path):
    for i in range(24):
        for name in ("cat", "dog"):
            layouts.save(tmp_path / "pets" / name / f"{i}.png", i)
    for i in range(12):
        (tmp_path / "pets" / "cat" / f"{i}.png").write_bytes(b"no picture")
    lines = []
    run(toy, tmp_path, tmp_path, "folder:pets", log=lines.append)
    assert sum(line.startswith("unreadable: ") for line in lines) == 10
    assert "and 2 more unreadable images; `cliad info` lists them" in lines
    assert lines[0].startswith("folder:pets: 48 images, toy-clip/toy-clip-0 on cpu")


def test_what_is_stored_is_told_with_its_size(toy, photos, tmp_path):
    lines = []
    extras = Extras(views=3, flip=True, tokens=True)
    run(toy, tmp_path, photos, extras=extras, log=lines.append)
    kept = "storing features, tokens, 3 crop-0.5-1, 1 flip: "
    n_number = 18 * (24 + 16 * 24) + (3 + 1) * 8 * 24
    assert any(line.startswith(f"{kept}{n_number * 4 / 1e6:,.1f} MB") for line in lines)
    assert lines[0].startswith("dtd: 18 images, toy-clip/toy-clip-0 on cpu (float32), 8 at a time")


def test_a_data_set_without_a_readable_image_is_one_line_and_leaves_nothing(toy, tmp_path):
    layouts.dtd(tmp_path / "data")
    for image in (tmp_path / "data").rglob("*.jpg"):
        image.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"none of the \d+ images of dtd can be read"):
        run(toy, tmp_path / "cache", tmp_path / "data")
    assert not (tmp_path / "cache").exists()


def test_nothing_stays_of_an_extraction_that_fails_before_its_first_row(
    toy, photos, tmp_path, monkeypatch
):
    def broken(self, images, parts):
        raise EncoderError("the encoder is broken")

    monkeypatch.setattr(Clip, "encode_parts", broken)
    with pytest.raises(EncoderError, match="is broken"):
        run(toy, tmp_path / "cache", photos)
    assert not (tmp_path / "cache").exists()
