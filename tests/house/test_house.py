"""The house rules: arrows, generated pages, and words that must not stand in the project."""

import subprocess
import sys
from pathlib import Path

from orchestrator.core.drawing import page
from orchestrator.core.lifecycle import BY_EVENT, FINAL_ITEM, MOVES, AttemptState, Event, ItemState, advance

ROOT = Path(__file__).resolve().parents[2]


def test_imports_follow_the_arrows():
    """Every contract of import-linter is kept."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lifecycle_page_is_the_table():
    """docs/lifecycle.md is exactly what the table draws; `make docs` writes it anew."""
    assert (ROOT / "docs" / "lifecycle.md").read_text("utf-8") == page()


def test_every_event_has_one_row():
    """An event that no row of the table describes could never move anything."""
    assert set(BY_EVENT) == set(Event)
    assert len(MOVES) == len(BY_EVENT)


def test_final_items_are_moved_by_no_fact():
    """Whatever arrives late, a succeeded, failed or canceled item stays what it is; but a row that was given up takes what turns
    up after all."""
    moved = {(event, item, move.item_to) for event in Event for attempt in AttemptState for item in FINAL_ITEM
             if (move := advance(event, attempt=attempt, item=item))}
    assert moved - {(Event.SURPLUS, item, None) for item in FINAL_ITEM} == {
        (Event.SURFACED, ItemState.FAILED, ItemState.RUNNING)}


def test_every_state_can_be_reached_and_left():
    """No state is an island, but that of rows that share: each is entered by some row, each that is not final is left by one."""
    entered = {move.item_to for move in MOVES if move.item_to} | {ItemState.PENDING, ItemState.CLAIMED}
    left = {state for move in MOVES if move.item_to for state in move.item_from} | {ItemState.PENDING}
    moving = set(ItemState) - {ItemState.SHARED}
    assert entered == moving
    assert left == moving - FINAL_ITEM | {ItemState.FAILED}
