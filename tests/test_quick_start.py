"""What makes commands start quickly: tables in place of imports, and no import that is not needed."""

import gc
import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from cliad.adapters import HEADS
from cliad.cache.encoders import listed
from cliad.imports import quick_imports
from cliad.pipelines import heads, heads_table

HEAVY = ("torch", "open_clip", "torchvision", "sklearn", "onnx", "uvicorn")


def imported_by(*words):
    """Which of HEAVY a command imports, in a process of its own."""
    program = (
        "import sys\n"
        "from cliad.cli import main\n"
        f"sys.argv = ['cliad', *{words!r}]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("words", [["heads"], ["models", "ViT-B"], ["--help"], ["train", "--no"]])
def test_what_only_lists_or_refuses_imports_nothing_heavy(words):
    assert imported_by(*words) == []


def test_training_imports_torch_alone(toy, tmp_path):
    words = ["train", "--cache", str(toy), "--shots", "1", "--out", str(tmp_path / "run")]
    assert imported_by(*words) == ["torch"]


def test_a_grid_imports_torch_alone(toy, tmp_path):
    words = ["grid", "--cache", str(toy), "--shots", "1", "--out", str(tmp_path / "rows.jsonl")]
    assert imported_by(*words, "--seeds", "1") == ["torch"]


def test_the_table_of_heads_is_what_the_heads_say():
    written = json.loads(heads.TABLE.read_text(encoding="utf-8"))
    assert list(written) == list(HEADS)
    assert written == heads_table.rows(), "run: python -m cliad.pipelines.heads_table"


# Sizes unlike those that the table was read off; at dim 3 a share of the width rounds down to 0.
@pytest.mark.parametrize("n_class, dim, dim_pre", [(5, 3, 9), (3, 130, 70)])
@pytest.mark.parametrize("name", [name for name in HEADS if "tower" not in HEADS[name].needs])
def test_the_table_counts_the_parameters_that_a_head_starts_with(name, n_class, dim, dim_pre):
    sizes = {"n_class": n_class, "dim": dim, "dim_pre": dim_pre}
    row = json.loads(heads.TABLE.read_text(encoding="utf-8"))[name]
    shapes = heads_table.shapes(HEADS[name](), n_class, dim, dim_pre)
    assert list(row["parameters"]) == list(shapes)
    for parameter, axes in row["parameters"].items():
        assert tuple(heads.lengths(axes, sizes)) == shapes[parameter]


def test_the_table_of_encoders_is_what_open_clip_says():
    written = json.loads(listed.TABLE.read_text(encoding="utf-8"))
    asked = listed.ask_open_clip()
    assert listed.listed() == asked
    if written["open_clip"] == listed.table()["open_clip"]:
        message = "run: python -m cliad.cache.encoders.listed"
        assert written["encoders"] == [asdict(row) for row in asked], message


def test_the_collector_of_garbage_rests_only_while_a_command_imports():
    assert gc.isenabled()
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()
