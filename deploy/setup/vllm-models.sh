#!/bin/sh
# Makes the toy models of `make test-vllm` in a vLLM that vllm.sh installed: DIRECTORY/models.
#
#   deploy/setup/vllm-models.sh DIRECTORY
#
# tiny-qwen2 has two layers, adapter is a LoRA adapter for it, and every other one of the four layers of tiny-gemma3 has
# a sliding window of two blocks. None has weights: the engine makes random ones. All have the tokenizer of Qwen2.5, which
# tokenizer.sh fetches.
set -eu

target="${1:?vllm-models.sh: name the folder that vllm.sh prints}"
root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
tokenizers="${WARMROUTE_TOKENIZERS:-$root/target/tokenizers}"
# Raised when the models change, so that older ones are made anew.
recipe=1

fail() {
    echo "vllm-models.sh: $1" >&2
    exit 1
}

if [ -f "$target/models/.recipe" ] && [ "$(cat "$target/models/.recipe")" = "$recipe" ]; then
    exit 0
fi
[ -f "$tokenizers/qwen2.5/tokenizer.json" ] ||
    fail "$tokenizers/qwen2.5/tokenizer.json is not there: run deploy/setup/tokenizer.sh first (make setup does)."

rm -rf "$target/models"
for model in tiny-qwen2 tiny-gemma3; do
    mkdir -p "$target/models/$model"
    cp "$tokenizers/qwen2.5/tokenizer.json" "$tokenizers/qwen2.5/tokenizer_config.json" "$target/models/$model/"
done
cat >"$target/models/tiny-qwen2/config.json" <<'JSON'
{
  "architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2",
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 2,
  "max_position_embeddings": 4096,
  "vocab_size": 151936,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "hidden_act": "silu",
  "initializer_range": 0.02,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000.0,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "use_cache": true
}
JSON
cat >"$target/models/tiny-gemma3/config.json" <<'JSON'
{
  "architectures": ["Gemma3ForCausalLM"],
  "model_type": "gemma3_text",
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 4,
  "num_attention_heads": 2,
  "num_key_value_heads": 2,
  "head_dim": 32,
  "query_pre_attn_scalar": 32,
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
  "sliding_window": 64,
  "max_position_embeddings": 4096,
  "vocab_size": 151936,
  "bos_token_id": 151643,
  "pad_token_id": 151643,
  "eos_token_id": 151645,
  "hidden_activation": "gelu_pytorch_tanh",
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "rope_local_base_freq": 10000.0,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "use_cache": true
}
JSON
"$target/bin/python" - "$target/models/adapter" <<'PY' || fail "the adapter could not be made; Python's words are above."
import json, pathlib, sys
import torch
from safetensors.torch import save_file

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
torch.manual_seed(1)
name = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
weights = {}
for layer in range(2):
    for part in "qv":
        weights[name.format(layer, part, "A")] = torch.randn(8, 64) * 0.02
        weights[name.format(layer, part, "B")] = torch.randn(64, 8) * 0.02
save_file(weights, str(folder / "adapter_model.safetensors"))
(folder / "adapter_config.json").write_text(json.dumps({
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny-qwen2",
    "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj"],
}))
PY

echo "$recipe" >"$target/models/.recipe"
