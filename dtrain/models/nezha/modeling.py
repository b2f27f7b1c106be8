"""NEZHA as a transformers 5 model (Wei et al. 2019, arXiv 1909.00204): the encoder and its base.

transformers itself dropped NEZHA in version 5. Parameters are named as in the files released for version 4,
so that `from_pretrained` reads those as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from dtrain.models.nezha.attention import RelativePositions
from dtrain.models.nezha.configuration import NezhaConfig
from dtrain.models.nezha.layers import NezhaEmbeddings, NezhaEncoder, NezhaLMPrediction, NezhaPooler


class NezhaPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights, as in transformers."""

    config_class = NezhaConfig
    config: NezhaConfig
    base_model_prefix = "nezha"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["NezhaEmbeddings", "NezhaLayer"]
    # computed tables that older versions of transformers and Huawei's code stored beside the weights
    _keys_to_ignore_on_load_unexpected = [r"relative_positions_e", r"embeddings\.position_ids"]

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NezhaLMPrediction):
            init.zeros_(module.bias)


class NezhaModel(NezhaPreTrainedModel):
    """The encoder: token ids to one state a token, and with `add_pooling_layer` one for the whole input.

    `attn_implementation="eager"` selects the reference form of the attention, any other the fast ones.
    """

    def __init__(self, config: NezhaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = NezhaEmbeddings(config)
        self.encoder = NezhaEncoder(config)
        self.pooler = NezhaPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Replaces the word embeddings."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """One pass, any length; a plain tuple with `return_dict=False`.

        Args:
            input_ids: int64 [B, L], or `inputs_embeds`: float [B, L, H], one of the two.
            attention_mask: [B, L], 0 for padding, on either side; or [B, L, L], a row a query.
            token_type_ids: int64 [B, L]; None for all 0.
            output_attentions: also every layer's attention weights [B, heads, L, L] (by the eager form).
            output_hidden_states: also the embeddings and every layer's output [B, L, H].

        Raises:
            ValueError: with both or neither of `input_ids` and `inputs_embeds`, or a mask of another shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        embeddings = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        positions = RelativePositions.build(
            embeddings.size(1),
            head_size=self.config.head_size,
            max_distance=self.config.max_relative_position,
            device=embeddings.device,
            dtype=embeddings.dtype,
        )
        eager = output_attentions or self.config._attn_implementation == "eager"
        states, weights = self.encoder(embeddings, positions, _visible(attention_mask, embeddings), eager)
        return BaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=None if self.pooler is None else self.pooler(states[-1]),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )


def _visible(attention_mask: Tensor | None, embeddings: Tensor) -> Tensor | None:
    """The mask as bool [B, 1, 1 or L, L], or None where nothing is known to be masked."""
    if attention_mask is None:
        return None
    batch, length = embeddings.shape[:2]
    if attention_mask.shape == (batch, length):
        visible = attention_mask[:, None, None, :].bool()
    elif attention_mask.shape == (batch, length, length):
        visible = attention_mask[:, None].bool()
    else:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}: "
            f"{[batch, length]} or {[batch, length, length]} is needed"
        )
    # Only on a CPU is asking free: a GPU would have to finish its work first, at every batch.
    if visible.device.type == "cpu" and not torch.compiler.is_compiling() and bool(visible.all()):
        return None
    return visible
