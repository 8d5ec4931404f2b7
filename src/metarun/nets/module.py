"""An ordinary ``nn.Module`` of the user as a backbone: ``net=module net.module=mynets.Tiny``.
Its norms become ours, as torch's have wrong second derivatives when weights are adapted per task; its features are counted by a trial."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.extensions import targets
from metarun.nets import foreign
from metarun.nets.base import Net
from metarun.nets.native import with_our_layers
from metarun.nets.norm import Norm


class Module(Net):
    """A net made of any module that maps examples [n, *input_shape] to features [n, features].

    Affine batch, group, instance and layer norms of torch become ``Norm`` of the same kind (or an elementary ``LayerNorm``), with their
    weights; a batch norm's kind is ``norm``. Other affine norms, and dropout, are refused.

    Args:
        input_shape: one example's shape, without the batch axis.
        module: the class, as PACKAGE.MODULE.CLASS, in a folder of ``--with`` or an installed package (see ``extensions``).
        arguments: keyword arguments of its constructor; None: none.
        features: length of a feature vector; ``auto``: as a trial shows.
        norm: whose statistics a batch norm uses, ``batch`` (transductive) or ``running``; ``none`` where there is no batch norm.

    Raises:
        UserError: no such class, or one that cannot be built, run or mapped over tasks.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        module: str | None,
        arguments: dict[str, Any] | None,
        features: Annotated[int, Ge(1)] | Literal["auto"],
        norm: Literal["batch", "running"],
    ) -> None:
        super().__init__()
        if module is None:
            raise UserError("net=module needs net.module=PACKAGE.MODULE.CLASS, a torch.nn.Module in a folder named by --with FOLDER")
        what, target = f"net.module={module}", targets.load("net.module", module, nn.Module, "")
        with targets.told(f"{what} cannot be built with net.arguments={arguments or {}}", target):
            self.module = with_our_layers(target(**arguments or {}), norm, what)
        foreign.refuse_layers(self.module, what)
        kinds = [layer.kind for layer in self.modules() if isinstance(layer, Norm)]
        self.norm = norm if norm in kinds else kinds[0] if kinds else "none"
        found = foreign.features(self.module, input_shape, what, Path(inspect.getfile(target)).parent)
        if features not in ("auto", found):
            raise UserError(f"net.features={features} is not what {what} returns: it makes {found} of an example; choose net.features=auto")
        self.features, self.map_shape = found, (found, 1, 1)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        return self.module(x)
