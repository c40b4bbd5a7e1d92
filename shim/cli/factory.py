"""`hako factory`: make, look at and remove the templates from which pods start, and the pool of VMs that wait for pods.

Owns: the three words and what they print. What a template is: shim/sandbox/template.py; the pool: shim/task/pool.py.
"""

from __future__ import annotations

from shim.cli.options import Option, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.cli.options import Parsed
    from shim.config import Config
    from shim.sandbox import templatebuild

USAGE = "factory init [--vcpus N] | status [--json] | destroy"
OPTIONS_END_AT_FIRST_WORD = False
OPTIONS = [
    Option("--vcpus", "N", "init: a template for pods with so many vCPUs (default: the configured number)"),
    Option("--json", "", "status: as a JSON object"),
]
HEADER = ("TEMPLATE", "STATE", "VCPUS", "MEMORY", "CPU", "SIZE", "LAST USED")


def main(parsed: Parsed) -> int:
    """Do the one thing that was asked for."""
    words = {"init": init, "status": status, "destroy": destroy}
    if len(parsed.words) != 1 or parsed.words[0] not in words:
        raise UsageError("init, status or destroy is wanted")
    return words[parsed.words[0]](parsed)


def init(parsed: Parsed) -> int:
    """Make the template now, or say that it is there."""
    from shim import config as configuration
    from shim.cli.progress import Progress
    from shim.errors import Unsupported
    from shim.sandbox import template, templatebuild, vmspec

    config = configuration.load()
    refusal = vmspec.no_template(config)
    if refusal:
        raise Unsupported(f"VMs of this configuration are not saved: {refusal}", step="factory init")
    wanted = templatebuild.shape(config, _number(parsed.text("--vcpus", "0")))
    if template.find(wanted.identity.key) is not None:
        print(f"template {wanted.identity.key} is there")
        return _fill(config)
    with Progress() as progress:
        progress.step("making a template")
        made = templatebuild.build(config, wanted)
    assert made is not None
    print(f"template {made.key} made, {made.size() >> 20} MiB")
    return _fill(config)


def _fill(config: Config) -> int:
    """Have the pool filled, if there is to be one."""
    if config.factory.pool:
        _pools("fill")
        print(f"the pool of {config.factory.pool} is being filled")
    return 0


def _pools(order: str) -> list[dict[str, Any]]:
    """Have an order carried out; the state of each pool that there is."""
    import json

    from shim.cli import shimbinary

    told: list[dict[str, Any]] = json.loads(shimbinary.order(["-id", order, "pool"]))
    return [state for state in told if state["size"] or state["ready"] or state["reason"]]


def status(parsed: Parsed) -> int:
    """What is there, and whether the next pod would start from it."""
    from shim import config as configuration

    config = configuration.load()
    found = described(config) | {"pool": config.factory.pool, "pools": _pools("status")}
    if parsed.flag("--json"):
        import json

        print(json.dumps(found, indent=1))
    else:
        print(as_text(found) + pools_as_text(found), end="")
    return 0


def described(config: Config) -> dict[str, Any]:
    """{"wanted": key or "", "reason": why there is none, "plugged": why its share is not mounted, "templates": [{...}]}."""
    from shim.errors import HakoError
    from shim.sandbox import template, templatebuild, vmspec

    wanted, plugged, reason = "", "", vmspec.no_template(config)
    if not reason:
        try:
            shape = templatebuild.shape(config)
            if template.find(shape.identity.key) is None:
                shape = _there(shape.plugged()) or shape
            wanted, plugged = shape.identity.key, shape.unmounted if config.share.shared_fs == "virtio-fs" else ""
            reason = template.failure(wanted)
        except (HakoError, OSError) as exc:
            reason = str(exc)
    rows = [_row(item, wanted) for item in template.every()]
    return {"wanted": wanted, "reason": reason, "plugged": plugged, "templates": rows}


def _there(shape: templatebuild.Shape | None) -> templatebuild.Shape | None:
    """The shape, if its template is there."""
    from shim.sandbox import template

    return shape if shape is not None and template.find(shape.identity.key) is not None else None


def _row(item: Any, wanted: str) -> dict[str, Any]:
    from shim.sandbox import template

    about = item.about()
    state = "in use" if item.key == wanted else "stale" if template.is_stale(item) else "kept"
    return {
        "key": item.key,
        "state": state,
        "vcpus": about.get("vcpus", 0),
        "memory_mib": about.get("memory_mib", 0),
        "accelerator": about.get("accelerator", ""),
        "mounted_share": about.get("mounted_share", False),
        "bytes": item.size(),
        "made": about.get("made", 0),
        "used": int(item.used()),
    }


def as_text(found: dict[str, Any]) -> str:
    """A table, and a line about the next pod."""
    import time

    from shim.cli.table import table

    rows = []
    for item in found["templates"]:
        used = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item["used"]))
        size = f"{item['bytes'] >> 20} MiB"
        memory = f"{item['memory_mib']} MiB"
        rows.append([item["key"], item["state"], str(item["vcpus"]), memory, item["accelerator"], size, used])
    there = any(item["state"] == "in use" for item in found["templates"])
    wanted, reason = found["wanted"], found["reason"]
    if there:
        plugged = found["plugged"]
        line = f"The next pod starts from template {wanted}{f'; its share is plugged: {plugged}' if plugged else ''}."
    else:
        line = f"The next pod boots: {reason or f'there is no template {wanted} yet'}."
    return (table(HEADER, rows) if found["templates"] else "") + line + "\n"


def pools_as_text(found: dict[str, Any]) -> str:
    """A line for each pool, and one where there should be one."""
    lines = []
    for pool in found["pools"]:
        making = f", {len(pool['making'])} being made" if pool["making"] else ""
        reason = f" ({pool['reason']})" if pool["reason"] else ""
        served = f"{pool['hits']} pods got one, {pool['misses']} did not"
        lines.append(f"Pool: {len(pool['ready'])} of {pool['size']} VMs wait{making}{reason}; {served}.")
    if found["pool"] and not lines:
        lines.append(f"Pool: {found['pool']} VMs are made with the first pod, or by hako factory init.")
    return "".join(line + "\n" for line in lines)


def destroy(_parsed: Parsed) -> int:
    """Remove all templates, and the pool; pods that run have their own copies."""
    from shim.sandbox import template

    _pools("end")
    count = template.destroy()
    print("1 template removed" if count == 1 else f"{count} templates removed")
    return 0


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"--vcpus {text}: not a number")
    return int(text)
