"""The scan area on drawn screens: speckle in a known shape, with text, bars and rulers around it."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.preparation import _make_screen
from data_preprocessing import crop
from data_preprocessing.crop import Frame, cut, find_frame, letterbox

WIDTH, HEIGHT = 640, 480


def speckle(seed: int = 0, low: int = 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(low, 200, (HEIGHT, WIDTH)).astype(np.uint8)


def fan_mask(
    apex: tuple[float, float] = (320, -40), half_degrees: float = 38, radii: tuple[float, float] = (90, 480)
) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot(x - apex[0], y - apex[1])
    angle = np.degrees(np.arctan2(x - apex[0], y - apex[1]))
    return (radius >= radii[0]) & (radius <= radii[1]) & (abs(angle) <= half_degrees)


def furnish(grey_HW: np.ndarray) -> np.ndarray:
    """Text at the right, a grey bar at the left, ruler dots at the bottom."""
    picture = Image.fromarray(grey_HW)
    draw = ImageDraw.Draw(picture)
    for line in range(5):
        draw.text((592, 10 + 14 * line), "12L6 99", fill=255)
    draw.text((8, 440), "LEFT LOBE", fill=255)
    draw.rectangle((4, 40, 12, 200), fill=180)
    for x in range(40, 600, 40):
        draw.point((x, 476), fill=255)
    return np.asarray(picture)


def frame_mask(frame: Frame) -> np.ndarray:
    kept = np.full((HEIGHT, WIDTH), 255, np.uint8)
    result = np.zeros((HEIGHT, WIDTH), bool)
    left, top, right, bottom = frame.box
    result[top:bottom, left:right] = cut(kept, frame) > 0
    return result


@pytest.mark.parametrize("hint", ["auto", "text", "clean"])
@pytest.mark.parametrize(
    "shape", [{}, {"half_degrees": 25}, {"apex": (250, 10), "radii": (30, 440)}, {"apex": (320, 40)}]
)
def test_a_fan_is_found_and_the_furniture_is_gone(hint, shape):
    true = fan_mask(**shape)
    frame = find_frame(furnish(np.where(true, speckle(), 0).astype(np.uint8)), hint)
    found = frame_mask(frame)
    assert frame.kind == "fan"
    assert (found & true).sum() >= 0.995 * true.sum()  # nothing of the image is lost
    assert (found & ~true).sum() <= 0.04 * true.sum()  # and little is added
    assert not found[:90, 590:].any() and not found[40:200, 2:14].any()


def test_a_fan_with_a_dark_side_keeps_its_straight_edges():
    """Shadow on one side and a black cyst: the supporting lines still find the sector, not a bitten shape."""
    true = fan_mask()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.where(true, speckle(), 0)
    image[(x - 330) ** 2 + (y - 250) ** 2 < 80**2] = 0
    image[(x > 420) & (y > 150) & (y < 320)] = 0
    found = frame_mask(find_frame(furnish(image.astype(np.uint8)), "auto"))
    assert (found & true).sum() >= 0.99 * true.sum()
    assert (found & ~true).sum() <= 0.06 * true.sum()


def test_a_rectangle_is_found_to_a_few_pixels():
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[20:400, 90:560] = speckle()[20:400, 90:560]
    for hint in ("auto", "rectangle"):
        frame = find_frame(furnish(image), hint)
        assert frame.kind == "rectangle" and not frame.polygon
        np.testing.assert_allclose(frame.box, (90, 20, 560, 400), atol=4)


def test_a_picture_without_a_screen_stays_whole():
    """Dark shadow at the bottom of a cropped breast image was once taken for the screen and cut off."""
    fading = speckle() * np.linspace(1, 0.08, HEIGHT)[:, None]
    assert find_frame(fading.astype(np.uint8), "auto").box == (0, 0, WIDTH, HEIGHT)
    dim = speckle() * np.linspace(1, 0.3, HEIGHT)[:, None]
    assert find_frame(dim.astype(np.uint8), "rectangle").box == (0, 0, WIDTH, HEIGHT)
    assert find_frame(speckle(), "auto").box == (0, 0, WIDTH, HEIGHT)


def test_the_full_hint_cuts_flat_margins_only():
    image = np.full((HEIGHT, WIDTH), 3, np.uint8)
    image[:, 50:600] = (speckle() * np.linspace(1, 0.05, HEIGHT)[:, None])[:, 50:600].astype(np.uint8)
    assert find_frame(image, "full").box == (50, 0, 600, HEIGHT)


def test_zero_border_is_exact():
    true = fan_mask()
    image = np.where(true, np.maximum(speckle(), 1), 0).astype(np.uint8)
    rows, columns = true.any(1).nonzero()[0], true.any(0).nonzero()[0]
    frame = find_frame(image, "zero border")
    assert frame.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    left, top, right, bottom = frame.box
    assert (cut(image, frame) == image[top:bottom, left:right]).all()


def test_very_dark_tissue_is_kept_on_a_clean_screen():
    """Grey levels of 1 to 3 fill the lower half of a fetal fan; a threshold of 5 cut the skull's far side."""
    true = fan_mask()
    image = np.where(true, np.random.default_rng(0).integers(1, 4, true.shape), 0)
    image[:200] = np.where(true, speckle(), 0)[:200]
    found = frame_mask(find_frame(furnish(image.astype(np.uint8)), "clean"))
    assert (found & true).sum() >= 0.99 * true.sum()


def test_published_outline_wins_and_a_wrong_one_is_noticed():
    """AUL 229 and 306: the outline is the liver's, not the scan area's."""
    true = fan_mask()
    image = np.where(true, speckle(), 0).astype(np.uint8)
    corners = [(264, 31), (320, 50), (376, 31), (615, 338), (470, 415), (320, 440), (170, 415), (25, 338)]
    frame = find_frame(image, "auto", corners)
    assert frame.kind == "outline"
    # Eight corners by hand cut slices off the arcs; the sector around them does not.
    assert (frame_mask(frame) & true).sum() >= 0.985 * true.sum()
    liver = [(250, 200), (400, 200), (400, 330), (250, 330)]
    frame = find_frame(image, "auto", liver)
    assert frame.kind == "fan" and (frame_mask(frame) & true).sum() >= 0.995 * true.sum()
    assert find_frame(image, "auto", [(1, 1), (5, 5)]).kind == "fan"
    # On a nearly black picture a point covers as much as any outline.
    dark = np.zeros((64, 64), np.uint8)
    assert cut(dark, find_frame(dark, "auto", [(9, 9)] * 4)).size


def test_the_middle_of_a_sector_lies_at_its_pixels():
    """A frame is given in source pixels, not in those of the small working copy."""
    true = fan_mask()
    big = np.where(true, speckle(), 0).astype(np.uint8).repeat(3, 0).repeat(3, 1)
    frame = find_frame(big, "auto")
    small = find_frame(big[1::3, 1::3], "auto")
    np.testing.assert_allclose(frame.box, np.array(small.box) * 3, atol=9)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (50, 20), (300, 300), (1000, 33)])
def test_letterbox_keeps_the_aspect_ratio(shape):
    square = letterbox(np.full(shape, 200, np.uint8), 128)
    assert square.shape == (128, 128) and square.dtype == np.uint8
    rows, columns = (square > 0).any(1).sum(), (square > 0).any(0).sum()
    assert max(rows, columns) == 128
    assert abs(min(rows, columns) - 128 * min(shape) / max(shape)) <= 1
    # Centred: equal black on both sides.
    assert (square == square[::-1, ::-1]).all() or (128 - min(rows, columns)) % 2


def test_letterbox_averages_when_shrinking():
    """One-pixel stripes become their mean grey; without averaging they would alias to black or white."""
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_allclose(letterbox(stripes, 128), 100, atol=1)


def test_cut_blackens_outside_and_leaves_the_source():
    image = np.full((20, 30), 9, np.uint8)
    frame = Frame("hull", (5, 2, 25, 18), ((5, 2), (24, 2), (5, 17)))
    piece = cut(image, frame)
    assert piece.shape == (16, 20) and piece[0, 0] == 9 and piece[-1, -1] == 0
    assert (image == 9).all()


def test_find_frame_never_fails_on_odd_pictures():
    rng = np.random.default_rng(0)
    for shape in ((32, 32), (32, 400), (400, 32), (33, 47)):
        for image in (
            np.zeros(shape, np.uint8),
            np.eye(*shape, dtype=np.uint8) * 255,
            rng.integers(0, 256, shape).astype(np.uint8),
            (rng.random(shape) < 0.01).astype(np.uint8) * 255,
        ):
            for hint in ("full", "zero border", *crop.SEARCHES):
                left, top, right, bottom = find_frame(image, hint).box
                assert 0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]


def screen(image_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A whole scanner's screen around an image: logo, text, colour bar, ruler, ECG line and measurements."""
    picture = Image.fromarray(image_HW)
    draw = ImageDraw.Draw(picture)
    for line in range(6):
        draw.text((WIDTH - 55, 6 + 13 * line), f"C5-{line} {rng.integers(10, 99)}", fill=230)
    draw.text((6, 4), "HOSPITAL 12:30", fill=200)
    for row in range(120):
        draw.line((10, 60 + row, 20, 60 + row), fill=255 - 2 * row)
    for y in range(20, HEIGHT - 20, 18):
        draw.line((WIDTH - 12, y, WIDTH - 7, y), fill=255)
    ecg = [(x, HEIGHT - 12 - (9 if x % 60 < 4 else int(rng.integers(0, 2)))) for x in range(40, 600, 2)]
    draw.line(ecg, fill=220)
    draw.rectangle((6, HEIGHT - 60, 70, HEIGHT - 30), fill=70)
    draw.text((10, HEIGHT - 52), "D 4.27 cm", fill=255)
    return np.asarray(picture)


def agreement(frame: Frame, true_HW: np.ndarray) -> float:
    """Intersection over union."""
    found_HW = frame_mask(frame)
    return (found_HW & true_HW).sum() / (found_HW | true_HW).sum()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("hint", ["auto", "text"])
def test_a_fan_is_cut_out_of_a_whole_screen(seed, hint):
    """Random sectors: narrow and wide, near and far, with cysts and a shadow from the probe down."""
    rng = np.random.default_rng(seed)
    half, near = rng.uniform(22, 48), rng.uniform(30, 110)
    apex = (rng.uniform(290, 350), rng.uniform(20, 40) - near)
    far = min(440 - apex[1], 250 / np.sin(np.radians(half)))
    true = fan_mask(apex, half, (near, far))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.where(true, speckle(seed), 0)
    for _ in range(2):
        middle, radius = (rng.uniform(220, 420), rng.uniform(200, 330)), rng.uniform(20, 50)
        image[np.hypot(x - middle[0], y - middle[1]) < radius] //= 60
    angle = np.degrees(np.arctan2(x - apex[0], y - apex[1]))
    image[(abs(angle - rng.uniform(-10, 10)) < 4) & (y > 200)] //= 40
    frame = find_frame(screen(image.astype(np.uint8), rng), hint)
    assert frame.kind == "fan"
    assert agreement(frame, true) > 0.95


@pytest.mark.parametrize("cut_off", ["left", "right", "top", "bottom", "both sides"])
def test_a_fan_cut_off_by_the_picture_keeps_sides_and_arcs(cut_off):
    """A wide fan whose tips the publisher has cut off: once kept as a rectangle, with text in its corners."""
    true = fan_mask((320, -30), 65, (60, 455))
    image = np.where(true, speckle(), 0).astype(np.uint8)
    window = {
        "left": (90, 0, 640, 480),
        "right": (0, 0, 550, 480),
        "top": (0, 60, 640, 480),
        "bottom": (0, 0, 640, 370),
        "both sides": (90, 0, 550, 480),
    }[cut_off]
    left, top, right, bottom = window
    part, true = image[top:bottom, left:right].copy(), true[top:bottom, left:right]
    frame = find_frame(part, "text")
    found = np.zeros(part.shape, bool)
    left, top, right, bottom = frame.box
    found[top:bottom, left:right] = crop.inside(frame)
    assert frame.kind == "fan"
    assert (found & true).sum() / (found | true).sum() > 0.95


def test_a_transvaginal_fan_keeps_its_hollow_and_loses_the_corners():
    """A very wide fan fills the picture but for the probe at the top and the corners."""
    true = fan_mask((320, 0), 78, (70, 460))
    frame = find_frame(furnish(np.where(true, speckle(), 0).astype(np.uint8)), "text")
    found = frame_mask(frame)
    assert frame.kind == "fan" and agreement(frame, true) > 0.95
    assert not found[:40, 300:340].any() and not found[430:450, 8:60].any()


def test_the_sector_is_exact_on_an_image_without_shadows():
    """On whole cells of the coarse grid the agreement would end at 0.98."""
    true = fan_mask((310, -60), 34, (90, 490))
    image = np.where(true, speckle(), 0).astype(np.uint8)
    assert agreement(find_frame(screen(image, np.random.default_rng(0)), "auto"), true) > 0.985


def test_the_arcs_alone_tell_the_sector():
    """Both straight sides are cut off; the hollow at the probe and the far arc are left."""
    true = fan_mask((320, 0), 80, (70, 460))[:, 180:460]
    part = np.where(true, speckle()[:, 180:460], 0).astype(np.uint8)
    frame = find_frame(part, "text")
    left, top, right, bottom = frame.box
    found = np.zeros(part.shape, bool)
    found[top:bottom, left:right] = crop.inside(frame)
    assert frame.kind == "fan" and (found & true).sum() / (found | true).sum() > 0.97


def test_a_side_in_the_dark_is_where_the_other_one_is():
    """The right part of the fan has no contact with the skin."""
    true = fan_mask()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    dark = np.degrees(np.arctan2(x - 320, y + 40)) > 20 + 6 * np.sin(y / 17)
    frame = find_frame(furnish(np.where(true & ~dark, speckle(), 0).astype(np.uint8)), "auto")
    assert frame.kind == "fan" and agreement(frame, true) > 0.92


def test_bright_arcs_at_the_probe_are_kept():
    """Thin rings with black between them lie above the tissue; as thin as they are they look like bars."""
    true = fan_mask(radii=(90, 480))
    radius = np.hypot(*np.mgrid[40 : HEIGHT + 40, -320 : WIDTH - 320])
    image = np.where(true, speckle(), 0)
    image[(radius < 120) & ((radius - 90) % 14 >= 4)] = 0
    frame = find_frame(image.astype(np.uint8), "auto")
    assert frame.kind == "fan" and frame_mask(frame)[(radius < 94) & true].mean() > 0.9


def test_a_rectangle_with_a_round_dark_foot_is_no_fan():
    """A linear image that fades at its lower corners looks like a sector but for its straight upper edge."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.where(np.hypot(x - 320, y + 150) < 540, speckle(), 0)
    image[:, :4] = image[:, -4:] = 0
    frame = find_frame(image.astype(np.uint8), "auto")
    assert not frame.polygon


def test_a_rectangle_is_cut_out_of_a_whole_screen():
    rng = np.random.default_rng(0)
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[30:400, 120:520] = speckle()[30:400, 120:520]
    # Dark corners at the bottom do not make it a fan.
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image[(y - 300) > abs(x - 320) * -1.2 + 220] = 0
    frame = find_frame(screen(image, rng), "auto")
    assert frame.kind == "rectangle" and not frame.polygon
    assert frame.box[0] == pytest.approx(120, abs=4) and frame.box[2] == pytest.approx(520, abs=4)
    assert frame.box[1] == pytest.approx(30, abs=4) and frame.box[3] > 390


@pytest.mark.parametrize("page", [255, 64])
def test_a_software_window_and_a_page_are_taken_off(page):
    """A screenshot: white page, grey window with buttons, the black screen in it; its dark foot is kept."""
    picture = np.full((HEIGHT, WIDTH), page, np.uint8)
    picture[40:440, 60:600] = 54
    window = Image.fromarray(picture)
    draw = ImageDraw.Draw(window)
    for y in range(60, 200, 16):
        draw.text((66, y), "Gain 12", fill=150)
    draw.rectangle((560, 60, 575, 120), fill=240)
    picture = np.asarray(window).copy()
    picture[60:420, 150:520] = 0
    picture[60:300, 150:520] = speckle()[60:300, 150:520]
    frame = find_frame(picture, "auto")
    assert frame.kind == "rectangle"
    np.testing.assert_allclose(frame.box, (150, 60, 520, 420), atol=6)


def test_a_frame_is_small_and_plain():
    """It is written into the manifest: whole and one-decimal numbers, few corners."""
    frame = find_frame(np.where(fan_mask(), speckle(), 0).astype(np.uint8), "auto")
    assert len(json.dumps([frame.kind, frame.box, frame.polygon])) < 1000
    again = Frame(*json.loads(json.dumps([frame.kind, frame.box, frame.polygon])))
    assert tuple(again.box) == frame.box and tuple(map(tuple, again.polygon)) == frame.polygon
    assert all(type(edge) is int for edge in frame.box)


def test_inside_is_what_cut_keeps():
    """`inside` is the mask that `cut` uses."""
    true = fan_mask()
    frame = find_frame(np.where(true, speckle(), 0).astype(np.uint8), "auto")
    left, top, right, bottom = frame.box
    mask = crop.inside(frame)
    assert mask.shape == (bottom - top, right - left)
    assert ((cut(np.full(true.shape, 7, np.uint8), frame) == 7) == mask).all()
    assert crop.inside(Frame("rectangle", (1, 2, 5, 9))).all()


def test_a_scan_area_smaller_than_a_cell_has_a_frame():
    """A speckled triangle of a few pixels on black once ended the run."""
    height, width = 35, 8
    y, x = np.mgrid[:height, :width]
    noise_HW = np.random.default_rng(0).integers(60, 256, (height, width))
    wedge_HW = np.where(abs(x - width / 2) > (y + 1) * width / height / 2, 0, noise_HW)
    for left in range(70, 90):
        grey_HW = np.zeros((128, 128), np.uint8)
        grey_HW[32 : 32 + height, left : left + width] = wedge_HW
        assert cut(grey_HW, find_frame(grey_HW, "auto")).size


def test_small_pictures_of_any_kind_have_a_frame(tmp_path):
    """Number 62 at 40 pixels once ended the run: the fitted sides of its sector were parallel."""
    for number in range(56, 66):
        _make_screen(tmp_path, number, 40, 40)
        path = tmp_path / "all" / "Screens" / ("Rectangle", "Fan")[number % 2] / f"{number}.jpg"
        grey_HW = np.asarray(Image.open(path).convert("L"))
        for hint in ("auto", "clean", "text", "rectangle"):
            assert cut(grey_HW, find_frame(grey_HW, hint)).size
