"""Data sets in miniature: the real folder layouts and list formats, with a few small pictures, and pictures of awkward kinds."""

import io
import json
import pickle
import tarfile

import numpy as np
from PIL import Image

SPLITS = {"train": range(1, 5), "val": range(5, 7), "test": range(7, 10)}


def picture(seed=0, size=(40, 32), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def save(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, **options)


def lines(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{value}\n" for value in values))


def zhou(folder, images, split_file, classes, place="{folder}/{name}_{i:04d}.jpg"):
    """A split file with its images; classes: folder -> class name."""
    splits = {}
    for part, numbers in SPLITS.items():
        splits[part] = [
            [place.format(folder=name, name=name, i=i + 100 * k), k, c]
            for k, (name, c) in enumerate(classes.items())
            for i in numbers
        ]
        for i, (path, _, _) in enumerate(splits[part]):
            save(folder / images / path, i)
    (folder / split_file).write_text(json.dumps(splits, indent=4))


def caltech101(data):
    zhou(
        data / "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        {"Faces": "face", "airplanes": "airplane"},
    )


def dtd(data):
    folder = data / "dtd"
    zhou(
        folder,
        "images",
        "split_zhou_DescribableTextures.json",
        {"banded": "banded", "dotted": "dotted"},
    )
    for part, numbers in SPLITS.items():
        lines(
            folder / "labels" / f"{part}1.txt",
            *(f"banded/banded_{i:04d}.jpg" for i in numbers),
            *(f"dotted/dotted_{i + 100:04d}.jpg" for i in numbers),
        )


def eurosat(data):
    zhou(
        data / "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        {"AnnualCrop": "Annual Crop Land", "SeaLake": "Sea or Lake"},
        "{folder}/{name}_{i}.jpg",
    )


def food101(data):
    folder = data / "food-101"
    zhou(
        folder,
        "images",
        "split_zhou_Food101.json",
        {"apple_pie": "apple_pie", "waffles": "waffles"},
        "{folder}/{i}.jpg",
    )
    for part, numbers in (("train", [1, 2, 3, 4, 5, 6]), ("test", [7, 8, 9])):
        lines(
            folder / "meta" / f"{part}.txt",
            *(f"apple_pie/{i}" for i in numbers),
            *(f"waffles/{i + 100}" for i in numbers),
        )


def sun397(data):
    folder = data / "sun397"
    zhou(
        folder,
        "SUN397",
        "split_zhou_SUN397.json",
        {"a/abbey": "abbey", "a/apse/indoor": "indoor apse"},
        "{folder}/sun_{i}.jpg",
    )
    lines(folder / "ClassName.txt", "/a/abbey", "/a/apse/indoor")
    lines(folder / "Training_01.txt", "/a/abbey/sun_1.jpg", "/a/apse/indoor/sun_101.jpg")
    lines(folder / "Testing_01.txt", "/a/abbey/sun_7.jpg", "/a/apse/indoor/sun_107.jpg")


def oxford_pets(data):
    folder = data / "oxford_pets"
    zhou(
        folder,
        "images",
        "split_zhou_OxfordPets.json",
        {"Abyssinian": "abyssinian", "american_bulldog": "american_bulldog"},
        "{name}_{i}.jpg",
    )
    lines(
        folder / "annotations" / "trainval.txt",
        *(f"Abyssinian_{i} 1 1 1" for i in range(1, 7)),
        *(f"american_bulldog_{i + 100} 2 2 1" for i in range(1, 7)),
    )
    lines(
        folder / "annotations" / "test.txt",
        *(f"Abyssinian_{i} 1 1 1" for i in range(7, 10)),
        *(f"american_bulldog_{i + 100} 2 2 1" for i in range(7, 10)),
    )


def oxford_flowers(data):
    from scipy.io import savemat

    folder = data / "oxford_flowers"
    zhou(
        folder,
        "jpg",
        "split_zhou_OxfordFlowers.json",
        {"1": "pink primrose", "2": "sweet pea"},
        "image_{i:05d}.jpg",
    )
    (folder / "cat_to_name.json").write_text(json.dumps({"2": "sweet pea", "1": "pink primrose"}))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1] * 9 + [2] * 191])})
    savemat(
        folder / "setid.mat",
        {
            "trnid": np.array([[1, 101]]),
            "valid": np.array([[5, 105]]),
            "tstid": np.array([[7, 107, 8]]),
        },
    )


def stanford_cars(data):
    from scipy.io import savemat

    folder = data / "stanford_cars"
    zhou(
        folder,
        ".",
        "split_zhou_StanfordCars.json",
        {"cars_train": "2012 Acura RL Sedan", "cars_test": "2008 Audi RS 4"},
        "{folder}/{i:05d}.jpg",
    )
    names = np.array(["Acura RL Sedan 2012", "Audi RS 4 2008"], dtype=object)
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    kinds = [("fname", object), ("class", int)]
    savemat(
        folder / "devkit" / "cars_train_annos.mat",
        {"annotations": np.array([("00001.jpg", 1), ("00002.jpg", 1)], dtype=kinds)},
    )
    savemat(
        folder / "cars_test_annos_withlabels.mat",
        {"annotations": np.array([("00107.jpg", 2), ("00108.jpg", 2)], dtype=kinds)},
    )


def ucf101(data):
    folder = data / "ucf101"
    classes = {"Apply_Eye_Makeup": "Apply_Eye_Makeup", "Archery": "Archery"}
    zhou(
        folder,
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        classes,
        "{folder}/v_g{i:02d}_c01.jpg",
    )
    lists = folder / "ucfTrainTestlist"
    lines(lists / "classInd.txt", "1 ApplyEyeMakeup", "2 Archery")
    lines(lists / "trainlist01.txt", "ApplyEyeMakeup/v_g01_c01.avi 1", "Archery/v_g101_c01.avi 2")
    lines(lists / "testlist01.txt", "ApplyEyeMakeup/v_g07_c01.avi", "Archery/v_g107_c01.avi")


def fgvc_aircraft(data):
    folder = data / "fgvc_aircraft"
    lines(folder / "variants.txt", "707-320", "DC-10")
    for part, numbers in SPLITS.items():
        lines(
            folder / f"images_variant_{part}.txt",
            *(f"{i:07d} 707-320" for i in numbers),
            *(f"{i + 100:07d} DC-10" for i in numbers),
        )
        for i in numbers:
            save(folder / "images" / f"{i:07d}.jpg", i)
            save(folder / "images" / f"{i + 100:07d}.jpg", i)


def class_folders(root, names, count, ending="JPEG"):
    for k, name in enumerate(names):
        for i in range(count):
            save(
                root / name / f"{name}_{i}.{ending}",
                i + 10 * k,
                format="JPEG" if ending == "JPEG" else None,
            )


def imagenet(data):
    for part, count in (("train", 4), ("val", 2)):
        class_folders(data / "imagenet" / "images" / part, ["n01440764", "n01443537"], count)
    lines(data / "imagenet" / "classnames.txt", "n01440764 tench", "n01443537 goldfish")


def imagenetv2(data):
    class_folders(
        data / "imagenetv2" / "imagenetv2-matched-frequency-format-val", ["0", "1", "10", "999"], 1
    )


def imagenet_sketch(data):
    class_folders(data / "imagenet-sketch" / "images", ["n01440764", "n01443537"], 3)


def imagenet_a(data):
    class_folders(data / "imagenet-adversarial" / "imagenet-a", ["n01498041", "n01531178"], 3)
    lines(data / "imagenet-adversarial" / "imagenet-a" / "README.txt", "read me")


def imagenet_r(data):
    class_folders(data / "imagenet-rendition" / "imagenet-r", ["n01443537", "n01484850"], 3)


def _batch(path, rows, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(rows).integers(0, 256, (rows, 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({"data": pixels, **values}, protocol=2))


def cifar10(data):
    folder = data / "cifar-10-batches-py"
    for i in range(1, 6):
        _batch(folder / f"data_batch_{i}", 4, labels=[0, 1, 0, 1])
    _batch(folder / "test_batch", 2, labels=[1, 0])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))


def cifar100(data):
    folder = data / "cifar100" / "cifar-100-python"
    _batch(folder / "train", 4, fine_labels=[0, 1, 0, 1], coarse_labels=[0, 0, 0, 0])
    _batch(folder / "test", 2, fine_labels=[1, 0], coarse_labels=[0, 0])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "aquarium_fish"]}))


def shards(folder, files, ending="cls"):
    """Tar shards; files: shard name -> [(key, class)]."""
    for name, samples in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / name, "w") as archive:
            for i, (key, label) in enumerate(samples):
                image = io.BytesIO()
                picture(i).save(image, "PNG")
                for file, content in (
                    (f"{key}.png", image.getvalue()),
                    (f"{key}.{ending}", str(label).encode()),
                ):
                    member = tarfile.TarInfo(file)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def awkward(folder):
    """One picture of every awkward kind in `folder`, and the names of those that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture(1).save(folder / "turned.jpg", exif=exif)
    picture(2, mode="CMYK").save(folder / "cmyk.jpg")
    picture(3, mode="RGBA").save(folder / "alpha.png")
    picture(4, mode="P").save(folder / "palette.gif")
    picture(5, mode="L").save(folder / "grey.png")
    Image.fromarray((np.arange(40 * 32).reshape(32, 40) * 50).astype(np.uint16)).save(
        folder / "deep.png"
    )
    picture(6).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    (folder / "empty.png").write_bytes(b"")
    return {"truncated.jpg", "corrupt.jpg", "empty.png"}
