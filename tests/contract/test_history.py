"""Facts in any order, repeated, lost, misaddressed: the ledger ends where the true history ends.

A machine plays a provider that remembers everything, and a world that tells the ledger about it badly. At the end the world
tells the rest, as the sweep would; then the two books must agree.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.core.cost import Price, to_units
from orchestrator.core.lifecycle import FINAL_ITEM, AttemptState, Event
from orchestrator.core.ports import ClaimTerms
from orchestrator.core.records import Change, Delivery, Fact, NewBatch, NewChunk, NewItem, Prediction, Receipt, Standing, Target
from orchestrator.core.retry import Policy, decide, event_of
from orchestrator.gateways.ledger import Database, SqlLedger

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of small transactions
ROWS = 4  # the first two have the same input
PRICE = Price("test", "run", Decimal("0.003"), failed="free")
POLICY = Policy(3, 0.0, canceling=False, price=PRICE, count_files=lambda _: 1)
ENDS = ("succeeded", "succeeded", "failed", "again")
ERRORS = {"failed": "Error: it is broken", "again": "Prediction interrupted; please retry (code: PA)"}


@dataclass
class Bought:
    """A prediction as the provider has it."""

    id: str
    attempt_id: str
    row: int
    end: str
    canceled: bool = False

    def account(self, *, ended: bool) -> Prediction:
        status = "canceled" if self.canceled else {"again": "failed"}.get(self.end, self.end)
        done = Prediction(self.id, status, output="https://x/1.png" if status == "succeeded" else None,
                          error=ERRORS.get(self.end) if status == "failed" else None, created_at=NOW,
                          completed_at=NOW + timedelta(seconds=2), metrics={"predict_time": 1.0})
        return done if ended else Prediction(self.id, "processing", created_at=NOW)


def _decide(standing: Standing, fact: Fact) -> Change | None:
    return decide(standing, fact, policy=POLICY, jitter=0.0)


class History(RuleBasedStateMachine):
    """The provider, the world, and the ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="history-", dir=MEMORY))
        shutil.copy(_empty_ledger(), self.folder / "ledger.db")
        self.runner = asyncio.Runner()
        self.database = Database(f"sqlite:///{self.folder / 'ledger.db'}")
        self.ledger = SqlLedger(self.database)
        self.batch_pk = self.runner.run(_load(self.ledger))
        self.bought: dict[str, Bought] = {}  # by prediction
        self.rows: dict[str, int] = {}  # attempt -> row
        self.heard: list[Fact] = []  # answers of POSTs, each true
        self.refused: list[Fact] = []
        self.absent: set[str] = set()  # attempts that were found so, rightly or not: they reserve nothing any more
        self.claims = 0

    # What happens

    @rule(outcomes=st.lists(st.sampled_from(("heard", "lost", "never sent", "refused")), min_size=1, max_size=4),
          ends=st.lists(st.sampled_from(ENDS), min_size=4, max_size=4))
    def buy(self, outcomes: list[str], ends: list[str]) -> None:
        """Rows are claimed, and their POSTs go well or not; nobody has recorded an answer yet."""
        for outcome, end, attempt_id in zip(outcomes, ends, self._claim(len(outcomes)), strict=False):
            if outcome == "refused":
                self.refused.append(Fact(Event.THROTTLED, NOW, attempt_id, error="429"))
            if outcome in ("heard", "lost"):
                made = Bought(f"p{len(self.bought)}", attempt_id, self.rows[attempt_id], end)
                self.bought[made.id] = made
                if outcome == "heard":
                    self.heard.append(_fact(made.account(ended=False), attempt_id=attempt_id, via="post", bound_by="post"))

    @precondition(lambda self: self.heard or self.refused)
    @rule(data=st.data())
    def answers_are_recorded(self, data: st.DataObject) -> None:
        """Some, in any order, perhaps once more."""
        self._tell(data.draw(st.lists(st.sampled_from(self.heard + self.refused), max_size=3)))

    @precondition(lambda self: self.bought)
    @rule(data=st.data(), ended=st.booleans())
    def the_list_tells(self, data: st.DataObject, ended: bool) -> None:
        """By prediction only, early news after late ones."""
        told = data.draw(st.lists(st.sampled_from(sorted(self.bought)), max_size=3))
        self._tell([_fact(self.bought[i].account(ended=ended), via="list") for i in told])

    @precondition(lambda self: self.bought)
    @rule(data=st.data(), ended=st.booleans())
    def webhooks_come(self, data: st.DataObject, ended: bool) -> None:
        """Each to the attempt that bought, unless somebody replays its body to another one's address."""
        known = sorted(self.rows)
        given = [Delivery(f"m{n}{i}{ended}", data.draw(st.sampled_from([self.bought[i].attempt_id] * 3 + known)),
                          self.bought[i].account(ended=ended), NOW)
                 for n, i in enumerate(data.draw(st.lists(st.sampled_from(sorted(self.bought)), min_size=1, max_size=3)))]
        receipts, _ = self.runner.run(self.ledger.receive(given, decide=_decide))
        for delivery, receipt in zip(given, receipts, strict=True):
            if receipt is Receipt.RECORDED:
                assert self._owner(delivery.prediction.id) == delivery.attempt_id

    @rule()
    def leases_run_out(self) -> None:
        """What nobody has heard of is unsure."""
        self._tell([Fact(Event.ANSWER_LOST, NOW, i, error_class="unsure") for i in self._in(AttemptState.OPEN)])

    @rule(data=st.data())
    def an_equal_one_is_adopted(self, data: st.DataObject) -> None:
        """By input, which may be the twin's."""
        for attempt_id in self._in(AttemptState.UNSURE):
            free = [made for made in self._free() if _input_of(made.row) == _input_of(self.rows[attempt_id])]
            if free:
                chosen = data.draw(st.sampled_from(free)).account(ended=data.draw(st.booleans()))
                self._tell([_fact(chosen, attempt_id=attempt_id, via="list", bound_by="input")])

    @rule(data=st.data(), wrongly=st.booleans())
    def some_are_found_absent(self, data: st.DataObject, wrongly: bool) -> None:
        """Rightly; or the provider was slower than anybody thought, or nobody could say."""
        sent = {made.attempt_id for made in self.bought.values()}
        for attempt_id in self._in(AttemptState.UNSURE):
            if attempt_id not in sent or wrongly:
                event = data.draw(st.sampled_from((Event.ABSENT, Event.GIVEN_UP)))
                self.absent |= {attempt_id} if event is Event.ABSENT else set()
                self._tell([Fact(event, NOW, attempt_id, error="?", error_class="unsure")])

    @rule()
    def an_operator_retries(self) -> None:
        """All classes, unsure rows too."""
        self.runner.run(self.ledger.reopen_failed(self.batch_pk, classes=frozenset({"unsure", "model"})))

    # What always holds

    @invariant()
    def every_prediction_has_one_owner_at_most(self) -> None:
        """And an attempt that is running, or has run, has a prediction."""
        table = self._attempts()
        owners = [prediction_id for _, prediction_id, *_ in table if prediction_id]
        assert len(owners) == len(set(owners))
        with_one = {"running", "succeeded", "failed", "canceled"}
        assert all(prediction_id for _, prediction_id, state, *_ in table if state in with_one)
        assert not any(prediction_id for _, prediction_id, state, *_ in table if state in ("open", "unsure", "absent", "lost"))

    @invariant()
    def three_books_tell_the_same_money(self) -> None:
        """What is spent and reserved by the batch is so by its days, and by its attempts; and an attempt reserves its price until
        its charge is known."""
        table, of_batch, of_days = self._money()
        assert of_batch == of_days == (sum(row.charge_units or 0 for row in table), sum(row.reserved_units for row in table))
        assert all(row.reserved_units == to_units(PRICE.usd) for row in table
                   if row.charge_units is None and row.id not in self.absent)
        assert not any(row.reserved_units for row in table if row.charge_units is not None or row.id in self.absent)

    def teardown(self) -> None:
        """The world tells the rest; then the books are compared."""
        try:
            self._settle()
            self._compare()
        finally:
            self.runner.run(self.database.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    def _settle(self) -> None:
        for _ in range(40):
            self._tell([*self.refused, *self.heard])
            self.leases_run_out()
            self._find_lost()
            for _, prediction_id, _, surplus in self._attempts():
                if surplus and prediction_id in self.bought and self._state_of(prediction_id) == "running":
                    self.bought[prediction_id].canceled = True
            self._tell([_fact(made.account(ended=True), via="list") for made in self.bought.values()])
            self._tell([Fact(Event.COLLECTED, NOW, attempt_id) for attempt_id in self._in(AttemptState.SUCCEEDED)])
            if all(item.state in FINAL_ITEM for item in self._items()):
                return
            self.buy(["heard"] * ROWS, ["succeeded"] * ROWS)
        raise AssertionError([item.state for item in self._items()])

    def _find_lost(self) -> None:
        """As the sweep does, with the provider echoing our id: what is there is bound, what is not is absent."""
        for made in list(self.bought.values()):
            if self._owner(made.id) is None:
                self._tell([_fact(made.account(ended=False), attempt_id=made.attempt_id, via="list", bound_by="url")])
        for made in list(self.bought.values()):  # an attempt that holds its twin's: this one is the twin's then
            if self._owner(made.id) is None:
                for attempt_id in self._in(AttemptState.UNSURE):
                    if _input_of(self.rows[attempt_id]) == _input_of(made.row):
                        self._tell([_fact(made.account(ended=False), attempt_id=attempt_id, via="list", bound_by="input")])
                        break
        self.absent |= set(self._in(AttemptState.UNSURE))
        self._tell([Fact(Event.ABSENT, NOW, i) for i in self._in(AttemptState.UNSURE)])

    def _compare(self) -> None:
        """Every prediction is in the ledger once, with its end; each row has what it bought; the dollars are equal."""
        ended = {prediction_id: (attempt_id, state) for attempt_id, prediction_id, state, _ in self._attempts() if prediction_id}
        assert ended.keys() == self.bought.keys()
        for made in self.bought.values():
            attempt_id, state = ended[made.id]
            status = made.account(ended=True).status
            assert state == status, (made, state)
            assert _input_of(self.rows[attempt_id]) == _input_of(made.row)  # twins may have changed places
        paid = sum(made.account(ended=True).status == "succeeded" for made in self.bought.values())
        self.three_books_tell_the_same_money()
        table, of_batch, _ = self._money()
        held = sum(row.charge_units is None and row.id not in self.absent for row in table)  # may have cost something
        assert of_batch == (paid * to_units(PRICE.usd), held * to_units(PRICE.usd))

    # The ledger, asked

    def _claim(self, count: int) -> list[str]:
        ids = [f"a{self.claims + n:025d}" for n in range(count)]
        self.claims += count
        far = NOW + timedelta(days=1)
        terms = ClaimTerms(far, far, far, "w", to_units(PRICE.usd))
        claims = self.runner.run(self.ledger.claim(self.batch_pk, attempt_ids=ids, terms=terms))
        self.rows |= {claim.attempt_id: claim.index for claim in claims}
        return [claim.attempt_id for claim in claims]

    def _tell(self, facts: Sequence[Fact]) -> None:
        if facts:
            self.runner.run(self.ledger.move(facts, decide=_decide))

    def _attempts(self) -> list[Any]:
        async def read(connection: Any) -> list[Any]:
            rows = await connection.exec_driver_sql("SELECT id, prediction_id, state, surplus_at FROM attempts ORDER BY id")
            return list(rows.all())

        return self.runner.run(self.database.read(read))

    def _money(self) -> tuple[list[Any], tuple[int, int], tuple[int, int]]:
        """Every attempt with its money, and what the batch and its days have spent and reserve."""
        async def read(connection: Any) -> tuple[list[Any], tuple[int, int], tuple[int, int]]:
            rows = (await connection.exec_driver_sql("SELECT id, charge_units, reserved_units FROM attempts")).all()
            spent, reserved, of_days, held = (await connection.exec_driver_sql(
                "SELECT spent_units, reserved_units, (SELECT COALESCE(SUM(spent_units), 0) FROM batch_days), "
                "(SELECT COALESCE(SUM(reserved_units), 0) FROM batch_days) FROM batches")).one()
            return list(rows), (spent, reserved), (of_days, held)

        return self.runner.run(self.database.read(read))

    def _in(self, state: AttemptState) -> list[str]:
        return [attempt_id for attempt_id, _, now, _ in self._attempts() if now == state.value]

    def _owner(self, prediction_id: str) -> str | None:
        return next((i for i, held, *_ in self._attempts() if held == prediction_id), None)

    def _state_of(self, prediction_id: str) -> str | None:
        return next((state for _, held, state, _ in self._attempts() if held == prediction_id), None)

    def _free(self) -> list[Bought]:
        owned = {prediction_id for _, prediction_id, *_ in self._attempts()}
        return [made for made in self.bought.values() if made.id not in owned]

    def _items(self) -> list[Any]:
        async def all_of() -> list[Any]:
            return [item async for _, items in self.ledger.results(self.batch_pk) for item in items]

        return self.runner.run(all_of())


def _input_of(row: int) -> int:
    return max(row, 1)


def _fact(prediction: Prediction, *, via: str, attempt_id: str | None = None, bound_by: str | None = None) -> Fact:
    return Fact(event_of(prediction), NOW, attempt_id, prediction, via=via, bound_by=bound_by)


async def _load(ledger: SqlLedger) -> int:
    batch, _ = await ledger.open_batch(NewBatch(
        id="b", job="j", run_key="b", account="acme", created_at=NOW, target=Target("models", "a/b", None), job_json="{}",
        schema_json="{}", source_json="[]", price_json="null", output_to="/o", in_flight=100, max_attempts=3))
    items = [NewItem(n, str(n), f'{{"seed":{_input_of(n)}}}', f"h{_input_of(n)}") for n in range(ROWS)]
    await ledger.add_chunk(batch.pk, NewChunk(0, items, b""))
    await ledger.seal(batch.pk, total=ROWS, source_schema_json="{}", now=NOW)
    return batch.pk


def _empty_ledger() -> Path:
    """Made once, copied for each example."""
    if not _made:
        path = Path(tempfile.mkdtemp(prefix="history-", dir=MEMORY)) / "ledger.db"
        asyncio.run(_create(path))
        _made.append(path)
    return _made[0]


_made: list[Path] = []


async def _create(path: Path) -> None:
    async with Database.open(f"sqlite:///{path}"):
        pass


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=20, deadline=None,
                                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
