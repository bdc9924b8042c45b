"""Every mutant, with the case that must catch it. Imports nothing heavy."""

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Caught", "Entry"]


@dataclass(frozen=True, kw_only=True)
class Caught:
    """How the suite finds a mutant out."""

    #: The lowest level at which it must be found.
    level: str
    #: The id of a case that finds it.
    case: str
    status: str
    #: ``"shapes"``, which is bundled, or one of the suite's random models.
    model: str = "shapes"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A mutant."""

    name: str
    #: ``"module:Class"`` in this package.
    impl: str
    #: What is wrong with it, and where the like has been seen.
    why: str
    #: ``None`` for the one that is right.
    caught: Caught | None


_UNET = "component/unet/float32/static"
_TRIAL = "trial/unet/float32/static"
_ANY = "trial/unet/float32/symbolic"


def _entry(
    name: str,
    impl: str,
    why: str,
    case: str,
    status: str = "FAIL_MISMATCH",
    *,
    level: str = "L1",
    model: str = "shapes",
) -> Entry:
    caught = Caught(level=level, case=case, status=status, model=model)
    return Entry(name=name, impl=f"perfuse_mutants.{impl}", why=why, caught=caught)


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name="mutant-none",
        impl="perfuse_mutants.backend:Control",
        why="nothing is wrong with it: it shows that the others are caught for their fault",
        caught=None,
    ),
    # The denoiser's numbers
    _entry(
        "mutant-nan",
        "denoiser:Nan",
        "one NaN, in the last steps alone: half-precision overflows do that",
        f"{_UNET}/late",
        "FAIL_NONFINITE",
    ),
    _entry("mutant-scale", "denoiser:Scale", "the prediction is 1 % too large", f"{_UNET}/middle"),
    _entry(
        "mutant-channels",
        "denoiser:Channels",
        "two channels are exchanged",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-clamped",
        "denoiser:Clamped",
        "the prediction saturates at 3, as with a fixed activation range",
        f"{_UNET}/late",
    ),
    _entry(
        "mutant-timestep-off-by-one",
        "denoiser:TimestepOffByOne",
        "timesteps are counted from one",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-timestep-truncated",
        "denoiser:TimestepTruncated",
        "the timestep is an integer inside: 12.9 becomes 12, and only Euler's schedules show it",
        f"{_UNET}/fractional",
    ),
    _entry(
        "mutant-timestep-rounded",
        "denoiser:TimestepRounded",
        "timesteps are rounded to whole numbers",
        f"{_UNET}/fractional",
    ),
    _entry(
        "mutant-timestep-half",
        "denoiser:TimestepHalf",
        "the timestep enters in float16, which has no 946.421",
        f"{_UNET}/fractional",
    ),
    _entry(
        "mutant-timestep-first",
        "denoiser:TimestepFirst",
        "all items get the first one's timestep: the input has rank 0",
        f"{_UNET}/item-timesteps",
    ),
    _entry(
        "mutant-timestep-cond",
        "denoiser:TimestepCond",
        "a latent consistency model's guidance is declared and not passed on",
        f"{_UNET}/middle",
        model="random-lcm",
    ),
    _entry(
        "mutant-dropped-guidance",
        "denoiser:DroppedGuidance",
        "equal samples are computed once, though their prompts differ",
        f"{_UNET}/guided",
    ),
    _entry(
        "mutant-swapped-prompts",
        "denoiser:SwappedPrompts",
        "prompt and negative prompt are exchanged",
        f"{_UNET}/guided",
    ),
    _entry(
        "mutant-last-token",
        "denoiser:LastToken",
        "the text's last token is not read",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-half-text",
        "denoiser:HalfText",
        "the second half of the text's tokens is not read",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-transposed",
        "denoiser:Transposed",
        "height and width are exchanged, which squares do not show",
        f"{_UNET}/wide",
    ),
    _entry(
        "mutant-default-size",
        "denoiser:DefaultSize",
        "the size asked for is overridden in silence, and the result resized",
        f"{_UNET}/wide",
    ),
    _entry(
        "mutant-odd-sizes",
        "denoiser:OddSizes",
        "the last of an odd number of rows is made up",
        "component/unet/float32/symbolic/odd",
    ),
    _entry(
        "mutant-batch-leak",
        "denoiser:BatchLeak",
        "the items of a batch are normalised together",
        f"{_UNET}/wide",
    ),
    _entry(
        "mutant-batch-padding",
        "denoiser:BatchPadding",
        "the third of three items is a copy of the second: pairs are computed",
        "component/unet/float32/symbolic/three",
    ),
    # What a denoiser is told besides the text
    _entry(
        "mutant-no-residuals",
        "conditions:NoResiduals",
        "what a ControlNet gives is declared and not passed on",
        f"{_UNET}/middle",
        model="random-edited",
    ),
    _entry(
        "mutant-no-mask",
        "conditions:NoMask",
        "the channel that says what to draw anew is not read: all of it is",
        f"{_UNET}/middle",
        model="random-edited",
    ),
    _entry(
        "mutant-unperturbed",
        "conditions:Unperturbed",
        "a worse version of the denoiser runs the denoiser: programs are known by their weights",
        "component/perturbed_identity_mid/float32/static/middle",
        model="random-edited",
    ),
    # The loop
    _entry(
        "mutant-own-noise",
        "loop:OwnNoise",
        "loops start from the engine's own random numbers",
        f"{_UNET}/early",
    ),
    _entry(
        "mutant-nearby-step",
        "loop:NearbyStep",
        "a step that is near the last one gets its result",
        f"{_UNET}/near-steps",
    ),
    _entry(
        "mutant-feature-cache",
        "loop:FeatureCache",
        "a feature cache is on by default: late in a loop two steps of three are not computed",
        "forced/float32/ddim",
        level="L2",
    ),
    _entry(
        "mutant-stale-state",
        "loop:StaleState",
        "what a denoiser's last layers are given of a step before is bound once, and never refreshed",
        "component/unet_shallow_1/float32/static/near-steps",
        model="random-shallow",
    ),
    _entry(
        "mutant-turned-scales",
        "weights:TurnedScales",
        "weights in integers have the scales of other outputs",
        f"{_UNET}/early",
        model="random-int8",
    ),
    _entry(
        "mutant-other-branch",
        "loop:OtherBranch",
        "what a part of a denoiser is given of a step before is that of the guidance's other branch",
        "component/transformer_first_1_last_1/float32/static/guided",
        model="random-cached",
    ),
    _entry(
        "mutant-negative-decides",
        "loop:NegativeDecides",
        "whether a step is computed is decided by the branch without the prompt",
        "component/transformer_first_1_last_1/float32/static/guided",
        model="random-cached",
    ),
    _entry(
        "mutant-text-left",
        "loop:TextLeft",
        "the last blocks of a cached step read the text as the first ones left it",
        "component/transformer_first_1_last_1/float32/static/early",
        model="random-cached",
    ),
    # Text
    _entry(
        "mutant-cut-text",
        "text:CutText",
        "a text that fills every place loses its last token",
        "component/text_encoder/float32/static/texts",
    ),
    _entry(
        "mutant-pooled",
        "text:Pooled",
        "the pooled text is taken from the last place, not from the end token",
        "component/text_encoder/float32/static/texts",
    ),
    _entry(
        "mutant-first-prompt",
        "text:FirstPrompt",
        "the second prompt of XL is ignored, or the two are exchanged",
        "draw/float32/ddim",
        level="L2",
        model="random-sdxl",
    ),
    _entry(
        "mutant-padding-positions",
        "operators:PaddingPositions",
        "padding tokens have the position of the text's end",
        "component/text_encoder/float32/static/texts",
    ),
    _entry(
        "mutant-no-causal-mask",
        "operators:NoCausalMask",
        "tokens see the ones after them: the mask was lost when the graph was lowered",
        "component/text_encoder/float32/static/texts",
    ),
    _entry(
        "mutant-exact-gelu",
        "operators:ExactGelu",
        "the exact GELU replaces CLIP's approximation x σ(1.702 x)",
        "component/text_encoder/float32/static/texts",
    ),
    # Autoencoders
    _entry(
        "mutant-constant-scale",
        "autoencoder:ConstantScale",
        "the scaling factor 0.18215 is hard-coded",
        "component/vae_decoder/float32/static/spread",
    ),
    _entry(
        "mutant-doubled-scale",
        "autoencoder:DoubledScale",
        "latents are divided by the scaling factor twice",
        "component/vae_decoder/float32/static/spread",
    ),
    _entry(
        "mutant-saturated",
        "autoencoder:Saturated",
        "the decoder cuts off what lies outside of [-1, 1]",
        "component/vae_decoder/float32/static/spread",
    ),
    _entry(
        "mutant-tiled",
        "autoencoder:Tiled",
        "wide pictures are decoded in tiles that do not overlap",
        "component/vae_decoder/float32/static/wide",
    ),
    _entry(
        "mutant-bilinear-upsampling",
        "operators:BilinearUpsampling",
        "the decoder interpolates where it should repeat",
        "component/vae_decoder/float32/static/spread",
    ),
    _entry(
        "mutant-encoder-range",
        "autoencoder:EncoderRange",
        "the encoder takes pictures for [0, 1]",
        "component/vae_encoder/float32/static/spread",
    ),
    _entry(
        "mutant-padding-side",
        "operators:PaddingSide",
        "the encoder pads left and top, not right and bottom",
        "component/vae_encoder/float32/static/spread",
    ),
    # Precision and operators
    _entry(
        "mutant-float16-as-float32",
        "precision:Float16AsFloat32",
        "float16 was computed where float32 was asked for and reported",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-bfloat16-as-float16",
        "precision:Bfloat16AsFloat16",
        "bfloat16 was computed where float16 was asked for and reported",
        "component/unet/float16/static/middle",
    ),
    _entry(
        "mutant-tf32",
        "operators:Tf32",
        "products have ten bits of mantissa and are called float32",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-int8-weights",
        "operators:Int8Weights",
        "weights were rounded to eight bits on the way",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-half-attention",
        "operators:HalfAttention",
        "attention alone is computed in float16",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-gelu-tanh",
        "operators:GeluTanh",
        "GELU is approximated by tanh",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-norm-eps",
        "operators:NormEps",
        "group normalisation has 1e-6 for 1e-5",
        f"{_UNET}/middle",
    ),
    # Weights
    _entry(
        "mutant-forgotten-transpose",
        "weights:ForgottenTranspose",
        "a square matrix is taken the wrong way round, as where a layout is noted and not applied",
        f"{_UNET}/middle",
    ),
    _entry(
        "mutant-first-weights",
        "weights:FirstWeights",
        "the first checkpoint's weights are kept for every other of its config",
        "weights/unet/other-weights",
        level="L2",
    ),
    _entry(
        "mutant-adapter-twice",
        "weights:AdapterTwice",
        "an adapter is added to weights that have it already, as where it is fused and active",
        "weights/unet/adapters",
        level="L2",
    ),
    _entry(
        "mutant-forgotten-alpha",
        "weights:ForgottenAlpha",
        "a LoRA's alpha is not read: it counts four times as much",
        "weights/unet/adapters",
        level="L2",
    ),
    _entry(
        "mutant-added-in-place",
        "weights:AddedInPlace",
        "adapters are added to rounded weights and taken out again, and leave something each time",
        "weights/unet/adapters",
        level="L2",
    ),
    _entry(
        "mutant-dropped-adapter",
        "weights:DroppedAdapter",
        "an adapter is loaded into the denoiser, and its part for the text encoder is not",
        "weights/text_encoder/adapters",
        level="L2",
    ),
    # Memory
    _entry(
        "mutant-overwritten-input",
        "memory:OverwrittenInput",
        "the output is bound to the sample's memory",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry(
        "mutant-nondeterministic",
        "memory:Nondeterministic",
        "the last bit differs from call to call; no tolerance shows it",
        f"{_UNET}/same-twice",
    ),
    _entry(
        "mutant-bound-text",
        "memory:BoundText",
        "the text's memory is bound once, and the next text not read",
        f"{_UNET}/near-steps",
    ),
    _entry(
        "mutant-address-cache",
        "memory:AddressCache",
        "arrays are recognised by their address, so a buffer that is filled anew is not",
        f"{_UNET}/reused-memory",
    ),
    _entry(
        "mutant-shared-output",
        "memory:SharedOutput",
        "all programs write their outputs to one arena: the next one's overwrites the last one's",
        "component/unet/float32/static/held-output",
    ),
    _entry(
        "mutant-reused-output",
        "memory:ReusedOutput",
        "a program writes its outputs to the same memory at every call, where the caller holds them",
        "component/unet/float32/static/kept-output",
    ),
    _entry(
        "mutant-ignored-strides",
        "memory:IgnoredStrides",
        "arrays are read in the order of memory, so a transposed view is misread",
        "component/unet/float32/static/views",
    ),
    # Who computes
    _entry(
        "mutant-secret-fallback",
        "fallback:SecretFallback",
        "torch computes everything and the report names another engine",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry(
        "mutant-hidden-fallback",
        "fallback:HiddenFallback",
        "the same in a thread of its own, where operators cannot be watched",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry(
        "mutant-declared-fallback",
        "fallback:DeclaredFallback",
        "torch computes everything and the report says so: right, and no level",
        f"{_UNET}/middle",
        "PASS_FALLBACK",
    ),
    # What it says of itself
    _entry(
        "rude-overdeclared",
        "rude:Overdeclared",
        "declares bfloat16 and refuses it",
        "component/unet/bfloat16/static/middle",
        "FAIL_COMPILE",
    ),
    _entry(
        "rude-underdeclared",
        "rude:Underdeclared",
        "declares that it has no float16, and computes it",
        "refusal/unet/float16/static",
        "UNDER_DECLARED",
    ),
    _entry(
        "rude-unrefused",
        "rude:Unrefused",
        "declares that it has no float16, and returns zeros",
        "refusal/unet/float16/static",
        "FAIL_UNREFUSED",
    ),
    _entry(
        "rude-no-devices",
        "rude:NoDevices",
        "lists no device",
        "host/devices",
        "ENV_MISSING",
        level="L0",
    ),
    _entry(
        "rude-devices-raise",
        "rude:DevicesRaise",
        "raises its driver's error when asked for devices",
        "host/devices",
        "FAIL_RUN",
        level="L0",
    ),
    _entry(
        "rude-supports-none",
        "rude:SupportsNothing",
        "answers supports with None",
        "host/supports",
        "FAIL_CONTRACT",
        level="L0",
    ),
    _entry(
        "rude-supports-raises",
        "rude:SupportsRaises",
        "raises KeyError when asked what it supports",
        "host/supports",
        "FAIL_RUN",
        level="L0",
    ),
    _entry(
        "rude-any-device",
        "rude:AnyDevice",
        "takes a device that is not there for the CPU",
        "host/unknown-device",
        "FAIL_UNREFUSED",
        level="L0",
    ),
    _entry(
        "rude-any-option",
        "rude:AnyOption",
        "takes an option that it does not have",
        "host/unknown-option",
        "FAIL_UNREFUSED",
        level="L0",
    ),
    _entry(
        "rude-any-precision",
        "rude:AnyPrecision",
        "declares and prepares a precision that does not exist",
        "host/unknown-precision",
        "FAIL_UNREFUSED",
        level="L0",
    ),
    _entry(
        "rude-report-raises",
        "rude:ReportRaises",
        "cannot say what ran",
        f"{_UNET}/middle",
        "FAIL_RUN",
    ),
    _entry(
        "rude-absent",
        "absent:Absent",
        "its manifest names a class that cannot be imported",
        "host/devices",
        "FAIL_CONTRACT",
        level="L0",
    ),
    # What it returns
    _entry(
        "rude-wrong-names",
        "rude:WrongNames",
        "calls its output noise_pred",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-wrong-shape",
        "rude:WrongShape",
        "returns channels last",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry("rude-float64", "rude:Float64", "returns float64", f"{_UNET}/middle", "FAIL_CONTRACT"),
    _entry(
        "rude-float16",
        "rude:Float16",
        "returns float16 where it computes in it",
        "component/unet/float16/static/middle",
        "FAIL_CONTRACT",
    ),
    _entry("rude-list", "rude:ReturnsList", "returns a list", f"{_UNET}/middle", "FAIL_CONTRACT"),
    _entry(
        "rude-tensors",
        "rude:ReturnsTensors",
        "is given numpy arrays and returns torch tensors",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    # What it raises and prints
    _entry(
        "rude-own-exception",
        "rude:OwnException",
        "lets its vendor's exception through",
        f"{_UNET}/middle",
        "FAIL_RUN",
    ),
    _entry(
        "rude-unprintable-exception",
        "rude:UnprintableException",
        "raises a long message of markup that cannot be encoded",
        f"{_UNET}/middle",
        "FAIL_RUN",
    ),
    _entry(
        "rude-system-exit",
        "rude:SystemExits",
        "raises SystemExit",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-interrupt",
        "rude:Interrupts",
        "raises KeyboardInterrupt",
        f"{_UNET}/middle",
        "FAIL_CRASH",
    ),
    _entry(
        "rude-print-prepare",
        "rude:PrintsInPrepare",
        "prints to standard output while it prepares",
        f"{_UNET}/early",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-print-call",
        "rude:PrintsInCall",
        "prints to standard output from native code",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-flood",
        "rude:Floods",
        "prints more than a pipe holds",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-closed-output",
        "rude:ClosesOutput",
        "closes standard output",
        f"{_UNET}/early",
        "FAIL_CONTRACT",
    ),
    # What it does to the process
    _entry("rude-exit", "rude:Exits", "ends the process", f"{_UNET}/middle", "FAIL_CRASH"),
    _entry("rude-segfault", "rude:Segfaults", "reads address 0", f"{_UNET}/middle", "FAIL_CRASH"),
    _entry(
        "rude-segfault-prepare",
        "rude:SegfaultsInPrepare",
        "reads address 0 while it prepares",
        f"{_UNET}/middle",
        "FAIL_CRASH",
    ),
    _entry(
        "rude-hang-call",
        "rude:HangsInCall",
        "never returns, and holds the interpreter's lock",
        f"{_UNET}/middle",
        "FAIL_TIMEOUT",
    ),
    _entry(
        "rude-hang-prepare",
        "rude:HangsInPrepare",
        "never finishes compiling",
        f"{_UNET}/middle",
        "FAIL_TIMEOUT",
    ),
    _entry(
        "rude-hang-close",
        "rude:HangsInClose",
        "never finishes closing",
        "contract/unet/closed",
        "FAIL_TIMEOUT",
    ),
    _entry(
        "rude-open-after-close",
        "rude:OpenAfterClose",
        "works on once it is closed",
        "contract/unet/closed",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-crash-after-close",
        "rude:CrashesAfterClose",
        "reads freed memory once it is closed",
        "contract/unet/closed",
        "FAIL_CRASH",
    ),
    _entry(
        "rude-chdir",
        "rude:ChangesFolder",
        "changes the working directory",
        f"{_UNET}/early",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-default-dtype",
        "rude:ChangesDefaultDtype",
        "changes torch's default dtype",
        f"{_UNET}/early",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-torch-threads",
        "rude:ChangesThreads",
        "changes torch's number of threads",
        f"{_UNET}/early",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-numpy-errors",
        "rude:ChangesNumpyErrors",
        "makes numpy raise on overflow",
        f"{_UNET}/early",
        "FAIL_CONTRACT",
    ),
    _entry(
        "rude-seeds",
        "rude:Seeds",
        "seeds everyone's random numbers",
        f"{_UNET}/middle",
        "FAIL_CONTRACT",
    ),
    # Found by many calls
    _entry(
        "mutant-drifts",
        "worn:Drifts",
        "wrong from the two hundredth call on",
        "soak/unet/many-calls",
        level="L2",
    ),
    _entry(
        "mutant-one-in-a-hundred",
        "worn:OneInAHundred",
        "one call of a hundred answers to the inputs of the call before",
        "soak/unet/many-calls",
        level="L2",
    ),
    _entry(
        "mutant-negative-strides",
        "worn:SharedStrides",
        "arrays with negative strides are read from their lowest address",
        f"{_TRIAL}/negative-strides",
        level="L2",
    ),
    _entry(
        "mutant-leaks",
        "worn:Leaks",
        "each call leaves half a megabyte behind",
        "soak/unet/many-calls",
        "FAIL_CONTRACT",
        level="L2",
    ),
    _entry(
        "mutant-drifts-soon",
        "worn:DriftsSoon",
        "wrong from the hundredth call on",
        "soak/unet/many-calls",
        level="L2",
    ),
    _entry(
        "mutant-drifts-late",
        "worn:DriftsLate",
        "wrong from the three hundredth call on",
        "soak/unet/many-calls",
        level="L2",
    ),
    _entry(
        "mutant-leaks-a-little",
        "worn:LeaksALittle",
        "each call leaves 64 kilobytes behind",
        "soak/unet/many-calls",
        "FAIL_CONTRACT",
        level="L2",
    ),
    _entry(
        "mutant-leaks-programs",
        "worn:LeaksPrograms",
        "each program leaves a megabyte behind",
        "soak/unet/many-programs",
        "FAIL_CONTRACT",
        level="L2",
    ),
    _entry(
        "mutant-closes-nothing",
        "worn:ClosesNothing",
        "close() does not free a program's memory",
        "soak/unet/many-programs",
        "FAIL_CONTRACT",
        level="L2",
    ),
    _entry(
        "mutant-one-table",
        "worn:OneTable",
        "a denoiser that is prepared after two others gets another one's scale",
        "soak/unet/order",
        level="L2",
    ),
    _entry(
        "mutant-shared-scratch",
        "worn:SharedScratch",
        "declared fit for several threads, with one scratch memory for all",
        "soak/unet/two-programs",
        level="L2",
    ),
    # Found where no fixed probe looks
    _entry(
        "mutant-large-pictures",
        "beyond:LargePictures",
        "large pictures are computed in tiles, with a seam",
        f"{_ANY}/largest",
        level="L2",
    ),
    _entry(
        "mutant-small-pictures",
        "beyond:SmallPictures",
        "pictures that are smaller than usual have a seam",
        f"{_ANY}/smaller",
        level="L2",
    ),
    _entry(
        "mutant-wide-pictures",
        "beyond:WidePictures",
        "pictures wider than any that was measured have a seam",
        f"{_ANY}/aspect",
        level="L2",
    ),
    _entry(
        "rude-claims-any-size",
        "rude:ClaimsAnySize",
        "declares sizes that its memory is too small for",
        f"{_ANY}/largest",
        "FAIL_RUN",
        level="L2",
    ),
    _entry(
        "mutant-many-items",
        "beyond:ManyItems",
        "a seventh item gets the sixth one's result",
        f"{_ANY}/largest-batch",
        level="L2",
    ),
    _entry(
        "mutant-cut-states",
        "beyond:CutStates",
        "a prompt that is longer than one text encoder's is cut",
        f"{_ANY}/longest-text",
        level="L2",
    ),
    _entry(
        "mutant-padded-states",
        "beyond:PaddedStates",
        "a shorter text is padded, and the padding attended to",
        f"{_ANY}/other-text",
        level="L2",
    ),
    _entry(
        "mutant-wordy-text",
        "beyond:WordyText",
        "words beyond the twenty-fourth are not read",
        "trial/text_encoder/float32/static/many-words",
        level="L2",
    ),
    _entry(
        "mutant-zero-spread",
        "beyond:ZeroSpread",
        "a sample of zeros is divided by its spread",
        f"{_TRIAL}/zeros",
        "FAIL_NONFINITE",
        level="L2",
    ),
    _entry(
        "mutant-rsqrt-overflows",
        "beyond:RsqrtOverflows",
        "the squares of very small numbers are zero",
        f"{_TRIAL}/denormal",
        "FAIL_NONFINITE",
        level="L2",
    ),
    _entry(
        "mutant-narrow-range",
        "beyond:NarrowRange",
        "a sample is cut off where noise never is",
        f"{_TRIAL}/large",
        level="L2",
    ),
    _entry(
        "mutant-fixed-range",
        "beyond:FixedRange",
        "a fixed range, far from what was measured",
        f"{_TRIAL}/saturating",
        level="L2",
    ),
    _entry(
        "mutant-gaps",
        "beyond:Gaps",
        "gaps between an array's numbers are read for numbers",
        f"{_TRIAL}/strided",
        level="L2",
    ),
    _entry(
        "mutant-unaligned",
        "beyond:Unaligned",
        "arrays are read from the aligned address before their first number",
        f"{_TRIAL}/offset",
        level="L2",
    ),
    _entry(
        "rude-writes-inputs",
        "rude:WritesInputs",
        "inputs are changed in place and put back, which read-only memory does not bear",
        f"{_TRIAL}/read-only",
        "FAIL_CRASH",
        level="L2",
    ),
    _entry(
        "rude-leaked-thread",
        "rude:LeaksThread",
        "leaves a thread behind that keeps the process alive",
        "contract/unet/closed",
        "FAIL_CONTRACT",
    ),
)
