"""What the recipes do to demonstrations."""

from pathlib import Path

import numpy as np
import pytest

from poise import Episodes, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
GOAL = np.array([256.0, 256.0, np.pi / 4])


@pytest.fixture
def enlarged() -> tuple[Episodes, Episodes]:
    """Two made-up episodes of Push-T, and what is learned from them: themselves moved, and their mirror images."""
    random = np.random.default_rng(0)
    state = np.hstack([random.uniform(100, 400, (14, 4)), random.uniform(0, 1, (14, 1))])
    given = Episodes({"state": state, "action": random.uniform(100, 400, (14, 2))}, np.array([8, 14]))
    return given, load_recipe(RECIPES / "pusht.py").enlarge(given)


def test_pusht_ends_where_the_block_comes_to_rest_on_the_goal(enlarged):
    _, learned = enlarged
    for end in learned.ends:
        before, block = learned.features["state"][end - 2 : end, 2:]
        np.testing.assert_allclose(block + 2.3 * (block - before), GOAL, atol=1e-9)


def test_pusht_moves_the_table_as_a_rigid_body(enlarged):
    given, learned = enlarged
    state, action = given.features["state"], given.features["action"]
    own = {name: rows[: given.steps] for name, rows in learned.features.items()}
    for begin, end in zip(given.starts, given.ends, strict=True):
        was = np.concatenate([state[begin:end, :2], state[begin:end, 2:4], action[begin:end]])
        now = np.concatenate([own["agent"][begin:end], own["block"][begin:end], own["action"][begin:end]])
        apart = [np.linalg.norm(points[:, None] - points, axis=-1) for points in (was, now)]
        np.testing.assert_allclose(*apart, atol=1e-9)
        turn = own["state"][begin:end, 4] - state[begin:end, 4]
        np.testing.assert_allclose(turn, turn[0], atol=1e-12)
        # The angle of the block turns with the table.
        old, new = was[end - begin] - was[0], now[end - begin] - now[0]
        np.testing.assert_allclose(np.exp(1j * turn[0]) * complex(*old), complex(*new), atol=1e-9)


def test_pusht_mirror_is_its_own_inverse(enlarged):
    given, learned = enlarged
    own, mirrored = (
        {name: rows[part] for name, rows in learned.features.items()} for part in (slice(14), slice(14, 28))
    )
    np.testing.assert_allclose(512 - mirrored["agent"][:, ::-1], own["agent"])
    np.testing.assert_allclose(np.pi / 2 - mirrored["state"][:, 4], own["state"][:, 4])
    # In the frame of the block, which is symmetric about its second axis, left is right.
    np.testing.assert_allclose(mirrored["agent_from_block"], own["agent_from_block"] * [-1, 1], atol=1e-9)
    assert len(learned) == 2 * len(given)


def test_a_field_that_is_misspelt_in_a_recipe_is_told_with_the_nearest(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from poise import PolicySpec\nrecipe = PolicySpec({'side': (1,)}, 1, netwrk=None)\n")
    with pytest.raises(ValueError, match=r"mine.py gives PolicySpec the field 'netwrk'.*did you mean 'network'\?"):
        load_recipe(file)
    for line, name in (("import poise", "poise"), ("import poise as p", "p"), ("import poise.training", "poise")):
        file.write_text(f"{line}\nrecipe = {name}.TrainingSpec(stpes=1)\n")
        with pytest.raises(ValueError, match=r"mine.py gives TrainingSpec the field 'stpes'.*did you mean 'steps'\?"):
            load_recipe(file)
    file.write_text("recipe = len(1)\n")
    with pytest.raises(TypeError, match="has no len"):
        load_recipe(file)
