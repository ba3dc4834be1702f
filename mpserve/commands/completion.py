"""``mpserve completion``: prints a script that completes commands, flags and their values in bash, zsh or fish.

The script holds all words, so that no Python starts while somebody types.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module

from mpserve.cli import COMMANDS
from mpserve.config.options import SWITCH, Option, options_of
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError

SHELLS = {
    "bash": 'eval "$(mpserve completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(mpserve completion zsh)" in ~/.zshrc, after compinit',
    "fish": "mpserve completion fish > ~/.config/fish/completions/mpserve.fish",
}
"""The shells, and the line by which each takes the script."""

OWN: tuple[Option, ...] = ()

HELP = "\n".join([
    f"Usage: mpserve completion {'|'.join(SHELLS)}", "", f"{COMMANDS['completion']}. To take it:", "",
    *(f"  {shell:<6}{line}" for shell, line in SHELLS.items()),
])  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """Print the script. Raises ConfigurationError if no shell is named."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise ConfigurationError(f"completion: got {' '.join(arguments) or 'no shell'}, expected {' or '.join(SHELLS)}")
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments[0]](COMMANDS))
    return 0


def _options(commands: Iterable[str]) -> dict[str, list[Option]]:
    """The options of each command: those of the server and its own."""
    server = [option for option in options_of(Settings) if option.flag]
    takers = [name for name in commands if name not in ("completion", "version")]
    own = {name: import_module(f"mpserve.commands.{name}").OWN for name in takers}
    return {name: [*server, *its] for name, its in own.items()}


def _values(option: Option) -> tuple[str, ...]:
    return ("true", "false") if option.kind is SWITCH else option.choices


def _takes_file(option: Option) -> bool:
    return option.name.endswith(("file", "dir", "input"))


def _bash(commands: Mapping[str, str]) -> str:
    options = _options(commands)
    every = {option.name: option for its in options.values() for option in its}.values()
    values = [
        f'    {"|".join(option.spellings)}) words="{" ".join(_values(option))}" ;;'
        for option in every
        if option.kind is not SWITCH and option.choices
    ]
    files = "|".join(spelling for option in every if _takes_file(option) for spelling in option.spellings)
    flags = [f'    {name}) words="{" ".join(str(option.flag) for option in its)}" ;;' for name, its in options.items()]
    return "\n".join([
        "_mpserve() {",
        "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=",
        '  [[ $word == "=" ]] && word=',  # bash takes --flag=value for three words
        '  [[ $before == "=" ]] && before=${COMP_WORDS[COMP_CWORD-2]}',
        "  COMPREPLY=()",
        f'  [[ $COMP_CWORD == 1 ]] && {{ COMPREPLY=($(compgen -W "{" ".join(commands)}" -- "$word")); return; }}',
        '  case "$before" in',
        *values,
        f'    {files}) COMPREPLY=($(compgen -f -- "$word")); return ;;',
        "  esac",
        '  [[ $words ]] && { COMPREPLY=($(compgen -W "$words" -- "$word")); return; }',
        '  case "${COMP_WORDS[1]}" in',
        *flags,
        f'    completion) words="{" ".join(SHELLS)}" ;;',
        "  esac",
        '  if [[ $word == -* || ${COMP_WORDS[1]} == completion ]]; then',
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        '    [[ $COMPREPLY ]] || COMPREPLY=($(compgen -W "${words//_/-}" -- "$word"))',
        "    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == -* ]] && { COMPREPLY[0]+==; compopt -o nospace; }",
        "  else",
        '    COMPREPLY=($(compgen -f -- "$word"))',
        "  fi",
        "}",
        "complete -o filenames -F _mpserve mpserve",
    ])  # fmt: skip


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh(commands: Mapping[str, str]) -> str:
    def spec(option: Option) -> str:
        what = option.help.partition("; ")[0].replace("[", "(").replace("]", ")").replace(":", " ")
        values = "_files" if _takes_file(option) else f"({' '.join(_values(option))})"
        return _quoted(f"{option.flag}=[{what}]:value:{values}")

    listed = " ".join(_quoted(f"{name}:{what}") for name, what in commands.items())
    cases = [
        f"    {name}) _arguments {' '.join(map(spec, its))} '*:TARGET:_files' ;;"
        for name, its in _options(commands).items()
    ]
    return "\n".join([
        "#compdef mpserve",
        "_mpserve() {",
        f"  local -a commands=({listed})",
        "  (( CURRENT == 2 )) && { _describe command commands; return }",
        "  local command=$words[2]",
        "  (( CURRENT-- )); shift words",
        "  case $command in",
        *cases,
        f"    completion) _values shell {' '.join(SHELLS)} ;;",
        "  esac",
        "}",
        "compdef _mpserve mpserve",
    ])  # fmt: skip


def _fish(commands: Mapping[str, str]) -> str:
    lines = [
        f"complete -c mpserve -n __fish_use_subcommand -f -a {name} -d {_fish_quoted(what)}"
        for name, what in commands.items()
    ]
    after: dict[Option, list[str]] = {}
    for name, its in _options(commands).items():
        for option in its:
            after.setdefault(option, []).append(name)
    for option, names in after.items():
        values = " ".join(_values(option))
        takes = "-rF" if _takes_file(option) else "-x" + (f" -a {_fish_quoted(values)}" if values else "")
        what = _fish_quoted(option.help.partition("; ")[0])
        seen = f"-n '__fish_seen_subcommand_from {' '.join(names)}'"
        lines.append(f"complete -c mpserve {seen} -l {str(option.flag)[2:]} {takes} -d {what}")
    shells = " ".join(SHELLS)
    return "\n".join([*lines, f"complete -c mpserve -n '__fish_seen_subcommand_from completion' -f -a '{shells}'"])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
