"""Tasks as data: the flow is checked when one is made, and edits give another one."""

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from perfuse import Choice, Event, Input, Loop, Step, Task, When
from perfuse import step as as_step
from perfuse.contract.steps import REQUIRED
from perfuse.errors import InputError


def step(name: str, reads: str, gives: str, value: Any = None) -> Step:
    """A step that gives every output the value, or the sum of what it reads."""

    def run(tools: Any, **inputs: Any) -> dict[str, Any]:
        result = value if value is not None else sum(inputs.values())
        return dict.fromkeys(gives.split(), result)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(one, kind) for one in ("tools", *reads.split())]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Step(name=name, outputs=tuple(gives.split()), run=run)


def task(*nodes: Any, **inputs: Any) -> Task:
    known = {name: Input(default=value) for name, value in inputs.items()}
    return Task(name="sums", inputs=known, steps=nodes)


def result(task: Task, **given: Any) -> dict[str, Any]:
    *_, last = task.run(None, given)
    return dict(last.state)


ADD = step("add", "x y", "z")
DOUBLE = step("double", "z", "z")
SUMS = task(ADD, step("again", "z x", "z"), x=1, y=2)


def test_runs_in_order_with_defaults_and_given() -> None:
    assert result(SUMS)["z"] == 4
    assert result(SUMS, x=10)["z"] == 22
    assert [event.step for event in SUMS.run(None, {})] == ["add", "again"]


def test_nothing_is_kept_between_runs() -> None:
    first = result(SUMS, x=10)
    assert result(SUMS)["z"] == 4
    assert first["z"] == 22
    assert {name: one.default for name, one in SUMS.inputs.items()} == {"x": 1, "y": 2}


def test_the_tools_are_passed_on() -> None:
    tools, seen = object(), []

    def run(tools: object) -> dict[str, Any]:
        seen.append(tools)
        return {}

    looking = Step(name="look", outputs=(), run=run)
    list(task(looking).run(tools, {}))
    assert seen == [tools]


def test_inputs_that_are_unknown_or_missing() -> None:
    with pytest.raises(InputError, match="sums was given w; it takes x, y"):
        list(SUMS.run(None, {"w": 1}))
    needy = task(ADD, x=REQUIRED, y=2)
    with pytest.raises(InputError, match="sums needs x"):
        list(needy.run(None, {}))
    assert result(needy, x=1)["z"] == 3


def test_a_step_that_does_not_give_what_it_declares() -> None:
    lazy = Step(name="lazy", outputs=("z",), run=lambda tools: {})
    with pytest.raises(InputError, match="lazy.*z"):
        list(task(lazy, DOUBLE).run(None, {}))


# ── The flow ────────────────────────────────────────────────────────────────────────────────────


def test_flow_names_the_step_and_what_is_missing() -> None:
    with pytest.raises(InputError, match="'add' of 'sums' reads y.*known there: x"):
        task(ADD, x=1)
    with pytest.raises(InputError, match="'double'.*reads z"):
        task(DOUBLE, ADD, x=1, y=2)


def test_flow_of_a_loop() -> None:
    inner = step("inner", "index z", "z")
    assert task(ADD, Loop(name="loop", over="rows", steps=(inner,)), x=1, y=2, rows=())
    with pytest.raises(InputError, match="'loop'.*rows"):
        task(ADD, Loop(name="loop", over="rows", steps=(inner,)), x=1, y=2)
    with pytest.raises(InputError, match="reads index"):
        task(ADD, inner, x=1, y=2)


def test_flow_of_a_choice_knows_what_every_option_gives() -> None:
    options = ((None, step("b", "", "z", 2)),)
    with pytest.raises(InputError, match="'after' of 'sums' reads w"):
        task(
            Choice(name="pick", options=(("x", step("a", "x", "w z")), *options)),
            step("after", "w", "v"),
            x=1,
        )
    with pytest.raises(InputError, match="'pick'.*q"):
        task(Choice(name="pick", options=(("q", ADD), (None, ADD))), x=1, y=2)


# ── Edits ───────────────────────────────────────────────────────────────────────────────────────


def test_insert() -> None:
    before = SUMS.insert(DOUBLE, before="again")
    after = SUMS.insert(DOUBLE, after="again")
    assert [node.name for node in before.steps] == ["add", "double", "again"]
    assert [node.name for node in after.steps] == ["add", "again", "double"]
    assert len(SUMS.steps) == 2
    with pytest.raises(InputError, match="'double'.*reads z"):
        SUMS.insert(DOUBLE, before="add")


@pytest.mark.parametrize("where", [{}, {"before": "add", "after": "add"}])
def test_insert_takes_one_place(where: dict[str, str]) -> None:
    with pytest.raises(InputError, match="before or after"):
        SUMS.insert(DOUBLE, **where)


def test_replace() -> None:
    other = SUMS.replace("add", step("constant", "", "z", 100))
    assert result(other)["z"] == 101
    with pytest.raises(InputError, match="reads z"):
        SUMS.replace("add", step("nothing", "", "w", 1))


def test_without() -> None:
    assert result(SUMS.without("again"))["z"] == 3
    with pytest.raises(InputError, match="'again'.*reads z"):
        SUMS.without("add")


def test_a_step_that_is_not_there() -> None:
    for edit in (
        lambda: SUMS.without("sub"),
        lambda: SUMS.replace("sub", ADD),
        lambda: SUMS.insert(ADD, before="sub"),
    ):
        with pytest.raises(InputError, match="'sums' has no step 'sub'; it has add, again"):
            edit()


LOOPED = task(
    ADD, Loop(name="loop", over="rows", steps=(step("inner", "z", "z"),)), x=1, y=2, rows="abc"
)


def test_edits_reach_into_loops_and_choices() -> None:
    grown = LOOPED.insert(step("count", "z index", "z"), after="inner")
    assert result(grown)["z"] == 3 + 0 + 1 + 2
    assert result(LOOPED.without("loop"))["z"] == 3
    chosen = task(Choice(name="pick", options=(("q", ADD), (None, ADD))), x=1, y=2, q=None)
    assert result(chosen.replace("add", step("fixed", "", "z", 9)), q=1)["z"] == 9
    with pytest.raises(InputError, match="it has add, loop, inner"):
        LOOPED.without("outer")


# ── Running ─────────────────────────────────────────────────────────────────────────────────────


def test_a_loop_is_one_event_a_round() -> None:
    events = [(event.step, event.done, event.total) for event in LOOPED.run(None, {})]
    assert events == [("add", 1, 1), ("loop", 1, 3), ("loop", 2, 3), ("loop", 3, 3)]


def test_an_empty_loop_does_nothing() -> None:
    assert result(LOOPED, rows="")["z"] == 3


def test_a_loop_in_a_loop_and_a_choice_in_a_loop() -> None:
    nested = Loop(
        name="outer",
        over="rows",
        steps=(
            Choice(
                name="pick",
                options=(("q", step("big", "z", "z", 50)), (None, step("small", "z index", "z"))),
            ),
            Loop(name="inner", over="columns", steps=(step("more", "z one", "z"),)),
            step("use", "z index", "z"),
        ),
    )
    deep = task(ADD, nested, x=1, y=2, rows="ab", columns="cde", one=1, q=None)
    # Each outer round: + index, three times + 1, + index: the inner loop's index is its own.
    assert result(deep)["z"] == 3 + (0 + 3 + 0) + (1 + 3 + 1)
    assert result(deep, q=1)["z"] == 50 + 3 + 1


def test_a_choice_takes_the_first_that_was_given() -> None:
    options = (("a", step("a", "", "z", 1)), ("b", step("b", "", "z", 2)))
    both = task(Choice(name="pick", options=options), a=None, b=None)
    assert result(both, a=0, b=0)["z"] == 1  # given is not None, whatever its truth
    assert result(both, b=0)["z"] == 2
    with pytest.raises(InputError, match="pick.*a, b"):
        result(both)


def test_stopping_is_the_caller_s() -> None:
    ran: list[int] = []

    def run(tools: Any, index: int) -> dict[str, Any]:
        ran.append(index)
        return {}

    slow = Step(name="slow", outputs=(), run=run)
    running: Iterator[Event] = task(
        Loop(name="loop", over="rows", steps=(slow,)), rows="abcde"
    ).run(None, {})
    assert next(running).done == 1
    assert next(running).done == 2
    running.close()
    assert ran == [0, 1]
    assert list(running) == []


def test_nothing_runs_before_it_is_asked_to() -> None:
    ran: list[int] = []
    eager = Step(name="eager", outputs=(), run=lambda tools: ran.append(1) or {})
    running = task(eager).run(None, {})
    assert ran == []
    next(running)
    assert ran == [1]


# ── What a function says of a step ──────────────────────────────────────────────────────────────


@as_step(outputs=("z",))
def _shifted(tools: Any, x: int, by: int = 1) -> dict[str, int]:
    return {"z": x + by}


def test_a_step_reads_what_its_function_takes() -> None:
    assert (_shifted.name, _shifted.inputs, _shifted.optional) == ("shifted", ("x", "by"), {"by"})
    assert result(task(_shifted, x=1))["z"] == 2
    assert result(task(_shifted, x=1, by=10))["z"] == 11
    with pytest.raises(InputError, match="one named parameter for each name"):
        as_step(outputs=())(lambda tools, **state: {})


def test_a_step_can_be_called_alone_and_in_another() -> None:
    assert _shifted(None, x=1) == {"z": 2}

    @as_step(outputs=("z",), name="twice")
    def twice(tools: Any, x: int) -> dict[str, int]:
        """Both of them.

        It shifts twice.
        """
        return dict(_shifted(tools, x=_shifted(tools, x=x)["z"]))

    assert result(task(twice, x=1))["z"] == 3
    assert (twice.description, _shifted.description) == ("Both of them.", "")
    lazy = Step(name="lazy", outputs=("z",), run=lambda tools: {})
    with pytest.raises(InputError, match="lazy.*z"):
        lazy(None)


def test_inputs_that_a_caller_may_give_are_added() -> None:
    shifted = task(_shifted, x=1)
    with pytest.raises(InputError, match="was given by"):
        result(shifted, by=2)
    more = shifted.with_inputs(by=Input(default=5, kind=int), x=Input(default=2))
    assert (result(more)["z"], result(more, by=1)["z"], result(shifted)["z"]) == (7, 3, 2)


def test_a_task_can_be_printed() -> None:
    loop = Loop(
        name="loop",
        over="rows",
        steps=(
            When(name="often", condition=_even, then=DOUBLE),
            Choice(name="pick", options=(("x", _shifted), (None, step("b", "", "")))),
        ),
    )
    assert str(task(ADD, loop, x=1, y=2, rows=())).splitlines() == [
        "sums",
        "  add(x, y) → z",
        "  loop, for each of rows",
        "    often, by index",
        "      double(z) → z",
        "    pick, the first that is given: x, else",
        "      shifted(x, by) → z",
        "      b()",
    ]


def test_tasks_can_be_sent_to_another_process() -> None:
    sent = task(_shifted, x=1)
    again = pickle.loads(pickle.dumps(sent))
    assert again == sent
    assert hash(again) == hash(sent)
    assert again.steps[0] is _shifted


def test_events_are_snapshots() -> None:
    first, *_ = list(SUMS.run(None, {}))
    assert first.state["z"] == 3
    assert result(SUMS)["z"] == 4


def test_the_type_of_a_number_is_checked() -> None:
    counted = Task(
        name="count",
        inputs={"x": Input(default=1, kind=int, help="How many.")},
        steps=(_shifted,),
    )
    assert result(counted, x=3)["z"] == 4
    for wrong in ("3", 1.5, True):
        with pytest.raises(InputError, match="x must be a whole number; got .* It is: How many."):
            list(counted.run(None, {"x": wrong}))


# ── Conditions ──────────────────────────────────────────────────────────────────────────────────


def _even(tools: Any, index: int) -> bool:
    return index % 2 == 0


def test_a_condition_around_a_step() -> None:
    often = When(name="often", condition=_even, then=DOUBLE)
    looped = task(
        ADD,
        Loop(name="loop", over="rows", steps=(often, step("inner", "z one", "z"))),
        x=1,
        y=2,
        one=1,
        rows="abc",
    )
    assert result(looped)["z"] == 3 + 3
    edited = looped.replace("double", step("ten", "", "z", 10))
    assert result(edited)["z"] == 10 + 1
    with pytest.raises(InputError, match="'often' holds exactly one node for each case"):
        looped.without("double")


def test_the_flow_knows_what_a_condition_may_leave_out() -> None:
    maybe = When(name="maybe", condition=_even, then=step("new", "", "w", 1))
    with pytest.raises(InputError, match="'after' of 'sums' reads w"):
        task(maybe, step("after", "w", "v"), index=0)
    both = When(
        name="maybe", condition=_even, then=step("a", "", "w", 1), otherwise=step("b", "", "w", 2)
    )
    assert result(task(both, step("after", "w", "v"), index=1))["v"] == 2
    with pytest.raises(InputError, match="Condition 'maybe' of 'sums' reads index"):
        task(maybe)
