"""Fail when a test of the given JUnit reports was skipped, or when none ran.

A skipped test proves nothing, and nobody reads the count. `tools/no_skips.py REPORT…`
"""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def main(reports: list[str]) -> int:
    """Return the exit code: 0 when everything ran."""
    ran, skipped = 0, []
    for report in reports:
        # Our own file, written a moment ago by pytest.
        for case in ET.parse(Path(report)).getroot().iter("testcase"):
            ran += 1
            for reason in case.iter("skipped"):
                name = f"{case.get('classname')}::{case.get('name')}"
                skipped.append(f"{name}: {reason.get('message')}")
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    if not ran:
        print("no test ran", file=sys.stderr)
    print(f"{ran} tests ran, {len(skipped)} skipped")
    return 1 if skipped or not ran else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
