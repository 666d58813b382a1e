from __future__ import annotations

from adapters import BaseAdapter


class Adapter(BaseAdapter):
    def loss_key(self, key: str) -> str:
        return key.replace("embed_s.", "embed_s.linear.").replace("embed_t.", "embed_t.linear.")
