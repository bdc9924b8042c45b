"""A transform that skips the denoiser at every second step, and adds a component: one that softens
the picture."""

from dataclasses import dataclass

from perfuse import (
    Component,
    Dim,
    Recipe,
    Role,
    Signature,
    TensorSpec,
    Transform,
    TransformManifest,
    When,
    hookimpl,
    step,
)
from perfuse.errors import InputError
from perfuse.spec import ComponentSpec


@hookimpl
def perfuse_transforms():
    return [TransformManifest(name="skipping", impl=f"{__name__}:Skipping")]


@dataclass(frozen=True, kw_only=True)
class Options:
    #: The denoiser is asked once in so many steps.
    every: int = 2
    #: How much of a pixel comes from its neighbours, 0 to 1.
    soft: float = 0.5

    def __post_init__(self):
        if self.every < 1:
            raise InputError(f"every={self.every} was given; it must be at least 1.")


PICTURE = ("batch", 3, "height", "width")


@dataclass(frozen=True, kw_only=True)
class Softener(Recipe):
    soft: float

    def __call__(self):
        import torch
        from torch import nn

        class Soften(nn.Module):
            def __init__(self, soft):
                super().__init__()
                self.soft = soft
                kernel = torch.full((3, 1, 5, 5), 1 / 25)
                self.register_buffer("kernel", kernel)

            def forward(self, sample):
                near = torch.nn.functional.conv2d(sample, self.kernel, padding=2, groups=3)
                edge = torch.sigmoid(8 * (sample - near).abs())  # where pictures change, less
                return (sample + self.soft * (near - sample) * (1.5 - edge),)

        return Soften(self.soft).eval()


SPEC = ComponentSpec(
    name="softener",
    role=Role.OTHER,
    class_name="Softener",
    folder="softener",
    config={},
    signature=Signature(
        inputs=(TensorSpec(name="sample", dtype="float", shape=PICTURE),),
        outputs=(TensorSpec(name="softened", dtype="float", shape=PICTURE),),
    ),
    dims={
        "batch": Dim(example=2),
        "height": Dim(example=12, smallest=2),
        "width": Dim(example=10, smallest=2),
    },
)


@dataclass(frozen=True)
class Asks:
    every: int

    def __call__(self, tools, index):
        return index % self.every == 0


@step(outputs=("decoded",))
def soften(tools, decoded, output_type):
    if output_type == "latent":
        return {"decoded": decoded}
    return {"decoded": tools.program("softener")(sample=decoded)["softened"]}


class Skipping(Transform):
    Options = Options
    approximate = True

    def apply(self, plan, options):
        def change(task):
            seldom = When(
                name="predict_seldom", condition=Asks(options.every), then=task.find("predict")
            )
            return task.replace("predict", seldom).insert(soften, after="decode")

        component = Component(
            spec=SPEC, build=Softener(soft=options.soft), fingerprint=f"softener {options.soft}"
        )
        return plan.with_component(component).with_tasks(change)
