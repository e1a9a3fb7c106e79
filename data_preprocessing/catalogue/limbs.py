"""Muscle, nerve, spine and carotid artery."""

from data_preprocessing.catalogue.entry import DataSet, Layout

ENTRIES = (
    DataSet(
        "US-nerve",
        "Nerve",
        (
            Layout(r"(?P<split>train)/(?P<group>\d+)_\d+\.tif", "Nerve", {"train": "train"}, "full"),
            Layout(r"(?P<split>test)/\d+\.tif", "Nerve", {"test": "test"}, "full"),
        ),
        aliases=("ultrasound-nerve-segmentation", "US nerve Segmentation"),
        shape="rectangle",
        access="register",
        licence="Kaggle competition rules",
        cite="Kaggle, Ultrasound Nerve Segmentation, 2016",
        home="https://www.kaggle.com/c/ultrasound-nerve-segmentation",
        groups="subject: the number before _; the test part has none",
        marker="train/1_1.tif",
        true_count=11143,
    ),
)
