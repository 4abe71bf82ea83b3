"""Seeded mutations of rows, files and configurations: each is used, or refused in one line."""

import csv
import io
import json
import random

import pytest
from conftest import result_row

from cliad.errors import CliadError
from cliad.pipelines.experiments.axes import read_config
from cliad.pipelines.experiments.row_fields import FIELDS, FIELDS_OR_NULL
from cliad.pipelines.report.csv_cells import FORMULA
from cliad.pipelines.report.report import FORMATS, report

SCRIPT = "<script>alert(1)</script>"
TEXTS = ["", "x", "²", "=1+1", "-x", "\t@", SCRIPT, "|", "a (b)", "\\", "\x1b[31m", "A -> B", "gda"]
NUMBERS = [0, 1, -1, 0.5, 2**70, 10**400, 1e308, 1e-320, float("nan"), float("inf"), True, None]
SETTINGS = [
    {"alpha": 0},
    {"alpha": "0"},
    {"hidden": "D/²"},
    {"hidden": "D/0"},
    {"lr": -1},
    {"": None},
]
OTHERS = [[], [[1, 0.5, 2]], [[1e300, 1, 1]] * 3, {}, {"a": [1]}, "\ud800", "a" * 20_000]
VALUES = [*TEXTS, *NUMBERS, *SETTINGS, *OTHERS]
NAMES = [*FIELDS, *FIELDS_OR_NULL, "mine"]


def mutated_row(generator):
    row = result_row(train_seconds=0.1, reliability=[[9, 0.5, 0.4]], found={"alpha": 0.2})
    for _ in range(generator.choice([0, 1, 1, 2])):
        row[generator.choice(NAMES)] = generator.choice(VALUES)
    if generator.random() < 0.1:
        del row[generator.choice(list(row))]
    return row


def mutated_bytes(generator, data):
    data = bytearray(data)
    kind = generator.choice(["bytes", "cut", "nested", "encoding", "ends", "tail"])
    place = generator.randrange(len(data))
    if kind == "bytes":
        data[place] = generator.randrange(256)
    elif kind == "cut":
        del data[place:]
    elif kind == "nested":
        data[place:place] = b"[" * 50_000
    elif kind == "encoding":
        data = data.decode(errors="replace").encode(generator.choice(["utf-16", "utf-8-sig"]))
    elif kind == "ends":
        data = data.replace(b"\n", b"\r\n")
    else:
        data += generator.choice([b'{"da', b"\n\n", b"[]", b"\0\0", b"null", b"NaN"])
    return bytes(data)


def used_or_refused(work):
    """What the work returns; None where it raises an error that is one short line."""
    try:
        return work()
    except CliadError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return None


@pytest.mark.parametrize("seed", range(120))
def test_rows_from_outside_are_reported_or_refused_and_never_run(tmp_path, seed):
    generator = random.Random(seed)
    rows = [json.dumps(mutated_row(generator)) for _ in range(generator.randrange(1, 5))]
    data = ("\n".join(rows) + "\n").encode()
    if seed % 3 == 0:
        data = mutated_bytes(generator, data)
    path = tmp_path / "r.jsonl"
    path.write_bytes(data)
    form = generator.choice(list(FORMATS))
    out = tmp_path / "out"
    text = used_or_refused(lambda: report([path], form=form, out=out))
    assert out.exists() == (text is not None)
    assert len(list(tmp_path.iterdir())) == 1 + out.exists()
    if text is None:
        return
    assert "\x1b" not in text
    if form != "csv":
        assert SCRIPT not in text
        return
    for cells in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell.startswith(FORMULA) for cell in cells)


WORDS = [
    "dataset",
    "head",
    "shots",
    "seed",
    "seeds",
    "out",
    "alpha",
    "lr",
    "set",
    "gda",
    "ratio",
    "zz",
]
TOML_VALUES = [
    *["3", "-1.5", "true", "nan", "-inf", "1979-05-27", "[1, 2]", "[[1]]", "[]", "{a = 1}", "''"],
    *["'0:1:0.2'", "'0:1:1e-9'", "'0:1e999:1'", "'1e999'", "'1:9999:1'", "'D/4'", "'gda,ape'"],
]


@pytest.mark.parametrize("seed", range(120))
def test_configurations_from_outside_are_read_or_refused(tmp_path, seed):
    generator = random.Random(seed)
    lines = []
    for _ in range(generator.randrange(1, 5)):
        line = f"{generator.choice(WORDS)} = {generator.choice(TOML_VALUES)}"
        if generator.random() < 0.2:
            line = f"[{generator.choice(WORDS)}]\n{line}"
        lines.append(line)
    data = "\n".join(lines).encode()
    if seed % 4 == 0:
        data = mutated_bytes(generator, data)
    path = tmp_path / "grid.toml"
    path.write_bytes(data)
    used_or_refused(lambda: read_config(path))
