"""What is known about a host, as text."""

from collections.abc import Iterator

from rich.text import Text

from vmm.host.hostinfo import HostInfo
from vmm.scenario.features import NEEDS, Features
from vmm.scenario.operations import PAGE_SIZE_BYTES

_COLUMN = 14


def host_report(info: HostInfo, features: Features | None) -> list[Text]:
    """Return what a host is and can do; ``features`` is None if its kernel was not probed."""
    lines = [*_verdict(info), Text("")]
    virtual = " (a virtual machine)" if info.hypervisor else ""
    lines.append(_line("kernel", f"Linux {info.kernel}, {info.machine}"))
    lines.append(_line("CPU", f"{info.cpu}{virtual}"))
    lines.append(_line("vendor module", info.vendor or "none is loaded"))
    lines.append(_line("TDP", info.tdp))
    if features is not None:
        lines += _features(features)
    for module, parameters in info.modules.items():
        lines.append(Text(f"\n{module} parameters", style="bold"))
        lines += _columns(parameters)
    if info.capabilities:
        lines.append(Text("\ncapabilities (KVM_CHECK_EXTENSION)", style="bold"))
        lines += _columns(
            {f"KVM_CAP_{name}": str(value) for name, value in info.capabilities.items()}
        )
    return lines


def _verdict(info: HostInfo) -> Iterator[Text]:
    if not info.obstacle:
        yield Text("This host can run memslot scenarios.", style="bold green")
        return
    yield Text("This host cannot run memslot scenarios.", style="bold red")
    yield _line("why", info.obstacle)
    yield _line("what to do", info.remedy)


def _features(features: Features) -> Iterator[Text]:
    yield _line("slots", f"{features.nr_memslots} in {features.address_spaces} address space(s)")
    last_page = features.last_gfn * PAGE_SIZE_BYTES
    yield _line("last gfn", f"{features.last_gfn:#x} (gpa {last_page:#x})")
    lacking = [name for need, name in NEEDS.items() if features.missing((need,))]
    if lacking:
        yield _line("lacks", "these, and scenarios that need one of them are skipped:")
    for name in lacking:
        yield _line("", name)


def _line(label: str, text: str) -> Text:
    return Text(f"  {label:<{_COLUMN}}", style="dim").append(text, style="not dim")


def _columns(values: dict[str, str]) -> Iterator[Text]:
    width = max(map(len, values), default=0)
    for name, value in values.items():
        style = "dim" if value == "0" else ""
        yield Text(f"  {name:<{width}}  {value}", style=style)
