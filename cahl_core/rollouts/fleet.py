"""What the servers hold: the right backbone, and the adapters of the versions in use.

A server is looked at when training starts and whenever it did not answer: one that was restarted gets
its adapters again before it samples, one that came back with another backbone ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import RolloutServerError
from cahl_core.rollouts.client import RefusedError, UnavailableError, with_retries
from cahl_core.rollouts.pool import START, Server, ServerPool
from cahl_core.rollouts.publish import Published

OURS = "cahl"
SEEN = (
    "the server has to see that directory (train.rollouts.adapters, adapters_there) and to have the "
    "backbone of training; "
)
LOADING_HERE = SEEN + "--adapters-dir and --backbone of `cahl serve-rollouts`"
LOADING_THERE = SEEN + (
    "vLLM: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora, --max-lora-rank of at least "
    "model.lora.rank"
)


class Fleet:
    """The servers of a pool, with what they have loaded."""

    def __init__(self, pool: ServerPool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self._versions: dict[str, int] = {}
        self._ours: set[str] = set()

    def connect(self) -> None:
        """Looks at every server for the first time.

        Raises:
            RolloutServerError: one does not answer within ``start_timeout``, or cannot be used.
        """
        seconds = self.settings.train.rollouts.start_timeout
        for server in self.pool.servers:
            try:
                with_retries(lambda s=server: self._look(s), give_up_after=seconds)  # type: ignore[misc]
            except RefusedError as error:
                raise RolloutServerError(
                    f"rollout server {server.url} is no server of the OpenAI API: {error.what}",
                    error.hint or START,
                ) from error
            except RolloutServerError as error:
                if error.__cause__ is None:
                    raise
                raise RolloutServerError(
                    f"rollout server {server.url} cannot be used: {error.what}", START
                ) from error

    def is_ours(self, server: Server) -> bool:
        """Whether it is `cahl serve-rollouts`."""
        return server.url in self._ours

    def ensure(self, server: Server, published: Published, name: str) -> None:
        """Returns when ``server`` has the adapter ``name``.

        Raises:
            UnavailableError: it does not answer. RolloutServerError: it cannot have it.
        """
        with server.lock:
            if not server.checked:
                self._look(server)
            if name in server.loaded:
                return
            try:
                server.client.load_adapter(name, published.paths[name])
            except RefusedError as error:
                if "already" not in error.message:
                    raise self._not_loaded(server, published.paths[name], error.what) from error
            except UnavailableError as error:
                if error.status == 500:  # how vLLM says that an adapter does not fit
                    raise self._not_loaded(server, published.paths[name], str(error)) from error
                raise
            server.loaded.add(name)
            self._versions[name] = published.version

    def forget(self, server: Server) -> None:
        """It does not know an adapter that it had: it is looked at again before its next job."""
        with server.lock:
            server.checked = False

    def unload(self, unused: Callable[[str, int], bool]) -> None:
        """Unloads our adapters for which ``unused(name, version)``; a server that is away is left out."""
        for server in self.pool.servers:
            if server.failures:  # it may take long to say nothing
                continue
            for name in sorted(server.loaded & self._versions.keys()):
                if unused(name, self._versions[name]):
                    with suppress(UnavailableError, RefusedError):
                        server.client.unload_adapter(name)
                    server.loaded.discard(name)

    def sweep(self, owned: Callable[[str], bool]) -> None:
        """Unloads what a run that was killed left behind: adapters whose path is ``owned``."""
        for server in self.pool.servers:
            with suppress(UnavailableError, RefusedError):
                for card in server.client.models():
                    if card.get("parent") and owned(str(card.get("root", ""))):
                        server.client.unload_adapter(str(card["id"]))
                        server.loaded.discard(str(card["id"]))

    def _look(self, server: Server) -> None:
        cards = server.client.models()
        base = self._base(server, cards)
        identity = tuple(str(base.get(k, "")) for k in ("id", "root", "fingerprint"))
        if server.identity is not None and server.identity != identity:
            raise RolloutServerError(
                f"{server.url} came back with another backbone: {' '.join(identity)} instead of "
                f"{' '.join(server.identity)}",
                "restart it with the model it had when training began",
            )
        room = base.get("max_model_len")
        if isinstance(room, int) and room < self.settings.model.max_context:
            raise RolloutServerError(
                f"{server.url} has room for {room} tokens; model.max_context is "
                f"{self.settings.model.max_context}",
                f"start it with --max-model-len {self.settings.model.max_context}",
            )
        server.identity = identity
        server.loaded = {str(c.get("id")) for c in cards if c is not base}
        server.checked = True
        if base.get("owned_by") == OURS:
            self._ours.add(server.url)
        self.pool.alive(server)

    def _base(self, server: Server, cards: Collection[dict[str, Any]]) -> dict[str, Any]:
        wanted = self.settings.train.rollouts.model
        bases = [c for c in cards if not c.get("parent")]
        found = next((c for c in bases if wanted in (None, c.get("id"))), None)
        if wanted and not cards:  # some servers list nothing before it was used
            found = {"id": wanted}
        if found is None:
            names = ", ".join(str(c.get("id")) for c in bases) or "nothing"
            raise RolloutServerError(
                f"{server.url} does not serve {wanted or 'any model'}; it serves {names}",
                "set train.rollouts.model to the backbone's name there",
            )
        return found

    def _not_loaded(self, server: Server, path: str, said: str) -> RolloutServerError:
        return RolloutServerError(
            f"{server.url} does not load the adapter in {path}: {said}",
            LOADING_HERE if self.is_ours(server) else LOADING_THERE,
        )
