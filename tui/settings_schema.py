"""What can be set, and where each value comes from."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mnemos.store.ids import check_namespace
from mnemos.tui.settings import PREFIX, settings_path


def _expanded(path: Path) -> Path:
    return path.expanduser()


def _namespace(name: str) -> str:
    try:
        check_namespace(name)
    except Exception as error:
        raise ValueError(str(error)) from None
    return name


Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


def _flat(value: object) -> object:
    """`app.why = "f6"` without quotation marks is a table in a table."""
    if not isinstance(value, dict):
        return value
    found: dict[str, object] = {}
    for name, part in value.items():
        inner = _flat(part)
        found |= (
            {f"{name}.{key}": each for key, each in inner.items()}
            if isinstance(inner, dict)
            else {name: part}
        )
    return found


class ThemeColours(BaseModel):
    """A theme of one's own: `[themes.NAME]`. What is absent follows from `primary` and `dark`."""

    model_config = ConfigDict(extra="forbid")

    primary: Colour
    secondary: Colour | None = None
    accent: Colour | None = None
    foreground: Colour | None = None
    background: Colour | None = None
    surface: Colour | None = None
    panel: Colour | None = None
    success: Colour | None = None
    warning: Colour | None = None
    error: Colour | None = None
    dark: bool = True


class Settings(BaseSettings):
    """Settings by the names of the file. A variable `MNEMOS_` + NAME goes before the file."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", env_ignore_empty=True)

    bank: Annotated[Path, AfterValidator(_expanded)] | None = Field(
        None, description="the memory bank's directory"
    )
    namespace: Annotated[str, AfterValidator(_namespace)] | None = Field(
        None, description="whose memory it is"
    )
    model: str | None = Field(None, description="a known model, a .gguf file or a model directory")
    max_tokens: int | None = Field(None, ge=1, description="a reply's longest length in tokens")
    decode_weights: Literal["auto", "bf16", "int8", "int4"] | None = Field(
        None, description="what one token at a time is decoded from"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] | None = Field(
        None, description="where the model runs: auto, cpu, cuda or cuda:N"
    )
    theme: str | None = Field(None, description="the chat's theme")
    keys: Annotated[dict[str, str], BeforeValidator(_flat)] = Field(
        {}, description="keys by action: keys.app.inspect = f8"
    )
    themes: dict[str, ThemeColours] = Field({}, description="themes of one's own")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values that are handed over alone: variables are options' own, and the file is read beforehand."""
        return (init_settings,)


def with_origins() -> dict[str, tuple[Any, str]]:
    """Each setting as it holds for a command without options, and where that comes from."""
    path = settings_path()
    by_variable = EnvSettingsSource(Settings)()
    by_file = TomlConfigSettingsSource(Settings, toml_file=path)() if path.exists() else {}
    found: dict[str, tuple[Any, str]] = {}
    for name in Settings.model_fields:
        if name in by_variable and name not in ("keys", "themes"):
            found[name] = (by_variable[name], f"variable {PREFIX}{name}".replace(name, name.upper()))
        elif name in by_file:
            found[name] = (by_file[name], f"file {path}")
        else:
            found[name] = (None, "default")
    return found
