"""Signatures of webhooks, and the secrets they are made with (Standard Webhooks; Replicate docs: verify webhooks)."""

from base64 import b64decode, b64encode
from hashlib import blake2b
from hmac import digest


class Secrets:
    """The signing secrets of the accounts, one each; in an overlap deliveries are signed with the one before it too."""

    def __init__(self, seed: int) -> None:
        """Start with first secrets that depend on nothing but the seed and the account's name."""
        self._seed = seed
        self._turn = 0
        self._overlap = False

    def rotate(self, *, overlap: bool) -> None:
        """Give every account a new secret; with `overlap` the old one signs as well, until the next rotation."""
        self._turn += 1
        self._overlap = overlap

    def served(self, account: str) -> str:
        """Return what the API tells: `whsec_` and the base64 of 24 bytes."""
        return self._text(self._turn, account)

    def signature(self, account: str, *, message_id: str, stamp: int, body: bytes) -> str:
        """Return the header's value: one signature, or two in an overlap, the new one first."""
        turns = (self._turn, self._turn - 1) if self._overlap else (self._turn,)
        return " ".join(signed(self._text(turn, account), message_id=message_id, stamp=stamp, body=body) for turn in turns)

    def _text(self, turn: int, account: str) -> str:
        return "whsec_" + b64encode(blake2b(f"{self._seed}:{turn}:{account}".encode(), digest_size=24).digest()).decode()


def signed(secret: str, *, message_id: str, stamp: int, body: bytes) -> str:
    """Return `v1,` and the base64 of HMAC-SHA256 over id, timestamp and raw body; `stamp` in Unix seconds."""
    key = b64decode(secret.removeprefix("whsec_"))
    return "v1," + b64encode(digest(key, b"%s.%d.%s" % (message_id.encode(), stamp, body), "sha256")).decode()
