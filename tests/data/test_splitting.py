"""Splitting by image: seeded, of the share asked for, and without a leak between sets."""

import pytest
from datasets import Dataset

from sca_hf.data.mixing import hold_out


def images(*names):
    return Dataset.from_dict({"image_id": [str(name) for name in names]})


def test_the_share_and_the_seed_decide():
    (train,), (test,) = hold_out([images(*range(50))], 0.2, seed=3)
    assert len(test) == 10 and len(train) == 40
    assert set(train["image_id"]).isdisjoint(test["image_id"])
    assert hold_out([images(*range(50))], 0.2, seed=3)[1][0]["image_id"][:] == test["image_id"][:]
    assert set(hold_out([images(*range(50))], 0.2, seed=4)[1][0]["image_id"]) != set(test["image_id"])


def test_the_order_of_records_does_not_matter():
    forth = hold_out([images(*range(30))], 0.3)[1][0]
    back = hold_out([images(*reversed(range(30)))], 0.3)[1][0]
    assert set(forth["image_id"]) == set(back["image_id"])


def test_an_image_is_on_one_side_in_all_its_records_and_sets():
    first, second = images(*range(20), *range(20)), images(*range(15, 60))
    train, test = hold_out([first, second], 0.25)
    trained = {name for part in train for name in part["image_id"]}
    tested = {name for part in test for name in part["image_id"]}
    assert not trained & tested
    assert len(test[0]) == 10, "both records of five images"


def test_each_side_gets_an_image():
    (train,), (test,) = hold_out([images(1, 2)], 0.01)
    assert len(train) == len(test) == 1
    with pytest.raises(ValueError, match="a split needs two or more"):
        hold_out([images(1, 1)], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out([images(1, 2)], 1.0)
