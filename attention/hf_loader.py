"""Checkpoints in local Hugging Face directories: configuration, safetensors, tokenizer."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mnemos.attention.cache_dir import file_digest
from mnemos.attention.config import GEMMA3, ModelConfig
from mnemos.attention.fingerprint import fingerprint_of
from mnemos.attention.hf_config import config_from, text_model
from mnemos.attention.tokenizer_source import END_OF_TURN_NAMES, TokenizerSource
from mnemos.attention.weights import Weights, assemble, check_shape, tensor_shapes
from mnemos.errors import InvalidTokenizerError, InvalidWeightsError, UnknownModelError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TEXT_MODEL_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


def load_directory(
    directory: Path, *, name: str | None = None
) -> tuple[ModelConfig, Weights, TokenizerSource, str]:
    """Loads a model directory: configuration, mapped weights, tokenizer source and fingerprint.

    The model is called `name`, or as the directory is. Raises UnknownModelError when it isn't a model
    directory, InvalidWeightsError and InvalidTokenizerError when it can't be used.
    """
    if not (directory / "config.json").is_file():
        raise UnknownModelError(f"{directory} is not a model directory: it has no config.json")
    described = text_model(_read_json(directory / "config.json"))
    source = _tokenizer_source(directory, described)
    config = config_from(name or directory.resolve().name, described, source)
    shards = _shards(directory)
    with ExitStack() as stack:
        fetch = _fetcher(config, shards, stack)
        weights = assemble(config, fetch)
        if config.msa is not None:
            _check_loss_scalars(config, shards, fetch)
    digests = sorted((path.name, file_digest(path)) for path in set(shards.values()))
    content = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return config, weights, source, fingerprint_of(content, config, source)


def _shards(directory: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it."""
    if (directory / _INDEX).is_file():
        weight_map = _read_json(directory / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InvalidWeightsError(f"{directory / _INDEX} has no weight_map; fetch it again")
        shards = {}
        for name, file in weight_map.items():
            # Only a plain file name: an index must not reach outside its directory.
            path = directory / Path(str(file)).name
            if not path.is_file():
                raise InvalidWeightsError(f"shard {path.name} is missing from {directory}; fetch it again")
            shards[name] = path
        return shards
    path = directory / _SINGLE
    if not path.is_file():
        raise InvalidWeightsError(
            f"{directory} holds no {_SINGLE} and no {_INDEX}; only safetensors are supported"
        )
    with _open(path) as file:
        return dict.fromkeys(file.keys(), path)


def _fetcher(config: ModelConfig, shards: Mapping[str, Path], stack: ExitStack) -> Callable[[str], Tensor]:
    """A function from tensor name to mapped tensor; every file is opened once.

    Refuses weights that lack a tensor, or whose text layers have one that this family would leave unused.
    """
    stored = _stored_names(shards)
    wanted = tensor_shapes(config)
    if missing := [name for name in wanted if name not in stored]:
        raise InvalidWeightsError(f"model {config.name}: tensor {missing[0]} is missing from its weights")
    layers = tuple(f"model.layers.{index}." for index in range(config.layers))
    foreign = [name for name in stored if name.startswith(layers) and name not in wanted]
    if foreign := [name for name in foreign if not name.endswith(".rotary_emb.inv_freq")]:
        raise InvalidWeightsError(
            f"model {config.name}: tensor {foreign[0]} is no part of a {config.architecture} decoder"
        )
    files = {path: stack.enter_context(_open(path)) for path in sorted(set(shards.values()))}
    one_is_added = config.architecture == GEMMA3  # its norms multiply by 1 + weight

    def fetch(name: str) -> Tensor:
        path = shards[stored[name]]
        try:
            tensor: Tensor = files[path].get_tensor(stored[name])
        except SafetensorError as error:
            raise InvalidWeightsError(f"tensor {name} can't be read from {path} ({error})") from error
        if not tensor.is_floating_point():
            raise InvalidWeightsError(
                f"model {config.name}: tensor {name} is of type {tensor.dtype}; "
                "quantised safetensors are not supported"
            )
        return 1.0 + tensor.float() if one_is_added and name.endswith("norm.weight") else tensor

    return fetch


def _check_loss_scalars(
    config: ModelConfig, shards: Mapping[str, Path], fetch: Callable[[str], Tensor]
) -> None:
    """An MSA checkpoint keeps the scalar of its routing loss, which only training reads."""
    for name in ("temperature", "b"):
        if name in shards:
            check_shape(config.name, name, tuple(fetch(name).shape), ())


def _stored_names(names: Iterable[str]) -> dict[str, str]:
    """The text model's plain name of each tensor -> its name in the files of a model that sees images too."""
    stored = {}
    for name in names:
        plain = name
        for outer, inner in _TEXT_MODEL_PREFIXES:
            if name.startswith(outer):
                plain = inner + name.removeprefix(outer)
                break
        stored[plain] = name
    return stored


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InvalidWeightsError(f"{path} is truncated or damaged ({error}); fetch it again") from error


def _tokenizer_source(directory: Path, described: Mapping[str, Any]) -> TokenizerSource:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InvalidTokenizerError(
            f"{directory} has no tokenizer.json; fetch it, or save a fast tokenizer there"
        )
    definition = path.read_text(encoding="utf-8")
    settings = _read_json(directory / "tokenizer_config.json", optional=True)
    generation = _read_json(directory / "generation_config.json", optional=True)
    try:
        added = {
            entry["content"]: int(entry["id"]) for entry in json.loads(definition).get("added_tokens", [])
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidTokenizerError(f"{path} can't be read ({error}); fetch it again") from error

    def token_id(key: str) -> int | None:
        named = settings.get(f"{key}_token")
        content = named.get("content") if isinstance(named, dict) else named
        if content in added:
            return added[content]
        configured = described.get(f"{key}_token_id")
        return configured if isinstance(configured, int) else None

    eos: dict[int, None] = {}
    for value in (generation.get("eos_token_id"), described.get("eos_token_id"), token_id("eos")):
        eos |= dict.fromkeys(value if isinstance(value, list) else [value] if isinstance(value, int) else [])
    eos |= {token: None for content, token in added.items() if content in END_OF_TURN_NAMES}
    return TokenizerSource(
        definition=definition,
        bos_id=token_id("bos"),
        eos_ids=tuple(eos),
        add_bos=bool(settings.get("add_bos_token", False)),
        chat_template=_chat_template(directory, settings),
    )


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if template is None:
        template = _read_json(directory / "chat_template.json", optional=True).get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidWeightsError(f"{path} can't be read ({error}); fetch it again") from error
    if not isinstance(read, dict):
        raise InvalidWeightsError(f"{path} is not a JSON object; fetch it again")
    return read
