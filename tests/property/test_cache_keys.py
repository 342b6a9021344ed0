"""The cache over random histories: a run's outputs are always those of a run without a cache, and no work is repeated."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mulle.core.errors import SpecError
from mulle.loop.cache import StageCache, stage_key
from mulle.loop.code import ProjectCode
from mulle.loop.paths import StatePaths
from mulle.loop.record import StageRecord

scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)
ingredients = st.fixed_dictionaries({"parameters": values, "code": st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3)})


@given(ingredients)
def test_a_key_does_not_depend_on_the_order_of_names(made):
    """Two descriptions of the same thing have one key."""

    def turned(value):
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(list(value))}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert stage_key(made) == stage_key(turned(made))


@given(ingredients, ingredients)
def test_different_ingredients_have_different_keys(one, other):
    """Types count: 1, 1.0, true and "1" are four parameters."""

    def typed(value):
        if isinstance(value, dict):
            return ("d", tuple(sorted((key, typed(inner)) for key, inner in value.items())))
        if isinstance(value, list):
            return ("l", tuple(typed(item) for item in value))
        return (type(value).__name__, repr(value))

    assert (repr(typed(one)) == repr(typed(other))) == (stage_key(one) == stage_key(other))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_cannot_say_is_refused(number):
    """A key over NaN would never be found again."""
    with pytest.raises(SpecError, match="canonically"):
        stage_key({"parameters": number})


NAMES = ("a", "b", "c", "d", "e")
graphs = st.fixed_dictionaries(
    {
        name: st.tuples(
            st.sets(st.sampled_from(NAMES[index + 1 :]), max_size=3) if NAMES[index + 1 :] else st.just(set()), st.integers(0, 3)
        )
        for index, name in enumerate(NAMES)
    }
)


def source(graph) -> str:
    parts = ['import mulle\nproject = mulle.Project("p", task="binary", target="y")\n']
    parts += [
        f"def {name}():\n    {number}\n    return [{', '.join(f'{other}()' for other in sorted(calls))}]\n"
        for name, (calls, number) in graph.items()
    ]
    roles = {"source": "a", "expectations": "b", "features": "c"}
    parts += [f"@project.{role}\ndef root_{role}():\n    return {name}()\n" for role, name in roles.items()]
    return "\n".join(parts)


def reached(graph, name: str) -> set[str]:
    found, queue = set(), [name]
    while queue:
        current = queue.pop()
        if current not in found:
            found.add(current)
            queue += graph[current][0]
    return found


@settings(max_examples=60)
@given(graphs, graphs)
def test_a_stage_changes_exactly_when_a_function_it_reaches_does(before, after):
    """Over random call graphs: the slices of a root are those of the functions it reaches, no more and no fewer."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        slices = []
        for graph in (before, after):
            (root / "project.py").write_text(source(graph), encoding="utf-8")
            code = ProjectCode(root, "project:project")
            slices.append({role: code.stage_code((role,)).slices for role in ("source", "expectations", "features")})
    for role, start in (("source", "a"), ("expectations", "b"), ("features", "c")):
        expected = {f"project.py:{name}" for name in reached(before, start)}
        found = {label for label in slices[0][role] if label.removeprefix("project.py:") in NAMES}
        assert expected == found
        same = {name: before[name] for name in reached(before, start)} == {name: after[name] for name in reached(after, start)}

        assert same == (slices[0][role] == slices[1][role])


commands = st.lists(st.tuples(st.sampled_from(["commit", "cut", "sweep", "lose"]), st.integers(0, 3), st.integers(0, 3)), max_size=12)


@settings(max_examples=40)
@given(commands)
def test_the_cache_holds_whole_results_or_none(history):
    """Commits, kills before a commit, sweeps and lost files in any order: what is found is whole and what was last committed."""
    with tempfile.TemporaryDirectory() as folder:
        cache = StageCache(StatePaths(Path(folder)).ensure())
        model: dict[str, str | None] = {}
        for at, (what, number, content) in enumerate(history):
            key = stage_key({"n": number})
            if what in {"commit", "cut"}:
                draft = cache.draft("train", f"r{at}")
                (draft / "x.txt").write_text("x" * content, encoding="utf-8")
                if what == "commit":
                    cache.commit(draft, record(key, content))
                    model[key] = str(content)
            elif what == "sweep":
                cache.sweep()
            elif model.get(key) is not None:
                shutil.rmtree(cache.folder("train", key))
                model[key] = None
            for known, expected in model.items():
                found = cache.find("train", known)
                assert expected == (None if found is None else found.outputs["n"])
        cache.sweep()

        assert sorted(key for key, value in model.items() if value is not None) == [key for _, key, _ in cache.entries()]


def record(key: str, content: int) -> StageRecord:
    return StageRecord(
        stage="train",
        key=key,
        ingredients={},
        outputs={"n": str(content)},
        facts={},
        freshness=[],
        files={"x.txt": content},
        seconds=0.0,
        peak_memory_bytes=0,
        started="2026-11-20T00:00:00Z",
        run_id="r",
        reason="first run",
    )
