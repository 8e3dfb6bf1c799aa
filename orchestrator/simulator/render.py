"""Predictions as JSON, in the two dialects that real answers show.

Creates speak for a fast store (id first, keys absent instead of null, milliseconds or nanoseconds), everything else for
a database (keys in alphabetical order, nulls, microseconds). Replicate's own clients had to cope with both.
"""

import base64
from datetime import UTC, datetime
from typing import Any

import orjson

from orchestrator.simulator.outputs import DOT, output_of, partial_output
from orchestrator.simulator.words import film_hundredths, token_counts
from orchestrator.simulator.world import Prediction, World


class Renderer:
    """Writes the predictions of one world."""

    def __init__(self, world: World) -> None:
        """Take the world whose clock and switches decide what is seen."""
        self._world = world

    def created(self, prediction: Prediction, *, base_url: str, waited: bool = False) -> dict[str, Any]:
        """Return the answer to a create: always `starting`, or after a wait `processing` with the output filled in."""
        document: dict[str, Any] = {"id": prediction.id}
        document.update(self._names(prediction))
        given = orjson.loads(prediction.input)
        document["input"] = {name: _shown(prediction, name, given[name]) for name in sorted(given)}
        document["logs"] = ""
        if waited and prediction.end_status == "succeeded":
            document["output"] = self._sync_output(prediction, base_url=base_url)
        document |= {"data_removed": False, "error": prediction.error if waited else None, "status": "starting"}
        if waited:
            document["status"] = "processing" if prediction.end_status == "succeeded" else prediction.end_status
        document["created_at"] = _fast_time(self._micros(prediction.created_at), fine=prediction.key[1] % 2 == 0)
        if prediction.deadline_at is not None:
            document["deadline"] = self._time(prediction.deadline_at)
        document["urls"] = _urls(prediction.id, base_url)
        if prediction.target.deployment:
            document["deployment"] = prediction.target.deployment.name
        if prediction.webhook is not None:
            document["webhook"] = prediction.webhook
            if prediction.events is not None:
                document["webhook_events_filter"] = prediction.events
        return document

    def stored(self, prediction: Prediction, *, base_url: str, now: float, listed: bool = False) -> dict[str, Any]:
        """Return a prediction as GET, cancel and the listing show it; list items carry neither logs nor webhook."""
        status = prediction.status(now)
        removed = self._world.removed(prediction, now)
        ended = now >= prediction.end_at
        started = now >= prediction.start_at and (not ended or prediction.started)
        output = None if removed else self._output(prediction, base_url=base_url, now=now, status=status)
        document: dict[str, Any] = {
            "completed_at": self._time(prediction.end_at, floor=prediction.key[0]) if ended else None,
            "created_at": _micro_time(prediction.key[0]),
            "data_removed": removed,
            "error": prediction.error if ended else None,
            "id": prediction.id,
            "input": {} if removed else _redacted(prediction),
            "logs": None if removed else self._logs(prediction, status=status),
            "metrics": self._metrics(prediction) if ended else {},
            **self._names(prediction),
            "output": output,
            "source": "api",
            "started_at": self._time(prediction.start_at, floor=prediction.key[0]) if started else None,
            "status": status,
            "urls": _urls(prediction.id, base_url),
            "webhook": prediction.webhook,
            "webhook_events_filter": prediction.events,
        }
        if prediction.deadline_at is not None:
            document["deadline"] = self._time(prediction.deadline_at)
        if prediction.target.deployment:
            document["deployment"] = prediction.target.deployment.name
        if listed:
            self._as_item(document)
        return dict(sorted(document.items()))

    def _as_item(self, document: dict[str, Any]) -> None:
        del document["logs"]
        if not self._world.faults.standing("list_webhook"):
            del document["webhook"], document["webhook_events_filter"]

    def _names(self, prediction: Prediction) -> dict[str, str]:
        """Return model and version as echoed; what official models hide depends on the year."""
        target = prediction.target
        if not target.model.official:
            return {"model": target.model.slug, "version": target.version.id}
        if self._world.faults.standing("internal_names"):
            return {"model": f"replicate-internal/{target.model.name}-fp8", "version": f"dp-{target.version.id[-32:]}"}
        return {"model": target.model.slug, "version": "hidden"}

    def _output(self, prediction: Prediction, *, base_url: str, now: float, status: str) -> Any:
        if status == "succeeded":
            return output_of(prediction, base_url=base_url)
        return partial_output(prediction, now=now) if status == "processing" else None

    def _sync_output(self, prediction: Prediction, *, base_url: str) -> Any:
        """Return the output of a waited-for create, with files inlined if the switch says so."""
        output = output_of(prediction, base_url=base_url)
        if not self._world.faults.standing("sync_data_uris"):
            return output
        inline = "data:image/png;base64," + base64.b64encode(DOT).decode()
        files = f"{base_url}/files/"
        if isinstance(output, str):
            return inline if output.startswith(files) else output
        if isinstance(output, list):
            return [inline if str(part).startswith(files) else part for part in output]
        return output

    def _logs(self, prediction: Prediction, *, status: str) -> str | None:
        if status == "starting" or status == "aborted":
            return None
        lines = f"Running {prediction.target.model.slug}\n"
        return lines + (f"{prediction.error}\n" if prediction.error and status == "failed" else "")

    def _metrics(self, prediction: Prediction) -> dict[str, float]:
        metrics: dict[str, float] = {"total_time": round(prediction.end_at - prediction.created_at, 6)}
        if prediction.started:
            metrics["predict_time"] = round(prediction.predict_s, 6)
        if prediction.target.model.kind == "tokens" and prediction.end_status == "succeeded":
            tokens_in, tokens_out = token_counts(orjson.loads(prediction.input), prediction.id)
            pace = round(tokens_out / max(prediction.predict_s, 0.001), 3)
            metrics |= {"input_token_count": tokens_in, "output_token_count": tokens_out, "tokens_per_second": pace}
            metrics["time_to_first_token"] = round(prediction.predict_s / (tokens_out + 1), 6)
        if prediction.end_status == "succeeded" and not self._world.faults.standing("untold_counts"):
            metrics |= _counts(prediction)
        return dict(sorted(metrics.items()))

    def _micros(self, at: float) -> int:
        return int((at + self._world.clock_offset_s) * 1e6)

    def _time(self, at: float, *, floor: int = 0) -> str:
        return _micro_time(max(self._micros(at), floor))


def _counts(prediction: Prediction) -> dict[str, float]:
    """Return what official models of 2025 and later tell of what they are billed by."""
    given = orjson.loads(prediction.input)
    if prediction.target.model.kind == "film":
        return {"video_output_duration_seconds": film_hundredths(given, prediction.id) / 100}
    if prediction.target.model.price.image_by_quality:
        return {"image_output_count": int(given.get("num_outputs") or 1)}
    return {}


def _redacted(prediction: Prediction) -> Any:
    given = orjson.loads(prediction.input)
    return {name: _shown(prediction, name, value) for name, value in given.items()}


def _shown(prediction: Prediction, name: str, value: Any) -> Any:
    """Return an input value as echoed; how real answers word a redacted secret is not known."""
    return "[REDACTED]" if name in prediction.target.version.validator.secrets else value


def _urls(prediction_id: str, base_url: str) -> dict[str, str]:
    get = f"{base_url}/v1/predictions/{prediction_id}"
    return {"cancel": f"{get}/cancel", "get": get, "web": f"{base_url}/p/{prediction_id}"}


def _fast_time(micros: int, *, fine: bool) -> str:
    """Return a creation time as creates tell it: milliseconds, or nanoseconds."""
    whole = datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{micros % 1_000_000:06d}14Z" if fine else f"{whole}.{micros % 1_000_000 // 1000:03d}Z"


def _micro_time(micros: int) -> str:
    return (
        datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{micros % 1_000_000:06d}Z"
    )
