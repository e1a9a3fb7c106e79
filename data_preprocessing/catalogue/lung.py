"""Lung sets, and simulated pictures."""

from collections.abc import Iterable

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout, named

LUNG = {"regular": "Lung-Regular", "pneumonia": "Lung-Pneumonia", "covid": "Lung-Covid"}
# The same by the prefix of a file's name.
LUNG_PREFIX = {"reg": "Lung-Regular", "pneu": "Lung-Pneumonia", "cov": "Lung-Covid"}

# What follows the prefix in the names of COVID-LUS. Some tell the patient or the case, or are days or minutes
# of one series (Reg_pat1Image_133043.mpeg, Pneu_northumbria_0409_set1_vid1.avi, Cov-Atlas-Day+1.gif): their
# videos stay together. Else the group is the video: its stills are called <video>.<suffix>_frame<n>.jpg.
COVID_SOURCE = (
    r"(?:liftl_pneu_?)?(?P<group>"
    r"pat\d+(?=image)|northumbria_\d+_set\d+|case\d+|atlas-day|image_18(?=\d+_)"
    r"|[^/]+?(?=(?:\.(?:avi|gif|mov|mp4|mpe?g|webm))?(?:_frame\d+)?\.\w+$))[^/]*"
)


def _covid_copies(files: Iterable[File]) -> Facts:
    """The stills of `pocus_images` that are in `image_dataset` too."""
    return {file.path.stem.lower(): {"leave": "copies"} for file in named(files, r"image_dataset/\w+/[^/]+")}


ENTRIES = (
    DataSet(
        "COVID-LUS",
        "Lung",
        (
            # Cut to squares without text by the authors. Their cross_validation/split<k> repeats them.
            Layout(
                rf"(?<!split\d/)(?P<label>regular|pneumonia|covid)/(?:(?:reg|pneu|cov)[_-])?{COVID_SOURCE}"
                r"\.(jpe?g|png)",
                LUNG,
                frame="full",
            ),
            Layout(
                rf"pocus_videos/(?:[^/]+/)?(?P<label>[a-z]+)[_-]{COVID_SOURCE}\.(avi|gif|mov|mp4|mpe?g|webm)",
                LUNG_PREFIX,
                # Cut to squares too, so that their frames are seen to be the stills.
                frame="full",
                take="even",
            ),
            # A clone whose image_dataset was not built yet has the stills only here (unconfirmed).
            Layout(
                rf"pocus_images/(?:[^/]+/)?(?P<key>(?P<label>[a-z]+)[_-]{COVID_SOURCE})\.(jpe?g|png)",
                LUNG_PREFIX,
                facts=_covid_copies,
            ),
        ),
        aliases=("covid19_ultrasound", "covid19_pocus_ultrasound", "pocus"),
        licence="per source: CC BY 4.0, CC BY-NC 4.0, CC BY-NC-SA 4.0",
        cite="Born et al. 2021, Applied Sciences 11(2):672",
        home="https://github.com/jannisborn/covid19_ultrasound",
        unpack="a clone of the repository",
        labels="folder, or prefix Reg, Pneu or Cov of a video",
        groups="patient or case where the name tells it, else the video",
        marker="image_dataset/regular/Reg-Youtube_frame0.jpg",
        left_out={"copies": "a still that is in image_dataset too"},
        note="beyond the 43; videos with another prefix (viral pneumonia) are rejected by name",
    ),
    DataSet(
        "LUSS_phantom",
        "Lung phantom",
        (
            # Names of clips do not start again in the other part: should one be in both, it is held out.
            Layout(
                r"(?P<split>train|test)/images/(?P<group>[^/]+?)-F\d+\.png",
                "Lung-Phantom",
                {"train": "train", "test": "test"},
            ),
            Layout(
                r"VideoClips/(?P<group>[^/]+)\.webm",
                "Lung-Phantom",
                take="even",
                include="unlabelled",
            ),
        ),
        aliases=("LUSS", "data-3"),
        shape="fan",
        licence="CC BY 4.0",
        cite="Howell et al. 2024, Ultrasonics 140:107251",
        home="https://doi.org/10.5518/1485",
        unpack="the archive of frames (data-3); the archive of clips is not needed",
        groups="clip: the name before -F",
        marker="data-3/train/images/<clip>-F1.png",
        left_out={"unlabelled": "a clip, of which the labelled frames are read"},
        true_count=564,
        note="a phantom: never mix it with real lung",
    ),
    DataSet(
        "PlusLibData",
        "Phantom",
        (
            # The transrectal probe is at the bottom.
            Layout(
                r"TestImages/(?P<group>prostate[^/]*?)(\.igs)?\.(mha|mhd)",
                "Prostate-Phantom",
                turn="rotate 180",
                include="phantoms",
                take="even",
            ),
            Layout(
                r"TestImages/(?P<group>[^/]+?)\.igs\.(mha|mhd)", "Phantom", include="phantoms", take="even"
            ),
        ),
        licence="BSD 3-Clause",
        cite="PLUS toolkit test data",
        home="https://github.com/PlusToolkit/PlusLibData",
        unpack="a clone of the repository",
        labels="file name",
        groups="recording",
        marker="TestImages/Prostate10_video.igs.mhd",
        left_out={"phantoms": "format examples of phantoms, not for training"},
        note="beyond the 43",
    ),
    DataSet(
        "Simulated",
        "as its class says",
        # Made by simulate_ultrasound.py: exactly 0 outside the scan area, each class with its own patients.
        (Layout(r"(?P<group>(?P<label>[^/]+)/[^/]+?)_view\d+\.png", {}, frame="zero border"),),
        licence="MIT",
        cite="data_preprocessing/simulate_ultrasound.py",
        home="data_preprocessing/simulate_ultrasound.py",
        unpack="run the script",
        labels="folder",
        groups="simulated patient: the name before _view",
        marker="<Class>/<patient>_view0.png",
        note="beyond the 43",
    ),
)
