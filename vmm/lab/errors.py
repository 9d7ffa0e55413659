"""What can go wrong before there is a verdict. Each is one line for a person."""


class LabError(Exception):
    """The machine could not be made, or did not get as far as the command: inconclusive."""


class NoKernelError(LabError):
    """A file or folder that was named is no kernel that can be booted."""


class MissingError(LabError):
    """This host lacks something; the message names the command that installs it."""
