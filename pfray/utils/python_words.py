"""Messages in the words of Python: arguments of ``pfray.compress`` in place of options, an experiment's keys and a
task's fields."""

from __future__ import annotations

import re

PHRASES = {
    "--resume": "resume=True",
    "--force": "force=True",
    "python -m pfray.inspect": "pfray.inspect(model, train)",
    "the same file and overrides": "the same arguments",
    "a score of the task's own": "metric=, a function of (outputs, targets)",
    "a loss of the task's own": "loss=, a function of (outputs, targets)",
    "give the Task a soft_loss": "give a soft_loss",
}
SECTIONS = "target|learner|search|teacher|finetune|distill|export|resources|distributed"
# A value as an experiment file has it: a list, or what ends at a space or a punctuation mark.
_VALUE = r"(\[[^\]]*\]|[^\s,;()'\"={}]+?)(?=[.,;]?(?:\s|$)|[,;()])"
_WORDS = {"true": "True", "false": "False", "null": "None"}


def in_python_words(text: str) -> str:
    """The message with ``resume=True`` for ``--resume``, ``export={"tflite": False}`` for ``export.tflite=false``."""
    for words, python in PHRASES.items():
        text = text.replace(words, python)
    text = re.sub(r"--warm-start (.+?)(?= to learn|$)", r'search={"warm_start": "\1"}', text)
    text = re.sub(r"--address (\S+)", r'resources={"address": "\1"}', text)
    text = re.sub(r"\btarget: \{", "target={", text)
    text = re.sub(r"\bscore=(?=\S)", "metric=", text)  # a task's field
    text = re.sub(r"\bnum_outputs=(\d+)", r"a model with \1 outputs", text)
    text = re.sub(rf"\b({SECTIONS})\.([a-z_]+)={_VALUE}", _section, text)
    text = re.sub(rf"\b(search)=(?=[a-z]){_VALUE}", lambda found: f"search={_value(found[2])}", text)
    text = re.sub(rf"(Remedy: |or )learner: {_VALUE}", lambda found: f"{found[1]}learner={_value(found[2])}", text)
    # Of a key in the wrong place; elsewhere a quoted path is the key of a searched setting.
    lines = [
        re.sub(rf"'({SECTIONS})\.(\w+)'", r'\1={"\2": ...}', line) if ": unknown key" in line else line
        for line in text.split("\n")
    ]
    return "\n".join(lines)


def _section(found: re.Match[str]) -> str:
    # A learner is given by its name and settings together.
    name = '"name": ..., ' if found[1] == "learner" else ""
    return f'{found[1]}={{{name}"{found[2]}": {_value(found[3])}}}'


def _value(text: str) -> str:
    """``text`` of YAML as Python has it."""
    if text.startswith("["):
        return f"[{', '.join(_value(part.strip()) for part in text[1:-1].split(','))}]"
    return text if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) else _WORDS.get(text, f'"{text}"')
