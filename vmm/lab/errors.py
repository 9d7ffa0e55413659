"""Errors before there is a verdict; each message is one line for people."""


class LabError(Exception):
    """The machine could not be made, or did not get as far as the command: inconclusive."""


class NoKernelError(LabError):
    """The named file or folder is not a kernel that can be booted."""


class MissingError(LabError):
    """This host lacks something; the message names the command that installs it."""
