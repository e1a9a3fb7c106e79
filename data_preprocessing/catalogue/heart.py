"""Heart sets: echocardiography."""

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout


def _camus_split(files: list[File]) -> Facts:
    """Official lists `subgroup_{training,validation,testing}.txt`, one patient a line."""
    names = {"subgroup_training": "train", "subgroup_validation": "val", "subgroup_testing": "test"}
    return {
        patient.lower(): {"split": names[file.path.stem]}
        for file in files
        if file.path.stem in names
        for patient in file.path.read_text(encoding="utf-8", errors="replace").split()
    }


ENTRIES = (
    DataSet(
        "CAMUS",
        "Heart",
        (
            # ED and ES repeat frames of the half sequences, which are left out.
            Layout(
                r"(?P<group>(?P<key>patient\d+))_[24]CH_E[DS]\.(nii|nii\.gz|mhd|mha)",
                "Heart",
                {"train": "train", "val": "val", "test": "test"},
                "zero border",
                facts=_camus_split,
            ),
            # A converted copy whose rows and columns are swapped; its folders are not the official split.
            Layout(
                r"images/(?P<group>patient\d+)_[24]CH_E[DS]\.png",
                "Heart",
                frame="zero border",
                turn="transpose",
            ),
        ),
        aliases=("CAMUS_public", "database_nifti"),
        shape="fan",
        licence="CC BY-NC-SA 4.0",
        cite="Leclerc et al. 2019, IEEE Transactions on Medical Imaging 38(9), doi 10.1109/TMI.2019.2900516",
        home="https://humanheart-project.creatis.insa-lyon.fr (collection CAMUS)",
        groups="patient: patientNNNN in the name",
        marker="database_nifti/patient0001/patient0001_4CH_ED.nii.gz",
        true_count=2000,
    ),
)
