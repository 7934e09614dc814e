"""The command line: a thin client of the running stack."""
