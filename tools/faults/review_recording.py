"""Faults in recording: gaps, secrets, who may read."""

from tools.faults.fault import Fault

_RECORDING = "tests/unit/test_cassette_recording.py"
_TAPE = "backends/replay/tape.py"
_CASSETTE = "backends/replay/cassette.py"

FAULTS = (
    Fault(
        "recording: a full disk costs an answer",
        (
            (
                _CASSETTE,
                "        except Exception as error:  # noqa: BLE001 - whatever",
                "        except ZeroDivisionError as error:  # whatever",
            ),
        ),
        (_RECORDING, "-k", "cannot_be_kept"),
    ),
    Fault(
        "recording: an odd answer breaks while it is recorded",
        (
            (
                _CASSETTE,
                "        except Exception as error:  # noqa: BLE001 - an answer",
                "        except ZeroDivisionError as error:  # an answer",
            ),
        ),
        (_RECORDING, "-k", "put_together"),
    ),
    Fault(
        "recording: half an answer is kept as a whole",
        (
            (
                _CASSETTE,
                "            self._assembly = None\n            self._recorder.recording.lost(error)\n",
                "            self._recorder.recording.lost(error)\n",
            ),
        ),
        (_RECORDING, "-k", "put_together"),
    ),
    Fault(
        "recording: who leaves with the last event leaves no record",
        (
            (
                _CASSETTE,
                "                self._keep()  # before",
                "                pass  # before",
            ),
        ),
        (_RECORDING, "-k", "left_with_the_last"),
    ),
    Fault(
        "recording: anybody may read it",
        (
            (_TAPE, "flags, 0o600)", "flags, 0o644)"),
            (_TAPE, "os.fchmod(file.fileno(), 0o600)", "pass"),
        ),
        (_RECORDING, "-k", "only_its_owner"),
    ),
    Fault(
        "recording: what a crash has left stays open",
        ((_TAPE, "os.fchmod(file.fileno(), 0o600)", "pass"),),
        (_RECORDING, "-k", "only_its_owner"),
    ),
    Fault(
        "recording: a broken write leaves its part behind",
        ((_TAPE, "            part.unlink(missing_ok=True)\n", ""),),
        (_RECORDING, "-k", "old_recording_stands"),
    ),
    Fault(
        "recording: secrets of answers are written",
        (
            (
                _TAPE,
                "    cleaned: dict[str, Any] = redact_value(response)\n",
                "    cleaned: dict[str, Any] = response\n",
            ),
        ),
        (_RECORDING, "-k", "secret_in_an_answer"),
    ),
    Fault(
        "recording: a talk that went on after a secret is not found",
        (
            (
                _TAPE,
                "    return conversation(redact_value(request))\n",
                "    return conversation(request)\n",
            ),
        ),
        (_RECORDING, "-k", "secret_in_an_answer"),
    ),
    Fault(
        "recording: health knows nothing of gaps",
        (
            (
                "wiring/models.py",
                "        models.observed.append(recording.dependency)\n",
                "        pass\n",
            ),
        ),
        (_RECORDING, "-k", "health"),
    ),
)
