"""Results files: what is written reads back, what is damaged or of another schema is refused."""

import dataclasses
import json

import jsonschema
import pytest
from tests.conformance.runs import component, draw, make_run

from perfuse_conformance.judge.results import (
    SCHEMA_VERSION,
    Claim,
    Metric,
    Result,
    ResultsError,
    Run,
    Status,
    read_results,
    results_schema,
)


@pytest.fixture
def path(tmp_path):
    """A results file with a result of every status and of every field."""
    odd = [
        component(f"unet/float32/static/{status.value}", status, reason="so", reason_code="code")
        for status in Status
    ]
    full = draw(
        "ddim",
        curve=(0.25, None, 3.0),
        fallbacks=("vae_decoder on the CPU",),
        profiles=("fp16",),
        pictures={"backend": "pictures/ddim.png"},
        log="a line\n",
        input_sha256="0" * 64,
    )
    claim = Claim(level="none", blockers=("unet/late",))
    run = make_run(*odd, full, component("unet/float16/static/late", ratio=None), claim=claim)
    run.write(tmp_path / "results.json")
    return tmp_path / "results.json"


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_what_is_written_reads_back(path):
    run = read_results(path)
    run.write(path.with_name("again.json"))
    assert read_results(path.with_name("again.json")) == run
    assert path.with_name("again.json").read_bytes() == path.read_bytes()
    assert {result.status for result in run.results} == set(Status)
    assert run.results[-2].curve == (0.25, None, 3.0)
    assert run.totals["executed"] == run.totals["selected"] - 3


def test_the_schema_knows_all_that_is_written():
    schema = results_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["version"] == SCHEMA_VERSION
    assert schema["$id"].endswith(f":{SCHEMA_VERSION}")
    parts = schema["$defs"]
    assert parts["status"]["enum"] == [status.value for status in Status]
    for kind, properties in [
        (Run, {*schema["properties"]} - {"totals"}),
        (Result, {*parts["result"]["properties"]}),
        (Metric, {*parts["metric"]["properties"]}),
        (Claim, {*schema["properties"]["claim"]["properties"]}),
    ]:
        assert properties == {field.name for field in dataclasses.fields(kind)}


def test_a_newer_minor_version_reads(path):
    def edit(data):
        data["schema_version"] = "1.7"
        data["weather"] = {"rain": True}
        data["results"][0]["energy_j"] = 3.5
        data["results"][1]["metrics"][0]["per_call"] = [1, 2]
        data["claim"]["granted_by"] = "somebody"

    before = read_results(path)
    run = read_results(change(path, edit))
    assert run.schema_version == "1.7"
    assert run.results == before.results


def put(*keys, value):
    def edit(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit


def drop(*keys):
    def edit(data):
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (put("schema_version", value="2.0"), "'2.0'; this suite reads 1.x. Update perfuse"),
        (put("schema_version", value="0.9"), "'0.9'; this suite reads 1.x"),
        (put("schema_version", value="1"), "$.schema_version"),
        (put("schema_version", value=1.0), "not a results file"),
        (drop("schema_version"), "not a results file"),
        (put("results", 3, "status", value="FINE"), "$.results[3].status: 'FINE'"),
        (drop("results", 3, "status"), "$.results[3]: 'status' is a required property"),
        (drop("claim"), "'claim' is a required property"),
        (drop("claim", "blockers"), "$.claim: 'blockers'"),
        (drop("backend", "target"), "$.backend: 'target'"),
        (drop("suite", "tolerances_sha256"), "$.suite: 'tolerances_sha256'"),
        (drop("totals", "executed"), "$.totals: 'executed'"),
        (put("claim", "level", value="L9"), "$.claim.level"),
        (put("run", "utc", value="yesterday"), "$.run.utc"),
        (put("capabilities", "unet", value={"level": "full", "reason": ""}), "'unet'"),
        (put("capabilities", "a/b/c", value={"level": "perhaps", "reason": ""}), "'perhaps'"),
        (put("results", 1, "metrics", 0, "bound", value="about"), "'about'"),
        (drop("results", 1, "metrics", 0, "limit"), "'limit' is a required property"),
        (put("results", 1, "worst_call", value=-1), "worst_call"),
        (put("results", 1, "run_s", value="long"), "run_s"),
        (put("results", -2, "pictures", "backend", value="../../x.png"), "pictures.backend"),
        (put("results", -2, "pictures", "backend", value="/etc/x.png"), "pictures.backend"),
        (put("results", -2, "pictures", "backend", value="a\\..\\x.png"), "pictures.backend"),
        (put("results", -2, "pictures", "backend", value="http://x/y.png"), "pictures.backend"),
        (put("results", 2, "id", value="host/devices"), "'host/devices' more than once"),
        (put("results", 4, "status", value="PASS"), "it was changed after the run"),
    ],
)
def test_what_is_wrong_is_named(path, edit, said):
    with pytest.raises(ResultsError) as caught:
        read_results(change(path, edit))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("keep", [0, 1, 500, -3])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResultsError, match=r"is not JSON.*Run the suite again"):
        read_results(path)


@pytest.mark.parametrize("text", ["[]", "7", "null", '"1.0"'])
def test_other_json_is_no_results_file(path, text):
    path.write_text(text)
    with pytest.raises(ResultsError, match="an object was expected"):
        read_results(path)


def test_what_cannot_be_read_is_refused(path, tmp_path):
    with pytest.raises(ResultsError, match="it is missing"):
        read_results(tmp_path / "nothing.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="not UTF-8"):
        read_results(path)


def test_a_number_that_json_cannot_hold_writes_nothing(tmp_path):
    run = make_run(component("unet/float32/static/late", ratio=float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metric", "used"),
    [
        (Metric(name="rmse_ratio", value=0.5, limit=2.0), 0.25),
        (Metric(name="rmse_ratio", value=3.0, limit=2.0), 1.5),
        (Metric(name="snr_db", value=100.0, limit=80.0, bound="min"), 0.1),
        (Metric(name="psnr_db", value=20.0, limit=40.0, bound="min"), 10.0),
        (Metric(name="ssim", value=0.99, limit=0.98, bound="min"), 0.5),
        (Metric(name="agreement", value=1.0, limit=1.0, bound="min"), 0.0),
        (Metric(name="agreement", value=0.9, limit=1.0, bound="min"), float("inf")),
        (Metric(name="lpips", value=0.0, limit=0.0), 0.0),
        (Metric(name="lpips", value=1e-9, limit=0.0), float("inf")),
        (Metric(name="lpips", value=1e-9), None),
        (Metric(name="flip", value=None, limit=0.1), None),
    ],
)
def test_how_much_of_a_limit_is_used(metric, used):
    assert metric.used == (None if used is None else pytest.approx(used))
    if metric.used is not None:
        assert metric.fits == (metric.used <= 1)
