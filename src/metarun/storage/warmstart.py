"""``init_from=RUN``: a run begins with the weights of another run's backbone, taken by name.
What a method has beside the net, such as its head, begins as ever; what it puts into the net (FiLM layers) is of the net."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.errors import UserError
from metarun.nets.base import Net

SHOWN = 3  # names in a line


def take(net: Net, backbone: dict[str, Tensor], source: str) -> str:
    """Copy into ``net`` what has the same name and shape in another run's backbone; returns one line that says how much.

    Weights that a method gave a parametrization (``torch.nn.utils.parametrize``) are known by the names that they had before.

    Raises:
        UserError: nothing fits.
    """
    theirs = {_plain(name): tensor for name, tensor in backbone.items()}
    ours = {_plain(name): tensor for name, tensor in net.state_dict().items()}
    both = ours.keys() & theirs.keys()
    other_shape = sorted(name for name in both if ours[name].shape != theirs[name].shape)
    absent = sorted(name for name in ours.keys() - both if ".parametrizations." not in name)
    unused = sorted(theirs.keys() - both)
    taken = both.difference(other_shape)
    parts = {"of another shape": other_shape, "not in that run": absent, "only in that run": unused}
    report = "".join(f"; {what}: {_list(names)}" for what, names in parts.items() if names)
    if not taken:
        raise UserError(f"init_from={source} has no weight for this net{report}; choose the net of that run, or init_from=null")
    with torch.no_grad():
        for name in taken:
            ours[name].copy_(theirs[name])
    return f"init_from={source}: {len(taken)} of the net's {len(taken) + len(other_shape) + len(absent)} tensors taken{report}"


def _plain(name: str) -> str:
    """A parametrised weight's own name: ``conv.parametrizations.weight.original`` is ``conv.weight``."""
    return name.replace("parametrizations.", "").removesuffix(".original") if name.endswith(".original") else name


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
