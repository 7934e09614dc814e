"""How EMBEDDINGS_… settings are read: a server's model, minilm, or a folder."""

from pathlib import Path

import pytest

from nestor.errors import Misconfigured
from nestor.settings import Settings
from nestor.wiring.models import deployments

URL = "http://127.0.0.1:8081/v1"
KEY = "sk-embeddings-0123456789"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NESTOR_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("model", ["minilm", "./models/mine", "~/mine", "/srv/mine"])
def test_a_model_in_this_process_needs_no_server_and_is_no_deployment(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("NESTOR_EMBEDDINGS_MODEL", model)
    settings = Settings.load()

    assert settings.embeds_in_process
    assert settings.made_deployments == {}
    assert deployments(settings, ()) == []


@pytest.mark.parametrize("model", ["minilm", "BAAI/bge-small-en", "vectors"])
def test_with_a_server_every_name_is_sent_to_it(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("NESTOR_EMBEDDINGS_MODEL", model)
    monkeypatch.setenv("NESTOR_EMBEDDINGS_BASE_URL", URL)
    settings = Settings.load()
    (made,) = deployments(settings, ())

    assert not settings.embeds_in_process
    assert (made.name, made.model, made.base_url) == ("embeddings", model, URL)
    assert made.api_key is None
    assert made.price_input == 0


def test_its_key_may_stand_in_a_file_and_makes_the_price_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    monkeypatch.setenv("NESTOR_EMBEDDINGS_MODEL", "vectors")
    monkeypatch.setenv("NESTOR_EMBEDDINGS_BASE_URL", URL)
    monkeypatch.setenv("NESTOR_EMBEDDINGS_API_KEY_FILE", str(path))
    settings = Settings.load()
    (made,) = deployments(settings, ())

    assert made.api_key == KEY
    assert made.price_input is None
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"MODEL": "vectors"}, "or must be minilm or the path of a folder"),
        ({"BASE_URL": URL}, "NESTOR_EMBEDDINGS_BASE_URL needs NESTOR_EMBEDDINGS_MODEL"),
        (
            {"MODEL": "minilm", "API_KEY": KEY},
            "NESTOR_EMBEDDINGS_API_KEY needs NESTOR_EMBEDDINGS_BASE_URL",
        ),
        ({"MODEL": "m", "BASE_URL": URL, "API_KEY": "changeme"}, "EMBEDDINGS_API_KEY"),
        ({"MODEL": "m", "BASE_URL": "http://169.254.169.254/v1"}, "link-local"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], said: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"NESTOR_EMBEDDINGS_{name}", value)
    with pytest.raises(Misconfigured) as caught:
        Settings.load()

    assert said in str(caught.value)
