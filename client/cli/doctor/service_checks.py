"""Checks of the daemon that runs, by its status and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..host_services import HostService
from .finding import Finding, Needs, ok, problem, warning


def needs_of(settings: Mapping[str, Any]) -> Needs:
    """Return what the settings in force ask of the machine."""
    asked = {name: settings[name] for name in Needs.__dataclass_fields__ if settings.get(name) is not None}
    return Needs(**asked)


def check_service(service: HostService, status: Mapping[str, Any] | None, release: str) -> list[Finding]:
    """Judge the state of the service; `status` is None where no daemon could be asked, `release` that of this installation."""
    if status is None:
        return [_without_status(service)]
    named = f"pid {status['pid']} of uid {service.uid}"
    if status["state"] == "failed":
        state = problem("service", f"{named} has failed: {status['error']}", str(status["logs"]))
    else:
        model = status["model"]
        serves = f"serves {model['name']} {model['version']} on {model['device']}" if model else "serves no model yet"
        state = ok("service", f"{named} is {status['state']}, {serves}")
    findings = [state]
    if status["release"] != release:
        findings.append(
            warning(
                "release",
                f"the daemon runs shmserve {status['release']}, and {release} is installed",
                f"restart it when its robots may wait: sudo systemctl restart shmserved@{service.name}",
            )
        )
    engine = status["engine"]
    if engine is not None and engine["restarts"]:
        findings.append(warning("engine", f"{engine['restarts']} engines have died in this run", str(status["logs"])))
    return findings + [warning("service", str(text), str(status["logs"])) for text in status.get("problems", ())]


def _without_status(service: HostService) -> Finding:
    if service.state == "absent":
        return ok("service", f"no daemon {service.name!r} runs; the limits below are those of this shell")
    if service.state in ("running", "hidden"):
        seen = "a daemon runs and was not asked" if service.state == "running" else "a service that is not visible"
        return warning(
            "service",
            f"{seen}, in {service.directory}: {service.note}",
            f"sudo shmserve-admin --name {service.name} doctor",
        )
    return ok("service", f"{service.state}: {service.note or 'no daemon runs'}")
