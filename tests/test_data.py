import numpy as np
import pytest
import torch

from poise.data import Episodes, Limits, Normaliser, Standard, Windows


@pytest.fixture
def episodes() -> Episodes:
    """Three episodes of 5, 3 and 9 steps whose values name their row."""
    row = np.arange(17, dtype=np.float32)
    return Episodes({"state": np.stack([row, -row], 1), "action": row[:, None] + 100}, np.array([5, 8, 17]))


def test_windows_follow_their_definition_one_by_one(episodes):
    history, horizon, padded = 3, 4, 2
    windows = Windows(episodes, ("state",), history, horizon, padded)
    expected = []
    for first, end in zip(episodes.starts, episodes.ends, strict=True):
        for i in range(first, end):
            if i + horizon - end <= padded:
                past = [max(first, i - j) for j in reversed(range(history))]
                ahead = [min(end - 1, i + k) for k in range(horizon)]
                expected.append((past, ahead, [i + k < end for k in range(horizon)]))
    assert len(windows) == len(expected)
    batch = windows[torch.arange(len(windows))]
    for w, (past, ahead, real) in enumerate(expected):
        assert batch.observation["state"][w, :, 0].tolist() == past
        assert batch.actions[w, :, 0].tolist() == [a + 100 for a in ahead]
        assert batch.real[w].tolist() == real


def test_the_published_validation_split():
    """`default_rng(42)` holds out episodes 18, 90, 134 and 157 of the 206."""
    names = Episodes({"episode": np.arange(206)}, np.arange(1, 207))
    training, validation = names.split(0.02, seed=42)
    assert validation.features["episode"].tolist() == [18, 90, 134, 157]
    assert sorted([*training.features["episode"], *validation.features["episode"]]) == list(range(206))


def test_select_keeps_episodes_whole_and_in_order(episodes):
    chosen = episodes.select([2, 0])
    assert chosen.ends.tolist() == [9, 14]
    assert chosen.features["state"][:, 0].tolist() == [*range(8, 17), *range(5)]


def test_windows_explain_bad_arguments(episodes):
    with pytest.raises(ValueError, match=r"features \['action', 'state'\], expected also \['force'\]"):
        Windows(episodes, ("force",), 2, 4, 1)
    with pytest.raises(ValueError, match="padded=4, expected a number from 0 to horizon - 1 = 3"):
        Windows(episodes, ("state",), 2, 4, 4)
    with pytest.raises(ValueError, match="at most 9 steps, expected some of at least 30"):
        Windows(episodes, ("state",), 2, 32, 2)
    with pytest.raises(ValueError, match="share=0.99 of 3 episodes"):
        episodes.split(0.99)


@pytest.mark.parametrize("scaling", [Limits(), Standard()], ids=["limits", "standard"])
def test_normalisers_invert_and_leave_constants_alone(scaling):
    data = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 1e-6, 0.0])
    data = data + torch.tensor([0.0, 7.0, 3.0, -2.0])
    normaliser = Normaliser("joints", (4,))
    normaliser.fit(data, scaling)
    y = normaliser(data)
    torch.testing.assert_close(normaliser.inverse(y), data, rtol=1e-5, atol=1e-4)
    # Near-constant dimensions: scale one, so that a small drift at run time stays small.
    assert normaliser.scale[2:].tolist() == [1.0, 1.0]
    assert y[:, 2:].abs().max() < 1e-4
    if isinstance(scaling, Limits):
        torch.testing.assert_close(y[:, :2].amin(0), torch.full((2,), -1.0))
        torch.testing.assert_close(y[:, :2].amax(0), torch.full((2,), 1.0))
    else:
        torch.testing.assert_close(y[:, :2].mean(0), torch.zeros(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(y[:, :2].std(0), torch.ones(2))


def test_a_normaliser_without_statistics_is_an_error():
    with pytest.raises(ValueError, match="'joints' has no statistics, expected a scale and an offset"):
        Normaliser("joints", (4,)).check()


def test_episodes_to_add_have_the_same_features(episodes):
    both = episodes + episodes.select([1])
    assert both.ends.tolist() == [5, 8, 17, 20]
    assert both.features["state"][17:, 0].tolist() == [5, 6, 7]
    other = Episodes({"action": episodes.features["action"]}, episodes.ends)
    with pytest.raises(ValueError, match=r"got others with \{'action': \(1,\)\} to add, expected the same names"):
        episodes + other


def test_rows_of_single_numbers_are_refused(episodes):
    flat = Episodes({"state": episodes.features["state"], "action": np.arange(17.0)}, episodes.ends)
    with pytest.raises(ValueError, match=r"features \['action'\] of shape \(steps,\), expected at least \(steps, 1\)"):
        Windows(flat, ("state",), 1, 2, 1)


def test_one_row_counts_as_constant():
    scale, offset = Standard().fit(torch.tensor([[3.0, -2.0]]))
    assert scale.tolist() == [1, 1]
    assert offset.tolist() == [-3, 2]
