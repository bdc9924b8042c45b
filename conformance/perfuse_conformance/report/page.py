"""What the report's page shows: runs, taken apart into groups, failures, pictures and curves."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfuse_conformance.cases.catalogue import LEVELS
from perfuse_conformance.judge.results import Result, Run, Status
from perfuse_conformance.report import presentation as said
from perfuse_conformance.report.curves import Plot, plot
from perfuse_conformance.report.pictures import Picture, collect
from perfuse_conformance.report.presentation import LOOKS, Group, Look

__all__ = ["Page", "page_of"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a few cases of one backend come to."""

    look: Look
    counts: Mapping[Status, int]
    #: The most that one of them used of a limit.
    used: float | None

    @property
    def passed(self) -> int:
        return said.passed_of(self.counts)

    @property
    def asked(self) -> int:
        return said.asked_of(self.counts)

    @property
    def words(self) -> str:
        """``31 pass, 2 differs``."""
        return ", ".join(f"{n} {LOOKS[status].word}" for status, n in self.counts.items() if n)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case, with its result in each run."""

    #: Of the page, from 1.
    number: int
    id: str
    #: The id without the part that the group's name repeats.
    name: str
    #: As many as there are runs; ``None`` where the run does not have the case.
    cells: tuple[Result | None, ...]

    @property
    def first(self) -> int:
        """The first run that failed it, or the first that has it."""
        have = [i for i, cell in enumerate(self.cells) if cell is not None]
        failed = [i for i in have if (cell := self.cells[i]) is not None and cell.status.failed]
        return (failed or have)[0]

    @property
    def inputs(self) -> str | None:
        """The SHA-256 of the inputs, if it is the same in all runs."""
        found = {cell.input_sha256 for cell in self.cells if cell is not None}
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Block:
    """A group of rows, with a summary per run."""

    group: Group
    rows: tuple[Row, ...]
    summaries: tuple[Summary | None, ...]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Results of one run that failed in the same way."""

    run: int
    look: Look
    #: The row's number and the result, worst first.
    items: tuple[tuple[int, Result], ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """One picture, drawn by the reference and by several backends."""

    model: str
    row: Row
    reference: Picture | None
    #: The run, its result, its picture and the difference to the reference's.
    shots: tuple[tuple[int, Result, Picture | None, Picture | None], ...]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The errors along one loop, of several backends."""

    model: str
    row: Row
    plot: Plot


@dataclass(frozen=True, kw_only=True)
class Ability:
    """What each backend declares of one component, precision and shape mode."""

    component: str
    precision: str
    mode: str
    #: The answer of ``supports``, and the number of its reason below the table.
    cells: tuple[tuple[str, int | None] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything on the page."""

    runs: tuple[Run, ...]
    models: tuple[str, ...]
    blocks: tuple[Block, ...]
    failures: tuple[Cluster, ...]
    #: What neither passed nor failed.
    notes: tuple[Cluster, ...]
    galleries: tuple[Gallery, ...]
    trajectories: tuple[Trajectory, ...]
    abilities: tuple[Ability, ...]
    #: Of the abilities, in the order of their numbers.
    reasons: tuple[str, ...]

    @property
    def facts(self) -> tuple[dict[str, str], ...]:
        """Facts about each run: its backend, its machine, its options."""
        return tuple(map(_facts, self.runs))

    @property
    def shared(self) -> dict[str, str]:
        """The facts that all runs agree on, where there are several."""
        first, *rest = self.facts
        same = {name: v for name, v in first.items() if all(o.get(name) == v for o in rest)}
        return same if rest else {}

    @property
    def again(self) -> str | None:
        """A command that asks one case again: the first that failed, or the first of all."""
        if not self.runs[0].results:
            return None
        if self.failures:
            run, result = self.runs[self.failures[0].run], self.failures[0].items[0][1]
        else:
            run, result = self.runs[0], self.runs[0].results[0]
        return said.again_said(run, result)


def page_of(runs: Sequence[Run], folder: Path, sources: Sequence[Path]) -> Page:
    """What a page about these runs shows, models together; its pictures are laid into ``folder``."""
    models = said.models_of(runs)
    order = sorted(range(len(runs)), key=lambda i: models.index(runs[i].run["model"]))
    runs = [runs[i] for i in order]
    sources = [sources[i] for i in order]
    rows = _rows(runs)
    numbers = {row.id: row.number for block in rows.values() for row in block}
    abilities, reasons = _abilities(runs)
    flat = [row for block in rows.values() for row in block]
    return Page(
        runs=tuple(runs),
        models=tuple(models),
        blocks=tuple(
            Block(
                group=group,
                rows=tuple(block),
                summaries=tuple(_summary([r.cells[i] for r in block]) for i in range(len(runs))),
            )
            for group, block in rows.items()
        ),
        failures=_clusters(
            runs,
            numbers,
            lambda r: r.status.failed,
            lambda r: (r.status, r.component, r.id.partition("/")[0], r.reason_code),
        ),
        notes=_clusters(
            runs,
            numbers,
            lambda r: not r.status.failed and not r.status.counts,
            lambda r: (r.status, r.reason),
        ),
        galleries=tuple(_galleries(runs, flat, folder, sources)),
        trajectories=tuple(_trajectories(runs, flat)),
        abilities=abilities,
        reasons=reasons,
    )


def _facts(run: Run) -> dict[str, str]:
    seconds = [sum(getattr(r, name) for r in run.results) for name in ("prepare_s", "run_s")]
    facts = {
        **run.backend,
        **{name: _plain(value) for name, value in run.host.items()},
        **run.run,
        "suite": f"{run.suite['version']}, limits {run.suite['tolerances']}",
        "limits' SHA-256": run.suite["tolerances_sha256"],
        "time": f"{said.number_said(seconds[0])} s preparing, "
        f"{said.number_said(seconds[1])} s running",
    }
    known = ("target", "command", "level")
    return {name: value for name, value in facts.items() if value and name not in known}


def _plain(value: Any) -> str:
    """A value of the host's description, in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _rows(runs: Sequence[Run]) -> dict[Group, list[Row]]:
    """The cases of all runs, by group, in the order of the suite."""
    order: dict[Group, list[str]] = {}
    for run in runs:
        before: dict[Group, int] = {}
        for result in run.results:
            group = said.group_of(result)
            ids = order.setdefault(group, [])
            # What the runs before this one did not have goes where this one has it.
            if result.id not in ids:
                ids.insert(before.get(group, -1) + 1, result.id)
            before[group] = ids.index(result.id)
    found = [{result.id: result for result in run.results} for run in runs]
    rows: dict[Group, list[Row]] = {}
    number = 0
    for group in sorted(order, key=lambda group: LEVELS.index(group.level)):
        rows[group] = []
        for id in order[group]:
            number += 1
            cells = tuple(results.get(id) for results in found)
            rows[group].append(Row(number=number, id=id, name=_short(id, group), cells=cells))
    return rows


def _short(id: str, group: Group) -> str:
    kind, _, rest = id.partition("/")
    if kind == group.name:
        return rest
    rest = rest.removeprefix(f"{group.name}/")
    return rest if kind == "component" else f"{kind}/{rest}"


def _summary(cells: Sequence[Result | None]) -> Summary | None:
    results = [cell for cell in cells if cell is not None]
    if not results:
        return None
    counts = said.counts_of(results)
    return Summary(look=said.look_of_counts(counts), counts=counts, used=said.used_of(results))


def _clusters(
    runs: Sequence[Run],
    numbers: Mapping[str, int],
    wanted: Callable[[Result], bool],
    alike: Callable[[Result], Hashable],
) -> tuple[Cluster, ...]:
    clusters = []
    for index, run in enumerate(runs):
        found: dict[Hashable, list[Result]] = {}
        for result in filter(wanted, run.results):
            found.setdefault(alike(result), []).append(result)
        for results in found.values():
            worst = sorted(results, key=lambda r: -_or_zero(said.used_of([r])))
            items = tuple((numbers[result.id], result) for result in worst)
            clusters.append(Cluster(run=index, look=LOOKS[worst[0].status], items=items))
    return tuple(clusters)


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value


def _galleries(
    runs: Sequence[Run], rows: Sequence[Row], folder: Path, sources: Sequence[Path]
) -> list[Gallery]:
    columns = Counter(run.run["model"] for run in runs)
    galleries: dict[tuple[str, str], Gallery] = {}
    for row in rows:
        for index, result in enumerate(row.cells):
            if result is None or not result.pictures:
                continue
            key = (runs[index].run["model"], row.id)
            room = 192 if columns[key[0]] < 4 else 128  # so that most screens hold a row
            pictures = collect(result, sources[index], folder, room)
            before = galleries.get(key)
            shot = (index, result, pictures.get("backend"), pictures.get("difference"))
            galleries[key] = Gallery(
                model=key[0],
                row=row,
                reference=pictures.get("reference") if before is None else before.reference,
                shots=(shot,) if before is None else (*before.shots, shot),
            )
    order = said.models_of(runs)
    return sorted(galleries.values(), key=lambda g: (order.index(g.model), g.row.number))


def _trajectories(runs: Sequence[Run], rows: Sequence[Row]) -> list[Trajectory]:
    found = []
    for model in said.models_of(runs):
        for row in rows:
            cells = [
                (index, result)
                for index, result in enumerate(row.cells)
                # Two points are no trajectory.
                if result is not None
                and len(result.curve) > 2
                and runs[index].run["model"] == model
                and result.level != "L1"
            ]
            if cells:
                series = [(i, runs[i].backend["target"], result.curve) for i, result in cells]
                found.append(
                    Trajectory(
                        model=model,
                        row=row,
                        plot=plot(series),
                    )
                )
    return found


def _abilities(runs: Sequence[Run]) -> tuple[tuple[Ability, ...], tuple[str, ...]]:
    reasons: dict[str, int] = {}
    abilities = []
    for key in dict.fromkeys(key for run in runs for key in run.capabilities):
        component, precision, mode = key.split("/", 2)
        cells: list[tuple[str, int | None] | None] = []
        for run in runs:
            answer = run.capabilities.get(key)
            if answer is None:
                cells.append(None)
                continue
            reason = answer["reason"]
            number = reasons.setdefault(reason, len(reasons) + 1) if reason else None
            cells.append((answer["level"], number))
        abilities.append(
            Ability(component=component, precision=precision, mode=mode, cells=tuple(cells))
        )
    return tuple(abilities), tuple(reasons)
