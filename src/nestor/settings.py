"""Every setting of Nestor. No other module reads the environment.

Precedence: environment (``NESTOR_HOST=…``), then ``nestor.toml`` in the current folder,
then the defaults below, which run the whole stack from one folder with no server.
A secret may be given as ``NESTOR_…_FILE``, the path of a file that holds it.
"""
# Over 400 lines: as long as the list of settings.

import os
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from nestor.errors import Misconfigured
from nestor.model import backend_table, network, secret
from nestor.model.backend_table import BackendTable
from nestor.model.deployment_table import nearest, refuse_unrelated
from nestor.model.routing import Deployment, Kind
from nestor.resilience.secret_file import read_secret_file
from nestor.resilience.settings_file import read_deployments, read_toml

PREFIX = "NESTOR_"
FILE = "nestor.toml"
TABLES = ("deployment", "backend")
"""Names of the file that the environment has not."""
SECRETS = (
    "api_key",
    "database_url",
    "embeddings_api_key",
    "qdrant_api_key",
    "redis_url",
    "remote_api_key",
)
_KNOWN_NAMES = {"127.0.0.1", "::1", "localhost"}
_WITH_PASSWORD = ("redis_url", "database_url")
BaseUrl = Annotated[str, AfterValidator(network.base_url)]
_Proxy = Annotated[str, AfterValidator(network.trusted_proxy)]
_PrivateHost = Annotated[str, AfterValidator(network.private_host)]
_Price = Annotated[Decimal | None, Field(ge=0, decimal_places=6)]
Port = Annotated[int, Field(ge=0, le=65535)]
"""0: any free port; which one is printed and written to ``$NESTOR_HOME/run.json``."""


def default_home() -> Path:
    """The platform's data folder: ``$XDG_DATA_HOME/nestor``."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "nestor"


def _redis_url(value: SecretStr) -> SecretStr:
    network.refuse_redis_url(value.get_secret_value())
    return value


def _database_url(value: SecretStr) -> SecretStr:
    network.refuse_database_url(value.get_secret_value())
    return value


class Settings(BaseSettings):
    """Immutable; built once by the face that starts, and handed to ``nestor.wiring``."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX,
        toml_file=FILE,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(default_factory=default_home)
    """Data folder; made at first start, mode 0700."""
    host: Annotated[str, AfterValidator(network.bindable)] = "127.0.0.1"
    """Address to bind (``0.0.0.0`` or ``::``: every one). Beyond loopback NESTOR_API_KEY must be given."""
    allowed_hosts: Annotated[list[str], NoDecode, Field(validate_default=True)] = []
    """More names a Host header may carry (``name`` or ``name:port``), comma-separated; loopback names and HOST are always allowed."""
    api_key: SecretStr | None = None
    """Admin key, 16 characters or more; when not given, one is made at first start (``nestor key``)."""

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

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] | None = None
    """``sqlite:///PATH`` (``nestor.db`` in the data folder when not given) or ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``."""

    qdrant_url: BaseUrl | None = None
    """``http(s)://HOST[:PORT]`` of a Qdrant server, 1.19 or newer (port 6333 when not given); in this process when not given."""
    qdrant_api_key: SecretStr | None = None
    """Sent to NESTOR_QDRANT_URL and nowhere else."""
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = None
    """``redis://HOST:PORT/DB``: rate limits and answers shared by several processes; in this process alone when not given."""
    trusted_proxies: Annotated[list[_Proxy], NoDecode] = []
    """Addresses or networks (``10.0.0.0/8``) of reverse proxies whose X-Forwarded-For is believed, comma-separated."""

    local_base_url: BaseUrl | None = None
    """OpenAI-compatible server of the local model, ending in ``/v1`` (llama.cpp, Ollama, vLLM)."""
    local_model: str | None = None
    """A path that ends in ``.gguf`` starts llama.cpp; a name is sent to NESTOR_LOCAL_BASE_URL."""
    remote_base_url: BaseUrl | None = None
    """Server of the remote model; an OpenAI-compatible one ends in ``/v1``."""
    remote_model: str | None = None
    """Its name there."""
    remote_dialect: Literal["openai", "anthropic"] = "openai"
    """What that server speaks: OpenAI's chat completions or Anthropic's messages."""
    remote_api_key: SecretStr | None = None
    """Sent to NESTOR_REMOTE_BASE_URL and nowhere else."""
    remote_price_input: _Price = None
    """USD per million tokens; not given: cost is unknown, never 0."""
    remote_price_output: _Price = None
    """The same for what the model writes."""
    remote_price_cached: _Price = None
    """The same for input that the provider had in its cache; not given: as input."""
    embeddings_base_url: BaseUrl | None = None
    """OpenAI-compatible server of embeddings, ending in ``/v1``."""
    embeddings_model: str | None = None
    """``minilm`` (after ``nestor models add minilm``), the path of a folder with an ONNX model, or a name that is sent to NESTOR_EMBEDDINGS_BASE_URL; none: search by words only."""
    embeddings_api_key: SecretStr | None = None
    """Sent to NESTOR_EMBEDDINGS_BASE_URL and nowhere else."""
    embeddings_query_prefix: str = ""
    """Put before questions sent to NESTOR_EMBEDDINGS_BASE_URL, for models that want them marked."""
    embeddings_text_prefix: str = ""
    """The same for all other texts."""
    routing_default: Literal["local", "remote"] = "local"
    """Where a query goes while there is no evidence which side is better."""
    model_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait for one answer of a model."""

    replay_cassette: Path | None = None
    """Answer model calls from this recording instead of a model; every view says so."""
    record_cassette: Path | None = None
    """Write model traffic to this recording."""

    default_backend: str = "builtin"
    """The agent of a task that names none: one that ``nestor agents list`` shows."""
    agents_dir: Path | None = None
    """Where ``nestor agents install`` puts agents' programs; ``agents`` in the data folder when not given."""
    judge_model: str | None = None
    """Judges completion_criteria where no check can tell: ``local``, ``remote``, ``auto``, or the name of a deployment; not given: nobody judges."""
    max_iterations: Annotated[int, Field(ge=1, le=100)] = 10
    """Of a task that does not say how many."""
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Tasks that run at the same time."""
    workspace_roots: Annotated[list[Path], NoDecode] = []
    """Folders whose repositories a key without ``admin`` may name, comma-separated."""
    drain_s: Annotated[float, Field(ge=0, le=86_400)] = 20.0
    """At SIGTERM or Ctrl-C running tasks have this long to come to the end of their step; they go on at the next start."""
    sandbox: Literal["auto", "bubblewrap", "landlock", "none"] = "auto"
    """``auto``: bubblewrap, or Landlock where that does not work; ``none`` runs agents without isolation. Every status says which it is."""
    sandbox_private_hosts: Annotated[list[_PrivateHost], NoDecode] = []
    """Private addresses or networks (``10.0.0.0/8``) that granted hosts and ``setup`` may reach, comma-separated: a package index of your own."""
    agent_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Wall clock of one run of an agent."""
    approval_wait_s: Annotated[float, Field(ge=0, le=3600)] = 120.0
    """How long an agent that asks a person waits; then the task is parked until somebody answers."""
    keep_prompts: bool = True
    """False drops the text of prompts and answers from telemetry."""
    log_format: Literal["console", "json"] = "console"
    """How the log on stderr is written."""

    _deployments: tuple[Deployment, ...] = PrivateAttr(())
    _backends: tuple[BackendTable, ...] = PrivateAttr(())

    @field_validator(
        "allowed_hosts",
        "trusted_proxies",
        "sandbox_private_hosts",
        "workspace_roots",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator(
        "api_key",
        "embeddings_api_key",
        "qdrant_api_key",
        "remote_api_key",
        *_WITH_PASSWORD,
    )
    @classmethod
    def _real_secret(cls, value: Any, info: ValidationInfo) -> Any:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is None:
            return value
        if info.field_name not in _WITH_PASSWORD:
            secret.refuse_placeholder(text)
        elif (password := network.password_in(text)) is not None:
            secret.refuse_placeholder(password, "the password in it")
        if info.field_name == "api_key" and (fault := secret.weakness_of(text)):
            raise ValueError(fault)
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: list[str], info: ValidationInfo) -> list[str]:
        named = [network.allowed_host(entry) for entry in value]
        host = info.data.get("host", "localhost")
        if host not in _KNOWN_NAMES and not network.is_everywhere(host):
            # Its own clients call it so. No page can send a Host of its choice.
            named.append(network.allowed_host(network.in_url(host)))
        return list(dict.fromkeys(named))

    @field_validator("workspace_roots")
    @classmethod
    def _resolved(cls, value: list[Path]) -> list[Path]:
        # Compared with resolved paths: a link or a relative name would match nothing.
        try:
            return [root.expanduser().resolve() for root in value]
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot be followed: {error}") from None

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _open_to_others_only_with_a_key(self) -> Self:
        if self.api_key is None and not network.is_loopback(self.host):
            raise ValueError(
                f"NESTOR_HOST: {self.host} can be reached from other machines, and no key"
                " was chosen: set NESTOR_API_KEY_FILE (or NESTOR_API_KEY) to a key of your"
                f" own, or use 127.0.0.1; {secret.MAKE_ONE}"
            )
        return self

    @model_validator(mode="after")
    def _models_are_whole(self) -> Self:
        local_file = self.starts_llama_cpp
        if local_file and self.local_base_url:
            raise ValueError(
                "NESTOR_LOCAL_BASE_URL: not used when NESTOR_LOCAL_MODEL is a .gguf file;"
                " remove one of them"
            )
        if self.embeddings_api_key and not self.embeddings_base_url:
            raise ValueError(_needs("embeddings_api_key", "embeddings_base_url"))
        if self.qdrant_api_key and not self.qdrant_url:
            raise ValueError(_needs("qdrant_api_key", "qdrant_url"))
        for side in ("local", "remote", "embeddings"):
            base_url, model = f"{side}_base_url", f"{side}_model"
            has_url, has_model = (
                bool(getattr(self, base_url)),
                bool(getattr(self, model)),
            )
            if has_url and not has_model:
                raise ValueError(_needs(base_url, model))
            in_process = (side == "local" and local_file) or (
                side == "embeddings" and self.embeds_in_process
            )
            if has_model and not (has_url or self.replay_cassette or in_process):
                raise ValueError(_needs(model, base_url))
        return self

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """The ``[[deployment]]`` tables of ``nestor.toml``, with their keys."""
        return self._deployments

    @property
    def backends(self) -> tuple[BackendTable, ...]:
        """The ``[[backend]]`` tables of ``nestor.toml``: limits of single backends."""
        return self._backends

    @property
    def made_deployments(self) -> dict[str, Kind]:
        """Names of the deployments that LOCAL_…, REMOTE_… and EMBEDDINGS_… make."""
        made = {
            "local": (self.local_model, Kind.CHAT),
            "remote": (self.remote_model, Kind.CHAT),
            "embeddings": (
                None if self.embeds_in_process else self.embeddings_model,
                Kind.EMBEDDINGS,
            ),
        }
        return {name: kind for name, (model, kind) in made.items() if model}

    @property
    def database(self) -> str:
        """The URL in force, with its password."""
        if self.database_url is None:
            return f"sqlite:///{self.home / 'nestor.db'}"
        return network.database_url(self.database_url.get_secret_value())

    @property
    def local_host(self) -> str:
        """Where programs of this machine reach what is bound to HOST."""
        return network.reached_at(self.host)

    @property
    def open_to_others(self) -> bool:
        """Tell whether other machines may reach what is bound to HOST."""
        return not network.is_loopback(self.host)

    @property
    def starts_llama_cpp(self) -> bool:
        """Tell whether LOCAL_MODEL is a file for a llama.cpp of ours."""
        return (self.local_model or "").endswith(".gguf")

    @property
    def local_model_file(self) -> Path:
        """The GGUF file, when LOCAL_MODEL is one."""
        return Path(self.local_model or "").expanduser().absolute()

    @property
    def embeds_in_process(self) -> bool:
        """Tell whether EMBEDDINGS_MODEL is ``minilm`` or a folder, not a server's model."""
        model = self.embeddings_model or ""
        return not self.embeddings_base_url and (
            model == "minilm" or os.sep in model or model.startswith("~")
        )

    @property
    def agents_folder(self) -> Path:
        """Where the programs of agents stand that Nestor installed."""
        if self.agents_dir is None:
            return self.home / "agents"
        return self.agents_dir.expanduser().absolute()

    @property
    def telemetry_dir(self) -> Path:
        """Where ``unified-events.jsonl`` stands."""
        return self.home / "telemetry"

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings. Raises ``Misconfigured`` that names the setting and where it stands."""
        _refuse_unknown_variables(cls.model_fields)
        in_file = _in_file()
        values = {**_secrets_from_files(), **overrides}
        try:
            loaded = cls(**values)
        except ValidationError as error:
            raise Misconfigured(_explain(error, set(in_file) - set(values))) from None
        try:
            found = read_deployments(in_file.get("deployment", []))
            refuse_unrelated(found, loaded.made_deployments)
            loaded._backends = backend_table.read(in_file.get("backend", []))
        except ValueError as error:
            raise Misconfigured(f"{FILE}: {error}") from None
        loaded._deployments = found
        return loaded

    @classmethod
    def origins(cls) -> dict[str, str]:
        """Tell for each setting where its value comes from, for ``nestor doctor``."""
        in_file = _in_file()
        found = {}
        for name in cls.model_fields:
            variable = f"{PREFIX}{name}".upper()
            if os.environ.get(variable):
                found[name] = variable
            elif name in SECRETS and os.environ.get(f"{variable}_FILE"):
                found[name] = f"{variable}_FILE"
            else:
                found[name] = FILE if name in in_file else "default"
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
        return init_settings, env_settings, _FileSource(settings_cls)


class _FileSource(TomlConfigSettingsSource):
    """Plain settings of the file; its tables are read by themselves."""

    def __call__(self) -> dict[str, Any]:
        """Return what the file says."""
        return {
            name: value
            for name, value in super().__call__().items()
            if name not in TABLES
        }


def _needs(name: str, other: str) -> str:
    others = {
        "local_model": ", or a path to a .gguf file",
        "embeddings_model": ", or must be minilm or the path of a folder",
    }
    also = others.get(name, "")
    return f"{PREFIX}{name.upper()} needs {PREFIX}{other.upper()}{also}"


def _refuse_unknown_variables(fields: Iterable[str]) -> None:
    """Raise ``Misconfigured`` for a variable that nobody would read, with the nearest name."""
    known = [f"{PREFIX}{name}".upper() for name in fields]
    known += [f"{PREFIX}{name}_FILE".upper() for name in SECRETS]
    given = {name for name in os.environ if name.upper().startswith(PREFIX)}
    # In small letters too: of two spellings of one setting, which counts would be a guess.
    if unknown := sorted(given.difference(known)):
        said = ", ".join(f"{name}{nearest(name.upper(), known)}" for name in unknown)
        message = f"unknown setting: {said}; nestor doctor --config lists all"
        raise Misconfigured(message)


def _secrets_from_files() -> dict[str, str]:
    found = {}
    for name in SECRETS:
        plain = f"{PREFIX}{name}".upper()
        variable = f"{plain}_FILE"
        for given in {plain, variable} & os.environ.keys():
            # An empty one is a secret that did not arrive, not one nobody wanted.
            if not os.environ[given].strip():
                message = "is given, but empty; unset it, or give it a value"
                raise Misconfigured(f"{given}: {message}")
        if path := os.environ.get(variable):
            if plain in os.environ:
                raise Misconfigured(f"{variable}: given twice, also without _FILE")
            try:
                found[name] = read_secret_file(Path(path))
            except OSError as error:
                raise Misconfigured(f"{variable}: {error.strerror}: {path}") from error
            except ValueError as error:
                raise Misconfigured(f"{variable}: {error}") from error
    return found


def _in_file() -> dict[str, Any]:
    """Return what ``nestor.toml`` says; {} without one. Raises ``Misconfigured``."""
    try:
        read = read_toml(Path(FILE))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Misconfigured(f"{FILE}: {error.strerror}: {Path.cwd()}") from error
    except ValueError as error:
        raise Misconfigured(f"{FILE}: {error}") from error
    tables = {name: read.values[name] for name in TABLES if name in read.values}
    values = {name: value for name, value in read.values.items() if name not in TABLES}
    if unknown := sorted(values.keys() - Settings.model_fields.keys()):
        said = "; ".join(f"{name}: {_unknown_in_file(name)}" for name in unknown)
        raise Misconfigured(f"{FILE}: {said}")
    held = [name for name in SECRETS if _holds_secret(name, values)]
    if held and (fault := secret.fault_of_file(read.found, Path(FILE))):
        raise Misconfigured(f"{FILE}: {held[0]}: {fault}")
    return values | tables


def _holds_secret(name: str, values: Mapping[str, Any]) -> bool:
    value = values.get(name)
    if name in _WITH_PASSWORD:
        return isinstance(value, str) and network.password_in(value) is not None
    return value is not None


def _explain(error: ValidationError, in_file: set[str]) -> str:
    """Say what is wrong and where: ``in_file`` names what stands in ``nestor.toml``."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        where = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        if not where:
            meant = any(f"{PREFIX}{name}".upper() in message for name in in_file)
            lines.append(f"{FILE}: {message}" if meant else message)
            continue
        variable = f"{PREFIX}{where[0]}".upper()
        if where[0] in in_file and not os.environ.get(variable):
            lines.append(f"{FILE}: {'.'.join(where)}: {message}")
        else:
            lines.append(f"{'.'.join([variable, *where[1:]])}: {message}")
    return "; ".join(lines)


def _unknown_in_file(name: str) -> str:
    said, plain = "unknown setting", name.lower().removeprefix(PREFIX.lower())
    if plain.removesuffix("_file") in SECRETS and plain.endswith("_file"):
        return f"{said}; only the environment has it: {PREFIX}{plain.upper()}"
    return said + nearest(plain, [*Settings.model_fields, *TABLES])
