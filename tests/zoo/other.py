"""Tiny transformers that make sound, and proteins."""

# Data: a configuration as keywords, several a line, reads better than one argument a line.
# ruff: noqa: C408
# fmt: off

from __future__ import annotations

import torch

from .entry import Draw, Entry, bare, cond, noisy, ones, unit_step

_PROTEIN_LENGTH = 6


def _protein_conditioning(draw: Draw) -> dict[str, torch.Tensor]:
    shape = (draw.batch, _PROTEIN_LENGTH)
    return {"is_in_context_conditioning": torch.zeros(shape, dtype=torch.bool),
            "supports_local_latent": torch.ones(shape, dtype=torch.bool)}


OTHER = [
    Entry("AceStepTransformer1DModel",
          dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, head_dim=8, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2,
               rope_theta=10000.0, sliding_window=16),
          dict(hidden_states=noisy(8, 8), timestep=unit_step(), timestep_r=unit_step(),
               encoder_hidden_states=cond(6, 32), context_latents=cond(8, 16))),
    Entry("LongCatAudioDiTTransformer",
          dict(dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=8, latent_dim=4, text_conv=False),
          dict(hidden_states=noisy(8, 4), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               encoder_attention_mask=ones(6, dtype=torch.bool), attention_mask=ones(8, dtype=torch.bool))),
    Entry("MiniMaxMusic3Transformer1DModel",
          dict(in_channels=8, condition_dim=16, num_layers=2, num_attention_heads=2, attention_head_dim=8,
               ff_inner_dim=32, rotary_dim=4, fourier_embedding_dim=8),
          dict(hidden_states=noisy(8, 12), encoder_hidden_states=cond(12, 16), timestep=unit_step())),
    Entry("RFD4ProteinaTransformer",
          dict(nlayers=3, token_dim=16, nheads=2, dim_cond=8, pair_repr_dim=8, latent_dim=4, t_emb_dim=8,
               tri_mult_c=8, feats_seq=("xt_bb_ca", "xt_local_latents"),
               feats_pair_repr=("xt_bb_ca_pair_dists",),
               feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents", "recycle_remaining"),
               num_sequence_classes=5),
          dict(bb_ca=noisy(_PROTEIN_LENGTH, 3), local_latents=noisy(_PROTEIN_LENGTH, 4),
               bb_ca_time=unit_step(), local_latents_time=unit_step(),
               padding_mask=ones(_PROTEIN_LENGTH, dtype=torch.bool), conditioning=_protein_conditioning,
               recycle_depth=2)),
    Entry("StableAudioDiTModel",
          dict(sample_size=8, in_channels=3, num_layers=2, attention_head_dim=4, num_attention_heads=4,
               num_key_value_attention_heads=2, out_channels=3, cross_attention_dim=8, time_proj_dim=8,
               global_states_input_dim=8, cross_attention_input_dim=4),
          dict(hidden_states=noisy(3, 8), timestep=unit_step(), encoder_hidden_states=cond(6, 4),
               global_hidden_states=cond(1, 8),
               rotary_embedding=lambda draw: (bare(9, 2)(draw), bare(9, 2)(draw)))),
    Entry("StableAudio3DiTModel",
          dict(io_channels=8, patch_size=1, embed_dim=32, depth=2, num_heads=4, cond_token_dim=16,
               global_cond_dim=12, local_add_cond_dim=5, timestep_features_dim=16, ff_mult=2,
               num_memory_tokens=3, use_differential_attention=False),
          dict(hidden_states=noisy(8, 16), timestep=unit_step(), encoder_hidden_states=cond(4, 16),
               global_hidden_states=cond(12))),
    Entry("T5FilmDecoder",
          dict(input_dims=4, targets_length=8, max_decoder_noise_time=2000.0, d_model=16, num_layers=2,
               num_heads=2, d_kv=8, d_ff=32),
          dict(decoder_input_tokens=noisy(8, 4), decoder_noise_time=unit_step(),
               encodings_and_masks=lambda draw: [(cond(6, 16)(draw), ones(6)(draw))])),
]
