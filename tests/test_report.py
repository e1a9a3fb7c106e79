"""The page in a real browser: it fits a phone and a laptop, in light and dark, and everything on it shows.

Chromium is asked for what it laid out: the page is put into frames of two widths, and a script beside them
(the page itself has none) writes what it finds into the document, which --dump-dom then prints.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from usvar import images, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, LAPTOP = 390, 1280
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--allow-file-access-from-files",
    # No name resolves: a page that asked for anything would miss it.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=5000",
)
FRAMES = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe id="w390" src="PAGE" style="width:390px;height:900px;border:0"></iframe>
<iframe id="w1280" src="PAGE" style="width:1280px;height:900px;border:0"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(block => block.open = true);
    const style = frame.contentWindow.getComputedStyle(page.body);
    const boxes = [...page.querySelectorAll("p, li, h1, h2, figcaption, summary")].map(
      box => box.getBoundingClientRect().right);
    found[frame.id] = {
      wide: root.scrollWidth, room: root.clientWidth, text_to: Math.max(...boxes),
      pictures: page.images.length,
      broken: [...page.images].filter(i => !(i.complete && i.naturalWidth > 0)).length,
      smallest: Math.min(...[...page.images].map(i => i.getBoundingClientRect().width)),
      without_words: [...page.images].filter(i => i.alt.length < 20).length,
      asked_for: frame.contentWindow.performance.getEntriesByType("resource")
        .map(e => e.name).filter(n => !n.startsWith("data:")),
      background: style.backgroundColor, colour: style.color,
      font: parseFloat(style.fontSize), tables: page.querySelectorAll("table").length,
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours (WCAG 2.1), 1 to 21."""

    def luminance(colour: str) -> float:
        rgb = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def looked_at(page: Path, folder: Path, dark: bool) -> dict:
    """What the browser laid out, by the width of the frame."""
    frames = folder / "frames.html"
    frames.write_text(FRAMES.replace("PAGE", page.as_uri()), encoding="utf-8")
    # Blink's preferredColorScheme: 0 is dark, 1 is light.
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", "--dump-dom", frames.as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout)[1].replace("&quot;", '"'))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page of the blocks that the report is made of, with a wide table, a wide picture and long words."""
    folder = tmp_path_factory.mktemp("page")
    images.save_png(folder / "wide.png", np.tile(np.arange(0, 250, 10, dtype=np.uint8), (300, 48)))
    figure = report.figure(folder / "wide.png", "Grey stripes from dark to light, repeated.", "Stripes.")
    table = report.table(
        ["set", *(f"measure number {i}" for i in range(20))], [["row"] + ["0.123"] * 20] * 3, "a wide table"
    )
    text = report.page(
        "A page",
        [
            ("", [report.paragraph("Words. " * 80), report.cautions(report.CAUTIONS)]),
            (
                "Hash",
                [report.paragraph("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" * 2)],
            ),
            (
                "Wide",
                [figure, table, report.folded("More", [figure]), report.preformatted("x" * 400, "text")],
            ),
        ],
    )
    (folder / "report.html").write_text(text, encoding="utf-8")
    return folder / "report.html"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_a_phone_and_a_laptop_in_light_and_dark(page, tmp_path, dark):
    for name, found in looked_at(page, tmp_path, dark).items():
        # Nothing but tables and figures, which scroll by themselves, is wider than the screen.
        assert found["wide"] <= found["room"] and found["text_to"] <= found["room"], (name, found)
        assert found["pictures"] == 2 and found["broken"] == 0 and found["without_words"] == 0
        assert found["smallest"] > 300
        assert found["asked_for"] == []
        assert found["font"] >= 16
        assert contrast(found["background"], found["colour"]) >= 7
        is_dark = contrast(found["background"], "rgb(255, 255, 255)") > contrast(
            found["background"], "rgb(0, 0, 0)"
        )
        assert is_dark == dark


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")
def test_the_browser_sees_what_the_test_is_there_to_catch(page, tmp_path):
    """A page with a picture from elsewhere that is too wide: the checks above would fail on it."""
    bad = page.with_name("bad.html")
    text = page.read_text(encoding="utf-8").replace(
        "</main>", '<p style="width:2000px">wide</p><img src="https://example.org/a.png" alt=""></main>'
    )
    bad.write_text(text, encoding="utf-8")
    found = looked_at(bad, tmp_path, False)["w390"]
    assert found["wide"] > found["room"] and found["broken"] == 1 and found["without_words"] == 1
    assert found["asked_for"] == ["https://example.org/a.png"]


def test_the_contrast_of_black_on_white():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)
