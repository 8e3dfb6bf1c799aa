"""A schedule: what is bought, what the provider does wrong, and what is done to our processes. Drawn from a seed, purely."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

MODELS = {"flux": "black-forest-labs/flux-schnell", "sdxl": "stability-ai/sdxl"}
SHAPES = ("sqlite run", "sqlite up", "postgresql run", "postgresql roles")

# What may be done where. The words are the keys of `acts.ACTS`.
ALWAYS = ("kill command", "kill everything", "kill worker", "ctrl-c", "sigterm", "flush redis", "kill redis")
ALSO = {
    "sqlite run": (),
    "sqlite up": ("kill scheduler", "kill web", "kill up"),
    "postgresql run": ("restart postgresql", "crash postgresql"),
    "postgresql roles": ("kill scheduler", "kill web", "stop worker", "restart postgresql", "crash postgresql"),
}
# What befalls creates, with its usual share. Late creations come within the margin that the protocol grants them.
CREATES: dict[str, dict[str, Any]] = {
    "lost_answer": {"p": 0.1},
    "lost_answer_reset": {"p": 0.1},
    "error_after": {"p": 0.08, "status": 502},
    "cut_answer": {"p": 0.05},
    "garbage_answer": {"p": 0.05},
    "reset_before": {"p": 0.05},
    "close_before": {"p": 0.05},
    "error_before": {"p": 0.05, "status": 503},
    "late_creation": {"p": 0.05, "seconds": 0.8},
    "slow_answer": {"p": 0.05, "seconds": 1.0},
    "storm_429": {"p": 0.05, "seconds": 1.0},
}
READS: dict[str, dict[str, Any]] = {
    "list_lag": {"p": 1.0, "seconds": 2.0},
    "list_error": {"p": 0.2, "status": 502},
    "get_error": {"p": 0.2},
    "next_drops_filters": {"p": 1.0},
    "output_error": {"p": 0.05, "status": 503},
    "output_truncated": {"p": 0.05},
    "output_reset": {"p": 0.05},
}
WEBHOOKS: dict[str, dict[str, Any]] = {
    "webhook_dropped": {"p": 0.3},
    "webhook_doubled": {"p": 0.3},
    "webhook_early": {"p": 0.2, "seconds": 1.0},
    "webhook_late": {"p": 0.2, "seconds": 1.5},
    "webhook_reordered": {"p": 0.3},
    "webhook_forged": {"p": 0.3},
    "webhook_old": {"p": 0.2},
    "webhook_two_signatures": {"p": 0.2},
    "webhook_misaddressed": {"p": 0.3},
}
INTERRUPTED = "Prediction interrupted; please retry (code: PA)"
FAILS: tuple[dict[str, Any] | None, ...] = (
    None, None, {"p": 0.08, "text": INTERRUPTED}, {"p": 0.3, "text": INTERRUPTED}, {"p": 0.05, "text": "NSFW content detected"})
OFFSETS_S = (0.0, 0.0, 0.0, 600.0, -600.0, 200.0, -45.0)


@dataclass(frozen=True, slots=True)
class Act:
    """Something violent: as soon as this share of the rows was bought, and so many seconds later.

    `away_s`: how long what was taken away stays away, where that is ours to decide. `which`: of two commands."""

    what: str
    share: float
    wait_s: float
    away_s: float
    which: int

    def __str__(self) -> str:
        return f"{self.what}@{self.share:.0%}+{self.wait_s:.1f}s"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Everything that one seed stands for. `jobs`: keys of MODELS, run at the same time on the same rows."""

    seed: int
    shape: str
    rows: int
    distinct: int
    jobs: tuple[str, ...]
    webhooks: bool
    echoes: bool
    offset_s: float
    faults: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    acts: tuple[Act, ...]

    @property
    def switches(self) -> dict[str, dict[str, Any]]:
        """The faults as the simulator takes them."""
        return {name: dict(fields) for name, fields in self.faults}

    @property
    def prompts(self) -> list[str]:
        """What the rows ask for; with fewer distinct ones than rows, some rows are equal."""
        return [f"a teapot of kind {place % self.distinct}" for place in range(self.rows)]

    @property
    def is_evident(self) -> bool:
        """Whether purchases name their attempt, in webhooks or in the list: then hardly any doubt may stay."""
        return self.webhooks or self.echoes

    def __str__(self) -> str:
        equal = f" ({self.distinct} distinct)" * (self.distinct < self.rows)
        parts = [self.shape, f"{'+'.join(self.jobs)}×{self.rows}{equal}",
                 "webhooks" * self.webhooks, "echoes" * self.echoes, f"clock{self.offset_s:+.0f}s" * bool(self.offset_s),
                 " ".join(name for name, _ in self.faults), "| " + ", ".join(map(str, self.acts))]
        return f"seed {self.seed}: " + " ".join(part for part in parts if part)


def drawn(seed: int, *, shapes: Sequence[str] = SHAPES) -> Schedule:
    """The schedule of a seed; always the same one for the same arguments."""
    chance = Random(seed)
    shape = chance.choice(shapes)
    rows = chance.randint(20, 60)
    webhooks = shape == "postgresql roles" or chance.random() < 0.5
    return Schedule(
        seed=seed, shape=shape, rows=rows,
        distinct=rows if chance.random() < 0.6 else max(3, rows // chance.randint(2, 6)),
        jobs=chance.choice([("flux",), ("flux",), ("sdxl",), ("flux", "sdxl")]),
        webhooks=webhooks, echoes=webhooks and chance.random() < 0.3, offset_s=chance.choice(OFFSETS_S),
        faults=_faults(chance, webhooks=webhooks), acts=_acts(chance, shape, webhooks=webhooks))


def _faults(chance: Random, *, webhooks: bool) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
    """A few of each kind; lost answers nearly always."""
    names = ["lost_answer"] * (chance.random() < 0.8)
    names += chance.sample(sorted(CREATES.keys() - {"lost_answer"}), chance.randint(0, 3))
    names += chance.sample(sorted(READS), chance.randint(0, 2))
    if webhooks:
        names += chance.sample(sorted(WEBHOOKS), chance.randint(1, 5))
    known = CREATES | READS | WEBHOOKS
    switches = {name: known[name] for name in names}
    fail = chance.choice(FAILS)
    if fail is not None:
        switches["fail"] = fail
    return tuple((name, tuple(fields.items())) for name, fields in switches.items())


def _acts(chance: Random, shape: str, *, webhooks: bool) -> tuple[Act, ...]:
    """None to four, in the order of their shares."""
    possible = [*ALWAYS, *ALSO[shape], *(["kill web"] if webhooks and "kill web" not in ALSO[shape] else [])]
    acts = [_act(chance, chance.choice(possible)) for _ in range(chance.choice([0, 1, 2, 2, 3, 3, 4]))]
    return tuple(sorted(acts, key=lambda act: act.share))


def _act(chance: Random, what: str) -> Act:
    """Mostly while rows are bought; some while they are loaded, some while the last ones are brought home and told of."""
    share = min(1.0, max(0.0, chance.uniform(-0.15, 1.2)))
    wait_s = chance.uniform(0.0, 5.0) if share in (0.0, 1.0) else chance.expovariate(2.0)
    return Act(what, share=round(share, 2), wait_s=round(wait_s, 1), away_s=round(chance.uniform(0.2, 3.0), 1),
               which=chance.randrange(2))
