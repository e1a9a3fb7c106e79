"""What is known of each public data set: one short entry each, a module an organ.

To add a data set, write one more `DataSet(...)` into the module of its organ (see entry.py for the fields),
and a small tree in its layout into that module's test.
"""

from data_preprocessing.catalogue import abdomen, breast, fetal, heart, limbs, lung, pelvis, thyroid
from data_preprocessing.catalogue.entry import (
    DataSet,
    Facts,
    File,
    Layout,
    classes_of,
    named,
    plain_name,
    read_outline,
)

__all__ = [
    "CATALOGUE",
    "CLASSES",
    "CLASS_ALIASES",
    "INCLUDES",
    "MISSION_CLASSES",
    "DataSet",
    "Facts",
    "File",
    "Layout",
    "classes_of",
    "named",
    "plain_name",
    "read_outline",
]

CATALOGUE: tuple[DataSet, ...] = tuple(
    sorted(
        (
            *(*abdomen.ENTRIES, *breast.ENTRIES, *fetal.ENTRIES, *heart.ENTRIES),
            *(*limbs.ENTRIES, *lung.ENTRIES, *pelvis.ENTRIES, *thyroid.ENTRIES),
        ),
        key=lambda entry: entry.name.lower(),
    )
)

# Every class that an entry can give, where its folders do not name it.
CLASSES = frozenset(name for entry in CATALOGUE for name in classes_of(entry))

# Every word that --include knows.
INCLUDES = tuple(sorted({word for entry in CATALOGUE for word in entry.left_out}))

# Six organs, twelve classes; other classes are left out by `--selection mission`. DDTI is a class of its
# own because its pictures differ from TN3K's more by their source than by what they show; a mapping file
# {"Thyroid-Nodule": "Thyroid-Nodule", "Thyroid-Nodule-DDTI": "Thyroid-Nodule", ...} merges the two.
MISSION_CLASSES = (
    *("Breast-Benign", "Breast-Malignant", "Breast-Normal"),
    *("Fetal-Head", "Heart", "Kidney"),
    *("Liver-Benign", "Liver-Malignant", "Liver-Normal"),
    *("Thyroid-Gland", "Thyroid-Nodule", "Thyroid-Nodule-DDTI"),
)
# Spellings of earlier work, accepted by `--selection mission` for a person's own class folders.
CLASS_ALIASES = {"Fetal head": "Fetal-Head", "Kidney-Normal": "Kidney", "Liver_Normal": "Liver-Normal"}
