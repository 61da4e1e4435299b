import pytest
import torch

from pipeline.model import HSTL
from pipeline.model.released import from_released, places, to_released
from tests.pipeline.model import golden


@pytest.mark.parametrize("name", golden.NAMES)
def test_names_and_shapes_are_the_releases(name: str) -> None:
    numbers = golden.load(name)
    with torch.device("meta"):
        model = HSTL(name, numbers["class_num"])
    released = to_released(model.state_dict(), model.variant)
    assert {k: list(t.shape) for k, t in released.items()} == numbers["state_dict"]


@pytest.mark.parametrize("name", ["demo", "casia-b", "casia-b-17"])
def test_there_and_back_changes_nothing(name: str) -> None:
    state = HSTL(name, 3).state_dict()
    variant = HSTL(name, 3).variant
    back = from_released(to_released(state, variant), HSTL(name, 3).state_dict(), variant)
    assert state.keys() == back.keys()
    assert all(torch.equal(state[k], back[k]) for k in state)
    assert {ours for ours, _ in places(variant).values()} == set(state)


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (("casia-b-17", 3), ("casia-b", 3), r"17 parts, this variant has 73.*variant 'casia-b-17'"),
        (("casia-b", 74), ("casia-b", 10), r"trained on 74 subjects, this network has 10 classes"),
        (("demo", 3), ("casia-b", 3), r"not the weights of the 'casia-b' network"),
    ],
)
def test_another_networks_weights_are_refused_saying_which(
    given: tuple[str, int], wanted: tuple[str, int], message: str
) -> None:
    theirs, ours = HSTL(*given), HSTL(*wanted)
    with pytest.raises(ValueError, match=message):
        from_released(to_released(theirs.state_dict(), theirs.variant), ours.state_dict(), ours.variant)
