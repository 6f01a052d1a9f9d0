"""The settings of a run, as they stand in its YAML file. Unknown keys are mistakes, and keys to services are never
settings: a backend names the environment variable that holds its key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from uniedit_hf.release.statistics import PUBLISHED_SHARES
from uniedit_hf.schema import TASK_CATEGORIES


Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


# ---- sources


class Conversations(Section):
    """JSONL in the style of LLaVA-OneVision: `images`, `messages`, `subject`; every turn is a question.

    Args:
        files: JSONL files.
        image_root: The folder, or with `archives` the place of the archives, that image paths are relative to; by
            default the folder of the first file.
        archives: Tar and zip files with images.
        license: The licence of the images.
        limit: Read so many lines at most.
    """

    kind: Literal["conversations"]
    files: list[Path] = Field(min_length=1)
    image_root: Path | None = None
    archives: list[Path] = []
    license: str | None = None
    limit: PositiveInt | None = None


class Rows(Section):
    """Rows with a question, an answer and an image: JSONL or Parquet files, or a data set that `load_dataset` knows.

    Args:
        files: JSONL or Parquet files. Either these or `dataset`.
        dataset: A repository or folder; a repository is fetched from the Hub.
        config: Configuration of the data set.
        split: Split of the data set.
        columns: Our name -> name of the column; of `image`, `question`, `answer` and, if any, `category`, `source`
            and `license`.
        image_root: What image paths are relative to; by default the folder of the first file.
        archives: Tar and zip files with images.
        license: The licence of the images, where no column says it.
        limit: Read so many rows at most.
    """

    kind: Literal["rows"]
    files: list[Path] = []
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    columns: dict[Literal["image", "question", "answer", "category", "source", "license"], str] = {}
    image_root: Path | None = None
    archives: list[Path] = []
    license: str | None = None
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_origin(self):
        if bool(self.files) == bool(self.dataset):
            raise ValueError("needs either files or dataset")
        return self


class EasyVqa(Section):
    """The training questions of easy-VQA.

    Args:
        limit: Read so many questions at most.
    """

    kind: Literal["easy_vqa"]
    limit: PositiveInt | None = None


Source = Annotated[Conversations | Rows | EasyVqa, Field(discriminator="kind")]

# ---- backends


class Price(Section):
    """Money of any currency.

    Args:
        tokens_in: For a million tokens read.
        tokens_out: For a million tokens written.
        picture: For a picture drawn.
    """

    tokens_in: Weight = 0.0
    tokens_out: Weight = 0.0
    picture: Weight = 0.0


class BackendSettings(Section):
    """What all backends that are asked have in common.

    Args:
        model: Its id.
        concurrency: Calls in flight at most.
        requests_per_minute: Calls that begin in a minute at most.
        attempts: How often a call is made if it fails in a way that may pass.
        first_wait: Seconds before the second attempt; doubled before each further one.
        malformed_attempts: How often the same is asked if the answer has another form than asked for.
        timeout: Seconds after which a call has failed.
        price: For the budget and the report.
    """

    model: str
    concurrency: PositiveInt = 8
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    attempts: PositiveInt = 6
    first_wait: Annotated[float, Field(gt=0)] = 1.0
    malformed_attempts: PositiveInt = 3
    timeout: Annotated[float, Field(gt=0)] = 120.0
    price: Price | None = None


class Remote(BackendSettings):
    """A backend behind HTTP.

    Args:
        base_url: Its address; the service's own by default.
        api_key_env: The environment variable with the key.
    """

    base_url: str | None = None
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must hold no key; name an environment variable in api_key_env")
        return address


class OpenAiChat(Remote):
    """Any chat model behind an OpenAI-compatible endpoint; a vLLM or SGLang server is a `base_url`.

    Args:
        arguments: Further arguments of the call, such as temperature.
        image_side: Images are made smaller for the model where a side has more pixels.
    """

    kind: Literal["openai"]
    arguments: dict[str, Any] = {}
    image_side: PositiveInt = 1024


class GeminiChat(Remote):
    """A chat model of Google's. Args as of `OpenAiChat`."""

    kind: Literal["gemini"]
    api_key_env: str | None = "GEMINI_API_KEY"
    arguments: dict[str, Any] = {}
    image_side: PositiveInt = 1024


class TransformersChat(BackendSettings):
    """A vision-language model of transformers on this machine.

    Args:
        device: Where it runs.
        dtype: Of its weights.
        batch_size: Questions in one batch at most.
        max_new_tokens: Tokens of an answer at most.
        image_side: As of `OpenAiChat`.
    """

    kind: Literal["transformers"]
    device: str = "cpu"
    dtype: str = "auto"
    batch_size: PositiveInt = 8
    max_new_tokens: PositiveInt = 1024
    image_side: PositiveInt = 1024


class OpenAiEditor(Remote):
    """`images.edit` of OpenAI or a compatible endpoint. `arguments` are further ones of the call."""

    kind: Literal["openai_images"]
    arguments: dict[str, Any] = {}


class GeminiEditor(Remote):
    """An image model of Google's, with the resolution that it calls `image_size`."""

    kind: Literal["gemini_images"]
    api_key_env: str | None = "GEMINI_API_KEY"
    image_size: str = "1K"


class HttpEditor(Remote):
    """A server of one's own: see `uniedit_hf.synthesis.backends.http_editor` for what is sent and expected."""

    kind: Literal["http_editor"]
    base_url: str


class DiffusersEditor(BackendSettings):
    """Any diffusers pipeline that takes an image and a prompt, on this machine.

    Args:
        device: Where it runs.
        dtype: Of its weights.
        batch_size: Images of one size in one batch at most.
        arguments: Further arguments of the pipeline's call, such as num_inference_steps.
    """

    kind: Literal["diffusers"]
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: PositiveInt = 1
    arguments: dict[str, Any] = {}


Chat = OpenAiChat | GeminiChat | TransformersChat
Editor = OpenAiEditor | GeminiEditor | HttpEditor | DiffusersEditor
Backend = Annotated[Chat | Editor, Field(discriminator="kind")]

# ---- stages


class Decontaminate(Section):
    """What is kept out before anything is paid for.

    Args:
        benchmarks: Folders of benchmark images and questions.
        benchmark_datasets: Data sets whose images are looked for.
        near_duplicates: Whether the same question about a picture that looks the same is dropped; the same question
            about the very same picture always is.
    """

    benchmarks: list[Path] = []
    benchmark_datasets: list[BenchmarkDataset] = []
    near_duplicates: bool = True


class BenchmarkDataset(Section):
    """A data set that `load_dataset` knows, and its column of images."""

    dataset: str
    config: str | None = None
    split: str = "test"
    image: str = "image"


class Classify(Section):
    """Which chat model classifies; `rules` where the source is easy-VQA. Rows with a category are not asked about."""

    backend: str


class Balance(Section):
    """How many records there shall be, and of which categories.

    Args:
        size: Records to make; all that the source gives if not set.
        shares: "148k" or "40k" for those of the paper, or a weight for each category.
    """

    size: PositiveInt | None = None
    shares: Literal["148k", "40k"] | dict[Literal[TASK_CATEGORIES], Weight] = "148k"

    @field_validator("shares")
    @classmethod
    def _some_weight(cls, shares):
        if isinstance(shares, dict) and not sum(shares.values()):
            raise ValueError("needs a category with a weight above 0")
        return shares

    @property
    def weights(self) -> dict[str, float]:
        """A weight for every category."""
        chosen = PUBLISHED_SHARES[self.shares] if isinstance(self.shares, str) else self.shares
        return {category: chosen.get(category, 0.0) for category in TASK_CATEGORIES}


class Instruct(Section):
    """Which chat model writes; `rules` for easy-VQA.

    Args:
        backend: Its name.
        depths: A weight for each number of nested conditions, 0 to 3.
        false_conditions: The share of outermost conditions that do not hold.
        unchanged: The share of conditions whose branch leaves the image as it is.
    """

    backend: str
    depths: dict[Annotated[int, Field(ge=0, le=3)], Weight] = {1: 0.5, 2: 0.3, 3: 0.2}
    false_conditions: Share = 0.5
    unchanged: Share = 0.2

    @field_validator("depths")
    @classmethod
    def _some_weight(cls, depths):
        if not sum(depths.values()):
            raise ValueError("needs a depth with a weight above 0")
        return depths


class Screen(Section):
    """What an instruction must be like.

    Args:
        min_words: Words at least.
        max_words: Words at most.
        similarity: From this share of common words on (intersection over union), two instructions for the same
            picture are near duplicates, and the later one is dropped.
    """

    min_words: PositiveInt = 5
    max_words: PositiveInt = 200
    similarity: Share = 0.8


class Edit(Section):
    """Which editor draws; `exact` for easy-VQA.

    Args:
        backend: Its name.
        pixels: About how many pixels are asked for.
        multiple: Sides asked for are multiples of this.
        max_stretch: By how much the sides of a result may differ in proportion from those of the source. Within it the
            result is resized to the proportions of the source, beyond it `misfit` says what happens.
        misfit: Whether a result of other proportions is rejected or cropped around its middle.
    """

    backend: str
    pixels: PositiveInt = 1024 * 1024
    multiple: PositiveInt = 16
    max_stretch: Share = 0.05
    misfit: Literal["reject", "crop"] = "reject"


class Verify(Section):
    """How results are judged; what is not set is not looked at.

    Args:
        judge: The chat model that compares source and result, or `rules` for easy-VQA.
        quality: The chat model that grades how a result looks, 1 to 5.
        min_quality: The least grade.
        min_unchanged: The least share of the picture that stays the same in edits within the scene.
        ocr: Whether text that was to be rendered is read back.
        min_text_match: How much of that text has to be found, 0 to 1.
    """

    judge: str | None = None
    quality: str | None = None
    min_quality: Annotated[float, Field(ge=1, le=5)] = 3.0
    min_unchanged: Share = 0.0
    ocr: bool = False
    min_text_match: Share = 0.8


# ---- the run


class BudgetSettings(Section):
    """What the run may spend in all, resumed runs included; nothing set is no limit.

    With the engine `datatrove` every shard gets an equal part.
    """

    calls: PositiveInt | None = None
    tokens: PositiveInt | None = None
    money: Annotated[float, Field(gt=0)] | None = None


class Engine(Section):
    """Where shards are made.

    Args:
        kind: `local`, one after another in this process, or `datatrove`, by its executors.
        executor: datatrove's.
        workers: Shards at the same time.
        arguments: Further arguments of the executor, such as `partition` and `time` of Slurm's.
    """

    kind: Literal["local", "datatrove"] = "local"
    executor: Literal["local", "slurm", "ray"] = "local"
    workers: PositiveInt = 2
    arguments: dict[str, Any] = {}

    @model_validator(mode="after")
    def _slurm_knows_where(self):
        lacking = [name for name in ("partition", "time") if name not in self.arguments]
        if self.kind == "datatrove" and self.executor == "slurm" and lacking:
            raise ValueError(f"slurm needs {' and '.join(lacking)} under arguments")
        return self


class Export(Section):
    """What is written beside Parquet.

    Args:
        rows_per_file: Rows of a Parquet file.
        official: Whether the JSONL and images of the official format are written as well.
        examples: Records on the page of the report.
    """

    rows_per_file: PositiveInt = 512
    official: bool = False
    examples: PositiveInt = 24


class Settings(Section):
    """A run. See the classes above for its sections.

    Args:
        output_dir: Where everything goes; a run that was stopped there goes on.
        seed: Decides every choice that is drawn.
        shards: Parts that are made independently, each with its own share of `balance.size`.
        window: Rows of a shard that are under way at most; it bounds memory.
    """

    output_dir: Path
    seed: int = 0
    shards: PositiveInt = 1
    window: PositiveInt = 64
    source: Source
    backends: dict[str, Backend] = {}
    decontaminate: Decontaminate = Decontaminate()
    classify: Classify | None = None
    balance: Balance = Balance()
    instruct: Instruct
    screen: Screen = Screen()
    edit: Edit
    verify: Verify = Verify()
    budget: BudgetSettings = BudgetSettings()
    engine: Engine = Engine()
    export: Export = Export()

    @model_validator(mode="after")
    def _backends_are_there(self):
        roles = {
            "classify": (self.classify and self.classify.backend, Chat, "rules"),
            "instruct": (self.instruct.backend, Chat, "rules"),
            "edit": (self.edit.backend, Editor, "exact"),
            "verify.judge": (self.verify.judge, Chat, "rules"),
            "verify.quality": (self.verify.quality, Chat, None),
        }
        for role, (name, kind, built_in) in roles.items():
            if name is None:
                continue
            if name == built_in:
                if not isinstance(self.source, EasyVqa):
                    raise ValueError(f"{role}: {name!r} understands pictures of the source easy_vqa alone")
                continue
            if name not in self.backends:
                known = ", ".join(filter(None, (*self.backends, built_in)))
                raise ValueError(f"{role}: there is no backend {name!r}; known are {known or 'none'}")
            if not isinstance(self.backends[name], kind):
                wanted = "a chat model" if kind is Chat else "an image editor"
                raise ValueError(f"{role}: the backend {name!r} is of kind {self.backends[name].kind!r}, not {wanted}")
        if self.instruct.backend == "rules" and not any(w for depth, w in self.instruct.depths.items() if depth):
            raise ValueError("instruct.depths: 'rules' always writes a condition; give a depth above 0 a weight")
        if self.edit.backend == "exact" and self.instruct.backend != "rules":
            raise ValueError("edit: 'exact' draws what the writer 'rules' means; use both or neither")
        if self.verify.judge == "rules" and self.instruct.backend != "rules":
            raise ValueError("verify.judge: 'rules' knows what the writer 'rules' means; use both or neither")
        return self


Decontaminate.model_rebuild()


def settings_from(options: dict[str, Any], where: str) -> Settings:
    """The settings of a mapping.

    Raises:
        ValueError: One sentence that names the place and the first mistake, and no value, which may be a key.
    """
    try:
        return Settings.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # A union of kinds adds the kind to the place, which the reader did not write there.
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such setting"
        more = f" ({error.error_count() - 1} more mistakes follow)" if error.error_count() > 1 else ""
        raise ValueError(f"{where}: {place + ': ' if place else ''}{message}{more}.") from None
