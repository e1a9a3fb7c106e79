"""Muscle, nerve, spine and carotid artery."""

from collections.abc import Iterable

import numpy as np

from data_preprocessing.catalogue.entry import (
    COPIES,
    GAPS,
    DataSet,
    Facts,
    File,
    Layout,
    in_blocks,
    named,
)
from data_preprocessing.readers import Unreadable, read_frames
from data_preprocessing.tables import read_json
from usvar.errors import InputError

# Structures as UBPD's annotators wrote them.
UBPD_WORDS = {
    "shenjing": "nerve",
    "jirouzuzhi": "muscle",
    "dongmai": "artery",
    "jingmai": "vein",
    "zhifang": "fat",
    "jizhu": "spine",
}


def _blocks_in(folder: str, files: Iterable[File], count: int, gap: int, group: str) -> Facts:
    """Blocks of the pictures of one folder, by `<folder>/<stem>` in lower case; `group` names its blocks."""
    names = [f"{folder}/{file.path.stem}" for file in named(files, rf"{folder}/[^/]+\.(png|jpe?g|tiff?)")]
    return {
        key: fact | {"group": f"{group} {fact['group']}"}
        for key, fact in in_blocks(names, count, gap).items()
    }


def _fallmud_blocks(files: Iterable[File]) -> Facts:
    """Cunningham's pictures are frames of videos (unconfirmed); Cronin's are only kept beside neighbours."""
    return {
        **_blocks_in("NeilCronin/images", files, 10, 0, "NeilCronin"),
        **_blocks_in("RyanCunningham/images", files, 12, 3, "RyanCunningham"),
    }


def _stmus_blocks(files: Iterable[File]) -> Facts:
    """The rule of the names is not known, with three pictures a person on average.

    Blocks of the three muscles have the same groups, in case people come in the same order.
    """
    return {
        key: fact
        for condition in ("Healthy", "Pathological")
        for muscle in ("BB", "GM", "TA")
        for key, fact in _blocks_in(f"{muscle}/{condition}/Images", files, 20, 2, condition).items()
    }


def _ubpd_lists(files: Iterable[File]) -> Facts:
    """Blocks, since names are not understood; what LabelMe marks in a picture is a remark."""
    facts = in_blocks([file.path.stem for file in named(files, r"JPEGImages/[^/]+\.jpe?g")], 20, 2)
    for file in named(files, r"json_[^/]+/[^/]+\.json"):
        try:
            marked = {str(shape["label"]).strip().lower() for shape in read_json(file.path)["shapes"]}
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{file.path} is no LabelMe file (no {error}), wanted shapes with labels: unpack it again"
            ) from None
        if fact := facts.get(file.path.stem.lower()):
            fact["remark"] = ", ".join(sorted(UBPD_WORDS.get(word, word) for word in marked))
    return facts


def _carotids_doppler(files: Iterable[File]) -> Facts:
    """Names do not tell Doppler: its reds and yellows do, which no grey picture and no text here has."""
    facts = {}
    for file in named(files, r"classification_samples/\d+VAS\.png"):
        try:
            picture = read_frames(file.path, [0])[0]
        except Unreadable:
            # It is rejected when it is looked at.
            continue
        rgb_HWC = np.atleast_3d(picture).astype(int)
        # Red less blue, which in a picture of one channel are the same.
        warm_HW = rgb_HWC[..., 0] - rgb_HWC[..., -1] > 60
        facts[file.path.stem.lower()] = {"leave": "doppler" if warm_HW.mean() > 0.001 else ""}
    return facts


ENTRIES = (
    DataSet(
        "ASUS",
        "Spine",
        # Masks lie beside the pictures, with one more word in their names.
        (
            Layout(
                r"(?P<group>[^/_]+)_(?![^/]*(seg|mask|label|_gt))[^/]+\.npy",
                "Spine",
                turn="rotate 180",
                take="even",
            ),
        ),
        aliases=("DataArrays", "Automatic spine ultrasound segmentation"),
        shape="fan",
        access="hard to reach",
        licence="not known",
        cite="Ungi et al. 2020, IEEE Transactions on Biomedical Engineering 67(11), PMC7654705",
        home="from the authors; a OneDrive link of https://github.com/SlicerIGT/aigt",
        unpack="DataArrays.zip",
        groups="recording: the name before _; people are not told (unconfirmed)",
        marker="DataArrays/101_ultrasound.npy",
        note="2,865 frames of 8 adults and 8 children; names (unconfirmed)",
    ),
    DataSet(
        "brachial_plexus",
        "Nerve",
        # Every JPG of the repository is a mask.
        (Layout(r"[^/]+/videos/(?P<group>[^/]+)\.(mp4|avi|mov)", "Nerve", take="even"),),
        aliases=("Regional-US", "brachial_plexus-main", "brachial_plexus-master"),
        shape="both",
        licence="non-commercial use agreement in the repository",
        cite="Regional-US/brachial_plexus, GitHub",
        home="https://github.com/Regional-US/brachial_plexus (0.6 GB)",
        unpack="a clone of the repository",
        groups="video; its subject is not certain (unconfirmed)",
        marker="data/Sonosite/videos/s005.mp4",
        true_count=163,
        note="videos of three machines, one of them handheld; about 40,788 frames",
    ),
    DataSet(
        "CCAUI",
        "Carotid",
        # Masks have the pictures' names, in `Expert mask images`.
        (Layout(r"US images/(?P<group>\d{8})[^/]*_slice_\d+\.png", "Carotid", guessed=True),),
        aliases=("Common Carotid Artery Ultrasound Images", "d4xt63mgjm"),
        shape="rectangle",
        licence="CC BY 4.0",
        cite="Momot 2022, Mendeley Data, doi 10.17632/d4xt63mgjm.1",
        home="https://data.mendeley.com/datasets/d4xt63mgjm",
        # A person has several recordings, which the name alone does not join.
        groups="day: the first 8 digits (11 people, whom the names do not tell)",
        marker="US images/202201121748100022VAS_slice_1128.png",
        seed_count=1100,
        true_count=1100,
        note="about 100 nearly alike frames a person; a person on two days would leak (unconfirmed)",
    ),
    DataSet(
        "FALLMUD",
        "Muscle",
        (
            Layout(
                r"(?P<key>(NeilCronin|RyanCunningham)/images/[^/]+)\.(tiff?|jpe?g|png)",
                "Muscle",
                frame="full",
                facts=_fallmud_blocks,
                guessed=True,
            ),
        ),
        shape="rectangle",
        cite="Michard et al. 2021, AW-Net, ACM BCB (name unconfirmed)",
        home="https://kalisteo.cea.fr/index.php/fallmud",
        groups="blocks in numerical order, of about 31 (NeilCronin) and 42 (RyanCunningham)",
        marker="NeilCronin/images/img_00001.tif",
        left_out={"gaps": GAPS},
        seed_count=813,
        true_count=813,
        note="309 of Cronin, 504 of Cunningham; the home says 812",
    ),
    DataSet(
        "STMUS_NDA",
        "Muscle",
        (
            Layout(
                r"(?P<key>(BB|GM|TA)/(?P<label>healthy|pathological)/images/[^/]+)\.(png|jpe?g)",
                {"healthy": "Muscle-Healthy", "pathological": "Muscle-Pathological"},
                frame="full",
                facts=_stmus_blocks,
                guessed=True,
            ),
            # Resized for a network, without the condition. Each stays with its original, of which it is a
            # near copy; one group for all would join all blocks.
            Layout(r"MuscleCNN/(train|val|test)/[^/]+\.png", "Muscle", frame="full", include="copies"),
        ),
        aliases=(
            "Polito-Radboud-DeepLearningUS",
            "3jykz7wz8d",
            "DATASET_10.1016j.compbiomed.2021.104623",
        ),
        shape="rectangle",
        licence="CC BY 4.0",
        cite="Marzola et al. 2021, Computers in Biology and Medicine, doi 10.1016/j.compbiomed.2021.104623 "
        "(name unconfirmed)",
        home="https://data.mendeley.com/datasets/3jykz7wz8d",
        unpack="the archive, then DATASET_10.1016j.compbiomed.2021.104623.zip inside it",
        labels="folder; biceps, gastrocnemius and tibialis anterior are merged",
        groups="20 blocks of each folder in numerical order; the names' rule is not known (unconfirmed)",
        marker="Polito-Radboud-DeepLearningUS/BB/Healthy/Images",
        left_out={"copies": COPIES, "gaps": GAPS},
        true_count=3917,
        note="1,283 people; another count of the tree gives 4,355",
    ),
    DataSet(
        "UPBD",
        "Nerve",
        (
            Layout(
                r"JPEGImages/(?P<key>[^/]+)\.jpe?g",
                "Nerve",
                facts=_ubpd_lists,
                guessed=True,
            ),
        ),
        right_name="UBPD",
        aliases=("UBPD", "Ultrasound brachial plexus dataset"),
        shape="rectangle",
        access="hard to reach",
        licence="not known",
        cite="Ding et al. 2020, BPMSegNet, arXiv 2012.12012",
        home="https://ubpd.worldwidetracing.com:9443",
        groups="blocks of 48 in numerical order; the names do not tell the patients, about 100 (unconfirmed)",
        marker="JPEGImages beside json_train",
        left_out={"gaps": GAPS},
        seed_count=955,
        true_count=955,
        note="one class, the structures marked are remarks",
    ),
    DataSet(
        "US-nerve",
        "Nerve",
        (
            Layout(r"(?P<split>train)/(?P<group>\d+)_\d+\.tiff?", "Nerve", {"train": "train"}, "full"),
            # Shuffled frames of other subjects than train's: blocks would not part them, the whole is test.
            Layout(r"(?P<split>test)/\d+\.tiff?", "Nerve", {"test": "test"}, "full"),
        ),
        aliases=("ultrasound-nerve-segmentation", "US nerve Segmentation"),
        shape="rectangle",
        access="register",
        licence="Kaggle competition rules",
        cite="Kaggle, Ultrasound Nerve Segmentation, 2016",
        home="https://www.kaggle.com/c/ultrasound-nerve-segmentation",
        unpack="train.zip and test.zip",
        groups="subject: the number before _; the test part, of other subjects, is official",
        marker="train/1_1.tif",
        true_count=11143,
        note="5,635 train, 5,508 test; in about 60 percent of train no nerve is marked",
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
                guessed=True,
            ),
            Layout(
                r"localization_samples/[^/]+/(?P<group>\d{8})\d+VAS\.png",
                "Carotid",
                frame="full",
                guessed=True,
            ),
            # Cuts of the above around the artery, with a digit before the number.
            Layout(
                r"segmentation_samples/[^/]+/\d(?P<group>\d{8})\d+\.png",
                "Carotid",
                frame="full",
                include="copies",
                guessed=True,
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
