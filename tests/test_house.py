"""Who may know whom, held by reading the imports of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cliad

ROOT = Path(cliad.__file__).parent
HOUSE = {"cache", "adapters", "pipelines", "cli"}
MAY_KNOW = {"cache": set(), "adapters": set(), "pipelines": {"cache", "adapters"}, "cli": {"pipelines", "cache"}}
ONLY_IN = {"h5py": {"cache/store.py"}, "open_clip": {"cache/clip.py"}}
TOOL = ROOT / "cache" / "tiny_clip" / "train.py"  # how the bundled weights were made: a script that nothing imports
MODULES = [*sorted(p for part in ("adapters", "cache", "pipelines") for p in (ROOT / part).rglob("*.py") if p != TOOL), ROOT / "cli.py"]


def imports(path):
    """Dotted names that a module imports, at the top or inside functions; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def breaches(path, names):
    """What is wrong with a module's imports, a line each."""
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in names:
        top, _, rest = name.partition(".")
        if name.startswith(".") or top in HOUSE:
            yield f"{name}: import cliad.x.y, neither bare nor relative"
        part = rest.partition(".")[0]
        if top == "cliad" and part in HOUSE - {own} - MAY_KNOW[own]:
            yield f"{name}: {own} does not know {part}"
        if top in ONLY_IN and path.relative_to(ROOT).as_posix() not in ONLY_IN[top]:
            yield f"{name}: only in {ONLY_IN[top]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_keep_the_direction(path):
    assert not list(breaches(path, imports(path)))


@pytest.mark.parametrize(
    "module, name",
    [
        ("adapters/base.py", "cliad.cache.store"),
        ("cache/store.py", "cliad.adapters"),
        ("pipelines/train.py", "cliad.cli"),
        ("pipelines/train.py", "cache.store"),
        ("adapters/base.py", ".optimise"),
        ("pipelines/train.py", "h5py"),
        ("cache/folder.py", "open_clip"),
    ],
)
def test_the_rule_finds_what_breaks_it(module, name):
    assert list(breaches(ROOT / module, [name]))


def loaded_by(code):
    program = f"import sys; {code}; print(*sorted(m for m in ('torch', 'open_clip', 'h5py', 'sklearn') if m in sys.modules))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_the_command_line_starts_without_torch():
    assert loaded_by("import cliad, cliad.cli") == []


def test_training_does_not_import_the_encoder():
    assert set(loaded_by("import cliad.pipelines.train, cliad.pipelines.bundle")) <= {"torch", "h5py"}


def test_no_source_uses_the_global_generator():
    banned = ("torch.manual_seed(", "np.random.seed(", "random.seed(")
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in banned if word in text], path
