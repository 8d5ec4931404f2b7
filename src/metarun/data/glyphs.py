"""Procedural handwriting: invented alphabets, drawn anew at every start without a file or a network.
A character is a pen program (the idea of Lake, Salakhutdinov, Tenenbaum 2015); a drawer varies it and a round pen inks it."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le

from metarun.data.base import ImageDataset
from metarun.data.episodes import Split, draws, episode_keys
from metarun.data.picture import Reader, handwriting

SEED = 2015  # the data's own: every run sees the same characters
ALPHABET = 25  # characters that share a style
STROKES, PIECES, POINTS = 4, 3, 14  # strokes of a character, pieces of a stroke, pen positions along a piece (at most)
STYLE, PROGRAM, DRAWER = 21, 22, 23  # streams of draws
MARKS = 8  # points that describe a stroke
GRAIN = 2**16  # length units in one step of the pen
CHUNK = 64  # characters drawn at a time, which bounds the memory


class Character(NamedTuple):
    """What the pen does for n characters of S strokes of P pieces; angles in radians, lengths relative to each other."""

    used: np.ndarray  # [n, S] bool
    heading: np.ndarray  # [n, S] where a stroke sets out to: 0 is right, pi/2 down
    corner: np.ndarray  # [n, S, P] turn on the spot before a piece
    turn: np.ndarray  # [n, S, P] turn spread over a piece: 0 is straight, 2 pi a loop
    length: np.ndarray  # [n, S, P] 0: no such piece
    onto: np.ndarray  # [n, S] int, the earlier stroke that a stroke is joined to
    there: np.ndarray  # [n, S] the point of the earlier stroke where they meet, 0..1
    here: np.ndarray  # [n, S] the point of its own where they meet, 0..1
    gap: np.ndarray  # [n, S, 2] how far apart they stay


def pick(uniform: np.ndarray, *weights: np.ndarray | float) -> np.ndarray:
    """Integers of 0..len(weights)-1 with these relative odds, which broadcast to ``uniform``'s shape."""
    total = np.cumsum(np.stack([np.broadcast_to(w, uniform.shape) for w in weights]), axis=0)
    return (uniform * total[-1] >= total[:-1]).sum(0)


def polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """[...] radii and angles to [..., 2] x and y."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def invent(split: str, n: int) -> Character:
    """The first ``n`` characters of a split. Hierarchical: an alphabet has a style, a character draws its strokes from it."""
    index, order = np.arange(n), np.arange(STROKES)
    style = draws(episode_keys(SEED, split, index // ALPHABET), STYLE, (6,))
    curved, angular, looped, upright, joined, rich = style.T[:, :, None]
    u = draws(episode_keys(SEED, split, index), PROGRAM, (STROKES, 10 + 7 * PIECES))
    stroke, piece = np.moveaxis(u[..., :10], -1, 0), np.moveaxis(u[..., 10:].reshape(n, STROKES, PIECES, 7), -1, 0)

    strokes = 1 + pick(stroke[0][:, :1], 0.6, 1.2, 0.4 + rich, rich**2)
    # A lone stroke is a rich one, many strokes are plain: bare lines and scribbles are no characters.
    plain = (strokes - 1) / 2 + (order > 0) / 2
    pieces = 1 + pick(stroke[1], plain, 1.0, np.maximum(1.5 - plain, 0))

    # Pens go right, down and along the falling diagonals more than they rise.
    compass = np.array([0, 1, 2, 3, -1]) * np.pi / 4
    heading = compass[pick(stroke[2], 1.4, 0.4, 1.4, 0.5, 0.25)] + (stroke[3] - 0.5) * (0.5 - 0.4 * upright)
    calm = plain[..., None]
    shape = pick(piece[0], 1.2 - curved[..., None] + calm, 0.2 + curved[..., None], 0.3 * looped[..., None] * (calm < 1))
    bend = np.choose(shape, [0.1 * piece[1], 0.8 + 2.8 * piece[1], 4.8 + 1.4 * piece[1]])
    turn = np.where(piece[2] < 0.5, -bend, bend)
    # A straight piece without a corner before it would only lengthen the one before.
    sharp = np.where((shape == 0) | (piece[3] < 0.1 + 0.6 * angular[..., None]), 1.1 + 1.3 * piece[4], 0)
    corner = np.where(piece[6] < 0.5, -sharp, sharp) * (np.arange(PIECES) > 0)
    length = (0.5 + 0.5 * piece[5]) * (1 + 0.25 * bend) * (np.arange(PIECES) < pieces[..., None])
    length *= np.where(order > 0, 0.6 + 0.6 * stroke[4], 1)[..., None]

    onto = (stroke[5] * order).astype(np.int64)
    there = np.array([0, 0.25, 0.5, 0.75, 1])[pick(stroke[6], 1.5, 1, 1, 1, 1)]
    here = np.array([0, 0.5, 1])[pick(stroke[7], 1.5, 1.0, 0.3)]
    apart = np.where(stroke[8] > 0.3 + 0.6 * joined, 0.45, 0)
    return Character(order < strokes, heading, corner, turn, length, onto, there, here, polar(apart, 2 * np.pi * stroke[9]))


def vary(program: Character, bell: np.ndarray) -> Character:
    """Every character as every drawer's hand makes it; ``bell`` [n, drawers, S, 5 + 3 P] is noise of mean 0. Returns n * drawers."""
    n, drawers = bell.shape[:2]
    noise = bell.reshape(n * drawers, STROKES, -1)
    p = Character(*(field.repeat(drawers, axis=0) for field in program))
    per_piece = noise[..., 5:].reshape(n * drawers, STROKES, PIECES, 3)
    return p._replace(
        heading=p.heading + 0.07 * noise[..., 0],
        corner=p.corner * (1 + 0.1 * per_piece[..., 0]),
        turn=p.turn * (1 + 0.07 * per_piece[..., 1]) + 0.08 * per_piece[..., 1],
        length=p.length * (1 + 0.15 * per_piece[..., 2]),
        there=np.clip(p.there + 0.05 * noise[..., 1], 0, 1),
        here=np.clip(p.here + 0.05 * noise[..., 2], 0, 1),
        gap=p.gap + 0.04 * noise[..., 3:5],
    )


def trace(p: Character) -> np.ndarray:
    """The pen's positions, [n, S, P * POINTS, 2]."""
    along = (np.arange(POINTS) + 0.5) / POINTS
    before = p.heading[..., None] + p.corner.cumsum(-1) + p.turn.cumsum(-1) - p.turn
    angle = before[..., None] + p.turn[..., None] * along
    path = polar(p.length[..., None] / POINTS, angle).reshape(len(angle), STROKES, -1, 2).cumsum(-2)
    rows, last = np.arange(len(path)), path.shape[2] - 1
    for s in range(1, STROKES):
        meet = path[rows, p.onto[:, s], np.rint(p.there[:, s] * last).astype(int)]
        own = path[rows, s, np.rint(p.here[:, s] * last).astype(int)]
        path[:, s] += (meet - own + p.gap[:, s])[:, None]
    return path


def pose(path: np.ndarray, used: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Slant, turn and place every drawing in the unit square; ``u`` [n, 6] is in -0.5..0.5. Unused strokes are left anywhere."""
    angle, slant, aspect, size, right, down = u.T
    cos, sin = np.cos(0.3 * angle), np.sin(0.3 * angle)
    stretch = np.exp(0.3 * aspect)
    matrix = np.stack([np.stack([cos * stretch, sin * stretch], -1), np.stack([0.4 * slant - sin, cos], -1)], -2)
    path = path.reshape(len(path), -1, 2) @ matrix
    ink = used.repeat(path.shape[1] // STROKES, axis=1)[..., None]
    low, high = np.where(ink, path, np.inf).min(1), np.where(ink, path, -np.inf).max(1)
    extent = 0.6 + 0.3 * size
    # A small drawing has more room to be off the centre; none leaves the paper.
    offset = np.stack([right, down], -1) * 0.6 * (0.9 - extent)[:, None]
    centred = (path - ((low + high) / 2)[:, None]) / (high - low).max(1)[:, None, None]
    return (0.5 + centred * extent[:, None, None] + offset[:, None]).reshape(*used.shape, -1, 2)


def ink(path: np.ndarray, used: np.ndarray, width: np.ndarray, size: int) -> np.ndarray:
    """A round pen of ``width`` [n] (of the unit square) along the points in use; [n, size, size] uint8, antialiased, ink = 255."""
    n, strokes, points, _ = path.shape
    radius = (width * size / 2).astype(np.float32)
    reach = int(np.ceil(radius.max() + 0.5))
    # Pen positions at even steps of half a pixel along all strokes laid end to end. Lengths are integers and a stroke's is rounded up to
    # whole steps by a rest at its end, so that no drawing hangs on the ones before it.
    pen = path[used] * size - 0.5
    step = np.diff(pen, axis=1, append=pen[:, -1:])
    far = np.rint(np.hypot(step[..., 0], step[..., 1]) * 2 * GRAIN).astype(np.int64)
    far[:, -1] = -far.sum(1) % GRAIN
    end = far.cumsum()
    at = np.arange(0, end[-1], GRAIN)
    near = np.searchsorted(end, at, side="right")
    share = 1 - (end[near] - at) / far.ravel()[near]
    xy = (pen.reshape(-1, 2)[near] + share[:, None] * step.reshape(-1, 2)[near]).astype(np.float32)
    image = np.broadcast_to(np.arange(n)[:, None, None], (n, strokes, points))[used].ravel()[near]
    # A margin of paper all round, so that the pen's disc needs no cropping.
    side = size + 2 * reach
    paper = np.zeros(n * side * side, np.float32)
    first = np.floor(xy).astype(np.int64) - reach + 1
    away = first.astype(np.float32) - xy
    flat = (image * side + first[:, 1] + reach) * side + first[:, 0] + reach
    for dy in range(2 * reach):
        for dx in range(2 * reach):
            cover = radius[image] + np.float32(0.5) - np.hypot(away[:, 0] + np.float32(dx), away[:, 1] + np.float32(dy))
            np.maximum.at(paper, flat + dy * side + dx, cover)
    inside = paper.reshape(n, side, side)[:, reach : reach + size, reach : reach + size]
    return np.rint(np.minimum(inside, 1) * 255).astype(np.uint8)


def draw(split: str, classes: int, drawers: int, size: int, variation: float) -> np.ndarray:
    """All images of a split, grouped by class: [classes * drawers, 1, size, size] uint8, ink = 255."""
    program = invent(split, classes)
    keys = episode_keys(SEED, split, np.arange(classes))
    noise = STROKES * (5 + 3 * PIECES)
    images = []
    for first in range(0, classes, CHUNK):
        part = slice(first, first + CHUNK)
        u = draws(keys[part], DRAWER, (drawers, 2 * noise + 7)) - 0.5
        bell = (u[..., :noise] + u[..., noise : 2 * noise]) * 6**0.5 * variation  # triangular; deviation 1 before ``variation``
        drawn = vary(Character(*(field[part] for field in program)), bell.reshape(*bell.shape[:2], STROKES, -1))
        hand = u[..., 2 * noise :].reshape(-1, 7) * variation
        path = pose(trace(drawn), drawn.used, hand[:, :6])
        images.append(ink(path, drawn.used, 0.06 + 0.02 * hand[:, 6], size))
    return np.concatenate(images)[:, None]


def describe(program: Character) -> np.ndarray:
    """The attributes of n characters, [n, 64] float32: what their strokes are to be like, before any hand draws them.

    Of each stroke in turn 8 points x, y from its start to its end, evenly along it, in a drawing that just fills the square -1..1;
    zeros for a stroke that there is not.
    """
    still = np.zeros((len(program.used), 6))
    path = (pose(trace(program), program.used, still) - 0.5) / 0.3
    length = np.hypot(*np.moveaxis(np.diff(path, axis=2, prepend=path[:, :, :1]), -1, 0)).cumsum(-1)
    evenly = np.linspace(0, length[..., -1], MARKS, axis=-1)
    points = np.zeros((*program.used.shape, MARKS, 2), np.float32)
    for stroke in np.argwhere(program.used):
        at = tuple(stroke)
        points[at] = np.stack([np.interp(evenly[at], length[at], axis) for axis in path[at].T], -1)
    return points.reshape(len(points), -1)


class Glyphs(ImageDataset):
    """Invented handwritten characters, the same for everybody; no two splits share an alphabet. A class's attributes: see ``describe``.

    Args:
        seed: the run's; unused, since the data have their own.
        train_classes, val_classes, test_classes: characters of a split, in alphabets of 25.
        drawers: images of a character, each by another hand.
        size: height and width, pixels.
        variation: how much hands differ; 0 makes all drawings of a character equal, 2 is hard.
    """

    def __init__(
        self,
        seed: int,
        *,
        train_classes: Annotated[int, Ge(1)],
        val_classes: Annotated[int, Ge(1)],
        test_classes: Annotated[int, Ge(1)],
        drawers: Annotated[int, Ge(2)],
        size: Annotated[int, Ge(8), Le(256)],
        variation: Annotated[float, Ge(0), Le(2)],
    ) -> None:
        splits = {}
        for split, classes in {"train": train_classes, "val": val_classes, "test": test_classes}.items():
            images = torch.from_numpy(draw(split, classes, drawers, size, variation))
            names = [f"{split}_alphabet{i // ALPHABET + 1:02d}_character{i % ALPHABET + 1:02d}" for i in range(classes)]
            splits[split] = Split(
                images, np.arange(classes) * drawers, np.full(classes, drawers), names, torch.from_numpy(describe(invent(split, classes)))
            )
        super().__init__(splits)

    @classmethod
    def reader(cls, **values: Any) -> Reader:
        """Drawings, ink = 1 on paper = 0 whichever of the two is the lighter: see ``handwriting``."""
        size = values["size"]
        return Reader((1, size, size), lambda path: handwriting(path, size))
