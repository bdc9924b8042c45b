"""An export for a list of sizes is asked for those, and for no other."""

from tests.backends.interpreters.mil.judged import session_of

from perfuse import DiffusionPipeline
from perfuse_conformance.judge.results import Status
from perfuse_conformance.reference.record import bundle_for


def test_an_export_for_a_list_of_sizes_is_judged_with_each_of_them(checkpoint, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    folder = pipe.export(tmp_path / "sizes", to="coreml", sizes=[(8, 8), (8, 12)], batch=2)
    golden = bundle_for(str(checkpoint("tiny")), level="L1").path
    session = session_of(folder, golden, tmp_path)
    try:
        cases = {case.id: case for case in session.cases() if case.level == "L1"}
        fits = {
            f"component/unet/float32/static/{id}" for id in ("wide", "item-timesteps", "guided")
        }
        assert set(cases) == {*fits, "contract/unet/closed"}  # the others are of one picture
        for case in cases.values():
            result = session.judge(case)
            assert result.status in (Status.PASS, Status.QUALITY_WARNING), result
    finally:
        session.close()
