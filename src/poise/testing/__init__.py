"""Conformance tests: what every schedule, prediction, sampler, network, encoder and format must hold, ours and yours.

Each `check_*` takes one object and raises AssertionError with a message where it breaks its contract:

    from poise.testing import check_sampler
    check_sampler(MySampler())
"""

from poise.testing.diffusions import Scaled, asymmetric_mixture, check_prediction, check_schedule, transport
from poise.testing.formats import check_format
from poise.testing.modules import check_encoder, check_network
from poise.testing.samplers import check_sampler, observed_order, strong_order, weak_order

__all__ = [
    "Scaled",
    "asymmetric_mixture",
    "check_encoder",
    "check_format",
    "check_network",
    "check_prediction",
    "check_sampler",
    "check_schedule",
    "observed_order",
    "strong_order",
    "transport",
    "weak_order",
]
