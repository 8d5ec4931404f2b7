"""Examples as a net wants them."""

from __future__ import annotations

import pytest
import torch

from metarun.task import to_float


@pytest.mark.parametrize(("dtype", "largest"), [(torch.uint8, 1.0), (torch.int64, 255.0), (torch.int16, 255.0), (torch.float32, 255.0)])
def test_bytes_alone_are_pictures(dtype: torch.dtype, largest: float) -> None:
    assert to_float(torch.tensor([0, 255]).to(dtype)).tolist() == [0.0, largest]
    assert to_float(torch.tensor([False, True])).tolist() == [0.0, 1.0]
