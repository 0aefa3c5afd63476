"""Llama checkpoints in local Hugging Face directories: configuration, safetensors, tokenizer."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mnemos.attention.cache_dir import file_digest
from mnemos.attention.config import LLAMA, SUPPORTED_ARCHITECTURES, ModelConfig
from mnemos.attention.fingerprint import fingerprint_of
from mnemos.attention.tokenizer_source import END_OF_TURN_NAMES, TokenizerSource
from mnemos.attention.weights import Weights, assemble, tensor_shapes
from mnemos.errors import InvalidTokenizerError, InvalidWeightsError, UnknownModelError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def load_directory(directory: Path) -> tuple[ModelConfig, Weights, TokenizerSource, str]:
    """Loads a directory of the Llama family: configuration, mapped weights, tokenizer source and fingerprint.

    Raises UnknownModelError when it isn't a model directory, InvalidWeightsError and InvalidTokenizerError
    when it can't be used.
    """
    if not (directory / "config.json").is_file():
        raise UnknownModelError(f"{directory} is not a model directory: it has no config.json")
    described = _read_json(directory / "config.json")
    source = _tokenizer_source(directory, described)
    config = _config(directory.resolve().name, described, source)
    shards = _shards(directory)
    with ExitStack() as stack:
        weights = assemble(config, _fetcher(config, shards, stack))
    digests = sorted((path.name, file_digest(path)) for path in set(shards.values()))
    content = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return config, weights, source, fingerprint_of(content, config, source)


def _config(name: str, described: Mapping[str, Any], source: TokenizerSource) -> ModelConfig:
    architecture = described.get("model_type", "absent")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise InvalidWeightsError(
            f"model {name}: architecture '{architecture}' is not supported "
            f"(supported: {', '.join(SUPPORTED_ARCHITECTURES)})"
        )
    _refuse_unsupported(name, described)
    try:
        heads = int(described["num_attention_heads"])
        hidden = int(described["hidden_size"])
        return ModelConfig(
            name=name,
            architecture=LLAMA,
            vocab_size=int(described["vocab_size"]),
            hidden_size=hidden,
            layers=int(described["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(described.get("num_key_value_heads") or heads),
            head_dim=int(described.get("head_dim") or hidden // max(heads, 1)),
            intermediate_size=int(described["intermediate_size"]),
            rms_norm_eps=float(described.get("rms_norm_eps", 1e-6)),
            rope_theta=float(_rope(described).get("rope_theta", 10000.0)),
            max_positions=int(described.get("max_position_embeddings", 2048)),
            tie_embeddings=bool(described.get("tie_word_embeddings", False)),
            bos_id=source.bos_id,
            eos_ids=source.eos_ids,
        )
    except KeyError as error:
        raise InvalidWeightsError(f"model {name}: its config.json doesn't say its {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise InvalidWeightsError(f"model {name}: its config.json is malformed ({error})") from error


def _rope(described: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings, from where either generation of config.json keeps them."""
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(described.get(key), dict):
            rope |= described[key]
    if "rope_theta" in described:
        rope["rope_theta"] = described["rope_theta"]
    return rope


def _refuse_unsupported(name: str, described: Mapping[str, Any]) -> None:
    rope = _rope(described)
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in ("default", None):
        raise InvalidWeightsError(
            f"model {name}: rope scaling '{scaling}' is not supported (supported: default)"
        )
    if rope.get("partial_rotary_factor", described.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InvalidWeightsError(f"model {name}: partial_rotary_factor is not supported")
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if described.get(key):
            raise InvalidWeightsError(f"model {name}: {key} in its config.json is not supported")
    if described.get("hidden_act", "silu") not in ("silu", "swish"):
        raise InvalidWeightsError(
            f"model {name}: activation '{described['hidden_act']}' is not supported (silu)"
        )


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
    """A function from tensor name to mapped tensor; every file is opened once."""
    if missing := [name for name in tensor_shapes(config) if name not in shards]:
        raise InvalidWeightsError(f"model {config.name}: tensor {missing[0]} is missing from its weights")
    files = {path: stack.enter_context(_open(path)) for path in sorted(set(shards.values()))}

    def fetch(name: str) -> Tensor:
        try:
            tensor: Tensor = files[shards[name]].get_tensor(name)
        except SafetensorError as error:
            raise InvalidWeightsError(f"tensor {name} can't be read from {shards[name]} ({error})") from error
        return tensor

    return fetch


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
