from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from poise.data import Contents, DataError, Facts, Feature, Finding, Role, Severity, open_dataset
from poise.data.doctor import About, examine
from poise.data.flat import Flat

LENGTHS = (60, 50, 70)
ENDS = np.cumsum(LENGTHS)
RATE = 10.0
FACTS = Facts(
    RATE,
    roles={"state": Role.OBSERVATION, "camera": Role.OBSERVATION, "action": Role.ACTION},
    names={"state": ("x", "y", "gripper")},
)


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    """Smooth motion with noise, a gripper that opens and closes, images that change, a clock."""
    rng = np.random.default_rng(0)
    steps, time = sum(LENGTHS), np.concatenate([np.arange(n) / RATE for n in LENGTHS])
    phase = np.repeat(rng.uniform(0, 6, len(LENGTHS)), LENGTHS)
    motion = np.stack([np.sin(time + phase), np.cos(0.7 * time - phase)], 1) + 0.003 * rng.standard_normal((steps, 2))
    gripper = (np.sin(3 * time + phase) > 0).astype(float)[:, None]
    return {
        "state": np.hstack([motion, gripper]),
        "camera": rng.integers(0, 256, (steps, 4, 4, 3), np.uint8),
        "action": motion + 0.01 * rng.standard_normal((steps, 2)),
        "timestamp": time[:, None].astype(np.float32),
    }


class Broken(Flat):
    """A dataset one of whose episodes cannot be read, and whose file has something to say."""

    def rows(self, episode, names):
        if episode == 1:
            raise DataError(self.path, "data/chunk-000.parquet", "is truncated")
        return super().rows(episode, names)

    def findings(self):
        yield Finding("statistics", Severity.WARNING, "has no statistics: write them anew")


def found(rows, lengths=LENGTHS, facts=FACTS, kind=Flat, **options) -> list[Finding]:
    return list(examine(kind(Path("made"), rows, np.cumsum(lengths), facts), **options))


def only(findings: list[Finding], code: str, episode: int | None, frame: int | None, feature: str | None) -> Finding:
    """The one finding, if it is there and nothing else."""
    assert [f[0] for f in findings] == [code]
    (one,) = findings
    assert (one.episode, one.frame, one.feature) == (episode, frame, feature)
    return one


def row(episode: int, frame: int) -> int:
    return int(ENDS[episode] - LENGTHS[episode] + frame)


def test_clean_data_give_no_finding(rows):
    assert found(rows) == []
    del rows["timestamp"], rows["camera"]
    assert found(rows, facts=Facts()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_where_they_are(rows, value):
    rows["state"][row(1, 7), 1] = value
    one = only(found(rows), "nan", 1, 7, "state")
    assert one.severity is Severity.ERROR
    assert "state[y] is NaN or infinite in 1 rows of the episode" in one.message
    assert "drop the episode" in one.message


def test_a_dimension_that_never_changes_is_found(rows):
    rows["action"] = np.hstack([rows["action"], np.full((sum(LENGTHS), 1), 0.5)])
    one = only(found(rows), "constant", None, None, "action")
    assert one.severity is Severity.WARNING
    assert one.message.startswith("action[2] is 0.5 in every row")


def test_a_jump_is_found_at_the_frame_it_leads_to(rows):
    rows["state"][row(2, 31) : ENDS[2], 0] += 5
    one = only(found(rows), "jump", 2, 31, "state")
    assert "state[x] jumps by 4.9" in one.message


def test_a_spike_is_two_jumps(rows):
    rows["action"][row(0, 20), 1] -= 9
    assert [(f.code, f.episode, f.frame) for f in found(rows)] == [("jump", 0, 20), ("jump", 0, 21)]


def test_episodes_that_begin_elsewhere_are_no_jump(rows):
    rows["state"][row(1, 0) :, :2] += 50
    assert found(rows) == []


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
def test_an_angle_that_wraps_is_one_finding(rows, turn):
    angle = np.linspace(0.1, 5.3, sum(LENGTHS)) * turn
    rows["state"][:, 0] = angle % turn
    one = only(found(rows), "wrap", 0, 31, "state")
    assert "jumps by about a whole turn 5 times" in one.message
    assert "sine and cosine" in one.message


def test_a_lost_frame_shows_in_the_clock(rows):
    rows["timestamp"][row(1, 20) : ENDS[1]] += 1 / RATE
    one = only(found(rows), "timestamps", 1, 20, "timestamp")
    assert one.severity is Severity.ERROR
    assert "goes on by 0.2 instead of 0.1" in one.message
    assert "frames are missing or doubled" in one.message


def test_a_clock_that_trembles_is_a_warning_and_needs_no_declared_rate(rows):
    rows["timestamp"][row(2, 5)] += 0.02
    for facts in (FACTS, Facts(None, None, FACTS.roles, FACTS.names)):
        one = only(found(rows, facts=facts), "timestamps", 2, 5, "timestamp")
        assert one.severity is Severity.WARNING


def test_frames_in_reverse_are_found(rows):
    for values in rows.values():
        values[row(1, 30) : row(1, 35)] = values[row(1, 30) : row(1, 35)][::-1].copy()
    one = only(found(rows), "reversed", 1, 31, "timestamp")
    assert one.severity is Severity.ERROR
    assert "4 times in the episode" in one.message


def test_a_counter_that_leaps_is_found(rows):
    rows["frame_index"] = np.concatenate([np.arange(n) for n in LENGTHS])[:, None]
    assert found(rows) == []
    rows["frame_index"][row(0, 9) : ENDS[0]] += 3
    only(found(rows), "timestamps", 0, 9, "frame_index")


def test_observations_that_repeat_while_commands_go_on_are_frozen(rows):
    for name in ("state", "camera"):
        rows[name][row(2, 40) : row(2, 52)] = rows[name][row(2, 40)]
    one = only([f for f in found(rows) if f.code != "jump"], "frozen", 2, 40, None)
    assert "repeat bit by bit for 12 rows" in one.message
    rows["action"][row(2, 40) : row(2, 52)] = rows["action"][row(2, 40)]
    assert "frozen" not in {f.code for f in found(rows)}, "a robot that is told to rest may rest"


def test_observations_that_never_change_in_an_episode_are_frozen(rows):
    del rows["camera"]
    rows["state"][row(1, 0) : ENDS[1]] = rows["state"][row(1, 0)]
    only(found(rows), "frozen", 1, 0, None)


def test_a_camera_that_hangs_while_the_robot_moves_is_found(rows):
    rows["camera"][row(0, 10) : row(0, 20)] = rows["camera"][row(0, 10)]
    only(found(rows), "frozen", 0, 10, "camera")
    rows["camera"][row(0, 19)] += 1
    assert found(rows) == [], "nine rows are not yet too many"


def test_a_camera_that_shows_one_image_is_found(rows):
    rows["camera"][row(1, 0) : ENDS[1]] = 7
    one = only(found(rows), "still", 1, 0, "camera")
    assert one.severity is Severity.ERROR
    assert "in all 50 rows" in one.message
    del rows["state"]
    only(found(rows), "still", 1, 0, "camera")


def test_images_of_floats_are_named_once_and_their_nan_where_they_are(rows):
    rows["camera"] = rows["camera"].astype(np.float32)
    one = only(found(rows), "image-type", None, None, "camera")
    assert "images of float32, and training takes uint8" in one.message
    rows["camera"][row(2, 9), 1, 1, 0] = np.nan
    told = found(rows)
    assert [(f.code, f.episode, f.frame) for f in told] == [("image-type", None, None), ("nan", 2, 9)]


def test_an_episode_that_is_there_twice_is_found(rows):
    copied = {name: np.concatenate([values, values[row(1, 0) : ENDS[1]]]) for name, values in rows.items()}
    one = only(found(copied, (*LENGTHS, 50)), "duplicate", 3, 0, None)
    assert "equals episode 1 bit by bit" in one.message
    copied["timestamp"][ENDS[2] :] += 1000
    only(found(copied, (*LENGTHS, 50)), "duplicate", 3, 0, None)
    copied["action"][-1] += 1e-9
    assert found(copied, (*LENGTHS, 50)) == []


def test_commands_at_their_limit_are_found_and_switches_are_not(rows):
    rows["action"][:, 0] = np.minimum(rows["action"][:, 0], 0.8)
    at = rows["action"][:, 0] == 0.8
    one = only(found(rows), "saturated", 0, int(np.flatnonzero(at)[0]), "action")
    assert f"largest value 0.8 in {at.mean():.0%} of the rows" in one.message
    rows["action"][:, 0] = np.sign(rows["action"][:, 0])
    assert found(rows) == []


def test_an_episode_shorter_than_the_horizon_is_found(rows):
    assert found(rows, horizon=50) == []
    one = only(found(rows, horizon=51), "short", 1, 0, None)
    assert "has 50 rows, fewer than the horizon of 51" in one.message


def test_an_episode_that_cannot_be_read_is_a_finding_and_the_others_are_examined(rows):
    rows["state"][row(0, 3), 0] = np.nan
    rows["state"][row(2, 4), 0] = np.nan
    findings = found(rows, kind=Broken)
    assert [(f.code, f.episode, f.frame) for f in findings] == [
        ("statistics", None, None),
        ("unreadable", 1, None),
        ("nan", 0, 3),
        ("nan", 2, 4),
    ]
    assert findings[1].feature == "data/chunk-000.parquet"
    assert "is truncated" in findings[1].message


def test_many_findings_of_a_kind_are_counted(rows):
    lengths = (15,) * 12
    findings = found({"camera": rows["camera"]}, lengths, listed=4)
    assert [(f.code, f.episode) for f in findings] == [("short", k) for k in (0, 1, 2, 3, None)]
    assert findings[-1].message == "8 more of this kind, of 12 in all"
    assert findings[-1].severity is Severity.WARNING


def test_what_features_are_for_is_told_by_name_where_nobody_says_it():
    looks = {name: Feature(np.dtype("f4"), (1,)) for name in ("action", "reward", "timestamp", "qpos", "image")}
    looks["image"] = Feature(np.dtype("u1"), (8, 8, 3))
    about = About(Contents(looks, np.array([3])), 16)
    assert about.actions == ("action",)
    assert about.observations == ("qpos", "image")
    assert about.cameras == ("image",)


def test_the_human_demonstrations_of_pusht_have_no_jump_but_an_angle_that_wraps(pusht_path):
    with open_dataset(pusht_path) as source:
        numbers = {name: look for name, look in source.contents.features.items() if name != "img"}
        source.contents = replace(source.contents, features=numbers)  # 2.8 GB of images take a while
        findings = list(examine(source))
    assert [(f.code, f.feature) for f in findings] == [("wrap", "state")]
    assert "state[4] jumps by about a whole turn 91 times" in findings[0].message
