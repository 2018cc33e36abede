"""Tags by which a run is found on the server: the subjects and sessions that it touches.

They stand on the flow's run, not on its tasks: before each task the engine asks the server for a limit by the name of
each of its tags, which takes 0.15 s, many times what a small step takes. A task is found by its name, STEP KEY.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from pipeline.keys import subject_of

MOST_TAGS = 30
"""Every event of a run and its tasks carries the run's tags, and the engine refuses one with more than a hundred."""


class RunTags:
    """The tags of the flow's run that is under way, and of the run that it is part of. To be made in a flow."""

    def __init__(self) -> None:
        self._runs = [UUID(told) for told in (flow_run.id, flow_run.parent_flow_run_id) if told]
        self._sessions: set[str] = set()
        self._subjects: set[str] = set()
        self._told: set[str] = set()

    def add(self, keys: Iterable[str], sessions: Iterable[str]) -> None:
        """Tag the run by more scans: by session and subject, and where these are too many, by session alone or not.

        Args:
            keys: SUBJECT/EXPRESSION.
            sessions: ids of the sessions that they came with.
        """
        self._sessions |= {f"session:{session}" for session in sessions}
        self._subjects |= {f"subject:{subject_of(key)}" for key in keys}
        choices: tuple[set[str], ...] = (self._sessions | self._subjects, self._sessions, set())
        tags = next(choice for choice in choices if len(choice) <= MOST_TAGS)
        if tags == self._told:
            return
        with get_client(sync_client=True) as client:
            for run in self._runs:
                others = set(client.read_flow_run(run).tags) - self._told
                client.update_flow_run(run, tags=sorted(others | tags))
        self._told = tags
