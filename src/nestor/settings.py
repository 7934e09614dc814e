"""Every setting of Nestor. No other module reads the environment.

Precedence: environment (``NESTOR_HOST=…``), then ``nestor.toml`` in the current folder,
then the defaults below, which run the whole stack from one folder with no server.
A secret may be given as ``NESTOR_…_FILE``, the path of a file that holds it.
"""

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from nestor.errors import Misconfigured

PREFIX = "NESTOR_"
SECRETS = ("api_key", "remote_api_key")
_PLACEHOLDER = re.compile(
    r"change.?me|your.?(api.?)?key|placeholder|xxx+|<.*>", re.IGNORECASE
)
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
Port = Annotated[int, Field(ge=0, le=65535)]
"""0: any free port; which one is printed and written to ``$NESTOR_HOME/run.json``."""


def default_home() -> Path:
    """The platform's data folder: ``$XDG_DATA_HOME/nestor``."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "nestor"


class Settings(BaseSettings):
    """Immutable; built once by the face that starts, and handed to ``nestor.wiring``."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX,
        toml_file="nestor.toml",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(default_factory=default_home)
    """Data folder; made at first start, mode 0700."""
    host: str = "127.0.0.1"
    """Address to bind. Only loopback for now."""
    allowed_hosts: Annotated[list[str], NoDecode] = []
    """More names a Host header may carry, comma-separated; loopback names are always allowed."""
    api_key: SecretStr | None = None
    """Admin key; when not given, one is made at first start (``nestor key``)."""

    dashboard_port: Port = 8888
    """Status page. 0: any free port."""
    ralph_port: Port = 8090
    """Tasks. 0: any free port."""
    aidb_port: Port = 8091
    """Knowledge base. 0: any free port."""
    coordinator_port: Port = 8092
    """Models: routing and gateway. 0: any free port."""
    learning_port: Port = 8093
    """Telemetry. 0: any free port."""

    database_url: str | None = None
    """``sqlite:///PATH``; ``nestor.db`` in the data folder when not given."""

    local_base_url: str | None = None
    """OpenAI-compatible server of the local model, ending in ``/v1`` (llama.cpp, Ollama, vLLM)."""
    local_model: str | None = None
    """A path that ends in ``.gguf`` starts llama.cpp; a name is sent to LOCAL_BASE_URL."""
    remote_base_url: str | None = None
    """OpenAI-compatible server of the remote model, ending in ``/v1``."""
    remote_model: str | None = None
    """Its name there."""
    remote_api_key: SecretStr | None = None
    """Sent to REMOTE_BASE_URL and nowhere else."""
    remote_price_input: Annotated[Decimal | None, Field(ge=0)] = None
    """USD per million tokens; not given: cost is unknown, never 0."""
    remote_price_output: Annotated[Decimal | None, Field(ge=0)] = None
    """The same for what the model writes."""
    routing_default: Literal["local", "remote"] = "local"
    """Where a query goes while there is no evidence which side is better."""
    model_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait for one answer of a model."""

    replay_cassette: Path | None = None
    """Answer model calls from this recording instead of a model; every view says so."""
    record_cassette: Path | None = None
    """Write model traffic to this recording."""

    default_backend: str = "builtin"
    """The agent of a task that names none: ``builtin`` or ``command``."""
    max_iterations: Annotated[int, Field(ge=1, le=100)] = 10
    """Of a task that does not say how many."""
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Tasks that run at the same time."""
    workspace_roots: Annotated[list[Path], NoDecode] = []
    """Folders whose repositories a key without ``admin`` may name, comma-separated."""
    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    """``none`` runs agents without isolation, which every status then says."""
    agent_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Wall clock of one run of an agent."""
    keep_prompts: bool = True
    """False drops the text of prompts and answers from telemetry."""
    log_format: Literal["console", "json"] = "console"
    """How the log on stderr is written."""

    @field_validator("allowed_hosts", "workspace_roots", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            [p.strip() for p in value.split(",") if p.strip()]
            if isinstance(value, str)
            else value
        )

    @field_validator("api_key", "remote_api_key")
    @classmethod
    def _refuse_placeholder(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and _PLACEHOLDER.search(value.get_secret_value()):
            raise ValueError("still holds a placeholder; put the real secret there")
        return value

    @field_validator("host")
    @classmethod
    def _loopback(cls, value: str) -> str:
        if value not in _LOOPBACK:
            raise ValueError(f"{value!r} is not loopback; use 127.0.0.1")
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _models_are_whole(self) -> Self:
        if self.remote_model and not (self.remote_base_url or self.replay_cassette):
            raise ValueError("remote_model needs remote_base_url")
        if self.remote_base_url and not self.remote_model:
            raise ValueError("remote_base_url needs remote_model")
        local_file = self.starts_llama_cpp
        if self.local_model and not (
            local_file or self.local_base_url or self.replay_cassette
        ):
            raise ValueError(
                "local_model needs local_base_url, or a path to a .gguf file"
            )
        if local_file and self.local_base_url:
            raise ValueError(
                "local_base_url: not used with a .gguf file; remove one of them"
            )
        if self.local_base_url and not self.local_model:
            raise ValueError("local_base_url needs local_model")
        return self

    @property
    def database(self) -> str:
        """The URL in force."""
        return self.database_url or f"sqlite:///{self.home / 'nestor.db'}"

    @property
    def starts_llama_cpp(self) -> bool:
        """Tell whether LOCAL_MODEL is a file for a llama.cpp of ours."""
        return (self.local_model or "").endswith(".gguf")

    @property
    def local_model_file(self) -> Path:
        """The GGUF file, when LOCAL_MODEL is one."""
        return Path(self.local_model or "").expanduser().absolute()

    @property
    def telemetry_dir(self) -> Path:
        """Where ``unified-events.jsonl`` stands."""
        return self.home / "telemetry"

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings. Raises ``Misconfigured`` that names the setting."""
        secrets = {f"{name}_file" for name in SECRETS}
        known = {f"{PREFIX}{name}".upper() for name in {*cls.model_fields, *secrets}}
        given = {name for name in os.environ if name.startswith(PREFIX)}
        if unknown := sorted(given - known):
            message = f"unknown setting: {', '.join(unknown)} (nestor doctor --config lists all)"
            raise Misconfigured(message)
        values = {**_secrets_from_files(), **overrides}
        try:
            return cls(**values)
        except ValidationError as error:
            raise Misconfigured(_explain(error)) from None

    @classmethod
    def origins(cls) -> dict[str, str]:
        """Tell for each setting where its value comes from, for ``nestor doctor``."""
        in_file = TomlConfigSettingsSource(cls)()
        found = {}
        for name in cls.model_fields:
            variable = f"{PREFIX}{name}".upper()
            if os.environ.get(variable):
                found[name] = variable
            elif name in SECRETS and os.environ.get(f"{variable}_FILE"):
                found[name] = f"{variable}_FILE"
            else:
                found[name] = "nestor.toml" if name in in_file else "default"
        return found

    @staticmethod
    def environment_for(values: Mapping[str, object]) -> dict[str, str]:
        """Return the environment of another Nestor process that has these settings alone."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        given = {f"{PREFIX}{k}".upper(): str(v) for k, v in values.items()}
        return inherited | given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def _secrets_from_files() -> dict[str, str]:
    found = {}
    for name in SECRETS:
        variable = f"{PREFIX}{name}_FILE".upper()
        if path := os.environ.get(variable):
            if os.environ.get(f"{PREFIX}{name}".upper()):
                raise Misconfigured(f"{variable}: given twice, also without _FILE")
            try:
                found[name] = Path(path).read_text().strip()
            except OSError as error:
                raise Misconfigured(f"{variable}: {error.strerror}: {path}") from error
    return found


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"]) or ""
        message = item["msg"].removeprefix("Value error, ")
        lines.append(
            f"{PREFIX}{name.upper()}: {message}" if name else f"settings: {message}"
        )
    return "; ".join(lines)
