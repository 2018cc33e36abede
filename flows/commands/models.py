"""Verbs over a workspace's models."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from flows.commands import Workspace
from flows.console import PLAIN, Output, Reply

Name = Annotated[str, Parameter(name="NAME", help="A model of the workspace.")]

models = App(name="models", help="List a workspace's models and choose the one that is promoted.")


@models.command(name="list")
def list_models(*, workspace: Workspace, output: Output = PLAIN) -> Reply:
    """List the models with figures, training data, settings and parent; the promoted one is marked.

    For example:

        nphm models list -w heads
    """
    from pipeline.models import list_models
    from pipeline.opening import open_workspace

    found = list_models(open_workspace(workspace))
    lines = [line for model in found for line in _told(model)] or ["no model yet; 'nphm run' makes one"]
    return Reply({"models": found}, tuple(lines))


@models.command
def promote(name: Name, /, *, workspace: Workspace, output: Output = PLAIN) -> Reply:
    """Make a model the one that WS/models/latest.json names.

    For example:

        nphm models promote first -w heads
    """
    from pipeline.models import promote
    from pipeline.opening import open_workspace

    latest = promote(open_workspace(workspace), name)
    return Reply(latest.model_dump(mode="json"), (f"{latest.name} is promoted",))


@models.command
def rollback(*, workspace: Workspace, output: Output = PLAIN) -> Reply:
    """Promote the model that was promoted before the present one.

    For example:

        nphm models rollback -w heads
    """
    from pipeline.models import rollback
    from pipeline.opening import open_workspace

    latest = rollback(open_workspace(workspace))
    return Reply(latest.model_dump(mode="json"), (f"{latest.name} is promoted again",))


def _told(model: dict[str, Any]) -> list[str]:
    data = model["data"]
    facts = [f"{data['scans']} scans of {data['subjects']} subjects (data {data['digest']})"]
    facts.append(f"config {model['config_digest']}")
    facts.append(f"goes on from {model['parent']}" if model["parent"] else "from nothing")
    figures = [f"{name} {value:.3g}" for name, value in model["figures"].items() if isinstance(value, int | float)]
    mark = "*" if model["promoted"] else " "
    return [f"{mark} {model['name']} {model['verdict']}: {', '.join(facts)}", f"    {', '.join(figures)}"]
