"""Known failures: what a file of them may say, and what becomes of each result."""

import datetime
from dataclasses import replace

import pytest

from perfuse.errors import ConfigError
from perfuse_conformance.cases.catalogue import Capability, cases_of
from perfuse_conformance.judge.expectations import (
    LONGEST,
    Expectation,
    Expectations,
    apply,
    expect_one,
    expected,
    read_expectations,
    read_waivers,
)
from perfuse_conformance.judge.levels import claim_of
from perfuse_conformance.judge.results import Result, Run, Status

TODAY = datetime.date(2026, 11, 20)
LATE = "component/unet/float32/static/late"
EARLY = "component/unet/float32/static/early"
WHO = {"today": TODAY, "model": "shapes", "device": "cpu", "backend": "acme"}

ENTRY = f"""\
[[expect]]
id = "{LATE}"
reason = "the softmax overflows"
link = "https://example.org/issues/12"
expires = 2027-01-31
"""


@pytest.fixture
def read(tmp_path):
    """``read(text)``: the entries of a file with that text."""

    def reads(text=ENTRY):
        path = tmp_path / "conformance.toml"
        path.write_text(text, encoding="utf-8")
        return read_expectations(path)

    return reads


def result(id=LATE, status=Status.FAIL_MISMATCH):
    return Result(
        id=id,
        level="L1",
        status=status,
        reason_code="mismatch",
        reason="snr_db 12 (at least 80)",
        component="unet",
    )


# --- the file ---------------------------------------------------------------------------------


def test_an_entry(read):
    (entry,) = read(ENTRY + 'model = "sdxl"\ndevice = "GPU.1"\n').entries
    assert (entry.id, entry.model, entry.device) == (LATE, "sdxl", "GPU.1")
    assert entry.expires == datetime.date(2027, 1, 31)
    assert read("").entries == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (f'id = "{LATE}"\n', "", r"entry 1 \(no id\): it has no id"),
        ('reason = "the softmax overflows"\n', "", f"entry 1 \\({LATE}\\): it has no reason"),
        ('link = "https://example.org/issues/12"\n', "", "it has no link"),
        ("expires = 2027-01-31\n", "", "it has no expires"),
        ("expires = 2027-01-31", 'expires = "2027-01-31"', "write a date"),
        ("expires = 2027-01-31", "expires = 2027-01-31T10:00:00", "write a date"),
        ("the softmax overflows", "  ", "reason is '  '; write some words"),
        ("https://example.org", "see", "give the https:// address"),
        ("/late", "/*", "its id is a pattern"),
        ("/late", "/lat?", "its id is a pattern"),
        ("/late", "/[el]ate", "its id is a pattern"),
        ("reason", "resaon", "it has no reason"),
        ("expires", "level = 1\nexpires", "it has 'level'; it may have id, .*, model, device"),
        ("expires", 'backend = "acme"\nexpires', "it has 'backend'"),
        ("[[expect]]", "[[xfail]]", r"has xfail; it may have \[\[expect\]\] alone"),
        ("[[expect]]", "[expect]", r"write tables, \[\[expect\]\]"),
        ("[[expect]]", "expect = [3]\n[[other]]", "has other"),
        ('reason = "', "reason = ", "is not TOML"),
    ],
)
def test_what_a_file_may_not_say(read, old, new, said):
    assert old in ENTRY
    with pytest.raises(ConfigError, match=said) as caught:
        read(ENTRY.replace(old, new, 1))
    assert "conformance.toml" in str(caught.value)


def test_an_entry_that_is_no_table(read):
    with pytest.raises(ConfigError, match=r"entry 1 \(no table\): it is 3"):
        read("expect = [3]")


def test_an_entry_twice(read):
    with pytest.raises(ConfigError, match=f"entry 2 \\({LATE}\\): it is there twice"):
        read(ENTRY + ENTRY)
    assert len(read(ENTRY + ENTRY + 'model = "sdxl"\n').entries) == 2


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        read_expectations(tmp_path / "absent.toml")


# --- results ----------------------------------------------------------------------------------


def test_an_expected_failure(read):
    (known, other), complaints = apply(read(), [result(), result(EARLY, Status.PASS)], **WHO)
    assert known.status is Status.XFAIL
    assert not known.status.failed
    assert not known.status.counts
    for words in ("softmax", "2027-01-31", "https://example.org/issues/12", "snr_db 12"):
        assert words in known.reason
    assert known.reason_code == "mismatch"
    assert other == result(EARLY, Status.PASS)
    assert complaints == []


@pytest.mark.parametrize("status", [s for s in Status if s.name.startswith("FAIL")])
def test_any_way_to_fail_can_be_expected(read, status):
    (known,), complaints = apply(read(), [result(status=status)], **WHO)
    assert (known.status, complaints) == (Status.XFAIL, [])


@pytest.mark.parametrize(
    "status",
    [Status.PASS, Status.QUALITY_WARNING, Status.PASS_FALLBACK, Status.UNDER_DECLARED],
)
def test_a_case_that_passes_after_all(read, status):
    (known,), complaints = apply(read(), [result(status=status)], **WHO)
    assert known.status is Status.XPASS
    assert known.status.failed
    (complaint,) = complaints
    assert LATE in complaint
    assert "remove the entry" in complaint


def test_a_case_that_is_declined_does_not_fail(read):
    (known,), complaints = apply(read(), [result(status=Status.NOT_SUPPORTED)], **WHO)
    assert known.status is Status.NOT_SUPPORTED
    assert "NOT_SUPPORTED; remove the entry" in complaints[0]


@pytest.mark.parametrize("status", [Status.NOT_RUN, Status.ENV_MISSING])
def test_a_case_that_could_not_be_asked_says_nothing(read, status):
    (known,), complaints = apply(read(), [result(status=status)], **WHO)
    assert (known.status, complaints) == (status, [])


def test_a_typo_fails_the_run(read):
    results, complaints = apply(read(), [result(EARLY, Status.PASS)], **WHO)
    assert results == [result(EARLY, Status.PASS)]
    assert "no case of the run has this id" in complaints[0]
    # Ids are whole: a part of one is another id.
    _, complaints = apply(read(ENTRY.replace("/late", "/lat")), [result()], **WHO)
    assert len(complaints) == 1


def test_a_case_above_the_level_is_not_missed(read):
    entries = read(ENTRY.replace(LATE, "draw/float32/ddim"))
    assert apply(entries, [result(EARLY, Status.PASS)], level="L1", **WHO)[1] == []
    assert len(apply(entries, [result(EARLY, Status.PASS)], level="L2", **WHO)[1]) == 1
    unknown = read(ENTRY.replace(LATE, "drawn/float32/ddim"))
    assert len(apply(unknown, [], level="L0", **WHO)[1]) == 1


def test_an_expired_entry_excuses_nothing(read):
    last = {**WHO, "today": datetime.date(2027, 1, 31)}
    assert apply(read(), [result()], **last)[0][0].status is Status.XFAIL
    after = {**WHO, "today": datetime.date(2027, 2, 1)}
    (known,), complaints = apply(read(), [result()], **after)
    assert known == result()
    assert "it expired on 2027-01-31" in complaints[0]


def test_an_entry_without_an_end_in_sight(read):
    last = TODAY + LONGEST
    entries = read(ENTRY.replace("2027-01-31", str(last)))
    assert apply(entries, [result()], **WHO)[1] == []
    entries = read(ENTRY.replace("2027-01-31", str(last + datetime.timedelta(days=1))))
    (known,), complaints = apply(entries, [result()], **WHO)
    assert known == result()
    assert f"more than 180 days ahead; the last day to name is {last}" in complaints[0]


@pytest.mark.parametrize(
    ("line", "model", "device", "meant"),
    [
        ('model = "shapes"', "shapes", "cpu", True),
        ('model = "sdxl"', "/somewhere/sdxl", "cpu", True),
        ('model = "sdxl"', "shapes", "cpu", False),
        ('model = "sdxl"', "/somewhere/sdxl-turbo", "cpu", False),
        ('device = "cpu"', "shapes", "cpu", True),
        ('device = "cuda"', "shapes", "cuda:1", False),
    ],
)
def test_entries_for_one_model_or_device(read, line, model, device, meant):
    who = {**WHO, "model": model, "device": device}
    (known,), complaints = apply(read(ENTRY + line + "\n"), [result()], **who)
    assert known.status is (Status.XFAIL if meant else Status.FAIL_MISMATCH)
    assert complaints == []
    # One that is not meant is not missed either.
    assert len(apply(read(ENTRY + line + "\n"), [], **who)[1]) == meant


# --- waivers ----------------------------------------------------------------------------------


@pytest.fixture
def waivers(tmp_path):
    def reads(text):
        path = tmp_path / "waivers.toml"
        path.write_text(text, encoding="utf-8")
        return read_waivers(path)

    return reads


WAIVER = ENTRY.replace("[[expect]]", "[[waive]]") + 'backend = "acme"\n'


def test_a_waiver_lets_an_expected_failure_count(read, waivers):
    (known,), complaints = apply(read(), [result()], waivers=waivers(WAIVER), **WHO)
    assert known.status is Status.WAIVED
    assert known.status.counts
    assert complaints == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("acme", "other"),
        ("/late", "/early"),
        ("2027-01-31", "2026-11-19"),
        ("backend", 'model = "sdxl"\nbackend'),
    ],
)
def test_a_waiver_for_something_else(read, waivers, old, new):
    text = WAIVER.replace(old, new)
    assert text != WAIVER
    (known,), _ = apply(read(), [result()], waivers=waivers(text), **WHO)
    assert known.status is Status.XFAIL


def test_a_waiver_alone_excuses_nothing(waivers):
    (known,), _ = apply(Expectations(), [result()], waivers=waivers(WAIVER), **WHO)
    assert known == result()


def test_a_waiver_names_its_backend(waivers):
    with pytest.raises(ConfigError, match="it has no backend"):
        waivers(WAIVER.replace('backend = "acme"\n', ""))


def test_the_suite_waives_nothing_yet():
    assert read_waivers().entries == ()


# --- whole runs -------------------------------------------------------------------------------


def run(*results):
    supported = {"level": "full", "reason": ""}
    key = ("unet", "float32", "static")
    return Run(
        suite={"version": "1.0"},
        run={"level": "L1", "model": "shapes"},
        host={},
        backend={"target": "acme:cpu", "device": "cpu"},
        capabilities={"/".join(key): supported},
        claim=claim_of(results, {key: Capability(**supported)}, "L1"),
        results=results,
    )


HOST = Result(id="host/devices", level="L0", status=Status.PASS)


def soon(text=ENTRY):
    """An entry that holds today, whichever day the tests run."""
    day = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=30)
    return text.replace("2027-01-31", str(day))


def test_an_expected_failure_grants_no_level(tmp_path):
    path = tmp_path / "conformance.toml"
    path.write_text(soon(), encoding="utf-8")
    whole = run(HOST, result(EARLY, Status.PASS), result())
    found, complaints = expected(whole, path)
    assert [r.status for r in found.results] == [Status.PASS, Status.PASS, Status.XFAIL]
    assert found.claim.level == "L0"
    assert found.claim.blockers == (LATE,)
    assert complaints == []


def test_a_pass_that_was_not_expected_takes_the_level_away(tmp_path):
    path = tmp_path / "conformance.toml"
    path.write_text(soon(), encoding="utf-8")
    whole = run(HOST, result(EARLY, Status.PASS), result(status=Status.PASS))
    assert whole.claim.level == "L1"
    found, complaints = expected(whole, path)
    assert found.claim.level == "L0"
    assert len(complaints) == 1


def test_without_a_file_nothing_changes():
    whole = run(HOST, result())
    assert expected(whole, None) == (whole, [])
    assert expect_one(result(), None, model="shapes", device="cpu") == result()


def test_one_result(tmp_path):
    path = tmp_path / "conformance.toml"
    path.write_text(soon(ENTRY + 'device = "cpu"\n'), encoding="utf-8")
    one = expect_one(result(), path, model="shapes", device="cpu")
    assert one.status is Status.XFAIL
    assert expect_one(result(), path, model="shapes", device="gpu") == result()
    assert expect_one(result(EARLY), path, model="shapes", device="cpu") == result(EARLY)
    assert expect_one(
        replace(one, status=Status.PASS), path, model="shapes", device="cpu"
    ).status.failed


def test_the_level_of_an_id_is_that_of_its_case():
    from perfuse.sources.opening import open_model

    spec = open_model(None).spec
    every = {
        (component, precision, mode): Capability(
            level="unsupported" if precision == "float16" else "full", reason="-"
        )
        for component in spec.components
        for precision in ("float32", "float16", "bfloat16")
        for mode in ("static", "symbolic")
    }
    cases = cases_of(spec, every, ("float32", "bfloat16"), "L3")
    assert {case.kind for case in cases} >= {"host", "refusal", "component", "draw", "quality"}
    for case in cases:
        entries = Expectations(entries=(replace(_entry(), id=case.id),))
        at = {
            level: apply(entries, [], level=level, **WHO)[1] for level in ("L0", "L1", "L2", "L3")
        }
        assert [level for level, complaints in at.items() if complaints] == [
            level for level in at if level >= case.level
        ], case.id


def _entry():
    return Expectation(id=LATE, reason="why", link="https://example.org", expires=TODAY + LONGEST)
