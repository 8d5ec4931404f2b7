"""Makes every picture of docs/gallery.md by running the commands that the page prints, in their order; finished runs are not repeated.

python scripts/gallery.py [--runs outputs/gallery]
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"
MADE = {  # picture in docs/pictures: the file that the page's commands leave
    "episode": "episode.png",
    "characters": "characters.png",
    "augmentation": "augmentation.png",
    "curve_task": "curve_task.png",
    "learning_curves": "sweep/compare/learning_curves.png",
    "adaptation_curves": "sweep/compare/adaptation_curves.png",
    "sine": "sine.png",
    "band": "band.png",
    "prediction_sheet": "answers/sheet.png",
}
LARGEST = 150_000  # bytes of a picture
WIDEST = 1400  # pixels


def commands(text: str) -> list[list[str]]:
    """The indented commands of a page, continued lines joined."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in re.findall(r"^ {4}(\S.*)$", re.sub(r" *\\\n *", " ", text), re.MULTILINE)]


def programs(text: str) -> dict[str, str]:
    """The Python files that a page prints: fenced blocks whose first line is a comment with the name."""
    return {name: f"# {name}\n{code}" for name, code in re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)}


def finished(folder: Path, words: list[str]) -> bool:
    """Whether the folder that a training command names has its results already."""
    target = next((word.partition("=")[2] for word in words if word.startswith(("hydra.run.dir=", "hydra.sweep.dir="))), None)
    return target is not None and any((folder / target).glob("**/summary.json"))


def keep(made: Path, name: str) -> int:
    """Copy a picture into docs/pictures, with fewer pixels and colours where it would be too large; returns its size in bytes."""
    data = made.read_bytes()
    with Image.open(made) as picture:
        if picture.width > WIDEST or len(data) > LARGEST:
            small = picture.convert("RGB")
            small.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            small.quantize(64).save(out, "PNG", optimize=True)
            data = out.getvalue()
    (DOCS / "pictures" / f"{name}.png").write_bytes(data)
    return len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/gallery"), help="where the runs are kept")
    folder = parser.parse_args().runs
    folder.mkdir(parents=True, exist_ok=True)
    (DOCS / "pictures").mkdir(exist_ok=True)
    tutorial, gallery = ((DOCS / name).read_text(encoding="utf-8") for name in ("tutorial.md", "gallery.md"))
    for name, code in (programs(tutorial) | programs(gallery)).items():
        (folder / name).write_text(code, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for words in commands(gallery):
        if not finished(folder, words):
            print(shlex.join(words), flush=True)
            subprocess.run(words, cwd=folder, env={**os.environ, "PATH": path}, check=True, stdout=subprocess.DEVNULL)
    for name, made in MADE.items():
        print(f"docs/pictures/{name}.png: {keep(folder / made, name):,} bytes")


if __name__ == "__main__":
    main()
