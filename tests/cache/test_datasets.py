"""Data sets: real layouts in miniature, official splits, a user's own images, awkward pictures."""

import json
import pickle
import shutil

import layouts
import numpy as np
import pytest

from cliad.cache import prompts
from cliad.cache.datasets import DATASETS, find_dataset
from cliad.cache.datasets.base import DatasetError
from cliad.cache.datasets.own import Allowed
from cliad.cache.datasets.pictures import open_image

MADE = {name: getattr(layouts, name) for name in DATASETS if name != "digits"}
WITH_OFFICIAL = [
    "dtd",
    "food101",
    "sun397",
    "oxford_pets",
    "oxford_flowers",
    "stanford_cars",
    "ucf101",
]
SMALL = {
    "dtd": ["banded", "dotted"],
    "eurosat": ["Annual Crop Land", "Sea or Lake"],
    "caltech101": ["face", "airplane"],
}
SMALL |= {
    "food101": ["apple pie", "waffles"],
    "sun397": ["abbey", "indoor apse"],
    "oxford_pets": ["abyssinian", "american bulldog"],
}
SMALL |= {
    "stanford_cars": ["2012 Acura RL Sedan", "2008 Audi RS 4"],
    "ucf101": ["Apply Eye Makeup", "Archery"],
    "imagenet": ["tench", "goldfish"],
}
SMALL |= {
    "oxford_flowers": ["pink primrose", "sweet pea"],
    "fgvc_aircraft": ["707-320", "DC-10"],
    "cifar100": ["apple", "aquarium fish"],
}
SMALL |= {"imagenet_a": ["stingray", "goldfinch"], "imagenet_r": ["goldfish", "great white shark"]}


@pytest.mark.parametrize("name", MADE)
def test_the_real_layout_is_read(name, tmp_path):
    MADE[name](tmp_path)
    listing = find_dataset(name).read(tmp_path, "field")
    rows = [row for split in listing.splits.values() for row in split]
    assert set(listing.splits) == set(find_dataset(name).counts) and all(listing.splits.values())
    assert len(set(rows)) == len(rows) and {y for _, y in rows} <= set(
        range(len(listing.classnames))
    )
    assert all(listing.open(path).mode == "RGB" for path, _ in rows)
    assert name not in SMALL or listing.classnames == SMALL[name]


@pytest.mark.parametrize("name", WITH_OFFICIAL)
def test_official_splits_are_read(name, tmp_path):
    MADE[name](tmp_path)
    field, own = (find_dataset(name).read(tmp_path, split) for split in ("field", "official"))
    assert own.classnames == field.classnames and {"train", "test"} <= set(own.splits)
    names = {path: field.classnames[y] for rows in field.splits.values() for path, y in rows}
    assert all(
        names[path] == own.classnames[y]
        for rows in own.splits.values()
        for path, y in rows
        if path in names
    )


def test_both_splits_of_imagenet_need_the_same_classes(tmp_path):
    layouts.imagenet(tmp_path)
    shutil.rmtree(tmp_path / "imagenet" / "images" / "train" / "n01440764")
    with pytest.raises(DatasetError, match=r"train lacks 1 of 2 class folders, such as n01440764"):
        find_dataset("imagenet").read(tmp_path, "field")


def test_a_line_without_a_name_in_imagenets_class_names_is_quoted(tmp_path):
    layouts.imagenet(tmp_path)
    layouts.lines(tmp_path / "imagenet" / "classnames.txt", "n01440764 tench", "n01443537")
    with pytest.raises(DatasetError, match=r"classnames\.txt has the line 'n01443537'"):
        find_dataset("imagenet").read(tmp_path, "field")


def test_imagenetv2_labels_are_folder_numbers(tmp_path):
    layouts.imagenetv2(tmp_path)
    listing = find_dataset("imagenetv2").read(tmp_path, "field")
    assert [y for _, y in listing.splits["test"]] == [0, 1, 10, 999] and listing.classnames[
        999
    ] == "toilet paper"


@pytest.mark.parametrize("folder", ["Caltech101", "caltech_101", "CALTECH-101"])
def test_folder_aliases_are_accepted(folder, tmp_path):
    layouts.caltech101(tmp_path)
    (tmp_path / "caltech-101").rename(tmp_path / folder)
    assert len(find_dataset("caltech101").read(tmp_path, "field").splits["train"]) == 8
    assert len(find_dataset("caltech101").read(tmp_path / folder, "field").splits["train"]) == 8


def test_the_split_file_may_lie_in_a_folder_of_its_own(tmp_path):
    layouts.dtd(tmp_path)
    (tmp_path / "splits").mkdir()
    shutil.move(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", tmp_path / "splits")
    assert find_dataset("dtd").read(tmp_path, "field").classnames == ["banded", "dotted"]


def test_aliases_of_names():
    assert (
        find_dataset("FGVC") is DATASETS["fgvc_aircraft"]
        and find_dataset("oxford-pets") is DATASETS["oxford_pets"]
    )


def spoil_split(data, change):
    layouts.dtd(data)
    file = data / "dtd" / "split_zhou_DescribableTextures.json"
    file.write_text(change(json.loads(file.read_text())))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: None, "has no folder dtd/"),
        (lambda d: (d / "dtd").mkdir(), "has no folder images/"),
        (
            lambda d: (
                layouts.dtd(d),
                (d / "dtd" / "split_zhou_DescribableTextures.json").unlink(),
            ),
            "cliad data download dtd",
        ),
        (lambda d: spoil_split(d, lambda s: "{"), "is not valid JSON"),
        (lambda d: spoil_split(d, lambda s: json.dumps({"train": []})), "it has no 'val'"),
        (lambda d: spoil_split(d, lambda s: json.dumps(s).replace(", 1, ", ", 7, ")), "with gaps"),
        (
            lambda d: spoil_split(
                d, lambda s: json.dumps(s).replace('0, "banded"', '0, "striped"', 1)
            ),
            "has two names",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DatasetError, match=message) as error:
        find_dataset("dtd").read(tmp_path, "field")
    assert "\n" not in str(error.value)


def test_no_data_folder_is_one_line(tmp_path):
    for data, message in (
        (None, r"--data DIR or \$CLIAD_DATA"),
        (tmp_path / "gone", "there is no data folder"),
    ):
        with pytest.raises(DatasetError, match=message):
            find_dataset("dtd").read(data, "field")
    layouts.caltech101(tmp_path)
    with pytest.raises(DatasetError, match="no official split"):
        find_dataset("caltech101").read(tmp_path, "official")


def test_a_cifar_file_with_code_in_it_is_refused(tmp_path):
    layouts.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(
        pickle.dumps({"labels": pickle.Unpickler})
    )
    with pytest.raises(DatasetError, match="is not a CIFAR batch"):
        find_dataset("cifar10").read(tmp_path, "field")


def test_cifar_as_class_folders(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        layouts.class_folders(tmp_path / "cifar10" / part, ["airplane", "cat"], count, "png")
    listing = find_dataset("cifar10").read(tmp_path, "field")
    assert listing.classnames == ["airplane", "cat"] and len(listing.splits["test"]) == 4


def test_cifar_as_class_folders_needs_a_test_folder(tmp_path):
    layouts.class_folders(tmp_path / "cifar10" / "train", ["airplane", "cat"], 3, "png")
    with pytest.raises(DatasetError, match="has train/ but no test/"):
        find_dataset("cifar10").read(tmp_path, "field")


# ------------------------------------------------------------------------------------------------ a user's own images


def test_a_folder_without_splits_is_split_the_same_everywhere(tmp_path):
    layouts.class_folders(tmp_path / "birds", ["jay", "owl"], 10, "jpg")
    one, two = (find_dataset(f"folder:{tmp_path / 'birds'}").read(None, "field") for _ in range(2))
    assert one.splits == two.splits and {part: len(rows) for part, rows in one.splits.items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    assert one.splits["train"][:2] == [
        ("jay/jay_3.jpg", 0),
        ("jay/jay_9.jpg", 0),
    ]  # a change here would change users' splits
    assert find_dataset("folder:birds").read(tmp_path, "field").splits == one.splits


def test_a_folder_with_splits_and_settings(tmp_path):
    for part, count in (("Train", 3), ("valid", 2), ("test", 1)):
        layouts.class_folders(tmp_path / part, ["n1", "n2"], count, "png")
    (tmp_path / "cliad.toml").write_text(
        'templates = ["a photo of a {}, a bird."]\n[classnames]\nn1 = "blue_jay"\n'
    )
    listing = find_dataset(f"folder:{tmp_path}").read(None, "field")
    assert {part: len(rows) for part, rows in listing.splits.items()} == {
        "train": 6,
        "val": 4,
        "test": 2,
    }
    assert listing.classnames == ["blue jay", "n2"] and listing.templates == (
        "a photo of a {}, a bird.",
    )
    assert listing.splits["train"][0][0] == "Train/n1/n1_0.png" and listing.open(
        "Train/n1/n1_0.png"
    )


def test_other_images_of_the_same_names_are_another_data_set(tmp_path):
    layouts.class_folders(tmp_path, ["a", "b"], 3, "jpg")
    before = find_dataset(f"folder:{tmp_path}").read(None, "field").content_hash
    layouts.picture(9, (80, 80)).save(tmp_path / "a" / "a_0.jpg")
    assert find_dataset(f"folder:{tmp_path}").read(None, "field").content_hash != before


def test_a_list_with_names_numbers_and_splits(tmp_path):
    layouts.class_folders(tmp_path, ["a", "b"], 4, "jpg")
    rows = [
        (f"{c}/{c}_{i}.jpg", k, ("train", "test")[i > 2], {"a": "jay", "b": "owl"}[c])
        for k, c in enumerate("ab")
        for i in range(4)
    ]
    layouts.lines(
        tmp_path / "list.csv",
        "path,label,split,classname",
        *(",".join(map(str, row)) for row in rows),
    )
    listing = find_dataset(f"csv:{tmp_path / 'list.csv'}").read(None, "field")
    assert listing.classnames == ["jay", "owl"] and [
        len(rows) for rows in listing.splits.values()
    ] == [6, 2]
    layouts.lines(tmp_path / "names.csv", "path;label", *(f"{row[0]};{row[3]}" for row in rows))
    named = find_dataset(f"csv:{tmp_path / 'names.csv'}").read(None, "field")
    assert named.classnames == ["jay", "owl"] and set(named.splits) == {"train", "val", "test"}
    assert named.open(named.splits["train"][0][0]).mode == "RGB"


@pytest.mark.parametrize(
    "content, message",
    [
        (["file,class", "a.jpg,0"], "columns path and label"),
        (["path,label", "a.jpg,0", ",1"], "line 3: path or label is empty"),
        (["path,label,split", "a.jpg,0,holdout"], "not one of train, val, test"),
        (["path,label", "a.jpg,0", "b.jpg,2"], "numbers must be 0 to 1"),
        (["path,label,classname", "a.jpg,0,x", "b.jpg,0,y"], "has two names"),
        ([], "no rows"),
        (["path,label", ",cat", "a.jpg,cat"], "list.csv, line 2: path or label is empty"),
        (["path,label", "a.jpg,", "b.jpg,cat"], "list.csv, line 2: path or label is empty"),
        (["path,label", "", "a.jpg,0", "b.jpg,"], "list.csv, line 4: path or label is empty"),
        (["path,label", "a.jpg,0,1"], "list.csv, line 2 has more fields than"),
        (["path,label,label", "a.jpg,0,1"], "two columns 'label'"),
        (
            ["path,label", 'a.jpg,"0', "b.jpg,1"],
            "label goes over several lines; is a quote missing",
        ),
        (["path,label", "a.jpg,0", f"b.jpg,{'9' * 5000}"], "5,000 digits; numbers must be 0 to 1"),
        (["path,label,classname", "a.jpg,0,x", "b.jpg,1,x"], "labels 0 and 1 have one class name"),
        (["path,label,classname", "a.jpg,p,x", "b.jpg,q,x"], "labels p and q have one class name"),
        (["path,label", "a.jpg,Cat", "b.jpg,cat"], "classes 'Cat' and 'cat' have one name"),
        (["path,label", "a.jpg,_", "b.jpg,cat"], "class '_' has no name that a prompt can hold"),
        (["path,label", "a.jpg,0", "./a.jpg,1"], "label 1, and label 0 further up .*line 2"),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path, content, message):
    layouts.lines(tmp_path / "list.csv", *content)
    with pytest.raises(DatasetError, match=message) as error:
        find_dataset(f"csv:{tmp_path / 'list.csv'}").read(None, "field")
    assert "\n" not in str(error.value)


def read_list(folder, *content, **allowed):
    layouts.lines(folder / "list.csv", *content)
    return find_dataset(f"csv:{folder / 'list.csv'}", Allowed(**allowed)).read(None, "field")


def test_numbers_with_leading_zeros_are_labels(tmp_path):
    listing = read_list(tmp_path, "path,label,split", "a.jpg,01,train", "b.jpg,00,test")
    assert listing.splits == {"train": [("a.jpg", 1)], "test": [("b.jpg", 0)]}
    assert listing.classnames == ["00", "01"]


def test_numbers_are_labels_by_their_value(tmp_path):
    rows = ["a.jpg,1,train", "b.jpg,01,train", "c.jpg,00,train", "d.jpg,٢,train"]
    listing = read_list(tmp_path, "path,label,split", *rows)
    assert [label for _, label in listing.splits["train"]] == [1, 1, 0, 2]


@pytest.mark.parametrize("label", ["²", "cat", "1st"])
def test_labels_that_are_not_all_numbers_are_names(tmp_path, label):
    listing = read_list(tmp_path, "path,label,split", "a.jpg,0,train", f"b.jpg,{label},train")
    assert listing.classnames == sorted(["0", label])


@pytest.mark.parametrize("label", ["1.0", "1e3", "-1"])
def test_numbers_that_no_class_can_have_are_refused(tmp_path, label):
    with pytest.raises(DatasetError, match=f"label {label} is a number that no class can have"):
        read_list(tmp_path, "path,label", "a.jpg,0", f"b.jpg,{label}")


def test_quotes_are_read_as_pythons_csv_module_reads_them(tmp_path):
    listing = read_list(
        tmp_path,
        '"path","label"',
        '"a, b.jpg","a ""big"" one, red"',
        'c.jpg,"a ""big"" one, red"',
        "d.jpg,cat\x1cdog",
    )
    assert listing.classnames == ['a "big" one, red', "cat dog"]
    paths = {path for rows in listing.splits.values() for path, _ in rows}
    assert paths == {"a, b.jpg", "c.jpg", "d.jpg"}


def test_the_separator_is_what_makes_the_heading(tmp_path):
    rows = ["label\tpath\tnote, long", "cat\ta.jpg\tx;y", "dog\tb.jpg\tx,y"]
    assert read_list(tmp_path, *rows).classnames == ["cat", "dog"]


def test_an_image_in_two_splits_is_refused_with_the_number_unless_it_is_allowed(tmp_path):
    rows = ["path,label,split", "a.jpg,0,train", "b.jpg,0,train", "./a.jpg,0,test", "b.jpg,0,val"]
    said = r"2 images are in several splits, such as \./a.jpg .*line 4.*--allow-overlap"
    with pytest.raises(DatasetError, match=said):
        read_list(tmp_path, *rows)
    listing = read_list(tmp_path, *rows, overlap=True)
    assert [len(rows) for rows in listing.splits.values()] == [2, 1, 1]
    assert (
        listing.notes[0].line()
        == "2 images are listed again, and counted each time: ./a.jpg, b.jpg"
    )


def test_an_image_that_chance_could_put_in_two_splits_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"1 image is listed more than once, such as a\.jpg"):
        read_list(tmp_path, "path,label", "a.jpg,0", "a.jpg,0", "b.jpg,0")


@pytest.mark.parametrize("path", ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "..", "away/x.jpg"])
def test_a_path_that_leaves_the_folder_of_the_list_is_refused_by_name(tmp_path, path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "away").symlink_to("..")
    with pytest.raises(DatasetError) as error:
        read_list(tmp_path / "own", "path,label", "a.jpg,0", f"{path},0")
    assert f"list.csv, line 3: {path} is outside of {tmp_path / 'own'}; " in str(error.value)
    assert "--root DIR" in str(error.value)


def test_a_list_may_lie_elsewhere_than_its_images_where_the_root_is_given(tmp_path):
    layouts.class_folders(tmp_path / "images", ["a"], 4, "jpg")
    for prefix in (f"{tmp_path / 'images'}/", "", "../images/"):
        rows = [f"{prefix}a/a_{i}.jpg,cat" for i in range(4)]
        listing = read_list(tmp_path / "lists", "path,label", *rows, root=tmp_path / "images")
        assert listing.open(listing.splits["train"][0][0]).mode == "RGB"
        assert listing.splits["train"][0][0].startswith(prefix)


def test_a_class_of_a_list_without_training_images_is_a_problem_that_names_it(tmp_path):
    rows = ["a.jpg,cat,train", "b.jpg,dog,test"]
    (problem,) = read_list(tmp_path, "path,label,split", *rows).problems
    assert "has no training images of 1 class: dog" in problem


@pytest.mark.parametrize(
    "encoding, message",
    [
        ("latin-1", r"is not UTF-8 text \(line 2"),
        ("utf-16", "is UTF-16 text; save it as UTF-8"),
        ("utf-16-le", "holds zero bytes, as UTF-16 text does; save it as UTF-8"),
    ],
)
def test_a_list_in_another_encoding_is_said_to_be_one(tmp_path, encoding, message):
    # Without accents UTF-16 is UTF-8 with zero bytes in between.
    name = "eclair" if encoding == "utf-16-le" else "\xe9clair"
    text = f"path,label\na.jpg,{name}\n"
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DatasetError, match=message):
        find_dataset(f"csv:{tmp_path / 'list.csv'}").read(None, "field")


def test_what_only_folders_and_lists_have_is_refused_for_others():
    with pytest.raises(DatasetError, match="--root and --allow-overlap are for folder:PATH"):
        find_dataset("digits", Allowed(overlap=True))


def test_wrong_folders_are_one_line(tmp_path):
    with pytest.raises(DatasetError, match="there is no"):
        find_dataset("folder:nowhere").read(tmp_path, "field")
    with pytest.raises(DatasetError, match="one folder per class"):
        find_dataset(f"folder:{tmp_path}").read(None, "field")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DatasetError, match="has no images"):
        find_dataset(f"folder:{tmp_path}").read(None, "field")


@pytest.mark.parametrize(
    "content, message",
    [
        ("names = 1", "may have templates and classnames"),
        ('templates = "a {}"', "templates is a list"),
        ("[classnames]\ncat = 1", "a table of texts"),
        ("[classnames", "cliad.toml is not valid TOML"),
        ('[classnames]\ncow = "a"', "names class 'cow', which"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, content, message):
    (tmp_path / "cliad.toml").write_text(content)
    layouts.class_folders(tmp_path, ["cat"], 1, "jpg")
    with pytest.raises(DatasetError, match=message):
        find_dataset(f"folder:{tmp_path}").read(None, "field")


def test_shards_with_numbers_and_split_words(tmp_path):
    layouts.shards(
        tmp_path,
        {
            "train-0000.tar": [("s0", 0), ("s1", 1)],
            "train-0001.tar": [("s2", 1)],
            "test-0000.tar": [("s0", 0)],
        },
    )
    layouts.lines(tmp_path / "classnames.txt", "jay", "owl")
    layouts.lines(tmp_path / "zeroshot_classification_templates.txt", "a photo of a {c}, a bird.")
    for pattern in (tmp_path, tmp_path / "{train,test}-{0000..0001}.tar"):
        listing = find_dataset(f"wds:{pattern}").read(None, "field")
        assert listing.splits["train"] == [
            ("train-0000.tar/s0", 0),
            ("train-0000.tar/s1", 1),
            ("train-0001.tar/s2", 1),
        ]
        assert listing.classnames == ["jay", "owl"] and listing.templates == (
            "a photo of a {c}, a bird.",
        )
        assert np.array_equal(
            np.asarray(listing.open("train-0000.tar/s1")), np.asarray(layouts.picture(1))
        )


def test_shards_in_folders_with_names_for_classes(tmp_path):
    layouts.shards(
        tmp_path,
        {"train/0.tar": [("a", "owl"), ("b", "jay")], "test/0.tar": [("a", "jay")]},
        "label",
    )
    listing = find_dataset(f"wds:{tmp_path}").read(None, "field")
    assert listing.splits["train"] == [
        ("train/0.tar/a", 1),
        ("train/0.tar/b", 0),
    ] and listing.classnames == ["jay", "owl"]


@pytest.mark.parametrize(
    "pattern, message",
    [("none-{0..3}.tar", "names no shards"), ("http://a/b.tar", "is not on this machine")],
)
def test_wrong_shards_are_one_line(tmp_path, pattern, message):
    with pytest.raises(DatasetError, match=message):
        find_dataset(f"wds:{pattern}").read(tmp_path, "field")


# --------------------------------------------------------------------------------------------------- pictures, digits


def test_awkward_pictures(tmp_path):
    bad = layouts.awkward(tmp_path)
    for file in tmp_path.iterdir():
        if file.name in bad:
            with pytest.raises(Exception, match=r".+"):
                open_image(file)
        else:
            assert open_image(file).mode == "RGB", file
    assert open_image(tmp_path / "turned.jpg").size == (32, 40)
    deep = np.asarray(open_image(tmp_path / "deep.png"))[..., 0]
    assert deep[0, 0] == 0 and abs(int(deep[-1, -1]) - 63950 // 256) <= 1


def test_digits_is_what_its_card_says():
    dataset = find_dataset("digits")
    listing = dataset.read(None, "field")
    assert {name: len(rows) for name, rows in listing.splits.items()} == dataset.counts
    paths = [path for rows in listing.splits.values() for path, _ in rows]
    assert len(set(paths)) == len(paths) == 1797 and len(listing.classnames) == dataset.n_class
    image = listing.open(paths[0])
    assert image.mode == "RGB" and image.size == (8, 8) and image.getextrema()[0][1] > 200


def test_a_digit_class_is_cut_in_writing_order():
    splits = find_dataset("digits").read(None, "field").splits
    threes = {
        name: [int(path) for path, label in rows if label == 3] for name, rows in splits.items()
    }
    assert max(threes["train"]) < min(threes["val"]) and max(threes["val"]) < min(threes["test"])


def test_an_unknown_data_set_is_one_line_with_the_nearest():
    with pytest.raises(DatasetError, match=r"did you mean 'digits'.*folder:PATH"):
        find_dataset("Digit")


def test_every_data_set_has_templates_with_a_place_for_the_name():
    assert all(prompts.check_templates(dataset.templates) for dataset in DATASETS.values())
