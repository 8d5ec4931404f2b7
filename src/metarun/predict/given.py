"""What people give a trained learner from Python, as tensors: pictures, files, texts and arrays, labels, targets and attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metarun.data.picture import Reader, UnreadableError
from metarun.errors import UserError

Images = Tensor | np.ndarray | Iterable[Any]  # see ``Model.adapt``
FILES = (str, Path, Image.Image)


def examples(images: Images, shape: tuple[int, ...], reader: Reader | None, data: str) -> Tensor:
    """``images`` [n, *shape], numbers in 0..1 where they are pictures or files, else as they are.

    Args:
        shape: of an input.
        reader: how a file becomes one; None where none does.
        data: that the run was trained on, for messages.

    Raises:
        UserError: files that cannot be read, shapes or values that do not fit.
    """
    images = _listed(images, "text" if reader and reader.wording else "file")
    if not isinstance(images, (Tensor, np.ndarray)) and any(isinstance(image, FILES) for image in images):
        images = _read(images, reader, data)
    elif pictures := _pictures(images, shape, reader):
        images = _read(pictures, reader, data)
    x = _tensor(images, "images")
    if shape[0] == 1 and x.shape[1:] == shape[1:]:
        x = x.unsqueeze(1)
    if x.dim() == 0 or x.shape[1:] != shape or len(x) == 0:
        wanted = ", ".join(map(str, ("n", *shape)))
        mend = "; resize them, or give files instead" if reader else ""
        raise UserError(f"the inputs have shape {list(x.shape)}, but this run (data={data}) takes [{wanted}], n >= 1{mend}")
    if reader or len(shape) == 3:
        x = _unit_range(x)
    return _finite(x, "input")


def attributes(vectors: Any, length: int, algo: str) -> Tensor:
    """[n, length], of a class each."""
    x = _tensor(vectors, "attributes")
    if x.dim() != 2 or x.shape[1] != length:
        raise UserError(f"the attributes have shape {list(x.shape)}, but algo={algo} takes one vector per class, [n, {length}]")
    return _finite(x, "attribute vector").float()


def targets(values: Any, n: int, outputs: int) -> Tensor:
    """[n, outputs] float32."""
    y = _tensor(values, "targets").float()
    y = y.unsqueeze(-1) if outputs == 1 and y.dim() == 1 else y
    if y.shape != (n, outputs):
        raise UserError(f"the targets have shape {list(y.shape)}, but {n} inputs with {outputs} numbers each need [{n}, {outputs}]")
    return _finite(y, "target")


def labels(values: Any, n: int) -> tuple[list[Any], Tensor]:
    """The classes in sorted order, and every label as an index into them, [n] int64."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise UserError(f"the labels are one {type(values).__name__}: give a list with one label per example")
    names = values.tolist() if isinstance(values, (Tensor, np.ndarray)) else [_plain(name) for name in values]
    if len(names) != n:
        raise UserError(f"there are {n} examples but {len(names)} labels: give one label per example")
    if missing := [i for i, name in enumerate(names) if _is_missing(name)]:
        raise UserError(f"label {missing[0]} of {n}, counted from 0, is missing ({names[missing[0]]}): leave out what has no label")
    try:
        chosen = set(names)
    except TypeError:
        raise UserError("labels must be hashable, such as strings or numbers: one per example, not a list of lists") from None
    try:
        classes = sorted(chosen)
    except TypeError:  # of several types
        classes = sorted(chosen, key=lambda name: (type(name).__name__, str(name)))
    places = {name: i for i, name in enumerate(classes)}
    return classes, torch.tensor([places[name] for name in names])


def whole(steps: Any) -> int:
    """A number of inner steps."""
    try:
        number = index(steps)
    except TypeError:
        raise UserError(f"steps={steps!r} is no whole number: give 0 or more") from None
    if number < 0:
        raise UserError(f"steps={steps} is out of range: 0 or more")
    return number


def share(rate: Any) -> float:
    """Of the pictures of the classes, those that may be lost."""
    if not isinstance(rate, Real) or not 0 < float(rate) < 1:
        typed = f"{float(rate):g}" if isinstance(rate, Real) else repr(rate)
        raise UserError(f"reject={typed} is out of range: it is the share of pictures of the classes that may be lost, as 0.05")
    return float(rate)


def _listed(images: Any, noun: str) -> Tensor | np.ndarray | list[Any]:
    """An array, or a list of whatever there is."""
    if isinstance(images, FILES):
        one = isinstance(images, Image.Image)
        raise UserError("this is one picture: give a list of pictures" if one else f"'{images}' is one {noun}: give a list of {noun}s")
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise UserError(f"this is one {type(images).__name__}: give a list of {noun}s")
    if isinstance(images, Tensor):
        return images
    if isinstance(images, np.ndarray):
        return images.tolist() if images.dtype.kind in "USO" else images  # names of files, or texts
    return list(images)


def _pictures(images: Tensor | np.ndarray | list[Any], shape: tuple[int, ...], reader: Reader | None) -> list[np.ndarray]:
    """Arrays as cameras and libraries give them, each [height, width] or [height, width, 3 or 4] uint8 of any size.

    None where one is something else, or the run is not on pictures; an array of many that has the shape of inputs holds inputs.
    """
    if reader is None or reader.endings is not None or isinstance(images, Tensor):
        return []
    if isinstance(images, np.ndarray):
        if images.shape[1:] in (shape, shape[1:] if shape[0] == 1 else shape):
            return []
        if images.ndim == 3 and images.dtype == np.uint8 and images.shape[2] in (3, 4):
            raise UserError("this is one picture: give a list of pictures")
    return [*images] if all(map(_is_picture, images)) else []


def _is_picture(image: Any) -> bool:
    array = isinstance(image, np.ndarray) and image.dtype == np.uint8
    return array and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4)))


def _read(these: Sequence[Any], reader: Reader | None, data: str) -> np.ndarray:
    if reader is None:
        raise UserError(f"this run was trained on data={data}, which are not pictures: give numbers instead of files")
    return np.stack([_one(reader, this) for this in these])


def _one(reader: Reader, this: Any) -> np.ndarray:
    if isinstance(this, Image.Image) or _is_picture(this):
        if reader.endings is not None:
            raise UserError(f"this run was trained on {reader.noun}s: give their files instead of pictures")
        try:
            return reader.read(this if isinstance(this, Image.Image) else Image.fromarray(this))
        except UnreadableError as reason:
            raise UserError(f"one of the pictures cannot be used: {reason}") from None
    if not isinstance(this, (str, Path)):
        raise UserError(f"one of them is a {type(this).__name__}, others are files: give a list of either")
    if reader.wording and isinstance(this, str):
        try:
            return reader.wording.encode(this)
        except UnreadableError as reason:
            raise UserError(f"one of the texts is not readable: {reason}") from None
    path = Path(this)
    try:
        return reader.read(path)
    except UnreadableError as reason:
        raise UserError(f"{path} is not a readable {reader.noun}: {reason}" if path.exists() else f"{path} does not exist") from None


def _plain(name: Any) -> Any:
    """A label; of an array or tensor of one the number in it, by which it equals others."""
    return name.item() if isinstance(name, (Tensor, np.generic)) and name.ndim == 0 else name


def _is_missing(name: Any) -> bool:
    """Whether a label is none: None, NaN, or a table's NaT or NA, which does not even tell whether it equals itself."""
    try:
        return name is None or bool(name != name)
    except (TypeError, ValueError, RuntimeError):
        return not isinstance(name, (list, Tensor, np.ndarray))


def _tensor(values: Any, what: str) -> Tensor:
    """Numbers of any kind as a tensor."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the {what} are not an array of numbers: {' '.join(str(error).split())}") from None


def _finite(x: Tensor, what: str) -> Tensor:
    """Rows of numbers [n, ...], none of them NaN or infinite."""
    if not (finite := x.isfinite().flatten(1).all(1)).all():
        raise UserError(f"{what} {int(finite.int().argmin())} of {len(x)}, counted from 0, has a number that is not finite (NaN or inf)")
    return x


def _unit_range(x: Tensor) -> Tensor:
    """Images as floats in 0..1."""
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise UserError(f"the images are {str(x.dtype).removeprefix('torch.')}: give uint8 in 0..255 or floats in 0..1")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):  # written so that NaN is refused as well
        raise UserError(f"the images have values from {low:g} to {high:g}: give floats in 0..1, or uint8 in 0..255")
    return x
