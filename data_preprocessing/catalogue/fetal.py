"""Fetal head and abdomen."""

from data_preprocessing.catalogue.entry import DataSet, Layout

ENTRIES = (
    DataSet(
        "HC18",
        "Fetal head",
        (
            # The number is the examination; test starts again at 000.
            Layout(
                r"(?P<split>training|test)_set/(?P<group>\d+)_\d?HC\.png",
                "Fetal-Head",
                {"training": "train", "test": "test"},
                "clean",
            ),
        ),
        aliases=("HC",),
        shape="fan",
        licence="CC BY 4.0",
        cite="van den Heuvel et al. 2018, PLOS ONE, doi 10.1371/journal.pone.0200412",
        home="https://zenodo.org/records/1327317",
        unpack="training_set.zip and test_set.zip",
        groups="examination: the number before _ (806 in training, of fewer women)",
        marker="training_set/000_HC.png",
        seed_count=1334,
        true_count=1334,
    ),
)
