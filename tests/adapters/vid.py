from __future__ import annotations

from adapters import BaseAdapter


class Adapter(BaseAdapter):
    def loss_key(self, key: str) -> str:
        return key.removeprefix("gaussians.0.")  # a losses file has one pair of maps

    def trajectory_key(self, key: str) -> tuple[str, str]:
        _, i, rest = key.split(".", 2)
        return f"vid.{i}", rest
