"""Finding, checking and describing safetensors files, and loading them into a module."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from perfuse.errors import CheckpointError, WeightsError
from perfuse.sources.weights import Weights, choose, variants

MAIN = "diffusion_pytorch_model"
A, B, C = np.ones((2, 3), np.float32), np.zeros(4, np.float16), np.array(7, np.int64)


def index(folder: Path, name: str, placed: dict[str, str]) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": placed}), "utf-8")


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def is_mapped(tensor: Any, file: Path) -> bool:
    """Whether a tensor's memory is that of a file (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(address, 16) for address in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.endswith(str(file))
    return False


@pytest.mark.parametrize("stem", [MAIN, "model"])
def test_one_file(tmp_path: Path, stem: str) -> None:
    save_file({"a": A, "b": B, "c": C}, tmp_path / f"{stem}.safetensors", {"format": "pt"})
    weights = Weights.open(tmp_path)
    assert dict(weights.shapes) == {
        "a": ("float32", (2, 3)),
        "b": ("float16", (4,)),
        "c": ("int64", ()),
    }
    assert (weights.parameters, weights.total_bytes) == (11, 24 + 8 + 8)
    assert weights.files == (tmp_path / f"{stem}.safetensors",)
    assert weights.variant is None


def test_variant_and_the_plain_file_in_its_place(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / f"{MAIN}.safetensors")
    save_file({"a": A.astype(np.float16)}, tmp_path / f"{MAIN}.fp16.safetensors")
    save_file({"a": A}, tmp_path / f"{MAIN}.non_ema.safetensors")
    assert Weights.open(tmp_path).shapes["a"][0] == "float32"
    half = Weights.open(tmp_path, variant="fp16")
    assert (half.shapes["a"][0], half.variant) == ("float16", "fp16")
    assert Weights.open(tmp_path, variant="bf16").variant is None
    names = [path.name for path in tmp_path.iterdir()]
    assert variants(names) == (None, "fp16", "non_ema")


@pytest.mark.parametrize(
    ("variant", "shard", "listing"),
    [
        (None, "-0000{}-of-00002.safetensors", ".safetensors.index.json"),
        ("fp16", ".fp16-0000{}-of-00002.safetensors", ".safetensors.index.fp16.json"),
        ("fp16", "-0000{}-of-00002.fp16.safetensors", ".safetensors.index.fp16.json"),
        ("fp16", "-0000{}-of-00002.fp16.safetensors", ".fp16.safetensors.index.json"),
        ("fp16", "-0000{}-of-00002.fp16.safetensors", ".safetensors.fp16.index.json"),
    ],
)
@pytest.mark.parametrize("stem", [MAIN, "model"])
def test_shards(tmp_path: Path, stem: str, variant: str | None, shard: str, listing: str) -> None:
    one, two = (stem + shard.format(i) for i in (1, 2))
    save_file({"a": A}, tmp_path / one)
    save_file({"b": B, "c": C}, tmp_path / two)
    index(tmp_path, stem + listing, {"a": one, "b": two, "c": two})
    weights = Weights.open(tmp_path, variant=variant)
    assert set(weights.shapes) == {"a", "b", "c"}
    assert [path.name for path in weights.files] == [one, two]
    assert weights.variant == variant
    assert variants(path.name for path in tmp_path.iterdir()) == (variant,)


def test_variants_are_not_mixed_up_with_each_other() -> None:
    names = [
        f"{MAIN}.safetensors.index.json",
        f"{MAIN}-00001-of-00001.safetensors",
        f"{MAIN}.safetensors.index.fp16.json",
        f"{MAIN}.fp16-00001-of-00001.safetensors",
        "config.json",
        f"{MAIN}.bin",
    ]
    plain, half = (choose(names, variant, where="unet") for variant in (None, "fp16"))
    assert (plain.index, plain.files) == (names[0], (names[1],))
    assert (half.index, half.files) == (names[2], (names[3],))


@pytest.mark.parametrize(
    ("files", "variant", "said"),
    [
        ([], None, ["no weights", "holds nothing"]),
        (["config.json"], None, ["no weights", "config.json"]),
        (
            [f"{MAIN}.bin"],
            None,
            ["only diffusion_pytorch_model.bin", "run code", "save_pretrained"],
        ),
        (["pytorch_model.bin"], None, ["only pytorch_model.bin", "safe_serialization"]),
        (["x.ckpt", "y.pt", "z.pth"], None, ["x.ckpt, y.pt, z.pth"]),
        ([f"{MAIN}.fp16.safetensors"], None, ["no plain", "variants: fp16", "variant='fp16'"]),
        ([f"{MAIN}.fp16.safetensors"], "bf16", ["variants: fp16"]),
        (["model.safetensors"], "../fp16", ["'../fp16'", "part of a file name"]),
        (["model-00001-of-00002.safetensors"], None, ["1 shards", "index.json"]),
    ],
)
def test_nothing_to_read(
    tmp_path: Path, files: list[str], variant: str | None, said: list[str]
) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(WeightsError) as error:
        Weights.open(tmp_path, variant=variant)
    assert all(words in str(error.value) for words in said), str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Weights.open(tmp_path / "unet")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        Weights.open(tmp_path / "file")


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "at least 8 bytes"),
        (b"\x01\x02", "at least 8 bytes"),
        (struct.pack("<Q", 10**15) + b"{}", "header should have 1000000000000000 bytes"),
        (struct.pack("<Q", 99) + b"{}", "header should have 99 bytes, the whole file has 10"),
        (struct.pack("<Q", 4) + b"{{{{", "not what safetensors writes"),
        (struct.pack("<Q", 2) + b"[]", "not what safetensors writes"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", "not what safetensors writes"),
        (struct.pack("<Q", 2000) + b"[" * 2000, "not what safetensors writes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "header should"),
    ],
)
def test_damaged_headers(tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(WeightsError, match="is damaged") as error:
        Weights.open(tmp_path)
    assert said in str(error.value), str(error.value)
    assert "model.safetensors" in str(error.value)
    assert "again" in str(error.value)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry()}, bytes(7), "the file has"),
        ({"a": entry()}, bytes(9), "the file has"),
        ({"a": entry(offsets=(0, 12))}, bytes(12), "should be the 8 bytes from 0"),
        ({"a": entry(offsets=(4, 12))}, bytes(12), "should be the 8 bytes from 0"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), "b, float32"),
        ({"a": entry(), "b": entry(offsets=(0, 8))}, bytes(8), "should be the 8 bytes from 8"),
        ({"a": entry(shape=(-2,))}, bytes(8), "not what safetensors"),
        ({"a": entry(shape=("2",))}, bytes(8), "not what safetensors"),
        ({"a": entry(shape=2)}, bytes(8), "not what safetensors"),
        ({"a": entry(offsets=(8, 0))}, bytes(8), "should be"),
        ({"a": entry(offsets=(0,))}, bytes(8), "not what safetensors"),
        ({"a": entry(dtype="F31")}, bytes(8), "dtype F31"),
        ({"a": {"dtype": "F32"}}, bytes(8), "data_offsets"),
        ({"a": 3}, bytes(8), "not what safetensors"),
        ({"a": entry(shape=(2**40, 2**40))}, bytes(8), "should be"),
    ],
)
def test_damaged_entries(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(WeightsError, match="is damaged") as error:
        Weights.open(tmp_path)
    assert said in str(error.value), str(error.value)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": A, "b": B}, file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            Weights.open(tmp_path)


@pytest.mark.parametrize(
    ("placed", "said"),
    [
        ({"a": "model-00001-of-00001.safetensors", "z": "model-00001-of-00001.safetensors"}, "z"),
        ({}, "has no weights|no shards|does not place"),
        ({"a": "model-00009-of-00009.safetensors"}, "which is not there"),
        ({"a": "../model-00001-of-00001.safetensors"}, "beside it"),
        ({"a": "/etc/passwd"}, "beside it"),
        ({"a": "sub/model.safetensors"}, "beside it"),
        ({"a": ".."}, "beside it"),
        ({"a": ""}, "beside it"),
        ({"a": 3}, "beside it"),
        ({"a": "..\\model.safetensors"}, "beside it"),
        ({"a": "weights.bin"}, "beside it"),
    ],
)
def test_bad_index(tmp_path: Path, placed: dict[str, Any], said: str) -> None:
    save_file({"a": A}, tmp_path / "model-00001-of-00001.safetensors")
    index(tmp_path, "model.safetensors.index.json", placed)
    if not placed:
        assert not Weights.open(tmp_path).shapes  # an empty index is an empty component
        return
    with pytest.raises(WeightsError, match=said):
        Weights.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', "\x00"])
def test_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"index\.json"):
        Weights.open(tmp_path)


def test_shard_holds_more_than_its_index_says(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / "model-00001-of-00001.safetensors")
    index(tmp_path, "model.safetensors.index.json", {"a": "model-00001-of-00001.safetensors"})
    with pytest.raises(WeightsError, match="holds b, which the index does not place there"):
        Weights.open(tmp_path)


def test_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "model.safetensors"
    outside.parent.mkdir()
    save_file({"a": A}, outside)
    folder = tmp_path / "checkpoint" / "unet"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads to .* outside of the checkpoint"):
        Weights.open(folder)
    (folder / "model.safetensors").unlink()
    inside = tmp_path / "checkpoint" / "shared.safetensors"
    save_file({"a": A}, inside)
    (folder / "model.safetensors").symlink_to("../shared.safetensors")
    assert Weights.open(folder, root=folder.parent).parameters == 6
    with pytest.raises(CheckpointError, match="leads to"):
        Weights.open(folder)


def test_links_of_the_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "unet").mkdir(parents=True)
    for blobs in (repository / "blobs", tmp_path / "blobs" / "ab"):
        blobs.mkdir(parents=True)
        save_file({"a": A}, blobs / "abc")
        link = snapshot / "unet" / "model.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blobs / "abc", link.parent))
        assert Weights.open(snapshot / "unet", root=snapshot).parameters == 6
    save_file({"a": A}, tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads to"):
        Weights.open(snapshot / "unet", root=snapshot)


def test_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": A}, file)
    first = Weights.open(tmp_path).fingerprint
    assert Weights.open(tmp_path).fingerprint == first
    os.utime(file, ns=(1, 1))
    second = Weights.open(tmp_path).fingerprint
    save_file({"b": A}, file)
    os.utime(file, ns=(1, 1))
    assert len({first, second, Weights.open(tmp_path).fingerprint}) == 3


def test_opening_needs_neither_torch_nor_safetensors(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    code = (
        "import sys; from perfuse.sources.weights import Weights\n"
        f"assert Weights.open({str(tmp_path)!r}).parameters == 6\n"
        "assert not {'torch', 'safetensors', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_are_mapped_and_equal(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file({"a": A, "b": B, "c": C}, tmp_path / "model.safetensors")
    found = dict(Weights.open(tmp_path).tensors())
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "a": (2, 3),
        "b": (4,),
        "c": (),
    }
    assert torch.equal(found["a"], torch.ones(2, 3))
    if Path("/proc/self/maps").exists():
        assert is_mapped(found["a"], tmp_path / "model.safetensors")


def test_every_tensor_comes_whatever_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    state = {f"t{i}": np.full((i + 1, 3), i, np.float32) for i in range(20)}
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr("perfuse.sources.weights._WINDOW", 100)
    found = dict(Weights.open(tmp_path).tensors())
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], torch.from_numpy(v)) for k, v in state.items())


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "model.safetensors"
    save_file({"a": A}, file)
    weights = Weights.open(tmp_path)
    file.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        list(weights.tensors())
    file.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        list(weights.tensors())


STATE = {
    "0.weight": A,
    "0.bias": np.arange(2, dtype=np.float32),
    "1.weight": np.ones(2, np.float32),
    "1.bias": np.ones(2, np.float32),
    "1.running_mean": np.ones(2, np.float32),
    "1.running_var": np.ones(2, np.float32),
    "1.num_batches_tracked": np.array(3),
}


class TestLoading:
    """``load_state`` on a module of two layers."""

    @staticmethod
    def module() -> Any:
        from torch import device, nn

        with device("meta"):
            return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def load(self, folder: Path, state: dict[str, Any], **options: Any) -> Any:
        pytest.importorskip("torch")
        from perfuse.models.loading import load_state

        save_file(state, folder / "model.safetensors")
        module = self.module()
        load_state(module, Weights.open(folder), where="unet", **options)
        return module

    def test_equal_dtype_is_not_copied(self, tmp_path: Path) -> None:
        import torch

        module = self.load(tmp_path, STATE)
        assert torch.equal(module[0].bias, torch.tensor([0.0, 1.0]))
        assert int(module[1].num_batches_tracked) == 3
        assert module[0].weight.requires_grad
        if Path("/proc/self/maps").exists():
            assert is_mapped(module[0].weight, tmp_path / "model.safetensors")
            assert is_mapped(module[1].running_var, tmp_path / "model.safetensors")

    def test_cast(self, tmp_path: Path) -> None:
        import torch

        module = self.load(tmp_path, STATE, dtype=torch.bfloat16)
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert module[1].num_batches_tracked.dtype == torch.int64

    def test_dtype_of_the_module_by_default(self, tmp_path: Path) -> None:
        import torch

        half = {k: v.astype(np.float16) if v.ndim else v for k, v in STATE.items()}
        assert {p.dtype for p in self.load(tmp_path, half).parameters()} == {torch.float32}

    def test_rename(self, tmp_path: Path) -> None:
        state = {f"old.{name}": value for name, value in STATE.items()}
        state["ids"] = C
        module = self.load(
            tmp_path,
            state,
            rename=lambda name: None if name == "ids" else name.removeprefix("old."),
        )
        assert np.array_equal(module[0].weight.detach().numpy(), STATE["0.weight"])

    def test_everything_wrong_is_named(self, tmp_path: Path) -> None:
        state = {k: v for k, v in STATE.items() if k not in ("0.bias", "1.weight")}
        state |= {"0.weight": A.T.copy(), "extra": A, "2.bias": B}
        with pytest.raises(WeightsError) as error:
            self.load(tmp_path, state)
        message = str(error.value)
        assert "missing: 0.bias, 1.weight" in message
        assert "unexpected: " in message
        assert all(name in message for name in ("2.bias", "extra"))
        assert "of another shape: 0.weight ([2, 3] expected, [3, 2] found)" in message
        assert "unet" in message
        assert str(tmp_path) in message

    def test_long_lists_are_counted(self, tmp_path: Path) -> None:
        state = {**STATE, **{f"extra.{i:02}": B for i in range(25)}}
        with pytest.raises(WeightsError, match=r"extra\.00, .*extra\.09 and 15 more"):
            self.load(tmp_path, state)

    def test_given_twice(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"given twice: old\.0\.bias"):
            self.load(
                tmp_path,
                {**STATE, "old.0.bias": STATE["0.bias"]},
                rename=lambda name: name.removeprefix("old."),
            )

    def test_no_guessing_of_shapes(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"0\.bias \(\[2\] expected, \[2, 1\] found\)"):
            self.load(tmp_path, {**STATE, "0.bias": np.ones((2, 1), np.float32)})


class TestFolders:
    """``from_pretrained`` and ``save_pretrained`` of a model."""

    @staticmethod
    def model() -> Any:
        pytest.importorskip("torch")
        from perfuse.models import UNet2DModel
        from perfuse_conformance.checkpoints import ddpm_config, randomise

        return randomise(UNet2DModel(**ddpm_config()))

    def test_round_trip(self, tmp_path: Path) -> None:
        import torch

        model = self.model()
        model.save_pretrained(tmp_path / "a" / "b")
        names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
        assert names == ["config.json", f"{MAIN}.safetensors"]
        config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
        assert config["_class_name"] == "UNet2DModel"
        assert "_perfuse_version" in config
        again = type(model).from_pretrained(tmp_path / "a", subfolder="b")
        assert again.config == model.config
        state = again.state_dict()
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        half = type(model).from_pretrained(tmp_path / "a" / "b", torch_dtype=torch.float16)
        assert half.dtype == torch.float16

    def test_an_interrupted_save_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import safetensors.torch

        model = self.model()
        model.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def half_way(_state: Any, path: str, **_: Any) -> None:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(safetensors.torch, "save_file", half_way)
        with pytest.raises(KeyboardInterrupt):
            model.save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_saving_where_nothing_can_be(self, tmp_path: Path) -> None:
        model = self.model()
        (tmp_path / "file").touch()
        with pytest.raises(
            CheckpointError, match="UNet2DModel was to be saved to .*another folder"
        ):
            model.save_pretrained(tmp_path / "file")

    def test_loading_over_itself(self, tmp_path: Path) -> None:
        """The tensors are mapped from the file that is replaced."""
        import torch

        self.model().save_pretrained(tmp_path)
        model = type(self.model()).from_pretrained(tmp_path)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.save_pretrained(tmp_path)
        state = type(model).from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())

    def test_refused(self, tmp_path: Path) -> None:
        from perfuse.models import AutoencoderKL
        from perfuse_conformance.checkpoints import edit_json

        model = self.model()
        load = type(model).from_pretrained
        model.save_pretrained(tmp_path / "unet")
        with pytest.raises(CheckpointError, match="nowhere, which is not there"):
            load(tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match="which is a file"):
            load(tmp_path / "unet" / "config.json")
        with pytest.raises(CheckpointError, match=r"config\.json is missing"):
            load(tmp_path)
        with pytest.raises(CheckpointError, match=r"AutoencoderKL was .* is of a UNet2DModel"):
            AutoencoderKL.from_pretrained(tmp_path / "unet")
        with pytest.raises(WeightsError, match="'fp16' was asked for; .* has: plain"):
            load(tmp_path / "unet", variant="fp16")
        edit_json(tmp_path / "unet" / "config.json", layers_per_block="1")
        with pytest.raises(CheckpointError, match="layers_per_block is '1'; int was expected"):
            load(tmp_path / "unet")
        edit_json(tmp_path / "unet" / "config.json", layers_per_block=2)
        with pytest.raises(WeightsError, match=r"missing: .*resnets\.1\."):
            load(tmp_path / "unet")
        edit_json(tmp_path / "unet" / "config.json", layers_per_block=1, norm_num_groups=5)
        with pytest.raises(CheckpointError, match=r"UNet2DModel cannot be built from .*config"):
            load(tmp_path / "unet")
