"""Who may know whom, held by reading the imports of every module."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import cliad

ROOT = Path(cliad.__file__).parent
NOT_SHIPPED = {"tests", "benchmarks", "docs", "build", "mutants", "site"}
# A script that nothing imports: how the bundled weights were made.
TOOL = "cache/encoders/tiny/train.py"

# Which floors a floor may import. A module at the top of the house is a floor of its own.
FLOORS = {
    "errors": set(),
    "imports": set(),
    "cache": {"errors"},
    "adapters": {"errors"},
    "pipelines": {"errors", "imports", "cache", "adapters"},
    "commands": {"errors", "imports", "cache", "pipelines"},
    "cli": {"errors", "commands"},
    "__main__": {"cli"},
}

# Which rooms and files of the same floor a room may import, beside itself.
ROOMS = {
    "adapters/core": set(),
    "cache/file": {"cache/files.py", "cache/documents.py"},
    "cache/encoders": {
        "cache/file",
        "cache/files.py",
        "cache/documents.py",
        "cache/tensor_files.py",
    },
    "cache/datasets": {
        "cache/prompts.py",
        "cache/files.py",
        "cache/documents.py",
        "cache/classnames.py",
    },
    "cache/formats": {
        "cache/file",
        "cache/files.py",
        "cache/folder.py",
        "cache/datasets",
        "cache/documents.py",
        "cache/classnames.py",
        "cache/equal_texts.py",
        "cache/tensor_files.py",
    },
    "cache/extract": {
        "cache/file",
        "cache/files.py",
        "cache/encoders",
        "cache/datasets",
        "cache/folder.py",
        "cache/classnames.py",
        "cache/prompts.py",
        "cache/views.py",
    },
    "pipelines/fewshot": set(),
    "pipelines/experiments": {
        "pipelines/fewshot",
        "pipelines/extract.py",
        "pipelines/tower.py",
    },
    "pipelines/report": {"pipelines/experiments"},
    "pipelines/runs": {"pipelines/experiments", "pipelines/fewshot"},
    "commands/options.py": set(),
    "commands/show.py": set(),
    "commands/stage_one.py": {"commands/options.py", "commands/show.py"},
    "commands/cache_files.py": {"commands/options.py", "commands/show.py"},
    "commands/experiments.py": {"commands/options.py", "commands/show.py"},
    "commands/use.py": {"commands/options.py", "commands/show.py"},
}
ONLY_IN = {"h5py": "cache/file/", "open_clip": "cache/encoders/"}


def shipped_modules():
    """Paths of all modules of the package, relative to its root."""
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        hidden = relative.parts[0].startswith(".")
        if not hidden and relative.parts[0] not in NOT_SHIPPED and relative.as_posix() != TOOL:
            yield relative


MODULES = list(shipped_modules())


def imports(source):
    """Dotted names that a module imports, at the top or inside functions; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield prefix
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def floor_of(path):
    return path.split("/")[0].removesuffix(".py")


def room_of(path):
    """The room that a module stands in, such as `cache/file`; the file itself where it has none."""
    parts = path.split("/")
    return "/".join(parts[:2])


def file_of(dotted):
    """`cliad.cache.file.read.open_cache` -> `cache/file/read.py`; None for what is not a module of ours."""
    parts = dotted.split(".")[1:]
    while parts:
        path = Path(*parts)
        if (ROOT / path.with_suffix(".py")).is_file():
            return path.with_suffix(".py").as_posix()
        if (ROOT / path / "__init__.py").is_file():
            return (path / "__init__.py").as_posix()
        parts = parts[:-1]
    return None


def breaches(path, names):
    """What is wrong with the imports of the module `path`, a line each."""
    floor = floor_of(path)
    room = room_of(path)
    for name in names:
        top = name.partition(".")[0]
        if name.startswith(".") or top in FLOORS:
            yield f"{name}: import cliad.x.y, neither bare nor relative"
        if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
            yield f"{name}: only in {ONLY_IN[top]}"
        target = file_of(name) if top == "cliad" else None
        if target is None or target == "__init__.py" or floor == "__init__":
            continue
        if floor_of(target) != floor:
            if floor_of(target) not in FLOORS[floor]:
                yield f"{name}: {floor} does not know {floor_of(target)}"
        elif room in ROOMS and room_of(target) not in ROOMS[room] | {room, f"{floor}/__init__.py"}:
            yield f"{name}: {room} does not know {room_of(target)}"
        elif room == "adapters/core" and target == "adapters/__init__.py":
            yield f"{name}: the core of the adapters knows no head"


@pytest.mark.parametrize("path", MODULES, ids=Path.as_posix)
def test_imports_keep_the_direction(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert not list(breaches(path.as_posix(), imports(source)))


@pytest.mark.parametrize(
    "path, name",
    [
        ("adapters/core/fit.py", "cliad.cache.file.read"),
        ("adapters/core/fit.py", "cliad.adapters.gda"),
        ("adapters/core/fit.py", "cliad.adapters"),
        ("adapters/core/fit.py", ".head"),
        ("cache/file/read.py", "cliad.adapters.core.ops"),
        ("cache/file/read.py", "cliad.cache.encoders.clip"),
        ("cache/folder.py", "open_clip"),
        ("pipelines/experiments/train.py", "cliad.cli"),
        ("pipelines/experiments/train.py", "cliad.commands.show"),
        ("commands/show.py", "cliad.commands.options"),
        ("commands/use.py", "cliad.commands.experiments"),
        ("commands/use.py", "cliad.adapters"),
        ("commands/use.py", "cliad.cli"),
        ("cli.py", "cliad.pipelines.extract"),
        ("pipelines/experiments/train.py", "cache.file.read"),
        ("pipelines/experiments/train.py", "cliad.pipelines.report.study"),
        ("pipelines/experiments/train.py", "h5py"),
        ("pipelines/fewshot/draw.py", "cliad.pipelines.experiments.episode"),
        ("pipelines/report/study.py", "cliad.pipelines.runs.predict"),
    ],
)
def test_the_rule_finds_what_breaks_it(path, name):
    assert (ROOT / path).is_file()
    assert list(breaches(path, [name]))


def test_every_room_is_shipped():
    """A package that setup.cfg forgets works in an editable install and is missing from the wheel."""
    if not (ROOT / "setup.cfg").is_file():
        pytest.skip("setup.cfg is part of the checkout, not of the wheel")
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = settings["options"]["packages"].split()
    folders = {".".join(["cliad", *path.parent.parts]) for path in MODULES}
    assert sorted(listed) == sorted(folders)


def loaded_by(code):
    heavy = "('torch', 'open_clip', 'h5py', 'sklearn')"
    program = f"import sys; {code}; print(*sorted(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_command_line_starts_without_torch():
    assert loaded_by("import cliad, cliad.cli") == []


def test_training_does_not_import_the_encoder():
    modules = "cliad.pipelines.experiments.train, cliad.pipelines.runs.run_folder"
    assert set(loaded_by(f"import {modules}")) <= {"torch", "h5py"}


def test_no_source_uses_the_global_generator():
    banned = ("torch.manual_seed(", "np.random.seed(", "random.seed(")
    for path in MODULES:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not [word for word in banned if word in text], path
