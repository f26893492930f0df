"""Every complete recipe stacks with every overlay, and no callback is lost on the way."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import cycle, pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stablelightning.cli.recipes import ADD, START, shipped
from stablelightning.cli.run import Plan
from stablelightning.cli.session import RunCLI
from stablelightning.cli.slots import SLOTS
from tests.contracts.starts import needed

STARTS, OVERLAYS = shipped(START), shipped(ADD)

#: Where the settings of a module stand in a recipe.
_SETTING = ("model", "init_args")


def settings_in(path: Path) -> set[tuple[str, ...]]:
    """The places at which a recipe says something: ``("stable", "clip")``."""

    def walk(node: Any, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not isinstance(node, dict) or "class_path" in node:
            yield place
            return
        for key, value in node.items():
            yield from walk(value, (*place, key))

    return set(walk(yaml.safe_load(path.read_text(encoding="utf-8")), ()))


#: Two overlays can hurt each other where both speak of the same place, in either order; any two
#: others are apart.
RIVALS = {
    pair: settings_in(OVERLAYS[pair[0]]) & settings_in(OVERLAYS[pair[1]])
    for pair in permutations(OVERLAYS, 2)
}
RIVALS = {pair: places for pair, places in RIVALS.items() if places}

#: Where callbacks are spoken of, and not a setting of the module: an optimizer or a schedule after
#: all others, in both orders, is what test_optimizer_recipes.py is about.
RIVAL_CALLBACKS = [
    pair for pair, places in RIVALS.items() if any(place[:2] != _SETTING for place in places)
]


def apart(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The overlays in as few stacks as may be, of about one size, with no rivals in any."""
    neighbours = {name: {other for one, other in RIVALS if one == name} for name in names}
    stacks: list[list[str]] = []
    for name in sorted(neighbours, key=lambda name: -len(neighbours[name])):
        free = [stack for stack in stacks if not neighbours[name] & set(stack)]
        if not free:
            free = [[]]
            stacks += free
        min(free, key=len).append(name)
    return [tuple(stack) for stack in stacks]


#: Every overlay on every start. Rivals take turns at the starts.
STACKS = [
    *[(start, overlays) for start in STARTS for overlays in apart(OVERLAYS)],
    *zip(cycle(STARTS), RIVAL_CALLBACKS, strict=False),
    *[(start, tuple(OVERLAYS)) for start in STARTS],
]


def test_every_overlay_is_built_on_every_start_without_a_rival():
    stacks = apart(OVERLAYS)
    assert sorted(name for stack in stacks for name in stack) == sorted(OVERLAYS)
    assert not [pair for stack in stacks for pair in permutations(stack, 2) if pair in RIVALS]


def session(tmp_path: Path, start: str, *overlays: Path, settings: tuple[str, ...] = ()) -> RunCLI:
    """A run as far as its objects; it trains nothing and writes nothing."""
    here = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *needed(start))
    return RunCLI(Plan(STARTS[start], overlays, (*here, *settings), tmp_path / "out"))


def callbacks(cli: RunCLI) -> Counter:
    return Counter(type(callback).__name__ for callback in cli.trainer.callbacks)


@cache
def callbacks_alone(start: str) -> Counter:
    """Those of a recipe that nothing is stacked on."""
    with tempfile.TemporaryDirectory() as folder:
        return callbacks(session(Path(folder), start))


def slots_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")).get("stable", {})


def replaced(start: str, overlays: tuple[str, ...]) -> Counter:
    """Callbacks of a recipe whose slots an overlay fills anew, or empties."""
    spoken = {concern for name in overlays for concern in slots_of(OVERLAYS[name])}
    own = [slot for concern, slot in slots_of(STARTS[start]).items() if concern in spoken]
    return Counter(slot["class_path"] for slot in own if slot)


@pytest.mark.parametrize(
    ("start", "overlays"),
    STACKS,
    ids=[
        f"{start}+{'all' if len(overlays) == len(OVERLAYS) else '+'.join(overlays)}"
        for start, overlays in STACKS
    ],
)
def test_no_callback_is_lost_in_a_stack(tmp_path, start, overlays):
    stacked = callbacks(session(tmp_path, start, *[OVERLAYS[name] for name in overlays]))
    assert callbacks_alone(start) - replaced(start, overlays) <= stacked
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", STARTS)
def test_a_readers_own_callbacks_do_not_push_ours_out(tmp_path, start):
    own = tmp_path / "own.yaml"
    own.write_text(
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]}"
    )
    alone, stacked = callbacks_alone(start), callbacks(session(tmp_path, start, own))
    assert stacked["LearningRateMonitor"] == 1
    for slot in SLOTS:
        if slot.unasked is not None:
            name = slot.load().__name__
            assert stacked[name] == alone[name]
    assert stacked["KeepBest"] == 1


@pytest.mark.parametrize("start", STARTS)
def test_the_network_of_a_recipe_fits_its_data(tmp_path, start):
    cli = session(tmp_path, start)
    cli.check_data()
    batch = next(iter(cli.datamodule.train_dataloader()))
    loss = cli.model.loss(batch)
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None for p in cli.model.parameters())


@pytest.mark.parametrize("path", [*STARTS.values(), *OVERLAYS.values()], ids=lambda p: p.stem)
def test_a_recipe_says_what_it_is_for_and_every_setting_why(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any("stablelightning run " in line for line in lines)
    unexplained = [
        line
        for above, line in pairwise(["", *lines])
        if line.strip()
        and not line.split("#")[0].rstrip().endswith(":")
        and "#" not in line
        and not above.strip().startswith("#")
    ]
    assert unexplained == []


@pytest.mark.parametrize("path", OVERLAYS.values(), ids=lambda p: p.stem)
def test_an_overlay_lists_nothing_that_would_replace_a_list(path):
    assert "callbacks" not in yaml.safe_load(path.read_text()).get("trainer", {})


def test_slots_merge_across_files_and_the_line_has_the_last_word(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("stable: {uncertainty: {init_args: {samples: 7}}}")
    second.write_text("stable: {uncertainty: {init_args: {seed: 3}}}")
    cli = session(
        tmp_path, "digits", first, second, settings=("--stable.uncertainty.tolerance=0.5",)
    )
    (ours,) = (c for c in cli.trainer.callbacks if type(c).__name__ == "EstimateUncertainty")
    assert (ours.samples, ours.seed, ours.tolerance) == (7, 3, 0.5)


def test_null_empties_a_slot(tmp_path):
    cli = session(tmp_path, "digits", settings=("--stable.uncertainty=null",))
    assert callbacks(cli)["EstimateUncertainty"] == 0
