"""Lung sets, phantoms and simulated pictures: a small tree in each layout, with the trap that it holds."""

import numpy as np
import pytest
from raw_trees import chosen, find, plant, save_video, save_volume, speckle, told, write

HOMES = ["covid19_ultrasound/data", "COVID-LUS", "pocus/covid19_ultrasound-master/data"]
# Each frame is brighter than the one before.
VIDEO = [np.full((80, 96), grey, np.uint8) for grey in range(30, 230, 10)]


@pytest.mark.parametrize("home", HOMES, ids=["clone", "shallower", "deeper"])
def test_covid_lus(tmp_path, home):
    """Plus signs, parentheses, two suffixes in a name; stills are in the group of their video."""
    images, videos = f"{home}/image_dataset", f"{home}/pocus_videos"
    plant(
        tmp_path,
        f"{images}/covid/Cov-Atlas+(45).gif_frame12.jpg",
        f"{images}/covid/Cov-Atlas+(45).gif_frame3.jpg",
        f"{images}/regular/Reg_Avi_lung-sliding-3.MP4_frame0.jpg",
        f"{images}/pneumonia/Pneu_large.effusion.jpg",
    )
    save_video(tmp_path / f"{videos}/convex/Cov-Atlas+(45).gif", VIDEO)
    save_video(tmp_path / f"{videos}/convex/Pneu_Avi_Video_001.mp4", VIDEO)
    save_video(tmp_path / f"{videos}/linear/Reg_northumbria_1009_vid6.avi", VIDEO)
    save_video(tmp_path / f"{videos}/convex/Vir_someone.mov", VIDEO)
    # The authors' folds repeat the stills.
    plant(tmp_path, f"{home}/cross_validation/split0/covid/Cov-Atlas+(45).gif_frame12.jpg")
    found = find(tmp_path)
    assert told(found) == {
        f"{images}/covid/Cov-Atlas+(45).gif_frame12.jpg": ("Lung-Covid", "Atlas+(45)", ""),
        f"{images}/covid/Cov-Atlas+(45).gif_frame3.jpg": ("Lung-Covid", "Atlas+(45)", ""),
        f"{images}/regular/Reg_Avi_lung-sliding-3.MP4_frame0.jpg": ("Lung-Regular", "Avi_lung-sliding-3", ""),
        f"{images}/pneumonia/Pneu_large.effusion.jpg": ("Lung-Pneumonia", "large.effusion", ""),
        f"{videos}/convex/Cov-Atlas+(45).gif": ("Lung-Covid", "Atlas+(45)", ""),
        f"{videos}/convex/Pneu_Avi_Video_001.mp4": ("Lung-Pneumonia", "Avi_Video_001", ""),
        f"{videos}/linear/Reg_northumbria_1009_vid6.avi": ("Lung-Regular", "northumbria_1009_vid6", ""),
    }
    assert found.rejected == {
        f"{videos}/convex/Vir_someone.mov": "unknown label 'vir', wanted one of cov, pneu, reg"
    }
    taken = {
        record.source.rsplit("/", 1)[1]: record.take for record in found.records if "videos" in record.source
    }
    assert set(taken.values()) == {"even"} and len(taken) == 3
    for record in found.records:
        if record.take == "even":
            means = [picture.mean() for picture in chosen(tmp_path, record).values()]
            # Evenly spaced over the video, not its first three frames.
            assert len(means) == 3 and np.diff(means).min() > 30, record.source


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (
            ("regular/Reg_pat1Image_133043.mpeg_frame0.jpg", "regular/Reg_pat1Image_133138.mpeg_frame9.jpg"),
            "pat1",
        ),
        (
            (
                "regular/Reg_northumbria_0409_set3_vid1.avi_frame0.jpg",
                "pneumonia/Pneu_northumbria_0409_set3_vid1.avi_frame0.jpg",
                "pneumonia/Pneu_northumbria_0409_set3_img2.jpg",
            ),
            "northumbria_0409_set3",
        ),
        (
            (
                "regular/Reg_liftl_pneucase3_clip1.mp4_frame0.jpg",
                "pneumonia/Pneu_liftl_pneu_case3_clip4.mp4_frame0.jpg",
            ),
            "case3",
        ),
        (("covid/Cov-Atlas-Day+1.gif_frame0.jpg", "covid/Cov-Atlas-Day+4.gif_frame0.jpg"), "Atlas-Day"),
        (
            (
                "regular/Reg_Image_181602_trimmed_crop.mp4_frame0.jpg",
                "regular/Reg_Image_182340_crop.mp4_frame5.jpg",
            ),
            "Image_18",
        ),
    ],
)
def test_covid_lus_keeps_patients_whole(tmp_path, names, group):
    """Several videos of one patient or case, some of them with different labels."""
    plant(tmp_path / "covid19_ultrasound/data/image_dataset", *names)
    plant(tmp_path / "covid19_ultrasound/data/image_dataset", "regular/Reg_Avi_Image002.mp4_frame0.jpg")
    groups = {record.source.split("image_dataset/")[1]: record.group for record in find(tmp_path).records}
    assert groups.pop("regular/Reg_Avi_Image002.mp4_frame0.jpg") == "Avi_Image002"
    assert groups == dict.fromkeys(names, group)


def test_covid_lus_stills_before_the_image_dataset_is_built(tmp_path):
    """`pocus_images` holds stills that a built image_dataset repeats, and others that it lacks."""
    home = "covid19_ultrasound/data"
    plant(tmp_path / home, "pocus_images/convex/Cov_one.jpg", "pocus_images/convex/Reg_two.jpg")
    first = {
        f"{home}/pocus_images/convex/Cov_one.jpg": ("Lung-Covid", "one", ""),
        f"{home}/pocus_images/convex/Reg_two.jpg": ("Lung-Regular", "two", ""),
    }
    assert told(find(tmp_path)) == first
    plant(tmp_path / home, "image_dataset/covid/Cov_one.jpg")
    found = find(tmp_path)
    assert set(told(found)) == {
        f"{home}/pocus_images/convex/Reg_two.jpg",
        f"{home}/image_dataset/covid/Cov_one.jpg",
    }
    assert set(found.left_out) == {f"{home}/pocus_images/convex/Cov_one.jpg"}
    assert len(find(tmp_path, "copies").records) == 3


@pytest.mark.parametrize(
    "home", ["LUSS_phantom/data-3", "data-3", "LUSS_phantom/1263/LUSS/data-3", "LUSS_phantom"]
)
def test_luss_phantom(tmp_path, home):
    """Masks have the pictures' names; a clip is one group in train and test; clips are left out."""
    names = (
        "train/{}/clip 7-F1.png",
        "train/{}/clip 7-F30.png",
        "test/{}/lung-B-2-F3.png",
        "test/{}/clip 7-F9.png",
    )
    for number, what in enumerate(("images", "masks")):
        plant(tmp_path / home, *(name.format(what) for name in names), first=10 * number)
    save_video(tmp_path / home / "VideoClips/clip 7.webm", VIDEO)
    frames = {
        f"{home}/train/images/clip 7-F1.png": ("Lung-Phantom", "clip 7", "train"),
        f"{home}/train/images/clip 7-F30.png": ("Lung-Phantom", "clip 7", "train"),
        f"{home}/test/images/lung-B-2-F3.png": ("Lung-Phantom", "lung-B-2", "test"),
        f"{home}/test/images/clip 7-F9.png": ("Lung-Phantom", "clip 7", "test"),
    }
    found = find(tmp_path)
    assert told(found) == frames and not found.rejected
    assert set(found.left_out) == {f"{home}/VideoClips/clip 7.webm"}
    found = find(tmp_path, "unlabelled")
    assert told(found) == frames | {f"{home}/VideoClips/clip 7.webm": ("Lung-Phantom", "clip 7", "")}
    (clip,) = [record for record in found.records if record.source.endswith(".webm")]
    assert clip.take == "even"
    assert np.diff([picture.mean() for picture in chosen(tmp_path, clip).values()]).min() > 30


@pytest.mark.parametrize("home", ["PlusLibData", "PlusLibData/TestImages"], ids=["clone", "deeper"])
def test_plus_lib_data(tmp_path, home):
    """Phantoms are left out by default; the transrectal probe is at the bottom, and comes to the top."""
    folder = tmp_path / home / "TestImages"
    volume_ZHW = np.stack([speckle(number) for number in range(10)])
    volume_ZHW[:, 70:, :10] = 0  # the lower left corner
    save_volume(folder / "Prostate10_video.igs.mhd", volume_ZHW)
    save_volume(folder / "BkCurvilinearScanConvertedData.igs.mha", speckle(50))
    write(folder / "SpinePhantom.mha", b"tracking only")
    plant(tmp_path, "STU-Hospital/Hospital/Test_Image_1.png")
    found = find(tmp_path)
    names = ("BkCurvilinearScanConvertedData.igs.mha", "Prostate10_video.igs.mhd")
    sources = [f"{home}/TestImages/{name}" for name in names]
    assert len(found.records) == 1 and sorted(found.left_out) == sources
    found = find(tmp_path, "phantoms")
    assert told(found) == {
        "STU-Hospital/Hospital/Test_Image_1.png": ("Breast", "", ""),
        sources[0]: ("Phantom", "BkCurvilinearScanConvertedData", ""),
        sources[1]: ("Prostate-Phantom", "Prostate10_video", ""),
    }
    records = {record.source: record for record in found.records}
    pictures = chosen(tmp_path, records[sources[1]])
    assert len(pictures) == 3 and max(pictures) - min(pictures) > 3
    for number, picture_HW in pictures.items():
        np.testing.assert_array_equal(picture_HW, volume_ZHW[number, ::-1, ::-1])
        assert (picture_HW[:10, -10:] == 0).all()
    (picture_HW,) = chosen(tmp_path, records[sources[0]]).values()
    np.testing.assert_array_equal(picture_HW, speckle(50))


@pytest.mark.parametrize("home", ["Simulated", "Simulated/run 1"])
def test_simulated(tmp_path, home):
    """Patients start again at 0 in each class; further files of the script are no pictures."""
    plant(
        tmp_path / home,
        *("Liver-Normal/patient0000_view0.png", "Liver-Normal/patient0000_view1.png"),
        *("Breast-Benign/patient0000_view0.png", "overview.png"),
    )
    write(tmp_path / home / "made_by.json", "{}")
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/Liver-Normal/patient0000_view0.png": ("Liver-Normal", "Liver-Normal/patient0000", ""),
        f"{home}/Liver-Normal/patient0000_view1.png": ("Liver-Normal", "Liver-Normal/patient0000", ""),
        f"{home}/Breast-Benign/patient0000_view0.png": ("Breast-Benign", "Breast-Benign/patient0000", ""),
    }
    assert {record.frame for record in found.records} == {"zero border"}
