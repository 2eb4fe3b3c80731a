"""Small networks that the tests save, each with one thing about its arguments or results that matters."""

from __future__ import annotations

from typing import List, NamedTuple  # noqa: UP035

import torch
from torch import Tensor, nn

IMAGE_SHAPE = (12, 16, 3)


class Reach(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
    """A camera picture and two joints to four motor commands, a row for each request."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 4, 3)
        self.decide = nn.Linear(6, 4)

    def forward(self, image: Tensor, state: Tensor) -> Tensor:
        """uint8[n, *IMAGE_SHAPE] and float32[n, 2] to float32[n, 4]."""
        seen = self.look(image.permute(0, 3, 1, 2).float() / 255.0).mean((2, 3))
        return self.decide(torch.cat((seen, state), 1))


class ReachNamed(nn.Module):  # type: ignore[misc]
    """Takes the observation as it is and names what it gives."""

    def __init__(self, reach: Reach) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        actions = self.reach(observation["image"], observation["state"])
        return {"actions": actions, "effort": actions.abs().sum(1)}


class Doubled(nn.Module):  # type: ignore[misc]
    """One tensor in, one out, no dimension for requests."""

    def forward(self, state: Tensor) -> Tensor:
        return state * 2


class Triple(nn.Module):  # type: ignore[misc]
    """A plain tuple: what it gives has no names."""

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state * 3, state.sum(-1)


class Nested(nn.Module):  # type: ignore[misc]
    """Arguments that are themselves dicts and lists."""

    def forward(self, cameras: dict[str, Tensor], joints: list[Tensor]) -> Tensor:
        return cameras["top"].float().mean() + cameras["wrist"].float().mean() + joints[0] - joints[1]


class Steps(nn.Module):  # type: ignore[misc]
    """A number and a constant beside the tensor."""

    def forward(self, state: Tensor, steps: int, gain: float = 1.0) -> Tensor:
        return state * steps * gain


class Concatenated(nn.Module):  # type: ignore[misc]
    """Two lengths that depend on each other."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right[::2] + right[1::2]


class Remembering(nn.Module):  # type: ignore[misc]
    """Adds up what it sees, in a buffer, through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.full((1, 2), 10.0))

    def forward(self, state: Tensor) -> Tensor:
        self.seen.view(2).add_(state)
        return self.seen.view(2).clone()


class Overwriting(nn.Module):  # type: ignore[misc]
    """Changes what it is given."""

    def forward(self, state: Tensor) -> Tensor:
        state.mul_(2)
        return state + 1


class Root(nn.Module):  # type: ignore[misc]
    """NaN for what has no root."""

    def forward(self, state: Tensor) -> Tensor:
        return state.sqrt()


class Twice(nn.Module):  # type: ignore[misc]
    """Takes a row for each request and gives two."""

    def forward(self, state: Tensor) -> Tensor:
        return torch.cat((state, state))


class ActionAndValue(NamedTuple):
    action: Tensor
    value: Tensor


class NamedTupled(nn.Module):  # type: ignore[misc]
    def forward(self, state: Tensor) -> ActionAndValue:
        return ActionAndValue(state + 1, state.sum(-1))


class Resettable(nn.Module):  # type: ignore[misc]
    """Counts its calls in Python, as only TorchScript can save it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, state: Tensor, gain: float = 2.0) -> Tensor:
        self.calls += 1
        return state * gain + self.calls

    @torch.jit.export  # type: ignore[untyped-decorator]
    def reset(self) -> None:
        self.calls = 0


def seeded(network: type[nn.Module], *arguments: object) -> nn.Module:
    """A network with the same weights in every run."""
    torch.manual_seed(7)
    return network(*arguments).eval()


class Accumulating(nn.Module):  # type: ignore[misc]
    """Adds up what it was given, in the memory of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2))

    def forward(self, state: Tensor) -> Tensor:
        self.total[:1].add_(state[:1])
        return self.total.clone()

    @torch.jit.export  # type: ignore[untyped-decorator]
    def reset_states(self) -> None:
        self.total.zero_()


class Listing(nn.Module):  # type: ignore[misc]
    """Keeps a list, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Listed()

    def forward(self, state: Tensor) -> Tensor:
        return self.inner(state)


class Listed(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.jit.Attribute([], List[float])  # noqa: UP006  as TorchScript wants it

    def forward(self, state: Tensor) -> Tensor:
        if state.sum() > 0:
            self.seen.append(1.0)
        return state + len(self.seen)


class Counted(nn.Module):  # type: ignore[misc]
    """Batch statistics that are kept although the module is not in training mode: no operator in its graph says so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("var", torch.ones(2))

    def forward(self, state: Tensor) -> Tensor:
        rows = torch.stack([state, state + 1])
        return nn.functional.batch_norm(rows, self.mean, self.var, training=True)[0]


class Drawn(nn.Module):  # type: ignore[misc]
    """Adds noise."""

    def forward(self, state: Tensor) -> Tensor:
        return state + torch.rand_like(state)


class Normalised(nn.Module):  # type: ignore[misc]
    """Counts its batches in training mode, and changes copies of what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.ones(2))

    def forward(self, state: Tensor) -> Tensor:
        mask = self.mask.to(torch.float64)
        mask.mul_(2.0)
        moved = self.norm(state[None])[0]
        moved += 1
        return moved * mask


class Failing(nn.Module):  # type: ignore[misc]
    """Refuses short observations, and multiplies the others by what does not fit."""

    def forward(self, state: Tensor) -> Tensor:
        if state.numel() < 2:
            raise ValueError("Input audio chunk is too short")
        return state @ torch.zeros(7)
