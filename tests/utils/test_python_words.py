"""Remedies in the words of Python."""

from __future__ import annotations

import pytest

from pfray.utils.python_words import in_python_words

WORDS = {
    "Remedy: --resume to continue it, --force to replace it, or name=...":
        "Remedy: resume=True to continue it, force=True to replace it, or name=...",
    "Remedy: resume with the same file and overrides, use --force to replace it, or name=...":
        "Remedy: resume with the same arguments, use force=True to replace it, or name=...",
    "or name=... with --warm-start my runs/x to learn from its trials":
        'or name=... with search={"warm_start": "my runs/x"} to learn from its trials',
    "Remedy: 'ray stop', or --address local for a Ray of the run's own":
        "Remedy: 'ray stop', or resources={\"address\": \"local\"} for a Ray of the run's own",
    "Remedy: export.tflite=false to do without it": 'Remedy: export={"tflite": False} to do without it',
    "Remedy: target.macs=0.5x, or export.tflite=true":
        'Remedy: target={"macs": "0.5x"}, or export={"tflite": True}',
    "Remedy: finetune.epochs=10. And so on": 'Remedy: finetune={"epochs": 10}. And so on',
    "Remedy: learner.skip=[conv1, head], or learner.activation_bits=null":
        'Remedy: learner={"name": ..., "skip": ["conv1", "head"]}, or learner={"name": ..., "activation_bits": None}',
    "Remedy: search.finetune_steps=60 or more": 'Remedy: search={"finetune_steps": 60} or more',
    "python -m pfray.inspect lists all": "pfray.inspect(model, train) lists all",
    "a: unknown key. Did you mean 'search.trials'?": 'a: unknown key. Did you mean search={"trials": ...}?',
    "Remedy: target: {macs: 0.5x}": "Remedy: target={macs: 0.5x}",
    "Remedy: search=uniform, or a searcher": 'Remedy: search="uniform", or a searcher',
    "Remedy: learner: [channel_pruned, litert_quant]": 'Remedy: learner=["channel_pruned", "litert_quant"]',
    "own loss alone, or learner: channel_pruned": 'own loss alone, or learner="channel_pruned"',
    "score=mine (a.py, line 3) fails": "metric=mine (a.py, line 3) fails",
    "or num_outputs=10": "or a model with 10 outputs",
    "Remedy: class numbers, or a score of the task's own":
        "Remedy: class numbers, or metric=, a function of (outputs, targets)",
}  # fmt: skip


@pytest.mark.parametrize("text", WORDS)
def test_options_keys_and_fields_become_arguments(text):
    assert in_python_words(text) == WORDS[text]


@pytest.mark.parametrize("text", [
    "target.macs: '0.5y' is no amount", "cannot be searched. Did you mean 'finetune.lr'?",
    "learner: chanel_pruned is unknown", "more finetune.epochs or search.trials",
    "Remedy: storage=... in a folder that all machines share", 'search={"name": "random"}',
    "model.load_state_dict(...)",
])  # fmt: skip
def test_other_text_stays(text):
    assert in_python_words(text) == text
