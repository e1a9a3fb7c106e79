"""Ovary and prostate."""

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout

# Order of the index as in the authors' code; the folder names are those of a re-sorted copy.
OVARY = (
    ("Ovary-Chocolate-Cyst", "chocolate_cyst"),
    ("Ovary-Serous-Cystadenoma", "serous_cystadenoma"),
    ("Ovary-Teratoma", "teratoma"),
    ("Ovary-Theca-Cell-Tumour", "theca_cell_tumor"),
    ("Ovary-Simple-Cyst", "simple_cyst"),
    ("Ovary-Normal", "ovary_normal"),
    ("Ovary-Mucinous-Cystadenoma", "mucinous_cystadenoma"),
    ("Ovary-High-Grade-Serous", "high-grade_serous_cystadenoma"),
)


def _mmotu_lists(files: list[File]) -> Facts:
    """`train_cls.txt` and `val_cls.txt` hold lines such as `658.JPG  5`."""
    facts = {}
    for file in files:
        if file.path.name in ("train_cls.txt", "val_cls.txt"):
            for line in file.path.read_text(encoding="utf-8", errors="replace").splitlines():
                if len(words := line.split()) == 2:
                    facts[words[0].split(".")[0].lower()] = {
                        "label": words[1],
                        "split": file.path.stem.split("_")[0],
                    }
    return facts


ENTRIES = (
    DataSet(
        "MMOTU-2D",
        "Ovary",
        (
            Layout(
                r"OTU_2d/images/(?P<key>\d+)\.jpe?g",
                {str(index): name for index, (name, _) in enumerate(OVARY)},
                # The publisher's "val" is its only held-out part.
                {"train": "train", "val": "test"},
                "text",
                facts=_mmotu_lists,
                listed_only=True,
            ),
            Layout(
                rf"(?P<label>{'|'.join(folder for _, folder in OVARY)})/images/\d+\.jpe?g",
                {folder: name for name, folder in OVARY},
                frame="text",
            ),
        ),
        aliases=("MMOTU", "OTU_2d"),
        shape="fan",
        licence="CC BY 4.0 (figshare copy)",
        cite="Zhao et al. 2022, arXiv 2207.06799",
        home="https://github.com/cv516Buaa/MMOTU_DS2Net",
        labels="train_cls.txt and val_cls.txt, or folder in a re-sorted copy",
        marker="OTU_2d/images/1.JPG",
        seed_count=1469,
        true_count=1469,
    ),
)
