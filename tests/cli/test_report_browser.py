"""The report in a real browser: it draws, sorts, fits its window and complains of nothing, in both themes."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.cli import compare

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")
make_run = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "bench_compare.py"))["make_run"]

# Measures the page, then clicks the title of the column "test" once and twice.
PROBE = """
<script>
const column = [...document.querySelectorAll("table:first-of-type thead th")].findIndex(th => th.innerText.startsWith("test"));
const shown = () => [...document.querySelector("table").tBodies[0].rows].map(row => row.cells[column].dataset.value).join(" ");
const result = {wide: document.documentElement.scrollWidth, window: innerWidth,
  drawn: [...document.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().height > 100).length};
const button = document.querySelector("table").rows[0].cells[column].querySelector("button");
button.click(); result.up = shown(); button.click(); result.down = shown();
result.sort = button.closest("th").getAttribute("aria-sort");
const note = document.createElement("pre");
note.id = "probe";
note.textContent = JSON.stringify(result);
document.body.append(note);
</script>
"""


def browse(page, *options):
    profile = page.parent / "profile"
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking",
             f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", *options, page.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr, done.stderr  # script errors and refused resources
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for i, (algo, lr) in enumerate([("maml", 0.001), ("maml", 0.003), ("maml", 0.01), ("protonet", 0.001)]):
        for shot in (1, 5):
            for seed in (0, 1):
                make_run(folder / f"runs/{algo}{lr}-{shot}-{seed}", algo, shot=shot, seed=seed, lr=lr, score=0.5 + 0.05 * i + 0.04 * shot)
    compare.run(compare.parser().read([str(folder / "runs"), "--out", str(folder)]))
    return folder / "report.html"


@pytest.mark.parametrize("width", [1400, 520])
def test_it_draws_sorts_and_fits(report, width):
    page = report.with_name("probe.html")
    # The report's own policy forbids what it does not contain; the probe is inline as well, so that it may run.
    page.write_text(report.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    seen = browse(page, f"--window-size={width},1000", "--dump-dom")
    result = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', seen)[1])
    assert result["drawn"] == 4
    assert result["wide"] <= result["window"]  # wide tables scroll inside their frame
    up, down = ([float(value) for value in result[key].split()] for key in ("up", "down"))
    assert len(up) == 8
    assert up == sorted(up)
    assert down == up[::-1]
    assert result["sort"] == "descending"


def shoot(page):
    path = page.with_suffix(".png")
    browse(page, "--window-size=1400,3200", f"--screenshot={path}")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_it_has_a_light_and_a_dark_side(report):
    text = report.read_text(encoding="utf-8")
    night, day = report.with_name("night.html"), report.with_name("day.html")
    query = "@media (prefers-color-scheme: dark)"
    assert query in text
    night.write_text(text.replace(query, "@media all"), encoding="utf-8")
    day.write_text(text.replace(query, "@media not all"), encoding="utf-8")
    light, dark = shoot(day), shoot(night)
    assert light[5, 5].min() > 240  # the page's corner
    assert dark[5, 5].max() < 60
    for pixels, paper in ((light, 255), (dark, 24)):
        far = np.abs(pixels - paper).max(-1) > 100
        assert 0.01 < far.mean() < 0.4  # something to read, and room around it
        colourful = (pixels.max(-1) - pixels.min(-1) > 80).mean()
        assert colourful > 0.002  # curves are drawn
