"""README.md and docs/: every command line and Python block of every page runs.

A page that says `--data DIR` finds a small folder DIR, one that reads FILE.h5 such a file:
`STAND_INS` says what is laid out for each page. What cannot run here stands in `NOT_RUN`, with the
reason; its options are checked all the same.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import layouts
import numpy as np
import open_clip
import pytest
import toy_clip
from command_names import NAMES
from conftest import toy_cache
from foreign_files import retrieval_folder, tip_folder, unit
from PIL import Image
from sklearn.datasets import load_digits

import cliad
from cliad.cli import main

ROOT = Path(cliad.__file__).parent
DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in DOCS.glob("*.md"))]
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the wheel has no pages")

NOT_RUN = {
    "cliad demo": "up to a minute; .ci/run runs it on the built wheel",
    "cliad serve latest": "runs until it is stopped; tests/pipelines/runs/test_serve.py asks it over HTTP",
    "cliad data download NAME": "needs a network; tests/cache/test_download.py has a server of its own",
    "curl": "needs a page that is being served; tests/pipelines/runs/test_serve.py sends the same request",
    "pip install": "changes the environment; .ci/run installs the package and its extras",
    "pytest": "this is it",
    "python benchmarks/": "takes minutes, and some need FEATURES or PHOTOS",
}
OTHER_TOOLS = {"--root"}  # options of CoOp, which docs/coming-from.md sets beside ours
WORDS = {"NAME": "digits"}  # what stands for a name


# --------------------------------------------------------------- reading a page


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def fenced(text):
    """(language, content) of the fenced blocks, and the text without them."""
    pattern = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return pattern.findall(text), pattern.sub("", text)


def indented(text):
    """The indented blocks, as text without the indent."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]


def inline(text):
    """What stands between backticks in the running text."""
    running = re.sub(r"^    .*\n", "", text, flags=re.MULTILINE)
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", running)]


TOOLS = ("cliad ", "python ", "pip ", "pytest", "curl ")


def commands_of(block):
    return [line.strip() for line in block.splitlines() if line.strip().startswith(TOOLS)]


def is_python(block):
    return block.startswith(("import ", "from "))


def steps(page):
    """(kind, text) of all that a page has to run, in its order of fenced, indented and inline."""
    blocks, rest = fenced(text_of(page))
    found = []
    for language, block in blocks:
        if language == "python":
            found.append(("python", block))
        else:
            found += [("command", line) for line in block.splitlines()]
    for block in indented(rest):
        if is_python(block):
            found.append(("python", block))
        else:
            found += [("command", line) for line in commands_of(block)]
    for words in inline(rest):
        if words.startswith(TOOLS) and not is_name(words):
            found += [("command", line) for line in alternatives(words)]
    return found


def is_name(words):
    """Whether `cliad data check` and the like just name a command."""
    return words.removeprefix("cliad ") in {*NAMES, *NAMES_OF_GROUPS}


def alternatives(words):
    """`--format a|b --out PATH` as two commands that write to two paths."""
    found = re.search(r"\S+\|\S+", words)
    if not found:
        return [words]
    choices = found[0].split("|")
    return [words.replace(found[0], choice).replace("PATH", f"PATH.{choice}") for choice in choices]


def reason_not_to_run(line):
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)


# --------------------------------------------------------------- commands as typer knows them


NAMES_OF_GROUPS = {name.split()[0] for name in NAMES}


def command_of(words):
    """The command of a line, as words after `cliad`."""
    return NAMES.get(words[0]) or NAMES[" ".join(words[:2])]


def options_of(command):
    return {option for param in command.params for option in [*param.opts, *param.secondary_opts]}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_types_exists(page):
    for kind, line in steps(page):
        words = shlex.split(line) if kind == "command" else []
        if words[:1] == ["cliad"] and words[1:] != ["--help"]:
            known = options_of(command_of(words[1:]))
            assert not [w for w in words if w.startswith("--") and w not in known], line
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), line


EVERY_OPTION = {"--help"}.union(*(options_of(command) for command in NAMES.values()))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_and_command_that_a_page_names_exists(page):
    _, rest = fenced(text_of(page))
    for words in inline(rest):
        if words.startswith("--"):
            assert words.split()[0] in EVERY_OPTION | OTHER_TOOLS, words
        elif words.startswith("cliad ") and len(words.split()) == 2 and words != "cliad --help":
            assert is_name(words), words


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/api/index.md"])
def test_the_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([\w./-]+)\)", text_of(page)):
        assert ((ROOT / page).parent / link).is_file(), link


def test_what_is_not_run_still_stands_in_some_page():
    lines = []
    for page in PAGES:
        lines += [text for kind, text in steps(page) if kind == "command"]
    for start in NOT_RUN:
        assert [line for line in lines if line.startswith(start)], start


# --------------------------------------------------------------- what the pages find on the disk


def photo(file, seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    layouts.picture(seed).save(file, "JPEG")


def dtd(place, *, per_class=22):
    """The folder DIR with DTD in miniature: enough images for 16 shots and validation."""
    layouts.dtd(place / "DIR")
    folder = place / "DIR" / "dtd"
    splits = {}
    for split, count in (("train", per_class), ("val", 4), ("test", 4)):
        rows = [("banded", 0, i) for i in range(count)]
        rows += [("dotted", 1, i) for i in range(count)]
        splits[split] = [[f"{name}/{split}_{i}.jpg", label, name] for name, label, i in rows]
        for path, label, _ in splits[split]:
            photo(folder / "images" / path, seed=label)
    (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(splits))


def tip_features(place):
    """Tip-Adapter's folder and the text of its classes."""
    import torch

    keys = {"keys_16shots": torch.tensor(unit(48, 16)).half().T}
    keys["values_16shots"] = torch.eye(3).half().repeat_interleave(16, 0)
    (place / "caches").mkdir()
    tip_folder(place, **keys).rename(place / "caches" / "caltech101")
    np.savez(place / "text.npz", text=unit(3, 7), classnames=np.array(["ant", "bee", "cat"]))


def npz_features(place):
    arrays = {"train_x": unit(40, 1), "test_x": unit(12, 2), "text": unit(2, 3)}
    labels = {"train_y": np.arange(40) % 2, "test_y": np.arange(12) % 2}
    np.savez(place / "features.npz", **arrays, **labels)


def retrieval(place):
    pytest.importorskip("pyarrow")
    paths = [f"/data/{('cat', 'dog')[i % 2]}/{i}.jpg" for i in range(12)]
    retrieval_folder(place / "FOLDER", {"image_path": paths}, shards=(12,))


def split_files(place):
    names = ("split_zhou_X.json", "split_zhou_OxfordPets.json")
    rows = [[f"{i}.jpg", i % 2, ("cat", "dog")[i % 2]] for i in range(24)]
    for name in names:
        (place / name).write_text(json.dumps({"train": rows, "val": rows[:8], "test": rows}))


def digits(place):
    """The cache of digits where `cliad train` looks for it."""
    folder = place / "cliad-caches" / "digits"
    folder.mkdir(parents=True)
    cache = cliad.open_cache(place / "FILE.h5")
    shutil.copyfile(cache.path, folder / f"tiny-{cache.image_id}.h5")


def oxford_pets(place):
    """A cache of that name."""
    toy_cache(place / "cliad-caches", dataset="oxford_pets")


def caltech65(place):
    """An older cache of another data set."""
    os.utime(toy_cache(place / "cliad-caches", dataset="caltech65"), (1, 1))


def runs(place):
    """A run folder under all names that pages give it, and an image for it."""
    digits(place)
    folder = place / "cliad-caches"
    result, cache = cliad.train(folder=folder, head="linear-probe", shots=4, hyper={"C": 1.0})
    for name in ("RUN", "FOLDER", "runs/probe"):
        cliad.save(result, cache, place / name)
    photo(place / "IMAGE")


def birds(place):
    for label, name in enumerate(("sparrow", "wren")):
        for i in range(20):
            photo(place / "birds" / name / f"{i}.jpg", seed=label)
    photo(place / "new-photos" / "a.jpg")
    (place / "birds.csv").write_text("path,label\nbirds/wren/1.jpg,wren\n")


def one_photo(place):
    photo(place / "photo.jpg")


def photos(place):
    for i in range(2):
        photo(place / "photos" / f"{i}.jpg", seed=i)


STAND_INS = {
    "README.md": [digits, caltech65, dtd, tip_features, npz_features, split_files, one_photo],
    "docs/run-folder.md": [runs],
    "docs/coming-from.md": [tip_features, npz_features, retrieval, split_files],
    "docs/datasets.md": [dtd],
    "docs/own-images.md": [birds],
    "docs/transductive.md": [photos],
    "docs/best-head.md": [digits, photos],
    "docs/base-to-new.md": [oxford_pets],
    "docs/prompt-learning.md": [photos],
}


def names_before(place):
    """What a page's Python takes from pages that are read before it."""
    names = {"__name__": "page", "cliad": cliad, "Path": Path, "Image": Image}
    names["digits"] = load_digits()
    names["path"] = place / "FILE.h5"
    names["cache"] = cliad.open_cache(place / "FILE.h5")
    return names


@pytest.fixture(scope="module")
def small_openai(tmp_path_factory):
    """A small random CLIP that open_clip takes for OpenAI's ViT-B-32 while these tests run."""
    factory = open_clip.factory
    before = list(factory._MODEL_CONFIG_PATHS)
    folder = tmp_path_factory.mktemp("models")
    toy_clip.register(folder, "ViT-B-32")
    weights = toy_clip.weights(folder, "ViT-B-32", force_quick_gelu=True)
    tags = {"openai": {"file": str(weights), "quick_gelu": True}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.pretrained._PRETRAINED, "ViT-B-32", tags)
        yield
    factory._MODEL_CONFIG_PATHS[:] = before
    factory._rescan_model_configs()


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory):
    """Digits by the bundled encoder."""
    return cliad.extract("digits", model="tiny", cache_folder=tmp_path_factory.mktemp("digits"))


@pytest.fixture
def place(tmp_path, monkeypatch, small_openai, digits_file):
    """A folder to work in, with no caches where `cliad train` looks, and digits as FILE.h5."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIAD_CACHE", str(tmp_path / "cliad-caches"))
    monkeypatch.setenv("CLIAD_DATA", str(tmp_path / "DIR"))
    shutil.copyfile(digits_file, tmp_path / "FILE.h5")
    return tmp_path


def run_command(line, monkeypatch):
    """Run one line of a page: a cliad command, in this process."""
    shell = re.search(r'"\$\((.*)\)"', line)
    if shell:
        said = subprocess.check_output(shell[1], shell=True, text=True).strip()
        line = line.replace(shell[0], shlex.quote(said))
    words = [WORDS.get(word, word) for word in shlex.split(line)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, line


def run_page(page, place, monkeypatch):
    """Run all steps of a page; the names that its Python leaves, and what was not run."""
    for lay_out in STAND_INS.get(page, []):
        lay_out(place)
    names = names_before(place)
    skipped = []
    for kind, text in steps(page):
        if kind == "python":
            exec(compile(text, page, "exec", dont_inherit=True), names)
        elif reason_not_to_run(text):
            skipped.append(text)
        else:
            run_command(text, monkeypatch)
    return names, skipped


ORDINARY = [page for page in PAGES if page not in ("README.md", "docs/tutorial.md")]


@pytest.mark.parametrize("page", ORDINARY)
def test_a_page_runs(page, place, monkeypatch):
    names, _ = run_page(page, place, monkeypatch)
    if page == "docs/new-dataset.md":
        expected = [("tit/0.png", 0), ("tit/2.png", 0), ("wren/0.png", 1), ("wren/2.png", 1)]
        assert names["listing"].splits["train"] == expected


def options_in(page):
    """The options of `cliad extract` that a page names, as it writes them."""
    known = options_of(NAMES["extract"])
    _, rest = fenced(text_of(page))
    return [words for words in inline(rest) if words.split()[0] in known]


def shard_folder(place):
    samples = [(f"{i:04d}", i % 2) for i in range(6)]
    layouts.shards(place / "PATTERN", {"train/0.tar": samples, "test/0.tar": samples})
    layouts.lines(place / "PATTERN" / "classnames.txt", "cat", "dog")


@pytest.mark.parametrize("option", options_in("docs/datasets.md") if DOCS.is_dir() else [])
def test_each_option_works_as_the_page_on_data_sets_writes_it(option, place, monkeypatch):
    dtd(place)
    shard_folder(place)
    sentences = {"banded": ["It has bands."], "dotted": ["It has dots."]}
    (place / "FILE.json").write_text(json.dumps(sentences))
    (place / "FILE").write_text("banded cloth\ndotted cloth\n")  # class names
    dataset = "" if option.startswith("--dataset") else "--dataset dtd"
    views = "--views 1" if option.startswith("--views-") else ""
    run_command(f"cliad extract {dataset} {views} {option}", monkeypatch)
    assert len(list((place / "cliad-caches").glob("*/*.h5"))) == 1


@pytest.mark.slow
def test_the_readme_runs(place, monkeypatch):
    run_page("README.md", place, monkeypatch)
    assert {"report.html", "results.jsonl", "FILE.npz"} <= set(os.listdir())


@pytest.mark.slow
def test_the_tutorial_runs(place, monkeypatch, capsys):
    run_page("docs/tutorial.md", place, monkeypatch)
    said = capsys.readouterr().out
    assert "photos/1795-is-9.png" in said and "torch.Size([539, 10])" in said
    assert {"head.onnx", "whole.onnx", "weights.npz", "runs", "photos"} <= set(os.listdir())
