"""The suite's cases as pytest tests, for authors of backends.

from perfuse_conformance import BackendConformance

class TestConformance(BackendConformance):
    backend = "acme-npu"
    level = "L1"
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

if TYPE_CHECKING:
    from perfuse_conformance.cases.catalogue import Case
    from perfuse_conformance.judge.results import Result, Run
    from perfuse_conformance.runner.session import Session

__all__ = ["BackendConformance"]

_SETTINGS = frozenset(
    ("backend", "model", "level", "profiles", "precisions", "options", "golden", "seed")
    + ("expectations",)
)


class BackendConformance:
    """Subclass it and name the backend; nothing else of it can be changed."""

    #: BACKEND[:DEVICE].
    backend: ClassVar[str]
    #: A checkpoint or an exported folder; the bundled ``shapes`` without one.
    model: ClassVar[str | None] = None
    #: The level that is claimed.
    level: ClassVar[str] = "L1"
    #: The profiles that are claimed with it: ``("dyn", "fp16")``.
    profiles: ClassVar[tuple[str, ...]] = ()
    #: Those to ask in; all that the device declares by default.
    precisions: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, str]] = {}
    #: A golden bundle to judge by, relative to the test file.
    golden: ClassVar[str | None] = None
    #: Draws trials, pictures and the order of the cases.
    seed: ClassVar[int] = 0
    #: Known failures, relative to the test file.
    expectations: ClassVar[str] = "conformance.toml"

    def __init_subclass__(cls) -> None:
        own = {name for name in vars(cls) if not name.startswith("__")}
        if own - _SETTINGS:
            raise TypeError(
                f"{cls.__name__} defines {', '.join(sorted(own - _SETTINGS))}; a conformance test "
                f"sets {', '.join(sorted(_SETTINGS))} alone. Known failures go into "
                f"{cls.expectations}, with a reason and a date."
            )

    def test_case(self, perfuse_case: "Case", perfuse_judged: "Judged") -> None:
        """One case of the suite."""
        result = perfuse_judged.result(perfuse_case)
        said = f"{result.status} {result.reason_code}: {result.reason}"
        if result.status.failed:
            pytest.fail("\n".join(filter(None, (said, result.rerun, result.log))), pytrace=False)
        if result.status == "XFAIL":
            pytest.xfail(said)
        if not result.status.executed:
            pytest.skip(said)

    def test_level(self, perfuse_judged: "Judged") -> None:
        """The results of all cases grant the level that is claimed."""
        run = perfuse_judged.run()
        if perfuse_judged.complaints:
            pytest.fail("\n".join(perfuse_judged.complaints), pytrace=False)
        lacking = set(self.profiles) - set(run.claim.profiles)
        if run.claim.level < self.level or run.claim.level == "none" or lacking:
            claimed, blockers = (
                "+".join((self.level, *self.profiles)),
                "\n".join(run.claim.blockers),
            )
            pytest.fail(
                f"{claimed} is claimed; the results grant {run.claim}. In between:\n{blockers}",
                pytrace=False,
            )


class Judged:
    """The results of one class, each made when it is asked for."""

    def __init__(self, cls: type[BackendConformance], folder: Path) -> None:
        self._cls = cls
        self._folder = folder
        self._cases: list[Case] | None = None
        self._results: dict[str, Result] = {}
        self._session: Session | None = None
        self.complaints: list[str] = []

    @property
    def session(self) -> "Session":
        if self._session is None:
            from perfuse_conformance.runner.session import open_session

            cls = self._cls
            self._session = open_session(
                cls.backend,
                model=self._path(cls.model),
                level=cls.level,
                golden=self._folder / cls.golden if cls.golden is not None else None,
                options=cls.options,
                precisions=cls.precisions,
                draw_seed=cls.seed,
            )
        return self._session

    def _path(self, model: str | None) -> str | None:
        """A model's path relative to the test file if it exists, else the name unchanged."""
        if model is not None and (self._folder / model).exists():
            return str(self._folder / model)
        return model

    def cases(self) -> "list[Case]":
        """Every case of the level, for what the backend declares."""
        if self._cases is None:
            self._cases = self.session.cases()
        return self._cases

    def result(self, case: "Case") -> "Result":
        """The result of one case, with its entry in the expectations file applied."""
        from perfuse_conformance.judge.expectations import expect_one

        if case.id not in self._results:
            self._results[case.id] = self.session.judge(case)
        session = self.session
        return expect_one(
            self._results[case.id],
            self._expectations(),
            model=session.model if session.model is not None else "shapes",
            device=session.identity()["device"],
            backend=session.target.backend,
        )

    def run(self) -> "Run":
        """The whole run; cases that were not asked for yet are judged now."""
        from perfuse_conformance.judge.expectations import expected
        from perfuse_conformance.runner.session import run_of

        for case in self.cases():
            self.result(case)
        results = [self._results[case.id] for case in self.cases()]
        run, self.complaints = expected(
            run_of(self.session, results, "pytest"), self._expectations()
        )
        return run

    def _expectations(self) -> Path | None:
        path = self._folder / self._cls.expectations
        return path if path.is_file() else None

    def close(self) -> None:
        """End the worker."""
        if self._session is not None:
            self._session.close()
            self._session = None


_JUDGED: dict[type[BackendConformance], Judged] = {}


def _judged(cls: type[BackendConformance], path: Path) -> Judged:
    if cls not in _JUDGED:
        _JUDGED[cls] = Judged(cls, path.parent)
    return _JUDGED[cls]


def pytest_addoption(parser: Any) -> None:
    """``--perfuse-results FOLDER`` keeps what ``perfuse conformance report`` reads."""
    group = parser.getgroup("perfuse")
    group.addoption(
        "--perfuse-results",
        metavar="FOLDER",
        help="write results.json of each BackendConformance class into FOLDER/CLASS",
    )


def pytest_generate_tests(metafunc: Any) -> None:
    """A test for each case."""
    cls = metafunc.cls
    if cls is None or not issubclass(cls, BackendConformance):
        return
    if "perfuse_case" in metafunc.fixturenames:
        cases = _judged(cls, metafunc.definition.path).cases()
        metafunc.parametrize("perfuse_case", cases, ids=[case.id for case in cases])


def pytest_unconfigure() -> None:
    """End the workers of classes whose tests were collected and not run."""
    while _JUDGED:
        _JUDGED.popitem()[1].close()


@pytest.fixture(scope="class")
def perfuse_judged(request: Any) -> Any:
    """The results of the class that the test is in."""
    judged = _judged(request.cls, request.path)
    yield judged
    folder = request.config.getoption("--perfuse-results")
    if folder is not None:
        target = Path(folder) / request.cls.__name__
        target.mkdir(parents=True, exist_ok=True)
        judged.run().write(target / "results.json")
    judged.close()
