"""``python -m flows`` is ``nphm``."""

from flows.cli import main

main()
