"""The documentation as a site: every page is in the navigation, once, and every link leads somewhere. Where MkDocs is, it is built."""

import posixpath
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
SITE = runpy.run_path(str(CHECKOUT / "scripts" / "docs_site.py"))
CONFIG = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"))


def entries(nav):
    """All pages of the navigation, in order."""
    for entry in nav:
        for below in entry.values():
            yield from [below] if isinstance(below, str) else entries(below)


@pytest.fixture(scope="module")
def pages():
    """The text of every page of the site, by its place there."""
    return {page: SITE["rewritten"](place) for place, page in SITE["own_pages"]().items()} | SITE["generated"]()


def test_every_page_is_in_the_navigation_once():
    assert sorted(entries(CONFIG["nav"])) == sorted([*SITE["own_pages"]().values(), SITE["SETTINGS"]])


def test_every_link_of_the_site_leads_somewhere(pages):
    seen = 0
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", SITE["FENCE"].sub("", text)):
            if re.match(r"\w+:", target):
                continue
            name, _, anchor = target.partition("#")
            found = posixpath.normpath(posixpath.join(posixpath.dirname(page), name)) if name else page
            assert found in pages or (CHECKOUT / "docs" / found).is_file(), f"{page} links to {target}, which is not on the site"
            headings = re.findall(r"^#+ +(.+)$", SITE["FENCE"].sub("", pages.get(found, "")), re.MULTILINE)
            assert not anchor or anchor in map(SITE["slug"], headings), f"{page} links to {target}; headings: {headings}"
            seen += 1
    assert seen > 100


def test_links_out_of_docs_lead_to_pages_of_the_site():
    site_link = SITE["site_link"]
    assert site_link("docs/index.md", "../README.md") == "overview.md"
    assert site_link("README.md", "docs/data.md#benchmarks-by-name") == "data.md#benchmarks-by-name"
    assert site_link("docs/metric-based.md", "../conf/algo/protonet.yaml") == "settings/algo.md#protonet"
    assert site_link("docs/sweeps.md", "../conf/hydra/launcher/slurm.yaml") == "settings/hydra-launcher.md#slurm"
    assert site_link("docs/methods.md", "../src/metarun/algos") == "source/src/metarun/algos.md"
    assert site_link("docs/benchmarks.md", "benchmarks.json") == "benchmarks.json"
    assert site_link("docs/methods.md", "nowhere.md") == "nowhere.md"


def test_every_setting_is_on_the_page_of_its_group(pages):
    for path in (CHECKOUT / "conf" / "algo").glob("*.yaml"):
        assert f"## {path.stem}\n" in pages["settings/algo.md"]
        assert path.read_text(encoding="utf-8").strip() in pages["settings/algo.md"]


def test_links_in_code_stay_as_they_are():
    text = (CHECKOUT / "docs" / "your-own.md").read_text(encoding="utf-8")
    rewritten = SITE["rewritten"]("docs/your-own.md")
    assert SITE["FENCE"].findall(rewritten) == SITE["FENCE"].findall(text) != []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site's folder."""
    if find_spec("material") is None:
        pytest.skip("no mkdocs-material here (pip install -e '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", CHECKOUT / "mkdocs.yml", "-d", folder]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_it_builds_and_asks_nobody_for_anything(built):
    for page in built.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link [^>]*href="([^"]+)"', page.read_text(encoding="utf-8"))
        assert not [found for found in loaded if any(part.startswith(("http", "//")) for part in found)]


@pytest.mark.slow
def test_it_is_searched_without_a_server(built):
    driven = runpy.run_path(str(CHECKOUT / "scripts" / "browser.py"))
    if not (driven["CHROMIUM"] and driven["DRIVER"]):
        pytest.skip("no chromium or chromedriver here (apt-get install chromium chromium-driver)")
    with driven["browser"]() as window:
        window.open((built / "index.html").as_uri())
        window.click("[data-md-component=search-query]")
        window.type("[data-md-component=search-query]", "metacurvature")
        window.until(lambda: "Gradient-based" in window.text(".md-search-result__list"), "nothing is found")
        assert window.complaints() == []
        assert {url.partition(":")[0] for url in window.requests()} <= {"file", "data"}
