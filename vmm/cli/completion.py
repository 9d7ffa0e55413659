"""``vmm completion``: shell completion of commands, options, scenarios, tags and files."""

import click
from click.shell_completion import get_completion_class

from vmm.cli.command import Command
from vmm.cli.output.formats import FORMATS
from vmm.cli.output.printing import put

SHELLS = ("bash", "zsh", "fish")

_FORMAT = f"({'|'.join(FORMATS)}):"
"""What stands before a file's name in FORMAT:FILE."""

_CHANGES = {
    # Readline parts words at : and =, and completes what follows the last one.
    "bash": (
        "    response=$(",
        """\
    local word joined=("$1")
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if [[ $word == [:=]* || ${joined[-1]} == *[:=] ]]; then
            joined[-1]+=$word
        else
            joined+=("$word")
        fi
    done
    local COMP_WORDS=("${joined[@]}") COMP_CWORD=$((${#joined[@]} - 1))

    response=$(""",
    ),
    "zsh": ("_path_files -f", f"compset -P '--*='; compset -P '{_FORMAT}'; _path_files -f"),
    "fish": (
        "__fish_complete_path $metadata[2];",
        f"""set -l option (string match --regex '^--[a-z-]+=' -- (commandline -t))[1];
            set -l format (string match --regex '^{_FORMAT}' -- $metadata[2])[1];
            for file in (__fish_complete_path (string replace "$format" "" -- $metadata[2]));
                echo "$option$format$file";
            end;""",
    ),
}
"""What of Click's script for a shell is replaced by what."""


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
    script = found(ctx.find_root().command, {}, "vmm", "_VMM_COMPLETE").source()
    # Commas belong to what an option does: of Click's line for fish only the first one parts it.
    script = script.replace('string split ","', 'string split --max 1 ","')
    put(f"{script.replace(*_CHANGES[shell])}\n")
