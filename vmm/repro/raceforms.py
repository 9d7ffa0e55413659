"""Races as C text: the tables and functions that the parts ``c/race*.c`` work with."""

from collections.abc import Callable, Iterable, Iterator

from vmm.model.races.calls import BARE, NO_MEMORY, MaybeTranslation, view_of
from vmm.model.races.clocks import words_of
from vmm.repro.account import Account
from vmm.repro.answers import InexpressibleError
from vmm.repro.cnames import error, unsigned
from vmm.repro.hostchanges import change_call, follow
from vmm.repro.races import RaceTables, Row, Table
from vmm.scenario.hostpages import HostPages, PageKey
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    SMM,
    ChangeHostMemory,
    ClearDirtyLog,
    Execute,
    GetDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostAction,
    HostWrite,
    PreFaultMemory,
    ResetDirtyRings,
    SetMemoryAttributes,
    Touch,
    access_end,
    pages_of,
)

_MOST_GUESTS = 8
_BITS = 64
_REACH = {"nothing": "NOTHING", "reading": "READING", "everything": "EVERYTHING"}

CallOf = Callable[[HostAction], str]
"""Returns the C expression of a call to KVM: 0 or an errno."""


def race(
    account: Account, host: HostPages, tables: RaceTables, number: int, call_of: CallOf
) -> list[str]:
    """Return the statements of a race; its tables are added to the account's declarations.

    Raises InexpressibleError.
    """
    form = _Form(account, host, tables, f"race_{number}", call_of)
    account.functions.append(form.text())
    changes = [
        op
        for thread in tables.race.hosts
        for op in thread.operations
        if isinstance(op, ChangeHostMemory)
    ]
    return [
        *_outside(account, tables),
        *form.private_memory(),
        f"race(&race_{number});",
        *follow(account, host, changes),
    ]


def _outside(account: Account, tables: RaceTables) -> Iterator[str]:
    """Yield the statements that take vCPUs out of SMM: each begins a race outside of it."""
    for vcpu in range(len(tables.race.guests)):
        if account.as_ids.get(vcpu, 0):
            yield f"set_smm({vcpu}, false);"
        account.as_ids[vcpu] = 0


class _Form:
    def __init__(
        self,
        account: Account,
        host: HostPages,
        tables: RaceTables,
        name: str,
        call_of: CallOf,
    ) -> None:
        self._account = account
        self._host = host
        self._tables = tables
        self._race = tables.race
        self._name = name
        self._call_of = call_of
        self._sizes: dict[int, int] = {}
        account.use("race", "threads")
        if tables.has_ring:
            account.use("racering")
        self._private = {each.name: f"&{name}_private_{n}" for n, each in enumerate(tables.private)}
        if tables.converts:
            account.use("raceprivate")
        if len(self._race.guests) > _MOST_GUESTS:
            raise InexpressibleError(f"a race of more than {_MOST_GUESTS} vCPUs")
        if access_end(self._race) > REAL_MODE_END:
            raise InexpressibleError("a race beyond 4 GiB")

    def text(self) -> str:
        """Return all declarations, in the order in which C needs them."""
        tables, name = self._tables, self._name
        parts = [
            f'static struct mapping {self._private[each.name][1:]} = {{.name = "{each.name}", '
            f".pages = {each.pages}}};\n"
            for each in tables.private
        ]
        parts += [self._host_thread(number) for number in range(len(self._race.hosts))]
        parts += [_program(f"{name}_guest_{n}", tables, g) for n, g in enumerate(self._race.guests)]
        if any(isinstance(op, PreFaultMemory) for g in self._race.guests for op in g.program):
            self._account.use("raceprefault")
        if any(view[0] == SMM for view in tables.views):
            self._account.use("racesmm")
        hosts = [self._host_row(number) for number in range(len(self._race.hosts))]
        parts.append(_array(f"static const struct race_host {name}_hosts", hosts))
        guests = [
            f"{{{name}_guest_{number}, {len(guest.program)}, {guest.windows}, {guest.migrates}}}"
            for number, guest in enumerate(self._race.guests)
        ]
        parts.append(_array(f"static const struct race_guest {name}_guests", guests))
        parts += self._logs()
        parts.append(_array(f"static const int {name}_view_owners", map(str, tables.view_owners())))
        parts.append(_array(f"static const int {name}_page_owners", map(str, tables.page_owners())))
        mappings = [self._account.names.variable(m.name) for m in self._account.names.mappings[:-1]]
        parts.append(_array(f"static struct mapping *const {name}_mappings", mappings))
        pages = list(map(self._page, tables.pages))
        parts.append(_array(f"static const struct race_page {name}_pages", pages))
        counts = (
            len(hosts),
            len(guests),
            len(tables.logs),
            len(tables.views),
            len(pages),
            len(mappings),
        )
        parts += self._clocks()
        parts.append(
            f"static const struct race {name} = {{\n\t{name}_hosts, {name}_guests, {name}_logs, "
            f"{name}_view_owners, {name}_page_owners,\n\t{name}_mappings, {name}_pages, "
            f"{', '.join(map(str, counts))}, {_bool(tables.reads_make_dirty)},"
            f"{self._clock_fields()}\n}};\n\n"
        )
        return "".join(parts)

    def private_memory(self) -> Iterator[str]:
        """Yield the statements that say what private memory holds before the race."""
        for each in self._tables.private:
            self._account.use("raceprivatebegins")
            yield f"begin_private({self._private[each.name]});"
            for offset, value in each.words:
                self._account.use("raceprivateholds")
                yield f"private_holds({self._private[each.name]}, {offset:#x}, {value:#x});"

    def _memory(self, name: str) -> str:
        """Return the variable of a mapping, or of private memory."""
        return self._private.get(name) or self._account.names.variable(name)

    def _clocks(self) -> Iterator[str]:
        """Yield the tables of KVM's clocks, and of the words of host memory that KVM may write."""
        tables, name = self._tables, self._name
        if not tables.clock_writes:
            return
        self._account.use("raceclock")
        clocks = (f"{{{each.vcpu}, {each.view}, {_bool(each.is_sure)}}}" for each in tables.clocks)
        yield _array(f"static const struct race_clock {name}_clocks", clocks)
        words = sorted(words_of(tables.clock_writes))
        unknown = (f"{{{self._account.names.variable(m)}, {offset:#x}}}" for m, offset in words)
        yield _array(f"static const struct race_word {name}_unknown_words", unknown)

    def _clock_fields(self) -> str:
        tables, name = self._tables, self._name
        if not tables.clock_writes:
            return ""
        words = len(words_of(tables.clock_writes))
        return f"\n\t{name}_clocks, {name}_unknown_words, {len(tables.clocks)}, {words},"

    def _host_thread(self, number: int) -> str:
        name, table = f"{self._name}_host_{number}", self._tables.threads[number]
        thread = self._race.hosts[number]
        functions, operations = [], []
        for index, op in enumerate(thread.operations):
            function, row = self._operation(f"{name}_{index}", op, table)
            functions.append(function)
            operations.append(row)
        calls = [_call_row(row) for row in table.rows]
        places = [self._place(each) for row in table.rows for each in row.places]
        between = [each for row in table.rows for each in row.between]
        pages = self._tables.pages
        reach = [_REACH[row.reach[page]] for row in table.rows for page in pages]
        loss = [_loss(row, page) for row in table.rows for page in pages]
        shows = ""
        if self._tables.shows_anew:
            self._account.use("raceshows")
            stores = [self._page(row.shows.get(page, page)) for row in table.rows for page in pages]
            shows = _array(f"static const struct race_page {name}_shows", stores)
        return "".join(
            (
                *functions,
                _array(f"static const struct race_operation {name}", operations),
                _array(f"static const struct race_call {name}_calls", calls),
                _array(f"static const struct place {name}_places", places),
                _array(f"static const unsigned char {name}_between", between),
                _array(f"static const unsigned char {name}_reach", reach),
                _array(f"static const unsigned char {name}_loss", loss),
                shows,
            )
        )

    def _host_row(self, number: int) -> str:
        name, table = f"{self._name}_host_{number}", self._tables.threads[number]
        thread = self._race.hosts[number]
        shows = f", {name}_shows" if self._tables.shows_anew else ""
        counts = (
            len(thread.operations),
            thread.rounds,
            thread.pause,
            len(table.rows),
            table.again,
        )
        return (
            f"{{{name}, {', '.join(map(str, counts))}, {name}_calls, {name}_places, "
            f"{name}_between, {name}_reach, {name}_loss{shows}}}"
        )

    def _operation(self, name: str, op: HostAction, table: Table) -> tuple[str, str]:
        """Return the function of an operation, if it has one, and its row."""
        names = self._account.names
        match op:
            case HostWrite():
                place = (
                    f".mapping = {names.variable(op.place.mapping)}, .offset = {op.place.offset:#x}"
                )
                return "", f"{{.action = HOST_WRITES, {place}, .value = {unsigned(op.value)}}}"
            case GetDirtyLog():
                self._account.use("racelog")
                self._account.name_slot(op.slot)
                pages = self._pages_of(op.slot)
                clears = _bool(not self._tables.manual)
                where = f".slot = {unsigned(op.slot)}, .pages = {pages}, .clears = {clears}"
                return "", f"{{.action = READS_LOG, {where}}}"
            case ClearDirtyLog():
                self._account.use("raceclear", "racelog")
                self._account.name_slot(op.slot)
                bits = _bits(op)
                fields = (
                    f".slot = {unsigned(op.slot)}, .pages = {op.num_pages}, .first = "
                    f"{op.first_page}, .bits = {name}_bits"
                )
                array = _array(f"static const uint64_t {name}_bits", map(_word, bits))
                return array, f"{{.action = CLEARS_LOG, {fields}}}"
            case HarvestDirtyRing():
                return "", f"{{.action = HARVESTS, .slot = {op.vcpu}}}"
            case ResetDirtyRings():
                return "", "{.action = RESETS}"
            case ChangeHostMemory():
                call = change_call(self._account, self._host, op)
                body = f"\t{call}\n\treturn SUCCESS;\n"
            case SetMemoryAttributes():
                body = f"\treturn {self._call_of(op)};\n"
                gfns = f".first = {op.address // PAGE_SIZE_BYTES:#x}, .pages = {pages_of(op.size)}"
                row = f"{{.action = CONVERTS, .call = {name}, {gfns}}}"
                return f"static int {name}(void)\n{{\n{body}}}\n\n", row
            case _:
                body = f"\treturn {self._call_of(op)};\n"
        return f"static int {name}(void)\n{{\n{body}}}\n\n", f"{{.call = {name}}}"

    def _pages_of(self, slot: int) -> int:
        """Return one page more than the slot ever has: no log may name the last one."""
        if not self._sizes:
            self._sizes = dict(self._tables.slot_pages)
        return self._sizes.get(slot, 0) + 1

    def _page(self, key: PageKey) -> str:
        return f"{{{self._memory(key[0])}, {key[1]}}}"

    def _place(self, place: MaybeTranslation) -> str:
        if place is None:
            return "{0}"
        if place in NO_MEMORY:
            return "{.slot = NO_SLOT}" if place == BARE else "{.slot = NO_PRIVATE}"
        key = place.mapping, place.page
        tracked = self._tables.pages.index(key) if key in self._tables.pages else -1
        return (
            f"{{{self._memory(place.mapping)}, {place.page}, {place.slot}, "
            f"{place.slot_page}, {_bool(place.readonly)}, {tracked}}}"
        )

    def _logs(self) -> Iterator[str]:
        rows = []
        for number, (slot, tracked, pages) in enumerate(self._tables.logs):
            name = f"{self._name}_log_{number}"
            yield _array(
                f"static const struct race_log_page {name}",
                (f"{{{page}, {_bool(surely)}}}" for page, surely in pages),
            )
            rows.append(f"{{{slot}, {_bool(tracked)}, {len(pages)}, {name}}}")
        yield _array(f"static const struct race_log {self._name}_logs", rows)


def _program(name: str, tables: RaceTables, guest: GuestThread) -> str:
    rows = []
    for step in guest.program:
        view = tables.views.index(view_of(step))
        match step:
            case Touch():
                kind = "WRITES" if step.access == "write" else "READS"
                value = unsigned(step.value) if step.access == "write" else "0"
            case Execute():
                kind, value = "EXECUTES", "0"
            case PreFaultMemory():
                kind, value = "PRE_FAULTS", "0"
        inside = _bool(view_of(step)[0] == SMM)
        rows.append(f"{{{kind}, {unsigned(step.gpa)}, {value}, {view}, {inside}}}")
    return _array(f"static const struct race_step {name}", rows)


def _call_row(row: Row) -> str:
    expected = row.answers[0]
    other = row.answers[1] if len(row.answers) > 1 else expected
    logged = row.logged
    return f"{{{error(expected)}, {error(other)}, {logged.event}, {logged.slot}, {logged.pages}}}"


def _bits(op: ClearDirtyLog) -> list[int]:
    words = [0] * (op.num_pages // _BITS + 2)
    within = range(op.first_page, op.first_page + op.num_pages)
    for page in within if op.pages == "all" else op.pages:
        at = page - op.first_page
        if 0 <= at < len(words) * _BITS:
            words[at // _BITS] |= 1 << at % _BITS
    return words


def _word(value: int) -> str:
    return f"{value:#x}ull"


def _loss(row: Row, page: PageKey) -> str:
    if page in row.losing:
        return "PASSES_FRESH" if row.is_fresh else "LOSES_WRITES"
    return "EMPTIES" if page in row.cleared else "KEEPS"


def _bool(value: bool) -> str:
    return "true" if value else "false"


_LINE = 90


def _array(declaration: str, items: Iterable[str]) -> str:
    """Return the definition of an array, with a dummy element if it is empty, as C requires one."""
    lines: list[str] = []
    for item in items or ():
        if lines and len(lines[-1]) + len(item) + 2 < _LINE:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{item},")
    if not lines:
        is_structure = "struct" in declaration and "*const" not in declaration
        lines.append("{0}," if is_structure else "0,")
    return f"{declaration}[] = {{\n" + "".join(f"\t{line}\n" for line in lines) + "};\n\n"
