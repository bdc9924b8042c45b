"""What a backend's answers mean, and how targets are read."""

import pytest

from perfuse import Placement, Support, SupportLevel
from perfuse.errors import InputError


def test_which_answers_let_a_component_run() -> None:
    """What nobody has tried is let try."""
    working = {level for level in SupportLevel if Support(level=level).works}
    assert working == {SupportLevel.FULL, SupportLevel.CONDITIONAL, SupportLevel.UNKNOWN}


def test_the_default_of_a_placement_is_asked_for_only_where_it_is_needed() -> None:
    def never() -> str:
        raise AssertionError("asked")

    assert str(Placement.parse("warp:0,unet=torch", default=never)) == "warp:0,unet=torch"
    assert str(Placement.parse("unet=torch", default=lambda: "warp")) == "warp,unet=torch"
    with pytest.raises(AssertionError, match="asked"):
        Placement.parse("unet=torch", default=never)
    with pytest.raises(InputError, match="cannot both be the default"):
        Placement.parse("warp,torch", default=never)
