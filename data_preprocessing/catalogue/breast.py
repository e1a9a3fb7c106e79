"""Breast sets."""

from data_preprocessing.catalogue.entry import DataSet, Layout

BREAST = {"benign": "Breast-Benign", "malignant": "Breast-Malignant", "normal": "Breast-Normal"}

ENTRIES = (
    DataSet(
        "BUSI",
        "Breast",
        (Layout(r"(?P<label>benign|malignant|normal) \(\d+\)\.png", BREAST, frame="full"),),
        aliases=("Dataset_BUSI_with_GT", "Dataset_BUSI"),
        shape="rectangle",
        cite="Al-Dhabyani et al. 2020, Data in Brief 28:104863",
        home="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        labels="folder and file name",
        marker="benign/benign (1).png",
        seed_count=780,
        true_count=780,
        note="many duplicates, some with both labels; text and calipers in about 295",
    ),
    DataSet(
        "STU-Hospital",
        "Breast",
        # No diagnosis is published: the class says only the organ.
        (Layout(r"Test_Image_\d+\.png", "Breast", frame="full"),),
        aliases=("STU", "Hospital"),
        shape="rectangle",
        cite="Zhuang et al. 2019, PLOS ONE, doi 10.1371/journal.pone.0221535",
        home="https://github.com/xbhlk/STU-Hospital",
        marker="Hospital/Test_Image_1.png",
        seed_count=40,
        true_count=42,
        note="128 x 128 pixels; lesions without a diagnosis",
    ),
)
