"""The scripts that make a shell ask the program for completions.

Each puts the name of the shell into the environment and passes the words of the command line, the
last one as far as it is typed. The program writes a line for each possible word. If there is none,
the shell completes the names of files. What the program says on stderr does not reach the prompt.
"""

from __future__ import annotations

# COMP_WORDS are as typed, with quotes, and split at colons and equal signs: the program joins them.
_BASH = """\
_modelctl() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(_MODELCTL_COMPLETE=bash "${1/#\\~\\//$HOME/}" "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
}
complete -o default -F _modelctl modelctl
"""

# It works from ~/.zshrc, and as a file _modelctl in a folder of $fpath.
_ZSH = """\
#compdef modelctl
_modelctl() {
    local -a found
    found=(${(f)"$(_MODELCTL_COMPLETE=zsh ${~words[1]} "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)"})
    if (( $#found )); then
        _describe 'modelctl' found
    else
        compset -P '--*='
        _files
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _modelctl "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _modelctl modelctl
fi
"""

# Its place is a file that fish loads for this program: else fish adds what it makes of the manual page,
# the options of all commands together.
_FISH = """\
function __modelctl_complete
    set --local words (commandline --current-process --tokenize --cut-at-cursor)
    set --local program (string replace --regex '^~/' "$HOME/" -- $words[1])
    type --query -- $program; or return 1
    set --global __modelctl_found (_MODELCTL_COMPLETE=fish $program $words (commandline --current-token --cut-at-cursor) 2>/dev/null)
    set --query __modelctl_found[1]
end
complete --command modelctl --no-files --condition __modelctl_complete --arguments '$__modelctl_found'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
