"""What the documentation promises about failure is executed: each sentence has its tests, by name."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# Measurements, and what is generated.
NOT_TEXT = {"api.md", "external-tests.md", "experiments.md", "versions.md"}
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in NOT_TEXT)]
PROMISE = re.compile(
    r"\b(resum\w+|refus\w+|never|kill\w*|skips?|skipped|interrupted|whatever its clients|left out|stops? where)\b",
    re.I,
)
RUN = "evaluation/test_predict.py::test_killed_at_random_moments_it_ends_with_the_same_bytes"
TRAIN = "training/test_resume.py::test_ten_kills_at_random_moments_change_no_bit"
FOLDER = "anything/test_folder_runs.py::test_500_images_with_10_broken_survive_5_kills_and_2_processes_equal_1"
TAMPERED = "hub/test_tampered.py::test_tampered_repositories_are_refused"
PLACES = "fuzz/test_places.py::test_no_name_or_address_in_a_data_set_leads_out_of_it"
PLACED = "modeling/test_placements.py::test_placements_that_cannot_work_are_refused_before_weights_are_read"
DOORS = "test_region_doors.py::test_an_odd_region_is_refused_everywhere_in_the_same_words"
ENCODERS = "modeling/test_plain_encoders.py::"
GATE = "serving/test_gate.py::"
COST = f"{GATE}test_a_refusal_costs_at_most_300_mib_and_5_seconds_and_others_are_answered"
PAGE = "demo/test_page_answers.py::test_of_all_routes_only_those_that_page_and_interface_use_are_open"
HOSTS = f"{GATE}test_a_local_server_answers_to_names_of_this_machine_only"
ORIGINS = f"{GATE}test_pages_of_other_sites_cannot_use_it"
PUBLISH = "hub/test_publish.py::"
PRIVATE = f"{PUBLISH}test_a_folder_full_of_private_things_is_published_without_any"
SECRETS = f"{PUBLISH}test_secrets_in_what_would_be_published_are_refused_each_by_its_file"
PUSHES = "hub/test_push_while_training.py::test_every_push_is_a_repository_that_loads"
COUNTS = "evaluation/test_protocols.py::test_other_counts_have_no_place_under_its_name"
LANGUAGES = "training/test_languages.py::"
SPOKEN = "evaluation/test_spoken_predictions.py::"
# The beginning of a sentence, after its page, or a part of it that no other has -> the tests that it is true by.
PROMISES = {
    "A number of words that is not among those learned takes the nearest": (
        "training/test_lengths.py::test_the_nearest_number_counts_and_a_far_one_is_refused",
    ),
    "A stored data set keeps languages, a streamed one with any is refused": (
        f"{LANGUAGES}test_json_lines_say_languages_in_three_ways_and_return",
    ),
    "captions in other languages are left out of such pictures": (
        f"{LANGUAGES}test_captions_in_other_languages_are_not_reworded_by_the_rules_of_english",
    ),
    "but `zh-Hant` never `zh-Hans`": (f"{LANGUAGES}test_the_learned_language_that_is_meant_is_found",),
    "A language that the model did not learn is refused": (
        f"{LANGUAGES}test_a_language_that_was_not_learned_is_refused",
    ),
    "Regions without one are left out, with a line that counts them": (
        f"{SPOKEN}test_only_references_in_the_asked_language_count",
        f"{SPOKEN}test_data_that_say_no_language_are_taken_to_be_in_the_asked_one",
    ),
    "METEOR, SPICE and `content-recall` know English alone and refuse others": (
        "evaluation/metrics/test_language_metrics.py::test_what_a_language_has_no_program_for_is_refused",
    ),
    "Of several clips, those that are done are kept when": (
        "data/test_clips.py::test_a_killed_run_keeps_the_clips_that_are_done",
    ),
    "or whose patches do not divide the image is refused before training": (
        f"{ENCODERS}test_an_encoder_that_cannot_be_used_is_refused_before_training",
        f"{ENCODERS}test_an_image_that_patches_do_not_divide_is_refused",
    ),
    "Run the command again to resume an interrupted run": (
        TRAIN,
        "training/test_recipe.py::test_an_interrupted_run_goes_on_to_the_same_weights",
    ),
    "without repeating or losing an image": (FOLDER,),
    "Pictures stay in memory and are never written": (PAGE,),
    "Requests from pages of other sites are refused": (ORIGINS, HOSTS),
    "exits within 10, whatever its clients do": (
        f"{GATE}test_it_ends_in_10_seconds_whatever_clients_do",
        f"{GATE}test_a_second_signal_does_not_wait",
    ),
    "a region with only outside points is refused": (DOORS,),
    "What differs is named, and": (
        "training/test_resume.py::test_a_run_with_other_arguments_is_not_gone_on_with",
        "training/test_resume.py::test_harmless_changes_are_no_other_run_and_others_can_be_allowed",
    ),
    "A picture that was replaced under its name": (
        "anything/test_names_and_pictures.py::test_pictures_replaced_under_their_names_are_captioned_again",
        "anything/test_names_and_pictures.py::test_a_model_changed_under_its_name_is_another_run",
        "anything/test_names_and_pictures.py::test_other_code_is_another_run",
    ),
    "A model that is not wired as published": (
        "modeling/test_mixer_forms.py::test_older_code_refuses_another_form_in_words",
    ),
    "A key that looks like a prompt's": (DOORS,),
    "never see each other's data": (
        "serving/test_http_interface.py::test_requests_that_come_together_share_a_call_and_stay_apart",
        "serving/test_many_clients.py::test_clients_of_all_kinds_leave_the_honest_ones_their_answers_and_their_time",
    ),
    "A refusal takes at most 300 MiB": (COST,),
    "A region never depends on the other regions": (
        "modeling/test_invariance.py::test_each_region_among_forty_of_all_kinds",
    ),
    "a resume after a kill change nothing": (
        TRAIN,
        "training/test_distributed.py::test_a_resumed_run_of_two_processes_ends_bit_equal",
    ),
    "append to one log that survives a kill": (RUN, FOLDER),
    "the log of a resumable run": (RUN,),
    "saved to refuse a resume that would mix": (
        "training/test_run_identity.py::test_another_run_is_refused_whether_stopped_or_finished",
    ),
    "An existing folder is never overwritten": (
        "data/writers/test_round_trips.py::test_a_folder_that_may_hold_corrections_is_left_alone",
    ),
    "some file system or tool refuses become": (
        "data/writers/test_round_trips.py::test_pictures_of_one_stem_get_label_files_of_their_own",
    ),
    "`skip` leaves out bad regions": (
        "data/test_load_regions.py::test_what_is_skipped_is_told_on_every_opening",
        "data/test_pictures.py::test_skip_means_pictures_too",
    ),
    "with `skip` the region is kept without it": (
        "data/readers/test_coco.py::test_a_mask_that_cannot_be_read_is_named_and_costs_itself_only",
    ),
    "You can stop a run at any time": (
        "training/test_distributed.py::test_a_resumed_run_of_two_processes_ends_bit_equal",
        TRAIN,
    ),
    "reads all of a streamed data set and skips": (
        "training/test_distributed.py::test_a_streamed_set_feeds_two_processes",
    ),
    "FSDP: the preset `all` is refused": ("training/test_distributed.py::test_twenty_steps_end_in_the_same_weights",),
    "to resume from; frozen weights are not saved": (
        "training/test_distributed.py::test_a_checkpoint_of_shards_loads_as_any_other_and_holds_no_frozen_weight",
    ),
    "distributed.md: refused": (PLACED,),
    "a part left out": (PLACED,),
    "Code from those two repositories is never run": (
        "hub/test_load_from_hub.py::test_code_in_a_base_repository_is_never_run",
    ),
    "A base model of another architecture is refused": (
        "hub/test_load_from_hub.py::test_a_base_of_another_architecture_is_refused_before_its_weights_come",
    ),
    "All others are left out and listed": (PRIVATE,),
    "an interrupted upload changes nothing": (f"{PUBLISH}test_a_cut_upload_shows_nothing_and_goes_on",),
    "a killed and resumed run leaves the same history": (
        "hub/test_push_while_training.py::test_a_killed_run_leaves_the_history_of_an_unbroken_one",
        PUSHES,
    ),
    "Loading refuses a configuration that names code": (
        TAMPERED,
        "test_budgets.py::test_every_whole_number_of_a_configuration_is_bounded",
    ),
    "It also refuses weight files outside": (
        TAMPERED,
        "hub/test_tampered.py::test_adapters_that_would_import_are_refused",
    ),
    "3 beams, resumable, on all GPUs": (
        "evaluation/test_predict.py::test_two_processes_write_what_one_does_also_when_killed",
    ),
    "`--protocol vg-full` refuses data whose counts": (COUNTS,),
    "in `predict` and in scoring, sets prompt and beams": (COUNTS,),
    "If the run is killed, repeat the command": (RUN,),
    "The command refuses to resume with changed": (
        "evaluation/test_predict.py::test_a_changed_setting_is_refused",
        "evaluation/test_predict.py::test_data_that_changed_under_a_run_are_noticed",
    ),
    "Run again, the command resumes from the last complete": (
        "training/test_resume.py::test_a_run_killed_while_saving_and_between_ends_with_the_same_weights",
    ),
    "A stopped run is not a finished one": (
        "training/test_stopping.py::test_what_a_callback_stops_is_unfinished_and_resumes_to_the_same_weights",
        "training/test_stopping.py::test_ctrl_c_says_the_same",
        "training/test_stopping.py::test_a_real_process_ended_by_sigterm_resumes_to_the_same_weights",
    ),
    "A save that would lose any of this is refused": (
        "training/test_peft_wrappers.py::test_our_trainer_refuses_what_it_could_not_save_and_says_what_it_freezes",
    ),
    "list at the end what was left out and why": (
        "data/test_pictures.py::test_predict_leaves_out_and_lists",
        "data/test_pictures.py::test_training_leaves_out_and_lists",
    ),
    "keep images without regions (left out by default)": (
        "data/test_load_regions.py::test_images_without_regions_are_kept_on_request",
    ),
    "Crowds are left out": ("data/readers/test_coco.py::test_crowds_are_left_out_and_counted_unless_asked_for",),
    "Key points and vectors are left out and counted": (
        "data/readers/test_label_studio.py::test_what_is_not_a_region_is_counted_or_noted",
    ),
    "Points and lines are left out and counted": (
        "data/readers/test_labelme.py::test_shapes_without_an_inside_are_weighed",
    ),
    "a model or code that changed is refused, and overlays": (
        "anything/test_names_and_pictures.py::test_pictures_replaced_under_their_names_are_captioned_again",
        "anything/test_names_and_pictures.py::test_a_model_changed_under_its_name_is_another_run",
        "anything/test_names_and_pictures.py::test_other_code_is_another_run",
        "anything/test_names_and_pictures.py::test_a_run_does_not_caption_what_it_has_written",
    ),
    "A finished file that was edited is refused": (
        "evaluation/test_predict.py::test_a_finished_file_that_was_cut_is_no_result",
    ),
    "Resumed or finished, the run must be the same": (
        "training/test_run_identity.py::test_another_run_is_refused_whether_stopped_or_finished",
        "training/test_run_identity.py::test_spelling_moved_folders_and_logging_are_the_same_run",
    ),
    "`training: {allow_changed_resume: true}` resumes": (
        "training/test_resume.py::test_harmless_changes_are_no_other_run_and_others_can_be_allowed",
    ),
    "A run is told by content": ("training/test_run_identity.py::test_other_code_and_settings_are_another_run",),
    "What a few bytes could blow up": ("test_budgets.py::test_a_few_bytes_cost_little",),
    # Security.
    "none of its code runs, nothing is unpickled": (
        TAMPERED,
        "hub/test_tampered.py::test_with_the_package_not_even_the_configuration_class_is_the_repositorys",
    ),
    "names and paths stay inside its folder": (
        PLACES,
        "fuzz/test_bad_rows.py::test_any_value_in_a_row_costs_no_more_than_the_row",
    ),
    "`.bin` files are read as plain tensors": (
        "hub/test_convert.py::test_code_in_a_bin_file_is_refused_and_never_runs",
    ),
    "it opens no path and no address": (
        COST,
        "serving/test_http_interface.py::test_hostile_requests_are_refused_with_a_sentence",
        f"{GATE}test_work_stops_where_its_client_has_left",
        "serving/test_server_process.py::test_other_machines_need_a_token_or_a_decision",
    ),
    "a server on this machine refuses its origin": (
        ORIGINS,
        HOSTS,
        PAGE,
        f"{GATE}test_regions_are_taken_as_json_only",
    ),
    "a file is whole or absent under its final name": (
        "test_kill_matrix.py::test_killed_or_without_room_a_command_ends_with_the_same",
        "cli/test_files_are_kept.py::test_an_output_that_is_an_input_is_refused_before_any_work",
    ),
    "each resumable, each usable alone": (
        "self_training/test_proposals.py::test_proposing_killed_at_any_line_and_shared_by_two_ends_with_the_same_bytes",
        "self_training/test_judging.py::test_judging_killed_at_any_line_and_shared_by_two_ends_with_the_same_bytes",
        "self_training/test_learning.py::test_learning_killed_at_any_moment_ends_with_the_same_weights",
    ),
    "`judge` never overwrites an edited manifest": (
        "self_training/test_judging.py::test_an_edited_manifest_is_learned_from_as_it_stands_and_never_overwritten",
    ),
    "pictures that the recipe evaluates on are left out": (
        "self_training/test_learning.py::test_pictures_that_are_evaluated_on_are_not_learned_from",
    ),
    "`propose`, `judge` and `learn` resume after a kill": (
        "self_training/test_proposals.py::test_proposing_killed_at_any_line_and_shared_by_two_ends_with_the_same_bytes",
        "self_training/test_judging.py::test_judging_killed_at_any_line_and_shared_by_two_ends_with_the_same_bytes",
        "self_training/test_learning.py::test_learning_killed_at_any_moment_ends_with_the_same_weights",
        "self_training/test_learning.py::test_rounds_killed_in_any_stage_end_with_the_same_model",
    ),
    "stops where something looks like a key": (PRIVATE, SECRETS),
}
# What has such a word and promises nothing.
NO_PROMISES = (
    "A model that has never seen your kind of picture",
    "A class with no region among the thirty is never named",
    "`annotations`, `images`, `names`, `crowd`",
    'use `clip="image"` or `on_error="skip"`',
    "three training pictures were never published",
    "hub.md: ## What is refused",
    "it never sees a region's neighbours",
    "[loading](hub.md#what-is-refused)",
    "Look at `judged/kept.png` and `judged/refused.png`",
    "A wrong caption, a refused file that should load",
)


def sentences():
    """Each sentence, or cell of a table, that has a word of a promise, after the name of its page."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for part in re.split(r"\n\s*\n|\n(?=\|)|\n(?=[-*] |\d\. )", text):
            for sentence in re.split(r"(?<=[.:;])\s+(?=[A-Z`*\[(|])|\s\|\s", " ".join(part.split())):
                if PROMISE.search(sentence):
                    yield f"{page.name}: {sentence}"


def test_every_sentence_that_promises_something_about_failure_has_its_tests():
    known = (*PROMISES, *NO_PROMISES)
    assert not [one for one in sentences() if not any(part in one for part in known)], (
        "give it a test, and a line here"
    )
    assert not [part for part in known if not any(part in one for one in sentences())], "the sentence is gone"


@pytest.mark.parametrize("test", sorted({test for tests in PROMISES.values() for test in tests}))
def test_the_tests_of_promises_are_there(test):
    path, name = test.split("::")
    tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in found and found[name].name.startswith("test_")
