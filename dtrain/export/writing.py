"""Encoder-decoders as two graphs: one reads a text, the other writes the next token. `predict.py` calls that in a loop.

input_ids [B, L] ──▶ reading ──▶ source [B, L, C]: every decoder layer's keys and values of the encoder's states
tokens [B, n], past [B, n - 1, C], source, attention_mask ──▶ step ──▶ logits [B, V], more [B, 1, C]
                 ▲                                                                    │
                 └──── the keys and values of the tokens before: `more` of each step ◀┘

C = 2 x layers x hidden: a layer's keys, then its values. A step computes one token, however many were written before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.errors import InputError
from dtrain.export.graphs import Graph, Inputs, Part

# Keys of a model's generation_config.json that greedy decoding ignores, or that `settings` and the recipe decide.
_WITHOUT_EFFECT = {
    "bos_token_id", "cache_implementation", "decoder_start_token_id", "do_sample", "early_stopping", "eos_token_id",
    "epsilon_cutoff", "eta_cutoff", "length_penalty", "max_length", "max_new_tokens", "min_p", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id",
    "return_dict_in_generate", "temperature", "top_k", "top_p", "transformers_version", "typical_p", "use_cache",
    "renormalize_logits", "remove_invalid_values", "_from_model_config",
}  # fmt: skip
_FOLLOWED = {
    "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "suppress_tokens",
}  # fmt: skip


class Writing(Graph):
    """The graphs of Marian and BART, whose decoder layers are alike: self-attention, cross-attention, two linear maps.

    Args:
        model: in eval mode.

    Raises:
        InputError: it has a decoder, but classifies.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if not hasattr(model, "lm_head"):
            raise InputError(f"export: a {type(model).__name__} cannot be exported: its decoder writes no text")

    def parts(self, example: Inputs) -> list[Part]:
        reading, step = _Reading(self.model), _Step(self.model)
        with torch.no_grad():
            (source,) = reading(*example.values())
        mask = example["attention_mask"]
        written = mask.shape[1] - 2  # not the texts' length, which the exporter would take for the same dimension
        asked = {
            "tokens": example["input_ids"][:, :written] % self.model.lm_head.out_features,
            "past": source.new_zeros(len(mask), written - 1, source.shape[2]),
            "source": source,
            "attention_mask": mask,
        }
        return [Part(reading, example, ("source",)), Part(step, asked, ("logits", "more"))]

    def settings(self) -> dict[str, Any]:
        """With which tokens texts begin and end, and the other rules of the model's generation_config.json.

        Raises:
            InputError: that file asks for something that `predict.py` does not do.
        """
        rules = self.model.generation_config
        unknown = {
            name: value
            for name, value in rules.to_diff_dict().items()
            if name not in _WITHOUT_EFFECT | _FOLLOWED and value is not None
        }
        words = rules.bad_words_ids or []
        if any(len(word) > 1 for word in words):
            unknown["bad_words_ids"] = "more than a token a word"
        if unknown:
            name, value = next(iter(unknown.items()))
            raise InputError(
                f"export: the model's generation_config.json sets {name} ({value}), which an export's predict.py does not "
                "follow; take it out there where the model writes well without it"
            )
        ends = _numbers(rules.eos_token_id)
        last = _numbers(rules.forced_eos_token_id)
        return {
            "start": rules.decoder_start_token_id,
            "ends": ends,
            "width": 2 * self.model.config.decoder_layers * self.model.config.d_model,
            "first": rules.forced_bos_token_id,  # the first token, whichever is the most probable
            "last": min(last) if last else None,  # the last token of a text of the greatest length
            "never": sorted({token for [token] in words if token not in ends} | {*(rules.suppress_tokens or [])}),
            # The smallest length of a text in tokens, the start included.
            "least": max(rules.min_length or 0, 1 + rules.min_new_tokens if rules.min_new_tokens else 0),
            "unrepeated": rules.no_repeat_ngram_size or 0,  # n-grams of so many tokens occur in a text once
        }


def _numbers(found: int | list[int] | None) -> list[int]:
    return [] if found is None else [found] if isinstance(found, int) else list(found)


class _Reading(nn.Module):
    """The encoder, followed by the keys and values of each decoder layer's cross-attention: [B, L] -> [B, L, C]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.projections = nn.ModuleList(
            projection
            for layer in model.get_decoder().layers
            for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return (torch.cat([projection(states) for projection in self.projections], dim=2),)


class _Step(nn.Module):
    """The decoder for the last of the tokens [B, n], given the keys and values of the tokens before."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.get_decoder()
        self.head, self.bias = model.lm_head, model.final_logits_bias
        # Marian scales token embeddings outside of its table, BART inside. BART's positions begin at 2, and it normalises
        # the sum of both embeddings.
        self.scale = float(getattr(self.decoder, "embed_scale", 1.0))
        self.offset = int(getattr(self.decoder.embed_positions, "offset", 0))

    def forward(self, tokens: Tensor, past: Tensor, source: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        decoder = self.decoder
        # The number of tokens before, as a tensor, since an exported graph can look up a table only by a tensor's values.
        place = torch.ones_like(past[:1, :, 0], dtype=torch.int64).sum(1) + self.offset
        states = decoder.embed_tokens(tokens[:, -1]) * self.scale + decoder.embed_positions.weight[place]
        if hasattr(decoder, "layernorm_embedding"):
            states = decoder.layernorm_embedding(states)
        hidden = attention_mask[:, None, :] == 0
        width = states.shape[1]
        more = []
        for number, layer in enumerate(decoder.layers):
            places = [slice(at * width, (at + 1) * width) for at in (2 * number, 2 * number + 1)]
            new = [projection(states)[:, None] for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj)]
            more += new
            keys, values = (torch.cat([past[:, :, at], one], dim=1) for at, one in zip(places, new, strict=True))
            states = layer.self_attn_layer_norm(states + _attention(layer.self_attn, states, keys, values, None))
            keys, values = (source[:, :, at] for at in places)
            read = _attention(layer.encoder_attn, states, keys, values, hidden)
            states = layer.encoder_attn_layer_norm(states + read)
            states = layer.final_layer_norm(states + layer.fc2(layer.activation_fn(layer.fc1(states))))
        logits = functional.linear(states, self.head.weight) + self.bias
        return logits.float(), torch.cat(more, dim=2)


def _attention(layer: Any, states: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
    """Multi-head attention with one query for each row.

    Args:
        layer: the attention layer, with its projections of query and output.
        states: [B, H].
        keys, values: [B, n, H].
        hidden: bool [B, 1, n], True where there is no attention.

    Returns:
        [B, H].
    """
    rows, length, _ = keys.shape
    keys, values = (each.view(rows, length, layer.num_heads, layer.head_dim) for each in (keys, values))
    query = layer.q_proj(states).view(rows, 1, layer.num_heads, layer.head_dim)
    scores = (query * keys).sum(3).transpose(1, 2) * layer.scaling  # [B, heads, n]
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    shares = scores.softmax(2).transpose(1, 2)[..., None]
    return layer.out_proj((shares * values).sum(1).reshape(rows, -1))
