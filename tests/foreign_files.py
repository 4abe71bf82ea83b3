"""Features as other tools leave them on the disk."""

import numpy as np
import pytest
import torch

NAMES = ["ant", "bee", "cat"]


DIM = 8


def unit(n, seed=0, dim=DIM):
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def named(tmp_path, **changes):
    return {"dataset": "toy", "encoder": "ViT-B/32", "cache_folder": tmp_path / "cache"} | changes


def tip_folder(tmp_path, **changes):
    """A folder as Tip-Adapter leaves it; a change replaces a tensor by name, None leaves it out."""
    folder = tmp_path / "tip"
    folder.mkdir(exist_ok=True)
    tensors = {}
    for shots in (1, 2):
        tensors[f"keys_{shots}shots"] = torch.tensor(unit(3 * shots, shots)).half().T
        tensors[f"values_{shots}shots"] = torch.eye(3).half().repeat_interleave(shots, 0)
    for split, y in (("val", [0, 1, 2, 2]), ("test", [0, 0, 1, 1, 2, 2])):
        tensors |= {
            f"{split}_f": torch.tensor(unit(len(y), len(y))).half(),
            f"{split}_l": torch.tensor(y),
        }
    for name, tensor in (tensors | changes).items():
        if tensor is not None:
            torch.save(tensor, folder / f"{name}.pt")
    return folder


def npz_file(tmp_path, drop=(), **changes):
    arrays = {
        "classnames": np.array(NAMES),
        "logit_scale": np.array(50.0),
        "text": np.stack([unit(3, 8), unit(3, 9)]),
    }
    for split, n in (("train", 6), ("val", 3), ("test", 9)):
        arrays |= {f"{split}_x": 3 * unit(n, n), f"{split}_y": np.arange(n) % 3}
    arrays = {name: value for name, value in (arrays | changes).items() if name not in drop}
    np.savez(tmp_path / "in.npz", **arrays)
    return tmp_path / "in.npz"


def retrieval_folder(folder, columns, shards=(6,), dim=DIM):
    """img_emb and metadata in shards of so many rows; columns (n,) by name."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for part in ("img_emb", "metadata"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    x, start = unit(sum(shards), 1, dim), 0
    for i, n in enumerate(shards):
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", x[start : start + n].astype(np.float16))
        pq.write_table(
            pa.table({k: v[start : start + n] for k, v in columns.items()}),
            folder / "metadata" / f"metadata_{i}.parquet",
        )
        start += n
    return folder
