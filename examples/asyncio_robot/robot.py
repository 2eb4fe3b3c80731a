"""One event loop: a 50 Hz control task that awaits the policy, and a server that people ask over TCP meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import numpy as np

from shmserve.client import AsyncShmClient, RequestTimeout, ServiceUnavailable, SlotsExhausted

PERIOD_S = 0.02


class Cart:
    """The robot: a place on a rail, a speed, a goal."""

    def __init__(self) -> None:
        self.place = self.speed = self.goal = 0.0
        self.steps = self.held = 0

    def push(self, force: float) -> None:
        self.speed += force * PERIOD_S
        self.place += self.speed * PERIOD_S


async def control(client: AsyncShmClient, cart: Cart) -> None:
    """A force every 20 ms, and none where no answer comes within two periods."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        observation = {key: np.array(getattr(cart, key), np.float32) for key in ("goal", "place", "speed")}
        try:
            answer = await client.infer(observation, timeout=2 * PERIOD_S)
            force = float(answer["force"])
        except (RequestTimeout, SlotsExhausted, ServiceUnavailable):  # late, or the daemon is away: go on
            force = 0.0
            cart.held += 1
        cart.push(force)
        cart.steps += 1
        due = max(due + PERIOD_S, loop.time())
        await asyncio.sleep(due - loop.time())


async def answer_people(cart: Cart, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line with a number is a new goal; every line is answered with where the cart is."""
    with contextlib.closing(writer):
        while line := (await reader.readline()).decode().strip():
            with contextlib.suppress(ValueError):
                cart.goal = float(line)
            writer.write(f"{cart.place:.3f} of {cart.goal:g}, step {cart.steps}, held {cart.held}\n".encode())
            await writer.drain()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="default")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    cart = Cart()
    async with AsyncShmClient(arguments.name, max_retries=0) as client:
        server = await asyncio.start_server(
            lambda reader, writer: answer_people(cart, reader, writer), "127.0.0.1", arguments.port
        )
        print(f"ask me at port {server.sockets[0].getsockname()[1]}", flush=True)
        async with server:
            await control(client, cart)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
