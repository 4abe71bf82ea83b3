"""docs/: the tutorial runs as it stands, so do all Python blocks of the other pages, and what they type exists."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import toy_clip
from typer.main import get_command

import cliad
from cliad.cache import clip
from cliad.cli import app, main

DOCS = Path(cliad.__file__).parent / "docs"
PAGES = ["own-images.md", "serve.md", "bundle.md", "cache-file.md", "new-head.md", "new-dataset.md", "coming-from.md"]
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is part of the checkout, not of the wheel")


def blocks(name):
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def typed(name):
    """The cliad commands in a page's blocks, fenced or indented, as words."""
    lines = (line.strip() for line in (DOCS / name).read_text(encoding="utf-8").splitlines() if line.startswith(("    cliad ", "cliad ")))
    return [shlex.split(line) for line in lines if "..." not in line]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in; where the bundled weights are not there yet, a random CLIP stands in their place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIAD_CACHE", str(tmp_path / "caches"))
    if not (clip.TINY / "weights.safetensors").is_file():
        toy_clip.register(tmp_path, "tiny")
        toy_clip.weights(tmp_path, "tiny").rename(tmp_path / "weights.safetensors")
        monkeypatch.setattr(clip, "TINY", tmp_path)
    return tmp_path


def command(line, monkeypatch):
    """Run one line of a page: a cliad command, in this process."""
    line = re.sub(r'"\$\((.*)\)"', lambda found: shlex.quote(subprocess.check_output(found[1], shell=True, text=True).strip()), line)
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, line


def run(name, names, monkeypatch):
    for language, text in blocks(name):
        if language == "sh":
            for line in text.splitlines():
                command(line, monkeypatch)
        else:
            exec(compile(text, f"docs/{name}", "exec", dont_inherit=True), names)


def test_the_pages_run(place, monkeypatch, capsys):
    names = {"__name__": "page"}
    run("tutorial.md", names, monkeypatch)
    said = capsys.readouterr().out
    assert "photos/1795-is-9.png" in said and "torch.Size([539, 10])" in said
    assert {"head.onnx", "whole.onnx", "weights.npz", "runs", "photos"} <= set(os.listdir())
    for page in PAGES:
        run(page, names, monkeypatch)
    assert names["listing"].splits["train"] == [("tit/0.png", 0), ("tit/2.png", 0), ("wren/0.png", 1), ("wren/2.png", 1)]


@pytest.mark.parametrize("name", ["tutorial.md", *PAGES])
def test_what_a_page_types_and_links_exists(name):
    commands = get_command(app).commands
    for _, verb, *words in typed(name):
        options = {option for param in commands[verb].params for option in param.opts}
        assert not [word for word in words if word.startswith("--") and word not in options], (verb, words)
    for link in re.findall(r"\]\(([\w.-]+)\)", (DOCS / name).read_text(encoding="utf-8")):
        assert (DOCS / link).is_file(), link
