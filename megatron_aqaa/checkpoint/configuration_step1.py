"""Configuration of Step-1 for transformers; exported checkpoints carry a copy, so it imports nothing of ours."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class Step1Config(PretrainedConfig):
    """A decoder of the Step-1 family. Keys as in the released `config.json`; the defaults are the released 3B.

    A file of its own, since vLLM takes the configuration from here and brings its own model, which reads the same keys
    (vllm-project/vllm: `vllm/model_executor/models/step1.py`). A head is hidden_size / num_attention_heads wide.

    Args:
        vocab_size: rows of the tables, every one of them a token.
        hidden_size: width of the residual stream.
        intermediate_size: width of the SwiGLU.
        num_hidden_layers: layers.
        num_attention_heads: query heads.
        num_attention_groups: key/value heads.
        max_seq_len: longest sequence the model was made for; nothing in it depends on this.
        rms_norm_eps: of RMSNorm.
        initializer_range: standard deviation of new weights.
        tie_word_embeddings: the output head is the embedding. Always written out: without the key vLLM assumes so.
        use_cache: keep keys and values by default.
        pad_token_id: `<unk>`.
        bos_token_id: `<s>`.
        eos_token_id: `<|EOT|>`.

    Raises:
        ValueError: heads that do not divide evenly over the groups, or the width over the heads.
    """

    model_type = "step1"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "num_key_value_heads": "num_attention_groups",
        "max_position_embeddings": "max_seq_len",
    }

    def __init__(
        self,
        vocab_size: int = 74752,
        hidden_size: int = 3072,
        intermediate_size: int = 8192,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 48,
        num_attention_groups: int = 4,
        max_seq_len: int = 32768,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 3,
        **kwargs: Any,
    ) -> None:
        if num_attention_heads % num_attention_groups:
            raise ValueError(
                f"num_attention_heads = {num_attention_heads} must be a multiple of num_attention_groups = "
                f"{num_attention_groups}"
            )
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size = {hidden_size} must be a multiple of num_attention_heads = {num_attention_heads}"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_attention_groups = num_attention_groups
        self.max_seq_len = max_seq_len
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            **kwargs,
        )


Step1Config.register_for_auto_class()  # so that `save_pretrained` copies the code and writes `auto_map`
