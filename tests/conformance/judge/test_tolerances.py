"""The file of limits: what is read of it, and every way in which it must not be changed."""

import dataclasses
import math
import re
import subprocess
import sys

import pytest

from perfuse.errors import InputError
from perfuse_conformance.judge import ratchet
from perfuse_conformance.judge.ratchet import LARGEST_SLACK, offences, released_table
from perfuse_conformance.judge.results import Metric
from perfuse_conformance.judge.tolerances import (
    TOLERANCES,
    Tolerances,
    TolerancesError,
    error_of,
)

SMALL = """\
version = "1.1"

[[limit]]
kind = "component"
precision = "float32"
metric = "rmse_ratio"
bound = "max"
limit = 3.0
floor = 1e-7
observed_p95 = 1.5
evidence = "a run"
rationale = "a reason"

[[limit]]
kind = "picture"
precision = "float32"
metric = "psnr_db"
bound = "min"
limit = 50.0
resolution = 58.9
observed_p95 = 120.0
evidence = "a run"
rationale = "a reason"

[released]
version = "1.0"
limits = [
  { kind = "component", precision = "float32", metric = "rmse_ratio", bound = "max", limit = 3.0, floor = 1e-7 },
  { kind = "picture", precision = "float32", metric = "psnr_db", bound = "min", limit = 50.0, resolution = 58.9 },
]
"""


@pytest.fixture
def changed(tmp_path):
    """``changed(old, new, …)``: what the ratchet says of the small file with words replaced."""

    def change(*pairs):
        text = SMALL
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "tolerances.toml"
        path.write_text(text, encoding="utf-8")
        return offences(path, suite_version="1.1")

    return change


LOOSENED = 'loosened = { from = 3.0, in_version = "1.1", reason = "engine X fuses" }\n'


# --- the suite's own file ---------------------------------------------------------------------


def test_the_suite_s_limits_keep_the_rules():
    assert offences() == []


def test_every_kind_has_limits_at_every_precision():
    tolerances = Tolerances.load()
    for kind in ("component", "forced", "free", "picture", "repeat", "quality"):
        for precision in ("float32", "float16", "bfloat16"):
            assert tolerances.limits(kind, precision)


def test_what_has_no_limit_is_an_error_not_a_pass():
    tolerances = Tolerances.load()
    for kind, precision in (("component", "float8"), ("compnent", "float32")):
        with pytest.raises(InputError, match=f"{kind!r} at {precision!r}.*component at float32"):
            tolerances.limits(kind, precision)


def test_limits_cannot_be_changed_or_replaced():
    tolerances = Tolerances.load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        tolerances.entries[0].limit = 1e9
    with pytest.raises(dataclasses.FrozenInstanceError):
        tolerances.entries = ()
    with pytest.raises(TypeError):
        Tolerances.load(TOLERANCES)


def test_the_hash_is_the_file_s(tmp_path):
    path = tmp_path / "tolerances.toml"
    path.write_bytes(TOLERANCES.read_bytes())
    assert Tolerances.read(path).sha256 == Tolerances.load().sha256
    path.write_bytes(TOLERANCES.read_bytes() + b"\n")
    assert Tolerances.read(path).sha256 != Tolerances.load().sha256


def test_the_command_says_one_line_an_offence(monkeypatch, capsys):
    command = [sys.executable, "-m", "perfuse_conformance.ratchet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    monkeypatch.setattr(ratchet, "offences", lambda: ["one", "two"])
    assert ratchet.main([]) == 1
    assert capsys.readouterr().out == "one\ntwo\n"
    assert ratchet.main(["--limits", "mine.toml"]) == 2


def test_a_damaged_file_is_one_clear_error(tmp_path):
    path = tmp_path / "tolerances.toml"
    for text in ("version = ", "", SMALL.replace("limit = 3.0", 'limit = "3"', 1)):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(TolerancesError, match=str(path)):
            Tolerances.read(path)
    with pytest.raises(TolerancesError, match="absent"):
        Tolerances.read(tmp_path / "absent.toml")


# --- the ratchet ------------------------------------------------------------------------------


def test_the_small_file_keeps_the_rules(changed):
    assert changed() == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("floor = 1e-7\n", "flor = 1e-7\n", "component float32 rmse_ratio: .*'flor'"),
        ('version = "1.1"\n', 'version = "1.1"\nlimits = 3\n', "the file: .*'limits'"),
        ("limit = 3.0, floor", "limt = 3.0, floor", "released component float32 rmse_ratio"),
        ('evidence = "a run"\n', "", "rmse_ratio: 'evidence' is a required property"),
        ('rationale = "a reason"', 'rationale = "  "', "rmse_ratio: "),
        ('kind = "component"', 'kind = "componet"', "componet float32 rmse_ratio: "),
        ('bound = "max"', 'bound = "min"', "component .*bound of rmse_ratio is max"),
        ('bound = "min"', 'bound = "max"', "picture .*bound of psnr_db is min"),
        ("limit = 3.0\n", "limit = inf\n", "component .*finite"),
        ("observed_p95 = 1.5\n", "observed_p95 = nan\n", "component .*finite"),
        ("limit = 3.0\n", "limit = true\n", "component .*boolean|component .*number"),
        ('version = "1.1"', 'version = "1.1.0"', "version"),
    ],
)
def test_its_form(changed, old, new, said):
    found = changed(old, new)
    assert any(re.search(said, line) for line in found), found


def test_an_entry_twice(changed):
    entry = SMALL[SMALL.index("[[limit]]") : SMALL.index('[[limit]]\nkind = "picture"')]
    assert changed("[released]", f"{entry}[released]") == [
        "component float32 rmse_ratio: it is there twice"
    ]


def test_its_version_is_the_suite_s(changed):
    (line,) = changed('version = "1.1"', 'version = "1.2"')
    assert "its version is 1.2, the suite's 1.1" in line


def test_a_limit_far_from_what_was_seen(changed):
    assert changed("observed_p95 = 1.5", "observed_p95 = 0.75") == []
    (line,) = changed("observed_p95 = 1.5", "observed_p95 = 0.74")
    assert "the limit 3 is 4.05 times the observed 0.74" in line
    (line,) = changed("observed_p95 = 1.5", "observed_p95 = 0")
    assert "inf times" in line


def test_a_limit_within_what_was_seen(changed):
    (line,) = changed("observed_p95 = 1.5", "observed_p95 = 3.1")
    assert "right results would fail" in line


def test_slack_of_decibels_counts_from_the_resolution(changed):
    # 12 dB are a factor of 3.98; those between 58.9 and 120 nobody needs.
    def both(limit):
        return changed("limit = 50.0\n", f"limit = {limit}\n", "limit = 50.0,", f"limit = {limit},")

    assert both(46.9) == []
    (line,) = both(46.8)
    assert "picture float32 psnr_db: the limit 46.8 is 4.03 times" in line
    (line,) = changed("resolution = 58.9\nobserved", "observed")
    assert "picture float32 psnr_db: the limit 50 is 3.16e+03 times the observed 120" in line


def test_looser_needs_words(changed):
    (line,) = changed("limit = 3.0\n", "limit = 3.5\n")
    assert "limit 3 to 3.5" in line
    assert "has no loosened" in line
    assert changed("limit = 3.0\n", f"limit = 3.5\n{LOOSENED}") == []
    (line,) = changed("limit = 50.0\n", "limit = 49.0\n")
    assert "picture float32 psnr_db" in line
    assert "limit 50 to 49" in line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"engine X fuses"', '""', "component float32 rmse_ratio.loosened|does not match"),
        ("from = 3.0", "from = 3.4", "loosened.from is 3.4, the release had 3"),
        ('in_version = "1.1"', 'in_version = "1.0"', "Raise the suite's minor version"),
        ('in_version = "1.1"', 'in_version = "1.2"', "not after this version"),
        (', reason = "engine X fuses"', "", "'reason' is a required property"),
        ("from = 3.0", "fron = 3.0", "fron"),
    ],
)
def test_the_words_have_to_be_right(changed, old, new, said):
    found = changed("limit = 3.0\n", "limit = 3.5\n" + LOOSENED.replace(old, new))
    assert any(re.search(said, line) for line in found), found


def test_looser_without_a_new_version(changed):
    lines = changed(
        "limit = 3.0\n",
        f"limit = 3.5\n{LOOSENED}",
        '[released]\nversion = "1.0"',
        '[released]\nversion = "1.1"',
    )
    assert [line for line in lines if "Raise the suite's minor version" in line] == lines != []


def test_a_floor_or_a_resolution_loosens_too(changed):
    (line,) = changed("floor = 1e-7\n", "floor = 1e-3\n")
    assert "floor 1e-07 to 0.001" in line
    (line,) = changed("resolution = 58.9\n", "resolution = 50.0\n")
    assert "resolution 58.9 to 50" in line
    assert changed("floor = 1e-7\n", f"floor = 1e-3\n{LOOSENED}") == []


def test_tighter_and_new_are_free(changed):
    assert changed("limit = 3.0\n", "limit = 2.0\n", "floor = 1e-7\n", "") == []
    assert changed("limit = 50.0\n", "limit = 58.0\n") == []
    assert (
        changed(
            SMALL[
                SMALL.index('  { kind = "picture"') : SMALL.index(
                    "]\n", SMALL.index('  { kind = "picture"')
                )
            ],
            "",
        )
        == []
    )


def test_what_was_released_stays(changed):
    entry = SMALL[SMALL.index('[[limit]]\nkind = "picture"') : SMALL.index("[released]")]
    assert changed(entry, "") == [
        "picture float32 psnr_db: it was released and is gone; a limit stays"
    ]
    # Under another name it is another one.
    found = changed('kind = "component"', 'kind = "forced"')
    assert found == ["component float32 rmse_ratio: it was released and is gone; a limit stays"]


def test_a_release_from_the_future(changed):
    found = changed('[released]\nversion = "1.0"', '[released]\nversion = "2.0"')
    assert found == ["released: its version is beyond the file's"]


def test_the_printed_release_is_read_back(tmp_path):
    path = tmp_path / "tolerances.toml"
    path.write_text(SMALL, encoding="utf-8")
    table = released_table(Tolerances.read(path))
    path.write_text(SMALL[: SMALL.index("[released]")] + table, encoding="utf-8")
    assert 'version = "1.1"' in table
    assert offences(path, suite_version="1.1") == []
    path.write_text(
        path.read_text(encoding="utf-8").replace("= 3.0\n", "= 3.5\n"), encoding="utf-8"
    )
    assert len(offences(path, suite_version="1.1")) == 1


# --- what is done with a limit ----------------------------------------------------------------


def test_errors_double_when_things_are_twice_as_bad():
    assert error_of("snr_db", 40) == pytest.approx(0.01)
    assert error_of("psnr_db", 54) / error_of("psnr_db", 60) == pytest.approx(2, rel=0.01)
    assert error_of("ssim", 0.9) == error_of("agreement", 0.9) == pytest.approx(0.1)
    assert error_of("rmse_ratio", 2.5) == error_of("flip", 2.5) == 2.5


@pytest.mark.parametrize(
    ("metric", "share"),
    [
        (Metric(name="rmse_ratio", value=1.5, limit=3, bound="max"), 0.5),
        (Metric(name="snr_db", value=86.02, limit=80, bound="min"), 0.5),
        (Metric(name="ssim", value=0.9, limit=0.95, bound="min"), 2),
        (Metric(name="rmse_ratio", value=None, limit=3, bound="max"), None),
        (Metric(name="rmse_ratio", value=0, limit=0, bound="max"), 0),
        (Metric(name="rmse_ratio", value=1e-9, limit=0, bound="max"), math.inf),
        (Metric(name="lpips", value=4), None),
    ],
)
def test_how_much_of_a_limit_is_used(metric, share):
    found = metric.used
    assert found is None if share is None else found == pytest.approx(share, rel=1e-3)
    if found is not None:
        assert metric.fits == (found <= 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_fits_no_limit(value):
    for limit in Tolerances.load().entries:
        metric = limit.measured(value)
        assert metric.value is None
        assert not metric.fits


def test_a_limit_judges_on_both_sides_of_itself():
    for limit in Tolerances.load().entries:
        better = -1e-6 if limit.bound == "max" else 1e-6
        assert limit.measured(limit.limit).fits
        assert limit.measured(limit.limit + better).fits
        assert not limit.measured(limit.limit - better).fits
        assert limit.slack <= LARGEST_SLACK
