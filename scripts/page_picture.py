"""Makes docs/pictures/page.png: serves a run, and in a headless browser draws characters on the page, adapts, asks, and takes the picture.

python scripts/page_picture.py RUN [docs/pictures/page.png]
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
from browser import Browser, browser
from gallery import keep

from metarun.predict.page.app import Page
from metarun.predict.page.learner import TrainedRun
from metarun.predict.page.server import listening

SIZE = (1280, 1180)
# Strokes of three katakana, points as fractions of the canvas.
CHARACTERS = {
    "ka": [[(0.2, 0.35), (0.5, 0.34), (0.78, 0.34), (0.76, 0.6), (0.7, 0.8), (0.6, 0.76)],
           [(0.47, 0.14), (0.45, 0.5), (0.34, 0.7), (0.2, 0.84)]],
    "to": [[(0.42, 0.12), (0.42, 0.5), (0.42, 0.88)], [(0.43, 0.42), (0.58, 0.5), (0.74, 0.6)]],
    "me": [[(0.7, 0.14), (0.56, 0.46), (0.4, 0.68), (0.2, 0.86)], [(0.3, 0.38), (0.5, 0.54), (0.74, 0.76)]],
}  # fmt: skip
SHOTS = 3


def by_hand(strokes: list[list[tuple[float, float]]], rng: np.random.Generator) -> list[list[tuple[float, float]]]:
    """The same character as somebody draws it another time: moved, scaled, and every point a little elsewhere."""
    scale, shift = rng.uniform(0.85, 1.05, 2), rng.uniform(-0.05, 0.05, 2)
    moved = [0.5 + (np.array(stroke) - 0.5) * scale + shift + rng.normal(0, 0.015, (len(stroke), 2)) for stroke in strokes]
    return [[(x, y) for x, y in stroke.clip(0.03, 0.97).tolist()] for stroke in moved]


def teach_and_ask(window: Browser, rng: np.random.Generator) -> None:
    """Three classes, then a question about each."""

    def count(css: str) -> int:
        return int(window.run("return document.querySelectorAll(arguments[0]).length", css))

    for i, (name, strokes) in enumerate(CHARACTERS.items()):
        if i == 2:
            window.click("#new-class")
        window.click(f"#tab-{i}")
        window.type("#class-name", name)
        for shot in range(SHOTS):
            window.draw("#support-source canvas", by_hand(strokes, rng))
            window.click("#support-source .add")
            window.until(lambda shot=shot: count("#support img") == shot + 1, "the drawing is not added")
    window.click("#adapt")
    window.until(lambda: window.text("#adapted").startswith("Adapted"), "it does not adapt")
    for i, strokes in enumerate(CHARACTERS.values()):
        window.draw("#query-source canvas", by_hand(strokes, rng))
        window.click("#query-source .add")
        window.until(lambda i=i: count(".answer h3") == i + 1, "no answer")
    window.draw("#support-source canvas", by_hand(CHARACTERS["me"], rng))  # so that the canvas is seen in use
    window.run("document.activeElement.blur(); scrollTo(0, 0)")


def main() -> None:
    run, target = sys.argv[1], Path((sys.argv[2:] or ["docs/pictures/page.png"])[0])
    with listening(Page(TrainedRun(run), ("127.0.0.1",)), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with browser(SIZE) as window:
                window.open(f"http://127.0.0.1:{server.port}/")
                teach_and_ask(window, np.random.default_rng(0))
                window.shoot(target)
        finally:
            server.shutdown()
            thread.join()
    print(f"docs/pictures/{target.stem}.png: {keep(target, target.stem):,} bytes")


if __name__ == "__main__":
    main()
