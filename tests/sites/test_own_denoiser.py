"""A denoiser whose modules bear names of its own works at every site, once its row names them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError, register_denoiser
from spectrum_diffusion.sites import denoisers, tokens
from spectrum_diffusion.sites.deep import deep_modules
from spectrum_diffusion.sites.residual import time_embedders
from spectrum_diffusion.sites.row import TokenRoles, UNetRoles

WIDTH = 8


class Look(nn.Module):
    """Attention of text and image together, the text first; answers (image, text)."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.map(torch.cat([text, image], dim=1)).unsqueeze(1)
        mixed = functional.scaled_dot_product_attention(tokens, tokens, tokens).squeeze(1)
        return mixed[:, text.shape[1] :], mixed[:, : text.shape[1]]


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look = Look()
        self.think, self.think_text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        image_mix, text_mix = self.look(hidden_states, text)
        hidden_states, text = hidden_states + image_mix, text + text_mix
        return text + self.think_text(text), hidden_states + self.think(hidden_states)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clock = nn.Linear(1, WIDTH)
        self.reader = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.stages = nn.ModuleList([Stage(), Stage(), Stage()])
        self.last = nn.LayerNorm(WIDTH)

    def forward(self, hidden_states: Tensor, text: Tensor, time: Tensor) -> Tensor:
        hidden_states, text = hidden_states + self.clock(time), self.reader[0](text)
        for stage in self.stages:
            text, hidden_states = stage(hidden_states, text)
        return self.last(hidden_states)


ROLES: dict[str, Any] = {
    "blocks": ("reader", "stages"),
    "tail": "last",
    "preliminary": "reader",
    "text_first": True,
    "embedder": "clock",
    "modules": ("look", "think", "think_text"),
    "tokens": TokenRoles(("text", "image"), ("look",), (), {"think": "image", "think_text": "text"}),
}


@pytest.fixture(autouse=True)
def _no_registered_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers, "_registered", {})


def own(**changes: Any) -> Own:
    register_denoiser(Own, **ROLES | changes)
    torch.manual_seed(0)
    return Own().eval()


def inputs(seed: int) -> dict[str, Tensor]:
    """As many text tokens as image tokens, so that shapes do not tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(99))
    return {"hidden_states": torch.randn(1, 4, WIDTH, generator=generator), "text": text, "time": torch.ones(1)}


def two_steps(model: nn.Module, method: str, **options: Any) -> tuple[list[Tensor], list[nn.Module]]:
    """Outputs of an evaluated and a skipped step, and what ran in the skipped one."""
    ran: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for module in model.modules()]
    with spectrum_diffusion.enable(model, method, **options) as handle, handle.run(total_steps=3) as run:
        outputs = []
        for step in range(2):
            ran.clear()
            run.step(step)
            with torch.no_grad():
                outputs.append(model(**inputs(step)))
        assert handle.summary().evaluated == [0]
    for hook in hooks:
        hook.remove()
    return outputs, ran


def by_hand(model: Own, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Image tokens before each stage and after the last, and what each stage's parts answer."""
    states, parts = [], []
    with torch.no_grad():
        data = inputs(seed)
        image, text = data["hidden_states"] + model.clock(data["time"]), model.reader[0](data["text"])
        states.append(image)
        for stage in model.stages:
            mixed = stage.look(image, text)
            parts += [*mixed, stage.think(image + mixed[0])]
            text, image = stage(image, text)
            states.append(image)
    return states, parts


def test_module_site_keeps_the_named_modules() -> None:
    model = own()
    (_, skipped), ran = two_steps(model, "fora")
    kept, data = by_hand(model, 0)[1], inputs(1)
    with torch.no_grad():
        image = data["hidden_states"] + model.clock(data["time"])
        for i in range(3):
            image = image + kept[3 * i] + kept[3 * i + 2]
        assert torch.allclose(skipped, model.last(image), atol=1e-6)
    assert not any(type(module) is Look for module in ran)


def test_module_site_says_how_to_name_unknown_modules() -> None:
    with pytest.raises(UnsupportedModelError, match=r"modules=\(…\)"):
        spectrum_diffusion.enable(own(modules=None), "fora")


@pytest.mark.parametrize("text_first", [True, False])
def test_first_block_site_takes_the_image_tokens_from_where_the_row_says(text_first: bool) -> None:
    model = own(text_first=text_first)
    (_, skipped), _ = two_steps(model, "first-block-cache", threshold=1e9)
    (_, first, _, last), (_, new_first, *_) = by_hand(model, 0)[0], by_hand(model, 1)[0]
    with torch.no_grad():
        assert torch.allclose(skipped, model.last(new_first + last - first), atol=1e-5) is text_first


def test_residual_begins_at_the_first_block_that_is_not_preliminary() -> None:
    model = own()
    (_, skipped), ran = two_steps(model, "magcache", ratios=[1.0] * 3, retention=0.0)
    (before, *_, last), (new_before, *_) = by_hand(model, 0)[0], by_hand(model, 1)[0]
    with torch.no_grad():
        assert torch.allclose(skipped, model.last(new_before + last - before), atol=1e-5)
    assert not any(isinstance(module, Stage) for module in ran)
    assert time_embedders(model) == [model.clock]


def test_tokens_site_runs_the_feed_forward_on_the_tokens_that_the_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SHARES", {"double": 100.0, "single": 100.0})  # all tokens
    model = own()
    (_, skipped), ran = two_steps(model, "toca", ratio=1.0, warmup=1)
    kept, data = by_hand(model, 0)[1], inputs(1)
    with torch.no_grad():
        image = data["hidden_states"] + model.clock(data["time"])
        for i, stage in enumerate(model.stages):
            image = image + kept[3 * i]
            image = image + stage.think(image)
        assert torch.allclose(skipped, model.last(image), atol=1e-6)
    assert not any(isinstance(module, Look) for module in ran)


class Level(nn.Module):
    def __init__(self, count: int, lower: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(count))
        if lower:
            self.shrink = nn.ModuleList([nn.AvgPool2d(2)])


class OwnUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([Level(2, lower=True), Level(2)])
        self.bottom = Level(1)
        self.decoder = nn.ModuleList([Level(3), Level(3)])
        self.out = nn.Identity()


def test_deep_site_of_a_unet_with_names_of_its_own() -> None:
    register_denoiser(
        OwnUNet,
        blocks=("encoder", "bottom", "decoder"),
        tail="out",
        reshapes=True,
        unet=UNetRoles("encoder", "bottom", "decoder", ("convs",), "shrink"),
    )
    unet = OwnUNet().eval()
    last, before = deep_modules(unet, 1)
    assert last is unet.decoder[1].convs[0]
    assert before == [
        unet.encoder[0].convs[1],
        unet.encoder[0].shrink[0],
        unet.encoder[1],
        unet.bottom,
        unet.decoder[0],
    ]
    with pytest.raises(UnsupportedModelError, match="is a U-Net"):
        spectrum_diffusion.enable(unet, "magcache", ratios=[1.0])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"preliminary": ("reader", "stages")}, "has only preliminary blocks"),
        ({"preliminary": "refiner"}, "has refiner in preliminary, but not in its blocks"),
        ({"modules": (nn.Linear(1, 1),)}, "pass attribute names, not modules"),
        ({"modules": "look at"}, "'look at', which is not a path to a module"),
        ({"embeder": "clock"}, r"embeder='clock', which is not a field of a row \(did you mean 'embedder'\?\)"),
    ],
)
def test_roles_that_are_wrong(roles: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        own(**roles)
