"""The command line, ``nphm`` or ``python -m flows``: parses, calls a verb, turns what comes back into an exit status.

Nothing heavy is imported here or in ``flows.commands``: each verb imports what it needs, so that help and wrong usage
answer at once.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

from cyclopts import App, CycloptsError

from flows.commands import heads, models, outside, release, steps, templates, workspaces
from flows.commands.upkeep import doctor, gc
from flows.console import Exit, Output, Reply, write_error, write_reply
from flows.logs import report_crashes
from storage.errors import ConfigError, NphmError, one_line

app = App(
    name="nphm",
    help="From raw multi-view head scans to a trained neural parametric head model. VERB --help shows an example.",
    version=lambda: version("nphm-pipeline"),
    help_format="markdown",
    result_action="return_value",
)
VERBS: tuple[Callable[..., Reply] | App, ...] = (
    workspaces.simulate,
    workspaces.init,
    templates.template,
    workspaces.ingest,
    steps.plan,
    steps.run,
    *steps.SINGLE_STEPS,
    steps.status,
    steps.judge,
    outside.fit,
    heads.mesh,
    heads.transfer,
    heads.interpolate,
    models.models,
    release.release,
    gc,
    doctor,
    workspaces.schema,
)
for verb in VERBS:
    app.command(verb)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status: 0 done, 1 failed, 2 wrong usage or config, 3 nothing usable."""
    tokens = sys.argv[1:] if tokens is None else tokens
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries warn their programmers, not the user of a command
    signal.signal(signal.SIGINT, _stop)
    sys.exit(int(run_command(tokens)))


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """As Python's own handler, but another: asyncio puts one in place of Python's that can lose an interrupt."""
    raise KeyboardInterrupt


def run_command(tokens: Sequence[str]) -> Exit:
    """Parse and run one command.

    Args:
        tokens: the command line without the program's name.

    Returns:
        The exit status. What there is to say has been printed.
    """
    # Enough for errors that come before the command line is understood.
    output = Output(json="--json" in tokens, quiet="-q" in tokens or "--quiet" in tokens)
    report_crashes(output)
    try:
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        reply = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        known = [token for token in tokens[:1] if token in app]
        remedy = f"see '{' '.join(['nphm', *known])} --help'"
        write_error(f"{str(error).removesuffix('.')}; {remedy}", output, Exit.WRONG_USAGE)
        return Exit.WRONG_USAGE
    except ConfigError as error:
        write_error(str(error), output, Exit.WRONG_USAGE)
        return Exit.WRONG_USAGE
    except NphmError as error:
        write_error(str(error), output, Exit.FAILED)
        return Exit.FAILED
    except OSError as error:
        remedy = "see that there is room and that it may be read and written ('nphm doctor'), then run again"
        write_error(
            one_line("could not read or write", error.filename or "the store", str(error), remedy), output, Exit.FAILED
        )
        return Exit.FAILED
    except KeyboardInterrupt:
        write_error("stopped; the same command goes on where this one was", output, Exit.STOPPED)
        return Exit.STOPPED
    if not isinstance(reply, Reply):  # help and version were printed
        return Exit.DONE
    write_reply(reply, output)
    return reply.exit


if __name__ == "__main__":
    main()
