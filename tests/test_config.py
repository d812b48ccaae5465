"""Configurations: YAML both ways, defaults spread, overrides applied, and every mistake named."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rl_cluster import config as config_module
from rl_cluster import config_docs
from rl_cluster.config import ConfigError, RunConfig, TaskConfig, TierConfig
from rl_cluster.config_file import dump, from_mapping, load

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def loaded(text: str, *overrides: str) -> RunConfig:
    return from_mapping(yaml.safe_load(text), overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(text, *overrides)
    return str(caught.value)


# Reading


def test_a_list_of_names_is_tasks_with_nothing_of_their_own() -> None:
    config = loaded("tasks: [Pong, Breakout]")
    assert list(config.tasks) == ["Pong", "Breakout"]
    assert config.tasks["Pong"] == config.tasks["Breakout"] == TaskConfig()


def test_defaults_reach_every_task_and_a_task_overrides_only_what_it_names() -> None:
    config = loaded("""
        tasks:
          Pong:
          Breakout: {learner: {batch: 64}}
        defaults:
          learner: {batch: 16, learning_rate: 0.5}
          env: {settings: {protocol: nature, options: {a: 1, b: 2}}}
    """)
    pong, breakout = config.tasks["Pong"], config.tasks["Breakout"]
    assert (pong.learner.batch, pong.learner.learning_rate) == (16, 0.5)
    assert (breakout.learner.batch, breakout.learner.learning_rate) == (64, 0.5)
    assert pong.rollout == breakout.rollout == TaskConfig().rollout


def test_settings_of_an_environment_merge_key_by_key() -> None:
    config = loaded("""
        tasks: {Pong: {env: {settings: {options: {b: 3}}}}, Breakout: {}}
        defaults: {env: {settings: {protocol: nature, options: {a: 1, b: 2}}}}
    """)
    wanted = {"protocol": "nature", "options": {"a": 1, "b": 3}}
    assert config.tasks["Pong"].env.settings == wanted
    assert config.tasks["Breakout"].env.settings["options"] == {"a": 1, "b": 2}


def test_the_mapping_that_was_given_is_left_as_it_was() -> None:
    raw = yaml.safe_load("{tasks: [Pong], defaults: {env: {settings: {options: {a: 1}}}}}")
    kept = yaml.safe_dump(raw)
    from_mapping(raw, ["tasks.Pong.env.settings.options.a=2", "defaults.learner.batch=8"])
    assert yaml.safe_dump(raw) == kept


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_and_comes_back_the_same(path: Path, tmp_path: Path) -> None:
    config = load(path)
    written = tmp_path / "config.yaml"
    written.write_text(dump(config), encoding="utf-8")
    assert load(written) == config


def test_what_is_dumped_holds_every_task_in_full() -> None:
    tree = yaml.safe_load(dump(loaded("{tasks: [Pong], defaults: {learner: {batch: 64}}}")))
    assert "defaults" not in tree
    assert tree["tasks"]["Pong"]["learner"]["batch"] == 64
    assert tree["tasks"]["Pong"]["replay"]["capacity_transitions"] == 100_000


# Any value of any setting, through --set and through YAML

BOUNDS = {
    "rollout.environments": st.integers(8, 512),  # at least the default inference_batch
    "rollout.inference_batch": st.integers(1, 16),  # at most the default environments
    "replay.capacity_transitions": st.integers(2_001, 10**9),
    "replay.min_transitions": st.integers(1, 99_999),
    "load.tier": st.sampled_from(["custom", "auto", "light", "medium", "heavy"]),
    "cluster.rollout_labels": st.just({}),  # others only beside cluster.address
    "cluster.rollout_resources": st.just({}),
    "telemetry.wandb_checkpoints": st.just(False),  # true only beside telemetry.wandb
}
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a setting of this type may have."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = {
            name: getattr(limit, name)
            for limit in arguments[1].metadata
            for name in ("ge", "gt", "le")
            if hasattr(limit, name)
        }
        low, high = limits.get("ge", limits.get("gt")), limits.get("le")
        if arguments[0] is bool:
            return st.booleans()
        if arguments[0] is int:
            return st.integers(low, 10**9)
        open_below = "gt" in limits
        at_least = -1e12 if low is None else low
        return st.floats(at_least, high or 1e12, exclude_min=open_below, allow_subnormal=False)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is dict:
        values = JSON if arguments[1] is Any else values_of(arguments[1])
        return st.dictionaries(WORDS, values, max_size=3)
    if origin is not None:
        return st.one_of(map(values_of, arguments))
    plain = {str: WORDS, type(None): st.none()}
    return plain[hint]


def settings_of(kind: type) -> dict[str, st.SearchStrategy[Any]]:
    """Strategies of the settings below `kind`, by dotted path."""
    found: dict[str, st.SearchStrategy[Any]] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            inside = settings_of(hint)  # type: ignore[arg-type]
            found |= {f"{name}.{inner}": values for inner, values in inside.items()}
        elif name not in ("tasks", "tiers"):
            found[name] = values_of(hint)
    return found | {path: values for path, values in BOUNDS.items() if path in found}


OF_A_TASK, OF_A_RUN = settings_of(TaskConfig), settings_of(RunConfig)


@st.composite
def chosen(draw: st.DrawFn) -> dict[str, Any]:
    """Some settings by the path that --set names, with values."""
    paths = [f"tasks.Pong.{path}" for path in OF_A_TASK] + list(OF_A_RUN)
    every = OF_A_RUN | {f"tasks.Pong.{path}": values for path, values in OF_A_TASK.items()}
    names = draw(st.lists(st.sampled_from(paths), unique=True, min_size=1, max_size=4))
    return {name: draw(every[name]) for name in names}


def at(config: RunConfig, path: str) -> Any:
    node: Any = config
    for part in path.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return list(node) if isinstance(node, tuple) else node


@settings(max_examples=40)
@given(chosen())
def test_any_overrides_take_effect_and_survive_yaml(values: dict[str, Any]) -> None:
    capacity = values.get("tasks.Pong.replay.capacity_transitions", 100_000)
    assume(values.get("tasks.Pong.replay.min_transitions", 2_000) < capacity)
    overrides = [f"{path}={yaml.safe_dump(value)}" for path, value in values.items()]
    config = loaded("tasks: [Pong, Breakout]", *overrides)
    assert {path: at(config, path) for path in values} == values
    assert from_mapping(yaml.safe_load(dump(config))) == config
    assert config.tasks["Breakout"] == TaskConfig()


def test_numbers_that_are_not_finite_survive_yaml_among_an_environment_s_settings() -> None:
    config = loaded("tasks: {Pong: {env: {settings: {limit: .inf}}}}")
    assert from_mapping(yaml.safe_load(dump(config))) == config


# --set


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("max_seconds=60", "max_seconds", 60.0),
        ("max_seconds=null", "max_seconds", None),
        ("seed=0", "seed", 0),
        ("telemetry.wandb=true", "telemetry.wandb", True),
        ("tasks.Pong.learner.batch=64", "tasks.Pong.learner.batch", 64),
        ("defaults.learner.batch=64", "tasks.Pong.learner.batch", 64),
        ("defaults.learner={batch: 64, threads: 2}", "tasks.Pong.learner.threads", 2),
        ("defaults.agent.conv_channels=[8, 16]", "tasks.Pong.agent.conv_channels", [8, 16]),
        ("defaults.agent.reward_clip=", "tasks.Pong.agent.reward_clip", None),
        ("defaults.learner.learning_rate=3e-4", "tasks.Pong.learner.learning_rate", 3e-4),
        ("defaults.env.settings.a=x=y", "tasks.Pong.env.settings.a", "x=y"),
        ("tasks=[Catch]", "tasks.Catch.learner.batch", 32),
        ("tasks.Catch.learner.batch=7", "tasks.Catch.learner.batch", 7),
    ],
)
@pytest.mark.parametrize("tasks", ["[Pong]", "{Pong: }", "{Pong: {learner: {threads: 1}}}"])
def test_an_override_is_a_path_and_a_yaml_value(
    tasks: str, override: str, path: str, value: Any
) -> None:
    if path.endswith("threads"):
        tasks = "[Pong]"
    assert at(loaded(f"{{max_seconds: 5, tasks: {tasks}}}", override), path) == value


def test_a_task_s_own_setting_goes_before_an_override_of_the_defaults() -> None:
    text = "tasks: {Pong: {learner: {batch: 8}}, Breakout: }"
    config = loaded(text, "defaults.learner.batch=64")
    assert [task.learner.batch for task in config.tasks.values()] == [8, 64]


def test_the_last_of_two_overrides_holds() -> None:
    assert loaded("tasks: [Pong]", "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_seconds", "must read a.b=value"),
        ("=3", "must read a.b=value"),
        ("tasks..batch=3", "must read a.b=value"),
        ("seed.more=3", "seed is a value, not a group"),
        ("max_seconds=[1", "the value is not YAML"),
        ("defaults.learner.bach=1", "did you mean 'batch'"),
        ("max_second=1", "did you mean 'max_seconds'"),
        ("defaults.learner.batch=many", "tasks.Pong.learner.batch is 'many'"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override: str, said: str) -> None:
    assert said in refusal("{seed: 1, tasks: [Pong]}", override)


# What is wrong, and what is near


@pytest.mark.parametrize(
    ("text", "path", "near"),
    [
        ("{tasks: [Pong], max_secnds: 1}", "max_secnds", "max_seconds"),
        ("{tasks: [Pong], deflauts: {}}", "deflauts", "defaults"),
        ("{tasks: [Pong], supervisor: {backof_s: 1}}", "supervisor.backof_s", "backoff_s"),
        ("{tasks: [Pong], telemetry: {wanb: true}}", "telemetry.wanb", "wandb"),
        ("{tasks: [Pong], cluster: {adress: x}}", "cluster.adress", "address"),
        ("tasks: {Pong: {lerner: {}}}", "tasks.Pong.lerner", "learner"),
        ("tasks: {Pong: {env: {entri: x}}}", "tasks.Pong.env.entri", "entry"),
        ("tasks: {Pong: {rollout: {actor: 2}}}", "tasks.Pong.rollout.actor", "actors"),
        (
            "tasks: {Pong: {replay: {capacity_transition: 2}}}",
            "tasks.Pong.replay.capacity_transition",
            "capacity",
        ),
        ("tasks: {Pong: {agent: {duelling: 1}}}", "tasks.Pong.agent.duelling", "dueling"),
        ("tasks: {Pong: {learner: {bach: 2}}}", "tasks.Pong.learner.bach", "batch"),
        ("tasks: {Pong: {evaluation: {game: 2}}}", "tasks.Pong.evaluation.game", "games"),
        ("tasks: {Pong: {checkpoint: {keeps: 2}}}", "tasks.Pong.checkpoint.keeps", "keep"),
        ("{tasks: [Pong], defaults: {learner: {bach: 2}}}", "tasks.Pong.learner.bach", "batch"),
        ("tasks: {learner: {agent: {duble: 1}}}", "tasks.learner.agent.duble", "double"),
    ],
)
def test_an_unknown_key_names_the_nearest_at_every_level(text: str, path: str, near: str) -> None:
    said = refusal(text)
    assert f"unknown setting {path!r}: did you mean '{near}" in said


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("{rollout_labels: {pool: cpu}}", "set cluster.address"),
        ("{rollout_resources: {CPU: 1}}", "set cluster.address"),
        ("{address: auto, rollout_labels: {pool: a b}}", "'a b', which is no label"),
        ("{address: auto, rollout_labels: {pool: '!x'}}", "'!x', which is no label"),
        ("{address: auto, rollout_labels: {po ol: x}}", "'po ol': 'x', which is no label"),
        ("{address: auto, rollout_resources: {GPU: 1}}", "has GPU: rollouts use none"),
        ("{address: auto, rollout_resources: {CPU: 1.0e-5}}", "CPU: 1e-05 is below 0.0001"),
    ],
)
def test_what_no_node_could_have_is_refused_before_anything_starts(cluster: str, said: str) -> None:
    assert said in refusal(f"{{tasks: [Pong], cluster: {cluster}}}")


def test_a_key_that_resembles_none_is_told_what_there_is() -> None:
    said = refusal("tasks: {Pong: {checkpoint: {zzz: 1}}}")
    assert "unknown setting 'tasks.Pong.checkpoint.zzz': known here: period_s, keep" in said


def test_every_mistake_is_told_at_once() -> None:
    said = refusal("tasks: {Pong: {learner: {bach: 2, batch: 0}}, Breakout: {agnt: {}}}")
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rollout.environments", "many"),
        ("rollout.environments", "1.5"),
        ("rollout.environments", "0"),
        ("rollout.environments", "[1]"),
        ("rollout.environments", "null"),
        ("rollout.env_threads", "-1"),
        ("rollout.epsilon_base", "1.1"),
        ("rollout.epsilon_base", "-0.1"),
        ("rollout.precision", "float16"),
        ("replay.samples_per_insert", "0"),
        ("replay.samples_per_insert", ".inf"),
        ("replay.samples_per_insert", ".nan"),
        ("agent.discount", ".nan"),
        ("agent.discount", "1.01"),
        ("agent.reward_clip", "0"),
        ("agent.double", "perhaps"),
        ("agent.conv_channels", "8"),
        ("agent.conv_channels", "[0]"),
        ("learner.learning_rate", "-1e-4"),
        ("learner.device", "gpu"),
        ("learner.schedule", "linear"),
        ("env.settings", "[a]"),
        ("learner", "5"),
        ("learner", "null"),
    ],
)
def test_a_wrong_type_or_range_names_the_key_and_the_value(setting: str, value: str) -> None:
    said = refusal("tasks: [Pong]", f"tasks.Pong.{setting}={value}")
    assert said.startswith(f"tasks.Pong.{setting}")
    assert repr(yaml.safe_load(value)).strip("[]") in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "tasks is empty"),
        ("tasks: []", "tasks is empty"),
        ("{tasks: [Pong], max_seconds: 0}", "max_seconds is 0"),
        ("{tasks: [Pong], max_seconds: soon}", "max_seconds is 'soon'"),
        ("{tasks: [Pong], seed: -1}", "seed is -1"),
        ("tasks: Pong", "a list of names or a mapping"),
        ("{tasks: [Pong], defaults: [1]}", "defaults is a mapping"),
        ("tasks: {Pong: 5}", "found 5"),
        ("tasks: [1]", "tasks"),
        ("tasks: [a/b]", "'a/b' cannot name a task's directory"),
        ("tasks: ['..']", "'..' cannot name a task's directory"),
        ("tasks: ['a b']", "'a b' cannot name a task's directory"),
        ("tasks: ['']", "'' cannot name a task's directory"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(text: str, said: str) -> None:
    assert said in refusal(text)


def test_a_list_of_mappings_for_tasks_is_refused() -> None:
    """An easy slip in YAML: `- Pong: {...}`."""
    refusal("tasks: [{Pong: {learner: {batch: 8}}}]")
    refusal("tasks: [{Pong: {}}]", "tasks.Pong.learner.batch=8")


def test_values_that_contradict_each_other_are_refused_with_both() -> None:
    said = refusal("tasks: {Pong: {rollout: {environments: 4, inference_batch: 5}}}")
    assert "tasks.Pong.rollout.inference_batch is 5, more than the 4 environments" in said
    said = refusal("tasks: {Pong: {replay: {capacity_transitions: 2000}}}")
    assert "min_transitions is 2000, not below the capacity of 2000" in said
    said = refusal("{tasks: [Pong], telemetry: {wandb_checkpoints: true}}")
    assert "telemetry.wandb_checkpoints is true, wandb is not" in said


def test_values_that_just_fit_together_are_taken() -> None:
    loaded("tasks: {Pong: {rollout: {environments: 5, inference_batch: 5}}}")
    loaded("tasks: {Pong: {replay: {capacity_transitions: 2001}}}")


@pytest.mark.parametrize(
    ("content", "said"),
    [("tasks: [", "is not YAML"), ("- Pong", "not list"), ("", "not NoneType"), (None, "No such")],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load(path)
    assert "mine.yaml" in str(caught.value)


# Every setting says what it is

DATACLASSES = [group.kind for group in config_docs.groups()]


def test_every_dataclass_of_the_module_is_part_of_the_tree() -> None:
    members = vars(config_module).values()
    own = {m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)}
    assert own == set(DATACLASSES)


@pytest.mark.parametrize("kind", DATACLASSES, ids=lambda kind: kind.__name__)
def test_every_field_is_followed_by_a_string_that_says_what_it_is(kind: type) -> None:
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    assert ast.get_docstring(definition)
    following = dict(zip(definition.body, [*definition.body[1:], None], strict=True))
    silent = [
        ast.unparse(field.target)
        for field, below in following.items()
        if isinstance(field, ast.AnnAssign)
        and not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
    ]
    assert silent == []


def test_a_tier_of_ones_own_comes_beside_the_known_ones() -> None:
    config = loaded(
        "tasks: [Pong]", "load.tier=mine", "load.tiers.mine={games: 3, environments: 9, batch: 7}"
    )
    assert config.load.tiers["mine"] == TierConfig(3, 9, 7)
    assert config.load.tiers["heavy"] == TierConfig(8, 256, 2048)
    changed = loaded("tasks: [Pong]", "load.tiers.light.games=1")
    assert changed.load.tiers["light"] == TierConfig(1, 32, 512)


def test_a_tier_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="load.tier is 'hevy': one of custom, auto, light"):
        loaded("tasks: [Pong]", "load.tier=hevy")


def test_the_page_of_settings_is_the_configuration() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == config_docs.render_markdown(), (
        "run: python -m rl_cluster.config_docs > docs/configuration.md"
    )


def test_the_page_has_one_row_for_every_setting() -> None:
    rows = [line for line in config_docs.render_markdown().splitlines() if line.startswith("| `")]
    assert (
        len(rows) == len(OF_A_TASK) + len(OF_A_RUN) + 5
    )  # and `tasks`, `tiers` and those of a tier
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}


def test_the_example_on_the_page_is_a_configuration() -> None:
    text = config_docs.render_markdown().split("```yaml\n")[1].split("```")[0]
    config = loaded(text, "max_seconds=60", "defaults.learner.batch=64")
    assert list(config.tasks) == ["Pong", "Breakout"]


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (config_module.PositiveInt, "integer ≥ 1"),
        (config_module.Share, "number ≥ 0 and ≤ 1"),
        (config_module.PositiveFloat | None, "number > 0 or null"),
        (Literal["a", "b"], "`a` or `b`"),
        (tuple[config_module.PositiveInt, ...], "list of (integer ≥ 1)"),
        (bool, "true or false"),
        (dict[str, Any], "mapping"),
    ],
)
def test_the_page_words_types_and_ranges(hint: Any, text: str) -> None:
    assert config_docs.value_text(hint) == text


@pytest.mark.parametrize(
    ("setting", "value"), [("rollout.environments", "true"), ("agent.double", "'no'")]
)
def test_a_switch_is_no_number_and_a_text_is_no_switch(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        loaded("tasks: [Pong]", f"defaults.{setting}={value}")
