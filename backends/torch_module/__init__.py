"""Program -> source of one torch module that stands alone."""

from nlc.backends.torch_module.module import generate

__all__ = ["generate"]
