"""Gymnasium environments of the search; importing this package registers them under ``pfray/``."""

from gymnasium import register

register(id="pfray/Layerwise-v0", entry_point="envs.layerwise:LayerwiseEnv")
register(id="pfray/Removal-v0", entry_point="envs.layer_removal:RemovalEnv")
