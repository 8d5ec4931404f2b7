"""A film of trajectories: as many frames as there are to see, the last one of them whole, and who has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import control, small
from PIL import Image

from metarun.drawing import figures, trajectories
from metarun.errors import UserError
from metarun.run import Run
from metarun.task import select


def test_trajectories_grow_until_they_are_whole(tmp_path: Path) -> None:
    run = Run(control("maml_rl"))
    figures.film(run, "val", 1, tmp_path / "way.gif")
    with Image.open(tmp_path / "way.gif") as picture:
        assert (picture.format, picture.n_frames, picture.info["loop"]) == ("GIF", 5, 0)
        first = np.asarray(picture.convert("RGB"))
        picture.seek(4)
        assert picture.info["duration"] == figures.LAST_FRAME
        assert (np.asarray(picture.convert("RGB")) != first).any()


def test_frames_are_the_picture_s_trajectories_up_to_an_action() -> None:
    run = Run(control("maml_rl"))
    task = select(run.episodes("val").batch([0]), 0)
    whole = [line.get_xydata() for line in trajectories.figure(run, task, "").axes[0].lines if len(line.get_xdata()) > 1]
    lengths = []
    for drawn in trajectories.film(run, task, ""):
        shown = [line.get_xydata() for line in drawn.axes[0].lines[: len(whole)]]
        for part, path in zip(shown, whole):
            np.testing.assert_array_equal(part, path[: len(part)])
        lengths.append(len(shown[0]))
        assert drawn.axes[0].get_xlabel() == f"action {lengths[-1]} of 5"
    assert lengths == [1, 2, 3, 4, 5]


def test_long_episodes_are_thinned() -> None:
    values = control("maml_rl")
    run = Run(values | {"data": values["data"] | {"horizon": 120}})
    task = select(run.episodes("val").batch([0]), 0)
    lengths = [drawn.axes[0].get_xlabel() for drawn in trajectories.film(run, task, "")]
    assert len(lengths) <= trajectories.FRAMES + 1
    assert lengths[-1] == "action 120 of 120"


def test_images_make_no_film(tmp_path: Path) -> None:
    run = Run(small("algo=protonet", "net.hidden=8"))
    with pytest.raises(UserError, match=r"--out a.gif is to be a film, which trajectories on a plane make; give a name"):
        figures.film(run, "val", 0, tmp_path / "a.gif")
