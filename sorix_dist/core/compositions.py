"""The functions that are made of other operations, by PyTorch's names; some are methods of a Tensor too."""

from __future__ import annotations

from sorix_dist.core import algebra, arrange, statistics
from sorix_dist.core.algebra import *  # noqa: F403
from sorix_dist.core.arrange import *  # noqa: F403
from sorix_dist.core.keywords import with_torch_keywords
from sorix_dist.core.statistics import *  # noqa: F403
from sorix_dist.core.tensor import Tensor

__all__ = [*algebra.__all__, *arrange.__all__, *statistics.__all__]

for _methods in (algebra.METHODS, arrange.METHODS, statistics.METHODS):
    for _name, _function in _methods.items():
        setattr(Tensor, _name, with_torch_keywords(_function))
