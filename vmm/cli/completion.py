"""``vmm completion``: shell completion of commands, options, scenarios and tags."""

import click
from click.shell_completion import get_completion_class

from vmm.cli.command import Command
from vmm.cli.output.printing import put

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script for commands and scenarios.

    bash: eval "$(vmm completion bash)" in ~/.bashrc; zsh likewise in ~/.zshrc;
    fish: vmm completion fish >~/.config/fish/completions/vmm.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    script = found(ctx.find_root().command, {}, "vmm", "_VMM_COMPLETE")
    # Commas belong to what an option does: of Click's line for fish only the first one parts it.
    put(f"{script.source()}\n".replace('string split ","', 'string split --max 1 ","'))
