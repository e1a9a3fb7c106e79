"""Flags on drawn marks: speckle with and without colour flow, a second view, crosses and text."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from data_preprocessing import simulate_ultrasound as us
from data_preprocessing.crop import Frame, find_frame
from data_preprocessing.flags import FLAGS, find_flags

WIDTH, HEIGHT = 560, 420
WHOLE = Frame("full", (0, 0, WIDTH, HEIGHT))
WHITE, YELLOW = (255, 255, 255), (255, 255, 0)


def speckle(seed: int = 0, width: int = WIDTH, level: float = 60) -> np.ndarray:
    """Rayleigh speckle, a few pixels large as in real images, log-compressed."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, HEIGHT, width)), (0, 1.5, 2.5))
    decibel = 20 * np.log10(np.hypot(*noise) / noise.std() + 1e-3)
    return np.clip(level + 2.5 * decibel, 0, 255).astype(np.uint8)


def coloured(grey_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(grey_HW).convert("RGB")


def flags(picture: Image.Image, frame: Frame = WHOLE) -> tuple[str, ...]:
    return find_flags(np.asarray(picture), frame)


def cross(draw: ImageDraw.ImageDraw, x: int, y: int, colour, arm: int = 6, gap: int = 0) -> None:
    for sign in (-1, 1):
        draw.line((x + sign * gap, y, x + sign * arm, y), fill=colour)
        draw.line((x, y + sign * gap, x, y + sign * arm), fill=colour)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("level", [25, 60, 110])
def test_clean_speckle_has_no_flag(seed, level):
    grey_HW = speckle(seed, level=level)
    assert find_flags(grey_HW, WHOLE) == ()
    assert flags(coloured(grey_HW)) == ()


@pytest.mark.parametrize("class_name", ["Breast-Benign", "Fetal-Head", "Heart", "Kidney", "Thyroid-Nodule"])
def test_simulated_images_have_no_flag(class_name):
    """Tissue with bright interfaces, cysts and shadows, in rectangles and fans."""
    picture, *_ = us.simulate_image(class_name, 0, 0, 0, 256)
    grey_HW = np.asarray(Image.fromarray(picture).resize((512, 512), Image.Resampling.BICUBIC))
    assert find_flags(grey_HW, find_frame(grey_HW, "auto")) == ()


@pytest.mark.parametrize("tint", [(1.0, 0.82, 0.55), (0.7, 0.8, 1.0)])
def test_a_tinted_grey_map_is_no_doppler(tint):
    """Sepia and blue maps: the colour depends on the brightness alone."""
    bright_HW = np.linspace(0, 1, WIDTH) * 190 + speckle() / 4
    tinted = (bright_HW[..., None] * tint).clip(0, 255).astype(np.uint8)
    assert np.ptp(tinted, axis=2).max() > 60
    assert find_flags(tinted, WHOLE) == ()


@pytest.mark.parametrize("colour", [(220, 30, 20), (230, 110, 20), (20, 50, 210), (30, 130, 250)])
@pytest.mark.parametrize("quality", [None, 80])
def test_colour_flow_is_doppler(colour, quality, tmp_path):
    picture = coloured(speckle())
    ImageDraw.Draw(picture).ellipse((200, 150, 270, 185), fill=colour)
    if quality:
        picture.save(tmp_path / "flow.jpg", quality=quality)
        picture = Image.open(tmp_path / "flow.jpg")
    assert flags(picture) == ("doppler",)
    # Grey has no colours to tell by.
    assert "doppler" not in flags(picture.convert("L"))


def test_colour_outside_the_frame_or_thin_is_no_doppler():
    picture = coloured(speckle())
    draw = ImageDraw.Draw(picture)
    draw.rectangle((520, 20, 550, 200), fill=(220, 30, 20))  # the bar of the colour scale
    assert "doppler" not in flags(picture, Frame("rectangle", (0, 0, 500, HEIGHT)))
    fan = Frame("fan", (0, 0, WIDTH, HEIGHT), ((200, 0), (300, 0), (500, 419), (0, 419)))
    assert "doppler" not in flags(picture, fan)
    assert "doppler" in flags(picture)
    lines = coloured(speckle())
    draw = ImageDraw.Draw(lines)
    draw.line((40, 300, 400, 100), fill=(255, 0, 0), width=2)
    draw.rectangle((100, 100, 300, 250), outline=(0, 220, 0), width=2)
    draw.rectangle((400, 20, 470, 31), fill=(70, 70, 160))  # a highlighted line of settings
    assert "doppler" not in flags(lines)


@pytest.mark.parametrize("colour", [WHITE, YELLOW, (0, 255, 255)])
@pytest.mark.parametrize(("arm", "gap"), [(6, 0), (7, 2), (9, 3)])
def test_crosses_are_calipers(colour, arm, gap):
    picture = coloured(speckle())
    draw = ImageDraw.Draw(picture)
    for x, y in ((150, 200), (320, 240)):
        cross(draw, x, y, colour, arm, gap)
    for step in range(10, 160, 6):
        draw.point((150 + step, 200 + step * 40 // 170), fill=colour)
    assert flags(picture) == ("calipers",)


def test_a_ruler_and_a_bright_interface_are_no_calipers():
    picture = coloured(speckle())
    draw = ImageDraw.Draw(picture)
    for y in range(20, 400, 20):
        draw.line((20, y, 25, y), fill=WHITE)
    draw.line((60, 300, 500, 290), fill=(210, 210, 210), width=3)
    draw.line((300, 200, 300, 400), fill=(210, 210, 210), width=3)
    assert flags(picture) == ()


@pytest.mark.parametrize("words", ["LEFT BREAST", "R-OV-M", "1 D 4.27cm", "12L6"])
@pytest.mark.parametrize("size", [14, 22])
def test_a_row_of_letters_is_text(words, size):
    picture = coloured(speckle())
    ImageDraw.Draw(picture).text((120, 180), words, fill=WHITE, font=ImageFont.load_default(size))
    assert flags(picture) == ("text",)
    assert "text" not in flags(picture, Frame("rectangle", (0, 210, WIDTH, HEIGHT)))


def test_ticks_of_different_lengths_are_no_text():
    picture = coloured(speckle(level=30))
    draw = ImageDraw.Draw(picture)
    for tick in range(12):
        draw.line((100 + 9 * tick, 150, 100 + 9 * tick, 156 + 5 * (tick % 3)), fill=WHITE, width=2)
    assert flags(picture) == ()


def test_two_coloured_letters_are_text_and_a_digit_is_not():
    """A cyst labelled CY; the number beside a caliper is part of the caliper."""
    picture = coloured(speckle())
    ImageDraw.Draw(picture).text((120, 180), "CY", fill=YELLOW, font=ImageFont.load_default(18))
    assert flags(picture) == ("text",)
    picture = coloured(speckle())
    draw = ImageDraw.Draw(picture)
    cross(draw, 150, 200, YELLOW)
    draw.text((162, 204), "2", fill=YELLOW, font=ImageFont.load_default(14))
    assert flags(picture) == ("calipers",)


def test_two_views_are_dual():
    """Touching views, whose seam is a sharp step from top to foot, and views with a gap."""
    depth = np.linspace(1.3, 0.5, HEIGHT)[:, None]
    left, right = (speckle(seed, WIDTH // 2) * depth for seed in (1, 2))
    seam = np.concatenate([left, right], 1).astype(np.uint8)
    assert find_flags(seam, WHOLE) == ("dual",)
    gap = seam.copy()
    gap[:, WIDTH // 2 - 8 : WIDTH // 2 + 8] = 3
    assert find_flags(gap, WHOLE) == ("dual",)
    assert find_flags((speckle(1) * depth).astype(np.uint8), WHOLE) == ()


def test_shadows_cysts_and_drawn_lines_are_not_dual():
    """A shadow below the skin, a whole dark half (no second view) and the line of a Doppler beam."""
    shadow = speckle().copy()
    shadow[60:, 250:300] //= 12
    assert find_flags(shadow, WHOLE) == ()
    half = speckle().copy()
    half[:, 300:] = 0
    assert find_flags(half, WHOLE) == ()
    line = coloured(speckle())
    ImageDraw.Draw(line).line((280, 0, 280, HEIGHT), fill=WHITE)
    assert "dual" not in flags(line)


def test_all_flags_are_sorted_and_known():
    picture = coloured(np.concatenate([speckle(1, WIDTH // 2), speckle(2, WIDTH // 2)], 1))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((50, 250, 120, 300), fill=(220, 30, 20))
    cross(draw, 200, 100, YELLOW)
    draw.text((330, 300), "LIVER", fill=WHITE, font=ImageFont.load_default(18))
    assert flags(picture) == FLAGS == tuple(sorted(FLAGS))


def test_odd_pictures_never_fail():
    rng = np.random.default_rng(0)
    for shape in ((16, 16), (32, 400), (400, 32), (33, 47, 3), (1200, 90, 3)):
        for picture in (np.zeros(shape, np.uint8), rng.integers(0, 256, shape).astype(np.uint8)):
            result = find_flags(picture, Frame("full", (0, 0, shape[1], shape[0])))
            assert set(result) <= set(FLAGS)
