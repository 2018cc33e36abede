"""A template of a workspace's registrations, without the people that are kept for evaluation."""

from __future__ import annotations

from model.fit_config import PcaConfig
from model.learned_template import learned_template
from pipeline.compared import registered_heads
from pipeline.keys import subjects_of
from pipeline.workspace import Workspace
from registration.template import Template


def learn_template(workspace: Workspace, identity_modes: int, expression_modes: int) -> Template:
    """The workspace's template with the mean head of its training subjects and at most so many modes.

    Raises:
        ConfigError: no training subject has an accepted canonical registration.
    """
    subjects = [subject for subject in subjects_of(workspace.scans()) if workspace.split(subject) == "train"]
    heads = registered_heads(workspace, subjects, workspace.template())
    return learned_template(heads, PcaConfig(identity_modes=identity_modes, expression_modes=expression_modes))
