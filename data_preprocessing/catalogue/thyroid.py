"""Thyroid sets."""

from data_preprocessing.catalogue.entry import DataSet, Layout

ENTRIES = (
    DataSet(
        "DDTI",
        "Thyroid",
        # The original: <case>_<k>.jpg beside <case>.xml. One class: TI-RADS is no diagnosis.
        (Layout(r"(?P<group>\d+)_\d+\.jpe?g", "Thyroid-Nodule-DDTI", frame="rectangle"),),
        aliases=("ddti-thyroid-ultrasound-images",),
        shape="rectangle",
        cite="Pedraza et al. 2015, Proc. SPIE 9287, doi 10.1117/12.2073532",
        home="https://www.kaggle.com/datasets/dasmehdixtr/ddti-thyroid-ultrasound-images",
        groups="case: the number before _",
        marker="1_1.jpg",
        seed_count=637,
        true_count=637,
    ),
)
