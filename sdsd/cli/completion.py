"""`sdsd completion SHELL`: a script that completes commands and options, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from .parser import Command, Parser
from .status import OK

Words = Mapping[str, Mapping[str, str]]
"""Options of each command, and what each of them does in a few words."""

BASH = """# bash completion of sdsd, for ~/.bashrc: eval "$(sdsd completion bash)"
_sdsd() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words=""
  if (( COMP_CWORD == 1 )); then
    words="{commands} --help --version"
  else
    case "$command" in
{cases}
    esac
  fi
  COMPREPLY=()
  if [[ $current == -* || $COMP_CWORD -eq 1 || $command == completion ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _sdsd sdsd
"""

ZSH = """#compdef sdsd
# zsh completion of sdsd, for ~/.zshrc after compinit: eval "$(sdsd completion zsh)"
_sdsd() {{
  local -a commands options
  if (( CURRENT == 2 )); then
    commands=({commands})
    _describe command commands
    return
  fi
  case "$words[2]" in
{cases}
  esac
  if [[ $words[CURRENT] == -* || $words[2] == completion ]]; then
    _describe option options
  else
    _files
  fi
}}
compdef _sdsd sdsd
"""

FISH = """# fish completion of sdsd: sdsd completion fish > ~/.config/fish/completions/sdsd.fish
{lines}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS), help="the shell to write a script for")


def run(arguments: argparse.Namespace) -> int:
    options = {name: options_of(parser) for name, parser in arguments.parsers.items()}
    print(SCRIPTS[arguments.shell](arguments.commands, options), end="")
    return OK


def options_of(parser: Parser) -> dict[str, str]:
    """Long options of a command, and the words of `choices` of its arguments, with their help."""
    words = {}
    for action in parser._actions:
        for word in (*action.option_strings, *(() if action.option_strings else action.choices or ())):
            if word not in ("-h",):
                words[str(word)] = " ".join((action.help or "").split())
    return words


def bash(commands: Mapping[str, Command], options: Words) -> str:
    cases = "\n".join(f'      {name}) words="{" ".join(words)}" ;;' for name, words in options.items())
    return BASH.format(commands=" ".join(commands), cases=cases)


def zsh(commands: Mapping[str, Command], options: Words) -> str:
    def listed(words: Mapping[str, str]) -> str:
        return " ".join(quoted(f"{word}:{text}" if text else word) for word, text in words.items())

    cases = "\n".join(f"    {name}) options=({listed(words)}) ;;" for name, words in options.items())
    return ZSH.format(commands=listed({name: each.summary for name, each in commands.items()}), cases=cases)


def fish(commands: Mapping[str, Command], options: Words) -> str:
    lines = [
        f"complete -c sdsd -n __fish_use_subcommand -f -a {name} -d {quoted(each.summary, fish=True)}"
        for name, each in commands.items()
    ]
    for name, words in options.items():
        for word, text in words.items():
            kind = f"-l {word[2:]}" if word.startswith("--") else f"-f -a {word}"
            lines.append(
                f"complete -c sdsd -n '__fish_seen_subcommand_from {name}' {kind} -d {quoted(text, fish=True)}"
            )
    return FISH.format(lines="\n".join(lines))


def quoted(text: str, *, fish: bool = False) -> str:
    """`text` as one word of the shell, whatever stands in it."""
    return "'" + (text.replace("\\", "\\\\").replace("'", "\\'") if fish else text.replace("'", "'\\''")) + "'"


SCRIPTS: dict[str, Callable[[Mapping[str, Command], Words], str]] = {"bash": bash, "zsh": zsh, "fish": fish}

COMMAND = Command(
    "completion",
    "a script that completes commands and options in bash, zsh or fish",
    '  sdsd completion fish > ~/.config/fish/completions/sdsd.fish\n  eval "$(sdsd completion bash)"',
    add_arguments,
    run,
    loads="sdsd.cli",
)
