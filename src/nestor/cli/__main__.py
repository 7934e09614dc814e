"""``python -m nestor.cli``: the same as ``nestor``."""

from nestor.cli.main import main

main()
