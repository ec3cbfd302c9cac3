"""A `Source` whose samples come from servers: the trained adapters are published to them per version."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import PromptTooLongError, RolloutServerError
from cahl_core.policy.engine import Completion
from cahl_core.policy.team import Team
from cahl_core.roles import Role
from cahl_core.rollouts.client import OpenAIClient, RefusedError, UnavailableError, with_retries
from cahl_core.rollouts.fleet import Fleet
from cahl_core.rollouts.pool import Server, ServerPool, run_all
from cahl_core.rollouts.publish import Published, Publisher
from cahl_core.rollouts.wire import Ask, Reader, read_completions, request_body
from cahl_core.training.distributed import Workers


@dataclass(slots=True)
class Tally:
    """Tokens of one view's samples; ``void`` counts samples whose tokens were not certain."""

    decoded: int = 0
    prompts: int = 0
    void: int = 0


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What rollouts read of a policy."""

    tokenizer: Any


class View:
    """Samples with the weights of one version, whatever is published meanwhile.

    Has a tokenizer of its own: a fast tokenizer may not be used from two threads at once.
    """

    def __init__(self, source: Served, published: Published, stop: threading.Event) -> None:
        self.published = published
        self.tally = Tally()
        self.policy = _Tokens(copy.deepcopy(source.policy.tokenizer))
        self._source = source
        self._stop = stop
        self._lock = threading.Lock()

    def generate(
        self, prompts: Sequence[Sequence[int]], role: Role, **options: Any
    ) -> list[list[Completion]]:
        """As `Engine.generate` (but for ``openings``), from the servers.

        Raises:
            PromptTooLongError: a prompt and ``max_tokens`` do not fit ``max_context``.
            RolloutServerError: the servers are gone for too long, or refuse.
        """
        return self._generate(prompts, role, **options)

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        role: Role,
        *,
        samples: int = 1,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[str] | None = None,
        stop: Sequence[str] = (),
        on_finished: Callable[[int], None] | None = None,
        keep: bool = False,  # servers keep prefixes of their own accord
    ) -> list[list[Completion]]:
        source = self._source
        source.check_lengths(prompts, max_tokens)
        names = seeds or [str(i) for i in range(len(prompts))]
        asks = [
            Ask(prompt, samples, max_tokens, temperature, seed, stop)
            for prompt, seed in zip(prompts, names, strict=True)
        ]
        jobs = [lambda ended, ask=ask: self._sample(ask, role, ended) for ask in asks]
        results = run_all(jobs, source.pool.capacity, self._stop)
        if on_finished and prompts:
            on_finished(len(prompts))
        return results

    def _sample(self, ask: Ask, role: Role, ended: threading.Event) -> list[Completion]:
        source, name = self._source, self.published.names[role]
        job = _Job(source, self, ask, name)
        found = source.pool.run(job, ended)
        with self._lock:
            self.tally.decoded += sum(len(c.token_ids) for c in found)
            self.tally.prompts += len(ask.prompt)
            self.tally.void += sum(c.void for c in found)
        return found

    def ask(self, server: Server, ask: Ask, role: Role) -> list[Completion]:
        """The samples of one prompt from this very server, whatever it takes."""
        seconds = self._source.settings.train.rollouts.start_timeout
        job = _Job(self._source, self, ask, self.published.names[role])
        return with_retries(lambda: job(server), give_up_after=seconds)

    def read(self, answer: dict[str, Any], ask: Ask, url: str) -> list[Completion]:
        with self._lock:
            reader = self._source.reader(self.policy.tokenizer, self.published.version)
            return read_completions(answer, ask, reader, url)


class _Job:
    """One request, as often as it takes."""

    def __init__(self, source: Served, view: View, ask: Ask, name: str) -> None:
        self.source, self.view, self.ask, self.name = source, view, ask, name
        self.lost = 0

    def __call__(self, server: Server) -> list[Completion]:
        source, ask = self.source, self.ask
        source.fleet.ensure(server, self.view.published, self.name)
        ours = source.fleet.is_ours(server)
        body = request_body(ask, self.name, source.ends, ours=ours)
        try:
            answer = server.client.completions(body)
        except RefusedError as error:
            self.lost += error.status == 404
            if error.status != 404 or self.lost > 3:
                raise
            # it was restarted between two requests and has lost its adapters
            source.fleet.forget(server)
            raise UnavailableError(str(error)) from error
        return self.view.read(answer, ask, server.url)


class Served:
    """Planner and executor on rollout servers; ``publish`` gives them the current weights.

    Args:
        folder: where adapters go unless ``train.rollouts.adapters`` names another directory.
        key: of the run; separates its adapters from those of other runs there.

    Raises:
        ConfigError: the weights are no adapters.
        RolloutServerError: a server cannot be reached, or cannot be used.
    """

    def __init__(
        self, team: Team, settings: Settings, workers: Workers, folder: Path, key: str
    ) -> None:
        own = settings.train.rollouts
        self.team, self.settings, self.workers = team, settings, workers
        shared = Path(own.adapters) / key if own.adapters else folder
        there = f"{own.adapters_there.rstrip('/')}/{key}" if own.adapters_there else None
        self.publisher = Publisher(team, shared, there)
        api_key = os.environ.get(own.api_key_variable)
        clients = [
            OpenAIClient(
                url, api_key=api_key, timeout=own.timeout, connect_timeout=own.connect_timeout
            )
            for url in own.servers
        ]
        self.pool = ServerPool(
            clients, capacity=own.max_concurrent, give_up_after=own.give_up_after
        )
        self.fleet = Fleet(self.pool, settings)
        self.fleet.connect()
        if workers.is_main:
            self.fleet.sweep(self.publisher.owns)
        workers.wait()
        self.ends = _ends(team)
        self.stop = threading.Event()
        self.tallies: list[Tally] = []
        self._view: View | None = None

    @property
    def policy(self) -> Any:
        return self.team.policy

    @property
    def decoded_tokens(self) -> int:
        """Sampled tokens of the views that count (`count`)."""
        return sum(t.decoded for t in self.tallies)

    @property
    def prefilled_tokens(self) -> int:
        return sum(t.prompts for t in self.tallies)

    @property
    def version(self) -> int:
        """What was published last; -1 before."""
        return -1 if self._view is None else self._view.published.version

    def weights_changed(self) -> None:
        """Does nothing: new weights are sampled from once they are published."""

    def publish(self, version: int) -> None:
        """Makes the current weights version ``version``; every process calls this.

        Servers load it when they are first asked for it.
        """
        if version == self.version:
            return
        if self.workers.is_main:
            self.publisher.write(version)
        self.workers.wait()
        published = self.at(version)
        if published is None:
            raise RolloutServerError(
                f"version {version} of the adapters is not in {self.publisher.folder}",
                "all processes of a run need to see train.rollouts.adapters",
            )
        self._view = View(self, published, self.stop)
        self.count(self._view)

    def at(self, version: int) -> Published | None:
        """A version that is on disk."""
        return self.publisher.read(version)

    def view(self, published: Published | None = None) -> View:
        """A source of its own for one collection: of ``published``, by default of the last version."""
        assert self._view is not None
        return View(self, published or self._view.published, self.stop)

    def count(self, view: View) -> None:
        """From here on the tokens of ``view`` are among `decoded_tokens`, those so far too."""
        self.tallies.append(view.tally)

    def keep(self, versions: Collection[int], since: int) -> None:
        """Only these versions are asked for from now on; those from ``since`` on stay on disk."""
        if self.workers.is_main:
            kept = {*versions, self.version}
            self.fleet.unload(lambda _, version: version not in kept)
            self.publisher.keep(kept, since)

    def generate(
        self, prompts: Sequence[Sequence[int]], role: Role, **options: Any
    ) -> list[list[Completion]]:
        """`View.generate` with the version published last."""
        assert self._view is not None
        return self._view.generate(prompts, role, **options)

    def check_lengths(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        limit = self.settings.model.max_context
        for index, prompt in enumerate(prompts):
            if len(prompt) + max_tokens > limit:
                raise PromptTooLongError(
                    f"prompt {index} has {len(prompt)} tokens; with {max_tokens} to generate that "
                    f"exceeds model.max_context={limit}",
                    "shorten the request or the tool list, or raise model.max_context",
                )

    def reader(self, tokenizer: Any, version: int) -> Reader:
        own = self.settings.train.rollouts
        return Reader(tokenizer, self.ends, version, own.retokenise, _vocabulary(self.policy))

    def close(self, finished: bool) -> None:
        """Ends what is under way; a finished run takes its adapters off the servers and the disk.

        One that was stopped has no time for that, and the next start needs them or sweeps them.
        """
        self.stop.set()
        if finished and self.workers.is_main:
            self.fleet.unload(lambda *_: True)
            self.publisher.clear()


def _ends(team: Team) -> frozenset[int]:
    """The tokens that end a text: the model's and the tokenizer's."""
    policy = team.policy
    found = policy.causal.generation_config.eos_token_id
    ends = {found} if isinstance(found, int) else set(found or ())
    if policy.tokenizer.eos_token_id is not None:
        ends.add(policy.tokenizer.eos_token_id)
    return frozenset(int(end) for end in ends)


def _vocabulary(policy: Any) -> int:
    return int(policy.causal.config.get_text_config().vocab_size)
