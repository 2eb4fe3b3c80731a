"""The two ways to serve a LeRobot policy: a chunk for each observation, or one action after another for each client."""

from __future__ import annotations

from typing import Any

from ....packages.lerobot_options import LerobotOptions
from .observations import Observations
from .pipeline import Pipeline


class _Served:
    """Common part: the example, and the facts for clients."""

    def __init__(self, pipeline: Pipeline, observations: Observations, options: LerobotOptions) -> None:
        self._pipeline = pipeline
        self._observations = observations
        self._options = options

    def example_observation(self) -> dict[str, Any]:
        return self._observations.example()

    def metadata(self) -> dict[str, Any]:
        """Return what a control loop needs: the kind of answer, the length of a chunk, names and sizes, the rate if it is known."""
        options, checkpoint = self._options, self._options.checkpoint
        facts: dict[str, Any] = {
            "type": checkpoint.type,
            "mode": options.mode,
            "cameras": [
                self._observations.shown_name(name)
                for name, feature in checkpoint.inputs.items()
                if feature.kind == "VISUAL"
            ],
            "task": options.uses_task,
        }
        for key in ("chunk_size", "n_action_steps"):
            if checkpoint.setting(key) is not None:
                facts[key] = checkpoint.setting(key)
        if options.joints:
            facts["joints"] = list(options.joints)
        rate = {} if checkpoint.rate_hz is None else {"control_rate_hz": checkpoint.rate_hz}
        return {"lerobot": facts, **rate}


class ChunkPolicy(_Served):
    """Answers {"actions": float32[steps, numbers]}; the robot keeps the queue, and clients share the policy."""

    def infer(self, observation: Any) -> dict[str, Any]:
        return {"actions": self._pipeline.chunk(self._observations.batch(observation))}

    def reset(self, client_id: int) -> None:
        self._pipeline.reset()


class ActionPolicy(_Served):
    """Answers {"action": float32[numbers]} from the queue of the client that asks; its reset begins an episode."""

    def __init__(self, pipeline: Pipeline, observations: Observations, options: LerobotOptions) -> None:
        super().__init__(pipeline, observations, options)
        self._of_clients: dict[int, Pipeline] = {}
        #: Not used by a client; the first one is ready before a robot asks.
        self._unused = [pipeline.another()]

    def infer(self, observation: Any, client_id: int) -> dict[str, Any]:
        batch = self._observations.batch(observation)
        pipeline = self._of_clients.get(client_id)
        if pipeline is None:
            pipeline = self._unused.pop() if self._unused else self._pipeline.another()
            self._of_clients[client_id] = pipeline
        return {"action": pipeline.action(batch)}

    def reset(self, client_id: int) -> None:
        pipeline = self._of_clients.get(client_id)
        if pipeline is not None:
            pipeline.reset()

    def client_left(self, client_id: int) -> None:
        pipeline = self._of_clients.pop(client_id, None)
        if pipeline is not None:
            pipeline.reset()
            self._unused.append(pipeline)
