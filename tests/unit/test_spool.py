"""Where a document waits that is being sent."""

from pathlib import Path

from nestor.aidb.spool import Spool


def test_what_a_dead_process_left_goes_and_what_is_somebody_elses_stops_no_start(
    tmp_path: Path,
) -> None:
    left, other = tmp_path / "document-1", tmp_path / "lost+found"
    left.write_bytes(b"half")
    other.mkdir()
    Spool(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["lost+found"]
