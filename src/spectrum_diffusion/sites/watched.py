"""The site of calibrations: the last block's feature, with the modulated input as signal."""

from __future__ import annotations

from .residual import Residual


class Watched(Residual):
    """Like the residual site, but the feature is the tokens after the last block themselves."""

    name = "watched"
    keeps = "the tokens after the last block"
    residual = ""
