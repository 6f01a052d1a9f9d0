"""What a person sees of the pipeline: its name, and a bar over the steps of a drawing."""

from __future__ import annotations

import pytest
from tiny_models import FAMILIES

from uniedit_hf import UniEditPipeline


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request):
    make = FAMILIES[request.param]
    return UniEditPipeline(make.model(), make.processor(), batch_size=2)


def test_its_name_says_model_size_and_place(pipe):
    assert repr(pipe).startswith(f"UniEditPipeline({type(pipe.model).__name__}, ")
    assert "torch.float32 on cpu, batch_size=2, from None" in repr(pipe)


def test_a_bar_counts_the_steps_of_all_batches(pipe, capsys):
    prompts, steps = ["a red circle"] * 3, []
    settings = {} if "Janus" in repr(pipe) else {"num_timesteps": 4, "size": (32, 32)}

    def callback(pipe, index, time, shown):
        steps.append(shown["num_steps"])

    pipe.generate(prompts, seed=0, **settings)
    assert capsys.readouterr().err == "", "no bar where there is no terminal"
    pipe.set_progress_bar_config(disable=False, desc="three")
    pipe.generate(prompts, seed=0, callback_on_step_end=callback, **settings)
    assert "three: 100%" in (shown := capsys.readouterr().err) and f"{len(steps)}/{2 * steps[0]}" in shown
    pipe.set_progress_bar_config(disable=True)
    pipe.generate(prompts, seed=0, **settings)
    assert capsys.readouterr().err == ""
