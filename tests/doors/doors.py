"""The doors: for each, a valid world on the disk, what is changed in it, and the commands that read it."""

import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import foreign_files
import layouts
import numpy as np
from conftest import result_row, toy_cache
from doors import mutations, structures
from PIL import Image

Change = Callable[[Path, random.Random], None]

NAMES = ["zero", "one", "two"]


@dataclass(frozen=True)
class Door:
    """A format that comes from outside.

    make: writes a valid world into an empty folder.
    targets: the files that are changed, as patterns below that folder.
    commands: what is typed there, a line each.
    changes: by the ending of a file, ways to change it beside its bytes and what stands there.
    """

    name: str
    make: Callable[[Path], None]
    targets: tuple[str, ...]
    commands: tuple[str, ...]
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    def mutate(self, home: Path, rng: random.Random) -> str:
        """Change one file of a world; returns what was done, for the message of a failure."""
        files = []
        for pattern in self.targets:
            files += sorted(path for path in home.glob(pattern) if path.is_file())
        file = rng.choice(files)
        roll = rng.random()
        if roll < 0.08:
            return f"{mutations.mutate_place(file, rng)} at {file.name}"
        changes = self.changes.get(file.suffix, ())
        if changes and roll < 0.7:
            change = rng.choice(changes)
            change(file, rng)
            return f"{change.__name__} in {file.name}"
        file.write_bytes(mutations.mutate_bytes(file.read_bytes(), rng))
        return f"bytes of {file.name}"


def text(file: Path, rng: random.Random) -> None:
    file.write_bytes(mutations.mutate_text(file.read_text(), rng))


def json_value(file: Path, rng: random.Random) -> None:
    file.write_bytes(mutations.mutate_json(file.read_text(), rng))


def json_line(file: Path, rng: random.Random) -> None:
    file.write_bytes(mutations.mutate_json_lines(file.read_text(), rng))


def odd_name(file: Path, rng: random.Random) -> None:
    """The file, or the folder that it lies in, under another name."""
    names = [b"\xff.png", b"\xed\xa0\x80", b"\x1b[31m.png", b"a\nb.png", b"=1+1.png", b"train"]
    names += [b"x.avif", b"x", b".hidden", b"x.txt", b"__MACOSX", b"Zero", b"class 0", b"%s{}"]
    moved = rng.choice([file, file.parent])
    target = bytes(moved.parent) + b"/" + rng.choice(names)
    shutil.move(moved, target.decode(errors="surrogateescape"))


# ------------------------------------------------------------------------------ caches, arrays


def cache(home: Path) -> None:
    toy_cache(home / "caches", n_class=3, dim=8, n=(8, 2, 4))


def npz(home: Path) -> None:
    foreign_files.npz_file(home)


def tip_adapter(home: Path) -> None:
    foreign_files.tip_folder(home)
    (home / "names.txt").write_text("ant\nbee\ncat\n")


def clip_retrieval(home: Path) -> None:
    labels = np.arange(12) % 3
    status = np.array(["success"] * 12)
    columns = {"label": labels, "status": status, "caption": np.array(["x"] * 12)}
    foreign_files.retrieval_folder(home / "in", columns, shards=(6, 6))
    (home / "names.txt").write_text("ant\nbee\ncat\n")


def odd_parquet(file: Path, rng: random.Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    name = rng.choice(sorted(columns))
    values = columns[name]
    odd = [
        None,
        -1,
        2**40,
        "",
        "\x1b[31m",
        "a" * 3000,
        True,
        [1],
        {"a": 1},
        b"\xff",
        1.5,
        float("nan"),
    ]
    kind = rng.choice(["all", "all", "one", "gone", "short"])
    if kind == "all":
        columns[name] = [rng.choice(odd)] * len(values)
    elif kind == "one":
        columns[name] = [*map(str, values[:-1]), rng.choice(TEXTS)]
    elif kind == "gone":
        del columns[name]
    else:
        columns = {key: column[:-1] for key, column in columns.items()}
    pq.write_table(pa.table(columns), file)


def odd_npy(file: Path, rng: random.Random) -> None:
    np.save(file, structures.odd_array(np.load(file), rng))


def odd_tensor(file: Path, rng: random.Random) -> None:
    import torch

    x = torch.load(file, weights_only=True)
    odd = [
        x.permute(*reversed(range(x.dim()))),
        x[:0],
        x[None],
        x.double() * 1e30,
        x.bfloat16(),
        x.to_sparse(),
        {"x": x},
        [x],
        x > 0,
        x * float("nan"),
        "text",
        None,
        torch.zeros(()),
        x.to(torch.complex64),
        torch.empty(2**20, device="meta"),
        torch.zeros(1).expand(2**32),
        ZipFile,
    ]
    torch.save(rng.choice(odd), file)


class ZipFile:
    """A class of our own, as pickles name them: no reader has a reason to make one."""


# ------------------------------------------------------------------------------------ data sets


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(values).save(path)


def image_folder(home: Path) -> None:
    for number, name in enumerate(NAMES):
        for split, count in (("train", 3), ("val", 1), ("test", 2)):
            for i in range(count):
                picture(home / "own" / split / name / f"{split}{i}.png", 10 * number + i)


def flat_folder(home: Path) -> None:
    for number, name in enumerate(NAMES):
        for i in range(6):
            picture(home / "own" / name / f"{i}.png", 10 * number + i)
    (home / "own" / "cliad.toml").write_text(
        'templates = ["a photo of a {}."]\n[classnames]\nzero = "nought"\n'
    )


def image_list(home: Path) -> None:
    image_folder(home)
    lines = ["path,label,split,classname"]
    for path in sorted((home / "own").rglob("*.png")):
        name = path.parent.name
        split = path.parent.parent.name
        lines.append(f"{path.relative_to(home)},{NAMES.index(name)},{split},{name}")
    (home / "list.csv").write_text("\n".join(lines) + "\n")


def split_file(home: Path) -> None:
    layouts.eurosat(home / "data")


def shards(home: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        folder = home / split
        folder.mkdir()
        with tarfile.open(home / f"{split}-000.tar", "w") as archive:
            for number in range(len(NAMES)):
                for i in range(count):
                    stem = folder / f"{number}{i}"
                    picture(stem.with_suffix(".png"), 10 * number + i)
                    stem.with_suffix(".cls").write_text(f"{number}\n")
                    archive.add(stem.with_suffix(".png"), f"{number}{i}.png")
                    archive.add(stem.with_suffix(".cls"), f"{number}{i}.cls")
        shutil.rmtree(folder)
    (home / "classnames.txt").write_text("\n".join(NAMES) + "\n")


def archives(home: Path) -> None:
    shards(home)
    (home / "data").mkdir()
    shutil.copy(home / "train-000.tar", home / "a.tar")
    with tarfile.open(home / "a.tar.gz", "w:gz") as archive:
        archive.add(home / "train-000.tar", "inner/train-000.tar")
        archive.add(home / "classnames.txt", "inner/classnames.txt")
    with zipfile.ZipFile(home / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(home / "a.tar.gz", "deep/a.tar.gz")
        archive.write(home / "classnames.txt", "deep/classnames.txt")


def descriptions(home: Path) -> None:
    image_folder(home)
    said = {name: [f"the digit {name}.", f"a {name}."] for name in NAMES}
    (home / "said.json").write_text(json.dumps(said, indent=1))


# --------------------------------------------------------------------------- rows, runs, configs


def results(home: Path) -> None:
    rows = []
    for head in ("clip-adapter", "tip-adapter"):
        for shots in (1, 2):
            for seed in (1, 2):
                score = {"ece": 0.1, "nll": 1.0, "train_seconds": 0.1, "alpha": 0.2}
                scores = score | {"top1": 0.5 + 0.01 * seed, "hyper": {"alpha": 0.2}}
                rows.append(result_row(head=head, shots=shots, seed=seed, **scores))
    (home / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_folder(home: Path) -> None:
    from cliad.pipelines.experiments.train import train
    from cliad.pipelines.extract import extract
    from cliad.pipelines.runs.run_folder import save

    image_folder(home)
    extract(f"folder:{home / 'own'}", model="tiny", cache_folder=home / "caches")
    result, trained_on = train(folder=home / "caches", head="gda", shots=2)
    save(result, trained_on, home / "run")


def grid_config(home: Path) -> None:
    cache(home)
    (home / "grid.toml").write_text(
        'shots = [1, 2]\nseeds = [1, 2]\nalpha = [0.2, 0.6]\nhead = ["clip-adapter", "gda"]\nepochs = [2]\n'
    )


TEXTS = mutations.TEXTS

GRID = "grid --config grid.toml --out results.jsonl"
DOORS = [
    Door(
        "HDF5",
        cache,
        ("caches/toy/*.h5",),
        (
            "verify caches/toy/FILE",
            "info caches/toy/FILE",
            "train --shots 2 --head gda --json",
            "train --shots 1 --epochs 2 --out run",
            "export caches/toy/FILE --format npz --out out.npz",
            "grid --shots 1 --seeds 1 --head tip-adapter --out r.jsonl",
        ),
        {".h5": (structures.lie_in_hdf5,)},
    ),
    Door(
        "npz",
        npz,
        ("in.npz",),
        ("import npz in.npz --dataset d --encoder e",),
        {".npz": (structures.lie_in_npz,)},
    ),
    Door(
        "pt",
        tip_adapter,
        ("tip/*.pt", "names.txt"),
        ("import tip-adapter tip --dataset d --encoder e --classnames names.txt",),
        {".pt": (odd_tensor,), ".txt": (text,)},
    ),
    Door(
        "parquet",
        clip_retrieval,
        ("in/metadata/*.parquet",),
        (
            "import clip-retrieval in --labels label --dataset d --encoder e --classnames names.txt",
            "import clip-retrieval in --labels caption --dataset d --encoder e",
        ),
        {".parquet": (odd_parquet,)},
    ),
    Door(
        "npy",
        clip_retrieval,
        ("in/img_emb/*.npy",),
        ("import clip-retrieval in --labels label --dataset d --encoder e --classnames names.txt",),
        {".npy": (odd_npy,)},
    ),
    Door(
        "class names",
        clip_retrieval,
        ("names.txt",),
        ("import clip-retrieval in --labels label --dataset d --encoder e --classnames names.txt",),
        {".txt": (text,)},
    ),
    Door(
        "split JSON",
        split_file,
        ("data/eurosat/*.json",),
        (
            "shots --split-file data/eurosat/split_zhou_EuroSAT.json --shots 1 --json",
            "extract --dataset eurosat --data data --model tiny",
            "data check eurosat --data data",
        ),
        {".json": (json_value, text)},
    ),
    Door(
        "CSV",
        image_list,
        ("list.csv",),
        ("extract --dataset csv:list.csv --model tiny", "data check csv:list.csv"),
        {".csv": (text,)},
    ),
    Door(
        "TOML of a grid",
        grid_config,
        ("grid.toml",),
        (GRID,),
        {".toml": (text,)},
    ),
    Door(
        "TOML of a data set",
        flat_folder,
        ("own/cliad.toml",),
        ("extract --dataset folder:own --model tiny", "data check folder:own"),
        {".toml": (text,)},
    ),
    Door(
        "descriptions",
        descriptions,
        ("said.json",),
        ("extract --dataset folder:own --model tiny --prompts said --descriptions said.json",),
        {".json": (json_value, text)},
    ),
    Door(
        "tar",
        shards,
        ("*.tar", "classnames.txt"),
        ("extract --dataset wds:. --model tiny", "data check wds:."),
        {".tar": (structures.lie_in_tar,), ".txt": (text,)},
    ),
    Door(
        "archives",
        archives,
        ("a.zip", "a.tar", "a.tar.gz"),
        ("unpack a.zip data", "unpack a.tar data", "unpack a.tar.gz data"),
        {".zip": (structures.lie_in_zip,), ".tar": (structures.lie_in_tar,)},
    ),
    Door(
        "images in folders",
        image_folder,
        ("own/*/*/*.png",),
        ("extract --dataset folder:own --model tiny", "data check folder:own"),
        {".png": (structures.odd_image, odd_name)},
    ),
    Door(
        "results rows",
        results,
        ("results.jsonl",),
        (
            "report results.jsonl --out page.html",
            "report results.jsonl --format md",
            "report results.jsonl --format latex",
            "report results.jsonl --format csv",
        ),
        {".jsonl": (json_line, text)},
    ),
    Door(
        "run folder",
        run_folder,
        ("run/run.json", "run/head.safetensors"),
        (
            "predict run own/test/one/test0.png --json",
            "predict run own/test/one/test0.png",
            "export run --format npz --out out.npz",
        ),
        {".json": (json_value,), ".safetensors": (structures.lie_in_safetensors,)},
    ),
    Door(
        "images to predict",
        run_folder,
        ("own/test/one/test0.png",),
        ("predict run own/test/one --json", "predict run own/test/one/test0.png"),
        {".png": (structures.odd_image,)},
    ),
]


def build(folder: Path, door: Door) -> Path:
    """The valid world of a door, below `folder`; copies of it are changed."""
    home = folder / door.name.replace(" ", "-")
    home.mkdir()
    door.make(home)
    return home


def copy_of(world: Path, place: Path) -> Path:
    """A fresh copy of a world in a sandbox, with the files that nothing may reach beside it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(world, place / "home")
    outside = place / "outside"
    outside.mkdir()
    Image.new("L", (8, 8)).save(outside / "canary.jpg")
    with zipfile.ZipFile(outside / "canary.zip", "w") as archive:
        archive.writestr("a.txt", "outside")
    return place / "home"


def words_of(command: str, home: Path) -> list[str]:
    """The words of a command; FILE stands for the only cache file of the world."""
    words = []
    for word in command.split():
        if word.endswith("/FILE"):
            word = str(next((home / word).parent.glob("*.h5*")).relative_to(home))
        words.append(word)
    return words
