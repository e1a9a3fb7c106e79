"""Lung sets, and simulated pictures."""

from data_preprocessing.catalogue.entry import DataSet, Layout

ENTRIES = (
    DataSet(
        "COVID-LUS",
        "Lung",
        (
            Layout(
                r"(?P<label>regular|pneumonia|covid)/(?P<group>[^/]+?)(_frame\d+)?\.(jpe?g|png)",
                {"regular": "Lung-Regular", "pneumonia": "Lung-Pneumonia", "covid": "Lung-Covid"},
                # Cut to squares without text by the authors.
                frame="full",
            ),
        ),
        aliases=("covid19_ultrasound", "covid19_pocus_ultrasound", "pocus"),
        shape="both",
        licence="per source: CC BY 4.0, CC BY-NC 4.0, CC BY-NC-SA 4.0",
        cite="Born et al. 2021, Applied Sciences 11(2):672",
        home="https://github.com/jannisborn/covid19_ultrasound",
        labels="folder",
        groups="video: the name before _frame",
        marker="image_dataset/regular/Reg-Youtube_frame0.jpg",
    ),
    DataSet(
        "Simulated",
        "as its class says",
        # Made by simulate_ultrasound.py: exactly 0 outside the scan area, each class with its own patients.
        (Layout(r"(?P<group>(?P<label>[^/]+)/[^/]+?)_view\d+\.png", {}, frame="zero border"),),
        licence="MIT",
        home="data_preprocessing/simulate_ultrasound.py",
        unpack="run the script",
        labels="folder",
        groups="simulated patient: the name before _view",
    ),
)
