"""What is wrong, in sentences: counted, and kept up to a thousand of each kind. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

MOST_KEPT = 1000  # findings in full; the others are counted


class Kind(StrEnum):
    """What can be wrong."""

    MISSING = "missing"  # a file that came home is not there
    CHANGED = "changed"  # it is there, and is not what came home
    UNREADABLE = "unreadable"  # it is there, and nobody can say
    INCOMPLETE = "incomplete"  # a row succeeded with fewer files than outputs
    UNFINISHED = "unfinished"  # a row on its way in a batch that has ended: nobody looks after it any more
    MANIFEST = "manifest"  # manifest.jsonl says something else than the ledger
    RESULTS = "results"  # so does the results file
    UNRECORDED = "unrecorded"  # the provider shows a prediction of this batch that no attempt owns
    UNKNOWN_THERE = "unknown_there"  # an attempt's prediction that the provider does not know
    ENDED_OTHERWISE = "ended_otherwise"  # an attempt is recorded with another end than the provider's
    CHARGED_OTHERWISE = "charged_otherwise"  # its charge is not what the provider's word comes to now
    CHARGE = "charge"  # a charge is not its own quantity at its own price
    SPENT = "spent"  # what the batch spent is not the sum of its charges


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: a sentence, the row or prediction it is about, and what to do."""

    kind: Kind
    text: str
    row: int | None = None
    row_id: str | None = None
    path: str | None = None
    prediction_id: str | None = None
    remedy: str | None = None


@dataclass(slots=True)
class Findings:
    """All that is wrong: counted, and kept up to a thousand of each kind."""

    counts: dict[Kind, int] = field(default_factory=dict)
    kept: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding | None) -> None:
        """Note one; None is none."""
        if finding is None:
            return
        known = self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
        if known <= MOST_KEPT:
            self.kept.append(finding)

    def of(self, *kinds: Kind) -> int:
        """How many there are of these kinds."""
        return sum(self.counts.get(kind, 0) for kind in kinds)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())
