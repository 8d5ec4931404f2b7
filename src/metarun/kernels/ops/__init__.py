"""Operations with derivatives of any order under torch.vmap, over the kernels of ``select``."""
