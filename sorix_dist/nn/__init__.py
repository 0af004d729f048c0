"""Layers, losses and what they are built of."""

from sorix_dist.core.keywords import missing_from
from sorix_dist.nn import (
    activation,
    attention,
    conv,
    functional,
    init,
    layers,
    loss,
    net,
    norm,
    recurrent,
    transformer,
    utils,
)  # fmt: skip
from sorix_dist.nn.activation import *  # noqa: F403
from sorix_dist.nn.attention import *  # noqa: F403
from sorix_dist.nn.conv import *  # noqa: F403
from sorix_dist.nn.layers import *  # noqa: F403
from sorix_dist.nn.loss import *  # noqa: F403
from sorix_dist.nn.net import *  # noqa: F403
from sorix_dist.nn.norm import *  # noqa: F403
from sorix_dist.nn.parameter import Parameter
from sorix_dist.nn.recurrent import *  # noqa: F403
from sorix_dist.nn.transformer import *  # noqa: F403

_ROOMS = (net, layers, activation, conv, norm, recurrent, attention, transformer, loss)
__all__ = [*dict.fromkeys(name for room in _ROOMS for name in room.__all__), "Parameter", "functional", "init", "utils"]

__getattr__ = missing_from(__name__, globals())
