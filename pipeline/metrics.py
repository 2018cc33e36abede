"""A workspace's state as text that Prometheus scrapes: WS/metrics.prom, for its textfile collector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.standing import StepStanding

PATH = "metrics.prom"

_HELP = {
    "nphm_results": ("gauge", "Results that stand, by step and verdict"),
    "nphm_stale": ("gauge", "Results to be made or made anew, by step"),
    "nphm_damaged": ("gauge", "Results whose outputs are not what their manifests say, by step"),
    "nphm_run_results": ("gauge", "Results made by the last run, by step"),
    "nphm_run_seconds": ("gauge", "Seconds of work of the last run, by step"),
    "nphm_run_elapsed": ("gauge", "Seconds of the last run from a step's first start to its last end, by step"),
    "nphm_run_bytes": ("gauge", "Bytes written by the last run, by step"),
    "nphm_run_failures": ("gauge", "Steps of the last run that failed"),
    "nphm_run_ended_timestamp_seconds": ("gauge", "When the last run ended, seconds since 1970"),
    "nphm_model_figure": ("gauge", "Figures of the promoted model, units in their names"),
}


def metrics_text(
    standing: Sequence[StepStanding],
    cost: Mapping[str, Mapping[str, float]],
    *,
    failures: int,
    ended: float,
    model: str = "",
    figures: Mapping[str, object] | None = None,
) -> bytes:
    """The metrics of a workspace after a run.

    Args:
        standing: how each step stands.
        cost: results, seconds of work and of the clock, and bytes by step.
        failures: steps that failed.
        ended: seconds since 1970.
        model: the promoted model's name.
        figures: its figures; those that are no numbers are left out.
    """
    samples: list[tuple[str, dict[str, str], float]] = []
    for step in standing:
        samples.append(("nphm_results", {"step": step.step, "verdict": "accepted"}, step.accepted))
        samples.append(("nphm_results", {"step": step.step, "verdict": "rejected"}, step.rejected))
        samples.append(("nphm_stale", {"step": step.step}, step.stale))
        samples.append(("nphm_damaged", {"step": step.step}, len(step.damaged)))
    for name, sums in cost.items():
        samples += [(f"nphm_run_{what}", {"step": name}, value) for what, value in sums.items()]
    samples.append(("nphm_run_failures", {}, failures))
    samples.append(("nphm_run_ended_timestamp_seconds", {}, ended))
    for figure, value in (figures or {}).items():
        if isinstance(value, int | float):
            samples.append(("nphm_model_figure", {"model": model, "figure": figure}, value))
    return "".join(_lines(samples)).encode()


def _lines(samples: Sequence[tuple[str, dict[str, str], float]]) -> Iterable[str]:
    """All samples of a metric together, after what it is."""
    for name, (kind, text) in _HELP.items():
        own = [(labels, value) for metric, labels, value in samples if metric == name]
        if own:
            yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
        for labels, value in own:
            told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            yield f"{name}{{{told}}} {value:.17g}\n" if told else f"{name} {value:.17g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
