"""The processes of a trace: their open files, their memory, and the VMs that they created.

A trace may lack the calls that say which threads belong together (`strace -e trace=ioctl`). Then we
assign a thread to the process that has the VM whose descriptor it uses.
"""

from collections.abc import Iterator

import msgspec

from vmm.replay.ranges import Ranges
from vmm.replay.trace import TracedVm
from vmm.scenario.operations import MappingKind

MAX_PROCESSES = 1 << 14
MAX_CAPABILITIES = 1 << 12
MAX_FILES = 1 << 16


class File(msgspec.Struct, eq=False):
    """An open file description: a VM, a guest_memfd, a file that can be mapped, or any other.

    ``memfd`` is the name of a guest_memfd ("": it is none), ``owner`` the VM that it belongs to:
    a vCPU has one, too.
    """

    vm: TracedVm | None = None
    is_huge: bool = False
    is_foreign: bool = False
    memfd: str = ""
    owner: TracedVm | None = None


class Mapped(msgspec.Struct, frozen=True):
    """A mapped range of a process; ``offset`` is the file offset of its start."""

    kind: MappingKind
    start: int
    is_readable: bool = True
    file: File | None = None
    offset: int = 0


class Process:
    """One process: all threads that share files and memory."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.files: dict[int, File] = {}
        self.memory: Ranges[Mapped] = Ranges()
        self.capabilities: dict[int, int] = {}
        self.vms: list[TracedVm] = []
        self.slots: Ranges[bool] = Ranges()
        """The ranges where slots of its VMs have had memory so far."""

    def forked(self, leader: int, *, shares_memory: bool) -> "Process":
        """Return a child with the same files; if it does not share memory, it is foreign to VMs."""
        child = Process(leader)
        for fd, file in self.files.items():
            is_foreign = file.is_foreign or not shares_memory
            child.files[fd] = msgspec.structs.replace(file, is_foreign=is_foreign)
        return child

    def open(self, fd: int, file: File) -> None:
        """Note an open file."""
        if len(self.files) < MAX_FILES:
            self.files[fd] = file

    def closed(self, descriptors: range) -> list[File]:
        """Note that descriptors are closed; return the guest_memfds that are open no more."""
        gone = [self.files.pop(fd) for fd in sorted(self.files) if fd in descriptors]
        left = {file.memfd for file in self.files.values()}
        last = {file.memfd: file for file in gone if file.memfd}
        return [file for name, file in last.items() if name not in left]

    def learn(self, capability: int, answer: int) -> None:
        """Note an answer of KVM_CHECK_EXTENSION for the system, and so for all VMs."""
        if len(self.capabilities) < MAX_CAPABILITIES:
            self.capabilities[capability] = answer
        for vm in self.vms:
            vm.capabilities.setdefault(capability, answer)

    def replaced(self) -> None:
        """Note an execve: KVM's descriptors are closed, and the memory is new."""
        self.files = {fd: file for fd, file in self.files.items() if file.vm is None}
        self.memory, self.slots = Ranges(), Ranges()
        self.vms, self.capabilities = [], {}


class Processes:
    """All processes of a trace, by the pids of their threads."""

    def __init__(self) -> None:
        self._by_pid: dict[int, Process] = {}
        self._all: list[Process] = []
        self._beyond = Process(-1)
        """All processes beyond MAX_PROCESSES: what they do changes nothing of others."""

        self._guessed: set[int] = set()
        self._cloning: dict[int, tuple[bool, bool]] = {}
        """The clones under way, by caller: whether files and memory are shared."""

        self._born: dict[int, int] = {}
        self._callers: dict[int, int] = {}
        """The threads that acted before the clone that made them returned, and its caller."""

        self._owners: set[int] = set()
        """The threads that nothing is known of, but that they are of no forked child."""

    def of(self, pid: int) -> Process:
        """Return the process of a thread.

        An unknown thread is the child of a clone under way; without one, guess the first process.
        """
        process = self._by_pid.get(pid)
        if process is None and self._cloning:
            parent, (files, memory) = self._cloning.popitem()
            self._born[parent], self._callers[pid] = pid, parent
            process = self._add(parent, pid, files=files, memory=memory)
        if process is None:
            process = self._all[0] if self._all else self._new(pid)
            self._by_pid[pid] = process
            self._guessed.add(pid)
        return process

    def user_of(self, pid: int, fd: int) -> Process:
        """Return the process of a thread that uses a VM's descriptor.

        A thread that the trace does not introduce is taken for one of the VM's own process: a
        forked child inherits the descriptor, too, but hardly ever uses it.
        """
        process = self.of(pid)
        if pid not in self._guessed:
            return process
        having = [each for each in self._all if self._has_vm(each, fd)]
        having = [each for each in having if not each.files[fd].is_foreign] or having
        if having:
            older = [each for each in having if each.leader <= pid] or having
            # A process is older than its threads, so its pid is usually lower; of several with the
            # same pid the last one lives.
            process = self._by_pid[pid] = max(reversed(older), key=lambda each: each.leader)
        return process

    def maker_of(self, pid: int, fd: int) -> Process:
        """Return the process of a thread that creates a VM with descriptor ``fd``."""
        process = self.of(pid)
        if pid in self._guessed and pid != process.leader and self._has_vm(process, fd):
            process = self._by_pid[pid] = self._new(pid)
        self._guessed.discard(pid)
        return process

    def cloning(self, parent: int, *, files: bool, memory: bool) -> None:
        """Note that a thread begins to make another one, or a process."""
        self.of(parent)
        self._cloning[parent] = files, memory

    def not_cloned(self, parent: int) -> None:
        """Note that a thread has made no other one."""
        self._cloning.pop(parent, None)
        self._take_back(parent)

    def cloned(self, parent: int, child: int, *, files: bool, memory: bool) -> None:
        """Note a new thread (files and memory are shared) or a new process."""
        self._cloning.pop(parent, None)
        self.of(parent)
        caller = self._callers.pop(child, None)
        if caller is not None:
            del self._born[caller]
        if caller != parent:
            self._take_back(parent)
            self._add(parent, child, files=files, memory=memory)

    def _take_back(self, parent: int) -> None:
        """Take no thread for a child of ``parent`` before the clone returned: it is older."""
        child = self._born.pop(parent, None)
        if child is not None:
            del self._callers[child]
        if child in self._by_pid:
            self._by_pid[child] = self._by_pid[parent]
            self._guessed.add(child)

    def replaced(self, pid: int) -> None:
        """Note an execve; by a thread of which nothing is known, it is of another process."""
        process = self.of(pid)
        if pid in self._guessed and pid != process.leader:
            self._guessed.discard(pid)
            self._by_pid[pid] = self._new(pid)
        else:
            process.replaced()

    def exited(self, pid: int) -> None:
        """Note that a thread has ended; its pid may be reused."""
        self._by_pid.pop(pid, None)
        self._guessed.discard(pid)
        self._cloning.pop(pid, None)
        self._owners.discard(pid)

    def is_guessed(self, pid: int) -> bool:
        """Whether the trace does not show to which process a thread belongs."""
        return pid in self._guessed or pid in self._callers

    def is_foreign(self, pid: int, file: File, is_eio: bool) -> bool:
        """Whether a thread that calls a VM is of a forked child; ``is_eio`` is the answer.

        KVM answers EIO to a forked child, whatever it asks, and to no other. Where the trace does
        not show who made the thread, its first answer tells.
        """
        if not self.is_guessed(pid):
            return file.is_foreign
        if not is_eio:
            self._owners.add(pid)
        return is_eio and pid not in self._owners

    def __iter__(self) -> Iterator[Process]:
        yield from self._all

    def _add(self, parent: int, child: int, *, files: bool, memory: bool) -> Process:
        """Add a thread to its parent's process, or a process."""
        self._guessed.discard(child)
        process = self._by_pid[parent]
        if not (files and memory):
            if len(self._all) < MAX_PROCESSES:
                process = process.forked(child, shares_memory=memory)
                self._all.append(process)
            else:
                process = self._beyond
        self._by_pid[child] = process
        return process

    def _new(self, leader: int) -> Process:
        if len(self._all) >= MAX_PROCESSES:
            return self._beyond
        process = Process(leader)
        self._all.append(process)
        return process

    @staticmethod
    def _has_vm(process: Process, fd: int) -> bool:
        file = process.files.get(fd)
        return file is not None and file.vm is not None
