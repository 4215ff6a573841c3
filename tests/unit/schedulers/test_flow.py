import math

import pytest

from schedulers.flow import Flow, flow_for


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63)])
def test_dynamic_shifting_is_a_line_through_two_sizes(tokens, mu, flux):
    flow = flow_for(flux, tokens)
    assert flow.mu == pytest.approx(mu)
    assert flow.factor == pytest.approx(math.exp(mu))


def test_a_fixed_shift_holds_for_all_sizes():
    schnell = {"use_dynamic_shifting": False, "shift": 1.0, "base_shift": 0.5}
    assert flow_for(schnell, 256) == flow_for(schnell, 4096) == Flow(shift=1.0)


def test_linear_time_shift_gives_mu_as_the_shift(flux):
    flow = flow_for({**flux, "time_shift_type": "linear"}, 4096)
    assert flow.mu is None
    assert flow.factor == pytest.approx(1.15)


@pytest.mark.parametrize("values", [{}, {"mu": 1.0, "shift": 1.0}, {"shift": 0.0}, {"shift": -1.0}, {"mu": math.nan}])
def test_a_shift_is_one_positive_number(values):
    with pytest.raises(ValueError, match=r"either mu or shift|not a positive number"):
        Flow(**values)
