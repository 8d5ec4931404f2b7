"""The page in a real browser: draw, adapt, ask; files, tabs and what is refused. Nothing is fetched from anywhere else."""

from __future__ import annotations

import runpy
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import small
from PIL import Image

from metarun import experiment
from metarun.predict.page.app import Page
from metarun.predict.page.learner import Answer, TrainedRun
from metarun.predict.page.server import listening

driven = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "browser.py"))
pytestmark = pytest.mark.skipif(
    not (driven["CHROMIUM"] and driven["DRIVER"]), reason="no chromium or chromedriver here (apt-get install chromium chromium-driver)"
)

BAR = [[(0.5, 0.15), (0.5, 0.85)]]
LEVEL = [[(0.15, 0.5), (0.85, 0.5)]]
GLYPHS = ["data=glyphs", "data.train_classes=8", "data.val_classes=8", "data.test_classes=8", "data.size=28", "trainer.iterations=1"]


@contextmanager
def served(learner):
    """The address of a learner's page."""
    with listening(Page(learner, ("127.0.0.1",)), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of the page of a small prototypical network."""
    run = tmp_path_factory.mktemp("served") / "run"
    experiment.train(small("algo=protonet", *GLYPHS, "net.norm=layer"), run)
    with served(TrainedRun(str(run))) as page:
        yield page


@pytest.fixture(scope="module")
def browser():
    with driven["browser"]() as window:
        yield window


@pytest.fixture
def page(browser, address):
    """The page, opened anew. Whatever the test did, it asked nobody else, and the console has no complaint but refusals that it wanted."""
    browser.open("about:blank")
    browser.complaints(), browser.requests()
    browser.open(address)
    browser.find("#tab-1")
    yield browser
    assert all(url.startswith((address, "data:", f"blob:{address}")) for url in browser.requests())
    assert [line for line in browser.complaints() if "status of 4" not in line] == []


def teach(page, strokes, name):
    page.type("#class-name", name)
    page.draw("#support-source canvas", strokes)
    before = page.run("return document.querySelectorAll('#support img').length")
    page.click("#support-source .add")
    page.until(lambda: page.run("return document.querySelectorAll('#support img').length") == before + 1, "the drawing is not added")


def ask(page, strokes):
    page.draw("#query-source canvas", strokes)
    page.click("#query-source .add")


def answers(page):
    return page.run("return [...document.querySelectorAll('.answer h3')].map(e => e.firstChild.textContent)")


def adapted(page):
    page.click("#adapt")
    page.until(lambda: page.text("#adapted").startswith("Adapted to"), page.text("#adapted"))


def test_draw_adapt_ask(page):
    assert page.text("#about").startswith("protonet trained on glyphs.")
    assert page.text("#adapted") == "class 1 has no picture yet."
    teach(page, BAR, "bar")
    assert page.run("return document.querySelector('#adapt').disabled") is True
    page.click("#tab-1")
    teach(page, LEVEL, "level")
    assert page.run("return [...document.querySelectorAll('[role=tab]')].map(e => e.innerText)") == ["bar 1", "level 1"]
    ask(page, [[(0.56, 0.2), (0.54, 0.8)]])
    page.find(".answer")
    assert answers(page) == []  # it waits
    adapted(page)
    page.until(lambda: answers(page) == ["bar"], "no answer")
    ask(page, [[(0.2, 0.44), (0.8, 0.46)]])
    page.until(lambda: answers(page) == ["level", "bar"], f"answers {answers(page)}")
    # Probabilities of both classes, which sum to one, and the support beside them.
    percents = page.run("return [...document.querySelectorAll('.answer:first-child .number')].map(e => parseFloat(e.textContent))")
    assert percents[0] > percents[1]
    assert sum(percents) == pytest.approx(100, abs=0.2)
    assert page.run("return document.querySelectorAll('.answer:first-child .shots img').length") == 2
    # A class more: the answers are of yesterday until it adapts again.
    page.click("#new-class")
    assert page.text("#adapted") == "class 3 has no picture yet."
    assert page.run("return document.querySelectorAll('.answer.old').length") == 2
    teach(page, [*BAR, *LEVEL], "cross")
    adapted(page)
    ask(page, [*BAR, *LEVEL])
    page.until(lambda: answers(page)[:-2] == ["cross"], "no answer")
    assert page.run("return document.querySelectorAll('.answer.old').length") == 0


def test_files_are_chosen_named_and_refused(page, tmp_path):
    for name in ("one.png", "two.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.type("#support-source input[type=file]", "\n".join(str(tmp_path / name) for name in ("one.png", "broken.png", "two.png")))
    page.until(lambda: page.run("return document.querySelectorAll('#support img').length") == 2, "two pictures are missing")
    page.until(lambda: page.text("#trouble") == "broken.png: not a picture, or damaged", page.text("#trouble"))
    assert page.run("return [...document.querySelectorAll('#support img')].map(e => e.alt)") == ["one.png", "two.png"]
    page.click("#trouble")
    page.click("#support .tile:first-child button")
    page.until(lambda: page.text("#tab-0") == "class 1 1", page.text("#tab-0"))


def test_pictures_are_dropped(page):
    page.run("""
        const pen = new OffscreenCanvas(30, 30); pen.getContext("2d").fillRect(5, 5, 9, 20);
        return pen.convertToBlob().then(blob => {
          const files = new DataTransfer();
          files.items.add(new File([blob], "dropped.png"));
          document.querySelector("#support-source .drop").dispatchEvent(new DragEvent("drop", {dataTransfer: files, cancelable: true}));
        });
    """)
    page.until(lambda: page.run("return document.querySelector('#support img')?.alt") == "dropped.png", "nothing was dropped")


def test_undo_clear_and_the_keyboard(page):
    assert page.run("return [...document.querySelectorAll('#support-source .pad button')].every(e => e.disabled)")
    ink = """
        const pen = document.querySelector("#support-source canvas").getContext("2d");
        return pen.getImageData(0, 0, 420, 420).data.filter(value => value === 0).length / 3;  // pixels that are black
    """
    page.draw("#support-source canvas", BAR)
    one = page.run(ink)
    page.draw("#support-source canvas", LEVEL)
    assert page.run(ink) > one > 1000
    page.click("#support-source .undo")
    assert page.run(ink) == one
    page.click("#support-source .clear")
    assert page.run(ink) == 0
    page.draw("#support-source canvas", [[(0.5, 0.5)]])
    assert page.run(ink) > 200  # a click is a dot
    page.run("document.querySelector('#tab-0').focus()")
    page.press("#tab-0", "\ue014")  # the right arrow
    assert page.run("return [document.activeElement.id, document.querySelector('#class-name').value]") == ["tab-1", "class 2"]


def test_a_page_whose_program_has_ended_says_so(page):
    page.run("window.fetch = () => Promise.reject(new TypeError('refused'))")
    ask(page, BAR)
    page.until(lambda: "start metarun serve again" in page.text("#trouble"), "it is silent")


class Unsure:
    """A learner of exactly three classes that knows none of the pictures; it says how many steps it took by what it is sure of."""

    about, ways, steps, together, channels = "unsure", 3, 7, True, 1

    def see(self, path):
        return np.zeros((1, 8, 8), np.uint8)

    def learn(self, pictures, labels, steps):
        steps = self.steps if steps is None else steps
        return lambda queries: [Answer(None, steps / 100, dict.fromkeys(labels, steps / 100)) for _ in queries]


def test_a_learner_of_so_many_classes_that_says_unknown(browser):
    with served(Unsure()) as address:
        browser.open(address)
        browser.find("#tab-2")
        assert browser.run("return document.querySelector('#new-class').disabled") is True
        assert "depends on the others" in browser.text("#together")
        assert browser.run("return document.querySelector('#steps').value") == "7"
        for i in range(3):
            browser.click(f"#tab-{i}")
            teach(browser, BAR, f"class {i}")
        for steps, number in (("9", "9.0 %"), ("", "7.0 %")):
            browser.type("#steps", steps)
            adapted(browser)
            if steps == "9":
                ask(browser, LEVEL)
            shown = "return document.querySelector('.answer .number')?.textContent"
            browser.until(lambda number=number, shown=shown: browser.run(shown) == number, browser.run(shown) or "no answer")
        assert browser.text(".answer h3") == "unknown (none of the classes)"


def test_it_fits_its_window(page):
    teach(page, BAR, "a name that is rather long for so small a place, or two")
    page.click("#tab-1")
    teach(page, LEVEL, "level")
    ask(page, BAR)
    adapted(page)
    page.find(".answer h3")
    try:
        for width in (1280, 500):
            page.resize(width, 900)
            wide, window = page.run("return [document.documentElement.scrollWidth, innerWidth]")
            assert wide <= window == width
    finally:
        page.resize(1280, 1000)
