import numpy as np
import pytest

from sca_hf.processing.captions_sca import decode_rows, encode_captions, region_captions, region_tasks, text_tasks
from sca_hf.testing import CAPTIONS, tiny_tokenizer


TASKS = ["recognition", "caption"]


def encode(captions, tokenizer, max_length=20, add_bos=False, **options):
    shape = (len(captions), max(map(len, captions)))
    return encode_captions(captions, tokenizer, shape, max_length, add_bos, **options)


@pytest.mark.parametrize("special", [{}, {"unk_token": None}, {"pad_token": None}, {"pad_token": "</s>"}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_captions_end_with_eos_and_are_padded_on_the_right(special, side):
    tokenizer = tiny_tokenizer(**special)
    tokenizer.padding_side = tokenizer.truncation_side = side
    out = encode([[CAPTIONS[0], None], ["a"]], tokenizer, max_length=40)
    eos, real = tokenizer.eos_token_id, out["attention_mask"].astype(bool)
    assert out["labels"].shape[:2] == (2, 2)
    assert np.array_equal(out["labels"], np.where(real, out["input_ids"], -100))
    assert (np.diff(out["attention_mask"]) <= 0).all() and real.sum(-1).tolist() == [[real.shape[-1], 0], [2, 0]]
    # EOS is learned, also where the same token fills the padding.
    assert out["labels"][0, 0, -1] == out["labels"][1, 0, 1] == eos
    assert decode_rows(out["labels"][:, 0].tolist(), tokenizer, False, True) == [CAPTIONS[0], "a"]


def test_long_captions_are_cut_at_the_end_with_eos_kept(tokenizer):
    long = " ".join(CAPTIONS)
    tokenizer.truncation_side = "left"
    for add_bos in (False, True):
        ids = encode([[long]], tokenizer, max_length=9, add_bos=add_bos)["labels"][0, 0].tolist()
        assert len(ids) == 9 and ids[-1] == tokenizer.eos_token_id
        assert (ids[0] == tokenizer.bos_token_id) == add_bos
        assert long.startswith(tokenizer.decode(ids, skip_special_tokens=True))
    tokenizer.truncation_side = "right"


def test_bos_is_added_only_where_asked_for():
    tokenizer = tiny_tokenizer()
    plain, begun = (encode([["a cat"]], tokenizer, add_bos=bos)["input_ids"][0, 0].tolist() for bos in (False, True))
    assert begun == [tokenizer.bos_token_id, *plain]


def test_a_shared_bos_and_eos_does_not_end_a_caption_at_its_start():
    tokenizer = tiny_tokenizer(bos_token="</s>")
    ids = encode([["a cat"]], tokenizer, add_bos=True)["labels"][0].tolist()
    assert decode_rows(ids, tokenizer, True, True) == ["a cat"]
    assert decode_rows([[2, 2, 2]], tokenizer, False, True) == [""]


def test_decoding_stops_at_the_first_eos(tokenizer):
    cat, dog = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" a cat ", " a dog"))
    rows = [[*cat, tokenizer.eos_token_id, *dog], [-100, *dog]]
    assert decode_rows(rows, tokenizer, False, True) == ["a cat", "a dog"]


@pytest.mark.parametrize(("missing", "add_bos"), [("eos_token", False), ("bos_token", True)])
def test_a_needed_special_token_that_is_missing_is_an_error(missing, add_bos):
    tokenizer = tiny_tokenizer(**{missing: None})
    with pytest.raises(ValueError, match=f"set tokenizer.{missing}"):
        encode([["a"]], tokenizer, add_bos=add_bos)


def test_captions_of_one_image_or_region_may_be_flat():
    assert region_captions("a", [1]) == [["a"]]
    assert region_captions(["a", None], [2]) == [["a", None]]
    assert region_captions([["a"], []], [1, 0]) == [["a"], []]


@pytest.mark.parametrize(
    ("captions", "counts", "told"),
    [
        (["a"], [2], "image 0 has 1 caption.* for 2 region"),
        ([["a"], None], [1, 1], "image 1 has 0 caption"),
        (["a", "b"], [1, 1], r"nested 1 deep for 2 image.*expected nesting: \[image\]\[region\] of strings"),
        ([[" "]], [1], "image 0, region 0 is ' '; give a text, or None"),
        ([None, []], [2], r"image 0, region 1 is \[\]"),
        ([["a", ["b"]]], [2], "mixes nesting"),
    ],
)
def test_captions_that_do_not_fit_the_regions_are_named(captions, counts, told):
    with pytest.raises(ValueError, match=f"captions.*{told}"):
        region_captions(captions, counts)


@pytest.mark.parametrize("captions", [[[1]], 5, {"a": 1}, [[b"a"]]])
def test_captions_of_another_type_are_a_type_error(captions):
    with pytest.raises(TypeError, match="captions"):
        region_captions(captions, [1])


@pytest.mark.parametrize(
    ("task", "ids"),
    [
        ("caption", [[1, 1], [1, 1]]),
        (["recognition", "caption"], [[0, 0], [1, 1]]),
        ([["recognition", "caption"], "caption"], [[0, 1], [1, 1]]),
        ([["recognition", "caption"], ["caption"]], [[0, 1], [1, 0]]),
    ],
)
def test_tasks_are_named_for_all_per_image_or_per_region(task, ids):
    if isinstance(task, list) and isinstance(task[0], list) and isinstance(task[1], str):
        with pytest.raises(ValueError, match="task mixes nesting"):
            region_tasks(task, TASKS, [2, 1], (2, 2))
    else:
        assert region_tasks(task, TASKS, [2, 1], (2, 2)).tolist() == ids


def test_tasks_of_a_single_image_may_be_a_flat_list_per_region():
    assert region_tasks(["caption", "recognition"], TASKS, [2], (1, 2)).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "task", ["color", ["caption"], [["caption"], ["caption"]], [None, None], 3, [["caption"] * 2, None]]
)
def test_tasks_that_do_not_fit_are_told(task):
    with pytest.raises((ValueError, TypeError), match="task"):
        region_tasks(task, TASKS, [2, 1], (2, 2))


def test_text_is_empty_or_a_task():
    assert text_tasks("", TASKS, 2) == [None, None]
    assert text_tasks(["caption", " "], TASKS, 2) == ["caption", None]
    with pytest.raises(ValueError, match=r"text of image 1 is 'what is this\?'; the model takes no prompt text"):
        text_tasks(["", "what is this?"], TASKS, 2)
    with pytest.raises(ValueError, match="3 entries for 2 image"):
        text_tasks(["", "", ""], TASKS, 2)
    with pytest.raises(TypeError, match="text is a string"):
        text_tasks([{"role": "user"}], TASKS, 1)
