"""Small models of several families: random ones, and ones whose next token follows from the last alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from mnemos.attention.models import LanguageModel, load

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The tool parts below have the form that each family's published template gives them.
QWEN = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- else %}"
    "{%- set system = 'You are helpful.' %}{%- endif %}"
    "{%- if tools %}{{- '<|im_start|>system\n' + system }}"
    "{{- '\n\n# Tools\n\nCall with <tool_call></tool_call> tags:\n<tools>' }}"
    "{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}"
    "{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant' }}"
    "{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}{%- set call = call.function %}"
    '{{- \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{{- call.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}"
    "{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- '<|begin|>' }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start|>system<|stop|>\n\n' }}{%- if tools %}{{- 'Environment: ipython\n' }}{%- endif %}"
    "{{- 'Today Date: 26 Jul 2024\n\n' }}{%- if tools and not tools_in_user_message %}"
    "{{- 'You can call functions:\n\n' }}{%- for tool in tools %}{{- tool | tojson(indent=4) }}"
    "{{- '\n\n' }}{%- endfor %}{%- endif %}{{- system }}{{- '<|eot_id|>' }}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}{{- '<|start|>ipython<|stop|>\n\n' }}"
    "{%- if m.content is mapping or m.content is iterable %}{{- m.content | tojson }}{%- else %}"
    "{{- m.content }}{%- endif %}{{- '<|eot_id|>' }}"
    "{%- elif m.tool_calls %}{%- set call = m.tool_calls[0].function %}"
    '{{- \'<|start|>assistant<|stop|>\n\n{"name": "\' + call.name + \'", "parameters": \' }}'
    "{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{%- else %}{{- '<|start|>' + m.role + '<|stop|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{{- '<s>' }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
    "{%- set messages = messages[1:] %}{%- endif %}"
    "{%- set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- if tools and m == last %}"
    "{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST] ' }}{%- if loop.first and system is defined %}{{- system + '\n\n' }}{%- endif %}"
    "{{- m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for call in m.tool_calls %}"
    "{%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('9') }}{%- endif %}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}"
    "{{- ', ' if not loop.last else ']</s>' }}{%- endfor %}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '</s>' }}"
    "{%- elif m.role == 'tool' %}{%- if m.tool_call_id | length != 9 %}"
    "{{- raise_exception('9') }}{%- endif %}"
    '{{- \'[TOOL_RESULTS] {"content": \' + m.content + \', "call_id": "\' + m.tool_call_id }}'
    "{{- '\"}[/TOOL_RESULTS]' }}{%- endif %}{%- endfor %}"
)
# family: template, control tokens (the first ends a turn), what stands before a reply, what opens a call
FAMILIES: dict[str, tuple[str, Sequence[str], str, str]] = {
    "plain": (CHATML, ["<|im_end|>", "<|im_start|>", "<tool_call>"], "\n", "<tool_call>"),
    "hermes": (QWEN, ["<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>"], "\n", "<tool_call>"),
    "llama3": (LLAMA3, ["<|eot_id|>", "<|begin|>", "<|start|>", "<|stop|>", "<|python_tag|>"], "\n", "{"),
    "mistral": (
        MISTRAL,
        ["</s>", "<s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
        "[/INST]",
        "[TOOL_CALLS]",
    ),
}  # fmt: skip
Scripted = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    """Makes a model of a family of `FAMILIES` that calls a tool whenever it may, and ends its turn when not.

    `after` adds to what follows which token; `window` is how many tokens it reads.
    """
    made: dict[str, LanguageModel] = {}

    def make(
        family: str = "hermes", after: Mapping[str, str] | None = None, window: int = 4096
    ) -> LanguageModel:
        template, control, before, opens = FAMILIES[family]
        script = {before: opens, "[/TOOL_RESULTS]": "[TOOL_CALLS]"} | dict(after or {})
        key = repr((family, script, window))
        if key not in made:
            directory = tmp_path_factory.mktemp("models") / "scripted"
            _write(directory, template, control, window, script)
            made[key] = load(directory, dtype="fp32")
        return made[key]

    return make


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Random weights: whatever it writes well, it was made to."""
    directory = tmp_path_factory.mktemp("models") / "random"
    _write(directory, CHATML, FAMILIES["plain"][1], 4096, None)
    return load(directory, dtype="fp32")


def _write(
    directory: Path, template: str, control: Sequence[str], window: int, script: Mapping[str, str] | None
) -> None:
    """Two layers over control tokens and the 256 bytes. With a script the layers add nothing and the head
    follows it; a token that the script doesn't name is followed by the one that ends a turn.
    """
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*control, *letters])}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in control])
    size, inner, dim = len(vocab), 16, 16
    generator = torch.Generator().manual_seed(5)

    def weight(*shape: int) -> torch.Tensor:
        return torch.zeros(shape) if script is not None else torch.randn(shape, generator=generator) * 0.2

    state = {"model.embed_tokens.weight": torch.eye(size), "model.norm.weight": torch.ones(size)}
    state["lm_head.weight"] = weight(size, size)
    if script is not None:
        spelled = {"\n": "Ċ", " ": "Ġ"}
        follows = {vocab[spelled.get(a, a)]: vocab[spelled.get(b, b)] for a, b in script.items()
                   if spelled.get(a, a) in vocab and spelled.get(b, b) in vocab}  # fmt: skip
        for token in range(size):
            state["lm_head.weight"][follows.get(token, 0), token] = 1.0
    for layer in range(2):
        start = f"model.layers.{layer}"
        for name, rows in (("q", 4 * dim), ("k", 2 * dim), ("v", 2 * dim)):
            state[f"{start}.self_attn.{name}_proj.weight"] = (
                torch.randn(rows, size, generator=generator) * 0.1
            )
        state[f"{start}.self_attn.o_proj.weight"] = weight(size, 4 * dim)
        for name in ("gate", "up"):
            state[f"{start}.mlp.{name}_proj.weight"] = weight(inner, size)
        state[f"{start}.mlp.down_proj.weight"] = weight(size, inner)
        for name in ("input", "post_attention"):
            state[f"{start}.{name}_layernorm.weight"] = torch.ones(size)
    config = {
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": dim,
        "intermediate_size": inner,
        "max_position_embeddings": window,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    directory.mkdir()
    save_file(state, directory / "model.safetensors")
    built.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(config))
    settings = {"eos_token": control[0], "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
