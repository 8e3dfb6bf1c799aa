"""One webhook: what it says about which moment of a prediction, and the copies that mischief makes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import orjson

from orchestrator.simulator.render import Renderer
from orchestrator.simulator.world import Prediction, World

OLD_S = 600
FORGED_OUTPUT = "https://replicate.delivery/forged.png"


@dataclass(slots=True, eq=False, kw_only=True)
class Message:
    """One webhook: the same id however often it is tried; `at` is the moment it tells of, in world seconds.

    `copy` is one that mischief sends besides the genuine one, and that is never tried again. `forged` says what is not
    so under a wrong signature, `stale` shows the prediction as it still ran, `back_s` dates the signature back, and
    `noise` puts signatures that do not count before the one that does.
    """

    id: str
    event: str
    prediction: Prediction
    at: float
    world: World
    url: str
    tries: int = 0
    first_try_at: float = 0.0
    copy: bool = False
    forged: bool = False
    stale: bool = False
    noise: bool = False
    back_s: int = 0
    fate: "Fate | None" = None


@dataclass(slots=True, kw_only=True)
class Fate:
    """What befalls one message: lost, late, and copies that go out before and after it."""

    dropped: bool = False
    late_s: float = 0.0
    before: list[Message] = field(default_factory=list)
    after: list[Message] = field(default_factory=list)


def fate_of(message: Message, *, new_id: Callable[[], str]) -> Fate:
    """Draw the switches for a message, once; those about its signature are noted in the message itself."""
    faults = message.world.faults
    if not faults.any_on:
        return Fate()
    if faults.strike("webhook_dropped"):
        return Fate(dropped=True)
    late = faults.strike("webhook_late")
    fate = Fate(late_s=0.0 if late is None else late.seconds)
    message.noise = faults.strike("webhook_two_signatures") is not None
    genuine = replace(message, copy=True, noise=False)
    if faults.strike("webhook_forged"):
        fate.before.append(replace(genuine, id=new_id(), forged=True))
    if faults.strike("webhook_old"):
        fate.before.append(replace(genuine, id=new_id(), back_s=OLD_S))
    if faults.strike("webhook_doubled"):
        fate.after.append(genuine)
    if message.event == "completed":
        if faults.strike("webhook_reordered"):
            fate.after.append(replace(genuine, id=new_id(), event="start", stale=True))
        url = _another_address(message) if faults.standing("webhook_misaddressed") else None
        if url is not None and faults.strike("webhook_misaddressed"):
            fate.after.append(replace(genuine, id=new_id(), url=url))
    return fate


def body_of(message: Message, *, renderer: Renderer) -> bytes:
    """Return the prediction as GET showed it at the message's moment: no envelope, no name of the event (Replicate docs).

    Of an image the output is told while it is still `processing`, as Cog does just before it completes.
    """
    prediction = message.prediction
    document = renderer.stored(prediction, base_url=prediction.base_url, now=message.at)
    if message.stale or message.event == "output":
        document |= {"status": "processing", "completed_at": None, "metrics": {}, "error": None}
    if message.stale:
        document["output"] = None
    if message.forged:
        document |= {"status": "succeeded", "output": FORGED_OUTPUT}
    return orjson.dumps(document)


def _another_address(message: Message) -> str | None:
    """Return the webhook of another prediction of the account that is not over, of the newest ones."""
    now = message.world.now()
    for other in reversed(message.world.account(message.prediction.account).predictions[-200:]):
        if other.webhook not in (None, message.url) and now < other.end_at:
            return other.webhook
    return None
