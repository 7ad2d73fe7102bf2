"""Tiny transformers that make videos, and videos with sound."""

# Data: a configuration as keywords, several a line, reads better than one argument a line.
# ruff: noqa: C408
# fmt: off

from __future__ import annotations

from typing import Any

import torch

from .entry import Draw, Entry, cond, listed, noisy, ones, rows, step, unit_step, whole_step

_WAN = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32)
_WAN_NORM = dict(qk_norm="rms_norm_across_heads")
_VIDEO = dict(hidden_states=noisy(4, 2, 8, 8), timestep=whole_step(), encoder_hidden_states=cond(6, 8))
_ANYFLOW_VIDEO = dict(hidden_states=noisy(2, 4, 8, 8), timestep=step(2), r_timestep=step(2, scale=500.0),
                      encoder_hidden_states=cond(6, 8))
_HUNYUAN = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2,
                num_single_layers=2, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
                text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4))
_HUNYUAN_TEXT = dict(encoder_hidden_states=cond(6, 8), encoder_attention_mask=ones(6),
                     pooled_projections=cond(8), guidance=lambda draw: torch.full((draw.batch,), 6000.0))
_KANDINSKY = dict(in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=16,
                  patch_size=(1, 2, 2), model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2,
                  axes_dims=(4, 2, 2), visual_cond=False)
_KANDINSKY6_CALL = dict(hidden_states=noisy(2, 8, 8, 4), encoder_hidden_states=cond(6, 8),
                        pooled_projections=cond(8), timestep=step())
_LTX2_WIDTHS = dict(num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, in_channels=4,
                    out_channels=4, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
                    audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=2,
                    caption_channels=16, rope_double_precision=False)


def _h3_layout(text: int = 4, audio: int = 6, video: int = 8) -> dict[str, Any]:
    """One packed sequence of MiniMax-H3: text, then audio, then video tokens."""
    length = text + audio + video
    kinds = torch.tensor([1] * text + [2] * audio + [0] * video)
    position_ids = torch.arange(length)[:, None].expand(-1, 3)
    return dict(token_tags=kinds, position_ids=position_ids, timestep_indices=(kinds == 2).long(),
                timestep=lambda draw: step()(Draw(2, draw.seed)),
                text_indices=(kinds == 1).nonzero()[:, 0], audio_indices=(kinds == 2).nonzero()[:, 0],
                video_indices=(kinds == 0).nonzero()[:, 0])


def _wan_animate2_cache(draw: Draw) -> Any:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return WanAnimate2KVCache(2)


VIDEO = [
    Entry("AllegroTransformer3DModel",
          dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
               cross_attention_dim=16, sample_width=8, sample_height=8, sample_frames=8, caption_channels=8),
          dict(hidden_states=noisy(4, 2, 8, 8), encoder_hidden_states=cond(6, 8), timestep=whole_step())),
    Entry("AnyFlowTransformer3DModel", dict(**_WAN, gate_value=0.25, deltatime_type="r"),
          dict(**_ANYFLOW_VIDEO)),
    Entry("AnyFlowFARTransformer3DModel",
          dict(**_WAN, gate_value=0.25, deltatime_type="r", compressed_patch_size=(1, 4, 4),
               full_chunk_limit=3),
          dict(**_ANYFLOW_VIDEO, chunk_partition=[1, 1])),
    Entry("ChronoEditTransformer3DModel",
          dict(**_WAN, **_WAN_NORM, image_dim=None, added_kv_proj_dim=None, rope_temporal_skip_len=8),
          dict(**_VIDEO)),
    Entry("CogVideoXTransformer3DModel",
          dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
               text_embed_dim=8, num_layers=2, sample_width=8, sample_height=8, sample_frames=8, patch_size=2,
               temporal_compression_ratio=4, max_text_seq_length=8),
          dict(hidden_states=noisy(1, 4, 8, 8), encoder_hidden_states=cond(8, 8), timestep=whole_step())),
    Entry("ConsisIDTransformer3DModel",
          dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
               text_embed_dim=8, num_layers=2, sample_width=8, sample_height=8, sample_frames=8, patch_size=2,
               temporal_compression_ratio=4, max_text_seq_length=8, cross_attn_interval=1, is_kps=False,
               is_train_face=True, cross_attn_dim_head=1, cross_attn_num_heads=1, LFE_id_dim=2, LFE_vit_dim=2,
               LFE_depth=5, LFE_dim_head=8, LFE_num_heads=2, LFE_num_id_token=1, LFE_num_querie=1,
               LFE_output_dim=10, LFE_ff_mult=1, LFE_num_scale=1),
          dict(hidden_states=noisy(1, 4, 8, 8), encoder_hidden_states=cond(8, 8), timestep=whole_step(),
               id_vit_hidden=lambda draw: [cond(2, 2)(draw)], id_cond=cond(2))),
    # No padding mask: only that path of Cosmos needs torchvision.
    Entry("CosmosTransformer3DModel",
          dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
               mlp_ratio=2, text_embed_dim=8, adaln_lora_dim=4, max_size=(4, 16, 16), patch_size=(1, 2, 2),
               rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type="learnable"),
          dict(**_VIDEO, attention_mask=ones(6), fps=30)),
    Entry("Cosmos3OmniTransformer",
          dict(head_dim=6, hidden_act="relu2", hidden_size=12, intermediate_size=24, latent_channel=2,
               latent_patch_size=1, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=1,
               patch_latent_dim=2, qk_norm_for_text=False, rope_axes_dim=[1, 1, 1], rope_theta=1e8,
               vocab_size=32),
          dict(input_ids=torch.tensor([1, 2]), text_indexes=torch.tensor([0, 1]), und_len=2,
               sequence_length=6, position_ids=torch.arange(6).expand(3, -1), vision_token_shapes=[(1, 2, 2)],
               vision_tokens=lambda draw: [noisy(2, 1, 2, 2)(Draw(1, draw.seed))],
               vision_sequence_indexes=torch.arange(2, 6), vision_mse_loss_indexes=torch.arange(2, 6),
               vision_timesteps=lambda draw: unit_step()(Draw(4, draw.seed)),
               vision_noisy_frame_indexes=[torch.tensor([0])])),
    Entry("EasyAnimateTransformer3DModel",
          dict(attention_head_dim=16, num_attention_heads=2, in_channels=4, mmdit_layers=2, num_layers=2,
               out_channels=4, patch_size=2, sample_height=8, sample_width=8, text_embed_dim=8,
               time_embed_dim=8, time_position_encoding_type="3d_rope", timestep_activation_fn="silu"),
          dict(**_VIDEO)),
    Entry("HeliosTransformer3DModel",
          dict(**{key: value for key, value in _WAN.items() if key != "rope_max_seq_len"}, **_WAN_NORM,
               rope_dim=(4, 4, 4), has_multi_term_memory_patch=True, guidance_cross_attn=True,
               zero_history_timestep=True, is_amplify_history=False),
          dict(**_VIDEO, indices_hidden_states=ones(2), indices_latents_history_short=ones(1),
               indices_latents_history_mid=ones(1), indices_latents_history_long=ones(4),
               latents_history_short=cond(4, 1, 8, 8), latents_history_mid=cond(4, 1, 8, 8),
               latents_history_long=cond(4, 4, 8, 8))),
    Entry("HunyuanVideoTransformer3DModel", dict(**_HUNYUAN),
          dict(hidden_states=noisy(4, 2, 8, 8), timestep=step(), **_HUNYUAN_TEXT)),
    Entry("HunyuanVideo15Transformer3DModel",
          dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
               num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16,
               text_embed_2_dim=8, image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16,
               task_type="t2v"),
          dict(hidden_states=noisy(4, 1, 4, 4), timestep=step(), encoder_hidden_states=cond(6, 16),
               encoder_hidden_states_2=cond(4, 8), encoder_attention_mask=ones(6),
               encoder_attention_mask_2=ones(4), image_embeds=lambda draw: torch.zeros(draw.batch, 3, 12))),
    Entry("HunyuanVideoFramepackTransformer3DModel",
          dict(**_HUNYUAN, image_condition_type=None, has_image_proj=True, image_proj_dim=8,
               has_clean_x_embedder=True),
          dict(hidden_states=noisy(4, 3, 4, 4), timestep=step(), **_HUNYUAN_TEXT, image_embeds=cond(6, 8),
               indices_latents=torch.arange(3), latents_clean=cond(4, 2, 4, 4),
               indices_latents_clean=torch.arange(2), latents_history_2x=cond(4, 2, 4, 4),
               indices_latents_history_2x=torch.arange(2), latents_history_4x=cond(4, 8, 4, 4),
               indices_latents_history_4x=torch.arange(8))),
    Entry("Kandinsky5Transformer3DModel", dict(**_KANDINSKY),
          dict(hidden_states=noisy(2, 8, 8, 4), encoder_hidden_states=cond(6, 8), timestep=step(),
               pooled_projections=cond(8), text_rope_pos=torch.arange(6),
               visual_rope_pos=lambda draw: [torch.arange(size) for size in (2, 4, 4)])),
    Entry("Kandinsky6Transformer3DModel", dict(**_KANDINSKY, in_audio_dim=4, out_audio_dim=4),
          dict(**_KANDINSKY6_CALL, audio_hidden_states=noisy(5, 4))),
    Entry("Kandinsky6SRTransformer3DModel",
          dict(in_visual_dim=4, out_visual_dim=4, time_dim=16, patch_size=(1, 1, 1), model_dim=32, ff_dim=32,
               num_visual_blocks=2, axes_dims=(4, 6, 6), nabla_window=(3, 3, 3)),
          dict(hidden_states=noisy(1, 8, 16, 9), timestep=step())),
    Entry("LatteTransformer3DModel",
          dict(sample_size=8, num_layers=2, patch_size=2, attention_head_dim=4, num_attention_heads=2,
               caption_channels=8, in_channels=4, cross_attention_dim=8, out_channels=8, attention_bias=True,
               activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
               norm_elementwise_affine=False, video_length=2),
          dict(**_VIDEO, enable_temporal_attentions=True)),
    Entry("LTXVideoTransformer3DModel",
          dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
               cross_attention_dim=16, num_layers=2, caption_channels=8),
          dict(hidden_states=noisy(32, 4), encoder_hidden_states=cond(6, 8), timestep=whole_step(),
               encoder_attention_mask=ones(6, dtype=torch.bool), num_frames=2, height=4, width=4)),
    Entry("LTX2VideoTransformer3DModel", dict(**_LTX2_WIDTHS),
          dict(hidden_states=noisy(32, 4), audio_hidden_states=noisy(9, 4), encoder_hidden_states=cond(6, 16),
               audio_encoder_hidden_states=cond(6, 16), timestep=step(), num_frames=2, height=4, width=4,
               encoder_attention_mask=ones(6, dtype=torch.bool), audio_num_frames=9, fps=25.0)),
    Entry("MiniMaxH3Transformer3DModel",
          dict(num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=2,
               num_refiner_layers=2, ffn_dim=32, in_channels=4, audio_in_channels=6, patch_size=(1, 2, 2),
               text_dim=8, freq_dim=8, time_embed_hidden_dim=24, time_embed_dim=16, rope_freq_dim=2),
          dict(hidden_states=noisy(8, 16), audio_hidden_states=noisy(6, 6), encoder_hidden_states=cond(4, 8),
               **_h3_layout())),
    Entry("MochiTransformer3DModel",
          dict(patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
               pooled_projection_dim=16, in_channels=4, out_channels=None, qk_norm="rms_norm",
               text_embed_dim=8, time_embed_dim=4, activation_fn="swiglu", max_sequence_length=6),
          dict(**_VIDEO, encoder_attention_mask=ones(6, dtype=torch.bool))),
    Entry("MotifVideoTransformer3DModel",
          dict(in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
               num_single_layers=3, num_decoder_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1,
               text_embed_dim=8, image_embed_dim=4, rope_axes_dim=(4, 4, 4)),
          dict(hidden_states=noisy(9, 2, 4, 4), timestep=whole_step(), encoder_hidden_states=cond(6, 8))),
    Entry("SanaVideoTransformer3DModel",
          dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
               num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24,
               caption_channels=8, mlp_ratio=2.5, sample_size=4, patch_size=(1, 2, 2),
               qk_norm="rms_norm_across_heads", rope_max_seq_len=32),
          dict(**_VIDEO)),
    Entry("SanaWMTransformer3DModel",
          dict(in_channels=4, num_layers=2, hidden_size=24, num_attention_heads=2, softmax_every_n=2,
               linear_head_dim=12, caption_channels=8, mlp_ratio=2.0, chunk_plucker_channels=4,
               chunk_plucker_post_attn_blocks=2),
          dict(hidden_states=noisy(4, 2, 4, 4), timestep=step(1, 2), encoder_hidden_states=cond(1, 6, 8),
               mask=ones(6))),
    Entry("SanaWMLTX2RefinerTransformer3DModel", dict(**_LTX2_WIDTHS),
          dict(hidden_states=noisy(8, 4), encoder_hidden_states=cond(6, 16), timestep=unit_step(8),
               video_rotary_emb=lambda draw: (cond(8, 16)(draw), cond(8, 16)(draw)))),
    Entry("SkyReelsV2Transformer3DModel", dict(**_WAN, **_WAN_NORM), dict(**_VIDEO)),
    Entry("TransformerTemporalModel",
          dict(num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=2, norm_num_groups=1),
          dict(hidden_states=noisy(4, 4, 4), timestep=whole_step())),
    Entry("WanTransformer3DModel", dict(**_WAN, **_WAN_NORM), dict(**_VIDEO)),
    Entry("WanAnimateTransformer3DModel",
          dict(**{**_WAN, "in_channels": 12}, **_WAN_NORM, latent_channels=4, image_dim=8,
               motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16,
               motion_style_dim=8, motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=8,
               face_encoder_num_heads=2, inject_face_latents_blocks=2),
          dict(hidden_states=noisy(12, 3, 8, 8), timestep=whole_step(), encoder_hidden_states=cond(6, 8),
               encoder_hidden_states_image=cond(6, 8), pose_hidden_states=cond(4, 2, 8, 8),
               face_pixel_values=cond(3, 5, 16, 16))),
    Entry("WanAnimate2Transformer3DModel",
          dict(patch_size=(1, 2, 2), text_len=8, in_dim=8, dim=32, ffn_dim=32, freq_dim=16, text_dim=8,
               out_dim=4, num_heads=2, num_layers=2, cross_attn_norm=True, use_img_emb=True),
          dict(hidden_states=listed(noisy(4, 2, 4, 4)), timestep=step(),
               encoder_hidden_states=listed(cond(6, 8)), condition_latents=listed(cond(4, 2, 4, 4)),
               encoder_hidden_states_image=cond(4, 1280), kv_cache=_wan_animate2_cache,
               kv_cache_mode="extract", seq_len=8, offset_grid_sizes=rows(2, 2, 2, dtype=torch.long))),
    Entry("WanVACETransformer3DModel",
          dict(**{**_WAN, "num_layers": 4}, **_WAN_NORM, vace_layers=[0, 2], vace_in_channels=12),
          dict(**_VIDEO, control_hidden_states=cond(12, 2, 8, 8))),
]

VARIANTS = [
    Entry("Kandinsky6Transformer3DModel", dict(**_KANDINSKY, in_audio_dim=4, out_audio_dim=4),
          dict(**_KANDINSKY6_CALL), variant="silent"),
    Entry("HunyuanVideoTransformer3DModel", dict(**_HUNYUAN, image_condition_type="token_replace"),
          dict(hidden_states=noisy(4, 2, 8, 8), timestep=step(), **_HUNYUAN_TEXT), variant="token replace"),
]
