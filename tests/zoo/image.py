"""Tiny transformers that make images."""

# Data: a configuration as keywords, several a line, reads better than one argument a line.
# ruff: noqa: C408
# fmt: off

from __future__ import annotations

from typing import Any

import torch

from .entry import Draw, Entry, Maker, bare, cond, listed, noisy, ones, rows, step, unit_step, whole_step

_FLUX = dict(patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
             num_attention_heads=2)
_FLUX_CALL = dict(hidden_states=noisy(16, 4), encoder_hidden_states=cond(6, 32), img_ids=bare(16, 3),
                  txt_ids=bare(6, 3), timestep=unit_step())
_COGVIEW_SIZES = dict(original_size=rows(64, 64), target_size=rows(64, 64), crop_coords=rows(0, 0))
_IDEOGRAM_TEXT, _IDEOGRAM_IMAGE = 4, 4  # tokens
_MASK = torch.bool


def _grid(height: int, width: int, prefix: int, axes: int) -> Maker:
    """Position ids (batch, height · width, axes) of an image, row and column from axis `prefix` on."""
    def make(draw: Draw) -> torch.Tensor:
        ids = torch.zeros(height, width, axes)
        ids[..., prefix] = torch.arange(height)[:, None]
        ids[..., prefix + 1] = torch.arange(width)
        return ids.view(1, -1, axes).expand(draw.batch, -1, -1)
    return make


def _line(length: int, axis: int, axes: int) -> Maker:
    """Position ids (batch, length, axes) of a text."""
    def make(draw: Draw) -> torch.Tensor:
        ids = torch.zeros(length, axes)
        ids[:, axis] = torch.arange(length)
        return ids.expand(draw.batch, -1, -1)
    return make


def _padded(maker: Maker, before: int, after: int) -> Maker:
    """A sequence (batch, length, channels) with empty tokens before and after it."""
    return lambda draw: torch.nn.functional.pad(maker(draw), (0, 0, before, after))


def _ideogram_positions(draw: Draw) -> torch.Tensor:
    from diffusers.models.transformers.transformer_ideogram4 import IMAGE_POSITION_OFFSET

    text = torch.arange(_IDEOGRAM_TEXT)[:, None].expand(-1, 3)
    image = IMAGE_POSITION_OFFSET + torch.tensor([[0, row,
                                                   column] for row in range(2) for column in range(2)])
    return torch.cat([text, image]).expand(draw.batch, -1, -1)


def _ideogram_indicator(draw: Draw) -> torch.Tensor:
    from diffusers.models.transformers import transformer_ideogram4 as module

    kinds = [module.LLM_TOKEN_INDICATOR] * _IDEOGRAM_TEXT + [module.OUTPUT_IMAGE_INDICATOR] * _IDEOGRAM_IMAGE
    return torch.tensor([kinds] * draw.batch)


def _fibo_layers(draw: Draw) -> list[torch.Tensor]:
    return [cond(6, 8)(draw) for _ in range(4)]


def _krea_positions(draw: Draw) -> torch.Tensor:
    return torch.cat([torch.zeros(4, 3), _grid(2, 2, 1, 3)(Draw(1, 0))[0]])


def _omnigen_call(text: int = 6, image: int = 16) -> dict[str, Any]:
    length = text + 1 + image
    return dict(hidden_states=noisy(4, 8, 8), timestep=unit_step(), input_img_latents=[],
                input_image_sizes={}, input_ids=lambda draw: torch.arange(1, text + 1).expand(draw.batch, -1),
                attention_mask=ones(length, length),
                position_ids=lambda draw: torch.arange(length).expand(draw.batch, -1))


IMAGE = [
    Entry("AuraFlowTransformer2DModel",
          dict(sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=2, num_single_dit_layers=2,
               attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=8,
               out_channels=4, pos_embed_max_size=16),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=unit_step())),
    Entry("BriaTransformer2DModel",
          dict(**{**_FLUX, "attention_head_dim": 8}, joint_attention_dim=32, pooled_projection_dim=None,
               axes_dims_rope=[0, 4, 4]),
          dict(**_FLUX_CALL)),
    Entry("BriaFiboTransformer2DModel",
          dict(**{**_FLUX, "attention_head_dim": 8}, joint_attention_dim=32, text_encoder_dim=8,
               pooled_projection_dim=None, axes_dims_rope=[0, 4, 4]),
          dict(**_FLUX_CALL, text_encoder_layers=_fibo_layers)),
    Entry("BriaFibo2Transformer2DModel",
          dict(in_channels=4, patch_size=2, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=8,
               injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8,
               gist_step=2, gist_min_text_len=4, gist_max_text_len=16, axes_dims=(4, 6, 6),
               axes_lens=(32, 16, 16)),
          dict(hidden_states=noisy(4, 8, 8), timestep=unit_step(), encoder_hidden_states=cond(2, 6, 8))),
    Entry("ChromaTransformer2DModel",
          dict(**_FLUX, joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_num_channels=8,
               approximator_hidden_dim=16, approximator_layers=1),
          dict(**_FLUX_CALL)),
    Entry("CogView3PlusTransformer2DModel",
          dict(patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
               out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8,
               sample_size=8),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=whole_step(),
               **_COGVIEW_SIZES)),
    Entry("CogView4Transformer2DModel",
          dict(patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
               out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=4),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=whole_step(),
               **_COGVIEW_SIZES)),
    Entry("DiTTransformer2DModel",
          dict(in_channels=4, out_channels=8, activation_fn="gelu-approximate", num_attention_heads=2,
               attention_head_dim=4, attention_bias=True, num_layers=2, norm_type="ada_norm_zero",
               num_embeds_ada_norm=8, patch_size=2, sample_size=8),
          dict(hidden_states=noisy(4, 8, 8), timestep=whole_step(),
               class_labels=lambda draw: torch.arange(draw.batch) % 4)),
    Entry("DreamLiteTransformer2DModel",
          dict(num_attention_heads=2, attention_head_dim=4, in_channels=8, num_layers=2, norm_num_groups=4,
               cross_attention_dim=8),
          dict(hidden_states=noisy(8, 4, 4), encoder_hidden_states=cond(6, 8))),
    Entry("ErnieImageTransformer2DModel",
          dict(hidden_size=16, num_attention_heads=1, num_layers=2, ffn_hidden_size=16, in_channels=4,
               out_channels=4, patch_size=1, text_in_dim=8, rope_theta=256, rope_axes_dim=(8, 4, 4),
               qk_layernorm=True),
          dict(hidden_states=noisy(4, 4, 4), timestep=step(), text_bth=cond(6, 8),
               text_lens=lambda draw: torch.full((draw.batch,), 6))),
    Entry("FluxTransformer2DModel",
          dict(**_FLUX, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
               guidance_embeds=True),
          dict(**_FLUX_CALL, pooled_projections=cond(32),
               guidance=lambda draw: torch.full((draw.batch,), 3.5))),
    Entry("Flux2Transformer2DModel",
          dict(**_FLUX, joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4]),
          dict(hidden_states=noisy(16, 4), encoder_hidden_states=cond(6, 32), img_ids=_grid(4, 4, 1, 4),
               txt_ids=_line(6, 3, 4), timestep=unit_step(), guidance=lambda draw: torch.ones(draw.batch))),
    Entry("Flux3Transformer2DModel",
          dict(in_channels=4, cond_in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
               num_attention_heads=2, joint_attention_dim=8, timestep_channels=16,
               axes_dims_rope=(4, 4, 4, 4)),
          dict(hidden_states=noisy(16, 4), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               img_ids=lambda draw: _grid(4, 4, 1, 4)(draw)[0],
               txt_ids=lambda draw: _line(6, 3, 4)(draw)[0])),
    Entry("GlmImageTransformer2DModel",
          dict(patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
               num_attention_heads=2, text_embed_dim=8, time_embed_dim=16, condition_dim=8,
               prior_vq_quantizer_codebook_size=64),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8),
               prior_token_id=lambda draw: torch.full((draw.batch, 16), 3),
               prior_token_drop=lambda draw: torch.zeros(draw.batch, 16, dtype=torch.bool),
               timestep=whole_step(), target_size=rows(8, 8), crop_coords=rows(0, 0))),
    Entry("HiDreamImageTransformer2DModel",
          dict(patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2,
               attention_head_dim=8, num_attention_heads=2, caption_channels=[8, 4], text_emb_dim=8,
               num_routed_experts=2, num_activated_experts=2, axes_dims_rope=(4, 2, 2),
               max_resolution=(16, 16), llama_layers=(0, 1, 0, 1), force_inference_output=True),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states_t5=cond(6, 8), pooled_embeds=cond(8),
               encoder_hidden_states_llama3=lambda draw: torch.stack([cond(6, 4)(draw) for _ in range(2)]),
               timesteps=whole_step())),
    Entry("HunyuanDiT2DModel",
          dict(sample_size=8, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8,
               num_attention_heads=2, cross_attention_dim=8, cross_attention_dim_t5=8,
               pooled_projection_dim=4, hidden_size=16, text_len=4, text_len_t5=4,
               activation_fn="gelu-approximate"),
          dict(hidden_states=noisy(4, 8, 8), timestep=step(), encoder_hidden_states=cond(4, 8),
               text_embedding_mask=ones(4), encoder_hidden_states_t5=cond(4, 8),
               text_embedding_mask_t5=ones(4), image_meta_size=rows(1024, 1024, 16, 16, 0, 0),
               style=lambda draw: torch.zeros(draw.batch, dtype=torch.long),
               image_rotary_emb=lambda draw: [torch.ones(16, 8), torch.zeros(16, 8)])),
    Entry("HunyuanImageTransformer2DModel",
          dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
               num_single_layers=2, num_refiner_layers=1, patch_size=(1, 1), guidance_embeds=False,
               text_embed_dim=8, text_embed_2_dim=8, rope_axes_dim=(4, 4)),
          dict(hidden_states=noisy(4, 4, 4), timestep=step(), encoder_hidden_states=cond(6, 8),
               encoder_attention_mask=ones(6), encoder_hidden_states_2=cond(4, 8),
               encoder_attention_mask_2=ones(4))),
    Entry("Ideogram4Transformer2DModel",
          dict(in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
               intermediate_size=32, adaln_dim=16, llm_features_dim=24, rope_theta=10_000,
               mrope_section=(2, 1, 1), norm_eps=1e-5),
          dict(hidden_states=_padded(noisy(_IDEOGRAM_IMAGE, 16), _IDEOGRAM_TEXT, 0),
               encoder_hidden_states=_padded(cond(_IDEOGRAM_TEXT, 24), 0, _IDEOGRAM_IMAGE),
               timestep=unit_step(), position_ids=_ideogram_positions, segment_ids=ones(8, dtype=torch.long),
               indicator=_ideogram_indicator)),
    Entry("JoyImageEditTransformer3DModel",
          dict(patch_size=[1, 2, 2], in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=8,
               num_layers=2, rope_dim_list=[4, 6, 6], theta=256),
          dict(hidden_states=noisy(4, 1, 4, 4), encoder_hidden_states=cond(6, 8), timestep=step())),
    Entry("JoyImageEditPlusTransformer3DModel",
          dict(patch_size=[1, 2, 2], in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=8,
               num_layers=2, rope_dim_list=[4, 6, 6], theta=256),
          dict(hidden_states=noisy(2, 4, 1, 2, 2), encoder_hidden_states=cond(6, 8), timestep=step(),
               shape_list=lambda draw: [[(1, 1, 1), (1, 1, 1)]] * draw.batch)),
    Entry("Krea2Transformer2DModel",
          dict(in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
               num_key_value_heads=2, intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16,
               num_text_layers=3, text_num_attention_heads=2, text_num_key_value_heads=1,
               text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
               axes_dims_rope=(4, 2, 2), rope_theta=1000.0),
          dict(hidden_states=noisy(4, 16), encoder_hidden_states=cond(4, 3, 16), timestep=unit_step(),
               position_ids=_krea_positions, encoder_attention_mask=ones(4, dtype=_MASK))),
    Entry("LongCatImageTransformer2DModel",
          dict(**_FLUX, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8]),
          dict(**_FLUX_CALL)),
    Entry("LuminaNextDiT2DModel",
          dict(sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
               num_attention_heads=3, num_kv_heads=1, multiple_of=16, learn_sigma=False, qk_norm=True,
               cross_attention_dim=8),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               encoder_mask=ones(6), image_rotary_emb=bare(8, 8, 4), cross_attention_kwargs={})),
    Entry("Lumina2Transformer2DModel",
          dict(sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
               num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2),
               axes_lens=(32, 32, 32), cap_feat_dim=8),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               encoder_attention_mask=ones(6, dtype=_MASK))),
    Entry("NucleusMoEImageTransformer2DModel",
          dict(patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
               num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(8, 4, 4), moe_enabled=False,
               capacity_factors=[8.0, 8.0]),
          dict(hidden_states=noisy(16, 16), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               encoder_hidden_states_mask=ones(6, dtype=torch.long),
               img_shapes=lambda draw: [(1, 4, 4)] * draw.batch)),
    Entry("OmniGenTransformer2DModel",
          dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=4, intermediate_size=32,
               num_layers=2, pad_token_id=0, vocab_size=100, in_channels=4, time_step_dim=4,
               rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]}),
          _omnigen_call()),
    Entry("OvisImageTransformer2DModel",
          dict(**_FLUX, out_channels=4, joint_attention_dim=32, axes_dims_rope=(4, 4, 8)),
          dict(**_FLUX_CALL)),
    Entry("PixArtTransformer2DModel",
          dict(sample_size=8, num_layers=2, patch_size=2, attention_head_dim=4, num_attention_heads=2,
               in_channels=4, cross_attention_dim=8, out_channels=8, attention_bias=True,
               activation_fn="gelu-approximate", norm_type="ada_norm_single", use_additional_conditions=False,
               caption_channels=None),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=whole_step(),
               added_cond_kwargs={"aspect_ratio": None, "resolution": None})),
    Entry("PriorTransformer",
          dict(num_attention_heads=2, attention_head_dim=4, num_layers=2, embedding_dim=8, num_embeddings=7,
               additional_embeddings=4),
          dict(hidden_states=noisy(8), timestep=whole_step(), proj_embedding=cond(8),
               encoder_hidden_states=cond(7, 8))),
    Entry("PRXTransformer2DModel",
          dict(in_channels=4, patch_size=2, context_in_dim=8, hidden_size=16, mlp_ratio=2.0, num_heads=2,
               depth=2, axes_dim=[4, 4], theta=10_000),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=unit_step())),
    Entry("QwenImageTransformer2DModel",
          dict(patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
               num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(8, 4, 4)),
          dict(hidden_states=noisy(16, 16), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               encoder_hidden_states_mask=ones(6, dtype=torch.long),
               img_shapes=lambda draw: [(1, 4, 4)] * draw.batch)),
    Entry("QwenImage21Transformer2DModel",
          dict(patch_size=1, in_channels=8, out_channels=8, num_layers=2, attention_head_dim=16,
               num_attention_heads=2, context_in_dim=8, axes_dims_rope=(4, 6, 6)),
          dict(hidden_states=noisy(16, 8), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               img_shapes=lambda draw: [[(1, 4, 4)]] * draw.batch,
               img_mask=lambda draw: torch.tensor([[False] * 6 + [True] * 4] * draw.batch))),
    Entry("SanaTransformer2DModel",
          dict(patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
               num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=4,
               cross_attention_dim=8, caption_channels=8, sample_size=8),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), timestep=whole_step())),
    Entry("SD3Transformer2DModel",
          dict(sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
               num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=8,
               pooled_projection_dim=8, out_channels=4, pos_embed_max_size=16, dual_attention_layers=(0,),
               qk_norm="rms_norm"),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), pooled_projections=cond(8),
               timestep=step())),
    Entry("UniDiffuserModel",
          dict(text_dim=8, clip_img_dim=8, num_text_tokens=6, num_attention_heads=2, attention_head_dim=8,
               in_channels=4, out_channels=4, num_layers=4, sample_size=8, patch_size=2, activation_fn="gelu",
               use_data_type_embedding=True),
          dict(latent_image_embeds=noisy(4, 8, 8), image_embeds=noisy(1, 8), prompt_embeds=cond(6, 8),
               timestep_img=whole_step(), timestep_text=0)),
    Entry("ZImageTransformer2DModel",
          dict(all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2,
               n_refiner_layers=1, n_heads=2, n_kv_heads=2, qk_norm=True, cap_feat_dim=8, rope_theta=256.0,
               t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32]),
          dict(x=listed(noisy(4, 1, 8, 8)), t=unit_step(), cap_feats=listed(cond(6, 8)))),
]

VARIANTS = [
    Entry("Flux3Transformer2DModel",
          dict(in_channels=4, cond_in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
               num_attention_heads=2, joint_attention_dim=8, timestep_channels=16,
               axes_dims_rope=(4, 4, 4, 4)),
          dict(hidden_states=noisy(16, 4), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               img_ids=lambda draw: _grid(4, 4, 1, 4)(draw)[0], txt_ids=lambda draw: _line(6, 3, 4)(draw)[0],
               image_cond_hidden_states=cond(4, 4), image_cond_ids=lambda draw: _grid(2, 2, 1, 4)(draw)[0]),
          variant="reference image"),
    Entry("QwenImageTransformer2DModel",
          dict(patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
               num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(8, 4, 4), zero_cond_t=True),
          dict(hidden_states=noisy(20, 16), encoder_hidden_states=cond(6, 8), timestep=unit_step(),
               encoder_hidden_states_mask=ones(6, dtype=torch.long),
               img_shapes=lambda draw: [[(1, 4, 4), (1, 2, 2)]] * draw.batch),
          variant="edit"),
    # A ControlNet's samples are written into what a single block returns.
    Entry("ChromaTransformer2DModel",
          dict(**_FLUX, joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_num_channels=8,
               approximator_hidden_dim=16, approximator_layers=1),
          dict(**_FLUX_CALL, controlnet_block_samples=lambda draw: [cond(16, 32)(draw)],
               controlnet_single_block_samples=lambda draw: [cond(16, 32)(draw)]),
          variant="controlnet"),
    Entry("FluxTransformer2DModel",
          dict(**_FLUX, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8]),
          dict(**_FLUX_CALL, pooled_projections=cond(32),
               controlnet_block_samples=lambda draw: [cond(16, 32)(draw)],
               controlnet_single_block_samples=lambda draw: [cond(16, 32)(draw)]),
          variant="controlnet"),
    Entry("SD3Transformer2DModel",
          dict(sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
               num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=8,
               pooled_projection_dim=8, out_channels=4, pos_embed_max_size=16),
          dict(hidden_states=noisy(4, 8, 8), encoder_hidden_states=cond(6, 8), pooled_projections=cond(8),
               timestep=step(), skip_layers=[1]),
          variant="skip layer guidance"),
]
