"""s3prl's -o: what is applied, and what is refused before anything is written."""

from argparse import Namespace

import pytest

from m2d_bench.errors import UsageError
from m2d_bench.superb_upstream import overrides

pytest.importorskip("s3prl")

CONFIG = {
    "runner": {"total_steps": 10, "gradient_clipping": 1, "eval_step": 2, "eval_dataloaders": ["dev"]},
    "optimizer": {"name": "TorchOptim", "lr": 1e-3},
    "downstream_expert": {
        "datarc": {
            "src": ["mix"],
            "root": "/data/x",
            "test_fold": None,
            "num_workers": 2,
            "eval_batch_size": 1,
            "pre_load": True,
        },
        "modelrc": {"dim": 256},
    },
}


def applied(text, mode="train", going_on=False, config=CONFIG):
    return overrides.applied(
        overrides.split(text), config, Namespace(mode=mode, seed=1, expdir="x", evaluate_split="test"), going_on
    )


def test_values_are_applied_as_s3prl_does():
    found = applied(
        "config.optimizer.lr=7e-4,, config.runner.eval_dataloaders=['dev', 'test'] ,,"
        "config.runner.gradient_clipping=0.5,,"
        "config.downstream_expert.datarc.test_fold=fold2,,config.runner.fp16=True,,config.scheduler.name=x,,args.seed=2"
    )
    assert found["optimizer"] == {"name": "TorchOptim", "lr": 7e-4}
    assert found["runner"]["eval_dataloaders"] == ["dev", "test"]
    assert found["downstream_expert"]["datarc"]["test_fold"] == "fold2"
    assert (found["runner"]["fp16"], found["scheduler"]) == (True, {"name": "x"})
    assert CONFIG["optimizer"]["lr"] == 1e-3
    assert applied(None) == applied("None") == applied(" ,,") == CONFIG
    whole = {**CONFIG, "optimizer": {"lr": 1, "weight_decay": 0}}
    changed = applied("config.optimizer.lr=0.5,,config.optimizer.weight_decay=1e-4", config=whole)
    assert changed["optimizer"] == {"lr": 0.5, "weight_decay": 1e-4}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("config.runner.totalsteps=5", "Did you mean config.runner.total_steps"),
        ("config.runer.total_steps=5", "Did you mean config.runner.total_steps"),
        ("config.downstream_expert.datarc.tset_fold=fold2", "test_fold"),
        ("args.sead=2", "Did you mean args.seed"),
        ("runner.total_steps=5", "expected config.KEY=VALUE"),
        ("config.runner.total_steps", "expected config.KEY=VALUE"),
        ("config.downstream_expert.datarc.root=/a=b", "without another ="),
        ("config.runner.total_steps=many", "total_steps is 'many'; it should be a valid integer"),
        ("config.runner.total_steps=1e3", "total_steps is 1000.0; it should be a valid integer"),
        ("config.runner.total_steps=-1", r"config\.runner\.total_steps is -1; it should be greater than 0"),
        ("config.runner.eval_step=0", "greater than 0"),
        ("config.runner.evaluate_ratio=2", "less than or equal to 1"),
        ("config.runner.fp16=1", "fp16 is 1"),
        ("config.runner.eval_dataloaders=dev", "eval_dataloaders is 'dev'; it should be a list, such as "),
        ("config.optimizer.lr=fast", "'fast' is no float"),
        ("config.optimizer.lr=True", "True is no float"),
        ("config.downstream_expert.datarc.pre_load=0", "0 is no bool"),
        ("config.downstream_expert.modelrc=256", "256 is no dict"),
        ("config.runner={'totalsteps':5}", r"a group of settings; name one inside it, config\.runner\.KEY"),
        ("config.scheduler={}", "a group of settings"),
        ("config.downstream_expert.datarc.src=[5]", r"\[5\] is no list, as \['mix'\] is"),
        ("args.expdir=y", "Name it by its own option, --expdir"),
        ("args.seed=one", "'one' is no int"),
    ],
)
def test_unknown_keys_and_values_of_another_type_are_refused(text, says):
    with pytest.raises(UsageError, match=says):
        applied(text)


@pytest.mark.parametrize(
    ("group", "key", "value", "says"),
    [("runner", "total_steps", "5", "valid integer"), ("optimizer", "lr", "1e-3", "YAML reads one with a point")],
)
def test_so_are_those_of_a_settings_file(group, key, value, says):
    with pytest.raises(UsageError, match=f"config.{group}.{key} is '{value}'.*{says}"):
        applied(None, config={**CONFIG, group: {**CONFIG[group], key: value}})


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("config.optimizer.lr=7e-4", ()),
        ("config.optimizer.lr=1e-3", ("train", "evaluate", "inference")),
        ("config.downstream_expert.modelrc.dim=128", ()),
        ("config.downstream_expert.datarc.test_fold=fold2", ()),
        ("args.seed=2", ()),
        ("config.runner.total_steps=20", ("train",)),
        ("config.runner.evaluate_ratio=0.5", ("evaluate",)),
        ("config.downstream_expert.datarc.root=/data/y", ("train", "evaluate", "inference")),
        ("config.downstream_expert.datarc.num_workers=0", ("train", "evaluate", "inference")),
        ("config.downstream_expert.datarc.eval_batch_size=2", ("train", "evaluate", "inference")),
        ("args.evaluate_split=dev", ("train", "evaluate", "inference")),
    ],
)
def test_an_experiment_that_goes_on_keeps_what_its_record_states(text, modes):
    for mode in ("train", "evaluate", "inference"):
        if mode in modes:
            applied(text, mode, going_on=True)
        else:
            with pytest.raises(UsageError, match="was trained with"):
                applied(text, mode, going_on=True)
