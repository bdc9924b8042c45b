"""Each mutant differs from torch in the stated way, and only there."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from perfuse_mutants.catalogue import CATALOGUE
from perfuse_mutants.conditions import NoMask, NoResiduals
from perfuse_mutants.denoiser import TimestepCond
from perfuse_mutants.loop import NegativeDecides, OtherBranch, StaleState, TextLeft
from perfuse_mutants.text import FirstPrompt

from perfuse.backend import Component, Program, Target
from perfuse.plugins import host
from perfuse.run import DiffusionPipeline
from perfuse.sources import ArtifactStore
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_conformance.cases.opening import open_source
from perfuse_conformance.reference.loras import OwnLora
from perfuse_conformance.reference.other_weights import with_other_weights
from perfuse_conformance.runner.layouts import LAYOUTS

Arrays = dict[str, Any]
Prepare = Callable[..., Program]


def unet(
    *timesteps: float, size: tuple[int, int] = (16, 16), guided: bool = False, seed: int = 0
) -> tuple[str, Arrays]:
    """A denoiser's inputs, an item for each timestep."""
    random = np.random.default_rng(seed)
    sample = random.standard_normal((len(timesteps), 4, *size), dtype=np.float32)
    if guided:
        sample[:] = sample[0]
    return "unet", {
        "sample": sample,
        "timestep": np.asarray(timesteps, dtype=np.float32),
        "encoder_hidden_states": random.standard_normal((len(timesteps), 32, 64), dtype=np.float32),
    }


def text(*counts: int, seed: int = 0) -> tuple[str, Arrays]:
    """Token ids as CLIP has them: begin, so many words, end and the end again."""
    ids = np.full((len(counts), 32), 611, dtype=np.int64)
    ids[:, 0] = 610
    for row, count in zip(ids, counts, strict=True):
        row[1 : 1 + count] = np.random.default_rng(seed).integers(0, 610, size=count)
    return "text_encoder", {"input_ids": ids}


def latent(size: tuple[int, int] = (16, 16), spread: float = 1.0) -> tuple[str, Arrays]:
    sample = np.random.default_rng(0).standard_normal((1, 4, *size), dtype=np.float32)
    return "vae_decoder", {"latent_sample": sample * np.float32(spread)}


def picture() -> tuple[str, Arrays]:
    sample = np.random.default_rng(0).uniform(-1, 1, size=(1, 3, 64, 64))
    return "vae_encoder", {"sample": sample.astype(np.float32)}


#: Calls in a row that show a mutant, and calls that do not; each list to a program of its own.
SHOWN: dict[str, tuple[list[Any], list[Any]]] = {
    "mutant-scale": ([unet(500)], [text(5), latent(), picture()]),
    "mutant-channels": ([unet(500)], [text(5), latent(), picture()]),
    "mutant-clamped": ([unet(1)], [unet(500)]),
    "mutant-timestep-off-by-one": ([unet(500)], []),
    "mutant-timestep-truncated": ([unet(12.9)], [unet(946, 12)]),
    "mutant-timestep-rounded": ([unet(946.421)], [unet(946, 12)]),
    "mutant-timestep-half": ([unet(946.421)], [unet(946, 12.5)]),
    "mutant-timestep-first": ([unet(900, 100)], [unet(900, 900), unet(100)]),
    "mutant-dropped-guidance": ([unet(600, 600, guided=True)], [unet(600, 600), unet(600)]),
    "mutant-swapped-prompts": ([unet(600, 600, guided=True)], [unet(600, 600), unet(600)]),
    "mutant-last-token": ([unet(500)], []),
    "mutant-half-text": ([unet(500)], []),
    "mutant-forgotten-transpose": ([unet(500)], [text(9), latent()]),
    "mutant-transposed": ([unet(500, size=(16, 24))], [unet(500)]),
    "mutant-default-size": ([unet(500, size=(16, 24))], [unet(500)]),
    "mutant-odd-sizes": ([unet(500, size=(13, 17))], [unet(500, size=(16, 17))]),
    "mutant-batch-leak": ([unet(900, 100)], [unet(900)]),
    "mutant-batch-padding": ([unet(900, 500, 100)], [unet(900, 100), unet(900)]),
    "mutant-cut-text": ([text(30)], [text(29), text(0), text(9, 12)]),
    "mutant-pooled": ([text(9)], [text(30)]),
    "mutant-padding-positions": ([text(9)], [text(30)]),
    "mutant-no-causal-mask": ([text(9)], [unet(500)]),
    "mutant-exact-gelu": ([text(9)], [unet(500)]),
    "mutant-constant-scale": ([latent()], [picture(), unet(500)]),
    "mutant-doubled-scale": ([latent()], [picture(), unet(500)]),
    "mutant-saturated": ([latent(spread=3)], [latent(spread=0.1), picture()]),
    "mutant-tiled": ([latent((16, 24))], [latent(), latent((24, 16))]),
    "mutant-bilinear-upsampling": ([latent()], [picture(), unet(500)]),
    "mutant-encoder-range": ([picture()], [latent(), unet(500)]),
    "mutant-padding-side": ([picture()], [latent(), unet(500)]),
    "mutant-float16-as-float32": ([unet(500)], []),
    "mutant-tf32": ([unet(500)], []),
    "mutant-int8-weights": ([unet(500)], []),
    "mutant-half-attention": ([unet(500)], [text(9), latent()]),
    "mutant-gelu-tanh": ([unet(500)], [text(9), latent()]),
    "mutant-norm-eps": ([unet(500)], [text(9), latent()]),
    # Seen in a row of calls alone
    "mutant-own-noise": ([unet(999)], []),
    "mutant-nearby-step": (
        [unet(520), unet(515, seed=1)],
        [unet(520), unet(500, seed=1), unet(500, seed=2), unet(515)],
    ),
    "mutant-feature-cache": (
        [unet(901 - 100 * i, seed=i) for i in range(10)],
        [unet(901 - 100 * i, seed=i) for i in range(6)] + [unet(901), unet(801, seed=1)],
    ),
    "mutant-bound-text": (
        [unet(500), unet(500, seed=1)],
        [unet(500), unet(400, 400, seed=1)],
    ),
}


def states(length: int) -> tuple[str, Arrays]:
    """A denoiser's inputs with a text of another length."""
    name, inputs = unet(500)
    random = np.random.default_rng(1)
    text_states = random.standard_normal((1, length, 64), dtype=np.float32)
    return name, {**inputs, "encoder_hidden_states": text_states}


def scaled(scale: float) -> tuple[str, Arrays]:
    """A denoiser's inputs with a sample of another range."""
    name, inputs = unet(500)
    return name, {**inputs, "sample": inputs["sample"] * np.float32(scale)}


def laid(layout: str) -> tuple[str, Arrays]:
    """A denoiser's inputs as they may lie in memory."""
    name, inputs = unet(500)
    return name, {n: LAYOUTS[layout](array) for n, array in inputs.items()}


_SEVEN, _SIX = [100 * i for i in range(1, 8)], [100 * i for i in range(1, 7)]
#: The same for those that no fixed probe finds.
BEYOND: dict[str, tuple[list[Any], list[Any]]] = {
    "mutant-large-pictures": ([unet(500, size=(24, 24))], [unet(500), unet(500, size=(16, 24))]),
    "mutant-small-pictures": ([unet(500, size=(12, 12))], [unet(500), unet(500, size=(20, 8))]),
    "mutant-wide-pictures": ([unet(500, size=(8, 16))], [unet(500, size=(16, 24))]),
    "mutant-many-items": ([unet(*_SEVEN)], [unet(*_SIX), unet(500)]),
    "mutant-cut-states": ([states(33)], [states(32), states(9)]),
    "mutant-padded-states": ([states(9)], [states(32), states(33)]),
    "mutant-wordy-text": ([text(27)], [text(23), text(30)]),
    "mutant-narrow-range": ([scaled(100)], [unet(500)]),
    "mutant-fixed-range": ([scaled(1e4)], [scaled(100), unet(500)]),
    "mutant-gaps": ([laid("strided")], [laid("fortran"), laid("read-only"), unet(500)]),
    "mutant-unaligned": ([laid("offset")], [laid("fortran"), laid("strided"), unet(500)]),
}


#: How large the smallest faults are: the largest error over the spread of what is right.
SMALL = {
    "mutant-scale": 0.1,
    "mutant-timestep-off-by-one": 0.02,
    "mutant-timestep-truncated": 0.1,
    "mutant-timestep-rounded": 0.1,
    "mutant-timestep-half": 0.02,
    "mutant-float16-as-float32": 0.01,
    "mutant-tf32": 0.01,
    "mutant-int8-weights": 0.1,
    "mutant-half-attention": 0.002,
    "mutant-gelu-tanh": 0.002,
    "mutant-norm-eps": 1e-4,
}


def errors(prepare: Prepare, name: str, calls: list[Any]) -> list[float]:
    """Each call's largest error over the spread of the output, the worst of its outputs."""
    found = []
    programs: dict[str, tuple[Program, Program]] = {}
    for component, inputs in calls:
        if component not in programs:
            programs[component] = prepare(name, component), prepare("torch", component)
        mutant, torch = programs[component]
        wrong, right = mutant(**inputs), torch(**inputs)
        assert wrong.keys() == right.keys()
        found.append(max(float(np.abs(wrong[k] - right[k]).max() / right[k].std()) for k in right))
    return found


@pytest.mark.parametrize("name", SHOWN)
def test_a_mutant_is_wrong_where_it_says_and_right_elsewhere(prepare: Prepare, name: str) -> None:
    wrong, right = SHOWN[name]
    assert 0 < max(errors(prepare, name, wrong)) < SMALL.get(name, 20)
    assert errors(prepare, name, right) == [0.0] * len(right)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BEYOND)
def test_a_mutant_is_wrong_where_no_probe_looks(prepare: Prepare, name: str) -> None:
    wrong, right = BEYOND[name]
    assert max(errors(prepare, name, wrong)) > 1e-3
    assert errors(prepare, name, right) == [0.0] * len(right)


def test_the_control_is_torch(prepare: Prepare) -> None:
    calls = [unet(900.5, 100), text(9), latent(), picture()]
    assert errors(prepare, "mutant-none", calls) == [0.0] * 4


def test_nan_is_one_number_of_a_late_step(prepare: Prepare) -> None:
    program = prepare("mutant-nan", "unet")
    _, inputs = unet(900, 1)
    assert np.count_nonzero(np.isnan(program(**inputs)["out_sample"])) == 1
    assert errors(prepare, "mutant-nan", [unet(900, 100)]) == [0.0]


def test_bfloat16_poses_as_float16(prepare: Prepare) -> None:
    _, inputs = unet(500)
    posing = prepare("mutant-bfloat16-as-float16", "unet", "float16")
    bfloat16 = prepare("torch", "unet", "bfloat16")
    np.testing.assert_array_equal(posing(**inputs)["out_sample"], bfloat16(**inputs)["out_sample"])
    assert posing.report().precision == "float16"
    assert prepare("mutant-float16-as-float32", "unet").report().precision == "float32"


def test_an_overwritten_input_holds_the_prediction_though_it_is_read_only(
    prepare: Prepare,
) -> None:
    _, inputs = unet(500)
    inputs["sample"].setflags(write=False)
    right = prepare("torch", "unet")(**inputs)["out_sample"]
    returned = prepare("mutant-overwritten-input", "unet")(**inputs)["out_sample"]
    np.testing.assert_array_equal(returned, right)
    np.testing.assert_array_equal(inputs["sample"], right)


def test_nondeterministic_noise_is_in_the_last_bit(prepare: Prepare) -> None:
    _, inputs = unet(500)
    program = prepare("mutant-nondeterministic", "unet")
    first, second = program(**inputs)["out_sample"], program(**inputs)["out_sample"]
    assert (first != second).any()
    np.testing.assert_array_max_ulp(first, second, maxulp=2)


def test_an_address_is_taken_for_its_contents(prepare: Prepare) -> None:
    program = prepare("mutant-address-cache", "unet")
    _, inputs = unet(500)
    first = program(**inputs)["out_sample"]
    np.testing.assert_array_equal(first, prepare("torch", "unet")(**inputs)["out_sample"])
    inputs["sample"][...] = 0
    np.testing.assert_array_equal(program(**inputs)["out_sample"], first)
    copied = {name: array.copy() for name, array in inputs.items()}
    assert (program(**copied)["out_sample"] != first).any()


def test_outputs_of_two_programs_share_memory(prepare: Prepare) -> None:
    encoder, decoder = (prepare("mutant-shared-output", n) for n in ("vae_encoder", "vae_decoder"))
    moments = encoder(**picture()[1])["latent_parameters"]
    kept = moments.copy()
    assert errors(prepare, "mutant-shared-output", [picture(), latent(), unet(500)]) == [0.0] * 3
    decoder(**latent()[1])
    assert (moments != kept).any()


def test_the_next_call_overwrites_the_last_one_s_outputs(prepare: Prepare) -> None:
    encoder, decoder = (prepare("mutant-reused-output", n) for n in ("vae_encoder", "vae_decoder"))
    inputs = picture()[1]
    moments = encoder(**inputs)["latent_parameters"]
    kept = moments.copy()
    decoder(**latent()[1])
    assert (moments == kept).all()
    encoder(**{name: -array for name, array in inputs.items()})
    assert (moments != kept).any()
    assert errors(prepare, "mutant-reused-output", [picture(), latent(), unet(500)]) == [0.0] * 3


def test_only_a_view_of_another_order_is_misread(prepare: Prepare) -> None:
    component, inputs = unet(500)
    inputs["timestep"] = np.broadcast_to(inputs["timestep"][:1], (1,))
    strided = np.zeros((1, 4, 16, 32), dtype=np.float32)[..., ::2]
    strided[...] = inputs["sample"]
    assert errors(prepare, "mutant-ignored-strides", [(component, inputs)]) == [0.0]
    assert errors(
        prepare, "mutant-ignored-strides", [(component, {**inputs, "sample": strided})]
    ) == [0.0]
    fortran = np.asfortranarray(inputs["sample"])
    wrong = errors(prepare, "mutant-ignored-strides", [(component, {**inputs, "sample": fortran})])
    assert wrong[0] > 0


@pytest.mark.parametrize("kind", ["secret", "hidden", "declared"])
def test_fallbacks_are_torch_under_another_name(prepare: Prepare, kind: str) -> None:
    name = f"mutant-{kind}-fallback"
    assert errors(prepare, name, [unet(500), text(9)]) == [0.0, 0.0]
    report = prepare(name, "unet").report()
    assert report.engine == "acme 1.0"
    assert (len(report.fallbacks) > 0) == (kind == "declared")


def test_the_secret_shows_to_who_watches_torch_and_the_hidden_one_does_not(
    prepare: Prepare,
) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        seen = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen += 1
            return func(*args, **(kwargs or {}))

    seen = {}
    for kind in ("secret", "hidden"):
        program = prepare(f"mutant-{kind}-fallback", "unet")
        count = Count()  # type: ignore[no-untyped-call]
        with count:
            program(**unet(500)[1])
        seen[kind] = count.seen
    assert seen["secret"] > 0
    assert seen["hidden"] == 0


# Those that the bundled model has no component for


def component_of(name: str, *inputs: str) -> Component:
    tensors = tuple(TensorSpec(name=i, dtype="float", shape=("batch",)) for i in inputs)
    signature = Signature(inputs=tensors, outputs=())
    spec = ComponentSpec(name=name, class_name="", folder="", config={}, signature=signature)
    return Component(spec=spec)


def test_the_guidance_embedding_is_dropped() -> None:
    heard: list[Arrays] = []
    component = component_of("unet", "sample", "timestep", "timestep_cond")

    def run(inputs: Arrays) -> Arrays:
        heard.append(inputs)
        return inputs

    call = TimestepCond().spoil(component, run)
    ones = np.ones(3, dtype=np.float32)
    call({"sample": ones, "timestep": ones, "timestep_cond": ones})
    assert not heard[0]["timestep_cond"].any()
    assert heard[0]["sample"] is ones


def test_residuals_and_masks_are_not_read() -> None:
    heard: list[Arrays] = []

    def run(inputs: Arrays) -> Arrays:
        heard.append(inputs)
        return inputs

    component = component_of("unet", "sample", "timestep", "mid_residual")
    given = {"sample": np.full((1, 9, 2, 2), 0.5, np.float32), "mid_residual": np.ones(3)}
    NoResiduals().spoil(component, run)(given)
    assert not heard[0]["mid_residual"].any()
    assert heard[0]["sample"] is given["sample"]
    NoMask().spoil(component, run)(given)
    assert (heard[1]["sample"][:, 4] == 1).all()
    assert (np.delete(heard[1]["sample"], 4, axis=1) == 0.5).all()
    plain = {"sample": given["sample"][:, :4]}
    NoMask().spoil(component, run)(plain)
    assert heard[2]["sample"] is plain["sample"]


def test_an_entry_is_the_denoiser_itself(own_cache: Path) -> None:
    source = open_source(None, ["perturbed:kind=identity,layers=mid"])
    worse = source.component("perturbed_identity_mid")

    def run(backend: str, component: Component) -> Any:
        program = (
            host()
            .backend(backend)
            .prepare(component, Target(backend=backend, device="cpu"), ArtifactStore.default())
        )
        return program(**unet(500)[1])["out_sample"]

    plain = run("torch", source.component("unet"))
    assert (run("torch", worse) != plain).any()
    np.testing.assert_array_equal(run("mutant-unperturbed", worse), plain)
    np.testing.assert_array_equal(run("mutant-unperturbed", source.component("unet")), plain)


def test_the_first_weights_are_given_to_every_other(own_cache: Path) -> None:
    unet_of = open_source(None).component("unet")
    mutant = host().backend("mutant-first-weights")
    right = host().backend("torch")

    def run(backend: Any, component: Component) -> Any:
        program = backend.prepare(component, Target(backend="torch"), ArtifactStore.default())
        return program(**unet(500)[1])["out_sample"]

    other = with_other_weights(unet_of)
    np.testing.assert_array_equal(run(mutant, unet_of), run(right, unet_of))
    np.testing.assert_array_equal(run(mutant, other), run(right, unet_of))
    assert (run(right, other) != run(right, unet_of)).any()


def adapted(part: str, scale: float) -> Component:
    """A component of the bundled model with so much of a LoRA."""
    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    plain = pipe.component(part)
    own = OwnLora(component=plain.spec, shapes=pipe.weight_shapes(plain))
    pipe.load_lora_weights(own.tensors(), adapter_name="own")
    pipe.set_adapters("own", scale)
    return pipe.component(part)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("mutant-adapter-twice", unet(500)),
        ("mutant-forgotten-alpha", unet(500)),
        ("mutant-dropped-adapter", text(9)),
    ],
    ids=["twice", "alpha", "dropped"],
)
def test_adapters(own_cache: Path, name: str, component: tuple[str, Arrays]) -> None:
    part, inputs = component
    plain, changed = open_source(None).component(part), adapted(part, 1.0)

    def run(backend: str, component: Component) -> Any:
        target, store = Target(backend="torch"), ArtifactStore.default()
        program = host().backend(backend).prepare(component, target, store)
        return next(iter(program(**inputs).values()))

    np.testing.assert_array_equal(run(name, plain), run("torch", plain))
    assert (run(name, changed) != run("torch", changed)).any()


def test_adapters_that_are_added_where_weights_are(own_cache: Path) -> None:
    part, inputs = unet(500)
    target, store = Target(backend="torch"), ArtifactStore.default()
    half, whole = adapted(part, 0.5), adapted(part, 1.0)
    program = host().backend("mutant-added-in-place").prepare(half, target, store)
    first = program(**inputs)["out_sample"]
    assert program.rebind(whole) and program.rebind(half)
    second = program(**inputs)["out_sample"]
    assert 0 < np.abs(second - first).max() < 0.1 * np.abs(first).max()


def test_scales_of_other_outputs(own_cache: Path) -> None:
    part, inputs = unet(500)
    plain = open_source(None).component(part)
    small = dataclasses.replace(plain, storage="int8")

    def run(backend: str, component: Component) -> Any:
        target, store = Target(backend="torch"), ArtifactStore.default()
        program = host().backend(backend).prepare(component, target, store)
        return next(iter(program(**inputs).values()))

    name, right = "mutant-turned-scales", run("torch", small)
    np.testing.assert_array_equal(run(name, plain), run("torch", plain))
    assert np.abs(run(name, small) - right).max() > 0.1 * np.abs(right).max()


def test_the_second_encoder_reads_the_first_prompt_with_its_own_padding() -> None:
    heard: list[Any] = []
    mutant = FirstPrompt()

    def run(inputs: Arrays) -> Arrays:
        heard.append(inputs["input_ids"])
        return inputs

    first = mutant.spoil(component_of("text_encoder", "input_ids"), run)
    second = mutant.spoil(component_of("text_encoder_2", "input_ids"), run)
    first({"input_ids": np.array([[8, 1, 2, 9, 9, 9]])})
    own = np.array([[8, 3, 4, 5, 9, 0]])
    second({"input_ids": own})
    np.testing.assert_array_equal(heard[1], [[8, 1, 2, 9, 0, 0]])
    np.testing.assert_array_equal(own, [[8, 3, 4, 5, 9, 0]])
    same = np.array([[8, 1, 2, 9, 0, 0]])  # no difference where the prompts are the same
    second({"input_ids": same})
    np.testing.assert_array_equal(heard[2], same)


def test_a_kept_state_is_never_refreshed() -> None:
    given: list[Any] = []

    def run(inputs: Arrays) -> Arrays:
        given.append(inputs["deep_state_1"])
        return inputs

    part = StaleState().spoil(component_of("unet_shallow_1", "deep_state_1"), run)
    for value in (1, 2):
        part({"deep_state_1": np.full((2, 3), value)})
    part({"deep_state_1": np.full((1, 3), 3)})  # another number of pictures
    assert [int(state[0, 0]) for state in given] == [1, 1, 3]


def test_branches_are_swapped() -> None:
    given: list[Any] = []

    def run(inputs: Arrays) -> Arrays:
        given.append(inputs["added_1"])
        return {"out_sample": inputs["added_1"], "sign_1": inputs["added_1"]}

    component = component_of("transformer_first_1", "added_1")
    both = np.arange(4.0)
    OtherBranch().spoil(component, run)({"added_1": both})
    np.testing.assert_array_equal(given[0], [2, 3, 0, 1])
    outputs = NegativeDecides().spoil(component, run)({"added_1": both})
    np.testing.assert_array_equal(given[1], both)
    np.testing.assert_array_equal(outputs["sign_1"], [2, 3, 0, 1])
    np.testing.assert_array_equal(outputs["out_sample"], both)


def test_what_is_kept_of_the_text_is_left_out() -> None:
    part = TextLeft().spoil(component_of("transformer_first_1_last_1", "added_text_1"), dict)
    found = part({"added_1_last_1": np.ones(3), "added_text_1_last_1": np.ones(3)})
    assert found["added_1_last_1"].all()
    assert not found["added_text_1_last_1"].any()


def test_what_is_worn_is_right_at_first(prepare: Prepare) -> None:
    name, inputs = unet(500)
    right = prepare("mutant-none", name)(**inputs)["out_sample"]
    drifts, shared = prepare("mutant-drifts", name), prepare("mutant-negative-strides", name)
    turned = {n: np.ascontiguousarray(a[..., ::-1])[..., ::-1] for n, a in inputs.items()}
    np.testing.assert_array_equal(drifts(**inputs)["out_sample"], right)
    np.testing.assert_array_equal(shared(**inputs)["out_sample"], right)
    assert np.abs(shared(**turned)["out_sample"] - right).max() > 0.01
    np.testing.assert_array_equal(prepare("mutant-none", name)(**turned)["out_sample"], right)


def test_every_mutant_of_numbers_is_tested_here() -> None:
    elsewhere = {
        "mutant-none",
        "mutant-nan",
        "mutant-bfloat16-as-float16",
        "mutant-overwritten-input",
        "mutant-nondeterministic",
        "mutant-address-cache",
        "mutant-reused-output",
        "mutant-shared-output",
        "mutant-ignored-strides",
        "mutant-secret-fallback",
        "mutant-hidden-fallback",
        "mutant-declared-fallback",
        "mutant-timestep-cond",
        "mutant-first-prompt",
        "mutant-no-residuals",
        "mutant-no-mask",
        "mutant-unperturbed",
        "mutant-first-weights",
        "mutant-forgotten-alpha",
        "mutant-added-in-place",
        "mutant-adapter-twice",
        "mutant-dropped-adapter",
        "mutant-turned-scales",
        "mutant-stale-state",
        "mutant-other-branch",
        "mutant-negative-decides",
        "mutant-text-left",
        "mutant-drifts",
        "mutant-one-in-a-hundred",
        "mutant-negative-strides",
        "mutant-leaks",
        "mutant-drifts-soon",
        "mutant-drifts-late",
        "mutant-leaks-a-little",
        "mutant-leaks-programs",
        "mutant-closes-nothing",
        "mutant-one-table",
        "mutant-shared-scratch",
        "mutant-zero-spread",
        "mutant-rsqrt-overflows",
    }
    mutants = {entry.name for entry in CATALOGUE if entry.name.startswith("mutant-")}
    assert mutants == elsewhere | SHOWN.keys() | BEYOND.keys()
