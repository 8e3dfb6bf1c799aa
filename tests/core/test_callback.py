"""The webhook's URL carries the attempt, and only ours does."""

import pytest

from orchestrator.core.callback import attempt_in, attempt_of, callback_url

ID = "0123456789abcdefghijklmnop"


@pytest.mark.parametrize("public", ["https://me.example", "https://me.example/", "http://127.0.0.1:8000/behind/proxy"])
def test_there_and_back(public: str):
    """What we hand out we know again."""
    assert attempt_of(callback_url(public, ID)) == ID


@pytest.mark.parametrize("url", [
    None, "", "https://me.example/webhooks/replicate", f"https://me.example/hook?attempt={ID}",
    "https://me.example/webhooks/replicate?attempt=../../etc", f"https://me.example/webhooks/replicate?attempt={ID.upper()}",
    f"https://me.example/webhooks/replicate?attempt={ID}&attempt={ID[::-1]}", "http://[broken/webhooks/replicate"])
def test_somebody_elses(url: str | None):
    """Another program's webhook names no attempt of ours, nor does one that names two."""
    assert attempt_of(url) is None


def test_more_parameters_do_no_harm():
    """A tunnel may add its own."""
    assert attempt_in(f"via=tunnel&attempt={ID}") == ID
    assert attempt_in("") is None
