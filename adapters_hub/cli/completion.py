"""The command that prints a shell's completion script, made from the parser of all commands."""

import argparse
import shlex
from collections.abc import Iterator

from adapters_hub.cli.base import DeclareCommand

SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "adapters-hub"

_HOW = """\
bash:  eval "$(adapters-hub completion bash)"      in ~/.bashrc
zsh:   eval "$(adapters-hub completion zsh)"       in ~/.zshrc, after compinit
fish:  adapters-hub completion fish > ~/.config/fish/completions/adapters-hub.fish"""


def declare(command: DeclareCommand) -> None:
    """The command of this group and its arguments."""
    sub = command(
        "completion",
        _completion,
        "print a script that lets a shell complete these commands",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("shell", choices=SHELLS)
    sub.epilog = _HOW


def _completion(options: argparse.Namespace) -> int:
    print(script(options.shell, options.whole_parser()))
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """What completes a parser's commands, flags and choices in a shell."""
    return _fish(parser) if shell == "fish" else _bash(parser, shell)


def _commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command as its words, the program itself as none, each with its parser."""
    yield path, parser
    for name, sub in _below(parser).items():
        yield from _commands(sub, (*path, name))


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _choices(action: argparse.Action) -> list[str]:
    return [str(choice) for choice in action.choices or ()]


def _bash(parser: argparse.ArgumentParser, shell: str) -> str:
    """Bash's script, which zsh runs too: words by the command that was typed so far."""
    words, values = [], []
    for path, sub in _commands(parser):
        offered = [*_below(sub)]
        for action in sub._actions:
            offered += action.option_strings
            if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
                offered += _choices(action)
            for flag in action.option_strings if _choices(action) else ():
                values.append(
                    f'"{" ".join(path)} {flag}") list={shlex.quote(" ".join(_choices(action)))};;'
                )
        words.append(f'"{" ".join(path)}") list={shlex.quote(" ".join(offered))};;')
    names = "|".join(f'"{" ".join(path)}"' for path, _ in _commands(parser) if path)
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{start}_adapters_hub() {{
  local here="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local path="" word list=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "${{path:+$path }}$word" in {names}) path="${{path:+$path }}$word";; esac
  done
  case "$path $before" in
    {_lines(values)}
    *) case "$path" in
    {_lines(words)}
    esac;;
  esac
  COMPREPLY=($(compgen -W "$list" -- "$here"))
}}
complete -o default -F _adapters_hub {_PROGRAM}"""


def _fish(parser: argparse.ArgumentParser) -> str:
    """Fish's script: a line for each command and flag, with what its help says."""
    lines = []
    for path, sub in _commands(parser):
        seen = [f"__fish_seen_subcommand_from {word}" for word in path]
        names = " ".join(_below(sub))
        if names:
            seen.append(f"not __fish_seen_subcommand_from {names}")
        begin = f"complete -c {_PROGRAM}"
        if seen:
            begin += f" -n {shlex.quote('; and '.join(seen))}"
        lines += [f"{begin} -a {name}" for name in _below(sub)]
        for action in sub._actions:
            flags = [f"-l {flag[2:]}" for flag in action.option_strings if flag.startswith("--")]
            flags += [f"-s {flag[1:]}" for flag in action.option_strings if len(flag) == 2]
            if not flags:
                continue
            if chosen := _choices(action):
                flags.append(f"-xa {shlex.quote(' '.join(chosen))}")
            elif action.nargs != 0:
                flags.append("-r")
            help = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
            said = help.replace("%%", "%").partition("\n")[0][:80]
            lines.append(f"{begin} {' '.join(flags)} -d {shlex.quote(said)}")
    return "\n".join(lines)


def _lines(cases: list[str]) -> str:
    return "\n    ".join(cases)
