"""The settings of a run, as they stand in its YAML file."""

from uniedit_hf.synthesis.settings.backends import (
    HEADERS,
    BackendSettings,
    DiffusersEditor,
    GeminiChat,
    GeminiEditor,
    HttpEditor,
    OpenAiChat,
    OpenAiEditor,
    Price,
    TransformersChat,
)
from uniedit_hf.synthesis.settings.run_settings import BudgetSettings, Engine, Export, Settings, settings_from
from uniedit_hf.synthesis.settings.sources import Conversations, EasyVqa, Rows
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
    "Price",
    "Rows",
    "Screen",
    "Settings",
    "TransformersChat",
    "Verify",
    "settings_from",
]
