"""A cache file as earlier versions wrote it: recipes are attributes, and little has a checksum."""

import json
import zlib

import h5py
import numpy as np
from written import header, layout, rows_of, text_set

BATCH = 4


def write_schema_1(path):
    """The file of `written.write`, in schema 1."""
    split = layout()
    text = text_set()
    facts = header(split, versions={"torch": "9"})
    x = rows_of(split, 0, 10)
    with h5py.File(path, "w") as file:
        numbers = {"schema": 1, "batch": BATCH, "unit_rows": 0}
        texts = {
            "dataset": "toy",
            "encoder": "enc",
            "encoder_id": "e1",
            "image_id": facts.image_id,
            "image_recipe": as_json(facts.recipe),
            "versions": as_json(facts.versions),
        }
        set_attributes(file, numbers | texts)
        group = file.create_group("splits/train")
        group["features"] = x["features"]
        group["labels"] = split.labels.astype(np.int32)
        group["paths"] = np.array([path.encode() for path in split.paths])
        group["status"] = np.ones(10, np.uint8)
        group["checksums"] = checksums(split)
        group["views/aug"] = x["views/aug"].astype(np.float16)
        set_attributes(group["views/aug"], {"low": 0.5})
        group["views/aug_rows"] = split.views["aug"].rows.astype(np.int64)
        group = file.create_group("text/default")
        group["features"] = text.features.astype(np.float16)
        group["templates"] = np.array([template.encode() for template in text.templates])
        group["classnames"] = np.array([name.encode() for name in text.classnames])
        recipe = {"text_id": text.text_id, "text_recipe": as_json(text.recipe)}
        set_attributes(group, recipe | {"encoder_id": "e1", "logit_scale": 100.0})
    return path


def as_json(value):
    return json.dumps(value, sort_keys=True)


def checksums(split):
    """The CRC-32 of the features and views of each batch; what the marks say is left out."""
    found = []
    for start in range(0, 10, BATCH):
        rows = rows_of(split, start, min(start + BATCH, 10))
        stored = rows["features"].tobytes() + rows["views/aug"].astype(np.float16).tobytes()
        found.append(zlib.crc32(stored))
    return np.array(found, np.uint32)


def set_attributes(node, values):
    for key, value in values.items():
        node.attrs[key] = np.bytes_(value) if isinstance(value, str) else value
