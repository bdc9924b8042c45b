"""The report, JUnit and the matrix: everything is there, nothing leads out, nothing is believed."""

import base64
import hashlib
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from tests.conformance.runs import component, draw, make_run, with_pictures

from perfuse_conformance.judge.results import Claim, Metric, Result, ResultsError, Status
from perfuse_conformance.report import matrix, presentation
from perfuse_conformance.report.curves import plot
from perfuse_conformance.report.html import write_report
from perfuse_conformance.report.junit import write_junit

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """What a browser would see: elements with their attributes and text."""

    def __init__(self, path):
        super().__init__()
        self.elements = []
        self.text = ""
        self.scripts = []
        self.styles = []
        self._inside = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else None
        self.text += " "

    def handle_endtag(self, tag):
        self._inside = None
        self.text += " "

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.text += data

    def all(self, tag, cls=None):
        found = [a for t, a in self.elements if t == tag]
        return [a for a in found if cls is None or cls in a.get("class", "").split()]

    def said(self):
        return " ".join(self.text.split())


def report(tmp_path, *runs, sources=None):
    folder = tmp_path / "report"
    path = write_report(runs, folder, sources or [tmp_path] * len(runs))
    assert path == folder / "index.html"
    return Page(path)


# --- the page ---------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    run = make_run(component("unet/float32/static/late"), with_pictures(draw("ddim"), tmp_path))
    page = report(tmp_path, run)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "pictures/", "data:,")), (tag, value)
    assert not [style for style in page.styles if "url(" in style or "@import" in style]
    assert not page.all("link", "stylesheet")
    ids = {a["id"] for _, a in page.elements if "id" in a}
    anchors = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert anchors and set(anchors) <= ids


def test_the_headline_says_the_claim_and_what_blocks_it(tmp_path):
    claim = Claim(level="L1", profiles=("dyn", "fp16"), blockers=("draw/float32/ddim",))
    page = report(tmp_path, make_run(claim=claim))
    said = page.said()
    assert "L1 +dyn +fp16" in said
    assert "Every component computes what the reference computes; one program" in said
    assert "Asked for: L2" in said
    assert "What stands in the way of more: draw/float32/ddim" in said
    for fact in ("torch:cpu torch 2.13.0", "Suite 1.0", "3f3f3f3f3f3f", "2026-11-20", "shapes"):
        assert fact in said


def test_a_run_that_executed_nothing_claims_nothing(tmp_path):
    run = make_run(claim=Claim(level="L2"))
    missing = [
        Result(id=r.id, level=r.level, status=Status.ENV_MISSING, reason="no such device here")
        for r in run.results
    ]
    page = report(tmp_path, replace(run, results=tuple(missing)))
    assert "not executed" in page.said()
    assert page.all("div", "claim") == [{"class": "claim absent"}]
    assert "No case was executed either" in page.said()
    assert "no such device here" in page.said()


def test_what_was_interpreted_is_not_called_executed(tmp_path):
    run = make_run(component("unet/float32/static/late"))
    interpreted = replace(run, backend={**run.backend, "interprets": "npu"})
    said = report(tmp_path, interpreted).said()
    assert "Interpreted, not executed: what npu would be given" in said
    assert "Interpreted" not in report(tmp_path / "executed", run).said()
    svg = matrix.render_matrix(matrix.summarise([interpreted]))
    assert ">npu</text>" in svg and ">interpreted</text>" in svg
    assert "but for npu: interpreted, on a machine without the hardware" in svg
    assert ">interpreted</text>" not in matrix.render_matrix(matrix.summarise([run]))
    write_junit([interpreted], tmp_path / "junit.xml")
    assert 'name="manner" value="interprets npu"' in (tmp_path / "junit.xml").read_text()


def test_every_case_has_a_cell_for_every_backend(tmp_path):
    first = make_run(component("unet/float32/static/early"), component("unet/float32/static/late"))
    middle = component("unet/float32/static/middle", Status.FAIL_MISMATCH, 24.0)
    second = make_run(
        component("unet/float32/static/early"),
        middle,
        component("unet/float32/static/late", Status.QUALITY_WARNING, 1.5),
        target="other:0",
    )
    page = report(tmp_path, first, second)
    names = [a["title"] for a in page.all("th") if "/" in a.get("title", "")]
    assert names == [
        "host/devices",
        *(f"component/unet/float32/static/{n}" for n in ("early", "middle", "late")),
    ]
    cells = [a for a in page.all("a", "cell")]
    assert len(cells) == 7 and len(page.all("span", "none")) == 1
    assert [a["class"] for a in cells if a["data-run"] == "1"] == [
        "cell k-good",
        "cell k-good",
        "cell k-bad",
        "cell k-warn",
    ]
    # The bar says how much of the limit was used: a quarter, three quarters, all.
    widths = [a["style"] for a in page.all("i") if "width" in a.get("style", "")]
    assert {"width:25.0%", "width:75.0%", "width:100.0%"} == set(widths)
    assert "12×" in page.text


def test_models_are_columns_of_their_own(tmp_path):
    runs = [
        make_run(component("unet/float32/static/late"), model=model, target=target)
        for model, target in (("shapes", "a:0"), ("/home/x/sdxl", "a:0"), ("shapes", "b:0"))
    ]
    page = report(tmp_path, *runs)
    said = page.said()
    assert said.index("a:0 shapes b:0 shapes a:0 sdxl") > 0


def test_failures_say_what_where_and_how_much(tmp_path):
    def failed(where, ratio, **more):
        return component(where, Status.FAIL_MISMATCH, ratio, reason_code="rmse", **more)

    crash = Result(
        id="contract/unet/closed",
        level="L1",
        status=Status.FAIL_CRASH,
        component="unet",
        reason="SIGSEGV in the call after close()",
        log="".join(f"line {i}\n" for i in range(40)),
    )
    page = report(
        tmp_path,
        make_run(
            failed("unet/float32/static/early", 4.0, reason="four"),
            failed("unet/float32/static/late", 60.0, reason="sixty", executed_precision="float16"),
            crash,
        ),
    )
    said = page.said()
    assert len(page.all("article", "problem")) == 2
    assert "unet: 2 cases, the worst of them component/unet/float32/static/late sixty" in said
    assert "executed in float16" in said
    assert "at call 2" in said and "output sample" in said
    assert "60 (at most 2), 30× the limit" in said
    assert "The other 1 component/unet/float32/static/early four" in said
    assert "SIGSEGV in the call after close()" in said
    assert "line 39" in said and "line 25" in said and "line 24" not in said


def test_the_log_of_a_crash_says_where_it_was():
    frames = "".join(f"  File {i}\n" for i in range(40))
    crash = f"Fatal Python error: Segmentation fault\n\nCurrent thread:\n{frames}"
    assert presentation.log_said(crash).splitlines()[:4] == [*crash.splitlines()[:4]]
    assert "File 39" not in presentation.log_said(crash)
    assert presentation.log_said(f"loading\n{frames}\n", lines=2) == "  File 38\n  File 39"
    assert presentation.log_said("") == ""


def test_what_neither_passed_nor_failed_is_said(tmp_path):
    fell = component("unet/float32/static/late", Status.PASS_FALLBACK, reason="Conv ran on the CPU")
    expected = component("unet/float32/static/early", Status.XFAIL, 9.0, reason="known: #12")
    page = report(tmp_path, make_run(fell, expected))
    assert "None. No case failed." in page.said()
    assert "Conv ran on the CPU 1 case component/unet/float32/static/late" in page.said()
    assert "known: #12" in page.said()


def test_a_case_can_be_asked_again(tmp_path):
    late = component("unet/float32/static/late", Status.FAIL_MISMATCH, 9.0)
    words = "perfuse conformance --backend a --backend b --report x --option 't=1 2' --seed 3"
    run = make_run(late, model="random-sdxl")
    run = replace(run, run={**run.run, "command": words})
    again = (
        "perfuse conformance --backend acme:npu --level L1 --model random-sdxl --option 't=1 2' "
        "--seed 3 --case component/unet/float32/static/late"
    )
    assert report(tmp_path, run).said().count(again) == 2
    run = replace(run, run={**run.run, "command": "it's no command line"})
    assert "--level L1 --model random-sdxl --case" in report(tmp_path, run).said()


def test_runs_with_other_limits_are_not_compared(tmp_path):
    other = make_run(target="b:0")
    changed = replace(other, suite={**other.suite, "tolerances_sha256": "00" * 32})
    assert "had different suites or limits" in report(tmp_path, make_run(), changed).said()
    assert "had different suites or limits" not in report(tmp_path, make_run(), other).said()


def test_capabilities_have_their_reasons(tmp_path):
    page = report(tmp_path, make_run())
    assert "no halves on this device" in page.said()
    assert {"href": "#reason-1", "title": "no halves on this device"} in page.all("a")


def test_nothing_of_a_plugin_is_believed(tmp_path):
    bad = component(
        "unet/float32/static/late",
        Status.FAIL_CRASH,
        reason=EVIL,
        reason_code=EVIL,
        worst_output=EVIL,
        fallbacks=(EVIL,),
        log=EVIL,
    )
    odd = Result(id=f"component/{EVIL}", level="L1", status=Status.PASS, component=EVIL)
    run = make_run(bad, odd, target=EVIL, model=EVIL)
    answers = {f"{EVIL}/float32/static": {"level": "conditional", "reason": EVIL}}
    host = {"os": EVIL, "packages": {EVIL: EVIL}}
    claim = Claim(level="L0", profiles=(EVIL,), blockers=(EVIL,))
    run = replace(run, capabilities=answers, host=host, claim=claim)
    page = report(tmp_path, run)
    assert len(page.all("script")) == 1 and not page.all("img")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert page.text.count("alert(1)") > 10
    write_junit([run], tmp_path / "junit.xml")
    ElementTree.parse(tmp_path / "junit.xml")
    svg = ElementTree.fromstring(matrix.render_matrix(matrix.summarise([run])))
    assert not [element for element in svg.iter() if element.tag.endswith(("script", "img"))]


def test_only_the_pages_own_script_may_run(tmp_path):
    page = report(tmp_path, make_run())
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    (policy,) = [a["content"] for a in page.all("meta") if "content" in a and "src" in a["content"]]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert len(page.scripts) == 1


# --- pictures ---------------------------------------------------------------------------------


def test_pictures_lie_beside_the_page_and_the_references_once(tmp_path):
    sources = [tmp_path / name for name in "ab"]
    runs = [
        make_run(with_pictures(draw("ddim"), source, color=color), target=f"{source.name}:0")
        for source, color in zip(sources, (20, 120), strict=True)
    ]
    page = report(tmp_path, *runs, sources=sources)
    images = page.all("img")
    assert len(images) == 5
    files = {path.name for path in (tmp_path / "report" / "pictures").iterdir()}
    assert {a["src"] for a in images} == {f"pictures/{name}" for name in files}
    assert len(files) == 3  # backend and difference are one colour here
    # 24 by 16, enlarged by a whole number and not smoothed.
    assert {(a["width"], a["height"], a["class"]) for a in images} == {("192", "128", "crisp")}
    assert "PSNR 46 dB (at least 40 dB)" in page.said()


def test_pictures_inside_the_report_stay_where_they_are(tmp_path):
    source = tmp_path / "report" / "acme"
    folder = tmp_path / "report"
    run = make_run(with_pictures(draw("ddim"), source))
    write_report([run], folder, [source])
    found = Page(folder / "index.html").all("img")
    assert found[0]["src"] == "acme/draw-float32-ddim-reference.png"
    assert not (folder / "pictures").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "a/../../secret.png",
        "link.png",
        "{abs}",
        "a\\..\\secret.png",
        "file:secret.png",
    ],
)
def test_pictures_stay_inside_their_folder(tmp_path, name):
    inside = tmp_path / "run"
    result = with_pictures(draw("ddim"), inside)
    (inside / "a").mkdir()
    secret = tmp_path / "secret.png"
    (inside / result.pictures["backend"]).rename(secret)
    (inside / "link.png").symlink_to(secret)
    pictures = {"backend": name.format(abs=secret)}
    run = make_run(draw("ddim", pictures=pictures))
    with pytest.raises(ResultsError, match=r"leads out of|relative path"):
        write_report([run], tmp_path / "report", [inside])
    assert not (tmp_path / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"<svg onload='alert(1)'/>", "no PNG file"), (b"", "no PNG"), (None, "No such file")],
)
def test_pictures_are_pictures(tmp_path, content, said):
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ResultsError, match=said):
        report(tmp_path, make_run(draw("ddim", pictures={"backend": "x.png"})))


# --- trajectories -----------------------------------------------------------------------------


def test_a_plot_has_the_limit_between_right_and_wrong():
    found = plot([(0, "right", [0.01, 0.1, 0.5]), (1, "wrong", [0.5, 2.0, 40.0])])
    right, wrong = found.curves
    assert all(y > found.limit for _, y, _, _ in right.points)  # downwards on a page
    assert [y < found.limit for _, y, _, _ in wrong.points] == [False, True, True]
    for curve in found.curves:
        for x, y, _, _ in curve.points:
            assert found.left <= x <= found.right and found.top <= y <= found.bottom
    assert wrong.worst == (40.0, 2)
    # A decade is a decade.
    ys = [y for _, y, _, _ in plot([(0, "", [0.001, 0.01, 0.1, 1.0])]).curves[0].points]
    assert [round(a - b, 1) for a, b in itertools.pairwise(ys)] == pytest.approx(
        [ys[0] - ys[1]] * 3, abs=0.2
    )


@pytest.mark.parametrize("errors", [[None] * 4, [0.0, 0.0, 0.0], [math.inf, math.nan, 1.0], [1.0]])
def test_a_plot_of_odd_errors_stays_on_the_page(errors):
    found = plot([(0, "odd", errors)])
    numbers = [e for e in errors if e is not None and math.isfinite(e)]
    (curve,) = found.curves
    assert len(curve.points) == len(numbers)
    assert len(curve.gaps) == len(errors) - len(numbers)
    assert all(found.top <= y <= found.bottom for _, y, _, _ in curve.points)


def test_a_plot_breaks_where_there_is_no_number():
    (curve,) = plot([(0, "", [0.1, 0.2, None, 0.3, 0.4])]).curves
    assert [len(line.split()) for line in curve.lines] == [2, 2]
    assert [step for _, step in curve.gaps] == [2]


def test_several_backends_share_a_plot(tmp_path):
    def forced(curve, status=Status.PASS):
        return Result(id="forced/float32/ddim", level="L2", status=status, curve=curve)

    right = make_run(forced((0.1, 0.2, 0.3)))
    wrong = make_run(forced((0.1, 7.0, None), Status.FAIL_NONFINITE), target="other:0")
    page = report(tmp_path, right, wrong)
    assert len(page.all("svg", "curves")) == 1
    assert len(page.all("g", "curve")) == 2
    said = page.said()
    assert "acme:npu at most 30 %, step 3" in said
    assert "other:0 at most 7×, step 2; not a number at step 3" in said


# --- JUnit ------------------------------------------------------------------------------------


def test_junit_has_a_case_for_every_result(tmp_path):
    run = make_run(
        *(
            component(f"unet/float32/static/{status.value}", status, reason=f"why {status.value}")
            for status in Status
        )
    )
    write_junit([run, make_run(target="b:0")], tmp_path / "junit.xml")
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["acme:npu shapes", "b:0 shapes"]
    cases = {case.get("name"): case for case in suites[0].iter("testcase")}
    assert len(cases) == run.totals["selected"] == int(suites[0].get("tests"))
    skipped = {"NOT_SUPPORTED", "ENV_MISSING", "NOT_RUN", "XFAIL", "WAIVED", "PASS_FALLBACK"}
    for status in Status:
        case = cases[status.value]
        failure, skip = case.find("failure"), case.find("skipped")
        assert (failure is not None) == status.failed
        assert (skip is not None) == (status.value in skipped)
        if failure is not None:
            assert failure.get("message") == f"why {status.value}"
            assert failure.get("type") == status.value
            assert "rmse_ratio: 0.5 (at most 2)" in failure.text
        if skip is not None:
            assert f"why {status.value}" in skip.get("message")
    assert int(suites[0].get("failures")) == sum(status.failed for status in Status)
    assert float(cases["PASS"].get("time")) == 0.75
    properties = {p.get("name"): p.get("value") for p in suites[0].iter("property")}
    assert properties["claim"] == "L2+dyn"
    assert properties["engine"] == "acme 1.0"
    assert properties["suite version"] == "1.0"


def test_junit_holds_any_log(tmp_path):
    log = "\x1b[31mred\x00\x08 \ud800 ok\n"
    run = make_run(component("unet/float32/static/late", Status.FAIL_CRASH, log=log, reason=log))
    write_junit([run], tmp_path / "junit.xml")
    (found,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("system-err")
    assert found.text == "�[31mred�� � ok\n"


# --- words ------------------------------------------------------------------------------------


def test_every_status_has_a_look_of_its_kind():
    assert set(presentation.LOOKS) == set(Status)
    for status, look in presentation.LOOKS.items():
        assert (look.kind == "bad") == status.failed
        assert (look.kind in ("absent", "refused")) == (not status.executed)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (41.26, "41.3"),
        (1234.5, "1234"),
        (0.00123, "0.00123"),
        (10, "10"),
        (3.14e-7, "3.1e-7"),
        (2.5e9, "2.5e9"),
        (-0.25, "-0.25"),
        (100, "100"),
        (math.inf, "∞"),
    ],
)
def test_numbers_are_short(value, said):
    assert presentation.number_said(value) == said


def test_the_worst_of_several_metrics_is_shown():
    result = component("unet/float32/static/late", ratio=1.0)
    snr = Metric(name="snr_db", value=60.0, limit=80.0, bound="min")
    result = replace(result, metrics=(*result.metrics, snr))
    assert presentation.worst_metric(result) == snr
    assert presentation.used_of([result]) == pytest.approx(10)
    assert presentation.used_of([component("unet/float32/static/late", ratio=None)]) == math.inf


# --- the matrix -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    runs = [
        make_run(component("unet/float32/static/late"), draw("ddim")),
        make_run(
            component("unet/float32/static/late", Status.FAIL_MISMATCH, 9.0),
            target="b:0",
            claim=Claim(level="L0"),
        ),
        make_run(component("unet/float32/static/late"), model="/somewhere/sdxl"),
    ]
    paths = [tmp_path / f"{index}.json" for index in range(3)]
    for run, path in zip(runs, paths, strict=True):
        run.write(path)
    return runs, paths, tmp_path / "data.json", tmp_path / "picture.svg"


def draw_matrix(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "perfuse_conformance.matrix", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
    )


def test_the_matrix_is_what_the_data_renders_to(files):
    _, paths, data, picture = files
    where = ("--data", data, "--picture", picture)
    done = draw_matrix(*paths, *where, "--title", "sdxl=small random SD XL")
    assert done.returncode == 0, done.stderr
    first = data.read_bytes(), picture.read_bytes()
    assert draw_matrix(*where, "--check").returncode == 0
    assert draw_matrix(*where).returncode == 0
    assert draw_matrix(paths[2], *where).returncode == 0
    assert (data.read_bytes(), picture.read_bytes()) == first
    picture.write_text(picture.read_text().replace("1 of 1", "2 of 2"))
    done = draw_matrix(*where, "--check")
    assert done.returncode == 1
    assert f"{picture} is not what {data} renders to" in done.stderr
    picture.unlink()
    assert draw_matrix(*where, "--check").returncode == 1


def test_the_matrix_shows_claims_counts_and_what_is_missing(files):
    runs, _, _, _ = files
    svg = ElementTree.fromstring(matrix.render_matrix(matrix.summarise(runs)))
    texts = [" ".join("".join(e.itertext()).split()) for e in svg.iter() if e.tag.endswith("text")]
    assert texts[:4] == ["acme:npu", "acme 1.0", "b:0", "acme 1.0"]
    assert {"shapes", "sdxl", "L2", "+dyn", "L0", "not run", "✗ 0 of 1", "✓ 1 of 1"} <= set(texts)
    assert "/somewhere" not in "".join(texts)
    assert any(text.startswith("Run 2026-11-20; suite 1.0, limits 1.0") for text in texts)


def test_a_brief_model_is_one_line(files):
    runs, _, _, _ = files
    data = {**matrix.summarise(runs), "brief": ["shapes"], "titles": {"shapes": "the small one"}}
    svg = ElementTree.fromstring(matrix.render_matrix(data))
    texts = [" ".join("".join(e.itertext()).split()) for e in svg.iter() if e.tag.endswith("text")]
    assert {"the small one", "L2 ✓ 3 of 3", "L0 ✗ 1 of 2"} <= set(texts)
    merged = matrix.merge(data, {**matrix.summarise([]), "brief": ["sdxl", "shapes"]})
    assert merged["brief"] == ["shapes", "sdxl"]


@pytest.mark.parametrize(
    ("engine", "shown"),
    [
        ("torch 2.13.0+cpu", "torch 2.13.0"),
        ("openvino 2026.4.1-22982-e213a147257-releases/2026/4", "openvino 2026.4.1"),
        ("acme-2 1.0", "acme-2 1.0"),
    ],
)
def test_the_matrix_shows_an_engines_version(engine, shown):
    run = make_run()
    run = replace(run, backend={**run.backend, "engine": engine})
    data = matrix.summarise([run])
    assert data["entries"][0]["engine"] == engine
    assert f">{shown}</text>" in matrix.render_matrix(data)


def test_what_was_not_executed_has_no_claim_in_the_matrix():
    run = make_run(component("unet/float32/static/late"))
    missing = tuple(Result(id=r.id, level=r.level, status=Status.ENV_MISSING) for r in run.results)
    svg = matrix.render_matrix(matrix.summarise([replace(run, results=missing)]))
    assert "not executed" in svg and ">L2<" not in svg
    assert "○ 0 of 1" in svg


def test_newer_results_take_the_place_of_older(files):
    runs, _, _, _ = files
    data = matrix.summarise(runs)
    newer = matrix.summarise([make_run(target="b:0", claim=Claim(level="L1"))])
    merged = matrix.merge(data, newer)
    assert [e["claim"]["level"] for e in merged["entries"]] == ["L2", "L1", "L2"]
    assert len(matrix.merge(data, matrix.summarise([make_run(target="c:0")]))["entries"]) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": "9", "entries": []}',
        '{"schema_version": "1.0", "titles": {}, "entries": [{"levels": {"L0": 3}}]}',
    ],
)
def test_damaged_data_is_refused(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    done = draw_matrix("--data", tmp_path / "data.json", "--picture", tmp_path / "x.svg", "--check")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and str(tmp_path / "data.json") in done.stderr
