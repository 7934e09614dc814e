"""Each fault that can be planted still has a place in the source, and a test to notice it."""

from collections import Counter
from pathlib import Path

from tools.plant_faults import FAULTS

ROOT = Path(__file__).parents[2]


def test_what_a_fault_changes_stands_in_its_file() -> None:
    gone = [
        (fault.name, name)
        for fault in FAULTS
        for name, text, _ in fault.edits
        if text not in (ROOT / "src" / "nestor" / name).read_text()
    ]
    assert not gone


def test_a_fault_changes_something_and_names_a_test_that_exists() -> None:
    for fault in FAULTS:
        assert all(text != other for _, text, other in fault.edits), fault.name
        assert (ROOT / fault.tests[0].partition("::")[0]).exists(), fault.name


def test_no_two_faults_have_one_name() -> None:
    names = Counter(fault.name for fault in FAULTS)
    assert max(names.values()) == 1, names.most_common(3)
