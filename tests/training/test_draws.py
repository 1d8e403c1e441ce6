"""Draws: what a record gets depends on (seed, epoch, index) alone."""

import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sca_hf.training.draws import DrawnStream, SeededDataset, Stream, draw_generator


ROWS = [{"image_id": str(k)} for k in range(6)]


def add_number(record, rng):
    return {**record, "number": int(rng.integers(1 << 30))}


def draws(loader):
    return [tuple(record["draw"]) for batch in loader for record in batch]


def test_a_record_names_its_seed_epoch_and_index():
    records = SeededDataset(ROWS, seed=7)
    records.set_epoch(2)
    assert len(records) == 6 and records[4] == {"image_id": "4", "draw": (7, 2, 4)}
    assert records[-1]["draw"] == (7, 2, 5)
    with pytest.raises(IndexError):
        records[6]
    assert "draw" not in ROWS[4]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_reaches_workers_that_already_run(workers):
    records = SeededDataset(ROWS, seed=1)
    loader = DataLoader(records, 2, collate_fn=list, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 3):
        records.set_epoch(epoch)
        assert draws(loader) == [(1, epoch, index) for index in range(6)]


def test_the_augmentation_draws_by_seed_epoch_and_index_alone():
    def numbers(seed, epoch, order):
        records = SeededDataset(ROWS, seed, add_number)
        records.set_epoch(epoch)
        return {k: records[k]["number"] for k in order}

    first = numbers(0, 0, range(6))
    assert first == numbers(0, 0, reversed(range(6)))
    everything = [*first.values(), *numbers(0, 1, range(6)).values(), *numbers(1, 0, range(6)).values()]
    assert len(set(everything)) == 18


def test_streams_of_one_draw_differ():
    numbers = {draw_generator((0, 0, 0), stream).integers(1 << 40) for stream in Stream}
    assert len(numbers) == len(Stream)
    assert draw_generator((1, 2, 3)).random() == np.random.default_rng([1, 2, 3, 0]).random()


def test_a_copy_in_another_process_keeps_the_epoch():
    records = SeededDataset(ROWS, seed=1)
    records.set_epoch(5)
    assert pickle.loads(pickle.dumps(records))[0]["draw"] == (1, 5, 0)


def test_what_cannot_be_drawn_by_is_refused():
    with pytest.raises(ValueError, match="seed is -1"):
        SeededDataset(ROWS, -1)
    with pytest.raises(ValueError, match="epoch is -2"):
        SeededDataset(ROWS, 1).set_epoch(-2)
    with pytest.raises(TypeError, match="a length and an index, got list_iterator"):
        SeededDataset(iter(ROWS), 1)


class Rows(IterableDataset):
    """A stream that its workers share out, as those of `datasets` do."""

    def __init__(self, rows):
        self.rows, self.epoch = rows, None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        worker = get_worker_info()
        yield from self.rows if worker is None else self.rows[worker.id :: worker.num_workers]


def test_a_stream_is_drawn_by_image_whichever_worker_reads_it():
    def drawn(workers):
        loader = DataLoader(DrawnStream(Rows(ROWS), 3, add_number), 2, collate_fn=list, num_workers=workers)
        return {record["image_id"]: record["number"] for batch in loader for record in batch}

    assert drawn(0) == drawn(2) and len(set(drawn(0).values())) == len(ROWS)


def test_a_record_that_comes_again_in_a_stream_is_drawn_again():
    stream = DrawnStream(Rows([ROWS[0]] * 3), 3, add_number)
    first = [record["number"] for record in stream]
    assert len(set(first)) == 3 and first == [record["number"] for record in stream]
    stream.set_epoch(1)
    assert stream.dataset.epoch == 1 and set(first).isdisjoint(record["number"] for record in stream)
