"""Each component's backend gets the switches that are for it, and no others."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from perfuse import ArtifactStore, Backend, Component, Device, Program, Request, Support, Target
from perfuse.backend import Options, read_options
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.run.options import check_scopes, options_for

KNOWN: Options = {"threads": range(1, 9), "cache": ("true", "false"), "folder": None}


class Fast(Backend):
    """A backend with switches; nothing is prepared here."""

    name: ClassVar[str] = "fast"
    options: ClassVar[Options] = KNOWN

    def devices(self) -> Sequence[Device]:
        return (Device(name="cpu"),)

    def supports(self, request: Request) -> Support:
        raise NotImplementedError

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        raise NotImplementedError


def of(given: Mapping[str, Any], *, mixed: bool = False, **own: str) -> dict[str, str]:
    """What the UNet gets."""
    target = Target(backend="fast", options=own)
    return options_for(target, given, Fast(), mixed, component="unet")


def test_one_backend_takes_all() -> None:
    assert of({"threads": "2", "cache": "false"}) == {"threads": "2", "cache": "false"}
    assert of({}) == {}


def test_from_python_numbers_and_truth_values_are_taken() -> None:
    assert of({"threads": 2, "cache": False}) == {"threads": "2", "cache": "false"}
    assert of({"cache": "TRUE", "folder": "Here"}) == {"cache": "true", "folder": "Here"}


def test_several_backends_take_what_is_theirs() -> None:
    given = {"fast.threads": "2", "slow.threads": "3", "vae_decoder.cache": "false"}
    assert of(given, mixed=True) == {"threads": "2"}


def test_the_narrower_wins() -> None:
    given = {"unet.threads": "4", "fast.threads": "3", "threads": "2"}
    assert of(given) == {"threads": "4"}
    assert of({"fast.threads": "3", "threads": "2"}) == {"threads": "3"}
    assert of(given, threads="5") == {"threads": "5"}


def test_several_backends_want_to_know_whose_it_is() -> None:
    with pytest.raises(InputError, match="fast.threads=2, or for one component unet.threads=2"):
        of({"threads": "2"}, mixed=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"speed": "9"}, "The fast backend was given the option speed; it has threads, cache, fol"),
        ({"fast.speed": "9"}, "the option speed; it has threads"),
        ({"threads": "0"}, "the option threads=0; it takes a whole number from 1 to 8"),
        ({"threads": "two"}, "threads=two; it takes a whole number from 1 to 8"),
        ({"cache": "maybe"}, "the option cache=maybe; it takes true, false"),
    ],
)
def test_what_there_is_not_is_refused(given: Mapping[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        of(given)


def test_without_switches() -> None:
    with pytest.raises(InputError, match="it has none"):
        read_options({"speed": "9"}, {}, of="The slow backend")


def test_a_scope_is_a_backend_or_a_component() -> None:
    there = {"backends": ["fast", "slow"], "components": ["unet"]}
    check_scopes({"threads": "1", "slow.threads": "1", "unet.cache": "true"}, **there)
    with pytest.raises(InputError, match="fsat is neither .* which has fast, slow, unet"):
        check_scopes({"fsat.threads": "1"}, **there)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_backends_declare_their_switches(name: str) -> None:
    backend = host().backend(name)
    assert backend.options
    for switch in backend.options:
        assert "." not in switch
    with pytest.raises(InputError, match="no-such"):
        backend.switches(Target(backend=name, options={"no-such": "1"}))
