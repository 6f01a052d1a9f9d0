"""The settings of a run, as in its YAML file."""

from uniedit_hf.calls.call_settings import BackendSettings, BudgetSettings, Price
from uniedit_hf.calls.openai_chat import HEADERS, OpenAiChat
from uniedit_hf.synthesis.settings.backends import (
    DiffusersEditor,
    GeminiChat,
    GeminiEditor,
    HttpEditor,
    OpenAiEditor,
    TransformersChat,
)
from uniedit_hf.synthesis.settings.run_settings import Engine, Export, Settings, settings_from
from uniedit_hf.synthesis.settings.sources import Conversations, EasyVqa, PlainEdits, PlannedEdits, Rows
from uniedit_hf.synthesis.settings.stages import (
    Balance,
    BenchmarkDataset,
    Classify,
    Decontaminate,
    Edit,
    Instruct,
    Screen,
    Verify,
)


__all__ = [
    "HEADERS",
    "BackendSettings",
    "Balance",
    "BenchmarkDataset",
    "BudgetSettings",
    "Classify",
    "Conversations",
    "Decontaminate",
    "DiffusersEditor",
    "EasyVqa",
    "Edit",
    "Engine",
    "Export",
    "GeminiChat",
    "GeminiEditor",
    "HttpEditor",
    "Instruct",
    "OpenAiChat",
    "OpenAiEditor",
    "PlainEdits",
    "PlannedEdits",
    "Price",
    "Rows",
    "Screen",
    "Settings",
    "TransformersChat",
    "Verify",
    "settings_from",
]
