"""The nine of the field's data sets that have a split file: where they lie, and what they hold.

Folders, templates and split files are those of CoOp (Zhou et al., 2022).
"""

from __future__ import annotations

from cliad.cache.datasets import official
from cliad.cache.datasets.base import Remote
from cliad.cache.datasets.zhou import SPLIT_FILES_URL, Place, field_dataset

OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"

# CoOp leaves out two of the folders, BACKGROUND_Google and Faces_easy.
CALTECH101 = field_dataset(
    Place(
        name="caltech101",
        folders=("caltech-101",),
        images=("101_ObjectCategories", "caltech-101/101_ObjectCategories"),
        split_file="split_zhou_Caltech101.json",
    ),
    template="a photo of a {}.",
    counts=(4128, 1649, 2465),
    n_class=100,
    checksum="52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5",
    remotes=[
        Remote(
            url="https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            file="caltech-101.zip",
            checksum="md5:3138e1922a9193bfa496528edbbc45d0",
            megabytes=137,
            unpack=True,
        ),
    ],
)
OXFORD_PETS = field_dataset(
    Place(
        name="oxford_pets",
        folders=("oxford_pets", "oxford-iiit-pet", "pets"),
        images=("images",),
        split_file="split_zhou_OxfordPets.json",
        official=official.pets,
    ),
    template="a photo of a {}, a type of pet.",
    counts=(2944, 736, 3669),
    n_class=37,
    checksum="d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e",
    remotes=[
        Remote(
            url=OXFORD + "pets/data/images.tar.gz",
            file="images.tar.gz",
            checksum="md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
            megabytes=792,
            unpack=True,
        ),
        Remote(
            url=OXFORD + "pets/data/annotations.tar.gz",
            file="annotations.tar.gz",
            checksum="md5:95a8c909bbe2e81eed6a22bccdf3f68f",
            megabytes=19,
            unpack=True,
        ),
    ],
)
STANFORD_CARS = field_dataset(
    Place(
        name="stanford_cars",
        folders=("stanford_cars", "cars"),
        # Paths in the split file begin with cars_train/ or cars_test/.
        images=(".",),
        split_file="split_zhou_StanfordCars.json",
        official=official.cars,
    ),
    template="a photo of a {}.",
    counts=(6509, 1635, 8041),
    n_class=196,
    checksum="40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d",
    by_hand="cars_train/ and cars_test/ (the original site is gone;"
    " mirrors carry cars_train.tgz, cars_test.tgz, car_devkit.tgz)",
)
OXFORD_FLOWERS = field_dataset(
    Place(
        name="oxford_flowers",
        folders=("oxford_flowers", "flowers-102", "flower102", "flowers"),
        images=("jpg",),
        split_file="split_zhou_OxfordFlowers.json",
        official=official.flowers,
    ),
    template="a photo of a {}, a type of flower.",
    counts=(4093, 1633, 2463),
    n_class=102,
    checksum="2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
    remotes=[
        Remote(
            url=OXFORD + "flowers/102/102flowers.tgz",
            file="102flowers.tgz",
            checksum="md5:52808999861908f626f3c1f4e79d11fa",
            megabytes=345,
            unpack=True,
        ),
        Remote(
            url=OXFORD + "flowers/102/imagelabels.mat",
            file="imagelabels.mat",
            checksum="md5:e0620be6f572b9609742df49c70aed4d",
        ),
        Remote(
            url=OXFORD + "flowers/102/setid.mat",
            file="setid.mat",
            checksum="md5:a5357ecc9cb78c4bef273ce3793fc85c",
        ),
        Remote(url=SPLIT_FILES_URL + "cat_to_name.json", file="cat_to_name.json"),
    ],
)
FOOD101 = field_dataset(
    Place(
        name="food101",
        folders=("food-101",),
        images=("images", "food-101/images"),
        split_file="split_zhou_Food101.json",
        official=official.food,
    ),
    # Without an article, as in CoOp.
    template="a photo of {}, a type of food.",
    counts=(50500, 20200, 30300),
    n_class=101,
    remotes=[
        Remote(
            url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            file="food-101.tar.gz",
            checksum="md5:85eeb15f3717b99a5da872d97d918f87",
            megabytes=4997,
            unpack=True,
        ),
    ],
)
SUN397 = field_dataset(
    Place(
        name="sun397",
        folders=("sun397",),
        images=("SUN397", "."),
        split_file="split_zhou_SUN397.json",
        official=official.sun,
    ),
    template="a photo of a {}.",
    counts=(15880, 3970, 19850),
    n_class=397,
    remotes=[
        Remote(
            url="http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
            file="SUN397.tar.gz",
            checksum="md5:8ca2778205c41d23104230ba66911c7a",
            megabytes=37000,
            unpack=True,
        ),
    ],
)
DTD = field_dataset(
    Place(
        name="dtd",
        folders=("dtd", "describable_textures"),
        images=("images", "dtd/images"),
        split_file="split_zhou_DescribableTextures.json",
        official=official.dtd,
    ),
    template="{} texture.",
    counts=(2820, 1128, 1692),
    n_class=47,
    checksum="f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
    remotes=[
        Remote(
            url=OXFORD + "dtd/download/dtd-r1.0.1.tar.gz",
            file="dtd-r1.0.1.tar.gz",
            checksum="md5:fff73e5086ae6bdbea199a49dfb8a4c1",
            megabytes=625,
            unpack=True,
        ),
    ],
)
EUROSAT = field_dataset(
    Place(
        name="eurosat",
        folders=("eurosat",),
        images=("2750", "EuroSAT/2750", "EuroSAT"),
        split_file="split_zhou_EuroSAT.json",
    ),
    template="a centered satellite photo of {}.",
    counts=(13500, 5400, 8100),
    n_class=10,
    checksum="541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
    remotes=[
        Remote(
            # Pinned to a commit, so that the file stays the same.
            url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            file="EuroSAT.zip",
            checksum="md5:c8fa014336c82ac7804f0398fcb19387",
            megabytes=94,
            unpack=True,
        ),
    ],
)
UCF101 = field_dataset(
    Place(
        name="ucf101",
        folders=("ucf101", "ucf-101"),
        images=("UCF-101-midframes",),
        split_file="split_zhou_UCF101.json",
        official=official.ucf,
    ),
    template="a photo of a person doing {}.",
    counts=(7639, 1898, 3783),
    n_class=101,
    checksum="d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8",
    by_hand="UCF-101-midframes/ (the middle frame of every video;"
    " CoOp's DATASETS.md links UCF-101-midframes.zip)",
)
