"""The price book as it is written: files with hardware and models, read and checked, every fault with its file and key.

Pure: wiring brings the files (docs: config/prices.toml tells how an entry is written).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from orchestrator.core.cost import Rate, Tier, spelled
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import did_you_mean, listed
from orchestrator.core.prices import UNITS, Book, Entries, Entry, Layer, no_hardware

_RATES = (*UNITS, "per_output_token_usd")
_ABOUT = ("as_of", "source")
_MODEL_KEYS = ("hardware", *_RATES, "tiers", "fast_booting", *_ABOUT)
_HARDWARE_KEYS = ("per_second_usd", *_ABOUT)
_TIER_KEYS = ("when", *_RATES)
_MODEL_NAME = re.compile(r"[^/\s]+/[^/\s]+")
_DEAREST = Decimal(1_000_000)  # for one unit: whoever writes more has slipped


def read_book(files: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Book:
    """The book of these files, the strongest first: where each stands, the mark of its ids, and what it says.

    Raises BadInput with a line for everything that is wrong, each with file and key."""
    readers = [_Reader(place) for place, _, _ in files]
    layers = tuple(reader.layer(mark, said) for reader, (_, mark, said) in zip(readers, files, strict=True))
    book = Book(layers)
    for reader, layer in zip(readers, layers, strict=True):
        reader.check_hardware(layer, book.hardware_names())
    problems = [problem for reader in readers for problem in reader.problems]
    if problems:
        raise BadInput("\n".join(problems))
    return book


@dataclass(slots=True)
class _Reader:
    """One reading of a file, collecting what is wrong with it."""

    place: str
    problems: list[str] = field(default_factory=list)

    def wrong(self, key: str, sentence: str) -> None:
        """Keep a problem."""
        self.problems.append(f"{self.place}: {key}: {sentence}" if key else f"{self.place}: {sentence}")

    def layer(self, mark: str, said: Mapping[str, Any]) -> Layer:
        """A file, with its two sections."""
        self._known(said, "", ("hardware", "models"))
        return Layer(mark, self._section(said, "hardware", keys=_HARDWARE_KEYS), self._section(said, "models", keys=_MODEL_KEYS))

    def check_hardware(self, layer: Layer, known: Sequence[str]) -> None:
        """Every hardware that a model is said to run on has a price in some layer."""
        for name, entries in layer.models.items():
            for entry in entries:
                if entry.hardware is not None and entry.hardware not in known:
                    self.wrong(f"{_key('models', name)}.hardware", no_hardware(entry.hardware, known))

    def _section(self, said: Mapping[str, Any], section: str, *, keys: Sequence[str]) -> Entries:
        found = said.get(section, {})
        if not isinstance(found, Mapping):
            self.wrong(section, f"must hold entries, such as {_EXAMPLES[section]}")
            return {}
        return {name: self._entries(entry, section, name, keys=keys) for name, entry in found.items()}

    def _entries(self, said: Any, section: str, name: str, *, keys: Sequence[str]) -> tuple[Entry, ...]:
        """One entry, or a list of dated ones."""
        where = _key(section, name)
        if section == "models" and not _MODEL_NAME.fullmatch(name):
            self.wrong(where, "a model's name is owner/name, in quotes: " + _EXAMPLES["models"])
        many = said if isinstance(said, list) else [said]
        found = [self.entry(one, where if len(many) == 1 else f"{where}[{n}]", keys=keys) for n, one in enumerate(many)]
        entries = tuple(entry for entry in found if entry is not None)
        days = [entry.as_of for entry in entries]
        for day in sorted({str(day) for day in days if days.count(day) > 1}):
            self.wrong(where, f"two entries begin on the same day ({day}): say since when each holds (as_of), or leave one out"
                       if day != "None" else "of several entries each needs a day from which it holds: as_of = \"2026-09-01\"")
        return entries

    def entry(self, said: Any, where: str, *, keys: Sequence[str]) -> Entry | None:
        """One entry; None where it cannot be used."""
        if not isinstance(said, Mapping):
            self.wrong(where, f"must hold fields, such as {{ per_second_usd = \"0.000975\" }}, not {said!r}")
            return None
        before = len(self.problems)
        self._known(said, where, keys)
        tiers = self._tiers(said, where)
        unit = self._unit(said, where)
        entry = Entry(self._day(said, where), unit or "", self._rate(said, where), tuple(tiers),
                      said.get("hardware"), said.get("fast_booting") is True)
        self._words(said, where)
        return entry if len(self.problems) == before else None

    def _known(self, said: Mapping[str, Any], where: str, keys: Sequence[str]) -> None:
        for name in said:
            if name in keys:
                continue
            if re.search(r"thousand|million|hundred|per_1", name):
                self.wrong(_below(where, name), "say the price of one, divided: $3.00 per thousand outputs is "
                           "per_output_usd = \"0.003\"")
            else:
                self.wrong(_below(where, name), f"unknown{did_you_mean(name, keys)}; there are {listed(keys)}")

    def _unit(self, said: Mapping[str, Any], where: str) -> str | None:
        """The one unit of an entry and of all its tiers."""
        tiers = said.get("tiers")
        parts = [said, *(tier for tier in tiers if isinstance(tier, Mapping))] if isinstance(tiers, list) else [said]
        units = sorted({UNITS[name] for part in parts for name in UNITS if name in part})
        if said.get("hardware") is not None:
            units.append("second of hardware")
        if not units and any(name not in _MODEL_KEYS for part in parts for name in part if name != "when"):
            return None  # a misspelt one, and that was said
        if len(units) != 1:
            found = f"found {' and '.join(f'a price per {unit}' for unit in units)}" if units else "found none"
            self.wrong(where, f"say exactly one of hardware, {', '.join(UNITS)}: {found}")
            return None
        if units[0] == "second of hardware" and tiers:
            self.wrong(where, "hardware has no tiers: it is billed by the second whatever the input")
        return units[0].removesuffix(" of hardware")

    def _rate(self, said: Mapping[str, Any], where: str) -> Rate | None:
        out = self._usd(said, "per_output_token_usd", where)
        if ("per_output_token_usd" in said) != ("per_input_token_usd" in said):
            self.wrong(where, "per_input_token_usd and per_output_token_usd go together; where one is free say \"0\"")
        return next((Rate(usd, out) for name in UNITS if (usd := self._usd(said, name, where)) is not None), None)

    def _tiers(self, said: Mapping[str, Any], where: str) -> list[Tier]:
        tiers = said.get("tiers", [])
        if not isinstance(tiers, list):
            self.wrong(_below(where, "tiers"), f"must be a list, such as {_EXAMPLES['tiers']}")
            return []
        found = [self._tier(one, f"{where}.tiers[{n}]") for n, one in enumerate(tiers)]
        return [tier for tier in found if tier is not None]

    def _tier(self, said: Any, where: str) -> Tier | None:
        when = said.get("when") if isinstance(said, Mapping) else None
        if not isinstance(when, Mapping) or not when:
            self.wrong(where, f"a tier says when it holds and what it costs, such as {_EXAMPLES['tiers'][1:-1]}")
            return None
        self._known(said, where, _TIER_KEYS)
        rate = self._rate(said, where)
        if rate is None:
            self.wrong(where, f"a tier needs a price: one of {', '.join(UNITS)}")
            return None
        return Tier(tuple((name, tuple(spelled(one) for one in (value if isinstance(value, list) else [value])))
                          for name, value in when.items()), rate)

    def _usd(self, said: Mapping[str, Any], name: str, where: str) -> Decimal | None:
        """An amount; None where it is not said, or cannot be one."""
        if said.get(name) is None:
            return None
        try:
            usd = Decimal(str(said[name])) if not isinstance(said[name], bool) else None
        except InvalidOperation:
            usd = None
        if usd is None or not usd.is_finite():
            self.wrong(_below(where, name), f"{said[name]!r} is not an amount in US dollars, such as \"0.003\"")
            return None
        if not 0 <= usd <= _DEAREST:
            self.wrong(_below(where, name), f"{said[name]} is {'negative' if usd < 0 else 'too much'}: a price of one unit is "
                       f"between 0 and {_DEAREST} dollars")
            return None
        return usd

    def _day(self, said: Mapping[str, Any], where: str) -> date | None:
        """TOML has days of its own, and text will do."""
        day = said.get("as_of")
        if day is None or (isinstance(day, date) and not isinstance(day, datetime)):
            return day
        try:
            return date.fromisoformat(day)
        except (TypeError, ValueError):
            self.wrong(_below(where, "as_of"), f"{str(day)!r} is not a day; write it as \"2026-09-01\"")
            return None

    def _words(self, said: Mapping[str, Any], where: str) -> None:
        for name, kind, word in (("hardware", str, "text"), ("source", str, "text"), ("fast_booting", bool, "true or false")):
            if said.get(name) is not None and not isinstance(said[name], kind):
                self.wrong(_below(where, name), f"{said[name]!r} should be {word}")


_EXAMPLES = {"hardware": "gpu-t4 = { per_second_usd = \"0.000225\" }", "models": "[models.\"owner/name\"]",
             "tiers": "[{ when = { resolution = \"720p\" }, per_output_second_usd = \"0.10\" }]"}


def _key(section: str, name: str) -> str:
    return f"{section}.{name}" if re.fullmatch(r"[\w-]+", name, re.ASCII) else f'{section}."{name}"'


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
