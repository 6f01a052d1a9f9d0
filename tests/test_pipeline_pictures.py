"""Questions about several images, for both families."""

from __future__ import annotations

import pytest

from tests.tiny_models import FAMILIES, picture
from uniedit_hf import UniEditPipeline


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_question_may_be_about_several_pictures(family):
    pipe = UniEditPipeline(FAMILIES[family].model(), FAMILIES[family].processor(), batch_size=3)
    one, other = picture(seed=5), picture(48, 64, seed=6)

    def answer(images, questions="what is this"):
        return pipe.answer(images, questions, max_new_tokens=24, min_new_tokens=24)

    (both,), (swapped,) = answer([[one, other]]), answer([[other, one]])
    assert len({both, swapped, answer(one), answer(other), answer(None)}) == 5
    assert answer([[one, other], other, None]) == [both, answer(other), answer(None)]
    assert answer([one, other]) == [answer(one), answer(other)]  # a list alone is a request each
