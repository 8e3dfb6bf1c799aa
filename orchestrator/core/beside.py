"""An invoice laid beside the ledger: by model and day, and prediction by prediction where it names them. Pure.

Only sums are kept, and nine bytes for each row that was billed: a million rows take ten megabytes."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from orchestrator.core.cost import to_usd
from orchestrator.core.errors import BadInput
from orchestrator.core.invoice import InvoiceLine
from orchestrator.core.reckoning import Booked
from orchestrator.core.verify import Tries

CENT = Decimal("0.01")
FINEST = 12  # decimals that the ledger keeps
MOST_PILES = 10_000  # models, and days of models
MOST_KEPT = 1000
NO_MODEL = "(no model)"


class Verdict(StrEnum):
    """How a model's two sums stand to each other."""

    AGREES = "agrees"  # to the cent, or as closely as the lines are rounded
    UNKNOWN = "not known here"  # rows of it are of unknown cost: the ledger cannot say whether so much is right
    DIFFERS = "differs"
    NOT_BOUGHT = "not bought here"  # on the invoice only: somebody else's use of the account, or another ledger's
    NOT_BILLED = "not on the invoice"


class Kind(StrEnum):
    """What can be said of one prediction."""

    DIFFERS = "differs"
    NOT_BILLED = "not_on_invoice"
    UNKNOWN = "unknown_here"  # the invoice has its cost, the ledger does not: nothing wrong
    NOT_BOUGHT = "not_bought_here"


@dataclass(frozen=True, slots=True)
class Word:
    """One prediction on which the two do not agree. `line`: of the invoice, where the ledger does not know it."""

    kind: Kind
    prediction_id: str
    model: str
    billed_usd: Decimal | None
    ledger_usd: Decimal | None
    batch: str | None = None
    row: int | None = None
    row_id: str | None = None
    line: int | None = None


@dataclass(slots=True)
class Pile:
    """Both sides of one model, or of one of its days."""

    billed_usd: Decimal = Decimal(0)
    lines: int = 0
    ledger_units: int = 0
    predictions: int = 0  # of the ledger
    unknown_rows: int = 0  # of the ledger, and not in its sum
    expected_units: int = 0  # what some of these may have cost, by what was expected of such rows
    expected_rows: int = 0  # of how many of them that is said
    is_bought: bool = False  # the ledger has something of it

    @property
    def ledger_usd(self) -> Decimal:
        """What the ledger has."""
        return to_usd(self.ledger_units)

    @property
    def difference_usd(self) -> Decimal:
        """Billed, less what the ledger has."""
        return self.billed_usd - self.ledger_usd

    @property
    def expected_usd(self) -> Decimal | None:
        """What the rows of unknown cost may have cost; None: of one of them nobody can say."""
        is_told = self.unknown_rows and self.expected_rows == self.unknown_rows
        return to_usd(self.expected_units) if is_told else None

    def verdict(self, *, half: Decimal) -> Verdict:
        """`half`: half of the last digit that amounts are written with. By the two sums alone, so that it is the same however a
        file breaks them down: rows of unknown cost may explain any excess, and never that too little was billed."""
        if not self.is_bought:
            return Verdict.NOT_BOUGHT
        is_close = abs(self.difference_usd) < CENT or abs(self.difference_usd) <= half * max(0, self.lines - self.unknown_rows)
        if self.unknown_rows and (self.difference_usd > 0 if not is_close else not self.lines):
            return Verdict.UNKNOWN
        if is_close:
            return Verdict.AGREES
        return Verdict.DIFFERS if self.lines else Verdict.NOT_BILLED

    def add(self, other: "Pile") -> None:
        """The other one as well."""
        self.billed_usd += other.billed_usd
        self.lines += other.lines
        self.ledger_units += other.ledger_units
        self.predictions += other.predictions
        self.unknown_rows += other.unknown_rows
        self.expected_units += other.expected_units
        self.expected_rows += other.expected_rows
        self.is_bought = self.is_bought or other.is_bought


@dataclass(slots=True)
class Billed:
    """What the invoice has of each attempt of the ledger, in whatever order its lines come, and of several lines the sum."""

    units: dict[tuple[int, int], "array[int]"] = field(default_factory=dict)  # by batch and try: by row
    lines: dict[tuple[int, int], bytearray] = field(default_factory=dict)
    seen: dict[int, Tries] = field(default_factory=dict)

    def add(self, booked: Booked, usd: Decimal) -> None:
        """One line's amount. Raises BadInput for a sum beyond all measure."""
        key, row = (booked.batch_pk, booked.n), booked.row
        units, lines = self.units.setdefault(key, array("q")), self.lines.setdefault(key, bytearray())
        if row >= len(units):
            more = row + 1 - len(units)
            units.frombytes(bytes(8 * more))
            lines.extend(bytes(more))
        try:
            units[row] += int(usd.scaleb(FINEST).to_integral_value())
        except OverflowError:
            raise BadInput(f"prediction {booked.prediction_id} is billed more than can be") from None
        lines[row] = min(255, lines[row] + 1)
        self.seen.setdefault(booked.batch_pk, Tries()).add(row, booked.n)

    def of(self, booked: Booked) -> tuple[Decimal, int] | None:
        """What it was billed, and in how many lines."""
        tries = self.seen.get(booked.batch_pk)
        if tries is None or (booked.row, booked.n) not in tries:
            return None
        key = booked.batch_pk, booked.n
        return to_usd(self.units[key][booked.row]), self.lines[key][booked.row]


@dataclass(slots=True)
class Beside:
    """Everything that was read of both sides so far."""

    piles: dict[str, Pile] = field(default_factory=dict)
    days: dict[tuple[str, str], Pile] = field(default_factory=dict)
    lines: int = 0
    empty: int = 0  # lines without an amount
    outside: int = 0  # of days that were not asked for
    first: str | None = None  # the days that the invoice has
    last: str | None = None
    digits: int = 2  # decimals of the amount that has the most
    renamed: dict[str, str] = field(default_factory=dict)  # descriptions, and the model that each names
    billed: Billed = field(default_factory=Billed)
    counts: Counter[Kind] = field(default_factory=Counter)
    words: list[Word] = field(default_factory=list)
    compared: int = 0  # predictions that both have, with a cost
    nameless: set[str] = field(default_factory=set)  # models with lines that name no prediction
    strangers: Counter[str] = field(default_factory=Counter)  # predictions that the ledger does not know, by model

    @property
    def half(self) -> Decimal:
        """Half of the last digit that amounts are written with."""
        return Decimal(5).scaleb(-min(self.digits, FINEST) - 1)

    def add_line(self, line: InvoiceLine, model: str) -> None:
        """A line of the invoice. Raises BadInput where there are too many models to be kept."""
        self.lines += 1
        if line.prediction_id is None:
            self.nameless.add(model)
        self.digits = max(self.digits, line.digits)
        self._add(model, line.day, Pile(billed_usd=line.usd, lines=1))
        if line.day is not None:
            self.first, self.last = min(self.first or line.day, line.day), max(self.last or line.day, line.day)

    def rename(self, text: str, model: str) -> None:
        """A description that is taken for a model."""
        if text != model and len(self.renamed) < MOST_KEPT:
            self.renamed[text] = model

    def add_bought(self, model: str, day: str, bought: Pile) -> None:
        """What the ledger has of a model on a day."""
        bought.is_bought = True
        self._add(model, day, bought)

    def _add(self, model: str, day: str | None, some: Pile) -> None:
        self.piles.setdefault(model, Pile()).add(some)
        if day is not None:
            self.days.setdefault((model, day), Pile()).add(some)
        if len(self.piles) + len(self.days) > MOST_PILES:
            raise BadInput(f"more than {MOST_PILES:,} models and days of models; is {model!r} a model? Say which column tells "
                           "it: --columns model=COLUMN")

    def add_stranger(self, line: InvoiceLine, model: str) -> None:
        """A line about a prediction that the ledger does not know."""
        self.strangers[model] += 1
        self._say(Word(Kind.NOT_BOUGHT, line.prediction_id or "", model, line.usd, None, line=line.line))

    def compare(self, booked: Booked, *, model: str, batch: str) -> None:
        """One attempt of the ledger that the invoice names, or should."""
        found = self.billed.of(booked)
        need_not_be_there = not booked.units or model in self.nameless  # it cost nothing, or is in a line that names none
        if booked.prediction_id is None or (found is None and need_not_be_there):
            return
        ledger_usd = None if booked.units is None else to_usd(booked.units)
        about = booked.prediction_id, model, None if found is None else found[0], ledger_usd, batch, booked.row, booked.row_id
        if found is None:
            self._say(Word(Kind.NOT_BILLED, *about))
        elif ledger_usd is None:
            self._say(Word(Kind.UNKNOWN, *about))
        else:
            self.compared += 1
            if abs(found[0] - ledger_usd) > self.half * found[1]:
                self._say(Word(Kind.DIFFERS, *about))

    def _say(self, word: Word) -> None:
        self.counts[word.kind] += 1
        if self.counts[word.kind] <= MOST_KEPT:
            self.words.append(word)

    def verdicts(self) -> list[tuple[str, Pile, Verdict]]:
        """Every model: those bought here first, the dearest first."""
        half = self.half
        found = [(model, pile, pile.verdict(half=half)) for model, pile in self.piles.items()]
        return sorted(found, key=lambda one: (one[2] is Verdict.NOT_BOUGHT, -max(one[1].billed_usd, one[1].ledger_usd), one[0]))

    def days_of(self, model: str) -> list[tuple[str, Pile]]:
        """A model's days, in order."""
        return sorted((day, pile) for (name, day), pile in self.days.items() if name == model)

    def agrees(self) -> bool:
        """Whether what was bought here is on the invoice, at what it cost by the ledger, and nothing more of its models is."""
        return not self.differs() and not self.unconfirmed().unknown_rows

    def differs(self) -> bool:
        """Whether the two contradict each other somewhere. Rows of unknown cost contradict nothing."""
        wrong = (Verdict.DIFFERS, Verdict.NOT_BILLED)
        return bool(any(verdict in wrong for _, _, verdict in self.verdicts()) or self.strange()
                    or self.counts[Kind.DIFFERS] or self.counts[Kind.NOT_BILLED])

    def unconfirmed(self) -> Pile:
        """The models that nobody can confirm, as rows of theirs are of unknown cost: what is billed beyond the ledger's sum."""
        return total(pile for _, pile, verdict in self.verdicts() if verdict is Verdict.UNKNOWN)

    def strange(self) -> int:
        """Predictions that the ledger does not know, of models that it has bought."""
        return sum(many for model, many in self.strangers.items() if self.piles[model].is_bought)

    def together(self) -> Pile:
        """All of it."""
        return total(self.piles.values())


def total(piles: Iterable[Pile]) -> Pile:
    """All of them together."""
    found = Pile()
    for pile in piles:
        found.add(pile)
    return found
