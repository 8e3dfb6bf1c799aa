"""What a simulated Replicate can be told before it starts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """Everything that shapes one simulator, with defaults that follow Replicate's documentation.

    `tokens` are accepted as they stand; `token=account` puts several tokens on one account. Rates are per minute and
    per account, 0 means no limit; `burst` 0 means as deep as the rate, which is what the headers of real answers show.
    `latency_s` is the mean time from creation to completion of an ordinary image; `latency_between_s`, two numbers, draws it
    evenly between them instead, whatever the model. `seed` None draws a new one at each
    start, so that prediction ids of two runs never meet; with a number everything repeats. `credit_usd` None is a
    bottomless account. `retention_s` counts from completion. `clock_offset_s` is the provider's clock minus ours.
    Webhooks go to this machine only, unless `webhook_hosts` is `any`. `webhook_retry_scale` is the share of a minute in
    which they are tried again. `webhook_aborted` sends a completion for aborted predictions too; whether the real one
    does is not known.
    """

    host: str = "127.0.0.1"
    port: int = 8100
    tokens: tuple[str, ...] = ("r8_simulator",)
    creates_per_minute: float = 600.0
    burst: int = 0
    reads_per_minute: float = 3000.0
    polls_per_minute: float = 60000.0
    latency_s: float = 3.0
    latency_between_s: tuple[float, float] | None = None
    seed: int | None = None
    retention_s: float = 3600.0
    file_bytes: int | None = None
    failure_rate: float = 0.0
    clock_offset_s: float = 0.0
    credit_usd: str | None = None
    webhook_hosts: str = "loopback"
    webhook_retry_scale: float = 1.0
    webhook_aborted: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that would make a world without sense."""
        counted = ("creates_per_minute", "reads_per_minute", "polls_per_minute", "burst")
        for name in (*counted, "latency_s", "retention_s", "webhook_retry_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"simulator setting {name} is {getattr(self, name)}; give 0 or more")
        low, high = self.latency_between_s or (0.0, 0.0)
        if not 0 <= low <= high:
            raise ValueError(f"simulator setting latency_between_s is {low:g} to {high:g}; give 0 or more, the smaller first")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"simulator setting port is {self.port}; give 1 to 65535, or 0 for a free one")
        if self.webhook_hosts not in ("loopback", "any"):
            raise ValueError(f"simulator setting webhook_hosts is {self.webhook_hosts!r}; give loopback or any")
        if not 0 <= self.failure_rate <= 1:
            raise ValueError(f"simulator setting failure_rate is {self.failure_rate}; give a share between 0 and 1")
        if not self.tokens:
            raise ValueError("the simulator needs at least one token to accept; leave tokens out for r8_simulator")
