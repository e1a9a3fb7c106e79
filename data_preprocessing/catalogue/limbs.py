"""Muscle, nerve, spine and carotid artery."""

import numpy as np
from PIL import Image

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout, named


def _carotids_doppler(files: list[File]) -> Facts:
    """Names do not tell Doppler: its reds and yellows do, which no grey picture and no text here has."""
    facts = {}
    for file in named(files, r"classification_samples/\d+VAS\.png"):
        try:
            with Image.open(file.path, formats=("PNG",)) as picture:
                rgb_HWC = np.asarray(picture.convert("RGB")).astype(np.int16)
        except (OSError, SyntaxError):
            # A broken picture is rejected when it is looked at.
            continue
        warm_HW = rgb_HWC[..., 0] - rgb_HWC[..., 2] > 60
        facts[file.path.stem.lower()] = {"leave": "doppler" if warm_HW.mean() > 0.001 else ""}
    return facts


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
    DataSet(
        "TimTrack",
        "Muscle",
        (
            Layout(r"dataset 1/(?P<group>S\d+)/[^/]+\.png", "Muscle", frame="rectangle"),
            # One subject on one day.
            Layout(r"(?P<group>dataset 2)/[^/]+/[^/]+\.png", "Muscle", frame="rectangle"),
            # The folders are speeds: the subject is in the name.
            Layout(r"dataset 3/[^/]+/(?P<group>p\d+)_[^/]+\.jpe?g", "Muscle", frame="rectangle"),
            Layout(r"dataset 4/(?P<group>[^/]+)/[^/]+\.png", "Muscle", frame="rectangle"),
        ),
        aliases=("ultrasound-automated-algorithm",),
        shape="rectangle",
        licence="CC0 1.0 (data sets 1, 2), CC BY 4.0 (3, 4)",
        cite="van der Zee and Kuo 2022, PLOS ONE (data set 3: Drazan et al.; 4: Seynnes and Cronin)",
        home="https://github.com/timvanderzee/ultrasound-automated-algorithm",
        unpack="a clone of the repository",
        groups="subject: folder, in data set 3 the start of the name",
        marker="dataset 1/S2/S2_L20_step_225.png",
        note="beyond the 43; 2 shows a machine's screen, 3 and 4 a grey software window",
    ),
    DataSet(
        "carotids",
        "Carotid",
        (
            Layout(
                r"classification_samples/(?P<key>(?P<group>\d{8})\d+VAS)\.png",
                "Carotid",
                frame="text",
                facts=_carotids_doppler,
            ),
            Layout(r"localization_samples/[^/]+/(?P<group>\d{8})\d+VAS\.png", "Carotid", frame="full"),
            # Cuts of the above around the artery, with a digit before the number.
            Layout(
                r"segmentation_samples/[^/]+/\d(?P<group>\d{8})\d+\.png",
                "Carotid",
                frame="full",
                include="copies",
            ),
        ),
        shape="rectangle",
        licence="MIT",
        cite="M. Kostelansky, thesis, CTU Prague",
        home="https://github.com/kostelansky17/carotids",
        unpack="a clone of the repository",
        groups="day of the recording, the first eight digits of the name",
        marker="data_samples/localization_samples/transverse/201811211122300246VAS.png",
        left_out={"doppler": "colour or spectral Doppler", "copies": "a cut from another picture"},
        note="beyond the 43",
    ),
)
